//! `Control.ListenBuildHistory` and `UpdateBuildHistory`: the history as BuildKit's clients see it.

mod filter;

use std::{collections::HashMap, sync::Arc};

use futures::stream::{self, BoxStream, StreamExt as _};
use lapstrake_api_proto::{
    control::{
        BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRecord, BuildHistoryRequest, BuildResultInfo,
        Descriptor, Exporter, UpdateBuildHistoryRequest,
    },
    google::rpc,
};
use lapstrake_builder_history::{
    AttachmentKind, AttachmentRecord, BuildStatus, BuildSummary, History, HistoryError, News,
};
use lapstrake_layerstore_oci::Digest;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tonic::{Code, Status};

use self::filter::HistoryFilter;
use crate::{
    AppState,
    error::chain,
    grpc::{blocking, content, timestamp},
};

/// The media type of a log.
const LOG: &str = "application/vnd.buildkit.status.v0";

type Events = BoxStream<'static, Result<BuildHistoryEvent, Status>>;

fn history(state: &AppState) -> Result<&History, Status> {
    state.history.get().ok_or_else(|| Status::unavailable("this daemon has no build history"))
}

fn failed(error: &HistoryError) -> Status {
    let message = chain(error);
    match error {
        HistoryError::NoSuchBuild { .. } | HistoryError::NoLog { .. } => Status::not_found(message),
        HistoryError::Running { .. } | HistoryError::Ambiguous { .. } => Status::failed_precondition(message),
        _ => Status::internal(message),
    }
}

