//! From divided lines to typed instructions.

use super::flags::{Flags, Takes};
use super::{
    Add, Arg, ArgDeclaration, Cmd, Command, CommandLine, Copy, Device, Dockerfile, Entrypoint, Env, Expose,
    HealthOptions, Healthcheck, InlineFile, Instruction, KeyValue, Label, Maintainer, MetaArg, MountSpec,
    Network, Onbuild, Run, Security, Shell, SourceText, Stage, StopSignal, Transfer, User, Volume, Workdir,
};
use crate::error::Error;
use crate::lint::{self, Reporter, Rule, is_lower, is_upper};
use crate::location::LineRange;
use crate::parser::{
    Arguments, EscapeToken, ParsedLine, SyntaxError, check_directive, heredoc_word, parse_document,
    strip_leading_tabs,
};
use crate::text::{parse_duration, suggestion_any_case};

const KEYWORDS: &[&str] = &[
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// Reads a file; what is doubtful is told, however far it was understood.
pub(super) fn dockerfile(
    file: &[u8],
    lint: Option<lint::Config>,
    warnings: &mut Vec<lint::Warning>,
) -> Result<Dockerfile, Error> {
    if file.is_empty() {
        return Err(Error::Empty);
    }
    let config = match lint {
        Some(config) => config,
        None => {
            let (check, line) = check_directive(file).unwrap_or_default();
            let failed = |problem| Error::CheckOptions { problem, lines: LineRange::line(line) };
            lint::Config::parse(&check).map_err(failed)?
        }
    };
    let mut reporter = Reporter { config, warnings: Vec::new() };
    let result = parse(file, &mut reporter);
    warnings.clone_from(&reporter.warnings);
    let Parsed { escape, meta_args, stages } = result?;
    Ok(Dockerfile { escape, meta_args, stages, warnings: reporter.warnings, lint: reporter.config })
}

struct Parsed {
    escape: EscapeToken,
    meta_args: Vec<MetaArg>,
    stages: Vec<Stage>,
}

fn parse(file: &[u8], reporter: &mut Reporter) -> Result<Parsed, Error> {
    let config = reporter.config.clone();
    let document = parse_document(file)?;
    for line in document.empty_continuations {
        let message = "Empty continuation line".to_owned();
        reporter.report(&config, Rule::NoEmptyContinuation, LineRange::line(line), message);
    }
    let mut meta_args = Vec::new();
    let mut stages: Vec<Stage> = Vec::new();
    for line in document.instructions {
        let lines = line.lines;
        let local = if line.comments.is_empty() { None } else { Some(config.with_comments(&line.comments)) };
        let local = local.as_ref().unwrap_or(&config);
        warn(&line, local, reporter);
        let undescribed = undescribed(&line);
        let unit = unit(line).map_err(|problem| Error::Instruction { problem, lines })?;
        if let Some(message) = undescribed {
            reporter.report(local, Rule::InvalidDefinitionDescription, lines, message);
        }
        match (unit, stages.last_mut()) {
            (Unit::Stage(stage), _) => stages.push(stage),
            (Unit::Command(command), Some(stage)) => stage.commands.push(command),
            (Unit::Command(Command { source, instruction: Instruction::Arg(arg) }), None) => {
                meta_args.push(MetaArg { source, arg });
            }
            (Unit::Command(_), None) => return Err(Error::Syntax { problem: SyntaxError::NoStage, lines }),
        }
    }
    if stages.is_empty() {
        return Err(Error::NoStages);
    }
    reporter.check_stage_names(&stages);
    reporter.check_keyword_casing(&stages);
    Ok(Parsed { escape: document.escape, meta_args, stages })
}

pub(super) fn trigger(expression: &str) -> Result<Command, Error> {
    let mut lines = parse_document(expression.as_bytes())?.instructions;
    let range = lines.first().map_or(LineRange::line(1), |line| line.lines);
    let refuse = |problem| Error::Syntax { problem, lines: range };
    let (Some(line), true) = (lines.pop(), lines.is_empty()) else {
        return Err(refuse(SyntaxError::TriggerNotSingle));
    };
    match unit(line).map_err(refuse)? {
        Unit::Command(command) => Ok(command),
        // ONBUILD refuses it when the image is built; another tool may have let it pass.
        Unit::Stage(_) => Err(refuse(SyntaxError::OnbuildTrigger("FROM"))),
    }
}

enum Unit {
    Stage(Stage),
    Command(Command),
}

fn unit(line: ParsedLine) -> Result<Unit, SyntaxError> {
    let keyword = line.keyword.to_lowercase();
    if keyword == "from" {
        return stage(line).map(Unit::Stage);
    }
    let instruction = match keyword.as_str() {
        "add" => Instruction::Add(add(&line)?),
        "arg" => Instruction::Arg(arg(&line)?),
        "cmd" => Instruction::Cmd(Cmd { command: shell_or_exec(&line)? }),
        "copy" => Instruction::Copy(copy(&line)?),
        "entrypoint" => Instruction::Entrypoint(Entrypoint { command: shell_or_exec(&line)? }),
        "env" => Instruction::Env(Env { pairs: pairs(&line, "ENV")? }),
        "expose" => Instruction::Expose(expose(&line)?),
        "healthcheck" => Instruction::Healthcheck(healthcheck(&line)?),
        "label" => Instruction::Label(Label { pairs: pairs(&line, "LABEL")? }),
        "maintainer" => Instruction::Maintainer(Maintainer { maintainer: one_text(&line, "MAINTAINER")? }),
        "onbuild" => Instruction::Onbuild(onbuild(&line)?),
        "run" => Instruction::Run(run(&line)?),
        "shell" => Instruction::Shell(shell(&line)?),
        // Flags here are nobody's, and BuildKit does not look at them.
        "stopsignal" => Instruction::StopSignal(StopSignal { signal: text(&line, "STOPSIGNAL")? }),
        "user" => Instruction::User(User { user: one_text(&line, "USER")? }),
        "volume" => Instruction::Volume(volume(&line)?),
        "workdir" => Instruction::Workdir(Workdir { path: one_text(&line, "WORKDIR")? }),
        _ => {
            let suggestion = suggestion_any_case(&line.keyword, KEYWORDS);
            return Err(SyntaxError::UnknownInstruction { name: line.keyword, suggestion });
        }
    };
    Ok(Unit::Command(Command { source: source(line), instruction }))
}

fn source(line: ParsedLine) -> SourceText {
    let ParsedLine { keyword, original, lines, comments, .. } = line;
    SourceText { keyword, code: original.trim().to_owned(), lines, comments }
}

/// What is doubtful about a line, before it is known to be right.
fn warn(line: &ParsedLine, config: &lint::Config, reporter: &mut Reporter) {
    let lines = line.lines;
    let words = words(line);
    if line.keyword.eq_ignore_ascii_case("maintainer") {
        let message = "Maintainer instruction is deprecated in favor of using label".to_owned();
        reporter.report(config, Rule::MaintainerDeprecated, lines, message);
    }
    if line.keyword.eq_ignore_ascii_case("from") {
        let [_, as_word, rest @ ..] = words else { return };
        if let [name] = rest
            && !is_lower(name)
        {
            let message = format!("Stage name '{name}' should be lowercase");
            reporter.report(config, Rule::StageNameCasing, lines, message);
        }
        // A keyword that mixes cases is another rule's concern.
        let from = &line.keyword;
        let differ = (is_lower(from) && !is_lower(as_word)) || (is_upper(from) && !is_upper(as_word));
        if differ && !rest.is_empty() {
            let message = format!("'{as_word}' and '{from}' keywords' casing do not match");
            reporter.report(config, Rule::FromAsCasing, lines, message);
        }
    }
}

/// What is wrong with the comment right above, which should describe what the line defines.
fn undescribed(line: &ParsedLine) -> Option<String> {
    let comment = line.comments.last()?;
    let (instruction, names): (_, Vec<String>) = match (line.keyword.to_lowercase().as_str(), words(line)) {
        ("from", [_, _, name]) => ("FROM", vec![name.to_lowercase()]),
        ("arg", words) => {
            let name = |word: &String| word.split('=').next().unwrap_or_default().to_owned();
            ("ARG", words.iter().map(name).collect())
        }
        _ => return None,
    };
    let first = names.first()?;
    let described = comment.split(' ').next().unwrap_or_default();
    if names.iter().any(|name| name == described) {
        return None;
    }
    let example = if names.len() > 1 { "<arg_key>" } else { first };
    Some(format!("Comment for {instruction} should follow the format: `# {example} <description>`"))
}

fn doc_comment(comments: &[String], name: &str) -> Option<String> {
    let rest = |comment: &String| Some(comment.strip_prefix(name)?.strip_prefix(' ')?.to_owned());
    comments.iter().find_map(rest).filter(|text| !text.is_empty() && !name.is_empty())
}

fn words(line: &ParsedLine) -> &[String] {
    match &line.arguments {
        Arguments::Words(words) | Arguments::Json(words) => words,
        _ => &[],
    }
}

fn stage(line: ParsedLine) -> Result<Stage, SyntaxError> {
    let (base, name) = match words(&line) {
        [base] => (base.clone(), None),
        [base, as_word, name] if as_word.to_lowercase() == "as" => {
            let lower = name.to_lowercase();
            let valid = lower.starts_with(|ch: char| ch.is_ascii_lowercase())
                && lower.chars().all(|ch| matches!(ch, 'a'..='z' | '0'..='9' | '-' | '_' | '.'));
            if !valid {
                return Err(SyntaxError::StageName(name.clone()));
            }
            (base.clone(), Some(lower))
        }
        _ => return Err(SyntaxError::FromArguments),
    };
    let flags = Flags::parse(&line.flags, &[("platform", Takes::Value)])?;
    let doc_comment = name.as_deref().and_then(|name| doc_comment(&line.comments, name));
    let platform = flags.value("platform");
    Ok(Stage { name, base, platform, doc_comment, source: source(line), commands: Vec::new() })
}

fn text(line: &ParsedLine, keyword: &'static str) -> Result<String, SyntaxError> {
    match &line.arguments {
        Arguments::Text(text) if !text.is_empty() => Ok(text.clone()),
        _ => Err(SyntaxError::ExactlyOneArgument(keyword)),
    }
}

fn one_text(line: &ParsedLine, keyword: &'static str) -> Result<String, SyntaxError> {
    let text = text(line, keyword)?;
    Flags::none_allowed(&line.flags)?;
    Ok(text)
}

fn pairs(line: &ParsedLine, keyword: &'static str) -> Result<Vec<KeyValue>, SyntaxError> {
    Flags::none_allowed(&line.flags)?;
    match &line.arguments {
        Arguments::Pairs(pairs) if pairs.iter().any(|pair| pair.key.is_empty()) => {
            Err(SyntaxError::BlankName(keyword))
        }
        Arguments::Pairs(pairs) if !pairs.is_empty() => Ok(pairs.clone()),
        _ => Err(SyntaxError::AtLeastOneArgument(keyword)),
    }
}

fn arg(line: &ParsedLine) -> Result<Arg, SyntaxError> {
    let declaration = |word: &String| {
        let (key, value) = match word.split_once('=') {
            Some(("", _)) => return Err(SyntaxError::BlankName("ARG")),
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (word.as_str(), None),
        };
        Ok(ArgDeclaration { key: key.to_owned(), value, doc_comment: doc_comment(&line.comments, key) })
    };
    // Flags are not looked at, as in BuildKit.
    match words(line) {
        [] => Err(SyntaxError::AtLeastOneArgument("ARG")),
        words => Ok(Arg { declarations: words.iter().map(declaration).collect::<Result<_, _>>()? }),
    }
}

fn transfer(line: &ParsedLine, keyword: &'static str) -> Result<Transfer, SyntaxError> {
    let [words @ .., destination] = words(line) else { return Err(SyntaxError::NoDestination(keyword)) };
    // A word that the shell would not take is no heredoc.
    let heredoc = |word: &str| heredoc_word(word).ok().flatten();
    if heredoc(destination).is_some() {
        return Err(SyntaxError::HeredocAsDestination(keyword));
    }
    let mut transfer = Transfer {
        sources: Vec::new(),
        inline_files: Vec::new(),
        destination: destination.clone(),
        json: matches!(line.arguments, Arguments::Json(_)),
    };
    for word in words {
        let Some(heredoc) = heredoc(word) else {
            transfer.sources.push(word.clone());
            continue;
        };
        // Of two with one name the last is meant. In a JSON array there is no body, and the file is empty.
        let body = line.heredocs.iter().rfind(|body| body.name == heredoc.name);
        let data = body.map_or("", |body| body.content.as_str());
        let data = if heredoc.strip_tabs { strip_leading_tabs(data) } else { data.to_owned() };
        transfer.inline_files.push(InlineFile { name: heredoc.name, data, expand: heredoc.expand });
    }
    Ok(transfer)
}

fn two_words(line: &ParsedLine, keyword: &'static str) -> Result<(), SyntaxError> {
    if words(line).len() < 2 { Err(SyntaxError::NoDestination(keyword)) } else { Ok(()) }
}

fn add(line: &ParsedLine) -> Result<Add, SyntaxError> {
    two_words(line, "ADD")?;
    let flags = Flags::parse(
        &line.flags,
        &[
            ("chown", Takes::Value),
            ("chmod", Takes::Value),
            ("link", Takes::Bool),
            ("keep-git-dir", Takes::Bool),
            ("checksum", Takes::Value),
            ("unpack", Takes::Bool),
            ("exclude", Takes::Values),
        ],
    )?;
    Ok(Add {
        transfer: transfer(line, "ADD")?,
        chown: flags.value("chown"),
        chmod: flags.value("chmod"),
        link: flags.boolean("link").unwrap_or_default(),
        excludes: flags.values("exclude").map(str::to_owned).collect(),
        keep_git_dir: flags.boolean("keep-git-dir"),
        checksum: flags.value("checksum"),
        unpack: flags.boolean("unpack"),
    })
}

fn copy(line: &ParsedLine) -> Result<Copy, SyntaxError> {
    two_words(line, "COPY")?;
    let flags = Flags::parse(
        &line.flags,
        &[
            ("chown", Takes::Value),
            ("from", Takes::Value),
            ("chmod", Takes::Value),
            ("link", Takes::Bool),
            ("exclude", Takes::Values),
            ("parents", Takes::Bool),
        ],
    )?;
    Ok(Copy {
        transfer: transfer(line, "COPY")?,
        from: flags.value("from"),
        chown: flags.value("chown"),
        chmod: flags.value("chmod"),
        link: flags.boolean("link").unwrap_or_default(),
        excludes: flags.values("exclude").map(str::to_owned).collect(),
        parents: flags.boolean("parents").unwrap_or_default(),
    })
}

fn command_line(arguments: &Arguments) -> CommandLine {
    match arguments {
        Arguments::Json(words) => CommandLine::Exec(words.clone()),
        Arguments::Text(text) => CommandLine::Shell(text.clone()),
        _ => CommandLine::Shell(String::new()),
    }
}

fn shell_or_exec(line: &ParsedLine) -> Result<CommandLine, SyntaxError> {
    Flags::none_allowed(&line.flags)?;
    Ok(command_line(&line.arguments))
}

fn run(line: &ParsedLine) -> Result<Run, SyntaxError> {
    let flags = Flags::parse(
        &line.flags,
        &[
            ("mount", Takes::Values),
            ("network", Takes::Value),
            ("security", Takes::Value),
            ("device", Takes::Values),
        ],
    )?;
    let devices = flags.values("device").map(Device::parse).collect::<Result<_, _>>()?;
    let mounts = flags.values("mount").map(MountSpec::new).collect::<Result<_, _>>()?;
    let network = match flags.values("network").next() {
        None | Some("default") => Network::Default,
        Some("none") => Network::None,
        Some("host") => Network::Host,
        Some(other) => return Err(SyntaxError::Network(other.to_owned())),
    };
    let security = match flags.values("security").next() {
        None | Some("sandbox") => Security::Sandbox,
        Some("insecure") => Security::Insecure,
        Some(other) => return Err(SyntaxError::Security(other.to_owned())),
    };
    Ok(Run {
        command: command_line(&line.arguments),
        heredocs: line.heredocs.clone(),
        mounts,
        network,
        security,
        devices,
        flags_used: flags.names(),
    })
}

fn healthcheck(line: &ParsedLine) -> Result<Healthcheck, SyntaxError> {
    let (kind, rest) = match &line.arguments {
        Arguments::Health { kind, rest } if !kind.is_empty() => (kind.to_uppercase(), command_line(rest)),
        _ => return Err(SyntaxError::AtLeastOneArgument("HEALTHCHECK")),
    };
    let is_empty = match &rest {
        CommandLine::Shell(text) => text.is_empty(),
        CommandLine::Exec(words) => words.is_empty(),
    };
    if kind == "NONE" {
        return if is_empty { Ok(Healthcheck::None) } else { Err(SyntaxError::HealthcheckNoneArguments) };
    }
    let names = ["interval", "timeout", "start-period", "start-interval", "retries"];
    let flags = Flags::parse(&line.flags, &names.map(|name| (name, Takes::Value)))?;
    if kind != "CMD" {
        return Err(SyntaxError::HealthcheckType(kind));
    }
    if is_empty {
        return Err(SyntaxError::HealthcheckNoCommand);
    }
    let interval = |name: &'static str| match flags.value(name) {
        None => Ok(None),
        Some(value) => match parse_duration(&value).map_err(SyntaxError::Duration)? {
            (_, duration) if duration.is_zero() => Ok(None),
            (false, duration) if duration.as_millis() >= 1 => Ok(Some(duration)),
            _ => Err(SyntaxError::IntervalTooShort(name)),
        },
    };
    let options = HealthOptions {
        interval: interval("interval")?,
        timeout: interval("timeout")?,
        start_period: interval("start-period")?,
        start_interval: interval("start-interval")?,
        retries: flags.value("retries").map_or(Ok(None), retries)?,
    };
    Ok(Healthcheck::Check { command: rest, options })
}

