//! Trees to layers and back.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use lapstrake_layerstore_diff::{Limits, WriteOptions, apply, write_layer, write_tree};
use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_store::DiffSource;
use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

use crate::common::{self, Layers, Trees, in_seconds, tree};

/// A change to a tree. Those that make no sense where they come are left out.
#[derive(Debug, Clone)]
enum Change {
    File(PathBuf, Vec<u8>),
    Overwrite(PathBuf, Vec<u8>),
    Directory(PathBuf),
    Symlink(PathBuf, PathBuf),
    HardLink(PathBuf, PathBuf),
    Fifo(PathBuf),
    Device(PathBuf),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf),
    Permissions(PathBuf, u32),
    Owner(PathBuf, u32, u32),
    Time(PathBuf, i64),
    Xattr(PathBuf, Vec<u8>),
}

fn path() -> impl Strategy<Value = PathBuf> {
    let name = prop_oneof![
        6 => "[abc]",
        1 => Just("d.x".to_owned()),
        1 => Just("d-x".to_owned()),
        1 => Just("ü".to_owned()),
        1 => Just("n".repeat(130)),
    ];
    proptest::collection::vec(name, 1..4).prop_map(|names| names.iter().collect())
}

fn change() -> impl Strategy<Value = Change> {
    let content = || "[ab]{0,5}|x{600}".prop_map(String::into_bytes);
    prop_oneof![
        6 => (path(), content()).prop_map(|(path, content)| Change::File(path, content)),
        2 => (path(), content()).prop_map(|(path, content)| Change::Overwrite(path, content)),
        4 => path().prop_map(Change::Directory),
        2 => (path(), path()).prop_map(|(path, target)| Change::Symlink(path, target)),
        3 => (path(), path()).prop_map(|(path, target)| Change::HardLink(path, target)),
        1 => path().prop_map(Change::Fifo),
        1 => path().prop_map(Change::Device),
        4 => path().prop_map(Change::Remove),
        1 => (path(), path()).prop_map(|(from, to)| Change::Rename(from, to)),
        2 => (path(), 0u32..0o10000).prop_map(|(path, mode)| Change::Permissions(path, mode)),
        1 => (path(), 0u32..70_000, 0u32..3_000_000_000).prop_map(|(path, uid, gid)| Change::Owner(path, uid, gid)),
        2 => (path(), -1_000_000i64..5_000_000_000).prop_map(|(path, time)| Change::Time(path, time)),
        1 => (path(), proptest::collection::vec(any::<u8>(), 1..50)).prop_map(|(path, value)| Change::Xattr(path, value)),
    ]
}

fn set_time(path: &Path, seconds: i64, nanos: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    let _ = rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW);
}

/// Links in paths would lead out of the tree: leave such changes out.
fn is_plain(root: &Path, path: &Path) -> bool {
    path.ancestors().skip(1).all(|parent| !root.join(parent).is_symlink())
}

fn make(root: &Path, change: &Change) {
    use Change::*;
    let (path, other) = match change {
        File(path, _)
        | Overwrite(path, _)
        | Directory(path)
        | Symlink(path, _)
        | Fifo(path)
        | Device(path)
        | Remove(path)
        | Permissions(path, _)
        | Owner(path, ..)
        | Time(path, _)
        | Xattr(path, _) => (path, None),
        HardLink(path, other) | Rename(path, other) => (path, Some(other)),
    };
    if !is_plain(root, path) || other.is_some_and(|other| !is_plain(root, other)) {
        return;
    }
    let full = root.join(path);
    let parent = full.parent().unwrap();
    let is_link = full.is_symlink();
    match change {
        File(_, content) => {
            let _ = fs::create_dir_all(parent);
            if !full.exists() && !is_link {
                let _ = fs::write(&full, content);
            }
        }
        Overwrite(_, content) => {
            if full.is_file() && !is_link {
                let _ = fs::write(&full, content);
            }
        }
        Directory(_) => drop(fs::create_dir_all(&full)),
        Symlink(_, target) => drop(symlink(target, &full)),
        HardLink(_, target) => {
            if !root.join(target).is_dir() {
                let _ = fs::hard_link(root.join(target), &full);
            }
        }
        Fifo(_) => drop(rustix::fs::mknodat(CWD, &full, FileType::Fifo, Mode::RUSR, 0)),
        Device(_) => {
            let device = rustix::fs::makedev(1, 7);
            let _ = rustix::fs::mknodat(CWD, &full, FileType::CharacterDevice, Mode::RUSR, device);
        }
        Remove(_) => {
            if is_link || !full.is_dir() {
                let _ = fs::remove_file(&full);
            } else {
                let _ = fs::remove_dir_all(&full);
            }
        }
        Rename(_, to) => drop(fs::rename(&full, root.join(to))),
        Permissions(_, mode) => {
            if !is_link && full.exists() {
                let _ = rustix::fs::chmod(&full, Mode::from_raw_mode(*mode));
            }
        }
        Owner(_, uid, gid) => {
            let (uid, gid) = (Uid::from_raw(*uid), Gid::from_raw(*gid));
            let _ = rustix::fs::chownat(CWD, &full, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW);
        }
        Time(_, time) => set_time(&full, *time, 0),
        Xattr(_, value) => {
            if !is_link && (full.is_dir() || full.is_file()) {
                let _ = rustix::fs::lsetxattr(&full, "user.test", value, XattrFlags::empty());
            }
        }
    }
}

