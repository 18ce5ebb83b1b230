//! `kill -9`, fifty times, and what is left.

#[allow(unreachable_pub)]
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use lapstrake_integration_cli::{Daemon, Process, busybox_rootfs, lapstrake, lapstrake_command};
use rustix::process::Signal;
use serde_json::Value;

use crate::common::{eventually, is_running};

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
        // A client whose build was refused by the daemon that died, and whose session is then accepted by the next one, waits for ever.
        if build.wait_a_while().is_none() {
            build.signal(Signal::KILL);
            build.wait();
        }
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

/// Names of files in a directory; none, where there is none.
fn names(directory: &Path) -> Vec<String> {
    std::fs::read_dir(directory).map_or_else(
        |_| Vec::new(),
        |entries| entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect(),
    )
}

/// The files that somebody was writing to a cache in a directory.
fn leftovers(cache: &Path) -> Vec<String> {
    let all = names(cache).into_iter().chain(names(&cache.join("blobs/sha256")));
    all.filter(|name| name.starts_with(".writing-")).collect()
}

/// Whether a cache in a directory is whole: every blob is what its name says, and what the index leads to is there. Who is in the index.
fn whole(cache: &Path) -> Vec<String> {
    let blobs = cache.join("blobs/sha256");
    let named: Vec<PathBuf> =
        names(&blobs).iter().filter(|name| !name.starts_with('.')).map(|name| blobs.join(name)).collect();
    let sums = Command::new("sha256sum").args(&named).output().unwrap();
    for line in String::from_utf8(sums.stdout).unwrap().lines() {
        let (sum, path) = line.split_once("  ").unwrap();
        assert!(path.ends_with(sum), "{line}");
    }
    let read = |path: &Path| -> Value {
        let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let index = cache.join("index.json");
    if !index.exists() {
        return Vec::new();
    }
    let at = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap();
        blobs.join(digest.strip_prefix("sha256:").unwrap())
    };
    let (index, mut digests) = (read(&index), Vec::new());
    for entry in index["manifests"].as_array().unwrap() {
        let manifest = read(&at(entry));
        for blob in manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]) {
            let length = std::fs::metadata(at(blob)).unwrap_or_else(|error| panic!("{blob}: {error}")).len();
            assert_eq!(blob["size"], length);
        }
        digests.push(entry["digest"].as_str().unwrap().to_owned());
    }
    digests
}

#[test]
fn a_local_cache_is_the_old_or_the_new_one_whenever_its_writer_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let (context, root, cache) =
        (dir.path().join("context"), dir.path().join("root"), dir.path().join("cache"));
    std::fs::create_dir_all(&context).unwrap();
    std::fs::write(context.join("base.tar"), busybox_rootfs()).unwrap();
    let to = format!("type=local,dest={},mode=max,compression-level=1", cache.display());
    let command = |round: u32| {
        let dockerfile = format!(
            "FROM scratch AS base\nADD base.tar /\nRUN head -c 1500000 /dev/urandom > /{round}\n\
             RUN head -c 1500000 /dev/urandom > /more{round}\nFROM scratch\nCOPY --from=base /{round} /is\n"
        );
        std::fs::write(context.join("Dockerfile"), dockerfile).unwrap();
        let mut command = lapstrake_command(["build", "--progress", "quiet", "--cache-to", &to, "--root"]);
        command.arg(&root).args(["-o", "type=tar,dest=/dev/null"]).arg(&context);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    assert!(command(0).status().unwrap().success());
    let mut known = whole(&cache);
    let (mut halves, mut kept) = (0, 0);
    for round in 1..=16u32 {
        let mut build = Process::start(&mut command(round));
        // As soon as something is being written; or in the midst of it, at random.
        let begun = || !leftovers(&cache).is_empty();
        while !begun() && build.ended().is_none() {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(u64::from(round / 2 * 29 % 40)));
        build.signal(rustix::process::Signal::KILL);
        build.wait();
        halves += leftovers(&cache).len();
        let now = whole(&cache);
        assert_eq!(now.len(), 1, "the old one or the new one");
        kept += usize::from(now == known);
        known = now;
    }
    assert!(
        halves > 0 && kept > 0,
        "nobody was killed while writing: {halves} halves, {kept} times the old one"
    );
    // The next export puts all in order, and an empty store finds everything in it.
    assert!(command(16).status().unwrap().success());
    assert_eq!(leftovers(&cache), [""; 0]);
    assert_ne!(whole(&cache), [""; 0]);
    let (empty, from) = (dir.path().join("empty"), format!("type=local,src={}", cache.display()));
    let arguments = ["build", "--progress", "plain", "--cache-from", &from, "-o", "type=tar,dest=/dev/null"];
    let again = lapstrake(arguments.iter().copied().chain([
        "--root",
        empty.to_str().unwrap(),
        context.to_str().unwrap(),
    ]));
    let said = again.success().all();
    assert!(said.contains("CACHED") && !said.contains("WARN"), "{said}");
    assert!(!said.contains("because"), "no step ran: {said}");
}

