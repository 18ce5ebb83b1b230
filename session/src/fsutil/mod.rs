//! Directory trees over a session, in fsutil's protocol.
//!
//! The sender lists the tree (`STAT`, sorted, each entry after its directory), the receiver asks for the files it wants (`REQ`), the sender
//! answers with their contents (`DATA`, an empty one ends a file), and the receiver says `FIN` when it has all. Either may say `ERR`.
//!
//! ```text
//!   client                     SessionCaller::sync_dir
//!     STAT… DATA… ──stream──► (8 MiB at most) ──► Receiver, a blocking thread ──► Disk (dir fds, O_EXCL, no symlinks)
//!     ◄──── REQ (64 at most) ──────────────────────────┘      └─► Index: entries, digests, inode + ctime
//! ```

mod clone;
mod copy;
mod disk;
mod index;
mod path;
mod receive;
mod send;
mod stat;
mod sync;
mod tree;
mod wire;

use std::os::fd::OwnedFd;

pub use copy::copy_tree;
pub use index::{ContentDigest, Entry, Index};
pub use send::{Coverage, Sent};
pub use stat::{FileKind, FileStat, TreeEntry};
pub use tree::{DirTree, TreeReader};

use crate::TransferError;

/// Which of the client's directories, and what of it. The client applies the patterns (`.dockerignore`'s syntax).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SyncRequest {
    /// The name under which the client offers the directory: `context`, `dockerfile`, or a named context's.
    pub name: String,
    /// Only these; all when empty.
    pub include_patterns: Vec<String>,
    /// Not these.
    pub exclude_patterns: Vec<String>,
    /// Only these, and where their symlinks lead.
    pub follow_paths: Vec<String>,
}

/// Makes a directory that a transfer may write to, a clone of the one it began with ([`Index::clone_tree`]), and says what is in it. Blocks.
pub type Fork = Box<dyn FnOnce() -> Result<(OwnedFd, Index), TransferError> + Send>;

/// Where a received tree goes.
pub struct Destination {
    /// The directory, which holds an earlier copy or nothing. It is locked (`flock`) while it is written to. It must not be written by others:
    /// its files may be hard-linked or cloned elsewhere (contents are never written in place), but hard-linking changes
    /// their ctime, so that they are transferred again.
    pub dir: OwnedFd,
    /// Given when `dir` is immutable: called once, at the first difference, for a directory to write to. A transfer that finds none writes
    /// nothing at all.
    pub fork: Option<Fork>,
    /// What the last transfer into `dir` returned; empty when unknown. It may be older than what `dir` holds.
    pub previous: Index,
    /// How unchanged files are recognised.
    pub compare: Compare,
    /// Whose the files become.
    pub ownership: Ownership,
    /// What to do about device nodes.
    pub devices: Devices,
    /// How large the tree may be.
    pub limits: Limits,
    /// What the digest of a regular file begins with, given what the client announced. The same for all transfers into `dir`.
    pub prefix: fn(&FileStat) -> Vec<u8>,
}

impl Destination {
    /// A destination with the usual choices.
    pub fn new(dir: OwnedFd, previous: Index) -> Self {
        Self {
            dir,
            fork: None,
            previous,
            compare: Compare::default(),
            ownership: Ownership::default(),
            devices: Devices::default(),
            limits: Limits::default(),
            prefix: |_| Vec::new(),
        }
    }
}

/// How files that need not be written again are recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compare {
    /// By their contents: everything is transferred, and compared with what is on disk as it comes. Only this notices new contents
    /// of the old size under the old time (`touch -r`, reproducible archives, two checkouts of one name).
    #[default]
    Content,
    /// The client announces all of its metadata as before, and what is on disk is untouched since (inode and ctime). Files modified in the
    /// same clock tick as they were received are not trusted.
    Metadata,
}

/// Owner of the files written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ownership {
    /// As the client says (for a context it says 0:0).
    #[default]
    AsSent,
    /// Whoever the daemon is: for one without privileges. The [`Entry`]'s stat still says what the client said.
    Daemon,
}

/// What to do about device nodes in a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Devices {
    /// Fail the transfer: a client must not make nodes for the daemon's devices.
    #[default]
    Refuse,
    /// Make them, as BuildKit does.
    Create,
}

/// How large a tree may be; a larger one is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Files, directories and others.
    pub entries: u64,
    /// Memory for the list, in bytes: paths, link texts, xattrs, and 256 for each entry.
    pub metadata_bytes: u64,
    /// Levels of directories; each takes a file descriptor.
    pub depth: u64,
    /// Announced bytes of all files.
    pub content_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 2_000_000, metadata_bytes: 512 << 20, depth: 200, content_bytes: u64::MAX }
    }
}

/// A completed transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Everything that is in the destination now; the next transfer's [`Destination::previous`].
    pub index: Index,
    /// Files that were written: those on disk were not known to be, or found to be, what the client has.
    pub files_written: u64,
    /// Bytes that came: contents and list.
    pub bytes_transferred: u64,
}
