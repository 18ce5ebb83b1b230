//! From the syntax tree to a graph.
//!
//! ```text
//! syntax tree ─ stages: who needs whom, what is reachable ─ images: what they start from ─ dispatch: instruction by instruction ─► Plan
//!                                                              │ unknown?                    metadata · run · copy · expose
//!                                                              └──► Needs
//! ```
//!
//! Every vertex must get the digest that BuildKit's `dockerfile2llb` gives it, or caches could not be exchanged: the order of
//! environment variables, of inputs and of path operations here is part of the format.

mod args;
mod classic;
mod context;
mod copy;
mod dispatch;
mod epoch;
mod expose;
mod git;
mod images;
mod inspect;
mod lint;
mod metadata;
mod named;
mod naming;
mod path;
mod problem;
mod run;
mod stages;
mod steps;

use std::collections::{BTreeMap, BTreeSet};

use lapstrake_builder_llb::{
    Defaults, EnvList, GraphBuilder, SourceMap, SourceMapId, State, cache_key::CLASSIC_WORKER, pb,
};
use lapstrake_layerstore_oci::{History, Platform, Timestamp};

pub use context::{dockerfile_definition, dockerfile_name, dockerignore_definition};
pub use git::git_in_one_form;
pub use inspect::source_info;
pub(crate) use inspect::{Inspected, Outline, OutlineOffer, check, outline};
pub use problem::LowerError;
pub(crate) use stages::platform_problem;

use crate::Error;
use crate::facts::{Facts, Need, Place};
use crate::instructions::Dockerfile;
use crate::lint::{Config, Reporter, Warning};
use crate::location::LineRange;
use crate::options::DockerfileOptions;
use crate::plan::{Answer, Plan, PlatformPlan};
use crate::shell::{Lexer, Variables};

use self::stages::StageState;

/// A Dockerfile of a few kilobytes can describe a plan of any size, by doubling variables and repeating them in every instruction.
const MAX_PLAN_BYTES: usize = 256 << 20;

/// What a step of lowering comes to: an error always says where it is.
type Lowered<T> = Result<T, Error>;

/// Whether a main context's reference is a git repository (else an URL, or nothing but a name).
pub(crate) fn is_git_context(reference: &str) -> bool {
    git::is_git(reference)
}

impl LowerError {
    fn at(self, lines: LineRange) -> Error {
        Error::Lower { problem: self, lines: vec![lines] }
    }

    pub(crate) fn nowhere(self) -> Error {
        Error::Lower { problem: self, lines: Vec::new() }
    }
}

pub(crate) fn plan(
    options: &DockerfileOptions,
    facts: &Facts,
    warnings: &mut Vec<Warning>,
) -> Result<Answer, Error> {
    let dockerfile = parse(options, facts, warnings)?;
    let mut needs = Vec::new();
    let mut targets = Vec::new();
    let platforms: Vec<Option<&Platform>> = match options.platforms[..] {
        [] => vec![None],
        _ => options.platforms.iter().map(Some).collect(),
    };
    for (i, platform) in platforms.into_iter().enumerate() {
        let mut lowering = Lowering::new(options, facts, &dockerfile, platform)?;
        let target = lowering.run();
        // The same doubts would come once per platform.
        if i == 0 {
            *warnings = std::mem::take(&mut lowering.reporter.warnings);
        }
        match target? {
            Some(target) => targets.push(target),
            None => needs.append(&mut lowering.needs),
        }
    }
    if !needs.is_empty() {
        let mut seen = BTreeSet::new();
        needs.retain(|need| seen.insert(format!("{need:?}")));
        return Ok(Answer::Need(needs));
    }
    let warnings = warnings.clone();
    Ok(Answer::Plan(Box::new(Plan { targets, multi_platform: options.is_multi_platform(), warnings })))
}

fn parse(options: &DockerfileOptions, facts: &Facts, warnings: &mut Vec<Warning>) -> Lowered<Dockerfile> {
    if facts.dockerfile.is_empty() {
        return Err(LowerError::EmptyDockerfile.nowhere());
    }
    let config = options.check.as_deref().map(Config::parse).transpose().map_err(|e| {
        LowerError::Option(format!("failed to parse build-arg:BUILDKIT_DOCKERFILE_CHECK: {e}")).nowhere()
    })?;
    Dockerfile::parse_and_warn(&facts.dockerfile, config, warnings)
}

