//! Debian's dockerd takes what is saved here, and what it saves is taken here.

use std::{
    fs,
    io::{BufRead, BufReader, Write as _},
    process::{Child, Command, Stdio},
};

use crate::common::*;

struct Docker {
    child: Child,
    socket: String,
    _dir: tempfile::TempDir,
}

impl Docker {
    /// Starts a daemon of its own, which touches no network.
    fn start() -> Docker {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let socket = format!("unix://{}", path("sock"));
        let mut child = Command::new("dockerd")
            .args(["--data-root", &path("data"), "--exec-root", &path("exec"), "-p", &path("pid")])
            .args([
                "-H",
                &socket,
                "--bridge=none",
                "--iptables=false",
                "--ip6tables=false",
                "--storage-driver=overlay2",
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("dockerd is installed (Debian package docker.io)");
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        let mut said = String::new();
        loop {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "dockerd ended: {said}");
            said.push_str(&line);
            if line.contains("API listen on") {
                break;
            }
        }
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Docker { child, socket, _dir: dir }
    }

    fn run(&self, arguments: &[&str], input: &[u8]) -> Vec<u8> {
        // Debian's, whatever else is installed before it.
        let mut child = Command::new("/usr/bin/docker")
            .args(["-H", &self.socket])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || stdin.write_all(input).unwrap());
        });
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "docker {arguments:?}");
        output.stdout
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // Asked, so that it ends its containerd too.
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn images_go_to_docker_and_back() {
    let docker = Docker::start();
    let one = Machine::new();
    let image = one.image(&rich(&one), &["app:1"]);
    let said = docker.run(&["load"], &one.save(&[&image]));
    assert_eq!(String::from_utf8_lossy(&said), "Loaded image: app:1\n");
    let id = docker.run(&["image", "inspect", "--format={{.Id}}", "app:1"], b"");
    assert_eq!(String::from_utf8_lossy(&id).trim(), image.id.as_str());

    // And back: its own archive, in its own layout.
    let archive = docker.run(&["save", "app:1"], b"");
    let other = Machine::new();
    let (loaded, lines) = other.load_with_lines(&archive).unwrap();
    assert_eq!(loaded[0].id, image.id);
    assert_eq!(lines, ["Loaded image: app:1"]);
    assert_eq!(other.files(&other.find("app:1")), one.files(&image));

    // A root file system that Docker imported: a layer with Docker's own tar bytes.
    let rootfs = tar(&[("hello", b"world")]);
    docker.run(&["import", "-", "imported:1"], &rootfs);
    let archive = docker.run(&["save", "imported:1", "app:1"], b"");
    let id = docker.run(&["image", "inspect", "--format={{.Id}}", "imported:1"], b"");
    other.load(&archive).unwrap();
    let imported = other.find("imported:1");
    assert_eq!(imported.id.as_str(), String::from_utf8_lossy(&id).trim());
    assert!(fs::read(other.open(&imported).path().join("hello")).unwrap() == b"world");
    // Saved again, Docker has it already.
    docker.run(&["load"], &other.save(&[&imported]));
}
