//! Which files something consisted of, as marks: to name those that changed.

use std::{collections::BTreeMap, io::Read as _};

use crate::{Change, FileChange, Mark};

/// Most entries of a listing; where there are more, directories stand for what is in them.
const ENTRIES: usize = 20_000;
/// Bytes of a stored listing when it is unpacked: paths have at most 4096.
const STORED_BYTES: u64 = 64 << 20;

/// Paths and marks of what is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// How many components of paths are kept; what is deeper counts for its directory. 0 keeps all.
    depth: u32,
    entries: BTreeMap<Vec<u8>, u64>,
}

impl Listing {
    /// A listing of files, links and directories' headers: each path (a directory's ends with a slash) and the mark of what is there.
    pub fn new(entries: impl IntoIterator<Item = (Vec<u8>, Mark)>) -> Self {
        let entries = entries.into_iter().map(|(path, mark)| {
            // The path is part of the mark, so that marks of a directory's files can be added up.
            let value = Mark::of_all([path.as_slice(), &mark.0.to_le_bytes()]).0;
            (path, value)
        });
        let mut listing = Self { depth: 0, entries: entries.collect() };
        let mut depth = listing.entries.keys().map(|path| components(path)).max().unwrap_or(0);
        while listing.entries.len() > ENTRIES && depth > 1 {
            depth -= 1;
            listing = listing.folded(depth);
        }
        // One directory with more files than that: told as a whole.
        if listing.entries.len() > ENTRIES {
            let all = listing.entries.values().fold(0, |all, value| all ^ value);
            listing = Self { depth: 1, entries: BTreeMap::from([(b"/".to_vec(), all)]) };
        }
        listing
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The same with what is deeper than `depth` components added up in its directories.
    fn folded(&self, depth: u32) -> Self {
        let mut entries: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        for (path, value) in &self.entries {
            *entries.entry(cut(path, depth)).or_default() ^= value;
        }
        Self { depth, entries }
    }

    /// What has to happen to `self` to make it `new`, in order of paths.
    pub(crate) fn changes(&self, new: &Self) -> Vec<FileChange> {
        if self.depth != new.depth {
            let depth = [self.depth, new.depth].into_iter().filter(|depth| *depth > 0).min().unwrap_or(0);
            let fold =
                |listing: &Self| if listing.depth == depth { listing.clone() } else { listing.folded(depth) };
            return fold(self).changes(&fold(new));
        }
        let mut changes = Vec::new();
        let mut note = |path: &[u8], change| {
            let path = String::from_utf8_lossy(path).into_owned();
            changes.push(FileChange { path, change });
        };
        let paths: std::collections::BTreeSet<&Vec<u8>> =
            self.entries.keys().chain(new.entries.keys()).collect();
        for path in paths {
            match (self.entries.get(path), new.entries.get(path)) {
                (Some(old), Some(new)) if old != new => note(path, Change::Changed),
                (Some(_), None) => note(path, Change::Removed),
                (None, Some(_)) => note(path, Change::Added),
                _ => {}
            }
        }
        changes
    }

    /// Version 1: `depth (4 bytes), then for each entry: path length (2 bytes), path, mark (8 bytes)`, little endian, zstd.
    pub(crate) fn to_bytes(&self) -> std::io::Result<Vec<u8>> {
        let mut bytes = self.depth.to_le_bytes().to_vec();
        for (path, value) in &self.entries {
            // Longer than any path of Linux: left out.
            let Ok(length) = u16::try_from(path.len()) else { continue };
            bytes.extend(length.to_le_bytes());
            bytes.extend(path);
            bytes.extend(value.to_le_bytes());
        }
        zstd::bulk::compress(&bytes, 1)
    }

    /// What cannot be read is as good as nothing: then files are not named.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut unpacked = Vec::new();
        let decoder = zstd::stream::read::Decoder::new(bytes).ok()?;
        decoder.take(STORED_BYTES).read_to_end(&mut unpacked).ok()?;
        let (depth, mut rest) = unpacked.split_first_chunk::<4>()?;
        let mut entries = BTreeMap::new();
        while let Some((length, tail)) = rest.split_first_chunk::<2>() {
            let (path, tail) = tail.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
            let (value, tail) = tail.split_first_chunk::<8>()?;
            entries.insert(path.to_vec(), u64::from_le_bytes(*value));
            rest = tail;
        }
        rest.is_empty().then_some(Self { depth: u32::from_le_bytes(*depth), entries })
    }
}

