//! `moby.buildkit.v1.Control`.

use std::{sync::Arc, time::Duration};

use futures::stream::{self, BoxStream, StreamExt as _};
use lapstrake_api_proto::control::{
    BuildHistoryEvent, BuildHistoryRequest, BytesMessage, DiskUsageRequest, DiskUsageResponse, InfoRequest,
    InfoResponse, ListWorkersRequest, ListWorkersResponse, PruneRequest, SolveRequest, SolveResponse,
    StatusRequest, StatusResponse, UpdateBuildHistoryRequest, UpdateBuildHistoryResponse, UsageRecord,
    control_server,
};
use lapstrake_api_types::Timestamp;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    AppState,
    grpc::{Worker, cache, headers, history, solve, status, worker},
    session::{self, SessionStream},
};

/// By which clients know how far their clock is from ours.
const TIMESTAMP_KEY: &str = "buildkit-current-timestamp";

/// The service.
pub(super) struct Control(pub(super) Arc<AppState>);

impl Control {
    fn worker(&self) -> Result<&Worker, Status> {
        self.0.worker.as_ref().ok_or_else(|| Status::unavailable("this daemon builds nothing"))
    }
}

/// A time in nanoseconds, as Go's clients send it; what is negative is nothing.
pub(super) fn duration(nanos: i64) -> Option<Duration> {
    u64::try_from(nanos).ok().filter(|nanos| *nanos > 0).map(Duration::from_nanos)
}

/// An answer that tells what time it is here.
fn dated<T>(answer: T) -> Response<T> {
    let mut response = Response::new(answer);
    if let Ok(now) = Timestamp::now().rfc3339().parse() {
        response.metadata_mut().insert(TIMESTAMP_KEY, now);
    }
    response
}

#[tonic::async_trait]
impl control_server::Control for Control {
    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        Ok(Response::new(InfoResponse { buildkit_version: Some(worker::version(&self.0.facts)) }))
    }

    async fn list_workers(
        &self,
        request: Request<ListWorkersRequest>,
    ) -> Result<Response<ListWorkersResponse>, Status> {
        let filter = request.into_inner().filter;
        let record = worker::list(self.worker()?, &self.0.facts, &filter).await?;
        Ok(Response::new(ListWorkersResponse { record }))
    }

    async fn disk_usage(
        &self,
        request: Request<DiskUsageRequest>,
    ) -> Result<Response<DiskUsageResponse>, Status> {
        let record = cache::usage(self.worker()?, request.into_inner()).await?;
        Ok(Response::new(DiskUsageResponse { record }))
    }

    type PruneStream = BoxStream<'static, Result<UsageRecord, Status>>;

    async fn prune(&self, request: Request<PruneRequest>) -> Result<Response<Self::PruneStream>, Status> {
        let gone = cache::prune(&self.0, self.worker()?, request.into_inner()).await?;
        Ok(Response::new(stream::iter(gone.into_iter().map(Ok)).boxed()))
    }

    async fn solve(&self, request: Request<SolveRequest>) -> Result<Response<SolveResponse>, Status> {
        solve::solve(&self.0, request.into_inner()).await.map(Response::new)
    }

    type StatusStream = BoxStream<'static, Result<StatusResponse, Status>>;

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<Self::StatusStream>, Status> {
        status::follow(&self.0, request.into_inner().r#ref).await.map(dated)
    }

    type SessionStream = SessionStream;

    async fn session(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<SessionStream>, Status> {
        let headers = headers(&request);
        session::within(&self.0, &headers, request.into_inner()).map(Response::new)
    }

    type ListenBuildHistoryStream = BoxStream<'static, Result<BuildHistoryEvent, Status>>;

    async fn listen_build_history(
        &self,
        request: Request<BuildHistoryRequest>,
    ) -> Result<Response<Self::ListenBuildHistoryStream>, Status> {
        history::listen(&self.0, request.into_inner()).await.map(dated)
    }

    async fn update_build_history(
        &self,
        request: Request<UpdateBuildHistoryRequest>,
    ) -> Result<Response<UpdateBuildHistoryResponse>, Status> {
        history::update(&self.0, request.into_inner()).await?;
        Ok(Response::new(UpdateBuildHistoryResponse {}))
    }
}
