//! Limits of `docker build`: checked, in force, and told when they end a step; whoever asks, and whatever runs the step.

#[allow(unreachable_pub)]
use std::{fs, path::Path};

use lapstrake_integration_cli::{Daemon, Docker, busybox_rootfs, lapstrake};

use crate::common::{archive, build};

const EXECUTORS: [&[&str]; 3] = [&[], &["--oci-runtime", "runc"], &["--oci-runtime", "crun"]];

/// What a step sees of its limits, in one line.
const SEEN: &str = "FROM busybox\n\
    RUN cd /sys/fs/cgroup && echo seen $(cat memory/memory.limit_in_bytes memory/memory.memsw.limit_in_bytes cpu/cpu.shares \
        cpu/cpu.cfs_period_us cpu/cpu.cfs_quota_us cpuset/cpuset.cpus cpuset/cpuset.mems) \
        $(df -k /dev/shm | awk 'END {print $2}') $(ulimit -Sn) $(ulimit -Hn) pids=$(cat pids/pids.max 2>/dev/null || echo max) \
        $(grep -o 'memory:.*' /proc/self/cgroup | cut -d/ -f2)\n";

const FLAGS: [&str; 20] = [
    "--memory",
    "64m",
    "--memory-swap",
    "80m",
    "--cpu-shares",
    "300",
    "--cpu-period",
    "50000",
    "--cpu-quota",
    "25000",
    "--cpuset-cpus",
    "0",
    "--cpuset-mems",
    "0",
    "--shm-size",
    "2m",
    "--ulimit",
    "nofile=100:200",
    "--no-cache",
    "--cgroup-parent",
];

fn expected(pids: &str, parent: &str) -> String {
    format!("seen 67108864 83886080 300 50000 25000 0 0 2048 100 200 pids={pids} {parent}")
}

/// Whether the machine has what the tests look at; with version 2, `cgroup::tests` of builder/executor has what is written.
fn has_version_1() -> bool {
    Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists()
}

/// Removes a parent that was asked for by name: it belongs to who asked.
fn forget_parent(name: &str) {
    for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let _ = fs::remove_dir(hierarchy.path().join(name));
    }
}

fn context(dir: &Path, dockerfile: &str) -> String {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("Dockerfile"), dockerfile).unwrap();
    dir.to_str().unwrap().to_owned()
}

fn clients(daemon: &Daemon) -> [Docker; 2] {
    [daemon.docker().classic(), daemon.docker().buildkit()]
}

