//! Snapshot records in the database do what their contract says.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lapstrake_layerstore_store::{
    LocalStore, SnapshotId, SnapshotKey, SnapshotKind, SnapshotName, SnapshotRecord, SnapshotRecords,
    StoreError, Usage,
};

fn store() -> (tempfile::TempDir, LocalStore) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let store = LocalStore::open(directory.path()).expect("open");
    (directory, store)
}

fn key(text: &str) -> SnapshotKey {
    SnapshotKey::new(text)
}

fn name(text: &str) -> SnapshotName {
    SnapshotName::new(text)
}

fn record(kind: SnapshotKind, parent: Option<&str>) -> SnapshotRecord {
    // Before 1970 and to the nanosecond: nothing of it is lost.
    let created = UNIX_EPOCH - Duration::new(5, 123_456_789);
    SnapshotRecord { id: SnapshotId::random(), kind, parent: parent.map(name), created, usage: None }
}

fn active(text: &str, parent: Option<&str>) -> SnapshotRecord {
    record(SnapshotKind::Active(key(text)), parent)
}

fn view(text: &str, parent: Option<&str>) -> SnapshotRecord {
    record(SnapshotKind::View(key(text)), parent)
}

/// Inserts and commits one; what is then recorded of it.
fn committed(records: &dyn SnapshotRecords, text: &str, parent: Option<&str>) -> SnapshotRecord {
    let record = active(text, parent);
    records.insert(&record).expect("insert");
    records.commit(&key(text), &name(text)).expect("commit");
    SnapshotRecord { kind: SnapshotKind::Committed(name(text)), ..record }
}

fn is_not_found<T: std::fmt::Debug>(result: Result<T, StoreError>, of: &str) {
    assert!(matches!(&result, Err(StoreError::NotFound { kind: "snapshot", id }) if id == of), "{result:?}");
}

#[test]
fn a_record_is_read_back_as_it_was_inserted() {
    let (_directory, store) = store();
    let base = committed(store.records.as_ref(), "base", None);
    let (one, two) = (active("one", Some("base")), view("two", None));
    store.records.insert(&one).expect("insert");
    store.records.insert(&two).expect("insert");
    assert_eq!(store.records.by_key(&key("one")).expect("by key"), one);
    assert_eq!(store.records.by_key(&key("two")).expect("by key"), two);
    assert_eq!(store.records.by_name(&name("base")).expect("by name"), base);
    assert_eq!(store.records.ids().expect("ids"), BTreeSet::from([base.id, one.id, two.id]));
    is_not_found(store.records.by_key(&key("base")), "base");
    is_not_found(store.records.by_name(&name("one")), "one");
}

#[test]
fn what_is_taken_or_missing_is_refused_and_changes_nothing() {
    let (_directory, store) = store();
    let records = store.records.as_ref();
    committed(records, "base", None);
    let one = active("one", None);
    records.insert(&one).expect("insert");
    let before = records.all().expect("all");
    for taken in
        [active("one", None), view("one", None), SnapshotRecord { id: one.id, ..active("other", None) }]
    {
        let result = records.insert(&taken);
        assert!(matches!(result, Err(StoreError::AlreadyExists { .. })), "{result:?}");
    }
    is_not_found(records.insert(&active("new", Some("one"))), "one");
    let finished = record(SnapshotKind::Committed(name("new")), None);
    assert!(matches!(records.insert(&finished), Err(StoreError::Invalid { .. })));
    assert!(matches!(records.commit(&key("one"), &name("base")), Err(StoreError::AlreadyExists { .. })));
    is_not_found(records.commit(&key("absent"), &name("new")), "absent");
    assert_eq!(records.all().expect("all"), before);
    records.insert(&view("view", None)).expect("insert");
    assert!(matches!(records.commit(&key("view"), &name("new")), Err(StoreError::Invalid { .. })));
}

#[test]
fn keys_and_names_are_separate() {
    let (_directory, store) = store();
    committed(store.records.as_ref(), "same", None);
    store.records.insert(&active("same", Some("same"))).expect("insert");
    store.records.remove_key(&key("same")).expect("remove");
    store.records.by_name(&name("same")).expect("stays");
}

