//! Steps that fail, as frontends are told of them: the op, and names of its trees, of which a container can be made (`buildx debug`).

use futures::future::BoxFuture;
use lapstrake_layerstore_store::{SnapshotKey, Tree};

use super::{Bridge, Ref};
use crate::{
    EngineError, ShownStep,
    op_json::{self, Oneofs},
};

/// Most names of such trees that one frontend has.
const MAX_LEFT: usize = 10_000;

impl Bridge {
    /// The tree of a result. A failure comes with what there is to look at.
    pub(super) fn evaluate<'a>(&'a self, reference: &'a Ref) -> BoxFuture<'a, Result<Tree, EngineError>> {
        // On the heap, and of no type that a compiler would look into: they are deep.
        Box::pin(async { reference.evaluate().await.map_err(|error| self.show(reference, error)) })
    }

    fn show(&self, reference: &Ref, error: EngineError) -> EngineError {
        let failed = error.failed_vertex().and_then(|vertex| reference.vertex(vertex));
        let (None, Some(vertex)) = (error.shown(), failed) else { return error };
        let mut step = ShownStep {
            op: op_json::of(vertex, Oneofs::Flat),
            description: vertex.metadata.description.clone(),
            inputs: Vec::new(),
            ends: Vec::new(),
            part: None,
        };
        if let Some(left) = error.step().and_then(|step| step.left()) {
            step.inputs = self.name_all(&left.inputs);
            step.ends = self.name_all(&left.ends);
            step.part = left.part;
        }
        EngineError::Shown { error: Box::new(error), step: Box::new(step) }
    }

    /// Gives trees names; where there is none, or there are too many names, the empty one.
    fn name_all(&self, trees: &[Option<Tree>]) -> Vec<String> {
        let mut left = self.left.lock();
        let mut name = |tree: &Option<Tree>| {
            let tree = tree.as_ref().filter(|_| left.len() < MAX_LEFT)?;
            let name = SnapshotKey::random().to_string();
            left.insert(name.clone(), tree.clone());
            Some(name)
        };
        trees.iter().map(|tree| name(tree).unwrap_or_default()).collect()
    }

    /// What containers are made of: a result of this name, or what a failed step left.
    pub(super) async fn tree(&self, id: &str) -> Result<Tree, EngineError> {
        let left = self.left.lock().get(id).cloned();
        match left {
            Some(tree) => Ok(tree),
            None => self.evaluate(&self.find(id)?).await,
        }
    }
}
