//! `/build`: parameters, contexts, streams, cancelling.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use http::Method;
use http_body_util::BodyExt;
use lapstrake_api_server::{
    ApiError, ApiErrorKind, BuildContext, BuildOrder, Built, RequestLimits, ServeLimits,
};
use lapstrake_builder_progress::{
    Event, Progress, Stream, VertexHandle, VertexState,
    classic::{ClassicKind, ClassicScript, ClassicStep},
};
use lapstrake_layerstore_oci::{Digest, ImageId};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::common::{Daemon, url_context};

fn vertex(progress: &Progress, name: &str) -> VertexHandle {
    let state = VertexState::pending(Digest::sha256_of(name), name, vec![]);
    VertexHandle::announce(Arc::new(progress.clone()), state)
}

fn step(text: &str, kind: ClassicKind, vertex: Option<&str>) -> ClassicStep {
    ClassicStep {
        text: text.to_owned(),
        kind,
        vertex: vertex.map(Digest::sha256_of),
        state: Digest::sha256_of(text),
        trigger: false,
        known: false,
    }
}

fn steps() -> ClassicScript {
    ClassicScript { steps: step_list(), ..ClassicScript::default() }
}

fn step_list() -> Vec<ClassicStep> {
    let base = ImageId(Digest::sha256_of("busybox"));
    vec![
        step(
            "FROM busybox",
            ClassicKind::From { image: Some(base), scratch: false, triggers: 0 },
            Some("from"),
        ),
        step("ENV A=1", ClassicKind::Other, None),
        step("RUN echo hi", ClassicKind::Run, Some("run")),
        step("COPY a b", ClassicKind::Files, Some("copy")),
    ]
}

/// A build of four steps, the last of them out of order and cached.
async fn builds_well(order: BuildOrder, progress: Progress, _: CancellationToken) -> Result<Built, ApiError> {
    if let Some(sender) = order.steps {
        sender.send(steps()).unwrap();
    }
    let (from, run, copy) = (vertex(&progress, "from"), vertex(&progress, "run"), vertex(&progress, "copy"));
    copy.cached();
    from.start();
    from.complete();
    run.start();
    run.log(Stream::Stdout, b"hi\n".to_vec());
    run.log(Stream::Stderr, b"uh\n".to_vec());
    run.complete();
    let digest = Digest::sha256_of("image");
    Ok(Built { image: Some(ImageId(digest.clone())), digest: Some(digest), names: order.query.tags })
}

async fn fails(order: BuildOrder, progress: Progress, _: CancellationToken) -> Result<Built, ApiError> {
    if let Some(sender) = order.steps {
        sender.send(steps()).unwrap();
    }
    vertex(&progress, "from").complete();
    let run = vertex(&progress, "run");
    run.start();
    run.log(Stream::Stdout, b"trying".to_vec());
    run.fail("exit code: 1");
    let message = "The command '/bin/sh -c echo hi' returned a non-zero code: 1";
    Err(ApiError { exit_code: 1, ..ApiError::new(ApiErrorKind::Internal, message) })
}

#[tokio::test]
async fn the_classic_transcript_is_mobys() {
    let daemon = Daemon::start();
    daemon.builds.on_build(builds_well);
    let reply = daemon.send(Method::POST, "/v1.41/build?t=app&t=b:2", &[], "tar bytes").await;
    assert_eq!(reply.headers["content-type"], "application/json");
    insta::assert_snapshot!("classic", reply.golden());
    assert_eq!(*daemon.builds.contexts.lock().unwrap(), [9]);
    let old = daemon.send(Method::POST, "/v1.29/build", &[], "tar").await;
    assert!(!old.text().contains("aux"));
}

