//! How solving fails.

use std::sync::Arc;

use lapstrake_layerstore_oci::Digest;

/// Why a result could not be had. Cheap to clone: all who wait for a vertex get the same.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SolveError<E: std::error::Error + 'static> {
    /// An op failed.
    #[error("{name}: {source}")]
    Op {
        /// The vertex.
        vertex: Digest,
        /// What it is called.
        name: String,
        /// Why it failed.
        source: Arc<E>,
    },
    /// Nobody waited for it any more.
    #[error("canceled")]
    Canceled,
    /// An op's task ended without an answer: it panicked.
    #[error("{name}: ended without a result")]
    Lost {
        /// The vertex.
        vertex: Digest,
        /// What it is called.
        name: String,
    },
    /// An op has fewer outputs than the graph uses.
    #[error("{name}: has no output {output}")]
    NoOutput {
        /// The vertex.
        vertex: Digest,
        /// What it is called.
        name: String,
        /// The output asked for.
        output: u32,
    },
}

impl<E: std::error::Error + 'static> Clone for SolveError<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Op { vertex, name, source } => {
                Self::Op { vertex: vertex.clone(), name: name.clone(), source: Arc::clone(source) }
            }
            Self::Canceled => Self::Canceled,
            Self::Lost { vertex, name } => Self::Lost { vertex: vertex.clone(), name: name.clone() },
            Self::NoOutput { vertex, name, output } => {
                Self::NoOutput { vertex: vertex.clone(), name: name.clone(), output: *output }
            }
        }
    }
}
