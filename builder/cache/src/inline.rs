//! Cache records inside an image's config (`moby.buildkit.cache.v0`), in BuildKit's form.
//!
//! A record is a key: its digest, the records that its inputs are found by, and which of the image's layers its result ends with.
//!
//! ```text
//!   keys of the result ── export: links backwards, results that are layers of the image ──► JSON in the config
//!   JSON in a config ── ImportedCache: links forwards ──► results, fetched when one is needed
//! ```
//!
//! Facts: `cache/remotecache/{inline,v1}` in moby/buildkit.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::future::BoxFuture;
use lapstrake_builder_solver::{CacheStore, CacheStoreError, KeyId, Link};
use lapstrake_layerstore_oci::{Digest, gojson};
use lapstrake_layerstore_store::{SnapshotName, StoreError, Tree};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{BuildCache, CacheError};

/// The field of an image's config.
pub const INLINE_FIELD: &str = "moby.buildkit.cache.v0";
/// Records beyond this are no cache but an attack.
const MAX_RECORDS: usize = 100_000;

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Record {
    #[serde(rename = "layers", default, skip_serializing_if = "Vec::is_empty")]
    results: Vec<RecordResult>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    inputs: Vec<Vec<RecordInput>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct RecordResult {
    layer: usize,
    #[serde(rename = "createdAt", default)]
    created_at: String,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct RecordInput {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    selector: String,
    link: usize,
}

impl BuildCache {
    /// The records that lead to a result known by `keys`, as the value of [`INLINE_FIELD`]; `layers` are the snapshots of the image's layers,
    /// bottom first. `None` when no record's result is a layer of the image. Blocks.
    pub fn export_inline(
        &self,
        keys: &[KeyId],
        layers: &[SnapshotName],
    ) -> Result<Option<Vec<u8>>, CacheError> {
        let places: HashMap<&str, usize> =
            layers.iter().enumerate().map(|(index, name)| (name.as_str(), index)).collect();
        let records = self.metadata.read(|db| {
            let mut export = Export { db, places: &places, records: Vec::new(), known: HashMap::new() };
            for key in keys {
                export.add(key.as_str())?;
            }
            Ok(export.records)
        })?;
        if records.iter().all(|record| record.results.is_empty()) {
            return Ok(None);
        }
        let json = gojson::to_vec(&sorted(records)).expect("records serialise");
        Ok(Some(json))
    }
}

struct Export<'a> {
    db: &'a Connection,
    places: &'a HashMap<&'a str, usize>,
    records: Vec<Record>,
    known: HashMap<String, Option<usize>>,
}

struct Incoming {
    source: String,
    input: usize,
    digest: Digest,
    selector: String,
}

impl Export<'_> {
    /// Adds a key's record after those of its inputs; `None` for a key that nothing common to all builders leads to. A chain of steps may be
    /// long, so the walk keeps its own stack.
    fn add(&mut self, key: &str) -> Result<(), StoreError> {
        let mut stack = vec![(key.to_owned(), false)];
        while let Some((key, inputs_done)) = stack.pop() {
            if inputs_done {
                let record = self.record(&key)?;
                self.known.insert(key, record);
                continue;
            }
            if self.known.contains_key(&key) {
                continue;
            }
            // Known as leading nowhere until its turn comes, which also ends loops.
            self.known.insert(key.clone(), None);
            let sources: BTreeSet<String> =
                self.incoming(&key)?.into_iter().map(|link| link.source).collect();
            stack.push((key, true));
            stack.extend(sources.into_iter().map(|source| (source, false)));
        }
        Ok(())
    }

    fn record(&mut self, key: &str) -> Result<Option<usize>, StoreError> {
        let incoming = self.incoming(key)?;
        let mut record = Record::default();
        let Some(first) = incoming.first() else {
            // A key without links is common to all builders if it is a digest: of a source, or of content.
            let Ok(digest) = Digest::parse(key) else { return Ok(None) };
            record.digest = Some(digest);
            return Ok(Some(self.push(record)));
        };
        let output = self.output(key)?;
        record.digest = Digest::parse(KeyId::root(&first.digest, output).as_str()).ok();
        let mut inputs: BTreeMap<usize, Vec<RecordInput>> = BTreeMap::new();
        for link in &incoming {
            let list = inputs.entry(link.input).or_default();
            if let Some(Some(index)) = self.known.get(&link.source) {
                list.push(RecordInput { selector: link.selector.clone(), link: *index });
            }
        }
        if inputs.values().any(Vec::is_empty) || inputs.keys().copied().ne(0..inputs.len()) {
            return Ok(None);
        }
        record.inputs = inputs.into_values().collect();
        // A source is fetched from where it comes from, not from a cache, so only what was made of others has results.
        record.results = self.results(key)?;
        Ok(Some(self.push(record)))
    }

    fn push(&mut self, record: Record) -> usize {
        self.records.push(record);
        self.records.len() - 1
    }

    fn incoming(&self, key: &str) -> Result<Vec<Incoming>, StoreError> {
        let failed = "follow cache links backwards";
        let mut statement = self
            .db
            .prepare_cached(
                "SELECT source, input, digest, selector FROM cache_link WHERE target = ?1 ORDER BY 2, 1",
            )
            .map_err(StoreError::metadata(failed))?;
        let rows = statement
            .query_map([key], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, u32>(1)?, row.get::<_, String>(2)?, row.get(3)?))
            })
            .map_err(StoreError::metadata(failed))?;
        let mut links = Vec::new();
        for row in rows {
            let (source, input, digest, selector) = row.map_err(StoreError::metadata(failed))?;
            if let Ok(digest) = Digest::parse(&digest) {
                links.push(Incoming { source, input: input as usize, digest, selector });
            }
        }
        Ok(links)
    }

    fn output(&self, key: &str) -> Result<u32, StoreError> {
        self.db
            .query_row("SELECT output FROM cache_link WHERE target = ?1 LIMIT 1", [key], |row| row.get(0))
            .map_err(StoreError::metadata("follow cache links backwards"))
    }

    fn results(&self, key: &str) -> Result<Vec<RecordResult>, StoreError> {
        let failed = "list cached results";
        let mut statement = self
            .db
            .prepare_cached(
                "SELECT r.snapshot, e.created FROM cache_result r JOIN cache_entry e ON e.snapshot = r.snapshot
                  WHERE r.key = ?1 ORDER BY r.seq DESC",
            )
            .map_err(StoreError::metadata(failed))?;
        let rows = statement
            .query_map([key], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))
            .map_err(StoreError::metadata(failed))?;
        let mut results = Vec::new();
        for row in rows {
            let (snapshot, created) = row.map_err(StoreError::metadata(failed))?;
            if let Some(layer) = self.places.get(snapshot.as_str()) {
                let created = OffsetDateTime::from_unix_timestamp_nanos(i128::from(created))
                    .unwrap_or(OffsetDateTime::UNIX_EPOCH);
                let created_at = created.format(&Rfc3339).expect("a time of this age can be written");
                results.push(RecordResult { layer: *layer, created_at });
            }
        }
        Ok(results)
    }
}

