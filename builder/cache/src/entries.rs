//! Entries: what the cache keeps, as `docker system df -v` lists it.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lapstrake_builder_progress::redact;
use lapstrake_layerstore_store::{Metadata, Resource, SnapshotKey, SnapshotName, StoreError, Tree};
use rusqlite::{Connection, OptionalExtension, Row};

use crate::{BuildCache, CacheError};

/// What an entry is of, in BuildKit's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// A step's result.
    Regular,
    /// Something the daemon needs itself.
    Internal,
    /// A frontend's image.
    Frontend,
    /// A client's directory.
    SourceLocal,
    /// A git checkout.
    SourceGitCheckout,
    /// A directory of `RUN --mount=type=cache`.
    CacheMount,
}

impl RecordKind {
    const ALL: [Self; 6] = [
        Self::Regular,
        Self::Internal,
        Self::Frontend,
        Self::SourceLocal,
        Self::SourceGitCheckout,
        Self::CacheMount,
    ];

    /// BuildKit's name for it (`client.UsageRecordType`).
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Regular => "regular",
            Self::Internal => "internal",
            Self::Frontend => "frontend",
            Self::SourceLocal => "source.local",
            Self::SourceGitCheckout => "source.git.checkout",
            Self::CacheMount => "exec.cachemount",
        }
    }

    fn parse(text: &str) -> Self {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).unwrap_or(Self::Regular)
    }
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheEntry {
    /// The snapshot's name or key.
    pub id: String,
    /// The entries it was made from: the nearest below it that has one.
    pub parents: Vec<String>,
    /// What it is of.
    pub kind: RecordKind,
    /// What it is, for people.
    pub description: String,
    /// Whether running work holds it, or something that was made from it.
    pub in_use: bool,
    /// Whether an image has it too.
    pub shared: bool,
    /// Whether builds write to it (cache mounts).
    pub mutable: bool,
    /// Bytes on disk that it alone takes.
    pub size: u64,
    /// When it was made.
    pub created: SystemTime,
    /// When it was last used after it was made.
    pub last_used: Option<SystemTime>,
    /// How often it was used after it was made.
    pub uses: u64,
}

impl BuildCache {
    /// Notes what a tree is, so that it stays and is listed. Credentials in URLs of the description are masked. A tree that has an entry keeps it; the empty tree needs none.
    ///
    /// Blocks. Lazy: what a power cut takes is built again.
    pub fn record(&self, tree: &Tree, kind: RecordKind, description: &str) -> Result<(), CacheError> {
        self.record_made(tree, kind, description, None)
    }

    /// The same of a tree that a cache had, which was made when that cache says: it is used now, and exported with its own time. Blocks.
    pub fn record_brought(
        &self,
        tree: &Tree,
        description: &str,
        created: Option<SystemTime>,
    ) -> Result<(), CacheError> {
        self.record_made(tree, RecordKind::Regular, description, created)
    }

    fn record_made(
        &self,
        tree: &Tree,
        kind: RecordKind,
        description: &str,
        created: Option<SystemTime>,
    ) -> Result<(), CacheError> {
        let Some(name) = tree.snapshot() else { return Ok(()) };
        let now = nanos(SystemTime::now());
        let made = created.map_or(now, nanos);
        // What was made long ago, and brought now, is no candidate for pruning by its age.
        let uses = i64::from(created.is_some());
        let description = &*redact(description);
        self.metadata.write_lazily(|txn| {
            txn.prepare_cached(
                "INSERT INTO cache_entry (snapshot, kind, description, created, used, uses)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO NOTHING",
            )
            .and_then(|mut statement| {
                statement.execute((name.as_str(), kind.as_str(), description, made, now, uses))
            })
            .map_err(StoreError::metadata("record a cache entry"))?;
            Ok(())
        })?;
        self.grown.notify_one();
        Ok(())
    }

