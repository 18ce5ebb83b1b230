//! What Moby's classic builder does otherwise: its history, its labels, all stages, and faults that wait for their turn.
//!
//! Facts: `builder/dockerfile` in moby/moby at v20.10 (dispatchers.go, internals.go, copy.go, buildargs.go).

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use lapstrake_builder_llb::{BuiltDefinition, Definition, Output, State};
use lapstrake_layerstore_oci::{Digest, History};

use super::dispatch::At;
use super::metadata::with_shell;
use super::stages::{StageCommand, StageState};
use super::{LowerError, Lowered, Lowering};
use crate::Error;
use crate::facts::{CopyQuery, CopySource, Place};
use crate::instructions::{Command, Instruction, KeyValue, Label, PairStyle, SourceText};
use crate::options::Dialect;
use crate::plan::{ClassicPlan, StageEntry, StageHistory};

/// Build arguments that need no declaration and leave no trace in the history.
const BUILTIN_ARGS: [&str; 8] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
];

/// A [`CopyQuery`] whose graphs are not written yet.
pub(super) struct DraftCopy {
    pub(super) place: Place,
    pub(super) keyword: &'static str,
    pub(super) sources: Vec<DraftSource>,
    pub(super) to_directory: bool,
}

/// A [`CopySource`] whose graph is not written yet.
pub(super) enum DraftSource {
    Context { path: String },
    Tree { state: State, path: String },
    Download { state: State, path: String },
    Said(String),
}

/// What is known of an entry of the history besides itself.
pub(super) struct EntryTraits {
    /// Whether its text is all that counts.
    complete: bool,
    /// The copy that its text is of.
    copy: Option<Place>,
    /// The image's files after it, if it may change them.
    made: Option<State>,
}

