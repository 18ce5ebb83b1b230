//! The store's own tables in `metadata.db`.
//!
//! ```text
//!  component(name, version)                    which migrations the file has seen, per component (metadata.rs)
//!
//!  snapshot                                    every snapshot, whatever its state (records.rs)
//!   ├ seq        grows; a child's is greater than its parent's
//!   ├ id         names its directory in the graph driver
//!   ├ key        of an active snapshot or view ┐ exactly one
//!   ├ name       of a committed snapshot       ┘ of the two
//!   ├ view       1: a read-only view
//!   ├ parent ──► snapshot.name                 a parent cannot go before its children
//!   ├ created    nanoseconds since 1970
//!   ├ bytes, inodes                            usage, once measured
//!   └ shared_bytes, shared_inodes              what of its files is counted with another snapshot (shared.rs)
//!
//!  link                                        snapshots that have files in common, by hard links (shared.rs)
//!   ├ snapshot ► snapshot.id                   goes with either
//!   └ other ───► snapshot.id
//!
//!  unflushed                                   committed snapshots that a power cut may take (flushed.rs)
//!   ├ seq        in the order of their commits; never used twice
//!   └ snapshot ► snapshot.name                 goes with the snapshot
//!
//!  boot                                        one row: which start of the machine the store was opened in last
//!
//!  layer                                       committed snapshots whose tar stream is known (layers.rs)
//!   ├ snapshot ► snapshot.name                 goes with the snapshot
//!   ├ diff_id, chain_id
//!   └ size       bytes of file content
//!
//!  layer_blob                                  blobs that hold a layer's tar stream (layers.rs)
//!   ├ seq        oldest first
//!   ├ diff_id, digest
//!   └ descriptor JSON
//!
//!  image                                       (images.rs)
//!   ├ seq        newest last, among equal times
//!   ├ id         digest of config
//!   ├ config     exact bytes
//!   ├ top ─────► snapshot.name                 a snapshot cannot go before its image
//!   ├ diff_ids   JSON
//!   ├ parent ──► image.id                      forgotten when the parent goes
//!   ├ manifest   digest, in the content store
//!   └ stored, last_tagged                      nanoseconds since 1970
//!
//!  image_name
//!   ├ reference  normalised, in full
//!   ├ image ───► image.id                      goes with the image
//!   └ target     JSON descriptor of what it was pulled or pushed as
//! ```
//!
//! Blobs have no table: the file system's rename publishes them, and their directory is the list.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Metadata;
use crate::StoreError;

/// Only ever appended to: a file remembers how many it has seen.
const STEPS: &[&str] = &[
    "
    CREATE TABLE snapshot (
        seq     INTEGER PRIMARY KEY,
        id      TEXT NOT NULL UNIQUE,
        key     TEXT UNIQUE,
        name    TEXT UNIQUE,
        view    INTEGER NOT NULL CHECK (view IN (0, 1)),
        parent  TEXT REFERENCES snapshot (name),
        created INTEGER NOT NULL,
        bytes   INTEGER,
        inodes  INTEGER,
        CHECK ((key IS NULL) <> (name IS NULL)),
        CHECK (view = 0 OR name IS NULL)
    ) STRICT;
    CREATE INDEX snapshot_parent ON snapshot (parent);

    CREATE TABLE layer (
        snapshot TEXT PRIMARY KEY REFERENCES snapshot (name) ON DELETE CASCADE,
        diff_id  TEXT NOT NULL,
        chain_id TEXT NOT NULL,
        size     INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX layer_chain ON layer (chain_id);

    CREATE TABLE layer_blob (
        seq        INTEGER PRIMARY KEY,
        diff_id    TEXT NOT NULL,
        digest     TEXT NOT NULL,
        descriptor TEXT NOT NULL,
        UNIQUE (diff_id, digest)
    ) STRICT;
    CREATE INDEX layer_blob_digest ON layer_blob (digest);

    CREATE TABLE image (
        seq         INTEGER PRIMARY KEY,
        id          TEXT NOT NULL UNIQUE,
        config      BLOB NOT NULL,
        top         TEXT REFERENCES snapshot (name),
        diff_ids    TEXT NOT NULL,
        parent      TEXT REFERENCES image (id) ON DELETE SET NULL,
        manifest    TEXT,
        stored      INTEGER NOT NULL,
        last_tagged INTEGER
    ) STRICT;
    CREATE INDEX image_top ON image (top);
    CREATE INDEX image_parent ON image (parent);
    CREATE INDEX image_manifest ON image (manifest);

    CREATE TABLE image_name (
        reference TEXT PRIMARY KEY,
        image     TEXT NOT NULL REFERENCES image (id) ON DELETE CASCADE,
        target    TEXT
    ) STRICT;
    CREATE INDEX image_name_image ON image_name (image);
",
    "
    CREATE TABLE unflushed (
        seq      INTEGER PRIMARY KEY AUTOINCREMENT,
        snapshot TEXT NOT NULL UNIQUE REFERENCES snapshot (name) ON DELETE CASCADE
    ) STRICT;

    CREATE TABLE boot (
        one INTEGER PRIMARY KEY CHECK (one = 0),
        id  TEXT NOT NULL
    ) STRICT;
",
    "
    ALTER TABLE snapshot ADD COLUMN shared_bytes INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE snapshot ADD COLUMN shared_inodes INTEGER NOT NULL DEFAULT 0;

    CREATE TABLE link (
        snapshot TEXT NOT NULL REFERENCES snapshot (id) ON DELETE CASCADE,
        other    TEXT NOT NULL REFERENCES snapshot (id) ON DELETE CASCADE,
        PRIMARY KEY (snapshot, other)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX link_other ON link (other);
",
];

pub(super) fn migrate(metadata: &Metadata) -> Result<(), StoreError> {
    metadata.migrate("store", STEPS)
}

/// A time as the tables have it. Times beyond the years 1677 to 2262 become the nearest of these.
pub(super) fn nanos(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |nanos| -nanos),
    }
}

/// A time from the tables.
pub(super) fn time(nanos: i64) -> SystemTime {
    let distance = Duration::from_nanos(nanos.unsigned_abs());
    if nanos < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
}

/// A size for the tables, which hold 63 bits.
pub(super) fn size(kind: &'static str, id: impl std::fmt::Display, size: u64) -> Result<i64, StoreError> {
    i64::try_from(size).map_err(|_| StoreError::invalid(kind, id, "larger than 2^63 bytes"))
}

/// A text column that holds one of our types; damage when it does not.
pub(super) fn column<T, E: std::fmt::Display>(
    metadata: &Metadata,
    what: &'static str,
    parsed: Result<T, E>,
) -> Result<T, StoreError> {
    parsed.map_err(|error| StoreError::Damaged {
        path: metadata.path().to_owned(),
        why: format!("{what}: {error}"),
    })
}
