//! The solver's view: links between keys, and results of keys.

use futures::future::BoxFuture;
use lapstrake_builder_solver::{CacheStore, CacheStoreError, KeyId, Link};
use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_store::{Metadata, SnapshotName, StoreError, Stores, Tree, random_id};

use crate::{BuildCache, CacheError, entries};

impl CacheStore<Tree> for BuildCache {
    fn fresh_key(&self) -> KeyId {
        KeyId::new(random_id())
    }

    fn linked(&self, from: &KeyId, link: &Link) -> Result<Vec<KeyId>, CacheStoreError> {
        let look_up = || look_up(&self.metadata, from, link);
        Ok(self.known_links.get_or_ask(from, link, look_up)?)
    }

    fn load<'a>(&'a self, key: &'a KeyId) -> BoxFuture<'a, Result<Option<Tree>, CacheStoreError>> {
        let (metadata, stores, key) = (self.metadata.clone(), self.stores.clone(), key.clone());
        Box::pin(async move {
            let found = tokio::task::spawn_blocking(move || load(&metadata, &stores, &key)).await;
            found.map_err(|_| CacheError::Lost)?.map_err(Into::into)
        })
    }

    fn save<'a>(
        &'a self,
        key: &'a KeyId,
        links: Vec<(KeyId, Link)>,
        value: Option<&'a Tree>,
    ) -> BoxFuture<'a, Result<(), CacheStoreError>> {
        let (metadata, known) = (self.metadata.clone(), self.known_links.clone());
        let (key, value) = (key.clone(), value.cloned());
        Box::pin(async move {
            let save = move || {
                let _change = known.change();
                save(&metadata, &key, &links, value.as_ref())
            };
            let saved = tokio::task::spawn_blocking(save).await;
            saved.map_err(|_| CacheError::Lost)?.map_err(Into::into)
        })
    }
}

impl BuildCache {
    /// The newest result of any of these keys, if it is here. Nothing holds it, and it counts as no use of it. Blocks.
    pub fn snapshot_of(&self, keys: &[KeyId]) -> Result<Option<SnapshotName>, StoreError> {
        self.metadata.read(|db| {
            let failed = "look up a cached result";
            let mut statement = db
                .prepare_cached(
                    "SELECT snapshot FROM cache_result WHERE key = ?1 AND snapshot IS NOT NULL ORDER BY seq DESC LIMIT 1",
                )
                .map_err(StoreError::metadata(failed))?;
            for key in keys {
                let mut rows = statement
                    .query_map([key.as_str()], |row| row.get::<_, String>(0))
                    .map_err(StoreError::metadata(failed))?;
                if let Some(found) = rows.next() {
                    return found.map(|name| Some(SnapshotName::new(name))).map_err(StoreError::metadata(failed));
                }
            }
            Ok(None)
        })
    }
}

/// Asked in the middle of tasks: see docs/decisions/0010.
fn look_up(metadata: &Metadata, from: &KeyId, link: &Link) -> Result<Vec<KeyId>, StoreError> {
    metadata.look_up(|db| {
        let failed = "look up a cache link";
        // Newest result first; a target without a result of its own may still lead to one.
        let mut statement = db
            .prepare_cached(
                "SELECT target, (SELECT max(seq) FROM cache_result WHERE key = target) AS newest
                   FROM cache_link
                  WHERE source = ?1 AND digest = ?2 AND input = ?3 AND output = ?4 AND selector = ?5
                  ORDER BY newest DESC NULLS LAST",
            )
            .map_err(StoreError::metadata(failed))?;
        let selector = link.selector.as_ref().map_or("", Digest::as_str);
        let values = (from.as_str(), link.digest.as_str(), link.input, link.output, selector);
        let rows = statement
            .query_map(values, |row| row.get::<_, String>(0))
            .map_err(StoreError::metadata(failed))?;
        rows.map(|row| row.map(KeyId::new)).collect::<Result<_, _>>().map_err(StoreError::metadata(failed))
    })
}

fn load(metadata: &Metadata, stores: &Stores, key: &KeyId) -> Result<Option<Tree>, StoreError> {
    let results: Vec<Option<String>> = metadata.read(|db| {
        let failed = "look up a cached result";
        let mut statement = db
            .prepare_cached("SELECT snapshot FROM cache_result WHERE key = ?1 ORDER BY seq DESC")
            .map_err(StoreError::metadata(failed))?;
        let rows =
            statement.query_map([key.as_str()], |row| row.get(0)).map_err(StoreError::metadata(failed))?;
        rows.collect::<Result<_, _>>().map_err(StoreError::metadata(failed))
    })?;
    for snapshot in results {
        let Some(snapshot) = snapshot else { return Ok(Some(Tree::empty())) };
        // It may be pruned between the question and the hold: then it is a miss.
        if let Some(tree) = stores.hold(&SnapshotName::new(snapshot))? {
            entries::touch(metadata, &tree)?;
            return Ok(Some(tree));
        }
    }
    Ok(None)
}

/// Writes lazily: a result that a power cut takes is built again. The tree is durable before its entry is, because both are in the
/// database's log in that order and start-up removes what was committed but lost its files' record.
fn save(
    metadata: &Metadata,
    key: &KeyId,
    links: &[(KeyId, Link)],
    value: Option<&Tree>,
) -> Result<(), StoreError> {
    metadata.write_lazily(|txn| {
        let failed = "save a cached result";
        if let Some(value) = value {
            let snapshot = value.snapshot().map(SnapshotName::as_str);
            txn.prepare_cached(
                // A tree without an entry is not kept: nothing would hold it.
                "INSERT INTO cache_result (key, snapshot) SELECT ?1, ?2
                  WHERE CASE WHEN ?2 IS NULL
                        THEN NOT EXISTS (SELECT 1 FROM cache_result WHERE key = ?1 AND snapshot IS NULL)
                        ELSE EXISTS (SELECT 1 FROM cache_entry WHERE snapshot = ?2) END
                 ON CONFLICT DO NOTHING",
            )
            .and_then(|mut statement| statement.execute((key.as_str(), snapshot)))
            .map_err(StoreError::metadata(failed))?;
        }
        let mut insert = txn
            .prepare_cached(
                "INSERT OR IGNORE INTO cache_link (source, input, output, digest, selector, target)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )
            .map_err(StoreError::metadata(failed))?;
        for (from, link) in links {
            let selector = link.selector.as_ref().map_or("", Digest::as_str);
            insert
                .execute((
                    from.as_str(),
                    link.input,
                    link.output,
                    link.digest.as_str(),
                    selector,
                    key.as_str(),
                ))
                .map_err(StoreError::metadata(failed))?;
        }
        Ok(())
    })
}
