//! The native executor: the plan, and nothing between it and the kernel but the helper.

use std::{net::IpAddr, sync::Arc};

use tokio_util::sync::CancellationToken;

use crate::{
    BoxFuture, ExecError, Executor, ExitStatus, ExtraProcess, Helper, ProcessIo, ProcessSpec, RunId,
    seccomp::Profile,
};

/// Runs containers with system calls of its own: no runtime to install.
#[derive(Debug, Clone)]
pub struct NativeExecutor {
    helper: Helper,
    profile: Arc<Profile>,
}

impl NativeExecutor {
    /// An executor that uses `helper`, with Docker's seccomp profile or the one that the helper's options name.
    pub fn new(helper: Helper) -> Result<Self, ExecError> {
        let profile = Arc::new(Profile::load(helper.options().seccomp_profile.as_deref())?);
        Ok(Self { helper, profile })
    }
}

impl Executor for NativeExecutor {
    fn run(
        &self,
        spec: ProcessSpec,
        io: ProcessIo,
        cancel: CancellationToken,
    ) -> BoxFuture<'_, Result<ExitStatus, ExecError>> {
        Box::pin(async move {
            let (network, mut plan) = self.helper.plan(&spec, &cancel).await?;
            if spec.security == crate::SecurityMode::Sandbox {
                plan.seccomp = self.profile.compile(plan.caps)?;
            }
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
