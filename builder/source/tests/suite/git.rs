//! Git repositories, from git's own daemon and from a web server of plain files.

use std::{collections::HashMap, os::unix::fs::MetadataExt};

use axum::body::Body;
use lapstrake_builder_source::{ErrorKind, SourceError, SourceFacts, SourceKind, SourceLimits};
use lapstrake_layerstore_store::SnapshotRecords as _;

use crate::common::{
    Bench,
    git::{Upstream, git, key},
    server::{Server, empty, status},
};
use crate::session::{self, Client};

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
    let source = bench.open("git://x/repo#v1", &[("git.fullurl", &upstream.url("repo"))]).unwrap();
    let facts = source.facts(&bench.context()).await.unwrap();
    let reference = "refs/tags/v1".to_owned();
    assert_eq!(facts, SourceFacts::Commit { object: tag.clone(), reference, commit: Some(commit.clone()) });
    let objects = source.commit_objects(&bench.context()).await.unwrap().unwrap();
    assert_eq!(objects.tagged.as_ref(), Some(&commit));
    let object = |name: &str| git(&repo, &["cat-file", "-p", name]);
    assert_eq!(String::from_utf8(objects.commit).unwrap().trim_end(), object(&commit));
    assert_eq!(String::from_utf8(objects.tag.unwrap()).unwrap().trim_end(), object(&tag));
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
async fn submodules_name_no_option_no_program_and_no_path() {
    let (upstream, bench) = (Upstream::new(), Bench::new());
    let marker = upstream.dir.path().join("ran");
    let run = format!("touch {}", marker.display());
    upstream.init("module");
    let commit = upstream.commit("module", &[("inner", "m")]);
    let local = upstream.path("module").display().to_string();
    for (path, url) in [
        ("mod", format!("ext::sh -c {}", run.replace(' ', "% "))),
        ("mod", format!("--upload-pack={run}")),
        ("mod", format!("ssh://-oProxyCommand={run}/x")),
        ("mod", local.clone()),
        ("mod", format!("file://{local}")),
        ("mod", "../../../../../../../../etc".to_owned()),
        ("../outside", upstream.url("module")),
        ("link/mod", upstream.url("module")),
    ] {
        // As somebody writes it who does not ask git.
        upstream.init("evil");
        let repo = upstream.path("evil");
        std::fs::write(
            repo.join(".gitmodules"),
            format!("[submodule \"x\"]\n\tpath = {path}\n\turl = \"{url}\"\n"),
        )
        .unwrap();
        std::os::unix::fs::symlink(upstream.dir.path(), repo.join("link")).unwrap();
        git(&repo, &["add", "-A"]);
        if !path.starts_with("..") {
            let entry = format!("160000,{commit},{}", path.replace("link/", ""));
            git(&repo, &["update-index", "--add", "--cacheinfo", &entry]);
        }
        git(&repo, &["commit", "-q", "-m", "evil"]);
        for kept in ["false", "true"] {
            let address = upstream.url("evil");
            let attrs = [("git.fullurl", address.as_str()), ("git.keepgitdir", kept)];
            let got = bench.get(&bench.context(), "git://h/r#main", &attrs).await;
            // Where git takes no notice of it, nothing came of it.
            if let Ok((_, tree)) = got {
                assert!(bench.names(&tree).iter().all(|name| !name.ends_with("inner")), "{path} {url}");
            }
            assert!(!marker.exists() && !upstream.path("outside").exists() && !upstream.path("mod").exists());
        }
        std::fs::remove_dir_all(&repo).unwrap();
        bench.cache.prune(&lapstrake_builder_cache::PruneRequest::default()).unwrap();
    }
}

