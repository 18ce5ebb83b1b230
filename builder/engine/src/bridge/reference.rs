//! Results by name: graphs that are solved when somebody needs what they make.

use std::sync::{Arc, OnceLock};

use lapstrake_builder_llb::{Definition, Vertex};
use lapstrake_builder_solver::{Build, CacheStore};
use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_store::{SnapshotKey, Tree};
use tokio::sync::OnceCell;

use super::BuildParts;
use crate::{
    Engine, EngineError, SourcePolicy,
    attest::{Capture, Trail},
    graphs::{Admitted, BuildKeys},
    scope::EngineTypes,
};

/// A result that a frontend has a name for. Nothing is done for it before somebody needs it; then it is kept until the last of its names is gone.
#[derive(Clone)]
pub struct Ref(Arc<Inner>);

struct Inner {
    id: String,
    engine: Engine,
    build: Arc<BuildParts>,
    definition: Arc<Definition>,
    policy: SourcePolicy,
    caches: Vec<Arc<dyn CacheStore<Tree>>>,
    admitted: OnceCell<Option<Admitted>>,
    loaded: OnceCell<Arc<Build<EngineTypes>>>,
    /// Whether its trail knows what it was made of.
    noted: OnceLock<()>,
}

impl Ref {
    pub(crate) fn new(
        engine: &Engine,
        build: &Arc<BuildParts>,
        definition: impl Into<Arc<Definition>>,
        policy: SourcePolicy,
        caches: Vec<Arc<dyn CacheStore<Tree>>>,
    ) -> Self {
        Self(Arc::new(Inner {
            id: SnapshotKey::random().to_string(),
            engine: engine.clone(),
            build: Arc::clone(build),
            definition: definition.into(),
            policy,
            caches,
            admitted: OnceCell::new(),
            loaded: OnceCell::new(),
            noted: OnceLock::new(),
        }))
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// The graph that makes it.
    pub fn definition(&self) -> &Arc<Definition> {
        &self.0.definition
    }

    /// What was asked of the frontend that had it made.
    pub(crate) fn trail(&self) -> &Arc<Trail> {
        &self.0.build.scope.trail
    }

    /// Parses the graph and looks whether its steps may do what they do; `None` for the empty tree.
    pub(crate) async fn admit(&self) -> Result<Option<&Admitted>, EngineError> {
        let inner = &*self.0;
        let admit = || inner.engine.admit(&inner.definition, &inner.policy, &inner.build.scope);
        Ok(inner.admitted.get_or_try_init(admit).await?.as_ref())
    }

    /// A vertex of the graph, once that is parsed.
    pub(crate) fn vertex(&self, digest: &Digest) -> Option<&Vertex> {
        let graph = &self.0.admitted.get()?.as_ref()?.graph;
        Some(graph.vertex(graph.find(digest)?))
    }

    /// Solves the graph, or says what came of it.
    pub async fn evaluate(&self) -> Result<Tree, EngineError> {
        Ok(self.resolve(false).await?.0)
    }

    /// The same, with what the result is known by.
    pub(crate) async fn resolve(&self, asks_keys: bool) -> Result<(Tree, BuildKeys), EngineError> {
        let inner = &*self.0;
        let Some(admitted) = self.admit().await? else {
            return Ok((Tree::empty(), BuildKeys::default()));
        };
        let load = || async {
            let build = &inner.build;
            inner.engine.load_graph(admitted, &build.scope, &inner.caches, &build.progress).map(Arc::new)
        };
        let loaded = inner.loaded.get_or_try_init(load).await?;
        let made = inner.engine.resolve_loaded(admitted, loaded, asks_keys).await?;
        inner.noted.get_or_init(|| {
            let capture = Capture::of(&admitted.graph, loaded.told());
            inner.build.scope.trail.note_result(Some(&inner.id), capture);
        });
        Ok(made)
    }
}

impl std::fmt::Debug for Ref {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Ref").field(&self.0.id).finish()
    }
}
