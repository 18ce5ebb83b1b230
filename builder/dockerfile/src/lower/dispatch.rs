//! Instruction by instruction, through every stage that is needed.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use lapstrake_builder_llb::{EnvList, State};

use super::images::DEFAULT_PATH;
use super::stages::StageCommand;
use super::{LowerError, Lowered, Lowering, MAX_PLAN_BYTES, path};
use crate::facts::Place;
use crate::instructions::{Expanders, Instruction};
use crate::lint::Config;
use crate::location::LineRange;
use crate::shell::Lexer;
use crate::text::parse_bool;

/// Arguments that scanners read, and that are no variables.
const SCAN_CONTEXT: &str = "BUILDKIT_SBOM_SCAN_CONTEXT";
const SCAN_STAGE: &str = "BUILDKIT_SBOM_SCAN_STAGE";

pub(super) fn is_scan_arg(name: &str) -> bool {
    name == SCAN_CONTEXT || name == SCAN_STAGE
}

/// The instruction at hand: what is needed to say something about it.
pub(super) struct At {
    /// In [`Lowering::stages`].
    pub(super) stage: usize,
    pub(super) lines: LineRange,
    /// Which warnings are wanted here.
    pub(super) lint: Config,
}

impl Lowering<'_> {
    /// Works through all stages that the target needs, earlier ones first.
    pub(super) fn dispatch_stages(&mut self, reachable: &BTreeSet<usize>, target: usize) -> Lowered<()> {
        let all = (0..self.stages.len()).filter(|index| self.all_stages || reachable.contains(index));
        for index in all.collect::<Vec<_>>() {
            // Of all stages, those too that the client replaced.
            if self.stages[index].dispatched && !self.all_stages {
                continue;
            }
            match self.dispatch_stage(index) {
                Err(error) if self.is_classic() => {
                    self.fail_later(index, error);
                    break;
                }
                other => other?,
            }
        }
        // Whoever asks for the result gets all of it.
        let results: Vec<usize> = match self.is_classic() {
            true => reachable.iter().copied().filter(|index| self.stages[*index].number.is_some()).collect(),
            false => vec![target],
        };
        for index in results {
            let paths = self.stages[index].paths;
            self.used_paths[paths].insert("/".to_owned());
        }
        Ok(())
    }

    fn dispatch_stage(&mut self, index: usize) -> Lowered<()> {
        self.inherit(index);
        if let Some(why) = self.stages[index].missing.clone() {
            self.stages[index].dispatched = true;
            self.stage_step(index);
            return Err(LowerError::Classic(why).at(self.stages[index].lines));
        }
        self.begin_stage(index)?;
        self.stage_step(index);
        for position in 0..self.stages[index].commands.len() {
            let before = self.stages[index].state.output();
            let command = self.stages[index].commands[position].clone();
            self.place = Place { stage: self.stages[index].number.unwrap_or(index), position };
            if let Err(error) = self.dispatch(index, &command) {
                self.failed_step(index, position);
                return Err(error);
            }
            self.restore(index);
            if self.spent > MAX_PLAN_BYTES {
                let lines = command.command.source.lines;
                return Err(LowerError::TooLarge { limit: MAX_PLAN_BYTES }.at(lines));
            }
            let state = &self.stages[index].state;
            let made = (state.output() != before).then(|| state.clone());
            self.instruction_step(index, position, made);
        }
        for (arg, set) in [(SCAN_CONTEXT, true), (SCAN_STAGE, false)] {
            let on = self.scan_enabled(index, arg);
            let stage = &mut self.stages[index];
            if set {
                stage.scan_context = on;
            } else {
                stage.scan_stage = on;
            }
        }
        Ok(())
    }

    /// What a stage's first instruction finds.
    fn begin_stage(&mut self, index: usize) -> Lowered<()> {
        let default = self.target_platform.clone();
        let classic = self.is_classic();
        let stage = &mut self.stages[index];
        stage.dispatched = true;
        let platform = stage.platform.get_or_insert(default);
        let os = platform.os.clone();
        if classic && os == path::WINDOWS {
            return Err(LowerError::Unsupported("building for Windows".to_owned()).at(stage.lines));
        }
        let config = &mut stage.image.config;
        // Windows has a path of its own.
        if os != path::WINDOWS && !config.env.iter().any(|variable| variable.starts_with("PATH=")) {
            config.env.push(format!("PATH={DEFAULT_PATH}"));
        }
        let mut state = stage.state.clone();
        if classic {
            // Neither arguments nor the author are handed on.
            state = state.map_meta(|meta| meta.env = EnvList::default());
            stage.image.author.clear();
        }
        for variable in &config.env {
            let (key, value) = variable.split_once('=').unwrap_or((variable, ""));
            state = state.with_env(key, value);
        }
        if !config.working_dir.is_empty() {
            let dir = path::of_os(&os, &config.working_dir, false).map_err(|error| error.at(stage.lines))?;
            let dir = path::normalize(&dir, &dir, false);
            config.working_dir = path::in_config(&os, &dir);
            state = state.with_dir(&dir);
        }
        let (user, network, hostname) = (config.user.clone(), self.options.network, &self.options.hostname);
        stage.state = state.map_meta(|meta| {
            if !user.is_empty() {
                meta.user = user;
            }
            if !hostname.is_empty() {
                meta.hostname = hostname.clone();
            }
            meta.network = network;
        });
        Ok(())
    }

    /// What a stage is for.
    pub(super) fn os(&self, stage: usize) -> &str {
        self.stages[stage].platform.as_ref().map_or("", |platform| &platform.os)
    }

    fn scan_enabled(&self, index: usize, arg: &str) -> bool {
        let stage = &self.stages[index];
        let own = stage.args.iter().rev().find(|(key, value)| key == arg && value.is_some());
        let value = match own {
            Some((_, value)) => value.as_deref(),
            None => self.global_args.get(arg),
        };
        value.is_some_and(|value| {
            parse_bool(value).unwrap_or_else(|| value.split(',').any(|name| name == stage.display_name))
        })
    }

    fn dispatch(&mut self, index: usize, command: &StageCommand) -> Lowered<()> {
        let source = &command.command.source;
        let lint = match source.comments.is_empty() {
            true => self.reporter.config.clone(),
            false => self.reporter.config.with_comments(&source.comments),
        };
        let at = At { stage: index, lines: source.lines, lint };
        self.stages[index].in_trigger = command.from_trigger;
        let expanded;
        let instruction = match &command.command.instruction {
            // An argument's default counts only if nobody gives a value: it must not fail before that is known.
            arg @ Instruction::Arg(_) => arg,
            literal if command.literal => literal,
            other => {
                expanded = self.expand(other, &at)?;
                &expanded
            }
        };
        let code = &source.code;
        match instruction {
            Instruction::Add(add) => self.add(&at, add, code),
            Instruction::Copy(copy) => self.copy(&at, copy, command.sources.first().copied(), code),
            Instruction::Run(run) => self.run_command(&at, run, &command.sources, code),
            Instruction::Workdir(workdir) => self.workdir(&at, workdir, code),
            Instruction::Expose(expose) => self.expose(&at, expose),
            Instruction::Arg(arg) => self.arg(&at, arg),
            other => self.metadata(&at, other, &source.keyword),
        }
    }

    /// Expands an instruction's words with the stage's environment, and says which variables are not set.
    fn expand<'i>(&mut self, instruction: &'i Instruction, at: &At) -> Lowered<Cow<'i, Instruction>> {
        let env = self.stages[at.stage].state.meta().env.clone();
        // Each word is told by itself, as in BuildKit.
        let missing = RefCell::new(Vec::new());
        let spent = Cell::new(0);
        let (lexer, heredoc_lexer) = (self.lexer, Lexer::for_heredoc());
        let expanded = {
            let with = |lexer: Lexer| {
                let (env, missing, spent) = (&env, &missing, &spent);
                move |word: &str| {
                    let mut unset = BTreeSet::new();
                    let value = lexer.expand_noting(word, env, &mut unset);
                    missing.borrow_mut().push(unset);
                    let value = value?;
                    spent.set(spent.get() + value.len());
                    Ok(value)
                }
            };
            instruction.expand(&mut Expanders { word: &mut with(lexer), heredoc: &mut with(heredoc_lexer) })
        };
        self.spent += spent.get();
        for missing in missing.into_inner() {
            self.check_undefined(at, missing, &env);
        }
        expanded.map_err(|e| LowerError::Word(e).at(at.lines))
    }

    /// Replaces a stage's file system, keeping what its steps inherit.
    pub(super) fn set_state(&mut self, stage: usize, state: State) {
        self.stages[stage].state = state;
    }
}
