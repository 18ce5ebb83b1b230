//! A directory of a client, transferred; and what transfers share: the tree of the last one, hard-linked.

use std::{os::fd::OwnedFd, sync::Arc, time::Duration};

use lapstrake_builder_cache::PreviousContext;
use lapstrake_layerstore_store::{Draft, OpenSnapshot, Tree};
use lapstrake_session::{
    Destination, Error, SessionCaller, SyncRequest, TransferError, Wait,
    fsutil::{Fork, Index},
};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Listing, LocalSpec};
use crate::{SourceContext, SourceError, sources::Shared};

/// How often progress is told.
const TICK: Duration = Duration::from_millis(100);

/// Transfers the directory from the session that the op names, or from any of those that wait.
pub(super) async fn transfer(
    shared: &Arc<Shared>,
    spec: &Arc<LocalSpec>,
    cx: &SourceContext,
) -> Result<Tree, SourceError> {
    if let Some(id) = &spec.session
        && let Ok(caller) = cx.or_canceled(shared.sessions.get(id, Wait::default())).await?
    {
        match from(shared, spec, cx, &caller).await {
            // Gone while it was asked: another client may have the same directory.
            Err(SourceError::Session { source: Error::Closed { .. }, .. }) if cx.sessions.len() > 1 => {}
            result => return result,
        }
    }
    let mut last = None;
    for id in &cx.sessions {
        match cx.or_canceled(shared.sessions.get(id.as_str(), Wait::default())).await? {
            Ok(caller) => match from(shared, spec, cx, &caller).await {
                Err(error @ SourceError::Session { .. }) => last = Some(error),
                result => return result,
            },
            Err(error) => last = Some(SourceError::session(&spec.origin())(error)),
        }
    }
    Err(last.unwrap_or_else(|| SourceError::NoDirectory { origin: spec.origin() }))
}

async fn from(
    shared: &Arc<Shared>,
    spec: &Arc<LocalSpec>,
    cx: &SourceContext,
    caller: &SessionCaller,
) -> Result<Tree, SourceError> {
    // A client that does not say which directory it is could have any: with other files of the same names, sizes and times.
    let known = !caller.shared_key().is_empty();
    // BuildKit's shared key.
    let key = format!("{}:{}:{}", spec.name, spec.hint, caller.shared_key());
    let _turn = if known { Some(cx.or_canceled(shared.turns.take(&key)).await?) } else { None };
    // The draft, once there is something to write.
    let forked: Forked = Arc::default();
    let (previous, destination) = {
        let (shared, spec, key, forked) =
            (Arc::clone(shared), Arc::clone(spec), key.clone(), Arc::clone(&forked));
        SourceError::blocking(move || {
            let reuse = if known { Reuse::find(&shared, &key)? } else { Reuse::nothing() };
            reuse.destination(&shared, &spec, &forked)
        })
        .await?
    };
    let request = SyncRequest {
        name: spec.name.clone(),
        include_patterns: spec.include.clone().unwrap_or_default(),
        exclude_patterns: spec.exclude.clone().unwrap_or_default(),
        follow_paths: spec.follow.clone().unwrap_or_default(),
    };
    let (bytes, seen) = watch::channel(0);
    let sync = caller.sync_dir(&request, destination, Some(&bytes), &cx.cancel);
    let received = watched(sync, seen, spec, cx).await.map_err(SourceError::session(&spec.origin()))?;
    let (shared, spec) = (Arc::clone(shared), Arc::clone(spec));
    SourceError::blocking(move || {
        let Some((draft, open)) = forked.lock().take() else {
            let (tree, _) = previous.expect("what begins with nothing has a draft");
            shared.cache.context_used(&tree)?;
            return Ok(tree);
        };
        drop(open);
        if !known {
            draft.mark_received()?;
            return Ok(draft.commit()?);
        }
        let listing = Listing { index: received.index, extra: Vec::new() };
        Reuse::keep(&shared, &key, draft, &listing, &spec)
    })
    .await
}

/// The draft that a transfer writes to, if it does, and what keeps its root open.
type Forked = Arc<Mutex<Option<(Draft, OpenSnapshot)>>>;

