//! What layers mean, the same on overlayfs and on complete trees.

use std::{collections::BTreeMap, path::Path};

use lapstrake_layerstore_diff::{DiffError, Limits, apply};
use lapstrake_layerstore_oci::Digest;

use crate::common::{Item, Layers, Tar, Trees, What, both, content, names};

#[test]
fn a_whiteout_deletes_from_lower_layers_only() {
    let base = Tar::new().file("gone", "x").file("kept", "x").dir("dir", 0o755).file("dir/inner", "x").end();
    for layer in [
        Tar::new().file(".wh.gone", "").file(".wh.dir", "").file("new", "y").end(),
        Tar::new().file("new", "y").file(".wh.dir", "").file(".wh.gone", "").end(),
    ] {
        assert_eq!(names(&both(&[&base, &layer])), ["kept", "new"]);
    }
    // What the same layer has there stays, whichever comes first.
    for layer in [
        Tar::new().file(".wh.gone", "").file("gone", "new").end(),
        Tar::new().file("gone", "new").file(".wh.gone", "").end(),
    ] {
        assert_eq!(content(&both(&[&base, &layer]), "gone"), "new");
    }
}

#[test]
fn a_directory_over_a_whiteout_shows_nothing_from_below() {
    let base = Tar::new().dir("d", 0o700).file("d/old", "x").dir("d/sub", 0o700).file("d/sub/old", "x").end();
    let orders = [
        Tar::new().file(".wh.d", "").dir("d", 0o711).file("d/new", "y").end(),
        Tar::new().dir("d", 0o711).file(".wh.d", "").file("d/new", "y").end(),
        Tar::new().dir("d", 0o711).file("d/new", "y").file(".wh.d", "").end(),
    ];
    let trees: Vec<_> = orders.iter().map(|layer| both(&[&base, layer])).collect();
    assert_eq!(names(&trees[0]), ["d", "d/new"]);
    assert_eq!(trees[0], trees[1]);
    assert_eq!(trees[0], trees[2]);
    // Also when the directory has no entry of its own; then it is a new one, not the lower one.
    let implied = [
        Tar::new().file(".wh.d", "").file("d/new", "y").end(),
        Tar::new().file("d/new", "y").file(".wh.d", "").end(),
    ];
    let trees: Vec<_> = implied.iter().map(|layer| both(&[&base, layer])).collect();
    assert_eq!(names(&trees[0]), ["d", "d/new"]);
    assert_eq!(trees[0][Path::new("d")].mode, 0o755);
    assert_eq!(trees[0], trees[1]);
}

#[test]
fn an_opaque_mark_hides_the_lower_directory_in_any_order() {
    let base =
        Tar::new().dir("d", 0o755).file("d/a", "1").dir("d/s", 0o755).file("d/s/b", "1").file("e", "1").end();
    let orders = [
        Tar::new().dir("d", 0o755).file("d/.wh..wh..opq", "").file("d/s/c", "2").file("d/n", "2").end(),
        Tar::new().file("d/s/c", "2").file("d/n", "2").file("d/.wh..wh..opq", "").dir("d", 0o755).end(),
        Tar::new()
            .file("d/.wh.a", "")
            .file("d/s/.wh.b", "")
            .file("d/s/c", "2")
            .file("d/.wh..wh..opq", "")
            .dir("d", 0o755)
            .file("d/n", "2")
            .end(),
        Tar::new()
            .file("d/.wh..wh..opq", "")
            .file("d/.wh.a", "")
            .file("d/n", "2")
            .file("d/s/c", "2")
            .dir("d", 0o755)
            .end(),
    ];
    let trees: Vec<_> = orders.iter().map(|layer| both(&[&base, layer])).collect();
    for tree in &trees {
        assert_eq!(names(tree), ["d", "d/n", "d/s", "d/s/c", "e"]);
    }
    assert_eq!(trees[0].get(Path::new("d")), trees[2].get(Path::new("d")));
}

#[test]
fn an_opaque_mark_on_the_root_hides_everything_below() {
    let base = Tar::new().dir("d", 0o755).file("d/a", "1").file("f", "1").symlink("l", "f").end();
    for layer in [
        Tar::new().file(".wh..wh..opq", "").file("d/new", "2").file("g", "2").end(),
        Tar::new().file("d/new", "2").file("g", "2").file(".wh..wh..opq", "").end(),
    ] {
        assert_eq!(names(&both(&[&base, &layer])), ["d", "d/new", "g"]);
    }
}

