//! Trees made to do harm: no action and no digest reads or writes outside of them.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use lapstrake_builder_files::{ContentHasher, FilesError};
use lapstrake_builder_llb::{
    cache_key::Selector,
    pb::{self, file_action::Action},
};
use lapstrake_layerstore_store::Tree;
use rustix::fs::{CWD, Mode, OFlags};
use tokio_util::sync::CancellationToken;

use crate::common::{Yard, copy};

/// A directory outside of all trees, and links to it of every kind.
struct Outside {
    directory: tempfile::TempDir,
}

impl Outside {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("secret"), "secret").unwrap();
        fs::create_dir(directory.path().join("sub")).unwrap();
        Self { directory }
    }

    fn links(&self, root: &Path) {
        let path = self.directory.path();
        symlink(path, root.join("absolute")).unwrap();
        symlink(path.join("secret"), root.join("file")).unwrap();
        symlink(
            Path::new("../../../../../../../../../../..").join(path.strip_prefix("/").unwrap()),
            root.join("up"),
        )
        .unwrap();
        symlink(format!("/proc/self/root{}", path.display()), root.join("proc")).unwrap();
        symlink("/proc/self/fd", root.join("fds")).unwrap();
        symlink("absolute/secret", root.join("chained")).unwrap();
        fs::create_dir(root.join("d")).unwrap();
        symlink(path, root.join("d/absolute")).unwrap();
        symlink(path.join("new"), root.join("d/dangling")).unwrap();
    }

    fn is_untouched(&self) {
        let names: Vec<_> =
            fs::read_dir(self.directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert_eq!(fs::read(self.directory.path().join("secret")).unwrap(), b"secret");
        assert_eq!(fs::read_dir(self.directory.path().join("sub")).unwrap().count(), 0);
    }
}

#[test]
fn no_action_leaves_its_tree() {
    for yard in Yard::both() {
        let outside = Outside::new();
        let hostile = yard.tree(|root| outside.links(root));
        let plain = yard.tree(|root| {
            fs::write(root.join("x"), "x").unwrap();
            fs::create_dir_all(root.join("dir/absolute/sub")).unwrap();
            fs::write(root.join("dir/absolute/secret"), "mine").unwrap();
            fs::write(root.join("dir/dangling"), "mine").unwrap();
        });
        let links = ["absolute", "up", "proc", "fds", "d/absolute", "d/dangling", "file", "chained"];
        let mut actions = Vec::new();
        for link in links {
            for below in ["", "/", "/secret", "/sub/new", "/0", "/../escape"] {
                let path = format!("/{link}{below}");
                for always_replace_existing_dest_paths in [false, true] {
                    for src in ["/x", "/dir", "/dir/*"] {
                        let words =
                            pb::FileActionCopy { always_replace_existing_dest_paths, ..copy(src, &path) };
                        actions.push((Action::Copy(words), plain.clone()));
                    }
                }
                actions.push((Action::Copy(copy("/dir", "/d")), plain.clone()));
                let timestamp = -1;
                actions.push((
                    Action::Mkfile(pb::FileActionMkFile {
                        path: path.clone(),
                        mode: 0o644,
                        data: b"overwritten".to_vec(),
                        owner: None,
                        timestamp,
                    }),
                    plain.clone(),
                ));
                actions.push((
                    Action::Mkdir(pb::FileActionMkDir {
                        path: path.clone(),
                        mode: 0o755,
                        make_parents: true,
                        owner: None,
                        timestamp,
                    }),
                    plain.clone(),
                ));
                actions.push((
                    Action::Symlink(pb::FileActionSymlink {
                        oldpath: "x".into(),
                        newpath: path.clone(),
                        owner: None,
                        timestamp,
                    }),
                    plain.clone(),
                ));
                for allow_wildcard in [false, true] {
                    let path = if allow_wildcard { format!("{path}*") } else { path.clone() };
                    actions.push((
                        Action::Rm(pb::FileActionRm { path, allow_not_found: true, allow_wildcard }),
                        plain.clone(),
                    ));
                }
            }
        }
        for (action, source) in actions {
            // Many of them fail, as there is nothing where the links lead in the tree.
            let _ = yard.act(action, &[hostile.clone(), source]);
            outside.is_untouched();
        }
    }
}

#[test]
fn nothing_outside_is_read() {
    for yard in Yard::both() {
        let outside = Outside::new();
        let hostile = yard.tree(|root| outside.links(root));
        let hasher = ContentHasher::new(yard.stores.clone());
        for path in ["/absolute", "/file", "/up/secret", "/proc/secret", "/chained", "/d/absolute/secret"] {
            for follow_symlink in [false, true] {
                let action = pb::FileActionCopy { follow_symlink, ..copy(path, "/copied") };
                if let Ok(tree) = yard.act(Action::Copy(action), &[Tree::empty(), hostile.clone()]) {
                    assert!(yard.show(&tree).iter().all(|line| !line.contains(" file ")), "{path}");
                }
            }
            let selector = Selector { path: path.into(), follow_links: true, ..Selector::default() };
            assert!(hasher.digest(&hostile, &[selector]).is_err(), "{path}");
        }
    }
}

