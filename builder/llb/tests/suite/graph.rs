//! Definitions from the wire: what is read, and what is refused.

use bytes::Bytes;
use lapstrake_builder_llb::pb::{self, op::Op};
use lapstrake_builder_llb::{Definition, Error, Graph, Limits};
use lapstrake_layerstore_oci::Digest;
use proptest::prelude::*;
use prost::Message as _;

fn source(identifier: &str) -> pb::Op {
    let source = pb::SourceOp { identifier: identifier.to_owned(), ..Default::default() };
    pb::Op { op: Some(Op::Source(source)), ..Default::default() }
}

fn input(op: &pb::Op, index: i64) -> pb::Input {
    pb::Input { digest: Digest::sha256_of(op.encode_to_vec()).to_string(), index }
}

fn exec(inputs: Vec<pb::Input>, mounts: Vec<pb::Mount>) -> pb::Op {
    let meta = pb::Meta { args: vec!["true".to_owned()], cwd: "/".to_owned(), ..Default::default() };
    let exec = pb::ExecOp { meta: Some(meta), mounts, ..Default::default() };
    pb::Op { inputs, op: Some(Op::Exec(exec)), ..Default::default() }
}

fn root() -> pb::Mount {
    pb::Mount { dest: "/".to_owned(), ..Default::default() }
}

fn terminal(op: &pb::Op) -> pb::Op {
    pb::Op { inputs: vec![input(op, 0)], ..Default::default() }
}

fn parse(ops: &[pb::Op]) -> Result<Graph, Error> {
    let ops = ops.iter().map(|op| Bytes::from(op.encode_to_vec())).collect();
    Graph::parse(&Definition { ops, ..Default::default() }, Limits::default())
}

/// A graph of one source and the given op on top.
fn on_top(op: impl FnOnce(pb::Input) -> pb::Op) -> Result<Graph, Error> {
    let base = source("docker-image://x");
    let op = op(input(&base, 0));
    parse(&[base, op.clone(), terminal(&op)])
}

#[test]
fn vertices_come_in_order_whatever_order_the_ops_are_in() {
    let base = source("docker-image://x");
    let run = exec(vec![input(&base, 0)], vec![root()]);
    let end = terminal(&run);
    for ops in [[base.clone(), run.clone(), end.clone()], [run.clone(), base.clone(), end.clone()]] {
        let graph = parse(&ops).unwrap();
        let names: Vec<&str> = graph.vertices().iter().map(|v| v.name.as_str()).collect();
        assert_eq!(names, ["docker-image://x", "true"]);
        assert_eq!(graph.vertex(graph.target().vertex).name, "true");
        assert_eq!(graph.vertices()[0].digest, Digest::sha256_of(base.encode_to_vec()));
        assert_eq!(graph.find(&graph.vertices()[0].digest), Some(graph.vertices()[1].inputs[0].vertex));
    }
}

#[test]
fn bytes_that_prost_would_not_write_keep_their_digest() {
    // A field of a later protocol: prost drops it when it writes the op again.
    let base = source("docker-image://x");
    let mut raw = base.encode_to_vec();
    raw.extend([0xa2, 0x06, 0x01, b'!']);
    let digest = Digest::sha256_of(&raw);
    let end =
        pb::Op { inputs: vec![pb::Input { digest: digest.to_string(), index: 0 }], ..Default::default() };
    let ops = vec![Bytes::from(raw.clone()), Bytes::from(end.encode_to_vec())];
    let graph = Graph::parse(&Definition { ops, ..Default::default() }, Limits::default()).unwrap();
    assert_eq!(graph.vertices()[0].digest, digest);
    assert_eq!(graph.vertices()[0].raw, raw);
}

#[test]
fn ops_that_the_result_does_not_need_are_left_out_and_the_same_op_twice_is_one() {
    let base = source("docker-image://x");
    let graph = parse(&[source("docker-image://y"), base.clone(), base.clone(), terminal(&base)]).unwrap();
    assert_eq!(graph.vertices().len(), 1);
}

#[test]
fn malformed_definitions_are_refused_in_buildkits_words() {
    let base = source("docker-image://x");
    let missing = pb::Input { digest: format!("sha256:{}", "0".repeat(64)), index: 0 };
    let message = |ops: &[pb::Op]| parse(ops).unwrap_err().to_string();
    assert_eq!(message(&[]), "invalid empty definition");
    assert_eq!(message(std::slice::from_ref(&base)), "invalid LLB with 1 vertexes");
    assert_eq!(message(&[source("y"), base.clone()]), "invalid LLB with no inputs on last vertex");
    let end = pb::Op { inputs: vec![missing.clone()], ..Default::default() };
    assert_eq!(message(&[base.clone(), end]), format!("invalid missing input digest {}", missing.digest));
    let end = pb::Op { inputs: vec![input(&base, -1)], ..Default::default() };
    assert_eq!(message(&[base.clone(), end]), "invalid input 0 output index -1");
    let garbage = Definition { ops: vec![Bytes::from_static(&[0xff])], ..Default::default() };
    let error = Graph::parse(&garbage, Limits::default()).unwrap_err();
    assert!(matches!(error, Error::Decode { what: "op", .. }));
}

