//! A whole listener in this process: real stores on disk, strict fakes for builds and transfers, a client on a unix socket.
#![allow(clippy::type_complexity)]

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use lapstrake_api_server::{
    ApiError, AppState, BodyStream, BuildCache, BuildContext, BuildOrder, Builds, Built, ImageTransfer,
    ImportOrder, Imported, LoadOrder, Loaded, Parts, PullOrder, Pulled, PushOrder, Pushed, ReceivedContext,
    RequestLimits, SaveOrder, SaveSink, ServeLimits, SystemFacts, TransferSink, serve,
};
use lapstrake_api_types::{
    AuthConfig, CachePruneReport, CacheRecord, DistributionInspect, PruneQuery, parse_unix_time,
};
use lapstrake_builder_engine::{BuildRequest, EngineError, Exported};
use lapstrake_builder_progress::Progress;
use lapstrake_graphdriver_adapter::{Adapter, Vfs};
use lapstrake_layerstore_oci::{
    ChainId, Descriptor, DiffId, Digest, History, ImageConfig, ImageId, MediaType, Platform, Reference,
    Timestamp,
};
use lapstrake_layerstore_store::{
    Collector, ImageName, Layer, LocalStore, NewImage, SnapshotKey, SnapshotMount, SnapshotName, Stores,
};
use lapstrake_session::Sessions;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

pub(crate) type BuildFn = dyn Fn(BuildOrder, Progress, CancellationToken) -> BoxFuture<'static, Result<Built, ApiError>>
    + Send
    + Sync;

/// Runs what the test says; panics when it was told nothing.
#[derive(Default)]
pub(crate) struct FakeBuilds {
    build: Mutex<Option<Arc<BuildFn>>>,
    /// Bytes of the contexts that were received.
    pub contexts: Mutex<Vec<usize>>,
}

impl FakeBuilds {
    pub(crate) fn on_build<F, Fut>(&self, build: F)
    where
        F: Fn(BuildOrder, Progress, CancellationToken) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Built, ApiError>> + Send + 'static,
    {
        *self.build.lock().unwrap() =
            Some(Arc::new(move |order, progress, cancel| build(order, progress, cancel).boxed()));
    }
}

impl Builds for FakeBuilds {
    fn receive_context(
        &self,
        mut body: BodyStream,
        _cancel: CancellationToken,
    ) -> BoxFuture<'_, Result<ReceivedContext, ApiError>> {
        async move {
            let mut bytes = 0;
            while let Some(chunk) = body.next().await {
                bytes += chunk.map_err(|error| ApiError::invalid(error.to_string()))?.len();
            }
            self.contexts.lock().unwrap().push(bytes);
            Ok(ReceivedContext(Box::new(bytes)))
        }
        .boxed()
    }

    fn receive_dockerfile(
        &self,
        name: String,
        text: Bytes,
    ) -> BoxFuture<'_, Result<ReceivedContext, ApiError>> {
        async move {
            assert_eq!(name, "Dockerfile");
            self.contexts.lock().unwrap().push(text.len());
            Ok(ReceivedContext(Box::new(text.len())))
        }
        .boxed()
    }

    fn build(
        &self,
        order: BuildOrder,
        progress: Progress,
        cancel: CancellationToken,
    ) -> BoxFuture<'_, Result<Built, ApiError>> {
        let build = self.build.lock().unwrap().clone().expect("a test that builds says what a build does");
        build(order, progress, cancel)
    }

    fn solve(
        &self,
        request: BuildRequest,
        _progress: Progress,
        _cancel: CancellationToken,
    ) -> BoxFuture<'_, Result<Exported, EngineError>> {
        panic!("nobody should solve {}", request.id.0)
    }
}

/// Records, which pruning removes unless a filter of their type keeps them.
#[derive(Default)]
pub(crate) struct FakeCache {
    pub records: Mutex<Vec<CacheRecord>>,
}

