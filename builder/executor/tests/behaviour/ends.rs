//! How processes end, what becomes of their output, and limits.

use std::time::{Duration, Instant};

use lapstrake_builder_executor::{ExecError, OutputSink, ProcessIo, ProcessSpec, RunId};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::harness::{GRACE, Kind, Sandbox, run, set_mode};

pub(crate) async fn exit_code_is_given(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    for code in [0, 1, 42, 255] {
        let status = sandbox.script(&format!("exit {code}")).await.status;
        assert_eq!((status.code, status.signal), (code, None));
        assert_eq!(status.success(), code == 0);
    }
}

pub(crate) async fn signal_is_128_and_itself(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    // Pid 1 cannot kill itself with a signal; the kernel can, for a resource limit.
    let mut spec = sandbox.sh("while :; do :; done");
    spec.ulimits = vec![lapstrake_builder_executor::Ulimit { name: "cpu".into(), soft: 1, hard: 1 }];
    let status = sandbox.run(spec).await.status;
    assert_eq!((status.code, status.signal), (128 + 9, Some(9)));
    // A shell passes on what its child got.
    let status = sandbox.script("sh -c 'kill -TERM $$'; exit $?").await.status;
    assert_eq!((status.code, status.signal), (128 + 15, None));
}

pub(crate) async fn streams_are_apart_and_complete(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let output = sandbox.script("yes out | head -c 3000000 & yes err | head -c 2000000 >&2 & wait").await;
    assert_eq!((output.stdout.len(), output.stderr.len()), (3_000_000, 2_000_000));
    assert!(output.stdout.bytes().all(|b| b"out\n".contains(&b)));
    assert!(output.stderr.bytes().all(|b| b"er\n".contains(&b)));
}

pub(crate) async fn last_output_before_exit_is_not_lost(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    for _ in 0..5 {
        assert_eq!(sandbox.script("head -c 60000 /dev/zero | tr '\\0' x; echo end").await.ok().len(), 60_004);
    }
}

pub(crate) async fn reader_that_goes_away_does_not_block(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let (to, lines) = mpsc::channel(1);
    drop(lines);
    let io =
        ProcessIo { stdout: OutputSink::Channel(to), stderr: OutputSink::Discard, ..ProcessIo::default() };
    let spec = sandbox.sh("head -c 3000000 /dev/zero; exit 3");
    let status = sandbox.executor.run(spec, io, CancellationToken::new()).await.unwrap();
    assert_eq!(status.code, 3);
}

pub(crate) async fn background_processes_die_with_the_first(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let started = Instant::now();
    assert_eq!(
        sandbox.script("sleep 1000 & (trap '' TERM HUP; sleep 1001) & echo done").await.ok(),
        "done\n"
    );
    assert!(started.elapsed() < Duration::from_secs(100), "waited for the background");
}

pub(crate) async fn missing_program_is_an_error(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let mut spec = ProcessSpec::new(sandbox.root(), ["no-such-program"]);
    spec.env = vec!["PATH=/bin".into()];
    let error = sandbox.try_run(spec).await.unwrap_err();
    assert!(error.to_string().contains("no-such-program"), "{error}");
    assert!(error.to_string().contains("not found"), "{error}");
    let error = sandbox.try_run(ProcessSpec::new(sandbox.root(), ["/bin/absent"])).await.unwrap_err();
    assert!(error.to_string().contains("/bin/absent"), "{error}");
    assert!(error.to_string().to_lowercase().contains("no such file or directory"), "{error}");
    if kind == Kind::Native {
        assert!(matches!(error, ExecError::Program { code: 127, .. }), "{error:?}");
    }
}