fn components(path: &[u8]) -> u32 {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    u32::try_from(path.iter().filter(|byte| **byte == b'/').count() + 1).unwrap_or(u32::MAX)
}

/// A path cut to `depth` components; what was cut makes it a directory.
fn cut(path: &[u8], depth: u32) -> Vec<u8> {
    let mut left = depth;
    for (at, byte) in path.iter().enumerate() {
        if *byte == b'/' {
            left -= 1;
            if left == 0 {
                return path[..=at].to_vec();
            }
        }
    }
    path.to_vec()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn listing(files: &[(&str, &str)]) -> Listing {
        Listing::new(files.iter().map(|(path, data)| (path.as_bytes().to_vec(), Mark::of(data))))
    }

    fn texts(changes: &[FileChange]) -> Vec<String> {
        changes.iter().map(|change| format!("{:?} {}", change.change, change.path)).collect()
    }

    #[test]
    fn what_changed_is_named() {
        let old = listing(&[("a", "1"), ("d/", "755"), ("d/b", "2"), ("d/c", "3")]);
        let new = listing(&[("a", "1"), ("d/", "700"), ("d/b", "X"), ("e", "4")]);
        assert_eq!(texts(&old.changes(&new)), ["Changed d/", "Changed d/b", "Removed d/c", "Added e"]);
        assert!(old.changes(&old).is_empty());
    }

    #[test]
    fn large_listings_are_told_by_directory() {
        let files = |changed: usize| {
            let file = move |number: usize| {
                let data = if number == changed { "new".to_owned() } else { number.to_string() };
                (format!("src/d{}/f{number}", number % 7).into_bytes(), Mark::of(data))
            };
            Listing::new((0..30_000).map(file))
        };
        let (old, new) = (files(usize::MAX), files(15));
        assert_eq!(texts(&old.changes(&new)), ["Changed src/d1/"]);
        assert!(old.changes(&files(usize::MAX)).is_empty());
        // A small one beside a large one.
        let small = listing(&[("src/d1/f1", "1")]);
        assert!(texts(&old.changes(&small)).contains(&"Removed src/d2/".to_owned()));
    }

    #[test]
    fn one_huge_directory_is_told_as_a_whole() {
        let files = (0..30_000)
            .map(|number: u32| (format!("f{number}").into_bytes(), Mark::of(number.to_le_bytes())));
        let old = Listing::new(files.clone());
        let new = Listing::new(files.skip(1));
        assert_eq!(texts(&old.changes(&new)), ["Changed /"]);
    }

    #[test]
    fn garbage_is_no_listing() {
        assert_eq!(Listing::from_bytes(b""), None);
        assert_eq!(Listing::from_bytes(b"garbage"), None);
        let cut_short = zstd::encode_all(&[0, 0, 0, 0, 9, 0, 1][..], 1).unwrap();
        assert_eq!(Listing::from_bytes(&cut_short), None);
    }

    proptest! {
        #[test]
        fn listings_survive_being_stored(files in proptest::collection::btree_map("[a-c/]{1,8}", any::<u64>(), 0..50)) {
            let listing = Listing::new(files.into_iter().map(|(path, mark)| (path.into_bytes(), Mark(mark))));
            prop_assert_eq!(Listing::from_bytes(&listing.to_bytes().unwrap()), Some(listing));
        }
    }
}