/// In the order that BuildKit writes records in, so that the same cache gives the same bytes.
fn sorted(records: Vec<Record>) -> Vec<Record> {
    let mut order: Vec<usize> = (0..records.len()).collect();
    order.sort_by(|a, b| {
        let (a, b) = (&records[*a], &records[*b]);
        (&a.digest, a.inputs.len()).cmp(&(&b.digest, b.inputs.len()))
    });
    let mut place = vec![0; records.len()];
    for (new, old) in order.iter().enumerate() {
        place[*old] = new;
    }
    order
        .iter()
        .map(|old| {
            let mut record = records[*old].clone();
            for list in &mut record.inputs {
                for input in list.iter_mut() {
                    input.link = place[input.link];
                }
                list.sort_by_key(|input| input.link);
            }
            record
        })
        .collect()
}

/// Gives the tree of an image's lowest layers, up to and including the one with this index.
pub trait LayerSource: Send + Sync {
    /// Fetches it; cancelled by dropping.
    fn tree(&self, layer: usize) -> BoxFuture<'_, Result<Tree, CacheStoreError>>;
}

/// Another builder's records, as a cache that a build brings with it.
pub struct ImportedCache {
    // How keys lead to records.
    links: HashMap<(KeyId, u32, String, Option<Digest>), Vec<KeyId>>,
    // Layers that are results of keys, newest first.
    results: HashMap<KeyId, Vec<usize>>,
    layers: Arc<dyn LayerSource>,
}

