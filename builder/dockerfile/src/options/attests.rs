//! What clients want to be attested of what is built (`attest:provenance`, `attest:sbom`), as BuildKit's `frontend/attestations` reads it.

use std::collections::BTreeMap;

use crate::Error;
use crate::lower::LowerError;
use crate::text::csv_fields;

/// A bill of materials.
pub const SBOM: &str = "sbom";
/// How it came to be.
pub const PROVENANCE: &str = "provenance";
/// BuildKit's own scanner.
const DEFAULT_GENERATOR: &str = "docker/buildkit-syft-scanner:stable-1";
/// SLSA's version where none is asked for.
const DEFAULT_VERSION: &str = "v1";
const OPTION: &str = "attest:";
const BUILD_ARG: &str = "build-arg:BUILDKIT_ATTEST_";

/// The attestations that are wanted, [`SBOM`] or [`PROVENANCE`], each with what is said of it; what is `disabled` is not wanted.
///
/// # Errors
/// A kind that is not known, and values that are no CSV.
pub fn attests(
    attrs: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, BTreeMap<String, String>>, Error> {
    let refuse = |problem: String| LowerError::Option(problem).nowhere();
    let mut wanted = BTreeMap::new();
    for (key, value) in attrs {
        let Some(kind) = key.strip_prefix(OPTION).or_else(|| key.strip_prefix(BUILD_ARG)) else { continue };
        let kind = kind.to_lowercase();
        let mut said = match kind.as_str() {
            SBOM => BTreeMap::from([("generator".to_owned(), DEFAULT_GENERATOR.to_owned())]),
            PROVENANCE => BTreeMap::from([("version".to_owned(), DEFAULT_VERSION.to_owned())]),
            _ => return Err(refuse(format!("unknown attestation type {kind:?}"))),
        };
        if !value.is_empty() {
            let fields = csv_fields(value).map_err(|why| refuse(format!("failed to parse {kind}: {why}")))?;
            said.extend(fields.into_iter().map(|field| match field.split_once('=') {
                Some((key, value)) => (key.to_owned(), value.to_owned()),
                None => (field, String::new()),
            }));
        }
        match said.get("disabled").map(|off| crate::parse_bool(off)) {
            Some(Some(true)) => {}
            _ => _ = wanted.insert(kind, said),
        }
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Wanted = Vec<(String, Vec<(String, String)>)>;

    fn wanted(attrs: &[(&str, &str)]) -> Result<Wanted, String> {
        let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let wanted = attests(&attrs).map_err(|error| error.to_string())?;
        Ok(wanted.into_iter().map(|(kind, said)| (kind, said.into_iter().collect())).collect())
    }

    fn pair(key: &str, value: &str) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn they_are_read_as_buildkit_reads_them() {
        let provenance = wanted(&[("attest:provenance", "mode=max")]).unwrap();
        let said = vec![pair("mode", "max"), pair("version", "v1")];
        assert_eq!(provenance, [("provenance".to_owned(), said)]);
        let quoted = r#""generator=docker.io/foo/bar","param1=foo","param3=abc,def""#;
        let said =
            vec![pair("generator", "docker.io/foo/bar"), pair("param1", "foo"), pair("param3", "abc,def")];
        assert_eq!(wanted(&[("attest:sbom", quoted)]).unwrap(), [("sbom".to_owned(), said)]);
        let by_argument = wanted(&[("build-arg:BUILDKIT_ATTEST_SBOM", "")]).unwrap();
        assert_eq!(by_argument, [("sbom".to_owned(), vec![pair("generator", DEFAULT_GENERATOR)])]);
        assert!(wanted(&[("build-arg:A", "b"), ("target", "t")]).unwrap().is_empty());
        assert!(wanted(&[("attest:provenance", "disabled=true")]).unwrap().is_empty());
    }

    #[test]
    fn what_is_not_known_is_named() {
        assert_eq!(wanted(&[("attest:Seal", "")]).unwrap_err(), "unknown attestation type \"seal\"");
        let error = wanted(&[("attest:sbom", "a\"b")]).unwrap_err();
        assert!(error.starts_with("failed to parse sbom: parse error on line 1"), "{error}");
    }
}
