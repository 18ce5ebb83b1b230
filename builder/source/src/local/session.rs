//! A directory of a client, transferred.

use std::{sync::Arc, time::Duration};

use lapstrake_layerstore_store::Tree;
use lapstrake_session::{Error, SessionCaller, SyncRequest, Wait};
use tokio::sync::watch;

use super::{Listing, LocalSpec, reuse::Reuse};
use crate::{SourceContext, SourceError, sources::Shared};

/// How often progress is told.
const TICK: Duration = Duration::from_millis(100);

/// Transfers the directory from the session that the op names, or from any of those that wait.
pub(super) async fn transfer(
    shared: &Arc<Shared>,
    spec: &Arc<LocalSpec>,
    cx: &SourceContext,
) -> Result<Tree, SourceError> {
    if let Some(id) = &spec.session
        && let Ok(caller) = cx.or_canceled(shared.sessions.get(id, Wait::default())).await?
    {
        match from(shared, spec, cx, &caller).await {
            // Gone while it was asked: another client may have the same directory.
            Err(SourceError::Session { source: Error::Closed { .. }, .. }) if cx.sessions.len() > 1 => {}
            result => return result,
        }
    }
    let mut last = None;
    for id in &cx.sessions {
        match cx.or_canceled(shared.sessions.get(id.as_str(), Wait::default())).await? {
            Ok(caller) => match from(shared, spec, cx, &caller).await {
                Err(error @ SourceError::Session { .. }) => last = Some(error),
                result => return result,
            },
            Err(error) => last = Some(SourceError::session(&spec.origin())(error)),
        }
    }
    Err(last.unwrap_or_else(|| SourceError::NoDirectory { origin: spec.origin() }))
}

async fn from(
    shared: &Arc<Shared>,
    spec: &Arc<LocalSpec>,
    cx: &SourceContext,
    caller: &SessionCaller,
) -> Result<Tree, SourceError> {
    // A client that does not say which directory it is could have any: with other files of the same names, sizes and times.
    let known = !caller.shared_key().is_empty();
    // BuildKit's shared key.
    let key = format!("{}:{}:{}", spec.name, spec.hint, caller.shared_key());
    let _turn = if known { Some(cx.or_canceled(shared.turns.take(&key)).await?) } else { None };
    let (begun, destination) = {
        let (shared, spec, key) = (Arc::clone(shared), Arc::clone(spec), key.clone());
        SourceError::blocking(move || {
            let reuse = if known { Reuse::find(&shared, &key)? } else { Reuse::nothing() };
            reuse.begin(&shared, &spec)
        })
        .await?
    };
    let request = SyncRequest {
        name: spec.name.clone(),
        include_patterns: spec.include.clone().unwrap_or_default(),
        exclude_patterns: spec.exclude.clone().unwrap_or_default(),
        follow_paths: spec.follow.clone().unwrap_or_default(),
    };
    let (bytes, seen) = watch::channel(0);
    let sync = caller.sync_dir(&request, destination, Some(&bytes), &cx.cancel);
    let received = watched(sync, seen, spec, cx).await.map_err(SourceError::session(&spec.origin()))?;
    let (shared, spec) = (Arc::clone(shared), Arc::clone(spec));
    SourceError::blocking(move || {
        let listing = Listing { index: received.index, extra: Vec::new() };
        begun.finish(&shared, &spec, known.then_some(&key), &listing)
    })
    .await
}

/// Tells progress while `work` goes on.
async fn watched<T>(
    work: impl Future<Output = T>,
    bytes: watch::Receiver<u64>,
    spec: &LocalSpec,
    cx: &SourceContext,
) -> T {
    let mut part = cx.vertex.part(spec.part(), "transferring", 0);
    let mut tick = tokio::time::interval(TICK);
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => {
                part.update(*bytes.borrow(), 0);
                return done;
            }
            _ = tick.tick() => part.update(*bytes.borrow(), 0),
        }
    }
}