fn retries(value: String) -> Result<Option<u32>, SyntaxError> {
    let digits = value.strip_prefix(['+', '-']).unwrap_or(&value);
    let reason = if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        "value out of range"
    } else {
        "invalid syntax"
    };
    let number: i32 = value.parse().map_err(|_| SyntaxError::Retries { value, reason })?;
    let number = u32::try_from(number).map_err(|_| SyntaxError::NegativeRetries(number))?;
    Ok(Some(number).filter(|number| *number > 0))
}

fn expose(line: &ParsedLine) -> Result<Expose, SyntaxError> {
    let mut ports = words(line).to_vec();
    if ports.is_empty() {
        return Err(SyntaxError::AtLeastOneArgument("EXPOSE"));
    }
    Flags::none_allowed(&line.flags)?;
    ports.sort();
    Ok(Expose { ports })
}

fn volume(line: &ParsedLine) -> Result<Volume, SyntaxError> {
    let words = words(line);
    if words.is_empty() {
        return Err(SyntaxError::AtLeastOneArgument("VOLUME"));
    }
    Flags::none_allowed(&line.flags)?;
    let paths: Vec<String> = words.iter().map(|path| path.trim().to_owned()).collect();
    if paths.iter().any(String::is_empty) {
        return Err(SyntaxError::EmptyVolume);
    }
    Ok(Volume { paths })
}

