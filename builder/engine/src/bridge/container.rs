//! Containers of frontends: made of results, without being steps of any graph, and thrown away. A person looks into a failed step with one.
//!
//! ```text
//!   NewContainer ─► mounts: drafts of results, caches, secrets ─┐
//!   ExecProcess ─► the first process: run ─────────────────────►│ executor      dropped with the container: nothing of it is kept
//!              └─► others: join it, and end with it at the latest
//! ```

use std::{
    collections::{HashMap, hash_map::Entry},
    os::fd::BorrowedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use lapstrake_api_proto::{fsutil::Stat, gateway::NewContainerRequest};
use lapstrake_builder_executor::{
    DeviceList, ExecError, ExitStatus, ExtraHost, ExtraProcess, InputSource, MountSpec, NetworkMode, Order,
    OutputSink, ProcessIo, ProcessSpec, RunId, SecurityMode, StubPolicy, WindowSize,
};
use lapstrake_builder_llb::pb;
use lapstrake_layerstore_store::{OpenSnapshot, SnapshotMount};
use parking_lot::Mutex;
use tokio::{
    io::DuplexStream,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Bridge, BuildParts,
    files::{self, FileError, FileRange},
    wire::invalid,
};
use crate::{
    Engine, EngineError, Refusal, StepError,
    ops::{MountPlan, Root, Wanted, find_secret},
};

/// Most containers that one frontend has at a time.
const MAX_CONTAINERS: usize = 256;
/// Most processes that one container has at a time.
const MAX_PROCESSES: usize = 256;
/// Chunks of output that may wait for the client.
const OUTPUT_CHUNKS: usize = 16;
/// Bytes of input that may wait for the process.
const INPUT_BYTES: usize = 64 << 10;
/// Orders that may wait for the process.
const ORDERS: usize = 16;
/// BuildKit's, for who says nothing else.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The same where the container is said to be for Windows: all that a platform means there.
const WINDOWS_PATH: &str = r"PATH=c:\Windows\System32;c:\Windows;C:\Windows\System32\WindowsPowerShell\v1.0";
const TERM: &str = "TERM=xterm";
/// A terminal's size until its owner says it.
const TERMINAL: WindowSize = WindowSize { rows: 24, columns: 80 };

/// The containers of one frontend, by the names that it gave them. The names are nothing but keys of this table.
#[derive(Default)]
pub(super) struct Containers(Mutex<HashMap<String, Arc<Container>>>);

/// A container, made and perhaps running. Dropping it kills what runs in it.
pub(crate) struct Container {
    engine: Engine,
    build: Arc<BuildParts>,
    network: pb::NetMode,
    hostname: String,
    path: &'static str,
    extra_hosts: Vec<ExtraHost>,
    /// The snapshots that are mounted, in the order in which they were asked for.
    shown: Vec<Option<SnapshotMount>>,
    life: Mutex<Life>,
    /// Holds what is mounted.
    plan: Mutex<Option<MountPlan>>,
    /// Ends its processes.
    cancel: CancellationToken,
    processes: TaskTracker,
    /// Whether a process was ended by that.
    is_interrupted: AtomicBool,
}

/// How far a container is.
enum Life {
    /// Nothing runs yet.
    Fresh { root: Root, mounts: Vec<MountSpec> },
    /// Something was started, or is being.
    Begun { run: RunId, security: pb::SecurityMode, started: watch::Receiver<bool> },
}

/// What is to be run.
#[derive(Debug, Clone, Default)]
pub(super) struct StartOrder {
    pub(super) meta: pb::Meta,
    pub(super) security: i32,
    pub(super) secret_env: Vec<pb::SecretEnv>,
    pub(super) terminal: bool,
    /// Which of the three standard streams somebody has the other end of.
    pub(super) streams: [bool; 3],
}

/// A process, and its standard streams. Those that nobody asked for are not there.
pub(super) struct Process {
    pub(super) stdin: Option<DuplexStream>,
    pub(super) stdout: Option<mpsc::Receiver<Bytes>>,
    pub(super) stderr: Option<mpsc::Receiver<Bytes>>,
    pub(super) orders: mpsc::Sender<Order>,
    /// Told when it has been started, or is about to join; dropped when it never will be.
    pub(super) started: oneshot::Receiver<()>,
    pub(super) ended: JoinHandle<Result<ExitStatus, EngineError>>,
}

impl Bridge {
    /// Makes a container; nothing runs in it yet.
    pub(super) async fn new_container(&self, request: NewContainerRequest) -> Result<(), EngineError> {
        let id = request.container_id.clone();
        check_id(&id)?;
        if self.containers.0.lock().len() >= MAX_CONTAINERS {
            return Err(invalid(format!("more than {MAX_CONTAINERS} containers of one frontend")));
        }
        let container = Arc::new(self.prepare(request).await?);
        let clash = match self.containers.0.lock().entry(id) {
            Entry::Vacant(place) => {
                place.insert(container);
                return Ok(());
            }
            Entry::Occupied(place) => place.key().clone(),
        };
        container.release().await?;
        Err(EngineError::Taken { what: format!("Container {clash}") })
    }

    /// The container of this name.
    pub(super) fn container(&self, id: &str) -> Option<Arc<Container>> {
        self.containers.0.lock().get(id).cloned()
    }

    /// Ends all that runs in a container, and forgets it. As with BuildKit, it is an error if something did.
    pub(super) async fn release_container(&self, id: &str) -> Result<(), EngineError> {
        let found = self.containers.0.lock().remove(id);
        let found = found.ok_or_else(|| invalid(format!("container details for {id} not found")))?;
        found.release().await?;
        match found.is_interrupted.load(Ordering::Relaxed) {
            true => Err(EngineError::Canceled),
            false => Ok(()),
        }
    }

    /// Ends all containers: their build is done.
    pub(crate) async fn release_containers(&self) -> Result<(), EngineError> {
        let all: Vec<_> = self.containers.0.lock().drain().map(|(_, container)| container).collect();
        // All are told before the first is waited for.
        all.iter().for_each(|container| container.cancel.cancel());
        for container in all {
            container.release().await?;
        }
        Ok(())
    }

    async fn prepare(&self, request: NewContainerRequest) -> Result<Container, EngineError> {
        let network = pb::NetMode::try_from(request.network)
            .map_err(|_| invalid(format!("unknown network mode {}", request.network)))?;
        let path = match request.platform.as_ref().map_or("", |platform| platform.os.as_str()) {
            "" | "linux" => PATH,
            "windows" => WINDOWS_PATH,
            os => return Err(EngineError::Unsupported { what: format!("running processes for {os}") }),
        };
        let mut extra_hosts = Vec::with_capacity(request.extra_hosts.len());
        for host in &request.extra_hosts {
            let ip = host.ip.parse().map_err(|_| invalid(format!("failed to parse IP {}", host.ip)))?;
            extra_hosts.push(ExtraHost { host: host.host.clone(), ip });
        }
        let mut inputs = Vec::new();
        let mut mounts = Vec::with_capacity(request.mounts.len());
        for mut mount in request.mounts {
            mount.input = -1;
            if !mount.result_id.is_empty() {
                let found = self.tree(&mount.result_id).await.map_err(|error| match error {
                    EngineError::NoSuchRef { id } => {
                        invalid(format!("failed to find ref {id} for {:?} mount: not found", mount.dest))
                    }
                    error => error,
                })?;
                mount.input = i64::try_from(inputs.len()).expect("there are few mounts");
                inputs.push(found);
            }
            if mount.dest == "/" && mount.mount_type() != pb::MountType::Bind {
                let kind = mount.mount_type().as_str_name();
                return Err(invalid(format!("invalid mount type {kind} for {}", mount.dest)));
            }
            if !mount.dest.starts_with('/') {
                mount.dest = format!("/{}", mount.dest);
            }
            // Written to, it is a draft that nobody keeps; the root also where the process may not, as mount points are made in it.
            let drafted = mount.dest == "/" || !mount.readonly || mount.input < 0;
            mount.output = if drafted { 0 } else { -1 };
            mounts.push(mount);
        }
        let op = pb::ExecOp { mounts, ..pb::ExecOp::default() };
        let (engine, build) = (self.engine.clone(), Arc::clone(&self.build));
        let cancel = self.cancel.child_token();
        let wanted = Wanted::Frontend { scope: &build.scope, cancel: &cancel };
        let mut plan = MountPlan::prepare(engine.workshop(), &op, inputs, &wanted).await?;
        let shown = plan.snapshots().to_vec();
        let life = Mutex::new(Life::Fresh { root: plan.take_root()?, mounts: plan.take_mounts() });
        Ok(Container {
            engine,
            network,
            hostname: request.hostname,
            path,
            extra_hosts,
            shown,
            life,
            plan: Mutex::new(Some(plan)),
            cancel,
            processes: TaskTracker::new(),
            is_interrupted: AtomicBool::new(false),
            build,
        })
    }
}

/// As BuildKit, whose ids are names of directories: CVE-2026-33747.
fn check_id(id: &str) -> Result<(), EngineError> {
    if id.is_empty() {
        return Err(invalid("container id must not be empty"));
    }
    match id.len() <= 128 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        true => Ok(()),
        false => Err(invalid(format!("invalid container id {id:?}: only letters and numbers are allowed"))),
    }
}

