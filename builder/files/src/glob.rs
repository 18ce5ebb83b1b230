//! Go's `path.Match`, and what is built on it: patterns of paths (`COPY *.c /src/`).
//!
//! Not `.dockerignore` patterns, which are another language (`builder/dockerfile::ignore`).

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};

use lapstrake_builder_llb::{clean_path, has_wildcards};

use crate::FilesError;

/// Splits an absolute path into the components before the first one with a wildcard, and the rest; an empty rest when
/// there is none.
pub(crate) fn split(path: &str) -> (String, String) {
    let path = clean_path(&format!("/{path}"));
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let plain = parts.iter().position(|part| has_wildcards(part)).unwrap_or(parts.len());
    (format!("/{}", parts[..plain].join("/")), parts[plain..].join("/"))
}

/// A pattern without a leading slash, taken apart at its slashes.
#[derive(Debug, Clone)]
pub(crate) struct Pattern(Vec<Vec<u8>>);

impl Pattern {
    /// Checks a pattern.
    pub(crate) fn new(pattern: &str) -> Result<Self, FilesError> {
        let parts: Vec<Vec<u8>> = pattern.split('/').map(|part| part.as_bytes().to_vec()).collect();
        if parts.iter().all(|part| is_valid(part)) {
            Ok(Self(parts))
        } else {
            Err(FilesError::BadGlob { pattern: pattern.to_owned() })
        }
    }

    /// How many components a path has that matches.
    pub(crate) fn depth(&self) -> usize {
        self.0.len()
    }

    /// Whether a name matches the component at this depth, counted from 0.
    pub(crate) fn matches(&self, depth: usize, name: &OsStr) -> bool {
        self.0.get(depth).is_some_and(|part| matches(part, name.as_bytes()))
    }
}

/// The first character, and how many bytes it has. What is no UTF-8 counts by bytes, as in Go.
fn first_char(bytes: &[u8]) -> Option<(char, usize)> {
    let head = &bytes[..bytes.len().min(4)];
    let valid = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or_default(),
    };
    match valid.chars().next() {
        Some(first) => Some((first, first.len_utf8())),
        None => bytes.first().map(|_| (char::REPLACEMENT_CHARACTER, 1)),
    }
}

/// One bound of a range in `[…]`, and what follows it.
fn class_char(pattern: &[u8]) -> Option<(char, &[u8])> {
    let pattern = match pattern.first()? {
        b'-' | b']' => return None,
        b'\\' => &pattern[1..],
        _ => pattern,
    };
    let (first, length) = first_char(pattern)?;
    Some((first, &pattern[length..]))
}

/// Whether a character is in a class whose `[` has been read, and what follows it. `None`: the class cannot be read.
fn class(pattern: &[u8], wanted: char) -> Option<(bool, &[u8])> {
    let (negated, mut rest) = match pattern.strip_prefix(b"^") {
        Some(rest) => (true, rest),
        None => (false, pattern),
    };
    let (mut found, mut ranges) = (false, 0);
    loop {
        if ranges > 0
            && let Some(rest) = rest.strip_prefix(b"]")
        {
            return Some((found != negated, rest));
        }
        let (low, after) = class_char(rest)?;
        let (high, after) = match after.strip_prefix(b"-") {
            Some(after) => class_char(after)?,
            None => (low, after),
        };
        found |= (low..=high).contains(&wanted);
        ranges += 1;
        rest = after;
    }
}

fn is_valid(mut pattern: &[u8]) -> bool {
    while let Some((first, rest)) = pattern.split_first() {
        pattern = match first {
            b'\\' if rest.is_empty() => return false,
            b'\\' => &rest[1..],
            b'[' => match class(rest, 'x') {
                Some((_, rest)) => rest,
                None => return false,
            },
            _ => rest,
        };
    }
    true
}

/// Matches one component. Takes time in proportion to pattern times name: after a later `*` an earlier one need not be
/// tried again.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut pattern, mut name) = (pattern, name);
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        let step = match pattern.first() {
            None if name.is_empty() => return true,
            None => None,
            Some(b'*') => {
                pattern = &pattern[1..];
                retry = Some((pattern, name));
                continue;
            }
            Some(special) => first_char(name).and_then(|(first, length)| match special {
                b'?' => Some((&pattern[1..], length)),
                b'[' => {
                    class(&pattern[1..], first).filter(|(is_in, _)| *is_in).map(|(_, rest)| (rest, length))
                }
                _ => {
                    let literal = if *special == b'\\' { &pattern[1..] } else { pattern };
                    (literal.first() == name.first()).then(|| (&literal[1..], 1))
                }
            }),
        };
        if let Some((rest, length)) = step {
            (pattern, name) = (rest, &name[length..]);
            continue;
        }
        // What the last star takes grows by one character.
        let Some((after_star, from)) = retry else { return false };
        let Some((_, length)) = first_char(from) else { return false };
        retry = Some((after_star, &from[length..]));
        (pattern, name) = (after_star, &from[length..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_go() {
        // From the documentation and tests of Go's path package, those without slashes.
        for (pattern, name, expected) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*", "abc", true),
            ("a*b*c*d*e*", "axbxcxdxe", true),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[e-g]", "abc", false),
            ("ab[^c]", "abc", false),
            ("ab[^b-d]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("a?b", "a☺b", true),
            ("a[^a]b", "a☺b", true),
            ("a???b", "a☺b", false),
            ("a[^a][^a][^a]b", "a☺b", false),
            ("[a-ζ]*", "α", true),
            ("*[a-ζ]", "A", false),
            ("[\\]a]", "]", true),
            ("[\\-]", "-", true),
            ("[x\\-]", "z", false),
            ("*x", "xxx", true),
            ("", "", true),
            ("", "a", false),
        ] {
            let parsed = Pattern::new(pattern).unwrap();
            assert_eq!(parsed.matches(0, OsStr::new(name)), expected, "{pattern} {name}");
        }
        for bad in ["[]a]", "[-]", "[x-]", "[-x]", "[a-b-c]", "[", "[^", "[^bc", "a[", "\\", "[a\\"] {
            assert!(Pattern::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_that_are_no_text_match_by_bytes() {
        let name = OsStr::from_bytes(b"a\xffb");
        assert!(Pattern::new("a?b").unwrap().matches(0, name));
        assert!(!Pattern::new("a??b").unwrap().matches(0, name));
        assert!(Pattern::new("a*").unwrap().matches(0, name));
    }

    #[test]
    fn paths_split_before_the_first_wildcard() {
        assert_eq!(split("/a/b/*.c"), ("/a/b".into(), "*.c".into()));
        assert_eq!(split("/a/b*/c/"), ("/a".into(), "b*/c".into()));
        assert_eq!(split("a/b/."), ("/a/b".into(), String::new()));
        assert_eq!(split("/*"), ("/".into(), "*".into()));
        assert_eq!(split("/a\\*"), ("/a\\*".into(), String::new()));
        assert_eq!(split("/"), ("/".into(), String::new()));
    }
}
