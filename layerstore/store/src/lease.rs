//! Leases: what running work holds.
//!
//! A lease lives in memory and holds resources until it is dropped. A crash ends it, which is right: the work it served
//! is gone too. Collection (see the local store) asks [`Leases::held`] under [`Leases::guard`], so nothing can be taken
//! between the question and the removal.

use std::{
    collections::{BTreeSet, HashMap},
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

#[derive(Default)]
struct Shared {
    counts: Mutex<HashMap<Resource, usize>>,
    // Taken for reading while somebody looks a thing up and then holds it; for writing while things are removed.
    collection: RwLock<()>,
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
        self.0.counts.lock().contains_key(resource)
    }

    /// Everything that any lease holds.
    pub fn all_held(&self) -> BTreeSet<Resource> {
        self.0.counts.lock().keys().cloned().collect()
    }

    /// Keeps collection out while the caller looks something up and holds it. Keep it short; no I/O but metadata.
    pub fn guard(&self) -> RwLockReadGuard<'_, ()> {
        self.0.collection.read()
    }

    /// Keeps lookups out while the collector decides and removes.
    pub fn collecting(&self) -> RwLockWriteGuard<'_, ()> {
        self.0.collection.write()
    }
}

impl std::fmt::Debug for Leases {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leases").field("held", &self.0.counts.lock().len()).finish()
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
            *self.leases.0.counts.lock().entry(resource).or_insert(0) += 1;
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
        let mut counts = self.0.counts.lock();
        if let Some(count) = counts.get_mut(resource) {
            *count -= 1;
            if *count == 0 {
                counts.remove(resource);
            }
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
