//! Lowering for what is learned on the way: doubts about all stages, or what a target takes. Nothing of the graph is used.

use std::collections::{BTreeMap, BTreeSet};

use lapstrake_builder_llb::pb;

use super::dispatch::At;
use super::{Lowering, context, parse};
use crate::Error;
use crate::facts::{Facts, Need};
use crate::instructions::ArgDeclaration;
use crate::lint::Warning;
use crate::location::LineRange;
use crate::options::DockerfileOptions;

/// How far something was found out.
pub(crate) enum Inspected<T> {
    Need(Vec<Need>),
    Done(T),
}

/// Raises all warnings. `Some` if something is to be found out first.
pub(crate) fn check(
    options: &DockerfileOptions,
    facts: &Facts,
    warnings: &mut Vec<Warning>,
) -> Result<Option<Vec<Need>>, Error> {
    let dockerfile = parse(options, facts, warnings)?;
    let mut lowering = Lowering::new(options, facts, &dockerfile, None)?;
    lowering.all_stages = options.target.as_deref().is_none_or(str::is_empty);
    let result = lowering.lower().and_then(|lowered| match lowered {
        None => Ok(Some(std::mem::take(&mut lowering.needs))),
        Some(_) => lowering.fail_for_warnings().map(|()| None),
    });
    *warnings = lowering.reporter.warnings;
    result
}

/// What the target takes.
pub(crate) fn outline(
    options: &DockerfileOptions,
    facts: &Facts,
    warnings: &mut Vec<Warning>,
) -> Result<Inspected<Outline>, Error> {
    let dockerfile = parse(options, facts, warnings)?;
    let mut lowering = Lowering::new(options, facts, &dockerfile, None)?;
    lowering.captured = Some(Captured::default());
    let result = lowering.lower().and_then(|lowered| {
        let Some((target, _)) = lowered else {
            return Ok(Inspected::Need(std::mem::take(&mut lowering.needs)));
        };
        lowering.fail_for_warnings()?;
        Ok(Inspected::Done(lowering.outline_of(target)))
    });
    *warnings = lowering.reporter.warnings;
    result
}

/// The Dockerfile as a source that warnings point into.
///
/// Fails where its own graph cannot be made.
pub fn source_info(options: &DockerfileOptions, facts: &Facts) -> Result<pb::SourceInfo, Error> {
    Ok(pb::SourceInfo {
        filename: context::dockerfile_name(options, facts).to_owned(),
        data: facts.dockerfile.to_vec(),
        definition: Some(context::dockerfile_definition(options, facts)?.to_proto()),
        language: "Dockerfile".to_owned(),
    })
}

/// What a target takes.
pub(crate) struct Outline {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) args: Vec<OutlineArg>,
    pub(crate) secrets: Vec<OutlineOffer>,
    pub(crate) ssh: Vec<OutlineOffer>,
}

#[derive(Clone)]
pub(crate) struct OutlineArg {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) value: String,
    pub(crate) lines: LineRange,
    /// The arguments that its default uses.
    needs: BTreeSet<String>,
}

/// A secret or an ssh agent.
#[derive(Clone)]
pub(crate) struct OutlineOffer {
    pub(crate) id: String,
    pub(crate) required: bool,
    pub(crate) lines: LineRange,
}

/// What was seen of arguments, secrets and agents. Only outlines need it: a build does not collect it.
#[derive(Default)]
pub(super) struct Captured {
    /// Of `ARG`s before the first `FROM`.
    global: BTreeMap<String, OutlineArg>,
    /// By stage.
    stages: BTreeMap<usize, StageCaptured>,
}

#[derive(Default, Clone)]
struct StageCaptured {
    args: BTreeMap<String, OutlineArg>,
    used: BTreeSet<String>,
    secrets: BTreeMap<String, OutlineOffer>,
    ssh: BTreeMap<String, OutlineOffer>,
}

