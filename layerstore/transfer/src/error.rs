//! Why an image could not be moved.

use lapstrake_layerstore_diff::DiffError;
use lapstrake_layerstore_oci::{DiffId, OciError};
use lapstrake_layerstore_registry::RegistryError;
use lapstrake_layerstore_store::StoreError;

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

impl TransferError {
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
