//! From the command line to a build request. Reads the environment and looks whether directories are there; opens nothing.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use lapstrake_api_types::{HostEntry, HostGateway};
use lapstrake_builder_dockerfile::{DockerfileOptions, options::ContextSource};
use lapstrake_builder_engine::{
    Destination, EngineError, Entitlement, Grants, KeepFailed, Output, Resources,
};
use lapstrake_builder_exporter::split_fields;
use lapstrake_layerstore_oci::{Platform, Reference};

use super::args::BuildArgs;
use crate::error::ProgramError;

/// Where the build's files are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Context {
    /// A directory, and the one that the Dockerfile is in.
    Directory {
        /// The context.
        context: PathBuf,
        /// Where the Dockerfile is.
        dockerfile: PathBuf,
    },
    /// A directory, with the Dockerfile on standard input.
    DirectoryAndInput {
        /// The context.
        context: PathBuf,
    },
    /// An archive or a Dockerfile on standard input.
    Input {
        /// Whether a Dockerfile was named, so that it can only be an archive.
        named: bool,
    },
    /// Behind a URL that the options name.
    Remote {
        /// Where the Dockerfile is.
        dockerfile: RemoteDockerfile,
    },
}

/// Where the Dockerfile of a context behind a URL is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RemoteDockerfile {
    /// In the context.
    InContext,
    /// In this directory.
    Directory(PathBuf),
    /// On standard input.
    Input,
}

/// What the options call the directory of a Dockerfile that is not with the context.
pub(super) const DOCKERFILE_KEY: &str = "dockerfile";

fn wrong(what: impl Into<String>, why: impl ToString) -> ProgramError {
    ProgramError::setting(what, why.to_string())
}

/// Where the files are, and the Dockerfile's name there.
pub(super) fn context(args: &BuildArgs) -> Result<(Context, Option<String>), ProgramError> {
    if args.context == "-" {
        if args.file.as_deref() == Some("-") {
            return Err(wrong("-f -", "standard input cannot be both the context and the Dockerfile"));
        }
        return Ok((Context::Input { named: args.file.is_some() }, args.file.clone()));
    }
    let context = PathBuf::from(&args.context);
    if !context.is_dir() {
        let is_url = args.context.contains("://")
            || args.context.starts_with("git@")
            || args.context.starts_with("github.com/");
        if is_url {
            return remote(args.file.as_deref());
        }
        let why = if context.exists() { "is not a directory" } else { "no such directory" };
        return Err(wrong(format!("context {}", args.context), why));
    }
    let absolute = |path: &Path| std::path::absolute(path).map_err(ProgramError::file("find", path));
    let context = absolute(&context)?;
    match args.file.as_deref() {
        None => Ok((Context::Directory { dockerfile: context.clone(), context }, None)),
        Some("-") => Ok((Context::DirectoryAndInput { context }, None)),
        // As docker has it: relative to where we are, not to the context.
        Some(file) => {
            let (dockerfile, name) = split_file(file, &absolute(Path::new(file))?)?;
            Ok((Context::Directory { context, dockerfile }, Some(name)))
        }
    }
}

/// As docker has it: a path that is not absolute is one in the context.
fn remote(file: Option<&str>) -> Result<(Context, Option<String>), ProgramError> {
    let at = |dockerfile| Context::Remote { dockerfile };
    match file {
        Some("-") => Ok((at(RemoteDockerfile::Input), None)),
        Some(file) if Path::new(file).is_absolute() => {
            let (directory, name) = split_file(file, Path::new(file))?;
            Ok((at(RemoteDockerfile::Directory(directory)), Some(name)))
        }
        file => Ok((at(RemoteDockerfile::InContext), file.map(str::to_owned))),
    }
}

/// A Dockerfile's directory and name.
fn split_file(given: &str, path: &Path) -> Result<(PathBuf, String), ProgramError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Err(wrong(format!("-f {given}"), "is no file's name"));
    };
    if !path.is_file() {
        return Err(wrong(format!("-f {given}"), "no such file"));
    }
    Ok((parent.to_owned(), name.to_owned()))
}

