//! Git repositories as contexts, named contexts and sources of `ADD`, with logins that stay where they are.

#[allow(unreachable_pub)]
use std::fs;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::StatusCode;
use lapstrake_integration_cli::{
    Daemon, GitServer, Repositories, SshAgent, Sshd, git, lapstrake_command, saved_image,
};

use crate::common::{
    build, escape, eventually, is_running,
    needles::{Needles, told_by},
};

const TOKEN: &str = "t0ken-of-the-client-QxW7";
const PASSWORD: &str = "passw0rd-in-the-url-Zk29";

fn basic(user: &str, password: &str) -> String {
    format!("basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

/// A Dockerfile and what it copies, and a directory with another.
const FILES: &[(&str, &str)] = &[
    ("Dockerfile", "FROM busybox\nCOPY a /a\n"),
    ("a", "main\n"),
    ("sub/Dockerfile", "FROM busybox\nCOPY s /a\n"),
    ("sub/s", "sub\n"),
];

fn file(daemon: &Daemon, image: &str, path: &str) -> String {
    let image = saved_image(&daemon.docker().run(["save", image]).success().bytes);
    let node = image.tree.get(path).unwrap_or_else(|| panic!("no {path}"));
    String::from_utf8(node.content.clone()).unwrap()
}

/// Makes `module.git` a submodule of `r.git`, by a relative address.
fn add_module(repositories: &Repositories) {
    let work = repositories.directory().join("r.git.work");
    let module = repositories.directory().join("module.git").display().to_string();
    git(&work, &["-c", "protocol.file.allow=always", "submodule", "add", "-q", &module, "mod"]);
    git(&work, &["config", "-f", ".gitmodules", "submodule.mod.url", "../module.git"]);
    repositories.commit("r.git", &[]);
}

#[tokio::test]
async fn every_form_of_a_context_leads_to_its_tree() {
    let daemon = Daemon::with_base();
    let repositories = Repositories::new(&daemon.scratch().join("git"));
    let commit = repositories.commit("r.git", FILES);
    let bare = repositories.directory().join("r.git");
    git(&bare, &["tag", "-a", "v1", "-m", "v1"]);
    repositories.commit("r.git", &[("a", "second\n")]);
    git(&bare, &["branch", "feature/x", &commit]);
    let server = GitServer::start(&repositories, None);
    let url = server.url("r.git");
    for (version, form, content) in [
        (2, String::new(), "second\n"),
        (1, "#main".to_owned(), "second\n"),
        (2, "#main:sub".to_owned(), "sub\n"),
        (2, format!("#{commit}"), "main\n"),
        (1, format!("#{commit}:/sub/../sub"), "sub\n"),
        (2, "#refs/heads/feature/x".to_owned(), "main\n"),
        (1, "#v1".to_owned(), "main\n"),
        (2, "?ref=v1&subdir=sub".to_owned(), "sub\n"),
        (1, "?tag=v1".to_owned(), "main\n"),
        (2, "?branch=feature/x".to_owned(), "main\n"),
        (2, format!("?tag=v1&commit={}", &commit[..12]), "main\n"),
        (2, format!("?checksum={commit}&fetch-by-commit=1"), "main\n"),
        (2, "?branch=main&submodules=false&keep-git-dir=1".to_owned(), "second\n"),
    ] {
        let query = format!("version={version}&t=form&remote={}", escape(&format!("{url}{form}")));
        let answer = build(&daemon, &query, Vec::new()).await;
        assert_eq!(answer.status, StatusCode::OK, "{form} {}", answer.body);
        assert_eq!(file(&daemon, "form", "a"), content, "{form}");
    }
    for (form, words) in [
        ("#absent", "ref absent"),
        ("#main:absent", "absent"),
        ("?tag=v1&checksum=0123456", "expected checksum to match 0123456"),
        ("?tag=v1&branch=main", "branch conflicts with tag"),
        ("?nonsense=1", "unexpected query"),
        ("#--upload-pack=x", "invalid git ref"),
    ] {
        let query = format!("version=2&remote={}", escape(&format!("{url}{form}")));
        let error = build(&daemon, &query, Vec::new()).await.error();
        assert!(error.contains(words), "{form}: {error}");
    }
}

#[tokio::test]
async fn a_context_keeps_its_repository_if_that_is_asked_for() {
    let daemon = Daemon::with_base();
    let repositories = Repositories::new(&daemon.scratch().join("git"));
    let commit = repositories.commit("r.git", &[("Dockerfile", "FROM busybox\nCOPY .git/HEAD /head\n")]);
    let server = GitServer::start(&repositories, None);
    let url = server.url("r.git");
    let argument = escape("{\"BUILDKIT_CONTEXT_KEEP_GIT_DIR\":\"1\"}");
    for query in [
        format!("version=2&t=kept&buildargs={argument}&remote={}", escape(&url)),
        format!("version=1&t=kept&buildargs={argument}&remote={}", escape(&url)),
        format!("version=2&t=kept&remote={}", escape(&format!("{url}?keep-git-dir=true"))),
    ] {
        let answer = build(&daemon, &query, Vec::new()).await;
        assert_eq!(answer.status, StatusCode::OK, "{query} {}", answer.body);
        assert_eq!(file(&daemon, "kept", "head").trim(), commit, "{query}");
        daemon.docker().run(["rmi", "kept"]).success();
    }
    let answer = build(&daemon, &format!("version=2&remote={}", escape(&url)), Vec::new()).await;
    assert!(answer.error().contains(".git/HEAD"), "{}", answer.body);
}

#[test]
fn the_docker_cli_builds_remote_contexts_both_ways() {
    let daemon = Daemon::with_base();
    let repositories = Repositories::new(&daemon.scratch().join("git"));
    repositories.commit("r.git", FILES);
    let server = GitServer::start(&repositories, None);
    let docker = daemon.docker();
    // With BuildKit the daemon fetches; without, the client does.
    let url = format!("{}#main:sub", server.url("r.git"));
    docker.buildkit().run(["build", "-t", "modern", &url]).success();
    assert_eq!(file(&daemon, "modern", "a"), "sub\n");
    let asked = server.log().len();
    let again = docker.buildkit().run(["build", "-t", "modern", &url]).success();
    assert!(again.all().contains("CACHED"), "{}", again.all());
    // The same commit: its references are listed, in as many requests as that takes, and nothing is fetched.
    let listed: Vec<_> = server.log().split_off(asked);
    assert!(!listed.is_empty() && listed.len() <= 2, "{listed:?}");
    let classic =
        docker.classic().command(["build", "-t", "classic", &url]).env("GIT_CONFIG_NOSYSTEM", "1").output();
    let classic = classic.unwrap();
    assert!(classic.status.success(), "{}", String::from_utf8_lossy(&classic.stderr));
    assert_eq!(file(&daemon, "classic", "a"), "sub\n");
}

#[test]
fn a_repository_may_be_added_and_be_a_named_context() {
    let daemon = Daemon::with_base();
    let repositories = Repositories::new(&daemon.scratch().join("git"));
    let commit = repositories.commit("r.git", FILES);
    let server = GitServer::start(&repositories, None);
    let url = server.url("r.git");
    let (root, context) = (daemon.scratch().join("own"), daemon.scratch().join("context"));
    fs::create_dir_all(&context).unwrap();
    fs::write(
        context.join("Dockerfile"),
        format!(
            "FROM named AS base\nFROM scratch\nCOPY --from=base sub/s /based\nADD {url}#main:sub /added/\nADD --keep-git-dir=true --checksum={commit} {url}#main /kept/\n\
             COPY --from=named a /copied\n"
        ),
    )
    .unwrap();
    let out = daemon.scratch().join("out");
    let (root, context, out) = (root.to_str().unwrap(), context.to_str().unwrap(), out.display().to_string());
    let mut command = lapstrake_command(["build", "--root", root, "-o", &format!("type=local,dest={out}")]);
    let output =
        command.arg("--build-context").arg(format!("named={url}#main")).arg(context).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read = |path: &str| fs::read_to_string(format!("{out}/{path}")).unwrap();
    assert_eq!(
        (read("added/s"), read("copied"), read("kept/a")),
        ("sub\n".into(), "main\n".into(), "main\n".into())
    );
    assert_eq!(read("based"), "sub\n");
    assert_eq!(git(std::path::Path::new(&format!("{out}/kept")), &["rev-parse", "HEAD"]), commit);
    assert_eq!(git(std::path::Path::new(&format!("{out}/kept")), &["status", "--porcelain"]), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_open_repositories_and_are_in_nothing_that_is_left() {
    let daemon = Daemon::with_base_and(&["--debug"]);
    let repositories = Repositories::new(&daemon.scratch().join("git"));
    repositories.commit("module.git", &[("inner", "inner\n")]);
    repositories.commit("r.git", FILES);
    add_module(&repositories);
    let by_token = GitServer::start(&repositories, Some(&basic("x-access-token", TOKEN)));
    let by_password = GitServer::start(&repositories, Some(&basic("me", PASSWORD)));
    let login = |path: &str| format!("http://me:{PASSWORD}@{}/{path}", by_password.host());
    let needles =
        Needles::new(&[TOKEN, PASSWORD, &basic("x-access-token", TOKEN)[6..], &basic("me", PASSWORD)[6..]]);
    let mut told: Vec<(String, Vec<u8>)> = Vec::new();

    // In the URL of the context; it succeeds, and fails for three reasons.
    for (version, url, succeeds) in [
        (2, login("r.git#main"), true),
        (1, login("r.git#main"), true),
        (2, login("absent.git"), false),
        (2, login("r.git#absent"), false),
        (1, login("r.git?nonsense=1"), false),
        (2, login("r.git").replace("http://me", "http://you"), false),
    ] {
        let query = format!("version={version}&t=login&remote={}", escape(&url));
        let answer = build(&daemon, &query, Vec::new()).await;
        let error = answer.body.contains("errorDetail") || answer.status != StatusCode::OK;
        assert_eq!(!error, succeeds, "{}", answer.body);
        told.push((format!("the answer for {version}"), answer.body.into_bytes()));
    }
    assert_eq!(file(&daemon, "login", "a"), "main\n");

    // By the client's secret, for ADD, whose steps fail without.
    let context = daemon.scratch().join("context");
    fs::create_dir_all(&context).unwrap();
    fs::write(
        context.join("Dockerfile"),
        format!(
            "FROM busybox\nADD --keep-git-dir=true {}?submodules=0#main /r\nRUN grep -r . /r/.git/config\n",
            by_token.url("r.git")
        ),
    )
    .unwrap();
    fs::write(context.join("token"), TOKEN).unwrap();
    let docker = daemon.docker().buildkit();
    let secret = format!("id=GIT_AUTH_TOKEN.{},src={}", by_token.host(), context.join("token").display());
    let context = context.to_str().unwrap();
    let built = docker.run(["build", "--secret", &secret, "-t", "token", context]).success();
    told.push(("the build with a secret".to_owned(), built.all().into_bytes()));
    assert_eq!(file(&daemon, "token", "r/a"), "main\n");
    let refused = docker.run(["build", "--no-cache", "-t", "none", context]);
    // The commit is here already, but its reference has to be asked for.
    assert!(
        refused.all().contains("Authentication failed") || refused.all().contains("could not read"),
        "{}",
        refused.all()
    );
    told.push(("the build without".to_owned(), refused.all().into_bytes()));
    let root = daemon.scratch().join("own");
    let mut own = lapstrake_command(["build", "--debug", "--root", root.to_str().unwrap(), "-t", "own"]);
    let own = own.arg(login("r.git#main:sub")).output().unwrap();
    // There is no base image; everything before it has happened.
    told.push(("lapstrake build".to_owned(), [own.stdout, own.stderr].concat()));

    for (name, arguments) in [
        ("history", vec!["history", "--no-trunc", "login"]),
        ("inspect", vec!["inspect", "login", "token"]),
        ("df", vec!["system", "df", "-v"]),
        ("save", vec!["save", "login", "token"]),
    ] {
        told.push((name.to_owned(), daemon.docker().run(arguments).success().bytes));
    }
    told.extend(told_by(&daemon).await);
    for (place, bytes) in &told {
        needles.assert_not_in(place, bytes);
    }
    for directory in [&daemon.root(), &root] {
        assert!(needles.assert_not_below(directory) > 100_000, "{}", directory.display());
    }
}

#[test]
fn a_password_of_the_dockerfile_is_not_in_the_image_nor_in_what_is_told() {
    let daemon = Daemon::with_base();
    let repositories = Repositories::new(&daemon.scratch().join("git"));
    repositories.commit("module.git", &[("inner", "inner\n")]);
    repositories.commit("r.git", FILES);
    add_module(&repositories);
    let server = GitServer::start(&repositories, Some(&basic("me", PASSWORD)));
    let login = |path: &str| format!("http://me:{PASSWORD}@{}/{path}", server.host());
    let context = daemon.scratch().join("context");
    fs::create_dir_all(&context).unwrap();
    let dockerfile =
        |file: &str| format!("FROM busybox\nADD {} /r\nADD {} /head\n", login("r.git#main"), login(file));
    fs::write(context.join("Dockerfile"), dockerfile("module.git/HEAD")).unwrap();
    fs::write(context.join("Dockerfile.fails"), dockerfile("module.git/absent")).unwrap();
    let needles = Needles::new(&[PASSWORD, &basic("me", PASSWORD)[6..]]);
    let fails = context.join("Dockerfile.fails").display().to_string();
    let context = context.to_str().unwrap();
    let docker = daemon.docker().buildkit();
    let built = docker.run(["build", "-t", "added", context]).success();
    needles.assert_not_in("the display", built.all().as_bytes());
    // The excerpt of the Dockerfile is the author's own words.
    let failed = docker.run(["build", "-f", &fails, context]).failure().all();
    let words: Vec<&str> =
        failed.lines().filter(|line| line.contains("404") && !line.contains(" | ")).collect();
    assert!(!words.is_empty(), "{failed}");
    needles.assert_not_in("the error", words.join("\n").as_bytes());
    assert_eq!(file(&daemon, "added", "r/mod/inner"), "inner\n");
    for arguments in [vec!["history", "--no-trunc", "added"], vec!["inspect", "added"], vec!["save", "added"]]
    {
        needles.assert_not_in(arguments[0], &docker.run(arguments.clone()).success().bytes);
    }
    needles.assert_not_in("the listing", &docker.run(["system", "df", "-v"]).success().bytes);
    needles.assert_not_in("the log", daemon.log().as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn ssh_remotes_are_reached_with_the_clients_agent() {
    let daemon = Daemon::with_base();
    let scratch = daemon.scratch();
    let agent = SshAgent::start(&scratch);
    let sshd = Sshd::start(&scratch.join("sshd"), &agent);
    let repositories = Repositories::new(&scratch.join("git"));
    repositories.commit("module.git", &[("inner", "inner\n")]);
    repositories.commit("r.git", FILES);
    add_module(&repositories);
    let url = sshd.url(&repositories.directory().join("r.git"));
    let context = scratch.join("context");
    fs::create_dir_all(&context).unwrap();
    fs::write(context.join("Dockerfile"), format!("FROM busybox\nADD {url}#main /r\n")).unwrap();
    let ssh = format!("default={}", agent.socket.display());
    let docker = daemon.docker().buildkit();
    docker.run(["build", "--ssh", &ssh, "-t", "ssh", context.to_str().unwrap()]).success();
    assert_eq!(file(&daemon, "ssh", "r/a"), "main\n");
    assert_eq!(file(&daemon, "ssh", "r/mod/inner"), "inner\n");
    // Not without, though the commit is here.
    let refused = docker.run(["build", "--no-cache", context.to_str().unwrap()]).failure();
    assert!(refused.all().contains("no SSH key \"default\" forwarded from the client"), "{}", refused.all());
    // Nor with a key that nobody knows.
    let stranger = scratch.join("stranger");
    fs::create_dir_all(&stranger).unwrap();
    let stranger = SshAgent::start(&stranger);
    let ssh_of_stranger = format!("default={}", stranger.socket.display());
    let arguments = ["build", "--no-cache", "--ssh", &ssh_of_stranger, context.to_str().unwrap()];
    let refused = docker.run(arguments).failure();
    assert!(refused.all().contains("Permission denied"), "{}", refused.all());

    // As a context, without a daemon.
    let (root, out) = (scratch.join("own"), scratch.join("out"));
    let output = format!("type=local,dest={}", out.display());
    repositories.commit("plain.git", &[("Dockerfile", "FROM scratch\nCOPY a /a\n"), ("a", "plain\n")]);
    let url = sshd.url(&repositories.directory().join("plain.git"));
    let mut command =
        lapstrake_command(["build", "--root", root.to_str().unwrap(), "--ssh", &ssh, "-o", &output]);
    let built = command.arg(format!("{url}#main")).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    assert_eq!(fs::read_to_string(out.join("a")).unwrap(), "plain\n");
}

#[tokio::test]
async fn git_ends_with_its_build_and_with_the_daemon() {
    let mut daemon = Daemon::with_base();
    // Takes every connection, and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    // Ends with the test's process.
    std::thread::spawn(move || silent.incoming().collect::<Vec<_>>());
    let url = format!("git://{address}/ends-with-its-build");
    let path = format!("/build?version=2&remote={}", escape(&url));
    let id = daemon.process().id().to_string();
    // A request whose answer nobody reads.
    let ask = || {
        use std::io::Write as _;
        let mut stream = std::os::unix::net::UnixStream::connect(daemon.socket()).unwrap();
        write!(stream, "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").unwrap();
        stream
    };
    let connection = ask();
    eventually("git runs", || is_running(&url)).await;
    drop(connection);
    eventually("git ends when nobody waits", || !is_running(&url)).await;
    let _connection = ask();
    eventually("git runs again", || is_running(&url)).await;
    let killed = std::process::Command::new("kill").args(["-KILL", &id]).status();
    assert!(killed.unwrap().success());
    eventually("git ends with the daemon", || !is_running(&url)).await;
    daemon.kill_and_restart();
    assert_eq!(fs::read_dir(daemon.root().join("git")).map_or(0, Iterator::count), 0);
}
