//! Frontends that are images (`gateway.v0`, `# syntax=`, `BUILDKIT_SYNTAX`): run here, with a bridge on their standard input and output.
//!
//! ```text
//!   image ─► its files, in a draft that nobody keeps ─► process ── stdin, stdout: HTTP/2 ──► a bridge of its own ─► FrontendResult
//! ```
//!
//! Such a frontend is a stranger's program. It runs in the sandbox that steps run in, sees nothing of the machine, and has of the build what its
//! bridge gives it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lapstrake_builder_dockerfile::{
    DockerfileOptions, ImageOrigin, ImageQuery,
    options::{ContextSource, DockerfileSource, LocalContext},
    parse_bool,
};
use lapstrake_builder_executor::{
    ExitStatus, InputSource, MountKind, MountSpec, NetworkMode, OutputSink, ProcessIo, ProcessSpec,
    StubPolicy,
};
use lapstrake_builder_llb::{Defaults, Definition, GraphBuilder, ImageSource, OpOptions, ResolveMode};
use lapstrake_layerstore_oci::{ImageConfig, Platform};
use lapstrake_session::SessionId;
use serde_json::json;
use tokio::{
    io::{DuplexStream, duplex, split},
    sync::mpsc,
    task::JoinHandle,
};
use tonic::transport::Server;

use super::{Bridge, BuildParts, FrontendResult, health::health_service, service::bridge_service};
use crate::{Engine, EngineError, StepError, error::FrontendRun, frontend::GatewayFrontend};

/// What the image can do, and whether it wants a network.
const CAPS: &str = "moby.buildkit.frontend.caps";
const NO_NETWORK: &str = "moby.buildkit.frontend.network.none";
/// That it understands graphs that the client gives.
const INPUTS: &str = "moby.buildkit.frontend.inputs";
/// Where it finds the graph that it is made by.
const METADATA: &str = "/run/config/buildkit/metadata/frontend.bin";
/// Frontends of one build that run at the same time, each of which may have asked for the next: who goes round in circles comes to an end.
pub(super) const MAX_RUNNING: usize = 32;
/// Bytes on their way between frontend and bridge.
const BUFFER: usize = 64 << 10;
/// What is kept of the end of what it writes to its standard error.
const LAST_WORDS: usize = 4 << 10;

impl Engine {
    /// Runs a frontend that a Dockerfile, or who builds it, names.
    pub(crate) async fn run_frontend(
        &self,
        frontend: GatewayFrontend,
        options: &DockerfileOptions,
        inputs: &BTreeMap<String, Definition>,
        build: &Arc<BuildParts>,
    ) -> Result<FrontendResult, EngineError> {
        let mut attrs = options.attrs.clone();
        attrs.insert("source".to_owned(), frontend.image.to_string());
        attrs.insert("cmdline".to_owned(), frontend.command_line.clone());
        if let Some(id) = &options.subrequest {
            attrs.insert("requestid".to_owned(), id.clone());
        }
        // What is here already is found by the id that stands for its session.
        let locals = options.local_sessions.iter().map(|(name, id)| (name.clone(), id.clone()));
        let main = [
            match &options.context {
                ContextSource::Local(local) => Some(local),
                _ => None,
            },
            match &options.dockerfile_source {
                DockerfileSource::Local(local) => Some(local),
                _ => None,
            },
        ];
        let main = main
            .into_iter()
            .flatten()
            .filter_map(|local: &LocalContext| Some((local.name.clone(), local.session_id.clone()?)));
        for (name, id) in locals.chain(main) {
            attrs.insert(format!("local-sessionid:{name}"), id);
        }
        Box::pin(self.run_image(frontend, attrs, inputs.clone(), build)).await
    }

