//! Attestations as in-toto statements: bundles taken apart, predicates read, subjects named. As BuildKit's `exporter/attestation`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Read,
    os::fd::OwnedFd,
    path::Path,
};

use bytes::Bytes;
use lapstrake_layerstore_oci::{Digest, Platform, Reference, gojson};
use lapstrake_layerstore_store::{Stores, Tree};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::{
    Attestation, AttestationContent, AttestationKind, ExportError, Subject, SubjectKind,
    attestation::SBOM_CORE,
    sbom::{ImageLayers, with_layers},
};

/// Longest statement or predicate.
const MOST: u64 = 40 << 20;
/// Most statements in a bundle.
const MOST_STATEMENTS: usize = 10_000;
const STATEMENT: &str = "https://in-toto.io/Statement/v1";
/// Provenance is what this program saw, so that nobody else may say it.
const PROVENANCE: &str = "https://slsa.dev/provenance/";
/// The predicate of SPDX documents.
const SPDX: &str = "https://spdx.dev/Document";

/// A statement as it goes out.
pub(crate) struct Statement {
    /// Its name as a file.
    pub(crate) file: String,
    pub(crate) predicate_type: String,
    /// JSON without a space too many.
    pub(crate) json: Vec<u8>,
}

/// What statements are about that are about the result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ResultSubject {
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) name: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) digest: BTreeMap<String, String>,
}

/// Go writes a list or a map that is none as `null`.
fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

impl ResultSubject {
    pub(crate) fn new(name: impl Into<String>, digest: &Digest) -> Self {
        Self { name: name.into(), digest: digest_set([digest]) }
    }
}

fn digest_set<'a>(digests: impl IntoIterator<Item = &'a Digest>) -> BTreeMap<String, String> {
    digests.into_iter().map(|digest| (digest.algorithm().to_string(), digest.hex().to_owned())).collect()
}

#[derive(Serialize)]
struct Written<'a> {
    #[serde(rename = "_type")]
    kind: &'a str,
    #[serde(rename = "predicateType")]
    predicate_type: &'a str,
    subject: &'a [ResultSubject],
    predicate: &'a RawValue,
}

#[derive(Deserialize)]
struct Bundled<'a> {
    #[serde(rename = "predicateType", default, deserialize_with = "null_is_default")]
    predicate_type: String,
    #[serde(default, deserialize_with = "null_is_default")]
    subject: Vec<ResultSubject>,
    #[serde(borrow)]
    predicate: Option<&'a RawValue>,
}

/// Makes statements of attestations; what they say of the result, they say of `subjects`. In an image, a bill of materials says which layer each file is
/// in. Blocks.
pub(crate) fn statements(
    stores: &Stores,
    attestations: &[Attestation],
    subjects: &[ResultSubject],
    image: Option<&ImageLayers<'_>>,
) -> Result<Vec<Statement>, ExportError> {
    let mut statements = Vec::new();
    for attestation in unbundled(stores, attestations)? {
        let file = attestation.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut predicate = predicate(stores, &attestation)?;
        if let Some(image) = image
            && is_core(&attestation)
            && attestation.predicate_type == SPDX
        {
            predicate = with_layers(stores, image, &predicate)?.unwrap_or(predicate);
        }
        let about = about(&attestation, subjects);
        let json = write(&attestation.predicate_type, &about, &predicate)
            .map_err(|why| refuse(&attestation.path, why))?;
        statements.push(Statement { file, predicate_type: attestation.predicate_type, json });
    }
    Ok(statements)
}

fn refuse(path: &Path, why: impl ToString) -> ExportError {
    ExportError::Attestation { path: path.display().to_string(), why: why.to_string() }
}

fn write(predicate_type: &str, about: &[ResultSubject], predicate: &[u8]) -> Result<Vec<u8>, String> {
    let predicate: &RawValue =
        serde_json::from_slice(predicate).map_err(|error| format!("its predicate is no JSON: {error}"))?;
    let written = Written { kind: STATEMENT, predicate_type, subject: about, predicate };
    let json = gojson::to_vec(&written).map_err(|error| error.to_string())?;
    Ok(respaced(&json, None))
}

fn about(attestation: &Attestation, result: &[ResultSubject]) -> Vec<ResultSubject> {
    let own = [Subject { kind: SubjectKind::Result, name: String::new(), digests: Vec::new() }];
    let subjects = if attestation.subjects.is_empty() { &own[..] } else { &attestation.subjects };
    let mut all = Vec::new();
    for subject in subjects {
        let name = Some(subject.name.as_str()).filter(|name| !name.is_empty() && *name != "_");
        match subject.kind {
            SubjectKind::Result => {
                for one in result {
                    all.push(one.clone());
                    all.extend(name.map(|name| ResultSubject { name: name.to_owned(), ..one.clone() }));
                }
            }
            SubjectKind::Other => all.push(ResultSubject {
                name: name.unwrap_or("_").to_owned(),
                digest: digest_set(&subject.digests),
            }),
        }
    }
    all
}

