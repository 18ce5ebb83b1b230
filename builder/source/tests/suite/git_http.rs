//! Repositories on web servers: git's own behind a gate that wants credentials, redirects, or lies.

use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};

use axum::{body::Body, response::Response};
use lapstrake_builder_source::{ErrorKind, SourceError, SourceLimits};
use lapstrake_layerstore_store::Tree;
use parking_lot::Mutex;

use crate::common::{
    Bench,
    git::{GitHttp, Upstream, git, key},
    server::{Seen, empty, status},
};
use crate::session::{self, Client, Connected};

/// `x-access-token:t0ken-QxW7`
const TOKEN: &str = "t0ken-QxW7";
const TOKEN_HEADER: &str = "basic eC1hY2Nlc3MtdG9rZW46dDBrZW4tUXhXNw==";

fn refusal() -> Response {
    status(401).header("www-authenticate", "Basic realm=\"x\"").body(Body::empty()).unwrap()
}

/// Lets in who sends this header.
fn only(authorization: &'static str) -> impl Fn(&Seen) -> Option<Response> {
    move |seen| (seen.header("authorization") != Some(authorization)).then(refusal)
}

async fn connect(secrets: &[(&str, &str)]) -> Connected {
    let secrets: HashMap<_, _> =
        secrets.iter().map(|(name, secret)| ((*name).to_owned(), secret.as_bytes().to_vec())).collect();
    Client { secrets, ..Client::default() }.connect_as(session::info("s1")).await
}

/// What BuildKit's client sets for every repository.
const SECRETS: [(&str, &str); 2] =
    [("git.authtokensecret", "GIT_AUTH_TOKEN"), ("git.authheadersecret", "GIT_AUTH_HEADER")];

async fn get(bench: &Bench, url: &str, fragment: &str) -> Result<Tree, SourceError> {
    let attrs = [&SECRETS[..], &[("git.fullurl", url)]].concat();
    let cx = if bench.sessions.ids().is_empty() { bench.context() } else { bench.context_of("s1") };
    bench.get(&cx, &format!("git://h/r#{fragment}"), &attrs).await.map(|(_, tree)| tree)
}

#[tokio::test]
async fn a_clients_secret_for_the_host_comes_before_one_for_all_hosts() {
    let upstream = Upstream::new();
    let server = GitHttp::start(&upstream, |_| None).await;
    let (host, url) = (server.host.clone(), server.url("/repo/.git"));
    let own = |name: &str| format!("{name}.{host}");
    let (own_header, own_token) = (own("GIT_AUTH_HEADER"), own("GIT_AUTH_TOKEN"));
    for (secrets, expected) in [
        (vec![("GIT_AUTH_TOKEN", TOKEN)], TOKEN_HEADER),
        (vec![("GIT_AUTH_TOKEN", TOKEN), ("GIT_AUTH_HEADER", "Bearer b")], "Bearer b"),
        (vec![("GIT_AUTH_HEADER", "Bearer b"), (&own_token, TOKEN)], TOKEN_HEADER),
        (vec![(&own_header, "Bearer c"), (&own_token, TOKEN), ("GIT_AUTH_HEADER", "Bearer b")], "Bearer c"),
    ] {
        let connected = connect(&secrets).await;
        let bench = Bench::with(SourceLimits::default(), connected.sessions.clone());
        server.log.lock().clear();
        let tree = get(&bench, &url, "main").await.unwrap();
        assert_eq!(bench.names(&tree), ["a", "sub", "sub/b"]);
        let sent = server.authorizations();
        assert!(sent.len() >= 4, "{sent:?}");
        assert!(sent.iter().all(|header| header.as_deref() == Some(expected)), "{sent:?}");
    }
}

#[tokio::test]
async fn who_has_no_or_the_wrong_secret_is_told_so() {
    let upstream = Upstream::new();
    let server = GitHttp::start(&upstream, only(TOKEN_HEADER)).await;
    for secrets in [vec![], vec![("GIT_AUTH_TOKEN", "wrong-Zk29")]] {
        let connected = connect(&secrets).await;
        let bench = Bench::with(SourceLimits::default(), connected.sessions.clone());
        let error = get(&bench, &server.url("/repo/.git"), "main").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
        assert!(error.to_string().contains(&server.host) && !error.to_string().contains("Zk29"), "{error}");
    }
}

