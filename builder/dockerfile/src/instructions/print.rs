//! Canonical text: upper-case keywords, one line per instruction, heredocs below it.
//!
//! Reading the text gives the same tree again, but for source positions. What the tree keeps raw is printed raw.

use std::fmt::{self, Write as _};

use super::{
    Add, Arg, CommandLine, Copy, Device, Dockerfile, Healthcheck, Heredoc, InlineFile, Instruction, KeyValue,
    Network, PairStyle, Run, Security, SourceText, Stage, Transfer,
};
use crate::parser::{EscapeToken, heredocs_of_line};
use crate::text::format_duration;

/// The Dockerfile in canonical form. Of its comments only those right above instructions are in it, and of its directives only `escape`.
impl fmt::Display for Dockerfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.escape == EscapeToken::Backtick {
            writeln!(f, "# escape=`")?;
        }
        // An empty line ends the directives: a comment that looks like one must not become one.
        writeln!(f)?;
        for meta in &self.meta_args {
            write_comments(f, &meta.source)?;
            f.write_str(&Instruction::Arg(meta.arg.clone()).to_text(self.escape))?;
        }
        for stage in &self.stages {
            write_comments(f, &stage.source)?;
            f.write_str(&stage.header_text(self.escape))?;
            for command in &stage.commands {
                write_comments(f, &command.source)?;
                f.write_str(&command.instruction.to_text(self.escape))?;
            }
        }
        Ok(())
    }
}

fn write_comments(f: &mut fmt::Formatter<'_>, source: &SourceText) -> fmt::Result {
    source.comments.iter().try_for_each(|comment| writeln!(f, "# {comment}"))
}

impl Stage {
    /// The `FROM` line in canonical form, with its line end.
    fn header_text(&self, escape: EscapeToken) -> String {
        let mut line = Line::new("FROM", escape);
        line.optional_flag("platform", &self.platform);
        line.argument(&self.base);
        if let Some(name) = &self.name {
            line.argument("AS");
            line.argument(name);
        }
        line.finish()
    }
}

impl Instruction {
    /// The instruction in canonical form, with its heredocs and its line end.
    pub fn to_text(&self, escape: EscapeToken) -> String {
        match self {
            Instruction::Add(add) => add.to_text(escape),
            Instruction::Arg(arg) => arg.to_text(escape),
            Instruction::Cmd(cmd) => command_text("CMD", &cmd.command, escape),
            Instruction::Copy(copy) => copy.to_text(escape),
            Instruction::Entrypoint(entrypoint) => command_text("ENTRYPOINT", &entrypoint.command, escape),
            Instruction::Env(env) => pairs_text("ENV", &env.pairs, escape),
            Instruction::Expose(expose) => words_text("EXPOSE", &expose.ports, escape),
            Instruction::Healthcheck(check) => check.to_text(escape),
            Instruction::Label(label) => pairs_text("LABEL", &label.pairs, escape),
            Instruction::Maintainer(maintainer) => one_text("MAINTAINER", &maintainer.maintainer, escape),
            // The expression keeps its flags and its heredocs; it is text as it stands.
            Instruction::Onbuild(onbuild) => format!("ONBUILD {}\n", onbuild.expression),
            Instruction::Run(run) => run.to_text(escape),
            Instruction::Shell(shell) => one_text("SHELL", &json(&shell.shell), escape),
            Instruction::StopSignal(stop) => one_text("STOPSIGNAL", &stop.signal, escape),
            Instruction::User(user) => one_text("USER", &user.user, escape),
            Instruction::Volume(volume) => one_text("VOLUME", &json(&volume.paths), escape),
            Instruction::Workdir(workdir) => one_text("WORKDIR", &workdir.path, escape),
        }
    }
}

/// A line that is being written.
struct Line {
    text: String,
    escape: char,
    has_arguments: bool,
}

impl Line {
    fn new(keyword: &str, escape: EscapeToken) -> Line {
        Line { text: keyword.to_owned(), escape: escape.as_char(), has_arguments: false }
    }

    fn flag(&mut self, name: &str, value: &str) {
        let special = |ch: char| ch.is_whitespace() || ch == '\'' || ch == '"' || ch == self.escape;
        if !value.contains(special) {
            let _infallible = write!(self.text, " --{name}={value}");
            return;
        }
        // Single quotes, since they hide their content from the flag's reader and from the shell's alike, whatever the escape is.
        let _infallible = write!(self.text, " --{name}='");
        for ch in value.chars() {
            if ch == '\'' {
                self.text.push_str("'\"'\"'");
                continue;
            }
            if ch == self.escape {
                self.text.push(ch);
            }
            self.text.push(ch);
        }
        self.text.push('\'');
    }

