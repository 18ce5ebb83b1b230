//! Whether an entry is what the lower layers have there.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use rustix::fs::{CWD, FileType, Stat};

use super::output::Node;
use crate::{DiffError, fsat, tar::Xattrs};

/// The extended attributes of an entry that a layer keeps.
pub(super) fn layer_xattrs(all: Xattrs) -> Xattrs {
    all.into_iter().filter(|(key, _)| fsat::is_layer_xattr(key)).collect()
}

/// Whether a directory has the attributes that it has below. Its time alone is no change, as for containerd.
pub(super) fn same_directory(node: &Node<'_>, path: &Path, below: &Stat) -> Result<bool, DiffError> {
    Ok(same_attributes(node.stat, below) && same_xattrs(node, path)?)
}

/// Whether an entry that is no directory is, byte for byte, the one below.
pub(super) fn same_entry(node: &Node<'_>, path: &Path, below: &Stat) -> Result<bool, DiffError> {
    let stat = node.stat;
    if (stat.st_dev, stat.st_ino) == (below.st_dev, below.st_ino) {
        return Ok(true);
    }
    if !same_attributes(stat, below)
        || stat.st_nlink != below.st_nlink
        || stat.st_size != below.st_size
        || fsat::mtime(stat) != fsat::mtime(below)
        || !same_xattrs(node, path)?
    {
        return Ok(false);
    }
    match fsat::kind(stat) {
        FileType::RegularFile => same_content(node, path).map_err(DiffError::io("compare", node.path)),
        FileType::Symlink => {
            let here = rustix::fs::readlinkat(node.at, node.name, Vec::new());
            let there = rustix::fs::readlinkat(CWD, path, Vec::new());
            Ok(here.map_err(DiffError::io("read link", node.path))?
                == there.map_err(DiffError::path("read link", path))?)
        }
        _ => Ok(true),
    }
}

fn same_attributes(a: &Stat, b: &Stat) -> bool {
    (a.st_mode, a.st_uid, a.st_gid, a.st_rdev) == (b.st_mode, b.st_uid, b.st_gid, b.st_rdev)
}

fn same_xattrs(node: &Node<'_>, path: &Path) -> Result<bool, DiffError> {
    let below =
        fsat::xattrs(path.as_os_str().as_bytes()).map_err(DiffError::path("read attributes of", path))?;
    Ok(node.xattrs == layer_xattrs(below))
}

fn same_content(node: &Node<'_>, path: &Path) -> io::Result<bool> {
    let mut a = File::from(fsat::open_entry(node.at, node.name, fsat::READ)?);
    let mut b = File::from(fsat::open_path(path, fsat::READ)?);
    let (mut left, mut right) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let count = fill(&mut a, &mut left)?;
        if fill(&mut b, &mut right)? != count || left[..count] != right[..count] {
            return Ok(false);
        }
        if count == 0 {
            return Ok(true);
        }
    }
}

fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
