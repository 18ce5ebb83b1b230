//! An op that gives its inputs on, as they are: one vertex that several results hang on.

use std::sync::Arc;

use futures::future::BoxFuture;
use lapstrake_builder_llb::{Passthrough, Vertex, cache_key};
use lapstrake_builder_solver::OpContext;
use lapstrake_layerstore_store::Tree;

use super::{KeyedStep, Workshop};
use crate::{StepError, scope::EngineTypes};

pub(crate) struct PassthroughStep {
    workshop: Arc<Workshop>,
    key: cache_key::OpKey,
    /// Of each output: which input it is.
    outputs: Vec<i64>,
}

impl PassthroughStep {
    pub(crate) fn new(workshop: Arc<Workshop>, op: &Passthrough, vertex: &Vertex) -> Self {
        let key = cache_key::passthrough(op, vertex.inputs.len());
        Self { workshop, key, outputs: op.outputs.clone() }
    }

    fn pass(&self, inputs: &[Tree]) -> Result<Vec<Tree>, StepError> {
        let input = |input: &i64| {
            let found = usize::try_from(*input).ok().and_then(|input| inputs.get(input)).cloned();
            let what = || format!("invalid passthrough output input index {input}");
            found.ok_or_else(|| StepError::Invalid { what: what() })
        };
        self.outputs.iter().map(input).collect()
    }
}

impl KeyedStep for PassthroughStep {
    fn workshop(&self) -> &Arc<Workshop> {
        &self.workshop
    }

    fn key(&self) -> &cache_key::OpKey {
        &self.key
    }

    fn run<'a>(
        &'a self,
        _: &'a Vertex,
        _: &'a OpContext<EngineTypes>,
        inputs: Vec<Tree>,
    ) -> BoxFuture<'a, Result<Vec<Tree>, StepError>> {
        Box::pin(std::future::ready(self.pass(&inputs)))
    }
}
