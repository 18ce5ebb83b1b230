//! Progress as plain lines, in the form of BuildKit's `--progress plain`.
//!
//! ```text
//! #1 [internal] load build definition from Dockerfile
//! #1 transferring dockerfile: 32B done
//! #1 DONE 0.0s
//!
//! #5 [2/3] RUN make
//! #5 0.213 cc -o main main.c
//! #5 DONE 1.4s
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
    time::{Duration, SystemTime},
};

use lapstrake_layerstore_oci::Digest;

use crate::{
    Event, Log, Status, StatusResponse,
    board::{Board, amount, is_canceled},
    from_response,
    vertex::REMARK,
};

/// How often a part's progress is worth a line: five seconds, or a twentieth of the whole.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);

/// Turns events into lines. Give it each batch as it comes; it keeps only the last lines of each vertex.
#[derive(Debug, Default)]
pub struct Plain {
    board: Board,
    /// Numbers that were given out, in order of first mention.
    numbers: HashMap<usize, usize>,
    /// The vertex that the last lines were about.
    current: Option<usize>,
    not_first: bool,
    ended: BTreeSet<usize>,
    told: HashMap<(usize, String), Status>,
    warned: HashMap<usize, usize>,
    /// Vertices whose last line of output has no end yet.
    open: BTreeSet<usize>,
}

impl Plain {
    /// A display of a build that has not begun.
    pub fn new() -> Self {
        Self::default()
    }

    /// The lines that a batch of events is worth.
    pub fn update(&mut self, response: StatusResponse) -> String {
        let mut news: BTreeMap<usize, Vec<Event>> = BTreeMap::new();
        for event in from_response(response) {
            let index = self.board.take(&event);
            news.entry(index).or_default().push(event);
        }
        // What the last lines were about goes on first, then what has ended, then the rest as they appeared.
        let mut order: Vec<usize> = news.keys().copied().collect();
        order.sort_by_key(|index| {
            let state = &self.board.entries[*index].state;
            (Some(*index) != self.current, state.completed.is_none(), state.completed, *index)
        });
        let mut out = String::new();
        for index in order {
            self.vertex(index, news.remove(&index).unwrap_or_default(), &mut out);
        }
        out
    }

    fn vertex(&mut self, index: usize, events: Vec<Event>, out: &mut String) {
        let entry = &self.board.entries[index];
        let says = events.iter().any(|event| !matches!(event, Event::Vertex(_)));
        if !says && (self.ended.contains(&index) || entry.state.started.is_none()) {
            return;
        }
        let mut lines = String::new();
        let next = self.numbers.len() + 1;
        let number = *self.numbers.entry(index).or_insert(next);
        for event in &events {
            match event {
                Event::Status(status) => self.status(index, number, status, &mut lines),
                Event::Log(log) => self.log(index, number, log, &mut lines),
                Event::Vertex(_) | Event::Warning(_) => {}
            }
        }
        let entry = &self.board.entries[index];
        let warned = self.warned.entry(index).or_insert(0);
        for warning in &entry.warnings[*warned..] {
            let _ = writeln!(lines, "#{number} WARN: {}", String::from_utf8_lossy(&warning.short));
        }
        *warned = entry.warnings.len();
        if entry.state.completed.is_some() && self.ended.insert(index) {
            if self.open.remove(&index) {
                lines.push('\n');
            }
            let _ = match &entry.state.error {
                Some(error) if is_canceled(error) => writeln!(lines, "#{number} CANCELED"),
                Some(error) => writeln!(lines, "#{number} ERROR: {error}"),
                None if entry.state.cached => writeln!(lines, "#{number} CACHED"),
                None => {
                    let seconds = entry.duration(SystemTime::UNIX_EPOCH).as_secs_f64();
                    writeln!(lines, "#{number} DONE {seconds:.1}s")
                }
            };
        }
        self.head(index, number, out);
        out.push_str(&lines);
        if self.ended.contains(&index) {
            self.current = None;
        }
    }

    /// Names the vertex, if the last lines were not about it.
    fn head(&mut self, index: usize, number: usize, out: &mut String) {
        if self.current == Some(index) {
            return;
        }
        if let Some(old) = self.current {
            if self.open.remove(&old) {
                out.push('\n');
            }
            let _ = writeln!(out, "#{} ...", self.numbers[&old]);
        }
        if self.not_first {
            out.push('\n');
        }
        self.not_first = true;
        let _ = writeln!(out, "#{number} {}", self.board.entries[index].state.name);
        self.current = Some(index);
    }

    fn status(&mut self, index: usize, number: usize, status: &Status, out: &mut String) {
        let key = (index, status.id.clone());
        if status.name == REMARK {
            if self.told.insert(key, status.clone()).is_none() {
                let _ = writeln!(out, "#{number} {}", status.id);
            }
            return;
        }
        if let Some(last) = self.told.get(&key) {
            let moved = status.current.saturating_sub(last.current);
            let is_far = status.total > 0 && moved.saturating_mul(20) >= status.total;
            let is_late =
                status.timestamp.duration_since(last.timestamp).unwrap_or_default() >= STATUS_INTERVAL;
            let news = status.completed.is_some() && last.completed.is_none() || status.name != last.name;
            if !(is_far || is_late || news) || last.completed.is_some() {
                return;
            }
        }
        let end = status.completed.unwrap_or(status.timestamp);
        let seconds = status.started.and_then(|started| end.duration_since(started).ok()).unwrap_or_default();
        let time =
            if seconds.as_millis() > 10 { format!(" {:.1}s", seconds.as_secs_f64()) } else { String::new() };
        let done = if status.completed.is_some() { " done" } else { "" };
        // BuildKit shows the id alone; a name that says more is put before it.
        let name = if status.name.is_empty() || status.id.starts_with(&status.name) {
            status.id.clone()
        } else {
            format!("{} {}", status.name, status.id)
        };
        let _ = writeln!(out, "#{number} {name}{}{time}{done}", amount(status));
        self.told.insert(key, status.clone());
    }