impl Container {
    /// Starts a process. That it may do what it asks for is checked for each: what a container is made with grants nothing (CVE-2024-23653).
    pub(super) async fn start(self: &Arc<Self>, order: StartOrder) -> Result<Process, EngineError> {
        let StartOrder { meta, security, secret_env, terminal, streams } = order;
        if meta.args.is_empty() {
            return Err(invalid("a process without arguments"));
        }
        if self.processes.len() >= MAX_PROCESSES {
            return Err(invalid(format!("more than {MAX_PROCESSES} processes of one container")));
        }
        let mut env = meta.env.clone();
        default_env(&mut env, self.path);
        if terminal {
            default_env(&mut env, TERM);
        }
        let wanted = Wanted::Frontend { scope: &self.build.scope, cancel: &self.cancel };
        for secret in &secret_env {
            if secret.id.is_empty() {
                let name = &secret.name;
                return Err(invalid(format!("secret ID missing for {name:?} environment variable")));
            }
            let found = find_secret(self.engine.workshop(), &secret.id, secret.optional, &wanted).await?;
            let value = found.map(|found| String::from_utf8(found.into_bytes())).transpose();
            let value = value.map_err(|_| invalid(format!("secret {} is not UTF-8", secret.id)))?;
            env.push(format!("{}={}", secret.name, value.unwrap_or_default()));
        }
        let [with_in, with_out, with_err] = streams;
        let (stdin, input) = match with_in {
            true => {
                let (ours, theirs) = tokio::io::duplex(INPUT_BYTES);
                (Some(ours), InputSource::Reader(Box::new(theirs)))
            }
            false => (None, InputSource::Empty),
        };
        let (out, stdout) = output(with_out);
        let (err, stderr) = output(with_err);
        let (orders, ordered) = mpsc::channel(ORDERS);
        let (starts, started) = oneshot::channel();
        let io = ProcessIo {
            stdin: input,
            stdout: out,
            stderr: err,
            terminal: terminal.then_some(TERMINAL),
            orders: Some(ordered),
            started: None,
        };
        let meta = pb::Meta { env, ..meta };
        let this = Arc::clone(self);
        let work = async move {
            let ended = this.run(meta, security, io, starts).await;
            if matches!(ended, Err(EngineError::Canceled)) {
                this.is_interrupted.store(true, Ordering::Relaxed);
            }
            ended
        };
        let ended = self.processes.spawn(work);
        Ok(Process { stdin, stdout, stderr, orders, started, ended })
    }

