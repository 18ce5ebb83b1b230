//! Source policies and capabilities, as clients of BuildKit's gRPC API meet them.

use lapstrake_api_proto::{
    control::SolveRequest,
    llb::OpMetadata,
    sourcepolicy::{Policy, PolicyAction, Rule},
};
use lapstrake_integration_cli::{
    Daemon,
    buildkit::{BuildKit, Client, Llb, Tree, dockerfile_build, source_policy, unique},
};
use tonic::Code;

const BUSYBOX: &str = "docker-image://docker.io/library/busybox:latest";

#[tokio::test]
async fn a_source_that_the_policy_denies_is_refused_in_graphs_and_in_dockerfiles() {
    let daemon = Daemon::with_base();
    let buildkit = BuildKit::raw(&daemon.socket()).await;
    let policy = source_policy(PolicyAction::Deny, "docker-image://docker.io/library/busybox:*", None);
    let mut llb = Llb::default();
    let busybox = llb.source("docker-image://busybox");
    let ran = llb.run(&busybox, "true");
    let request = SolveRequest {
        r#ref: unique("build"),
        definition: Some(llb.result(&ran)),
        source_policy: Some(policy.clone()),
        ..SolveRequest::default()
    };
    let status = buildkit.solve(request).await.failure();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(
        status.message(),
        format!(
            "failed to load LLB: error evaluating the source policy: source {BUSYBOX:?} denied by policy: source denied by policy"
        )
    );
    let session =
        Client::with_context(Tree::of(&[("Dockerfile", "FROM busybox\n")])).open(&daemon.socket()).await;
    let request = SolveRequest { source_policy: Some(policy), ..dockerfile_build(&session) };
    let status = buildkit.solve(request).await.failure();
    assert!(status.message().contains("source denied by policy"), "{status:?}");
}

#[tokio::test]
async fn a_source_is_replaced_by_what_the_policy_says() {
    let daemon = Daemon::with_base();
    let buildkit = BuildKit::raw(&daemon.socket()).await;
    let mut llb = Llb::default();
    let other = llb.source("docker-image://docker.io/not/there:1");
    let ran = llb.run(&other, "echo it is busybox");
    let definition = llb.result(&ran);
    let request = SolveRequest {
        r#ref: unique("build"),
        definition: Some(definition),
        source_policy: Some(source_policy(
            PolicyAction::Convert,
            "docker-image://docker.io/not/*",
            Some(BUSYBOX),
        )),
        ..SolveRequest::default()
    };
    let outcome = buildkit.solve(request).await;
    assert!(outcome.log().contains("it is busybox"), "{outcome:?}");
    outcome.success();
}

#[tokio::test]
async fn what_means_nothing_is_told_as_buildkit_tells_it() {
    let daemon = Daemon::with_base();
    let buildkit = BuildKit::raw(&daemon.socket()).await;
    let graph = || {
        let mut llb = Llb::default();
        let busybox = llb.source(BUSYBOX);
        let ran = llb.run(&busybox, "true");
        (llb.result(&ran), ran)
    };
    let (definition, _) = graph();
    let policy = Policy { version: 1, rules: vec![Rule::default()] };
    let request = SolveRequest {
        r#ref: unique("build"),
        definition: Some(definition),
        source_policy: Some(policy),
        ..SolveRequest::default()
    };
    assert_eq!(buildkit.solve(request).await.failure().message(), "invalid nil selector in policy");

    let (mut definition, ran) = graph();
    let metadata = OpMetadata { caps: [("exec.telepathy".to_owned(), true)].into(), ..OpMetadata::default() };
    definition.metadata.insert(ran, metadata);
    let request =
        SolveRequest { r#ref: unique("build"), definition: Some(definition), ..SolveRequest::default() };
    let status = buildkit.solve(request).await.failure();
    assert_eq!(status.message(), "failed to load LLB: unknown API capability exec.telepathy");

    let (definition, _) = graph();
    let request = SolveRequest {
        r#ref: unique("build"),
        definition: Some(definition),
        // Nobody is there to be asked.
        source_policy_session: "nobody".to_owned(),
        ..SolveRequest::default()
    };
    let status = buildkit.solve(request).await.failure();
    assert!(status.message().contains("no active session for nobody"), "{status:?}");
}
