//! The layer contract: what is known of committed snapshots as image layers.

use lapstrake_layerstore_oci::{ChainId, Descriptor, DiffId, Digest};

use crate::{SnapshotName, StoreError};

/// A committed snapshot whose tar stream's digest is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Where its files are.
    pub snapshot: SnapshotName,
    /// Digest of its tar stream.
    pub diff_id: DiffId,
    /// Digest of its diff id and all those below it.
    pub chain_id: ChainId,
    /// Bytes of file content in the layer, as `docker history` shows them.
    pub size: u64,
}

/// What is known of committed snapshots as layers, and of the blobs that hold their tar streams.
///
/// A snapshot's records go with it: the snapshotter's removal and the records' are one transaction.
pub trait LayerStore: Send + Sync {
    /// The layer that a snapshot is, if its tar stream was ever computed or it was made from one.
    fn by_snapshot(&self, snapshot: &SnapshotName) -> Result<Option<Layer>, StoreError>;

    /// A snapshot and those below it, the uppermost first, with the layers that those are which are known as such.
    ///
    /// Errors: [`StoreError::NotFound`] when there is no such committed snapshot.
    fn below(&self, top: &SnapshotName) -> Result<Vec<(SnapshotName, Option<Layer>)>, StoreError>;

    /// A layer with this chain id, if any snapshot has it.
    fn by_chain(&self, chain: &ChainId) -> Result<Option<Layer>, StoreError>;

    /// Records layers: all, or after an error none. Recording the same again is success; two snapshots may have one chain id.
    ///
    /// Errors: [`StoreError::NotFound`] when there is no such committed snapshot, [`StoreError::AlreadyExists`] when it is
    /// recorded as another layer.
    fn record(&self, layers: &[Layer]) -> Result<(), StoreError>;

    /// The blobs in the content store that were recorded with this diff id, oldest first: their decompressed bytes have it, unless an annotation says what
    /// else they have (`containerd.io/uncompressed`: eStargz has a table of contents behind the layer).
    fn blobs(&self, diff_id: &DiffId) -> Result<Vec<Descriptor>, StoreError>;

    /// The diff ids that a blob is recorded to decompress to; nearly always none or one.
    fn blob_layers(&self, digest: &Digest) -> Result<Vec<DiffId>, StoreError>;

    /// Records that a blob, which is in the content store, decompresses to this diff id. The caller holds a lease on the blob.
    ///
    /// Errors: [`StoreError::NotFound`] and [`StoreError::SizeMismatch`] when the content store has no such blob.
    fn record_blob(&self, diff_id: &DiffId, blob: &Descriptor) -> Result<(), StoreError>;
}
