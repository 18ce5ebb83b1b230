//! Changes as tar entries: parents before children, one entry per inode, links to it after.

use std::{
    collections::HashMap,
    io::Write,
    os::fd::{AsFd as _, OwnedFd},
};

use rustix::{
    fd::BorrowedFd,
    fs::{FileType, Stat},
    io::Errno,
};

use super::{LayerDigest, WriteOptions, stream::Stream};
use crate::{
    DiffError, EntryName, fsat,
    tar::{Entry, Kind, Time, Xattrs, writer::TarWriter},
};

/// An entry of the tree that is written.
pub(super) struct Node<'a> {
    /// Below the root.
    pub(super) path: &'a [u8],
    /// The directory it is in.
    pub(super) at: BorrowedFd<'a>,
    /// Its name there.
    pub(super) name: &'a [u8],
    pub(super) stat: &'a Stat,
    /// A regular file, open for reading.
    pub(super) file: Option<OwnedFd>,
    /// Those that a layer keeps.
    pub(super) xattrs: Xattrs,
}

/// What is known of an inode with several names.
enum Inode {
    /// Its content is in the archive under this name.
    Written(Vec<u8>),
    /// It is unchanged under these names; should another name be new, they are written as links to that.
    Unchanged(Vec<Vec<u8>>),
}

pub(super) struct Output<W> {
    tar: TarWriter<Stream<W>>,
    options: WriteOptions,
    /// What all names begin with: the directory that the tree is written below.
    prefix: Vec<u8>,
    inodes: HashMap<(u64, u64), Inode>,
    /// The directories that the walk is in, and whether each is written.
    directories: Vec<(Entry, bool)>,
}

impl<W: Write> Output<W> {
    pub(super) fn new(options: &WriteOptions, out: W) -> Self {
        Self {
            tar: TarWriter::new(Stream::new(out)),
            options: *options,
            prefix: Vec::new(),
            inodes: HashMap::new(),
            directories: Vec::new(),
        }
    }

    /// What follows is another tree, below a directory of this name, if it has one.
    pub(super) fn begin(&mut self, options: &WriteOptions, directory: Option<&str>) -> Result<(), DiffError> {
        self.inodes.clear();
        self.options = *options;
        self.prefix = directory.map(|name| format!("{name}/").into_bytes()).unwrap_or_default();
        match self.prefix.is_empty() {
            true => Ok(()),
            false => self.tar.entry(&self.made(Kind::Directory, self.prefix.clone(), 0o755)),
        }
    }

    /// A file that is not in the tree.
    pub(super) fn beside(&mut self, name: &str, bytes: &[u8]) -> Result<(), DiffError> {
        let mut entry = self.made(Kind::File, self.name(name.as_bytes()), 0o600);
        entry.size = bytes.len() as u64;
        self.tar.entry(&entry)?;
        self.tar.write_content(bytes)?;
        self.tar.end_content(entry.size)
    }

    fn made(&self, kind: Kind, name: Vec<u8>, mode: u32) -> Entry {
        Entry {
            name,
            kind,
            link: Vec::new(),
            mode,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: Time { seconds: self.options.mtime.unwrap_or(0), nanos: 0 },
            atime: None,
            device: (0, 0),
            xattrs: Xattrs::default(),
            sparse: None,
        }
    }

    /// Goes into a directory. It is written now when it changed, else before the first thing in it.
    pub(super) fn enter(&mut self, node: &Node<'_>, changed: bool) -> Result<(), DiffError> {
        let mut entry = self.entry(node, Kind::Directory);
        entry.name.push(b'/');
        self.directories.push((entry, false));
        if changed { self.parents() } else { Ok(()) }
    }

    /// Goes out of the directory entered last.
    pub(super) fn leave(&mut self) {
        self.directories.pop();
    }

    /// Writes the mark of a deleted (or, with the opaque mark's name, hiding) entry.
    pub(super) fn whiteout(&mut self, path: &[u8]) -> Result<(), DiffError> {
        self.parents()?;
        self.tar.whiteout(path)
    }

    /// An entry that is no directory and is as it was below: nothing, unless another name of it is new.
    pub(super) fn unchanged(&mut self, node: &Node<'_>) -> Result<(), DiffError> {
        if node.stat.st_nlink < 2 {
            return Ok(());
        }
        match self.inodes.entry(inode(node.stat)).or_insert_with(|| Inode::Unchanged(Vec::new())) {
            Inode::Unchanged(names) => {
                names.push(node.path.to_vec());
                Ok(())
            }
            Inode::Written(first) => {
                let first = first.clone();
                self.link(node, &first)
            }
        }
    }

