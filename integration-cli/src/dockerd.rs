//! Debian's dockerd, private: a real engine beside ours.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

use crate::{Docker, Process, wait_for_socket};

const PROGRAM: &str = "/usr/sbin/dockerd";

/// A running `dockerd` with directories of its own, without networks. Ended, with its containerd, when dropped.
#[derive(Debug)]
pub struct Dockerd {
    process: Process,
    dir: TempDir,
}

impl Dockerd {
    /// Starts it over an empty store.
    ///
    /// # Panics
    /// When it is not installed, or does not start.
    pub fn start() -> Self {
        crate::require(PROGRAM, "docker.io");
        crate::require("/usr/bin/containerd", "docker.io");
        let dir =
            tempfile::Builder::new().prefix("lapstrake-dockerd-").tempdir().expect("a temporary directory");
        let log = File::create(dir.path().join("log")).expect("a log file");
        // The configuration of this machine's own dockerd is none of ours.
        let config = dir.path().join("daemon.json");
        std::fs::write(&config, "{}").expect("the directory takes it");
        let process = Process::start(
            Command::new(PROGRAM)
                .arg("--data-root")
                .arg(dir.path().join("data"))
                .arg("--exec-root")
                .arg(dir.path().join("exec"))
                .arg("-p")
                .arg(dir.path().join("pid"))
                .arg("-H")
                .arg(format!("unix://{}", socket(dir.path()).display()))
                .args(["--bridge=none", "--iptables=false"])
                .arg("--config-file")
                .arg(&config)
                .stdin(Stdio::null())
                .stdout(log.try_clone().expect("a file can be shared"))
                .stderr(log),
        );
        let mut dockerd = Self { process, dir };
        let path = socket(dockerd.dir.path());
        wait_for_socket(&mut dockerd.process, &path);
        // It accepts before it answers; this waits for the answer.
        dockerd.docker().run(["version"]).success();
        dockerd
    }

    /// The docker CLI, talking to this engine.
    pub fn docker(&self) -> Docker {
        let host = format!("unix://{}", socket(self.dir.path()).display());
        Docker::new(host, self.dir.path().join("docker-config"))
    }

    /// The socket's path.
    pub fn socket(&self) -> PathBuf {
        socket(self.dir.path())
    }

    /// The directories of an image's layers, highest first.
    pub fn layer_directories(&self, image: &str) -> Vec<PathBuf> {
        let data = self
            .docker()
            .run(["image", "inspect", "--format", "{{json .GraphDriver.Data}}", image])
            .success();
        let data: serde_json::Value = serde_json::from_str(data.line()).expect("dockerd writes JSON");
        ["UpperDir", "LowerDir"]
            .iter()
            .filter_map(|name| data[name].as_str())
            .flat_map(|directories| directories.split(':'))
            .map(PathBuf::from)
            .collect()
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        self.process.stop();
        // After an end by force, its containerd is still there, and is ended by its id too.
        let file = self.dir.path().join("exec/containerd/containerd.pid");
        let pid = std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok());
        if let Some(pid) = pid.filter(|pid| self.is_ours(*pid)).and_then(rustix::process::Pid::from_raw) {
            // It may have ended meanwhile.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        // dockerd leaves the mount of its network namespace behind.
        for mount in mounts_beneath(self.dir.path()) {
            // A directory that cannot be removed afterwards is no fault of the test's subject.
            let _ = rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

impl Dockerd {
    /// Whether a process works on our directories: an id of one that has ended may be another's by now.
    fn is_ours(&self, pid: i32) -> bool {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&*self.dir.path().to_string_lossy())
    }
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("docker.sock")
}

/// Mount points beneath a directory, innermost first.
pub(crate) fn mounts_beneath(dir: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut points: Vec<_> = points.filter(|point| point.starts_with(dir)).collect();
    points.reverse();
    points
}
