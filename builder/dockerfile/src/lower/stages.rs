//! Stages: what they are, who needs whom, and which are needed at all.

use std::collections::BTreeSet;
use std::sync::Arc;

use lapstrake_builder_llb::State;
use lapstrake_layerstore_oci::{ImageConfig, ImageId, OciError, Platform};

use super::named::NamedContext;
use super::{LowerError, Lowered, Lowering};
use crate::Error;
use crate::instructions::{Command, Instruction, Stage};
use crate::location::LineRange;
use crate::shell::NoVariables;
use crate::text::{go_quote, suggestion};

pub(super) const SCRATCH: &str = "scratch";

/// A stage as far as it is planned; also an image that a `--from` names, which is a stage without instructions.
pub(super) struct StageState {
    /// Its number in the Dockerfile; `None` for what a `--from` brought.
    pub(super) number: Option<usize>,
    /// Its name in the Dockerfile.
    pub(super) name: Option<String>,
    /// How it is shown: its name or `stage-<number>`, and empty if it is the only one.
    pub(super) display_name: String,
    /// What it starts from; once resolved, the full reference.
    pub(super) base_name: String,
    /// The same as the author meant it, for messages.
    pub(super) code: String,
    pub(super) lines: LineRange,
    /// Whether its base's vertex is said to stand at `lines`; BuildKit does not say it of images that are mounted.
    pub(super) located: bool,
    pub(super) comments: Vec<String>,
    pub(super) commands: Vec<StageCommand>,
    /// The stage that it starts from.
    pub(super) base: Option<usize>,
    /// Stages that its instructions need, and the lines that do.
    pub(super) needs: Vec<(usize, LineRange)>,
    pub(super) platform: Option<Platform>,
    pub(super) state: State,
    /// Without its history.
    pub(super) image: ImageConfig,
    /// The last entry of its history, in [`Lowering::history`].
    pub(super) history: Option<usize>,
    pub(super) base_image: Option<Arc<ImageConfig>>,
    pub(super) base_id: Option<ImageId>,
    /// Why the image that it starts from cannot be had (classic).
    pub(super) missing: Option<String>,
    pub(super) named_context: Option<NamedContext>,
    /// Whether `state` is what it will be.
    pub(super) dispatched: bool,
    /// Whether its base is known.
    pub(super) resolved: bool,
    triggers_taken: bool,
    pub(super) triggers: usize,
    /// Its place in [`Lowering::used_paths`].
    pub(super) paths: usize,
    pub(super) context_paths: BTreeSet<String>,
    /// `ARG`s seen, in order.
    pub(super) args: Vec<(String, Option<String>)>,
    pub(super) ignore_cache: bool,
    pub(super) step_index: usize,
    pub(super) step_total: usize,
    pub(super) in_trigger: bool,
    pub(super) workdir_set: bool,
    pub(super) entrypoint_seen: Option<LineRange>,
    pub(super) cmd_seen: Option<LineRange>,
    pub(super) healthcheck_seen: Option<LineRange>,
    pub(super) scan_stage: bool,
    pub(super) scan_context: bool,
}

/// An instruction, and what it copies from or mounts.
#[derive(Clone)]
pub(super) struct StageCommand {
    pub(super) command: Arc<Command>,
    /// For `COPY --from` one stage; for `RUN` one per mount.
    pub(super) sources: Vec<usize>,
    pub(super) from_trigger: bool,
    /// Not to be expanded: a label of the client's.
    pub(super) literal: bool,
}

impl StageState {
    fn new(base_name: String, lines: LineRange, paths: usize) -> StageState {
        StageState {
            number: None,
            name: None,
            display_name: String::new(),
            base_name,
            code: String::new(),
            lines,
            located: true,
            comments: Vec::new(),
            commands: Vec::new(),
            base: None,
            needs: Vec::new(),
            platform: None,
            state: State::scratch(),
            image: ImageConfig::default(),
            history: None,
            base_image: None,
            base_id: None,
            missing: None,
            named_context: None,
            dispatched: false,
            resolved: false,
            triggers_taken: false,
            triggers: 0,
            paths,
            context_paths: BTreeSet::new(),
            args: Vec::new(),
            ignore_cache: false,
            step_index: 0,
            step_total: 0,
            in_trigger: false,
            workdir_set: false,
            entrypoint_seen: None,
            cmd_seen: None,
            healthcheck_seen: None,
            scan_stage: false,
            scan_context: false,
        }
    }
}

