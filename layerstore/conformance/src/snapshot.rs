//! The suite of [`Snapshotter`].
//!
//! It works in the trees through [`OpenSnapshot`], so it needs the privilege to mount where the implementation's mounts
//! are overlays.

use std::{any::Any, collections::BTreeMap, fs, path::PathBuf, sync::Arc, thread, time::SystemTime};

use lapstrake_layerstore_store::{
    DiffSource, OpenSnapshot, SnapshotKey, SnapshotKind, SnapshotMount, SnapshotName, Snapshotter, StoreError,
};

/// What the suite is given to work on: a fresh, empty snapshotter.
pub struct SnapshotFixture {
    /// The implementation under test.
    pub snapshots: Arc<dyn Snapshotter>,
    /// Whatever must live as long as it, such as its temporary directory.
    pub keep: Box<dyn Any + Send + Sync>,
}

/// One check of this suite.
pub type SnapshotCheck = fn(&SnapshotFixture);

/// Each check is given a snapshotter of its own.
pub const SUITE: &[(&str, SnapshotCheck)] = &[
    ("a snapshot goes from active to committed to parent", lifecycle),
    ("each tree is its parent's with its own changes, and the parent's stays", trees_build_up),
    ("two snapshots over one parent do not see each other", siblings),
    ("the root directory's attributes are the parent's", root_attributes),
    ("a key can be used again after commit and after removal", keys_are_reused),
    ("taken keys and names are refused, and nothing is changed", taken),
    ("what is not there is not found", not_found),
    ("a parent must be committed", parent_must_be_committed),
    ("a parent in use is not removed", parent_in_use),
    ("a view shows its parent and is read-only", views),
    ("a view cannot be committed or written to", views_stay_views),
    ("an empty view is empty", empty_view),
    ("mounts are the same each time", mounts_are_stable),
    ("walk visits parents before children, and stops when told", walk_order),
    ("stat tells state, parent and time", stat),
    ("usage counts what a snapshot alone takes", usage),
    ("usage counts a hard linked file once", usage_of_links),
    ("diff_source is the difference to the parent", diff_source),
    ("active_diff is where an active snapshot's difference is", active_diff),
    ("forget removes several at once, children first", forget),
    ("forget refuses a parent with other children, whole", forget_in_use),
    ("removed snapshots take no room", removed_files_go),
    ("deep chains work", deep_chain),
    ("sync succeeds", sync),
    ("threads making, committing and removing do not disturb each other", threads),
    ("of several threads with one key, one wins", one_key),
    ("of several threads with one name, one wins", one_name),
];

impl SnapshotFixture {
    fn key(text: &str) -> SnapshotKey {
        SnapshotKey::new(text)
    }

    fn name(text: &str) -> SnapshotName {
        SnapshotName::new(text)
    }

    /// Commits a snapshot with this name over `parent`, having run `change` on its tree.
    fn commit(&self, name: &str, parent: Option<&str>, change: impl FnOnce(PathBuf)) -> SnapshotName {
        let key = SnapshotKey::random();
        let mount = self.snapshots.prepare(&key, parent.map(Self::name).as_ref()).expect("prepare");
        let open = OpenSnapshot::open(&mount).expect("open");
        change(open.path());
        drop(open);
        self.snapshots.commit(&key, &Self::name(name)).expect("commit");
        Self::name(name)
    }

    /// Names and contents of the files at the top of a committed tree.
    fn files(&self, name: &SnapshotName) -> BTreeMap<String, String> {
        files(&self.snapshots.committed_mount(name).expect("mount"))
    }

    fn walked(&self) -> Vec<SnapshotKind> {
        let mut kinds = Vec::new();
        let visit = &mut |info: lapstrake_layerstore_store::SnapshotInfo| {
            kinds.push(info.kind);
            true
        };
        self.snapshots.walk(visit).expect("walk");
        kinds
    }
}

fn files(mount: &SnapshotMount) -> BTreeMap<String, String> {
    let open = OpenSnapshot::open(mount).expect("open");
    fs::read_dir(open.path())
        .expect("list")
        .map(|entry| {
            let entry = entry.expect("entry");
            let content = fs::read_to_string(entry.path()).unwrap_or_else(|_| "(no file)".to_owned());
            (entry.file_name().into_string().expect("test names are UTF-8"), content)
        })
        .collect()
}

