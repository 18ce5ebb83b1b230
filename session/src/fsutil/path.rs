//! Which paths the protocol allows, and in which order.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use crate::TransferError;

/// The longest path taken, in bytes: the kernel's `PATH_MAX` without its NUL.
pub(crate) const MAX_PATH: usize = 4095;
/// The longest name in a directory.
const MAX_NAME: usize = 255;

/// A clean relative path that stays inside, or an error: no empty, `.` or `..` components, no NUL.
pub(crate) fn validate(bytes: Vec<u8>) -> Result<PathBuf, TransferError> {
    let problem = if bytes.is_empty() {
        Some("empty")
    } else if bytes[0] == b'/' {
        Some("absolute")
    } else if bytes.len() > MAX_PATH {
        Some("too long")
    } else if bytes.contains(&0) {
        Some("holds NUL")
    } else {
        bytes.split(|b| *b == b'/').find_map(|name| match name {
            b"" | b"." => Some("not clean"),
            b".." => Some("leads outside"),
            name if name.len() > MAX_NAME => Some("name too long"),
            _ => None,
        })
    };
    match problem {
        None => Ok(PathBuf::from(OsString::from_vec(bytes))),
        Some(problem) => {
            let shown = &bytes[..bytes.len().min(256)];
            Err(TransferError::BadPath { path: String::from_utf8_lossy(shown).into_owned(), problem })
        }
    }
}

/// Checks that entries come sorted and after their directories; says where each belongs.
#[derive(Debug)]
pub(crate) struct OrderCheck {
    /// The directories that are open, outermost (the root) first, each with the last name that came in it.
    open: Vec<(PathBuf, OsString)>,
    previous: PathBuf,
}

/// What must happen before an entry is handled.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// How many open directories are complete now (the innermost first).
    pub(crate) left: usize,
    /// The entry's name in the directory that is innermost then.
    pub(crate) name: OsString,
}

impl OrderCheck {
    pub(crate) fn new() -> Self {
        Self { open: vec![(PathBuf::new(), OsString::new())], previous: PathBuf::new() }
    }

    /// Admits the next entry.
    pub(crate) fn admit(&mut self, path: &Path, directory: bool) -> Result<Place, TransferError> {
        let out_of_order =
            || TransferError::OutOfOrder { path: path.to_owned(), previous: self.previous.clone() };
        let parent = path.parent().unwrap_or(Path::new(""));
        let name = path.file_name().unwrap_or(OsStr::new(""));
        // Only the directories on the way to the previous entry can still take entries.
        let depth = self.open.iter().rposition(|(dir, _)| dir == parent).ok_or_else(out_of_order)?;
        if self.open[depth].1.as_bytes() >= name.as_bytes() {
            return Err(out_of_order());
        }
        let left = self.open.len() - 1 - depth;
        self.open.truncate(depth + 1);
        self.open[depth].1 = name.to_owned();
        if directory {
            self.open.push((path.to_owned(), OsString::new()));
        }
        self.previous = path.to_owned();
        Ok(Place { left, name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_that_lead_outside_or_are_unclean_are_refused() {
        let long = "x".repeat(256);
        for bad in ["", "/", "/a", "..", "../a", "a/..", "a/../b", ".", "./a", "a//b", "a/", "a\0b", &long] {
            assert!(validate(bad.into()).is_err(), "{bad:?}");
        }
        for good in ["a", "a/b", "...", "..a", "a/.b", "-", "a\\b"] {
            assert_eq!(validate(good.into()).unwrap(), Path::new(good));
        }
        assert!(validate("x/".repeat(2048).into_bytes()).is_err());
    }

    fn admit_all(list: &[(&str, bool)]) -> Result<Vec<usize>, TransferError> {
        let mut check = OrderCheck::new();
        list.iter().map(|(p, dir)| check.admit(Path::new(p), *dir).map(|place| place.left)).collect()
    }

    #[test]
    fn a_sorted_tree_is_admitted_and_directories_are_left_in_time() {
        let list = [("a", true), ("a/x", true), ("a/x/f", false), ("a.b", false), ("b", false)];
        assert_eq!(admit_all(&list).unwrap(), [0, 0, 0, 2, 0]);
    }

    #[test]
    fn unsorted_repeated_and_orphaned_entries_are_refused() {
        for list in [
            &[("b", false), ("a", false)][..],
            &[("a", false), ("a", false)],
            &[("a", false), ("a/b", false)],
            &[("a/b", false)],
            &[("a", true), ("b", true), ("a/x", false)],
            &[("a", true), ("a/b", false), ("a/a", false)],
        ] {
            assert!(matches!(admit_all(list), Err(TransferError::OutOfOrder { .. })), "{list:?}");
        }
    }

    proptest! {
        #[test]
        fn the_order_is_that_of_std_paths(mut paths in proptest::collection::btree_set("[a.!/-]{1,4}", 1..20)) {
            paths.retain(|p| validate(p.clone().into()).is_ok());
            let mut list: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
            for p in paths.iter().map(Path::new) {
                list.extend(p.ancestors().filter(|a| !a.as_os_str().is_empty()).map(Path::to_owned));
            }
            list.sort();
            list.dedup();
            let mut check = OrderCheck::new();
            for p in &list {
                prop_assert!(check.admit(p, true).is_ok(), "{:?}", list);
            }
        }
    }
}
