//! A client as buildx is: directories and OCI layouts that it offers through its session, and a record of what it was asked for.
//!
//! Patterns are applied the slow and simple way, so that it can tell whether the daemon's ideas of them are right.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::{StreamExt, stream::BoxStream};
use lapstrake_api_proto::{
    content::{
        Info, InfoRequest, InfoResponse, ReadContentRequest, ReadContentResponse,
        content_server::{Content, ContentServer},
    },
    filesync::file_sync_server::{FileSync, FileSyncServer},
    fsutil::{Packet, Stat, packet::PacketType},
    health::{
        HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
        health_check_response::ServingStatus,
        health_server::{Health, HealthServer},
    },
    policysession::{
        CheckPolicyRequest, CheckPolicyResponse,
        policy_verifier_server::{PolicyVerifier, PolicyVerifierServer},
    },
    secrets::{
        GetSecretRequest, GetSecretResponse,
        secrets_server::{Secrets, SecretsServer},
    },
};
use lapstrake_builder_dockerfile::ignore::PatternMatcher;
use lapstrake_session::{SessionId, SessionInfo, Sessions};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, transport::Server};

const METHODS: [&str; 5] = [
    "/moby.filesync.v1.FileSync/DiffCopy",
    "/containerd.services.content.v1.Content/Info",
    "/containerd.services.content.v1.Content/Read",
    "/moby.buildkit.secrets.v1.Secrets/GetSecret",
    "/moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier/CheckPolicy",
];
const DIR: u32 = 1 << 31;
const SYMLINK: u32 = 1 << 27;

/// A directory as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The directory.
    pub name: String,
    /// `followpaths`.
    pub follow: Vec<String>,
    /// `include-patterns`.
    pub include: Vec<String>,
    /// `exclude-patterns`.
    pub exclude: Vec<String>,
    /// What was listed for it: directories end in a slash.
    pub listed: Vec<String>,
}

/// What a client says of a source.
type Decide = dyn Fn(&CheckPolicyRequest) -> CheckPolicyResponse + Send + Sync;

/// A client. Clones are the same client.
#[derive(Clone, Default)]
pub struct Client {
    directories: HashMap<String, PathBuf>,
    layouts: HashMap<String, PathBuf>,
    asked: Arc<Mutex<Vec<Asked>>>,
    read: Arc<Mutex<Vec<String>>>,
    /// Blobs whose bytes are not what they should be.
    damaged: Arc<Mutex<BTreeSet<String>>>,
    secrets: HashMap<String, Vec<u8>>,
    policy: Option<Arc<Decide>>,
}

impl Client {
    /// Offers a directory under a name.
    #[must_use]
    pub fn directory(mut self, name: &str, path: &Path) -> Self {
        self.directories.insert(name.to_owned(), path.to_owned());
        self
    }

    /// Offers an OCI layout under an id.
    #[must_use]
    pub fn layout(mut self, id: &str, path: &Path) -> Self {
        self.layouts.insert(format!("oci:{id}"), path.to_owned());
        self
    }

    /// Has a secret.
    #[must_use]
    pub fn secret(mut self, id: &str, value: &[u8]) -> Self {
        self.secrets.insert(id.to_owned(), value.to_owned());
        self
    }

    /// Decides about sources.
    #[must_use]
    pub fn policy(
        mut self,
        answer: impl Fn(&CheckPolicyRequest) -> CheckPolicyResponse + Send + Sync + 'static,
    ) -> Self {
        self.policy = Some(Arc::new(answer));
        self
    }

    /// Sends other bytes than those of this blob, as many.
    pub fn damage(&self, digest: &str) {
        self.damaged.lock().insert(digest.to_owned());
    }

