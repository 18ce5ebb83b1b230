//! Writing: the same bytes for the same content, in BuildKit's order.

use lapstrake_layerstore_oci::{Digest, Digester};

use super::{CacheDocument, Layer, Record, RecordInput};

/// Puts a document together; what is pushed last may link to what was pushed before.
#[derive(Debug, Default)]
pub(crate) struct DocumentBuilder {
    document: CacheDocument,
    known: std::collections::HashMap<(Digest, i64), i64>,
}

impl DocumentBuilder {
    /// A layer on others; the same one is there once.
    pub(crate) fn layer(&mut self, blob: &Digest, parent: i64) -> i64 {
        let layers = &mut self.document.layers;
        *self.known.entry((blob.clone(), parent)).or_insert_with(|| {
            layers.push(Layer { blob: blob.clone(), parent, annotations: None });
            i64::try_from(layers.len() - 1).expect("layers are counted in memory")
        })
    }

    pub(crate) fn record(&mut self, record: Record) -> usize {
        self.document.records.push(record);
        self.document.records.len() - 1
    }

    /// Has one record be linked from all that nothing is linked from. BuildKit 0.25 and later read records backwards from each such end, and of
    /// what they came by before they lose every link but the first that they meet: with several ends, a step is a miss every now and then.
    pub(crate) fn tie(&mut self) {
        let records = &self.document.records;
        let mut is_end = vec![true; records.len()];
        records
            .iter()
            .flat_map(|record| record.inputs.iter().flatten())
            .for_each(|input| is_end[input.link] = false);
        let ends = (0..records.len()).filter(|record| is_end[*record]);
        let ends: Vec<_> = ends.map(|link| RecordInput { selector: String::new(), link }).collect();
        if ends.len() > 1 {
            // A key that no op has.
            let digest = Some(Digest::sha256_of("lapstrake.cache.ends"));
            self.record(Record { digest, inputs: vec![ends], ..Record::default() });
        }
    }

    /// The document, in BuildKit's order.
    pub(crate) fn finish(self) -> CacheDocument {
        sorted(self.document)
    }
}

/// In the order that BuildKit writes (`sortConfig`). Where that leaves the order open, what a record is made of decides, so that the same
/// cache always gives the same bytes.
fn sorted(document: CacheDocument) -> CacheDocument {
    let CacheDocument { mut layers, mut records } = document;
    let layer_places = order(layers.len(), |a, b| {
        // Layers are the same blob on other parents: those are told apart by their own place, which is made by content below.
        layers[a]
            .blob
            .as_str()
            .cmp(layers[b].blob.as_str())
            .then_with(|| chain(&layers, a).cmp(&chain(&layers, b)))
    });
    // Records alone speak of layers that are not there: those of an image.
    let moved = |index: i64| {
        let place = usize::try_from(index).ok().and_then(|index| layer_places.get(index));
        place.map_or(index, |place| i64::try_from(*place).expect("it was an i64 before"))
    };
    for layer in &mut layers {
        layer.parent = moved(layer.parent);
    }
    let layers = placed(layers, &layer_places);
    for record in &mut records {
        record.results.iter_mut().for_each(|result| result.layer = moved(result.layer));
        record.chains.iter_mut().flat_map(|chain| &mut chain.layers).for_each(|layer| *layer = moved(*layer));
    }
    let ids = identities(&records);
    let digest = |index: usize| digest_of(&records[index]);
    let inputs: Vec<Vec<Vec<(&str, &str)>>> = records
        .iter()
        .map(|record| record.inputs.iter().map(|list| by_digest(list, &records)).collect())
        .collect();
    let record_places = order(records.len(), |a, b| {
        let by_inputs = || {
            inputs[a]
                .iter()
                .zip(&inputs[b])
                .map(|(a, b)| a.len().cmp(&b.len()).then_with(|| a.cmp(b)))
                .find(|o| o.is_ne())
        };
        digest(a)
            .cmp(digest(b))
            .then_with(|| inputs[a].len().cmp(&inputs[b].len()))
            .then_with(|| by_inputs().unwrap_or(std::cmp::Ordering::Equal))
            .then_with(|| ids[a].cmp(&ids[b]))
    });
    for record in &mut records {
        for list in &mut record.inputs {
            list.iter_mut().for_each(|input| input.link = record_places[input.link]);
            list.sort_by(|a, b| (a.link, &a.selector).cmp(&(b.link, &b.selector)));
        }
    }
    CacheDocument { layers, records: placed(records, &record_places) }
}

fn digest_of(record: &Record) -> &str {
    record.digest.as_ref().map_or("", Digest::as_str)
}

/// The alternatives of an input, by selector and digest.
fn by_digest<'a>(list: &'a [RecordInput], records: &'a [Record]) -> Vec<(&'a str, &'a str)> {
    let mut keyed: Vec<_> =
        list.iter().map(|input| (input.selector.as_str(), digest_of(&records[input.link]))).collect();
    keyed.sort_unstable();
    keyed
}

