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

pub(crate) async fn keyring_is_refused(kind: Kind) {
    // Busybox has no keyctl; what counts is that the session keyring is not the daemon's, and that the list is masked.
    refused(kind, "test -s /proc/keys && cat /proc/keys; echo refused").await;
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
