//! The docker CLI of Debian's `docker.io`.

use std::{
    ffi::OsStr,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

/// Debian's: the one that speaks `/build?version=2` with a session by itself. A newer one elsewhere needs buildx.
const PROGRAM: &str = "/usr/bin/docker";

/// A docker CLI with a configuration directory of its own.
#[derive(Debug, Clone)]
pub struct Docker {
    host: String,
    config: PathBuf,
    buildkit: Option<bool>,
}

/// What a command printed, and how it ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard output as it is.
    pub bytes: Vec<u8>,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// The same, if the command succeeded.
    ///
    /// # Panics
    /// When it did not, with all that it printed.
    #[track_caller]
    pub fn success(self) -> Self {
        assert!(self.code == 0, "exit code {}\n{}\n{}", self.code, self.stdout, self.stderr);
        self
    }

    /// The same, if the command failed.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn failure(self) -> Self {
        assert!(self.code != 0, "unexpected success\n{}\n{}", self.stdout, self.stderr);
        self
    }

    /// Standard output without white space around it.
    pub fn line(&self) -> &str {
        self.stdout.trim()
    }

    /// Both outputs, for looking for a message wherever it went.
    pub fn all(&self) -> String {
        format!("{}\n{}", self.stdout, self.stderr)
    }
}

impl Docker {
    /// A CLI that talks to `host`.
    pub fn new(host: String, config: PathBuf) -> Self {
        crate::require(PROGRAM, "docker.io");
        std::fs::create_dir_all(&config).expect("a directory");
        Self { host, config, buildkit: None }
    }

    /// The same with `DOCKER_BUILDKIT=1`.
    pub fn buildkit(&self) -> Self {
        Self { buildkit: Some(true), ..self.clone() }
    }

    /// The same with `DOCKER_BUILDKIT=0`.
    pub fn classic(&self) -> Self {
        Self { buildkit: Some(false), ..self.clone() }
    }

    /// A command, not yet run.
    pub fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", &self.config)
            .env("DOCKER_CONFIG", &self.config)
            .env("DOCKER_HOST", &self.host)
            .env("BUILDKIT_PROGRESS", "plain");
        if let Some(on) = self.buildkit {
            command.env("DOCKER_BUILDKIT", if on { "1" } else { "0" });
        }
        command
    }

    /// Runs a command to its end.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Output {
        self.run_with(arguments, &[])
    }

    /// The same with `stdin`.
    pub fn run_with<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>, stdin: &[u8]) -> Output {
        collect(&mut self.command(arguments), stdin)
    }
}

/// Runs the program under test with these arguments, to its end.
pub fn lapstrake<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Output {
    collect(&mut lapstrake_command(arguments), &[])
}

/// The program under test with these arguments, not yet run.
pub fn lapstrake_command<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(crate::daemon::program());
    command.args(arguments);
    command
}

/// Runs a command with `stdin`, to its end.
///
/// # Panics
/// When it cannot be started.
pub fn collect(command: &mut Command, stdin: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
    let mut input = child.stdin.take().expect("it is piped");
    let output = std::thread::scope(|scope| {
        // A child that does not read its input is no fault of ours.
        scope.spawn(move || input.write_all(stdin));
        child.wait_with_output().expect("a child can be waited for")
    });
    Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        bytes: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
