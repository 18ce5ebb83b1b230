//! What a graph driver is, and which there are.

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use lapstrake_layerstore_store::{DiffSource, Leftovers, SnapshotId, SnapshotMount, StoreError, Usage};

use crate::{Overlay2, Vfs, probe};

/// Directories of snapshots, by id. `parents` are always all ids below, top-most first.
///
/// Methods may be called from several threads at once; the caller never works twice on one id at the same time, and
/// removes no parent that has children.
pub trait GraphDriver: Send + Sync + 'static {
    /// Which driver it is.
    fn kind(&self) -> DriverKind;

    /// Makes the directories of a new snapshot, whose tree is that of its nearest parent. After an error nothing is left.
    fn create(&self, id: &SnapshotId, parents: &[SnapshotId]) -> Result<(), StoreError>;

    /// How to mount a snapshot for writing.
    ///
    /// Errors: [`StoreError::Invalid`] when the kernel cannot stack so many.
    fn writable_mount(&self, id: &SnapshotId, parents: &[SnapshotId]) -> Result<SnapshotMount, StoreError>;

    /// How to mount a snapshot read-only. Errors: as [`Self::writable_mount`].
    fn read_only_mount(&self, id: &SnapshotId, parents: &[SnapshotId]) -> Result<SnapshotMount, StoreError>;

    /// Where the difference to the nearest parent is.
    fn diff(&self, id: &SnapshotId, parents: &[SnapshotId]) -> DiffSource;

    /// The directory that a snapshot's own files are in.
    fn directory(&self, id: &SnapshotId) -> PathBuf;

    /// What a snapshot's files take on disk, also those that others link to. Walks them.
    fn usage(&self, id: &SnapshotId) -> Result<Usage, StoreError>;

    /// Puts a snapshot's directories out of the way; running what is returned deletes them. Success when there are none.
    fn remove(&self, id: &SnapshotId) -> Result<Leftovers, StoreError>;

    /// Removes everything that belongs to no snapshot of `known`, and returns how many directories that were. For start-up.
    fn remove_unknown(&self, known: &BTreeSet<SnapshotId>) -> Result<usize, StoreError>;

    /// Makes everything durable: flushes the file system that the directories are on.
    fn sync(&self) -> Result<(), StoreError>;
}

/// The drivers there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DriverKind {
    /// Differences in overlayfs's form, in Docker's `overlay2` layout.
    Overlay2,
    /// Complete copies, in Docker's `vfs` layout. Works everywhere; slow and large.
    Vfs,
}

impl DriverKind {
    /// The best driver for the file system below `root`.
    ///
    /// Errors: [`StoreError::Io`] when `root` itself cannot be written.
    pub fn detect(root: &Path) -> Result<Self, StoreError> {
        match probe::overlay(root)? {
            Ok(_) => Ok(Self::Overlay2),
            Err(why) => {
                tracing::warn!(root = %root.display(), %why, "overlay2 does not work here, using vfs: builds will be slow and large");
                Ok(Self::Vfs)
            }
        }
    }

    /// Opens the driver's directories below `root`, making them where they are not there yet.
    ///
    /// Errors: [`StoreError::Invalid`] naming the driver when it does not work there, and why.
    pub fn open(self, root: &Path) -> Result<Box<dyn GraphDriver>, StoreError> {
        Ok(match self {
            Self::Overlay2 => Box::new(Overlay2::open(root)?),
            Self::Vfs => Box::new(Vfs::open(root)?),
        })
    }

    /// Its name, as `docker info` shows it and as its folder is called.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Overlay2 => "overlay2",
            Self::Vfs => "vfs",
        }
    }
}

impl fmt::Display for DriverKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for DriverKind {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        match text {
            "overlay2" => Ok(Self::Overlay2),
            "vfs" => Ok(Self::Vfs),
            _ => Err(StoreError::Invalid {
                kind: "graph driver",
                id: text.to_owned(),
                why: "not known; there are overlay2 and vfs",
            }),
        }
    }
}

impl GraphDriver for Box<dyn GraphDriver> {
    fn kind(&self) -> DriverKind {
        (**self).kind()
    }
    fn create(&self, id: &SnapshotId, parents: &[SnapshotId]) -> Result<(), StoreError> {
        (**self).create(id, parents)
    }
    fn writable_mount(&self, id: &SnapshotId, parents: &[SnapshotId]) -> Result<SnapshotMount, StoreError> {
        (**self).writable_mount(id, parents)
    }
    fn read_only_mount(&self, id: &SnapshotId, parents: &[SnapshotId]) -> Result<SnapshotMount, StoreError> {
        (**self).read_only_mount(id, parents)
    }
    fn diff(&self, id: &SnapshotId, parents: &[SnapshotId]) -> DiffSource {
        (**self).diff(id, parents)
    }
    fn directory(&self, id: &SnapshotId) -> PathBuf {
        (**self).directory(id)
    }
    fn usage(&self, id: &SnapshotId) -> Result<Usage, StoreError> {
        (**self).usage(id)
    }
    fn remove(&self, id: &SnapshotId) -> Result<Leftovers, StoreError> {
        (**self).remove(id)
    }
    fn remove_unknown(&self, known: &BTreeSet<SnapshotId>) -> Result<usize, StoreError> {
        (**self).remove_unknown(known)
    }
    fn sync(&self) -> Result<(), StoreError> {
        (**self).sync()
    }
}
