//! The layers of a tree, and their tar streams.

use std::io::{self, BufReader, BufWriter, Write};

use lapstrake_layerstore_diff::{ArchiveReader, Limits, WriteOptions, decompress, write_layer};
use lapstrake_layerstore_oci::{ChainId, Descriptor, DiffId, Digest, DigestWriter, LayerCompression};
use lapstrake_layerstore_store::{BlobReader, Layer, SnapshotName, StoreError, Stores, Tree};

use crate::{ManifestForm, TransferError, blob_content, described};

/// The layers of a tree, bottom first. Diff ids that are not known yet are computed, by streaming each layer's tar into its digest, and
/// remembered: nothing is written but the answer. Blocks.
pub fn layers(stores: &Stores, tree: &Tree) -> Result<Vec<Layer>, TransferError> {
    let snapshots = tree.snapshot().map_or(Ok(Vec::new()), |top| stores.layers.below(top))?;
    let mut layers: Vec<Layer> = Vec::with_capacity(snapshots.len());
    let mut learnt = Vec::new();
    for (snapshot, known) in snapshots.into_iter().rev() {
        let layer = match known {
            Some(layer) => layer,
            None => {
                let source = stores.snapshots.diff_source(&snapshot)?;
                let written = write_layer(&source, &WriteOptions::default(), io::sink())
                    .map_err(TransferError::layer(&snapshot))?;
                let chain_id = ChainId::on(layers.last().map(|below| &below.chain_id), &written.diff_id);
                let layer =
                    Layer { snapshot, diff_id: written.diff_id, chain_id, size: written.content_size };
                learnt.push(layer.clone());
                layer
            }
        };
        layers.push(layer);
    }
    if !learnt.is_empty() {
        stores.layers.record(&learnt)?;
    }
    Ok(layers)
}

/// Writes a layer's tar stream, uncompressed: from a blob if there is one, else from its snapshot. Blocks.
///
/// The stream is checked while it is written: what is not the layer's content ends in [`TransferError::WrongDiffId`], after
/// all of it was written. The caller holds the layer.
pub fn layer_tar(stores: &Stores, layer: &Layer, out: &mut dyn Write) -> Result<(), TransferError> {
    let actual = match open_blob(stores, layer)? {
        Some(OpenBlob { digest: blob, reader }) => {
            let mut out = DigestWriter::new(out);
            let mut plain = decompress(reader).map_err(TransferError::layer(&blob))?;
            io::copy(&mut plain, &mut out).map_err(TransferError::io("copy a layer"))?;
            DiffId::from(out.finish().1)
        }
        None => {
            let source = stores.snapshots.diff_source(&layer.snapshot)?;
            let written = write_layer(&source, &WriteOptions::default(), out);
            written.map_err(TransferError::layer(&layer.snapshot))?.diff_id
        }
    };
    if actual == layer.diff_id {
        Ok(())
    } else {
        Err(TransferError::WrongDiffId { expected: layer.diff_id.clone(), actual })
    }
}

/// Blobs that the layers of a tree have already, bottom first: one chain for each blob of the uppermost, of the same compression as far as there are such.
/// None where a layer has no blob. Nothing is made or computed. Blocks.
pub fn blob_chains(stores: &Stores, top: &SnapshotName) -> Result<Vec<Vec<Descriptor>>, TransferError> {
    let mut all: Vec<Vec<Descriptor>> = Vec::new();
    for (_, layer) in stores.layers.below(top)? {
        let Some(layer) = layer else { return Ok(Vec::new()) };
        let blobs = stores.layers.blobs(&layer.diff_id)?;
        if blobs.is_empty() {
            return Ok(Vec::new());
        }
        all.push(blobs);
    }
    let Some(uppermost) = all.first() else { return Ok(Vec::new()) };
    let mut chains: Vec<Vec<Descriptor>> = Vec::new();
    for chosen in uppermost {
        let compression = chosen.media_type.layer_compression();
        let is_same = |blob: &&Descriptor| blob.media_type.layer_compression() == compression;
        let below = all[1..].iter().rev().map(|blobs| blobs.iter().find(is_same).unwrap_or(&blobs[0]));
        let chain: Vec<_> = below.chain([chosen]).map(|blob| described(blob, ManifestForm::Oci)).collect();
        if !chains.contains(&chain) {
            chains.push(chain);
        }
    }
    Ok(chains)
}

/// The names of what is in a layer's tar stream, in its order; what is no UTF-8 is replaced. The caller holds the layer. Blocks.
pub fn layer_names(stores: &Stores, layer: &Layer, visit: &mut dyn FnMut(&str)) -> Result<(), TransferError> {
    /// Bytes on their way from one thread to the other.
    const BUFFER: usize = 256 << 10;
    let (reader, writer) = io::pipe().map_err(TransferError::io("open a pipe"))?;
    std::thread::scope(|scope| {
        let writing = scope.spawn(move || {
            let mut writer = BufWriter::with_capacity(BUFFER, writer);
            layer_tar(stores, layer, &mut writer)?;
            writer.flush().map_err(TransferError::io("write a layer"))
        });
        let mut archive = ArchiveReader::new(BufReader::with_capacity(BUFFER, reader), &Limits::default());
        // The archive goes with it, so that after an error the other thread ends, too.
        let read = (move || {
            while let Some(member) = archive.next_member()? {
                visit(&String::from_utf8_lossy(&member.name));
            }
            archive.drain()
        })();
        let written = writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        read.map_err(TransferError::layer(&layer.diff_id))?;
        written
    })
}

struct OpenBlob {
    digest: Digest,
    reader: Box<dyn BlobReader>,
}

/// A blob of the layer, open, so that it stays readable; one that need not be decompressed if there is one.
fn open_blob(stores: &Stores, layer: &Layer) -> Result<Option<OpenBlob>, TransferError> {
    let mut blobs = stores.layers.blobs(&layer.diff_id)?;
    blobs.retain(|blob| blob_content(blob, &layer.diff_id) == layer.diff_id);
    blobs.sort_by_key(|blob| blob.media_type.layer_compression() != Some(LayerCompression::None));
    for blob in blobs {
        match stores.content.reader(&blob.digest) {
            Ok(reader) => return Ok(Some(OpenBlob { digest: blob.digest, reader })),
            // Collected since it was listed: the snapshot has the content too.
            Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}
