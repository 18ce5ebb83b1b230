//! A client's side of a session: the gRPC server at the other end of the connection.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lapstrake_api_proto::{
    auth::{
        CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse,
        GetTokenAuthorityRequest, GetTokenAuthorityResponse, VerifyTokenAuthorityRequest,
        VerifyTokenAuthorityResponse,
        auth_server::{Auth, AuthServer},
    },
    control::{BytesMessage, control_client::ControlClient},
    exporter::{
        ExporterRequest, FinalizeExportRequest, FinalizeExportResponse, FindExportersRequest,
        FindExportersResponse,
        exporter_server::{Exporter, ExporterServer},
    },
    filesync::{
        bytes as in_bytes, directory,
        file_sync_server::{FileSync, FileSyncServer},
    },
    fsutil::Packet,
    health::{
        HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
        health_server::{Health, HealthServer},
    },
    secrets::{
        GetSecretRequest, GetSecretResponse,
        secrets_server::{Secrets, SecretsServer},
    },
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{
    Request, Response, Status, Streaming, codegen::Service as _, metadata::MetadataMap, transport::Channel,
};

use super::{
    files::{self, Tree},
    unique, upgrade,
};

/// By which the daemon says which output it sends.
const EXPORTER: &str = "buildkit-attachable-exporter-id";
const METADATA: &str = "exporter-md-";

const METHODS: [&str; 5] = [
    "/grpc.health.v1.Health/Check",
    "/moby.filesync.v1.FileSync/DiffCopy",
    "/moby.filesync.v1.FileSend/DiffCopy",
    "/moby.filesync.v1.Auth/Credentials",
    "/moby.buildkit.secrets.v1.Secrets/GetSecret",
];

/// What a client offers.
#[derive(Debug, Clone, Default)]
pub struct Client {
    directories: HashMap<String, Tree>,
    secrets: HashMap<String, Vec<u8>>,
    logins: HashMap<String, (String, String)>,
    /// Outputs that are directories, by the number of their exporter; all others are files.
    directory_outputs: Vec<u32>,
    /// Outputs that it has already.
    there: Vec<u32>,
    /// What it wants when it is asked for further outputs; `None` for a client that is never asked.
    wanted: Option<Vec<(String, HashMap<String, String>)>>,
}

/// What came of an output.
#[derive(Debug, Clone, PartialEq)]
pub enum Received {
    /// A file, and what was said of it.
    File(Vec<u8>, BTreeMap<String, String>),
    /// A directory.
    Directory(Tree),
}

impl Client {
    /// A client with a Dockerfile in its context.
    pub fn with_context(tree: Tree) -> Self {
        Self::default().directory("context", tree.clone()).directory("dockerfile", tree)
    }

    /// The same with a directory of this name.
    #[must_use]
    pub fn directory(mut self, name: &str, tree: Tree) -> Self {
        self.directories.insert(name.to_owned(), tree);
        self
    }

    /// The same with a secret.
    #[must_use]
    pub fn secret(mut self, id: &str, value: impl Into<Vec<u8>>) -> Self {
        self.secrets.insert(id.to_owned(), value.into());
        self
    }

    /// The same with a login for a registry.
    #[must_use]
    pub fn login(mut self, host: &str, user: &str, password: &str) -> Self {
        self.logins.insert(host.to_owned(), (user.to_owned(), password.to_owned()));
        self
    }

    /// The same, whose exporter of this number writes to a directory.
    #[must_use]
    pub fn directory_output(mut self, exporter: u32) -> Self {
        self.directory_outputs.push(exporter);
        self
    }

    /// The same, which has the file of the exporter of this number already.
    #[must_use]
    pub fn has_output(mut self, exporter: u32) -> Self {
        self.there.push(exporter);
        self
    }

    /// The same, which wants this output when it is asked for further ones.
    #[must_use]
    pub fn wants(mut self, kind: &str, attrs: HashMap<String, String>) -> Self {
        self.wanted.get_or_insert_default().push((kind.to_owned(), attrs));
        self
    }

