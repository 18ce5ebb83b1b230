//! What Moby's classic builder leaves of a step: nothing of its container's mount points, and no layer where nothing was changed.
//!
//! There the mount points are in a layer between the image and what the container writes (`daemon/initlayer` in moby/moby), and a layer
//! whose tar stream is empty is none of the image's (`image.NewChildImage`, from 1.10 to 28).

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use lapstrake_builder_files::FilesError;
use lapstrake_layerstore_diff::{DiffError, WriteOptions, write_layer};
use lapstrake_layerstore_store::{DiffSource, Draft, StoreError, Stores, Tree};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};

use crate::StepError;

/// The size of an archive without entries: two blocks of zeros.
const EMPTY_TAR: usize = 1024;
/// The directory that `/etc/hosts` and `/etc/resolv.conf` are mounted in.
const VISITED: &str = "etc";

/// Commits what a process wrote.
pub(super) fn commit(stores: &Stores, draft: Draft) -> Result<Tree, StepError> {
    if let DiffSource::OverlayUpper { upper, lower, .. } = draft.diff()? {
        forget_visit(&upper, &lower)
            .map_err(|source| StepError::Io { what: "the layer of a step", source })?;
    }
    let parent = draft.parent().clone();
    let tree = draft.commit()?;
    without_nothing(stores, tree, &[parent])
}

/// A tree without its top layer, if that changes nothing. What is below it is one of `inputs`, or nothing.
pub(super) fn without_nothing(stores: &Stores, tree: Tree, inputs: &[Tree]) -> Result<Tree, StepError> {
    let Some(name) = tree.snapshot() else { return Ok(tree) };
    if !is_empty(&stores.snapshots.diff_source(name)?)? {
        return Ok(tree);
    }
    Ok(match stores.snapshots.stat(name)?.parent {
        None => Tree::empty(),
        Some(parent) => match inputs.iter().find(|input| input.snapshot() == Some(&parent)) {
            Some(input) => input.clone(),
            // It cannot go while what is on top of it is held.
            None => stores.hold(&parent)?.ok_or_else(|| StoreError::not_found("snapshot", &parent))?,
        },
    })
}

/// Whether a layer's tar stream has no entries.
fn is_empty(source: &DiffSource) -> Result<bool, StepError> {
    if let DiffSource::OverlayUpper { upper, .. } = source {
        let mut entries = std::fs::read_dir(upper).map_err(StoreError::io("list", upper))?;
        return Ok(entries.next().is_none());
    }
    match write_layer(source, &WriteOptions::default(), Short(0)) {
        Ok(_) => Ok(true),
        Err(DiffError::Write(_)) => Ok(false),
        Err(error) => Err(FilesError::from(error).into()),
    }
}

/// Takes no more than an archive without entries is.
struct Short(usize);

impl Write for Short {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0 += data.len();
        if self.0 > EMPTY_TAR { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(data.len()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Overlayfs copies a directory up when a mount point is made in it. Where it is empty again, and as it is below, it is no change. (To Moby it is one
/// where a step gives it the mode or owner that it has.)
fn forget_visit(upper: &Path, lower: &[PathBuf]) -> io::Result<()> {
    let visited = upper.join(VISITED);
    let Some(after) = stat(&visited)? else { return Ok(()) };
    let mut before = None;
    for directory in lower {
        before = stat(&directory.join(VISITED))?.map(|stat| (directory.join(VISITED), stat));
        if before.is_some() {
            break;
        }
    }
    let Some((below, before)) = before else { return Ok(()) };
    let looks = |stat: &Stat| (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_mtime, stat.st_mtime_nsec);
    if FileType::from_raw_mode(after.st_mode) != FileType::Directory
        || looks(&after) != looks(&before)
        || attributes(&visited)? != attributes(&below)?
    {
        return Ok(());
    }
    match rustix::fs::unlinkat(CWD, &visited, AtFlags::REMOVEDIR) {
        Ok(()) | Err(rustix::io::Errno::NOTEMPTY) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn stat(path: &Path) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Extended attributes, but for overlayfs's own notes. That a directory is opaque is more than a note.
fn attributes(path: &Path) -> io::Result<Vec<(std::ffi::OsString, Option<Vec<u8>>)>> {
    let directory = rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let directory = std::fs::File::from(directory);
    let mut found = Vec::new();
    for name in xattr::FileExt::list_xattr(&directory)? {
        let text = name.to_string_lossy();
        let is_note = text.starts_with("trusted.overlay.") || text.starts_with("user.overlay.");
        if !is_note || text.ends_with(".opaque") {
            let value = xattr::FileExt::get_xattr(&directory, &name)?;
            found.push((name, value));
        }
    }
    found.sort();
    Ok(found)
}
