//! The main context, and how the Dockerfile itself is read.

use std::collections::BTreeSet;

use lapstrake_builder_llb::{
    CopyAction, Defaults, Definition, FileAction, GraphBuilder, HttpSource, LocalSource, OpOptions, State,
    clean_path, join_path,
};

use super::{LowerError, Lowered, Lowering, git};
use crate::facts::{Facts, Need};
use crate::ignore::{PatternMatcher, read_ignore_file};
use crate::options::{ContextSource, DockerfileOptions, DockerfileSource, LocalContext};

/// The name under which a downloaded context lies in its file system.
const HTTP_FILE: &str = "context";
const DOCKERIGNORE: &str = ".dockerignore";

/// The Dockerfile's path in the file system of [`dockerfile_definition`].
pub fn dockerfile_name<'a>(options: &'a DockerfileOptions, facts: &Facts) -> &'a str {
    match (&options.context, &options.dockerfile_source) {
        // An URL that is no archive is the Dockerfile.
        (ContextSource::Http { .. }, DockerfileSource::MainContext)
            if facts.http_context_is_archive == Some(false) =>
        {
            HTTP_FILE
        }
        _ => &options.dockerfile_name,
    }
}

/// The graph whose result holds the Dockerfile and its own ignore file (`<Dockerfile>.dockerignore`). Solve it, read them, and go on to
/// [`crate::plan()`]. If there is no file of that name, and it is called `Dockerfile`, look for `dockerfile` beside it.
pub fn dockerfile_definition(options: &DockerfileOptions, facts: &Facts) -> Result<Definition, crate::Error> {
    let mut graph = GraphBuilder::new();
    let state = match &options.dockerfile_source {
        DockerfileSource::Local(local) => dockerfile_local(&mut graph, options, local),
        DockerfileSource::MainContext => match remote_context(&mut graph, options, facts)? {
            Some(state) => state,
            None => dockerfile_local(&mut graph, options, &LocalContext::named("dockerfile")),
        },
        DockerfileSource::Input { name } => input(&mut graph, facts, name)?,
    };
    marshal(&graph, &state, options)
}

fn dockerfile_local(graph: &mut GraphBuilder, options: &DockerfileOptions, local: &LocalContext) -> State {
    let name = &options.dockerfile_name;
    let mut follow = vec![name.clone(), format!("{name}{DOCKERIGNORE}")];
    if super::path::base(name) == "Dockerfile" {
        let dir = name.rsplit_once('/').map_or("", |(dir, _)| dir);
        follow.push(join_path(&[dir, "dockerfile"]));
    }
    let source = LocalSource {
        follow_paths: follow,
        differ: Some("none"),
        ..local_source(options, local, local.name.clone())
    };
    graph.local(source, OpOptions::internal(&format!("load build definition from {name}")))
}

/// The graph whose result holds the main context's `.dockerignore`; `None` if the context is not local, and has none. To be asked for
/// only if there is no `<Dockerfile>.dockerignore`.
pub fn dockerignore_definition(options: &DockerfileOptions) -> Result<Option<Definition>, crate::Error> {
    let ContextSource::Local(local) = &options.context else { return Ok(None) };
    let mut graph = GraphBuilder::new();
    let source = LocalSource {
        follow_paths: vec![DOCKERIGNORE.to_owned()],
        differ: Some("none"),
        ..local_source(options, local, format!("{}-{DOCKERIGNORE}", local.name))
    };
    let state = graph.local(source, OpOptions::internal(&format!("load {DOCKERIGNORE}")));
    marshal(&graph, &state, options).map(Some)
}

pub(super) fn marshal(
    graph: &GraphBuilder,
    state: &State,
    options: &DockerfileOptions,
) -> Lowered<Definition> {
    let defaults = Defaults { platform: options.build_platform.clone(), worker_filters: Vec::new() };
    let built = graph.marshal(state, &defaults).map_err(|e| LowerError::Graph(e).nowhere())?;
    Ok(built.definition)
}

pub(super) fn local_source(options: &DockerfileOptions, local: &LocalContext, hint: String) -> LocalSource {
    LocalSource {
        name: local.name.clone(),
        session_id: options.session_of(local),
        unique_id: local.unique_id.clone(),
        shared_key_hint: Some(hint),
        ..LocalSource::default()
    }
}

pub(super) fn input(graph: &mut GraphBuilder, facts: &Facts, name: &str) -> Lowered<State> {
    let Some(definition) = facts.inputs.get(name) else {
        return Err(LowerError::ContextSpecifier(format!("invalid input {name}")).nowhere());
    };
    graph.import(definition).map_err(|e| LowerError::Graph(e).nowhere())
}

/// A context that is not local; `None` if it is.
fn remote_context(
    graph: &mut GraphBuilder,
    options: &DockerfileOptions,
    facts: &Facts,
) -> Lowered<Option<State>> {
    Ok(Some(match &options.context {
        ContextSource::Local(_) => return Ok(None),
        ContextSource::Git { reference, keep_git_dir } => {
            let mtime = options.build_args.get("SOURCE_DATE_EPOCH").is_some_and(|epoch| !epoch.is_empty());
            git_context(graph, reference, *keep_git_dir, mtime)?
        }
        ContextSource::Http { url } => {
            let file = graph.http(context_file(url), OpOptions::internal("load remote build context"));
            if facts.http_context_is_archive == Some(true) {
                let mut copy = CopyAction::new(file, join_path(&["/", HTTP_FILE]), "/");
                copy.unpack = true;
                graph.file(&State::scratch(), vec![FileAction::Copy(Box::new(copy))], OpOptions::default())
            } else {
                file
            }
        }
        ContextSource::Input { name } => input(graph, facts, name)?,
    }))
}

