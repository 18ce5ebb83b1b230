//! The doors over the real engine and the real local store; only processes are played, by a fake that reads their command line.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use lapstrake_api_server::{
    ApiError, AppState, BodyStream, EngineBuilds, ImageTransfer, ImportOrder, Imported, LoadOrder, Loaded,
    Parts, PullOrder, Pulled, PushOrder, Pushed, RequestLimits, SaveOrder, SaveSink, Saving, ServeLimits,
    SystemFacts, TransferSink, serve,
};
use lapstrake_api_types::{AuthConfig, DistributionInspect};
use lapstrake_builder_cache::BuildCache;
use lapstrake_builder_engine::Engine;
use lapstrake_builder_executor::{ExecError, Executor, ExitStatus, OutputSink, ProcessIo, ProcessSpec};
use lapstrake_builder_exporter::Exporter;
use lapstrake_builder_source::{SourceLimits, Sources, SourcesOptions};
use lapstrake_graphdriver_adapter::{Adapter, Vfs};
use lapstrake_layerstore_oci::Reference;
use lapstrake_layerstore_registry::{ClientOptions, RegistryClient, RegistryConfig};
use lapstrake_layerstore_store::{Collector, Holder, LocalStore};
use lapstrake_session::Sessions;
use tokio::{io::AsyncWriteExt, net::UnixListener};
use tokio_util::sync::CancellationToken;

/// `say X` writes X, `fail N` ends with N; nothing else exists.
struct PlayedProcesses;

impl Executor for PlayedProcesses {
    fn run(
        &self,
        spec: ProcessSpec,
        io: ProcessIo,
        _cancel: CancellationToken,
    ) -> BoxFuture<'_, Result<ExitStatus, ExecError>> {
        async move {
            let command = spec.args.last().cloned().unwrap_or_default();
            let code = match command.split_once(' ') {
                Some(("say", text)) => {
                    let text = format!("{text}\n");
                    match io.stdout {
                        OutputSink::Channel(sender) => sender.send(Bytes::from(text)).await.unwrap(),
                        OutputSink::Writer(mut writer) => writer.write_all(text.as_bytes()).await.unwrap(),
                        OutputSink::Discard => {}
                    }
                    0
                }
                Some(("fail", code)) => code.parse().unwrap(),
                _ => panic!("unexpected process {:?}", spec.args),
            };
            Ok(ExitStatus { code, signal: None, oom_killed: false })
        }
        .boxed()
    }
}

/// Nothing is moved in these tests.
struct NoTransfer;

impl ImageTransfer for NoTransfer {
    fn pull(&self, _: PullOrder, _: TransferSink) -> BoxFuture<'_, Result<Pulled, ApiError>> {
        unreachable!()
    }
    fn push(&self, _: PushOrder, _: TransferSink) -> BoxFuture<'_, Result<Pushed, ApiError>> {
        unreachable!()
    }
    fn load(&self, _: LoadOrder, _: BodyStream, _: TransferSink) -> BoxFuture<'_, Result<Loaded, ApiError>> {
        unreachable!()
    }
    fn save(&self, _: SaveOrder, _: SaveSink) -> BoxFuture<'_, Result<Saving, ApiError>> {
        unreachable!()
    }
    fn import(&self, _: ImportOrder, _: BodyStream) -> BoxFuture<'_, Result<Imported, ApiError>> {
        unreachable!()
    }
    fn download(&self, _: String) -> BoxFuture<'_, Result<(BodyStream, Option<u64>), ApiError>> {
        unreachable!()
    }
    fn inspect(&self, _: Reference, _: AuthConfig) -> BoxFuture<'_, Result<DistributionInspect, ApiError>> {
        unreachable!()
    }
    fn authenticate(&self, _: AuthConfig) -> BoxFuture<'_, Result<Option<String>, ApiError>> {
        unreachable!()
    }
}

struct Daemon {
    dir: tempfile::TempDir,
}

impl Daemon {
    fn start() -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let store = LocalStore::open(&root).unwrap();
        let stores = store.stores(Arc::new(Adapter::new(Vfs::open(&root).unwrap(), store.records.clone())));
        let cache = BuildCache::open(store.metadata.clone(), stores.clone()).unwrap();
        let holders: Vec<Arc<dyn Holder>> = vec![cache.clone()];
        let collector = Arc::new(Collector::new(stores.clone(), holders));
        let sessions = Sessions::new();
        let run = dir.path().join("run");
        std::fs::create_dir(&run).unwrap();
        let engine = Engine::new(lapstrake_builder_engine::Parts {
            stores: stores.clone(),
            cache: cache.clone(),
            sources: Sources::new(SourcesOptions {
                stores: stores.clone(),
                cache,
                sessions: sessions.clone(),
                registry: RegistryClient::new(RegistryConfig::default(), ClientOptions::default()),
                root: root.join("git"),
                limits: SourceLimits::default(),
            }),
            sessions: sessions.clone(),
            executor: Arc::new(PlayedProcesses),
            exporter: Exporter::new(stores.clone()),
            runtime_dir: run,
            parallelism: 2,
            frontends: lapstrake_builder_engine::Frontends::default(),
            entitlements: Vec::new(),
            devices: lapstrake_builder_engine::CdiDevices::disabled(),
        });
        let builds = Arc::new(EngineBuilds::new(engine, collector.clone()));
        let state = Arc::new(AppState::new(Parts {
            stores,
            collector,
            sessions,
            builds: builds.clone(),
            worker: None,
            cache: builds,
            transfer: Arc::new(NoTransfer),
            facts: SystemFacts { root, driver: "vfs".to_owned(), ..SystemFacts::default() },
            limits: RequestLimits::default(),
        }));
        let listener = UnixListener::bind(dir.path().join("sock")).unwrap();
        tokio::spawn(serve(listener, state, ServeLimits::default(), CancellationToken::new()));
        Daemon { dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a context and returns its directory.
    fn context(&self, dockerfile: &str) -> String {
        let dir = self.path().join("context");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("Dockerfile"), dockerfile).unwrap();
        std::fs::write(dir.join("a"), "content of a").unwrap();
        dir.display().to_string()
    }

