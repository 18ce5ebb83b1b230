//! What a build leaves behind: all its outputs at once, then what makes them seen by others, and its caches.
//!
//! ```text
//!   output 0 ── export ──┐                ┌── publish (push)
//!   output 1 ── export ──┼── all are made ┼── publish (push)
//!                        │                └── caches
//! ```
//!
//! As BuildKit's solver orders it: nothing is pushed, and no cache exported, by a build one of whose outputs failed. The first failure stops the others.

use std::sync::Arc;

use lapstrake_builder_exporter::{
    Annotations, Compatibility, ExportError, ExportRequest, Exported, Output, PlatformResult,
};
use lapstrake_builder_progress::Progress;
use lapstrake_layerstore_oci::{Descriptor, Reference};
use lapstrake_session::ExporterId;
use tokio::sync::Barrier;
use tokio_util::sync::CancellationToken;

use crate::{Engine, EngineError, engine::internal_vertex, scope::BuildScope};

/// What a build made, for its outputs.
pub(crate) struct Made {
    /// One for each platform.
    pub(crate) results: Vec<PlatformResult>,
    /// Whether it is one result of several, also where there is but one.
    pub(crate) several: bool,
    /// The names that the frontend gives.
    pub(crate) names: Vec<Reference>,
    /// What else the frontend says of the image.
    pub(crate) annotations: Annotations,
    /// As which version of BuildKit they are exported.
    pub(crate) compatibility: Compatibility,
}

impl Engine {
    /// Leaves behind what was made, and runs `caches` once all of it is made.
    pub(crate) async fn leave(
        &self,
        outputs: Vec<Output>,
        made: Made,
        scope: &Arc<BuildScope>,
        progress: &Progress,
        cancel: &CancellationToken,
        caches: impl Future<Output = Result<Option<Descriptor>, EngineError>>,
    ) -> Result<Exported, EngineError> {
        // A client numbers its outputs without those that are none.
        let attested = made.results.iter().any(|result| !result.attestations.is_empty());
        let outputs = outputs.into_iter().filter(|output| *output != Output::CacheOnly);
        let outputs = outputs.map(|output| output.as_of(made.compatibility, attested));
        let outputs: Vec<Output> = outputs.collect::<Result<_, _>>()?;
        let (all_made, stop) = (Barrier::new(outputs.len() + 1), cancel.child_token());
        let exports = outputs.into_iter().enumerate().map(|(number, output)| {
            let number = ExporterId(u32::try_from(number).unwrap_or(u32::MAX));
            self.leave_one(output, number, &made, scope, progress, (&all_made, &stop))
        });
        let caches = async {
            tokio::select! {
                result = async { all_made.wait().await; caches.await } => {
                    if result.is_err() {
                        stop.cancel();
                    }
                    result
                }
                () = stop.cancelled() => Err(EngineError::Canceled),
            }
        };
        let (exports, caches) = futures::future::join(futures::future::join_all(exports), caches).await;
        let mut exported = Exported::default();
        let mut failure: Option<EngineError> = None;
        for result in
            exports.into_iter().chain([caches.map(|cache| Exported { cache, ..Exported::default() })])
        {
            match result {
                Ok(left) => exported = exported.and(left),
                // What stopped the others explains more than that they were stopped.
                Err(error) if failure.as_ref().is_none_or(EngineError::is_canceled) => failure = Some(error),
                Err(_) => {}
            }
        }
        failure.map_or(Ok(exported), Err)
    }

    async fn leave_one(
        &self,
        mut output: Output,
        number: ExporterId,
        made: &Made,
        scope: &Arc<BuildScope>,
        progress: &Progress,
        (all_made, stop): (&Barrier, &CancellationToken),
    ) -> Result<Exported, EngineError> {
        let Some(name) = output.progress_name() else { return Ok(Exported::default()) };
        let vertex = internal_vertex(progress, name);
        let cx = self.source_context(scope, vertex.clone(), stop);
        output.annotate(&made.annotations);
        let request = ExportRequest {
            output,
            number,
            results: made.results.clone(),
            multi_platform: made.several,
            names: made.names.clone(),
            session: scope.session.clone(),
            registry: Some(self.workshop().sources.registry(&cx)),
        };
        let work = async {
            let sessions = &self.workshop().sessions;
            let export = self.exporter().export(request, sessions, &vertex, stop).await?;
            vertex.pause();
            tokio::select! {
                _ = all_made.wait() => {}
                () = stop.cancelled() => return Err(ExportError::Canceled),
            }
            if export.is_public() {
                return Ok(export.exported);
            }
            vertex.start();
            self.exporter().publish(export, &vertex, stop).await
        };
        let result = vertex.track(work).await;
        match (&result, &scope.known) {
            (Ok(exported), Some(known)) => known.note_output(number, exported),
            (Ok(_), None) => {}
            (Err(_), _) => stop.cancel(),
        }
        Ok(result?)
    }
}