#[test]
fn files_and_directories_replace_each_other() {
    let base = Tar::new().dir("d", 0o755).file("d/a", "1").file("f", "1").symlink("s", "d").end();
    let layer = Tar::new()
        .file("d", "now a file")
        .dir("f", 0o755)
        .file("f/x", "2")
        .dir("s", 0o750)
        .file("s/y", "2")
        .end();
    let tree = both(&[&base, &layer]);
    assert_eq!(names(&tree), ["d", "f", "f/x", "s", "s/y"]);
    assert_eq!(content(&tree, "d"), "now a file");
    // Within one layer the later entry wins, and what was replaced does not shine through.
    let twice = Tar::new().file("d", "file").dir("d", 0o755).file("d/b", "2").end();
    assert_eq!(names(&both(&[&base, &twice])), ["d", "d/b", "f", "s"]);
    let twice = Tar::new().dir("d", 0o755).file("d/b", "2").file("d", "file").end();
    assert_eq!(names(&both(&[&base, &twice])), ["d", "f", "s"]);
    let twice = Tar::new().file("f", "first").file("f", "second").end();
    assert_eq!(content(&both(&[&base, &twice]), "f"), "second");
}

#[test]
fn directories_merge_and_take_the_new_attributes() {
    let base = Tar::new().dir("d", 0o700).file("d/a", "1").end();
    let layer = Tar::new()
        .item(Item { name: b"d/", flag: b'5', mode: 0o1777, uid: 7, gid: 8, mtime: 5, ..Item::default() })
        .file("d/b", "2")
        .end();
    let tree = both(&[&base, &layer]);
    assert_eq!(names(&tree), ["d", "d/a", "d/b"]);
    let d = &tree[Path::new("d")];
    assert_eq!((d.mode, d.owner, d.mtime), (0o1777, (7, 8), (5, 0)));
}

#[test]
fn a_parent_without_entry_has_the_lower_directorys_attributes() {
    let base = Tar::new()
        .item(Item {
            name: b"d",
            flag: b'5',
            mode: 0o2750,
            uid: 3,
            gid: 4,
            mtime: 99,
            pax: vec![("SCHILY.xattr.user.kept".into(), b"yes".to_vec())],
            ..Item::default()
        })
        .end();
    let layer = Tar::new().file("d/new/file", "x").end();
    let tree = both(&[&base, &layer]);
    let d = &tree[Path::new("d")];
    assert_eq!((d.mode, d.owner, d.mtime), (0o2750, (3, 4), (99, 0)));
    assert_eq!(d.xattrs[b"user.kept".as_slice()], b"yes");
    let new = &tree[Path::new("d/new")];
    assert_eq!((new.mode, new.owner, new.mtime), (0o755, (0, 0), (0, 0)));
    // Its own entry, when it comes, says all.
    let layer = Tar::new().file("d/x", "").dir("d", 0o711).end();
    let tree = both(&[&base, &layer]);
    assert_eq!(tree[Path::new("d")].mode, 0o711);
    assert_eq!(tree[Path::new("d")].xattrs, BTreeMap::new());
}

#[test]
fn hard_links_come_before_or_after_their_target_and_may_reach_a_lower_layer() {
    let base = Tar::new().dir("lib", 0o755).file("lib/low", "low").end();
    for layer in [
        Tar::new().file("a", "1").hard_link("b", "a").hard_link("c", "/b").end(),
        Tar::new().hard_link("c", "b").hard_link("b", "a").file("a", "1").end(),
        Tar::new().file("b", "old").hard_link("b", "a").hard_link("c", "./a").file("a", "1").end(),
    ] {
        let tree = both(&[&base, &layer]);
        assert_eq!(names(&tree), ["a", "b", "c", "lib", "lib/low"]);
        for name in ["a", "b", "c"] {
            assert_eq!(content(&tree, name), "1");
            assert_eq!(tree[Path::new(name)].same_as.as_deref(), Some(Path::new("a")));
        }
    }
    let tree = both(&[&base, &Tar::new().hard_link("top", "lib/low").end()]);
    assert_eq!(content(&tree, "top"), "low");
    assert_eq!(tree[Path::new("top")].same_as, tree[Path::new("lib/low")].same_as);
    assert!(tree[Path::new("top")].same_as.is_some());
    // A link that a later entry replaces is never made.
    let tree = both(&[&base, &Tar::new().hard_link("x", "lib/low").file("x", "later").end()]);
    assert_eq!(content(&tree, "x"), "later");
    assert_eq!(tree[Path::new("lib/low")].same_as, None);
}

