//! How the cache fails.

use lapstrake_layerstore_store::StoreError;

/// Why the cache could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// A store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A filter that means nothing.
    #[error("invalid filter {filter:?}: {why}")]
    Filter {
        /// The filter as given.
        filter: String,
        /// What is wrong with it.
        why: String,
    },
    /// A size that means nothing.
    #[error("invalid disk space {text:?}: {why}")]
    Space {
        /// The size as given.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// A cache mount's id is one that no directory may have.
    #[error("cache mount id {id:?}: {why}")]
    MountId {
        /// The id.
        id: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Another builder's records are not what they should be.
    #[error("cache records: {why}")]
    Records {
        /// What is wrong with them.
        why: String,
    },
    /// A task of the cache ended without an answer.
    #[error("the cache's worker thread panicked")]
    Lost,
}
