//! Actions on one path: mkdir, mkfile, symlink, rm. Facts: BuildKit's `solver/llbsolver/file/backend.go`.

use std::{
    ffi::OsStr,
    fs::File,
    io::Write as _,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use lapstrake_builder_llb::{clean_path, pb};
use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid},
    io::Errno,
};
use tokio_util::sync::CancellationToken;

use super::{copy, owner::Owner};
use crate::{
    FilesError,
    at::{self, Last},
};

/// A time in nanoseconds since 1970, as actions have it; -1 is none.
pub(super) fn timestamp(nanos: i64) -> Option<Timespec> {
    let time = Timespec { tv_sec: nanos.div_euclid(1_000_000_000), tv_nsec: nanos.rem_euclid(1_000_000_000) };
    (nanos != -1).then_some(time)
}

pub(super) fn both_times(time: Timespec) -> Timestamps {
    Timestamps { last_access: time, last_modification: time }
}

/// What something new is given.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes {
    pub(super) owner: Option<Owner>,
    pub(super) time: Option<Timespec>,
}

impl Attributes {
    fn set(self, parent: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<(), FilesError> {
        if let Some(owner) = self.owner {
            at::chown(parent, name, owner.uid, owner.gid).map_err(FilesError::io("chown", path))?;
        }
        if let Some(time) = self.time {
            at::set_times(parent, name, &both_times(time)).map_err(FilesError::io("utime", path))?;
        }
        Ok(())
    }
}

/// Makes a directory and all that leads to it, at a resolved path, and gives those that were not there.
pub(super) fn make_directories(
    root: BorrowedFd<'_>,
    path: &Path,
    mode: u32,
    attributes: Attributes,
) -> Result<Vec<PathBuf>, FilesError> {
    let mut made = Vec::new();
    if at::open(root, path, at::HANDLE | OFlags::DIRECTORY).is_ok() {
        return Ok(made);
    }
    let mut parent: OwnedFd =
        at::open(root, Path::new("/"), at::HANDLE).map_err(FilesError::io("open", "/"))?;
    let mut done = PathBuf::from("/");
    for name in path.iter().skip(1) {
        done.push(name);
        let flags = at::HANDLE | OFlags::DIRECTORY;
        let next = match rustix::fs::openat(&parent, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(&parent, name, at::mode(mode)).map_err(FilesError::io("mkdir", &done))?;
                // Again, because the process's mask took from it.
                let directory = rustix::fs::openat(&parent, name, at::READ_DIRECTORY, Mode::empty())
                    .map_err(FilesError::io("open", &done))?;
                rustix::fs::fchmod(&directory, at::mode(mode)).map_err(FilesError::io("chmod", &done))?;
                attributes.set(parent.as_fd(), name, &done)?;
                made.push(done.clone());
                directory
            }
            next => next.map_err(FilesError::io("mkdir", &done))?,
        };
        parent = next;
    }
    Ok(made)
}

/// The directory that a resolved path is in, open, and its name there.
pub(super) fn open_parent<'a>(
    root: BorrowedFd<'_>,
    path: &'a Path,
    doing: &'static str,
) -> Result<(OwnedFd, &'a OsStr), FilesError> {
    let (parent, name) = at::split(path).ok_or_else(|| FilesError::io(doing, path)(Errno::ISDIR))?;
    let parent =
        at::open(root, parent, at::HANDLE | OFlags::DIRECTORY).map_err(FilesError::io(doing, path))?;
    Ok((parent, name))
}

pub(super) fn mkdir(
    root: BorrowedFd<'_>,
    action: &pb::FileActionMkDir,
    owner: Option<Owner>,
) -> Result<(), FilesError> {
    let path = at::resolve(root, action.path.as_ref(), Last::Follow)?;
    let mode = action.mode.cast_unsigned() & 0o777;
    let attributes = Attributes { owner, time: timestamp(action.timestamp) };
    if action.make_parents {
        make_directories(root, &path, mode, attributes)?;
        return Ok(());
    }
    if path == Path::new("/") {
        return Ok(());
    }
    let (parent, name) = open_parent(root, &path, "mkdir")?;
    match rustix::fs::mkdirat(&parent, name, at::mode(mode)) {
        Err(Errno::EXIST) => return Ok(()),
        made => made.map_err(FilesError::io("mkdir", &path))?,
    }
    let directory = rustix::fs::openat(&parent, name, at::READ_DIRECTORY, Mode::empty())
        .map_err(FilesError::io("open", &path))?;
    rustix::fs::fchmod(&directory, at::mode(mode)).map_err(FilesError::io("chmod", &path))?;
    attributes.set(parent.as_fd(), name, &path)
}

