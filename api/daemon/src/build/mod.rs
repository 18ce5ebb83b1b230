//! `lapstrake build`: one build in this process, without a daemon.
//!
//! ```text
//!   args ─► request (context, options, output) ─► Engine::build ─► image │ files        exit code 0, 1
//!            session (secrets, agents), credentials ┘        └─► show (standard error), excerpt of what failed
//! ```

pub(crate) mod args;
mod call;
mod contexts;
mod credentials;
mod layouts;
mod request;
mod session;
mod show;

use std::{
    collections::BTreeMap,
    io::{self, Read},
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use lapstrake_api_types::{HostEntry, HostGateway};
use lapstrake_builder_engine::{
    BuildId, BuildRequest, CacheSource, CacheTarget, Compatibility, ContextInput, Engine, EngineError,
    Entitlement, Exported, FailedImage, Input, Question, Reply, SourcePolicy,
};
use lapstrake_builder_executor::StartingHelper;
use lapstrake_builder_progress::{Limits, Progress};
use lapstrake_layerstore_diff::is_archive;
use lapstrake_layerstore_store::StoreError;
use tokio_util::sync::CancellationToken;

use self::{
    args::{BuildArgs, ProgressMode},
    contexts::NamedContexts,
    credentials::DockerConfig,
    layouts::Layouts,
    request::{Context, RemoteDockerfile},
    session::Offers,
};
use crate::{
    assembly::{self, Assembly},
    error::{ProgramError, chain},
    logging, process,
    settings::StoreSettings,
};

/// Longest Dockerfile on standard input: the engine's own limit.
const DOCKERFILE_LIMIT: u64 = 16 << 20;
/// Where a Dockerfile from standard input is kept, and its empty context.
const DOCKERFILE_PART: &str = "dockerfile";
const CONTEXT_PART: &str = "context";
/// How much of standard input tells whether it is an archive.
const HEAD: usize = 64 << 10;

/// Builds, and says how it went.
pub(crate) fn run(args: &BuildArgs) -> Result<ExitCode, ProgramError> {
    let (mut settings, file) = StoreSettings::new(&args.store)?;
    if settings.log_level == logging::LogLevel::Info {
        // The build's own words are enough.
        settings.log_level = logging::LogLevel::Error;
    }
    logging::start(settings.log_format, settings.log_level);
    let call = call::call(args)?;
    let (context, dockerfile) = request::context(args)?;
    let named = NamedContexts::parse(&args.build_context)?;
    let names = request::references("--tag", &args.tag)?;
    let outputs = request::outputs(&args.output, args.push, &names)?;
    let cache_from = request::caches("--cache-from", &args.cache_from, CacheSource::parse)?;
    let cache_to = request::caches("--cache-to", &args.cache_to, CacheTarget::parse)?;
    let keep_failed = request::keep_failed(args, file.keep_failed)?;
    let grants = request::grants(args)?;
    let resources = request::resources(args)?;
    let offers = Offers::parse(&args.secret, &args.ssh, |name| std::env::var(name).ok())?;
    let credentials = DockerConfig::read()?;
    let hosts = request::extra_hosts(args)?;
    process::raise_open_files();
    let helper = assembly::start_helper(settings.seccomp_profile.clone(), settings.network.clone())?;
    let runtime = process::start_threads()?;
    let code = runtime.block_on(async {
        let stop = CancellationToken::new();
        process::stop_on_signals(stop.clone())?;
        let assembly = open(&settings, helper)?;
        let collecting = collect(&assembly);
        let session = offers.open(Layouts::new(named.layouts), &assembly.sessions)?;
        let session_id = Some(session.to_string());
        let gateway = gateway(&settings, &hosts, &assembly.engine).await;
        let options =
            request::options(args, &context, dockerfile.as_deref(), named.attrs, session_id, &gateway)?;
        let mut placed = place(&assembly.engine, context, &options.dockerfile_name).await?;
        placed.directories.extend(named.directories);
        let inline_cache =
            options.build_args.get("BUILDKIT_INLINE_CACHE").is_some_and(|on| on == "1" || on == "true");
        let mode = if args.quiet { ProgressMode::Quiet } else { args.progress };
        if let Some(call) = call {
            let question = Question {
                id: BuildId(session.to_string()),
                request: call.request,
                options: Box::new(options),
                context: placed.input,
                directories: placed.directories,
                session: Some(session),
                credentials: Arc::new(credentials),
            };
            let reply = ask(&assembly.engine, question, mode, args.store.debug, stop).await?;
            collecting.await;
            return Ok(reply.map_or(ExitCode::FAILURE, |reply| call.show(&reply).print()));
        }
        let request = BuildRequest {
            id: BuildId(session.to_string()),
            input: Input::Dockerfile {
                options: Box::new(options),
                context: placed.input,
                directories: placed.directories,
            },
            session: Some(session),
            outputs,
            cache_from,
            cache_to,
            inline_cache,
            keep_failed,
            credentials: Arc::new(credentials),
            grants,
            resources,
            source_policy: SourcePolicy::default(),
            compatibility: Compatibility::default(),
            is_recorded: true,
            asks_session: false,
        };
        let code = match build(&assembly.engine, request, mode, args.store.debug, stop).await? {
            Some(exported) => {
                tell(args, &exported)?;
                ExitCode::SUCCESS
            }
            None => ExitCode::FAILURE,
        };
        drop(placed.directory);
        collecting.await;
        assembly.store.history.settle().await;
        tidy(&assembly).await;
        Ok(code)
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    code
}

/// What `host-gateway` means. Nothing is found out, or made, for builds that do not say it.
async fn gateway(settings: &StoreSettings, hosts: &[HostEntry], engine: &Engine) -> HostGateway {
    match &settings.host_gateway {
        Some(gateway) => gateway.clone(),
        None if hosts.iter().any(HostEntry::is_host_gateway) => engine.host_address().await.into(),
        None => IpAddr::from(Ipv4Addr::LOCALHOST).into(),
    }
}

fn open(settings: &StoreSettings, helper: StartingHelper) -> Result<Assembly, ProgramError> {
    // Who runs this is who may configure it: what the configuration does not say is up to the command line.
    let entitlements = settings.allowed(&Entitlement::ALL);
    Assembly::new(settings, entitlements, helper).map_err(|error| match error {
        ProgramError::Store(StoreError::Locked { root }) => ProgramError::setting(
            format!("store {}", root.display()),
            "a daemon has it open: build through the daemon (DOCKER_HOST=unix:///run/lapstrake/lapstrake.sock docker build …), \
             or use another --root",
        ),
        other => other,
    })
}

/// Collects what earlier runs left, beside the build.
fn collect(assembly: &Assembly) -> impl Future<Output = ()> {
    let (collector, metadata) = (Arc::clone(&assembly.store.collector), assembly.store.metadata.clone());
    let work = tokio::task::spawn_blocking(move || collector.collect_at_start(&metadata));
    async move {
        match work.await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = chain(&error), "what earlier runs left could not be collected")
            }
            Err(error) => tracing::error!(%error, "collection ended in a panic"),
        }
    }
}

