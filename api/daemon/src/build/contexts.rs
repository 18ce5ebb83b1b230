//! `--build-context NAME=SOURCE`, read as buildx reads it.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use lapstrake_layerstore_oci::{Digest, Index, Platform, Reference};

use crate::error::ProgramError;

/// Longest `index.json` of a layout.
const MAX_INDEX: u64 = 4 << 20;
/// What an index names its manifests by.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Names of directories that the main context has.
const TAKEN: [&str; 2] = ["context", "dockerfile"];

/// Further contexts, by what the frontend and the engine are told of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct NamedContexts {
    /// Options of the frontend.
    pub(super) attrs: BTreeMap<String, String>,
    /// Directories, by the names that the options have for them.
    pub(super) directories: BTreeMap<String, PathBuf>,
    /// OCI layouts, by the ids that the options have for them.
    pub(super) layouts: BTreeMap<String, PathBuf>,
}

impl NamedContexts {
    /// Looks whether directories and layouts are there, and what a layout's tag is now.
    pub(super) fn parse(texts: &[String]) -> Result<Self, ProgramError> {
        let mut contexts = Self::default();
        for text in texts {
            contexts
                .add(text)
                .map_err(|why| ProgramError::setting(format!("--build-context {text}"), why))?;
        }
        Ok(contexts)
    }

    fn add(&mut self, text: &str) -> Result<(), String> {
        let (name, source) = text.split_once('=').ok_or("is not NAME=SOURCE")?;
        let name = canonical(name)?;
        let key = format!("context:{name}");
        let specifier = if let Some(layout) = source.strip_prefix("oci-layout://") {
            let layout = Layout::parse(layout)?;
            let digest = layout.resolve()?;
            // The path is ours alone: the engine knows the layout by an id.
            let id = format!("layout-{}", self.layouts.len());
            self.layouts.insert(id.clone(), layout.path);
            format!("oci-layout://{id}@{digest}")
        } else if source.starts_with("docker-image://") || is_remote(source) {
            source.to_owned()
        } else if source.starts_with("target:") {
            return Err("target: is for docker buildx bake, which builds that target first; name a stage of the Dockerfile instead".to_owned());
        } else if source.starts_with("input:") {
            return Err("input: is for frontends that call other frontends".to_owned());
        } else if let Some((scheme, _)) = source.split_once("://") {
            return Err(format!(
                "{scheme}:// is not known: there are docker-image://, oci-layout://, https://, http://, ssh://, git:// and directories"
            ));
        } else {
            let path = Path::new(source);
            if !path.is_dir() {
                let why = if path.exists() { "is not a directory" } else { "no such directory" };
                return Err(format!("{source}: {why}"));
            }
            let path = std::path::absolute(path).map_err(|error| format!("{source}: {error}"))?;
            let base = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            self.attrs.insert(format!("sharedkey:localdir:{name}"), base);
            let local = if TAKEN.contains(&name.as_str()) { format!("_{name}") } else { name };
            self.directories.insert(local.clone(), path);
            format!("local:{local}")
        };
        self.attrs.insert(key, specifier);
        Ok(())
    }
}

/// The name as the frontend looks for it: `docker.io/library/alpine:latest` is `alpine`; behind `::` may be a platform that it is for.
fn canonical(name: &str) -> Result<String, String> {
    let (name, platform) = match name.split_once("::") {
        Some((name, platform)) => (name, Some(platform)),
        None => (name, None),
    };
    let reference =
        Reference::parse(name).map_err(|error| format!("invalid context name {name}: {error}"))?;
    let familiar = reference.familiar();
    let name = familiar.strip_suffix(":latest").unwrap_or(&familiar);
    let Some(platform) = platform else { return Ok(name.to_owned()) };
    let platform = Platform::parse(platform).map_err(|error| format!("platform {platform}: {error}"))?;
    Ok(format!("{name}::{}", platform.normalized().to_full_string()))
}

fn is_remote(source: &str) -> bool {
    const SCHEMES: [&str; 4] = ["http://", "https://", "git://", "ssh://"];
    SCHEMES.iter().any(|scheme| source.starts_with(scheme))
        || source.starts_with("git@")
        || (source.starts_with("github.com/") && !Path::new(source).exists())
}

