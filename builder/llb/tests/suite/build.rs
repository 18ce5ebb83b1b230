//! Graphs made here: their shape, and that they read back as they were made. That their bytes are BuildKit's is shown where Dockerfiles
//! are planned (`builder/dockerfile/tests/cases`).

use lapstrake_builder_llb::pb::{self, op::Op};
use lapstrake_builder_llb::{
    CopyAction, Defaults, Definition, Error, ExecOptions, FileAction, Graph, GraphBuilder, ImageSource,
    Limits, LocalSource, Mkdir, Mkfile, Mount, MountKind, OpOptions, Output, Owner, OwnerId, ResolveMode, Rm,
    State, Symlink, dump,
};
use lapstrake_layerstore_oci::{Platform, Reference};

fn defaults() -> Defaults {
    Defaults { platform: Platform::new("linux", "amd64"), worker_filters: Vec::new() }
}

fn image(graph: &mut GraphBuilder, name: &str) -> State {
    let source = ImageSource {
        reference: Reference::parse(name).unwrap(),
        resolve_mode: ResolveMode::Default,
        layer_limit: None,
        checksum: None,
    };
    graph.image(source, OpOptions::default())
}

fn run(args: &[&str]) -> ExecOptions {
    ExecOptions { args: args.iter().map(|a| (*a).to_owned()).collect(), ..ExecOptions::default() }
}

fn marshal(graph: &GraphBuilder, state: &State) -> Graph {
    let built = graph.marshal(state, &defaults()).unwrap();
    let definition = Definition::decode(&built.definition.encode()).unwrap();
    assert_eq!(definition, built.definition);
    let parsed = Graph::parse(&definition, Limits::default()).unwrap();
    assert_eq!(built.digest(state), Some(&parsed.vertex(parsed.target().vertex).digest));
    parsed
}

fn mount(target: &str, source: &State, kind: MountKind) -> Mount {
    Mount {
        target: target.to_owned(),
        source: source.clone(),
        selector: String::new(),
        read_only: false,
        kind,
    }
}

#[test]
fn nothing_is_an_empty_definition() {
    let graph = GraphBuilder::new();
    let built = graph.marshal(&State::scratch(), &defaults()).unwrap();
    assert!(built.definition.is_scratch());
    assert_eq!(built.definition.head(), Ok(None));
}

#[test]
fn outputs_are_numbered_by_where_they_are_mounted() {
    let mut graph = GraphBuilder::new();
    let base = image(&mut graph, "busybox");
    let options = ExecOptions {
        mounts: vec![
            mount("/z", &State::scratch(), MountKind::Bind),
            mount("/b", &base, MountKind::BindNoOutput),
            mount("/a", &base, MountKind::Bind),
        ],
        ..run(&["x"])
    };
    let outputs = graph.run(&base, options);
    let a = outputs.mount("/a").unwrap().unwrap();
    let z = outputs.mount("/z").unwrap().unwrap();
    let parsed = marshal(&graph, &a);
    assert_eq!(parsed.target().output, 1);
    assert_eq!(marshal(&graph, &z).target().output, 2);
    assert!(matches!(outputs.mount("/b"), Some(Err(Error::NoOutput { .. }))));
    assert!(outputs.mount("/c").is_none());
    // One input, though it is mounted three times.
    assert_eq!(parsed.vertices()[1].inputs.len(), 1);
}

#[test]
fn equal_ops_are_one_vertex_and_their_metadata_is_merged() {
    let mut graph = GraphBuilder::new();
    let base = image(&mut graph, "busybox");
    let make = |graph: &mut GraphBuilder, ignore: bool| {
        let mut options = run(&["x"]);
        options.op.metadata.ignore_cache = ignore;
        graph.run(&base, options).root
    };
    let (one, two) = (make(&mut graph, false), make(&mut graph, true));
    let merged = graph.merge(&[one, two], OpOptions::default());
    let parsed = marshal(&graph, &merged);
    assert_eq!(parsed.vertices().len(), 3);
    assert!(parsed.vertices()[1].metadata.ignore_cache);
    let Some(Op::Merge(merge)) = &parsed.vertices()[2].op.op else { panic!("a merge") };
    assert_eq!(merge.inputs.len(), 2);
}

#[test]
fn merging_and_diffing_nothing_makes_no_vertex() {
    let mut graph = GraphBuilder::new();
    let base = image(&mut graph, "busybox");
    let scratch = State::scratch();
    assert_eq!(graph.merge(&[scratch.clone(), scratch.clone()], OpOptions::default()).output(), None);
    assert_eq!(graph.merge(&[scratch.clone(), base.clone()], OpOptions::default()), base);
    assert_eq!(graph.diff(&scratch, &base, OpOptions::default()), base);
    assert_eq!(graph.diff(&scratch, &scratch, OpOptions::default()).output(), None);
    let removed = graph.diff(&base, &scratch, OpOptions::default());
    assert_eq!(
        marshal(&graph, &removed).vertices()[1].name,
        "diff (docker-image://docker.io/library/busybox:latest) -> scratch"
    );
}

