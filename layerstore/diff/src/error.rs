//! The one error type of this crate.

use std::{fmt, io, os::unix::ffi::OsStrExt as _, path::PathBuf};

/// A path as it stands in an archive: bytes, shown lossily.
#[derive(Clone, PartialEq, Eq)]
pub struct EntryName(pub Box<[u8]>);

impl EntryName {
    /// Longer names are cut in messages: a hostile archive must not fill the log.
    const SHOWN: usize = 256;

    pub(crate) fn new(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.len().min(Self::SHOWN)];
        let cut = if shown.len() < self.0.len() { "…" } else { "" };
        write!(f, "{:?}{cut}", String::from_utf8_lossy(shown))
    }
}

impl fmt::Debug for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What went wrong with an archive or a tree, naming the entry or path.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiffError {
    /// The stream that the archive comes from failed.
    #[error("read archive")]
    Read(#[source] io::Error),
    /// The stream that the archive goes to failed.
    #[error("write archive")]
    Write(#[source] io::Error),
    /// The compressed stream is damaged or needs more memory than allowed.
    #[error("decompress {format} stream")]
    Decompress {
        /// The format that its first bytes announced.
        format: &'static str,
        /// What the decoder said.
        #[source]
        source: io::Error,
    },
    /// The archive ends in the middle of an entry.
    #[error("archive is cut short in entry {entry}")]
    Truncated {
        /// The entry, or the last one seen before it.
        entry: EntryName,
    },
    /// A block that should be a tar header is none.
    #[error("archive is damaged after entry {after}: {why}")]
    BadHeader {
        /// The last good entry; empty at the start.
        after: EntryName,
        /// What is wrong.
        why: &'static str,
    },
    /// An entry that cannot be unpacked.
    #[error("archive entry {entry}: {why}")]
    BadEntry {
        /// The entry.
        entry: EntryName,
        /// Why it is refused.
        why: &'static str,
    },
    /// An entry or link that would leave the root.
    #[error("archive breakout: entry {entry}: {target} is outside of the root")]
    Breakout {
        /// The entry.
        entry: EntryName,
        /// The name or link target that would leave.
        target: EntryName,
    },
    /// The archive is larger than the caller allows.
    #[error("archive entry {entry}: {what} over the limit of {limit}")]
    OverLimit {
        /// The entry at which it happened.
        entry: EntryName,
        /// What is too much: "entries", "bytes of content", …
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// Unpacking an entry failed.
    #[error("archive entry {entry}: {doing}")]
    Unpack {
        /// The entry.
        entry: EntryName,
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Something in a tree cannot be put in a layer.
    #[error("{path}: {why}")]
    Unsupported {
        /// Where, relative to the tree's root.
        path: EntryName,
        /// What it is.
        why: &'static str,
    },
    /// The target of [`crate::apply()`] has files in it already.
    #[error("{path}: not an empty difference")]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// The file system refused, with a path in a tree or of a store.
    #[error("{doing} {path}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// On what.
        path: EntryName,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// The kinds of error that callers treat differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The archive is at fault.
    Archive,
    /// The archive is larger than allowed.
    TooLarge,
    /// The stream at the other end failed.
    Stream,
    /// The tree holds something that has no place in a layer.
    Unsupported,
    /// The machine failed (or a file system is full).
    Internal,
}

impl DiffError {
    /// How a caller should treat this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Read(_) | Self::Write(_) => ErrorKind::Stream,
            Self::Decompress { .. }
            | Self::Truncated { .. }
            | Self::BadHeader { .. }
            | Self::BadEntry { .. }
            | Self::Breakout { .. } => ErrorKind::Archive,
            Self::OverLimit { .. } => ErrorKind::TooLarge,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::Unpack { .. } | Self::NotEmpty { .. } | Self::Io { .. } => ErrorKind::Internal,
        }
    }

    /// An error of a file-system call on `path`.
    pub(crate) fn io<E: Into<io::Error>>(
        doing: &'static str,
        path: impl AsRef<[u8]>,
    ) -> impl FnOnce(E) -> Self {
        let path = EntryName::new(path.as_ref());
        move |source| Self::Io { doing, path, source: source.into() }
    }

    /// An error of a file-system call on a path of the store.
    pub(crate) fn path<E: Into<io::Error>>(
        doing: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(E) -> Self {
        Self::io(doing, path.as_os_str().as_bytes())
    }

    /// Whether the file system is full (or over quota): the caller may free space and try again.
    pub fn is_no_space(&self) -> bool {
        let source = match self {
            Self::Unpack { source, .. } | Self::Io { source, .. } => source,
            Self::Write(source) => source,
            _ => return false,
        };
        matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}
