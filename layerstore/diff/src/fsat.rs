//! File-system calls relative to open directories. Nothing here follows a symbolic link.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
        XattrFlags,
    },
    io::Errno,
};

use crate::tar::{Time, Xattrs};

/// `PATH_MAX` without the terminating zero.
pub(crate) const PATH_LIMIT: usize = 4095;

/// For handles that are only worked through: listing and reading need [`READ`].
pub(crate) const HANDLE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
pub(crate) const READ: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens a path below a directory; a symbolic link anywhere on it is an error. An empty path is the directory itself.
pub(crate) fn open_below(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    retry(|| rustix::fs::openat2(root, path, flags, Mode::empty(), resolve))
}

/// Opens an entry of a directory.
pub(crate) fn open_entry(at: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(at, name, flags | OFlags::NOFOLLOW, Mode::empty())
}

/// `openat2` says `EAGAIN` when something was renamed while it looked.
fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    for _ in 0..16 {
        match call() {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
    call()
}

/// What an entry of a directory is; `None` when it is not there.
pub(crate) fn stat(at: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<Option<Stat>> {
    match rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// What an entry at an absolute path without symbolic links is; `None` when it is not there.
pub(crate) fn stat_path(path: &std::path::Path) -> rustix::io::Result<Option<Stat>> {
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match retry(|| rustix::fs::openat2(CWD, path, HANDLE, Mode::empty(), resolve)) {
        Ok(handle) => rustix::fs::fstat(handle).map(Some),
        // A component that is no directory, or a link where a directory was: nothing is there either.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Opens a file or directory at an absolute path without symbolic links, for reading.
pub(crate) fn open_path(path: &std::path::Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    retry(|| rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve))
}

pub(crate) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

pub(crate) fn is_directory(stat: &Stat) -> bool {
    kind(stat) == FileType::Directory
}

/// Whether this is overlayfs's mark of a deleted entry.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    kind(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// The names in a directory, sorted bytewise, without `.` and `..`.
pub(crate) fn names(directory: BorrowedFd<'_>) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        match entry.file_name().to_bytes() {
            b"." | b".." => {}
            name => names.push(name.to_vec()),
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// A path to an entry for the calls on extended attributes that know no directory handles.
pub(crate) fn entry_path(at: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", at.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

/// All extended attributes, by name. A file system without any has none.
pub(crate) fn xattrs(path: &[u8]) -> rustix::io::Result<Xattrs> {
    // Most files have none: ask for the length first.
    let length = match rustix::fs::llistxattr_query(path) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        length => length?,
    };
    let mut names = vec![0u8; length];
    let length = rustix::fs::llistxattr(path, names.as_mut_slice())?;
    names.truncate(length);
    let mut found = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if let Some(value) = xattr(path, name)? {
            found.push((name.to_vec(), value));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Whether an open file has no extended attributes at all: as most, and asked without a path.
pub(crate) fn lacks_xattrs(file: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    match rustix::fs::flistxattr_query(file) {
        Err(Errno::OPNOTSUPP) => Ok(true),
        length => Ok(length? == 0),
    }
}

/// One extended attribute; `None` when it is not there.
pub(crate) fn xattr(path: &[u8], name: &[u8]) -> rustix::io::Result<Option<Vec<u8>>> {
    let length = match rustix::fs::lgetxattr_query(path, name) {
        Ok(length) => length,
        Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    let mut value = vec![0u8; length];
    let length = rustix::fs::lgetxattr(path, name, value.as_mut_slice())?;
    value.truncate(length);
    Ok(Some(value))
}

/// Whether an attribute is the business of overlayfs or of the machine's administrator, and so never part of a layer.
pub(crate) fn is_private_xattr(name: &[u8]) -> bool {
    name.starts_with(b"trusted.") || name.starts_with(b"user.overlay.")
}

/// Whether a layer keeps an attribute.
pub(crate) fn is_layer_xattr(name: &[u8]) -> bool {
    name == b"security.capability" || (name.starts_with(b"user.") && !is_private_xattr(name))
}

pub(crate) fn set_xattr(path: &[u8], name: &[u8], value: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())
}

pub(crate) fn chown(at: BorrowedFd<'_>, name: &[u8], uid: u32, gid: u32) -> rustix::io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::fs::chownat(at, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
}

/// Sets the mode of an entry that the caller knows to be no symbolic link.
pub(crate) fn chmod(at: BorrowedFd<'_>, name: &[u8], mode: u32) -> rustix::io::Result<()> {
    rustix::fs::chmodat(at, name, Mode::from_raw_mode(mode & 0o7777), AtFlags::empty())
}

pub(crate) fn set_times(
    at: BorrowedFd<'_>,
    name: &[u8],
    access: Time,
    modification: Time,
) -> rustix::io::Result<()> {
    let spec = |time: Time| Timespec { tv_sec: time.seconds, tv_nsec: i64::from(time.nanos) };
    let times = Timestamps { last_access: spec(access), last_modification: spec(modification) };
    rustix::fs::utimensat(at, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

pub(crate) fn mtime(stat: &Stat) -> Time {
    // The kernel keeps nanoseconds below a thousand million.
    Time { seconds: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 }
}

pub(crate) fn atime(stat: &Stat) -> Time {
    Time { seconds: stat.st_atime, nanos: stat.st_atime_nsec as u32 }
}

/// Removes an entry of a directory with everything below it; success when it is not there.
pub(crate) fn remove(at: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(at, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    // By path, so that depth costs no descriptors. Paths here are made of names that passed PATH_LIMIT.
    let mut left = vec![name.to_vec()];
    while let Some(path) = left.last().cloned() {
        let directory = open_below(at, &path, READ | OFlags::DIRECTORY)?;
        let before = left.len();
        for name in names(directory.as_fd())? {
            match rustix::fs::unlinkat(&directory, &name, AtFlags::empty()) {
                Ok(()) => {}
                Err(Errno::ISDIR | Errno::PERM) => left.push([&path, b"/".as_slice(), &name].concat()),
                Err(errno) => return Err(errno),
            }
        }
        if left.len() == before {
            left.pop();
            let (parent, name) = split(&path);
            let parent = open_below(at, parent, HANDLE | OFlags::DIRECTORY)?;
            rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?;
        }
    }
    Ok(())
}

/// A path's parent and last name.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// The directories that a path is in, from the inside out; the last one is the root.
pub(crate) fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let parent = |path: &[u8]| if path.is_empty() { None } else { Some(split(path).0.len()) };
    std::iter::successors(parent(path), move |end| parent(&path[..*end])).map(|end| &path[..end])
}

/// A path below another; an empty one is the root.
pub(crate) fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

/// Copies a lower file's or node's content, owner, attributes and times to a free name.
pub(crate) fn copy_up(
    from: &std::path::Path,
    stat: &Stat,
    at: BorrowedFd<'_>,
    name: &[u8],
) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt as _;

    let source_path = from.as_os_str().as_bytes();
    match kind(stat) {
        FileType::RegularFile => {
            let mut source = File::from(open_path(from, READ)?);
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut target = File::from(rustix::fs::openat(at, name, flags, Mode::RUSR | Mode::WUSR)?);
            io::copy(&mut source, &mut target)?;
        }
        FileType::Symlink => {
            let link = rustix::fs::readlinkat(CWD, from, Vec::new())?;
            rustix::fs::symlinkat(&link, at, name)?;
        }
        kind @ (FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo | FileType::Socket) => {
            rustix::fs::mknodat(at, name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev)?;
        }
        FileType::Directory | FileType::Unknown => return Err(Errno::ISDIR.into()),
    }
    copy_attributes(source_path, stat, at, name)?;
    set_times(at, name, atime(stat), mtime(stat))?;
    Ok(())
}

/// Copies owner, extended attributes and mode.
pub(crate) fn copy_attributes(
    source_path: &[u8],
    stat: &Stat,
    at: BorrowedFd<'_>,
    name: &[u8],
) -> rustix::io::Result<()> {
    chown(at, name, stat.st_uid, stat.st_gid)?;
    let target = entry_path(at, name);
    for (key, value) in xattrs(source_path)? {
        if !is_private_xattr(&key) {
            match set_xattr(&target, &key, &value) {
                // Labels that a security module sets by itself.
                Err(Errno::OPNOTSUPP) if key.starts_with(b"security.") => {}
                set => set?,
            }
        }
    }
    if kind(stat) != FileType::Symlink {
        chmod(at, name, stat.st_mode)?;
    }
    Ok(())
}
