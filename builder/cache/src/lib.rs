//! The build cache: what was built, under which keys, and the directories that `RUN --mount=type=cache` keeps.
//!
//! ```text
//!   solver ── CacheStore ──► links, results ┐
//!   ops ───── record ──────► entries        ├─ tables in metadata.db; trees in the snapshotter
//!   RUN ───── mount ───────► cache mounts   ┘
//!   system df ◄── usage      builder prune ──► prune ┬─► (the collector frees what nobody holds)
//!                            buildkitd.toml ──► gc ──┘
//!   links ── export ──► CacheDocument (BuildKit's) ── import ──► ImportedCache: a CacheStore that a build brings with it
//! ```
//!
//! The cache is a [`Holder`]: what it has an entry for is not collected.
//!
//! This crate is not for: computing keys (`builder/llb`, `builder/files`), or deciding what to look up (`builder/solver`).

#![forbid(unsafe_code)]

mod contexts;
mod document;
mod entries;
mod error;
mod export;
mod filter;
mod gc;
mod import;
mod keys;
mod links;
mod mounts;
mod older;
mod prune;
mod schema;

pub use contexts::PreviousContext;
pub use document::{CacheDocument, MAX_DOCUMENT};
pub use entries::{CacheEntry, RecordKind};
pub use error::CacheError;
pub use export::{ExportedRecords, ExportedResult, ExportedResults};
pub use filter::EntryFilter;
pub use gc::{DiskSpace, GcCaps, GcRule, default_rules};
pub use import::{INLINE_FIELD, ImportedCache, ImportedLayer, ImportedResult, LayerSource};
pub use mounts::{CacheMount, Sharing};
pub use older::OlderNames;
pub use prune::{Disk, PruneBound, PruneRequest, Pruned};

use std::{collections::HashMap, sync::Arc};

use lapstrake_layerstore_store::{Holder, Metadata, Resource, SnapshotKey, StoreError, Stores};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// The build cache of one store.
pub struct BuildCache {
    metadata: Metadata,
    stores: Stores,
    // Cache mounts that are in use, by id; see `mounts`.
    busy: Mutex<HashMap<String, mounts::Busy>>,
    // What cache mounts' directories took when they were last measured.
    measured: Mutex<HashMap<SnapshotKey, entries::Measured>>,
    // Something was added.
    grown: Notify,
    known_links: links::KnownLinks,
}

impl BuildCache {
    /// Opens the cache's tables in `metadata`, the database of `stores`.
    pub fn open(metadata: Metadata, stores: Stores) -> Result<Arc<Self>, CacheError> {
        metadata.migrate("build-cache", schema::STEPS)?;
        Ok(Arc::new(Self {
            metadata,
            stores,
            busy: Mutex::default(),
            measured: Mutex::default(),
            grown: Notify::new(),
            known_links: links::KnownLinks::default(),
        }))
    }

    /// Waits until something was added to the cache since the last call. For one caller: who keeps the cache within its bounds.
    pub async fn grown(&self) {
        self.grown.notified().await;
    }
}

impl Holder for BuildCache {
    fn holds(&self) -> Result<Vec<Resource>, StoreError> {
        entries::held(&self.metadata)
    }
}

impl std::fmt::Debug for BuildCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BuildCache").field("mounts in use", &self.busy.lock().len()).finish_non_exhaustive()
    }
}
