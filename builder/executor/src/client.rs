//! The daemon's side of the helper: starts it, sends plans, pumps output, hears how runs end.

use std::{
    collections::HashMap,
    io::Write,
    os::fd::{AsFd, OwnedFd},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::Duration,
};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::{
    ExecError, ExitStatus, ExtraProcess, Network, NetworkOptions, ProcessIo, ProcessSpec, RunId,
    SecurityMode,
    helper::{self, HELPER_NAME},
    network::Attachment,
    plan::{self, Plan},
    streams::{Conversation, Heard},
    talk::Extra,
    wire::{Outcome, Reply, Request, Socket},
};

/// A helper that has said nothing for so long is none.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// How to start the helper process, and how it deals with containers.
#[derive(Debug, Clone)]
pub struct HelperOptions {
    /// Program whose `main` calls [`maybe_run_helper`] first; `None` means this very program.
    pub program: Option<PathBuf>,
    /// Time between SIGTERM and SIGKILL when a run is cancelled.
    pub grace: Duration,
    /// OCI seccomp profile (Docker's JSON format) to use in place of Docker's default.
    pub seccomp_profile: Option<PathBuf>,
    /// What containers get for a network.
    pub network: NetworkOptions,
}

impl Default for HelperOptions {
    fn default() -> Self {
        Self {
            program: None,
            grace: Duration::from_secs(10),
            seccomp_profile: None,
            network: NetworkOptions::default(),
        }
    }
}

/// Turns this process into the helper when it has been started as one; then it never returns. `main` calls it before
/// anything else, above all before any thread is started.
pub fn maybe_run_helper() {
    if std::env::args_os().next().is_some_and(|name| name == HELPER_NAME)
        && let Ok(socket) = std::io::stdin().as_fd().try_clone_to_owned()
    {
        helper::serve(Socket::from_fd(socket));
    }
}

/// The helper process. A handle: clones mean the same process. When the last one is dropped, the helper ends, and with it every
/// container that it has made.
#[derive(Debug, Clone)]
pub struct Helper {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    socket: Arc<Socket>,
    options: HelperOptions,
    network: Network,
    runs: Arc<Mutex<Runs>>,
}

/// Those who wait for an answer.
#[derive(Debug, Default)]
struct Runs {
    waiting: HashMap<String, Waiter>,
    gone: bool,
}

#[derive(Debug)]
struct Waiter {
    ended: oneshot::Sender<Outcome>,
    terminated: Option<oneshot::Sender<bool>>,
    heard: Heard,
}

/// A helper process that is getting ready, while others go on.
#[derive(Debug)]
pub struct StartingHelper {
    inner: Inner,
    program: PathBuf,
    became_ready: mpsc::Receiver<Reply>,
}

impl StartingHelper {
    /// Waits until the helper is ready: some milliseconds after it was started.
    pub fn ready(self) -> Result<Helper, ExecError> {
        let Self { inner, program, became_ready } = self;
        match became_ready.recv_timeout(READY_WITHIN) {
            Ok(Reply::Ready { without_devices, without_bounds }) => {
                if let Some(reason) = without_devices {
                    tracing::warn!(reason, "no device list for containers: they run without CAP_MKNOD");
                }
                if let Some(reason) = without_bounds {
                    tracing::warn!(reason, "no bound on what all containers together take of the machine");
                }
            }
            Ok(Reply::Refused { failure }) => return Err(failure.into_error(&RunId::random())),
            Ok(_) => return Err(ExecError::Protocol("was not ready")),
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err(ExecError::HelperGone),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                // Whatever it is, it reads from this socket, or will die of it.
                let _ = rustix::net::shutdown(&*inner.socket, rustix::net::Shutdown::Both);
                return Err(ExecError::HelperStart { program, source: std::io::ErrorKind::TimedOut.into() });
            }
        }
        Ok(Helper { inner: Arc::new(inner) })
    }
}