#[tokio::test]
async fn errors_after_the_first_byte_end_the_stream_and_earlier_ones_have_a_status() {
    let daemon = Daemon::start();
    daemon.builds.on_build(fails);
    insta::assert_snapshot!("classic-failed", daemon.send(Method::POST, "/build", &[], "tar").await.golden());
    daemon.builds.on_build(async |_, _, _| {
        Err(ApiError::invalid("dockerfile parse error on line 1: unknown instruction: FORM"))
    });
    insta::assert_snapshot!(daemon.send(Method::POST, "/build", &[], "tar").await.golden(), @r#"400 {"message":"dockerfile parse error on line 1: unknown instruction: FORM"}"#);
    insta::assert_snapshot!(daemon.post("/build?squash=1").await.golden(), @r#"400 {"message":"squash is only supported with experimental mode"}"#);
    insta::assert_snapshot!(daemon.post("/build?buildargs=x").await.golden(), @r#"400 {"message":"error reading build args: expected value at line 1 column 1"}"#);
}

#[tokio::test]
async fn quiet_prints_the_id_or_what_went_wrong() {
    let daemon = Daemon::start();
    daemon.builds.on_build(builds_well);
    insta::assert_snapshot!(daemon.post("/build?q=True").await.golden(), @r#"200 {"stream":"sha256:6105d6cc76af400325e94d588ce511be5bfdbb73b437dc51eca43917d7a43e3d\n"}⏎"#);
    daemon.builds.on_build(fails);
    let quiet = daemon.post("/build?q=1").await.text();
    assert_eq!(quiet, daemon.post("/build").await.text());
}

#[tokio::test]
async fn the_trace_is_what_buildkits_clients_decode() {
    let daemon = Daemon::start();
    daemon.builds.on_build(builds_well);
    let reply = daemon.post("/build?version=2&progress=trace&t=app").await;
    let lines: Vec<serde_json::Value> =
        reply.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (last, traces) = lines.split_last().unwrap();
    insta::assert_snapshot!(last, @r#"{"id":"moby.image.id","aux":{"ID":"sha256:6105d6cc76af400325e94d588ce511be5bfdbb73b437dc51eca43917d7a43e3d"}}"#);
    let mut logs = String::new();
    for trace in traces {
        assert_eq!(trace["id"], "moby.buildkit.trace");
        use base64::Engine as _;
        let bytes = base64::engine::general_purpose::STANDARD.decode(trace["aux"].as_str().unwrap()).unwrap();
        let response =
            <lapstrake_builder_progress::StatusResponse as prost::Message>::decode(&bytes[..]).unwrap();
        for event in lapstrake_builder_progress::from_response(response) {
            if let Event::Log(log) = event {
                logs.push_str(std::str::from_utf8(&log.data).unwrap());
            }
        }
    }
    assert_eq!(logs, "hi\nuh\n");
    let readable = daemon.post("/build?version=2&t=app").await;
    assert!(readable.text().contains("Step 1/4 : FROM busybox"));
}

#[tokio::test]
async fn orders_carry_what_was_asked() {
    let daemon = Daemon::start();
    daemon.builds.on_build(async |order: BuildOrder, _, _| {
        assert_eq!(url_context(&order.context), Some("https://x/y.git#main"));
        assert_eq!(order.id, "b1");
        assert_eq!(order.auth[0].0, "r:5000");
        assert_eq!(order.auth[0].1.username, "u");
        assert_eq!(order.query.target.as_deref(), Some("final"));
        Ok(Built::default())
    });
    let config = "eyJyOjUwMDAiOnsidXNlcm5hbWUiOiJ1IiwicGFzc3dvcmQiOiJwIn19";
    let reply = daemon
        .send(
            Method::POST,
            "/build?remote=https://x/y.git%23main&buildid=b1&target=final",
            &[("x-registry-config", config)],
            "",
        )
        .await;
    assert_eq!((reply.status.as_u16(), reply.text().as_str()), (200, ""));
}

#[tokio::test]
async fn uploads_reach_the_build_that_waits() {
    let daemon = Daemon::start();
    daemon.builds.on_build(builds_well);
    let (build, upload) = tokio::join!(
        daemon.post("/build?version=2&remote=upload-request&buildid=abc"),
        daemon.send(Method::POST, "/build?version=2&buildid=upload-request:abc", &[], "context"),
    );
    assert!(build.text().contains("Successfully built"), "{}", build.text());
    assert_eq!((upload.status.as_u16(), upload.text().as_str()), (200, ""));
    assert_eq!(*daemon.builds.contexts.lock().unwrap(), [7]);
}

/// A build that says one line and then waits to be cancelled.
fn waits(daemon: &Daemon, speaks: bool) -> oneshot::Receiver<()> {
    let (sender, cancelled) = oneshot::channel();
    let sender = std::sync::Mutex::new(Some(sender));
    daemon.builds.on_build(move |order, progress, cancel| {
        let sender = sender.lock().unwrap().take().unwrap();
        async move {
            if speaks {
                order.steps.unwrap().send(steps()).unwrap();
                vertex(&progress, "from").complete();
            }
            cancel.cancelled().await;
            sender.send(()).unwrap();
            Err(ApiError::new(ApiErrorKind::Internal, "context canceled"))
        }
    });
    cancelled
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_build() {
    let daemon = Daemon::start();
    let cancelled = waits(&daemon, true);
    let answer = daemon.open(Method::POST, "/build", &[], "tar").await;
    drop(answer);
    cancelled.await.unwrap();

    // Before the first byte too: the connection is closed while the answer is awaited.
    let cancelled = waits(&daemon, false);
    let io = hyper_util::rt::TokioIo::new(daemon.connect().await);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = http::Request::post("/build").header("host", "x").body(String::from("tar")).unwrap();
    let answer = tokio::spawn(async move { sender.send_request(request).await });
    while daemon.builds.contexts.lock().unwrap().len() < 2 {
        tokio::task::yield_now().await;
    }
    connection.abort();
    answer.abort();
    cancelled.await.unwrap();
}

#[tokio::test]
async fn builds_are_cancelled_by_id() {
    let daemon = Daemon::start();
    let cancelled = waits(&daemon, true);
    let answer = daemon.open(Method::POST, "/build?buildid=abc", &[], "tar").await;
    let again = daemon.post("/build?buildid=abc").await;
    assert_eq!(again.status, 409, "{}", again.text());
    assert_eq!(daemon.post("/build/cancel?id=abc").await.status, 200);
    cancelled.await.unwrap();
    let text = String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
    assert!(text.ends_with(
        "{\"errorDetail\":{\"message\":\"context canceled\"},\"error\":\"context canceled\"}\r\n"
    ));
    assert_eq!(daemon.post("/build/cancel?id=nope").await.status, 200);
    insta::assert_snapshot!(daemon.post("/build/cancel").await.golden(), @r#"400 {"message":"build ID not provided"}"#);
}

#[tokio::test]
async fn an_endless_body_is_cut_off() {
    let limits = RequestLimits { upload_bytes: 1000, ..RequestLimits::default() };
    let daemon = Daemon::start_with(limits, ServeLimits::default());
    daemon.builds.on_build(builds_well);
    let io = hyper_util::rt::TokioIo::new(daemon.connect().await);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let endless = futures::stream::repeat(Bytes::from_static(&[0; 100]))
        .map(|chunk| Ok::<_, std::convert::Infallible>(http_body::Frame::data(chunk)));
    let body = http_body_util::StreamBody::new(endless);
    let request = http::Request::post("/build").header("host", "x").body(body).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 400);
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("request body is larger than 1000 bytes"));
}

#[tokio::test]
async fn a_slow_reader_does_not_hold_the_build_up() {
    let daemon = Daemon::start();
    let (done, finished) = oneshot::channel();
    let done = std::sync::Mutex::new(Some(done));
    daemon.builds.on_build(move |order, progress, _| {
        let done = done.lock().unwrap().take().unwrap();
        async move {
            order.steps.unwrap().send(steps()).unwrap();
            let run = vertex(&progress, "from");
            run.start();
            for _ in 0..200 {
                run.log(Stream::Stdout, vec![b'x'; 64 * 1024]);
            }
            run.complete();
            done.send(()).unwrap();
            Ok(Built::default())
        }
    });
    let answer = daemon.open(Method::POST, "/build", &[], "tar").await;
    finished.await.unwrap();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(body.len() > 200 * 64 * 1024);
}

#[tokio::test]
async fn sessions_are_opened_by_an_upgrade() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let daemon = Daemon::start();
    insta::assert_snapshot!(daemon.post("/session").await.golden(), @r#"400 {"message":"no upgrade proto in request: a session needs Upgrade: h2c"}"#);
    let headers = [("connection", "Upgrade"), ("upgrade", "h2c")];
    let reply = daemon.send(Method::POST, "/session", &headers, "").await;
    assert_eq!(reply.status, 400, "{}", reply.text());

    let mut stream = daemon.connect().await;
    let request = "POST /session HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nX-Docker-Expose-Session-Uuid: s1\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    // The daemon is the client of the HTTP/2 that follows: its preface comes after the answer.
    let mut seen = Vec::new();
    while !seen.windows(24).any(|window| window == b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") {
        let mut chunk = [0; 512];
        let count = stream.read(&mut chunk).await.unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&chunk[..count]);
    }
    let answer = String::from_utf8_lossy(&seen).to_lowercase();
    assert!(answer.starts_with("http/1.1 101 "), "{answer}");
    assert!(answer.contains("connection: upgrade\r\n") && answer.contains("upgrade: h2c\r\n"));
    let headers = [("connection", "Upgrade"), ("upgrade", "h2c"), ("x-docker-expose-session-uuid", "s1")];
    let again = daemon.send(Method::POST, "/session", &headers, "").await;
    insta::assert_snapshot!(again.golden(), @r#"409 {"message":"session s1 already exists"}"#);
}

#[tokio::test]
async fn a_session_is_where_the_files_are() {
    let daemon = Daemon::start();
    daemon.builds.on_build(async |order: BuildOrder, progress: Progress, _| {
        assert!(matches!(order.context, BuildContext::Session));
        assert_eq!(order.session.unwrap().as_str(), "s1");
        assert!(order.steps.is_none());
        vertex(&progress, "x").complete();
        Ok(Built::default())
    });
    let reply = daemon.post("/build?version=2&remote=client-session&session=s1").await;
    assert!(reply.text().starts_with(r#"{"id":"moby.buildkit.trace","aux":""#), "{}", reply.text());
}
