//! The destination directory: every operation is on one name in an open directory, so that no symlink is ever followed.

use std::{
    collections::HashSet,
    ffi::{OsStr, OsString},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use rustix::{
    fs::{
        self, AtFlags, FileType, FlockOperation, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps,
        XattrFlags,
    },
    io::Errno,
};

use super::{Ownership, index::OnDisk, stat::FileStat};
use crate::TransferError;

type Result<T> = std::result::Result<T, TransferError>;

/// Levels that a removal goes down; the receiver admits no deeper trees.
const MAX_REMOVE_DEPTH: usize = 1024;

/// The root of the destination, locked against other transfers while this lives.
pub(crate) struct Disk {
    root: OwnedFd,
    ownership: Ownership,
}

pub(crate) fn failed(operation: &'static str, path: &Path) -> impl FnOnce(Errno) -> TransferError {
    let path = path.to_owned();
    move |errno| TransferError::Io { operation, path, source: errno.into() }
}

impl Disk {
    /// To be read only.
    pub(crate) fn shared(root: &OwnedFd, ownership: Ownership) -> Result<Self> {
        // A description of our own: a lock belongs to the description, and the caller's may be shared.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = fs::openat(root, ".", flags, Mode::empty()).map_err(failed("open", Path::new(".")))?;
        Ok(Self { root, ownership })
    }

    /// Takes the lock on `root`.
    pub(crate) fn open(root: &OwnedFd, ownership: Ownership) -> Result<Self> {
        let disk = Self::shared(root, ownership)?;
        match fs::flock(&disk.root, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(disk),
            Err(Errno::WOULDBLOCK) => Err(TransferError::DestinationBusy),
            Err(errno) => Err(failed("lock", Path::new("."))(errno)),
        }
    }

    /// The directory at `path` (empty: the root).
    pub(crate) fn dir(&self, path: &Path) -> Result<OwnedFd> {
        let name = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        open_dir(self.root.as_fd(), name).map_err(failed("open directory", path))
    }

    /// Makes the directory `name`, or opens the one that is there; and what it holds in that case.
    pub(crate) fn enter(
        &self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
    ) -> Result<(OwnedFd, HashSet<OsString>)> {
        // Closed to others until its own mode is set, at the end.
        match fs::mkdirat(parent, name, Mode::RWXU) {
            Ok(()) => {
                let dir = open_dir(parent, Path::new(name)).map_err(failed("open directory", path))?;
                Ok((dir, HashSet::new()))
            }
            Err(Errno::EXIST) => {
                let dir = open_writable(parent, name).map_err(failed("open directory", path))?;
                let names = names(&dir).map_err(failed("list", path))?;
                Ok((dir, names))
            }
            Err(errno) => Err(failed("make directory", path)(errno)),
        }
    }

    /// The directory at `path` and what it holds, as it is; `None` when its mode keeps us out.
    pub(crate) fn look_into(
        &self,
        parent: BorrowedFd<'_>,
        path: &Path,
    ) -> Result<Option<(OwnedFd, HashSet<OsString>)>> {
        match open_dir(parent, Path::new(name_of(path))) {
            Ok(dir) => {
                let names = names(&dir).map_err(failed("list", path))?;
                Ok(Some((dir, names)))
            }
            Err(Errno::ACCESS) => Ok(None),
            Err(errno) => Err(failed("open directory", path)(errno)),
        }
    }

    /// The names in the root.
    pub(crate) fn root_names(&self) -> Result<HashSet<OsString>> {
        names(&self.root).map_err(failed("list", Path::new(".")))
    }

    pub(crate) fn root(&self) -> Result<OwnedFd> {
        self.dir(Path::new(""))
    }

    /// A new file, which must not be there: contents are never written into an inode that others may share.
    pub(crate) fn create(&self, parent: BorrowedFd<'_>, path: &Path) -> Result<std::fs::File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::openat(parent, name_of(path), flags, Mode::RUSR | Mode::WUSR)
            .map_err(failed("create", path))?;
        Ok(fd.into())
    }

    /// A file that is there, to read.
    pub(crate) fn open_file(&self, parent: BorrowedFd<'_>, path: &Path) -> Result<std::fs::File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = fs::openat(parent, name_of(path), flags, Mode::empty()).map_err(failed("open", path))?;
        Ok(fd.into())
    }

    pub(crate) fn symlink(&self, parent: BorrowedFd<'_>, text: &Path, path: &Path) -> Result<()> {
        fs::symlinkat(text, parent, name_of(path)).map_err(failed("make symlink", path))
    }

    pub(crate) fn make_node(
        &self,
        parent: BorrowedFd<'_>,
        path: &Path,
        kind: FileType,
        device: (u32, u32),
    ) -> Result<()> {
        let device = fs::makedev(device.0, device.1);
        fs::mknodat(parent, name_of(path), kind, Mode::RUSR | Mode::WUSR, device)
            .map_err(failed("make node", path))
    }

    /// Both paths are relative to the root, and their directories are ours.
    pub(crate) fn link(&self, target: &Path, path: &Path) -> Result<()> {
        let from = self.dir(target.parent().unwrap_or(Path::new("")))?;
        let to = self.dir(path.parent().unwrap_or(Path::new("")))?;
        fs::linkat(&from, name_of(target), &to, name_of(path), AtFlags::empty())
            .map_err(failed("make hard link", path))
    }

    /// What is at `path`; `None` when nothing is.
    pub(crate) fn stat(&self, parent: BorrowedFd<'_>, path: &Path) -> Result<Option<Stat>> {
        match fs::statat(parent, name_of(path), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(failed("stat", path)(errno)),
        }
    }

    /// Removes `path` and all below it; nothing there is fine.
    pub(crate) fn remove(&self, parent: BorrowedFd<'_>, path: &Path) -> Result<()> {
        remove(parent, name_of(path), 0).map_err(failed("remove", path))
    }

    /// Sets owner, xattrs, mode and times of an open file or directory.
    pub(crate) fn set_metadata(&self, file: BorrowedFd<'_>, stat: &FileStat, path: &Path) -> Result<()> {
        if let Some((uid, gid)) = self.owner(stat) {
            fs::fchown(file, Some(uid), Some(gid)).map_err(failed("change owner of", path))?;
        }
        // After the owner: changing it clears security.capability and the set-id bits.
        for (name, value) in &stat.xattrs {
            match fs::fsetxattr(file, OsStr::from_bytes(name), value, XattrFlags::empty()) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP) => {
                    tracing::debug!(path = %path.display(), "file system keeps no such xattr");
                }
                Err(errno) => return Err(failed("set xattr of", path)(errno)),
            }
        }
        fs::fchmod(file, Mode::from_raw_mode(stat.mode)).map_err(failed("change mode of", path))?;
        fs::futimens(file, &times(stat.mtime_ns)).map_err(failed("set time of", path))
    }

    /// Removes xattrs that an earlier transfer set on a directory and this one does not name.
    pub(crate) fn drop_stale_xattrs(&self, dir: BorrowedFd<'_>, stat: &FileStat, path: &Path) -> Result<()> {
        let mut buffer = vec![0_u8; 64 * 1024]; // XATTR_LIST_MAX
        let length = match fs::flistxattr(dir, &mut buffer[..]) {
            Ok(length) => length,
            Err(Errno::OPNOTSUPP) => return Ok(()),
            Err(errno) => return Err(failed("list xattrs of", path)(errno)),
        };
        for name in buffer[..length].split(|b| *b == 0).filter(|n| keeps_xattr(n)) {
            if !stat.xattrs.contains_key(name) {
                fs::fremovexattr(dir, OsStr::from_bytes(name)).map_err(failed("remove xattr of", path))?;
            }
        }
        Ok(())
    }

    /// Sets owner, mode (but a symlink's, which has none) and times of what cannot be opened.
    pub(crate) fn set_metadata_at(
        &self,
        parent: BorrowedFd<'_>,
        stat: &FileStat,
        path: &Path,
        symlink: bool,
    ) -> Result<()> {
        let name = name_of(path);
        if let Some((uid, gid)) = self.owner(stat) {
            fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(failed("change owner of", path))?;
        }
        if !symlink {
            // Not a symlink: we have just made it.
            fs::chmodat(parent, name, Mode::from_raw_mode(stat.mode), AtFlags::empty())
                .map_err(failed("change mode of", path))?;
        }
        fs::utimensat(parent, name, &times(stat.mtime_ns), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed("set time of", path))
    }

    fn owner(&self, stat: &FileStat) -> Option<(fs::Uid, fs::Gid)> {
        match self.ownership {
            Ownership::AsSent => Some((fs::Uid::from_raw(stat.uid), fs::Gid::from_raw(stat.gid))),
            Ownership::Daemon => None,
        }
    }
}

