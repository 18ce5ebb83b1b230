//! Builds in the classic dialect: what Moby's classic builder does between planning and exporting.
//!
//! ```text
//!   plan ─► hashes of what the context gives ─► images that --cache-from names ─► plan again ─► Script (for the transcript)
//!   solve all stages ─► hashes of what stages gave ─► plan again: the history is complete
//! ```

use std::{collections::HashSet, error::Error, sync::Arc};

use futures::future::{try_join, try_join_all};
use lapstrake_builder_cache::BuildCache;
use lapstrake_builder_dockerfile::{
    Answer, CopyQuery, CopySource, DockerfileOptions, Error as DockerfileError, Facts, ImageOrigin,
    ImageQuery, LowerError, Place, Plan, PlatformPlan, Restored, StageHistory, Step, StepKind, lint::Rule,
    options::NoCache, parser::SyntaxError, plan,
};
use lapstrake_builder_files::{CopiedFrom, FilesError, copied, copied_together, downloaded};
use lapstrake_builder_llb::{Definition, Graph, Limits, ResolveMode, pb};
use lapstrake_builder_progress::Progress;
use lapstrake_builder_solver::{CacheStore, KeyId, SolveError};
use lapstrake_layerstore_oci::{Digest, History, ImageConfig, Platform, Reference};
use lapstrake_layerstore_store::Tree;
use tokio_util::sync::CancellationToken;

use crate::{
    CacheSource, Engine, EngineError, StepError, caches::snapshots, engine::internal_vertex,
    graphs::BuildKeys, scope::BuildScope,
};

/// What a display is told of a Dockerfile's steps, before the first is solved.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Script {
    /// The steps, in the Dockerfile's order.
    pub steps: Vec<Step>,
    /// For each step: whether it is nothing but a change of the config that a build made before.
    pub known: Vec<bool>,
    /// How many steps the Dockerfile has, where that is not how many there are.
    pub total: Option<usize>,
    /// Build arguments that nothing declared.
    pub unused_args: Vec<String>,
    /// What is doubtful; in the classic dialect, what Moby's classic builder would doubt, in its words.
    pub warnings: Vec<String>,
}

impl Script {
    /// The steps of a plan, and nothing else.
    pub(crate) fn of(plan: &Plan) -> Self {
        let steps = plan.targets.first().map(|target| target.steps.clone()).unwrap_or_default();
        let warnings = plan.warnings.iter().map(|warning| format!("[Warning] {}", warning.short()));
        Self { known: vec![false; steps.len()], steps, warnings: warnings.collect(), ..Self::default() }
    }
}

/// A build in the classic dialect, planned as far as it can be before anything has run.
pub(crate) struct ClassicBuild<'a> {
    engine: &'a Engine,
    scope: Arc<BuildScope>,
    progress: &'a Progress,
    options: DockerfileOptions,
    facts: Facts,
    plan: Plan,
    /// Keeps what was made of the stages beside the target's until the history is told.
    others: Vec<BuildKeys>,
    /// Copies whose hash does not change with the content: no image has them.
    unsure: HashSet<Place>,
}