/// Whether a process of this machine has the text in its arguments, and which programs run.
fn arguments(text: &str) -> (bool, Vec<String>) {
    let (mut found, mut programs) = (false, Vec::new());
    for entry in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        found |= line.contains(text);
        programs.push(line);
    }
    (found, programs)
}

/// Files below a directory that have the text in them.
fn files_with(dir: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(files_with(&path, text));
        } else if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            if bytes.windows(text.len()).any(|window| window == text.as_bytes()) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

#[tokio::test]
async fn credentials_are_in_no_arguments_files_or_logs() {
    let upstream = Upstream::new();
    upstream.init("module");
    upstream.commit("module", &[("inner", "m")]);
    let base64 = TOKEN_HEADER.strip_prefix("basic ").unwrap();
    let (seen, asked): (Arc<Mutex<Vec<String>>>, _) = (Arc::default(), only(TOKEN_HEADER));
    let visible = Arc::clone(&seen);
    // While git waits for the answer.
    let server = GitHttp::start(&upstream, move |request| {
        for secret in [TOKEN, base64] {
            let (found, programs) = arguments(secret);
            let git = programs.iter().any(|line| line.contains("remote-http") || line.contains("ls-remote"));
            if found || !git {
                visible.lock().push(format!("{secret}: {found} {git}"));
            }
        }
        asked(request)
    })
    .await;
    // A submodule by a relative address.
    git(&upstream.path("repo"), &["submodule", "add", "-q", &upstream.url("module/.git"), "mod"]);
    git(&upstream.path("repo"), &["config", "-f", ".gitmodules", "submodule.mod.url", "../../module/.git"]);
    upstream.commit_all("repo");
    let connected = connect(&[("GIT_AUTH_TOKEN", TOKEN)]).await;
    let bench = Bench::with(SourceLimits::default(), connected.sessions.clone());
    let cx = bench.context_of("s1");
    let plain = server.url("/repo/.git");
    let login = format!("http://x-access-token:{TOKEN}@{}/repo/.git", server.host);
    for (url, attrs) in
        [(&plain, &SECRETS[..]), (&login, &[][..]), (&login, &[("git.keepgitdir", "true")][..])]
    {
        let attrs = [attrs, &[("git.fullurl", url)], &[("git.skipsubmodules", "true")]].concat();
        let (_, tree) = bench.get(&cx, "git://h/r#main", &attrs).await.unwrap();
        assert!(bench.names(&tree).contains(&"sub/b".to_owned()));
    }
    // A user and a password are the server's, so they open its other repositories too.
    for kept in ["false", "true"] {
        let attrs = [("git.fullurl", login.as_str()), ("git.keepgitdir", kept)];
        let (_, tree) = bench.get(&cx, "git://h/r#main", &attrs).await.unwrap();
        assert!(bench.names(&tree).contains(&"mod/inner".to_owned()), "{:?}", bench.names(&tree));
    }
    assert_eq!(*seen.lock(), Vec::<String>::new());
    for secret in [TOKEN, base64] {
        assert_eq!(files_with(bench.dir.path(), secret), Vec::<String>::new());
        assert!(!bench.recorder.everything().contains(secret));
    }
    assert!(bench.recorder.everything().contains("From http"), "git's words are shown");
}

