//! An ordinary user's daemon and builds: as those of root, but for what an ordinary user cannot do.

#[allow(unreachable_pub)]
use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt as _, path::Path, process::Command};

use lapstrake_integration_cli::{
    Daemon, Docker, Dockerd, OrdinaryUser, busybox_rootfs, collect, differences, hand_over,
    lapstrake_command, saved_image, special_archive,
};

/// Owners, whiteouts, opaque directories, links, capabilities; at the end everything is of one time.
const EVERYTHING: &str = r#"FROM scratch
ADD base.tar mounted.tar special.tar /
RUN id -u && mkdir -p /gone/deep /kept /whole/below && echo old > /gone/deep/file && echo old > /kept/old && \
    echo x > /deleted && echo x > /whole/file && chown -R app:extra /kept && chown 65534:65534 /deleted && \
    touch -d @1000000000 /gone/deep/file /gone/deep /gone /kept/old /kept /whole/file /whole/below /whole /deleted
COPY --chown=app:extra --chmod=4750 tool.sh /tool.sh
COPY --chown=12345:54321 tool.sh /other.sh
RUN rm /deleted && rm -r /gone && mkdir /gone && echo new > /gone/new && echo changed > /kept/old && \
    touch -d @1000000000 /gone/new /gone /kept/old /kept
RUN ln /kept/old /kept/hard && ln -s /kept/old /kept/soft && mkdir -m 1777 /sticky && rm -r /whole && \
    mkdir /mine /theirs && chown app /mine && chown 40000:50000 /theirs && \
    touch -d @1000000000 /sticky /kept/old /kept /mine /theirs && touch -h -d @1000000000 /kept/soft
USER app
RUN test "$(id -u):$(id -g):$(id -G)" = "1000:1000:1000 2000" && test ! -w /etc && echo mine > /mine/file && \
    touch -d @1000000000 /mine/file /mine
USER 40000:50000
RUN test "$(id -u):$(id -g)" = 40000:50000 && echo theirs > /theirs/file && touch -d @1000000000 /theirs/file /theirs
"#;

/// What a step finds mounted: where that is in the image already, a step leaves no trace of it.
fn mounted() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |path: &str, kind| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_mtime(1_000_000_000);
        header.set_size(0);
        archive.append_data(&mut header, path, std::io::empty()).unwrap();
    };
    for path in ["dev", "proc", "sys", "etc"] {
        add(path, tar::EntryType::Directory);
    }
    for path in ["etc/hosts", "etc/resolv.conf"] {
        add(path, tar::EntryType::Regular);
    }
    archive.into_inner().unwrap()
}

fn files() -> [(&'static str, Vec<u8>); 5] {
    [
        ("Dockerfile", EVERYTHING.as_bytes().to_vec()),
        ("base.tar", busybox_rootfs()),
        ("mounted.tar", mounted()),
        ("special.tar", special_archive().into_inner().unwrap()),
        ("tool.sh", b"#!/bin/sh\n".to_vec()),
    ]
}

fn context(user: &OrdinaryUser) -> String {
    let files = files();
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, data)| (*name, data.as_slice())).collect();
    let dir = user.context("everything", &files);
    let files = std::iter::once(dir.clone()).chain(files.iter().map(|(name, _)| dir.join(name)));
    for file in files {
        let time = fs::FileTimes::new()
            .set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000));
        fs::File::open(file).unwrap().set_times(time).unwrap();
    }
    dir.display().to_string()
}

fn layers(docker: &Docker, image: &str) -> Vec<String> {
    let format = "{{json .RootFS.Layers}}";
    let layers = docker.run(["image", "inspect", "--format", format, image]).success();
    serde_json::from_str(layers.line()).unwrap()
}

