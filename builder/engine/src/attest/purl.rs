//! Images' names as package URLs (<https://github.com/package-url/purl-spec>), as BuildKit's `util/purl` writes them.

use lapstrake_layerstore_oci::{Platform, Reference};

/// An image's name as a package URL: `pkg:docker/NAME@TAG?digest=…&platform=…`. `kind` is `docker`, or `oci` for what is in a client's layout.
pub(crate) fn package_url(
    kind: &str,
    name: &Reference,
    platform: Option<&Platform>,
    others: &[(&str, &str)],
) -> String {
    let mut qualifiers: Vec<(&str, String)> = Vec::new();
    let mut version = name.tag().map(str::to_owned);
    match name.digest() {
        Some(digest) => qualifiers.push(("digest", digest.to_string())),
        None => _ = version.get_or_insert_with(|| "latest".to_owned()),
    }
    if let Some(platform) = platform {
        qualifiers.push(("platform", platform.normalized().to_string()));
    }
    qualifiers.extend(others.iter().map(|(key, value)| (*key, (*value).to_owned())));
    let path: Vec<String> = name.familiar_name().split('/').map(|part| escaped(part, "")).collect();
    let mut url = format!("pkg:{kind}/{}", path.join("/"));
    if let Some(version) = version {
        url.push('@');
        url.push_str(&escaped(&version, "$&+=:@"));
    }
    let qualifiers: Vec<String> =
        qualifiers.iter().map(|(key, value)| format!("{key}={}", escaped(value, "$&+=:@"))).collect();
    if !qualifiers.is_empty() {
        url.push('?');
        url.push_str(&qualifiers.join("&"));
    }
    url
}

fn escaped(text: &str, also_plain: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
            other if also_plain.as_bytes().contains(&other) => out.push(other.into()),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_as_buildkit_writes_them() {
        let amd64 = Platform::new("linux", "amd64");
        let url = |name: &str| package_url("docker", &Reference::parse(name).unwrap(), Some(&amd64), &[]);
        assert_eq!(url("app"), "pkg:docker/app@latest?platform=linux%2Famd64");
        assert_eq!(url("localhost:5000/a/b:1"), "pkg:docker/localhost%3A5000/a/b@1?platform=linux%2Famd64");
        let digest = format!("sha256:{}", "a".repeat(64));
        let expected = format!("pkg:docker/app?digest={digest}&platform=linux%2Famd64");
        assert_eq!(url(&format!("app@{digest}")), expected);
        let name = Reference::parse(&format!("r.example/a:1@{digest}")).unwrap();
        let blob = package_url("oci", &name, None, &[("ref_type", "blob")]);
        assert_eq!(blob, format!("pkg:oci/r.example/a@1?digest={digest}&ref_type=blob"));
    }
}
