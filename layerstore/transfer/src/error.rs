//! Why an image could not be moved.

use lapstrake_layerstore_diff::{self as diff, DiffError};
use lapstrake_layerstore_oci::{DiffId, OciError};
use lapstrake_layerstore_registry::{self as registry, RegistryError};
use lapstrake_layerstore_store::{self as store, StoreError};

/// Why an image could not be moved into or out of the stores.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// A store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The registry failed, lied, or refused.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A layer cannot be unpacked or written.
    #[error("layer {layer}")]
    Layer {
        /// Which: a diff id, a digest, or a snapshot.
        layer: String,
        /// Why.
        #[source]
        source: DiffError,
    },
    /// A document is not what it should be.
    #[error("{what}")]
    Document {
        /// Which document.
        what: String,
        /// Why.
        #[source]
        source: OciError,
    },
    /// A layer's content is not what the image's config says.
    #[error("layer {expected}: its content has the diff id {actual}")]
    WrongDiffId {
        /// What the config says.
        expected: DiffId,
        /// What it is.
        actual: DiffId,
    },
    /// An archive is not what it should be.
    #[error("invalid archive: {why}")]
    BadArchive {
        /// What is wrong with it.
        why: String,
    },
    /// An archive's tar stream cannot be read.
    #[error("read archive")]
    ReadArchive(#[source] DiffError),
    /// A layer's tar stream has another length than a moment before.
    #[error("layer {layer}: its tar stream is {actual} bytes long, and was {expected} before")]
    WrongSize {
        /// The layer.
        layer: DiffId,
        /// Its length before.
        expected: u64,
        /// Its length now, at least.
        actual: u64,
    },
    /// The image is not made for this.
    #[error("{what}")]
    Unsuitable {
        /// What is wrong with it.
        what: String,
    },
    /// Reading or writing a stream failed.
    #[error("{doing}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
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
    /// Not for these credentials.
    Denied,
    /// It is in use, or there already.
    Conflict,
    /// What was asked for can never be right.
    Invalid,
    /// What came is at fault: a damaged archive, a layer that is not what its image says.
    Corrupt,
    /// The registry cannot be reached or does not work now.
    Unavailable,
    /// Nobody waits for it any more.
    Canceled,
    /// This machine failed.
    Internal,
}

impl TransferError {
    /// How a caller should treat this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(source) => match source.kind() {
                store::ErrorKind::NotFound => ErrorKind::NotFound,
                store::ErrorKind::Conflict => ErrorKind::Conflict,
                store::ErrorKind::Invalid => ErrorKind::Invalid,
                // What is damaged is this machine's, not what came.
                store::ErrorKind::Corrupt | store::ErrorKind::Internal => ErrorKind::Internal,
            },
            Self::Registry(source) => match source.kind() {
                registry::ErrorKind::NotFound => ErrorKind::NotFound,
                registry::ErrorKind::Unauthorized => ErrorKind::Unauthorized,
                registry::ErrorKind::Denied => ErrorKind::Denied,
                registry::ErrorKind::Corrupt => ErrorKind::Corrupt,
                registry::ErrorKind::Unavailable => ErrorKind::Unavailable,
                registry::ErrorKind::Invalid => ErrorKind::Invalid,
                registry::ErrorKind::Internal => ErrorKind::Internal,
            },
            Self::Layer { source, .. } | Self::ReadArchive(source) => match source.kind() {
                diff::ErrorKind::Archive | diff::ErrorKind::TooLarge | diff::ErrorKind::Unsupported => {
                    ErrorKind::Corrupt
                }
                diff::ErrorKind::Stream | diff::ErrorKind::Internal => ErrorKind::Internal,
            },
            Self::Document { .. } | Self::WrongDiffId { .. } | Self::BadArchive { .. } => ErrorKind::Corrupt,
            Self::Unsuitable { .. } => ErrorKind::Invalid,
            Self::WrongSize { .. } | Self::Io { .. } => ErrorKind::Internal,
            Self::Canceled => ErrorKind::Canceled,
        }
    }

    /// An I/O error with what was being done. Use as `.map_err(TransferError::io("read archive"))`.
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }

    /// An archive that is not what it should be.
    pub(crate) fn archive(why: impl Into<String>) -> Self {
        Self::BadArchive { why: why.into() }
    }

    /// A document's error with its name. Use as `.map_err(TransferError::document("config"))`.
    pub(crate) fn document(what: impl Into<String>) -> impl FnOnce(OciError) -> Self {
        let what = what.into();
        move |source| Self::Document { what, source }
    }

    /// A layer's error with its name.
    pub(crate) fn layer(layer: impl std::fmt::Display) -> impl FnOnce(DiffError) -> Self {
        let layer = layer.to_string();
        move |source| Self::Layer { layer, source }
    }

    /// Runs blocking work on a thread that may block.
    pub(crate) async fn blocking<T: Send + 'static>(
        work: impl FnOnce() -> Result<T, Self> + Send + 'static,
    ) -> Result<T, Self> {
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
}