fn chain(layers: &[Layer], from: usize) -> Vec<&str> {
    let mut blobs = Vec::new();
    let mut next = usize::try_from(layers[from].parent).ok();
    while let Some(layer) = next {
        blobs.push(layers[layer].blob.as_str());
        next = usize::try_from(layers[layer].parent).ok();
    }
    blobs
}

/// For each thing, its place in the order.
fn order(count: usize, compare: impl Fn(usize, usize) -> std::cmp::Ordering) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|a, b| compare(*a, *b));
    let mut places = vec![0; count];
    for (place, thing) in order.into_iter().enumerate() {
        places[thing] = place;
    }
    places
}

fn placed<T>(things: Vec<T>, places: &[usize]) -> Vec<T> {
    let mut keyed: Vec<(usize, T)> = places.iter().copied().zip(things).collect();
    keyed.sort_by_key(|(place, _)| *place);
    keyed.into_iter().map(|(_, thing)| thing).collect()
}

/// What each record is and is made of, as a digest. Records come after those that they link to.
fn identities(records: &[Record]) -> Vec<Digest> {
    let mut ids: Vec<Digest> = Vec::with_capacity(records.len());
    for record in records {
        let mut id = Digester::sha256();
        let mut add = |text: &str| {
            id.update(text.as_bytes());
            id.update(&[0]);
        };
        add(record.digest.as_ref().map_or("", Digest::as_str));
        for (number, list) in record.inputs.iter().enumerate() {
            add(&number.to_string());
            let mut parts: Vec<(&str, &str)> =
                list.iter().map(|input| (input.selector.as_str(), ids[input.link].as_str())).collect();
            parts.sort_unstable();
            parts.into_iter().for_each(|(selector, link)| {
                add(selector);
                add(link);
            });
        }
        record.results.iter().for_each(|result| add(&format!("{} {}", result.layer, result.created_at)));
        record.chains.iter().for_each(|chain| add(&format!("{:?} {}", chain.layers, chain.created_at)));
        ids.push(id.finish());
    }
    ids
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use lapstrake_layerstore_oci::Timestamp;
    use proptest::prelude::*;

    use super::*;
    use crate::document::RecordResult;

    fn digest(text: &str) -> Digest {
        Digest::sha256_of(text.as_bytes())
    }

    fn record(text: &str, inputs: Vec<Vec<RecordInput>>) -> Record {
        Record { digest: Some(digest(text)), inputs, ..Record::default() }
    }

    fn link(link: usize) -> RecordInput {
        RecordInput { selector: String::new(), link }
    }

    #[test]
    fn long_chains_cost_no_stack() {
        let mut builder = DocumentBuilder::default();
        let mut last = builder.record(record("0", Vec::new()));
        for index in 1..50_000 {
            last = builder.record(record(&index.to_string(), vec![vec![link(last)]]));
        }
        let json = builder.finish().to_json();
        assert_eq!(CacheDocument::parse(&json).unwrap().len(), 50_000);
    }

    /// A record's name, what it links to of those before, and the layers of its result.
    type Drawn = (u8, Vec<Vec<usize>>, Vec<u8>);

    fn graphs() -> impl Strategy<Value = Vec<Drawn>> {
        let inputs = proptest::collection::vec(proptest::collection::vec(any::<usize>(), 1..3), 0..3);
        let chain = proptest::collection::vec(0_u8..5, 0..4);
        proptest::collection::vec((0_u8..6, inputs, chain), 1..12)
    }

    fn build(graph: &[Drawn], turned: bool) -> CacheDocument {
        drafted(graph, turned).finish()
    }

    fn drafted(graph: &[Drawn], turned: bool) -> DocumentBuilder {
        let mut builder = DocumentBuilder::default();
        for (index, (name, inputs, chain)) in graph.iter().enumerate() {
            let inputs = if index == 0 { &Vec::new() } else { inputs };
            let alternatives = |list: &Vec<usize>| {
                let mut list: Vec<RecordInput> = list.iter().map(|number| link(number % index)).collect();
                list.sort();
                list.dedup();
                if turned {
                    list.reverse();
                }
                list
            };
            let inputs = inputs.iter().map(alternatives).collect();
            let layer = chain.iter().fold(-1, |below, blob| builder.layer(&digest(&blob.to_string()), below));
            let mut record = record(&name.to_string(), inputs);
            if layer >= 0 {
                record.results.push(RecordResult { layer, created_at: Timestamp::zero() });
            }
            builder.record(record);
        }
        builder
    }

    /// What BuildKit 0.25 and later know of a document: `addItemToStorage` in `cache/remotecache/v1/cachestorage.go`. It starts at the records that
    /// nothing is linked from, in any order, and goes through links in any order: `draw` tells which comes next of so many.
    fn links_that_buildkit_sees(
        document: &CacheDocument,
        draw: &mut impl FnMut(usize) -> usize,
    ) -> BTreeSet<Linked> {
        let records = document.records();
        let mut ends: BTreeSet<usize> = (0..records.len()).collect();
        records.iter().flat_map(|record| record.inputs.iter().flatten()).for_each(|input| {
            ends.remove(&input.link);
        });
        let mut seen = BTreeSet::new();
        let mut stored = BTreeSet::new();
        for end in drawn(ends.into_iter().collect(), draw) {
            see(records, end, &mut stored, &mut BTreeMap::new(), &mut seen, draw);
        }
        seen
    }

    /// A link: from, input, selector, to.
    type Linked = (usize, usize, String, usize);

    /// Whether the record can be linked from.
    fn see(
        records: &[Record],
        index: usize,
        stored: &mut BTreeSet<usize>,
        visited: &mut BTreeMap<usize, bool>,
        seen: &mut BTreeSet<Linked>,
        draw: &mut impl FnMut(usize) -> usize,
    ) -> bool {
        if let Some(known) = visited.get(&index) {
            return *known;
        }
        // Here is the fault: what an earlier walk has stored stays like this.
        visited.insert(index, false);
        if stored.contains(&index) {
            return true;
        }
        let links = records[index].inputs.iter().enumerate();
        let links =
            links.flat_map(|(input, list)| list.iter().map(move |link| (input, link.clone()))).collect();
        for (input, RecordInput { selector, link }) in drawn(links, draw) {
            if see(records, link, stored, visited, seen, draw) {
                seen.insert((link, input, selector, index));
            }
        }
        stored.insert(index);
        visited.insert(index, true);
        true
    }

    fn drawn<T>(mut things: Vec<T>, draw: &mut impl FnMut(usize) -> usize) -> Vec<T> {
        let mut order = Vec::with_capacity(things.len());
        while !things.is_empty() {
            order.push(things.swap_remove(draw(things.len())));
        }
        order
    }

    /// All links of a document.
    fn links(document: &CacheDocument) -> BTreeSet<Linked> {
        let records = document.records().iter().enumerate();
        let links = records.flat_map(|(index, record)| {
            let lists = record.inputs.iter().enumerate();
            lists.flat_map(move |(input, list)| {
                list.iter().map(move |link| (link.link, input, link.selector.clone(), index))
            })
        });
        links.collect()
    }

    #[test]
    fn buildkit_loses_links_of_documents_with_several_ends() {
        // Two chains on one base: whichever is read second has two links to it, by its record that has no result of its own.
        let mut builder = DocumentBuilder::default();
        let base = builder.record(record("base", Vec::new()));
        builder.record(record("one", vec![vec![link(base)]]));
        let two = builder.record(record("two", vec![vec![link(base)]]));
        builder.record(record("three", vec![vec![link(base)], vec![link(two)]]));
        let in_order = &mut |_| 0;
        let document = sorted(builder.document.clone());
        assert!(links_that_buildkit_sees(&document, in_order).len() < links(&document).len());
        builder.tie();
        let document = builder.finish();
        assert_eq!(document.len(), 5);
        assert_eq!(links_that_buildkit_sees(&document, in_order), links(&document));
    }

    proptest! {
        #[test]
        fn buildkit_sees_every_link_of_a_tied_document(graph in graphs(), numbers in proptest::collection::vec(any::<usize>(), 1..20)) {
            let mut builder = drafted(&graph, false);
            builder.tie();
            let document = builder.finish();
            let mut next = 0;
            let mut draw = |count: usize| {
                next += 1;
                numbers[next % numbers.len()] % count
            };
            prop_assert_eq!(links_that_buildkit_sees(&document, &mut draw), links(&document));
        }

        #[test]
        fn what_is_written_is_what_is_read(graph in graphs()) {
            let document = build(&graph, false);
            let json = document.to_json();
            let read = CacheDocument::parse(&json).unwrap();
            prop_assert_eq!(&read, &document);
            prop_assert_eq!(read.to_json(), json);
            // Layers of a result are those that were put there.
            let mut before: Vec<Vec<Digest>> =
                graph.iter().map(|(_, _, chain)| chain.iter().map(|blob| digest(&blob.to_string())).collect()).collect();
            let mut after: Vec<Vec<Digest>> = document.records().iter().map(|record| {
                let layers = record.results.first().map(|result| document.on_parents(result.layer));
                layers.unwrap_or_default().into_iter().map(|layer| document.blob(layer).clone()).collect()
            }).collect();
            before.sort();
            after.sort();
            prop_assert_eq!(before, after);
        }

        #[test]
        fn the_order_in_which_links_are_found_does_not_show(graph in graphs()) {
            prop_assert_eq!(build(&graph, false).to_json(), build(&graph, true).to_json());
        }

        #[test]
        fn no_bytes_make_it_panic(text in r#"[\[\]{}",:a-z0-9-]{0,60}"#) {
            let _ = CacheDocument::parse(text.as_bytes());
        }
    }
}
