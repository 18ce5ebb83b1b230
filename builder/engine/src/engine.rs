//! The engine: takes requests, runs builds, keeps track of those that run.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use base64::Engine as _;
use futures::future::BoxFuture;
use lapstrake_builder_cache::{BuildCache, ExportedResults, INLINE_FIELD, ImportedCache};
use lapstrake_builder_dockerfile::{Dialect, DockerfileOptions};
use lapstrake_builder_executor::{Architectures, CdiDevices, Executor, Ulimit};
use lapstrake_builder_exporter::{Exported, Exporter, PlatformResult};
use lapstrake_builder_history::{History, Recording};
use lapstrake_builder_progress::{Progress, VertexHandle, VertexState};
use lapstrake_builder_solver::{CacheStore, Solver};
use lapstrake_builder_source::{BuildMark, Sources};
use lapstrake_layerstore_oci::{Digest, ImageConfig, Platform};
use lapstrake_layerstore_store::{Stores, Tree};
use lapstrake_session::{SessionId, Sessions};
use parking_lot::Mutex;
use serde_json::{Map, Value};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    Bridge, BuildId, BuildRequest, CacheTarget, EngineError, Entitlement, FrontendResult, Frontends, Input,
    Script, StepError,
    attest::{Attests, Captures, Maker, Producers, Times, Trail},
    bridge::{BuildParts, Offer, Target},
    caches::{Solved, snapshots},
    classic::ClassicBuild,
    graphs::BuildKeys,
    history::{self, Knowledge},
    kept::FailedSteps,
    ops::Workshop,
    outputs::Made,
    plan::{Answered, place_context},
    recorded,
    scope::{BuildScope, EngineTypes},
};

/// What an engine is made of.
pub struct Parts {
    /// The stores.
    pub stores: Stores,
    /// The build cache.
    pub cache: Arc<BuildCache>,
    /// Where input comes from.
    pub sources: Sources,
    /// Live client sessions.
    pub sessions: Sessions,
    /// What runs processes.
    pub executor: Arc<dyn Executor>,
    /// What leaves results behind.
    pub exporter: Exporter,
    /// A directory for sockets, private to the daemon, emptied at its start.
    pub runtime_dir: PathBuf,
    /// How many steps may use the machine at once; at least 1.
    pub parallelism: usize,
    /// Which frontends are served by the built-in one.
    pub frontends: Frontends,
    /// What clients may grant their builds.
    pub entitlements: Vec<Entitlement>,
    /// Where devices for steps are described.
    pub devices: CdiDevices,
}

/// Runs builds. Cheap to clone.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    workshop: Arc<Workshop>,
    solver: Solver<EngineTypes>,
    exporter: Exporter,
    frontends: Frontends,
    entitlements: Vec<Entitlement>,
    running: Mutex<HashMap<BuildId, CancellationToken>>,
    /// Those of builds whose client is the frontend.
    bridges: watch::Sender<HashMap<BuildId, Arc<Bridge>>>,
    history: OnceLock<History>,
    /// Who made graphs that other frontends get as input.
    producers: Producers,
    /// What provenance tells of this machine.
    machine: OnceLock<Map<String, Value>>,
}

impl Engine {
    /// An engine of these parts.
    pub fn new(parts: Parts) -> Self {
        let cache: Arc<dyn CacheStore<Tree>> = Arc::<BuildCache>::clone(&parts.cache);
        let content = Arc::clone(parts.sources.content());
        let workshop = Workshop {
            stores: parts.stores,
            cache: parts.cache,
            sources: parts.sources,
            sessions: parts.sessions,
            architectures: Architectures::new(Arc::clone(&parts.executor), parts.runtime_dir.clone()),
            executor: parts.executor,
            content,
            slots: Arc::new(Semaphore::new(parts.parallelism.max(1))),
            runtime_dir: parts.runtime_dir,
            devices: parts.devices,
        };
        Self(Arc::new(Inner {
            workshop: Arc::new(workshop),
            solver: Solver::new(cache),
            exporter: parts.exporter,
            frontends: parts.frontends,
            entitlements: parts.entitlements,
            running: Mutex::default(),
            bridges: watch::Sender::default(),
            history: OnceLock::new(),
            producers: Producers::default(),
            machine: OnceLock::new(),
        }))
    }

    /// The stores that builds work on.
    pub fn stores(&self) -> &Stores {
        &self.0.workshop.stores
    }

    /// The build cache.
    pub fn cache(&self) -> &Arc<BuildCache> {
        &self.0.workshop.cache
    }