    /// All entries, oldest first. Blocks.
    ///
    /// A built tree is measured once and that is remembered with it; a cache mount's directory is measured again after each use, and each time
    /// while it is in use.
    pub fn usage(&self) -> Result<Vec<CacheEntry>, CacheError> {
        let Listing { rows, parents, imaged } = self.metadata.read(Listing::read)?;
        // After the rows: see `measure_mount`.
        let held = self.stores.leases.all_held();
        let listed: HashSet<&str> = rows.iter().map(|row| row.place.id()).collect();
        // Whatever is below something that is held is in use as well.
        let mut in_use: HashSet<&str> = HashSet::new();
        for resource in &held {
            let id = match resource {
                Resource::Snapshot(name) => name.as_str(),
                Resource::Key(key) => key.as_str(),
                Resource::Blob(_) | Resource::Image(_) => continue,
            };
            mark(id, &parents, &mut in_use);
        }
        let mut shared: HashSet<&str> = HashSet::new();
        for top in &imaged {
            mark(top, &parents, &mut shared);
        }
        let mut entries = Vec::with_capacity(rows.len());
        for row in &rows {
            let id = row.place.id();
            let size = match self.measure(row, in_use.contains(id)) {
                Ok(size) => size,
                // Gone since the list was made.
                Err(StoreError::NotFound { .. }) => continue,
                Err(error) => return Err(error.into()),
            };
            // The nearest below that has an entry: what is between lost its own and stays for what is above it.
            let mut below = std::iter::successors(parents.get(id), |parent| parents.get(parent.as_str()));
            let parent = below.find(|parent| listed.contains(parent.as_str()));
            entries.push(CacheEntry {
                id: id.to_owned(),
                parents: parent.cloned().into_iter().collect(),
                kind: row.kind,
                description: row.description.clone(),
                in_use: in_use.contains(id),
                shared: shared.contains(id),
                mutable: matches!(row.place, Place::Mount(_)),
                size,
                created: row.created,
                last_used: (row.uses > 0).then_some(row.used),
                uses: row.uses,
            });
        }
        self.measured.lock().retain(|key, _| listed.contains(key.as_str()));
        Ok(entries)
    }

    fn measure(&self, row: &Stored, in_use: bool) -> Result<u64, StoreError> {
        match &row.place {
            Place::Built(name) => match row.bytes {
                Some(bytes) => Ok(bytes),
                None => Ok(self.stores.snapshots.usage(name)?.bytes),
            },
            Place::Mount(key) => self.measure_mount(key, row.uses, in_use),
        }
    }

    /// What was measured is right as long as the directory is not used again, and every use is counted in its row before it begins to write. So a row
    /// that was read before it was seen to be unused tells which state was measured, or the next look finds another count.
    fn measure_mount(&self, key: &SnapshotKey, uses: u64, in_use: bool) -> Result<u64, StoreError> {
        let known = self.measured.lock().get(key).copied();
        if let Some(Measured { bytes, .. }) = known.filter(|known| known.uses == uses && !in_use) {
            return Ok(bytes);
        }
        let bytes = self.stores.snapshots.usage_key(key)?.bytes;
        if !in_use {
            self.measured.lock().insert(key.clone(), Measured { uses, bytes });
        }
        Ok(bytes)
    }
}

/// Adds a snapshot and all below it.
fn mark<'a>(id: &'a str, parents: &'a HashMap<String, String>, marked: &mut HashSet<&'a str>) {
    let mut next = Some(id);
    while let Some(id) = next.filter(|id| marked.insert(id)) {
        next = parents.get(id).map(String::as_str);
    }
}

/// What a cache mount's directory took when it had been used this often.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    uses: u64,
    bytes: u64,
}

/// All that the database knows about entries, as of one instant.
struct Listing {
    rows: Vec<Stored>,
    // Of every snapshot that has one, by name or key.
    parents: HashMap<String, String>,
    // The top snapshots of images.
    imaged: Vec<String>,
}

impl Listing {
    fn read(db: &Connection) -> Result<Self, StoreError> {
        let read = || -> rusqlite::Result<Self> {
            let mut rows = db.prepare_cached(
                "SELECT e.snapshot, e.key, e.kind, e.description, e.created, e.used, e.uses, s.bytes, e.seq
                   FROM cache_entry e JOIN snapshot s ON s.name = e.snapshot
                 UNION ALL
                 SELECT e.snapshot, e.key, e.kind, e.description, e.created, e.used, e.uses, NULL, e.seq
                   FROM cache_entry e WHERE e.key IS NOT NULL
                  ORDER BY 9",
            )?;
            let mut parents = db.prepare_cached(
                "SELECT coalesce(name, key), parent FROM snapshot WHERE parent IS NOT NULL",
            )?;
            let mut imaged = db.prepare_cached("SELECT DISTINCT top FROM image WHERE top IS NOT NULL")?;
            Ok(Self {
                rows: rows.query_map([], stored)?.collect::<Result<_, _>>()?,
                parents: parents
                    .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                    .collect::<Result<_, _>>()?,
                imaged: imaged.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?,
            })
        };
        read().map_err(StoreError::metadata("list cache entries"))
    }
}

enum Place {
    Built(SnapshotName),
    Mount(SnapshotKey),
}

impl Place {
    fn id(&self) -> &str {
        match self {
            Self::Built(name) => name.as_str(),
            Self::Mount(key) => key.as_str(),
        }
    }
}

struct Stored {
    place: Place,
    kind: RecordKind,
    description: String,
    created: SystemTime,
    used: SystemTime,
    uses: u64,
    // Of a built tree that was measured.
    bytes: Option<u64>,
}

fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    let place = match row.get::<_, Option<String>>(0)? {
        Some(name) => Place::Built(SnapshotName::new(name)),
        None => Place::Mount(SnapshotKey::new(row.get::<_, String>(1)?)),
    };
    Ok(Stored {
        place,
        kind: RecordKind::parse(&row.get::<_, String>(2)?),
        description: row.get(3)?,
        created: time(row.get(4)?),
        used: time(row.get(5)?),
        uses: row.get::<_, i64>(6)?.unsigned_abs(),
        bytes: row.get::<_, Option<i64>>(7)?.map(i64::unsigned_abs),
    })
}

/// Notes that a tree was used again.
pub(crate) fn touch(metadata: &Metadata, tree: &Tree) -> Result<(), StoreError> {
    let Some(name) = tree.snapshot() else { return Ok(()) };
    metadata.write_lazily(|txn| {
        txn.prepare_cached("UPDATE cache_entry SET used = ?2, uses = uses + 1 WHERE snapshot = ?1")
            .and_then(|mut statement| statement.execute((name.as_str(), nanos(SystemTime::now()))))
            .map_err(StoreError::metadata("note a cache entry's use"))?;
        Ok(())
    })
}

/// Everything that has an entry.
pub(crate) fn held(metadata: &Metadata) -> Result<Vec<Resource>, StoreError> {
    metadata.read(|db| {
        let failed = "list what the cache holds";
        let mut statement = db
            .prepare_cached("SELECT snapshot, key FROM cache_entry")
            .map_err(StoreError::metadata(failed))?;
        let rows = statement
            .query_map([], |row| {
                Ok(match row.get::<_, Option<String>>(0)? {
                    Some(name) => Resource::Snapshot(SnapshotName::new(name)),
                    None => Resource::Key(SnapshotKey::new(row.get::<_, String>(1)?)),
                })
            })
            .map_err(StoreError::metadata(failed))?;
        rows.collect::<Result<_, _>>().map_err(StoreError::metadata(failed))
    })
}

/// The keys of the directories of a cache mount, most recently used first.
pub(crate) fn mount_keys(metadata: &Metadata, id: &str) -> Result<Vec<SnapshotKey>, StoreError> {
    metadata.read(|db| {
        let failed = "look up a cache mount";
        let mut statement = db
            .prepare_cached("SELECT key FROM cache_entry WHERE mount = ?1 ORDER BY used DESC, seq")
            .map_err(StoreError::metadata(failed))?;
        let rows =
            statement.query_map([id], |row| row.get::<_, String>(0)).map_err(StoreError::metadata(failed))?;
        rows.map(|row| row.map(SnapshotKey::new))
            .collect::<Result<_, _>>()
            .map_err(StoreError::metadata(failed))
    })
}

/// What cache mounts are known by that nobody finds any more: no step's id has a NUL.
const FORGOTTEN: &str = "\0forgotten";

/// Takes the directories of a cache mount from it. They stay entries until they are pruned.
pub(crate) fn forget_mounts(metadata: &Metadata, id: &str) -> Result<(), StoreError> {
    metadata.write_lazily(|txn| {
        let failed = "forget a cache mount";
        txn.prepare_cached("UPDATE cache_entry SET mount = ?2 WHERE mount = ?1")
            .and_then(|mut statement| statement.execute([id, FORGOTTEN]))
            .map_err(StoreError::metadata(failed))
            .map(drop)
    })
}

/// Gives a directory to a cache mount, or notes that it is used again.
pub(crate) fn record_mount(
    metadata: &Metadata,
    id: &str,
    key: &SnapshotKey,
    kind: RecordKind,
    description: &str,
) -> Result<(), StoreError> {
    let now = nanos(SystemTime::now());
    metadata.write_lazily(|txn| {
        let failed = "record a cache mount";
        let known: Option<i64> = txn
            .query_row("SELECT seq FROM cache_entry WHERE key = ?1", [key.as_str()], |row| row.get(0))
            .optional()
            .map_err(StoreError::metadata(failed))?;
        match known {
            Some(seq) => {
                txn.execute("UPDATE cache_entry SET used = ?2, uses = uses + 1 WHERE seq = ?1", (seq, now))
            }
            None => txn.execute(
                "INSERT INTO cache_entry (key, kind, description, created, used, uses, mount)
                 VALUES (?1, ?2, ?3, ?4, ?4, 0, ?5)",
                (key.as_str(), kind.as_str(), description, now, id),
            ),
        }
        .map_err(StoreError::metadata(failed))?;
        Ok(())
    })
}

/// Nanoseconds since 1970; times outside of what an i64 holds are cut off (years 1970 to 2262).
pub(crate) fn nanos(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

fn time(nanos: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(nanos.unsigned_abs())
}
