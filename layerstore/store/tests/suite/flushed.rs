//! What a power cut may have taken is not known after it.

use std::{path::Path, time::SystemTime};

use lapstrake_layerstore_conformance::fixture::bare;
use lapstrake_layerstore_oci::{ChainId, DiffId, Digest};
use lapstrake_layerstore_store::{
    ImageStore as _, Layer, LayerStore as _, LocalStore, NewImage, SnapshotId, SnapshotKey, SnapshotKind,
    SnapshotName, SnapshotRecord, SnapshotRecords as _, StoreError,
};

fn insert(store: &LocalStore, text: &str, parent: Option<&str>) {
    store
        .records
        .insert(&SnapshotRecord {
            id: SnapshotId::random(),
            kind: SnapshotKind::Active(SnapshotKey::new(text)),
            parent: parent.map(SnapshotName::new),
            created: SystemTime::now(),
            usage: None,
        })
        .unwrap();
}

fn commit(store: &LocalStore, text: &str, parent: Option<&str>) -> SnapshotName {
    insert(store, text, parent);
    let name = SnapshotName::new(text);
    store.records.commit(&SnapshotKey::new(text), &name).unwrap();
    name
}

fn flush(store: &LocalStore) {
    store.records.note_flush(store.records.last_commit().unwrap()).unwrap();
}

/// The store as it is opened after the machine was started anew.
fn after_power_cut(root: &Path, store: LocalStore) -> LocalStore {
    let failed = || StoreError::metadata("pretend");
    store.metadata.write(|txn| txn.execute("UPDATE boot SET id = 'another'", []).map_err(failed())).unwrap();
    drop(store);
    LocalStore::open(root).unwrap()
}

fn names(store: &LocalStore) -> Vec<String> {
    let mut names: Vec<String> = store
        .records
        .all()
        .unwrap()
        .into_iter()
        .map(|record| match record.kind {
            SnapshotKind::Committed(name) => name.to_string(),
            SnapshotKind::Active(key) | SnapshotKind::View(key) => format!("({key})"),
        })
        .collect();
    names.sort();
    names
}

#[test]
fn what_was_not_flushed_is_forgotten_with_its_layers_and_what_was_begun_on_it() {
    let root = tempfile::tempdir().unwrap();
    let store = LocalStore::open(root.path()).unwrap();
    commit(&store, "old", None);
    flush(&store);
    insert(&store, "begun on old", Some("old"));
    let new = commit(&store, "new", Some("old"));
    commit(&store, "on new", Some("new"));
    insert(&store, "begun on new", Some("on new"));
    let diff_id = DiffId(Digest::sha256_of("tar"));
    let layer = Layer { snapshot: new, chain_id: ChainId(diff_id.0.clone()), diff_id, size: 1 };
    store.layers.record(std::slice::from_ref(&layer)).unwrap();
    let all = ["(begun on new)", "(begun on old)", "new", "old", "on new"];
    assert_eq!(names(&store), all);
    // Of a process that was killed, nothing is lost.
    drop(store);
    let store = LocalStore::open(root.path()).unwrap();
    assert_eq!(names(&store), all);
    let store = after_power_cut(root.path(), store);
    assert_eq!(names(&store), ["(begun on old)", "old"]);
    assert_eq!(store.layers.by_chain(&layer.chain_id).unwrap(), None);
    // Once.
    commit(&store, "newer", None);
    drop(store);
    let store = LocalStore::open(root.path()).unwrap();
    assert_eq!(names(&store), ["(begun on old)", "newer", "old"]);
}

#[test]
fn what_is_committed_during_a_flush_may_have_missed_it() {
    let root = tempfile::tempdir().unwrap();
    let store = LocalStore::open(root.path()).unwrap();
    let first = commit(&store, "first", None);
    let before = store.records.last_commit().unwrap();
    // Not even where the mark's own row goes meanwhile.
    store.records.remove(&first).unwrap();
    commit(&store, "meanwhile", None);
    store.records.note_flush(before).unwrap();
    let store = after_power_cut(root.path(), store);
    assert_eq!(names(&store), [""; 0]);
}

#[test]
fn what_an_image_has_stays() {
    let root = tempfile::tempdir().unwrap();
    let store = LocalStore::open(root.path()).unwrap();
    commit(&store, "bottom", None);
    let top = commit(&store, "top", Some("bottom"));
    commit(&store, "more", Some("top"));
    // As if the note of the flush before it were lost.
    let image = NewImage { top: Some(top), ..bare("image", vec![DiffId(Digest::sha256_of("tar"))]) };
    store.images.put(image).unwrap();
    let store = after_power_cut(root.path(), store);
    assert_eq!(names(&store), ["bottom", "top"]);
}
