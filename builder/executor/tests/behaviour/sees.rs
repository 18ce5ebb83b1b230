//! What a process sees.

use std::os::unix::fs::{MetadataExt, chown};

use lapstrake_builder_executor::{ExecError, ExtraHost, NetworkMode, ProcessSpec, SecurityMode, Ulimit};

use crate::harness::{Kind, Sandbox};

const DOCKER_CAPS: &str = "00000000a80425fb";
const NO_CAPS: &str = "0000000000000000";

pub(crate) async fn environment_is_given_and_home_added(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let mut spec = sandbox.sh("env");
    spec.args = vec!["/bin/env".into()];
    spec.env = vec!["PATH=/bin".into(), "A=1".into(), "B=x y=z".into(), "A=2".into(), "EMPTY=".into()];
    let out = sandbox.run(spec).await.ok();
    let mut lines: Vec<_> = out.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["A=2", "B=x y=z", "EMPTY=", "HOME=/root", "PATH=/bin"]);
}

pub(crate) async fn empty_home_counts_as_missing(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let mut spec = sandbox.sh("echo $HOME");
    spec.env.push("HOME=".into());
    spec.user = "app".into();
    assert_eq!(sandbox.run(spec).await.ok(), "/home/app\n");
    let mut spec = sandbox.sh("echo $HOME");
    spec.env.push("HOME=/elsewhere".into());
    assert_eq!(sandbox.run(spec).await.ok(), "/elsewhere\n");
}

pub(crate) async fn host_name_and_hosts(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let out = sandbox.script("hostname; cat /etc/hosts").await.ok();
    assert_eq!(
        out,
        "buildkitsandbox\n127.0.0.1\tlocalhost buildkitsandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n"
    );
    let mut spec = sandbox.sh("hostname; tail -n1 /etc/hosts; echo x >> /etc/hosts");
    spec.hostname = "box".into();
    spec.extra_hosts = vec![ExtraHost { host: "db".into(), ip: "fd00::1".parse().unwrap() }];
    let out = sandbox.run(spec).await;
    assert_eq!(out.stdout, "box\nfd00::1\tdb\n");
    assert!(out.stderr.contains("Read-only"), "{out:?}");
}

pub(crate) async fn resolv_conf_names_a_server(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let mut spec = sandbox.sh("cat /etc/resolv.conf");
    spec.dns.nameservers = vec!["192.0.2.53".into()];
    spec.dns.search = vec!["example.test".into()];
    let out = sandbox.run(spec).await.ok();
    assert!(out.starts_with("nameserver 192.0.2.53\nsearch example.test\n"), "{out}");
}

async fn status(kind: Kind, change: impl FnOnce(&mut ProcessSpec)) -> crate::harness::Output {
    let sandbox = Sandbox::new(kind);
    let mut spec = ProcessSpec::new(sandbox.root(), ["/bin/cat", "/proc/self/status"]);
    change(&mut spec);
    let output = sandbox.run(spec).await;
    assert!(output.status.success(), "{output:?}");
    output
}

pub(crate) async fn root_has_dockers_capabilities(kind: Kind) {
    let status = status(kind, |_| {}).await;
    for (name, value) in [
        ("CapBnd", DOCKER_CAPS),
        ("CapEff", DOCKER_CAPS),
        ("CapPrm", DOCKER_CAPS),
        ("CapInh", NO_CAPS),
        ("CapAmb", NO_CAPS),
    ] {
        assert_eq!(status.field(name), value, "{name}");
    }
    assert_eq!(status.field("Uid"), "0\t0\t0\t0");
    assert_eq!(status.field("Gid"), "0\t0\t0\t0");
}

pub(crate) async fn another_user_has_none_in_effect(kind: Kind) {
    let status = status(kind, |spec| spec.user = "1000:1001".into()).await;
    for (name, value) in [
        ("CapBnd", DOCKER_CAPS),
        ("CapEff", NO_CAPS),
        ("CapPrm", NO_CAPS),
        ("CapInh", NO_CAPS),
        ("CapAmb", NO_CAPS),
    ] {
        assert_eq!(status.field(name), value, "{name}");
    }
    assert_eq!(status.field("Uid"), "1000\t1000\t1000\t1000");
}

