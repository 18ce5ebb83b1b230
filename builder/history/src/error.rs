//! What can go wrong with the history.

use std::{io, path::PathBuf};

use lapstrake_builder_progress::ProgressError;
use lapstrake_layerstore_store::StoreError;

/// Why the history could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HistoryError {
    /// There is no build with this id, or none whose id begins so.
    #[error("no build {id:?} in the history")]
    NoSuchBuild {
        /// What was asked for.
        id: String,
    },
    /// Several builds' ids begin so.
    #[error("{id:?} is the beginning of several builds' ids")]
    Ambiguous {
        /// What was asked for.
        id: String,
    },
    /// The build is running.
    #[error("build {id} is running: cancel it first")]
    Running {
        /// Its id.
        id: String,
    },
    /// The build has no log: it was interrupted, or its log could not be written.
    #[error("build {id} has no log")]
    NoLog {
        /// Its id.
        id: String,
    },
    /// The build's log could not be read.
    #[error("read the log of build {id}")]
    Progress {
        /// Its id.
        id: String,
        /// Why.
        #[source]
        source: ProgressError,
    },
    /// A record is not what this wrote.
    #[error("the record of build {id} is damaged")]
    Damaged {
        /// Its id.
        id: String,
        /// What is wrong.
        #[source]
        source: io::Error,
    },
    /// The file system refused.
    #[error("{doing} {path}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The database refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Work on the history ended in a panic.
    #[error("work on the history was lost")]
    Lost,
}

impl HistoryError {
    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }
}