/// One platform's plan in the making.
struct Lowering<'a> {
    options: &'a DockerfileOptions,
    facts: &'a Facts,
    dockerfile: &'a Dockerfile,
    graph: GraphBuilder,
    source_map: SourceMapId,
    target_platform: Platform,
    /// Nobody asked for a platform: the base image's counts.
    implicit_target: bool,
    lexer: Lexer,
    /// `ARG`s before the first `FROM`, and the predefined ones.
    global_args: EnvList,
    /// The names of the former.
    declared_args: BTreeSet<String>,
    /// Build arguments, `SOURCE_DATE_EPOCH` made a number.
    build_args: BTreeMap<String, String>,
    epoch: Option<i64>,
    stages: Vec<StageState>,
    names: BTreeMap<String, usize>,
    /// Which paths of a stage are used; stages that build on each other share a set.
    used_paths: Vec<BTreeSet<String>>,
    /// The main context: known only when it is known which of its paths are used.
    context: State,
    /// Local named contexts, for the same reason: the deferred state, whose paths count, and what to ask the client for.
    local_contexts: Vec<named::LocalNamedContext>,
    ignore: Option<crate::ignore::PatternMatcher>,
    reporter: Reporter,
    needs: Vec<Need>,
    steps: Vec<steps::DraftStep>,
    /// Copies whose hash is not known, with the states that they copy from.
    copies: Vec<classic::DraftCopy>,
    /// What else is known of entries in `history`.
    traits: BTreeMap<usize, classic::EntryTraits>,
    /// Names that instructions declared, for the classic warning about those that none did.
    used_args: BTreeSet<String>,
    /// What the classic builder finds wrong, and ends with.
    failure: Option<(usize, Error)>,
    /// The instruction at hand.
    place: Place,
    /// The words of the `RUN` that was dispatched last.
    last_run: Vec<String>,
    /// Of all stages: an entry, and the one before it in its image. Stages that build on each other share what they have in common.
    history: Vec<(History, Option<usize>)>,
    /// Bytes of the plan so far, by a rough estimate.
    spent: usize,
    /// Stages that only triggers brought.
    triggered: usize,
    /// Makes the ids of progress groups differ; BuildKit takes random ones.
    next_group: u32,
    /// Whether stages that the target does not need are lowered as well.
    all_stages: bool,
    /// What an outline tells; `None` if none is wanted.
    captured: Option<inspect::Captured>,
}

