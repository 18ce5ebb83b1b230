//! A client as docker and buildx are: the gRPC server at the other end of a session's connection.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream::BoxStream};
use lapstrake_api_proto::{
    auth::{self, auth_server::AuthServer},
    filesync::{bytes::file_send_server::FileSendServer, file_sync_server::FileSyncServer},
    fsutil::{Packet, Stat, packet::PacketType},
    health::{self, health_server::HealthServer},
    secrets::{self, secrets_server::SecretsServer},
    sshforward::{self, ssh_server::SshServer},
    upload::{self, upload_server::UploadServer},
};
use lapstrake_session::{
    CloseReason, Error, HealthCheck, SessionCaller, SessionId, SessionInfo, Sessions, Wait,
};
use parking_lot::Mutex;
use tokio::{net::UnixStream, sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming, metadata::MetadataMap, transport::Server};

pub(crate) mod fixture;
pub(crate) mod tree;

pub(crate) const METHODS: [&str; 9] = [
    "/moby.filesync.v1.FileSync/DiffCopy",
    "/moby.filesync.v1.FileSend/DiffCopy",
    "/moby.filesync.v1.Auth/Credentials",
    "/moby.buildkit.secrets.v1.Secrets/GetSecret",
    "/moby.sshforward.v1.SSH/CheckAgent",
    "/moby.sshforward.v1.SSH/ForwardAgent",
    "/moby.upload.v1.Upload/Pull",
    "/grpc.health.v1.Health/Check",
    "/moby.filesync.v1.Auth/FetchToken",
];

/// What the client does when its directory is asked for.
#[derive(Clone)]
pub(crate) enum Sync {
    /// Sends this tree as fsutil's sender does.
    Tree(Arc<Mutex<tree::Tree>>),
    /// Sends these packets, whatever it is told, and then nothing (the stream stays open).
    Script(Vec<Packet>),
    /// Sends these packets and ends the stream.
    ScriptThenEnd(Vec<Packet>),
    /// Lists directories without end.
    EndlessDirectories,
    /// Refuses.
    Refuse,
}

#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) sync_metadata: Option<MetadataMap>,
    pub(crate) send_metadata: Option<MetadataMap>,
    pub(crate) upload_metadata: Option<MetadataMap>,
    /// Packets that the receiver sent, by type.
    pub(crate) requests: Vec<u32>,
    pub(crate) errors: Vec<String>,
    pub(crate) file: Vec<u8>,
    pub(crate) file_complete: Option<bool>,
    pub(crate) health_checks: u32,
}

#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) sync: Sync,
    pub(crate) credentials: HashMap<String, (String, String)>,
    pub(crate) secrets: HashMap<String, Vec<u8>>,
    pub(crate) uploads: HashMap<String, Vec<u8>>,
    pub(crate) export_refused: bool,
    pub(crate) healthy: bool,
    pub(crate) seen: Arc<Mutex<Seen>>,
}

impl Default for Client {
    fn default() -> Self {
        Self {
            sync: Sync::Refuse,
            credentials: HashMap::new(),
            secrets: HashMap::new(),
            uploads: HashMap::new(),
            export_refused: false,
            healthy: true,
            seen: Arc::default(),
        }
    }
}

/// A connected session.
pub(crate) struct Connected {
    pub(crate) sessions: Sessions,
    pub(crate) caller: SessionCaller,
    /// The daemon's end.
    pub(crate) serving: JoinHandle<Result<CloseReason, Error>>,
    /// Cuts the client off, as a process that is killed.
    pub(crate) kill: CancellationToken,
}

pub(crate) fn info(id: &str) -> SessionInfo {
    SessionInfo::new(SessionId::parse(id).unwrap()).with_methods(METHODS)
}

impl Client {
    pub(crate) async fn connect(self) -> Connected {
        self.connect_as(info("test")).await
    }

    pub(crate) async fn connect_as(self, info: SessionInfo) -> Connected {
        let sessions = Sessions::new();
        let id = info.id.clone();
        let (daemon, kill) = self.serve();
        let serving = tokio::spawn(sessions.register(info, daemon).unwrap());
        let caller = sessions.get(id.as_str(), Wait::AtMost(Duration::from_secs(20))).await.unwrap();
        Connected { sessions, caller, serving, kill }
    }

    /// Serves the client's side of a connection; the daemon's side is returned.
    pub(crate) fn serve(self) -> (UnixStream, CancellationToken) {
        let (daemon, client) = UnixStream::pair().unwrap();
        let kill = CancellationToken::new();
        let incoming =
            futures::stream::iter([Ok::<_, std::io::Error>(client)]).chain(futures::stream::pending());
        let server = Server::builder()
            .add_service(FileSyncServer::new(self.clone()))
            .add_service(FileSendServer::new(self.clone()))
            .add_service(AuthServer::new(self.clone()))
            .add_service(SecretsServer::new(self.clone()))
            .add_service(SshServer::new(self.clone()))
            .add_service(UploadServer::new(self.clone()))
            .add_service(HealthServer::new(self));
        // On a runtime of its own, so that killing it takes all of its tasks and its socket with it at once.
        let token = kill.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let incoming =
                incoming.map(|io| io.and_then(|io: UnixStream| UnixStream::from_std(io.into_std().unwrap())));
            runtime.block_on(async move {
                tokio::select! {
                    end = server.serve_with_incoming(incoming) => end.unwrap(),
                    () = token.cancelled() => {}
                }
            });
        });
        (daemon, kill)
    }
}

