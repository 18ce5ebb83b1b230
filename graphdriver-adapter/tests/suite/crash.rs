//! Whatever line the process dies at, the next start finds a store without rubbish in which everything works.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::SystemTime,
};

use lapstrake_graphdriver_adapter::{Adapter, DriverKind, GraphDriver};
use lapstrake_layerstore_conformance::MemoryRecords;
use lapstrake_layerstore_store::{
    DiffSource, Leftovers, OpenSnapshot, SnapshotId, SnapshotKey, SnapshotKind, SnapshotMount, SnapshotName,
    SnapshotRecord, SnapshotRecords, Snapshotter, StoreError, Usage,
};

/// Burns down with each step of the store. The step at which it is gone does not happen, nor does any after it: the
/// process is dead.
#[derive(Clone)]
struct Fuse(Arc<AtomicI64>);

impl Fuse {
    fn new(steps: i64) -> Self {
        Self(Arc::new(AtomicI64::new(steps)))
    }

    fn burn(&self) -> Result<(), StoreError> {
        if self.0.fetch_sub(1, Ordering::SeqCst) > 0 {
            return Ok(());
        }
        Err(StoreError::Invalid { kind: "process", id: "this one".to_owned(), why: "killed" })
    }
}

struct MortalDriver(Box<dyn GraphDriver>, Fuse);

impl GraphDriver for MortalDriver {
    fn kind(&self) -> DriverKind {
        self.0.kind()
    }
    fn create(&self, id: &SnapshotId, parents: &[SnapshotId]) -> Result<(), StoreError> {
        self.1.burn()?;
        self.0.create(id, parents)?;
        self.1.burn()
    }
    fn writable_mount(&self, id: &SnapshotId, parents: &[SnapshotId]) -> Result<SnapshotMount, StoreError> {
        self.0.writable_mount(id, parents)
    }
    fn read_only_mount(&self, id: &SnapshotId, parents: &[SnapshotId]) -> Result<SnapshotMount, StoreError> {
        self.0.read_only_mount(id, parents)
    }
    fn diff(&self, id: &SnapshotId, parents: &[SnapshotId]) -> DiffSource {
        self.0.diff(id, parents)
    }
    fn directory(&self, id: &SnapshotId) -> PathBuf {
        self.0.directory(id)
    }
    fn usage(&self, id: &SnapshotId) -> Result<Usage, StoreError> {
        self.0.usage(id)
    }
    fn remove(&self, id: &SnapshotId) -> Result<Leftovers, StoreError> {
        self.1.burn()?;
        let deletion = self.0.remove(id)?;
        let fuse = self.1.clone();
        let mut leftovers = Leftovers::none();
        leftovers.push(move || {
            fuse.burn()?;
            deletion.delete()
        });
        Ok(leftovers)
    }
    fn remove_unknown(&self, known: &BTreeSet<SnapshotId>) -> Result<usize, StoreError> {
        self.0.remove_unknown(known)
    }
    fn sync(&self) -> Result<(), StoreError> {
        self.0.sync()
    }
}

struct MortalRecords(Arc<MemoryRecords>, Fuse);

impl MortalRecords {
    /// Dies before or after a transaction, never in it.
    fn around<T>(&self, transaction: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.1.burn()?;
        let done = transaction()?;
        self.1.burn()?;
        Ok(done)
    }
}

impl SnapshotRecords for MortalRecords {
    fn insert(&self, record: &SnapshotRecord) -> Result<(), StoreError> {
        self.around(|| self.0.insert(record))
    }
    fn commit(&self, key: &SnapshotKey, name: &SnapshotName) -> Result<(), StoreError> {
        self.around(|| self.0.commit(key, name))
    }
    fn by_key(&self, key: &SnapshotKey) -> Result<SnapshotRecord, StoreError> {
        self.0.by_key(key)
    }
    fn by_name(&self, name: &SnapshotName) -> Result<SnapshotRecord, StoreError> {
        self.0.by_name(name)
    }
    fn chain(&self, name: &SnapshotName) -> Result<Vec<SnapshotId>, StoreError> {
        self.0.chain(name)
    }
    fn children(&self, name: &SnapshotName) -> Result<Vec<SnapshotRecord>, StoreError> {
        self.0.children(name)
    }
    fn set_usage(&self, name: &SnapshotName, usage: Usage) -> Result<Usage, StoreError> {
        self.around(|| self.0.set_usage(name, usage))
    }
    fn set_created(&self, name: &SnapshotName, created: SystemTime) -> Result<(), StoreError> {
        self.around(|| self.0.set_created(name, created))
    }
    fn remove(&self, name: &SnapshotName) -> Result<SnapshotRecord, StoreError> {
        self.around(|| self.0.remove(name))
    }
    fn remove_key(&self, key: &SnapshotKey) -> Result<SnapshotRecord, StoreError> {
        self.around(|| self.0.remove_key(key))
    }
    fn all(&self) -> Result<Vec<SnapshotRecord>, StoreError> {
        self.0.all()
    }
}

/// Writes a file into a committed or active snapshot's own directory, as a build step would.
fn fill(snapshots: &dyn Snapshotter, key: &SnapshotKey, text: &str) -> Result<(), StoreError> {
    let open = OpenSnapshot::open(&snapshots.mounts(key)?)?;
    fs::write(open.path().join(text), text).map_err(StoreError::io("write", text))
}

