//! Why the program could not do what it was started for.

use std::{io, path::PathBuf};

pub(crate) use lapstrake_api_server::chain;
use lapstrake_builder_cache::CacheError;
use lapstrake_builder_executor::ExecError;
use lapstrake_builder_history::HistoryError;
use lapstrake_layerstore_store::StoreError;

/// Why the program could not do what it was started for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramError {
    /// An option or a key of the configuration is wrong.
    #[error("{what}: {why}")]
    Setting {
        /// Which.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file that was named cannot be read or is not what it should be.
    #[error("{doing} {path}")]
    File {
        /// What was being done.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The configuration file is not TOML, or a value has the wrong type.
    #[error("configuration {path}")]
    Config {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it, with line and column.
        #[source]
        source: toml::de::Error,
    },
    /// A certificate or key is not good.
    #[error("{what}")]
    Tls {
        /// Of what.
        what: String,
        /// Why.
        #[source]
        source: tokio_rustls::rustls::Error,
    },
    /// A socket could not be made.
    #[error("listen on {host}")]
    Listen {
        /// The address as it was given.
        host: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The machine refused.
    #[error("{doing}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The build cache's tables could not be opened.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The build history failed.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// A Dockerfile is wrong.
    #[error("{place}")]
    Dockerfile {
        /// File and line.
        place: String,
        /// What is wrong with it.
        #[source]
        source: lapstrake_builder_dockerfile::Error,
    },
    /// A build's context could not be taken in.
    #[error(transparent)]
    Engine(#[from] lapstrake_builder_engine::EngineError),
    /// What runs processes could not be started.
    #[error("start what runs the build's processes")]
    Executor(#[from] ExecError),
}

impl ProgramError {
    /// An option or key, and what is wrong with it.
    pub(crate) fn setting(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Setting { what: what.into(), why: why.into() }
    }

    /// For `map_err`: a file and what was being done with it.
    pub(crate) fn file(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { doing, path, source }
    }

    /// For `map_err`: what the machine refused.
    pub(crate) fn system(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { doing, source }
    }
}
