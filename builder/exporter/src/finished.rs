//! A result with its layers computed and its config filled in.

use lapstrake_layerstore_oci::{Descriptor, DiffId, Digest, ImageConfig, ImageId};
use lapstrake_layerstore_store::{Layer, Stores, Tree};
use lapstrake_layerstore_transfer::{LayerBlob, blob_content};
use time::OffsetDateTime;

use crate::{
    ExportError, ImageOptions, PlatformResult,
    config::{self, MadeLayer},
};

/// What a client says of an image itself, as an attribute of the output.
const CONFIG: &str = "containerimage.config";

/// A result with its layers computed and its config filled in.
pub(crate) struct Finished {
    pub(crate) id: ImageId,
    pub(crate) config: Vec<u8>,
    pub(crate) created: Option<String>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) tree: Tree,
    /// Its layers' blobs, when these are other layers than the tree's: eStargz' table of contents is a file more.
    pub(crate) blobs: Option<Vec<LayerBlob>>,
}

impl Finished {
    /// The layers that its config names.
    pub(crate) fn diff_ids(&self) -> Vec<DiffId> {
        match &self.blobs {
            Some(blobs) => blobs.iter().map(|blob| blob.diff_id.clone()).collect(),
            None => self.layers.iter().map(|layer| layer.diff_id.clone()).collect(),
        }
    }
}

/// Takes the config that the client gives for a result, if it gives one.
pub(crate) fn replace_config(result: &mut PlatformResult, options: &ImageOptions) -> Result<(), ExportError> {
    let own = format!("{CONFIG}/{}", result.platform.to_full_string());
    if let Some(json) = options.metadata.get(&own).or_else(|| options.metadata.get(CONFIG)) {
        result.config = ImageConfig::from_json(json.as_bytes())?;
    }
    Ok(())
}

/// Fills in a result's config. Its layers are those of its tree; its blobs, where it has some, may be of others. Blocks.
pub(crate) fn finish(
    stores: &Stores,
    result: PlatformResult,
    layers: Vec<Layer>,
    blobs: &[Descriptor],
    epoch: Option<i64>,
) -> Result<Finished, ExportError> {
    let unpacked: Vec<LayerBlob> = blobs
        .iter()
        .zip(&layers)
        .map(|(blob, layer)| LayerBlob {
            descriptor: blob.clone(),
            diff_id: blob_content(blob, &layer.diff_id),
            created: None,
        })
        .collect();
    let differs = unpacked.iter().zip(&layers).any(|(blob, layer)| blob.diff_id != layer.diff_id);
    let blobs = differs.then_some(unpacked);
    let mut finished = Finished {
        id: ImageId(Digest::sha256_of("")),
        config: Vec::new(),
        created: None,
        layers,
        tree: result.tree,
        blobs,
    };
    let mut made = Vec::with_capacity(finished.layers.len());
    for (layer, diff_id) in finished.layers.iter().zip(finished.diff_ids()) {
        let created = OffsetDateTime::from(stores.snapshots.stat(&layer.snapshot)?.created);
        made.push(MadeLayer { diff_id, created });
    }
    let config = config::finish(result.config, &made, epoch, result.base.as_ref())?;
    finished.created = config.created.as_ref().map(|created| created.as_str().to_owned());
    finished.config = config.to_json()?;
    finished.id = ImageId(Digest::sha256_of(&finished.config));
    Ok(finished)
}
