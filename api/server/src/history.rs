//! `/lapstrake/v1/builds`: what was built, complete logs, and why steps ran. Not Docker's; described in `docs/history.md`.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::StatusCode;
use lapstrake_api_types::{
    BuildDetail, BuildItem, BuildList, BuildReason, BuildVertex, BuildsRemoved, Timestamp, bool_value,
};
use lapstrake_builder_history::{
    BuildLog, BuildRecord, BuildStatus, BuildSummary, History, HistoryError, MissReason, VertexRecord,
};
use lapstrake_builder_progress::Plain;

use crate::{
    ApiError, ApiErrorKind, AppState,
    blocking::blocking,
    body::{self, Answer},
    error::chain,
    request::DoorRequest,
    route::HistoryDoor,
};

/// How long a question waits for a build that has ended to be written down.
const SETTLE: Duration = Duration::from_secs(10);

pub(crate) async fn enter(
    state: Arc<AppState>,
    request: DoorRequest,
    door: HistoryDoor,
) -> Result<Answer, ApiError> {
    let Some(history) = state.history.get().cloned() else {
        return Err(ApiError::not_implemented("this daemon keeps no build history"));
    };
    // A build that has just ended is on its way to the disk. One that cannot get there is shown as it is known.
    let _ = tokio::time::timeout(SETTLE, history.settle()).await;
    match door {
        HistoryDoor::List => {
            let builds = blocking(move || history.builds()).await?;
            Ok(body::ok(&BuildList { builds: builds.iter().map(build_item).collect() }))
        }
        HistoryDoor::Inspect(id) => {
            let record = blocking(move || history.build(&id)).await?;
            Ok(body::ok(&build_detail(&record)))
        }
        HistoryDoor::Log(id) => {
            let mut follow = request.form.all("follow");
            let is_followed = follow.next().is_some_and(|value| value.is_empty() || bool_value(value));
            let log = blocking(move || history.log(&id, is_followed)).await?;
            Ok(plain(log))
        }
        HistoryDoor::Remove(id) => {
            let removed = blocking(move || remove(&history, &id)).await?;
            Ok(body::ok(&BuildsRemoved { removed }))
        }
    }
}

fn remove(history: &History, id: &str) -> Result<Vec<String>, HistoryError> {
    if id.is_empty() { history.clear() } else { Ok(vec![history.remove(id)?]) }
}

/// The log as `--progress=plain` shows it, at the client's speed.
fn plain(mut log: BuildLog) -> Answer {
    let (writer, body) = body::stream(None);
    tokio::spawn(async move {
        let mut display = Plain::new();
        loop {
            let next = tokio::select! {
                () = writer.closed() => return,
                next = log.next() => next,
            };
            match next {
                Ok(Some(response)) => {
                    if writer.send(display.update(response)).await.is_err() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    writer.cut_off(chain(&error)).await;
                    return;
                }
            }
        }
    });
    body::answer(StatusCode::OK, "text/plain; charset=utf-8", body)
}

impl From<HistoryError> for ApiError {
    fn from(error: HistoryError) -> Self {
        let kind = match error {
            HistoryError::NoSuchBuild { .. } | HistoryError::NoLog { .. } => ApiErrorKind::NotFound,
            HistoryError::Ambiguous { .. } => ApiErrorKind::Invalid,
            HistoryError::Running { .. } => ApiErrorKind::Conflict,
            _ => ApiErrorKind::Internal,
        };
        Self::new(kind, chain(&error))
    }
}

fn text(time: SystemTime) -> String {
    Timestamp::from(time).rfc3339()
}

fn milliseconds(from: Option<SystemTime>, to: Option<SystemTime>) -> u64 {
    let since = from.map(|from| to.unwrap_or_else(SystemTime::now).duration_since(from).unwrap_or_default());
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// A build as clients are told of it.
pub fn build_item(summary: &BuildSummary) -> BuildItem {
    BuildItem {
        id: summary.id.clone(),
        name: summary.name.clone(),
        status: summary.status.as_str().to_owned(),
        created: text(summary.created),
        completed: summary.completed.map(text),
        duration_ms: match (summary.status, summary.completed) {
            // When it ended is not known.
            (BuildStatus::Interrupted, None) => 0,
            (_, completed) => milliseconds(Some(summary.created), completed),
        },
        error: summary.error.clone(),
        frontend: summary.frontend.clone(),
        dockerfile: summary.dockerfile.clone(),
        target: summary.target.clone(),
        context: summary.context.clone(),
        platforms: summary.platforms.clone(),
        build_args: summary.build_args.clone(),
        output: summary.output.clone(),
        names: summary.names.clone(),
        image: summary.image.clone(),
        total_steps: summary.total_steps,
        completed_steps: summary.completed_steps,
        cached_steps: summary.cached_steps,
        warnings: summary.warnings,
        log_bytes: summary.log_bytes,
    }
}

/// A build with its vertices, as clients are told of it.
pub fn build_detail(record: &BuildRecord) -> BuildDetail {
    BuildDetail { item: build_item(&record.summary), vertices: record.vertices.iter().map(vertex).collect() }
}

fn vertex(record: &VertexRecord) -> BuildVertex {
    BuildVertex {
        digest: record.digest.clone(),
        name: record.name.clone(),
        inputs: record.inputs.clone(),
        started: record.started.map(text),
        completed: record.completed.map(text),
        duration_ms: match (record.started, record.completed) {
            (Some(_), Some(_)) => milliseconds(record.started, record.completed),
            _ => 0,
        },
        cached: record.cached,
        error: record.error.clone(),
        reasons: record.reasons.iter().map(reason).collect(),
    }
}

fn reason(reason: &MissReason) -> BuildReason {
    let detail = match serde_json::to_value(reason) {
        Ok(serde_json::Value::Object(detail)) => detail,
        _ => serde_json::Map::new(),
    };
    BuildReason { text: reason.to_string(), detail }
}
