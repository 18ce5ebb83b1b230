//! What a process may not do, and images that lay traps.

use std::{fs, os::unix::fs::symlink};

use lapstrake_builder_executor::{ExecError, MountKind, MountSpec};

use crate::harness::{Kind, Sandbox, tree};

/// Runs a script that must print `refused` and nothing else to standard output.
async fn refused(kind: Kind, script: &str) {
    let output = Sandbox::new(kind).script(script).await;
    assert_eq!(output.stdout, "refused\n", "{output:?}");
}

pub(crate) async fn mount_is_refused(kind: Kind) {
    refused(kind, "mount -t tmpfs none /tmp || mount --bind /proc /tmp || umount /proc || mount -o remount,rw /sys || echo refused")
        .await;
}

pub(crate) async fn mknod_of_a_disk_cannot_be_opened(kind: Kind) {
    // CAP_MKNOD is Docker's default; the device list is what protects the disks.
    let root = fs::metadata("/work").map(|m| std::os::unix::fs::MetadataExt::dev(&m)).unwrap_or(0);
    let (major, minor) = (libc::major(root), libc::minor(root));
    let sandbox = Sandbox::new(kind);
    let output = sandbox
        .script(&format!(
            "for d in /dev/disk /tmp/disk; do mknod $d b {major} {minor} && head -c 1 $d && echo opened; done; \
             mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem && echo opened; \
             mknod /tmp/null c 1 3 && echo x > /tmp/null && echo harmless"
        ))
        .await;
    assert_eq!(output.stdout, "harmless\n", "{output:?}");
    assert!(output.stderr.contains("Operation not permitted"), "{output:?}");
}

pub(crate) async fn proc_sys_cannot_be_written(kind: Kind) {
    refused(
        kind,
        "for f in kernel/core_pattern kernel/hostname vm/drop_caches; do echo 1 > /proc/sys/$f && echo wrote $f; done; \
         echo x > /proc/irq/default_smp_affinity && echo wrote; echo refused",
    )
    .await;
}

pub(crate) async fn proc_is_masked(kind: Kind) {
    refused(
        kind,
        "for f in kcore keys timer_list latency_stats interrupts; do test -s /proc/$f && head -c 1 /proc/$f | grep -q . && echo $f; done; \
         for d in acpi scsi asound; do test -d /proc/$d && ls /proc/$d; done; ls /sys/firmware; \
         rm -f /proc/kcore; mv /dev/null /dev/null2 && head -c 1 /proc/kcore; echo refused",
    )
    .await;
}

pub(crate) async fn sysrq_cannot_be_triggered(kind: Kind) {
    // `h` only prints help, should it get through.
    refused(kind, "echo h > /proc/sysrq-trigger && echo wrote || echo refused").await;
}

pub(crate) async fn unshare_and_setns_are_refused(kind: Kind) {
    refused(
        kind,
        "unshare -m true || unshare -r true || unshare -U true || nsenter -t 1 -m true || echo refused",
    )
    .await;
}

