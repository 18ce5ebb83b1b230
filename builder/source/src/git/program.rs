//! The git program, run so that nothing of this machine's configuration, and nothing that a repository says, makes it do anything else.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt};

/// How git is run. Its standard input is a pipe that nobody writes to: when the daemon is gone, killed or not, it ends, and then all that git
/// started ends too, so that nothing works on a repository that another daemon has opened. The umask decides the modes of files checked out.
const SCRIPT: &str = r#"
umask 022
ulimit -d "$1" 2>/dev/null
shift
exec 3<&0 </dev/null
{ read -r _ <&3; kill -KILL 0; } >/dev/null 2>&1 &
watch=$!
"$0" "$@" 3<&- &
wait $!
code=$?
kill -KILL $watch
wait $watch 2>/dev/null
exit $code
"#;

/// How often it is looked whether git fills the disk.
const LOOK: Duration = Duration::from_millis(200);

/// Longest output taken: a listing of a repository's references.
const MAX_OUTPUT: usize = 64 << 20;
/// How much of git's complaints is kept.
const MAX_MESSAGE: usize = 16 << 10;

/// One run of git.
#[derive(Debug, Clone, Default)]
pub(super) struct GitCommand {
    /// Arguments. Everybody on the machine can see them, so there are never credentials in them.
    pub(super) args: Vec<OsString>,
    pub(super) git_dir: Option<PathBuf>,
    pub(super) work_tree: Option<PathBuf>,
    /// Another index than the repository's.
    pub(super) index: Option<PathBuf>,
    /// Configuration, in the environment: keys and values.
    pub(super) config: Vec<(String, String)>,
    /// Where it may fetch from: only other machines, unless this says so.
    pub(super) from_here: bool,
    pub(super) ssh: GitSsh,
}

/// How ssh is used, if it is.
#[derive(Debug, Clone, Default)]
pub(super) struct GitSsh {
    pub(super) agent: Option<PathBuf>,
    pub(super) known_hosts: Option<PathBuf>,
}

