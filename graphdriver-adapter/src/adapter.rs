//! A graph driver and its records, as a Snapshotter.

use std::{collections::HashSet, sync::Arc, time::SystemTime};

use lapstrake_layerstore_store::{
    DiffSource, Leftovers, SnapshotId, SnapshotInfo, SnapshotKey, SnapshotKind, SnapshotMount, SnapshotName,
    SnapshotRecord, SnapshotRecords, Snapshotter, StoreError, Usage,
};

use crate::{GraphDriver, files};

/// A graph driver as a [`Snapshotter`].
///
/// A view of a parent has a record, but no directory: it shows the parent's.
pub struct Adapter<D> {
    driver: D,
    records: Arc<dyn SnapshotRecords>,
}

impl<D: GraphDriver> Adapter<D> {
    /// Puts a driver and the records of its snapshots together.
    pub fn new(driver: D, records: Arc<dyn SnapshotRecords>) -> Self {
        Self { driver, records }
    }

    /// The driver.
    pub fn driver(&self) -> &D {
        &self.driver
    }

    /// Removes directories that no record names, left by a crash, and returns how many. At start, before anything else.
    pub fn collect_orphans(&self) -> Result<usize, StoreError> {
        self.driver.remove_unknown(&self.records.ids()?)
    }

    /// Ids of a committed snapshot and all below it, top-most first; none for no snapshot.
    fn chain(&self, name: Option<&SnapshotName>) -> Result<Vec<SnapshotId>, StoreError> {
        let Some(name) = name else {
            return Ok(Vec::new());
        };
        self.records.chain(name)
    }

    fn key_is_free(&self, key: &SnapshotKey) -> Result<(), StoreError> {
        match self.records.by_key(key) {
            Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(StoreError::AlreadyExists { kind: "snapshot", id: key.to_string() }),
        }
    }

    fn new_record(kind: SnapshotKind, parent: Option<&SnapshotName>) -> SnapshotRecord {
        SnapshotRecord {
            id: SnapshotId::random(),
            kind,
            parent: parent.cloned(),
            created: SystemTime::now(),
            usage: None,
        }
    }

    /// Makes a snapshot's directory, then its record; when the record is refused, the directory goes again.
    fn create(&self, record: &SnapshotRecord, parents: &[SnapshotId]) -> Result<(), StoreError> {
        self.driver.create(&record.id, parents)?;
        self.records.insert(record).inspect_err(|_| {
            // A directory that stays is found at the next start.
            let removed = self.driver.remove(&record.id).and_then(Leftovers::delete);
            if let Err(error) = removed {
                tracing::warn!(%error, id = %record.id, "directory of a refused snapshot not removed");
            }
        })
    }

    fn mount(&self, record: &SnapshotRecord) -> Result<SnapshotMount, StoreError> {
        let parents = self.chain(record.parent.as_ref())?;
        match (&record.kind, parents.split_first()) {
            (SnapshotKind::Active(_), _) => self.driver.writable_mount(&record.id, &parents),
            (SnapshotKind::View(_), Some((parent, below))) => self.driver.read_only_mount(parent, below),
            (SnapshotKind::View(_), None) | (SnapshotKind::Committed(_), _) => {
                self.driver.read_only_mount(&record.id, &parents)
            }
        }
    }

    fn diff(&self, record: &SnapshotRecord) -> Result<DiffSource, StoreError> {
        Ok(self.driver.diff(&record.id, &self.chain(record.parent.as_ref())?))
    }
}

impl<D: GraphDriver> Snapshotter for Adapter<D> {
    fn prepare(&self, key: &SnapshotKey, parent: Option<&SnapshotName>) -> Result<SnapshotMount, StoreError> {
        self.key_is_free(key)?;
        let parents = self.chain(parent)?;
        let record = Self::new_record(SnapshotKind::Active(key.clone()), parent);
        // Asked first, so that what cannot be mounted is not made.
        let mount = self.driver.writable_mount(&record.id, &parents)?;
        self.create(&record, &parents)?;
        Ok(mount)
    }

    fn view(&self, key: &SnapshotKey, parent: Option<&SnapshotName>) -> Result<SnapshotMount, StoreError> {
        self.key_is_free(key)?;
        let parents = self.chain(parent)?;
        let record = Self::new_record(SnapshotKind::View(key.clone()), parent);
        match parents.split_first() {
            Some((parent, below)) => {
                let mount = self.driver.read_only_mount(parent, below)?;
                self.records.insert(&record)?;
                Ok(mount)
            }
            None => {
                self.create(&record, &[])?;
                self.driver.read_only_mount(&record.id, &[])
            }
        }
    }

    fn mounts(&self, key: &SnapshotKey) -> Result<SnapshotMount, StoreError> {
        self.mount(&self.records.by_key(key)?)
    }

