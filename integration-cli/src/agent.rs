//! A real ssh agent.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{Process, require, wait_for_socket};

/// An agent that runs, with one key. Ends when dropped.
#[derive(Debug)]
pub struct SshAgent {
    _process: Process,
    /// Where it listens.
    pub socket: PathBuf,
    /// The file of its private key.
    pub key: PathBuf,
}

impl SshAgent {
    /// Starts one with a new key, both in `directory`.
    ///
    /// # Panics
    /// When OpenSSH is not here or fails.
    pub fn start(directory: &Path) -> Self {
        for program in ["ssh-agent", "ssh-add", "ssh-keygen"] {
            require(program, "openssh-client");
        }
        let (key, socket) = (directory.join("key"), directory.join("agent.sock"));
        let run = |command: &mut Command| {
            let output = command.stdin(Stdio::null()).output().expect("the program is here");
            assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        };
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key));
        // -D: in the foreground, so that it ends with its process.
        let mut agent = Command::new("ssh-agent");
        agent
            .args(["-D", "-a"])
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut process = Process::start(&mut agent);
        wait_for_socket(&mut process, &socket);
        run(Command::new("ssh-add").arg("-q").arg(&key).env("SSH_AUTH_SOCK", &socket));
        Self { _process: process, socket, key }
    }
}