/// A build that runs on, in the background.
fn begin(daemon: &Daemon, dockerfile: &str) -> Process {
    let dir = daemon.scratch().join("begun");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("Dockerfile"), dockerfile).unwrap();
    let mut command = daemon.docker().buildkit().command(["build", "-t", "begun", dir.to_str().unwrap()]);
    Process::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))
}

/// A file of what a build gives.
fn built(daemon: &Daemon, dockerfile: &str, file: &str) -> String {
    let (dir, out) = (daemon.scratch().join("next"), daemon.scratch().join("out"));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("Dockerfile"), dockerfile).unwrap();
    let to = format!("type=local,dest={}", out.display());
    daemon.docker().buildkit().run(["build", "--output", &to, dir.to_str().unwrap()]).success();
    std::fs::read_to_string(out.join(file)).unwrap()
}

#[test]
fn a_cache_mount_is_whole_whenever_its_making_is_killed() {
    const FILES: usize = 1500;
    for driver in ["overlay2", "vfs"] {
        let mut daemon = Daemon::with_base_and(&["--storage-driver", driver]);
        let seed = format!(
            "FROM busybox AS seed\nRUN mkdir /seed && for i in $(seq {FILES}); do echo $i > /seed/f$i; done\nFROM busybox\n"
        );
        built(&daemon, &format!("{seed}COPY --from=seed /seed/f1 /f1\n"), "f1");
        let trees = daemon.root().join(if driver == "vfs" { "vfs/dir" } else { "overlay2" });
        for round in 0..10u64 {
            let mount = format!("--mount=type=cache,id=m{round},from=seed,source=/seed,target=/c");
            let mut build = begin(&daemon, &format!("{seed}RUN {mount} echo {round} > /c/f1; sleep 1000\n"));
            if round % 2 == 0 {
                // The moment that a directory is there, which vfs has yet to fill.
                let deadline = Instant::now() + Duration::from_secs(20);
                let earlier = names(&trees).len();
                while names(&trees).len() <= earlier && Instant::now() < deadline {
                    std::thread::yield_now();
                }
            }
            std::thread::sleep(Duration::from_millis(round * 31 % 100));
            daemon.kill_and_restart();
            build.wait();
            // Whole, whether it is the one that was being made or another one; and the last to write to it was a process.
            let checker = format!(
                "{seed}RUN {mount} ls /c | wc -l > /count && for i in $(seq 2 {FILES}); do test $i = $(cat /c/f$i) || exit 1; done\n"
            );
            assert_eq!(
                built(&daemon, &checker, "count").trim(),
                FILES.to_string(),
                "{driver}, round {round}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_mount_outlives_the_daemon_and_is_nobodys_then() {
    let mut daemon = Daemon::with_base();
    for (round, sharing) in ["locked", "private", "shared"].into_iter().cycle().take(6).enumerate() {
        let marker = format!("6{:07}{round}", std::process::id());
        let mount = format!("--mount=type=cache,id=log{round},target=/c,sharing={sharing}");
        let writer = format!(
            "FROM busybox\nRUN {mount} n=0; while true; do n=$((n+1)); echo line $n >> /c/log; if [ $n = 9 ]; then sleep {marker} & fi; done\n"
        );
        let mut build = begin(&daemon, &writer);
        eventually("the step has written", || is_running(&marker)).await;
        daemon.kill_and_restart();
        build.wait();
        // Had at once, whoever had it; what was written is there; and nobody writes to it any more.
        let reader = format!(
            "FROM busybox\nRUN {mount} cp /c/log /one && usleep 200000 && cmp /c/log /one && cp /one /log\n"
        );
        let log = built(&daemon, &reader, "log");
        eventually("the step has ended with its daemon", || !is_running(&marker)).await;
        let lines: Vec<&str> = log.lines().collect();
        assert!(lines.len() > 1, "{sharing}: {log:?}");
        for (number, line) in lines.iter().take(lines.len() - 1).enumerate() {
            assert_eq!(*line, format!("line {}", number + 1), "{sharing}");
        }
    }
}