#[test]
fn a_hard_link_to_what_is_not_there_is_an_error_naming_it() {
    let base = Tar::new().file("low", "x").end();
    for layer in [
        Tar::new().hard_link("link", "nowhere").end(),
        Tar::new().hard_link("link", "link").end(),
        Tar::new().hard_link("link", "other").hard_link("other", "link").end(),
        Tar::new().file(".wh.low", "").hard_link("link", "low").end(),
        Tar::new().dir("d", 0o755).hard_link("link", "d").end(),
    ] {
        let mut layers = Layers::new();
        layers.apply(&base).unwrap();
        let error = layers.apply(&layer).unwrap_err();
        assert!(matches!(error, DiffError::BadEntry { .. }), "{error}");
        assert!(error.to_string().contains("\"link\""), "{error}");
    }
}

#[test]
fn every_attribute_arrives() {
    let capability = b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(150));
    let layer = Tar::new()
        .item(Item {
            name: b"setuid",
            content: b"#!",
            mode: 0o6755,
            uid: 1000,
            gid: 2000,
            pax: vec![
                ("mtime".into(), b"1600000000.123456789".to_vec()),
                ("SCHILY.xattr.security.capability".into(), capability.to_vec()),
                ("SCHILY.xattr.user.bin".into(), vec![0, 1, 2, 255, b'\n']),
                ("SCHILY.xattr.trusted.overlay.opaque".into(), b"y".to_vec()),
                ("SCHILY.xattr.user.overlay.opaque".into(), b"y".to_vec()),
            ],
            ..Item::default()
        })
        .item(Item {
            name: b"long",
            content: b"L",
            pax: vec![("path".into(), long.clone().into_bytes())],
            ..Item::default()
        })
        .item(Item {
            name: b"big-ids",
            pax: vec![("uid".into(), b"4000000000".to_vec()), ("gid".into(), b"3000000000".to_vec())],
            ..Item::default()
        })
        .item(Item { name: b"null", flag: b'3', device: (1, 3), mode: 0o666, ..Item::default() })
        .item(Item { name: b"disk", flag: b'4', device: (8, 1), mode: 0o660, gid: 6, ..Item::default() })
        .item(Item { name: b"pipe", flag: b'6', mode: 0o600, ..Item::default() })
        .item(Item {
            name: b"link",
            flag: b'2',
            link: b"/no/where/../at all",
            uid: 5,
            gid: 6,
            mtime: 11,
            pax: vec![("SCHILY.xattr.user.on-link".into(), b"x".to_vec())],
            ..Item::default()
        })
        .item(Item { name: b"g", flag: b'g', content: b"20 path=everywhere!\n", ..Item::default() })
        .dir("dir-with-time", 0o755)
        .file("dir-with-time/later", "changes its time")
        .end();
    let tree = both(&[&layer]);
    let setuid = &tree[Path::new("setuid")];
    assert_eq!(
        (setuid.mode, setuid.owner, setuid.mtime),
        (0o6755, (1000, 2000), (1_600_000_000, 123_456_789))
    );
    let expected: BTreeMap<Vec<u8>, Vec<u8>> = [
        (b"security.capability".to_vec(), capability.to_vec()),
        (b"user.bin".to_vec(), vec![0, 1, 2, 255, b'\n']),
    ]
    .into();
    assert_eq!(setuid.xattrs, expected);
    assert_eq!(content(&tree, &long), "L");
    assert_eq!(tree[Path::new("big-ids")].owner, (4_000_000_000, 3_000_000_000));
    assert_eq!(tree[Path::new("null")].what, What::Char(0x103));
    assert_eq!(tree[Path::new("disk")].what, What::Block(0x801));
    assert_eq!(tree[Path::new("disk")].owner, (0, 6));
    assert_eq!((&tree[Path::new("pipe")].what, tree[Path::new("pipe")].mode), (&What::Fifo, 0o600));
    let link = &tree[Path::new("link")];
    assert_eq!(
        (&link.what, link.owner, link.mtime),
        (&What::Symlink("/no/where/../at all".into()), (5, 6), (11, 0))
    );
    assert_eq!(tree[Path::new("dir-with-time")].mtime, (1_700_000_000, 0));
}

#[test]
fn the_diff_id_covers_the_padding_behind_the_archive() {
    let mut tar = Tar::new().file("f", "content").end();
    tar.resize(20 * 512, 0);
    let applied = Layers::new().apply(&tar).unwrap();
    assert_eq!(applied.diff_id.digest(), &Digest::sha256_of(&tar));
    assert_eq!((applied.tar_size, applied.size, applied.entries), (20 * 512, 7, 1));
}

