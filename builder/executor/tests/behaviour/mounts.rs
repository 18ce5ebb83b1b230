//! Mounts of all kinds.

use std::{
    fs,
    io::{Read, Write},
    os::unix::{
        fs::{MetadataExt, symlink},
        net::UnixListener,
    },
};

use lapstrake_builder_executor::{MountKind, MountSpec, ProcessSpec, RunId};
use lapstrake_layerstore_store::{OverlaySyntax, OverlayUpper, SnapshotMount};

use crate::harness::{Kind, Sandbox};

fn mount(spec: &mut ProcessSpec, target: &str, kind: MountKind) {
    spec.mounts.push(MountSpec { target: target.into(), kind });
}

fn bind(source: std::path::PathBuf, read_only: bool) -> MountKind {
    MountKind::Bind { source, read_only }
}

pub(crate) async fn bind_read_write_and_read_only(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let host = sandbox.path("host");
    fs::create_dir(&host).unwrap();
    fs::write(host.join("f"), "from host").unwrap();
    let mut spec = sandbox.sh("cat /ro/f; echo new > /rw/g; touch /ro/h || echo refused");
    mount(&mut spec, "/rw", bind(host.clone(), false));
    mount(&mut spec, "/ro", bind(host.clone(), true));
    assert_eq!(sandbox.run(spec).await.ok(), "from hostrefused\n");
    assert_eq!(fs::read_to_string(host.join("g")).unwrap(), "new\n");
    assert!(!host.join("h").exists());
}

pub(crate) async fn snapshot_with_selector(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    for name in ["l/a/b", "u", "w"] {
        fs::create_dir_all(sandbox.path("snap").join(name)).unwrap();
    }
    fs::write(sandbox.path("snap/l/a/b/f"), "deep").unwrap();
    let snapshot = SnapshotMount::Overlay {
        lower: vec![sandbox.path("snap/l")],
        upper: Some(OverlayUpper { upper: sandbox.path("snap/u"), work: sandbox.path("snap/w") }),
        syntax: OverlaySyntax::Appended,
    };
    let select = |selector: &str, read_only| MountKind::Snapshot {
        mount: snapshot.clone(),
        selector: selector.into(),
        read_only,
        shared: false,
    };
    let mut spec = sandbox.sh("cat /m/f; echo x > /m/new; ls /m");
    mount(&mut spec, "/m", select("/a/b", false));
    assert_eq!(sandbox.run(spec).await.ok(), "deepf\nnew\n");
    assert!(sandbox.path("snap/u/a/b/new").exists());
    let mut spec = sandbox.sh("cat /m; echo x > /m || echo refused");
    mount(&mut spec, "/m", select("a/b/f", true));
    assert_eq!(sandbox.run(spec).await.ok(), "deeprefused\n");
    let mut spec = sandbox.sh("true");
    mount(&mut spec, "/m", select("a/absent", true));
    let error = sandbox.try_run(spec).await.unwrap_err();
    assert!(error.to_string().contains("a/absent"), "{error}");
}

