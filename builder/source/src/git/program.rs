//! The git program, run so that nothing of this machine's configuration, and nothing that a repository says, makes it do anything else.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt};

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
    #[error("{}", output.stderr.trim())]
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
}

/// Something that runs git.
pub(super) trait GitProgram: Send + Sync {
    /// Runs it to its end. Dropping the future ends it, and all that it started.
    fn run(&self, command: GitCommand) -> BoxFuture<'_, Result<GitOutput, GitFailure>>;
}

/// The machine's git.
#[derive(Debug, Clone)]
pub(super) struct SystemGit {
    /// How long one command may take.
    pub(super) patience: Duration,
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
        // The shell only sets the umask, on which the modes of files checked out depend.
        let mut process = tokio::process::Command::new("/bin/sh");
        process.args(["-c", "umask 022; exec git \"$@\"", "git"]);
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
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ASKPASS", "/bin/false")
            .env("SSH_ASKPASS", "/bin/false")
            .env("LC_ALL", "C")
            // Also what submodules may be fetched by: never from this machine's files (CVE-2022-39253), never by a helper program.
            .env("GIT_ALLOW_PROTOCOL", if command.from_here { "file" } else { "http:https:git:ssh" })
            .env("GIT_SSH_COMMAND", ssh_command(&command.ssh));
        if let Some(agent) = &command.ssh.agent {
            process.env("SSH_AUTH_SOCK", agent);
        }
        if let Some(index) = &command.index {
            process.env("GIT_INDEX_FILE", index);
        }
        let own = [
            ("core.hooksPath", "/dev/null"),
            ("core.fsmonitor", "false"),
            ("credential.helper", ""),
            ("init.defaultBranch", "master"),
            ("advice.detachedHead", "false"),
            // Nothing goes on in the background.
            ("gc.auto", "0"),
            ("maintenance.auto", "false"),
        ];
        let given = command.config.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let mut count = 0_usize;
        for (key, value) in own.into_iter().chain(given) {
            process.env(format!("GIT_CONFIG_KEY_{count}"), key);
            process.env(format!("GIT_CONFIG_VALUE_{count}"), value);
            count += 1;
        }
        process.env("GIT_CONFIG_COUNT", count.to_string());
        process.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        process.process_group(0).kill_on_drop(true);
        process
    }

    async fn exec(&self, command: GitCommand) -> Result<GitOutput, GitFailure> {
        let mut child = self.command(&command).spawn()?;
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
        let mut group = Group(pid);
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let work = async {
            let (stdout, stderr) =
                tokio::try_join!(read(stdout, MAX_OUTPUT, true), read(stderr, MAX_MESSAGE, false))?;
            Ok::<_, GitFailure>((stdout, stderr, child.wait().await?))
        };
        let (stdout, stderr, status) = tokio::time::timeout(self.patience, work)
            .await
            .map_err(|_| GitFailure::Slow(self.patience))??;
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

/// BuildKit's rule: the known hosts that the client gave must have the server's key; without any, every key is believed.
fn ssh_command(ssh: &GitSsh) -> OsString {
    let mut command = OsString::from("ssh -F /dev/null -o BatchMode=yes ");
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

    #[test]
    fn credentials_are_in_the_environment_and_nothing_else_is_from_outside() {
        let secret = "Authorization: basic c2VjcmV0";
        let command = GitCommand {
            config: vec![("http.https://h/.extraHeader".to_owned(), secret.to_owned())],
            ssh: GitSsh { agent: None, known_hosts: Some("/a'b".into()) },
            ..GitCommand::new(["ls-remote", "--", "https://h/r"])
        };
        let process = SystemGit { patience: Duration::from_secs(1) }.command(&command);
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
        assert!(!env.contains_key("CARGO_MANIFEST_DIR"));
    }

    #[tokio::test]
    async fn what_git_writes_is_bounded_and_its_failure_has_its_words() {
        let git = SystemGit { patience: Duration::from_secs(60) };
        let failure = git.run(GitCommand::new(["no-such-command"])).await.expect_err("no command");
        assert!(failure.to_string().contains("no-such-command"), "{failure}");
        let endless: &[u8] = &[b'x'; 100];
        assert!(matches!(read(Some(endless), 99, true).await, Err(GitFailure::Verbose)));
        assert_eq!(read(Some(endless), 10, false).await.expect("memory").len(), 10);
    }
}
