//! The contract: run one process, say how it ended.

use std::{
    fmt,
    future::Future,
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
};

use bytes::Bytes;
use tokio::{io::AsyncWrite, sync::mpsc};
use tokio_util::sync::CancellationToken;

use crate::{ExecError, ProcessSpec};

/// A future that can be sent to another thread.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Runs processes in containers. Any number of runs may be under way at once.
pub trait Executor: Send + Sync {
    /// Runs one process to its end.
    ///
    /// Returns when the last process of the container is gone, all that it wrote has been given to `io`, and neither
    /// mounts, cgroups nor files of the run are left.
    ///
    /// When `cancel` fires, the process gets SIGTERM; after the executor's grace period (at once when the process could not
    /// notice SIGTERM) everything in its pid namespace gets SIGKILL; the answer is then [`ExecError::Cancelled`].
    /// Dropping the future instead kills the container without grace and does not wait for its end.
    fn run(
        &self,
        spec: ProcessSpec,
        io: ProcessIo,
        cancel: CancellationToken,
    ) -> BoxFuture<'_, Result<ExitStatus, ExecError>>;

    /// The address at which processes of [`crate::NetworkMode::Default`] reach the machine (`host-gateway`). Their network may have
    /// to be made first; where it is the machine's own, it is loopback.
    fn host_address(&self) -> BoxFuture<'_, IpAddr> {
        Box::pin(std::future::ready(Ipv4Addr::LOCALHOST.into()))
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus {
    /// Exit code; 128 + n when signal n ended it, as BuildKit and shells have it.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the kernel killed a process of the run because the run's memory limit was reached.
    pub oom_killed: bool,
}

impl ExitStatus {
    /// Whether the process ended with code 0.
    pub fn success(&self) -> bool {
        self.code == 0
    }
}

/// The process's standard streams. Standard input is always empty (`/dev/null`).
#[derive(Debug, Default)]
pub struct ProcessIo {
    /// Gets what the process writes to its standard output.
    pub stdout: OutputSink,
    /// Gets what the process writes to its standard error.
    pub stderr: OutputSink,
}

/// Where output goes. A slow sink slows the process down; a sink that is gone (receiver dropped, write error) makes
/// further output vanish and never blocks or kills the process.
#[derive(Default)]
pub enum OutputSink {
    /// Nowhere.
    #[default]
    Discard,
    /// To a bounded channel, in chunks of at most 64 KiB.
    Channel(mpsc::Sender<Bytes>),
    /// To a writer, which is flushed at the end but not shut down.
    Writer(Box<dyn AsyncWrite + Send + Unpin>),
}

impl fmt::Debug for OutputSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Discard => "Discard",
            Self::Channel(_) => "Channel",
            Self::Writer(_) => "Writer",
        })
    }
}
