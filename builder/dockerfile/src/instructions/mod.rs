//! The typed syntax tree: what a Dockerfile says, before any variable is expanded.
//!
//! ```text
//! bytes ── parser ──► lines ── instructions::parse ──► Dockerfile
//!                                                                         ├ meta_args: Arg*      (before the first FROM)
//!                                                                         ├ stages: Stage*       (FROM and its Command*)
//!                                                                         └ warnings: Warning*
//! ```
//!
//! Words keep their quotes, escapes and variables; [`Instruction::expand`] and [`MountSpec::resolve`] give their values.

mod expand;
mod flags;
mod mount;
mod parse;
mod print;

#[cfg(test)]
mod tests;

pub use expand::Expanders;
pub use mount::{CacheSharing, Device, Mount, MountError, MountSpec, MountType};

use std::time::Duration;

use crate::error::Error;
use crate::lint::{self, Warning};
use crate::location::LineRange;
use crate::parser::EscapeToken;

/// A whole Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dockerfile {
    /// The character that escapes and continues lines (`# escape=`).
    pub escape: EscapeToken,
    /// `ARG`s before the first `FROM`, in order.
    pub meta_args: Vec<MetaArg>,
    /// The stages, in order; at least one.
    pub stages: Vec<Stage>,
    /// What the parser found doubtful and the lint configuration does not hide.
    pub warnings: Vec<Warning>,
    /// The lint configuration in force, for whoever has more to say.
    pub lint: lint::Config,
}

impl Dockerfile {
    /// Reads a Dockerfile. Its own `# check=` says which warnings are wanted.
    pub fn parse(file: &[u8]) -> Result<Dockerfile, Error> {
        parse::dockerfile(file, None, &mut Vec::new())
    }

    /// Reads a Dockerfile, with a lint configuration that replaces its `# check=`.
    pub fn parse_with_lint(file: &[u8], lint: lint::Config) -> Result<Dockerfile, Error> {
        parse::dockerfile(file, Some(lint), &mut Vec::new())
    }

    /// The same, where what is doubtful counts even in a file that cannot be read to its end.
    pub(crate) fn parse_and_warn(
        file: &[u8],
        lint: Option<lint::Config>,
        warnings: &mut Vec<Warning>,
    ) -> Result<Dockerfile, Error> {
        parse::dockerfile(file, lint, warnings)
    }
}

impl Command {
    /// Reads an `ONBUILD` trigger from an image's config. Its line numbers count within the trigger.
    pub fn parse_trigger(expression: &str) -> Result<Command, Error> {
        parse::trigger(expression)
    }
}

/// An `ARG` before the first `FROM`; its values are visible to `FROM` lines only, until a stage redeclares them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaArg {
    /// Where it was written.
    pub source: SourceText,
    /// The declaration itself.
    pub arg: Arg,
}

/// One `FROM` and everything up to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// Name given with `AS`, in lower case.
    pub name: Option<String>,
    /// What the stage starts from: an image reference, an earlier stage, or `scratch`; variables unexpanded.
    pub base: String,
    /// `--platform`, variables unexpanded.
    pub platform: Option<String>,
    /// The rest of a comment `# <name> …` right above the stage.
    pub doc_comment: Option<String>,
    /// The `FROM` line.
    pub source: SourceText,
    /// The stage's instructions.
    pub commands: Vec<Command>,
}

/// One instruction and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Where it was written.
    pub source: SourceText,
    /// What it says.
    pub instruction: Instruction,
}

/// An instruction as the author wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceText {
    /// The keyword in the author's casing.
    pub keyword: String,
    /// The line with continuations joined, comments inside dropped and outer white space trimmed; heredoc bodies are not in it.
    /// This is what `Step` lines show.
    pub code: String,
    /// Source lines, heredoc bodies included.
    pub lines: LineRange,
    /// Comments directly above, without `#` and outer white space.
    pub comments: Vec<String>,
}

/// Everything that can stand in a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instruction {
    /// `ADD`
    Add(Add),
    /// `ARG`
    Arg(Arg),
    /// `CMD`
    Cmd(Cmd),
    /// `COPY`
    Copy(Copy),
    /// `ENTRYPOINT`
    Entrypoint(Entrypoint),
    /// `ENV`
    Env(Env),
    /// `EXPOSE`
    Expose(Expose),
    /// `HEALTHCHECK`
    Healthcheck(Healthcheck),
    /// `LABEL`
    Label(Label),
    /// `MAINTAINER`
    Maintainer(Maintainer),
    /// `ONBUILD`
    Onbuild(Onbuild),
    /// `RUN`
    Run(Run),
    /// `SHELL`
    Shell(Shell),
    /// `STOPSIGNAL`
    StopSignal(StopSignal),
    /// `USER`
    User(User),
    /// `VOLUME`
    Volume(Volume),
    /// `WORKDIR`
    Workdir(Workdir),
}

/// How `NAME value` was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PairStyle {
    /// `name=value`
    Equals,
    /// `name value`, the form before Docker 1.4: one pair, its value the whole rest of the line.
    Legacy,
}

/// A name and its value, both unexpanded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The name; never empty before expansion.
    pub key: String,
    /// The value.
    pub value: String,
    /// How it was written.
    pub style: PairStyle,
}

/// `ENV name=value …`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Env {
    /// At least one pair.
    pub pairs: Vec<KeyValue>,
}

/// `LABEL name=value …`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// At least one pair.
    pub pairs: Vec<KeyValue>,
}

/// `ARG name[=default] …`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arg {
    /// At least one declaration.
    pub declarations: Vec<ArgDeclaration>,
}