/// A directory's time alone is no change for a layer, so give it none that a test could miss.
fn level_directory_times(root: &Path) {
    for (path, node) in tree(root) {
        if node.what == common::What::Dir {
            set_time(&root.join(path), 1_000_000_000, 0);
        }
    }
}

/// The names of an archive's entries.
fn entries(tar: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(tar);
    let name =
        |entry: std::io::Result<tar::Entry<'_, _>>| entry.unwrap().path().unwrap().display().to_string();
    archive.entries().unwrap().map(name).collect()
}

fn write(source: &DiffSource) -> Vec<u8> {
    let mut out = Vec::new();
    let digest = write_layer(source, &WriteOptions::default(), &mut out).unwrap();
    assert_eq!(digest.diff_id.digest(), &Digest::sha256_of(&out));
    assert_eq!(digest.tar_size, out.len() as u64);
    let mut again = Vec::new();
    write_layer(source, &WriteOptions::default(), &mut again).unwrap();
    assert_eq!(out, again, "the same snapshot gave other bytes");
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn trees_survive_layers_on_both_drivers(
        steps in proptest::collection::vec(proptest::collection::vec(change(), 0..20), 1..4),
    ) {
        // As a build does it on overlayfs.
        let mut built = Layers::new();
        let mut tars = Vec::new();
        for step in &steps {
            built.change(|root| {
                step.iter().for_each(|change| make(root, change));
                level_directory_times(root);
            });
            tars.push(write(&built.top()));
        }
        let expected = in_seconds(built.merged());

        let (mut overlay, mut trees, mut from_trees) = (Layers::new(), Trees::new(), Layers::new());
        for tar in &tars {
            let a = overlay.apply(tar).unwrap();
            let b = trees.apply(tar).unwrap();
            prop_assert_eq!(&a, &b);
            // And once more, from complete trees.
            from_trees.apply(&write(&trees.top())).unwrap();
        }
        prop_assert_eq!(&in_seconds(overlay.merged()), &expected);
        prop_assert_eq!(&in_seconds(trees.merged()), &expected);
        prop_assert_eq!(&in_seconds(from_trees.merged()), &expected);
    }
}

#[test]
fn a_change_that_puts_size_and_time_back_is_found() {
    let mut trees = Trees::new();
    trees.push();
    fs::write(trees.trees[0].join("file"), b"before").unwrap();
    set_time(&trees.trees[0].join("file"), 1_600_000_000, 123);
    trees.push();
    fs::write(trees.trees[1].join("file"), b"after!").unwrap();
    set_time(&trees.trees[1].join("file"), 1_600_000_000, 123);
    assert!(write(&trees.top()).windows(6).any(|bytes| bytes == b"after!"));
}

