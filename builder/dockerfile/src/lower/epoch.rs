//! `SOURCE_DATE_EPOCH`: a number, or what has a time: the main context, a named context, or a stage that is nothing but one download.

use lapstrake_builder_llb::{EnvList, GraphBuilder, HttpSource, OpOptions, State};
use lapstrake_layerstore_oci::{Digest, Reference};

use super::context::{context_file, marshal, parse_git};
use super::{LowerError, Lowered, Lowering, git};
use crate::facts::{EpochSource, Need, NeedDefinition};
use crate::instructions::{Add, Instruction, Stage};
use crate::options::ContextSource;

const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// What a stage has to be like whose time is asked for.
const ONE_ADD: &str = "SOURCE_DATE_EPOCH stage must contain exactly one remote ADD";
const ONE_SOURCE: &str = "SOURCE_DATE_EPOCH stage must contain exactly one remote ADD source";

/// A source that may have a time.
enum Timed {
    Git(Box<git::GitReference>),
    Http(HttpSource),
    /// What has none: directories and images.
    Never,
}

impl Lowering<'_> {
    /// Finds out `SOURCE_DATE_EPOCH`; false if something is needed for that.
    pub(super) fn resolve_epoch(&mut self) -> Lowered<bool> {
        let global = self.global_args.get(EPOCH).filter(|value| !value.is_empty());
        let Some(value) = self.build_args.get(EPOCH).map(String::as_str).or(global) else { return Ok(true) };
        let value = value.to_owned();
        self.epoch = match value.as_str() {
            "" => None,
            _ => match (parse_number(&value)?, self.facts.epochs.get(&value)) {
                (Some(epoch), _) => Some(epoch),
                (None, Some(known)) => *known,
                (None, None) => match self.epoch_need(&value)? {
                    None => None,
                    Some(need) => {
                        self.needs.push(need);
                        return Ok(false);
                    }
                },
            },
        };
        // From here on the argument is the number, however it was given.
        let text = self.epoch.map(|epoch| epoch.to_string());
        if self.build_args.contains_key(EPOCH) {
            match &text {
                Some(text) => self.build_args.insert(EPOCH.to_owned(), text.clone()),
                None => self.build_args.remove(EPOCH),
            };
        }
        if self.global_args.get(EPOCH).is_some() {
            match &text {
                Some(text) => self.global_args.set(EPOCH, text),
                None => self.global_args.remove(EPOCH),
            }
        }
        Ok(true)
    }

    /// What must be found out to know the time that `value` names; `None` if that has no time.
    fn epoch_need(&self, value: &str) -> Lowered<Option<Need>> {
        let timed = match self.epoch_context(value)? {
            Some(timed) => timed,
            None => self.epoch_stage(value)?,
        };
        let mut graph = GraphBuilder::new();
        let (state, source) = match timed {
            Timed::Never => return Ok(None),
            Timed::Git(git) => {
                let mut source = git.source();
                // Files as old as the commit tell its time.
                source.mtime = "commit".to_owned();
                let name = format!("load git source {}", source.remote);
                (graph.git(source, OpOptions::internal(&name)), EpochSource::Commit)
            }
            Timed::Http(http) => {
                let file = http.filename.clone().unwrap_or_default();
                let name = format!("resolve SOURCE_DATE_EPOCH source {value}");
                (graph.http(http, OpOptions::internal(&name)), EpochSource::Download { file })
            }
        };
        let definition = self.epoch_definition(&graph, &state)?;
        Ok(Some(Need::Epoch { value: value.to_owned(), definition, source }))
    }

    fn epoch_definition(&self, graph: &GraphBuilder, state: &State) -> Lowered<Box<NeedDefinition>> {
        Ok(Box::new(NeedDefinition::new(&marshal(graph, state, self.options)?)))
    }

    /// The main context or a named one; `None` if `value` names none.
    fn epoch_context(&self, value: &str) -> Lowered<Option<Timed>> {
        if value == "context" {
            return Ok(Some(match &self.options.context {
                ContextSource::Git { reference, keep_git_dir } => {
                    let mut git = parse_git(reference)?;
                    git.keep_git_dir = keep_git_dir.filter(|keep| *keep).or(git.keep_git_dir);
                    Timed::Git(Box::new(git))
                }
                ContextSource::Http { url } => Timed::Http(context_file(url)),
                ContextSource::Local(_) => Timed::Never,
                ContextSource::Input { .. } => return Err(of_input(value)),
            }));
        }
        if let Err(error) = Reference::parse(value) {
            let problem = error.to_string();
            return Err(LowerError::ContextName { name: value.to_owned(), problem }.nowhere());
        }
        let Some(specifier) = self.named_specifier(value) else { return Ok(None) };
        let Some((kind, _)) = specifier.split_once(':') else {
            let problem = format!("invalid context specifier {specifier} for {value}");
            return Err(LowerError::ContextSpecifier(problem).nowhere());
        };
        Ok(Some(match kind {
            "local" | "docker-image" | "oci-layout" => Timed::Never,
            "input" => return Err(of_input(value)),
            _ if git::is_git(specifier) => Timed::Git(Box::new(parse_git(specifier)?)),
            "http" | "https" => Timed::Http(context_file(specifier)),
            kind => {
                let problem = format!("unsupported context source {kind} for {value}");
                return Err(LowerError::ContextSpecifier(problem).nowhere());
            }
        }))
    }

    fn epoch_stage(&self, value: &str) -> Lowered<Timed> {
        let named = |stage: &&Stage| {
            stage.name.as_ref().is_some_and(|name| name.to_lowercase() == value.to_lowercase())
        };
        let Some(stage) = self.dockerfile.stages.iter().find(named) else {
            return Err(LowerError::Epoch(value.to_owned()).nowhere());
        };
        self.only_download(stage).map_err(|problem| problem.at(stage.source.lines))
    }

    /// The one download of a stage that does nothing else.
    fn only_download(&self, stage: &Stage) -> Result<Timed, LowerError> {
        let mut env = self.global_args.clone();
        env.remove(EPOCH);
        let expand = |word: &str, env: &EnvList| match self.lexer.expand(word, env) {
            Ok(expansion) => Ok(expansion.value),
            Err(error) => Err(LowerError::Word(error)),
        };
        if expand(&stage.base, &env)? != "scratch" {
            return Err(LowerError::EpochStage("SOURCE_DATE_EPOCH stage must use FROM scratch".to_owned()));
        }
        let mut found = None;
        for command in &stage.commands {
            match &command.instruction {
                Instruction::Arg(arg) => {
                    for declaration in &arg.declarations {
                        let given = self.build_args.get(&declaration.key).cloned();
                        let value = match (given, &declaration.value) {
                            (Some(given), _) => given,
                            (None, Some(default)) => expand(default, &env)?,
                            (None, None) => continue,
                        };
                        env.set(&declaration.key, &value);
                    }
                }
                Instruction::Add(_) if found.is_some() => {
                    return Err(LowerError::EpochStage(ONE_ADD.to_owned()));
                }
                Instruction::Add(add) => {
                    let expand = |word: &str| expand(word, &env);
                    found = Some(download(add, &expand)?);
                }
                _ => {
                    let keyword = &command.source.keyword;
                    return Err(LowerError::EpochStage(format!(
                        "SOURCE_DATE_EPOCH stage does not meet source-only requirements: unsupported {keyword} instruction"
                    )));
                }
            }
        }
        found.ok_or_else(|| LowerError::EpochStage(ONE_ADD.to_owned()))
    }
}

