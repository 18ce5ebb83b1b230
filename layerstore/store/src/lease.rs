//! Leases: what running work holds.
//!
//! A lease lives in memory and holds resources until it is dropped. A crash ends it, which is right: the work it served
//! is gone too. Collection ([`crate::collect`]) asks what is held under [`Leases::collecting`], so nothing can be taken
//! between the question and the removal.
//!
//! An active snapshot whose last lease ended is left to the next collection: cleanup needs no other code.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use lapstrake_layerstore_oci::{Digest, ImageId};
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::{SnapshotKey, SnapshotName};

/// Something that a lease can hold.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// A committed snapshot (and so its parents).
    Snapshot(SnapshotName),
    /// An active snapshot or view.
    Key(SnapshotKey),
    /// A blob.
    Blob(Digest),
    /// An image (and so its layers and blobs).
    Image(ImageId),
}

/// Ended keys that are remembered until the next collection. Those beyond wait for the next start.
const MAX_ENDED: usize = 1 << 16;

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    // Taken for reading while somebody looks a thing up and then holds it; for writing while things are removed.
    collection: RwLock<()>,
}

#[derive(Default)]
struct State {
    counts: HashMap<Resource, usize>,
    // What was held at any time since collection began, while one runs.
    since: Option<HashSet<Resource>>,
    // Active snapshots and views that were held and are no more.
    ended: BTreeSet<SnapshotKey>,
}

/// Keeps lookups out while it lives. See [`Leases::collecting`].
#[must_use = "lookups are kept out only while it lives"]
pub struct Collecting<'a> {
    leases: &'a Leases,
    _guard: RwLockWriteGuard<'a, ()>,
}

impl Drop for Collecting<'_> {
    fn drop(&mut self) {
        self.leases.0.state.lock().since = None;
    }
}

impl std::fmt::Debug for Collecting<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Collecting")
    }
}

/// All live leases of one store. Cheap to clone.
#[derive(Clone, Default)]
pub struct Leases(Arc<Shared>);

impl Leases {
    /// A new lease that holds nothing yet.
    pub fn create(&self) -> Lease {
        Lease { leases: self.clone(), held: Mutex::new(BTreeSet::new()) }
    }

    /// Whether any lease holds this.
    pub fn held(&self, resource: &Resource) -> bool {
        self.0.state.lock().counts.contains_key(resource)
    }

    /// Whether any lease holds this, or did so for a moment since the collection that runs began.
    pub fn held_since_collecting(&self, resource: &Resource) -> bool {
        let state = self.0.state.lock();
        state.counts.contains_key(resource)
            || state.since.as_ref().is_some_and(|since| since.contains(resource))
    }

    /// Everything that any lease holds.
    pub fn all_held(&self) -> BTreeSet<Resource> {
        self.0.state.lock().counts.keys().cloned().collect()
    }

    /// Active snapshots and views whose last lease ended, until [`Self::forget_ended`].
    pub(crate) fn ended(&self) -> BTreeSet<SnapshotKey> {
        self.0.state.lock().ended.clone()
    }

    /// Says that nobody will come back for an active snapshot: the next collection removes it, unless somebody holds it then.
    pub fn abandon(&self, key: SnapshotKey) {
        let mut state = self.0.state.lock();
        if state.ended.len() < MAX_ENDED {
            state.ended.insert(key);
        }
    }

    /// Says that these keys are dealt with.
    pub(crate) fn forget_ended<'k>(&self, keys: impl IntoIterator<Item = &'k SnapshotKey>) {
        let mut state = self.0.state.lock();
        for key in keys {
            state.ended.remove(key);
        }
    }

    /// Keeps collection out while the caller looks something up and holds it. Keep it short; no I/O but metadata.
    pub fn guard(&self) -> RwLockReadGuard<'_, ()> {
        self.0.collection.read()
    }

    /// Keeps lookups out while the collector decides and removes.
    ///
    /// Never call it inside [`Self::guard`]: it would wait for itself.
    pub fn collecting(&self) -> Collecting<'_> {
        let guard = self.0.collection.write();
        self.0.state.lock().since = Some(HashSet::new());
        Collecting { leases: self, _guard: guard }
    }
}

impl std::fmt::Debug for Leases {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leases").field("held", &self.0.state.lock().counts.len()).finish()
    }
}

/// Holds resources until dropped. Share it as `Arc<Lease>` where several tasks add to it.
#[derive(Debug)]
pub struct Lease {
    leases: Leases,
    held: Mutex<BTreeSet<Resource>>,
}

impl Lease {
    /// Holds a resource. Holding it twice is the same as once.
    ///
    /// To look up and hold without a gap, do both under [`Leases::guard`].
    pub fn hold(&self, resource: Resource) {
        if self.held.lock().insert(resource.clone()) {
            let mut state = self.leases.0.state.lock();
            if let Some(since) = &mut state.since {
                since.insert(resource.clone());
            }
            *state.counts.entry(resource).or_insert(0) += 1;
        }
    }

    /// Lets go of one resource before the lease ends; nothing happens when it is not held.
    pub fn release(&self, resource: &Resource) {
        if self.held.lock().remove(resource) {
            self.leases.forget(resource);
        }
    }

    /// Whether this lease holds the resource.
    pub fn holds(&self, resource: &Resource) -> bool {
        self.held.lock().contains(resource)
    }

    /// The leases that this one is among.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }
}

impl Leases {
    fn forget(&self, resource: &Resource) {
        let mut state = self.0.state.lock();
        let Some(count) = state.counts.get_mut(resource) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        state.counts.remove(resource);
        if let Resource::Key(key) = resource
            && state.ended.len() < MAX_ENDED
        {
            state.ended.insert(key.clone());
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        for resource in std::mem::take(self.held.get_mut()) {
            self.leases.forget(&resource);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_is_held_until_the_last_lease_on_it_ends() {
        let leases = Leases::default();
        let resource = Resource::Snapshot(SnapshotName::random());
        let first = leases.create();
        let second = leases.create();
        first.hold(resource.clone());
        first.hold(resource.clone());
        second.hold(resource.clone());
        drop(first);
        assert!(leases.held(&resource));
        second.release(&resource);
        assert!(!leases.held(&resource));
        drop(second);
        assert!(leases.all_held().is_empty());
    }
}
