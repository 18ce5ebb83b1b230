//! From the cache to a document: what leads to a build's results, and which of these the document may name.
//!
//! ```text
//!   keys of a build ─► links backwards ─► records ┐
//!                   └► results: snapshots, or layers that a brought cache has ─► (the caller finds their blobs) ─► CacheDocument
//! ```
//!
//! Facts: `solver/exporter.go` in moby/buildkit. Records are those of the build's own keys: other ways to the same keys, which other builds
//! found, are left out wherever the build has one of its own, so that the document depends on the build and not on the cache's past. Ways that the caches
//! have which the build brought with it go on, as with BuildKit: a build that found everything by what an image carries leaves the same image.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use lapstrake_builder_llb::cache_key::Versions;
use lapstrake_builder_solver::KeyId;
use lapstrake_layerstore_oci::{ChainId, DiffId, Digest, Timestamp};
use lapstrake_layerstore_store::{SnapshotName, StoreError};
use rusqlite::{Connection, OptionalExtension};
use time::OffsetDateTime;

use crate::{
    BuildCache, CacheDocument, CacheError, ImportedResult, OlderNames,
    document::{DocumentBuilder, Record, RecordChain, RecordInput, RecordResult},
    import::{BroughtLink, ImportedCache},
    older::Leading,
};

/// Which results an export names.
#[derive(Debug, Clone, Copy)]
pub enum ExportedResults<'a> {
    /// Those that are layers of the image (`mode=min`): their snapshots, bottom first.
    Layers(&'a [SnapshotName]),
    /// All of the build (`mode=max`); those that are not here, from the caches that the build brought with it.
    All,
}

/// A result that a document may name.
#[derive(Debug, Clone)]
pub struct ExportedResult {
    /// Its snapshot, if it is here. Nothing holds it.
    pub snapshot: Option<SnapshotName>,
    /// Else the brought cache that has it, by its place, and what it has.
    pub brought: Option<(usize, Arc<ImportedResult>)>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// What leads to a build's results.
#[derive(Debug, Clone, Default)]
pub struct ExportedRecords {
    records: Vec<Leading>,
    results: Vec<ExportedResult>,
}

impl BuildCache {
    /// What leads to the results of a build, which are known by `targets`. `keys` are those of all its outputs, one set for each
    /// (`Build::keys` of the solver). `brought` are the caches that the build brought with it. Blocks.
    pub fn records_of(
        &self,
        keys: &[Vec<KeyId>],
        targets: &[KeyId],
        wanted: ExportedResults<'_>,
        brought: &[Arc<ImportedCache>],
    ) -> Result<ExportedRecords, CacheError> {
        let backwards: HashMap<&KeyId, Vec<BroughtLink<'_>>> =
            brought.iter().flat_map(|cache| cache.backwards()).collect();
        let mut layers = HashMap::new();
        if let (ExportedResults::Layers(names), false) = (wanted, brought.is_empty()) {
            for name in names {
                let layer = self.stores.layers.by_snapshot(name)?;
                layers.extend(layer.map(|layer| (layer.chain_id, name)));
            }
        }
        let mut own = HashSet::new();
        let mut foreign: HashMap<&str, Vec<&KeyId>> = HashMap::new();
        for set in keys {
            for key in set.iter().filter(|key| !key.is_foreign()) {
                own.insert(key.as_str());
                foreign.entry(key.as_str()).or_default().extend(set.iter().filter(|key| key.is_foreign()));
            }
        }
        let exported = self.metadata.read(|db| {
            let mut walk = Walk {
                db,
                own,
                foreign,
                wanted,
                brought,
                layers,
                backwards,
                same: HashMap::new(),
                exported: ExportedRecords::default(),
                known: HashMap::new(),
            };
            walk.unite(keys)?;
            for key in targets.iter().filter(|key| !key.is_foreign()) {
                walk.add(key.as_str())?;
            }
            Ok(walk.exported)
        })?;
        Ok(exported)
    }
}

impl ExportedRecords {
    /// The same, and what other versions of BuildKit find the same results by.
    #[must_use]
    pub fn with_older(mut self, names: &OlderNames) -> Self {
        self.records = merged(names.extend(self.records));
        self
    }

