//! `docker builder prune`, `docker system df`, and a cache that keeps itself within its bounds.

#[allow(unreachable_pub)]
use std::{
    path::Path,
    process::{Command, Stdio},
};

use lapstrake_integration_cli::{Daemon, Process};
use serde_json::Value;

use crate::common::{eventually, is_running, send};

/// An entry of each kind that a build without other machines makes: two steps, a context, a cache mount.
fn build(daemon: &Daemon, name: &str) {
    let dir = daemon.scratch().join(name);
    std::fs::create_dir_all(&dir).unwrap();
    let dockerfile = format!(
        "FROM busybox\nCOPY data /data\nRUN --mount=type=cache,target=/cache head -c 300000 /dev/urandom > /cache/{name}\n\
         RUN head -c 500000 /dev/urandom > /{name}\n"
    );
    std::fs::write(dir.join("Dockerfile"), dockerfile).unwrap();
    std::fs::write(dir.join("data"), name).unwrap();
    daemon.docker().buildkit().run(["build", "-t", name, dir.to_str().unwrap()]).success();
}

/// The answer to a request; an error's message where it is one.
async fn ask(daemon: &Daemon, method: &str, path: &str) -> Result<Value, String> {
    let answer = send(daemon, method, path, &[], Vec::new()).await;
    let value: Value = serde_json::from_str(&answer.body).unwrap();
    if answer.status.is_success() { Ok(value) } else { Err(value["message"].as_str().unwrap().to_owned()) }
}

async fn records(daemon: &Daemon) -> Vec<Value> {
    let usage = ask(daemon, "GET", "/v1.48/system/df?type=build-cache").await.unwrap();
    usage["BuildCache"].as_array().unwrap().clone()
}

async fn kinds(daemon: &Daemon) -> Vec<String> {
    let mut kinds: Vec<String> =
        records(daemon).await.iter().map(|record| record["Type"].as_str().unwrap().to_owned()).collect();
    kinds.sort();
    kinds.dedup();
    kinds
}

