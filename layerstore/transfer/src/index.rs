//! Several platforms' images under one name: their manifests, and the index that names those.
//!
//! The image store has images of one platform. A name that was built for several points at the image that fits this machine best, and its *target* is the
//! index ([`lapstrake_layerstore_store::ImageName::of_index`]): it keeps the manifests of all platforms with their blobs, and whoever pushes, saves or builds from
//! the name finds them.

use std::{collections::BTreeMap, sync::Arc};

use lapstrake_layerstore_oci::{Descriptor, Index, Manifest, MediaType, Platform, PlatformMatcher, gojson};
use lapstrake_layerstore_store::{Lease, Stores};

use crate::{
    ImageManifest, ManifestForm, TransferError,
    manifest::{MAX_MANIFEST, hold_blob},
};

/// An index that is in the content store with all that it names, which its lease holds.
#[derive(Debug, Clone)]
pub struct ImageIndex {
    /// What names it.
    pub descriptor: Descriptor,
    /// Its manifests, in its order.
    pub manifests: Vec<ImageManifest>,
    /// Holds it and all below it.
    pub lease: Arc<Lease>,
}

impl ImageIndex {
    /// The manifest for a platform.
    pub fn choose(&self, platform: &Platform) -> Option<&ImageManifest> {
        let entries: Vec<Descriptor> =
            self.manifests.iter().map(|manifest| manifest.descriptor.clone()).collect();
        let chosen = PlatformMatcher::only(platform).choose(&entries)?;
        self.manifests.iter().find(|manifest| manifest.descriptor == *chosen)
    }

    /// The manifest that stands for all: this machine's, or else the first.
    pub fn representative(&self) -> Option<&ImageManifest> {
        self.choose(&Platform::host()).or_else(|| self.manifests.first())
    }
}

/// Makes an index of manifests that are in the content store, with annotations of its own. Blocks.
pub fn make_index(
    stores: &Stores,
    manifests: Vec<ImageManifest>,
    form: ManifestForm,
    annotations: BTreeMap<String, String>,
) -> Result<ImageIndex, TransferError> {
    let lease = Arc::new(stores.leases.create());
    let media_type = match form {
        ManifestForm::Docker => MediaType::DOCKER_MANIFEST_LIST,
        ManifestForm::Oci => MediaType::OCI_INDEX,
    };
    let entries = manifests.iter().map(|manifest| manifest.descriptor.clone()).collect();
    let mut index = Index::new(media_type.clone(), entries);
    index.annotations = annotations;
    // Indented as BuildKit does, so that the same images have the same digest.
    let bytes = gojson::to_vec_indent(&index, "  ").map_err(TransferError::document("index"))?;
    // After what it names.
    stores.content.write_small_held(&bytes, &lease)?;
    Ok(ImageIndex { descriptor: Descriptor::of(media_type, &bytes), manifests, lease })
}

/// An index with all that it names, if all of that is here; else `None`. Blocks.
pub fn stored_index(stores: &Stores, descriptor: &Descriptor) -> Result<Option<ImageIndex>, TransferError> {
    let lease = Arc::new(stores.leases.create());
    let Some(index) = read_index(stores, descriptor, &lease)? else { return Ok(None) };
    let mut manifests = Vec::with_capacity(index.manifests.len());
    for entry in index.manifests {
        let Some(manifest) = hold_manifest(stores, &entry, &lease)? else { return Ok(None) };
        manifests.push(ImageManifest { descriptor: entry, manifest, lease: Arc::clone(&lease) });
    }
    let found = ImageIndex { descriptor: descriptor.clone(), manifests, lease };
    Ok((!found.manifests.is_empty()).then_some(found))
}

/// The manifest of an index for a platform, if all that it names is here, whether the others are or not. Blocks.
pub fn stored_manifest(
    stores: &Stores,
    descriptor: &Descriptor,
    platform: &Platform,
) -> Result<Option<ImageManifest>, TransferError> {
    let lease = Arc::new(stores.leases.create());
    let Some(index) = read_index(stores, descriptor, &lease)? else { return Ok(None) };
    let Some(entry) = PlatformMatcher::only(platform).choose(&index.manifests) else { return Ok(None) };
    let manifest = hold_manifest(stores, entry, &lease)?;
    Ok(manifest.map(|manifest| ImageManifest { descriptor: entry.clone(), manifest, lease }))
}

fn read_index(
    stores: &Stores,
    descriptor: &Descriptor,
    lease: &Lease,
) -> Result<Option<Index>, TransferError> {
    if !descriptor.media_type.is_index() || hold_blob(stores, &descriptor.digest, lease)?.is_none() {
        return Ok(None);
    }
    let bytes = stores.content.read_small(&descriptor.digest, MAX_MANIFEST)?;
    match Index::from_json(&bytes) {
        Ok(index) => Ok(Some(index)),
        Err(error) => {
            tracing::warn!(digest = %descriptor.digest, %error, "an image's index is none");
            Ok(None)
        }
    }
}

/// Holds a manifest and its blobs; `None` when any is not here.
fn hold_manifest(
    stores: &Stores,
    entry: &Descriptor,
    lease: &Lease,
) -> Result<Option<Manifest>, TransferError> {
    let is_here = |blob: &Descriptor| {
        Ok::<_, TransferError>(hold_blob(stores, &blob.digest, lease)? == Some(blob.size))
    };
    if !entry.media_type.is_manifest() || !is_here(entry)? {
        return Ok(None);
    }
    let Ok(manifest) = Manifest::from_json(&stores.content.read_small(&entry.digest, MAX_MANIFEST)?) else {
        return Ok(None);
    };
    for blob in manifest.layers.iter().chain([&manifest.config]) {
        // Foreign layers are not ours to have; whoever needs them fetches them from their vendor.
        let foreign = blob.media_type.is_nondistributable() && !blob.urls.is_empty();
        if !foreign && !is_here(blob)? {
            return Ok(None);
        }
    }
    Ok(Some(manifest))
}