    /// The results, in no particular order.
    pub fn results(&self) -> &[ExportedResult] {
        &self.results
    }

    /// The document. `chains` are the blobs of each result, bottom first; a result without any is left out.
    pub fn document(&self, chains: &[Vec<Digest>]) -> CacheDocument {
        let mut builder = DocumentBuilder::default();
        for Leading { record, result, in_order } in &self.records {
            let mut record = record.clone();
            let chain = result.and_then(|result| chains.get(result)).filter(|chain| !chain.is_empty());
            if let (Some(result), Some(chain)) = (result, chain) {
                let on_each_other = |below: &mut i64, blob| {
                    *below = builder.layer(blob, *below);
                    Some(*below)
                };
                let layers = chain.iter().scan(-1, on_each_other).collect();
                record.add_result(layers, self.results[*result].created_at.clone(), *in_order);
            }
            builder.record(record);
        }
        builder.tie();
        builder.finish()
    }

    /// The document as JSON, with the names that `readers` find it by; with today's alone if it would be longer than `limit` bytes. Also tells whether
    /// that was so.
    pub fn within(
        &self,
        limit: usize,
        names: &OlderNames,
        readers: Versions,
        chains: &[Vec<Digest>],
    ) -> (CacheDocument, Vec<u8>, bool) {
        let document_for = |readers| {
            let document = self.clone().with_older(&names.clone().read_by(readers)).document(chains);
            let json = document.to_json();
            (document, json)
        };
        let (document, json) = document_for(readers);
        if json.len() <= limit {
            return (document, json, false);
        }
        let (document, json) = document_for(Versions::TODAY);
        (document, json, true)
    }

    /// The records for an image with these layers to carry; `None` when it has none of the results.
    pub fn inline(&self, layers: &[SnapshotName]) -> Option<Vec<u8>> {
        let mut builder = DocumentBuilder::default();
        for Leading { record, result, in_order } in &self.records {
            let mut record = record.clone();
            let result = result.map(|result| &self.results[result]);
            let place = result.and_then(|result| {
                layers.iter().zip(0..).find(|(name, _)| Some(*name) == result.snapshot.as_ref())
            });
            if let (Some(result), Some((_, layer))) = (result, place) {
                record.add_result((0..=layer).collect(), result.created_at.clone(), *in_order);
            }
            builder.record(record);
        }
        builder.tie();
        let document = builder.finish();
        (!document.is_empty()).then(|| document.records_to_json())
    }
}

impl Record {
    /// Adds a result: layers that are each on the one before.
    fn add_result(&mut self, layers: Vec<i64>, created_at: Timestamp, in_order: bool) {
        if in_order {
            self.chains.push(RecordChain { layers, created_at });
        } else if let Some(layer) = layers.last() {
            self.results.push(RecordResult { layer: *layer, created_at });
        }
    }
}

/// Each record once: what a brought cache calls by older names is called so by this build, too. Records come after those that they are linked from.
fn merged(records: Vec<Leading>) -> Vec<Leading> {
    let mut merged: Vec<Leading> = Vec::with_capacity(records.len());
    let (mut places, mut known) = (Vec::with_capacity(records.len()), BTreeMap::new());
    for mut leading in records {
        for alternatives in &mut leading.record.inputs {
            alternatives.iter_mut().for_each(|input| input.link = places[input.link]);
            alternatives.sort();
            alternatives.dedup();
        }
        let name = (leading.record.digest.clone(), leading.record.inputs.clone());
        let place = *known.entry(name).or_insert(merged.len());
        places.push(place);
        match merged.get_mut(place) {
            None => merged.push(leading),
            Some(there) if there.result.is_none() => *there = leading,
            Some(_) => {}
        }
    }
    merged
}

struct Walk<'a> {
    db: &'a Connection,
    /// The build's own keys.
    own: HashSet<&'a str>,
    /// Keys of brought caches that mean the same.
    foreign: HashMap<&'a str, Vec<&'a KeyId>>,
    wanted: ExportedResults<'a>,
    brought: &'a [Arc<ImportedCache>],
    /// The layers that are wanted, where brought results may be among them.
    layers: HashMap<ChainId, &'a SnapshotName>,
    /// What leads to keys of brought caches.
    backwards: HashMap<&'a KeyId, Vec<BroughtLink<'a>>>,
    /// Keys of brought caches that are called as one of the build's, and mean the same.
    same: HashMap<&'a KeyId, &'a str>,
    exported: ExportedRecords,
    known: HashMap<String, Option<usize>>,
}