impl BuildCache for FakeCache {
    fn records(&self) -> Result<Vec<CacheRecord>, ApiError> {
        Ok(self.records.lock().unwrap().clone())
    }

    fn prune(&self, query: &PruneQuery) -> Result<CachePruneReport, ApiError> {
        let mut records = self.records.lock().unwrap();
        let matches =
            |record: &CacheRecord| query.fields().all(|field| field == ("type", Some(record.kind.as_str())));
        let (gone, kept): (Vec<_>, Vec<_>) = records.drain(..).partition(matches);
        *records = kept;
        let space_reclaimed = gone.iter().map(|record| u64::try_from(record.size).unwrap()).sum();
        let ids: Vec<String> = gone.into_iter().map(|record| record.id).collect();
        Ok(CachePruneReport { caches_deleted: (!ids.is_empty()).then_some(ids), space_reclaimed })
    }
}

/// Does what the test set, and panics otherwise.
#[derive(Default)]
pub(crate) struct FakeTransfer {
    pub pull: Mutex<
        Option<Box<dyn Fn(PullOrder, TransferSink) -> BoxFuture<'static, Result<Pulled, ApiError>> + Send>>,
    >,
    pub push: Mutex<
        Option<Box<dyn Fn(PushOrder, TransferSink) -> BoxFuture<'static, Result<Pushed, ApiError>> + Send>>,
    >,
    pub load: Mutex<
        Option<
            Box<
                dyn Fn(LoadOrder, BodyStream, TransferSink) -> BoxFuture<'static, Result<Loaded, ApiError>>
                    + Send,
            >,
        >,
    >,
    pub import: Mutex<
        Option<Box<dyn Fn(ImportOrder, BodyStream) -> BoxFuture<'static, Result<Imported, ApiError>> + Send>>,
    >,
    pub save: Mutex<Option<Vec<Result<Bytes, ApiError>>>>,
}

impl ImageTransfer for FakeTransfer {
    fn pull(&self, order: PullOrder, news: TransferSink) -> BoxFuture<'_, Result<Pulled, ApiError>> {
        (self.pull.lock().unwrap().as_ref().expect("no pull expected"))(order, news)
    }

    fn push(&self, order: PushOrder, news: TransferSink) -> BoxFuture<'_, Result<Pushed, ApiError>> {
        (self.push.lock().unwrap().as_ref().expect("no push expected"))(order, news)
    }

    fn load(
        &self,
        order: LoadOrder,
        archive: BodyStream,
        news: TransferSink,
    ) -> BoxFuture<'_, Result<Loaded, ApiError>> {
        (self.load.lock().unwrap().as_ref().expect("no load expected"))(order, archive, news)
    }

    fn save(
        &self,
        order: SaveOrder,
        sink: SaveSink,
    ) -> BoxFuture<'_, Result<BoxFuture<'static, Result<Vec<ImageId>, ApiError>>, ApiError>> {
        let chunks = self.save.lock().unwrap().take();
        async move {
            let Some(chunks) = chunks else {
                return Err(ApiError::not_found(format!("No such image: {}", order.names[0])));
            };
            Ok(async move {
                for chunk in chunks {
                    let _ = sink.send(chunk?).await;
                }
                Ok(Vec::new())
            }
            .boxed())
        }
        .boxed()
    }

    fn import(&self, order: ImportOrder, archive: BodyStream) -> BoxFuture<'_, Result<Imported, ApiError>> {
        (self.import.lock().unwrap().as_ref().expect("no import expected"))(order, archive)
    }

    fn download(&self, url: String) -> BoxFuture<'_, Result<(BodyStream, Option<u64>), ApiError>> {
        async move {
            if url != "http://files/tree.tar" {
                return Err(ApiError::not_found(format!("failed to GET {url} with status 404 Not Found")));
            }
            let body: BodyStream = Box::pin(futures::stream::iter([Ok(Bytes::from_static(b"tree"))]));
            Ok((body, Some(4)))
        }
        .boxed()
    }

    fn inspect(
        &self,
        reference: Reference,
        auth: AuthConfig,
    ) -> BoxFuture<'_, Result<DistributionInspect, ApiError>> {
        async move {
            if auth.username != "me" {
                return Err(ApiError::new(
                    lapstrake_api_server::ApiErrorKind::Unauthorized,
                    "unauthorized: authentication required",
                ));
            }
            let bytes = reference.to_string();
            Ok(DistributionInspect {
                descriptor: Descriptor::of(
                    MediaType::new("application/vnd.oci.image.manifest.v1+json"),
                    bytes.as_bytes(),
                ),
                platforms: Some(vec![Platform::parse("linux/amd64").unwrap()]),
            })
        }
        .boxed()
    }

    fn authenticate(&self, auth: AuthConfig) -> BoxFuture<'_, Result<Option<String>, ApiError>> {
        async move {
            match auth.password.as_str() {
                "right" => Ok(None),
                _ => Err(ApiError::new(
                    lapstrake_api_server::ApiErrorKind::Unauthorized,
                    "Get \"https://registry/v2/\": unauthorized: incorrect username or password",
                )),
            }
        }
        .boxed()
    }
}