fn map(files: &[(&str, &str)]) -> BTreeMap<String, String> {
    files.iter().map(|(name, content)| ((*name).to_owned(), (*content).to_owned())).collect()
}

fn write(name: &str, content: &str) -> impl FnOnce(PathBuf) {
    let (name, content) = (name.to_owned(), content.to_owned());
    move |root| fs::write(root.join(name), content).expect("write")
}

fn is_not_found<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    assert!(matches!(result, Err(StoreError::NotFound { .. })), "{result:?}");
}

fn is_taken<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    assert!(matches!(result, Err(StoreError::AlreadyExists { .. })), "{result:?}");
}

fn is_in_use<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    assert!(matches!(result, Err(StoreError::InUse { .. })), "{result:?}");
}

fn lifecycle(f: &SnapshotFixture) {
    let (key, base) = (SnapshotFixture::key("k"), SnapshotFixture::name("base"));
    let mount = f.snapshots.prepare(&key, None).expect("prepare");
    assert!(files(&mount).is_empty());
    assert!(matches!(f.snapshots.stat_key(&key).expect("stat").kind, SnapshotKind::Active(_)));
    is_not_found(f.snapshots.stat(&base));
    write("file", "1")(OpenSnapshot::open(&mount).expect("open").path());
    f.snapshots.commit(&key, &base).expect("commit");
    is_not_found(f.snapshots.stat_key(&key));
    assert_eq!(f.files(&base), map(&[("file", "1")]));
    f.snapshots.remove(&base).expect("remove");
    is_not_found(f.snapshots.stat(&base));
    is_not_found(f.snapshots.committed_mount(&base));
    assert!(f.walked().is_empty());
}

fn trees_build_up(f: &SnapshotFixture) {
    let base = f.commit("base", None, |root| {
        write("kept", "1")(root.clone());
        write("gone", "1")(root.clone());
        write("changed", "1")(root);
    });
    let step = f.commit("step", Some("base"), |root| {
        fs::remove_file(root.join("gone")).expect("remove");
        write("changed", "2")(root.clone());
        write("new", "2")(root);
    });
    let last = f.commit("last", Some("step"), write("gone", "3"));
    assert_eq!(f.files(&base), map(&[("kept", "1"), ("gone", "1"), ("changed", "1")]));
    assert_eq!(f.files(&step), map(&[("kept", "1"), ("changed", "2"), ("new", "2")]));
    assert_eq!(f.files(&last), map(&[("kept", "1"), ("changed", "2"), ("new", "2"), ("gone", "3")]));
}

fn siblings(f: &SnapshotFixture) {
    f.commit("base", None, write("file", "1"));
    let left = f.commit("left", Some("base"), write("file", "left"));
    let right = f.commit("right", Some("base"), write("other", "right"));
    assert_eq!(f.files(&left), map(&[("file", "left")]));
    assert_eq!(f.files(&right), map(&[("file", "1"), ("other", "right")]));
}

fn root_attributes(f: &SnapshotFixture) {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};

    let attributes = |mount: &SnapshotMount| {
        let metadata = fs::metadata(OpenSnapshot::open(mount).expect("open").path()).expect("stat");
        (metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
    };
    let key = SnapshotFixture::key("k");
    assert_eq!(attributes(&f.snapshots.prepare(&key, None).expect("prepare")), (0o755, 0, 0));
    let base = f.commit("base", None, |root| {
        chown(&root, Some(5), Some(6)).expect("chown");
        fs::set_permissions(&root, fs::Permissions::from_mode(0o1770)).expect("chmod");
    });
    let step = f.commit("step", Some("base"), write("file", ""));
    for name in [&base, &step] {
        assert_eq!(attributes(&f.snapshots.committed_mount(name).expect("mount")), (0o1770, 5, 6));
    }
}