impl GitCommand {
    pub(super) fn new<I: IntoIterator<Item = S>, S: Into<OsString>>(args: I) -> Self {
        Self { args: args.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    pub(super) fn in_dir(mut self, git_dir: &Path) -> Self {
        self.git_dir = Some(git_dir.to_owned());
        self
    }

    /// What it is called in errors.
    pub(super) fn name(&self) -> String {
        self.args.first().map(|arg| arg.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

/// What git said.
#[derive(Debug, Clone, Default)]
pub(super) struct GitOutput {
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// Why git did not do it.
#[derive(Debug, thiserror::Error)]
pub(super) enum GitFailure {
    /// It ended with an error.
    #[error("{}", words(*status, output))]
    Failed { status: ExitStatus, output: GitOutput },
    /// It cannot be run.
    #[error("cannot run git: {0}")]
    Missing(#[from] std::io::Error),
    /// It took too long.
    #[error("not done within {} s", .0.as_secs())]
    Slow(Duration),
    /// It wrote too much.
    #[error("more than {MAX_OUTPUT} bytes of output")]
    Verbose,
    /// It took too much of the disk.
    #[error("ended: less than {0} bytes are left on the disk")]
    Large(u64),
    /// One redirect after the other.
    #[error("too many redirects")]
    Redirects,
}

impl GitFailure {
    /// The URL that a server redirected from, where git was told not to follow.
    pub(super) fn redirected(&self) -> Option<&str> {
        let Self::Failed { output, .. } = self else { return None };
        output.stderr.lines().find_map(|line| {
            let (_, rest) = line.split_once("unable to access '")?;
            let (url, why) = rest.split_once("': ")?;
            let (_, status) = why.split_once("returned error: ")?;
            let status: u16 = status.get(..3)?.parse().ok()?;
            matches!(status, 301 | 302 | 303 | 307 | 308).then_some(url)
        })
    }
}

/// What git wrote, or else how it ended.
fn words(status: ExitStatus, output: &GitOutput) -> String {
    match output.stderr.trim() {
        "" => status.to_string(),
        stderr => stderr.to_owned(),
    }
}

/// Something that runs git.
pub(super) trait GitProgram: Send + Sync {
    /// Runs it to its end. Dropping the future ends it, and all that it started.
    fn run(&self, command: GitCommand) -> BoxFuture<'_, Result<GitOutput, GitFailure>>;
}

/// The machine's git.
#[derive(Debug, Clone)]
pub(super) struct SystemGit {
    /// What is run.
    pub(super) program: OsString,
    /// How long one command may take.
    pub(super) patience: Duration,
    /// How long a server may send nothing.
    pub(super) stall: Duration,
    /// What is left on the disk, in bytes.
    pub(super) spare: u64,
    /// How much memory one process may have, in bytes, besides files that it maps.
    pub(super) memory: u64,
}

/// Kills a process and all that it started.
struct Group(Option<rustix::process::Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0.take() {
            // Gone already: then there is nothing to end.
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }
}

impl SystemGit {
    fn command(&self, command: &GitCommand) -> tokio::process::Command {
        let mut process = tokio::process::Command::new("/bin/sh");
        process.arg("-c").arg(SCRIPT).arg(&self.program).arg((self.memory >> 10).to_string());
        if let Some(work_tree) = &command.work_tree {
            process.arg("--work-tree").arg(work_tree).current_dir(work_tree);
        } else {
            process.current_dir("/");
        }
        if let Some(git_dir) = &command.git_dir {
            process.arg("--git-dir").arg(git_dir);
        }
        process.args(&command.args).env_clear();
        for name in ["PATH", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"] {
            for name in [name.to_owned(), name.to_ascii_lowercase()] {
                if let Some(value) = std::env::var_os(&name) {
                    process.env(name, value);
                }
            }
        }
        process
            .env("HOME", "/dev/null")
            .env("XDG_CONFIG_HOME", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_ATTR_NOSYSTEM", "1")
            // No files that this machine would put into a new repository, such as hooks.
            .env("GIT_TEMPLATE_DIR", "")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ASKPASS", "/bin/false")
            .env("SSH_ASKPASS", "/bin/false")
            .env("LC_ALL", "C")
            // Also what submodules may be fetched by: never from this machine's files (CVE-2022-39253), never by a helper program.
            .env("GIT_ALLOW_PROTOCOL", if command.from_here { "file" } else { "http:https:git:ssh" })
            .env("GIT_SSH_COMMAND", ssh_command(&command.ssh, self.stall));
        if let Some(agent) = &command.ssh.agent {
            process.env("SSH_AUTH_SOCK", agent);
        }
        if let Some(index) = &command.index {
            process.env("GIT_INDEX_FILE", index);
        }
        let stall = self.stall.as_secs().max(1).to_string();
        let own = [
            ("core.hooksPath", "/dev/null"),
            ("core.fsmonitor", "false"),
            ("credential.helper", ""),
            ("init.defaultBranch", "master"),
            ("advice.detachedHead", "false"),
            // Nothing goes on in the background.
            ("gc.auto", "0"),
            ("maintenance.auto", "false"),
            // Slower than a byte a second for so long is not there any more.
            ("http.lowSpeedLimit", "1"),
            ("http.lowSpeedTime", &stall),
        ];
        // Authorities that the operator trusts, where they are named as for the rest of the daemon.
        if let Some(file) = std::env::var_os("SSL_CERT_FILE") {
            process.env("GIT_SSL_CAINFO", file);
        }
        let given = command.config.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let mut count = 0_usize;
        for (key, value) in own.into_iter().chain(given) {
            process.env(format!("GIT_CONFIG_KEY_{count}"), key);
            process.env(format!("GIT_CONFIG_VALUE_{count}"), value);
            count += 1;
        }
        process.env("GIT_CONFIG_COUNT", count.to_string());
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        process.process_group(0).kill_on_drop(true);
        process
    }

    async fn exec(&self, command: GitCommand) -> Result<GitOutput, GitFailure> {
        let mut child = self.command(&command).spawn()?;
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
        let mut group = Group(pid);
        let _alive = child.stdin.take();
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let work = async {
            let (stdout, stderr) =
                tokio::try_join!(read(stdout, MAX_OUTPUT, true), read(stderr, MAX_MESSAGE, false))?;
            Ok::<_, GitFailure>((stdout, stderr, child.wait().await?))
        };
        let (stdout, stderr, status) = tokio::select! {
            done = tokio::time::timeout(self.patience, work) => {
                done.map_err(|_| GitFailure::Slow(self.patience))??
            }
            () = runs_low(&command, self.spare) => return Err(GitFailure::Large(self.spare)),
        };
        // Waited for: its id may be another's by now.
        group.0 = None;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let output = GitOutput { stdout: text(stdout), stderr: text(stderr) };
        if status.success() { Ok(output) } else { Err(GitFailure::Failed { status, output }) }
    }
}

impl GitProgram for SystemGit {
    fn run(&self, command: GitCommand) -> BoxFuture<'_, Result<GitOutput, GitFailure>> {
        Box::pin(self.exec(command))
    }
}

/// Waits until less than `spare` bytes are left on a disk that the command writes to.
async fn runs_low(command: &GitCommand, spare: u64) {
    let dirs: Vec<&Path> =
        [&command.git_dir, &command.work_tree].into_iter().flatten().map(PathBuf::as_path).collect();
    if dirs.is_empty() {
        return std::future::pending().await;
    }
    loop {
        let low = dirs.iter().any(|dir| {
            // Where it cannot be told, git is told by the file system.
            rustix::fs::statvfs(*dir).is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < spare)
        });
        if low {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Reads to the end; what is over the limit is an error, or is left out.
async fn read(
    stream: Option<impl AsyncRead + Unpin>,
    limit: usize,
    strict: bool,
) -> Result<Vec<u8>, GitFailure> {
    let (mut kept, mut buffer) = (Vec::new(), vec![0; 16 << 10]);
    let Some(mut stream) = stream else { return Ok(kept) };
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(kept);
        }
        let room = limit.saturating_sub(kept.len()).min(length);
        if strict && room < length {
            return Err(GitFailure::Verbose);
        }
        kept.extend_from_slice(&buffer[..room]);
    }
}

/// BuildKit's rule: the known hosts that the client gave must have the server's key; without any, every key is believed. Keys are the client's:
/// those in the home directory of the daemon's user, which ssh finds without `$HOME`, are not for everybody's builds.
fn ssh_command(ssh: &GitSsh, stall: Duration) -> OsString {
    let mut command = OsString::from(
        "ssh -F /dev/null -o BatchMode=yes -o IdentityFile=none -o GlobalKnownHostsFile=/dev/null -o GSSAPIAuthentication=no ",
    );
    let seconds = stall.as_secs().clamp(1, 60);
    command.push(format!(
        "-o ConnectTimeout={seconds} -o ServerAliveInterval={seconds} -o ServerAliveCountMax=1 "
    ));
    match &ssh.known_hosts {
        Some(path) => {
            command.push("-o StrictHostKeyChecking=yes -o UserKnownHostsFile='");
            command.push(path.to_string_lossy().replace('\'', "'\\''"));
            command.push("'");
        }
        None => command.push("-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"),
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(program: &str) -> SystemGit {
        let (patience, stall) = (Duration::from_secs(60), Duration::from_secs(60));
        SystemGit { program: program.into(), patience, stall, spare: 0, memory: 1 << 30 }
    }

    /// A program that starts another, tells both ids, and waits.
    fn endless(dir: &Path) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let path = dir.join("endless");
        let pids = dir.join("pids");
        let script =
            format!("#!/bin/sh\nsleep 1000 &\necho $$ $! > {0}.new\nmv {0}.new {0}\nwait\n", pids.display());
        std::fs::write(&path, script).expect("a file");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("a mode");
        path
    }

    async fn pids(dir: &Path) -> Vec<String> {
        loop {
            if let Ok(text) = std::fs::read_to_string(dir.join("pids")) {
                return text.split_whitespace().map(str::to_owned).collect();
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until the processes are gone; a test that hangs here is killed by its runner.
    async fn gone(pids: &[String]) {
        let runs = |pid: &String| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            !stat.is_empty() && !stat.contains(") Z ")
        };
        while pids.iter().any(runs) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    #[tokio::test]
    async fn a_cancel_a_timeout_and_a_full_disk_end_all_that_git_started() {
        let dir = tempfile::tempdir().expect("a directory");
        let program = endless(dir.path());
        let git = SystemGit { program: program.clone().into(), ..system("") };
        let running = tokio::spawn(async move { git.run(GitCommand::default()).await });
        let ids = pids(dir.path()).await;
        running.abort();
        gone(&ids).await;

        for (git, slow) in [
            (
                SystemGit {
                    program: program.clone().into(),
                    patience: Duration::from_millis(200),
                    ..system("")
                },
                true,
            ),
            (SystemGit { program: program.into(), spare: u64::MAX, ..system("") }, false),
        ] {
            let failure = git.run(GitCommand::default().in_dir(dir.path())).await.expect_err("it is endless");
            assert_eq!(matches!(failure, GitFailure::Slow(_)), slow, "{failure}");
            assert_eq!(matches!(failure, GitFailure::Large(_)), !slow, "{failure}");
        }
    }

    #[tokio::test]
    async fn git_ends_with_the_daemon() {
        let dir = tempfile::tempdir().expect("a directory");
        let git = SystemGit { program: endless(dir.path()).into(), ..system("") };
        let mut child = git.command(&GitCommand::default()).kill_on_drop(false).spawn().expect("a shell");
        let ids = pids(dir.path()).await;
        // What the kernel does for a daemon that is killed.
        drop(child.stdin.take());
        gone(&ids).await;
        child.wait().await.expect("a child");
    }

    #[test]
    fn a_refused_redirect_is_known_with_its_url() {
        use std::os::unix::process::ExitStatusExt as _;
        let failed = |stderr: &str| GitFailure::Failed {
            status: ExitStatus::from_raw(256),
            output: GitOutput { stdout: String::new(), stderr: stderr.to_owned() },
        };
        let told = "fatal: unable to access 'http://h/r.git/': The requested URL returned error: 302";
        assert_eq!(failed(told).redirected(), Some("http://h/r.git/"));
        assert_eq!(failed(&told.replace("302", "404")).redirected(), None);
        assert_eq!(failed("").redirected(), None);
        assert_eq!(failed("").to_string(), "exit status: 1");
    }

    #[test]
    fn credentials_are_in_the_environment_and_nothing_else_is_from_outside() {
        let secret = "Authorization: basic c2VjcmV0";
        let command = GitCommand {
            config: vec![("http.https://h/.extraHeader".to_owned(), secret.to_owned())],
            ssh: GitSsh { agent: None, known_hosts: Some("/a'b".into()) },
            ..GitCommand::new(["ls-remote", "--", "https://h/r"])
        };
        let process = system("git").command(&command);
        let process = process.as_std();
        assert!(process.get_args().all(|arg| !arg.to_string_lossy().contains("c2VjcmV0")));
        let env: std::collections::BTreeMap<_, _> = process
            .get_envs()
            .filter_map(|(key, value)| Some((key.to_str()?.to_owned(), value?.to_str()?.to_owned())))
            .collect();
        assert!(env.values().any(|value| value == secret));
        assert_eq!(env["HOME"], "/dev/null");
        assert_eq!(env["GIT_ALLOW_PROTOCOL"], "http:https:git:ssh");
        assert!(env["GIT_SSH_COMMAND"].contains("UserKnownHostsFile='/a'\\''b'"));
        assert!(env["GIT_SSH_COMMAND"].contains("IdentityFile=none"), "the daemon's own keys are not lent");
        assert_eq!(env["GIT_TEMPLATE_DIR"], "");
        assert!(!env.contains_key("CARGO_MANIFEST_DIR"));
    }

    #[tokio::test]
    async fn what_git_writes_is_bounded_and_its_failure_has_its_words() {
        let git = system("git");
        let failure = git.run(GitCommand::new(["no-such-command"])).await.expect_err("no command");
        assert!(failure.to_string().contains("no-such-command"), "{failure}");
        let endless: &[u8] = &[b'x'; 100];
        assert!(matches!(read(Some(endless), 99, true).await, Err(GitFailure::Verbose)));
        assert_eq!(read(Some(endless), 10, false).await.expect("memory").len(), 10);
    }
}
