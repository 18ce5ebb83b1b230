//! Cache records, compared without what may differ: their order, when results were made, and the bytes of layers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use base64::Engine as _;
use lapstrake_builder_cache::INLINE_FIELD;
use lapstrake_layerstore_oci::ImageConfig;
use serde::Deserialize;

use crate::interchange::golden::manifest_keys;

/// A record of a cache document.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Record {
    #[serde(default, rename = "layers")]
    results: Vec<RecordResult>,
    #[serde(default)]
    chains: Vec<RecordChain>,
    digest: String,
    #[serde(default)]
    inputs: Vec<Vec<RecordInput>>,
}

#[derive(Debug, Clone, Deserialize)]
struct RecordResult {
    layer: usize,
}

#[derive(Debug, Clone, Deserialize)]
struct RecordChain {
    layers: Vec<usize>,
}

#[derive(Debug, Clone, Deserialize)]
struct RecordInput {
    #[serde(default)]
    selector: String,
    link: usize,
}

/// The records that an image carries.
pub(crate) fn inline(config: &ImageConfig) -> Option<Vec<Record>> {
    let text = config.extra.get(INLINE_FIELD)?.as_str().unwrap();
    let json = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    Some(serde_json::from_slice(&json).unwrap())
}

/// What records say, by the digests of their keys.
#[derive(Debug, Default)]
pub(crate) struct Shape {
    /// Record, input, selector, and the record that is linked from.
    links: BTreeSet<(String, usize, String, String)>,
    /// Of how many layers the results of a record are. Bases count where something is made of them.
    results: BTreeMap<String, BTreeSet<usize>>,
}

impl Shape {
    /// `depth` tells of how many layers a result is that ends with this one.
    pub(crate) fn of(records: &[Record], depth: impl Fn(usize) -> usize) -> Self {
        let same = manifest_keys();
        let name = |index: usize| {
            let digest = &records[index].digest;
            same.get(digest).unwrap_or(digest)[7..19].to_owned()
        };
        let mut shape = Self::default();
        for (index, record) in records.iter().enumerate().filter(|(_, record)| !record.inputs.is_empty()) {
            for (number, alternatives) in record.inputs.iter().enumerate() {
                for RecordInput { selector, link } in alternatives {
                    let selector = selector.get(7..19).unwrap_or_default().to_owned();
                    shape.links.insert((name(index), number, selector, name(*link)));
                }
            }
            let depths = record.results.iter().map(|result| depth(result.layer));
            // What is not on the layers below it in the image is not compared.
            let on_each_other =
                record.chains.iter().filter(|chain| chain.layers.iter().copied().eq(0..chain.layers.len()));
            let depths = depths.chain(on_each_other.map(|chain| chain.layers.len()));
            shape.results.entry(name(index)).or_default().extend(depths);
        }
        shape
    }

    /// What the other says and this one does not.
    pub(crate) fn lacks(&self, theirs: &Self) -> String {
        let mut text = String::new();
        for (record, input, selector, link) in theirs.links.difference(&self.links) {
            writeln!(text, "  {record} is not linked from {link} ({selector}), input {input}").unwrap();
        }
        for (record, depths) in &theirs.results {
            let ours = self.results.get(record).cloned().unwrap_or_default();
            if !depths.is_subset(&ours) {
                writeln!(text, "  {record} has results of {ours:?} layers, not {depths:?}").unwrap();
            }
        }
        text
    }

    /// What this one says of the records that both have, and the other does not; besides links for BuildKit before 0.13, which select nothing.
    pub(crate) fn exceeds(&self, theirs: &Self) -> String {
        let mut text = String::new();
        let has = |record: &String| theirs.results.contains_key(record);
        let is_named = |record: &String| theirs.links.iter().any(|(_, _, _, link)| link == record);
        for (record, input, selector, link) in self.links.difference(&theirs.links) {
            let older = selector.is_empty()
                && theirs
                    .links
                    .iter()
                    .any(|(r, i, s, l)| (r, i, l) == (record, input, link) && !s.is_empty());
            if has(record) && (has(link) || is_named(link)) && !older {
                writeln!(text, "  {record} is linked from {link} ({selector}), input {input}").unwrap();
            }
        }
        for (record, ours) in self.results.iter().filter(|(record, _)| has(record)) {
            if *ours != theirs.results[record] {
                writeln!(text, "  {record} has results of {ours:?} layers").unwrap();
            }
        }
        text
    }
}
