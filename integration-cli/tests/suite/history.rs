//! Build history and reasons, with the docker CLI and `lapstrake history`.
#[allow(unreachable_pub)]
use std::{
    fs,
    path::{Path, PathBuf},
};

use http_body_util::BodyExt as _;
use lapstrake_integration_cli::{Daemon, Output, lapstrake};
use serde_json::Value;

use crate::common::{self, archive, build, eventually, open, send};

/// A directory with files.
fn context(daemon: &Daemon, name: &str, files: &[(&str, &str)]) -> PathBuf {
    let directory = daemon.scratch().join(name);
    for (path, data) in files {
        let path = directory.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, data).unwrap();
    }
    directory
}

fn docker_build(daemon: &Daemon, directory: &Path, arguments: &[&str]) -> String {
    let directory = directory.to_str().unwrap();
    let arguments = ["build", "-t", "app", "--progress=plain"].iter().chain(arguments).chain([&directory]);
    daemon.docker().buildkit().run(arguments).success().stderr
}

/// `lapstrake history …` through the daemon.
fn history(daemon: &Daemon, arguments: &[&str]) -> Output {
    let (root, host) = (daemon.root(), daemon.host());
    let place = ["--root", root.to_str().unwrap(), "--host", &host];
    lapstrake(["history"].iter().chain(arguments).chain(&place))
}

async fn get(daemon: &Daemon, path: &str) -> Value {
    let answer = send(daemon, "GET", path, &[], Vec::new()).await;
    assert!(answer.status.is_success(), "{path}: {}", answer.body);
    serde_json::from_str(&answer.body).unwrap()
}

const DOCKERFILE: &str = "FROM busybox\nCOPY src /src\nRUN cat /src/main.c\n";

