//! Caches that a build brings with it: records in the configs of images (`--cache-from`).

use std::sync::Arc;

use base64::Engine as _;
use futures::future::BoxFuture;
use lapstrake_builder_cache::{INLINE_FIELD, ImportedCache, LayerSource, RecordKind};
use lapstrake_builder_dockerfile::{ImageOrigin, ImageQuery};
use lapstrake_builder_llb::{ResolveMode, pb};
use lapstrake_builder_progress::{Progress, Stream};
use lapstrake_builder_solver::{CacheStore, CacheStoreError};
use lapstrake_builder_source::SourceContext;
use lapstrake_layerstore_oci::{ImageConfig, Platform, Reference};
use lapstrake_layerstore_store::{StoreError, Stores, Tree};
use tokio_util::sync::CancellationToken;

use crate::{Engine, EngineError, StepError, engine::internal_vertex, ops::Workshop, scope::BuildScope};

impl Engine {
    /// The caches that images carry. One that cannot be had, or carries none, is told to the client and is no failure, as with BuildKit.
    pub(crate) async fn imports(
        &self,
        references: &[Reference],
        scope: &Arc<BuildScope>,
        progress: &Progress,
        cancel: &CancellationToken,
    ) -> Vec<Arc<dyn CacheStore<Tree>>> {
        let all = references.iter().map(|reference| async move {
            let vertex =
                internal_vertex(progress, format!("importing cache manifest from {}", reference.familiar()));
            let cx = self.source_context(scope, vertex.clone(), cancel);
            match vertex.track(self.import(reference, cx)).await {
                Ok(Some(cache)) => Some(cache),
                Ok(None) => {
                    let notice =
                        format!("{} carries no cache records ({INLINE_FIELD})\n", reference.familiar());
                    vertex.log(Stream::Stderr, notice.into_bytes());
                    None
                }
                Err(_) => None,
            }
        });
        futures::future::join_all(all).await.into_iter().flatten().collect()
    }

    async fn import(
        &self,
        reference: &Reference,
        cx: SourceContext,
    ) -> Result<Option<Arc<dyn CacheStore<Tree>>>, EngineError> {
        let query = ImageQuery {
            origin: ImageOrigin::registry(ResolveMode::Default),
            reference: reference.clone().with_default_tag(),
            platform: Platform::host(),
        };
        let fact = self.workshop().sources.resolve_image(&cx, &query).await?;
        let config = ImageConfig::from_json(&fact.config).map_err(|error| EngineError::CacheSource {
            name: reference.familiar(),
            why: error.to_string(),
        })?;
        let Some(records) = config.extra.get(INLINE_FIELD) else { return Ok(None) };
        // BuildKit has it as a Go byte slice, which is base64 in JSON.
        let damaged = |why: String| EngineError::CacheSource { name: reference.familiar(), why };
        let text = records.as_str().ok_or_else(|| damaged(format!("{INLINE_FIELD} is not a string")))?;
        let json = base64::engine::general_purpose::STANDARD
            .decode(text)
            .map_err(|error| damaged(format!("{INLINE_FIELD}: {error}")))?;
        let pinned = match &fact.digest {
            Some(digest) => fact.reference.clone().with_digest(digest.clone()),
            None => fact.reference.clone(),
        };
        let count = config.rootfs.diff_ids.len();
        let layers = ImageLayers { workshop: Arc::clone(self.workshop()), reference: pinned, count, cx };
        Ok(Some(Arc::new(ImportedCache::parse(&json, count, Arc::new(layers))?)))
    }
}

/// The layers of an image, fetched when the first of them is needed.
struct ImageLayers {
    workshop: Arc<Workshop>,
    reference: Reference,
    count: usize,
    cx: SourceContext,
}

impl ImageLayers {
    async fn fetch(&self, layer: usize) -> Result<Tree, StepError> {
        let op = pb::SourceOp {
            identifier: format!("docker-image://{}", self.reference),
            ..pb::SourceOp::default()
        };
        let source = self.workshop.sources.open(&op, None)?;
        source.pin(&self.cx).await?;
        let top = source.fetch(&self.cx).await?;
        let (workshop, above) = (Arc::clone(&self.workshop), self.count - 1 - layer);
        let description = format!("cache of {}, layer {layer}", self.reference.familiar());
        StepError::blocking(move || -> Result<Tree, StepError> {
            let tree = ancestor(&workshop.stores, top, above)?;
            // With an entry of its own, the solver can keep it for builds that do not bring this cache.
            workshop.cache.record(&tree, RecordKind::Regular, &description)?;
            Ok(tree)
        })
        .await
    }
}

/// The tree that is `above` layers below another.
fn ancestor(stores: &Stores, top: Tree, above: usize) -> Result<Tree, StoreError> {
    let mut tree = top;
    for _ in 0..above {
        let name = tree.snapshot().cloned();
        let parent = match &name {
            Some(name) => stores.snapshots.stat(name)?.parent,
            None => None,
        };
        // `tree` holds its parents until the next one is held itself.
        tree = match parent {
            Some(parent) => stores
                .hold(&parent)?
                .ok_or_else(|| StoreError::NotFound { kind: "snapshot", id: parent.to_string() })?,
            None => Tree::empty(),
        };
    }
    Ok(tree)
}

impl LayerSource for ImageLayers {
    fn tree(&self, layer: usize) -> BoxFuture<'_, Result<Tree, CacheStoreError>> {
        Box::pin(async move { Ok(self.fetch(layer).await?) })
    }
}
