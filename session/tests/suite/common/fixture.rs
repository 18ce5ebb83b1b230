//! A client with a tree, and a destination to receive it in.

use std::{os::fd::OwnedFd, path::Path, sync::Arc};

use lapstrake_api_proto::fsutil::{Packet, Stat};
use lapstrake_session::{
    Destination, DirTree, Error, Received, SyncRequest, TransferError, TreeReader,
    fsutil::{Index, TreeEntry},
};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::{
    Client, Connected, Seen, Sync, stat_packet,
    tree::{self, Node, Tree, expected},
};

pub(crate) fn open(path: &Path) -> OwnedFd {
    std::fs::File::open(path).unwrap().into()
}

pub(crate) fn on_disk(path: &Path) -> Vec<TreeEntry> {
    let mut entries = Vec::new();
    DirTree::new(open(path))
        .walk(&mut |entry| {
            entries.push(entry);
            Ok(())
        })
        .unwrap();
    entries
}

/// A client with a tree that may be changed, and a destination.
pub(crate) struct Fixture {
    pub(crate) tree: Arc<Mutex<Tree>>,
    pub(crate) seen: Arc<Mutex<Seen>>,
    pub(crate) session: Connected,
    pub(crate) dest: tempfile::TempDir,
}

impl Fixture {
    pub(crate) async fn new(tree: Tree) -> Self {
        let tree = Arc::new(Mutex::new(tree));
        let client = Client { sync: Sync::Tree(Arc::clone(&tree)), ..Client::default() };
        let seen = Arc::clone(&client.seen);
        Self { tree, seen, session: client.connect().await, dest: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn destination(&self, previous: Index) -> Destination {
        Destination::new(open(self.dest.path()), previous)
    }

    pub(crate) async fn sync_to(&self, destination: Destination) -> Result<Received, Error> {
        let request = SyncRequest { name: "context".into(), ..SyncRequest::default() };
        self.session.caller.sync_dir(&request, destination, None, &CancellationToken::new()).await
    }

    /// A transfer that succeeds, checked against the client's tree.
    pub(crate) async fn sync(&self, previous: Index) -> Received {
        let received = self.sync_to(self.destination(previous)).await.unwrap();
        check(&self.tree.lock(), &received, self.dest.path());
        received
    }
}

pub(crate) fn check(tree: &Tree, received: &Received, dest: &Path) {
    let expected = expected(tree);
    let index: Vec<TreeEntry> = received
        .index
        .entries()
        .iter()
        .map(|e| TreeEntry { path: e.path.clone(), stat: e.stat.clone() })
        .collect();
    assert_eq!(index, expected);
    // On disk a symlink's mode is always 0777, a link's size that of its file.
    assert_eq!(
        on_disk(dest).iter().map(comparable).collect::<Vec<_>>(),
        expected.iter().map(comparable).collect::<Vec<_>>()
    );
    for entry in received.index.entries() {
        let node = &tree[&entry.path];
        let content = match node.stat.linkname.as_str() {
            "" => node,
            target if node.stat.mode & tree::SYMLINK == 0 => &tree[Path::new(target)],
            _ => continue,
        };
        if content.stat.mode & (tree::DIR | tree::FIFO) == 0 {
            assert_eq!(std::fs::read(dest.join(&entry.path)).unwrap(), content.data, "{:?}", entry.path);
            let digest: [u8; 32] = Sha256::digest(&content.data).into();
            assert_eq!(entry.digest, Some(digest), "{:?}", entry.path);
        } else {
            assert_eq!(entry.digest, None);
        }
    }
}

pub(crate) fn comparable(entry: &TreeEntry) -> TreeEntry {
    use lapstrake_session::fsutil::FileKind;
    let mut entry = entry.clone();
    if let FileKind::HardLink { .. } = entry.stat.kind {
        // The file's own metadata is shared by its links.
        (entry.stat.mode, entry.stat.mtime_ns, entry.stat.uid, entry.stat.gid) = (0, 0, 0, 0);
        entry.stat.xattrs.clear();
    }
    entry
}

pub(crate) fn with(mut node: Node, change: impl FnOnce(&mut Stat)) -> Node {
    change(&mut node.stat);
    node
}

/// What a transfer from a client with this behaviour fails with; the destination's surroundings are untouched.
pub(crate) async fn failure(sync: Sync, adjust: impl FnOnce(&mut Destination)) -> Error {
    let outer = tempfile::tempdir().unwrap();
    std::fs::write(outer.path().join("outside"), "safe").unwrap();
    let dest = outer.path().join("dest");
    std::fs::create_dir(&dest).unwrap();
    let client = Client { sync, ..Client::default() };
    let session = client.connect().await;
    let request = SyncRequest { name: "context".into(), ..SyncRequest::default() };
    let mut destination = Destination::new(open(&dest), Index::default());
    adjust(&mut destination);
    let error = session
        .caller
        .sync_dir(&request, destination, None, &CancellationToken::new())
        .await
        .expect_err("must fail");
    assert_eq!(std::fs::read(outer.path().join("outside")).unwrap(), b"safe");
    assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 2);
    assert!(session.caller.credentials("h").await.is_ok(), "the session lives on after {error}");
    error
}

pub(crate) fn transfer(error: Error) -> TransferError {
    match error {
        Error::Transfer { transfer, .. } => *transfer,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn named(path: &str, node: Node) -> Packet {
    stat_packet(Stat { path: path.into(), ..node.stat })
}