#[test]
fn what_an_ordinary_user_builds_is_what_root_builds() {
    let (root, user, engine) = (Daemon::start(), OrdinaryUser::new(), Dockerd::start());
    let context = context(&user);
    let daemon = user.daemon(&[]);
    let info = daemon.docker().run(["info"]).success().stdout;
    assert!(info.contains("Storage Driver: overlay2") && info.contains("\n  rootless\n"), "{info}");
    for (name, ours, theirs) in [
        ("classic", root.docker().classic(), daemon.docker().classic()),
        ("buildkit", root.docker().buildkit(), daemon.docker().buildkit()),
    ] {
        for docker in [&ours, &theirs] {
            docker.run(["build", "-t", name, &context]).success();
        }
        let (own, other) = (
            saved_image(&ours.run(["save", name]).success().bytes),
            saved_image(&theirs.run(["save", name]).success().bytes),
        );
        assert_eq!(differences(&own.tree, &other.tree), Vec::<String>::new());
        assert_eq!(layers(&ours, name), layers(&theirs, name), "{name}");
        hand_over(&theirs, &engine.docker(), name);
        let loaded = saved_image(&engine.docker().run(["save", name]).success().bytes);
        assert_eq!(differences(&own.tree, &loaded.tree), Vec::<String>::new());
        let script = "cat /kept/old /mine/file; ls -A /gone; stat -c '%a %u:%g %n' /tool.sh /other.sh /kept /theirs/file; ls -d /whole /deleted";
        let run = ["run", "--rm", "--network=none", "--user=0", name, "/bin/sh", "-c", script];
        let seen = engine.docker().run(run).failure().stdout;
        let expected = "changed\nmine\nnew\n4750 1000:2000 /tool.sh\n644 12345:54321 /other.sh\n755 1000:2000 /kept\n644 40000:50000 /theirs/file\n";
        assert_eq!(seen, expected);
        // And back: what another engine made is taken as it is.
        theirs.run(["rmi", name]).success();
        hand_over(&engine.docker(), &theirs, name);
        assert_eq!(layers(&engine.docker(), name), layers(&theirs, name), "{name}");
        let again = saved_image(&theirs.run(["save", name]).success().bytes);
        assert_eq!(differences(&own.tree, &again.tree), Vec::<String>::new());
        theirs
            .run_with(
                ["build", "-"],
                format!("FROM {name}\nUSER 0\nRUN test ! -e /whole && test \"$(ls -A /gone)\" = new\n")
                    .as_bytes(),
            )
            .success();
    }
}

#[test]
fn cache_keys_are_those_of_root_also_of_a_context_that_is_sent() {
    let (own_root, user) = (tempfile::tempdir().unwrap(), OrdinaryUser::new());
    let mut context = tar::Builder::new(Vec::new());
    for (name, data) in files() {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(data.len() as u64);
        context.append_data(&mut header, name, data.as_slice()).unwrap();
    }
    let context = context.into_inner().unwrap();
    let keys = |build: &mut Command, cache: &Path| {
        build.arg(format!("--cache-to=type=local,mode=max,dest={}", cache.display())).arg("-");
        collect(build, &context).success();
        let mut keys = BTreeSet::new();
        for blob in fs::read_dir(cache.join("blobs/sha256")).unwrap() {
            let bytes = fs::read(blob.unwrap().path()).unwrap();
            let document: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
            let records = document["records"].as_array().into_iter().flatten();
            keys.extend(records.map(|record| record["digest"].to_string()));
        }
        keys
    };
    let root = own_root.path().join("root").display().to_string();
    let own = keys(&mut lapstrake_command(["build", "--root", &root]), &own_root.path().join("cache"));
    let other = keys(&mut user.lapstrake(["build"]), &user.home().join("cache"));
    assert!(own.len() > 5, "{own:?}");
    assert_eq!(own, other);
}

#[test]
fn a_step_has_the_machine_that_docker_gives_it_as_far_as_its_user_has_it() {
    let user = OrdinaryUser::new();
    let daemon = user.daemon(&[]);
    let docker = daemon.docker();
    docker.run_with(["import", "-", "busybox"], &busybox_rootfs()).success();
    let build = |step: &str, arguments: &[&str]| {
        let dockerfile = format!("FROM busybox\nRUN {step}\n");
        let all = ["build", "--no-cache"].iter().chain(arguments).chain(&["-"]);
        docker.run_with(all, dockerfile.as_bytes())
    };
    let sees = |step: &str, arguments: &[&str]| build(step, arguments).success().all();
    for network in ["default", "host", "none"] {
        let network = ["--network", network];
        // Its own processes; devices that work, and none besides; nothing of the machine's is writable.
        sees("test \"$(ls -d /proc/[0-9]* | wc -l)\" -lt 9 && test $$ = 1", &network);
        sees(
            "echo x > /dev/null && test \"$(head -c 2 /dev/zero | wc -c)\" = 2 && test -c /dev/urandom && test ! -e /dev/vda",
            &network,
        );
        sees(
            "test -d /sys/class && ! touch /sys/x && ! (echo 1 > /proc/sys/vm/drop_caches) && ! mount -t tmpfs x /tmp",
            &network,
        );
        sees(
            "for at in $(cut -d' ' -f2 /proc/mounts | grep ^/sys); do ! mkdir $at/mine || exit 1; done 2> /dev/null",
            &network,
        );
        sees("! mknod /tmp/null c 1 3 && ! chown 70000 /tmp", &network);
        sees("test \"$(cat /proc/self/status | grep Seccomp: | tr -dc 0-9)\" = 2", &network);
    }
    let addresses = sees(
        "cut -d: -f1 /proc/net/dev | tail -n +3 | tr -d ' ' | sort | tr '\\n' ,; echo",
        &["--network=none"],
    );
    assert!(addresses.contains(" lo,\n"), "{addresses}");
}

