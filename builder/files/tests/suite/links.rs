//! Copies that are links: who gets one, who must not, and that nobody can tell.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::Path,
};

use lapstrake_builder_llb::pb::{self, file_action::Action};
use lapstrake_layerstore_store::{DiffSource, Tree, disk_usage};

use crate::common::{Yard, copy};

/// The inode numbers of files in a tree's own layer.
fn inodes(yard: &Yard, tree: &Tree, paths: &[&str]) -> Vec<u64> {
    let snapshot = tree.snapshot().expect("a snapshot");
    let source = yard.stores.snapshots.diff_source(snapshot).expect("diff source");
    let (DiffSource::OverlayUpper { upper, .. } | DiffSource::Trees { upper, .. }) = source;
    paths.iter().map(|path| fs::symlink_metadata(upper.join(path)).expect(path).ino()).collect()
}

fn write(root: &Path, files: &[(&str, &str)]) {
    for (path, text) in files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
        fs::write(path, text).expect("write");
    }
}

fn context(yard: &Yard) -> Tree {
    yard.tree(|root| write(root, &[("a", "a"), ("dir/b", "b"), ("dir/deep/c", "c")]))
}

fn act(yard: &Yard, action: pb::FileActionCopy, onto: &Tree, from: &Tree) -> Tree {
    yard.act(Action::Copy(action), &[onto.clone(), from.clone()]).expect("copy")
}

#[test]
fn what_stays_as_it_is_is_linked_in_old_directories_and_new_ones() {
    for yard in Yard::both() {
        let (base, context) = (yard.tree(|root| write(root, &[("app/old", "old")])), context(&yard));
        let copied = act(&yard, copy("/", "/app/"), &base, &context);
        assert_eq!(
            yard.paths(&copied),
            ["/", "/app", "/app/a", "/app/dir", "/app/dir/b", "/app/dir/deep", "/app/dir/deep/c", "/app/old"]
        );
        assert_eq!(
            inodes(&yard, &copied, &["app/a", "app/dir/b", "app/dir/deep/c"]),
            inodes(&yard, &context, &["a", "dir/b", "dir/deep/c"])
        );
    }
}