    /// Opens the session on a connection of its own, as buildx's docker driver does: `POST /session`.
    pub async fn open(self, socket: &Path) -> Session {
        let (ours, theirs) = tokio::io::duplex(256 << 10);
        let session = self.serve(ours);
        let io = upgrade(socket, "/session", session.headers()).await;
        session.keep(tokio::spawn(async move {
            let (mut io, mut theirs) = (io, theirs);
            // Its end is the session's.
            let _ = tokio::io::copy_bidirectional(&mut io, &mut theirs).await;
        }));
        session
    }

    /// Serves a connection on which the daemon is the client.
    pub fn serve<I>(self, io: I) -> Session
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let id = unique("session");
        let mut headers = vec![
            ("x-docker-expose-session-uuid".to_owned(), id.clone()),
            ("x-docker-expose-session-sharedkey".to_owned(), "shared".to_owned()),
        ];
        headers.extend(
            METHODS.map(|method| ("x-docker-expose-session-grpc-method".to_owned(), method.to_owned())),
        );
        let received: Arc<Mutex<BTreeMap<u32, Received>>> = Arc::default();
        let asked = Arc::default();
        let answers =
            Answers { client: Arc::new(self), received: Arc::clone(&received), asked: Arc::clone(&asked) };
        let serving = tokio::spawn(async move {
            let service = service_fn(move |request| answers.clone().answer(request));
            let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            // A session that ends is no error.
            let _ = http.serve_connection(TokioIo::new(io), service).await;
        });
        Session { id, headers, received, asked, tasks: Mutex::new(vec![serving]) }
    }
}

/// What a client was told that was asked for further outputs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Asked {
    /// Names of the results.
    pub refs: Vec<String>,
    /// What the exporters answered in the end.
    pub finished: Option<HashMap<String, String>>,
}

