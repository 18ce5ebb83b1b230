//! What can be wrong with a Dockerfile that parses, and with the options of a build.

use crate::text::{go_quote, with_suggestion};

/// Why a build cannot be planned. Where BuildKit has words for it, they are BuildKit's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LowerError {
    /// What the classic builder says of an instruction when its turn comes.
    #[error("{0}")]
    Classic(String),
    /// No bytes.
    #[error("the Dockerfile cannot be empty")]
    EmptyDockerfile,
    /// Nothing but `ARG`s and comments.
    #[error("dockerfile contains no stages to build")]
    NoStages,
    /// A stage that does not exist was asked for.
    #[error("{}", with_suggestion(format!("target stage {} could not be found", go_quote(name)), suggestion))]
    UnknownTarget {
        /// Its name.
        name: String,
        /// What may have been meant.
        suggestion: Option<String>,
    },
    /// Stages that need each other.
    #[error("circular dependency detected on stage: {0}")]
    Circular(String),
    /// `FROM` something that expands to nothing.
    #[error("base name ({0}) should not be blank")]
    BlankBase(String),
    /// `FROM --platform` something that expands to nothing.
    #[error("{}", with_suggestion(format!("empty platform value from expression {expression}"), suggestion))]
    BlankPlatform {
        /// As written.
        expression: String,
        /// Which variable may have been meant.
        suggestion: Option<String>,
    },
    /// `FROM --platform` something that is no platform.
    #[error("{}", with_suggestion(format!("failed to parse platform {expression}: {problem}"), suggestion))]
    Platform {
        /// As written.
        expression: String,
        /// What is wrong.
        problem: String,
        /// Which variable may have been meant.
        suggestion: Option<String>,
    },
    /// `FROM` something that is no image name.
    #[error("failed to parse stage name {}: {problem}", go_quote(name))]
    StageName {
        /// The name.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// What a stage starts from is neither a stage nor an image that can be had ([`Facts::missing`](crate::Facts::missing)).
    #[error("{}", with_suggestion(format!("{name}: {why}"), suggestion))]
    NoBase {
        /// The name as written, variables expanded.
        name: String,
        /// Why the image cannot be had.
        why: String,
        /// Which stage or image may have been meant.
        suggestion: Option<String>,
    },
    /// The image of a named context cannot be had ([`Facts::missing`](crate::Facts::missing)).
    #[error("{why}")]
    NoImage {
        /// Why.
        why: String,
    },
    /// `--from=<number>` beyond the stages.
    #[error("invalid stage index {0}")]
    StageIndex(i64),
    /// A variable in `--from`.
    #[error(
        "variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround"
    )]
    VariableInFrom,
    /// `COPY --from` a stage that comes later.
    #[error(
        "cannot copy from stage {}, it needs to be defined before current stage {}",
        go_quote(from),
        go_quote(stage)
    )]
    CopyFromLater {
        /// The one copied from.
        from: String,
        /// The one copied to.
        stage: String,
    },
    /// `RUN --mount=from` a stage that comes later.
    #[error(
        "cannot mount from stage {} to {}, stage needs to be defined before current command",
        go_quote(from),
        go_quote(target)
    )]
    MountFromLater {
        /// The one mounted.
        from: String,
        /// Where.
        target: String,
    },
    /// A mount over the root.
    #[error("invalid mount target {}", go_quote(.0))]
    MountTarget(String),
    /// An ssh mount with a source.
    #[error("ssh does not support source")]
    SshSource,
    /// `--chmod` with a number that is no mode.
    #[error("invalid chmod parameter: '{0}'. it should be octal string and between 0 and 07777")]
    Chmod(String),
    /// `--chmod` with something that is no mode at all.
    #[error("invalid mode: {0}")]
    ChmodSymbolic(String),
    /// `--checksum` where it cannot be.
    #[error("{0}")]
    Checksum(&'static str),
    /// `--checksum` that contradicts the URL.
    #[error("checksum mismatch {} != {}", go_quote(flag), go_quote(url))]
    ChecksumMismatch {
        /// The flag's.
        flag: String,
        /// The URL's.
        url: String,
    },
    /// `--checksum` that is no digest.
    #[error("{0}")]
    ChecksumFormat(String),
    /// `--keep-git-dir` that contradicts the URL.
    #[error("inconsistent keep-git-dir configuration")]
    KeepGitDir,
    /// `COPY` of something that only `ADD` can fetch.
    #[error("source can't be {0} for COPY")]
    RemoteCopy(&'static str),
    /// A git URL that contradicts itself.
    #[error("{0}")]
    GitReference(String),
    /// `VOLUME ""`
    #[error("VOLUME specified can not be an empty string")]
    EmptyVolume,
    /// `STOPSIGNAL` with no signal.
    #[error("invalid signal: {0}")]
    Signal(String),
    /// `EXPOSE` with no port.
    #[error("{0}")]
    Port(String),
    /// A trigger that is not one instruction.
    #[error("onbuild trigger should be a single expression")]
    TriggerCount,
    /// `SOURCE_DATE_EPOCH` that is no time.
    #[error("invalid SOURCE_DATE_EPOCH: {0}")]
    Epoch(String),
    /// `SOURCE_DATE_EPOCH` names a stage that is more than one download.
    #[error("{0}")]
    EpochStage(String),
    /// A named context whose name cannot be one.
    #[error("invalid context name {name}: {problem}")]
    ContextName {
        /// The name.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// A named context that cannot be found by its specifier.
    #[error("{0}")]
    ContextSpecifier(String),
    /// An image's config that is none.
    #[error("{name}: failed to parse image config: {problem}")]
    ImageConfig {
        /// The image.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// An option that is wrong.
    #[error("{0}")]
    Option(String),
    /// `RUN --device` in a file that is not read by a frontend of the labs channel.
    #[error("device feature is only supported in Dockerfile frontend 1.14.0-labs or later")]
    DevicesAreLabs,
    /// A path of a stage for Windows that leads elsewhere than to its system drive.
    #[error("{path}: {why}")]
    WindowsPath {
        /// The path.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Something that this builder cannot do.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// Warnings, where `# check=error=true` makes them errors.
    #[error("lint violation found for rules: {0}")]
    Lint(String),
    /// A word cannot be expanded.
    #[error(transparent)]
    Word(#[from] crate::shell::WordError),
    /// A `--mount` is not valid once expanded.
    #[error(transparent)]
    Mount(#[from] crate::instructions::MountError),
    /// An ignore pattern is malformed.
    #[error("failed parsing {file}: {problem}")]
    Ignore {
        /// The ignore file.
        file: String,
        /// What is wrong.
        problem: crate::ignore::PatternError,
    },
    /// Images whose triggers copy from images with triggers, without end.
    #[error("ONBUILD triggers of {image} and of images that they copy from need more than {limit} images")]
    TriggersWithoutEnd {
        /// The image that went too far.
        image: String,
        /// How many are allowed.
        limit: usize,
    },
    /// What the Dockerfile describes is larger than any use.
    #[error("the Dockerfile describes more than {limit} bytes of build steps")]
    TooLarge {
        /// How many are allowed.
        limit: usize,
    },
    /// The graph cannot be made.
    #[error("failed to marshal LLB definition: {0}")]
    Graph(#[from] lapstrake_builder_llb::Error),
}