/// Xattrs that are taken from a client. Others would mean something to *this* machine: `trusted.overlay.*` redirects an overlay mount,
/// `security.selinux` and ACLs speak of its users.
pub(crate) fn keeps_xattr(name: &[u8]) -> bool {
    (name.starts_with(b"user.") && !name.starts_with(b"user.overlay.") && !name.contains(&0))
        || name == b"security.capability"
}

pub(crate) fn on_disk(stat: &Stat) -> OnDisk {
    OnDisk {
        inode: stat.st_ino,
        ctime_ns: nanos(stat.st_ctime, stat.st_ctime_nsec),
        allocated: 512 * u64::try_from(stat.st_blocks).unwrap_or(0),
    }
}

/// When the contents were last written: nanoseconds since 1970.
pub(crate) fn mtime_ns(stat: &Stat) -> i64 {
    nanos(stat.st_mtime, stat.st_mtime_nsec)
}

fn nanos(seconds: i64, nanos: u64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(i64::try_from(nanos).unwrap_or(0))
}

pub(crate) fn name_of(path: &Path) -> &OsStr {
    path.file_name().unwrap_or(OsStr::new("."))
}

fn times(mtime_ns: i64) -> Timestamps {
    let time =
        Timespec { tv_sec: mtime_ns.div_euclid(1_000_000_000), tv_nsec: mtime_ns.rem_euclid(1_000_000_000) };
    Timestamps { last_access: time, last_modification: time }
}

