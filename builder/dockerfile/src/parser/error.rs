//! What can be wrong with a Dockerfile's text.

use crate::instructions::MountError;
use crate::shell::WordError;
use crate::text::{go_quote, with_suggestion};

/// What is wrong with a Dockerfile's text or with one of its instructions. Where BuildKit has an error, the text is BuildKit's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each text says it, and the fields are what the text names")]
pub enum SyntaxError {
    #[error("file with no instructions")]
    NoInstructions,
    #[error("unterminated heredoc")]
    UnterminatedHeredoc,
    #[error("dockerfile line greater than max allowed size of {limit}")]
    LineTooLong { limit: usize },
    #[error("the Dockerfile is larger than {limit} bytes")]
    FileTooLarge { limit: usize },
    #[error("the Dockerfile has more than {limit} bytes outside heredocs")]
    TextTooLarge { limit: usize },
    #[error("the Dockerfile has more than {limit} instructions")]
    TooManyInstructions { limit: usize },
    #[error("not valid UTF-8")]
    NotUtf8,
    #[error("invalid escape token '{0}' does not match ` or \\")]
    InvalidEscape(String),
    #[error("only one {0} parser directive can be used")]
    DuplicateDirective(&'static str),
    #[error("when using JSON array syntax, arrays must be comprised of strings only")]
    JsonNotStrings,
    #[error("{0} must have two arguments")]
    TwoArguments(&'static str),
    #[error("Syntax error - can't find = in {}. Must be of the form: name=value", go_quote(.0))]
    NoEquals(String),
    #[error(transparent)]
    Word(#[from] WordError),
    #[error("{}", with_suggestion(format!("unknown instruction: {name}"), suggestion))]
    UnknownInstruction { name: String, suggestion: Option<String> },
    #[error("no build stage in current context")]
    NoStage,
    #[error("{0} requires at least one argument")]
    AtLeastOneArgument(&'static str),
    #[error("{0} requires exactly one argument")]
    ExactlyOneArgument(&'static str),
    #[error(
        "{0} requires at least two arguments, but only one was provided. Destination could not be determined"
    )]
    NoDestination(&'static str),
    #[error("{0} cannot accept a heredoc as a destination")]
    HeredocAsDestination(&'static str),
    #[error("{0} names can not be blank")]
    BlankName(&'static str),
    #[error("FROM requires either one or three arguments")]
    FromArguments,
    #[error(
        "invalid name for build stage: {}, name can't start with a number or contain symbols",
        go_quote(.0)
    )]
    StageName(String),
    #[error("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")]
    ChainedOnbuild,
    #[error("{0} isn't allowed as an ONBUILD trigger")]
    OnbuildTrigger(&'static str),
    #[error("onbuild trigger should be a single expression")]
    TriggerNotSingle,
    #[error("HEALTHCHECK NONE takes no arguments")]
    HealthcheckNoneArguments,
    #[error("Missing command after HEALTHCHECK CMD")]
    HealthcheckNoCommand,
    #[error("Unknown type {} in HEALTHCHECK (try CMD)", go_quote(.0))]
    HealthcheckType(String),
    #[error("Interval \"{0}\" cannot be less than 1ms")]
    IntervalTooShort(&'static str),
    #[error("{0}")]
    Duration(String),
    #[error("--retries cannot be negative ({0})")]
    NegativeRetries(i32),
    #[error("strconv.ParseInt: parsing {}: {reason}", go_quote(value))]
    Retries { value: String, reason: &'static str },
    #[error("VOLUME specified can not be an empty string")]
    EmptyVolume,
    #[error("invalid network mode {}", go_quote(.0))]
    Network(String),
    #[error("security {} is not valid", go_quote(.0))]
    Security(String),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("SHELL requires the arguments to be in JSON form")]
    ShellNotJson,
    #[error("{}", with_suggestion(format!("unknown flag: --{name}"), suggestion))]
    UnknownFlag { name: String, suggestion: Option<String>, known: Vec<&'static str> },
    #[error("duplicate flag specified: --{0}")]
    DuplicateFlag(String),
    #[error("missing a value on flag: --{0}")]
    FlagWithoutValue(String),
    #[error("expecting boolean value for flag --{name}, not: {value}")]
    FlagNotBoolean { name: String, value: String },
}