pub(crate) async fn shared_overlays_are_one_to_containers_at_once(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    for name in ["l/below", "u", "w"] {
        fs::create_dir_all(sandbox.path("snap").join(name)).unwrap();
    }
    fs::write(sandbox.path("snap/l/below/f"), "lower").unwrap();
    let snapshot = SnapshotMount::Overlay {
        lower: vec![sandbox.path("snap/l")],
        upper: Some(OverlayUpper { upper: sandbox.path("snap/u"), work: sandbox.path("snap/w") }),
        syntax: OverlaySyntax::Appended,
    };
    let shared = |selector: &str| MountKind::Snapshot {
        mount: snapshot.clone(),
        selector: selector.into(),
        read_only: false,
        shared: true,
    };
    // Each waits for what the other one does, and changes a file that was below.
    let waits = |mine: &str, other: &str| {
        let script = format!(
            "echo {mine} >> /m/below/f; touch /m/below/{mine}; until [ -e /m/below/{other} ]; do usleep 10000; done; \
             touch /m/below/{mine}-done; until [ -e /m/below/{other}-done ]; do usleep 10000; done"
        );
        let (upper, work) = (sandbox.path(mine).join("upper"), sandbox.path(mine).join("work"));
        fs::create_dir_all(&upper).unwrap();
        fs::create_dir(&work).unwrap();
        let mut spec = sandbox.sh(&script);
        spec.root = SnapshotMount::Overlay {
            lower: vec![sandbox.lower()],
            upper: Some(OverlayUpper { upper, work }),
            syntax: OverlaySyntax::Appended,
        };
        mount(&mut spec, "/m", shared(""));
        spec
    };
    let (one, two) = tokio::join!(sandbox.run(waits("one", "two")), sandbox.run(waits("two", "one")));
    assert_eq!((one.ok(), two.ok()), (String::new(), String::new()));
    // What they left is there for the next one, who has a part of it twice.
    let mut spec = sandbox.sh("cat /m/f; touch /m/more; ls /n");
    mount(&mut spec, "/m", shared("below"));
    mount(&mut spec, "/n", shared("/below"));
    let expected = "lowerone\ntwo\nf\nmore\none\none-done\ntwo\ntwo-done\n";
    let output = sandbox.run(spec).await.ok();
    let turned = expected.replace("lowerone\ntwo", "lowertwo\none");
    assert!(output == expected || output == turned, "{output:?}");
    assert!(sandbox.path("snap/u/below/more").exists());
}

pub(crate) async fn selector_links_stay_in_the_snapshot(kind: Kind) {
    // CVE-2024-23651, CVE-2024-1753: a source path that is a link out of the snapshot.
    let sandbox = Sandbox::new(kind);
    let snapshot = sandbox.path("snap");
    fs::create_dir_all(snapshot.join("etc")).unwrap();
    fs::write(snapshot.join("etc/mark"), "inside").unwrap();
    symlink("/", snapshot.join("out")).unwrap();
    symlink("../../../../../../..", snapshot.join("up")).unwrap();
    for selector in ["/out/etc", "/up/etc", "../../../etc"] {
        let mut spec = sandbox.sh("cat /m/mark; ls /m");
        let source = SnapshotMount::Bind { source: snapshot.clone(), read_only: true };
        mount(
            &mut spec,
            "/m",
            MountKind::Snapshot { mount: source, selector: selector.into(), read_only: true, shared: false },
        );
        assert_eq!(sandbox.run(spec).await.ok(), "insidemark\n", "{selector}");
    }
}

pub(crate) async fn tmpfs_is_limited(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let mut spec =
        sandbox.sh("stat -f -c %T /t; head -c 2000000 /dev/zero > /t/f || echo full; stat -c %a /t");
    mount(&mut spec, "/t", MountKind::Tmpfs { size: Some(1 << 20) });
    assert_eq!(sandbox.run(spec).await.ok(), "tmpfs\nfull\n1777\n");
    assert!(!sandbox.upper().join("t").exists());
}

pub(crate) async fn secret_has_owner_and_mode(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let mut spec = sandbox.sh(
        "cat /run/secrets/key; stat -c %u:%g:%a /run/secrets/key; echo x > /run/secrets/key || echo refused",
    );
    spec.user = "app".into();
    mount(
        &mut spec,
        "/run/secrets/key",
        MountKind::Secret { data: b"hush\0\xff\n".to_vec(), uid: 1000, gid: 50, mode: 0o400 },
    );
    let debug = format!("{spec:?}");
    assert!(!debug.contains("104, 117"), "{debug}");
    let output = sandbox.run(spec).await;
    assert!(output.stdout.starts_with("hush\0"), "{output:?}");
    assert!(output.stdout.ends_with("1000:50:400\nrefused\n"), "{output:?}");
    assert!(!sandbox.upper().join("run/secrets/key").exists());
}

