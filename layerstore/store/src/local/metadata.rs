//! One SQLite database for everything the daemon remembers.
//!
//! The file is in WAL mode: readers never wait for the writer, and a crash loses nothing that a commit returned for. One
//! connection writes; a few read. Other components (cache records, history) keep tables of their own in the same file, so
//! that a change that spans components is still one transaction.
//!
//! # How durable
//!
//! `kill -9` loses no committed transaction of either kind: they are in the kernel's hands. They differ in what a power cut may do:
//!
//! * [`Metadata::write`] (`synchronous=FULL`) flushes the log before it returns. For what a user was told is done
//!   (an image, a tag), and for every removal: files go right after it, so it must not come back without them.
//! * [`Metadata::write_lazily`] (`synchronous=NORMAL`) does not flush. The log is a sequence and its recovery a prefix,
//!   so a later flushed transaction makes all earlier ones durable too: losing a lazy one never leaves something
//!   that names what was lost. For steps on the way (a snapshot prepared or committed): when they are lost, so is
//!   everything built on them, and their directories are rubbish that the next start removes.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use rusqlite::{
    Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, config::DbConfig, ffi,
};

use super::reserve::Reserve;
use crate::StoreError;

/// Marks the file as ours (`PRAGMA application_id`): "Laps".
const APPLICATION: i32 = 0x4c61_7073;
/// Version of the file as a whole (`PRAGMA user_version`); each component's tables have their own.
const FORMAT: i32 = 1;
/// Connections that read; a reader waits for a free one.
const READERS: usize = 4;
/// Connections that look one thing up.
const LOOKERS: usize = 4;
/// Other processes that look into the file (backups, the `sqlite3` tool) may hold locks for a moment.
const BUSY: Duration = Duration::from_secs(10);

/// The metadata database of one store. Cheap to clone.
///
/// Closures given to it must not call it again: the writer is one, the readers are few, and both would wait for themselves.
#[derive(Clone)]
pub struct Metadata(Arc<Shared>);

struct Shared {
    path: PathBuf,
    writer: Mutex<Writer>,
    readers: Pool,
    lookers: Pool,
    reserve: Reserve,
    // Last, and so closed last: the lock on the store outlives every part of it, because every part has the database.
    _lock: File,
}

/// Connections of one kind, opened when first needed.
struct Pool {
    most: usize,
    connections: Mutex<Connections>,
    freed: Condvar,
}

struct Connections {
    idle: Vec<Connection>,
    opened: usize,
}

impl Pool {
    fn of(most: usize) -> Self {
        let connections = Mutex::new(Connections { idle: Vec::new(), opened: 0 });
        Self { most, connections, freed: Condvar::new() }
    }

    fn take(&self, path: &Path) -> Result<Reader<'_>, StoreError> {
        let mut connections = self.connections.lock();
        loop {
            if let Some(connection) = connections.idle.pop() {
                return Ok(Reader { pool: self, connection: Some(connection) });
            }
            if connections.opened < self.most {
                connections.opened += 1;
                drop(connections);
                // From here on the place is given back by the drop, also when opening fails.
                let mut reader = Reader { pool: self, connection: None };
                reader.connection = Some(open_reader(path)?);
                return Ok(reader);
            }
            self.freed.wait(&mut connections);
        }
    }
}