#[test]
fn file_actions_build_on_each_other() {
    let mut graph = GraphBuilder::new();
    let base = image(&mut graph, "busybox").with_dir("/work");
    let other = image(&mut graph, "alpine").with_dir("/etc");
    let copy = CopyAction {
        owner: Some(Owner { user: Some(OwnerId::Name("app".to_owned())), group: None }),
        ..CopyAction::new(other, "passwd", "sub/.")
    };
    let actions = vec![
        FileAction::Mkdir(Mkdir { path: "d".to_owned(), mode: 0o1755, ..Mkdir::default() }),
        FileAction::Copy(Box::new(copy)),
        FileAction::Mkfile(Mkfile { path: "/f".to_owned(), data: b"x".to_vec(), ..Mkfile::default() }),
        FileAction::Symlink(Symlink { target: "f".to_owned(), path: "/l".to_owned(), ..Symlink::default() }),
        FileAction::Rm(Rm { path: "g".to_owned(), allow_not_found: true, allow_wildcard: false }),
    ];
    let state = graph.file(&base, actions, OpOptions::default());
    insta::assert_snapshot!(dump(&marshal(&graph, &state)));
}

#[test]
fn deferred_states_stand_for_what_they_become() {
    let mut graph = GraphBuilder::new();
    let later = graph.deferred();
    let base = image(&mut graph, "busybox");
    let copy = CopyAction::new(later.clone(), "/a", "/a");
    let state = graph.file(&base, vec![FileAction::Copy(Box::new(copy))], OpOptions::default());
    let unresolved = graph.marshal(&state, &defaults());
    assert_eq!(unresolved, Err(Error::Build("a deferred state was never resolved")));

    let source = LocalSource { name: "context".to_owned(), ..LocalSource::default() };
    let local = graph.local(source, OpOptions::default());
    graph.resolve(&later, &local);
    let built = graph.marshal(&state, &defaults()).unwrap();
    assert_eq!(built.digest(&later), built.digest(&local));
    assert!(built.digest(&later).is_some());

    graph.resolve(&later, &State::scratch());
    assert_eq!(marshal(&graph, &state).vertices().len(), 2);
    graph.resolve(&later, &later);
    assert_eq!(
        graph.marshal(&state, &defaults()),
        Err(Error::Build("a deferred state was resolved to itself"))
    );
    graph.resolve(&later, &state);
    let error = Error::Build("a deferred state was resolved to something that needs it");
    assert_eq!(graph.marshal(&state, &defaults()), Err(error));
}

#[test]
fn imported_graphs_keep_their_bytes() {
    let mut theirs = GraphBuilder::new();
    let base = image(&mut theirs, "busybox");
    let state = theirs.run(&base, run(&["theirs"])).root;
    let definition = theirs.marshal(&state, &defaults()).unwrap().definition;

    let mut ours = GraphBuilder::new();
    let imported = ours.import(&definition).unwrap();
    assert_eq!(imported.meta().platform, Some(Platform::new("linux", "amd64")));
    let state = ours.run(&imported, run(&["ours"])).root;
    let built = ours.marshal(&state, &defaults()).unwrap().definition;
    assert_eq!(built.ops[..2], definition.ops[..2]);
    assert_eq!(ours.import(&Definition::default()).map(|s| s.output()), Ok(None::<Output>));
}

#[test]
fn a_hundred_thousand_steps_cost_no_stack() {
    let mut graph = GraphBuilder::new();
    let mut state = image(&mut graph, "busybox");
    for _ in 0..99_990 {
        state = graph.file(&state, vec![FileAction::Rm(Rm::default())], OpOptions::default());
    }
    assert_eq!(graph.marshal(&state, &defaults()).unwrap().definition.ops.len(), 99_992);
}

#[test]
fn empty_attribute_values_are_written() {
    // prost leaves them out of maps, Go does not.
    let mut graph = GraphBuilder::new();
    let source =
        LocalSource { name: "x".to_owned(), unique_id: Some(String::new()), ..LocalSource::default() };
    let state = graph.local(source, OpOptions::default());
    let built = graph.marshal(&state, &defaults()).unwrap();
    let entry = b"\x12\x10\x0a\x0clocal.unique\x12\x00";
    assert!(built.definition.ops[0].windows(entry.len()).any(|w| w == entry));
    let parsed = marshal(&graph, &state);
    let Some(Op::Source(source)) = &parsed.vertices()[0].op.op else { panic!("a source") };
    assert_eq!(source.attrs["local.unique"], "");
}

#[test]
fn what_cannot_be_an_op_is_refused() {
    let mut graph = GraphBuilder::new();
    let base = image(&mut graph, "busybox");
    let nothing = graph.run(&base, ExecOptions::default()).root;
    assert_eq!(graph.marshal(&nothing, &defaults()), Err(Error::Build("arguments are required")));
    let nothing = graph.file(&base, Vec::new(), OpOptions::default());
    assert_eq!(graph.marshal(&nothing, &defaults()), Err(Error::Build("action is required")));
    let options =
        ExecOptions { mounts: vec![mount("/t", &base, MountKind::Tmpfs { size: 0 })], ..run(&["x"]) };
    let bad = graph.run(&base, options).root;
    assert_eq!(graph.marshal(&bad, &defaults()), Err(Error::Build("tmpfs mounts must use scratch")));
}

#[test]
fn owners_are_names_or_numbers() {
    let user = |text: &str| Owner::parse(text).user.unwrap();
    assert_eq!(user("root"), OwnerId::Id(0));
    assert_eq!(user("7"), OwnerId::Id(7));
    assert_eq!(user("-1"), OwnerId::Id(u32::MAX));
    assert_eq!(user("app:x"), OwnerId::Name("app".to_owned()));
    assert_eq!(Owner::parse("a:b:c").group, Some(OwnerId::Name("b:c".to_owned())));
    assert_eq!(pb::NetMode::default(), pb::NetMode::Unset);
}
