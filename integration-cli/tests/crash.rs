//! `kill -9`, fifty times, and what is left.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, and its helpers do too")]

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use lapstrake_integration_cli::{Daemon, Process};

#[test]
fn a_store_survives_fifty_kills() {
    let mut daemon = Daemon::with_base();
    let dir = daemon.scratch().join("crash");
    std::fs::create_dir_all(&dir).unwrap();
    for round in 0..50u32 {
        let dockerfile = format!(
            "FROM busybox\nRUN echo shared > /shared\nRUN --mount=type=cache,target=/c echo {round} >> /c/log\n\
             COPY data /data\nRUN head -c 200000 /dev/urandom > /r{round}\nRUN rm /shared\n"
        );
        std::fs::write(dir.join("Dockerfile"), dockerfile).unwrap();
        std::fs::write(dir.join("data"), format!("{round}")).unwrap();
        let tag = format!("round:{round}");
        let mut build = Process::start(
            daemon
                .docker()
                .buildkit()
                .command(["build", "-t", &tag, dir.to_str().unwrap()])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        );
        // Every third time something is pruned as well, so that some are killed in the midst of that.
        let mut prune = (round % 3 == 2).then(|| {
            let mut command = daemon.docker().command(["builder", "prune", "-af"]);
            Process::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))
        });
        // Random moments: from before the first step to after the last.
        std::thread::sleep(Duration::from_millis(u64::from(round * 37 % 50) * 12));
        daemon.kill_and_restart();
        build.wait();
        if let Some(prune) = &mut prune {
            prune.wait();
        }
        let docker = daemon.docker();
        // Whatever images there are, they are whole: every layer can be read back and has its digest.
        let images = docker.run(["images", "-q", "--no-trunc"]).success();
        let ids: Vec<&str> = images.stdout.split_whitespace().collect();
        assert!(!ids.is_empty(), "the base image is still there");
        docker.run(["save"].into_iter().chain(ids)).success();
    }
    let docker = daemon.docker().buildkit();
    let last = docker.run(["build", "-t", "last", dir.to_str().unwrap()]).success();
    let again = docker.run(["build", "-t", "last", dir.to_str().unwrap()]).success();
    assert!(again.all().contains("CACHED"), "{}\n{}", last.all(), again.all());
    // Everything goes when it is asked to, so nothing was left that nobody knows of.
    let all = docker.run(["images", "-q", "--no-trunc"]).success();
    let mut ids: Vec<&str> = all.stdout.split_whitespace().collect();
    ids.dedup();
    docker.run(["rmi", "-f"].into_iter().chain(ids)).success();
    docker.run(["builder", "prune", "-af"]).success();
    daemon.restart();
    let left = |name: &str| {
        std::fs::read_dir(daemon.root().join(name)).map_or(0, |entries| {
            entries.filter(|entry| entry.as_ref().is_ok_and(|entry| entry.file_name() != "l")).count()
        })
    };
    let all_left = || (left("overlay2"), left("content/blobs/sha256"), left("content/ingest"));
    // Start-up sweeps after it has begun to answer.
    let deadline = Instant::now() + Duration::from_secs(60);
    while all_left() != (0, 0, 0) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(all_left(), (0, 0, 0), "{}", daemon.log());
}