#[tokio::test]
async fn submodules_of_submodules_come_along() {
    let (upstream, bench) = (Upstream::new(), Bench::new());
    for (repo, file) in [("inner", "deep"), ("outer", "shallow")] {
        upstream.init(repo);
        upstream.commit(repo, &[(file, file)]);
    }
    git(&upstream.path("outer"), &["submodule", "add", "-q", &upstream.url("inner"), "in"]);
    upstream.commit_all("outer");
    git(&upstream.path("repo"), &["submodule", "add", "-q", &upstream.url("outer"), "out"]);
    upstream.commit_all("repo");
    let (_, tree) = upstream.get(&bench, "#main:out", &[]).await.unwrap();
    assert_eq!(bench.names(&tree), [".gitmodules", "in", "in/deep", "shallow"]);
    let (_, tree) = upstream.get(&bench, "#main", &[("git.keepgitdir", "true")]).await.unwrap();
    let checkout = bench.directory(&tree);
    assert_eq!(bench.read(&tree, "out/in/deep"), b"deep");
    assert_eq!(git(&checkout.join("out"), &["-c", "safe.directory=*", "status", "--porcelain"]), "");
    let told = std::fs::read_to_string(checkout.join(".git/modules/out/config")).unwrap();
    assert!(told.contains(&upstream.url("outer")), "{told}");
    assert!(!checkout.join(".git/hooks").exists(), "what this machine puts into new repositories");
}

#[tokio::test]
async fn files_of_lfs_stay_what_the_repository_has() {
    let (upstream, bench) = (Upstream::new(), Bench::new());
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n";
    // The attribute comes last: no filter of this test's machine is to see it.
    upstream.commit("repo", &[("big.bin", pointer)]);
    upstream.commit("repo", &[(".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n")]);
    let (_, tree) = upstream.get(&bench, "#main", &[]).await.unwrap();
    assert_eq!(bench.read(&tree, "big.bin"), pointer.as_bytes());
}

#[tokio::test]
async fn a_repository_may_name_its_objects_by_sha256() {
    let (upstream, bench) = (Upstream::new(), Bench::new());
    let repo = upstream.path("long");
    std::fs::create_dir(&repo).unwrap();
    git(&repo, &["init", "-q", "--object-format=sha256"]);
    let head = upstream.commit("long", &[("a", "long")]);
    assert_eq!(head.len(), 64);
    let url = upstream.url("long");
    for (reference, kept) in [("main", "false"), (head.as_str(), "false"), ("main", "true")] {
        let attrs = [("git.fullurl", url.as_str()), ("git.keepgitdir", kept)];
        let identifier = format!("git://h/long#{reference}");
        let (_, tree) = bench.get(&bench.context(), &identifier, &attrs).await.unwrap();
        assert_eq!(bench.read(&tree, "a"), b"long", "{reference} {kept}");
    }
}

#[tokio::test]
async fn references_of_every_form_lead_to_their_commit() {
    let (upstream, bench) = (Upstream::new(), Bench::new());
    let repo = upstream.path("repo");
    let first = upstream.head("repo");
    git(&repo, &["tag", "light"]);
    git(&repo, &["branch", "feature/x"]);
    git(&repo, &["update-ref", "refs/pull/7/head", &first]);
    let second = upstream.commit("repo", &[("a", "2")]);
    git(&repo, &["tag", "-a", "heavy", "-m", "heavy"]);
    // A branch of the same name comes first.
    git(&repo, &["tag", "feature/x", &second]);
    for (reference, commit) in [
        ("", &second),
        ("main", &second),
        ("heads/main", &second),
        ("refs/heads/main", &second),
        ("feature/x", &first),
        ("refs/tags/feature/x", &second),
        ("light", &first),
        ("refs/tags/light", &first),
        ("heavy", &second),
        ("refs/tags/heavy", &second),
        ("refs/pull/7/head", &first),
        ("pull/7/head", &first),
        (&first, &first),
    ] {
        let (digest, tree) = upstream.get(&bench, &format!("#{reference}"), &[]).await.unwrap();
        assert_eq!(digest, key(commit), "{reference}");
        assert_eq!(bench.read(&tree, "a"), if *commit == first { b"1" } else { b"2" }, "{reference}");
    }
    // As BuildKit's key has it: only what is below refs/tags/ counts as a tag.
    let tag = git(&repo, &["rev-parse", "refs/tags/heavy"]);
    assert_eq!(upstream.get(&bench, "#tags/heavy", &[]).await.unwrap().0, key(&tag));
    let error = upstream.get(&bench, &format!("#{}", &first[..8]), &[]).await.unwrap_err();
    assert!(error.to_string().contains("a commit is named by all of its digits"), "{error}");
}