fn keys_are_reused(f: &SnapshotFixture) {
    let key = SnapshotFixture::key("k");
    f.snapshots.prepare(&key, None).expect("prepare");
    f.snapshots.commit(&key, &SnapshotFixture::name("a")).expect("commit");
    let mount = f.snapshots.prepare(&key, None).expect("prepare again");
    write("file", "x")(OpenSnapshot::open(&mount).expect("open").path());
    f.snapshots.remove_key(&key).expect("remove");
    assert!(files(&f.snapshots.prepare(&key, None).expect("prepare a third time")).is_empty());
    // A key and a name are never the same thing.
    f.snapshots.prepare(&SnapshotFixture::key("a"), None).expect("a key like a name");
}

fn taken(f: &SnapshotFixture) {
    let (first, second) = (SnapshotFixture::key("1"), SnapshotFixture::key("2"));
    let base = f.commit("base", None, write("file", "base"));
    let mount = f.snapshots.prepare(&first, None).expect("prepare");
    write("file", "active")(OpenSnapshot::open(&mount).expect("open").path());
    is_taken(f.snapshots.prepare(&first, None));
    is_taken(f.snapshots.prepare(&first, Some(&base)));
    is_taken(f.snapshots.view(&first, Some(&base)));
    is_taken(f.snapshots.commit(&first, &base));
    assert_eq!(files(&f.snapshots.mounts(&first).expect("still active")), map(&[("file", "active")]));
    assert_eq!(f.files(&base), map(&[("file", "base")]));
    f.snapshots.view(&second, Some(&base)).expect("view");
    is_taken(f.snapshots.prepare(&second, None));
    is_taken(f.snapshots.view(&second, None));
    f.snapshots.commit(&first, &SnapshotFixture::name("other")).expect("commit after all");
}

fn not_found(f: &SnapshotFixture) {
    let (key, name) = (SnapshotFixture::key("no"), SnapshotFixture::name("no"));
    is_not_found(f.snapshots.mounts(&key));
    is_not_found(f.snapshots.commit(&key, &name));
    is_not_found(f.snapshots.committed_mount(&name));
    is_not_found(f.snapshots.diff_source(&name));
    is_not_found(f.snapshots.active_diff(&key));
    is_not_found(f.snapshots.stat(&name));
    is_not_found(f.snapshots.stat_key(&key));
    is_not_found(f.snapshots.usage(&name));
    is_not_found(f.snapshots.usage_key(&key));
    is_not_found(f.snapshots.remove(&name));
    is_not_found(f.snapshots.remove_key(&key));
    is_not_found(f.snapshots.prepare(&key, Some(&name)));
    is_not_found(f.snapshots.view(&key, Some(&name)));
    is_not_found(f.snapshots.stat_key(&key));
}

fn parent_must_be_committed(f: &SnapshotFixture) {
    f.snapshots.prepare(&SnapshotFixture::key("active"), None).expect("prepare");
    is_not_found(f.snapshots.prepare(&SnapshotFixture::key("k"), Some(&SnapshotFixture::name("active"))));
}

fn parent_in_use(f: &SnapshotFixture) {
    let base = f.commit("base", None, write("file", "1"));
    let step = f.commit("step", Some("base"), write("file", "2"));
    let (active, view) = (SnapshotFixture::key("active"), SnapshotFixture::key("view"));
    f.snapshots.prepare(&active, Some(&step)).expect("prepare");
    is_in_use(f.snapshots.remove(&base));
    is_in_use(f.snapshots.remove(&step));
    f.snapshots.remove_key(&active).expect("remove");
    f.snapshots.view(&view, Some(&step)).expect("view");
    is_in_use(f.snapshots.remove(&step));
    f.snapshots.remove_key(&view).expect("remove");
    assert_eq!(f.files(&step), map(&[("file", "2")]));
    f.snapshots.remove(&step).expect("remove");
    f.snapshots.remove(&base).expect("remove");
}

