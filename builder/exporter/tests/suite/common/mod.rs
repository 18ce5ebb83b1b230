//! Stores in a temporary directory, results made by hand, a recording progress, and a client.

use std::{
    collections::BTreeMap, fs, io, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc, time::Duration,
};

use futures::StreamExt as _;
use lapstrake_api_proto::{
    filesync::{bytes, directory},
    fsutil::{Packet, packet::PacketType},
};
use lapstrake_builder_exporter::{
    Attestation, AttestationContent, AttestationKind, Destination, Export, ExportError, ExportRequest,
    Exported, Exporter, LocalOutput, Output, PlatformResult, Predicate, TreeOutput,
};
use lapstrake_builder_progress::{Emit, Event, VertexHandle, VertexState};
use lapstrake_graphdriver_adapter::{Adapter, DriverKind};
use lapstrake_layerstore_oci::{Digest, History, ImageConfig, Platform, Reference};
use lapstrake_layerstore_registry::{ClientOptions, RegistryClient, RegistryConfig};
use lapstrake_layerstore_store::{LocalStore, Stores, Tree};
use lapstrake_session::{ExporterId, SessionId, SessionInfo, Sessions, Wait};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, transport::Server};

pub(crate) const SEND: &str = "/moby.filesync.v1.FileSend/DiffCopy";

/// What was told of an export.
#[derive(Default)]
pub(crate) struct Told(Mutex<Vec<Event>>);

impl Emit for Told {
    fn emit(&self, event: &Event) {
        self.0.lock().push(event.clone());
    }
}

impl Told {
    /// The parts that ended, in order.
    pub(crate) fn parts(&self) -> Vec<String> {
        let events = self.0.lock();
        events
            .iter()
            .filter_map(|event| match event {
                Event::Status(status) if status.completed.is_some() => Some(status.id.clone()),
                _ => None,
            })
            .collect()
    }
}

