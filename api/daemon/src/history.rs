//! `lapstrake history`: what was built, with a store that nobody has open, or through the daemon that has it.

use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use lapstrake_api_server::{build_detail, build_item};
use lapstrake_api_types::{BuildDetail, BuildItem, BuildList, BuildsRemoved, Timestamp, parse_time};
use lapstrake_builder_history::History;
use lapstrake_builder_progress::Plain;

use crate::{
    cli::StoreArgs,
    client::DaemonClient,
    error::ProgramError,
    host::Host,
    usage::{begin, daemon, escape, open_store},
};

/// Where the daemon tells of builds.
const BUILDS: &str = "/lapstrake/v1/builds";
/// Characters of an id in lists; any beginning that only one build has will do.
const SHORT_ID: usize = 25;

#[derive(Debug, Args)]
#[command(after_help = "Builds are named by their id, or by the beginning of it where that is no other's.

Examples:
  lapstrake history ls
  lapstrake history inspect 4ivds4a0       which steps ran, and why
  lapstrake history logs --follow 4ivds4a0
  lapstrake history rm 4ivds4a0")]
pub(crate) struct HistoryArgs {
    #[command(subcommand)]
    command: HistoryCommand,
}

#[derive(Debug, Subcommand)]
enum HistoryCommand {
    /// List builds, newest first
    Ls(Listing),
    /// Show a build's steps: which came from the cache, and why the others ran
    Inspect(Inspection),
    /// Print a build's whole log, as --progress=plain shows it
    Logs(Logs),
    /// Forget builds
    Rm(Removal),
}

#[derive(Debug, Args)]
struct Source {
    #[command(flatten)]
    store: StoreArgs,

    /// Where the daemon listens that has the store open [default: unix:///run/lapstrake/lapstrake.sock]
    #[arg(long, short = 'H', value_name = "HOST")]
    host: Option<Host>,
}

#[derive(Debug, Args)]
struct Listing {
    #[command(flatten)]
    source: Source,

    /// Print JSON, as the daemon's API answers
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Inspection {
    #[command(flatten)]
    source: Source,

    /// The build
    #[arg(value_name = "ID")]
    id: String,

    /// Print JSON, as the daemon's API answers
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Logs {
    #[command(flatten)]
    source: Source,

    /// The build
    #[arg(value_name = "ID")]
    id: String,

    /// Wait for what a running build says, to its end
    #[arg(long, short = 'f')]
    follow: bool,
}

#[derive(Debug, Args)]
struct Removal {
    #[command(flatten)]
    source: Source,

    /// The builds
    #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
    ids: Vec<String>,

    /// All that do not run
    #[arg(long)]
    all: bool,
}

/// Who answers.
enum Book {
    /// The store, which nobody else has open.
    Own(History),
    /// The daemon that has it.
    Daemon(DaemonClient),
}

/// Does what was asked.
pub(crate) fn run(args: &HistoryArgs) -> Result<(), ProgramError> {
    match &args.command {
        HistoryCommand::Ls(Listing { source, json }) => {
            let list = open(source)?.list()?;
            crate::say(&if *json { pretty(&list) } else { table(&list.builds, SystemTime::now()) });
        }
        HistoryCommand::Inspect(Inspection { source, id, json }) => {
            let build = open(source)?.inspect(id)?;
            crate::say(&if *json { pretty(&build) } else { report(&build) });
        }
        HistoryCommand::Logs(Logs { source, id, follow }) => open(source)?.log(id, *follow)?,
        HistoryCommand::Rm(Removal { source, ids, .. }) => {
            for id in open(source)?.remove(ids)? {
                crate::say(&format!("{id}\n"));
            }
        }
    }
    Ok(())
}

fn open(source: &Source) -> Result<Book, ProgramError> {
    let settings = begin(&source.store)?;
    Ok(match open_store(&settings)? {
        Some(store) => Book::Own(store.history),
        None => Book::Daemon(daemon(source.host.as_ref())?),
    })
}

impl Book {
    fn list(&self) -> Result<BuildList, ProgramError> {
        match self {
            Self::Own(history) => {
                Ok(BuildList { builds: history.builds()?.iter().map(build_item).collect() })
            }
            Self::Daemon(client) => client.get(BUILDS),
        }
    }

    fn inspect(&self, id: &str) -> Result<BuildDetail, ProgramError> {
        match self {
            Self::Own(history) => Ok(build_detail(&history.build(id)?)),
            Self::Daemon(client) => client.get(&format!("{BUILDS}/{}", escape(id))),
        }
    }

    fn log(&self, id: &str, follow: bool) -> Result<(), ProgramError> {
        match self {
            Self::Own(history) => {
                let mut log = history.log(id, follow)?;
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .build()
                    .map_err(ProgramError::system("read a log"))?;
                let mut display = Plain::new();
                while let Some(response) = runtime.block_on(log.next())? {
                    crate::say(&display.update(response));
                }
                Ok(())
            }
            Self::Daemon(client) => {
                let follow = u8::from(follow);
                client.copy(&format!("{BUILDS}/{}/log?follow={follow}", escape(id)), &mut std::io::stdout())
            }
        }
    }

    /// The ids of what was removed; of everything that does not run, if none is named.
    fn remove(&self, ids: &[String]) -> Result<Vec<String>, ProgramError> {
        if ids.is_empty() {
            return match self {
                Self::Own(history) => Ok(history.clear()?),
                Self::Daemon(client) => Ok(client.delete::<BuildsRemoved>(BUILDS)?.removed),
            };
        }
        let mut removed = Vec::new();
        for id in ids {
            match self {
                Self::Own(history) => removed.push(history.remove(id)?),
                Self::Daemon(client) => {
                    let path = format!("{BUILDS}/{}", escape(id));
                    removed.extend(client.delete::<BuildsRemoved>(&path)?.removed);
                }
            }
        }
        Ok(removed)
    }
}

fn pretty(value: &impl serde::Serialize) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("plain data");
    text.push('\n');
    text
}

fn table(builds: &[BuildItem], now: SystemTime) -> String {
    let mut out = format!(
        "{:SHORT_ID$}  {:11}  {:>9}  {:>8}  {:>9}  NAME\n",
        "BUILD ID", "STATUS", "STEPS", "TIME", "CREATED"
    );
    for build in builds {
        let id: String = build.id.chars().take(SHORT_ID).collect();
        let steps = format!("{}/{}", build.cached_steps, build.total_steps);
        let time = seconds(build.duration_ms);
        let created = age(&build.created, now);
        out.push_str(&format!(
            "{id:SHORT_ID$}  {:11}  {steps:>9}  {time:>8}  {created:>9}  {}\n",
            build.status, build.name
        ));
    }
    out.push_str("(STEPS: from the cache / all)\n");
    out
}

fn report(build: &BuildDetail) -> String {
    let item = &build.item;
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            out.push_str(&format!("{name:12}{value}\n"));
        }
    };
    line("Build:", &item.id);
    line("Name:", &item.name);
    line("Status:", &item.status);
    line("Created:", &item.created);
    line("Time:", &seconds(item.duration_ms));
    line("Dockerfile:", &item.dockerfile);
    line("Target:", item.target.as_deref().unwrap_or_default());
    line("Context:", item.context.as_deref().unwrap_or_default());
    line("Platforms:", &item.platforms.join(", "));
    line("Build-args:", &item.build_args.join(", "));
    line("Image:", item.image.as_deref().unwrap_or_default());
    line("Error:", item.error.as_deref().unwrap_or_default());
    line("Steps:", &format!("{}, {} of them from the cache", item.total_steps, item.cached_steps));
    out.push('\n');
    for vertex in &build.vertices {
        let state = match (&vertex.error, vertex.cached, vertex.completed.is_some()) {
            (Some(_), ..) => "FAILED".to_owned(),
            (None, true, _) => "CACHED".to_owned(),
            (None, false, true) => seconds(vertex.duration_ms),
            (None, false, false) => "-".to_owned(),
        };
        out.push_str(&format!("{state:>8}  {}\n", vertex.name));
        for reason in &vertex.reasons {
            out.push_str(&format!("{:>8}    because: {}\n", "", reason.text));
        }
        if let Some(error) = &vertex.error {
            out.push_str(&format!("{:>8}    error: {error}\n", ""));
        }
    }
    out
}

