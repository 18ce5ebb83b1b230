//! The archive that `docker save` writes (Moby 25 and later): an OCI layout and Docker's `manifest.json` over the same blobs.
//!
//! Differences to Moby's: layers come first and the documents that name them last, because only then are all sizes known; the configs of single layers for
//! Docker 1.9 and before are left out.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
};

use lapstrake_layerstore_oci::{
    Descriptor, DiffId, Digest, ImageConfig, ImageId, Index, LayerCompression, Manifest, MediaType,
    Reference, gojson,
};
use lapstrake_layerstore_store::{ImageRecord, Layer, Lease, Stores, Tree};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{
    ArchiveImage, SaveImage, created, hold_image, layout::copy_blob, stored_layers, tar::ArchiveWriter,
};
use crate::{ImageIndex, TransferError, layer_tar, stored_index};

/// A layer's tar of up to this many bytes is held in memory rather than made twice.
const SMALL_LAYER: usize = 4 << 20;

/// One image in `manifest.json`. Field names and order are Moby's.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<ImageId>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    layer_sources: BTreeMap<DiffId, Descriptor>,
}

/// Images of the image store that nothing takes away before they are saved.
#[derive(Debug)]
pub struct HeldImages {
    _lease: Lease,
    _trees: Vec<Tree>,
    images: Vec<ArchiveImage>,
    indexes: Vec<ArchiveIndex>,
}

/// Images of several platforms under one name.
#[derive(Debug)]
struct ArchiveIndex {
    index: ImageIndex,
    /// The image that stands for all where there is room for one.
    record: ImageRecord,
    names: Vec<Reference>,
}

impl HeldImages {
    /// Holds images and reads which layers they have. Blocks. One that is gone by now is an error. A name of several platforms, all of which
    /// are here, is saved with all of them.
    pub fn new(stores: &Stores, images: &[SaveImage]) -> Result<Self, TransferError> {
        let lease = stores.leases.create();
        let mut trees = Vec::with_capacity(images.len());
        let mut archived = Vec::with_capacity(images.len());
        let mut indexes: Vec<ArchiveIndex> = Vec::new();
        for image in images {
            hold_image(stores, &image.record, &lease)?;
            let mut names = Vec::new();
            for name in &image.names {
                let Some(descriptor) = image.record.index_of(name) else {
                    names.push(name.clone());
                    continue;
                };
                if let Some(known) = indexes.iter_mut().find(|known| known.index.descriptor == *descriptor) {
                    known.names.push(name.clone());
                } else if let Some(index) = stored_index(stores, descriptor)? {
                    let (record, names) = (image.record.clone(), vec![name.clone()]);
                    indexes.push(ArchiveIndex { index, record, names });
                } else {
                    names.push(name.clone());
                }
            }
            // What is in an index as a whole need not be there by itself.
            if names.is_empty() && !image.names.is_empty() {
                continue;
            }
            let (tree, layers) = stored_layers(stores, &image.record)?;
            trees.push(tree);
            archived.push(ArchiveImage {
                config: image.record.config.clone(),
                layers,
                names,
                parent: image.record.parent.clone(),
            });
        }
        Ok(Self { _lease: lease, _trees: trees, images: archived, indexes })
    }
}

/// Writes images of the image store as `docker save` does. The same images give the same bytes. Blocks.
///
/// `cancel` is looked at while writing. After an error the stream is not an archive.
pub fn save(
    stores: &Stores,
    images: &HeldImages,
    out: impl Write,
    cancel: &CancellationToken,
) -> Result<(), TransferError> {
    write(stores, &images.images, &images.indexes, out, cancel)
}

fn write(
    stores: &Stores,
    images: &[ArchiveImage],
    indexes: &[ArchiveIndex],
    out: impl Write,
    cancel: &CancellationToken,
) -> Result<(), TransferError> {
    let ids: BTreeSet<ImageId> =
        images.iter().map(|image| ImageId(Digest::sha256_of(&image.config))).collect();
    let mut archive = Archive {
        stores,
        tar: ArchiveWriter::new(out, cancel),
        layers: BTreeMap::new(),
        blobs: BTreeSet::new(),
        items: Vec::new(),
        manifests: Vec::new(),
        repositories: BTreeMap::new(),
    };
    archive.tar.directory("blobs", 0)?;
    archive.tar.directory("blobs/sha256", 0)?;
    for image in images {
        archive.image(image, &ids)?;
    }
    for index in indexes {
        archive.index(index)?;
    }
    archive.finish()
}