pub(crate) struct Daemon {
    pub dir: tempfile::TempDir,
    pub state: Arc<AppState>,
    pub stores: Stores,
    pub builds: Arc<FakeBuilds>,
    pub cache: Arc<FakeCache>,
    pub transfer: Arc<FakeTransfer>,
    pub stop: CancellationToken,
    pub serving: tokio::task::JoinHandle<()>,
}

pub(crate) struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).unwrap()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Status and body, for goldens.
    pub(crate) fn golden(&self) -> String {
        format!("{} {}", self.status.as_u16(), self.text().replace("\r\n", "⏎\n"))
    }
}

impl Daemon {
    pub(crate) fn start() -> Daemon {
        Self::start_with(RequestLimits::default(), ServeLimits::default())
    }

    pub(crate) fn start_with(limits: RequestLimits, serving: ServeLimits) -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let store = LocalStore::open(&root).unwrap();
        let snapshots = Arc::new(Adapter::new(Vfs::open(&root).unwrap(), store.records.clone()));
        let stores = store.stores(snapshots);
        let (builds, cache, transfer) =
            (Arc::<FakeBuilds>::default(), Arc::<FakeCache>::default(), Arc::<FakeTransfer>::default());
        let sessions = Sessions::new();
        let state = Arc::new(AppState::new(Parts {
            stores: stores.clone(),
            collector: Arc::new(Collector::new(stores.clone(), Vec::new())),
            sessions,
            builds: builds.clone(),
            worker: None,
            cache: cache.clone(),
            transfer: transfer.clone(),
            facts: SystemFacts {
                id: "test".to_owned(),
                version: "0.1.0".to_owned(),
                root: PathBuf::from("/root"),
                driver: "vfs".to_owned(),
                runtimes: vec![("native".to_owned(), "lapstrake".to_owned())],
                default_runtime: "native".to_owned(),
                ..SystemFacts::default()
            },
            limits,
        }));
        let listener = UnixListener::bind(dir.path().join("sock")).unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, state.clone(), serving, stop.clone()));
        Daemon { dir, state, stores, builds, cache, transfer, stop, serving }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    pub(crate) async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.socket()).await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, &[], Bytes::new()).await
    }

    pub(crate) async fn post(&self, path: &str) -> Reply {
        self.send(Method::POST, path, &[], Bytes::new()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Reply {
        self.send(Method::DELETE, path, &[], Bytes::new()).await
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Reply {
        let answer = self.open(method, path, headers, body).await;
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Reply { status: parts.status, headers: parts.headers, body }
    }

    /// The answer's beginning; its body is read by the caller.
    pub(crate) async fn open(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> http::Response<hyper::body::Incoming> {
        let io = TokioIo::new(self.connect().await);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        // What tests write plainly and URLs must not have.
        let path = path.replace('{', "%7B").replace('}', "%7D").replace('"', "%22").replace(' ', "%20");
        let mut request = Request::builder().method(method).uri(path).header("host", "docker");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        sender.send_request(request.body(Full::new(body.into())).unwrap()).await.unwrap()
    }

    /// Stores an image of one layer per text, with these names. The same texts give the same image.
    pub(crate) fn image(&self, layers: &[&str], names: &[&str]) -> ImageId {
        self.image_with(layers, names, |_| ())
    }

    pub(crate) fn image_with(
        &self,
        layers: &[&str],
        names: &[&str],
        change: impl FnOnce(&mut ImageConfig),
    ) -> ImageId {
        let (mut top, mut diff_ids): (Option<SnapshotName>, Vec<DiffId>) = (None, Vec::new());
        for text in layers {
            diff_ids.push(DiffId(Digest::sha256_of(text)));
            let chain_id = ChainId::of(&diff_ids).unwrap();
            if let Some(layer) = self.stores.layers.by_chain(&chain_id).unwrap() {
                top = Some(layer.snapshot);
                continue;
            }
            let (key, snapshot) = (SnapshotKey::random(), SnapshotName::random());
            let mount = self.stores.snapshots.prepare(&key, top.as_ref()).unwrap();
            let SnapshotMount::Bind { source, .. } = mount else { panic!("vfs binds") };
            std::fs::write(source.join(format!("file-{}", diff_ids.len())), text).unwrap();
            self.stores.snapshots.commit(&key, &snapshot).unwrap();
            let diff_id = diff_ids.last().unwrap().clone();
            let size = text.len() as u64;
            self.stores
                .layers
                .record(&[Layer { snapshot: snapshot.clone(), diff_id, chain_id, size }])
                .unwrap();
            top = Some(snapshot);
        }
        let mut config = ImageConfig::for_platform(&Platform::parse("linux/amd64").unwrap());
        config.created = Some(Timestamp::parse("2023-11-14T22:13:20Z").unwrap());
        config.rootfs.diff_ids = diff_ids.clone();
        config.config.cmd = Some(vec!["sh".to_owned()]);
        config.config.labels = BTreeMap::from([("kind".to_owned(), "test".to_owned())]);
        for (at, text) in layers.iter().enumerate() {
            config.history.push(History {
                created: Some(Timestamp::parse("2023-11-14T22:13:20Z").unwrap()),
                created_by: format!("COPY {text} /file-{} # buildkit", at + 1),
                comment: "buildkit.dockerfile.v0".to_owned(),
                ..History::default()
            });
        }
        config.history.push(History {
            created_by: "CMD [\"sh\"]".to_owned(),
            empty_layer: true,
            ..History::default()
        });
        change(&mut config);
        let names = names
            .iter()
            .map(|name| ImageName { reference: Reference::parse(name).unwrap(), target: None })
            .collect();
        let image = NewImage {
            config: config.to_json().unwrap(),
            top,
            diff_ids,
            parent: None,
            manifest: None,
            names,
        };
        self.stores.images.put(image).unwrap()
    }
}

pub(crate) fn record(id: &str, kind: &str, size: i64) -> CacheRecord {
    CacheRecord {
        id: id.to_owned(),
        parents: vec![],
        kind: kind.to_owned(),
        description: "[1/2] RUN true".to_owned(),
        in_use: false,
        shared: false,
        size,
        created: parse_unix_time("1700000000").unwrap().unwrap(),
        last_used: None,
        usage_count: 1,
    }
}

pub(crate) fn url_context(context: &BuildContext) -> Option<&str> {
    match context {
        BuildContext::Url(url) => Some(url),
        _ => None,
    }
}
