//! Which questions there are.

use serde::Serialize;

use super::{Reply, Subrequest, json, table::table};

#[derive(Serialize)]
struct Request {
    name: &'static str,
    version: &'static str,
    #[serde(rename = "type")]
    kind: &'static str,
    description: &'static str,
    opts: Option<Vec<Named>>,
    inputs: Option<Vec<Named>>,
    metadata: Vec<Named>,
    refs: Option<Vec<Named>>,
}

#[derive(Serialize)]
struct Named {
    name: &'static str,
    description: &'static str,
}

/// BuildKit does not list `frontend.lint`, and clients know it without.
pub(super) fn describe() -> Reply {
    let requests = [
        request(Subrequest::Outline, "List all parameters current build target supports", Some(true)),
        request(Subrequest::Targets, "List all targets current build supports", Some(false)),
        request(Subrequest::Describe, "List available subrequest types", None),
    ];
    let mut rows = vec![["NAME", "VERSION", "DESCRIPTION"].map(str::to_owned)];
    rows.extend(requests.iter().map(|request| {
        let name = request.name.strip_prefix("frontend.").unwrap_or(request.name);
        [name, request.version, request.description].map(str::to_owned)
    }));
    Reply::new(json::encode(&requests), table(&rows, 1))
}

/// `target` says whether it takes one; `None` is how BuildKit leaves it open.
fn request(request: Subrequest, description: &'static str, target: Option<bool>) -> Request {
    let named = |name, description| Named { name, description };
    Request {
        name: request.id(),
        version: "1.0.0",
        kind: "rpc",
        description,
        opts: target.map(|takes| takes.then(|| named("target", "Target build stage")).into_iter().collect()),
        inputs: None,
        metadata: vec![named("result.json", ""), named("result.txt", "")],
        refs: None,
    }
}
