//! Why a build failed.

use lapstrake_builder_dockerfile::LineRange;
use lapstrake_builder_executor::ExecError;
use lapstrake_builder_llb::{PolicyError, caps::CapError};
use lapstrake_builder_solver::SolveError;
use lapstrake_builder_source::{ErrorKind, SourceError};
use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_store::StoreError;

use crate::{
    Entitlement, FailedImage, Fault, OutOfMemory, Refusal, ShownStep, StepError, step_error::emulator_advice,
};

/// Why a build failed: what was being done, on what, and the cause.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The Dockerfile cannot be built as it is written.
    #[error(transparent)]
    Dockerfile(#[from] lapstrake_builder_dockerfile::Error),
    /// An image that the Dockerfile names cannot be had.
    #[error("{problem}")]
    NoImage {
        /// What that means, and where it is named.
        problem: Box<lapstrake_builder_dockerfile::Error>,
        /// Why.
        source: Box<SourceError>,
    },
    /// Any of these, and where in the sources.
    #[error("{error}")]
    At {
        /// Where.
        fault: Box<Fault>,
        /// Why.
        #[source]
        error: Box<EngineError>,
    },
    /// A process failed, and what its step left was to be kept.
    #[error("{error}\n{image}")]
    Keeping {
        /// The failure, as it is without that.
        error: Box<EngineError>,
        /// What became of it.
        image: FailedImage,
    },
    /// A step failed, and a frontend may look into it.
    #[error("{error}")]
    Shown {
        /// The failure.
        #[source]
        error: Box<EngineError>,
        /// What it may look at.
        step: Box<ShownStep>,
    },
    /// There is no Dockerfile where it was looked for.
    #[error("failed to read dockerfile: open {name}: no such file or directory")]
    NoDockerfile {
        /// Its path in the context.
        name: String,
    },
    /// The graph is malformed.
    #[error("failed to load LLB: {0}")]
    Graph(#[from] lapstrake_builder_llb::Error),
    /// A step failed.
    #[error("{}", step_message(.0))]
    Step(#[from] SolveError<StepError>),
    /// The engine's own work for the build failed.
    #[error(transparent)]
    Work(#[from] StepError),
    /// The context that came with the request cannot be unpacked.
    #[error("build context")]
    Context(#[source] lapstrake_layerstore_diff::DiffError),
    /// What the build needs could not be had.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The client's session is not there, or refused.
    #[error(transparent)]
    Session(#[from] lapstrake_session::Error),
    /// A store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cache's records failed.
    #[error(transparent)]
    Cache(#[from] lapstrake_builder_cache::CacheError),
    /// A cache to bring or to leave is not described in a way that we know.
    #[error("cache {text:?}: {why}")]
    CacheOption {
        /// The description as given.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// A cache could not be left where it should be.
    #[error("export cache to {name}: {}", source.told())]
    CacheTarget {
        /// Where it should be.
        name: String,
        /// Why.
        source: crate::CacheFault,
    },
    /// What was built could not be left where it should be.
    #[error(transparent)]
    Export(#[from] lapstrake_builder_exporter::ExportError),
    /// A frontend that is an image did not do its work.
    #[error("frontend {image}: {failure}")]
    FrontendRun {
        /// The image.
        image: String,
        /// How it failed.
        #[source]
        failure: FrontendRun,
        /// Where it was asked for, if in the Dockerfile.
        lines: Option<LineRange>,
    },
    /// A frontend was asked for what its image does not say that it can.
    #[error("unsupported frontend capability {name}")]
    FrontendCap {
        /// What.
        name: String,
    },
    /// The frontend that was asked for is no image.
    #[error("invalid frontend {name:?}: {why}")]
    FrontendName {
        /// As it was asked for.
        name: String,
        /// What is wrong with it.
        why: String,
        /// Where it was asked for, if in the Dockerfile.
        lines: Option<LineRange>,
    },
    /// A frontend failed, in its own words.
    #[error("{}", .0.message)]
    Returned(Box<Returned>),
    /// What a frontend gave cannot be used.
    #[error("{what} of a frontend's result: {why}")]
    Result {
        /// What of it.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A frontend asked for something in a way that means nothing.
    #[error("{what}")]
    Bridge {
        /// What is wrong.
        what: String,
    },
    /// A frontend asked for a file that it cannot have.
    #[error(transparent)]
    File(#[from] crate::FileError),
    /// A process that a frontend asked for cannot be run.
    #[error(transparent)]
    Process(ExecError),
    /// A process that a frontend asked for does what was not granted.
    #[error("{0}")]
    NotGranted(#[source] Box<Refusal>),
    /// A frontend gave something a name that something else has.
    #[error("{what} already exists")]
    Taken {
        /// What.
        what: String,
    },
    /// A frontend asked for something of a result that is not there.
    #[error("no such ref: {id}")]
    NoSuchRef {
        /// Its name.
        id: String,
    },
    /// A client grants what nobody knows.
    #[error("unknown entitlement {text}")]
    UnknownEntitlement {
        /// As it says it.
        text: String,
    },
    /// A client grants a device in a way that nobody knows.
    #[error("device {text:?}: {why}")]
    DeviceGrant {
        /// As it says it.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// A client grants what the daemon does not allow.
    #[error("granting entitlement {entitlement} is not allowed by build daemon configuration")]
    NotGrantable {
        /// What it grants.
        entitlement: Entitlement,
    },
    /// The client's policy does not let a source pass.
    #[error("failed to load LLB: error evaluating the source policy: {source}")]
    Policy {
        /// The source, where it is part of a graph.
        vertex: Option<Digest>,
        /// Why.
        source: PolicyError,
    },
    /// A vertex needs what is not here.
    #[error("failed to load LLB: {source}")]
    Capability {
        /// The vertex.
        vertex: Digest,
        /// What.
        source: CapError,
    },
    /// A step does what was not granted.
    #[error("failed to load LLB: {refusal}")]
    Refused {
        /// The step.
        vertex: Digest,
        /// What was not granted.
        #[source]
        refusal: Box<Refusal>,
    },
    /// Limits on processes that mean nothing.
    #[error(transparent)]
    Limits(ExecError),
    /// What is to be attested cannot be.
    #[error("{why}")]
    Attest {
        /// Why not.
        why: String,
    },
    /// Something was asked for that is not here.
    #[error("{what} is not supported")]
    Unsupported {
        /// What was asked for.
        what: String,
    },
    /// A build with this id is running.
    #[error("build {id} is running already")]
    Duplicate {
        /// The id.
        id: String,
    },
    /// There is no build with this id.
    #[error("no build with id {id}")]
    NoSuchBuild {
        /// The id.
        id: String,
    },
    /// The client went away or cancelled the build.
    #[error("context canceled")]
    Canceled,
}

/// How a frontend that is an image failed.
#[derive(Debug, thiserror::Error)]
pub enum FrontendRun {
    /// It could not be run.
    #[error(transparent)]
    NotRun(ExecError),
    /// It ended with a code that is not 0.
    #[error("exit code: {code}{}{words}", if words.is_empty() { "" } else { "\n" })]
    Exit {
        /// The code.
        code: i32,
        /// The last that it wrote to its standard error.
        words: String,
    },
    /// It ended and gave nothing.
    #[error("no result for incomplete build")]
    NoResult,
}

/// A failure that a frontend gave back: a gRPC status.
#[derive(Debug, Clone, PartialEq)]
pub struct Returned {
    /// Its code.
    pub code: i32,
    /// What it says.
    pub message: String,
    /// What BuildKit's clients read: the vertex, lines of the source, ….
    pub details: Vec<lapstrake_api_proto::google::protobuf::Any>,
}

/// The cause alone: BuildKit's clients show the vertex themselves.
fn step_message(error: &SolveError<StepError>) -> String {
    match error {
        SolveError::Op { source, .. } => source.to_string(),
        other => other.to_string(),
    }
}

impl EngineError {
    /// The error without the place, and without what became of the step.
    pub fn inner(&self) -> &EngineError {
        match self {
            Self::At { error, .. } | Self::Keeping { error, .. } | Self::Shown { error, .. } => error.inner(),
            other => other,
        }
    }

    /// The same, taken out.
    pub(crate) fn into_inner(self) -> EngineError {
        match self {
            Self::At { error, .. } | Self::Keeping { error, .. } | Self::Shown { error, .. } => {
                error.into_inner()
            }
            other => other,
        }
    }

    /// Where in the Dockerfile it failed, when that is known.
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Self::At { fault, .. } => Some(fault),
            Self::Keeping { error, .. } | Self::Shown { error, .. } => error.fault(),
            _ => None,
        }
    }

    /// What a frontend may look at of the step that failed.
    pub(crate) fn shown(&self) -> Option<&ShownStep> {
        match self {
            Self::Shown { step, .. } => Some(step),
            Self::At { error, .. } | Self::Keeping { error, .. } => error.shown(),
            _ => None,
        }
    }

    /// The error of the step that failed, when one did.
    pub(crate) fn step(&self) -> Option<&StepError> {
        match self.inner() {
            Self::Step(SolveError::Op { source, .. }) => Some(source),
            _ => None,
        }
    }

    /// The failure by itself, and what became of what the failed step left, when that was to be kept.
    pub fn keeping(&self) -> (&EngineError, Option<&FailedImage>) {
        match self {
            Self::Keeping { error, image } => (error, Some(image)),
            other => (other, None),
        }
    }

    /// The process that failed, when that is what failed the build, with its exit code and whether it lacked memory.
    pub fn failed_process(&self) -> Option<(&[String], i32, Option<OutOfMemory>)> {
        match self.step()?.inner() {
            StepError::Exit { args, code, oom } => Some((args, *code, *oom)),
            _ => None,
        }
    }

    /// Why a process could not be run, when that is what failed the build.
    pub fn not_run(&self) -> Option<String> {
        match self.step()?.inner() {
            StepError::Run { source, .. } => Some(source.to_string()),
            StepError::Foreign { platform, source, .. } => {
                Some(format!("{source}: {}", emulator_advice(platform)))
            }
            _ => None,
        }
    }

    /// How a caller should treat this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::At { error, .. } | Self::Keeping { error, .. } | Self::Shown { error, .. } => error.kind(),
            Self::NoImage { source, .. } => source.kind(),
            Self::Dockerfile(_) | Self::NoDockerfile { .. } | Self::Graph(_) => ErrorKind::Invalid,
            Self::Context(_) | Self::Duplicate { .. } | Self::CacheOption { .. } => ErrorKind::Invalid,
            Self::Source(source) => source.kind(),
            Self::Work(step) => step.kind(),
            Self::Step(SolveError::Op { source, .. }) => source.kind(),
            Self::Step(SolveError::Canceled) | Self::Canceled => ErrorKind::Canceled,
            Self::Step(_) => ErrorKind::Internal,
            Self::NoSuchBuild { .. } => ErrorKind::NotFound,
            Self::Unsupported { .. } | Self::FrontendCap { .. } => ErrorKind::Unsupported,
            Self::FrontendRun { .. } => ErrorKind::Internal,
            Self::FrontendName { .. } | Self::Result { .. } | Self::Bridge { .. } => ErrorKind::Invalid,
            Self::Attest { .. } => ErrorKind::Invalid,
            Self::NoSuchRef { .. } => ErrorKind::NotFound,
            Self::File(_) | Self::Taken { .. } => ErrorKind::Invalid,
            Self::Process(_) => ErrorKind::Internal,
            Self::NotGranted(_) => ErrorKind::Denied,
            Self::Returned(returned) => match returned.code {
                1 => ErrorKind::Canceled,
                _ => ErrorKind::Internal,
            },
            Self::Limits(_) | Self::UnknownEntitlement { .. } | Self::DeviceGrant { .. } => {
                ErrorKind::Invalid
            }
            Self::NotGrantable { .. } | Self::Refused { .. } | Self::Policy { .. } => ErrorKind::Denied,
            Self::Capability { .. } => ErrorKind::Unsupported,
            Self::CacheTarget { .. } => ErrorKind::Internal,
            Self::Session(_) | Self::Store(_) | Self::Cache(_) | Self::Export(_) => ErrorKind::Internal,
        }
    }

    /// Where in the Dockerfile it is, when the Dockerfile itself is no good.
    pub fn lines(&self) -> Option<LineRange> {
        match self.inner() {
            Self::Dockerfile(error) => error.lines(),
            Self::FrontendRun { lines, .. } | Self::FrontendName { lines, .. } => *lines,
            _ => None,
        }
    }

    /// The vertex that failed, when one did.
    pub fn failed_vertex(&self) -> Option<&lapstrake_layerstore_oci::Digest> {
        match self.inner() {
            Self::Step(SolveError::Op { vertex, .. } | SolveError::Lost { vertex, .. })
            | Self::Policy { vertex: Some(vertex), .. }
            | Self::Capability { vertex, .. }
            | Self::Refused { vertex, .. } => Some(vertex),
            _ => None,
        }
    }

    /// What the client's own policy says about the source that it refused.
    pub fn policy_messages(&self) -> &[String] {
        let refusal = match self.inner() {
            Self::Policy { source, .. } | Self::Source(SourceError::Policy(source)) => Some(source),
            Self::NoImage { source, .. } => match &**source {
                SourceError::Policy(source) => Some(source),
                _ => None,
            },
            _ => None,
        };
        match refusal {
            Some(PolicyError::NotAllowed { messages, .. }) => messages,
            _ => &[],
        }
    }

    /// Whether nothing failed but the client's patience.
    pub fn is_canceled(&self) -> bool {
        matches!(
            self.inner(),
            Self::Canceled | Self::Step(SolveError::Canceled) | Self::Work(StepError::Canceled)
        )
    }
}
