//! The ops of LLB, as the solver runs them.
//!
//! ```text
//!   source ── fetch ──► Tree        exec ── drafts, mounts, process ──► Trees
//!   file ── actions ──► Trees       merge, diff ── layers again ──► Tree
//!   passthrough ──► its inputs       build ── a graph in a file ──► Tree
//! ```

mod build;
mod classic;
mod exec;
mod file;
mod merge;
mod mounts;
mod passthrough;
mod source;

pub(crate) use self::mounts::{CacheId, MountPlan, Root, Wanted, find_secret};

use std::{collections::BTreeMap, sync::Arc};

use futures::future::BoxFuture;
use lapstrake_builder_cache::BuildCache;
use lapstrake_builder_executor::{Architectures, CdiDevices, DeviceList, Executor};
use lapstrake_builder_files::ContentHasher;
use lapstrake_builder_llb::{Graph, Vertex, VertexId, cache_key, pb};
use lapstrake_builder_solver::{Alias, CacheMap, Dep, Miss, Op, OpContext};
use lapstrake_builder_source::Sources;
use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_store::{Stores, Tree};
use lapstrake_session::Sessions;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    Engine, Left, StepError,
    left::FailedPart,
    reasons::{self, Missed, Running},
    scope::EngineTypes,
};

/// What ops work with.
pub(crate) struct Workshop {
    pub(crate) stores: Stores,
    pub(crate) cache: Arc<BuildCache>,
    pub(crate) sources: Sources,
    pub(crate) sessions: Sessions,
    pub(crate) executor: Arc<dyn Executor>,
    pub(crate) architectures: Architectures,
    pub(crate) content: Arc<ContentHasher>,
    /// Permits for steps that use the machine: processes, copies, unpacking.
    pub(crate) slots: Arc<Semaphore>,
    /// Where sockets of ssh agents are made; private to the daemon.
    pub(crate) runtime_dir: std::path::PathBuf,
    /// Where devices are described.
    pub(crate) devices: CdiDevices,
}

impl Workshop {
    /// The devices of this machine, as of now.
    pub(crate) async fn device_list(&self) -> Result<DeviceList, StepError> {
        let devices = self.devices.clone();
        let list =
            StepError::blocking(move || -> Result<DeviceList, StepError> { Ok(devices.scan()) }).await?;
        for problem in list.problems() {
            tracing::warn!("{problem}");
        }
        Ok(list)
    }

    /// A permit to use the machine. A step that has to wait for one shows that it does.
    async fn slot(&self, cx: &OpContext<EngineTypes>) -> Result<OwnedSemaphorePermit, StepError> {
        if let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() {
            return Ok(slot);
        }
        let _waiting = cx.vertex.part("waiting for other steps to finish", "", 0);
        tokio::select! {
            slot = Arc::clone(&self.slots).acquire_owned() => Ok(slot.expect("never closed")),
            () = cx.cancel.cancelled() => Err(StepError::Canceled),
        }
    }
}

/// Makes the op of a vertex of `graph`; of a process that gets other devices than it asks for, with those.
pub(crate) fn op(
    engine: &Engine,
    graph: &Arc<Graph>,
    vertex: &Vertex,
    devices: Option<&[pb::CdiDevice]>,
) -> Result<Arc<dyn Op<EngineTypes>>, StepError> {
    let workshop = Arc::clone(engine.workshop());
    let place = (graph, vertex);
    let platform = vertex.op.platform.clone();
    let Some(op) = &vertex.op.op else {
        let op = vertex.passthrough.as_ref().expect("a parsed vertex has an op");
        return Ok(Keyed::new(place, passthrough::PassthroughStep::new(workshop, op, vertex)));
    };
    Ok(match op {
        pb::op::Op::Source(op) => Arc::new(source::SourceStep::new(workshop, op, platform)?),
        pb::op::Op::Exec(op) => {
            let mut op = op.clone();
            if let Some(devices) = devices {
                op.cdi_devices = devices.to_vec();
            }
            Keyed::new(place, exec::ExecStep::new(workshop, op, platform, vertex)?)
        }
        pb::op::Op::File(op) => Keyed::new(place, file::FileStep::new(workshop, op, vertex)),
        pb::op::Op::Merge(op) => Keyed::new(place, merge::merge(workshop, op, vertex)),
        pb::op::Op::Diff(op) => Keyed::new(place, merge::diff(workshop, op, vertex)),
        pb::op::Op::Build(op) => Keyed::new(place, build::BuildStep::new(engine, op, vertex)?),
    })
}

