//! Names in archives, and the directories that they lead to.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    rc::Rc,
};

use rustix::fs::{FileType, OFlags};

use super::extract::Extractor;
use crate::{DiffError, fsat};

/// Marks a deleted entry (OCI: layer.md, "Whiteouts").
pub(crate) const WHITEOUT: &[u8] = b".wh.";
/// Marks a directory that hides the lower one.
pub(crate) const OPAQUE_NAME: &[u8] = b".wh..wh..opq";
/// AUFS's own names.
pub(crate) const RESERVED: &[u8] = b".wh..wh.";

/// Most links on one way, as the path resolvers of Docker and containerd have it.
const LINK_LIMIT: usize = 255;
/// Most steps on one way: links may make it longer than its name.
const STEP_LIMIT: usize = 16_384;

/// A directory in the target.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) handle: OwnedFd,
    /// Below the root, without links.
    pub(crate) path: Vec<u8>,
}

/// A name's components as `path.Clean` leaves them; `None` when they lead out of the root. A slash at the beginning
/// means the root, as for Docker.
pub(crate) fn clean(name: &[u8]) -> Option<Vec<&[u8]>> {
    let mut components = Vec::new();
    for component in name.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                components.pop()?;
            }
            component => components.push(component),
        }
    }
    Some(components)
}

/// What a name means in a layer.
pub(crate) enum LayerName<'a> {
    Plain,
    /// Everything in the directory is deleted from the lower layers.
    Opaque,
    /// The name is deleted from the lower layers.
    Whiteout(&'a [u8]),
    /// AUFS's bookkeeping.
    Ignored,
    Bad(&'static str),
}

pub(crate) fn layer_name<'a>(parents: &[&[u8]], name: &'a [u8]) -> LayerName<'a> {
    if parents.first().is_some_and(|first| first.starts_with(RESERVED)) {
        return LayerName::Ignored;
    }
    if parents.iter().any(|parent| parent.starts_with(WHITEOUT)) {
        return LayerName::Bad("is below a whiteout");
    }
    if name == OPAQUE_NAME {
        return LayerName::Opaque;
    }
    if name.starts_with(RESERVED) {
        return LayerName::Ignored;
    }
    match name.strip_prefix(WHITEOUT) {
        None => LayerName::Plain,
        Some(b"" | b"." | b"..") => LayerName::Bad("a whiteout of no name"),
        Some(target) => LayerName::Whiteout(target),
    }
}

impl Extractor {
    /// The directory that components lead to from the root. Symbolic links that this archive made (or that are in the
    /// target already) are followed as in a chroot; what is missing is made.
    pub(super) fn place(&mut self, components: &[&[u8]]) -> Result<Rc<Place>, DiffError> {
        let key = components.join(&b'/');
        if let Some((last, place)) = &self.last
            && *last == key
        {
            return Ok(place.clone());
        }
        let place = self.walk(components, true)?.ok_or_else(|| self.bad("its directory cannot be made"))?;
        self.last = Some((key, place.clone()));
        Ok(place)
    }

    /// As [`Self::place`], but `None` when a directory is missing.
    pub(super) fn existing_place(&mut self, components: &[&[u8]]) -> Result<Option<Rc<Place>>, DiffError> {
        self.walk(components, false)
    }

    fn walk(&mut self, components: &[&[u8]], make: bool) -> Result<Option<Rc<Place>>, DiffError> {
        let mut left: Vec<Vec<u8>> = components.iter().rev().map(|component| component.to_vec()).collect();
        let mut at = self.root.clone();
        let (mut links, mut steps) = (0, 0);
        while let Some(name) = left.pop() {
            steps += 1;
            if steps > STEP_LIMIT {
                return Err(self.bad("symbolic links make its path too long"));
            }
            // Only from links: names were cleaned. At the root it stays there, as in a chroot.
            if name == b".." {
                let (parent, _) = fsat::split(&at.path);
                let parent = parent.to_vec();
                at = self.reopen(parent)?;
                continue;
            }
            let stat = fsat::stat(at.handle.as_fd(), &name).map_err(self.failed("stat"))?;
            match stat {
                Some(stat) if fsat::is_directory(&stat) => {}
                Some(stat) if fsat::kind(&stat) == FileType::Symlink => {
                    links += 1;
                    if links > LINK_LIMIT {
                        return Err(self.bad("too many symbolic links on its path"));
                    }
                    let target = rustix::fs::readlinkat(&at.handle, name.as_slice(), Vec::new())
                        .map_err(self.failed("read link"))?;
                    let target = target.as_bytes();
                    if target.starts_with(b"/") {
                        at = self.root.clone();
                    }
                    let components = target.split(|byte| *byte == b'/');
                    left.extend(
                        components.rev().filter(|part| !matches!(*part, b"" | b".")).map(<[u8]>::to_vec),
                    );
                    continue;
                }
                Some(stat) if !self.is_whiteout(&stat) => {
                    return Err(self.bad("something on its path is not a directory"));
                }
                missing if make => self.make_implied(&at, &name, missing.is_some())?,
                _ => return Ok(None),
            }
            let path = fsat::join(&at.path, &name);
            if path.len() > fsat::PATH_LIMIT {
                return Err(self.bad("its path is too long"));
            }
            let handle = fsat::open_entry(at.handle.as_fd(), &name, fsat::HANDLE | OFlags::DIRECTORY)
                .map_err(self.failed("open directory"))?;
            at = Rc::new(Place { handle, path });
        }
        Ok(Some(at))
    }

    fn reopen(&self, path: Vec<u8>) -> Result<Rc<Place>, DiffError> {
        if path.is_empty() {
            return Ok(self.root.clone());
        }
        let handle = fsat::open_below(self.root.handle.as_fd(), &path, fsat::HANDLE | OFlags::DIRECTORY)
            .map_err(self.failed("open directory"))?;
        Ok(Rc::new(Place { handle, path }))
    }
}
