//! Merge and diff over real drivers. Facts: the examples in BuildKit's `docs/dev/merge-diff.md`.

use std::{
    fs,
    os::unix::fs::{chown, symlink},
    path::Path,
};

use lapstrake_builder_files::{diff, merge};
use lapstrake_layerstore_diff::{WriteOptions, write_layer};
use lapstrake_layerstore_store::Tree;

use crate::common::{self, Yard};

fn write(root: &Path, path: &str, data: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, data).unwrap();
}

/// The names in a snapshot's own layer, as tar entries.
fn layer(yard: &Yard, tree: &Tree) -> Vec<String> {
    let source = yard.stores.snapshots.diff_source(tree.snapshot().unwrap()).unwrap();
    let mut tar = Vec::new();
    write_layer(&source, &WriteOptions::default(), &mut tar).unwrap();
    let mut child = std::process::Command::new("tar")
        .args(["-t"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), &tar).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_linked_copy_is_the_base_and_the_files() {
    for yard in Yard::both() {
        let base = yard.tree(|root| {
            write(root, "etc/conf", "old");
            write(root, "etc/keep", "keep");
            write(root, "file", "a file");
            symlink("etc", root.join("link")).unwrap();
        });
        let copy = yard.tree(|root| {
            write(root, "etc/conf", "new");
            write(root, "file/now/dir", "x");
            write(root, "link/real", "x");
            chown(root.join("etc"), Some(5), Some(6)).unwrap();
            fs::hard_link(root.join("etc/conf"), root.join("etc/same")).unwrap();
            xattr::set(root.join("etc/conf"), "user.x", b"1").unwrap();
        });
        let merged = merge(&yard.stores, &[base.clone(), copy.clone()]).unwrap();
        assert_eq!(
            yard.show(&merged)[1..],
            [
                "/etc dir 755 5:6",
                "/etc/conf file \"new\" 644 0:0 user.x=1",
                "/etc/keep file \"keep\" 644 0:0",
                "/etc/same file \"new\" 644 0:0 user.x=1 same as etc/conf",
                "/file dir 755 0:0",
                "/file/now dir 755 0:0",
                "/file/now/dir file \"x\" 644 0:0",
                "/link dir 755 0:0",
                "/link/real file \"x\" 644 0:0",
            ],
            "{}",
            yard.kind
        );
        assert_eq!(layer(&yard, &merged), layer(&yard, &copy), "the layer is the copy's");
        let parent = yard.stores.snapshots.stat(merged.snapshot().unwrap()).unwrap().parent;
        assert_eq!(parent.as_ref(), base.snapshot());
        // The inputs are as they were.
        assert_eq!(yard.paths(&copy).len(), 9);
        assert_eq!(yard.paths(&base), ["/", "/etc", "/etc/conf", "/etc/keep", "/file", "/link"]);
    }
}

#[test]
fn deletions_are_merged_too() {
    for yard in Yard::both() {
        let foo = yard.tree(|root| write(root, "foo", "foo"));
        let removed = yard.change(&foo, |root| fs::remove_file(root.join("foo")).unwrap());
        let bar = yard.change(&removed, |root| write(root, "bar", "bar"));
        let other = yard.tree(|root| {
            write(root, "foo", "mine");
            write(root, "more", "more");
        });
        assert_eq!(
            yard.paths(&merge(&yard.stores, &[other.clone(), bar.clone()]).unwrap()),
            ["/", "/bar", "/more"]
        );
        assert_eq!(
            yard.paths(&merge(&yard.stores, &[bar.clone(), other.clone()]).unwrap()),
            ["/", "/bar", "/foo", "/more"]
        );
        assert_eq!(yard.paths(&merge(&yard.stores, &[foo, bar.clone()]).unwrap()), ["/", "/bar"]);
        assert_eq!(merge(&yard.stores, &[]).unwrap(), Tree::empty());
        assert_eq!(merge(&yard.stores, &[Tree::empty(), bar.clone(), Tree::empty()]).unwrap(), bar);
    }
}

#[test]
fn a_directory_made_anew_hides_what_was_in_it_and_nothing_else() {
    for yard in Yard::both() {
        let base = yard.tree(|root| write(root, "dir/old", "old"));
        let replaced = yard.change(&base, |root| {
            fs::remove_dir_all(root.join("dir")).unwrap();
            write(root, "dir/new", "new");
        });
        let other = yard.tree(|root| {
            write(root, "dir/old", "other's");
            write(root, "dir/third", "third");
        });
        let merged = merge(&yard.stores, &[other, replaced]).unwrap();
        // What was not there to be removed stays, as with BuildKit.
        assert_eq!(yard.paths(&merged), ["/", "/dir", "/dir/new", "/dir/third"], "{}", yard.kind);
    }
}

#[test]
fn a_difference_over_an_ancestor_is_its_layers() {
    for yard in Yard::both() {
        let base = yard.tree(|root| {
            write(root, "dir/foo", "foo");
            write(root, "keep", "keep");
        });
        let one = yard.change(&base, |root| fs::remove_file(root.join("dir/foo")).unwrap());
        let two = yard.change(&one, |root| write(root, "dir/two", "two"));
        let changes = diff(&yard.stores, &base, &two).unwrap();
        assert!(yard.stores.snapshots.stat(changes.snapshot().unwrap()).unwrap().parent.is_some());
        let target = yard.tree(|root| {
            write(root, "dir/foo", "mine");
            write(root, "other", "other");
        });
        let merged = merge(&yard.stores, &[target.clone(), changes.clone()]).unwrap();
        assert_eq!(yard.paths(&merged), ["/", "/dir", "/dir/two", "/other"], "{}", yard.kind);
        assert_eq!(diff(&yard.stores, &Tree::empty(), &two).unwrap(), two);
        assert_eq!(diff(&yard.stores, &two, &two).unwrap(), Tree::empty());
    }
}

#[test]
fn the_layer_of_a_difference_holds_its_deletions_and_its_tree_does_not() {
    for yard in Yard::both() {
        let base = yard.tree(|root| {
            write(root, "dir/foo", "foo");
            write(root, "gone/x", "x");
            write(root, "anew/old", "old");
        });
        let upper = yard.change(&base, |root| {
            fs::remove_file(root.join("dir/foo")).unwrap();
            fs::remove_dir_all(root.join("gone")).unwrap();
            fs::remove_dir_all(root.join("anew")).unwrap();
            write(root, "anew/new", "new");
        });
        let changes = diff(&yard.stores, &base, &upper).unwrap();
        let expected = ["anew/", "anew/new", "anew/.wh.old", "dir/", "dir/.wh.foo", ".wh.gone"];
        assert_eq!(layer(&yard, &changes), expected, "{}", yard.kind);
        assert_eq!(yard.paths(&changes), ["/", "/anew", "/anew/new", "/dir"], "{}", yard.kind);
        // Nor are they seen by who looks into the directories of what is made from it.
        let more = yard.change(&changes, |root| write(root, "dir/more", "more"));
        assert_eq!(yard.paths(&more), ["/", "/anew", "/anew/new", "/dir", "/dir/more"], "{}", yard.kind);
        let copy = common::copy("/", "/");
        let action = lapstrake_builder_llb::pb::file_action::Action::Copy(copy);
        let copied = yard.act(action, &[Tree::empty(), changes]).unwrap();
        assert_eq!(yard.paths(&copied), ["/", "/anew", "/anew/new", "/dir"], "{}", yard.kind);
    }
}

#[test]
fn a_merge_remembers_deletions_of_what_it_does_not_have() {
    for yard in Yard::both() {
        let base = yard.tree(|root| write(root, "foo", "foo"));
        let removed = yard.change(&base, |root| fs::remove_file(root.join("foo")).unwrap());
        let changes = diff(&yard.stores, &base, &removed).unwrap();
        let other = yard.tree(|root| write(root, "other", "other"));
        let merged = merge(&yard.stores, &[other, changes]).unwrap();
        assert_eq!(yard.paths(&merged), ["/", "/other"], "{}", yard.kind);
        assert_eq!(layer(&yard, &merged), [".wh.foo"], "{}", yard.kind);
        let again = merge(&yard.stores, &[base, merged]).unwrap();
        assert_eq!(yard.paths(&again), ["/", "/other"], "{}", yard.kind);
    }
}

#[test]
fn unrelated_trees_are_compared() {
    for yard in Yard::both() {
        let lower = yard.tree(|root| {
            write(root, "same", "same");
            write(root, "changed", "old");
            write(root, "gone", "gone");
        });
        let upper = yard.change(
            &yard.tree(|root| {
                fs::write(root.join("changed"), "new").unwrap();
                fs::write(root.join("added"), "added").unwrap();
            }),
            |root| {
                // The same in all that counts.
                fs::write(root.join("same"), "same").unwrap();
                let times = yard.look(&lower, |lower| {
                    let metadata = fs::metadata(lower.join("same")).unwrap();
                    (metadata.accessed().unwrap(), metadata.modified().unwrap())
                });
                let times = fs::FileTimes::new().set_accessed(times.0).set_modified(times.1);
                fs::File::options().write(true).open(root.join("same")).unwrap().set_times(times).unwrap();
            },
        );
        let changes = diff(&yard.stores, &lower, &upper).unwrap();
        let merged = merge(&yard.stores, &[lower.clone(), changes]).unwrap();
        assert_eq!(yard.paths(&merged), ["/", "/added", "/changed", "/same"], "{}", yard.kind);
        assert!(yard.show(&merged).contains(&"/changed file \"new\" 644 0:0".to_owned()));
    }
}