struct Incoming {
    source: String,
    input: usize,
    /// What the op is called, with its output.
    name: Option<Digest>,
    selector: String,
}

impl<'a> Walk<'a> {
    /// Finds out which keys of brought caches are the build's own.
    fn unite(&mut self, keys: &'a [Vec<KeyId>]) -> Result<(), StoreError> {
        for set in keys.iter().filter(|set| set.iter().any(KeyId::is_foreign)) {
            for own in set.iter().filter(|key| !key.is_foreign()) {
                let Some(name) = self.name(own.as_str())? else { continue };
                for foreign in set.iter().filter(|key| key.is_foreign()) {
                    if self.backwards.get(foreign).is_some_and(|links| *links[0].name == name) {
                        self.same.insert(foreign, own.as_str());
                    }
                }
            }
        }
        Ok(())
    }

    /// What the op of a key is called, with its output.
    fn name(&self, key: &str) -> Result<Option<Digest>, StoreError> {
        let failed = "look up a cache key";
        let found = self
            .db
            .prepare_cached("SELECT digest, output FROM cache_link WHERE target = ?1 LIMIT 1")
            .and_then(|mut statement| {
                statement
                    .query_row([key], |row| Ok((row.get::<_, String>(0)?, row.get::<_, u32>(1)?)))
                    .optional()
            })
            .map_err(StoreError::metadata(failed))?;
        Ok(found.and_then(|(digest, output)| Digest::parse(KeyId::root(digest, output).as_str()).ok()))
    }

    /// Adds a key's record after those of its inputs; `None` for a key that nothing common to all builders leads to. A chain of steps may be
    /// long, so the walk keeps its own stack.
    fn add(&mut self, key: &str) -> Result<(), StoreError> {
        let mut stack = vec![(key.to_owned(), None)];
        while let Some((key, incoming)) = stack.pop() {
            if let Some(incoming) = incoming {
                let record = self.record(&key, incoming)?;
                self.known.insert(key, record);
                continue;
            }
            if self.known.contains_key(&key) {
                continue;
            }
            // Known as leading nowhere until its turn comes, which also ends loops.
            self.known.insert(key.clone(), None);
            let incoming = self.incoming(&key)?;
            let sources: BTreeSet<String> =
                incoming.values().flatten().map(|link| link.source.clone()).collect();
            stack.push((key, Some(incoming)));
            stack.extend(sources.into_iter().map(|source| (source, None)));
        }
        Ok(())
    }

    fn record(
        &mut self,
        key: &str,
        incoming: BTreeMap<usize, Vec<Incoming>>,
    ) -> Result<Option<usize>, StoreError> {
        let mut record = Record::default();
        let Some(first) = incoming.values().flatten().next() else {
            // A key without links is common to all builders if it is a digest: of a source, or of content.
            let Ok(digest) = Digest::parse(key) else { return Ok(None) };
            record.digest = Some(digest);
            return Ok(Some(self.push(record, None)));
        };
        record.digest = first.name.clone();
        for (place, (input, links)) in incoming.into_iter().enumerate() {
            let mut alternatives: Vec<RecordInput> = Vec::new();
            for link in links {
                if let Some(Some(index)) = self.known.get(&link.source) {
                    alternatives.push(RecordInput { selector: link.selector, link: *index });
                }
            }
            if alternatives.is_empty() || place != input {
                return Ok(None);
            }
            alternatives.sort();
            alternatives.dedup();
            record.inputs.push(alternatives);
        }
        let result = self.result(key)?;
        Ok(Some(self.push(record, result)))
    }

