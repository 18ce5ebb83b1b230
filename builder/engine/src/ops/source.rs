//! Sources: what comes into the graph from outside.

use std::sync::{Arc, OnceLock};

use futures::future::BoxFuture;
use lapstrake_builder_cache::RecordKind;
use lapstrake_builder_history::MissReason;
use lapstrake_builder_llb::pb;
use lapstrake_builder_solver::{Alias, CacheMap, Miss, MissCause, Op, OpContext};
use lapstrake_builder_source::{Material, Source, SourceContext, SourceKind};
use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_store::Tree;

use super::Workshop;
use crate::{
    StepError,
    scope::{EngineTypes, sessions},
};

pub(crate) struct SourceStep {
    workshop: Arc<Workshop>,
    source: Arc<dyn Source>,
    /// What it turned out to be.
    material: OnceLock<Material>,
}

impl SourceStep {
    pub(crate) fn new(
        workshop: Arc<Workshop>,
        op: &pb::SourceOp,
        platform: Option<pb::Platform>,
    ) -> Result<Self, StepError> {
        let source = workshop.sources.open(op, platform.as_ref())?;
        Ok(Self { workshop, source, material: OnceLock::new() })
    }

    async fn fetch(&self, cx: &OpContext<EngineTypes>) -> Result<Vec<Tree>, StepError> {
        let tree = self.source.fetch(&context(cx)).await?;
        let kind = match self.source.kind() {
            // The source keeps what it needs of it for the next transfer.
            SourceKind::Local => return Ok(vec![tree]),
            SourceKind::Git => RecordKind::SourceGitCheckout,
            SourceKind::Image | SourceKind::Http => RecordKind::Regular,
        };
        let cache = Arc::clone(&self.workshop.cache);
        let description = self.source.description();
        StepError::blocking(move || cache.record(&tree, kind, &description).map(|()| vec![tree])).await
    }
}

/// What a source may use of the builds that wait for it.
fn context(cx: &OpContext<EngineTypes>) -> SourceContext {
    let scopes = cx.scopes();
    SourceContext {
        builds: scopes.iter().map(|scope| scope.mark.clone()).collect(),
        sessions: sessions(&scopes),
        credentials: scopes.iter().map(|scope| Arc::clone(&scope.credentials)).collect(),
        locals: scopes.iter().flat_map(|scope| scope.locals.clone()).collect(),
        vertex: cx.vertex.clone(),
        cancel: cx.cancel.clone(),
    }
}

impl Op<EngineTypes> for SourceStep {
    fn cache_map<'a>(&'a self, cx: &'a OpContext<EngineTypes>) -> BoxFuture<'a, Result<CacheMap, StepError>> {
        Box::pin(async move {
            let context = context(cx);
            let digest = self.source.pin(&context).await?;
            let material = self.source.material(&context).await?;
            self.material.get_or_init(|| material);
            // A client's directory is known by its content only.
            let ephemeral = self.source.kind() == SourceKind::Local;
            Ok(CacheMap { digest, deps: Vec::new(), ephemeral })
        })
    }

    fn aliases(&self) -> Vec<Alias> {
        let digests = self.source.also_known_as().into_iter();
        digests.map(|digest| Alias { name: digest.as_str().into(), selectors: Vec::new() }).collect()
    }

    fn told(&self) -> Option<Material> {
        self.material.get().cloned()
    }

    fn content<'a>(
        &'a self,
        _: &'a OpContext<EngineTypes>,
        input: usize,
        _: Tree,
    ) -> BoxFuture<'a, Result<Digest, StepError>> {
        Box::pin(async move { Err(StepError::Invalid { what: format!("a source has no input {input}") }) })
    }

    fn missed<'a>(&'a self, cx: &'a OpContext<EngineTypes>, miss: Miss<'a, Tree>) -> BoxFuture<'a, ()> {
        let reason = match (miss.cause, self.source.kind()) {
            (MissCause::NoCache, _) => MissReason::NoCache,
            (_, SourceKind::Local) => MissReason::ClientDirectory,
            _ => MissReason::NotHere,
        };
        for known in cx.peek_scopes().iter().filter_map(|scope| scope.known.as_ref()) {
            known.notes.note_reasons(&cx.vertex.digest(), vec![reason.clone()]);
        }
        Box::pin(std::future::ready(()))
    }

    fn exec<'a>(
        &'a self,
        cx: &'a OpContext<EngineTypes>,
        _: Vec<Tree>,
    ) -> BoxFuture<'a, Result<Vec<Tree>, StepError>> {
        Box::pin(self.fetch(cx))
    }
}