pub(crate) async fn program_that_is_not_executable_is_an_error(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    std::fs::write(sandbox.lower().join("bin/data"), "x").unwrap();
    let error = sandbox.try_run(ProcessSpec::new(sandbox.root(), ["/bin/data"])).await.unwrap_err();
    assert!(error.to_string().to_lowercase().contains("permission denied"), "{error}");
    let status = sandbox.script("/bin/data").await.status;
    assert_eq!(status.code, 126);
    if kind == Kind::Native {
        assert!(matches!(error, ExecError::Program { code: 126, .. }), "{error:?}");
        set_mode(&sandbox.lower().join("bin/data"), 0o755);
        let error = sandbox.try_run(ProcessSpec::new(sandbox.root(), ["/bin/data"])).await.unwrap_err();
        assert_eq!(error.to_string(), "exec: \"/bin/data\": exec format error");
    }
}

pub(crate) async fn cancel_ends_what_catches_sigterm_with_grace(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let spec =
        sandbox.sh("trap 'echo bye; touch /tmp/said; exit 0' TERM; echo ready; while :; do sleep 0.05; done");
    let mut started = sandbox.started(spec).await;
    let begin = Instant::now();
    started.cancel.cancel();
    let (end, said) = tokio::join!(started.run, started.lines.recv());
    assert!(matches!(end, Err(ExecError::Cancelled(_))), "{end:?}");
    assert!(begin.elapsed() < GRACE, "the grace was waited for");
    assert_eq!(said.as_deref(), Some(&b"bye\n"[..]));
    assert!(sandbox.upper().join("tmp/said").exists());
}

pub(crate) async fn cancel_kills_what_catches_and_stays(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let spec = sandbox.sh("trap 'echo no >> /tmp/no' TERM; echo ready; while :; do sleep 0.05; done");
    let started = sandbox.started(spec).await;
    let begin = Instant::now();
    started.cancel.cancel();
    assert!(matches!(started.run.await, Err(ExecError::Cancelled(_))));
    assert!(begin.elapsed() >= GRACE, "no grace was given");
    assert!(sandbox.upper().join("tmp/no").exists());
}

pub(crate) async fn cancel_is_quick_when_sigterm_is_not_noticed(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    for script in ["echo ready; sleep 1000; echo never", "trap '' TERM; echo ready; sleep 1000"] {
        let started = sandbox.started(sandbox.sh(script)).await;
        let begin = Instant::now();
        started.cancel.cancel();
        assert!(matches!(started.run.await, Err(ExecError::Cancelled(_))));
        assert!(begin.elapsed() < GRACE, "{script}: {:?}", begin.elapsed());
    }
}

pub(crate) async fn cancelled_before_start(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let cancel = CancellationToken::new();
    cancel.cancel();
    let end = run(&*sandbox.executor, sandbox.sh("touch /tmp/ran"), cancel).await;
    assert!(matches!(end, Err(ExecError::Cancelled(_))));
    assert!(!sandbox.upper().join("tmp").exists());
}

pub(crate) async fn many_at_once(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let runs = (0..12).map(|n| {
        let sandbox = &sandbox;
        async move {
            let base = sandbox.path(&format!("n{n}"));
            for name in ["upper", "work"] {
                std::fs::create_dir_all(base.join(name)).unwrap();
            }
            let mut spec = sandbox.sh(&format!("echo {n}; exit {n}"));
            spec.root = lapstrake_layerstore_store::SnapshotMount::Overlay {
                lower: vec![sandbox.lower()],
                upper: Some(lapstrake_layerstore_store::OverlayUpper {
                    upper: base.join("upper"),
                    work: base.join("work"),
                }),
                syntax: lapstrake_layerstore_store::OverlaySyntax::Appended,
            };
            let output = sandbox.run(spec).await;
            assert_eq!((output.status.code, output.stdout.trim()), (n, n.to_string().as_str()));
        }
    });
    futures::future::join_all(runs).await;
}

