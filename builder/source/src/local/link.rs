//! A tree of the store, without what the patterns leave out.

use std::{
    collections::HashSet,
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use lapstrake_layerstore_store::{OpenSnapshot, Tree, Usage};
use lapstrake_session::{
    Destination,
    fsutil::{Devices, Index, copy_tree},
};
use rustix::{
    fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags},
    io::Errno,
};
use tokio_util::sync::CancellationToken;

use super::{
    LocalSpec,
    select::Selection,
    walk::{Owner, Seen, SelectedTree, open, xattrs},
};
use crate::{SourceContext, SourceError, sources::Shared};

/// The selected part of `tree`: the tree itself if that is all of it, else a new one that shares its files. The paths to follow only say what
/// is enough, so they leave nothing out here.
pub(super) async fn selected(
    shared: &Arc<Shared>,
    spec: &Arc<LocalSpec>,
    tree: &Tree,
    cx: &SourceContext,
) -> Result<Tree, SourceError> {
    let selection = spec.selection()?;
    if selection.is_all() || tree.snapshot().is_none() {
        return Ok(tree.clone());
    }
    let cancel = cx.cancel.child_token();
    let _stop = cancel.clone().drop_guard();
    let (shared, spec, tree) = (Arc::clone(shared), Arc::clone(spec), tree.clone());
    SourceError::blocking(move || select(&shared, &spec, &tree, selection, &cancel)).await
}

fn select(
    shared: &Shared,
    spec: &LocalSpec,
    tree: &Tree,
    selection: Selection,
    cancel: &CancellationToken,
) -> Result<Tree, SourceError> {
    let Some(from) = shared.stores.open(tree)? else { return Ok(tree.clone()) };
    let failed = |error| SourceError::io("select files of", spec.origin())(error);
    let with = |selection| -> Result<SelectedTree, SourceError> {
        Ok(SelectedTree { root: own(&from).map_err(failed)?, selection, owner: Owner::AsIs })
    };
    let source = with(selection)?;
    if count(&source).map_err(failed)? == count(&with(Selection::default())?).map_err(failed)? {
        return Ok(tree.clone());
    }
    let draft = shared.stores.begin(&Tree::empty())?;
    let to = draft.open()?;
    match link_all(&source, to.root(), cancel) {
        Ok(linked) => {
            let name = tree.snapshot().expect("what is empty was returned");
            draft.share(name, linked)?;
            draft.mark_received()?;
            return Ok(draft.commit()?);
        }
        Err(Stop::Canceled) => return Err(SourceError::Canceled),
        Err(Stop::Io(error)) => return Err(failed(error)),
        // Files of a tree of several layers, or with more links than the file system takes, cannot be shared.
        Err(Stop::CannotLink) => drop(draft),
    }
    let draft = shared.stores.begin(&Tree::empty())?;
    let to = draft.open()?;
    let dir = own(&to).map_err(failed)?;
    let destination = Destination {
        devices: Devices::Create,
        limits: shared.limits.directory,
        ..Destination::new(dir, Index::default())
    };
    copy_tree(&source, destination, cancel, &mut |_| ()).map_err(|source| {
        if cancel.is_cancelled() {
            SourceError::Canceled
        } else {
            SourceError::Copy { origin: spec.origin(), source }
        }
    })?;
    draft.mark_received()?;
    Ok(draft.commit()?)
}

fn own(open: &OpenSnapshot) -> io::Result<OwnedFd> {
    open.root().try_clone_to_owned()
}

fn count(tree: &SelectedTree) -> io::Result<u64> {
    let mut count = 0_u64;
    tree.visit(&mut |_: &Seen<'_>| {
        count += 1;
        Ok::<(), io::Error>(())
    })?;
    Ok(count)
}

/// Why linking ended early.
enum Stop {
    Canceled,
    CannotLink,
    Io(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// Makes the directories of `source` again in `to`, with everything else in them by hard links. What these take.
fn link_all(source: &SelectedTree, to: BorrowedFd<'_>, cancel: &CancellationToken) -> Result<Usage, Stop> {
    let (mut usage, mut linked) = (Usage::default(), HashSet::new());
    let mut directories: Vec<(PathBuf, Stat)> = Vec::new();
    // The directory that was written to last.
    let mut at: Option<(PathBuf, OwnedFd)> = None;
    source.visit(&mut |seen: &Seen<'_>| {
        if cancel.is_cancelled() {
            return Err(Stop::Canceled);
        }
        let parent = seen.path.parent().unwrap_or(Path::new(""));
        let dir = match &mut at {
            Some((path, dir)) if path == parent => dir,
            _ => &mut at.insert((parent.to_owned(), open(to, named(parent), OFlags::DIRECTORY)?)).1,
        };
        if FileType::from_raw_mode(seen.stat.st_mode) == FileType::Directory {
            fs::mkdirat(&dir, seen.name, Mode::RWXU)?;
            directories.push((seen.path.to_owned(), *seen.stat));
            return Ok(());
        }
        match fs::linkat(seen.dir, seen.name, &dir, seen.name, AtFlags::empty()) {
            Ok(()) => {
                if linked.insert(seen.stat.st_ino) {
                    let bytes = 512 * u64::try_from(seen.stat.st_blocks).unwrap_or(0);
                    usage = usage + Usage { bytes, inodes: 1 };
                }
                Ok(())
            }
            Err(Errno::XDEV | Errno::MLINK | Errno::PERM | Errno::OPNOTSUPP) => Err(Stop::CannotLink),
            Err(errno) => Err(errno.into()),
        }
    })?;
    // Backwards, so that nothing touches a directory after its time is set.
    directories.insert(0, (PathBuf::new(), fs::fstat(&source.root)?));
    for (path, stat) in directories.iter().rev() {
        let from = open(source.root.as_fd(), named(path), OFlags::DIRECTORY)?;
        let made = open(to, named(path), OFlags::DIRECTORY)?;
        fs::fchown(&made, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
        for (name, value) in xattrs(from.as_fd())? {
            fs::fsetxattr(&made, OsStr::from_bytes(&name), &value, XattrFlags::empty())?;
        }
        fs::fchmod(&made, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        let nanos = stat.st_mtime_nsec.try_into().unwrap_or(0);
        let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: nanos };
        fs::futimens(&made, &Timestamps { last_access: time, last_modification: time })?;
    }
    Ok(usage)
}

fn named(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}
