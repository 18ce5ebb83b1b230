//! `Control.Solve`: what a client wants built, in the engine's terms.
//!
//! Clients from BuildKit 0.8 to 0.32 say the same in several ways; what is newer goes before what is older, and everything is parsed here, once.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use lapstrake_api_proto::{
    control::{CacheOptions, CacheOptionsEntry, Exporter, SolveRequest, SolveResponse},
    llb,
};
use lapstrake_api_types::bool_value;
use lapstrake_builder_engine::{
    BuildId, BuildRequest, CacheSource, CacheTarget, Compatibility, EngineError, FrontendRequest, Grants,
    Input, KeepFailed, Output, SourcePolicy, status_of,
};
use lapstrake_builder_llb::{Definition, SourcePolicies};
use lapstrake_builder_progress::{Limits, Progress};
use lapstrake_layerstore_registry::StaticCredentials;
use lapstrake_layerstore_store::random_id;
use lapstrake_session::SessionId;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{AppState, error::chain, grpc::limits::limits};

type Attrs = HashMap<String, String>;

/// Where clients say the time that is to be put on what they make; the exporters' name for it, and the frontend's.
const EPOCH: &str = "source-date-epoch";
const EPOCH_ARG: &str = "build-arg:SOURCE_DATE_EPOCH";
const DOCKERFILE: &str = "dockerfile.v0";
const GATEWAY: &str = "gateway.v0";

/// Runs a build to its end. Dropping the future, which a client does by going away, cancels it.
pub(super) async fn solve(state: &Arc<AppState>, mut request: SolveRequest) -> Result<SolveResponse, Status> {
    if request.r#ref.is_empty() {
        request.r#ref = random_id();
    }
    let progress = Progress::anonymous(Limits::default()).map_err(|error| Status::internal(chain(&error)))?;
    // Before the request is looked at: whoever follows a build that is refused hears at once that there is nothing to hear.
    let running = state.spools.begin(&request.r#ref, &progress)?;
    let keeps_images = state.worker.as_ref().is_none_or(|worker| worker.keeps_images);
    let request = build_request(request, keeps_images)?;
    let cancel = CancellationToken::new();
    let guard = cancel.clone().drop_guard();
    let exported = state.builds.solve(request, progress, cancel).await.map_err(|error| status_of(&error))?;
    drop((running, guard.disarm()));
    Ok(SolveResponse { exporter_response: exported.response().into_iter().collect() })
}

