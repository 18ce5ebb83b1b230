//! Why a step failed.

use lapstrake_builder_executor::ExecError;
use lapstrake_builder_source::{ErrorKind, SourceError};
use lapstrake_layerstore_oci::Platform;
use lapstrake_layerstore_store::StoreError;

use crate::{EngineError, Left};

/// Why one step failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// The process ended with a code that is not 0.
    #[error("process {:?} did not complete successfully: {}", args.join(" "), exit_message(*code, oom.as_ref()))]
    Exit {
        /// Its command line.
        args: Vec<String>,
        /// Its exit code; 128 and more for a signal.
        code: i32,
        /// Whether the kernel killed a process for want of memory.
        oom: Option<OutOfMemory>,
    },
    /// The process could not be run.
    #[error("process {:?} did not complete successfully: {source}", args.join(" "))]
    Run {
        /// Its command line.
        args: Vec<String>,
        /// Why.
        source: ExecError,
    },
    /// The process is for a platform that this machine does not run.
    #[error("process {:?} did not complete successfully: {source}: {}", args.join(" "), emulator_advice(platform))]
    Foreign {
        /// Its command line.
        args: Vec<String>,
        /// Which platform.
        platform: Box<Platform>,
        /// What the kernel said.
        source: ExecError,
    },
    /// A secret that the step needs was not given.
    #[error("secret {id}: not found")]
    NoSecret {
        /// Its id.
        id: String,
    },
    /// The step needs an ssh agent, and the client forwards none.
    #[error("no SSH key {id:?} forwarded from the client")]
    NoSshAgent {
        /// Its id.
        id: String,
    },
    /// Something of the client's could not be had.
    #[error(transparent)]
    Session(#[from] lapstrake_session::Error),
    /// A source could not be fetched.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A file action failed.
    #[error(transparent)]
    Files(#[from] lapstrake_builder_files::FilesError),
    /// What an op reads could not be looked at.
    #[error("failed to compute cache key: {0}")]
    Content(#[source] lapstrake_builder_files::FilesError),
    /// A store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cache's records failed.
    #[error(transparent)]
    Cache(#[from] lapstrake_builder_cache::CacheError),
    /// The op asks for something that is not here.
    #[error("{what} is not supported")]
    Unsupported {
        /// What it asks for.
        what: String,
    },
    /// The op is malformed.
    #[error("invalid op: {what}")]
    Invalid {
        /// What is wrong.
        what: String,
    },
    /// A directory for the step's sockets could not be made.
    #[error("prepare {what}")]
    Io {
        /// What was being prepared.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The graph that the step is could not be solved.
    #[error("{source}")]
    Nested {
        /// Why.
        source: Box<EngineError>,
    },
    /// Any of these, and the trees that the step began with and left: frontends may look into it.
    #[error("{error}")]
    Left {
        /// Why it failed.
        #[source]
        error: Box<StepError>,
        /// What there is to see.
        left: Box<Left>,
    },
    /// Nobody waits for it any more.
    #[error("context canceled")]
    Canceled,
}

/// What to do about a platform that this machine does not run.
pub(crate) fn emulator_advice(platform: &Platform) -> String {
    let architecture = &platform.architecture;
    format!(
        "this machine does not run programs for {platform}; install an emulator: apt-get install qemu-user-static binfmt-support, \
         or docker run --privileged --rm tonistiigi/binfmt --install {architecture}"
    )
}

/// What a process was killed of that wanted more memory than there was for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfMemory {
    /// Bytes that it might have; `None` when it was not limited by itself.
    pub limit: Option<u64>,
}

impl std::fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("killed: out of memory")?;
        match self.limit {
            Some(bytes) if bytes % (1 << 20) == 0 => write!(f, ", limit {} MiB", bytes >> 20),
            Some(bytes) => write!(f, ", limit {bytes} bytes"),
            None => Ok(()),
        }
    }
}

/// As BuildKit, which has the kernel's word for a lack of memory (its clients print it).
fn exit_message(code: i32, oom: Option<&OutOfMemory>) -> String {
    match oom {
        Some(oom) => format!("cannot allocate memory (exit code: {code}, {oom})"),
        None => format!("exit code: {code}"),
    }
}

impl StepError {
    /// Why the step failed, without what it left.
    pub fn inner(&self) -> &StepError {
        match self {
            Self::Left { error, .. } => error.inner(),
            other => other,
        }
    }

    /// The trees that it left.
    pub(crate) fn left(&self) -> Option<&Left> {
        match self {
            Self::Left { left, .. } => Some(left),
            _ => None,
        }
    }

    /// How a caller should treat this error. A process that failed is nobody's fault but its own: `Internal`, as in Moby.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Source(source) => source.kind(),
            Self::Nested { source } => source.kind(),
            Self::Left { error, .. } => error.kind(),
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::Canceled => ErrorKind::Canceled,
            _ => ErrorKind::Internal,
        }
    }

    /// Runs blocking work for a step on a thread that may block.
    pub(crate) async fn blocking<T: Send + 'static, E: Into<StepError> + Send + 'static>(
        work: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<T, StepError> {
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result.map_err(Into::into),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
}
