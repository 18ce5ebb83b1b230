//! The bridge as a gRPC service: `moby.buildkit.v1.frontend.LLBBridge`.

use std::sync::Arc;

use futures::stream::BoxStream;
use lapstrake_api_proto::gateway::{
    EvaluateRequest, EvaluateResponse, ExecMessage, InputsRequest, InputsResponse, NewContainerRequest,
    NewContainerResponse, PingRequest, PongResponse, ReadDirRequest, ReadDirResponse, ReadFileRequest,
    ReadFileResponse, ReleaseContainerRequest, ReleaseContainerResponse, ResolveImageConfigRequest,
    ResolveImageConfigResponse, ResolveSourceMetaRequest, ResolveSourceMetaResponse, ReturnRequest,
    ReturnResponse, SolveRequest, SolveResponse, StatFileRequest, StatFileResponse, WarnRequest,
    WarnResponse,
    llb_bridge_server::{LlbBridge, LlbBridgeServer},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use super::{Bridge, container::Container, exec, status_of, wire};
use crate::{BuildId, Engine, EngineError};

/// The metadata that says which build a call is for.
const BUILD_ID: &str = "buildkit-controlapi-buildid";
/// Longest message, as BuildKit's: 16 MiB, and room for what is around a file of that size.
const MAX_MESSAGE: usize = (16 << 20) + (64 << 10);

/// The service of one bridge: what a frontend that runs here has on its standard input and output.
pub fn bridge_service(bridge: Arc<Bridge>) -> LlbBridgeServer<BridgeService> {
    serve(Whose::One(bridge))
}

/// The service of the bridges of all builds whose client is the frontend. A call says with metadata which build it is for.
pub fn bridges_service(engine: Engine) -> LlbBridgeServer<BridgeService> {
    serve(Whose::OfBuilds(engine))
}

fn serve(whose: Whose) -> LlbBridgeServer<BridgeService> {
    LlbBridgeServer::new(BridgeService(whose))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

/// The calls of frontends.
#[derive(Debug)]
pub struct BridgeService(Whose);

#[derive(Debug)]
enum Whose {
    One(Arc<Bridge>),
    OfBuilds(Engine),
}

impl BridgeService {
    async fn bridge(&self, metadata: &MetadataMap, what: &str) -> Result<Arc<Bridge>, Status> {
        let engine = match &self.0 {
            Whose::One(bridge) => return Ok(Arc::clone(bridge)),
            Whose::OfBuilds(engine) => engine,
        };
        let id = metadata.get(BUILD_ID).and_then(|id| id.to_str().ok()).filter(|id| !id.is_empty());
        let id =
            id.ok_or_else(|| Status::unknown(format!("forwarding {what}: no buildid found in context")))?;
        engine.bridge(&BuildId(id.to_owned())).await.map_err(|error| match error {
            EngineError::NoSuchBuild { id } => {
                Status::not_found(format!("forwarding {what}: no such job {id}"))
            }
            error => status_of(&error),
        })
    }
}

fn answer<T>(result: Result<T, EngineError>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|error| status_of(&error))
}

fn find_container(bridge: &Bridge, id: &str, mount: i32) -> Result<Arc<Container>, EngineError> {
    let found = bridge.container(id);
    found.ok_or_else(|| wire::invalid(format!("container details for {id}@{mount} not found")))
}

#[tonic::async_trait]
impl LlbBridge for BridgeService {
    type ExecProcessStream = BoxStream<'static, Result<ExecMessage, Status>>;

    async fn resolve_image_config(
        &self,
        request: Request<ResolveImageConfigRequest>,
    ) -> Result<Response<ResolveImageConfigResponse>, Status> {
        let bridge = self.bridge(request.metadata(), "ResolveImageConfig").await?;
        answer(bridge.resolve_image_config(request.into_inner()).await)
    }

    async fn resolve_source_meta(
        &self,
        request: Request<ResolveSourceMetaRequest>,
    ) -> Result<Response<ResolveSourceMetaResponse>, Status> {
        let bridge = self.bridge(request.metadata(), "ResolveSourceMeta").await?;
        answer(bridge.resolve_source_meta(request.into_inner()).await)
    }

    async fn solve(&self, request: Request<SolveRequest>) -> Result<Response<SolveResponse>, Status> {
        let bridge = self.bridge(request.metadata(), "Solve").await?;
        answer(wire::solve(&bridge, request.into_inner()).await)
    }

    async fn read_file(
        &self,
        request: Request<ReadFileRequest>,
    ) -> Result<Response<ReadFileResponse>, Status> {
        let bridge = self.bridge(request.metadata(), "ReadFile").await?;
        let ReadFileRequest { r#ref, file_path, range, .. } = request.into_inner();
        let read = async {
            let range = wire::file_range(range)?;
            Ok(ReadFileResponse { data: bridge.read_file(&r#ref, file_path, range).await? })
        };
        answer(read.await)
    }

    async fn read_dir(&self, request: Request<ReadDirRequest>) -> Result<Response<ReadDirResponse>, Status> {
        let bridge = self.bridge(request.metadata(), "ReadDir").await?;
        let ReadDirRequest { r#ref, dir_path, include_pattern, .. } = request.into_inner();
        let entries = bridge.read_dir(&r#ref, dir_path, include_pattern).await;
        answer(entries.map(|entries| ReadDirResponse { entries }))
    }

    async fn stat_file(
        &self,
        request: Request<StatFileRequest>,
    ) -> Result<Response<StatFileResponse>, Status> {
        let bridge = self.bridge(request.metadata(), "StatFile").await?;
        let StatFileRequest { r#ref, path, .. } = request.into_inner();
        let stat = bridge.stat_file(&r#ref, path).await;
        answer(stat.map(|stat| StatFileResponse { stat: Some(stat) }))
    }

    async fn evaluate(
        &self,
        request: Request<EvaluateRequest>,
    ) -> Result<Response<EvaluateResponse>, Status> {
        let bridge = self.bridge(request.metadata(), "Evaluate").await?;
        let evaluate = async { bridge.evaluate(&bridge.find(&request.get_ref().r#ref)?).await };
        answer(evaluate.await.map(|_| EvaluateResponse {}))
    }

    async fn ping(&self, request: Request<PingRequest>) -> Result<Response<PongResponse>, Status> {
        let bridge = self.bridge(request.metadata(), "Ping").await?;
        Ok(Response::new(bridge.ping().await))
    }

    async fn r#return(&self, request: Request<ReturnRequest>) -> Result<Response<ReturnResponse>, Status> {
        let bridge = self.bridge(request.metadata(), "Return").await?;
        answer(wire::take_answer(&bridge, request.into_inner()).map(|()| ReturnResponse {}))
    }

    async fn inputs(&self, request: Request<InputsRequest>) -> Result<Response<InputsResponse>, Status> {
        let bridge = self.bridge(request.metadata(), "Inputs").await?;
        let definitions = bridge.inputs().iter().map(|(name, graph)| (name.clone(), graph.to_client()));
        Ok(Response::new(InputsResponse { definitions: definitions.collect() }))
    }

    async fn new_container(
        &self,
        request: Request<NewContainerRequest>,
    ) -> Result<Response<NewContainerResponse>, Status> {
        let bridge = self.bridge(request.metadata(), "NewContainer").await?;
        answer(bridge.new_container(request.into_inner()).await.map(|()| NewContainerResponse {}))
    }

    async fn release_container(
        &self,
        request: Request<ReleaseContainerRequest>,
    ) -> Result<Response<ReleaseContainerResponse>, Status> {
        let bridge = self.bridge(request.metadata(), "ReleaseContainer").await?;
        let released = bridge.release_container(&request.get_ref().container_id).await;
        answer(released.map(|()| ReleaseContainerResponse {}))
    }

    async fn exec_process(
        &self,
        request: Request<Streaming<ExecMessage>>,
    ) -> Result<Response<Self::ExecProcessStream>, Status> {
        let bridge = self.bridge(request.metadata(), "ExecProcess").await?;
        let messages = ReceiverStream::new(exec::talk(&bridge, request.into_inner()));
        Ok(Response::new(Box::pin(messages)))
    }

    async fn read_file_container(
        &self,
        request: Request<ReadFileRequest>,
    ) -> Result<Response<ReadFileResponse>, Status> {
        let bridge = self.bridge(request.metadata(), "ReadFileContainer").await?;
        let ReadFileRequest { r#ref, file_path, range, mount_index } = request.into_inner();
        let read = async {
            let range = wire::file_range(range)?;
            let container = find_container(&bridge, &r#ref, mount_index)?;
            Ok(ReadFileResponse { data: container.read_file(mount_index, file_path, range).await? })
        };
        answer(read.await)
    }

    async fn read_dir_container(
        &self,
        request: Request<ReadDirRequest>,
    ) -> Result<Response<ReadDirResponse>, Status> {
        let bridge = self.bridge(request.metadata(), "ReadDirContainer").await?;
        let ReadDirRequest { r#ref, dir_path, include_pattern, mount_index } = request.into_inner();
        let read = async {
            let container = find_container(&bridge, &r#ref, mount_index)?;
            Ok(ReadDirResponse { entries: container.read_dir(mount_index, dir_path, include_pattern).await? })
        };
        answer(read.await)
    }

    async fn stat_file_container(
        &self,
        request: Request<StatFileRequest>,
    ) -> Result<Response<StatFileResponse>, Status> {
        let bridge = self.bridge(request.metadata(), "StatFileContainer").await?;
        let StatFileRequest { r#ref, path, mount_index } = request.into_inner();
        let read = async {
            let container = find_container(&bridge, &r#ref, mount_index)?;
            Ok(StatFileResponse { stat: Some(container.stat_file(mount_index, path).await?) })
        };
        answer(read.await)
    }

    async fn warn(&self, request: Request<WarnRequest>) -> Result<Response<WarnResponse>, Status> {
        let bridge = self.bridge(request.metadata(), "Warn").await?;
        answer(wire::warn(&bridge, request.into_inner()).map(|()| WarnResponse {}))
    }
}
