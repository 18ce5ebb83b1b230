//! A rootfs of busybox, an executor, and what the host looks like.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use bytes::Bytes;
use lapstrake_builder_executor::{
    DefaultNetwork, ExecError, Executor, ExitStatus, Helper, HelperOptions, NativeExecutor, NetworkOptions,
    OciRuntime, OutputSink, ProcessIo, ProcessSpec,
};
use lapstrake_layerstore_store::{OverlaySyntax, OverlayUpper, SnapshotMount};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub(crate) const HELPER: &str = env!("CARGO_BIN_EXE_lapstrake-exec-helper");
pub(crate) const GRACE: Duration = Duration::from_millis(1500);

/// Which executor a case runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Native,
    Runc,
    Crun,
}

/// A rootfs and an executor.
pub(crate) struct Sandbox {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) executor: Box<dyn Executor>,
}

/// How a process ended and what it wrote.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    /// Standard output of a process that must have succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert!(self.status.success(), "{self:?}");
        self.stdout
    }

    /// The value of a `Name:\tvalue` line, as in `/proc/self/status`.
    #[track_caller]
    pub(crate) fn field(&self, name: &str) -> String {
        let found = self.stdout.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        found.unwrap_or_else(|| panic!("no {name} in {self:?}")).trim().to_owned()
    }
}

pub(crate) fn executor(kind: Kind, options: HelperOptions) -> Box<dyn Executor> {
    executor_of(kind, Helper::start(options).unwrap())
}

pub(crate) fn executor_of(kind: Kind, helper: Helper) -> Box<dyn Executor> {
    match kind {
        Kind::Native => Box::new(NativeExecutor::new(helper).unwrap()),
        Kind::Runc => Box::new(OciRuntime::new("runc", helper).unwrap()),
        Kind::Crun => Box::new(OciRuntime::new("crun", helper).unwrap()),
    }
}

pub(crate) fn options() -> HelperOptions {
    let network = NetworkOptions { default: DefaultNetwork::Host, ..NetworkOptions::default() };
    HelperOptions { program: Some(HELPER.into()), grace: GRACE, network, ..HelperOptions::default() }
}

impl Sandbox {
    pub(crate) fn new(kind: Kind) -> Self {
        let sandbox = Self { dir: rootfs(), executor: executor(kind, options()) };
        fs::write(sandbox.lower().join("tmp/.keep"), "").unwrap();
        sandbox
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The image.
    pub(crate) fn lower(&self) -> PathBuf {
        self.path("lower")
    }

    /// What the step has changed.
    pub(crate) fn upper(&self) -> PathBuf {
        self.path("upper")
    }

    pub(crate) fn root(&self) -> SnapshotMount {
        overlay(self.dir.path())
    }

    /// A shell script on the rootfs.
    pub(crate) fn sh(&self, script: &str) -> ProcessSpec {
        let mut spec = ProcessSpec::new(self.root(), ["/bin/sh", "-c", script]);
        spec.env = vec!["PATH=/bin".to_owned()];
        spec
    }

    pub(crate) async fn try_run(&self, spec: ProcessSpec) -> Result<Output, ExecError> {
        run(&*self.executor, spec, CancellationToken::new()).await
    }

    pub(crate) async fn run(&self, spec: ProcessSpec) -> Output {
        self.try_run(spec).await.unwrap()
    }

    pub(crate) async fn script(&self, script: &str) -> Output {
        self.run(self.sh(script)).await
    }

    /// Starts `spec`, waits until it has written a line, and gives the pending end and the means to cancel.
    pub(crate) async fn started(&self, spec: ProcessSpec) -> Started<'_> {
        let cancel = CancellationToken::new();
        let (to, mut lines) = mpsc::channel(16);
        let io = ProcessIo {
            stdout: OutputSink::Channel(to),
            stderr: OutputSink::Discard,
            ..ProcessIo::default()
        };
        let mut run = self.executor.run(spec, io, cancel.clone());
        let first = tokio::select! {
            first = lines.recv() => first.expect("it writes a line"),
            end = &mut run => panic!("ended early: {end:?}"),
        };
        let first = String::from_utf8_lossy(&first).into_owned();
        Started { run, cancel, lines, first }
    }
}

