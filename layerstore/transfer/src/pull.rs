//! From a registry to a tree.

use std::sync::Arc;

use lapstrake_layerstore_oci::{ChainId, DiffId, Platform};
use lapstrake_layerstore_registry::{ProgressFn, PullTarget, RegistryClient, Resolved, ResolvedImage};
use lapstrake_layerstore_store::{Lease, Stores, Tree};
use tokio_util::sync::CancellationToken;

use crate::{LayerBlob, TransferError, UnpackEvent, push::lent, unpack};

/// An image that is in the stores: documents, blobs and trees. It is no image of the image store yet; dropping it lets go of everything
/// that nobody else holds.
#[derive(Debug, Clone)]
pub struct PulledImage {
    /// Its documents.
    pub documents: ResolvedImage,
    /// Its files.
    pub tree: Tree,
    /// Holds the documents and blobs.
    pub lease: Arc<Lease>,
}

/// Pulls an image for a platform and unpacks it. Layers that are unpacked already are not fetched.
///
/// Cancelled by `cancel` or by dropping the future; layers that are whole then stay until they are collected.
pub async fn pull_image(
    stores: &Stores,
    client: &RegistryClient,
    resolved: &Resolved,
    platform: &Platform,
    progress: &ProgressFn,
    unpacking: Arc<dyn Fn(usize, UnpackEvent) + Send + Sync>,
    cancel: &CancellationToken,
) -> Result<PulledImage, TransferError> {
    let lease = Arc::new(stores.leases.create());
    let target = PullTarget { content: Arc::clone(&stores.content), lease: Arc::clone(&lease) };
    let work = async {
        let documents = client.resolved_image(resolved, platform, &target, progress).await?;
        // What is unpacked now is held until the unpacking below has found it again.
        let (unpacked, _present) = unpacked(stores, &documents.config.rootfs.diff_ids).await?;
        client.layers(&documents, &target, &|layer| layer.index >= unpacked, progress).await?;
        let blobs: Vec<LayerBlob> = documents
            .manifest
            .layers
            .iter()
            .zip(&documents.config.rootfs.diff_ids)
            .map(|(descriptor, diff_id)| LayerBlob {
                descriptor: lent(descriptor, &documents.reference),
                diff_id: diff_id.clone(),
                created: None,
            })
            .collect();
        let (stores, cancel) = (stores.clone(), cancel.clone());
        let tree = TransferError::blocking(move || unpack(&stores, &blobs, &cancel, &*unpacking)).await?;
        Ok::<_, TransferError>((documents, tree))
    };
    let (documents, tree) = tokio::select! {
        result = work => result?,
        () = cancel.cancelled() => return Err(TransferError::Canceled),
    };
    Ok(PulledImage { documents, tree, lease })
}

/// How many layers, from the bottom, are unpacked already, and what holds them.
pub async fn unpacked(stores: &Stores, diff_ids: &[DiffId]) -> Result<(usize, Tree), TransferError> {
    let chains = ChainId::all_of(diff_ids);
    let stores = stores.clone();
    TransferError::blocking(move || {
        for (index, chain) in chains.iter().enumerate().rev() {
            if let Some(layer) = stores.layers.by_chain(chain)?
                && let Some(tree) = stores.hold(&layer.snapshot)?
            {
                return Ok((index + 1, tree));
            }
        }
        Ok((0, Tree::empty()))
    })
    .await
}