/// Keeps the cache within its bounds: no daemon does it.
async fn tidy(assembly: &Assembly) {
    let tidier = assembly.store.tidier();
    match tokio::task::spawn_blocking(move || tidier.tidy()).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(error = chain(&error), "the cache could not be tidied"),
        Err(error) => tracing::error!(%error, "tidying ended in a panic"),
    }
}

/// Where the build's files are, found.
struct Placed {
    input: ContextInput,
    /// Further directories, by name.
    directories: BTreeMap<String, PathBuf>,
    /// Holds it, for as long as the build runs.
    directory: Option<tempfile::TempDir>,
}

impl Placed {
    fn at(input: ContextInput) -> Self {
        Self { input, directories: BTreeMap::new(), directory: None }
    }
}

/// A directory with a Dockerfile that came on standard input, and an empty one beside it.
fn keep_dockerfile(name: &str, text: &[u8]) -> Result<tempfile::TempDir, ProgramError> {
    let directory =
        tempfile::tempdir().map_err(ProgramError::system("make a directory for the Dockerfile"))?;
    for part in [DOCKERFILE_PART, CONTEXT_PART] {
        let path = directory.path().join(part);
        std::fs::create_dir(&path).map_err(ProgramError::file("make", path))?;
    }
    let path = directory.path().join(DOCKERFILE_PART).join(name);
    std::fs::write(&path, text).map_err(ProgramError::file("write", path))?;
    Ok(directory)
}

