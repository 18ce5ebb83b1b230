//! From a registry to the image store.

use std::sync::Arc;

use lapstrake_layerstore_oci::{Digest, ImageId, Platform, Reference};
use lapstrake_layerstore_registry::{ProgressFn, RegistryClient};
use lapstrake_layerstore_store::{ImageName, NewImage, StoreError, Stores};
use tokio_util::sync::CancellationToken;

use crate::{PulledImage, TransferError, UnpackEvent, pull_image};

/// What a pull left in the image store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullOutcome {
    /// The image.
    pub id: ImageId,
    /// The name that was pulled, with its tag or digest.
    pub reference: Reference,
    /// What the registry names by it: the index's digest, or the manifest's.
    pub digest: Digest,
    /// Whether the name meant another image here before, or none (`Downloaded newer image`, else `Image is up to date`).
    pub is_newer: bool,
}

/// Pulls an image into the image store, under its name and under `name@digest`, in one transaction.
///
/// Cancelled by `cancel` or by dropping the future: the names then mean what they meant before.
pub async fn pull(
    stores: &Stores,
    client: &RegistryClient,
    reference: &Reference,
    platform: &Platform,
    progress: &ProgressFn,
    unpacking: Arc<dyn Fn(usize, UnpackEvent) + Send + Sync>,
    cancel: &CancellationToken,
) -> Result<PullOutcome, TransferError> {
    let resolved = tokio::select! {
        resolved = client.resolve(reference) => resolved?,
        () = cancel.cancelled() => return Err(TransferError::Canceled),
    };
    let reference = resolved.reference.clone();
    let image = pull_image(stores, client, &resolved, platform, progress, unpacking, cancel).await?;
    let stores = stores.clone();
    TransferError::blocking(move || store(&stores, &reference, image)).await
}

fn store(stores: &Stores, reference: &Reference, image: PulledImage) -> Result<PullOutcome, TransferError> {
    let PulledImage { documents, tree, lease } = image;
    let before = named(stores, reference)?;
    let pulled = |reference: Reference| ImageName { reference, target: Some(documents.root.clone()) };
    let mut names = vec![pulled(reference.clone().trimmed().with_digest(documents.root.digest.clone()))];
    if reference.digest().is_none() {
        names.push(pulled(reference.clone()));
    }
    if stores.images.get(&documents.id)?.is_none() {
        // The files are durable before the record that names them is.
        stores.snapshots.sync()?;
    }
    let id = stores.images.put(NewImage {
        config: documents.config_bytes.to_vec(),
        top: tree.snapshot().cloned(),
        diff_ids: documents.config.rootfs.diff_ids.clone(),
        parent: None,
        manifest: Some(documents.manifest_descriptor.digest.clone()),
        names,
    })?;
    drop(lease);
    Ok(PullOutcome {
        is_newer: before.as_ref() != Some(&id),
        id,
        reference: reference.clone(),
        digest: documents.root.digest,
    })
}

/// The image that a name means now.
pub(crate) fn named(stores: &Stores, reference: &Reference) -> Result<Option<ImageId>, TransferError> {
    match stores.images.find(&reference.to_string()) {
        Ok(image) => Ok(Some(image.id)),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