impl Helper {
    /// Starts the helper and waits until it is ready. Needs root. Blocks for some milliseconds.
    pub fn start(options: HelperOptions) -> Result<Self, ExecError> {
        Self::spawn(options)?.ready()
    }

    /// Starts the helper. Needs root.
    pub fn spawn(options: HelperOptions) -> Result<StartingHelper, ExecError> {
        let program = options.program.clone().unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
        let start_error = |source| ExecError::HelperStart { program: program.clone(), source };
        let (ours, theirs) = Socket::pair().map_err(start_error)?;
        let mut child = Command::new(&program)
            .arg0(HELPER_NAME)
            .stdin(Stdio::from(theirs.into_fd()))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(start_error)?;
        let socket = Arc::new(ours);
        let runs = Arc::new(Mutex::new(Runs::default()));
        let (ready, became_ready) = mpsc::sync_channel(1);
        let (heard, table) = (Arc::clone(&socket), Arc::clone(&runs));
        std::thread::Builder::new()
            .name("exec-helper".to_owned())
            .spawn(move || {
                listen(&heard, &table, &ready);
                // Collects the helper, so that it does not stay a zombie.
                let _ = child.wait();
            })
            .map_err(|source| ExecError::Io { doing: "start thread", source })?;
        let network = Network::new(options.network.clone());
        Ok(StartingHelper { inner: Inner { socket, options, network, runs }, program, became_ready })
    }

    /// The options it was started with.
    pub(crate) fn options(&self) -> &HelperOptions {
        &self.inner.options
    }

    /// The networks of its containers.
    pub fn network(&self) -> &Network {
        &self.inner.network
    }

    /// Decides what to do, and gets the network that it takes.
    pub(crate) async fn plan(
        &self,
        spec: &ProcessSpec,
        cancel: &CancellationToken,
    ) -> Result<(Attachment, Plan), ExecError> {
        let attachment = cancel.run_until_cancelled(self.inner.network.attach(spec.network)).await;
        let attachment = attachment.ok_or_else(|| ExecError::Cancelled(spec.id.clone()))??;
        let network = match &attachment {
            Attachment::Host => plan::Network::Host,
            Attachment::Empty => plan::Network::Empty,
            Attachment::Sandbox(sandbox) => plan::Network::Sandbox { resolver: sandbox.resolver() },
        };
        let plan = Plan::new(spec, network, self.inner.network.dns())?;
        Ok((attachment, plan))
    }

    /// Runs a plan to its end, in the network that is for it.
    pub(crate) async fn run(
        &self,
        id: RunId,
        plan: Plan,
        network: Attachment,
        io: ProcessIo,
        cancel: CancellationToken,
    ) -> Result<ExitStatus, ExecError> {
        if cancel.is_cancelled() {
            return Err(ExecError::Cancelled(id));
        }
        let io_error = |doing| move |source| ExecError::Io { doing, source };
        let (conversation, talk, mut fds, heard) = Conversation::open(io).map_err(io_error("make pipe"))?;
        let plan = Plan { talk, ..plan };
        fds.insert(0, memory_file(&plan).map_err(io_error("pass plan to the helper"))?);
        if let Attachment::Sandbox(sandbox) = &network {
            let namespace = sandbox.namespace().try_clone_to_owned();
            fds.push(namespace.map_err(io_error("pass network namespace to the helper"))?);
        }
        let request = Request::Run { id: id.to_string() };
        let is_confined = plan.security == SecurityMode::Sandbox && plan.nodes.is_empty();
        let end = self.follow(&id, request, fds, conversation, heard, cancel).await;
        // Nobody is in it any more. After an error that is not so sure.
        if let (Attachment::Sandbox(sandbox), Ok(_), true) = (network, &end, is_confined) {
            sandbox.give_back();
        }
        end
    }

