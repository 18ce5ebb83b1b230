//! Provenance as SLSA v1 and v0.2 write it, with BuildKit's extensions (`docs/attestations/slsa-definitions.md` there).

use std::collections::BTreeMap;

use lapstrake_layerstore_oci::{Descriptor, Timestamp};
use serde::Serialize;
use serde_json::{Map, Value};

use super::steps::{BuildConfig, SourceMap};

/// The type of a predicate in SLSA v1.
pub(crate) const SLSA_1: &str = "https://slsa.dev/provenance/v1";
/// The type of a predicate in SLSA v0.2.
pub(crate) const SLSA_02: &str = "https://slsa.dev/provenance/v0.2";
const BUILD_TYPE_1: &str =
    "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md";
const BUILD_TYPE_02: &str = "https://mobyproject.org/buildkit@v1";

/// Digests by algorithm.
pub(crate) type DigestSet = BTreeMap<String, String>;

/// Something that was used.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Dependency {
    pub(crate) uri: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) digest: DigestSet,
}

/// What is told of a build, whatever the version.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Provenance {
    pub(crate) dependencies: Vec<Dependency>,
    pub(crate) config_source: ConfigSource,
    pub(crate) request: Parameters,
    pub(crate) build_config: Option<BuildConfig>,
    /// The machine's.
    pub(crate) platform: String,
    /// What else is told of it.
    pub(crate) machine: Map<String, Value>,
    pub(crate) dockerfile_version: Option<String>,
    pub(crate) builder_id: String,
    pub(crate) invocation: String,
    pub(crate) started: Timestamp,
    pub(crate) finished: Timestamp,
    pub(crate) more: MoreMetadata,
    pub(crate) is_hermetic: bool,
    pub(crate) has_request: bool,
    pub(crate) has_dependencies: bool,
    pub(crate) is_reproducible: bool,
}

/// Where the build's description came from.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct ConfigSource {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) uri: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) digest: DigestSet,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) path: String,
}

/// What was asked.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Parameters {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) frontend: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) args: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) secrets: Vec<Access>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) ssh: Vec<Access>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) locals: Vec<Local>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) inputs: BTreeMap<String, Request>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) root: Option<Box<Request>>,
    #[serde(rename = "compatibilityVersion", skip_serializing_if = "Option::is_none")]
    pub(crate) compatibility_version: Option<u32>,
}

/// Another request.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Request {
    #[serde(rename = "configSource")]
    pub(crate) config_source: ConfigSource,
    pub(crate) request: Parameters,
}

/// A secret or an SSH agent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Access {
    pub(crate) id: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) optional: bool,
}

/// A client's directory.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Local {
    pub(crate) name: String,
}

/// What BuildKit adds to the metadata.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct MoreMetadata {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) vcs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) source: Option<SourceMap>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) layers: BTreeMap<String, Vec<Vec<Descriptor>>>,
}

impl Provenance {
    /// As SLSA v1.
    pub(crate) fn slsa_1(&self) -> impl Serialize {
        Slsa1 {
            build_definition: Definition1 {
                build_type: BUILD_TYPE_1,
                resolved_dependencies: &self.dependencies,
                external_parameters: External1 { config_source: &self.config_source, request: &self.request },
                internal_parameters: Internal1 {
                    build_config: self.build_config.as_ref(),
                    builder_platform: &self.platform,
                    dockerfile_version: self.dockerfile_version.as_deref(),
                    machine: &self.machine,
                },
            },
            run_details: Run1 {
                builder: Builder { id: &self.builder_id },
                metadata: Metadata1 {
                    invocation_id: &self.invocation,
                    started_on: &self.started,
                    finished_on: &self.finished,
                    buildkit_metadata: &self.more,
                    buildkit_hermetic: self.is_hermetic,
                    buildkit_completeness: Complete1 {
                        request: self.has_request,
                        resolved_dependencies: self.has_dependencies,
                    },
                    buildkit_reproducible: self.is_reproducible,
                },
            },
        }
    }