#[test]
fn what_is_granted_and_lent_reaches_a_step() {
    let user = OrdinaryUser::new();
    let dockerfile = "FROM scratch\nADD base.tar /\n\
        RUN --security=insecure mount -t tmpfs x /tmp && test -c /dev/full && ! mknod /x c 1 3\n\
        RUN --mount=type=cache,target=/c,uid=1000 --mount=type=tmpfs,target=/t --mount=type=secret,id=key,uid=1000,mode=0400 \
            test \"$(stat -c %u:%a /run/secrets/key)\" = 1000:400 && touch /t/x && test \"$(stat -c %u /c)\" = 1000\n\
        USER app\n\
        RUN --mount=type=secret,id=key,uid=1000,mode=0400 test \"$(cat /run/secrets/key)\" = lent\n\
        RUN echo half > /tmp/half; exit 9\n";
    let files: [(&str, &[u8]); 2] = [("Dockerfile", dockerfile.as_bytes()), ("base.tar", &busybox_rootfs())];
    let context = user.context("granted", &files).display().to_string();
    fs::write(user.home().join("key"), "lent").unwrap();
    let arguments =
        ["build", "--allow=security.insecure", "--keep-failed=kept:1", "--secret=id=key,src=key", &context];
    let failed = collect(&mut user.lapstrake(arguments), b"").failure().stderr;
    assert!(failed.contains("exit code: 9") && failed.contains("kept as image kept:1"), "{failed}");
    let again = b"FROM kept:1\nRUN test \"$(cat /tmp/half):$(id -u)\" = half:1000\n";
    collect(&mut user.lapstrake(["build", "-"]), again).success();
    // While a daemon has the store open, it is asked.
    let _daemon = user.daemon(&[]);
    let df = collect(&mut user.lapstrake(["df"]), b"").success().stdout;
    assert!(df.contains("images"), "{df}");
}

#[test]
fn lapstrake_build_leaves_files_that_are_the_users_own() {
    let user = OrdinaryUser::new();
    let context = context(&user);
    let run = |arguments: &[&str]| collect(&mut user.lapstrake(arguments), b"");
    run(&["build", "-t", "app", &context]).success();
    run(&["build", "-o", "out", &context]).success();
    let out = user.home().join("out");
    assert_eq!(fs::read_to_string(out.join("kept/old")).unwrap(), "changed\n");
    for path in ["", "kept/old", "tool.sh", "theirs/file"] {
        let found = fs::symlink_metadata(out.join(path)).unwrap();
        assert_eq!((found.uid(), found.gid()), (user.id(), user.id()), "{path}");
    }
    // The store is theirs, too; what others within the namespace own has subordinate ids.
    let store = fs::metadata(user.root().join("metadata.db")).unwrap();
    assert_eq!(store.uid(), user.id());
    let df = run(&["df"]).success().stdout;
    assert!(df.contains("images"), "{df}");
    run(&["prune", "--all"]).success();
    let archive = collect(&mut user.lapstrake(["build", "-o", "type=tar", &context]), b"").success().bytes;
    let owner =
        tar::Archive::new(archive.as_slice()).entries().unwrap().map(Result::unwrap).find_map(|entry| {
            (entry.path().unwrap().to_string_lossy() == "other.sh")
                .then(|| (entry.header().uid().unwrap(), entry.header().gid().unwrap()))
        });
    assert_eq!(owner, Some((12345, 54321)));
    assert_eq!(user.id_within(1), user.id_within(2) - 1);
}

