//! What is left behind: nothing, however a run ends.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt, symlink},
    process::{Command, Stdio},
};

use lapstrake_builder_executor::{
    ExecError, MountKind, MountSpec, OutputSink, ProcessIo, ProcessSpec, RunId, StubPolicy,
};
use tokio_util::sync::CancellationToken;

use crate::harness::{Kind, Sandbox, eventually, executor, options, overlay, rootfs, traces, tree};

/// A script with a limit (so that there are cgroups), a mount and an id that can be searched for.
fn marked(sandbox: &Sandbox, script: &str) -> (ProcessSpec, String) {
    marked_at(sandbox.root(), script)
}

fn marked_at(root: lapstrake_layerstore_store::SnapshotMount, script: &str) -> (ProcessSpec, String) {
    let id = RunId::random();
    let mark = id.to_string();
    let mut spec = ProcessSpec::new(root, ["/bin/sh", "-c", &format!("# {mark}\n{script}")]);
    spec.env = vec!["PATH=/bin".into()];
    spec.id = id;
    spec.resources.pids = Some(100);
    spec.resources.memory = Some(256 << 20);
    spec.mounts = vec![MountSpec { target: "/run/t".into(), kind: MountKind::Tmpfs { size: None } }];
    (spec, mark)
}

/// Asserts that the host looks as if the run had never been.
#[track_caller]
fn assert_clean(sandbox: &Sandbox, mark: &str) {
    assert_eq!(traces(mark), [] as [&str; 0]);
    assert_eq!(traces(sandbox.dir.path().to_str().unwrap()), [] as [&str; 0]);
    assert_layer(sandbox, &[]);
}

/// Asserts that the layer holds just `extra`, beside what BuildKit's RUN also leaves.
#[track_caller]
fn assert_layer(sandbox: &Sandbox, extra: &[&str]) {
    let expected: BTreeSet<String> =
        ["dev", "etc", "proc", "run", "sys"].iter().chain(extra).map(ToString::to_string).collect();
    assert_eq!(tree(&sandbox.upper()), expected);
}

pub(crate) async fn nothing_after_success(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let (spec, mark) = marked(&sandbox, "sleep 1000 & true");
    assert!(sandbox.run(spec).await.status.success());
    assert_clean(&sandbox, &mark);
}

pub(crate) async fn nothing_after_failure(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let (spec, mark) = marked(&sandbox, "sleep 1000 & exit 9");
    assert_eq!(sandbox.run(spec).await.status.code, 9);
    assert_clean(&sandbox, &mark);
}

pub(crate) async fn nothing_after_set_up_failure(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let (mut spec, mark) = marked(&sandbox, "true");
    spec.args = vec!["/bin/absent".into(), mark.clone()];
    assert!(sandbox.try_run(spec).await.is_err());
    assert_clean(&sandbox, &mark);
    let (mut spec, mark) = marked(&sandbox, "true");
    spec.mounts.push(MountSpec {
        target: "/bin/sh/x".into(),
        kind: MountKind::Bind { source: "/bin".into(), read_only: true },
    });
    let error = sandbox.try_run(spec).await.unwrap_err();
    assert!(matches!(&error, ExecError::Setup { step, .. } if step.contains("/bin/sh/x")), "{error:?}");
    assert_eq!(traces(&mark), [] as [&str; 0]);
}

pub(crate) async fn nothing_after_cancel(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let (spec, mark) = marked(&sandbox, "(trap '' TERM HUP INT; sleep 1000) & echo ready; sleep 1000");
    let started = sandbox.started(spec).await;
    started.cancel.cancel();
    assert!(matches!(started.run.await, Err(ExecError::Cancelled(_))));
    assert_clean(&sandbox, &mark);
}

pub(crate) async fn nothing_after_the_future_is_dropped(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let (spec, mark) = marked(&sandbox, "echo ready; sleep 1000");
    let started = sandbox.started(spec).await;
    assert_ne!(traces(&mark), [] as [&str; 0]);
    drop(started);
    eventually("the run is gone", || traces(&mark).is_empty()).await;
}