fn build_request(request: SolveRequest, keeps_images: bool) -> Result<BuildRequest, Status> {
    let told = |error: EngineError| status_of(&error);
    let attrs = &request.frontend_attrs;
    if request.proxy_network {
        let why = "ProxyNetwork is not supported: what steps request from networks is not recorded";
        return Err(Status::unimplemented(why));
    }
    let compatibility = Compatibility::of_number(request.compatibility_version);
    let compatibility = compatibility.map_err(|error| Status::invalid_argument(error.to_string()))?;
    let rules = SourcePolicies::from_proto(&request.source_policy);
    let rules = rules.map_err(|error| Status::invalid_argument(error.to_string()))?;
    let source_policy = SourcePolicy { rules, session: SessionId::parse(&request.source_policy_session) };
    let cache = Caches::of(request.cache.unwrap_or_default());
    let exporters = exporters(
        request.exporters,
        request.exporter_deprecated,
        request.exporter_attrs_deprecated,
        attrs.get(EPOCH_ARG),
        keeps_images,
    );
    Ok(BuildRequest {
        id: BuildId(request.r#ref),
        session: SessionId::parse(&request.session),
        outputs: outputs(exporters)?,
        cache_from: cache.sources(attrs).map_err(told)?,
        cache_to: cache.targets()?,
        inline_cache: attrs.get("build-arg:BUILDKIT_INLINE_CACHE").is_some_and(|value| bool_value(value)),
        // They are with the session.
        credentials: Arc::new(StaticCredentials::new()),
        keep_failed: KeepFailed::No,
        grants: Grants::parse(request.entitlements.iter().map(String::as_str)).map_err(told)?,
        resources: limits(attrs)?,
        source_policy,
        compatibility,
        is_recorded: !request.internal,
        asks_session: request.enable_session_exporter,
        input: input(request.frontend, request.frontend_attrs, request.definition, request.frontend_inputs)?,
    })
}

/// What is to be built: a graph, what a frontend makes of the options, or what the client will say.
fn input(
    frontend: String,
    mut attrs: Attrs,
    definition: Option<llb::Definition>,
    inputs: HashMap<String, llb::Definition>,
) -> Result<Input, Status> {
    let inputs = inputs.into_iter().map(|(name, graph)| Ok((name, graph_of(graph)?)));
    let inputs = inputs.collect::<Result<BTreeMap<_, _>, Status>>()?;
    match (definition, frontend.as_str()) {
        (None, "") => Ok(Input::Client { options: attrs.into_iter().collect(), inputs }),
        (Some(definition), "") => {
            let options = attrs.into_iter().collect();
            Ok(Input::Definition { definition: graph_of(definition)?, options })
        }
        (Some(definition), _) if !definition.def.is_empty() => {
            Err(Status::invalid_argument("cannot solve with both Definition and Frontend specified"))
        }
        (_, name @ (DOCKERFILE | GATEWAY)) => {
            // A client that was asked for the built-in frontend by the name of an image.
            let is_replaced = attrs
                .keys()
                .any(|key| key == "context:dockerfile.v0" || key.starts_with("context:dockerfile.v0::"));
            let is_built_in = attrs.get("source").is_some_and(|source| source == DOCKERFILE) && !is_replaced;
            let frontend = match name {
                GATEWAY if is_built_in => {
                    attrs.remove("source");
                    DOCKERFILE
                }
                other => other,
            };
            let frontend = frontend.to_owned();
            Ok(Input::Frontend(FrontendRequest { frontend, options: attrs.into_iter().collect(), inputs }))
        }
        (_, other) => Err(Status::not_found(format!("invalid frontend: {other}"))),
    }
}

fn graph_of(definition: llb::Definition) -> Result<Definition, Status> {
    Definition::from_proto(definition).map_err(|error| Status::invalid_argument(chain(&error)))
}

/// What is to be left behind, whoever says it; with the time that the frontend's options say, where an exporter has none, and with whether an image
/// stays where nobody says so. Docker's own exporter (`moby`) is for images that stay.
fn exporters(
    several: Vec<Exporter>,
    kind: String,
    attrs: Attrs,
    epoch: Option<&String>,
    keeps_images: bool,
) -> Vec<(String, BTreeMap<String, String>)> {
    let several = match (several.is_empty(), kind.is_empty()) {
        (true, false) => vec![Exporter { r#type: kind, attrs }],
        _ => several,
    };
    // What is no number names what has a time (`context`, a stage): the frontend finds it out.
    let epoch = epoch.filter(|epoch| epoch.is_empty() || epoch.parse::<i64>().is_ok());
    let completed = |exporter: Exporter| {
        let mut attrs: BTreeMap<_, _> = exporter.attrs.into_iter().collect();
        if let Some(epoch) = epoch {
            attrs.entry(EPOCH.to_owned()).or_insert_with(|| epoch.clone());
        }
        if exporter.r#type == "image" && !keeps_images {
            attrs.entry("store".to_owned()).or_insert_with(|| "false".to_owned());
        }
        (exporter.r#type, attrs)
    };
    several.into_iter().map(completed).collect()
}

fn outputs(exporters: Vec<(String, BTreeMap<String, String>)>) -> Result<Vec<Output>, Status> {
    let parse = |(kind, attrs): (String, BTreeMap<String, String>)| {
        Output::parse(&kind, &attrs).map_err(|error| status_of(&error.into()))
    };
    exporters.into_iter().map(parse).collect()
}

/// Caches to use and to leave.
struct Caches {
    imports: Vec<CacheOptionsEntry>,
    exports: Vec<CacheOptionsEntry>,
}

impl Caches {
    fn of(options: CacheOptions) -> Self {
        let CacheOptions {
            export_ref_deprecated,
            import_refs_deprecated,
            export_attrs_deprecated,
            mut exports,
            mut imports,
        } = options;
        if !export_ref_deprecated.is_empty() {
            let mut attrs = export_attrs_deprecated;
            attrs.insert("ref".to_owned(), export_ref_deprecated);
            exports.push(CacheOptionsEntry { r#type: "registry".to_owned(), attrs });
        }
        imports.extend(import_refs_deprecated.into_iter().map(|reference| CacheOptionsEntry {
            r#type: "registry".to_owned(),
            attrs: [("ref".to_owned(), reference)].into(),
        }));
        Self { imports, exports }
    }

    /// Those to use. A frontend is told of them by its own options, too, and says itself which it wants.
    fn sources(&self, attrs: &Attrs) -> Result<Vec<CacheSource>, EngineError> {
        if attrs.contains_key("cache-imports") {
            return Ok(Vec::new());
        }
        let parse = |entry: &CacheOptionsEntry| CacheSource::from_attrs(&entry.r#type, &sorted(&entry.attrs));
        self.imports.iter().map(parse).collect()
    }

    /// Those to leave, each once.
    fn targets(&self) -> Result<Vec<CacheTarget>, Status> {
        let mut targets: Vec<CacheTarget> = Vec::new();
        for entry in &self.exports {
            let target = CacheTarget::from_attrs(&entry.r#type, &sorted(&entry.attrs))
                .map_err(|error| status_of(&error))?;
            let is_same = |other: &CacheTarget| match (other, &target) {
                (CacheTarget::Registry { reference: one, .. }, CacheTarget::Registry { reference, .. }) => {
                    one == reference
                }
                (one, other) => one == other,
            };
            match target {
                CacheTarget::Inline if targets.contains(&CacheTarget::Inline) => {}
                _ if targets.iter().any(is_same) => {
                    let message = format!("duplicate cache exports [{}]", entry.r#type);
                    return Err(Status::invalid_argument(message));
                }
                target => targets.push(target),
            }
        }
        Ok(targets)
    }
}

fn sorted(attrs: &Attrs) -> BTreeMap<String, String> {
    attrs.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(argument: &str, attr: Option<&str>) -> Option<String> {
        let attrs = attr.map(|value| (EPOCH.to_owned(), value.to_owned())).into_iter().collect();
        let all = exporters(Vec::new(), "image".to_owned(), attrs, Some(&argument.to_owned()), true);
        all[0].1.get(EPOCH).cloned()
    }

    #[test]
    fn exporters_take_a_time_of_the_build_arguments_but_not_what_only_the_frontend_understands() {
        assert_eq!(epoch("17", None).as_deref(), Some("17"));
        assert_eq!(epoch("", None).as_deref(), Some(""));
        assert_eq!(epoch("context", None), None);
        assert_eq!(epoch("17", Some("")).as_deref(), Some(""));
        assert_eq!(epoch("context", Some("18")).as_deref(), Some("18"));
    }

    #[test]
    fn images_stay_unless_the_daemon_is_a_worker_without_a_store_of_them() {
        let store = |kind: &str, keeps_images: bool, said: Option<&str>| {
            let attrs = said.map(|value| ("store".to_owned(), value.to_owned())).into_iter().collect();
            let all = exporters(Vec::new(), kind.to_owned(), attrs, None, keeps_images);
            all[0].1.get("store").cloned()
        };
        assert_eq!(store("image", true, None), None);
        assert_eq!(store("image", false, None).as_deref(), Some("false"));
        assert_eq!(store("image", false, Some("true")).as_deref(), Some("true"));
        for kind in ["moby", "oci", "docker", "local", "tar"] {
            assert_eq!(store(kind, false, None), None, "{kind}");
        }
    }
}
