//! File actions over real drivers.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::Path,
};

use lapstrake_builder_llb::pb::{self, file_action::Action, user_opt::User};
use lapstrake_layerstore_store::Tree;

use crate::common::{Yard, copy};

fn mkfile(path: &str, data: &str) -> Action {
    let mkfile = pb::FileActionMkFile {
        path: path.into(),
        mode: 0o640,
        data: data.into(),
        owner: None,
        timestamp: 1_700_000_000_000_000_005,
    };
    Action::Mkfile(mkfile)
}

fn mkdir(path: &str, make_parents: bool) -> Action {
    Action::Mkdir(pb::FileActionMkDir {
        path: path.into(),
        mode: 0o711,
        make_parents,
        owner: None,
        timestamp: -1,
    })
}

fn rm(path: &str, allow_not_found: bool, allow_wildcard: bool) -> Action {
    Action::Rm(pb::FileActionRm { path: path.into(), allow_not_found, allow_wildcard })
}

fn by_name(user: &str, group: Option<&str>, input: i64) -> pb::ChownOpt {
    let name = |name: &str| {
        let name = pb::NamedUserOpt { name: name.into(), input };
        Some(pb::UserOpt { user: Some(User::ByName(name)) })
    };
    pb::ChownOpt { user: name(user), group: group.and_then(name) }
}

fn write(root: &Path, path: &str, data: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, data).unwrap();
}

#[test]
fn a_chain_of_actions_makes_one_layer() {
    for yard in Yard::both() {
        let base = yard.tree(|root| write(root, "etc/passwd", "root:x:0:0::/:/bin/sh\n"));
        let chained = |input, output, action| pb::FileAction {
            input,
            secondary_input: -1,
            output,
            action: Some(action),
        };
        let actions = vec![
            chained(0, -1, mkdir("/app/data", true)),
            chained(1, -1, mkfile("/app/data/config", "x=1")),
            chained(2, 0, rm("/etc", false, false)),
        ];
        let trees = yard.apply(actions, std::slice::from_ref(&base)).unwrap();
        let stat = yard.stores.snapshots.stat(trees[0].snapshot().unwrap()).unwrap();
        assert_eq!(stat.parent.as_ref(), base.snapshot(), "{}", yard.kind);
        assert_eq!(
            yard.show(&trees[0])[1..],
            ["/app dir 711 0:0", "/app/data dir 711 0:0", "/app/data/config file \"x=1\" 640 0:0"]
        );
        assert_eq!(yard.paths(&base), ["/", "/etc", "/etc/passwd"], "the input is as it was");
    }
}

#[test]
fn later_actions_see_what_earlier_ones_copied() {
    for yard in Yard::both() {
        let base = yard.tree(|root| write(root, "old/kept", "kept"));
        let source = yard.tree(|root| {
            write(root, "d/a", "a");
            write(root, "d/sub/b", "b");
            fs::hard_link(root.join("d/a"), root.join("d/sub/link")).unwrap();
            fs::hard_link(root.join("d/a"), root.join("top")).unwrap();
        });
        let chained = |index: i64, action| pb::FileAction {
            input: if index == 0 { 0 } else { index + 1 },
            secondary_input: 1,
            output: if index == 5 { 0 } else { -1 },
            action: Some(action),
        };
        let actions = [
            Action::Copy(copy("/", "/new")),
            rm("/new/d/sub/b", false, false),
            mkfile("/new/d/sub/made", "made"),
            Action::Copy(copy("/d", "/new/d/sub/again")),
            mkdir("/new/d/sub/again/more", false),
            Action::Copy(copy("/*", "/old/")),
        ];
        let actions = (0..).zip(actions).map(|(index, action)| chained(index, action)).collect();
        let tree = yard.apply(actions, &[base, source]).unwrap().remove(0);
        assert_eq!(
            yard.show(&tree)[1..],
            [
                "/new dir 755 0:0",
                "/new/d dir 755 0:0",
                "/new/d/a file \"a\" 644 0:0",
                "/new/d/sub dir 755 0:0",
                "/new/d/sub/again dir 755 0:0",
                "/new/d/sub/again/a file \"a\" 644 0:0",
                "/new/d/sub/again/more dir 711 0:0",
                "/new/d/sub/again/sub dir 755 0:0",
                "/new/d/sub/again/sub/b file \"b\" 644 0:0",
                "/new/d/sub/again/sub/link file \"a\" 644 0:0 same as new/d/sub/again/a",
                "/new/d/sub/link file \"a\" 644 0:0 same as new/d/a",
                "/new/d/sub/made file \"made\" 640 0:0",
                "/new/top file \"a\" 644 0:0 same as new/d/a",
                "/old dir 755 0:0",
                "/old/a file \"a\" 644 0:0",
                "/old/kept file \"kept\" 644 0:0",
                "/old/sub dir 755 0:0",
                "/old/sub/b file \"b\" 644 0:0",
                "/old/sub/link file \"a\" 644 0:0 same as old/a",
                "/old/top file \"a\" 644 0:0",
            ],
            "{}",
            yard.kind
        );
    }
}