pub(crate) async fn working_directory_through_a_descriptor(kind: Kind) {
    // CVE-2024-21626: no descriptor of the host may be a way out.
    let sandbox = Sandbox::new(kind);
    for fd in 3..16 {
        for suffix in ["", "/..", "/../../.."] {
            let mut spec = sandbox.sh("pwd; ls -d /proc/self/cwd/../../../var/lib/dpkg && echo escaped");
            spec.cwd = format!("/proc/self/fd/{fd}{suffix}");
            match sandbox.try_run(spec).await {
                Ok(output) => assert!(!output.stdout.contains("escaped"), "{fd}: {output:?}"),
                Err(ExecError::Setup { .. } | ExecError::Runtime { .. }) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        if kind != Kind::Native && fd > 8 {
            break;
        }
    }
}

pub(crate) async fn mount_target_links_stay_inside(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let victim = sandbox.path("victim");
    fs::create_dir(&victim).unwrap();
    symlink(&victim, sandbox.lower().join("out")).unwrap();
    symlink("../../../../../../../..", sandbox.lower().join("up")).unwrap();
    let before = tree(sandbox.dir.path()).into_iter().filter(|path| path.starts_with("victim")).count();
    let mut spec = sandbox.sh("ls -d /out/a /up/b");
    for target in ["/out/a", "/up/b", "/../../../../c", "/out/../d"] {
        spec.mounts.push(MountSpec { target: target.into(), kind: MountKind::Tmpfs { size: None } });
    }
    let output = sandbox.run(spec).await;
    assert_eq!(output.stdout, "/out/a\n/up/b\n", "{output:?}");
    let after = tree(sandbox.dir.path()).into_iter().filter(|path| path.starts_with("victim")).count();
    assert_eq!(before, after);
    assert!(!std::path::Path::new("/b").exists() && !std::path::Path::new("/c").exists());
}

pub(crate) async fn mount_source_link_swapped_meanwhile_stays_inside(kind: Kind) {
    // CVE-2024-23651: steps share a cache, and one of them swaps a directory for a link while another has it mounted.
    let sandbox = Sandbox::new(kind);
    let cache = sandbox.path("cache");
    fs::create_dir_all(cache.join("real/deep")).unwrap();
    fs::write(cache.join("real/deep/mark"), "inside").unwrap();
    let outside = sandbox.path("outside");
    fs::create_dir_all(outside.join("deep")).unwrap();
    fs::write(outside.join("deep/mark"), "outside").unwrap();
    symlink(&outside, cache.join("link")).unwrap();
    fs::rename(cache.join("real"), cache.join("x")).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let (x, link) = (cache.join("x"), cache.join("link"));
                let swap = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(rustix::fs::CWD, &x, rustix::fs::CWD, &link, swap).unwrap();
            }
        });
        // The runs are on this thread; the racer must end however they do.
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(async {
                    let mut seen = 0;
                    for _ in 0..if kind == Kind::Native { 60 } else { 12 } {
                        let mut spec = sandbox.sh("cat /m/mark");
                        let mount = lapstrake_layerstore_store::SnapshotMount::Bind {
                            source: cache.clone(),
                            read_only: false,
                        };
                        let kind = MountKind::Snapshot {
                            mount,
                            selector: "x/deep".into(),
                            read_only: true,
                            shared: false,
                        };
                        spec.mounts.push(MountSpec { target: "/m".into(), kind });
                        match sandbox.try_run(spec).await {
                            Ok(output) => {
                                assert_eq!(output.stdout, "inside", "{output:?}");
                                seen += 1;
                            }
                            // The link leads to nothing inside.
                            Err(ExecError::Setup { step, .. }) => assert!(step.contains("x/deep"), "{step}"),
                            Err(error) => panic!("{error:?}"),
                        }
                    }
                    assert!(seen > 0, "the directory was never met");
                });
            });
        }));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        run.unwrap();
    });
}

pub(crate) async fn mount_target_link_swapped_meanwhile_stays_inside(kind: Kind) {
    // A mount below a directory of a shared cache that another step swaps for a link.
    let sandbox = Sandbox::new(kind);
    let (cache, victim) = (sandbox.path("cache"), sandbox.path("victim"));
    fs::create_dir_all(cache.join("x")).unwrap();
    fs::create_dir(&victim).unwrap();
    symlink(&victim, cache.join("link")).unwrap();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (until, base) = (std::sync::Arc::clone(&stop), cache.clone());
    let racer = std::thread::spawn(move || {
        while !until.load(std::sync::atomic::Ordering::Relaxed) {
            let (x, link) = (base.join("x"), base.join("link"));
            let swap = rustix::fs::RenameFlags::EXCHANGE;
            rustix::fs::renameat_with(rustix::fs::CWD, &x, rustix::fs::CWD, &link, swap).unwrap();
        }
    });
    for _ in 0..if kind == Kind::Native { 60 } else { 12 } {
        let mut spec = sandbox.sh("true");
        let shared = MountKind::Bind { source: cache.clone(), read_only: false };
        spec.mounts = vec![
            MountSpec { target: "/cache".into(), kind: shared },
            MountSpec { target: "/cache/x/new/dir".into(), kind: MountKind::Tmpfs { size: None } },
        ];
        // That it works is not asked for.
        let _ = sandbox.try_run(spec).await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    racer.join().unwrap();
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0, "{:?}", tree(&victim));
}

