//! `lapstrake debug`: what the program makes of a file, without building anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::{Args, Subcommand};
use lapstrake_builder_dockerfile::{
    Answer, DockerfileOptions, Error, Facts, ImageFact, ImageQuery, Need, Plan, facts::IgnoreFile,
    options::ContextSource, parser::MAX_FILE_BYTES, plan,
};
use lapstrake_layerstore_oci::{Platform, Reference};
use serde_json::json;

use crate::error::ProgramError;

#[derive(Debug, Args)]
pub(crate) struct DebugArgs {
    #[command(subcommand)]
    command: DebugCommand,
}

#[derive(Debug, Subcommand)]
enum DebugCommand {
    /// Print the steps that a Dockerfile becomes (its LLB graph): inputs, commands, mounts, digests, lines
    DumpLlb(DumpLlb),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lapstrake debug dump-llb
  lapstrake debug dump-llb --target test --build-arg VERSION=1 app/Dockerfile
  lapstrake debug dump-llb --image alpine:3=alpine-config.json --opt label:a=b - < Dockerfile

Nothing is fetched and no store is opened. What only a build would find out is taken to be as little as possible, and standard error
says so: an image has an empty config (--image gives it another) and is not pinned to a digest.")]
struct DumpLlb {
    /// Dockerfile; - for standard input
    #[arg(value_name = "FILE", default_value = "Dockerfile")]
    file: PathBuf,

    /// Plan this stage [default: the last one]
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,

    /// Plan for these platforms, such as linux/amd64,linux/arm64 [default: this machine's]
    #[arg(long, value_name = "PLATFORM,…")]
    platform: Vec<String>,

    /// Set an ARG; without =VALUE, from the environment
    #[arg(long, value_name = "NAME[=VALUE]")]
    build_arg: Vec<String>,

    /// Set an option of BuildKit's Dockerfile frontend, such as label:NAME, no-cache or context:NAME; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    opt: Vec<String>,

    /// Take this file as the config document of an image; may be repeated
    #[arg(long, value_name = "NAME=FILE")]
    image: Vec<String>,
}

/// Does what the command line says.
pub(crate) fn run(args: &DebugArgs) -> Result<(), ProgramError> {
    match &args.command {
        DebugCommand::DumpLlb(args) => dump_llb(args),
    }
}

fn dump_llb(args: &DumpLlb) -> Result<(), ProgramError> {
    let options = options(args)?;
    let mut facts = Facts::new(read(&args.file)?);
    facts.dockerignore = ignore_file(&args.file)?;
    if let ContextSource::Http { url } = &options.context {
        note(&format!("{url} is taken to be an archive"));
        facts.http_context_is_archive = Some(true);
    }
    let images = images(&args.image)?;
    let fault = |source: Error| ProgramError::Dockerfile { place: place(&args.file, &source), source };
    let plan = answered(&options, facts, &images).map_err(fault)?;
    for warning in &plan.warnings {
        let (rule, line) = (warning.rule.name(), warning.lines.start);
        eprintln!("{}:{line}: {rule}: {}", args.file.display(), warning.message);
    }
    crate::say(&plan.describe().map_err(fault)?);
    Ok(())
}

/// The frontend's options.
fn options(args: &DumpLlb) -> Result<DockerfileOptions, ProgramError> {
    let mut attrs = BTreeMap::new();
    if let Some(target) = &args.target {
        attrs.insert("target".to_owned(), target.clone());
    }
    if !args.platform.is_empty() {
        attrs.insert("platform".to_owned(), args.platform.join(","));
    }
    for text in &args.build_arg {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text.as_str(), std::env::var(text).ok()),
        };
        if name.is_empty() {
            return Err(ProgramError::setting(format!("--build-arg {text}"), "has no name"));
        }
        attrs.extend(value.map(|value| (format!("build-arg:{name}"), value)));
    }
    for text in &args.opt {
        let Some((key, value)) = text.split_once('=') else {
            return Err(ProgramError::setting(format!("--opt {text}"), "is not KEY=VALUE"));
        };
        attrs.insert(key.to_owned(), value.to_owned());
    }
    if args.file != Path::new("-") && !attrs.contains_key("filename") {
        let name = args.file.file_name().map_or("Dockerfile".into(), |name| name.to_string_lossy());
        attrs.insert("filename".to_owned(), name.into_owned());
    }
    let options = DockerfileOptions::from_frontend_attrs(&attrs, Platform::host(), None, &[])
        .map_err(|error| ProgramError::setting("options", error.to_string()))?;
    // A build only warns of it; here nobody else is asked who may know it.
    match options.unknown.first() {
        Some(key) => Err(ProgramError::setting(format!("--opt {key}"), "is no option of the frontend")),
        None => Ok(options),
    }
}

