//! Lint rules, and which of them a build wants to hear of.
//!
//! The parser and the lowering both raise [`Warning`]s; both ask a [`Config`] first. Names and descriptions are BuildKit's, since
//! `# check=skip=…` names them.

use std::collections::BTreeSet;

use crate::instructions::Stage;
use crate::location::LineRange;
use crate::parser::check_in_comment;
use crate::text::{go_quote, parse_bool};

/// Something doubtful that is no error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The rule that it breaks.
    pub rule: Rule,
    /// What is wrong, in this place.
    pub message: String,
    /// Where.
    pub lines: LineRange,
}

impl Warning {
    /// All in one line, as BuildKit has it: `Rule: message (line 3)`.
    pub fn short(&self) -> String {
        format!("{}: {} (line {})", self.rule.name(), self.message, self.lines.start)
    }
}

/// Which rules are reported, and what becomes of the reports.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// Whether any warning fails the build.
    pub fail: bool,
    skip: Selection,
    experimental: Selection,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Selection {
    All,
    Named(BTreeSet<String>),
}

/// Why check options are refused; the texts are BuildKit's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// Not `name=value`, or a name that is not known.
    #[error("invalid check option {}", go_quote(.0))]
    Option(String),
    /// `error=` neither true nor false.
    #[error(
        "failed to parse check option {}: strconv.ParseBool: parsing {}: invalid syntax",
        go_quote(option),
        go_quote(value)
    )]
    Boolean {
        /// The whole option.
        option: String,
        /// Its value.
        value: String,
    },
}

impl Default for Selection {
    fn default() -> Selection {
        Selection::Named(BTreeSet::new())
    }
}

impl Selection {
    fn parse(value: &str) -> Selection {
        match value.trim() {
            "all" => Selection::All,
            names => Selection::Named(names.split(',').map(|name| name.trim().to_owned()).collect()),
        }
    }

    fn has(&self, rule: Rule) -> bool {
        match self {
            Selection::All => true,
            Selection::Named(names) => names.contains(rule.name()),
        }
    }

    fn add(&mut self, other: Selection) {
        match (self, other) {
            (Selection::All, _) => {}
            (all, Selection::All) => *all = Selection::All,
            (Selection::Named(names), Selection::Named(more)) => names.extend(more),
        }
    }
}

impl Config {
    /// Reads the value of `# check=`: up to three of `skip=…`, `experimental=…` and `error=…`, with `;` between them.
    pub fn parse(value: &str) -> Result<Config, CheckError> {
        let mut config = Config::default();
        if value.trim().is_empty() {
            return Ok(config);
        }
        for option in value.trim().splitn(3, ';') {
            let (name, value) =
                option.split_once('=').ok_or_else(|| CheckError::Option(option.to_owned()))?;
            match name.trim() {
                "skip" => config.skip = Selection::parse(value),
                "experimental" => config.experimental = Selection::parse(value),
                "error" => {
                    let value = value.trim();
                    config.fail = parse_bool(value).ok_or_else(|| CheckError::Boolean {
                        option: option.to_owned(),
                        value: value.to_owned(),
                    })?;
                }
                name => return Err(CheckError::Option(name.to_owned())),
            }
        }
        Ok(config)
    }

    /// Whether a breach of the rule is reported: rules are, unless skipped; experimental rules are not, unless asked for.
    pub fn reports(&self, rule: Rule) -> bool {
        if rule.is_experimental() { self.experimental.has(rule) } else { !self.skip.has(rule) }
    }

    /// The configuration for one instruction, whose comments may have a `check=` of their own. It can only add to what is skipped or
    /// asked for; one that cannot be read is ignored.
    pub fn with_comments(&self, comments: &[String]) -> Config {
        let mut config = self.clone();
        let local = comments.iter().find_map(|comment| check_in_comment(comment));
        if let Some(local) = local.and_then(|value| Config::parse(&value).ok()) {
            config.skip.add(local.skip);
            config.experimental.add(local.experimental);
        }
        config
    }
}

/// Warnings, as far as they are wanted.
pub(crate) struct Reporter {
    pub(crate) config: Config,
    pub(crate) warnings: Vec<Warning>,
}

impl Reporter {
    pub(crate) fn report(&mut self, config: &Config, rule: Rule, lines: LineRange, message: String) {
        if config.reports(rule) {
            self.warnings.push(Warning { rule, message, lines });
        }
    }

    fn report_globally(&mut self, rule: Rule, lines: LineRange, message: String) {
        if self.config.reports(rule) {
            self.warnings.push(Warning { rule, message, lines });
        }
    }

    /// Names that are taken, be it by another stage or by BuildKit.
    pub(crate) fn check_stage_names(&mut self, stages: &[Stage]) {
        let mut seen = BTreeSet::new();
        for stage in stages {
            let Some(name) = &stage.name else { continue };
            if matches!(name.as_str(), "context" | "scratch") {
                let message =
                    format!("Stage name should not use the same name as reserved stage {}", go_quote(name));
                self.report_globally(Rule::ReservedStageName, stage.source.lines, message);
            }
            if !seen.insert(name) {
                let message =
                    format!("Duplicate stage name {}, stage names should be unique", go_quote(name));
                self.report_globally(Rule::DuplicateStageName, stage.source.lines, message);
            }
        }
    }

