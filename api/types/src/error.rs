//! The crate's one error type: what is wrong with a request.

/// Why a request's parameters are refused. Messages are Moby's where Moby has one: clients print them, suites compare them.
///
/// All are the client's fault (HTTP 400), except [`ApiTypeError::is_internal`] ones that Moby answers with 500.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApiTypeError {
    /// The query string is not URL-encoded.
    #[error("invalid URL escape {0:?}")]
    Escape(String),
    /// A query value is not UTF-8.
    #[error("query parameter {0}: not valid UTF-8")]
    NotUtf8(String),
    /// Not `major.minor`.
    #[error("invalid API version {0:?}")]
    Version(String),
    /// `client version … is too new`.
    #[error("client version {version} is too new. Maximum supported API version is {max}")]
    VersionTooNew {
        /// What was asked for.
        version: String,
        /// The newest there is.
        max: String,
    },
    /// `client version … is too old`.
    #[error(
        "client version {version} is too old. Minimum supported API version is {min}, please upgrade your client to a newer version"
    )]
    VersionTooOld {
        /// What was asked for.
        version: String,
        /// The oldest there is.
        min: String,
    },
    /// The `filters` parameter is no filter document.
    #[error("invalid filter")]
    Filters,
    /// A filter that does not exist here.
    #[error("invalid filter '{0}'")]
    FilterName(String),
    /// A filter whose value makes no sense.
    #[error("invalid filter '{name}={values}'")]
    FilterValue {
        /// The filter.
        name: String,
        /// Its values in Go's notation, `[a b]`.
        values: String,
    },
    /// More than one value where one is allowed.
    #[error("{0}")]
    FilterCount(&'static str),
    /// Two filters that mean the same.
    #[error("conflicting filters: {0:?} and {1:?}")]
    FilterConflict(&'static str, &'static str),
    /// A time or duration that is neither.
    #[error("{what}: {reason}")]
    Time {
        /// Which parameter, in Moby's words.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A parameter that should be JSON and is not, or is of another shape.
    #[error("{what}: {reason}")]
    Json {
        /// Moby's words for the parameter.
        what: &'static str,
        /// The parser's words.
        reason: String,
    },
    /// A parameter that should be a number.
    #[error("{parameter} is not a valid number: {value:?}")]
    Number {
        /// The parameter.
        parameter: &'static str,
        /// What was given.
        value: String,
    },
    /// Bytes wanted.
    #[error("{parameter} is in bytes and expects an integer, got {value}")]
    Bytes {
        /// The parameter.
        parameter: &'static str,
        /// What was given.
        value: String,
    },
    /// A value that the parameter does not have.
    #[error("invalid {parameter} {value:?}")]
    Value {
        /// The parameter.
        parameter: &'static str,
        /// What was given.
        value: String,
    },
    /// A known parameter that is not served here, refused by name rather than ignored.
    #[error("{0}")]
    Unsupported(String),
    /// A request that contradicts itself or lacks something.
    #[error("{0}")]
    Invalid(&'static str),
    /// A host entry that is none.
    #[error("invalid host {0}")]
    Host(String),
    /// Something wrong with an image name, digest or platform.
    #[error(transparent)]
    Oci(#[from] lapstrake_layerstore_oci::OciError),
    /// A credential header that cannot be read.
    #[error("invalid X-Registry-Auth header: {0}")]
    Auth(String),
    /// Not a kind of object that `system/df` knows.
    #[error("unknown object type: {0}")]
    ObjectType(String),
}

impl ApiTypeError {
    /// Moby has no class for this error, and so answers 500. (Status codes are part of what clients see.)
    pub fn is_internal(&self) -> bool {
        matches!(self, Self::Host(_))
    }
}