impl Lowering<'_> {
    pub(super) fn is_classic(&self) -> bool {
        self.options.dialect == Dialect::Classic
    }

    /// The client's labels are instructions at the end of the target stage, in the order of their names.
    pub(super) fn add_label_steps(&mut self, target: usize) {
        if !self.is_classic() {
            return;
        }
        let lines = self.stages[target].lines;
        for (key, value) in &self.options.labels {
            let pair = KeyValue { key: key.clone(), value: value.clone(), style: PairStyle::Equals };
            let source = SourceText {
                keyword: "LABEL".to_owned(),
                code: format!("LABEL {key}={value}"),
                lines,
                comments: Vec::new(),
            };
            let instruction = Instruction::Label(Label { pairs: vec![pair] });
            self.stages[target].commands.push(StageCommand {
                command: Arc::new(Command { source, instruction }),
                sources: Vec::new(),
                from_trigger: false,
                literal: true,
            });
        }
    }

    /// The stages that are built: those that the target needs; and, by the classic builder, all that stand before it.
    pub(super) fn planned(&self, target: usize) -> BTreeSet<usize> {
        let mut planned = self.reachable(target);
        if self.is_classic()
            && let Some(last) = self.stages[target].number
        {
            let before = self.stages.iter().enumerate();
            let before = before.filter(|(_, stage)| stage.number.is_some_and(|number| number < last));
            for index in before.map(|(index, _)| index).collect::<Vec<_>>() {
                planned.extend(self.reachable(index));
            }
        }
        planned
    }

    /// The stage that the plan ends with.
    pub(super) fn last_dispatched(&self, target: usize) -> usize {
        self.failure.as_ref().map_or(target, |(stage, _)| *stage)
    }

    /// Adds an instruction to a stage's history.
    pub(super) fn commit_classic(
        &mut self,
        stage: usize,
        created_by: String,
        makes_layer: bool,
        complete: bool,
        copy: Option<Place>,
    ) {
        let entry = History {
            created: self.created(),
            created_by,
            author: self.stages[stage].image.author.clone(),
            empty_layer: !makes_layer,
            ..History::default()
        };
        let entry = self.restored_entry(stage).unwrap_or(entry);
        let made = makes_layer.then(|| self.stages[stage].state.clone());
        self.traits.insert(self.history.len(), EntryTraits { complete, copy, made });
        self.push_entry(stage, entry);
    }

    /// The image's entry for the instruction at hand, if that is where its result comes from.
    fn restored_entry(&self, stage: usize) -> Option<History> {
        let restored = self.facts.restored.get(&self.stages[stage].number?)?;
        restored.history.get(self.place.position).cloned()
    }

    /// `/bin/sh -c #(nop) …`: an instruction that runs nothing.
    pub(super) fn nop(&self, stage: usize, text: &str) -> String {
        // Most are two words of the command line, these are one.
        let single = ["ADD ", "COPY ", "WORKDIR "].iter().any(|keyword| text.starts_with(keyword));
        let text = format!("#(nop) {}{text}", if single { "" } else { " " });
        with_shell(&self.stages[stage].image, &text).join(" ")
    }

    /// `|2 A=1 B=2 /bin/sh -c …`: with the arguments that it saw, sorted.
    pub(super) fn classic_run_history(&self, stage: usize, args: &[String]) -> String {
        let stage = &self.stages[stage];
        let in_env =
            |key: &str| stage.image.config.env.iter().any(|variable| variable.split('=').next() == Some(key));
        let mut declared: Vec<String> = Vec::new();
        let mut seen = BTreeSet::new();
        for (key, value) in stage.args.iter().rev() {
            if seen.insert(key.as_str())
                && !in_env(key)
                && let Some(value) = value
            {
                declared.push(format!("{key}={value}"));
            }
        }
        declared.sort();
        let builtin = BUILTIN_ARGS.iter().any(|key| self.build_args.contains_key(*key) && !in_env(key));
        let count = (builtin || !declared.is_empty()).then(|| format!("|{}", declared.len()));
        let words: Vec<&str> = count.iter().chain(&declared).chain(args).map(String::as_str).collect();
        words.join(" ")
    }

    /// The hash of what a `COPY` or `ADD` copies, as far as it is known; an error if it cannot be copied.
    pub(super) fn copied(&mut self, at: &At, copy: DraftCopy) -> Lowered<String> {
        match self.facts.copied.get(&copy.place) {
            Some(Ok(hash)) => Ok(hash.clone()),
            Some(Err(problem)) => Err(LowerError::Classic(problem.clone()).at(at.lines)),
            None => {
                self.copies.push(copy);
                Ok("unknown".to_owned())
            }
        }
    }

    /// Makes a stage's state that of an image, if the instruction at hand is the last that the image has.
    pub(super) fn restore(&mut self, index: usize) {
        let Some(number) = self.stages[index].number else { return };
        let Some(restored) = self.facts.restored.get(&number) else { return };
        let (Some(layers), true) = (restored.layers, self.place.position + 1 == restored.count) else {
            return;
        };
        let platform = self.stages[index].platform.clone().unwrap_or_else(|| self.target_platform.clone());
        let image = self.layers_of(restored.image.clone(), layers, &platform);
        let state = self.stages[index].state.clone().with_output(image.output());
        self.set_state(index, state);
    }

    /// Whether an image gives the instruction's result.
    pub(super) fn is_restored(&self, number: Option<usize>, position: usize) -> bool {
        let restored = number.and_then(|number| self.facts.restored.get(&number));
        restored.is_some_and(|restored| position < restored.count)
    }

    /// What the classic dialect adds to a plan, and the graphs of the stages beside the target's.
    pub(super) fn classic_plan(
        &self,
        goal: usize,
        last: usize,
        target: &BuiltDefinition,
        marshal: &dyn Fn(&State) -> Lowered<BuiltDefinition>,
    ) -> Lowered<(Option<ClassicPlan>, Vec<BuiltDefinition>)> {
        let mut others: Vec<BuiltDefinition> = Vec::new();
        for stage in self.stages.iter().filter(|stage| stage.dispatched && stage.number.is_some()) {
            let covered =
                std::iter::once(target).chain(&others).any(|built| built.digest(&stage.state).is_some());
            if stage.state.output().is_some() && !covered {
                others.push(marshal(&stage.state)?);
            }
        }
        // Much may be copied from one stage.
        let mut written: HashMap<Option<Output>, Arc<Definition>> = HashMap::new();
        let mut write = |state: &State| -> Lowered<Arc<Definition>> {
            if let Some(definition) = written.get(&state.output()) {
                return Ok(Arc::clone(definition));
            }
            let definition = Arc::new(marshal(state)?.definition);
            written.insert(state.output(), Arc::clone(&definition));
            Ok(definition)
        };
        let copies = self.copies.iter().map(|copy| self.copy_query(copy, &mut write));
        let plan = ClassicPlan {
            others: others.iter().map(|built| built.definition.clone()).collect(),
            total: self.steps_in_all(goal),
            failure: self.failure.as_ref().map(|(_, error)| error.clone()).or_else(|| self.no_image(last)),
            unused_args: self.unused_args(),
            copies: copies.collect::<Lowered<_>>()?,
            stages: self.stage_histories(),
            made: self.made(last, target),
        };
        Ok((Some(plan), others))
    }

    /// For each entry that the history has after the base image's: the vertex that it is the result of.
    fn made(&self, stage: usize, built: &BuiltDefinition) -> Vec<Option<Digest>> {
        let mut vertices = Vec::new();
        let mut next = self.stages[stage].history;
        while let Some(index) = next {
            let Some(traits) = self.traits.get(&index) else { break };
            vertices.push(traits.made.as_ref().and_then(|state| built.digest(state)).cloned());
            next = self.history[index].1;
        }
        vertices.reverse();
        vertices
    }

    /// Nothing upon nothing makes no image.
    fn no_image(&self, last: usize) -> Option<Error> {
        let stage = &self.stages[last];
        let is_nothing = stage.history.is_none() && stage.state.output().is_none() && stage.base_id.is_none();
        let words = "No image was generated. Is your Dockerfile empty?".to_owned();
        is_nothing.then(|| LowerError::Classic(words).at(stage.lines))
    }

    fn copy_query(
        &self,
        copy: &DraftCopy,
        mut write: impl FnMut(&State) -> Lowered<Arc<Definition>>,
    ) -> Lowered<CopyQuery> {
        let sources = copy.sources.iter().map(|source| {
            Ok(match source {
                DraftSource::Context { path } => {
                    CopySource::Context { definition: write(&self.context)?, path: path.clone() }
                }
                DraftSource::Tree { state, path } => {
                    CopySource::Tree { definition: write(state)?, path: path.clone() }
                }
                DraftSource::Download { state, path } => {
                    CopySource::Download { definition: write(state)?, path: path.clone() }
                }
                DraftSource::Said(text) => CopySource::Said(text.clone()),
            })
        });
        Ok(CopyQuery {
            place: copy.place,
            keyword: copy.keyword,
            sources: sources.collect::<Lowered<_>>()?,
            to_directory: copy.to_directory,
        })
    }

    /// Moby's `[Warning] One or more build-args … were not consumed`, but for what BuildKit takes without a declaration.
    fn unused_args(&self) -> Vec<String> {
        let used = |name: &str| {
            self.used_args.contains(name)
                || self.declared_args.contains(name)
                || BUILTIN_ARGS.contains(&name)
                || name.eq_ignore_ascii_case("all_proxy")
                || name.starts_with("BUILDKIT_")
                || name == "SOURCE_DATE_EPOCH"
        };
        self.options.build_args.keys().filter(|name| !used(name)).cloned().collect()
    }

    /// The steps up to the end of the stage that is to be built.
    fn steps_in_all(&self, goal: usize) -> usize {
        let last = self.stages[goal].number;
        let planned = self.stages.iter().filter(|stage| stage.number.is_some() && stage.number <= last);
        let own = |stage: &StageState| stage.commands.iter().filter(|command| !command.from_trigger).count();
        self.dockerfile.meta_args.len() + planned.map(|stage| 1 + own(stage)).sum::<usize>()
    }

    fn stage_histories(&self) -> Vec<StageHistory> {
        let mut histories = Vec::new();
        for stage in self.stages.iter().filter(|stage| stage.dispatched) {
            let Some(number) = stage.number else { continue };
            let mut entries = Vec::new();
            let mut next = stage.history;
            while let Some(index) = next {
                let Some(traits) = self.traits.get(&index) else { break };
                let (entry, before) = &self.history[index];
                entries.push(StageEntry {
                    created_by: entry.created_by.clone(),
                    complete: traits.complete,
                    copy: traits.copy,
                    changes_files: traits.made.is_some(),
                });
                next = *before;
            }
            entries.reverse();
            // Every instruction has an entry.
            let inherited = entries.len().saturating_sub(stage.commands.len());
            histories.push(StageHistory {
                stage: number,
                base: stage.base_image.clone(),
                inherited,
                entries,
                platform: stage.platform.clone().unwrap_or_else(|| self.target_platform.clone()),
            });
        }
        histories
    }

    /// Notes what is wrong with the instruction or stage at hand, which the plan then ends with.
    pub(super) fn fail_later(&mut self, stage: usize, error: Error) {
        self.failure = Some((stage, error));
    }
}