#[test]
fn owners_are_looked_up_inside_and_only_in_files() {
    let [yard, _] = Yard::both();
    let by_name = |input| {
        let name = pb::NamedUserOpt { name: "root".into(), input };
        let user = Some(pb::UserOpt { user: Some(pb::user_opt::User::ByName(name)) });
        Some(pb::ChownOpt { user, group: None })
    };
    let make = |kind: &str| {
        yard.tree(|root| {
            fs::create_dir(root.join("etc")).unwrap();
            let passwd = root.join("etc/passwd");
            match kind {
                "outside" => symlink("/proc/self/root/etc/passwd", passwd).unwrap(),
                "fifo" => {
                    rustix::fs::mknodat(CWD, &passwd, rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
                }
                "directory" => fs::create_dir(passwd).unwrap(),
                "endless" => symlink("passwd", passwd).unwrap(),
                _ => fs::File::create(passwd).unwrap().set_len(11 << 20).unwrap(),
            }
        })
    };
    let action = |owner| {
        Action::Mkdir(pb::FileActionMkDir {
            path: "/new".into(),
            mode: 0o755,
            owner,
            timestamp: -1,
            make_parents: false,
        })
    };
    for (kind, expected) in [
        ("outside", Ok(())),
        ("fifo", Err("/etc/passwd: is not a regular file")),
        ("directory", Err("/etc/passwd: is not a regular file")),
        ("endless", Err("/etc/passwd: too many links")),
        ("large", Err("\"/etc/passwd\" exceeds 10485760 bytes")),
    ] {
        let found = yard.act(action(by_name(0)), &[make(kind)]).map(|_| ());
        assert_eq!(found, expected.map_err(|error| format!("mkdir /new: {error}")), "{kind}");
    }
    let found = yard.act(action(by_name(-1)), &[make("outside")]).unwrap_err();
    assert_eq!(found, "mkdir /new: invalid file op: invalid user index: -1");
}

#[test]
fn very_deep_trees_are_an_error_and_not_a_crash() {
    let [yard, _] = Yard::both();
    let deep = yard.tree(|root| {
        let open = |at: rustix::fd::OwnedFd| {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            rustix::fs::openat(&at, "d", OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
        };
        let mut at = rustix::fs::openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..5000 {
            at = open(at);
        }
    });
    let error = yard.act(Action::Copy(copy("/", "/")), &[Tree::empty(), deep.clone()]).unwrap_err();
    assert!(
        error.contains("more directories inside of each other") || error.contains("too many open files"),
        "{error}"
    );
    let hasher = ContentHasher::new(yard.stores.clone());
    for selector in
        [Selector::default(), Selector { exclude_patterns: vec!["x".into()], ..Selector::default() }]
    {
        assert!(hasher.digest(&deep, &[selector]).is_err());
    }
    // What is left of the tree is the collection's to remove, level by level.
    remove_deep(&yard, &deep);
}

/// `remove_dir_all` of the temporary directory would not get through.
fn remove_deep(yard: &Yard, tree: &Tree) {
    yard.look(tree, |root| {
        let mut levels =
            vec![rustix::fs::openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()];
        let top = levels[0].try_clone().unwrap();
        // Halves the depth each time, so that few descriptors are open.
        loop {
            let mut at = top.try_clone().unwrap();
            let mut depth = 0;
            while depth < 200 {
                match rustix::fs::openat(&at, "d", OFlags::PATH | OFlags::DIRECTORY, Mode::empty()) {
                    Ok(below) => {
                        at = below;
                        depth += 1;
                    }
                    Err(_) => break,
                }
            }
            if depth == 0 {
                break;
            }
            if depth < 200 {
                let path = vec!["d"; depth].join("/");
                fs::remove_dir_all(root.join("./d")).unwrap_or_else(|error| panic!("{path}: {error}"));
                break;
            }
            rustix::fs::renameat(&at, "d", &top, "next").ok();
            fs::remove_dir_all(root.join("./d")).unwrap();
            if rustix::fs::renameat(&top, "next", &top, "d").is_err() {
                break;
            }
        }
        levels.clear();
    });
}

#[test]
fn a_tree_that_changes_under_the_copy_leads_nowhere_else() {
    let [yard, _] = Yard::both();
    let outside = Outside::new();
    let victim = outside.directory.path().to_owned();
    // Not a committed one: somebody who writes while it is read, such as a cache mount shared with a running step.
    let draft = yard.stores.begin(&Tree::empty()).unwrap();
    let directory = draft.directory().unwrap().clone();
    fs::create_dir_all(directory.join("a/b")).unwrap();
    fs::write(directory.join("a/b/secret"), "mine").unwrap();
    symlink(&victim, directory.join("trap")).unwrap();
    let source = draft.commit().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let swapping = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            while !stop.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(CWD, directory.join("a/b"), CWD, directory.join("trap"), flags)
                    .unwrap();
            }
        }
    });
    for _ in 0..100 {
        for path in ["/a", "/a/b", "/a/*", "/a/b/secret"] {
            if let Ok(tree) = yard.act(Action::Copy(copy(path, "/copied/")), &[Tree::empty(), source.clone()])
            {
                let shown = yard.show(&tree);
                assert!(!shown.iter().any(|line| line.contains("\"secret\"")), "{shown:?}");
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    swapping.join().unwrap();
    outside.is_untouched();
}

#[test]
fn a_cancelled_action_leaves_nothing() {
    for yard in Yard::both() {
        let source = yard.tree(|root| fs::write(root.join("x"), "x").unwrap());
        let cancel = CancellationToken::new();
        cancel.cancel();
        let action = pb::FileAction {
            input: -1,
            secondary_input: 0,
            output: 0,
            action: Some(Action::Copy(copy("/x", "/"))),
        };
        let op = pb::FileOp { actions: vec![action] };
        let result = lapstrake_builder_files::apply(&yard.stores, &op, &[source], &cancel);
        assert!(matches!(result, Err(FilesError::Canceled)));
        let mut snapshots = 0;
        yard.stores
            .snapshots
            .walk(&mut |_| {
                snapshots += 1;
                true
            })
            .unwrap();
        assert_eq!(snapshots, 1);
    }
}
