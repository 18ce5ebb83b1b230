//! A received tree over again, by hard links: the next transfer's destination begins as what the last one left.

use std::{
    collections::HashSet,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};

use super::{
    Entry, FileKind, Index,
    disk::{failed, mtime_ns, name_of, on_disk},
    index::OnDisk,
};
use crate::TransferError;

impl Index {
    /// Drops the files that `keep` refuses, so that the next transfer asks for them. Directories stay.
    pub fn retain_files(&mut self, mut keep: impl FnMut(&Entry) -> bool) {
        self.retain(|entry| entry.stat.kind == FileKind::Directory || keep(entry));
    }

    /// What of this index is still so in `tree`: [`Destination::previous`](super::Destination::previous) for a transfer that begins with an
    /// immutable tree. Blocks.
    ///
    /// `None` if it is not a whole tree of what the index says: then only a clone, made right by the transfer, is of use.
    pub fn whole(&self, tree: BorrowedFd<'_>) -> Result<Option<Index>, TransferError> {
        let mut pair = Pair { from: tree, to: tree, at: None };
        let mut entries = Vec::with_capacity(self.entries().len());
        for entry in self.entries() {
            let Some(stat) = pair.stat_made(&entry.path)? else { return Ok(None) };
            if !is_as_indexed(entry, &stat) {
                return Ok(None);
            }
            let on_disk = match entry.stat.kind {
                FileKind::Directory => OnDisk::default(),
                _ => on_disk(&stat),
            };
            entries.push(Entry { on_disk, ..entry.clone() });
        }
        Ok(Some(Index::new(entries)))
    }

    /// Makes what this index is about in `from` again in the empty directory `to`, files and symlinks by hard links, and returns the index
    /// of what is in `to` then. Blocks.
    ///
    /// Nobody writes to `from`: it is immutable, such as a committed snapshot. What is not there as the index has it (another inode, size or
    /// modification time) and what cannot be linked (another file system, too many links) is left out of both, and so will be transferred
    /// again. Directories have their own mode and times only after that transfer.
    ///
    /// The ctime of what is in `from` changes by it, and changes again when either tree is removed, so it is not looked at here; the new
    /// index has it as it is now, for the transfer that follows.
    ///
    /// # Errors
    /// [`TransferError::Io`] when `to` cannot be written to.
    pub fn clone_tree(&self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<Index, TransferError> {
        let mut pair = Pair { from, to, at: None };
        let mut inodes = HashSet::new();
        let mut linked: Vec<&Entry> = Vec::new();
        for entry in self.entries() {
            let made = match &entry.stat.kind {
                FileKind::Directory => pair.make_dir(&entry.path)?,
                FileKind::Regular { .. } | FileKind::Symlink { .. } => {
                    let made = pair.link(entry)?;
                    if made {
                        inodes.insert(entry.on_disk.inode);
                    }
                    made
                }
                // Right where the file it is a link to is right: both are one inode.
                FileKind::HardLink { .. } => inodes.contains(&entry.on_disk.inode) && pair.link(entry)?,
                _ => false,
            };
            if made {
                linked.push(entry);
            }
        }
        // Only now: each further link to an inode changes its ctime.
        let mut entries = Vec::with_capacity(linked.len());
        for entry in linked {
            let mut entry = entry.clone();
            if entry.stat.kind != FileKind::Directory {
                let Some(stat) = pair.stat_made(&entry.path)? else { continue };
                entry.on_disk = on_disk(&stat);
            }
            entries.push(entry);
        }
        Ok(Index::new(entries))
    }
}

/// The two trees, and the directory in both that was used last.
struct Pair<'a> {
    from: BorrowedFd<'a>,
    to: BorrowedFd<'a>,
    at: Option<(PathBuf, OwnedFd, OwnedFd)>,
}

