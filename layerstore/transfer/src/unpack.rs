//! From layer blobs to a tree.

use lapstrake_layerstore_diff::{Limits, apply, decompress};
use lapstrake_layerstore_oci::{ChainId, Descriptor, DiffId};
use lapstrake_layerstore_store::{Layer, Stores, Tree};
use tokio_util::sync::CancellationToken;

use crate::TransferError;

/// A layer that is to be unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerBlob {
    /// Its blob, in the content store unless the layer is unpacked already.
    pub descriptor: Descriptor,
    /// What the image's config says its content is.
    pub diff_id: DiffId,
}

/// What [`unpack`] does with a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnpackEvent {
    /// It is unpacked already.
    Exists,
    /// It is being unpacked.
    Extracting,
    /// It was unpacked now.
    Extracted,
}

/// Unpacks layers, bottom first, onto each other; those that are unpacked already are used as they are. Blocks.
///
/// Each layer is committed before the next one begins, so that an interrupted unpack goes on where it was. What was unpacked is
/// held by the returned tree; blobs are held by the caller. `cancel` is looked at between layers and while reading.
pub fn unpack(
    stores: &Stores,
    blobs: &[LayerBlob],
    cancel: &CancellationToken,
    report: &dyn Fn(usize, UnpackEvent),
) -> Result<Tree, TransferError> {
    let mut below = Tree::empty();
    let mut chain: Option<ChainId> = None;
    for (index, blob) in blobs.iter().enumerate() {
        let chain_id = ChainId::on(chain.as_ref(), &blob.diff_id);
        below = match held(stores, &chain_id)? {
            Some(tree) => {
                report(index, UnpackEvent::Exists);
                tree
            }
            None => {
                report(index, UnpackEvent::Extracting);
                let tree = unpack_one(stores, &below, blob, &chain_id, cancel)?;
                report(index, UnpackEvent::Extracted);
                tree
            }
        };
        chain = Some(chain_id);
    }
    Ok(below)
}

fn held(stores: &Stores, chain: &ChainId) -> Result<Option<Tree>, TransferError> {
    match stores.layers.by_chain(chain)? {
        // It may be collected between the two: then it is unpacked again.
        Some(layer) => Ok(stores.hold(&layer.snapshot)?),
        None => Ok(None),
    }
}

fn unpack_one(
    stores: &Stores,
    below: &Tree,
    blob: &LayerBlob,
    chain_id: &ChainId,
    cancel: &CancellationToken,
) -> Result<Tree, TransferError> {
    if blob.descriptor.media_type.is_nondistributable() {
        return Err(TransferError::Unsuitable {
            what: format!("layer {} is a foreign layer, which only its vendor may distribute", blob.descriptor.digest),
        });
    }
    let draft = stores.begin(below)?;
    let reader = Cancellable { reader: stores.content.reader(&blob.descriptor.digest)?, cancel };
    let named = || TransferError::layer(&blob.descriptor.digest);
    let plain = decompress(reader).map_err(named())?;
    let applied = apply(plain, &draft.diff()?, &Limits::default()).map_err(|error| {
        if cancel.is_cancelled() { TransferError::Canceled } else { named()(error) }
    })?;
    if applied.diff_id != blob.diff_id {
        return Err(TransferError::WrongDiffId { expected: blob.diff_id.clone(), actual: applied.diff_id });
    }
    let tree = draft.commit()?;
    let snapshot = tree.snapshot().expect("a committed draft is a snapshot").clone();
    stores.layers.record(&Layer {
        snapshot,
        diff_id: applied.diff_id,
        chain_id: chain_id.clone(),
        size: applied.size,
    })?;
    stores.layers.record_blob(&blob.diff_id, &blob.descriptor)?;
    Ok(tree)
}

/// A reader that fails once nobody waits any more.
struct Cancellable<'a, R> {
    reader: R,
    cancel: &'a CancellationToken,
}

impl<R: std::io::Read> std::io::Read for Cancellable<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(std::io::Error::other("canceled"));
        }
        self.reader.read(buffer)
    }
}