    /// As SLSA v0.2.
    pub(crate) fn slsa_02(&self) -> impl Serialize {
        Slsa02 {
            builder: Builder { id: &self.builder_id },
            build_type: BUILD_TYPE_02,
            materials: &self.dependencies,
            invocation: Invocation02 {
                config_source: ConfigSource02 {
                    uri: &self.config_source.uri,
                    digest: &self.config_source.digest,
                    entry_point: &self.config_source.path,
                },
                parameters: &self.request,
                environment: Environment02 {
                    platform: &self.platform,
                    dockerfile_version: self.dockerfile_version.as_deref(),
                    machine: &self.machine,
                },
            },
            build_config: self.build_config.as_ref(),
            metadata: Metadata02 {
                build_invocation_id: &self.invocation,
                build_started_on: &self.started,
                build_finished_on: &self.finished,
                completeness: Complete02 {
                    parameters: self.has_request,
                    environment: true,
                    materials: self.has_dependencies,
                },
                reproducible: self.is_reproducible,
                more: &self.more,
                hermetic: self.is_hermetic,
            },
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Slsa1<'a> {
    build_definition: Definition1<'a>,
    run_details: Run1<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Definition1<'a> {
    build_type: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    resolved_dependencies: &'a [Dependency],
    external_parameters: External1<'a>,
    internal_parameters: Internal1<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct External1<'a> {
    config_source: &'a ConfigSource,
    request: &'a Parameters,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Internal1<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    build_config: Option<&'a BuildConfig>,
    builder_platform: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    dockerfile_version: Option<&'a str>,
    #[serde(flatten)]
    machine: &'a Map<String, Value>,
}

#[derive(Serialize)]
struct Run1<'a> {
    builder: Builder<'a>,
    metadata: Metadata1<'a>,
}

#[derive(Serialize)]
struct Builder<'a> {
    id: &'a str,
}

#[derive(Serialize)]
struct Metadata1<'a> {
    #[serde(rename = "invocationId")]
    invocation_id: &'a str,
    #[serde(rename = "startedOn")]
    started_on: &'a Timestamp,
    #[serde(rename = "finishedOn")]
    finished_on: &'a Timestamp,
    buildkit_metadata: &'a MoreMetadata,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    buildkit_hermetic: bool,
    buildkit_completeness: Complete1,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    buildkit_reproducible: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Complete1 {
    request: bool,
    resolved_dependencies: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Slsa02<'a> {
    builder: Builder<'a>,
    build_type: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    materials: &'a [Dependency],
    invocation: Invocation02<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    build_config: Option<&'a BuildConfig>,
    metadata: Metadata02<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Invocation02<'a> {
    config_source: ConfigSource02<'a>,
    parameters: &'a Parameters,
    environment: Environment02<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ConfigSource02<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    uri: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    digest: &'a DigestSet,
    #[serde(skip_serializing_if = "str::is_empty")]
    entry_point: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Environment02<'a> {
    platform: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    dockerfile_version: Option<&'a str>,
    #[serde(flatten)]
    machine: &'a Map<String, Value>,
}

#[derive(Serialize)]
struct Metadata02<'a> {
    #[serde(rename = "buildInvocationID")]
    build_invocation_id: &'a str,
    #[serde(rename = "buildStartedOn")]
    build_started_on: &'a Timestamp,
    #[serde(rename = "buildFinishedOn")]
    build_finished_on: &'a Timestamp,
    completeness: Complete02,
    reproducible: bool,
    #[serde(rename = "https://mobyproject.org/buildkit@v1#metadata")]
    more: &'a MoreMetadata,
    #[serde(
        rename = "https://mobyproject.org/buildkit@v1#hermetic",
        skip_serializing_if = "std::ops::Not::not"
    )]
    hermetic: bool,
}

#[derive(Serialize)]
struct Complete02 {
    parameters: bool,
    environment: bool,
    materials: bool,
}
