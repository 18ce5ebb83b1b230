//! The contract: run one process, say how it ended.

use std::{
    fmt,
    future::Future,
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
};

use bytes::Bytes;
use tokio::{
    io::AsyncWrite,
    sync::{mpsc, oneshot},
};
use tokio_util::sync::CancellationToken;

use crate::{ExecError, ExtraProcess, InputSource, Order, ProcessSpec, RunId, WindowSize};

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

    /// Runs a further process in the container of a run whose program has been started, to its end: in its namespaces and cgroups, on the
    /// same file systems, with the same rights. It ends with the container's first process at the latest.
    ///
    /// Cancelled as [`Self::run`] is, but for processes that it has started in turn: those are the container's.
    ///
    /// Errors: [`ExecError::NotRunning`], also of an executor that cannot do this (the default); otherwise those of [`Self::run`].
    fn join(
        &self,
        into: RunId,
        process: ExtraProcess,
        io: ProcessIo,
        cancel: CancellationToken,
    ) -> BoxFuture<'_, Result<ExitStatus, ExecError>> {
        let _ = (process, io, cancel);
        Box::pin(std::future::ready(Err(ExecError::NotRunning(into))))
    }

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

/// The process's standard streams, and how it is talked to while it runs. By default: nothing goes in, and what comes out vanishes.
#[derive(Debug, Default)]
pub struct ProcessIo {
    /// What the process reads from its standard input.
    pub stdin: InputSource,
    /// Gets what the process writes to its standard output.
    pub stdout: OutputSink,
    /// Gets what the process writes to its standard error.
    pub stderr: OutputSink,
    /// A terminal of this size in place of the three streams: `stdin` is typed on it, and all that it shows goes to `stdout`.
    pub terminal: Option<WindowSize>,
    /// What is done to the process while it runs.
    pub orders: Option<mpsc::Receiver<Order>>,
    /// Told when the program has been started. Dropped when it never will be.
    pub started: Option<oneshot::Sender<()>>,
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
