//! Hashes of copied files as Moby's classic builder writes them into the history: `file:…`, `dir:…`.
//!
//! A file's hash is SHA-256 over the fields of its tar header (not its time), in words, and its content; a directory's is over the
//! sorted hashes of all that is in it, links followed. Facts: `builder/remotecontext`, `builder/dockerfile/copy.go` and `pkg/tarsum`
//! (version 1) in moby/moby at v20.10.
//!
//! Three things depend on more than the files:
//!
//! * In trees of its own Moby names owners as its machine does (`/etc/passwd`, `/etc/group`); so do we. In contexts it names none.
//! * A context's hard link is a header with the name of the file that came first, without the content. First is what a walk in
//!   alphabetical order meets first, as Docker's clients do. [`Hashed::by_content`] tells that the hash does not change with the content.
//! * Modes of a context are what its archive says: Docker's own client adds the file's type to them, other clients do not.

use std::{
    cell::{Cell, OnceCell},
    collections::HashMap,
    ffi::{OsStr, OsString},
    io::Read as _,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use lapstrake_builder_llb::{clean_path, has_wildcards};
use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_store::{Stores, Tree};
use rustix::{
    fs::{FileType, Stat},
    io::Errno,
};
use sha2::{Digest as _, Sha256};

use crate::{
    FilesError,
    at::{self, Last, MAX_DEPTH, Node, READ, READ_DIRECTORY},
    glob,
};

/// Bytes that are read at once.
const BUFFER: usize = 128 * 1024;
/// More of a list of accounts than this is not read: 16 MiB.
const ACCOUNTS: u64 = 16 << 20;

/// Where the files are from: Moby names owners in trees of its own, and not in what clients send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopiedFrom {
    /// A client's context.
    Context {
        /// Whether the modes in its archive are permissions alone, without the file's type.
        bare_modes: bool,
    },
    /// A stage, an image, or a download.
    Tree,
}

/// The hashes of what a source of `COPY` chooses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hashed {
    /// In order; without a wildcard it is one.
    pub hashes: Vec<String>,
    /// Whether they change with the files' content. Those of hard links do not.
    pub by_content: bool,
}

/// The hashes of what a source of `COPY` chooses. Blocks.
///
/// Errors: [`FilesError::NotFound`] with the path as Moby tells it, for a path where nothing is.
pub fn copied(stores: &Stores, tree: &Tree, source: &str, from: CopiedFrom) -> Result<Hashed, FilesError> {
    let source = source.strip_prefix('/').unwrap_or(source);
    let source = source.strip_prefix("./").unwrap_or(source);
    let Some(open) = stores.open(tree)? else {
        let nothing = Hashed { hashes: Vec::new(), by_content: true };
        return if has_wildcards(source) { Ok(nothing) } else { Err(missing(source)) };
    };
    let sums = Sums::new(open.root(), from);
    let mut hashes = Vec::new();
    if has_wildcards(source) {
        let pattern = glob::Pattern::new(&clean_path(source))?;
        let mut matching = Vec::new();
        sums.matching(&pattern, 0, &mut PathBuf::new(), &mut matching)?;
        for path in matching {
            hashes.push(sums.one(&path.to_string_lossy())?);
        }
    } else {
        hashes.push(sums.one(source)?);
    }
    Ok(Hashed { hashes, by_content: sums.by_content.get() })
}

/// The hashes of all sources as one, which is the hash itself if there is one only.
pub fn copied_together(hashes: &[String]) -> String {
    match hashes {
        [one] => one.clone(),
        several => format!("multi:{}", Digest::sha256_of(several.join(",")).hex()),
    }
}

/// A file's hash without `file:`, which is how a download is told.
pub fn downloaded(hash: &str) -> &str {
    hash.strip_prefix("file:").unwrap_or(hash)
}

fn missing(path: &str) -> FilesError {
    FilesError::NotFound { tree: None, path: path.to_owned() }
}

struct Sums<'a> {
    root: BorrowedFd<'a>,
    from: CopiedFrom,
    owners: Owners,
    /// Of each file with several names: the first. Found when it is first needed.
    first_names: OnceCell<HashMap<FileId, PathBuf>>,
    by_content: Cell<bool>,
}

/// Device and number.
type FileId = (u64, u64);

impl<'a> Sums<'a> {
    fn new(root: BorrowedFd<'a>, from: CopiedFrom) -> Self {
        let owners = match from {
            CopiedFrom::Context { .. } => Owners::default(),
            CopiedFrom::Tree => Owners::of_this_machine(),
        };
        Self { root, from, owners, first_names: OnceCell::new(), by_content: Cell::new(true) }
    }

    /// Paths that match a pattern, in the order of a walk.
    fn matching(
        &self,
        pattern: &glob::Pattern,
        depth: usize,
        at: &mut PathBuf,
        found: &mut Vec<PathBuf>,
    ) -> Result<(), FilesError> {
        for name in self.names(at)? {
            if !pattern.matches(depth, &name) {
                continue;
            }
            at.push(&name);
            if depth + 1 == pattern.depth() {
                found.push(at.clone());
            } else if self.stat(at)?.is_some_and(|stat| at::is_directory(&stat)) {
                self.matching(pattern, depth + 1, at, found)?;
            }
            at.pop();
        }
        Ok(())
    }

