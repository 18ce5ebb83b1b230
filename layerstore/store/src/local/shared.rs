//! Files that several snapshots have, by hard links.
//!
//! The disk has each of them once, so it is counted once, and all snapshots together are counted with what they take:
//!
//! * who links to another snapshot's files is counted without what they take;
//! * when a snapshot goes, one that has files in common with it is counted with all that it was counted with, and without what its
//!   deletion frees, as soon as that is known. Which of several has a certain file need not be known for that.
//!
//! So nothing on the disk is left out of the sum. Something can be in it twice: when one with several heirs to choose from goes, what its deletion frees may have
//! been counted with another than the one that is chosen, which then cannot be counted with less than nothing. That ends when both have gone.
//!
//! A crash before the deletion is through leaves the heir counted with what the next start deletes: too much, until it goes itself.

use rusqlite::{Connection, Row, Transaction};

use super::{records, schema};
use crate::{SnapshotId, SnapshotKey, SnapshotName, SnapshotRecord, StoreError, Usage};

/// Notes that the snapshot `key` has files in common with `with`, and is counted without them.
pub(super) fn share(
    txn: &Transaction,
    key: &SnapshotKey,
    with: &SnapshotName,
    usage: Usage,
) -> Result<(), StoreError> {
    let (snapshot, other) = (records::by_key(txn, key)?.id, records::by_name(txn, with)?.id);
    if usage.inodes == 0 {
        return Ok(());
    }
    link(txn, &snapshot, &other)?;
    count(
        txn,
        &snapshot,
        schema::size("snapshot", key, usage.bytes)?,
        schema::size("snapshot", key, usage.inodes)?,
    )
}

/// Makes over what a snapshot that goes was counted with, and returns to whom.
pub(super) fn pass_on(txn: &Transaction, record: &SnapshotRecord) -> Result<Option<SnapshotId>, StoreError> {
    let Some(usage) = record.usage else { return Ok(None) };
    let neighbours = neighbours(txn, &record.id)?;
    let Some((heir, others)) = neighbours.split_first() else { return Ok(None) };
    for other in others {
        link(txn, other, heir)?;
    }
    count(
        txn,
        heir,
        -schema::size("snapshot", heir, usage.bytes)?,
        -schema::size("snapshot", heir, usage.inodes)?,
    )?;
    Ok(Some(heir.clone()))
}

/// Notes what of that was freed.
pub(super) fn freed(txn: &Transaction, heir: &SnapshotId, usage: Usage) -> Result<(), StoreError> {
    count(
        txn,
        heir,
        schema::size("snapshot", heir, usage.bytes)?,
        schema::size("snapshot", heir, usage.inodes)?,
    )
}

/// What is left of what a snapshot's files take.
pub(super) fn without_shared(db: &Connection, id: &SnapshotId, files: Usage) -> Result<Usage, StoreError> {
    let shared = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?));
    let (bytes, inodes) = db
        .prepare_cached("SELECT shared_bytes, shared_inodes FROM snapshot WHERE id = ?1")
        .and_then(|mut select| select.query_row([id.as_str()], shared))
        .map_err(StoreError::metadata("read what a snapshot shares"))?;
    let less = |all: u64, shared: i64| u64::try_from(i128::from(all) - i128::from(shared)).unwrap_or(0);
    Ok(Usage { bytes: less(files.bytes, bytes), inodes: less(files.inodes, inodes) })
}

/// Those that a snapshot has files in common with: committed ones first, as they are there to stay.
fn neighbours(txn: &Transaction, id: &SnapshotId) -> Result<Vec<SnapshotId>, StoreError> {
    txn.prepare_cached(
        "SELECT id FROM snapshot WHERE id IN (
             SELECT other FROM link WHERE snapshot = ?1 UNION SELECT snapshot FROM link WHERE other = ?1
         ) ORDER BY name IS NULL, seq",
    )
    .and_then(|mut select| {
        select.query_map([id.as_str()], |row| row.get::<_, String>(0).map(SnapshotId::new))?.collect()
    })
    .map_err(StoreError::metadata("read what shares files"))
}

fn link(txn: &Transaction, snapshot: &SnapshotId, other: &SnapshotId) -> Result<(), StoreError> {
    txn.prepare_cached("INSERT OR IGNORE INTO link (snapshot, other) VALUES (?1, ?2)")
        .and_then(|mut insert| insert.execute([snapshot.as_str(), other.as_str()]))
        .map_err(StoreError::metadata("note what shares files"))?;
    Ok(())
}

/// Counts a snapshot without this much more, or with it where it is negative. One that is not there is counted no more.
fn count(txn: &Transaction, id: &SnapshotId, bytes: i64, inodes: i64) -> Result<(), StoreError> {
    txn.prepare_cached(
        "UPDATE snapshot SET shared_bytes = shared_bytes + ?2, shared_inodes = shared_inodes + ?3,
             bytes = max(0, bytes - ?2), inodes = max(0, inodes - ?3) WHERE id = ?1",
    )
    .and_then(|mut update| update.execute((id.as_str(), bytes, inodes)))
    .map_err(StoreError::metadata("count what is shared"))?;
    Ok(())
}

/// Whether a snapshot has files in common with others.
pub(super) fn is_sharing(db: &Connection, id: &SnapshotId) -> Result<bool, StoreError> {
    db.prepare_cached("SELECT 1 FROM link WHERE snapshot = ?1 OR other = ?1")
        .and_then(|mut select| select.exists([id.as_str()]))
        .map_err(StoreError::metadata("look up what shares files"))
}

/// Which of those below a snapshot have, top-most first.
pub(super) fn below(db: &Connection, key: &SnapshotKey) -> Result<Vec<SnapshotId>, StoreError> {
    db.prepare_cached(
        "WITH RECURSIVE below (seq, id, up) AS (
             SELECT seq, id, parent FROM snapshot WHERE name = (SELECT parent FROM snapshot WHERE key = ?1)
             UNION ALL
             SELECT snapshot.seq, snapshot.id, snapshot.parent FROM below JOIN snapshot ON name = up
         ) SELECT id FROM below WHERE id IN (SELECT snapshot FROM link UNION SELECT other FROM link) ORDER BY seq DESC",
    )
    .and_then(|mut select| {
        select.query_map([key.as_str()], |row| row.get::<_, String>(0).map(SnapshotId::new))?.collect()
    })
    .map_err(StoreError::metadata("read what shares files"))
}
