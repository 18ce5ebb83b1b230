//! From the image store to a registry.

use std::collections::{BTreeMap, BTreeSet};

use lapstrake_layerstore_oci::{Descriptor, Digest, Platform, Reference};
use lapstrake_layerstore_registry::{ProgressFn, PushSource, Pushed, RegistryClient};
use lapstrake_layerstore_store::{ImageName, ImageRecord, Stores};
use tokio_util::sync::CancellationToken;

use crate::{
    ImageManifest, ManifestOptions, TransferError, image_manifest, manifest::hold_blob, stored_index,
    stored_manifest,
};

/// Pushes what a tag means, and puts the name that the registry now has for it (`name@digest`) on the image, as Moby does: the index with all
/// platforms, when the tag has one that is here as a whole; else the image's manifest. Of an index, `platform` chooses one manifest.
///
/// Layers are compressed when they have no compressed blob yet, and those blobs are kept. Cancelled by `cancel` or by dropping the future; the
/// registry then has at most blobs that nothing names.
pub async fn push(
    stores: &Stores,
    client: &RegistryClient,
    record: &ImageRecord,
    reference: &Reference,
    platform: Option<&Platform>,
    progress: &ProgressFn,
    cancel: &CancellationToken,
) -> Result<Pushed, TransferError> {
    let prepared = {
        let (stores, record, reference, cancel) =
            (stores.clone(), record.clone(), reference.clone(), cancel.clone());
        let platform = platform.cloned();
        TransferError::blocking(move || {
            let (root, manifests) = what(&stores, &record, &reference, platform.as_ref(), &cancel)?;
            let mounts = lenders(&stores, &manifests, &reference)?;
            Ok((root, manifests, mounts))
        })
    };
    let work = async {
        let (root, held, mounts) = prepared.await?;
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
            drop(held);
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

/// What a tag means, and the manifests that it names, held.
fn what(
    stores: &Stores,
    record: &ImageRecord,
    reference: &Reference,
    platform: Option<&Platform>,
    cancel: &CancellationToken,
) -> Result<(Descriptor, Vec<ImageManifest>), TransferError> {
    let single = |manifest: ImageManifest| {
        (Descriptor { platform: None, ..manifest.descriptor.clone() }, vec![manifest])
    };
    if let Some(descriptor) = record.index_of(reference) {
        if let Some(platform) = platform {
            if let Some(manifest) = stored_manifest(stores, descriptor, platform)? {
                return Ok(single(manifest));
            }
        } else if let Some(index) = stored_index(stores, descriptor)? {
            return Ok((index.descriptor, index.manifests));
        }
    }
    Ok(single(image_manifest(stores, record, &ManifestOptions::default(), cancel)?))
}

/// What a blob is kept with: the repositories of a registry that it was pulled from, between commas. containerd's label.
const SOURCE: &str = "containerd.io/distribution.source.";

/// A layer's descriptor that says where it was pulled from.
pub(crate) fn lent(blob: &Descriptor, from: &Reference) -> Descriptor {
    let mut blob = blob.clone();
    blob.annotations.insert(format!("{SOURCE}{}", from.domain()), from.path().to_owned());
    blob
}

/// The repositories that a kept blob was pulled from.
pub fn blob_lenders(blob: &Descriptor) -> Vec<Reference> {
    let mut lenders = Vec::new();
    for (key, paths) in &blob.annotations {
        let Some(domain) = key.strip_prefix(SOURCE) else { continue };
        let names = paths.split(',').filter_map(|path| Reference::parse(&format!("{domain}/{path}")).ok());
        lenders.extend(names);
    }
    lenders
}

/// Other repositories of the same registry that have some of the manifests' blobs: those that these were pulled from, and those that images with the same
/// layers were pulled from or pushed to. Blocks.
pub fn lenders(
    stores: &Stores,
    manifests: &[ImageManifest],
    reference: &Reference,
) -> Result<BTreeMap<Digest, Vec<Reference>>, TransferError> {
    let layers = manifests.iter().flat_map(|manifest| &manifest.manifest.layers);
    let wanted: BTreeSet<&Digest> = layers.map(|layer| &layer.digest).collect();
    let mut mounts: BTreeMap<Digest, Vec<Reference>> = BTreeMap::new();
    for digest in &wanted {
        for diff_id in stores.layers.blob_layers(digest)? {
            let kept = stores.layers.blobs(&diff_id)?;
            let kept = kept.iter().filter(|blob| blob.digest == **digest);
            let mut lenders: Vec<Reference> = kept.flat_map(blob_lenders).collect();
            lenders.retain(|name| name.domain() == reference.domain() && name.path() != reference.path());
            if !lenders.is_empty() {
                mounts.insert((*digest).clone(), lenders);
            }
        }
    }
    for image in stores.images.list()? {
        let lenders: BTreeSet<Reference> = image
            .names
            .iter()
            .filter(|name| name.reference.digest().is_some() && name.target.is_some())
            .filter(|name| name.reference.domain() == reference.domain())
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
