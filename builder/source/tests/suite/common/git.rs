//! Git repositories, real ones, and servers of them.

use std::{
    net::{TcpListener, TcpStream},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{body::Body, response::Response};
use lapstrake_builder_source::SourceError;
use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_store::Tree;
use parking_lot::Mutex;

use super::{
    Bench,
    server::{Seen, status},
};

const TIME: &str = "1700000000 +0000";

pub(crate) fn git(dir: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .current_dir(dir)
        .args(["-c", "init.defaultBranch=main", "-c", "protocol.file.allow=always"])
        .args(args)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_AUTHOR_NAME", "A")
        .env("GIT_AUTHOR_EMAIL", "a@example.org")
        .env("GIT_COMMITTER_NAME", "A")
        .env("GIT_COMMITTER_EMAIL", "a@example.org")
        .env("GIT_AUTHOR_DATE", TIME)
        .env("GIT_COMMITTER_DATE", TIME)
        .output()
        .unwrap();
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A repository that is served as `git://host/repo`, and others beside it.
pub(crate) struct Upstream {
    pub dir: tempfile::TempDir,
    pub host: String,
    served: Arc<AtomicUsize>,
}

impl Upstream {
    /// With the files `a` and `sub/b` in one commit on `main`.
    pub(crate) fn new() -> Upstream {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (base, served) = (dir.path().to_owned(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&served);
        // Ends with the test's process.
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                count.fetch_add(1, Ordering::SeqCst);
                serve(&base, connection.unwrap());
            }
        });
        let upstream = Upstream { dir, host, served };
        upstream.init("repo");
        upstream.commit("repo", &[("a", "1"), ("sub/b", "2")]);
        upstream
    }

    pub(crate) fn path(&self, repo: &str) -> PathBuf {
        self.dir.path().join(repo)
    }

    pub(crate) fn init(&self, repo: &str) {
        std::fs::create_dir(self.path(repo)).unwrap();
        git(&self.path(repo), &["init", "-q"]);
    }

    pub(crate) fn commit(&self, repo: &str, files: &[(&str, &str)]) -> String {
        for (name, text) in files {
            let path = self.path(repo).join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        self.commit_all(repo)
    }

    pub(crate) fn commit_all(&self, repo: &str) -> String {
        git(&self.path(repo), &["add", "-A"]);
        git(&self.path(repo), &["commit", "-q", "-m", "change"]);
        self.head(repo)
    }

    pub(crate) fn head(&self, repo: &str) -> String {
        git(&self.path(repo), &["rev-parse", "HEAD"])
    }

    pub(crate) fn url(&self, repo: &str) -> String {
        format!("git://{}/{repo}", self.host)
    }

    pub(crate) fn served(&self) -> usize {
        self.served.load(Ordering::SeqCst)
    }

    pub(crate) async fn get(
        &self,
        bench: &Bench,
        fragment: &str,
        attrs: &[(&str, &str)],
    ) -> Result<(Digest, Tree), SourceError> {
        let url = self.url("repo");
        let mut all = vec![("git.fullurl", url.as_str())];
        all.extend(attrs);
        bench.get(&bench.context(), &format!("git://{}/repo{fragment}", self.host), &all).await
    }
}

/// One connection, as inetd would start git's daemon for it.
fn serve(base: &Path, connection: TcpStream) {
    let output = connection.try_clone().unwrap();
    let mut child = Command::new("git")
        .args(["-c", "safe.directory=*", "daemon", "--inetd", "--export-all"])
        .arg(format!("--base-path={}", base.display()))
        .stdin(Stdio::from(OwnedFd::from(connection)))
        .stdout(Stdio::from(OwnedFd::from(output)))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::spawn(move || child.wait());
}

pub(crate) fn key(text: &str) -> Digest {
    Digest::sha256_of(format!("buildkit.source.v0:{text}"))
}

/// Who gets what from a web server of repositories: `None` for the repository, else an answer.
type Gate = Box<dyn Fn(&Seen) -> Option<Response> + Send + Sync>;

/// Git's own web server, behind a gate.
pub(crate) struct GitHttp {
    pub host: String,
    pub log: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for GitHttp {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl GitHttp {
    /// Serves all repositories of `upstream`.
    pub(crate) async fn start(
        upstream: &Upstream,
        gate: impl Fn(&Seen) -> Option<Response> + Send + Sync + 'static,
    ) -> GitHttp {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let log: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (gate, seen_log, root): (Arc<Gate>, _, _) =
            (Arc::new(Box::new(gate)), Arc::clone(&log), upstream.dir.path().to_owned());
        let app = axum::Router::new().fallback(move |request: axum::extract::Request| {
            let (gate, log, root) = (Arc::clone(&gate), Arc::clone(&seen_log), root.clone());
            async move {
                let (parts, body) = request.into_parts();
                let seen = Seen {
                    method: parts.method.to_string(),
                    path: parts.uri.path().to_owned(),
                    headers: parts.headers,
                };
                log.lock().push(seen.clone());
                if let Some(answer) = gate(&seen) {
                    return answer;
                }
                let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
                let query = parts.uri.query().unwrap_or_default().to_owned();
                tokio::task::spawn_blocking(move || backend(&root, &seen, &query, &body)).await.unwrap()
            }
        });
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        GitHttp { host, log, task }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.host)
    }

    /// The `Authorization` headers that came, in order.
    pub(crate) fn authorizations(&self) -> Vec<Option<String>> {
        self.log.lock().iter().map(|seen| seen.header("authorization").map(str::to_owned)).collect()
    }
}

/// `git http-backend`, as CGI (RFC 3875).
fn backend(root: &Path, seen: &Seen, query: &str, body: &[u8]) -> Response {
    use std::io::Write as _;
    let header = |name: &str| seen.header(name).unwrap_or_default();
    let mut child = Command::new("git")
        .arg("http-backend")
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .env("PATH_INFO", &seen.path)
        .env("QUERY_STRING", query)
        .env("REQUEST_METHOD", &seen.method)
        .env("CONTENT_TYPE", header("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .env("REMOTE_ADDR", "127.0.0.1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // It need not read what it does not want.
    let _ = child.stdin.take().unwrap().write_all(body);
    let output = child.wait_with_output().unwrap().stdout;
    let end = output.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let mut code = 200;
    let mut headers = Vec::new();
    for line in String::from_utf8(output[..end].to_vec()).unwrap().lines() {
        let (name, value) = line.split_once(": ").unwrap();
        match name {
            "Status" => code = value.split(' ').next().unwrap().parse().unwrap(),
            _ => headers.push((name.to_owned(), value.to_owned())),
        }
    }
    let mut answer = status(code);
    for (name, value) in headers {
        answer = answer.header(name, value);
    }
    answer.body(Body::from(output[end + 4..].to_vec())).unwrap()
}
