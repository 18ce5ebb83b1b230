//! A build's trace: its vertices as spans of OpenTelemetry, in the JSON in which BuildKit keeps them (`application/vnd.buildkit.otlp.json.v0`: span
//! stubs of OpenTelemetry's Go SDK, one after the other), as `buildx history trace` reads it.

use std::{collections::BTreeMap, time::SystemTime};

use lapstrake_layerstore_oci::Digest;
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{BuildRecord, VertexRecord, describe};

/// `trace.SpanKindInternal`
const INTERNAL: u8 = 1;
/// `codes.Unset` and `codes.Error`
const UNSET: u8 = 0;
const FAILED: u8 = 1;

/// The spans of a build: itself, and below it each vertex that was begun.
pub(crate) fn trace(record: &BuildRecord) -> Vec<u8> {
    let summary = &record.summary;
    let hash = Digest::sha256_of(format!("trace of {}", summary.id));
    // Ids are made of the build's: the trace is the same whenever it is made.
    let trace = &hash.hex()[..32];
    let root = span_id(&summary.id, "");
    let end = summary.completed.unwrap_or(summary.created);
    let begun: Vec<&VertexRecord> =
        record.vertices.iter().filter(|vertex| vertex.started.is_some()).collect();
    let mut text = Vec::new();
    let mut say = |span: Value| {
        // A map of JSON values has no failing serializer, and a vector takes everything.
        let _ = serde_json::to_writer_pretty(&mut text, &span);
        text.push(b'\n');
    };
    let about = [
        ("lapstrake.build", summary.id.clone()),
        ("lapstrake.name", summary.name.clone()),
        ("lapstrake.status", summary.status.as_str().to_owned()),
    ];
    say(span(
        "build",
        (trace, &root, None),
        (summary.created, end),
        &about.map(|(key, value)| (key.to_owned(), value)),
        summary.error.as_deref(),
        begun.len(),
    ));
    for vertex in begun {
        let mut about = vec![("vertex".to_owned(), vertex.digest.clone())];
        if vertex.cached {
            about.push(("lapstrake.cached".to_owned(), "true".to_owned()));
        }
        if !vertex.reasons.is_empty() {
            about.push(("lapstrake.reasons".to_owned(), describe(&vertex.reasons)));
        }
        let start = vertex.started.unwrap_or(summary.created);
        let times = (start, vertex.completed.unwrap_or(end).max(start));
        let id = span_id(&summary.id, &vertex.digest);
        say(span(&vertex.name, (trace, &id, Some(&root)), times, &about, vertex.error.as_deref(), 0));
    }
    text
}

fn span_id(build: &str, vertex: &str) -> String {
    Digest::sha256_of(format!("span of {build} {vertex}")).hex()[..16].to_owned()
}

fn span(
    name: &str,
    (trace, id, parent): (&str, &str, Option<&str>),
    (start, end): (SystemTime, SystemTime),
    about: &[(String, String)],
    error: Option<&str>,
    children: usize,
) -> Value {
    let context = |id: Option<&str>| {
        json!({
            "TraceID": if id.is_some() { trace.to_owned() } else { "0".repeat(32) },
            "SpanID": id.map_or_else(|| "0".repeat(16), str::to_owned),
            "TraceFlags": if id.is_some() { "01" } else { "00" },
            "TraceState": "",
            "Remote": false,
        })
    };
    let time = |time: SystemTime| OffsetDateTime::from(time).format(&Rfc3339).unwrap_or_default();
    let text = |key: &str, value: &str| json!({"Key": key, "Value": {"Type": "STRING", "Value": value}});
    let attributes: BTreeMap<&str, &str> =
        about.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    json!({
        "Name": name,
        "SpanContext": context(Some(id)),
        "Parent": context(parent),
        "SpanKind": INTERNAL,
        "StartTime": time(start),
        "EndTime": time(end),
        "Attributes": attributes.into_iter().map(|(key, value)| text(key, value)).collect::<Vec<_>>(),
        "Events": null,
        "Links": null,
        "Status": { "Code": if error.is_some() { FAILED } else { UNSET }, "Description": error.unwrap_or_default() },
        "DroppedAttributes": 0,
        "DroppedEvents": 0,
        "DroppedLinks": 0,
        "ChildSpanCount": children,
        "Resource": [text("service.name", "lapstrake")],
        "InstrumentationLibrary": { "Name": "lapstrake", "Version": env!("CARGO_PKG_VERSION"), "SchemaURL": "", "Attributes": null },
    })
}
