//! Snapshot records in the metadata database.

use std::{collections::HashMap, time::SystemTime};

use rusqlite::{Connection, OptionalExtension, Row, Transaction};

use super::{Metadata, flushed, schema, shared};
use crate::{
    Forgotten, SnapshotId, SnapshotKey, SnapshotKind, SnapshotName, SnapshotRecord, SnapshotRecords,
    StoreError, Usage,
};

const COLUMNS: &str = "id, key, name, view, parent, created, bytes, inodes";

/// What a query of the snapshot named `?1` and all below it begins with: rows of `below`. A child's `seq` is greater than its parent's.
pub(super) const BELOW: &str = "WITH RECURSIVE below (seq, id, name, up) AS (
        SELECT seq, id, name, parent FROM snapshot WHERE name = ?1
        UNION ALL
        SELECT snapshot.seq, snapshot.id, snapshot.name, snapshot.parent FROM below JOIN snapshot ON snapshot.name = up
    )";

/// [`SnapshotRecords`] in `metadata.db`. A layer's record goes with its snapshot's, and an image keeps its top snapshot.
///
/// Records of work on the way (insert, commit, usage) are written lazily, removals are flushed: see [`Metadata`].
#[derive(Debug, Clone)]
pub struct LocalRecords {
    metadata: Metadata,
}

impl LocalRecords {
    pub(super) fn new(metadata: Metadata) -> Self {
        Self { metadata }
    }
}

impl SnapshotRecords for LocalRecords {
    fn insert(&self, record: &SnapshotRecord) -> Result<(), StoreError> {
        let (key, view) = match &record.kind {
            SnapshotKind::Active(key) => (key, false),
            SnapshotKind::View(key) => (key, true),
            SnapshotKind::Committed(name) => {
                return Err(StoreError::invalid(
                    "snapshot",
                    name,
                    "only active snapshots and views are inserted",
                ));
            }
        };
        self.metadata.write_lazily(|txn| {
            if exists(txn, "SELECT 1 FROM snapshot WHERE key = ?1", key.as_str())? {
                return Err(StoreError::already_exists("snapshot", key));
            }
            if exists(txn, "SELECT 1 FROM snapshot WHERE id = ?1", record.id.as_str())? {
                return Err(StoreError::already_exists("snapshot id", &record.id));
            }
            if let Some(parent) = &record.parent
                && !exists(txn, "SELECT 1 FROM snapshot WHERE name = ?1", parent.as_str())?
            {
                return Err(StoreError::not_found("snapshot", parent));
            }
            txn.prepare_cached(
                "INSERT INTO snapshot (id, key, view, parent, created) VALUES (?1, ?2, ?3, ?4, ?5)",
            )
            .and_then(|mut insert| {
                insert.execute((
                    record.id.as_str(),
                    key.as_str(),
                    view,
                    record.parent.as_ref().map(SnapshotName::as_str),
                    schema::nanos(record.created),
                ))
            })
            .map_err(StoreError::metadata("insert snapshot"))?;
            Ok(())
        })
    }

    fn commit(&self, key: &SnapshotKey, name: &SnapshotName) -> Result<(), StoreError> {
        self.metadata.write_lazily(|txn| {
            let record = by_key(txn, key)?;
            if matches!(record.kind, SnapshotKind::View(_)) {
                return Err(StoreError::invalid("snapshot", key, "a view cannot be committed"));
            }
            if exists(txn, "SELECT 1 FROM snapshot WHERE name = ?1", name.as_str())? {
                return Err(StoreError::already_exists("snapshot", name));
            }
            txn.prepare_cached("UPDATE snapshot SET key = NULL, name = ?2 WHERE key = ?1")
                .and_then(|mut update| update.execute((key.as_str(), name.as_str())))
                .map_err(StoreError::metadata("commit snapshot"))?;
            flushed::note_commit(txn, name)
        })
    }

    fn by_key(&self, key: &SnapshotKey) -> Result<SnapshotRecord, StoreError> {
        self.metadata.read(|db| by_key(db, key))
    }

    fn by_name(&self, name: &SnapshotName) -> Result<SnapshotRecord, StoreError> {
        self.metadata.read(|db| by_name(db, name))
    }