    fn log(&mut self, index: usize, number: usize, log: &Log, out: &mut String) {
        let started = self.board.entries[index].state.started;
        let since =
            started.and_then(|started| log.timestamp.duration_since(started).ok()).unwrap_or_default();
        for line in String::from_utf8_lossy(&log.data).split_inclusive('\n') {
            if !self.open.contains(&index) {
                let _ = write!(out, "#{number} {:.3} ", since.as_secs_f64());
            }
            out.push_str(line);
            if line.ends_with('\n') {
                self.open.remove(&index);
            } else {
                self.open.insert(index);
            }
        }
    }

    /// Which vertex failed first, for an excerpt of the Dockerfile.
    pub fn failed(&self) -> Option<&Digest> {
        let failed = |error: &Option<String>| error.as_deref().is_some_and(|error| !is_canceled(error));
        self.board.entries.iter().find(|entry| failed(&entry.state.error)).map(|entry| &entry.state.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Stream, VertexState, to_response};

    fn at(millis: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(millis)
    }

    fn vertex(name: &str, started: Option<u64>, completed: Option<u64>) -> VertexState {
        VertexState {
            started: started.map(at),
            completed: completed.map(at),
            ..VertexState::pending(Digest::sha256_of(name), name, vec![])
        }
    }

    fn log(name: &str, text: &str, time: u64) -> Event {
        let vertex = Digest::sha256_of(name);
        Event::Log(Log { vertex, stream: Stream::Stdout, data: text.into(), timestamp: at(time) })
    }

    fn status(name: &str, current: u64, completed: Option<u64>, time: u64) -> Event {
        Event::Status(Status {
            id: "transferring context:".to_owned(),
            vertex: Digest::sha256_of(name),
            name: "transferring".to_owned(),
            current,
            total: 0,
            timestamp: at(time),
            started: Some(at(0)),
            completed: completed.map(at),
        })
    }

    #[test]
    fn a_remark_is_a_line_of_its_own() {
        let mut plain = Plain::new();
        let remark = Event::Status(Status {
            id: "cache miss: file a changed".to_owned(),
            vertex: Digest::sha256_of("[2/2] COPY a /"),
            name: REMARK.to_owned(),
            current: 0,
            total: 0,
            timestamp: at(5),
            started: Some(at(5)),
            completed: Some(at(5)),
        });
        let events = [
            Event::Vertex(vertex("[2/2] COPY a /", Some(0), None)),
            remark.clone(),
            remark,
            Event::Vertex(vertex("[2/2] COPY a /", Some(0), Some(100))),
        ];
        insta::assert_snapshot!(plain.update(to_response(&events)), @r"
        #1 [2/2] COPY a /
        #1 cache miss: file a changed
        #1 DONE 0.1s
        ");
    }

    #[test]
    fn lines_are_those_of_buildkit() {
        let mut plain = Plain::new();
        let mut out = String::new();
        let cached = VertexState { cached: true, ..vertex("[2/4] COPY . .", Some(100), Some(100)) };
        let failed = VertexState {
            error: Some("exit code: 1".to_owned()),
            ..vertex("[4/4] RUN b", Some(200), Some(900))
        };
        let canceled = VertexState {
            error: Some("context canceled".to_owned()),
            ..vertex("[x] RUN c", Some(300), Some(950))
        };
        for batch in [
            vec![Event::Vertex(vertex("[internal] load build context", None, None))],
            vec![
                Event::Vertex(vertex("[internal] load build context", Some(0), None)),
                status("[internal] load build context", 32, None, 20),
            ],
            vec![
                Event::Vertex(vertex("[internal] load build context", Some(0), Some(120))),
                status("[internal] load build context", 1_050_000, Some(110), 110),
            ],
            vec![Event::Vertex(cached)],
            vec![Event::Vertex(vertex("[3/4] RUN a", Some(100), None)), log("[3/4] RUN a", "one\ntw", 150)],
            vec![log("[3/4] RUN a", "o\nthree", 160)],
            vec![Event::Vertex(vertex("[4/4] RUN b", Some(200), None)), log("[4/4] RUN b", "b\n", 210)],
            vec![log("[3/4] RUN a", "four\n", 300)],
            vec![Event::Vertex(vertex("[3/4] RUN a", Some(100), Some(800)))],
            vec![Event::Vertex(failed), Event::Vertex(canceled)],
        ] {
            out.push_str(&plain.update(to_response(&batch)));
        }
        insta::assert_snapshot!(out, @"
        #1 [internal] load build context
        #1 transferring context: 32B 0.0s
        #1 transferring context: 1.05MB 0.1s done
        #1 DONE 0.1s

        #2 [2/4] COPY . .
        #2 CACHED

        #3 [3/4] RUN a
        #3 0.050 one
        #3 0.050 two
        #3 0.060 three
        #3 ...

        #4 [4/4] RUN b
        #4 0.010 b
        #4 ...

        #3 [3/4] RUN a
        #3 0.200 four
        #3 DONE 0.7s

        #4 [4/4] RUN b
        #4 ERROR: exit code: 1

        #5 [x] RUN c
        #5 CANCELED
        ");
        assert_eq!(plain.failed(), Some(&Digest::sha256_of("[4/4] RUN b")));
    }
}