fn views(f: &SnapshotFixture) {
    let base = f.commit("base", None, write("file", "1"));
    let step = f.commit("step", Some("base"), write("file", "2"));
    for (key, parent, content) in [("a", &base, "1"), ("b", &step, "2")] {
        let mount = f.snapshots.view(&SnapshotFixture::key(key), Some(parent)).expect("view");
        assert_eq!(files(&mount), map(&[("file", content)]));
        assert_eq!(f.snapshots.mounts(&SnapshotFixture::key(key)).expect("mounts"), mount);
        match &mount {
            SnapshotMount::Bind { read_only, .. } => assert!(read_only),
            SnapshotMount::Overlay { upper, .. } => {
                assert_eq!(*upper, None);
                let open = OpenSnapshot::open(&mount).expect("open");
                fs::write(open.path().join("file"), "x").expect_err("a view is read-only");
            }
        }
    }
}

fn views_stay_views(f: &SnapshotFixture) {
    let base = f.commit("base", None, write("file", "1"));
    let key = SnapshotFixture::key("view");
    f.snapshots.view(&key, Some(&base)).expect("view");
    let invalid = f.snapshots.commit(&key, &SnapshotFixture::name("new"));
    assert!(matches!(invalid, Err(StoreError::Invalid { .. })), "{invalid:?}");
    let invalid = f.snapshots.active_diff(&key);
    assert!(matches!(invalid, Err(StoreError::Invalid { .. })), "{invalid:?}");
    is_not_found(f.snapshots.stat(&SnapshotFixture::name("new")));
    f.snapshots.remove_key(&key).expect("remove");
    assert_eq!(f.files(&base), map(&[("file", "1")]));
}

fn empty_view(f: &SnapshotFixture) {
    let key = SnapshotFixture::key("view");
    let mount = f.snapshots.view(&key, None).expect("view");
    assert!(files(&mount).is_empty());
    assert!(matches!(
        mount,
        SnapshotMount::Bind { read_only: true, .. } | SnapshotMount::Overlay { upper: None, .. }
    ));
    f.snapshots.remove_key(&key).expect("remove");
}

fn mounts_are_stable(f: &SnapshotFixture) {
    f.commit("base", None, write("file", "1"));
    let key = SnapshotFixture::key("k");
    let mount = f.snapshots.prepare(&key, Some(&SnapshotFixture::name("base"))).expect("prepare");
    write("file", "2")(OpenSnapshot::open(&mount).expect("open").path());
    assert_eq!(f.snapshots.mounts(&key).expect("mounts"), mount);
    assert_eq!(files(&mount), map(&[("file", "2")]));
}

fn walk_order(f: &SnapshotFixture) {
    for (name, parent) in
        [("z", None), ("y", Some("z")), ("m", Some("y")), ("a", Some("m")), ("b", Some("z"))]
    {
        f.commit(name, parent, |_| {});
    }
    f.snapshots.prepare(&SnapshotFixture::key("k"), Some(&SnapshotFixture::name("a"))).expect("prepare");
    f.snapshots.view(&SnapshotFixture::key("v"), Some(&SnapshotFixture::name("b"))).expect("view");
    let mut seen: Vec<SnapshotName> = Vec::new();
    let mut count = 0;
    let visit = &mut |info: lapstrake_layerstore_store::SnapshotInfo| {
        count += 1;
        if let Some(parent) = &info.parent {
            assert!(seen.contains(parent), "{parent} comes after {:?}", info.kind);
        }
        if let SnapshotKind::Committed(name) = info.kind {
            seen.push(name);
        }
        true
    };
    f.snapshots.walk(visit).expect("walk");
    assert_eq!(count, 7);
    let mut count = 0;
    let visit = &mut |_| {
        count += 1;
        count < 3
    };
    f.snapshots.walk(visit).expect("walk");
    assert_eq!(count, 3);
}

fn stat(f: &SnapshotFixture) {
    let before = SystemTime::now();
    let base = f.commit("base", None, |_| {});
    let key = SnapshotFixture::key("k");
    f.snapshots.prepare(&key, Some(&base)).expect("prepare");
    let active = f.snapshots.stat_key(&key).expect("stat");
    assert_eq!((&active.kind, &active.parent), (&SnapshotKind::Active(key.clone()), &Some(base.clone())));
    // A store may keep whole milliseconds or even seconds.
    let second = std::time::Duration::from_secs(1);
    assert!(active.created + second >= before && active.created <= SystemTime::now() + second);
    let name = SnapshotFixture::name("step");
    f.snapshots.commit(&key, &name).expect("commit");
    let committed = f.snapshots.stat(&name).expect("stat");
    assert_eq!((committed.kind, committed.parent), (SnapshotKind::Committed(name), Some(base)));
    assert_eq!(committed.created, active.created);
}

