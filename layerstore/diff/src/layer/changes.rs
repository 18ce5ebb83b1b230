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
    fs::{FileType, OFlags, Stat},
};

use super::{
    compare,
    output::{Node, Output},
};
use crate::{
    DiffError, EntryName,
    deletions::Deletions,
    fsat,
    lower::{self, Lower, Members},
    tar::Xattrs,
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
    /// What is deleted besides.
    pub(super) deletions: Deletions,
    pub(super) scope: Scope,
    /// Opaque directories are compared with those below them.
    pub(super) name_hidden: bool,
    pub(super) keep: &'a mut dyn FnMut(&Path) -> bool,
}

/// The directories below one that the walk is in.
#[derive(Clone)]
struct Below {
    members: Members,
    /// What is missing above them is deleted.
    compared: bool,
}

/// A directory that the walk is in. A frame for each instead of recursion: trees may be thousands of levels deep.
struct Frame {
    path: Vec<u8>,
    names: vec::IntoIter<Vec<u8>>,
    below: Below,
    /// Closed while the walk is further in, so that depth costs no descriptors.
    handle: Option<OwnedFd>,
}

impl<'a> Changes<'a> {
    /// Everything in a tree, over nothing.
    pub(super) fn of_tree(
        root: BorrowedFd<'a>,
        nothing: &'a Lower,
        keep: &'a mut dyn FnMut(&Path) -> bool,
    ) -> Self {
        let deletions = Deletions::default();
        Self { root, lower: nothing, deletions, scope: Scope::TREE, name_hidden: false, keep }
    }

    pub(super) fn walk<W: Write>(&mut self, output: &mut Output<W>) -> Result<(), DiffError> {
        if self.deletions.contains(b"") {
            output.whiteout(OPAQUE_NAME)?;
        }
        let compared = self.scope.layer && !self.scope.overlay;
        let below = Below { members: self.lower.members(b"")?, compared };
        let mut frames = vec![self.frame(Vec::new(), below)?];
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
            let inner = self.entry(&frame.below.clone(), handle.as_fd(), &path, &name, output)?;
            match inner {
                None => frame.handle = Some(handle),
                Some(below) => {
                    drop(handle);
                    frames.push(self.frame(path, below)?);
                }
            }
        }
        Ok(())
    }

    fn frame(&self, path: Vec<u8>, below: Below) -> Result<Frame, DiffError> {
        let handle = self.open(&path, fsat::READ)?;
        let mut names = fsat::names(handle.as_fd()).map_err(DiffError::io("list", &path))?;
        // What is missing here is deleted, and must be walked over to be seen.
        let mut missing: Vec<Vec<u8>> = self.deletions.names_in(&path).map(<[u8]>::to_vec).collect();
        if below.compared && !below.members.is_empty() {
            missing.append(&mut self.lower.names(&below.members)?);
        }
        if !missing.is_empty() {
            names = BTreeSet::from_iter(names.into_iter().chain(missing)).into_iter().collect();
        }
        Ok(Frame { path, names: names.into_iter(), below, handle: Some(handle) })
    }

    fn open(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, DiffError> {
        fsat::open_below(self.root, path, flags | OFlags::DIRECTORY).map_err(DiffError::io("open", path))
    }

    /// Writes what one entry needs; for a directory, what is below it.
    fn entry<W: Write>(
        &mut self,
        below: &Below,
        at: BorrowedFd<'_>,
        path: &[u8],
        name: &[u8],
        output: &mut Output<W>,
    ) -> Result<Option<Below>, DiffError> {
        if !(self.keep)(Path::new(OsStr::from_bytes(path))) {
            return Ok(None);
        }
        let stat = fsat::stat(at, name).map_err(DiffError::io("stat", path))?;
        if stat.is_none() && !below.compared && !self.deletions.contains(path) {
            return Err(unsupported(path, "went away while it was read"));
        }
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
        let mut file = None;
        if fsat::kind(&stat) == FileType::RegularFile {
            file = Some(fsat::open_entry(at, name, fsat::READ).map_err(DiffError::io("open", path))?);
        }
        let all = match &file {
            Some(file) if fsat::lacks_xattrs(file.as_fd()).unwrap_or(false) => Xattrs::new(),
            _ => fsat::xattrs(&fsat::entry_path(at, name))
                .map_err(DiffError::io("read attributes of", path))?,
        };
        if self.scope.overlay {
            check_marks(path, &all)?;
        }
        let node = Node { path, at, name, stat: &stat, file, xattrs: compare::layer_xattrs(all) };
        let under = self.lower.find(&below.members, name)?;
        if fsat::is_directory(&stat) {
            return self.directory(&node, below, under, output).map(Some);
        }
        match under {
            Some((under_path, under)) if compare::same_entry(&node, &under_path, &under)? => {
                output.unchanged(&node)?
            }
            _ => output.changed(&node)?,
        }
        Ok(None)
    }

    fn directory<W: Write>(
        &self,
        node: &Node<'_>,
        below: &Below,
        under: Option<(PathBuf, Stat)>,
        output: &mut Output<W>,
    ) -> Result<Below, DiffError> {
        let Below { members, mut compared } = below.clone();
        let under = under.filter(|(_, stat)| fsat::is_directory(stat));
        let Some((under_path, under_stat)) = under else {
            output.enter(node, true)?;
            if self.deletions.contains(node.path) {
                output.whiteout(&fsat::join(node.path, OPAQUE_NAME))?;
            }
            return Ok(Below { members: Rc::default(), compared });
        };
        if self.scope.overlay && !compared && lower::is_opaque(&fsat::entry_path(node.at, node.name))? {
            if !self.name_hidden {
                output.enter(node, true)?;
                output.whiteout(&fsat::join(node.path, OPAQUE_NAME))?;
                return Ok(Below { members: Rc::default(), compared });
            }
            compared = true;
        }
        let changed = !compare::same_directory(node, &under_path, &under_stat)?;
        output.enter(node, changed)?;
        Ok(Below { members: Rc::new(self.lower.descend(&members, node.name)?), compared })
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
