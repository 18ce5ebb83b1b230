//! What the tests share: a strict store in memory, a hand-made image, and a registry that can be told to lie.
#![allow(
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    reason = "shared by test programs, each of which uses a part"
)]

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, Cursor, Write},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use axum::{body::Body, response::Response};
use lapstrake_layerstore_oci::{
    Descriptor, DiffId, Digest, ImageConfig, Index, Manifest, MediaType, Platform, Reference,
};
use lapstrake_layerstore_registry::{
    ClientOptions, LayerQuery, ProgressFn, PullTarget, RegistryClient, RegistryConfig, TransferEvent,
};
use lapstrake_layerstore_store::{
    BlobInfo, BlobReader, BlobWriter, ContentStore, Leases, Resource, StoreError,
};

#[derive(Default)]
pub struct Memory {
    blobs: Mutex<BTreeMap<Digest, Vec<u8>>>,
    pub open_writers: Arc<AtomicUsize>,
}

struct Reader(Cursor<Vec<u8>>);

impl io::Read for Reader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl io::Seek for Reader {
    fn seek(&mut self, pos: io::SeekFrom) -> io::Result<u64> {
        self.0.seek(pos)
    }
}

impl BlobReader for Reader {
    fn size(&self) -> u64 {
        self.0.get_ref().len() as u64
    }
}

