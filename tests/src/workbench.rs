//! An engine over a temporary store, with a base image made of Debian's busybox.

use std::{
    collections::BTreeMap,
    io::Cursor,
    path::{Path, PathBuf},
    sync::Arc,
};

use lapstrake_builder_cache::{BuildCache, PruneRequest};
use lapstrake_builder_dockerfile::DockerfileOptions;
use lapstrake_builder_engine::{
    BuildId, BuildRequest, CdiDevices, Compatibility, ContextInput, Engine, EngineError, Entitlement,
    Exported, Frontends, Grants, Input, KeepFailed, Output, Parts, Resources, SourcePolicy,
};
use lapstrake_builder_executor::{DefaultNetwork, Helper, HelperOptions, NativeExecutor, NetworkOptions};
use lapstrake_builder_exporter::Exporter;
use lapstrake_builder_history::History;
use lapstrake_builder_progress::{Event, Progress, from_response};
use lapstrake_builder_source::{SourceLimits, Sources, SourcesOptions};
use lapstrake_graphdriver_adapter::{Adapter, DriverKind};
use lapstrake_layerstore_oci::{ImageConfig, Platform, Reference};
use lapstrake_layerstore_registry::{Anonymous, ClientOptions, RegistryClient, RegistryConfig};
use lapstrake_layerstore_store::{
    Collector, ImageName, LocalStore, Metadata, NewImage, OpenSnapshot, SnapshotKey, Stores, Tree,
};
use lapstrake_layerstore_transfer::layers;
use lapstrake_session::Sessions;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::Context;

/// An engine and everything below it.
pub struct Workbench {
    /// The engine.
    pub engine: Engine,
    /// Its stores.
    pub stores: Stores,
    /// What frees what nobody needs.
    pub collector: Collector,
    /// Live sessions.
    pub sessions: Sessions,
    /// What was built.
    pub history: History,
    /// Their database.
    pub metadata: Metadata,
    dir: TempDir,
}

/// A build that succeeded.
#[derive(Debug)]
pub struct Built {
    /// What it left behind.
    pub exported: Exported,
    /// All that it said.
    pub events: Vec<Event>,
}

impl Built {
    /// Everything that its processes wrote.
    pub fn output(&self) -> String {
        self.events
            .iter()
            .filter_map(|event| match event {
                Event::Log(log) => Some(String::from_utf8_lossy(&log.data).into_owned()),
                _ => None,
            })
            .collect()
    }

    /// Names of the vertices that came from the cache.
    pub fn cached(&self) -> Vec<String> {
        self.vertices(|vertex| vertex.cached)
    }

    /// Names of the vertices that were worked on.
    pub fn executed(&self) -> Vec<String> {
        self.vertices(|vertex| !vertex.cached && vertex.completed.is_some())
    }

    /// Names of the steps that ran, of those that a cache may have, in alphabetical order.
    pub fn ran(&self) -> Vec<String> {
        let mut steps = self.executed();
        steps.retain(|name| name.contains("RUN ") || name.contains("COPY "));
        steps.sort();
        steps
    }

    /// What it was warned of, one line each.
    pub fn warnings(&self) -> String {
        let warning = |event: &Event| match event {
            Event::Warning(warning) => Some(String::from_utf8_lossy(&warning.short).into_owned()),
            _ => None,
        };
        self.events.iter().filter_map(warning).collect::<Vec<_>>().join("\n")
    }

    fn vertices(&self, keep: impl Fn(&lapstrake_builder_progress::VertexState) -> bool) -> Vec<String> {
        // The last state of each counts.
        let mut last = BTreeMap::new();
        for event in &self.events {
            if let Event::Vertex(vertex) = event {
                last.insert(vertex.digest.clone(), vertex);
            }
        }
        last.into_values().filter(|vertex| keep(vertex)).map(|vertex| vertex.name.clone()).collect()
    }
}

