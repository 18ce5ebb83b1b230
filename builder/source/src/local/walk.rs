//! A walk of a directory that shows what is selected, never follows a symlink and never leaves the directory.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::{OsStr, OsString},
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
};

use lapstrake_session::fsutil::{FileKind, FileStat, TreeEntry, TreeReader};
use rustix::{
    fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};

use super::{
    as_text,
    select::{Above, Selection},
};

/// Levels that a walk goes down, each with an open directory. The receiver takes fewer.
const MAX_DEPTH: usize = 1000;

/// The selected part of a directory. Sockets are left out.
pub(crate) struct SelectedTree {
    pub(crate) root: OwnedFd,
    pub(crate) selection: Selection,
    pub(crate) owner: Owner,
}

/// Whose the files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Root's: who owns them on this machine means nothing in an image, and docker's client sends all as root's.
    Root,
    /// Whose they are in the tree.
    AsIs,
}

/// An entry that a walk shows.
pub(crate) struct Seen<'a> {
    /// The directory it is in, open.
    pub(crate) dir: BorrowedFd<'a>,
    pub(crate) name: &'a OsStr,
    /// Relative to the root.
    pub(crate) path: &'a Path,
    pub(crate) stat: &'a Stat,
}

impl SelectedTree {
    /// Calls `visit` for every selected entry and for the directories they are in, in the order of [`TreeEntry`]. An error of `visit` ends the
    /// walk.
    pub(crate) fn visit<E: From<io::Error>>(
        &self,
        visit: &mut dyn FnMut(&Seen<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let root = open(self.root.as_fd(), Path::new("."), OFlags::DIRECTORY).map_err(E::from)?;
        let mut walk = Walk { selection: &self.selection, visit, waiting: Vec::new() };
        walk.directory(&root, Path::new(""), &Above::default(), 0)
    }
}

/// A directory that is shown once something in it is.
struct Waiting {
    dir: OwnedFd,
    name: OsString,
    path: PathBuf,
    stat: Stat,
}

struct Walk<'a, E> {
    selection: &'a Selection,
    visit: &'a mut dyn FnMut(&Seen<'_>) -> Result<(), E>,
    waiting: Vec<Waiting>,
}

impl<E: From<io::Error>> Walk<'_, E> {
    fn directory(&mut self, dir: &OwnedFd, path: &Path, above: &Above, depth: usize) -> Result<(), E> {
        if depth > MAX_DEPTH {
            let what = format!("{}: too many levels of directories", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what).into());
        }
        for name in names(dir).map_err(|error| about(path, error))? {
            let path = path.join(&name);
            let stat = match fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                // Removed since it was listed.
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(about(&path, errno.into()).into()),
            };
            self.entry(dir, &name, &path, &stat, above, depth)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        dir: &OwnedFd,
        name: &OsStr,
        path: &Path,
        stat: &Stat,
        above: &Above,
        depth: usize,
    ) -> Result<(), E> {
        let choice = self.selection.choose(&as_text(path), above);
        let kind = FileType::from_raw_mode(stat.st_mode);
        if choice.selected && kind != FileType::Socket {
            for waiting in std::mem::take(&mut self.waiting) {
                (self.visit)(&Seen {
                    dir: waiting.dir.as_fd(),
                    name: &waiting.name,
                    path: &waiting.path,
                    stat: &waiting.stat,
                })?;
            }
            (self.visit)(&Seen { dir: dir.as_fd(), name, path, stat })?;
        }
        if kind != FileType::Directory || !choice.descend {
            return Ok(());
        }
        let child = match open(dir.as_fd(), Path::new(name), OFlags::DIRECTORY) {
            Ok(child) => child,
            // Gone, or something else by now: then there is nothing in it.
            Err(error) if is_gone(&error) => return Ok(()),
            // What is not wanted need not be readable.
            Err(error) if !choice.selected && error.kind() == io::ErrorKind::PermissionDenied => {
                return Ok(());
            }
            Err(error) => return Err(about(path, error).into()),
        };
        let before = self.waiting.len();
        if !choice.selected {
            let dir = dir.try_clone()?;
            self.waiting.push(Waiting { dir, name: name.to_owned(), path: path.to_owned(), stat: *stat });
        }
        self.directory(&child, path, &choice.above, depth + 1)?;
        // Still waiting: nothing in it was shown.
        self.waiting.truncate(before);
        Ok(())
    }
}

fn names(dir: &OwnedFd) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    names.sort();
    Ok(names)
}

