//! An OCI layout in a tar stream, of manifests that are in the content store.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
};

use lapstrake_layerstore_oci::{Descriptor, Index, MediaType, Reference};
use lapstrake_layerstore_store::Stores;
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

/// Writes manifests with all their blobs, and an index of them if there is one, as an OCI layout; returns what the layout names. The same manifests give
/// the same bytes. Blocks.
///
/// `annotations` are added to each entry of the index (`org.opencontainers.image.created`). `cancel` is looked at while writing. After an error the stream is
/// not an archive.
pub fn write_oci_archive(
    stores: &Stores,
    contents: &LayoutContents,
    names: &[Reference],
    annotations: &BTreeMap<String, String>,
    out: impl Write,
    cancel: &CancellationToken,
) -> Result<Descriptor, TransferError> {
    let mut tar = ArchiveWriter::new(out, cancel);
    tar.directory("blobs", 0)?;
    tar.directory("blobs/sha256", 0)?;
    let mut written = BTreeSet::new();
    let (manifests, root) = match contents {
        LayoutContents::Manifest(one) => {
            (std::slice::from_ref(&**one), Descriptor { platform: None, ..one.descriptor.clone() })
        }
        LayoutContents::Index(index) => (index.manifests.as_slice(), index.descriptor.clone()),
    };
    for image in manifests {
        let parts = image.manifest.layers.iter().chain([&image.manifest.config, &image.descriptor]);
        for blob in parts {
            if written.insert(blob.digest.clone()) {
                copy_blob(stores, &mut tar, blob)?;
            }
        }
    }
    if let LayoutContents::Index(index) = contents {
        copy_blob(stores, &mut tar, &index.descriptor)?;
    }
    let mut entries = Vec::new();
    for (name, tag) in tagged(names)? {
        let mut entry = Descriptor { annotations: annotations.clone(), ..root.clone() };
        entry.annotations.insert("io.containerd.image.name".to_owned(), name.to_string());
        entry.annotations.insert("org.opencontainers.image.ref.name".to_owned(), tag);
        entries.push(entry);
    }
    if entries.is_empty() {
        entries.push(Descriptor { annotations: annotations.clone(), ..root.clone() });
    }
    let index =
        Index::new(MediaType::OCI_INDEX, entries).to_json().map_err(TransferError::document("index"))?;
    tar.file("index.json", &index, 0)?;
    tar.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0)?;
    tar.finish()?;
    Ok(root)
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