impl Lowering<'_> {
    pub(super) fn capture_global(
        &mut self,
        declaration: &ArgDeclaration,
        value: Option<&str>,
        mut needs: BTreeSet<String>,
        lines: LineRange,
    ) {
        let Some(captured) = &mut self.captured else { return };
        // `ARG a=${a}x` adds to what was before.
        if needs.remove(&declaration.key)
            && let Some(before) = captured.global.get(&declaration.key)
        {
            needs.extend(before.needs.iter().cloned());
        }
        captured.global.insert(declaration.key.clone(), outline_arg(declaration, value, needs, lines));
    }

    /// A stage begins as its base began, and uses what its `FROM` names.
    pub(super) fn capture_stage(&mut self, stage: usize, used: impl IntoIterator<Item = String>) {
        let base = self.stages[stage].base;
        let Some(captured) = &mut self.captured else { return };
        let begun = base.and_then(|base| captured.stages.get(&base)).cloned();
        let mut begun = begun
            .unwrap_or_else(|| StageCaptured { args: captured.global.clone(), ..StageCaptured::default() });
        begun.used.extend(used);
        captured.stages.insert(stage, begun);
    }

    /// An `ARG` of a stage; one that takes the global value is the global one.
    pub(super) fn capture_arg(
        &mut self,
        at: &At,
        declaration: &ArgDeclaration,
        value: Option<&str>,
        is_global: bool,
    ) {
        let Some(captured) = &mut self.captured else { return };
        let stage = captured.stages.entry(at.stage).or_default();
        if !is_global {
            let arg = outline_arg(declaration, value, BTreeSet::new(), at.lines);
            stage.args.insert(declaration.key.clone(), arg);
        }
        stage.used.insert(declaration.key.clone());
    }

    pub(super) fn capture_secret(&mut self, at: &At, id: &str, required: bool) {
        self.capture_offer(at, id, required, |stage| &mut stage.secrets);
    }

    pub(super) fn capture_ssh(&mut self, at: &At, id: &str, required: bool) {
        let id = if id.is_empty() { "default" } else { id };
        self.capture_offer(at, id, required, |stage| &mut stage.ssh);
    }

    fn capture_offer(
        &mut self,
        at: &At,
        id: &str,
        required: bool,
        of: fn(&mut StageCaptured) -> &mut BTreeMap<String, OutlineOffer>,
    ) {
        let Some(captured) = &mut self.captured else { return };
        let offers = of(captured.stages.entry(at.stage).or_default());
        // The first use counts.
        let offer = || OutlineOffer { id: id.to_owned(), required, lines: at.lines };
        offers.entry(id.to_owned()).or_insert_with(offer);
    }

    fn outline_of(&self, target: usize) -> Outline {
        let stage = &self.stages[target];
        let written = stage.number.and_then(|number| self.dockerfile.stages.get(number));
        let mut outline = Outline {
            name: stage.name.clone().unwrap_or_default(),
            description: written.and_then(|stage| stage.doc_comment.clone()).unwrap_or_default(),
            args: Vec::new(),
            secrets: Vec::new(),
            ssh: Vec::new(),
        };
        let nothing = Captured::default();
        let captured = self.captured.as_ref().unwrap_or(&nothing);
        // The target's own come first; of one name the first is told.
        let (mut args, mut secrets, mut ssh) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let (mut seen, mut open) = (BTreeSet::from([target]), vec![target]);
        while let Some(index) = open.pop() {
            if let Some(stage) = captured.stages.get(&index) {
                for name in stage.all_used() {
                    if let Some(arg) = stage.args.get(&name)
                        && args.insert(name)
                    {
                        outline.args.push(arg.clone());
                    }
                }
                let new = |known: &mut BTreeSet<String>, offer: &OutlineOffer| known.insert(offer.id.clone());
                outline.secrets.extend(stage.secrets.values().filter(|o| new(&mut secrets, o)).cloned());
                outline.ssh.extend(stage.ssh.values().filter(|o| new(&mut ssh, o)).cloned());
            }
            let stage = &self.stages[index];
            let needed = stage.needs.iter().map(|(needed, _)| *needed).chain(stage.base);
            open.extend(needed.filter(|needed| seen.insert(*needed)));
        }
        outline.args.sort_by_key(|arg| arg.lines.start);
        outline.secrets.sort_by_key(|offer| offer.lines.start);
        outline.ssh.sort_by_key(|offer| offer.lines.start);
        outline
    }
}

impl StageCaptured {
    /// What is used, and what the defaults of that use.
    fn all_used(&self) -> BTreeSet<String> {
        let mut used = BTreeSet::new();
        let mut open: Vec<&String> = self.used.iter().collect();
        while let Some(name) = open.pop() {
            if used.insert(name.clone())
                && let Some(arg) = self.args.get(name)
            {
                open.extend(&arg.needs);
            }
        }
        used
    }
}

fn outline_arg(
    declaration: &ArgDeclaration,
    value: Option<&str>,
    needs: BTreeSet<String>,
    lines: LineRange,
) -> OutlineArg {
    OutlineArg {
        name: declaration.key.clone(),
        description: declaration.doc_comment.clone().unwrap_or_default(),
        value: value.unwrap_or_default().to_owned(),
        lines,
        needs,
    }
}