fn download(add: &Add, expand: &dyn Fn(&str) -> Result<String, LowerError>) -> Result<Timed, LowerError> {
    let ([source], []) = (&add.transfer.sources[..], &add.transfer.inline_files[..]) else {
        return Err(LowerError::EpochStage(ONE_SOURCE.to_owned()));
    };
    let url = expand(source)?;
    let checksum = add.checksum.as_deref().map(expand).transpose()?;
    let git = git::parse(&url).map_err(LowerError::GitReference)?;
    if let Some(mut git) = git.filter(|git| !git.could_be_path) {
        git.keep_git_dir = git.keep_git_dir.or(add.keep_git_dir);
        if let Some(checksum) = checksum {
            git.checksum = checksum;
        }
        return Ok(Timed::Git(Box::new(git)));
    }
    if !git::is_http(&url) {
        let what = "SOURCE_DATE_EPOCH stage source must be a single HTTP(S) or Git ADD";
        return Err(LowerError::EpochStage(what.to_owned()));
    }
    let checksum = checksum.as_deref().map(Digest::parse).transpose();
    Ok(Timed::Http(HttpSource {
        filename: Some(git::url_file_name(&url).unwrap_or_else(|| "__unnamed__".to_owned())),
        checksum: checksum.map_err(|error| LowerError::ChecksumFormat(error.to_string()))?,
        url,
        ..HttpSource::default()
    }))
}

/// As a number of seconds; `None` if it is none. An error if no image config can hold that time.
fn parse_number(value: &str) -> Lowered<Option<i64>> {
    let Ok(epoch) = value.parse() else { return Ok(None) };
    match time::OffsetDateTime::from_unix_timestamp(epoch) {
        Ok(_) => Ok(Some(epoch)),
        Err(_) => Err(LowerError::Epoch(value.to_owned()).nowhere()),
    }
}

fn of_input(value: &str) -> crate::Error {
    LowerError::Unsupported(format!("SOURCE_DATE_EPOCH={value}: the time of a frontend input")).nowhere()
}
