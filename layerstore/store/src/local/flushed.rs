//! What a power cut may have taken.
//!
//! A snapshot's files are in memory first, and its record may reach the disk before they do. So a committed snapshot is noted as unflushed until the
//! file system was flushed after that, and a store that is opened after the machine was started anew forgets those that are: their
//! layers and cache records with them. Images and what is below them were flushed before they were recorded.

use rusqlite::{OptionalExtension as _, Transaction};

use super::Metadata;
use crate::{SnapshotName, StoreError};

/// Notes that a snapshot was committed, in that transaction.
pub(super) fn note_commit(txn: &Transaction, name: &SnapshotName) -> Result<(), StoreError> {
    txn.prepare_cached("INSERT INTO unflushed (snapshot) VALUES (?1)")
        .and_then(|mut insert| insert.execute([name.as_str()]))
        .map_err(StoreError::metadata("note an unflushed snapshot"))?;
    Ok(())
}

/// The last commit so far.
pub(super) fn last_commit(metadata: &Metadata) -> Result<i64, StoreError> {
    metadata.read(|db| {
        db.prepare_cached("SELECT coalesce(max(seq), 0) FROM unflushed")
            .and_then(|mut select| select.query_row([], |row| row.get(0)))
            .map_err(StoreError::metadata("look up the last unflushed snapshot"))
    })
}

/// Notes that everything committed up to `last` is on disk. What follows in the log, an image, is not durable without it.
pub(super) fn note_flush(metadata: &Metadata, last: i64) -> Result<(), StoreError> {
    if last == 0 {
        return Ok(());
    }
    metadata.write_lazily(|txn| {
        txn.prepare_cached("DELETE FROM unflushed WHERE seq <= ?1")
            .and_then(|mut delete| delete.execute([last]))
            .map_err(StoreError::metadata("note that snapshots are flushed"))?;
        Ok(())
    })
}

/// Forgets what was not flushed, if the machine was started anew since the store was opened last; `boot` says which start of the machine this is.
/// The directories are found without a record then, and removed like any such.
pub(super) fn forget_after_boot(metadata: &Metadata, boot: &str) -> Result<(), StoreError> {
    let failed = || StoreError::metadata("forget what was not flushed");
    let known: Option<String> = metadata
        .read(|db| db.query_row("SELECT id FROM boot", [], |row| row.get(0)).optional().map_err(failed()))?;
    if known.as_deref() == Some(boot) {
        return Ok(());
    }
    metadata.write(|txn| {
        let forget = || -> rusqlite::Result<()> {
            txn.execute("INSERT OR REPLACE INTO boot (one, id) VALUES (0, ?1)", [boot])?;
            let mut select = txn.prepare(
                "WITH RECURSIVE held (name) AS (
                     SELECT top FROM image WHERE top IS NOT NULL
                     UNION
                     SELECT snapshot.parent FROM held JOIN snapshot USING (name) WHERE snapshot.parent IS NOT NULL
                 ) SELECT name FROM unflushed JOIN snapshot ON name = unflushed.snapshot
                   WHERE name NOT IN (SELECT name FROM held) ORDER BY snapshot.seq DESC",
            )?;
            // Children come first: who is committed later is flushed later. What was being written on top is of no use to anybody.
            for name in select.query_map([], |row| row.get(0))?.collect::<Result<Vec<String>, _>>()? {
                txn.execute("DELETE FROM snapshot WHERE parent = ?1 AND name IS NULL", [&name])?;
                txn.execute("DELETE FROM snapshot WHERE name = ?1", [&name])?;
            }
            txn.execute("DELETE FROM unflushed", [])?;
            Ok(())
        };
        forget().map_err(failed())
    })
}
