//! Copying what is no directory.

use std::{
    collections::HashMap,
    ffi::OsStr,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid},
    io::Errno,
};

use super::{
    Options, Target,
    lender::{Found, Lender},
};
use crate::{
    FilesError,
    action::{content::Copying, single::open_parent},
    at::{self, Node},
};

/// One entry of a directory, and what is to be a copy of it.
pub(super) struct Entry<'e> {
    /// The directory that it is in.
    pub(super) source: BorrowedFd<'e>,
    pub(super) name: &'e OsStr,
    pub(super) stat: &'e Stat,
    /// The path of that directory in the tree that is copied from.
    pub(super) origin: &'e Path,
    /// The directory that the copy will be in.
    pub(super) target: BorrowedFd<'e>,
    pub(super) target_name: &'e OsStr,
    /// Whether that one is open in the upper directory.
    pub(super) direct: bool,
    /// Its path below what is copied, for errors.
    pub(super) relative: &'e Path,
    /// The copy's path in the tree.
    pub(super) path: &'e Path,
}

/// Makes entries, and remembers which of them may be linked to.
pub(super) struct Entries<'a, 'l> {
    options: &'a Options,
    copying: Copying<'a>,
    root: BorrowedFd<'a>,
    upper: Option<BorrowedFd<'a>>,
    /// Whose files may be linked to.
    lender: Option<&'a mut Lender<'l>>,
    /// Where files with several links were copied to, and how many links may still come.
    links: HashMap<(u64, u64), (PathBuf, u64)>,
    /// Whether something was put into the upper directory that the overlay does not know.
    pub(super) wrote_directly: bool,
}

impl<'a, 'l> Entries<'a, 'l> {
    pub(super) fn new(target: Target<'a, 'l>, options: &'a Options, copying: Copying<'a>) -> Self {
        let Target { root, upper, lender } = target;
        Self { options, copying, root, upper, lender, links: HashMap::new(), wrote_directly: false }
    }

    /// Whether to go on.
    pub(super) fn check(&self) -> Result<(), FilesError> {
        self.copying.check()
    }

    /// Copies what is no directory.
    pub(super) fn copy(&mut self, entry: &Entry<'_>) -> Result<(), FilesError> {
        let io = |doing| FilesError::io(doing, entry.path);
        let mode = Mode::RUSR | Mode::WUSR;
        match at::kind(entry.stat) {
            FileType::Socket if self.options.without_sockets => Ok(()),
            FileType::RegularFile => self.file(entry),
            FileType::Symlink => {
                let link =
                    rustix::fs::readlinkat(entry.source, entry.name, Vec::new()).map_err(io("readlink"))?;
                let make = || rustix::fs::symlinkat(link.as_c_str(), entry.target, entry.target_name);
                self.make(entry, make).map_err(|error| error.named("symlink", entry.path))?;
                self.node_attributes(entry)
            }
            kind @ (FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo) => {
                let device = if kind == FileType::Fifo { 0 } else { entry.stat.st_rdev };
                let make = || rustix::fs::mknodat(entry.target, entry.target_name, kind, mode, device);
                self.make(entry, make).map_err(|error| error.named("mknod", entry.path))?;
                self.node_attributes(entry)
            }
            // A socket means nothing without its process; as with BuildKit an empty file takes its place.
            FileType::Socket => {
                let kind = FileType::RegularFile;
                let make = || rustix::fs::mknodat(entry.target, entry.target_name, kind, mode, 0);
                self.make(entry, make).map_err(|error| error.named("mknod", entry.path))?;
                self.node_attributes(entry)
            }
            FileType::Directory | FileType::Unknown => {
                let why = "is of a type that cannot be copied";
                Err(FilesError::Unsupported { path: entry.relative.to_owned(), why })
            }
        }
    }

