//! From a document to a cache that a build brings with it: links forwards, and results that are fetched when one is needed.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use futures::future::BoxFuture;
use lapstrake_builder_solver::{CacheStore, CacheStoreError, KeyId, Link};
use lapstrake_layerstore_oci::{Descriptor, DiffId, Digest, Timestamp};
use lapstrake_layerstore_store::Tree;

use crate::{CacheDocument, CacheError, document::RecordInput};

/// The field of an image's config that has the image's own cache records.
pub const INLINE_FIELD: &str = "moby.buildkit.cache.v0";

/// A layer that a document names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedLayer {
    /// Its blob.
    pub blob: Descriptor,
    /// What the blob unpacks to, where the manifest says it.
    pub diff_id: Option<DiffId>,
    /// When the layer was made, where that is said.
    pub created: Option<SystemTime>,
}

/// A result that a document names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedResult {
    /// Its layers, bottom first.
    pub layers: Vec<ImportedLayer>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// Gives the tree of layers. Blobs are fetched no earlier.
pub trait LayerSource: Send + Sync {
    /// A result's layers on each other as a tree; cancelled by dropping.
    fn tree<'a>(&'a self, result: &'a ImportedResult) -> BoxFuture<'a, Result<Tree, CacheStoreError>>;
}

/// A link of a brought cache, seen from where it leads to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BroughtLink<'a> {
    pub(crate) source: &'a KeyId,
    pub(crate) input: u32,
    /// What the op is called, with its output.
    pub(crate) name: &'a Digest,
    pub(crate) selector: Option<&'a Digest>,
}

/// Another builder's records, as a cache that a build brings with it.
pub struct ImportedCache {
    /// How keys lead to records.
    links: HashMap<(KeyId, u32, Digest, Option<Digest>), Vec<KeyId>>,
    /// Results of keys, newest first.
    results: HashMap<KeyId, Vec<Arc<ImportedResult>>>,
    layers: Arc<dyn LayerSource>,
}

impl ImportedCache {
    /// The records of a document. `layers` are those that can be had; a result that needs another is left out, as BuildKit does.
    pub fn new(
        document: &CacheDocument,
        layers: &HashMap<Digest, ImportedLayer>,
        source: Arc<dyn LayerSource>,
    ) -> Result<Self, CacheError> {
        static IMPORTS: AtomicU64 = AtomicU64::new(0);
        let import = IMPORTS.fetch_add(1, Ordering::Relaxed);
        let records = document.records();
        let mut cache = Self { links: HashMap::new(), results: HashMap::new(), layers: source };
        let keys: Vec<KeyId> = records
            .iter()
            .enumerate()
            .map(|(index, record)| match &record.digest {
                // A key that is not made of others is common to all builders.
                Some(digest) if record.inputs.is_empty() => KeyId::new(digest.as_str()),
                _ => KeyId::foreign(format_args!("{import}:{index}")),
            })
            .collect();
        for (record, target) in records.iter().zip(&keys) {
            let Some(digest) = &record.digest else { continue };
            for (input, alternatives) in (0_u32..).zip(&record.inputs) {
                for RecordInput { selector, link } in alternatives {
                    let selector = if selector.is_empty() { None } else { Some(Digest::parse(selector)) };
                    let selector = selector
                        .transpose()
                        .map_err(|error| CacheError::Records { why: error.to_string() })?;
                    let from = (keys[*link].clone(), input, digest.clone(), selector);
                    cache.links.entry(from).or_default().push(target.clone());
                }
            }
            let on_parents =
                record.results.iter().map(|result| (document.on_parents(result.layer), &result.created_at));
            let in_order = record.chains.iter().map(|chain| {
                // Checked when the document was read.
                let layers = chain.layers.iter().filter_map(|layer| usize::try_from(*layer).ok());
                (layers.collect(), &chain.created_at)
            });
            for (chain, created_at) in on_parents.chain(in_order) {
                let found: Option<Vec<_>> =
                    chain.into_iter().map(|layer| layers.get(document.blob(layer)).cloned()).collect();
                if let Some(layers) = found.filter(|layers| !layers.is_empty()) {
                    let result = ImportedResult { layers, created_at: created_at.clone() };
                    cache.results.entry(target.clone()).or_default().push(Arc::new(result));
                }
            }
        }
        for results in cache.results.values_mut() {
            results.sort_by_cached_key(|result| std::cmp::Reverse(result.created_at.to_time().ok()));
        }
        Ok(cache)
    }

    /// The newest result of a key.
    pub fn result(&self, key: &KeyId) -> Option<Arc<ImportedResult>> {
        self.results.get(key)?.first().cloned()
    }

    /// A result as a tree.
    pub async fn fetch(&self, result: &ImportedResult) -> Result<Tree, CacheStoreError> {
        self.layers.tree(result).await
    }

    /// All links backwards: what leads to each key.
    pub(crate) fn backwards(&self) -> HashMap<&KeyId, Vec<BroughtLink<'_>>> {
        let mut all: HashMap<&KeyId, Vec<BroughtLink<'_>>> = HashMap::new();
        for ((source, input, name, selector), targets) in &self.links {
            let link = BroughtLink { source, input: *input, name, selector: selector.as_ref() };
            for target in targets {
                all.entry(target).or_default().push(link);
            }
        }
        all
    }

    /// How many keys have results.
    pub fn len(&self) -> usize {
        self.results.len()
    }

    /// Whether nothing can be found here.
    pub fn is_empty(&self) -> bool {
        self.results.is_empty()
    }
}

impl CacheStore<Tree> for ImportedCache {
    fn fresh_key(&self) -> KeyId {
        // Nothing is ever saved here, so nothing has this key.
        KeyId::foreign("none")
    }

    fn linked(&self, from: &KeyId, link: &Link) -> Result<Vec<KeyId>, CacheStoreError> {
        let name = KeyId::root(&link.digest, link.output);
        self.linked_as(from, &name, link.input, link.selector.as_ref())
    }

    fn linked_as(
        &self,
        from: &KeyId,
        name: &KeyId,
        input: u32,
        selector: Option<&Digest>,
    ) -> Result<Vec<KeyId>, CacheStoreError> {
        let link = (from.clone(), input, Digest::parse(name.as_str())?, selector.cloned());
        Ok(self.links.get(&link).cloned().unwrap_or_default())
    }

    fn load<'a>(&'a self, key: &'a KeyId) -> BoxFuture<'a, Result<Option<Tree>, CacheStoreError>> {
        Box::pin(async move {
            let mut failed = None;
            for result in self.results.get(key).into_iter().flatten() {
                match self.layers.tree(result).await {
                    Ok(tree) => return Ok(Some(tree)),
                    Err(error) => failed = Some(error),
                }
            }
            failed.map_or(Ok(None), Err)
        })
    }

    fn save<'a>(
        &'a self,
        _: &'a KeyId,
        _: Vec<(KeyId, Link)>,
        _: Option<&'a Tree>,
    ) -> BoxFuture<'a, Result<(), CacheStoreError>> {
        // What a build makes is kept in the solver's own cache.
        Box::pin(async { Ok(()) })
    }
}

impl std::fmt::Debug for ImportedCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImportedCache")
            .field("links", &self.links.len())
            .field("results", &self.results.len())
            .finish_non_exhaustive()
    }
}
