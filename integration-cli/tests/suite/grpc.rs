//! BuildKit's `Control`, by a client that is written on the stubs alone.

#[allow(unreachable_pub)]
use std::{collections::HashMap, time::Duration};

use lapstrake_api_proto::control::{
    DiskUsageRequest, InfoRequest, ListWorkersRequest, PruneRequest, SolveRequest, StatusRequest,
};
use lapstrake_integration_cli::{
    BASE_IMAGE, Daemon,
    buildkit::{BuildKit, Client, Llb, Outcome, Tree, attrs, dockerfile_build, exporter, unique},
};
use tonic::Code;

use crate::common::{eventually, unpack};

fn dockerfile(text: &str) -> Client {
    Client::with_context(Tree::of(&[("Dockerfile", text), ("a/b", "from the context\n")]))
}

#[tokio::test]
async fn both_ways_in_lead_to_one_worker() {
    let daemon = Daemon::start();
    let mut told = Vec::new();
    for buildkit in [BuildKit::upgraded(&daemon.socket()).await, BuildKit::raw(&daemon.socket()).await] {
        let mut control = buildkit.control();
        let version = control.info(InfoRequest {}).await.unwrap().into_inner().buildkit_version.unwrap();
        assert!(version.version.starts_with("v0.32.2+lapstrake."), "{version:?}");
        let mut workers = async |filter: &[&str]| {
            let filter = filter.iter().map(|text| (*text).to_owned()).collect();
            control.list_workers(ListWorkersRequest { filter }).await.unwrap().into_inner().record
        };
        let all = workers(&[]).await;
        let [worker] = &all[..] else { panic!("{all:?}") };
        let label =
            |name: &str| worker.labels.get(&format!("org.mobyproject.buildkit.worker.{name}")).cloned();
        // What makes buildx's docker driver believe in several platforms, all outputs, and caches.
        assert!(label("snapshotter").is_some(), "{worker:?}");
        label("moby.host-gateway-ip").unwrap().parse::<std::net::IpAddr>().unwrap();
        assert_eq!(worker.platforms[0].os, "linux");
        assert_eq!(worker.buildkit_version.as_ref(), Some(&version));
        let rules: Vec<_> = worker.gc_policy.iter().map(|rule| (rule.all, rule.filters.len())).collect();
        assert_eq!(rules, [(false, 3), (false, 0), (false, 0), (true, 0)]);
        assert_eq!(workers(&[&format!("id=={}", worker.id)]).await.len(), 1);
        assert_eq!(workers(&["id==another"]).await.len(), 0);
        told.push(all);
    }
    assert_eq!(told[0], told[1]);
}