impl<'a> Lowering<'a> {
    fn new(
        options: &'a DockerfileOptions,
        facts: &'a Facts,
        dockerfile: &'a Dockerfile,
        platform: Option<&Platform>,
    ) -> Lowered<Lowering<'a>> {
        let count = dockerfile.stages.iter().map(|stage| stage.commands.len() + 1).sum();
        let mut graph = GraphBuilder::with_capacity(count);
        let definition = context::dockerfile_definition(options, facts)?;
        let source_map = graph.add_source_map(SourceMap {
            filename: context::dockerfile_name(options, facts).to_owned(),
            language: "Dockerfile".to_owned(),
            data: facts.dockerfile.to_vec(),
            definition: Some(definition),
        });
        let context = graph.deferred();
        Ok(Lowering {
            options,
            facts,
            dockerfile,
            graph,
            source_map,
            target_platform: platform.unwrap_or(&options.build_platform).clone(),
            implicit_target: platform.is_none(),
            lexer: Lexer::new(dockerfile.escape),
            global_args: EnvList::default(),
            declared_args: BTreeSet::new(),
            build_args: options.build_args.clone(),
            epoch: None,
            stages: Vec::new(),
            names: BTreeMap::new(),
            used_paths: Vec::new(),
            context,
            local_contexts: Vec::new(),
            ignore: context::ignore_matcher(options, facts)?,
            reporter: Reporter { config: dockerfile.lint.clone(), warnings: dockerfile.warnings.clone() },
            needs: Vec::new(),
            steps: Vec::with_capacity(count),
            copies: Vec::new(),
            traits: BTreeMap::new(),
            used_args: BTreeSet::new(),
            failure: None,
            place: Place { stage: 0, position: 0 },
            last_run: Vec::new(),
            history: Vec::with_capacity(count),
            spent: 0,
            triggered: 0,
            next_group: 0,
            all_stages: false,
            captured: None,
        })
    }

    /// The plan, or `None` if something is needed first.
    fn run(&mut self) -> Lowered<Option<PlatformPlan>> {
        match self.lower()? {
            Some((target, reachable)) => self.finish(target, &reachable).map(Some),
            None => Ok(None),
        }
    }

    /// Everything but the end: the target, and the stages that it needs.
    fn lower(&mut self) -> Lowered<Option<(usize, BTreeSet<usize>)>> {
        self.define_global_args()?;
        if !self.resolve_epoch()? {
            return Ok(None);
        }
        self.add_stages()?;
        let target = self.find_target()?;
        self.add_label_steps(target);
        self.connect_stages()?;
        let Some(reachable) = self.resolve_stages(target)? else { return Ok(None) };
        if !self.need_context_kind() {
            return Ok(None);
        }
        self.dispatch_stages(&reachable, target)?;
        Ok(Some((target, reachable)))
    }

    fn finish(&mut self, target: usize, reachable: &BTreeSet<usize>) -> Lowered<PlatformPlan> {
        let goal = target;
        let target = self.last_dispatched(target);
        if !self.is_classic() {
            let labels = self.options.labels.iter().map(|(k, v)| (k.clone(), v.clone()));
            self.stages[target].image.config.labels.extend(labels);
        }
        self.fail_for_warnings()?;
        self.resolve_contexts(reachable)?;
        self.set_image_platform(target);

        let history = self.history_of(target);
        let stage = &self.stages[target];
        let worker_filters = self.is_classic().then(|| CLASSIC_WORKER.to_owned());
        let defaults = Defaults {
            platform: self.target_platform.clone(),
            worker_filters: worker_filters.into_iter().collect(),
        };
        let marshal =
            |state: &State| self.graph.marshal(state, &defaults).map_err(|e| LowerError::Graph(e).nowhere());
        let built = marshal(&stage.state)?;
        let mut scans = Vec::new();
        if stage.scan_context {
            scans.push(("context".to_owned(), marshal(&self.context)?.definition));
        }
        let mut ignore_cache = stage.ignore_cache;
        for &other in reachable {
            let other_stage = &self.stages[other];
            if other != target && other_stage.scan_stage {
                scans.push((other_stage.display_name.clone(), marshal(&other_stage.state)?.definition));
                ignore_cache |= other_stage.ignore_cache;
            }
        }
        let mut config = stage.image.clone();
        config.history = history;
        let (classic, others) = match self.is_classic() {
            true => self.classic_plan(goal, target, &built, &marshal)?,
            false => (None, Vec::new()),
        };
        let all: Vec<&lapstrake_builder_llb::BuiltDefinition> =
            std::iter::once(&built).chain(&others).collect();
        Ok(PlatformPlan {
            platform: self.export_platform(&stage.image.platform()),
            config,
            base_config: stage.base_image.as_deref().cloned(),
            epoch: self.epoch,
            ignore_cache,
            steps: steps::finish(std::mem::take(&mut self.steps), &all, self.options.dialect),
            definition: built.definition,
            scans,
            classic,
        })
    }

    fn history_of(&mut self, stage: usize) -> Vec<History> {
        let is_classic = self.is_classic();
        let mut history = Vec::new();
        let mut next = self.stages[stage].history;
        while let Some(index) = next {
            let (entry, before) = &mut self.history[index];
            // Only the classic builder's plan has entries besides those of the config.
            history.push(if is_classic { entry.clone() } else { std::mem::take(entry) });
            next = *before;
        }
        history.reverse();
        history
    }

    /// The image says what it runs on: what was asked for, or what its base said if nothing was.
    fn set_image_platform(&mut self, target: usize) {
        let image = &mut self.stages[target].image;
        if !self.implicit_target {
            let wanted = &self.target_platform;
            let same = wanted.os == image.os && wanted.architecture == image.architecture;
            image.os = wanted.os.clone();
            image.architecture = wanted.architecture.clone();
            if !wanted.variant.is_empty() || !same {
                image.variant = wanted.variant.clone();
            }
            if !wanted.os_version.is_empty() || !same {
                image.os_version = wanted.os_version.clone();
            }
            if !wanted.os_features.is_empty() {
                image.os_features = wanted.os_features.clone();
            }
        }
        let platform = image.platform().normalized();
        image.set_platform(&platform);
    }

    fn export_platform(&self, image: &Platform) -> Platform {
        let mut platform = self.target_platform.normalized();
        if platform.os == "windows" && image.os == "windows" {
            if platform.os_version.is_empty() {
                platform.os_version = image.os_version.clone();
            }
            if platform.os_features.is_empty() {
                platform.os_features = image.os_features.clone();
            }
        }
        platform.normalized()
    }

    /// Where a vertex comes from, in the wire's form: one range per run of lines.
    fn location(&self, lines: LineRange) -> (SourceMapId, Vec<pb::Range>) {
        let position =
            |line: u32| Some(pb::Position { line: i32::try_from(line).unwrap_or(i32::MAX), character: 0 });
        let ranges = lines.lines().map(|line| pb::Range { start: position(line), end: position(line) });
        (self.source_map, ranges.collect())
    }

    fn created(&self) -> Option<Timestamp> {
        let time = time::OffsetDateTime::from_unix_timestamp(self.epoch?).ok()?;
        Some(Timestamp::from(time))
    }
}

impl Variables for EnvList {
    fn get(&self, name: &str) -> Option<&str> {
        EnvList::get(self, name)
    }
}