/// A git repository as a context. `mtime` asks for files' times to be the commit's, unless the reference says otherwise.
pub(super) fn git_context(
    graph: &mut GraphBuilder,
    reference: &str,
    keep_git_dir: Option<bool>,
    mtime: bool,
) -> Lowered<State> {
    let mut source = parse_git(reference)?.source();
    source.keep_git_dir |= keep_git_dir == Some(true);
    if source.mtime.is_empty() && mtime {
        source.mtime = "commit".to_owned();
    }
    Ok(graph.git(source, OpOptions::internal(&format!("load git source {reference}"))))
}

/// A reference that is a git repository's.
pub(super) fn parse_git(reference: &str) -> Lowered<git::GitReference> {
    git::parse(reference)
        .map_err(|e| LowerError::GitReference(e).nowhere())?
        .ok_or_else(|| LowerError::ContextSpecifier(format!("invalid git context {reference}")).nowhere())
}

/// The file behind a URL that is a context.
pub(super) fn context_file(url: &str) -> HttpSource {
    HttpSource { url: url.to_owned(), filename: Some(HTTP_FILE.to_owned()), ..HttpSource::default() }
}

/// What is left out of a local main context.
fn ignore_patterns(options: &DockerfileOptions, facts: &Facts) -> Lowered<Vec<String>> {
    match (&options.context, &facts.dockerignore) {
        (ContextSource::Local(_), Some(file)) => read_patterns(&file.data, &file.name),
        _ => Ok(Vec::new()),
    }
}

pub(super) fn read_patterns(data: &[u8], file: &str) -> Lowered<Vec<String>> {
    read_ignore_file(data).map_err(|problem| LowerError::Ignore { file: file.to_owned(), problem }.nowhere())
}

/// The same, to look paths up in.
pub(super) fn ignore_matcher(options: &DockerfileOptions, facts: &Facts) -> Lowered<Option<PatternMatcher>> {
    let patterns = ignore_patterns(options, facts)?;
    if patterns.is_empty() {
        return Ok(None);
    }
    let file = facts.dockerignore.as_ref().map_or(DOCKERIGNORE, |file| &file.name);
    match PatternMatcher::new(&patterns) {
        Ok(matcher) => Ok(Some(matcher)),
        Err(problem) => Err(LowerError::Ignore { file: file.to_owned(), problem }.nowhere()),
    }
}

/// Which paths to ask the client for; none if all are needed.
pub(super) fn follow_paths(paths: &BTreeSet<String>) -> Vec<String> {
    if paths.contains("/") {
        return Vec::new();
    }
    let mut follow: Vec<String> = paths.iter().map(|path| clean_path(&format!("./{path}"))).collect();
    follow.sort();
    follow
}

impl Lowering<'_> {
    /// Asks what a downloaded context is; false if it is not known yet.
    pub(super) fn need_context_kind(&mut self) -> bool {
        let ContextSource::Http { url } = &self.options.context else { return true };
        if self.facts.http_context_is_archive.is_some() {
            return true;
        }
        self.needs.push(Need::HttpContextKind { url: url.clone() });
        false
    }

    /// All paths are known now: says what the main context and the local named ones are.
    pub(super) fn resolve_contexts(&mut self, reachable: &BTreeSet<usize>) -> Lowered<()> {
        let state = match remote_context(&mut self.graph, self.options, self.facts)? {
            Some(state) => self.scope_to_subdir(state),
            None => self.main_local_context(reachable)?,
        };
        let context = self.context.clone();
        self.graph.resolve(&context, &state);
        self.resolve_local_contexts();
        Ok(())
    }

    fn main_local_context(&mut self, reachable: &BTreeSet<usize>) -> Lowered<State> {
        let ContextSource::Local(local) = &self.options.context else {
            unreachable!("remote_context gives every other kind")
        };
        let paths = reachable.iter().flat_map(|index| self.stages[*index].context_paths.iter().cloned());
        let paths: BTreeSet<String> = paths.collect();
        let hint = local.shared_key_hint.clone().unwrap_or_else(|| local.name.clone());
        let source = LocalSource {
            follow_paths: follow_paths(&paths),
            exclude_patterns: ignore_patterns(self.options, self.facts)?,
            ..local_source(self.options, local, hint)
        };
        Ok(self.graph.local(source, OpOptions::internal("load build context")))
    }

    fn scope_to_subdir(&mut self, state: State) -> State {
        let Some(dir) = &self.options.context_subdir else { return state };
        let mut copy = CopyAction::new(state, dir.clone(), "/");
        copy.contents_only = true;
        self.graph.file(&State::scratch(), vec![FileAction::Copy(Box::new(copy))], OpOptions::default())
    }
}
