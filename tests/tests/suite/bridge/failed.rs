//! Steps that fail: what their frontends are told of them, and containers made of what they left.

use lapstrake_api_proto::{
    gateway::{NewContainerRequest, ReadFileRequest, SolveRequest},
    google::rpc,
    llb::{self as pb, file_action::Action},
};
use lapstrake_integration_cli::buildkit::Llb;
use lapstrake_tests::Workbench;
use prost::Message as _;
use serde_json::{Value, json};
use tonic::Status;

use crate::bridge::support::{Asked, ask};

/// The details of an error that have this name, outermost first.
pub(crate) fn details(status: &Status, name: &str) -> Vec<Value> {
    let url = format!("github.com/moby/buildkit/{name}");
    let all = rpc::Status::decode(status.details()).unwrap().details;
    let mine = all.iter().filter(|detail| detail.type_url == url);
    mine.map(|detail| serde_json::from_slice(&detail.value).unwrap()).collect()
}

async fn fail(asked: &mut Asked, definition: pb::Definition) -> (Status, Value) {
    let order = SolveRequest { definition: Some(definition), evaluate: true, ..SolveRequest::default() };
    let status = asked.bridge.solve(order).await.unwrap_err();
    let solve = details(&status, "errdefs.Solve+json").pop().unwrap_or_else(|| panic!("{status:?}"));
    (status, solve)
}

