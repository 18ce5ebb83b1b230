//! `POST /build`, both versions, with or without a session; `/build/cancel`, `/build/prune`.
//!
//! ```text
//!   query ─► BuildQuery ─► context (body │ session │ upload │ URL) ─► Builds::build ─► Progress (spool)
//!                                                                                        │ read back at the client's speed
//!   client ◄── lines ◄── Rendering: classic transcript │ moby.buildkit.trace ◄───────────┘
//! ```
//!
//! The build never waits for its client. The client's end cancels the build: before the first byte by dropping this
//! request's future, after it by dropping the body; both hold the guard of the build's token.

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use lapstrake_api_types::{
    BuildQuery, BuilderVersion, ContextSource, EventAction, EventType, ProgressForm, PruneQuery,
    StreamMessage, Timestamp, decode_auth_configs,
};
use lapstrake_builder_progress::{Limits, Progress, classic::Removal};
use lapstrake_layerstore_store::random_id;
use lapstrake_session::{SessionId, Wait};
use tokio::{sync::oneshot, task::JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    ApiError, AppState, BodyStream, BuildContext, BuildOrder, Built,
    blocking::blocking,
    body::{self, Answer, StreamWriter},
    request::DoorRequest,
};

pub(crate) mod attrs;
mod jobs;
mod render;
mod sniff;

pub(crate) use jobs::Jobs;
use render::{Ending, Rendering};
use sniff::{Sniffed, sniff};

/// How long a failure waits for the session of who asked, in all.
const SESSION_WAIT: Duration = Duration::from_secs(5);

pub(crate) async fn build(state: Arc<AppState>, request: DoorRequest) -> Result<Answer, ApiError> {
    let session = SessionId::parse(request.form.get("session"));
    let begun = begin(Arc::clone(&state), request).await;
    if begun.is_err()
        && let Some(session) = session
    {
        // Docker's CLI 20.10 opens its session beside this request. When it is told of a failure before it serves the session, it does not
        // end that any more, and waits for its end.
        let settled = async {
            if let Ok(caller) = state.sessions.get(session.as_str(), Wait::AtMost(SESSION_WAIT)).await {
                caller.answers().await;
            }
        };
        let _ = tokio::time::timeout(SESSION_WAIT, settled).await;
    }
    begun
}

async fn begin(state: Arc<AppState>, request: DoorRequest) -> Result<Answer, ApiError> {
    let query = BuildQuery::parse(&request.form, request.api)?;
    let limit = state.limits.upload_bytes;
    if query.is_upload {
        let id = query.build_id.clone().unwrap_or_default();
        state.jobs.bring(&id, request.body_stream(limit)).await?;
        return Ok(body::answer(StatusCode::OK, "application/json", body::Body::empty()));
    }

    let id = query.build_id.clone().unwrap_or_else(random_id);
    let cancel = CancellationToken::new();
    // Ends the build when this future, and later the body, is dropped.
    let guard = cancel.clone().drop_guard();
    let job = state.jobs.start(&id, cancel.clone())?;
    let ending = Ending::new(&query, request.api);
    let auth = auth_configs(&request);
    let session = query.session.as_deref().and_then(SessionId::parse);
    let context = match &query.context {
        ContextSource::Session => BuildContext::Session,
        ContextSource::Url(url) => BuildContext::Url(url.clone()),
        ContextSource::Body => receive(&state, &query, request.body_stream(limit), &cancel).await?,
        ContextSource::UploadRequest => {
            receive(&state, &query, job.wait_for_upload().await?, &cancel).await?
        }
    };

    let progress = Progress::anonymous(Limits::default()).map_err(|error| ApiError::internal(&error))?;
    let events = progress.subscribe();
    let (quiet, form, removal) = (query.quiet, query.progress_form(), removal(&query));
    let (steps, planned) = match form {
        ProgressForm::Classic => {
            let (sender, receiver) = oneshot::channel();
            (Some(sender), Some(receiver))
        }
        ProgressForm::Trace => (None, None),
    };
    let order = BuildOrder { id, query, session, context, auth, steps };
    let work = {
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let built = state.builds.build(order, progress, cancel).await;
            drop(job);
            if let Ok(built) = &built {
                tell(&state, built);
            }
            built
        })
    };
    let rendering = match planned {
        Some(planned) => Rendering::classic(events, planned, removal),
        None => Rendering::trace(events),
    };
    if quiet {
        quietly(rendering, work, ending, guard).await
    } else {
        aloud(rendering, work, ending, guard).await
    }
}

/// Takes a context in. As in Moby, a classic build needs an archive, and BuildKit's may have a Dockerfile alone.
async fn receive(
    state: &AppState,
    query: &BuildQuery,
    body: BodyStream,
    cancel: &CancellationToken,
) -> Result<BuildContext, ApiError> {
    let sniffed = match query.version {
        BuilderVersion::Classic => Sniffed::Archive(body),
        BuilderVersion::BuildKit => sniff(body).await?,
    };
    let received = match sniffed {
        Sniffed::Archive(archive) => state.builds.receive_context(archive, cancel.clone()).await?,
        Sniffed::Dockerfile(text) => {
            let name = query.dockerfile.clone().unwrap_or_else(|| "Dockerfile".to_owned());
            state.builds.receive_dockerfile(name, text).await?
        }
    };
    Ok(BuildContext::Received(received))
}

/// Credentials for registries: a document of all of them, and (as for pulls) a header with one.
fn auth_configs(request: &DoorRequest) -> Vec<(String, lapstrake_api_types::AuthConfig)> {
    let mut auth: Vec<_> = decode_auth_configs(request.header("x-registry-config")).into_iter().collect();
    let one = request.auth();
    if !one.is_empty() {
        auth.push((one.server_address.clone(), one));
    }
    auth
}

