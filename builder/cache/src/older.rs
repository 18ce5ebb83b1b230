//! Records for older versions of BuildKit, which make other keys of the same ops: without these, what is exported here is a miss there. And for all of
//! them: images under their manifests' digests, because BuildKit asks no further where it finds nothing by these.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use lapstrake_builder_llb::{Graph, Vertex, cache_key, pb};
use lapstrake_builder_solver::KeyId;
use lapstrake_layerstore_oci::Digest;

use crate::document::{Record, RecordInput};

/// Ways in which an input counts, by its number: selectors, where `None` is all of it.
type Selectors = Vec<BTreeSet<Option<Digest>>>;

/// What other builders, such as older versions of BuildKit, call the results of a graph's ops.
#[derive(Debug, Default)]
pub struct OlderNames {
    /// By what they are called today: every name, today's included, and how inputs count under it.
    names: HashMap<Digest, BTreeMap<Digest, Selectors>>,
}

impl OlderNames {
    /// Those of a graph.
    pub fn of(graph: &Graph) -> Self {
        let mut all = Self::default();
        for vertex in graph.vertices() {
            all.add(vertex);
        }
        all
    }

    /// Names a source otherwise too.
    pub fn source(&mut self, today: &KeyId, other: &KeyId) {
        if let (Ok(today), Ok(other)) = (Digest::parse(today.as_str()), Digest::parse(other.as_str())) {
            let names = self.names.entry(today.clone()).or_default();
            names.entry(today).or_default();
            names.entry(other).or_default();
        }
    }

    /// These and those of another graph.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        for (today, names) in &other.names {
            self.names.entry(today.clone()).or_default().extend(names.clone());
        }
        self
    }

    fn add(&mut self, vertex: &Vertex) {
        let older = cache_key::older(&vertex.op, vertex.inputs.len());
        let Some(today) = cache_key::today(&vertex.op, vertex.inputs.len()).filter(|_| !older.is_empty())
        else {
            return;
        };
        for output in 0..outputs(&vertex.op) {
            let name = |digest: &Digest| {
                Digest::parse(KeyId::root(digest, output).as_str()).expect("a root key is a digest")
            };
            let names = self.names.entry(name(&today.digest)).or_default();
            // 0.11 and 0.12 differ from today in selectors alone. A record that is linked in both ways is missed by today's BuildKit every now and then,
            // so they go without.
            let older = older.iter().filter(|key| key.digest != today.digest);
            for key in std::iter::once(&today).chain(older) {
                let selectors = names.entry(name(&key.digest)).or_default();
                selectors.resize(key.selectors.len().max(selectors.len()), BTreeSet::new());
                for (known, selector) in selectors.iter_mut().zip(&key.selectors) {
                    known.insert(selector.clone());
                }
            }
        }
    }

    /// The records, followed by those under older names; each links to its inputs' records under all names. The number is what a record's result is
    /// looked up by. Inputs' records come before what is made of them, and so they do here.
    pub(crate) fn extend(&self, records: Vec<(Record, Option<usize>)>) -> Vec<(Record, Option<usize>)> {
        if self.names.is_empty() {
            return records;
        }
        let mut extended: Vec<(Record, Option<usize>)> = Vec::with_capacity(records.len());
        // Where the records that stand for each of the given ones are.
        let mut places: Vec<Vec<usize>> = Vec::with_capacity(records.len());
        for (record, result) in records {
            let names = record.digest.as_ref().and_then(|digest| self.names.get(digest));
            let mut at = Vec::new();
            // Today's first.
            at.push(extended.len());
            let today = record.digest.as_ref().and_then(|digest| names?.get(digest));
            extended.push((linked(&record, today, today, &places), result));
            for (digest, selectors) in names.into_iter().flatten() {
                if Some(digest) != record.digest.as_ref() {
                    at.push(extended.len());
                    let mut older = linked(&record, today, Some(selectors), &places);
                    older.digest = Some(digest.clone());
                    extended.push((older, result));
                }
            }
            places.push(at);
        }
        extended
    }
}