/// The connection that writes.
struct Writer {
    connection: Connection,
    /// What it is set to, once it is.
    durability: Option<Durability>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Durability {
    Flushed,
    Lazy,
}

impl Metadata {
    /// Opens the database, and makes it when `may_create`. `lock` is kept open as long as the database is.
    ///
    /// Errors: [`StoreError::Damaged`] when the file is not a database of ours, or is missing or empty and `may_create`
    /// is false; [`StoreError::TooNew`]; [`StoreError::Metadata`]. A damaged file is never replaced.
    pub(super) fn open(path: &Path, may_create: bool, lock: File) -> Result<Self, StoreError> {
        let damaged = |why: &str| StoreError::Damaged { path: path.to_owned(), why: why.to_owned() };
        if !may_create && !path.exists() {
            return Err(damaged("missing, although the store has content"));
        }
        let named = |doing| move |error| of_file(path, doing, error);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut writer = Connection::open_with_flags(path, flags).map_err(named("open database"))?;
        writer.busy_timeout(BUSY).map_err(named("open database"))?;
        let pragma = |name: &str| {
            writer
                .pragma_query_value(None, name, |row| row.get::<_, i32>(0))
                .map_err(named("read the database's header"))
        };
        let (application, format) = (pragma("application_id")?, pragma("user_version")?);
        let fresh = application == 0 && format == 0 && pragma("schema_version")? == 0;
        if fresh && !may_create {
            return Err(damaged("empty, although the store has content"));
        }
        if !fresh && application != APPLICATION {
            return Err(damaged("a database, but not of this program"));
        }
        if format > FORMAT {
            return Err(StoreError::TooNew {
                path: path.to_owned(),
                what: "database".to_owned(),
                found: i64::from(format),
                known: i64::from(FORMAT),
            });
        }
        writer.pragma_update(None, "journal_mode", "wal").map_err(named("switch to write-ahead log"))?;
        writer.pragma_update(None, "journal_size_limit", 16 << 20).map_err(named("limit the log"))?;
        prepare_connection(&writer).map_err(named("set up database"))?;
        if fresh {
            let make = |writer: &mut Connection| {
                let txn = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
                txn.execute_batch(
                    "CREATE TABLE component (name TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT",
                )?;
                txn.pragma_update(None, "application_id", APPLICATION)?;
                txn.pragma_update(None, "user_version", FORMAT)?;
                txn.commit()
            };
            make(&mut writer).map_err(named("create database"))?;
        }
        Ok(Self(Arc::new(Shared {
            path: path.to_owned(),
            writer: Mutex::new(Writer { connection: writer, durability: None }),
            readers: Pool::of(READERS),
            lookers: Pool::of(LOOKERS),
            reserve: Reserve::new(path.with_extension("reserve")),
            _lock: lock,
        })))
    }

    /// The database file.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Brings the tables of `component` up to date: runs those of `steps` that this file has not seen, in one transaction.
    /// Steps are only ever appended to.
    ///
    /// Errors: [`StoreError::TooNew`] when the file has seen more steps than there are.
    pub fn migrate(&self, component: &str, steps: &[&str]) -> Result<(), StoreError> {
        self.write(|txn| {
            let failed = StoreError::metadata("migrate");
            let seen: Option<i64> = txn
                .query_row("SELECT version FROM component WHERE name = ?1", [component], |row| row.get(0))
                .optional()
                .map_err(failed)?;
            let found = seen.unwrap_or(0);
            let known = i64::try_from(steps.len()).unwrap_or(i64::MAX);
            let Some(todo) = usize::try_from(found).ok().and_then(|found| steps.get(found..)) else {
                return Err(StoreError::TooNew {
                    path: self.path().to_owned(),
                    what: format!("tables of {component}"),
                    found,
                    known,
                });
            };
            for step in todo {
                txn.execute_batch(step).map_err(StoreError::metadata("migrate"))?;
            }
            if !todo.is_empty() {
                txn.execute(
                    "INSERT INTO component (name, version) VALUES (?1, ?2)
                     ON CONFLICT (name) DO UPDATE SET version = excluded.version",
                    (component, known),
                )
                .map_err(StoreError::metadata("migrate"))?;
            }
            Ok(())
        })
    }

    /// Runs `read` on the database as of one instant. Writers do not disturb it, nor does it hold them up.
    pub fn read<T>(&self, read: impl FnOnce(&Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.read_by(&self.0.readers, read)
    }

    /// The same for a question that an index answers at once. It waits for others like it at most, never for those who read on and on (a listing,
    /// an export), so it may be asked where nothing may block for long.
    pub fn look_up<T>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.read_by(&self.0.lookers, read)
    }

    fn read_by<T>(
        &self,
        pool: &Pool,
        read: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut reader = pool.take(&self.0.path)?;
        let done = (|| {
            let reading =
                Reading::begin(reader.connection()).map_err(StoreError::metadata("begin reading"))?;
            read(reading.0)
        })();
        done.map_err(|error| self.name_damage(error))
    }