/// Environment variables by which a test runs itself as a daemon to be killed.
const OWNER_DIR: &str = "LAPSTRAKE_TEST_OWNER_DIR";
const OWNER_ID: &str = "LAPSTRAKE_TEST_OWNER_ID";

pub(crate) async fn nothing_after_the_owner_is_killed(kind: Kind) {
    if let (Ok(dir), Ok(id)) = (std::env::var(OWNER_DIR), std::env::var(OWNER_ID)) {
        let (mut spec, _) =
            marked_at(overlay(dir.as_ref()), &format!("# {id}\n(sleep 1000) & echo ready; sleep 1000"));
        spec.id = RunId::new(id).unwrap();
        let io = ProcessIo {
            stdout: OutputSink::Writer(Box::new(
                tokio::fs::File::create(format!("{dir}/ready")).await.unwrap(),
            )),
            stderr: OutputSink::Discard,
            ..ProcessIo::default()
        };
        let end = executor(kind, options()).run(spec, io, CancellationToken::new()).await;
        panic!("ended: {end:?}");
    }
    let dir = rootfs();
    let mark = RunId::random().to_string();
    let case = format!("{}::nothing_after_the_owner_is_killed", format!("{kind:?}").to_lowercase());
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &case, "--nocapture"])
        .env(OWNER_DIR, dir.path())
        .env(OWNER_ID, &mark)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let ready = dir.path().join("ready");
    eventually("the process has started", || fs::metadata(&ready).is_ok_and(|file| file.len() > 0)).await;
    assert_ne!(traces(&mark), [] as [&str; 0]);
    owner.kill().unwrap();
    owner.wait().unwrap();
    let path = dir.path().to_str().unwrap();
    eventually("the run is gone", || traces(&mark).is_empty() && traces(path).is_empty()).await;
    // Stubs go too; the helper outlives the daemon just for this.
    eventually("stubs are gone", || !dir.path().join("upper/etc/hosts").exists()).await;
}

pub(crate) async fn nothing_after_kills_at_random_moments(kind: Kind) {
    if let Ok(dir) = std::env::var(OWNER_DIR) {
        // Containers without end, three at a time, until somebody kills this process.
        let executor = executor(kind, options());
        let chain = |lane: u32| {
            let (executor, dir) = (&executor, &dir);
            async move {
                for round in 0u32.. {
                    let base = std::path::Path::new(dir).join(format!("lane{lane}-{round}"));
                    fs::create_dir_all(base.join("upper")).unwrap();
                    fs::create_dir_all(base.join("work")).unwrap();
                    symlink("../lower", base.join("lower")).unwrap();
                    let (mut spec, mark) = marked_at(overlay(&base), "(sleep 1000) & usleep 2000; exit 0");
                    spec.id = RunId::new(format!("{}-{mark}", std::env::var(OWNER_ID).unwrap())).unwrap();
                    spec.args.push(spec.id.to_string());
                    executor.run(spec, ProcessIo::default(), CancellationToken::new()).await.unwrap();
                }
            }
        };
        futures::join!(chain(0), chain(1), chain(2));
        unreachable!("the chains have no end");
    }
    let case = format!("{}::nothing_after_kills_at_random_moments", format!("{kind:?}").to_lowercase());
    let mark = RunId::random().to_string();
    for round in 0..12u64 {
        let dir = rootfs();
        let mut owner = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &case, "--nocapture"])
            .env(OWNER_DIR, dir.path())
            .env(OWNER_ID, &mark)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let begun = || fs::read_dir(dir.path()).unwrap().count() > 3;
        eventually("it has begun", begun).await;
        std::thread::sleep(std::time::Duration::from_micros(round * 7919 % 23 * 2500));
        owner.kill().unwrap();
        owner.wait().unwrap();
        let path = dir.path().to_str().unwrap();
        eventually("the runs are gone", || traces(&mark).is_empty() && traces(path).is_empty()).await;
        // A stub made just then may stay in its draft, which nobody will ever commit.
    }
}