impl Pair<'_> {
    /// The directory that `path` is in, in both trees; `None` where there is none.
    fn parent(&mut self, path: &Path) -> Result<Option<(BorrowedFd<'_>, BorrowedFd<'_>)>, TransferError> {
        let dir = path.parent().unwrap_or(Path::new(""));
        if self.at.as_ref().is_none_or(|(at, ..)| at != dir) {
            self.at = None;
            let open = |root| match open_dir(root, dir) {
                Ok(fd) => Ok(Some(fd)),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
                Err(errno) => Err(failed("open directory", dir)(errno)),
            };
            let (Some(from), Some(to)) = (open(self.from)?, open(self.to)?) else { return Ok(None) };
            self.at = Some((dir.to_owned(), from, to));
        }
        Ok(self.at.as_ref().map(|(_, from, to)| (from.as_fd(), to.as_fd())))
    }

    fn make_dir(&mut self, path: &Path) -> Result<bool, TransferError> {
        let Some((_, to)) = self.parent(path)? else { return Ok(false) };
        // Closed to others until the transfer sets its own mode.
        match fs::mkdirat(to, name_of(path), Mode::RWXU) {
            Ok(()) => Ok(true),
            Err(errno) => Err(failed("make directory", path)(errno)),
        }
    }

    fn link(&mut self, entry: &Entry) -> Result<bool, TransferError> {
        let Some((from, to)) = self.parent(&entry.path)? else { return Ok(false) };
        let name = name_of(&entry.path);
        match fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if is_as_indexed(entry, &stat) => {}
            Ok(_) | Err(Errno::NOENT) => return Ok(false),
            Err(errno) => return Err(failed("stat", &entry.path)(errno)),
        }
        match fs::linkat(from, name, to, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::XDEV | Errno::MLINK | Errno::PERM | Errno::OPNOTSUPP | Errno::NOENT) => Ok(false),
            Err(errno) => Err(failed("make hard link", &entry.path)(errno)),
        }
    }

    fn stat_made(&mut self, path: &Path) -> Result<Option<Stat>, TransferError> {
        let Some((_, to)) = self.parent(path)? else { return Ok(None) };
        match fs::statat(to, name_of(path), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(failed("stat", path)(errno)),
        }
    }
}

/// Whether a file is the one that a transfer left. (The owner is not compared: a daemon without privileges cannot give files away.)
fn is_as_indexed(entry: &Entry, stat: &Stat) -> bool {
    let now = on_disk(stat);
    let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    let same_inode = entry.stat.kind == FileKind::Directory || now.inode == entry.on_disk.inode;
    same_inode
        && match &entry.stat.kind {
            FileKind::Regular { size } => {
                regular
                    && u64::try_from(stat.st_size).is_ok_and(|found| found == *size)
                    && mtime_ns(stat) == entry.stat.mtime_ns
                    && stat.st_mode & 0o7777 == entry.stat.mode
            }
            FileKind::HardLink { .. } => regular,
            FileKind::Symlink { .. } => FileType::from_raw_mode(stat.st_mode) == FileType::Symlink,
            FileKind::Directory => {
                FileType::from_raw_mode(stat.st_mode) == FileType::Directory
                    && mtime_ns(stat) == entry.stat.mtime_ns
                    && stat.st_mode & 0o7777 == entry.stat.mode
            }
            _ => false,
        }
}

