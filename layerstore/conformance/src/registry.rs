//! A registry in memory that does as it is told: honest, or lying in every way that a test can write down.
//!
//! ```text
//!   client ──HTTP──► Fake ──Seen──► the test's own answer: a Reply, mostly from
//!                                     Image::serve   one image, to be pulled
//!                                     Shelf::serve   whatever was pushed, to be pulled again
//!                                     error, broken, stuck, blob …   a lie
//! ```
#![allow(clippy::unwrap_used, reason = "of tests: they fail by panicking")]

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{body::Body, response::Response};
use lapstrake_layerstore_oci::{
    Descriptor, DiffId, Digest, ImageConfig, Index, Manifest, MediaType, Platform, Reference,
};

/// An image as a registry has it.
#[derive(Clone, Default)]
pub struct Image {
    /// Indexes and manifests.
    pub documents: BTreeMap<Digest, (MediaType, Vec<u8>)>,
    /// Layers and configs.
    pub blobs: BTreeMap<Digest, Vec<u8>>,
    /// What its tag names.
    pub root: Option<Descriptor>,
    /// Its manifest, where it is not an index.
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

    /// Adds an index or manifest.
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

    /// What its tag names.
    pub fn root(&self) -> &Descriptor {
        self.root.as_ref().unwrap()
    }

    /// A layer, counted from the bottom.
    pub fn layer(&self, n: usize) -> &Descriptor {
        &self.manifest.as_ref().unwrap().layers[n]
    }

    /// Its config.
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

/// An index or manifest.
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

/// An error in the registries' form.
pub fn error(status: u16, code: &str, message: &str) -> Response {
    let body = serde_json::json!({"errors": [{"code": code, "message": message}]}).to_string();
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(Body::from(body))
        .unwrap()
}

/// An answer under construction.
pub fn status(status: u16) -> http::response::Builder {
    Response::builder().status(status)
}

/// A request that the fake registry saw.
#[derive(Debug, Clone)]
pub struct Seen {
    /// `GET` …
    pub method: String,
    /// Its path.
    pub path: String,
    /// What is behind the question mark.
    pub query: String,
    /// Its headers.
    pub headers: http::HeaderMap,
    /// Its body, whole.
    pub body: Vec<u8>,
    /// How many requests of the same method and path came before.
    pub nth: usize,
}

impl Seen {
    /// A header, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
    /// Whether it asks for this blob's bytes.
    pub fn is_blob(&self, d: &Descriptor) -> bool {
        self.method == "GET" && self.path.ends_with(d.digest.as_str())
    }
}

/// What the registry does.
pub enum Reply {
    /// It answers.
    Now(Response),
    /// It keeps the connection, and says nothing.
    Never,
}

impl From<Response> for Reply {
    fn from(r: Response) -> Reply {
        Reply::Now(r)
    }
}

/// The registry, on a port of loopback. Ended when dropped.
pub struct Fake {
    /// `127.0.0.1:<port>`
    pub host: String,
    /// What was asked.
    pub log: Arc<Mutex<Vec<Seen>>>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Fake {
    /// Starts one that answers so.
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

    /// Starts one that has an image.
    pub async fn honest(image: &Image) -> Fake {
        let image = image.clone();
        Fake::start(move |seen| image.serve(seen).into()).await
    }

    /// The name of its image.
    pub fn reference(&self) -> Reference {
        Reference::parse(&format!("{}/team/app", self.host)).unwrap()
    }

    /// How often it was asked for paths with `part`.
    pub fn count(&self, method: &str, part: &str) -> usize {
        let log = self.log.lock().unwrap();
        log.iter().filter(|s| s.method == method && s.path.contains(part)).count()
    }
}

/// What was pushed to a registry; it is there for who pulls.
#[derive(Default)]
pub struct Shelf {
    blobs: Mutex<BTreeMap<Digest, Vec<u8>>>,
    /// By repository and tag or digest.
    manifests: Mutex<BTreeMap<String, (MediaType, Vec<u8>)>>,
    uploads: AtomicU64,
}

impl Shelf {
    /// Answers as an honest registry to pulls and (monolithic) pushes.
    pub fn serve(&self, seen: &Seen) -> Response {
        let path = seen.path.strip_prefix("/v2/").unwrap_or_default();
        if path.is_empty() {
            return empty(200);
        }
        match (path.split_once("/manifests/"), path.rsplit_once("/blobs/")) {
            (Some((repository, name)), _) => self.manifest(seen, repository, name),
            (None, Some((repository, upload))) if upload.starts_with("uploads/") => {
                self.upload(seen, repository)
            }
            (None, Some((_, digest))) => match Digest::parse(digest).ok().and_then(|d| self.blob(&d)) {
                Some(bytes) => blob(seen, &bytes),
                None => error(404, "BLOB_UNKNOWN", "blob unknown to registry"),
            },
            (None, None) => error(404, "UNSUPPORTED", "not of a registry"),
        }
    }

    /// A blob that was pushed.
    pub fn blob(&self, digest: &Digest) -> Option<Vec<u8>> {
        self.blobs.lock().unwrap().get(digest).cloned()
    }

    /// The manifest that a tag names.
    pub fn tagged(&self, repository: &str, tag: &str) -> Option<Vec<u8>> {
        let manifests = self.manifests.lock().unwrap();
        manifests.get(&format!("{repository} {tag}")).map(|(_, bytes)| bytes.clone())
    }

    fn manifest(&self, seen: &Seen, repository: &str, name: &str) -> Response {
        let mut manifests = self.manifests.lock().unwrap();
        if seen.method == "PUT" {
            let media_type = MediaType::from(seen.header("content-type").unwrap_or_default());
            let digest = Digest::sha256_of(&seen.body);
            for name in [name, digest.as_str()] {
                manifests.insert(format!("{repository} {name}"), (media_type.clone(), seen.body.clone()));
            }
            let created = status(201).header("docker-content-digest", digest.as_str());
            return created.body(Body::empty()).unwrap();
        }
        match manifests.get(&format!("{repository} {name}")) {
            Some((media_type, bytes)) => document(media_type, &Digest::sha256_of(bytes), bytes),
            None => error(404, "MANIFEST_UNKNOWN", "manifest unknown"),
        }
    }

    fn upload(&self, seen: &Seen, repository: &str) -> Response {
        if seen.method == "POST" {
            let number = self.uploads.fetch_add(1, Ordering::Relaxed);
            let place = format!("/v2/{repository}/blobs/uploads/{number}");
            return status(202).header("location", place).body(Body::empty()).unwrap();
        }
        let digest = seen.query.split('&').find_map(|pair| pair.strip_prefix("digest="));
        let digest = digest.and_then(|text| Digest::parse(&text.replace("%3A", ":")).ok());
        match digest {
            Some(digest) if Digest::sha256_of(&seen.body) == digest => {
                self.blobs.lock().unwrap().insert(digest, seen.body.clone());
                empty(201)
            }
            _ => error(400, "DIGEST_INVALID", "provided digest did not match uploaded content"),
        }
    }
}

fn empty(code: u16) -> Response {
    status(code).body(Body::empty()).unwrap()
}
