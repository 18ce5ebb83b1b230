//! The classic transcript: `Step 1/3 : FROM busybox`, ` ---> 3f57d9401f8d`, …, as Moby's classic builder writes it.
//!
//! Steps appear in the Dockerfile's order, though vertices may run and end in any. Nothing is kept in memory for a step
//! whose turn has not come but how it ended: the spool has its output, so the transcript goes back to where that begins and
//! reads on from there.
//!
//! Containers are told where Moby would have had one. Their ids are stand-ins: a step's container is gone with the step.
//!
//! This is not for: the lines' JSON, the image's id and `Successfully built` (whoever knows the outcome says them).

mod step;
#[cfg(test)]
mod tests;
mod text;

use std::collections::{HashMap, HashSet, VecDeque};

use lapstrake_layerstore_oci::{Digest, ImageId};

use crate::{Event, ProgressError, Subscription, from_response};
use step::{Outcome, Step, container};

/// What kind of step it is, as far as the transcript cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClassicKind {
    /// `ARG` before the first `FROM`: named, and nothing more said.
    GlobalArg,
    /// `FROM`.
    From {
        /// The base image, where it is known by an id.
        image: Option<ImageId>,
        /// Whether it starts from nothing: then there is no id to show.
        scratch: bool,
        /// How many `ONBUILD` triggers follow as steps.
        triggers: usize,
    },
    /// `RUN`, which runs in a container.
    Run,
    /// `COPY` and `ADD`, which need no container.
    Files,
    /// Anything else: in a container that does not run.
    Other,
    /// The step at which the build is known to fail: named, and nothing more said.
    Failed,
}

/// One line of a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassicStep {
    /// The instruction as Moby prints it.
    pub text: String,
    /// What it is.
    pub kind: ClassicKind,
    /// The vertex that does its work; none when it changes nothing but the image's config.
    pub vertex: Option<Digest>,
    /// Stands for the image after this step; its first 12 digits are shown.
    pub state: Digest,
    /// An `ONBUILD` trigger: run, but neither numbered nor named.
    pub trigger: bool,
    /// For a step without a vertex: whether the image after it was made before.
    pub known: bool,
}

/// Everything that a transcript is told of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClassicScript {
    /// The steps, in the Dockerfile's order.
    pub steps: Vec<ClassicStep>,
    /// How many are counted; as many as there are when not said.
    pub total: Option<usize>,
    /// Build arguments that nobody declared.
    pub unused_args: Vec<String>,
    /// Doubts about the Dockerfile that are told before the first step, a line each.
    pub warnings: Vec<String>,
}

/// When the transcript says that a step's container is removed (`rm`, `forcerm`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// Never.
    Never,
    /// When the step went well.
    AfterSuccess,
    /// However it went.
    Always,
}

/// One line, or a piece of a process's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClassicLine {
    /// To standard output; may lack a line end.
    Stdout(String),
    /// To standard error.
    Stderr(String),
    /// How far a part of a step is, such as one layer's download.
    Part {
        /// Which part.
        id: String,
        /// What is being done.
        action: String,
        /// Units done.
        current: u64,
        /// Units in all; 0 when not known.
        total: u64,
    },
}

/// What a vertex did so far that is worth telling.
#[derive(Debug, Clone, Copy)]
enum Heard {
    /// It ended well and had nothing to say.
    Quiet { cached: bool },
    /// What is to be told of it begins here in the spool.
    At(u64),
}

/// Turns a build's spool into its transcript.
pub struct Transcript {
    steps: VecDeque<(String, ClassicStep)>,
    removal: Removal,
    unused_args: Vec<String>,
    /// Not told yet.
    warnings: Vec<String>,
    /// States that were made by this build, and not found.
    fresh: HashSet<Digest>,
    /// Whether the state before the step at hand is one of them.
    is_fresh: bool,
    /// The vertex because of which the build failed, once it was looked for.
    failed: Option<Option<Digest>>,
    events: Subscription,
    /// What the vertices did that were read past.
    heard: HashMap<Digest, Heard>,
    /// Up to where the spool was read at all.
    known: u64,
    told: HashSet<Digest>,
    current: Option<Step>,
    /// The last step's ` ---> id`, which waits for the image's own id.
    last_state: Option<String>,
    /// The step that was told last was cancelled: the one that failed is looked for.
    seeking: bool,
    ended: bool,
}

