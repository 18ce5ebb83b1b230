//! What the drivers leave on disk.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, sync::Arc};

use lapstrake_graphdriver_adapter::{Adapter, DriverKind, Overlay2};
use lapstrake_layerstore_conformance::MemoryRecords;
use lapstrake_layerstore_store::{
    DiffSource, OverlaySyntax, SnapshotKey, SnapshotMount, SnapshotName, SnapshotRecords as _,
    Snapshotter as _, StoreError,
};

fn commit(
    adapter: &Adapter<impl lapstrake_graphdriver_adapter::GraphDriver>,
    name: &str,
    parent: Option<&str>,
) {
    let key = SnapshotKey::new(name);
    adapter.prepare(&key, parent.map(SnapshotName::new).as_ref()).unwrap();
    adapter.commit(&key, &SnapshotName::new(name)).unwrap();
}

#[test]
fn overlay2_has_dockers_layout() {
    let root = tempfile::tempdir().unwrap();
    let records = Arc::new(MemoryRecords::default());
    let adapter = Adapter::new(DriverKind::Overlay2.open(root.path()).unwrap(), records.clone());
    for (name, parent) in [("a", None), ("b", Some("a")), ("c", Some("b"))] {
        commit(&adapter, name, parent);
    }
    let home = root.path().join("overlay2");
    let directory = |name: &str| home.join(records.by_name(&SnapshotName::new(name)).unwrap().id.as_str());
    let link = |name: &str| fs::read_to_string(directory(name).join("link")).unwrap();
    for name in ["a", "b", "c"] {
        assert_eq!(link(name).len(), 26);
        let target = fs::canonicalize(home.join("l").join(link(name))).unwrap();
        assert_eq!(target, fs::canonicalize(directory(name).join("diff")).unwrap());
        assert!(fs::read_link(home.join("l").join(link(name))).unwrap().starts_with(".."));
    }
    assert_eq!(
        fs::read_to_string(directory("c").join("lower")).unwrap(),
        format!("l/{}:l/{}", link("b"), link("a"))
    );
    assert!(!directory("a").join("lower").exists() && !directory("a").join("work").exists());
    assert!(directory("c").join("work").is_dir());
    for (path, mode) in [(home.clone(), 0o710), (directory("c"), 0o710), (directory("c").join("diff"), 0o755)]
    {
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, mode, "{}", path.display());
    }
    adapter.remove(&SnapshotName::new("c")).unwrap();
    assert_eq!(fs::read_dir(home.join("l")).unwrap().count(), 2);
}

#[test]
fn more_layers_than_the_kernel_stacks_are_an_error_saying_so() {
    for syntax in [OverlaySyntax::Appended, OverlaySyntax::Listed] {
        stack_of_500(syntax);
    }
}

fn stack_of_500(syntax: OverlaySyntax) {
    let root = tempfile::tempdir().unwrap();
    let records = Arc::new(MemoryRecords::default());
    let adapter = Adapter::new(Overlay2::open_in(root.path(), syntax).unwrap(), records);
    commit(&adapter, "0", None);
    for at in 1..500 {
        commit(&adapter, &at.to_string(), Some(&(at - 1).to_string()));
    }
    let top = SnapshotName::new("499");
    let key = SnapshotKey::new("k");
    let mount = adapter.prepare(&key, Some(&top)).unwrap();
    let before = fs::read("/proc/self/mountinfo").unwrap();
    let open = lapstrake_layerstore_store::OpenSnapshot::open(&mount).unwrap();
    fs::write(open.path().join("file"), b"written").unwrap();
    assert_eq!(fs::read("/proc/self/mountinfo").unwrap(), before, "nobody sees the mount");
    drop(open);
    adapter.commit(&key, &SnapshotName::new("500")).unwrap();
    let error = adapter.prepare(&key, Some(&SnapshotName::new("500"))).unwrap_err();
    assert!(matches!(error, StoreError::Invalid { .. }), "{error:?}");
    assert!(error.to_string().contains("500 layers"), "{error}");
    assert_eq!(fs::read_dir(root.path().join("overlay2")).unwrap().count(), 502);
}

/// A tree with everything that a copy could lose.
fn fill(root: &Path) {
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    fs::create_dir_all(root.join("d/e")).unwrap();
    fs::write(root.join("d/file"), b"content").unwrap();
    fs::hard_link(root.join("d/file"), root.join("link")).unwrap();
    chown(root.join("d/file"), Some(12), Some(34)).unwrap();
    fs::set_permissions(root.join("d/file"), fs::Permissions::from_mode(0o4751)).unwrap();
    let xattrs = rustix::fs::XattrFlags::empty();
    rustix::fs::lsetxattr(root.join("d/file"), "user.x", b"value", xattrs).unwrap();
    rustix::fs::lsetxattr(root.join("d"), "user.y", b"", xattrs).unwrap();
    symlink("d/../nowhere", root.join("d/symlink")).unwrap();
    rustix::net::bind(
        rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None).unwrap(),
        &rustix::net::SocketAddrUnix::new(root.join("d/s")).unwrap(),
    )
    .unwrap();
    let device = rustix::fs::makedev(1, 3);
    let mode = rustix::fs::Mode::RUSR;
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("null"),
        rustix::fs::FileType::CharacterDevice,
        mode,
        device,
    )
    .unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(50 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"middle", 20 << 20).unwrap();
    sparse.set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(1_500_000_000, 123)).unwrap();
    fs::File::open(root.join("d")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
}