impl Workbench {
    /// An empty store with the base image `busybox:latest`.
    pub fn new() -> Self {
        Self::new_in(&std::env::temp_dir())
    }

    /// The same below a directory.
    pub fn new_in(dir: &Path) -> Self {
        Self::over(dir, ClientOptions::default(), Frontends::default())
    }

    /// The same with this patience for registries.
    pub fn with_patience(registries: ClientOptions) -> Self {
        Self::over(&std::env::temp_dir(), registries, Frontends::default())
    }

    /// The same with these frontends built in.
    pub fn with_frontends(frontends: Frontends) -> Self {
        Self::over(&std::env::temp_dir(), ClientOptions::default(), frontends)
    }

    fn over(dir: &Path, registries: ClientOptions, frontends: Frontends) -> Self {
        let root = tempfile::Builder::new()
            .prefix("lapstrake-test-")
            .tempdir_in(dir)
            .expect("a temporary directory");
        let local = LocalStore::open(root.path().join("root")).expect("a store opens");
        let driver = DriverKind::detect(local.root()).and_then(|kind| kind.open(local.root()));
        let snapshots = Adapter::new(driver.expect("a graph driver works"), local.records.clone());
        let stores = local.stores(Arc::new(snapshots));
        let cache = BuildCache::open(local.metadata.clone(), stores.clone()).expect("the cache opens");
        let sessions = Sessions::new();
        let sources = Sources::new(SourcesOptions {
            stores: stores.clone(),
            cache: cache.clone(),
            sessions: sessions.clone(),
            registry: RegistryClient::new(RegistryConfig::default(), registries),
            root: root.path().join("sources"),
            limits: SourceLimits::default(),
        });
        // What a network is, the executor's own tests show.
        let network = NetworkOptions { default: DefaultNetwork::Host, ..NetworkOptions::default() };
        let options = HelperOptions { program: Some(helper()), network, ..HelperOptions::default() };
        let helper = Helper::start(options).expect("the helper starts");
        let engine = Engine::new(Parts {
            stores: stores.clone(),
            cache: cache.clone(),
            sources,
            sessions: sessions.clone(),
            executor: Arc::new(NativeExecutor::new(helper).expect("Docker's seccomp profile loads")),
            exporter: Exporter::new(stores.clone()),
            runtime_dir: root.path().to_owned(),
            parallelism: 4,
            frontends,
            entitlements: Entitlement::ALL.to_vec(),
            devices: CdiDevices { directories: vec![root.path().join("cdi")], auto_allowed: Vec::new() },
        });
        let history = History::open(local.metadata.clone(), local.root().join("history"), Default::default());
        let history = history.expect("the history opens");
        engine.record_in(history.clone());
        let collector = Collector::new(stores.clone(), vec![cache]);
        base_image(&stores);
        Self { engine, stores, collector, sessions, history, metadata: local.metadata, dir: root }
    }

    /// The store's directory.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// A request for an image under `name`.
    pub async fn request(&self, context: Context, name: &str) -> Result<BuildRequest, EngineError> {
        let received = self.engine.receive_context(Cursor::new(context.bytes())).await?;
        Ok(BuildRequest {
            id: BuildId(SnapshotKey::random().to_string()),
            input: Input::Dockerfile {
                options: Box::new(DockerfileOptions::new(Platform::host())),
                context: ContextInput::Received(received),
                directories: BTreeMap::new(),
            },
            session: None,
            outputs: vec![Output::image(vec![reference(name)])],
            cache_from: Vec::new(),
            cache_to: Vec::new(),
            inline_cache: false,
            keep_failed: KeepFailed::No,
            credentials: Arc::new(Anonymous),
            grants: Grants::default(),
            resources: Resources::default(),
            source_policy: SourcePolicy::default(),
            compatibility: Compatibility::default(),
            is_recorded: true,
            asks_session: false,
        })
    }

