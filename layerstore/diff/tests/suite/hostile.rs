//! Archives made to do harm: nothing outside of the target is touched, and each error names its entry.

use std::{
    fs,
    io::Read,
    os::{fd::AsFd as _, unix::fs::symlink},
    path::{Path, PathBuf},
};

use lapstrake_layerstore_diff::{
    ArchiveOptions, DiffError, ErrorKind, Limits, apply, unpack_archive, unpack_context,
};
use proptest::prelude::*;

use crate::common::{Item, Layers, Tar, Trees, names, tree};

/// Unpacks in each way into a target that has something precious beside it, and checks that that is untouched.
/// Returns each way's result and tree.
fn everywhere(tar: &[u8]) -> Vec<(Result<(), DiffError>, Vec<String>)> {
    let mut results = Vec::new();
    for way in 0..4 {
        let base = tempfile::tempdir().unwrap();
        let outside = base.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("precious"), "as it was").unwrap();
        let target = base.path().join("target");
        fs::create_dir(&target).unwrap();
        let limits = Limits::default();
        let result = match way {
            0 => {
                let source = lapstrake_layerstore_store::DiffSource::OverlayUpper {
                    upper: target.clone(),
                    lower: Vec::new(),
                    deletions: None,
                };
                apply(tar, &source, &limits).map(drop)
            }
            1 => {
                let source = lapstrake_layerstore_store::DiffSource::Trees {
                    upper: target.clone(),
                    lower: None,
                    deletions: None,
                };
                apply(tar, &source, &limits).map(drop)
            }
            2 => unpack_context(tar, &target, &limits).map(drop),
            _ => {
                fs::create_dir(target.join("in")).unwrap();
                let root = fs::File::open(&target).unwrap();
                let inside = Path::new("in");
                unpack_archive(tar, root.as_fd(), inside, &ArchiveOptions::default(), &limits).map(drop)
            }
        };
        assert_eq!(names(&tree(&outside)), ["precious"], "way {way}");
        assert_eq!(fs::read_to_string(outside.join("precious")).unwrap(), "as it was");
        let mut beside: Vec<_> =
            fs::read_dir(base.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        beside.sort();
        assert_eq!(beside, ["outside", "target"], "way {way}");
        let nodes = tree(&target);
        if way == 3 {
            assert!(nodes.keys().all(|path| path.starts_with("in")), "{:?}", names(&nodes));
        }
        results.push((result, names(&nodes)));
    }
    results
}

fn all_fail(tar: &[u8], entry: &str, check: fn(&DiffError) -> bool) {
    for (result, _) in everywhere(tar) {
        let error = result.unwrap_err();
        assert!(check(&error), "{error:?}");
        assert!(error.to_string().contains(entry), "{error}");
    }
}

fn is_breakout(error: &DiffError) -> bool {
    matches!(error, DiffError::Breakout { .. }) && error.to_string().contains("breakout")
}

#[test]
fn names_and_hard_links_out_of_the_root_are_breakouts() {
    for name in
        ["../outside/precious", "..", "a/../../outside/precious", "/../outside/x", "./../x", "a/b/../../.."]
    {
        all_fail(&Tar::new().file(name, "evil").end(), name, is_breakout);
        all_fail(&Tar::new().dir(name, 0o777).end(), name, is_breakout);
        all_fail(&Tar::new().hard_link("link", name).end(), "link", is_breakout);
    }
    all_fail(&Tar::new().hard_link("link", "/").end(), "link", is_breakout);
}

#[test]
fn names_with_a_leading_slash_stay_in_the_root() {
    for (result, names) in everywhere(
        &Tar::new().file("/etc//./lapstrake-test", "x").hard_link("l", "/etc/lapstrake-test").end(),
    ) {
        result.unwrap();
        assert!(names.iter().any(|name| name.ends_with("etc/lapstrake-test")), "{names:?}");
    }
    assert!(!Path::new("/etc/lapstrake-test").exists());
}