pub(crate) struct Machine {
    pub(crate) stores: Stores,
    pub(crate) exporter: Exporter,
    pub(crate) sessions: Sessions,
    pub(crate) told: Arc<Told>,
    pub(crate) cancel: CancellationToken,
    pub(crate) dir: tempfile::TempDir,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        let local = LocalStore::open(&root).unwrap();
        let driver = DriverKind::Overlay2.open(&root).unwrap();
        let stores = local.stores(Arc::new(Adapter::new(driver, local.records.clone())));
        Self {
            exporter: Exporter::new(stores.clone()),
            stores,
            sessions: Sessions::new(),
            told: Arc::default(),
            cancel: CancellationToken::new(),
            dir,
        }
    }

    pub(crate) fn tree(&self, parent: &Tree, write: impl FnOnce(&Path)) -> Tree {
        let draft = self.stores.begin(parent).unwrap();
        let open = draft.open().unwrap();
        write(&open.path());
        drop(open);
        draft.commit().unwrap()
    }

    /// Two layers and three steps.
    pub(crate) fn result(&self) -> PlatformResult {
        let base = self.tree(&Tree::empty(), |root| {
            fs::create_dir_all(root.join("etc/conf.d")).unwrap();
            fs::write(root.join("etc/conf.d/a"), "a").unwrap();
            fs::write(root.join("gone"), "").unwrap();
        });
        let tree = self.tree(&base, |root| {
            fs::remove_file(root.join("gone")).unwrap();
            fs::write(root.join("etc/tool"), "#!").unwrap();
            fs::set_permissions(root.join("etc/tool"), fs::Permissions::from_mode(0o755)).unwrap();
            fs::hard_link(root.join("etc/tool"), root.join("tool")).unwrap();
            std::os::unix::fs::symlink("/etc/tool", root.join("link")).unwrap();
            std::os::unix::fs::chown(root.join("etc/conf.d/a"), Some(7), Some(8)).unwrap();
        });
        let platform = Platform::host();
        let mut config = ImageConfig::for_platform(&platform);
        let step = |created_by: &str, empty_layer| History {
            created_by: created_by.to_owned(),
            comment: "buildkit.dockerfile.v0".to_owned(),
            empty_layer,
            ..History::default()
        };
        config.history = vec![step("COPY a", false), step("ENV X=1", true), step("RUN b", false)];
        PlatformResult { platform, tree, config, base: None, epoch: None, attestations: Vec::new() }
    }

    pub(crate) async fn export(
        &self,
        output: Output,
        results: Vec<PlatformResult>,
    ) -> Result<Exported, ExportError> {
        self.run(output, results, false).await
    }

    /// The same for a build of several platforms.
    pub(crate) async fn export_several(
        &self,
        output: Output,
        results: Vec<PlatformResult>,
    ) -> Result<Exported, ExportError> {
        self.run(output, results, true).await
    }

    async fn run(
        &self,
        output: Output,
        results: Vec<PlatformResult>,
        multi_platform: bool,
    ) -> Result<Exported, ExportError> {
        let vertex = self.vertex();
        let export = self.made(output, results, multi_platform, &vertex).await?;
        self.exporter.publish(export, &vertex, &self.cancel).await
    }

    pub(crate) fn vertex(&self) -> VertexHandle {
        VertexHandle::announce(
            self.told.clone(),
            VertexState::pending(Digest::sha256_of("vertex"), "exporting", Vec::new()),
        )
    }

    /// What is made, and not published yet.
    pub(crate) async fn made(
        &self,
        output: Output,
        results: Vec<PlatformResult>,
        multi_platform: bool,
        vertex: &VertexHandle,
    ) -> Result<Export, ExportError> {
        let session = self.sessions.ids().pop();
        let request = ExportRequest {
            output,
            number: ExporterId::default(),
            results,
            multi_platform,
            names: Vec::new(),
            session,
            registry: Some(RegistryClient::new(RegistryConfig::default(), ClientOptions::default())),
        };
        self.exporter.export(request, &self.sessions, vertex, &self.cancel).await
    }

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) async fn connect(&self, client: &Client) {
        let (daemon, end) = tokio::net::UnixStream::pair().unwrap();
        let incoming = futures::stream::iter([Ok::<_, io::Error>(end)]).chain(futures::stream::pending());
        let server = match client {
            Client::File(file) => {
                Server::builder().add_service(bytes::file_send_server::FileSendServer::new(file.clone()))
            }
            Client::Directory(directory) => Server::builder()
                .add_service(directory::file_send_server::FileSendServer::new(directory.clone())),
        };
        tokio::spawn(server.serve_with_incoming(incoming));
        let info = SessionInfo::new(SessionId::parse("s").unwrap()).with_methods([SEND]);
        tokio::spawn(self.sessions.register(info, daemon).unwrap());
        self.sessions.get("s", Wait::AtMost(Duration::from_secs(20))).await.unwrap();
    }
}

