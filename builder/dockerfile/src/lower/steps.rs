//! Steps of the classic transcript.

use lapstrake_builder_llb::{BuiltDefinition, State};
use lapstrake_layerstore_oci::Digest;

use super::Lowering;
use crate::instructions::{Instruction, MetaArg};
use crate::location::LineRange;
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
        });
    }

    /// A stage of the Dockerfile begins.
    pub(super) fn stage_step(&mut self, index: usize) {
        let stage = &self.stages[index];
        if stage.number.is_none() {
            return;
        }
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
            kind,
            made: None,
            said: id.unwrap_or_else(|| stage.base_name.clone()),
            lines: stage.lines,
            trigger: false,
            before,
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
            made,
            said,
            lines: command.source.lines,
            trigger: stage.commands[position].from_trigger,
            before: self.steps.len().checked_sub(1),
        });
    }
}

/// Gives steps their digests. A step's state is a hash over what it made and said and over the state before it: it changes exactly when
/// the image as of that step can have changed.
pub(super) fn finish(drafts: &[DraftStep], built: &BuiltDefinition) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::with_capacity(drafts.len());
    for draft in drafts {
        let vertex = draft.made.as_ref().and_then(|state| built.digest(state)).cloned();
        let before = draft.before.map_or("", |before| steps[before].state.as_str());
        let vertex_text = vertex.as_ref().map_or("", Digest::as_str);
        // Lengths keep one field from running into the next.
        let fields = [before, vertex_text, &draft.said];
        let hashed: String = fields.iter().map(|field| format!("{} {field}\n", field.len())).collect();
        let state = match (&draft.kind, draft.before) {
            // A stage that starts from another is at first what that one is at last.
            (StepKind::From { .. }, Some(before)) => steps[before].state.clone(),
            _ => Digest::sha256_of(hashed),
        };
        steps.push(Step {
            stage: draft.stage,
            stage_name: draft.stage_name.clone(),
            text: draft.text.clone(),
            kind: draft.kind.clone(),
            vertex,
            state,
            lines: draft.lines,
            trigger: draft.trigger,
        });
    }
    steps
}