fn shell(line: &ParsedLine) -> Result<Shell, SyntaxError> {
    Flags::none_allowed(&line.flags)?;
    match command_line(&line.arguments) {
        CommandLine::Exec(shell) if !shell.is_empty() => Ok(Shell { shell }),
        CommandLine::Shell(text) if !text.is_empty() => Err(SyntaxError::ShellNotJson),
        _ => Err(SyntaxError::AtLeastOneArgument("SHELL")),
    }
}

fn onbuild(line: &ParsedLine) -> Result<Onbuild, SyntaxError> {
    let Arguments::Trigger { keyword, .. } = &line.arguments else {
        return Err(SyntaxError::AtLeastOneArgument("ONBUILD"));
    };
    Flags::none_allowed(&line.flags)?;
    match keyword.to_uppercase().as_str() {
        // No keyword: `ONBUILD` with nothing behind it.
        "" => return Err(SyntaxError::AtLeastOneArgument("ONBUILD")),
        "ONBUILD" => return Err(SyntaxError::ChainedOnbuild),
        "MAINTAINER" => return Err(SyntaxError::OnbuildTrigger("MAINTAINER")),
        "FROM" => return Err(SyntaxError::OnbuildTrigger("FROM")),
        _ => {}
    }
    let space = ['\t', '\n', '\u{c}', '\r', ' '];
    let start = line.original.trim_start_matches(space);
    let mut expression = start.get("ONBUILD".len()..).unwrap_or(start).trim_start_matches(space).to_owned();
    for heredoc in &line.heredocs {
        expression.push('\n');
        expression.push_str(&heredoc.content);
        expression.push_str(&heredoc.name);
    }
    Ok(Onbuild { expression })
}
