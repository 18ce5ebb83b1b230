//! Puts everything together: stores, cache, sources, executor, exporter, engine. Nothing is decided here that settings do not say.

use std::{fs, path::PathBuf, sync::Arc};

use lapstrake_builder_cache::{BuildCache, PruneRequest};
use lapstrake_builder_engine::{Engine, Entitlement, Parts};
use lapstrake_builder_executor::{
    Executor, Helper, HelperOptions, NativeExecutor, NetworkOptions, OciRuntime, StartingHelper,
};
use lapstrake_builder_exporter::Exporter;
use lapstrake_builder_history::History;
use lapstrake_builder_source::{SourceLimits, Sources, SourcesOptions};
use lapstrake_graphdriver_adapter::{Adapter, DriverKind};
use lapstrake_layerstore_registry::{ClientOptions, RegistryClient};
use lapstrake_layerstore_store::{
    Collector, Holder, LocalRecords, LocalStore, Metadata, SnapshotRecords as _, Stores,
};
use lapstrake_session::Sessions;
use serde_json::Map;

use crate::{error::ProgramError, provenance, rootless, settings::StoreSettings, sweeper::Tidier};

/// The store, opened: what `df` and `prune` need.
pub(crate) struct OpenStore {
    /// All stores.
    pub(crate) stores: Stores,
    /// Its database.
    pub(crate) metadata: Metadata,
    /// The build cache.
    pub(crate) cache: Arc<BuildCache>,
    /// What was built.
    pub(crate) history: History,
    /// Frees what nobody needs.
    pub(crate) collector: Arc<Collector>,
    /// Which graph driver is used.
    pub(crate) driver: DriverKind,
    // How the cache is pruned without being asked.
    rules: Arc<[PruneRequest]>,
    records: Arc<LocalRecords>,
}

impl OpenStore {
    /// Opens the store and removes directories that a crash left.
    ///
    /// Errors: [`StoreError::Locked`](lapstrake_layerstore_store::StoreError::Locked) while another process has it open.
    pub(crate) fn open(settings: &StoreSettings) -> Result<Self, ProgramError> {
        let store = LocalStore::open(&settings.root)?;
        let driver = match settings.driver {
            Some(driver) => driver,
            None => detect(&settings.root)?,
        };
        let adapter = Adapter::new(driver.open(&settings.root)?, store.records.clone());
        let orphans = adapter.collect_orphans()?;
        if orphans > 0 {
            tracing::info!(orphans, "removed directories that the last run left half-made");
        }
        let stores = store.stores(Arc::new(adapter));
        let cache = BuildCache::open(store.metadata.clone(), stores.clone())?;
        let history = History::open(store.metadata.clone(), settings.root.join("history"), settings.history)?;
        let holders: Vec<Arc<dyn Holder>> = vec![Arc::<BuildCache>::clone(&cache)];
        let collector = Arc::new(Collector::new(stores.clone(), holders));
        let disk = cache.disk()?.total;
        let rules = settings.gc.rules(disk)?.iter().map(|rule| rule.request(disk)).collect();
        let LocalStore { metadata, records, .. } = store;
        Ok(Self { stores, metadata, cache, history, collector, driver, rules, records })
    }

    /// Makes the cache durable as well, so that it is still there after the machine was started anew. Takes seconds where much was written.
    pub(crate) async fn flush(&self) {
        let (snapshots, records) = (Arc::clone(&self.stores.snapshots), Arc::clone(&self.records));
        let flush = move || if records.last_commit()? > 0 { snapshots.sync() } else { Ok(()) };
        match tokio::task::spawn_blocking(flush).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the cache is not flushed"),
            Err(error) => tracing::error!(%error, "flushing the cache ended in a panic"),
        }
    }

    /// How the cache is pruned without being asked.
    pub(crate) fn rules(&self) -> &[PruneRequest] {
        &self.rules
    }

    /// What keeps the cache within its bounds.
    pub(crate) fn tidier(&self) -> Tidier {
        Tidier {
            collector: Arc::clone(&self.collector),
            cache: Arc::clone(&self.cache),
            rules: Arc::clone(&self.rules),
        }
    }
}

