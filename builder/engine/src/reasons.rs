//! Why a step runs: what it is made of, compared with its last run in the same place.
//!
//! Nothing of this happens for a step whose result is found. For one that runs, it happens beside the work.

use std::{collections::BTreeMap, sync::Arc};

use lapstrake_builder_history::{
    Aspect, Explained, Ingredient, IngredientKind, Listing, Mark, MissReason, PackedRecipe, Place, Recipe,
    Variable, describe,
};
use lapstrake_builder_llb::{Graph, Vertex, VertexId, cache_key::Selector, pb};
use lapstrake_builder_progress::redact;
use lapstrake_builder_solver::{Miss, MissCause, OpContext};
use lapstrake_layerstore_store::Tree;
use prost::Message as _;

use crate::{history::Knowledge, ops::Workshop, scope::EngineTypes};

/// Builds that share a step and are told of it.
const TOLD: usize = 8;

/// What the solver said of a step before it ran.
pub(crate) struct Missed {
    cause: MissCause,
    op: Mark,
    /// Of each input.
    keys: Vec<Vec<Mark>>,
}

impl Missed {
    pub(crate) fn new(miss: &Miss<'_, Tree>) -> Self {
        let marks = |keys: &lapstrake_builder_solver::InputKeys| {
            keys.iter().map(|(key, _)| Mark::of(key.as_str())).collect()
        };
        Self {
            cause: miss.cause.clone(),
            op: Mark::of_digest(&miss.map.digest),
            keys: miss.keys.iter().map(marks).collect(),
        }
    }
}

/// A step that runs, and where it is from.
pub(crate) struct Running {
    pub(crate) workshop: Arc<Workshop>,
    pub(crate) graph: Arc<Graph>,
    pub(crate) vertex: VertexId,
    pub(crate) missed: Missed,
    pub(crate) inputs: Vec<Tree>,
    /// What of each input's content counts.
    pub(crate) contents: Vec<Option<Vec<Selector>>>,
}

/// What is to be remembered of a step once it has run well.
#[derive(Default)]
pub(crate) struct Memorable {
    recipe: Option<Arc<PackedRecipe>>,
    builds: Vec<Arc<Knowledge>>,
}

impl Memorable {
    /// It has run well.
    pub(crate) fn remember(self) {
        let Some(recipe) = self.recipe else { return };
        for build in self.builds {
            build.notes.note_recipe(&recipe);
        }
    }
}

/// Tells the builds that wait for a step why it runs. Ends soon when it is cancelled.
pub(crate) async fn explain(running: Running, cx: &OpContext<EngineTypes>) -> Memorable {
    let builds: Vec<Arc<Knowledge>> =
        cx.peek_scopes().iter().filter_map(|scope| scope.known.clone()).take(TOLD).collect();
    let Some(first) = builds.first().cloned() else { return Memorable::default() };
    let graph = Arc::clone(&running.graph);
    let vertex = graph.vertex(running.vertex);
    let work = async {
        // What ran just now counts too.
        first.history.settle_recipes().await;
        tokio::task::spawn_blocking(move || running.find_out(&first)).await
    };
    let (reasons, recipe) = tokio::select! {
        found = work => match found {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(%error, vertex = %vertex.name, "finding out why a step runs ended in a panic");
                return Memorable::default();
            }
        },
        () = cx.cancel.cancelled() => return Memorable::default(),
    };
    let is_news = reasons.iter().any(MissReason::is_news) && !vertex.name.starts_with("[internal]");
    if is_news {
        cx.vertex.remark(format!("cache miss: {}", describe(&reasons)));
    }
    for build in &builds {
        build.notes.note_reasons(&vertex.digest, reasons.clone());
    }
    Memorable { recipe: Some(recipe), builds }
}

impl Running {
    /// Blocks.
    fn find_out(&self, known: &Knowledge) -> (Vec<MissReason>, Arc<PackedRecipe>) {
        let vertex = self.graph.vertex(self.vertex);
        let place = Place::of(&vertex.name);
        let recipe = self.recipe(vertex, known);
        let reasons = match &self.missed.cause {
            MissCause::NoCache => vec![MissReason::NoCache],
            MissCause::Pruned => vec![MissReason::Pruned],
            MissCause::Ephemeral => vec![MissReason::Unseen],
            MissCause::Unknown { .. } => match known.notes.explain(&place, &recipe) {
                Explained::Never => vec![MissReason::NeverBuilt],
                // It ran here, made of the very same, and nothing leads to its result any more.
                Explained::Same => vec![MissReason::Pruned],
                Explained::Different(reasons) => reasons,
            },
        };
        (reasons, PackedRecipe::new(place, recipe))
    }

