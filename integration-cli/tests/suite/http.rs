//! The Engine API as clients without a library use it: requests on the unix socket.

#[allow(unreachable_pub)]
use std::{collections::HashMap, fs, io::Write, process::Command};

use base64::{Engine as _, prelude::BASE64_URL_SAFE};
use http::StatusCode;
use http_body_util::BodyExt;
use lapstrake_integration_cli::{
    BASE_IMAGE, Daemon, PASSWORD, Process, Registry, USER, git, git_daemon, require, saved_image,
};

use crate::common::{self, Files, archive, build, escape, eventually, is_running, leftovers, open, send};

/// What only BuildKit's Dockerfiles have.
const MODERN: &str = "# syntax=docker/dockerfile:1\nFROM busybox AS base\nRUN --mount=type=cache,target=/cache <<EOF\n\
                      echo run >> /cache/log\nwc -l < /cache/log > /runs\nEOF\nCOPY <<one <<two /files/\nfirst\none\nsecond\ntwo\n\
                      FROM base\nCOPY --chmod=600 a /a\nRUN --mount=type=bind,from=base,target=/mnt cmp /runs /mnt/runs && echo parallel\n";

fn image_id(answer: &common::Answer) -> String {
    let lines = answer.lines();
    let aux = lines
        .iter()
        .find(|line| line["aux"]["ID"].is_string())
        .unwrap_or_else(|| panic!("no id: {}", answer.body));
    aux["aux"]["ID"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn an_archive_without_a_session_is_a_whole_buildkit_build() {
    let daemon = Daemon::with_base();
    let answer = build(&daemon, "version=2&t=modern:1", archive(&[("Dockerfile", MODERN), ("a", "A")])).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    let id = image_id(&answer);
    // Words that a client without BuildKit's protobufs can show.
    assert!(answer.transcript().contains("parallel\n"), "{}", answer.body);
    let docker = daemon.docker();
    assert_eq!(docker.run(["image", "inspect", "--format", "{{.Id}}", "modern:1"]).success().line(), id);
    let image = saved_image(&docker.run(["save", "modern:1"]).success().bytes);
    assert_eq!(image.tree["runs"].content, b"1\n");
    assert_eq!(image.tree["files/one"].content, b"first\n");
    assert_eq!(image.tree["files/two"].content, b"second\n");
    assert_eq!((image.tree["a"].mode, &image.tree["a"].content[..]), (0o600, &b"A"[..]));
    // The cache mount is kept from build to build; and whoever has the protobufs may ask for them.
    let changed = MODERN.replace("RUN --mount=type=cache", "ENV AGAIN=1\nRUN --mount=type=cache");
    let again = build(
        &daemon,
        "version=2&progress=trace&t=modern:2",
        archive(&[("Dockerfile", &changed), ("a", "A")]),
    )
    .await;
    assert_eq!(again.status, StatusCode::OK, "{}", again.body);
    assert!(again.lines().iter().any(|line| line["id"] == "moby.buildkit.trace"), "{}", again.body);
    assert!(again.lines().iter().all(|line| line["stream"].is_null()), "{}", again.body);
    let image = saved_image(&docker.run(["save", "modern:2"]).success().bytes);
    assert_eq!(image.tree["runs"].content, b"2\n");
}

#[tokio::test]
async fn the_same_works_for_clients_of_the_classic_builder() {
    let daemon = Daemon::with_base();
    let answer = build(&daemon, "t=modern", archive(&[("Dockerfile", MODERN), ("a", "A")])).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    let transcript = answer.transcript();
    assert!(transcript.contains("Step 1/6 : FROM busybox AS base"), "{transcript}");
    assert!(transcript.contains("parallel\n"), "{transcript}");
    assert!(transcript.contains("Successfully tagged modern:latest\n"), "{transcript}");
}

#[test]
fn curl_builds_as_the_readme_says() {
    require("curl", "curl");
    let daemon = Daemon::with_base();
    let context = daemon.scratch().join("context.tar");
    fs::write(&context, archive(&[("Dockerfile", MODERN), ("a", "A")])).unwrap();
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--fail", "--unix-socket"])
        .arg(daemon.socket())
        .args(["-X", "POST", "-H", "Content-Type: application/x-tar", "--data-binary"])
        .arg(format!("@{}", context.display()))
        .arg("http://lapstrake/build?version=2&t=curled")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told = String::from_utf8(output.stdout).unwrap();
    let id = daemon.docker().run(["image", "inspect", "--format", "{{.Id}}", "curled"]).success();
    assert!(told.contains(id.line()), "{told}");
}

/// Runs a compressor that is on every Debian, or says which package has it.
fn compress(program: &str, package: &str, data: &[u8]) -> Vec<u8> {
    require(program, package);
    let mut child = Command::new(program)
        .arg("-c")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let data = data.to_vec();
    let writer = std::thread::spawn(move || input.write_all(&data).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    output.stdout
}

#[tokio::test]
async fn what_fails_before_the_first_byte_says_so_by_its_status() {
    let daemon = Daemon::start();
    let files = Files::serve(HashMap::new());
    let (open, closed) = (Registry::start(), Registry::with_users());
    let gone = escape(&files.url("/gone.tar"));
    for version in [1, 2] {
        let from = async |image: &str| {
            let dockerfile = format!("FROM {image}\n");
            build(&daemon, &format!("version={version}"), archive(&[("Dockerfile", &dockerfile)])).await
        };
        let missing = from(&open.image("none:1")).await;
        let private = from(&closed.image("none:1")).await;
        // The classic builder has said `Step 1/1` by then.
        let statuses = match version {
            1 => (StatusCode::OK, StatusCode::OK),
            _ => (StatusCode::NOT_FOUND, StatusCode::UNAUTHORIZED),
        };
        assert_eq!((missing.status, private.status), statuses, "{version} {} {}", missing.body, private.body);
        let remote = build(&daemon, &format!("version={version}&remote={gone}"), Vec::new()).await;
        assert_eq!(remote.status, StatusCode::NOT_FOUND, "{version} {}", remote.body);
        let nul = build(&daemon, &format!("version={version}&dockerfile=a%00b"), archive(&[])).await;
        assert_eq!(nul.status, StatusCode::BAD_REQUEST, "{version} {}", nul.body);
        for answer in [missing, private, remote, nul] {
            assert!(!answer.error().is_empty());
        }
    }
}

#[tokio::test]
async fn archives_that_are_none_are_the_clients_fault() {
    let daemon = Daemon::start();
    let kind = [("Content-Type", "application/x-tar")];
    let mut cut = archive(&[("layer/a", &"x".repeat(4096))]);
    cut.truncate(2048);
    for (path, body) in [
        ("/images/load", b"this is no archive".repeat(100)),
        ("/images/load", archive(&[("manifest.json", "[{\"Config\":\"none.json\",\"Layers\":[]}]")])),
        ("/images/load", archive(&[("manifest.json", "not JSON")])),
        ("/images/create?fromSrc=-", cut),
    ] {
        let answer = send(&daemon, "POST", path, &kind, body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path} {}", answer.body);
        assert!(!answer.error().is_empty());
    }
}

/// curl sends what it is told to.
#[test]
fn quotation_marks_need_no_escape() {
    use std::io::Read as _;
    let daemon = Daemon::with_base();
    let ask = |target: &str| {
        let mut stream = std::os::unix::net::UnixStream::connect(daemon.socket()).unwrap();
        write!(stream, "GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let listed = ask("/images/json?filters={\"reference\":[\"busybox\"]}");
    assert!(listed.starts_with("HTTP/1.1 200 ") && listed.contains("busybox:latest"), "{listed}");
    let wrong = ask("/images/json?filters={\"nonsense\":[\"x\"]}");
    assert!(wrong.starts_with("HTTP/1.1 400 ") && wrong.contains("{\"message\":"), "{wrong}");
}

#[tokio::test]
async fn a_platform_that_an_image_is_not_for_is_not_found() {
    let daemon = Daemon::with_base();
    let json =
        |architecture: &str| escape(&format!("{{\"os\":\"linux\",\"architecture\":\"{architecture}\"}}"));
    let (here, elsewhere) = match std::env::consts::ARCH {
        "aarch64" => ("arm64", "amd64"),
        _ => ("amd64", "arm64"),
    };
    for path in ["/images/busybox/get", "/images/busybox/json", "/images/busybox/history"] {
        let of = async |platform: &str| {
            open(&daemon, "GET", &format!("{path}?platform={}", json(platform)), &[], Vec::new()).await
        };
        assert_eq!(of(here).await.answer.status(), StatusCode::OK, "{path}");
        let other =
            send(&daemon, "GET", &format!("{path}?platform={}", json(elsewhere)), &[], Vec::new()).await;
        assert_eq!(other.status, StatusCode::NOT_FOUND, "{path} {}", other.body);
        assert!(other.error().contains("does not provide the specified platform"), "{}", other.body);
    }
}

#[tokio::test]
async fn bodies_may_be_compressed() {
    let daemon = Daemon::with_base();
    let plain = archive(&[("Dockerfile", "FROM busybox\nCOPY a /a\n"), ("a", &"text ".repeat(10_000))]);
    let mut ids = Vec::new();
    for (program, package) in [("gzip", "gzip"), ("bzip2", "bzip2"), ("xz", "xz-utils"), ("zstd", "zstd")] {
        for version in [1, 2] {
            let answer =
                build(&daemon, &format!("version={version}"), compress(program, package, &plain)).await;
            assert_eq!(answer.status, StatusCode::OK, "{program} {}", answer.body);
            let id = image_id(&answer);
            let layers = daemon
                .docker()
                .run(["image", "inspect", "--format", "{{json .RootFS.Layers}}", &id])
                .success();
            ids.push(layers.line().to_owned());
        }
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
}

#[tokio::test]
async fn a_body_may_be_a_dockerfile_alone_for_buildkit() {
    let daemon = Daemon::with_base();
    let answer = build(&daemon, "version=2", b"FROM busybox\nRUN echo alone > /alone\n".to_vec()).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    image_id(&answer);
}

#[tokio::test]
async fn contexts_come_from_web_servers() {
    let daemon = Daemon::with_base();
    let files = Files::serve(HashMap::from([
        (
            "/context.tar".to_owned(),
            archive(&[("Dockerfile", "FROM busybox\nCOPY a /a\nRUN cat /a\n"), ("a", "from the web\n")]),
        ),
        ("/Dockerfile".to_owned(), b"FROM busybox\nRUN echo bare > /bare\n".to_vec()),
    ]));
    for version in [1, 2] {
        for (path, file) in [("/context.tar", "a"), ("/Dockerfile", "bare")] {
            let query = format!("version={version}&t=web&nocache=1&remote={}", escape(&files.url(path)));
            let answer = build(&daemon, &query, Vec::new()).await;
            assert_eq!(answer.status, StatusCode::OK, "{version} {path} {}", answer.body);
            image_id(&answer);
            let image = saved_image(&daemon.docker().run(["save", "web"]).success().bytes);
            assert!(image.tree.contains_key(file), "{path}");
        }
        let query = format!("version={version}&remote={}", escape(&files.url("/nothing.tar")));
        let error = build(&daemon, &query, Vec::new()).await.error();
        assert!(error.contains("/nothing.tar") && error.contains("404"), "{error}");
    }
}

/// A repository with two branches, and a server of it.
fn git_server(daemon: &Daemon) -> (Process, String) {
    let parent = daemon.scratch().join("git");
    let work = parent.join("work");
    fs::create_dir_all(work.join("sub")).unwrap();
    git(&work, &["init", "-q"]);
    fs::write(work.join("Dockerfile"), "FROM busybox\nCOPY a /a\n").unwrap();
    fs::write(work.join("a"), "main\n").unwrap();
    fs::write(work.join("sub/Dockerfile"), "FROM busybox\nCOPY s /a\n").unwrap();
    fs::write(work.join("sub/s"), "sub\n").unwrap();
    git(&work, &["add", "."]);
    git(&work, &["commit", "-qm", "one"]);
    git(&work, &["checkout", "-qb", "other"]);
    fs::write(work.join("a"), "other\n").unwrap();
    git(&work, &["commit", "-qam", "two"]);
    git(&work, &["checkout", "-q", "main"]);
    git(&parent, &["clone", "-q", "--bare", "work", "repo.git"]);
    let (server, url) = git_daemon(&parent);
    (server, format!("{url}/repo.git"))
}

#[tokio::test]
async fn contexts_come_from_git() {
    let daemon = Daemon::with_base();
    let (_server, url) = git_server(&daemon);
    for version in [1, 2] {
        for (fragment, content) in
            [("", "main\n"), ("#other", "other\n"), ("#main:sub", "sub\n"), ("#:sub", "sub\n")]
        {
            let query = format!("version={version}&t=git&remote={}", escape(&format!("{url}{fragment}")));
            let answer = build(&daemon, &query, Vec::new()).await;
            assert_eq!(answer.status, StatusCode::OK, "{version} {fragment} {}", answer.body);
            image_id(&answer);
            let image = saved_image(&daemon.docker().run(["save", "git"]).success().bytes);
            assert_eq!(String::from_utf8_lossy(&image.tree["a"].content), content, "{version} {fragment}");
        }
        let query = format!("version={version}&remote={}", escape(&format!("{url}#nothing")));
        let error = build(&daemon, &query, Vec::new()).await.error();
        assert!(error.contains("nothing"), "{error}");
    }
}

#[tokio::test]
async fn credentials_come_in_a_header() {
    let (registry, daemon) = (Registry::with_users(), Daemon::with_base());
    let image = registry.image("private");
    let host = image.split('/').next().unwrap().to_owned();
    let docker = daemon.docker();
    docker.run(["tag", BASE_IMAGE, &image]).success();
    docker.run_with(["login", "-u", USER, "--password-stdin", &host], PASSWORD.as_bytes()).success();
    docker.run(["push", &image]).success();
    docker.run(["rmi", &image]).success();
    let header = |password: &str| {
        let document = serde_json::json!({ &host: { "username": USER, "password": password } });
        BASE64_URL_SAFE.encode(document.to_string())
    };
    let dockerfile = format!("FROM {image}\n");
    for version in [1, 2] {
        let path = format!("/build?pull=1&version={version}");
        let with = |value: String| {
            let (path, body) = (path.clone(), archive(&[("Dockerfile", &dockerfile)]));
            let daemon = &daemon;
            async move { send(daemon, "POST", &path, &[("X-Registry-Config", &value)], body).await }
        };
        let answer = with(header(PASSWORD)).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        image_id(&answer);
        let refused = with(header("wrong")).await.error();
        assert!(
            refused.contains("401") || refused.contains("authorization") || refused.contains("unauthorized"),
            "{refused}"
        );
    }
}

#[tokio::test]
async fn versions_are_negotiated_as_by_moby() {
    let daemon = Daemon::start();
    for method in ["GET", "HEAD"] {
        let ping = send(&daemon, method, "/_ping", &[], Vec::new()).await;
        assert_eq!(ping.status, StatusCode::OK);
        assert_eq!(ping.body, if method == "GET" { "OK" } else { "" });
        let header = |name: &str| ping.headers[name].to_str().unwrap().to_owned();
        assert!(header("Api-Version").starts_with("1."));
        assert_eq!(header("Builder-Version"), "2");
        assert_eq!(header("Ostype"), "linux");
        assert_eq!(header("Docker-Experimental"), "false");
        assert!(header("Cache-Control").contains("no-cache"));
        assert!(header("Content-Type").starts_with("text/plain"));
    }
    let old = send(&daemon, "GET", "/v1.23/version", &[], Vec::new()).await;
    assert_eq!(old.status, StatusCode::BAD_REQUEST);
    let words = "client version 1.23 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version";
    assert!(old.body.contains(words), "{}", old.body);
    let new = send(&daemon, "GET", "/v1.999/version", &[], Vec::new()).await;
    assert_eq!(new.status, StatusCode::BAD_REQUEST);
    assert!(
        new.error().starts_with("client version 1.999 is too new. Maximum supported API version is 1."),
        "{}",
        new.body
    );
    for version in ["/v1.24", "/v1.41", ""] {
        assert_eq!(
            send(&daemon, "GET", &format!("{version}/version"), &[], Vec::new()).await.status,
            StatusCode::OK
        );
    }
}

#[tokio::test]
async fn what_is_not_here_is_told() {
    let daemon = Daemon::start();
    for (method, path) in [
        ("POST", "/containers/create"),
        ("POST", "/commit"),
        ("POST", "/swarm/init"),
        ("GET", "/services"),
        ("POST", "/networks/create"),
        ("GET", "/images/search?term=x"),
    ] {
        let answer = send(&daemon, method, path, &[], Vec::new()).await;
        assert_eq!(answer.status, StatusCode::NOT_IMPLEMENTED, "{path} {}", answer.body);
        assert!(answer.error().contains("not supported"), "{path} {}", answer.body);
    }
    let answer = send(&daemon, "GET", "/no/such/thing", &[], Vec::new()).await;
    assert_eq!((answer.status, answer.error()), (StatusCode::NOT_FOUND, "page not found".to_owned()));
    let answer = send(&daemon, "GET", "/containers/nobody/json", &[], Vec::new()).await;
    assert_eq!(
        (answer.status, answer.error()),
        (StatusCode::NOT_FOUND, "No such container: nobody".to_owned())
    );
}

/// A Dockerfile whose RUN stays until it is ended, and the word by which its process is known.
fn endless_run(name: &str) -> (String, String) {
    let seconds = format!("{}.{}", 100_000 + std::process::id(), name.len());
    (format!("FROM busybox\nRUN echo begun > /proc/self/fd/1 && exec sleep {seconds}\n"), seconds)
}

#[tokio::test]
async fn a_closed_connection_cancels_the_build() {
    let daemon = Daemon::with_base();
    for version in [1, 2] {
        let (dockerfile, mark) = endless_run(if version == 1 { "a" } else { "ab" });
        let path = format!("/build?version={version}");
        let mut build = open(&daemon, "POST", &path, &[], archive(&[("Dockerfile", &dockerfile)])).await;
        assert!(build.answer.body_mut().frame().await.is_some(), "the build begins");
        eventually("RUN runs", || is_running(&mark)).await;
        drop(build);
        eventually("RUN is ended", || !is_running(&mark)).await;
    }
    assert_eq!(leftovers(&daemon), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn builds_are_cancelled_by_their_id() {
    let daemon = Daemon::with_base();
    for version in [1, 2] {
        let (dockerfile, mark) = endless_run(if version == 1 { "abc" } else { "abcd" });
        let path = format!("/build?version={version}&buildid=mine");
        let build = open(&daemon, "POST", &path, &[], archive(&[("Dockerfile", &dockerfile)])).await;
        eventually("RUN runs", || is_running(&mark)).await;
        let again = send(&daemon, "POST", &path, &[], archive(&[("Dockerfile", &dockerfile)])).await;
        assert!(again.error().contains("mine"), "one build has an id: {}", again.body);
        let cancel = send(&daemon, "POST", "/build/cancel?id=mine", &[], Vec::new()).await;
        assert_eq!(cancel.status, StatusCode::OK, "{}", cancel.body);
        let told = build.answer.into_body().collect().await.unwrap().to_bytes();
        let told = String::from_utf8_lossy(&told).into_owned();
        assert!(told.contains("errorDetail") && told.contains("cancel"), "{told}");
        eventually("RUN is ended", || !is_running(&mark)).await;
    }
    let nobody = send(&daemon, "POST", "/build/cancel?id=nobody", &[], Vec::new()).await;
    assert_eq!(nobody.status, StatusCode::OK);
    let nameless = send(&daemon, "POST", "/build/cancel", &[], Vec::new()).await;
    assert_eq!(
        (nameless.status, nameless.error()),
        (StatusCode::BAD_REQUEST, "build ID not provided".to_owned())
    );
    assert_eq!(leftovers(&daemon), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn the_daemon_ends_what_it_builds_when_it_ends() {
    let mut daemon = Daemon::with_base();
    let (dockerfile, mark) = endless_run("abcde");
    let build = open(&daemon, "POST", "/build?version=2", &[], archive(&[("Dockerfile", &dockerfile)])).await;
    eventually("RUN runs", || is_running(&mark)).await;
    daemon.process().stop();
    assert!(!is_running(&mark), "RUN ends before the daemon");
    drop(build);
}
