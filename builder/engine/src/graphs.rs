//! A build's graphs: whether their steps may do what they do, and what they come to.

use std::{collections::HashMap, sync::Arc};

use lapstrake_builder_cache::OlderNames;
use lapstrake_builder_executor::DeviceList;
use lapstrake_builder_llb::{Definition, Graph, Limits, Vertex, caps, pb};
use lapstrake_builder_progress::Progress;
use lapstrake_builder_solver::{Build, CacheStore, KeyId, Resolved};
use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_store::Tree;

use crate::{
    Engine, EngineError, SourcePolicy,
    attest::Capture,
    engine::check_ulimit,
    fault::in_graph,
    ops,
    scope::{BuildScope, EngineTypes},
};

/// A graph whose steps may do what they do.
pub(crate) struct Admitted {
    /// As it came: errors show lines of it.
    definition: Arc<Definition>,
    pub(crate) graph: Arc<Graph>,
    /// Of the steps that get other devices than they ask for.
    devices: HashMap<Digest, Vec<pb::CdiDevice>>,
}

/// What a graph's results are known by.
#[derive(Default)]
pub(crate) struct BuildKeys {
    pub(crate) target: Arc<Vec<KeyId>>,
    /// What older versions of BuildKit call the graph's outputs.
    pub(crate) older: Arc<OlderNames>,
    /// Holds what was made until it is exported. `None` for nothing.
    build: Option<Arc<Build<EngineTypes>>>,
}

impl BuildKeys {
    /// The keys of all outputs of the graph. Caches that are still on their way are not asked.
    pub(crate) fn all(&self) -> Vec<Vec<KeyId>> {
        self.build.as_ref().map(|build| build.keys()).unwrap_or_default()
    }

    /// The keys of each output of the graph's vertices.
    pub(crate) fn by_output(&self) -> Vec<(Digest, u32, Vec<KeyId>)> {
        self.build.as_ref().map(|build| build.keys_by_output()).unwrap_or_default()
    }

    /// The result of one of the graph's vertices.
    pub(crate) async fn result_of(&self, vertex: &Digest) -> Result<Option<Tree>, EngineError> {
        let Some(build) = &self.build else { return Ok(None) };
        Ok(build.resolve_vertex(vertex, 0).await?.map(|resolved| resolved.value))
    }
}

impl Engine {
    /// Solves one graph, with no caches but our own.
    pub(crate) async fn solve(
        &self,
        definition: &Definition,
        scope: &Arc<BuildScope>,
        progress: &Progress,
    ) -> Result<Tree, EngineError> {
        Ok(self.resolve(definition, scope, &[], progress, false).await?.0)
    }

    pub(crate) async fn resolve(
        &self,
        definition: &Definition,
        scope: &Arc<BuildScope>,
        imports: &[Arc<dyn CacheStore<Tree>>],
        progress: &Progress,
        asks_keys: bool,
    ) -> Result<(Tree, BuildKeys), EngineError> {
        let admitted = self.admit(&Arc::new(definition.clone()), &scope.policy, scope).await?;
        self.resolve_admitted(admitted.as_ref(), scope, imports, progress, asks_keys).await
    }

    async fn resolve_admitted(
        &self,
        admitted: Option<&Admitted>,
        scope: &Arc<BuildScope>,
        imports: &[Arc<dyn CacheStore<Tree>>],
        progress: &Progress,
        asks_keys: bool,
    ) -> Result<(Tree, BuildKeys), EngineError> {
        let Some(admitted) = admitted else {
            return Ok((Tree::empty(), BuildKeys::default()));
        };
        let build = Arc::new(self.load_graph(admitted, scope, imports, progress)?);
        let made = self.resolve_loaded(admitted, &build, asks_keys).await?;
        scope.trail.note_result(None, Capture::of(&admitted.graph, build.told()));
        Ok(made)
    }

    /// Takes up a graph; nothing of it runs yet.
    pub(crate) fn load_graph(
        &self,
        admitted: &Admitted,
        scope: &Arc<BuildScope>,
        imports: &[Arc<dyn CacheStore<Tree>>],
        progress: &Progress,
    ) -> Result<Build<EngineTypes>, EngineError> {
        let Admitted { definition, graph, devices } = admitted;
        let make =
            |vertex: &Vertex| ops::op(self, graph, vertex, devices.get(&vertex.digest).map(Vec::as_slice));
        let build = self.solver().load(graph, make, Arc::clone(scope), imports, progress);
        build.map_err(|error| in_graph(error.into(), definition))
    }

    pub(crate) async fn resolve_loaded(
        &self,
        admitted: &Admitted,
        build: &Arc<Build<EngineTypes>>,
        asks_keys: bool,
    ) -> Result<(Tree, BuildKeys), EngineError> {
        let resolved = build.resolve().await;
        let Resolved { value: tree, keys: target } =
            resolved.map_err(|error| in_graph(error.into(), &admitted.definition))?;
        let mut older = OlderNames::default();
        if asks_keys {
            older = OlderNames::of(&admitted.graph);
            build.other_keys().iter().for_each(|(key, other)| older.source(key, other));
        }
        Ok((tree, BuildKeys { target, older: Arc::new(older), build: Some(Arc::clone(build)) }))
    }

    /// Parses a graph, has its sources as the policy says, and looks whether all its steps may do what they do; `None` for the empty tree.
    pub(crate) async fn admit(
        &self,
        definition: &Arc<Definition>,
        policy: &SourcePolicy,
        scope: &BuildScope,
    ) -> Result<Option<Admitted>, EngineError> {
        if definition.is_scratch() {
            return Ok(None);
        }
        // On the heap, as few graphs have a policy.
        let governed = Box::pin(self.govern(definition, policy, scope)).await;
        let definition = &governed.map_err(|error| in_graph(error, definition))?;
        let graph = Arc::new(Graph::parse(definition, Limits::default())?);
        for vertex in graph.vertices() {
            if let Some(source) = vertex.metadata.caps.iter().find_map(|cap| caps::supports(cap).err()) {
                let refused = EngineError::Capability { vertex: vertex.digest.clone(), source };
                return Err(in_graph(refused, definition));
            }
        }
        let mut devices = HashMap::new();
        for (vertex, op) in graph.vertices().iter().filter_map(exec_of) {
            let list = match op.cdi_devices.is_empty() {
                true => DeviceList::default(),
                false => self.workshop().device_list().await?,
            };
            for limit in op.meta.iter().flat_map(|meta| &meta.ulimit) {
                check_ulimit(&limit.name, limit.soft, limit.hard)?;
            }
            match scope.grants.admit(op, || list) {
                Ok(None) => {}
                Ok(Some(others)) => _ = devices.insert(vertex.digest.clone(), others),
                Err(refusal) => {
                    let refused =
                        EngineError::Refused { vertex: vertex.digest.clone(), refusal: Box::new(refusal) };
                    return Err(in_graph(refused, definition));
                }
            }
        }
        Ok(Some(Admitted { definition: Arc::clone(definition), graph, devices }))
    }
}

fn exec_of(vertex: &Vertex) -> Option<(&Vertex, &pb::ExecOp)> {
    match vertex.op.op.as_ref()? {
        pb::op::Op::Exec(op) => Some((vertex, op)),
        _ => None,
    }
}