pub(crate) async fn insecure_root_has_all_capabilities(kind: Kind) {
    let status = status(kind, |spec| spec.security = SecurityMode::Insecure).await;
    let host = std::fs::read_to_string("/proc/self/status").unwrap();
    let all = host.lines().find_map(|line| line.strip_prefix("CapPrm:")).unwrap().trim();
    // An external runtime may know fewer capabilities than the kernel.
    for name in ["CapBnd", "CapEff", "CapPrm"] {
        assert_eq!(status.field(name), all, "{name}");
    }
}

pub(crate) async fn user_by_name_has_supplementary_groups(kind: Kind) {
    let status = status(kind, |spec| spec.user = "app".into()).await;
    assert_eq!(status.field("Uid"), "1000\t1000\t1000\t1000");
    assert_eq!(status.field("Gid"), "1001\t1001\t1001\t1001");
    assert_eq!(status.field("Groups"), "50 63 1001");
}

pub(crate) async fn user_by_number_and_group(kind: Kind) {
    let first = status(kind, |spec| spec.user = "1234:4321".into()).await;
    assert_eq!(
        (first.field("Uid").as_str(), first.field("Groups").as_str()),
        ("1234\t1234\t1234\t1234", "4321")
    );
    let second = status(kind, |spec| spec.user = "app:staff".into()).await;
    assert_eq!((second.field("Gid").as_str(), second.field("Groups").as_str()), ("50\t50\t50\t50", "50"));
}

pub(crate) async fn unknown_user_is_an_error(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let mut spec = sandbox.sh("true");
    spec.user = "ghost".into();
    let error = sandbox.try_run(spec).await.unwrap_err();
    assert!(
        matches!(&error, ExecError::NoSuchUser { kind: "user", name, .. } if name == "ghost"),
        "{error:?}"
    );
    assert_eq!(error.to_string(), "unable to find user ghost: no matching entries in passwd file");
}

pub(crate) async fn seccomp_is_on_and_new_privileges_are_allowed(kind: Kind) {
    let status = status(kind, |_| {}).await;
    assert_eq!(status.field("Seccomp"), "2");
    assert_eq!(status.field("NoNewPrivs"), "0");
}

pub(crate) async fn insecure_has_no_seccomp(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let mut spec = sandbox.sh(
        "grep Seccomp: /proc/self/status; mkdir /m && mount -t tmpfs none /m && echo mounted; \
         test -w /sys/fs/cgroup && test -c /dev/kmsg && test -c /dev/fuse && test -b /dev/loop0 && echo devices; \
         echo 7 > /proc/sys/vm/page-cluster 2>&1 && echo writable; test -s /proc/keys && echo unmasked",
    );
    spec.security = SecurityMode::Insecure;
    let before = std::fs::read_to_string("/proc/sys/vm/page-cluster").unwrap();
    let output = sandbox.run(spec).await;
    std::fs::write("/proc/sys/vm/page-cluster", before).unwrap();
    assert!(output.stdout.starts_with("Seccomp:\t0\nmounted\ndevices\nwritable\n"), "{output:?}");
}

pub(crate) async fn process_is_pid_one_and_alone(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let output = sandbox.script("echo $$; ls -d /proc/[0-9]* | head -n 1; ls -d /proc/[0-9]* | wc -l").await;
    let lines: Vec<_> = output.stdout.lines().collect();
    assert_eq!(lines[..2], ["1", "/proc/1"]);
    assert!(lines[2].parse::<u32>().unwrap() <= 3, "{lines:?}");
}

pub(crate) async fn working_directory_is_made_for_the_user(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let mut spec = sandbox.sh("pwd; stat -c %u:%g:%a . ..; touch here");
    spec.cwd = "/srv/app/.//sub".into();
    spec.user = "app".into();
    assert_eq!(sandbox.run(spec).await.ok(), "/srv/app/sub\n1000:1001:755\n1000:1001:755\n");
    let made = std::fs::metadata(sandbox.upper().join("srv/app/sub/here")).unwrap();
    assert_eq!((made.uid(), made.gid()), (1000, 1001));
}

pub(crate) async fn existing_working_directory_keeps_its_owner(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    std::fs::create_dir(sandbox.lower().join("work")).unwrap();
    chown(sandbox.lower().join("work"), Some(7), Some(8)).unwrap();
    let mut spec = sandbox.sh("stat -c %u:%g .");
    spec.cwd = "/work".into();
    spec.user = "app".into();
    assert_eq!(sandbox.run(spec).await.ok(), "7:8\n");
}