pub(crate) async fn ssh_socket_can_be_reached(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let socket = sandbox.path("agent");
    let listener = UnixListener::bind(&socket).unwrap();
    let agent = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut asked = [0; 4];
        client.read_exact(&mut asked).unwrap();
        client.write_all(b"pong").unwrap();
        asked
    });
    let mut spec = sandbox.sh("stat -c %u:%g:%a:%F /run/agent; printf ping | nc local:/run/agent");
    spec.user = "app".into();
    mount(
        &mut spec,
        "/run/agent",
        MountKind::SshAgent { socket: socket.clone(), uid: 1000, gid: 1001, mode: 0o600 },
    );
    let output = sandbox.run(spec).await;
    assert!(output.stdout.starts_with("1000:1001:600:socket\n"), "{output:?}");
    // Busybox's nc may be built without unix sockets; connecting from outside ends the agent then.
    if output.stdout.ends_with("pong") {
        assert_eq!(&agent.join().unwrap(), b"ping");
    }
}

pub(crate) async fn file_on_missing_target(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    fs::write(sandbox.path("file"), "content").unwrap();
    let mut spec = sandbox.sh("cat /a/b/c.txt");
    mount(&mut spec, "/a/b/c.txt", bind(sandbox.path("file"), true));
    assert_eq!(sandbox.run(spec).await.ok(), "content");
}

pub(crate) async fn mount_inside_mount(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let (outer, inner) = (sandbox.path("outer"), sandbox.path("inner"));
    fs::create_dir(&outer).unwrap();
    fs::create_dir(&inner).unwrap();
    fs::write(inner.join("f"), "in").unwrap();
    let mut spec = sandbox.sh("cat /m/sub/f; echo o > /m/o");
    mount(&mut spec, "/m", bind(outer.clone(), false));
    mount(&mut spec, "/m/sub", bind(inner, true));
    assert_eq!(sandbox.run(spec).await.ok(), "in");
    assert!(outer.join("o").exists());
}

pub(crate) async fn last_mount_on_a_target_wins(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    fs::write(sandbox.path("one"), "one").unwrap();
    fs::write(sandbox.path("two"), "two").unwrap();
    let mut spec = sandbox.sh("cat /x; cat /etc/hosts");
    mount(&mut spec, "/x", bind(sandbox.path("one"), true));
    mount(&mut spec, "//x/", bind(sandbox.path("two"), true));
    mount(&mut spec, "/etc/hosts", bind(sandbox.path("one"), true));
    assert_eq!(sandbox.run(spec).await.ok(), "twoone");
}

pub(crate) async fn read_only_root(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let mut spec = sandbox
        .sh("touch /x || echo refused; touch /m/y && touch /dev/shm/z && touch /new/w || echo no; pwd");
    spec.read_only_root = true;
    spec.cwd = "/made".into();
    mount(&mut spec, "/m", MountKind::Tmpfs { size: None });
    assert_eq!(sandbox.run(spec).await.ok(), "refused\nno\n/made\n");
    assert!(!sandbox.upper().join("m").exists());
}

pub(crate) async fn many_lower_directories(kind: Kind) {
    // BuildKit and dockerd run into one page of mount options; so would long paths here.
    let sandbox = Sandbox::new(kind);
    let mut lower = Vec::new();
    for n in 0..120 {
        let dir = sandbox.path(&format!("layer-{n}-{}", "x".repeat(60)));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join(format!("f{n}")), n.to_string()).unwrap();
        lower.push(dir);
    }
    lower.push(sandbox.lower());
    let mut spec = sandbox.sh("ls / | grep -c '^f'; cat /f119");
    // Each in turn, as the kernel it is for would have it.
    for syntax in [OverlaySyntax::Appended, OverlaySyntax::Listed] {
        spec.root = SnapshotMount::Overlay {
            lower: lower.clone(),
            upper: Some(OverlayUpper { upper: sandbox.upper(), work: sandbox.path("work") }),
            syntax,
        };
        spec.id = RunId::random();
        assert_eq!(sandbox.run(spec.clone()).await.ok(), "120\n119", "{syntax:?}");
    }
}

pub(crate) async fn bind_root(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let mut spec = sandbox.sh("echo x > /made; awk '$5 == \"/\" {n++} END {print n}' /proc/self/mountinfo");
    spec.root = SnapshotMount::Bind { source: sandbox.lower(), read_only: false };
    assert_eq!(sandbox.run(spec).await.ok(), "1\n");
    assert_eq!(fs::metadata(sandbox.lower().join("made")).unwrap().uid(), 0);
    assert!(!sandbox.lower().join("etc/hosts").exists());
}
