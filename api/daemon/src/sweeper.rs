//! Tidying in the background: after builds end, what they no longer need goes; and the cache is kept within its bounds, during builds, too.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use lapstrake_builder_cache::{BuildCache, CacheError, PruneRequest};
use lapstrake_layerstore_store::{Collected, Collector, Metadata};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::{blocking::blocking, error, memory};

/// Builds often end in swarms: one collection serves all that end within this time.
const CALM: Duration = Duration::from_secs(2);
/// How often the cache is looked at while something is built and no step ends: a step may write to a cache mount for hours, and others may fill the disk.
const WATCH: Duration = Duration::from_secs(10);
/// Looking at the cache takes at most one part of this many of the time.
const SHARE: u32 = 20;

/// Asks for a collection. Cheap to clone; asking never waits, and asking often is asking once.
#[derive(Debug, Clone)]
pub(crate) struct Sweep {
    asked: Arc<Notify>,
    builds: watch::Sender<usize>,
}

impl Default for Sweep {
    fn default() -> Self {
        Self { asked: Arc::default(), builds: watch::Sender::new(0) }
    }
}

impl Sweep {
    /// There may be something to collect.
    pub(crate) fn soon(&self) {
        self.asked.notify_one();
    }

    /// Whether nothing is built.
    fn is_resting(&self) -> bool {
        *self.builds.borrow() == 0
    }

    /// Something is built, until what this gives is dropped; and then there may be something to collect.
    pub(crate) fn building(&self) -> Building {
        self.builds.send_modify(|builds| *builds += 1);
        Building(self.clone())
    }
}

/// A build that runs.
#[derive(Debug)]
pub(crate) struct Building(Sweep);

impl Drop for Building {
    fn drop(&mut self) {
        self.0.builds.send_modify(|builds| *builds -= 1);
        self.0.soon();
    }
}

/// What is tidied, and by which rules.
#[derive(Debug, Clone)]
pub(crate) struct Tidier {
    /// Frees what nobody needs.
    pub(crate) collector: Arc<Collector>,
    /// What is kept within its bounds.
    pub(crate) cache: Arc<BuildCache>,
    /// Those bounds, in the order in which they are applied; none where the cache is pruned only when it is asked for.
    pub(crate) rules: Arc<[PruneRequest]>,
}

impl Tidier {
    /// Prunes the cache by its rules, and then frees all that nobody needs.
    pub(crate) fn tidy(&self) -> Result<Collected, CacheError> {
        let (_, collected) = self.collector.collect_after(|| self.cache.gc(&self.rules))?;
        Ok(collected)
    }

    /// Prunes the cache by its rules while something is built: there is seldom anything to do.
    fn watch(&self) -> Result<Collected, CacheError> {
        if self.cache.gc(&self.rules)?.entries.is_empty() {
            return Ok(Collected::default());
        }
        Ok(self.collector.collect()?)
    }
}

/// Why the cache is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Occasion {
    /// Something ended.
    Asked,
    /// Something is built.
    Building,
}

/// Collects what the last run left, and then whenever it is asked, until `stop`.
///
/// Runs beside requests from the start: what they make is held by leases before it is there, so that even the first collection leaves
/// it alone.
pub(crate) async fn run(tidier: Tidier, metadata: Metadata, sweep: Sweep, stop: CancellationToken) {
    let collector = Arc::clone(&tidier.collector);
    let first = blocking(move || collector.collect_at_start(&metadata)).await;
    report("left by the last run", first.map_err(CacheError::from));
    sweep.soon();
    let mut took = Duration::ZERO;
    loop {
        let occasion = tokio::select! {
            () = sweep.asked.notified() => Occasion::Asked,
            () = growth(&tidier, &sweep), if !tidier.rules.is_empty() => Occasion::Building,
            () = stop.cancelled() => return,
        };
        tokio::select! {
            () = tokio::time::sleep(CALM.max(took * SHARE)) => {}
            () = stop.cancelled() => return,
        }
        let tidier = tidier.clone();
        let begin = Instant::now();
        let done = blocking(move || match occasion {
            Occasion::Asked => tidier.tidy(),
            Occasion::Building => tidier.watch(),
        });
        report("no longer needed", done.await);
        took = begin.elapsed();
        if sweep.is_resting() {
            tokio::task::spawn_blocking(memory::give_back);
        }
    }
}

/// Waits until the cache may have grown: a step of a build ended, or one runs for long.
async fn growth(tidier: &Tidier, sweep: &Sweep) {
    let mut builds = sweep.builds.subscribe();
    let long = async {
        // The sender lives in `sweep`.
        let _ = builds.wait_for(|builds| *builds > 0).await;
        tokio::time::sleep(WATCH).await;
    };
    tokio::select! {
        () = tidier.cache.grown() => {}
        () = long => {}
    }
}

fn report(why: &str, collected: Result<Collected, CacheError>) {
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
