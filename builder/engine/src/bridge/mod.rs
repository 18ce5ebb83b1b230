//! What a frontend may ask of a build: graphs to be solved, files of their results, images' metadata, containers to talk to.
//!
//! ```text
//!   buildx, compose ── LLBBridge, by the build's id ─┐
//!   gateway.v0: an image, run here ── its stdio ─────┤ service (gRPC) ─► Bridge ─► Ref: a graph, solved when somebody needs it
//!   the built-in Dockerfile frontend ────────────────┴──────────────────────┘│          └─► files, containers
//!                                                                            └─► FrontendResult ─► targets ─► export
//! ```
//!
//! All that frontends may do is here, and they are trusted with nothing: a graph is admitted as a build's own is, paths stay in their trees, and
//! everything that is held for a frontend goes with its build.

mod caps;
mod container;
mod exec;
mod failed;
mod files;
mod gateway;
mod health;
mod meta;
mod read;
mod reference;
mod result;
mod service;
mod solve;
mod status;
mod verify;
mod wire;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use lapstrake_builder_llb::Definition;
use lapstrake_builder_progress::Progress;
use lapstrake_layerstore_store::Tree;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use self::container::Containers;
pub use self::{
    caps::llb_caps,
    files::FileError,
    health::{Serving, health_service},
    reference::Ref,
    result::{FrontendResult, GatewayAttestation, Refs},
    service::{BridgeService, bridge_service, bridges_service},
    status::status_of,
};
pub(crate) use self::{result::Target, solve::SolveOrder, status::rpc_status};
use crate::{BuildId, CacheSource, Engine, EngineError, attest::Asked, caches::Imports, scope::BuildScope};

/// How long a call waits for its build to begin: clients make both at once. BuildKit's own patience.
const PATIENCE: Duration = Duration::from_secs(3);
/// Most results that one frontend may have names of.
const MAX_REFS: usize = 100_000;

/// One build, as a frontend sees it. A frontend that another one asks has a bridge of its own, to the same build.
pub struct Bridge {
    engine: Engine,
    build: Arc<BuildParts>,
    /// Graphs that the frontend was given, by name.
    inputs: BTreeMap<String, Definition>,
    /// The results that the frontend knows, by the names it knows them by.
    refs: Mutex<HashMap<String, Ref>>,
    /// What failed steps left, by the names that the frontend was told.
    left: Mutex<HashMap<String, Tree>>,
    containers: Containers,
    /// Cancelled with the build, and when the frontend has ended.
    cancel: CancellationToken,
    /// Where its answer goes, until there is one.
    answer: Mutex<Option<Answer>>,
}

/// What all bridges to a build share.
pub(crate) struct BuildParts {
    pub(crate) scope: Arc<BuildScope>,
    pub(crate) progress: Progress,
    pub(crate) cancel: CancellationToken,
    pub(crate) imports: Arc<Imports>,
    /// Caches that the build was asked to use; graphs may name others.
    pub(crate) cache_from: Vec<CacheSource>,
    /// Permits to run frontends that are images.
    pub(crate) frontends: Arc<Semaphore>,
}

impl BuildParts {
    /// Those of a build that is about to run.
    pub(crate) fn new(
        scope: Arc<BuildScope>,
        progress: &Progress,
        cancel: &CancellationToken,
        cache_from: Vec<CacheSource>,
    ) -> Arc<Self> {
        let (progress, imports) = (progress.clone(), Arc::new(Imports::new(cancel)));
        let frontends = Arc::new(Semaphore::new(gateway::MAX_RUNNING));
        Arc::new(Self { scope, progress, cancel: cancel.clone(), imports, cache_from, frontends })
    }

    /// The same for a further frontend: what that uses is its own.
    pub(crate) fn under(&self, asked: Asked) -> Arc<Self> {
        let scope = BuildScope { trail: self.scope.trail.ask(asked), ..BuildScope::clone(&self.scope) };
        Arc::new(Self {
            scope: Arc::new(scope),
            progress: self.progress.clone(),
            cancel: self.cancel.clone(),
            imports: Arc::clone(&self.imports),
            cache_from: self.cache_from.clone(),
            frontends: Arc::clone(&self.frontends),
        })
    }
}

