//! `--call`, `--check`: questions about a Dockerfile, asked and answered as by docker buildx.

use std::process::ExitCode;

use lapstrake_builder_dockerfile::parse_bool;
use lapstrake_builder_engine::{Reply, Subrequest};

use super::args::BuildArgs;
use crate::error::ProgramError;

/// A question, and how the answer is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Call {
    /// What is asked.
    pub(super) request: Subrequest,
    json: bool,
    ignore_status: bool,
}

/// What the options ask for; `None` for a build.
pub(super) fn call(args: &BuildArgs) -> Result<Option<Call>, ProgramError> {
    match (&args.call, args.check) {
        (Some(text), _) => parse(text),
        (None, Some(true)) => parse("check"),
        (None, _) => Ok(None),
    }
}

fn parse(text: &str) -> Result<Option<Call>, ProgramError> {
    let refuse = |why: String| ProgramError::setting(format!("--call {text}"), why);
    let (mut name, mut json, mut ignore_status) = (None, false, false);
    for field in text.split(',') {
        match field.split_once('=') {
            Some(("format", "json")) => json = true,
            Some(("format", "" | "text")) => json = false,
            Some(("format", other)) => {
                return Err(refuse(format!("format {other:?} is not supported: there are text and json")));
            }
            Some(("ignorestatus", value)) => {
                ignore_status = parse_bool(value)
                    .ok_or_else(|| refuse(format!("ignorestatus {value:?} is neither true nor false")))?;
            }
            Some(_) => {
                return Err(refuse(format!("{field} is not supported: there are format and ignorestatus")));
            }
            None if name.is_none() => name = Some(field),
            None => return Err(refuse("has two methods".to_owned())),
        }
    }
    let name = match name.unwrap_or_default() {
        "" | "build" => return Ok(None),
        "check" => "lint",
        name => name,
    };
    let request = Subrequest::parse(&format!("frontend.{name}")).map_err(|error| {
        refuse(format!("{error}: there are build, check, outline, targets and subrequests.describe"))
    })?;
    Ok(Some(Call { request, json, ignore_status }))
}

/// What is printed for an answer, on standard output and on standard error, and whether it is a failure.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) out: String,
    pub(super) err: String,
    pub(super) failed: bool,
}

impl Call {
    /// The answer, for a terminal or a program.
    pub(super) fn show(self, reply: &Reply) -> Shown {
        let mut shown = Shown { out: String::new(), err: String::new(), failed: false };
        let is_check = self.request == Subrequest::Lint;
        if self.json {
            shown.out = format!("{}\n", reply.text("result.json"));
        } else {
            if is_check && reply.warnings > 0 {
                shown.out = match reply.warnings {
                    1 => "Check complete, 1 warning has been found!\n".to_owned(),
                    count => format!("Check complete, {count} warnings have been found!\n"),
                };
            }
            shown.out.push_str(&reply.text("result.txt"));
            if is_check && reply.warnings == 0 && reply.problem.is_none() {
                shown.out.push_str("Check complete, no warnings found.\n");
            }
        }
        if let Some(problem) = &reply.problem {
            if !self.json && reply.warnings > 0 {
                shown.out.push('\n');
            }
            shown.err = format!("ERROR: {}\n", problem.trim_end());
        }
        let status = reply.text("result.statuscode");
        // What cannot be built is an error whatever the status.
        shown.failed =
            reply.problem.is_some() || (!self.ignore_status && !matches!(status.as_str(), "" | "0"));
        shown
    }
}

impl Shown {
    pub(super) fn print(&self) -> ExitCode {
        crate::say(&self.out);
        eprint!("{}", self.err);
        if self.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Option<Call>, String> {
        parse(text).map_err(|error| error.to_string())
    }

    #[test]
    fn methods_are_those_of_buildx() {
        let call = |request| Call { request, json: false, ignore_status: false };
        assert_eq!(of("build"), Ok(None));
        assert_eq!(of("check"), Ok(Some(call(Subrequest::Lint))));
        assert_eq!(of("lint"), Ok(Some(call(Subrequest::Lint))));
        assert_eq!(of("format=json,outline"), Ok(Some(Call { json: true, ..call(Subrequest::Outline) })));
        assert_eq!(
            of("targets,ignorestatus=true"),
            Ok(Some(Call { ignore_status: true, ..call(Subrequest::Targets) }))
        );
        assert_eq!(of("subrequests.describe"), Ok(Some(call(Subrequest::Describe))));
        for (text, why) in [
            ("nothing", "unsupported request frontend.nothing"),
            ("check,outline", "two methods"),
            ("check,format=yaml", "yaml"),
            ("check,ignorestatus=perhaps", "perhaps"),
            ("check,a=b", "a=b"),
        ] {
            assert!(of(text).unwrap_err().contains(why), "{text}");
        }
    }

    #[test]
    fn a_check_says_how_many_and_fails() {
        let reply = |warnings: usize, problem: Option<&str>| {
            let mut reply = Reply { warnings, problem: problem.map(str::to_owned), ..Reply::default() };
            let status = u8::from(warnings > 0 || problem.is_some()).to_string();
            for (name, value) in
                [("result.txt", "TEXT\n"), ("result.json", "{}"), ("result.statuscode", &status)]
            {
                reply.metadata.insert(name.to_owned(), value.as_bytes().to_vec());
            }
            reply
        };
        let show = |text: &str, reply: Reply| of(text).unwrap().unwrap().show(&reply);
        let shown = |out: &str, err: &str, failed| Shown { out: out.to_owned(), err: err.to_owned(), failed };
        assert_eq!(
            show("check", reply(0, None)),
            shown("TEXT\nCheck complete, no warnings found.\n", "", false)
        );
        assert_eq!(
            show("check", reply(1, None)),
            shown("Check complete, 1 warning has been found!\nTEXT\n", "", true)
        );
        let two = "Check complete, 2 warnings have been found!\nTEXT\n";
        assert_eq!(show("check,ignorestatus=1", reply(2, None)), shown(two, "", false));
        assert_eq!(
            show("check", reply(2, Some("no\nD:1\n"))),
            shown(&format!("{two}\n"), "ERROR: no\nD:1\n", true)
        );
        assert_eq!(show("check,format=json", reply(3, None)), shown("{}\n", "", true));
        assert_eq!(show("targets", reply(0, None)), shown("TEXT\n", "", false));
    }
}
