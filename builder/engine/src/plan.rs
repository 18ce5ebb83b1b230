//! From a request to a plan: finds out what the Dockerfile frontend needs to know, until it needs nothing more.

use std::{
    collections::{BTreeMap, HashMap},
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::future::BoxFuture;
use lapstrake_builder_dockerfile::{
    Answer, Dialect, DockerfileOptions, Error as DockerfileError, Facts, ImageFact, ImageQuery, LowerError,
    Need, Plan, dockerfile_definition, dockerfile_name, dockerignore_definition,
    facts::IgnoreFile,
    ignore::{PatternMatcher, read_ignore_file},
    lint::Warning,
    options::{ContextSource, DockerfileSource, LocalContext},
    plan_and_warn,
};
use lapstrake_builder_llb::{Definition, Graph, Limits, pb};
use lapstrake_builder_progress::{Emit, Event, Progress};
use lapstrake_builder_source::{LocalProvider, SourceContext, SourceError};
use lapstrake_layerstore_oci::{ImageConfig, Platform};
use lapstrake_layerstore_store::{SnapshotKey, StoreError, Tree};
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use tokio_util::sync::CancellationToken;

use crate::{
    ContextInput, Engine, EngineError, FrontendResult, StepError,
    bridge::BuildParts,
    classic::{unreadable, why_missing},
    engine::internal_vertex,
    epoch::epoch_of,
    fault::{in_dockerfile, of_frontend},
    frontend::Frontend,
    scope::BuildScope,
};

/// A Dockerfile or ignore file larger than this is a mistake or an attack: 16 MiB.
const FILE_LIMIT: u64 = 16 << 20;
/// How many warnings are told one by one; who has more will not read them.
const WARNINGS: usize = 1000;
/// Each warning has the whole Dockerfile with it, as BuildKit's have; no further ones when they come to this.
const WARNED_BYTES: usize = 8 << 20;
/// The context's ignore file, and how a Dockerfile's own ends.
const DOCKERIGNORE: &str = ".dockerignore";
/// How often the frontend may ask again. Each round answers all it asked, so real builds need a handful.
const ROUNDS: usize = 64;

/// Puts the context's place into the options, and what stands there into the scope.
pub(crate) fn place_context(
    options: &mut DockerfileOptions,
    context: ContextInput,
    directories: BTreeMap<String, PathBuf>,
    scope: &mut BuildScope,
) -> Result<(), EngineError> {
    for (name, path) in directories {
        let id = SnapshotKey::random().to_string();
        scope.locals.insert(id.clone(), LocalProvider::Directory(path));
        options.local_sessions.insert(name, id);
    }
    let mut provide = |name: &str, provider: LocalProvider| {
        let id = SnapshotKey::random().to_string();
        scope.locals.insert(id.clone(), provider);
        // In the place of a session's id, which would otherwise win over it.
        LocalContext { session_id: Some(id), ..LocalContext::named(name) }
    };
    match context {
        ContextInput::Session => {
            let session = scope.session.as_ref().ok_or_else(|| EngineError::Unsupported {
                what: "a context from a session, without a session".to_owned(),
            })?;
            options.session_id.get_or_insert_with(|| session.to_string());
        }
        ContextInput::Received(received) => {
            let bare_modes = received.bare_modes();
            let local = provide("context", LocalProvider::Tree(received.tree().clone()));
            options.dockerfile_source =
                DockerfileSource::Local(LocalContext { name: "dockerfile".to_owned(), ..local.clone() });
            options.context = ContextSource::Local(local);
            scope.received = true;
            scope.bare_modes = bare_modes;
        }
        ContextInput::Directory { context, dockerfile } => {
            options.context = ContextSource::Local(provide("context", LocalProvider::Directory(context)));
            options.dockerfile_source =
                DockerfileSource::Local(provide("dockerfile", LocalProvider::Directory(dockerfile)));
        }
        ContextInput::Remote => {}
    }
    Ok(())
}

impl Engine {
    /// Plans a Dockerfile build. Pure planning is the frontend's; this answers what it asks.
    pub(crate) async fn plan(
        &self,
        options: &DockerfileOptions,
        inputs: &BTreeMap<String, Definition>,
        build: &Arc<BuildParts>,
    ) -> Result<Answered<(Plan, Facts)>, EngineError> {
        if let Some(id) = &options.subrequest {
            return Err(EngineError::Unsupported { what: format!("the request {id} as a build") });
        }
        let options = &*build.scope.policy.contexts(options);
        let loaded = match self.load(options, inputs, build).await? {
            Answered::BuiltIn(loaded) => loaded,
            Answered::Elsewhere(result) => return Ok(Answered::Elsewhere(result)),
        };
        let planned = self.rounds(options, loaded, build, |facts, warnings| {
            let planning = plan_and_warn(options, facts);
            *warnings = planning.warnings;
            let answer = planning.result.map_err(|error| match options.dialect {
                Dialect::Classic => unreadable(error, &options.dockerfile_name),
                Dialect::BuildKit => error,
            })?;
            Ok(match answer {
                Answer::Need(needs) => Planned::Need(needs),
                Answer::Plan(plan) => Planned::Done(*plan),
            })
        });
        Ok(Answered::BuiltIn(planned.await?))
    }

    /// Reads the Dockerfile, for the built-in frontend, if that is whom it is for; otherwise asks whom it is for.
    pub(crate) async fn load(
        &self,
        options: &DockerfileOptions,
        inputs: &BTreeMap<String, Definition>,
        build: &Arc<BuildParts>,
    ) -> Result<Answered<Loaded>, EngineError> {
        let BuildParts { scope, progress, cancel, .. } = &**build;
        let mut facts = Facts { inputs: inputs.clone(), ..Facts::default() };
        if let ContextSource::Http { url } = &options.context {
            facts.http_context_is_archive = Some(self.is_archive(url, scope, progress, cancel).await?);
        }
        let definition = dockerfile_definition(options, &facts)?;
        self.read_dockerfile(options, &definition, &mut facts, scope, progress).await?;
        self.identify(scope, Some(&facts.dockerfile)).await;
        let located = |error| in_dockerfile(error, options, &facts);
        match Frontend::choose(options, &facts.dockerfile, self.frontends()).map_err(located)? {
            Frontend::Gateway(image) => {
                let asked = image.lines;
                let run: BoxFuture<'_, _> = Box::pin(self.run_frontend(image, options, inputs, build));
                let result = run.await.map_err(|error| of_frontend(error, asked, options, &facts))?;
                return Ok(Answered::Elsewhere(result));
            }
            Frontend::BuiltIn { newer: None } => {}
            Frontend::BuiltIn { newer: Some(newer) } => {
                let lines = newer.lines.iter().flat_map(|lines| lines.lines()).collect();
                let told = Told { short: newer.warning(), detail: Vec::new(), url: String::new(), lines };
                tell(vec![told], options, &definition, &facts, progress)?;
            }
        }
        let of = |name: &String| Told {
            short: format!("unknown frontend option {name:?} is ignored"),
            detail: Vec::new(),
            url: String::new(),
            lines: Vec::new(),
        };
        tell(options.unknown.iter().map(of).collect(), options, &definition, &facts, progress)?;
        Ok(Answered::BuiltIn(Loaded { facts, definition }))
    }

    /// Asks the frontend, and finds out what it needs to know, until it has an answer. Tells what it doubts, also where it fails.
    pub(crate) async fn rounds<T>(
        &self,
        options: &DockerfileOptions,
        loaded: Loaded,
        build: &Arc<BuildParts>,
        ask: impl Fn(&Facts, &mut Vec<Warning>) -> Result<Planned<T>, DockerfileError>,
    ) -> Result<(T, Facts), EngineError> {
        let BuildParts { scope, progress, cancel, .. } = &**build;
        let Loaded { mut facts, definition } = loaded;
        let missing = Missing::default();
        for _ in 0..ROUNDS {
            let mut warnings = Vec::new();
            let answer = ask(&facts, &mut warnings);
            let needs = match answer {
                Ok(Planned::Need(needs)) => needs,
                Ok(Planned::Done(done)) => {
                    warn(&warnings, options, &definition, &facts, progress)?;
                    return Ok((done, facts));
                }
                Err(problem) => {
                    warn(&warnings, options, &definition, &facts, progress)?;
                    return Err(in_dockerfile(missing.explain(problem), options, &facts));
                }
            };
            // Several images at once: each is a round trip to a registry.
            let answers = needs
                .into_iter()
                .map(|need| self.find_out(need, options.dialect, &missing, scope, progress, cancel));
            for learn in futures::future::try_join_all(answers).await? {
                learn(&mut facts);
            }
        }
        Err(EngineError::Unsupported {
            what: format!("a Dockerfile that needs more than {ROUNDS} rounds of facts"),
        })
    }

    /// The image's platform, if it is another one than was asked for and can be run here nonetheless.
    async fn other_platform(&self, fact: &ImageFact, query: &ImageQuery) -> Option<Platform> {
        let found = ImageConfig::from_json(&fact.config).ok()?.platform();
        let is_other = found.os == "linux" && found.architecture != query.platform.architecture;
        let runs = is_other && self.workshop().architectures.runs(&found.architecture).await;
        runs.then(|| Platform::new(found.os, found.architecture).normalized())
    }

    async fn find_out(
        &self,
        need: Need,
        dialect: Dialect,
        missing: &Missing,
        scope: &Arc<BuildScope>,
        progress: &Progress,
        cancel: &CancellationToken,
    ) -> Result<Box<dyn FnOnce(&mut Facts) + Send>, EngineError> {
        match need {
            Need::ImageConfig { query, progress_name, .. } => {
                let vertex = internal_vertex(progress, progress_name);
                let cx = self.source_context(scope, vertex.clone(), cancel);
                let find = async {
                    let governed = Box::pin(self.judge_image(&query, &scope.policy, scope)).await?;
                    let fact = self.workshop().sources.resolve_image(&cx, &governed).await?;
                    scope.trail.note_query(&governed, &fact);
                    Ok(fact)
                };
                let found = vertex.track(find).await;
                let fact: ImageFact = match found {
                    // Steps before it run all the same.
                    Err(error) if dialect == Dialect::Classic && !cancel.is_cancelled() => {
                        let why = why_missing(&query.reference, &error);
                        return Ok(Box::new(move |facts| {
                            facts.missing.insert(query, why);
                        }));
                    }
                    // Where it is named, and what may have been meant, the frontend says.
                    Err(error) if !cancel.is_cancelled() => {
                        let why = missing.note(&query, error);
                        return Ok(Box::new(move |facts| {
                            facts.missing.insert(query, why);
                        }));
                    }
                    found => found?,
                };
                if let Some(known) = &scope.known {
                    let id = fact.image_id.as_ref().map(ToString::to_string);
                    let digest = id.or_else(|| fact.digest.as_ref().map(ToString::to_string));
                    digest.into_iter().for_each(|digest| known.learn_image(&query.reference, digest));
                }
                let other = self.other_platform(&fact, &query).await;
                Ok(Box::new(move |facts| {
                    facts.platforms.extend(other);
                    facts.images.insert(query, fact);
                }))
            }
            Need::ContextIgnore { name, definition } => {
                let tree = self.solve(&definition.definition(), scope, progress).await?;
                let data = self.read_file(tree, ".dockerignore").await?;
                Ok(Box::new(move |facts| {
                    facts.context_ignores.insert(name, data.map(Into::into));
                }))
            }
            Need::Epoch { value, definition, source } => {
                let tree = self.solve(&definition.definition(), scope, progress).await?;
                let (stores, cancel) = (self.stores().clone(), cancel.clone());
                let epoch = StepError::blocking(move || epoch_of(&stores, &tree, &source, &cancel)).await?;
                Ok(Box::new(move |facts| _ = facts.epochs.insert(value, epoch)))
            }
            Need::HttpContextKind { url } => {
                let archive = self.is_archive(&url, scope, progress, cancel).await?;
                Ok(Box::new(move |facts| facts.http_context_is_archive = Some(archive)))
            }
            other => Err(EngineError::Unsupported { what: format!("{other:?}") }),
        }
    }

    async fn is_archive(
        &self,
        url: &str,
        scope: &Arc<BuildScope>,
        progress: &Progress,
        cancel: &CancellationToken,
    ) -> Result<bool, EngineError> {
        let vertex = internal_vertex(progress, format!("[internal] load remote build context {url}"));
        let cx = self.source_context(scope, vertex.clone(), cancel);
        let find = async {
            let governed = Box::pin(self.judge_url(url, scope)).await?;
            Ok(self.workshop().sources.is_archive(&cx, &governed).await?)
        };
        vertex.track(find).await
    }

    async fn read_dockerfile(
        &self,
        options: &DockerfileOptions,
        definition: &Definition,
        facts: &mut Facts,
        scope: &Arc<BuildScope>,
        progress: &Progress,
    ) -> Result<(), EngineError> {
        let tree = self.solve(definition, scope, progress).await?;
        let name = dockerfile_name(options, facts).to_owned();
        let mut found = self.read_file(tree.clone(), &name).await?;
        // As docker build has it: the name's case may be forgotten.
        if found.is_none()
            && let Some(folder) = name.strip_suffix("Dockerfile")
            && (folder.is_empty() || folder.ends_with('/'))
        {
            found = self.read_file(tree.clone(), &format!("{folder}dockerfile")).await?;
        }
        facts.dockerfile = found.ok_or_else(|| EngineError::NoDockerfile { name: name.clone() })?.into();

        facts.dockerignore = match (scope.received, options.dialect) {
            (false, _) => self.ignore_file(options, tree, &name, scope, progress).await?,
            // Whoever sent an archive left out of it what they wanted; as with dockerd, it is taken as it is.
            (true, Dialect::BuildKit) => None,
            (true, Dialect::Classic) => self.own_files(options, &name, scope, progress).await?,
        };
        Ok(())
    }

    /// The Dockerfile's own ignore file, or the context's.
    async fn ignore_file(
        &self,
        options: &DockerfileOptions,
        dockerfile: Tree,
        name: &str,
        scope: &Arc<BuildScope>,
        progress: &Progress,
    ) -> Result<Option<IgnoreFile>, EngineError> {
        let own = format!("{name}{DOCKERIGNORE}");
        if let Some(data) = self.read_file(dockerfile, &own).await? {
            return Ok(Some(IgnoreFile { name: own, data: data.into() }));
        }
        self.common_ignore_file(options, scope, progress).await
    }

    /// The context's ignore file.
    async fn common_ignore_file(
        &self,
        options: &DockerfileOptions,
        scope: &Arc<BuildScope>,
        progress: &Progress,
    ) -> Result<Option<IgnoreFile>, EngineError> {
        let Some(definition) = dockerignore_definition(options)? else { return Ok(None) };
        let context = match self.solve(&definition, scope, progress).await {
            Ok(context) => context,
            // Nothing may be wanted of it: a step that copies from it fails for the same reason.
            Err(error) if is_not_offered(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let data = self.read_file(context, DOCKERIGNORE).await?;
        Ok(data.map(|data| IgnoreFile { name: DOCKERIGNORE.to_owned(), data: data.into() }))
    }

    /// What Moby's classic builder leaves out of an archive: clients send the Dockerfile and the ignore file even if the latter says not to,
    /// as the builder needs them.
    async fn own_files(
        &self,
        options: &DockerfileOptions,
        name: &str,
        scope: &Arc<BuildScope>,
        progress: &Progress,
    ) -> Result<Option<IgnoreFile>, EngineError> {
        let Some(file) = self.common_ignore_file(options, scope, progress).await? else { return Ok(None) };
        let ignored = ignored_of(&file, &[DOCKERIGNORE, name])?;
        let escape = |path: &str| -> String {
            path.chars()
                .flat_map(|c| (!c.is_alphanumeric() && c != '/').then_some('\\').into_iter().chain([c]))
                .collect()
        };
        let data: String = ignored.iter().map(|path| format!("/{}\n", escape(path))).collect();
        Ok((!data.is_empty()).then(|| IgnoreFile { name: file.name, data: data.into_bytes().into() }))
    }

    /// A file of a tree, symlinks followed inside the tree; `None` when it is not there.
    pub(crate) async fn read_file(&self, tree: Tree, path: &str) -> Result<Option<Vec<u8>>, EngineError> {
        let stores = self.stores().clone();
        let path = path.to_owned();
        let read = move || -> Result<Option<Vec<u8>>, StepError> {
            let Some(open) = stores.open(&tree)? else { return Ok(None) };
            let failed = |errno: rustix::io::Errno| StoreError::io("read", Path::new(&path))(errno.into());
            let file = match rustix::fs::openat2(
                open.root(),
                path.as_str(),
                OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK,
                Mode::empty(),
                ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
            ) {
                Ok(file) => std::fs::File::from(file),
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
                Err(errno) => return Err(failed(errno).into()),
            };
            let about = file.metadata().map_err(StoreError::io("read", Path::new(&path)))?;
            if !about.is_file() {
                return Err(StepError::Invalid { what: format!("{path} is not a file") });
            }
            if about.len() > FILE_LIMIT {
                return Err(StepError::Invalid {
                    what: format!("{path} is {} bytes long; the limit is {FILE_LIMIT}", about.len()),
                });
            }
            let mut data = Vec::new();
            file.take(FILE_LIMIT).read_to_end(&mut data).map_err(StoreError::io("read", Path::new(&path)))?;
            Ok(Some(data))
        };
        Ok(StepError::blocking(read).await?)
    }

    pub(crate) fn source_context(
        &self,
        scope: &BuildScope,
        vertex: lapstrake_builder_progress::VertexHandle,
        cancel: &CancellationToken,
    ) -> SourceContext {
        SourceContext {
            builds: vec![scope.mark.clone()],
            sessions: scope.session.iter().cloned().collect(),
            credentials: vec![Arc::clone(&scope.credentials)],
            locals: HashMap::clone(&scope.locals),
            vertex,
            cancel: cancel.clone(),
        }
    }
}

/// Who answered.
pub(crate) enum Answered<T> {
    /// The built-in frontend: this.
    BuiltIn(T),
    /// An image.
    Elsewhere(FrontendResult),
}

/// A Dockerfile, and the graph that it was read by.
pub(crate) struct Loaded {
    facts: Facts,
    definition: Definition,
}

/// Whether the client does not offer a directory. All else that keeps an ignore file from being read could have files sent that it names.
fn is_not_offered(error: &EngineError) -> bool {
    let causes =
        std::iter::successors(Some(error as &(dyn std::error::Error + 'static)), |error| error.source());
    causes.filter_map(|cause| cause.downcast_ref::<lapstrake_session::Error>()).any(|error| match error {
        lapstrake_session::Error::Unsupported { .. } => true,
        lapstrake_session::Error::Call { status, .. } => status.code() == tonic::Code::NotFound,
        _ => false,
    })
}

/// Those of the paths that an ignore file names.
fn ignored_of<'a>(file: &IgnoreFile, paths: &[&'a str]) -> Result<Vec<&'a str>, EngineError> {
    let malformed = |problem| {
        let file = file.name.clone();
        DockerfileError::Lower { problem: LowerError::Ignore { file, problem }, lines: Vec::new() }
    };
    let patterns = read_ignore_file(&file.data).map_err(malformed)?;
    let matcher = PatternMatcher::new(&patterns).map_err(malformed)?;
    Ok(paths.iter().copied().filter(|path| matcher.matches(path)).collect())
}

/// What the frontend has to say.
pub(crate) enum Planned<T> {
    Need(Vec<Need>),
    Done(T),
}

/// Why images cannot be had, by the words that the frontend is told.
#[derive(Default)]
struct Missing(Mutex<HashMap<String, SourceError>>);

impl Missing {
    fn note(&self, query: &ImageQuery, error: SourceError) -> String {
        let why = format!("failed to resolve source metadata for {}: {error}", query.reference);
        self.0.lock().insert(why.clone(), error);
        why
    }

    /// The error of a frontend that could not go on.
    fn explain(&self, problem: DockerfileError) -> EngineError {
        let why = match &problem {
            DockerfileError::Lower {
                problem: LowerError::NoBase { why, .. } | LowerError::NoImage { why },
                ..
            } => Some(why),
            _ => None,
        };
        match why.and_then(|why| self.0.lock().remove(why)) {
            Some(source) => EngineError::NoImage { problem: Box::new(problem), source: Box::new(source) },
            None => EngineError::Dockerfile(problem),
        }
    }
}

/// Tells the client what the frontend doubts, at the vertex that read the Dockerfile, as BuildKit does.
fn warn(
    warnings: &[Warning],
    options: &DockerfileOptions,
    definition: &Definition,
    facts: &Facts,
    progress: &Progress,
) -> Result<(), EngineError> {
    let told = warnings.iter().map(|warning| Told {
        short: warning.short(),
        detail: vec![warning.rule.description().as_bytes().to_vec()],
        url: warning.rule.url().to_owned(),
        lines: warning.lines.lines().collect(),
    });
    tell(told.collect(), options, definition, facts, progress)
}

/// A doubt, in words.
struct Told {
    short: String,
    detail: Vec<Vec<u8>>,
    url: String,
    lines: Vec<u32>,
}

fn tell(
    told: Vec<Told>,
    options: &DockerfileOptions,
    definition: &Definition,
    facts: &Facts,
    progress: &Progress,
) -> Result<(), EngineError> {
    if told.is_empty() {
        return Ok(());
    }
    let graph = Graph::parse(definition, Limits::default())?;
    let vertex = graph.vertex(graph.target().vertex).digest.clone();
    let (mut room, count) = (WARNED_BYTES, told.len());
    for (i, Told { short, detail, url, lines }) in told.into_iter().enumerate() {
        if i == WARNINGS {
            let short = format!("and {} more", count - WARNINGS).into_bytes();
            progress.emit(&Event::Warning(lapstrake_builder_progress::Warning {
                vertex,
                level: 1,
                short,
                detail: Vec::new(),
                url: String::new(),
                source: None,
                ranges: Vec::new(),
            }));
            return Ok(());
        }
        let source = (facts.dockerfile.len() <= room).then(|| {
            room -= facts.dockerfile.len();
            pb::SourceInfo {
                filename: options.dockerfile_name.clone(),
                data: facts.dockerfile.to_vec(),
                language: "Dockerfile".to_owned(),
                ..Default::default()
            }
        });
        let range = |line| pb::Range { start: Some(position(line)), end: Some(position(line)) };
        progress.emit(&Event::Warning(lapstrake_builder_progress::Warning {
            vertex: vertex.clone(),
            level: 1,
            short: short.into_bytes(),
            detail,
            url,
            source,
            ranges: lines.into_iter().map(range).collect(),
        }));
    }
    Ok(())
}

fn position(line: u32) -> pb::Position {
    pb::Position { line: i32::try_from(line).unwrap_or(i32::MAX), character: 0 }
}