#[tokio::test]
async fn a_dockerfile_is_built_with_what_the_session_has_by_either_kind_of_session() {
    let daemon = Daemon::with_base();
    let text = "FROM busybox\nCOPY a/b /copied\nRUN --mount=type=secret,id=word cat /run/secrets/word /copied > /all && echo said\n";
    let client = dockerfile(text).secret("word", "a secret\n");
    let raw = BuildKit::raw(&daemon.socket()).await;
    let upgraded = BuildKit::upgraded(&daemon.socket()).await;
    for (buildkit, session, is_first) in [
        (&raw, raw.open(client.clone()).await, true),
        (&upgraded, client.clone().open(&daemon.socket()).await, false),
    ] {
        let request = SolveRequest { exporters: vec![exporter("tar", &[])], ..dockerfile_build(&session) };
        let reference = request.r#ref.clone();
        let outcome = buildkit.solve(request).await;
        let run = outcome.vertices().into_iter().find(|(name, _)| name.contains("RUN --mount"));
        assert_eq!(run.map(|(_, cached)| cached), Some(!is_first), "{outcome:?}");
        assert_eq!(outcome.log().contains("said\n"), is_first, "{outcome:?}");
        outcome.success();
        let files = unpack(&session.file(0));
        assert_eq!(files["all"], b"a secret\nfrom the context\n");

        // Who asks late is told everything, too.
        let late = StatusRequest { r#ref: reference };
        let mut late = buildkit.control().status(late).await.unwrap();
        assert!(late.metadata().get("buildkit-current-timestamp").is_some());
        let mut names = Vec::new();
        while let Some(response) = late.get_mut().message().await.unwrap() {
            names.extend(response.vertexes.into_iter().map(|vertex| vertex.name));
        }
        assert!(names.iter().any(|name| name.contains("RUN --mount")), "{names:?}");
    }
}

#[tokio::test]
async fn an_image_goes_into_the_store_and_a_directory_to_the_client() {
    let daemon = Daemon::with_base();
    let buildkit = BuildKit::upgraded(&daemon.socket()).await;
    let client = dockerfile("FROM scratch\nCOPY a /x\n").directory_output(1);
    let session = client.open(&daemon.socket()).await;
    let request = SolveRequest {
        exporters: vec![exporter("moby", &[("name", "both:1,both:2")]), exporter("local", &[])],
        ..dockerfile_build(&session)
    };
    let response = buildkit.solve(request).await.success();
    let image = daemon.docker().run(["inspect", "-f", "{{.Id}}", "both:2"]).success();
    assert_eq!(response["containerimage.config.digest"], image.line());
    assert_eq!(response["image.name"], "docker.io/library/both:1,docker.io/library/both:2");
    assert_eq!(session.tree(1).file("x/b"), Some(&b"from the context\n"[..]));
}

#[tokio::test]
async fn a_graph_is_built_without_a_frontend() {
    let daemon = Daemon::with_base();
    let buildkit = BuildKit::raw(&daemon.socket()).await;
    let session = buildkit.open(Client::default()).await;
    let mut graph = Llb::default();
    let base = graph.source(&format!("docker-image://docker.io/library/{BASE_IMAGE}"));
    let file = graph.file(Some(&base), "/written", b"by hand\n");
    let run = graph.run(&file, "sed s/hand/machine/ /written > /changed");
    // As clients before 0.13 say what is to be left behind.
    let request = SolveRequest {
        definition: Some(graph.result(&run)),
        session: session.id().to_owned(),
        exporter_deprecated: "tar".to_owned(),
        ..SolveRequest::default()
    };
    buildkit.solve(request).await.success();
    assert_eq!(unpack(&session.file(0))["changed"], b"by machine\n");
}

#[tokio::test]
async fn a_failed_step_has_its_code_its_vertex_and_its_lines() {
    let daemon = Daemon::with_base();
    let buildkit = BuildKit::upgraded(&daemon.socket()).await;
    let session = dockerfile("FROM busybox\nRUN echo words && exit 7\n").open(&daemon.socket()).await;
    let outcome = buildkit.solve(dockerfile_build(&session)).await;
    assert!(outcome.log().contains("words\n"), "{outcome:?}");
    let status = outcome.failure();
    assert!(status.message().contains("exit code: 7"), "{status:?}");
    // Details are a message of their own, whose types clients know by name.
    let details = String::from_utf8_lossy(status.details()).into_owned();
    for part in ["errdefs.Source", "Dockerfile", "errdefs.Vertex", "ExitMessage", "\"Code\":7"] {
        assert!(details.contains(part), "{part}: {details}");
    }
}

#[tokio::test]
async fn usage_is_told_and_pruned() {
    let daemon = Daemon::with_base();
    let buildkit = BuildKit::raw(&daemon.socket()).await;
    let session = buildkit.open(dockerfile("FROM busybox\nRUN echo 12345 > /x\nRUN true\n")).await;
    buildkit.solve(dockerfile_build(&session)).await.success();
    drop(session);
    let mut control = buildkit.control();
    let mut usage = async |filter: &[&str]| {
        let filter = filter.iter().map(|text| (*text).to_owned()).collect();
        let request = DiskUsageRequest { filter, age_limit: 0 };
        control.disk_usage(request).await.map(|usage| usage.into_inner().record)
    };
    let all = usage(&[]).await.unwrap();
    let run = all.iter().find(|record| record.description.contains("12345")).unwrap();
    assert!(run.size > 0 && run.created_at.is_some() && run.record_type == "regular", "{run:?}");
    let one = usage(&[&format!("id=={}", run.id)]).await.unwrap();
    assert_eq!(one.iter().map(|record| &record.id).collect::<Vec<_>>(), [&run.id]);
    assert_eq!(usage(&["colour==red"]).await.unwrap_err().code(), Code::InvalidArgument);

    let request = PruneRequest { all: true, ..PruneRequest::default() };
    let mut pruned = buildkit.control().prune(request).await.unwrap().into_inner();
    let mut gone = Vec::new();
    while let Some(record) = pruned.message().await.unwrap() {
        gone.push(record.id);
    }
    assert!(gone.contains(&run.id), "{gone:?}");
    assert!(!usage(&[]).await.unwrap().iter().any(|record| record.id == run.id));
}

/// What a step says that asks its cgroup; nothing on a machine that has no such file.
const MEMORY: &str = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null";

#[tokio::test]
async fn limits_hold_whichever_way_they_are_asked_for() {
    let daemon = Daemon::with_base();
    let buildkit = BuildKit::raw(&daemon.socket()).await;
    let client = dockerfile(&format!(
        "FROM busybox\nRUN echo seen $({MEMORY}) $(df -k /dev/shm | awk 'END {{print $2}}') $(ulimit -n)\n"
    ));
    let session = buildkit.open(client).await;
    let limits = [
        ("memory", "67108864"),
        ("cpuquota", "25000"),
        ("cpuperiod", "50000"),
        ("shm-size", "2097152"),
        ("ulimit", "nofile=100:200"),
    ];
    let request = SolveRequest { frontend_attrs: attrs(&limits), ..dockerfile_build(&session) };
    let outcome = buildkit.solve(request).await;
    assert!(outcome.log().contains(" 2048 100\n"), "{outcome:?}");
    if std::path::Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists() {
        assert!(outcome.log().contains("seen 67108864 "), "{outcome:?}");
    }
    outcome.success();

    // A graph has no frontend; the limits are the build's all the same.
    let mut graph = Llb::default();
    let base = graph.source(&format!("docker-image://docker.io/library/{BASE_IMAGE}"));
    let run = graph.run(&base, "head -c 200000000 /dev/zero | tail | wc -c; exit 9");
    let request = SolveRequest {
        definition: Some(graph.result(&run)),
        frontend_attrs: attrs(&[("memory", "33554432"), ("memswap", "33554432")]),
        ..SolveRequest::default()
    };
    let status = buildkit.solve(request).await.failure();
    assert!(status.message().contains("cannot allocate memory"), "{status:?}");

    for (name, value, why) in [
        ("memory", "5000000", "Minimum memory limit allowed is 6MB"),
        ("memory", "-5", "invalid memory value: -5"),
        ("cpusetcpus", "0-x", "Invalid value 0-x for cpuset cpus"),
        ("ulimit", "fingers=1", "fingers"),
    ] {
        let request = SolveRequest { frontend_attrs: attrs(&[(name, value)]), ..dockerfile_build(&session) };
        let status = buildkit.solve(request).await.failure();
        assert!(status.message().contains(why), "{name}={value}: {status:?}");
    }
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_build_along() {
    let daemon = Daemon::with_base();
    let buildkit = BuildKit::upgraded(&daemon.socket()).await;
    let mark = unique("mark");
    let session = dockerfile(&format!("FROM busybox\nRUN echo {mark} begun; exec sleep 4321\n"));
    let session = session.open(&daemon.socket()).await;
    let request = dockerfile_build(&session);
    let status = StatusRequest { r#ref: request.r#ref.clone() };
    let mut control = buildkit.control();
    let solving = tokio::spawn(async move { control.solve(request).await });
    let mut told = buildkit.control().status(status).await.unwrap().into_inner();
    loop {
        let response = told.message().await.unwrap().expect("the build runs");
        if response.logs.iter().any(|log| String::from_utf8_lossy(&log.msg).contains("begun")) {
            break;
        }
    }
    solving.abort();
    // All that is said of it ends, and so does its process.
    while let Ok(Some(_)) = told.message().await {}
    eventually("the step's process has ended", || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let mut commands = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
        !commands.any(|command| command == b"sleep\x004321\0")
    })
    .await;
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let daemon = Daemon::start();
    let buildkit = BuildKit::raw(&daemon.socket()).await;
    let session = buildkit.open(dockerfile("FROM scratch\n")).await;
    let build = || dockerfile_build(&session);
    let frontend = SolveRequest { frontend: "cobol.v0".to_owned(), ..build() };
    let output = SolveRequest { exporters: vec![exporter("vinyl", &[])], ..build() };
    let grant = SolveRequest { entitlements: vec!["everything".to_owned()], ..build() };
    let cache = lapstrake_api_proto::control::CacheOptions {
        exports: vec![lapstrake_api_proto::control::CacheOptionsEntry {
            r#type: "tape".to_owned(),
            attrs: HashMap::new(),
        }],
        ..Default::default()
    };
    let cache = SolveRequest { cache: Some(cache), ..build() };
    let lost = SolveRequest { session: "nobody".to_owned(), ..build() };
    for (request, why) in [
        (frontend, "cobol.v0"),
        (output, "vinyl"),
        (grant, "everything"),
        (cache, "tape"),
        (lost, "no active session for nobody"),
    ] {
        let status = buildkit.solve(request).await.failure();
        assert!(status.message().contains(why), "{why}: {status:?}");
        assert_ne!(status.code(), Code::Ok);
    }
    let status = buildkit.control().status(StatusRequest { r#ref: unique("never") }).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message().contains("no such job")),
        (Code::NotFound, true),
        "{status:?}"
    );
}

#[tokio::test]
async fn one_reference_is_one_build_at_a_time() {
    let daemon = Daemon::with_base();
    let buildkit = BuildKit::raw(&daemon.socket()).await;
    let session = buildkit.open(dockerfile("FROM busybox\nRUN cat\n")).await;
    // A client's own frontend that never answers.
    let waiting = SolveRequest { frontend: String::new(), ..dockerfile_build(&session) };
    let mut control = buildkit.control();
    let first = {
        let waiting = waiting.clone();
        tokio::spawn(async move { control.solve(waiting).await })
    };
    // It runs when its bridge is there.
    let ping = lapstrake_api_proto::gateway::PingRequest {};
    buildkit.bridge(&waiting.r#ref).ping(ping).await.unwrap();
    let Outcome { result, .. } = tokio::time::timeout(Duration::from_secs(60), async {
        Outcome {
            result: buildkit.control().solve(waiting.clone()).await.map(|r| r.into_inner()),
            told: Default::default(),
        }
    })
    .await
    .unwrap();
    let status = result.unwrap_err();
    assert!(status.message().contains(&waiting.r#ref), "{status:?}");
    first.abort();
}
