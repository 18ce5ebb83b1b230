use std::{fs, path::Path};

use super::*;

const NULL: &str = r#"
cdiVersion: "0.6.0"
kind: vendor.com/thing
annotations:
  org.mobyproject.buildkit.device.class: things
containerEdits:
  env: [ALL=1]
devices:
- name: second
  containerEdits:
    env: [SECOND=2]
- name: first
  annotations:
    org.mobyproject.buildkit.device.autoallow: "true"
  containerEdits:
    deviceNodes:
    - path: /dev/thing/null
      hostPath: /dev/null
      permissions: rw
    mounts:
    - {hostPath: /etc, containerPath: /host/etc, options: [ro, nosuid, nodev, bind]}
    additionalGids: [0, 7]
"#;

fn list(files: &[(&str, &str)]) -> DeviceList {
    let dir = tempfile::tempdir().unwrap();
    let mut devices = CdiDevices { directories: Vec::new(), auto_allowed: vec!["other.com/b".to_owned()] };
    for (path, text) in files {
        let path = dir.path().join(path);
        let parent = path.parent().unwrap().to_owned();
        fs::create_dir_all(&parent).unwrap();
        fs::write(path, text).unwrap();
        if !devices.directories.contains(&parent) {
            devices.directories.push(parent);
        }
    }
    devices.scan()
}

fn find(list: &DeviceList, name: &str) -> Vec<String> {
    list.find([DeviceRequest { name, optional: true }]).unwrap()
}

fn json(kind: &str, device: &str, edits: &str) -> String {
    format!(
        r#"{{"cdiVersion":"1.0.0","kind":"{kind}","devices":[{{"name":"{device}","containerEdits":{edits}}}]}}"#
    )
}

#[test]
fn names_classes_and_stars_are_resolved_as_buildkit_does() {
    let other = json("other.com/b", "x", r#"{"env":["A=1"]}"#);
    let list = list(&[("etc/a.yaml", NULL), ("etc/b.json", &other)]);
    assert_eq!(list.problems(), [] as [&str; 0]);
    assert_eq!(find(&list, "vendor.com/thing=second"), ["vendor.com/thing=second"]);
    // The first by name.
    assert_eq!(find(&list, "vendor.com/thing"), ["vendor.com/thing=first"]);
    assert_eq!(find(&list, "vendor.com/thing=*"), ["vendor.com/thing=first", "vendor.com/thing=second"]);
    assert_eq!(find(&list, "things"), ["vendor.com/thing=first", "vendor.com/thing=second"]);
    assert_eq!(find(&list, "vendor.com/thin"), [] as [&str; 0]);
    let twice = ["things", "vendor.com/thing=second"].map(|name| DeviceRequest { name, optional: false });
    assert_eq!(list.find(twice).unwrap().len(), 2);
    let error = list.find([DeviceRequest { name: "vendor.com/thing=third", optional: false }]).unwrap_err();
    assert_eq!(error.to_string(), "required device \"vendor.com/thing=third\" is not registered");
    assert!(list.is_auto_allowed("vendor.com/thing=first") && list.is_auto_allowed("other.com/b=x"));
    assert!(!list.is_auto_allowed("vendor.com/thing=second"));
}

#[test]
fn edits_are_those_of_the_file_and_of_the_device_with_what_the_host_knows() {
    let list = list(&[("etc/a.yaml", NULL)]);
    let names = find(&list, "vendor.com/thing=*");
    let edits = list.edits(&names).unwrap();
    assert_eq!(edits.env, ["ALL=1", "SECOND=2"]);
    assert_eq!(edits.groups, [7]);
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata("/dev/null").unwrap().permissions());
    let node = DeviceNode {
        path: "/dev/thing/null".to_owned(),
        kind: NodeKind::Character,
        major: 1,
        minor: 3,
        mode: mode & 0o7777,
        uid: None,
        gid: None,
        access: "rw".to_owned(),
    };
    assert_eq!(edits.nodes, [node]);
    let flags = MountFlags { read_only: true, no_suid: true, no_dev: true, no_exec: false };
    assert_eq!(
        edits.mounts,
        [HostMount { source: Path::new("/etc").to_owned(), target: "/host/etc".to_owned(), flags }]
    );
}