#[test]
fn symbolic_links_lead_nowhere_else() {
    let outside = tempfile::tempdir().unwrap();
    let absolute = outside.path().to_str().unwrap();
    for target in
        ["../outside", "../../../../../..", absolute, "/proc/self/root", "/proc/self/cwd", "..", "/"]
    {
        let tar = Tar::new()
            .symlink("link", target)
            .file("link/outside/precious", "evil")
            .file("link/precious", "evil")
            .dir("link/sub", 0o777)
            .symlink("link/more", "/")
            .hard_link("link/hard", "link/precious")
            .file("link/.wh.precious-too", "")
            .end();
        everywhere(&tar);
        assert_eq!(names(&tree(outside.path())), [""; 0], "{target}");
        assert!(
            !Path::new("/precious").exists()
                && !Path::new("/outside").exists()
                && !Path::new("/sub").exists()
        );
    }
    // A file's own name is never followed.
    for target in ["../outside/precious", "/proc/self/mem"] {
        let tar = Tar::new().symlink("link", target).file("link", "replaces the link").end();
        for (result, _) in everywhere(&tar) {
            result.unwrap();
        }
    }
}

#[test]
fn whiteouts_through_links_delete_nothing_outside() {
    let tar = Tar::new()
        .symlink("link", "../outside")
        .file("link/.wh.precious", "")
        .file("link/.wh..wh..opq", "")
        .end();
    for (result, _) in everywhere(&tar).into_iter().take(2) {
        result.unwrap();
    }
}

#[test]
fn link_loops_end() {
    let tar = Tar::new().symlink("a", "b").symlink("b", "a").file("a/file", "").end();
    all_fail(&tar, "a/file", |error| matches!(error, DiffError::BadEntry { .. }));
    let mut tar = Tar::new().symlink("l0", "/");
    for at in 1..40 {
        let target = format!("l{0}/l{0}", at - 1);
        tar = tar.symlink(&format!("l{at}"), &target);
    }
    all_fail(&tar.file("l39/file", "").end(), "l39/file", |error| {
        matches!(error, DiffError::BadEntry { .. })
    });
}

#[test]
fn a_file_in_the_way_of_a_directory_is_an_error() {
    all_fail(&Tar::new().file("a", "").file("a/b", "").end(), "a/b", |error| {
        matches!(error, DiffError::BadEntry { .. })
    });
}

#[test]
fn links_in_the_directory_to_unpack_into_end_at_the_root() {
    let base = tempfile::tempdir().unwrap();
    let (root, outside) = (base.path().join("root"), base.path().join("outside"));
    fs::create_dir(&root).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::create_dir(root.join("outside")).unwrap();
    symlink("../outside", root.join("relative")).unwrap();
    symlink(&outside, root.join("absolute")).unwrap();
    let handle = fs::File::open(&root).unwrap();
    let tar = Tar::new().file("file", "x").end();
    let options = ArchiveOptions { owner: Some((12, 34)) };
    unpack_archive(tar.as_slice(), handle.as_fd(), Path::new("relative"), &options, &Limits::default())
        .unwrap();
    assert_eq!(tree(&root.join("outside"))[Path::new("file")].owner, (12, 34));
    unpack_archive(tar.as_slice(), handle.as_fd(), Path::new("absolute"), &options, &Limits::default())
        .unwrap_err();
    assert_eq!(names(&tree(&outside)), [""; 0]);
}