    /// Keywords in another case than most.
    pub(crate) fn check_keyword_casing(&mut self, stages: &[Stage]) {
        let keywords = || {
            stages.iter().flat_map(|stage| {
                let commands = stage.commands.iter().map(|command| &command.source);
                std::iter::once(&stage.source).chain(commands)
            })
        };
        let count = |is: fn(&str) -> bool| keywords().filter(|source| is(&source.keyword)).count();
        let majority_is_lower = count(is_lower) > count(is_upper);
        for source in keywords() {
            let (fits, casing) = match majority_is_lower {
                true => (is_lower(&source.keyword), "lowercase"),
                false => (is_upper(&source.keyword), "uppercase"),
            };
            if !fits {
                let message = format!(
                    "Command '{}' should match the case of the command majority ({casing})",
                    source.keyword
                );
                self.report_globally(Rule::ConsistentInstructionCasing, source.lines, message);
            }
        }
    }
}

pub(crate) fn is_lower(text: &str) -> bool {
    match text.is_ascii() {
        true => !text.bytes().any(|byte| byte.is_ascii_uppercase()),
        false => text == text.to_lowercase(),
    }
}

pub(crate) fn is_upper(text: &str) -> bool {
    match text.is_ascii() {
        true => !text.bytes().any(|byte| byte.is_ascii_lowercase()),
        false => text == text.to_uppercase(),
    }
}

/// A rule's page.
macro_rules! page {
    ($name:literal) => {
        concat!("https://docs.docker.com/go/dockerfile/rule/", $name, "/")
    };
}

macro_rules! rules {
    ($($variant:ident, $url:expr, $description:expr;)*) => {
        /// A lint rule.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Rule {
            $(#[doc = concat!($description, ".")] $variant,)*
        }

        impl Rule {
            /// Every rule.
            pub const ALL: &[Rule] = &[$(Rule::$variant),*];

            /// The rule's name, as `# check=skip=` has it.
            pub fn name(self) -> &'static str {
                match self { $(Rule::$variant => stringify!($variant),)* }
            }

            /// What the rule asks for, in general.
            pub fn description(self) -> &'static str {
                match self { $(Rule::$variant => $description,)* }
            }

            /// Whether the rule is off unless asked for.
            pub fn is_experimental(self) -> bool {
                self == Rule::InvalidDefinitionDescription
            }

            /// The rule's page in Docker's documentation; empty where it has none.
            pub fn url(self) -> &'static str {
                match self { $(Rule::$variant => $url,)* }
            }
        }
    };
}

rules! {
    StageNameCasing, page!("stage-name-casing"), "Stage names should be lowercase";
    FromAsCasing, page!("from-as-casing"), "The 'as' keyword should match the case of the 'from' keyword";
    NoEmptyContinuation, page!("no-empty-continuation"), "Empty continuation lines will become errors in a future release";
    ConsistentInstructionCasing, page!("consistent-instruction-casing"), "All commands within the Dockerfile should use the same casing (either upper or lower)";
    DuplicateStageName, page!("duplicate-stage-name"), "Stage names should be unique";
    ReservedStageName, page!("reserved-stage-name"), "Reserved words should not be used as stage names";
    JSONArgsRecommended, page!("json-args-recommended"), "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals";
    MaintainerDeprecated, page!("maintainer-deprecated"), "The MAINTAINER instruction is deprecated, use a label instead to define an image author";
    UndefinedArgInFrom, page!("undefined-arg-in-from"), "FROM command must use declared ARGs";
    WorkdirRelativePath, page!("workdir-relative-path"), "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base image changes";
    UndefinedVar, page!("undefined-var"), "Variables should be defined before their use";
    MultipleInstructionsDisallowed, page!("multiple-instructions-disallowed"), "Multiple instructions of the same type should not be used in the same stage";
    LegacyKeyValueFormat, page!("legacy-key-value-format"), "Legacy key/value format with whitespace separator should not be used";
    InvalidBaseImagePlatform, "", "Base image platform does not match expected target platform";
    RedundantTargetPlatform, page!("redundant-target-platform"), "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior";
    SecretsUsedInArgOrEnv, page!("secrets-used-in-arg-or-env"), "Sensitive data should not be used in the ARG or ENV commands";
    InvalidDefaultArgInFrom, page!("invalid-default-arg-in-from"), "Default value for global ARG results in an empty or invalid base image name";
    FromPlatformFlagConstDisallowed, page!("from-platform-flag-const-disallowed"), "FROM --platform flag should not use a constant value";
    CopyIgnoredFile, page!("copy-ignored-file"), "Attempting to Copy file that is excluded by .dockerignore";
    InvalidDefinitionDescription, page!("invalid-definition-description"), "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is not intended to be a description comment, add an empty line or comment between the instruction and the comment.";
    ExposeProtoCasing, page!("expose-proto-casing"), "Protocol in EXPOSE instruction should be lowercase";
    ExposeInvalidFormat, page!("expose-invalid-format"), "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future release";
}