type Answers<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl lapstrake_api_proto::filesync::file_sync_server::FileSync for Client {
    type DiffCopyStream = Answers<Packet>;
    type TarStreamStream = Answers<Packet>;

    async fn diff_copy(
        &self,
        request: Request<Streaming<Packet>>,
    ) -> Result<Response<Answers<Packet>>, Status> {
        self.seen.lock().sync_metadata = Some(request.metadata().clone());
        let incoming = request.into_inner();
        let (out, answers) = mpsc::channel(16);
        match self.sync.clone() {
            Sync::Refuse => return Err(Status::not_found("no access allowed to dir \"context\"")),
            Sync::Tree(tree) => {
                let seen = Arc::clone(&self.seen);
                let tree = tree.lock().clone();
                tokio::spawn(tree::send(tree, incoming, out, seen));
            }
            Sync::Script(script) => {
                drop(tokio::spawn(play(script, incoming, out, true, Arc::clone(&self.seen))))
            }
            Sync::ScriptThenEnd(script) => {
                drop(tokio::spawn(play(script, incoming, out, false, Arc::clone(&self.seen))));
            }
            Sync::EndlessDirectories => drop(tokio::spawn(async move {
                for n in 0_u64.. {
                    let stat = Stat { path: format!("{n:020}"), mode: tree::DIR | 0o755, ..Stat::default() };
                    if out.send(Ok(stat_packet(stat))).await.is_err() {
                        return;
                    }
                }
            })),
        }
        Ok(Response::new(ReceiverStream::new(answers).boxed()))
    }

    async fn tar_stream(&self, _: Request<Streaming<Packet>>) -> Result<Response<Answers<Packet>>, Status> {
        Err(Status::unimplemented("tar stream"))
    }
}