/// `lent`: a file with several links may be another snapshot's, and gets a copy to be written to.
pub(super) fn mkfile(
    root: BorrowedFd<'_>,
    action: &pb::FileActionMkFile,
    owner: Option<Owner>,
    lent: bool,
) -> Result<(), FilesError> {
    let path = at::resolve(root, action.path.as_ref(), Last::Follow)?;
    let mode = at::mode(action.mode.cast_unsigned() & 0o777);
    let (parent, name) = open_parent(root, &path, "open")?;
    if lent {
        own(parent.as_fd(), name).map_err(FilesError::io("open", &path))?;
    }
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match rustix::fs::openat(&parent, name, flags | OFlags::CREATE | OFlags::EXCL, mode) {
        Ok(file) => {
            rustix::fs::fchmod(&file, mode).map_err(FilesError::io("chmod", &path))?;
            file
        }
        // One that is there keeps its mode.
        Err(Errno::EXIST) => rustix::fs::openat(&parent, name, flags | OFlags::TRUNC, Mode::empty())
            .map_err(FilesError::io("open", &path))?,
        Err(errno) => return Err(FilesError::io("open", path)(errno)),
    };
    File::from(file).write_all(&action.data).map_err(FilesError::io("write", &path))?;
    Attributes { owner, time: timestamp(action.timestamp) }.set(parent.as_fd(), name, &path)
}

/// Puts an empty file in the place of one that has several links, with its owner and mode.
fn own(parent: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<()> {
    let Some(stat) = at::stat(parent, name)? else { return Ok(()) };
    if at::kind(&stat) != FileType::RegularFile || stat.st_nlink < 2 {
        return Ok(());
    }
    rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR)?;
    rustix::fs::fchown(&file, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rustix::fs::fchmod(&file, at::mode(stat.st_mode))
}

pub(super) fn symlink(
    root: BorrowedFd<'_>,
    action: &pb::FileActionSymlink,
    owner: Option<Owner>,
) -> Result<(), FilesError> {
    let path = at::resolve(root, action.newpath.as_ref(), Last::Follow)?;
    let (parent, name) = open_parent(root, &path, "symlink")?;
    rustix::fs::symlinkat(action.oldpath.as_str(), &parent, name)
        .map_err(FilesError::io("symlink", &path))?;
    Attributes { owner, time: timestamp(action.timestamp) }.set(parent.as_fd(), name, &path)
}

pub(super) fn rm(
    root: BorrowedFd<'_>,
    action: &pb::FileActionRm,
    cancel: &CancellationToken,
) -> Result<(), FilesError> {
    if !action.allow_wildcard {
        return remove(root, action.path.as_ref(), action.allow_not_found);
    }
    for path in copy::wildcards(root, &action.path, Last::Keep, cancel)? {
        remove(root, path.as_os_str(), action.allow_not_found)?;
    }
    Ok(())
}

/// Removes what is at a path, of which only the last component is not followed.
fn remove(root: BorrowedFd<'_>, path: &OsStr, allow_not_found: bool) -> Result<(), FilesError> {
    // Cleaned first, as by BuildKit: `/a/..` is the root, whatever `/a` is.
    let cleaned = path.to_str().map(|path| clean_path(&format!("/{path}")));
    let path = at::resolve(root, cleaned.as_ref().map_or(path, OsStr::new), Last::Keep)?;
    if path == Path::new("/") {
        return Err(FilesError::Invalid { what: "rm of the root directory".to_owned() });
    }
    match at::lstat(root, &path) {
        Ok(None) if allow_not_found => return Ok(()),
        Ok(None) => return Err(FilesError::io("stat", path)(Errno::NOENT)),
        found => found.map_err(FilesError::io("stat", &path))?,
    };
    let (parent, name) = open_parent(root, &path, "remove")?;
    at::remove(parent.as_fd(), name).map_err(FilesError::io("remove", &path))
}
