//! Every kind of mount.

use std::os::unix::fs::MetadataExt;

use lapstrake_builder_llb::pb;
use lapstrake_tests::{Client, Workbench};

use crate::raw_llb::support::{Llb, bind, cache, exec, failure, look, read_only, solve, solve_with};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_to_a_mount_is_an_output_or_is_gone() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    let busybox = llb.busybox();
    let seed = llb.text("/seed", "s");
    let script =
        "echo a >> /changed/seed; echo b > /scratch/new; echo c > /lost/new; ! touch /kept/x 2>/dev/null";
    let ran = llb.exec(
        &[&busybox, &seed],
        script,
        vec![
            bind("/", 0, 0),
            bind("/changed", 1, 1),
            bind("/scratch", -1, 2),
            // Written to, and thrown away.
            bind("/lost", 1, -1),
            read_only(bind("/kept", 1, -1)),
        ],
    );
    assert_eq!(look(&bench, &mut llb, &ran.output(1), "ls; cat seed").await, "seed\nsa\n");
    assert_eq!(look(&bench, &mut llb, &ran.output(2), "ls; cat new").await, "new\nb\n");
    // The input is as it was, and mount points leave nothing in the root.
    assert_eq!(look(&bench, &mut llb, &seed, "ls; cat seed").await, "seed\ns");
    assert_eq!(
        look(&bench, &mut llb, &ran, "ls -d changed scratch lost kept 2>/dev/null || echo none").await,
        "none\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_output_is_its_input() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    let (busybox, seed) = (llb.busybox(), llb.text("/seed", "s"));
    let mounts = vec![bind("/", 0, 0), read_only(bind("/m", 1, 1))];
    let ran = llb.exec(&[&busybox, &seed], "! touch /m/x 2>/dev/null", mounts);
    assert_eq!(look(&bench, &mut llb, &ran.output(1), "ls").await, "seed\n");
    let mounts = vec![read_only(bind("/", 0, -1)), bind("/out", -1, 0)];
    let ran = llb.exec(&[&busybox], "! touch /x 2>/dev/null; touch /out/y", mounts);
    assert_eq!(look(&bench, &mut llb, &ran, "ls").await, "y\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_selector_takes_a_file_or_a_directory_and_leads_nowhere_else() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    let busybox = llb.busybox();
    let made = llb
        .run(&busybox, "mkdir -p /d/e; echo f > /d/e/f; ln -s ../../../../etc/passwd /d/up; ln -s d/e /to");
    let select = |dest: &str, selector: &str| pb::Mount {
        selector: selector.to_owned(),
        ..read_only(bind(dest, 1, -1))
    };
    let mounts = vec![
        bind("/", 0, -1),
        bind("/out", -1, 0),
        select("/dir", "/d/e"),
        select("/file", "d/e/f"),
        select("/link", "/to"),
    ];
    let ran = llb.exec(&[&busybox, &made], "cat /dir/f /file /link/f > /out/all", mounts);
    assert_eq!(look(&bench, &mut llb, &ran, "cat all").await, "f\nf\nf\n");
    let missing = vec![bind("/", 0, 0), select("/m", "/not/there")];
    let ran = llb.exec(&[&busybox, &made], "true", missing);
    let error = failure(&bench, &llb, &ran).await;
    assert!(error.contains("/not/there") || error.contains("not/there"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn cache_mounts_stay_from_build_to_build_and_begin_as_what_they_are_given() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    let busybox = llb.busybox();
    let base = llb.text("/base", "b");
    let shared = pb::CacheSharingOpt::Shared;
    let mounts = || vec![bind("/", 0, 0), cache("/one", -1, "one", shared), cache("/two", 1, "two", shared)];
    let first = llb.exec(&[&busybox, &base], "echo 1 > /one/x; echo 2 >> /two/base", mounts());
    solve(&bench, &llb, &first).await.unwrap();
    let second = llb.exec(&[&busybox, &base], "cat /one/x /two/base > /seen", mounts());
    solve(&bench, &llb, &second).await.unwrap();
    assert_eq!(bench.read("app", "seen"), "1\nb2\n");
    // Read-only, and a part of it.
    let part = pb::Mount { selector: "x".to_owned(), ..read_only(cache("/one/y", -1, "one", shared)) };
    let third =
        llb.exec(&[&busybox], "cat /one/y > /seen; ! echo > /one/y 2>/dev/null", vec![bind("/", 0, 0), part]);
    solve(&bench, &llb, &third).await.unwrap();
    assert_eq!(bench.read("app", "seen"), "1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_cache_mounted_twice_in_a_step_is_one() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    let busybox = llb.busybox();
    let locked = pb::CacheSharingOpt::Locked;
    let mounts = vec![bind("/", 0, 0), cache("/m1", -1, "c", locked), cache("/m2", -1, "c", locked)];
    let ran = llb.exec(&[&busybox], "test ! -e /m2/foo; touch /m1/foo; test -e /m2/foo", mounts);
    solve(&bench, &llb, &ran).await.unwrap();
    // Also on top of a tree.
    let base = llb.text("/base", "b");
    let mounts = vec![bind("/", 0, 0), cache("/m1", 1, "c", locked), cache("/m2", 1, "c", locked)];
    let script = "test ! -e /m2/foo; echo 1 >> /m1/base; touch /m1/foo; test -e /m2/foo; grep b1 /m2/base";
    let ran = llb.exec(&[&busybox, &base], script, mounts);
    solve(&bench, &llb, &ran).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn steps_that_share_a_cache_run_at_once_also_on_top_of_a_tree() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    let busybox = llb.busybox();
    let base = llb.text("/base", "b");
    for under in [-1, 1] {
        let mounts = || vec![bind("/", 0, 0), cache("/c", under, "c", pb::CacheSharingOpt::Shared)];
        let mut waits = |mine: &str, other: &str| {
            let script = format!("touch /c/{mine}; until test -e /c/{other}; do usleep 10000; done");
            llb.exec(&[&busybox, &base], &script, mounts())
        };
        let (one, two) = (waits("one", "two"), waits("two", "one"));
        let both = vec![bind("/", 0, 0), bind("/one", 1, -1), bind("/two", 2, -1)];
        let ran = llb.exec(&[&busybox, &one, &two], "true", both);
        solve(&bench, &llb, &ran).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_without_cache_has_its_cache_mounts_new_once() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    let busybox = llb.busybox();
    let locked = pb::CacheSharingOpt::Locked;
    let both = || vec![bind("/", 0, 0), cache("/m1", -1, "c1", locked), cache("/m2", -1, "c2", locked)];
    let ran = llb.exec(&[&busybox], "touch /m1/foo /m2/bar", both());
    solve(&bench, &llb, &ran).await.unwrap();
    let mounts = || vec![bind("/", 0, 0), cache("/m1", -1, "c1", locked)];
    let anew = llb.exec(&[&busybox], "test ! -e /m1/foo; touch /m1/foo2", mounts());
    llb.say(&anew).ignore_cache = true;
    // A further step of the same build sees what the first one left.
    let next = llb.exec(&[&anew], "test -e /m1/foo2", mounts());
    llb.say(&next).ignore_cache = true;
    solve(&bench, &llb, &next).await.unwrap();
    let ran = llb.exec(&[&busybox], "test -e /m1/foo2; test ! -e /m1/foo; test -e /m2/bar", both());
    solve(&bench, &llb, &ran).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tmpfs_is_empty_of_its_size_and_gone() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    let busybox = llb.busybox();
    let tmpfs = pb::Mount {
        mount_type: pb::MountType::Tmpfs.into(),
        tmpfs_opt: Some(pb::TmpfsOpt { size: 2 << 20 }),
        ..bind("/tmpfs", -1, -1)
    };
    let script = "df -k /tmpfs | awk 'END {print $2}' > /size; touch /tmpfs/x; ! head -c 3000000 /dev/zero > /tmpfs/y 2>/dev/null";
    let ran = llb.exec(&[&busybox], script, vec![bind("/", 0, 0), tmpfs]);
    solve(&bench, &llb, &ran).await.unwrap();
    assert_eq!(bench.read("app", "size"), "2048\n");
    assert!(!bench.has("app", "tmpfs"));
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_files_and_variables_and_stay_nowhere() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    let session = Client::default().secret("s", b"hush\n").secret("v", b"value").connect(&bench.sessions);
    let busybox = llb.busybox();
    let secret = |dest: &str, opt: pb::SecretOpt| pb::Mount {
        mount_type: pb::MountType::Secret.into(),
        secret_opt: Some(opt),
        ..bind(dest, -1, -1)
    };
    let opt =
        |id: &str, optional: bool| pb::SecretOpt { id: id.to_owned(), uid: 3, gid: 4, mode: 0o440, optional };
    let mounts = vec![
        bind("/", 0, 0),
        secret("/run/secrets/s", opt("s", false)),
        secret("/run/secrets/none", opt("none", true)),
    ];
    let mut op = exec(
        "stat -c '%u %g %a' /run/secrets/s > /seen; cat /run/secrets/s >> /seen; echo $V ${W-unset} >> /seen; test ! -e /run/secrets/none",
        mounts,
    );
    let env =
        |id: &str, name: &str, optional| pb::SecretEnv { id: id.to_owned(), name: name.to_owned(), optional };
    op.meta.as_mut().unwrap().remove_mount_stubs_recursive = true;
    op.secretenv = vec![env("v", "V", false), env("none", "W", true)];
    let ran = llb.add(&[&busybox], pb::op::Op::Exec(op.clone()));
    solve_with(&bench, session.clone(), &llb, &ran).await.unwrap();
    assert_eq!(bench.read("app", "seen"), "3 4 440\nhush\nvalue unset\n");
    assert!(!bench.has("app", "run/secrets"));

    op.secretenv = vec![env("none", "W", false)];
    let ran = llb.add(&[&busybox], pb::op::Op::Exec(op));
    let error = solve_with(&bench, session, &llb, &ran).await.unwrap_err().to_string();
    assert!(error.contains("secret none: not found"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ssh_mount_needs_a_session_unless_it_is_optional() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    let busybox = llb.busybox();
    let ssh = |optional| pb::Mount {
        mount_type: pb::MountType::Ssh.into(),
        ssh_opt: Some(pb::SshOpt { id: "default".to_owned(), mode: 0o600, optional, ..Default::default() }),
        ..bind("/run/agent.sock", -1, -1)
    };
    let ran = llb.exec(&[&busybox], "test ! -e /run/agent.sock", vec![bind("/", 0, 0), ssh(true)]);
    solve(&bench, &llb, &ran).await.unwrap();
    let ran = llb.exec(&[&busybox], "true", vec![bind("/", 0, 0), ssh(false)]);
    assert!(solve(&bench, &llb, &ran).await.is_err());
    let session = Client::default().connect(&bench.sessions);
    let error = solve_with(&bench, session, &llb, &ran).await.unwrap_err().to_string();
    assert!(error.contains("no SSH key \"default\" forwarded from the client"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_within_mounts_are_made_from_outside_in_and_leave_no_marks() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    let busybox = llb.busybox();
    let seed = llb.text("/seed", "s");
    let made = llb.run(&busybox, "mkdir -p /a/b; touch -d @1000000000 /a/b /a");
    let mounts = vec![
        bind("/", 0, 0),
        // Named before what it is in.
        read_only(bind("/a/b/c", 1, -1)),
        bind("/a/b", -1, -1),
    ];
    let mut op = exec("cat /a/b/c/seed > /seen; touch /a/b/x", mounts);
    op.meta.as_mut().unwrap().remove_mount_stubs_recursive = true;
    let ran = llb.add(&[&made, &seed], pb::op::Op::Exec(op));
    solve(&bench, &llb, &ran).await.unwrap();
    assert_eq!(bench.read("app", "seen"), "s");
    assert!(!bench.has("app", "a/b/c") && !bench.has("app", "a/b/x"));
    let below = bench.open("app").path().join("a/b").metadata().unwrap();
    assert_eq!(below.mtime(), 1_000_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn content_may_stand_for_a_mount_where_that_is_safe() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    let busybox = llb.busybox();
    let mut made = |text: &str| {
        let one = llb
            .run(&busybox, &format!("mkdir /d; echo same > /d/f; echo {text} > /other; touch -d @1 /d/f /d"));
        let mount = pb::Mount {
            selector: "/d".to_owned(),
            content_cache: pb::MountContentCache::On.into(),
            ..read_only(bind("/m", 1, -1))
        };
        let mounts = vec![bind("/", 0, -1), mount, bind("/out", -1, 0)];
        llb.exec(&[&busybox, &one], "cat /m/f /proc/sys/kernel/random/uuid > /out/seen", mounts)
    };
    let (first, second) = (made("1"), made("2"));
    solve(&bench, &llb, &first).await.unwrap();
    let seen = bench.read("app", "seen");
    // Another vertex over the same files: found, not run.
    solve(&bench, &llb, &second).await.unwrap();
    assert_eq!(bench.read("app", "seen"), seen);
    let unsafe_mount = pb::Mount {
        selector: "/d".to_owned(),
        content_cache: pb::MountContentCache::On.into(),
        ..bind("/m", 1, 1)
    };
    let base = llb.run(&busybox, "mkdir /d");
    let ran = llb.exec(&[&busybox, &base], "true", vec![bind("/", 0, 0), unsafe_mount]);
    let error = failure(&bench, &llb, &ran).await;
    assert!(error.contains("mount /m: its content cannot stand for it"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_without_a_slash_is_below_the_working_directory() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    let (busybox, seed) = (llb.busybox(), llb.text("/seed", "s"));
    let mut op = exec("cat /work/in/seed > /work/out/seen", Vec::new());
    op.meta.as_mut().unwrap().cwd = "/work".to_owned();
    op.mounts = vec![bind("/", 0, -1), read_only(bind("in", 1, -1)), bind("out", -1, 0)];
    let ran = llb.add(&[&busybox, &seed], pb::op::Op::Exec(op));
    solve(&bench, &llb, &ran).await.unwrap();
    assert_eq!(bench.read("app", "seen"), "s");
}
