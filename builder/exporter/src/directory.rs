//! Trees as directories: the client's, or one of this machine.

use std::{
    collections::HashMap,
    io::{self, BufReader, BufWriter, Read},
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use lapstrake_layerstore_diff::{ArchiveOptions, Limits, WriteOptions, unpack_archive, write_tree};
use lapstrake_layerstore_store::{OpenSnapshot, Stores, Tree};
use lapstrake_session::{
    DirTree, TreeReader,
    fsutil::{FileKind, FileStat, TreeEntry},
};
use tokio_util::sync::CancellationToken;

use crate::{
    ExportError, PlatformResult,
    stream::{Cancellable, canceled_or},
};

/// The name of a platform's directory, when an output holds several: `linux_arm_v7`.
pub(crate) fn platform_directory(result: &PlatformResult) -> String {
    result.platform.to_string().replace('/', "_")
}

/// A built tree, to be sent to the client.
fn tree_reader(stores: &Stores, tree: &Tree) -> Result<Box<dyn TreeReader>, ExportError> {
    let Some(open) = stores.open(tree)? else { return Ok(Box::new(Nothing)) };
    // The same open file as the snapshot's root, so that the mount lives as long as the reader does.
    let root = open.root().try_clone_to_owned().map_err(ExportError::io("open", "the result"))?;
    Ok(Box::new(HeldTree { tree: DirTree::new(root), _open: open, _held: tree.clone() }))
}

/// The trees to be sent: one that has a directory for each platform, or each platform's own, none of which has a file of another.
pub(crate) fn readers(
    stores: &Stores,
    results: &[PlatformResult],
    split: bool,
) -> Result<Vec<Arc<dyn TreeReader>>, ExportError> {
    if !split {
        refuse_doubles(stores, results)?;
        return results.iter().map(|result| Ok(shared(tree_reader(stores, &result.tree)?))).collect();
    }
    let tree = |result: &PlatformResult| Ok((platform_directory(result), tree_reader(stores, &result.tree)?));
    let trees = results.iter().map(tree).collect::<Result<Vec<_>, ExportError>>()?;
    Ok(vec![shared(Box::new(Platforms(trees)))])
}

/// An error when two platforms have the same file. Directories may be the same.
pub(crate) fn refuse_doubles(stores: &Stores, results: &[PlatformResult]) -> Result<(), ExportError> {
    if results.len() < 2 {
        return Ok(());
    }
    let mut seen: HashMap<PathBuf, usize> = HashMap::new();
    for (index, result) in results.iter().enumerate() {
        let mut double = None;
        let walked = tree_reader(stores, &result.tree)?.walk(&mut |entry| {
            if entry.stat.kind == FileKind::Directory {
                return Ok(());
            }
            if let Some(first) = seen.insert(entry.path.clone(), index) {
                double = Some((entry.path, first));
                return Err(io::Error::from(io::ErrorKind::AlreadyExists));
            }
            Ok(())
        });
        if let Some((path, first)) = double {
            return Err(ExportError::Double {
                path: path.display().to_string(),
                first: results[first].platform.to_string(),
                second: result.platform.to_string(),
            });
        }
        walked.map_err(ExportError::io("list", "the result"))?;
    }
    Ok(())
}

struct Nothing;

impl TreeReader for Nothing {
    fn walk(&self, _visit: &mut dyn FnMut(TreeEntry) -> io::Result<()>) -> io::Result<()> {
        Ok(())
    }

    fn open(&self, _path: &Path) -> io::Result<Box<dyn Read + Send>> {
        Err(io::Error::from(io::ErrorKind::NotFound))
    }
}

/// A directory that stays while it is read.
struct HeldTree {
    tree: DirTree,
    _open: OpenSnapshot,
    _held: Tree,
}

impl TreeReader for HeldTree {
    fn walk(&self, visit: &mut dyn FnMut(TreeEntry) -> io::Result<()>) -> io::Result<()> {
        self.tree.walk(visit)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        self.tree.open(path)
    }
}

/// Several platforms' trees, each in a directory of its own, in the order of their names.
struct Platforms(Vec<(String, Box<dyn TreeReader>)>);

impl TreeReader for Platforms {
    fn walk(&self, visit: &mut dyn FnMut(TreeEntry) -> io::Result<()>) -> io::Result<()> {
        for (name, tree) in &self.0 {
            let stat = FileStat {
                kind: FileKind::Directory,
                mode: 0o755,
                uid: 0,
                gid: 0,
                mtime_ns: 0,
                xattrs: std::collections::BTreeMap::new(),
            };
            visit(TreeEntry { path: PathBuf::from(name), stat })?;
            tree.walk(&mut |mut entry| {
                entry.path = Path::new(name).join(entry.path);
                if let FileKind::HardLink { target } = &mut entry.stat.kind {
                    *target = Path::new(name).join(&*target);
                }
                visit(entry)
            })?;
        }
        Ok(())
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        let found = self.0.iter().find_map(|(name, tree)| Some((tree, path.strip_prefix(name).ok()?)));
        let (tree, below) = found.ok_or(io::ErrorKind::NotFound)?;
        tree.open(below)
    }
}

/// Writes a tree into a directory of this machine, over what is there, as its own user; other files there stay. Blocks.
///
/// The tree goes through the code that unpacks strangers' archives, so nothing is written outside of the directory whatever links
/// there are, in the tree or in the directory.
pub(crate) fn write_directory(
    stores: &Stores,
    tree: &Tree,
    directory: &Path,
    cancel: &CancellationToken,
) -> Result<(), ExportError> {
    std::fs::create_dir_all(directory).map_err(ExportError::io("create", directory))?;
    let target = std::fs::File::open(directory).map_err(ExportError::io("open", directory))?;
    let Some(open) = stores.open(tree)? else { return Ok(()) };
    let (reader, writer) = io::pipe().map_err(ExportError::io("open a pipe to", directory))?;
    let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let options = ArchiveOptions { owner: Some(owner) };
    let result = std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let writer = Cancellable { out: BufWriter::with_capacity(256 << 10, writer), cancel };
            write_tree(open.root(), &WriteOptions::default(), &mut |_| true, writer)
        });
        let reader = BufReader::with_capacity(256 << 10, reader);
        let unpacked = unpack_archive(reader, target.as_fd(), Path::new("."), &options, &Limits::default());
        // Its reader is gone by now, so the writer ends.
        let written = match writing.join() {
            Ok(written) => written,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        unpacked?;
        written?;
        Ok(())
    });
    canceled_or(result, cancel)
}

/// Shares a reader as the session wants it.
fn shared(reader: Box<dyn TreeReader>) -> Arc<dyn TreeReader> {
    struct Boxed(Box<dyn TreeReader>);
    impl TreeReader for Boxed {
        fn walk(&self, visit: &mut dyn FnMut(TreeEntry) -> io::Result<()>) -> io::Result<()> {
            self.0.walk(visit)
        }
        fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
            self.0.open(path)
        }
    }
    Arc::new(Boxed(reader))
}