/// The config documents that were given, by full reference.
fn images(given: &[String]) -> Result<BTreeMap<String, Arc<[u8]>>, ProgramError> {
    let mut images = BTreeMap::new();
    for text in given {
        let wrong = |why: String| ProgramError::setting(format!("--image {text}"), why);
        let (name, file) = text.split_once('=').ok_or_else(|| wrong("is not NAME=FILE".to_owned()))?;
        let reference = Reference::parse(name).map_err(|error| wrong(error.to_string()))?;
        images.insert(reference.with_default_tag().to_string(), read(Path::new(file))?.into());
    }
    Ok(images)
}

/// The plan, with answers to all that it asks.
fn answered(
    options: &DockerfileOptions,
    mut facts: Facts,
    images: &BTreeMap<String, Arc<[u8]>>,
) -> Result<Plan, Error> {
    // Every answer but the last asks for something new, and an image whose config is not given asks for nothing more.
    loop {
        match plan(options, &facts)? {
            Answer::Plan(plan) => return Ok(*plan),
            Answer::Need(needs) => {
                let unknown: BTreeSet<String> =
                    needs.into_iter().filter_map(|need| answer(need, &mut facts, images)).collect();
                unknown.iter().for_each(|text| note(text));
            }
        }
    }
}

/// Adds a fact; what it says of it if it is not one that is known.
fn answer(need: Need, facts: &mut Facts, images: &BTreeMap<String, Arc<[u8]>>) -> Option<String> {
    match need {
        Need::ImageConfig { query, .. } => {
            let given = images.get(&query.reference.to_string()).cloned();
            let text = given.is_none().then(|| {
                format!("the config of {} is not known: taken to be empty", query.reference.familiar())
            });
            let config = given.unwrap_or_else(|| empty_config(&query));
            let digest = query.reference.digest().cloned();
            let fact = ImageFact { reference: query.reference.clone(), digest, config, image_id: None };
            facts.images.insert(query, fact);
            text
        }
        Need::ContextIgnore { name, .. } => {
            let text = format!("the .dockerignore of the context {name} is not known: taken to be empty");
            facts.context_ignores.insert(name, None);
            Some(text)
        }
        Need::HttpContextKind { url } => {
            facts.http_context_is_archive = Some(true);
            Some(format!("{url} is taken to be an archive"))
        }
        Need::Epoch { value, .. } => {
            let text = format!("the time of {value} is not known: taken to have none");
            facts.epochs.insert(value, None);
            Some(text)
        }
        other => unreachable!("the plan needs {other:?}, which no command line can lack"),
    }
}

/// A config that says nothing but that there are files.
fn empty_config(query: &ImageQuery) -> Arc<[u8]> {
    let mut config = json!({
        "architecture": query.platform.architecture,
        "os": query.platform.os,
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", "0".repeat(64))]},
    });
    if !query.platform.variant.is_empty() {
        config["variant"] = query.platform.variant.clone().into();
    }
    config.to_string().into_bytes().into()
}

fn note(text: &str) {
    eprintln!("lapstrake: {text}");
}

/// A file's bytes, or those of standard input.
fn read(path: &Path) -> Result<Vec<u8>, ProgramError> {
    let mut bytes = Vec::new();
    // One more than is allowed, so that the parser sees that it is too many.
    let limit = MAX_FILE_BYTES as u64 + 1;
    if path == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes))
    }
    .map_err(ProgramError::file("read", path))?;
    Ok(bytes)
}

/// The ignore file that a build of the Dockerfile's directory would use.
fn ignore_file(dockerfile: &Path) -> Result<Option<IgnoreFile>, ProgramError> {
    let (Some(name), Some(dir)) = (dockerfile.file_name(), dockerfile.parent()) else { return Ok(None) };
    if dockerfile == Path::new("-") {
        return Ok(None);
    }
    for name in [format!("{}.dockerignore", name.to_string_lossy()), ".dockerignore".to_owned()] {
        let path = dir.join(&name);
        if path.is_file() {
            return Ok(Some(IgnoreFile { name, data: read(&path)?.into() }));
        }
    }
    Ok(None)
}

/// `Dockerfile:3`, as far as it is known.
fn place(file: &Path, error: &Error) -> String {
    match error.lines() {
        Some(lines) => format!("{}:{}", file.display(), lines.start),
        None => file.display().to_string(),
    }
}
