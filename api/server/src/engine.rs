//! The engine behind the doors' contracts: orders become requests, its errors the clients' words.

use std::{
    collections::BTreeMap,
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture};
use lapstrake_api_types::{
    AuthConfig, BuildOutput, BuildQuery, BuilderVersion, CachePruneReport, CacheRecord, HostEntry,
    HostGateway, KeepFailed as QueryKeepFailed, NetworkMode, ProgressForm, PruneQuery, Timestamp, bool_value,
};
use lapstrake_builder_cache::{CacheError, EntryFilter, PruneBound, PruneRequest};
use lapstrake_builder_dockerfile::{Dialect, DockerfileOptions, Error as DockerfileError, LowerError};
use lapstrake_builder_engine::{
    BuildId, BuildRequest, CacheSource, Compatibility, ContextInput, Engine, EngineError, Entitlement,
    ErrorKind, Exported, FailedImage, Grants, Input, KeepFailed, Output, Resources, Script, SourcePolicy,
    Step, StepKind,
};
use lapstrake_builder_progress::{
    Progress,
    classic::{ClassicKind, ClassicScript, ClassicStep},
};
use lapstrake_layerstore_oci::Platform;
use lapstrake_layerstore_registry::{Credentials, Secret, StaticCredentials};
use lapstrake_layerstore_store::Collector;
use tokio::sync::oneshot;
use tokio_util::{
    io::{StreamReader, SyncIoBridge},
    sync::CancellationToken,
};

use crate::{
    ApiError, ApiErrorKind, BodyStream, BuildCache, BuildContext, BuildOrder, Builds, Built, ErrorPlace,
    ReceivedContext, body, build::attrs::frontend_attrs, error::chain,
};

/// Builds and their cache, by the engine. Cheap to clone.
#[derive(Clone)]
pub struct EngineBuilds {
    engine: Engine,
    collector: Arc<Collector>,
    gateway: Option<HostGateway>,
    keep_failed: KeepFailed,
}

impl EngineBuilds {
    /// The engine, and what frees its leftovers.
    pub fn new(engine: Engine, collector: Arc<Collector>) -> Self {
        Self { engine, collector, gateway: None, keep_failed: KeepFailed::No }
    }

    /// The same, with what `host-gateway` means in its builds, if it is not the address at which steps reach the machine.
    #[must_use]
    pub fn with_host_gateway(self, gateway: Option<HostGateway>) -> Self {
        Self { gateway, ..self }
    }

    /// The same, with whether failed steps are kept of builds that do not say it.
    #[must_use]
    pub fn with_keep_failed(self, keep_failed: KeepFailed) -> Self {
        Self { keep_failed, ..self }
    }

    /// What `host-gateway` means. Nothing is found out, or made, for builds that do not say it.
    async fn gateway(&self, query: &BuildQuery) -> HostGateway {
        match &self.gateway {
            Some(gateway) => gateway.clone(),
            None if query.extra_hosts.iter().any(HostEntry::is_host_gateway) => {
                self.engine.host_address().await.into()
            }
            None => std::net::IpAddr::from(std::net::Ipv4Addr::LOCALHOST).into(),
        }
    }
}

impl Builds for EngineBuilds {
    fn receive_context(
        &self,
        body: BodyStream,
        cancel: CancellationToken,
    ) -> BoxFuture<'_, Result<ReceivedContext, ApiError>> {
        async move {
            // A cancelled build reads no further: the thread that unpacks sees an error.
            let canceled = cancel.cancelled_owned().map(|()| Err(io::Error::other("context canceled")));
            let ended = futures::stream::once(canceled);
            let body = body::boxed(until(body, ended));
            let reader = SyncIoBridge::new(StreamReader::new(body));
            let received = self.engine.receive_context(reader).await.map_err(|error| told(&error))?;
            Ok(ReceivedContext(Box::new(received)))
        }
        .boxed()
    }

    fn receive_dockerfile(
        &self,
        name: String,
        text: Bytes,
    ) -> BoxFuture<'_, Result<ReceivedContext, ApiError>> {
        async move {
            let received =
                self.engine.receive_dockerfile(&name, text.to_vec()).await.map_err(|error| told(&error))?;
            Ok(ReceivedContext(Box::new(received)))
        }
        .boxed()
    }

    fn build(
        &self,
        order: BuildOrder,
        progress: Progress,
        cancel: CancellationToken,
    ) -> BoxFuture<'_, Result<Built, ApiError>> {
        async move {
            let form = order.query.progress_form();
            let gateway = self.gateway(&order.query).await;
            let (request, steps) = request(order, &gateway, &self.keep_failed)?;
            // The engine's steps, in the transcript's words, on their way.
            let planned = steps.map(|steps| {
                let (sender, receiver) = oneshot::channel::<Script>();
                tokio::spawn(async move {
                    if let Ok(planned) = receiver.await {
                        // The client may be gone.
                        let _ = steps.send(classic_script(planned));
                    }
                });
                sender
            });
            let exported = self
                .engine
                .build(request, progress, planned, cancel)
                .await
                .map_err(|error| failed(&error, form))?;
            let digest = exported.digest().cloned();
            Ok(Built { image: exported.image, digest, names: exported.names })
        }
        .boxed()
    }

    fn solve(
        &self,
        mut request: BuildRequest,
        progress: Progress,
        cancel: CancellationToken,
    ) -> BoxFuture<'_, Result<Exported, EngineError>> {
        // Its client has no way to say it.
        request.keep_failed = self.keep_failed.clone();
        async move { self.engine.build(request, progress, None, cancel).await }.boxed()
    }
}

