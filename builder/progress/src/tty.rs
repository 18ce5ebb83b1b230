//! Progress as a picture that is drawn over itself, in the manner of BuildKit's `--progress tty`.
//!
//! ```text
//! [+] Building 12.3s (4/7)
//!  => [internal] load build definition from Dockerfile                      0.0s
//!  => => transferring dockerfile: 32B                                       0.0s
//!  => [2/3] RUN make                                                        9.8s
//!  => => # cc -o main main.c
//! ```

use std::{fmt::Write as _, time::SystemTime};

use crate::{
    StatusResponse,
    board::{Board, Entry, amount, is_canceled},
    from_response,
};

const BLUE: &str = "\x1b[34m";
const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const FAINT: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";
/// Lines of output under a running vertex.
const TAIL: usize = 6;

/// The terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub width: usize,
    /// Lines.
    pub height: usize,
}

/// Keeps a picture of the build. Feed it batches; draw as often as is pleasant (BuildKit: every 100 ms).
#[derive(Debug)]
pub struct Tty {
    board: Board,
    began: SystemTime,
    /// Lines of the last picture, over which the next is drawn.
    drawn: usize,
}

impl Tty {
    /// A picture of a build that begins now.
    pub fn new(now: SystemTime) -> Self {
        Self { board: Board::default(), began: now, drawn: 0 }
    }

    /// Takes a batch of events.
    pub fn update(&mut self, response: StatusResponse) {
        for event in from_response(response) {
            self.board.take(&event);
        }
    }

    /// What to write to draw the build as of now over the last picture.
    pub fn draw(&mut self, now: SystemTime, size: TerminalSize) -> String {
        self.picture(now, size, false)
    }

    /// The last picture: everything, however high.
    pub fn finish(&mut self, now: SystemTime, size: TerminalSize) -> String {
        self.picture(now, size, true)
    }

    fn picture(&mut self, now: SystemTime, size: TerminalSize, is_last: bool) -> String {
        let width = size.width.max(20);
        let mut lines = Vec::new();
        for entry in self.board.entries.iter().filter(|entry| entry.state.started.is_some()) {
            vertex_lines(entry, now, width, &mut lines);
        }
        let room = size.height.saturating_sub(2).max(1);
        if !is_last && lines.len() > room {
            // The newest is at the bottom.
            lines.drain(..lines.len() - room);
        }
        let (done, total) = (self.board.completed(), self.board.entries.len());
        let finished = if is_last && done == total { " FINISHED" } else { "" };
        let seconds = now.duration_since(self.began).unwrap_or_default().as_secs_f64();
        let title = format!("[+] Building {seconds:.1}s ({done}/{total}){finished}");
        let mut out = String::new();
        if self.drawn > 0 {
            let _ = write!(out, "\x1b[{}A", self.drawn);
        }
        // Each line is cleared to its end, and what is left of a higher picture below.
        let _ = writeln!(out, "\r{}\x1b[K", cut(&title, width));
        for Line { text, style } in &lines {
            let _ = writeln!(out, "{style}{text}{}\x1b[K", if style.is_empty() { "" } else { PLAIN });
        }
        out.push_str("\x1b[J");
        self.drawn = lines.len() + 1;
        out
    }
}

struct Line {
    text: String,
    style: &'static str,
}

fn vertex_lines(entry: &Entry, now: SystemTime, width: usize, lines: &mut Vec<Line>) {
    let style = match (&entry.state.error, entry.state.completed) {
        (Some(error), _) if is_canceled(error) => YELLOW,
        (Some(_), _) => RED,
        (None, Some(_)) => BLUE,
        (None, None) => "",
    };
    let cached = if entry.state.cached { "CACHED " } else { "" };
    let seconds = entry.duration(now).as_secs_f64();
    // What is shorter than can be shown is nothing.
    let seconds = if seconds < 0.05 { 0.0 } else { seconds };
    lines.push(Line { text: spread(&format!(" => {cached}{}", entry.state.name), seconds, width), style });
    for status in &entry.statuses {
        let end = status.completed.unwrap_or(now);
        let time = status.started.and_then(|started| end.duration_since(started).ok()).unwrap_or_default();
        let style = if status.completed.is_some() { BLUE } else { "" };
        let text = format!(" => => {}{}", status.id, amount(status));
        lines.push(Line { text: spread(&text, time.as_secs_f64(), width), style });
    }
    if entry.is_running() {
        for text in entry.tail.iter().rev().take(TAIL).rev() {
            // Whatever a process writes, it does not steer the terminal.
            let clean: String = text.chars().filter(|c| !c.is_control()).collect();
            lines.push(Line { text: cut(&format!(" => => # {clean}"), width), style: FAINT });
        }
    }
}

/// `left` and, at the right edge, the seconds.
fn spread(left: &str, seconds: f64, width: usize) -> String {
    let timer = format!(" {seconds:.1}s");
    let room = width.saturating_sub(timer.len() + 1);
    let left: String = left.chars().filter(|c| !c.is_control()).take(room).collect();
    format!("{left:<room$}{timer}")
}

fn cut(text: &str, width: usize) -> String {
    text.chars().take(width.saturating_sub(1)).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lapstrake_layerstore_oci::Digest;

    use super::*;
    use crate::{Event, Log, Stream, VertexState, to_response};

    fn at(millis: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(millis)
    }

    fn picture(events: &[Event], height: usize) -> String {
        let mut tty = Tty::new(at(0));
        tty.update(to_response(events));
        let first = tty.draw(at(1500), TerminalSize { width: 40, height });
        // The second picture goes to the top of the first.
        let lines = first.matches('\n').count();
        assert!(
            tty.draw(at(1600), TerminalSize { width: 40, height }).starts_with(&format!("\x1b[{lines}A"))
        );
        first.replace('\x1b', "^").replace("^[K", "").replace('\r', "")
    }

    fn vertex(name: &str, started: u64, completed: Option<u64>) -> VertexState {
        VertexState {
            started: Some(at(started)),
            completed: completed.map(at),
            ..VertexState::pending(Digest::sha256_of(name), name, vec![])
        }
    }

    #[test]
    fn vertices_have_a_line_and_running_ones_their_last_output() {
        let failed = VertexState { error: Some("no".to_owned()), ..vertex("[3/3] RUN b", 200, Some(300)) };
        let log = Log {
            vertex: Digest::sha256_of("[2/3] RUN a long command that does not fit"),
            stream: Stream::Stdout,
            data: b"one\n\x1b[2Jtwo\nthr".to_vec(),
            timestamp: at(900),
        };
        let events = [
            Event::Vertex(VertexState { cached: true, ..vertex("[1/3] COPY", 0, Some(0)) }),
            Event::Vertex(vertex("[2/3] RUN a long command that does not fit", 100, None)),
            Event::Vertex(failed),
            Event::Log(log),
        ];
        insta::assert_snapshot!(picture(&events, 24), @r"
        [+] Building 1.5s (2/3)
        ^[34m => CACHED [1/3] COPY              0.0s^[0m
         => [2/3] RUN a long command that  1.4s
        ^[2m => => # one^[0m
        ^[2m => => # [2Jtwo^[0m
        ^[2m => => # thr^[0m
        ^[31m => [3/3] RUN b                    0.1s^[0m
        ^[J
        ");
        assert_eq!(picture(&events, 4).matches('\n').count(), 3);
    }
}