/// This process's helper.
fn helper() -> i32 {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let all: Vec<i32> = children
        .flat_map(|text| text.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>())
        .collect();
    let is_helper = |pid: &i32| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|name| name.starts_with(b"lapstrake-exec-helper"))
    };
    all.into_iter().find(is_helper).expect("the helper is a child of this process")
}

pub(crate) async fn nothing_stays_open_in_the_helper(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let open = || {
        let files = fs::read_dir(format!("/proc/{}/fd", helper())).unwrap().flatten();
        files.filter_map(|fd| fs::read_link(fd.path()).ok()).collect::<Vec<_>>()
    };
    sandbox.script("true").await.ok();
    let before = open();
    for script in ["sleep 1000 & true", "exit 9", "kill -9 $$"] {
        let (spec, _) = marked(&sandbox, script);
        sandbox.run(spec).await;
    }
    let (mut spec, _) = marked(&sandbox, "true");
    spec.args = vec!["/bin/absent".into()];
    assert!(sandbox.try_run(spec).await.is_err());
    let (spec, _) = marked(&sandbox, "echo ready; sleep 1000");
    let started = sandbox.started(spec).await;
    started.cancel.cancel();
    assert!(started.run.await.is_err());
    // Mounts, namespaces and processes are held by descriptors; the helper is heard before it closes the last.
    eventually("all is closed", || open().len() <= before.len()).await;
}

pub(crate) async fn nothing_after_the_helper_is_killed(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let (spec, mark) = marked(&sandbox, "(sleep 1000) & echo ready; sleep 1000");
    let mut started = sandbox.started(spec).await;
    let helper = helper();
    let killed = Command::new("kill").args(["-9", &helper.to_string()]).status().unwrap();
    assert!(killed.success());
    assert!(matches!((&mut started.run).await, Err(ExecError::HelperGone)));
    let of_kernel = |trace: &String| !trace.starts_with("cgroup");
    eventually("processes and mounts are gone", || !traces(&mark).iter().any(of_kernel)).await;
    let path = sandbox.dir.path().to_str().unwrap();
    eventually("mounts are gone", || traces(path).is_empty()).await;
    drop(started);
    // The next helper sweeps what a killed one cannot.
    let again = executor(kind, options());
    eventually("cgroups are gone", || traces(&mark).is_empty()).await;
    drop(again);
}

pub(crate) async fn stubs_are_removed_and_times_kept(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let etc = sandbox.lower().join("etc");
    let old =
        fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000));
    fs::File::open(&etc).unwrap().set_times(old).unwrap();
    let mut spec = sandbox.sh("test -s /etc/hosts && test -s /etc/resolv.conf && test -d /opt/a/b");
    spec.mounts = vec![MountSpec { target: "/opt/a/b".into(), kind: MountKind::Tmpfs { size: None } }];
    sandbox.run(spec).await.ok();
    let upper = tree(&sandbox.upper());
    assert_eq!(upper.into_iter().collect::<Vec<_>>(), ["dev", "etc", "opt", "opt/a", "proc", "sys"]);
    let after = fs::metadata(sandbox.upper().join("etc")).unwrap();
    // As BuildKit: what it was when the stubs were removed, so that removing them leaves no trace of its own.
    assert!(after.mtime() >= 1_000_000);
}

pub(crate) async fn stub_parents_are_removed_when_asked(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let mut spec = sandbox.sh("test -d /opt/a/b; touch /opt/kept");
    spec.stubs = StubPolicy::RemoveTargetsAndParents;
    spec.mounts = vec![
        MountSpec { target: "/opt/a/b".into(), kind: MountKind::Tmpfs { size: None } },
        MountSpec { target: "/gone/c/d".into(), kind: MountKind::Tmpfs { size: None } },
    ];
    sandbox.run(spec).await.ok();
    let upper = tree(&sandbox.upper());
    assert_eq!(upper.into_iter().collect::<Vec<_>>(), ["dev", "etc", "opt", "opt/kept", "proc", "sys"]);
}

