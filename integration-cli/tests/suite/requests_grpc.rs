//! What a `SolveRequest` says besides what is built: what is kept of it, in which form results are, who says where they go.

use std::collections::{HashMap, HashSet};

use lapstrake_api_proto::{
    content::{ListContentRequest, StatusRequest, WriteContentRequest, content_client::ContentClient},
    control::{BuildHistoryRequest, InfoRequest, SolveRequest},
    gateway,
    llb::Definition,
};
use lapstrake_integration_cli::{
    Daemon,
    buildkit::{BuildKit, Client, Llb, Received, attrs, exporter, unique},
};
use tonic::Code;

use crate::common::unpack;

/// A tree with one file.
fn graph() -> Definition {
    let mut graph = Llb::default();
    let file = graph.file(None, "/file", b"by hand\n");
    graph.result(&file)
}

fn build() -> SolveRequest {
    SolveRequest { r#ref: unique("build"), definition: Some(graph()), ..SolveRequest::default() }
}

fn json(files: &HashMap<String, Vec<u8>>, path: &str) -> serde_json::Value {
    serde_json::from_slice(&files[path]).unwrap()
}

fn blob(files: &HashMap<String, Vec<u8>>, descriptor: &serde_json::Value) -> serde_json::Value {
    json(files, &format!("blobs/{}", descriptor["digest"].as_str().unwrap().replace(':', "/")))
}

#[tokio::test]
async fn an_internal_build_is_not_recorded() {
    let daemon = Daemon::start();
    let buildkit = BuildKit::raw(&daemon.socket()).await;
    let recorded = async || {
        let request = BuildHistoryRequest { early_exit: true, ..BuildHistoryRequest::default() };
        let mut events = buildkit.control().listen_build_history(request).await.unwrap().into_inner();
        let mut all = HashSet::new();
        while let Some(event) = events.message().await.unwrap() {
            all.insert(event.record.unwrap().r#ref);
        }
        all
    };
    let (open, internal) = (build(), SolveRequest { internal: true, ..build() });
    let references = [open.r#ref.clone(), internal.r#ref.clone()];
    buildkit.solve(open).await.success();
    let outcome = buildkit.solve(internal).await;
    assert!(!outcome.vertices().is_empty(), "it is told of while it runs");
    outcome.success();
    assert_eq!(recorded().await, [references[0].clone()].into());
}

#[tokio::test]
async fn results_are_as_older_versions_made_them_where_that_is_asked() {
    let daemon = Daemon::start();
    let buildkit = BuildKit::raw(&daemon.socket()).await;
    let session = buildkit.open(Client::default()).await;
    let made = async |version: i64, attest: bool| {
        let frontend_attrs =
            if attest { attrs(&[("attest:provenance", "mode=max,version=v1")]) } else { attrs(&[]) };
        let request = SolveRequest {
            compatibility_version: version,
            session: session.id().to_owned(),
            exporters: vec![exporter("docker", &[]), exporter("oci", &[])],
            frontend_attrs,
            ..build()
        };
        buildkit.solve(request).await.success();
        [unpack(&session.file(0)), unpack(&session.file(1))]
    };
    let docker = "application/vnd.docker.distribution.manifest.v2+json";
    let oci = "application/vnd.oci.image.manifest.v1+json";
    for (version, expected) in [(0, oci), (30, oci), (20, docker), (10, docker)] {
        let [archive, layout] = made(version, false).await;
        assert_eq!(json(&archive, "index.json")["manifests"][0]["mediaType"], expected, "{version}");
        assert_eq!(json(&layout, "index.json")["manifests"][0]["mediaType"], oci, "{version}");
    }
    for (version, artifact) in [(30, true), (20, false)] {
        let [_, layout] = made(version, true).await;
        let index = blob(&layout, &json(&layout, "index.json")["manifests"][0]);
        let manifests = index["manifests"].as_array().unwrap();
        let is_about = |one: &&serde_json::Value| one["platform"]["os"] == "unknown";
        // What is to be attested of a graph that no frontend made is.
        let about = blob(&layout, manifests.iter().find(is_about).unwrap());
        assert_eq!(about["artifactType"].is_string(), artifact, "{version}: {about}");
        let statement = blob(&layout, &about["layers"][0]);
        let request = &statement["predicate"]["buildDefinition"]["externalParameters"]["request"];
        assert_eq!(request["compatibilityVersion"], version, "{statement}");
    }
}

#[tokio::test]
async fn what_is_asked_and_not_done_is_refused_by_name() {
    let daemon = Daemon::start();
    let buildkit = BuildKit::raw(&daemon.socket()).await;
    let session = buildkit.open(Client::default()).await;
    let proxied = SolveRequest { proxy_network: true, ..build() };
    let future = SolveRequest { compatibility_version: 31, ..build() };
    let zstd = SolveRequest {
        compatibility_version: 10,
        session: session.id().to_owned(),
        exporters: vec![exporter("oci", &[("compression", "zstd")])],
        ..build()
    };
    let seal = SolveRequest { frontend_attrs: attrs(&[("attest:seal", "")]), ..build() };
    for (request, why) in [
        (proxied, "ProxyNetwork"),
        (future, "unsupported compatibility-version 31"),
        (zstd, "unsupported compatibility-version 10 feature oci exporter compression=zstd"),
        (seal, "unknown attestation type"),
    ] {
        let status = buildkit.solve(request).await.failure();
        assert!(status.message().contains(why), "{why}: {status:?}");
    }
}

#[tokio::test]
async fn a_client_may_say_what_is_left_behind_when_it_has_seen_the_result() {
    let daemon = Daemon::start();
    let buildkit = BuildKit::raw(&daemon.socket()).await;
    let session = buildkit.open(Client::default().wants("tar", attrs(&[]))).await;
    // The client is the frontend, and answers with the graph.
    let reference = unique("build");
    let request = SolveRequest {
        r#ref: reference.clone(),
        session: session.id().to_owned(),
        exporters: vec![exporter("moby", &[("name", "said-at-first")])],
        enable_session_exporter: true,
        ..SolveRequest::default()
    };
    let answering = async {
        let mut bridge = buildkit.bridge(&reference);
        let solve = gateway::SolveRequest {
            definition: Some(graph()),
            allow_result_return: true,
            allow_result_array_ref: true,
            ..Default::default()
        };
        let result = bridge.solve(solve).await.unwrap().into_inner().result;
        bridge.r#return(gateway::ReturnRequest { result, error: None }).await.unwrap();
    };
    let (outcome, ()) = tokio::join!(buildkit.solve(request), answering);
    let response = outcome.success();
    // After the one that it said at first.
    assert_eq!(unpack(&session.file(1))["file"], b"by hand\n");
    let asked = session.asked();
    assert_eq!((asked.refs.len(), asked.finished), (1, Some(response)));

    // Who wants nothing is not disturbed.
    let session = buildkit.open(Client::default()).await;
    let silent = SolveRequest { session: session.id().to_owned(), enable_session_exporter: true, ..build() };
    buildkit.solve(silent).await.success();
    assert_eq!(session.asked().refs, Vec::<String>::new());
}

#[tokio::test]
async fn an_archive_that_the_client_has_already_is_told_of_and_not_sent() {
    let daemon = Daemon::start();
    let buildkit = BuildKit::raw(&daemon.socket()).await;
    let request = |session: &str, kind: &str| SolveRequest {
        session: session.to_owned(),
        exporters: vec![exporter(kind, &[])],
        ..build()
    };
    let session = buildkit.open(Client::default().has_output(0)).await;
    let response = buildkit.solve(request(session.id(), "oci")).await.success();
    assert!(response["containerimage.digest"].starts_with("sha256:"), "{response:?}");
    assert_eq!(session.received(0), None);
    let other = buildkit.open(Client::default()).await;
    buildkit.solve(request(other.id(), "oci")).await.success();
    let Some(Received::File(_, told)) = other.received(0) else { panic!("no file came") };
    assert_eq!(told["containerimage.digest"], response["containerimage.digest"]);
    // Of a tree nothing can be told beforehand.
    buildkit.solve(request(session.id(), "tar")).await.failure();
}

#[tokio::test]
async fn content_is_listed_and_not_written() {
    let daemon = Daemon::start();
    let buildkit = BuildKit::raw(&daemon.socket()).await;
    let mut content = ContentClient::new(buildkit.channel());
    let list = async |content: &mut ContentClient<_>, filters: &[&str]| {
        let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        let mut answers = content.list(ListContentRequest { filters }).await.unwrap().into_inner();
        let mut all = HashMap::new();
        while let Some(some) = answers.message().await.unwrap() {
            all.extend(some.info.into_iter().map(|info| (info.digest, info.size)));
        }
        all
    };
    assert_eq!(list(&mut content, &[]).await, HashMap::new());
    let image = SolveRequest { exporters: vec![exporter("image", &[("name", "listed")])], ..build() };
    let digest = buildkit.solve(image).await.success()["containerimage.digest"].clone();
    let all = list(&mut content, &[]).await;
    // Of the image manifest, config and layer; and the log of the build.
    assert!(all.contains_key(&digest) && all.len() >= 4, "{all:?}");
    let one = list(&mut content, &[&format!("digest=={digest}")]).await;
    assert_eq!(one, HashMap::from([(digest.clone(), all[&digest])]));
    assert_eq!(list(&mut content, &["labels.a==b"]).await, HashMap::new());
    let status = content.status(StatusRequest { r#ref: "nothing".to_owned() }).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let write = match content.write(tokio_stream::iter([WriteContentRequest {}])).await {
        Ok(mut answers) => answers.get_mut().message().await.unwrap_err(),
        Err(status) => status,
    };
    assert_eq!((write.code(), write.message().contains("content Write")), (Code::Unimplemented, true));
}

#[tokio::test]
async fn the_version_of_the_dockerfile_frontend_is_told() {
    let daemon = Daemon::start();
    let buildkit = BuildKit::raw(&daemon.socket()).await;
    let version = buildkit.control().info(InfoRequest {}).await.unwrap().into_inner().buildkit_version;
    let version = version.unwrap().dockerfile_version;
    let numbers: Vec<u64> = version.split('.').map(|number| number.parse().unwrap()).collect();
    assert!(numbers.len() == 3 && numbers[0] == 1, "{version}");
}