/// `PATH[:TAG][@DIGEST]`
#[derive(Debug, PartialEq, Eq)]
struct Layout {
    path: PathBuf,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Layout {
    fn parse(text: &str) -> Result<Self, String> {
        let (text, digest) = match text.rsplit_once('@').map(|(path, digest)| (path, Digest::parse(digest))) {
            Some((path, Ok(digest))) => (path, Some(digest)),
            _ => (text, None),
        };
        let (path, tag) = match text.rsplit_once(':').filter(|(_, tag)| is_tag(tag)) {
            Some((path, tag)) => (path, Some(tag.to_owned())),
            None => (text, None),
        };
        if path.is_empty() {
            return Err("has no path".to_owned());
        }
        let path = std::path::absolute(path).map_err(|error| format!("{path}: {error}"))?;
        Ok(Self { path, tag, digest })
    }

    /// What is meant in the layout: the digest, or what the tag names; without either, `latest`; and whatever the tag, the only image that
    /// there is.
    fn resolve(&self) -> Result<Digest, String> {
        let path = self.path.join("index.json");
        let failed = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
        let file = File::open(&path).map_err(|error| failed(&error))?;
        if let Some(digest) = &self.digest {
            return Ok(digest.clone());
        }
        let mut json = Vec::new();
        file.take(MAX_INDEX + 1).read_to_end(&mut json).map_err(|error| failed(&error))?;
        if json.len() as u64 > MAX_INDEX {
            return Err(failed(&format_args!("longer than {MAX_INDEX} bytes")));
        }
        let index = Index::from_json(&json).map_err(|error| failed(&error))?;
        let tag = self.tag.as_deref().unwrap_or("latest");
        let named = index
            .manifests
            .iter()
            .find(|manifest| manifest.annotations.get(REF_NAME).is_some_and(|name| name == tag));
        let only = || if let [only] = &index.manifests[..] { Some(only) } else { None };
        let found = named.or_else(only).ok_or_else(|| failed(&format_args!("names nothing {tag:?}")))?;
        Ok(found.digest.clone())
    }
}

/// As the distribution reference has it: `[\w][\w.-]{0,127}`.
fn is_tag(text: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.len() <= 128 && text.starts_with(is_word) && text.chars().all(|c| is_word(c) || c == '.' || c == '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(texts: &[String]) -> Result<NamedContexts, String> {
        NamedContexts::parse(texts).map_err(|error| error.to_string())
    }

    #[test]
    fn every_kind_of_source_is_told_as_buildx_tells_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().display();
        let contexts = parse(&[
            "docker.io/library/alpine:latest=docker-image://busybox".to_owned(),
            "base::linux/arm64/v8=docker-image://other".to_owned(),
            "repo=https://example.com/x.git#main".to_owned(),
            "ssh=git@example.com:x.git".to_owned(),
            format!("assets={path}"),
            format!("context={path}"),
        ])
        .unwrap();
        let base = dir.path().file_name().unwrap().to_str().unwrap();
        let attrs = [
            ("context:alpine", "docker-image://busybox"),
            ("context:assets", "local:assets"),
            ("context:base::linux/arm64", "docker-image://other"),
            ("context:context", "local:_context"),
            ("context:repo", "https://example.com/x.git#main"),
            ("context:ssh", "git@example.com:x.git"),
            ("sharedkey:localdir:assets", base),
            ("sharedkey:localdir:context", base),
        ];
        let expected = attrs.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(contexts.attrs, BTreeMap::from(expected));
        let names: Vec<&String> = contexts.directories.keys().collect();
        assert_eq!(names, ["_context", "assets"]);
    }

    #[test]
    fn layouts_are_named_by_tag_or_digest() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (Digest::sha256_of("1"), Digest::sha256_of("2"));
        let entry = |digest: &Digest, name: &str| {
            format!(
                r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":1,"annotations":{{"{REF_NAME}":"{name}"}}}}"#
            )
        };
        let write = |entries: &[String]| {
            let json = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
            std::fs::write(dir.path().join("index.json"), json).unwrap();
        };
        let resolve = |rest: &str| {
            let contexts = parse(&[format!("x=oci-layout://{}{rest}", dir.path().display())])?;
            assert_eq!(contexts.layouts["layout-0"], dir.path());
            let specifier = contexts.attrs["context:x"].clone();
            Ok::<_, String>(specifier.strip_prefix("oci-layout://layout-0@").unwrap().to_owned())
        };
        write(&[entry(&first, "latest"), entry(&second, "v2")]);
        assert_eq!(resolve("").unwrap(), first.to_string());
        assert_eq!(resolve(":v2").unwrap(), second.to_string());
        assert_eq!(resolve(&format!("@{second}")).unwrap(), second.to_string());
        assert_eq!(resolve(&format!(":v1@{second}")).unwrap(), second.to_string());
        assert!(resolve(":v3").unwrap_err().contains("names nothing \"v3\""));
        write(&[entry(&second, "v2")]);
        assert_eq!(resolve("").unwrap(), second.to_string());
        std::fs::write(dir.path().join("index.json"), "{").unwrap();
        assert!(resolve("").unwrap_err().contains("index.json"));
    }

    #[test]
    fn what_cannot_be_a_context_is_refused_by_name() {
        for (text, why) in [
            ("x", "is not NAME=SOURCE"),
            ("Big=docker-image://x", "invalid context name Big"),
            ("=docker-image://x", "invalid context name"),
            ("x::what/ever/it/is=docker-image://x", "platform what/ever/it/is"),
            ("x=/no/such/place", "no such directory"),
            ("x=/etc/hostname", "is not a directory"),
            ("x=ftp://h/x", "ftp:// is not known"),
            ("x=target:other", "bake"),
            ("x=input:other", "frontends"),
            ("x=oci-layout:///no/such/place", "index.json"),
            ("x=oci-layout://", "has no path"),
        ] {
            let error = parse(&[text.to_owned()]).unwrap_err();
            assert!(error.contains(why) && error.contains("--build-context"), "{text}: {error}");
        }
    }
}
