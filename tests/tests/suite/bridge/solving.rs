//! Clients that are the frontend: what they solve, and what becomes of their answer.

use std::collections::BTreeMap;

use lapstrake_api_proto::{
    gateway::{
        self, CacheOptionsEntry, EvaluateRequest, PingRequest, Ref, ReturnRequest, SolveRequest, WarnRequest,
        result::Result as Refs,
    },
    google::rpc,
    llb as pb,
};
use lapstrake_builder_engine::{BuildId, EngineError, Input};
use lapstrake_builder_llb::Definition;
use lapstrake_builder_progress::Event;
use lapstrake_integration_cli::buildkit::Llb;
use lapstrake_layerstore_oci::Platform;
use lapstrake_tests::Workbench;
use prost::Message as _;
use tonic::Code;

use crate::bridge::support::{
    ask, ask_for_image, begin, client_input, frontend, one, request, run, several, stub,
};

/// A directory with a Dockerfile, as a graph.
pub(crate) fn dockerfile(text: &str) -> pb::Definition {
    let mut graph = Llb::default();
    let file = graph.file(None, "/Dockerfile", text.as_bytes());
    graph.result(&file)
}

/// What buildx asks for: a Dockerfile, here given as graphs in place of directories.
pub(crate) fn of_dockerfile(text: &str, options: &[(&str, &str)]) -> SolveRequest {
    let inputs = ["context", "dockerfile"].map(|name| (name.to_owned(), dockerfile(text)));
    SolveRequest {
        frontend: "dockerfile.v0".to_owned(),
        frontend_opt: options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        frontend_inputs: inputs.into_iter().collect(),
        allow_result_return: true,
        allow_result_array_ref: true,
        ..SolveRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_makes_of_a_dockerfile_is_its_image() {
    let bench = Workbench::new();
    let mut asked = ask_for_image(&bench, "app").await;
    let text = "FROM busybox\nARG A=none\nRUN echo $A > /a\nLABEL by=$A\n";
    let order = of_dockerfile(text, &[("build-arg:A", "client")]);
    let result = asked.bridge.solve(order).await.unwrap().into_inner().result.unwrap();
    let config: serde_json::Value =
        serde_json::from_slice(&result.metadata["containerimage.config"]).unwrap();
    assert_eq!(config["config"]["Labels"]["by"], "client");
    let platforms: serde_json::Value = serde_json::from_slice(&result.metadata["refs.platforms"]).unwrap();
    assert_eq!(platforms["Platforms"][0]["ID"], Platform::host().to_string());
    assert!(result.metadata.contains_key("containerimage.base.config"));
    asked.bridge.r#return(ReturnRequest { result: Some(result), error: None }).await.unwrap();
    asked.end().await.unwrap();
    assert_eq!(bench.read("app", "a"), "client\n");
    assert_eq!(bench.config("app").config.labels["by"], "client");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_graph_is_solved_when_somebody_needs_it() {
    let bench = Workbench::new();
    let mut asked = ask(&bench).await;
    let lazy = asked.solve(run("echo never; exit 4")).await;
    let wanted = asked.solve(run("echo wanted > /w")).await;
    asked.bridge.evaluate(EvaluateRequest { r#ref: wanted }).await.unwrap();
    let status = asked.bridge.evaluate(EvaluateRequest { r#ref: lazy.clone() }).await.unwrap_err();
    assert!(status.message().contains("exit code: 4"), "{status:?}");
    // A failure is the same however often it is asked for.
    let again = asked.bridge.evaluate(EvaluateRequest { r#ref: lazy }).await.unwrap_err();
    assert_eq!(again.message(), status.message());
    let at_once = SolveRequest { definition: Some(run("exit 5")), evaluate: true, ..SolveRequest::default() };
    let status = asked.bridge.solve(at_once).await.unwrap_err();
    assert!(status.message().contains("exit code: 5"), "{status:?}");
    asked.give_nothing().await;
    let events = asked.told().await;
    let told: Vec<&str> = events
        .iter()
        .filter_map(|event| match event {
            Event::Vertex(vertex) => Some(vertex.name.as_str()),
            _ => None,
        })
        .collect();
    assert!(told.iter().any(|name| name.contains("echo wanted")), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_the_details_that_clients_read() {
    let bench = Workbench::new();
    let mut asked = ask(&bench).await;
    let details = |status: &tonic::Status| -> Vec<(String, serde_json::Value)> {
        let status = rpc::Status::decode(status.details()).unwrap();
        let read = |detail: lapstrake_api_proto::google::protobuf::Any| {
            (detail.type_url, serde_json::from_slice(&detail.value).unwrap())
        };
        status.details.into_iter().map(read).collect()
    };
    let find = |all: &[(String, serde_json::Value)], name: &str| {
        let url = format!("github.com/moby/buildkit/{name}");
        all.iter().find(|(other, _)| *other == url).map(|(_, value)| value.clone())
    };
    // A step that fails: its vertex, its lines, its exit code.
    let text = "FROM busybox\nRUN exit 3\n";
    let order = SolveRequest { evaluate: true, ..of_dockerfile(text, &[]) };
    let status = asked.bridge.solve(order).await.unwrap_err();
    let all = details(&status);
    let source = find(&all, "errdefs.Source+json").unwrap();
    assert_eq!(source["info"]["filename"], "Dockerfile");
    assert_eq!(source["ranges"][0]["start"]["line"], 2);
    use base64::Engine as _;
    let data = base64::engine::general_purpose::STANDARD.encode(text);
    assert_eq!(source["info"]["data"], serde_json::Value::String(data));
    assert!(find(&all, "errdefs.Vertex+json").unwrap()["digest"].as_str().unwrap().starts_with("sha256:"));
    assert_eq!(find(&all, "gatewayapi.ExitMessage+json").unwrap()["Code"], 3);
    // A Dockerfile that cannot be read.
    let status = asked.bridge.solve(of_dockerfile("FROM busybox\nNONSENSE\n", &[])).await.unwrap_err();
    let source = find(&details(&status), "errdefs.Source+json").unwrap();
    assert_eq!(source["ranges"][0]["start"]["line"], 2);
    // A question that nobody answers.
    let order = of_dockerfile("FROM busybox\n", &[("requestid", "frontend.nonsense")]);
    let status = asked.bridge.solve(order).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert_eq!(find(&details(&status), "errdefs.Subrequest+json").unwrap()["name"], "frontend.nonsense");
    // What the frontend is to be able to.
    let order = of_dockerfile("FROM busybox\n", &[("frontend.caps", "moby.buildkit.frontend.nonsense")]);
    let status = asked.bridge.solve(order).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    let cap = find(&details(&status), "errdefs.FrontendCap+json").unwrap();
    assert_eq!(cap["name"], "moby.buildkit.frontend.nonsense");
    asked.give_nothing().await;
    asked.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_fails_says_why_the_build_does() {
    let bench = Workbench::new();
    let mut asked = ask(&bench).await;
    let detail = lapstrake_api_proto::google::protobuf::Any {
        type_url: "github.com/moby/buildkit/errdefs.Vertex+json".to_owned(),
        value: br#"{"digest":"sha256:x"}"#.to_vec(),
    };
    let error = rpc::Status {
        code: Code::Aborted as i32,
        message: "no luck".to_owned(),
        details: vec![detail.clone()],
    };
    let given = ReturnRequest { result: None, error: Some(error) };
    asked.bridge.r#return(given.clone()).await.unwrap();
    let error = asked.end().await.unwrap_err();
    assert_eq!(error.to_string(), "no luck");
    let status = lapstrake_builder_engine::status_of(&error);
    assert_eq!((status.code(), status.message()), (Code::Aborted, "no luck"));
    let details = rpc::Status::decode(status.details()).unwrap().details;
    assert_eq!(details.last(), Some(&detail));
    // And where it comes from.
    assert!(details[0].type_url.ends_with("stack.Stack+json"), "{details:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_counts_once_and_names_what_is_there() {
    let bench = Workbench::new();
    let mut asked = ask(&bench).await;
    let unknown = Refs::Ref(Ref { id: "elsewhere".to_owned(), def: None });
    let wrong = gateway::Result { result: Some(unknown), ..Default::default() };
    let status = asked.bridge.r#return(ReturnRequest { result: Some(wrong), error: None }).await.unwrap_err();
    assert!(status.message().contains("return reference elsewhere not found"), "{status:?}");
    let status = asked.bridge.r#return(ReturnRequest::default()).await.unwrap_err();
    assert!(status.message().contains("must be either result or err"), "{status:?}");
    // Another build's results are nobody else's.
    let mut other = ask(&bench).await;
    let theirs = other.solve(run("true")).await;
    let status = asked.bridge.evaluate(EvaluateRequest { r#ref: theirs }).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    other.give_nothing().await;
    other.end().await.unwrap();
    asked.give_nothing().await;
    let result = Some(gateway::Result::default());
    let second = asked.bridge.r#return(ReturnRequest { result, error: None }).await;
    // Refused while the build is there; afterwards there is no such build.
    second.unwrap_err();
    asked.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn several_platforms_are_several_results() {
    let bench = Workbench::new();
    let mut asked = ask(&bench).await;
    let order =
        of_dockerfile("FROM scratch\nCOPY Dockerfile /\n", &[("platform", "linux/amd64,linux/arm64")]);
    let result = asked.bridge.solve(order.clone()).await.unwrap().into_inner().result.unwrap();
    let refs = several(result.result.unwrap());
    assert_eq!(refs.keys().collect::<Vec<_>>(), ["linux/amd64", "linux/arm64"]);
    assert!(result.metadata.contains_key("containerimage.config/linux/arm64"));
    // Clients of before maps get none.
    let old = SolveRequest { allow_result_return: false, ..order };
    let status = asked.bridge.solve(old).await.unwrap_err();
    assert!(status.message().contains("solve did not return default result"), "{status:?}");
    asked.give_nothing().await;
    asked.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn old_clients_give_their_answer_with_their_last_graph() {
    let bench = Workbench::new();
    let mut asked = ask_for_image(&bench, "app").await;
    let last = SolveRequest {
        definition: Some(run("echo old > /out")),
        r#final: true,
        exporter_attr: br#"{"containerimage.config":"eyJhcmNoaXRlY3R1cmUiOiJhbWQ2NCIsIm9zIjoibGludXgiLCJjb25maWciOnsiVXNlciI6Im9sZCJ9fQ=="}"#.to_vec(),
        ..SolveRequest::default()
    };
    let answer = asked.bridge.solve(last).await.unwrap().into_inner();
    assert!(!answer.r#ref.is_empty());
    asked.end().await.unwrap();
    assert_eq!(bench.read("app", "out"), "old\n");
    assert_eq!(bench.config("app").config.user, "old");
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_about_a_dockerfile_are_answered_with_metadata() {
    let bench = Workbench::new();
    let mut asked = ask(&bench).await;
    let text = "FROM busybox AS one\nFROM one AS two\nRUN true\n";
    for (id, expected) in [
        ("frontend.targets", "two"),
        ("frontend.outline", "\"args\""),
        ("frontend.lint", "warnings"),
        ("frontend.subrequests.describe", "frontend.outline"),
    ] {
        let order = of_dockerfile(
            text,
            &[("requestid", id), ("frontend.caps", "moby.buildkit.frontend.subrequests")],
        );
        let result = asked.bridge.solve(order).await.unwrap().into_inner().result.unwrap();
        let json = String::from_utf8(result.metadata["result.json"].clone()).unwrap();
        assert!(json.contains(expected) || id == "frontend.outline", "{id}: {json}");
        assert_eq!(result.metadata["version"], b"1.0.0");
        assert!(result.metadata.contains_key("result.txt"));
    }
    asked.give_nothing().await;
    asked.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn definitions_and_frontends_may_be_asked_for_without_a_client_that_calls_back() {
    let bench = Workbench::new();
    let definition = Definition::from_proto(run("echo raw > /raw")).unwrap();
    let raw = request(&bench, Input::Definition { definition, options: BTreeMap::new() }, "raw").await;
    bench.run(raw).await.1.unwrap();
    assert_eq!(bench.read("raw", "raw"), "raw\n");
    let Input::Frontend(mut asked) = frontend("dockerfile.v0", &[("target", "first")]) else {
        panic!("a frontend")
    };
    let text = "FROM busybox AS first\nRUN echo first > /stage\nFROM busybox\nRUN false\n";
    for name in ["context", "dockerfile"] {
        asked.inputs.insert(name.to_owned(), Definition::from_proto(dockerfile(text)).unwrap());
    }
    let built = request(&bench, Input::Frontend(asked), "staged").await;
    bench.run(built).await.1.unwrap();
    assert_eq!(bench.read("staged", "stage"), "first\n");
    let unknown = request(&bench, frontend("cobol.v0", &[]), "none").await;
    let error = bench.run(unknown).await.1.unwrap_err();
    assert_eq!(error.to_string(), "invalid frontend: cobol.v0");
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_calls_are_errors() {
    let bench = Workbench::new();
    let mut asked = ask(&bench).await;
    let both = SolveRequest { definition: Some(run("true")), ..of_dockerfile("FROM scratch\n", &[]) };
    let status = asked.bridge.solve(both).await.unwrap_err();
    assert!(status.message().contains("both Definition and Frontend"), "{status:?}");
    // Graphs whose parts are missing, or lie (CVE-2024-23650).
    let mut cut = run("true");
    cut.def.remove(0);
    let mut endless = run("true");
    endless.def.truncate(1);
    let nothing = pb::Definition { def: vec![Vec::new(), Vec::new()], ..pb::Definition::default() };
    let noise = pb::Definition { def: vec![vec![0xff; 64]], ..pb::Definition::default() };
    let exec = pb::Op { op: Some(pb::op::Op::Exec(pb::ExecOp::default())), ..pb::Op::default() };
    let bare = pb::Definition { def: vec![exec.encode_to_vec()], ..pb::Definition::default() };
    for definition in [cut, endless, nothing, noise, bare] {
        let order = SolveRequest { definition: Some(definition), evaluate: true, ..SolveRequest::default() };
        asked.bridge.solve(order).await.unwrap_err();
    }
    let warning = WarnRequest { digest: "nonsense".to_owned(), ..WarnRequest::default() };
    asked.bridge.warn(warning).await.unwrap_err();
    let cache = CacheOptionsEntry { r#type: "nonsense".to_owned(), ..CacheOptionsEntry::default() };
    // A cache that nobody knows is told of, and nothing more: as one that cannot be had.
    let order = SolveRequest {
        definition: Some(run("true")),
        cache_imports: vec![cache],
        evaluate: true,
        ..Default::default()
    };
    asked.bridge.solve(order).await.unwrap();
    // A graph in place of a directory that is none.
    let mut none = of_dockerfile("FROM scratch\n", &[]);
    none.frontend_inputs.insert("context".to_owned(), pb::Definition::default());
    let status = asked.bridge.solve(none).await.unwrap_err();
    assert!(status.message().contains("invalid nil input definition"), "{status:?}");
    asked.give_nothing().await;
    asked.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn results_without_platforms_or_config_are_refused() {
    let bench = Workbench::new();
    for (name, why) in [
        ("containerimage.config", "invalid null image config for export"),
        ("refs.platforms", "invalid empty platforms index for exporter"),
    ] {
        let mut asked = ask_for_image(&bench, "app").await;
        let result = gateway::Result {
            metadata: [(name.to_owned(), b"null".to_vec())].into(),
            ..gateway::Result::default()
        };
        asked.bridge.r#return(ReturnRequest { result: Some(result), error: None }).await.unwrap();
        let error = asked.end().await.unwrap_err();
        assert!(error.to_string().contains(why), "{name}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_for_other_platforms_than_asked_for_is_warned_of() {
    let bench = Workbench::new();
    let options = [("platform".to_owned(), "linux/amd64,linux/arm64".to_owned())];
    let input = Input::Client { options: options.into(), inputs: BTreeMap::new() };
    let mut request = request(&bench, input, "unused").await;
    request.outputs = Vec::new();
    let mut asked = begin(&bench, request).await;
    let one = asked.solve(run("true")).await;
    asked.give(&one).await;
    let warned = asked.told().await.into_iter().filter_map(|event| match event {
        Event::Warning(warning) => Some(String::from_utf8(warning.short).unwrap()),
        _ => None,
    });
    let words = "Multiple platforms requested but result is not multi-platform";
    assert_eq!(warned.collect::<Vec<_>>(), [words]);
}

#[tokio::test(flavor = "multi_thread")]
async fn options_that_nobody_knows_are_warned_of() {
    let bench = Workbench::new();
    let mut asked = ask(&bench).await;
    asked.bridge.solve(of_dockerfile("FROM busybox\n", &[("surprise", "1")])).await.unwrap();
    asked.give_nothing().await;
    let warned = asked.told().await.into_iter().filter_map(|event| match event {
        Event::Warning(warning) => Some(String::from_utf8(warning.short).unwrap()),
        _ => None,
    });
    assert_eq!(warned.collect::<Vec<_>>(), ["unknown frontend option \"surprise\" is ignored"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn warnings_of_a_client_are_the_builds() {
    let bench = Workbench::new();
    let mut asked = ask(&bench).await;
    let warning = WarnRequest {
        digest: format!("sha256:{}", "a".repeat(64)),
        short: b"mind the gap".to_vec(),
        ..WarnRequest::default()
    };
    asked.bridge.warn(warning).await.unwrap();
    asked.give_nothing().await;
    let events = asked.told().await;
    let warned = events.iter().any(|event| matches!(event, Event::Warning(warning) if warning.short == b"mind the gap" && warning.level == 1));
    assert!(warned, "{events:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_told_what_there_is() {
    let bench = Workbench::new();
    let mut asked = ask(&bench).await;
    let pong = asked.bridge.ping(PingRequest {}).await.unwrap().into_inner();
    let has = |id: &str| pong.frontend_api_caps.iter().any(|cap| cap.id == id && cap.enabled);
    for id in [
        "solve.base",
        "return",
        "returnmap",
        "proto.refarray",
        "gateway.exec",
        "gateway.solve.evaluate",
        "source.metaresolver",
    ] {
        assert!(has(id), "{id}");
    }
    assert!(pong.llb_caps.iter().any(|cap| cap.id == "exec.meta.base" && cap.enabled));
    assert_eq!(pong.workers.len(), 1);
    assert_eq!(pong.workers[0].platforms[0].os, "linux");
    asked.give_nothing().await;
    asked.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_find_their_build_and_no_other() {
    let bench = Workbench::new();
    // The call is there before the build.
    let mut request = request(&bench, client_input(), "unused").await;
    request.outputs = Vec::new();
    request.id = BuildId("later".to_owned());
    let mut early = stub(&bench, &request.id).await;
    let early = tokio::spawn(async move { early.ping(PingRequest {}).await.map(|_| ()) });
    let mut asked = begin(&bench, request).await;
    early.await.unwrap().unwrap();
    asked.give_nothing().await;
    asked.end().await.unwrap();
    let error = bench.engine.bridge(&BuildId("never".to_owned())).await.unwrap_err();
    assert!(matches!(error, EngineError::NoSuchBuild { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_may_be_part_of_another_graph() {
    let bench = Workbench::new();
    let mut asked = ask_for_image(&bench, "app").await;
    let order = of_dockerfile("FROM busybox\nRUN echo base > /base\n", &[]);
    let result = asked.bridge.solve(order).await.unwrap().into_inner().result.unwrap();
    let Some(Refs::Ref(Ref { def: Some(definition), id })) = result.result.clone() else {
        panic!("{result:?}")
    };
    assert!(!id.is_empty());
    // Built upon by its graph.
    let mut order = of_dockerfile("FROM base\nRUN cat /base > /copied\n", &[("context:base", "input:base")]);
    order.frontend_inputs.insert("base".to_owned(), definition);
    let result = asked.bridge.solve(order).await.unwrap().into_inner().result.unwrap();
    let id = one(result.result.unwrap());
    asked.give(&id).await;
    asked.end().await.unwrap();
    assert_eq!(bench.read("app", "copied"), "base\n");
}
