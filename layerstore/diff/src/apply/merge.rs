//! Moving a difference in overlayfs's form into the complete tree that it is a difference to.

use std::{
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::fs::{OFlags, Stat};

use super::{open_root, restore_times};
use crate::{DiffError, fsat, lower::Lower};

enum Step {
    /// Move in what a directory holds.
    Enter(Vec<u8>),
    /// Give a directory the difference's attributes, now that nothing more is done in it. The times are those that the
    /// staged directory had before things were moved out of it.
    Leave(Vec<u8>, Box<Stat>),
}

/// Moves everything from `staging` into `tree`, deleting what whiteouts and opaque directories (`lower` knows which)
/// say. `staging` is a wreck afterwards.
pub(super) fn merge(staging: &Path, tree: &Path, lower: &Lower) -> Result<(), DiffError> {
    let (from, to) = (open_root(staging)?, open_root(tree)?);
    let before = rustix::fs::fstat(&to).map_err(DiffError::path("stat", tree))?;
    let mut steps = vec![Step::Enter(Vec::new())];
    while let Some(step) = steps.pop() {
        match step {
            Step::Enter(path) => enter(from.as_fd(), to.as_fd(), path, lower, &mut steps)?,
            Step::Leave(path, stat) => leave(from.as_fd(), to.as_fd(), &path, &stat)?,
        }
    }
    restore_times(tree, &before)
}

fn enter(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    path: Vec<u8>,
    lower: &Lower,
    steps: &mut Vec<Step>,
) -> Result<(), DiffError> {
    let source = open(from, &path)?;
    let target = open(to, &path)?;
    let call = || -> rustix::io::Result<Vec<Step>> {
        if lower.is_hidden(&path) {
            for name in fsat::names(target.as_fd())? {
                fsat::remove(target.as_fd(), &name)?;
            }
        }
        let mut below = Vec::new();
        for name in fsat::names(source.as_fd())? {
            let Some(stat) = fsat::stat(source.as_fd(), &name)? else {
                continue;
            };
            let there = fsat::stat(target.as_fd(), &name)?;
            if fsat::is_whiteout(&stat) {
                fsat::remove(target.as_fd(), &name)?;
            } else if fsat::is_directory(&stat) && there.as_ref().is_some_and(fsat::is_directory) {
                let path = fsat::join(&path, &name);
                below.push(Step::Leave(path.clone(), Box::new(stat)));
                below.push(Step::Enter(path));
            } else {
                if there.is_some() {
                    fsat::remove(target.as_fd(), &name)?;
                }
                rustix::fs::renameat(&source, name.as_slice(), &target, name.as_slice())?;
            }
        }
        Ok(below)
    };
    steps.extend(call().map_err(DiffError::io("move layer into", &path))?);
    Ok(())
}

fn leave(from: BorrowedFd<'_>, to: BorrowedFd<'_>, path: &[u8], stat: &Stat) -> Result<(), DiffError> {
    let call = || -> rustix::io::Result<()> {
        let (parent, name) = fsat::split(path);
        let source = fsat::open_below(from, parent, fsat::HANDLE | OFlags::DIRECTORY)?;
        let target = fsat::open_below(to, parent, fsat::HANDLE | OFlags::DIRECTORY)?;
        let target_path = fsat::entry_path(target.as_fd(), name);
        for (key, _) in fsat::xattrs(&target_path)? {
            if key.starts_with(b"user.") || key == b"security.capability" {
                rustix::fs::lremovexattr(&target_path, &key)?;
            }
        }
        fsat::copy_attributes(&fsat::entry_path(source.as_fd(), name), stat, target.as_fd(), name)?;
        fsat::set_times(target.as_fd(), name, fsat::atime(stat), fsat::mtime(stat))
    };
    call().map_err(DiffError::io("set attributes of", path))
}

fn open(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, DiffError> {
    fsat::open_below(root, path, fsat::READ | OFlags::DIRECTORY).map_err(DiffError::io("open", path))
}