/// `stream` until it ends, or `stop` says its first and last word.
fn until<S, T>(stream: S, stop: T) -> impl futures::Stream<Item = io::Result<Bytes>> + Send + 'static
where
    S: futures::Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static,
    T: futures::Stream<Item = io::Result<Bytes>> + Send + 'static,
{
    let ended = stream.map(Some).chain(futures::stream::once(std::future::ready(None)));
    futures::stream::select(ended, stop.map(Some).boxed()).scan((), |(), item| std::future::ready(item))
}

type Steps = Option<oneshot::Sender<ClassicScript>>;

/// An order as the engine takes it.
fn request(
    order: BuildOrder,
    gateway: &HostGateway,
    keep_failed: &KeepFailed,
) -> Result<(BuildRequest, Steps), ApiError> {
    let BuildOrder { id, query, session, context, auth, steps } = order;
    let url = match &context {
        BuildContext::Url(url) => Some(url.as_str()),
        _ => None,
    };
    let attrs = frontend_attrs(&query, url, gateway);
    let session_id = session.as_ref().map(|session| session.as_str().to_owned());
    let mut options = DockerfileOptions::from_frontend_attrs(&attrs, Platform::host(), session_id, &[])
        .map_err(|error| ApiError::invalid(chain(&error)))?;
    options.dialect = match query.version {
        BuilderVersion::Classic => Dialect::Classic,
        BuilderVersion::BuildKit => Dialect::BuildKit,
    };
    let context = match context {
        BuildContext::Session => ContextInput::Session,
        BuildContext::Url(_) => ContextInput::Remote,
        BuildContext::Received(ReceivedContext(received)) => match received.downcast() {
            Ok(received) => ContextInput::Received(*received),
            Err(_) => return Err(ApiError::new(ApiErrorKind::Internal, "a context of another engine")),
        },
    };
    let inline_cache =
        query.build_args.get("BUILDKIT_INLINE_CACHE").and_then(Option::as_deref).is_some_and(bool_value);
    let mut grants = Grants::default();
    if query.network == NetworkMode::Host {
        // As dockerd: who asks for it grants it, and the API has no other way to grant anything.
        grants.add(Entitlement::NetworkHost);
    }
    let request = BuildRequest {
        id: BuildId(id),
        input: Input::Dockerfile { options: Box::new(options), context, directories: BTreeMap::new() },
        outputs: outputs(&query)?,
        session,
        cache_from: cache_from(&query.cache_from)?,
        // The API has no way to say it.
        cache_to: Vec::new(),
        inline_cache,
        keep_failed: query.keep_failed.map_or_else(|| keep_failed.clone(), kept),
        credentials: Arc::new(credentials(auth)),
        resources: Resources {
            memory: query.memory,
            memory_swap: query.memory_swap,
            cpu_shares: query.cpu_shares,
            cpu_period: query.cpu_period,
            cpu_quota: query.cpu_quota,
            cpuset_cpus: query.cpuset_cpus,
            cpuset_mems: query.cpuset_mems,
            pids: query.pids,
            shm_size: query.shm_size,
        },
        // The API has no way to say it.
        source_policy: SourcePolicy::default(),
        compatibility: Compatibility::default(),
        is_recorded: true,
        asks_session: false,
        grants,
    };
    Ok((request, steps))
}

fn kept(asked: QueryKeepFailed) -> KeepFailed {
    match asked {
        QueryKeepFailed::No => KeepFailed::No,
        QueryKeepFailed::Yes => KeepFailed::Yes,
        QueryKeepFailed::As(name) => KeepFailed::As(name),
    }
}

