//! What a snapshotter must remember, behind a small contract, so that graph drivers know nothing of databases.
//!
//! The local store keeps these records in `metadata.db`; `layerstore/conformance` has them in memory for tests.
//!
//! # Order of writes
//!
//! A snapshotter makes a snapshot's directory first and inserts its record second; it removes the record first and the
//! directory second. A commit is one update of one record. So a crash leaves no record without its directory, and a
//! directory without a record ([`SnapshotRecords::ids`]) is rubbish that the next start removes.

use std::{collections::BTreeSet, time::SystemTime};

use crate::{SnapshotId, SnapshotInfo, SnapshotKey, SnapshotKind, SnapshotName, StoreError, Usage};

/// One snapshot, as remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// Names its directory in the driver; never changes, and no two records have the same.
    pub id: SnapshotId,
    /// Its state, with the key or name that it is known by.
    pub kind: SnapshotKind,
    /// The committed snapshot that it is a difference over.
    pub parent: Option<SnapshotName>,
    /// When it was prepared.
    pub created: SystemTime,
    /// What it takes on disk; measured only once it is committed.
    pub usage: Option<Usage>,
}

impl SnapshotRecord {
    /// The part of the record that the users of a snapshotter see.
    pub fn info(&self) -> SnapshotInfo {
        SnapshotInfo { kind: self.kind.clone(), parent: self.parent.clone(), created: self.created }
    }
}

/// A snapshot whose record is gone, and whose directory is not yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forgotten {
    /// Names its directory.
    pub id: SnapshotId,
    /// Which snapshot that is still there is now counted with what this one was counted with.
    pub heir: Option<SnapshotId>,
}

/// The records of one snapshotter. Each method is one transaction: it happens whole or not at all, and is durable when it
/// returns. All may be called from several threads at once.
///
/// Keys and names are two separate name spaces; active snapshots and views share the first.
pub trait SnapshotRecords: Send + Sync {
    /// Adds an active snapshot or a view.
    ///
    /// Errors: [`StoreError::AlreadyExists`] when its key or its id is taken, [`StoreError::NotFound`] when its parent is
    /// not a committed snapshot, [`StoreError::Invalid`] when the record is of a committed snapshot.
    fn insert(&self, record: &SnapshotRecord) -> Result<(), StoreError>;

    /// Turns the active snapshot `key` into the committed snapshot `name`: same id, same parent, same time.
    ///
    /// Errors: [`StoreError::NotFound`] when there is no such key, [`StoreError::Invalid`] when it is a view's,
    /// [`StoreError::AlreadyExists`] when `name` is taken. After an error `key` is what it was.
    fn commit(&self, key: &SnapshotKey, name: &SnapshotName) -> Result<(), StoreError>;

    /// The active snapshot or view with this key. Errors: [`StoreError::NotFound`].
    fn by_key(&self, key: &SnapshotKey) -> Result<SnapshotRecord, StoreError>;

    /// The committed snapshot with this name. Errors: [`StoreError::NotFound`].
    fn by_name(&self, name: &SnapshotName) -> Result<SnapshotRecord, StoreError>;

    /// The ids of a committed snapshot and all below it, top-most first, as of one instant. Errors: [`StoreError::NotFound`].
    fn chain(&self, name: &SnapshotName) -> Result<Vec<SnapshotId>, StoreError>;

    /// The snapshots whose parent is `name`, of every kind, in order of their ids; empty when there is no such snapshot.
    fn children(&self, name: &SnapshotName) -> Result<Vec<SnapshotRecord>, StoreError>;

    /// Remembers what the files of a committed snapshot take on disk, and returns that without what is counted with another snapshot.
    /// Errors: [`StoreError::NotFound`].
    fn set_usage(&self, name: &SnapshotName, files: Usage) -> Result<Usage, StoreError>;

    /// The same of an active snapshot, which is not remembered. The default: nothing is counted with another one.
    fn usage_of_key(&self, key: &SnapshotKey, files: Usage) -> Result<Usage, StoreError> {
        let _ = key;
        Ok(files)
    }

    /// [`Snapshotter::share`](crate::Snapshotter::share). The default counts each snapshot for itself.
    fn share(&self, key: &SnapshotKey, with: &SnapshotName, usage: Usage) -> Result<(), StoreError> {
        let _ = (key, with, usage);
        Ok(())
    }

    /// Whether a committed snapshot has files in common with others.
    fn is_sharing(&self, name: &SnapshotName) -> Result<bool, StoreError> {
        let _ = name;
        Ok(false)
    }

    /// Those below an active snapshot that have.
    fn sharing_below(&self, key: &SnapshotKey) -> Result<Vec<SnapshotId>, StoreError> {
        let _ = key;
        Ok(Vec::new())
    }

    /// Notes that the deletion of what was counted with another snapshot, now with `heir`, freed this much of it.
    fn freed(&self, heir: &SnapshotId, usage: Usage) -> Result<(), StoreError> {
        let _ = (heir, usage);
        Ok(())
    }

    /// Says when a committed snapshot was made, where that was elsewhere. Errors: [`StoreError::NotFound`].
    fn set_created(&self, name: &SnapshotName, created: SystemTime) -> Result<(), StoreError>;

    /// A mark of all commits so far, for [`Self::note_flush`]. The default: none, for records that a power cut takes as well.
    fn last_commit(&self) -> Result<i64, StoreError> {
        Ok(0)
    }

    /// Notes that the files of all that was committed before the mark `last` was taken are on disk; those that are not are forgotten when the
    /// machine has been started anew.
    fn note_flush(&self, last: i64) -> Result<(), StoreError> {
        let _ = last;
        Ok(())
    }

    /// Forgets a committed snapshot (and, in the same transaction, whatever else is recorded of it, such as its layer),
    /// and returns what was known.
    ///
    /// Errors: [`StoreError::NotFound`], [`StoreError::InUse`] naming a child when it has any.
    fn remove(&self, name: &SnapshotName) -> Result<SnapshotRecord, StoreError>;

    /// Forgets an active snapshot or view, and returns what was known. Errors: [`StoreError::NotFound`].
    fn remove_key(&self, key: &SnapshotKey) -> Result<SnapshotRecord, StoreError>;

    /// Forgets several snapshots: first those of `keys`, then those of `names`, which come after their children. What one of `names` was
    /// counted with is then counted with one that has files in common with it, if its usage is remembered.
    /// Errors: as [`Self::remove_key`] and [`Self::remove`]; an implementation that does it in one transaction then forgot none.
    ///
    /// The default forgets one after the other.
    fn forget(&self, keys: &[SnapshotKey], names: &[SnapshotName]) -> Result<Vec<Forgotten>, StoreError> {
        let keys = keys.iter().map(|key| self.remove_key(key));
        let records = keys.chain(names.iter().map(|name| self.remove(name)));
        records.map(|record| record.map(|record| Forgotten { id: record.id, heir: None })).collect()
    }

    /// All records as of one instant, parents before children.
    fn all(&self) -> Result<Vec<SnapshotRecord>, StoreError>;

    /// The ids of all records: the directories that are not rubbish.
    fn ids(&self) -> Result<BTreeSet<SnapshotId>, StoreError> {
        Ok(self.all()?.into_iter().map(|record| record.id).collect())
    }
}
