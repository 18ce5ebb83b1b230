//! From an archive to the image store: what `docker load` takes.
//!
//! ```text
//!   stream ── Archive::read ──► names → files ── docker │ layout ──► Planned ── unpack ──► Ready ── put ──► images
//! ```

mod archive;
mod docker;
mod index;
mod layout;

use std::io::Read;

use bytes::Bytes;
use lapstrake_layerstore_diff::{Compression, WriteOptions, decompress, write_layer};
use lapstrake_layerstore_oci::{
    ChainId, Descriptor, DiffId, Digest, ImageConfig, ImageId, LayerCompression, Manifest, Platform,
    Reference,
};
use lapstrake_layerstore_store::{ImageName, Lease, NewImage, Resource, Stores, Tree};
use tokio_util::sync::CancellationToken;

use self::{
    archive::{Archive, Stored},
    index::WholeIndex,
};
use crate::{
    TransferError,
    blobs::media_type_of,
    pull_store::named,
    unpack::{held, unpack_stream},
};

/// Longest manifest, index or config.
const MAX_DOCUMENT: u64 = 8 << 20;
/// Bytes of a layer between two reports.
const STEP: u64 = 512 << 10;

/// What [`load`] does, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadEvent {
    /// A layer is being unpacked.
    Layer {
        /// Which.
        diff_id: DiffId,
        /// Bytes of its file that were read.
        current: u64,
        /// Bytes of its file.
        total: u64,
    },
    /// A name means the loaded image now, and meant another before.
    Renamed {
        /// The name.
        name: Reference,
        /// The image that had it.
        from: ImageId,
    },
    /// An image was loaded under a name.
    Loaded {
        /// The name.
        name: Reference,
        /// The image.
        id: ImageId,
    },
    /// An image was loaded that has no name in the archive.
    LoadedUnnamed {
        /// The image.
        id: ImageId,
    },
}

impl LoadEvent {
    /// Docker's line, for those that are one.
    pub fn docker_line(&self) -> Option<String> {
        match self {
            Self::Layer { .. } => None,
            Self::Renamed { name, from } => Some(format!(
                "The image {} already exists, renaming the old one with ID {from} to empty string",
                name.familiar()
            )),
            Self::Loaded { name, .. } => Some(format!("Loaded image: {}", name.familiar())),
            Self::LoadedUnnamed { id } => Some(format!("Loaded image ID: {id}")),
        }
    }
}

/// An image that was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The image.
    pub id: ImageId,
    /// The names that it has in the archive.
    pub names: Vec<Reference>,
}

/// What an archive says of one image.
struct Planned {
    id: ImageId,
    config: Bytes,
    /// Each layer's file, with the descriptor that names it, if one does.
    layers: Vec<PlannedLayer>,
    names: Vec<Reference>,
    parent: Option<ImageId>,
    manifest: Option<(Manifest, Bytes)>,
}

struct PlannedLayer {
    diff_id: DiffId,
    file: Stored,
}

/// An image whose layers are unpacked.
struct Ready {
    planned: Planned,
    tree: Tree,
}

/// Loads images from an archive: what `docker save` writes (of any version since 1.10), or an OCI layout in a tar; plain, or compressed with gzip, bzip2,
/// xz or zstd; entries in any order. Blocks.
///
/// Ids are kept: the same configs, and layers whose content is what the configs say. Nothing is stored when anything in the archive is
/// wrong. `platforms` chooses among an archive's images; when it is empty, all that Docker's manifest names, or the host's of an OCI index (its first, where
/// it has none for the host). A name whose index is in the archive with all that it names keeps that, unless `platforms` chooses.
/// `cancel` is looked at while reading.
pub fn load(
    stores: &Stores,
    reader: impl Read + Send,
    platforms: &[Platform],
    cancel: &CancellationToken,
    report: &(dyn Fn(LoadEvent) + Sync),
) -> Result<Vec<Loaded>, TransferError> {
    let archive = Archive::read(stores, reader, cancel)?;
    let planned = if archive.find(b"manifest.json").is_some() {
        docker::plan(stores, &archive, platforms)?
    } else if archive.find(b"index.json").is_some() {
        layout::plan(stores, &archive, platforms)?
    } else {
        return Err(TransferError::archive("does not contain a manifest.json"));
    };
    let indexes = match platforms {
        [] => index::whole(stores, &archive)?,
        _ => Vec::new(),
    };
    let mut ready = Vec::with_capacity(planned.len());
    for image in planned {
        let tree = unpack(stores, &image, &archive.lease, cancel, report)?;
        ready.push(Ready { planned: image, tree });
    }
    if cancel.is_cancelled() {
        return Err(TransferError::Canceled);
    }
    // The files are durable before the records that name them are.
    stores.snapshots.sync()?;
    put_all(stores, ready, &indexes, &archive.lease, report)
}

