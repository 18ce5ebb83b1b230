//! A graph within a graph: read from a file that an input has, and solved as part of the build that found it.

use std::sync::Arc;

use futures::future::BoxFuture;
use lapstrake_builder_llb::{Definition, Vertex, cache_key, pb};
use lapstrake_builder_solver::OpContext;
use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_store::Tree;

use super::{KeyedStep, Workshop};
use crate::{Engine, StepError, scope::EngineTypes};

/// The builder that takes a graph as it is.
const LLB_BUILDER: i64 = -1;
/// The input that has the graph, and the name of its file there unless an attribute says otherwise.
const DEFINITION: &str = "buildkit.llb.definition";
const FILE_NAME: &str = "llbbuild.filename";
/// Graphs within graphs within ….
const DEEPEST: usize = 16;

pub(crate) struct BuildStep {
    engine: Engine,
    key: cache_key::OpKey,
    /// The input that has the file.
    input: usize,
    file: String,
}

impl BuildStep {
    pub(crate) fn new(engine: &Engine, op: &pb::BuildOp, vertex: &Vertex) -> Result<Self, StepError> {
        if op.builder != LLB_BUILDER {
            let what = "only LLB builder is currently allowed".to_owned();
            return Err(StepError::Invalid { what });
        }
        let named = op.inputs.get(DEFINITION).and_then(|input| usize::try_from(input.input).ok());
        let input = named.ok_or_else(|| StepError::Invalid {
            what: format!("no llb definition input {DEFINITION} found"),
        })?;
        let file = op.attrs.get(FILE_NAME).map_or(DEFINITION, String::as_str).to_owned();
        let key = cache_key::build(op, vertex.inputs.len());
        Ok(Self { engine: engine.clone(), key, input, file })
    }

    async fn build(
        &self,
        vertex: &Vertex,
        cx: &OpContext<EngineTypes>,
        inputs: Vec<Tree>,
    ) -> Result<Vec<Tree>, StepError> {
        let nested = |error| StepError::Nested { source: Box::new(error) };
        let invalid = |what: String| StepError::Invalid { what };
        let tree = inputs.get(self.input).cloned();
        let tree = tree.ok_or_else(|| invalid(format!("invalid index {}", self.input)))?;
        let bytes = self.engine.read_file(tree, &self.file).await.map_err(nested)?;
        let bytes = bytes
            .ok_or_else(|| invalid(format!("failed to open {}: no such file or directory", self.file)))?;
        let definition = Definition::decode(&bytes).map_err(|error| nested(error.into()))?;
        // It is built for whoever waits longest, with what that build may do.
        let scopes = cx.scopes();
        let scope = scopes.first().ok_or(StepError::Canceled)?;
        let mut scope = (**scope).clone();
        scope.inside.push(vertex.digest.clone());
        if scope.inside.len() > DEEPEST {
            return Err(invalid(format!("more than {DEEPEST} graphs within each other")));
        }
        // Such a graph would wait for itself.
        let is_inside = |raw: &bytes::Bytes| scope.inside.contains(&Digest::sha256_of(raw));
        if definition.ops.iter().any(is_inside) {
            return Err(invalid("a graph that is part of itself".to_owned()));
        }
        let progress = scope.progress.clone();
        let scope = Arc::new(scope);
        tokio::select! {
            solved = self.engine.solve(&definition, &scope, &progress) => Ok(vec![solved.map_err(nested)?]),
            () = cx.cancel.cancelled() => Err(StepError::Canceled),
        }
    }
}

impl KeyedStep for BuildStep {
    fn workshop(&self) -> &Arc<Workshop> {
        self.engine.workshop()
    }

    fn key(&self) -> &cache_key::OpKey {
        &self.key
    }

    fn run<'a>(
        &'a self,
        vertex: &'a Vertex,
        cx: &'a OpContext<EngineTypes>,
        inputs: Vec<Tree>,
    ) -> BoxFuture<'a, Result<Vec<Tree>, StepError>> {
        Box::pin(self.build(vertex, cx, inputs))
    }
}