impl TreeReader for SelectedTree {
    fn walk(&self, visit: &mut dyn FnMut(TreeEntry) -> io::Result<()>) -> io::Result<()> {
        let mut links: HashMap<(u64, u64), PathBuf> = HashMap::new();
        self.visit(&mut |seen: &Seen<'_>| {
            let Some(kind) = kind(seen, &mut links)? else { return Ok(()) };
            let opened = match kind {
                FileKind::Directory => open(seen.dir, Path::new(seen.name), OFlags::DIRECTORY).map(Some),
                FileKind::Regular { .. } => open(seen.dir, Path::new(seen.name), OFlags::NONBLOCK).map(Some),
                _ => Ok(None),
            };
            let opened = match opened {
                Ok(opened) => opened,
                Err(error) if is_gone(&error) => return Ok(()),
                Err(error) => return Err(about(seen.path, error)),
            };
            let xattrs = match &opened {
                Some(fd) => xattrs(fd.as_fd()).map_err(|error| about(seen.path, error))?,
                None => BTreeMap::new(),
            };
            drop(opened);
            let (uid, gid) = match self.owner {
                Owner::Root => (0, 0),
                Owner::AsIs => (seen.stat.st_uid, seen.stat.st_gid),
            };
            let stat = FileStat {
                kind,
                mode: seen.stat.st_mode & 0o7777,
                uid,
                gid,
                mtime_ns: mtime_ns(seen.stat),
                xattrs,
            };
            visit(TreeEntry { path: seen.path.to_owned(), stat })
        })
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        // Should it be a pipe by now, opening it must not wait.
        let fd = open(self.root.as_fd(), path, OFlags::NONBLOCK)?;
        if FileType::from_raw_mode(fs::fstat(&fd)?.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file any more"));
        }
        Ok(Box::new(std::fs::File::from(fd)))
    }
}

fn kind(seen: &Seen<'_>, links: &mut HashMap<(u64, u64), PathBuf>) -> io::Result<Option<FileKind>> {
    let stat = seen.stat;
    let file_type = FileType::from_raw_mode(stat.st_mode);
    if !matches!(file_type, FileType::Directory | FileType::Symlink) && stat.st_nlink > 1 {
        if let Some(target) = links.get(&(stat.st_dev, stat.st_ino)) {
            return Ok(Some(FileKind::HardLink { target: target.clone() }));
        }
        links.insert((stat.st_dev, stat.st_ino), seen.path.to_owned());
    }
    let (major, minor) = (fs::major(stat.st_rdev), fs::minor(stat.st_rdev));
    Ok(Some(match file_type {
        FileType::RegularFile => FileKind::Regular { size: u64::try_from(stat.st_size).unwrap_or(0) },
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => match fs::readlinkat(seen.dir, seen.name, Vec::new()) {
            Ok(text) => FileKind::Symlink { target: OsString::from_vec(text.into_bytes()).into() },
            Err(Errno::NOENT | Errno::INVAL) => return Ok(None),
            Err(errno) => return Err(about(seen.path, errno.into())),
        },
        FileType::Fifo => FileKind::Fifo,
        FileType::CharacterDevice => FileKind::CharDevice { major, minor },
        FileType::BlockDevice => FileKind::BlockDevice { major, minor },
        _ => return Ok(None),
    }))
}

/// What an image may keep of a file's xattrs; others speak of this machine's users and policies.
pub(super) fn xattrs(fd: BorrowedFd<'_>) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let length = match fs::flistxattr_query(fd) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(BTreeMap::new()),
        Ok(length) => length,
        Err(errno) => return Err(errno.into()),
    };
    let mut list = vec![0_u8; length];
    let length = fs::flistxattr(fd, &mut list[..])?;
    let mut found = BTreeMap::new();
    for name in list[..length].split(|byte| *byte == 0) {
        let kept = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
        if kept || name == b"security.capability" {
            let size = fs::fgetxattr_query(fd, OsStr::from_bytes(name))?;
            let mut value = vec![0_u8; size];
            let size =
                if size == 0 { 0 } else { fs::fgetxattr(fd, OsStr::from_bytes(name), &mut value[..])? };
            value.truncate(size);
            found.insert(name.to_vec(), value);
        }
    }
    Ok(found)
}

/// Nanoseconds since 1970.
pub(super) fn mtime_ns(stat: &Stat) -> i64 {
    let nanos = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
    stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(nanos)
}

/// Opens something below a directory, without following any symlink.
pub(crate) fn open(dir: BorrowedFd<'_>, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(fs::openat2(dir, path, flags, Mode::empty(), resolve)?)
}

fn is_gone(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP))
}

/// An error with the path it is about.
fn about(path: &Path, error: io::Error) -> io::Error {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
