//! Devices that a run gets beyond Docker's.

use lapstrake_builder_executor::{DeviceNode, HostMount, MountFlags, NodeKind, SecurityMode};

use crate::harness::{Kind, Sandbox, traces};

fn node(path: &str, kind: NodeKind, (major, minor): (u32, u32), access: &str) -> DeviceNode {
    let path = path.to_owned();
    DeviceNode { path, kind, major, minor, mode: 0o640, uid: None, gid: None, access: access.to_owned() }
}

pub(crate) async fn a_device_brings_nodes_mounts_variables_and_groups(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let host = sandbox.path("host");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("driver"), "of the host").unwrap();
    let mut spec = sandbox.sh(
        "stat -c '%n %F %t:%T %a %u:%g' /dev/vendor/null /dev/pipe; echo x > /dev/vendor/null && echo used; \
         cat /usr/lib/vendor/driver; echo; touch /usr/lib/vendor/x 2> /dev/null || echo read-only; \
         grep ' /usr/lib/vendor ' /proc/self/mountinfo | cut -d' ' -f6 | grep -o nosuid; echo $VENDOR; id -G",
    );
    spec.user = "app".into();
    spec.env.push("VENDOR=image".to_owned());
    spec.devices.env = vec!["VENDOR=device".to_owned()];
    spec.devices.nodes = vec![
        node("/dev/vendor/null", NodeKind::Character, (1, 3), "rw"),
        node("/dev/pipe", NodeKind::Pipe, (0, 0), "rwm"),
    ];
    let flags = MountFlags { read_only: true, no_suid: true, ..MountFlags::default() };
    spec.devices.mounts = vec![HostMount { source: host, target: "/usr/lib/vendor".to_owned(), flags }];
    spec.devices.groups = vec![63, 4711];
    let id = spec.id.to_string();
    let output = sandbox.run(spec).await.ok();
    let expected = "/dev/vendor/null character special file 1:3 640 1000:1001\n/dev/pipe fifo 0:0 640 1000:1001\nused\n\
        of the host\nread-only\nnosuid\ndevice\n";
    let groups = output.strip_prefix(expected).unwrap_or_else(|| panic!("{output}"));
    let mut groups: Vec<_> = groups.split_whitespace().collect();
    groups.sort();
    assert_eq!(groups, ["1001", "4711", "50", "63"]);
    assert!(!sandbox.upper().join("dev/vendor").exists());
    assert_eq!(traces(&id), [] as [String; 0]);
}

pub(crate) async fn a_device_may_be_used_as_far_as_it_says_and_others_not(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    // Loop devices without a file: to open them does nothing.
    let script = "cd /tmp; rm -f a b; mknod a b 7 0; mknod b b 7 1; for d in a b; do \
        (: < $d) 2> /dev/null && echo read $d; (: >> $d) 2> /dev/null && echo write $d; done; test -b /dev/disk && echo there";
    assert_eq!(sandbox.script(script).await.stdout, "");
    let mut spec = sandbox.sh(script);
    spec.devices.nodes = vec![node("/dev/disk", NodeKind::Block, (7, 0), "r")];
    let output = sandbox.run(spec).await;
    assert_eq!(output.stdout, "read a\nthere\n", "{output:?}");
    assert_eq!(sandbox.script(script).await.stdout, "");
}

pub(crate) async fn a_device_in_an_insecure_container(kind: Kind) {
    let sandbox = Sandbox::new(kind);
    let mut spec = sandbox.sh("stat -c '%n %t:%T' /dev/kmsg /dev/extra; (: < /dev/extra) && echo opened");
    spec.security = SecurityMode::Insecure;
    spec.devices.nodes = vec![
        node("/dev/extra", NodeKind::Character, (1, 3), "rw"),
        node("/dev/kmsg", NodeKind::Character, (1, 5), "rw"),
    ];
    assert_eq!(sandbox.run(spec).await.ok(), "/dev/kmsg 1:5\n/dev/extra 1:3\nopened\n");
}

pub(crate) async fn a_device_stands_in_for_one_of_dockers(kind: Kind) {
    if kind != Kind::Native {
        // The other runtimes make Docker's first and do not make the same path again.
        return;
    }
    let sandbox = Sandbox::new(kind);
    let mut spec = sandbox.sh("stat -c '%t:%T %a' /dev/full; rm -f /dev/full; ls /dev | grep -c full");
    spec.devices.nodes = vec![node("/dev/full", NodeKind::Character, (1, 5), "rwm")];
    assert_eq!(sandbox.run(spec).await.stdout, "1:5 640\n0\n");
    let mut spec = sandbox.sh("true");
    spec.devices.nodes = vec![node("/dev/pts", NodeKind::Character, (1, 5), "rwm")];
    let error = sandbox.try_run(spec).await.unwrap_err().to_string();
    assert!(error.contains("/dev/pts"), "{error}");
}