    fn push(&mut self, record: Record, result: Option<ExportedResult>) -> usize {
        let ExportedRecords { records, results } = &mut self.exported;
        let place = result.map(|result| {
            results.push(result);
            results.len() - 1
        });
        records.push(Leading { record, result: place, in_order: false });
        records.len() - 1
    }

    /// The links that lead to a key, by input: from keys of this build where there are any.
    fn incoming(&self, key: &str) -> Result<BTreeMap<usize, Vec<Incoming>>, StoreError> {
        let failed = "follow cache links backwards";
        let mut statement = self
            .db
            .prepare_cached(
                "SELECT source, input, output, digest, selector FROM cache_link WHERE target = ?1 ORDER BY 2, 1, 5",
            )
            .map_err(StoreError::metadata(failed))?;
        let mut rows = statement.query([key]).map_err(StoreError::metadata(failed))?;
        let mut links: BTreeMap<usize, Vec<Incoming>> = BTreeMap::new();
        while let Some(row) = rows.next().map_err(StoreError::metadata(failed))? {
            let get = || -> rusqlite::Result<_> {
                Ok((row.get(0)?, row.get::<_, u32>(1)?, row.get(2)?, row.get::<_, String>(3)?, row.get(4)?))
            };
            let (source, input, output, digest, selector) = get().map_err(StoreError::metadata(failed))?;
            if let Ok(digest) = Digest::parse(&digest) {
                let (input, name) =
                    (input as usize, Digest::parse(KeyId::root(&digest, output).as_str()).ok());
                links.entry(input).or_default().push(Incoming { source, input, name, selector });
            }
        }
        for list in links.values_mut() {
            // What is common to all builders is named by digest (content); what is a builder's own name is this build's, or another's.
            let ours = |link: &Incoming| {
                self.own.contains(link.source.as_str()) || Digest::parse(&link.source).is_ok()
            };
            if list.iter().any(ours) {
                list.retain(ours);
            }
            debug_assert!(list.iter().all(|link| link.input == list[0].input));
        }
        for link in self.brought_links(key) {
            let source = self.same.get(link.source).copied().unwrap_or(link.source.as_str()).to_owned();
            let selector = link.selector.map(Digest::to_string).unwrap_or_default();
            let (input, name) = (link.input as usize, Some(link.name.clone()));
            links.entry(input).or_default().push(Incoming { source, input, name, selector });
        }
        Ok(links)
    }