#[tokio::test]
async fn references_that_are_moved_by_force_are_followed() {
    let (upstream, bench) = (Upstream::new(), Bench::new());
    let repo = upstream.path("repo");
    git(&repo, &["tag", "v1"]);
    git(&repo, &["branch", "dir"]);
    upstream.get(&bench, "#v1", &[]).await.unwrap();
    upstream.get(&bench, "#dir", &[]).await.unwrap();
    let first = upstream.head("repo");
    let second = upstream.commit("repo", &[("a", "2")]);
    git(&repo, &["tag", "-f", "v1"]);
    git(&repo, &["branch", "-D", "dir"]);
    // What was a branch is a directory of branches now.
    git(&repo, &["branch", "dir/branch"]);
    assert_eq!(upstream.get(&bench, "#v1", &[]).await.unwrap().0, key(&second));
    let (digest, tree) = upstream.get(&bench, "#dir/branch", &[]).await.unwrap();
    assert_eq!((digest, bench.read(&tree, "a")), (key(&second), b"2".to_vec()));
    // And one that does not know what it was.
    git(&repo, &["checkout", "-q", "--orphan", "fresh"]);
    upstream.commit("repo", &[("a", "3")]);
    git(&repo, &["branch", "-f", "main", "fresh"]);
    let (_, tree) = upstream.get(&bench, "#main", &[]).await.unwrap();
    assert_eq!(bench.read(&tree, "a"), b"3");
    let (_, tree) = upstream.get(&bench, &format!("#{first}"), &[]).await.unwrap();
    assert_eq!(bench.read(&tree, "a"), b"1");
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
async fn a_tag_that_was_replaced_since_it_was_pinned_is_fetched_by_its_own_name() {
    let upstream = Upstream::new();
    git(&upstream.path("repo"), &["tag", "-a", "v1", "-m", "one"]);
    upstream.commit("repo", &[("a", "changed")]);
    // x-access-token:t0ken
    let server = plain_files(&upstream, "basic eC1hY2Nlc3MtdG9rZW46dDBrZW4=").await;
    let client = Client {
        secrets: HashMap::from([("GIT_AUTH_TOKEN".to_owned(), b"t0ken\n".to_vec())]),
        ..Client::default()
    };
    let connected = client.connect_as(session::info("s1")).await;
    let bench = Bench::with(SourceLimits::default(), connected.sessions.clone());
    let (cx, url) = (bench.context_of("s1"), server.url("/r.git"));
    let attrs = [("git.fullurl", url.as_str()), ("git.authtokensecret", "GIT_AUTH_TOKEN")];
    let source = bench.open("git://h/r#v1", &attrs).unwrap();
    source.pin(&cx).await.unwrap();
    let bare = upstream.path("bare");
    git(&bare, &["tag", "-f", "v1", "main"]);
    git(&bare, &["update-server-info"]);
    assert_eq!(bench.read(&source.fetch(&cx).await.unwrap(), "a"), b"1");
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
        ("git.bundle", "docker-image+blob://x", ErrorKind::Invalid),
        ("git.bundle", "https://x", ErrorKind::Invalid),
    ] {
        let error = bench.open("git://h/r#main", &[(key, value)]).err().unwrap();
        assert_eq!(error.kind(), kind, "{key}: {error}");
    }
}