    /// Runs a further process in the container of the run `into`, to its end.
    pub(crate) async fn join(
        &self,
        into: RunId,
        process: ExtraProcess,
        io: ProcessIo,
        cancel: CancellationToken,
    ) -> Result<ExitStatus, ExecError> {
        let id = RunId::random();
        if cancel.is_cancelled() {
            return Err(ExecError::Cancelled(id));
        }
        let io_error = |doing| move |source| ExecError::Io { doing, source };
        let (conversation, talk, mut fds, heard) = Conversation::open(io).map_err(io_error("make pipe"))?;
        let extra = Extra::new(&process, talk)?;
        fds.insert(0, memory_file(&extra).map_err(io_error("pass process to the helper"))?);
        let request = Request::Join { id: id.to_string(), into: into.to_string() };
        match self.follow(&id, request, fds, conversation, heard, cancel).await {
            Err(ExecError::NotRunning(_)) => Err(ExecError::NotRunning(into)),
            end => end,
        }
    }

    /// Sends a request for a process, and sees to it until its end.
    async fn follow(
        &self,
        id: &RunId,
        request: Request,
        fds: Vec<OwnedFd>,
        Conversation { outputs, words }: Conversation,
        heard: Heard,
        cancel: CancellationToken,
    ) -> Result<ExitStatus, ExecError> {
        let (ended, mut outcome) = oneshot::channel();
        self.inner.expect(id, ended, heard)?;
        // From here on, dropping this future kills the process.
        let guard = RunGuard { inner: &self.inner, id };
        self.inner.request(request, fds).await?;
        let quit = CancellationToken::new();
        let pumps = outputs.pump(&quit);
        let talk = words.pass(async |signal| {
            let request = Request::Signal { id: id.to_string(), signal: signal.number() };
            // Without a helper there is no process, which is heard elsewhere.
            let _ = self.inner.request(request, Vec::new()).await;
        });
        tokio::pin!(pumps, talk);
        let (mut pumping, mut talking) = (true, true);
        let mut cancelled = false;
        let outcome = loop {
            tokio::select! {
                biased;
                outcome = &mut outcome => break outcome,
                () = &mut pumps, if pumping => pumping = false,
                () = &mut talk, if talking => talking = false,
                () = cancel.cancelled(), if !cancelled => {
                    cancelled = true;
                    tokio::select! {
                        biased;
                        outcome = &mut outcome => break outcome,
                        () = &mut pumps, if pumping => pumping = false,
                        result = self.inner.stop(id) => result?,
                    }
                    // Whatever a sink does now, the process is going.
                    continue;
                }
            }
        };
        drop(guard);
        let outcome = outcome.map_err(|_| ExecError::HelperGone)?;
        // Every process that could write is gone. What is in the pipes is delivered; a descriptor smuggled out of the
        // container does not hold us up.
        quit.cancel();
        if pumping {
            if cancelled {
                // Nobody may be reading any more.
                let _ = tokio::time::timeout(Duration::from_secs(1), pumps).await;
            } else {
                tokio::select! {
                    () = pumps => {}
                    () = cancel.cancelled() => {}
                }
            }
        }
        match outcome {
            _ if cancelled => Err(ExecError::Cancelled(id.clone())),
            Outcome::Exited { code, signal, oom_killed } => Ok(ExitStatus { code, signal, oom_killed }),
            Outcome::Failed(failure) => Err(failure.into_error(id)),
        }
    }
}