struct Writer {
    store: Arc<Memory>,
    bytes: Vec<u8>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.store.open_writers.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Write for Writer {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(buf);
        Ok(buf.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl BlobWriter for Writer {
    fn offset(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn digest(&self) -> Digest {
        Digest::sha256_of(&self.bytes)
    }
    fn commit(self: Box<Self>, expected: Option<&Digest>, size: Option<u64>) -> Result<Digest, StoreError> {
        let actual = Digest::sha256_of(&self.bytes);
        if let Some(expected) = expected.filter(|e| **e != actual) {
            return Err(StoreError::DigestMismatch { expected: expected.clone(), actual });
        }
        let len = self.bytes.len() as u64;
        if let Some(expected) = size.filter(|s| *s != len) {
            return Err(StoreError::SizeMismatch { digest: actual, expected, actual: len });
        }
        self.store.blobs.lock().unwrap().insert(actual.clone(), self.bytes.clone());
        Ok(actual)
    }
}

pub struct Store(pub Arc<Memory>);

impl ContentStore for Store {
    fn info(&self, digest: &Digest) -> Result<Option<BlobInfo>, StoreError> {
        let blobs = self.0.blobs.lock().unwrap();
        Ok(blobs.get(digest).map(|b| BlobInfo {
            digest: digest.clone(),
            size: b.len() as u64,
            created: SystemTime::UNIX_EPOCH,
            allocated: b.len() as u64,
        }))
    }
    fn reader(&self, digest: &Digest) -> Result<Box<dyn BlobReader>, StoreError> {
        match self.0.blobs.lock().unwrap().get(digest) {
            Some(b) => Ok(Box::new(Reader(Cursor::new(b.clone())))),
            None => Err(StoreError::NotFound { kind: "blob", id: digest.to_string() }),
        }
    }
    fn writer(&self) -> Result<Box<dyn BlobWriter>, StoreError> {
        self.0.open_writers.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Writer { store: self.0.clone(), bytes: Vec::new() }))
    }
    fn remove(&self, digest: &Digest) -> Result<(), StoreError> {
        self.0.blobs.lock().unwrap().remove(digest);
        Ok(())
    }
    fn walk(&self, visit: &mut dyn FnMut(BlobInfo) -> bool) -> Result<(), StoreError> {
        for digest in self.0.blobs.lock().unwrap().keys() {
            let info =
                BlobInfo { digest: digest.clone(), size: 0, created: SystemTime::UNIX_EPOCH, allocated: 0 };
            if !visit(info) {
                break;
            }
        }
        Ok(())
    }
}

/// A store, a lease on it, and the events of transfers.
pub struct Yard {
    pub memory: Arc<Memory>,
    pub leases: Leases,
    pub target: PullTarget,
    pub events: Arc<Mutex<Vec<TransferEvent>>>,
    pub progress: ProgressFn,
}

impl Yard {
    pub fn new() -> Yard {
        let memory = Arc::new(Memory::default());
        let leases = Leases::default();
        let target =
            PullTarget { content: Arc::new(Store(memory.clone())), lease: Arc::new(leases.create()) };
        let events: Arc<Mutex<Vec<TransferEvent>>> = Arc::default();
        let sink = events.clone();
        Yard { memory, leases, target, events, progress: Arc::new(move |e| sink.lock().unwrap().push(e)) }
    }

    pub fn has(&self, digest: &Digest) -> bool {
        self.memory.blobs.lock().unwrap().contains_key(digest)
    }

    pub fn held(&self, digest: &Digest) -> bool {
        self.leases.held(&Resource::Blob(digest.clone()))
    }

    pub fn blobs(&self) -> usize {
        self.memory.blobs.lock().unwrap().len()
    }

    pub fn put(&self, bytes: &[u8]) -> Digest {
        self.target.content.write_small(bytes).unwrap()
    }

    pub fn put_image(&self, image: &Image) {
        for (_, bytes) in image.documents.values() {
            self.put(bytes);
        }
        for bytes in image.blobs.values() {
            self.put(bytes);
        }
    }

    pub fn statuses(&self, digest: &Digest) -> Vec<String> {
        let events = self.events.lock().unwrap();
        let mut all: Vec<String> =
            events.iter().filter(|e| e.digest == *digest).map(TransferEvent::docker_status).collect();
        all.dedup();
        all
    }

    /// Waits until no writer is open: the threads that end with a cancelled transfer do so soon.
    pub async fn no_open_writers(&self) {
        while self.memory.open_writers.load(Ordering::SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
    }
}

pub fn all_layers(_: &LayerQuery<'_>) -> bool {
    true
}

pub fn linux() -> Platform {
    Platform::new("linux", "amd64")
}

/// An image as a registry has it.
#[derive(Clone, Default)]
pub struct Image {
    pub documents: BTreeMap<Digest, (MediaType, Vec<u8>)>,
    pub blobs: BTreeMap<Digest, Vec<u8>>,
    pub root: Option<Descriptor>,
    pub manifest: Option<Manifest>,
}

impl Image {
    /// An image with layers of the given sizes. Different seeds, different bytes.
    pub fn new(seed: u8, platform: &Platform, sizes: &[usize]) -> Image {
        let mut image = Image::default();
        let mut config = ImageConfig::for_platform(platform);
        let mut layers = Vec::new();
        for (i, size) in sizes.iter().enumerate() {
            let bytes: Vec<u8> = (0..*size).map(|n| (n * 31 + i * 7) as u8 ^ seed).collect();
            config.rootfs.diff_ids.push(DiffId(Digest::sha256_of(format!("tar of {seed} {i}"))));
            let d = Descriptor::of(MediaType::DOCKER_LAYER_GZIP, &bytes);
            image.blobs.insert(d.digest.clone(), bytes);
            layers.push(d);
        }
        let config = config.to_json().unwrap();
        let config_descriptor = Descriptor::of(MediaType::DOCKER_CONFIG, &config);
        image.blobs.insert(config_descriptor.digest.clone(), config);
        let manifest = Manifest::new(MediaType::DOCKER_MANIFEST, config_descriptor, layers);
        image.root = Some(image.add(MediaType::DOCKER_MANIFEST, manifest.to_json().unwrap()));
        image.manifest = Some(manifest);
        image
    }

    pub fn add(&mut self, media_type: MediaType, bytes: Vec<u8>) -> Descriptor {
        let d = Descriptor::of(media_type.clone(), &bytes);
        self.documents.insert(d.digest.clone(), (media_type, bytes));
        d
    }

    /// An index of images for platforms.
    pub fn index(images: &[(&Platform, &Image)]) -> Image {
        let mut all = Image::default();
        let mut entries = Vec::new();
        for (platform, image) in images {
            all.documents.extend(image.documents.clone());
            all.blobs.extend(image.blobs.clone());
            entries.push(image.root().clone().with_platform((*platform).clone()));
        }
        let index = Index::new(MediaType::OCI_INDEX, entries).to_json().unwrap();
        all.root = Some(all.add(MediaType::OCI_INDEX, index));
        all
    }

    pub fn root(&self) -> &Descriptor {
        self.root.as_ref().unwrap()
    }

    pub fn layer(&self, n: usize) -> &Descriptor {
        &self.manifest.as_ref().unwrap().layers[n]
    }

    pub fn config(&self) -> &Descriptor {
        &self.manifest.as_ref().unwrap().config
    }

    /// Answers as an honest registry.
    pub fn serve(&self, seen: &Seen) -> Response {
        let Some((_, rest)) = seen.path.split_once("/manifests/") else {
            let digest = seen.path.rsplit('/').next().and_then(|d| Digest::parse(d).ok());
            return match digest.and_then(|d| self.blobs.get(&d)) {
                Some(bytes) => blob(seen, bytes),
                None => error(404, "BLOB_UNKNOWN", "blob unknown to registry"),
            };
        };
        let digest = match Digest::parse(rest) {
            Ok(d) => d,
            Err(_) if rest == "latest" => self.root().digest.clone(),
            Err(_) => return error(404, "MANIFEST_UNKNOWN", "manifest unknown"),
        };
        match self.documents.get(&digest) {
            Some((media_type, bytes)) => document(media_type, &digest, bytes),
            None => error(404, "MANIFEST_UNKNOWN", "manifest unknown"),
        }
    }
}

pub fn document(media_type: &MediaType, digest: &Digest, bytes: &[u8]) -> Response {
    Response::builder()
        .header("content-type", media_type.as_str())
        .header("docker-content-digest", digest.as_str())
        .header("content-length", bytes.len())
        .body(Body::from(bytes.to_vec()))
        .unwrap()
}

/// A blob, from the offset asked for.
pub fn blob(seen: &Seen, bytes: &[u8]) -> Response {
    let from =
        seen.header("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    match from {
        None => Response::new(Body::from(bytes.to_vec())),
        Some(from) => Response::builder()
            .status(206)
            .header("content-range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len()))
            .body(Body::from(bytes[from..].to_vec()))
            .unwrap(),
    }
}

/// A body that announces `length` bytes and breaks off after `bytes`.
pub fn broken(length: usize, bytes: &[u8]) -> Response {
    let chunks: Vec<Result<Vec<u8>, io::Error>> =
        vec![Ok(bytes.to_vec()), Err(io::ErrorKind::ConnectionReset.into())];
    // The failure waits a moment of the scheduler, so that the bytes before it are sent.
    let stream = futures::stream::unfold(chunks.into_iter(), |mut chunks| async move {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        chunks.next().map(|c| (c, chunks))
    });
    Response::builder().header("content-length", length).body(Body::from_stream(stream)).unwrap()
}

/// A body that sends `bytes` and then nothing, for ever.
pub fn stuck(length: usize, bytes: &[u8]) -> Response {
    use futures::StreamExt;
    let first = futures::stream::iter([Ok::<_, io::Error>(bytes.to_vec())]);
    let body = Body::from_stream(first.chain(futures::stream::pending()));
    Response::builder().header("content-length", length).body(body).unwrap()
}

pub fn error(status: u16, code: &str, message: &str) -> Response {
    let body = serde_json::json!({"errors": [{"code": code, "message": message}]}).to_string();
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(Body::from(body))
        .unwrap()
}

pub fn status(status: u16) -> http::response::Builder {
    Response::builder().status(status)
}

/// A request that the fake registry saw.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: http::HeaderMap,
    pub body: Vec<u8>,
    /// How many requests of the same method and path came before.
    pub nth: usize,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
    pub fn is_blob(&self, d: &Descriptor) -> bool {
        self.method == "GET" && self.path.ends_with(d.digest.as_str())
    }
}

pub enum Reply {
    Now(Response),
    Never,
}

impl From<Response> for Reply {
    fn from(r: Response) -> Reply {
        Reply::Now(r)
    }
}

pub struct Fake {
    pub host: String,
    pub log: Arc<Mutex<Vec<Seen>>>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Fake {
    pub async fn start(reply: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Fake {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let log: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let counts: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
        let (reply, seen_log) = (Arc::new(reply), log.clone());
        let app = axum::Router::new().fallback(move |request: axum::extract::Request| {
            let (reply, log, counts) = (reply.clone(), seen_log.clone(), counts.clone());
            async move {
                let (parts, body) = request.into_parts();
                let body = axum::body::to_bytes(body, 64 << 20).await.unwrap_or_default().to_vec();
                let key = format!("{} {}", parts.method, parts.uri.path());
                let nth = {
                    let mut counts = counts.lock().unwrap();
                    let n = counts.entry(key).or_default();
                    *n += 1;
                    *n - 1
                };
                let seen = Seen {
                    method: parts.method.to_string(),
                    path: parts.uri.path().to_owned(),
                    query: parts.uri.query().unwrap_or_default().to_owned(),
                    headers: parts.headers,
                    body,
                    nth,
                };
                log.lock().unwrap().push(seen.clone());
                match reply(&seen) {
                    Reply::Now(response) => response,
                    Reply::Never => std::future::pending().await,
                }
            }
        });
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Fake { host, log, server }
    }

    pub async fn honest(image: &Image) -> Fake {
        let image = image.clone();
        Fake::start(move |seen| image.serve(seen).into()).await
    }

    pub fn reference(&self) -> Reference {
        Reference::parse(&format!("{}/team/app", self.host)).unwrap()
    }

    pub fn count(&self, method: &str, part: &str) -> usize {
        let log = self.log.lock().unwrap();
        log.iter().filter(|s| s.method == method && s.path.contains(part)).count()
    }
}

pub fn options() -> ClientOptions {
    ClientOptions {
        backoff: Duration::from_millis(1),
        max_backoff: Duration::from_millis(20),
        max_attempts: 3,
        ..ClientOptions::default()
    }
}

/// A client for fakes: plain HTTP on loopback, found without configuration.
pub fn client() -> RegistryClient {
    RegistryClient::new(RegistryConfig::default(), options())
}

pub fn impatient() -> RegistryClient {
    RegistryClient::new(
        RegistryConfig::default(),
        ClientOptions { stall_timeout: Duration::from_millis(200), ..options() },
    )
}