async fn place(engine: &Engine, context: Context, name: &str) -> Result<Placed, ProgramError> {
    let text = match context {
        Context::Directory { context, dockerfile } => {
            return Ok(Placed::at(ContextInput::Directory { context, dockerfile }));
        }
        Context::Remote { dockerfile: RemoteDockerfile::InContext } => {
            return Ok(Placed::at(ContextInput::Remote));
        }
        Context::Remote { dockerfile: RemoteDockerfile::Directory(directory) } => {
            let directories = BTreeMap::from([(request::DOCKERFILE_KEY.to_owned(), directory)]);
            return Ok(Placed { directories, ..Placed::at(ContextInput::Remote) });
        }
        Context::DirectoryAndInput { .. } | Context::Remote { dockerfile: RemoteDockerfile::Input } => {
            read_dockerfile(io::stdin())?
        }
        Context::Input { named } => {
            let mut head = Vec::new();
            let mut stdin = io::stdin();
            let failed = || ProgramError::system("read standard input");
            (&mut stdin).take(HEAD as u64).read_to_end(&mut head).map_err(failed())?;
            if head.is_empty() {
                return Err(ProgramError::setting("context -", "standard input is empty"));
            }
            if is_archive(io::Cursor::new(head.clone())) {
                let received = engine.receive_context(io::Cursor::new(head).chain(stdin)).await?;
                return Ok(Placed::at(ContextInput::Received(received)));
            }
            if named {
                return Err(ProgramError::setting(
                    "context -",
                    "ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles",
                ));
            }
            read_dockerfile(io::Cursor::new(head).chain(stdin))?
        }
    };
    let directory = keep_dockerfile(name, &text)?;
    let dockerfile = directory.path().join(DOCKERFILE_PART);
    let mut placed = Placed::at(match context {
        Context::DirectoryAndInput { context } => ContextInput::Directory { context, dockerfile },
        Context::Remote { .. } => ContextInput::Remote,
        // A Dockerfile alone has nothing to copy, not even itself.
        _ => ContextInput::Directory { context: directory.path().join(CONTEXT_PART), dockerfile },
    });
    if let ContextInput::Remote = placed.input {
        let dockerfile = directory.path().join(DOCKERFILE_PART);
        placed.directories.insert(request::DOCKERFILE_KEY.to_owned(), dockerfile);
    }
    placed.directory = Some(directory);
    Ok(placed)
}

fn read_dockerfile(from: impl Read) -> Result<Vec<u8>, ProgramError> {
    let mut text = Vec::new();
    from.take(DOCKERFILE_LIMIT + 1)
        .read_to_end(&mut text)
        .map_err(ProgramError::system("read a Dockerfile from standard input"))?;
    if text.len() as u64 > DOCKERFILE_LIMIT {
        return Err(ProgramError::setting(
            "Dockerfile on standard input",
            format!("is longer than {DOCKERFILE_LIMIT} bytes"),
        ));
    }
    Ok(text)
}

/// Runs the build to its end; `None` when it failed, which was told.
async fn build(
    engine: &Engine,
    request: BuildRequest,
    mode: ProgressMode,
    expanded: bool,
    stop: CancellationToken,
) -> Result<Option<Exported>, ProgramError> {
    let (progress, shown) = follow(mode, expanded)?;
    let (built, tails) = tokio::join!(engine.build(request, progress, None, stop), shown);
    Ok(built.map_err(|error| tell_failure(&error, &tails)).ok())
}

/// Asks the question; `None` when that failed, which was told.
async fn ask(
    engine: &Engine,
    question: Question,
    mode: ProgressMode,
    expanded: bool,
    stop: CancellationToken,
) -> Result<Option<Reply>, ProgramError> {
    let (progress, shown) = follow(mode, expanded)?;
    let (reply, tails) = tokio::join!(engine.ask(question, progress, stop), shown);
    Ok(reply.map_err(|error| tell_failure(&error, &tails)).ok())
}

/// Somewhere to write progress to, and what shows it.
fn follow(
    mode: ProgressMode,
    expanded: bool,
) -> Result<(Progress, impl Future<Output = show::Tails>), ProgramError> {
    let failed = || ProgramError::system("keep the build's progress");
    let progress = Progress::anonymous(Limits::default()).map_err(failed())?;
    let events = progress.subscribe();
    Ok((progress, show::show(events, mode, expanded)))
}

fn tell_failure(error: &EngineError, tails: &show::Tails) {
    if let Some(vertex) = error.failed_vertex() {
        eprint!("{}", tails.of(vertex));
    }
    if let Some(fault) = error.fault() {
        eprint!("{}", fault.excerpt());
    }
    eprintln!("ERROR: failed to solve: {error}");
    if let (_, Some(FailedImage::Kept(name))) = error.keeping() {
        let name = name.familiar();
        eprintln!(
            "to look into it: echo FROM {name} | lapstrake build -o type=docker,name={name} - | docker load && docker run --rm -it {name} sh"
        );
    }
}

/// Says what was made.
fn tell(args: &BuildArgs, exported: &Exported) -> Result<(), ProgramError> {
    let Some(id) = exported.digest() else { return Ok(()) };
    if let Some(path) = &args.iidfile {
        std::fs::write(path, id.as_str()).map_err(ProgramError::file("write", path))?;
    }
    if args.quiet {
        crate::say(&format!("{id}\n"));
    }
    Ok(())
}