#[test]
fn docker_says_which_file_changed_and_a_touched_one_is_a_hit() {
    let daemon = Daemon::with_base();
    let files = [("Dockerfile", DOCKERFILE), ("src/main.c", "one"), ("src/lib.c", "lib")];
    let directory = context(&daemon, "app", &files);
    let first = docker_build(&daemon, &directory, &[]);
    assert!(!first.contains("cache miss"), "{first}");
    // Another time, the same content.
    let file = fs::File::options().write(true).open(directory.join("src/main.c")).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let touched = docker_build(&daemon, &directory, &[]);
    assert!(!touched.contains("cache miss") && touched.contains("CACHED"), "{touched}");
    fs::write(directory.join("src/main.c"), "two").unwrap();
    let changed = docker_build(&daemon, &directory, &[]);
    assert!(changed.contains(" cache miss: file src/main.c changed"), "{changed}");
    assert!(changed.contains(" cache miss: step [2/3] COPY src /src ran again"), "{changed}");
    let forced = docker_build(&daemon, &directory, &["--no-cache"]);
    assert!(forced.contains(" cache miss: no-cache was asked"), "{forced}");
    // The classic transcript is Moby's.
    fs::write(directory.join("src/main.c"), "three").unwrap();
    let directory = directory.to_str().unwrap();
    let classic = daemon.docker().classic().run(["build", "-t", "app", directory]).success();
    assert!(!classic.all().contains("cache miss"), "{}", classic.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_build_is_listed_inspected_logged_and_removed() {
    let mut daemon = Daemon::with_base();
    let directory =
        context(&daemon, "app", &[("Dockerfile", DOCKERFILE), ("src/main.c", "hello from the log\n")]);
    docker_build(&daemon, &directory, &["--build-arg", "TOKEN=not-in-the-record"]);
    let classic = build(&daemon, "t=classic", archive(&[("Dockerfile", "FROM busybox\nRUN false\n")])).await;
    assert!(classic.body.contains("non-zero code"), "{}", classic.body);

    let list = get(&daemon, "/lapstrake/v1/builds").await;
    let builds = list["builds"].as_array().unwrap();
    let column = |name: &str| builds.iter().map(|build| build[name].clone()).collect::<Vec<_>>();
    assert_eq!(column("name"), ["classic:latest", "app:latest"]);
    assert_eq!(column("status"), ["error", "completed"]);
    assert!(builds[0]["error"].as_str().unwrap().contains("exit code: 1"), "{list}");
    let id = builds[1]["id"].as_str().unwrap().to_owned();

    // With a version or without, by the whole id or its beginning.
    let detail = get(&daemon, &format!("/v1.41/lapstrake/v1/builds/{}", &id[..12])).await;
    assert_eq!(detail["buildArgs"][0], "TOKEN");
    let vertices = detail["vertices"].as_array().unwrap();
    let copy = vertices.iter().find(|vertex| vertex["name"] == "[2/3] COPY src /src").unwrap();
    assert_eq!(copy["reasons"][0]["kind"], "never-built");
    assert_eq!(detail["totalSteps"], vertices.len());

    let inspected = history(&daemon, &["inspect", &id]).success().stdout;
    assert!(inspected.contains("[2/3] COPY src /src\n            because: never built here"), "{inspected}");
    let logged = history(&daemon, &["logs", &id]).success().stdout;
    assert!(
        logged.contains(" hello from the log\n") && logged.contains("[3/3] RUN cat /src/main.c"),
        "{logged}"
    );
    assert!(history(&daemon, &["logs", "nosuch"]).failure().stderr.contains("no build \"nosuch\""));

    // All of it survives the daemon.
    daemon.kill_and_restart();
    let listed = history(&daemon, &["ls"]).success().stdout;
    assert!(
        listed.contains(&id[..25]) && listed.contains("completed") && listed.contains("classic:latest"),
        "{listed}"
    );
    assert_eq!(history(&daemon, &["logs", &id]).success().stdout, logged);

    assert_eq!(history(&daemon, &["rm", &id]).success().line(), id);
    assert!(!daemon.root().join("history").join(format!("{id}.zst")).exists());
    history(&daemon, &["rm", "--all"]).success();
    assert_eq!(get(&daemon, "/lapstrake/v1/builds").await["builds"], Value::Array(Vec::new()));
    let gone = send(&daemon, "GET", &format!("/lapstrake/v1/builds/{id}"), &[], Vec::new()).await;
    assert_eq!(gone.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_build_is_followed_to_its_end() {
    let daemon = Daemon::with_base();
    let dockerfile =
        "FROM busybox\nRUN echo begun && while ! test -e /gate/open; do sleep 0.05; done; echo ended\n";
    let dockerfile = dockerfile.replace("RUN ", "RUN --mount=type=cache,id=gate,target=/gate ");
    let running = open(
        &daemon,
        "POST",
        "/build?version=2&buildid=slow",
        &[("Content-Type", "application/x-tar")],
        archive(&[("Dockerfile", &dockerfile)]),
    );
    let running = running.await;
    let follow = "/lapstrake/v1/builds/slow/log?follow=1";
    let mut log = open(&daemon, "GET", follow, &[], Vec::new()).await;
    let mut text = String::new();
    while !text.contains(" begun\n") {
        let frame = log.answer.body_mut().frame().await.unwrap().unwrap();
        text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
    }
    assert_eq!(get(&daemon, "/lapstrake/v1/builds/slow").await["status"], "running");
    assert_eq!(send(&daemon, "DELETE", "/lapstrake/v1/builds/slow", &[], Vec::new()).await.status, 409);
    let gate = "FROM busybox\nRUN --mount=type=cache,id=gate,target=/gate touch /gate/open\n";
    build(&daemon, "version=2", archive(&[("Dockerfile", gate)])).await;
    let rest = log.answer.into_body().collect().await.unwrap().to_bytes();
    text.push_str(std::str::from_utf8(&rest).unwrap());
    assert!(text.contains(" ended\n") && text.trim_end().ends_with('s'), "{text}");
    drop(running.answer.into_body().collect().await);
    assert_eq!(get(&daemon, "/lapstrake/v1/builds/slow").await["status"], "completed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_the_daemon_did_not_survive_is_interrupted() {
    let mut daemon = Daemon::with_base();
    let running = open(
        &daemon,
        "POST",
        "/build?version=2&buildid=lost",
        &[("Content-Type", "application/x-tar")],
        archive(&[("Dockerfile", "FROM busybox\nRUN while :; do sleep 1; done; true interrupted\n")]),
    )
    .await;
    eventually("the step runs", || common::is_running("while :; do sleep 1; done; true interrupted")).await;
    daemon.kill_and_restart();
    drop(running);
    assert_eq!(get(&daemon, "/lapstrake/v1/builds/lost").await["status"], "interrupted");
    assert_eq!(send(&daemon, "GET", "/lapstrake/v1/builds/lost/log", &[], Vec::new()).await.status, 404);
}

/// Every file below a directory.
fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => files(&entry.path(), found),
            kind if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_anywhere_in_the_store_or_the_history() {
    const SECRETS: [&str; 3] = ["s3cret-of-the-file", "s3cret-of-the-proxy", "s3cret-of-the-url"];
    let daemon = Daemon::with_base();
    let served = common::Files::serve([("/x.txt".to_owned(), b"public".to_vec())].into());
    let url = served.url("/x.txt").replace("http://", "http://user:s3cret-of-the-url@");
    let dockerfile =
        "FROM busybox\nARG REMOTE\nRUN --mount=type=secret,id=key test -s /run/secrets/key\nADD $REMOTE /x\n";
    let directory = context(&daemon, "app", &[("Dockerfile", dockerfile)]);
    let secret = daemon.scratch().join("secret");
    fs::write(&secret, SECRETS[0]).unwrap();
    // No image: its config tells the instruction as the Dockerfile has it, as BuildKit's does.
    let output = format!("type=local,dest={}", daemon.scratch().join("out").display());
    let shown = docker_build(
        &daemon,
        &directory,
        &[
            "--output",
            &output,
            "--secret",
            &format!("id=key,src={}", secret.display()),
            "--build-arg",
            "HTTPS_PROXY=http://user:s3cret-of-the-proxy@proxy:3128",
            "--build-arg",
            &format!("REMOTE={url}"),
        ],
    );
    assert!(shown.contains("http://xxxxx:xxxxx@"), "{shown}");
    let listed = get(&daemon, "/lapstrake/v1/builds").await;
    let id = listed["builds"][0]["id"].as_str().unwrap();
    let detail = get(&daemon, &format!("/lapstrake/v1/builds/{id}")).await.to_string();
    let mut told =
        vec![("progress".to_owned(), shown.into_bytes()), ("record".to_owned(), detail.into_bytes())];
    let mut all = Vec::new();
    files(&daemon.root(), &mut all);
    assert!(all.iter().any(|path| path.extension().is_some_and(|extension| extension == "zst")));
    for path in all {
        let mut bytes = fs::read(&path).unwrap();
        if path.extension().is_some_and(|extension| extension == "zst") {
            bytes = zstd::decode_all(bytes.as_slice()).unwrap();
        }
        told.push((path.display().to_string(), bytes));
    }
    told.push(("log".to_owned(), daemon.log().into_bytes()));
    for (place, bytes) in told {
        for secret in SECRETS {
            let is_there = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!is_there, "{secret} is in {place}");
        }
    }
}