/// A record whose links lead to all that stands for its inputs.
fn linked(
    record: &Record,
    today: Option<&Selectors>,
    selectors: Option<&Selectors>,
    places: &[Vec<usize>],
) -> Record {
    let mut linked = Record { inputs: Vec::with_capacity(record.inputs.len()), ..record.clone() };
    for (number, alternatives) in record.inputs.iter().enumerate() {
        let mut all = BTreeSet::new();
        for RecordInput { selector, link } in alternatives {
            // What is known by its content is known so in all versions.
            let by_definition = today
                .and_then(|today| today.get(number))
                .is_some_and(|known| known.iter().flatten().any(|known| known.as_str() == selector));
            let wanted: BTreeSet<String> = match selectors.and_then(|selectors| selectors.get(number)) {
                Some(selectors) if by_definition => selectors
                    .iter()
                    .map(|selector| {
                        selector.as_ref().map_or(String::new(), |digest| digest.as_str().to_owned())
                    })
                    .collect(),
                _ => BTreeSet::from([selector.clone()]),
            };
            for place in &places[*link] {
                all.extend(
                    wanted.iter().map(|selector| RecordInput { selector: selector.clone(), link: *place }),
                );
            }
        }
        linked.inputs.push(all.into_iter().collect());
    }
    linked
}

/// How many outputs an op may have.
fn outputs(op: &pb::Op) -> u32 {
    let Some(pb::op::Op::Exec(exec)) = &op.op else { return 1 };
    let last = exec.mounts.iter().map(|mount| mount.output).max().unwrap_or(0);
    // As many as there are mounts, at most: the graph was checked.
    u32::try_from(last.max(0)).unwrap_or(0).min(u32::try_from(exec.mounts.len()).unwrap_or(u32::MAX)) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(name: &str) -> Digest {
        Digest::sha256_of(name)
    }

    fn record(name: &str, inputs: &[(&str, usize)]) -> (Record, Option<usize>) {
        let input = |(selector, link): &(&str, usize)| {
            let selector = if selector.is_empty() { String::new() } else { digest(selector).to_string() };
            vec![RecordInput { selector, link: *link }]
        };
        let inputs = inputs.iter().map(input).collect();
        (Record { digest: Some(digest(name)), inputs, ..Record::default() }, None)
    }

    #[test]
    fn a_step_is_found_by_its_older_name_from_its_input_by_any() {
        let set = |selectors: &[Option<&str>]| selectors.iter().map(|name| name.map(digest)).collect();
        let mut names = OlderNames::default();
        for step in ["one", "two"] {
            names.names.insert(
                digest(step),
                BTreeMap::from([
                    (digest(step), vec![set(&[Some("/"), None])]),
                    (digest(&format!("{step} of 0.8")), vec![set(&[None])]),
                ]),
            );
        }
        let records = vec![record("base", &[]), record("one", &[("/", 0)]), record("two", &[("/", 1)])];
        let extended = names.extend(records);
        let shown: Vec<(Digest, Vec<(bool, usize)>)> = extended
            .into_iter()
            .map(|(record, _)| {
                let links = record.inputs.iter().flatten();
                let links = links.map(|input| (!input.selector.is_empty(), input.link)).collect();
                (record.digest.unwrap(), links)
            })
            .collect();
        assert_eq!(
            shown,
            [
                (digest("base"), vec![]),
                (digest("one"), vec![(false, 0), (true, 0)]),
                (digest("one of 0.8"), vec![(false, 0)]),
                (digest("two"), vec![(false, 1), (false, 2), (true, 1), (true, 2)]),
                (digest("two of 0.8"), vec![(false, 1), (false, 2)]),
            ]
        );
    }

    #[test]
    fn links_by_content_stay_as_they_are() {
        let mut names = OlderNames::default();
        let selectors = vec![BTreeSet::from([Some(digest("/src"))])];
        names.names.insert(
            digest("copy"),
            BTreeMap::from([(digest("copy"), selectors.clone()), (digest("old copy"), selectors)]),
        );
        let extended = names.extend(vec![record("content", &[]), record("copy", &[("", 0)])]);
        assert_eq!(extended.len(), 3);
        assert!(
            extended.iter().all(|(record, _)| record.inputs.iter().flatten().all(|i| i.selector.is_empty()))
        );
    }
}