/// The stream as it comes.
async fn aloud(
    mut rendering: Rendering,
    work: JoinHandle<Result<Built, ApiError>>,
    ending: Ending,
    guard: DropGuard,
) -> Result<Answer, ApiError> {
    // Until there is something to say, an error is the whole answer.
    let first = rendering.next().await?;
    if first.is_none() {
        let built = join(work).await.map_err(ApiError::with_excerpt)?;
        return Ok(whole(last_lines(&mut rendering, &ending, &built)));
    }
    let (writer, body) = body::stream(Some(guard));
    tokio::spawn(async move {
        let mut next = Ok(first);
        let told = loop {
            match next {
                Ok(Some(messages)) => {
                    if send(&writer, &messages).await.is_err() {
                        return;
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
            next = tokio::select! {
                () = writer.closed() => return,
                next = rendering.next() => next,
            };
        };
        let built = match told {
            Ok(()) => join(work).await,
            Err(error) => Err(error),
        };
        // A client that left before the end does not hear it.
        let _ = match built {
            Ok(built) => {
                let lines = last_lines(&mut rendering, &ending, &built);
                send(&writer, &lines).await
            }
            Err(error) => match send(&writer, &rendering.failure(&error)).await {
                Ok(()) => writer.error(&error).await,
                gone => gone,
            },
        };
    });
    Ok(body::answer(StatusCode::OK, "application/json", body))
}

fn last_lines(rendering: &mut Rendering, ending: &Ending, built: &Built) -> Vec<StreamMessage> {
    let mut lines = rendering.success(built);
    lines.extend(ending.success(built, rendering.unused_args()));
    lines
}

/// When a step's container is said to be removed.
fn removal(query: &BuildQuery) -> Removal {
    match (query.force_remove, query.remove) {
        (true, _) => Removal::Always,
        (false, true) => Removal::AfterSuccess,
        (false, false) => Removal::Never,
    }
}

/// Nothing but the image's id; or, after a failure, everything that would have been said, and the error.
///
/// The answer begins as soon as there is something that could be said. Docker's CLI with BuildKit waits for its head without
/// listening to anybody: until then an interrupt would end neither the CLI nor the build (as with Moby, which begins at the end).
async fn quietly(
    mut rendering: Rendering,
    work: JoinHandle<Result<Built, ApiError>>,
    ending: Ending,
    guard: DropGuard,
) -> Result<Answer, ApiError> {
    let Some(first) = rendering.next().await? else {
        let built = join(work).await.map_err(ApiError::with_excerpt)?;
        return Ok(whole(ending.quiet_success(&built)));
    };
    let (writer, body) = body::stream(Some(guard));
    tokio::spawn(async move {
        let built = tokio::select! {
            () = writer.closed() => return,
            built = join(work) => built,
        };
        let error = match built {
            Ok(built) => {
                // A client that left before the end does not hear it; nor does it below.
                let _ = send(&writer, &ending.quiet_success(&built)).await;
                return;
            }
            Err(error) => error,
        };
        let mut next = Some(first);
        while let Some(messages) = next {
            if send(&writer, &messages).await.is_err() {
                return;
            }
            next = rendering.next().await.unwrap_or_default();
        }
        if send(&writer, &rendering.failure(&error)).await.is_err() {
            return;
        }
        let _ = writer.error(&error).await;
    });
    Ok(body::answer(StatusCode::OK, "application/json", body))
}

async fn join(work: JoinHandle<Result<Built, ApiError>>) -> Result<Built, ApiError> {
    match work.await {
        Ok(result) => result,
        Err(error) => {
            tracing::error!(%error, "a build panicked");
            Err(ApiError::new(crate::ApiErrorKind::Internal, "the build ended in an internal error"))
        }
    }
}

async fn send(writer: &StreamWriter, messages: &[StreamMessage]) -> Result<(), body::Gone> {
    writer.send(lines(messages)).await
}

fn lines(messages: &[StreamMessage]) -> Vec<u8> {
    messages.iter().map(StreamMessage::to_line).collect::<Vec<_>>().concat()
}

fn whole(messages: impl IntoIterator<Item = StreamMessage>) -> Answer {
    let messages: Vec<StreamMessage> = messages.into_iter().collect();
    body::answer(StatusCode::OK, "application/json", body::Body::full(lines(&messages)))
}

/// What others are told of a build that made an image.
fn tell(state: &AppState, built: &Built) {
    let Some(id) = &built.image else { return };
    state.events.tell_image(&state.stores, EventAction::Create, id, id.as_str());
    for name in &built.names {
        state.events.tell_image(&state.stores, EventAction::Tag, id, &name.familiar());
    }
}

pub(crate) fn cancel(state: &AppState, request: &DoorRequest) -> Result<Answer, ApiError> {
    let id = request.form.get("id");
    if id.is_empty() {
        return Err(ApiError::invalid("build ID not provided"));
    }
    // A build that is not running (any more) is what was wanted: success, as in Moby.
    state.jobs.cancel(id);
    Ok(body::answer(StatusCode::OK, "application/json", body::Body::empty()))
}

pub(crate) async fn prune(state: Arc<AppState>, request: DoorRequest) -> Result<Answer, ApiError> {
    let query = PruneQuery::parse(&request.form, request.api, Timestamp::now())?;
    let report = blocking(move || {
        let report = state.cache.prune(&query)?;
        state.events.tell_prune(EventType::Builder, report.space_reclaimed);
        Ok::<_, ApiError>(report)
    })
    .await?;
    Ok(body::ok(&report))
}
