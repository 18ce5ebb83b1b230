//! Debian's docker-registry on loopback.

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::Process;

const PROGRAM: &str = "/usr/bin/docker-registry";
const PATIENCE: Duration = Duration::from_secs(60);

/// Whom a registry [with users](Registry::with_users) knows.
pub const USER: &str = "tester";
/// The password of [`USER`].
pub const PASSWORD: &str = "s3cret";
/// The same as bcrypt, the only form that the registry takes.
const PASSWORD_HASH: &str = "$2y$05$abcdefghijklmnopqrstuuLK7U1u6pVRmL7L1BBM2aS35PSZnDXlK";

/// A running registry with an empty store. Ended when dropped.
#[derive(Debug)]
pub struct Registry {
    _process: Process,
    dir: TempDir,
    address: SocketAddr,
}

impl Registry {
    /// Starts one that everybody may use.
    pub fn start() -> Self {
        Self::launch(false)
    }

    /// Starts one that only [`USER`] may use.
    pub fn with_users() -> Self {
        Self::launch(true)
    }

    fn launch(users: bool) -> Self {
        crate::require(PROGRAM, "docker-registry");
        let dir =
            tempfile::Builder::new().prefix("lapstrake-registry-").tempdir().expect("a temporary directory");
        // Another program may take the port between our look and the registry's.
        for _ in 0..20 {
            let address = free_address();
            if let Some(process) = serve(&dir, address, users) {
                return Self { _process: process, dir, address };
            }
        }
        panic!(
            "the registry does not start: {}",
            std::fs::read_to_string(dir.path().join("log")).unwrap_or_default()
        );
    }

    /// `127.0.0.1:<port>`, as in image names.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// `localhost:<port>/<name>`
    pub fn image(&self, name: &str) -> String {
        format!("localhost:{}/{name}", self.address.port())
    }

    /// The registry's own directory of a repository's blobs and manifests.
    pub fn storage(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// What the registry logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

/// An address on loopback that nobody listens on at this moment.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
    listener.local_addr().expect("a listener has an address")
}

fn serve(dir: &TempDir, address: SocketAddr, users: bool) -> Option<Process> {
    let path = |name: &str| dir.path().join(name);
    let mut config = format!(
        "version: 0.1\nlog: {{level: info}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  delete: {{enabled: true}}\nhttp: {{addr: \"{address}\"}}\n",
        path("data").display()
    );
    if users {
        std::fs::write(path("htpasswd"), format!("{USER}:{PASSWORD_HASH}\n"))
            .expect("the directory takes it");
        config.push_str(&format!(
            "auth:\n  htpasswd: {{realm: tests, path: {}}}\n",
            path("htpasswd").display()
        ));
    }
    std::fs::write(path("config.yml"), config).expect("the directory takes it");
    let log = File::create(path("log")).expect("a log file");
    let mut process = Process::start(
        Command::new(PROGRAM)
            .arg("serve")
            .arg(path("config.yml"))
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be shared"))
            .stderr(log),
    );
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if process.ended().is_some() {
            return None;
        }
        if TcpStream::connect(address).is_ok() {
            return Some(process);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}
