//! A snapshot's difference as a layer's tar stream.
//!
//! What is in the stream, and how it is written, follows containerd's `archive.WriteDiff` (which Docker and BuildKit use):
//! entries in depth-first order of their names; a directory before what is in it, also when only that changed; times in
//! whole seconds; no names of users and groups; sockets left out; a deleted entry as `.wh.<name>`. Two things go further:
//! `user.*` extended attributes are kept, and files are compared by content even when their times are equal, so that a
//! change that puts the time back is not lost.

mod changes;
mod compare;
mod output;
mod stream;

use std::{io::Write, os::fd::BorrowedFd, path::Path};

use lapstrake_layerstore_oci::DiffId;
use lapstrake_layerstore_store::DiffSource;
use rustix::fs::{CWD, Mode, OFlags};

use self::{
    changes::{Changes, Scope},
    output::Output,
};
use crate::{DiffError, deletions::Deletions, fsat, lower::Lower};

/// What [`write_layer`] and [`write_tree`] wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerDigest {
    /// Digest of the stream.
    pub diff_id: DiffId,
    /// Length of the stream in bytes.
    pub tar_size: u64,
    /// Bytes of file content, as `docker history` shows them.
    pub content_size: u64,
}

/// How a tree is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriteOptions {
    /// Later modification times become this one, in seconds since 1970 (`SOURCE_DATE_EPOCH` with `rewrite-timestamp`).
    pub latest_mtime: Option<i64>,
    /// All modification times become this one, in seconds since 1970 (`SOURCE_DATE_EPOCH` of files that are no layer).
    pub mtime: Option<i64>,
    /// What a directory of a layer hides as a whole is named, as BuildKit does, instead of marking the directory. Laid on other trees,
    /// such a layer deletes only what it was made over.
    pub name_hidden: bool,
}

/// A tree in an archive of several.
#[derive(Debug, Clone, Copy)]
pub struct ArchivedTree<'a> {
    /// The directory that it is below, which is root's, of mode 0755.
    pub directory: Option<&'a str>,
    /// Its root; `None` is an empty tree.
    pub root: Option<BorrowedFd<'a>>,
    /// Files beside it, by name, which are root's, of mode 0600. They stand in for files of the tree.
    pub files: &'a [(String, Vec<u8>)],
    /// How it is written. Directories and files beside it are of 1970 if there is no other time for all.
    pub options: WriteOptions,
}

/// Writes a committed snapshot's difference as a layer: the same bytes each time.
///
/// Errors: [`DiffError::Unsupported`] when it holds what a layer cannot (a name that begins with `.wh.`, a character device
/// 0:0, directories that overlayfs has redirected).
pub fn write_layer(
    source: &DiffSource,
    options: &WriteOptions,
    out: impl Write,
) -> Result<LayerDigest, DiffError> {
    let (upper, lower, deletions, scope) = match source {
        DiffSource::OverlayUpper { upper, lower, deletions } => {
            (upper, Lower::overlay(lower), deletions, Scope::OVERLAY)
        }
        DiffSource::Trees { upper, lower, deletions } => {
            (upper, lower.as_deref().map_or_else(Lower::none, Lower::tree), deletions, Scope::TREES)
        }
    };
    let deletions = Deletions::read(deletions.as_deref())?;
    let root = rustix::fs::openat(CWD, upper, fsat::HANDLE | OFlags::DIRECTORY, Mode::empty())
        .map_err(DiffError::path("open", upper))?;
    let root = rustix::fd::AsFd::as_fd(&root);
    let name_hidden = options.name_hidden;
    write(Changes { root, lower: &lower, deletions, scope, name_hidden, keep: &mut |_| true }, options, out)
}

/// Writes a whole tree, without its root directory, in the same form. `keep` says, by path below the root, what is
/// written; what it leaves out is left out with everything below it.
pub fn write_tree(
    root: BorrowedFd<'_>,
    options: &WriteOptions,
    keep: &mut dyn FnMut(&Path) -> bool,
    out: impl Write,
) -> Result<LayerDigest, DiffError> {
    write(Changes::of_tree(root, &Lower::none(), keep), options, out)
}

/// Writes several trees into one archive.
pub fn write_trees(trees: &[ArchivedTree<'_>], out: impl Write) -> Result<LayerDigest, DiffError> {
    let mut output = Output::new(&WriteOptions::default(), out);
    for tree in trees {
        output.begin(&tree.options, tree.directory)?;
        if let Some(root) = tree.root {
            let mut keep = |path: &Path| !tree.files.iter().any(|(name, _)| path == Path::new(name));
            Changes::of_tree(root, &Lower::none(), &mut keep).walk(&mut output)?;
        }
        for (name, bytes) in tree.files {
            output.beside(name, bytes)?;
        }
    }
    output.finish()
}

fn write(
    mut changes: Changes<'_>,
    options: &WriteOptions,
    out: impl Write,
) -> Result<LayerDigest, DiffError> {
    let mut output = Output::new(options, out);
    changes.walk(&mut output)?;
    output.finish()
}