#[tokio::test]
async fn a_redirect_takes_credentials_to_the_same_server_and_no_other() {
    let upstream = Upstream::new();
    let other = GitHttp::start(&upstream, |_| None).await;
    let strict = GitHttp::start(&upstream, only(TOKEN_HEADER)).await;
    let (to_other, to_strict) = (other.url(""), strict.url(""));
    let first = GitHttp::start(&upstream, move |seen| {
        if seen.header("authorization") != Some(TOKEN_HEADER) {
            return Some(refusal());
        }
        let (place, rest) = seen.path.strip_prefix('/')?.split_once('/')?;
        let to = match place {
            "other" => format!("{to_other}/{rest}?service=git-upload-pack"),
            "strict" => format!("{to_strict}/{rest}?service=git-upload-pack"),
            "moved" => format!("/moved-again/{rest}?service=git-upload-pack"),
            "moved-again" => format!("/{rest}?service=git-upload-pack"),
            "loop" => format!("/loop/{rest}?service=git-upload-pack"),
            "file" => "file:///etc/info/refs?service=git-upload-pack".to_owned(),
            _ => return None,
        };
        Some(status(302).header("location", to).body(Body::empty()).unwrap())
    })
    .await;
    let connected = connect(&[("GIT_AUTH_TOKEN", TOKEN)]).await;
    let fetched = async |place: &str| {
        let bench = Bench::with(SourceLimits::default(), connected.sessions.clone());
        get(&bench, &first.url(&format!("/{place}/repo/.git")), "main").await.map(|tree| bench.names(&tree))
    };
    // A repository that was renamed.
    assert_eq!(fetched("moved").await.unwrap(), ["a", "sub", "sub/b"]);
    // One that is at another server now, for everybody.
    assert_eq!(fetched("other").await.unwrap(), ["a", "sub", "sub/b"]);
    assert!(other.authorizations().len() >= 4);
    assert_eq!(other.authorizations().into_iter().flatten().next(), None);
    // And one where the same token would do.
    assert_eq!(fetched("strict").await.unwrap_err().kind(), ErrorKind::Unauthorized);
    assert_eq!(strict.authorizations().into_iter().flatten().next(), None);
    for place in ["loop", "file"] {
        let error = fetched(place).await.unwrap_err();
        assert!(error.to_string().contains("redirect") || error.to_string().contains("302"), "{error}");
    }
}

#[tokio::test]
async fn without_credentials_redirects_are_followed_as_git_does() {
    let upstream = Upstream::new();
    let other = GitHttp::start(&upstream, |_| None).await;
    let to = other.url("");
    let first = GitHttp::start(&upstream, move |seen| {
        let to = format!("{to}{}?service=git-upload-pack", seen.path);
        Some(status(301).header("location", to).body(Body::empty()).unwrap())
    })
    .await;
    let bench = Bench::new();
    let tree = get(&bench, &first.url("/repo/.git"), "main").await.unwrap();
    assert_eq!(bench.names(&tree), ["a", "sub", "sub/b"]);
}

/// An answer to what git asks first, in the first version of its protocol.
fn listing(lines: &[String]) -> Response {
    let packet = |text: &str| format!("{:04x}{text}", text.len() + 4);
    let mut body = packet("# service=git-upload-pack\n") + "0000";
    for line in lines {
        body += &packet(line);
    }
    let kind = "application/x-git-upload-pack-advertisement";
    status(200).header("content-type", kind).body(Body::from(body + "0000")).unwrap()
}

#[tokio::test]
async fn what_a_lying_server_lists_is_no_option_and_no_path() {
    let upstream = Upstream::new();
    let marker = upstream.dir.path().join("ran");
    let sha = "1".repeat(40);
    for branch in [
        format!("--upload-pack=touch {}", marker.display()),
        "refs/heads/-x".to_owned(),
        "refs/heads/../../../../etc/passwd".to_owned(),
        "refs/heads/x y".to_owned(),
    ] {
        let (sha, name) = (sha.clone(), branch.clone());
        let server = GitHttp::start(&upstream, move |_| {
            let capabilities = format!("symref=HEAD:{name} agent=git/2");
            Some(listing(&[format!("{sha} HEAD\0{capabilities}\n"), format!("{sha} {name}\n")]))
        })
        .await;
        let bench = Bench::new();
        let error = get(&bench, &server.url("/repo/.git"), "").await.unwrap_err();
        assert!(
            matches!(error, SourceError::GitNotFound { .. } | SourceError::Git { .. }),
            "{branch}: {error}"
        );
        assert!(!marker.exists());
    }
}

