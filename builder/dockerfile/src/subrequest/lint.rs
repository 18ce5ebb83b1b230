//! What is doubtful in a Dockerfile.

use lapstrake_builder_llb::pb;
use serde::Serialize;

use super::json::{self, Location, SourceInfo};
use super::{Reply, SubrequestAnswer};
use crate::Error;
use crate::excerpt::excerpt_of;
use crate::facts::Facts;
use crate::lint::Warning;
use crate::lower;
use crate::options::DockerfileOptions;

#[derive(Serialize)]
struct Results {
    /// Go's slice of nothing is `null`.
    warnings: Option<Vec<Told>>,
    sources: [SourceInfo; 1],
    #[serde(rename = "buildError", skip_serializing_if = "Option::is_none")]
    error: Option<BuildError>,
}

#[derive(Serialize)]
struct Told {
    #[serde(rename = "ruleName")]
    rule: &'static str,
    description: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    url: &'static str,
    detail: String,
    location: Location,
}

#[derive(Serialize)]
struct BuildError {
    message: String,
    location: Location,
}

pub(super) fn lint(options: &DockerfileOptions, facts: &Facts) -> Result<SubrequestAnswer, Error> {
    let mut warnings = Vec::new();
    let error = match lower::check(options, facts, &mut warnings) {
        Ok(Some(needs)) => return Ok(SubrequestAnswer::Need(needs)),
        Ok(None) => None,
        Err(error) => Some(error),
    };
    let source = lower::source_info(options, facts)?;
    Ok(SubrequestAnswer::Reply(reply(&source, &warnings, error.as_ref())))
}

fn reply(source: &pb::SourceInfo, warnings: &[Warning], error: Option<&Error>) -> Reply {
    let told = |warning: &Warning| Told {
        rule: warning.rule.name(),
        description: warning.rule.description(),
        url: warning.rule.url(),
        detail: warning.message.clone(),
        location: Location::of(&[warning.lines]),
    };
    let results = Results {
        warnings: (!warnings.is_empty()).then(|| warnings.iter().map(told).collect()),
        sources: [SourceInfo::of(source)],
        error: error
            .map(|error| BuildError { message: error.to_string(), location: Location::of(&error.places()) }),
    };
    let mut reply = Reply::new(json::encode(&results), text(source, warnings));
    let status = u8::from(!warnings.is_empty() || error.is_some());
    reply.put("result.statuscode", status.to_string());
    reply.warnings = warnings.len();
    reply.problem = error.map(|error| {
        let file = String::from_utf8_lossy(&source.data);
        format!("{error}\n{}", error.excerpt(&source.filename, &file))
    });
    reply
}

fn text(source: &pb::SourceInfo, warnings: &[Warning]) -> String {
    let file = String::from_utf8_lossy(&source.data);
    let lines: Vec<&str> = file.split('\n').collect();
    let mut sorted: Vec<&Warning> = warnings.iter().collect();
    sorted.sort_by_key(|warning| warning.lines.start);
    let mut out = String::new();
    for warning in sorted {
        out.push_str(&format!("\nWARNING: {}", warning.rule.name()));
        if !warning.rule.url().is_empty() {
            out.push_str(&format!(" - {}", warning.rule.url()));
        }
        out.push_str(&format!("\n{}\n", warning.message));
        out.push_str(&excerpt_of(&source.filename, &lines, &[warning.lines], None));
    }
    out
}
