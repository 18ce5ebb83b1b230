//! Digests of files and of whole directories. Facts: BuildKit's `cache/contenthash/checksum.go`.
//!
//! A directory's digest is that of the records in it, in the order of their names: `\0`, the name, and the digest, where the
//! first record is its own header, without a name.

use std::{
    ffi::{OsStr, OsString},
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use lapstrake_builder_llb::cache_key::Selector;
use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_store::received_xattr;
use rustix::{
    fs::{FileType, Mode, Stat},
    io::Errno,
};
use sha2::{Digest as _, Sha256};

use super::{
    memory::{FileKey, FileRecords, Memory},
    record,
    select::{self, Selected},
};
use crate::{
    FilesError,
    at::{self, Last},
};

/// A tree that digests are made of.
pub(super) struct Scan<'a> {
    pub(super) root: BorrowedFd<'a>,
    /// Whether the root's header counts as empty.
    received: bool,
    memory: Option<&'a Memory>,
    /// Records of files in this very tree.
    learned: Option<Arc<FileRecords>>,
    buffer: Vec<u8>,
    /// Every record that was made, by path; `None` once they are too many.
    seen: Option<Vec<SeenRecord>>,
}

/// A path, without a slash before it and with one after a directory's, and the digest of its record.
pub(super) type SeenRecord = (Vec<u8>, Digest);

/// Most records of one scan that are told.
const SEEN: usize = 50_000;

/// A directory whose digest is being made.
struct Frame {
    directory: OwnedFd,
    name: OsString,
    names: std::vec::IntoIter<OsString>,
    hash: Sha256,
    /// Records that count in the parent too, see [`Frame::add`].
    stray: Vec<(Vec<u8>, Digest)>,
}

impl Frame {
    /// Adds the record of something in the directory.
    ///
    /// BuildKit skips what is in a directory by seeking to the key `directory \0 \xff`. What is in it under a name that begins
    /// with that byte (no such text is UTF-8) is not skipped, and counts in the parent once more.
    fn add(&mut self, name: &OsStr, digest: &Digest, stray: Vec<(Vec<u8>, Digest)>) {
        let key = [b"\0", name.as_bytes()].concat();
        self.hash.update(&key);
        self.hash.update(digest.as_str());
        let is_stray = name.as_bytes().starts_with(b"\xff");
        if is_stray {
            self.stray.push((key.clone(), digest.clone()));
        }
        for (below, digest) in stray {
            let key = [key.as_slice(), &below].concat();
            self.hash.update(&key);
            self.hash.update(digest.as_str());
            if is_stray {
                self.stray.push((key, digest));
            }
        }
    }
}

impl<'a> Scan<'a> {
    /// With a memory, files are known by their inodes.
    pub(super) fn new(
        root: BorrowedFd<'a>,
        memory: Option<&'a Memory>,
        learned: Option<Arc<FileRecords>>,
    ) -> Result<Self, FilesError> {
        let path = Path::new("/");
        let directory = at::open(root, path, at::READ_DIRECTORY).map_err(FilesError::io("open", path))?;
        let mark = rustix::fs::fgetxattr(&directory, received_xattr(), &mut [0u8; 8][..]);
        let received = match mark {
            Ok(_) | Err(Errno::RANGE) => true,
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => false,
            Err(errno) => return Err(FilesError::io("getxattr", path)(errno)),
        };
        Ok(Self { root, received, memory, learned, buffer: Vec::new(), seen: Some(Vec::new()) })
    }

    /// What it came by; `None` when that was too much.
    pub(super) fn into_seen(self) -> Option<Vec<SeenRecord>> {
        self.seen
    }

    fn saw(&mut self, path: &Path, after: &[u8], digest: &Digest) {
        let Some(seen) = &mut self.seen else { return };
        if seen.len() >= SEEN {
            self.seen = None;
            return;
        }
        let path = path.as_os_str().as_bytes();
        seen.push(([path.strip_prefix(b"/").unwrap_or(path), after].concat(), digest.clone()));
    }

    /// The digest of what a selector chooses. `path` is its path, absolute and clean.
    pub(super) fn select(&mut self, path: &str, selector: &Selector) -> Result<Selected, FilesError> {
        if selector.wildcard || !selector.include_patterns.is_empty() || !selector.exclude_patterns.is_empty()
        {
            return select::select(self, path, selector);
        }
        let last = if selector.follow_links { Last::Follow } else { Last::Keep };
        Ok(self.path(path.as_ref(), last)?.into())
    }

