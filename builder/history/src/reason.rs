//! Why a step was run although there is a cache.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest name that a reason shows, in characters.
const NAME_CHARS: usize = 200;

/// What happened to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// It is another now: content, mode, owner, or what it is.
    Changed,
    /// It is new.
    Added,
    /// It is gone.
    Removed,
}

/// A file that is not what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileChange {
    /// Its path in the context or source; a directory's ends with a slash.
    pub path: String,
    /// What happened to it.
    pub change: Change,
}

/// One reason why a step was run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum MissReason {
    /// The build asked for no cache, for this step or all.
    NoCache,
    /// Files that it takes are not what they were.
    Files {
        /// The first of them.
        files: Vec<FileChange>,
        /// How many more there are.
        more: u64,
    },
    /// A build-arg has another value, was added or is gone.
    BuildArg {
        /// Its name.
        name: String,
    },
    /// An environment variable has another value, was added or is gone.
    Variable {
        /// Its name.
        name: String,
    },
    /// The image that it begins with is another.
    Base {
        /// Its name.
        reference: String,
        /// Its digest then.
        from: Option<String>,
        /// Its digest now.
        to: Option<String>,
    },
    /// What was fetched is another: a commit, a download, or a directory too large to tell what in it.
    Source {
        /// Where it came from, without credentials.
        origin: String,
    },
    /// A mount is another, was added or is gone.
    Mount {
        /// Where it is mounted.
        target: String,
    },
    /// Something else of the step is another: `working directory`, `user`, `network`, `platform`, ….
    Setting {
        /// What.
        name: String,
    },
    /// The instruction is another.
    Instruction,
    /// A step before it was run, and what it made counts here.
    Step {
        /// What the step is called.
        name: String,
    },
    /// It was built before, and its result was pruned or lost.
    Pruned,
    /// It was not built here before.
    NeverBuilt,
    /// It is a client's directory, which is read in each build.
    ClientDirectory,
    /// It comes from outside, and is not here yet.
    NotHere,
    /// The cache has no result for what it is made of.
    Unseen,
}

impl MissReason {
    /// Whether it is worth a line while the build runs. That something is built for the first time is no news.
    pub fn is_news(&self) -> bool {
        !matches!(self, Self::NeverBuilt | Self::ClientDirectory | Self::NotHere)
    }
}

impl fmt::Display for MissReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCache => f.write_str("no-cache was asked"),
            Self::Files { files, more } => files_text(f, files, *more),
            Self::BuildArg { name } => write!(f, "build-arg {} changed", shown(name)),
            Self::Variable { name } => write!(f, "variable {} changed", shown(name)),
            Self::Base { reference, from, to } => {
                write!(f, "the base image changed ({}", shown(reference))?;
                if let (Some(from), Some(to)) = (from, to) {
                    write!(f, " {} → {}", short(from), short(to))?;
                }
                f.write_str(")")
            }
            Self::Source { origin } => write!(f, "{} changed", shown(origin)),
            Self::Mount { target } => write!(f, "mount {} changed", shown(target)),
            Self::Setting { name } => write!(f, "{} changed", shown(name)),
            Self::Instruction => f.write_str("the instruction changed"),
            Self::Step { name } => write!(f, "step {} ran again", shown(name)),
            Self::Pruned => f.write_str("pruned"),
            Self::NeverBuilt => f.write_str("never built here"),
            Self::ClientDirectory => f.write_str("a client's directory is read in each build"),
            Self::NotHere => f.write_str("not here yet"),
            Self::Unseen => f.write_str("no cached result for its inputs"),
        }
    }
}

fn files_text(f: &mut fmt::Formatter<'_>, files: &[FileChange], more: u64) -> fmt::Result {
    for (number, file) in files.iter().enumerate() {
        let kind = if file.path.ends_with('/') { "directory" } else { "file" };
        let what = match file.change {
            Change::Changed => "changed",
            Change::Added => "was added",
            Change::Removed => "was removed",
        };
        let comma = if number == 0 { "" } else { ", " };
        write!(f, "{comma}{kind} {} {what}", shown(&file.path))?;
    }
    if more > 0 { write!(f, ", and {more} more") } else { Ok(()) }
}

/// Reasons as one line.
pub fn describe(reasons: &[MissReason]) -> String {
    let texts: Vec<String> = reasons.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

/// A name as a line of text can have it: whatever somebody calls a file, it does not steer a terminal.
fn shown(name: &str) -> String {
    let mut text: String = name
        .chars()
        .take(NAME_CHARS)
        .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
        .collect();
    if name.chars().nth(NAME_CHARS).is_some() {
        text.push('…');
    }
    text
}

/// `sha256:` and twelve digits.
fn short(digest: &str) -> String {
    match digest.split_once(':') {
        Some((algorithm, hex)) => format!("{algorithm}:{}", hex.get(..12).unwrap_or(hex)),
        None => digest.chars().take(19).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_read_like_sentences() {
        let file = |path: &str, change| FileChange { path: path.to_owned(), change };
        let digest = |digit: &str| Some(format!("sha256:{}", digit.repeat(64)));
        let reasons = [
            MissReason::Files {
                files: vec![file("src/main.c", Change::Changed), file("lib/", Change::Added)],
                more: 12,
            },
            MissReason::BuildArg { name: "VERSION".to_owned() },
            MissReason::Base {
                reference: "docker.io/library/alpine:3.20".to_owned(),
                from: digest("a"),
                to: digest("b"),
            },
            MissReason::Step { name: "[build 2/5] RUN make".to_owned() },
        ];
        assert_eq!(
            describe(&reasons),
            "file src/main.c changed, directory lib/ was added, and 12 more; build-arg VERSION changed; \
             the base image changed (docker.io/library/alpine:3.20 sha256:aaaaaaaaaaaa → sha256:bbbbbbbbbbbb); \
             step [build 2/5] RUN make ran again"
        );
    }

    #[test]
    fn names_do_not_steer_terminals_and_end_somewhere() {
        let reason = MissReason::Variable { name: format!("\x1b[2J{}", "x".repeat(1000)) };
        let text = reason.to_string();
        assert!(!text.contains('\x1b') && text.chars().count() < 300, "{text}");
    }

    #[test]
    fn reasons_are_json_with_a_kind() {
        let reason = MissReason::Base { reference: "alpine".to_owned(), from: None, to: None };
        let json = serde_json::to_string(&reason).unwrap();
        assert_eq!(json, r#"{"kind":"base","reference":"alpine","from":null,"to":null}"#);
        assert_eq!(serde_json::from_str::<MissReason>(&json).unwrap(), reason);
        assert_eq!(serde_json::to_string(&MissReason::NoCache).unwrap(), r#"{"kind":"no-cache"}"#);
    }
}
