//! The step that is being told.

use std::{collections::BTreeMap, mem};

use lapstrake_layerstore_oci::Digest;

use super::{ClassicKind, ClassicLine, ClassicStep, Removal, USING_CACHE, text::Text};
use crate::{Event, Stream, vertex::REMARK};

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Well { cached: bool },
    Failed,
    Canceled,
}

impl Outcome {
    pub(super) fn of(error: Option<&str>, cached: bool) -> Self {
        match error {
            None => Self::Well { cached },
            // Go's words, which BuildKit and the solver use.
            Some(error) if error.contains("context canceled") => Self::Canceled,
            Some(_) => Self::Failed,
        }
    }
}

/// A container's stand-in: stable, and another one for each step.
pub(super) fn container(of: &Digest) -> String {
    Digest::sha256_of(format!("container {of}").as_bytes()).short().to_owned()
}

/// Whether a transcript says anything of an event: not of beginnings, nor of remarks, which Moby's builder does not have.
pub(super) fn is_told(event: &Event) -> bool {
    match event {
        Event::Vertex(state) => state.completed.is_some() || state.error.is_some(),
        Event::Status(status) => status.name != REMARK,
        Event::Log(_) | Event::Warning(_) => true,
    }
}

/// The step that is being told.
pub(super) struct Step {
    pub(super) vertex: Digest,
    pub(super) step: ClassicStep,
    removal: Removal,
    container: String,
    running: bool,
    touched: bool,
    pub(super) outcome: Outcome,
    stdout: Text,
    stderr: Text,
    /// The last action of each part, so that only changes are told once a part has ended.
    parts: BTreeMap<String, String>,
}

impl Step {
    pub(super) fn new(vertex: Digest, step: ClassicStep, removal: Removal) -> Self {
        let container = container(&vertex);
        Self {
            vertex,
            step,
            removal,
            container,
            running: false,
            touched: false,
            outcome: Outcome::Well { cached: true },
            stdout: Text::default(),
            stderr: Text::default(),
            parts: BTreeMap::new(),
        }
    }

    /// Tells one event of this step's vertex; whether it was the last.
    pub(super) fn take(&mut self, event: Event, lines: &mut Vec<ClassicLine>) -> bool {
        if !is_told(&event) {
            return false;
        }
        match event {
            Event::Vertex(state) => {
                self.complete(state.error.as_deref(), state.cached, lines);
                true
            }
            Event::Log(log) => {
                self.run(lines);
                match log.stream {
                    Stream::Stdout => lines.extend(self.stdout.add(&log.data).map(ClassicLine::Stdout)),
                    Stream::Stderr => lines.extend(self.stderr.add(&log.data).map(ClassicLine::Stderr)),
                }
                false
            }
            Event::Status(status) => {
                let action = if status.name.is_empty() { status.id.clone() } else { status.name };
                let ended = status.completed.is_some();
                if !ended || self.parts.get(&status.id) != Some(&action) {
                    self.parts.insert(status.id.clone(), action.clone());
                    lines.push(ClassicLine::Part {
                        id: status.id,
                        action,
                        current: status.current,
                        total: status.total,
                    });
                }
                false
            }
            Event::Warning(warning) => {
                let text = String::from_utf8_lossy(&warning.short).into_owned();
                lines.push(ClassicLine::Stderr(format!(" ---> [Warning] {text}\n")));
                false
            }
        }
    }

    /// Its vertex ended.
    pub(super) fn complete(&mut self, error: Option<&str>, cached: bool, lines: &mut Vec<ClassicLine>) {
        self.touched = true;
        self.outcome = Outcome::of(error, cached);
        // Only now is it known that a silent step ran: a vertex starts also to find out that it is cached.
        if !cached {
            self.run(lines);
        }
        self.flush(lines);
        if cached && !matches!(self.step.kind, ClassicKind::From { .. }) {
            lines.push(ClassicLine::Stdout(USING_CACHE.to_owned()));
        } else if mem::take(&mut self.running) && self.removes() {
            lines.push(ClassicLine::Stdout(format!("Removing intermediate container {}\n", self.container)));
        }
    }

    fn run(&mut self, lines: &mut Vec<ClassicLine>) {
        if !self.running && matches!(self.step.kind, ClassicKind::Run | ClassicKind::Other) {
            self.running = true;
            lines.push(ClassicLine::Stdout(format!(" ---> Running in {}\n", self.container)));
        }
    }

    fn removes(&self) -> bool {
        match self.removal {
            Removal::Never => false,
            Removal::AfterSuccess => matches!(self.outcome, Outcome::Well { .. }),
            Removal::Always => true,
        }
    }

    /// Whether nothing was heard of it.
    pub(super) fn is_untouched(&self) -> bool {
        !self.touched && !self.running
    }

    /// It was found without being looked at.
    pub(super) fn found(self, lines: &mut Vec<ClassicLine>) -> Self {
        if !matches!(self.step.kind, ClassicKind::From { .. }) {
            lines.push(ClassicLine::Stdout(USING_CACHE.to_owned()));
        }
        self
    }

    fn flush(&mut self, lines: &mut Vec<ClassicLine>) {
        lines.extend(self.stdout.rest().map(ClassicLine::Stdout));
        lines.extend(self.stderr.rest().map(ClassicLine::Stderr));
    }

    pub(super) fn cut_off(mut self) -> Vec<ClassicLine> {
        let mut lines = Vec::new();
        self.flush(&mut lines);
        lines
    }
}