#[test]
fn a_context_merges_with_what_is_there_and_has_no_whiteouts() {
    let base = tempfile::tempdir().unwrap();
    fs::create_dir(base.path().join("d")).unwrap();
    fs::write(base.path().join("d/old"), "1").unwrap();
    let tar = Tar::new()
        .file("d/.wh.old", "a name like others")
        .file("d/.wh..wh..opq", "")
        .file("d/new", "2")
        .hard_link("before", "after")
        .file("after", "3")
        .item(Item {
            name: b"owned",
            uid: 77,
            gid: 88,
            mode: 0o4711,
            pax: vec![("mtime".into(), b"5.25".to_vec())],
            ..Item::default()
        })
        .end();
    let unpacked = unpack_context(tar.as_slice(), base.path(), &Limits::default()).unwrap();
    assert_eq!(unpacked.entries, 6);
    let nodes = tree(base.path());
    let expected = ["after", "before", "d", "d/.wh..wh..opq", "d/.wh.old", "d/new", "d/old", "owned"];
    assert_eq!(names(&nodes), expected);
    let owned = &nodes[Path::new("owned")];
    assert_eq!((owned.owner, owned.mode, owned.mtime), ((77, 88), 0o4711, (5, 250_000_000)));
    assert_eq!(nodes[Path::new("before")].same_as, nodes[Path::new("after")].same_as);
}

#[test]
fn a_context_has_no_device_nodes() {
    for flag in [b'3', b'4'] {
        let base = tempfile::tempdir().unwrap();
        let tar = Tar::new().item(Item { name: b"device", flag, ..Item::default() }).end();
        let error = unpack_context(tar.as_slice(), base.path(), &Limits::default()).unwrap_err();
        assert!(error.to_string().contains("\"device\": a device node"), "{error}");
        assert_eq!(names(&tree(base.path())), Vec::<&str>::new());
    }
}

#[test]
fn damaged_archives_are_errors_naming_the_place() {
    let good = Tar::new().file("first", "1").file("second", &"2".repeat(5000)).end();
    // Cut anywhere inside an entry.
    for cut in [100, 600, 1024 + 10, 1024 + 512 + 5, 1024 + 512 + 4999] {
        let mut layers = Layers::new();
        let error = layers.apply(&good[..cut]).unwrap_err();
        assert!(matches!(error, DiffError::Truncated { .. }), "{cut}: {error:?}");
        assert_eq!(error.kind(), ErrorKind::Archive);
    }
    let error = Layers::new().apply(&good[..1024 + 512 + 5]).unwrap_err();
    assert!(error.to_string().contains("second"), "{error}");
    // Between entries is an end, as for Go and GNU tar.
    Layers::new().apply(&good[..1024]).unwrap();
    // So is one right after an entry's content: docker 20.10 sends such contexts.
    Layers::new().apply(&good[..513]).unwrap();
    for at in [0, 100, 130, 150, 1024 + 20, 1024 + 130] {
        let mut bad = good.clone();
        bad[at] ^= 0x15;
        let error = Layers::new().apply(&bad).unwrap_err();
        assert!(matches!(error, DiffError::BadHeader { .. }), "{at}: {error:?}");
    }
    let mut garbage = good;
    garbage.truncate(1024);
    garbage.extend_from_slice(&[7; 2048]);
    let error = Layers::new().apply(&garbage).unwrap_err();
    assert!(error.to_string().contains("first"), "{error}");
}

