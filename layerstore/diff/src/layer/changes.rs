//! Walking a tree and the layers below it for what differs.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    io::Write,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
    rc::Rc,
    vec,
};

use rustix::{
    fd::BorrowedFd,
    fs::{OFlags, Stat},
};

use super::{
    compare,
    output::{Node, Output},
};
use crate::{
    DiffError, EntryName, fsat,
    lower::{self, Lower, Members},
    unpack::path::{OPAQUE_NAME, WHITEOUT},
};

/// What the walked tree is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scope {
    /// It is in overlayfs's form: whiteouts and marks say what is deleted. Otherwise what is missing is.
    overlay: bool,
    /// The output is a layer, where some names have a meaning.
    layer: bool,
}

impl Scope {
    pub(super) const OVERLAY: Self = Self { overlay: true, layer: true };
    pub(super) const TREES: Self = Self { overlay: false, layer: true };
    pub(super) const TREE: Self = Self { overlay: false, layer: false };
}

pub(super) struct Changes<'a> {
    pub(super) root: BorrowedFd<'a>,
    pub(super) lower: &'a Lower,
    pub(super) scope: Scope,
    pub(super) keep: &'a mut dyn FnMut(&Path) -> bool,
}

/// A directory that the walk is in. A frame for each instead of recursion: trees may be thousands of levels deep.
struct Frame {
    path: Vec<u8>,
    names: vec::IntoIter<Vec<u8>>,
    lower: Members,
    /// Closed while the walk is further in, so that depth costs no descriptors.
    handle: Option<OwnedFd>,
}

impl Changes<'_> {
    pub(super) fn walk<W: Write>(
        &mut self,
        lower: Rc<Vec<PathBuf>>,
        output: &mut Output<W>,
    ) -> Result<(), DiffError> {
        let mut frames = vec![self.frame(Vec::new(), lower)?];
        while let Some(frame) = frames.last_mut() {
            let Some(name) = frame.names.next() else {
                frames.pop();
                if !frames.is_empty() {
                    output.leave();
                }
                continue;
            };
            let handle = match frame.handle.take() {
                Some(handle) => handle,
                None => self.open(&frame.path, fsat::HANDLE)?,
            };
            let path = fsat::join(&frame.path, &name);
            if path.len() > fsat::PATH_LIMIT {
                return Err(unsupported(&path, "its path is too long for a layer"));
            }
            let inner = self.entry(&frame.lower.clone(), handle.as_fd(), &path, &name, output)?;
            match inner {
                None => frame.handle = Some(handle),
                Some(members) => {
                    drop(handle);
                    frames.push(self.frame(path, members)?);
                }
            }
        }
        Ok(())
    }

    fn frame(&self, path: Vec<u8>, lower: Members) -> Result<Frame, DiffError> {
        let handle = self.open(&path, fsat::READ)?;
        let mut names = fsat::names(handle.as_fd()).map_err(DiffError::io("list", &path))?;
        if self.scope.layer && !self.scope.overlay && !lower.is_empty() {
            // What is missing here is deleted, and must be walked over to be seen.
            let all: BTreeSet<Vec<u8>> = names.into_iter().chain(self.lower.names(&lower)?).collect();
            names = all.into_iter().collect();
        }
        Ok(Frame { path, names: names.into_iter(), lower, handle: Some(handle) })
    }

    fn open(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, DiffError> {
        fsat::open_below(self.root, path, flags | OFlags::DIRECTORY).map_err(DiffError::io("open", path))
    }

    /// Writes what one entry needs; for a directory, the lower directories that merge with it.
    fn entry<W: Write>(
        &mut self,
        lower: &[PathBuf],
        at: BorrowedFd<'_>,
        path: &[u8],
        name: &[u8],
        output: &mut Output<W>,
    ) -> Result<Option<Members>, DiffError> {
        if !(self.keep)(Path::new(OsStr::from_bytes(path))) {
            return Ok(None);
        }
        let stat = fsat::stat(at, name).map_err(DiffError::io("stat", path))?;
        if stat.is_none() && (self.scope.overlay || !self.scope.layer) {
            return Err(unsupported(path, "went away while it was read"));
        }
        let below = self.lower.find(lower, name)?;
        let Some(stat) = stat.filter(|stat| !(self.scope.overlay && fsat::is_whiteout(stat))) else {
            // Also of what is in no layer below: what one tree has over another may be kept without that other one.
            let (parent, _) = fsat::split(path);
            output.whiteout(&fsat::join(parent, &[WHITEOUT, name].concat()))?;
            return Ok(None);
        };
        if self.scope.layer {
            if name.starts_with(WHITEOUT) {
                return Err(unsupported(path, "a name beginning with .wh. means a deleted file in a layer"));
            }
            if fsat::is_whiteout(&stat) {
                return Err(unsupported(path, "a character device 0:0 means a deleted file in a layer"));
            }
        }
        let all =
            fsat::xattrs(&fsat::entry_path(at, name)).map_err(DiffError::io("read attributes of", path))?;
        if self.scope.overlay {
            check_marks(path, &all)?;
        }
        let node = Node { path, at, name, stat: &stat, xattrs: compare::layer_xattrs(all) };
        if fsat::is_directory(&stat) {
            return self.directory(&node, lower, below, output).map(Some);
        }
        match below {
            Some((below_path, below)) if compare::same_entry(&node, &below_path, &below)? => {
                output.unchanged(&node)?
            }
            _ => output.changed(&node)?,
        }
        Ok(None)
    }

    fn directory<W: Write>(
        &self,
        node: &Node<'_>,
        lower: &[PathBuf],
        below: Option<(PathBuf, Stat)>,
        output: &mut Output<W>,
    ) -> Result<Members, DiffError> {
        let below = below.filter(|(_, stat)| fsat::is_directory(stat));
        let Some((below_path, below_stat)) = below else {
            output.enter(node, true)?;
            return Ok(Rc::default());
        };
        if self.scope.overlay && lower::is_opaque(&fsat::entry_path(node.at, node.name))? {
            output.enter(node, true)?;
            output.whiteout(&fsat::join(node.path, OPAQUE_NAME))?;
            return Ok(Rc::default());
        }
        let changed = !compare::same_directory(node, &below_path, &below_stat)?;
        output.enter(node, changed)?;
        Ok(Rc::new(self.lower.descend(lower, node.name)?))
    }
}

/// Refuses what overlayfs keeps in other places than the upper directory.
fn check_marks(path: &[u8], xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<(), DiffError> {
    for (key, _) in xattrs {
        let mark = key.strip_prefix(lower::mark_prefix());
        match mark {
            Some(b"redirect") => return Err(unsupported(path, "overlayfs has redirected it (redirect_dir)")),
            Some(b"metacopy") => {
                return Err(unsupported(path, "overlayfs has copied its metadata only (metacopy)"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn unsupported(path: &[u8], why: &'static str) -> DiffError {
    DiffError::Unsupported { path: EntryName::new(path), why }
}
