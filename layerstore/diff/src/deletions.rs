//! What a difference deletes although nothing of it is below.
//!
//! Overlayfs has no form for that: in a directory that merges with nothing its whiteouts would show. So these deletions are in a file beside the
//! difference (`DiffSource::deletions`): they are part of its layer, and so of what is seen when that is laid on other trees, but not of the tree.
//! The file has their paths below the root, sorted, each with a NUL byte behind it. Without any there is no file.

use std::{collections::BTreeSet, fs, io, path::Path};

use crate::{DiffError, fsat};

/// Paths of such deletions. One that is a directory in the difference is opaque; one that is anything else there replaces all that was.
#[derive(Debug, Default)]
pub(crate) struct Deletions(BTreeSet<Vec<u8>>);

impl Deletions {
    pub(crate) fn read(file: Option<&Path>) -> Result<Self, DiffError> {
        let Some(file) = file else { return Ok(Self::default()) };
        let bytes = match fs::read(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            read => read.map_err(DiffError::path("read", file))?,
        };
        let Some(paths) = bytes.strip_suffix(b"\0") else {
            let cut = io::Error::new(io::ErrorKind::UnexpectedEof, "the list of deletions is cut short");
            return Err(DiffError::path("read", file)(cut));
        };
        Ok(Self(paths.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()))
    }

    pub(crate) fn write(&self, file: Option<&Path>) -> Result<(), DiffError> {
        let Some(file) = file.filter(|_| !self.0.is_empty()) else { return Ok(()) };
        let mut bytes = Vec::with_capacity(self.0.iter().map(|path| path.len() + 1).sum());
        for path in &self.0 {
            bytes.extend_from_slice(path);
            bytes.push(0);
        }
        fs::write(file, bytes).map_err(DiffError::path("write", file))
    }

    pub(crate) fn contains(&self, path: &[u8]) -> bool {
        self.0.contains(path)
    }

    pub(crate) fn insert(&mut self, path: Vec<u8>) {
        if !fsat::ancestors(&path).any(|above| self.0.contains(above)) {
            self.forget_below(&path);
            self.0.insert(path);
        }
    }

    /// What is in a directory that hides all needs no mention.
    pub(crate) fn forget_below(&mut self, directory: &[u8]) {
        let names: Vec<Vec<u8>> = self.below(directory).cloned().collect();
        for path in names {
            self.0.remove(&path);
        }
    }

    fn below<'a>(&'a self, directory: &[u8]) -> impl Iterator<Item = &'a Vec<u8>> + use<'a> {
        let prefix = if directory.is_empty() { Vec::new() } else { [directory, b"/"].concat() };
        self.0.range(prefix.clone()..).take_while(move |path| path.starts_with(&prefix))
    }

    /// Names of those that are directly in a directory.
    pub(crate) fn names_in<'a>(&'a self, directory: &[u8]) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let from = if directory.is_empty() { 0 } else { directory.len() + 1 };
        let names = self.below(directory).map(move |path| &path[from..]);
        names.filter(|name| !name.is_empty() && !name.contains(&b'/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_as_they_were_written_and_what_is_below_one_goes_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("deletions");
        let mut deletions = Deletions::default();
        deletions.write(Some(&file)).unwrap();
        assert!(!file.exists());
        for path in ["dir/b", "dir/b/inside", "all/x/y", "all", "all/z", "all.x", "a", "all0/z"] {
            deletions.insert(path.into());
        }
        deletions.write(Some(&file)).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"a\0all\0all.x\0all0/z\0dir/b\0");
        let read = Deletions::read(Some(&file)).unwrap();
        assert_eq!(read.names_in(b"").collect::<Vec<_>>(), [&b"a"[..], b"all", b"all.x"]);
        assert_eq!(read.names_in(b"dir").collect::<Vec<_>>(), [b"b"]);
        assert_eq!(read.names_in(b"a").count(), 0);
        fs::write(&file, "a\0cut").unwrap();
        assert!(Deletions::read(Some(&file)).is_err());
    }

    #[test]
    fn the_root_may_be_among_them() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("deletions");
        let mut deletions = Deletions::default();
        deletions.insert(Vec::new());
        deletions.write(Some(&file)).unwrap();
        assert!(Deletions::read(Some(&file)).unwrap().contains(b""));
    }
}
