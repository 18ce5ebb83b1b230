//! Collection in the background: after builds end, what they no longer need goes.

use std::{sync::Arc, time::Duration};

use lapstrake_layerstore_store::{Collected, Collector, Metadata, StoreError};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::error;

/// Builds often end in swarms: one collection serves all that end within this time.
const CALM: Duration = Duration::from_secs(2);

/// Asks for a collection. Cheap to clone; asking never waits, and asking often is asking once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sweep(Arc<Notify>);

impl Sweep {
    /// There may be something to collect.
    pub(crate) fn soon(&self) {
        self.0.notify_one();
    }
}

/// Collects what the last run left, and then whenever it is asked, until `stop`.
///
/// Runs beside requests from the start: what they make is held by leases before it is there, so that even the first collection leaves
/// it alone.
pub(crate) async fn run(
    collector: Arc<Collector>,
    metadata: Metadata,
    sweep: Sweep,
    stop: CancellationToken,
) {
    let first = Arc::clone(&collector);
    report("left by the last run", blocking(move || first.collect_at_start(&metadata)).await);
    loop {
        tokio::select! {
            () = sweep.0.notified() => {}
            () = stop.cancelled() => return,
        }
        tokio::select! {
            () = tokio::time::sleep(CALM) => {}
            () = stop.cancelled() => return,
        }
        let collector = Arc::clone(&collector);
        report("no longer needed", blocking(move || collector.collect()).await);
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

fn report(why: &str, collected: Result<Collected, StoreError>) {
    match collected {
        Ok(Collected { snapshots, keys, blobs, bytes }) => {
            let (trees, blobs) = (snapshots.len() + keys.len(), blobs.len());
            if trees + blobs > 0 {
                tracing::info!(trees, blobs, bytes, "collected what was {why}");
            }
        }
        // What could not be removed now is tried again the next time.
        Err(error) => tracing::error!(error = error::chain(&error), "collection failed"),
    }
}
