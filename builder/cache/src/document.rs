//! BuildKit's cache document (`application/vnd.buildkit.cacheconfig.v0`): records of keys, and layers that are their results.
//!
//! ```text
//!   records: key digest ─► inputs: per input, alternatives [record, selector]        layers: blob, parent (-1: none)
//!                      └► results: layer (with its parents) or chain (layers in order)
//! ```
//!
//! Reading is strict: everything that points somewhere is checked before anything is done with it. Writing gives the same bytes for the same
//! content, in BuildKit's order. Facts: `cache/remotecache/v1` in moby/buildkit.

mod builder;

use lapstrake_layerstore_oci::{Digest, Timestamp, gojson};
use serde::{Deserialize, Deserializer, Serialize};

pub(crate) use builder::DocumentBuilder;

use crate::CacheError;

/// Longest document that is read. BuildKit itself reads 1 MiB.
pub const MAX_DOCUMENT: u64 = 16 << 20;
/// Records, layers and links beyond these are no cache but an attack.
const MAX_RECORDS: usize = 100_000;
const MAX_LAYERS: usize = 100_000;
const MAX_LINKS: usize = 1_000_000;
/// More layers than one mount can have are no result of a build.
const MAX_CHAIN: usize = 4096;

/// Records and the layers that they speak of, checked.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct CacheDocument {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    layers: Vec<Layer>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    records: Vec<Record>,
}

/// A document as it is written.
#[derive(Deserialize)]
struct Written {
    #[serde(default, deserialize_with = "null_default")]
    layers: Vec<Layer>,
    #[serde(default, deserialize_with = "null_default")]
    records: Vec<Record>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layer {
    pub(crate) blob: Digest,
    // Go leaves out a zero.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) parent: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<LayerAnnotations>,
}

/// What caches without manifests (those of BuildKit's object stores) say of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerAnnotations {
    #[serde(rename = "mediaType", default, skip_serializing_if = "String::is_empty")]
    pub(crate) media_type: String,
    #[serde(rename = "diffID", default, skip_serializing_if = "String::is_empty")]
    pub(crate) diff_id: String,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) size: i64,
    #[serde(rename = "createdAt", default = "Timestamp::zero")]
    pub(crate) created_at: Timestamp,
}

/// A key: its digest, the records that its inputs are found by, and its results.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Record {
    #[serde(
        rename = "layers",
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub(crate) results: Vec<RecordResult>,
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) chains: Vec<RecordChain>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) digest: Option<Digest>,
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) inputs: Vec<Vec<RecordInput>>,
}

/// A result: a layer on its parents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RecordResult {
    pub(crate) layer: i64,
    #[serde(rename = "createdAt", default = "Timestamp::zero")]
    pub(crate) created_at: Timestamp,
}

/// A result: layers in order, whatever their parents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RecordChain {
    #[serde(default, deserialize_with = "null_default")]
    pub(crate) layers: Vec<i64>,
    #[serde(rename = "createdAt", default = "Timestamp::zero")]
    pub(crate) created_at: Timestamp,
}

/// One way in which an input is known.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct RecordInput {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) selector: String,
    pub(crate) link: usize,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// Go reads `null` as the zero value; so do we.
fn null_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

fn damaged(why: impl Into<String>) -> CacheError {
    CacheError::Records { why: why.into() }
}

impl CacheDocument {
    /// Reads a whole document.
    pub fn parse(json: &[u8]) -> Result<Self, CacheError> {
        check_length(json)?;
        let Written { layers, records } =
            serde_json::from_slice(json).map_err(|error| damaged(error.to_string()))?;
        Self::checked(layers, records)
    }

    /// Reads the records that an image carries in its config; its layers are those of the image, each on the one before.
    pub fn parse_inline(json: &[u8], layers: &[Digest]) -> Result<Self, CacheError> {
        check_length(json)?;
        let records: Option<Vec<Record>> =
            serde_json::from_slice(json).map_err(|error| damaged(error.to_string()))?;
        let layers = layers
            .iter()
            .zip(-1..)
            .map(|(blob, parent)| Layer { blob: blob.clone(), parent, annotations: None })
            .collect();
        Self::checked(layers, records.unwrap_or_default())
    }

    fn checked(layers: Vec<Layer>, records: Vec<Record>) -> Result<Self, CacheError> {
        let document = Self { layers, records };
        document.check_layers()?;
        document.check_records()?;
        Ok(document)
    }

