//! The native executor: the plan, and nothing between it and the kernel but the helper.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::{
    BoxFuture, ExecError, Executor, ExitStatus, Helper, ProcessIo, ProcessSpec, plan::Plan, seccomp::Profile,
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
            let mut plan = Plan::new(&spec)?;
            if spec.security == crate::SecurityMode::Sandbox {
                plan.seccomp = self.profile.compile(plan.caps)?;
            }
            self.helper.run(spec.id, plan, io, cancel).await
        })
    }
}
