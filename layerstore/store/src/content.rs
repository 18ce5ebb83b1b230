//! The content store contract: immutable bytes by digest.

use std::{
    io::{Read, Seek, Write},
    time::SystemTime,
};

use lapstrake_layerstore_oci::Digest;

use crate::{Lease, Leftovers, Resource, StoreError};

/// What is known of one blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobInfo {
    /// The digest of its bytes.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Bytes of allocated blocks that it takes on disk.
    pub allocated: u64,
    /// When it was committed.
    pub created: SystemTime,
}

/// A blob open for reading. Dropping it closes it; a blob removed meanwhile stays readable.
pub trait BlobReader: Read + Seek + Send {
    /// The blob's length in bytes.
    fn size(&self) -> u64;
}

/// A blob being received. Dropping it without [`BlobWriter::commit`] discards what was written.
pub trait BlobWriter: Write + Send {
    /// Bytes written so far.
    fn offset(&self) -> u64;

    /// The digest (SHA-256) of what was written so far. Hold it before [`BlobWriter::commit`] when the digest is not known
    /// beforehand: then collection cannot take the blob between its commit and its use.
    fn digest(&self) -> Digest;

    /// Makes what was written a blob, durably, and returns its digest.
    ///
    /// Nothing is published when the bytes are not those of `expected` ([`StoreError::DigestMismatch`]) or not
    /// `expected_size` long ([`StoreError::SizeMismatch`]). A blob that exists already is left as it is: success.
    fn commit(
        self: Box<Self>,
        expected: Option<&Digest>,
        expected_size: Option<u64>,
    ) -> Result<Digest, StoreError>;
}

/// Immutable bytes by digest. Methods block, may be called from several threads, and either happen whole or not at all.
pub trait ContentStore: Send + Sync {
    /// What is known of a blob, or `None`.
    fn info(&self, digest: &Digest) -> Result<Option<BlobInfo>, StoreError>;

    /// Opens a blob. Errors: [`StoreError::NotFound`].
    fn reader(&self, digest: &Digest) -> Result<Box<dyn BlobReader>, StoreError>;

    /// Starts receiving a blob. Several writers of one blob may run: the first commit wins, the others succeed.
    fn writer(&self) -> Result<Box<dyn BlobWriter>, StoreError>;

    /// Removes a blob; success when it is not there. Errors: [`StoreError::InUse`] while an image names it as its manifest.
    fn remove(&self, digest: &Digest) -> Result<(), StoreError>;

    /// Removes several blobs in two steps, for collection, which must not delete large files while it keeps others out: those
    /// returned are in the store no more, but their space is freed only by running the [`Leftovers`]. A blob that a lease
    /// has begun to hold stays.
    ///
    /// The default removes one after the other and leaves nothing to do.
    fn forget(&self, digests: &[Digest]) -> Result<(Vec<Digest>, Leftovers), StoreError> {
        digests.iter().try_for_each(|digest| self.remove(digest))?;
        Ok((digests.to_vec(), Leftovers::none()))
    }

    /// Calls `visit` for every blob until it returns `false`.
    fn walk(&self, visit: &mut dyn FnMut(BlobInfo) -> bool) -> Result<(), StoreError>;
}

impl dyn ContentStore + '_ {
    /// Reads a whole blob that must not be longer than `limit` bytes (manifests, configs).
    pub fn read_small(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, StoreError> {
        let reader = self.reader(digest)?;
        if reader.size() > limit {
            return Err(StoreError::Invalid {
                kind: "blob",
                id: digest.to_string(),
                why: "larger than such a document may be",
            });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(reader.size()).unwrap_or(0));
        reader.take(limit).read_to_end(&mut bytes).map_err(StoreError::io("read blob", digest.as_str()))?;
        Ok(bytes)
    }

    /// Stores bytes that are already in memory, and returns their digest.
    pub fn write_small(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let mut writer = self.writer()?;
        writer.write_all(bytes).map_err(StoreError::io("write", "blob"))?;
        writer.commit(None, None)
    }

    /// As `write_small`, with the blob held by `lease` before it is there.
    pub fn write_small_held(&self, bytes: &[u8], lease: &Lease) -> Result<Digest, StoreError> {
        lease.hold(Resource::Blob(Digest::sha256_of(bytes)));
        self.write_small(bytes)
    }
}