fn root_of(open: &OpenSnapshot) -> Result<OwnedFd, SourceError> {
    open.root().try_clone_to_owned().map_err(SourceError::io("open", "a tree"))
}

/// Tells progress while `work` goes on.
async fn watched<T>(
    work: impl Future<Output = T>,
    bytes: watch::Receiver<u64>,
    spec: &LocalSpec,
    cx: &SourceContext,
) -> T {
    let mut part = cx.vertex.part(spec.part(), "transferring", 0);
    let mut tick = tokio::time::interval(TICK);
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => {
                part.update(*bytes.borrow(), 0);
                return done;
            }
            _ = tick.tick() => part.update(*bytes.borrow(), 0),
        }
    }
}

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

    /// Where the next transfer goes: to what the last one left, which it only reads, until there is something to write; then to a draft that
    /// begins as that, left in `forked`. What is returned first must be kept until the transfer is done.
    fn destination(
        self,
        shared: &Arc<Shared>,
        spec: &Arc<LocalSpec>,
        forked: &Forked,
    ) -> Result<(Option<(Tree, OpenSnapshot)>, Destination), SourceError> {
        let failed = |source| SourceError::Copy { origin: spec.origin(), source };
        let before = match &self.tree {
            Some(tree) => shared.stores.open(tree)?.map(|open| (tree.clone(), open)),
            None => None,
        };
        let whole = match &before {
            Some((_, open)) => self.listing.index.whole(open.root()).map_err(failed)?,
            None => None,
        };
        let (previous, (dir, fork, index)) = match (before, whole) {
            (Some((tree, open)), Some(index)) => {
                let dir = root_of(&open)?;
                let (shared, spec, forked) = (Arc::clone(shared), Arc::clone(spec), Arc::clone(forked));
                let fork: Fork = Box::new(move || {
                    let made = || -> Result<(OwnedFd, Index), SourceError> {
                        let (draft, index) = self.begin(&shared, &spec)?;
                        let open = draft.open()?;
                        let dir = root_of(&open)?;
                        *forked.lock() = Some((draft, open));
                        Ok((dir, index))
                    };
                    made().map_err(|error| TransferError::Io {
                        operation: "begin a draft of",
                        path: spec.name.clone().into(),
                        source: std::io::Error::other(error),
                    })
                });
                (Some((tree, open)), (dir, Some(fork), index))
            }
            _ => {
                let (draft, index) = self.begin(shared, spec)?;
                let open = draft.open()?;
                let dir = root_of(&open)?;
                *forked.lock() = Some((draft, open));
                (None, (dir, None, index))
            }
        };
        let destination = Destination {
            fork,
            compare: spec.compare,
            limits: shared.limits.directory,
            ..Destination::new(dir, index)
        };
        Ok((previous, destination))
    }

    /// A draft that begins as the last transfer's tree, and the index of what is in it.
    pub(super) fn begin(self, shared: &Shared, spec: &LocalSpec) -> Result<(Draft, Index), SourceError> {
        let draft = shared.stores.begin(&Tree::empty())?;
        let mut index = Index::default();
        if let Some(tree) = &self.tree
            && let Some(from) = shared.stores.open(tree)?
        {
            let to = draft.open()?;
            index = self
                .listing
                .index
                .clone_tree(from.root(), to.root())
                .map_err(|source| SourceError::Copy { origin: spec.origin(), source })?;
        }
        Ok((draft, index))
    }

    /// Commits the draft and remembers it for the next transfer.
    ///
    /// A crash before the commit leaves a draft that nobody names; between the two, a tree that nobody names. What is remembered names
    /// only a tree that is committed, and files that a power cut took are not what the listing says they are.
    pub(super) fn keep(
        shared: &Shared,
        key: &str,
        draft: Draft,
        listing: &Listing,
        spec: &LocalSpec,
    ) -> Result<Tree, SourceError> {
        draft.mark_received()?;
        let tree = draft.commit()?;
        let description = format!("local source for {}", spec.name);
        shared.cache.remember_context(key, &tree, &listing.to_bytes(), &description)?;
        Ok(tree)
    }
}
