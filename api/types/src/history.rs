//! Build history: `/lapstrake/v1/builds`. This daemon's own; see `docs/history.md`.

use serde::{Deserialize, Serialize};

/// A list of builds, newest first.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct BuildList {
    /// The builds.
    pub builds: Vec<BuildItem>,
}

/// Builds that were forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BuildsRemoved {
    /// Their ids.
    pub removed: Vec<String>,
}

/// A build in short. Times are RFC 3339.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BuildItem {
    /// Identity.
    pub id: String,
    /// What it is called in lists.
    pub name: String,
    /// `running`, `completed`, `error`, `canceled` or `interrupted`.
    pub status: String,
    /// When it was asked for.
    pub created: String,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed: Option<String>,
    /// Milliseconds from the one to the other; so far, for one that runs.
    pub duration_ms: u64,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// `dockerfile.v0`; empty for a graph.
    pub frontend: String,
    /// The Dockerfile's path.
    pub dockerfile: String,
    /// The stage that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Where its files came from, without credentials, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// The platforms that were asked for.
    pub platforms: Vec<String>,
    /// Names of build-args; values are not kept.
    pub build_args: Vec<String>,
    /// What was left behind: `image`, `local`, ….
    pub output: String,
    /// The image's names that were asked for.
    pub names: Vec<String>,
    /// The image that was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Vertices in all.
    pub total_steps: u64,
    /// Vertices that ended.
    pub completed_steps: u64,
    /// Vertices whose result came from the cache.
    pub cached_steps: u64,
    /// Warnings.
    pub warnings: u64,
    /// Bytes of its log on disk, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_bytes: Option<u64>,
}

/// A build with its vertices.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct BuildDetail {
    /// In short.
    #[serde(flatten)]
    pub item: BuildItem,
    /// In order of appearance.
    pub vertices: Vec<BuildVertex>,
}

/// A vertex of a build.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BuildVertex {
    /// Identity.
    pub digest: String,
    /// What progress called it.
    pub name: String,
    /// The vertices it waited for.
    pub inputs: Vec<String>,
    /// When work on it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<String>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed: Option<String>,
    /// Milliseconds from the one to the other.
    pub duration_ms: u64,
    /// Its result came from the cache.
    pub cached: bool,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Why it was run although there is a cache, the most specific first.
    pub reasons: Vec<BuildReason>,
}

/// Why a vertex was run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct BuildReason {
    /// The reason as a line of text.
    pub text: String,
    /// Its kind, and what belongs to that.
    #[serde(flatten)]
    pub detail: serde_json::Map<String, serde_json::Value>,
}