    fn chain(&self, name: &SnapshotName) -> Result<Vec<SnapshotId>, StoreError> {
        let sql = format!("{BELOW} SELECT id FROM below ORDER BY seq DESC");
        let chain: Vec<SnapshotId> = self.metadata.read(|db| {
            let id = |row: &Row<'_>| row.get::<_, String>(0).map(SnapshotId::new);
            db.prepare_cached(&sql)
                .and_then(|mut select| select.query_map([name.as_str()], id)?.collect())
                .map_err(StoreError::metadata("read snapshots"))
        })?;
        if chain.is_empty() { Err(StoreError::not_found("snapshot", name)) } else { Ok(chain) }
    }

    fn children(&self, name: &SnapshotName) -> Result<Vec<SnapshotRecord>, StoreError> {
        self.metadata.read(|db| {
            all(db, &format!("SELECT {COLUMNS} FROM snapshot WHERE parent = ?1 ORDER BY id"), [name.as_str()])
        })
    }

    fn set_usage(&self, name: &SnapshotName, files: Usage) -> Result<Usage, StoreError> {
        self.metadata.write_lazily(|txn| {
            let usage = shared::without_shared(txn, &by_name(txn, name)?.id, files)?;
            let bytes = schema::size("snapshot", name, usage.bytes)?;
            let inodes = schema::size("snapshot", name, usage.inodes)?;
            txn.execute(
                "UPDATE snapshot SET bytes = ?2, inodes = ?3 WHERE name = ?1",
                (name.as_str(), bytes, inodes),
            )
            .map_err(StoreError::metadata("record usage"))?;
            Ok(usage)
        })
    }

    fn usage_of_key(&self, key: &SnapshotKey, files: Usage) -> Result<Usage, StoreError> {
        self.metadata.read(|db| shared::without_shared(db, &by_key(db, key)?.id, files))
    }

    fn share(&self, key: &SnapshotKey, with: &SnapshotName, usage: Usage) -> Result<(), StoreError> {
        self.metadata.write_lazily(|txn| shared::share(txn, key, with, usage))
    }

    fn is_sharing(&self, name: &SnapshotName) -> Result<bool, StoreError> {
        self.metadata.read(|db| shared::is_sharing(db, &by_name(db, name)?.id))
    }

    fn sharing_below(&self, key: &SnapshotKey) -> Result<Vec<SnapshotId>, StoreError> {
        self.metadata.read(|db| shared::below(db, key))
    }

    fn freed(&self, heir: &SnapshotId, usage: Usage) -> Result<(), StoreError> {
        self.metadata.write_lazily(|txn| shared::freed(txn, heir, usage))
    }

    fn set_created(&self, name: &SnapshotName, created: SystemTime) -> Result<(), StoreError> {
        self.metadata.write_lazily(|txn| {
            let changed = txn
                .execute(
                    "UPDATE snapshot SET created = ?2 WHERE name = ?1",
                    (name.as_str(), schema::nanos(created)),
                )
                .map_err(StoreError::metadata("record when a snapshot was made"))?;
            if changed == 0 { Err(StoreError::not_found("snapshot", name)) } else { Ok(()) }
        })
    }

    fn last_commit(&self) -> Result<i64, StoreError> {
        flushed::last_commit(&self.metadata)
    }

    fn note_flush(&self, last: i64) -> Result<(), StoreError> {
        flushed::note_flush(&self.metadata, last)
    }

    fn remove(&self, name: &SnapshotName) -> Result<SnapshotRecord, StoreError> {
        self.metadata.write(|txn| remove(txn, name))
    }

    fn remove_key(&self, key: &SnapshotKey) -> Result<SnapshotRecord, StoreError> {
        self.metadata.write(|txn| remove_key(txn, key))
    }

    fn forget(&self, keys: &[SnapshotKey], names: &[SnapshotName]) -> Result<Vec<Forgotten>, StoreError> {
        self.metadata.write(|txn| {
            let mut forgotten = Vec::with_capacity(keys.len() + names.len());
            for key in keys {
                forgotten.push(Forgotten { id: remove_key(txn, key)?.id, heir: None });
            }
            for name in names {
                let heir = shared::pass_on(txn, &by_name(txn, name)?)?;
                forgotten.push(Forgotten { id: remove(txn, name)?.id, heir });
            }
            // An heir may have gone after it, with an heir of its own.
            let heirs: HashMap<_, _> =
                forgotten.iter().map(|gone| (gone.id.clone(), gone.heir.clone())).collect();
            for gone in &mut forgotten {
                while let Some(next) = gone.heir.as_ref().and_then(|heir| heirs.get(heir)) {
                    gone.heir = next.clone();
                }
            }
            Ok(forgotten)
        })
    }