/// What was built, and with `early_exit` no more; else also what happens from then on.
pub(super) async fn listen(state: &Arc<AppState>, request: BuildHistoryRequest) -> Result<Events, Status> {
    let filter = HistoryFilter::parse(&request.filter).map_err(Status::invalid_argument)?;
    let limit = match usize::try_from(request.limit) {
        Ok(0) => usize::MAX,
        Ok(limit) => limit,
        Err(_) => return Err(Status::invalid_argument(format!("invalid limit {}", request.limit))),
    };
    let history = history(state)?.clone();
    // A client that was told of its build's end finds it here.
    history.settle().await;
    // Before the look, so that nothing is missed in between.
    let news = history.news();
    let asked = request.r#ref.clone();
    let looking = (Arc::clone(state), history);
    let (active_only, early_exit) = (request.active_only, request.early_exit);
    let past = blocking(move || {
        let (state, history) = looking;
        let builds = history.builds().map_err(|error| failed(&error))?;
        let meant = builds.into_iter().filter(|build| asked.is_empty() || build.id == asked);
        let (running, ended): (Vec<_>, Vec<_>) =
            meant.partition(|build| build.status == BuildStatus::Running);
        let ended = ended.into_iter().filter(|build| !active_only && filter.matches(build)).take(limit);
        Ok(running.into_iter().chain(ended).map(|build| event(&state, build)).collect::<Vec<_>>())
    });
    let past = stream::iter(past.await?.into_iter().map(Ok));
    if early_exit {
        return Ok(past.boxed());
    }
    let listener = Listener { state: Arc::clone(state), news, asked: request.r#ref };
    Ok(past.chain(stream::try_unfold(listener, Listener::next)).boxed())
}

/// Somebody who wants to know what happens.
struct Listener {
    state: Arc<AppState>,
    news: Receiver<News>,
    asked: String,
}

impl Listener {
    async fn next(mut self) -> Result<Option<(BuildHistoryEvent, Self)>, Status> {
        loop {
            let news = match self.news.recv().await {
                Ok(news) => news,
                Err(RecvError::Closed) => return Ok(None),
                Err(RecvError::Lagged(missed)) => {
                    return Err(Status::resource_exhausted(format!(
                        "{missed} events were missed: listen again"
                    )));
                }
            };
            let (News::Begun(id) | News::Recorded(id) | News::Forgotten(id)) = &news;
            if !self.asked.is_empty() && self.asked != *id {
                continue;
            }
            if let News::Forgotten(id) = news {
                let record = Some(BuildHistoryRecord { r#ref: id, ..BuildHistoryRecord::default() });
                let kind = BuildHistoryEventType::Deleted.into();
                return Ok(Some((BuildHistoryEvent { r#type: kind, record }, self)));
            }
            // What began may have ended since.
            let kind = match news {
                News::Begun(_) => BuildHistoryEventType::Started,
                _ => BuildHistoryEventType::Complete,
            };
            let (id, state) = (id.clone(), Arc::clone(&self.state));
            let found = blocking(move || match history(&state)?.build(&id) {
                Ok(build) => Ok(Some(event(&state, build.summary))),
                // It is forgotten again, which is the next event.
                Err(HistoryError::NoSuchBuild { .. }) => Ok(None),
                Err(error) => Err(failed(&error)),
            });
            if let Some(event) = found.await? {
                return Ok(Some((BuildHistoryEvent { r#type: kind.into(), ..event }, self)));
            }
        }
    }
}

/// Removes, pins or finishes a record.
pub(super) async fn update(state: &Arc<AppState>, request: UpdateBuildHistoryRequest) -> Result<(), Status> {
    let history = history(state)?.clone();
    history.settle().await;
    let UpdateBuildHistoryRequest { r#ref: id, pinned, delete, finalize } = request;
    let update = move || {
        // Whole names only: what a script meant must not be another build.
        let is_there = history.recorded(&id)?.is_some() || history.is_running(&id);
        match (is_there, delete, finalize) {
            (false, ..) => Err(HistoryError::NoSuchBuild { id }),
            (_, true, _) => history.remove(&id).map(drop),
            // What runs is finished when it ends.
            (_, _, true) if history.is_running(&id) => Ok(()),
            (_, _, true) => history.finalize(&id),
            _ => history.pin(&id, pinned),
        }
    };
    blocking(move || update().map_err(|error| failed(&error))).await
}

/// A build as an event. Blocks.
fn event(state: &AppState, build: BuildSummary) -> BuildHistoryEvent {
    let kind = match build.status {
        BuildStatus::Running => BuildHistoryEventType::Started,
        _ => BuildHistoryEventType::Complete,
    };
    // What somebody removed since is no longer told of: clients fetch all that they are told of.
    let length = |digest: &str| content::length(&state.stores, &Digest::parse(digest).ok()?).ok()?;
    BuildHistoryEvent { r#type: kind.into(), record: Some(record(build, length)) }
}

fn record(build: BuildSummary, length: impl Fn(&str) -> Option<u64>) -> BuildHistoryRecord {
    let count = |count: u64| i32::try_from(count).unwrap_or(i32::MAX);
    let size = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let descriptor = |attached: &AttachmentRecord| Descriptor {
        media_type: attached.media_type.clone(),
        digest: attached.digest.clone(),
        size: size(attached.bytes),
        annotations: attached.annotations.clone().into_iter().collect(),
    };
    let attached =
        |kind: AttachmentKind| build.attachments.iter().find(|one| one.kind == kind).map(descriptor);
    let mut result: Option<BuildResultInfo> = None;
    let mut results: HashMap<String, BuildResultInfo> = HashMap::new();
    for attached in &build.attachments {
        let AttachmentKind::Attestation { platform } = &attached.kind else { continue };
        let of = match platform {
            None => result.get_or_insert_default(),
            Some(platform) => results.entry(platform.clone()).or_default(),
        };
        of.attestations.push(descriptor(attached));
    }
    for (number, left) in &build.results {
        let Some(bytes) = length(&left.digest) else { continue };
        let of = result.get_or_insert_default();
        let descriptor = Descriptor {
            media_type: left.media_type.clone(),
            digest: left.digest.clone(),
            size: size(bytes),
            annotations: left.annotations.clone().into_iter().collect(),
        };
        // For clients that know of one alone.
        of.result_deprecated.get_or_insert_with(|| descriptor.clone());
        of.results.insert(i64::from(*number), descriptor);
    }
    BuildHistoryRecord {
        error: error(&build),
        created_at: Some(timestamp(build.created)),
        completed_at: match build.status {
            BuildStatus::Running => None,
            // When it was cut short, nobody knows.
            _ => Some(timestamp(build.completed.unwrap_or(build.created))),
        },
        logs: build.log.as_ref().map(|log| Descriptor {
            media_type: LOG.to_owned(),
            digest: log.digest.clone(),
            size: size(log.bytes),
            annotations: HashMap::new(),
        }),
        trace: attached(AttachmentKind::Trace),
        external_error: attached(AttachmentKind::Failure),
        result,
        results,
        exporters: build
            .outputs
            .into_iter()
            .map(|output| Exporter { r#type: output.kind, attrs: output.attrs.into_iter().collect() })
            .collect(),
        r#ref: build.id,
        frontend: build.frontend,
        frontend_attrs: build.options.into_iter().collect(),
        exporter_response: build.response.into_iter().collect(),
        generation: i32::try_from(build.generation).unwrap_or(i32::MAX),
        pinned: build.pinned,
        num_cached_steps: count(build.cached_steps),
        num_total_steps: count(build.total_steps),
        num_completed_steps: count(build.completed_steps),
        num_warnings: count(build.warnings),
    }
}

/// Why a build failed; its details are in the document of their own.
fn error(build: &BuildSummary) -> Option<rpc::Status> {
    let (code, message) = match build.status {
        BuildStatus::Running | BuildStatus::Completed => return None,
        BuildStatus::Error => (build.failure_code, build.error.clone().unwrap_or_default()),
        // By these words clients know it.
        BuildStatus::Canceled => (Code::Cancelled as i32, "context canceled".to_owned()),
        BuildStatus::Interrupted => {
            (Code::Aborted as i32, "the daemon ended while the build was running".to_owned())
        }
    };
    let code = if code == Code::Ok as i32 { Code::Unknown as i32 } else { code };
    Some(rpc::Status { code, message, details: Vec::new() })
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        time::{Duration, UNIX_EPOCH},
    };

    use lapstrake_builder_history::{LogRecord, ResultRecord};

    use super::*;

    pub(super) fn summary() -> BuildSummary {
        BuildSummary {
            id: "id".to_owned(),
            name: "name".to_owned(),
            status: BuildStatus::Completed,
            created: UNIX_EPOCH + Duration::from_secs(7),
            completed: Some(UNIX_EPOCH + Duration::from_secs(9)),
            error: None,
            frontend: "dockerfile.v0".to_owned(),
            dockerfile: "Dockerfile".to_owned(),
            target: None,
            context: None,
            platforms: Vec::new(),
            build_args: Vec::new(),
            output: "image".to_owned(),
            names: Vec::new(),
            image: None,
            total_steps: 3,
            completed_steps: 2,
            cached_steps: 1,
            warnings: 4,
            log_bytes: None,
            options: BTreeMap::new(),
            outputs: Vec::new(),
            response: BTreeMap::new(),
            results: BTreeMap::new(),
            failure_code: 0,
            log: None,
            attachments: Vec::new(),
            pinned: false,
            generation: 0,
        }
    }

    #[test]
    fn errors_are_what_clients_know_them_by() {
        let error = |status: BuildStatus, code: i32| {
            let error = Some("why".to_owned());
            let told =
                record(BuildSummary { status, failure_code: code, error, ..summary() }, |_| None).error;
            told.map(|told| (told.code, told.message))
        };
        assert_eq!(error(BuildStatus::Completed, 0), None);
        assert_eq!(error(BuildStatus::Error, 5), Some((5, "why".to_owned())));
        // Of records that were written before codes were.
        assert_eq!(error(BuildStatus::Error, 0), Some((2, "why".to_owned())));
        assert_eq!(error(BuildStatus::Canceled, 0), Some((1, "context canceled".to_owned())));
        assert_eq!(error(BuildStatus::Interrupted, 0).unwrap().0, 10);
    }

    #[test]
    fn results_and_attestations_are_where_clients_look() {
        let attested = |platform: Option<&str>| AttachmentRecord {
            kind: AttachmentKind::Attestation { platform: platform.map(str::to_owned) },
            media_type: "application/vnd.in-toto+json".to_owned(),
            annotations: [("in-toto.io/predicate-type".to_owned(), "p".to_owned())].into(),
            digest: "sha256:a".to_owned(),
            bytes: 1,
        };
        let left = |digest: &str| ResultRecord {
            media_type: "m".to_owned(),
            digest: digest.to_owned(),
            annotations: BTreeMap::new(),
        };
        let build = BuildSummary {
            attachments: vec![attested(None), attested(Some("linux/arm64"))],
            results: [(0, left("gone")), (1, left("one")), (3, left("three"))].into(),
            log: Some(LogRecord { digest: "sha256:l".to_owned(), bytes: 3 }),
            ..summary()
        };
        let record = record(build, |digest| (digest != "gone").then_some(2));
        let result = record.result.unwrap();
        assert_eq!(result.attestations[0].annotations["in-toto.io/predicate-type"], "p");
        assert_eq!(result.results.keys().copied().collect::<std::collections::BTreeSet<_>>(), [1, 3].into());
        assert_eq!(result.result_deprecated.unwrap().digest, "one");
        assert_eq!(record.results["linux/arm64"].attestations.len(), 1);
        let log = record.logs.unwrap();
        assert_eq!((log.media_type.as_str(), log.digest.as_str(), log.size), (LOG, "sha256:l", 3));
        assert_eq!((record.num_total_steps, record.num_completed_steps), (3, 2));
        assert_eq!((record.num_cached_steps, record.num_warnings), (1, 4));
    }
}