    fn check_layers(&self) -> Result<(), CacheError> {
        let count = self.layers.len();
        if count > MAX_LAYERS {
            return Err(damaged(format!("{count} layers; the limit is {MAX_LAYERS}")));
        }
        // The depth of each; parents come before or after what is on them.
        let mut depths: Vec<usize> = vec![0; count];
        for start in 0..count {
            let mut path = Vec::new();
            let mut next = Some(start);
            while let Some(layer) = next.filter(|layer| depths[*layer] == 0) {
                if path.len() > MAX_CHAIN {
                    return Err(damaged(format!(
                        "layer {start} has more than {MAX_CHAIN} parents, or is its own"
                    )));
                }
                path.push(layer);
                next = self.parent(layer)?;
            }
            let mut depth = next.map_or(0, |known| depths[known]);
            for layer in path.into_iter().rev() {
                depth += 1;
                depths[layer] = depth;
            }
            if depth > MAX_CHAIN {
                return Err(damaged(format!("layer {start} has more than {MAX_CHAIN} parents")));
            }
        }
        Ok(())
    }

    fn check_records(&self) -> Result<(), CacheError> {
        let count = self.records.len();
        if count > MAX_RECORDS {
            return Err(damaged(format!("{count} records; the limit is {MAX_RECORDS}")));
        }
        let mut links = 0;
        for (index, record) in self.records.iter().enumerate() {
            for alternatives in &record.inputs {
                if alternatives.is_empty() {
                    return Err(damaged(format!("record {index} has an input without alternatives")));
                }
                links += alternatives.len();
                for RecordInput { selector, link } in alternatives {
                    if *link >= count {
                        return Err(damaged(format!("record {index} is made of record {link}, of {count}")));
                    }
                    if !selector.is_empty() && Digest::parse(selector).is_err() {
                        return Err(damaged(format!(
                            "record {index} has a selector that is no digest: {selector:.100}"
                        )));
                    }
                }
            }
            links +=
                record.results.len() + record.chains.iter().map(|chain| chain.layers.len()).sum::<usize>();
            if links > MAX_LINKS {
                return Err(damaged(format!("more than {MAX_LINKS} links")));
            }
            let results =
                record.results.iter().map(|result| (&result.created_at, std::slice::from_ref(&result.layer)));
            let chains = record.chains.iter().map(|chain| (&chain.created_at, chain.layers.as_slice()));
            for (created_at, layers) in results.chain(chains) {
                created_at.to_time().map_err(|error| damaged(format!("record {index}: {error}")))?;
                if layers.len() > MAX_CHAIN {
                    return Err(damaged(format!("record {index} is made of more than {MAX_CHAIN} layers")));
                }
                for layer in layers {
                    self.layer(*layer).ok_or_else(|| {
                        damaged(format!("record {index} ends with layer {layer}, of {}", self.layers.len()))
                    })?;
                }
            }
        }
        self.check_cycles()
    }

    /// A record is not made of itself. The walk keeps its own stack, because chains may be long.
    fn check_cycles(&self) -> Result<(), CacheError> {
        #[derive(Clone, Copy, PartialEq)]
        enum Seen {
            No,
            Open,
            Done,
        }
        let mut seen = vec![Seen::No; self.records.len()];
        for start in 0..self.records.len() {
            let mut stack = vec![(start, false)];
            while let Some((index, done)) = stack.pop() {
                if done {
                    seen[index] = Seen::Done;
                    continue;
                }
                match seen[index] {
                    Seen::Done => continue,
                    Seen::Open => return Err(damaged(format!("record {index} is made of itself"))),
                    Seen::No => {}
                }
                seen[index] = Seen::Open;
                stack.push((index, true));
                let mut links: Vec<usize> =
                    self.records[index].inputs.iter().flatten().map(|input| input.link).collect();
                links.sort_unstable();
                links.dedup();
                for link in links {
                    match seen[link] {
                        Seen::Done => {}
                        Seen::Open => return Err(damaged(format!("record {link} is made of itself"))),
                        Seen::No => stack.push((link, false)),
                    }
                }
            }
        }
        Ok(())
    }

    fn layer(&self, index: i64) -> Option<usize> {
        usize::try_from(index).ok().filter(|index| *index < self.layers.len())
    }

    fn parent(&self, layer: usize) -> Result<Option<usize>, CacheError> {
        match self.layers[layer].parent {
            -1 => Ok(None),
            parent => self.layer(parent).map(Some).ok_or_else(|| {
                damaged(format!("layer {layer} is on layer {parent}, of {}", self.layers.len()))
            }),
        }
    }

