//! Which architectures' programs this machine runs: its own, those that its processor also knows, those that an emulator is registered for.
//!
//! Found out as BuildKit does (`util/archutil`): by running the smallest program for each, in a container like a step's. So an emulator that a
//! container would not find (binfmt_misc without the flag F) does not count, and one that was registered elsewhere does (binfmt_misc need not be mounted here).

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use lapstrake_layerstore_store::{SnapshotMount, random_id};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{ExecError, Executor, NetworkMode, ProcessIo, ProcessSpec, StubPolicy, elf};

/// How long an answer counts: emulators come and go while the daemon runs. As BuildKit's `CacheMaxAge`.
const COUNTS: Duration = Duration::from_secs(20);

/// Finds out, and remembers for a while, which programs can be run.
pub struct Architectures {
    executor: Arc<dyn Executor>,
    /// Where the programs are put.
    directory: PathBuf,
    known: Mutex<HashMap<&'static str, (bool, Instant)>>,
}

impl std::fmt::Debug for Architectures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Architectures").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Architectures {
    /// Asks by `executor`, with programs in a directory that is private to the daemon and emptied at its start.
    pub fn new(executor: Arc<dyn Executor>, directory: PathBuf) -> Self {
        Self { executor, directory, known: Mutex::default() }
    }

    /// Whether programs for an architecture (in Go's name) run here. One that nothing is known of does not.
    pub async fn runs(&self, architecture: &str) -> bool {
        if architecture == elf::native() {
            return true;
        }
        let Some(name) = elf::architectures().find(|known| *known == architecture) else { return false };
        let mut known = self.known.lock().await;
        if let Some((runs, asked)) = known.get(name)
            && asked.elapsed() < COUNTS
        {
            return *runs;
        }
        let runs = self.try_one(name).await;
        known.insert(name, (runs, Instant::now()));
        runs
    }

    /// All that run here, this machine's own first.
    pub async fn all(&self) -> Vec<&'static str> {
        let mut all = vec![elf::native()];
        for name in elf::architectures().filter(|name| *name != elf::native()) {
            if self.runs(name).await {
                all.push(name);
            }
        }
        all
    }

    async fn try_one(&self, name: &'static str) -> bool {
        let root = self.directory.join(format!("check-{name}-{}", random_id()));
        let prepared = root.clone();
        let made = tokio::task::spawn_blocking(move || prepare(&prepared, name)).await;
        let runs = match made {
            Ok(Ok(())) => {
                let mut spec = ProcessSpec::new(
                    SnapshotMount::Bind { source: root.clone(), read_only: false },
                    ["/check"],
                );
                spec.network = NetworkMode::None;
                spec.stubs = StubPolicy::RemoveTargets;
                let ended = self.executor.run(spec, ProcessIo::default(), CancellationToken::new()).await;
                tracing::debug!(architecture = name, ?ended, "programs for another architecture were tried");
                ended.is_ok_and(|status| status.success())
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "it cannot be found out which architectures' programs run here");
                false
            }
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        // What is left of it goes with the directory at the next start.
        let _ = tokio::task::spawn_blocking(move || fs::remove_dir_all(&root)).await;
        runs
    }
}

fn prepare(root: &Path, name: &str) -> Result<(), ExecError> {
    let failed = |source| ExecError::Io { doing: "prepare a program for another architecture", source };
    let program = elf::smallest(name).expect("its name is one of the known");
    fs::create_dir_all(root).map_err(failed)?;
    let path = root.join("check");
    fs::write(&path, program).map_err(failed)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(failed)
}