impl Transcript {
    /// A transcript of these steps; `events` is a subscription that nobody has read from.
    pub fn new(script: ClassicScript, removal: Removal, events: Subscription) -> Self {
        let ClassicScript { steps, total, unused_args, warnings } = script;
        let total = total.unwrap_or_else(|| steps.iter().filter(|step| !step.trigger).count());
        let mut number = 0;
        let named = steps.into_iter().map(|step| {
            if step.trigger {
                return (String::new(), step);
            }
            number += 1;
            (format!("Step {number}/{total} : {}\n", step.text), step)
        });
        Self {
            steps: named.collect(),
            removal,
            unused_args,
            warnings,
            fresh: HashSet::new(),
            is_fresh: false,
            failed: None,
            events,
            heard: HashMap::new(),
            known: 0,
            told: HashSet::new(),
            current: None,
            last_state: None,
            seeking: false,
            ended: false,
        }
    }

    /// What comes next, perhaps nothing yet; `None` when the steps are told or the build has ended. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Vec<ClassicLine>>, ProgressError> {
        if self.ended {
            return Ok(None);
        }
        if !self.warnings.is_empty() {
            // In one piece, as Moby writes them.
            let text = std::mem::take(&mut self.warnings).join("\n");
            return Ok(Some(vec![ClassicLine::Stderr(format!("{text}\n"))]));
        }
        if self.seeking {
            return self.seek().await;
        }
        if self.current.is_none() {
            return Ok(self.begin());
        }
        let at = self.events.position();
        let Some(response) = self.events.next().await? else {
            return self.end_of_build().await;
        };
        let mut events = from_response(response);
        // A batch has states before output, whatever came first: put each state back to where it must have been.
        events.sort_by_key(|event| match event {
            Event::Vertex(state) if state.completed.is_none() => 0,
            Event::Vertex(_) => 2,
            _ => 1,
        });
        if at >= self.known {
            for event in events.iter().filter(|event| step::is_told(event)) {
                let quiet = match event {
                    Event::Vertex(state) if state.error.is_none() => Heard::Quiet { cached: state.cached },
                    _ => Heard::At(at),
                };
                self.heard.entry(vertex_of(event).clone()).or_insert(quiet);
            }
            self.known = self.events.position();
        }
        let Some(step) = &mut self.current else { return Ok(Some(Vec::new())) };
        let mut lines = Vec::new();
        for event in events {
            if *vertex_of(&event) == step.vertex && step.take(event, &mut lines) {
                let step = self.current.take().expect("looked at just now");
                self.end(step, &mut lines);
                break;
            }
        }
        Ok(Some(lines))
    }

    /// The build ended within the step at hand: that failed or was cancelled; or another one failed before this one was looked at,
    /// which then has found it.
    async fn end_of_build(&mut self) -> Result<Option<Vec<ClassicLine>>, ProgressError> {
        let untouched = self.current.as_ref().is_some_and(Step::is_untouched);
        if untouched && self.failed.is_none() {
            self.failed = Some(self.find_failed().await?);
        }
        let later = |failed: &Digest| self.steps.iter().any(|(_, step)| step.vertex.as_ref() == Some(failed));
        if untouched
            && self.failed.iter().flatten().any(later)
            && let Some(step) = self.current.take()
        {
            let mut lines = Vec::new();
            let step = step.found(&mut lines);
            self.end(step, &mut lines);
            return Ok(Some(lines));
        }
        self.ended = true;
        let lines = self.current.take().map(Step::cut_off).unwrap_or_default();
        Ok((!lines.is_empty()).then_some(lines))
    }

    /// The vertex that failed by itself.
    async fn find_failed(&mut self) -> Result<Option<Digest>, ProgressError> {
        self.events.rewind(0);
        let mut failed = None;
        while let Some(response) = self.events.next().await? {
            for event in from_response(response) {
                if let Event::Vertex(state) = event
                    && Outcome::of(state.error.as_deref(), false) == Outcome::Failed
                {
                    failed = Some(state.digest);
                }
            }
        }
        Ok(failed)
    }

    /// The next step's beginning. Steps without work of their own are told whole.
    fn begin(&mut self) -> Option<Vec<ClassicLine>> {
        let (title, step) = self.steps.pop_front()?;
        let mut lines = Vec::new();
        // Triggers belong to their `FROM`, and only the state after the last of them is told.
        if let Some(state) = self.last_state.take().filter(|_| !step.trigger) {
            lines.push(ClassicLine::Stdout(state));
        }
        if !title.is_empty() {
            lines.push(ClassicLine::Stdout(title));
        }
        match step.vertex.clone() {
            _ if step.kind == ClassicKind::Failed => {}
            Some(vertex) if !self.told.contains(&vertex) => {
                let heard = self.heard.get(&vertex).copied();
                let mut step = Step::new(vertex, step, self.removal);
                if let Some(Heard::Quiet { cached }) = heard {
                    step.complete(None, cached, &mut lines);
                    self.end(step, &mut lines);
                } else {
                    // Where its story begins, or where everything that is known ends.
                    self.events.rewind(if let Some(Heard::At(at)) = heard { at } else { self.known });
                    self.current = Some(step);
                }
            }
            vertex => {
                if matches!(step.kind, ClassicKind::Run | ClassicKind::Files | ClassicKind::Other) {
                    // The same vertex as an earlier step's is found, as every state that was made before.
                    let cached = vertex.is_some() || (step.known && !self.is_fresh);
                    self.is_fresh |= !cached;
                    lines.extend(self.without_work(&step, cached));
                }
                self.state_line(&step, &mut lines);
            }
        }
        Some(lines)
    }

    fn end(&mut self, step: Step, lines: &mut Vec<ClassicLine>) {
        self.told.insert(step.vertex.clone());
        match step.outcome {
            Outcome::Well { cached } => {
                self.is_fresh |= !cached;
                self.state_line(&step.step, lines);
            }
            // What comes after is not told.
            Outcome::Failed => self.ended = true,
            Outcome::Canceled => {
                self.seeking = true;
                self.events.rewind(0);
            }
        }
    }

    /// Goes on with the step because of which the others were cancelled.
    async fn seek(&mut self) -> Result<Option<Vec<ClassicLine>>, ProgressError> {
        let Some(response) = self.events.next().await? else {
            self.ended = true;
            return Ok(None);
        };
        for event in from_response(response) {
            let Event::Vertex(state) = event else { continue };
            if Outcome::of(state.error.as_deref(), false) != Outcome::Failed {
                continue;
            }
            let at = self.steps.iter().position(|(_, step)| step.vertex.as_ref() == Some(&state.digest));
            if let Some(at) = at {
                self.steps.drain(..at);
                self.seeking = false;
                self.known = self.known.max(self.events.position());
                self.events.rewind(0);
                break;
            }
        }
        Ok(Some(Vec::new()))
    }

    /// What is said of a step that is nothing but a change of the config.
    fn without_work(&self, step: &ClassicStep, cached: bool) -> Vec<ClassicLine> {
        if cached {
            return vec![ClassicLine::Stdout(USING_CACHE.to_owned())];
        }
        if step.kind == ClassicKind::Files {
            return Vec::new();
        }
        let container = container(&step.state);
        let mut lines = vec![ClassicLine::Stdout(format!(" ---> Running in {container}\n"))];
        if self.removal != Removal::Never {
            lines.push(ClassicLine::Stdout(format!("Removing intermediate container {container}\n")));
        }
        lines
    }

    fn state_line(&mut self, step: &ClassicStep, lines: &mut Vec<ClassicLine>) {
        match step.kind {
            // A stage that starts from another one is as fresh as that is.
            ClassicKind::From { .. } => self.is_fresh = self.fresh.contains(&step.state),
            _ if self.is_fresh => _ = self.fresh.insert(step.state.clone()),
            _ => {}
        }
        match &step.kind {
            ClassicKind::GlobalArg => return,
            ClassicKind::From { scratch: true, .. } => self.last_state = Some(" ---> \n".to_owned()),
            ClassicKind::From { image: Some(image), .. } => {
                self.last_state = Some(format!(" ---> {}\n", image.short()));
            }
            _ => self.last_state = Some(format!(" ---> {}\n", step.state.short())),
        }
        if let ClassicKind::From { triggers, .. } = step.kind
            && triggers > 0
        {
            let plural = if triggers == 1 { "" } else { "s" };
            lines.push(ClassicLine::Stdout(format!("# Executing {triggers} build trigger{plural}\n")));
        }
    }

    /// Build arguments that nobody declared.
    pub fn unused_args(&self) -> &[String] {
        &self.unused_args
    }

    /// The last line of a build that went well: the image's own id in place of the last step's.
    pub fn finish(&mut self, image: Option<&ImageId>) -> Vec<ClassicLine> {
        let Some(state) = self.last_state.take() else { return Vec::new() };
        vec![ClassicLine::Stdout(image.map_or(state, |image| format!(" ---> {}\n", image.short())))]
    }
}

const USING_CACHE: &str = " ---> Using cache\n";

impl std::fmt::Debug for Transcript {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transcript").field("steps", &self.steps.len()).finish_non_exhaustive()
    }
}

fn vertex_of(event: &Event) -> &Digest {
    match event {
        Event::Vertex(state) => &state.digest,
        Event::Status(status) => &status.vertex,
        Event::Log(log) => &log.vertex,
        Event::Warning(warning) => &warning.vertex,
    }
}
