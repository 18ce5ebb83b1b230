//! Why a source could not be had.

use std::{io, path::PathBuf};

use lapstrake_builder_cache::CacheError;
use lapstrake_builder_dockerfile::ignore::PatternError;
use lapstrake_builder_llb::PolicyError;
use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_registry::{self as registry, RegistryError};
use lapstrake_layerstore_store::{self as store, StoreError};
use lapstrake_layerstore_transfer::{self as transfer, TransferError};

/// Why a source could not be had. Every variant that is about one source names it (`origin`), never with a password in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The op's identifier does not name a source.
    #[error("invalid source {origin}: {why}")]
    Identifier {
        /// The identifier.
        origin: String,
        /// What is wrong with it.
        why: String,
    },
    /// The identifier's scheme, or what is asked of the source, is not there.
    #[error("source {origin}: {what} is not supported")]
    Unsupported {
        /// The source.
        origin: String,
        /// What is asked for.
        what: String,
    },
    /// An attribute of the op does not mean anything.
    #[error("source {origin}: invalid {attribute} {value:?}: {why}")]
    Attribute {
        /// The source.
        origin: String,
        /// The attribute's key.
        attribute: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        why: String,
    },
    /// A pattern of what to take is none.
    #[error("source {origin}")]
    Pattern {
        /// The source.
        origin: String,
        /// What is wrong with it.
        #[source]
        source: PatternError,
    },
    /// The image could not be found out about.
    #[error("{origin}: {}", chain(source))]
    Registry {
        /// The image.
        origin: String,
        /// Why.
        source: RegistryError,
    },
    /// The image is not there for the platform. In BuildKit's words, and what it is there for.
    #[error("{origin}: no match for platform in manifest {digest}: not found: {what}")]
    NoPlatform {
        /// The image.
        origin: String,
        /// Its index.
        digest: Digest,
        /// The platform that was asked for, and those that there are.
        what: String,
    },
    /// The image could not be pulled.
    #[error("{origin}: {}", chain(source))]
    Pull {
        /// The image.
        origin: String,
        /// Why.
        source: TransferError,
    },
    /// Not the content that the client's words pinned.
    #[error("{}", mismatch(what, origin, actual, expected))]
    Checksum {
        /// The source.
        origin: String,
        /// What has a digest: `image`, `file`.
        what: &'static str,
        /// What was asked for.
        expected: Digest,
        /// What is there.
        actual: Digest,
    },
    /// An image of an image index, or a layer of an image, that is not there.
    #[error("{origin}: {why}")]
    Unsuitable {
        /// The source.
        origin: String,
        /// What is wrong with it.
        why: String,
    },
    /// There is no directory under this name, with a session or without.
    #[error("could not access local files without session: {origin}")]
    NoDirectory {
        /// The source.
        origin: String,
    },
    /// The client's session is not there, or failed.
    #[error("failed to load {origin}: {source}")]
    Session {
        /// The source.
        origin: String,
        /// Why.
        source: lapstrake_session::Error,
    },
    /// A directory of this machine could not be copied.
    #[error("failed to load {origin}: {source}")]
    Copy {
        /// The source.
        origin: String,
        /// Why.
        source: lapstrake_session::TransferError,
    },
    /// The server could not be asked.
    #[error("failed to load {origin}: {why}")]
    Http {
        /// The URL, without credentials.
        origin: String,
        /// Why.
        why: String,
    },
    /// The server refused.
    #[error("invalid response status {status} for {origin}")]
    HttpStatus {
        /// The URL, without credentials.
        origin: String,
        /// The HTTP status.
        status: u16,
    },
    /// The server's answer is longer than allowed.
    #[error("{origin}: larger than {limit} bytes")]
    TooLarge {
        /// The source.
        origin: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// The git program failed.
    #[error("failed to load {origin}: git {command}: {message}")]
    Git {
        /// The remote, without credentials.
        origin: String,
        /// Its first argument.
        command: String,
        /// What it wrote to its standard error, shortened.
        message: String,
    },
    /// The repository does not have it.
    #[error("{origin}: repository does not contain {what}")]
    GitNotFound {
        /// The remote, without credentials.
        origin: String,
        /// What was looked for.
        what: String,
    },
    /// It is not signed by whom the client believes.
    #[error("{origin}: {why}")]
    Unsigned {
        /// The source.
        origin: String,
        /// What is wrong with its signature.
        why: String,
    },
    /// Something in the repository is refused.
    #[error("{origin}: {why}")]
    Refused {
        /// The source.
        origin: String,
        /// What, and why.
        why: String,
    },
    /// The client's policy does not let it pass.
    #[error("could not resolve image due to policy: {0}")]
    Policy(#[source] PolicyError),
    /// A store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cache's records failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The file system refused.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Nobody waits for it any more.
    #[error("context canceled")]
    Canceled,
}

/// The kinds of error that callers treat differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// It is not there.
    NotFound,
    /// Not without (other) credentials.
    Unauthorized,
    /// Not for these credentials, or not for anybody.
    Denied,
    /// The request can never be right.
    Invalid,
    /// It is not done here.
    Unsupported,
    /// What came is not what was asked for.
    Corrupt,
    /// Another machine, or the client, cannot be reached or does not work now.
    Unavailable,
    /// Nobody waits for it any more.
    Canceled,
    /// This machine failed.
    Internal,
}

