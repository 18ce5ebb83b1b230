//! `Control.Status`: what a build says, from its beginning, for every reader anew.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use futures::stream::{self, BoxStream, StreamExt as _};
use lapstrake_api_proto::control::StatusResponse;
use lapstrake_builder_history::HistoryError;
use lapstrake_builder_progress::{Progress, Subscription};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tonic::Status;

use crate::{AppState, error::chain, grpc::blocking};

/// How long a reader waits for a build to begin, as in BuildKit: clients ask for both at once.
const BEGINNING: Duration = Duration::from_secs(6);
/// How long the spool of a build that has ended is kept for readers that were slower to ask than the build to end. What is older is in the
/// history, unless it is not to be recorded.
const LINGER: Duration = Duration::from_secs(10);

/// Spools of builds, by the reference that their clients gave them. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Spools(Arc<Shared>);

#[derive(Default)]
struct Shared {
    spools: Mutex<HashMap<String, Kept>>,
    arrived: Notify,
}

struct Kept {
    /// From its beginning.
    events: Subscription,
    is_running: bool,
    /// Tells spools apart whose builds have the same reference, one after the other.
    number: u64,
}

impl Spools {
    /// A build begins. Its spool is found until the guard is dropped, and for a while after.
    pub(super) fn begin(&self, reference: &str, progress: &Progress) -> Result<Running, Status> {
        let mut spools = self.0.spools.lock();
        let number = match spools.get(reference) {
            Some(kept) if kept.is_running => {
                return Err(Status::already_exists(format!("job ID {reference} exists")));
            }
            Some(kept) => kept.number + 1,
            None => 0,
        };
        let kept = Kept { events: progress.subscribe(), is_running: true, number };
        spools.insert(reference.to_owned(), kept);
        drop(spools);
        self.0.arrived.notify_waiters();
        Ok(Running { spools: self.clone(), reference: reference.to_owned(), number })
    }

    fn find(&self, reference: &str) -> Option<Subscription> {
        self.0.spools.lock().get(reference).map(|kept| kept.events.again())
    }

    async fn wait_for(&self, reference: &str) -> Option<Subscription> {
        let search = async {
            loop {
                // Subscribed before looking, so that an arrival in between is not missed.
                let mut arrival = std::pin::pin!(self.0.arrived.notified());
                arrival.as_mut().enable();
                if let Some(events) = self.find(reference) {
                    return events;
                }
                arrival.await;
            }
        };
        tokio::time::timeout(BEGINNING, search).await.ok()
    }
}

/// A build that runs.
pub(super) struct Running {
    spools: Spools,
    reference: String,
    number: u64,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(kept) = self.spools.0.spools.lock().get_mut(&self.reference) {
            kept.is_running = false;
        }
        let (spools, reference, number) = (self.spools.clone(), self.reference.clone(), self.number);
        // Each ends by itself, soon; there is none where the runtime has ended.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            tokio::time::sleep(LINGER).await;
            if let Entry::Occupied(kept) = spools.0.spools.lock().entry(reference)
                && kept.get().number == number
            {
                kept.remove();
            }
        });
    }
}

/// Everything that the build says, to its end; of one that has ended, what it said.
pub(super) async fn follow(
    state: &Arc<AppState>,
    reference: String,
) -> Result<BoxStream<'static, Result<StatusResponse, Status>>, Status> {
    if let Some(events) = state.spools.find(&reference) {
        return Ok(read(events));
    }
    if let Some(history) = state.history.get().cloned() {
        let asked = reference.clone();
        let log = blocking(move || match history.log(&asked, true) {
            Ok(log) => Ok(Some(log)),
            Err(HistoryError::NoSuchBuild { .. } | HistoryError::Ambiguous { .. }) => Ok(None),
            Err(error) => Err(Status::internal(chain(&error))),
        });
        if let Some(log) = log.await? {
            let next = |mut log: lapstrake_builder_history::BuildLog| async move {
                let next = log.next().await.map_err(|error| Status::internal(chain(&error)))?;
                Ok(next.map(|response| (response, log)))
            };
            return Ok(stream::try_unfold(log, next).boxed());
        }
    }
    match state.spools.wait_for(&reference).await {
        Some(events) => Ok(read(events)),
        None => Err(Status::not_found(format!("no such job {reference}"))),
    }
}

fn read(events: Subscription) -> BoxStream<'static, Result<StatusResponse, Status>> {
    let next = |mut events: Subscription| async move {
        let next = events.next().await.map_err(|error| Status::internal(chain(&error)))?;
        Ok(next.map(|response| (response, events)))
    };
    stream::try_unfold(events, next).boxed()
}
