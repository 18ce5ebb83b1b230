//! Steps that take what they can get: the daemon answers all the while, stays small, and ends them when it is told to.

#[allow(unreachable_pub)]
use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use http::StatusCode;
use lapstrake_integration_cli::{Daemon, Process};
use rustix::process::Signal;

use crate::common::{archive, build, eventually, is_running, send};

const MIB: u64 = 1 << 20;
/// What a daemon may grow by over what it has when it has built something, however much its steps do: debug builds and
/// allocators' arenas included.
const GROWTH: u64 = 96 * MIB;

/// A build by the docker CLI, in the background.
fn begin(daemon: &Daemon, dockerfile: &str) -> Process {
    let dir = directory(daemon, dockerfile);
    let mut command = daemon.docker().buildkit().command(["build", "-t", "begun", dir.to_str().unwrap()]);
    Process::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))
}

fn directory(daemon: &Daemon, dockerfile: &str) -> PathBuf {
    let dir = daemon.scratch().join("context");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("Dockerfile"), dockerfile).unwrap();
    dir
}

/// A word that only this test has in processes' arguments: seconds that nobody else sleeps.
fn marker(number: u32) -> String {
    format!("7{:07}{number}", std::process::id())
}

async fn ping(daemon: &Daemon) {
    let answer = send(daemon, "GET", "/_ping", &[], Vec::new()).await;
    assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, "OK"));
}

