//! Solving: of a graph, or of what a further frontend makes.

use std::{collections::BTreeMap, sync::Arc};

use futures::future::BoxFuture;
use lapstrake_builder_dockerfile::{DockerfileOptions, Plan};
use lapstrake_builder_llb::{Definition, SourcePolicies};
use lapstrake_builder_solver::CacheStore;
use lapstrake_layerstore_oci::Platform;
use lapstrake_layerstore_store::Tree;
use lapstrake_session::SessionId;

use super::{Bridge, BuildParts, FrontendResult, Ref, Refs, Target, wire::invalid};
use crate::{
    CacheSource, Engine, EngineError, FrontendRequest, SourcePolicy,
    attest::{Asked, Attests},
    engine::internal_vertex,
    frontend::Frontend,
    plan::Answered,
};

/// What a frontend asks to be solved.
#[derive(Debug, Clone, Default)]
pub(crate) struct SolveOrder {
    /// A graph; without one, and without a frontend, the answer is nothing.
    pub(crate) definition: Option<Definition>,
    /// A further frontend.
    pub(crate) frontend: Option<FrontendRequest>,
    /// Caches to use, besides the build's.
    pub(crate) caches: Vec<CacheSource>,
    /// Rules for the graph's sources, besides the build's.
    pub(crate) policies: SourcePolicies,
    /// Whether the answer waits until all of it is solved.
    pub(crate) evaluate: bool,
}

impl Bridge {
    /// Solves a graph, or what a further frontend makes. Unless it is to be evaluated, nothing of a graph is run yet.
    pub(crate) async fn solve(&self, order: SolveOrder) -> Result<FrontendResult, EngineError> {
        let SolveOrder { definition, frontend, caches, policies, evaluate } = order;
        let result = match (definition, frontend) {
            (Some(_), Some(_)) => {
                let what = "cannot solve with both Definition and Frontend specified".to_owned();
                return Err(EngineError::Bridge { what });
            }
            (Some(definition), None) => {
                let policy = self.build.scope.policy.and(&policies);
                let reference = self.engine.governed_reference(&self.build, definition, policy, &caches);
                FrontendResult::one(reference)
            }
            (None, Some(request)) => self.engine.ask_frontend(&self.build, request).await?,
            (None, None) => FrontendResult::default(),
        };
        if evaluate {
            futures::future::try_join_all(result.refs.iter().map(|reference| self.evaluate(reference)))
                .await?;
        }
        // From now on the frontend may give the graphs to another one.
        result.refs.iter().for_each(|made| self.engine.producers().note(made.definition(), made.trail()));
        Ok(result)
    }
}

impl Engine {
    /// A graph's result, not solved yet. Uses the caches of the build and these.
    pub(crate) fn reference(
        &self,
        build: &Arc<BuildParts>,
        definition: impl Into<Arc<Definition>>,
        caches: &[CacheSource],
    ) -> Ref {
        self.governed_reference(build, definition, build.scope.policy.clone(), caches)
    }

    /// The same under another policy than the build's.
    fn governed_reference(
        &self,
        build: &Arc<BuildParts>,
        definition: impl Into<Arc<Definition>>,
        policy: SourcePolicy,
        caches: &[CacheSource],
    ) -> Ref {
        let BuildParts { scope, progress, cancel, imports, .. } = &**build;
        let mut stores = self.import_all(build);
        stores.extend(self.import(imports, caches, scope, progress, cancel));
        Ref::new(self, build, definition, policy, stores)
    }

    /// Begins to fetch the caches that the build was asked to use.
    pub(crate) fn import_all(&self, build: &BuildParts) -> Vec<Arc<dyn CacheStore<Tree>>> {
        let BuildParts { scope, progress, cancel, imports, cache_from, .. } = build;
        self.import(imports, cache_from, scope, progress, cancel)
    }

