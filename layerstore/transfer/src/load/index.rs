//! Indexes of an archive that are whole: all that they name is there.

use std::sync::Arc;

use lapstrake_layerstore_oci::{Descriptor, Digest, ImageId, Index, Manifest, Reference};
use lapstrake_layerstore_store::Stores;

use super::{
    MAX_DOCUMENT,
    archive::Archive,
    layout::{blob, blob_path, name_of},
};
use crate::{ImageIndex, ImageManifest, TransferError};

/// An index whose blobs are in the content store, and the names that it has in the archive.
pub(super) struct WholeIndex {
    pub(super) index: ImageIndex,
    pub(super) names: Vec<Reference>,
}

impl WholeIndex {
    /// Whether it names an image.
    pub(super) fn has(&self, id: &ImageId) -> bool {
        self.index.manifests.iter().any(|manifest| manifest.manifest.config.digest == *id.digest())
    }
}

/// The indexes that the archive's `index.json` names, if there is one, and that are there with all that they name; their blobs are then in the content store.
///
/// One that is not there as a whole is nothing wrong: archives with one platform of several are common. Bytes that are not what their name promises are.
pub(super) fn whole(stores: &Stores, archive: &Archive) -> Result<Vec<WholeIndex>, TransferError> {
    let Some(file) = archive.find(b"index.json") else { return Ok(Vec::new()) };
    let bytes = file.document(stores, "index.json", MAX_DOCUMENT)?;
    let outer = Index::from_json(&bytes).map_err(TransferError::document("invalid archive: index.json"))?;
    let mut found: Vec<WholeIndex> = Vec::new();
    for entry in outer.manifests.iter().filter(|entry| entry.media_type.is_index()) {
        let name = name_of(entry);
        if let Some(known) = found.iter_mut().find(|known| known.index.descriptor.digest == entry.digest) {
            known.names.extend(name.filter(|name| !known.names.contains(name)));
            continue;
        }
        if let Some(index) = take(stores, archive, entry)? {
            found.push(WholeIndex { index, names: name.into_iter().collect() });
        }
    }
    Ok(found)
}

fn take(stores: &Stores, archive: &Archive, entry: &Descriptor) -> Result<Option<ImageIndex>, TransferError> {
    let is_there = |digest: &Digest| archive.find(blob_path(digest).as_bytes()).is_some();
    let read = |descriptor: &Descriptor| {
        blob(stores, archive, descriptor, true)?.document(stores, descriptor.digest.as_str(), MAX_DOCUMENT)
    };
    if !is_there(&entry.digest) {
        return Ok(None);
    }
    let index = Index::from_json(&read(entry)?)
        .map_err(TransferError::document(format!("invalid archive: index {}", entry.digest)))?;
    let mut manifests = Vec::with_capacity(index.manifests.len());
    for manifest in index.manifests {
        if !manifest.media_type.is_manifest() || !is_there(&manifest.digest) {
            return Ok(None);
        }
        let document = Manifest::from_json(&read(&manifest)?)
            .map_err(TransferError::document(format!("invalid archive: manifest {}", manifest.digest)))?;
        if !document.layers.iter().chain([&document.config]).all(|blob| is_there(&blob.digest)) {
            return Ok(None);
        }
        let lease = Arc::clone(&archive.lease);
        manifests.push(ImageManifest { descriptor: manifest, manifest: document, lease });
    }
    // Documents after what they name.
    for manifest in &manifests {
        let parts = manifest.manifest.layers.iter().chain([&manifest.manifest.config, &manifest.descriptor]);
        for part in parts {
            blob(stores, archive, part, true)?.into_blob(stores, &archive.lease)?;
        }
    }
    blob(stores, archive, entry, true)?.into_blob(stores, &archive.lease)?;
    let descriptor = Descriptor::new(entry.media_type.clone(), entry.digest.clone(), entry.size);
    Ok((!manifests.is_empty()).then(|| ImageIndex {
        descriptor,
        manifests,
        lease: Arc::clone(&archive.lease),
    }))
}
