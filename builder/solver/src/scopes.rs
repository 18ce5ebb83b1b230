//! The builds that have a vertex, and what became of them while an op ran.

use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use parking_lot::Mutex;

use crate::Types;

/// The builds that have a node.
pub(crate) struct Scopes<X: Types>(Mutex<State<X>>);

struct State<X: Types> {
    builds: Vec<(u64, X::Scope)>,
    /// The builds of other nodes that wait for this one's op.
    guests: Vec<(u64, Arc<Scopes<X>>)>,
    /// Keeps the node's op running for as long as any build has the node.
    stake: Option<Box<dyn Any + Send>>,
}

impl<X: Types> Default for Scopes<X> {
    fn default() -> Self {
        Self(Mutex::new(State { builds: Vec::new(), guests: Vec::new(), stake: None }))
    }
}

impl<X: Types> Scopes<X> {
    pub(crate) fn join(&self, build: u64, scope: X::Scope) {
        self.0.lock().builds.push((build, scope));
    }

    pub(crate) fn leave(&self, build: u64) {
        let mut state = self.0.lock();
        state.builds.retain(|(number, _)| *number != build);
        let ended = if state.builds.is_empty() { state.stake.take() } else { None };
        // Dropped without the lock: it may cancel.
        drop(state);
        drop(ended);
    }

    /// Holds `stake` until the last build leaves.
    pub(crate) fn hold(&self, stake: impl Any + Send) {
        let stake: Box<dyn Any + Send> = Box::new(stake);
        let mut state = self.0.lock();
        let ended = if state.builds.is_empty() { Some(stake) } else { state.stake.replace(stake) };
        drop(state);
        drop(ended);
    }

    /// Adds the builds of another node, now and to come.
    pub(crate) fn welcome(&self, guest: u64, scopes: Arc<Self>) {
        self.0.lock().guests.push((guest, scopes));
    }

    pub(crate) fn dismiss(&self, guest: u64) {
        self.0.lock().guests.retain(|(number, _)| *number != guest);
    }

    /// All builds, the node's own first, each once.
    fn all(&self) -> Vec<(u64, X::Scope)> {
        let (mut all, guests) = {
            let state = self.0.lock();
            (state.builds.clone(), state.guests.clone())
        };
        // A guest waits, so it has no guests itself: one step is all.
        for (_, guest) in guests {
            all.extend(guest.0.lock().builds.iter().cloned());
        }
        let mut seen = BTreeSet::new();
        all.retain(|(number, _)| seen.insert(*number));
        all
    }
}

/// What one piece of an op's work has seen of the builds.
pub(crate) struct Witness<X: Types> {
    scopes: Arc<Scopes<X>>,
    /// Builds by number, and whether each was alive whenever it was looked at.
    seen: Mutex<BTreeMap<u64, bool>>,
}

impl<X: Types> Witness<X> {
    pub(crate) fn new(scopes: Arc<Scopes<X>>) -> Self {
        Self { scopes, seen: Mutex::default() }
    }

    pub(crate) fn peek(&self) -> Vec<X::Scope> {
        self.scopes.all().into_iter().map(|(_, scope)| scope).collect()
    }

    pub(crate) fn scopes(&self) -> Vec<X::Scope> {
        let all = self.scopes.all();
        let mut seen = self.seen.lock();
        for (number, scope) in &all {
            *seen.entry(*number).or_default() |= X::alive(scope);
        }
        drop(seen);
        all.into_iter().map(|(_, scope)| scope).collect()
    }

    /// Whose fault a failure may be that happened right now; `None` if the work never looked at any build.
    pub(crate) fn blame(&self) -> Option<Arc<Blame>> {
        let seen = self.seen.lock();
        if seen.is_empty() {
            return None;
        }
        let now: BTreeMap<u64, X::Scope> = self.scopes.all().into_iter().collect();
        let lost = |(number, was_alive): &(&u64, &bool)| {
            now.get(number).is_none_or(|scope| **was_alive && !X::alive(scope))
        };
        let departed = seen.iter().filter(lost).map(|(number, _)| *number).collect();
        Some(Arc::new(Blame { seen: seen.keys().copied().collect(), departed }))
    }
}

/// The builds that work was done for when it failed.
#[derive(Debug)]
pub(crate) struct Blame {
    /// Those that the work could use.
    seen: BTreeSet<u64>,
    /// Those of them that left, or whose client did, before it failed.
    departed: BTreeSet<u64>,
}

impl Blame {
    /// Whether the failure may be others' alone: the work did not know of this build, or somebody else went away under it.
    ///
    /// Either can be so only a bounded number of times: work begun anew sees the build, and who left does not come back.
    pub(crate) fn spares(&self, build: u64) -> bool {
        let others_left = !self.departed.is_empty() && !self.departed.contains(&build);
        !self.seen.contains(&build) || others_left
    }
}