/// A live session. Dropping it ends it.
#[derive(Debug)]
pub struct Session {
    id: String,
    headers: Vec<(String, String)>,
    received: Arc<Mutex<BTreeMap<u32, Received>>>,
    asked: Arc<Mutex<Asked>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Session {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What it says of itself when it is opened.
    pub fn headers(&self) -> &[(String, String)] {
        &self.headers
    }

    /// What came of the exporter of this number.
    pub fn received(&self, exporter: u32) -> Option<Received> {
        lock(&self.received).get(&exporter).cloned()
    }

    /// What it was told when it was asked for further outputs.
    pub fn asked(&self) -> Asked {
        lock(&self.asked).clone()
    }

    /// A file that came of the exporter of this number.
    ///
    /// # Panics
    /// When none came.
    #[track_caller]
    pub fn file(&self, exporter: u32) -> Vec<u8> {
        match self.received(exporter) {
            Some(Received::File(data, _)) => data,
            other => panic!("no file came: {other:?}"),
        }
    }

    /// A directory that came of the exporter of this number.
    ///
    /// # Panics
    /// When none came.
    #[track_caller]
    pub fn tree(&self, exporter: u32) -> Tree {
        match self.received(exporter) {
            Some(Received::Directory(tree)) => tree,
            other => panic!("no directory came: {other:?}"),
        }
    }

    fn keep(&self, task: JoinHandle<()>) {
        lock(&self.tasks).push(task);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        lock(&self.tasks).iter().for_each(JoinHandle::abort);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Carries a session's connection in the messages of `Control.Session`.
pub(super) async fn through(
    mut control: ControlClient<Channel>,
    headers: &[(String, String)],
    io: DuplexStream,
) -> Result<(), Status> {
    let (mut read, mut write) = tokio::io::split(io);
    let (sender, messages) = mpsc::channel(4);
    tokio::spawn(async move {
        let mut piece = vec![0; 32 << 10];
        while let Ok(count @ 1..) = read.read(&mut piece).await {
            if sender.send(BytesMessage { data: piece[..count].to_vec() }).await.is_err() {
                return;
            }
        }
    });
    let mut request = Request::new(ReceiverStream::new(messages));
    *request.metadata_mut() = metadata(headers);
    let mut answers = control.session(request).await?.into_inner();
    tokio::spawn(async move {
        while let Ok(Some(message)) = answers.message().await {
            if write.write_all(&message.data).await.is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// Headers as a call's metadata.
pub(super) fn metadata(headers: &[(String, String)]) -> MetadataMap {
    let mut map = http::HeaderMap::new();
    for (name, value) in headers {
        let name: http::HeaderName = name.parse().expect("a header's name");
        map.append(name, value.parse().expect("a header's value"));
    }
    MetadataMap::from_headers(map)
}

/// The services of a session.
#[derive(Clone)]
struct Answers {
    client: Arc<Client>,
    received: Arc<Mutex<BTreeMap<u32, Received>>>,
    asked: Arc<Mutex<Asked>>,
}

impl Answers {
    async fn answer(
        self,
        request: http::Request<Incoming>,
    ) -> Result<http::Response<tonic::body::Body>, Infallible> {
        let service = request.uri().path().trim_start_matches('/').split('/').next().unwrap_or_default();
        match service {
            "grpc.health.v1.Health" => HealthServer::new(self).call(request).await,
            "moby.filesync.v1.FileSync" => FileSyncServer::new(self).call(request).await,
            "moby.filesync.v1.Auth" => AuthServer::new(self).call(request).await,
            "moby.buildkit.secrets.v1.Secrets" => SecretsServer::new(self).call(request).await,
            "moby.exporter.v1.Exporter" => ExporterServer::new(self).call(request).await,
            "moby.filesync.v1.FileSend" => {
                let number = request.headers().get(EXPORTER).and_then(|value| value.to_str().ok());
                let number = number.and_then(|number| number.parse().ok()).unwrap_or(0);
                // One method, two languages: which it is follows from what the client attached.
                if self.client.directory_outputs.contains(&number) {
                    directory::file_send_server::FileSendServer::new(self).call(request).await
                } else {
                    in_bytes::file_send_server::FileSendServer::new(self)
                        .max_decoding_message_size(16 << 20)
                        .call(request)
                        .await
                }
            }
            _ => Ok(Status::unimplemented(format!("unknown service {service}")).into_http()),
        }
    }

    fn exporter(metadata: &MetadataMap) -> u32 {
        let number = metadata.get(EXPORTER).and_then(|value| value.to_str().ok());
        number.and_then(|number| number.parse().ok()).unwrap_or(0)
    }
}

type Packets = std::pin::Pin<Box<dyn Stream<Item = Result<Packet, Status>> + Send>>;

#[tonic::async_trait]
impl FileSync for Answers {
    type DiffCopyStream = Packets;

    async fn diff_copy(&self, request: Request<Streaming<Packet>>) -> Result<Response<Packets>, Status> {
        let metadata = request.metadata().clone();
        let name = metadata.get("dir-name").and_then(|name| name.to_str().ok()).unwrap_or_default();
        let tree = self.client.directories.get(name).cloned();
        let tree = tree.ok_or_else(|| Status::not_found(format!("no access allowed to dir {name:?}")))?;
        let (out, packets) = mpsc::channel(16);
        tokio::spawn(files::send(tree, metadata, request.into_inner(), out));
        Ok(Response::new(Box::pin(ReceiverStream::new(packets))))
    }

    type TarStreamStream = Packets;

    async fn tar_stream(&self, _: Request<Streaming<Packet>>) -> Result<Response<Packets>, Status> {
        Err(Status::unimplemented("TarStream"))
    }
}

#[tonic::async_trait]
impl directory::file_send_server::FileSend for Answers {
    type DiffCopyStream = Packets;

    async fn diff_copy(&self, request: Request<Streaming<Packet>>) -> Result<Response<Packets>, Status> {
        let (number, received) = (Self::exporter(request.metadata()), Arc::clone(&self.received));
        let (out, packets) = mpsc::channel(16);
        tokio::spawn(async move {
            if let Some(tree) = files::receive(request.into_inner(), out).await {
                lock(&received).insert(number, Received::Directory(tree));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(packets))))
    }
}

#[tonic::async_trait]
impl in_bytes::file_send_server::FileSend for Answers {
    type DiffCopyStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<in_bytes::BytesMessage, Status>> + Send>>;

    async fn diff_copy(
        &self,
        request: Request<Streaming<in_bytes::BytesMessage>>,
    ) -> Result<Response<Self::DiffCopyStream>, Status> {
        let number = Self::exporter(request.metadata());
        if self.client.there.contains(&number) {
            return Err(Status::already_exists("target already exists"));
        }
        let said = request.metadata().clone().into_headers();
        let said = said.iter().filter_map(|(name, value)| {
            let name = name.as_str().strip_prefix(METADATA)?;
            Some((name.to_owned(), value.to_str().ok()?.to_owned()))
        });
        let said = said.collect();
        let mut messages = request.into_inner();
        let mut data = Vec::new();
        while let Some(message) = messages.next().await {
            data.extend(Bytes::from(message?.data));
        }
        lock(&self.received).insert(number, Received::File(data, said));
        Ok(Response::new(Box::pin(tokio_stream::empty())))
    }
}

#[tonic::async_trait]
impl Exporter for Answers {
    async fn find_exporters(
        &self,
        request: Request<FindExportersRequest>,
    ) -> Result<Response<FindExportersResponse>, Status> {
        let wanted = self.client.wanted.clone();
        let wanted = wanted.ok_or_else(|| Status::unavailable("no exporter callback registered"))?;
        lock(&self.asked).refs = request.into_inner().refs;
        let exporters = wanted.into_iter().map(|(r#type, attrs)| ExporterRequest { r#type, attrs }).collect();
        Ok(Response::new(FindExportersResponse { exporters }))
    }

    async fn finalize_export(
        &self,
        request: Request<FinalizeExportRequest>,
    ) -> Result<Response<FinalizeExportResponse>, Status> {
        lock(&self.asked).finished = Some(request.into_inner().exporter_response);
        Ok(Response::new(FinalizeExportResponse {}))
    }
}

#[tonic::async_trait]
impl Auth for Answers {
    async fn credentials(
        &self,
        request: Request<CredentialsRequest>,
    ) -> Result<Response<CredentialsResponse>, Status> {
        let host = request.into_inner().host;
        let (username, secret) = self.client.logins.get(&host).cloned().unwrap_or_default();
        Ok(Response::new(CredentialsResponse { username, secret }))
    }

    async fn fetch_token(
        &self,
        _: Request<FetchTokenRequest>,
    ) -> Result<Response<FetchTokenResponse>, Status> {
        Err(Status::unimplemented("FetchToken"))
    }

    async fn get_token_authority(
        &self,
        _: Request<GetTokenAuthorityRequest>,
    ) -> Result<Response<GetTokenAuthorityResponse>, Status> {
        Err(Status::unimplemented("GetTokenAuthority"))
    }

    async fn verify_token_authority(
        &self,
        _: Request<VerifyTokenAuthorityRequest>,
    ) -> Result<Response<VerifyTokenAuthorityResponse>, Status> {
        Err(Status::unimplemented("VerifyTokenAuthority"))
    }
}

#[tonic::async_trait]
impl Secrets for Answers {
    async fn get_secret(
        &self,
        request: Request<GetSecretRequest>,
    ) -> Result<Response<GetSecretResponse>, Status> {
        let id = request.into_inner().id;
        match self.client.secrets.get(&id) {
            Some(data) => Ok(Response::new(GetSecretResponse { data: data.clone() })),
            None => Err(Status::not_found(format!("secret {id} not found"))),
        }
    }
}

#[tonic::async_trait]
impl Health for Answers {
    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        // 1 is "serving".
        Ok(Response::new(HealthCheckResponse { status: 1 }))
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        Err(Status::unimplemented("List"))
    }

    type WatchStream = tokio_stream::Empty<Result<HealthCheckResponse, Status>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("Watch"))
    }
}
