//! What is told of graphs that frontends hand on, and of clients that are frontends.

use std::path::Path;

use lapstrake_api_proto::{
    gateway::{self, Ref, ReturnRequest, result::Result as Refs},
    llb as pb,
};
use lapstrake_builder_engine::{Destination, Input, Output};
use lapstrake_tests::Workbench;
use serde_json::Value;

use crate::bridge::{
    solving::of_dockerfile,
    support::{Asked, ask, begin, request},
};

const TEXT: &str =
    "FROM busybox AS base\nARG WORD\nRUN echo $WORD > /word\nFROM scratch\nCOPY --from=linked /word /\n";
const MADE_BY: [(&str, &str); 3] = [("target", "base"), ("build-arg:WORD", "said"), ("label:input", "l")];

/// Begins a build whose frontend is the test, and that says how it came to be in a directory.
async fn attested(bench: &Workbench, said: &str, to: &Path) -> Asked {
    let options = [("attest:provenance".to_owned(), said.to_owned())].into();
    let mut request = request(bench, Input::Client { options, inputs: Default::default() }, "unused").await;
    request.outputs = vec![Output::local(Destination::Path(to.to_owned()))];
    begin(bench, request).await
}

/// Has a stage made, and gives its graph.
async fn produce(asked: &mut Asked) -> pb::Definition {
    let answer = asked.bridge.solve(of_dockerfile(TEXT, &MADE_BY)).await.unwrap().into_inner();
    let Some(Refs::Ref(Ref { def: Some(graph), .. })) = answer.result.unwrap().result else {
        panic!("a result with its graph")
    };
    graph
}

/// Gives as the answer what the Dockerfile makes of a graph.
async fn consume(asked: &mut Asked, graph: pb::Definition) {
    let mut order = of_dockerfile(TEXT, &[("context:linked", "input:made")]);
    order.frontend_inputs.insert("made".to_owned(), graph);
    let result = asked.bridge.solve(order).await.unwrap().into_inner().result;
    asked.bridge.r#return(ReturnRequest { result, error: None }).await.unwrap();
}

fn request_in(directory: &Path) -> Value {
    let text = std::fs::read(directory.join("provenance.json")).unwrap();
    let statement: Value = serde_json::from_slice(&text).unwrap();
    statement["predicate"]["buildDefinition"]["externalParameters"]["request"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_graph_from_another_frontend_is_told_with_what_that_was_asked() {
    let (bench, to) = (Workbench::new(), tempfile::tempdir().unwrap());
    // Of the same build, and of another one that runs.
    let mut other = ask(&bench).await;
    for is_own in [true, false] {
        let mut asked = attested(&bench, "mode=max", to.path()).await;
        let graph = produce(if is_own { &mut asked } else { &mut other }).await;
        consume(&mut asked, graph).await;
        asked.end().await.unwrap();
        let request = request_in(to.path());
        assert_eq!(request["args"]["context:linked"], "input:made");
        let made = &request["inputs"]["made"]["request"];
        assert_eq!((&made["frontend"], &made["args"]["target"]), (&"dockerfile.v0".into(), &"base".into()));
        assert_eq!(made["args"]["build-arg:WORD"], "said");
        assert_eq!(made.get("root"), None);
    }
    other.give_nothing().await;
    other.end().await.unwrap();
    // The least that is told tells no more of others.
    let mut asked = attested(&bench, "mode=min", to.path()).await;
    let graph = produce(&mut asked).await;
    consume(&mut asked, graph).await;
    asked.end().await.unwrap();
    let args = &request_in(to.path())["inputs"]["made"]["request"]["args"];
    assert_eq!(args["target"], "base");
    assert_eq!((args.get("build-arg:WORD"), args.get("label:input")), (None, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_own_graph_is_nobodys() {
    let (bench, to) = (Workbench::new(), tempfile::tempdir().unwrap());
    // The build that had it made is over.
    let mut other = ask(&bench).await;
    let graph = produce(&mut other).await;
    other.give_nothing().await;
    other.end().await.unwrap();
    let mut asked = attested(&bench, "mode=max", to.path()).await;
    consume(&mut asked, graph.clone()).await;
    asked.end().await.unwrap();
    assert_eq!(request_in(to.path()).get("inputs"), None);
    // What a client solves itself was asked of no frontend.
    let mut asked = attested(&bench, "mode=max", to.path()).await;
    let id = asked.solve(graph).await;
    let result = gateway::Result { result: Some(Refs::Ref(Ref { id, def: None })), ..Default::default() };
    asked.bridge.r#return(ReturnRequest { result: Some(result), error: None }).await.unwrap();
    asked.end().await.unwrap();
    let request = request_in(to.path());
    assert_eq!((request.get("frontend"), request.get("args"), request.get("root")), (None, None, None));
}