    /// Builds an image of a context.
    pub async fn build(&self, context: Context, name: &str) -> Result<Built, EngineError> {
        let request = self.request(context, name).await?;
        self.run(request).await.1
    }

    /// Runs a request; also tells what a failed build said.
    pub async fn run(&self, request: BuildRequest) -> (Vec<Event>, Result<Built, EngineError>) {
        let progress = Progress::anonymous(Default::default()).expect("a temporary file");
        let mut subscription = progress.subscribe();
        let result = self.engine.build(request, progress, None, CancellationToken::new()).await;
        let mut events = Vec::new();
        while let Some(response) = subscription.next().await.expect("the log can be read") {
            events.extend(from_response(response));
        }
        let built = result.map(|exported| Built { exported, events: events.clone() });
        (events, built)
    }

    /// The config of an image.
    pub fn config(&self, name: &str) -> ImageConfig {
        let record = self.stores.images.find(name).expect("the image is there");
        ImageConfig::from_json(&record.config).expect("a config")
    }

    /// The files of an image, open for reading.
    pub fn open(&self, name: &str) -> OpenSnapshot {
        let record = self.stores.images.find(name).expect("the image is there");
        let top = record.top.expect("the image has layers");
        let mount = self.stores.snapshots.committed_mount(&top).expect("its top can be mounted");
        OpenSnapshot::open(&mount).expect("it can be opened")
    }

    /// A file of an image.
    pub fn read(&self, name: &str, path: &str) -> String {
        let open = self.open(name);
        std::fs::read_to_string(open.path().join(path)).unwrap_or_else(|error| panic!("read {path}: {error}"))
    }

    /// Whether an image has something at a path (symbolic links not followed).
    pub fn has(&self, name: &str, path: &str) -> bool {
        self.open(name).path().join(path).symlink_metadata().is_ok()
    }

    /// Forgets an image, if it is there, and all that the cache can make again.
    pub fn forget(&self, name: &str) {
        if let Ok(image) = self.stores.images.find(name) {
            self.stores.images.delete_image(&image.id).expect("nothing else has its name");
        }
        let all = PruneRequest { all: true, ..PruneRequest::default() };
        self.engine.cache().prune(&all).expect("it can be pruned");
        self.collector.collect().expect("it can be collected");
    }
}

impl Default for Workbench {
    fn default() -> Self {
        Self::new()
    }
}

/// A name, as people write it.
pub(crate) fn reference(name: &str) -> Reference {
    Reference::parse(name).expect("a reference").with_default_tag()
}

/// The executor's helper, beside the tests: target/<profile>/lapstrake-exec-helper.
fn helper() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let profile = test.parent().and_then(Path::parent).expect("a test is in target/<profile>/deps");
    let program = profile.join("lapstrake-exec-helper");
    assert!(
        program.is_file(),
        "{} is not built; cargo build -p lapstrake-builder-executor",
        program.display()
    );
    program
}

fn base_image(stores: &Stores) {
    let draft = stores.begin(&Tree::empty()).expect("a draft");
    {
        let open = draft.open().expect("it opens");
        let rootfs = lapstrake_integration_cli::busybox_rootfs();
        tar::Archive::new(Cursor::new(rootfs)).unpack(open.path()).expect("the base image unpacks");
    }
    let tree = draft.commit().expect("it commits");
    let layers = layers(stores, &tree).expect("its layer has a diff id");
    let mut config = ImageConfig::for_platform(&Platform::host());
    config.rootfs.diff_ids = layers.iter().map(|layer| layer.diff_id.clone()).collect();
    let image = NewImage {
        config: config.to_json().expect("a config serialises"),
        top: tree.snapshot().cloned(),
        diff_ids: config.rootfs.diff_ids,
        parent: None,
        manifest: None,
        names: vec![ImageName { reference: reference("busybox:latest"), target: None }],
    };
    stores.images.put(image).expect("the image is stored");
}
