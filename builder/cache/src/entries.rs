//! Entries: what the cache keeps, as `docker system df -v` lists it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lapstrake_layerstore_store::{
    Metadata, Resource, SnapshotInfo, SnapshotKey, SnapshotName, StoreError, Tree,
};
use rusqlite::{OptionalExtension, Row};

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
    /// The entries it was made from: the snapshot's parent.
    pub parents: Vec<String>,
    /// What it is of.
    pub kind: RecordKind,
    /// What it is, for people.
    pub description: String,
    /// Whether running work holds it.
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
    /// Notes what a tree is, so that it stays and is listed. A tree that has an entry keeps it; the empty tree needs none.
    ///
    /// Blocks. Lazy: what a power cut takes is built again.
    pub fn record(&self, tree: &Tree, kind: RecordKind, description: &str) -> Result<(), CacheError> {
        let Some(name) = tree.snapshot() else { return Ok(()) };
        let now = nanos(SystemTime::now());
        self.metadata.write_lazily(|txn| {
            txn.prepare_cached(
                "INSERT INTO cache_entry (snapshot, kind, description, created, used, uses)
                 VALUES (?1, ?2, ?3, ?4, ?4, 0) ON CONFLICT DO NOTHING",
            )
            .and_then(|mut statement| statement.execute((name.as_str(), kind.as_str(), description, now)))
            .map_err(StoreError::metadata("record a cache entry"))?;
            Ok(())
        })?;
        Ok(())
    }

    /// All entries, oldest first. Blocks; walks the directories of cache mounts to measure them.
    pub fn usage(&self) -> Result<Vec<CacheEntry>, CacheError> {
        let rows = self.metadata.read(|db| {
            let failed = "list cache entries";
            let mut statement = db
                .prepare_cached(
                    "SELECT e.snapshot, e.key, e.kind, e.description, e.created, e.used, e.uses, s.parent
                       FROM cache_entry e
                       JOIN snapshot s ON s.name = e.snapshot OR s.key = e.key
                      ORDER BY e.seq",
                )
                .map_err(StoreError::metadata(failed))?;
            let rows = statement.query_map([], stored).map_err(StoreError::metadata(failed))?;
            rows.collect::<Result<Vec<_>, _>>().map_err(StoreError::metadata(failed))
        })?;
        let imaged = self.image_snapshots()?;
        let held = self.stores.leases.all_held();
        let mut entries = Vec::with_capacity(rows.len());
        for row in rows {
            let (resource, usage) = match &row.place {
                Place::Built(name) => (Resource::Snapshot(name.clone()), self.stores.snapshots.usage(name)),
                Place::Mount(key) => (Resource::Key(key.clone()), self.stores.snapshots.usage_key(key)),
            };
            let size = match usage {
                Ok(usage) => usage.bytes,
                // Gone since the list was made.
                Err(StoreError::NotFound { .. }) => continue,
                Err(error) => return Err(error.into()),
            };
            entries.push(CacheEntry {
                id: row.place.id().to_owned(),
                parents: row.parent.into_iter().collect(),
                kind: row.kind,
                description: row.description,
                in_use: held.contains(&resource),
                shared: matches!(&row.place, Place::Built(name) if imaged.contains(name)),
                mutable: matches!(row.place, Place::Mount(_)),
                size,
                created: row.created,
                last_used: (row.uses > 0).then_some(row.used),
                uses: row.uses,
            });
        }
        Ok(entries)
    }

    /// The snapshots of all images' layers.
    fn image_snapshots(&self) -> Result<std::collections::HashSet<SnapshotName>, StoreError> {
        let mut parents = std::collections::HashMap::new();
        self.stores.snapshots.walk(&mut |SnapshotInfo { kind, parent, .. }| {
            if let lapstrake_layerstore_store::SnapshotKind::Committed(name) = kind {
                parents.insert(name, parent);
            }
            true
        })?;
        let mut found = std::collections::HashSet::new();
        for image in self.stores.images.list()? {
            let mut next = image.top;
            while let Some(name) = next {
                next = parents.get(&name).cloned().flatten();
                if !found.insert(name) {
                    break;
                }
            }
        }
        Ok(found)
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
    parent: Option<String>,
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
        parent: row.get(7)?,
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

/// Gives a directory to a cache mount, or notes that it is used again.
pub(crate) fn record_mount(
    metadata: &Metadata,
    id: &str,
    key: &SnapshotKey,
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
                (key.as_str(), RecordKind::CacheMount.as_str(), description, now, id),
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
