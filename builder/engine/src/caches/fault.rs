//! How caches fail that come from elsewhere or go there.

use std::path::PathBuf;

use lapstrake_builder_cache::CacheError;
use lapstrake_layerstore_oci::OciError;
use lapstrake_layerstore_registry::RegistryError;
use lapstrake_layerstore_store::StoreError;
use lapstrake_layerstore_transfer::TransferError;

/// Why a cache could not be brought or left.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheFault {
    /// A registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Layers could not be packed or unpacked.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// The client failed, whose directory it is.
    #[error(transparent)]
    Session(#[from] lapstrake_session::Error),
    /// A store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its document is not what it should be.
    #[error(transparent)]
    Document(#[from] CacheError),
    /// Its manifest is not what it should be.
    #[error(transparent)]
    Manifest(#[from] OciError),
    /// It has something that it should not have, or lacks something.
    #[error("{0}")]
    Unsuitable(String),
    /// A directory failed.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A thread ended without an answer.
    #[error("a worker thread panicked")]
    Lost,
}

impl CacheFault {
    pub(super) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }

    pub(super) fn unsuitable(why: impl Into<String>) -> Self {
        Self::Unsuitable(why.into())
    }

    /// Whether the place is to blame that something was to come from, and not this machine.
    pub(super) fn is_of_source(&self) -> bool {
        let is_of_store = |error: &StoreError| {
            !matches!(error, StoreError::DigestMismatch { .. } | StoreError::SizeMismatch { .. })
        };
        match self {
            Self::Store(error) | Self::Registry(RegistryError::Store(error)) => !is_of_store(error),
            Self::Lost | Self::Registry(RegistryError::Interrupted { .. }) => false,
            _ => true,
        }
    }

    /// What failed, and why, on one line.
    pub(crate) fn told(&self) -> String {
        let mut told = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let text = error.to_string();
            if !told.contains(&text) {
                told = format!("{told}: {text}");
            }
            cause = error.source();
        }
        told
    }

    /// Runs blocking work on a thread that may block.
    pub(super) async fn blocking<T: Send + 'static>(
        work: impl FnOnce() -> Result<T, Self> + Send + 'static,
    ) -> Result<T, Self> {
        tokio::task::spawn_blocking(work).await.map_err(|_| Self::Lost)?
    }
}
