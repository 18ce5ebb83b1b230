//! Questions about a Dockerfile that are answered instead of a build (frontend option `requestid`): what is doubtful in it (`--check`), what it takes
//! (`--call=outline`), what it can build (`--call=targets`), and which questions there are.
//!
//! An answer is what BuildKit's clients expect: `result.json`, `result.txt`, `version` and, of a check, `result.statuscode`. They print the
//! text, or read the JSON; both are BuildKit's to the letter.

mod describe;
mod json;
mod lint;
mod outline;
mod table;
mod targets;

pub use json::source_json;

use std::collections::BTreeMap;

use crate::Error;
use crate::facts::{Facts, Need};
use crate::lint::Warning;
use crate::options::DockerfileOptions;

/// A question about a Dockerfile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Subrequest {
    /// Which questions there are.
    Describe,
    /// What is doubtful: all rules, on all stages that the target needs; without a target, on all stages.
    Lint,
    /// What the target takes: build arguments, secrets, ssh agents.
    Outline,
    /// Which stages can be built.
    Targets,
}

impl Subrequest {
    /// Every question.
    pub const ALL: [Subrequest; 4] =
        [Subrequest::Outline, Subrequest::Targets, Subrequest::Lint, Subrequest::Describe];

    /// The question of this `requestid`.
    pub fn parse(id: &str) -> Result<Subrequest, Error> {
        let found = Subrequest::ALL.into_iter().find(|request| request.id() == id);
        found.ok_or_else(|| Error::UnknownSubrequest(id.to_owned()))
    }

    /// Its `requestid`.
    pub fn id(self) -> &'static str {
        match self {
            Subrequest::Describe => "frontend.subrequests.describe",
            Subrequest::Lint => "frontend.lint",
            Subrequest::Outline => "frontend.outline",
            Subrequest::Targets => "frontend.targets",
        }
    }
}

/// The answer to a question: results by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reply {
    /// `result.json`, `result.txt`, `version`, `result.statuscode`.
    pub metadata: BTreeMap<String, Vec<u8>>,
    /// How many warnings are in it.
    pub warnings: usize,
    /// For people: why the Dockerfile that was checked cannot be built, and the lines at fault.
    pub problem: Option<String>,
}

impl Reply {
    fn new(json: String, text: String) -> Reply {
        let mut reply = Reply::default();
        reply.put("result.json", json);
        reply.put("result.txt", text);
        // All of them are at their first version.
        reply.put("version", "1.0.0".to_owned());
        reply
    }

    fn put(&mut self, name: &str, value: String) {
        self.metadata.insert(name.to_owned(), value.into_bytes());
    }

    /// A result as text; empty if there is none.
    pub fn text(&self, name: &str) -> String {
        self.metadata.get(name).map(|value| String::from_utf8_lossy(value).into_owned()).unwrap_or_default()
    }
}

/// How far a question is answered.
#[derive(Debug, Clone, PartialEq)]
pub enum SubrequestAnswer {
    /// Find these out, add them to the [`Facts`], and ask again.
    Need(Vec<Need>),
    /// Done.
    Reply(Reply),
}

/// Answers a question. Pure, as [`crate::plan()`] is.
///
/// `warnings` is set to what was doubtful on the way; of a check that is in the answer, and not here.
///
/// Fails where the Dockerfile cannot be understood as far as the question needs; a check does not: there, that is part of the answer.
pub fn answer(
    request: Subrequest,
    options: &DockerfileOptions,
    facts: &Facts,
    warnings: &mut Vec<Warning>,
) -> Result<SubrequestAnswer, Error> {
    warnings.clear();
    match request {
        Subrequest::Describe => Ok(SubrequestAnswer::Reply(describe::describe())),
        Subrequest::Lint => lint::lint(options, facts),
        Subrequest::Outline => outline::outline(options, facts, warnings),
        Subrequest::Targets => targets::targets(facts).map(SubrequestAnswer::Reply),
    }
}