fn open_dir(parent: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    fs::openat2(
        parent,
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
}

/// An existing directory, made readable and writable for us: without privileges its own mode would bind us.
fn open_writable(parent: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let dir = match open_dir(parent, Path::new(name)) {
        Err(Errno::ACCESS) => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let handle = fs::openat(parent, name, flags, Mode::empty())?;
            fs::chmod(format!("/proc/self/fd/{}", handle.as_raw_fd()), Mode::RWXU)?;
            open_dir(parent, Path::new(name))?
        }
        other => other?,
    };
    let mode = Mode::from_raw_mode(fs::fstat(&dir)?.st_mode);
    if !mode.contains(Mode::RWXU) {
        fs::fchmod(&dir, mode | Mode::RWXU)?;
    }
    Ok(dir)
}

fn names(dir: &OwnedFd) -> rustix::io::Result<HashSet<OsString>> {
    let mut names = HashSet::new();
    for entry in fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.insert(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

fn remove(parent: BorrowedFd<'_>, name: &OsStr, depth: usize) -> rustix::io::Result<()> {
    match fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // What Linux says of a directory, and what POSIX says.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    if depth > MAX_REMOVE_DEPTH {
        return Err(Errno::NAMETOOLONG);
    }
    let dir = open_writable(parent, name)?;
    for child in names(&dir)? {
        remove(dir.as_fd(), &child, depth + 1)?;
    }
    fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}
