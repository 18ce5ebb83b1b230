//! Git repositories, from git's own daemon and from a web server of plain files.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "../../../session/tests/common/mod.rs"]
#[allow(unreachable_pub, unused_imports, reason = "the session's own tests use the rest")]
mod session;

use std::{
    collections::HashMap,
    net::{TcpListener, TcpStream},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::body::Body;
use common::{
    Bench,
    server::{Server, empty, status},
};
use lapstrake_builder_source::{ErrorKind, SourceError, SourceKind, SourceLimits};
use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_store::{SnapshotRecords as _, Tree};
use session::Client;

const TIME: &str = "1700000000 +0000";

fn git(dir: &Path, args: &[&str]) -> String {
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
struct Upstream {
    dir: tempfile::TempDir,
    host: String,
    served: Arc<AtomicUsize>,
}

impl Upstream {
    /// With the files `a` and `sub/b` in one commit on `main`.
    fn new() -> Upstream {
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

    fn path(&self, repo: &str) -> PathBuf {
        self.dir.path().join(repo)
    }

    fn init(&self, repo: &str) {
        std::fs::create_dir(self.path(repo)).unwrap();
        git(&self.path(repo), &["init", "-q"]);
    }

    fn commit(&self, repo: &str, files: &[(&str, &str)]) -> String {
        for (name, text) in files {
            let path = self.path(repo).join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        self.commit_all(repo)
    }

    fn commit_all(&self, repo: &str) -> String {
        git(&self.path(repo), &["add", "-A"]);
        git(&self.path(repo), &["commit", "-q", "-m", "change"]);
        self.head(repo)
    }

    fn head(&self, repo: &str) -> String {
        git(&self.path(repo), &["rev-parse", "HEAD"])
    }

    fn url(&self, repo: &str) -> String {
        format!("git://{}/{repo}", self.host)
    }

    fn served(&self) -> usize {
        self.served.load(Ordering::SeqCst)
    }

    async fn get(
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

fn key(text: &str) -> Digest {
    Digest::sha256_of(format!("buildkit.source.v0:{text}"))
}

#[tokio::test]
async fn a_branch_is_pinned_to_its_commit_and_checked_out() {
    let (upstream, bench) = (Upstream::new(), Bench::new());
    let head = upstream.head("repo");
    let (digest, tree) = upstream.get(&bench, "#main", &[]).await.unwrap();
    assert_eq!(digest, key(&head));
    let expected = [("a", "f:1"), ("sub", "d"), ("sub/b", "f:2")];
    assert_eq!(bench.list(&tree), expected.map(|(path, what)| (path.to_owned(), what.to_owned())));
    assert_eq!(bench.metadata(&tree, "a").mode() & 0o7777, 0o644);
    // The default branch is the same commit, and so the same tree.
    let (again, default) = upstream.get(&bench, "", &[]).await.unwrap();
    assert_eq!((again, default), (digest, tree));
    let source = bench.open(&format!("git://{}/repo#main", upstream.host), &[]).unwrap();
    assert_eq!(source.kind(), SourceKind::Git);
    assert_eq!(source.description(), format!("git snapshot for https://{}/repo#main", upstream.host));
}

#[tokio::test]
async fn a_branch_that_moves_on_is_fetched_again_and_a_commit_is_asked_for_once() {
    let (upstream, bench) = (Upstream::new(), Bench::new());
    let first = upstream.head("repo");
    upstream.get(&bench, "#main", &[]).await.unwrap();
    let second = upstream.commit("repo", &[("a", "changed")]);
    let (digest, tree) = upstream.get(&bench, "#main", &[]).await.unwrap();
    assert_eq!(digest, key(&second));
    assert_eq!(bench.read(&tree, "a"), b"changed");
    let before = upstream.served();
    let (digest, tree) = upstream.get(&bench, &format!("#{first}"), &[]).await.unwrap();
    assert_eq!(digest, key(&first));
    assert_eq!(bench.read(&tree, "a"), b"1");
    assert_eq!(upstream.served(), before, "the commit is here");
}

#[tokio::test]
async fn what_was_pinned_is_fetched_even_if_the_branch_has_moved() {
    let (upstream, bench) = (Upstream::new(), Bench::new());
    let url = upstream.url("repo");
    let identifier = format!("git://{}/repo#main", upstream.host);
    let source = bench.open(&identifier, &[("git.fullurl", url.as_str())]).unwrap();
    let cx = bench.context();
    source.pin(&cx).await.unwrap();
    upstream.commit("repo", &[("a", "changed")]);
    assert_eq!(bench.read(&source.fetch(&cx).await.unwrap(), "a"), b"1");
}

#[tokio::test]
async fn a_commit_deep_in_the_history_is_found_by_name() {
    let (upstream, bench) = (Upstream::new(), Bench::new());
    let first = upstream.head("repo");
    for n in 0..3 {
        upstream.commit("repo", &[("a", &n.to_string())]);
    }
    let (digest, tree) = upstream.get(&bench, &format!("#{first}:sub"), &[]).await.unwrap();
    assert_eq!(digest, key(&format!("{first}:sub")));
    assert_eq!(bench.list(&tree), [("b".to_owned(), "f:2".to_owned())]);
    let absent = "a".repeat(40);
    let error = upstream.get(&bench, &format!("#{absent}"), &[]).await.unwrap_err();
    assert!(error.to_string().contains(&absent), "{error}");
}

#[tokio::test]
async fn an_annotated_tag_counts_as_its_commit_unless_it_is_to_be_seen() {
    let (upstream, bench) = (Upstream::new(), Bench::new());
    let repo = upstream.path("repo");
    git(&repo, &["tag", "-a", "v1", "-m", "one"]);
    let (commit, tag) = (upstream.head("repo"), git(&repo, &["rev-parse", "v1"]));
    assert_ne!(commit, tag);
    assert_eq!(upstream.get(&bench, "#v1", &[]).await.unwrap().0, key(&commit));
    let kept = upstream.get(&bench, "#v1", &[("git.keepgitdir", "true")]).await.unwrap();
    assert_eq!(kept.0, key(&format!("{tag}.git#refs/tags/v1")));
    let checkout = bench.directory(&kept.1);
    assert_eq!(git(&checkout, &["-c", "safe.directory=*", "rev-parse", "v1"]), tag);
    assert_eq!(git(&checkout, &["-c", "safe.directory=*", "rev-parse", "HEAD"]), commit);
}

#[tokio::test]
async fn a_kept_git_dir_has_the_branch_and_the_remote_and_is_clean() {
    let (upstream, bench) = (Upstream::new(), Bench::new());
    let head = upstream.head("repo");
    let (digest, tree) = upstream.get(&bench, "#main", &[("git.keepgitdir", "true")]).await.unwrap();
    assert_eq!(digest, key(&format!("{head}.git#refs/heads/main")));
    let checkout = bench.directory(&tree);
    let ask = |args: &[&str]| git(&checkout, &[&["-c", "safe.directory=*"], args].concat());
    assert_eq!(ask(&["rev-parse", "HEAD", "main"]), format!("{head}\n{head}"));
    assert_eq!(ask(&["remote", "get-url", "origin"]), upstream.url("repo"));
    assert_eq!(ask(&["status", "--porcelain"]), "");
    assert!(!checkout.join(".git/FETCH_HEAD").exists());
    // With a directory there is nothing that it could be the repository of.
    let (_, tree) = upstream.get(&bench, "#main:sub", &[("git.keepgitdir", "true")]).await.unwrap();
    assert_eq!(bench.names(&tree), ["b"]);
}

#[tokio::test]
async fn a_checksum_must_be_the_commits() {
    let (upstream, bench) = (Upstream::new(), Bench::new());
    let head = upstream.head("repo");
    upstream.get(&bench, "#main", &[("git.checksum", &head[..8])]).await.unwrap();
    let error = upstream.get(&bench, "#main", &[("git.checksum", "0123456")]).await.unwrap_err();
    assert!(error.to_string().contains("expected checksum to match 0123456"), "{error}");
    let before = upstream.served();
    let attrs = [("git.checksum", head.as_str()), ("git.fetchbycommit", "true")];
    assert_eq!(upstream.get(&bench, "#main", &attrs).await.unwrap().0, key(&head));
    assert_eq!(upstream.served(), before);
}

#[tokio::test]
async fn files_may_be_as_old_as_the_commit() {
    let (upstream, bench) = (Upstream::new(), Bench::new());
    std::os::unix::fs::symlink("a", upstream.path("repo").join("link")).unwrap();
    let head = upstream.commit_all("repo");
    let (digest, tree) = upstream.get(&bench, "#main", &[("git.mtime", "commit")]).await.unwrap();
    assert_eq!(digest, key(&format!("{head}(mtime=commit)")));
    for name in ["a", "sub", "sub/b", "link", "."] {
        assert_eq!(bench.metadata(&tree, name).mtime(), 1_700_000_000, "{name}");
    }
}

#[tokio::test]
async fn submodules_come_along_and_leave_no_trace_of_this_machine() {
    let (upstream, bench) = (Upstream::new(), Bench::new());
    upstream.init("module");
    upstream.commit("module", &[("inner", "m")]);
    let module = upstream.url("module");
    git(&upstream.path("repo"), &["submodule", "add", "-q", &module, "mod"]);
    // A relative one, too.
    git(&upstream.path("repo"), &["submodule", "add", "-q", &module, "rel"]);
    git(&upstream.path("repo"), &["config", "-f", ".gitmodules", "submodule.rel.url", "../module"]);
    let head = upstream.commit_all("repo");
    let (_, tree) = upstream.get(&bench, "#main", &[]).await.unwrap();
    let names = bench.names(&tree);
    assert_eq!(names, [".gitmodules", "a", "mod", "mod/inner", "rel", "rel/inner", "sub", "sub/b"]);
    let (digest, tree) = upstream.get(&bench, "#main", &[("git.skipsubmodules", "true")]).await.unwrap();
    assert_eq!(digest, key(&format!("{head}(skip-submodules)")));
    assert!(!bench.names(&tree).contains(&"mod/inner".to_owned()));
}

#[tokio::test]
async fn a_submodule_on_this_machine_is_refused() {
    let (upstream, bench) = (Upstream::new(), Bench::new());
    upstream.init("secret");
    upstream.commit("secret", &[("key", "k")]);
    let path = format!("file://{}", upstream.path("secret").display());
    git(&upstream.path("repo"), &["submodule", "add", "-q", &path, "mod"]);
    upstream.commit_all("repo");
    for attrs in [vec![], vec![("git.keepgitdir", "true")]] {
        let error = upstream.get(&bench, "#main", &attrs).await.unwrap_err();
        assert!(error.to_string().contains("transport 'file' not allowed"), "{error}");
    }
}

#[tokio::test]
async fn a_directory_behind_a_symlink_is_refused() {
    let (upstream, bench) = (Upstream::new(), Bench::new());
    for (name, target) in [("out", "/etc"), ("up", "../../../.."), ("in", "sub")] {
        std::os::unix::fs::symlink(target, upstream.path("repo").join(name)).unwrap();
    }
    upstream.commit_all("repo");
    for subdir in ["out", "up", "in", "out/ssh", "a"] {
        let error = upstream.get(&bench, &format!("#main:{subdir}"), &[]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{subdir}: {error}");
    }
    let error = upstream.get(&bench, "#main:absent", &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    bench.collect();
    assert_eq!(
        bench.local.records.all().unwrap().len(),
        1,
        "nothing is left of what failed, but the repository"
    );
    // Up is not out: the path is cleaned as one in a chroot.
    let (_, tree) = upstream.get(&bench, "#main:../../sub", &[]).await.unwrap();
    assert_eq!(bench.names(&tree), ["b"]);
}

#[tokio::test]
async fn hooks_filters_and_configuration_of_a_repository_run_nothing() {
    let (upstream, bench) = (Upstream::new(), Bench::new());
    let marker = upstream.dir.path().join("ran");
    let run = format!("touch {}", marker.display());
    upstream.commit(
        "repo",
        &[
            (".gitattributes", "* filter=evil\n"),
            (".gitconfig", &format!("[filter \"evil\"]\n\tsmudge = {run}\n[core]\n\tfsmonitor = {run}\n")),
            ("hooks/post-checkout", &format!("#!/bin/sh\n{run}\n")),
            (
                ".gitmodules",
                &format!("[submodule \"x\"]\n\tpath = x\n\turl = https://h/x\n\tupdate = \"!{run}\"\n"),
            ),
        ],
    );
    // git itself refuses such a .gitmodules; without it, the rest does nothing.
    let _ = upstream.get(&bench, "#main", &[]).await;
    upstream.get(&bench, "#main", &[("git.skipsubmodules", "true")]).await.unwrap();
    assert!(!marker.exists());
}

#[tokio::test]
async fn what_is_not_there_is_told() {
    let (upstream, bench) = (Upstream::new(), Bench::new());
    let error = upstream.get(&bench, "#nobranch", &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("ref nobranch"), "{error}");
    let url = upstream.url("absent");
    let error = bench.get(&bench.context(), "git://h/r", &[("git.fullurl", url.as_str())]).await.unwrap_err();
    assert!(matches!(&error, SourceError::Git { command, .. } if command == "ls-remote"), "{error}");
    assert!(error.to_string().contains(&url), "{error}");
}

#[tokio::test]
async fn a_cancelled_fetch_ends_at_once() {
    // It accepts connections, and never answers.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bench = Bench::new();
    let cx = bench.context();
    let url = format!("git://{}/r", listener.local_addr().unwrap());
    let source = bench.open("git://h/r#main", &[("git.fullurl", url.as_str())]).unwrap();
    let pinning = tokio::spawn(async move { source.pin(&cx).await });
    let _connection = listener.accept().await.unwrap();
    bench.cancel.cancel();
    assert_eq!(pinning.await.unwrap().unwrap_err().kind(), ErrorKind::Canceled);
}

/// A web server of the files of a bare repository, for who knows the token.
async fn plain_files(upstream: &Upstream, authorization: &'static str) -> Server {
    let bare = upstream.path("bare");
    git(upstream.dir.path(), &["clone", "-q", "--bare", "repo", "bare"]);
    git(&bare, &["update-server-info"]);
    Server::start(move |seen| {
        if seen.header("authorization") != Some(authorization) {
            return status(401).header("www-authenticate", "Basic").body(Body::empty()).unwrap();
        }
        let path = seen.path.strip_prefix("/r.git/").unwrap_or_default();
        match std::fs::read(bare.join(path)) {
            Ok(bytes) => status(200).body(Body::from(bytes)).unwrap(),
            Err(_) => empty(404),
        }
    })
    .await
}

#[tokio::test]
async fn a_clients_token_opens_a_private_repository_on_a_server_of_plain_files() {
    let upstream = Upstream::new();
    // x-access-token:t0ken
    let server = plain_files(&upstream, "basic eC1hY2Nlc3MtdG9rZW46dDBrZW4=").await;
    let client = Client {
        secrets: HashMap::from([("GIT_AUTH_TOKEN".to_owned(), b"t0ken\n".to_vec())]),
        ..Client::default()
    };
    let connected = client.connect_as(session::info("s1")).await;
    let bench = Bench::with(SourceLimits::default(), connected.sessions.clone());
    let url = server.url("/r.git");
    let attrs = [("git.fullurl", url.as_str()), ("git.authtokensecret", "GIT_AUTH_TOKEN")];
    let (digest, tree) = bench.get(&bench.context_of("s1"), "git://h/r#main", &attrs).await.unwrap();
    assert_eq!(digest, key(&upstream.head("repo")));
    assert_eq!(bench.names(&tree), ["a", "sub", "sub/b"]);
    let (_, tree) = bench
        .get(
            &bench.context_of("s1"),
            "git://h/r#main",
            &[attrs.as_slice(), &[("git.keepgitdir", "true")]].concat(),
        )
        .await
        .unwrap();
    let config = String::from_utf8(bench.read(&tree, ".git/config")).unwrap();
    assert!(
        config.contains(&url) && !config.contains("t0ken") && !config.contains("uthorization"),
        "{config}"
    );
    let error = bench.get(&bench.context(), "git://h/r#main", &attrs).await.unwrap_err();
    assert!(matches!(error, SourceError::Git { .. }), "{error}");
}

#[tokio::test]
async fn a_password_in_the_url_is_sent_and_never_shown() {
    let upstream = Upstream::new();
    // me:pa ss
    let server = plain_files(&upstream, "basic bWU6cGEgc3M=").await;
    let bench = Bench::new();
    let url = format!("http://me:pa%20ss@{}/r.git", server.host);
    bench.get(&bench.context(), "git://h/r#main", &[("git.fullurl", url.as_str())]).await.unwrap();
    let url = format!("http://me:wr%20ong@{}/r.git", server.host);
    let source = bench.open("git://h/r#main", &[("git.fullurl", url.as_str())]).unwrap();
    let error = source.pin(&bench.context()).await.unwrap_err();
    assert!(!error.to_string().contains("ong"), "{error}");
    assert!(!source.description().contains("ong"));
}

#[test]
fn what_could_be_taken_for_something_else_is_refused_before_git_runs() {
    let bench = Bench::new();
    for identifier in [
        "git://h/r#-x",
        "git://h/r#--upload-pack=touch /tmp/x",
        "git://h/r#a..b",
        "git://h/r#v*",
        "git://file:///etc#main",
        "git://ext::sh -c x",
        "git://-h/r",
        "git://h",
    ] {
        let error = bench.open(identifier, &[]).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{identifier}: {error}");
    }
    for (key, value, kind) in [
        ("git.fullurl", "file:///etc", ErrorKind::Invalid),
        ("git.checksum", "xyz", ErrorKind::Invalid),
        ("git.mtime", "now", ErrorKind::Invalid),
        ("git.fetchbycommit", "true", ErrorKind::Invalid),
        ("git.sig.pubkey", "key", ErrorKind::Unsupported),
        ("git.bundle", "docker-image+blob://x", ErrorKind::Unsupported),
    ] {
        let error = bench.open("git://h/r#main", &[(key, value)]).err().unwrap();
        assert_eq!(error.kind(), kind, "{key}: {error}");
    }
}

#[tokio::test]
async fn what_a_killed_daemon_left_is_removed() {
    let (upstream, bench) = (Upstream::new(), Bench::new());
    let root = bench.dir.path().join("git");
    for name in ["checkout-2", "ssh-3"] {
        std::fs::create_dir_all(root.join(name)).unwrap();
    }
    bench.restart(SourceLimits::default());
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0);
    upstream.get(&bench, "#main", &[]).await.unwrap();
}

#[tokio::test]
async fn repositories_are_in_the_build_cache_and_may_be_pruned() {
    let (upstream, bench) = (Upstream::new(), Bench::new());
    upstream.get(&bench, "#main", &[]).await.unwrap();
    let listed = || {
        let entries = bench.cache.usage().unwrap();
        entries
            .into_iter()
            .filter(|entry| entry.description.starts_with("shared git repo for "))
            .collect::<Vec<_>>()
    };
    let [repository] = listed().try_into().unwrap();
    assert!(repository.mutable && !repository.in_use && repository.size > 0, "{repository:?}");
    bench.cache.prune(&lapstrake_builder_cache::PruneRequest::default()).unwrap();
    assert_eq!(listed(), []);
    upstream.get(&bench, "#main", &[]).await.unwrap();
    assert_eq!(listed().len(), 1);
}