/// What no mask may be led to: a script that finds out, and prints `refused`.
const MASKS_HOLD: &str = "test -s /proc/kcore && head -c 1 /proc/kcore | grep -q . && echo kcore; \
    test -s /proc/timer_list && head -c 1 /proc/timer_list | grep -q . && echo timer_list; \
    for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /dev/console; do \
        test -e $f && (echo '|/lapstrake-escaped' > $f) 2> /dev/null && echo wrote $f; done; \
    ls /sys/firmware 2> /dev/null; echo refused";

pub(crate) async fn masks_do_not_follow_what_the_image_has_in_dev(kind: Kind) {
    // CVE-2025-31133 and CVE-2025-52565: links where the null device, the console and terminals are looked for.
    let before = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let sandbox = Sandbox::new(kind);
    let dev = sandbox.lower().join("dev");
    fs::create_dir_all(dev.join("pts")).unwrap();
    symlink("/proc/sys/kernel/core_pattern", dev.join("null")).unwrap();
    symlink("/proc/sys/kernel/core_pattern", dev.join("console")).unwrap();
    symlink("/proc/sysrq-trigger", dev.join("pts/0")).unwrap();
    symlink("/proc/sysrq-trigger", dev.join("ptmx")).unwrap();
    let output = sandbox.script(MASKS_HOLD).await;
    assert_eq!(output.stdout, "refused\n", "{output:?}");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), before);
}

pub(crate) async fn masks_do_not_follow_a_dev_that_others_change(kind: Kind) {
    // CVE-2025-31133 with a mount over /dev that another container swaps the null device of.
    if kind != Kind::Native {
        // Debian's runtimes are as old as the fault; what they do with a /dev of the caller's is theirs.
        return;
    }
    let before = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let sandbox = Sandbox::new(kind);
    let shared = sandbox.path("shared");
    fs::create_dir_all(shared.join("pts")).unwrap();
    fs::write(shared.join("null"), "").unwrap();
    symlink("/proc/sys/kernel/core_pattern", shared.join("trap")).unwrap();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (until, base) = (std::sync::Arc::clone(&stop), shared.clone());
    let racer = std::thread::spawn(move || {
        while !until.load(std::sync::atomic::Ordering::Relaxed) {
            let (null, trap) = (base.join("null"), base.join("trap"));
            let swap = rustix::fs::RenameFlags::EXCHANGE;
            rustix::fs::renameat_with(rustix::fs::CWD, &null, rustix::fs::CWD, &trap, swap).unwrap();
        }
    });
    let mut outputs = Vec::new();
    for _ in 0..40 {
        let mut spec = sandbox.sh(&MASKS_HOLD.replace("2> /dev/null", ""));
        let kind = MountKind::Bind { source: shared.clone(), read_only: false };
        spec.mounts = vec![MountSpec { target: "/dev".into(), kind }];
        outputs.push(sandbox.try_run(spec).await);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    racer.join().unwrap();
    for output in outputs {
        assert_eq!(output.unwrap().stdout, "refused\n");
    }
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), before);
}

pub(crate) async fn mounts_inside_proc_are_refused(kind: Kind) {
    // CVE-2025-52881: what is written to /proc while a container is made must end up there, so nothing is mounted in it.
    let sandbox = Sandbox::new(kind);
    symlink("/proc/self", sandbox.lower().join("me")).unwrap();
    for target in ["/proc", "/proc/self/attr", "/proc/sys/kernel", "/x/../proc/irq"] {
        let mut spec = sandbox.sh("echo ran");
        spec.mounts = vec![MountSpec { target: target.into(), kind: MountKind::Tmpfs { size: None } }];
        let error = sandbox.try_run(spec).await.unwrap_err();
        assert!(
            matches!(&error, ExecError::Invalid { field: "mount target", value, .. } if value == target),
            "{target}: {error:?}"
        );
    }
    // Through a link it is the container's own /proc, or nothing.
    let mut spec = sandbox.sh("echo x > /proc/sys/kernel/core_pattern || echo refused");
    spec.mounts = vec![MountSpec { target: "/me/attr".into(), kind: MountKind::Tmpfs { size: None } }];
    match sandbox.try_run(spec).await {
        Ok(output) => assert_eq!(output.stdout, "refused\n", "{output:?}"),
        Err(ExecError::Setup { .. } | ExecError::Runtime { .. }) => {}
        Err(error) => panic!("{error:?}"),
    }
}

