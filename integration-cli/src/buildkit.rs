//! A client of BuildKit's gRPC API, on the generated stubs alone: it shares no code with the daemon's side.
//!
//! ```text
//!   BuildKit::upgraded (POST /grpc) │ BuildKit::raw (HTTP/2 at once) │ BuildKit::over (any stream)
//!        ├─ control(), bridge(build)     the stubs
//!        ├─ Llb                           graphs by hand
//!        ├─ open(Client) ─► Session      what the daemon may ask for: directories, secrets, logins; where outputs go
//!        └─ solve(SolveRequest)          Solve and Status at once, as real clients do ─► Outcome
//! ```

mod files;
mod llb;
mod request;
mod session;

use std::{
    collections::HashMap,
    io,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use http::{HeaderValue, Request, StatusCode};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use lapstrake_api_proto::{
    control::{SolveRequest, SolveResponse, StatusRequest, StatusResponse, control_client::ControlClient},
    gateway::llb_bridge_client::LlbBridgeClient,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
};
use tonic::{
    Status,
    metadata::MetadataValue,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};

pub use self::{
    files::{Entry, Tree},
    llb::{Llb, digest},
    request::{attrs, exporter, source_policy},
    session::{Asked, Client, Received, Session},
};

/// The metadata key that tells which build a call of the bridge is about.
const BUILD_ID: &str = "buildkit-controlapi-buildid";

/// A connection to a daemon. Clones share it.
#[derive(Debug, Clone)]
pub struct BuildKit {
    channel: Channel,
}

/// A call's metadata: which build it is about.
#[derive(Debug, Clone)]
pub struct OfBuild(HeaderValue);

impl tonic::service::Interceptor for OfBuild {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        let value = MetadataValue::try_from(self.0.as_bytes()).expect("a header's value is one of metadata");
        request.metadata_mut().insert(BUILD_ID, value);
        Ok(request)
    }
}

impl BuildKit {
    /// As buildx's docker driver: over `POST /grpc` of the Engine API's socket.
    pub async fn upgraded(socket: &Path) -> Self {
        Self::over(upgrade(socket, "/grpc", &[]).await).await.expect("HTTP/2 over POST /grpc")
    }

    /// As buildctl: HTTP/2 from the first byte on.
    pub async fn raw(socket: &Path) -> Self {
        let io = UnixStream::connect(socket).await.expect("a daemon listens");
        Self::over(io).await.expect("HTTP/2 on the socket")
    }

    /// Over any stream.
    pub async fn over<I>(io: I) -> Result<Self, tonic::transport::Error>
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        // There is one connection, and no second.
        let io = Mutex::new(Some(io));
        let connector = tower::service_fn(move |_: http::Uri| {
            let io = io.lock().expect("nobody panics with it").take();
            async move { io.map(TokioIo::new).ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
        });
        let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await?;
        Ok(Self { channel })
    }

    /// The channel itself.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The stub of `moby.buildkit.v1.Control`.
    pub fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel.clone()).max_decoding_message_size(16 << 20)
    }

    /// The stub of `moby.buildkit.v1.frontend.LLBBridge` for a build.
    pub fn bridge(&self, build: &str) -> LlbBridgeClient<InterceptedService<Channel, OfBuild>> {
        let build = OfBuild(HeaderValue::from_str(build).expect("a build's id is plain"));
        LlbBridgeClient::with_interceptor(self.channel.clone(), build).max_decoding_message_size(16 << 20)
    }

    /// Opens a session in this connection, as buildctl does.
    pub async fn open(&self, client: Client) -> Session {
        let (ours, theirs) = tokio::io::duplex(256 << 10);
        let session = client.serve(ours);
        session::through(self.control(), session.headers(), theirs).await.expect("a session");
        session
    }

    /// Runs a build, and reads all that is said of it meanwhile. Without a reference, it gets one.
    pub async fn solve(&self, mut request: SolveRequest) -> Outcome {
        if request.r#ref.is_empty() {
            request.r#ref = unique("build");
        }
        let reference = request.r#ref.clone();
        let (mut solving, mut status) = (self.control(), self.control());
        let told = async {
            let mut stream = status.status(StatusRequest { r#ref: reference }).await?.into_inner();
            let mut told = StatusResponse::default();
            while let Some(response) = stream.message().await? {
                told.vertexes.extend(response.vertexes);
                told.statuses.extend(response.statuses);
                told.logs.extend(response.logs);
                told.warnings.extend(response.warnings);
            }
            Ok::<_, Status>(told)
        };
        let (result, told) = tokio::join!(solving.solve(request), told);
        Outcome {
            result: result.map(|response| response.into_inner()),
            // A build that was refused before it began has nothing to say.
            told: told.unwrap_or_default(),
        }
    }
}

/// How a build ended, and what was said of it.
#[derive(Debug)]
pub struct Outcome {
    /// The answer to `Solve`.
    pub result: Result<SolveResponse, Status>,
    /// Everything that `Status` said.
    pub told: StatusResponse,
}

impl Outcome {
    /// The exporter's answers.
    ///
    /// # Panics
    /// When the build failed.
    #[track_caller]
    pub fn success(self) -> HashMap<String, String> {
        match self.result {
            Ok(response) => response.exporter_response,
            Err(status) => panic!("{status:?}\n{:?}", self.told),
        }
    }

    /// Why the build failed.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn failure(self) -> Status {
        match self.result {
            Ok(response) => panic!("unexpected success: {response:?}\n{:?}", self.told),
            Err(status) => status,
        }
    }

    /// What processes wrote.
    pub fn log(&self) -> String {
        let bytes: Vec<u8> = self.told.logs.iter().flat_map(|log| log.msg.clone()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The names of vertices that ended, and whether each came from the cache.
    pub fn vertices(&self) -> Vec<(String, bool)> {
        let ended = self.told.vertexes.iter().filter(|vertex| vertex.completed.is_some());
        ended.map(|vertex| (vertex.name.clone(), vertex.cached)).collect()
    }
}

/// A build of a Dockerfile whose context and Dockerfile are with a session, with nothing left behind.
pub fn dockerfile_build(session: &Session) -> SolveRequest {
    SolveRequest {
        r#ref: unique("build"),
        session: session.id().to_owned(),
        frontend: "dockerfile.v0".to_owned(),
        ..SolveRequest::default()
    }
}

/// A name that no other has.
pub fn unique(what: &str) -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    format!("{what}-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// Sends `POST path` with an upgrade to h2c; the stream after the daemon's 101.
///
/// # Panics
/// When it answers otherwise.
pub async fn upgrade(
    socket: &Path,
    path: &str,
    headers: &[(String, String)],
) -> TokioIo<hyper::upgrade::Upgraded> {
    let stream = UnixStream::connect(socket).await.expect("a daemon listens");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP/1.1");
    tokio::spawn(connection.with_upgrades());
    let mut request = Request::builder().method("POST").uri(path).header("Host", "lapstrake");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.header("Connection", "Upgrade").header("Upgrade", "h2c");
    let answer = sender.send_request(request.body(Empty::<bytes::Bytes>::new()).expect("a request")).await;
    let answer = answer.expect("an answer");
    assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS, "{answer:?}");
    TokioIo::new(hyper::upgrade::on(answer).await.expect("the connection"))
}
