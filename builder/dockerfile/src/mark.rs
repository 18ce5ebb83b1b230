//! Which words of a Dockerfile an error is about, and what should stand there instead.

use crate::excerpt::{Mark, excerpt};
use crate::instructions::MountError;
use crate::lower::LowerError;
use crate::parser::SyntaxError;
use crate::shell::{WordError, WordProblem};
use crate::{Error, LineRange};

impl Error {
    /// The words at fault, when they are known. They may be written otherwise, where a variable gave them.
    pub fn mark(&self) -> Option<Mark> {
        match self {
            Error::Syntax { problem, .. } | Error::Instruction { problem, .. } => of_syntax(problem),
            Error::CheckOptions { .. } => Some(mark("check", "expected skip=…, error=… or experimental=…")),
            Error::Word(problem) => Some(of_word(problem)),
            Error::Mount(problem) => of_mount(problem),
            Error::Lower { problem, .. } => of_lowering(problem),
            _ => None,
        }
    }

    /// The lines at fault, and what is around them in the Dockerfile `text` that is called `name`: one excerpt after the other, if they are in several
    /// places. Empty where no line is at fault.
    pub fn excerpt(&self, name: &str, text: &str) -> String {
        let mark = self.mark();
        self.places().iter().map(|place| excerpt(name, text, &[*place], mark.as_ref())).collect()
    }

    /// The source lines at fault, all of them.
    pub fn places(&self) -> Vec<LineRange> {
        match self {
            Error::Lower { lines, .. } => lines.clone(),
            other => other.lines().into_iter().collect(),
        }
    }
}

fn mark(token: impl Into<String>, note: &str) -> Mark {
    Mark { token: token.into(), last: false, note: note.to_owned() }
}

fn last(token: impl Into<String>, note: &str) -> Mark {
    Mark { last: true, ..mark(token, note) }
}

/// `expected a, b or c`.
fn one_of<S: AsRef<str>>(options: &[S]) -> String {
    let options: Vec<&str> = options.iter().map(AsRef::as_ref).collect();
    match &options[..] {
        [] => String::new(),
        [only] => format!("expected {only}"),
        [most @ .., end] => format!("expected {} or {end}", most.join(", ")),
    }
}

/// What Go quotes in its messages.
fn quoted(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once('"')?;
    rest.split_once('"').map(|(value, _)| value)
}

fn of_syntax(problem: &SyntaxError) -> Option<Mark> {
    use SyntaxError as E;
    const NAME: &str = "expected a letter, then letters, digits, '-', '_' or '.'";
    Some(match problem {
        E::UnknownInstruction { name, suggestion } => match suggestion {
            Some(word) => mark(name, &format!("expected an instruction, such as {word}")),
            None => mark(name, "expected an instruction"),
        },
        E::UnknownFlag { name, known, .. } => {
            let known: Vec<String> = known.iter().map(|name| format!("--{name}")).collect();
            let note = if known.is_empty() { "expected no flag".to_owned() } else { one_of(&known) };
            mark(format!("--{name}"), &note)
        }
        E::DuplicateFlag(name) => last(format!("--{name}"), "expected once"),
        E::FlagWithoutValue(name) => mark(format!("--{name}"), &format!("expected --{name}=…")),
        E::FlagNotBoolean { value, .. } => mark(value, &one_of(&["true", "false"])),
        E::InvalidEscape(value) => mark(value, "expected \\ or `"),
        E::DuplicateDirective(name) => mark(*name, "expected once"),
        E::NoEquals(word) => mark(word, "expected name=value"),
        E::TwoArguments(keyword) => mark(*keyword, "expected name=value"),
        E::BlankName(_) => mark("=", "expected a name before"),
        E::StageName(name) => mark(name, NAME),
        E::FromArguments => mark("FROM", "expected an image or a stage, and perhaps AS and a name"),
        E::AtLeastOneArgument(keyword) => mark(*keyword, "expected an argument"),
        E::ExactlyOneArgument(keyword) => mark(*keyword, "expected one argument"),
        E::NoDestination(keyword) => mark(*keyword, "expected sources and a destination"),
        E::HeredocAsDestination(_) => last("<<", "expected a path"),
        E::ChainedOnbuild => last("ONBUILD", "expected another instruction"),
        E::OnbuildTrigger(keyword) => last(*keyword, "expected another instruction"),
        E::HealthcheckNoneArguments => mark("NONE", "expected nothing behind it"),
        E::HealthcheckNoCommand => mark("CMD", "expected a command"),
        E::HealthcheckType(kind) => mark(kind, &one_of(&["CMD", "NONE"])),
        E::IntervalTooShort(name) => mark(format!("--{name}"), "expected 0 or at least 1ms"),
        E::Duration(message) => mark(quoted(message)?, "expected a duration, such as 1m30s"),
        E::NegativeRetries(number) => mark(number.to_string(), "expected a number"),
        E::Retries { value, .. } => mark(value, "expected a number"),
        E::Network(value) => mark(value, &one_of(&["default", "none", "host"])),
        E::Security(value) => mark(value, &one_of(&["sandbox", "insecure"])),
        E::ShellNotJson => mark("SHELL", "expected a JSON array, such as [\"/bin/sh\", \"-c\"]"),
        E::JsonNotStrings => mark("[", "expected strings only"),
        E::EmptyVolume => mark("\"\"", "expected a path"),
        E::UnterminatedHeredoc => mark("<<", "expected its end, a line with this word alone"),
        E::Word(problem) => of_word(problem),
        E::Mount(problem) => return of_mount(problem),
        _ => return None,
    })
}