impl Inner {
    fn runs(&self) -> std::sync::MutexGuard<'_, Runs> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect(&self, id: &RunId, ended: oneshot::Sender<Outcome>, heard: Heard) -> Result<(), ExecError> {
        let mut runs = self.runs();
        if runs.gone {
            return Err(ExecError::HelperGone);
        }
        if runs.waiting.contains_key(id.as_str()) {
            return Err(ExecError::Exists(id.clone()));
        }
        runs.waiting.insert(id.to_string(), Waiter { ended, terminated: None, heard });
        Ok(())
    }

    /// Sends a request. Waits elsewhere when the helper is too busy to take it at once.
    async fn request(&self, request: Request, fds: Vec<OwnedFd>) -> Result<(), ExecError> {
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        match self.socket.send(&request, &borrowed, false) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return Err(ExecError::HelperGone),
        }
        drop(borrowed);
        let socket = Arc::clone(&self.socket);
        let sent = tokio::task::spawn_blocking(move || {
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            socket.send(&request, &borrowed, true)
        });
        match sent.await {
            Ok(Ok(())) => Ok(()),
            _ => Err(ExecError::HelperGone),
        }
    }

    /// SIGTERM, grace, SIGKILL.
    async fn stop(&self, id: &RunId) -> Result<(), ExecError> {
        let (terminated, noticed) = oneshot::channel();
        if let Some(waiter) = self.runs().waiting.get_mut(id.as_str()) {
            waiter.terminated = Some(terminated);
        }
        self.request(Request::Terminate { id: id.to_string() }, Vec::new()).await?;
        if noticed.await.unwrap_or(false) {
            tokio::time::sleep(self.options.grace).await;
        }
        self.request(Request::Kill { id: id.to_string() }, Vec::new()).await
    }
}

/// Kills the run when its future is dropped before its end.
struct RunGuard<'a> {
    inner: &'a Inner,
    id: &'a RunId,
}

impl Drop for RunGuard<'_> {
    fn drop(&mut self) {
        // Still waited for: not ended. The entry stays until the end is heard, so that the id cannot be used again before.
        let waiting = self.inner.runs().waiting.contains_key(self.id.as_str());
        if waiting {
            // Waiting for room here would be a blocking drop; a helper that busy is heard again soon.
            let kill = Request::Kill { id: self.id.to_string() };
            if self.inner.socket.send(&kill, &[], false).is_err() {
                let (socket, id) = (Arc::clone(&self.inner.socket), self.id.to_string());
                std::thread::spawn(move || socket.send(&Request::Kill { id }, &[], true));
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The listening thread holds the socket too; shutting it down is what the helper notices.
        let _ = rustix::net::shutdown(&*self.socket, rustix::net::Shutdown::Write);
    }
}

/// The listening thread: hands answers to those who wait.
fn listen(socket: &Socket, runs: &Mutex<Runs>, ready: &mpsc::SyncSender<Reply>) {
    let lock = || runs.lock().unwrap_or_else(PoisonError::into_inner);
    while let Ok(Some((reply, fds))) = socket.receive::<Reply>(true) {
        match reply {
            Reply::Started { id } => {
                let started = lock().waiting.get_mut(&id).and_then(|waiter| waiter.heard.started.take());
                if let Some(started) = started {
                    let _ = started.send(());
                }
            }
            Reply::Terminal { id } => {
                let terminal = lock().waiting.get_mut(&id).and_then(|waiter| waiter.heard.terminal.take());
                if let (Some(terminal), Some(end)) = (terminal, fds.into_iter().next()) {
                    let _ = terminal.send(end);
                }
            }
            Reply::Ended { id, outcome } => {
                let waiter = lock().waiting.remove(&id);
                if let Some(waiter) = waiter {
                    // The run's future may have been dropped.
                    let _ = waiter.ended.send(outcome);
                }
            }
            Reply::Terminated { id, noticed } => {
                let terminated = lock().waiting.get_mut(&id).and_then(|waiter| waiter.terminated.take());
                if let Some(terminated) = terminated {
                    let _ = terminated.send(noticed);
                }
            }
            first @ (Reply::Ready { .. } | Reply::Refused { .. }) => {
                let _ = ready.try_send(first);
            }
        }
    }
    // Dropping the senders tells everyone who waits.
    let mut runs = lock();
    runs.gone = true;
    runs.waiting.clear();
}

/// A message in memory that can be passed on.
fn memory_file(plan: &impl serde::Serialize) -> std::io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("plan", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(&serde_json::to_vec(plan)?)?;
    Ok(file.into())
}
