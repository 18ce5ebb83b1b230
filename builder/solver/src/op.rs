//! What the solver asks of ops.

use std::sync::Arc;

use futures::future::BoxFuture;
use lapstrake_builder_progress::VertexHandle;
use lapstrake_layerstore_oci::Digest;
use tokio_util::sync::CancellationToken;

use crate::{KeyId, scopes::Witness};

/// The types that a solver works with.
pub trait Types: Send + Sync + 'static {
    /// A result. Cloning it is cheap, and every clone keeps what it names alive.
    type Value: Clone + Send + Sync + 'static;
    /// What an op may use of the builds that wait for it: sessions, credentials, limits.
    type Scope: Clone + Send + Sync + 'static;
    /// How ops fail.
    type Error: std::error::Error + Send + Sync + 'static;
    /// What is known of ops afterwards ([`Op::told`]).
    type Told: Clone + Send + Sync + 'static;

    /// Whether a build's client is still there, where that can be told. An op's failure while a client went away is not held against
    /// other builds: they run it again.
    fn alive(scope: &Self::Scope) -> bool {
        let _ = scope;
        true
    }
}

/// One op, ready to run. Made once for a vertex, however many builds have it.
pub trait Op<X: Types>: Send + Sync {
    /// What the op is for the cache. Asked at most once at a time, and not again once answered.
    ///
    /// An op whose input is outside of the graph (an image, a repository) finds out here which one it is. If that takes time, it
    /// says so with [`VertexHandle::start`]. Dropping the future cancels it.
    fn cache_map<'a>(&'a self, cx: &'a OpContext<X>) -> BoxFuture<'a, Result<CacheMap, X::Error>>;

    /// What else caches may know the op as. Asked after [`Op::cache_map`] has answered, for caches that a build brings with it: others made
    /// them.
    fn aliases(&self) -> Vec<Alias> {
        Vec::new()
    }

    /// What is known of the op once [`Op::cache_map`] has answered, for who asks afterwards what a result was made of.
    fn told(&self) -> Option<X::Told> {
        None
    }

    /// The digest of what counts of input `input`; asked only where the cache map says that content counts.
    /// Dropping the future cancels it.
    fn content<'a>(
        &'a self,
        cx: &'a OpContext<X>,
        input: usize,
        value: X::Value,
    ) -> BoxFuture<'a, Result<Digest, X::Error>>;

    /// What older builders made of the same content, if no other content has it. Asked after [`Op::content`] has answered for the input.
    fn other_content(&self, input: usize) -> Option<Digest> {
        let _ = input;
        None
    }

    /// Hears why no cache has the op's result; asked once before each [`Self::exec`], and never for an op whose result is found. By then
    /// the vertex has started. Dropping the future cancels it.
    fn missed<'a>(&'a self, cx: &'a OpContext<X>, miss: Miss<'a, X::Value>) -> BoxFuture<'a, ()> {
        let _ = (cx, miss);
        Box::pin(std::future::ready(()))
    }

    /// Runs the op and returns its outputs in order. The future is not dropped: when `cx.cancel` is cancelled it must end soon,
    /// leaving nothing behind, and what it then returns does not matter.
    fn exec<'a>(
        &'a self,
        cx: &'a OpContext<X>,
        inputs: Vec<X::Value>,
    ) -> BoxFuture<'a, Result<Vec<X::Value>, X::Error>>;
}

/// What an op is for the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheMap {
    /// Everything but its inputs that decides what it makes.
    pub digest: Digest,
    /// How each input counts.
    pub deps: Vec<Dep>,
    /// Whether the digest means nothing to another build, because the op depends on what only this one has (a client's directory). Then
    /// no key is made of it: the result is found by its content only, and not saved.
    pub ephemeral: bool,
}

/// What else an op may be known as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    /// As [`CacheMap::digest`], as text: not all builders made digests.
    pub name: Arc<str>,
    /// As [`Dep::selector`], for each input.
    pub selectors: Vec<Option<Digest>>,
}

/// How one input counts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dep {
    /// What part of the input counts, where the input is known by its definition.
    pub selector: Option<Digest>,
    /// Whether the op can also tell the input's content ([`Op::content`]).
    pub content: bool,
}

/// An op whose result no cache has.
#[derive(Debug, Clone)]
pub struct Miss<'a, V> {
    /// Why.
    pub cause: MissCause,
    /// What the op is for the cache.
    pub map: &'a CacheMap,
    /// The results that it will run on.
    pub inputs: &'a [V],
    /// Of each input, the keys that links to the op's result may lead from.
    pub keys: &'a [InputKeys],
}

/// The keys of one input that links may lead from, each with its selector.
pub type InputKeys = Vec<(KeyId, Option<Digest>)>;

/// Why no cache has an op's result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MissCause {
    /// No cache was asked: the vertex says so (`no-cache`).
    NoCache,
    /// It has no key, because it depends on what only this build has.
    Ephemeral,
    /// It has a key, and the result that the key had is gone.
    Pruned,
    /// It has no key yet.
    Unknown {
        /// The inputs from none of whose keys a link of this op leads on. Empty when each input leads somewhere but not all to the same
        /// key, and when the op has no inputs.
        inputs: Vec<u32>,
    },
}

/// What an op may use while it works.
pub struct OpContext<X: Types> {
    /// Where it reports.
    pub vertex: VertexHandle,
    /// Cancelled when no build waits for it any more.
    pub cancel: CancellationToken,
    pub(crate) witness: Witness<X>,
}

impl<X: Types> OpContext<X> {
    /// The builds that wait for this op now, longest waiting first. An op that needs something of a client (a secret, a
    /// credential) asks one after the other, so that it survives any one of them.
    ///
    /// If the op then fails, builds that were not among these run it again for themselves.
    pub fn scopes(&self) -> Vec<X::Scope> {
        self.witness.scopes()
    }

    /// The same builds, for what cannot make the op fail: to tell them something, or to see whether they have anything to offer. A failure is
    /// everybody's, whoever was seen this way.
    pub fn peek_scopes(&self) -> Vec<X::Scope> {
        self.witness.peek()
    }
}

impl<X: Types> std::fmt::Debug for OpContext<X> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpContext").field("vertex", &self.vertex).finish_non_exhaustive()
    }
}