    fn one(&self, path: &str) -> Result<String, FilesError> {
        let resolved = at::resolve(self.root, OsStr::new(path), Last::Follow)?;
        let Some(stat) = self.stat(&resolved)? else { return Err(missing(path)) };
        if !at::is_directory(&stat) {
            return Ok(format!("file:{}", self.file(&resolved, &stat)?));
        }
        let mut sums = Vec::new();
        self.walk(&mut below(&resolved), 0, &mut sums)?;
        sums.sort_unstable();
        Ok(format!("dir:{}", Digest::sha256_of(sums.join(",")).hex()))
    }

    /// The hashes of a directory (unless it is the root) and all that is in it.
    fn walk(&self, at: &mut PathBuf, depth: usize, sums: &mut Vec<String>) -> Result<(), FilesError> {
        if depth > MAX_DEPTH {
            return Err(FilesError::io("walk", at.clone())(Errno::NAMETOOLONG));
        }
        if !at.as_os_str().is_empty() {
            sums.push(self.followed(at)?);
        }
        for name in self.names(at)? {
            at.push(&name);
            if self.stat(at)?.is_some_and(|stat| at::is_directory(&stat)) {
                self.walk(at, depth + 1, sums)?;
            } else {
                sums.push(self.followed(at)?);
            }
            at.pop();
        }
        Ok(())
    }

    /// The hash of what a path leads to; of a link that leads nowhere, a path.
    fn followed(&self, path: &Path) -> Result<String, FilesError> {
        let resolved = at::resolve(self.root, path.as_os_str(), Last::Follow)?;
        match self.stat(&resolved)? {
            Some(stat) => self.file(&resolved, &stat),
            None => {
                let is_tree = self.from == CopiedFrom::Tree;
                let path = if is_tree { below(&resolved) } else { path.to_owned() };
                Ok(path.to_string_lossy().into_owned())
            }
        }
    }

    fn file(&self, resolved: &Path, stat: &Stat) -> Result<String, FilesError> {
        let kind = at::kind(stat);
        let failed = |doing| FilesError::io(doing, resolved);
        let first = self.first_name(resolved, stat, kind)?;
        let (flag, size) = match kind {
            FileType::RegularFile if first.is_some() => ("1", 0),
            FileType::RegularFile => ("0", stat.st_size),
            FileType::Symlink => ("2", 0),
            FileType::CharacterDevice => ("3", 0),
            FileType::BlockDevice => ("4", 0),
            FileType::Directory => ("5", 0),
            FileType::Fifo => ("6", 0),
            _ => ("", 0),
        };
        let mut name = below(resolved).into_os_string();
        if kind == FileType::Directory && !name.is_empty() {
            name.push("/");
        }
        let mode = match self.from {
            CopiedFrom::Context { bare_modes: true } => stat.st_mode & 0o7777,
            CopiedFrom::Context { bare_modes: false } | CopiedFrom::Tree => stat.st_mode,
        };
        let device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
        let number = |part: fn(u64) -> u32| if device { part(stat.st_rdev) } else { 0 };
        let mut hash = Sha256::new();
        hash.update("name");
        hash.update(name.as_bytes());
        hash.update(format!(
            "mode{mode}uid{}gid{}size{size}typeflag{flag}linkname",
            stat.st_uid, stat.st_gid
        ));
        if let Some(first) = &first {
            hash.update(first.as_os_str().as_bytes());
        }
        hash.update(format!(
            "uname{}gname{}devmajor{}devminor{}",
            self.owners.user(stat.st_uid),
            self.owners.group(stat.st_gid),
            number(rustix::fs::major),
            number(rustix::fs::minor),
        ));
        if let Some((parent, name)) = at::split(resolved) {
            let parent = at::open(self.root, parent, READ_DIRECTORY).map_err(failed("open"))?;
            let attributes =
                at::xattrs(Node::Entry(parent.as_fd(), name)).map_err(failed("read attributes of"))?;
            if let Some((name, value)) = attributes.iter().find(|(name, _)| name == b"security.capability") {
                hash.update(name);
                hash.update(second_revision(value.clone()));
            }
        }
        if first.is_some() {
            self.by_content.set(false);
        } else if kind == FileType::RegularFile && size > 0 {
            let mut file = std::fs::File::from(at::open(self.root, resolved, READ).map_err(failed("open"))?);
            let mut buffer = vec![0; BUFFER];
            loop {
                match file.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(length) => hash.update(&buffer[..length]),
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        return Err(failed("read")(Errno::from_io_error(&error).unwrap_or(Errno::IO)));
                    }
                }
            }
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The other name that a hard link of a context is a link to; `None` for what is no such link.
    fn first_name(
        &self,
        resolved: &Path,
        stat: &Stat,
        kind: FileType,
    ) -> Result<Option<PathBuf>, FilesError> {
        if self.from == CopiedFrom::Tree || kind != FileType::RegularFile || stat.st_nlink < 2 {
            return Ok(None);
        }
        let names = match self.first_names.get() {
            Some(names) => names,
            None => {
                let mut names = HashMap::new();
                self.find_names(&mut PathBuf::new(), 0, &mut names)?;
                self.first_names.get_or_init(|| names)
            }
        };
        let own = below(resolved);
        Ok(names.get(&file_id(stat)).filter(|first| **first != own).cloned())
    }

