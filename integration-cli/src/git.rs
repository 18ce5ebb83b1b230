//! Git repositories, and git's own web server behind a login.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use crate::{Process, free_address, require};

/// Runs git in a directory, as nobody in particular, at no particular time (2 February 2020, 02:02:02 UTC); what it printed.
///
/// # Panics
/// When it fails.
pub fn git(dir: &Path, arguments: &[&str]) -> String {
    require("git", "git");
    let output = Command::new("git")
        .args(["-c", "init.defaultBranch=main", "-c", "commit.gpgsign=false", "-c", "safe.directory=*"])
        .args(arguments)
        .current_dir(dir)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .envs(["GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"].map(|name| (name, "t")))
        .envs(["GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"].map(|name| (name, "t@t.test")))
        .envs(["GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"].map(|name| (name, "2020-02-02T02:02:02Z")))
        .output()
        .expect("the program is here");
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("git prints text").trim().to_owned()
}

/// Serves the repositories below a directory by git's own protocol; the URL that their names follow.
///
/// # Panics
/// When it does not start.
pub fn git_daemon(parent: &Path) -> (Process, String) {
    let program = Path::new(&git(parent, &["--exec-path"])).join("git-daemon");
    for _ in 0..20 {
        let address = free_address();
        // Not through `git`, which would leave it behind when it is ended.
        let mut command = Command::new(&program);
        command
            .args(["--export-all", "--reuseaddr", "--informative-errors"])
            .arg(format!("--listen={}", address.ip()))
            .arg(format!("--port={}", address.port()))
            .arg(format!("--base-path={}", parent.display()))
            .arg(parent)
            .envs([
                ("GIT_CONFIG_COUNT", "1"),
                ("GIT_CONFIG_KEY_0", "safe.directory"),
                ("GIT_CONFIG_VALUE_0", "*"),
            ]);
        let mut process = Process::start(&mut command);
        while process.ended().is_none() {
            if TcpStream::connect(address).is_ok() {
                return (process, format!("git://{address}"));
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
    panic!("git daemon does not start");
}

/// Bare repositories in one directory, each made of one commit on `main`.
#[derive(Debug)]
pub struct Repositories {
    directory: PathBuf,
}

impl Repositories {
    /// None yet.
    pub fn new(directory: &Path) -> Self {
        std::fs::create_dir_all(directory).expect("a directory");
        Self { directory: directory.to_owned() }
    }

    /// Where they are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes `name` of these files, or adds a commit that changes them. The commit's name.
    pub fn commit(&self, name: &str, files: &[(&str, &str)]) -> String {
        let (work, bare) = (self.directory.join(format!("{name}.work")), self.directory.join(name));
        if !bare.exists() {
            std::fs::create_dir_all(&work).expect("a directory");
            git(&work, &["init", "-q"]);
            git(&self.directory, &["init", "-q", "--bare", name]);
        }
        for (path, content) in files {
            let path = work.join(path);
            std::fs::create_dir_all(path.parent().expect("a file has a directory")).expect("a directory");
            std::fs::write(path, content).expect("a file");
        }
        git(&work, &["add", "-A"]);
        git(&work, &["commit", "-q", "-m", "change"]);
        git(&work, &["push", "-q", bare.to_str().expect("a path in UTF-8"), "HEAD:main"]);
        git(&work, &["rev-parse", "HEAD"])
    }
}

/// One request that the server had.
#[derive(Debug, Clone)]
pub struct GitRequest {
    /// Method, path and query.
    pub line: String,
    /// Its `Authorization` header.
    pub authorization: Option<String>,
}

/// `git http-backend` on loopback, for those who know the login. Ends when dropped.
#[derive(Debug)]
pub struct GitServer {
    address: SocketAddr,
    log: Arc<Mutex<Vec<GitRequest>>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl GitServer {
    /// Serves all repositories; with `authorization`, to whoever sends just this header.
    pub fn start(repositories: &Repositories, authorization: Option<&str>) -> Self {
        require("git", "git");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let (log, ends) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (seen, over) = (Arc::clone(&log), Arc::clone(&ends));
        let (root, wanted) = (repositories.directory.clone(), authorization.map(str::to_owned));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                // A client that goes away in the middle is the client's affair.
                let _ = stream.and_then(|stream| answer(&root, wanted.as_deref(), &seen, stream));
            }
        });
        Self { address, log, ends, thread: Some(thread) }
    }

    /// `127.0.0.1:<port>`
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// A repository's URL.
    pub fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.address)
    }

    /// All requests until now.
    pub fn log(&self) -> Vec<GitRequest> {
        self.log.lock().expect("the server does not panic").clone()
    }
}

impl Drop for GitServer {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        if let (Ok(_), Some(thread)) = (TcpStream::connect(self.address), self.thread.take()) {
            // A panic of the server has failed its test already.
            let _ = thread.join();
        }
    }
}

fn answer(
    root: &Path,
    wanted: Option<&str>,
    log: &Mutex<Vec<GitRequest>>,
    mut stream: TcpStream,
) -> std::io::Result<()> {
    let mut input = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    input.read_line(&mut line)?;
    let mut headers = HashMap::new();
    loop {
        let mut header = String::new();
        input.read_line(&mut header)?;
        match header.trim_end().split_once(':') {
            Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.trim().to_owned()),
            None => break,
        };
    }
    let header = |name: &str| headers.get(name).cloned().unwrap_or_default();
    let authorization = headers.get("authorization").cloned();
    let request = GitRequest { line: line.trim_end().to_owned(), authorization: authorization.clone() };
    log.lock().expect("nobody panics with it").push(request);
    // A scheme's name has no case (RFC 9110 section 11.1).
    let plain = |header: &str| {
        header.strip_prefix("Basic ").map_or(header.to_owned(), |rest| format!("basic {rest}"))
    };
    let refused = wanted.is_some_and(|wanted| authorization.as_deref().map(plain) != Some(plain(wanted)));
    if header("expect") == "100-continue" {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let mut body = Vec::new();
    match header("content-length").parse() {
        Ok(length) => input.take(length).read_to_end(&mut body).map(drop)?,
        Err(_) if header("transfer-encoding") == "chunked" => read_chunks(&mut input, &mut body)?,
        Err(_) => {}
    }
    if refused {
        return stream.write_all(
            b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        );
    }
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut child = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("REQUEST_METHOD", method)
        .env("CONTENT_TYPE", header("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .env("REMOTE_ADDR", "127.0.0.1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child.stdin.take().expect("it is piped").write_all(&body)?;
    let output = child.wait_with_output()?.stdout;
    // CGI's `Status` (RFC 3875) is a status line here.
    let text = output.strip_prefix(b"Status: ");
    stream.write_all(if text.is_some() {
        b"HTTP/1.1 "
    } else {
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
    })?;
    stream.write_all(text.unwrap_or(&output))
}

fn read_chunks(input: &mut impl BufRead, body: &mut Vec<u8>) -> std::io::Result<()> {
    loop {
        let mut line = String::new();
        input.read_line(&mut line)?;
        let length = u64::from_str_radix(line.trim(), 16).unwrap_or(0);
        input.by_ref().take(length).read_to_end(body)?;
        input.read_line(&mut String::new())?;
        if length == 0 {
            return Ok(());
        }
    }
}
