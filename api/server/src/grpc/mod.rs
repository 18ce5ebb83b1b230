//! gRPC: BuildKit's services, over `POST /grpc` (an upgraded connection) or on a connection that is HTTP/2 from its first byte.
//!
//! ```text
//!   Control      Info, ListWorkers ─► worker      DiskUsage, Prune ─► cache      Session ─► crate::session
//!                Solve ─► solve: SolveRequest ─► BuildRequest ─► engine          Status ─► status: a build's spool
//!   LLBBridge    ─► the bridge of the build that the call names (builder/engine)
//!                ListenBuildHistory, UpdateBuildHistory ─► history
//!   Content      content: documents and logs of builds, and blobs, to list and to read
//!   Health       serving
//! ```
//!
//! A call whose client goes away drops its future, and with it the work.

mod cache;
mod content;
mod control;
mod filter;
mod history;
mod limits;
mod solve;
mod status;
mod worker;

use std::{sync::Arc, time::SystemTime};

use http::{HeaderMap, Request, header};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use lapstrake_api_proto::{
    content::content_server::ContentServer, control::control_server::ControlServer,
    google::protobuf::Timestamp,
};
use lapstrake_builder_engine::{bridges_service, health_service};
use tonic::{Status, codegen::Service};

use crate::{
    ApiError, AppState,
    body::{Answer, Body},
    request::DoorRequest,
    serve::Connection,
    session,
};

pub(crate) use status::Spools;
pub use worker::Worker;

/// Bytes of a message that a client may send: what BuildKit's servers take (containerd's `DefaultMaxRecvMsgSize`).
const MAX_MESSAGE: usize = 16 << 20;

/// `POST /grpc`: the connection is HTTP/2 from now on.
pub(crate) fn open(
    connection: &Connection,
    request: &DoorRequest,
    upgrade: OnUpgrade,
) -> Result<Answer, ApiError> {
    if !request.wants_h2c() {
        return Err(ApiError::invalid("no upgrade proto in request: gRPC needs Upgrade: h2c"));
    }
    connection.go_on_with_http2(upgrade, "POST /grpc");
    Ok(session::switch_to_h2c())
}

/// Whether a request is a call of gRPC.
pub(crate) fn is_grpc(request: &Request<Incoming>) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    kind.and_then(|kind| kind.strip_prefix("application/grpc"))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', ';']))
}

/// Answers a call.
pub(crate) async fn respond(state: &Arc<AppState>, request: Request<Incoming>) -> Answer {
    let path = request.uri().path();
    let service = path.strip_prefix('/').and_then(|path| path.split_once('/')).map(|(service, _)| service);
    let answered = match service {
        Some("moby.buildkit.v1.Control") => {
            let control = ControlServer::new(control::Control(Arc::clone(state)));
            control.max_decoding_message_size(MAX_MESSAGE).call(request).await
        }
        Some("moby.buildkit.v1.frontend.LLBBridge") => match &state.worker {
            Some(worker) => bridges_service(worker.engine.clone()).call(request).await,
            None => Ok(Status::unavailable("this daemon builds nothing").into_http()),
        },
        Some("containerd.services.content.v1.Content") => {
            ContentServer::new(content::Content(Arc::clone(state))).call(request).await
        }
        Some("grpc.health.v1.Health") => health_service().call(request).await,
        // Clients offer their traces to whoever takes them, and ask nobody before. In BuildKit's words.
        Some("opentelemetry.proto.collector.trace.v1.TraceService") => {
            Ok(Status::unavailable("trace collector not configured").into_http())
        }
        _ => Ok(Status::unimplemented(format!("unknown service {}", service.unwrap_or(path))).into_http()),
    };
    match answered {
        Ok(answer) => answer.map(Body::Grpc),
        Err(never) => match never {},
    }
}

/// Runs blocking work. A panic in it is passed on.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
    }
}

/// A call's headers, in which sessions describe themselves.
fn headers<T>(request: &tonic::Request<T>) -> HeaderMap {
    request.metadata().clone().into_headers()
}
