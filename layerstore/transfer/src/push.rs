//! From the image store to a registry.

use std::collections::{BTreeMap, BTreeSet};

use lapstrake_layerstore_oci::{Descriptor, Digest, Reference};
use lapstrake_layerstore_registry::{ProgressFn, PushSource, Pushed, RegistryClient};
use lapstrake_layerstore_store::{ImageName, ImageRecord, Stores};
use tokio_util::sync::CancellationToken;

use crate::{ImageManifest, ManifestOptions, TransferError, image_manifest, manifest::hold_blob};

/// Pushes a stored image under a tag, and puts the name that the registry now has for it (`name@digest`) on it, as Moby does.
///
/// Layers are compressed when they have no compressed blob yet, and those blobs are kept. Cancelled by `cancel` or by dropping the future; the
/// registry then has at most blobs that nothing names.
pub async fn push(
    stores: &Stores,
    client: &RegistryClient,
    record: &ImageRecord,
    reference: &Reference,
    progress: &ProgressFn,
    cancel: &CancellationToken,
) -> Result<Pushed, TransferError> {
    let prepared = {
        let (stores, record, reference, cancel) =
            (stores.clone(), record.clone(), reference.clone(), cancel.clone());
        TransferError::blocking(move || {
            let manifest = image_manifest(&stores, &record, &ManifestOptions::default(), &cancel)?;
            let mounts = mounts(&stores, &manifest, &reference)?;
            Ok((manifest, mounts))
        })
    };
    let work = async {
        let (manifest, mounts) = prepared.await?;
        let root = Descriptor { platform: None, ..manifest.descriptor.clone() };
        let source =
            PushSource { content: std::sync::Arc::clone(&stores.content), root: root.clone(), mounts };
        let pushed = client.push(reference, &source, progress).await?;
        let (stores, id) = (stores.clone(), record.id.clone());
        let name = ImageName {
            reference: pushed.reference.clone().trimmed().with_digest(pushed.descriptor.digest.clone()),
            target: Some(root),
        };
        TransferError::blocking(move || {
            let tagged = stores.images.tag(&id, &name);
            drop(manifest);
            Ok(tagged?)
        })
        .await?;
        Ok(pushed)
    };
    tokio::select! {
        result = work => result,
        () = cancel.cancelled() => Err(TransferError::Canceled),
    }
}

/// Other repositories of the same registry that have some of the manifest's blobs: those that images with the same layers were pulled from or
/// pushed to.
fn mounts(
    stores: &Stores,
    manifest: &ImageManifest,
    reference: &Reference,
) -> Result<BTreeMap<Digest, Vec<Reference>>, TransferError> {
    let wanted: BTreeSet<&Digest> = manifest.manifest.layers.iter().map(|layer| &layer.digest).collect();
    let mut mounts: BTreeMap<Digest, Vec<Reference>> = BTreeMap::new();
    for image in stores.images.list()? {
        let lenders: BTreeSet<Reference> = image
            .names
            .iter()
            .filter(|name| name.target.is_some() && name.reference.domain() == reference.domain())
            .map(|name| name.reference.clone().trimmed())
            .filter(|name| name.path() != reference.path())
            .collect();
        let Some(digest) = image.manifest.filter(|_| !lenders.is_empty()) else { continue };
        let lease = stores.leases.create();
        if hold_blob(stores, &digest, &lease)?.is_none() {
            continue;
        }
        let bytes = stores.content.read_small(&digest, 4 << 20)?;
        let Ok(other) = lapstrake_layerstore_oci::Manifest::from_json(&bytes) else { continue };
        for layer in other.layers.iter().filter(|layer| wanted.contains(&layer.digest)) {
            let known = mounts.entry(layer.digest.clone()).or_default();
            known
                .extend(lenders.iter().filter(|lender| !known.contains(lender)).cloned().collect::<Vec<_>>());
        }
    }
    Ok(mounts)
}
