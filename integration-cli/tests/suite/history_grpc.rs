//! The build history as BuildKit's clients see it: `ListenBuildHistory`, `UpdateBuildHistory`, and containerd's content service.

use std::process::Command;

use lapstrake_api_proto::{
    content::{InfoRequest, ReadContentRequest, content_client::ContentClient},
    control::{
        BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRecord, BuildHistoryRequest, Descriptor,
        SolveRequest, StatusRequest, StatusResponse, UpdateBuildHistoryRequest,
    },
    google::rpc,
};
use lapstrake_integration_cli::{
    Daemon,
    buildkit::{BuildKit, Client, Tree, attrs, dockerfile_build, exporter},
};
use prost::Message as _;
use tonic::{Code, Status, Streaming};

/// Builds a Dockerfile; the build's reference.
async fn build(daemon: &Daemon, buildkit: &BuildKit, text: &str, options: &[(&str, &str)]) -> String {
    let session = Client::with_context(Tree::of(&[("Dockerfile", text)])).open(&daemon.socket()).await;
    let exporters = vec![exporter("moby", &[("name", "kept")])];
    let request = SolveRequest { frontend_attrs: attrs(options), exporters, ..dockerfile_build(&session) };
    let reference = request.r#ref.clone();
    let _ = buildkit.solve(request).await;
    reference
}

async fn listen(
    buildkit: &BuildKit,
    request: BuildHistoryRequest,
) -> Result<Streaming<BuildHistoryEvent>, Status> {
    Ok(buildkit.control().listen_build_history(request).await?.into_inner())
}