#[test]
fn every_limit_of_docker_build_is_in_force_in_every_executor() {
    if !has_version_1() {
        return;
    }
    for (number, executor) in EXECUTORS.into_iter().enumerate() {
        let parent = format!("lapstrake-limits-{}-{number}", std::process::id());
        let daemon = Daemon::with_base_and(executor);
        let context = context(&daemon.scratch().join("context"), SEEN);
        for docker in clients(&daemon) {
            let arguments = ["build"].iter().chain(&FLAGS).copied().chain([parent.as_str(), &context]);
            let said = docker.run(arguments).success().all();
            assert!(said.contains(&expected("max", &parent)), "{executor:?}: {said}");
        }
        forget_parent(&parent);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_are_limited_by_a_parameter_of_ours() {
    if !has_version_1() {
        return;
    }
    let daemon = Daemon::with_base();
    for version in ["1", "2"] {
        let query = format!("version={version}&pidslimit=33&memory=67108864&nocache=1");
        let said = build(&daemon, &query, archive(&[("Dockerfile", SEEN)])).await.transcript();
        assert!(said.contains("pids=33"), "{said}");
        // Without a word about swap it is as much as memory, as with dockerd.
        assert!(said.contains("seen 67108864 134217728 "), "{said}");
    }
}

#[test]
fn limits_that_mean_nothing_are_refused_in_dockerds_words() {
    let daemon = Daemon::with_base();
    let context = context(&daemon.scratch().join("context"), "FROM busybox\nRUN echo never\n");
    for docker in clients(&daemon) {
        for (flags, why) in [
            (&["--memory", "5m"][..], "Minimum memory limit allowed is 6MB"),
            (
                &["--memory", "64m", "--memory-swap", "32m"],
                "Minimum memoryswap limit should be larger than memory limit, see usage",
            ),
            (
                &["--memory-swap", "32m"],
                "You should always set the Memory limit when using Memoryswap limit, see usage",
            ),
            (
                &["--cpu-period", "10"],
                "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
            ),
            (&["--cpu-quota", "10"], "CPU cfs quota can not be less than 1ms (i.e. 1000)"),
            (&["--cpuset-cpus", "0-x"], "Invalid value 0-x for cpuset cpus"),
            (&["--cpuset-cpus", "5000"], "Requested CPUs are not available - requested 5000, available: "),
            (&["--cpuset-mems", "4000"], "Requested memory nodes are not available - requested 4000"),
            (&["--cgroup-parent", "/a/../../b"], "cgroup-parent"),
        ] {
            let arguments = ["build"].iter().chain(flags).copied().chain([context.as_str()]);
            let said = docker.run(arguments).failure().all();
            assert!(said.contains(why), "{flags:?}: {said}");
            assert!(
                !said.lines().any(|line| line.trim_end().ends_with("never") && !line.contains("RUN")),
                "{said}"
            );
        }
    }
}

#[test]
fn a_client_that_is_refused_at_once_ends() {
    // Docker's CLI opens its session meanwhile, and one that comes too late it would never end.
    let daemon = Daemon::start();
    let context = context(&daemon.scratch().join("context"), "FROM scratch\n");
    let docker = daemon.docker().buildkit();
    for _ in 0..40 {
        let said = docker.run(["build", "--memory", "5m", &context]).failure().all();
        assert!(said.contains("Minimum memory limit allowed is 6MB"), "{said}");
    }
}

#[test]
fn a_step_that_lacks_memory_is_told_so() {
    let dockerfile = "FROM busybox\nRUN head -c 200000000 /dev/zero | tail | wc -c; exit 9\n";
    for executor in EXECUTORS {
        let daemon = Daemon::with_base_and(executor);
        let context = context(&daemon.scratch().join("context"), dockerfile);
        let flags = ["build", "--memory", "32m", "--memory-swap", "32m", &context];
        let [classic, buildkit] = clients(&daemon).map(|docker| docker.run(flags).failure().all());
        let command = "/bin/sh -c head -c 200000000 /dev/zero | tail | wc -c; exit 9";
        let told = format!(
            "The command '{command}' returned a non-zero code: 9 (killed: out of memory, limit 32 MiB)"
        );
        assert!(classic.contains(&told), "{executor:?}: {classic}");
        let told = format!(
            "process \"{command}\" did not complete successfully: cannot allocate memory \
             (exit code: 9, killed: out of memory, limit 32 MiB)"
        );
        assert!(buildkit.contains(&told), "{executor:?}: {buildkit}");
    }
}

#[test]
fn a_build_without_a_daemon_is_limited_as_well() {
    if !has_version_1() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let context =
        context(&dir.path().join("context"), &SEEN.replace("FROM busybox", "FROM scratch\nADD base.tar /"));
    fs::write(Path::new(&context).join("base.tar"), busybox_rootfs()).unwrap();
    let run = |flags: &[&str]| {
        let fixed = ["build", "--progress", "plain", "--root", root.to_str().unwrap()];
        lapstrake(fixed.iter().chain(flags).copied().chain([context.as_str()]))
    };
    let parent = format!("lapstrake-limits-{}-build", std::process::id());
    let flags: Vec<&str> = FLAGS.into_iter().chain([parent.as_str(), "--pids-limit", "44"]).collect();
    let said = run(&flags).success().all();
    forget_parent(&parent);
    assert!(said.contains(&expected("44", &parent)), "{said}");
    for (flags, why) in [
        (&["--memory", "5m"][..], "Minimum memory limit allowed is 6MB"),
        (&["--memory=-1"], "--memory"),
        (&["--ulimit", "fingers=1"], "invalid ulimit type: fingers"),
        (&["--ulimit", "nofile=2:1"], "ulimit soft limit must be less than or equal to hard limit: 2 > 1"),
    ] {
        let said = run(flags).failure().all();
        assert!(said.contains(why), "{flags:?}: {said}");
    }
}
