//! Progress on standard error, while the build runs; and why it failed, once it has.

use std::{
    collections::{HashMap, VecDeque},
    fmt::Write as _,
    io::{IsTerminal as _, Write as _},
    time::{Duration, SystemTime},
};

use lapstrake_builder_dockerfile::{LineRange, excerpt::excerpt};
use lapstrake_builder_llb::pb;
use lapstrake_builder_progress::{
    Event, Plain, Subscription, TerminalSize, Tty, Warning, from_response, rawjson,
};
use lapstrake_layerstore_oci::Digest;

use super::args::ProgressMode;

/// Time between two pictures, as BuildKit's.
const REDRAW: Duration = Duration::from_millis(100);
/// Lines of a failed step's output that are repeated.
const TAIL_LINES: usize = 10;
/// Warnings that are listed; the engine tells no more of a Dockerfile.
const WARNINGS: usize = 1100;
/// Vertices whose last lines are kept; a build with more running at once shows no tail for the others.
const TAILS: usize = 256;

/// What a display remembers of the build, for when it fails.
#[derive(Debug, Default)]
pub(super) struct Tails {
    by_vertex: HashMap<Digest, Tail>,
}

#[derive(Debug, Default)]
struct Tail {
    name: String,
    lines: VecDeque<String>,
}

impl Tails {
    fn take(&mut self, event: &Event) {
        match event {
            Event::Vertex(state) if state.completed.is_some() && state.error.is_none() => {
                self.by_vertex.remove(&state.digest);
            }
            Event::Vertex(state)
                if self.by_vertex.len() < TAILS || self.by_vertex.contains_key(&state.digest) =>
            {
                self.by_vertex.entry(state.digest.clone()).or_default().name.clone_from(&state.name);
            }
            Event::Log(log) => {
                let Some(tail) = self.by_vertex.get_mut(&log.vertex) else { return };
                for piece in String::from_utf8_lossy(&log.data).split_inclusive('\n') {
                    match tail.lines.back_mut() {
                        Some(last) if !last.ends_with('\n') => last.push_str(piece),
                        _ => tail.lines.push_back(piece.to_owned()),
                    }
                    if tail.lines.len() > TAIL_LINES {
                        tail.lines.pop_front();
                    }
                }
            }
            Event::Vertex(_) | Event::Status(_) | Event::Warning(_) => {}
        }
    }

    /// The failed step's name and last lines, as BuildKit's clients repeat them.
    pub(super) fn of(&self, vertex: &Digest) -> String {
        let Some(tail) = self.by_vertex.get(vertex) else { return String::new() };
        let mut text = format!("------\n > {}:\n", tail.name);
        for line in &tail.lines {
            text.push_str(line.trim_end_matches('\n'));
            text.push('\n');
        }
        text.push_str("------\n");
        text
    }
}

enum Display {
    Plain(Plain),
    Tty(Tty),
    Rawjson,
    Nothing,
}

/// Shows a build until it has said its last word, and lists its warnings.
pub(super) async fn show(mut events: Subscription, mode: ProgressMode, expanded: bool) -> Tails {
    let stderr = std::io::stderr();
    let is_terminal = stderr.is_terminal();
    let mut display = match mode {
        ProgressMode::Quiet => Display::Nothing,
        ProgressMode::Rawjson => Display::Rawjson,
        ProgressMode::Auto if is_terminal => Display::Tty(Tty::new(SystemTime::now())),
        ProgressMode::Tty => Display::Tty(Tty::new(SystemTime::now())),
        ProgressMode::Auto | ProgressMode::Plain => Display::Plain(Plain::new()),
    };
    let mut tails = Tails::default();
    let mut warnings = Vec::new();
    let mut redraw = tokio::time::interval(REDRAW);
    redraw.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        let response = tokio::select! {
            response = events.next() => response,
            _ = redraw.tick(), if matches!(display, Display::Tty(_)) => {
                if let Display::Tty(tty) = &mut display {
                    say(&tty.draw(SystemTime::now(), terminal_size()));
                }
                continue;
            }
        };
        let response = match response {
            Ok(Some(response)) => response,
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(%error, "progress cannot be shown");
                break;
            }
        };
        for event in from_response(response.clone()) {
            tails.take(&event);
            if let Event::Warning(warning) = event
                && warnings.len() < WARNINGS
            {
                warnings.push(warning);
            }
        }
        match &mut display {
            Display::Plain(plain) => say(&plain.update(response)),
            Display::Tty(tty) => tty.update(response),
            Display::Rawjson => say(&rawjson(&response)),
            Display::Nothing => {}
        }
    }
    if let Display::Tty(tty) = &mut display {
        say(&tty.finish(SystemTime::now(), terminal_size()));
    }
    if matches!(display, Display::Plain(_) | Display::Tty(_)) {
        say(&warnings_text(&warnings, expanded));
    }
    tails
}

