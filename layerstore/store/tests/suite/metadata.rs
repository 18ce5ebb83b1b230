//! The database file: who may open it, what damage looks like, and tables of other components.

use std::{
    fs,
    io::Write,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use lapstrake_layerstore_conformance::fixture::bare;
use lapstrake_layerstore_store::{ErrorKind, ImageStore, LocalStore, Metadata, StoreError};

fn store() -> (tempfile::TempDir, LocalStore) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let store = LocalStore::open(directory.path()).expect("open");
    (directory, store)
}

fn damaged(root: &Path) -> String {
    match LocalStore::open(root) {
        Err(StoreError::Damaged { path, why }) => {
            assert_eq!(path, root.join("metadata.db"));
            why
        }
        other => panic!("{other:?}"),
    }
}

fn count(metadata: &Metadata) -> i64 {
    metadata
        .read(|db| {
            db.query_row("SELECT count(*) FROM note", [], |row| row.get(0))
                .map_err(StoreError::metadata("count"))
        })
        .expect("read")
}

fn insert(metadata: &Metadata, text: &str) -> Result<(), StoreError> {
    metadata.write(|txn| {
        txn.execute("INSERT INTO note VALUES (?1)", [text]).map_err(StoreError::metadata("insert"))?;
        Ok(())
    })
}

#[test]
fn a_store_is_open_once_until_its_last_part_is_gone() {
    let (directory, store) = store();
    let open = || LocalStore::open(directory.path());
    assert!(matches!(open(), Err(StoreError::Locked { root }) if root == directory.path()));
    let images = store.images.clone();
    drop(store);
    assert!(matches!(open(), Err(StoreError::Locked { .. })), "a part of it is still in use");
    drop(images);
    open().expect("free again");
}

#[test]
fn another_process_cannot_open_it_either() {
    let (directory, _store) = store();
    let status = Command::new("flock")
        .args(["--nonblock", "--conflict-exit-code", "42"])
        .arg(directory.path().join("lock"))
        .arg("true")
        .status()
        .expect("flock of util-linux");
    assert_eq!(status.code(), Some(42));
}

#[test]
fn what_was_written_is_there_after_opening_again() {
    let (directory, store) = store();
    let id = store.images.put(bare("one", Vec::new())).expect("put");
    let before = store.images.get(&id).expect("get");
    drop(store);
    let store = LocalStore::open(directory.path()).expect("open");
    assert_eq!(store.images.get(&id).expect("get"), before);
}

#[test]
fn a_file_that_is_no_database_is_named_and_left_alone() {
    let (directory, store) = store();
    drop(store);
    let path = directory.path().join("metadata.db");
    let text = "this is not a database, but somebody's notes\n".repeat(200);
    fs::write(&path, &text).expect("write");
    assert!(damaged(directory.path()).contains("not a database"));
    assert_eq!(fs::read_to_string(&path).expect("read"), text);
}

#[test]
fn a_lost_or_empty_database_is_not_replaced_while_there_is_content() {
    for lose in [(|path| fs::remove_file(path)) as fn(&Path) -> std::io::Result<()>, |path| {
        fs::File::create(path).map(drop)
    }] {
        let (directory, store) = store();
        store.images.put(bare("one", Vec::new())).expect("put");
        drop(store);
        lose(&directory.path().join("metadata.db")).expect("lose");
        assert!(damaged(directory.path()).contains("although the store has content"));
        assert!(damaged(directory.path()).contains("although the store has content"), "and is not then");
    }
}

#[test]
fn a_truncated_or_overwritten_database_is_damaged_and_not_reset() {
    let (directory, store) = store();
    for n in 0..300 {
        store.images.put(bare(&n.to_string(), Vec::new())).expect("put");
    }
    drop(store);
    let path = directory.path().join("metadata.db");
    let whole = fs::read(&path).expect("read");
    // Every page but the first overwritten: the header is right, what it leads to is not.
    let mut overwritten = whole.clone();
    overwritten[4096..].fill(0xa5);
    for bytes in [&whole[..whole.len() / 2 / 4096 * 4096], &whole[..5000], &overwritten] {
        fs::write(&path, bytes).expect("write");
        let result = LocalStore::open(directory.path()).and_then(|store| {
            store.metadata.check()?;
            store.images.list()
        });
        match result {
            Err(error @ StoreError::Damaged { .. }) => {
                assert!(error.to_string().starts_with(path.to_str().expect("text")), "{error}");
                assert_eq!(error.kind(), ErrorKind::Internal);
            }
            other => panic!("{} bytes: {:?}", bytes.len(), other.map(|images| images.len())),
        }
    }
    fs::write(&path, &whole).expect("write");
    let store = LocalStore::open(directory.path()).expect("nothing was changed meanwhile");
    assert_eq!(store.images.list().expect("list").len(), 300);
}