fn open_dir(root: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    fs::openat2(
        root,
        if path.as_os_str().is_empty() { Path::new(".") } else { path },
        OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::os::unix::fs::MetadataExt;

    use rustix::fs::CWD;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::fsutil::{Destination, DirTree, Received, copy_tree};

    struct Dirs {
        source: tempfile::TempDir,
        one: tempfile::TempDir,
        two: tempfile::TempDir,
    }

    fn open(path: &Path) -> OwnedFd {
        fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    fn copy(source: &Path, to: &Path, previous: Index) -> Received {
        let tree = DirTree::new(open(source));
        copy_tree(&tree, Destination::new(open(to), previous), &CancellationToken::new(), &mut |_| ())
            .unwrap()
    }

    fn age(path: &Path) {
        let old = std::time::UNIX_EPOCH + std::time::Duration::new(1_600_000_000, 5);
        std::fs::File::open(path).unwrap().set_modified(old).unwrap();
    }

    fn dirs() -> (Dirs, Index) {
        let dirs = Dirs {
            source: tempfile::tempdir().unwrap(),
            one: tempfile::tempdir().unwrap(),
            two: tempfile::tempdir().unwrap(),
        };
        let at = |name: &str| dirs.source.path().join(name);
        std::fs::create_dir_all(at("a/b")).unwrap();
        for (name, text) in [("a/b/x", "x"), ("a/y", "yy"), ("z", "zzz")] {
            std::fs::write(at(name), text).unwrap();
            age(&at(name));
        }
        std::fs::hard_link(at("a/y"), at("y2")).unwrap();
        std::os::unix::fs::symlink("../../nowhere", at("link")).unwrap();
        let index = copy(dirs.source.path(), dirs.one.path(), Index::default()).index;
        (dirs, index)
    }

    fn inode(path: PathBuf) -> u64 {
        std::fs::symlink_metadata(path).unwrap().ino()
    }

    #[test]
    fn a_clone_shares_every_file_and_needs_no_transfer() {
        let (dirs, index) = dirs();
        let (one, two) = (dirs.one.path(), dirs.two.path());
        let cloned = index.clone_tree(open(one).as_fd(), open(two).as_fd()).unwrap();
        assert_eq!(cloned.entries().len(), index.entries().len());
        let again = copy(dirs.source.path(), two, cloned);
        assert_eq!(again.files_written, 0);
        for name in ["a/b/x", "a/y", "y2", "z", "link"] {
            assert_eq!(inode(one.join(name)), inode(two.join(name)), "{name}");
        }
    }

    #[test]
    fn what_is_no_longer_as_indexed_is_left_out() {
        let (dirs, index) = dirs();
        let (one, two) = (dirs.one.path(), dirs.two.path());
        std::fs::remove_file(one.join("z")).unwrap();
        std::fs::write(one.join("z"), "zzz").unwrap();
        std::fs::write(one.join("a/y"), "longer").unwrap();
        let cloned = index.clone_tree(open(one).as_fd(), open(two).as_fd()).unwrap();
        assert!(cloned.get(Path::new("z")).is_none() && !two.join("z").exists());
        assert!(cloned.get(Path::new("a/y")).is_none() && cloned.get(Path::new("y2")).is_none());
        let again = copy(dirs.source.path(), two, cloned);
        assert_eq!(again.files_written, 2);
        assert_eq!(std::fs::read(two.join("y2")).unwrap(), b"yy");
        assert_eq!(inode(two.join("y2")), inode(two.join("a/y")));
    }

    #[test]
    fn an_index_survives_the_removal_of_an_older_clone() {
        let (dirs, index) = dirs();
        let (one, two) = (dirs.one.path(), dirs.two.path());
        let cloned = index.clone_tree(open(one).as_fd(), open(two).as_fd()).unwrap();
        let second = copy(dirs.source.path(), two, cloned).index;
        // It changes the ctime of all that both share.
        std::fs::remove_dir_all(one.join("a")).unwrap();
        let three = tempfile::tempdir().unwrap();
        let cloned = second.clone_tree(open(two).as_fd(), open(three.path()).as_fd()).unwrap();
        assert_eq!(copy(dirs.source.path(), three.path(), cloned).files_written, 0);
    }

    #[test]
    fn dropped_files_are_transferred_again_and_their_directories_stay() {
        let (dirs, mut index) = dirs();
        index.retain_files(|entry| entry.path != Path::new("a/b/x"));
        let cloned = index.clone_tree(open(dirs.one.path()).as_fd(), open(dirs.two.path()).as_fd()).unwrap();
        assert_eq!(copy(dirs.source.path(), dirs.two.path(), cloned).files_written, 1);
    }

    #[test]
    fn a_symlink_in_place_of_a_directory_is_not_followed() {
        let (dirs, index) = dirs();
        let one = dirs.one.path();
        std::fs::rename(one.join("a"), one.join("moved")).unwrap();
        std::os::unix::fs::symlink("moved", one.join("a")).unwrap();
        let cloned = index.clone_tree(open(one).as_fd(), open(dirs.two.path()).as_fd()).unwrap();
        assert!(cloned.get(Path::new("a/y")).is_none());
        assert!(!dirs.two.path().join("a/y").exists());
    }
}
