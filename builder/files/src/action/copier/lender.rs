//! Hard links instead of copies: the files of a committed tree never change, and neither will those of the draft once it is committed.
//!
//! What can be told apart is only the number of a file's links. So that it stays so,
//!
//! * only files are linked that would be copied as they are: owner, mode, time and all;
//! * no tree gets a file by two names that has it by one: programs take these for one file (`cp` refuses to copy one to the other, `tar` makes
//!   a link of the second). Not linked is what the draft is made over has, and what was linked to before.
//!
//! Writing goes on safely on top: overlayfs copies a lower file before it changes it, and vfs copies whole trees. In the draft itself nothing
//! changes a file in place but mkfile, which is told.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use lapstrake_layerstore_store::{Draft, SnapshotMount, SnapshotName, Usage};
use rustix::fs::{CWD, Mode, OFlags, Stat};

use crate::{
    FilesError,
    at::{self, HANDLE},
};

/// Which file of the file system.
type Inode = u64;

/// Files that others have too.
#[derive(Debug, Default)]
pub(crate) struct Lent {
    /// Those that the draft has, or that are below it.
    taken: HashSet<Inode>,
    below_is_known: bool,
}

impl Lent {
    /// Whether some of the draft's files are another snapshot's too, and so must not be written to.
    pub(crate) fn is_some(&self) -> bool {
        !self.taken.is_empty()
    }
}

/// A tree whose files may be linked to.
pub(crate) struct Lender<'a> {
    draft: &'a Draft,
    lent: &'a mut Lent,
    layers: Vec<Layer>,
    /// The directory that was asked about last, in each layer that has it.
    at: Option<(PathBuf, Vec<(usize, OwnedFd)>)>,
    /// What was linked to here, and what it takes. By more than one name only where the tree has it so too.
    linked: HashMap<Inode, u64>,
}

/// One of the directories that the tree consists of.
struct Layer {
    /// Which one, the top-most being the first.
    number: usize,
    root: OwnedFd,
    usage: Usage,
}

/// The file that an entry of the tree really is.
pub(super) struct Found {
    /// Which of [`Lender::layers`] it is in.
    layer: usize,
    /// Which of the open directories.
    directory: usize,
    pub(super) stat: Stat,
}

impl<'a> Lender<'a> {
    /// A committed tree that consists of `directories`, top-most first, for a draft that keeps its files in `target`.
    pub(crate) fn new(
        directories: &[PathBuf],
        draft: &'a Draft,
        target: BorrowedFd<'_>,
        lent: &'a mut Lent,
    ) -> Result<Self, FilesError> {
        let below: &[PathBuf] = match draft.mount() {
            SnapshotMount::Overlay { lower, .. } => lower,
            SnapshotMount::Bind { .. } => &[],
        };
        let device = rustix::fs::fstat(target).map_err(FilesError::io("stat", "/"))?.st_dev;
        let mut layers = Vec::new();
        for (number, path) in directories.iter().enumerate().filter(|(_, path)| !below.contains(path)) {
            let root = rustix::fs::openat(CWD, path, HANDLE | OFlags::DIRECTORY, Mode::empty())
                .map_err(FilesError::io("open", path))?;
            if rustix::fs::fstat(&root).map_err(FilesError::io("stat", path))?.st_dev == device {
                layers.push(Layer { number, root, usage: Usage::default() });
            }
        }
        Ok(Self { draft, lent, layers, at: None, linked: HashMap::new() })
    }

    /// The file that `name` in the tree's `directory` is; `None` where it is not in a layer that may be linked to.
    pub(super) fn find(&mut self, directory: &Path, name: &OsStr, shown: &Stat) -> Option<Found> {
        if self.at.as_ref().is_none_or(|(path, _)| path != directory) {
            let flags = HANDLE | OFlags::DIRECTORY;
            let open = |layer: &Layer| at::open(layer.root.as_fd(), directory, flags).ok();
            let layers = self.layers.iter().enumerate();
            let there = layers.filter_map(|(layer, root)| open(root).map(|open| (layer, open))).collect();
            self.at = Some((directory.to_owned(), there));
        }
        let (_, there) = self.at.as_ref()?;
        there.iter().enumerate().find_map(|(directory, (layer, open))| {
            let stat = at::stat(open.as_fd(), name).ok()??;
            // An overlay without an upper directory shows a file under its own number, whatever it is hidden by or merged with.
            let is_it = stat.st_ino == shown.st_ino && at::kind(&stat) == at::kind(shown);
            is_it.then_some(Found { layer: *layer, directory, stat })
        })
    }

    /// The directory that a file is in.
    pub(super) fn directory(&self, found: &Found) -> BorrowedFd<'_> {
        let (_, there) = self.at.as_ref().expect("it was found there");
        there[found.directory].1.as_fd()
    }

    /// Whether the draft's tree may have the file, which it would have by one name.
    pub(super) fn may_link(&mut self, found: &Found) -> Result<bool, FilesError> {
        // Nobody else has it.
        if found.stat.st_nlink == 1 || self.linked.contains_key(&found.stat.st_ino) {
            return Ok(true);
        }
        if !self.lent.below_is_known {
            self.lent.taken.extend(self.draft.shared_below()?);
            self.lent.below_is_known = true;
        }
        Ok(!self.lent.taken.contains(&found.stat.st_ino))
    }

    /// Notes that the file was linked to.
    pub(super) fn note(&mut self, found: &Found) {
        let bytes = 512 * found.stat.st_blocks.cast_unsigned();
        if self.linked.insert(found.stat.st_ino, bytes).is_none() {
            let usage = &mut self.layers[found.layer].usage;
            *usage = *usage + Usage { bytes, inodes: 1 };
        }
    }

    /// Has what was linked to counted with the tree, whose snapshots are named by `names`, top-most first.
    pub(crate) fn settle(
        self,
        names: impl FnOnce() -> Result<Vec<SnapshotName>, FilesError>,
    ) -> Result<(), FilesError> {
        if self.linked.is_empty() {
            return Ok(());
        }
        let names = names()?;
        for layer in self.layers.iter().filter(|layer| layer.usage.inodes > 0) {
            self.draft.share(&names[layer.number], layer.usage)?;
        }
        self.lent.taken.extend(self.linked.into_keys());
        Ok(())
    }
}