#[test]
fn what_did_not_change_is_not_written() {
    let mut layers = Layers::new();
    layers.change(|root| {
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("d/file"), b"content").unwrap();
    });
    layers.change(|root| {
        fs::write(root.join("d/temporary"), b"x").unwrap();
        fs::remove_file(root.join("d/temporary")).unwrap();
        // Copied up, and put back.
        let mode = fs::metadata(root.join("d/file")).unwrap().permissions();
        rustix::fs::chmod(root.join("d/file"), Mode::RUSR).unwrap();
        fs::set_permissions(root.join("d/file"), mode).unwrap();
    });
    assert_eq!(layers.write(), vec![0; 1024]);
}

#[test]
fn names_that_mean_something_in_a_layer_are_refused() {
    let mut layers = Layers::new();
    layers.change(|root| fs::write(root.join(".wh.file"), b"").unwrap());
    let error = write_layer(&layers.top(), &WriteOptions::default(), Vec::new()).unwrap_err();
    assert!(error.to_string().contains(".wh.file"), "{error}");
    let mut trees = Trees::new();
    trees.push();
    rustix::fs::mknodat(CWD, trees.trees[0].join("c"), FileType::CharacterDevice, Mode::RUSR, 0).unwrap();
    write_layer(&trees.top(), &WriteOptions::default(), Vec::new()).unwrap_err();
}

#[test]
fn redirected_and_metadata_only_entries_are_refused() {
    for (name, mark) in [("d", "trusted.overlay.redirect"), ("f", "trusted.overlay.metacopy")] {
        let mut layers = Layers::new();
        layers.push();
        fs::create_dir(layers.layers[0].join("d")).unwrap();
        fs::write(layers.layers[0].join("f"), b"").unwrap();
        rustix::fs::lsetxattr(layers.layers[0].join(name), mark, b"x", XattrFlags::empty()).unwrap();
        write_layer(&layers.top(), &WriteOptions::default(), Vec::new()).unwrap_err();
    }
}

#[test]
fn an_opaque_directory_is_one_mark() {
    let mut layers = Layers::new();
    layers.change(|root| {
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("d/old"), b"").unwrap();
    });
    layers.change(|root| {
        fs::remove_dir_all(root.join("d")).unwrap();
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("d/new"), b"").unwrap();
    });
    assert_eq!(entries(&layers.write()), ["d/", "d/.wh..wh..opq", "d/new"]);
}

#[test]
fn what_an_opaque_directory_hides_can_be_named() {
    let mut layers = Layers::new();
    layers.change(|root| {
        for path in ["dir/sub/old", "dir/both", "dir/same", "dir/kind"] {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), "old").unwrap();
            set_time(&root.join(path), 1000, 0);
        }
    });
    layers.change(|root| {
        fs::remove_dir_all(root.join("dir")).unwrap();
        for path in ["dir/sub/new", "dir/both", "dir/kind/inside"] {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), "new").unwrap();
        }
        fs::write(root.join("dir/same"), "old").unwrap();
        set_time(&root.join("dir/same"), 1000, 0);
    });
    let mut tar = Vec::new();
    let options = WriteOptions { name_hidden: true, ..WriteOptions::default() };
    write_layer(&layers.top(), &options, &mut tar).unwrap();
    let expected =
        ["dir/", "dir/both", "dir/kind/", "dir/kind/inside", "dir/sub/", "dir/sub/new", "dir/sub/.wh.old"];
    assert_eq!(entries(&tar), expected);
}

