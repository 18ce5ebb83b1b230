//! The tar format itself: headers to entries and back, no file system.
//!
//! Our own, and not the `tar` crate's, because three things must be exact: memory stays bounded whatever a header says,
//! every error names its entry, and the bytes written are those of Go's `archive/tar` (so that a layer made here looks
//! like one made by Docker).

pub(crate) mod pax;
pub(crate) mod reader;
pub(crate) mod sparse;
pub(crate) mod writer;

/// Length of a header, and what content is padded to.
pub(crate) const BLOCK: usize = 512;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// A time since 1970; nanoseconds count forward from the second, also before 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanos: u32,
}

/// Extended attributes: names, each once and in order, and values.
pub(crate) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// One entry, its extended headers merged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: Kind,
    /// Target of a hard or symbolic link.
    pub(crate) link: Vec<u8>,
    /// Permission bits with setuid, setgid and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Bytes of content, holes included; 0 for all but files.
    pub(crate) size: u64,
    pub(crate) mtime: Time,
    pub(crate) atime: Option<Time>,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Xattrs,
    /// Where the bytes that follow belong, for files with holes.
    pub(crate) sparse: Option<Vec<sparse::Segment>>,
}
