//! Merge (trees on top of each other) and diff (what one tree has over another).

use std::sync::Arc;

use futures::future::BoxFuture;
use lapstrake_builder_cache::RecordKind;
use lapstrake_builder_llb::{Vertex, cache_key, pb};
use lapstrake_builder_solver::OpContext;
use lapstrake_layerstore_store::Tree;

use super::{KeyedStep, Workshop};
use crate::{StepError, scope::EngineTypes};

/// Work on whole trees, done on a blocking thread.
type TreeWork = fn(&Workshop, &[Tree]) -> Result<Tree, StepError>;

/// An op without content keys whose result is one tree made of its inputs.
pub(crate) struct TreeStep {
    workshop: Arc<Workshop>,
    key: cache_key::OpKey,
    // Which input each operand is; `None` is the empty tree.
    operands: Vec<Option<usize>>,
    work: TreeWork,
}

impl TreeStep {
    async fn make(&self, name: &str, inputs: Vec<Tree>) -> Result<Vec<Tree>, StepError> {
        let operands: Vec<Tree> = self
            .operands
            .iter()
            .map(|operand| match operand {
                None => Ok(Tree::empty()),
                Some(input) => inputs
                    .get(*input)
                    .cloned()
                    .ok_or_else(|| StepError::Invalid { what: format!("input {input} is not there") }),
            })
            .collect::<Result<_, _>>()?;
        let (workshop, work, name) = (Arc::clone(&self.workshop), self.work, name.to_owned());
        StepError::blocking(move || -> Result<Vec<Tree>, StepError> {
            let tree = work(&workshop, &operands)?;
            workshop.cache.record(&tree, RecordKind::Regular, &name)?;
            Ok(vec![tree])
        })
        .await
    }
}

/// The op that lays trees on top of each other.
pub(crate) fn merge(workshop: Arc<Workshop>, op: &pb::MergeOp, vertex: &Vertex) -> TreeStep {
    TreeStep {
        workshop,
        key: cache_key::merge(op, vertex.inputs.len()),
        operands: op.inputs.iter().map(|input| usize::try_from(input.input).ok()).collect(),
        work: |workshop, trees| Ok(lapstrake_builder_files::merge(&workshop.stores, trees)?),
    }
}

/// The op that keeps what one tree has over another.
pub(crate) fn diff(workshop: Arc<Workshop>, op: &pb::DiffOp, vertex: &Vertex) -> TreeStep {
    let lower = op.lower.as_ref().and_then(|lower| usize::try_from(lower.input).ok());
    let upper = op.upper.as_ref().and_then(|upper| usize::try_from(upper.input).ok());
    TreeStep {
        workshop,
        key: cache_key::diff(op, vertex.inputs.len()),
        operands: vec![lower, upper],
        work: |workshop, trees| Ok(lapstrake_builder_files::diff(&workshop.stores, &trees[0], &trees[1])?),
    }
}

impl KeyedStep for TreeStep {
    fn workshop(&self) -> &Arc<Workshop> {
        &self.workshop
    }

    fn key(&self) -> &cache_key::OpKey {
        &self.key
    }

    fn run<'a>(
        &'a self,
        vertex: &'a Vertex,
        _: &'a OpContext<EngineTypes>,
        inputs: Vec<Tree>,
    ) -> BoxFuture<'a, Result<Vec<Tree>, StepError>> {
        Box::pin(self.make(&vertex.name, inputs))
    }
}
