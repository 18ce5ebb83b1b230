//! What the lower layers show at a path, without mounting them.
//!
//! Follows overlayfs's rules: the top-most layer that has the name decides; directories of several layers merge until a
//! layer below has something else, a whiteout, or a directory above is opaque.

use std::{
    cell::{OnceCell, RefCell},
    collections::{BTreeSet, HashMap, HashSet},
    os::{fd::AsFd as _, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
    rc::Rc,
};

use lapstrake_layerstore_store::in_user_namespace;
use rustix::fs::{OFlags, Stat};

use crate::{DiffError, fsat};

/// Directories of several layers that merge into one, top-most first.
pub(crate) type Members = Rc<Vec<PathBuf>>;

/// Layers below the one that is worked on. They are committed, so nothing in them changes.
pub(crate) struct Lower {
    /// As they were given. Steps often leave nothing, and then nobody looks into them.
    given: Vec<PathBuf>,
    /// Their paths without symbolic links, once somebody has looked.
    roots: OnceCell<Members>,
    /// Whether whiteouts and opaque marks mean something in them (overlayfs's form) or are files like others.
    marks: bool,
    /// Directories that the layer above makes opaque.
    hidden: HashSet<Vec<u8>>,
    /// Members of the directories asked for last.
    known: RefCell<HashMap<Vec<u8>, Members>>,
}

const KNOWN_LIMIT: usize = 256;

impl Lower {
    /// No layers at all.
    pub(crate) fn none() -> Self {
        Self::of(&[], false)
    }

    fn of(roots: &[PathBuf], marks: bool) -> Self {
        Self {
            given: roots.to_vec(),
            roots: OnceCell::new(),
            marks,
            hidden: HashSet::new(),
            known: RefCell::default(),
        }
    }

    /// Layers in overlayfs's form, top-most first.
    pub(crate) fn overlay(roots: &[PathBuf]) -> Self {
        Self::of(roots, true)
    }

    /// One complete tree.
    pub(crate) fn tree(root: &Path) -> Self {
        Self::of(&[root.to_path_buf()], false)
    }

    fn roots(&self) -> Result<&Members, DiffError> {
        if let Some(roots) = self.roots.get() {
            return Ok(roots);
        }
        let roots = canonical(&self.given)?;
        Ok(self.roots.get_or_init(|| roots))
    }

    /// From now on nothing below this directory shows.
    pub(crate) fn hide(&mut self, path: &[u8]) {
        self.hidden.insert(path.to_vec());
        self.known.get_mut().clear();
    }

    pub(crate) fn is_hidden(&self, path: &[u8]) -> bool {
        self.hidden.contains(path)
    }

    /// Whether a directory that a path is in hides what is below it.
    pub(crate) fn is_in_hidden(&self, path: &[u8]) -> bool {
        !self.hidden.is_empty() && fsat::ancestors(path).any(|above| self.hidden.contains(above))
    }

    /// The directories that merge at a path; none when the lower layers have no directory there.
    pub(crate) fn members(&self, path: &[u8]) -> Result<Members, DiffError> {
        if self.given.is_empty() || self.hidden.contains(path) {
            return Ok(Rc::default());
        }
        if path.is_empty() {
            return Ok(self.roots()?.clone());
        }
        if let Some(known) = self.known.borrow().get(path) {
            return Ok(known.clone());
        }
        // A loop instead of recursion: names may be thousands deep.
        let mut start = path.len();
        let mut members = loop {
            let (parent, _) = fsat::split(&path[..start]);
            start = parent.len();
            if self.hidden.contains(parent) {
                return Ok(Rc::default());
            }
            if parent.is_empty() {
                break self.roots()?.clone();
            }
            if let Some(known) = self.known.borrow().get(parent) {
                break known.clone();
            }
        };
        for name in path[start..].split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            members = Rc::new(self.descend(&members, name)?);
        }
        let mut known = self.known.borrow_mut();
        if known.len() >= KNOWN_LIMIT {
            known.clear();
        }
        known.insert(path.to_vec(), members.clone());
        Ok(members)
    }

    /// The entry that shows below merged directories.
    pub(crate) fn find(
        &self,
        members: &[PathBuf],
        name: &[u8],
    ) -> Result<Option<(PathBuf, Stat)>, DiffError> {
        for member in members {
            let path = member.join(std::ffi::OsStr::from_bytes(name));
            match stat(&path)? {
                None => {}
                Some(stat) if self.marks && fsat::is_whiteout(&stat) => return Ok(None),
                Some(stat) => return Ok(Some((path, stat))),
            }
        }
        Ok(None)
    }

    /// The entry that shows at a path's name.
    pub(crate) fn lookup(&self, directory: &[u8], name: &[u8]) -> Result<Option<(PathBuf, Stat)>, DiffError> {
        self.find(&self.members(directory)?, name)
    }

    /// The directories that merge at a name below merged directories.
    pub(crate) fn descend(&self, members: &[PathBuf], name: &[u8]) -> Result<Vec<PathBuf>, DiffError> {
        let mut below = Vec::new();
        for member in members {
            let path = member.join(std::ffi::OsStr::from_bytes(name));
            match stat(&path)? {
                None => continue,
                Some(stat) if fsat::is_directory(&stat) => {
                    let opaque = self.marks && is_opaque(path.as_os_str().as_bytes())?;
                    below.push(path);
                    if opaque {
                        break;
                    }
                }
                // A whiteout, or a file that hides what is below it.
                Some(_) => break,
            }
        }
        Ok(below)
    }

    /// All names that show in merged directories, sorted.
    pub(crate) fn names(&self, members: &[PathBuf]) -> Result<Vec<Vec<u8>>, DiffError> {
        let mut names = BTreeSet::new();
        for member in members {
            let list = || fsat::names(fsat::open_path(member, fsat::READ | OFlags::DIRECTORY)?.as_fd());
            names.extend(list().map_err(DiffError::path("list", member))?);
        }
        let mut shown = Vec::with_capacity(names.len());
        for name in names {
            if self.find(members, &name)?.is_some() {
                shown.push(name);
            }
        }
        Ok(shown)
    }
}

/// Whether a directory in overlayfs's form hides those below it.
pub(crate) fn is_opaque(path: &[u8]) -> Result<bool, DiffError> {
    let name = [mark_prefix(), b"opaque"].concat();
    let value = fsat::xattr(path, &name).map_err(DiffError::io("read attributes of", path))?;
    Ok(value.as_deref() == Some(b"y"))
}

/// Where overlayfs keeps its marks. Not both: a container's root may set `user.*` attributes on its files as it likes,
/// and a privileged overlay mount takes no notice of them.
pub(crate) fn mark_prefix() -> &'static [u8] {
    if in_user_namespace() { b"user.overlay." } else { b"trusted.overlay." }
}

fn stat(path: &Path) -> Result<Option<Stat>, DiffError> {
    fsat::stat_path(path).map_err(DiffError::path("stat", path))
}

/// The store's own path may have symbolic links in it; those of the layers are then refused.
fn canonical(roots: &[PathBuf]) -> Result<Members, DiffError> {
    let canonical = |root: &PathBuf| std::fs::canonicalize(root).map_err(DiffError::path("open", root));
    Ok(Rc::new(roots.iter().map(canonical).collect::<Result<_, DiffError>>()?))
}
