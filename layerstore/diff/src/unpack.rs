//! Unpacking archives that are not layers: build contexts, and archives that `ADD` extracts.

use std::{
    io::Read,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use crate::{DiffError, Limits};

/// What was unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unpacked {
    /// Entries.
    pub entries: u64,
    /// Bytes of file content.
    pub size: u64,
}

/// How [`unpack_archive`] differs from the archive's own word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ArchiveOptions {
    /// User and group that everything gets (`ADD --chown`); `None` keeps the archive's.
    pub owner: Option<(u32, u32)>,
}

/// Unpacks the (decompressed) tar stream of a build context into an existing directory.
pub fn unpack_context(tar: impl Read, directory: &Path, limits: &Limits) -> Result<Unpacked, DiffError> {
    let _ = (tar, directory, limits);
    Err(DiffError::Unsupported { path: crate::EntryName::new(b"/"), why: "not written yet" })
}

/// Unpacks a (decompressed) tar stream into the existing directory `path` below `root`.
pub fn unpack_archive(
    tar: impl Read,
    root: BorrowedFd<'_>,
    path: &Path,
    options: &ArchiveOptions,
    limits: &Limits,
) -> Result<Unpacked, DiffError> {
    let _ = (tar, root, path, options, limits);
    Err(DiffError::Unsupported { path: crate::EntryName::new(b"/"), why: "not written yet" })
}

/// Whether a stream is a tar archive, perhaps compressed: what `ADD` extracts. Reads its beginning.
pub fn is_archive(stream: impl Read + Send) -> bool {
    let _ = stream;
    false
}
