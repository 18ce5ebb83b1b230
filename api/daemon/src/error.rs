//! Why the program could not do what it was started for.

use std::{error::Error, fmt::Write as _, io, path::PathBuf};

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

/// An error and its causes on one line; a cause that the line says already is left out.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let cause = source.to_string();
        // A cause that ends in the text is the same said with its place before it, as a failed step's.
        if !text.contains(&cause) && !cause.ends_with(&text) {
            let _ = write!(text, ": {cause}"); // a String takes everything
        }
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Said {
        text: &'static str,
        source: Option<Box<Said>>,
    }

    fn chained(texts: &[&'static str]) -> String {
        let make = |source: Option<Box<Said>>, text: &&'static str| Some(Box::new(Said { text, source }));
        let error = texts.iter().rev().fold(None, make).unwrap();
        chain(error.as_ref())
    }

    #[test]
    fn every_cause_is_said_once() {
        assert_eq!(chained(&["open x", "no such file"]), "open x: no such file");
        assert_eq!(chained(&["open x: no such file", "no such file"]), "open x: no such file");
        assert_eq!(
            chained(&["exit code: 1", "[2/2] RUN false: exit code: 1", "exit code: 1"]),
            "exit code: 1"
        );
    }
}