#[tokio::test]
async fn endless_silent_and_senseless_servers_end() {
    let upstream = Upstream::new();
    let line = "0032".to_owned() + &"1".repeat(40) + " x\n";
    let server = GitHttp::start(&upstream, move |seen| {
        let kind = "application/x-git-upload-pack-advertisement";
        let answer = status(200).header("content-type", kind);
        let chunk = bytes::Bytes::from(line.repeat(4096));
        Some(match seen.path.split('/').nth(1).unwrap() {
            "endless" => {
                let chunks = futures::stream::repeat_with(move || Ok::<_, std::io::Error>(chunk.clone()));
                answer.body(Body::from_stream(chunks)).unwrap()
            }
            "silent" => answer
                .body(Body::from_stream(futures::stream::pending::<Result<bytes::Bytes, std::io::Error>>()))
                .unwrap(),
            "nonsense" => answer.body(Body::from("<html>")).unwrap(),
            code => empty(code.parse().unwrap()),
        })
    })
    .await;
    let limits =
        SourceLimits { git_stall: Duration::from_secs(1), git_memory: 64 << 20, ..SourceLimits::default() };
    let bench = Bench::with(limits, lapstrake_session::Sessions::new());
    for place in ["endless", "silent", "nonsense", "404", "500"] {
        let error = get(&bench, &server.url(&format!("/{place}/r")), "main").await.unwrap_err();
        assert!(
            matches!(&error, SourceError::Git { command, .. } if command == "ls-remote"),
            "{place}: {error}"
        );
        let kind = if place == "404" { ErrorKind::NotFound } else { ErrorKind::Unavailable };
        assert_eq!(error.kind(), kind, "{place}: {error}");
    }
}

#[tokio::test]
async fn a_pack_that_is_cut_off_leaves_nothing_and_the_next_fetch_works() {
    let upstream = Upstream::new();
    let noise: Vec<u8> = (0..200_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    std::fs::write(upstream.path("repo").join("large"), &noise).unwrap();
    upstream.commit_all("repo");
    let cut = Arc::new(Mutex::new(true));
    let broken = Arc::clone(&cut);
    let inner = GitHttp::start(&upstream, |_| None).await;
    let (to, root) = (inner.url(""), upstream.path("repo"));
    let packed = {
        git(&root, &["pack-objects", "--all", "-q", "../cut"]);
        let pack =
            std::fs::read_dir(upstream.dir.path()).unwrap().filter_map(Result::ok).map(|entry| entry.path());
        std::fs::read(
            pack.into_iter().find(|path| path.extension().is_some_and(|end| end == "pack")).unwrap(),
        )
        .unwrap()
    };
    let server = GitHttp::start(&upstream, move |seen| {
        if seen.method == "POST" && *broken.lock() && seen.header("git-protocol").is_some() {
            // Protocol 2 asks for the references by POST first; this is a fetch's answer, and then silence.
            let packet = |data: &[u8]| [format!("{:04x}", data.len() + 4).as_bytes(), data].concat();
            let mut body = packet(b"packfile\n");
            for chunk in packed[..packed.len() / 2].chunks(60_000) {
                body.extend(packet(&[b"\x01", chunk].concat()));
            }
            let kind = "application/x-git-upload-pack-result";
            return Some(status(200).header("content-type", kind).body(Body::from(body)).unwrap());
        }
        None
    })
    .await;
    drop((inner, to));
    let bench = Bench::new();
    let head = upstream.head("repo");
    // By commit: nothing is listed first.
    let url = server.url("/repo/.git");
    get(&bench, &url, &head).await.unwrap_err();
    let rubbish = |dir: &Path| {
        let mut found = Vec::new();
        let mut waiting = vec![dir.to_owned()];
        while let Some(dir) = waiting.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    waiting.push(path);
                } else if path.to_str().unwrap().contains("tmp_") {
                    found.push(path);
                }
            }
        }
        found
    };
    assert_eq!(rubbish(bench.dir.path()), Vec::<std::path::PathBuf>::new());
    *cut.lock() = false;
    let attrs = [("git.fullurl", url.as_str())];
    let (digest, tree) = bench.get(&bench.context(), &format!("git://h/r#{head}"), &attrs).await.unwrap();
    assert_eq!(digest, key(&head));
    assert_eq!(bench.read(&tree, "large"), noise);
}