    /// Writes an entry that is no directory and is new or changed.
    pub(super) fn changed(&mut self, node: &Node<'_>) -> Result<(), DiffError> {
        let kind = match fsat::kind(node.stat) {
            FileType::RegularFile => Kind::File,
            FileType::Symlink => Kind::Symlink,
            FileType::CharacterDevice => Kind::CharDevice,
            FileType::BlockDevice => Kind::BlockDevice,
            FileType::Fifo => Kind::Fifo,
            // Nobody listens on a socket in an image.
            FileType::Socket => return Ok(()),
            FileType::Directory | FileType::Unknown => {
                return Err(DiffError::Unsupported {
                    path: EntryName::new(node.path),
                    why: "unknown type of file",
                });
            }
        };
        let mut links = Vec::new();
        if node.stat.st_nlink > 1 {
            match self.inodes.insert(inode(node.stat), Inode::Written(node.path.to_vec())) {
                Some(Inode::Written(first)) => {
                    self.inodes.insert(inode(node.stat), Inode::Written(first.clone()));
                    return self.link(node, &first);
                }
                Some(Inode::Unchanged(names)) => links = names,
                None => {}
            }
        }
        self.parents()?;
        let mut entry = self.entry(node, kind);
        if kind == Kind::Symlink {
            let target = rustix::fs::readlinkat(node.at, node.name, Vec::new());
            entry.link = target.map_err(DiffError::io("read link", node.path))?.into_bytes();
        }
        match &node.file {
            Some(file) => self.file(node, file.as_fd(), entry)?,
            None => self.tar.entry(&entry)?,
        }
        for name in links {
            let mut entry = self.entry(node, Kind::HardLink);
            entry.name = self.name(&name);
            entry.link = self.name(node.path);
            self.tar.entry(&entry)?;
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<LayerDigest, DiffError> {
        let content_size = self.tar.content();
        let (digest, tar_size) = self.tar.finish()?.finish().map_err(DiffError::Write)?;
        Ok(LayerDigest { diff_id: digest.into(), tar_size, content_size })
    }

    fn link(&mut self, node: &Node<'_>, first: &[u8]) -> Result<(), DiffError> {
        self.parents()?;
        let mut entry = self.entry(node, Kind::HardLink);
        entry.link = self.name(first);
        self.tar.entry(&entry)
    }

    fn file(&mut self, node: &Node<'_>, file: BorrowedFd<'_>, mut entry: Entry) -> Result<(), DiffError> {
        let stat = rustix::fs::fstat(file).map_err(DiffError::io("stat", node.path))?;
        if inode(&stat) != inode(node.stat) || stat.st_size != node.stat.st_size {
            return Err(changed_meanwhile(node));
        }
        entry.size = stat.st_size.cast_unsigned(); // a file's length is not negative
        self.tar.entry(&entry)?;
        let mut left = entry.size;
        while left > 0 {
            // Read to where it goes out from.
            let room = self.tar.out().room().map_err(DiffError::Write)?;
            let want = room.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            match rustix::io::pread(file, &mut room[..want], entry.size - left) {
                Ok(0) => return Err(changed_meanwhile(node)),
                Ok(count) => {
                    self.tar.out().fill(count);
                    left -= count as u64;
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(DiffError::io("read", node.path)(errno)),
            }
        }
        self.tar.end_content_beside(entry.size)
    }

    /// Writes the directories that the walk is in and that are not written yet.
    fn parents(&mut self) -> Result<(), DiffError> {
        // Those written are the outer ones: start at the first that is not.
        let first = self.directories.iter().rposition(|(_, written)| *written).map_or(0, |at| at + 1);
        for (entry, written) in &mut self.directories[first..] {
            self.tar.entry(entry)?;
            *written = true;
        }
        Ok(())
    }

    /// A path of the tree as it is in the archive.
    fn name(&self, path: &[u8]) -> Vec<u8> {
        [&self.prefix, path].concat()
    }

    fn entry(&self, node: &Node<'_>, kind: Kind) -> Entry {
        let stat = node.stat;
        let device = match kind {
            Kind::CharDevice | Kind::BlockDevice => {
                (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev))
            }
            _ => (0, 0),
        };
        let seconds = self.options.mtime.unwrap_or(stat.st_mtime);
        let seconds = self.options.latest_mtime.map_or(seconds, |latest| seconds.min(latest));
        Entry {
            name: self.name(node.path),
            kind,
            link: Vec::new(),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: 0,
            mtime: Time { seconds, nanos: 0 },
            atime: None,
            device,
            xattrs: node.xattrs.clone(),
            sparse: None,
        }
    }
}

fn inode(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

fn changed_meanwhile(node: &Node<'_>) -> DiffError {
    DiffError::Unsupported { path: EntryName::new(node.path), why: "changed while it was read" }
}