pub(crate) struct Started<'a> {
    pub(crate) run: lapstrake_builder_executor::BoxFuture<'a, Result<ExitStatus, ExecError>>,
    pub(crate) cancel: CancellationToken,
    pub(crate) lines: mpsc::Receiver<Bytes>,
    /// What it has written by then.
    pub(crate) first: String,
}

pub(crate) async fn run(
    executor: &dyn Executor,
    spec: ProcessSpec,
    cancel: CancellationToken,
) -> Result<Output, ExecError> {
    let (stdout, from_stdout) = mpsc::channel(4);
    let (stderr, from_stderr) = mpsc::channel(4);
    let io = ProcessIo {
        stdout: OutputSink::Channel(stdout),
        stderr: OutputSink::Channel(stderr),
        ..ProcessIo::default()
    };
    let (status, stdout, stderr) =
        tokio::join!(executor.run(spec, io, cancel), collect(from_stdout), collect(from_stderr));
    Ok(Output { status: status?, stdout, stderr })
}

pub(crate) async fn collect(mut from: mpsc::Receiver<Bytes>) -> String {
    let mut all = Vec::new();
    while let Some(chunk) = from.recv().await {
        all.extend_from_slice(&chunk);
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// A new directory with `lower` (busybox), and empty `upper` and `work`.
pub(crate) fn rootfs() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("lapstrake-exec").tempdir().unwrap();
    let lower = dir.path().join("lower");
    for name in ["lower", "lower/bin", "lower/etc", "lower/tmp", "lower/root", "upper", "work"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    fs::copy("/bin/busybox", lower.join("bin/busybox")).unwrap();
    let applets = Command::new("/bin/busybox").arg("--list").output().unwrap();
    for applet in String::from_utf8(applets.stdout).unwrap().lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", lower.join("bin").join(applet)).unwrap();
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n";
    fs::write(lower.join("etc/passwd"), passwd).unwrap();
    fs::write(lower.join("etc/group"), "root:x:0:root\napp:x:1001:\nstaff:x:50:app\naudio:x:63:app,root\n")
        .unwrap();
    set_mode(&lower.join("tmp"), 0o1777);
    dir
}

pub(crate) fn overlay(dir: &Path) -> SnapshotMount {
    SnapshotMount::Overlay {
        lower: vec![dir.join("lower")],
        upper: Some(OverlayUpper { upper: dir.join("upper"), work: dir.join("work") }),
        syntax: OverlaySyntax::Appended,
    }
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
}

/// All paths below a directory.
pub(crate) fn tree(dir: &Path) -> BTreeSet<String> {
    fn walk(base: &Path, dir: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            found.insert(entry.path().strip_prefix(base).unwrap().to_str().unwrap().to_owned());
            if entry.file_type().unwrap().is_dir() {
                walk(base, &entry.path(), found);
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(dir, dir, &mut found);
    found
}

/// What a run could leave behind: mounts and cgroups that have `mark` in their names, and processes with `mark` in their arguments.
pub(crate) fn traces(mark: &str) -> Vec<String> {
    let mut found: Vec<String> = fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .lines()
        .filter(|line| line.contains(mark))
        .map(|line| format!("mount {line}"))
        .collect();
    for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        for parent in [hierarchy.path(), hierarchy.path().join("lapstrake")] {
            for entry in fs::read_dir(&parent).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().contains(mark) {
                    found.push(format!("cgroup {}", entry.path().display()));
                }
            }
        }
    }
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let arguments = fs::read(process.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&arguments).contains(mark) {
            found.push(format!(
                "process {}: {}",
                process.path().display(),
                String::from_utf8_lossy(&arguments)
            ));
        }
    }
    found
}

/// Waits until `holds`, or fails after what is long for anything here.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}