/// Pings all the while, and gives what `work` gave and the most memory that was seen.
async fn watched<T: Send + 'static>(daemon: &Daemon, work: impl FnOnce() -> T + Send + 'static) -> (T, u64) {
    let mut work = tokio::task::spawn_blocking(work);
    let mut most = 0;
    loop {
        tokio::select! {
            done = &mut work => return (done.unwrap(), most),
            () = ping(daemon) => most = most.max(daemon.resident()),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A daemon that has built something, and its memory then.
async fn warm() -> (Daemon, u64) {
    let daemon = Daemon::with_base();
    let first = archive(&[("Dockerfile", "FROM busybox\nRUN true\n")]);
    for query in ["version=1", "version=2"] {
        assert!(!build(&daemon, query, first.clone()).await.body.contains("errorDetail"));
    }
    let resident = daemon.resident();
    (daemon, resident)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_bomb_without_a_limit_is_its_builds_alone() {
    let (daemon, before) = warm().await;
    let marker = marker(0);
    // Each makes two more, for ever; what holds them is the bound of all containers.
    let bomb = format!(
        "FROM busybox\nRUN bomb() {{ bomb & bomb & sleep {marker}; }}; bomb; while :; do sleep {marker}; done\n"
    );
    let mut client = begin(&daemon, &bomb);
    let processes = || {
        let file = ["/sys/fs/cgroup/pids/lapstrake/pids.current", "/sys/fs/cgroup/lapstrake/pids.current"];
        let text = file.iter().find_map(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        text.trim().parse::<u64>().unwrap_or(0)
    };
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while processes() < 2000 && std::time::Instant::now() < deadline {
        ping(&daemon).await;
    }
    assert!(processes() >= 2000, "no bomb: {} processes", processes());
    // Others build meanwhile.
    let other = archive(&[("Dockerfile", "FROM busybox\nRUN echo still here\n")]);
    let said = build(&daemon, "version=1", other).await;
    // Or there was no process left for it; then it says so, and is none of the daemon's.
    assert!(said.transcript().contains("still here") || said.error().contains("exit"), "{}", said.body);
    assert!(daemon.resident() < before + GROWTH, "{} MiB", daemon.resident() / MIB);
    client.signal(Signal::INT);
    client.wait_a_while();
    eventually("the bomb is gone", || !is_running(&marker)).await;
    ping(&daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_hog_ends_by_its_limit_and_is_called_that() {
    let (daemon, before) = warm().await;
    let dir = directory(&daemon, "FROM busybox\nRUN head -c 300000000 /dev/zero | tail -c 290000000\n");
    let docker = daemon.docker().classic();
    let (output, most) = watched(&daemon, move || {
        docker.run(["build", "--memory", "48m", "--memory-swap", "48m", dir.to_str().unwrap()])
    })
    .await;
    let said = output.failure().all();
    // The classic builder's words; what was killed, and why, is in the executor's answer.
    assert!(said.contains("returned a non-zero code: 137"), "{said}");
    assert!(most < before + GROWTH, "{} MiB", most / MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gibibyte_of_output_is_passed_on_in_little_memory() {
    let (daemon, before) = warm().await;
    let line = "y".repeat(1023);
    let dockerfile = format!("FROM busybox\nRUN yes {line} | head -c 1073741824\n");
    let dir = directory(&daemon, &dockerfile);
    let mut command = daemon.docker().buildkit().command(["build", dir.to_str().unwrap()]);
    let (status, most) = watched(&daemon, move || {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap()
    })
    .await;
    assert!(status.success(), "{status}");
    assert!(most < before + GROWTH, "{} MiB", most / MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_ignores_every_signal_ends_when_its_client_goes() {
    let (daemon, _) = warm().await;
    let marker = marker(1);
    let stubborn = format!(
        "FROM busybox\nRUN trap 'echo no' TERM INT HUP QUIT; (trap '' TERM; sleep {marker}) & while :; do sleep 1; done\n"
    );
    let mut client = begin(&daemon, &stubborn);
    eventually("the step runs", || is_running(&marker)).await;
    client.signal(Signal::KILL);
    client.wait();
    // SIGTERM is noticed, so it gets its grace; the daemon answers all the while.
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while is_running(&marker) && std::time::Instant::now() < deadline {
        ping(&daemon).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!is_running(&marker));
}

/// `count` RUN steps in a row: in stages of 300, as overlayfs stacks no more than 500 layers. BuildKit leaves out stages that nothing needs, so
/// there each needs the one before; the classic builder makes all of them anyway.
fn steps(count: usize, buildkit: bool) -> String {
    let mut text = String::new();
    for stage in 0..count.div_ceil(300) {
        let _ = writeln!(text, "FROM busybox AS s{stage}");
        if buildkit && stage > 0 {
            let _ = writeln!(text, "COPY --from=s{} /bin/true /before", stage - 1);
        }
        for step in stage * 300..count.min((stage + 1) * 300) {
            let _ = writeln!(text, "RUN true {step}");
        }
    }
    text
}

/// By both protocols; gives how long each took, and the most memory.
async fn in_a_row(count: usize) -> [(Duration, u64); 2] {
    let (daemon, before) = warm().await;
    let mut figures = Vec::new();
    for buildkit in [true, false] {
        let dir = directory(&daemon, &steps(count, buildkit));
        let docker = daemon.docker();
        let docker = if buildkit { docker.buildkit() } else { docker.classic() };
        let begun = std::time::Instant::now();
        let (output, most) = watched(&daemon, move || docker.run(["build", dir.to_str().unwrap()])).await;
        output.success();
        figures.push((begun.elapsed(), most));
        // A row per step and its log are kept; not the steps.
        let bound = before + GROWTH + count as u64 * 16 * 1024;
        assert!(most < bound, "{} MiB for {count} steps, buildkit: {buildkit}", most / MIB);
    }
    figures.try_into().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_steps_in_a_row() {
    in_a_row(1000).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: run by hand, with LAPSTRAKE_BIN naming a release build"]
async fn ten_thousand_steps_in_a_row() {
    for (name, (time, most)) in ["buildkit", "classic"].iter().zip(in_a_row(10_000).await) {
        println!("{name}: {time:?}, at most {} MiB", most / MIB);
    }
}

/// Rounds of the test below.
const KILLS: u64 = 32;

/// What of a daemon's containers is left on the machine: processes, mounts, cgroups of its helpers.
fn traces(daemon: &Daemon, marker: &str) -> Vec<String> {
    let root = daemon.root().display().to_string();
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let path = process.path();
        if !path.file_name().unwrap().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(marker) {
            found.push(format!("process {}", path.display()));
        }
        let mounts = std::fs::read_to_string(path.join("mountinfo")).unwrap_or_default();
        if mounts.contains(&root) {
            found.push(format!("a mount seen by {}", path.display()));
        }
    }
    let dead = |name: &str| {
        let owner = name.rsplit_once('@').and_then(|(_, owner)| owner.rsplit_once('.'));
        owner.is_some_and(|(_, pid)| !Path::new("/proc").join(pid).exists())
    };
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
    for parent in hierarchies.map(|path| path.join("lapstrake")) {
        let entries = std::fs::read_dir(&parent).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        found.extend(
            names.filter(|name| dead(name)).map(|name| format!("cgroup {}/{name}", parent.display())),
        );
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_stays_of_steps_when_the_daemon_is_killed() {
    let mut daemon = Daemon::with_base();
    let marker = marker(2);
    for round in 0..KILLS {
        // Steps that begin and end all the time, side by side, with mounts and limits.
        let mut dockerfile = String::new();
        for stage in 0..3 {
            let _ = writeln!(dockerfile, "FROM busybox AS s{stage}");
            for step in 0..6 {
                let mounts = "--mount=type=cache,target=/c --mount=type=tmpfs,target=/t";
                let _ = writeln!(dockerfile, "RUN {mounts} (sleep {marker} & true) # {round} {stage} {step}");
            }
        }
        dockerfile.push_str("FROM busybox\nCOPY --from=s0 /bin/true /0\nCOPY --from=s1 /bin/true /1\n");
        let _ = writeln!(dockerfile, "COPY --from=s2 /bin/true /2\nRUN echo {round}; sleep {marker}");
        let mut client = begin(&daemon, &dockerfile);
        tokio::time::sleep(Duration::from_micros(round * 7919 % 97 * 7000)).await;
        daemon.kill_and_restart();
        if client.wait_a_while().is_none() {
            client.signal(Signal::KILL);
            client.wait();
        }
        eventually("nothing is left of the steps", || traces(&daemon, &marker).is_empty()).await;
    }
}