/// What this program says of a result.
#[derive(Debug)]
struct Said(&'static str);

impl Predicate for Said {
    fn json(&self, _: &Stores) -> Result<Vec<u8>, ExportError> {
        Ok(self.0.as_bytes().to_vec())
    }
}

/// Provenance that says this.
pub(crate) fn said(json: &'static str) -> Attestation {
    Attestation {
        kind: AttestationKind::InToto,
        metadata: BTreeMap::new(),
        path: "provenance.json".into(),
        content: AttestationContent::Own(Arc::new(Said(json))),
        predicate_type: "https://slsa.dev/provenance/v1".to_owned(),
        subjects: Vec::new(),
    }
}

pub(crate) fn names(names: &[&str]) -> Vec<Reference> {
    names.iter().map(|name| Reference::parse(name).unwrap().with_default_tag()).collect()
}

pub(crate) fn to(path: impl Into<std::path::PathBuf>) -> Destination {
    Destination::Path(path.into())
}

/// A tar archive's names with modes.
pub(crate) fn listing(archive: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().unwrap();
    entries
        .map(|entry| {
            let entry = entry.unwrap();
            let header = entry.header();
            format!(
                "{} {:o} {}:{}{}",
                entry.path().unwrap().display(),
                header.mode().unwrap(),
                header.uid().unwrap(),
                header.gid().unwrap(),
                entry.link_name().unwrap().map_or(String::new(), |link| format!(" -> {}", link.display()))
            )
        })
        .collect()
}

pub(crate) enum Client {
    File(FileClient),
    Directory(DirectoryClient),
}

/// A client with an output file.
#[derive(Clone, Default)]
pub(crate) struct FileClient {
    pub(crate) refuses: bool,
    pub(crate) file: Arc<Mutex<Vec<u8>>>,
    /// Whether it was whole, once it has ended.
    pub(crate) complete: Arc<watch::Sender<Option<bool>>>,
    /// Cancelled when the first bytes have come.
    pub(crate) begun: CancellationToken,
}

#[tonic::async_trait]
impl bytes::file_send_server::FileSend for FileClient {
    type DiffCopyStream = futures::stream::BoxStream<'static, Result<bytes::BytesMessage, Status>>;

    async fn diff_copy(
        &self,
        request: Request<Streaming<bytes::BytesMessage>>,
    ) -> Result<Response<Self::DiffCopyStream>, Status> {
        if self.refuses {
            return Err(Status::already_exists("target already exists"));
        }
        let mut incoming = request.into_inner();
        loop {
            match incoming.message().await {
                Ok(Some(message)) => {
                    self.file.lock().extend(message.data);
                    self.begun.cancel();
                }
                end => {
                    self.complete.send_replace(Some(end.is_ok()));
                    end?;
                    return Ok(Response::new(futures::stream::empty().boxed()));
                }
            }
        }
    }
}

/// Go mode, link text and contents by path.
type Got = BTreeMap<String, (u32, String, Vec<u8>)>;

/// A client with an output directory.
#[derive(Clone, Default)]
pub(crate) struct DirectoryClient {
    pub(crate) got: Arc<Mutex<Got>>,
}

/// Go's `fs.ModeDir` and `fs.ModeSymlink`.
const DIRECTORY: u32 = 1 << 31;
const SYMLINK: u32 = 1 << 27;

#[tonic::async_trait]
impl directory::file_send_server::FileSend for DirectoryClient {
    type DiffCopyStream = ReceiverStream<Result<Packet, Status>>;

    async fn diff_copy(
        &self,
        request: Request<Streaming<Packet>>,
    ) -> Result<Response<Self::DiffCopyStream>, Status> {
        let (out, answers) = mpsc::channel(1000);
        tokio::spawn(receive(self.clone(), request.into_inner(), out));
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

/// Asks for every file, and ends when it has them.
async fn receive(
    client: DirectoryClient,
    mut incoming: Streaming<Packet>,
    out: mpsc::Sender<Result<Packet, Status>>,
) {
    let packet = |kind: PacketType, id| Packet { r#type: kind.into(), id, ..Packet::default() };
    let (mut paths, mut open, mut listed) = (Vec::new(), 0, false);
    while let Ok(Some(message)) = incoming.message().await {
        match (message.r#type(), message.stat) {
            (PacketType::PacketStat, Some(stat)) => {
                let id = u32::try_from(paths.len()).unwrap();
                paths.push(stat.path.clone());
                if stat.mode & (DIRECTORY | SYMLINK) == 0 && stat.linkname.is_empty() {
                    open += 1;
                    out.send(Ok(packet(PacketType::PacketReq, id))).await.unwrap();
                }
                client.got.lock().insert(stat.path, (stat.mode, stat.linkname, Vec::new()));
            }
            (PacketType::PacketStat, None) => listed = true,
            (PacketType::PacketData, _) if message.data.is_empty() => open -= 1,
            (PacketType::PacketData, _) => {
                let path = &paths[message.id as usize];
                client.got.lock().get_mut(path).unwrap().2.extend(message.data);
            }
            _ => return,
        }
        if listed && open == 0 {
            let _ = out.send(Ok(packet(PacketType::PacketFin, 0))).await;
        }
    }
}

/// A directory, one for all platforms or each its own.
pub(crate) fn local_split(to: Destination, split: bool) -> Output {
    let tree = TreeOutput { split: Some(split), ..TreeOutput::to(to) };
    Output::Local(LocalOutput { tree, delete: false })
}

/// What skopeo says on standard output.
pub(crate) fn skopeo(arguments: &[&str]) -> Vec<u8> {
    let output = std::process::Command::new("skopeo")
        .arg("--insecure-policy")
        .args(arguments)
        .output()
        .expect("skopeo is installed (Debian package skopeo)");
    assert!(output.status.success(), "skopeo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}
