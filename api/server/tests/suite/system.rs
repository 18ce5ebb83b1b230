//! The daemon's own doors, and what is said of things that are not here.

use std::time::Duration;

use http::Method;
use http_body_util::BodyExt;
use lapstrake_api_server::{RequestLimits, ServeLimits};
use lapstrake_api_types::{Actor, EventAction, EventType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::{Daemon, record};

#[tokio::test]
async fn ping_says_what_clients_negotiate_by() {
    let daemon = Daemon::start();
    for (method, path) in [
        (Method::GET, "/_ping"),
        (Method::HEAD, "/_ping"),
        (Method::GET, "/v1.24/_ping"),
        (Method::GET, "/v1.54/_ping"),
    ] {
        let reply = daemon.send(method.clone(), path, &[], "").await;
        assert_eq!(reply.status, 200, "{method} {path}");
        let header = |name: &str| reply.headers[name].to_str().unwrap().to_owned();
        assert_eq!(header("api-version"), "1.54");
        assert_eq!(header("ostype"), "linux");
        assert_eq!(header("builder-version"), "2");
        assert_eq!(header("docker-experimental"), "false");
        assert_eq!(header("server"), "Lapstrake/0.1.0 (linux)");
        assert_eq!(header("cache-control"), "no-cache, no-store, must-revalidate");
        assert_eq!(header("pragma"), "no-cache");
        assert_eq!(reply.text(), if method == Method::HEAD { "" } else { "OK" });
    }
}

#[tokio::test]
async fn versions_out_of_range_are_refused_in_mobys_words() {
    let daemon = Daemon::start();
    insta::assert_snapshot!(daemon.get("/v1.99/version").await.golden(), @r#"400 {"message":"client version 1.99 is too new. Maximum supported API version is 1.54"}"#);
    let old = daemon.get("/v1.12/version").await;
    insta::assert_snapshot!(old.golden(), @"400 client version 1.12 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version");
    assert_eq!(old.headers["content-type"], "text/plain; charset=utf-8");
    assert_eq!(old.headers["api-version"], "1.54");
}

#[tokio::test]
async fn version_names_the_engine_and_its_api() {
    let daemon = Daemon::start();
    let version = daemon.get("/version").await.json();
    assert_eq!(version["Version"], "0.1.0");
    assert_eq!(version["ApiVersion"], "1.54");
    assert_eq!(version["MinAPIVersion"], "1.24");
    assert_eq!(version["Os"], "linux");
    assert_eq!(version["Components"][0]["Name"], "Engine");
    assert!(!version["KernelVersion"].as_str().unwrap().is_empty());
}

#[tokio::test]
async fn info_counts_images_and_describes_the_machine() {
    let daemon = Daemon::start();
    daemon.image(&["one"], &["a:1"]);
    for path in ["/v1.24/info", "/v1.41/info", "/info"] {
        let info = daemon.get(path).await.json();
        assert_eq!((info["Images"].as_u64(), info["Containers"].as_u64()), (Some(1), Some(0)));
        assert_eq!(info["Driver"], "vfs");
        assert!(info["NCPU"].as_u64().unwrap() > 0 && info["MemTotal"].as_u64().unwrap() > 0);
        assert_eq!(info["Swarm"]["LocalNodeState"], "inactive");
        assert_eq!(info["Runtimes"]["native"]["path"], "lapstrake");
    }
}

#[tokio::test]
async fn what_is_not_here_says_so() {
    let daemon = Daemon::start();
    let get = |path: &'static str| daemon.get(path);
    assert_eq!(get("/containers/json").await.text(), "[]\n");
    assert_eq!(get("/networks").await.text(), "[]\n");
    assert_eq!(get("/plugins").await.text(), "[]\n");
    assert_eq!(get("/volumes").await.text(), "{\"Volumes\":[],\"Warnings\":null}\n");
    insta::assert_snapshot!(get("/containers/x/json").await.golden(), @r#"404 {"message":"No such container: x"}"#);
    insta::assert_snapshot!(get("/networks/x").await.golden(), @r#"404 {"message":"network x not found"}"#);
    insta::assert_snapshot!(get("/volumes/x").await.golden(), @r#"404 {"message":"get x: no such volume"}"#);
    insta::assert_snapshot!(get("/nothing").await.golden(), @r#"404 {"message":"page not found"}"#);
    insta::assert_snapshot!(get("/v1.41/").await.golden(), @r#"404 {"message":"page not found"}"#);
    insta::assert_snapshot!(get("/images/search?term=x").await.golden(), @r#"501 {"message":"searching Docker Hub: not supported: use https://hub.docker.com/search"}"#);
    insta::assert_snapshot!(daemon.post("/containers/create").await.golden(), @r#"501 {"message":"running containers: not supported: Lapstrake builds and moves images, and runs no containers"}"#);
    insta::assert_snapshot!(daemon.post("/containers/x/start").await.golden(), @r#"404 {"message":"No such container: x"}"#);
    insta::assert_snapshot!(daemon.post("/containers/prune").await.golden(), @r#"200 {"ContainersDeleted":null,"SpaceReclaimed":0}"#);
    insta::assert_snapshot!(daemon.post("/networks/prune").await.golden(), @r#"200 {"NetworksDeleted":null}"#);
    insta::assert_snapshot!(daemon.post("/volumes/prune").await.golden(), @r#"200 {"VolumesDeleted":null,"SpaceReclaimed":0}"#);
    insta::assert_snapshot!(daemon.get("/containers/json?filters=x").await.golden(), @r#"400 {"message":"invalid filter"}"#);
    insta::assert_snapshot!(daemon.get("/images/json?filters=%zz").await.golden(), @r#"400 {"message":"invalid URL escape \"%zz\""}"#);
    assert_eq!(daemon.send(Method::OPTIONS, "/anything", &[], "").await.status, 200);
}

#[tokio::test]
async fn credentials_are_tried_and_never_shown() {
    let daemon = Daemon::start();
    let auth = |body: &'static str| daemon.send(Method::POST, "/auth", &[], body);
    insta::assert_snapshot!(auth(r#"{"username":"u","password":"right"}"#).await.golden(), @r#"200 {"IdentityToken":"","Status":"Login Succeeded"}"#);
    insta::assert_snapshot!(auth(r#"{"username":"u","password":"wrong"}"#).await.golden(), @r#"401 {"message":"Get \"https://registry/v2/\": unauthorized: incorrect username or password"}"#);
    let garbled = auth(r#"{"password":"secret","#).await;
    assert_eq!(garbled.status, 400);
    assert!(!garbled.text().contains("secret"));
}

#[tokio::test]
async fn events_of_the_past_are_filtered_and_end_the_stream() {
    let daemon = Daemon::start();
    daemon.image(&["one"], &["a:1"]);
    assert_eq!(daemon.post("/images/a:1/tag?repo=b&tag=2").await.status, 201);
    let past = "since=1&until=4000000000.5";
    // `until` is in the future: read one line and leave.
    let answer = daemon.open(Method::GET, &format!("/v1.41/events?{past}"), &[], "").await;
    assert_eq!(answer.headers()["content-type"], "application/json");
    let frame = answer.into_body().frame().await.unwrap().unwrap().into_data().unwrap();
    let event: serde_json::Value = serde_json::from_slice(&frame).unwrap();
    assert_eq!((event["Action"].as_str(), event["status"].as_str()), (Some("tag"), Some("tag")));
    assert_eq!(event["Actor"]["Attributes"]["name"], "b:2");
    assert_eq!(event["Actor"]["Attributes"]["kind"], "test");

    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let ended = format!("since=1&until={now}");
    let filtered = daemon.get(&format!("/events?{ended}&filters={{\"event\":[\"pull\"]}}")).await;
    assert_eq!(filtered.text(), "");
    assert_eq!(filtered.headers["content-type"], "application/jsonl");
    let sequence = daemon
        .send(Method::GET, &format!("/events?{ended}"), &[("accept", "application/json-seq")], "")
        .await;
    assert!(sequence.text().starts_with('\u{1e}'));
    insta::assert_snapshot!(daemon.get("/events?since=5&until=3").await.golden(), @"400 {\"message\":\"`since` time (5) cannot be after `until` time (3)\"}");
    insta::assert_snapshot!(daemon.get("/events?since=x").await.golden(), @r#"400 {"message":"invalid value for 'since': invalid timestamp \"x\": invalid seconds \"x\": invalid syntax"}"#);
}

#[tokio::test]
async fn events_of_the_present_come_as_they_happen() {
    let daemon = Daemon::start();
    let answer = daemon.open(Method::GET, "/events", &[], "").await;
    let mut body = answer.into_body();
    daemon.state.events().tell(EventType::Image, EventAction::Pull, Actor::default());
    let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(std::str::from_utf8(&frame).unwrap().contains(r#""Action":"pull""#));
    assert_eq!(daemon.state.events().followers(), 1);
}

#[tokio::test]
async fn disk_usage_has_each_versions_layout() {
    let daemon = Daemon::start();
    let id = daemon.image(&["one", "two2"], &["a:1"]);
    daemon.image(&["one", "three"], &["b:1"]);
    daemon.cache.records.lock().unwrap().push(record("r1", "regular", 7));
    let usage = daemon.get("/v1.25/system/df").await.golden();
    let (_, rest) = usage.split_once("\"LayersSize\":").unwrap();
    // What layers take depends on the file system.
    let on_disk = format!(":{}", rest.split_once(',').unwrap().0);
    let golden = |text: String| text.replace(id.as_str(), "<id>").replace(&on_disk, ":<on disk>");
    for (path, name) in [
        ("/v1.25/system/df", "df-1.25"),
        ("/v1.41/system/df", "df-1.41"),
        ("/v1.42/system/df?type=build-cache", "df-1.42-build-cache"),
        ("/v1.52/system/df?verbose=1", "df-1.52-verbose"),
        ("/v1.52/system/df", "df-1.52"),
    ] {
        insta::assert_snapshot!(name, golden(daemon.get(path).await.golden()));
    }
    insta::assert_snapshot!(daemon.get("/system/df?type=x").await.golden(), @r#"400 {"message":"unknown object type: x"}"#);
    assert_eq!(daemon.get("/v1.24/system/df").await.status, 404);
}

#[tokio::test]
async fn build_cache_is_pruned_by_filters() {
    let daemon = Daemon::start();
    daemon
        .cache
        .records
        .lock()
        .unwrap()
        .extend([record("r1", "regular", 7), record("r2", "source.local", 5)]);
    let reply = daemon.post("/v1.41/build/prune?filters={\"type\":[\"regular\"]}").await;
    insta::assert_snapshot!(reply.golden(), @r#"200 {"CachesDeleted":["r1"],"SpaceReclaimed":7}"#);
    let reply = daemon.post("/build/prune?all=1").await;
    insta::assert_snapshot!(reply.golden(), @r#"200 {"CachesDeleted":["r2"],"SpaceReclaimed":5}"#);
    insta::assert_snapshot!(daemon.post("/build/prune").await.golden(), @r#"200 {"CachesDeleted":null,"SpaceReclaimed":0}"#);
}

#[tokio::test]
async fn nonsense_on_the_wire_ends_its_connection_and_nothing_else() {
    let daemon = Daemon::start();
    for nonsense in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"[..],
        b"GET\r\n\r\n",
        b"GET /_ping HTTP/1.1\r\nA\0: b\r\n\r\n",
    ] {
        let mut stream = daemon.connect().await;
        stream.write_all(nonsense).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!String::from_utf8_lossy(&answer).contains("200 OK"));
    }
    let mut stream = daemon.connect().await;
    let many = "X: 1\r\n".repeat(500);
    stream.write_all(format!("GET /_ping HTTP/1.1\r\nHost: x\r\n{many}\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(String::from_utf8_lossy(&answer).contains(" 431 "));
    assert_eq!(daemon.get("/_ping").await.status, 200);
}

#[tokio::test]
async fn stopping_lets_running_requests_end_and_takes_no_new_ones() {
    let daemon = Daemon::start();
    let answer = daemon.open(Method::GET, "/events", &[], "").await;
    daemon.stop.cancel();
    drop(answer);
    daemon.serving.await.unwrap();
    assert!(tokio::net::UnixStream::connect(daemon.dir.path().join("sock")).await.is_err());
}

#[tokio::test]
async fn silence_and_half_a_request_are_not_waited_for_for_ever() {
    let limits = ServeLimits { header_time: Duration::from_millis(50), ..ServeLimits::default() };
    let daemon = Daemon::start_with(RequestLimits::default(), limits);
    for beginning in ["", "G", "P", "PRI * HTTP/2.0\r\n", "GET /_ping HTTP/1.1\r\nHost:"] {
        let mut stream = daemon.connect().await;
        stream.write_all(beginning.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // Ends when the daemon has closed the connection.
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!String::from_utf8_lossy(&answer).contains("200 OK"), "{beginning:?}");
    }
}

#[tokio::test]
async fn an_http2_client_that_answers_no_ping_is_left() {
    let moment = Duration::from_millis(50);
    let limits = ServeLimits { ping_interval: moment, ping_time: moment, ..ServeLimits::default() };
    let daemon = Daemon::start_with(RequestLimits::default(), limits);
    let mut stream = daemon.connect().await;
    // The preface and empty settings; and nothing more, as of a machine that was unplugged.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let (mut rest, mut kinds) = (answer.as_slice(), Vec::new());
    while let [a, b, c, kind, ..] = *rest {
        kinds.push(kind);
        rest = rest.get(9 + u32::from_be_bytes([0, a, b, c]) as usize..).unwrap_or_default();
    }
    let ping = 6;
    assert!(kinds.contains(&ping), "{kinds:?}");
}

#[tokio::test]
async fn http2_is_understood_and_grpc_is_told_from_the_rest() {
    let daemon = Daemon::start();
    let io = hyper_util::rt::TokioIo::new(daemon.connect().await);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    let mut send = async |request: http::request::Builder| {
        sender.send_request(request.body(String::new()).unwrap()).await.unwrap()
    };
    let answer = send(http::Request::get("http://docker/_ping")).await;
    assert_eq!(answer.status(), 200);
    let call = |service: &str| {
        let uri = format!("http://docker/{service}/Method");
        http::Request::post(uri).header("content-type", "application/grpc")
    };
    let status = |answer: http::Response<hyper::body::Incoming>| {
        answer.headers()["grpc-status"].to_str().unwrap().to_owned()
    };
    assert_eq!(status(send(call("no.such.Service")).await), "12");
    // This one has no engine.
    assert_eq!(status(send(call("moby.buildkit.v1.frontend.LLBBridge")).await), "14");
}
