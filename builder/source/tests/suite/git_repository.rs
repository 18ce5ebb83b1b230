//! The repository that is kept for a remote: shared, bounded, and whole whatever is killed.

use std::path::{Path, PathBuf};

use lapstrake_builder_source::{BuildMark, ErrorKind, SourceContext, SourceLimits};

use crate::common::{
    Bench,
    git::{Upstream, git, key},
};

#[tokio::test]
async fn a_build_sees_one_state_of_a_branch_and_asks_once() {
    let (upstream, bench) = (Upstream::new(), Bench::new());
    let (mark, url) = (BuildMark::default(), upstream.url("repo"));
    let cx = || SourceContext { builds: vec![mark.clone()], ..bench.context() };
    let first = upstream.head("repo");
    let get = async |cx: SourceContext, dir: &str| {
        let attrs = [("git.fullurl", url.as_str())];
        bench.get(&cx, &format!("git://h/r#main{dir}"), &attrs).await.unwrap()
    };
    assert_eq!(get(cx(), "").await.0, key(&first));
    let asked = upstream.served();
    let second = upstream.commit("repo", &[("a", "2"), ("sub/b", "new")]);
    let (digest, tree) = get(cx(), ":sub").await;
    assert_eq!(digest, key(&format!("{first}:sub")));
    assert_eq!(bench.read(&tree, "b"), b"2");
    assert_eq!(upstream.served(), asked);
    // Another build asks for itself, and then one that has the commit fetches nothing.
    assert_eq!(get(bench.context(), "").await.0, key(&second));
    let asked = upstream.served();
    assert_eq!(get(bench.context(), "").await.0, key(&second));
    assert_eq!(upstream.served(), asked + 1, "ls-remote, and no fetch");
}

#[tokio::test]
async fn a_remotes_repository_stays_small_and_whole() {
    let upstream = Upstream::new();
    let limits = SourceLimits { git_packs: 4, ..SourceLimits::default() };
    let bench = Bench::with(limits, lapstrake_session::Sessions::new());
    let mut commits = Vec::new();
    for n in 0..12 {
        commits.push(upstream.commit("repo", &[("a", &n.to_string())]));
        let (_, tree) = upstream.get(&bench, "#main", &[]).await.unwrap();
        assert_eq!(bench.read(&tree, "a"), n.to_string().as_bytes());
    }
    let repository = shared_repository(bench.dir.path());
    let packs = std::fs::read_dir(repository.join("objects/pack")).unwrap();
    let packs =
        packs.filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|end| end == "pack"));
    assert!(packs.count() <= 5);
    let ask = |args: &[&str]| git(&repository, &[&["-c", "safe.directory=*"], args].concat());
    let kept = ask(&["for-each-ref", "--format=%(refname)", "refs/lapstrake"]);
    assert!(kept.lines().count() <= 8 && kept.contains(commits.last().unwrap()), "{kept}");
    ask(&["fsck", "--connectivity-only"]);
    // One that is not there any more is fetched again.
    let (_, tree) = upstream.get(&bench, &format!("#{}:sub", commits[0]), &[]).await.unwrap();
    assert_eq!(bench.read(&tree, "b"), b"2");
}

/// The one bare repository below a directory.
fn shared_repository(dir: &Path) -> PathBuf {
    let mut waiting = vec![dir.to_owned()];
    while let Some(dir) = waiting.pop() {
        if dir.ends_with("repository") && dir.join("HEAD").exists() {
            return dir;
        }
        let below = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        waiting.extend(below.filter(|path| path.is_dir() && !path.is_symlink()));
    }
    panic!("no repository")
}

#[tokio::test]
async fn what_a_killed_git_left_in_a_repository_does_no_harm_and_goes() {
    let (upstream, bench) = (Upstream::new(), Bench::new());
    upstream.get(&bench, "#main", &[]).await.unwrap();
    let repository = shared_repository(bench.dir.path());
    let head = upstream.commit("repo", &[("a", "2")]);
    let mut left = Vec::new();
    for name in [
        "shallow.lock",
        "packed-refs.lock",
        "objects/pack/tmp_pack_x1",
        "objects/pack/tmp_idx_x1",
        "objects/aa/tmp_obj_x1",
        "objects/tmp_objdir-incoming-x/pack/tmp_pack_1",
    ] {
        left.push(repository.join(name));
    }
    left.push(repository.join(format!("refs/lapstrake/{head}.lock")));
    for path in &left {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "half").unwrap();
    }
    // A daemon that was killed, and another.
    bench.restart(SourceLimits::default());
    let (digest, tree) = upstream.get(&bench, "#main", &[]).await.unwrap();
    assert_eq!((digest, bench.read(&tree, "a")), (key(&head), b"2".to_vec()));
    for path in left {
        assert!(!path.exists(), "{}", path.display());
    }
}

#[tokio::test]
async fn a_cancelled_fetch_ends_and_leaves_the_repository_usable() {
    let upstream = Upstream::new();
    // Accepts, and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("git://{}/repo", silent.local_addr().unwrap());
    let bench = Bench::new();
    let commit = upstream.head("repo");
    let attrs = [("git.fullurl", url.as_str())];
    let source = bench.open(&format!("git://h/r#{commit}"), &attrs).unwrap();
    let cx = bench.context();
    let accepted = tokio::task::spawn_blocking(move || silent.accept().unwrap());
    let (fetched, _connection) = tokio::join!(source.fetch(&cx), async {
        let connection = accepted.await.unwrap();
        bench.cancel.cancel();
        connection
    });
    assert_eq!(fetched.unwrap_err().kind(), ErrorKind::Canceled);
}

#[tokio::test]
async fn git_stops_before_the_disk_is_full() {
    let upstream = Upstream::new();
    let limits = SourceLimits { git_spare: u64::MAX, ..SourceLimits::default() };
    let bench = Bench::with(limits, lapstrake_session::Sessions::new());
    let error = upstream.get(&bench, "#main", &[]).await.unwrap_err();
    assert!(error.to_string().contains("bytes are left on the disk"), "{error}");
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