/// Single attestations, scans of the result itself first.
fn unbundled(stores: &Stores, attestations: &[Attestation]) -> Result<Vec<Attestation>, ExportError> {
    let mut all = Vec::new();
    for attestation in attestations {
        let is_ours = matches!(attestation.content, AttestationContent::Own(_));
        match attestation.kind {
            AttestationKind::InToto if attestation.path.as_os_str().is_empty() => {
                return Err(refuse(&attestation.path, "attestation does not have set path"));
            }
            AttestationKind::InToto if !is_ours && attestation.predicate_type.starts_with(PROVENANCE) => {
                return Err(refuse(&attestation.path, "frontend may not set provenance attestations"));
            }
            AttestationKind::InToto => all.push(attestation.clone()),
            AttestationKind::Bundle => all.extend(unbundle(stores, attestation)?),
        }
    }
    all.sort_by_key(|attestation| !is_core(attestation));
    Ok(all)
}

/// Whether it is the scan of the result itself.
fn is_core(attestation: &Attestation) -> bool {
    let file = attestation.path.file_name().unwrap_or_default().to_string_lossy();
    let stem = file.split('.').next().unwrap_or_default();
    attestation.metadata.get(SBOM_CORE).is_some_and(|name| name == stem.as_bytes())
}

fn unbundle(stores: &Stores, bundle: &Attestation) -> Result<Vec<Attestation>, ExportError> {
    let AttestationContent::Tree(tree) = &bundle.content else {
        return Err(refuse(&bundle.path, "attestation bundle cannot have callback"));
    };
    let directory = open(stores, tree, &bundle.path, OFlags::DIRECTORY)?;
    let listed = rustix::fs::Dir::new(directory)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|errno| refuse(&bundle.path, errno))?;
    let mut names = BTreeSet::new();
    for entry in listed {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.insert(name);
        }
    }
    if names.len() > MOST_STATEMENTS {
        return Err(refuse(&bundle.path, format!("more than {MOST_STATEMENTS} statements")));
    }
    let mut all = Vec::with_capacity(names.len());
    for name in names {
        let path = bundle.path.join(name);
        let bytes = read(stores, tree, &path)?;
        let statement: Bundled<'_> = serde_json::from_slice(&bytes)
            .map_err(|error| refuse(&path, format!("cannot decode in-toto statement: {error}")))?;
        if !bundle.predicate_type.is_empty() && statement.predicate_type != bundle.predicate_type {
            let why = format!(
                "bundle entry {} does not match required predicate type {}",
                statement.predicate_type, bundle.predicate_type
            );
            return Err(refuse(&path, why));
        }
        if statement.predicate_type.starts_with(PROVENANCE) {
            return Err(refuse(&path, "frontend may not bundle provenance attestations"));
        }
        let mut subjects = Vec::with_capacity(statement.subject.len());
        for ResultSubject { name, digest } in statement.subject {
            let parse = |(algorithm, hex): (String, String)| Digest::parse(&format!("{algorithm}:{hex}"));
            let digests = digest.into_iter().map(parse).collect::<Result<Vec<_>, _>>();
            let digests = digests.map_err(|error| refuse(&path, error))?;
            subjects.push(Subject { kind: SubjectKind::Other, name, digests });
        }
        let predicate = statement.predicate.map_or("null", RawValue::get).to_owned();
        all.push(Attestation {
            kind: AttestationKind::InToto,
            metadata: bundle.metadata.clone(),
            path,
            content: AttestationContent::Bytes(Bytes::from(predicate)),
            predicate_type: statement.predicate_type,
            subjects,
        });
    }
    Ok(all)
}

fn predicate(stores: &Stores, attestation: &Attestation) -> Result<Bytes, ExportError> {
    let bytes = match &attestation.content {
        AttestationContent::Own(predicate) => Bytes::from(predicate.json(stores)?),
        AttestationContent::Bytes(bytes) => bytes.clone(),
        AttestationContent::Tree(tree) => read(stores, tree, &attestation.path)?,
    };
    Ok(if bytes.is_empty() { Bytes::from_static(b"null") } else { bytes })
}

/// Opens a path in a tree whose files are a stranger's: links are followed within it.
fn open(stores: &Stores, tree: &Tree, path: &Path, kind: OFlags) -> Result<OwnedFd, ExportError> {
    let open = stores.open(tree)?.ok_or_else(|| refuse(path, "no such file"))?;
    let inside = path.strip_prefix("/").unwrap_or(path);
    let inside = if inside.as_os_str().is_empty() { Path::new(".") } else { inside };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | kind;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(open.root(), inside, flags, Mode::empty(), resolve)
        .map_err(|errno| refuse(path, errno))
}

