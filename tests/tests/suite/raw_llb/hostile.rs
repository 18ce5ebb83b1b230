//! Graphs that lie, are broken, or are too much: an error that names the vertex, and a daemon that goes on (CVE-2024-23650).

use lapstrake_builder_engine::ErrorKind;
use lapstrake_builder_llb::pb;
use lapstrake_layerstore_oci::Digest;
use lapstrake_tests::Workbench;
use prost::Message as _;

use crate::raw_llb::support::{Llb, Out, action, bind, cache, exec, failure, input, mkfile, solve};

#[tokio::test(flavor = "multi_thread")]
async fn broken_ops_are_refused_and_name_their_vertex() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    let busybox = llb.busybox();
    let root = || vec![bind("/", 0, 0)];
    let exec_with = |change: fn(&mut pb::ExecOp)| {
        let mut op = exec("true", vec![bind("/", 0, 0)]);
        change(&mut op);
        pb::op::Op::Exec(op)
    };
    let secret = pb::Mount { mount_type: pb::MountType::Secret.into(), ..bind("/s", -1, -1) };
    let strange = pb::Mount { mount_type: 77, ..bind("/s", -1, -1) };
    let with = |mount: pb::Mount| pb::op::Op::Exec(exec("true", vec![bind("/", 0, 0), mount]));
    let file = |actions: Vec<pb::FileAction>| pb::op::Op::File(pb::FileOp { actions });
    let nil = pb::FileAction { input: 0, secondary_input: -1, output: 0, action: None };
    for (op, told) in [
        (exec_with(|op| op.meta = None), "invalid exec op with no meta"),
        (exec_with(|op| op.meta.as_mut().unwrap().args.clear()), "invalid exec op with no args"),
        (exec_with(|op| op.mounts.clear()), "invalid exec op with no mounts"),
        (exec_with(|op| op.mounts[0].dest = "/x".to_owned()), "invalid exec op with no rootfs"),
        (exec_with(|op| op.network = 9), "invalid network mode 9"),
        (exec_with(|op| op.mounts[0].input = 5), "exec op mount has invalid input index 5"),
        (exec_with(|op| op.mounts[0].input = i64::MIN), "exec op mount has invalid input index"),
        (exec_with(|op| op.mounts[0].output = i64::MAX), "has invalid output index"),
        (with(secret), "missing secret mount options for /s"),
        (with(strange), "mount /s has unknown type 77"),
        (
            with(pb::Mount { cache_opt: None, ..cache("/c", -1, "c", pb::CacheSharingOpt::Shared) }),
            "missing cache mount options",
        ),
        (file(Vec::new()), "invalid file op with no actions"),
        (file(vec![nil]), "file op action 0 is nil"),
        (file(vec![action(9, -1, 0, mkfile("/x", ""))]), "file op action has invalid input index 9"),
        (file(vec![action(1, -1, 0, mkfile("/x", ""))]), "depends on itself or a later action"),
        (
            pb::op::Op::Merge(pb::MergeOp { inputs: vec![pb::MergeInput { input: 3 }] }),
            "merge op has invalid input index 3",
        ),
        (pb::op::Op::Diff(pb::DiffOp::default()), "invalid diff op with nil lower or upper input"),
        (pb::op::Op::Source(pb::SourceOp::default()), "source identifier can't be empty"),
        (
            pb::op::Op::Build(pb::BuildOp { builder: 4, ..Default::default() }),
            "build op builder has invalid input index 4",
        ),
    ] {
        let broken = llb.add(&[&busybox], op);
        let error = solve(&bench, &llb, &broken).await.unwrap_err();
        let words = error.to_string();
        assert!(words.starts_with(&format!("failed to load LLB: {told}")) || words.contains(told), "{words}");
        assert!(words.ends_with(&format!("(vertex {})", broken.digest)), "{words}");
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
    // The daemon is as it was.
    let fine = llb.exec(&[&busybox], "true", root());
    solve(&bench, &llb, &fine).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn inputs_that_are_not_there_are_refused() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    let nowhere = Out { digest: Digest::sha256_of("nowhere"), index: 0 };
    let dangling = llb.run(&nowhere, "true");
    let error = failure(&bench, &llb, &dangling).await;
    assert!(error.contains(&format!("invalid missing input digest {}", nowhere.digest)), "{error}");
    // An output that the op does not have.
    let mut llb = Llb::default();
    let busybox = llb.busybox();
    for index in [1, 4_000_000_000] {
        let ran = llb.run(&busybox.output(index), "true");
        let error = failure(&bench, &llb, &ran).await;
        assert!(error.contains(&index.to_string()), "{error}");
    }
    let negative = llb.run(&busybox.output(-1), "true");
    let error = failure(&bench, &llb, &negative).await;
    assert!(error.contains("invalid input 0 output index -1"), "{error}");
    // A result that is not there.
    let mut llb = Llb::default();
    let busybox = llb.busybox();
    let ran = llb.run(&busybox, "true");
    let error = failure(&bench, &llb, &ran.output(7)).await;
    assert!(error.contains('7'), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deep_graph_and_a_wide_one_are_built() {
    let bench = Workbench::new();
    let mut llb = Llb::default();
    let mut top = llb.text("/0", "x");
    for _ in 1..2_000 {
        let passed = lapstrake_api_proto::newer::NewerOp {
            passthrough: Some(lapstrake_builder_llb::Passthrough { id: "p".to_owned(), outputs: vec![0] }),
        };
        let mut raw = pb::Op { inputs: vec![input(&top)], ..Default::default() }.encode_to_vec();
        raw.extend(passed.encode_to_vec());
        top = llb.raw(raw);
    }
    solve(&bench, &llb, &top).await.unwrap();
    assert_eq!(bench.read("app", "0"), "x");
    let mut llb = Llb::default();
    let each: Vec<Out> = (0..200).map(|number| llb.text(&format!("/{number}"), "x")).collect();
    let inputs: Vec<&Out> = each.iter().collect();
    let merge = pb::MergeOp { inputs: (0..200).map(|input| pb::MergeInput { input }).collect() };
    let all = llb.add(&inputs, pb::op::Op::Merge(merge));
    solve(&bench, &llb, &all).await.unwrap();
    assert!(bench.has("app", "199"));
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_of_ops_do_not_leave_their_trees() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    let busybox = llb.busybox();
    let outside = tempfile::NamedTempFile::new().unwrap();
    let path = outside.path().to_str().unwrap().to_owned();
    let base = llb.run(&busybox, &format!("ln -s {path} /link; ln -s / /root-link"));
    let written = llb.file(
        &[&base],
        vec![
            action(0, -1, -1, mkfile("/../../../../x", "in")),
            action(1, -1, 0, mkfile("/root-link/../y", "in")),
        ],
    );
    solve(&bench, &llb, &written).await.unwrap();
    assert_eq!((bench.read("app", "x"), bench.read("app", "y")), ("in".to_owned(), "in".to_owned()));
    let copy = pb::FileActionCopy {
        src: "/link".to_owned(),
        dest: "/stolen".to_owned(),
        follow_symlink: true,
        mode: -1,
        timestamp: -1,
        ..Default::default()
    };
    let stolen = llb.file(&[&base], vec![action(0, 0, 0, pb::file_action::Action::Copy(copy))]);
    assert!(solve(&bench, &llb, &stolen).await.is_err());
    let selected =
        pb::Mount { selector: "../../../../../../etc".to_owned(), readonly: true, ..bind("/m", 1, -1) };
    let empty = llb.text("/etc-is-not-here", "x");
    let ran = llb.exec(&[&busybox, &empty], "ls /m > /seen", vec![bind("/", 0, 0), selected]);
    assert!(solve(&bench, &llb, &ran).await.is_err());
}
