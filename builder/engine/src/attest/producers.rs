//! Who made a graph: a frontend may be given, as input, what another one of the same or another running build had made (BuildKit's `provenanceStore`).

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use lapstrake_builder_llb::Definition;
use lapstrake_layerstore_oci::Digest;
use parking_lot::Mutex;

use super::{Trail, predicate::Request, provenance::told};

/// Fewest graphs among which those of builds that have ended are looked for.
const FEW: usize = 1024;

/// Whom frontends of running builds had asked for graphs, by the digest of what a graph makes.
#[derive(Default)]
pub(crate) struct Producers(Mutex<Known>);

#[derive(Default)]
struct Known {
    trails: HashMap<Digest, Vec<Weak<Trail>>>,
    /// How many graphs there were when those of builds that have ended were last removed.
    swept: usize,
}

impl Producers {
    /// A frontend had a graph made. What no frontend was asked for is nobody's.
    pub(crate) fn note(&self, graph: &Definition, trail: &Arc<Trail>) {
        if trail.asked().is_none() {
            return;
        }
        // A graph that means nothing fails its build elsewhere.
        let Ok(Some((head, _))) = graph.head() else { return };
        let mut known = self.0.lock();
        let trails = known.trails.entry(head).or_default();
        let (own, is_live) = (Arc::downgrade(trail), |other: &Weak<Trail>| other.strong_count() > 0);
        trails.retain(|other| is_live(other) && !other.ptr_eq(&own));
        trails.push(own);
        if known.trails.len() > known.swept.saturating_mul(2).max(FEW) {
            known.trails.retain(|_, trails| trails.iter().any(is_live));
            known.swept = known.trails.len();
        }
    }

    /// What was asked by whoever had the graph made, while its build runs; nothing where several had, and did not ask the same.
    pub(crate) fn request(&self, graph: &Definition) -> Option<Request> {
        let (head, _) = graph.head().ok()??;
        let trails: Vec<Arc<Trail>> =
            self.0.lock().trails.get(&head)?.iter().filter_map(Weak::upgrade).collect();
        let mut requests = trails.iter().filter_map(|trail| Some(told(trail.asked()?, &trail.own())));
        let first = requests.next()?;
        requests.all(|other| other == first).then_some(first)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lapstrake_builder_llb::pb;
    use prost::Message as _;

    use super::{super::Asked, *};
    use crate::FrontendRequest;

    fn graph(name: &str) -> Definition {
        let input = pb::Input { digest: Digest::sha256_of(name).to_string(), index: 0 };
        let end = pb::Op { inputs: vec![input], ..pb::Op::default() };
        Definition { ops: vec![end.encode_to_vec().into()], ..Definition::default() }
    }

    fn asked(target: &str) -> Asked {
        let options = BTreeMap::from([("target".to_owned(), target.to_owned())]);
        Asked { request: FrontendRequest { options, ..FrontendRequest::default() }, inputs: BTreeMap::new() }
    }

    #[test]
    fn a_graph_is_told_with_who_had_it_made_for_as_long_as_that_build_runs() {
        let producers = Producers::default();
        let client = Trail::nowhere();
        let maker = client.ask(asked("a"));
        producers.note(&graph("made"), &maker);
        producers.note(&graph("made"), &maker);
        producers.note(&graph("client's"), &client);
        assert_eq!(producers.request(&graph("made")).unwrap().request.args["target"], "a");
        assert_eq!(producers.request(&graph("client's")), None);
        assert_eq!(producers.request(&graph("other")), None);
        let same = client.ask(asked("a"));
        producers.note(&graph("made"), &same);
        assert!(producers.request(&graph("made")).is_some());
        let other = client.ask(asked("b"));
        producers.note(&graph("made"), &other);
        assert_eq!(producers.request(&graph("made")), None, "it is not known which of them it was");
        drop((client, maker, same, other));
        assert_eq!(producers.request(&graph("made")), None);
    }
}
