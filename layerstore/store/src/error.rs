//! The one error type of the stores.

use std::{fmt, io, path::PathBuf};

use lapstrake_layerstore_oci::{Digest, OciError};

/// What went wrong in a store, naming the thing it went wrong with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The thing asked for is not in the store. `kind` is "blob", "snapshot", "image", …
    #[error("{kind} {id}: not found")]
    NotFound {
        /// What kind of thing.
        kind: &'static str,
        /// Its id or name.
        id: String,
    },
    /// The name or key is taken.
    #[error("{kind} {id}: already exists")]
    AlreadyExists {
        /// What kind of thing.
        kind: &'static str,
        /// Its id or name.
        id: String,
    },
    /// The thing cannot be removed or changed because something else uses it.
    #[error("{kind} {id}: in use by {by}")]
    InUse {
        /// What kind of thing.
        kind: &'static str,
        /// Its id or name.
        id: String,
        /// Who uses it.
        by: String,
    },
    /// An id or name given by a caller matches several things.
    #[error("{kind} {id}: ambiguous")]
    Ambiguous {
        /// What kind of thing.
        kind: &'static str,
        /// The text that was given.
        id: String,
    },
    /// A request that can never be right, such as committing a read-only view.
    #[error("{kind} {id}: {why}")]
    Invalid {
        /// What kind of thing.
        kind: &'static str,
        /// Its id or name.
        id: String,
        /// Why it is refused.
        why: &'static str,
    },
    /// Bytes did not have the digest they were announced with.
    #[error("digest mismatch: expected {expected}, got {actual}")]
    DigestMismatch {
        /// The digest that was announced.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// Bytes did not have the length they were announced with.
    #[error("{digest}: size mismatch: expected {expected} bytes, got {actual}")]
    SizeMismatch {
        /// The blob.
        digest: Digest,
        /// Announced bytes.
        expected: u64,
        /// Bytes that came.
        actual: u64,
    },
    /// Something on disk is not what the store wrote.
    #[error("{path}: damaged: {why}")]
    Damaged {
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Something on disk was written by a newer version of this program.
    #[error("{path}: {what}: version {found} is newer than {known}, the newest that this program knows")]
    TooNew {
        /// The file.
        path: PathBuf,
        /// What in it.
        what: String,
        /// Its version.
        found: i64,
        /// The newest version that this program reads.
        known: i64,
    },
    /// A text or document given by a caller is not what it should be.
    #[error("{kind} {id}")]
    Malformed {
        /// What kind of thing.
        kind: &'static str,
        /// Its id or name.
        id: String,
        /// What is wrong with it.
        #[source]
        source: OciError,
    },
    /// Another process has the store open.
    #[error("{root}: the store is in use by another process")]
    Locked {
        /// The root directory of the store.
        root: PathBuf,
    },
    /// The metadata database refused.
    #[error("metadata: {doing}")]
    Metadata {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: rusqlite::Error,
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
}

/// The kinds of error that callers treat differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// It is not there.
    NotFound,
    /// It is there already, is in use, or the given name fits several.
    Conflict,
    /// The request can never be right.
    Invalid,
    /// The bytes that came are not the bytes that were announced.
    Corrupt,
    /// The store or the machine failed.
    Internal,
}

impl StoreError {
    /// How a caller should treat this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::AlreadyExists { .. } | Self::InUse { .. } | Self::Ambiguous { .. } => ErrorKind::Conflict,
            Self::Invalid { .. } | Self::Malformed { .. } => ErrorKind::Invalid,
            Self::DigestMismatch { .. } | Self::SizeMismatch { .. } => ErrorKind::Corrupt,
            Self::Damaged { .. }
            | Self::TooNew { .. }
            | Self::Locked { .. }
            | Self::Metadata { .. }
            | Self::Io { .. } => ErrorKind::Internal,
        }
    }

    /// [`Self::NotFound`].
    pub fn not_found(kind: &'static str, id: impl fmt::Display) -> Self {
        Self::NotFound { kind, id: id.to_string() }
    }

    /// [`Self::AlreadyExists`].
    pub fn already_exists(kind: &'static str, id: impl fmt::Display) -> Self {
        Self::AlreadyExists { kind, id: id.to_string() }
    }

    /// [`Self::Invalid`].
    pub fn invalid(kind: &'static str, id: impl fmt::Display, why: &'static str) -> Self {
        Self::Invalid { kind, id: id.to_string(), why }
    }

    /// An I/O error with what was being done, and on what. Use as `.map_err(StoreError::io("open", path))`.
    pub fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }

    /// A metadata error with what was being done. Use as `.map_err(StoreError::metadata("tag image"))`.
    pub fn metadata(doing: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| Self::Metadata { doing, source }
    }
}

/// Takes an absent thing for `None`, where things may go between being seen and being asked about.
pub(crate) fn found<T>(result: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
