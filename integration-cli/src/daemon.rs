//! A daemon of our own, on a private socket and directory.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

use crate::{Docker, Process, base, wait_for_socket};

/// A running `lapstrake daemon`.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    dir: TempDir,
    arguments: Vec<String>,
}

impl Drop for Daemon {
    /// A test that fails shows what the daemon had to say.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (log, ended) = (self.log(), self.process.ended());
            let tail = log.char_indices().rev().nth(20_000).map_or(0, |(at, _)| at);
            eprintln!("the daemon's log (its process: {ended:?}):\n{}", &log[tail..]);
        }
    }
}

impl Daemon {
    /// Starts a daemon over an empty store.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with further arguments.
    pub fn start_with(arguments: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("lapstrake-it-").tempdir().expect("a temporary directory");
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let process = launch(dir.path(), &arguments);
        Self { process, dir, arguments }
    }

    /// A daemon whose store has the base image `busybox:latest`.
    pub fn with_base() -> Self {
        Self::with_base_and(&[])
    }

    /// The same with further arguments.
    pub fn with_base_and(arguments: &[&str]) -> Self {
        let daemon = Self::start_with(arguments);
        base::import(&daemon.docker());
        daemon
    }

    /// The socket's path.
    pub fn socket(&self) -> PathBuf {
        socket(self.dir.path())
    }

    /// For `DOCKER_HOST`.
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// A directory for the test's files, gone with the daemon.
    pub fn scratch(&self) -> PathBuf {
        let scratch = self.dir.path().join("scratch");
        std::fs::create_dir_all(&scratch).expect("a directory");
        scratch
    }

    /// The store's root.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// What the daemon logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// The docker CLI, talking to this daemon.
    pub fn docker(&self) -> Docker {
        Docker::new(self.host(), self.dir.path().join("docker-config"))
    }

    /// Its process's id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Resident memory in bytes, of the daemon process itself.
    pub fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most that [`Self::resident`] has been.
    pub fn most_resident(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, what: &str) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap_or_default();
        let kib = status.lines().find_map(|line| line.strip_prefix(what));
        kib.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
    }

    /// Kills the daemon as a power button would, and starts it again over the same store.
    pub fn kill_and_restart(&mut self) {
        self.process.signal(rustix::process::Signal::KILL);
        self.process.wait();
        self.process = launch(self.dir.path(), &self.arguments);
    }

    /// Stops the daemon politely, and starts it again over the same store.
    pub fn restart(&mut self) {
        self.process.stop();
        self.process = launch(self.dir.path(), &self.arguments);
    }
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("lapstrake.sock")
}

fn launch(dir: &Path, arguments: &[String]) -> Process {
    let log = File::options().create(true).append(true).open(dir.join("log")).expect("a log file");
    let mut process = Process::start(
        Command::new(program())
            .args(["daemon", "--host", &format!("unix://{}", socket(dir).display())])
            .arg("--root")
            .arg(dir.join("root"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be shared"))
            .stderr(log),
    );
    wait_for_socket(&mut process, &socket(dir));
    process
}

/// The program under test.
pub(crate) fn program() -> PathBuf {
    if let Some(program) = std::env::var_os("LAPSTRAKE_BIN") {
        return program.into();
    }
    // target/<profile>/deps/<test> → target/<profile>/lapstrake
    let test = std::env::current_exe().expect("a test has a path");
    let profile = test.parent().and_then(Path::parent).expect("a test is in target/<profile>/deps");
    let program = profile.join("lapstrake");
    assert!(
        program.is_file(),
        "{} is not built; cargo build -p lapstrake-api-daemon, or set LAPSTRAKE_BIN",
        program.display()
    );
    program
}
