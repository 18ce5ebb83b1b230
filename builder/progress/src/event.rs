//! Typed events, and their form as BuildKit's `StatusResponse`.

use std::{
    borrow::Cow,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lapstrake_api_proto::{control as pb, google::protobuf::Timestamp};
use lapstrake_layerstore_oci::Digest;

use crate::redact;

/// Vertices that a display should fold into one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgressGroup {
    /// Identity of the group within the build.
    pub id: String,
    /// What the display calls it.
    pub name: String,
    /// Whether members may be weak, as in BuildKit's proto.
    pub weak: bool,
}

/// The state of a vertex, sent whole at each change; the last one sent counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VertexState {
    /// Which vertex.
    pub digest: Digest,
    /// What the display calls it, such as `[stage-0 2/3] RUN make`.
    pub name: String,
    /// The vertices it waits for.
    pub inputs: Vec<Digest>,
    /// When work on it began.
    pub started: Option<SystemTime>,
    /// When it ended, well or not.
    pub completed: Option<SystemTime>,
    /// Its result came from the cache.
    pub cached: bool,
    /// Why it failed.
    pub error: Option<String>,
    /// The group it is shown in.
    pub group: Option<ProgressGroup>,
}

impl VertexState {
    /// A vertex on which no work has begun. Credentials in URLs of its name are masked.
    pub fn pending(digest: Digest, name: impl Into<String>, inputs: Vec<Digest>) -> Self {
        let name = name.into();
        let name = match redact(&name) {
            Cow::Borrowed(_) => name,
            Cow::Owned(masked) => masked,
        };
        Self { digest, name, inputs, started: None, completed: None, cached: false, error: None, group: None }
    }
}

/// How far some part of a vertex's work is, such as one layer's download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Identity of the part within the vertex; also what a display shows.
    pub id: String,
    /// The vertex.
    pub vertex: Digest,
    /// What is being done, such as `downloading`; may be empty.
    pub name: String,
    /// Units done (bytes, or files).
    pub current: u64,
    /// Units in all; 0 when not known.
    pub total: u64,
    /// When this was measured.
    pub timestamp: SystemTime,
    /// When the part began.
    pub started: Option<SystemTime>,
    /// When the part ended.
    pub completed: Option<SystemTime>,
}

/// Which stream of a process some output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output (1).
    Stdout,
    /// Standard error (2).
    Stderr,
}

impl Stream {
    /// The file descriptor's number, as BuildKit sends it.
    pub fn number(self) -> i64 {
        match self {
            Self::Stdout => 1,
            Self::Stderr => 2,
        }
    }
}

/// Output of a vertex's process, as it came: not necessarily whole lines or valid UTF-8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The vertex.
    pub vertex: Digest,
    /// Where it was written.
    pub stream: Stream,
    /// The bytes.
    pub data: Vec<u8>,
    /// When it was read.
    pub timestamp: SystemTime,
}

/// Something that the author of the build should know.
#[derive(Debug, Clone, PartialEq)]
pub struct Warning {
    /// The vertex it belongs to.
    pub vertex: Digest,
    /// 1 is serious, larger is less so, as in BuildKit.
    pub level: i64,
    /// One line.
    pub short: Vec<u8>,
    /// More lines.
    pub detail: Vec<Vec<u8>>,
    /// Where to read about it.
    pub url: String,
    /// The source file that it is about.
    pub source: Option<lapstrake_api_proto::llb::SourceInfo>,
    /// Where in the source.
    pub ranges: Vec<lapstrake_api_proto::llb::Range>,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A vertex appeared or changed.
    Vertex(VertexState),
    /// A part of a vertex's work moved on.
    Status(Status),
    /// A process wrote.
    Log(Log),
    /// The author should know something.
    Warning(Warning),
}

fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
    }
}

fn time(stamp: &Timestamp) -> SystemTime {
    let seconds = u64::try_from(stamp.seconds).unwrap_or(0);
    let nanos = u32::try_from(stamp.nanos).unwrap_or(0);
    UNIX_EPOCH.checked_add(Duration::new(seconds, nanos.min(999_999_999))).unwrap_or(UNIX_EPOCH)
}

