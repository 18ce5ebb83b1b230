//! The crate's one error type.

/// Why a value is not a valid digest, reference, platform, timestamp or document.
///
/// Messages use the wording of go-digest, distribution and containerd, which clients print and tests match.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OciError {
    /// Not of the form `algorithm:hex`.
    #[error("invalid checksum digest format: {0:?}")]
    DigestFormat(String),
    /// The hex part has not the length of its algorithm.
    #[error("invalid checksum digest length: {0:?}")]
    DigestLength(String),
    /// An algorithm other than sha256 and sha512.
    #[error("unsupported digest algorithm: {0:?}")]
    DigestUnsupported(String),
    /// The reference does not match the grammar.
    #[error("invalid reference format")]
    ReferenceFormat(String),
    /// The reference's repository part has upper-case letters.
    #[error("invalid reference format: repository name ({repository}) must be lowercase")]
    ReferenceUppercase {
        /// The offending repository part.
        repository: String,
    },
    /// A reference that would be mistaken for an image id.
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    ReferenceIsId(String),
    /// The repository path is longer than 255 characters.
    #[error("repository name must not be more than 255 characters")]
    ReferenceTooLong(String),
    /// Not a valid tag.
    #[error("invalid tag format")]
    TagFormat(String),
    /// Not a platform specifier.
    #[error("invalid platform {specifier:?}: {reason}")]
    Platform {
        /// The whole specifier.
        specifier: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Not an RFC 3339 time.
    #[error("invalid time {0:?}: not RFC 3339")]
    Timestamp(String),
    /// A document that is not the JSON it should be.
    #[error("invalid {what}: {reason}")]
    Json {
        /// Which document.
        what: &'static str,
        /// The parser's words.
        reason: String,
    },
}

impl OciError {
    pub(crate) fn json(what: &'static str, e: &serde_json::Error) -> OciError {
        OciError::Json { what, reason: e.to_string() }
    }
}
