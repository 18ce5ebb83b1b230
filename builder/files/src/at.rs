//! File-system calls relative to open directories. Nothing here leaves a tree.
//!
//! Paths of a tree are absolute to its root: `/a/b`. Where it says *resolved*, no component of a path is a symbolic link, and
//! the kernel is told to fail should one have become one.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
    },
    io::Errno,
};

use crate::FilesError;

/// As many links as BuildKit follows in one path.
const MAX_LINKS: usize = 255;

/// Deeper directories are refused: each level costs descriptors. Their paths are longer than `PATH_MAX`.
pub(crate) const MAX_DEPTH: usize = 2048;

/// For handles that are only worked through.
pub(crate) const HANDLE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// For reading files and listing directories. `NONBLOCK`, so that a pipe in a file's place cannot hold us up.
pub(crate) const READ: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);
pub(crate) const READ_DIRECTORY: OFlags = READ.union(OFlags::DIRECTORY);

/// What becomes of a symbolic link that is the last component of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Last {
    Follow,
    Keep,
}

/// A path's components, without those that mean nothing.
fn components(path: &OsStr) -> impl DoubleEndedIterator<Item = &OsStr> {
    path.as_bytes()
        .split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .map(OsStr::from_bytes)
}

/// Opens something at a resolved path.
pub(crate) fn open(root: BorrowedFd<'_>, resolved: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let below = resolved.as_os_str().as_bytes();
    let below = below.strip_prefix(b"/").unwrap_or(below);
    let below = if below.is_empty() { b"." } else { below };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    // `openat2` says EAGAIN when something was renamed while it looked.
    for _ in 0..16 {
        match rustix::fs::openat2(root, below, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
    rustix::fs::openat2(root, below, flags, Mode::empty(), resolve)
}

/// What is at a resolved path; `None` when nothing is.
pub(crate) fn lstat(root: BorrowedFd<'_>, resolved: &Path) -> rustix::io::Result<Option<Stat>> {
    match open(root, resolved, HANDLE) {
        Ok(handle) => rustix::fs::fstat(handle).map(visible),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// What an entry of a directory is; `None` when it is not there.
pub(crate) fn stat(at: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<Option<Stat>> {
    match rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(visible(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// The lowest layer of an overlay is opened as the directory that it is: deletions in it (character devices 0:0) are what
/// overlayfs would not show either.
fn visible(stat: Stat) -> Option<Stat> {
    (!is_whiteout(&stat)).then_some(stat)
}

/// Whether this is overlayfs's mark of a deletion.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    kind(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Resolves a path by following symbolic links, all of which, and `..`, end at the root. What is not there resolves to
/// itself. Unlike BuildKit, `..` after a link means the parent of where the link leads, as for every process in the tree.
pub(crate) fn resolve(root: BorrowedFd<'_>, path: &OsStr, last: Last) -> Result<PathBuf, FilesError> {
    let mut todo: VecDeque<OsString> = components(path).map(OsStr::to_owned).collect();
    let mut done = PathBuf::from("/");
    let mut links = 0;
    while let Some(part) = todo.pop_front() {
        if part == ".." {
            done.pop();
            continue;
        }
        done.push(&part);
        if todo.is_empty() && last == Last::Keep {
            break;
        }
        let handle = match open(root, &done, HANDLE) {
            Ok(handle) => handle,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(FilesError::io("lstat", done)(errno)),
        };
        let stat = rustix::fs::fstat(&handle).map_err(FilesError::io("lstat", &done))?;
        if kind(&stat) != FileType::Symlink {
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(FilesError::TooManyLinks { path: path.to_string_lossy().into_owned() });
        }
        let target =
            rustix::fs::readlinkat(&handle, c"", Vec::new()).map_err(FilesError::io("readlink", &done))?;
        let target = OsStr::from_bytes(target.as_bytes());
        if target.as_bytes().starts_with(b"/") {
            done = PathBuf::from("/");
        } else {
            done.pop();
        }
        for part in components(target).rev() {
            todo.push_front(part.to_owned());
        }
    }
    Ok(done)
}

pub(crate) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

pub(crate) fn is_directory(stat: &Stat) -> bool {
    kind(stat) == FileType::Directory
}

/// The names in a directory that was opened for reading, sorted bytewise, without `.` and `..`.
pub(crate) fn names(directory: BorrowedFd<'_>) -> rustix::io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        match entry.file_name().to_bytes() {
            b"." | b".." => {}
            name => names.push(OsString::from_vec(name.to_vec())),
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// A path to an entry for the calls on extended attributes that know no directory handles. They do not follow its last
/// component, and the part before it is our own descriptor.
fn entry_path(at: BorrowedFd<'_>, name: &OsStr) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", at.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.as_bytes());
    path
}

/// Whether an attribute is overlayfs's own, which shows where a layer is opened as a directory, or ours.
fn is_private_xattr(name: &[u8]) -> bool {
    [b"trusted.overlay.".as_slice(), b"user.overlay.", b"trusted.lapstrake."]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// Where extended attributes are read and written.
#[derive(Clone, Copy)]
pub(crate) enum Node<'a> {
    /// A file or directory opened for reading or writing.
    Open(BorrowedFd<'a>),
    /// An entry of a directory, whatever it is.
    Entry(BorrowedFd<'a>, &'a OsStr),
}

/// All extended attributes of a tree's own, by name. A file system without any has none.
pub(crate) fn xattrs(node: Node<'_>) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    // Most have none: ask for the length first.
    let length = match node {
        Node::Open(fd) => rustix::fs::flistxattr_query(fd),
        Node::Entry(at, name) => rustix::fs::llistxattr_query(entry_path(at, name)),
    };
    let length = match length {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        length => length?,
    };
    let mut names = vec![0u8; length];
    let length = match node {
        Node::Open(fd) => rustix::fs::flistxattr(fd, names.as_mut_slice())?,
        Node::Entry(at, name) => rustix::fs::llistxattr(entry_path(at, name), names.as_mut_slice())?,
    };
    names.truncate(length);
    let mut found = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty() && !is_private_xattr(name)) {
        let length = match node {
            Node::Open(fd) => rustix::fs::fgetxattr_query(fd, name),
            Node::Entry(at, entry) => rustix::fs::lgetxattr_query(entry_path(at, entry), name),
        };
        let length = match length {
            Err(Errno::NODATA | Errno::OPNOTSUPP) => continue,
            length => length?,
        };
        let mut value = vec![0u8; length];
        // An empty buffer would ask for the length again.
        let length = match node {
            _ if length == 0 => 0,
            Node::Open(fd) => rustix::fs::fgetxattr(fd, name, value.as_mut_slice())?,
            Node::Entry(at, entry) => {
                rustix::fs::lgetxattr(entry_path(at, entry), name, value.as_mut_slice())?
            }
        };
        value.truncate(length);
        found.push((name.to_vec(), value));
    }
    found.sort_unstable();
    Ok(found)
}

pub(crate) fn set_xattr(node: Node<'_>, name: &[u8], value: &[u8]) -> rustix::io::Result<()> {
    match node {
        Node::Open(fd) => rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()),
        Node::Entry(at, entry) => {
            rustix::fs::lsetxattr(entry_path(at, entry), name, value, XattrFlags::empty())
        }
    }
}

pub(crate) fn chown(at: BorrowedFd<'_>, name: &OsStr, uid: u32, gid: u32) -> rustix::io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::fs::chownat(at, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
}

pub(crate) fn mode(bits: u32) -> Mode {
    Mode::from_raw_mode(bits & 0o7777)
}

pub(crate) fn mtime(stat: &Stat) -> Timespec {
    // The kernel keeps nanoseconds below a thousand million.
    Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec.cast_signed() }
}

pub(crate) fn times(stat: &Stat) -> Timestamps {
    let access = Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec.cast_signed() };
    Timestamps { last_access: access, last_modification: mtime(stat) }
}

pub(crate) fn set_times(at: BorrowedFd<'_>, name: &OsStr, times: &Timestamps) -> rustix::io::Result<()> {
    rustix::fs::utimensat(at, name, times, AtFlags::SYMLINK_NOFOLLOW)
}

/// A resolved path's parent and last name; the root has none.
pub(crate) fn split(resolved: &Path) -> Option<(&Path, &OsStr)> {
    Some((resolved.parent()?, resolved.file_name()?))
}

/// Removes an entry of a directory with everything below it; success when it is not there. Follows no links.
pub(crate) fn remove(at: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(at, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    let directory = rustix::fs::openat(at, name, READ_DIRECTORY, Mode::empty())?;
    let mut left = vec![(name.to_owned(), directory)];
    while let Some((_, directory)) = left.last() {
        let mut below = None;
        for name in names(directory.as_fd())? {
            match rustix::fs::unlinkat(directory, &name, AtFlags::empty()) {
                // NOENT: a deletion that the lowest layer holds, see `visible`.
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR | Errno::PERM) => {
                    below =
                        Some((rustix::fs::openat(directory, &name, READ_DIRECTORY, Mode::empty())?, name));
                    break;
                }
                Err(errno) => return Err(errno),
            }
        }
        if let Some((directory, name)) = below {
            if left.len() >= MAX_DEPTH {
                return Err(Errno::NAMETOOLONG);
            }
            left.push((name, directory));
        } else if let Some((name, _)) = left.pop() {
            let parent = left.last().map_or(at, |(_, directory)| directory.as_fd());
            rustix::fs::unlinkat(parent, &name, AtFlags::REMOVEDIR)?;
        }
    }
    Ok(())
}
