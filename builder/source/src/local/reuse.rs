//! What transfers share: each begins as the tree that the last one left, hard-linked, or, where nothing is new, leaves that tree itself.

use std::{
    collections::HashSet,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    sync::Arc,
};

use lapstrake_builder_cache::PreviousContext;
use lapstrake_builder_files::{FileRecords, file_prefix};
use lapstrake_layerstore_store::{Draft, OpenSnapshot, Tree, Usage};
use lapstrake_session::{
    Destination, TransferError,
    fsutil::{FileKind, FileStat, Fork, Index},
};
use parking_lot::Mutex;

use super::{Listing, LocalSpec};
use crate::{SourceError, sources::Shared};

/// What the last transfer of a directory left, to begin the next one with. Used by one transfer of a directory at a time.
pub(super) struct Reuse {
    tree: Option<Tree>,
    pub(super) listing: Listing,
}

impl Reuse {
    /// What is remembered of the directory `key`.
    pub(super) fn find(shared: &Shared, key: &str) -> Result<Self, SourceError> {
        Ok(match shared.cache.previous_context(key)? {
            Some(PreviousContext { tree, listing }) => {
                let listing = Listing::from_bytes(&listing).unwrap_or_default();
                Self { tree: Some(tree), listing }
            }
            None => Self::nothing(),
        })
    }

    /// Nothing is remembered.
    pub(super) fn nothing() -> Self {
        Self { tree: None, listing: Listing::default() }
    }

    /// Begins the next transfer, and says where it goes: to what the last one left, which it only reads, until there is something to write;
    /// then to a draft that begins as that.
    pub(super) fn begin(
        self,
        shared: &Arc<Shared>,
        spec: &Arc<LocalSpec>,
    ) -> Result<(Begun, Destination), SourceError> {
        let failed = |source| SourceError::Copy { origin: spec.origin(), source };
        let before = match &self.tree {
            Some(tree) => shared.stores.open(tree)?.map(|open| (tree.clone(), open)),
            None => None,
        };
        let whole = match &before {
            Some((_, open)) => self.listing.index.whole(open.root()).map_err(failed)?,
            None => None,
        };
        let forked = MaybeForked::default();
        let (previous, (dir, fork, index)) = match (before, whole) {
            (Some((tree, open)), Some(index)) => {
                let dir = root_of(&open)?;
                let (shared, spec, forked) = (Arc::clone(shared), Arc::clone(spec), Arc::clone(&forked));
                let fork: Fork = Box::new(move || {
                    self.fork(&shared, &spec, &forked).map_err(|error| TransferError::Io {
                        operation: "begin a draft of",
                        path: spec.name.clone().into(),
                        source: std::io::Error::other(error),
                    })
                });
                (Some((tree, open)), (dir, Some(fork), index))
            }
            _ => {
                let (dir, index) = self.fork(shared, spec, &forked)?;
                (None, (dir, None, index))
            }
        };
        let destination = Destination {
            fork,
            compare: spec.compare,
            limits: shared.limits.directory,
            prefix: record_prefix,
            ..Destination::new(dir, index)
        };
        Ok((Begun { previous, forked }, destination))
    }

    /// Makes a draft that begins as the last transfer's tree, and leaves it in `forked`. Its root, and the index of what is in it.
    fn fork(
        self,
        shared: &Shared,
        spec: &LocalSpec,
        forked: &MaybeForked,
    ) -> Result<(OwnedFd, Index), SourceError> {
        let draft = shared.stores.begin(&Tree::empty())?;
        let to = draft.open()?;
        let mut index = Index::default();
        if let Some(tree) = &self.tree
            && let Some(from) = shared.stores.open(tree)?
        {
            index = self
                .listing
                .index
                .clone_tree(from.root(), to.root())
                .map_err(|source| SourceError::Copy { origin: spec.origin(), source })?;
        }
        let dir = root_of(&to)?;
        *forked.lock() = Some(Forked { draft, open: to, from: self.tree, linked: index.inodes() });
        Ok((dir, index))
    }
}

/// The draft that a transfer writes to.
struct Forked {
    draft: Draft,
    /// What keeps its root open.
    open: OpenSnapshot,
    /// The tree that it began as.
    from: Option<Tree>,
    /// Which of that tree's files it began with.
    linked: HashSet<u64>,
}

impl Forked {
    /// What the transfer left of them is counted with that tree.
    fn share(&self, listing: &Listing) -> Result<(), SourceError> {
        let Some(with) = self.from.as_ref().and_then(Tree::snapshot) else { return Ok(()) };
        let left = listing.index.allocated(self.linked.clone());
        let usage = left.fold(Usage::default(), |sum, bytes| sum + Usage { bytes, inodes: 1 });
        if usage.inodes > 0 {
            self.draft.share(with, usage)?;
        }
        Ok(())
    }
}

/// It, if there is something to write.
type MaybeForked = Arc<Mutex<Option<Forked>>>;

/// What makes a transfer's digests those of the files' records in content digests: nobody reads the files again for them.
fn record_prefix(stat: &FileStat) -> Vec<u8> {
    let FileKind::Regular { size } = stat.kind else { return Vec::new() };
    file_prefix(stat.mode, stat.uid, stat.gid, size).into_bytes()
}

/// Records of the files that a transfer left, as far as it knows them: of those with extended attributes, these are part of it, and what a
/// link leads to may have some.
fn records(listing: &Listing) -> FileRecords {
    let known =
        listing.index.entries().iter().filter(|entry| {
            matches!(entry.stat.kind, FileKind::Regular { .. }) && entry.stat.xattrs.is_empty()
        });
    known.filter_map(|entry| Some((entry.path.as_os_str().as_bytes().to_vec(), entry.digest?))).collect()
}

fn root_of(open: &OpenSnapshot) -> Result<OwnedFd, SourceError> {
    open.root().try_clone_to_owned().map_err(SourceError::io("open", "a tree"))
}

/// A transfer that has begun. Kept until it is done.
pub(super) struct Begun {
    /// What it reads as long as it writes nothing.
    previous: Option<(Tree, OpenSnapshot)>,
    forked: MaybeForked,
}

impl Begun {
    /// The tree that the transfer left, remembered for the next one of `key`, if that says which directory it is.
    ///
    /// A crash before the commit leaves a draft that nobody names; between the two, a tree that nobody names. What is remembered names
    /// only a tree that is committed, and files that a power cut took are not what the listing says they are.
    pub(super) fn finish(
        self,
        shared: &Shared,
        spec: &LocalSpec,
        key: Option<&str>,
        listing: &Listing,
    ) -> Result<Tree, SourceError> {
        let Some(forked) = self.forked.lock().take() else {
            let (tree, _) = self.previous.expect("what begins with nothing has a draft");
            shared.content.learn(&tree, || records(listing));
            shared.cache.context_used(&tree)?;
            return Ok(tree);
        };
        forked.share(listing)?;
        let Forked { draft, open, .. } = forked;
        drop(open);
        draft.mark_received()?;
        let tree = draft.commit()?;
        shared.content.learn(&tree, || records(listing));
        if let Some(key) = key {
            let description = format!("local source for {}", spec.name);
            shared.cache.remember_context(key, &tree, &listing.to_bytes(), &description)?;
        }
        Ok(tree)
    }
}