/// What the build leaves behind: the image store's image, unless the client says otherwise.
fn outputs(query: &BuildQuery) -> Result<Vec<Output>, ApiError> {
    if query.outputs.is_empty() {
        return Ok(vec![Output::image(query.tags.clone())]);
    }
    let parse = |BuildOutput { kind, attrs }: &BuildOutput| {
        // As Moby: its image store is what there is.
        let kind = if kind == "image" { "moby" } else { kind.as_str() };
        let mut output = Output::parse(kind, attrs)
            .map_err(|error| ApiError::invalid(format!("output {kind}: {}", chain(&error))))?;
        output.name_first(&query.tags);
        Ok(output)
    };
    query.outputs.iter().map(parse).collect()
}

/// Caches that may be used: names, or BuildKit's `type=registry,ref=…`. Directories are the daemon's own, and not for its clients to read.
fn cache_from(texts: &[String]) -> Result<Vec<CacheSource>, ApiError> {
    let parse = |text: &String| {
        let source = CacheSource::parse(text)
            .map_err(|error| ApiError::invalid(format!("cache-from: {}", chain(&error))))?;
        match source {
            CacheSource::Local { .. } | CacheSource::Client { .. } => {
                Err(ApiError::not_implemented(format!(
                    "cache-from {text:?}: type=local is not supported through the API, as it would read the daemon's directories"
                )))
            }
            CacheSource::Registry { .. } => Ok(source),
        }
    };
    texts.iter().filter(|text| !text.is_empty()).map(parse).collect()
}

/// Credentials by registry; an entry without one is Docker Hub's.
fn credentials(auth: Vec<(String, AuthConfig)>) -> StaticCredentials {
    auth.into_iter().fold(StaticCredentials::new(), |all, (host, auth)| {
        let host = if host.is_empty() { "docker.io".to_owned() } else { host };
        let credentials = if !auth.registry_token.is_empty() {
            Some(Credentials::RegistryToken(Secret::new(auth.registry_token)))
        } else if !auth.identity_token.is_empty() {
            Some(Credentials::IdentityToken(Secret::new(auth.identity_token)))
        } else {
            auth.basic().and_then(|(user, password)| Credentials::from_pair(&user, &password))
        };
        match credentials {
            Some(credentials) => all.with(&host, credentials),
            None => all,
        }
    })
}

/// The engine's steps, in the transcript's words.
fn classic_script(script: Script) -> ClassicScript {
    let steps = script.steps.into_iter().zip(script.known).map(|(step, known)| classic(step, known));
    let Script { total, unused_args, warnings, .. } = script;
    ClassicScript { steps: steps.collect(), total, unused_args, warnings }
}

fn classic(step: Step, known: bool) -> ClassicStep {
    ClassicStep {
        text: step.text,
        kind: match step.kind {
            StepKind::GlobalArg => ClassicKind::GlobalArg,
            StepKind::From { image_id, scratch, triggers } => {
                ClassicKind::From { image: image_id, scratch, triggers }
            }
            StepKind::Run { .. } => ClassicKind::Run,
            StepKind::Copy => ClassicKind::Files,
            StepKind::Other => ClassicKind::Other,
            StepKind::Failed => ClassicKind::Failed,
        },
        vertex: step.vertex,
        state: step.state,
        trigger: step.trigger,
        known,
    }
}

/// A build's failure in the words of the builder that the client believes it talks to.
fn failed(error: &EngineError, form: ProgressForm) -> ApiError {
    let place =
        error.fault().map(|fault| Box::new(ErrorPlace { name: fault.place(), excerpt: fault.excerpt() }));
    let (cause, image) = error.keeping();
    let mut told = ApiError { place, ..in_words_of(form, cause) };
    if let Some(image) = image {
        told.message = format!("{}\n{image}{}", told.message, advice(image));
    }
    told
}

/// How to look into a failed step: with an engine that runs containers.
fn advice(image: &FailedImage) -> String {
    let FailedImage::Kept(name) = image else { return String::new() };
    let (name, docker) = (name.familiar(), "docker -H unix:///var/run/docker.sock");
    format!("; to look into it: docker save {name} | {docker} load && {docker} run --rm -it {name} sh")
}

