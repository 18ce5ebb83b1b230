//! Cache records, compared without what may differ: their order, when results were made, and the bytes of layers.

use std::{collections::BTreeMap, fmt::Write as _};

use base64::Engine as _;
use lapstrake_builder_cache::INLINE_FIELD;
use lapstrake_layerstore_oci::{Digest, ImageConfig};
use serde::Deserialize;

use crate::golden::manifest_keys;

/// A record of a cache document.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Record {
    #[serde(default, rename = "layers")]
    results: Vec<RecordResult>,
    digest: String,
    #[serde(default)]
    inputs: Vec<Vec<RecordInput>>,
}

#[derive(Debug, Clone, Deserialize)]
struct RecordResult {
    layer: usize,
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

/// What records say: each by a name that is made of all that leads to it, with how many layers its results have.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Shape(BTreeMap<String, (String, Vec<usize>)>);

impl Shape {
    /// `depth` tells of how many layers a result is that ends with this one.
    pub(crate) fn of(records: &[Record], depth: impl Fn(usize) -> usize) -> Self {
        let mut naming = Naming { records, same: manifest_keys(), names: vec![None; records.len()], depth };
        let mut shape = BTreeMap::new();
        for index in 0..records.len() {
            let (name, said) = naming.name(index);
            let mut depths: Vec<usize> =
                records[index].results.iter().map(|result| (naming.depth)(result.layer)).collect();
            depths.sort_unstable();
            depths.dedup();
            // Bases count where something is made of them.
            if !records[index].inputs.is_empty() {
                shape.insert(name, (said, depths));
            }
        }
        Self(shape)
    }
}

struct Naming<'a, D> {
    records: &'a [Record],
    // Keys of the same thing.
    same: BTreeMap<String, String>,
    names: Vec<Option<(String, String)>>,
    depth: D,
}

impl<D> Naming<'_, D> {
    fn name(&mut self, index: usize) -> (String, String) {
        if let Some(name) = &self.names[index] {
            return name.clone();
        }
        let records = self.records;
        let digest = &records[index].digest;
        let digest = self.same.get(digest).unwrap_or(digest).clone();
        let mut text = digest[7..19].to_owned();
        for (number, alternatives) in records[index].inputs.iter().enumerate() {
            let mut links: Vec<String> = alternatives
                .iter()
                .map(|RecordInput { selector, link }| {
                    format!("{}<{}", selector.get(7..15).unwrap_or("-"), self.name(*link).0)
                })
                .collect();
            links.sort();
            links.dedup();
            write!(text, " {number}:{links:?}").unwrap();
        }
        let short = format!("{}/{}", &digest[7..15], &Digest::sha256_of(&text).to_string()[7..11]);
        self.names[index] = Some((short.clone(), text.clone()));
        (short, text)
    }
}

/// What only one of them says.
pub(crate) fn difference(ours: &Shape, theirs: &Shape) -> String {
    let mut text = String::new();
    for (sign, one, other) in [("+ ours  ", ours, theirs), ("- theirs", theirs, ours)] {
        for (name, said) in one.0.iter().filter(|(name, said)| other.0.get(*name) != Some(said)) {
            writeln!(text, "  {sign} {name}  {} layers {:?}", said.0, said.1).unwrap();
        }
    }
    text
}