pub(crate) async fn cgroups_cannot_be_changed(kind: Kind) {
    // CVE-2022-0492: a release agent is run by the kernel, outside.
    refused(
        kind,
        "mkdir /tmp/c; for o in memory rdma cpuset; do mount -t cgroup -o $o none /tmp/c && echo mounted $o; done; \
         mount -t cgroup2 none /tmp/c && echo mounted; \
         for f in $(find /sys/fs/cgroup -name release_agent -o -name notify_on_release -o -name cgroup.procs -o -name devices.allow); \
            do (echo 0 > $f) 2> /dev/null && echo wrote $f; done; echo refused",
    )
    .await;
}

pub(crate) async fn kernel_objects_cannot_be_written(kind: Kind) {
    refused(
        kind,
        "for f in /sys/kernel/uevent_helper /sys/kernel/mm/ksm/run /sys/module/*/parameters/* /sys/power/state \
            /sys/class/net/lo/mtu /proc/fs/* /proc/bus/* /proc/irq/*/smp_affinity; do \
            test -f $f && (echo 1 > $f) 2> /dev/null && echo wrote $f; done; \
         for f in /sys/kernel/debug /sys/kernel/security /sys/kernel/tracing /sys/fs/bpf; do ls $f 2> /dev/null; done; echo refused",
    )
    .await;
}

pub(crate) async fn the_daemons_terminal_cannot_be_had(kind: Kind) {
    refused(
        kind,
        "(echo x > /dev/tty) 2> /dev/null && echo wrote; test -e /dev/console && echo console; echo refused",
    )
    .await;
}

pub(crate) async fn working_directory_link_stays_inside(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let victim = sandbox.path("victim");
    fs::create_dir(&victim).unwrap();
    symlink(&victim, sandbox.lower().join("w")).unwrap();
    let mut spec = sandbox.sh("touch made; pwd");
    spec.cwd = "/w/sub".into();
    let output = sandbox.run(spec).await;
    assert_eq!(output.stdout, format!("{}/sub\n", victim.display()), "{output:?}");
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
}

pub(crate) async fn passwd_link_stays_inside(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let outside = sandbox.path("outside");
    fs::write(&outside, "evil:x:0:0::/:/bin/sh\n").unwrap();
    fs::remove_file(sandbox.lower().join("etc/passwd")).unwrap();
    symlink(&outside, sandbox.lower().join("etc/passwd")).unwrap();
    let mut spec = sandbox.sh("true");
    spec.user = "evil".into();
    assert!(matches!(sandbox.try_run(spec).await, Err(ExecError::NoSuchUser { .. })));
}

pub(crate) async fn passwd_fifo_does_not_hang(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    fs::remove_file(sandbox.lower().join("etc/passwd")).unwrap();
    let made = std::process::Command::new("mkfifo").arg(sandbox.lower().join("etc/passwd")).status().unwrap();
    assert!(made.success());
    let error = sandbox.try_run(sandbox.sh("true")).await.unwrap_err();
    assert!(error.to_string().contains("/etc/passwd"), "{error}");
}

pub(crate) async fn proc_as_a_link_is_refused(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    fs::create_dir(sandbox.lower().join("fake")).unwrap();
    symlink("/fake", sandbox.lower().join("proc")).unwrap();
    let error = sandbox.try_run(sandbox.sh("true")).await.unwrap_err();
    assert!(error.to_string().contains("proc"), "{error}");
}

pub(crate) async fn processes_outside_are_not_seen(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let me = std::process::id();
    let output =
        sandbox.script(&format!("kill -0 {me} && echo seen; ls -d /proc/{me}; kill -9 -1; echo alone")).await;
    assert_eq!(output.stdout, "alone\n", "{output:?}");
}

pub(crate) async fn kernel_log_is_refused(kind: Kind) {
    refused(kind, "dmesg > /tmp/log && echo read || echo refused").await;
}