    /// The directories that it was asked for, in order; forgets them.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.asked.lock())
    }

    /// What was listed of a directory since it was last asked, all requests together, without a file that a request for ignore files and
    /// Dockerfiles lists.
    pub fn sent(&self, name: &str) -> Vec<String> {
        let asked = self.asked();
        let contexts = asked
            .into_iter()
            .filter(|asked| asked.name == name && !asked.follow.iter().any(|f| f == ".dockerignore"));
        let all: BTreeSet<String> = contexts.flat_map(|asked| asked.listed).collect();
        all.into_iter().collect()
    }

    /// The blobs that were read, in order; forgets them.
    pub fn read(&self) -> Vec<String> {
        std::mem::take(&mut *self.read.lock())
    }

    /// Opens a session. It lives for as long as the runtime does.
    pub fn connect(&self, sessions: &Sessions) -> SessionId {
        let id = SessionId::parse(&lapstrake_layerstore_store::SnapshotKey::random().to_string())
            .expect("not empty");
        let info = SessionInfo::new(id.clone()).with_methods(METHODS);
        let (engine_end, our_end) = tokio::io::duplex(256 << 10);
        let served = sessions.register(info, engine_end).expect("a session with a new id");
        tokio::spawn(async move { served.await.map(drop) });
        let incoming =
            futures::stream::iter([Ok::<_, std::io::Error>(our_end)]).chain(futures::stream::pending());
        let server = Server::builder()
            .add_service(FileSyncServer::new(self.clone()))
            .add_service(ContentServer::new(self.clone()))
            .add_service(SecretsServer::new(self.clone()))
            .add_service(PolicyVerifierServer::new(self.clone()))
            .add_service(HealthServer::new(self.clone()));
        tokio::spawn(async move { server.serve_with_incoming(incoming).await });
        id
    }

    /// The file of a blob of the layout that a request names.
    fn blob<T>(&self, request: &Request<T>, digest: &str) -> Result<PathBuf, Status> {
        let header = request.metadata().get(lapstrake_session::CONTENT_STORE_HEADER);
        let store = header.and_then(|value| value.to_str().ok()).unwrap_or_default();
        let dir =
            self.layouts.get(store).ok_or_else(|| Status::not_found(format!("unknown store {store}")))?;
        let hex = digest.strip_prefix("sha256:").ok_or_else(|| Status::invalid_argument("not sha256"))?;
        let path = dir.join("blobs/sha256").join(hex);
        if path.is_file() { Ok(path) } else { Err(Status::not_found(format!("content {digest}: not found"))) }
    }
}

type Answers<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl Secrets for Client {
    async fn get_secret(
        &self,
        request: Request<GetSecretRequest>,
    ) -> Result<Response<GetSecretResponse>, Status> {
        let id = request.into_inner().id;
        let data = self.secrets.get(&id).cloned();
        let data = data.ok_or_else(|| Status::not_found(format!("secret {id} not found")))?;
        Ok(Response::new(GetSecretResponse { data }))
    }
}

#[tonic::async_trait]
impl PolicyVerifier for Client {
    async fn check_policy(
        &self,
        request: Request<CheckPolicyRequest>,
    ) -> Result<Response<CheckPolicyResponse>, Status> {
        let policy = self.policy.as_ref().ok_or_else(|| Status::unimplemented("no policy"))?;
        Ok(Response::new(policy(request.get_ref())))
    }
}

#[tonic::async_trait]
impl Content for Client {
    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let digest = request.get_ref().digest.clone();
        let size = std::fs::metadata(self.blob(&request, &digest)?)?.len();
        Ok(Response::new(InfoResponse { info: Some(Info { digest, size: size as i64 }) }))
    }

    async fn read(
        &self,
        request: Request<ReadContentRequest>,
    ) -> Result<Response<Answers<ReadContentResponse>>, Status> {
        let digest = request.get_ref().digest.clone();
        let mut data = std::fs::read(self.blob(&request, &digest)?)?;
        if self.damaged.lock().contains(&digest) {
            data[0] ^= 1;
        }
        self.read.lock().push(digest);
        let mut offset = 0;
        let chunks: Vec<_> = data
            .chunks(1000)
            .map(|chunk| {
                let answer = ReadContentResponse { offset, data: chunk.to_vec() };
                offset += chunk.len() as i64;
                Ok(answer)
            })
            .collect();
        Ok(Response::new(futures::stream::iter(chunks).boxed()))
    }
}

