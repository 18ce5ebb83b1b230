//! The one error type of this crate.

use std::{fmt, io, path::PathBuf};

use lapstrake_builder_dockerfile::ignore::PatternError;
use lapstrake_layerstore_diff::DiffError;
use lapstrake_layerstore_store::StoreError;
use rustix::io::Errno;

/// What went wrong with a file action, a digest, a merge or a difference. Paths are those inside of the tree.
///
/// The texts are those of BuildKit where people search for them; print the chain of sources joined by `": "`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilesError {
    /// What a digest was wanted of is not there.
    #[error("failed to calculate checksum of ref {}", not_found(tree.as_deref(), path))]
    NotFound {
        /// The snapshot; `None` is the empty tree.
        tree: Option<String>,
        /// The path.
        path: String,
    },
    /// A digest could not be made.
    #[error("failed to calculate checksum of ref {tree}")]
    Digest {
        /// The snapshot.
        tree: String,
        /// Why.
        #[source]
        source: Box<FilesError>,
    },
    /// One of the actions of an op failed.
    #[error("{what}")]
    Action {
        /// Which one, from 0; the line of the Dockerfile that it came from is found by this.
        index: usize,
        /// The action, with its paths.
        what: String,
        /// Why.
        #[source]
        source: Box<FilesError>,
    },
    /// An owner's name is nobody's. The words are those of Moby's classic builder.
    #[error(
        "unable to convert uid/gid chown string to host mapping: can't find {id} for {kind} {name}: no such {kind}: {name}"
    )]
    UnknownOwner {
        /// `user` or `group`.
        kind: &'static str,
        /// `uid` or `gid`.
        id: &'static str,
        /// The name.
        name: String,
    },
    /// A pattern without any match, where one is needed.
    #[error("{path} not found")]
    NoMatch {
        /// The pattern.
        path: String,
    },
    /// The file system refused.
    #[error("{doing} {path}")]
    Io {
        /// The call, as in `lstat`.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: OsError,
    },
    /// A directory is to be copied to where a file is.
    #[error("cannot copy to non-directory: {path}")]
    NotADirectory {
        /// Where.
        path: PathBuf,
    },
    /// A file is to be copied to where a directory is.
    #[error("cannot replace to directory {path} with file")]
    IsADirectory {
        /// Where.
        path: PathBuf,
    },
    /// Symbolic links that lead to each other.
    #[error("{path}: too many links")]
    TooManyLinks {
        /// Where it began.
        path: String,
    },
    /// A pattern of a path that cannot be read.
    #[error("syntax error in pattern {pattern:?}")]
    BadGlob {
        /// The pattern.
        pattern: String,
    },
    /// Include or exclude patterns that cannot be read.
    #[error("invalid {which}: {patterns:?}")]
    BadPatterns {
        /// `includepatterns` or `excludepatterns`.
        which: &'static str,
        /// All of them.
        patterns: Vec<String>,
        /// What is wrong.
        #[source]
        source: PatternError,
    },
    /// A symbolic mode that cannot be read.
    #[error("invalid mode {mode:?}: {why}")]
    BadMode {
        /// The text.
        mode: String,
        /// What is wrong.
        why: &'static str,
    },
    /// An op that can never be right.
    #[error("invalid file op: {what}")]
    Invalid {
        /// What is wrong.
        what: String,
    },
    /// Something in a tree that this program does not take.
    #[error("{path}: {why}")]
    Unsupported {
        /// Where.
        path: PathBuf,
        /// What it is.
        why: &'static str,
    },
    /// A file of users or groups larger than the limit.
    #[error("{path:?} exceeds {limit} bytes")]
    TooLarge {
        /// The file.
        path: String,
        /// The limit.
        limit: u64,
    },
    /// The work was cancelled.
    #[error("context canceled")]
    Canceled,
    /// An archive could not be unpacked, or a layer not be read or applied.
    #[error(transparent)]
    Layer(#[from] DiffError),
    /// A store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An error of the operating system, in the words of Go's `syscall` package, which users know from BuildKit.
#[derive(Debug)]
pub struct OsError(io::Error);

impl OsError {
    /// The error itself.
    pub fn kind(&self) -> io::ErrorKind {
        self.0.kind()
    }
}

impl fmt::Display for OsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errno = self.0.raw_os_error().map(Errno::from_raw_os_error);
        match errno {
            Some(Errno::NOENT) => f.write_str("no such file or directory"),
            Some(Errno::EXIST) => f.write_str("file exists"),
            Some(Errno::NOTDIR) => f.write_str("not a directory"),
            Some(Errno::ISDIR) => f.write_str("is a directory"),
            Some(Errno::ACCESS) => f.write_str("permission denied"),
            Some(Errno::PERM) => f.write_str("operation not permitted"),
            Some(Errno::NOTEMPTY) => f.write_str("directory not empty"),
            Some(Errno::LOOP) => f.write_str("too many levels of symbolic links"),
            Some(Errno::NAMETOOLONG) => f.write_str("file name too long"),
            Some(Errno::NOSPC) => f.write_str("no space left on device"),
            _ => self.0.fmt(f),
        }
    }
}

impl std::error::Error for OsError {}

impl FilesError {
    /// An error of a call with what it was on. Use as `.map_err(FilesError::io("open", path))`.
    pub(crate) fn io<E: Into<io::Error>>(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source: OsError(source.into()) }
    }

    /// Whether something was not where it was looked for.
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::NotFound { .. } | Self::NoMatch { .. } => true,
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Action { source, .. } | Self::Digest { source, .. } => source.is_not_found(),
            _ => false,
        }
    }
}

/// In BuildKit's words, which are others for a tree that has nothing.
fn not_found(tree: Option<&str>, path: &str) -> String {
    match tree {
        Some(tree) => format!("{tree}: {path:?}: not found"),
        None => format!("scratch: {path}: no such file or directory"),
    }
}