    /// What leads to a key in brought caches.
    fn brought_links(&self, key: &str) -> Vec<BroughtLink<'a>> {
        let is_it = |foreign: &&KeyId| self.same.get(*foreign).is_some_and(|own| *own == key);
        let same = self.foreign.get(key).into_iter().flatten().copied().filter(is_it);
        let itself = self.backwards.get_key_value(&KeyId::new(key)).map(|(key, _)| *key);
        same.chain(itself.filter(|key| key.is_foreign()))
            .filter_map(|key| self.backwards.get(key))
            .flatten()
            .copied()
            .collect()
    }

    /// A result that a brought cache has of a key, and which of them.
    fn brought_results(&self, key: &str) -> impl Iterator<Item = (usize, Arc<ImportedResult>)> {
        let keys = self.foreign.get(key).into_iter().flatten();
        keys.flat_map(|key| {
            self.brought.iter().enumerate().filter_map(|(place, cache)| Some((place, cache.result(key)?)))
        })
    }

    fn result(&self, key: &str) -> Result<Option<ExportedResult>, StoreError> {
        if !self.own.contains(key) {
            return Ok(None);
        }
        match self.wanted {
            ExportedResults::Layers(layers) => {
                let mut results = self.results(key)?.into_iter();
                let here =
                    results.find(|result| result.snapshot.as_ref().is_some_and(|name| layers.contains(name)));
                // It may be a layer although nobody asked for it by this key.
                Ok(here.or_else(|| {
                    self.brought_results(key).find_map(|(_, result)| {
                        let diff_ids: Option<Vec<DiffId>> =
                            result.layers.iter().map(|layer| layer.diff_id.clone()).collect();
                        let name = self.layers.get(&ChainId::of(&diff_ids?)?)?;
                        let snapshot = Some((*name).clone());
                        Some(ExportedResult {
                            snapshot,
                            brought: None,
                            created_at: result.created_at.clone(),
                        })
                    })
                }))
            }
            ExportedResults::All => {
                let here = self.results(key)?.into_iter().next();
                if here.is_some() || self.is_empty_tree(key)? {
                    return Ok(here);
                }
                Ok(self.brought_results(key).next().map(|(place, result)| ExportedResult {
                    snapshot: None,
                    created_at: result.created_at.clone(),
                    brought: Some((place, result)),
                }))
            }
        }
    }

    fn is_empty_tree(&self, key: &str) -> Result<bool, StoreError> {
        self.db
            .query_row("SELECT 1 FROM cache_result WHERE key = ?1 AND snapshot IS NULL", [key], |_| Ok(()))
            .optional()
            .map(|row| row.is_some())
            .map_err(StoreError::metadata("look up a cached result"))
    }

    /// Snapshots that are results of a key, newest first.
    fn results(&self, key: &str) -> Result<Vec<ExportedResult>, StoreError> {
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
        let result = |(snapshot, created): (String, i64)| ExportedResult {
            snapshot: Some(SnapshotName::new(snapshot)),
            brought: None,
            created_at: OffsetDateTime::from_unix_timestamp_nanos(i128::from(created))
                .map_or_else(|_| Timestamp::zero(), Timestamp::from),
        };
        rows.map(|row| row.map(result)).collect::<Result<_, _>>().map_err(StoreError::metadata(failed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_twice_is_written_once() {
        let name = |text: &str| Some(Digest::sha256_of(text));
        let base = Record { digest: name("base"), ..Record::default() };
        let step = |links: &[usize]| Record {
            digest: name("step"),
            inputs: vec![
                links.iter().map(|link| RecordInput { selector: String::new(), link: *link }).collect(),
            ],
            ..Record::default()
        };
        let leading = |record, result| Leading { record, result, in_order: false };
        let records = vec![
            leading(base.clone(), None),
            leading(base.clone(), None),
            leading(step(&[0]), None),
            leading(step(&[1, 0]), Some(7)),
        ];
        let merged: Vec<_> = merged(records).into_iter().map(|one| (one.record, one.result)).collect();
        assert_eq!(merged, [(base, None), (step(&[0]), Some(7))]);
    }

    #[test]
    fn a_document_that_is_too_long_goes_without_older_names() {
        let name = |text: &str| Digest::sha256_of(text);
        let base = Record { digest: Some(name("base")), ..Record::default() };
        let link = RecordInput { selector: String::new(), link: 0 };
        let step = Record { digest: Some(name("step")), inputs: vec![vec![link]], ..Record::default() };
        let leading = [(base, None), (step, Some(0))];
        let leading = leading.map(|(record, result)| Leading { record, result, in_order: false });
        let result = ExportedResult { snapshot: None, brought: None, created_at: Timestamp::zero() };
        let records = ExportedRecords { records: leading.to_vec(), results: vec![result] };
        let chains = [vec![name("below"), name("layer")]];
        let mut names = OlderNames::default();
        names.call_before_0_10(&name("step"), &name("old step"));

        let (whole, json, is_cut) = records.within(1 << 20, &names, Versions::ALL, &chains);
        assert_eq!((whole.len(), is_cut), (4, false), "the base, both names of the step, and what ties them");
        // BuildKit before 0.9.1 must find the result in one record only, and knows no lists.
        let written = String::from_utf8(json.clone()).unwrap();
        assert_eq!((written.matches("\"layer\"").count(), written.matches("\"chains\"").count()), (1, 1));
        let read = CacheDocument::parse(&json).unwrap();
        assert_eq!(read, whole);

        let (cut, shorter, is_cut) = records.within(json.len() - 1, &names, Versions::ALL, &chains);
        assert_eq!((cut.len(), is_cut), (2, true));
        assert!(shorter.len() < json.len() && !String::from_utf8(shorter).unwrap().contains("chains"));
    }
}