#[test]
fn a_log_cut_off_in_the_middle_of_a_transaction_is_no_damage() {
    let (directory, store) = store();
    let first = store.images.put(bare("first", Vec::new())).expect("put");
    let copy = tempfile::tempdir().expect("temporary directory");
    for file in ["metadata.db", "metadata.db-wal"] {
        fs::copy(directory.path().join(file), copy.path().join(file)).expect("copy");
    }
    // As the disk may be left when the next transaction was on its way.
    let mut log =
        fs::OpenOptions::new().append(true).open(copy.path().join("metadata.db-wal")).expect("open");
    log.write_all(&[7; 10_000]).expect("write");
    let store = LocalStore::open(copy.path()).expect("open");
    store.metadata.check().expect("well-formed");
    assert!(store.images.get(&first).expect("get").is_some());
}

#[test]
fn a_database_of_another_program_or_a_newer_version_is_refused() {
    let (directory, store) = store();
    drop(store);
    let path = directory.path().join("metadata.db");
    let set = |pragma: &str| {
        let db = lapstrake_layerstore_store::rusqlite::Connection::open(&path).expect("open");
        db.execute_batch(pragma).expect("set");
    };
    set("PRAGMA user_version = 99");
    assert!(matches!(LocalStore::open(directory.path()), Err(StoreError::TooNew { found: 99, .. })));
    set("PRAGMA user_version = 1; PRAGMA application_id = 5");
    assert!(damaged(directory.path()).contains("not of this program"));
    set("PRAGMA application_id = 0x4c617073; UPDATE component SET version = 50 WHERE name = 'store'");
    let error = LocalStore::open(directory.path()).expect_err("too new");
    assert!(
        matches!(&error, StoreError::TooNew { what, found: 50, .. } if what == "tables of store"),
        "{error}"
    );
}

#[test]
fn a_component_s_tables_grow_step_by_step() {
    let (directory, store) = store();
    let one = "CREATE TABLE note (text TEXT) STRICT";
    store.metadata.migrate("notes", &[one]).expect("migrate");
    insert(&store.metadata, "kept").expect("insert");
    drop(store);
    let store = LocalStore::open(directory.path()).expect("open");
    let two = "ALTER TABLE note ADD COLUMN time INTEGER";
    store.metadata.migrate("notes", &[one, two]).expect("migrate");
    store.metadata.migrate("notes", &[one, two]).expect("nothing to do");
    assert_eq!(count(&store.metadata), 1);
    let error = store.metadata.migrate("notes", &[one]).expect_err("older program");
    assert!(matches!(error, StoreError::TooNew { found: 2, known: 1, .. }), "{error}");
    // A step that fails leaves the tables as they were.
    store
        .metadata
        .migrate("notes", &[one, two, "DELETE FROM note; CREATE TABLE note (x)"])
        .expect_err("taken");
    assert_eq!(count(&store.metadata), 1);
}

#[test]
fn a_failed_write_is_undone_and_the_next_works() {
    let (_directory, store) = store();
    store.metadata.migrate("notes", &["CREATE TABLE note (text TEXT) STRICT"]).expect("migrate");
    let failed = store.metadata.write(|txn| {
        txn.execute("INSERT INTO note VALUES ('lost')", []).map_err(StoreError::metadata("insert"))?;
        Err::<(), _>(StoreError::NotFound { kind: "thing", id: "x".to_owned() })
    });
    assert!(matches!(failed, Err(StoreError::NotFound { .. })));
    assert_eq!(count(&store.metadata), 0);
    insert(&store.metadata, "kept").expect("insert");
    assert_eq!(count(&store.metadata), 1);
}

