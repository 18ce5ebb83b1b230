//! Manifests of images that have none, made when somebody needs them, and kept.

use std::{collections::BTreeMap, sync::Arc};

use lapstrake_layerstore_oci::{Descriptor, Digest, ImageConfig, Manifest, MediaType, gojson};
use lapstrake_layerstore_store::{ImageRecord, Layer, Lease, NewImage, Resource, StoreError, Stores};
use tokio_util::sync::CancellationToken;

use crate::{
    BlobOptions, TransferError,
    archive::{hold_image, stored_layers},
    blobs::layer_blobs,
};

/// Larger manifests are refused where they come in.
pub(crate) const MAX_MANIFEST: u64 = 4 << 20;

/// Whose media types a manifest has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ManifestForm {
    /// Docker's schema 2, as Moby pushes it.
    Docker,
    /// OCI's.
    Oci,
}

/// How a manifest is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestOptions {
    /// Its media types.
    pub form: ManifestForm,
    /// What its layers' blobs are to be.
    pub layers: BlobOptions,
    /// Facts in it.
    pub annotations: BTreeMap<String, String>,
    /// What its lines are indented with: the same image has the same digest only if this is the same.
    pub indent: &'static str,
}

impl ManifestOptions {
    /// What BuildKit's exporters make, in this form.
    pub fn of_buildkit(form: ManifestForm, layers: BlobOptions) -> Self {
        Self { form, layers, annotations: BTreeMap::new(), indent: "  " }
    }
}

impl Default for ManifestOptions {
    /// What Moby pushes.
    fn default() -> Self {
        let layers = BlobOptions { force: true, ..BlobOptions::default() };
        Self { form: ManifestForm::Docker, layers, annotations: BTreeMap::new(), indent: "   " }
    }
}

/// A manifest that is in the content store with all its blobs, which its lease holds.
#[derive(Debug, Clone)]
pub struct ImageManifest {
    /// What names it, with its platform.
    pub descriptor: Descriptor,
    /// What it says.
    pub manifest: Manifest,
    /// Holds it, the config and the layers' blobs.
    pub lease: Arc<Lease>,
}

/// The manifest of a stored image: the one that it was pulled with, when all that it names is here; else one is made, and kept with the
/// image. Blocks.
///
/// `cancel` is looked at while compressing.
pub fn image_manifest(
    stores: &Stores,
    record: &ImageRecord,
    options: &ManifestOptions,
    cancel: &CancellationToken,
) -> Result<ImageManifest, TransferError> {
    let image = stores.leases.create();
    hold_image(stores, record, &image)?;
    if let Some(digest) = &record.manifest
        && let Some(kept) = kept_manifest(stores, record, digest)?
    {
        return Ok(kept);
    }
    let (_tree, layers) = stored_layers(stores, record)?;
    let made = make_manifest(stores, &record.config, &layers, options, cancel)?;
    stores.images.put(NewImage {
        config: record.config.clone(),
        top: record.top.clone(),
        diff_ids: record.diff_ids.clone(),
        parent: None,
        manifest: Some(made.descriptor.digest.clone()),
        names: Vec::new(),
    })?;
    Ok(made)
}

/// Makes a manifest for a config and its layers, which the caller holds. Blobs that the layers have already are used. Blocks.
pub fn make_manifest(
    stores: &Stores,
    config: &[u8],
    layers: &[Layer],
    options: &ManifestOptions,
    cancel: &CancellationToken,
) -> Result<ImageManifest, TransferError> {
    let lease = stores.leases.create();
    let blobs = layer_blobs(stores, layers, &options.layers, options.form, &lease, cancel)?;
    write_manifest(stores, config, blobs, options, lease)
}

/// Makes a manifest for a config and the blobs of its layers, which the lease holds. Blocks.
pub fn write_manifest(
    stores: &Stores,
    config: &[u8],
    blobs: Vec<Descriptor>,
    options: &ManifestOptions,
    lease: Lease,
) -> Result<ImageManifest, TransferError> {
    let lease = Arc::new(lease);
    let document = ImageConfig::from_json(config).map_err(TransferError::document("image config"))?;
    let (config_type, manifest_type) = match options.form {
        ManifestForm::Docker => (MediaType::DOCKER_CONFIG, MediaType::DOCKER_MANIFEST),
        ManifestForm::Oci => (MediaType::OCI_CONFIG, MediaType::OCI_MANIFEST),
    };
    stores.content.write_small_held(config, &lease)?;
    let mut manifest = Manifest::new(manifest_type.clone(), Descriptor::of(config_type, config), blobs);
    manifest.annotations.clone_from(&options.annotations);
    let bytes =
        gojson::to_vec_indent(&manifest, options.indent).map_err(TransferError::document("manifest"))?;
    stores.content.write_small_held(&bytes, &lease)?;
    let descriptor = Descriptor::of(manifest_type, &bytes).with_platform(document.platform().normalized());
    Ok(ImageManifest { descriptor, manifest, lease })
}

/// The manifest that an image has, if all that it names is here.
fn kept_manifest(
    stores: &Stores,
    record: &ImageRecord,
    digest: &Digest,
) -> Result<Option<ImageManifest>, TransferError> {
    let lease = Arc::new(stores.leases.create());
    if hold_blob(stores, digest, &lease)?.is_none() {
        return Ok(None);
    }
    let bytes = stores.content.read_small(digest, MAX_MANIFEST)?;
    let Ok(manifest) = Manifest::from_json(&bytes) else {
        tracing::warn!(%digest, image = %record.id, "the image's manifest is none; another one is made");
        return Ok(None);
    };
    if manifest.config.digest != *record.id.digest() {
        return Ok(None);
    }
    for layer in &manifest.layers {
        // Foreign layers are not ours to have; whoever needs them fetches them from their vendor.
        let foreign = layer.media_type.is_nondistributable() && !layer.urls.is_empty();
        if !foreign && hold_blob(stores, &layer.digest, &lease)?.is_none_or(|size| size != layer.size) {
            return Ok(None);
        }
    }
    if manifest.config.size != record.config.len() as u64 {
        return Ok(None);
    }
    stores.content.write_small_held(&record.config, &lease)?;
    let media_type = manifest.media_type.clone().unwrap_or(MediaType::OCI_MANIFEST);
    let config = ImageConfig::from_json(&record.config).map_err(TransferError::document("image config"))?;
    let descriptor = Descriptor::new(media_type, digest.clone(), bytes.len() as u64)
        .with_platform(config.platform().normalized());
    Ok(Some(ImageManifest { descriptor, manifest, lease }))
}

/// Holds a blob if it is there, and returns its length.
pub(crate) fn hold_blob(stores: &Stores, digest: &Digest, lease: &Lease) -> Result<Option<u64>, StoreError> {
    // Looked up and held without a gap: collection waits.
    let _guard = stores.leases.guard();
    let info = stores.content.info(digest)?;
    if info.is_some() {
        lease.hold(Resource::Blob(digest.clone()));
    }
    Ok(info.map(|info| info.size))
}
