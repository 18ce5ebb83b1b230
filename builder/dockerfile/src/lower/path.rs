//! BuildKit's path rules (`util/system`). Paths are cleaned only where it cleans them: what is not cleaned is hashed as it is.

use std::borrow::Cow;

use lapstrake_builder_llb::{clean_path, join_path};

use super::problem::LowerError;

/// A path of a stage for `os` in the form that graphs have. Windows' lose their drive, which must be `C:`, and their backslashes, and are cleaned;
/// `keep_slash` keeps a final `/`.
pub(super) fn of_os<'a>(os: &str, path: &'a str, keep_slash: bool) -> Result<Cow<'a, str>, LowerError> {
    if os != WINDOWS {
        return Ok(Cow::Borrowed(path));
    }
    let fail = |why| Err(LowerError::WindowsPath { path: path.to_owned(), why });
    let slashed = path.replace('\\', "/");
    if slashed.starts_with("//") {
        return fail("UNC paths are not supported");
    }
    let rest = match slashed.split_once(':') {
        None => slashed.as_str(),
        Some((_, "")) if slashed.len() == 2 => return fail("there is no path after its drive"),
        Some((drive, rest)) if drive.eq_ignore_ascii_case("c") => rest,
        Some(_) => return fail("it is not on the system drive (C:)"),
    };
    let mut clean = clean_path(rest);
    if keep_slash && rest.ends_with('/') && clean.len() > 1 {
        clean.push('/');
    }
    Ok(Cow::Owned(clean))
}

/// Go's name of it.
pub(super) const WINDOWS: &str = "windows";

/// A path as Windows' configs have it.
pub(super) fn in_config(os: &str, path: &str) -> String {
    if os == WINDOWS { path.replace('/', "\\") } else { path.to_owned() }
}

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
    fn paths_of_windows_are_those_of_its_system_drive() {
        for (path, expected) in [
            ("", "."),
            ("foo", "foo"),
            (r"foo\bar", "foo/bar"),
            (r"C:\", "/"),
            (r"c:\a\..\b\", "/b/"),
            ("C:foo", "foo"),
            ("/a/./b", "/a/b"),
            (r"..\x", "../x"),
        ] {
            assert_eq!(of_os("windows", path, true).unwrap(), expected, "{path}");
        }
        assert_eq!(of_os("windows", r"C:\a\", false).unwrap(), "/a");
        assert_eq!(of_os("linux", r"c:\a\..", true).unwrap(), r"c:\a\..");
        for bad in ["C:", "d:", r"d:\x", r"\\server\share", "//x", "http://x"] {
            of_os("windows", bad, false).unwrap_err();
        }
        assert_eq!(in_config("windows", "/a/b"), r"\a\b");
        assert_eq!(in_config("linux", "/a/b"), "/a/b");
    }

    #[test]
    fn bases_are_those_of_go() {
        for (path, expected) in [("", "."), ("/", "/"), ("a/b", "b"), ("a/b/", "b"), ("a", "a")] {
            assert_eq!(base(path), expected);
        }
    }
}
