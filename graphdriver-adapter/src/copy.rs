//! A complete copy of a tree: owners, modes, times, extended attributes, links, devices, holes.

use std::{
    collections::HashMap,
    ffi::{CStr, CString, OsStr, OsString},
    fs::File,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd},
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
    path::{Path, PathBuf},
};

use lapstrake_layerstore_store::StoreError;
use rustix::{
    fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid, XattrFlags},
    io::Errno,
};

use crate::files::{self, Opener};

/// Copies the tree `from` into the empty directory `to`, and `from`'s own attributes onto it.
///
/// Files get bytes of their own (shared extents where the file system can), never hard links: the copy will be written
/// to in place. Files that are hard links of each other in `from` are so in the copy.
pub(crate) fn tree(from: &Path, to: &Path) -> Result<(), StoreError> {
    copy(from, to).map_err(|errno| StoreError::io("copy the parent's tree to", to)(errno.into()))
}

fn copy(from: &Path, to: &Path) -> rustix::io::Result<()> {
    let from = files::open_directory(CWD, from)?;
    let to = files::open_directory(CWD, to)?;
    let (mut sources, mut targets) = (Opener::new(from.as_fd()), Opener::new(to.as_fd()));
    let mut links: HashMap<u64, PathBuf> = HashMap::new();
    let mut left = vec![PathBuf::new()];
    let mut done = Vec::new();
    while let Some(path) = left.pop() {
        let (source, target) = (sources.open(&path)?, targets.open(&path)?);
        for name in files::names(source.as_fd())? {
            let stat = files::stat(source.as_fd(), &name)?;
            let below = path.join(OsStr::from_bytes(name.as_bytes()));
            if files::is_directory(&stat) {
                rustix::fs::mkdirat(&target, &name, Mode::RWXU)?;
                left.push(below);
                continue;
            }
            if stat.st_nlink > 1 {
                if let Some(first) = links.get(&stat.st_ino) {
                    link(to.as_fd(), first, target.as_fd(), &name)?;
                    continue;
                }
                links.insert(stat.st_ino, below);
            }
            node(source.as_fd(), target.as_fd(), &name, &stat)?;
        }
        done.push(path);
    }
    // Last of all: making a file changes its directory's time.
    for path in &done {
        let (source, target) = (sources.open(path)?, targets.open(path)?);
        attributes(source.as_fd(), target.as_fd(), c".", &rustix::fs::fstat(&source)?)?;
    }
    Ok(())
}

fn link(root: BorrowedFd<'_>, first: &Path, target: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
    let parent = Opener::new(root).open(first.parent().unwrap_or(Path::new("")))?;
    let file = first.file_name().ok_or(Errno::INVAL)?;
    rustix::fs::linkat(&parent, file, target, name, AtFlags::empty())
}

fn node(source: BorrowedFd<'_>, target: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> rustix::io::Result<()> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => file(source, target, name)?,
        FileType::Symlink => {
            let link: CString = rustix::fs::readlinkat(source, name, Vec::new())?;
            rustix::fs::symlinkat(&link, target, name)?;
        }
        FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo | FileType::Socket => {
            let kind = FileType::from_raw_mode(stat.st_mode);
            rustix::fs::mknodat(target, name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev)?;
        }
        FileType::Directory | FileType::Unknown => return Err(Errno::INVAL),
    }
    attributes(source, target, name, stat)
}

fn file(source: BorrowedFd<'_>, target: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
    let open = |at, flags| {
        rustix::fs::openat(at, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)
    };
    let source = File::from(open(source, OFlags::RDONLY)?);
    let target = File::from(open(target, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?);
    let size = rustix::fs::fstat(&source)?.st_size.cast_unsigned();
    let mut at = 0;
    while at < size {
        let data = match rustix::fs::seek(&source, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno),
        };
        let hole = rustix::fs::seek(&source, SeekFrom::Hole(data))?;
        range(&source, &target, data, hole - data)?;
        at = hole;
    }
    rustix::fs::ftruncate(&target, size)
}

/// Copies a range to the same place, in the kernel where it can.
fn range(source: &File, target: &File, start: u64, length: u64) -> rustix::io::Result<()> {
    use std::os::unix::fs::FileExt as _;

    let (mut from, mut to, end) = (start, start, start + length);
    while from < end {
        let want = usize::try_from(end - from).unwrap_or(usize::MAX).min(1 << 30);
        match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), want) {
            Ok(0) => return Err(Errno::IO),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::NOSYS | Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::PERM) => break,
            Err(errno) => return Err(errno),
        }
    }
    let mut buffer = vec![0; 128 << 10];
    let error = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    while from < end {
        let want = buffer.len().min(usize::try_from(end - from).unwrap_or(usize::MAX));
        source.read_exact_at(&mut buffer[..want], from).map_err(error)?;
        target.write_all_at(&buffer[..want], from).map_err(error)?;
        from += want as u64;
    }
    Ok(())
}

/// Copies owner, extended attributes, mode and times, in that order: each may undo the one before it.
fn attributes(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    name: &CStr,
    stat: &Stat,
) -> rustix::io::Result<()> {
    let no_follow = AtFlags::SYMLINK_NOFOLLOW;
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(target, name, Some(uid), Some(gid), no_follow)?;
    xattrs(&below(source, name), &below(target, name))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        rustix::fs::chmodat(target, name, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())?;
    }
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    rustix::fs::utimensat(target, name, &times, no_follow)
}

fn time(seconds: i64, nanos: u64) -> Timespec {
    // Below a thousand million, so it fits.
    Timespec { tv_sec: seconds, tv_nsec: nanos.cast_signed() }
}

/// A path to an entry of an open directory; only its last component could be a symbolic link.
fn below(directory: BorrowedFd<'_>, name: &CStr) -> PathBuf {
    let directory = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    directory.join(OsString::from_vec(name.to_bytes().to_vec()))
}

fn xattrs(source: &Path, target: &Path) -> rustix::io::Result<()> {
    let mut names = vec![0u8; 64 << 10]; // XATTR_LIST_MAX
    let length = match rustix::fs::llistxattr(source, names.as_mut_slice()) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        length => length?,
    };
    names.truncate(length);
    let mut value = vec![0u8; 64 << 10]; // XATTR_SIZE_MAX
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let length = match rustix::fs::lgetxattr(source, name, value.as_mut_slice()) {
            Err(Errno::NODATA) => continue,
            length => length?,
        };
        match rustix::fs::lsetxattr(target, name, &value[..length], XattrFlags::empty()) {
            // Labels that a security module sets by itself.
            Err(Errno::OPNOTSUPP) if name.starts_with(b"security.") => {}
            set => set?,
        }
    }
    Ok(())
}
