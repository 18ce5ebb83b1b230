use super::*;

#[test]
fn hybrid_machines_have_both_versions() {
    let mountinfo = "\
30 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
31 25 0:27 / /sys/fs/cgroup/memory rw,relatime shared:1 - cgroup cgroup rw,memory
32 25 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
33 25 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
34 25 0:30 / /tmp rw - tmpfs tmpfs rw\n";
    let cgroup = "3:cpu,cpuacct:/a\n2:memory:/a/b\n1:name=systemd:/\n0::/x\n";
    let found = Hierarchies::parse(mountinfo, cgroup);
    assert_eq!(found.0.len(), 4);
    assert_eq!(found.v1("cpuacct").unwrap().mount, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
    assert_eq!(found.v1("cpu").unwrap().own, Path::new("a"));
    assert_eq!(found.v1("memory").unwrap().own, Path::new("a/b"));
    assert_eq!(found.v1("name=systemd").unwrap().own, Path::new(""));
    assert_eq!(found.v2().unwrap().own, Path::new("x"));
    assert!(!found.is_pure_v2());
    assert!(found.v1("pids").is_none());
}

#[test]
fn a_pure_version_2_machine_is_known_as_such() {
    let found = Hierarchies::parse("33 25 0:29 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n", "0::/x.slice\n");
    assert!(found.is_pure_v2());
}

#[test]
fn cgroups_are_for_nobody_else_to_change() {
    let dir = tempfile::tempdir().unwrap();
    // As the helper has it.
    rustix::process::umask(Mode::empty());
    make_all(&dir.path().join("parent/run")).unwrap();
    make_dir(&dir.path().join("other")).unwrap();
    for made in ["parent", "parent/run", "other"] {
        assert_eq!(fs::metadata(dir.path().join(made)).unwrap().mode() & 0o7777, 0o755, "{made}");
    }
}

#[test]
fn only_a_process_that_is_not_there_or_is_another_is_no_helper() {
    let failed = |error: Errno| Err(io::Error::from_raw_os_error(error.raw_os_error()));
    assert!(may_be_helper(&Ok(format!("{}\0", super::super::HELPER_NAME).into_bytes())));
    for unknown in [Errno::ACCESS, Errno::PERM, Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::INTR] {
        assert!(may_be_helper(&failed(unknown)), "{unknown}");
    }
    assert!(!may_be_helper(&failed(Errno::NOENT)));
    assert!(!may_be_helper(&failed(Errno::SRCH)));
    assert!(!may_be_helper(&Ok(b"sh\0-c\0true\0".to_vec())));
    // What ended and was not waited for.
    assert!(!may_be_helper(&Ok(Vec::new())));
}

/// A plan with these limits, of a run below `/jobs`.
fn plan(resources: Resources) -> Plan {
    let root = lapstrake_layerstore_store::SnapshotMount::Bind { source: "/".into(), read_only: true };
    let mut spec = crate::ProcessSpec::new(root, ["true"]);
    spec.resources = resources;
    spec.cgroup_parent = Some("/jobs".to_owned());
    Plan::new(&spec, crate::plan::Network::Host, &crate::DnsConfig::default()).unwrap()
}

fn all_limits() -> Resources {
    Resources {
        memory: Some(64 << 20),
        memory_swap: Some(96 << 20),
        cpu_shares: Some(262_144),
        cpu_period: Some(50_000),
        cpu_quota: Some(25_000),
        cpuset_cpus: Some("0".to_owned()),
        cpuset_mems: Some("0".to_owned()),
        pids: Some(77),
        shm_size: None,
    }
}

fn no_gate() -> DeviceGate {
    DeviceGate::NoDevices { reason: "it is a test".to_owned() }
}

/// The last that was written to each file of a made-up hierarchy.
fn written(dir: &Path) -> Vec<(String, String)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .flatten()
        .filter(|entry| entry.path().is_file())
        .map(|entry| {
            let name = entry.file_name().to_str().unwrap().to_owned();
            (name, fs::read_to_string(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    files
}

#[test]
fn version_2_limits_are_written_to_a_cgroup_that_has_the_controllers() {
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path().to_owned();
    let hierarchies =
        Hierarchies(vec![Hierarchy { mount: mount.clone(), controllers: None, own: PathBuf::new() }]);
    assert!(hierarchies.limit_swap());
    let plan = plan(all_limits());
    let cgroups = RunCgroups::create(&plan, &hierarchies, &no_gate()).unwrap();
    let own = mount.join(&plan.cgroup);
    let expected = [
        ("cpu.max", "25000 50000"),
        ("cpu.weight", "10000"),
        ("cpuset.cpus", "0"),
        ("cpuset.mems", "0"),
        ("memory.max", "67108864"),
        ("memory.swap.max", "33554432"),
        ("pids.max", "77"),
    ];
    assert_eq!(written(&own), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    // The last controller that was handed down.
    for above in [&mount, &mount.join("jobs")] {
        assert_eq!(fs::read_to_string(above.join("cgroup.subtree_control")).unwrap(), "+pids");
    }
    assert!(!own.join("cgroup.subtree_control").exists(), "the run's own is a leaf");
    assert!(!cgroups.oom_killed());
    fs::write(own.join("memory.events"), "low 0\noom 2\noom_kill 1\n").unwrap();
    assert!(cgroups.oom_killed());
}

#[test]
fn version_1_limits_are_written_to_a_cgroup_of_each_controller() {
    let dir = tempfile::tempdir().unwrap();
    let hierarchy = |name: &str, controllers: &[&str]| {
        let mount = dir.path().join(name);
        fs::create_dir(&mount).unwrap();
        let controllers = Some(controllers.iter().map(|one| (*one).to_owned()).collect());
        Hierarchy { mount, controllers, own: PathBuf::new() }
    };
    let hierarchies = Hierarchies(vec![
        hierarchy("cpu,cpuacct", &["cpu", "cpuacct"]),
        hierarchy("memory", &["memory"]),
        hierarchy("pids", &["pids"]),
    ]);
    assert!(!hierarchies.limit_swap(), "the kernel has no swapaccount");
    let resources = Resources { cpuset_cpus: None, cpuset_mems: None, ..all_limits() };
    let run = plan(resources);
    let cgroups = RunCgroups::create(&run, &hierarchies, &no_gate()).unwrap();
    let own = |name: &str| dir.path().join(name).join(&run.cgroup);
    let found: Vec<_> =
        ["cpu,cpuacct", "memory", "pids"].iter().flat_map(|name| written(&own(name))).collect();
    let expected = [
        ("cpu.cfs_period_us", "50000"),
        ("cpu.cfs_quota_us", "25000"),
        ("cpu.shares", "262144"),
        ("memory.limit_in_bytes", "67108864"),
        ("memory.memsw.limit_in_bytes", "100663296"),
        ("pids.max", "77"),
    ];
    assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    fs::write(own("memory").join("memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
        .unwrap();
    assert!(cgroups.oom_killed());

    // A limit that nothing here can hold fails the run.
    let error = RunCgroups::create(&plan(all_limits()), &hierarchies, &no_gate()).unwrap_err();
    assert!(
        matches!(&error, Failure::Limit { limit, reason } if limit == "cpuset-cpus" && reason.contains("no cgroup controller cpuset")),
        "{error:?}"
    );
}

#[test]
fn what_a_run_that_may_write_to_cgroups_makes_goes_with_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let hierarchy = |name: &str| {
        let mount = dir.path().join(name);
        fs::create_dir(&mount).unwrap();
        Hierarchy { mount, controllers: Some(vec![name.to_owned()]), own: PathBuf::new() }
    };
    // A made-up cpuset has none of the files that a kernel's has: it is left.
    let hierarchies = Hierarchies(["memory", "freezer", "devices", "cpuset"].map(hierarchy).into());
    let mut run = plan(Resources::default());
    let own = |name: &str| dir.path().join(name).join(&run.cgroup);
    let (memory, freezer, others) = (own("memory"), own("freezer"), [own("devices"), own("cpuset")]);
    assert!(RunCgroups::create(&run, &hierarchies, &no_gate()).unwrap().dirs.is_empty());
    run.security = SecurityMode::Insecure;
    let mut cgroups = RunCgroups::create(&run, &hierarchies, &no_gate()).unwrap();
    fs::create_dir_all(freezer.join("made/inside")).unwrap();
    assert!(memory.is_dir() && others.iter().all(|other| !other.exists()));
    assert!(cgroups.remove());
    assert!(!memory.exists() && !freezer.exists());
}

#[test]
fn version_2_values_are_converted() {
    let resources = Resources {
        memory: Some(100),
        memory_swap: Some(150),
        cpu_shares: Some(1024),
        cpu_quota: Some(50_000),
        ..Resources::default()
    };
    let values: Vec<_> = v2_limits(&resources).into_iter().map(|limit| (limit.file, limit.value)).collect();
    assert_eq!(
        values,
        [
            ("memory.max", "100".to_owned()),
            ("memory.swap.max", "50".to_owned()),
            ("cpu.weight", "39".to_owned()),
            ("cpu.max", "50000 100000".to_owned()),
        ]
    );
}
