//! What can go wrong with a registry, in Docker's words where users know them.

use std::{fmt, io};

use lapstrake_layerstore_oci::{Digest, OciError};
use lapstrake_layerstore_store::StoreError;

use crate::CredentialsError;

/// What was wanted of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Access {
    /// Reading.
    Pull,
    /// Writing.
    Push,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Access::Pull => "pull",
            Access::Push => "push",
        })
    }
}

/// What a registry said: its first error, `code: message`, or the HTTP status when it gave none. Bounded in length,
/// without control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerMessage {
    /// The HTTP status.
    pub status: u16,
    /// The registry's error code, such as `MANIFEST_UNKNOWN`; empty when it gave none.
    pub code: String,
    /// Its words; empty when it gave none.
    pub message: String,
}

impl fmt::Display for ServerMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.code.to_lowercase().replace('_', " ");
        match (code.is_empty(), self.message.is_empty()) {
            (false, false) => write!(f, "{code}: {}", self.message),
            (false, true) => f.write_str(&code),
            (true, false) => f.write_str(&self.message),
            (true, true) => write!(f, "HTTP status {}", self.status),
        }
    }
}

/// A failed conversation with a registry. `host` is the host that was asked, `what` the thing asked for
/// (`manifest for busybox:1`, `blob sha256:… of busybox`). Never contains credentials or signed URLs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The registry knows who asks and says no; or, to strangers, does not tell whether the repository exists.
    #[error(
        "{access} access denied for {repository}, repository does not exist or may require 'docker login': {message}"
    )]
    Denied {
        /// The host.
        host: String,
        /// The repository's familiar name.
        repository: String,
        /// What was wanted.
        access: Access,
        /// The registry's words.
        message: ServerMessage,
    },
    /// The registry wants to know who asks, or does not accept who it was told.
    #[error("{host}: {what}: {message}")]
    Unauthorized {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// The registry's words, or "no basic auth credentials".
        message: ServerMessage,
    },
    /// The registry does not have it.
    #[error("{what} not found: {message}")]
    NotFound {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// The registry's words.
        message: ServerMessage,
    },
    /// Another HTTP status than expected, after retries.
    #[error("{host}: {what}: unexpected status {}: {message}", message.status)]
    Status {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// The registry's words.
        message: ServerMessage,
    },
    /// The bytes are not those of the digest.
    #[error("{host}: {what}: digest mismatch: expected {expected}, got {actual}")]
    DigestMismatch {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// The digest that named it.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// The bytes are fewer or more than announced.
    #[error("{host}: {what}: size mismatch: expected {expected} bytes, got {actual}")]
    SizeMismatch {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// Announced bytes.
        expected: u64,
        /// Bytes that came, or were said to come.
        actual: u64,
    },
    /// A document longer than such a document may be.
    #[error("{host}: {what}: larger than {limit} bytes")]
    TooLarge {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// The registry sent, or took, nothing for too long.
    #[error("{host}: {what}: no data for {seconds} s")]
    Stalled {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// How long was waited.
        seconds: u64,
    },
    /// No TLS session could be made.
    #[error("{host}: {what}: TLS: {reason}")]
    Tls {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// Why.
        reason: String,
    },
    /// No connection could be made.
    #[error("{host}: {what}: cannot connect: {reason}")]
    Connect {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// Why.
        reason: String,
        /// Whether the other side refused.
        refused: bool,
    },
    /// The connection broke, after retries.
    #[error("{host}: {what}: {reason}")]
    Transport {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// Why.
        reason: String,
    },
    /// A redirect that is not followed.
    #[error("{host}: {what}: redirect refused: {reason}")]
    Redirect {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// Why.
        reason: &'static str,
    },
    /// The token endpoint that the registry named is not usable.
    #[error("{host}: cannot authenticate: {reason}")]
    Auth {
        /// The host.
        host: String,
        /// Why.
        reason: &'static str,
    },
    /// Whoever has the credentials failed.
    #[error("{host}: cannot get credentials")]
    Credentials {
        /// The host.
        host: String,
        /// Why.
        #[source]
        source: CredentialsError,
    },
    /// A schema 1 image, which no client should accept any more.
    #[error(
        "{host}: {what}: Docker image manifest version 1 is not supported: push the image again with a current Docker"
    )]
    Schema1 {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
    },
    /// Something that is no image, such as a plugin or an artifact.
    #[error("{host}: {what}: media type {media_type:?} is not an image's")]
    NotAnImage {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// What it is.
        media_type: String,
    },
    /// A response or document that does not mean anything.
    #[error("{host}: {what}: {reason}")]
    Malformed {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The index has nothing for the platform.
    #[error("{what}: no matching manifest for {platform} in the manifest list entries{}", offered(available))]
    NoMatchingPlatform {
        /// What was asked for.
        what: String,
        /// The platform.
        platform: String,
        /// What the index has.
        available: Vec<String>,
    },
    /// A digest, platform or reference that is not one.
    #[error(transparent)]
    Invalid(#[from] OciError),
    /// The store failed.
    #[error("store")]
    Store(#[from] StoreError),
    /// The configuration names something unusable.
    #[error("registry {host}: {what}: {reason}")]
    Config {
        /// The host whose configuration it is; empty for the whole.
        host: String,
        /// Which setting or file.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A thread that does blocking work ended without an answer (the runtime shuts down, or it panicked).
    #[error("{what}: interrupted")]
    Interrupted {
        /// What was being done.
        what: String,
    },
}

fn offered(available: &[String]) -> String {
    if available.is_empty() { String::new() } else { format!(" ({})", available.join(", ")) }
}

/// The kinds of error that callers treat differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// It is not there.
    NotFound,
    /// Not without (other) credentials.
    Unauthorized,
    /// Not for these credentials.
    Denied,
    /// The bytes that came are not the bytes that were announced.
    Corrupt,
    /// The registry cannot be reached or does not work now.
    Unavailable,
    /// The request, the configuration or the image can never be right.
    Invalid,
    /// This machine failed.
    Internal,
}

impl RegistryError {
    /// How a caller should treat this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } | Self::NoMatchingPlatform { .. } => ErrorKind::NotFound,
            Self::Unauthorized { .. } => ErrorKind::Unauthorized,
            Self::Denied { .. } => ErrorKind::Denied,
            Self::DigestMismatch { .. } | Self::SizeMismatch { .. } | Self::TooLarge { .. } => {
                ErrorKind::Corrupt
            }
            Self::Malformed { .. } => ErrorKind::Corrupt,
            Self::Status { .. } | Self::Stalled { .. } | Self::Tls { .. } | Self::Connect { .. } => {
                ErrorKind::Unavailable
            }
            Self::Transport { .. } | Self::Redirect { .. } | Self::Auth { .. } => ErrorKind::Unavailable,
            Self::Schema1 { .. } | Self::NotAnImage { .. } | Self::Invalid(_) | Self::Config { .. } => {
                ErrorKind::Invalid
            }
            Self::Credentials { .. } | Self::Store(_) | Self::Interrupted { .. } => ErrorKind::Internal,
        }
    }

    /// Whether the same request may well succeed a moment later.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Transport { .. })
    }

    /// Whether asking another host cannot help.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self, Self::Store(_) | Self::Interrupted { .. } | Self::Invalid(_) | Self::Config { .. })
    }
}