    fn file(&mut self, entry: &Entry<'_>) -> Result<(), FilesError> {
        let found = self.lender.as_mut().and_then(|lender| lender.find(entry.origin, entry.name, entry.stat));
        if let Some(found) = &found
            && self.lend(entry, found)?
        {
            return Ok(());
        }
        if entry.stat.st_nlink > 1 && self.link(entry)? {
            return Ok(());
        }
        let io = |doing| FilesError::io(doing, entry.relative);
        // Past the overlay where that is known: it is quicker, and the file system may share the blocks.
        let source = match (&self.lender, &found) {
            (Some(lender), Some(found)) => lender.directory(found),
            _ => entry.source,
        };
        let from = rustix::fs::openat(source, entry.name, at::READ, Mode::empty()).map_err(io("open"))?;
        let opened = rustix::fs::fstat(&from).map_err(io("stat"))?;
        if at::kind(&opened) != FileType::RegularFile {
            let why = "became something else while it was copied";
            return Err(FilesError::Unsupported { path: entry.relative.to_owned(), why });
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let make = || rustix::fs::openat(entry.target, entry.target_name, flags, Mode::RUSR | Mode::WUSR);
        let to = self.make(entry, make).map_err(|error| error.named("open", entry.path))?;
        self.copying.copy(from.as_fd(), &opened, to.as_fd(), entry.path)?;
        self.attributes(to.as_fd(), &opened, entry.path)?;
        xattrs(Node::Open(from.as_fd()), Node::Open(to.as_fd()), entry.path)
    }

    /// Makes another link to the file itself, if its copy would be the same and the file system can.
    fn lend(&mut self, entry: &Entry<'_>, found: &Found) -> Result<bool, FilesError> {
        let Some(lender) = &mut self.lender else { return Ok(false) };
        if !self.options.keep_all_of(&found.stat) || !lender.may_link(found)? {
            return Ok(false);
        }
        let lender = self.lender.as_ref().expect("it was there");
        let from = lender.directory(found);
        let link = |to: BorrowedFd<'_>, name: &OsStr| {
            rustix::fs::linkat(from, entry.name, to, name, AtFlags::empty())
        };
        let made = match self.upper {
            Some(upper) if !entry.direct => self.make_below(entry, upper, link),
            _ => self.make(entry, || link(entry.target, entry.target_name)),
        };
        match made {
            Ok(()) => {}
            Err(MakeError::Errno(Errno::MLINK | Errno::XDEV | Errno::PERM | Errno::OPNOTSUPP)) => {
                return Ok(false);
            }
            Err(error) => return Err(error.named("link", entry.path)),
        }
        if self.upper.is_some() && !entry.direct {
            self.wrote_directly = true;
        }
        if let Some(lender) = &mut self.lender {
            lender.note(found);
        }
        Ok(true)
    }

