//! Errors as gRPC has them, with the details that BuildKit's clients read: the failed vertex, lines of the source, exit codes, ….

use base64::Engine as _;
use lapstrake_api_proto::{
    google::{protobuf::Any, rpc},
    sourcepolicy::PolicyAction,
};
use lapstrake_builder_dockerfile::Error as DockerfileError;
use lapstrake_builder_llb::pb;
use prost::Message as _;
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::{EngineError, ErrorKind, history::chain};

/// An error as BuildKit's clients get it: its code and words, and typed details (`solver/errdefs`, `frontend/gateway/pb`).
pub fn status_of(error: &EngineError) -> Status {
    let status = rpc_status(error);
    let code = Code::from_i32(status.code);
    Status::with_details(code, status.message.clone(), status.encode_to_vec().into())
}

/// The same as a message.
pub(crate) fn rpc_status(error: &EngineError) -> rpc::Status {
    let mut details = Vec::new();
    if let Some(fault) = error.fault() {
        // The cause is the outermost that a client shows.
        for place in fault.places.iter().rev() {
            let range = pb::Range {
                start: Some(pb::Position { line: as_line(place.start), character: 0 }),
                end: Some(pb::Position { line: as_line(place.end), character: 0 }),
            };
            details.push(detail("errdefs.Source+json", source(&fault.source, &[range])));
        }
    }
    if let Some(vertex) = error.failed_vertex() {
        details.push(detail("errdefs.Vertex+json", json!({ "digest": vertex.as_str() })));
    }
    if let Some((_, code, _)) = error.failed_process() {
        details.push(detail("gatewayapi.ExitMessage+json", json!({ "Code": code })));
    }
    let messages = error.policy_messages();
    if !messages.is_empty() {
        let messages: Vec<Value> = messages.iter().map(|message| json!({ "message": message })).collect();
        let decision = json!({ "action": PolicyAction::Deny as i32, "denyMessages": messages });
        details.push(detail("policysession.DecisionResponse+json", decision));
    }
    let mut code = code_of(error.kind());
    match error.inner() {
        EngineError::Returned(returned) => {
            // What the frontend said comes first, as it was said first.
            details.splice(0..0, returned.details.iter().cloned());
            code = Code::from_i32(returned.code);
        }
        EngineError::Dockerfile(DockerfileError::UnknownSubrequest(name)) => {
            details.push(detail("errdefs.Subrequest+json", json!({ "name": name })));
            code = Code::Unimplemented;
        }
        EngineError::Taken { .. } => code = Code::AlreadyExists,
        EngineError::FrontendCap { name } => {
            details.push(detail("errdefs.FrontendCap+json", json!({ "name": name })));
        }
        _ => {}
    }
    if code == Code::Ok {
        code = Code::Unknown;
    }
    rpc::Status { code: code as i32, message: chain(error), details }
}

/// How a process of a container ended that did not end well.
pub(super) fn exit_status(code: i32) -> rpc::Status {
    let details = vec![detail("gatewayapi.ExitMessage+json", json!({ "Code": code }))];
    rpc::Status { code: Code::Unknown as i32, message: format!("exit code: {code}"), details }
}

/// BuildKit leaves most of its errors without a code.
fn code_of(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::Canceled => Code::Cancelled,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::Unsupported => Code::Unimplemented,
        ErrorKind::Denied => Code::PermissionDenied,
        _ => Code::Unknown,
    }
}

fn as_line(line: u32) -> i32 {
    i32::try_from(line).unwrap_or(i32::MAX)
}

/// Go's JSON of a message, under the name that BuildKit registers it by.
fn detail(name: &str, value: Value) -> Any {
    let value = value.to_string().into_bytes();
    Any { type_url: format!("github.com/moby/buildkit/{name}"), value }
}

/// `errdefs.Source`, as Go's `encoding/json` writes it.
fn source(info: &pb::SourceInfo, ranges: &[pb::Range]) -> Value {
    let position = |position: &Option<pb::Position>| {
        let pb::Position { line, character } = position.unwrap_or_default();
        let mut map = serde_json::Map::new();
        if line != 0 {
            map.insert("line".to_owned(), line.into());
        }
        if character != 0 {
            map.insert("character".to_owned(), character.into());
        }
        Value::Object(map)
    };
    let range = |range: &pb::Range| json!({ "start": position(&range.start), "end": position(&range.end) });
    json!({
        "info": {
            "filename": info.filename,
            "data": base64::engine::general_purpose::STANDARD.encode(&info.data),
            "language": info.language,
        },
        "ranges": ranges.iter().map(range).collect::<Vec<_>>(),
    })
}