#[test]
fn an_empty_layer_is_empty() {
    assert_eq!(names(&both(&[&Tar::new().end()])), [""; 0]);
    assert_eq!(names(&both(&[&[]])), [""; 0]);
    assert_eq!(names(&both(&[&Tar::new().dir("./", 0o700).end()])), [""; 0]);
}

#[test]
fn aufs_files_are_ignored_and_bad_whiteouts_refused() {
    let layer = Tar::new()
        .dir(".wh..wh.plnk", 0o700)
        .file(".wh..wh.plnk/1.2", "x")
        .file(".wh..wh.aufs", "x")
        .dir("d", 0o755)
        .file("d/.wh..wh.other", "x")
        .end();
    assert_eq!(names(&both(&[&layer])), ["d"]);
    for name in [".wh.", ".wh..", ".wh...", "d/.wh.", ".wh.dir/file"] {
        let error = Layers::new().apply(&Tar::new().file(name, "").end()).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn links_of_the_layer_are_followed_inside_the_root_and_lower_links_are_replaced() {
    let layer = Tar::new()
        .symlink("abs", "/real")
        .symlink("up", "../../../real")
        .file("abs/a", "1")
        .file("up/b", "2")
        .end();
    assert_eq!(names(&both(&[&layer])), ["abs", "real", "real/a", "real/b", "up"]);
    let base = Tar::new().dir("usr", 0o755).dir("usr/lib", 0o755).symlink("lib", "usr/lib").end();
    let tree = both(&[&base, &Tar::new().file("lib/x", "1").end()]);
    assert_eq!(tree[Path::new("lib")].what, What::Dir);
    assert_eq!(names(&tree), ["lib", "lib/x", "usr", "usr/lib"]);
}

#[test]
fn sparse_files_keep_their_holes() {
    let size = 10 << 20;
    // PAX 0.1, as GNU tar --sparse --format=pax --sparse-version=0.1.
    let map = |map: &str| {
        vec![
            ("GNU.sparse.map".to_owned(), map.as_bytes().to_vec()),
            ("GNU.sparse.size".to_owned(), size.to_string().into_bytes()),
            ("GNU.sparse.name".to_owned(), b"sparse".to_vec()),
        ]
    };
    let good = Tar::new()
        .item(Item { name: b"x", content: b"headtail", pax: map("0,4,10485756,4"), ..Item::default() })
        .end();
    let tree = both(&[&good]);
    let What::File(bytes) = &tree[Path::new("sparse")].what else { panic!() };
    assert_eq!(bytes.len(), size);
    assert_eq!((&bytes[..4], &bytes[size - 4..]), (b"head".as_slice(), b"tail".as_slice()));
    for bad in
        ["0,4,2,4", "0,8,10485756,4", "4,4,0,4", "0,4", "0,4,18446744073709551615,4", "a", "10485760,8"]
    {
        let tar = Tar::new()
            .item(Item { name: b"x", content: b"headtail", pax: map(bad), ..Item::default() })
            .end();
        assert!(matches!(Layers::new().apply(&tar), Err(DiffError::BadEntry { .. })), "{bad}");
    }
}

#[test]
fn a_target_that_is_not_empty_is_refused() {
    let mut layers = Layers::new();
    layers.apply(&Tar::new().file("a", "").end()).unwrap();
    let error = apply([].as_slice(), &layers.top(), &Limits::default()).unwrap_err();
    assert!(matches!(error, DiffError::NotEmpty { .. }));
}

#[test]
fn applying_leaves_the_roots_time_and_nothing_beside_the_tree() {
    use std::os::unix::fs::MetadataExt as _;
    let mut trees = Trees::new();
    let target = trees.push();
    let root = trees.trees[0].clone();
    let before = std::fs::metadata(&root).unwrap();
    apply(Tar::new().file("a", "").end().as_slice(), &target, &Limits::default()).unwrap();
    let after = std::fs::metadata(&root).unwrap();
    assert_eq!((before.mtime(), before.mtime_nsec()), (after.mtime(), after.mtime_nsec()));
    assert!(apply(Tar::new().file("../a", "").end().as_slice(), &trees.push(), &Limits::default()).is_err());
    let beside: Vec<_> =
        std::fs::read_dir(trees.base.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(beside.len(), 2, "{beside:?}");
}