fn in_words_of(form: ProgressForm, error: &EngineError) -> ApiError {
    if form == ProgressForm::Classic {
        if let Some((args, code, oom)) = error.failed_process() {
            let oom = oom.map(|oom| format!(" ({oom})")).unwrap_or_default();
            let message = format!("The command '{}' returned a non-zero code: {code}{oom}", args.join(" "));
            return ApiError { exit_code: code.into(), ..ApiError::new(ApiErrorKind::Internal, message) };
        }
        if let Some(why) = error.not_run() {
            return ApiError::new(ApiErrorKind::Internal, why);
        }
        if let EngineError::Dockerfile(DockerfileError::Lower {
            problem: LowerError::UnknownTarget { name, suggestion },
            ..
        }) = error.inner()
        {
            let meant = suggestion.as_ref().map(|word| format!(" (did you mean {word}?)"));
            let meant = meant.unwrap_or_default();
            return ApiError::invalid(format!("failed to reach build target {name} in Dockerfile{meant}"));
        }
        if let EngineError::NoDockerfile { name } = error.inner() {
            let leaves = name.split('/').next() == Some("..");
            let message = match leaves {
                true => format!("forbidden path outside the build context: {name} ()"),
                false => format!("Cannot locate specified Dockerfile: {name}"),
            };
            return ApiError::new(ApiErrorKind::Internal, message);
        }
    }
    told(error)
}

fn told(error: &EngineError) -> ApiError {
    let kind = match (error, error.kind()) {
        (EngineError::Duplicate { .. }, _) => ApiErrorKind::Conflict,
        (_, ErrorKind::NotFound) => ApiErrorKind::NotFound,
        (_, ErrorKind::Unauthorized) => ApiErrorKind::Unauthorized,
        (_, ErrorKind::Denied) => ApiErrorKind::Forbidden,
        (_, ErrorKind::Invalid) => ApiErrorKind::Invalid,
        (_, ErrorKind::Unsupported) => ApiErrorKind::NotImplemented,
        // Moby has no class for what others do wrong in a build.
        (_, ErrorKind::Corrupt | ErrorKind::Unavailable | ErrorKind::Canceled | ErrorKind::Internal) => {
            ApiErrorKind::Internal
        }
    };
    ApiError::new(kind, chain(error))
}

impl BuildCache for EngineBuilds {
    fn records(&self) -> Result<Vec<CacheRecord>, ApiError> {
        let entries = self.engine.cache().usage().map_err(|error| cache_error(&error))?;
        let record = |entry: lapstrake_builder_cache::CacheEntry| CacheRecord {
            id: entry.id,
            parents: entry.parents,
            kind: entry.kind.as_str().to_owned(),
            description: entry.description,
            in_use: entry.in_use,
            shared: entry.shared,
            size: i64::try_from(entry.size).unwrap_or(i64::MAX),
            created: Timestamp::from(entry.created),
            last_used: entry.last_used.map(Timestamp::from),
            usage_count: i64::try_from(entry.uses).unwrap_or(i64::MAX),
        };
        Ok(entries.into_iter().map(record).collect())
    }

    fn prune(&self, query: &PruneQuery) -> Result<CachePruneReport, ApiError> {
        let request = PruneRequest {
            all: query.all,
            filter: EntryFilter::of_fields(query.fields()).map_err(|error| cache_error(&error))?,
            unused_for: query.unused_since.map(|since| {
                SystemTime::now().duration_since(SystemTime::from(since.0)).unwrap_or(Duration::ZERO)
            }),
            bound: PruneBound {
                reserved: query.reserved_space,
                max_used: query.max_used_space,
                min_free: query.min_free_space,
            },
        };
        // What of pulled images is at hand is no entry of the cache, but goes with all of it.
        if request.all {
            self.engine.forget_images();
        }
        let cache = self.engine.cache();
        let (pruned, freed) =
            self.collector.collect_after(|| cache.prune(&request)).map_err(|error| cache_error(&error))?;
        let ids: Vec<String> = pruned.entries.into_iter().map(|entry| entry.id).collect();
        Ok(CachePruneReport {
            caches_deleted: (!ids.is_empty()).then_some(ids),
            space_reclaimed: freed.bytes,
        })
    }
}

fn cache_error(error: &CacheError) -> ApiError {
    let kind = match error {
        CacheError::Filter { .. } => ApiErrorKind::Invalid,
        _ => ApiErrorKind::Internal,
    };
    ApiError::new(kind, chain(error))
}

#[cfg(test)]
mod tests {
    use lapstrake_api_types::{ApiVersion, Form};
    use lapstrake_builder_engine::Destination;
    use lapstrake_layerstore_oci::Reference;
    use lapstrake_layerstore_registry::CredentialSource;

    use super::*;

    fn output_of(query: &str) -> Result<Output, String> {
        let query = BuildQuery::parse(&Form::parse(query).unwrap(), ApiVersion::MAX).unwrap();
        outputs(&query).map(|mut outputs| outputs.remove(0)).map_err(|error| error.message)
    }