    /// What a frontend makes.
    pub(crate) async fn ask_frontend(
        &self,
        build: &Arc<BuildParts>,
        request: FrontendRequest,
    ) -> Result<FrontendResult, EngineError> {
        let mut told = request.clone();
        if told.frontend == "gateway.v0" && told.options.get("source").is_some_and(|it| it == "dockerfile.v0")
        {
            told.frontend = told.options.remove("source").expect("it is there");
        }
        let build = &build.under(Asked::new(told, self.producers()));
        let FrontendRequest { frontend, options, inputs } = request;
        // On the heap, and of no type that a compiler would look into: they are deep.
        let answer: BoxFuture<'_, _> = match frontend.as_str() {
            "dockerfile.v0" => Box::pin(self.ask_dockerfile(build, options, inputs)),
            "gateway.v0" => Box::pin(self.ask_gateway(build, options, inputs)),
            _ => return Err(EngineError::Bridge { what: format!("invalid frontend: {frontend}") }),
        };
        answer.await
    }

    /// What an image makes that is a frontend, or the built-in one in its place.
    async fn ask_gateway(
        &self,
        build: &Arc<BuildParts>,
        mut options: BTreeMap<String, String>,
        inputs: BTreeMap<String, Definition>,
    ) -> Result<FrontendResult, EngineError> {
        if options.contains_key("gateway-devel") {
            return Err(invalid("development gateway is no longer supported"));
        }
        let source = options.get("source").cloned().filter(|source| !source.is_empty());
        let source = source.ok_or_else(|| invalid("no source specified for gateway"))?;
        if source == "dockerfile.v0" {
            options.remove("source");
            return self.ask_dockerfile(build, options, inputs).await;
        }
        let command_line = options.get("cmdline").unwrap_or(&source).clone();
        match Frontend::of(&source, command_line, None, self.frontends())? {
            // It reads the Dockerfile, and asks whom that names.
            Frontend::BuiltIn { .. } => self.ask_dockerfile(build, options, inputs).await,
            Frontend::Gateway(frontend) => {
                let run: BoxFuture<'_, _> = Box::pin(self.run_image(frontend, options, inputs, build));
                run.await
            }
        }
    }

    /// What the built-in Dockerfile frontend makes, or the one that the Dockerfile or the options name.
    async fn ask_dockerfile(
        &self,
        build: &Arc<BuildParts>,
        options: BTreeMap<String, String>,
        inputs: BTreeMap<String, Definition>,
    ) -> Result<FrontendResult, EngineError> {
        if inputs.values().any(|input| input.is_scratch() && input.metadata.is_empty()) {
            return Err(invalid("invalid nil input definition to definition op"));
        }
        let missing = missing_cap(&options)?;
        let session = build.scope.session.as_ref().map(SessionId::to_string);
        let names: Vec<String> = inputs.keys().cloned().collect();
        let options = DockerfileOptions::from_frontend_attrs(&options, Platform::host(), session, &names)?;
        if options.subrequest.is_some() && missing.is_none() {
            let reply = self.answer(&options, &inputs, build).await?;
            return Ok(FrontendResult { metadata: reply.metadata, ..FrontendResult::default() });
        }
        match self.plan(&options, &inputs, build).await? {
            Answered::Elsewhere(result) => Ok(result),
            Answered::BuiltIn((plan, _)) => {
                if let Some(name) = missing {
                    return Err(EngineError::FrontendCap { name });
                }
                let mut result = self.planned(&plan, &options, build)?;
                if let Some(order) = Attests::parse(&options.attrs)?.sbom {
                    self.scan_plan(&order, &plan, &mut result, build).await?;
                }
                Ok(result)
            }
        }
    }

    /// A cache as clients name it. One that is not understood is told to the client and is no failure, as one that cannot be had.
    pub(crate) fn wanted_cache(
        &self,
        kind: &str,
        attrs: &BTreeMap<String, String>,
        build: &BuildParts,
    ) -> Option<CacheSource> {
        match CacheSource::from_attrs(kind, attrs) {
            Ok(source) => Some(source),
            Err(error) => {
                let vertex =
                    internal_vertex(&build.progress, format!("importing cache manifest from {kind}"));
                vertex.start();
                vertex.fail(error.to_string());
                None
            }
        }
    }

    /// A plan as other frontends would give it.
    pub(crate) fn planned(
        &self,
        plan: &Plan,
        options: &DockerfileOptions,
        build: &Arc<BuildParts>,
    ) -> Result<FrontendResult, EngineError> {
        let mut caches = Vec::with_capacity(options.cache_imports.len());
        for import in &options.cache_imports {
            caches.extend(self.wanted_cache(&import.kind, &import.attrs, build));
        }
        let mut result = FrontendResult::default();
        if plan.multi_platform {
            result.refs = Refs::ByKey(BTreeMap::new());
        }
        let mut targets = Vec::with_capacity(plan.targets.len());
        for planned in &plan.targets {
            let target = Target {
                key: planned.platform.to_full_string(),
                platform: planned.platform.clone(),
                source: Some(self.reference(build, planned.definition.clone(), &caches)),
                config: planned.config.clone(),
                epoch: planned.epoch,
            };
            result.add(&target, planned.base_config.as_ref())?;
            targets.push(target);
        }
        result.finish(&targets);
        Ok(result)
    }
}

/// What the built-in Dockerfile frontend can, by the names that clients ask for.
const CAPS: [&str; 4] = [
    "moby.buildkit.frontend.inputs",
    "moby.buildkit.frontend.subrequests",
    "moby.buildkit.frontend.contexts",
    "moby.buildkit.frontend.gitquerystring",
];
/// Behind a capability's name: it is asked of whoever the Dockerfile names.
const FORWARD: &str = "+forward";

/// What is asked of the built-in frontend that it cannot. It is an error, unless another frontend may answer.
fn missing_cap(options: &BTreeMap<String, String>) -> Result<Option<String>, EngineError> {
    let asked = options.get("frontend.caps").map(String::as_str).unwrap_or_default();
    let mut missing = None;
    for cap in asked.split(',').filter(|cap| !cap.is_empty()) {
        let name = cap.split('+').next().unwrap_or_default();
        if CAPS.contains(&name) {
            continue;
        }
        if !cap.contains(FORWARD) {
            return Err(EngineError::FrontendCap { name: name.to_owned() });
        }
        missing = Some(name.to_owned());
    }
    Ok(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_frontend_says_what_it_cannot() {
        let missing = |asked: &str| {
            missing_cap(&[("frontend.caps".to_owned(), asked.to_owned())].into())
                .map_err(|error| error.to_string())
        };
        assert_eq!(missing(""), Ok(None));
        assert_eq!(
            missing("moby.buildkit.frontend.inputs,moby.buildkit.frontend.contexts+forward"),
            Ok(None)
        );
        assert_eq!(missing("x.y"), Err("unsupported frontend capability x.y".to_owned()));
        assert_eq!(missing("x.y+forward"), Ok(Some("x.y".to_owned())));
    }
}