/// The names that `--add-host` gives.
pub(super) fn extra_hosts(args: &BuildArgs) -> Result<Vec<HostEntry>, ProgramError> {
    let parse =
        |text: &String| HostEntry::parse(text).map_err(|error| wrong(format!("--add-host {text}"), error));
    args.add_host.iter().map(parse).collect()
}

/// The frontend's options; `named` are those of further contexts, `gateway` is what `host-gateway` means.
pub(super) fn options(
    args: &BuildArgs,
    context: &Context,
    dockerfile: Option<&str>,
    named: BTreeMap<String, String>,
    session: Option<String>,
    gateway: &HostGateway,
) -> Result<DockerfileOptions, ProgramError> {
    let mut attrs = named;
    let mut put = |key: &str, value: String| _ = attrs.insert(key.to_owned(), value);
    if let Context::Remote { dockerfile } = context {
        put("context", args.context.clone());
        if *dockerfile != RemoteDockerfile::InContext {
            put("dockerfilekey", DOCKERFILE_KEY.to_owned());
        }
    }
    if let Some(name) = dockerfile {
        put("filename", name.to_owned());
    }
    for text in &args.build_arg {
        match text.split_once('=') {
            Some(("", _)) => return Err(wrong(format!("--build-arg {text}"), "has no name")),
            Some((name, value)) => put(&format!("build-arg:{name}"), value.to_owned()),
            // What the environment does not have either is left to the Dockerfile.
            None => {
                if let Ok(value) = std::env::var(text) {
                    put(&format!("build-arg:{text}"), value);
                }
            }
        }
    }
    for text in &args.label {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        if name.is_empty() {
            return Err(wrong(format!("--label {text}"), "has no name"));
        }
        put(&format!("label:{name}"), value.to_owned());
    }
    if let Some(target) = &args.target {
        put("target", target.clone());
    }
    let platforms: Vec<&str> =
        args.platform.iter().map(String::as_str).filter(|platform| !platform.is_empty()).collect();
    if !platforms.is_empty() {
        put("platform", platforms.join(","));
    }
    if args.no_cache {
        put("no-cache", String::new());
    }
    if let Some(stages) = &args.no_cache_filter {
        put("no-cache", stages.clone());
    }
    if args.pull {
        put("image-resolve-mode", "pull".to_owned());
    }
    if args.network != "default" {
        put("force-network-mode", args.network.clone());
    }
    if !args.add_host.is_empty() {
        let hosts = extra_hosts(args)?;
        let hosts: Vec<_> = hosts.iter().flat_map(|entry| entry.frontend_hosts(gateway)).collect();
        put("add-hosts", hosts.join(","));
    }
    if let Some(bytes) = args.shm_size {
        put("shm-size", bytes.to_string());
    }
    if !args.ulimit.is_empty() {
        put("ulimit", args.ulimit.join(","));
    }
    if let Some(parent) = &args.cgroup_parent {
        put("cgroup-parent", parent.clone());
    }
    let options = DockerfileOptions::from_frontend_attrs(&attrs, Platform::host(), session, &[])
        .map_err(|error| wrong("build options", error))?;
    if let (Context::Remote { .. }, ContextSource::Local(_)) = (context, &options.context) {
        return Err(wrong(
            format!("context {}", args.context),
            "is neither a git repository nor an http URL",
        ));
    }
    Ok(options)
}

