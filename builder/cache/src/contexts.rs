//! Clients' directories, as they were when they were last sent.

use std::time::SystemTime;

use lapstrake_layerstore_store::{SnapshotName, StoreError, Tree};
use rusqlite::OptionalExtension;

use crate::{BuildCache, CacheError, RecordKind, entries};

/// What a client's directory was.
#[derive(Debug, Clone)]
pub struct PreviousContext {
    /// Its files.
    pub tree: Tree,
    /// The listing that was remembered with it.
    pub listing: Vec<u8>,
}

impl BuildCache {
    /// What the directory `shared_key` was when it was last sent, if that is still here. Blocks.
    pub fn previous_context(&self, shared_key: &str) -> Result<Option<PreviousContext>, CacheError> {
        let found: Option<(String, Vec<u8>)> = self.metadata.read(|db| {
            db.prepare_cached("SELECT snapshot, listing FROM cache_context WHERE shared_key = ?1")
                .and_then(|mut select| {
                    select.query_row([shared_key], |row| Ok((row.get(0)?, row.get(1)?))).optional()
                })
                .map_err(StoreError::metadata("look up a context"))
        })?;
        let Some((snapshot, listing)) = found else { return Ok(None) };
        let tree = self.stores.hold(&SnapshotName::new(snapshot))?;
        Ok(tree.map(|tree| PreviousContext { tree, listing }))
    }

    /// Notes that a remembered directory was found to be what it was. Blocks.
    pub fn context_used(&self, tree: &Tree) -> Result<(), CacheError> {
        Ok(entries::touch(&self.metadata, tree)?)
    }

    /// Remembers what the directory `shared_key` is now, in place of what it was: the former tree goes when nobody holds it. Blocks.
    pub fn remember_context(
        &self,
        shared_key: &str,
        tree: &Tree,
        listing: &[u8],
        description: &str,
    ) -> Result<(), CacheError> {
        let Some(name) = tree.snapshot() else { return Ok(()) };
        let now = entries::nanos(SystemTime::now());
        self.metadata.write_lazily(|txn| {
            let failed = StoreError::metadata("remember a context");
            let change = || -> rusqlite::Result<()> {
                txn.prepare_cached(
                    "INSERT INTO cache_entry (snapshot, kind, description, created, used, uses)
                     VALUES (?1, ?2, ?3, ?4, ?4, 0) ON CONFLICT DO NOTHING",
                )?
                .execute((name.as_str(), RecordKind::SourceLocal.as_str(), description, now))?;
                txn.prepare_cached(
                    "DELETE FROM cache_entry
                      WHERE snapshot = (SELECT snapshot FROM cache_context WHERE shared_key = ?1) AND snapshot <> ?2",
                )?
                .execute((shared_key, name.as_str()))?;
                txn.prepare_cached(
                    "INSERT OR REPLACE INTO cache_context (shared_key, snapshot, listing) VALUES (?1, ?2, ?3)",
                )?
                .execute((shared_key, name.as_str(), listing))?;
                Ok(())
            };
            change().map_err(failed)
        })?;
        Ok(())
    }
}
