//! What is told of graphs that frontends hand on, and of clients that are frontends.

use std::path::Path;

use lapstrake_api_proto::{
    gateway::{
        self, Ref, ResolveSourceImageRequest, ResolveSourceMetaRequest, ReturnRequest, result::Result as Refs,
    },
    llb as pb,
};
use lapstrake_builder_engine::{Destination, Input, Output};
use lapstrake_integration_cli::Registry;
use lapstrake_tests::{Context, Workbench};
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

#[tokio::test(flavor = "multi_thread")]
async fn what_is_attested_of_an_image_can_be_asked_before_it_is_used() {
    const PROVENANCE: &str = "https://slsa.dev/provenance/v1";
    let (bench, registry) = (Workbench::new(), Registry::start());
    let name = registry.image("team/app:1");
    let mut pushed = bench.request(Context::new("FROM busybox\nRUN true > /x\n"), "unused").await.unwrap();
    let Input::Dockerfile { options, .. } = &mut pushed.input else { panic!("a Dockerfile") };
    options.build_args.insert("BUILDKIT_ATTEST_PROVENANCE".to_owned(), "mode=min".to_owned());
    let attrs = [("name", name.as_str()), ("push", "true")];
    let attrs = attrs.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    pushed.outputs = vec![Output::parse("image", &attrs).unwrap()];
    let root = bench.run(pushed).await.1.unwrap().exported.manifest.unwrap().digest.to_string();
    let mut asked = ask(&bench).await;
    assert!(
        asked
            .bridge
            .ping(gateway::PingRequest::default())
            .await
            .unwrap()
            .into_inner()
            .frontend_api_caps
            .iter()
            .any(|cap| cap.id == "source.metaresolver.image.attestations" && cap.enabled)
    );
    // From the registry, and from the store.
    for resolve_mode in ["pull", "default"] {
        let source = pb::SourceOp { identifier: format!("docker-image://{name}"), ..Default::default() };
        let image = ResolveSourceImageRequest {
            no_config: true,
            attestation_chain: false,
            resolve_attestations: vec![PROVENANCE.to_owned()],
        };
        let request = ResolveSourceMetaRequest {
            source: Some(source),
            resolve_mode: resolve_mode.to_owned(),
            image: Some(image),
            ..Default::default()
        };
        let answer = asked.bridge.resolve_source_meta(request).await.unwrap().into_inner().image.unwrap();
        assert!(answer.config.is_empty());
        assert_eq!(answer.digest, root);
        let chain = answer.attestation_chain.unwrap();
        assert_eq!(chain.root, root);
        let json = |digest: &str| -> Value { serde_json::from_slice(&chain.blobs[digest].data).unwrap() };
        assert_eq!(json(&chain.root)["manifests"][0]["digest"], chain.image_manifest.as_str());
        let layer = &json(&chain.attestation_manifest)["layers"][0];
        assert_eq!(layer["annotations"]["in-toto.io/predicate-type"], PROVENANCE);
        let statement = json(layer["digest"].as_str().unwrap());
        let about = statement["subject"][0]["digest"]["sha256"].as_str().unwrap();
        assert_eq!(format!("sha256:{about}"), chain.image_manifest);
    }
    asked.give_nothing().await;
    asked.end().await.unwrap();
}
