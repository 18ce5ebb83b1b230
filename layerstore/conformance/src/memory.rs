//! Snapshot records in memory, as strict as the contract allows.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::SystemTime;

use lapstrake_layerstore_store::{
    SnapshotId, SnapshotKey, SnapshotKind, SnapshotName, SnapshotRecord, SnapshotRecords, StoreError, Usage,
};

/// Records that live as long as the value. Cloning copies them, as a copy of a database file would.
#[derive(Debug, Default)]
pub struct MemoryRecords(Mutex<BTreeMap<SnapshotId, SnapshotRecord>>);

type Records = BTreeMap<SnapshotId, SnapshotRecord>;

impl Clone for MemoryRecords {
    fn clone(&self) -> Self {
        Self(Mutex::new(self.lock().clone()))
    }
}

impl MemoryRecords {
    fn lock(&self) -> std::sync::MutexGuard<'_, Records> {
        self.0.lock().expect("no code panics while it holds the lock")
    }
}

fn not_found(id: impl ToString) -> StoreError {
    StoreError::NotFound { kind: "snapshot", id: id.to_string() }
}

fn taken(id: impl ToString) -> StoreError {
    StoreError::AlreadyExists { kind: "snapshot", id: id.to_string() }
}

fn find_key<'a>(records: &'a Records, key: &SnapshotKey) -> Result<&'a SnapshotRecord, StoreError> {
    let has_key = |record: &&SnapshotRecord| match &record.kind {
        SnapshotKind::Active(its) | SnapshotKind::View(its) => its == key,
        SnapshotKind::Committed(_) => false,
    };
    records.values().find(has_key).ok_or_else(|| not_found(key))
}

fn find_name<'a>(records: &'a Records, name: &SnapshotName) -> Result<&'a SnapshotRecord, StoreError> {
    let has_name =
        |record: &&SnapshotRecord| matches!(&record.kind, SnapshotKind::Committed(its) if its == name);
    records.values().find(has_name).ok_or_else(|| not_found(name))
}

fn children<'a>(records: &'a Records, name: &'a SnapshotName) -> impl Iterator<Item = &'a SnapshotRecord> {
    records.values().filter(move |record| record.parent.as_ref() == Some(name))
}

impl SnapshotRecords for MemoryRecords {
    fn insert(&self, record: &SnapshotRecord) -> Result<(), StoreError> {
        let mut records = self.lock();
        let key = match &record.kind {
            SnapshotKind::Active(key) | SnapshotKind::View(key) => key,
            SnapshotKind::Committed(name) => {
                return Err(StoreError::Invalid {
                    kind: "snapshot",
                    id: name.to_string(),
                    why: "only active snapshots and views are inserted",
                });
            }
        };
        if find_key(&records, key).is_ok() || records.contains_key(&record.id) {
            return Err(taken(key));
        }
        if let Some(parent) = &record.parent {
            find_name(&records, parent)?;
        }
        records.insert(record.id.clone(), record.clone());
        Ok(())
    }

    fn commit(&self, key: &SnapshotKey, name: &SnapshotName) -> Result<(), StoreError> {
        let mut records = self.lock();
        let mut record = find_key(&records, key)?.clone();
        if matches!(record.kind, SnapshotKind::View(_)) {
            return Err(StoreError::Invalid {
                kind: "snapshot",
                id: key.to_string(),
                why: "a view is never committed",
            });
        }
        if find_name(&records, name).is_ok() {
            return Err(taken(name));
        }
        record.kind = SnapshotKind::Committed(name.clone());
        records.insert(record.id.clone(), record);
        Ok(())
    }

    fn by_key(&self, key: &SnapshotKey) -> Result<SnapshotRecord, StoreError> {
        find_key(&self.lock(), key).cloned()
    }

    fn by_name(&self, name: &SnapshotName) -> Result<SnapshotRecord, StoreError> {
        find_name(&self.lock(), name).cloned()
    }

    fn chain(&self, name: &SnapshotName) -> Result<Vec<SnapshotId>, StoreError> {
        let records = self.lock();
        let mut record = find_name(&records, name)?;
        let mut chain = vec![record.id.clone()];
        while let Some(parent) = &record.parent {
            record = find_name(&records, parent)?;
            chain.push(record.id.clone());
        }
        Ok(chain)
    }

    fn children(&self, name: &SnapshotName) -> Result<Vec<SnapshotRecord>, StoreError> {
        Ok(children(&self.lock(), name).cloned().collect())
    }

    fn set_usage(&self, name: &SnapshotName, usage: Usage) -> Result<Usage, StoreError> {
        let mut records = self.lock();
        let mut record = find_name(&records, name)?.clone();
        record.usage = Some(usage);
        records.insert(record.id.clone(), record);
        Ok(usage)
    }

    fn set_created(&self, name: &SnapshotName, created: SystemTime) -> Result<(), StoreError> {
        let mut records = self.lock();
        let mut record = find_name(&records, name)?.clone();
        record.created = created;
        records.insert(record.id.clone(), record);
        Ok(())
    }

    fn remove(&self, name: &SnapshotName) -> Result<SnapshotRecord, StoreError> {
        let mut records = self.lock();
        let record = find_name(&records, name)?.clone();
        if let Some(child) = children(&records, name).next() {
            let by = match &child.kind {
                SnapshotKind::Active(key) | SnapshotKind::View(key) => key.to_string(),
                SnapshotKind::Committed(name) => name.to_string(),
            };
            return Err(StoreError::InUse { kind: "snapshot", id: name.to_string(), by });
        }
        records.remove(&record.id);
        Ok(record)
    }

    fn remove_key(&self, key: &SnapshotKey) -> Result<SnapshotRecord, StoreError> {
        let mut records = self.lock();
        let record = find_key(&records, key)?.clone();
        records.remove(&record.id);
        Ok(record)
    }

    fn all(&self) -> Result<Vec<SnapshotRecord>, StoreError> {
        let records = self.lock();
        // Roots first, then what hangs on them, level by level.
        let mut all: Vec<SnapshotRecord> =
            records.values().filter(|record| record.parent.is_none()).cloned().collect();
        let mut next = 0;
        while let Some(record) = all.get(next) {
            if let SnapshotKind::Committed(name) = &record.kind {
                let below: Vec<SnapshotRecord> = children(&records, name).cloned().collect();
                all.extend(below);
            }
            next += 1;
        }
        Ok(all)
    }
}