    /// Runs a frontend that is an image, to its end.
    pub(crate) async fn run_image(
        &self,
        frontend: GatewayFrontend,
        options: BTreeMap<String, String>,
        inputs: BTreeMap<String, Definition>,
        build: &Arc<BuildParts>,
    ) -> Result<FrontendResult, EngineError> {
        let Ok(_running) = build.frontends.try_acquire() else {
            let what = format!("more than {MAX_RUNNING} frontends at once");
            return Err(EngineError::Unsupported { what });
        };
        let BuildParts { scope, progress, cancel, .. } = &**build;
        let query = ImageQuery {
            origin: ImageOrigin::registry(ResolveMode::Default),
            reference: frontend.image.clone(),
            platform: Platform::host(),
        };
        let query = self.judge_image(&query, &scope.policy, scope).await?;
        let name = format!("resolve image config for docker-image://{}", query.reference);
        let fact = self.image(&query, name, scope, cancel).await?;
        let config = ImageConfig::from_json(&fact.config).map_err(|error| EngineError::Result {
            what: format!("the config of frontend {}", frontend.image.familiar()),
            why: error.to_string(),
        })?;
        check_caps(&config, &options, !inputs.is_empty())?;

        let reference = match fact.digest {
            Some(digest) => fact.reference.with_digest(digest),
            None => fact.reference,
        };
        let mut graph = GraphBuilder::new();
        let source =
            ImageSource { reference, resolve_mode: ResolveMode::Default, layer_limit: None, checksum: None };
        let state = graph.image(source, OpOptions::default());
        let defaults = Defaults { platform: Platform::host(), worker_filters: Vec::new() };
        let definition = graph.marshal(&state, &defaults)?.definition;
        let tree = self.solve(&definition, scope, progress).await?;
        let stores = self.stores().clone();
        let draft = StepError::blocking(move || stores.begin(&tree)).await?;

        let mut spec = ProcessSpec::new(draft.mount().clone(), arguments(&config));
        spec.cwd.clone_from(&config.config.working_dir);
        spec.env = self.environment(&config, &options, build).await;
        spec.stubs = StubPolicy::RemoveTargetsAndParents;
        let label = config.config.labels.get(NO_NETWORK);
        if label.is_some_and(|value| parse_bool(value) == Some(true)) {
            spec.network = NetworkMode::None;
        }
        spec.resources = scope.resources.clone();
        let kind = MountKind::Secret { data: definition.encode(), uid: 0, gid: 0, mode: 0o400 };
        spec.mounts.push(MountSpec { target: METADATA.to_owned(), kind });

        let (bridge, mut answered) = Bridge::new(self, build, inputs);
        let open = Open(Arc::clone(&bridge));
        let (theirs, ours) = duplex(BUFFER);
        let served = serve(bridge, ours);
        let (input, output) = split(theirs);
        let (errors, words) = last_words(frontend.image.familiar());
        let io = ProcessIo {
            stdin: InputSource::Reader(Box::new(input)),
            stdout: OutputSink::Writer(Box::new(output)),
            stderr: errors,
            ..ProcessIo::default()
        };
        let run = self.workshop().executor.run(spec, io, open.0.cancel.clone()).await;
        served.0.abort();
        let words = words.await.unwrap_or_default();
        open.0.release_containers().await?;
        let dropped = StepError::blocking(move || -> Result<(), StepError> {
            drop(draft);
            Ok(())
        });
        dropped.await?;
        // Its own failure says more than that it ended, and that more than what it gave before.
        match (answered.try_recv(), run) {
            (Ok(Err(error)), _) => Err(error),
            (_, Err(_)) if cancel.is_cancelled() => Err(EngineError::Canceled),
            (Ok(Ok(result)), Ok(ExitStatus { code: 0, .. })) => Ok(result),
            (answer, run) => {
                let failure = match run {
                    Err(source) => FrontendRun::NotRun(source),
                    Ok(ExitStatus { code: 0, .. }) if answer.is_err() => FrontendRun::NoResult,
                    Ok(ExitStatus { code, .. }) => FrontendRun::Exit { code, words },
                };
                Err(EngineError::FrontendRun {
                    image: frontend.image.familiar(),
                    failure,
                    lines: frontend.lines,
                })
            }
        }
    }