struct Archive<'a, W> {
    stores: &'a Stores,
    tar: ArchiveWriter<'a, W>,
    /// Lengths of the layers that are written.
    layers: BTreeMap<DiffId, u64>,
    blobs: BTreeSet<Digest>,
    items: Vec<Item>,
    manifests: Vec<Descriptor>,
    repositories: BTreeMap<String, BTreeMap<String, String>>,
}

impl<W: Write> Archive<'_, W> {
    fn image(&mut self, image: &ArchiveImage, ids: &BTreeSet<ImageId>) -> Result<(), TransferError> {
        let id = ImageId(Digest::sha256_of(&image.config));
        let document = ImageConfig::from_json(&image.config)
            .map_err(TransferError::document(format!("config of image {id}")))?;
        let mtime = created(&document);
        let mut sources = BTreeMap::new();
        let mut layers = Vec::with_capacity(image.layers.len());
        for layer in &image.layers {
            let size = self.layer(layer, mtime)?;
            let descriptor = Descriptor::new(MediaType::OCI_LAYER, layer.diff_id.digest().clone(), size);
            sources.insert(layer.diff_id.clone(), descriptor.clone());
            layers.push(descriptor);
        }
        self.blob(id.digest(), &image.config, mtime)?;
        let config = Descriptor::of(MediaType::OCI_CONFIG, &image.config);
        let manifest = Manifest::new(MediaType::OCI_MANIFEST, config, layers)
            .to_json()
            .map_err(TransferError::document("manifest"))?;
        let manifest_descriptor = Descriptor::of(MediaType::OCI_MANIFEST, &manifest);
        self.blob(&manifest_descriptor.digest, &manifest, 0)?;

        let names = tagged(&image.names)?;
        self.name(&manifest_descriptor, &names, image.layers.last().map(|layer| &layer.diff_id));
        self.items.push(Item {
            config: blob_path(id.digest()),
            repo_tags: (!names.is_empty()).then(|| names.iter().map(|(name, _)| name.familiar()).collect()),
            layers: image.layers.iter().map(|layer| blob_path(layer.diff_id.digest())).collect(),
            // A parent that is not in the archive would not be found where it is loaded.
            parent: image.parent.clone().filter(|parent| *parent != id && ids.contains(parent)),
            layer_sources: sources,
        });
        Ok(())
    }

    /// Writes all platforms' blobs as they are; `manifest.json`, which has no place for several, names those of one.
    fn index(&mut self, image: &ArchiveIndex) -> Result<(), TransferError> {
        let ArchiveIndex { index, record, names } = image;
        for manifest in &index.manifests {
            let parts =
                manifest.manifest.layers.iter().chain([&manifest.manifest.config, &manifest.descriptor]);
            for blob in parts {
                if self.blobs.insert(blob.digest.clone()) {
                    copy_blob(self.stores, &mut self.tar, blob)?;
                }
            }
        }
        if self.blobs.insert(index.descriptor.digest.clone()) {
            copy_blob(self.stores, &mut self.tar, &index.descriptor)?;
        }
        let names = tagged(names)?;
        self.name(&index.descriptor, &names, record.diff_ids.last());
        let is_own = |config: &Descriptor| config.digest == *record.id.digest();
        let Some(own) = index.manifests.iter().find(|manifest| is_own(&manifest.manifest.config)) else {
            return Ok(());
        };
        let layers = &own.manifest.layers;
        self.items.push(Item {
            config: blob_path(record.id.digest()),
            repo_tags: Some(names.iter().map(|(name, _)| name.familiar()).collect()),
            layers: layers.iter().map(|layer| blob_path(&layer.digest)).collect(),
            parent: None,
            layer_sources: record.diff_ids.iter().cloned().zip(layers.iter().cloned()).collect(),
        });
        Ok(())
    }

    /// Names a manifest or index in the documents that list names.
    fn name(&mut self, root: &Descriptor, names: &[(Reference, String)], top: Option<&DiffId>) {
        for (name, tag) in names {
            let mut named = root.clone();
            named.annotations = BTreeMap::from([
                ("io.containerd.image.name".to_owned(), name.to_string()),
                ("org.opencontainers.image.ref.name".to_owned(), tag.clone()),
            ]);
            self.manifests.push(named);
            if let Some(top) = top {
                let tags = self.repositories.entry(name.familiar_name()).or_default();
                tags.insert(tag.clone(), top.hex().to_owned());
            }
        }
        if names.is_empty() {
            self.manifests.push(root.clone());
        }
    }

    /// Writes a layer's tar, once, and returns its length.
    fn layer(&mut self, layer: &Layer, mtime: u64) -> Result<u64, TransferError> {
        if let Some(size) = self.layers.get(&layer.diff_id) {
            return Ok(*size);
        }
        let stores = self.stores;
        let measured = measure(stores, layer)?;
        let size = measured.size();
        let written =
            self.tar.stream(&blob_path(layer.diff_id.digest()), size, mtime, |out| match measured {
                Measured::Small(bytes) => out.write_all(&bytes).map_err(TransferError::io("write archive")),
                Measured::Large(_) => layer_tar(stores, layer, out),
            })?;
        if written != size {
            return Err(TransferError::WrongSize {
                layer: layer.diff_id.clone(),
                expected: size,
                actual: written,
            });
        }
        self.layers.insert(layer.diff_id.clone(), size);
        self.blobs.insert(layer.diff_id.digest().clone());
        Ok(size)
    }

    fn blob(&mut self, digest: &Digest, bytes: &[u8], mtime: u64) -> Result<(), TransferError> {
        if self.blobs.insert(digest.clone()) {
            self.tar.file(&blob_path(digest), bytes, mtime)?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), TransferError> {
        let index = Index::new(MediaType::OCI_INDEX, std::mem::take(&mut self.manifests));
        self.document("index.json", &index.to_json().map_err(TransferError::document("index"))?)?;
        let items = gojson::to_vec(&self.items).map_err(TransferError::document("manifest.json"))?;
        self.document("manifest.json", &[items.as_slice(), b"\n"].concat())?;
        self.document("oci-layout", br#"{"imageLayoutVersion": "1.0.0"}"#)?;
        if !self.repositories.is_empty() {
            let repositories =
                gojson::to_vec(&self.repositories).map_err(TransferError::document("repositories"))?;
            self.document("repositories", &[repositories.as_slice(), b"\n"].concat())?;
        }
        self.tar.finish()
    }

    fn document(&mut self, name: &str, bytes: &[u8]) -> Result<(), TransferError> {
        self.tar.file(name, bytes, 0)
    }
}

/// Where a blob is in a layout.
pub(super) fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

/// Names with their tags, each once. A name without a tag cannot be in an archive.
pub(super) fn tagged(names: &[Reference]) -> Result<Vec<(Reference, String)>, TransferError> {
    let mut seen = BTreeSet::new();
    let mut tagged = Vec::with_capacity(names.len());
    for name in names {
        let Some(tag) = name.tag() else {
            return Err(TransferError::Unsuitable {
                what: format!("{}: a name in an archive needs a tag", name.familiar()),
            });
        };
        if seen.insert(name) {
            tagged.push((name.clone(), tag.to_owned()));
        }
    }
    Ok(tagged)
}

enum Measured {
    Small(Vec<u8>),
    Large(u64),
}

impl Measured {
    fn size(&self) -> u64 {
        match self {
            Self::Small(bytes) => bytes.len() as u64,
            Self::Large(size) => *size,
        }
    }
}

/// Finds out how long a layer's tar is, which its header says before it comes.
fn measure(stores: &Stores, layer: &Layer) -> Result<Measured, TransferError> {
    let plain = |blob: &Descriptor| blob.media_type.layer_compression() == Some(LayerCompression::None);
    if let Some(blob) = stores.layers.blobs(&layer.diff_id)?.into_iter().find(plain) {
        return Ok(Measured::Large(blob.size));
    }
    let mut meter = Meter { bytes: Vec::new(), size: 0 };
    layer_tar(stores, layer, &mut meter)?;
    Ok(if meter.size == meter.bytes.len() as u64 {
        Measured::Small(meter.bytes)
    } else {
        Measured::Large(meter.size)
    })
}

/// Counts what is written, and keeps it as long as it is small.
struct Meter {
    bytes: Vec<u8>,
    size: u64,
}

impl Write for Meter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.size == self.bytes.len() as u64 && self.bytes.len() + data.len() <= SMALL_LAYER {
            self.bytes.extend_from_slice(data);
        } else {
            self.bytes = Vec::new();
        }
        self.size += data.len() as u64;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
