//! BuildKit's path rules for Linux (`util/system`). Paths are cleaned only where it cleans them: what is not cleaned is hashed as it is.

use lapstrake_builder_llb::join_path;

/// A path as it is, if absolute; else joined to `parent`. `keep_slash` keeps a final `/` or `/.`.
pub(super) fn normalize(parent: &str, path: &str, keep_slash: bool) -> String {
    let parent = match parent {
        "" => "/".to_owned(),
        parent if parent.starts_with('/') => parent.to_owned(),
        parent => join_path(&["/", parent]),
    };
    let new = if path.is_empty() { parent.as_str() } else { path };
    let mut new = if new.starts_with('/') { new.to_owned() } else { join_path(&[&parent, new]) };
    if keep_slash {
        if path.ends_with('/') && !new.ends_with('/') {
            new.push('/');
        } else if path.ends_with("/.") {
            if new != "/" {
                new.push('/');
            }
            new.push('.');
        }
    }
    new
}

/// Where `COPY` and `ADD` copy to.
pub(super) fn destination(dir: &str, path: &str) -> String {
    if path.starts_with('/') {
        return normalize("/", path, true);
    }
    // `.` is a directory, and must look like one.
    let path = if path == "." || path.is_empty() { "./" } else { path };
    normalize(dir, path, true)
}

/// The last part of a path, as Go's `path.Base`.
pub(super) fn base(path: &str) -> &str {
    if path.is_empty() {
        return ".";
    }
    match path.trim_end_matches('/') {
        "" => "/",
        path => path.rsplit('/').next().expect("split yields at least one part"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_keep_what_tells_a_directory_from_a_file() {
        for (dir, path, expected) in [
            ("/", "x", "/x"),
            ("/work", "x", "/work/x"),
            ("/work", "x/", "/work/x/"),
            ("/work", ".", "/work/"),
            ("/work", "", "/work/"),
            ("/", ".", "/"),
            ("/work", "./x/.", "/work/x/."),
            ("/work", "/a/../b", "/a/../b"),
            ("/work", "/a/", "/a/"),
            ("/work", "..", "/"),
        ] {
            assert_eq!(destination(dir, path), expected, "{dir} {path}");
        }
    }

    #[test]
    fn bases_are_those_of_go() {
        for (path, expected) in [("", "."), ("/", "/"), ("a/b", "b"), ("a/b/", "b"), ("a", "a")] {
            assert_eq!(base(path), expected);
        }
    }
}
