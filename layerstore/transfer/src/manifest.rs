//! Manifests of images that have none: compresses layers when somebody needs them compressed, once.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    sync::Arc,
};

use lapstrake_layerstore_diff::Compression;
use lapstrake_layerstore_oci::{
    Descriptor, Digest, ImageConfig, LayerCompression, Manifest, MediaType, gojson,
};
use lapstrake_layerstore_store::{ImageRecord, Layer, Lease, NewImage, Resource, StoreError, Stores};
use tokio_util::sync::CancellationToken;

use crate::{
    TransferError,
    archive::{hold_image, stored_layers},
    cancellable::Cancellable,
    gzip::gzip,
    layer_tar,
};

/// Larger manifests are refused where they come in.
pub(crate) const MAX_MANIFEST: u64 = 4 << 20;
/// zstd's own default, which is BuildKit's too.
const ZSTD_LEVEL: i32 = 3;

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

/// Annotation of an eStargz blob: the digest of its table of contents.
pub(crate) const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";

/// How a layer's blob is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum BlobCompression {
    /// A plain tar.
    Uncompressed,
    /// gzip.
    #[default]
    Gzip,
    /// gzip that can be read file by file, with a table of contents at its end (eStargz).
    Estargz,
    /// zstd.
    Zstd,
}

impl BlobCompression {
    /// By BuildKit's name.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "uncompressed" => Some(Self::Uncompressed),
            "gzip" => Some(Self::Gzip),
            "estargz" => Some(Self::Estargz),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// Whether a blob is such a one already.
    pub fn made(self, blob: &Descriptor) -> bool {
        let has_contents = blob.annotations.contains_key(TOC_DIGEST);
        blob.media_type.layer_compression() == Some(self.layer_compression())
            && (self.layer_compression() != LayerCompression::Gzip || has_contents == (self == Self::Estargz))
    }

    /// What its media type tells.
    pub fn layer_compression(self) -> LayerCompression {
        match self {
            Self::Uncompressed => LayerCompression::None,
            Self::Gzip | Self::Estargz => LayerCompression::Gzip,
            Self::Zstd => LayerCompression::Zstd,
        }
    }
}

impl From<LayerCompression> for BlobCompression {
    fn from(compression: LayerCompression) -> Self {
        match compression {
            LayerCompression::None => Self::Uncompressed,
            LayerCompression::Gzip => Self::Gzip,
            LayerCompression::Zstd => Self::Zstd,
        }
    }
}

/// What blobs of layers are to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlobOptions {
    /// How layers are compressed that have no blob.
    pub compression: BlobCompression,
    /// How hard: up to 9 for gzip, up to 22 for zstd; `None` is each one's own default.
    pub level: Option<u32>,
    /// Whether a blob that a layer has already, in another compression, is of no use.
    pub force: bool,
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
    let lease = Arc::new(stores.leases.create());
    let document = ImageConfig::from_json(config).map_err(TransferError::document("image config"))?;
    let blobs = layer_blobs(stores, layers, &options.layers, options.form, &lease, cancel)?;
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

/// Blobs of layers, which the caller holds; the lease holds the blobs. Those that are made now are kept with their layers. Blocks.
pub fn layer_blobs(
    stores: &Stores,
    layers: &[Layer],
    options: &BlobOptions,
    form: ManifestForm,
    lease: &Lease,
    cancel: &CancellationToken,
) -> Result<Vec<Descriptor>, TransferError> {
    let blob = |layer| Ok(described(&layer_blob(stores, layer, options, lease, cancel)?, form));
    layers.iter().map(blob).collect()
}