    fn commit(&self, key: &SnapshotKey, name: &SnapshotName) -> Result<(), StoreError> {
        // The directory stays as and where it is: the commit is this one record.
        self.records.commit(key, name)
    }

    fn committed_mount(&self, name: &SnapshotName) -> Result<SnapshotMount, StoreError> {
        self.mount(&self.records.by_name(name)?)
    }

    fn diff_source(&self, name: &SnapshotName) -> Result<DiffSource, StoreError> {
        self.diff(&self.records.by_name(name)?)
    }

    fn active_diff(&self, key: &SnapshotKey) -> Result<DiffSource, StoreError> {
        let record = self.records.by_key(key)?;
        match record.kind {
            SnapshotKind::Active(_) => self.diff(&record),
            SnapshotKind::View(_) | SnapshotKind::Committed(_) => Err(StoreError::Invalid {
                kind: "snapshot",
                id: key.to_string(),
                why: "a view has no difference to write to",
            }),
        }
    }

    fn stat(&self, name: &SnapshotName) -> Result<SnapshotInfo, StoreError> {
        Ok(self.records.by_name(name)?.info())
    }

    fn stat_key(&self, key: &SnapshotKey) -> Result<SnapshotInfo, StoreError> {
        Ok(self.records.by_key(key)?.info())
    }

    fn set_created(&self, name: &SnapshotName, created: SystemTime) -> Result<(), StoreError> {
        self.records.set_created(name, created)
    }

    fn usage(&self, name: &SnapshotName) -> Result<Usage, StoreError> {
        let record = self.records.by_name(name)?;
        if let Some(usage) = record.usage {
            return Ok(usage);
        }
        // Removed meanwhile, it is not there, rather than unreadable.
        let usage =
            self.driver.usage(&record.id).or_else(|error| self.records.by_name(name).and(Err(error)))?;
        self.records.set_usage(name, usage)
    }

    fn usage_key(&self, key: &SnapshotKey) -> Result<Usage, StoreError> {
        let record = self.records.by_key(key)?;
        match (&record.kind, &record.parent) {
            // It has no directory of its own.
            (SnapshotKind::View(_), Some(_)) => Ok(Usage::default()),
            _ => {
                let files = self.driver.usage(&record.id);
                let files = files.or_else(|error| self.records.by_key(key).and(Err(error)))?;
                self.records.usage_of_key(key, files)
            }
        }
    }

    fn remove(&self, name: &SnapshotName) -> Result<(), StoreError> {
        self.forget(&[], std::slice::from_ref(name))?.delete().map(drop)
    }

    fn remove_key(&self, key: &SnapshotKey) -> Result<(), StoreError> {
        self.forget(std::slice::from_ref(key), &[])?.delete().map(drop)
    }

    fn share(&self, key: &SnapshotKey, with: &SnapshotName, usage: Usage) -> Result<(), StoreError> {
        self.records.share(key, with, usage)
    }

    fn shared_below(&self, key: &SnapshotKey) -> Result<HashSet<u64>, StoreError> {
        let mut shared = HashSet::new();
        for id in self.records.sharing_below(key)? {
            files::several_links(&self.driver.directory(&id), &mut shared)?;
        }
        Ok(shared)
    }

    fn sync(&self) -> Result<(), StoreError> {
        // Taken first: what is committed meanwhile may miss this flush.
        let last = self.records.last_commit()?;
        self.driver.sync()?;
        self.records.note_flush(last)
    }

    fn forget(&self, keys: &[SnapshotKey], names: &[SnapshotName]) -> Result<Leftovers, StoreError> {
        for name in names {
            // While all is there that has files in common with it.
            if self.records.is_sharing(name)? {
                self.usage(name)?;
            }
        }
        let mut leftovers = Leftovers::none();
        for gone in self.records.forget(keys, names)? {
            let records = Arc::clone(&self.records);
            match self.driver.remove(&gone.id) {
                Ok(deletion) => leftovers.push(move || {
                    let freed = deletion.delete()?;
                    gone.heir.map_or(Ok(()), |heir| records.freed(&heir, freed))?;
                    Ok(freed)
                }),
                // It is forgotten all the same: its directory is found at the next start.
                Err(error) => leftovers.push(move || Err(error)),
            }
        }
        Ok(leftovers)
    }

    fn walk(&self, visit: &mut dyn FnMut(SnapshotInfo) -> bool) -> Result<(), StoreError> {
        for record in self.records.all()? {
            if !visit(record.info()) {
                break;
            }
        }
        Ok(())
    }
}

impl<D: GraphDriver> std::fmt::Debug for Adapter<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Adapter").field("driver", &self.driver.kind()).finish_non_exhaustive()
    }
}