#[test]
fn a_copied_tree_is_the_same_and_shares_nothing() {
    let root = tempfile::tempdir().unwrap();
    let adapter =
        Adapter::new(DriverKind::Vfs.open(root.path()).unwrap(), Arc::new(MemoryRecords::default()));
    let SnapshotMount::Bind { source, .. } = adapter.prepare(&SnapshotKey::new("a"), None).unwrap() else {
        panic!("vfs mounts are binds")
    };
    fill(&source);
    let base = SnapshotName::new("a");
    adapter.commit(&SnapshotKey::new("a"), &base).unwrap();
    adapter.prepare(&SnapshotKey::new("b"), Some(&base)).unwrap();
    let DiffSource::Trees { upper, lower, .. } = adapter.active_diff(&SnapshotKey::new("b")).unwrap() else {
        panic!("vfs has trees")
    };
    let lower = lower.unwrap();
    for path in ["", "d", "d/e", "d/file", "link", "d/symlink", "d/s", "null", "sparse"] {
        let (a, b) = (
            fs::symlink_metadata(lower.join(path)).unwrap(),
            fs::symlink_metadata(upper.join(path)).unwrap(),
        );
        let facts = |metadata: &fs::Metadata| {
            (
                (metadata.mode(), metadata.uid(), metadata.gid(), metadata.rdev()),
                (metadata.mtime(), metadata.mtime_nsec(), metadata.nlink()),
                if metadata.is_dir() { 0 } else { metadata.len() },
            )
        };
        assert_eq!(facts(&a), facts(&b), "{path}");
        assert_ne!(a.ino(), b.ino(), "{path}");
    }
    assert_eq!(fs::read(upper.join("d/file")).unwrap(), b"content");
    assert_eq!(fs::read_link(upper.join("d/symlink")).unwrap(), Path::new("d/../nowhere"));
    let ino = |path: &str| fs::metadata(upper.join(path)).unwrap().ino();
    assert_eq!(ino("d/file"), ino("link"));
    let mut value = [0; 16];
    assert_eq!(rustix::fs::lgetxattr(upper.join("d/file"), "user.x", &mut value), Ok(5));
    assert_eq!(rustix::fs::lgetxattr(upper.join("d"), "user.y", &mut value), Ok(0));
    assert_eq!(fs::read(upper.join("sparse")).unwrap(), fs::read(lower.join("sparse")).unwrap());
    assert!(fs::metadata(upper.join("sparse")).unwrap().blocks() < 1024, "holes were filled");
}

#[test]
fn trees_deeper_than_a_path_can_be_long_are_measured_copied_and_removed() {
    const NAME: &str = "directory";
    for kind in [DriverKind::Overlay2, DriverKind::Vfs] {
        let root = tempfile::tempdir().unwrap();
        let adapter = Adapter::new(kind.open(root.path()).unwrap(), Arc::new(MemoryRecords::default()));
        let key = SnapshotKey::new("k");
        let SnapshotMount::Bind { source, .. } = adapter.prepare(&key, None).unwrap() else {
            panic!("a bind")
        };
        let flags = rustix::fs::OFlags::PATH;
        let mut at = rustix::fs::open(&source, flags, rustix::fs::Mode::empty()).unwrap();
        for _ in 0..1500 {
            rustix::fs::mkdirat(&at, NAME, rustix::fs::Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, NAME, flags, rustix::fs::Mode::empty()).unwrap();
        }
        // overlay2 has the snapshot's directory and `link` beside the tree.
        let beside = if kind == DriverKind::Overlay2 { 2 } else { 0 };
        assert_eq!(adapter.usage_key(&key).unwrap().inodes, 1501 + beside);
        let name = SnapshotName::new("n");
        adapter.commit(&key, &name).unwrap();
        adapter.prepare(&key, Some(&name)).unwrap();
        adapter.remove_key(&key).unwrap();
        adapter.remove(&name).unwrap();
        assert_eq!(fs::read_dir(source.parent().unwrap()).map_or(0, Iterator::count), 0);
    }
}

#[test]
fn deletions_go_with_their_snapshot() {
    for kind in [DriverKind::Overlay2, DriverKind::Vfs] {
        let root = tempfile::tempdir().unwrap();
        let records = Arc::new(MemoryRecords::default());
        let adapter = Adapter::new(kind.open(root.path()).unwrap(), records.clone());
        let file_of = |name: &str| {
            let (DiffSource::OverlayUpper { deletions, .. } | DiffSource::Trees { deletions, .. }) =
                adapter.diff_source(&SnapshotName::new(name)).unwrap();
            deletions.expect("both have a place for them")
        };
        for (name, parent) in [("a", None), ("b", Some("a"))] {
            commit(&adapter, name, parent);
            fs::write(file_of(name), "gone\0").unwrap();
        }
        let (of_a, of_b) = (file_of("a"), file_of("b"));
        assert_ne!(of_a, of_b);
        adapter.collect_orphans().unwrap();
        adapter.remove(&SnapshotName::new("b")).unwrap();
        assert!(of_a.exists() && !of_b.exists(), "{kind}");
        // Forgotten by a daemon that was killed before it removed anything.
        records.remove(&SnapshotName::new("a")).unwrap();
        adapter.collect_orphans().unwrap();
        assert!(!of_a.exists(), "{kind}");
    }
}
