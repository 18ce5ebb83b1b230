//! What displays know of a build: its vertices in order of appearance, with their latest news.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, SystemTime},
};

use lapstrake_layerstore_oci::Digest;

use crate::{Event, Log, Status, VertexState, Warning};

/// Complete lines of output that are kept of each vertex.
const KEPT_LINES: usize = 12;
/// Bytes of one such line.
const LINE_BYTES: usize = 4096;

/// One vertex.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) state: VertexState,
    pub(crate) statuses: Vec<Status>,
    pub(crate) warnings: Vec<Warning>,
    /// The last lines of its output; the last one may be incomplete.
    pub(crate) tail: VecDeque<String>,
    line_open: bool,
    /// Earlier spans of work, when it ran more than once.
    spent: Duration,
}

impl Entry {
    fn new(state: VertexState) -> Self {
        Self {
            state,
            statuses: Vec::new(),
            warnings: Vec::new(),
            tail: VecDeque::new(),
            line_open: false,
            spent: Duration::ZERO,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.state.started.is_some() && self.state.completed.is_none()
    }

    /// Time spent on it until `now`.
    pub(crate) fn duration(&self, now: SystemTime) -> Duration {
        let span = self.state.started.map_or(Duration::ZERO, |started| {
            self.state.completed.unwrap_or(now).duration_since(started).unwrap_or_default()
        });
        self.spent + span
    }

    fn set(&mut self, state: VertexState) {
        // Begun anew after it had ended: what was spent counts.
        if let (Some(old), Some(new), Some(end)) = (self.state.started, state.started, self.state.completed)
            && new != old
        {
            self.spent += end.duration_since(old).unwrap_or_default();
        }
        self.state = state;
    }

    fn write(&mut self, log: &Log) {
        for piece in String::from_utf8_lossy(&log.data).split_inclusive('\n') {
            let (text, ends) = match piece.strip_suffix('\n') {
                Some(text) => (text, true),
                None => (piece, false),
            };
            let line = match self.tail.back_mut() {
                Some(line) if self.line_open => line,
                _ => {
                    if self.tail.len() == KEPT_LINES {
                        self.tail.pop_front();
                    }
                    self.tail.push_back(String::new());
                    self.tail.back_mut().expect("pushed just now")
                }
            };
            let room = LINE_BYTES.saturating_sub(line.len());
            line.extend(text.chars().scan(0, |used, c| {
                *used += c.len_utf8();
                (*used <= room).then_some(c)
            }));
            self.line_open = !ends;
        }
    }
}

/// All vertices of a build.
#[derive(Debug, Default)]
pub(crate) struct Board {
    pub(crate) entries: Vec<Entry>,
    by_digest: HashMap<Digest, usize>,
}

impl Board {
    /// Takes one event; the index of its vertex.
    pub(crate) fn take(&mut self, event: &Event) -> usize {
        let index = match event {
            Event::Vertex(state) => match self.by_digest.get(&state.digest) {
                Some(index) => {
                    self.entries[*index].set(state.clone());
                    return *index;
                }
                None => return self.add(state.clone()),
            },
            Event::Status(status) => self.find(&status.vertex),
            Event::Log(log) => self.find(&log.vertex),
            Event::Warning(warning) => self.find(&warning.vertex),
        };
        let entry = &mut self.entries[index];
        match event {
            Event::Vertex(_) => {}
            Event::Status(status) => match entry.statuses.iter_mut().find(|old| old.id == status.id) {
                Some(old) => old.clone_from(status),
                None => entry.statuses.push(status.clone()),
            },
            Event::Log(log) => entry.write(log),
            Event::Warning(warning) => entry.warnings.push(warning.clone()),
        }
        index
    }

    /// The vertex, made up when it was never announced.
    fn find(&mut self, digest: &Digest) -> usize {
        match self.by_digest.get(digest) {
            Some(index) => *index,
            None => self.add(VertexState::pending(digest.clone(), digest.to_string(), Vec::new())),
        }
    }

    fn add(&mut self, state: VertexState) -> usize {
        let index = self.entries.len();
        self.by_digest.insert(state.digest.clone(), index);
        self.entries.push(Entry::new(state));
        index
    }

    pub(crate) fn completed(&self) -> usize {
        self.entries.iter().filter(|entry| entry.state.completed.is_some()).count()
    }
}

/// Bytes as BuildKit's displays write them: two decimals, powers of 1000.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    #[allow(clippy::cast_precision_loss)] // two decimals are shown
    let mut size = count as f64;
    let mut unit = 0;
    while size >= 1000.0 && unit + 1 < UNITS.len() {
        size /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{count}B") } else { format!("{size:.2}{}", UNITS[unit]) }
}

/// A part's progress: ` 1.05MB / 3.20MB`, ` 1.05MB`, or nothing.
pub(crate) fn amount(status: &Status) -> String {
    match (status.current, status.total) {
        (0, 0) => String::new(),
        (current, 0) => format!(" {}", bytes(current)),
        (current, total) => format!(" {} / {}", bytes(current), bytes(total)),
    }
}

/// Whether a vertex failed only because something else did, or the user gave up.
pub(crate) fn is_canceled(error: &str) -> bool {
    error.ends_with("context canceled")
}