#[test]
fn what_an_ordinary_user_cannot_do_is_refused_and_says_why() {
    let user = OrdinaryUser::new();
    let daemon = user.daemon(&[]);
    let docker = daemon.docker().classic();
    docker.run_with(["import", "-", "busybox"], &busybox_rootfs()).success();
    let build = |arguments: &[&str]| {
        let all = ["build", "--no-cache"].iter().chain(arguments).chain(&["-"]);
        docker.run_with(all, b"FROM busybox\nRUN true\n")
    };
    build(&[]).success();
    for (limit, word) in [
        ("--memory=64m", "memory"),
        ("--cpu-shares=5", "cpu-shares"),
        ("--cpu-quota=50000", "cpu-quota"),
        ("--cpuset-cpus=0", "cpuset-cpus"),
    ] {
        let refused = build(&[limit]).failure().all();
        assert!(refused.contains(word) && refused.contains("ordinary user"), "{limit}: {refused}");
    }
    // Limits that need nobody are honoured.
    let own = ["build", "--ulimit=nofile=99:100", "--shm-size=1m", "-"];
    let step = b"FROM busybox\nRUN test \"$(ulimit -n)\" = 99 && df -k /dev/shm | grep -q ' 1024 '\n";
    docker.run_with(own, step).success();
    let raised = build(&["--ulimit=nofile=999999999:999999999"]).failure().all();
    assert!(raised.contains("nofile"), "{raised}");
    // Device nodes of an image.
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Char);
    header.set_device_major(1).unwrap();
    header.set_device_minor(3).unwrap();
    header.set_mode(0o666);
    header.set_size(0);
    archive.append_data(&mut header, "dev/null", std::io::empty()).unwrap();
    let refused = docker.run_with(["import", "-", "devices"], &archive.into_inner().unwrap()).failure().all();
    assert!(refused.contains("dev/null") && refused.contains("ordinary user"), "{refused}");
    drop(daemon);
    let refused = collect(&mut user.lapstrake(["daemon", "--group", "nogroup"]), b"").failure().all();
    assert!(refused.contains("--group nogroup") && refused.contains("ordinary user"), "{refused}");
    let refused =
        collect(&mut user.lapstrake(["daemon", "--oci-runtime", "/usr/sbin/runc"]), b"").failure().all();
    assert!(
        refused.contains("--oci-runtime /usr/sbin/runc") && refused.contains("ordinary user"),
        "{refused}"
    );
    let refused = collect(user.lapstrake(["daemon"]).env_remove("XDG_RUNTIME_DIR"), b"").failure().all();
    assert!(refused.contains("XDG_RUNTIME_DIR"), "{refused}");
}

#[test]
fn without_subordinate_ids_it_says_how_to_get_them() {
    for count in [0, 1000] {
        let user = OrdinaryUser::with_ids(count);
        let context = context(&user);
        for arguments in [vec!["daemon"], vec!["build", &context]] {
            let refused = collect(&mut user.lapstrake(arguments), b"").failure().stderr;
            assert!(
                refused.contains(&format!("/etc/subuid: user lapstrake-test has {count} subordinate ids")),
                "{refused}"
            );
            assert!(
                refused.contains(
                    "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 lapstrake-test"
                ),
                "{refused}"
            );
        }
        assert!(!user.root().join("metadata.db").exists());
    }
}

#[test]
fn nothing_is_left_behind_however_it_ends() {
    let user = OrdinaryUser::new();
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap().matches("lapstrake-user-").count();
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::KILL] {
        let mut daemon = user.daemon(&[]);
        let docker = daemon.docker();
        docker.run_with(["import", "-", "busybox"], &busybox_rootfs()).success();
        docker
            .run_with(
                ["build", "-t", "app", "-"],
                b"FROM busybox\nRUN mkdir /a && chown 5:6 /a && touch /b\n",
            )
            .success();
        let mut build = docker.buildkit().command(["build", "--no-cache", "-"]);
        build.stdin(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let mut build = build.spawn().unwrap();
        std::io::Write::write_all(
            &mut build.stdin.take().unwrap(),
            b"FROM busybox\nRUN echo begun; sleep 1000\n",
        )
        .unwrap();
        let mut told = std::io::BufReader::new(build.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("begun") {
            line.clear();
            assert_ne!(std::io::BufRead::read_line(&mut told, &mut line).unwrap(), 0);
        }
        assert!(user.processes().iter().any(|line| line.contains("sleep")), "{:?}", user.processes());
        daemon.process().signal(signal);
        daemon.process().wait();
        build.wait().unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !user.processes().is_empty() {
            assert!(std::time::Instant::now() < deadline, "{:?}", user.processes());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(mounts(), 0);
        // The store opens, and has what was built.
        let daemon = user.daemon(&[]);
        daemon.docker().run(["build", "-q", "-"]).all();
        daemon
            .docker()
            .run_with(["build", "-"], b"FROM app\nRUN test \"$(stat -c %u:%g /a)\" = 5:6\n")
            .success();
    }
}