    fn find_names(
        &self,
        at: &mut PathBuf,
        depth: usize,
        found: &mut HashMap<FileId, PathBuf>,
    ) -> Result<(), FilesError> {
        if depth > MAX_DEPTH {
            return Err(FilesError::io("walk", at.clone())(Errno::NAMETOOLONG));
        }
        for name in self.names(at)? {
            at.push(&name);
            if let Some(stat) = self.stat(at)? {
                match at::kind(&stat) {
                    FileType::Directory => self.find_names(at, depth + 1, found)?,
                    FileType::RegularFile if stat.st_nlink > 1 => {
                        found.entry(file_id(&stat)).or_insert_with(|| at.clone());
                    }
                    _ => {}
                }
            }
            at.pop();
        }
        Ok(())
    }

    fn stat(&self, path: &Path) -> Result<Option<Stat>, FilesError> {
        match at::lstat(self.root, path) {
            Err(Errno::NOTDIR) => Ok(None),
            other => other.map_err(FilesError::io("lstat", path)),
        }
    }

    fn names(&self, directory: &Path) -> Result<Vec<OsString>, FilesError> {
        let open =
            at::open(self.root, directory, READ_DIRECTORY).map_err(FilesError::io("open", directory))?;
        let names = at::names(open.as_fd()).map_err(FilesError::io("list", directory))?;
        let mut here = Vec::with_capacity(names.len());
        for name in names {
            // What a layer deletes is not there.
            if at::stat(open.as_fd(), &name).map_err(FilesError::io("lstat", directory))?.is_some() {
                here.push(name);
            }
        }
        Ok(here)
    }
}

fn file_id(stat: &Stat) -> FileId {
    (stat.st_dev, stat.st_ino)
}

/// What users and groups are called.
#[derive(Debug, Default)]
struct Owners {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Owners {
    /// As Go's `archive/tar` looks them up. What cannot be read names nobody.
    fn of_this_machine() -> Self {
        let read = |path: &str| {
            let mut text = String::new();
            let file = std::fs::File::open(path);
            match file.and_then(|file| file.take(ACCOUNTS).read_to_string(&mut text)) {
                Ok(_) => names_by_id(&text),
                Err(_) => HashMap::new(),
            }
        };
        Self { users: read("/etc/passwd"), groups: read("/etc/group") }
    }

    fn user(&self, id: u32) -> &str {
        self.users.get(&id).map_or("", String::as_str)
    }

    fn group(&self, id: u32) -> &str {
        self.groups.get(&id).map_or("", String::as_str)
    }
}

/// The first name of each id in a file such as `/etc/passwd`.
fn names_by_id(text: &str) -> HashMap<u32, String> {
    let mut names = HashMap::new();
    for line in text.lines() {
        let mut fields = line.split(':');
        if let (Some(name), Some(id)) = (fields.next(), fields.nth(1).and_then(|id| id.parse().ok())) {
            names.entry(id).or_insert_with(|| name.to_owned());
        }
    }
    names
}

/// A resolved path without its slash.
fn below(resolved: &Path) -> PathBuf {
    resolved.strip_prefix("/").unwrap_or(resolved).to_owned()
}

/// Capabilities with the root of a user namespace, without it (VFS_CAP_REVISION_3 and 2).
fn second_revision(mut capability: Vec<u8>) -> Vec<u8> {
    if let Some(version @ 3) = capability.get_mut(3) {
        *version = 2;
        capability.truncate(20);
    }
    capability
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hashes that dockerd 20.10.24 wrote for these files.
    #[test]
    fn hashes_are_those_of_moby() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, data: &str| {
            use std::os::unix::fs::PermissionsExt as _;
            let path = dir.path().join(name);
            std::fs::write(&path, data).unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
        };
        write("a.txt", "hi\n");
        write("one", "in one\n");
        std::os::unix::fs::symlink("/a.txt", dir.path().join("link")).unwrap();
        let root = std::fs::File::open(dir.path()).unwrap();
        let context = Sums::new(root.as_fd(), CopiedFrom::Context { bare_modes: false });
        let expected = "file:d8a006482ae06032497452691a2ec7af5b73116f8b5d645cc2feaea6963960b5";
        assert_eq!(context.one("a.txt").unwrap(), expected);
        assert_eq!(context.one("link").unwrap(), expected, "links are followed");
        let stage = Sums::new(root.as_fd(), CopiedFrom::Tree);
        assert_eq!(
            stage.one("one").unwrap(),
            "file:56723f1177278afa2c0b1fe9605f720f06ff2b2d7412058aadb38127ebf36d7e"
        );
        assert!(matches!(context.one("nothing"), Err(FilesError::NotFound { .. })));
    }
}
