//! What is kept of a build.

use std::{collections::BTreeMap, time::SystemTime};

use lapstrake_builder_progress::{Event, StatusResponse, from_response};
use lapstrake_layerstore_oci::Digest;
use serde::{Deserialize, Serialize};

use crate::{AttachmentRecord, MissReason};

/// Most vertices of a build that are recorded; the log has them all.
const VERTICES: usize = 100_000;

/// Where a build stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BuildStatus {
    /// It is being built.
    Running,
    /// It ended well.
    Completed,
    /// It failed.
    Error,
    /// Its client gave up or went away.
    Canceled,
    /// The daemon ended while it ran.
    Interrupted,
}

impl BuildStatus {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Error => "error",
            Self::Canceled => "canceled",
            Self::Interrupted => "interrupted",
        }
    }
}

/// A build in short. Holds no values of build-args and no credentials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildSummary {
    /// Identity; also the name of its log's file.
    pub id: String,
    /// What it is called in lists.
    pub name: String,
    /// Where it stands.
    pub status: BuildStatus,
    /// When it was asked for.
    #[serde(with = "nanos")]
    pub created: SystemTime,
    /// When it ended.
    #[serde(with = "optional_nanos")]
    pub completed: Option<SystemTime>,
    /// Why it failed.
    pub error: Option<String>,
    /// What was built: `dockerfile.v0`, or nothing for a graph.
    pub frontend: String,
    /// The Dockerfile's path.
    pub dockerfile: String,
    /// The stage that was asked for.
    pub target: Option<String>,
    /// Where its files came from, without credentials.
    pub context: Option<String>,
    /// The platforms that were asked for.
    pub platforms: Vec<String>,
    /// Names of build-args that were given.
    pub build_args: Vec<String>,
    /// What was left behind: `image`, `local`, …
    pub output: String,
    /// Names of the image that were asked for.
    pub names: Vec<String>,
    /// The image that was made.
    pub image: Option<String>,
    /// Vertices in all.
    pub total_steps: u64,
    /// Vertices that ended.
    pub completed_steps: u64,
    /// Vertices whose result came from the cache.
    pub cached_steps: u64,
    /// Warnings.
    pub warnings: u64,
    /// Bytes of its log on disk; `None` without a log.
    pub log_bytes: Option<u64>,
    /// What was asked of the frontend, by BuildKit's names; what may be secret is masked.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    /// What was to be left behind, by BuildKit's names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<OutputRecord>,
    /// What the client was answered, by BuildKit's names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub response: BTreeMap<String, String>,
    /// What its outputs left, by number of the output: indexes, manifests and configs, which are there as long as somebody else keeps them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub results: BTreeMap<u32, ResultRecord>,
    /// As what gRPC's clients were told of the failure (`google.rpc.Code`).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failure_code: i32,
    /// Its log as it is told to others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<LogRecord>,
    /// Documents that are kept with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<AttachmentRecord>,
    /// Whether it is kept until somebody removes it.
    #[serde(skip)]
    pub pinned: bool,
    /// How often it was changed after its end.
    #[serde(skip)]
    pub generation: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(number: &i32) -> bool {
    *number == 0
}

/// One thing that was to be left behind.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OutputRecord {
    /// `image`, `local`, ….
    pub kind: String,
    /// What was said of it.
    #[serde(default)]
    pub attrs: BTreeMap<String, String>,
}

/// What an output left, as a descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultRecord {
    /// Its media type.
    pub media_type: String,
    /// Its digest, by which whoever has it knows its length.
    pub digest: String,
    /// Facts about it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A log as BuildKit keeps it (`application/vnd.buildkit.status.v0`): each `StatusResponse` behind its length (u32, little endian).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecord {
    /// Its digest, by which it is found.
    pub digest: String,
    /// Its length.
    pub bytes: u64,
}

/// A vertex as it was last seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VertexRecord {
    /// Digest of the op; for the engine's own work, an identity.
    pub digest: String,
    /// What progress called it.
    pub name: String,
    /// The vertices it waited for.
    pub inputs: Vec<String>,
    /// When work on it began.
    #[serde(with = "optional_nanos")]
    pub started: Option<SystemTime>,
    /// When it ended.
    #[serde(with = "optional_nanos")]
    pub completed: Option<SystemTime>,
    /// Its result came from the cache.
    pub cached: bool,
    /// Why it failed.
    pub error: Option<String>,
    /// Why it was run although there is a cache; empty when it was not, or is no step of a graph.
    pub reasons: Vec<MissReason>,
}

/// A build with all its vertices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildRecord {
    /// In short.
    pub summary: BuildSummary,
    /// Its vertices in order of appearance.
    pub vertices: Vec<VertexRecord>,
}

/// What events add up to.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    vertices: Vec<VertexRecord>,
    by_digest: BTreeMap<Digest, usize>,
    warnings: u64,
}

impl Tally {
    pub(crate) fn take(&mut self, response: StatusResponse) {
        for event in from_response(response) {
            match event {
                Event::Vertex(state) => {
                    let record = VertexRecord {
                        digest: state.digest.to_string(),
                        name: state.name,
                        inputs: state.inputs.iter().map(Digest::to_string).collect(),
                        started: state.started,
                        completed: state.completed,
                        cached: state.cached,
                        error: state.error,
                        reasons: Vec::new(),
                    };
                    match self.by_digest.get(&state.digest) {
                        Some(at) => self.vertices[*at] = record,
                        None if self.vertices.len() < VERTICES => {
                            self.by_digest.insert(state.digest, self.vertices.len());
                            self.vertices.push(record);
                        }
                        None => {}
                    }
                }
                Event::Warning(_) => self.warnings += 1,
                Event::Status(_) | Event::Log(_) => {}
            }
        }
    }

    /// Counts into `summary`; the vertices with their reasons.
    pub(crate) fn finish(
        mut self,
        summary: &mut BuildSummary,
        reasons: impl Fn(&Digest) -> Vec<MissReason>,
    ) -> Vec<VertexRecord> {
        for (digest, at) in &self.by_digest {
            let vertex = &mut self.vertices[*at];
            if !vertex.cached {
                vertex.reasons = reasons(digest);
            }
        }
        let count = |which: fn(&VertexRecord) -> bool| {
            self.vertices.iter().filter(|vertex| which(vertex)).count() as u64
        };
        summary.total_steps = self.vertices.len() as u64;
        summary.completed_steps = count(|vertex| vertex.completed.is_some());
        summary.cached_steps = count(|vertex| vertex.cached);
        summary.warnings = self.warnings;
        self.vertices
    }
}

/// Times as nanoseconds since 1970.
pub(crate) mod nanos {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn of(time: SystemTime) -> i64 {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    }

    pub(crate) fn time(nanos: i64) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
    }

    pub(super) fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(of(*time))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        i64::deserialize(deserializer).map(time)
    }
}

mod optional_nanos {
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::nanos;

    #[allow(clippy::ref_option)] // serde's signature
    pub(super) fn serialize<S: Serializer>(
        time: &Option<SystemTime>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        time.map(nanos::of).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<SystemTime>, D::Error> {
        Ok(Option::<i64>::deserialize(deserializer)?.map(nanos::time))
    }
}