    /// Runs `write` in a transaction that is committed and flushed to disk when it returns `Ok`, and undone otherwise.
    ///
    /// On a full disk the reserve is given up and `write` runs once more: everything that frees space begins with such a transaction,
    /// and must be possible just then.
    pub fn write<T>(
        &self,
        mut write: impl FnMut(&Transaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let done = match self.transact(Durability::Flushed, &mut write) {
            Err(error) if is_no_space(&error) && self.0.reserve.give_up() => {
                self.transact(Durability::Flushed, &mut write)
            }
            other => other,
        };
        if done.is_ok() {
            self.0.reserve.restore();
        }
        done
    }

    /// As [`Self::write`] without the flush: safe from `kill -9`, and from a power cut once a later [`Self::write`] returned.
    pub fn write_lazily<T>(
        &self,
        write: impl FnOnce(&Transaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.transact(Durability::Lazy, write)
    }

    /// Reads the whole file and checks that it is well-formed. Errors: [`StoreError::Damaged`] saying what is not.
    pub fn check(&self) -> Result<(), StoreError> {
        self.read(|db| {
            let verdict: String = db
                .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
                .map_err(StoreError::metadata("check database"))?;
            if verdict == "ok" {
                return Ok(());
            }
            Err(StoreError::Damaged { path: self.path().to_owned(), why: verdict })
        })
    }

    /// Bytes that the database and its log take on disk.
    pub fn disk_bytes(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        ["", "-wal", "-shm"]
            .iter()
            .map(|suffix| {
                let mut file = self.0.path.clone().into_os_string();
                file.push(suffix);
                std::fs::metadata(file).map_or(0, |metadata| metadata.blocks() * 512)
            })
            .sum()
    }

    fn transact<T>(
        &self,
        durability: Durability,
        write: impl FnOnce(&Transaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut writer = self.0.writer.lock();
        let done = (|| {
            let synchronous = match durability {
                Durability::Flushed => "PRAGMA synchronous = FULL",
                Durability::Lazy => "PRAGMA synchronous = NORMAL",
            };
            if writer.durability != Some(durability) {
                writer.durability = None;
                let set = writer.connection.execute_batch(synchronous);
                set.map_err(StoreError::metadata("set durability"))?;
                writer.durability = Some(durability);
            }
            let txn = writer
                .connection
                .transaction_with_behavior(TransactionBehavior::Immediate)
                .map_err(StoreError::metadata("begin writing"))?;
            let value = write(&txn)?;
            txn.commit().map_err(StoreError::metadata("commit"))?;
            Ok(value)
        })();
        done.map_err(|error| self.name_damage(error))
    }

    fn name_damage(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::Metadata { doing, source } => of_file(&self.0.path, doing, source),
            other => other,
        }
    }
}

impl std::fmt::Debug for Metadata {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metadata").field("path", &self.0.path).finish_non_exhaustive()
    }
}

/// A connection on loan from the pool.
struct Reader<'a> {
    pool: &'a Pool,
    connection: Option<Connection>,
}

impl Reader<'_> {
    fn connection(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("set when the loan began")
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        let mut connections = self.pool.connections.lock();
        match self.connection.take() {
            Some(connection) => connections.idle.push(connection),
            None => connections.opened -= 1,
        }
        drop(connections);
        self.pool.freed.notify_one();
    }
}

/// A transaction that only reads. As rusqlite's, but for statements that are compiled once: they are most of a small question.
struct Reading<'a>(&'a Connection);

impl<'a> Reading<'a> {
    fn begin(connection: &'a Connection) -> rusqlite::Result<Self> {
        connection.prepare_cached("BEGIN")?.execute([])?;
        Ok(Self(connection))
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        // Nothing was changed, so nothing is lost if this fails; a connection that is still in a transaction fails at its next one.
        let _ = self.0.prepare_cached("ROLLBACK").and_then(|mut end| end.execute([]));
    }
}

fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let open = || {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let reader = Connection::open_with_flags(path, flags)?;
        reader.busy_timeout(BUSY)?;
        prepare_connection(&reader)?;
        reader.pragma_update(None, "query_only", true)?;
        Ok(reader)
    };
    open().map_err(|error| of_file(path, "open database", error))
}

fn prepare_connection(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(64);
    // Else a statement that meets an index with a condition is compiled anew for each set of parameters.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // What a hand-made file could otherwise do to us: run SQL functions from its schema.
    connection.pragma_update(None, "trusted_schema", false)
}

/// Whether the disk (or the database's limit) is full. SQLite tells a log that cannot grow as an I/O error.
fn is_no_space(error: &StoreError) -> bool {
    let StoreError::Metadata { source, .. } = error else { return false };
    matches!(
        source.sqlite_error().map(|error| error.extended_code & 0xff),
        Some(ffi::SQLITE_FULL | ffi::SQLITE_IOERR)
    )
}

/// Tells damage from other failures, and names the file in either case.
fn of_file(path: &Path, doing: &'static str, source: rusqlite::Error) -> StoreError {
    match source.sqlite_error().map(|error| error.extended_code & 0xff) {
        Some(ffi::SQLITE_CORRUPT | ffi::SQLITE_NOTADB) => {
            StoreError::Damaged { path: path.to_owned(), why: source.to_string() }
        }
        _ => StoreError::Metadata { doing, source },
    }
}