    fn all(&self) -> Result<Vec<SnapshotRecord>, StoreError> {
        // A parent is committed before its child is inserted, so `seq` puts parents first.
        self.metadata.read(|db| all(db, &format!("SELECT {COLUMNS} FROM snapshot ORDER BY seq"), []))
    }
}

fn remove(txn: &Transaction, name: &SnapshotName) -> Result<SnapshotRecord, StoreError> {
    let record = by_name(txn, name)?;
    let user = |sql: &str| -> Result<Option<String>, StoreError> {
        txn.prepare_cached(sql)
            .and_then(|mut select| select.query_row([name.as_str()], |row| row.get(0)).optional())
            .map_err(StoreError::metadata("look for users of a snapshot"))
    };
    let in_use = |by| StoreError::InUse { kind: "snapshot", id: name.to_string(), by };
    if let Some(child) =
        user("SELECT coalesce(name, key) FROM snapshot WHERE parent = ?1 ORDER BY id LIMIT 1")?
    {
        return Err(in_use(format!("snapshot {child}")));
    }
    if let Some(image) = user("SELECT id FROM image WHERE top = ?1 ORDER BY seq LIMIT 1")? {
        return Err(in_use(format!("image {image}")));
    }
    txn.prepare_cached("DELETE FROM snapshot WHERE name = ?1")
        .and_then(|mut delete| delete.execute([name.as_str()]))
        .map_err(StoreError::metadata("remove snapshot"))?;
    Ok(record)
}

fn remove_key(txn: &Transaction, key: &SnapshotKey) -> Result<SnapshotRecord, StoreError> {
    let record = by_key(txn, key)?;
    txn.prepare_cached("DELETE FROM snapshot WHERE key = ?1")
        .and_then(|mut delete| delete.execute([key.as_str()]))
        .map_err(StoreError::metadata("remove snapshot"))?;
    Ok(record)
}

pub(super) fn by_key(db: &Connection, key: &SnapshotKey) -> Result<SnapshotRecord, StoreError> {
    all(db, &format!("SELECT {COLUMNS} FROM snapshot WHERE key = ?1"), [key.as_str()])?
        .pop()
        .ok_or_else(|| StoreError::not_found("snapshot", key))
}

pub(super) fn by_name(db: &Connection, name: &SnapshotName) -> Result<SnapshotRecord, StoreError> {
    all(db, &format!("SELECT {COLUMNS} FROM snapshot WHERE name = ?1"), [name.as_str()])?
        .pop()
        .ok_or_else(|| StoreError::not_found("snapshot", name))
}

pub(super) fn exists(db: &Connection, sql: &str, id: &str) -> Result<bool, StoreError> {
    db.prepare_cached(sql).and_then(|mut select| select.exists([id])).map_err(StoreError::metadata("look up"))
}

fn all(db: &Connection, sql: &str, params: impl rusqlite::Params) -> Result<Vec<SnapshotRecord>, StoreError> {
    db.prepare_cached(sql)
        .and_then(|mut select| select.query_map(params, record)?.collect())
        .map_err(StoreError::metadata("read snapshots"))
}

fn record(row: &Row<'_>) -> rusqlite::Result<SnapshotRecord> {
    let key: Option<String> = row.get(1)?;
    let kind = match (key, row.get(3)?) {
        (Some(key), false) => SnapshotKind::Active(SnapshotKey::new(key)),
        (Some(key), true) => SnapshotKind::View(SnapshotKey::new(key)),
        (None, _) => SnapshotKind::Committed(SnapshotName::new(row.get::<_, String>(2)?)),
    };
    // Written by `schema::size`: never negative.
    let number = |column| row.get::<_, Option<i64>>(column).map(|number| number.map(i64::unsigned_abs));
    let usage = number(6)?.zip(number(7)?).map(|(bytes, inodes)| Usage { bytes, inodes });
    Ok(SnapshotRecord {
        id: SnapshotId::new(row.get::<_, String>(0)?),
        kind,
        parent: row.get::<_, Option<String>>(4)?.map(SnapshotName::new),
        created: schema::time(row.get(5)?),
        usage,
    })
}
