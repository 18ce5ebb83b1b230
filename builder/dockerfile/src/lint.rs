//! Lint rules, and which of them a build wants to hear of.
//!
//! The parser and the lowering both raise [`Warning`]s; both ask a [`Config`] first. Names and descriptions are BuildKit's, since
//! `# check=skip=…` names them.

use crate::location::LineRange;

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

macro_rules! rules {
    ($($variant:ident, $slug:expr, $description:expr;)*) => {
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

            /// The last part of the rule's page in Docker's documentation; `None` where it has no page.
            pub fn slug(self) -> Option<&'static str> {
                match self { $(Rule::$variant => $slug,)* }
            }
        }
    };
}

rules! {
    StageNameCasing, Some("stage-name-casing"), "Stage names should be lowercase";
    FromAsCasing, Some("from-as-casing"), "The 'as' keyword should match the case of the 'from' keyword";
    NoEmptyContinuation, Some("no-empty-continuation"), "Empty continuation lines will become errors in a future release";
    ConsistentInstructionCasing, Some("consistent-instruction-casing"), "All commands within the Dockerfile should use the same casing (either upper or lower)";
    DuplicateStageName, Some("duplicate-stage-name"), "Stage names should be unique";
    ReservedStageName, Some("reserved-stage-name"), "Reserved words should not be used as stage names";
    JSONArgsRecommended, Some("json-args-recommended"), "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals";
    MaintainerDeprecated, Some("maintainer-deprecated"), "The MAINTAINER instruction is deprecated, use a label instead to define an image author";
    UndefinedArgInFrom, Some("undefined-arg-in-from"), "FROM command must use declared ARGs";
    WorkdirRelativePath, Some("workdir-relative-path"), "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base image changes";
    UndefinedVar, Some("undefined-var"), "Variables should be defined before their use";
    MultipleInstructionsDisallowed, Some("multiple-instructions-disallowed"), "Multiple instructions of the same type should not be used in the same stage";
    LegacyKeyValueFormat, Some("legacy-key-value-format"), "Legacy key/value format with whitespace separator should not be used";
    InvalidBaseImagePlatform, None, "Base image platform does not match expected target platform";
    RedundantTargetPlatform, Some("redundant-target-platform"), "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior";
    SecretsUsedInArgOrEnv, Some("secrets-used-in-arg-or-env"), "Sensitive data should not be used in the ARG or ENV commands";
    InvalidDefaultArgInFrom, Some("invalid-default-arg-in-from"), "Default value for global ARG results in an empty or invalid base image name";
    FromPlatformFlagConstDisallowed, Some("from-platform-flag-const-disallowed"), "FROM --platform flag should not use a constant value";
    CopyIgnoredFile, Some("copy-ignored-file"), "Attempting to Copy file that is excluded by .dockerignore";
    InvalidDefinitionDescription, Some("invalid-definition-description"), "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is not intended to be a description comment, add an empty line or comment between the instruction and the comment.";
    ExposeProtoCasing, Some("expose-proto-casing"), "Protocol in EXPOSE instruction should be lowercase";
    ExposeInvalidFormat, Some("expose-invalid-format"), "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future release";
}