#[test]
fn a_chain_is_top_most_first_and_children_are_in_order_of_ids() {
    let (_directory, store) = store();
    let records = store.records.as_ref();
    let base = committed(records, "base", None);
    let middle = committed(records, "middle", Some("base"));
    let top = committed(records, "top", Some("middle"));
    let side = active("side", Some("base"));
    records.insert(&side).expect("insert");
    let ids = [&top.id, &middle.id, &base.id].map(SnapshotId::clone);
    assert_eq!(records.chain(&name("top")).expect("chain"), ids);
    assert_eq!(records.chain(&name("base")).expect("chain"), [base.id]);
    is_not_found(records.chain(&name("side")), "side");
    let mut children = [middle, side];
    children.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(records.children(&name("base")).expect("children"), children);
    assert!(records.children(&name("absent")).expect("children").is_empty());
}

#[test]
fn usage_is_remembered() {
    let (_directory, store) = store();
    let records = store.records.as_ref();
    committed(records, "base", None);
    let usage = Usage { bytes: 1 << 40, inodes: 7 };
    records.set_usage(&name("base"), usage).expect("set usage");
    assert_eq!(records.by_name(&name("base")).expect("by name").usage, Some(usage));
    is_not_found(records.set_usage(&name("absent"), usage), "absent");
    let absurd = Usage { bytes: u64::MAX, inodes: 1 };
    assert!(matches!(records.set_usage(&name("base"), absurd), Err(StoreError::Invalid { .. })));
}

#[test]
fn a_snapshot_that_was_made_elsewhere_has_the_time_of_that() {
    let (_directory, store) = store();
    let records = store.records.as_ref();
    committed(records, "base", None);
    let made = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_nanos(1_600_000_000_000_000_001);
    records.set_created(&name("base"), made).expect("set created");
    assert_eq!(records.by_name(&name("base")).expect("by name").created, made);
    is_not_found(records.set_created(&name("absent"), made), "absent");
}

#[test]
fn a_parent_stays_until_its_children_are_gone() {
    let (_directory, store) = store();
    let records = store.records.as_ref();
    let base = committed(records, "base", None);
    records.insert(&active("child", Some("base"))).expect("insert");
    let result = records.remove(&name("base"));
    assert!(matches!(&result, Err(StoreError::InUse { by, .. }) if by == "snapshot child"), "{result:?}");
    records.remove_key(&key("child")).expect("remove");
    assert_eq!(records.remove(&name("base")).expect("remove"), base);
    is_not_found(records.remove(&name("base")), "base");
    is_not_found(records.remove_key(&key("child")), "child");
    assert!(records.all().expect("all").is_empty());
}

#[test]
fn forgetting_several_is_all_or_nothing() {
    let (_directory, store) = store();
    let records = store.records.as_ref();
    committed(records, "base", None);
    committed(records, "top", Some("base"));
    records.insert(&active("child", Some("top"))).expect("insert");
    let before = records.all().expect("all");
    let wrong_order = records.forget(&[key("child")], &[name("base"), name("top")]);
    assert!(matches!(wrong_order, Err(StoreError::InUse { .. })));
    assert_eq!(records.all().expect("all"), before);
    assert_eq!(records.forget(&[key("child")], &[name("top"), name("base")]).expect("forget").len(), 3);
    assert!(records.all().expect("all").is_empty());
}

#[test]
fn parents_come_before_their_children_whenever_they_were_made() {
    let (_directory, store) = store();
    let records = store.records.as_ref();
    // The child's key begins before other things are made and removed around it.
    records.insert(&active("late", None)).expect("insert");
    committed(records, "gone", None);
    committed(records, "a", None);
    records.remove(&name("gone")).expect("remove");
    records.commit(&key("late"), &name("late")).expect("commit");
    committed(records, "b", Some("late"));
    committed(records, "c", Some("b"));
    records.insert(&SnapshotRecord { created: SystemTime::now(), ..view("d", Some("a")) }).expect("insert");
    let mut seen = BTreeSet::new();
    for record in records.all().expect("all") {
        assert!(record.parent.is_none_or(|parent| seen.contains(&parent)));
        if let SnapshotKind::Committed(name) = record.kind {
            seen.insert(name);
        }
    }
    assert_eq!(seen.len(), 4);
}