#[test]
fn what_changes_is_copied() {
    for yard in Yard::both() {
        let context = yard.tree(|root| {
            write(root, &[("a", "a"), ("of-another", "b")]);
            chown(root.join("of-another"), Some(7), Some(7)).expect("chown");
        });
        let onto = yard.tree(|_| ());
        let own = inodes(&yard, &context, &["a", "of-another"]);
        let moded = pb::FileActionCopy { mode: 0o600, ..copy("/", "/") };
        let timed = pb::FileActionCopy { timestamp: 1_000_000_000, ..copy("/", "/") };
        let id = |id| Some(pb::UserOpt { user: Some(pb::user_opt::User::ById(id)) });
        let owned =
            pb::FileActionCopy { owner: Some(pb::ChownOpt { user: id(0), group: id(0) }), ..copy("/", "/") };
        for changing in [moded, timed] {
            let copied = act(&yard, changing, &onto, &context);
            assert!(!inodes(&yard, &copied, &["a", "of-another"]).iter().any(|inode| own.contains(inode)));
        }
        let copied = act(&yard, owned, &onto, &context);
        let (linked, changed) = (inodes(&yard, &copied, &["a"]), inodes(&yard, &copied, &["of-another"]));
        assert_eq!((linked[0], changed[0] == own[1]), (own[0], false));
        assert!(yard.show(&context).contains(&r#"/of-another file "b" 644 7:7"#.to_owned()), "as it was");
    }
}

#[test]
fn files_of_every_layer_of_a_tree_are_found() {
    for yard in Yard::both() {
        let low = yard.tree(|root| {
            write(root, &[("d/low", "low"), ("d/hidden", "low"), ("d/gone", "low"), ("e/f", "low")])
        });
        let high = yard.change(&low, |root| {
            write(root, &[("d/high", "high"), ("d/hidden", "high")]);
            fs::remove_file(root.join("d/gone")).expect("remove");
            fs::remove_dir_all(root.join("e")).expect("remove");
            write(root, &[("e/f", "high")]);
        });
        let copied = act(&yard, copy("/", "/"), &Tree::empty(), &high);
        assert_eq!(yard.show(&copied), yard.show(&high));
        let linked = inodes(&yard, &copied, &["d/high", "d/hidden", "e/f"]);
        assert_eq!(linked, inodes(&yard, &high, &["d/high", "d/hidden", "e/f"]));
        if matches!(yard.kind, lapstrake_graphdriver_adapter::DriverKind::Overlay2) {
            assert_eq!(inodes(&yard, &copied, &["d/low"]), inodes(&yard, &low, &["d/low"]));
        }
    }
}

#[test]
fn no_tree_gets_one_file_by_two_names() {
    for yard in Yard::both() {
        let context = context(&yard);
        let chain = |names: &[&str]| {
            names.iter().fold(yard.tree(|_| ()), |tree, name| act(&yard, copy("/a", name), &tree, &context))
        };
        // By steps of their own.
        let steps = chain(&["/x", "/y"]);
        // By actions of one step.
        let action = |input, path: &str| pb::FileAction {
            input,
            secondary_input: 1,
            output: if path == "/y" { 0 } else { -1 },
            action: Some(Action::Copy(copy("/a", path))),
        };
        let onto = yard.tree(|_| ());
        let actions = yard
            .apply(vec![action(0, "/x"), action(2, "/y")], &[onto, context.clone()])
            .expect("copy")
            .remove(0);
        // By a pattern.
        let linked = yard.tree(|root| {
            write(root, &[("p/a", "a")]);
            fs::hard_link(root.join("p/a"), root.join("p/b")).expect("link");
        });
        let wild = act(&yard, copy("/p/*", "/"), &yard.tree(|_| ()), &linked);
        // By what the tree is made over.
        let own = act(&yard, copy("/a", "/x"), &context, &context);
        // By a merge.
        let merged =
            lapstrake_builder_files::merge(&yard.stores, &[chain(&["/x"]), chain(&["/y"])]).expect("merge");
        for tree in [&steps, &actions, &wild, &own, &merged] {
            let lines = yard.show(tree);
            assert!(lines.iter().all(|line| !line.contains("same as")), "{lines:?}");
            assert_eq!(lines.iter().filter(|line| line.contains(r#"file "a" 644"#)).count(), 2, "{lines:?}");
        }
        // Where the copied tree has it so, so it stays.
        let pair = act(&yard, copy("/p", "/q"), &yard.tree(|_| ()), &linked);
        assert_eq!(yard.show(&pair)[3], r#"/q/b file "a" 644 0:0 same as q/a"#);
    }
}

#[test]
fn the_same_file_over_itself_may_be_linked_once_more_or_not_but_is_right() {
    for yard in Yard::both() {
        let context = context(&yard);
        let first = act(&yard, copy("/a", "/a"), &yard.tree(|_| ()), &context);
        let second = act(&yard, copy("/", "/"), &first, &context);
        assert_eq!(yard.show(&second), yard.show(&context));
        assert_eq!(inodes(&yard, &second, &["dir/b"]), inodes(&yard, &context, &["dir/b"]));
    }
}

#[test]
fn what_is_written_later_does_not_reach_the_file_that_was_lent() {
    for yard in Yard::both() {
        let context = yard.tree(|root| {
            write(root, &[("a", "a"), ("b", "b"), ("c", "c")]);
            fs::set_permissions(root.join("a"), fs::Permissions::from_mode(0o640)).expect("chmod");
        });
        let before = yard.show_all(&context);
        let mkfile = pb::FileActionMkFile {
            path: "/a".to_owned(),
            mode: 0o755,
            data: b"written".to_vec(),
            timestamp: -1,
            ..Default::default()
        };
        let other = yard.tree(|root| write(root, &[("b", "other")]));
        let action = |input, secondary_input, output, action| pb::FileAction {
            input,
            secondary_input,
            output,
            action: Some(action),
        };
        let made = yard
            .apply(
                vec![
                    action(0, 1, -1, Action::Copy(copy("/", "/"))),
                    action(3, -1, -1, Action::Mkfile(mkfile)),
                    action(4, 2, 0, Action::Copy(copy("/b", "/b"))),
                ],
                &[yard.tree(|_| ()), context.clone(), other],
            )
            .expect("apply")
            .remove(0);
        assert_eq!(
            yard.show(&made),
            [
                "/ dir 755 0:0",
                r#"/a file "written" 640 0:0"#,
                r#"/b file "other" 644 0:0"#,
                r#"/c file "c" 644 0:0"#,
            ]
        );
        // And by a step on top, which sees it as any file.
        let changed = yard.change(&made, |root| {
            fs::write(root.join("c"), "changed").expect("write");
            fs::set_permissions(root.join("c"), fs::Permissions::from_mode(0o600)).expect("chmod");
        });
        assert!(yard.show(&changed).contains(&r#"/c file "changed" 600 0:0"#.to_owned()));
        assert_eq!(yard.show_all(&context), before);
    }
}

#[test]
fn links_take_no_space() {
    for yard in Yard::both() {
        let big = "x".repeat(1 << 20);
        let context = yard.tree(|root| write(root, &[("big", &big)]));
        let before = disk_usage(&yard.stores).expect("usage").committed;
        let copied = act(&yard, copy("/big", "/big"), &yard.tree(|_| ()), &context);
        let after = disk_usage(&yard.stores).expect("usage").committed;
        assert!(after - before < 100_000, "{before} {after}");
        // When the lender goes, the borrower is what takes it.
        let name = context.snapshot().cloned().expect("a snapshot");
        drop(context);
        yard.stores.snapshots.remove(&name).expect("remove");
        let left = disk_usage(&yard.stores).expect("usage").committed;
        assert!(after - left < 100_000, "{after} {left}");
        assert_eq!(yard.look(&copied, |root| fs::read_to_string(root.join("big")).expect("read")), big);
    }
}
