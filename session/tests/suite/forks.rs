//! A transfer that begins with an immutable tree: it writes nothing while nothing differs, and then to a clone.

use std::{
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use lapstrake_session::{
    Destination, Received,
    fsutil::{Compare, Index},
};
use proptest::prelude::*;

use crate::{
    common::{
        fixture::{Fixture, check, on_disk, open},
        tree::{Tree, dir, file, symlink, tree},
    },
    sync::{any_tree, sound},
};

/// Where clones go, and how many were made.
struct Clones {
    place: tempfile::TempDir,
    made: Arc<AtomicUsize>,
    /// Left out of every clone, as what has too many links is.
    left_out: Option<PathBuf>,
}

impl Clones {
    fn new() -> Self {
        Self { place: tempfile::tempdir().unwrap(), made: Arc::default(), left_out: None }
    }

    /// A transfer that begins with what `index` says of the fixture's directory. `None` where that is not whole.
    async fn sync(&self, fixture: &Fixture, index: &Index, compare: Compare) -> Option<Received> {
        let whole = index.whole(open(fixture.dest.path()).as_fd()).unwrap()?;
        let (from, to) = (open(fixture.dest.path()), self.place.path().to_owned());
        let (made, mut cloned, left_out) = (Arc::clone(&self.made), whole.clone(), self.left_out.clone());
        let fork = Box::new(move || {
            made.fetch_add(1, Ordering::SeqCst);
            cloned.retain_files(|entry| Some(&entry.path) != left_out.as_ref());
            let index = cloned.clone_tree(from.as_fd(), open(&to).as_fd())?;
            Ok((open(&to), index))
        });
        let destination =
            Destination { fork: Some(fork), compare, ..Destination::new(open(fixture.dest.path()), whole) };
        Some(fixture.sync_to(destination).await.unwrap())
    }

    fn made(&self) -> usize {
        self.made.load(Ordering::SeqCst)
    }
}

fn small() -> Tree {
    tree([
        ("d", dir(0o755)),
        ("d/a", file(0o644, &[7; 200_000])),
        ("d/b", symlink("a")),
        ("e", file(0o600, b"")),
        ("f", file(0o644, b"f")),
    ])
}

#[tokio::test]
async fn what_is_unchanged_is_read_and_nothing_is_written() {
    for compare in [Compare::Content, Compare::Metadata] {
        let (fixture, clones) = (Fixture::new(small()).await, Clones::new());
        let first = fixture.sync(Index::default()).await;
        let received = clones.sync(&fixture, &first.index, compare).await.unwrap();
        assert_eq!((clones.made(), received.files_written), (0, 0));
        check(&fixture.tree.lock(), &received, fixture.dest.path());
        assert_eq!(on_disk(clones.place.path()), []);
        // What came of it begins the next one.
        clones.sync(&fixture, &received.index, compare).await.unwrap();
        assert_eq!(clones.made(), 0);
    }
}

#[tokio::test]
async fn new_contents_under_the_old_time_go_to_a_clone() {
    let (fixture, clones) = (Fixture::new(small()).await, Clones::new());
    let first = fixture.sync(Index::default()).await;
    let before = on_disk(fixture.dest.path());
    // The last byte: all that came before it has been compared with the old file.
    fixture.tree.lock().get_mut(Path::new("d/a")).unwrap().data[199_999] = 8;
    let received = clones.sync(&fixture, &first.index, Compare::Content).await.unwrap();
    assert_eq!((clones.made(), received.files_written), (1, 1));
    check(&fixture.tree.lock(), &received, clones.place.path());
    assert_eq!(on_disk(fixture.dest.path()), before);
    assert_eq!(std::fs::read(fixture.dest.path().join("d/a")).unwrap(), [7; 200_000]);
}

#[tokio::test]
async fn what_a_clone_leaves_out_is_copied_when_it_was_already_compared() {
    let (fixture, mut clones) = (Fixture::new(small()).await, Clones::new());
    clones.left_out = Some("d/a".into());
    let first = fixture.sync(Index::default()).await;
    fixture.tree.lock().get_mut(Path::new("f")).unwrap().data = b"g".to_vec();
    let received = clones.sync(&fixture, &first.index, Compare::Content).await.unwrap();
    assert_eq!(clones.made(), 1);
    check(&fixture.tree.lock(), &received, clones.place.path());
}

#[tokio::test]
async fn a_tree_that_is_not_as_it_was_left_is_not_whole() {
    for spoil in [
        |root: &Path| std::fs::remove_file(root.join("f")).unwrap(),
        |root: &Path| std::fs::write(root.join("f"), "longer").unwrap(),
        |root: &Path| std::fs::write(root.join("d/more"), "").unwrap(),
        |root: &Path| {
            std::fs::remove_dir_all(root.join("d")).unwrap();
            std::os::unix::fs::symlink("..", root.join("d")).unwrap();
        },
    ] {
        let fixture = Fixture::new(small()).await;
        let first = fixture.sync(Index::default()).await;
        spoil(fixture.dest.path());
        assert!(first.index.whole(open(fixture.dest.path()).as_fd()).unwrap().is_none());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_change_arrives_in_the_clone_and_the_tree_it_began_with_stays(
        one in any_tree().prop_filter("sound", sound),
        two in any_tree().prop_filter("sound", sound),
        same in any::<bool>(),
        content in any::<bool>(),
    ) {
        let two = if same { one.clone() } else { two };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (fixture, clones) = (Fixture::new(one.clone()).await, Clones::new());
            let first = fixture.sync(Index::default()).await;
            let before = on_disk(fixture.dest.path());
            *fixture.tree.lock() = two.clone();
            let compare = if content { Compare::Content } else { Compare::Metadata };
            let received = clones.sync(&fixture, &first.index, compare).await.unwrap();
            let forked = clones.made() == 1;
            prop_assert!(forked || one == two);
            check(&two, &received, if forked { clones.place.path() } else { fixture.dest.path() });
            prop_assert_eq!(on_disk(fixture.dest.path()), before);
            let links = one.values().any(|node| node.stat.mode & crate::common::tree::SYMLINK == 0 && !node.stat.linkname.is_empty());
            prop_assert!(!same || links || !forked);
            Ok(())
        })?;
    }
}
