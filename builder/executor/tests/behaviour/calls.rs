//! What system calls do in a container, made one by one: with the host's perl, which has `syscall`.

use std::{fs, os::unix::fs::symlink};

use lapstrake_builder_executor::{HelperOptions, MountKind, MountSpec, ProcessSpec};

use crate::harness::{Kind, Output, Sandbox, executor, options, run, set_mode};

/// A sandbox that has the host's programs, read-only.
fn with_programs(kind: Kind) -> Sandbox {
    let sandbox = Sandbox::new(kind);
    for name in ["lib", "lib64"] {
        symlink(format!("usr/{name}"), sandbox.lower().join(name)).unwrap();
    }
    sandbox
}

/// Gives `spec` the host's programs.
fn mount_programs(spec: &mut ProcessSpec) {
    let kind = MountKind::Bind { source: "/usr".into(), read_only: true };
    spec.mounts.push(MountSpec { target: "/usr".into(), kind });
}

async fn perl(sandbox: &Sandbox, code: &str) -> Output {
    let mut spec = ProcessSpec::new(sandbox.root(), ["/usr/bin/perl", "-e", code]);
    mount_programs(&mut spec);
    sandbox.run(spec).await
}

/// Makes each call, and gives the error numbers by name; 0 is success.
async fn errors(sandbox: &Sandbox, calls: &[(&str, i64, &str)]) -> Vec<(String, i32)> {
    let mut code = "$| = 1; my $bytes = '12345678'; my $iov = pack('P8Q', $bytes, 8); sub call { my ($name, $number) = (shift, shift); $! = 0; my $r = syscall($number, @_); printf \"%s %d\\n\", $name, $r == -1 ? $! : 0 }\n"
        .to_owned();
    for (name, number, arguments) in calls {
        let arguments = if arguments.is_empty() { String::new() } else { format!(", {arguments}") };
        code.push_str(&format!("call('{name}', {number}{arguments});\n"));
    }
    let said = perl(sandbox, &code).await.ok();
    said.lines()
        .map(|line| {
            let (name, errno) = line.split_once(' ').unwrap();
            (name.to_owned(), errno.parse().unwrap())
        })
        .collect()
}

pub(crate) async fn keyrings_are_refused(kind: Kind) {
    let sandbox = with_programs(kind);
    let key = "my $t = 'user', my $d = 'lapstrake', 0, 0, -3";
    let calls = [
        ("add_key", libc::SYS_add_key, key),
        ("request_key", libc::SYS_request_key, key),
        ("keyctl", libc::SYS_keyctl, "0, -3, 0, 0, 0"),
    ];
    for (name, errno) in errors(&sandbox, &calls).await {
        assert_eq!(errno, libc::EPERM, "{name}");
    }
}

pub(crate) async fn calls_that_reach_the_machine_are_refused(kind: Kind) {
    let sandbox = with_programs(kind);
    let zeros = "0, 0, 0, 0, 0";
    let calls = [
        ("mount", libc::SYS_mount, zeros),
        ("umount2", libc::SYS_umount2, zeros),
        ("pivot_root", libc::SYS_pivot_root, zeros),
        ("open_tree", libc::SYS_open_tree, zeros),
        ("move_mount", libc::SYS_move_mount, zeros),
        ("fsopen", libc::SYS_fsopen, zeros),
        ("fsmount", libc::SYS_fsmount, zeros),
        ("mount_setattr", libc::SYS_mount_setattr, zeros),
        ("unshare", libc::SYS_unshare, "0x10000000"),
        ("setns", libc::SYS_setns, zeros),
        ("clone", libc::SYS_clone, "0x10000011, 0, 0, 0, 0"),
        ("open_by_handle_at", libc::SYS_open_by_handle_at, zeros),
        ("bpf", libc::SYS_bpf, zeros),
        ("perf_event_open", libc::SYS_perf_event_open, zeros),
        ("userfaultfd", libc::SYS_userfaultfd, zeros),
        ("io_uring_setup", libc::SYS_io_uring_setup, zeros),
        ("init_module", libc::SYS_init_module, zeros),
        ("finit_module", libc::SYS_finit_module, zeros),
        ("delete_module", libc::SYS_delete_module, zeros),
        ("kexec_load", libc::SYS_kexec_load, zeros),
        ("reboot", libc::SYS_reboot, zeros),
        ("swapon", libc::SYS_swapon, zeros),
        ("swapoff", libc::SYS_swapoff, zeros),
        ("syslog", libc::SYS_syslog, "3, 0, 0"),
        ("settimeofday", libc::SYS_settimeofday, zeros),
        ("acct", libc::SYS_acct, zeros),
        ("quotactl", libc::SYS_quotactl, zeros),
        ("sethostname", libc::SYS_sethostname, zeros),
        ("personality", libc::SYS_personality, "0x0400000"),
        ("socket-vsock", libc::SYS_socket, "40, 1, 0"),
        ("socket-alg", libc::SYS_socket, "38, 5, 0"),
    ];
    let refused = errors(&sandbox, &calls).await;
    assert_eq!(refused.len(), calls.len());
    for (name, errno) in refused {
        assert_eq!(errno, libc::EPERM, "{name}");
    }
    // glibc falls back to clone(2) only for this answer.
    assert_eq!(errors(&sandbox, &[("clone3", libc::SYS_clone3, "0, 0")]).await[0].1, libc::ENOSYS);
    // What programs of a build need goes through.
    let calls = [
        ("getpid", libc::SYS_getpid, ""),
        ("chroot", libc::SYS_chroot, "my $r = '/usr'"),
        ("socket-inet", libc::SYS_socket, "2, 1, 0"),
        ("setgroups", libc::SYS_setgroups, "0, 0"),
    ];
    for (name, errno) in errors(&sandbox, &calls).await {
        assert_eq!(errno, 0, "{name}");
    }
}