/// Sorts a failed request into TLS, connect or transport. The error's URL is dropped: it may be a signed one.
pub(crate) fn from_reqwest(host: &str, what: &str, e: reqwest::Error) -> RegistryError {
    let e = e.without_url();
    let (host, what) = (host.to_owned(), what.to_owned());
    let reason = innermost(&e);
    if find::<tokio_rustls::rustls::Error>(&e).is_some() {
        return RegistryError::Tls { host, what, reason };
    }
    if e.is_connect() {
        let refused = find::<io::Error>(&e).is_some_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
        return RegistryError::Connect { host, what, reason, refused };
    }
    RegistryError::Transport { host, what, reason }
}

/// The last cause's words, which are the ones that tell.
fn innermost(e: &dyn std::error::Error) -> String {
    let mut e = e;
    while let Some(source) = e.source() {
        e = source;
    }
    e.to_string()
}

/// Finds a cause by type, also one that hides in an [`io::Error`] (whose `source` skips it).
fn find<'a, T: std::error::Error + 'static>(e: &'a (dyn std::error::Error + 'static)) -> Option<&'a T> {
    let mut next = Some(e);
    while let Some(e) = next {
        if let Some(found) = e.downcast_ref::<T>() {
            return Some(found);
        }
        if let Some(inner) = e.downcast_ref::<io::Error>().and_then(io::Error::get_ref)
            && let Some(found) = find::<T>(inner)
        {
            return Some(found);
        }
        next = e.source();
    }
    None
}
