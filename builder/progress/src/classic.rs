//! The classic transcript: `Step 1/3 : FROM busybox`, ` ---> 3f57d9401f8d`, …, as Moby's classic builder writes it.
//!
//! Steps appear in the Dockerfile's order, though vertices may run and end in any. Nothing is kept in memory for a step
//! whose turn has not come: the spool has it all, so the transcript goes back to where the step's vertex was
//! first heard of and reads on from there.
//!
//! This is not for: the lines' JSON, the image's id and `Successfully built` (whoever knows the outcome says them).

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    mem,
};

use lapstrake_layerstore_oci::{Digest, ImageId};

use crate::{Event, ProgressError, Stream, Subscription, from_response};

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
    /// Anything else.
    Other,
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

/// Turns a build's spool into its transcript.
pub struct Transcript {
    steps: VecDeque<(String, ClassicStep)>,
    events: Subscription,
    /// Where each vertex was first heard of.
    first_heard: HashMap<Digest, u64>,
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
    pub fn new(steps: Vec<ClassicStep>, events: Subscription) -> Self {
        let total = steps.iter().filter(|step| !step.trigger).count();
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
            events,
            first_heard: HashMap::new(),
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
        if self.seeking {
            return self.seek().await;
        }
        if self.current.is_none() {
            return Ok(self.begin());
        }
        let at = self.events.position();
        let Some(response) = self.events.next().await? else {
            // The build ended within this step: it failed or was cancelled.
            self.ended = true;
            let lines = self.current.take().map(Step::cut_off).unwrap_or_default();
            return Ok((!lines.is_empty()).then_some(lines));
        };
        let mut events = from_response(response);
        // A batch has states before output, whatever came first: put each state back to where it must have been.
        events.sort_by_key(|event| match event {
            Event::Vertex(state) if state.completed.is_none() => 0,
            Event::Vertex(_) => 2,
            _ => 1,
        });
        if at >= self.known {
            for event in &events {
                self.first_heard.entry(vertex_of(event).clone()).or_insert(at);
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

    /// The next step's beginning. Steps without work of their own are told whole.
    fn begin(&mut self) -> Option<Vec<ClassicLine>> {
        let (title, step) = self.steps.pop_front()?;
        let mut lines = Vec::new();
        if let Some(state) = self.last_state.take() {
            lines.push(ClassicLine::Stdout(state));
        }
        if !title.is_empty() {
            lines.push(ClassicLine::Stdout(title));
        }
        match step.vertex.clone() {
            Some(vertex) if !self.told.contains(&vertex) => {
                // Where its story begins, or where everything that is known ends.
                let at = self.first_heard.get(&vertex).copied().unwrap_or(self.known);
                self.events.rewind(at);
                self.current = Some(Step::new(vertex, step));
            }
            // The same vertex as an earlier step's, or none.
            _ => self.state_line(&step, &mut lines),
        }
        Some(lines)
    }

    fn end(&mut self, step: Step, lines: &mut Vec<ClassicLine>) {
        self.told.insert(step.vertex.clone());
        match step.outcome {
            Outcome::Well => self.state_line(&step.step, lines),
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
            if Outcome::of(state.error.as_deref()) != Outcome::Failed {
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

    fn state_line(&mut self, step: &ClassicStep, lines: &mut Vec<ClassicLine>) {
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

    /// The last line of a build that went well: the image's own id in place of the last step's.
    pub fn finish(&mut self, image: Option<&ImageId>) -> Vec<ClassicLine> {
        let Some(state) = self.last_state.take() else { return Vec::new() };
        vec![ClassicLine::Stdout(image.map_or(state, |image| format!(" ---> {}\n", image.short())))]
    }
}

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

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Well,
    Failed,
    Canceled,
}

impl Outcome {
    fn of(error: Option<&str>) -> Self {
        match error {
            None => Self::Well,
            // Go's words, which BuildKit and the solver use.
            Some(error) if error.contains("context canceled") => Self::Canceled,
            Some(_) => Self::Failed,
        }
    }
}

/// The step that is being told.
struct Step {
    vertex: Digest,
    step: ClassicStep,
    container: String,
    running: bool,
    outcome: Outcome,
    stdout: Text,
    stderr: Text,
    /// The last action of each part, so that only changes are told once a part has ended.
    parts: BTreeMap<String, String>,
}

impl Step {
    fn new(vertex: Digest, step: ClassicStep) -> Self {
        // There is no container to name: a stable stand-in that differs with the step.
        let container = Digest::sha256_of(format!("container {vertex}").as_bytes()).short().to_owned();
        Self {
            vertex,
            step,
            container,
            running: false,
            outcome: Outcome::Well,
            stdout: Text::default(),
            stderr: Text::default(),
            parts: BTreeMap::new(),
        }
    }

    /// Tells one event of this step's vertex; whether it was the last.
    fn take(&mut self, event: Event, lines: &mut Vec<ClassicLine>) -> bool {
        match event {
            Event::Vertex(state) => {
                if state.completed.is_none() && state.error.is_none() {
                    return false;
                }
                self.outcome = Outcome::of(state.error.as_deref());
                // Only now is it known that a silent step ran: a vertex starts also to find out that it is cached.
                if !state.cached {
                    self.run(lines);
                }
                self.flush(lines);
                if state.cached && !matches!(self.step.kind, ClassicKind::From { .. }) {
                    lines.push(ClassicLine::Stdout(" ---> Using cache\n".to_owned()));
                } else if mem::take(&mut self.running) && self.outcome == Outcome::Well {
                    let text = format!("Removing intermediate container {}\n", self.container);
                    lines.push(ClassicLine::Stdout(text));
                }
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

    fn run(&mut self, lines: &mut Vec<ClassicLine>) {
        if !self.running && self.step.kind == ClassicKind::Run {
            self.running = true;
            lines.push(ClassicLine::Stdout(format!(" ---> Running in {}\n", self.container)));
        }
    }

    fn flush(&mut self, lines: &mut Vec<ClassicLine>) {
        lines.extend(self.stdout.rest().map(ClassicLine::Stdout));
        lines.extend(self.stderr.rest().map(ClassicLine::Stderr));
    }

    fn cut_off(mut self) -> Vec<ClassicLine> {
        let mut lines = Vec::new();
        self.flush(&mut lines);
        lines
    }
}

/// Output as text. A character that is split between two pieces is put together; what is not UTF-8 is replaced.
#[derive(Default)]
struct Text {
    /// The beginning of a character: at most three bytes.
    pending: Vec<u8>,
}

impl Text {
    fn add(&mut self, data: &[u8]) -> Option<String> {
        let mut bytes = mem::take(&mut self.pending);
        bytes.extend_from_slice(data);
        if let Err(error) = std::str::from_utf8(&bytes)
            && error.error_len().is_none()
            && bytes.len() - error.valid_up_to() < 4
        {
            self.pending = bytes.split_off(error.valid_up_to());
        } else if let Some(start) = unfinished(&bytes) {
            self.pending = bytes.split_off(start);
        }
        (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned())
    }

    fn rest(&mut self) -> Option<String> {
        let pending = mem::take(&mut self.pending);
        (!pending.is_empty()).then(|| String::from_utf8_lossy(&pending).into_owned())
    }
}

/// Where a character begins that `bytes` end within.
fn unfinished(bytes: &[u8]) -> Option<usize> {
    let from = bytes.len().saturating_sub(3);
    let start = (from..bytes.len()).rev().find(|at| bytes[*at] & 0xC0 != 0x80)?;
    let length = match bytes[start] {
        0xC2..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xF4 => 4,
        _ => 1,
    };
    (bytes.len() - start < length).then_some(start)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Limits, Progress, VertexHandle, VertexState};

    fn vertex(progress: &Progress, name: &str) -> VertexHandle {
        let state = VertexState::pending(Digest::sha256_of(name), name, vec![]);
        VertexHandle::announce(Arc::new(progress.clone()), state)
    }

    fn step(text: &str, kind: ClassicKind, vertex: Option<&str>) -> ClassicStep {
        let vertex = vertex.map(Digest::sha256_of);
        ClassicStep { text: text.to_owned(), kind, vertex, state: Digest::sha256_of(text), trigger: false }
    }

    fn from(scratch: bool, triggers: usize) -> ClassicKind {
        ClassicKind::From { image: None, scratch, triggers }
    }

    /// The whole transcript of what `build` reports.
    async fn transcript(steps: Vec<ClassicStep>, build: impl FnOnce(&Progress)) -> String {
        let progress = Progress::anonymous(Limits::default()).unwrap();
        let mut transcript = Transcript::new(steps, progress.subscribe().unwrap());
        build(&progress);
        drop(progress);
        let mut lines = Vec::new();
        while let Some(more) = transcript.next().await.unwrap() {
            lines.extend(more);
        }
        lines.extend(transcript.finish(None));
        lines
            .into_iter()
            .map(|line| match line {
                ClassicLine::Stdout(text) => text,
                ClassicLine::Stderr(text) => format!("<{text}>"),
                ClassicLine::Part { id, action, current, total } => {
                    format!("{id}: {action} {current}/{total}\n")
                }
            })
            .collect()
    }

    #[tokio::test]
    async fn steps_are_told_in_order_however_they_ran() {
        let steps = vec![
            step("FROM scratch", from(true, 0), None),
            step("RUN first", ClassicKind::Run, Some("1")),
            step("RUN second", ClassicKind::Run, Some("2")),
        ];
        let text = transcript(steps, |progress| {
            let (one, two) = (vertex(progress, "1"), vertex(progress, "2"));
            two.start();
            two.log(Stream::Stdout, b"from two\n".to_vec());
            two.complete();
            one.start();
            one.log(Stream::Stdout, b"from one\n".to_vec());
            one.complete();
        })
        .await;
        insta::assert_snapshot!(text.replace(" \n", "·\n"), @"
        Step 1/3 : FROM scratch
         --->·
        Step 2/3 : RUN first
         ---> Running in 868bcc3441ea
        from one
        Removing intermediate container 868bcc3441ea
         ---> 9e29b3cba513
        Step 3/3 : RUN second
         ---> Running in 26c8394e1e98
        from two
        Removing intermediate container 26c8394e1e98
         ---> 6967399598a8
        ");
    }

    #[tokio::test]
    async fn output_of_a_parallel_step_is_not_lost_however_much_it_is() {
        let steps = vec![
            step("RUN first", ClassicKind::Run, Some("1")),
            step("RUN second", ClassicKind::Run, Some("2")),
        ];
        let text = transcript(steps, |progress| {
            let (one, two) = (vertex(progress, "1"), vertex(progress, "2"));
            one.start();
            two.start();
            for n in 0..5000 {
                one.log(Stream::Stdout, format!("one {n}\n").into_bytes());
                two.log(Stream::Stdout, format!("two {n}\n").into_bytes());
            }
            two.complete();
            one.complete();
        })
        .await;
        let numbers = |name: &str| {
            let lines = text.lines().filter_map(|line| line.strip_prefix(name)?.trim().parse::<usize>().ok());
            lines.collect::<Vec<_>>()
        };
        assert_eq!(numbers("one"), (0..5000).collect::<Vec<_>>());
        assert_eq!(numbers("two"), (0..5000).collect::<Vec<_>>());
        assert!(text.find("one 4999").unwrap() < text.find("two 0").unwrap());
    }

    #[tokio::test]
    async fn a_failed_step_is_told_although_an_earlier_one_was_cancelled() {
        let steps = vec![
            step("RUN first", ClassicKind::Run, Some("1")),
            step("RUN second", ClassicKind::Run, Some("2")),
            step("RUN third", ClassicKind::Run, Some("3")),
        ];
        let text = transcript(steps, |progress| {
            let (one, two) = (vertex(progress, "1"), vertex(progress, "2"));
            one.start();
            two.start();
            two.log(Stream::Stderr, b"broken\n".to_vec());
            two.fail("exit code: 1");
            one.fail("context canceled");
        })
        .await;
        insta::assert_snapshot!(text, @"
        Step 1/3 : RUN first
         ---> Running in 868bcc3441ea
        Step 2/3 : RUN second
         ---> Running in 26c8394e1e98
        <broken
        >
        ");
    }

    #[tokio::test]
    async fn cached_steps_triggers_and_parts_are_told() {
        let mut trigger = step("RUN trigger", ClassicKind::Run, Some("t"));
        trigger.trigger = true;
        let steps = vec![
            step("ARG A", ClassicKind::GlobalArg, None),
            step("FROM base", from(false, 1), Some("b")),
            trigger,
            step("COPY a b", ClassicKind::Other, Some("c")),
            step("CMD x", ClassicKind::Other, None),
        ];
        let text = transcript(steps, |progress| {
            let base = vertex(progress, "b");
            base.start();
            let mut part = base.part("sha256:1", "downloading", 10);
            part.rename("extracting");
            part.done();
            base.complete();
            vertex(progress, "t").cached();
            vertex(progress, "c").cached();
        })
        .await;
        insta::assert_snapshot!(text, @"
        Step 1/4 : ARG A
        Step 2/4 : FROM base
        sha256:1: downloading 0/10
        sha256:1: extracting 0/10
        # Executing 1 build trigger
         ---> 9fb7b1ad6ac3
         ---> Using cache
         ---> 5822defce290
        Step 3/4 : COPY a b
         ---> Using cache
         ---> 6ef55daaa0eb
        Step 4/4 : CMD x
         ---> c6db340c8ad7
        ");
    }

    #[test]
    fn characters_split_between_pieces_are_put_together() {
        let mut text = Text::default();
        let bytes = "aé€😀".as_bytes();
        let mut told = String::new();
        for byte in bytes {
            told.extend(text.add(&[*byte]));
        }
        assert_eq!(told, "aé€😀");
        assert_eq!(text.add(b"\xff\xe2"), Some("\u{fffd}".to_owned()));
        assert_eq!(text.rest(), Some("\u{fffd}".to_owned()));
        assert_eq!(text.rest(), None);
    }
}
