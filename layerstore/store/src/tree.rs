//! Trees: committed snapshots that cannot go away while somebody works with them.
//!
//! ```text
//! Tree::empty / Stores::hold ──► Tree ──Stores::begin──► Draft ──write──► Draft::commit ──► Tree
//! ```

use std::{collections::HashSet, path::PathBuf, sync::Arc};

use crate::{
    DiffSource, Lease, OpenSnapshot, Resource, SnapshotKey, SnapshotMount, SnapshotName, StoreError, Stores,
    Usage, in_user_namespace,
};

/// The extended attribute of the root directory of a tree that came from a client, see [`Draft::mark_received`]. In a user namespace, which may set no
/// trusted ones, it is among those that overlays keep for themselves.
pub fn received_xattr() -> &'static str {
    if in_user_namespace() { "user.overlay.lapstrake.received" } else { "trusted.lapstrake.received" }
}

/// A committed snapshot, held by a lease, or the empty tree. Clones share the lease.
#[derive(Debug, Clone)]
pub struct Tree {
    name: Option<SnapshotName>,
    _lease: Option<Arc<Lease>>,
}

impl Tree {
    /// The tree without any entry (`FROM scratch`).
    pub fn empty() -> Self {
        Self { name: None, _lease: None }
    }

    /// The snapshot, or `None` for the empty tree.
    pub fn snapshot(&self) -> Option<&SnapshotName> {
        self.name.as_ref()
    }
}

impl PartialEq for Tree {
    /// Two trees are equal when they are the same snapshot.
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Tree {}

impl Stores {
    /// Holds a committed snapshot, if it is there.
    pub fn hold(&self, name: &SnapshotName) -> Result<Option<Tree>, StoreError> {
        let lease = self.leases.create();
        {
            // Looked up and held without a gap: collection waits.
            let _guard = self.leases.guard();
            match self.snapshots.stat(name) {
                Ok(_) => lease.hold(Resource::Snapshot(name.clone())),
                Err(StoreError::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(Tree { name: Some(name.clone()), _lease: Some(Arc::new(lease)) }))
    }

    /// Starts a tree that begins as `parent` is. Dropping the draft discards it.
    pub fn begin(&self, parent: &Tree) -> Result<Draft, StoreError> {
        let key = SnapshotKey::random();
        let lease = self.leases.create();
        lease.hold(Resource::Key(key.clone()));
        let mount = self.snapshots.prepare(&key, parent.snapshot())?;
        Ok(Draft { stores: self.clone(), key: Some(key), mount, lease: Some(lease), parent: parent.clone() })
    }

    /// How to mount a tree for reading; `None` for the empty tree.
    pub fn mount(&self, tree: &Tree) -> Result<Option<SnapshotMount>, StoreError> {
        tree.snapshot().map(|name| self.snapshots.committed_mount(name)).transpose()
    }

    /// Opens a tree for reading; `None` for the empty tree.
    pub fn open(&self, tree: &Tree) -> Result<Option<OpenSnapshot>, StoreError> {
        self.mount(tree)?.map(|mount| OpenSnapshot::open(&mount)).transpose()
    }
}

/// A tree being written. Discarded when dropped.
pub struct Draft {
    stores: Stores,
    // Both are `None` only after `commit`.
    key: Option<SnapshotKey>,
    lease: Option<Lease>,
    mount: SnapshotMount,
    parent: Tree,
}

impl Draft {
    /// How to mount it for writing.
    pub fn mount(&self) -> &SnapshotMount {
        &self.mount
    }

    /// Opens it for writing.
    pub fn open(&self) -> Result<OpenSnapshot, StoreError> {
        OpenSnapshot::open(&self.mount)
    }

    /// Where its difference over the parent is written.
    pub fn diff(&self) -> Result<DiffSource, StoreError> {
        self.stores.snapshots.active_diff(self.key())
    }

    /// The tree it began as.
    pub fn parent(&self) -> &Tree {
        &self.parent
    }

    /// The directory that holds the tree, where it is one (no parent, or a driver that copies).
    pub fn directory(&self) -> Option<&PathBuf> {
        match &self.mount {
            SnapshotMount::Bind { source, .. } => Some(source),
            SnapshotMount::Overlay { .. } => None,
        }
    }

    /// Marks the tree as one that a client sent: a build context. To content digests, as to BuildKit's, the attributes of
    /// its root directory then mean nothing. What is made from it later is no such tree.
    ///
    /// A file system without such attributes keeps no mark: keys of caches then differ from BuildKit's, and nothing else does.
    pub fn mark_received(&self) -> Result<(), StoreError> {
        let root = self.open()?;
        // By a path that ends in the directory itself: the root is open for passing through only.
        let path = root.path().join(".");
        match rustix::fs::setxattr(&path, received_xattr(), b"y", rustix::fs::XattrFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::PERM) => Ok(()),
            Err(errno) => Err(StoreError::io("mark", path)(errno.into())),
        }
    }

    /// Says that files of it, which take `usage`, are hard links to files of a committed snapshot.
    pub fn share(&self, with: &SnapshotName, usage: Usage) -> Result<(), StoreError> {
        self.stores.snapshots.share(self.key(), with, usage)
    }

    /// Which files below it must not be linked to: see [`Snapshotter::shared_below`](crate::Snapshotter::shared_below).
    pub fn shared_below(&self) -> Result<HashSet<u64>, StoreError> {
        self.stores.snapshots.shared_below(self.key())
    }

    /// Makes it immutable. All writers have ended.
    pub fn commit(mut self) -> Result<Tree, StoreError> {
        let name = SnapshotName::random();
        let lease = self.lease.take().expect("only commit takes it");
        // Held before it exists, so that collection never sees it unheld.
        lease.hold(Resource::Snapshot(name.clone()));
        self.stores.snapshots.commit(self.key(), &name)?;
        if let Some(key) = self.key.take() {
            lease.release(&Resource::Key(key));
        }
        Ok(Tree { name: Some(name), _lease: Some(Arc::new(lease)) })
    }

    fn key(&self) -> &SnapshotKey {
        self.key.as_ref().expect("only commit and drop take it")
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(key) = self.key.take()
            && let Err(error) = self.stores.snapshots.remove_key(&key)
        {
            // Left to collection: nothing names it any more.
            tracing::warn!(%error, %key, "a discarded snapshot could not be removed");
        }
    }
}

impl std::fmt::Debug for Draft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Draft").field("key", &self.key).field("parent", &self.parent).finish_non_exhaustive()
    }
}