    /// Runs a build to its end.
    ///
    /// `steps`, if given, gets the instructions of the Dockerfile as soon as they are planned. Cancelled by `cancel`, by
    /// [`Engine::cancel`], or by dropping the future: what no other build needs is stopped, and nothing half-done stays.
    pub async fn build(
        &self,
        request: BuildRequest,
        progress: Progress,
        steps: Option<oneshot::Sender<Script>>,
        cancel: CancellationToken,
    ) -> Result<Exported, EngineError> {
        let running = self.register(&request.id, &cancel)?;
        let recording = self.record(&request, &progress);
        let known = recording.as_ref().map(|recording| Arc::new(Knowledge::new(&request, recording)));
        let failed = FailedSteps::of(&request.id, request.keep_failed.clone());
        let work = async {
            // On the heap: it is large, and whose task it is in is not known.
            let run = self.run(request, &progress, steps, &running.cancel, known.clone(), failed.clone());
            let run: BoxFuture<'_, _> = Box::pin(run);
            let result = run.await;
            match (result, &failed) {
                (Err(error), Some(failed)) => {
                    Err(failed.keep(error, &self.0.exporter, self.stores(), &progress).await)
                }
                (result, _) => result,
            }
        };
        let result = tokio::select! {
            result = work => result,
            () = running.cancel.cancelled() => Err(EngineError::Canceled),
        };
        if let Some(recording) = recording {
            history::end(recording, known.as_deref(), &result);
        }
        result
    }

    /// Records all builds from now on. Counts once.
    pub fn record_in(&self, history: History) {
        let _ = self.0.history.set(history);
    }

    /// Tells this of the machine in all provenance from now on (`provenanceEnvDir` of `buildkitd.toml`). Counts once.
    pub fn describe_machine(&self, facts: Map<String, Value>) {
        let _ = self.0.machine.set(facts);
    }

    pub(crate) fn producers(&self) -> &Producers {
        &self.0.producers
    }

    fn record(&self, request: &BuildRequest, progress: &Progress) -> Option<Recording> {
        let history = self.0.history.get().filter(|_| request.is_recorded)?;
        Some(history.begin(history::building(request), progress))
    }

    /// Holds no documents any more of images that no build waits for: pruning frees them.
    pub fn forget_images(&self) {
        self.0.workshop.sources.forget_images();
    }

    /// Cancels a running build.
    pub fn cancel(&self, id: &BuildId) -> Result<(), EngineError> {
        match self.0.running.lock().get(id) {
            Some(token) => {
                token.cancel();
                Ok(())
            }
            None => Err(EngineError::NoSuchBuild { id: id.0.clone() }),
        }
    }

    /// Which frontends are served by the built-in one.
    pub(crate) fn frontends(&self) -> Frontends {
        self.0.frontends
    }

    /// The platforms whose processes run here ([`platforms`](crate::platforms())).
    pub async fn platforms(&self) -> Vec<Platform> {
        crate::platforms(&self.0.workshop.architectures).await
    }

    /// The address at which processes reach the machine (`host-gateway`).
    pub async fn host_address(&self) -> IpAddr {
        self.0.workshop.executor.host_address().await
    }

    pub(crate) fn bridges(&self) -> &watch::Sender<HashMap<BuildId, Arc<Bridge>>> {
        &self.0.bridges
    }

    pub(crate) fn exporter(&self) -> &Exporter {
        &self.0.exporter
    }

    pub(crate) fn solver(&self) -> &Solver<EngineTypes> {
        &self.0.solver
    }

    pub(crate) fn workshop(&self) -> &Arc<Workshop> {
        &self.0.workshop
    }

    pub(crate) fn register(&self, id: &BuildId, cancel: &CancellationToken) -> Result<Running, EngineError> {
        let mut running = self.0.running.lock();
        if running.contains_key(id) {
            return Err(EngineError::Duplicate { id: id.0.clone() });
        }
        let token = cancel.child_token();
        running.insert(id.clone(), token.clone());
        Ok(Running { engine: self.clone(), id: id.clone(), cancel: token })
    }