/// One variable of an `ARG`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArgDeclaration {
    /// The name.
    pub key: String,
    /// The default; `None` when there was no `=`.
    pub value: Option<String>,
    /// The rest of a comment `# <name> …` right above.
    pub doc_comment: Option<String>,
}

/// `MAINTAINER text` (deprecated)
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maintainer {
    /// The rest of the line.
    pub maintainer: String,
}

/// A command line: the shell's (a string) or the kernel's (an argument vector).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandLine {
    /// Run by the stage's `SHELL`; the text is passed on unexpanded. Empty when the instruction had no argument.
    Shell(String),
    /// A JSON array, run as it is; may be empty.
    Exec(Vec<String>),
}

/// A heredoc, as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    /// The delimiter word, unquoted.
    pub name: String,
    /// The number before `<<`; 0 when there was none.
    pub file_descriptor: u64,
    /// Whether variables in the body are expanded (the delimiter was not quoted).
    pub expand: bool,
    /// `<<-`: leading tabs of each line are dropped. `content` still has them; see [`Heredoc::body`].
    pub strip_tabs: bool,
    /// The lines between, with their line ends.
    pub content: String,
}

/// `RUN`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// What to run. For a shell form with heredocs this is the line with the `<<WORD`s in it.
    pub command: CommandLine,
    /// The line's heredocs, in order.
    pub heredocs: Vec<Heredoc>,
    /// `--mount`, in order.
    pub mounts: Vec<MountSpec>,
    /// `--network`
    pub network: Network,
    /// `--security`
    pub security: Security,
    /// `--device`, in order.
    pub devices: Vec<Device>,
    /// Which flags were written at all, each once, in the order first seen (`mount`, `network`, …).
    pub flags_used: Vec<String>,
}

/// `RUN --network`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Network {
    /// The build's network.
    #[default]
    Default,
    /// Loopback only.
    None,
    /// The host's network; needs an entitlement.
    Host,
}

/// `RUN --security`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Security {
    /// Confined.
    #[default]
    Sandbox,
    /// Privileged; needs an entitlement.
    Insecure,
}

/// `CMD`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cmd {
    /// The command.
    pub command: CommandLine,
}

/// `ENTRYPOINT`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entrypoint {
    /// The command; an empty vector resets the entrypoint.
    pub command: CommandLine,
}

/// A file that `ADD` or `COPY` gets from a heredoc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InlineFile {
    /// The heredoc's delimiter: the file's name when the destination is a directory.
    pub name: String,
    /// The content, tabs already stripped for `<<-`.
    pub data: String,
    /// Whether variables in it are to be expanded (with quotes and escapes left alone).
    pub expand: bool,
}

/// What `ADD` and `COPY` read and write. BuildKit copies all paths before all inline files, whatever their order on the line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// Paths, patterns or, for `ADD`, URLs.
    pub sources: Vec<String>,
    /// Heredocs.
    pub inline_files: Vec<InlineFile>,
    /// Where to.
    pub destination: String,
    /// Whether the arguments were a JSON array (printing only; it changes no meaning).
    pub json: bool,
}

/// `ADD`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Add {
    /// From where, to where.
    pub transfer: Transfer,
    /// `--chown`
    pub chown: Option<String>,
    /// `--chmod`
    pub chmod: Option<String>,
    /// `--link`
    pub link: bool,
    /// `--exclude`, in order; never expanded.
    pub excludes: Vec<String>,
    /// `--keep-git-dir`, when given.
    pub keep_git_dir: Option<bool>,
    /// `--checksum`
    pub checksum: Option<String>,
    /// `--unpack`, when given.
    pub unpack: Option<bool>,
}

/// `COPY`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// From where, to where.
    pub transfer: Transfer,
    /// `--from`: a stage's name or index, an image or a named context; never expanded by [`Instruction::expand`].
    pub from: Option<String>,
    /// `--chown`
    pub chown: Option<String>,
    /// `--chmod`
    pub chmod: Option<String>,
    /// `--link`
    pub link: bool,
    /// `--exclude`, in order; never expanded.
    pub excludes: Vec<String>,
    /// `--parents`
    pub parents: bool,
}

/// `ONBUILD`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Onbuild {
    /// The trigger as it goes into the image's config: the rest of the line, then heredoc bodies and their terminators.
    pub expression: String,
}

/// `WORKDIR`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workdir {
    /// The path, not yet joined to the previous one.
    pub path: String,
}

/// `HEALTHCHECK`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Healthcheck {
    /// `HEALTHCHECK NONE`
    None,
    /// `HEALTHCHECK [options] CMD …`
    Check {
        /// What to run.
        command: CommandLine,
        /// Timings.
        options: HealthOptions,
    },
}

/// `HEALTHCHECK`'s flags; `None` where absent or zero (Docker then inherits or uses its default).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HealthOptions {
    /// `--interval`
    pub interval: Option<Duration>,
    /// `--timeout`
    pub timeout: Option<Duration>,
    /// `--start-period`
    pub start_period: Option<Duration>,
    /// `--start-interval`
    pub start_interval: Option<Duration>,
    /// `--retries`
    pub retries: Option<u32>,
}

/// `EXPOSE`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expose {
    /// `port[-port][/proto]`, sorted as text, unexpanded.
    pub ports: Vec<String>,
}

/// `USER`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// `user[:group]`
    pub user: String,
}

/// `VOLUME`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Mount points.
    pub paths: Vec<String>,
}

/// `STOPSIGNAL`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopSignal {
    /// Name or number.
    pub signal: String,
}

/// `SHELL`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shell {
    /// At least one word.
    pub shell: Vec<String>,
}