/// The driver that the store was made with; for a new one, what works best.
fn detect(root: &std::path::Path) -> Result<DriverKind, ProgramError> {
    let has = |kind: DriverKind| {
        fs::read_dir(root.join(kind.as_str())).is_ok_and(|mut entries| entries.any(|entry| entry.is_ok()))
    };
    match (has(DriverKind::Overlay2), has(DriverKind::Vfs)) {
        // Whether it still works is found out when it is opened: with another one, what is there would be nowhere.
        (true, _) => Ok(DriverKind::Overlay2),
        (false, true) => Ok(DriverKind::Vfs),
        (false, false) => Ok(DriverKind::detect(root)?),
    }
}

/// Starts the process that containers are made by, as root of an ordinary user's own namespace. Before any thread, and before anything is opened that it should not inherit.
pub(crate) fn start_helper(
    seccomp_profile: Option<PathBuf>,
    network: NetworkOptions,
) -> Result<StartingHelper, ProgramError> {
    rootless::enter()?;
    Ok(Helper::spawn(HelperOptions { seccomp_profile, network, ..HelperOptions::default() })?)
}

/// An engine and all that it stands on.
pub(crate) struct Assembly {
    /// The store.
    pub(crate) store: OpenStore,
    /// Runs builds.
    pub(crate) engine: Engine,
    /// Live client sessions.
    pub(crate) sessions: Sessions,
    /// Asks registries as a stranger.
    pub(crate) registry: RegistryClient,
}

impl Assembly {
    /// Opens the store and builds an engine on it, whose clients may grant these entitlements. Called within a tokio runtime.
    pub(crate) fn new(
        settings: &StoreSettings,
        entitlements: Vec<Entitlement>,
        helper: StartingHelper,
    ) -> Result<Self, ProgramError> {
        let machine = match &settings.provenance_env_dir {
            Some(directory) => provenance::facts(directory)?,
            None => Map::new(),
        };
        let store = OpenStore::open(settings)?;
        let helper = helper.ready()?;
        let executor: Arc<dyn Executor> = match &settings.oci_runtime {
            Some(path) if rootless::is_ordinary_user() => {
                let why = "an ordinary user's steps are run by the built-in executor alone";
                return Err(ProgramError::setting(format!("--oci-runtime {}", path.display()), why));
            }
            Some(path) => Arc::new(OciRuntime::new(path, helper)?),
            None => Arc::new(NativeExecutor::new(helper)?),
        };
        let sessions = Sessions::new();
        let registry = RegistryClient::new(settings.registry.clone(), ClientOptions::default());
        let sources = Sources::new(SourcesOptions {
            stores: store.stores.clone(),
            cache: Arc::clone(&store.cache),
            sessions: sessions.clone(),
            registry: registry.clone(),
            root: settings.root.join("git"),
            limits: SourceLimits::default(),
        });
        let engine = Engine::new(Parts {
            stores: store.stores.clone(),
            cache: Arc::clone(&store.cache),
            sources,
            sessions: sessions.clone(),
            executor,
            exporter: Exporter::new(store.stores.clone()),
            runtime_dir: runtime_directory(settings)?,
            parallelism: settings.parallelism,
            frontends: settings.frontends,
            entitlements,
            devices: settings.devices.clone(),
        });
        engine.record_in(store.history.clone());
        engine.describe_machine(machine);
        Ok(Self { store, engine, sessions, registry })
    }
}

/// A directory for sockets that belong to running steps: nothing in it means anything to the next run.
fn runtime_directory(settings: &StoreSettings) -> Result<PathBuf, ProgramError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let path = settings.root.join("run");
    match fs::remove_dir_all(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(ProgramError::file("empty", path)(source)),
    }
    fs::DirBuilder::new().mode(0o700).create(&path).map_err(ProgramError::file("make", &path))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_keeps_its_driver_and_nothing_is_tried_on_it() {
        for kind in [DriverKind::Overlay2, DriverKind::Vfs] {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir_all(root.path().join(kind.as_str()).join("x")).unwrap();
            let directory = fs::File::open(root.path()).unwrap();
            directory.set_modified(std::time::UNIX_EPOCH).unwrap();
            assert_eq!(detect(root.path()).unwrap(), kind);
            // Trying makes a directory in it.
            assert_eq!(directory.metadata().unwrap().modified().unwrap(), std::time::UNIX_EPOCH);
        }
    }
}
