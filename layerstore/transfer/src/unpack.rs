//! From layer blobs to a tree.

use std::{io::Read, time::SystemTime};

use lapstrake_layerstore_diff::{Compression, Limits, apply, decompress};
use lapstrake_layerstore_oci::{ChainId, Descriptor, DiffId, Digest, DigestWriter};
use lapstrake_layerstore_store::{Layer, Stores, Tree};
use tokio_util::sync::CancellationToken;

use crate::{TransferError, ahead::read_ahead, cancellable::Cancellable};

/// A layer that is to be unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerBlob {
    /// Its blob, in the content store unless the layer is unpacked already.
    pub descriptor: Descriptor,
    /// What the image's config says its content is.
    pub diff_id: DiffId,
    /// When it was made, where whoever made it says so, and it is to be exported again as it came.
    pub created: Option<SystemTime>,
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

pub(crate) fn held(stores: &Stores, chain: &ChainId) -> Result<Option<Tree>, TransferError> {
    match stores.layers.by_chain(chain)? {
        // It may be collected between the two: then it is unpacked again.
        Some(layer) => Ok(stores.hold(&layer.snapshot)?),
        None => Ok(None),
    }
}

/// What a blob in the content store unpacks to, found by decompressing it: for those of which nobody tells it. Blocks.
pub fn blob_diff_id(
    stores: &Stores,
    blob: &Digest,
    cancel: &CancellationToken,
) -> Result<DiffId, TransferError> {
    let reader = Cancellable { inner: stores.content.reader(blob)?, cancel };
    let plain = decompress(reader).map_err(TransferError::layer(blob))?;
    let mut digest = DigestWriter::new(std::io::sink());
    let copied = read_ahead(plain, |mut plain| std::io::copy(&mut plain, &mut digest));
    if cancel.is_cancelled() {
        return Err(TransferError::Canceled);
    }
    copied.map_err(TransferError::io("decompress a layer"))?;
    Ok(DiffId::from(digest.finish().1))
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
            what: format!(
                "layer {} is a foreign layer, which only its vendor may distribute",
                blob.descriptor.digest
            ),
        });
    }
    let reader = stores.content.reader(&blob.descriptor.digest)?;
    let (tree, _) =
        unpack_stream(stores, below, &blob.diff_id, chain_id, reader, &blob.descriptor.digest, cancel)?;
    stores.layers.record_blob(&blob.diff_id, &blob.descriptor)?;
    if let (Some(created), Some(snapshot)) = (blob.created, tree.snapshot()) {
        stores.snapshots.set_created(snapshot, created)?;
    }
    Ok(tree)
}

/// Unpacks one layer's stream, plain or compressed, and says how it was compressed. `name` is what errors call it.
pub(crate) fn unpack_stream(
    stores: &Stores,
    below: &Tree,
    diff_id: &DiffId,
    chain_id: &ChainId,
    reader: impl Read + Send,
    name: &dyn std::fmt::Display,
    cancel: &CancellationToken,
) -> Result<(Tree, Compression), TransferError> {
    let draft = stores.begin(below)?;
    let named = |error| {
        if cancel.is_cancelled() { TransferError::Canceled } else { TransferError::layer(name)(error) }
    };
    let plain = decompress(Cancellable { inner: reader, cancel }).map_err(named)?;
    let compression = plain.compression();
    let target = draft.diff()?;
    let applied = read_ahead(plain, |plain| apply(plain, &target, &Limits::default())).map_err(named)?;
    if applied.diff_id != *diff_id {
        return Err(TransferError::WrongDiffId { expected: diff_id.clone(), actual: applied.diff_id });
    }
    let tree = draft.commit()?;
    let snapshot = tree.snapshot().expect("a committed draft is a snapshot").clone();
    stores.layers.record(&[Layer {
        snapshot,
        diff_id: applied.diff_id,
        chain_id: chain_id.clone(),
        size: applied.size,
    }])?;
    Ok((tree, compression))
}
