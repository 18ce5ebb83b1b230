//! An external OCI runtime (runc, crun) in place of the native executor.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio_util::sync::CancellationToken;

use crate::{
    BoxFuture, ExecError, Executor, ExitStatus, ExtraProcess, Helper, ProcessIo, ProcessSpec, RunId,
    SecurityMode, plan::Runtime, seccomp::Profile,
};

/// Runs containers with an OCI runtime, to the same effect as [`crate::NativeExecutor`].
///
/// Differences: a program that is missing or cannot be executed is [`ExecError::Runtime`], in the runtime's words.
#[derive(Debug, Clone)]
pub struct OciRuntime {
    path: PathBuf,
    helper: Helper,
    profile: Arc<Profile>,
}

impl OciRuntime {
    /// An executor that has `helper` call the runtime at `path` (absolute, or a name to be searched in `PATH`).
    pub fn new(path: impl Into<PathBuf>, helper: Helper) -> Result<Self, ExecError> {
        let path = find(path.into())?;
        let profile = Arc::new(Profile::load(helper.options().seccomp_profile.as_deref())?);
        Ok(Self { path, helper, profile })
    }

    /// The runtime's absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The program's absolute path.
fn find(path: PathBuf) -> Result<PathBuf, ExecError> {
    let found = if path.is_absolute() {
        Some(path.clone()).filter(|path| path.is_file())
    } else if path.components().count() == 1 {
        std::env::var_os("PATH").and_then(|all| {
            std::env::split_paths(&all).map(|dir| dir.join(&path)).find(|candidate| candidate.is_file())
        })
    } else {
        None
    };
    found.ok_or_else(|| ExecError::Invalid {
        field: "oci runtime",
        value: path.display().to_string(),
        reason: "is neither the absolute path of a program nor a program in PATH",
    })
}

impl Executor for OciRuntime {
    fn run(
        &self,
        spec: ProcessSpec,
        io: ProcessIo,
        cancel: CancellationToken,
    ) -> BoxFuture<'_, Result<ExitStatus, ExecError>> {
        Box::pin(async move {
            let (network, mut plan) = self.helper.plan(&spec, &cancel).await?;
            let seccomp = match spec.security {
                SecurityMode::Sandbox => {
                    // The runtime makes its own of the profile; this one is for processes that join.
                    plan.seccomp = self.profile.compile(plan.caps)?;
                    Some(self.profile.oci(plan.caps)?)
                }
                SecurityMode::Insecure => None,
            };
            plan.runtime = Some(Runtime { path: self.path.clone(), seccomp });
            self.helper.run(spec.id, plan, network, io, cancel).await
        })
    }

    fn host_address(&self) -> BoxFuture<'_, IpAddr> {
        Box::pin(async move { self.helper.network().host_address().await.into() })
    }

    fn join(
        &self,
        into: RunId,
        process: ExtraProcess,
        io: ProcessIo,
        cancel: CancellationToken,
    ) -> BoxFuture<'_, Result<ExitStatus, ExecError>> {
        Box::pin(self.helper.join(into, process, io, cancel))
    }
}