/// What is in a file of what a failed step left, as a container sees it.
async fn read(asked: &mut Asked, root: &Value, path: &str) -> Result<String, Status> {
    static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let id = format!("c{}", NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
    let root = root.as_str().unwrap().to_owned();
    let root = pb::Mount { dest: "/".to_owned(), result_id: root, ..pb::Mount::default() };
    let made = NewContainerRequest {
        container_id: id.clone(),
        mounts: vec![root],
        ..NewContainerRequest::default()
    };
    asked.bridge.new_container(made).await?;
    let file = ReadFileRequest { r#ref: id, file_path: path.to_owned(), ..ReadFileRequest::default() };
    let data = asked.bridge.read_file_container(file).await?.into_inner().data;
    Ok(String::from_utf8(data).unwrap())
}

async fn finish(mut asked: Asked) {
    asked.give_nothing().await;
    asked.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_fails_leaves_its_mounts_to_look_at() {
    let bench = Workbench::new();
    let mut asked = ask(&bench).await;
    let mut graph = Llb::default();
    let image = graph.source("docker-image://docker.io/library/busybox:latest");
    let beside = graph.file(None, "/foo", b"foo");
    let mount = |input: i64, dest: &str, output: i64, readonly: bool| pb::Mount {
        input,
        dest: dest.to_owned(),
        output,
        readonly,
        ..pb::Mount::default()
    };
    let command = "echo root > /data; echo beside > /rw/data; echo nowhere > /scratch/data; exit 9";
    let exec = pb::ExecOp {
        meta: Some(pb::Meta {
            args: ["/bin/sh", "-c", command].map(str::to_owned).to_vec(),
            cwd: "/".to_owned(),
            ..pb::Meta::default()
        }),
        mounts: vec![
            mount(0, "/", 0, false),
            mount(1, "/rw", 1, false),
            mount(-1, "/scratch", -1, false),
            mount(1, "/ro", -1, true),
        ],
        ..pb::ExecOp::default()
    };
    let step = graph.add(pb::op::Op::Exec(exec), &[(&image, 0), (&beside, 0)]);
    let (status, solve) = fail(&mut asked, graph.result(&step)).await;
    assert_eq!(details(&status, "gatewayapi.ExitMessage+json"), [json!({"Code": 9})]);
    assert_eq!(details(&status, "errdefs.Vertex+json"), [json!({"digest": step})]);
    let op = &solve["op"];
    assert_eq!(op["inputs"][0], json!({"digest": image}));
    assert_eq!(op["exec"]["meta"]["args"][2], command);
    assert_eq!(op["exec"]["mounts"][1], json!({"input": 1, "dest": "/rw", "output": 1}));
    let (inputs, mounts) = (&solve["inputIDs"], &solve["mountIDs"]);
    assert_eq!((inputs.as_array().unwrap().len(), mounts.as_array().unwrap().len()), (4, 4));
    assert_eq!(read(&mut asked, &mounts[0], "/data").await.unwrap(), "root\n");
    assert_eq!(read(&mut asked, &mounts[1], "/data").await.unwrap(), "beside\n");
    assert_eq!(read(&mut asked, &mounts[1], "/foo").await.unwrap(), "foo");
    assert_eq!(read(&mut asked, &mounts[2], "/data").await.unwrap(), "nowhere\n");
    assert_eq!(read(&mut asked, &mounts[3], "/foo").await.unwrap(), "foo");
    // What it began with is as it was.
    assert_eq!(inputs[2], "");
    read(&mut asked, &inputs[0], "/data").await.unwrap_err();
    read(&mut asked, &inputs[1], "/data").await.unwrap_err();
    // Another build's are nobody else's.
    let mut other = ask(&bench).await;
    read(&mut other, &mounts[0], "/data").await.unwrap_err();
    finish(other).await;
    finish(asked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_cannot_be_run_leaves_its_mounts_too() {
    let bench = Workbench::new();
    let mut asked = ask(&bench).await;
    let mut graph = Llb::default();
    let base = graph.file(None, "/there", b"it is");
    let step = graph.run(&base, "true");
    let (status, solve) = fail(&mut asked, graph.result(&step)).await;
    let words = "process \"/bin/sh -c true\" did not complete successfully: ";
    assert!(status.message().starts_with(words), "{status:?}");
    assert_eq!(read(&mut asked, &solve["mountIDs"][0], "/there").await.unwrap(), "it is");
    finish(asked).await;
}

fn action(input: i64, secondary_input: i64, output: i64, action: Action) -> pb::FileAction {
    pb::FileAction { input, secondary_input, output, action: Some(action) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_action_that_fails_leaves_what_was_made_until_then() {
    let bench = Workbench::new();
    let mut asked = ask(&bench).await;
    let mkdir = |path: &str| {
        let owner = pb::UserOpt { user: Some(pb::user_opt::User::ById(0)) };
        Action::Mkdir(pb::FileActionMkDir {
            path: path.to_owned(),
            mode: 0o755,
            owner: Some(pb::ChownOpt { user: Some(owner), group: None }),
            ..Default::default()
        })
    };
    let mkfile = |path: &str| {
        let (path, data) = (path.to_owned(), b"made".to_vec());
        Action::Mkfile(pb::FileActionMkFile { path, mode: 0o644, data, ..Default::default() })
    };
    // 0 and 1 are one chain, which 2 copies from; 3 fails upon what 2 wrote.
    let copy = Action::Copy(pb::FileActionCopy {
        src: "/d/f".to_owned(),
        dest: "/copied".to_owned(),
        ..Default::default()
    });
    let actions = vec![
        action(-1, -1, -1, mkdir("/d")),
        action(0, -1, -1, mkfile("/d/f")),
        action(-1, 1, -1, copy),
        action(2, -1, 0, mkfile("/nowhere/f")),
    ];
    let mut graph = Llb::default();
    let step = graph.add(pb::op::Op::File(pb::FileOp { actions }), &[]);
    let (status, solve) = fail(&mut asked, graph.result(&step)).await;
    assert!(status.message().contains("/nowhere/f"), "{status:?}");
    assert_eq!((&solve["file"], &solve["inputIDs"]), (&json!({"index": 3}), &json!([])));
    assert_eq!(
        solve["op"]["file"]["actions"][0],
        json!({"input": -1, "secondaryInput": -1, "output": -1,
            "mkdir": {"path": "/d", "mode": 0o755, "owner": {"user": {"byId": 0}}}})
    );
    let mounts = &solve["mountIDs"];
    assert_eq!((&mounts[0], &mounts[2]), (&json!(""), &json!("")));
    assert_eq!(read(&mut asked, &mounts[1], "/d/f").await.unwrap(), "made");
    assert_eq!(read(&mut asked, &mounts[3], "/copied").await.unwrap(), "made");
    finish(asked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_input_that_cannot_be_read_for_the_cache_is_left_to_look_at() {
    let bench = Workbench::new();
    let mut asked = ask(&bench).await;
    let mut graph = Llb::default();
    let base = graph.file(None, "/there", b"it is");
    let copy = Action::Copy(pb::FileActionCopy {
        src: "/notthere".to_owned(),
        dest: "/".to_owned(),
        ..Default::default()
    });
    let actions = vec![action(-1, 0, 0, copy)];
    let step = graph.add(pb::op::Op::File(pb::FileOp { actions }), &[(&base, 0)]);
    let (_, solve) = fail(&mut asked, graph.result(&step)).await;
    assert_eq!((&solve["cache"], &solve["mountIDs"]), (&json!({"index": 0}), &json!([])));
    assert_eq!(read(&mut asked, &solve["inputIDs"][0], "/there").await.unwrap(), "it is");
    finish(asked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_places_of_a_failed_step_are_told_with_their_files() {
    let bench = Workbench::new();
    let mut asked = ask(&bench).await;
    let mut graph = Llb::default();
    let image = graph.source("docker-image://docker.io/library/busybox:latest");
    let step = graph.run(&image, "exit 1");
    let mut definition = graph.result(&step);
    let at = |source_index: i32, line: i32| pb::Location {
        source_index,
        ranges: vec![pb::Range { start: Some(pb::Position { line, character: 2 }), end: None }],
    };
    let info = |filename: &str| pb::SourceInfo {
        filename: filename.to_owned(),
        data: b"data".to_vec(),
        definition: Some(pb::Definition { def: vec![b"op".to_vec()], ..pb::Definition::default() }),
        ..pb::SourceInfo::default()
    };
    definition.source = Some(pb::Source {
        locations: [(step, pb::Locations { locations: vec![at(0, 7), at(1, 8), at(0, 9)] })].into(),
        infos: vec![info("foo"), info("bar")],
    });
    let (status, _) = fail(&mut asked, definition).await;
    let told = |name: &str, line: i32| {
        let info = json!({"filename": name, "data": "ZGF0YQ==", "definition": {"def": ["b3A="]}});
        json!({"info": info, "ranges": [{"start": {"line": line, "character": 2}}]})
    };
    // The last that is said is the outermost.
    assert_eq!(details(&status, "errdefs.Source+json"), [told("foo", 9), told("bar", 8), told("foo", 7)]);
    finish(asked).await;
}
