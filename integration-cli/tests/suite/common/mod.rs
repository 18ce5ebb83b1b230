//! Raw requests, archives and small servers, for tests that are clients themselves.

pub(crate) mod needles;
pub(crate) mod web;

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::Command,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use lapstrake_integration_cli::{Daemon, require};
use tokio::{net::UnixStream, task::JoinHandle as TokioHandle};

/// An answer, whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    /// The lines of a stream of JSON.
    pub(crate) fn lines(&self) -> Vec<serde_json::Value> {
        self.body
            .lines()
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// What its `stream` messages say.
    pub(crate) fn transcript(&self) -> String {
        self.lines().iter().filter_map(|line| line["stream"].as_str()).collect()
    }

    /// The error it ends with, however it was told.
    pub(crate) fn error(&self) -> String {
        let last = self.body.lines().last().unwrap_or_default();
        let value: serde_json::Value = serde_json::from_str(last).unwrap_or_default();
        let text = value["message"].as_str().or(value["errorDetail"]["message"].as_str());
        text.unwrap_or_else(|| panic!("no error: {} {}", self.status, self.body)).to_owned()
    }
}

/// A connection that is one request's. Dropping `connection` closes it.
pub(crate) struct Open {
    pub answer: hyper::Response<Incoming>,
    pub connection: Connection,
}

/// Closes its connection when dropped.
pub(crate) struct Connection(TokioHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sends a request, and returns when the answer begins.
pub(crate) async fn open(
    daemon: &Daemon,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Open {
    let stream = UnixStream::connect(daemon.socket()).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = Connection(tokio::spawn(async move {
        // Its end is seen by whoever reads the answer.
        let _ = connection.await;
    }));
    let mut request = Request::builder().method(method).uri(path).header("Host", "lapstrake");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = sender.send_request(request.body(Full::new(Bytes::from(body))).unwrap()).await.unwrap();
    Open { answer, connection }
}

/// Sends a request, and reads the whole answer.
pub(crate) async fn send(
    daemon: &Daemon,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Answer {
    let Open { answer, connection } = open(daemon, method, path, headers, body).await;
    let (parts, body) = answer.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    drop(connection);
    Answer { status: parts.status, headers: parts.headers, body: String::from_utf8(body.to_vec()).unwrap() }
}

/// `POST /build?<query>` with an archive.
pub(crate) async fn build(daemon: &Daemon, query: &str, archive: Vec<u8>) -> Answer {
    send(daemon, "POST", &format!("/build?{query}"), &[("Content-Type", "application/x-tar")], archive).await
}

/// What skopeo says.
pub(crate) fn skopeo(arguments: &[&str]) -> String {
    require("skopeo", "skopeo");
    let output = Command::new("skopeo").arg("--insecure-policy").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The files of an archive.
pub(crate) fn unpack(archive: &[u8]) -> HashMap<String, Vec<u8>> {
    let mut files = HashMap::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut data = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut data).unwrap();
        files.insert(entry.path().unwrap().to_string_lossy().into_owned(), data);
    }
    files
}

/// An archive of regular files.
pub(crate) fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, path, data.as_bytes()).unwrap();
    }
    archive.into_inner().unwrap()
}

/// Escapes what a query must.
pub(crate) fn escape(text: &str) -> String {
    text.bytes()
        .map(
            |byte| {
                if byte.is_ascii_alphanumeric() {
                    char::from(byte).to_string()
                } else {
                    format!("%{byte:02X}")
                }
            },
        )
        .collect()
}

/// Looks again and again until it is so.
///
/// # Panics
/// When it is not so in a minute.
pub(crate) async fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !so() {
        assert!(Instant::now() < deadline, "not in a minute: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether a process has this among its arguments.
pub(crate) fn is_running(argument: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    processes.map(|entry| entry.path().join("cmdline")).any(|file| {
        // Not a process, or not any more.
        let line = std::fs::read(file).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == argument.as_bytes())
    })
}

/// What is left in a daemon's store after everything was removed and pruned; the daemon has to be alive for it.
pub(crate) fn leftovers(daemon: &Daemon) -> Vec<PathBuf> {
    let docker = daemon.docker();
    let ids = docker.run(["images", "-qa", "--no-trunc"]).success().stdout;
    let mut ids: Vec<_> = ids.split_whitespace().collect();
    ids.sort_unstable();
    ids.dedup();
    if !ids.is_empty() {
        docker.run(["rmi", "-f"].into_iter().chain(ids)).success();
    }
    docker.run(["builder", "prune", "-af"]).success();
    let directories = ["overlay2", "content/blobs/sha256", "content/ingest"];
    let entries =
        directories.iter().filter_map(|name| std::fs::read_dir(daemon.root().join(name)).ok()).flatten();
    entries.map(|entry| entry.unwrap().path()).filter(|path| !path.ends_with("overlay2/l")).collect()
}

/// A web server of a few fixed files on loopback. Ended when dropped.
pub(crate) struct Files {
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl Files {
    /// Serves these by path.
    pub(crate) fn serve(files: HashMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let request = lines.next().and_then(Result::ok).unwrap_or_default();
                if request.starts_with("END ") {
                    return;
                }
                while lines.next().and_then(Result::ok).is_some_and(|line| !line.is_empty()) {}
                let mut words = request.split(' ');
                let is_head = words.next() == Some("HEAD");
                let path = words.next().unwrap_or_default().split('?').next().unwrap_or_default();
                let (status, body) = match files.get(path) {
                    Some(body) => ("200 OK", &body[..]),
                    None => ("404 Not Found", &b"not found"[..]),
                };
                let kind = if path.ends_with(".tar") { "application/x-tar" } else { "text/plain" };
                // The client may be gone already.
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                if !is_head {
                    let _ = stream.write_all(body);
                }
            }
        });
        Self { address, thread: Some(thread) }
    }

    /// `http://127.0.0.1:<port><path>`
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let told =
            TcpStream::connect(self.address).and_then(|mut stream| stream.write_all(b"END / HTTP/1.1\r\n"));
        if let (Ok(()), Some(thread)) = (told, self.thread.take()) {
            // A panic of the server has failed its test already.
            let _ = thread.join();
        }
    }
}