/// Limits on processes; whether they mean something is known to who sets them.
pub(super) fn resources(args: &BuildArgs) -> Result<Resources, ProgramError> {
    let bytes = |option: &str, given: Option<i64>| match given {
        None | Some(0) => Ok(None),
        Some(bytes) => u64::try_from(bytes).map(Some).map_err(|_| wrong(option, "is not negative")),
    };
    Ok(Resources {
        memory: bytes("--memory", args.memory)?,
        memory_swap: args.memory_swap.filter(|bytes| *bytes != 0),
        cpu_shares: args.cpu_shares.filter(|shares| *shares != 0),
        cpu_period: args.cpu_period.filter(|period| *period != 0),
        cpu_quota: args.cpu_quota.filter(|quota| *quota != 0),
        cpuset_cpus: args.cpuset_cpus.clone(),
        cpuset_mems: args.cpuset_mems.clone(),
        pids: args.pids_limit.and_then(|most| u64::try_from(most).ok()).filter(|most| *most != 0),
        shm_size: bytes("--shm-size", args.shm_size)?,
    })
}

/// What steps may do beyond a sandbox. As with buildx, who asks for the machine's network for all steps has granted it.
pub(super) fn grants(args: &BuildArgs) -> Result<Grants, ProgramError> {
    let mut grants =
        Grants::parse(args.allow.iter().map(String::as_str)).map_err(|error| wrong("--allow", error))?;
    if args.network == "host" {
        grants.add(Entitlement::NetworkHost);
    }
    Ok(grants)
}

/// Caches to use, or to leave behind.
pub(super) fn caches<T>(
    option: &str,
    texts: &[String],
    parse: impl Fn(&str) -> Result<T, EngineError>,
) -> Result<Vec<T>, ProgramError> {
    texts.iter().map(|text| parse(text).map_err(|error| wrong(option, error))).collect()
}

/// Whether what a failed step leaves is kept.
pub(super) fn keep_failed(args: &BuildArgs, by_default: bool) -> Result<KeepFailed, ProgramError> {
    Ok(match args.keep_failed.as_deref() {
        None if by_default => KeepFailed::Yes,
        None => KeepFailed::No,
        Some("") => KeepFailed::Yes,
        Some(name) => {
            let reference =
                Reference::parse(name).map_err(|error| wrong(format!("--keep-failed {name}"), error))?;
            if reference.digest().is_some() {
                return Err(wrong(format!("--keep-failed {name}"), "a name to give has no digest"));
            }
            KeepFailed::As(reference.with_default_tag())
        }
    })
}

/// Names for the image.
pub(super) fn references(option: &str, texts: &[String]) -> Result<Vec<Reference>, ProgramError> {
    let parse = |text: &String| {
        let reference = Reference::parse(text).map_err(|error| wrong(format!("{option} {text}"), error))?;
        if option == "--tag" && reference.digest().is_some() {
            return Err(wrong(format!("{option} {text}"), "a name to give has no digest"));
        }
        Ok(reference.with_default_tag())
    };
    texts.iter().map(parse).collect()
}

/// What to leave behind: an image in the store, unless something else is said.
pub(super) fn outputs(
    texts: &[String],
    push: bool,
    names: &[Reference],
) -> Result<Vec<Output>, ProgramError> {
    let mut outputs = texts.iter().map(|text| output(text)).collect::<Result<Vec<_>, _>>()?;
    if push {
        let images = outputs.iter_mut().filter_map(|output| match output {
            Output::Image(image) => Some(image),
            _ => None,
        });
        let pushed = images.map(|image| image.push.get_or_insert_default()).count();
        if pushed == 0 {
            let pushed = Output::parse("registry", &BTreeMap::new());
            outputs.push(pushed.map_err(|error| wrong("--push", error))?);
        }
    }
    if outputs.is_empty() {
        return Ok(vec![Output::image(names.to_vec())]);
    }
    outputs.iter_mut().for_each(|output| output.name_first(names));
    let nameless = |output: &Output| matches!(output, Output::Image(image) if image.push.is_some() && output.names().is_empty());
    if outputs.iter().any(nameless) {
        return Err(wrong("--output", "a tag is needed when pushing to registry"));
    }
    Ok(outputs)
}