    /// Runs a process to its end: the container's first, or one that joins it.
    async fn run(
        &self,
        meta: pb::Meta,
        security: i32,
        mut io: ProcessIo,
        starts: oneshot::Sender<()>,
    ) -> Result<ExitStatus, EngineError> {
        let security = pb::SecurityMode::try_from(security)
            .map_err(|_| invalid(format!("invalid security mode {security}")))?;
        self.check_granted(security)?;
        let (spec, begun) = match self.begin(&meta, security)? {
            Beginning::First { spec, begun } => (Some(*spec), Ok(begun)),
            Beginning::Further { run, started } => (None, Err((run, started))),
        };
        let executor = &self.engine.workshop().executor;
        let cancel = self.cancel.clone();
        let result = match (spec, begun) {
            (Some(spec), Ok(begun)) => {
                let (tell, told) = oneshot::channel();
                io.started = Some(tell);
                let run = executor.run(spec, io, cancel);
                let relay = async move {
                    if told.await.is_ok() {
                        // Who waits for either may be gone.
                        let _ = begun.send(true);
                        let _ = starts.send(());
                    }
                };
                tokio::join!(run, relay).0
            }
            (_, Err((run, mut begun))) => {
                // As BuildKit: a client that pipes processes into each other does not read from the one before the next has begun.
                let _ = starts.send(());
                // A container whose first process could not be started is none to join.
                if begun.wait_for(|begun| *begun).await.is_err() {
                    return Err(invalid("the first process of the container was not started"));
                }
                let process = ExtraProcess { args: meta.args, env: meta.env, cwd: meta.cwd, user: meta.user };
                executor.join(run, process, io, cancel).await
            }
            (None, Ok(_)) => unreachable!("what begins has a spec"),
        };
        result.map_err(|error| match error {
            ExecError::Cancelled(_) => EngineError::Canceled,
            source => EngineError::Process(source),
        })
    }

