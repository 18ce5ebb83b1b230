//! What all doors share.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use lapstrake_api_types::Proxies;
use lapstrake_builder_history::History;
use lapstrake_layerstore_store::{Collector, Stores};
use lapstrake_session::Sessions;

use crate::{BuildCache, Builds, EventBus, ImageTransfer, Worker, build::Jobs, grpc::Spools};

/// What the daemon makes and the doors use.
pub struct Parts {
    /// Images, layers, blobs.
    pub stores: Stores,
    /// Frees what deletions and prunes leave.
    pub collector: Arc<Collector>,
    /// Live client sessions.
    pub sessions: Sessions,
    /// Runs builds.
    pub builds: Arc<dyn Builds>,
    /// What gRPC's clients work with; `None` where there is nothing for them.
    pub worker: Option<Worker>,
    /// The build cache.
    pub cache: Arc<dyn BuildCache>,
    /// Moves images.
    pub transfer: Arc<dyn ImageTransfer>,
    /// What the daemon knows of itself.
    pub facts: SystemFacts,
    /// What one request may take.
    pub limits: RequestLimits,
}

/// What all doors share. Construct it once; every connection holds it.
pub struct AppState {
    pub(crate) parts: Parts,
    pub(crate) events: EventBus,
    pub(crate) jobs: Jobs,
    pub(crate) spools: Spools,
    pub(crate) pruning: tokio::sync::Mutex<()>,
    pub(crate) history: OnceLock<History>,
}

impl AppState {
    /// State of these parts, with no events yet.
    pub fn new(parts: Parts) -> Self {
        Self {
            parts,
            events: EventBus::default(),
            jobs: Jobs::default(),
            spools: Spools::default(),
            pruning: tokio::sync::Mutex::default(),
            history: OnceLock::new(),
        }
    }

    /// Tells clients of the builds of this history. Counts once.
    pub fn show_history(&self, history: History) {
        let _ = self.history.set(history);
    }

    /// Where doors tell what they did.
    pub fn events(&self) -> &EventBus {
        &self.events
    }
}

impl std::ops::Deref for AppState {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

impl std::fmt::Debug for AppState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AppState").field("facts", &self.facts).finish_non_exhaustive()
    }
}

/// What the daemon knows of itself when it starts; the rest of `/info` is asked of the machine.
#[derive(Debug, Clone, Default)]
pub struct SystemFacts {
    /// Identity of the store, the same for its whole life.
    pub id: String,
    /// The daemon's version, such as `0.1.0`.
    pub version: String,
    /// Revision of the source, or empty.
    pub git_commit: String,
    /// When it was built, or empty.
    pub build_time: String,
    /// The root directory of the store.
    pub root: PathBuf,
    /// The graph driver's name.
    pub driver: String,
    /// What the graph driver says of itself.
    pub driver_status: Vec<(String, String)>,
    /// What runs processes: name and program.
    pub runtimes: Vec<(String, String)>,
    /// Which of them is used.
    pub default_runtime: String,
    /// Such as `name=seccomp,profile=builtin`.
    pub security_options: Vec<String>,
    /// Registries reached over plain HTTP.
    pub insecure_registries: Vec<String>,
    /// Mirrors of Docker Hub.
    pub mirrors: Vec<String>,
    /// Proxies for registry traffic.
    pub proxies: Proxies,
    /// `cgroupfs` or `systemd`.
    pub cgroup_driver: String,
    /// Debug logging is on.
    pub debug: bool,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// What one request may take.
#[derive(Debug, Clone, Copy)]
pub struct RequestLimits {
    /// Bytes of a build context, an archive to load or a tree to import.
    pub upload_bytes: u64,
    /// Bytes of a document (credentials).
    pub document_bytes: usize,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self { upload_bytes: 1 << 40, document_bytes: 1 << 20 }
    }
}