    /// The digest of what is at a path.
    pub(super) fn path(&mut self, path: &OsStr, last: Last) -> Result<Digest, FilesError> {
        let missing = || {
            let path = path.to_string_lossy();
            FilesError::NotFound { tree: None, path: if path == "/" { "".into() } else { path.into_owned() } }
        };
        let resolved = at::resolve(self.root, path, last)?;
        let stat = at::lstat(self.root, &resolved).map_err(FilesError::io("lstat", &resolved))?;
        let stat = stat.ok_or_else(missing)?;
        if at::is_directory(&stat) {
            return self.directory(resolved);
        }
        let (parent, name) = at::split(&resolved).ok_or_else(missing)?;
        let parent = at::open(self.root, parent, at::HANDLE).map_err(FilesError::io("open", parent))?;
        self.entry(parent.as_fd(), name, &stat, &resolved)
    }

    /// The record of something that is no directory.
    pub(super) fn entry(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        stat: &Stat,
        path: &Path,
    ) -> Result<Digest, FilesError> {
        let is_file = at::kind(stat) == FileType::RegularFile;
        if is_file && let Some(learned) = &self.learned {
            let path_of = path.as_os_str().as_bytes();
            if let Some(record) = learned.get(path_of.strip_prefix(b"/").unwrap_or(path_of)) {
                let digest = Digest::from_sha256(*record);
                self.saw(path, b"", &digest);
                return Ok(digest);
            }
        }
        let memory =
            self.memory.filter(|_| is_file).and_then(|memory| Some((memory, FileKey::of(parent, name)?)));
        if let Some((memory, key)) = &memory
            && let Some(digest) = memory.file(key)
        {
            self.saw(path, b"", &digest);
            return Ok(digest);
        }
        let digest = record::entry(parent, name, stat, path, &mut self.buffer)?;
        if let Some((memory, key)) = memory {
            memory.remember_file(key, &digest);
        }
        self.saw(path, b"", &digest);
        Ok(digest)
    }

    /// The record of a directory's header.
    pub(super) fn header(&mut self, directory: BorrowedFd<'_>, path: &Path) -> Result<Digest, FilesError> {
        if self.received && path == Path::new("/") {
            return Ok(Digest::sha256_of(b""));
        }
        let stat = rustix::fs::fstat(directory).map_err(FilesError::io("stat", path))?;
        let digest = record::directory(directory, &stat, path)?;
        self.saw(path, b"/", &digest);
        Ok(digest)
    }

    fn frame(&mut self, directory: OwnedFd, name: OsString, path: &Path) -> Result<Frame, FilesError> {
        let mut hash = Sha256::new();
        hash.update(b"\0");
        hash.update(self.header(directory.as_fd(), path)?.as_str());
        let names = at::names(directory.as_fd()).map_err(FilesError::io("readdir", path))?.into_iter();
        Ok(Frame { directory, name, names, hash, stray: Vec::new() })
    }

    /// The record of everything in a directory at a resolved path.
    fn directory(&mut self, mut path: PathBuf) -> Result<Digest, FilesError> {
        let first = at::open(self.root, &path, at::READ_DIRECTORY).map_err(FilesError::io("open", &path))?;
        let mut stack = vec![self.frame(first, OsString::new(), &path)?];
        loop {
            let depth = stack.len();
            let frame = stack.last_mut().expect("the first is left last");
            let Some(name) = frame.names.next() else {
                let Frame { hash, stray, name, .. } = stack.pop().expect("the first is left last");
                let digest = record::finish(hash);
                let Some(parent) = stack.last_mut() else { return Ok(digest) };
                parent.add(&name, &digest, stray);
                path.pop();
                continue;
            };
            path.push(&name);
            let stat = at::stat(frame.directory.as_fd(), &name).map_err(FilesError::io("lstat", &path))?;
            match stat {
                Some(stat) if at::is_directory(&stat) => {
                    if depth >= at::MAX_DEPTH {
                        let why = "more directories inside of each other than can be read";
                        return Err(FilesError::Unsupported { path, why });
                    }
                    let below =
                        rustix::fs::openat(&frame.directory, &name, at::READ_DIRECTORY, Mode::empty())
                            .map_err(FilesError::io("open", &path))?;
                    let below = self.frame(below, name, &path)?;
                    stack.push(below);
                    continue;
                }
                Some(stat) => {
                    let digest = self.entry(frame.directory.as_fd(), &name, &stat, &path)?;
                    frame.add(&name, &digest, Vec::new());
                }
                None => {}
            }
            path.pop();
        }
    }
}