    /// Makes an entry in the upper directory, where the overlay's directory may be merged with others. Overlayfs is asked for an empty file
    /// first, so that it makes all that leads there; the entry takes its place.
    fn make_below(
        &self,
        entry: &Entry<'_>,
        upper: BorrowedFd<'_>,
        make: impl Fn(BorrowedFd<'_>, &OsStr) -> rustix::io::Result<()>,
    ) -> Result<(), MakeError> {
        let create = || {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(entry.target, entry.target_name, flags, Mode::RUSR)
        };
        let empty = rustix::fs::fstat(&self.make(entry, create)?)?;
        let (parent, name) = open_parent(upper, entry.path, "open").map_err(MakeError::Files)?;
        // Overlayfs shows a new file under its own number; anything else is not the one that was made.
        if at::stat(parent.as_fd(), name)?.is_none_or(|stat| stat.st_ino != empty.st_ino) {
            return Err(MakeError::Errno(Errno::XDEV));
        }
        let beside = format!(".lapstrake-{:016x}", rand::random::<u64>());
        make(parent.as_fd(), OsStr::new(&beside))?;
        Ok(rustix::fs::renameat(&parent, &beside, &parent, name)?)
    }

    /// Links to the copy of another link to the same file, if there is one.
    fn link(&mut self, entry: &Entry<'_>) -> Result<bool, FilesError> {
        let inode = (entry.stat.st_dev, entry.stat.st_ino);
        let Some((copy, left)) = self.links.get_mut(&inode) else {
            self.links.insert(inode, (entry.path.to_owned(), entry.stat.st_nlink - 1));
            return Ok(false);
        };
        *left -= 1;
        let (copy, left) = (copy.clone(), *left);
        if left == 0 {
            self.links.remove(&inode);
        }
        // All that was copied is in the upper directory under the same path, however it came there.
        let root = self.upper.filter(|_| entry.direct).unwrap_or(self.root);
        let (parent, copy_name) = open_parent(root, &copy, "link")?;
        let link = || {
            let (target, name) = (entry.target, entry.target_name);
            rustix::fs::linkat(&parent, copy_name, target, name, AtFlags::empty())
        };
        match self.make(entry, link) {
            Ok(()) => Ok(true),
            Err(MakeError::Errno(Errno::MLINK)) => Ok(false),
            Err(error) => Err(error.named("link", entry.path)),
        }
    }

    /// Makes an entry, after what is in its way was removed.
    fn make<T>(&self, entry: &Entry<'_>, make: impl Fn() -> rustix::io::Result<T>) -> Result<T, MakeError> {
        match make() {
            Err(Errno::EXIST) => {}
            made => return made.map_err(MakeError::Errno),
        }
        let (target, name) = (entry.target, entry.target_name);
        if self.options.replace {
            at::remove(target, name)?;
        } else {
            match rustix::fs::unlinkat(target, name, AtFlags::empty()) {
                Err(Errno::ISDIR | Errno::PERM)
                    if at::stat(target, name)?.is_some_and(|stat| at::is_directory(&stat)) =>
                {
                    let path = entry.path.to_owned();
                    return Err(MakeError::Files(FilesError::IsADirectory { path }));
                }
                removed => removed?,
            }
        }
        Ok(make()?)
    }

    /// Owner, then mode, which a change of owner takes bits from, then times.
    pub(super) fn attributes(
        &self,
        target: BorrowedFd<'_>,
        stat: &Stat,
        path: &Path,
    ) -> Result<(), FilesError> {
        let io = |doing| FilesError::io(doing, path);
        let owner = self.options.owner(stat);
        let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        rustix::fs::fchown(target, Some(uid), Some(gid)).map_err(io("chown"))?;
        rustix::fs::fchmod(target, at::mode(self.options.mode(stat))).map_err(io("chmod"))?;
        rustix::fs::futimens(target, &self.options.times(stat)).map_err(io("utime"))
    }

    /// The same for what cannot be opened.
    fn node_attributes(&self, entry: &Entry<'_>) -> Result<(), FilesError> {
        let io = |doing| FilesError::io(doing, entry.path);
        let (target, name) = (entry.target, entry.target_name);
        let owner = self.options.owner(entry.stat);
        at::chown(target, name, owner.uid, owner.gid).map_err(io("chown"))?;
        if at::kind(entry.stat) != FileType::Symlink {
            // It was made a moment ago in a draft that is ours alone, and is no link.
            let mode = at::mode(self.options.mode(entry.stat));
            rustix::fs::chmodat(target, name, mode, AtFlags::empty()).map_err(io("chmod"))?;
        }
        at::set_times(target, name, &self.options.times(entry.stat)).map_err(io("utime"))?;
        xattrs(Node::Entry(entry.source, entry.name), Node::Entry(target, name), entry.path)
    }
}

/// Attributes that the target's file system cannot have are left out, as by BuildKit.
pub(super) fn xattrs(source: Node<'_>, target: Node<'_>, path: &Path) -> Result<(), FilesError> {
    for (name, value) in at::xattrs(source).map_err(FilesError::io("listxattr", path))? {
        match at::set_xattr(target, &name, &value) {
            Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::IO)) => {
                return Err(FilesError::io("setxattr", path)(errno));
            }
            Err(errno) => {
                let name = String::from_utf8_lossy(&name).into_owned();
                tracing::debug!(path = %path.display(), name, %errno, "extended attribute not copied");
            }
            Ok(()) => {}
        }
    }
    Ok(())
}

/// Why an entry could not be made.
enum MakeError {
    Errno(Errno),
    Files(FilesError),
}

impl From<Errno> for MakeError {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl MakeError {
    fn named(self, doing: &'static str, path: &Path) -> FilesError {
        match self {
            Self::Errno(errno) => FilesError::io(doing, path)(errno),
            Self::Files(error) => error,
        }
    }
}
