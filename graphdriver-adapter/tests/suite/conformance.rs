//! Both drivers keep the promises of the Snapshotter contract.

use std::{path::Path, sync::Arc};

use lapstrake_graphdriver_adapter::{Adapter, DriverKind, Overlay2};
use lapstrake_layerstore_conformance::{MemoryRecords, SnapshotFixture, run, snapshot};
use lapstrake_layerstore_store::{LocalStore, OverlaySyntax};

fn fixture(kind: DriverKind) -> SnapshotFixture {
    let root = tempfile::tempdir().unwrap();
    let driver = kind.open(root.path()).unwrap();
    let adapter = Adapter::new(driver, Arc::new(MemoryRecords::default()));
    SnapshotFixture { snapshots: Arc::new(adapter), keep: Box::new(root) }
}

#[test]
fn overlay2_keeps_the_promises() {
    run(snapshot::SUITE, || fixture(DriverKind::Overlay2));
}

/// What Debian 12's kernel gets.
#[test]
fn overlay2_keeps_the_promises_where_the_kernel_takes_lists_only() {
    run(snapshot::SUITE, || {
        let root = tempfile::tempdir().unwrap();
        let driver = Overlay2::open_in(root.path(), OverlaySyntax::Listed).unwrap();
        let adapter = Adapter::new(driver, Arc::new(MemoryRecords::default()));
        SnapshotFixture { snapshots: Arc::new(adapter), keep: Box::new(root) }
    });
}

#[test]
fn vfs_keeps_the_promises() {
    run(snapshot::SUITE, || fixture(DriverKind::Vfs));
}

/// With the records where they really are.
#[test]
fn overlay2_on_the_local_store_keeps_the_promises() {
    run(snapshot::SUITE, || {
        let root = tempfile::tempdir().unwrap();
        let store = LocalStore::open(root.path()).unwrap();
        let adapter = Adapter::new(DriverKind::Overlay2.open(root.path()).unwrap(), store.records.clone());
        SnapshotFixture { snapshots: Arc::new(adapter), keep: Box::new((store, root)) }
    });
}

#[test]
fn overlay2_is_chosen_where_it_works_and_leaves_no_traces() {
    let root = tempfile::tempdir().unwrap();
    assert_eq!(DriverKind::detect(root.path()).unwrap(), DriverKind::Overlay2);
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    DriverKind::detect(Path::new("/no/such/directory")).unwrap_err();
}

#[test]
fn an_unknown_driver_is_an_error_naming_it() {
    let error = "btrfs".parse::<DriverKind>().unwrap_err();
    assert_eq!(error.to_string(), "graph driver btrfs: not known; there are overlay2 and vfs");
}

#[test]
fn overlay2_where_it_cannot_work_is_an_error_saying_why() {
    // Overlayfs refuses to have its upper directory on an overlay that is itself on one, or on procfs and the like.
    let error = DriverKind::Overlay2.open(Path::new("/proc/self")).map(drop).unwrap_err();
    assert!(!error.to_string().is_empty());
}
