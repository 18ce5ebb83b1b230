//! A real ssh server.

use std::{
    net::{SocketAddr, TcpStream},
    os::unix::fs::DirBuilderExt,
    path::Path,
    process::{Command, Stdio},
};

use crate::{Process, SshAgent, free_address, require};

const PROGRAM: &str = "/usr/sbin/sshd";

/// OpenSSH's server on loopback, which lets in whoever has the agent's key. Ends when dropped.
#[derive(Debug)]
pub struct Sshd {
    _process: Process,
    address: SocketAddr,
}

impl Sshd {
    /// Starts one with keys and settings of its own, all in `directory`.
    ///
    /// # Panics
    /// When OpenSSH is not here or fails.
    pub fn start(directory: &Path, agent: &SshAgent) -> Self {
        require(PROGRAM, "openssh-server");
        std::fs::create_dir_all(directory).expect("a directory");
        // Where its unprivileged part is confined to; systemd or its init script makes it otherwise.
        let confined = Path::new("/run/sshd");
        if !confined.exists() {
            std::fs::DirBuilder::new().mode(0o755).create(confined).expect("the tests run as root");
        }
        let host = directory.join("host");
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&host)
            .stdin(Stdio::null())
            .status();
        assert!(made.expect("the program is here").success(), "ssh-keygen");
        let path = std::env::var("PATH").expect("tests run with one");
        for _ in 0..20 {
            let address = free_address();
            let mut command = Command::new(PROGRAM);
            // In the foreground, and nothing from this machine's settings.
            command.args(["-D", "-e", "-f", "/dev/null"]);
            for option in [
                format!("ListenAddress={address}"),
                format!("HostKey={}", host.display()),
                format!("AuthorizedKeysFile={}.pub", agent.key.display()),
                format!("SetEnv=PATH={path}"),
                "PermitRootLogin=prohibit-password".to_owned(),
                "PasswordAuthentication=no".to_owned(),
                "StrictModes=no".to_owned(),
                "UsePAM=no".to_owned(),
                "PidFile=none".to_owned(),
            ] {
                command.arg("-o").arg(option);
            }
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let mut process = Process::start(&mut command);
            while process.ended().is_none() {
                if TcpStream::connect(address).is_ok() {
                    return Self { _process: process, address };
                }
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
        panic!("sshd does not start");
    }

    /// The URL of a directory of this machine, for root.
    pub fn url(&self, path: &Path) -> String {
        format!("ssh://root@{}{}", self.address, path.display())
    }
}