impl SourceError {
    /// How a caller should treat this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Identifier { .. } | Self::Attribute { .. } | Self::Pattern { .. } => ErrorKind::Invalid,
            Self::Unsuitable { .. } => ErrorKind::Invalid,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::Registry { source, .. } => of_registry(source),
            Self::NoPlatform { .. } => ErrorKind::NotFound,
            Self::Pull { source, .. } => match source.kind() {
                transfer::ErrorKind::NotFound => ErrorKind::NotFound,
                transfer::ErrorKind::Unauthorized => ErrorKind::Unauthorized,
                transfer::ErrorKind::Denied => ErrorKind::Denied,
                transfer::ErrorKind::Invalid => ErrorKind::Invalid,
                transfer::ErrorKind::Corrupt => ErrorKind::Corrupt,
                transfer::ErrorKind::Unavailable => ErrorKind::Unavailable,
                transfer::ErrorKind::Canceled => ErrorKind::Canceled,
                transfer::ErrorKind::Conflict | transfer::ErrorKind::Internal => ErrorKind::Internal,
            },
            Self::Checksum { .. } | Self::TooLarge { .. } => ErrorKind::Corrupt,
            Self::NoDirectory { .. } => ErrorKind::Invalid,
            Self::Session { source, .. } => match source {
                lapstrake_session::Error::Cancelled { .. } => ErrorKind::Canceled,
                lapstrake_session::Error::Unsupported { .. } => ErrorKind::Unsupported,
                lapstrake_session::Error::Transfer { .. } | lapstrake_session::Error::Call { .. } => {
                    ErrorKind::Invalid
                }
                _ => ErrorKind::Unavailable,
            },
            Self::Copy { source, .. } => match source {
                lapstrake_session::TransferError::Io { .. } => ErrorKind::Internal,
                _ => ErrorKind::Invalid,
            },
            Self::HttpStatus { status: 404 | 410, .. } | Self::GitNotFound { .. } => ErrorKind::NotFound,
            Self::HttpStatus { status: 401, .. } => ErrorKind::Unauthorized,
            Self::HttpStatus { status: 403, .. }
            | Self::Refused { .. }
            | Self::Unsigned { .. }
            | Self::Policy(_) => ErrorKind::Denied,
            Self::Git { message, .. } => of_git(message),
            Self::Http { .. } | Self::HttpStatus { .. } => ErrorKind::Unavailable,
            Self::Store(source) | Self::Cache(CacheError::Store(source)) => of_store(source),
            Self::Canceled => ErrorKind::Canceled,
            Self::Cache(_) | Self::Io { .. } => ErrorKind::Internal,
        }
    }

    /// A session's error with the source that wanted something of it.
    pub(crate) fn session(origin: &str) -> impl FnOnce(lapstrake_session::Error) -> Self + use<> {
        let origin = origin.to_owned();
        move |source| match source {
            lapstrake_session::Error::Cancelled { .. } => Self::Canceled,
            source => Self::Session { origin, source },
        }
    }

    /// An I/O error with what was being done, and on what.
    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }

    /// Runs blocking work on a thread that may block.
    pub(crate) async fn blocking<T: Send + 'static, E: Into<Self> + Send + 'static>(
        work: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<T, Self> {
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result.map_err(Into::into),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // Only a runtime that is shutting down cancels a blocking task.
                Err(_) => Err(Self::Canceled),
            },
        }
    }
}

/// For a file, in BuildKit's words.
fn mismatch(what: &str, origin: &str, actual: &Digest, expected: &Digest) -> String {
    match what {
        "file" => format!("digest mismatch for {origin}: {actual} (expected: {expected})"),
        _ => format!("{what} digest {actual} for {origin} does not match expected checksum {expected}"),
    }
}

/// By git's own words: it has no codes for what a server answered.
fn of_git(message: &str) -> ErrorKind {
    let says = |words: &[&str]| words.iter().any(|words| message.contains(words));
    if says(&[
        "Authentication failed",
        "could not read Username",
        "could not read Password",
        "Permission denied (",
        "returned error: 401",
    ]) {
        ErrorKind::Unauthorized
    } else if says(&["returned error: 403"]) {
        ErrorKind::Denied
    } else if says(&[
        "' not found",
        "repository not exported",
        "does not appear to be a git repository",
        "returned error: 404",
    ]) {
        ErrorKind::NotFound
    } else {
        ErrorKind::Unavailable
    }
}

fn of_registry(error: &RegistryError) -> ErrorKind {
    match error.kind() {
        registry::ErrorKind::NotFound => ErrorKind::NotFound,
        registry::ErrorKind::Unauthorized => ErrorKind::Unauthorized,
        registry::ErrorKind::Denied => ErrorKind::Denied,
        registry::ErrorKind::Corrupt => ErrorKind::Corrupt,
        registry::ErrorKind::Unavailable => ErrorKind::Unavailable,
        registry::ErrorKind::Invalid => ErrorKind::Invalid,
        registry::ErrorKind::Internal => ErrorKind::Internal,
    }
}

fn of_store(error: &StoreError) -> ErrorKind {
    match error.kind() {
        store::ErrorKind::NotFound => ErrorKind::NotFound,
        store::ErrorKind::Corrupt => ErrorKind::Corrupt,
        store::ErrorKind::Invalid => ErrorKind::Invalid,
        store::ErrorKind::Conflict | store::ErrorKind::Internal => ErrorKind::Internal,
    }
}

/// An error with its causes: a step's message is one line, whose end tells the most.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}
