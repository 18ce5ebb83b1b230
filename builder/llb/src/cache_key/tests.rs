use super::*;

#[test]
fn an_exec_key_is_buildkits_json() {
    let op = pb::ExecOp {
        meta: Some(pb::Meta {
            args: vec!["/bin/sh".into(), "-c".into(), "echo a && echo b".into()],
            env: vec!["PATH=/bin".into()],
            cwd: "/".into(),
            proxy_env: Some(pb::ProxyEnv { http_proxy: "http://proxy".into(), ..Default::default() }),
            ..Default::default()
        }),
        mounts: vec![pb::Mount { dest: "/".into(), ..Default::default() }],
        ..Default::default()
    };
    let platform = pb::Platform { os: "linux".into(), architecture: "amd64".into(), ..Default::default() };
    let json = r#"{"Type":"buildkit.exec.v0","Exec":{"meta":{"args":["/bin/sh","-c","echo a \u0026\u0026 echo b"],"env":["PATH=/bin"],"cwd":"/"}},"OS":"linux","Arch":"amd64"}"#;
    let key = exec(&op, Some(&platform), 1).unwrap();
    assert_eq!(key.digest, Digest::sha256_of(json.as_bytes()));
    assert_eq!(key.deps[0].content, None, "the root file system counts by definition");
    assert_eq!(key.deps[0].selector, Some(Digest::sha256_of(b"/")));
}

#[test]
fn older_versions_select_no_root_and_leave_stubs_of_mounts() {
    let exec = pb::ExecOp {
        meta: Some(pb::Meta {
            args: vec!["a".into()],
            remove_mount_stubs_recursive: true,
            ..Default::default()
        }),
        mounts: vec![pb::Mount { dest: "/".into(), ..Default::default() }],
        ..Default::default()
    };
    let op = pb::Op {
        op: Some(pb::op::Op::Exec(exec.clone())),
        platform: Some(pb::Platform {
            os: "linux".into(),
            architecture: "amd64".into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let json = |stubs: &str| {
        let json = format!(
            r#"{{"Type":"buildkit.exec.v0","Exec":{{"meta":{{"args":["a"]{stubs}}}}},"OS":"linux","Arch":"amd64"}}"#
        );
        Digest::sha256_of(json)
    };
    let key = |digest: Digest, selector: Option<&str>, versions: &[Dialect]| VersionKey {
        name: digest.as_str().into(),
        selectors: vec![selector.map(Digest::sha256_of)],
        versions: versions.iter().fold(Versions::NONE, |all, one| all.or((*one).into())),
    };
    let digest = json(r#","removeMountStubsRecursive":true"#);
    let since_0_13 = [Dialect::V0_18, Dialect::V0_17, Dialect::V0_15, Dialect::V0_14, Dialect::V0_13];
    let today = key(digest.clone(), Some("/"), &since_0_13);
    let until_0_12 = key(digest, None, &[Dialect::V0_11]);
    let until_0_10 = key(json(""), None, &[Dialect::V0_10, Dialect::V0_8]);
    assert_eq!(in_versions(&op, 1), [today, until_0_12.clone(), until_0_10.clone()]);
    assert_eq!(older(&op, 1), [until_0_12, until_0_10]);
}

#[test]
fn older_versions_name_users_otherwise() {
    let by_id = pb::UserOpt { user: Some(pb::user_opt::User::ById(7)) };
    let mkdir = pb::FileActionMkDir {
        path: "/d".into(),
        owner: Some(pb::ChownOpt { user: Some(by_id), group: None }),
        ..Default::default()
    };
    let file = pb::FileOp {
        actions: vec![pb::FileAction {
            input: 0,
            secondary_input: -1,
            output: 0,
            action: Some(pb::file_action::Action::Mkdir(mkdir)),
        }],
    };
    let op = pb::Op { op: Some(pb::op::Op::File(file)), ..Default::default() };
    let key = |field: &str| {
        let action = format!(r#"{{"path":"/d","owner":{{"user":{{"User":{{"{field}":7}}}}}}}}"#);
        let action = json::base64(action.as_bytes());
        let digest = Digest::sha256_of(format!(r#"{{"Type":"buildkit.file.v0","Actions":["{action}"]}}"#));
        (digest.as_str().into(), vec![None])
    };
    let older = older(&op, 1).into_iter().map(|key| (key.name, key.selectors));
    assert_eq!(older.collect::<Vec<_>>(), [key("ByID"), key("byID")]);
}

#[test]
fn older_versions_name_merges_by_their_json() {
    let inputs = (0..2).map(|input| pb::MergeInput { input }).collect();
    let op = pb::Op { op: Some(pb::op::Op::Merge(pb::MergeOp { inputs })), ..Default::default() };
    let json = r#"{"Type":"buildkit.merge.v0","Merge":{"inputs":[{"input":0},{"input":1}]}}"#;
    let keys = in_versions(&op, 2);
    let until_0_12 = keys.last().unwrap();
    assert_eq!((&*until_0_12.name, &until_0_12.selectors), (json, &vec![None, None]));
    assert_eq!(keys[keys.len() - 2].name, Digest::sha256_of(json).as_str().into());
    assert!(!until_0_12.versions.and(Versions::SINCE_0_11).is_empty());
}

#[test]
fn a_copy_counts_by_the_content_of_its_source() {
    let copy = pb::FileActionCopy {
        src: "/src/*.c".into(),
        dest: "/".into(),
        allow_wildcard: true,
        ..Default::default()
    };
    let op = pb::FileOp {
        actions: vec![pb::FileAction {
            input: 0,
            secondary_input: 1,
            output: 0,
            action: Some(pb::file_action::Action::Copy(copy)),
        }],
    };
    let key = file(&op, 2);
    assert_eq!(key.deps[0], DepKey::default());
    let content = key.deps[1].content.clone().unwrap();
    assert_eq!(content.len(), 1);
    assert!(content[0].wildcard);
    // Another directory with the same files gives the same key.
    let mut moved = op.clone();
    if let Some(pb::file_action::Action::Copy(copy)) = &mut moved.actions[0].action {
        copy.src = "/elsewhere/*.c".into();
    }
    assert_eq!(file(&moved, 2).digest, key.digest);
}

#[test]
fn nested_paths_are_left_out() {
    let paths = ["/foo", "/foo/bar", "/foobar", "/a"].map(str::to_owned);
    assert_eq!(without_nested(&paths), ["/a", "/foo", "/foobar"]);
}