#[test]
fn incomplete_ops_are_refused_before_anyone_runs_them() {
    type Make = fn(pb::Input) -> pb::Op;
    let cases: [(&str, Make); 13] = [
        ("invalid nil op", |i| pb::Op { inputs: vec![i], ..Default::default() }),
        ("invalid exec op with no meta", |i| pb::Op {
            inputs: vec![i],
            op: Some(Op::Exec(pb::ExecOp::default())),
            ..Default::default()
        }),
        ("invalid exec op with no mounts", |i| exec(vec![i], vec![])),
        ("invalid exec op with no rootfs", |i| {
            exec(vec![i], vec![pb::Mount { dest: "/x".to_owned(), ..Default::default() }])
        }),
        ("exec op mount has invalid input index 1, there are 1 inputs", |i| {
            exec(vec![i], vec![pb::Mount { input: 1, ..root() }])
        }),
        ("exec op mount has invalid input index -2, there are 1 inputs", |i| {
            exec(vec![i], vec![pb::Mount { input: -2, ..root() }])
        }),
        ("missing cache mount options for /", |i| {
            exec(vec![i], vec![pb::Mount { mount_type: pb::MountType::Cache.into(), ..root() }])
        }),
        ("mount / has unknown type 99", |i| exec(vec![i], vec![pb::Mount { mount_type: 99, ..root() }])),
        ("exec op has two mounts with output index 0", |i| exec(vec![i], vec![root(), root()])),
        ("invalid file op with no actions", |i| pb::Op {
            inputs: vec![i],
            op: Some(Op::File(pb::FileOp::default())),
            ..Default::default()
        }),
        ("file op action 0 is nil", |i| pb::Op {
            inputs: vec![i],
            op: Some(Op::File(pb::FileOp { actions: vec![pb::FileAction::default()] })),
            ..Default::default()
        }),
        ("file op action 0 depends on itself or a later action", |i| {
            let rm = pb::file_action::Action::Rm(pb::FileActionRm::default());
            let action = pb::FileAction { input: 1, action: Some(rm), ..Default::default() };
            pb::Op {
                inputs: vec![i],
                op: Some(Op::File(pb::FileOp { actions: vec![action] })),
                ..Default::default()
            }
        }),
        ("invalid diff op with nil lower or upper input", |i| pb::Op {
            inputs: vec![i],
            op: Some(Op::Diff(pb::DiffOp::default())),
            ..Default::default()
        }),
    ];
    for (message, make) in cases {
        let error = on_top(make).unwrap_err().to_string();
        assert!(error.starts_with(message), "{error} should be {message}");
    }
}

#[test]
fn limits_hold() {
    let base = source("docker-image://x");
    let ops: Vec<Bytes> = [&base, &terminal(&base)].iter().map(|op| op.encode_to_vec().into()).collect();
    let definition = Definition { ops, ..Default::default() };
    assert!(Graph::parse(&definition, Limits { ops: 2, bytes: 1000 }).is_ok());
    let error = Graph::parse(&definition, Limits { ops: 1, bytes: 1000 }).unwrap_err();
    assert_eq!(error, Error::TooManyOps { count: 2, limit: 1 });
    let error = Graph::parse(&definition, Limits { ops: 2, bytes: 50 }).unwrap_err();
    assert_eq!(error, Error::TooLarge { limit: 50 });
}

#[test]
fn a_graph_of_ninety_thousand_steps_in_a_row_costs_no_stack() {
    let mut ops = vec![source("docker-image://x")];
    let mut below = input(&ops[0], 0);
    for _ in 0..90_000 {
        let run = exec(vec![below], vec![root()]);
        below = input(&run, 0);
        ops.push(run);
    }
    let end = terminal(ops.last().unwrap());
    ops.push(end);
    ops.rotate_left(45_000);
    // The terminal op stays last.
    let last = ops.iter().position(|op| op.op.is_none()).unwrap();
    let end = ops.remove(last);
    ops.push(end);
    assert_eq!(parse(&ops).unwrap().vertices().len(), 90_001);
}