fn of_word(problem: &WordError) -> Mark {
    match &problem.problem {
        WordProblem::Required { name, .. } => mark(format!("${{{name}"), "expected a value for it"),
        WordProblem::OpenBrace => last("${", "expected } behind it"),
        WordProblem::OpenSingleQuote => mark("'", "expected another ' behind it"),
        WordProblem::OpenDoubleQuote => mark("\"", "expected another \" behind it"),
        _ => mark(&problem.word, ""),
    }
}

fn of_mount(problem: &MountError) -> Option<Mark> {
    use MountError as E;
    Some(match problem {
        E::NotAPair(field) => mark(field, "expected key=value"),
        E::VariableInFrom => mark("from=", "expected the name of a stage or an image"),
        E::KeyNotForType { key, kind } => mark(key, &format!("expected no {key} for type={kind}")),
        E::UnknownKey { key, suggestion, .. } => match suggestion {
            Some(word) => mark(key, &format!("expected an option of mounts, such as {word}")),
            None => mark(key, "expected an option of mounts"),
        },
        E::UnknownType { value, .. } => mark(value, &one_of(&["bind", "cache", "tmpfs", "secret", "ssh"])),
        E::UnknownSharing { value, .. } => mark(value, &one_of(&["shared", "private", "locked"])),
        E::InvalidValue { key, value } if key == "size" => mark(value, "expected a size, such as 64m"),
        E::InvalidValue { value, .. } => mark(value, &one_of(&["true", "false"])),
        E::InvalidNumber { value, .. } => mark(value, "expected a number"),
        E::OwnerNotAllowed { key, kind } => mark(*key, &format!("expected no {key} for type={kind}")),
        E::SecretWithFrom => mark("from", ""),
        E::SecretWithSharing | E::SharingNotAllowed(_) => mark("sharing", "expected for type=cache only"),
        E::SecretWithoutName => mark("type=secret", "expected id=… behind it"),
        E::SecretWithTwoNames => mark("source", "expected no id=… beside it"),
        E::DeviceNamedTwice(_) => last("name", "expected once"),
        E::Csv { .. } => mark("\"", "expected around a whole field"),
        E::Word(problem) => of_word(problem),
    })
}

fn of_lowering(problem: &LowerError) -> Option<Mark> {
    use LowerError as E;
    Some(match problem {
        E::BlankBase(expression) => mark(expression, "expected an image or a stage"),
        E::BlankPlatform { expression, .. } | E::Platform { expression, .. } => {
            mark(expression, "expected a platform, such as linux/amd64")
        }
        E::StageName { name, .. } => mark(name, "expected an image or a stage"),
        E::NoBase { name, .. } => mark(name, "expected an image or a stage"),
        E::StageIndex(number) => mark(number.to_string(), "expected the number of a stage"),
        E::VariableInFrom => mark("--from", "expected the name of a stage or an image"),
        E::CopyFromLater { from, .. } | E::MountFromLater { from, .. } => {
            mark(from, "expected a stage above this one")
        }
        E::MountTarget(target) => mark(target, "expected a path below /"),
        E::SshSource => mark("source", "expected no source for type=ssh"),
        E::Chmod(mode) => mark(mode, "expected an octal number up to 7777"),
        E::ChmodSymbolic(mode) => mark(mode, "expected a mode, such as 644 or u=rw,go=r"),
        E::Checksum(_) => mark("--checksum", ""),
        E::ChecksumMismatch { flag, .. } => mark(flag, ""),
        E::ChecksumFormat(_) => mark("--checksum", "expected sha256: and 64 hexadecimal digits"),
        E::KeepGitDir => mark("--keep-git-dir", ""),
        E::EmptyVolume => mark("\"\"", "expected a path"),
        E::Signal(signal) => mark(signal, "expected a signal, such as SIGTERM or 15"),
        // The value stands at the end of all these messages.
        E::Port(message) => {
            mark(message.rsplit(": ").next()?, "expected a port, such as 80, 80/udp or 80-90")
        }
        E::Word(problem) => of_word(problem),
        E::Mount(problem) => return of_mount(problem),
        _ => return None,
    })
}