    #[test]
    fn outputs_are_honoured_or_refused_by_name() {
        let names =
            |names: &[&str]| names.iter().map(|name| Reference::parse(name).unwrap()).collect::<Vec<_>>();
        assert_eq!(output_of("t=a:1"), Ok(Output::image(names(&["a:1"]))));
        let of = |json: &str| output_of(&format!("version=2&t=a:1&outputs=[{json}]"));
        assert_eq!(of(r#"{"Type":"local","Attrs":{"dest":"x"}}"#), Ok(Output::local(Destination::Session)));
        assert_eq!(
            of(r#"{"Type":"local","Attrs":{"platform-split":"false"}}"#),
            Output::parse("local", &[("platform-split".to_owned(), "false".to_owned())].into())
                .map_err(|_| String::new())
        );
        assert_eq!(
            of(r#"{"Type":"local","Attrs":{"platform-split":"maybe"}}"#),
            Err("output local: non-bool value for platform-split: maybe".to_owned())
        );
        assert_eq!(of(r#"{"Type":"tar"}"#), Ok(Output::tar(Destination::Session)));
        assert_eq!(of(r#"{"Type":"cacheonly","Attrs":null}"#), Ok(Output::CacheOnly));
        assert_eq!(
            of(r#"{"Type":"image","Attrs":{"name":"b:2,a:1"}}"#),
            Ok(Output::image(names(&["a:1", "b:2"])))
        );
        assert_eq!(
            of(r#"{"Type":"docker","Attrs":{}}"#),
            Ok(Output::docker(names(&["a:1"]), Destination::Session))
        );
        let pushed = of(r#"{"Type":"image","Attrs":{"push":"true"}}"#);
        assert!(matches!(pushed, Ok(Output::Image(image)) if image.push.is_some()));
        assert_eq!(
            of(r#"{"Type":"nope"}"#),
            Err("output nope: exporter \"nope\" could not be found".to_owned())
        );
    }

    #[test]
    fn cache_comes_from_images() {
        let from = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
            cache_from(&texts).map(|sources| {
                sources
                    .into_iter()
                    .map(|source| match source {
                        CacheSource::Registry { reference, .. } => reference.familiar(),
                        CacheSource::Local { .. } | CacheSource::Client { .. } => {
                            unreachable!("they are refused")
                        }
                    })
                    .collect::<Vec<_>>()
            })
        };
        assert_eq!(from(&["a", "", "type=registry,ref=r:5000/b:1"]).unwrap(), ["a:latest", "r:5000/b:1"]);
        assert!(from(&["type=gha"]).unwrap_err().message.contains("type gha"));
        assert!(from(&["type=local,src=/etc"]).unwrap_err().message.contains("type=local"));
        assert!(from(&["A"]).is_err());
    }

    #[tokio::test]
    async fn credentials_are_those_of_their_registry() {
        let auth = |user: &str| AuthConfig {
            username: user.to_owned(),
            password: "p".to_owned(),
            ..AuthConfig::default()
        };
        let all = credentials(vec![("r:5000".to_owned(), auth("one")), (String::new(), auth("two"))]);
        let user = async |host: &str| match all.credentials(host).await.unwrap() {
            Some(Credentials::Password { username, .. }) => Some(username),
            _ => None,
        };
        assert_eq!(user("r:5000").await.as_deref(), Some("one"));
        assert_eq!(user("registry-1.docker.io").await.as_deref(), Some("two"));
        assert_eq!(user("other").await, None);
    }

    #[tokio::test]
    async fn a_body_ends_with_itself_or_with_the_build() {
        let chunks = || {
            body::boxed(futures::stream::iter([Ok(Bytes::from_static(b"a")), Ok(Bytes::from_static(b"b"))]))
        };
        let cancel = CancellationToken::new();
        let stop = |cancel: &CancellationToken| {
            let canceled = cancel.clone().cancelled_owned();
            futures::stream::once(canceled.map(|()| Err(io::Error::other("context canceled"))))
        };
        let whole: Vec<_> = until(chunks(), stop(&cancel)).collect().await;
        assert_eq!(whole.len(), 2);
        let endless = body::boxed(chunks().chain(futures::stream::pending()));
        let mut cut = std::pin::pin!(until(endless, stop(&cancel)));
        assert!(cut.next().await.unwrap().is_ok() && cut.next().await.unwrap().is_ok());
        cancel.cancel();
        assert!(cut.next().await.unwrap().is_err());
    }
}