#[test]
fn names_are_the_authors_or_made_from_the_op() {
    let base = source("docker-image://x");
    let merge = pb::Op {
        inputs: vec![input(&base, 0), input(&base, 0)],
        op: Some(Op::Merge(pb::MergeOp {
            inputs: vec![pb::MergeInput { input: 0 }, pb::MergeInput { input: 1 }],
        })),
        ..Default::default()
    };
    let diff = pb::Op {
        inputs: vec![input(&merge, 0)],
        op: Some(Op::Diff(pb::DiffOp {
            lower: Some(pb::LowerDiffInput { input: -1 }),
            upper: Some(pb::UpperDiffInput { input: 0 }),
        })),
        ..Default::default()
    };
    let graph = parse(&[base.clone(), merge, diff.clone(), terminal(&diff)]).unwrap();
    let names: Vec<&str> = graph.vertices().iter().map(|v| v.name.as_str()).collect();
    let merged = "merge (docker-image://x, docker-image://x)";
    assert_eq!(names, ["docker-image://x", merged, &format!("diff scratch -> ({merged})")]);

    let mut proto = pb::Definition {
        def: vec![base.encode_to_vec(), terminal(&base).encode_to_vec()],
        ..Default::default()
    };
    let description = [("llb.customname".to_owned(), "mine".to_owned())].into();
    let metadata = pb::OpMetadata { description, ..Default::default() };
    proto.metadata.insert(input(&base, 0).digest, metadata.clone());
    let definition = Definition::from_proto(proto.clone()).unwrap();
    assert_eq!(Graph::parse(&definition, Limits::default()).unwrap().vertices()[0].name, "mine");
    assert_eq!(definition.to_proto(), proto);

    proto.metadata.insert("what".to_owned(), metadata);
    assert!(matches!(Definition::from_proto(proto), Err(Error::MetadataDigest(_))));
}

#[test]
fn locations_must_name_a_source_file() {
    let base = source("docker-image://x");
    let mut definition = Definition {
        ops: [&base, &terminal(&base)].iter().map(|op| op.encode_to_vec().into()).collect(),
        ..Default::default()
    };
    let location = pb::Location { source_index: 1, ..Default::default() };
    let locations = pb::Locations { locations: vec![location] };
    definition.source = Some(pb::Source {
        locations: [("x".to_owned(), locations)].into(),
        infos: vec![pb::SourceInfo::default()],
    });
    let error = Graph::parse(&definition, Limits::default()).unwrap_err();
    assert_eq!(error, Error::SourceMapIndex(1));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(ops in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..6)) {
        let ops = ops.into_iter().map(Bytes::from).collect();
        let _ = Graph::parse(&Definition { ops, ..Default::default() }, Limits::default());
    }

    #[test]
    fn no_ops_make_it_panic(
        indexes in prop::collection::vec((-3i64..5, -3i64..5, -3i64..5, 0i32..8), 1..4),
        inputs in 0usize..3,
    ) {
        let base = source("docker-image://x");
        let mounts: Vec<pb::Mount> = indexes
            .iter()
            .map(|(input, output, _, kind)| {
                pb::Mount { input: *input, output: *output, mount_type: *kind, ..root() }
            })
            .collect();
        let actions = indexes
            .iter()
            .map(|(input, output, secondary, _)| pb::FileAction {
                input: *input,
                output: *output,
                secondary_input: *secondary,
                action: Some(pb::file_action::Action::Copy(pb::FileActionCopy::default())),
            })
            .collect();
        let run = exec(vec![input(&base, 0); inputs], mounts);
        let file = pb::Op {
            inputs: vec![input(&base, 0); inputs],
            op: Some(Op::File(pb::FileOp { actions })),
            ..Default::default()
        };
        for op in [run, file] {
            if let Ok(graph) = parse(&[base.clone(), op.clone(), terminal(&op)]) {
                prop_assert!(!lapstrake_builder_llb::dump(&graph).is_empty());
            }
        }
    }
}