pub(crate) async fn standard_input_is_empty(kind: Kind) {
    let output = Sandbox::new(kind).script("cat | wc -c; readlink /proc/self/fd/0").await;
    assert_eq!(output.ok(), "0\n/dev/null\n");
}

pub(crate) async fn only_standard_descriptors_are_open(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    // 3 is the directory being listed.
    let output = sandbox.run(ProcessSpec::new(sandbox.root(), ["/bin/ls", "/proc/self/fd"])).await;
    assert_eq!(output.ok(), "0\n1\n2\n3\n");
}

pub(crate) async fn umask_is_022(kind: Kind) {
    assert_eq!(Sandbox::new(kind).script("umask").await.ok(), "0022\n");
}

pub(crate) async fn signals_are_at_their_defaults(kind: Kind) {
    let status = status(kind, |_| {}).await;
    for name in ["SigIgn", "SigBlk", "SigCgt"] {
        let mut mask = u64::from_str_radix(&status.field(name), 16).unwrap();
        if kind != Kind::Native {
            // glibc's posix_spawn, which calls the runtime, has 32 and 33 ignored.
            mask &= !(0b11 << 31);
        }
        assert_eq!(mask, 0, "{name}");
    }
}

pub(crate) async fn ulimits_are_set(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let mut spec = sandbox.sh("ulimit -Sn; ulimit -Hn; ulimit -Sc");
    spec.ulimits = vec![
        Ulimit { name: "nofile".into(), soft: 123, hard: 456 },
        Ulimit { name: "core".into(), soft: 0, hard: -1 },
    ];
    assert_eq!(sandbox.run(spec).await.ok(), "123\n456\n0\n");
    let mut spec = sandbox.sh("true");
    spec.ulimits = vec![Ulimit { name: "fingers".into(), soft: 1, hard: 1 }];
    assert!(matches!(sandbox.try_run(spec).await, Err(ExecError::BadLimit(_))));
}

pub(crate) async fn devices_are_dockers(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let output = sandbox
        .script(
            "cd /dev; for d in null zero full random urandom tty; do stat -c '%n %F %t:%T %a' $d; done; \
             head -c 4 /dev/zero | wc -c; echo x > /dev/null && echo y; head -c 3 /dev/urandom | wc -c; ls /dev",
        )
        .await
        .ok();
    let expected = "null character special file 1:3 666\nzero character special file 1:5 666\n\
        full character special file 1:7 666\nrandom character special file 1:8 666\n\
        urandom character special file 1:9 666\ntty character special file 5:0 666\n4\ny\n3\n";
    let rest = output.strip_prefix(expected).unwrap_or_else(|| panic!("{output}"));
    assert_eq!(
        rest.split_whitespace().filter(|name| !["console", "core"].contains(name)).collect::<Vec<_>>(),
        [
            "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout",
            "tty", "urandom", "zero"
        ]
    );
}

pub(crate) async fn dev_links_and_file_systems(kind: Kind) {
    let output = Sandbox::new(kind)
        .script("for l in fd stdin ptmx; do readlink /dev/$l; done; stat -f -c %T /dev/pts /dev/shm /proc /sys; stat -c %a /dev/shm /dev/pts/ptmx")
        .await
        .ok();
    assert_eq!(output, "/proc/self/fd\n/proc/self/fd/0\npts/ptmx\ndevpts\ntmpfs\nproc\nsysfs\n1777\n666\n");
}

pub(crate) async fn sys_and_cgroup_are_read_only(kind: Kind) {
    let output = Sandbox::new(kind)
        .script(
            "touch /sys/x; for d in /sys/fs/cgroup /sys/fs/cgroup/*; do test -d $d && mkdir $d/x && echo made $d; done; \
             awk '$5 ~ \"^/sys\" {print $5, substr($6, 1, 2)}' /proc/self/mountinfo | sort -u",
        )
        .await;
    // Runtimes leave the directory above the hierarchies writable: a tmpfs, good for nothing.
    let harmless =
        |line: &&str| kind != Kind::Native && ["made /sys/fs/cgroup", "/sys/fs/cgroup rw"].contains(line);
    assert!(output.stdout.contains("/sys ro"), "{output:?}");
    assert!(output.stdout.contains("/sys/fs/cgroup"), "{output:?}");
    assert!(
        output.stdout.lines().filter(|line| !harmless(line)).all(|line| line.ends_with(" ro")),
        "{output:?}"
    );
}