fn usage(f: &SnapshotFixture) {
    let empty = f.commit("empty", None, |_| {});
    let empty = f.snapshots.usage(&empty).expect("usage");
    let base = f.commit("base", None, write("file", &"x".repeat(300_000)));
    let base = f.snapshots.usage(&base).expect("usage");
    assert!(base.bytes >= 300_000 && base.bytes < 400_000, "{base:?}");
    assert_eq!(base.inodes, empty.inodes + 1);
    let key = SnapshotFixture::key("k");
    let mount = f.snapshots.prepare(&key, None).expect("prepare");
    let before = f.snapshots.usage_key(&key).expect("usage");
    write("file", &"x".repeat(500_000))(OpenSnapshot::open(&mount).expect("open").path());
    let after = f.snapshots.usage_key(&key).expect("usage");
    assert!(after.bytes >= before.bytes + 500_000, "{before:?} {after:?}");
    let name = SnapshotFixture::name("n");
    f.snapshots.commit(&key, &name).expect("commit");
    assert_eq!(f.snapshots.usage(&name).expect("usage"), after);
    assert_eq!(f.snapshots.usage(&name).expect("usage"), after);
    let view = SnapshotFixture::key("v");
    f.snapshots.view(&view, Some(&name)).expect("view");
    assert!(f.snapshots.usage_key(&view).expect("usage").bytes < 100_000);
}

fn usage_of_links(f: &SnapshotFixture) {
    let linked = f.commit("linked", None, |root| {
        write("a", &"x".repeat(300_000))(root.clone());
        for name in ["b", "c", "d"] {
            fs::hard_link(root.join("a"), root.join(name)).expect("link");
        }
    });
    assert!(f.snapshots.usage(&linked).expect("usage").bytes < 400_000);
}

fn diff_source(f: &SnapshotFixture) {
    let base = f.commit("base", None, write("low", "1"));
    let step = f.commit("step", Some("base"), write("high", "2"));
    match f.snapshots.diff_source(&step).expect("diff") {
        DiffSource::OverlayUpper { upper, lower, .. } => {
            assert_eq!((upper.join("high").exists(), upper.join("low").exists()), (true, false));
            assert_eq!(lower.len(), 1);
            assert!(lower[0].join("low").exists());
        }
        DiffSource::Trees { upper, lower, .. } => {
            assert_eq!((upper.join("high").exists(), upper.join("low").exists()), (true, true));
            let lower = lower.expect("a parent");
            assert_eq!((lower.join("high").exists(), lower.join("low").exists()), (false, true));
        }
    }
    match f.snapshots.diff_source(&base).expect("diff") {
        DiffSource::OverlayUpper { upper, lower, .. } => {
            assert!(upper.join("low").exists() && lower.is_empty())
        }
        DiffSource::Trees { upper, lower, .. } => assert!(upper.join("low").exists() && lower.is_none()),
    }
}

fn active_diff(f: &SnapshotFixture) {
    let base = f.commit("base", None, write("low", "1"));
    let key = SnapshotFixture::key("k");
    f.snapshots.prepare(&key, Some(&base)).expect("prepare");
    let source = f.snapshots.active_diff(&key).expect("diff");
    let (DiffSource::OverlayUpper { upper, .. } | DiffSource::Trees { upper, .. }) = &source;
    fs::write(upper.join("high"), "2").expect("write");
    let step = SnapshotFixture::name("step");
    f.snapshots.commit(&key, &step).expect("commit");
    assert_eq!(f.files(&step), map(&[("low", "1"), ("high", "2")]));
    assert_eq!(f.snapshots.diff_source(&step).expect("diff"), source);
}