/// Unpacks an image's layers onto each other; those that are here already are used as they are.
fn unpack(
    stores: &Stores,
    image: &Planned,
    lease: &Lease,
    cancel: &CancellationToken,
    report: &(dyn Fn(LoadEvent) + Sync),
) -> Result<Tree, TransferError> {
    let mut below = Tree::empty();
    let mut chain: Option<ChainId> = None;
    for PlannedLayer { diff_id, file } in &image.layers {
        let chain_id = ChainId::on(chain.as_ref(), diff_id);
        below = match held(stores, &chain_id)? {
            Some(tree) => tree,
            None => {
                let total = file.size();
                let tell = |current| report(LoadEvent::Layer { diff_id: diff_id.clone(), current, total });
                tell(0);
                let reader = Counted { reader: file.reader(stores)?, current: 0, told: 0, tell: &tell };
                let (tree, compression) =
                    unpack_stream(stores, &below, diff_id, &chain_id, reader, diff_id, cancel)?;
                tell(total);
                keep_blob(stores, diff_id, &chain_id, &tree, file, compression, lease)?;
                tree
            }
        };
        chain = Some(chain_id);
    }
    Ok(below)
}

/// Keeps a layer's file as a blob, unless its snapshot gives the same bytes again.
///
/// Compressed files are kept as they came: what was compressed once need not be again, and an image that is pushed keeps its digests.
fn keep_blob(
    stores: &Stores,
    diff_id: &DiffId,
    chain_id: &ChainId,
    tree: &Tree,
    file: &Stored,
    compression: Compression,
    lease: &Lease,
) -> Result<(), TransferError> {
    let media_type = media_type_of(compression);
    let is_plain = media_type.as_ref().and_then(|media_type| media_type.layer_compression())
        == Some(LayerCompression::None);
    if (is_plain || media_type.is_none()) && regenerates(stores, tree, diff_id)? {
        return Ok(());
    }
    let blob = match media_type {
        Some(media_type) => {
            let digest = file.clone().into_blob(stores, lease)?;
            Descriptor::new(media_type, digest, file.size())
        }
        // No registry takes what is compressed so: kept plain.
        None => {
            let mut writer = stores.content.writer()?;
            let mut plain = decompress(file.reader(stores)?).map_err(TransferError::layer(chain_id))?;
            std::io::copy(&mut plain, &mut writer).map_err(TransferError::io("copy a layer"))?;
            let size = writer.offset();
            lease.hold(Resource::Blob(diff_id.digest().clone()));
            writer.commit(Some(diff_id.digest()), Some(size))?;
            let media_type = lapstrake_layerstore_oci::MediaType::DOCKER_LAYER;
            Descriptor::new(media_type, diff_id.digest().clone(), size)
        }
    };
    Ok(stores.layers.record_blob(diff_id, &blob)?)
}

/// Whether the layer's tar, written anew from its files, has the same digest.
fn regenerates(stores: &Stores, tree: &Tree, diff_id: &DiffId) -> Result<bool, TransferError> {
    let Some(snapshot) = tree.snapshot() else { return Ok(false) };
    let source = stores.snapshots.diff_source(snapshot)?;
    Ok(match write_layer(&source, &WriteOptions::default(), std::io::sink()) {
        Ok(written) => written.diff_id == *diff_id,
        Err(error) => {
            tracing::debug!(%error, %diff_id, "a loaded layer cannot be written anew; its file is kept");
            false
        }
    })
}

/// Stores the images, parents before their children.
fn put_all(
    stores: &Stores,
    ready: Vec<Ready>,
    indexes: &[WholeIndex],
    lease: &Lease,
    report: &(dyn Fn(LoadEvent) + Sync),
) -> Result<Vec<Loaded>, TransferError> {
    let mut loaded = Vec::with_capacity(ready.len());
    let mut waiting = ready;
    while !waiting.is_empty() {
        let ids: Vec<ImageId> = waiting.iter().map(|image| image.planned.id.clone()).collect();
        let (now, later): (Vec<Ready>, Vec<Ready>) = waiting
            .into_iter()
            .partition(|image| image.planned.parent.as_ref().is_none_or(|parent| !ids.contains(parent)));
        if now.is_empty() {
            return Err(TransferError::archive("its images are each other's parents"));
        }
        for image in now {
            loaded.push(put(stores, image, indexes, lease, report)?);
        }
        waiting = later;
    }
    Ok(loaded)
}