#[test]
fn limits_hold() {
    let limits = Limits {
        entries: 3,
        name: 50,
        extended_header: 1000,
        xattr: 100,
        file: 5000,
        content: 8000,
        stream: 100_000,
    };
    let over = |tar: Vec<u8>, what: &str| {
        let mut layers = Layers::new();
        let error = apply(tar.as_slice(), &layers.push(), &limits).unwrap_err();
        assert!(matches!(error, DiffError::OverLimit { .. }), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert!(error.to_string().contains(what), "{error}");
    };
    over(Tar::new().file("a", "").file("b", "").file("c", "").file("d", "").end(), "entries");
    over(Tar::new().file(&"n".repeat(51), "").end(), "bytes of name");
    over(Tar::new().symlink("l", &"n".repeat(51)).end(), "link target");
    let pax = |key: &str, length| vec![(key.to_owned(), vec![b'v'; length])];
    over(
        Tar::new().item(Item { name: b"a", pax: pax("comment", 1000), ..Item::default() }).end(),
        "extended header",
    );
    over(
        Tar::new().item(Item { name: b"a", pax: pax("SCHILY.xattr.user.a", 101), ..Item::default() }).end(),
        "attribute",
    );
    over(Tar::new().file("a", &"x".repeat(5001)).end(), "bytes of a file");
    over(Tar::new().file("a", &"x".repeat(4500)).file("b", &"x".repeat(4500)).end(), "bytes of content");
    over([Tar::new().file("a", "").end(), vec![0; 100_000]].concat(), "bytes of stream");
    // Sizes that lie need no memory and no time.
    over(
        Tar::new().item(Item { name: b"L", flag: b'L', size: Some(0o77777777777), ..Item::default() }).end(),
        "extended header",
    );
    over(
        Tar::new().item(Item { name: b"x", size: Some(0o77777777777), ..Item::default() }).end(),
        "bytes of a file",
    );
    let huge = vec![
        ("GNU.sparse.map".to_owned(), Vec::new()),
        ("GNU.sparse.size".to_owned(), b"18446744073709551615".to_vec()),
    ];
    over(Tar::new().item(Item { name: b"x", pax: huge, ..Item::default() }).end(), "bytes of a file");
}

#[test]
fn strange_entries_are_errors() {
    let bad: Vec<(Item<'_>, &str)> = vec![
        (Item { name: b"kind", flag: b'V', ..Item::default() }, "unknown type"),
        (Item { name: b"kind", flag: b'!', ..Item::default() }, "unknown type"),
        (Item { name: b"link", flag: b'2', ..Item::default() }, "without a target"),
        (
            Item { name: b"uid", pax: vec![("uid".into(), b"4294967296".to_vec())], ..Item::default() },
            "owner out of range",
        ),
        (
            Item { name: b"uid", pax: vec![("uid".into(), b"-1".to_vec())], ..Item::default() },
            "malformed number",
        ),
        (
            Item { name: b"time", pax: vec![("mtime".into(), b"soon".to_vec())], ..Item::default() },
            "malformed time",
        ),
        (Item { name: b"dev", flag: b'3', ..Item::default() }, "0:0"),
    ];
    for (item, why) in bad {
        let error = Layers::new().apply(&Tar::new().item(item).end()).unwrap_err();
        assert!(matches!(error, DiffError::BadEntry { .. }), "{error:?}");
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[test]
fn a_stream_that_fails_is_an_error_of_the_stream() {
    struct Failing(usize);
    impl Read for Failing {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            self.0 += 1;
            if self.0 > 1 { Err(std::io::ErrorKind::ConnectionReset.into()) } else { Ok(buf.len().min(1)) }
        }
    }
    let mut layers = Layers::new();
    let error = apply(Failing(0), &layers.push(), &Limits::default()).unwrap_err();
    assert!(
        matches!(&error, DiffError::Read(source) if source.kind() == std::io::ErrorKind::ConnectionReset)
    );
    assert_eq!(error.kind(), ErrorKind::Stream);
}

/// Entries that try to get at each other and out.
fn entry() -> impl Strategy<Value = (u8, String, String)> {
    let name = proptest::collection::vec(
        prop_oneof![
            6 => "[abc]".prop_map(String::from),
            2 => Just("..".to_owned()),
            1 => Just(String::new()),
            1 => Just(".wh.a".to_owned()),
            1 => Just(".wh.b".to_owned()),
            1 => Just(".wh..wh..opq".to_owned()),
            1 => Just("outside".to_owned()),
            1 => Just("precious".to_owned()),
        ],
        1..5,
    )
    .prop_map(|parts| parts.join("/"));
    let link = prop_oneof![name.clone(), name.clone().prop_map(|name| format!("/{name}"))];
    (proptest::sample::select(b"01256".to_vec()), name, link)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_archive_touches_what_is_outside(entries in proptest::collection::vec(entry(), 1..25)) {
        let mut tar = Tar::new();
        for (flag, name, link) in &entries {
            tar = tar.item(Item { name: name.as_bytes(), flag: *flag, link: link.as_bytes(), content: if *flag == b'0' { b"evil" } else { b"" }, ..Item::default() });
        }
        everywhere(&tar.end());
    }

    #[test]
    fn the_drivers_agree_on_any_layer(
        base in proptest::collection::vec(entry(), 1..10),
        step in proptest::collection::vec(entry(), 1..10),
        last in proptest::collection::vec(entry(), 1..10),
    ) {
        let (mut overlay, mut trees) = (Layers::new(), Trees::new());
        for entries in [&base, &step, &last] {
            let mut tar = Tar::new();
            // Archives that are refused at their first name show nothing.
            for (flag, name, link) in entries {
                let plain = |path: &str| {
                    let parts = path.split('/').map(|part| if part == ".." { "a" } else { part });
                    parts.collect::<Vec<_>>().join("/")
                };
                let (name, target) = (plain(name), plain(link));
                let link = if *flag == b'1' { &target } else { link };
                let content: &[u8] = if *flag == b'0' { b"data" } else { b"" };
                let (name, link) = (name.as_bytes(), link.as_bytes());
                tar = tar.item(Item { name, flag: *flag, link, content, ..Item::default() });
            }
            let tar = tar.end();
            let (a, b) = (overlay.apply(&tar), trees.apply(&tar));
            match (a, b) {
                (Ok(a), Ok(b)) => prop_assert_eq!(a, b),
                (Err(a), Err(b)) => {
                    prop_assert_eq!(a.to_string(), b.to_string());
                    overlay.layers.pop();
                    let half = trees.trees.pop().unwrap();
                    fs::remove_dir_all(half).unwrap();
                    // The next one is told apart from this one's leftovers.
                    fs::rename(
                        overlay.base.path().join(format!("layer-{}", overlay.layers.len())),
                        overlay.base.path().join(format!("failed-{}", overlay.base.path().read_dir().unwrap().count())),
                    )
                    .unwrap();
                }
                (a, b) => prop_assert!(false, "{:?} {:?}", a, b),
            }
        }
        if !overlay.layers.is_empty() {
            prop_assert_eq!(overlay.merged(), trees.merged());
        }
    }

    #[test]
    fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..4096), flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4)) {
        let _ = Layers::new().apply(&bytes);
        let mut good = Tar::new()
            .item(Item { name: b"sparse", content: b"headtail", pax: vec![("GNU.sparse.map".into(), b"0,4,100,4".to_vec()), ("GNU.sparse.size".into(), b"104".to_vec())], ..Item::default() })
            .file("d/.wh.x", "")
            .symlink("l", "d")
            .hard_link("h", "sparse")
            .end();
        for (at, value) in flips {
            let at = at.index(good.len());
            good[at] = value;
            // Give it a right checksum now and then.
            let start = at / 512 * 512;
            if good[start + 257..start + 262] == *b"ustar" {
                good[start + 148..start + 156].fill(b' ');
                let sum: u32 = good[start..start + 512].iter().map(|byte| u32::from(*byte)).sum();
                good[start + 148..start + 155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            }
        }
        let _ = Layers::new().apply(&good);
        bytes.clear();
    }
}

#[test]
fn a_layer_of_many_files_holds_no_descriptors() {
    let limit = fs::read_dir("/proc/self/fd").unwrap().count();
    let deep: PathBuf = std::iter::repeat_n("d", 700).collect();
    let mut tar = Tar::new();
    for at in 0..50 {
        let name = format!("{}/{at}/file", deep.display());
        tar = tar.item(Item { name: b"x", pax: vec![("path".into(), name.into_bytes())], ..Item::default() });
    }
    Layers::new().apply(&tar.end()).unwrap();
    assert_eq!(fs::read_dir("/proc/self/fd").unwrap().count(), limit);
}