impl<'a> ClassicBuild<'a> {
    pub(crate) async fn prepare(
        engine: &'a Engine,
        scope: &Arc<BuildScope>,
        progress: &'a Progress,
        cancel: &CancellationToken,
        (options, facts, plan): (DockerfileOptions, Facts, Plan),
        cache_from: &[CacheSource],
    ) -> Result<Self, EngineError> {
        let mut build = Self {
            engine,
            scope: Arc::clone(scope),
            progress,
            options,
            facts,
            plan,
            others: Vec::new(),
            unsure: HashSet::new(),
        };
        build.learn(|query| query.sources.iter().all(is_at_hand)).await?;
        if !cache_from.is_empty() && build.options.no_cache == NoCache::None {
            let names = cache_from.iter().filter_map(|source| match source {
                CacheSource::Registry { reference, .. } => Some(reference.clone()),
                CacheSource::Local { .. } | CacheSource::Client { .. } => None,
            });
            let images = build.images(&names.collect::<Vec<_>>(), cancel).await;
            build.restore(&images).await?;
        }
        Ok(build)
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The classic builder builds for one platform.
    fn target(&self) -> &PlatformPlan {
        self.plan.targets.first().expect("a plan has a target for each platform, and at least one")
    }

    /// What the transcript is told.
    pub(crate) async fn script(&self) -> Script {
        let mut script = Script::of(&self.plan);
        let target = self.target();
        script.warnings = doubts(&self.plan, target);
        if let Some(classic) = &target.classic {
            script.total = Some(classic.total);
            script.unused_args.clone_from(&classic.unused_args);
        }
        if self.options.no_cache == NoCache::None {
            for (step, known) in target.steps.iter().zip(&mut script.known) {
                *known = step.restored || (is_config(step) && self.is_known(step).await);
            }
        }
        script
    }

    /// Solves every stage; the result is the last one's.
    pub(crate) async fn resolve(
        &mut self,
        imports: &[Arc<dyn CacheStore<Tree>>],
        asks_keys: bool,
    ) -> Result<(Tree, BuildKeys), EngineError> {
        let target = self.target().clone();
        let solve =
            |definition| self.engine.resolve(definition, &self.scope, imports, self.progress, asks_keys);
        let classic = target.classic.clone().unwrap_or_default();
        let others = try_join_all(classic.others.iter().map(solve));
        let result = try_join(solve(&target.definition), others).await.map_err(EngineError::into_inner);
        self.remember(&target.steps, result.as_ref().map(|((tree, _), _)| tree)).await;
        let (resolved, others) = result.map_err(|error| in_moby_words(error, &target.steps))?;
        self.others = others.into_iter().map(|(_, keys)| keys).collect();
        match classic.failure {
            Some(failure) => Err(EngineError::Dockerfile(failure)),
            None => Ok(resolved),
        }
    }

    /// The image's config, now that all is known.
    pub(crate) async fn config(&mut self, tree: &Tree, keys: &BuildKeys) -> Result<ImageConfig, EngineError> {
        self.learn(|_| true).await?;
        self.others.clear();
        let target = self.target();
        let classic = target.classic.clone().unwrap_or_default();
        if let Some(failure) = classic.failure {
            return Err(EngineError::Dockerfile(failure));
        }
        let mut config = target.config.clone();
        let base = target.base_config.clone().unwrap_or_default();
        if let Some(own) = config.history.get_mut(base.history.len()..) {
            self.mark_empty(own, &classic.made, base.rootfs.diff_ids.len(), tree, keys).await?;
        }
        Ok(config)
    }

    /// Marks the entries of a history whose steps changed no file. `made` has their vertices, `below` is how many layers the base image has.
    async fn mark_empty(
        &self,
        history: &mut [History],
        made: &[Option<Digest>],
        below: usize,
        tree: &Tree,
        keys: &BuildKeys,
    ) -> Result<(), EngineError> {
        let told = below + history.iter().filter(|entry| !entry.empty_layer).count();
        if self.height(tree).await? >= told {
            return Ok(());
        }
        let mut height = below;
        for (entry, vertex) in history.iter_mut().zip(made).filter(|(entry, _)| !entry.empty_layer) {
            let after = match vertex {
                Some(vertex) => keys.result_of(vertex).await?,
                None => None,
            };
            match after {
                Some(after) => {
                    let after = self.height(&after).await?;
                    entry.empty_layer = after <= height;
                    height = after;
                }
                None => height += 1,
            }
        }
        Ok(())
    }

    /// How many layers a tree has.
    async fn height(&self, tree: &Tree) -> Result<usize, EngineError> {
        let (stores, tree) = (self.engine.stores().clone(), tree.clone());
        Ok(StepError::blocking(move || snapshots(&stores, &tree)).await?.len())
    }

    /// Hashes what is copied where that is not known yet, and plans again.
    async fn learn(&mut self, wanted: impl Fn(&CopyQuery) -> bool) -> Result<(), EngineError> {
        let classic = self.plan.targets.first().and_then(|target| target.classic.as_ref());
        let queries: Vec<CopyQuery> = classic
            .into_iter()
            .flat_map(|classic| &classic.copies)
            .filter(|query| wanted(query))
            .cloned()
            .collect();
        if queries.is_empty() {
            return Ok(());
        }
        let mut trees: Vec<(Arc<Definition>, Tree)> = Vec::new();
        for query in queries {
            let hash = self.hash(&query, &mut trees).await?;
            self.facts.copied.insert(query.place, hash);
        }
        self.plan_again()
    }

    fn plan_again(&mut self) -> Result<(), EngineError> {
        match plan(&self.options, &self.facts)? {
            Answer::Plan(plan) => {
                self.plan = *plan;
                Ok(())
            }
            // A Dockerfile that was planned needs no more than it did.
            Answer::Need(needs) => Err(EngineError::Unsupported { what: format!("{needs:?}") }),
        }
    }

    /// The hash of what an instruction copies, or why it cannot, in Moby's words (`builder/dockerfile/copy.go`).
    async fn hash(
        &mut self,
        query: &CopyQuery,
        trees: &mut Vec<(Arc<Definition>, Tree)>,
    ) -> Result<Result<String, String>, EngineError> {
        let keyword = query.keyword;
        let mut hashes = Vec::new();
        for source in &query.sources {
            let (definition, path, from) = match source {
                CopySource::Said(text) => {
                    hashes.push(text.clone());
                    continue;
                }
                CopySource::Context { definition, path } => {
                    (definition, path, CopiedFrom::Context { bare_modes: self.scope.bare_modes })
                }
                CopySource::Tree { definition, path } | CopySource::Download { definition, path } => {
                    (definition, path, CopiedFrom::Tree)
                }
            };
            if from != CopiedFrom::Tree && leaves(path) {
                return Ok(Err(format!(
                    "{keyword} failed: forbidden path outside the build context: {path} ()"
                )));
            }
            let tree =
                match trees.iter().find(|(known, _)| Arc::ptr_eq(known, definition) || known == definition) {
                    Some((_, tree)) => tree.clone(),
                    None => {
                        let solved = self.engine.solve(definition, &self.scope, self.progress).await;
                        let tree = match (solved, source) {
                            (Err(error), CopySource::Download { .. }) if !error.is_canceled() => {
                                return Ok(Err(format!("{keyword} failed: {}", words(&error))));
                            }
                            (solved, _) => solved?,
                        };
                        trees.push((Arc::clone(definition), tree.clone()));
                        tree
                    }
                };
            let (stores, source_path) = (self.engine.stores().clone(), path.clone());
            let hashed =
                StepError::blocking(move || Ok::<_, StepError>(copied(&stores, &tree, &source_path, from)))
                    .await?;
            match (hashed, source) {
                (Ok(files), CopySource::Download { .. }) => {
                    hashes.extend(files.hashes.iter().map(|file| downloaded(file).to_owned()));
                }
                (Ok(files), _) => {
                    hashes.extend(files.hashes);
                    if !files.by_content {
                        self.unsure.insert(query.place);
                    }
                }
                // To Go's `filepath.Match`, as it is called there, such a pattern matches nothing.
                (Err(FilesError::BadGlob { .. }), _) => {}
                (Err(FilesError::NotFound { path, .. }), CopySource::Context { .. }) => {
                    return Ok(Err(format!(
                        "{keyword} failed: file not found in build context or excluded by .dockerignore: stat {path}: file does not exist"
                    )));
                }
                (Err(FilesError::NotFound { path, .. }), _) => {
                    return Ok(Err(format!("{keyword} failed: stat {path}: file does not exist")));
                }
                (Err(error), _) => return Err(StepError::from(error).into()),
            }
        }
        Ok(match hashes.len() {
            0 => Err(format!("{keyword} failed: no source files were specified")),
            2.. if !query.to_directory => Err(format!(
                "When using {keyword} with more than one source file, the destination must be a directory and end with a /"
            )),
            _ => Ok(copied_together(&hashes)),
        })
    }

    /// The configs of the images that may serve as cache. One that cannot be had does not, as in Moby.
    async fn images(
        &self,
        references: &[Reference],
        cancel: &CancellationToken,
    ) -> Vec<(Reference, ImageConfig)> {
        let mut images = Vec::new();
        for reference in references {
            let name = format!("load cache image {}", reference.familiar());
            let cx = self.engine.source_context(&self.scope, internal_vertex(self.progress, name), cancel);
            let query = ImageQuery {
                origin: ImageOrigin::registry(ResolveMode::PreferLocal),
                reference: reference.clone().with_default_tag(),
                platform: Platform::host(),
            };
            let Ok(fact) = cx.vertex.track(self.engine.workshop().sources.resolve_image(&cx, &query)).await
            else {
                continue;
            };
            let Ok(config) = ImageConfig::from_json(&fact.config) else { continue };
            let pinned = match &fact.digest {
                Some(digest) => fact.reference.clone().with_digest(digest.clone()),
                None => fact.reference.clone(),
            };
            images.push((pinned, config));
        }
        images
    }

    /// Takes from the images what they have of the stages.
    ///
    /// What a stage copies of others is known when those are images as a whole; each such stage may make the next one known.
    async fn restore(&mut self, images: &[(Reference, ImageConfig)]) -> Result<(), EngineError> {
        loop {
            let Some(classic) = self.plan.targets.first().and_then(|target| target.classic.as_ref()) else {
                return Ok(());
            };
            let (copied, unsure) = (&self.facts.copied, &self.unsure);
            let best = |stage: &StageHistory| {
                let found = images.iter().filter_map(|(reference, config)| {
                    restored(stage, reference, config, |place| {
                        copied.contains_key(place) && !unsure.contains(place)
                    })
                });
                // The first of those that have most.
                found.reduce(|best, other| if other.count > best.count { other } else { best })
            };
            let found = classic.stages.iter().filter_map(|stage| Some((stage.stage, best(stage)?)));
            let found = found.collect();
            if self.facts.restored == found {
                return Ok(());
            }
            self.facts.restored = found;
            self.plan_again()?;
            self.learn(|query| query.sources.iter().all(|source| is_at_hand(source) || is_image(source)))
                .await?;
        }
    }

    async fn is_known(&self, step: &Step) -> bool {
        let cache: &BuildCache = self.engine.cache();
        matches!(cache.load(&key(step)).await, Ok(Some(_)))
    }

    /// Keeps in mind which configs were made, up to the step that failed: for the transcript alone, so that failing to is no failure. What is kept goes
    /// with the result of the build, when that is pruned.
    async fn remember(&self, steps: &[Step], result: Result<&Tree, &EngineError>) {
        let made = match result {
            Err(EngineError::Step(SolveError::Op { vertex, .. })) => {
                steps.iter().position(|step| step.vertex.as_ref() == Some(vertex))
            }
            Ok(_) => Some(steps.len()),
            Err(_) => None,
        };
        let nothing = Tree::empty();
        let tree = result.unwrap_or(&nothing);
        let cache: &BuildCache = self.engine.cache();
        for step in steps.iter().take(made.unwrap_or(0)).filter(|step| is_config(step)) {
            if !self.is_known(step).await
                && let Err(error) = cache.save(&key(step), Vec::new(), Some(tree)).await
            {
                tracing::warn!(%error, "a step is not kept in mind");
                return;
            }
        }
    }
}

/// The one doubt that Moby's classic builder has (`parser.Result.PrintWarnings`), about the steps that are planned.
fn doubts(plan: &Plan, target: &PlatformPlan) -> Vec<String> {
    let doubtful = plan.warnings.iter().filter(|warning| warning.rule == Rule::NoEmptyContinuation);
    let step = |line: u32| target.steps.iter().find(|step| step.lines.lines().any(|of_step| of_step == line));
    let mut lines: Vec<String> = doubtful
        .filter_map(|warning| step(warning.lines.start))
        .map(|step| format!("[WARNING]: Empty continuation line found in:\n    {}", step.text))
        .collect();
    if !lines.is_empty() {
        let end = "[WARNING]: Empty continuation lines will become errors in a future release.";
        lines.push(end.to_owned());
    }
    lines
}

/// Whether a step changes the config and nothing else.
fn is_config(step: &Step) -> bool {
    step.vertex.is_none() && step.kind == StepKind::Other
}

/// By which the cache knows that a step was made.
fn key(step: &Step) -> KeyId {
    KeyId::new(format!("classic:{}", step.state))
}

fn is_at_hand(source: &CopySource) -> bool {
    matches!(source, CopySource::Context { .. } | CopySource::Said(_))
}

/// Whether a source is (part of) an image, so that nothing has to run for it.
fn is_image(source: &CopySource) -> bool {
    let CopySource::Tree { definition, .. } = source else { return false };
    Graph::parse(definition, Limits::default()).is_ok_and(|graph| {
        graph.vertices().iter().all(|vertex| matches!(vertex.op.op, Some(pb::op::Op::Source(_))))
    })
}

/// Whether a path leads out of the context.
fn leaves(path: &str) -> bool {
    let mut depth = 0i64;
    path.trim_start_matches('/').split('/').any(|part| {
        depth += match part {
            "" | "." => 0,
            ".." => -1,
            _ => 1,
        };
        depth < 0
    })
}

/// What an image has of a stage (`image/cache` in moby/moby): its history and layers must begin with those of the stage's base, and
/// go on with what the stage's instructions would say of themselves. An image for another platform has nothing.
///
/// Only what the history says is compared, as the user asked for; the result's config is made from the Dockerfile, and not from the image.
fn restored(
    stage: &StageHistory,
    reference: &Reference,
    image: &ImageConfig,
    is_known: impl Fn(&Place) -> bool,
) -> Option<Restored> {
    let platform = image.platform().normalized();
    let wanted = stage.platform.normalized();
    if (platform.os, platform.architecture, platform.variant)
        != (wanted.os, wanted.architecture, wanted.variant)
    {
        return None;
    }
    let nothing = ImageConfig::default();
    let base = stage.base.as_deref().unwrap_or(&nothing);
    let layers = |config: &ImageConfig| config.history.iter().filter(|entry| !entry.empty_layer).count();
    // Else nobody can tell which layer is whose.
    let sound = |config: &ImageConfig| layers(config) == config.rootfs.diff_ids.len();
    let begins =
        image.history.starts_with(&base.history) && image.rootfs.diff_ids.starts_with(&base.rootfs.diff_ids);
    if !begins || !sound(base) || !sound(image) {
        return None;
    }
    let own = &image.history[base.history.len()..];
    let same = stage.entries.iter().zip(own).take_while(|(entry, theirs)| {
        entry.complete && entry.copy.as_ref().is_none_or(&is_known) && entry.created_by == theirs.created_by
    });
    let count = same.count().checked_sub(stage.inherited).filter(|count| *count > 0)?;
    let history = own[stage.inherited..stage.inherited + count].to_vec();
    let below = own[..stage.inherited].iter().filter(|entry| !entry.empty_layer).count();
    let added = history.iter().filter(|entry| !entry.empty_layer).count();
    let total = u32::try_from(base.rootfs.diff_ids.len() + below + added).ok()?;
    // A step that changed nothing is not run either.
    let is_of_files = stage.entries[stage.inherited..][..count].iter().any(|entry| entry.changes_files);
    let layers = ((added > 0 || is_of_files) && total > 0).then_some(total);
    Some(Restored { count, image: reference.clone(), layers, history })
}

/// What a step that copies from a stage fails with, where that has no such file.
fn in_moby_words(error: EngineError, steps: &[Step]) -> EngineError {
    let EngineError::Step(SolveError::Op { vertex, source, .. }) = &error else { return error };
    if let StepError::Source(source) = source.inner() {
        let told = words(source);
        return of_download(&told, steps).unwrap_or(error);
    }
    let (StepError::Files(files) | StepError::Content(files)) = source.inner() else { return error };
    let step = steps.iter().find(|step| step.kind == StepKind::Copy && step.vertex.as_ref() == Some(vertex));
    let Some(step) = step else { return error };
    let words = match (missing_path(files), unknown_owner(files)) {
        (Some(path), _) => {
            let keyword = step.text.split_whitespace().next().unwrap_or_default().to_uppercase();
            format!("{keyword} failed: stat {}: file does not exist", path.trim_start_matches('/'))
        }
        (None, Some(words)) => words,
        (None, None) => return error,
    };
    EngineError::Dockerfile(DockerfileError::Lower {
        problem: LowerError::Classic(words),
        lines: vec![step.lines],
    })
}

/// What an `ADD` fails with whose URL gives nothing: the words `told` name the URL.
fn of_download(told: &str, steps: &[Step]) -> Option<EngineError> {
    let names_url = |step: &&Step| {
        let is_add = step.text.split_whitespace().next().is_some_and(|word| word.eq_ignore_ascii_case("ADD"));
        is_add && step.text.split_whitespace().any(|word| word.contains("://") && told.contains(word))
    };
    let step = steps.iter().find(names_url)?;
    let problem = LowerError::Classic(format!("ADD failed: {told}"));
    Some(EngineError::Dockerfile(DockerfileError::Lower { problem, lines: vec![step.lines] }))
}

fn unknown_owner(error: &FilesError) -> Option<String> {
    match error {
        FilesError::UnknownOwner { .. } => Some(error.to_string()),
        FilesError::Action { source, .. } => unknown_owner(source),
        _ => None,
    }
}

fn missing_path(error: &FilesError) -> Option<&str> {
    match error {
        FilesError::NotFound { path, .. } | FilesError::NoMatch { path } => Some(path),
        FilesError::Digest { source, .. } | FilesError::Action { source, .. } => missing_path(source),
        _ => None,
    }
}

/// Why an image cannot be had, as Moby says it: without its name before everything else.
pub(crate) fn why_missing(reference: &Reference, error: &dyn Error) -> String {
    let text = words(error);
    let bare = text.strip_prefix(&format!("{reference}: "));
    bare.or_else(|| text.strip_prefix(&format!("{}: ", reference.familiar()))).unwrap_or(&text).to_owned()
}

/// What is wrong with a Dockerfile as a whole, as Moby says it.
pub(crate) fn unreadable(error: DockerfileError, name: &str) -> DockerfileError {
    let words = match &error {
        DockerfileError::Syntax { problem: SyntaxError::NoStage, .. } => return error,
        DockerfileError::Syntax { .. } => format!("failed to parse {name}: {error}"),
        DockerfileError::Empty | DockerfileError::Lower { problem: LowerError::EmptyDockerfile, .. } => {
            format!("the Dockerfile ({name}) cannot be empty")
        }
        _ => return error,
    };
    let lines = error.lines().into_iter().collect();
    DockerfileError::Lower { problem: LowerError::Classic(words), lines }
}

/// An error in one line: itself and its causes.
pub(crate) fn words(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