#[test]
fn other_sources_make_other_digests_and_touch_nothing_else() {
    let base = source("docker-image://x");
    let other = source("docker-image://other");
    let run = exec(vec![input(&base, 0), input(&other, 0)], vec![root()]);
    // A field that is not known here, which counts for the digest.
    let mut raw = run.encode_to_vec();
    raw.extend([0x9a, 0x3f, 2, b'h', b'i']);
    let run_digest = Digest::sha256_of(&raw);
    let end =
        pb::Op { inputs: vec![pb::Input { digest: run_digest.to_string(), index: 0 }], ..Default::default() };
    let ops = [end.encode_to_vec(), raw.clone(), base.encode_to_vec(), other.encode_to_vec()];
    let mut metadata = lapstrake_builder_llb::Metadata::default();
    metadata.set_custom_name("named");
    let mut locations = std::collections::BTreeMap::new();
    locations.insert(run_digest.to_string(), pb::Locations::default());
    // The terminal op is the last one.
    let mut ops: Vec<Bytes> = ops.into_iter().map(Bytes::from).collect();
    ops.rotate_left(1);
    let definition = Definition {
        ops,
        metadata: [(run_digest.clone(), metadata)].into(),
        source: Some(pb::Source { locations, infos: Vec::new() }),
    };
    let mut sources = definition.sources().unwrap();
    assert_eq!(sources.len(), 2);
    assert_eq!(definition.with_sources(&Default::default()).unwrap(), definition);

    let old = Digest::sha256_of(base.encode_to_vec());
    sources.retain(|digest, _| *digest == old);
    *sources.get_mut(&old).unwrap() = source("docker-image://converted");
    let changed = definition.with_sources(&sources).unwrap();
    let graph = Graph::parse(&changed, Limits::default()).unwrap();
    let names: Vec<&str> = graph.vertices().iter().map(|v| v.name.as_str()).collect();
    assert_eq!(names, ["docker-image://converted", "docker-image://other", "named"]);
    let target = graph.vertex(graph.target().vertex);
    assert_ne!(target.digest, run_digest);
    assert!(target.raw.ends_with(&[0x9a, 0x3f, 2, b'h', b'i']));
    assert_eq!(target.raw.len(), raw.len());
    assert!(changed.source.unwrap().locations.contains_key(target.digest.as_str()));
}

#[test]
fn sources_of_a_definition_without_its_inputs_cannot_be_changed() {
    let run = exec(vec![input(&source("docker-image://x"), 0)], vec![root()]);
    let ops = vec![Bytes::from(run.encode_to_vec())];
    let definition = Definition { ops, ..Default::default() };
    assert!(matches!(definition.with_sources(&Default::default()), Err(Error::MissingInput(_))));
}

/// A passthrough op: `pb::Op` does not know it.
fn passthrough(base: &pb::Op, id: &str, outputs: &[i64]) -> Bytes {
    let mut message = vec![0x0a, id.len() as u8];
    message.extend(id.as_bytes());
    message.extend([0x12, outputs.len() as u8]);
    message.extend(outputs.iter().map(|output| *output as u8));
    let mut raw = pb::Op { inputs: vec![input(base, 0)], ..Default::default() }.encode_to_vec();
    raw.extend([0x42, message.len() as u8]);
    raw.extend(message);
    raw.into()
}

#[test]
fn a_passthrough_is_read_though_its_message_is_newer() {
    let base = source("docker-image://x");
    let parse = |id: &str, outputs: &[i64]| {
        let raw = passthrough(&base, id, outputs);
        let digest = Digest::sha256_of(&raw).to_string();
        let end = pb::Op { inputs: vec![pb::Input { digest, index: 0 }], ..Default::default() };
        let ops = vec![base.encode_to_vec().into(), raw, end.encode_to_vec().into()];
        Graph::parse(&Definition { ops, ..Default::default() }, Limits::default())
    };
    let graph = parse("here", &[0, 0]).unwrap();
    let vertex = graph.vertex(graph.target().vertex);
    assert_eq!(vertex.name, "passthrough here");
    let passed = vertex.passthrough.as_ref().unwrap();
    assert_eq!((passed.id.as_str(), &passed.outputs[..]), ("here", &[0, 0][..]));
    for (id, outputs, told) in [
        ("", &[0][..], "invalid passthrough op with no id"),
        ("x", &[], "invalid passthrough op with no outputs"),
        ("x", &[1], "invalid passthrough output input index 1"),
    ] {
        let error = parse(id, outputs).unwrap_err().to_string();
        assert!(error.starts_with(told), "{error}");
    }
}

#[test]
fn an_op_of_an_unknown_kind_is_refused() {
    let mut raw =
        pb::Op { inputs: vec![input(&source("docker-image://x"), 0)], ..Default::default() }.encode_to_vec();
    // Field 9, which nobody has given a meaning.
    raw.extend([0x4a, 1, b'x']);
    let digest = Digest::sha256_of(&raw).to_string();
    let end = pb::Op { inputs: vec![pb::Input { digest: digest.clone(), index: 0 }], ..Default::default() };
    let ops = vec![source("docker-image://x").encode_to_vec().into(), raw.into(), end.encode_to_vec().into()];
    let error = Graph::parse(&Definition { ops, ..Default::default() }, Limits::default()).unwrap_err();
    assert_eq!(error.to_string(), format!("invalid nil op (vertex {digest})"));
}