/// Packs events into one message, in the order BuildKit's clients expect: states before what refers to them.
pub fn to_response<'a>(events: impl IntoIterator<Item = &'a Event>) -> pb::StatusResponse {
    let mut response = pb::StatusResponse::default();
    for event in events {
        match event {
            Event::Vertex(state) => response.vertexes.push(pb::Vertex {
                digest: state.digest.to_string(),
                inputs: state.inputs.iter().map(Digest::to_string).collect(),
                name: state.name.clone(),
                cached: state.cached,
                started: state.started.map(timestamp),
                completed: state.completed.map(timestamp),
                error: state.error.clone().unwrap_or_default(),
                progress_group: state.group.as_ref().map(|group| lapstrake_api_proto::llb::ProgressGroup {
                    id: group.id.clone(),
                    name: group.name.clone(),
                    weak: group.weak,
                }),
            }),
            Event::Status(status) => response.statuses.push(pb::VertexStatus {
                id: status.id.clone(),
                vertex: status.vertex.to_string(),
                name: status.name.clone(),
                current: i64::try_from(status.current).unwrap_or(i64::MAX),
                total: i64::try_from(status.total).unwrap_or(i64::MAX),
                timestamp: Some(timestamp(status.timestamp)),
                started: status.started.map(timestamp),
                completed: status.completed.map(timestamp),
            }),
            Event::Log(log) => response.logs.push(pb::VertexLog {
                vertex: log.vertex.to_string(),
                timestamp: Some(timestamp(log.timestamp)),
                stream: log.stream.number(),
                msg: log.data.clone(),
            }),
            Event::Warning(warning) => response.warnings.push(pb::VertexWarning {
                vertex: warning.vertex.to_string(),
                level: warning.level,
                short: warning.short.clone(),
                detail: warning.detail.clone(),
                url: warning.url.clone(),
                info: warning.source.clone(),
                ranges: warning.ranges.clone(),
            }),
        }
    }
    response
}

/// Unpacks a message. Events with a digest that is none are dropped: they cannot belong to a vertex.
pub fn from_response(response: pb::StatusResponse) -> Vec<Event> {
    let vertexes = response.vertexes.into_iter().filter_map(|vertex| {
        Some(Event::Vertex(VertexState {
            digest: vertex.digest.parse().ok()?,
            name: vertex.name,
            inputs: vertex.inputs.iter().filter_map(|input| input.parse().ok()).collect(),
            started: vertex.started.as_ref().map(time),
            completed: vertex.completed.as_ref().map(time),
            cached: vertex.cached,
            error: (!vertex.error.is_empty()).then_some(vertex.error),
            group: vertex.progress_group.map(|group| ProgressGroup {
                id: group.id,
                name: group.name,
                weak: group.weak,
            }),
        }))
    });
    let statuses = response.statuses.into_iter().filter_map(|status| {
        Some(Event::Status(Status {
            id: status.id,
            vertex: status.vertex.parse().ok()?,
            name: status.name,
            current: u64::try_from(status.current).unwrap_or(0),
            total: u64::try_from(status.total).unwrap_or(0),
            timestamp: status.timestamp.as_ref().map_or(UNIX_EPOCH, time),
            started: status.started.as_ref().map(time),
            completed: status.completed.as_ref().map(time),
        }))
    });
    let logs = response.logs.into_iter().filter_map(|log| {
        Some(Event::Log(Log {
            vertex: log.vertex.parse().ok()?,
            stream: if log.stream == 1 { Stream::Stdout } else { Stream::Stderr },
            data: log.msg,
            timestamp: log.timestamp.as_ref().map_or(UNIX_EPOCH, time),
        }))
    });
    let warnings = response.warnings.into_iter().filter_map(|warning| {
        Some(Event::Warning(Warning {
            vertex: warning.vertex.parse().ok()?,
            level: warning.level,
            short: warning.short,
            detail: warning.detail,
            url: warning.url,
            source: warning.info,
            ranges: warning.ranges,
        }))
    });
    vertexes.chain(statuses).chain(logs).chain(warnings).collect()
}