#[test]
fn a_later_directory_counts_more_and_a_double_in_one_not_at_all() {
    let (low, high) =
        (json("v.com/a", "x", r#"{"env":["A=low"]}"#), json("v.com/a", "x", r#"{"env":["A=high"]}"#));
    let over = list(&[("etc/a.json", &low), ("run/a.json", &high)]);
    assert_eq!(over.edits(&["v.com/a=x".to_owned()]).unwrap().env, ["A=high"]);
    let double = list(&[("etc/a.json", &low), ("etc/b.json", &high)]);
    assert_eq!(find(&double, "v.com/a=x"), [] as [&str; 0]);
    assert!(double.problems()[0].contains("v.com/a=x is described twice"), "{:?}", double.problems());
}

#[test]
fn files_that_are_no_specifications_are_told_and_left_out() {
    let good = json("v.com/a", "x", r#"{"env":["A=1"]}"#);
    for (text, part) in [
        ("{", "EOF"),
        ("[]", "invalid"),
        (r#"{"cdiVersion":"9.0.0","kind":"v.com/a","devices":[]}"#, "invalid version \"9.0.0\""),
        (r#"{"cdiVersion":"1.0.0","kind":"v","devices":[]}"#, "vendor/class"),
        (r#"{"cdiVersion":"1.0.0","kind":"v.com/a","devices":[]}"#, "no devices"),
        (r#"{"cdiVersion":"1.0.0","kind":"v.com/a","devices":[],"more":1}"#, "more"),
        (&json("v.com/a", "../x", r#"{"env":["A=1"]}"#), "invalid device name"),
        (&json("v.com/a", "x", "{}"), "empty device edits"),
    ] {
        let list = list(&[("etc/good.json", &good), ("etc/bad.json", text), ("etc/none.txt", "?")]);
        assert_eq!(find(&list, "v.com/a"), ["v.com/a=x"], "{text}");
        assert_eq!(list.problems().len(), 1, "{text}");
        assert!(
            list.problems()[0].contains("bad.json") && list.problems()[0].contains(part),
            "{:?}",
            list.problems()
        );
    }
}

#[test]
fn what_containers_here_cannot_get_is_refused_by_name() {
    for (edits, part) in [
        (r#"{"hooks":[{"hookName":"createContainer","path":"/bin/x"}]}"#, "hook createContainer (/bin/x)"),
        (r#"{"netDevices":[{"hostInterfaceName":"a","name":"b"}]}"#, "netDevices"),
        (r#"{"intelRdt":{"closID":"a"}}"#, "intelRdt"),
        (r#"{"env":["=1"]}"#, "environment variable"),
        (r#"{"deviceNodes":[{"path":"/etc/x"}]}"#, "not below /dev"),
        (r#"{"deviceNodes":[{"path":"/dev/../x"}]}"#, "no plain path"),
        (r#"{"deviceNodes":[{"path":"/dev/gone-lapstrake"}]}"#, "failed to stat CDI host device"),
        (r#"{"deviceNodes":[{"path":"/dev/x","hostPath":"/etc/passwd"}]}"#, "not a device node"),
        (r#"{"deviceNodes":[{"path":"/dev/null","type":"b"}]}"#, "type"),
        (r#"{"deviceNodes":[{"path":"/dev/null","permissions":"rx"}]}"#, "'x'"),
        (r#"{"mounts":[{"hostPath":"etc","containerPath":"/x"}]}"#, "absolute"),
        (r#"{"mounts":[{"hostPath":"/etc","containerPath":"/x","options":["idmap"]}]}"#, "idmap"),
        (r#"{"mounts":[{"hostPath":"x","containerPath":"/x","type":"tmpfs"}]}"#, "\"x\" is not"),
    ] {
        let list = list(&[("etc/a.json", &json("v.com/a", "x", edits))]);
        let error = list.edits(&find(&list, "v.com/a=x")).unwrap_err().to_string();
        assert!(error.starts_with("device v.com/a=x: ") && error.contains(part), "{edits}: {error}");
    }
    // A node that is described in full need not be on the host.
    let full = r#"{"deviceNodes":[{"path":"/dev/x","type":"c","major":1,"minor":5,"fileMode":384,"uid":3}]}"#;
    let list = list(&[("etc/a.json", &json("v.com/a", "x", full))]);
    let node = &list.edits(&find(&list, "v.com/a")).unwrap().nodes[0];
    assert_eq!((node.major, node.minor, node.mode, node.uid), (1, 5, 0o600, Some(3)));
}