fn put(
    stores: &Stores,
    Ready { planned, tree }: Ready,
    indexes: &[WholeIndex],
    lease: &Lease,
    report: &(dyn Fn(LoadEvent) + Sync),
) -> Result<Loaded, TransferError> {
    let diff_ids: Vec<DiffId> = planned.layers.iter().map(|layer| layer.diff_id.clone()).collect();
    let manifest = match &planned.manifest {
        Some((manifest, bytes)) => kept_manifest(stores, &planned, manifest, bytes, &diff_ids, lease)?,
        None => None,
    };
    let mut renamed = Vec::new();
    for name in &planned.names {
        if let Some(from) = named(stores, name)?.filter(|from| *from != planned.id) {
            renamed.push((name.clone(), from));
        }
    }
    let names = names(&planned, indexes);
    let id = stores.images.put(NewImage {
        config: planned.config.to_vec(),
        top: tree.snapshot().cloned(),
        diff_ids,
        parent: planned.parent,
        manifest,
        names,
    })?;
    for (name, from) in renamed {
        report(LoadEvent::Renamed { name, from });
    }
    for name in &planned.names {
        report(LoadEvent::Loaded { name: name.clone(), id: id.clone() });
    }
    if planned.names.is_empty() {
        report(LoadEvent::LoadedUnnamed { id: id.clone() });
    }
    Ok(Loaded { id, names: planned.names })
}

/// The image's names, with the indexes that they mean.
fn names(planned: &Planned, indexes: &[WholeIndex]) -> Vec<ImageName> {
    let of_image = |index: &&WholeIndex| index.has(&planned.id);
    if planned.names.is_empty() {
        let nameless = indexes.iter().filter(of_image).filter(|index| index.names.is_empty());
        return nameless.flat_map(|index| ImageName::of_index(&[], &index.index.descriptor)).collect();
    }
    let named = planned.names.iter().flat_map(|name| {
        match indexes.iter().filter(of_image).find(|index| index.names.contains(name)) {
            Some(index) => ImageName::of_index(std::slice::from_ref(name), &index.index.descriptor),
            None => vec![ImageName { reference: name.clone(), target: None }],
        }
    });
    named.collect()
}

/// Keeps the manifest that the image came with, if all its layers' blobs are known to be what it says.
fn kept_manifest(
    stores: &Stores,
    planned: &Planned,
    manifest: &Manifest,
    bytes: &[u8],
    diff_ids: &[DiffId],
    lease: &Lease,
) -> Result<Option<Digest>, TransferError> {
    for (layer, diff_id) in manifest.layers.iter().zip(diff_ids) {
        if !stores.layers.blobs(diff_id)?.iter().any(|blob| blob.digest == layer.digest) {
            return Ok(None);
        }
    }
    stores.content.write_small_held(&planned.config, lease)?;
    Ok(Some(stores.content.write_small_held(bytes, lease)?))
}

/// An image's config, checked as far as loading needs it.
fn config(id: &ImageId, bytes: &[u8], layers: usize) -> Result<ImageConfig, TransferError> {
    let config = ImageConfig::from_json(bytes)
        .map_err(TransferError::document(format!("invalid archive: config of image {id}")))?;
    // An image that does not say is of the host's, as old ones did not.
    if !matches!(config.os.as_str(), "" | "linux") {
        return Err(TransferError::archive(format!("cannot load {:.64} image on linux", config.os)));
    }
    let expected = config.rootfs.diff_ids.len();
    if layers != expected {
        return Err(TransferError::archive(format!(
            "invalid manifest, layers length mismatch: expected {layers}, got {expected}"
        )));
    }
    Ok(config)
}

/// Reports how far a reader is.
struct Counted<'a, R, F> {
    reader: R,
    current: u64,
    told: u64,
    tell: &'a F,
}

impl<R: Read, F: Fn(u64)> Read for Counted<'_, R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.current += count as u64;
        if self.current - self.told >= STEP {
            self.told = self.current;
            (self.tell)(self.current);
        }
        Ok(count)
    }
}
