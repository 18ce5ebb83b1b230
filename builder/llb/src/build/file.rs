//! Changing files without running anything.

use super::{GraphBuilder, NodeOp, OpOptions, Output, State};

/// One change.
#[derive(Debug, Clone, PartialEq)]
pub enum FileAction {
    /// Copy files into the file system.
    Copy(Box<CopyAction>),
    /// Make a directory.
    Mkdir(Mkdir),
    /// Write a file.
    Mkfile(Mkfile),
    /// Remove a file or directory.
    Rm(Rm),
    /// Make a symbolic link.
    Symlink(Symlink),
}

/// Copies files.
#[derive(Debug, Clone, PartialEq)]
pub struct CopyAction {
    /// Where from; a relative `source` is relative to its directory.
    pub from: State,
    /// What to copy.
    pub source: String,
    /// Where to; a relative one is relative to the directory of the state that is changed.
    pub destination: String,
    /// Permission bits for what is copied; `None` keeps them.
    pub mode: Option<CopyMode>,
    /// Whether a `source` that is a symbolic link is followed.
    pub follow_symlinks: bool,
    /// Whether a directory's content is copied rather than the directory.
    pub contents_only: bool,
    /// Copy only what matches.
    pub include_patterns: Vec<String>,
    /// Do not copy what matches.
    pub exclude_patterns: Vec<String>,
    /// Fail unless these exist.
    pub required_paths: Vec<String>,
    /// Whether archives are unpacked.
    pub unpack: bool,
    /// Whether directories above the destination are made.
    pub create_destination: bool,
    /// Whether `source` is a pattern.
    pub allow_wildcard: bool,
    /// Whether a pattern that matches nothing is no error.
    pub allow_empty_wildcard: bool,
    /// Owner of what is copied; `None` keeps it for images, and is root for the build context.
    pub owner: Option<Owner>,
    /// Nanoseconds since 1970 for what is copied; `None` keeps times.
    pub timestamp: Option<i64>,
    /// Whether what is at the destination is replaced even if of another kind.
    pub replace_existing: bool,
}

impl CopyAction {
    /// Copies `source` of `from` to `destination`, every choice left off.
    pub fn new(from: State, source: impl Into<String>, destination: impl Into<String>) -> CopyAction {
        CopyAction {
            from,
            source: source.into(),
            destination: destination.into(),
            mode: None,
            follow_symlinks: false,
            contents_only: false,
            include_patterns: Vec::new(),
            exclude_patterns: Vec::new(),
            required_paths: Vec::new(),
            unpack: false,
            create_destination: false,
            allow_wildcard: false,
            allow_empty_wildcard: false,
            owner: None,
            timestamp: None,
            replace_existing: false,
        }
    }
}

/// Permission bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyMode {
    /// As a number.
    Bits(u32),
    /// As `chmod`'s symbolic form.
    Symbolic(String),
}

/// Makes a directory.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Mkdir {
    /// Which.
    pub path: String,
    /// Permission bits; only the lower nine count.
    pub mode: u32,
    /// Whether directories above are made, and an existing one is no error.
    pub make_parents: bool,
    /// Owner; `None` for root.
    pub owner: Option<Owner>,
    /// Nanoseconds since 1970; `None` for now.
    pub timestamp: Option<i64>,
}

/// Writes a file.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Mkfile {
    /// Which.
    pub path: String,
    /// Permission bits; only the lower nine count.
    pub mode: u32,
    /// Content.
    pub data: Vec<u8>,
    /// Owner; `None` for root.
    pub owner: Option<Owner>,
    /// Nanoseconds since 1970; `None` for now.
    pub timestamp: Option<i64>,
}

/// Removes a file or directory.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rm {
    /// Which.
    pub path: String,
    /// Whether its absence is no error.
    pub allow_not_found: bool,
    /// Whether `path` is a pattern.
    pub allow_wildcard: bool,
}

/// Makes a symbolic link.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Symlink {
    /// What it points at.
    pub target: String,
    /// The link.
    pub path: String,
    /// Owner; `None` for root.
    pub owner: Option<Owner>,
    /// Nanoseconds since 1970; `None` for now.
    pub timestamp: Option<i64>,
}

/// User and group; names are looked up in the file system that is changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Owner {
    /// User; `None` for root.
    pub user: Option<OwnerId>,
    /// Group; `None` for the user's.
    pub group: Option<OwnerId>,
}

/// A user or a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnerId {
    /// By number.
    Id(u32),
    /// By name.
    Name(String),
}

impl Owner {
    /// Reads `user[:group]`, each a name or a number.
    pub fn parse(text: &str) -> Owner {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        Owner { user: Some(OwnerId::parse(user)), group: group.map(OwnerId::parse) }
    }

    /// By numbers.
    pub fn ids(uid: u32, gid: u32) -> Owner {
        Owner { user: Some(OwnerId::Id(uid)), group: Some(OwnerId::Id(gid)) }
    }
}

impl OwnerId {
    fn parse(text: &str) -> OwnerId {
        if text == "root" {
            return OwnerId::Id(0);
        }
        // Go's ParseInt with 32 bits: a sign is allowed, and a negative number becomes a large unsigned one.
        match text.parse::<i32>() {
            Ok(id) => OwnerId::Id(id.cast_unsigned()),
            Err(_) => OwnerId::Name(text.to_owned()),
        }
    }
}

/// What can be said of a file op.
pub type FileOptions = OpOptions;

#[derive(Debug, Clone)]
pub(crate) struct FileNode {
    pub(super) base: Option<Output>,
    pub(super) dir: String,
    pub(super) actions: Vec<FileAction>,
}

impl GraphBuilder {
    /// Changes files of `base`, one action after the other.
    pub fn file(&mut self, base: &State, actions: Vec<FileAction>, options: FileOptions) -> State {
        let node = FileNode { base: base.output(), dir: base.meta().dir.clone(), actions };
        let output = self.push(NodeOp::File(node), options);
        base.clone().with_output(Some(output))
    }
}