    /// What the image says, the options one by one, and what there is to build with.
    async fn environment(
        &self,
        config: &ImageConfig,
        options: &BTreeMap<String, String>,
        build: &BuildParts,
    ) -> Vec<String> {
        let mut env = config.config.env.clone();
        let numbered = options.iter().enumerate();
        env.extend(numbered.map(|(i, (key, value))| format!("BUILDKIT_FRONTEND_OPT_{i}={key}={value}")));
        let session = build.scope.session.as_ref().map(SessionId::as_str).unwrap_or_default();
        env.push(format!("BUILDKIT_SESSION_ID={session}"));
        let worker = self.worker().await;
        let platforms = self.platforms().await;
        let workers = json!([{ "id": worker.id, "labels": worker.labels, "platforms": platforms }]);
        env.push(format!("BUILDKIT_WORKERS={workers}"));
        env.push("BUILDKIT_EXPORTEDPRODUCT=buildkit".to_owned());
        env
    }
}

/// A bridge that ends, with all containers that were made on it, when this is dropped.
struct Open(Arc<Bridge>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A task that ends when this is dropped.
struct Served(JoinHandle<()>);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Serves a bridge on one connection, until that is closed.
fn serve(bridge: Arc<Bridge>, stream: DuplexStream) -> Served {
    let connection = futures::stream::once(std::future::ready(Ok::<_, std::io::Error>(stream)));
    // Without an end, so that the server does not go before its only connection does.
    let connections = futures::StreamExt::chain(connection, futures::stream::pending());
    Served(tokio::spawn(async move {
        let server = Server::builder().add_service(bridge_service(bridge)).add_service(health_service());
        if let Err(error) = server.serve_with_incoming(connections).await {
            tracing::warn!(%error, "a frontend's connection");
        }
    }))
}

/// Keeps the end of what a frontend writes to its standard error. All of it goes to the daemon's log, as with BuildKit.
fn last_words(image: String) -> (OutputSink, JoinHandle<String>) {
    let (sender, mut receiver) = mpsc::channel(16);
    let words = tokio::spawn(async move {
        let mut last: Vec<u8> = Vec::new();
        while let Some(chunk) = receiver.recv().await {
            let chunk: bytes::Bytes = chunk;
            tracing::debug!(image, "frontend: {}", String::from_utf8_lossy(&chunk).trim_end());
            last.extend_from_slice(&chunk);
            last.drain(..last.len().saturating_sub(LAST_WORDS));
        }
        String::from_utf8_lossy(&last).trim().to_owned()
    });
    (OutputSink::Channel(sender), words)
}

fn arguments(config: &ImageConfig) -> Vec<String> {
    let said = config.config.entrypoint.clone().filter(|words| !words.is_empty());
    said.unwrap_or_else(|| vec!["/run".to_owned()])
}

/// What is asked of the frontend must be what its image says that it can.
fn check_caps(
    config: &ImageConfig,
    options: &BTreeMap<String, String>,
    has_inputs: bool,
) -> Result<(), EngineError> {
    let none = String::new();
    let can = caps(config.config.labels.get(CAPS).unwrap_or(&none));
    let mut wanted = caps(options.get("frontend.caps").unwrap_or(&none));
    if has_inputs {
        wanted.insert(INPUTS);
    }
    match wanted.difference(&can).next() {
        None => Ok(()),
        Some(missing) => Err(EngineError::FrontendCap { name: (*missing).to_owned() }),
    }
}

/// Names between commas; what is behind a plus sign is advice.
fn caps(text: &str) -> BTreeSet<&str> {
    let names = text.split(',').filter_map(|cap| cap.split('+').next());
    names.filter(|name| !name.is_empty()).collect()
}