#[test]
fn outputs_may_be_made_of_each_other() {
    for yard in Yard::both() {
        let action = |input, secondary_input, output, action| pb::FileAction {
            input,
            secondary_input,
            output,
            action: Some(action),
        };
        let actions = vec![
            action(-1, -1, 1, mkfile("/a", "a")),
            action(0, -1, -1, mkfile("/b", "b")),
            action(-1, 1, 0, Action::Copy(copy("/", "/copied/"))),
        ];
        let trees = yard.apply(actions, &[]).unwrap();
        assert_eq!(yard.paths(&trees[0]), ["/", "/copied", "/copied/a", "/copied/b"]);
        assert_eq!(yard.paths(&trees[1]), ["/", "/a"]);
    }
}

#[test]
fn files_are_copied_with_all_that_they_have() {
    for yard in Yard::both() {
        let source = yard.tree(|root| {
            write(root, "src/a", "a");
            fs::set_permissions(root.join("src/a"), PermissionsExt::from_mode(0o4751)).unwrap();
            fs::hard_link(root.join("src/a"), root.join("src/z")).unwrap();
            symlink("/etc/passwd", root.join("src/link")).unwrap();
            write(root, "src/sub/b", &"b".repeat(300_000));
            xattr::set(root.join("src/sub"), "user.note", b"here").unwrap();
            chown(root.join("src/sub/b"), Some(12), Some(13)).unwrap();
            std::os::unix::net::UnixListener::bind(root.join("src/socket")).unwrap();
            let file = fs::File::create(root.join("src/sparse")).unwrap();
            file.set_len(50 << 20).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, b"end", (30 << 20) + 5).unwrap();
        });
        let target = yard.act(Action::Copy(copy("/src", "/dst")), &[Tree::empty(), source.clone()]).unwrap();
        let mut expected: Vec<String> = yard
            .show_all(&source)
            .into_iter()
            .filter_map(|line| {
                line.strip_prefix("/src/").map(|rest| format!("/dst/{}", rest.replace("src/a", "dst/a")))
            })
            .collect();
        let socket = expected.iter_mut().find(|line| line.starts_with("/dst/socket")).unwrap();
        *socket = socket.replace("block 0x0", "file \"\"");
        assert_eq!(yard.show_all(&target)[2..], expected, "{}", yard.kind);
        let blocks = yard.look(&target, |root| {
            std::os::unix::fs::MetadataExt::blocks(&fs::metadata(root.join("dst/sparse")).unwrap())
        });
        assert!(blocks < 1000, "{blocks} blocks for a sparse file");
    }
}