/// What `docker builder prune` says that it deleted.
fn pruned(daemon: &Daemon, arguments: &[&str]) -> Vec<String> {
    let output = daemon.docker().run(["builder", "prune", "-f"].iter().chain(arguments)).success();
    let (ids, total) = output.stdout.split_once("Total reclaimed space:").unwrap();
    assert!(total.trim().ends_with('B'), "{total}");
    ids.lines().skip(1).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

fn du(path: &Path) -> u64 {
    let output = Command::new("du").args(["--summarize", "--block-size=1"]).arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_of_the_docker_cli_choose_what_goes() {
    let daemon = Daemon::with_base();
    build(&daemon, "one");
    daemon.docker().run(["rmi", "one"]).success();
    let all = records(&daemon).await;
    assert_eq!(kinds(&daemon).await, ["exec.cachemount", "regular", "source.local"]);
    // Nothing of it is old, shared, in use, or called so.
    for filter in [
        "until=24h",
        "unused-for=1h30m",
        "inuse=true",
        "shared=true",
        "private=false",
        "description=RUN",
        "type~=^nothing$",
        "id=no-such-id",
        "parents=no-such-id",
    ] {
        assert_eq!(pruned(&daemon, &["--filter", filter]), [""; 0], "{filter}");
    }
    assert_eq!(records(&daemon).await.len(), all.len());
    for (filters, message) in [
        (&["nope=1"][..], "invalid filter 'nope'"),
        (&["mutable=1"], "invalid filter 'mutable'"),
        (&["until=soon"], "\"until\" filter expects a duration (e.g., '24h') or a timestamp"),
        (&["until=1h", "unused-for=1h"], "conflicting filters: \"until\" and \"unused-for\""),
        (&["type=regular", "type=internal"], "filters expect only one value"),
        (&["description~=("], "is no regular expression"),
        (&["shared=maybe"], "\"maybe\" is neither true nor false"),
    ] {
        let filters = filters.iter().flat_map(|filter| ["--filter", filter]);
        let output = daemon.docker().run(["builder", "prune", "-f"].into_iter().chain(filters)).failure();
        assert!(output.stderr.contains(message), "{message}: {}", output.stderr);
    }

    // Each of these takes what it names, and nothing else.
    assert_eq!(pruned(&daemon, &["--filter", "type=exec.cachemount", "--filter", "private=true"]).len(), 1);
    assert_eq!(kinds(&daemon).await, ["regular", "source.local"]);
    let last = all.iter().find(|record| record["Description"].as_str().unwrap().ends_with("> /one")).unwrap();
    let last = last["ID"].as_str().unwrap();
    assert_eq!(pruned(&daemon, &["--filter", &format!("id={}", &last[..10])]), [last]);
    assert!(!pruned(&daemon, &["--filter", "description~=^local source"]).is_empty());
    assert_eq!(kinds(&daemon).await, ["regular"]);
    let parent = all.iter().find(|record| record["ID"] == last).unwrap()["Parents"][0].as_str().unwrap();
    let left = records(&daemon).await;
    assert_eq!(
        pruned(&daemon, &["--filter", &format!("id={parent}"), "--filter", "inuse=false"]),
        [parent],
        "{left:#?}"
    );
    pruned(&daemon, &["--all", "--filter", "until=1ns"]);
    assert_eq!(records(&daemon).await, [Value::Null; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_filter_takes_what_it_names_and_nothing_else() {
    let daemon = Daemon::with_base();
    build(&daemon, "one");
    let all = records(&daemon).await;
    let of = |records: &[Value], wanted: &dyn Fn(&Value) -> bool| -> Vec<String> {
        let ids = records.iter().filter(|record| wanted(record)).map(|record| record["ID"].as_str().unwrap());
        let mut ids: Vec<String> = ids.map(str::to_owned).collect();
        ids.sort();
        ids
    };
    let ends = |record: &Value, end: &str| record["Description"].as_str().unwrap().ends_with(end);
    let last = all.iter().find(|record| ends(record, "> /one")).unwrap();
    let (last, above) = (last["ID"].as_str().unwrap(), last["Parents"][0].as_str().unwrap());
    let description =
        all.iter().find(|record| record["ID"] == above).unwrap()["Description"].as_str().unwrap();
    let shared = of(&all, &|record| record["Shared"] == true);
    assert!(shared.iter().any(|id| id == last), "the image has it: {all:#?}");
    // What an image shares stays without --all. Parents go no earlier than what was made of them, so the first of the chain are to be taken last.
    let cases: [(&[&str], Vec<String>); 8] = [
        (&["--filter", "shared=true"], Vec::new()),
        (&["--all", "--filter", "inuse=true"], Vec::new()),
        (
            &[
                "--filter",
                "type!=regular",
                "--filter",
                "description!=x",
                "--filter",
                "description~=^cached mount",
            ],
            of(&all, &|record| record["Type"] == "exec.cachemount"),
        ),
        (&["--filter", "shared!=true", "--filter", "description~=^local source for (context|dockerfile)"], {
            of(&all, &|record| record["Type"] == "source.local")
        }),
        (
            &["--all", "--filter", &format!("parents={above}"), "--filter", "unused-for=1ns"],
            vec![last.to_owned()],
        ),
        (&["--all", "--filter", &format!("id!={above}"), "--filter", "inuse!=false"], Vec::new()),
        (
            &[
                "--all",
                "--filter",
                &format!("description={description}"),
                "--filter",
                &format!("id~=^{above}$"),
            ],
            { vec![above.to_owned()] },
        ),
        (&["--all", "--filter", "shared=true", "--filter", "private!=true"], {
            of(&all, &|record| record["Shared"] == true && record["ID"] != last && record["ID"] != above)
        }),
    ];
    for (arguments, mut expected) in cases {
        let before = records(&daemon).await;
        let mut gone = pruned(&daemon, arguments);
        gone.sort();
        expected.sort();
        assert_eq!(gone, expected, "{arguments:?}: {before:#?}");
        let mut left = of(&before, &|record| !expected.iter().any(|id| record["ID"] == *id));
        left.sort();
        assert_eq!(of(&records(&daemon).await, &|_| true), left, "{arguments:?}");
    }
    pruned(&daemon, &["--filter", "unused-for=1ns"]);
    assert_eq!(records(&daemon).await, [Value::Null; 0]);
    // The image has all that it had.
    daemon.docker().run(["save", "one"]).success();
}

#[tokio::test(flavor = "multi_thread")]
async fn lapstrake_prune_has_what_docker_and_buildctl_have() {
    let mut daemon = Daemon::with_base();
    build(&daemon, "one");
    daemon.docker().run(["rmi", "one"]).success();
    let (root, host) = (daemon.root().display().to_string(), daemon.host());
    let prune = |arguments: &[&str]| {
        lapstrake_integration_cli::lapstrake(
            ["prune", "--root", &root, "--host", &host].iter().chain(arguments).copied(),
        )
    };
    let all = records(&daemon).await.len();
    for kept in [
        &["--keep-duration", "48h"][..],
        &["--filter", "until=48h"],
        &["--keep-storage", "10g"],
        &["--reserved-space", "10g", "--all"],
        &["--max-used-space", "10g"],
        &["--filter", "type=frontend"],
    ] {
        assert!(prune(kept).success().stdout.starts_with("Removed 0 cache entries"), "{kept:?}");
    }
    assert_eq!(records(&daemon).await.len(), all);
    for (wrong, why) in [
        (&["--keep-duration", "soon"][..], "soon"),
        (&["--keep-duration", "2h", "--filter", "until=1h"], "one"),
        (&["--filter", "nope=1"], "nope"),
    ] {
        assert!(prune(wrong).failure().stderr.contains(why), "{wrong:?}");
    }
    let mounts =
        prune(&["-v", "--filter", "type=exec.cachemount", "--keep-duration", "1ns"]).success().stdout;
    assert!(mounts.contains("Removed 1 cache entries; freed 3") && mounts.lines().count() == 2, "{mounts}");
    // And without the daemon.
    daemon.process().stop();
    let wrong = prune(&["--keep-duration", "2h", "--filter", "until=1h"]).failure().stderr;
    assert!(wrong.contains("more than one"), "{wrong}");
    assert!(prune(&["--keep-duration", "48h"]).success().stdout.starts_with("Removed 0 cache entries"));
    let rest = prune(&["--verbose", "--max-used-space", "1"]).success().stdout;
    assert!(rest.contains("COPY data /data") && rest.contains("; freed "), "{rest}");
}

/// Files that the docker CLI sends through a session; a base that is in them, as `system prune` takes every image.
fn stressed_context(daemon: &Daemon, builder: usize) -> std::path::PathBuf {
    let dir = daemon.scratch().join(format!("stress-{builder}"));
    std::fs::create_dir_all(dir.join("many")).unwrap();
    std::fs::write(dir.join("base.tar"), lapstrake_integration_cli::busybox_rootfs()).unwrap();
    for file in 0..20 {
        std::fs::write(dir.join(format!("many/{file}")), format!("{builder} {file}\n")).unwrap();
    }
    let dockerfile = "FROM scratch AS base\nADD base.tar /\nFROM base AS make\nCOPY many /many\nCOPY data /data\n\
        RUN --mount=type=cache,target=/c cat /many/* /data > /out && echo x >> /c/log\n\
        FROM scratch\nCOPY --from=make /out /out\nCOPY data /data\n";
    std::fs::write(dir.join("Dockerfile"), dockerfile).unwrap();
    dir
}

/// Builds with a session again and again, and looks at what comes of it.
///
/// How many builds there were, and of how many the image was seen.
fn stress(daemon: &Daemon, builder: usize, enough: impl Fn(usize) -> bool) -> (usize, usize) {
    let (dir, docker) = (stressed_context(daemon, builder), daemon.docker().buildkit());
    let many: String = {
        let mut files: Vec<usize> = (0..20).collect();
        files.sort_by_key(usize::to_string);
        files.iter().map(|file| format!("{builder} {file}\n")).collect()
    };
    let (at, image) = (dir.to_str().unwrap(), format!("stress-{builder}"));
    let (mut round, mut seen) = (0, 0);
    while !enough(round) {
        let data = format!("round {}\n", round / 2);
        std::fs::write(dir.join("data"), &data).unwrap();
        let expected = format!("{many}{data}");
        if round % 2 == 0 {
            let out = daemon.scratch().join(format!("out-{builder}"));
            let to = format!("type=local,dest={}", out.display());
            docker.run(["build", "--output", &to, at]).success();
            assert_eq!(
                std::fs::read_to_string(out.join("out")).unwrap(),
                expected,
                "{builder}, round {round}"
            );
        } else {
            docker.run(["build", "-t", &image, at]).success();
            let saved = docker.run(["save", &image]);
            // `system prune` may have taken it; what there is, is whole.
            if saved.code == 0 {
                let image = lapstrake_integration_cli::saved_image(&saved.bytes);
                let content = |path: &str| String::from_utf8(image.tree[path].content.clone()).unwrap();
                assert_eq!((content("out"), content("data")), (expected, data));
                seen += 1;
            } else {
                assert!(saved.stderr.contains("not found"), "{}", saved.all());
            }
        }
        round += 1;
    }
    (round, seen)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 6)]
async fn pruning_without_pause_breaks_no_build_with_a_session() {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    const ROUNDS: usize = 50;
    const PRUNES: usize = 500;
    let daemon = Daemon::start();
    let (prunes, running) = (AtomicUsize::new(0), AtomicUsize::new(2));
    let pruned = std::thread::scope(|scope| {
        let builders = [0, 1].map(|builder| {
            let (daemon, prunes, running) = (&daemon, &prunes, &running);
            scope.spawn(move || {
                let enough = |round| round >= ROUNDS && prunes.load(Relaxed) >= PRUNES;
                // Counted out however it ends, or the pruning would not.
                let done = std::panic::catch_unwind(|| stress(daemon, builder, enough));
                running.fetch_sub(1, Relaxed);
                done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        });
        let pruned = scope
            .spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let mut pruned = 0;
                while running.load(Relaxed) > 0 {
                    let answer = runtime.block_on(ask(&daemon, "POST", "/v1.48/build/prune?all=1")).unwrap();
                    pruned += answer["CachesDeleted"].as_array().map_or(0, Vec::len);
                    // As `docker system prune -a` does.
                    if prunes.fetch_add(1, Relaxed) % 101 == 100 {
                        let all = "/v1.48/images/prune?filters=%7B%22dangling%22%3A%5B%22false%22%5D%7D";
                        runtime.block_on(ask(&daemon, "POST", all)).unwrap();
                    }
                }
                pruned
            })
            .join();
        let rounds: Vec<(usize, usize)> =
            builders.into_iter().map(|builder| builder.join().expect("every build succeeds")).collect();
        println!("{} prunes beside {rounds:?} builds", prunes.load(Relaxed));
        assert!(rounds.iter().any(|(_, seen)| *seen > 0), "some images were looked at: {rounds:?}");
        pruned.expect("every prune succeeds")
    });
    assert!(pruned > 10 * ROUNDS, "{pruned} entries went");
    daemon.docker().run(["system", "prune", "-af"]).success();
    pruned_to_nothing(&daemon).await;
}

/// Without images, all of the cache can go, and then nothing is left on the disk.
async fn pruned_to_nothing(daemon: &Daemon) {
    pruned(daemon, &["--all"]);
    assert_eq!(records(daemon).await, [Value::Null; 0]);
    let left = || {
        let names = std::fs::read_dir(daemon.root().join("overlay2")).unwrap();
        names.filter(|entry| entry.as_ref().is_ok_and(|entry| entry.file_name() != "l")).count()
    };
    eventually("nothing is left", || left() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_may_keep_nothing_breaks_no_build() {
    let config = tempfile::NamedTempFile::new().unwrap();
    let policy =
        "[worker.oci]\ngc = true\n[[worker.oci.gcpolicy]]\nall = true\nmaxUsedSpace = 1\nkeepDuration = 0\n";
    std::fs::write(config.path(), policy).unwrap();
    let daemon = Daemon::start_with(&["--config", config.path().to_str().unwrap()]);
    std::thread::scope(|scope| {
        for builder in 0..2 {
            let daemon = &daemon;
            scope.spawn(move || stress(daemon, builder, |round| round >= 12));
        }
    });
    // What the images do not share goes by itself.
    for _ in 0..600 {
        if records(&daemon).await.iter().all(|record| record["Shared"] == true) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("{:?}\n{}", records(&daemon).await, daemon.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn bounds_keep_what_was_used_last() {
    let daemon = Daemon::with_base();
    for name in ["one", "two", "three"] {
        build(&daemon, name);
    }
    daemon.docker().run(["rmi", "one", "two", "three"]).success();
    let size = |records: &[Value]| {
        let own = records.iter().filter(|record| record["Shared"] == false);
        own.map(|record| record["Size"].as_u64().unwrap()).sum::<u64>()
    };
    let has = |records: &[Value], name: &str| {
        records.iter().any(|record| record["Description"].as_str().unwrap().ends_with(&format!("> /{name}")))
    };
    let before = records(&daemon).await;
    let total = size(&before);
    for enough in [format!("--keep-storage={total}"), "--keep-storage=10GB".to_owned()] {
        assert_eq!(pruned(&daemon, &[&enough]), [""; 0]);
    }
    assert!(!pruned(&daemon, &["--keep-storage", &(total - 200_000).to_string()]).is_empty());
    let after = records(&daemon).await;
    assert!(!has(&after, "one") && has(&after, "two") && has(&after, "three"), "{after:?}");

    // Newer clients' parameters; older API versions do not have them.
    let prune = async |version: &str, query: &str| {
        ask(&daemon, "POST", &format!("/{version}/build/prune?{query}")).await.unwrap()
    };
    let nothing = prune("v1.48", &format!("max-used-space={total}")).await;
    assert_eq!(nothing.to_string(), r#"{"CachesDeleted":null,"SpaceReclaimed":0}"#);
    assert_eq!(prune("v1.48", &format!("min-free-space=1&reserved-space={}", 1u64 << 60)).await, nothing);
    // All of the disk should be free, but for what is reserved.
    prune("v1.48", &format!("min-free-space={}&reserved-space=1000000", 1u64 << 60)).await;
    let reserved = records(&daemon).await;
    assert!(
        size(&reserved) <= 1_000_000 && has(&reserved, "three") && !has(&reserved, "two"),
        "{reserved:?}"
    );
    prune("v1.47", "max-used-space=999999999999&all=1").await;
    assert_eq!(records(&daemon).await, [Value::Null; 0]);
    let wrong = ask(&daemon, "POST", "/v1.48/build/prune?max-used-space=1GB").await.unwrap_err();
    assert_eq!(wrong, "max-used-space is in bytes and expects an integer, got 1GB");
}

#[tokio::test(flavor = "multi_thread")]
async fn df_is_what_du_counts_and_prune_frees_what_it_says() {
    let daemon = Daemon::with_base();
    build(&daemon, "one");
    build(&daemon, "two");
    daemon.docker().run(["rmi", "two"]).success();
    let sizes = async || {
        let usage = ask(&daemon, "GET", "/v1.41/system/df").await.unwrap();
        (usage["LayersSize"].as_u64().unwrap(), usage["BuilderSize"].as_u64().unwrap())
    };
    // What is not told is the daemon's own: its database, the reserve, and directories.
    let own = || {
        let files = ["metadata.db", "metadata.db-wal", "metadata.db-shm", "metadata.reserve"];
        files.iter().map(|name| du(&daemon.root().join(name))).sum::<u64>()
    };
    let (images, cache) = sizes().await;
    let (told, found) = (images + cache + own(), du(&daemon.root()));
    assert!(found.abs_diff(told) <= 128 << 10, "images {images}, cache {cache}, told {told}, found {found}");
    let trees = || du(&daemon.root().join("overlay2")) + du(&daemon.root().join("content"));
    let before = trees();
    let report = ask(&daemon, "POST", "/v1.41/build/prune").await.unwrap();
    let freed = report["SpaceReclaimed"].as_u64().unwrap();
    assert_eq!(freed, before - trees());
    // What the image has by links is counted with it from now on.
    assert_eq!(sizes().await, (images + cache - freed, 0));
    // The image is whole.
    daemon.docker().run(["save", "one"]).success();
    let table = daemon.docker().run(["system", "df"]).success();
    assert!(table.stdout.contains("Build Cache"), "{}", table.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_growing_cache_is_pruned_by_its_policy_while_a_build_runs() {
    let config = tempfile::NamedTempFile::new().unwrap();
    let policy = "[worker.oci]\ngc = true\n[[worker.oci.gcpolicy]]\nkeepBytes = 1000\nkeepDuration = 0\nfilters = [\"type!=exec.cachemount\"]\n";
    std::fs::write(config.path(), policy).unwrap();
    let daemon = Daemon::with_base_and(&["--config", config.path().to_str().unwrap()]);
    build(&daemon, "old");
    let dir = daemon.scratch().join("long");
    std::fs::create_dir_all(&dir).unwrap();
    let marker = format!("8{:07}", std::process::id());
    let dockerfile = format!(
        "FROM busybox\nRUN head -c 400000 /dev/urandom > /kept\n\
         RUN --mount=type=cache,target=/c touch /c/x; ls /kept; sleep {marker}\n"
    );
    std::fs::write(dir.join("Dockerfile"), dockerfile).unwrap();
    let mut long = Process::start(
        daemon
            .docker()
            .buildkit()
            .command(["build", dir.to_str().unwrap()])
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    );
    eventually("the last step runs", || is_running(&marker)).await;
    // Until now an image shared it.
    daemon.docker().run(["rmi", "old"]).success();
    let has = |records: &[Value], part: &str| {
        records.iter().any(|record| record["Description"].as_str().unwrap().contains(part))
    };
    let mut left = records(&daemon).await;
    for _ in 0..600 {
        if !has(&left, "> /old") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        left = records(&daemon).await;
    }
    assert!(!has(&left, "> /old"), "{left:?}\n{}", daemon.log());
    assert!(has(&left, "> /kept") && has(&left, "cached mount /c"), "{left:?}");
    assert!(long.ended().is_none() && is_running(&marker), "the build goes on");
    long.stop();
    eventually("the step ends with its client", || !is_running(&marker)).await;
    // And what it held goes after it.
    for _ in 0..600 {
        left = records(&daemon).await;
        if left.iter().all(|record| record["Type"] == "exec.cachemount" || record["Shared"] == true) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("{left:?}\n{}", daemon.log());
}
