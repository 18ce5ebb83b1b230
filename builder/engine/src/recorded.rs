//! What is recorded of what a client asked for, in BuildKit's words. Nothing in it is secret: the history is read by people to whom nobody told
//! the build-args' values, and handed on (`buildx history export`).

use std::collections::BTreeMap;

use lapstrake_builder_dockerfile::{DockerfileOptions, options::ContextSource};
use lapstrake_builder_exporter::{Exported, Output};
use lapstrake_builder_history::{OutputRecord, ResultRecord};
use lapstrake_builder_progress::redact;
use lapstrake_layerstore_oci::Platform;

use crate::Input;

/// Build-args that are no part of what is built, and may hold credentials.
pub(crate) const PROXY_ARGS: [&str; 5] = ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"];
/// Build-args that say how to build: their values tell nothing that is anybody's.
const SETTINGS: [&str; 2] = ["SOURCE_DATE_EPOCH", "SANDBOX_HOSTNAME"];
/// What stands for a value, as for a password in an URL.
const MASK: &str = "xxxxx";
const BUILD_ARG: &str = "build-arg:";
const CACHE_IMPORTS: &str = "cache-imports";
/// What of a cache's attributes is no credential, as buildx has it.
const CACHE_ATTRS: [&str; 2] = ["ref", "scope"];
/// The media type of an image's config.
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// What was asked of the frontend, as it was asked.
pub(crate) fn said(input: &Input) -> BTreeMap<String, String> {
    match input {
        Input::Frontend(asked) => asked.options.clone(),
        Input::Definition { options, .. } | Input::Client { options, .. } => options.clone(),
        Input::Dockerfile { options, .. } => of_dockerfile(options),
    }
}

/// What was asked of the frontend, as it is recorded.
pub(crate) fn options(input: &Input) -> BTreeMap<String, String> {
    let recorded = said(input).into_iter().filter_map(|(key, value)| {
        let value = shown(&key, &value)?;
        Some((key, value))
    });
    recorded.collect()
}

/// An option's value as it is recorded; `None` where even its name is not.
fn shown(key: &str, value: &str) -> Option<String> {
    if let Some(name) = key.strip_prefix(BUILD_ARG) {
        if PROXY_ARGS.contains(&name.to_lowercase().as_str()) {
            return None;
        }
        if !name.starts_with("BUILDKIT_") && !SETTINGS.contains(&name) {
            return Some(MASK.to_owned());
        }
    }
    if key == CACHE_IMPORTS {
        return Some(caches(value));
    }
    Some(redact(value).into_owned())
}

/// Which caches, without what logs in to them.
fn caches(json: &str) -> String {
    let Ok(mut caches) = serde_json::from_str::<Vec<serde_json::Value>>(json) else { return String::new() };
    for cache in &mut caches {
        if let Some(attrs) = cache.get_mut("Attrs").and_then(serde_json::Value::as_object_mut) {
            attrs.retain(|key, _| CACHE_ATTRS.contains(&key.as_str()));
        }
    }
    redact(&serde_json::Value::from(caches).to_string()).into_owned()
}

/// The options of a build that came by another door than gRPC's, as that door's clients would have said them.
fn of_dockerfile(options: &DockerfileOptions) -> BTreeMap<String, String> {
    let mut said = BTreeMap::from([("filename".to_owned(), options.dockerfile_name.clone())]);
    if let Some(target) = &options.target {
        said.insert("target".to_owned(), target.clone());
    }
    if !options.platforms.is_empty() {
        let platforms: Vec<String> = options.platforms.iter().map(Platform::to_string).collect();
        said.insert("platform".to_owned(), platforms.join(","));
    }
    if let ContextSource::Git { reference: url, .. } | ContextSource::Http { url } = &options.context {
        said.insert("context".to_owned(), url.clone());
    }
    said.extend(options.build_args.iter().map(|(name, value)| (format!("{BUILD_ARG}{name}"), value.clone())));
    said
}

/// What was to be left behind.
pub(crate) fn outputs(outputs: &[Output]) -> Vec<OutputRecord> {
    let said = |output: &Output| {
        let mut attrs = BTreeMap::new();
        let names: Vec<String> = output.names().iter().map(ToString::to_string).collect();
        if !names.is_empty() {
            attrs.insert("name".to_owned(), names.join(","));
        }
        if matches!(output, Output::Image(image) if image.push.is_some()) {
            attrs.insert("push".to_owned(), "true".to_owned());
        }
        OutputRecord { kind: output.kind().to_owned(), attrs }
    };
    outputs.iter().filter(|output| **output != Output::CacheOnly).map(said).collect()
}

/// What an output left: the index or manifest where one was made, else the config.
pub(crate) fn result(exported: &Exported) -> Option<ResultRecord> {
    if let Some(manifest) = &exported.manifest {
        return Some(ResultRecord {
            media_type: manifest.media_type.to_string(),
            digest: manifest.digest.to_string(),
            annotations: manifest.annotations.clone(),
        });
    }
    let digest = exported.image.as_ref()?.digest().to_string();
    Some(ResultRecord { media_type: CONFIG.to_owned(), digest, annotations: BTreeMap::new() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FrontendRequest;

    #[test]
    fn values_of_build_args_and_credentials_are_not_recorded() {
        let caches = r#"[{"Type":"gha","Attrs":{"scope":"main","token":"s3cret","url":"https://x"}},{"Type":"registry","Attrs":{"ref":"https://u:s3cret@r.example/c"}}]"#;
        let said = [
            ("build-arg:TOKEN", "s3cret"),
            ("build-arg:HTTP_PROXY", "http://u:s3cret@proxy"),
            ("build-arg:http_proxy", "http://proxy"),
            ("build-arg:BUILDKIT_MULTI_PLATFORM", "true"),
            ("build-arg:SOURCE_DATE_EPOCH", "7"),
            ("context", "https://u:s3cret@git.example/r.git"),
            ("vcs:source", "https://s3cret@git.example/r.git"),
            ("cache-imports", caches),
            ("label:a", "b"),
            ("target", "t"),
        ];
        let options_said = said.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let mut recorded =
            options(&Input::Frontend(FrontendRequest { options: options_said, ..Default::default() }));
        let imports = recorded.remove("cache-imports").unwrap();
        let kept = r#"[{"Type":"gha","Attrs":{"scope":"main"}},{"Type":"registry","Attrs":{"ref":"https://xxxxx:xxxxx@r.example/c"}}]"#;
        let value = |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap();
        assert_eq!(value(&imports), value(kept));
        let expected = [
            ("build-arg:BUILDKIT_MULTI_PLATFORM", "true"),
            ("build-arg:SOURCE_DATE_EPOCH", "7"),
            ("build-arg:TOKEN", "xxxxx"),
            ("context", "https://xxxxx:xxxxx@git.example/r.git"),
            ("label:a", "b"),
            ("target", "t"),
            ("vcs:source", "https://xxxxx@git.example/r.git"),
        ];
        assert_eq!(recorded, expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
        assert_eq!(super::caches("no json s3cret"), "");
    }
}