pub(crate) async fn nothing_of_the_host_is_mounted(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let output = sandbox.script("awk '{print $5}' /proc/self/mountinfo | sort").await.ok();
    let mut points: Vec<_> = output.lines().collect();
    points.dedup();
    let known = ["/", "/dev", "/etc", "/proc", "/sys"];
    let below = |point: &str| {
        known.iter().any(|top| point == *top || (*top != "/" && point.starts_with(&format!("{top}/"))))
    };
    assert_eq!(points.iter().filter(|point| !below(point)).collect::<Vec<_>>(), [] as [&&str; 0]);
    assert_eq!(output.lines().filter(|line| *line == "/").count(), 1, "{output}");
    assert_eq!(output.lines().filter(|line| *line == "/sys").count(), 1, "{output}");
}

pub(crate) async fn shm_has_the_size_asked_for(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let script = "df -k /dev/shm | awk 'END {print $2}'";
    assert_eq!(sandbox.script(script).await.ok(), "65536\n");
    let mut spec = sandbox.sh(script);
    spec.resources.shm_size = Some(1 << 20);
    assert_eq!(sandbox.run(spec).await.ok(), "1024\n");
}

pub(crate) async fn network_none_has_only_loopback(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let mut spec =
        sandbox.sh("ls /sys/class/net; ip -o link show up; ping -c1 -w1 127.0.0.1 | grep -c 'bytes from'");
    spec.network = NetworkMode::None;
    let output = sandbox.run(spec).await;
    let lines: Vec<_> = output.stdout.lines().collect();
    assert_eq!(lines[0], "lo", "{output:?}");
    assert!(lines[1].starts_with("1: lo:") && lines[1].contains("UP"), "{output:?}");
    assert_eq!(lines[2..], ["1"], "{output:?}");
}

pub(crate) async fn network_host_is_the_hosts(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let host = std::fs::read_link("/proc/self/ns/net").unwrap();
    for network in [NetworkMode::Host, NetworkMode::Default] {
        let mut spec = sandbox.sh("readlink /proc/self/ns/net");
        spec.network = network;
        assert_eq!(sandbox.run(spec).await.ok().trim(), host.to_str().unwrap());
    }
}

pub(crate) async fn user_can_write_to_dev_stdout(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let mut spec = sandbox.sh("echo out > /dev/stdout; echo err > /dev/stderr");
    spec.user = "app".into();
    let output = sandbox.run(spec).await;
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\n", "err\n"));
}

pub(crate) async fn program_is_found_in_path(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let mut spec = ProcessSpec::new(sandbox.root(), ["echo", "found"]);
    spec.env = vec!["PATH=/nowhere:/bin".into()];
    assert_eq!(sandbox.run(spec).await.ok(), "found\n");
}

pub(crate) async fn a_number_brings_the_groups_of_its_name(kind: Kind) {
    let known = status(kind, |spec| spec.user = "1000".into()).await;
    assert_eq!(
        (known.field("Gid").as_str(), known.field("Groups").as_str()),
        ("1001\t1001\t1001\t1001", "50 63 1001")
    );
    let unknown = status(kind, |spec| spec.user = "4000".into()).await;
    assert_eq!((unknown.field("Gid").as_str(), unknown.field("Groups").as_str()), ("0\t0\t0\t0", "0"));
    let sandbox = Sandbox::new(kind);
    let mut spec = sandbox.sh("echo $HOME");
    spec.user = "4000:4000".into();
    assert_eq!(sandbox.run(spec).await.ok(), "/\n");
}

pub(crate) async fn working_directory_that_is_a_file_is_an_error(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let mut spec = sandbox.sh("true");
    spec.cwd = "/etc/passwd".into();
    let error = sandbox.try_run(spec).await.unwrap_err();
    assert!(matches!(&error, ExecError::Setup { .. } | ExecError::Runtime { .. }), "{error:?}");
    assert!(error.to_string().contains("/etc/passwd"), "{error}");
}