    fn optional_flag(&mut self, name: &str, value: &Option<String>) {
        if let Some(value) = value {
            self.flag(name, value);
        }
    }

    fn boolean(&mut self, name: &str, value: Option<bool>) {
        if let Some(value) = value {
            self.flag(name, if value { "true" } else { "false" });
        }
    }

    fn argument(&mut self, text: &str) {
        if !self.has_arguments && text.starts_with("--") {
            self.text.push_str(" --");
        }
        self.has_arguments = true;
        // With one space alone, a `\\` would make the shell's eye miss a heredoc.
        self.text.push_str(if self.text.ends_with('\\') { "  " } else { " " });
        self.text.push_str(text);
    }

    fn finish(mut self) -> String {
        // A lone escape at the end would continue the line. It got there before some white space that is no space or tab.
        let ends_open =
            self.text.strip_suffix(self.escape).is_some_and(|start| !start.ends_with(self.escape));
        self.text.push_str(if ends_open { "\u{b}\n" } else { "\n" });
        self.text
    }

    fn finish_with_heredocs(self, body: impl Fn(usize, &str) -> String) -> String {
        let mut text = self.finish();
        let words = heredocs_of_line(text.trim_end_matches('\n')).unwrap_or_default();
        for (index, word) in words.iter().enumerate() {
            text.push_str(&body(index, &word.name));
            text.push_str(&word.name);
            text.push('\n');
        }
        text
    }
}

fn one_text(keyword: &str, text: &str, escape: EscapeToken) -> String {
    let mut line = Line::new(keyword, escape);
    line.argument(text);
    line.finish()
}

fn words_text(keyword: &str, words: &[String], escape: EscapeToken) -> String {
    let mut line = Line::new(keyword, escape);
    words.iter().for_each(|word| line.argument(word));
    line.finish()
}

fn pairs_text(keyword: &str, pairs: &[KeyValue], escape: EscapeToken) -> String {
    let mut line = Line::new(keyword, escape);
    for pair in pairs {
        let separator = match pair.style {
            PairStyle::Equals => '=',
            PairStyle::Legacy => ' ',
        };
        line.argument(&format!("{}{separator}{}", pair.key, pair.value));
    }
    line.finish()
}

fn command_argument(line: &mut Line, command: &CommandLine) {
    match command {
        CommandLine::Shell(text) if text.is_empty() => {}
        CommandLine::Shell(text) => line.argument(text),
        CommandLine::Exec(words) => line.argument(&json(words)),
    }
}

fn command_text(keyword: &str, command: &CommandLine, escape: EscapeToken) -> String {
    let mut line = Line::new(keyword, escape);
    command_argument(&mut line, command);
    line.finish()
}

fn json(words: &[String]) -> String {
    serde_json::to_string(words).expect("strings are always JSON")
}

impl Arg {
    fn to_text(&self, escape: EscapeToken) -> String {
        let word = |key: &str, value: &Option<String>| match value {
            Some(value) => format!("{key}={value}"),
            None => key.to_owned(),
        };
        let words: Vec<_> = self.declarations.iter().map(|arg| word(&arg.key, &arg.value)).collect();
        words_text("ARG", &words, escape)
    }
}

impl Add {
    fn to_text(&self, escape: EscapeToken) -> String {
        let mut line = Line::new("ADD", escape);
        line.optional_flag("chown", &self.chown);
        line.optional_flag("chmod", &self.chmod);
        line.boolean("link", self.link.then_some(true));
        line.boolean("keep-git-dir", self.keep_git_dir);
        line.optional_flag("checksum", &self.checksum);
        line.boolean("unpack", self.unpack);
        self.excludes.iter().for_each(|pattern| line.flag("exclude", pattern));
        self.transfer.finish(line)
    }
}

impl Copy {
    fn to_text(&self, escape: EscapeToken) -> String {
        let mut line = Line::new("COPY", escape);
        line.optional_flag("from", &self.from);
        line.optional_flag("chown", &self.chown);
        line.optional_flag("chmod", &self.chmod);
        line.boolean("link", self.link.then_some(true));
        line.boolean("parents", self.parents.then_some(true));
        self.excludes.iter().for_each(|pattern| line.flag("exclude", pattern));
        self.transfer.finish(line)
    }
}