pub(crate) fn stat_packet(stat: Stat) -> Packet {
    Packet { r#type: PacketType::PacketStat.into(), stat: Some(stat), ..Packet::default() }
}

pub(crate) fn end_of_list() -> Packet {
    Packet { r#type: PacketType::PacketStat.into(), ..Packet::default() }
}

pub(crate) fn data_packet(id: u32, data: &[u8]) -> Packet {
    Packet { r#type: PacketType::PacketData.into(), id, data: data.to_vec(), ..Packet::default() }
}

/// Sends a script at once, then listens until the other side has ended (or for ever).
async fn play(
    script: Vec<Packet>,
    mut incoming: Streaming<Packet>,
    out: mpsc::Sender<Result<Packet, Status>>,
    stay: bool,
    seen: Arc<Mutex<Seen>>,
) {
    for packet in script {
        if out.send(Ok(packet)).await.is_err() {
            return;
        }
    }
    if stay {
        while let Ok(Some(packet)) = incoming.message().await {
            match packet.r#type() {
                PacketType::PacketReq => seen.lock().requests.push(packet.id),
                PacketType::PacketErr => {
                    seen.lock().errors.push(String::from_utf8_lossy(&packet.data).into_owned());
                }
                _ => {}
            }
        }
    }
}

#[tonic::async_trait]
impl lapstrake_api_proto::filesync::bytes::file_send_server::FileSend for Client {
    type DiffCopyStream = Answers<lapstrake_api_proto::filesync::bytes::BytesMessage>;

    async fn diff_copy(
        &self,
        request: Request<Streaming<lapstrake_api_proto::filesync::bytes::BytesMessage>>,
    ) -> Result<Response<Self::DiffCopyStream>, Status> {
        self.seen.lock().send_metadata = Some(request.metadata().clone());
        if self.export_refused {
            return Err(Status::already_exists("target already exists"));
        }
        let mut incoming = request.into_inner();
        // As in Go: the answer's headers go out when the handler returns.
        loop {
            match incoming.message().await {
                Ok(Some(message)) => self.seen.lock().file.extend(message.data),
                Ok(None) => {
                    self.seen.lock().file_complete = Some(true);
                    return Ok(Response::new(futures::stream::empty().boxed()));
                }
                Err(status) => {
                    self.seen.lock().file_complete = Some(false);
                    return Err(status);
                }
            }
        }
    }
}

#[tonic::async_trait]
impl lapstrake_api_proto::auth::auth_server::Auth for Client {
    async fn credentials(
        &self,
        request: Request<auth::CredentialsRequest>,
    ) -> Result<Response<auth::CredentialsResponse>, Status> {
        let (username, secret) = self.credentials.get(&request.get_ref().host).cloned().unwrap_or_default();
        if username == "hang" {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(auth::CredentialsResponse { username, secret }))
    }

    async fn fetch_token(
        &self,
        request: Request<auth::FetchTokenRequest>,
    ) -> Result<Response<auth::FetchTokenResponse>, Status> {
        let token = format!("token for {}", request.get_ref().scopes.join(" "));
        Ok(Response::new(auth::FetchTokenResponse { token, expires_in: 60, issued_at: 1 }))
    }

    async fn get_token_authority(
        &self,
        request: Request<auth::GetTokenAuthorityRequest>,
    ) -> Result<Response<auth::GetTokenAuthorityResponse>, Status> {
        match request.get_ref().host.as_str() {
            "short" => Ok(Response::new(auth::GetTokenAuthorityResponse { public_key: vec![1] })),
            "none" => Err(Status::unavailable("no key")),
            _ => Ok(Response::new(auth::GetTokenAuthorityResponse { public_key: vec![5; 32] })),
        }
    }

    async fn verify_token_authority(
        &self,
        request: Request<auth::VerifyTokenAuthorityRequest>,
    ) -> Result<Response<auth::VerifyTokenAuthorityResponse>, Status> {
        let mut signed = vec![0; 64];
        signed.extend(&request.get_ref().payload);
        Ok(Response::new(auth::VerifyTokenAuthorityResponse { signed }))
    }
}

#[tonic::async_trait]
impl lapstrake_api_proto::secrets::secrets_server::Secrets for Client {
    async fn get_secret(
        &self,
        request: Request<secrets::GetSecretRequest>,
    ) -> Result<Response<secrets::GetSecretResponse>, Status> {
        match self.secrets.get(&request.get_ref().id) {
            Some(data) => Ok(Response::new(secrets::GetSecretResponse { data: data.clone() })),
            None => Err(Status::new(Code::NotFound, "secret not found")),
        }
    }
}

#[tonic::async_trait]
impl lapstrake_api_proto::sshforward::ssh_server::Ssh for Client {
    type ForwardAgentStream = Answers<sshforward::BytesMessage>;

    async fn check_agent(
        &self,
        request: Request<sshforward::CheckAgentRequest>,
    ) -> Result<Response<sshforward::CheckAgentResponse>, Status> {
        match request.get_ref().id.as_str() {
            "default" => Ok(Response::new(sshforward::CheckAgentResponse {})),
            other => Err(Status::unknown(format!("unset ssh forward key {other}"))),
        }
    }

    /// An agent that says what it hears, in capitals, and then goodbye.
    async fn forward_agent(
        &self,
        request: Request<Streaming<sshforward::BytesMessage>>,
    ) -> Result<Response<Self::ForwardAgentStream>, Status> {
        assert_eq!(request.metadata().get("buildkit.ssh.id").unwrap(), "default");
        let echo = request
            .into_inner()
            .map(|m| m.map(|m| sshforward::BytesMessage { data: m.data.to_ascii_uppercase() }))
            .chain(futures::stream::iter([Ok(sshforward::BytesMessage { data: b"BYE".to_vec() })]));
        Ok(Response::new(echo.boxed()))
    }
}

#[tonic::async_trait]
impl lapstrake_api_proto::upload::upload_server::Upload for Client {
    type PullStream = Answers<upload::BytesMessage>;

    async fn pull(
        &self,
        request: Request<Streaming<upload::BytesMessage>>,
    ) -> Result<Response<Self::PullStream>, Status> {
        let path = request.metadata().get("urlpath").unwrap().to_str().unwrap().to_owned();
        self.seen.lock().upload_metadata = Some(request.metadata().clone());
        let id = path.rsplit('/').next().unwrap();
        let Some(data) = self.uploads.get(id) else {
            return Err(Status::unknown(format!("no http response from session for {id}")));
        };
        let chunks: Vec<_> = data
            .chunks(3 << 20)
            .map(|c| Ok::<_, Status>(upload::BytesMessage { data: c.to_vec() }))
            .collect();
        Ok(Response::new(futures::stream::iter(chunks).boxed()))
    }
}

#[tonic::async_trait]
impl lapstrake_api_proto::health::health_server::Health for Client {
    async fn check(
        &self,
        _: Request<health::HealthCheckRequest>,
    ) -> Result<Response<health::HealthCheckResponse>, Status> {
        self.seen.lock().health_checks += 1;
        if self.healthy {
            Ok(Response::new(health::HealthCheckResponse { status: 1 }))
        } else {
            std::future::pending().await
        }
    }

    async fn list(
        &self,
        _: Request<health::HealthListRequest>,
    ) -> Result<Response<health::HealthListResponse>, Status> {
        Err(Status::unimplemented("list"))
    }

    type WatchStream = Answers<health::HealthCheckResponse>;

    async fn watch(
        &self,
        _: Request<health::HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("watch"))
    }
}

/// Frequent health checks.
pub(crate) fn frequent(timeout: Duration) -> HealthCheck {
    HealthCheck { interval: Duration::from_millis(1), timeout, failures: 2 }
}

pub(crate) fn map<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}
