//! Cache mounts: directories that outlive the steps that write to them.
//!
//! Each is an active snapshot with an entry of its own. A step takes one for as long as its processes live:
//!
//! * **shared**: all shared users at once use the same directory;
//! * **locked**: alone, after everybody who has it now;
//! * **private**: alone, in another directory if this one is in use; it is kept too.
//!
//! A shared user that comes while somebody is alone gets a directory as a private one does, as with BuildKit.
//!
//! # After a cancel
//!
//! A step that is cancelled, fails or is killed leaves the directory as its processes left it, as with BuildKit: only they know what of it is worth
//! keeping, and a build of the same step goes on from there. What is certain:
//!
//! * Nobody else has a locked or private directory before all processes of the step are gone: the value is dropped after them, and when the
//!   daemon is killed they die with it.
//! * A directory that begins as a tree is that tree, whole, before anybody has it. It is an overlay over the tree, or (vfs) a copy that gets its
//!   record when it is complete; one without a record goes at the next start.

use std::{
    path::Path,
    sync::{Arc, Weak},
};

use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_store::{Lease, Resource, SnapshotKey, SnapshotMount, StoreError, Tree};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{BuildCache, CacheError, RecordKind, entries};

/// How steps share a cache mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// At once.
    Shared,
    /// Each its own.
    Private,
    /// One after the other.
    Locked,
}

/// Permits of an id: one for each shared or private user, all for a locked one.
const PERMITS: u32 = 1 << 16;

/// Who uses the directories of one id.
pub(crate) struct Busy {
    lock: Arc<Semaphore>,
    users: Vec<User>,
}

impl Default for Busy {
    fn default() -> Self {
        Self { lock: Arc::new(Semaphore::new(PERMITS as usize)), users: Vec::new() }
    }
}

struct User {
    key: SnapshotKey,
    shared: bool,
    alive: Weak<()>,
}

impl Busy {
    /// Whether a directory may be used in this way by one more.
    fn admits(&self, key: &SnapshotKey, sharing: Sharing) -> bool {
        let mut users = self.users.iter().filter(|user| user.key == *key && user.alive.strong_count() > 0);
        users.all(|user| user.shared && sharing == Sharing::Shared)
    }
}

/// A directory, for as long as this value lives.
#[derive(Debug)]
pub struct CacheMount {
    mount: SnapshotMount,
    _user: Arc<()>,
    _permit: Option<OwnedSemaphorePermit>,
    _lease: Lease,
}

impl CacheMount {
    /// How to mount it. Where it began as a tree, it is an overlay: those who have it at once must have one mount of it, and not one each.
    pub fn mount(&self) -> &SnapshotMount {
        &self.mount
    }

    /// The directory itself; `None` where it began as a tree.
    pub fn directory(&self) -> Option<&Path> {
        match &self.mount {
            SnapshotMount::Bind { source, .. } => Some(source),
            SnapshotMount::Overlay { .. } => None,
        }
    }
}

/// What a directory is listed as.
struct Listed {
    kind: RecordKind,
    description: String,
}

impl BuildCache {
    /// Takes the cache mount `id`, which begins as `initial` when it is new. `target` is where it will be mounted, for the listing.
    ///
    /// Waits while another step has it locked. Cancel-safe by drop.
    pub async fn mount(
        self: Arc<Self>,
        id: &str,
        sharing: Sharing,
        initial: &Tree,
        target: &str,
    ) -> Result<CacheMount, CacheError> {
        if id.contains('\0') {
            return Err(CacheError::MountId { id: id.to_owned(), why: "contains a NUL" });
        }
        let description = format!("cached mount {target} from exec with id {id:?}");
        self.lend(id, sharing, initial, Listed { kind: RecordKind::CacheMount, description }).await
    }

    /// Forgets the directories of the cache mount `id` that begin as `initial`: who takes it next begins anew. Whoever has one now keeps it, and they
    /// are pruned as other entries are.
    pub async fn forget_mount(self: Arc<Self>, id: &str, initial: &Tree) -> Result<(), CacheError> {
        let id = mount_id(id, initial);
        tokio::task::spawn_blocking(move || {
            // Not while somebody chooses.
            let _busy = self.busy.lock();
            entries::forget_mounts(&self.metadata, &id).map_err(CacheError::from)
        })
        .await
        .map_err(|_| CacheError::Lost)?
    }

