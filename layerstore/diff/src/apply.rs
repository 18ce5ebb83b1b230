//! Applying a layer's tar stream to the difference of an active snapshot.
//!
//! In overlayfs's form the entries go straight into the upper directory; nothing is mounted. A snapshot that is a complete
//! tree gets the same treatment in a directory beside it, whose content is then moved in: so both come out the
//! same, and entries of one layer may come in any order.

mod merge;

use std::{
    io::{BufReader, Read},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use lapstrake_layerstore_oci::{DiffId, DigestReader};
use lapstrake_layerstore_store::DiffSource;
use rustix::fs::{CWD, Mode, OFlags};

use crate::{
    DiffError, Limits, fsat,
    lower::Lower,
    tar::reader::TarReader,
    unpack::{Extractor, Rules},
};

/// What [`apply()`] found in a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Digest of the whole decompressed stream, padding behind the archive included.
    pub diff_id: DiffId,
    /// Length of the whole decompressed stream in bytes.
    pub tar_size: u64,
    /// Bytes of file content, as `docker history` shows them.
    pub size: u64,
    /// Entries, whiteouts included.
    pub entries: u64,
}

/// What holds for a layer in overlayfs's form.
const RULES: Rules =
    Rules { whiteouts: true, mark_opaque: true, owner: None, lenient_xattrs: false, no_devices: false };

/// Unpacks a layer's (decompressed) tar stream into the difference of a freshly prepared snapshot
/// (`Snapshotter::active_diff`), and digests it.
///
/// The rules are OCI's (image-spec, layer.md) and, where it says nothing, Docker's:
///
/// * Whiteouts and opaque marks delete from lower layers only, wherever they stand in the stream. Those of what is in no
///   lower layer are kept beside the difference, if it has a place for them.
/// * Later entries replace earlier ones of the same name; directories merge. Hard links may come before their targets,
///   and may have a target in a lower layer, which is then copied.
/// * A directory that is not in the stream itself has the lower directory's attributes, or else is 0755, root's, of 1970.
/// * A lower symbolic link where the stream needs a directory is replaced by one; links in the stream are followed.
/// * `/` at the beginning of a name means the root; `..` out of it is an error. The root's own entry is ignored.
/// * AUFS's own files (`.wh..wh.*`), PAX global headers, and `trusted.*` extended attributes are ignored, as are
///   attributes that the file system cannot have.
///
/// The stream is read to its end. After an error the snapshot holds part of the layer: remove it.
pub fn apply(tar: impl Read, target: &DiffSource, limits: &Limits) -> Result<Applied, DiffError> {
    let digest = DigestReader::new(tar);
    let mut reader = TarReader::new(BufReader::with_capacity(64 << 10, digest), limits);
    match target {
        DiffSource::OverlayUpper { upper, lower, deletions } => {
            let root = open_root(upper)?;
            let list =
                || fsat::names(fsat::open_path(&canonical(upper)?, fsat::READ | OFlags::DIRECTORY)?.as_fd());
            if !list().map_err(DiffError::path("list", upper))?.is_empty() {
                return Err(DiffError::NotEmpty { path: upper.clone() });
            }
            let before = rustix::fs::fstat(&root).map_err(DiffError::path("stat", upper))?;
            let mut extractor = Extractor::new(root, Lower::overlay(lower), RULES);
            extractor.run(&mut reader)?;
            extractor.finish().1.write(deletions.as_deref())?;
            restore_times(upper, &before)?;
        }
        DiffSource::Trees { upper, deletions, .. } => {
            let staging = Staging::beside(upper)?;
            // What is in the tree now is the parent's.
            let lower = Lower::tree(upper);
            let rules = Rules { mark_opaque: false, ..RULES };
            let mut extractor = Extractor::new(open_root(&staging.0)?, lower, rules);
            extractor.run(&mut reader)?;
            let (lower, deleted) = extractor.finish();
            deleted.write(deletions.as_deref())?;
            merge::merge(&staging.0, upper, &lower)?;
        }
    }
    let (entries, size) = (reader.entries(), reader.content());
    let (_, digest, tar_size) = reader.drain()?.into_inner().finish();
    Ok(Applied { diff_id: digest.into(), tar_size, size, entries })
}

fn canonical(path: &Path) -> rustix::io::Result<PathBuf> {
    std::fs::canonicalize(path)
        .map_err(|error| rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO))
}

fn open_root(path: &Path) -> Result<rustix::fd::OwnedFd, DiffError> {
    rustix::fs::openat(CWD, path, fsat::HANDLE | OFlags::DIRECTORY, Mode::empty())
        .map_err(DiffError::path("open", path))
}

/// A root directory's time is no part of a layer, so applying one must not change it.
fn restore_times(path: &Path, before: &rustix::fs::Stat) -> Result<(), DiffError> {
    let root = open_root(path)?;
    fsat::set_times(root.as_fd(), b".", fsat::atime(before), fsat::mtime(before))
        .map_err(DiffError::path("set times of", path))
}

/// A directory beside a tree, on the same file system; goes away with the value, and after a crash with the driver's
/// other directories that have no record.
struct Staging(PathBuf);

impl Staging {
    fn beside(tree: &Path) -> Result<Self, DiffError> {
        let name = tree.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let path = tree.with_file_name(format!("applying-{name}"));
        match rustix::fs::mkdir(&path, Mode::RWXU) {
            // Left by a failed attempt at the same snapshot.
            Err(rustix::io::Errno::EXIST) => {
                let staging = Self(path);
                staging.remove()?;
                rustix::fs::mkdir(&staging.0, Mode::RWXU).map_err(DiffError::path("make", &staging.0))?;
                Ok(staging)
            }
            made => {
                made.map_err(DiffError::path("make", &path))?;
                Ok(Self(path))
            }
        }
    }

    fn remove(&self) -> Result<(), DiffError> {
        let (Some(parent), Some(name)) = (self.0.parent(), self.0.file_name()) else {
            return Ok(());
        };
        let parent = open_root(parent)?;
        fsat::remove(parent.as_fd(), std::os::unix::ffi::OsStrExt::as_bytes(name))
            .map_err(DiffError::path("remove", &self.0))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::warn!(%error, "a layer's staging directory was not removed");
        }
    }
}