#[test]
fn a_panic_in_a_transaction_undoes_it_and_blocks_nobody() {
    let (_directory, store) = store();
    store.metadata.migrate("notes", &["CREATE TABLE note (text TEXT) STRICT"]).expect("migrate");
    let metadata = store.metadata.clone();
    let panicked = thread::spawn(move || {
        let _ = metadata.write(|txn| -> Result<(), StoreError> {
            txn.execute("INSERT INTO note VALUES ('lost')", []).expect("insert");
            panic!("on purpose");
        });
    });
    panicked.join().expect_err("panicked");
    insert(&store.metadata, "kept").expect("insert");
    assert_eq!(count(&store.metadata), 1);
}

#[test]
fn readers_cannot_write() {
    let (_directory, store) = store();
    let result = store.metadata.read(|db| {
        db.execute("DELETE FROM image", []).map_err(StoreError::metadata("delete"))?;
        Ok(())
    });
    assert!(matches!(result, Err(StoreError::Metadata { .. })), "{result:?}");
}

#[test]
fn a_reader_sees_one_instant_while_writers_go_on() {
    let (_directory, store) = store();
    store.metadata.migrate("notes", &["CREATE TABLE note (text TEXT) STRICT"]).expect("migrate");
    let other = store.metadata.clone();
    store
        .metadata
        .read(|db| {
            let count =
                || -> i64 { db.query_row("SELECT count(*) FROM note", [], |row| row.get(0)).expect("count") };
            assert_eq!(count(), 0);
            // From another thread, as the closure must not use the database again.
            thread::scope(|scope| scope.spawn(|| insert(&other, "new")).join())
                .expect("joined")
                .expect("insert");
            assert_eq!(count(), 0);
            Ok(())
        })
        .expect("read");
    assert_eq!(count(&store.metadata), 1);
}

#[test]
fn more_readers_and_writers_than_connections_all_get_their_turn() {
    let (_directory, store) = store();
    store.metadata.migrate("notes", &["CREATE TABLE note (text TEXT) STRICT"]).expect("migrate");
    let metadata = Arc::new(store.metadata.clone());
    thread::scope(|scope| {
        for n in 0..16 {
            let metadata = &metadata;
            scope.spawn(move || {
                for turn in 0..20 {
                    if n % 2 == 0 {
                        metadata
                            .write_lazily(|txn| {
                                txn.execute("INSERT INTO note VALUES (?1)", [format!("{n} {turn}")])
                                    .map_err(StoreError::metadata("insert"))?;
                                Ok(())
                            })
                            .expect("write");
                    } else {
                        assert!(count(metadata) <= 160);
                    }
                }
            });
        }
    });
    assert_eq!(count(&store.metadata), 160);
}

#[test]
fn who_looks_something_up_does_not_wait_for_those_who_read_on_and_on() {
    let (_directory, store) = store();
    store.metadata.migrate("notes", &["CREATE TABLE note (text TEXT) STRICT"]).expect("migrate");
    let (reading, all_read) = mpsc::channel();
    let (looked_up, end) = mpsc::channel();
    let metadata = store.metadata.clone();
    thread::scope(|scope| {
        let stop = Arc::new(AtomicBool::new(false));
        for _ in 0..8 {
            let (reading, metadata, stop) = (reading.clone(), metadata.clone(), Arc::clone(&stop));
            scope.spawn(move || {
                let read = metadata.read(|_| {
                    _ = reading.send(());
                    while !stop.load(Ordering::SeqCst) {
                        thread::yield_now();
                    }
                    Ok(())
                });
                read.expect("read");
            });
        }
        // Four read, and the others wait for them.
        for _ in 0..4 {
            all_read.recv().expect("it reads");
        }
        let metadata = &metadata;
        scope.spawn(move || {
            for _ in 0..100 {
                let one = metadata.look_up(|db| {
                    db.query_row("SELECT count(*) FROM note", [], |row| row.get::<_, i64>(0))
                        .map_err(StoreError::metadata("count"))
                });
                assert_eq!(one.expect("look up"), 0);
            }
            looked_up.send(()).expect("the test waits");
        });
        let in_time = end.recv_timeout(Duration::from_secs(60));
        stop.store(true, Ordering::SeqCst);
        in_time.expect("nothing waits for the readers");
    });
}