    async fn run(
        &self,
        request: BuildRequest,
        progress: &Progress,
        steps: Option<oneshot::Sender<Script>>,
        cancel: &CancellationToken,
        known: Option<Arc<Knowledge>>,
        failed: Option<Arc<FailedSteps>>,
    ) -> Result<Exported, EngineError> {
        request.grants.check(&self.0.entitlements)?;
        check_limits(&request)?;
        let attests = Attests::of(&request.input)?;
        let mut times = Times::begin();
        let by_frontend = matches!(request.input, Input::Client { .. } | Input::Frontend(_));
        let mut scope = BuildScope {
            mark: BuildMark::default(),
            session: request.session.clone(),
            live: self.0.workshop.sessions.clone(),
            credentials: Arc::clone(&request.credentials),
            locals: HashMap::new(),
            received: false,
            bare_modes: false,
            grants: request.grants.clone(),
            resources: request.resources.clone(),
            shows_failed: by_frontend,
            policy: request.source_policy.clone(),
            progress: progress.clone(),
            renewed: Arc::default(),
            inside: Vec::new(),
            trail: Trail::of(&request.input, request.compatibility, self.producers()),
            failed,
            known,
        };
        let cache_from = request.cache_from.clone();
        let asked = by_frontend.then(|| recorded::said(&request.input));
        let build = |scope| BuildParts::new(Arc::new(scope), progress, cancel, cache_from);
        let mut classic = None;
        // Until the build ends: who has answered may still look at what it answered with.
        let mut offer = None;
        let (build, mut result) = match request.input {
            Input::Definition { definition, .. } => {
                let build = build(scope);
                self.identify(&build.scope, None).await;
                let result = FrontendResult::one(self.reference(&build, definition, &[]));
                (build, result)
            }
            Input::Frontend(asked) => {
                let build = build(scope);
                let result = self.ask_frontend(&build, asked).await?;
                (build, result)
            }
            Input::Client { inputs, .. } => {
                let build = build(scope);
                self.identify(&build.scope, None).await;
                let (bridge, answered) = Bridge::new(self, &build, inputs);
                offer = Some(self.offer(&request.id, bridge));
                // The offer holds the bridge, so that nobody else can have dropped the other end.
                let result = answered.await.map_err(|_| EngineError::Canceled)??;
                (build, result)
            }
            Input::Dockerfile { mut options, context, directories } => {
                place_context(&mut options, context, directories, &mut scope)?;
                let build = build(scope);
                // Caches are on their way while the build is planned, and while nothing needs them.
                let imports = self.import_all(&build);
                let inputs = BTreeMap::new();
                let planned: BoxFuture<'_, _> = Box::pin(self.plan(&options, &inputs, &build));
                match planned.await? {
                    Answered::Elsewhere(result) => (build, result),
                    Answered::BuiltIn((mut plan, facts)) => {
                        let mut script = Script::of(&plan);
                        if options.dialect == Dialect::Classic {
                            let planned = (DockerfileOptions::clone(&options), facts, plan);
                            let (scope, from) = (&build.scope, &request.cache_from);
                            let prepared =
                                ClassicBuild::prepare(self, scope, progress, cancel, planned, from).await?;
                            plan = prepared.plan().clone();
                            script = prepared.script().await;
                            classic = Some((prepared, imports));
                        }
                        if let Some(sender) = steps {
                            // When nobody listens any more, nobody misses them.
                            let _ = sender.send(script);
                        }
                        let mut result = self.planned(&plan, &options, &build)?;
                        if let Some(order) = &attests.sbom {
                            self.scan_plan(order, &plan, &mut result, &build).await?;
                        }
                        (build, result)
                    }
                }
            }
        };
        let several = result.is_multi_platform();
        let targets = result.targets()?;
        if let Some(asked) = asked {
            result.verify(&asked, &targets, progress);
        }
        let inline = request.inline_cache || request.cache_to.contains(&CacheTarget::Inline);
        let leaves_cache = inline || !request.cache_to.is_empty();
        // Before anything is built for nothing.
        request.outputs.iter().try_for_each(|output| output.admits(several))?;
        for source in targets.iter().filter_map(|target| target.source.as_ref()) {
            source.admit().await?;
        }
        let mut done = Vec::with_capacity(targets.len());
        match &mut classic {
            None => {
                // All platforms at once; what they have in common is solved once.
                let each = targets.iter().map(|target| async move {
                    match &target.source {
                        Some(source) => source.resolve(leaves_cache).await,
                        None => Ok((Tree::empty(), BuildKeys::default())),
                    }
                });
                let solved = futures::future::try_join_all(each).await?;
                done.extend(targets.into_iter().zip(solved));
            }
            Some((classic, imports)) => {
                for mut target in targets {
                    let (tree, keys) = classic.resolve(imports, leaves_cache).await?;
                    target.config = classic.config(&tree, &keys).await?;
                    done.push((target, (tree, keys)));
                }
            }
        }
        if let Some(order) = &attests.sbom {
            self.scan_results(order, &mut result, &build).await?;
        }
        times.finish();
        let targets: Vec<&Target> = done.iter().map(|(target, _)| target).collect();
        let captures = Captures::of(&build.scope.trail, &result, &targets);
        let maker = Maker { cache: Arc::clone(self.cache()), machine: self.0.machine.get().cloned() };
        let mut provenance = BTreeMap::new();
        for (target, (_, keys)) in &done {
            if let Some(order) = &attests.provenance {
                provenance.insert(target.key.clone(), captures.attest(order, target, &times, &maker, keys)?);
            }
            if let Some(known) = &build.scope.known
                && let Some((kind, predicate)) = captures.record(target, &attests, &times, &maker)?
            {
                known.note_provenance(several.then(|| target.key.clone()), kind, predicate);
            }
        }
        let mut solved = Solved::default();
        let mut results = Vec::with_capacity(done.len());
        for (mut target, (tree, keys)) in done {
            if inline {
                self.carry_cache(&mut target.config, &tree, &keys, build.imports.caches()).await?;
            }
            if leaves_cache {
                solved.trees.push(tree.clone());
                solved.targets.extend(keys.target.iter().cloned());
                solved.keys.push(keys);
            }
            let mut attestations = result.attested(&target.key).await?;
            attestations.extend(provenance.remove(&target.key).flatten());
            results.push(PlatformResult {
                platform: target.platform,
                tree,
                config: target.config,
                base: result.base(&target.key)?,
                epoch: target.epoch,
                attestations,
            });
        }
        let made = Made {
            results,
            several,
            names: result.names()?,
            annotations: result.annotations()?,
            compatibility: request.compatibility,
        };
        let BuildParts { scope, imports, .. } = &*build;
        let caches = self.export_caches(&request.cache_to, &solved, imports, scope, progress, cancel);
        let mut outputs = request.outputs;
        let session = request.session.as_ref();
        if request.asks_session {
            let bridge = offer.as_ref().map(|offer| &offer.bridge);
            let wanted = self.wanted_outputs(session, &result, bridge).await?;
            wanted.iter().try_for_each(|output| output.admits(several))?;
            outputs.extend(wanted);
        }
        let mut exported = self.leave(outputs, made, scope, progress, cancel, caches).await?;
        exported.frontend = result.told();
        if request.asks_session {
            self.tell_outputs(session, &exported).await?;
        }
        imports.settle().await;
        if let Some(Offer { bridge, .. }) = &offer {
            bridge.release_containers().await?;
        }
        Ok(exported)
    }

