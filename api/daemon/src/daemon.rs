//! `lapstrake daemon`: from settings to a served socket, and to an orderly end.

use std::{path::Path, sync::Arc};

use lapstrake_api_server::{AppState, EngineBuilds, Parts, RequestLimits, SystemFacts, Worker};
use lapstrake_builder_engine::{Entitlement, KeepFailed};
use lapstrake_layerstore_oci::Digest;
use tokio_util::sync::CancellationToken;

use crate::{
    assembly::{self, Assembly},
    bridge::{StoreTransfer, Swept},
    cli::DaemonArgs,
    error::ProgramError,
    inherited, listen, logging, notify, process, rootless,
    settings::DaemonSettings,
    sweeper::{self, Sweep},
};

/// How long the end waits for the last builds to be written down.
const WRITE_DOWN: std::time::Duration = std::time::Duration::from_secs(5);

/// How long it waits for the cache to be on disk.
const FLUSH: std::time::Duration = std::time::Duration::from_secs(5);

/// Runs until a signal.
pub(crate) fn run(args: &DaemonArgs) -> Result<(), ProgramError> {
    // Taken before anything is opened: their numbers are known by heart.
    let sockets = inherited::sockets();
    let settings = DaemonSettings::new(args)?;
    logging::start(settings.store.log_format, settings.store.log_level);
    for doubt in &settings.store.doubts {
        tracing::warn!("configuration: {doubt}");
    }
    process::raise_open_files();
    // Before the runtime's threads.
    let helper =
        assembly::start_helper(settings.store.seccomp_profile.clone(), settings.store.network.clone())?;
    let runtime = process::start_threads()?;
    let served = runtime.block_on(async {
        let stop = CancellationToken::new();
        process::stop_on_signals(stop.clone())?;
        // The store's lock is what tells that no other daemon runs on it: nothing of it is touched before.
        let entitlements = settings.store.allowed(&Entitlement::DEFAULT);
        let assembly = Assembly::new(&settings.store, entitlements, helper)?;
        let pid_file = settings.pid_file.as_deref().map(process::PidFile::create).transpose()?;
        let listeners = listen::bind(&settings, sockets).await?;
        let sweep = Sweep::default();
        let state = Arc::new(AppState::new(parts(&settings, &assembly, &sweep, &stop)));
        state.show_history(assembly.store.history.clone());
        let sweeping = tokio::spawn(sweeper::run(
            assembly.store.tidier(),
            assembly.store.metadata.clone(),
            sweep,
            stop.clone(),
        ));
        let (history, stopped) = (assembly.store.history.clone(), stop.clone());
        // Who listens to it would keep its connection, and the daemon, to the end of the grace period.
        tokio::spawn(async move {
            stopped.cancelled().await;
            history.end_news().await;
        });
        notify::ready();
        listen::serve_all(listeners, state, stop.clone()).await;
        notify::stopping();
        if let Err(error) = sweeping.await {
            tracing::error!(%error, "collection ended in a panic");
        }
        if tokio::time::timeout(WRITE_DOWN, assembly.store.history.settle()).await.is_err() {
            tracing::warn!("the last builds are not written down");
        }
        if tokio::time::timeout(FLUSH, assembly.store.flush()).await.is_err() {
            tracing::warn!("the cache is not flushed in time: what is missing on disk after a restart of the machine is forgotten");
        }
        drop(pid_file);
        Ok(())
    });
    // A blocking call that hangs (a dead network file system) is not waited for: the store is safe against that.
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    tracing::info!("ended");
    served
}

fn parts(settings: &DaemonSettings, assembly: &Assembly, sweep: &Sweep, stop: &CancellationToken) -> Parts {
    let store = &assembly.store;
    let builds = Arc::new(
        EngineBuilds::new(assembly.engine.clone(), Arc::clone(&store.collector))
            .with_host_gateway(settings.store.host_gateway.clone())
            .with_keep_failed(if settings.keep_failed { KeepFailed::Yes } else { KeepFailed::No }),
    );
    Parts {
        stores: store.stores.clone(),
        collector: Arc::clone(&store.collector),
        sessions: assembly.sessions.clone(),
        builds: Arc::new(Swept::new(Arc::<EngineBuilds>::clone(&builds), sweep.clone(), stop.clone())),
        worker: Some(Worker {
            engine: assembly.engine.clone(),
            collector: Arc::clone(&store.collector),
            rules: store.rules().to_vec(),
            host_gateway: settings.store.host_gateway.clone(),
            keeps_images: settings.store.keeps_images,
        }),
        cache: builds,
        transfer: Arc::new(StoreTransfer::new(
            store.stores.clone(),
            assembly.registry.clone(),
            sweep.clone(),
        )),
        facts: facts(settings, assembly),
        limits: RequestLimits::default(),
    }
}

fn facts(settings: &DaemonSettings, assembly: &Assembly) -> SystemFacts {
    let root = &settings.store.root;
    let (runtime, program) = match &settings.store.oci_runtime {
        Some(path) => {
            let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
            (name, path.display().to_string())
        }
        None => ("lapstrake".to_owned(), "built-in".to_owned()),
    };
    let hosts = &settings.store.registry.hosts;
    let insecure = hosts.iter().filter(|(_, host)| host.http == Some(true) || host.insecure == Some(true));
    let mut warnings: Vec<String> =
        settings.store.doubts.iter().map(|doubt| format!("WARNING: configuration: {doubt}")).collect();
    if !matches!(settings.tcp, crate::settings::TcpSecurity::Mutual { .. }) {
        let open = settings.hosts.iter().filter(|host| matches!(host, crate::host::Host::Tcp(_)));
        warnings.extend(open.map(|host| {
            format!("WARNING: API is accessible on {host} without client certificates: whoever can connect is as good as root")
        }));
    }
    SystemFacts {
        id: store_id(root),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        git_commit: option_env!("LAPSTRAKE_GIT_COMMIT").unwrap_or_default().to_owned(),
        build_time: option_env!("LAPSTRAKE_BUILD_TIME").unwrap_or_default().to_owned(),
        root: root.clone(),
        driver: assembly.store.driver.to_string(),
        driver_status: vec![
            ("Root Dir".to_owned(), root.display().to_string()),
            // By this, buildx and compose know that images of several platforms can be loaded, and are named by their manifests.
            ("driver-type".to_owned(), "io.containerd.snapshotter.v1".to_owned()),
        ],
        runtimes: vec![(runtime.clone(), program)],
        default_runtime: runtime,
        security_options: std::iter::once(format!(
            "name=seccomp,profile={}",
            settings.store.seccomp_profile.as_deref().unwrap_or(Path::new("builtin")).display()
        ))
        .chain(rootless::is_ordinary_user().then(|| "name=rootless".to_owned()))
        .collect(),
        insecure_registries: insecure.map(|(name, _)| name.clone()).collect(),
        mirrors: hosts.get("docker.io").map(|host| host.mirrors.clone()).unwrap_or_default(),
        proxies: lapstrake_api_types::Proxies::default(),
        cgroup_driver: "cgroupfs".to_owned(),
        debug: settings.store.log_level >= logging::LogLevel::Debug,
        warnings,
    }
}

/// Identifies this store on this machine, for as long as both are.
fn store_id(root: &Path) -> String {
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    Digest::sha256_of(format!("lapstrake {} {}", machine.trim(), root.display())).hex()[..32].to_owned()
}
