//! Dockerfiles to graphs, whatever the facts are.

use std::collections::BTreeMap;

use lapstrake_builder_dockerfile::{
    Answer, DockerfileOptions, Error, Facts, ImageFact, ImageQuery, Need, Plan, facts::IgnoreFile,
    options::Dialect, plan,
};
use lapstrake_builder_llb::{Definition, Graph, Limits, cache_key, dump};
use lapstrake_layerstore_oci::{Digest, ImageId, Platform};

/// No Dockerfile has questions after this many rounds: each stage and each trigger may bring one.
const ROUNDS: usize = 200;

/// Between the parts of an input.
const SEPARATOR: &str = "\n----\n";

/// A Dockerfile; the client's options, one a line; an ignore file; the config of every image. Planning ends, gives the same each time, and
/// what it gives is a graph.
pub(crate) fn lowering(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut parts = text.splitn(4, SEPARATOR);
    let mut part = || parts.next().unwrap_or_default();
    let (dockerfile, attrs, ignore, config) = (part(), part(), part(), part());
    let attrs: BTreeMap<String, String> = attrs
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let platform = Platform::new("linux", "amd64");
    let Ok(mut options) =
        DockerfileOptions::from_frontend_attrs(&attrs, platform, Some("session".to_owned()), &[])
    else {
        return;
    };
    let mut facts = Facts::new(dockerfile.as_bytes());
    facts.dockerignore =
        Some(IgnoreFile { name: ".dockerignore".to_owned(), data: ignore.as_bytes().into() });
    for dialect in [Dialect::BuildKit, Dialect::Classic] {
        options.dialect = dialect;
        let first = answered(&options, facts.clone(), config);
        assert_eq!(first, answered(&options, facts.clone(), config), "planning twice");
        if let Ok(plan) = &first {
            check(plan);
        }
    }
}

fn answered(options: &DockerfileOptions, mut facts: Facts, config: &str) -> Result<Plan, Error> {
    for _ in 0..ROUNDS {
        let needs = match plan(options, &facts)? {
            Answer::Plan(plan) => return Ok(*plan),
            Answer::Need(needs) => needs,
        };
        assert!(!needs.is_empty(), "a need of nothing");
        let before = facts.clone();
        for need in needs {
            // Two names may be one image's; but what was told is not asked for again.
            let new = match need {
                Need::ImageConfig { query, .. } => {
                    let new = !before.images.contains_key(&query);
                    let fact = image(&query, config);
                    facts.images.insert(query, fact);
                    new
                }
                Need::ContextIgnore { name, .. } => {
                    facts.context_ignores.insert(name.clone(), None);
                    !before.context_ignores.contains_key(&name)
                }
                Need::HttpContextKind { .. } => {
                    facts.http_context_is_archive = Some(true);
                    before.http_context_is_archive.is_none()
                }
                Need::Epoch { value, .. } => {
                    facts.epochs.insert(value.clone(), Some(7));
                    !before.epochs.contains_key(&value)
                }
                need => panic!("{need:?} cannot be answered"),
            };
            assert!(new, "a need that was answered before");
        }
    }
    panic!("there is no end of needs");
}

fn image(query: &ImageQuery, config: &str) -> ImageFact {
    let fallback = format!(
        r#"{{"architecture":"{}","os":"linux","rootfs":{{"type":"layers","diff_ids":["sha256:{}"]}}}}"#,
        query.platform.architecture,
        "1".repeat(64)
    );
    let config = if config.trim().is_empty() { fallback.as_str() } else { config };
    ImageFact {
        reference: query.reference.clone(),
        digest: Some(Digest::sha256_of(query.reference.to_string())),
        config: config.as_bytes().into(),
        image_id: Some(ImageId(Digest::sha256_of(config))),
    }
}

fn check(plan: &Plan) {
    assert!(!plan.targets.is_empty());
    for target in &plan.targets {
        is_graph(&target.definition);
        let json = target.config.to_json().expect("a config that was planned can be written");
        serde_json::from_slice::<serde_json::Value>(&json).expect("it is JSON");
        target.scans.iter().for_each(|(_, definition)| is_graph(definition));
        target.classic.iter().flat_map(|classic| &classic.others).for_each(is_graph);
    }
}

fn is_graph(definition: &Definition) {
    if definition.is_scratch() {
        return;
    }
    assert_eq!(Definition::decode(&definition.encode()).as_ref(), Ok(definition));
    let graph = Graph::parse(definition, Limits::default()).expect("a graph that was planned is a graph");
    assert!(!dump(&graph).is_empty());
    for vertex in graph.vertices() {
        cache_key::in_versions(&vertex.op, vertex.inputs.len());
    }
}