fn say(text: &str) {
    // Nobody reads: the build goes on.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

fn terminal_size() -> TerminalSize {
    match rustix::termios::tcgetwinsize(std::io::stderr()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
            TerminalSize { width: size.ws_col.into(), height: size.ws_row.into() }
        }
        _ => TerminalSize { width: 80, height: 24 },
    }
}

/// What the author should know, once the build has ended: as docker buildx has it, in a line each, or `expanded` with all that is said of it.
fn warnings_text(warnings: &[Warning], expanded: bool) -> String {
    let mut out = match warnings.len() {
        0 => return String::new(),
        1 => "\n \x1b[33m1 warning found".to_owned(),
        count => format!("\n \x1b[33m{count} warnings found"),
    };
    if !expanded {
        out.push_str(" (use --debug to expand)");
    }
    out.push_str(":\n\x1b[0m");
    for warning in warnings {
        let _ = writeln!(out, " - {}", String::from_utf8_lossy(&warning.short)); // a String takes everything
        if !expanded {
            continue;
        }
        for detail in &warning.detail {
            let _ = writeln!(out, "{}", String::from_utf8_lossy(detail));
        }
        if !warning.url.is_empty() {
            let _ = writeln!(out, "More info: {}", warning.url);
        }
        if let Some(source) = &warning.source {
            let line = |position: &Option<pb::Position>| u32::try_from(position.as_ref()?.line).ok();
            let range = |range: &pb::Range| Some(LineRange::new(line(&range.start)?, line(&range.end)?));
            let places: Vec<LineRange> = warning.ranges.iter().filter_map(range).collect();
            let text = String::from_utf8_lossy(&source.data);
            out.push_str(&excerpt(&source.filename, &text, &places, None));
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use lapstrake_builder_progress::{Log, Stream, VertexState};

    use super::*;

    #[test]
    fn warnings_are_listed_as_by_buildx() {
        let warning = |short: &str| Warning {
            vertex: Digest::sha256_of("v"),
            level: 1,
            short: short.as_bytes().to_vec(),
            detail: vec![b"Commands should.".to_vec()],
            url: "https://example.org/rule/".to_owned(),
            source: Some(pb::SourceInfo {
                filename: "Dockerfile".to_owned(),
                data: b"FROM scratch\nCMD a\n".to_vec(),
                ..pb::SourceInfo::default()
            }),
            ranges: vec![pb::Range {
                start: Some(pb::Position { line: 2, character: 0 }),
                end: Some(pb::Position { line: 2, character: 0 }),
            }],
        };
        assert_eq!(warnings_text(&[], false), "");
        assert_eq!(
            warnings_text(&[warning("A (line 2)"), warning("B")], false),
            "\n \x1b[33m2 warnings found (use --debug to expand):\n\x1b[0m - A (line 2)\n - B\n"
        );
        let expected = "\n \x1b[33m1 warning found:\n\x1b[0m - A (line 2)
Commands should.
More info: https://example.org/rule/
Dockerfile:2
--------------------
   1 |     FROM scratch
   2 | >>> CMD a
   3 |     
--------------------

";
        assert_eq!(warnings_text(&[warning("A (line 2)")], true), expected);
    }

    #[test]
    fn only_the_last_lines_of_what_has_not_ended_well_are_kept() {
        let mut tails = Tails::default();
        let state = VertexState::pending(Digest::sha256_of("v"), "[2/2] RUN false", vec![]);
        tails.take(&Event::Vertex(state.clone()));
        for number in 0..20 {
            tails.take(&Event::Log(Log {
                vertex: state.digest.clone(),
                stream: Stream::Stdout,
                data: format!("line {number}\n").into_bytes(),
                timestamp: SystemTime::UNIX_EPOCH,
            }));
        }
        let text = tails.of(&state.digest);
        assert!(
            text.starts_with("------\n > [2/2] RUN false:\nline 10\n") && text.ends_with("line 19\n------\n"),
            "{text}"
        );
        tails.take(&Event::Vertex(VertexState { completed: Some(SystemTime::UNIX_EPOCH), ..state.clone() }));
        assert_eq!(tails.of(&state.digest), "");
    }
}