    /// The Dockerfile was read, if there is one: steps may be compared with those of earlier builds.
    pub(crate) async fn identify(&self, scope: &BuildScope, dockerfile: Option<&[u8]>) {
        if let Some(known) = &scope.known {
            let session = scope.session.as_ref().map(SessionId::as_str);
            known.identify(dockerfile, &self.0.workshop.sessions, session).await;
        }
    }

    /// Puts the records that lead to an image into its config (`BUILDKIT_INLINE_CACHE=1`).
    async fn carry_cache(
        &self,
        config: &mut ImageConfig,
        tree: &Tree,
        keys: &BuildKeys,
        brought: Vec<Arc<ImportedCache>>,
    ) -> Result<(), EngineError> {
        let (stores, cache, tree) = (self.stores().clone(), Arc::clone(self.cache()), tree.clone());
        let (target, all, older) = (Arc::clone(&keys.target), keys.all(), Arc::clone(&keys.older));
        let records = StepError::blocking(move || -> Result<_, StepError> {
            let layers = snapshots(&stores, &tree)?;
            let wanted = ExportedResults::Layers(&layers);
            let records = cache.records_of(&all, &target, wanted, &brought)?;
            Ok(records.with_older(&older).inline(&layers))
        })
        .await?;
        if let Some(records) = records {
            let text = base64::engine::general_purpose::STANDARD.encode(records);
            config.extra.insert(INLINE_FIELD.to_owned(), text.into());
        }
        Ok(())
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("running", &self.0.running.lock().len()).finish_non_exhaustive()
    }
}

/// Whether the limits that a request brings mean something; those within a graph are looked at with it.
fn check_limits(request: &BuildRequest) -> Result<(), EngineError> {
    request.resources.check().map_err(EngineError::Limits)?;
    if let Input::Dockerfile { options, .. } = &request.input {
        options.ulimits.iter().try_for_each(|limit| check_ulimit(&limit.name, limit.soft, limit.hard))?;
    }
    Ok(())
}

pub(crate) fn check_ulimit(name: &str, soft: i64, hard: i64) -> Result<(), EngineError> {
    Ulimit { name: name.to_owned(), soft, hard }.check().map_err(EngineError::Limits)
}

/// A build's entry among those that run.
pub(crate) struct Running {
    engine: Engine,
    id: BuildId,
    pub(crate) cancel: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.engine.0.running.lock().remove(&self.id);
    }
}

/// A vertex that is not of the graph: what the engine itself does for a build.
pub(crate) fn internal_vertex(progress: &Progress, name: impl Into<String>) -> VertexHandle {
    let name = name.into();
    // Random, as BuildKit's are: two builds' exports are two vertices.
    let salt = lapstrake_layerstore_store::SnapshotKey::random();
    let digest = Digest::sha256_of(format!("{name} {salt}").as_bytes());
    VertexHandle::announce(Arc::new(progress.clone()), VertexState::pending(digest, name, Vec::new()))
}