#[test]
fn deletions_of_what_is_not_below_are_in_the_layer_but_not_in_the_tree() {
    let mut layers = Layers::new();
    let mut trees = Trees::new();
    let layer = common::Tar::new()
        .dir("dir", 0o755)
        .file("dir/.wh.foo", "")
        .file("dir/new", "x")
        .dir("opaque", 0o755)
        .file("opaque/.wh..wh..opq", "")
        .file("opaque/.wh.inside", "")
        .file(".wh.gone", "")
        .file(".wh.file", "")
        .file("file", "x")
        .file(".wh.replaced", "")
        .dir("replaced", 0o755)
        .end();
    layers.apply(&layer).unwrap();
    trees.apply(&layer).unwrap();
    assert_eq!(common::names(&layers.merged()), ["dir", "dir/new", "file", "opaque", "replaced"]);
    let written = layers.write();
    let expected = [
        "dir/",
        "dir/.wh.foo",
        "dir/new",
        "file",
        ".wh.gone",
        "opaque/",
        "opaque/.wh..wh..opq",
        "replaced/",
        "replaced/.wh..wh..opq",
    ];
    assert_eq!(entries(&written), expected);
    assert_eq!(entries(&write(&trees.top())), expected);
    // What is written so deletes just that where it is.
    let base = common::Tar::new()
        .file("dir/foo", "1")
        .file("dir/stays", "1")
        .file("gone", "1")
        .file("opaque/inside", "1")
        .file("replaced/inside", "1")
        .end();
    let names = common::names(&common::both(&[&base, &written]));
    assert_eq!(names, ["dir", "dir/new", "dir/stays", "file", "opaque", "replaced"]);
    // Over something, too.
    layers.apply(&common::Tar::new().file(".wh.dir", "").file(".wh.other", "").end()).unwrap();
    assert_eq!(entries(&layers.write()), [".wh.dir", ".wh.other"]);
    assert_eq!(common::names(&layers.merged()), ["file", "opaque", "replaced"]);
}

#[test]
fn sockets_are_left_out() {
    let mut layers = Layers::new();
    layers.change(|root| drop(std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap()));
    assert_eq!(layers.write(), vec![0; 1024]);
}

#[test]
fn later_times_become_the_latest_allowed() {
    let mut layers = Layers::new();
    layers.change(|root| {
        fs::write(root.join("old"), b"").unwrap();
        set_time(&root.join("old"), 100, 0);
        fs::write(root.join("young"), b"").unwrap();
    });
    let mut out = Vec::new();
    write_layer(
        &layers.top(),
        &WriteOptions { latest_mtime: Some(1000), ..WriteOptions::default() },
        &mut out,
    )
    .unwrap();
    let mut archive = tar::Archive::new(out.as_slice());
    let times: Vec<u64> =
        archive.entries().unwrap().map(|entry| entry.unwrap().header().mtime().unwrap()).collect();
    assert_eq!(times, [100, 1000]);
}

#[test]
fn a_whole_tree_can_be_written_in_part() {
    let base = tempfile::tempdir().unwrap();
    for directory in ["keep", "keep/skip", "drop", "drop/inner"] {
        fs::create_dir(base.path().join(directory)).unwrap();
        fs::write(base.path().join(directory).join("file"), directory).unwrap();
    }
    fs::write(base.path().join(".wh.plain"), b"no layer, no meaning").unwrap();
    let root = fs::File::open(base.path()).unwrap();
    let mut out = Vec::new();
    let mut keep = |path: &Path| path != "drop" && !path.ends_with("skip");
    write_tree(std::os::fd::AsFd::as_fd(&root), &WriteOptions::default(), &mut keep, &mut out).unwrap();
    let mut archive = tar::Archive::new(out.as_slice());
    let names: Vec<_> =
        archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
    assert_eq!(names, [".wh.plain", "keep/", "keep/file"].map(PathBuf::from));
}

#[test]
fn a_tree_deeper_than_a_path_can_be_long_is_an_error_and_no_crash() {
    let mut layers = Layers::new();
    layers.push();
    let mut at = rustix::fs::open(&layers.layers[0], rustix::fs::OFlags::PATH, Mode::empty()).unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&at, "dd", Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, "dd", rustix::fs::OFlags::PATH, Mode::empty()).unwrap();
    }
    let error = write_layer(&layers.top(), &WriteOptions::default(), Vec::new()).unwrap_err();
    assert!(error.to_string().contains("too long"), "{error}");
    let status = std::process::Command::new("rm").arg("-rf").arg(&layers.layers[0]).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_deep_layer_applies_and_is_replaced() {
    let deep = vec!["d"; 1500].join("/");
    let layer = common::Tar::new()
        .item(common::Item {
            name: b"x",
            pax: vec![("path".into(), deep.into_bytes())],
            ..Default::default()
        })
        .file("d", "replaces all of it")
        .end();
    let mut layers = Layers::new();
    apply(layer.as_slice(), &layers.push(), &Limits::default()).unwrap();
    assert_eq!(common::names(&layers.merged()), ["d"]);
}
