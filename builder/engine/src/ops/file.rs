//! `COPY`, `ADD`, `WORKDIR`: file actions.

use std::sync::Arc;

use futures::future::BoxFuture;
use lapstrake_builder_cache::RecordKind;
use lapstrake_builder_llb::{Vertex, cache_key, pb};
use lapstrake_builder_solver::OpContext;
use lapstrake_layerstore_store::Tree;

use super::{KeyedStep, Workshop};
use crate::{StepError, scope::EngineTypes};

pub(crate) struct FileStep {
    workshop: Arc<Workshop>,
    op: pb::FileOp,
    key: cache_key::OpKey,
    name: String,
}

impl FileStep {
    pub(crate) fn new(workshop: Arc<Workshop>, op: pb::FileOp, vertex: &Vertex) -> Self {
        let key = cache_key::file(&op, vertex.inputs.len());
        Self { workshop, op, key, name: vertex.name.clone() }
    }

    async fn act(&self, cx: &OpContext<EngineTypes>, inputs: Vec<Tree>) -> Result<Vec<Tree>, StepError> {
        let _slot = self.workshop.slot(cx).await?;
        let workshop = Arc::clone(&self.workshop);
        let (op, name, cancel) = (self.op.clone(), self.name.clone(), cx.cancel.clone());
        StepError::blocking(move || -> Result<Vec<Tree>, StepError> {
            let trees = lapstrake_builder_files::apply(&workshop.stores, &op, &inputs, &cancel)?;
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
        cx: &'a OpContext<EngineTypes>,
        inputs: Vec<Tree>,
    ) -> BoxFuture<'a, Result<Vec<Tree>, StepError>> {
        Box::pin(self.act(cx, inputs))
    }
}
