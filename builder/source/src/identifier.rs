//! One name for one source: what policies are asked about.

use lapstrake_builder_llb::pb;
use lapstrake_layerstore_oci::Reference;

/// The identifier of the source that an op really names, as BuildKit's policies see it: an image's whole reference whatever short form the op has, and
/// the repository that git would be given, whatever else the op is called. An identifier that means nothing is left as it is.
pub fn canonical_identifier(op: &pb::SourceOp) -> String {
    canonical(op).unwrap_or_else(|| op.identifier.clone())
}

fn canonical(op: &pb::SourceOp) -> Option<String> {
    let (scheme, rest) = op.identifier.split_once("://")?;
    match scheme {
        "docker-image" => Some(format!("{scheme}://{}", Reference::parse(rest).ok()?.with_default_tag())),
        "docker-image+blob" | "oci-layout" | "oci-layout+blob" => {
            Some(format!("{scheme}://{}", Reference::parse(rest).ok()?))
        }
        "git" => crate::git::canonical(rest, op),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_has_one_name() {
        let named = |identifier: &str, attrs: &[(&str, &str)]| {
            let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            canonical_identifier(&pb::SourceOp { identifier: identifier.to_owned(), attrs })
        };
        for (identifier, expected) in [
            ("docker-image://alpine", "docker-image://docker.io/library/alpine:latest"),
            ("docker-image://docker.io/library/alpine:3", "docker-image://docker.io/library/alpine:3"),
            ("docker-image://index.docker.io/alpine", "docker-image://docker.io/library/alpine:latest"),
            ("docker-image://NOT AN IMAGE", "docker-image://NOT AN IMAGE"),
            ("git://github.com/a/b.git#main:sub", "git://github.com/a/b.git#main:sub"),
            ("git://https://user:secret@github.com/a/b.git", "git://github.com/a/b.git"),
            ("git://git@github.com:a/b.git#v1", "git://github.com/a/b.git#v1"),
            ("https://example.com/x", "https://example.com/x"),
            ("local://context", "local://context"),
            ("x", "x"),
        ] {
            assert_eq!(named(identifier, &[]), expected);
        }
        // What is fetched counts, not what it is called.
        let full = [("git.fullurl", "https://evil.example/x.git")];
        assert_eq!(named("git://github.com/a/b.git#main", &full), "git://evil.example/x.git#main");
    }
}