/// Some of everything that changes a store.
fn scenario(snapshots: &dyn Snapshotter) -> Result<(), StoreError> {
    let key = |text: &str| SnapshotKey::new(text);
    let name = |text: &str| SnapshotName::new(text);
    snapshots.prepare(&key("base"), None)?;
    fill(snapshots, &key("base"), "base")?;
    snapshots.commit(&key("base"), &name("base"))?;
    snapshots.prepare(&key("step"), Some(&name("base")))?;
    fill(snapshots, &key("step"), "step")?;
    snapshots.commit(&key("step"), &name("step"))?;
    snapshots.usage(&name("step"))?;
    snapshots.view(&key("view"), Some(&name("step")))?;
    snapshots.view(&key("empty"), None)?;
    snapshots.prepare(&key("dropped"), Some(&name("step")))?;
    fill(snapshots, &key("dropped"), "dropped")?;
    snapshots.remove_key(&key("dropped"))?;
    snapshots.prepare(&key("kept"), Some(&name("step")))?;
    fill(snapshots, &key("kept"), "kept")?;
    snapshots.remove_key(&key("view"))?;
    snapshots.remove_key(&key("empty"))?;
    snapshots.forget(&[key("kept")], &[name("step")])?.delete()?;
    snapshots.remove(&name("base"))
}

/// Directories in the driver's folder, by what they are named after.
fn directories(root: &Path, kind: DriverKind) -> BTreeSet<String> {
    let home = match kind {
        DriverKind::Overlay2 => root.join("overlay2"),
        DriverKind::Vfs => root.join("vfs/dir"),
    };
    let names = fs::read_dir(home).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != "l").collect()
}

fn check(root: &Path, kind: DriverKind, records: Arc<MemoryRecords>) {
    let driver = kind.open(root).unwrap();
    let adapter = Adapter::new(driver, records.clone());
    adapter.collect_orphans().unwrap();
    assert_eq!(adapter.collect_orphans().unwrap(), 0);

    let mut own_directories = BTreeSet::new();
    for record in records.all().unwrap() {
        let mount = match &record.kind {
            SnapshotKind::Active(key) | SnapshotKind::View(key) => adapter.mounts(key).unwrap(),
            SnapshotKind::Committed(name) => adapter.committed_mount(name).unwrap(),
        };
        let open = OpenSnapshot::open(&mount).unwrap();
        // A committed snapshot is whole: its own file and those below it.
        let mut expected: Vec<SnapshotName> = Vec::new();
        if let SnapshotKind::Committed(name) = &record.kind {
            expected.push(name.clone());
        }
        let mut parent = record.parent.clone();
        while let Some(name) = parent {
            parent = records.by_name(&name).unwrap().parent;
            expected.push(name);
        }
        for name in expected {
            assert_eq!(fs::read_to_string(open.path().join(name.as_str())).unwrap(), name.as_str());
        }
        if !matches!((&record.kind, &record.parent), (SnapshotKind::View(_), Some(_))) {
            own_directories.insert(record.id.to_string());
        }
    }
    assert_eq!(directories(root, kind), own_directories);
    if kind == DriverKind::Overlay2 {
        assert_eq!(fs::read_dir(root.join("overlay2/l")).unwrap().count(), own_directories.len());
    }
    // And it goes on: everything can be removed, and made again.
    let mut all = records.all().unwrap();
    all.reverse();
    for record in all {
        match &record.kind {
            SnapshotKind::Active(key) | SnapshotKind::View(key) => adapter.remove_key(key).unwrap(),
            SnapshotKind::Committed(name) => adapter.remove(name).unwrap(),
        }
    }
    scenario(&adapter).unwrap();
    assert_eq!(directories(root, kind), BTreeSet::new());
}

fn dies_at_every_step(kind: DriverKind) {
    let mut steps = 0;
    loop {
        let root = tempfile::tempdir().unwrap();
        let fuse = Fuse::new(steps);
        let records = Arc::new(MemoryRecords::default());
        let driver = MortalDriver(kind.open(root.path()).unwrap(), fuse.clone());
        let adapter = Adapter::new(driver, Arc::new(MortalRecords(records.clone(), fuse)));
        let lived = scenario(&adapter).is_ok();
        drop(adapter);
        check(root.path(), kind, Arc::new(MemoryRecords::clone(&records)));
        if lived {
            break;
        }
        steps += 1;
    }
    assert!(steps > 40, "{steps}");
}

#[test]
fn overlay2_survives_a_crash_at_every_step() {
    dies_at_every_step(DriverKind::Overlay2);
}

#[test]
fn vfs_survives_a_crash_at_every_step() {
    dies_at_every_step(DriverKind::Vfs);
}

#[test]
fn half_made_directories_of_a_crash_are_removed() {
    for kind in [DriverKind::Overlay2, DriverKind::Vfs] {
        let root = tempfile::tempdir().unwrap();
        let records = Arc::new(MemoryRecords::default());
        let adapter = Adapter::new(kind.open(root.path()).unwrap(), records.clone());
        let (key, name) = (SnapshotKey::new("k"), SnapshotName::new("kept"));
        adapter.prepare(&key, None).unwrap();
        fill(&adapter, &key, "kept").unwrap();
        adapter.commit(&key, &name).unwrap();
        let home = match kind {
            DriverKind::Overlay2 => root.path().join("overlay2"),
            DriverKind::Vfs => root.path().join("vfs/dir"),
        };
        fs::create_dir_all(home.join("unknown/diff/deep")).unwrap();
        fs::create_dir(home.join("removing-something")).unwrap();
        fs::write(home.join("a file"), b"").unwrap();
        if kind == DriverKind::Overlay2 {
            fs::write(home.join("unknown/link"), b"SHORT").unwrap();
            std::os::unix::fs::symlink("../gone/diff", home.join("l/ABCDEFGHIJKLMNOPQRSTUVWXYZ")).unwrap();
        }
        assert_eq!(adapter.collect_orphans().unwrap(), 3);
        let id = records.by_name(&name).unwrap().id.to_string();
        assert_eq!(directories(root.path(), kind), BTreeSet::from([id]));
        check(root.path(), kind, records);
    }
}
