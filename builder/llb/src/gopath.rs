//! Go's `path` package: the lexical rules by which BuildKit's client normalises paths before they are hashed, and what it takes for a pattern.

/// Go's `path.Clean`: no doubled slashes, no `.`, `..` resolved as far as it can be; the empty path is `.`.
pub fn clean_path(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts = path.strip_prefix('/').unwrap_or(path).split('/');
    if parts.all(|part| !matches!(part, "" | "." | "..")) {
        return path.to_owned();
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&last) if last != ".." => {
                    parts.pop();
                }
                _ if rooted => {}
                _ => parts.push(".."),
            },
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// Go's `path.Join`: non-empty parts joined with slashes and cleaned; empty if all parts are.
pub fn join_path(parts: &[&str]) -> String {
    let parts: Vec<&str> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
    if parts.is_empty() { String::new() } else { clean_path(&parts.join("/")) }
}

/// Whether Go's `path.Match` would take something in it for more than itself.
pub fn has_wildcards(path: &str) -> bool {
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => {
                bytes.next();
            }
            b'*' | b'?' | b'[' => return true,
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_as_go_cleans_them() {
        for (path, clean) in [
            ("", "."),
            ("abc", "abc"),
            ("/", "/"),
            ("..", ".."),
            ("../..", "../.."),
            ("abc/", "abc"),
            ("abc//def//ghi", "abc/def/ghi"),
            ("/../abc", "/abc"),
            ("abc/./../def", "def"),
            ("abc/../../././../def", "../../def"),
            ("abc/def/../../..", ".."),
            ("/abc/def/../../..", "/"),
        ] {
            assert_eq!(clean_path(path), clean, "{path}");
        }
    }

    #[test]
    fn paths_are_joined_as_go_joins_them() {
        assert_eq!(join_path(&[]), "");
        assert_eq!(join_path(&["", "a", "", "../b"]), "b");
        assert_eq!(join_path(&["/", ""]), "/");
        assert_eq!(join_path(&[".", "/a"]), "a");
    }

    #[test]
    fn what_is_escaped_is_no_wildcard() {
        for (path, wild) in [
            ("", false),
            ("a/b", false),
            ("a*", true),
            ("?", true),
            ("[a]", true),
            (r"\*\é", false),
            (r"\\*", true),
        ] {
            assert_eq!(has_wildcards(path), wild, "{path}");
        }
    }
}
