//! `lapstrake daemon`: how it begins, listens and ends.

#![allow(clippy::unwrap_used, reason = "only code in #[test] functions is known to be a test")]

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixDatagram, UnixListener, UnixStream},
    },
    path::Path,
    process::{Command, Stdio},
};

use lapstrake_integration_cli::{Certificate, Process, free_address, wait_for_socket};

use crate::common::{failure, lapstrake, success, write};

fn daemon(dir: &Path) -> Command {
    let log = File::options().create(true).append(true).open(dir.join("log")).unwrap();
    let mut command = lapstrake();
    command
        .arg("daemon")
        .arg("--root")
        .arg(dir.join("root"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    command
}

fn host(socket: &Path) -> String {
    format!("unix://{}", socket.display())
}

/// The first line of the answer to a `GET` on a unix socket.
fn get(socket: &Path, path: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn it_says_when_it_is_ready_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, pid, notify) =
        (dir.path().join("l.sock"), dir.path().join("pid"), dir.path().join("notify"));
    let manager = UnixDatagram::bind(&notify).unwrap();
    let mut process = Process::start(
        daemon(dir.path()).arg("-H").arg(host(&socket)).arg("-p").arg(&pid).env("NOTIFY_SOCKET", &notify),
    );
    let mut state = [0; 256];
    let length = manager.recv(&mut state).unwrap();
    assert!(state[..length].starts_with(b"READY=1\n"));
    // Ready means ready: no waiting for the socket.
    assert_eq!(get(&socket, "/_ping"), "HTTP/1.1 200 OK");
    assert_eq!(fs::read_to_string(&pid).unwrap().trim(), process.id().to_string());
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
    assert!(process.stop().success());
    let length = manager.recv(&mut state).unwrap();
    assert!(state[..length].starts_with(b"STOPPING=1\n"));
    assert!(!socket.exists() && !pid.exists());
}

#[test]
fn it_takes_sockets_over_from_systemd() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("l.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    // What systemd does: the socket is descriptor 3, and the process is named by its number.
    let script = "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" \"$@\"";
    let mut process = Process::start(
        Command::new("/bin/sh")
            .args(["-c", script, env!("CARGO_BIN_EXE_lapstrake"), "daemon", "-H", "fd://", "--root"])
            .arg(dir.path().join("root"))
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)))
            .stdout(Stdio::null())
            .stderr(File::create(dir.path().join("log")).unwrap()),
    );
    // It waits in the socket's queue until the daemon serves.
    assert_eq!(get(&socket, "/_ping"), "HTTP/1.1 200 OK");
    // HTTP/2 at once, which is answered with settings.
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let mut frame = [0; 9];
    stream.read_exact(&mut frame).unwrap();
    assert_eq!(frame[3], 4, "{frame:?}");
    drop(stream);
    assert!(process.stop().success());
    assert!(socket.exists(), "systemd's socket is not ours to remove");
    let error = failure(lapstrake().args(["daemon", "-H", "fd://", "--root"]).arg(dir.path().join("root")));
    assert!(error.contains("systemd passed no such socket"), "{error}");
}

#[test]
fn one_store_has_one_process_and_others_are_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("l.sock");
    let mut process = Process::start(daemon(dir.path()).arg("-H").arg(host(&socket)));
    wait_for_socket(&mut process, &socket);
    let root = dir.path().join("root");
    let other = format!("unix://{}", dir.path().join("other.sock").display());
    let error = failure(lapstrake().args(["daemon", "-H", &other, "--root"]).arg(&root));
    assert!(error.contains("in use by another process"), "{error}");
    let error = failure(
        lapstrake().args(["daemon", "-H"]).arg(host(&socket)).arg("--root").arg(dir.path().join("second")),
    );
    assert!(error.contains("another daemon listens there"), "{error}");
    let context = dir.path().join("context");
    write(&context, &[("Dockerfile", "FROM scratch\n")]);
    let error = failure(lapstrake().args(["build", "--root"]).arg(&root).arg(&context));
    assert!(error.contains("a daemon has it open"), "{error}");
    // These two ask the daemon.
    let usage = success(lapstrake().args(["df", "-H"]).arg(host(&socket)).arg("--root").arg(&root));
    assert!(usage.contains("build cache       0"), "{usage}");
    let pruned =
        success(lapstrake().args(["prune", "--images", "-H"]).arg(host(&socket)).arg("--root").arg(&root));
    assert_eq!(pruned, "Removed 0 cache entries and 0 dangling images; freed 0B\n");
    let nobody = lapstrake().args(["df", "-H", &other, "--root"]).arg(&root).output().unwrap();
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("say with --host where it listens"));
}

