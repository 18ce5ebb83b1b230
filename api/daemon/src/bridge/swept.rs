//! Builds, with a collection after each, and an end when the daemon ends.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use lapstrake_api_server::{ApiError, BodyStream, BuildOrder, Builds, Built, ReceivedContext};
use lapstrake_builder_engine::{BuildRequest, EngineError, Exported};
use lapstrake_builder_progress::Progress;
use tokio_util::sync::CancellationToken;

use crate::sweeper::Sweep;

/// Passes everything on, asks for a collection when a build has ended, and cancels builds when the daemon is told to stop.
pub(crate) struct Swept {
    builds: Arc<dyn Builds>,
    sweep: Sweep,
    stop: CancellationToken,
}

impl Swept {
    /// `builds` until `stop`, and then `sweep`.
    pub(crate) fn new(builds: Arc<dyn Builds>, sweep: Sweep, stop: CancellationToken) -> Self {
        Self { builds, sweep, stop }
    }
}

impl Builds for Swept {
    fn receive_context(
        &self,
        body: BodyStream,
        cancel: CancellationToken,
    ) -> BoxFuture<'_, Result<ReceivedContext, ApiError>> {
        let after = After(self.sweep.clone());
        Box::pin(async move {
            let received = self.builds.receive_context(body, cancel).await;
            // What did not become a context is left over; asking once too often costs a look.
            drop(after);
            received
        })
    }

    fn receive_dockerfile(
        &self,
        name: String,
        text: Bytes,
    ) -> BoxFuture<'_, Result<ReceivedContext, ApiError>> {
        self.builds.receive_dockerfile(name, text)
    }

    fn build(
        &self,
        order: BuildOrder,
        progress: Progress,
        cancel: CancellationToken,
    ) -> BoxFuture<'_, Result<Built, ApiError>> {
        self.run(self.builds.build(order, progress, cancel.clone()), cancel)
    }

    fn solve(
        &self,
        request: BuildRequest,
        progress: Progress,
        cancel: CancellationToken,
    ) -> BoxFuture<'_, Result<Exported, EngineError>> {
        self.run(self.builds.solve(request, progress, cancel.clone()), cancel)
    }
}

impl Swept {
    fn run<'a, T: Send + 'a>(
        &'a self,
        mut build: BoxFuture<'a, T>,
        cancel: CancellationToken,
    ) -> BoxFuture<'a, T> {
        let running = self.sweep.building();
        Box::pin(async move {
            let built = tokio::select! {
                built = &mut build => built,
                () = self.stop.cancelled() => {
                    // Its client hears that it was cancelled, and its processes get to end.
                    cancel.cancel();
                    build.await
                }
            };
            drop(running);
            built
        })
    }
}

/// Asks for a collection when it goes, however that comes.
struct After(Sweep);

impl Drop for After {
    fn drop(&mut self) {
        self.0.soon();
    }
}
