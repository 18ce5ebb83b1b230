//! What blobs are on disk.

use std::{fs, io::Write, os::unix::fs::PermissionsExt};

use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_store::{ContentStore, LocalStore, StoreError};

fn walk(content: &dyn ContentStore) -> Vec<Digest> {
    let mut digests = Vec::new();
    content
        .walk(&mut |blob| {
            digests.push(blob.digest);
            true
        })
        .expect("walk");
    digests
}

#[test]
fn a_blob_is_a_read_only_file_named_by_its_digest() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let store = LocalStore::open(directory.path()).expect("open");
    let content: &dyn ContentStore = store.content.as_ref();
    let digest = content.write_small(b"bytes").expect("write");
    let path = directory.path().join("content/blobs/sha256").join(digest.hex());
    assert_eq!(fs::read(&path).expect("read"), b"bytes");
    assert_eq!(fs::metadata(&path).expect("metadata").permissions().mode() & 0o777, 0o444);
    assert_eq!(
        fs::metadata(directory.path().join("content")).expect("metadata").permissions().mode() & 0o777,
        0o700
    );
}

#[test]
fn what_was_being_received_is_removed_at_the_next_start() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let store = LocalStore::open(directory.path()).expect("open");
    let mut writer = store.content.writer().expect("writer");
    writer.write_all(&vec![1; 1 << 20]).expect("write");
    // As a killed process leaves it: not even dropped.
    std::mem::forget(writer);
    drop(store);
    let ingest = directory.path().join("content/ingest");
    // The forgotten writer has the database, and so the lock; another process would not have it.
    assert_eq!(fs::read_dir(&ingest).expect("list").count(), 1);
    fs::remove_file(directory.path().join("lock")).expect("as if that process were gone");
    let store = LocalStore::open(directory.path()).expect("open");
    assert_eq!(fs::read_dir(&ingest).expect("list").count(), 0);
    assert!(walk(store.content.as_ref()).is_empty());
}

#[test]
fn a_damaged_blob_is_put_right_by_writing_it_again() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let store = LocalStore::open(directory.path()).expect("open");
    let content: &dyn ContentStore = store.content.as_ref();
    let digest = content.write_small(b"bytes").expect("write");
    let path = directory.path().join("content/blobs/sha256").join(digest.hex());
    fs::write(&path, b"byt").expect("truncate");
    assert_eq!(content.write_small(b"bytes").expect("write"), digest);
    assert_eq!(content.read_small(&digest, 100).expect("read"), b"bytes");
}

#[test]
fn what_is_no_blob_is_left_alone_or_named() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let store = LocalStore::open(directory.path()).expect("open");
    let blobs = directory.path().join("content/blobs/sha256");
    let digest = Digest::sha256_of("a directory");
    fs::write(blobs.join("notes.txt"), "mine").expect("write");
    assert!(walk(store.content.as_ref()).is_empty());
    fs::create_dir(blobs.join(digest.hex())).expect("create");
    assert!(
        matches!(store.content.info(&digest), Err(StoreError::Damaged { path, .. }) if path.starts_with(&blobs))
    );
    assert!(blobs.join("notes.txt").exists());
}
