//! Progress as JSON, one object per batch, in the form of BuildKit's `--progress rawjson` (`client.SolveStatus`).

use serde_json::{Map, Value, json};

use crate::StatusResponse;

/// One line for a batch of events.
pub fn rawjson(response: &StatusResponse) -> String {
    let mut out = Map::new();
    let mut put = |name: &str, items: Vec<Value>| {
        if !items.is_empty() {
            out.insert(name.to_owned(), Value::Array(items));
        }
    };
    put("vertexes", response.vertexes.iter().map(vertex).collect());
    put("statuses", response.statuses.iter().map(status).collect());
    put("logs", response.logs.iter().map(log).collect());
    put("warnings", response.warnings.iter().map(warning).collect());
    let mut line = Value::Object(out).to_string();
    line.push('\n');
    line
}

/// An object of the fields that are not left out.
fn object<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    fields
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect::<Map<_, _>>()
        .into()
}

fn some<T: Default + PartialEq + Into<Value>>(value: T) -> Option<Value> {
    (value != T::default()).then(|| value.into())
}

fn vertex(vertex: &lapstrake_api_proto::control::Vertex) -> Value {
    let group = vertex.progress_group.as_ref();
    object([
        ("digest", some(vertex.digest.clone())),
        ("inputs", some(vertex.inputs.clone())),
        ("name", some(vertex.name.clone())),
        ("started", vertex.started.as_ref().map(time)),
        ("completed", vertex.completed.as_ref().map(time)),
        ("cached", some(vertex.cached)),
        ("error", some(vertex.error.clone())),
        (
            "progressGroup",
            group.map(|group| json!({ "id": group.id, "name": group.name, "weak": group.weak })),
        ),
    ])
}

fn status(status: &lapstrake_api_proto::control::VertexStatus) -> Value {
    object([
        ("id", Some(json!(status.id))),
        ("vertex", some(status.vertex.clone())),
        ("name", some(status.name.clone())),
        ("total", some(status.total)),
        ("current", Some(json!(status.current))),
        ("timestamp", status.timestamp.as_ref().map(time)),
        ("started", status.started.as_ref().map(time)),
        ("completed", status.completed.as_ref().map(time)),
    ])
}

fn log(log: &lapstrake_api_proto::control::VertexLog) -> Value {
    object([
        ("vertex", some(log.vertex.clone())),
        ("stream", some(log.stream)),
        ("data", Some(json!(base64(&log.msg)))),
        ("timestamp", log.timestamp.as_ref().map(time)),
    ])
}

fn warning(warning: &lapstrake_api_proto::control::VertexWarning) -> Value {
    let detail: Vec<String> = warning.detail.iter().map(|line| base64(line)).collect();
    object([
        ("vertex", some(warning.vertex.clone())),
        ("level", some(warning.level)),
        ("short", Some(json!(base64(&warning.short)))),
        ("detail", some(detail)),
        ("url", some(warning.url.clone())),
        ("sourceInfo", warning.info.as_ref().map(source)),
        ("range", (!warning.ranges.is_empty()).then(|| warning.ranges.iter().map(range).collect())),
    ])
}

fn source(info: &lapstrake_api_proto::llb::SourceInfo) -> Value {
    object([
        ("filename", some(info.filename.clone())),
        ("data", (!info.data.is_empty()).then(|| json!(base64(&info.data)))),
        ("language", some(info.language.clone())),
    ])
}

fn range(range: &lapstrake_api_proto::llb::Range) -> Value {
    let position = |at: &lapstrake_api_proto::llb::Position| {
        object([("line", some(at.line)), ("character", some(at.character))])
    };
    object([("start", range.start.as_ref().map(position)), ("end", range.end.as_ref().map(position))])
}

/// Bytes, as Go's JSON writes them.
fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn time(stamp: &lapstrake_api_proto::google::protobuf::Timestamp) -> Value {
    use time::{OffsetDateTime, format_description::well_known::Rfc3339};
    let nanos = i128::from(stamp.seconds) * 1_000_000_000 + i128::from(stamp.nanos);
    let text =
        OffsetDateTime::from_unix_timestamp_nanos(nanos).ok().and_then(|time| time.format(&Rfc3339).ok());
    // What is no time of any calendar is Go's zero time.
    Value::String(text.unwrap_or_else(|| "0001-01-01T00:00:00Z".to_owned()))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use lapstrake_layerstore_oci::Digest;

    use super::*;
    use crate::{Event, Log, Stream, VertexState, to_response};

    #[test]
    fn fields_are_those_of_buildkits_client() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_500);
        let vertex = Digest::sha256_of("v");
        let state = VertexState {
            started: Some(time),
            cached: true,
            ..VertexState::pending(vertex.clone(), "RUN true", vec![Digest::sha256_of("i")])
        };
        let at = |line| Some(lapstrake_api_proto::llb::Position { line, character: 0 });
        let warning = Event::Warning(crate::Warning {
            vertex: vertex.clone(),
            level: 1,
            short: b"w".to_vec(),
            detail: vec![b"d".to_vec()],
            url: "u".to_owned(),
            source: Some(lapstrake_api_proto::llb::SourceInfo {
                filename: "Dockerfile".to_owned(),
                data: b"FROM x".to_vec(),
                language: "Dockerfile".to_owned(),
                ..Default::default()
            }),
            ranges: vec![lapstrake_api_proto::llb::Range { start: at(1), end: at(2) }],
        });
        insta::assert_snapshot!(rawjson(&to_response(&[warning])), @r#"{"warnings":[{"vertex":"sha256:4c94485e0c21ae6c41ce1dfe7b6bfaceea5ab68e40a2476f50208e526f506080","level":1,"short":"dw==","detail":["ZA=="],"url":"u","sourceInfo":{"filename":"Dockerfile","data":"RlJPTSB4","language":"Dockerfile"},"range":[{"start":{"line":1},"end":{"line":2}}]}]}"#);
        let log = Log { vertex, stream: Stream::Stderr, data: b"hi".to_vec(), timestamp: time };
        insta::assert_snapshot!(rawjson(&to_response(&[Event::Vertex(state), Event::Log(log)])), @r#"{"vertexes":[{"digest":"sha256:4c94485e0c21ae6c41ce1dfe7b6bfaceea5ab68e40a2476f50208e526f506080","inputs":["sha256:de7d1b721a1e0632b7cf04edf5032c8ecffa9f9a08492152b926f1a5a7e765d7"],"name":"RUN true","started":"2023-11-14T22:13:20.5Z","cached":true}],"logs":[{"vertex":"sha256:4c94485e0c21ae6c41ce1dfe7b6bfaceea5ab68e40a2476f50208e526f506080","stream":2,"data":"aGk=","timestamp":"2023-11-14T22:13:20.5Z"}]}"#);
    }
}
