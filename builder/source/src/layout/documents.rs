//! An image's documents: from a digest to what the image is on a platform.

use std::sync::Arc;

use lapstrake_layerstore_oci::{
    Descriptor, ImageConfig, Index, Manifest, MediaType, Platform, PlatformMatcher,
};
use lapstrake_layerstore_store::Lease;
use lapstrake_layerstore_transfer::LayerBlob;

use super::LayoutSpec;
use crate::{SourceContext, SourceError, image::document_type, sources::Shared};

/// Longest manifest or index.
const MAX_MANIFEST: u64 = 4 << 20;
/// Longest config.
const MAX_CONFIG: u64 = 8 << 20;
/// Indexes within indexes followed.
const MAX_NESTING: usize = 4;

/// An image's documents; all are in the store.
pub(super) struct Documents {
    manifest: Manifest,
    config: ImageConfig,
    /// The config's bytes.
    pub(super) config_bytes: Vec<u8>,
    /// Holds them.
    _lease: Arc<Lease>,
}

impl Documents {
    /// Asks the client for them. The root is always asked for: whoever names a digest has to have it, whatever others left in the store.
    pub(super) async fn find(
        shared: &Arc<Shared>,
        spec: &LayoutSpec,
        cx: &SourceContext,
    ) -> Result<Self, SourceError> {
        let client = spec.client(shared, cx).await?;
        let unsuitable = |why: String| SourceError::Unsuitable { origin: spec.origin(), why };
        let lease = Arc::new(shared.stores.leases.create());
        let size = client.size(&spec.digest).await?;
        let root = Descriptor::new(MediaType::new(""), spec.digest.clone(), size);
        let mut bytes = client.document(&root, MAX_MANIFEST, &lease).await?;
        for _ in 0..MAX_NESTING {
            let media_type = document_type(&bytes)
                .ok_or_else(|| unsuitable("contains neither an index nor a manifest".to_owned()))?;
            if media_type.is_index() {
                let index =
                    Index::from_json(&bytes).map_err(|error| unsuitable(format!("index: {error}")))?;
                let chosen = choose(&index, &spec.platform).map_err(unsuitable)?;
                bytes = client.known_document(chosen, MAX_MANIFEST, &lease).await?;
                continue;
            }
            let manifest =
                Manifest::from_json(&bytes).map_err(|error| unsuitable(format!("manifest: {error}")))?;
            let described = &manifest.config.media_type;
            if !described.is_config() {
                return Err(unsuitable(format!("is no image: its config is {described:?}")));
            }
            let config_bytes = client.known_document(&manifest.config, MAX_CONFIG, &lease).await?;
            let config = ImageConfig::from_json(&config_bytes)
                .map_err(|error| unsuitable(format!("config: {error}")))?;
            let (layers, ids) = (manifest.layers.len(), config.rootfs.diff_ids.len());
            if layers != ids {
                return Err(unsuitable(format!("the manifest has {layers} layers, its config {ids}")));
            }
            return Ok(Self { manifest, config, config_bytes, _lease: lease });
        }
        Err(unsuitable("indexes are nested too deeply".to_owned()))
    }

    /// Its layers, bottom first.
    pub(super) fn layers(&self) -> Vec<LayerBlob> {
        let layers = self.manifest.layers.iter().zip(&self.config.rootfs.diff_ids);
        layers
            .map(|(descriptor, diff_id)| LayerBlob {
                descriptor: descriptor.clone(),
                diff_id: diff_id.clone(),
                created: None,
            })
            .collect()
    }
}

/// The best manifest for a platform; or else the first that names no platform, as hand-made indexes have them.
fn choose<'a>(index: &'a Index, platform: &Platform) -> Result<&'a Descriptor, String> {
    let is_document = |d: &&Descriptor| d.media_type.is_manifest() || d.media_type.is_index();
    let nameless = || {
        let mut manifests = index.manifests.iter().filter(is_document);
        manifests.find(|d| d.platform.is_none() && d.artifact_type.is_none())
    };
    PlatformMatcher::only(platform).choose(&index.manifests).or_else(nameless).ok_or_else(|| {
        let named = index.manifests.iter().filter_map(|d| d.platform.as_ref()).map(Platform::to_full_string);
        let named: Vec<String> = named.filter(|p| p != "unknown/unknown").take(32).collect();
        format!(
            "no match for platform {} in manifest (it has {})",
            platform.to_full_string(),
            named.join(", ")
        )
    })
}
