//! Progress on standard error, while the build runs; and why it failed, once it has.

use std::{
    collections::{HashMap, VecDeque},
    fmt::Write as _,
    io::{IsTerminal as _, Write as _},
    time::{Duration, SystemTime},
};

use lapstrake_builder_dockerfile::LineRange;
use lapstrake_builder_progress::{Event, Plain, Subscription, TerminalSize, Tty, from_response, rawjson};
use lapstrake_layerstore_oci::Digest;

use super::args::ProgressMode;

/// Time between two pictures, as BuildKit's.
const REDRAW: Duration = Duration::from_millis(100);
/// Lines of a failed step's output that are repeated.
const TAIL_LINES: usize = 10;
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

/// Shows a build until it has said its last word.
pub(super) async fn show(mut events: Subscription, mode: ProgressMode) -> Tails {
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

/// The lines of a Dockerfile around those at fault, as BuildKit's clients print them. Empty where the lines are not of this text.
pub(super) fn excerpt(name: &str, text: &str, at_fault: LineRange) -> String {
    let lines: Vec<&str> = text.split('\n').collect();
    let (mut start, mut end) = (at_fault.start as usize, (at_fault.end as usize).min(lines.len()));
    if start < 1 || start > lines.len() {
        return String::new();
    }
    let first = start;
    // The widening is BuildKit's: each round costs one more than the lines that it adds.
    let room = if start == end { 4 } else { 2 };
    let mut used = 0;
    while used < room {
        if start > 1 {
            start -= 1;
            used += 1;
        }
        if end != lines.len() {
            end += 1;
            used += 1;
        }
        used += 1;
    }
    let mut out = format!("{name}:{first}\n--------------------\n");
    for number in start..=end {
        let mark = if (first..=at_fault.end as usize).contains(&number) { ">>>" } else { "   " };
        let _ = writeln!(out, " {number:3} | {mark} {}", lines[number - 1].trim_end_matches('\r')); // a String takes everything
    }
    out.push_str("--------------------\n");
    out
}

#[cfg(test)]
mod tests {
    use lapstrake_builder_progress::{Log, Stream, VertexState};

    use super::*;

    #[test]
    fn excerpts_are_buildkits() {
        let text = "FROM busybox\nRUN true\nRUN false\nRUN x\nRUN y\n";
        let expected = "Dockerfile:3
--------------------
   1 |     FROM busybox
   2 |     RUN true
   3 | >>> RUN false
   4 |     RUN x
   5 |     RUN y
--------------------
";
        assert_eq!(excerpt("Dockerfile", text, LineRange::line(3)), expected);
        let expected = "D:2
--------------------
   1 |     FROM busybox
   2 | >>> RUN true
   3 | >>> RUN false
   4 |     RUN x
--------------------
";
        assert_eq!(excerpt("D", text, LineRange::new(2, 3)), expected);
        assert_eq!(
            excerpt("D", "FROM", LineRange::line(1)),
            "D:1\n--------------------\n   1 | >>> FROM\n--------------------\n"
        );
        assert_eq!(excerpt("D", "FROM", LineRange::line(9)), "");
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
