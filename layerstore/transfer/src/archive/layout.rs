//! An OCI layout in a tar stream, of manifests that are in the content store.

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

use lapstrake_layerstore_oci::{Descriptor, Index, MediaType, Reference, gojson};
use lapstrake_layerstore_store::Stores;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{
    docker::{blob_path, tagged},
    tar::ArchiveWriter,
};
use crate::{ImageIndex, ImageManifest, TransferError};

/// What a layout holds.
#[derive(Debug, Clone)]
pub enum LayoutContents {
    /// An image of one platform.
    Manifest(Box<ImageManifest>),
    /// Images of several platforms.
    Index(Box<ImageIndex>),
}

impl LayoutContents {
    /// All blobs, each once, what names a blob after it.
    pub fn blobs(&self) -> Vec<Descriptor> {
        let manifests = match self {
            Self::Manifest(one) => std::slice::from_ref(&**one),
            Self::Index(index) => index.manifests.as_slice(),
        };
        let (mut seen, mut blobs) = (BTreeSet::new(), Vec::new());
        let parts = manifests.iter().flat_map(|image| {
            image.manifest.layers.iter().chain([&image.manifest.config, &image.descriptor])
        });
        let index = match self {
            Self::Manifest(_) => None,
            Self::Index(index) => Some(&index.descriptor),
        };
        for blob in parts.chain(index) {
            if seen.insert(blob.digest.clone()) {
                blobs.push(blob.clone());
            }
        }
        blobs
    }
}

/// The entries of a layout's index for `root`: one for each of its names, which have tags.
pub fn layout_entries(root: &Descriptor, names: &[Reference]) -> Result<Vec<Descriptor>, TransferError> {
    let mut entries = Vec::new();
    for (name, tag) in tagged(names)? {
        let mut entry = root.clone();
        entry.annotations.insert("io.containerd.image.name".to_owned(), name.to_string());
        entry.annotations.insert("org.opencontainers.image.ref.name".to_owned(), tag);
        entries.push(entry);
    }
    if entries.is_empty() {
        entries.push(root.clone());
    }
    Ok(entries)
}

/// Writes manifests with all their blobs, and an index of them if there is one, as an OCI layout in a tar stream. The same manifests give the same bytes.
/// Blocks.
///
/// `root` is what the layout's index says of them, once for each name. With `docker`, a `manifest.json` is added by which `docker load` of any age takes an
/// image. `cancel` is looked at while writing. After an error the stream is not an archive.
pub fn write_oci_archive(
    stores: &Stores,
    contents: &LayoutContents,
    root: &Descriptor,
    names: &[Reference],
    docker: bool,
    out: impl Write,
    cancel: &CancellationToken,
) -> Result<(), TransferError> {
    let mut tar = ArchiveWriter::new(out, cancel);
    tar.directory("blobs", 0)?;
    tar.directory("blobs/sha256", 0)?;
    for blob in contents.blobs() {
        copy_blob(stores, &mut tar, &blob)?;
    }
    let entries = layout_entries(root, names)?;
    let index =
        Index::new(MediaType::OCI_INDEX, entries).to_json().map_err(TransferError::document("index"))?;
    tar.file("index.json", &index, 0)?;
    if let LayoutContents::Manifest(image) = contents
        && docker
    {
        tar.file("manifest.json", &docker_item(image, names)?, 0)?;
    }
    tar.file("oci-layout", OCI_LAYOUT, 0)?;
    tar.finish()
}

/// The file that says that a directory is a layout.
pub const OCI_LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// One image in `manifest.json`, as containerd writes it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerItem {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn docker_item(image: &ImageManifest, names: &[Reference]) -> Result<Vec<u8>, TransferError> {
    let names: Vec<String> = tagged(names)?.iter().map(|(name, _)| name.familiar()).collect();
    let item = DockerItem {
        config: blob_path(&image.manifest.config.digest),
        repo_tags: (!names.is_empty()).then_some(names),
        layers: image.manifest.layers.iter().map(|layer| blob_path(&layer.digest)).collect(),
    };
    gojson::to_vec(&[item]).map_err(TransferError::document("manifest.json"))
}

pub(super) fn copy_blob<W: Write>(
    stores: &Stores,
    tar: &mut ArchiveWriter<'_, W>,
    blob: &Descriptor,
) -> Result<(), TransferError> {
    let mut reader = stores.content.reader(&blob.digest)?;
    let actual = reader.size();
    if actual != blob.size {
        let (digest, expected) = (blob.digest.clone(), blob.size);
        return Err(lapstrake_layerstore_store::StoreError::SizeMismatch { digest, expected, actual }.into());
    }
    tar.stream(&blob_path(&blob.digest), blob.size, 0, |out| {
        io::copy(&mut reader, out).map(drop).map_err(TransferError::io("copy a blob"))
    })?;
    Ok(())
}
