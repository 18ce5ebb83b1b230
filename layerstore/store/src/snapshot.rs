//! The snapshotter contract.
//!
//! A snapshot is a directory tree kept as a difference over its parent.
//!
//! # Terms
//!
//! * **active**: being written; known by a [`SnapshotKey`]; made by [`Snapshotter::prepare`].
//! * **view**: read-only look at a committed snapshot; known by a [`SnapshotKey`]; made by [`Snapshotter::view`].
//! * **committed**: immutable; known by a [`SnapshotName`]; made from an active one by [`Snapshotter::commit`]; may be a parent.
//! * **usage**: bytes and inodes that this snapshot alone takes on disk, its parents not counted, and of files that several
//!   snapshots have by hard links ([`Snapshotter::share`]) those not that are counted with another one: the sum is what all take.
//!
//! # A worked example: two steps over an empty base
//!
//! ```text
//! prepare("k1", None)        -> mounts; write files
//! commit("k1", "base")          "k1" is gone, "base" is committed
//! prepare("k2", Some("base"))-> mounts; change files
//! commit("k2", "step")          diff_source("step") gives what changed over "base"
//! remove("base")                refused: "step" is its child
//! remove("step"), remove("base")
//! ```
//!
//! Every implementation passes `layerstore/conformance`'s snapshotter suite.

use std::{collections::HashSet, fmt, path::PathBuf, sync::Arc, time::SystemTime};

use crate::{Leftovers, StoreError, random_id};

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Wraps an id made by [`Self::random`] or read back from metadata.
            pub fn new(id: impl Into<Arc<str>>) -> Self {
                Self(id.into())
            }

            /// A fresh id that nothing else has ([`random_id`]).
            pub fn random() -> Self {
                Self(random_id().into())
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
    };
}

text_id! {
    /// Names an active snapshot or a view.
    SnapshotKey
}

text_id! {
    /// Names a committed snapshot.
    SnapshotName
}

text_id! {
    /// Names a snapshot's directory within its driver, from the day it is prepared until it is removed.
    SnapshotId
}

/// What to mount to see a snapshot's tree. A value: nothing is mounted until somebody does it
/// ([`crate::mount::OpenSnapshot`] for the daemon's own use, the executor inside a container's mount namespace).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotMount {
    /// A directory that is the tree.
    Bind {
        /// The directory.
        source: PathBuf,
        /// Whether writing through the mount must be refused.
        read_only: bool,
    },
    /// An overlay; read-only when it has no `upper`.
    Overlay {
        /// Lower directories, top-most first; never empty.
        lower: Vec<PathBuf>,
        /// Where writes go.
        upper: Option<OverlayUpper>,
        /// How the kernel is told.
        syntax: OverlaySyntax,
    },
}

/// How the kernel is told an overlay's lower directories. Drivers find out by trying what it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum OverlaySyntax {
    /// One by one, by `fsconfig` with `lowerdir+`.
    Appended,
    /// All in one option of mount(2), which is all that kernels such as Debian 12's know.
    Listed,
}

/// The writable part of an overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayUpper {
    /// The upper directory.
    pub upper: PathBuf,
    /// Overlayfs's work directory, on the same file system.
    pub work: PathBuf,
}

/// Where the difference between a snapshot and its parent can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiffSource {
    /// A directory that holds just the changes, in overlayfs's form (character device 0:0 is a whiteout,
    /// `trusted.overlay.opaque=y` or `user.overlay.opaque=y` marks an opaque directory).
    OverlayUpper {
        /// The directory of changes.
        upper: PathBuf,
        /// The directories below it, top-most first; empty when there is no parent.
        lower: Vec<PathBuf>,
        /// As in [`Self::Trees`].
        deletions: Option<PathBuf>,
    },
    /// Two complete trees to compare.
    Trees {
        /// The parent's tree, if there is a parent.
        lower: Option<PathBuf>,
        /// The snapshot's tree.
        upper: PathBuf,
        /// The file that says what it deletes although nothing of it is in the parent; not there when it is nothing. It goes with the snapshot.
        deletions: Option<PathBuf>,
    },
}

/// The state a snapshot is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotKind {
    /// Being written.
    Active(SnapshotKey),
    /// A read-only look.
    View(SnapshotKey),
    /// Immutable.
    Committed(SnapshotName),
}

/// What is known of one snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its state and id.
    pub kind: SnapshotKind,
    /// The committed snapshot that it is a difference over.
    pub parent: Option<SnapshotName>,
    /// When it was prepared.
    pub created: SystemTime,
}

/// What one snapshot takes on disk, without its parents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes of allocated blocks; a file with several links counts once.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

impl std::ops::Add for Usage {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, inodes: self.inodes + other.inodes }
    }
}