#[test]
fn names_of_owners_are_looked_up_in_the_tree() {
    for yard in Yard::both() {
        let base = yard.tree(|root| {
            write(root, "real/passwd", "bad\nother:x:1:2\napp:x:1000:1001:App:/:/bin/sh\n");
            write(root, "real/group", "staff:x:50:\n");
            symlink("/real", root.join("etc")).unwrap();
        });
        let source = yard.tree(|root| write(root, "f", "f"));
        for (owner, expected) in [
            (by_name("app", None, 0), "1000:1001"),
            (by_name("app", Some("staff"), 0), "1000:50"),
            (by_name("nobody-knows", Some("staff"), 0), "0:50"),
            (pb::ChownOpt { user: Some(pb::UserOpt { user: Some(User::ById(7)) }), group: None }, "7:7"),
        ] {
            let action = pb::FileActionCopy { owner: Some(owner), ..copy("/f", "/new/f") };
            let tree = yard.act(Action::Copy(action), &[base.clone(), source.clone()]).unwrap();
            let shown = yard.show(&tree);
            assert!(shown.contains(&format!("/new dir 755 {expected}")), "{shown:?}");
            assert!(shown.contains(&format!("/new/f file \"f\" 644 {expected}")), "{shown:?}");
        }
        // Without the files everybody is root.
        let action = pb::FileActionCopy { owner: Some(by_name("app", None, 0)), ..copy("/f", "/f") };
        let tree = yard.act(Action::Copy(action), &[Tree::empty(), source]).unwrap();
        assert_eq!(yard.show(&tree)[1], "/f file \"f\" 644 0:0");
    }
}

#[test]
fn archives_are_unpacked_where_it_is_asked_for() {
    for yard in Yard::both() {
        let source = yard.tree(|root| {
            write(root, "in/dir/file", "file");
            let status = std::process::Command::new("tar")
                .args(["-czf", "a.tar.gz", "-C", "in", "dir"])
                .current_dir(root)
                .status();
            assert!(status.unwrap().success());
            write(root, "text", "no archive");
        });
        for (src, expected) in
            [("/a.tar.gz", vec!["/", "/x", "/x/dir", "/x/dir/file"]), ("/text", vec!["/", "/x", "/x/text"])]
        {
            let action = pb::FileActionCopy { attempt_unpack_docker_compatibility: true, ..copy(src, "/x/") };
            let tree = yard.act(Action::Copy(action), &[Tree::empty(), source.clone()]).unwrap();
            assert_eq!(yard.paths(&tree), expected, "{}", yard.kind);
        }
    }
}

#[test]
fn errors_are_in_the_words_that_people_search_for() {
    let [yard, _] = Yard::both();
    let base = yard.tree(|root| {
        write(root, "file", "file");
        write(root, "dir/file", "file");
        symlink("loop", root.join("loop")).unwrap();
    });
    let both = [base.clone(), base];
    let strict =
        |src, dest| Action::Copy(pb::FileActionCopy { allow_empty_wildcard: false, ..copy(src, dest) });
    for (action, expected) in [
        (strict("/nosuch", "/x"), "copy /nosuch to /x: lstat /nosuch: no such file or directory"),
        (strict("/no*", "/x"), "copy /no* to /x: /no* not found"),
        (strict("/dir", "/file"), "copy /dir to /file: cannot copy to non-directory: /file"),
        (strict("/file", "/file/x"), "copy /file to /file/x: mkdir /file: not a directory"),
        (strict("/file", "/file/"), "copy /file to /file/: mkdir /file: not a directory"),
        (strict("/loop", "/x"), "copy /loop to /x: /loop: too many links"),
        (
            Action::Copy(pb::FileActionCopy { create_dest_path: false, ..copy("/file", "/no/such") }),
            "copy /file to /no/such: failed to stat /no/such: no such file or directory",
        ),
        (
            Action::Copy(pb::FileActionCopy { mode_str: "u~x".into(), ..copy("/file", "/x") }),
            "copy /file to /x: invalid mode \"u~x\": invalid syntax",
        ),
        (mkdir("/no/such", false), "mkdir /no/such: mkdir /no/such: no such file or directory"),
        (mkdir("/file/x", true), "mkdir /file/x: lstat /file/x: not a directory"),
        (mkfile("/no/such", ""), "mkfile /no/such: open /no/such: no such file or directory"),
        (mkfile("/dir", ""), "mkfile /dir: open /dir: is a directory"),
        (rm("/nosuch", false, false), "rm /nosuch: stat /nosuch: no such file or directory"),
        (rm("/dir/..", false, false), "rm /dir/..: invalid file op: rm of the root directory"),
    ] {
        assert_eq!(yard.act(action, &both).unwrap_err(), expected);
    }
}
