//! Content digests against BuildKit's own (`tests/golden/README.md`), and what they depend on.

use std::{fs, os::unix::fs::chown, path::Path};

use lapstrake_builder_files::ContentHasher;
use lapstrake_builder_llb::cache_key::Selector;
use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_store::Tree;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use serde::Deserialize;

use crate::common::{
    Yard, chain,
    golden::{self, Entry},
};

#[derive(Deserialize)]
struct GoldenTree {
    name: String,
    entries: Vec<Entry>,
    cases: Vec<Case>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Case {
    path: String,
    wildcard: bool,
    follow: bool,
    include: Vec<String>,
    exclude: Vec<String>,
    required: Vec<String>,
    digest: String,
    error: String,
}

fn selector(case: &Case) -> Selector {
    Selector {
        path: case.path.clone(),
        wildcard: case.wildcard,
        follow_links: case.follow,
        include_patterns: case.include.clone(),
        exclude_patterns: case.exclude.clone(),
        required_paths: case.required.clone(),
    }
}

/// What the digest of one selector is made of, from what BuildKit's `Checksum` gives.
fn of_one(checksum: &str) -> Digest {
    Digest::sha256_of(checksum.as_bytes())
}

#[test]
fn digests_are_buildkits() {
    let trees: Vec<GoldenTree> = serde_json::from_str(include_str!("../golden/contenthash.json")).unwrap();
    let mut wrong = Vec::new();
    for yard in Yard::both() {
        let hasher = ContentHasher::new(yard.stores.clone());
        for given in &trees {
            // In two layers, so that overlay2 has something to merge.
            let half = given.entries.len() / 2;
            let base = yard.tree(|root| golden::make(root, &given.entries[..half]));
            let tree = yard.change(&base, |root| golden::make(root, &given.entries[half..]));
            for case in &given.cases {
                let found = hasher.digest(&tree, &[selector(case)]);
                let right = match &found {
                    Ok(digest) => case.error.is_empty() && *digest == of_one(&case.digest),
                    Err(_) => !case.error.is_empty(),
                };
                if !right {
                    let found = found.map_err(|error| chain(&error));
                    wrong.push(format!("{} {} {case:?}: {found:?}", yard.kind, given.name));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of them:\n{}", wrong.len(), wrong[..wrong.len().min(20)].join("\n"));
}

#[test]
fn what_is_not_there_is_named_as_buildkit_names_it() {
    let [yard, _] = Yard::both();
    let tree = yard.tree(|root| fs::write(root.join("a"), "a").unwrap());
    let hasher = ContentHasher::new(yard.stores.clone());
    let name = tree.snapshot().unwrap().clone();
    let missing = hasher.digest(&tree, &[Selector { path: "/x".into(), ..Selector::default() }]).unwrap_err();
    assert_eq!(missing.to_string(), format!("failed to calculate checksum of ref {name}: \"/x\": not found"));
    assert!(missing.is_not_found());
    let nothing =
        hasher.digest(&Tree::empty(), &[Selector { path: "/x".into(), ..Selector::default() }]).unwrap_err();
    assert_eq!(
        nothing.to_string(),
        "failed to calculate checksum of ref scratch: /x: no such file or directory"
    );
    assert!(nothing.is_not_found());
    let below = hasher.digest(&tree, &[Selector { path: "/a/x".into(), ..Selector::default() }]).unwrap_err();
    assert_eq!(
        chain(&below),
        format!("failed to calculate checksum of ref {name}: lstat /a/x: not a directory")
    );
}

#[test]
fn the_empty_tree_has_the_digest_of_nothing() {
    let [yard, _] = Yard::both();
    let hasher = ContentHasher::new(yard.stores.clone());
    let nothing = Digest::sha256_of(b"");
    assert_eq!(hasher.digest(&Tree::empty(), &[]).unwrap(), of_one(nothing.as_str()));
    assert!(hasher.digest(&Tree::empty(), &[Selector { path: "/x".into(), ..Selector::default() }]).is_err());
}

#[test]
fn several_selectors_are_joined() {
    let [yard, _] = Yard::both();
    let hasher = ContentHasher::new(yard.stores.clone());
    let tree = yard.tree(|root| fs::write(root.join("a"), "data0").unwrap());
    // What BuildKit's own tests expect of a file with this content.
    let file = "sha256:cd8e75bca50f2d695f220d0cb0997d8ead387e4f926e8669a92d7f104cc9885b";
    let select = |path: &str| Selector { path: path.into(), ..Selector::default() };
    assert_eq!(hasher.digest(&tree, &[select("/a")]).unwrap(), of_one(file));
    let joined = Digest::sha256_of(format!("{file}\0{file}").as_bytes());
    assert_eq!(hasher.digest(&tree, &[select("/a"), select("a")]).unwrap(), joined);
}

#[test]
fn files_that_wildcards_choose_have_an_older_digest_too() {
    let [yard, _] = Yard::both();
    let tree = yard.tree(|root| {
        fs::create_dir(root.join("sub")).unwrap();
        for name in ["a.txt", "b.txt", "sub/c.txt"] {
            fs::write(root.join(name), "data0").unwrap();
        }
    });
    let file = "sha256:cd8e75bca50f2d695f220d0cb0997d8ead387e4f926e8669a92d7f104cc9885b";
    let older = |chosen: &str| of_one(Digest::sha256_of(chosen.as_bytes()).as_str());
    let wild = |path: &str| Selector { path: path.into(), wildcard: true, ..Selector::default() };
    let excluding = Selector { exclude_patterns: vec!["b.txt".into()], ..wild("/*.txt") };
    // Names joined as `Checksum` of BuildKit before 0.26 did.
    for (selector, expected) in [
        (wild("/*.txt"), Some(older(&format!("a.txt{file}\0b.txt{file}")))),
        (wild("/s*b/c.txt"), None),
        (wild("/*/*.txt"), Some(older(&format!("c.txt{file}")))),
        (wild("/nothing*"), None),
        // Where directories or patterns chose, other trees have the same digest.
        (wild("/s*"), None),
        (excluding, None),
        (Selector { path: "/a.txt".into(), ..Selector::default() }, None),
    ] {
        // Asked anew, and from memory.
        let hasher = ContentHasher::new(yard.stores.clone());
        for _ in 0..2 {
            let found = hasher.digests(&tree, std::slice::from_ref(&selector)).unwrap();
            assert_eq!(found.before_0_26, expected, "{selector:?}");
            assert_eq!(found.digest, hasher.digest(&tree, std::slice::from_ref(&selector)).unwrap());
        }
    }
}

#[test]
fn a_received_tree_has_the_digest_that_buildkit_gives_it() {
    let [yard, _] = Yard::both();
    let hasher = ContentHasher::new(yard.stores.clone());
    // From `HandleChange` and, for the other, from a scan of the same files, by BuildKit's package.
    for (received, checksum) in [
        (true, "sha256:30b1ec2d9bab1f4294d7ed4d3ed94a48f2b5ebc3045c92b6645167796302f5db"),
        (false, "sha256:c7781e9bbac06edf7c9f50b0e1e483a087a72801abf8f87013b8f6182f576e37"),
    ] {
        let draft = yard.stores.begin(&Tree::empty()).unwrap();
        let root = draft.directory().unwrap();
        fs::set_permissions(root, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let entry = |path: &str, kind: &str, mode, content: &str, link: &str| Entry {
            path: path.into(),
            kind: kind.into(),
            mode,
            content: content.into(),
            link: link.into(),
            ..Entry::default()
        };
        let entries = [
            entry("d0", "dir", 0o755, "", ""),
            entry("d0/abc", "file", 0o644, "data0", ""),
            entry("d0/def", "symlink", 0, "", "abc"),
            entry("foo", "file", 0o644, "data0", ""),
        ];
        golden::make(root, &entries);
        if received {
            draft.mark_received().unwrap();
        }
        let tree = draft.commit().unwrap();
        assert_eq!(hasher.digest(&tree, &[]).unwrap(), of_one(checksum), "received: {received}");
    }
}

#[test]
fn the_root_of_a_received_tree_does_not_count() {
    let [yard, _] = Yard::both();
    let hasher = ContentHasher::new(yard.stores.clone());
    let context = |uid, received: bool| {
        let draft = yard.stores.begin(&Tree::empty()).unwrap();
        let root = draft.directory().unwrap();
        fs::write(root.join("a"), "a").unwrap();
        chown(root, Some(uid), None).unwrap();
        if received {
            draft.mark_received().unwrap();
        }
        hasher.digest(&draft.commit().unwrap(), &[]).unwrap()
    };
    assert_eq!(context(1, true), context(2, true));
    assert_ne!(context(1, false), context(2, false));
    assert_ne!(context(1, true), context(1, false));
}

#[test]
fn shared_files_are_known_and_changed_ones_are_not() {
    let [yard, _] = Yard::both();
    let hasher = ContentHasher::new(yard.stores.clone());
    let digest = |tree: &Tree| hasher.digest(tree, &[]).unwrap();
    let one = yard.tree(|root| {
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("d/a"), "one").unwrap();
        fs::write(root.join("d/b"), "two").unwrap();
    });
    // Old enough to be remembered.
    while hasher_age(&yard, &one) < std::time::Duration::from_millis(100) {
        std::thread::yield_now();
    }
    let first = digest(&one);
    let linked = yard.tree(|root| {
        fs::create_dir(root.join("d")).unwrap();
        yard.look(&one, |from| {
            for name in ["d/a", "d/b"] {
                // The way round by a directory that is no detached mount.
                let from = fs::canonicalize(from.join(name)).unwrap();
                fs::hard_link(from, root.join(name)).unwrap();
            }
        });
    });
    assert_eq!(digest(&linked), first);
    let renamed = yard.tree(|root| {
        fs::create_dir(root.join("d")).unwrap();
        yard.look(&one, |from| {
            let from = fs::canonicalize(from.join("d")).unwrap();
            fs::hard_link(from.join("a"), root.join("d/b")).unwrap();
            fs::hard_link(from.join("b"), root.join("d/a")).unwrap();
        });
    });
    let fresh = ContentHasher::new(yard.stores.clone());
    assert_eq!(digest(&renamed), fresh.digest(&renamed, &[]).unwrap());
    assert_ne!(digest(&renamed), first);
}

fn hasher_age(yard: &Yard, tree: &Tree) -> std::time::Duration {
    yard.look(tree, |root| {
        fs::metadata(root.join("d/b")).unwrap().created().unwrap().elapsed().unwrap_or_default()
    })
}

#[test]
fn a_digest_follows_content_that_changes_behind_equal_times() {
    for yard in Yard::both() {
        let hasher = ContentHasher::new(yard.stores.clone());
        let time = Timespec { tv_sec: 1_000_000, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        let write = |root: &Path, text: &str| {
            fs::write(root.join("a"), text).unwrap();
            rustix::fs::utimensat(CWD, root.join("a"), &times, AtFlags::empty()).unwrap();
        };
        let one = yard.tree(|root| write(root, "one"));
        let first = hasher.digest(&one, &[]).unwrap();
        for text in ["two", "six"] {
            let two = yard.change(&one, |root| write(root, text));
            assert_ne!(hasher.digest(&two, &[]).unwrap(), first);
            let same = yard.change(&two, |root| write(root, "one"));
            assert_eq!(hasher.digest(&same, &[]).unwrap(), first);
        }
    }
}

#[test]
fn what_was_learned_of_files_is_not_read_again_and_is_of_one_tree() {
    for yard in Yard::both() {
        let write = |root: &Path| {
            fs::create_dir(root.join("d")).unwrap();
            fs::write(root.join("d/a"), "content").unwrap();
        };
        let (tree, other) = (yard.tree(write), yard.tree(write));
        let record = |content: &str| {
            let text = format!("{}{content}", lapstrake_builder_files::file_prefix(0o644, 0, 0, 7));
            <[u8; 32]>::from(<sha2::Sha256 as sha2::Digest>::digest(text))
        };
        let digests = |content: &str| {
            let hasher = ContentHasher::new(yard.stores.clone());
            hasher.learn(&tree, || [(b"d/a".to_vec(), record(content))].into());
            [&tree, &other].map(|tree| hasher.digest(tree, &[]).unwrap())
        };
        let [right, read] = digests("content");
        assert_eq!(right, read);
        let [believed, read] = digests("another");
        assert!(believed != right && read == right);
    }
}
