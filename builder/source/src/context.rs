//! The contract of sources.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Weak},
};

use futures::future::BoxFuture;
use lapstrake_builder_progress::VertexHandle;
use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_registry::CredentialSource;
use lapstrake_layerstore_store::Tree;
use lapstrake_session::SessionId;
use tokio_util::sync::CancellationToken;

use crate::{Material, SourceError};

/// Stands for one build, from its first fact to its last step: a build sees one state of what is not pinned, however often it
/// asks. What is remembered for a build is forgotten with the last clone of its mark.
#[derive(Debug, Clone, Default)]
pub struct BuildMark(Arc<Running>);

/// Tells when the last clone of a mark is gone.
#[derive(Debug, Default)]
pub(crate) struct Running {
    ended: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

impl BuildMark {
    /// What tells whether it is the same build, without keeping it.
    pub(crate) fn watch(&self) -> Weak<Running> {
        Arc::downgrade(&self.0)
    }

    /// Cancelled when the build is over.
    pub(crate) fn ended(&self) -> CancellationToken {
        self.0.ended.clone()
    }

    pub(crate) fn is_of(&self, watch: &Weak<Running>) -> bool {
        std::ptr::eq(Arc::as_ptr(&self.0), watch.as_ptr())
    }
}

/// What a source may use of the builds that wait for it.
#[derive(Clone)]
pub struct SourceContext {
    /// The builds themselves.
    pub builds: Vec<BuildMark>,
    /// Sessions to ask, one after the other.
    pub sessions: Vec<SessionId>,
    /// Credentials for registries, one after the other.
    pub credentials: Vec<Arc<dyn CredentialSource>>,
    /// Directories that are not with a session, by the id that the op carries as `local.unique` or `local.session`.
    pub locals: HashMap<String, LocalProvider>,
    /// Where progress is reported.
    pub vertex: VertexHandle,
    /// Cancelled when nobody waits any more.
    pub cancel: CancellationToken,
}

impl SourceContext {
    /// Waits for something that leaves nothing behind when it is dropped.
    pub(crate) async fn or_canceled<T>(&self, work: impl Future<Output = T>) -> Result<T, SourceError> {
        tokio::select! {
            done = work => Ok(done),
            () = self.cancel.cancelled() => Err(SourceError::Canceled),
        }
    }
}

/// A directory that is here already.
#[derive(Debug, Clone)]
pub enum LocalProvider {
    /// A tree in the store: it came with the request. It is used as it is, without copying, unless the op's patterns leave something of it out.
    Tree(Tree),
    /// A directory of this machine, which others may write to.
    Directory(PathBuf),
}

/// Which source it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// An image.
    Image,
    /// A directory.
    Local,
    /// A git repository.
    Git,
    /// An URL.
    Http,
}

/// What can be told of a source without getting it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceFacts {
    /// No more than its name.
    Name,
    /// It is a file.
    File {
        /// Of its content.
        digest: Digest,
        /// What it is called.
        filename: String,
        /// When it was changed, in seconds since 1970, if the server says so.
        modified: Option<i64>,
    },
    /// It is a tree of a repository.
    Commit {
        /// What the reference names: a commit, or an annotated tag.
        object: String,
        /// The reference's whole name.
        reference: String,
        /// The commit that an annotated tag names.
        commit: Option<String>,
    },
}

/// What git keeps of a commit, which signatures are over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitObjects {
    /// The commit's name, where the reference names a tag.
    pub tagged: Option<String>,
    /// The commit.
    pub commit: Vec<u8>,
    /// The annotated tag that names it.
    pub tag: Option<Vec<u8>>,
}

/// One source, as an op names it.
///
/// `pin` finds out which state of the source it is, and `fetch` gets that very state: what `pin` found is kept in between.
/// Futures are cancelled by dropping; `fetch` additionally by the context's token, and then leaves nothing behind.
pub trait Source: Send + Sync {
    /// Which it is.
    fn kind(&self) -> SourceKind;

    /// For the cache's records, such as `pulled from docker.io/library/busybox:latest`.
    fn description(&self) -> String;

    /// The digest that stands for the state of the source; BuildKit's cache key for it.
    fn pin<'a>(&'a self, cx: &'a SourceContext) -> BoxFuture<'a, Result<Digest, SourceError>>;

    /// Other digests that stand for the same, by which caches of other builders may know it. Asked after `pin`.
    fn also_known_as(&self) -> Vec<Digest> {
        Vec::new()
    }

    /// What it turned out to be. Called after `pin`.
    fn material<'a>(&'a self, cx: &'a SourceContext) -> BoxFuture<'a, Result<Material, SourceError>>;

    /// What it is, as far as that can be told.
    fn facts<'a>(&'a self, cx: &'a SourceContext) -> BoxFuture<'a, Result<SourceFacts, SourceError>> {
        let _ = cx;
        Box::pin(std::future::ready(Ok(SourceFacts::Name)))
    }

    /// The objects of the repository that say who made it; `None` for what is of no repository.
    fn commit_objects<'a>(
        &'a self,
        cx: &'a SourceContext,
    ) -> BoxFuture<'a, Result<Option<CommitObjects>, SourceError>> {
        let _ = cx;
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Gets it. Called after `pin`.
    fn fetch<'a>(&'a self, cx: &'a SourceContext) -> BoxFuture<'a, Result<Tree, SourceError>>;
}