#[tonic::async_trait]
impl FileSync for Client {
    type DiffCopyStream = Answers<Packet>;
    type TarStreamStream = Answers<Packet>;

    async fn diff_copy(
        &self,
        request: Request<Streaming<Packet>>,
    ) -> Result<Response<Answers<Packet>>, Status> {
        let list = |key: &str| -> Vec<String> {
            let values = request.metadata().get_all(key).iter();
            let encoded = request.metadata().contains_key(format!("{key}-encoded"));
            let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
            values
                .map(|value| match encoded {
                    true => text(&unescape(value.as_bytes())),
                    false => text(value.as_bytes()),
                })
                .collect()
        };
        let name = list("dir-name").pop().unwrap_or_default();
        let root = self
            .directories
            .get(&name)
            .ok_or_else(|| Status::not_found(format!("no access allowed to dir {name:?}")))?;
        let (follow, include, exclude) =
            (list("followpaths"), list("include-patterns"), list("exclude-patterns"));
        let entries = select(root, &follow, &include, &exclude);
        let listed = entries.iter().map(|(path, stat)| match stat.mode & DIR {
            0 => path.clone(),
            _ => format!("{path}/"),
        });
        let listed = listed.collect();
        self.asked.lock().push(Asked { name, follow, include, exclude, listed });
        let (out, answers) = mpsc::channel(16);
        tokio::spawn(send(root.clone(), entries, request.into_inner(), out));
        Ok(Response::new(ReceiverStream::new(answers).boxed()))
    }

    async fn tar_stream(&self, _: Request<Streaming<Packet>>) -> Result<Response<Answers<Packet>>, Status> {
        Err(Status::unimplemented("tar stream"))
    }
}

/// Go's `url.QueryUnescape`.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits: String = bytes.by_ref().take(2).map(char::from).collect();
                u8::from_str_radix(&digits, 16).expect("two digits after a percent sign")
            }
            other => other,
        });
    }
    out
}

/// fsutil's sender: the list, its end, and what is asked for.
async fn send(
    root: PathBuf,
    entries: BTreeMap<String, Stat>,
    mut requests: Streaming<Packet>,
    out: mpsc::Sender<Result<Packet, Status>>,
) {
    let mut sorted: Vec<(String, Stat)> = entries.into_iter().collect();
    // Paths are sorted component by component.
    sorted.sort_by(|a, b| a.0.split('/').cmp(b.0.split('/')));
    let packet =
        |kind: PacketType, id: u32, data: Vec<u8>| Packet { r#type: kind as i32, stat: None, id, data };
    for (_, stat) in &sorted {
        let listed = Packet { stat: Some(stat.clone()), ..packet(PacketType::PacketStat, 0, Vec::new()) };
        if out.send(Ok(listed)).await.is_err() {
            return;
        }
    }
    // The receiver may be gone: then there is nothing more to do.
    let _ = out.send(Ok(packet(PacketType::PacketStat, 0, Vec::new()))).await;
    while let Ok(Some(request)) = requests.message().await {
        if request.r#type == PacketType::PacketFin as i32 {
            let _ = out.send(Ok(packet(PacketType::PacketFin, 0, Vec::new()))).await;
            return;
        }
        let Some((path, _)) = sorted.get(request.id as usize) else { return };
        let data = std::fs::read(root.join(path)).unwrap_or_default();
        for chunk in data.chunks(32 << 10).chain([&[][..]]) {
            if out.send(Ok(packet(PacketType::PacketData, request.id, chunk.to_vec()))).await.is_err() {
                return;
            }
        }
    }
}