pub(crate) async fn the_same_id_twice_is_refused(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let mut first = sandbox.sh("echo ready; sleep 1000");
    first.id = RunId::new("only-one").unwrap();
    let mut second = sandbox.sh("true");
    second.id = first.id.clone();
    let started = sandbox.started(first).await;
    assert!(matches!(sandbox.try_run(second.clone()).await, Err(ExecError::Exists(_))));
    started.cancel.cancel();
    assert!(started.run.await.is_err());
    assert_eq!(sandbox.run(second).await.status.code, 0);
    for bad in ["", "../x", "a/b", ".hidden", "-x", "a b", &"x".repeat(129)] {
        assert!(RunId::new(bad).is_err(), "{bad:?}");
    }
}

pub(crate) async fn memory_limit_kills_and_says_so(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let mut spec = sandbox.sh("head -c 200000000 /dev/zero | tail | wc -c; exit 5");
    spec.resources.memory = Some(32 << 20);
    spec.resources.memory_swap = Some(32 << 20);
    let output = sandbox.run(spec).await;
    assert!(output.status.oom_killed, "{output:?}");
    let mut spec = sandbox.sh("exit 5");
    spec.resources.memory = Some(32 << 20);
    let status = sandbox.run(spec).await.status;
    assert_eq!((status.code, status.oom_killed), (5, false));
}

pub(crate) async fn pids_limit_holds(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let mut spec =
        sandbox.sh("for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do sleep 1000 & done");
    spec.resources.pids = Some(16);
    let output = sandbox.run(spec).await;
    assert_ne!(output.status.code, 0);
    assert!(output.stderr.contains("fork"), "{output:?}");
}

pub(crate) async fn processes_of_all_containers_are_bounded(kind: Kind) {
    // Without a limit of their own they have a share of the machine's, so that a fork bomb is theirs alone.
    let sandbox = Sandbox::new(kind);
    let output = sandbox
        .script(
            "own=$(awk -F: '$2 == \"pids\" || $1 == 0 {print $3}' /proc/self/cgroup | head -n 1); echo $own; sleep 1000 & sleep 1000 &",
        )
        .await;
    assert!(output.stdout.starts_with("/lapstrake/"), "{output:?}");
    let max = ["/sys/fs/cgroup/pids/lapstrake/pids.max", "/sys/fs/cgroup/lapstrake/pids.max"]
        .iter()
        .find_map(|file| std::fs::read_to_string(file).ok())
        .expect("a bound on processes");
    let max: u64 = max.trim().parse().expect("a number");
    let ids = std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap().trim().parse::<u64>().unwrap();
    assert!((1000..=ids / 2).contains(&max), "{max} of {ids}");
}

pub(crate) async fn limits_are_written(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let mut spec = sandbox.sh(
        "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes cpu/cpu.shares cpu/cpu.cfs_period_us \
         cpu/cpu.cfs_quota_us cpuset/cpuset.cpus cpuset/cpuset.mems pids/pids.max \
         memory/memory.memsw.limit_in_bytes",
    );
    spec.resources.memory = Some(64 << 20);
    spec.resources.cpu_shares = Some(512);
    spec.resources.cpu_period = Some(50_000);
    spec.resources.cpu_quota = Some(25_000);
    spec.resources.cpuset_cpus = Some("0".into());
    spec.resources.cpuset_mems = Some("0".into());
    spec.resources.pids = Some(77);
    spec.cgroup_parent = Some("/lapstrake/limits-test".into());
    if !std::path::Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists() {
        // A version 2 machine has other files; `cgroup::tests` has the values.
        spec.args = vec!["/bin/true".into()];
        assert_eq!(sandbox.run(spec).await.status.code, 0);
        return;
    }
    assert_eq!(sandbox.run(spec).await.ok(), "67108864\n512\n50000\n25000\n0\n0\n77\n134217728\n");
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        // The parent that was asked for by name belongs to who asked.
        let _ = std::fs::remove_dir(hierarchy.path().join("lapstrake/limits-test"));
    }
    let mut spec = sandbox.sh("true");
    spec.resources.cpuset_cpus = Some("4000".into());
    let error = sandbox.try_run(spec).await.unwrap_err().to_string();
    assert!(error.starts_with("Requested CPUs are not available - requested 4000"), "{error}");
}
