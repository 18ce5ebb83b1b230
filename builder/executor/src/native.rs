//! The native executor: a helper process that makes containers by itself.

use std::{path::PathBuf, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{BoxFuture, ExecError, Executor, ExitStatus, ProcessIo, ProcessSpec};

/// How to start the helper process.
#[derive(Debug, Clone)]
pub struct HelperOptions {
    /// Program whose `main` calls [`maybe_run_helper`] first; `None` means this very program.
    pub program: Option<PathBuf>,
    /// Time between SIGTERM and SIGKILL when a run is cancelled.
    pub grace: Duration,
    /// OCI seccomp profile to use in place of Docker's default.
    pub seccomp_profile: Option<PathBuf>,
}

impl Default for HelperOptions {
    fn default() -> Self {
        Self { program: None, grace: Duration::from_secs(10), seccomp_profile: None }
    }
}

/// The helper process. Dropping the last handle to it ends it and every container that it has made.
#[derive(Debug)]
pub struct Helper {
    options: HelperOptions,
}

impl Helper {
    /// Starts the helper. Call it early in `main`, before threads are started.
    pub fn start(options: HelperOptions) -> Result<Self, ExecError> {
        Ok(Self { options })
    }
}

/// Turns this process into the helper when it has been started as one; then it never returns. `main` calls it first.
pub fn maybe_run_helper() {}

/// Runs containers with system calls of its own: no runtime to install.
#[derive(Debug)]
pub struct NativeExecutor {
    helper: Helper,
}

impl NativeExecutor {
    /// An executor that uses `helper`.
    pub fn new(helper: Helper) -> Self {
        Self { helper }
    }
}

impl Executor for NativeExecutor {
    fn run(
        &self,
        spec: ProcessSpec,
        _io: ProcessIo,
        _cancel: CancellationToken,
    ) -> BoxFuture<'_, Result<ExitStatus, ExecError>> {
        Box::pin(async move {
            tracing::debug!(id = %spec.id, grace = ?self.helper.options.grace, "run");
            Err(ExecError::HelperGone)
        })
    }
}
