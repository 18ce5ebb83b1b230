//! The crate's error.

use lapstrake_layerstore_oci::{Digest, OciError};

/// Why a graph cannot be read or made. Where BuildKit has words for it, they are BuildKit's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no op at all.
    #[error("invalid empty definition")]
    Empty,
    /// Bytes that are no protobuf message of the kind they should be.
    #[error("failed to parse llb proto {what}: {source}")]
    Decode {
        /// `op` or `definition`.
        what: &'static str,
        /// What prost says.
        #[source]
        source: prost::DecodeError,
    },
    /// More ops than a graph may have.
    #[error("definition has {count} vertexes, the limit is {limit}")]
    TooManyOps {
        /// How many there are.
        count: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// More bytes than a graph may have.
    #[error("definition is larger than {limit} bytes")]
    TooLarge {
        /// How many are allowed.
        limit: usize,
    },
    /// Only the terminal op, or not even that.
    #[error("invalid LLB with {0} vertexes")]
    TooFewOps(usize),
    /// The terminal op names no result.
    #[error("invalid LLB with no inputs on last vertex")]
    NoTarget,
    /// An input that is in no op of the definition.
    #[error("invalid missing input digest {0}")]
    MissingInput(String),
    /// An input whose output number cannot be one.
    #[error("invalid input {input} output index {index}")]
    OutputIndex {
        /// Which input.
        input: usize,
        /// The number.
        index: i64,
    },
    /// A vertex that needs itself.
    #[error("circular dependency in LLB at {0}")]
    Cycle(Digest),
    /// A vertex whose parts do not fit together.
    #[error("{problem} (vertex {vertex})")]
    Vertex {
        /// Which vertex.
        vertex: Digest,
        /// What is wrong.
        problem: String,
    },
    /// Metadata for something that is no digest.
    #[error("invalid vertex digest in metadata: {0}")]
    MetadataDigest(#[source] OciError),
    /// A source location that points at no source file.
    #[error("failed to find source map with index {0}")]
    SourceMapIndex(i32),
    /// An op was built without something that it needs.
    #[error("{0}")]
    Build(&'static str),
    /// A mount that has no output was used as one.
    #[error("{why} and {target} can't be used as a parent")]
    NoOutput {
        /// What it is.
        why: &'static str,
        /// Where it is mounted.
        target: String,
    },
}