    fn check_granted(&self, security: pb::SecurityMode) -> Result<(), EngineError> {
        let mut asked = pb::ExecOp::default();
        asked.set_network(self.network);
        asked.set_security(security);
        let granted: Result<_, Refusal> = self.build.scope.grants.admit(&asked, DeviceList::default);
        granted.map(|_| ()).map_err(|refusal| EngineError::NotGranted(Box::new(refusal)))
    }

    fn begin(&self, meta: &pb::Meta, security: pb::SecurityMode) -> Result<Beginning, EngineError> {
        let mut life = self.life.lock();
        let (root, mounts) = match &mut *life {
            Life::Fresh { root, mounts } => (root, mounts),
            Life::Begun { run, security: first, started } => {
                if *first != security {
                    // A process that joins has the rights of the first.
                    let what = "another security mode than that of the container's first process".to_owned();
                    return Err(EngineError::Unsupported { what });
                }
                return Ok(Beginning::Further { run: run.clone(), started: started.clone() });
            }
        };
        let mut spec = ProcessSpec::new(root.mount.clone(), meta.args.clone());
        spec.read_only_root = root.read_only;
        spec.mounts = std::mem::take(mounts);
        spec.env.clone_from(&meta.env);
        spec.cwd.clone_from(&meta.cwd);
        spec.user.clone_from(&meta.user);
        spec.hostname.clone_from(&self.hostname);
        spec.extra_hosts.clone_from(&self.extra_hosts);
        spec.network = match self.network {
            pb::NetMode::Unset => NetworkMode::Default,
            pb::NetMode::Host => NetworkMode::Host,
            pb::NetMode::None => NetworkMode::None,
        };
        spec.security = match security {
            pb::SecurityMode::Sandbox => SecurityMode::Sandbox,
            pb::SecurityMode::Insecure => SecurityMode::Insecure,
        };
        spec.resources = self.build.scope.resources.clone();
        if meta.remove_mount_stubs_recursive {
            spec.stubs = StubPolicy::RemoveTargetsAndParents;
        }
        let (begun, started) = watch::channel(false);
        *life = Life::Begun { run: spec.id.clone(), security, started };
        Ok(Beginning::First { spec: Box::new(spec), begun })
    }