/// Directory trees, each a difference over its parent. See the module's text for terms and an example.
///
/// All methods may be called from several threads at once; two calls on one key or name are serialised.
/// All block; none can be cancelled half-way, and each either happens whole or (after an error or a crash) not at all.
pub trait Snapshotter: Send + Sync {
    /// Starts an active snapshot over `parent` (or over nothing) and says how to mount it for writing.
    ///
    /// Errors: [`StoreError::AlreadyExists`] when `key` is taken, [`StoreError::NotFound`] when `parent` is not a committed snapshot.
    fn prepare(&self, key: &SnapshotKey, parent: Option<&SnapshotName>) -> Result<SnapshotMount, StoreError>;

    /// Starts a read-only view of `parent` (or of nothing: an empty tree). Ended by [`Self::remove_key`].
    ///
    /// Errors: as [`Self::prepare`].
    fn view(&self, key: &SnapshotKey, parent: Option<&SnapshotName>) -> Result<SnapshotMount, StoreError>;

    /// How to mount an active snapshot or view that exists. The same answer each time.
    fn mounts(&self, key: &SnapshotKey) -> Result<SnapshotMount, StoreError>;

    /// Makes the active snapshot `key` immutable under `name`; `key` is gone afterwards.
    ///
    /// The caller has ended all writers. The metadata names `name` only after its files are complete.
    /// Errors: [`StoreError::AlreadyExists`] when `name` is taken (then `key` stays active), [`StoreError::NotFound`],
    /// [`StoreError::Invalid`] when `key` is a view.
    fn commit(&self, key: &SnapshotKey, name: &SnapshotName) -> Result<(), StoreError>;

    /// How to mount a committed snapshot read-only, without making a view. The caller holds a lease on it.
    fn committed_mount(&self, name: &SnapshotName) -> Result<SnapshotMount, StoreError>;

    /// Where a committed snapshot's difference over its parent can be read. The caller holds a lease on it.
    fn diff_source(&self, name: &SnapshotName) -> Result<DiffSource, StoreError>;

    /// Where layer application may write the difference of an active snapshot directly, in the same form.
    fn active_diff(&self, key: &SnapshotKey) -> Result<DiffSource, StoreError>;

    /// What is known of a committed snapshot.
    fn stat(&self, name: &SnapshotName) -> Result<SnapshotInfo, StoreError>;

    /// What is known of an active snapshot or view.
    fn stat_key(&self, key: &SnapshotKey) -> Result<SnapshotInfo, StoreError>;

    /// Says when a committed snapshot was made, where that was elsewhere: what is exported again has the same times. Lazy: a power cut may take it.
    fn set_created(&self, name: &SnapshotName, created: SystemTime) -> Result<(), StoreError>;

    /// What a committed snapshot takes on disk. Measured once and remembered.
    fn usage(&self, name: &SnapshotName) -> Result<Usage, StoreError>;

    /// What an active snapshot takes on disk now. Walks the tree.
    fn usage_key(&self, key: &SnapshotKey) -> Result<Usage, StoreError>;

    /// Removes a committed snapshot. Errors: [`StoreError::InUse`] when it has children.
    fn remove(&self, name: &SnapshotName) -> Result<(), StoreError>;

    /// Removes an active snapshot or view and everything written to it.
    fn remove_key(&self, key: &SnapshotKey) -> Result<(), StoreError>;

    /// Says that files of the active snapshot `key`, which take `usage`, are hard links to files of the committed snapshot `with`, and so are counted with
    /// that one: as long as it is there, and then with one of those that have them.
    ///
    /// Errors: [`StoreError::NotFound`] naming the one that is not there.
    fn share(&self, key: &SnapshotKey, with: &SnapshotName, usage: Usage) -> Result<(), StoreError>;

    /// The inode numbers of files with several links in those snapshots below the active snapshot `key` that have files in common with others. If one of
    /// these were linked to, the tree would have one file by two names. Walks those snapshots.
    fn shared_below(&self, key: &SnapshotKey) -> Result<HashSet<u64>, StoreError>;

    /// Makes all that was written to snapshots so far durable. Slow: it flushes a whole file system.
    ///
    /// [`Self::commit`] does not do this. Who publishes a name for a committed snapshot that must survive a power cut
    /// (an image, a cache record) calls this once before, for any number of snapshots.
    fn sync(&self) -> Result<(), StoreError>;

    /// Removes several snapshots in two steps: afterwards none of them exists, but their files are deleted only by running
    /// what is returned. Each comes after its children, in `names` as given and with `keys` before `names`. For
    /// collection, which must not delete large trees while it keeps others out.
    ///
    /// Errors: as [`Self::remove`] and [`Self::remove_key`]; an implementation that does it in one transaction then removed none.
    /// The default removes one after the other and leaves nothing to do.
    fn forget(&self, keys: &[SnapshotKey], names: &[SnapshotName]) -> Result<Leftovers, StoreError> {
        keys.iter().try_for_each(|key| self.remove_key(key))?;
        names.iter().try_for_each(|name| self.remove(name))?;
        Ok(Leftovers::none())
    }

    /// Calls `visit` for every snapshot, parents before children, until it returns `false`.
    fn walk(&self, visit: &mut dyn FnMut(SnapshotInfo) -> bool) -> Result<(), StoreError>;
}
