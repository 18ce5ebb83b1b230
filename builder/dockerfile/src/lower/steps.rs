//! Steps of the classic transcript.

use std::fmt::Write as _;

use lapstrake_builder_llb::{BuiltDefinition, State};
use lapstrake_layerstore_oci::Digest;

use super::Lowering;
use crate::instructions::{Instruction, MetaArg};
use crate::location::LineRange;
use crate::options::Dialect;
use crate::plan::{Step, StepKind};

/// A step whose vertex has no digest yet.
pub(super) struct DraftStep {
    stage: Option<usize>,
    stage_name: Option<String>,
    text: String,
    kind: StepKind,
    /// What it made, if it made anything.
    made: Option<State>,
    /// What it said of the image: its history, or its text.
    said: String,
    lines: LineRange,
    trigger: bool,
    /// The step before it in the image: of the same stage, or the last of the stage it starts from.
    before: Option<usize>,
    /// Steps whose files it copies.
    uses: Vec<usize>,
    restored: bool,
}

impl Lowering<'_> {
    pub(super) fn global_arg_step(&mut self, meta: &MetaArg) {
        self.steps.push(DraftStep {
            stage: None,
            stage_name: None,
            text: meta.source.code.clone(),
            kind: StepKind::GlobalArg,
            made: None,
            said: String::new(),
            lines: meta.source.lines,
            trigger: false,
            before: None,
            uses: Vec::new(),
            restored: false,
        });
    }

    /// A stage of the Dockerfile begins.
    pub(super) fn stage_step(&mut self, index: usize) {
        let stage = &self.stages[index];
        if stage.number.is_none() {
            return;
        }
        let missing = stage.missing.is_some();
        let kind = StepKind::From {
            image_id: stage.base_id.clone(),
            scratch: stage.base.is_none() && stage.state.output().is_none(),
            triggers: stage.triggers,
        };
        let base = stage.base.and_then(|base| self.stages[base].number);
        let before = base.and_then(|base| self.steps.iter().rposition(|step| step.stage == Some(base)));
        let id = stage.base_id.as_ref().map(ToString::to_string);
        self.steps.push(DraftStep {
            stage: stage.number,
            stage_name: stage.name.clone(),
            text: stage.code.clone(),
            kind: if missing { StepKind::Failed } else { kind },
            made: None,
            said: id.unwrap_or_else(|| stage.base_name.clone()),
            lines: stage.lines,
            trigger: false,
            before,
            uses: Vec::new(),
            restored: false,
        });
    }

    /// An instruction was dispatched; `made` is the state that it made, if it is a vertex.
    pub(super) fn instruction_step(&mut self, index: usize, position: usize, made: Option<State>) {
        let stage = &self.stages[index];
        let command = &stage.commands[position].command;
        if stage.number.is_none() {
            return;
        }
        let said = match &command.instruction {
            Instruction::Onbuild(onbuild) => onbuild.expression.clone(),
            _ => stage.history.map(|last| self.history[last].0.created_by.clone()).unwrap_or_default(),
        };
        let (said, uses) = match self.is_classic() {
            true => self.classic_said(index, position, said),
            false => (said, Vec::new()),
        };
        let restored = self.is_restored(stage.number, position);
        let kind = match &command.instruction {
            Instruction::Run(_) => StepKind::Run { args: std::mem::take(&mut self.last_run) },
            Instruction::Add(_) | Instruction::Copy(_) => StepKind::Copy,
            _ => StepKind::Other,
        };
        self.steps.push(DraftStep {
            stage: stage.number,
            stage_name: stage.name.clone(),
            text: command.source.code.clone(),
            kind,
            // What an image gives is not made by a step.
            made: made.filter(|_| !restored),
            said,
            lines: command.source.lines,
            trigger: stage.commands[position].from_trigger,
            before: self.steps.len().checked_sub(1),
            uses,
            restored,
        });
    }

    /// What a step's state depends on besides the state before it. The history, unless that names what is known only afterwards: then
    /// the instruction, and the steps whose files it copies.
    fn classic_said(&self, index: usize, position: usize, history: String) -> (String, Vec<usize>) {
        let stage = &self.stages[index];
        let command = &stage.commands[position];
        let from: Vec<&str> = match &command.command.instruction {
            Instruction::Copy(copy) => copy.from.iter().map(String::as_str).collect(),
            Instruction::Run(run) if !run.flags_used.is_empty() => Vec::new(),
            Instruction::Add(add) if add.transfer.sources.iter().any(|source| is_remote(source)) => {
                Vec::new()
            }
            _ => return (history, Vec::new()),
        };
        if from.is_empty() && matches!(command.command.instruction, Instruction::Copy(_)) {
            return (history, Vec::new());
        }
        let dir = &stage.state.meta().dir;
        let mut said = format!("{dir} {}", command.command.source.code);
        let mut uses = Vec::new();
        for source in &command.sources {
            let source = &self.stages[*source];
            match source.number {
                Some(number) => uses.extend(self.steps.iter().rposition(|step| step.stage == Some(number))),
                None => {
                    let id = source.base_id.as_ref().map(ToString::to_string);
                    said.push_str(&format!(" {}", id.unwrap_or_else(|| source.base_name.clone())));
                }
            }
        }
        (said, uses)
    }

    /// The instruction at which the build fails.
    pub(super) fn failed_step(&mut self, index: usize, position: usize) {
        let stage = &self.stages[index];
        let source = &stage.commands[position].command.source;
        let step = DraftStep {
            stage: stage.number,
            stage_name: stage.name.clone(),
            text: source.code.clone(),
            kind: StepKind::Failed,
            made: None,
            said: String::new(),
            lines: source.lines,
            trigger: stage.commands[position].from_trigger,
            before: self.steps.len().checked_sub(1),
            uses: Vec::new(),
            restored: false,
        };
        self.steps.push(step);
    }
}

/// Gives steps their digests. A step's state is a hash over what it made and said and over the state before it: it changes exactly when
/// the image as of that step can have changed.
pub(super) fn finish(drafts: Vec<DraftStep>, built: &[&BuiltDefinition], dialect: Dialect) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::with_capacity(drafts.len());
    let mut hashed = String::new();
    for draft in drafts {
        let vertex = draft.made.as_ref().and_then(|state| built.iter().find_map(|built| built.digest(state)));
        let vertex = vertex.cloned();
        let mut fields: Vec<&str> =
            draft.before.iter().chain(&draft.uses).map(|step| steps[*step].state.as_str()).collect();
        // Clients' directories make vertices that are different each time, but are the same to the classic builder.
        let vertex_text = vertex.as_ref().filter(|_| dialect == Dialect::BuildKit).map_or("", Digest::as_str);
        // Lengths keep one field from running into the next.
        fields.extend([vertex_text, draft.said.as_str()]);
        hashed.clear();
        for field in fields {
            let _ = writeln!(hashed, "{} {field}", field.len());
        }
        let state = match (&draft.kind, draft.before) {
            // A stage that starts from another is at first what that one is at last.
            (StepKind::From { .. }, Some(before)) => steps[before].state.clone(),
            _ => Digest::sha256_of(&hashed),
        };
        steps.push(Step {
            stage: draft.stage,
            stage_name: draft.stage_name,
            text: draft.text,
            kind: draft.kind,
            vertex,
            state,
            lines: draft.lines,
            trigger: draft.trigger,
            restored: draft.restored,
        });
    }
    steps
}

fn is_remote(source: &str) -> bool {
    super::git::is_http(source) || super::git::is_git(source)
}