impl Transfer {
    fn finish(&self, mut line: Line) -> String {
        // Heredocs first: further back, a quote or a `\\` in a path could hide them from the shell's eye.
        let files = self.inline_files.iter().map(heredoc_text);
        let words: Vec<_> =
            files.chain(self.sources.iter().cloned()).chain([self.destination.clone()]).collect();
        if self.json {
            line.argument(&json(&words));
            return line.finish();
        }
        if serde_json::from_str::<Vec<serde_json::Value>>(&words.join(" ")).is_ok() {
            // No JSON when they were read: white space that JSON does not have was between them.
            line.argument(&words.join("\u{b}"));
        } else {
            words.iter().for_each(|word| line.argument(word));
        }
        // A body that belongs to no file is there all the same if the shell would see a heredoc in the line.
        line.finish_with_heredocs(|_, name| {
            let file = self.inline_files.iter().find(|file| file.name == name);
            file.map(|file| file.data.clone()).unwrap_or_default()
        })
    }
}

/// `<<NAME`, such that it is read as that name and that will to expand.
fn heredoc_text(file: &InlineFile) -> String {
    let special: fn(char) -> bool = match file.expand {
        true => |ch| ch.is_whitespace() || matches!(ch, '\\' | '\'' | '"' | '$' | '-'),
        false => |ch| matches!(ch, '\\' | '"' | '$'),
    };
    let mut name = String::new();
    for ch in file.name.chars() {
        if special(ch) {
            name.push('\\');
        }
        name.push(ch);
    }
    if file.expand { format!("<<{name}") } else { format!("<<\"{name}\"") }
}

impl Run {
    fn to_text(&self, escape: EscapeToken) -> String {
        let mut line = Line::new("RUN", escape);
        for flag in &self.flags_used {
            match flag.as_str() {
                "mount" => self.mounts.iter().for_each(|mount| line.flag(flag, mount.raw())),
                "device" => self.devices.iter().for_each(|device| line.flag(flag, &device.to_text())),
                "network" => line.flag(flag, self.network.as_str()),
                "security" => line.flag(flag, self.security.as_str()),
                _ => {}
            }
        }
        command_argument(&mut line, &self.command);
        if matches!(self.command, CommandLine::Exec(_)) {
            return line.finish();
        }
        line.finish_with_heredocs(|index, _| {
            self.heredocs.get(index).map(|heredoc| heredoc.content.clone()).unwrap_or_default()
        })
    }
}

impl Network {
    /// The mode's name in a Dockerfile.
    pub fn as_str(self) -> &'static str {
        match self {
            Network::Default => "default",
            Network::None => "none",
            Network::Host => "host",
        }
    }
}

impl Security {
    /// The mode's name in a Dockerfile.
    pub fn as_str(self) -> &'static str {
        match self {
            Security::Sandbox => "sandbox",
            Security::Insecure => "insecure",
        }
    }
}

impl Heredoc {
    /// The content, without the tabs that `<<-` drops.
    pub fn body(&self) -> std::borrow::Cow<'_, str> {
        match self.strip_tabs {
            true => crate::parser::strip_leading_tabs(&self.content).into(),
            false => self.content.as_str().into(),
        }
    }
}

impl Device {
    fn to_text(&self) -> String {
        let name = format!("name={}", self.name);
        let name =
            if name.contains([',', '"']) { format!("\"{}\"", name.replace('"', "\"\"")) } else { name };
        match (self.name.is_empty(), self.required) {
            (true, _) => format!("required={}", self.required),
            (false, true) => format!("{name},required"),
            (false, false) => name,
        }
    }
}

impl Healthcheck {
    fn to_text(&self, escape: EscapeToken) -> String {
        let mut line = Line::new("HEALTHCHECK", escape);
        let Healthcheck::Check { command, options } = self else {
            line.argument("NONE");
            return line.finish();
        };
        for (name, duration) in [
            ("interval", options.interval),
            ("timeout", options.timeout),
            ("start-period", options.start_period),
            ("start-interval", options.start_interval),
        ] {
            line.optional_flag(name, &duration.map(format_duration));
        }
        line.optional_flag("retries", &options.retries.map(|retries| retries.to_string()));
        line.argument("CMD");
        command_argument(&mut line, command);
        line.finish()
    }
}
