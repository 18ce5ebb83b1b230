//! Trees on top of each other, and what one has over another. Facts: BuildKit's `docs/dev/merge-diff.md`.
//!
//! Both work on layers, not on trees: a merge has the layers of all that it is made of, deletions included, so that what is
//! seen during the build is what somebody sees who unpacks the image. Layers are carried over as their own tar streams
//! (`layerstore/diff`), through a pipe, by the rules by which they are unpacked anywhere else.

use std::{
    io::{self, BufWriter, Write as _},
    os::fd::AsFd as _,
    path::PathBuf,
    thread,
};

use lapstrake_layerstore_diff::{DiffError, Limits, WriteOptions, apply, write_layer};
use lapstrake_layerstore_store::{DiffSource, Draft, SnapshotMount, SnapshotName, Stores, Tree};
use rustix::fs::Mode;
use tokio_util::sync::CancellationToken;

use crate::{
    FilesError,
    action::{Lender, Lent, View, copy_tree},
    at,
};

/// Lays trees on top of each other, the last one on top. Blocks.
///
/// The result is the first tree and then each layer of each further one, so that what a layer deletes is gone from those
/// below it, and what a later one has replaces what an earlier one has; directories merge. Without trees it is empty.
///
/// A layer deletes what it was made over: of a directory that it removed and made again, what another tree has in it stays.
pub fn merge(stores: &Stores, trees: &[Tree]) -> Result<Tree, FilesError> {
    let mut trees = trees.iter().filter(|tree| tree.snapshot().is_some());
    let mut result = trees.next().cloned().unwrap_or_else(Tree::empty);
    for tree in trees {
        let chain = chain(stores, tree)?;
        if result.snapshot().is_some_and(|snapshot| chain.contains(snapshot)) {
            // Its layers would be laid on themselves first.
            result = tree.clone();
            continue;
        }
        for snapshot in &chain {
            let source = stores.snapshots.diff_source(snapshot)?;
            result = match share(stores, &result, snapshot, &source)? {
                Some(result) => result,
                None => lay(stores, &result, &source)?,
            };
        }
    }
    Ok(result)
}

/// What `upper` has over `lower`. Blocks.
///
/// Where `lower` is one of the trees that `upper` was made from, it is the layers in between; else one layer, found by
/// comparing the two trees. Deletions are part of it: they are seen when it is merged on top of something, or exported as a
/// layer, but not in the result as it is.
pub fn diff(stores: &Stores, lower: &Tree, upper: &Tree) -> Result<Tree, FilesError> {
    let Some(base) = lower.snapshot() else { return Ok(upper.clone()) };
    if lower == upper {
        return Ok(Tree::empty());
    }
    let layers = chain(stores, upper)?;
    if let Some(at) = layers.iter().position(|snapshot| snapshot == base) {
        return layers[at + 1..].iter().try_fold(Tree::empty(), |result, snapshot| {
            lay(stores, &result, &stores.snapshots.diff_source(snapshot)?)
        });
    }
    let (lower, upper) = (Directory::of(stores, lower)?, Directory::of(stores, upper)?);
    let source =
        DiffSource::Trees { lower: Some(lower.path.clone()), upper: upper.path.clone(), deletions: None };
    lay(stores, &Tree::empty(), &source)
}

/// A tree's snapshots, the lowest one first.
pub(crate) fn chain(stores: &Stores, tree: &Tree) -> Result<Vec<SnapshotName>, FilesError> {
    let mut chain = Vec::new();
    let mut next = tree.snapshot().cloned();
    while let Some(name) = next {
        next = stores.snapshots.stat(&name)?.parent;
        chain.push(name);
    }
    chain.reverse();
    Ok(chain)
}

/// Puts a difference on top of a tree, as one layer.
fn lay(stores: &Stores, tree: &Tree, source: &DiffSource) -> Result<Tree, FilesError> {
    let draft = stores.begin(tree)?;
    let target = draft.diff()?;
    let options = WriteOptions { name_hidden: true, ..WriteOptions::default() };
    let (reader, writer) = io::pipe().map_err(FilesError::io("make", "pipe"))?;
    let (written, applied) = thread::scope(|scope| {
        let writing = scope.spawn(move || {
            let mut writer = BufWriter::with_capacity(256 << 10, writer);
            write_layer(source, &options, &mut writer)?;
            writer.flush().map_err(DiffError::Write)
        });
        let applied = apply(reader, &target, &Limits::default());
        (writing.join(), applied)
    });
    match written.unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
        // The other end stopped reading, and knows why.
        Err(DiffError::Write(_)) => {}
        written => written?,
    }
    applied?;
    Ok(draft.commit()?)
}

/// Puts a layer that has none below it on top of a tree by linking to its files; `None` where that cannot be done.
///
/// Without a layer below there are no marks of overlayfs in it.
fn share(
    stores: &Stores,
    tree: &Tree,
    snapshot: &SnapshotName,
    source: &DiffSource,
) -> Result<Option<Tree>, FilesError> {
    let (from, deletions) = match source {
        DiffSource::OverlayUpper { upper, lower, deletions } if lower.is_empty() => (upper, deletions),
        DiffSource::Trees { upper, lower: None, deletions } => (upper, deletions),
        _ => return Ok(None),
    };
    if let Some(path) = deletions
        && path.try_exists().map_err(FilesError::io("stat", path))?
    {
        return Ok(None);
    }
    let draft = stores.begin(tree)?;
    let (DiffSource::OverlayUpper { upper: to, .. } | DiffSource::Trees { upper: to, .. }) = draft.diff()?;
    let open = |path: &PathBuf| {
        rustix::fs::open(path, at::READ_DIRECTORY, Mode::empty()).map_err(FilesError::io("open", path))
    };
    let (root, to_root) = (open(from)?, open(&to)?);
    let before = rustix::fs::fstat(&to_root).map_err(FilesError::io("stat", &to))?;
    let (mut lent, cancel) = (Lent::default(), CancellationToken::new());
    let mut lender = Lender::new(std::slice::from_ref(from), &draft, to_root.as_fd(), &mut lent)?;
    copy_tree(root.as_fd(), to_root.as_fd(), Some(&mut lender), &cancel)?;
    lender.settle(|| Ok(vec![snapshot.clone()]))?;
    // The root directory is no part of a layer.
    rustix::fs::futimens(&to_root, &at::times(&before)).map_err(FilesError::io("utime", &to))?;
    Ok(Some(draft.commit()?))
}

/// A tree as one directory with everything in it.
struct Directory {
    path: PathBuf,
    // The copy that was made because the tree was no such directory.
    _copy: Option<Draft>,
}

impl Directory {
    fn of(stores: &Stores, tree: &Tree) -> Result<Self, FilesError> {
        if let Some(SnapshotMount::Bind { source, .. }) = stores.mount(tree)? {
            return Ok(Self { path: source, _copy: None });
        }
        let draft = stores.begin(&Tree::empty())?;
        let path = draft.directory().cloned().ok_or(FilesError::Unsupported {
            path: PathBuf::from("/"),
            why: "this driver cannot show an empty tree as a directory",
        })?;
        let (view, open) = (View::open(stores, tree)?, draft.open()?);
        copy_tree(view.root(), open.root(), None, &CancellationToken::new())?;
        Ok(Self { path, _copy: Some(draft) })
    }
}