    /// Takes a directory of the daemon's own, alone, which begins empty when it is new. It is listed, pruned and measured as a cache mount is, and no
    /// step can name it.
    pub async fn directory(self: Arc<Self>, id: &str, description: String) -> Result<CacheMount, CacheError> {
        // What a Dockerfile says has no NUL in it.
        let listed = Listed { kind: RecordKind::Regular, description };
        self.lend(&format!("\0{id}"), Sharing::Locked, &Tree::empty(), listed).await
    }

    async fn lend(
        self: Arc<Self>,
        id: &str,
        sharing: Sharing,
        initial: &Tree,
        listed: Listed,
    ) -> Result<CacheMount, CacheError> {
        let id = mount_id(id, initial);
        let lock = Arc::clone(&self.busy.lock().entry(id.clone()).or_default().lock);
        let permit = match sharing {
            Sharing::Locked => Some(lock.acquire_many_owned(PERMITS).await.expect("never closed")),
            // Without one, somebody is alone: `take` gives another directory.
            Sharing::Shared | Sharing::Private => lock.try_acquire_owned().ok(),
        };
        let (cache, initial) = (self, initial.clone());
        tokio::task::spawn_blocking(move || cache.take(&id, sharing, &initial, &listed, permit))
            .await
            .map_err(|_| CacheError::Lost)?
    }

    fn take(
        &self,
        id: &str,
        sharing: Sharing,
        initial: &Tree,
        listed: &Listed,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<CacheMount, CacheError> {
        // Held until the choice is made: two private users must not choose the same, two shared ones must not make two.
        let mut busy = self.busy.lock();
        busy.retain(|_, busy| {
            busy.users.retain(|user| user.alive.strong_count() > 0);
            !busy.users.is_empty() || Arc::strong_count(&busy.lock) > 1
        });
        let in_use = busy.entry(id.to_owned()).or_default();
        let lease = self.stores.leases.create();
        for key in entries::mount_keys(&self.metadata, id)? {
            if !in_use.admits(&key, sharing) {
                continue;
            }
            let mount = {
                let _guard = self.stores.leases.guard();
                match self.stores.snapshots.mounts(&key) {
                    Ok(mount) => {
                        lease.hold(Resource::Key(key.clone()));
                        mount
                    }
                    // Pruned in between.
                    Err(StoreError::NotFound { .. }) => continue,
                    Err(error) => return Err(error.into()),
                }
            };
            return self.taken(in_use, id, key, mount, listed, lease, permit, sharing);
        }
        let key = SnapshotKey::random();
        lease.hold(Resource::Key(key.clone()));
        // Prepared first and recorded then: a crash in between leaves an active snapshot without an owner, which the next start removes.
        let mount = self.stores.snapshots.prepare(&key, initial.snapshot())?;
        self.taken(in_use, id, key, mount, listed, lease, permit, sharing)
    }

    #[allow(clippy::too_many_arguments)] // one place for what both ways of having a directory end with
    fn taken(
        &self,
        busy: &mut Busy,
        id: &str,
        key: SnapshotKey,
        mount: SnapshotMount,
        listed: &Listed,
        lease: Lease,
        permit: Option<OwnedSemaphorePermit>,
        sharing: Sharing,
    ) -> Result<CacheMount, CacheError> {
        entries::record_mount(&self.metadata, id, &key, listed.kind, &listed.description)?;
        let user = Arc::new(());
        let shared = sharing == Sharing::Shared;
        busy.users.push(User { key, shared, alive: Arc::downgrade(&user) });
        Ok(CacheMount { mount, _user: user, _permit: permit, _lease: lease })
    }
}

/// What the directories of a cache mount are known by. What a cache begins as is part of what it is. The id never becomes a path.
fn mount_id(id: &str, initial: &Tree) -> String {
    match initial.snapshot() {
        None => id.to_owned(),
        Some(snapshot) => Digest::sha256_of(format!("{id}\0{snapshot}").as_bytes()).to_string(),
    }
}