#[test]
fn a_build_that_runs_is_cancelled_when_the_daemon_stops() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, context) = (dir.path().join("l.sock"), dir.path().join("context"));
    let dockerfile = "FROM scratch\nCOPY busybox /bin/\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \"echo begun; exec busybox sleep 3600\"]\n";
    write(&context, &[("Dockerfile", dockerfile)]);
    fs::copy("/bin/busybox", context.join("busybox")).unwrap();
    let tar = dir.path().join("context.tar");
    success(Command::new("tar").arg("cf").arg(&tar).arg("-C").arg(&context).arg("."));
    let mut process = Process::start(daemon(dir.path()).arg("-H").arg(host(&socket)));
    wait_for_socket(&mut process, &socket);
    let mut client = Command::new("curl")
        .args(["-sSN", "-X", "POST", "-H", "Content-Type: application/x-tar", "--unix-socket"])
        .arg(&socket)
        .arg("--data-binary")
        .arg(format!("@{}", tar.display()))
        .arg("http://x/build")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
    lines
        .by_ref()
        .map(Result::unwrap)
        .find(|line| line.contains("stream\":\"begun"))
        .expect("the step begins");
    assert!(process.stop().success());
    let last = lines.map(Result::unwrap).last().unwrap();
    assert!(last.contains("errorDetail") && last.contains("cancel"), "{last}");
    client.wait().unwrap();
    let left = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!left.contains(dir.path().to_str().unwrap()), "{left}");
}

#[test]
fn an_open_port_is_opened_only_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let address = format!("tcp://{}", free_address());
    let error = failure(lapstrake().args(["daemon", "-H", &address, "--root"]).arg(dir.path().join("root")));
    assert!(error.contains("as good as root") && error.contains("--insecure-tcp"), "{error}");
    assert!(!dir.path().join("root").exists(), "refused before anything is opened");
}

#[test]
fn over_tls_only_clients_with_a_certificate_get_in() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let authority = Certificate::authority(dir.path(), "ca");
    for name in ["server", "client"] {
        authority.vouch(dir.path(), name, "IP:127.0.0.1");
    }
    let address = free_address();
    let socket = at("l.sock");
    let mut process = Process::start(
        daemon(dir.path())
            .args(["-H", &format!("tcp://{address}"), "-H", &host(&socket)])
            .arg("--tlscacert")
            .arg(at("ca.pem"))
            .arg("--tlscert")
            .arg(at("server.pem"))
            .arg("--tlskey")
            .arg(at("server-key.pem")),
    );
    wait_for_socket(&mut process, &socket);
    let curl = |more: &[&str]| {
        Command::new("curl")
            .args(["-sS", "--max-time", "20", "--cacert", "ca.pem", &format!("https://{address}/_ping")])
            .args(more)
            .current_dir(dir.path())
            .output()
            .unwrap()
    };
    let answer = curl(&["--cert", "client.pem", "--key", "client-key.pem"]);
    assert_eq!(String::from_utf8_lossy(&answer.stdout), "OK", "{}", String::from_utf8_lossy(&answer.stderr));
    assert!(!curl(&[]).status.success(), "a stranger got in");
    // Somebody who says nothing keeps nobody out.
    let _silent = std::net::TcpStream::connect(address).unwrap();
    assert!(curl(&["--cert", "client.pem", "--key", "client-key.pem"]).status.success());
}

/// As BuildKit's own tests start a daemon (`util/testutil/workers`), with the socket in the store's directory.
#[test]
fn it_starts_as_buildkitd_is_started() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, config) = (dir.path().join("buildkitd.sock"), dir.path().join("buildkitd.toml"));
    let text = format!(
        "[registry.\"docker.io\"]\nmirrors=[\"localhost:1\"]\n[otel]\nsocketPath = {:?}\n[cdi]\nspecDirs = [{:?}]\n",
        dir.path().join("otel.sock"),
        dir.path()
    );
    fs::write(&config, text).unwrap();
    let mut process = Process::start(
        lapstrake()
            .args(["daemon", "--oci-worker=true", "--containerd-worker=false", "--oci-worker-gc=false"])
            .arg("--oci-worker-labels=org.mobyproject.buildkit.worker.sandbox=true")
            .arg("--oci-worker-snapshotter=native")
            .arg(format!("--config={}", config.display()))
            .arg("--root")
            .arg(dir.path())
            .args(["--addr", &host(&socket), "--debug"])
            .env("BUILDKITD_DEBUGADDR", "unix:///nonexistent/x.sock")
            .stderr(File::create(dir.path().join("log")).unwrap()),
    );
    wait_for_socket(&mut process, &socket);
    assert_eq!(get(&socket, "/_ping"), "HTTP/1.1 200 OK");
    assert!(process.stop().success());
    let error =
        failure(lapstrake().args(["daemon", "--containerd-worker=true", "--root"]).arg(dir.path().join("2")));
    assert!(error.contains("worker.containerd.enabled = true is refused"), "{error}");
    let version = success(lapstrake().args(["daemon", "--version"]));
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
}

#[test]
fn what_the_configuration_says_in_vain_is_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, config) = (dir.path().join("l.sock"), dir.path().join("buildkitd.toml"));
    let text = format!(
        "root = {:?}\n[grpc]\naddress = [{:?}]\n[worker.oci]\ngc = true\nlabels = {{ a = \"b\" }}\n[nonsense]\nx = 1\n",
        dir.path().join("data"),
        host(&socket)
    );
    fs::write(&config, text).unwrap();
    let log = File::create(dir.path().join("log")).unwrap();
    let mut process = Process::start(lapstrake().arg("daemon").arg("--config").arg(&config).stderr(log));
    wait_for_socket(&mut process, &socket);
    assert!(dir.path().join("data/metadata.db").exists());
    assert!(process.stop().success());
    let log = fs::read_to_string(dir.path().join("log")).unwrap();
    assert!(
        log.contains("worker.oci.labels.a is not honoured") && log.contains("nonsense.x is no key"),
        "{log}"
    );
}
