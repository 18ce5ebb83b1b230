//! Errors as gRPC has them, with the details that BuildKit's clients read: the failed vertex, lines of the source, exit codes, ….

use lapstrake_api_proto::{
    google::{protobuf::Any, rpc},
    sourcepolicy::PolicyAction,
};
use lapstrake_builder_dockerfile::{Error as DockerfileError, subrequest::source_json};
use prost::Message as _;
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::{EngineError, ErrorKind, Place, ShownStep, history::chain, left::FailedPart};

/// Most bytes of an op that a client is told: an answer's end are headers, of which there are not to be many.
const MAX_SOLVE: usize = 256 << 10;

/// An error as BuildKit's clients get it: its code and words, and typed details (`solver/errdefs`, `frontend/gateway/pb`).
pub fn status_of(error: &EngineError) -> Status {
    let status = rpc_status(error);
    let code = Code::from_i32(status.code);
    Status::with_details(code, status.message.clone(), status.encode_to_vec().into())
}

/// The same as a message.
pub(crate) fn rpc_status(error: &EngineError) -> rpc::Status {
    // The outermost first.
    let mut details = vec![detail("stack.Stack+json", whence().to_string())];
    details.extend(error.shown().and_then(solve));
    if let Some(fault) = error.fault() {
        // The cause is the outermost that a client shows.
        for Place { source, ranges } in fault.places.iter().rev() {
            details.push(detail("errdefs.Source+json", source_json(source, ranges)));
        }
    }
    if let Some(vertex) = error.failed_vertex() {
        details.push(detail("errdefs.Vertex+json", json!({ "digest": vertex.as_str() }).to_string()));
    }
    if let Some((_, code, _)) = error.failed_process() {
        details.push(detail("gatewayapi.ExitMessage+json", json!({ "Code": code }).to_string()));
    }
    let messages = error.policy_messages();
    if !messages.is_empty() {
        let messages: Vec<Value> = messages.iter().map(|message| json!({ "message": message })).collect();
        let decision = json!({ "action": PolicyAction::Deny as i32, "denyMessages": messages });
        details.push(detail("policysession.DecisionResponse+json", decision.to_string()));
    }
    let mut code = code_of(error.kind());
    match error.inner() {
        EngineError::Returned(returned) => {
            // What it said outermost, as it came, is the innermost to who reads that.
            details.extend(returned.details.iter().rev().cloned());
            code = Code::from_i32(returned.code);
        }
        EngineError::Dockerfile(DockerfileError::UnknownSubrequest(name)) => {
            details.push(detail("errdefs.Subrequest+json", json!({ "name": name }).to_string()));
            code = Code::Unimplemented;
        }
        EngineError::Taken { .. } => code = Code::AlreadyExists,
        EngineError::FrontendCap { name } => {
            details.push(detail("errdefs.FrontendCap+json", json!({ "name": name }).to_string()));
        }
        _ => {}
    }
    if code == Code::Ok {
        code = Code::Unknown;
    }
    rpc::Status { code: code as i32, message: chain(error), details }
}

/// Who fails, as a stack without frames: clients print it with `--debug`.
fn whence() -> Value {
    json!({ "cmdline": ["lapstrake"], "pid": std::process::id(), "version": env!("CARGO_PKG_VERSION") })
}

/// `errdefs.Solve`. An op that is too large for the end of an answer is not told.
fn solve(step: &ShownStep) -> Option<Any> {
    let ShownStep { op, description, inputs, ends, part } = step;
    let mut told = json!({ "inputIDs": inputs, "mountIDs": ends, "op": op, "description": description });
    match part {
        Some(FailedPart::Action(index)) => told["file"] = json!({ "index": index }),
        Some(FailedPart::Content(index)) => told["cache"] = json!({ "index": index }),
        None => {}
    }
    let told = told.to_string();
    (told.len() <= MAX_SOLVE).then(|| detail("errdefs.Solve+json", told))
}

/// How a process of a container ended that did not end well.
pub(super) fn exit_status(code: i32) -> rpc::Status {
    let details = vec![detail("gatewayapi.ExitMessage+json", json!({ "Code": code }).to_string())];
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

/// Go's JSON of a message, under the name that BuildKit registers it by.
fn detail(name: &str, value: impl Into<Vec<u8>>) -> Any {
    let value = value.into();
    Any { type_url: format!("github.com/moby/buildkit/{name}"), value }
}
