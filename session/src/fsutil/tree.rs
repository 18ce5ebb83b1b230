//! Trees to send: what a sender needs of one, and a directory on disk as one.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::{OsStr, OsString},
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};

use super::{
    disk,
    stat::{FileKind, FileStat, TreeEntry, from_bytes},
};

/// Levels that a walk goes down, each with an open directory.
const MAX_DEPTH: usize = 1000;

/// A tree that can be listed and read. Blocking; both methods may be called at once, from different threads.
pub trait TreeReader: Send + Sync + 'static {
    /// Calls `visit` for every entry, in the order of [`TreeEntry`], the root left out. An error of `visit` ends the walk and is returned as it
    /// is.
    ///
    /// # Errors
    /// What the tree's storage says, and `visit`'s.
    fn walk(&self, visit: &mut dyn FnMut(TreeEntry) -> io::Result<()>) -> io::Result<()>;

    /// The contents of the regular file at `path`, which a walk has shown.
    ///
    /// # Errors
    /// What the tree's storage says.
    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>>;
}

/// A directory on disk as a tree. Symlinks are not followed, and the directory is not left. Sockets are left out.
#[derive(Debug)]
pub struct DirTree {
    root: OwnedFd,
}

impl DirTree {
    /// The tree below the directory `root`.
    pub fn new(root: OwnedFd) -> Self {
        Self { root }
    }
}

impl TreeReader for DirTree {
    fn walk(&self, visit: &mut dyn FnMut(TreeEntry) -> io::Result<()>) -> io::Result<()> {
        let root = open(self.root.as_fd(), Path::new("."), OFlags::DIRECTORY)?;
        Walk { visit, links: HashMap::new() }.directory(&root, Path::new(""), 0)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        // Should it be a pipe by now, opening it must not wait.
        let fd = open(self.root.as_fd(), path, OFlags::NONBLOCK)?;
        if FileType::from_raw_mode(fs::fstat(&fd)?.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(Box::new(std::fs::File::from(fd)))
    }
}

struct Walk<'a> {
    visit: &'a mut dyn FnMut(TreeEntry) -> io::Result<()>,
    /// The first path of each file that has several, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Walk<'_> {
    fn directory(&mut self, dir: &OwnedFd, path: &Path, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many levels of directories"));
        }
        let mut names: Vec<OsString> = Vec::new();
        for entry in fs::Dir::read_from(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsStr::from_bytes(name).to_owned());
            }
        }
        names.sort();
        for name in names {
            let stat = match fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                // Removed since it was listed.
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno.into()),
            };
            self.entry(dir, &name, &path.join(&name), &stat, depth)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        dir: &OwnedFd,
        name: &OsStr,
        path: &Path,
        stat: &Stat,
        depth: usize,
    ) -> io::Result<()> {
        let Some(kind) = self.kind(dir, name, path, stat)? else { return Ok(()) };
        let opened = match kind {
            FileKind::Directory => Some(open(dir.as_fd(), Path::new(name), OFlags::DIRECTORY)?),
            FileKind::Regular { .. } => Some(open(dir.as_fd(), Path::new(name), OFlags::NONBLOCK)?),
            _ => None,
        };
        let is_dir = kind == FileKind::Directory;
        (self.visit)(TreeEntry { path: path.to_owned(), stat: file_stat(stat, kind, opened.as_ref())? })?;
        match opened {
            Some(child) if is_dir => self.directory(&child, path, depth + 1),
            _ => Ok(()),
        }
    }

    fn kind(
        &mut self,
        dir: &OwnedFd,
        name: &OsStr,
        path: &Path,
        stat: &Stat,
    ) -> io::Result<Option<FileKind>> {
        let file_type = FileType::from_raw_mode(stat.st_mode);
        let linkable = !matches!(file_type, FileType::Directory | FileType::Symlink | FileType::Socket);
        if linkable && stat.st_nlink > 1 {
            if let Some(target) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                // On the wire a link is a regular file with a link text.
                return Ok(Some(FileKind::HardLink { target: target.clone() }));
            }
            self.links.insert((stat.st_dev, stat.st_ino), path.to_owned());
        }
        let (major, minor) = (fs::major(stat.st_rdev), fs::minor(stat.st_rdev));
        Ok(Some(match file_type {
            FileType::RegularFile => FileKind::Regular { size: u64::try_from(stat.st_size).unwrap_or(0) },
            FileType::Directory => FileKind::Directory,
            FileType::Symlink => {
                let text = fs::readlinkat(dir, name, Vec::new())?;
                FileKind::Symlink { target: from_bytes(text.as_bytes()) }
            }
            FileType::Fifo => FileKind::Fifo,
            FileType::CharacterDevice => FileKind::CharDevice { major, minor },
            FileType::BlockDevice => FileKind::BlockDevice { major, minor },
            _ => return Ok(None),
        }))
    }
}

fn file_stat(stat: &Stat, kind: FileKind, opened: Option<&OwnedFd>) -> io::Result<FileStat> {
    Ok(FileStat {
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime_ns: disk::mtime_ns(stat),
        xattrs: opened.map_or(Ok(BTreeMap::new()), |fd| xattrs(fd.as_fd()))?,
    })
}

fn xattrs(fd: BorrowedFd<'_>) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    // The kernel's limits on a list and on a value (XATTR_LIST_MAX, XATTR_SIZE_MAX).
    let length = match fs::flistxattr_query(fd) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(BTreeMap::new()),
        Ok(length) => length,
        Err(errno) => return Err(errno.into()),
    };
    let mut list = vec![0_u8; length];
    let length = fs::flistxattr(fd, &mut list[..])?;
    let mut found = BTreeMap::new();
    for name in list[..length].split(|b| *b == 0).filter(|n| disk::keeps_xattr(n)) {
        let size = fs::fgetxattr_query(fd, OsStr::from_bytes(name))?;
        let mut value = vec![0_u8; size];
        let size = if size == 0 { 0 } else { fs::fgetxattr(fd, OsStr::from_bytes(name), &mut value[..])? };
        value.truncate(size);
        found.insert(name.to_vec(), value);
    }
    Ok(found)
}

fn open(dir: BorrowedFd<'_>, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(fs::openat2(dir, path, flags, Mode::empty(), resolve)?)
}
