//! Source policies: rules, and clients that are asked.

use lapstrake_api_proto::{
    gateway::ResolveSourceMetaRequest,
    policysession::{
        CheckPolicyRequest, CheckPolicyResponse, DecisionResponse, DenyMessage,
        check_policy_response::Result as Answer,
    },
    sourcepolicy::{Policy, PolicyAction},
};
use lapstrake_builder_engine::{EngineError, ErrorKind, SourcePolicy};
use lapstrake_builder_llb::{SourcePolicies, pb};
use lapstrake_integration_cli::buildkit::source_policy;
use lapstrake_tests::{Built, Client, Context, Workbench};

use crate::raw_llb::support::{Llb, Out, request};

const BUSYBOX: &str = "docker-image://docker.io/library/busybox:latest";

fn rules(policy: Policy) -> SourcePolicy {
    SourcePolicy { rules: SourcePolicies::from_proto([&policy]).unwrap(), session: None }
}

async fn under(
    bench: &Workbench,
    policy: SourcePolicy,
    llb: &Llb,
    result: &Out,
) -> Result<Built, EngineError> {
    let mut request = request(bench, llb.definition(result)).await;
    request.source_policy = policy;
    bench.run(request).await.1
}

/// Makes the image `base` beside `busybox`.
async fn base(bench: &Workbench) {
    bench.build(Context::new("FROM busybox\nRUN echo base > /which\n"), "base").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_source_is_refused_before_anything_runs_whatever_it_is_called() {
    let bench = Workbench::new();
    for name in ["docker-image://busybox", BUSYBOX, "docker-image://index.docker.io/busybox"] {
        let mut llb = Llb::default();
        let source = llb.source(name, &[]);
        let ran = llb.run(&source, "true");
        let policy =
            rules(source_policy(PolicyAction::Deny, "docker-image://docker.io/library/busybox:*", None));
        let error = under(&bench, policy, &llb, &ran).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "failed to load LLB: error evaluating the source policy: source {BUSYBOX:?} denied by policy: source denied by policy"
            )
        );
        assert_eq!((error.kind(), error.failed_vertex()), (ErrorKind::Denied, Some(&source.digest)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_converted_source_is_another_graph() {
    let bench = Workbench::new();
    base(&bench).await;
    let mut llb = Llb::default();
    let busybox = llb.busybox();
    let ran = llb.run(&busybox, "cat /which > /seen 2>/dev/null || echo none > /seen");
    let policy = || {
        rules(source_policy(
            PolicyAction::Convert,
            BUSYBOX,
            Some("docker-image://docker.io/library/base:latest"),
        ))
    };
    let built = under(&bench, policy(), &llb, &ran).await.unwrap();
    assert_eq!(bench.read("app", "seen"), "base\n");
    assert!(built.executed().iter().any(|name| name == "docker-image://docker.io/library/base:latest"));
    // Nor is what it made the result of the graph without the policy.
    under(&bench, SourcePolicy::default(), &llb, &ran).await.unwrap();
    assert_eq!(bench.read("app", "seen"), "none\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_a_dockerfile_are_under_the_policy() {
    let bench = Workbench::new();
    base(&bench).await;
    let build = async |policy: SourcePolicy| {
        let mut request =
            bench.request(Context::new("FROM busybox\nRUN cat /which > /seen\n"), "app").await.unwrap();
        request.source_policy = policy;
        bench.run(request).await.1
    };
    let to = Some("docker-image://docker.io/library/base:latest");
    build(rules(source_policy(PolicyAction::Convert, BUSYBOX, to))).await.unwrap();
    assert_eq!(bench.read("app", "seen"), "base\n");
    let error = build(rules(source_policy(PolicyAction::Deny, BUSYBOX, None))).await.unwrap_err();
    let told = error.to_string();
    assert!(
        told.ends_with(&format!(
            "could not resolve image due to policy: source {BUSYBOX:?} denied by policy: source denied by policy"
        )),
        "{told}"
    );
}

fn decision(action: PolicyAction, update: Option<pb::SourceOp>) -> CheckPolicyResponse {
    let deny_messages = match action {
        PolicyAction::Deny => vec![DenyMessage { message: "not on my watch".to_owned() }],
        _ => Vec::new(),
    };
    let decision = DecisionResponse { action: action.into(), deny_messages, update };
    CheckPolicyResponse { result: Some(Answer::Decision(decision)) }
}

async fn asked(
    answer: impl Fn(&CheckPolicyRequest) -> CheckPolicyResponse + Send + Sync + 'static,
) -> Result<String, EngineError> {
    let bench = Workbench::new();
    base(&bench).await;
    let session = Client::default().policy(answer).connect(&bench.sessions);
    let mut llb = Llb::default();
    let busybox = llb.busybox();
    let ran = llb.run(&busybox, "cat /which > /seen 2>/dev/null || echo none > /seen");
    let policy = SourcePolicy { session: Some(session), ..SourcePolicy::default() };
    under(&bench, policy, &llb, &ran).await.map(|_| bench.read("app", "seen"))
}

fn identifier(request: &CheckPolicyRequest) -> String {
    request.source.as_ref().unwrap().source.as_ref().unwrap().identifier.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_decides_about_each_source() {
    let allowed = asked(|request| {
        assert_eq!(identifier(request), BUSYBOX);
        decision(PolicyAction::Allow, None)
    });
    assert_eq!(allowed.await.unwrap(), "none\n");
    let denied = asked(|_| decision(PolicyAction::Deny, None)).await.unwrap_err();
    assert_eq!(
        denied.to_string(),
        format!(
            "failed to load LLB: error evaluating the source policy: source {BUSYBOX:?} not allowed by policy: action DENY"
        )
    );
    let EngineError::Policy { source, .. } = &denied else { panic!("{denied:?}") };
    assert!(format!("{source:?}").contains("not on my watch"));
    let converted = asked(|request| {
        let base = "docker-image://docker.io/library/base:latest";
        if identifier(request) == base {
            return decision(PolicyAction::Allow, None);
        }
        let update = pb::SourceOp { identifier: base.to_owned(), ..Default::default() };
        decision(PolicyAction::Convert, Some(update))
    });
    assert_eq!(converted.await.unwrap(), "base\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_may_ask_what_a_source_is_before_it_decides() {
    let asks = asked(|request| {
        let known = request.source.as_ref().unwrap();
        match &known.image {
            Some(image) => {
                assert!(String::from_utf8_lossy(&image.config).contains("\"rootfs\""));
                decision(PolicyAction::Allow, None)
            }
            None => {
                let question =
                    ResolveSourceMetaRequest { source: known.source.clone(), ..Default::default() };
                CheckPolicyResponse { result: Some(Answer::Request(question)) }
            }
        }
    });
    assert_eq!(asks.await.unwrap(), "none\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_decides_is_not_asked_for_ever() {
    let circles = asked(|_| {
        let update = pb::SourceOp { identifier: BUSYBOX.to_owned(), ..Default::default() };
        decision(PolicyAction::Convert, Some(update))
    });
    assert!(circles.await.unwrap_err().to_string().ends_with("too many policy requests"));
    let silent = asked(|_| CheckPolicyResponse::default()).await.unwrap_err();
    assert!(silent.to_string().ends_with("no decision in policy response"), "{silent}");
    let elsewhere = asked(|_| {
        let source =
            pb::SourceOp { identifier: "docker-image://x/secret:1".to_owned(), ..Default::default() };
        let question = ResolveSourceMetaRequest { source: Some(source), ..Default::default() };
        CheckPolicyResponse { result: Some(Answer::Request(question)) }
    });
    let error = elsewhere.await.unwrap_err().to_string();
    assert!(error.contains("policy requested different source identifier"), "{error}");
}
