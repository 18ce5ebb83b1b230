//! What no decent client of gRPC does: errors, never a panic, and everybody else is served meanwhile and after.

#[allow(unreachable_pub)]
use std::collections::HashMap;

use bytes::Bytes;
use lapstrake_api_proto::{
    control::{BytesMessage, CacheOptions, CacheOptionsEntry, InfoRequest, SolveRequest},
    gateway, llb as pb,
};
use lapstrake_integration_cli::{
    Daemon,
    buildkit::{BuildKit, Client, Llb, Tree, attrs, digest, dockerfile_build, exporter, unique},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};
use tonic::{Code, Status};

use crate::common::{self, eventually};

/// Another client is served, and nothing has panicked.
async fn is_well(daemon: &Daemon) {
    let buildkit = BuildKit::raw(&daemon.socket()).await;
    buildkit.control().info(InfoRequest {}).await.unwrap();
    let log = daemon.log();
    assert!(!log.contains("panicked"), "{log}");
}

async fn refused(buildkit: &BuildKit, request: SolveRequest) -> Status {
    buildkit.solve(request).await.failure()
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_before_it_is_read() {
    let daemon = Daemon::start();
    let buildkit = BuildKit::raw(&daemon.socket()).await;
    let before = daemon.resident();
    let attrs = HashMap::from([("build-arg:X".to_owned(), "x".repeat(64 << 20))]);
    let request =
        SolveRequest { frontend: "dockerfile.v0".to_owned(), frontend_attrs: attrs, ..Default::default() };
    let status = buildkit.control().solve(request).await.unwrap_err();
    assert!([Code::OutOfRange, Code::ResourceExhausted].contains(&status.code()), "{status:?}");

    // One that says that it has 4 GiB: nobody waits for them, and nobody makes room for them.
    let mut sender = h2_client(&daemon).await;
    let (answer, mut stream) = sender.send_request(call("Info"), false).unwrap();
    stream.send_data(Bytes::from_static(b"\0\xff\xff\xff\xff"), false).unwrap();
    let answer = answer.await.unwrap();
    let status = answer.headers().get("grpc-status").map(|status| status.to_str().unwrap().to_owned());
    assert_eq!(status.as_deref(), Some("11"), "{answer:?}");
    assert!(daemon.resident() < before + (60 << 20), "{} of {before}", daemon.resident());
    is_well(&daemon).await;
}

async fn h2_client(daemon: &Daemon) -> h2::client::SendRequest<Bytes> {
    let io = UnixStream::connect(daemon.socket()).await.unwrap();
    let (sender, connection) = h2::client::handshake(io).await.unwrap();
    tokio::spawn(async move {
        // Its end is seen by whoever sends.
        let _ = connection.await;
    });
    sender
}

fn call(method: &str) -> http::Request<()> {
    http::Request::post(format!("http://localhost/moby.buildkit.v1.Control/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_opens_streams_and_resets_them_at_once_is_sent_away() {
    let daemon = Daemon::start();
    let mut sender = h2_client(&daemon).await;
    let mut failed = None;
    for _ in 0..200_000 {
        sender = match sender.ready().await {
            Ok(sender) => sender,
            Err(error) => {
                failed = Some(error);
                break;
            }
        };
        match sender.send_request(call("ListWorkers"), false) {
            Ok((_, mut stream)) => stream.send_reset(h2::Reason::CANCEL),
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    let failed = failed.expect("it ends");
    assert!(failed.is_go_away() || failed.is_io(), "{failed:?}");
    is_well(&daemon).await;
}

#[tokio::test]
async fn a_connection_that_begins_like_http2_and_goes_on_otherwise_is_closed() {
    let daemon = Daemon::start();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let huge_frame = [&preface[..], &[0xff, 0xff, 0xff, 1, 4, 0, 0, 0, 1], &[0x41; 4096]].concat();
    let no_hpack =
        [&preface[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0], &[0, 0, 4, 1, 4, 0, 0, 0, 1, 0x41, 0xff, 0xff, 0xff]]
            .concat();
    for begun in [
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_vec(),
        [&preface[..], b"GET / HTTP/1.1\r\n\r\n"].concat(),
        [&preface[..], &[0xff; 64 << 10]].concat(),
        huge_frame,
        no_hpack,
    ] {
        let mut io = UnixStream::connect(daemon.socket()).await.unwrap();
        // It may be closed before all is sent.
        let _ = io.write_all(&begun).await;
        let mut answer = Vec::new();
        let _ = io.read_to_end(&mut answer).await;
    }
    is_well(&daemon).await;
}

#[tokio::test]
async fn a_session_cannot_have_anothers_id() {
    let daemon = Daemon::start();
    let buildkit = BuildKit::raw(&daemon.socket()).await;
    let secret =
        Client::with_context(Tree::of(&[("Dockerfile", "FROM scratch\nCOPY own /\n"), ("own", "own\n")]));
    let session = buildkit.open(secret).await;
    let mut request = tonic::Request::new(tokio_stream::pending::<BytesMessage>());
    for (name, value) in session.headers() {
        let name: tonic::metadata::AsciiMetadataKey = name.parse().unwrap();
        request.metadata_mut().append(name, value.parse().unwrap());
    }
    // The first is there once it is used.
    buildkit.solve(dockerfile_build(&session)).await.success();
    let status = buildkit.control().session(request).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists, "{status:?}");
    let headers: Vec<(&str, &str)> = session
        .headers()
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .chain([("Connection", "Upgrade"), ("Upgrade", "h2c")])
        .collect();
    let answer = common::send(&daemon, "POST", "/session", &headers, Vec::new()).await;
    assert_eq!(answer.status, 409, "{answer:?}");

    // And one without an id is none.
    let status = buildkit.control().session(tokio_stream::pending::<BytesMessage>()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    buildkit.solve(dockerfile_build(&session)).await.success();
    is_well(&daemon).await;
}

#[tokio::test]
async fn a_session_of_noise_ends() {
    let daemon = Daemon::start();
    let buildkit = BuildKit::raw(&daemon.socket()).await;
    let before = daemon.resident();
    let noise = tokio_stream::iter(std::iter::repeat_with(|| BytesMessage { data: vec![0x5a; 64 << 10] }));
    let mut request = tonic::Request::new(noise);
    request.metadata_mut().insert("x-docker-expose-session-uuid", unique("noise").parse().unwrap());
    let answers = buildkit.control().session(request).await;
    if let Ok(answers) = answers {
        let mut answers = answers.into_inner();
        while let Ok(Some(_)) = answers.message().await {}
    }
    assert!(daemon.resident() < before + (60 << 20), "{} of {before}", daemon.resident());
    is_well(&daemon).await;
}

fn graph(ops: Vec<Vec<u8>>) -> SolveRequest {
    let definition = pb::Definition { def: ops, ..pb::Definition::default() };
    SolveRequest { definition: Some(definition), ..SolveRequest::default() }
}

fn last(digest: &str, index: i64) -> Vec<u8> {
    use prost::Message as _;
    let inputs = vec![pb::Input { digest: digest.to_owned(), index }];
    pb::Op { inputs, ..pb::Op::default() }.encode_to_vec()
}

#[tokio::test]
async fn graphs_that_are_none_are_refused() {
    use prost::Message as _;
    let daemon = Daemon::start();
    let buildkit = BuildKit::raw(&daemon.socket()).await;
    let mut llb = Llb::default();
    let file = llb.file(None, "/x", b"x");
    let sound = llb.result(&file);
    let file_op = sound.def[0].clone();
    // Two ops, each of which names the other as its input: one of the names must be a lie.
    let one = pb::Op {
        inputs: vec![pb::Input { digest: digest(b"the other"), index: 0 }],
        op: Some(pb::op::Op::Merge(pb::MergeOp { inputs: vec![pb::MergeInput { input: 0 }; 2] })),
        ..pb::Op::default()
    }
    .encode_to_vec();
    let other = last(&digest(&one), 0);
    // Field 99, in which nobody knows what is.
    let unknown = [0x9a, 0x06, 0x02, 0x08, 0x01].to_vec();
    let bad_action = pb::Op {
        op: Some(pb::op::Op::File(pb::FileOp {
            actions: vec![pb::FileAction { input: 5, secondary_input: -7, output: 9, action: None }],
        })),
        ..pb::Op::default()
    }
    .encode_to_vec();
    let bare_exec =
        pb::Op { op: Some(pb::op::Op::Exec(pb::ExecOp::default())), ..pb::Op::default() }.encode_to_vec();
    let mounts = pb::ExecOp {
        meta: Some(pb::Meta { args: vec!["x".to_owned()], cwd: "/".to_owned(), ..pb::Meta::default() }),
        mounts: vec![pb::Mount { input: 77, dest: "/".to_owned(), output: -9, ..pb::Mount::default() }],
        ..pb::ExecOp::default()
    };
    let mounts = pb::Op { op: Some(pb::op::Op::Exec(mounts)), ..pb::Op::default() }.encode_to_vec();
    for (what, ops) in [
        ("an empty op", vec![Vec::new()]),
        ("noise", vec![vec![0xff; 100]]),
        ("no inputs", vec![pb::Op::default().encode_to_vec()]),
        ("an input that is not there", vec![last(&digest(b"nothing"), 0)]),
        ("a digest that is none", vec![file_op.clone(), last("sha256:1234", 0)]),
        ("an output that is not there", vec![file_op.clone(), last(&digest(&file_op), 99)]),
        ("an output below nought", vec![file_op.clone(), last(&digest(&file_op), -1)]),
        ("a circle", vec![one, other]),
        ("an op of tomorrow", vec![unknown.clone(), last(&digest(&unknown), 0)]),
        ("a file action that is none", vec![bad_action.clone(), last(&digest(&bad_action), 0)]),
        ("a process without anything", vec![bare_exec.clone(), last(&digest(&bare_exec), 0)]),
        ("mounts of nothing", vec![mounts.clone(), last(&digest(&mounts), 0)]),
    ] {
        let status = refused(&buildkit, graph(ops)).await;
        assert!(status.code() != Code::Ok && !status.message().is_empty(), "{what}: {status:?}");
        assert!(!status.message().contains("panic"), "{what}: {status:?}");
    }
    // What is said of ops that are not there, by digests that are none.
    let mut lying = sound.clone();
    lying.metadata.insert("sha256:none".to_owned(), pb::OpMetadata::default());
    refused(&buildkit, SolveRequest { definition: Some(lying), ..SolveRequest::default() }).await;
    buildkit.solve(SolveRequest { definition: Some(sound), ..SolveRequest::default() }).await.success();
    is_well(&daemon).await;
}

#[tokio::test]
async fn requests_with_nothing_where_something_must_be_are_refused() {
    let daemon = Daemon::start();
    let buildkit = BuildKit::raw(&daemon.socket()).await;
    let session = buildkit.open(Client::with_context(Tree::of(&[("Dockerfile", "FROM scratch\n")]))).await;
    let build = || dockerfile_build(&session);
    let empty = || HashMap::from([(String::new(), String::new())]);
    let cache =
        |entry: CacheOptionsEntry| Some(CacheOptions { exports: vec![entry], ..CacheOptions::default() });
    let image = |key: &str, value: &str| SolveRequest {
        exporters: vec![exporter("image", &[(key, value)])],
        ..build()
    };
    let option = |key: &str, value: &str| SolveRequest { frontend_attrs: attrs(&[(key, value)]), ..build() };
    for request in [
        SolveRequest { frontend_attrs: empty(), ..build() },
        SolveRequest { cache: cache(CacheOptionsEntry::default()), ..build() },
        SolveRequest {
            cache: cache(CacheOptionsEntry { r#type: "registry".to_owned(), attrs: empty() }),
            ..build()
        },
        SolveRequest { entitlements: vec![String::new()], ..build() },
        SolveRequest {
            frontend_inputs: HashMap::from([(
                "x".to_owned(),
                pb::Definition { def: vec![vec![0xff]], ..Default::default() },
            )]),
            frontend_attrs: attrs(&[("context:a", "input:x")]),
            ..build()
        },
        image("name", "UPPER//case"),
        image("compression", "stone"),
        image("push", "perhaps"),
        option("platform", "////"),
        option("platform", ","),
        option("add-hosts", "\"="),
        option("ulimit", "=,="),
        option("no-such-option", "\u{0}"),
        option("context:x", "docker-image://"),
        option("cache-imports", "[null, 7"),
        option("attest:sbom", "generator="),
        SolveRequest { r#ref: "\u{0}\u{7f}".to_owned(), frontend: "x".to_owned(), ..SolveRequest::default() },
    ] {
        let shown = format!("{:?} {:?} {:?}", request.frontend_attrs, request.exporters, request.cache);
        let outcome = buildkit.solve(request).await;
        if let Err(status) = &outcome.result {
            assert!(
                !status.message().is_empty() && !status.message().contains("panic"),
                "{shown}: {status:?}"
            );
        }
    }
    buildkit.solve(build()).await.success();
    is_well(&daemon).await;
}

#[tokio::test]
async fn calls_that_nobody_serves_are_told_so() {
    let daemon = Daemon::start();
    let buildkit = BuildKit::raw(&daemon.socket()).await;
    // A bridge of no build, and of one that is not there.
    let ping = gateway::PingRequest {};
    let mut bare = gateway::llb_bridge_client::LlbBridgeClient::new(buildkit.channel());
    assert!(bare.ping(ping).await.unwrap_err().message().contains("buildid"));
    let status = buildkit.bridge("no-such-build").ping(ping).await.unwrap_err();
    assert!(status.message().contains("no-such-build"), "{status:?}");
    for path in ["/no.such.Service/Method", "/moby.buildkit.v1.Control/NoSuchMethod", "/", "//", "/%ff/x"] {
        let mut sender = h2_client(&daemon).await;
        let request = http::Request::post(format!("http://localhost{path}"))
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let (answer, _) = sender.send_request(request, true).unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(answer.headers().get("grpc-status").unwrap(), "12", "{path}: {answer:?}");
    }
    // The other API is there, too, for whoever speaks HTTP/2; but for what takes a connection over.
    for (method, path, status) in [("GET", "/_ping", 200), ("POST", "/session", 400), ("POST", "/grpc", 400)]
    {
        let mut sender = h2_client(&daemon).await;
        let request = http::Request::builder().method(method).uri(format!("http://localhost{path}"));
        let (answer, _) = sender.send_request(request.body(()).unwrap(), true).unwrap();
        assert_eq!(answer.await.unwrap().status(), status, "{path}");
    }
    is_well(&daemon).await;
}

#[tokio::test]
async fn clients_that_vanish_leave_nothing() {
    let daemon = Daemon::start();
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", daemon.id())).unwrap().count();
    let before = descriptors();
    for _ in 0..50 {
        let buildkit = BuildKit::upgraded(&daemon.socket()).await;
        let session = buildkit.open(Client::default()).await;
        let mut control = buildkit.control();
        let solving = tokio::spawn(async move { control.solve(SolveRequest::default()).await });
        drop((session, buildkit));
        solving.abort();
    }
    eventually("all connections are closed", || descriptors() <= before + 5).await;
    is_well(&daemon).await;
}