    fn recipe(&self, vertex: &Vertex, known: &Knowledge) -> Recipe {
        let mut recipe = own_part(vertex, &known.build_args);
        recipe.op = self.missed.op;
        recipe.build_args.clone_from(&known.build_args);
        recipe.dockerfile = known.notes.project().dockerfile;
        recipe.inputs =
            (0..vertex.inputs.len()).map(|number| self.ingredient(vertex, number, known)).collect();
        recipe
    }

    fn ingredient(&self, vertex: &Vertex, number: usize, known: &Knowledge) -> Ingredient {
        let input = self.graph.vertex(vertex.inputs[number].vertex);
        let keys = self.missed.keys.get(number).cloned().unwrap_or_default();
        let Some(pb::op::Op::Source(source)) = &input.op.op else {
            return Ingredient { kind: IngredientKind::Step { name: input.name.clone() }, keys };
        };
        let (scheme, rest) = source.identifier.split_once("://").unwrap_or(("", &source.identifier));
        let kind = match scheme {
            "docker-image" | "oci-layout" => {
                let (reference, digest) = match rest.split_once('@') {
                    Some((reference, digest)) => (reference, Some(digest.to_owned())),
                    None => (rest, known.image(rest)),
                };
                IngredientKind::Image { reference: reference.to_owned(), digest }
            }
            _ => {
                let origin = match (scheme, rest) {
                    ("local", "context") => "the build context".to_owned(),
                    ("local", name) => format!("the directory {name}"),
                    _ => redact(&source.identifier).into_owned(),
                };
                IngredientKind::Files { origin, listing: self.listing(number) }
            }
        };
        Ingredient { kind, keys }
    }

    /// What is taken of an input, where that is known by its content.
    fn listing(&self, number: usize) -> Option<Listing> {
        let selectors = self.contents.get(number)?.as_ref()?;
        let tree = self.inputs.get(number)?;
        match self.workshop.content.listing(tree, selectors) {
            Ok(files) => {
                let marked = files?.into_iter().map(|file| (file.path, Mark::of_digest(&file.digest)));
                Some(Listing::new(marked))
            }
            Err(error) => {
                tracing::debug!(%error, "files of a step cannot be listed");
                None
            }
        }
    }
}

/// What a step is by itself, without its inputs.
fn own_part(vertex: &Vertex, build_args: &BTreeMap<String, Mark>) -> Recipe {
    let mut recipe = Recipe::default();
    if let Some(platform) = &vertex.op.platform {
        recipe.aspects.insert(Aspect::Platform, Mark::of(platform.encode_to_vec()));
    }
    let action = match &vertex.op.op {
        Some(pb::op::Op::Exec(_) | pb::op::Op::Source(_)) => None,
        Some(pb::op::Op::File(op)) => Some(op.encode_to_vec()),
        Some(pb::op::Op::Merge(op)) => Some(op.encode_to_vec()),
        Some(pb::op::Op::Diff(op)) => Some(op.encode_to_vec()),
        Some(pb::op::Op::Build(op)) => Some(op.encode_to_vec()),
        None => vertex.passthrough.as_ref().map(|op| op.encode_to_vec()),
    };
    if let Some(action) = action {
        recipe.action = Mark::of(action);
        return recipe;
    }
    let Some(pb::op::Op::Exec(exec)) = &vertex.op.op else { return recipe };
    let nothing = pb::Meta::default();
    let meta = exec.meta.as_ref().unwrap_or(&nothing);
    recipe.action = Mark::of_all(&meta.args);
    let all = |messages: Vec<Vec<u8>>| Mark::of_all(messages);
    let limits: Vec<Vec<u8>> = meta.ulimit.iter().map(pb::Ulimit::encode_to_vec).collect();
    // The addresses of hosts do not count for the cache.
    let hosts = meta.extra_hosts.iter().map(|host| host.host.clone().into_bytes()).collect();
    recipe.aspects.extend([
        (Aspect::WorkingDirectory, Mark::of(&meta.cwd)),
        (Aspect::User, Mark::of(&meta.user)),
        (Aspect::Network, Mark::of(exec.network.to_le_bytes())),
        (Aspect::Security, Mark::of(exec.security.to_le_bytes())),
        (Aspect::Hosts, all(hosts)),
        (Aspect::Limits, all(limits.into_iter().chain([meta.cgroup_parent.clone().into_bytes()]).collect())),
    ]);
    for text in &meta.env {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let is_arg = build_args.contains_key(name);
        recipe.env.insert(name.to_owned(), Variable { mark: Mark::of(value), is_arg });
    }
    for mount in exec.mounts.iter().filter(|mount| mount.dest != "/") {
        recipe.mounts.insert(mount.dest.clone(), Mark::of(mount.encode_to_vec()));
    }
    recipe
}
