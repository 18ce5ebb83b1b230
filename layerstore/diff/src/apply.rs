//! Applying a layer's tar stream to the difference of an active snapshot.

use std::io::Read;

use lapstrake_layerstore_oci::DiffId;
use lapstrake_layerstore_store::DiffSource;

use crate::{DiffError, Limits};

/// What [`apply`] found in a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Digest of the whole decompressed stream, padding behind the archive included.
    pub diff_id: DiffId,
    /// Length of the whole decompressed stream in bytes.
    pub tar_size: u64,
    /// Bytes of file content, as `docker history` shows them.
    pub size: u64,
    /// Entries, whiteouts included.
    pub entries: u64,
}

/// Unpacks a layer's (decompressed) tar stream into the difference of a freshly prepared snapshot.
pub fn apply(tar: impl Read, target: &DiffSource, limits: &Limits) -> Result<Applied, DiffError> {
    let _ = (tar, target, limits);
    Err(DiffError::Unsupported { path: crate::EntryName::new(b"/"), why: "not written yet" })
}
