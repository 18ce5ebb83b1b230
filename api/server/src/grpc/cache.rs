//! The build cache: `DiskUsage` and `Prune`.

use std::{sync::Arc, time::SystemTime};

use lapstrake_api_proto::control::{self as pb, UsageRecord};
use lapstrake_api_types::EventType;
use lapstrake_builder_cache::{CacheEntry, CacheError, EntryFilter, PruneBound, PruneRequest};
use tonic::Status;

use crate::{
    AppState,
    error::chain,
    grpc::{Worker, blocking, control::duration, timestamp},
};

pub(super) async fn usage(
    worker: &Worker,
    request: pb::DiskUsageRequest,
) -> Result<Vec<UsageRecord>, Status> {
    let filter = EntryFilter::parse(&request.filter).map_err(|error| told(&error))?;
    let newest = duration(request.age_limit).and_then(|age| SystemTime::now().checked_sub(age));
    let cache = Arc::clone(worker.engine.cache());
    blocking(move || {
        let entries = cache.usage().map_err(|error| told(&error))?;
        // As BuildKit: what was never used since it was made is not young.
        let is_old = |entry: &CacheEntry| match (newest, entry.last_used) {
            (Some(newest), Some(used)) => used <= newest,
            _ => true,
        };
        let meant = entries.into_iter().filter(|entry| filter.matches(entry) && is_old(entry));
        Ok(meant.map(record).collect())
    })
    .await
}

pub(super) async fn prune(
    state: &Arc<AppState>,
    worker: &Worker,
    request: pb::PruneRequest,
) -> Result<Vec<UsageRecord>, Status> {
    let bytes = |bytes: i64| u64::try_from(bytes).unwrap_or(0);
    let request = PruneRequest {
        all: request.all,
        filter: EntryFilter::parse(&request.filter).map_err(|error| told(&error))?,
        unused_for: duration(request.keep_duration),
        bound: PruneBound {
            reserved: bytes(request.reserved_space),
            max_used: bytes(request.max_used_space),
            min_free: bytes(request.min_free_space),
        },
    };
    let (state, cache) = (Arc::clone(state), Arc::clone(worker.engine.cache()));
    let collector = Arc::clone(&worker.collector);
    // What of pulled images is at hand is no entry of the cache, but goes with all of it.
    if request.all {
        worker.engine.forget_images();
    }
    blocking(move || {
        let pruned = collector.collect_after(|| cache.prune(&request));
        let (pruned, freed) = pruned.map_err(|error: CacheError| told(&error))?;
        state.events.tell_prune(EventType::Builder, freed.bytes);
        Ok(pruned.entries.into_iter().map(record).collect())
    })
    .await
}

#[allow(deprecated, reason = "clients since BuildKit 0.9 read `parents`, those before the other")]
fn record(entry: CacheEntry) -> UsageRecord {
    UsageRecord {
        id: entry.id,
        mutable: entry.mutable,
        in_use: entry.in_use,
        size: i64::try_from(entry.size).unwrap_or(i64::MAX),
        parent: entry.parents.first().cloned().unwrap_or_default(),
        created_at: Some(timestamp(entry.created)),
        last_used_at: entry.last_used.map(timestamp),
        usage_count: i64::try_from(entry.uses).unwrap_or(i64::MAX),
        description: entry.description,
        record_type: entry.kind.as_str().to_owned(),
        shared: entry.shared,
        parents: entry.parents,
    }
}

fn told(error: &CacheError) -> Status {
    match error {
        CacheError::Filter { .. } => Status::invalid_argument(chain(error)),
        _ => Status::internal(chain(error)),
    }
}