    /// Ends all that runs here, and drops what it wrote.
    async fn release(&self) -> Result<(), EngineError> {
        self.cancel.cancel();
        self.processes.close();
        self.processes.wait().await;
        let plan = self.plan.lock().take();
        // What was written may be much to delete.
        let dropped = StepError::blocking(move || -> Result<(), StepError> {
            drop(plan);
            Ok(())
        });
        Ok(dropped.await?)
    }

    /// The bytes of a file in what is mounted, or a part of them.
    pub(super) async fn read_file(
        &self,
        mount: i32,
        path: String,
        range: Option<FileRange>,
    ) -> Result<Vec<u8>, EngineError> {
        self.look(mount, &path.clone(), move |root| files::read_file(root, &path, range)).await
    }

    /// What is in a directory of what is mounted.
    pub(super) async fn read_dir(
        &self,
        mount: i32,
        path: String,
        pattern: String,
    ) -> Result<Vec<Stat>, EngineError> {
        self.look(mount, &path.clone(), move |root| files::read_dir(root, &path, &pattern)).await
    }

    /// What a path in what is mounted leads to.
    pub(super) async fn stat_file(&self, mount: i32, path: String) -> Result<Stat, EngineError> {
        self.look(mount, &path.clone(), move |root| files::stat_file(root, &path)).await
    }

    async fn look<T: Send + 'static>(
        &self,
        mount: i32,
        path: &str,
        look: impl FnOnce(BorrowedFd<'_>) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, EngineError> {
        if !path.starts_with('/') {
            return Err(invalid(format!("can't make {path} relative to /")));
        }
        let found = usize::try_from(mount).ok().and_then(|index| self.shown.get(index));
        let found = found.ok_or_else(|| {
            let count = self.shown.len();
            invalid(format!("mount index {mount} is out of bounds ({count} available)"))
        })?;
        let found = found.clone().ok_or_else(|| invalid(format!("mountable {mount} not found")))?;
        let looked = StepError::blocking(move || -> Result<Result<T, FileError>, StepError> {
            // By itself for each look: what is written meanwhile is seen.
            let open = OpenSnapshot::open(&to_look_at(found))?;
            Ok(look(open.root()))
        });
        Ok(looked.await??)
    }
}

/// How a container goes on.
enum Beginning {
    First { spec: Box<ProcessSpec>, begun: watch::Sender<bool> },
    Further { run: RunId, started: watch::Receiver<bool> },
}

/// A mount to be read while a container writes to it: overlays must not share where they write.
fn to_look_at(mount: SnapshotMount) -> SnapshotMount {
    match mount {
        SnapshotMount::Bind { source, .. } => SnapshotMount::Bind { source, read_only: true },
        SnapshotMount::Overlay { lower, upper, syntax } => {
            let lower = upper.into_iter().map(|upper| upper.upper).chain(lower).collect();
            SnapshotMount::Overlay { lower, upper: None, syntax }
        }
    }
}

fn output(wanted: bool) -> (OutputSink, Option<mpsc::Receiver<Bytes>>) {
    if !wanted {
        return (OutputSink::Discard, None);
    }
    let (sender, receiver) = mpsc::channel(OUTPUT_CHUNKS);
    (OutputSink::Channel(sender), Some(receiver))
}

/// Adds a variable that is not there.
fn default_env(env: &mut Vec<String>, variable: &str) {
    let name = variable.split_inclusive('=').next().unwrap_or_default();
    if !env.iter().any(|known| known.starts_with(name)) {
        env.push(variable.to_owned());
    }
}