/// An op that is known by a key of `builder/llb`: all but sources.
pub(crate) trait KeyedStep: Send + Sync {
    /// What it works with.
    fn workshop(&self) -> &Arc<Workshop>;

    /// What it is for the cache.
    fn key(&self) -> &cache_key::OpKey;

    /// Runs it, as [`Op::exec`] does, for its vertex.
    fn run<'a>(
        &'a self,
        vertex: &'a Vertex,
        cx: &'a OpContext<EngineTypes>,
        inputs: Vec<Tree>,
    ) -> BoxFuture<'a, Result<Vec<Tree>, StepError>>;
}

/// A keyed step as the solver runs it.
struct Keyed<S> {
    step: S,
    graph: Arc<Graph>,
    vertex: VertexId,
    /// What the solver said of the run that comes next.
    missed: Mutex<Option<Missed>>,
    /// What older versions of BuildKit made of the inputs' content.
    older_content: Mutex<BTreeMap<usize, Digest>>,
}

impl<S: KeyedStep> Keyed<S> {
    fn new((graph, vertex): (&Arc<Graph>, &Vertex), step: S) -> Arc<Self> {
        let vertex = graph.find(&vertex.digest).expect("the vertex is of this graph");
        let graph = Arc::clone(graph);
        Arc::new(Self { step, graph, vertex, missed: Mutex::default(), older_content: Mutex::default() })
    }
}

impl<S: KeyedStep> Op<EngineTypes> for Keyed<S> {
    fn cache_map<'a>(&'a self, _: &'a OpContext<EngineTypes>) -> BoxFuture<'a, Result<CacheMap, StepError>> {
        Box::pin(async {
            let key = self.step.key();
            let dep = |dep: &cache_key::DepKey| Dep {
                selector: dep.selector.clone(),
                content: dep.content.is_some(),
            };
            let deps = key.deps.iter().map(dep).collect();
            Ok(CacheMap { digest: key.digest.clone(), deps, ephemeral: false })
        })
    }

    fn aliases(&self) -> Vec<Alias> {
        let vertex = self.graph.vertex(self.vertex);
        let older = cache_key::older(&vertex.op, vertex.inputs.len()).into_iter();
        older.map(|key| Alias { name: key.name, selectors: key.selectors }).collect()
    }

    fn content<'a>(
        &'a self,
        _: &'a OpContext<EngineTypes>,
        input: usize,
        value: Tree,
    ) -> BoxFuture<'a, Result<Digest, StepError>> {
        Box::pin(async move {
            let selectors = self.step.key().deps[input].content.clone().unwrap_or_default();
            let workshop = Arc::clone(self.step.workshop());
            let digests = move || {
                workshop.content.digests(&value, &selectors).map_err(|error| StepError::Left {
                    error: Box::new(StepError::Content(error)),
                    left: Box::new(Left {
                        inputs: vec![Some(value)],
                        ends: Vec::new(),
                        part: Some(FailedPart::Content(input)),
                    }),
                })
            };
            let found = StepError::blocking(digests).await?;
            if let Some(older) = found.before_0_26 {
                self.older_content.lock().insert(input, older);
            }
            Ok(found.digest)
        })
    }

    fn other_content(&self, input: usize) -> Option<Digest> {
        self.older_content.lock().get(&input).cloned()
    }

    fn missed<'a>(&'a self, cx: &'a OpContext<EngineTypes>, miss: Miss<'a, Tree>) -> BoxFuture<'a, ()> {
        // What follows from it is found out while the step runs.
        let is_asked = cx.peek_scopes().iter().any(|scope| scope.known.is_some());
        *self.missed.lock() = is_asked.then(|| Missed::new(&miss));
        Box::pin(std::future::ready(()))
    }

    fn exec<'a>(
        &'a self,
        cx: &'a OpContext<EngineTypes>,
        inputs: Vec<Tree>,
    ) -> BoxFuture<'a, Result<Vec<Tree>, StepError>> {
        let vertex = self.graph.vertex(self.vertex);
        let Some(missed) = self.missed.lock().take() else { return self.step.run(vertex, cx, inputs) };
        let running = Running {
            workshop: Arc::clone(self.step.workshop()),
            graph: Arc::clone(&self.graph),
            vertex: self.vertex,
            missed,
            inputs: inputs.clone(),
            contents: self.step.key().deps.iter().map(|dep| dep.content.clone()).collect(),
        };
        Box::pin(async move {
            let (result, memorable) =
                tokio::join!(self.step.run(vertex, cx, inputs), reasons::explain(running, cx));
            if result.is_ok() {
                memorable.remember();
            }
            result
        })
    }
}