pub(crate) async fn processes_outside_cannot_be_reached(kind: Kind) {
    let sandbox = with_programs(kind);
    // This test's own process and the machine's first thread but one: neither is in the container's process namespace.
    for pid in [std::process::id(), 2] {
        let calls = [
            ("ptrace-attach", libc::SYS_ptrace, format!("16, {pid}, 0, 0")),
            ("ptrace-seize", libc::SYS_ptrace, format!("0x4206, {pid}, 0, 0")),
            ("process_vm_readv", libc::SYS_process_vm_readv, format!("{pid}, $iov, 1, $iov, 1, 0")),
            ("pidfd_open", libc::SYS_pidfd_open, format!("{pid}, 0")),
            ("kill", libc::SYS_kill, format!("{pid}, 0")),
            ("prlimit64", libc::SYS_prlimit64, format!("{pid}, 7, 0, 0")),
        ];
        let calls: Vec<_> =
            calls.iter().map(|(name, number, args)| (*name, *number, args.as_str())).collect();
        for (name, errno) in errors(&sandbox, &calls).await {
            assert!([libc::ESRCH, libc::EPERM].contains(&errno), "{name} of {pid}: {errno}");
        }
    }
    // Its own it may trace, as Docker has it since Linux 4.8: strace and sanitizers in builds.
    let own = "my $p = fork // die; if (!$p) { sleep 1000; exit } syscall(101, 16, $p, 0, 0) == 0 or print \"refused\\n\"; kill 9, $p;"
        .replace("101", &libc::SYS_ptrace.to_string());
    assert_eq!(perl(&sandbox, &own).await.stdout, "");
}

pub(crate) async fn set_user_id_programs_work(kind: Kind) {
    // No no_new_privs, as with Docker: sudo in a build. What is gained ends at the bounding set.
    let sandbox = with_programs(kind);
    let program = sandbox.lower().join("bin/as-root");
    fs::copy("/usr/bin/cat", &program).unwrap();
    set_mode(&program, 0o4755);
    let mut spec = ProcessSpec::new(sandbox.root(), ["/bin/as-root", "/proc/self/status"]);
    mount_programs(&mut spec);
    spec.user = "app".into();
    let status = sandbox.run(spec).await;
    assert_eq!(status.field("Uid"), "1000\t0\t0\t0");
    for (name, value) in [
        ("CapInh", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("CapEff", "00000000a80425fb"),
        ("CapBnd", "00000000a80425fb"),
        ("NoNewPrivs", "0"),
    ] {
        assert_eq!(status.field(name), value, "{name}");
    }
}

pub(crate) async fn a_seccomp_profile_of_ones_own_replaces_dockers(kind: Kind) {
    let sandbox = with_programs(kind);
    let profile = sandbox.path("profile.json");
    fs::write(
        &profile,
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 122},
            {"names": ["sethostname"], "action": "SCMP_ACT_ALLOW"}]}"#,
    )
    .unwrap();
    let executor = executor(kind, HelperOptions { seccomp_profile: Some(profile), ..options() });
    let spec = sandbox.sh("mkdir /x; unshare -U true && echo not dockers");
    let output = run(&*executor, spec, tokio_util::sync::CancellationToken::new()).await.unwrap();
    assert!(output.stderr.contains("quota exceeded") || output.stderr.contains("122"), "{output:?}");
    assert_eq!(output.stdout, "not dockers\n", "{output:?}");
    for (text, what) in [("{", "profile.json"), (r#"{"defaultAction": "SCMP_ACT_DANCE"}"#, "SCMP_ACT_DANCE")]
    {
        fs::write(sandbox.path("profile.json"), text).unwrap();
        let options = HelperOptions { seccomp_profile: Some(sandbox.path("profile.json")), ..options() };
        let helper = lapstrake_builder_executor::Helper::start(options).unwrap();
        let error = match kind {
            Kind::Native => lapstrake_builder_executor::NativeExecutor::new(helper).map(|_| ()),
            Kind::Runc => lapstrake_builder_executor::OciRuntime::new("runc", helper).map(|_| ()),
            Kind::Crun => lapstrake_builder_executor::OciRuntime::new("crun", helper).map(|_| ()),
        };
        let error = error.unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
}