    /// All of the document.
    pub fn to_json(&self) -> Vec<u8> {
        gojson::to_vec(self).expect("a document has nothing that JSON cannot hold")
    }

    /// The records alone, as an image carries them.
    pub fn records_to_json(&self) -> Vec<u8> {
        gojson::to_vec(&self.records).expect("records have nothing that JSON cannot hold")
    }

    /// Whether no record has a result.
    pub fn is_empty(&self) -> bool {
        self.records.iter().all(|record| record.results.is_empty() && record.chains.is_empty())
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// The blobs of the layers, in the document's order; one that is on several others is there several times.
    pub fn blobs(&self) -> impl Iterator<Item = &Digest> {
        self.layers.iter().map(|layer| &layer.blob)
    }

    pub(crate) fn records(&self) -> &[Record] {
        &self.records
    }

    /// The layers of a result, bottom first.
    pub(crate) fn on_parents(&self, layer: i64) -> Vec<usize> {
        let mut chain = Vec::new();
        let mut next = self.layer(layer);
        while let Some(layer) = next {
            chain.push(layer);
            next = self.layer(self.layers[layer].parent);
        }
        chain.reverse();
        chain
    }

    pub(crate) fn blob(&self, layer: usize) -> &Digest {
        &self.layers[layer].blob
    }
}

fn check_length(json: &[u8]) -> Result<(), CacheError> {
    let length = json.len() as u64;
    if length > MAX_DOCUMENT {
        return Err(damaged(format!("{length} bytes; the limit is {MAX_DOCUMENT}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(text: &str) -> Digest {
        Digest::sha256_of(text.as_bytes())
    }

    #[test]
    fn a_document_reads_as_buildkit_writes_it() {
        let (base, step, blob) = (digest("base"), digest("step"), digest("blob"));
        let json = format!(
            r#"{{"layers":[{{"blob":"{blob}","parent":-1}},{{"blob":"{step}"}}],"records":[{{"digest":"{base}"}},{{"layers":[{{"layer":1,"createdAt":"2026-01-01T00:00:00.5Z"}}],"digest":"{step}","inputs":[[{{"selector":"{blob}","link":0}}]]}}]}}"#
        );
        let document = CacheDocument::parse(json.as_bytes()).unwrap();
        assert_eq!(document.on_parents(1), [0, 1], "a parent that is left out is the first layer");
        assert_eq!(String::from_utf8(document.to_json()).unwrap(), json);
        assert_eq!(document.len(), 2);
        assert!(!document.is_empty());
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let d = digest("x");
        for (bad, why) in [
            ("{".to_owned(), "EOF"),
            (format!(r#"{{"records":[{{"digest":"{d}","inputs":[[{{"link":7}}]]}}]}}"#), "record 7"),
            (format!(r#"{{"records":[{{"digest":"{d}","inputs":[[{{"link":0}}]]}}]}}"#), "made of itself"),
            (format!(r#"{{"records":[{{"digest":"{d}","inputs":[[]]}}]}}"#), "without alternatives"),
            (format!(r#"{{"records":[{{"digest":"{d}","inputs":[[{{"link":-1}}]]}}]}}"#), "-1"),
            (format!(r#"{{"records":[{{"digest":"{d}","layers":[{{"layer":0}}]}}]}}"#), "layer 0"),
            (format!(r#"{{"records":[{{"digest":"{d}","chains":[{{"layers":[-1]}}]}}]}}"#), "layer -1"),
            (r#"{"records":[{"digest":"sha256:beef"}]}"#.to_owned(), "digest"),
            (format!(r#"{{"layers":[{{"blob":"{d}"}}]}}"#), "layer 0"),
            (format!(r#"{{"layers":[{{"blob":"{d}","parent":1}},{{"blob":"{d}"}}]}}"#), "layer 0"),
            (format!(r#"{{"layers":[{{"blob":"{d}","parent":-2}}]}}"#), "layer -2"),
            (
                format!(
                    r#"{{"records":[{{"digest":"{d}","inputs":[[{{"link":1}}]]}},{{"digest":"{d}","inputs":[[{{"link":0,"selector":"no"}}]]}}]}}"#
                ),
                "selector",
            ),
            (
                format!(
                    r#"{{"layers":[{{"blob":"{d}","parent":-1}}],"records":[{{"digest":"{d}","layers":[{{"layer":0,"createdAt":"now"}}]}}]}}"#
                ),
                "now",
            ),
        ] {
            let error = CacheDocument::parse(bad.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }
}
