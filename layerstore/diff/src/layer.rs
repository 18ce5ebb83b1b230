//! A snapshot's difference as a layer's tar stream.

use std::{io::Write, os::fd::BorrowedFd, path::Path};

use lapstrake_layerstore_oci::DiffId;
use lapstrake_layerstore_store::DiffSource;

use crate::DiffError;

/// What [`write_layer`] and [`write_tree`] wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerDigest {
    /// Digest of the stream.
    pub diff_id: DiffId,
    /// Length of the stream in bytes.
    pub tar_size: u64,
    /// Bytes of file content, as `docker history` shows them.
    pub content_size: u64,
}

/// How a tree is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriteOptions {
    /// Later modification times become this one, in seconds since 1970 (`SOURCE_DATE_EPOCH` with `rewrite-timestamp`).
    pub latest_mtime: Option<i64>,
}

/// Writes a committed snapshot's difference as a layer: the same bytes each time.
pub fn write_layer(
    source: &DiffSource,
    options: &WriteOptions,
    out: impl Write,
) -> Result<LayerDigest, DiffError> {
    let _ = (source, options, out);
    Err(DiffError::Unsupported { path: crate::EntryName::new(b"/"), why: "not written yet" })
}

/// Writes a whole tree, without its root directory, in the same form. `keep` says, by path below the root, what is
/// written; what it leaves out is left out with everything below it.
pub fn write_tree(
    root: BorrowedFd<'_>,
    options: &WriteOptions,
    keep: &mut dyn FnMut(&Path) -> bool,
    out: impl Write,
) -> Result<LayerDigest, DiffError> {
    let _ = (root, options, keep, out);
    Err(DiffError::Unsupported { path: crate::EntryName::new(b"/"), why: "not written yet" })
}