fn forget(f: &SnapshotFixture) {
    let base = f.commit("base", None, write("file", "1"));
    let step = f.commit("step", Some("base"), write("file", "2"));
    let other = f.commit("other", None, write("file", "3"));
    let (active, view) = (SnapshotFixture::key("active"), SnapshotFixture::key("view"));
    f.snapshots.prepare(&active, Some(&step)).expect("prepare");
    f.snapshots.view(&view, Some(&step)).expect("view");
    let leftovers = f.snapshots.forget(&[active, view], &[step, base]).expect("forget");
    assert_eq!(f.walked(), [SnapshotKind::Committed(other.clone())]);
    leftovers.delete().expect("delete");
    assert_eq!(f.files(&other), map(&[("file", "3")]));
}

fn forget_in_use(f: &SnapshotFixture) {
    let base = f.commit("base", None, write("file", "1"));
    f.commit("step", Some("base"), write("file", "2"));
    is_in_use(f.snapshots.forget(&[], std::slice::from_ref(&base)));
    assert_eq!(f.files(&base), map(&[("file", "1")]));
}

fn removed_files_go(f: &SnapshotFixture) {
    let base = f.commit("base", None, |root| {
        let deep: PathBuf = std::iter::repeat_n("deep", 300).collect();
        fs::create_dir_all(root.join(&deep)).expect("make");
        write("file", "x")(root.join(deep));
    });
    let (DiffSource::OverlayUpper { upper, .. } | DiffSource::Trees { upper, .. }) =
        f.snapshots.diff_source(&base).expect("diff");
    assert!(upper.exists());
    f.snapshots.remove(&base).expect("remove");
    assert!(!upper.exists());
}

fn deep_chain(f: &SnapshotFixture) {
    // Docker allows 128 layers in an image; a build may stand on top of one.
    const DEPTH: usize = 220;
    let name = |at: usize| format!("layer-{at}");
    f.commit(&name(0), None, write("file-0", "0"));
    for at in 1..DEPTH {
        f.commit(&name(at), Some(&name(at - 1)), write(&format!("file-{at}"), &at.to_string()));
    }
    let files = f.files(&SnapshotName::new(name(DEPTH - 1)));
    assert_eq!(files.len(), DEPTH);
    for at in (0..DEPTH).rev() {
        f.snapshots.remove(&SnapshotName::new(name(at))).expect("remove");
    }
}

fn sync(f: &SnapshotFixture) {
    f.commit("base", None, write("file", "1"));
    f.snapshots.sync().expect("sync");
}

fn threads(f: &SnapshotFixture) {
    let base = f.commit("base", None, write("file", "base"));
    thread::scope(|scope| {
        for worker in 0..6 {
            let base = &base;
            scope.spawn(move || {
                for round in 0..12 {
                    let name = format!("{worker}-{round}");
                    let committed = f.commit(&name, Some("base"), write("file", &name));
                    assert_eq!(f.files(&committed), map(&[("file", &name)]));
                    let view = SnapshotKey::random();
                    f.snapshots.view(&view, Some(base)).expect("view");
                    f.walked();
                    f.snapshots.remove_key(&view).expect("remove view");
                    f.snapshots.remove(&committed).expect("remove");
                }
            });
        }
    });
    assert_eq!(f.walked(), [SnapshotKind::Committed(base.clone())]);
    assert_eq!(f.files(&base), map(&[("file", "base")]));
}

fn one_key(f: &SnapshotFixture) {
    let key = SnapshotFixture::key("k");
    let results: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| f.snapshots.prepare(&key, None))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let (won, lost): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1);
    lost.into_iter().for_each(is_taken);
    let mount = won.into_iter().next().and_then(Result::ok).expect("one won");
    assert_eq!(f.snapshots.mounts(&key).expect("mounts"), mount);
    assert!(files(&mount).is_empty());
}

fn one_name(f: &SnapshotFixture) {
    let keys: Vec<SnapshotKey> = (0..8).map(|_| SnapshotKey::random()).collect();
    keys.iter().for_each(|key| drop(f.snapshots.prepare(key, None).expect("prepare")));
    let name = SnapshotFixture::name("n");
    let results: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = keys.iter().map(|key| scope.spawn(|| f.snapshots.commit(key, &name))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let lost = keys.iter().zip(results).filter(|(_, result)| result.is_err()).map(|(key, result)| {
        is_taken(result);
        f.snapshots.remove_key(key).expect("still active");
    });
    assert_eq!(lost.count(), 7);
}
