//! Records for older versions of BuildKit, which make other keys of the same ops: without these, what is exported here is a miss there. And for all of
//! them: images under their manifests' digests, because BuildKit asks no further where it finds nothing by these.
//!
//! Each version finds a chain of its own, from the images to the results, and nothing in it is linked from a name that only others use. What
//! versions agree on, they share.

use std::collections::{BTreeSet, HashMap};

use lapstrake_builder_llb::{
    Graph, Vertex,
    cache_key::{self, VersionKey, Versions},
    pb,
};
use lapstrake_builder_solver::KeyId;
use lapstrake_layerstore_oci::Digest;

use crate::document::{Record, RecordInput};

/// What a result is called.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Name {
    digest: Digest,
    /// How each input counts under it, by number: `None` is all of it.
    selectors: Vec<Option<Digest>>,
    /// Who calls it so.
    versions: Versions,
}

/// What other builders, such as older versions of BuildKit, call the results of a graph's ops.
#[derive(Debug, Clone)]
pub struct OlderNames {
    /// By what they are called today: every name, today's first.
    names: HashMap<Digest, Vec<Name>>,
    /// Who is to find them.
    readers: Versions,
}

impl Default for OlderNames {
    fn default() -> Self {
        Self { names: HashMap::new(), readers: Versions::ALL }
    }
}

/// A record that leads to a result.
#[derive(Debug, Clone, Default)]
pub(crate) struct Leading {
    pub(crate) record: Record,
    /// What the result is looked up by.
    pub(crate) result: Option<usize>,
    /// Whether the result is to be written as a list of layers, which BuildKit before 0.10 passes over.
    pub(crate) in_order: bool,
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
            for digest in [&today, &other] {
                let name = Name { digest: digest.clone(), selectors: Vec::new(), versions: Versions::ALL };
                self.insert(&today, name);
            }
        }
    }

    /// Those of some versions alone, today's among them.
    #[must_use]
    pub fn read_by(mut self, readers: Versions) -> Self {
        self.readers = self.readers.and(readers.or(Versions::TODAY));
        for names in self.names.values_mut() {
            names.iter_mut().for_each(|name| name.versions = name.versions.and(self.readers));
            names.retain(|name| !name.versions.is_empty());
        }
        self
    }

    /// These and those of another graph.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        for (today, names) in &other.names {
            names.iter().for_each(|name| self.insert(today, name.clone()));
        }
        self
    }

    #[cfg(test)]
    pub(crate) fn call_before_0_10(&mut self, today: &Digest, older: &Digest) {
        let name =
            |digest: &Digest, versions| Name { digest: digest.clone(), selectors: Vec::new(), versions };
        self.insert(today, name(today, Versions::ALL.without(Versions::BEFORE_0_10)));
        self.insert(today, name(older, Versions::BEFORE_0_10));
    }

    fn insert(&mut self, today: &Digest, name: Name) {
        let names = self.names.entry(today.clone()).or_default();
        if !names.contains(&name) {
            names.push(name);
        }
    }

    fn add(&mut self, vertex: &Vertex) {
        let keys = cache_key::in_versions(&vertex.op, vertex.inputs.len());
        let ([today, ..], true) = (&keys[..], keys.len() > 1) else { return };
        for output in 0..outputs(&vertex.op) {
            let name = |key: &VersionKey| {
                Digest::parse(KeyId::root(&key.name, output).as_str()).expect("a root key is a digest")
            };
            for key in &keys {
                let (selectors, versions) = (key.selectors.clone(), key.versions);
                self.insert(&name(today), Name { digest: name(key), selectors, versions });
            }
        }
    }

    /// The records, among those that other versions find the same results by. Inputs' records come before what is made of them, and so they do
    /// here.
    pub(crate) fn extend(&self, records: Vec<Leading>) -> Vec<Leading> {
        let before_0_10 = !self.readers.and(Versions::BEFORE_0_10).is_empty();
        let mut extended: Vec<Leading> = Vec::with_capacity(records.len());
        // Where the records that stand for each of the given ones are, and for whom.
        let mut places: Vec<Vec<(usize, Versions)>> = Vec::with_capacity(records.len());
        for leading in records {
            let today = leading.record.digest.as_ref();
            let names = today.and_then(|digest| self.names.get(digest)).map_or(&[][..], Vec::as_slice);
            if names.is_empty() {
                places.push(vec![(extended.len(), Versions::ALL)]);
                let record = linked(&leading.record, None, &[], &places);
                extended.push(Leading { record, ..leading });
                continue;
            }
            let mut at = Vec::new();
            let mut digests: Vec<&Digest> = names.iter().map(|name| &name.digest).collect();
            digests.sort_unstable();
            digests.dedup();
            for digest in digests {
                let uses: Vec<&Name> = names.iter().filter(|name| name.digest == *digest).collect();
                let versions = uses.iter().fold(Versions::NONE, |all, name| all.or(name.versions));
                at.push((extended.len(), versions));
                let mut record = linked(&leading.record, names.first(), &uses, &places);
                record.digest = Some(digest.clone());
                // BuildKit before 0.9.1 finds a result in one record only, any of those that have it. So the one that is for it has it alone.
                let in_order = before_0_10 && versions.and(Versions::BEFORE_0_10).is_empty();
                extended.push(Leading { record, result: leading.result, in_order });
            }
            places.push(at);
        }
        extended
    }
}