/// Everything below `root` that is asked for, by path.
fn select(root: &Path, follow: &[String], include: &[String], exclude: &[String]) -> BTreeMap<String, Stat> {
    let mut all = BTreeMap::new();
    walk(root, "", &mut all);
    let mut wanted = BTreeSet::new();
    for path in follow {
        resolve(&all, path, 0, &mut wanted);
    }
    let matcher = |patterns: &[String]| PatternMatcher::new(patterns).expect("the daemon sends patterns");
    let (included, excluded) = (matcher(include), matcher(exclude));
    let is_below = |path: &str, top: &str| {
        top.is_empty() || path == top || path.strip_prefix(top).is_some_and(|rest| rest.starts_with('/'))
    };
    let chosen: BTreeSet<&String> = all
        .keys()
        .filter(|path| follow.is_empty() || wanted.iter().any(|top| is_below(path, top)))
        .filter(|path| include.is_empty() || included.matches(path))
        .filter(|path| !excluded.matches(path))
        .collect();
    // And the directories that they are in.
    let needed = |path: &str| chosen.iter().any(|chosen| is_below(chosen, path));
    all.iter().filter(|(path, _)| needed(path)).map(|(path, stat)| (path.clone(), stat.clone())).collect()
}

fn walk(root: &Path, dir: &str, all: &mut BTreeMap<String, Stat>) {
    for entry in std::fs::read_dir(root.join(dir)).expect("a directory of the test") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().into_string().expect("names in tests are text");
        let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
        let about = entry.path().symlink_metadata().expect("it is there");
        let kind = about.file_type();
        let mut stat = Stat {
            path: path.clone(),
            mode: about.permissions().mode() & 0o777,
            mod_time: about.mtime() * 1_000_000_000 + about.mtime_nsec(),
            ..Stat::default()
        };
        if kind.is_dir() {
            stat.mode |= DIR;
        } else if kind.is_symlink() {
            stat.mode |= SYMLINK;
            let target = std::fs::read_link(entry.path()).expect("it is a link");
            stat.linkname = target.into_os_string().into_string().expect("text");
        } else {
            stat.size = about.len() as i64;
        }
        let is_dir = kind.is_dir();
        all.insert(path.clone(), stat);
        if is_dir {
            walk(root, &path, all);
        }
    }
}

/// The paths that `path` stands for: itself, and where symlinks on its way lead.
fn resolve(all: &BTreeMap<String, Stat>, path: &str, depth: usize, wanted: &mut BTreeSet<String>) {
    if depth > 40 {
        return;
    }
    let path = clean(path);
    if path.is_empty() {
        wanted.insert(path);
        return;
    }
    let parts: Vec<&str> = path.split('/').collect();
    for (count, (entry, stat)) in parts.iter().enumerate().flat_map(|(at, _)| {
        let prefix = parts[..=at].join("/");
        matching(all, &prefix).into_iter().map(move |found| (at + 1, found))
    }) {
        if stat.mode & SYMLINK != 0 {
            let rest = parts[count..].join("/");
            let parent = entry.rsplit_once('/').map_or("", |(parent, _)| parent);
            let target = match stat.linkname.strip_prefix('/') {
                Some(absolute) => format!("{absolute}/{rest}"),
                None => format!("{parent}/{}/{rest}", stat.linkname),
            };
            wanted.insert(entry.clone());
            resolve(all, &target, depth + 1, wanted);
        } else if count == parts.len() {
            wanted.insert(entry.clone());
        }
    }
}

/// The entries that a path, which may have wildcards in every part, names.
fn matching<'a>(all: &'a BTreeMap<String, Stat>, pattern: &str) -> Vec<(&'a String, &'a Stat)> {
    let parts: Vec<&str> = pattern.split('/').collect();
    let fits = |path: &str| {
        let names: Vec<&str> = path.split('/').collect();
        names.len() == parts.len()
            && names.iter().zip(&parts).all(|(name, part)| {
                PatternMatcher::new(&[*part]).is_ok_and(|matcher| matcher.matches(name)) || name == part
            })
    };
    all.iter().filter(|(path, _)| fits(path)).collect()
}

/// Without dots, never above the root.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[tonic::async_trait]
impl Health for Client {
    type WatchStream = futures::stream::Empty<Result<HealthCheckResponse, Status>>;

    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(HealthCheckResponse { status: ServingStatus::Serving.into() }))
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        Err(Status::unimplemented("sessions are only checked"))
    }

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("sessions are only checked"))
    }
}