pub(crate) async fn no_mount_point_stays_when_none_may(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let etc = sandbox.lower().join("etc");
    let old =
        fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000));
    fs::File::open(&etc).unwrap().set_times(old).unwrap();
    let mut spec = sandbox.sh("test -s /etc/hosts && test -d /dev/shm && test -e /proc/self");
    spec.stubs = StubPolicy::RemoveAll;
    sandbox.run(spec).await.ok();
    let upper = tree(&sandbox.upper());
    assert_eq!(upper.into_iter().collect::<Vec<_>>(), ["etc"]);
    let after = fs::metadata(sandbox.upper().join("etc")).unwrap();
    assert_eq!(after.mtime(), 1_000_000, "it was not changed");
    // What the step itself does there is a change.
    let mut spec = sandbox.sh("touch /etc/x && rm /etc/x");
    spec.stubs = StubPolicy::RemoveAll;
    sandbox.run(spec).await.ok();
    assert_ne!(fs::metadata(sandbox.upper().join("etc")).unwrap().mtime(), 1_000_000);
}

pub(crate) async fn stub_cleaner_does_not_follow_links(kind: Kind) {
    // CVE-2024-23652: the step replaces a stub's directory with a link to somebody else's empty file.
    let sandbox = Sandbox::new(kind);
    let victim = sandbox.path("victim");
    fs::create_dir(&victim).unwrap();
    fs::create_dir(victim.join("target")).unwrap();
    fs::create_dir(sandbox.lower().join("inside")).unwrap();
    fs::create_dir(sandbox.lower().join("inside/target")).unwrap();
    symlink("/nowhere", sandbox.lower().join("dangling")).unwrap();
    for link in [victim.to_str().unwrap(), "/inside"] {
        let mut spec =
            sandbox.sh(&format!("mv /opt /opt.moved && ln -s {link} /opt; rm -rf /opt.moved; ls -ld /opt"));
        spec.mounts = vec![MountSpec { target: "/opt/target".into(), kind: MountKind::Tmpfs { size: None } }];
        sandbox.run(spec).await;
        assert!(victim.join("target").exists());
        assert!(sandbox.lower().join("inside/target").exists());
        assert!(!sandbox.upper().join("inside").exists(), "no whiteout of the image's own directory");
        let _ = fs::remove_file(sandbox.upper().join("opt"));
    }
}

pub(crate) async fn files_of_the_image_are_not_changed_by_those_over_them(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let etc = sandbox.lower().join("etc");
    fs::write(etc.join("hosts"), "the image's\n").unwrap();
    fs::write(etc.join("hostname"), "its own\n").unwrap();
    // As images of Ubuntu have it.
    symlink("../run/systemd/resolve/stub-resolv.conf", etc.join("resolv.conf")).unwrap();
    let output = sandbox
        .script("grep -c localhost /etc/hosts; grep -c nameserver /etc/resolv.conf; cat /etc/hostname")
        .await;
    let lines: Vec<_> = output.stdout.lines().collect();
    assert!(lines.len() == 3 && lines[0] != "0" && lines[1] != "0" && lines[2] == "its own", "{output:?}");
    let files = |path: &String| !sandbox.upper().join(path).is_dir();
    assert_eq!(tree(&sandbox.upper()).into_iter().filter(files).collect::<Vec<_>>(), [""; 0]);
    assert_eq!(fs::read_to_string(etc.join("hosts")).unwrap(), "the image's\n");
}

pub(crate) async fn written_files_are_in_the_layer(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let script = "echo data > /new; rm /etc/group; mkdir -p /d/e; chown 5:6 /d; mkfifo /tmp/p";
    assert!(sandbox.script(script).await.status.success());
    assert_eq!(fs::read_to_string(sandbox.upper().join("new")).unwrap(), "data\n");
    let whiteout = fs::symlink_metadata(sandbox.upper().join("etc/group")).unwrap();
    assert_eq!(whiteout.rdev(), 0);
    let made = fs::metadata(sandbox.upper().join("d")).unwrap();
    assert_eq!((made.uid(), made.gid(), made.mode() & 0o777), (5, 6, 0o755));
    // A second step on the same snapshot, as after an interrupted build.
    assert_eq!(sandbox.script("cat /new").await.ok(), "data\n");
}