type Answer = oneshot::Sender<Result<FrontendResult, EngineError>>;

impl Bridge {
    /// A bridge for a frontend that was given these graphs, and where its answer comes.
    pub(crate) fn new(
        engine: &Engine,
        build: &Arc<BuildParts>,
        inputs: BTreeMap<String, Definition>,
    ) -> (Arc<Self>, oneshot::Receiver<Result<FrontendResult, EngineError>>) {
        let (answer, answered) = oneshot::channel();
        let bridge = Self {
            engine: engine.clone(),
            build: Arc::clone(build),
            inputs,
            refs: Mutex::default(),
            left: Mutex::default(),
            containers: Containers::default(),
            cancel: build.cancel.child_token(),
            answer: Mutex::new(Some(answer)),
        };
        (Arc::new(bridge), answered)
    }

    /// The graphs that the frontend was given, by name.
    pub fn inputs(&self) -> &BTreeMap<String, Definition> {
        &self.inputs
    }

    /// The frontend's answer: counts once.
    pub(crate) fn answer(&self, answer: Result<FrontendResult, EngineError>) -> Result<(), EngineError> {
        let Some(waiting) = self.answer.lock().take() else {
            return Err(EngineError::Bridge { what: "gateway result is already set".to_owned() });
        };
        // A build that ended meanwhile needs none.
        let _ = waiting.send(answer);
        Ok(())
    }

    /// The frontend has ended, and so do all processes that it began.
    pub(crate) fn close(&self) {
        self.cancel.cancel();
    }

    /// Gives a result a name.
    pub(crate) fn register(&self, reference: &Ref) -> Result<String, EngineError> {
        let mut refs = self.refs.lock();
        if refs.len() >= MAX_REFS {
            return Err(EngineError::Bridge {
                what: format!("more than {MAX_REFS} results of one frontend"),
            });
        }
        refs.insert(reference.id().to_owned(), reference.clone());
        Ok(reference.id().to_owned())
    }

    /// The result of this name.
    pub(crate) fn find(&self, id: &str) -> Result<Ref, EngineError> {
        let found = self.refs.lock().get(id).cloned();
        found.ok_or_else(|| EngineError::NoSuchRef { id: id.to_owned() })
    }
}

impl Engine {
    /// The bridge of a running build whose frontend is its client; waits up to 3 s for the build to begin, as BuildKit does.
    pub async fn bridge(&self, id: &BuildId) -> Result<Arc<Bridge>, EngineError> {
        let mut bridges = self.bridges().subscribe();
        let arrived = tokio::time::timeout(PATIENCE, bridges.wait_for(|bridges| bridges.contains_key(id)));
        let found = match arrived.await {
            Ok(Ok(bridges)) => bridges.get(id).cloned(),
            // Late, or the engine is gone.
            _ => None,
        };
        found.ok_or_else(|| EngineError::NoSuchBuild { id: id.0.clone() })
    }

    /// Offers a bridge to a build's client, for as long as what is returned lives.
    pub(crate) fn offer(&self, id: &BuildId, bridge: Arc<Bridge>) -> Offer {
        self.bridges().send_modify(|bridges| _ = bridges.insert(id.clone(), Arc::clone(&bridge)));
        Offer { engine: self.clone(), id: id.clone(), bridge }
    }
}

/// A bridge that a client may find.
pub(crate) struct Offer {
    engine: Engine,
    id: BuildId,
    pub(crate) bridge: Arc<Bridge>,
}

impl Drop for Offer {
    fn drop(&mut self) {
        self.bridge.close();
        self.engine.bridges().send_modify(|bridges| _ = bridges.remove(&self.id));
    }
}

impl std::fmt::Debug for Bridge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bridge").field("refs", &self.refs.lock().len()).finish_non_exhaustive()
    }
}