impl ImportedCache {
    /// Reads the value of [`INLINE_FIELD`] of an image with `layers` layers.
    pub fn parse(json: &[u8], count: usize, layers: Arc<dyn LayerSource>) -> Result<Self, CacheError> {
        static IMPORTS: AtomicU64 = AtomicU64::new(0);
        let import = IMPORTS.fetch_add(1, Ordering::Relaxed);
        let damaged = |why: String| CacheError::Records { why };
        let records: Vec<Record> =
            serde_json::from_slice(json).map_err(|error| damaged(error.to_string()))?;
        if records.len() > MAX_RECORDS {
            return Err(damaged(format!("{} records; the limit is {MAX_RECORDS}", records.len())));
        }
        let mut cache = Self { links: HashMap::new(), results: HashMap::new(), layers };
        let key = |index: usize| -> Result<KeyId, CacheError> {
            let record = records.get(index).ok_or_else(|| damaged(format!("no record {index}")))?;
            match &record.digest {
                Some(digest) if record.inputs.is_empty() => Ok(KeyId::new(digest.as_str())),
                _ => Ok(KeyId::foreign(format_args!("{import}:{index}"))),
            }
        };
        for (index, record) in records.iter().enumerate() {
            let target = key(index)?;
            let Some(digest) = &record.digest else { continue };
            for (input, alternatives) in record.inputs.iter().enumerate() {
                let input = u32::try_from(input).map_err(|_| damaged("too many inputs".to_owned()))?;
                for RecordInput { selector, link } in alternatives {
                    let selector = match selector.as_str() {
                        "" => None,
                        text => Some(Digest::parse(text).map_err(|error| damaged(error.to_string()))?),
                    };
                    let from = (key(*link)?, input, digest.to_string(), selector);
                    cache.links.entry(from).or_default().push(target.clone());
                }
            }
            for result in &record.results {
                if result.layer >= count {
                    return Err(damaged(format!(
                        "record {index} ends with layer {}, of {count}",
                        result.layer
                    )));
                }
                cache.results.entry(target.clone()).or_default().push(result.layer);
            }
        }
        Ok(cache)
    }
}

impl CacheStore<Tree> for ImportedCache {
    fn fresh_key(&self) -> KeyId {
        // Nothing is ever saved here, so nothing has this key.
        KeyId::foreign("none")
    }

    fn linked(&self, from: &KeyId, link: &Link) -> Result<Vec<KeyId>, CacheStoreError> {
        let digest = KeyId::root(&link.digest, link.output).as_str().to_owned();
        let link = (from.clone(), link.input, digest, link.selector.clone());
        Ok(self.links.get(&link).cloned().unwrap_or_default())
    }

    fn load<'a>(&'a self, key: &'a KeyId) -> BoxFuture<'a, Result<Option<Tree>, CacheStoreError>> {
        Box::pin(async move {
            match self.results.get(key).and_then(|layers| layers.first()) {
                Some(layer) => self.layers.tree(*layer).await.map(Some),
                None => Ok(None),
            }
        })
    }

    fn save<'a>(
        &'a self,
        _: &'a KeyId,
        _: Vec<(KeyId, Link)>,
        _: Option<&'a Tree>,
    ) -> BoxFuture<'a, Result<(), CacheStoreError>> {
        Box::pin(async { Err("another builder's records cannot be changed".into()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct NoLayers;

    impl LayerSource for NoLayers {
        fn tree(&self, layer: usize) -> BoxFuture<'_, Result<Tree, CacheStoreError>> {
            Box::pin(async move { Err(format!("layer {layer}").into()) })
        }
    }

    fn parse(json: &str) -> Result<ImportedCache, CacheError> {
        ImportedCache::parse(json.as_bytes(), 2, Arc::new(NoLayers))
    }

    #[tokio::test]
    async fn keys_lead_from_a_source_by_links_to_a_layer() {
        let step = Digest::sha256_of(b"step");
        let root = KeyId::root(&Digest::sha256_of(b"base"), 0);
        let json = format!(
            r#"[{{"digest":"{}"}},{{"layers":[{{"layer":1,"createdAt":"2026-01-01T00:00:00Z"}}],"digest":"{}","inputs":[[{{"link":0}}]]}}]"#,
            root.as_str(),
            KeyId::root(&step, 0).as_str()
        );
        let cache = parse(&json).unwrap();
        let link = Link { input: 0, output: 0, digest: step, selector: None };
        let keys = cache.linked(&root, &link).unwrap();
        assert_eq!(keys.len(), 1);
        assert_eq!(cache.load(&keys[0]).await.unwrap_err().to_string(), "layer 1");
        assert!(cache.load(&root).await.unwrap().is_none());
    }

    #[test]
    fn records_that_do_not_fit_together_are_refused() {
        let digest = Digest::sha256_of(b"x");
        for bad in [
            "{".to_owned(),
            format!(r#"[{{"digest":"{digest}","inputs":[[{{"link":7}}]]}}]"#),
            format!(r#"[{{"digest":"{digest}","layers":[{{"layer":2}}]}}]"#),
            format!(r#"[{{"digest":"{digest}","inputs":[[{{"link":0,"selector":"nonsense"}}]]}}]"#),
        ] {
            assert!(matches!(parse(&bad), Err(CacheError::Records { .. })), "{bad}");
        }
    }
}
