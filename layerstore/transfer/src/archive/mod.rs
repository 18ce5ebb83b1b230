//! Images as archives: what `docker save` writes, and an OCI layout in a tar.

mod docker;
mod layout;
mod tar;

use lapstrake_layerstore_oci::{ImageConfig, ImageId, Reference};
use lapstrake_layerstore_store::{ImageRecord, Layer, Resource, Stores, Tree};

pub use docker::{HeldImages, save};
pub use layout::{LayoutContents, OCI_LAYOUT, layout_entries, write_oci_archive};

use crate::{TransferError, layers};

/// An image of the image store that is to be saved, and the names that it has in the archive.
#[derive(Debug, Clone)]
pub struct SaveImage {
    /// The image.
    pub record: ImageRecord,
    /// Its names: tagged references.
    pub names: Vec<Reference>,
}

/// An image that is to be written, whether the image store has it or not.
#[derive(Debug, Clone)]
pub(crate) struct ArchiveImage {
    /// The config's exact bytes.
    pub(crate) config: Vec<u8>,
    /// Its layers, bottom first. The caller holds them.
    pub(crate) layers: Vec<Layer>,
    /// Its names: tagged references.
    pub(crate) names: Vec<Reference>,
    /// The image that it was made from, where known.
    pub(crate) parent: Option<ImageId>,
}

/// A stored image's layers, and what holds them. Blocks.
pub(crate) fn stored_layers(
    stores: &Stores,
    record: &ImageRecord,
) -> Result<(Tree, Vec<Layer>), TransferError> {
    let tree = match &record.top {
        Some(top) => stores
            .hold(top)?
            .ok_or_else(|| lapstrake_layerstore_store::StoreError::not_found("snapshot", top))?,
        None => Tree::empty(),
    };
    let layers = layers(stores, &tree)?;
    for (layer, expected) in layers.iter().zip(&record.diff_ids) {
        if layer.diff_id != *expected {
            return Err(TransferError::WrongDiffId {
                expected: expected.clone(),
                actual: layer.diff_id.clone(),
            });
        }
    }
    if layers.len() != record.diff_ids.len() {
        let what = format!(
            "image {}: it has {} layers, and its config names {}",
            record.id,
            layers.len(),
            record.diff_ids.len()
        );
        return Err(TransferError::Unsuitable { what });
    }
    Ok((tree, layers))
}

/// Holds an image that is in the store; an error when it is there no more.
pub(crate) fn hold_image(
    stores: &Stores,
    record: &ImageRecord,
    lease: &lapstrake_layerstore_store::Lease,
) -> Result<(), TransferError> {
    let _guard = stores.leases.guard();
    lease.hold(Resource::Image(record.id.clone()));
    match stores.images.get(&record.id)? {
        Some(_) => Ok(()),
        None => Err(lapstrake_layerstore_store::StoreError::not_found("image", &record.id).into()),
    }
}

/// When an image says that it was made, in seconds since 1970; 0 when it does not say.
pub(crate) fn created(config: &ImageConfig) -> u64 {
    let time = config.created.as_ref().and_then(|created| created.to_time().ok());
    time.and_then(|time| u64::try_from(time.unix_timestamp()).ok()).unwrap_or(0)
}