/// An image may say that who starts from it copies from another, which may say the same, or be the same. BuildKit follows them for ever.
const MAX_TRIGGERED: usize = 1000;

impl Lowering<'_> {
    /// Adds the Dockerfile's stages, their names expanded.
    pub(super) fn add_stages(&mut self) -> Lowered<()> {
        let dockerfile = self.dockerfile;
        for (number, stage) in dockerfile.stages.iter().enumerate() {
            self.add_stage(number, stage)?;
        }
        Ok(())
    }

    fn add_stage(&mut self, number: usize, stage: &Stage) -> Lowered<()> {
        let lines = stage.source.lines;
        let name = self.lexer.expand(&stage.base, &self.global_args);
        let name = name.map_err(|e| LowerError::Word(e).at(lines))?;
        self.check_from_args(&name.missing, stage);
        let mut missing = None;
        if name.value.is_empty() {
            let blank = LowerError::BlankBase(stage.base.clone());
            missing = Some(self.when_its_turn_comes(blank.at(lines))?);
        }
        let mut used = name.used;
        let platform = match self.stage_platform(stage, &mut used) {
            Ok(platform) => platform,
            Err(error) => {
                missing = Some(self.when_its_turn_comes(error)?);
                None
            }
        };
        let paths = self.new_path_set();
        let mut state = StageState::new(name.value, lines, paths);
        state.missing = missing;
        state.number = Some(number);
        state.name = stage.name.clone();
        state.display_name = stage.name.clone().unwrap_or_else(|| format!("stage-{number}"));
        state.code = stage.source.code.clone();
        state.comments = stage.source.comments.clone();
        state.platform = platform;
        if let Some(name) = &stage.name {
            state.named_context = self.named_context(name, state.platform.as_ref(), lines)?;
        }
        let commands = stage.commands.iter().cloned().map(Arc::new);
        state.commands = commands
            .map(|command| StageCommand { command, sources: Vec::new(), from_trigger: false, literal: false })
            .collect();
        let replaced = state.named_context.is_some();
        let index = self.push_stage(state);
        if replaced {
            self.capture_stage(index, BTreeSet::new());
            // The client replaces the stage as a whole.
            self.stages[index].base = None;
            return Ok(());
        }
        self.capture_stage(index, used);
        let state = &mut self.stages[index];
        let from_image = state.base_name != SCRATCH && state.base.is_none();
        let counts = |i: &Instruction| {
            matches!(
                i,
                Instruction::Add(_) | Instruction::Copy(_) | Instruction::Run(_) | Instruction::Workdir(_)
            )
        };
        state.step_total = usize::from(from_image)
            + state.commands.iter().filter(|c| counts(&c.command.instruction)).count();
        state.ignore_cache = self.options.no_cache.applies_to(stage.name.as_deref().unwrap_or_default());
        Ok(())
    }

    /// What the classic builder says of a stage when its turn comes; to BuildKit it is an error at once.
    pub(super) fn when_its_turn_comes(&self, error: Error) -> Lowered<String> {
        if self.is_classic() { Ok(error.to_string()) } else { Err(error) }
    }

    fn stage_platform(&mut self, stage: &Stage, used: &mut BTreeSet<String>) -> Lowered<Option<Platform>> {
        let Some(expression) = &stage.platform else { return Ok(None) };
        let lines = stage.source.lines;
        let expansion = self.lexer.expand(expression, &self.global_args);
        let expansion = expansion.map_err(|e| LowerError::Word(e).at(lines))?;
        self.check_from_args(&expansion.missing, stage);
        self.check_from_platform(&expansion, stage);
        let suggestion = || {
            let known: Vec<&str> = self.global_args.iter().map(|(key, _)| key).collect();
            expansion.missing.iter().find_map(|missing| suggestion(missing, &known))
        };
        if expansion.value.is_empty() {
            let (expression, suggestion) = (expression.clone(), suggestion());
            return Err(LowerError::BlankPlatform { expression, suggestion }.at(lines));
        }
        match Platform::parse(&expansion.value) {
            Ok(platform) => {
                used.extend(expansion.used);
                Ok(Some(platform))
            }
            Err(problem) => Err(LowerError::Platform {
                expression: expression.clone(),
                problem: platform_problem(&problem),
                suggestion: suggestion(),
            }
            .at(lines)),
        }
    }

    fn new_path_set(&mut self) -> usize {
        self.used_paths.push(BTreeSet::new());
        self.used_paths.len() - 1
    }

    fn push_stage(&mut self, mut stage: StageState) -> usize {
        let index = self.stages.len();
        stage.base = self.names.get(&stage.base_name).copied();
        if let Some(name) = &stage.name {
            self.names.insert(name.to_lowercase(), index);
        }
        self.stages.push(stage);
        index
    }

    fn find_stage(&self, name: &str) -> Option<usize> {
        self.names.get(&name.to_lowercase()).copied()
    }

    /// The stage that is to be built.
    pub(super) fn find_target(&self) -> Lowered<usize> {
        let Some(name) = self.options.target.as_deref().filter(|name| !name.is_empty()) else {
            return self.stages.len().checked_sub(1).ok_or_else(|| LowerError::NoStages.nowhere());
        };
        self.find_stage(name).ok_or_else(|| {
            let known: Vec<&str> = self.stages.iter().map(|stage| stage.display_name.as_str()).collect();
            LowerError::UnknownTarget { name: name.to_owned(), suggestion: suggestion(name, &known) }
                .nowhere()
        })
    }

    /// Finds what each instruction copies from or mounts.
    pub(super) fn connect_stages(&mut self) -> Lowered<()> {
        for index in 0..self.stages.len() {
            for i in 0..self.stages[index].commands.len() {
                let command = Arc::clone(&self.stages[index].commands[i].command);
                let lines = command.source.lines;
                self.stages[index].commands[i].sources = self.connect(index, &command, lines)?;
            }
        }
        self.refuse_cycles()?;
        if let [only] = &mut self.stages[..] {
            only.display_name.clear();
        }
        Ok(())
    }

    fn connect(&mut self, index: usize, command: &Command, lines: LineRange) -> Lowered<Vec<usize>> {
        let sources = match &command.instruction {
            Instruction::Copy(copy) => match copy.from.as_deref().filter(|from| !from.is_empty()) {
                Some(from) => vec![self.copy_source(index, from, lines)?],
                None => Vec::new(),
            },
            Instruction::Run(run) => {
                let froms = run.mounts.iter().map(|mount| mount.from().unwrap_or(SCRATCH).to_owned());
                let froms: Vec<String> = froms.collect();
                froms.into_iter().map(|from| self.source_named(&from, lines, false)).collect()
            }
            _ => Vec::new(),
        };
        for &source in &sources {
            if !self.stages[index].needs.iter().any(|(known, _)| *known == source) {
                self.stages[index].needs.push((source, lines));
            }
        }
        Ok(sources)
    }

    fn copy_source(&mut self, index: usize, from: &str, lines: LineRange) -> Lowered<usize> {
        let expansion = self.lexer.expand(from, &NoVariables).map_err(|e| LowerError::Word(e).at(lines))?;
        if expansion.value != from {
            return Err(LowerError::VariableInFrom.at(lines));
        }
        if self.is_classic() {
            return Ok(self.classic_source(index, from, lines));
        }
        let Ok(number) = from.parse::<i64>() else { return Ok(self.source_named(from, lines, true)) };
        match usize::try_from(number) {
            Ok(index) if index < self.stages.len() => Ok(index),
            _ => Err(LowerError::StageIndex(number).at(lines)),
        }
    }

    /// To the classic builder the stages that come later are not there yet (`stagesBuildResults` in moby/moby).
    fn classic_source(&mut self, index: usize, from: &str, lines: LineRange) -> usize {
        let current = self.stages[index].number.unwrap_or(index);
        let is_before = |found: &usize| self.stages[*found].number.is_none_or(|number| number < current);
        let problem = match (self.find_stage(from).filter(is_before), from.parse::<i64>()) {
            (Some(stage), _) => return stage,
            (None, Err(_)) => None,
            (None, Ok(number)) => match usize::try_from(number) {
                Ok(number) if number < current => return number,
                Ok(number) if number == current => Some("refers to current build stage"),
                _ => Some("index out of bounds"),
            },
        };
        let paths = self.new_path_set();
        let missing = problem.map(|problem| format!("invalid from flag value {from}: {problem}"));
        let image = self.push_stage(StageState { missing, ..StageState::new(from.to_owned(), lines, paths) });
        // What is named like a stage is an image here.
        self.stages[image].base = None;
        image
    }

    /// The stage of that name, or an image that nobody has named yet. BuildKit counts each such use as a stage, and that shows in the
    /// names of vertices; so do we.
    fn source_named(&mut self, from: &str, lines: LineRange, located: bool) -> usize {
        if let Some(stage) = self.find_stage(from) {
            return stage;
        }
        let paths = self.new_path_set();
        self.push_stage(StageState { located, ..StageState::new(from.to_owned(), lines, paths) })
    }

    fn refuse_cycles(&self) -> Lowered<()> {
        let mut visited = vec![false; self.stages.len()];
        for start in 0..self.stages.len() {
            if visited[start] {
                continue;
            }
            visited[start] = true;
            // The path from `start`: a stage, and which of its needs is looked at.
            let mut path = vec![(start, 0usize)];
            while let Some((stage, next)) = path.last_mut() {
                let Some(&(needed, _)) = self.stages[*stage].needs.get(*next) else {
                    path.pop();
                    continue;
                };
                *next += 1;
                if path.iter().any(|(on_path, _)| *on_path == needed) {
                    let lines = path.iter().map(|&(stage, next)| self.stages[stage].needs[next - 1].1);
                    return Err(Error::Lower {
                        problem: LowerError::Circular(self.stages[start].display_name.clone()),
                        lines: lines.collect(),
                    });
                }
                if !std::mem::replace(&mut visited[needed], true) {
                    path.push((needed, 0));
                }
            }
        }
        Ok(())
    }

    /// Finds the bases of all stages that the target needs, `ONBUILD` triggers included. `None` if images are to be asked for first.
    pub(super) fn resolve_stages(&mut self, target: usize) -> Lowered<Option<BTreeSet<usize>>> {
        loop {
            let reachable = self.planned(target);
            for index in 0..self.stages.len() {
                self.resolve_base(index, self.all_stages || reachable.contains(&index))?;
            }
            if !self.needs.is_empty() {
                return Ok(None);
            }
            let mut more = false;
            for &index in &reachable {
                self.inherit(index);
                let triggers = self.take_triggers(index);
                if !triggers.is_empty() {
                    more |= self.add_triggers(index, &triggers)?;
                }
            }
            if !more {
                return Ok(Some(reachable));
            }
        }
    }

    pub(super) fn reachable(&self, target: usize) -> BTreeSet<usize> {
        let mut reachable = BTreeSet::from([target]);
        let mut open = vec![target];
        while let Some(index) = open.pop() {
            let stage = &self.stages[index];
            for needed in stage.base.into_iter().chain(stage.needs.iter().map(|(needed, _)| *needed)) {
                if reachable.insert(needed) {
                    open.push(needed);
                }
            }
        }
        reachable
    }

    /// Takes over what the base stage is so far.
    pub(super) fn inherit(&mut self, index: usize) {
        let Some(base) = self.stages[index].base else { return };
        // A stage is always based on an earlier one.
        let (before, from) = self.stages.split_at_mut(index);
        let (base, stage) = (&before[base], &mut from[0]);
        stage.state = base.state.clone();
        stage.platform = base.platform.clone();
        stage.image = base.image.clone();
        stage.history = base.history;
        // Triggers are for who starts from the image, not for who starts from who starts from it.
        stage.image.config.on_build.clear();
        stage.base_image = base.base_image.clone();
        stage.paths = base.paths;
        stage.workdir_set = base.workdir_set;
        // To the classic builder an argument is of one stage.
        let classic = self.options.dialect == crate::options::Dialect::Classic;
        if base.dispatched && !stage.dispatched && !classic {
            stage.args = base.args.clone();
        }
        let config = &stage.image.config;
        let entries = [
            config.env.len(),
            config.labels.len(),
            config.exposed_ports.len(),
            config.volumes.len(),
            stage.args.len(),
        ];
        self.spent += 64 * entries.iter().sum::<usize>();
    }

    /// Makes an image what a stage starts from.
    pub(super) fn start_from(&mut self, index: usize, mut image: ImageConfig) {
        let mut last = None;
        for entry in std::mem::take(&mut image.history) {
            self.history.push((entry, last));
            last = Some(self.history.len() - 1);
        }
        self.stages[index].image = image;
        self.stages[index].history = last;
    }

    fn take_triggers(&mut self, index: usize) -> Vec<String> {
        let mut triggers = std::mem::take(&mut self.stages[index].image.config.on_build);
        if let Some(base) = self.stages[index].base
            && !std::mem::replace(&mut self.stages[index].triggers_taken, true)
        {
            let commands = self.stages[base].commands.iter();
            triggers.extend(commands.filter_map(|c| match &c.command.instruction {
                Instruction::Onbuild(onbuild) => Some(onbuild.expression.clone()),
                _ => None,
            }));
        }
        triggers
    }

    /// Puts triggers before a stage's own instructions; true if they need stages that were not looked at yet.
    fn add_triggers(&mut self, index: usize, triggers: &[String]) -> Lowered<bool> {
        let lines = self.stages[index].lines;
        let mut commands = Vec::with_capacity(triggers.len());
        let mut more = false;
        for trigger in triggers {
            let mut command = Command::parse_trigger(trigger).map_err(|e| relocate(e, lines))?;
            command.source.lines = lines;
            let before = self.stages.len();
            let sources = self.connect(index, &command, lines)?;
            self.triggered += self.stages.len() - before;
            if self.triggered > MAX_TRIGGERED {
                let image = self.stages[index].base_name.clone();
                return Err(LowerError::TriggersWithoutEnd { image, limit: MAX_TRIGGERED }.at(lines));
            }
            more |= !sources.is_empty();
            let command = Arc::new(command);
            commands.push(StageCommand { command, sources, from_trigger: true, literal: false });
        }
        let stage = &mut self.stages[index];
        stage.step_total += commands.len();
        stage.triggers += commands.len();
        commands.append(&mut stage.commands);
        stage.commands = commands;
        Ok(more)
    }
}

/// Why a platform is none, in containerd's words.
pub(crate) fn platform_problem(error: &OciError) -> String {
    match error {
        OciError::Platform { specifier, reason } if reason.starts_with("a component") => {
            let valid = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
            let part = specifier.splitn(4, '/').skip(1).find(|part| part.is_empty() || !valid(part));
            format!(
                "{} is an invalid component of {}: platform specifier component must match {}: invalid argument",
                go_quote(part.unwrap_or_default()),
                go_quote(specifier),
                go_quote("^[A-Za-z0-9_.-]+$"),
            )
        }
        OciError::Platform { specifier, reason } => {
            format!("{}: {reason}: invalid argument", go_quote(specifier))
        }
        other => other.to_string(),
    }
}

/// A trigger stands nowhere in this Dockerfile: its faults are those of the `FROM` that brought it.
fn relocate(error: Error, at: LineRange) -> Error {
    match error {
        Error::Syntax { problem, .. } => Error::Syntax { problem, lines: at },
        Error::Instruction { problem, .. } => Error::Instruction { problem, lines: at },
        other => other,
    }
}