/// A layer's blob, made when there is none that fits.
fn layer_blob(
    stores: &Stores,
    layer: &Layer,
    options: &BlobOptions,
    lease: &Lease,
    cancel: &CancellationToken,
) -> Result<Descriptor, TransferError> {
    let BlobOptions { compression, level, force } = *options;
    let is_wanted = |blob: &Descriptor| compression.made(blob);
    let mut blobs = stores.layers.blobs(&layer.diff_id)?;
    blobs.sort_by_key(|blob| !is_wanted(blob));
    for blob in blobs {
        let fits = blob.media_type.is_layer()
            && (!force || is_wanted(&blob))
            && !blob.media_type.is_nondistributable();
        if fits && hold_blob(stores, &blob.digest, lease)? == Some(blob.size) {
            return Ok(blob);
        }
    }
    let mut writer = stores.content.writer()?;
    let compressed = compress(&mut Cancellable { inner: &mut writer, cancel }, compression, level, |out| {
        layer_tar(stores, layer, out)
    });
    if cancel.is_cancelled() {
        return Err(TransferError::Canceled);
    }
    compressed?;
    let (digest, size) = (writer.digest(), writer.offset());
    // Held before it is there, so that collection never sees it unheld.
    lease.hold(Resource::Blob(digest.clone()));
    writer.commit(Some(&digest), Some(size))?;
    let media_type = layer_media_type(compression.layer_compression(), ManifestForm::Docker);
    let blob = Descriptor::new(media_type, digest, size);
    stores.layers.record_blob(&layer.diff_id, &blob)?;
    Ok(blob)
}

fn compress(
    out: &mut dyn Write,
    compression: BlobCompression,
    level: Option<u32>,
    produce: impl FnOnce(&mut dyn Write) -> Result<(), TransferError>,
) -> Result<(), TransferError> {
    const DOING: &str = "compress a layer";
    match compression {
        BlobCompression::Uncompressed => produce(out),
        BlobCompression::Gzip | BlobCompression::Estargz => {
            let level = level.map_or_else(flate2::Compression::default, flate2::Compression::new);
            gzip(out, level, |plain| produce(plain).map_err(Produced::Transfer)).map_err(
                |error| match error {
                    Produced::Transfer(error) => error,
                    Produced::Io(error) => TransferError::io(DOING)(error),
                },
            )
        }
        BlobCompression::Zstd => {
            let level = level.and_then(|level| i32::try_from(level).ok()).unwrap_or(ZSTD_LEVEL);
            let mut encoder =
                zstd::stream::write::Encoder::new(out, level).map_err(TransferError::io(DOING))?;
            // One worker beside this thread; the bytes do not depend on how many there are.
            encoder.multithread(1).map_err(TransferError::io(DOING))?;
            produce(&mut encoder)?;
            encoder.finish().map(drop).map_err(TransferError::io(DOING))
        }
    }
}

/// An error of making a layer, or of compressing it.
enum Produced {
    Transfer(TransferError),
    Io(io::Error),
}

impl From<io::Error> for Produced {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A blob's descriptor in a manifest of this form: the type alone changes, and nothing is carried along from where it was pulled.
fn described(blob: &Descriptor, form: ManifestForm) -> Descriptor {
    let compression = blob.media_type.layer_compression().unwrap_or(LayerCompression::None);
    Descriptor::new(layer_media_type(compression, form), blob.digest.clone(), blob.size)
}

/// The media type of a layer that is compressed so.
pub fn layer_media_type(compression: LayerCompression, form: ManifestForm) -> MediaType {
    match (form, compression) {
        (ManifestForm::Docker, LayerCompression::None) => MediaType::DOCKER_LAYER,
        (ManifestForm::Docker, LayerCompression::Gzip) => MediaType::DOCKER_LAYER_GZIP,
        (ManifestForm::Docker, LayerCompression::Zstd) => MediaType::DOCKER_LAYER_ZSTD,
        (ManifestForm::Oci, LayerCompression::None) => MediaType::OCI_LAYER,
        (ManifestForm::Oci, LayerCompression::Gzip) => MediaType::OCI_LAYER_GZIP,
        (ManifestForm::Oci, LayerCompression::Zstd) => MediaType::OCI_LAYER_ZSTD,
    }
}

/// The media type of a blob that is compressed so, where there is one.
pub(crate) fn media_type_of(compression: Compression) -> Option<MediaType> {
    let compression = match compression {
        Compression::None => LayerCompression::None,
        Compression::Gzip => LayerCompression::Gzip,
        Compression::Zstd => LayerCompression::Zstd,
        Compression::Bzip2 | Compression::Xz => return None,
    };
    Some(layer_media_type(compression, ManifestForm::Docker))
}