fn output(text: &str) -> Result<Output, ProgramError> {
    let refuse = |why: String| wrong(format!("--output {text}"), why);
    if text == "-" {
        return Ok(Output::tar(Destination::Stdout));
    }
    if !text.contains('=') {
        return Ok(Output::local(Destination::Path(PathBuf::from(text))));
    }
    let fields = split_fields(text).ok_or_else(|| refuse("a quotation mark is missing".to_owned()))?;
    let mut attrs = BTreeMap::new();
    for field in fields {
        let (key, value) =
            field.split_once('=').ok_or_else(|| refuse(format!("{field} is not name=value")))?;
        attrs.insert(key.trim().to_lowercase(), value.to_owned());
    }
    let kind = attrs.remove("type").ok_or_else(|| refuse("has no type".to_owned()))?;
    let dest = attrs.remove("dest");
    // An image stays here, as `docker build` has it: nothing is compressed that nobody asked for.
    let kind = if kind == "image" { "moby" } else { &kind };
    let output = Output::parse(kind, &attrs).map_err(|error| refuse(error.to_string()))?;
    let is_stream = match &output {
        Output::CacheOnly | Output::Image(_) if dest.is_some() => {
            return Err(refuse("dest means nothing for this type".to_owned()));
        }
        Output::CacheOnly | Output::Image(_) => return Ok(output),
        Output::Local(_) => false,
        Output::Oci(layout) | Output::Docker(layout) => layout.tar,
        Output::Tar(_) => true,
    };
    let to = match dest.as_deref() {
        Some("-") if is_stream => Destination::Stdout,
        Some(path) if path != "-" => Destination::Path(PathBuf::from(path)),
        None if is_stream && std::io::IsTerminal::is_terminal(&std::io::stdout()) => {
            return Err(refuse("give dest=FILE: an archive does not go to a terminal".to_owned()));
        }
        None if is_stream => Destination::Stdout,
        _ => return Err(refuse("needs dest=DIRECTORY".to_owned())),
    };
    output.send_to(to).map_err(|error| refuse(error.to_string()))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use lapstrake_builder_dockerfile::options::NoCache;

    use std::net::IpAddr;

    use super::*;
    use crate::cli::{Cli, Command};

    fn args(line: &[&str]) -> BuildArgs {
        let cli = Cli::try_parse_from(["lapstrake", "build"].iter().chain(line)).unwrap();
        let Command::Build(args) = cli.command else { panic!("build was asked for") };
        *args
    }

    #[test]
    fn contexts_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        std::fs::write(dir.path().join("D"), "FROM scratch").unwrap();
        let file = dir.path().join("D");
        let context_of = |line: &[&str]| context(&args(line)).map_err(|error| error.to_string());
        let directory = |dockerfile: &Path| Context::Directory {
            context: dir.path().to_owned(),
            dockerfile: dockerfile.to_owned(),
        };
        assert_eq!(context_of(&[path]), Ok((directory(dir.path()), None)));
        assert_eq!(
            context_of(&["-f", file.to_str().unwrap(), path]),
            Ok((directory(dir.path()), Some("D".to_owned())))
        );
        assert_eq!(
            context_of(&["-f", "-", path]),
            Ok((Context::DirectoryAndInput { context: dir.path().to_owned() }, None))
        );
        assert_eq!(context_of(&["-"]), Ok((Context::Input { named: false }, None)));
        let remote = |dockerfile| Context::Remote { dockerfile };
        let url = "https://h/x.git";
        let in_context = || remote(RemoteDockerfile::InContext);
        assert_eq!(context_of(&[url]), Ok((in_context(), None)));
        assert_eq!(context_of(&["-f", "sub/D", url]), Ok((in_context(), Some("sub/D".to_owned()))));
        assert_eq!(context_of(&["-f", "-", url]), Ok((remote(RemoteDockerfile::Input), None)));
        assert_eq!(
            context_of(&["-f", file.to_str().unwrap(), url]),
            Ok((remote(RemoteDockerfile::Directory(dir.path().to_owned())), Some("D".to_owned())))
        );
        assert!(context_of(&["-f", "-", "-"]).unwrap_err().contains("both"));
        assert!(context_of(&["/no/such/place"]).unwrap_err().contains("no such directory"));
        assert!(context_of(&["-f", "/no/such/file", path]).unwrap_err().contains("no such file"));
    }

    #[test]
    fn options_arrive() {
        let args = args(&[
            "--build-arg",
            "A=1",
            "--build-arg",
            "LAPSTRAKE_TEST_UNSET",
            "--label",
            "l=v",
            "--target",
            "t",
            "--rm",
            "--force-rm=true",
            "--compress",
            "--no-cache-filter",
            "a,b",
            "--add-host",
            "db:10.0.0.1",
            "--add-host",
            "here:host-gateway",
            "--ulimit",
            "nofile=1:2",
            "--shm-size",
            "1k",
            "-m",
            "2m",
            "--memory-swap",
            "-1",
            ".",
        ]);
        let named = BTreeMap::from([("context:base".to_owned(), "docker-image://alpine".to_owned())]);
        let options = options(
            &args,
            &Context::Input { named: true },
            Some("D"),
            named,
            None,
            &IpAddr::from([10, 9, 0, 1]).into(),
        );
        let options = options.unwrap();
        assert_eq!(options.build_args, BTreeMap::from([("A".to_owned(), "1".to_owned())]));
        assert_eq!((options.labels["l"].as_str(), options.target.as_deref()), ("v", Some("t")));
        assert_eq!(options.no_cache, NoCache::Stages(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!((options.extra_hosts.len(), options.ulimits.len(), options.shm_size), (2, 1, 1024));
        assert_eq!(options.named_contexts["base"].specifier, "docker-image://alpine");
        let resources = resources(&args).unwrap();
        assert_eq!((resources.memory, resources.memory_swap), (Some(2 << 20), Some(-1)));
    }

    #[test]
    fn outputs_are_as_dockers() {
        let out = |text: &str| output(text).map_err(|error| error.to_string());
        assert_eq!(out("out"), Ok(Output::local(Destination::Path("out".into()))));
        assert_eq!(out("-"), Ok(Output::tar(Destination::Stdout)));
        assert_eq!(out("type=tar,dest=x.tar"), Ok(Output::tar(Destination::Path("x.tar".into()))));
        assert_eq!(out("type=cacheonly"), Ok(Output::CacheOnly));
        let names = ["a", "b:1"].map(|name| Reference::parse(name).unwrap()).to_vec();
        let to = Destination::Stdout;
        assert_eq!(out("type=docker,\"name=a,b:1\",dest=-"), Ok(Output::docker(names, to)));
        for (text, why) in [
            ("type=local", "needs dest"),
            ("type=oci,tar=false", "needs dest"),
            ("type=zip,dest=x", "could not be found"),
            ("type=image,push=maybe", "non-bool value specified for push"),
            ("type=local,platform-split=x,dest=x", "non-bool value"),
            ("dest=x", "has no type"),
            ("type=image,dest=x", "dest means nothing"),
        ] {
            assert!(out(text).unwrap_err().contains(why), "{text}");
        }
    }

    #[test]
    fn an_image_is_pushed_where_that_is_said() {
        let names = [Reference::parse("r:5000/a:1").unwrap()];
        let pushed = |texts: &[&str], push| {
            let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
            let outputs = outputs(&texts, push, &names).unwrap();
            let is_pushed = |output: &Output| matches!(output, Output::Image(image) if image.push.is_some());
            outputs.iter().map(|output| (output.kind(), is_pushed(output))).collect::<Vec<_>>()
        };
        assert_eq!(pushed(&[], false), [("image", false)]);
        assert_eq!(pushed(&[], true), [("image", true)]);
        assert_eq!(pushed(&["type=registry"], false), [("image", true)]);
        assert_eq!(pushed(&["type=image", "out"], true), [("image", true), ("local", false)]);
        assert_eq!(pushed(&["out"], true), [("local", false), ("image", true)]);
        assert!(outputs(&[], true, &[]).unwrap_err().to_string().contains("a tag is needed"));
    }
}