fn seconds(milliseconds: u64) -> String {
    format!("{}.{}s", milliseconds / 1000, milliseconds % 1000 / 100)
}

/// How long ago something was, as people say it.
fn age(created: &str, now: SystemTime) -> String {
    let now = Timestamp::from(now);
    let Ok(created) = parse_time(created, now) else { return "-".to_owned() };
    let since = Duration::try_from(now.0 - created.0).unwrap_or_default().as_secs();
    match since {
        0..60 => format!("{since}s ago"),
        60..3600 => format!("{}m ago", since / 60),
        3600..172_800 => format!("{}h ago", since / 3600),
        _ => format!("{}d ago", since / 86400),
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use lapstrake_api_types::{BuildReason, BuildVertex};

    use super::*;

    fn item() -> BuildItem {
        BuildItem {
            id: "abc".to_owned(),
            name: "app:latest".to_owned(),
            status: "completed".to_owned(),
            created: "1970-01-01T00:00:00Z".to_owned(),
            duration_ms: 1234,
            total_steps: 5,
            cached_steps: 2,
            ..BuildItem::default()
        }
    }

    #[test]
    fn builds_are_listed() {
        let expected = "\
BUILD ID                   STATUS           STEPS      TIME    CREATED  NAME
abc                        completed          2/5      1.2s     2h ago  app:latest
(STEPS: from the cache / all)
";
        assert_eq!(table(&[item()], UNIX_EPOCH + Duration::from_secs(7300)), expected);
    }

    #[test]
    fn steps_are_shown_with_their_reasons() {
        let vertex = |name: &str, cached, reason: Option<&str>| BuildVertex {
            name: name.to_owned(),
            completed: Some("x".to_owned()),
            duration_ms: 99,
            cached,
            reasons: reason
                .map(|text| BuildReason { text: text.to_owned(), ..BuildReason::default() })
                .into_iter()
                .collect(),
            ..BuildVertex::default()
        };
        let build = BuildDetail {
            item: item(),
            vertices: vec![
                vertex("[1/2] FROM alpine", true, None),
                vertex("[2/2] COPY a /", false, Some("file a changed")),
            ],
        };
        let expected = "\
Build:      abc
Name:       app:latest
Status:     completed
Created:    1970-01-01T00:00:00Z
Time:       1.2s
Steps:      5, 2 of them from the cache

  CACHED  [1/2] FROM alpine
    0.0s  [2/2] COPY a /
            because: file a changed
";
        assert_eq!(report(&build), expected);
    }
}
