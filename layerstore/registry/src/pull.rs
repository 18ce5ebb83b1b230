//! Pulling: an image's documents, then its layers side by side.

use std::sync::Arc;

use futures::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture, stream};
use lapstrake_layerstore_oci::{ChainId, Descriptor, DiffId, Digest, Platform, Reference};
use lapstrake_layerstore_store::{BlobInfo, ContentStore, Lease, Resource};

use crate::{
    Item, ProgressFn, RegistryClient, RegistryError, ResolvedImage, TransferStatus, progress::Reporter,
    sink::blocking,
};

/// Where pulled blobs go, and what keeps them from being collected.
#[derive(Clone)]
pub struct PullTarget {
    /// The store.
    pub content: Arc<dyn ContentStore>,
    /// Holds every blob of the pull, from before it is looked for.
    pub lease: Arc<Lease>,
}

impl PullTarget {
    /// Holds a blob and looks it up. The guard keeps collection from deciding in between, and may wait for it, so this
    /// happens on a blocking thread.
    pub(crate) async fn hold(&self, digest: &Digest) -> Result<Option<BlobInfo>, RegistryError> {
        let (target, digest) = (self.clone(), digest.clone());
        blocking("look up blob", move || {
            let _guard = target.lease.leases().guard();
            target.lease.hold(Resource::Blob(digest.clone()));
            target.content.info(&digest)
        })
        .await
    }
}

impl std::fmt::Debug for PullTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PullTarget").field("lease", &self.lease).finish_non_exhaustive()
    }
}

/// A layer about to be fetched, by all its names.
#[derive(Debug, Clone)]
pub struct LayerQuery<'a> {
    /// Its place, bottom first.
    pub index: usize,
    /// The blob.
    pub descriptor: &'a Descriptor,
    /// Its uncompressed digest.
    pub diff_id: &'a DiffId,
    /// It and all below it.
    pub chain_id: &'a ChainId,
}

/// A pulled image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// Its documents.
    pub image: ResolvedImage,
    /// For each layer, whether its blob is in the store (`false`: the caller had no need of it).
    pub fetched: Vec<bool>,
}

impl RegistryClient {
    /// Pulls an image for a platform: documents first, then all layers that `needed` asks for, a few at a time.
    ///
    /// Blobs that the store has are not fetched. Every blob's digest and size are verified. On error or when the future
    /// is dropped, the blobs that arrived whole stay; nothing half is published.
    pub async fn pull(
        &self,
        reference: &Reference,
        platform: &Platform,
        target: &PullTarget,
        needed: &(dyn Fn(&LayerQuery<'_>) -> bool + Sync),
        progress: &ProgressFn,
    ) -> Result<Pulled, RegistryError> {
        let image = self.image(reference, platform, target, progress).await?;
        let fetched = self.layers(&image, target, needed, progress).await?;
        Ok(Pulled { image, fetched })
    }

    /// Fetches an image's layers, those that `needed` asks for; tells for each layer whether it did.
    ///
    /// `needed` is called for all layers before the first is fetched, bottom first, and must not block.
    pub async fn layers(
        &self,
        image: &ResolvedImage,
        target: &PullTarget,
        needed: &(dyn Fn(&LayerQuery<'_>) -> bool + Sync),
        progress: &ProgressFn,
    ) -> Result<Vec<bool>, RegistryError> {
        let diff_ids = &image.config.rootfs.diff_ids;
        let chains = ChainId::all_of(diff_ids);
        let layers = image.manifest.layers.iter().zip(diff_ids).zip(&chains).enumerate();
        let mut fetched = Vec::with_capacity(diff_ids.len());
        let mut jobs = Vec::new();
        for (index, ((descriptor, diff_id), chain_id)) in layers {
            let report = Reporter::new(progress, Item::Layer(index), descriptor);
            let wanted = needed(&LayerQuery { index, descriptor, diff_id, chain_id });
            fetched.push(wanted);
            if wanted {
                report.say(TransferStatus::Waiting);
                jobs.push((descriptor, report));
            } else {
                report.say(TransferStatus::Exists);
            }
        }
        let downloads: Vec<BoxFuture<'_, _>> = jobs
            .iter()
            .map(|(d, report)| self.fetch_reported(&image.reference, d, target, report).boxed())
            .collect();
        at_most(self.shared.options.concurrent_downloads, downloads).await?;
        Ok(fetched)
    }
}

/// Runs transfers, a few at a time, until all are done or one fails (which drops the others).
pub(crate) async fn at_most(
    concurrent: usize,
    transfers: Vec<BoxFuture<'_, Result<(), RegistryError>>>,
) -> Result<(), RegistryError> {
    stream::iter(transfers).buffer_unordered(concurrent.max(1)).try_collect::<()>().await
}