    async fn docker(&self, buildkit: &str, args: &[&str], stdin: &str) -> (bool, String) {
        let mut child = tokio::process::Command::new("/usr/bin/docker")
            .arg("-H")
            .arg(format!("unix://{}/sock", self.path().display()))
            .args(args)
            .env_clear()
            .env("HOME", self.path())
            .env("DOCKER_BUILDKIT", buildkit)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("docker 20.10 of Debian's docker.io package is installed");
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).await.unwrap();
        let output = child.wait_with_output().await.unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }
}

/// Ids differ from run to run: times are in them.
fn masked(text: &str) -> String {
    let text = text.replace('\r', "");
    let mut out = String::new();
    for word in text.split_inclusive([' ', '\n']) {
        let bare = word.trim();
        let is_id = bare.len() == 12 && bare.bytes().all(|b| b.is_ascii_hexdigit());
        out.push_str(&if is_id { word.replace(bare, "<id>") } else { word.to_owned() });
    }
    out
}

const DOCKERFILE: &str = "FROM scratch\nCOPY a /b\nENV X=1\nRUN say hello\nCMD [\"/b\"]\n";

#[tokio::test]
async fn docker_20_10_builds_classically() {
    let daemon = Daemon::start();
    let context = daemon.context(DOCKERFILE);
    let (ok, text) = daemon.docker("0", &["build", "-t", "app:1", &context], "").await;
    assert!(ok, "{text}");
    insta::assert_snapshot!("classic-build", masked(&text));
    let (ok, text) = daemon.docker("0", &["build", "-t", "app:1", &context], "").await;
    assert!(ok && text.contains(" ---> Using cache"), "{text}");
    let (ok, text) = daemon.docker("0", &["build", "-q", &context], "").await;
    assert!(ok && text.starts_with("sha256:") && text.lines().count() == 1, "{text}");
    let (ok, text) = daemon.docker("0", &["build", "-"], "FROM scratch\nLABEL a=b\n").await;
    assert!(ok && text.contains("Successfully built"), "{text}");
}

#[tokio::test]
async fn docker_20_10_builds_with_buildkit() {
    let daemon = Daemon::start();
    let context = daemon.context(DOCKERFILE);
    let (ok, text) = daemon.docker("1", &["build", "--progress=plain", "-t", "app:1", &context], "").await;
    assert!(ok, "{text}");
    assert!(text.contains("hello") && text.contains("writing image sha256:"), "{text}");
    let iid = daemon.path().join("iid");
    let args = ["build", "--iidfile", iid.to_str().unwrap(), "--progress=plain", &context];
    let (ok, text) = daemon.docker("1", &args, "").await;
    assert!(ok && text.contains("CACHED"), "{text}");
    assert!(std::fs::read_to_string(&iid).unwrap().starts_with("sha256:"));
    let out = daemon.path().join("out");
    let args = ["build", "--output", out.to_str().unwrap(), "--progress=plain", &context];
    let (ok, text) = daemon.docker("1", &args, "").await;
    assert!(ok, "{text}");
    assert_eq!(std::fs::read_to_string(out.join("b")).unwrap(), "content of a");
    let (ok, text) =
        daemon.docker("1", &["build", "--progress=plain", "-"], "FROM scratch\nLABEL a=b\n").await;
    assert!(ok, "{text}");
    let (ok, text) = daemon.docker("1", &["images", "--format", "{{.Repository}}:{{.Tag}}"], "").await;
    assert!(ok && text.contains("app:1"), "{text}");
}

#[tokio::test]
async fn failures_name_the_step_and_the_code() {
    let daemon = Daemon::start();
    let context = daemon.context("FROM scratch\nRUN fail 7\nRUN say never\n");
    let (ok, text) = daemon.docker("0", &["build", &context], "").await;
    assert!(!ok);
    insta::assert_snapshot!("classic-failure", masked(&text));
    let (ok, text) = daemon.docker("1", &["build", "--progress=plain", &context], "").await;
    assert!(!ok && text.contains("exit code: 7"), "{text}");

    let context = daemon.context("FROM scratch\nFORM x\n");
    let (ok, text) = daemon.docker("0", &["build", &context], "").await;
    assert!(!ok && text.contains("unknown instruction: FORM") && text.contains("line 2"), "{text}");
    let (ok, text) = daemon.docker("0", &["build", "-f", "nope", &context], "").await;
    assert!(!ok, "{text}");
    let (ok, text) = daemon.docker("0", &["build", "--target", "nope", &context], "").await;
    assert!(!ok, "{text}");
}