/// A record under one of its names, linked from what its inputs are called by the same versions. `uses` are the ways to use this name, none of
/// them if there is no other.
fn linked(
    record: &Record,
    today: Option<&Name>,
    uses: &[&Name],
    places: &[Vec<(usize, Versions)>],
) -> Record {
    let mut linked = Record { inputs: Vec::with_capacity(record.inputs.len()), ..record.clone() };
    for (number, alternatives) in record.inputs.iter().enumerate() {
        let written = |selector: Option<&Option<Digest>>| {
            selector.and_then(Option::as_ref).map_or("", Digest::as_str).to_owned()
        };
        let selected = today.map(|today| written(today.selectors.get(number)));
        let mut all = BTreeSet::new();
        for RecordInput { selector, link } in alternatives {
            // What is known by its content has no selector, in no version.
            let by_definition = !selector.is_empty() && selected.as_ref() == Some(selector);
            for (place, versions) in &places[*link] {
                if uses.is_empty() {
                    all.insert(RecordInput { selector: selector.clone(), link: *place });
                }
                for name in uses.iter().filter(|name| !name.versions.and(*versions).is_empty()) {
                    let older = by_definition.then(|| written(name.selectors.get(number)));
                    let selector = older.unwrap_or_else(|| selector.clone());
                    all.insert(RecordInput { selector, link: *place });
                }
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

    const OLD: Versions = Versions::BEFORE_0_10;

    fn digest(name: &str) -> Digest {
        Digest::sha256_of(name)
    }

    fn leading(name: &str, inputs: &[(&str, usize)]) -> Leading {
        let input = |(selector, link): &(&str, usize)| {
            let selector = if selector.is_empty() { String::new() } else { digest(selector).to_string() };
            vec![RecordInput { selector, link: *link }]
        };
        let inputs = inputs.iter().map(input).collect();
        let record = Record { digest: Some(digest(name)), inputs, ..Record::default() };
        Leading { record, result: Some(0), in_order: false }
    }

    fn name(text: &str, selector: Option<&str>, versions: Versions) -> Name {
        Name { digest: digest(text), selectors: vec![selector.map(digest)], versions }
    }

    /// Steps that select `/` today and nothing before, and have another name in the oldest versions.
    fn steps() -> OlderNames {
        let mut names = OlderNames::default();
        for step in ["one", "two"] {
            names.names.insert(
                digest(step),
                vec![
                    name(step, Some("/"), Versions::TODAY),
                    name(step, None, Versions::SINCE_0_11.without(Versions::TODAY)),
                    name(&format!("{step} of 0.8"), None, OLD),
                ],
            );
        }
        names
    }

    fn chain() -> Vec<Leading> {
        vec![leading("base", &[]), leading("one", &[("/", 0)]), leading("two", &[("/", 1)])]
    }

    /// A record's name, whether its result is a list, and what it is linked from: whether by a selector, and a name.
    type Shown = (Digest, bool, Vec<(bool, Digest)>);

    fn shown(extended: &[Leading]) -> BTreeSet<Shown> {
        let named = |leading: &Leading| leading.record.digest.clone().unwrap();
        let links = |leading: &Leading| {
            let links = leading.record.inputs.iter().flatten();
            links.map(|input| (!input.selector.is_empty(), named(&extended[input.link]))).collect()
        };
        extended.iter().map(|leading| (named(leading), leading.in_order, links(leading))).collect()
    }

    #[test]
    fn every_version_has_a_chain_of_its_own() {
        let both = |link: &str| vec![(false, digest(link)), (true, digest(link))];
        assert_eq!(
            shown(&steps().extend(chain())),
            BTreeSet::from([
                (digest("base"), false, vec![]),
                (digest("one"), true, both("base")),
                (digest("one of 0.8"), false, vec![(false, digest("base"))]),
                (digest("two"), true, both("one")),
                (digest("two of 0.8"), false, vec![(false, digest("one of 0.8"))]),
            ])
        );
    }

    #[test]
    fn names_that_no_reader_uses_are_left_out() {
        let both = |link: &str| vec![(false, digest(link)), (true, digest(link))];
        assert_eq!(
            shown(&steps().read_by(Versions::SINCE_0_11).extend(chain())),
            BTreeSet::from([
                (digest("base"), false, vec![]),
                (digest("one"), false, both("base")),
                (digest("two"), false, both("one")),
            ])
        );
        assert_eq!(
            shown(&steps().read_by(Versions::TODAY).extend(chain())),
            shown(&OlderNames::default().extend(chain()))
        );
    }

    #[test]
    fn all_versions_call_an_image_by_its_layers_and_its_manifest() {
        let mut names = steps();
        let key = |name: &str| KeyId::new(digest(name).as_str());
        names.source(&key("base"), &key("manifest"));
        let extended = names.read_by(Versions::TODAY).extend(chain());
        assert_eq!(extended.len(), 4);
        let one = extended.iter().find(|leading| leading.record.digest == Some(digest("one"))).unwrap();
        let links: BTreeSet<_> =
            one.record.inputs[0].iter().map(|input| &extended[input.link].record.digest).collect();
        assert_eq!(links, BTreeSet::from([&Some(digest("base")), &Some(digest("manifest"))]));
    }

    #[test]
    fn links_by_content_stay_as_they_are() {
        let mut names = OlderNames::default();
        let copy = [name("copy", Some("/src"), Versions::TODAY), name("old copy", Some("/src"), OLD)];
        names.names.insert(digest("copy"), copy.to_vec());
        let extended = names.extend(vec![leading("content", &[]), leading("copy", &[("", 0)])]);
        assert_eq!(extended.len(), 3);
        let links = extended.iter().flat_map(|leading| leading.record.inputs.iter().flatten());
        assert!(links.clone().count() == 2 && links.into_iter().all(|input| input.selector.is_empty()));
    }
}