fn read(stores: &Stores, tree: &Tree, path: &Path) -> Result<Bytes, ExportError> {
    let file = File::from(open(stores, tree, path, OFlags::empty())?);
    let is_file = file.metadata().map_err(|error| refuse(path, error))?.is_file();
    if !is_file {
        return Err(refuse(path, "is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MOST + 1).read_to_end(&mut bytes).map_err(|error| refuse(path, error))?;
    if bytes.len() as u64 > MOST {
        return Err(refuse(path, format!("exceeds {MOST} bytes")));
    }
    Ok(Bytes::from(bytes))
}

/// JSON with no space outside of strings, or with two for each level: Go's `json.Compact` and `json.Indent`, which leave numbers and the order of fields as
/// they are.
pub(crate) fn respaced(json: &[u8], indent: Option<&str>) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len());
    let (mut depth, mut in_string, mut escaped, mut empty) = (0_usize, false, false, false);
    let newline = |out: &mut Vec<u8>, depth: usize| {
        if let Some(indent) = indent {
            out.push(b'\n');
            (0..depth).for_each(|_| out.extend_from_slice(indent.as_bytes()));
        }
    };
    for byte in json {
        if in_string {
            out.push(*byte);
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        if byte.is_ascii_whitespace() {
            continue;
        }
        if empty && !matches!(byte, b'}' | b']') {
            newline(&mut out, depth);
        }
        match byte {
            b'{' | b'[' => {
                depth += 1;
                out.push(*byte);
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                if !empty {
                    newline(&mut out, depth);
                }
                out.push(*byte);
            }
            b',' => {
                out.push(b',');
                newline(&mut out, depth);
            }
            b':' => out.extend_from_slice(if indent.is_some() { b": " } else { b":" }),
            b'"' => {
                in_string = true;
                out.push(b'"');
            }
            other => out.push(*other),
        }
        empty = matches!(byte, b'{' | b'[');
    }
    out
}

/// An image's name as a package URL, as BuildKit's `util/purl` writes it.
pub(crate) fn package_url(name: &Reference, platform: &Platform) -> String {
    let name = name.clone().with_default_tag();
    let path: Vec<String> = name.familiar_name().split('/').map(escaped).collect();
    let version = name.tag().map(|tag| format!("@{}", escaped(tag))).unwrap_or_default();
    let platform = platform.normalized().to_string();
    format!("pkg:docker/{}{version}?platform={}", path.join("/"), escaped(&platform))
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_written_with_other_spaces_and_nothing_else() {
        let json = br#"{ "b" : [1, 2.50, {} , [ ] ], "a":"x \" { y" , "n":1e400}"#;
        let compact = respaced(json, None);
        assert_eq!(compact, br#"{"b":[1,2.50,{},[]],"a":"x \" { y","n":1e400}"#);
        let indented = String::from_utf8(respaced(&compact, Some("  "))).unwrap();
        let lines = "{\n  \"b\": [\n    1,\n    2.50,\n    {},\n    []\n  ],\n  \"a\": \"x \\\" { y\",\n  \"n\": 1e400\n}";
        assert_eq!(indented, lines);
    }

    #[test]
    fn an_images_name_is_a_package_url() {
        let url =
            |name: &str| package_url(&Reference::parse(name).unwrap(), &Platform::new("linux", "amd64"));
        assert_eq!(url("app"), "pkg:docker/app@latest?platform=linux%2Famd64");
        assert_eq!(url("localhost:5000/a/b:1"), "pkg:docker/localhost%3A5000/a/b@1?platform=linux%2Famd64");
    }

    #[test]
    fn statements_are_about_the_result_under_each_of_its_names() {
        let digest = Digest::sha256_of("x");
        let result = [ResultSubject::new("a", &digest), ResultSubject::new("b", &digest)];
        let mut attestation = Attestation {
            kind: AttestationKind::InToto,
            metadata: BTreeMap::new(),
            path: "p.json".into(),
            content: AttestationContent::Bytes(Bytes::new()),
            predicate_type: "t".to_owned(),
            subjects: Vec::new(),
        };
        let names = |attestation: &Attestation| {
            about(attestation, &result).into_iter().map(|subject| subject.name).collect::<Vec<_>>()
        };
        assert_eq!(names(&attestation), ["a", "b"]);
        let subject =
            |kind, name: &str| Subject { kind, name: name.to_owned(), digests: vec![digest.clone()] };
        attestation.subjects = vec![subject(SubjectKind::Result, "own"), subject(SubjectKind::Other, "")];
        assert_eq!(names(&attestation), ["a", "own", "b", "own", "_"]);
        let json = write("t", &about(&attestation, &result[..1])[..1], b" { \"k\" : 1 } ").unwrap();
        let expected = format!(
            r#"{{"_type":"https://in-toto.io/Statement/v1","predicateType":"t","subject":[{{"name":"a","digest":{{"sha256":"{}"}}}}],"predicate":{{"k":1}}}}"#,
            digest.hex()
        );
        assert_eq!(String::from_utf8(json).unwrap(), expected);
        write("t", &[], b"{").unwrap_err();
    }
}
