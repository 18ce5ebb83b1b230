//! `COPY`, `ADD`, `WORKDIR`: file actions.

use std::sync::Arc;

use futures::future::BoxFuture;
use lapstrake_builder_cache::RecordKind;
use lapstrake_builder_files::{FilesError, UnknownOwner, apply_with};
use lapstrake_builder_llb::{Vertex, cache_key, pb};
use lapstrake_builder_solver::OpContext;
use lapstrake_layerstore_store::Tree;

use super::{KeyedStep, Workshop, classic};
use crate::{Left, StepError, left::FailedPart, scope::EngineTypes};

pub(crate) struct FileStep {
    workshop: Arc<Workshop>,
    key: cache_key::OpKey,
    /// Whether the result is to be what the classic builder makes of it.
    is_classic: bool,
}

impl FileStep {
    pub(crate) fn new(workshop: Arc<Workshop>, op: &pb::FileOp, vertex: &Vertex) -> Self {
        let mut key = cache_key::file(op, vertex.inputs.len());
        let is_classic = cache_key::is_classic(&vertex.op);
        if is_classic {
            key = key.in_classic();
        }
        Self { workshop, key, is_classic }
    }

    async fn act(
        &self,
        vertex: &Vertex,
        cx: &OpContext<EngineTypes>,
        inputs: Vec<Tree>,
    ) -> Result<Vec<Tree>, StepError> {
        let Some(pb::op::Op::File(op)) = &vertex.op.op else {
            return Err(StepError::Invalid { what: format!("{} is no file op", vertex.name) });
        };
        let _slot = self.workshop.slot(cx).await?;
        let workshop = Arc::clone(&self.workshop);
        let (op, name, cancel) = (op.clone(), vertex.name.clone(), cx.cancel.clone());
        let is_classic = self.is_classic;
        let is_shown = cx.peek_scopes().iter().any(|scope| scope.shows_failed);
        StepError::blocking(move || -> Result<Vec<Tree>, StepError> {
            let unknown = if is_classic { UnknownOwner::IsAnError } else { UnknownOwner::IsRoot };
            let mut ends = Vec::new();
            let made =
                apply_with(&workshop.stores, &op, &inputs, unknown, is_shown.then_some(&mut ends), &cancel);
            let mut trees = made.map_err(|error| match error {
                FilesError::Action { index, .. } if is_shown => {
                    let inputs = inputs.iter().cloned().map(Some).collect();
                    let left = Left { inputs, ends, part: Some(FailedPart::Action(index)) };
                    StepError::Left { error: Box::new(error.into()), left: Box::new(left) }
                }
                error => error.into(),
            })?;
            if is_classic {
                let keep = |tree| classic::without_nothing(&workshop.stores, tree, &inputs);
                trees = trees.into_iter().map(keep).collect::<Result<_, _>>()?;
            }
            for tree in &trees {
                workshop.cache.record(tree, RecordKind::Regular, &name)?;
            }
            Ok(trees)
        })
        .await
    }
}

impl KeyedStep for FileStep {
    fn workshop(&self) -> &Arc<Workshop> {
        &self.workshop
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
        Box::pin(self.act(vertex, cx, inputs))
    }
}