/// What is recorded, with no wait for more.
async fn recorded(buildkit: &BuildKit, request: BuildHistoryRequest) -> Vec<BuildHistoryRecord> {
    let mut events = listen(buildkit, BuildHistoryRequest { early_exit: true, ..request }).await.unwrap();
    let mut records = Vec::new();
    while let Some(event) = events.message().await.unwrap() {
        assert_eq!(event.r#type(), BuildHistoryEventType::Complete);
        records.push(event.record.unwrap());
    }
    records
}

async fn record(buildkit: &BuildKit, reference: &str) -> BuildHistoryRecord {
    let request = BuildHistoryRequest { r#ref: reference.to_owned(), ..BuildHistoryRequest::default() };
    let [record] = <[_; 1]>::try_from(recorded(buildkit, request).await).unwrap();
    record
}

async fn update(buildkit: &BuildKit, request: UpdateBuildHistoryRequest) -> Result<(), Status> {
    buildkit.control().update_build_history(request).await.map(drop)
}

/// The bytes of a descriptor, read in two halves.
async fn content(buildkit: &BuildKit, descriptor: &Descriptor) -> Result<Vec<u8>, Status> {
    let mut client = ContentClient::new(buildkit.channel());
    let digest = || descriptor.digest.clone();
    let info = client.info(InfoRequest { digest: digest() }).await?.into_inner().info.unwrap();
    assert_eq!((&info.digest, info.size), (&descriptor.digest, descriptor.size));
    let half = descriptor.size / 2;
    let mut data = Vec::new();
    for (offset, size) in [(0, half), (half, 0)] {
        let request = ReadContentRequest { digest: digest(), offset, size };
        let mut stream = client.read(request).await?.into_inner();
        while let Some(chunk) = stream.message().await? {
            assert_eq!(chunk.offset, i64::try_from(data.len()).unwrap());
            data.extend(chunk.data);
        }
    }
    Ok(data)
}

#[tokio::test]
async fn a_build_is_recorded_when_its_client_has_the_answer() {
    let mut daemon = Daemon::with_base();
    let buildkit = BuildKit::upgraded(&daemon.socket()).await;
    let text = "FROM busybox AS it\nARG TOKEN\nRUN echo the words\n";
    let options = [("build-arg:TOKEN", "not-in-the-record"), ("target", "it"), ("label:a", "b")];
    let reference = build(&daemon, &buildkit, text, &options).await;
    let told = record(&buildkit, &reference).await;
    assert_eq!((told.frontend.as_str(), told.r#ref.as_str()), ("dockerfile.v0", reference.as_str()));
    let attr = |name: &str| told.frontend_attrs.get(name).map(String::as_str);
    assert_eq!((attr("target"), attr("label:a")), (Some("it"), Some("b")));
    assert_eq!(attr("build-arg:TOKEN"), Some("xxxxx"));
    assert!(told.created_at.unwrap().seconds > 0 && told.completed_at.is_some() && told.error.is_none());
    assert_eq!((told.exporters.len(), told.exporters[0].r#type.as_str()), (1, "image"));
    assert!(told.exporter_response.contains_key("containerimage.digest"), "{told:?}");
    assert!(told.num_total_steps >= 2 && told.num_total_steps == told.num_completed_steps, "{told:?}");

    // The log, in the form in which BuildKit keeps it, is what Status says.
    let log = content(&buildkit, told.logs.as_ref().unwrap()).await.unwrap();
    let mut rest = &log[..];
    let mut kept = Vec::new();
    while !rest.is_empty() {
        let (length, after) = rest.split_at(4);
        let length = u32::from_le_bytes(length.try_into().unwrap()) as usize;
        kept.extend(
            StatusResponse::decode(&after[..length]).unwrap().logs.into_iter().flat_map(|log| log.msg),
        );
        rest = &after[length..];
    }
    assert!(String::from_utf8_lossy(&kept).contains("the words\n"));

    // What the output left is told of, and there.
    let left = told.result.unwrap().results.remove(&0).unwrap();
    let config: serde_json::Value =
        serde_json::from_slice(&content(&buildkit, &left).await.unwrap()).unwrap();
    assert!(config["config"].is_object() || config["layers"].is_array(), "{config}");

    // A trace is made for who asks for one.
    assert!(told.trace.is_none());
    let finalize =
        UpdateBuildHistoryRequest { r#ref: reference.clone(), finalize: true, ..Default::default() };
    update(&buildkit, finalize).await.unwrap();
    let told = record(&buildkit, &reference).await;
    let trace = content(&buildkit, told.trace.as_ref().unwrap()).await.unwrap();
    assert!(String::from_utf8_lossy(&trace).contains("RUN echo the words") && told.generation == 1);

    // All of it survives the daemon; nothing of it has the value of a build-arg.
    drop(buildkit);
    daemon.kill_and_restart();
    let buildkit = BuildKit::raw(&daemon.socket()).await;
    assert_eq!(record(&buildkit, &reference).await, told);
    let grep = Command::new("grep")
        .args(["-rl", "not-in-the-record"])
        .arg(daemon.root().join("metadata.db"))
        .output();
    assert_eq!(String::from_utf8_lossy(&grep.unwrap().stdout), "");
}

#[tokio::test]
async fn a_failure_is_kept_with_its_details() {
    let daemon = Daemon::with_base();
    let buildkit = BuildKit::raw(&daemon.socket()).await;
    let text = "FROM busybox\nRUN exit 7\n";
    let reference = build(&daemon, &buildkit, text, &[]).await;
    let told = record(&buildkit, &reference).await;
    let error = told.error.unwrap();
    assert!(error.details.is_empty() && error.message.contains("exit code: 7"), "{error:?}");
    let document = told.external_error.unwrap();
    assert_eq!(document.media_type, "application/vnd.googeapis.google.rpc.status+proto");
    let status = rpc::Status::decode(&content(&buildkit, &document).await.unwrap()[..]).unwrap();
    assert_eq!((status.code, status.message), (error.code, error.message));
    let detail = |name: &str| status.details.iter().any(|detail| detail.type_url.contains(name));
    assert!(detail("errdefs.Source") && detail("errdefs.Vertex"), "{:?}", status.details);

    let status = |wanted: &str| BuildHistoryRequest {
        filter: vec![format!("status=={wanted},ref~={reference}")],
        ..BuildHistoryRequest::default()
    };
    assert_eq!(recorded(&buildkit, status("error")).await.len(), 1);
    assert_eq!(recorded(&buildkit, status("completed")).await.len(), 0);
    let wrong = BuildHistoryRequest { filter: vec!["ref+x".to_owned()], ..Default::default() };
    assert_eq!(listen(&buildkit, wrong).await.unwrap_err().code(), Code::InvalidArgument);
    let wrong = BuildHistoryRequest { limit: -1, ..Default::default() };
    assert_eq!(listen(&buildkit, wrong).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn records_are_listed_pinned_removed_and_listened_to() {
    let daemon = Daemon::with_base_and(&["--debug"]);
    let buildkit = BuildKit::upgraded(&daemon.socket()).await;
    let mut events = listen(&buildkit, BuildHistoryRequest::default()).await.unwrap();
    let first = build(&daemon, &buildkit, "FROM busybox\nRUN echo 1\n", &[]).await;
    // It is written down while the next may begin already: who asks for it waits for that.
    record(&buildkit, &first).await;
    let second = build(&daemon, &buildkit, "FROM busybox\nRUN echo 2\n", &[]).await;
    let all = recorded(&buildkit, BuildHistoryRequest::default()).await;
    let names: Vec<&str> = all.iter().map(|record| record.r#ref.as_str()).collect();
    assert_eq!(names, [&second, &first], "the newest first");
    let newest = BuildHistoryRequest { limit: 1, ..Default::default() };
    assert_eq!(recorded(&buildkit, newest).await.len(), 1);
    let active = BuildHistoryRequest { active_only: true, ..Default::default() };
    assert_eq!(recorded(&buildkit, active).await, []);

    let pin = UpdateBuildHistoryRequest { r#ref: first.clone(), pinned: true, ..Default::default() };
    update(&buildkit, pin).await.unwrap();
    assert!(record(&buildkit, &first).await.pinned);
    use BuildHistoryEventType::{Complete, Deleted, Started};
    // Before it is removed: of what is not there any more nothing is told but that it went.
    for (kind, reference) in
        [(Started, &first), (Complete, &first), (Started, &second), (Complete, &second), (Complete, &first)]
    {
        let event = events.message().await.unwrap().unwrap();
        assert_eq!((event.r#type(), &event.record.unwrap().r#ref), (kind, reference));
    }
    let delete = |reference: &str| UpdateBuildHistoryRequest {
        r#ref: reference.to_owned(),
        delete: true,
        ..Default::default()
    };
    let log = record(&buildkit, &second).await.logs.unwrap();
    update(&buildkit, delete(&second)).await.unwrap();
    assert_eq!(content(&buildkit, &log).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(update(&buildkit, delete(&second)).await.unwrap_err().code(), Code::NotFound);
    // A beginning of a name is no name.
    assert_eq!(update(&buildkit, delete(&first[..5])).await.unwrap_err().code(), Code::NotFound);

    let event = events.message().await.unwrap().unwrap();
    assert_eq!((event.r#type(), event.record.unwrap().r#ref), (Deleted, second));
}

#[tokio::test]
async fn a_build_that_runs_when_the_daemon_is_told_to_stop_is_canceled_and_recorded_so() {
    let mut daemon = Daemon::with_base();
    let buildkit = BuildKit::raw(&daemon.socket()).await;
    let mut events = listen(&buildkit, BuildHistoryRequest::default()).await.unwrap();
    let text = "FROM busybox\nRUN echo begun; sleep 3600\n";
    let session = Client::with_context(Tree::of(&[("Dockerfile", text)])).open(&daemon.socket()).await;
    let request = dockerfile_build(&session);
    let reference = request.r#ref.clone();
    let solving = tokio::spawn({
        let buildkit = buildkit.clone();
        async move { buildkit.solve(request).await }
    });
    let started = events.message().await.unwrap().unwrap();
    assert_eq!(started.r#type(), BuildHistoryEventType::Started);
    let mut status =
        buildkit.control().status(StatusRequest { r#ref: reference.clone() }).await.unwrap().into_inner();
    while let Some(response) = status.message().await.unwrap() {
        if response.logs.iter().any(|log| log.msg.starts_with(b"begun")) {
            break;
        }
    }
    let ended = tokio::task::spawn_blocking(move || {
        let ended = daemon.process().stop();
        (daemon, ended)
    });
    // The client hears of it, and so does who listens, before its connection ends.
    assert_eq!(solving.await.unwrap().failure().code(), Code::Cancelled);
    let complete = events.message().await.unwrap().unwrap();
    assert_eq!(complete.r#type(), BuildHistoryEventType::Complete);
    assert!(events.message().await.unwrap().is_none());
    drop((buildkit, session, status));
    let (mut daemon, ended) = ended.await.unwrap();
    assert!(ended.success(), "{ended}");
    daemon.restart();
    let buildkit = BuildKit::raw(&daemon.socket()).await;
    let error = record(&buildkit, &reference).await.error.unwrap();
    assert_eq!((error.code, error.message.as_str()), (Code::Cancelled as i32, "context canceled"));
}
