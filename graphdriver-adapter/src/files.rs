//! Walking and deleting trees, however deep: both go one directory at a time, holding few descriptors.

use std::{
    collections::HashSet,
    ffi::{CStr, CString, OsString},
    fs::File,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStringExt as _,
    },
    path::{Path, PathBuf},
};

use lapstrake_layerstore_store::{StoreError, Usage};
use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat},
    io::Errno,
};

/// Removes a file, if it is there.
pub(crate) fn remove_file(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// A directory open for listing.
pub(crate) fn open_directory(
    at: BorrowedFd<'_>,
    name: impl rustix::path::Arg,
) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(
        at,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// The names in a directory, without `.` and `..`, in no order.
pub(crate) fn names(directory: BorrowedFd<'_>) -> rustix::io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

pub(crate) fn stat(directory: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<Stat> {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
}

pub(crate) fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Deepest level that is walked with a descriptor for each level.
const DEPTH: usize = 64;

/// Deletes a tree, and says what that freed: files that others link to stay. Success when there is none.
///
/// A directory deeper than a few levels is first moved up into the tree's root, so neither the stack nor the number of
/// descriptors grows with what a build left behind.
pub(crate) fn remove_tree(path: &Path) -> Result<Usage, StoreError> {
    let error = |errno: Errno| StoreError::io("remove", path)(errno.into());
    let root = match open_directory(CWD, path) {
        Ok(root) => root,
        Err(Errno::NOENT) => return Ok(Usage::default()),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            let stat = rustix::fs::lstat(path).map_err(error)?;
            rustix::fs::unlinkat(CWD, path, AtFlags::empty()).map_err(error)?;
            return Ok(taken(&stat));
        }
        Err(errno) => return Err(error(errno)),
    };
    let mut freed = taken(&rustix::fs::fstat(&root).map_err(error)?);
    let mut moved = 0u64;
    // Each round empties the root of what it held; what was moved up meanwhile is the next round's.
    loop {
        let before = moved;
        freed = freed + empty(root.as_fd(), root.as_fd(), 0, &mut moved).map_err(error)?;
        if moved == before {
            break;
        }
    }
    rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR).map_err(error)?;
    Ok(freed)
}

fn empty(
    root: BorrowedFd<'_>,
    directory: BorrowedFd<'_>,
    depth: usize,
    moved: &mut u64,
) -> rustix::io::Result<Usage> {
    let mut freed = Usage::default();
    for name in names(directory)? {
        let stat = match stat(directory, &name) {
            Err(Errno::NOENT) => continue,
            stat => stat?,
        };
        if !is_directory(&stat) {
            rustix::fs::unlinkat(directory, &name, AtFlags::empty())?;
            if stat.st_nlink == 1 {
                freed = freed + taken(&stat);
            }
            continue;
        }
        if depth == DEPTH {
            *moved += 1;
            rustix::fs::renameat(directory, &name, root, format!("deep-{}-{moved}", rand::random::<u64>()))?;
            continue;
        }
        let child = open_directory(directory, &name)?;
        freed = freed + taken(&stat) + empty(root, child.as_fd(), depth + 1, moved)?;
        drop(child);
        rustix::fs::unlinkat(directory, &name, AtFlags::REMOVEDIR)?;
    }
    Ok(freed)
}

/// What an inode takes on disk.
fn taken(stat: &Stat) -> Usage {
    Usage { bytes: 512 * u64::try_from(stat.st_blocks).unwrap_or(0), inodes: 1 }
}

/// What a tree takes on disk: allocated blocks, and inodes; each inode once.
pub(crate) fn usage(path: &Path) -> Result<Usage, StoreError> {
    let mut usage = Usage::default();
    let mut seen = HashSet::new();
    visit(path, &mut |stat| {
        if is_directory(stat) || stat.st_nlink < 2 || seen.insert((stat.st_dev, stat.st_ino)) {
            usage = usage + taken(stat);
        }
    })?;
    Ok(usage)
}

/// Adds the numbers of a tree's inodes that have several links.
pub(crate) fn several_links(path: &Path, inodes: &mut HashSet<u64>) -> Result<(), StoreError> {
    visit(path, &mut |stat| {
        if !is_directory(stat) && stat.st_nlink > 1 {
            inodes.insert(stat.st_ino);
        }
    })
}

/// Shows all that is in a tree, and its root.
fn visit(path: &Path, visit: &mut dyn FnMut(&Stat)) -> Result<(), StoreError> {
    let root = open_directory(CWD, path).map_err(|errno| StoreError::io("measure", path)(errno.into()))?;
    let mut walk = || -> rustix::io::Result<()> {
        visit(&rustix::fs::fstat(&root)?);
        // Paths below the root instead of descriptors: they are as many as the tree has directories side by side.
        let mut opener = Opener::new(root.as_fd());
        let mut open = vec![PathBuf::new()];
        while let Some(at) = open.pop() {
            let directory = match opener.open(&at) {
                // An active snapshot may be written to meanwhile.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if !at.as_os_str().is_empty() => continue,
                directory => directory?,
            };
            for name in names(directory.as_fd())? {
                let stat = match stat(directory.as_fd(), &name) {
                    Err(Errno::NOENT) => continue,
                    stat => stat?,
                };
                visit(&stat);
                if is_directory(&stat) {
                    open.push(at.join(OsString::from_vec(name.into_bytes())));
                }
            }
        }
        Ok(())
    };
    walk().map_err(|errno| StoreError::io("measure", path)(errno.into()))
}

/// Opens directories below a root by paths without links, of any length, best in depth-first order.
///
/// The kernel takes no path longer than `PATH_MAX`, a process no descriptor for each level: it keeps one for each
/// [`ANCHOR`] levels and walks from there.
pub(crate) struct Opener<'a> {
    root: BorrowedFd<'a>,
    anchors: Vec<(PathBuf, OwnedFd)>,
}

const ANCHOR: usize = 128;

impl<'a> Opener<'a> {
    pub(crate) fn new(root: BorrowedFd<'a>) -> Self {
        Self { root, anchors: Vec::new() }
    }

    pub(crate) fn open(&mut self, path: &Path) -> rustix::io::Result<OwnedFd> {
        while self.anchors.last().is_some_and(|(anchor, _)| !path.starts_with(anchor)) {
            self.anchors.pop();
        }
        let (mut at, mut directory) = match self.anchors.last() {
            Some((anchor, handle)) => (anchor.clone(), open_directory(handle.as_fd(), c".")?),
            None => (PathBuf::new(), open_directory(self.root, c".")?),
        };
        let below: Vec<_> = path.components().skip(self.anchors.len() * ANCHOR).collect();
        for (count, component) in below.into_iter().enumerate() {
            directory = open_directory(directory.as_fd(), component.as_os_str())?;
            at.push(component);
            if (count + 1) % ANCHOR == 0 {
                self.anchors.push((at.clone(), open_directory(directory.as_fd(), c".")?));
            }
        }
        Ok(directory)
    }
}

/// Makes a directory with exactly this mode; success when it is there.
pub(crate) fn make_directory(path: &Path, mode: u32) -> Result<(), StoreError> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(mode)) {
        Ok(()) => {}
        Err(Errno::EXIST) if path.is_dir() => return Ok(()),
        Err(errno) => return Err(StoreError::io("make directory", path)(errno.into())),
    }
    set_mode(path, mode)
}

/// Sets a mode that the umask has no say in.
pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<(), StoreError> {
    rustix::fs::chmod(path, Mode::from_raw_mode(mode))
        .map_err(|errno| StoreError::io("set mode of", path)(errno.into()))
}

/// Flushes the file system that a directory is on.
pub(crate) fn sync_file_system(path: &Path) -> Result<(), StoreError> {
    let directory = File::open(path).map_err(StoreError::io("open", path))?;
    rustix::fs::syncfs(directory).map_err(|errno| StoreError::io("flush file system of", path)(errno.into()))
}

/// The names in a directory of the store.
pub(crate) fn list(path: &Path) -> Result<Vec<OsString>, StoreError> {
    let entries = std::fs::read_dir(path).map_err(StoreError::io("list", path))?;
    entries
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<_, _>>()
        .map_err(StoreError::io("list", path))
}
