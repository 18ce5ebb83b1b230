//! Trees as directories: the client's, or one of this machine.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    io::{self, BufReader, BufWriter, Cursor, Read},
    os::{fd::AsFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use lapstrake_layerstore_diff::{ArchiveOptions, Limits, unpack_archive};
use lapstrake_layerstore_oci::DigestWriter;
use lapstrake_layerstore_store::{OpenSnapshot, Stores, Tree};
use lapstrake_session::{
    DirTree, TreeReader,
    fsutil::{FileKind, FileStat, TreeEntry},
};
use tokio_util::sync::CancellationToken;

use crate::{
    ExportError,
    files::{Part, write_tar},
    statement::ResultSubject,
    stream::{Cancellable, canceled_or},
};

/// A built tree, to be read.
fn tree_reader(stores: &Stores, tree: &Tree) -> Result<Box<dyn TreeReader>, ExportError> {
    let Some(open) = stores.open(tree)? else { return Ok(Box::new(Nothing)) };
    // The same open file as the snapshot's root, so that the mount lives as long as the reader does.
    let root = open.root().try_clone_to_owned().map_err(ExportError::io("open", "the result"))?;
    Ok(Box::new(HeldTree { tree: DirTree::new(root), _open: open, _held: tree.clone() }))
}

/// The regular files of a tree, with their digests. Blocks.
pub(crate) fn subjects(stores: &Stores, tree: &Tree) -> Result<Vec<ResultSubject>, ExportError> {
    let reader = tree_reader(stores, tree)?;
    let mut subjects = Vec::new();
    reader
        .walk(&mut |entry| {
            if !matches!(entry.stat.kind, FileKind::Regular { .. } | FileKind::HardLink { .. }) {
                return Ok(());
            }
            let mut digest = DigestWriter::new(io::sink());
            io::copy(&mut reader.open(&entry.path)?, &mut digest)?;
            subjects.push(ResultSubject::new(entry.path.to_string_lossy(), &digest.finish().1));
            Ok(())
        })
        .map_err(ExportError::io("read", "the result"))?;
    Ok(subjects)
}

/// The trees to be sent: one that has a directory for each platform, or each platform's own, none of which has a file of another. To a client that deletes
/// what it is not sent, all go as one.
pub(crate) fn readers(
    stores: &Stores,
    parts: Vec<Part>,
    split: bool,
    delete: bool,
) -> Result<Vec<Box<dyn TreeReader>>, ExportError> {
    if !split {
        refuse_doubles(stores, &parts)?;
    }
    let epoch = parts.iter().filter_map(|part| part.epoch).max();
    let mut readers: Vec<(String, Box<dyn TreeReader>)> = Vec::with_capacity(parts.len());
    for part in parts {
        let (name, tree) = (part.directory(), tree_reader(stores, &part.tree)?);
        readers.push((name, Box::new(PartReader { tree, epoch: part.epoch, beside: part.beside })));
    }
    Ok(match (split, delete && readers.len() > 1) {
        (true, _) => vec![Box::new(Platforms { trees: readers, epoch })],
        (false, true) => vec![Box::new(Merged(readers.into_iter().map(|(_, tree)| tree).collect()))],
        (false, false) => readers.into_iter().map(|(_, tree)| tree).collect(),
    })
}

/// An error when two platforms have the same file. Directories may be the same.
fn refuse_doubles(stores: &Stores, parts: &[Part]) -> Result<(), ExportError> {
    if parts.len() < 2 {
        return Ok(());
    }
    let mut seen: HashMap<PathBuf, usize> = HashMap::new();
    for (index, part) in parts.iter().enumerate() {
        let mut double = None;
        let mut see = |path: PathBuf| {
            if let Some(first) = seen.insert(path.clone(), index)
                && first != index
            {
                double = Some((path, first));
                return Err(io::Error::from(io::ErrorKind::AlreadyExists));
            }
            Ok(())
        };
        let beside = part.beside.iter().try_for_each(|(name, _)| see(PathBuf::from(name)));
        let walked = beside.and_then(|()| {
            tree_reader(stores, &part.tree).map_err(io::Error::other)?.walk(&mut |entry| {
                if entry.stat.kind == FileKind::Directory { Ok(()) } else { see(entry.path) }
            })
        });
        if let Some((path, first)) = double {
            return Err(ExportError::Double {
                path: path.display().to_string(),
                first: parts[first].platform.to_string(),
                second: part.platform.to_string(),
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

/// A platform's tree with the times that it gets, and files beside it, which stand in for those of the tree.
struct PartReader {
    tree: Box<dyn TreeReader>,
    epoch: Option<i64>,
    /// In the order of their names.
    beside: Vec<(String, Vec<u8>)>,
}

impl PartReader {
    fn mtime_ns(&self) -> Option<i64> {
        self.epoch.map(|seconds| seconds.saturating_mul(1_000_000_000))
    }

    fn beside(&self, (name, bytes): &(String, Vec<u8>)) -> TreeEntry {
        let stat = FileStat {
            kind: FileKind::Regular { size: bytes.len() as u64 },
            mode: 0o600,
            mtime_ns: self.mtime_ns().unwrap_or(0),
            ..nobodys()
        };
        TreeEntry { path: PathBuf::from(name), stat }
    }
}

fn nobodys() -> FileStat {
    FileStat { kind: FileKind::Directory, mode: 0o755, uid: 0, gid: 0, mtime_ns: 0, xattrs: BTreeMap::new() }
}

/// The first component of a path.
fn top(path: &Path) -> &[u8] {
    path.iter().next().map(OsStrExt::as_bytes).unwrap_or_default()
}

impl TreeReader for PartReader {
    fn walk(&self, visit: &mut dyn FnMut(TreeEntry) -> io::Result<()>) -> io::Result<()> {
        let mut beside = self.beside.iter().peekable();
        self.tree.walk(&mut |mut entry| {
            // Names of files beside the tree have one component: they come where that has its place.
            while let Some(file) = beside.next_if(|(name, _)| name.as_bytes() < top(&entry.path)) {
                visit(self.beside(file))?;
            }
            if beside.peek().is_some_and(|(name, _)| name.as_bytes() == top(&entry.path)) {
                return Ok(());
            }
            if let Some(mtime_ns) = self.mtime_ns() {
                entry.stat.mtime_ns = mtime_ns;
            }
            visit(entry)
        })?;
        beside.try_for_each(|file| visit(self.beside(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        match self.beside.iter().find(|(name, _)| path == Path::new(name)) {
            Some((_, bytes)) => Ok(Box::new(Cursor::new(bytes.clone()))),
            None => self.tree.open(path),
        }
    }
}

/// Several platforms' trees, each in a directory of its own, in the order of their names.
struct Platforms {
    trees: Vec<(String, Box<dyn TreeReader>)>,
    epoch: Option<i64>,
}

impl TreeReader for Platforms {
    fn walk(&self, visit: &mut dyn FnMut(TreeEntry) -> io::Result<()>) -> io::Result<()> {
        let mtime_ns = self.epoch.map_or(0, |seconds| seconds.saturating_mul(1_000_000_000));
        for (name, tree) in &self.trees {
            let stat = FileStat { mtime_ns, ..nobodys() };
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
        let found = self.trees.iter().find_map(|(name, tree)| Some((tree, path.strip_prefix(name).ok()?)));
        let (tree, below) = found.ok_or(io::ErrorKind::NotFound)?;
        tree.open(below)
    }
}

/// Several trees as one. They have no file in common; of a directory, the first counts.
struct Merged(Vec<Box<dyn TreeReader>>);

impl TreeReader for Merged {
    fn walk(&self, visit: &mut dyn FnMut(TreeEntry) -> io::Result<()>) -> io::Result<()> {
        // In the order of paths' components, as each of them is; that nothing is in two of them took as much memory to find out.
        let mut all: BTreeMap<Vec<Vec<u8>>, TreeEntry> = BTreeMap::new();
        for tree in &self.0 {
            tree.walk(&mut |entry| {
                let key = entry.path.iter().map(|name| name.as_bytes().to_vec()).collect();
                all.entry(key).or_insert(entry);
                Ok(())
            })?;
        }
        all.into_values().try_for_each(visit)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for tree in &self.0 {
            match tree.open(path) {
                Ok(file) => return Ok(file),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// Writes trees into a directory of this machine, over what is there; other files there stay, or go with `delete`, when all is written. Blocks.
pub(crate) fn write(
    stores: &Stores,
    parts: &[Part],
    split: bool,
    delete: bool,
    directory: &Path,
    cancel: &CancellationToken,
) -> Result<(), ExportError> {
    if !split {
        refuse_doubles(stores, parts)?;
    }
    for part in parts {
        let own = directory.join(part.directory());
        write_part(stores, part, if split { &own } else { directory }, cancel)?;
    }
    if delete {
        let mut kept = BTreeSet::new();
        for part in parts {
            let below = if split { PathBuf::from(part.directory()) } else { PathBuf::new() };
            kept.insert(below.clone());
            kept.extend(part.beside.iter().map(|(name, _)| below.join(name)));
            tree_reader(stores, &part.tree)?
                .walk(&mut |entry| {
                    kept.insert(below.join(entry.path));
                    Ok(())
                })
                .map_err(ExportError::io("list", "the result"))?;
        }
        remove_others(directory, Path::new(""), &kept)?;
    }
    Ok(())
}

/// Removes what is below `directory/at` and not kept. Links are removed, never followed.
fn remove_others(directory: &Path, at: &Path, kept: &BTreeSet<PathBuf>) -> Result<(), ExportError> {
    let here = directory.join(at);
    for entry in fs::read_dir(&here).map_err(ExportError::io("list", &here))? {
        let entry = entry.map_err(ExportError::io("list", &here))?;
        let (path, below) = (entry.path(), at.join(entry.file_name()));
        let is_directory = entry.file_type().map_err(ExportError::io("look at", &path))?.is_dir();
        match (kept.contains(&below), is_directory) {
            (true, true) => remove_others(directory, &below, kept)?,
            (true, false) => {}
            (false, true) => fs::remove_dir_all(&path).map_err(ExportError::io("remove", &path))?,
            (false, false) => fs::remove_file(&path).map_err(ExportError::io("remove", &path))?,
        }
    }
    Ok(())
}

/// Writes a tree into a directory of this machine, as its own user.
///
/// The tree goes through the code that unpacks strangers' archives, so nothing is written outside of the directory whatever links
/// there are, in the tree or in the directory.
fn write_part(
    stores: &Stores,
    part: &Part,
    directory: &Path,
    cancel: &CancellationToken,
) -> Result<(), ExportError> {
    fs::create_dir_all(directory).map_err(ExportError::io("create", directory))?;
    let target = fs::File::open(directory).map_err(ExportError::io("open", directory))?;
    let (reader, writer) = io::pipe().map_err(ExportError::io("open a pipe to", directory))?;
    let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let options = ArchiveOptions { owner: Some(owner) };
    let result = std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let mut writer = Cancellable { out: BufWriter::with_capacity(256 << 10, writer), cancel };
            write_tar(stores, std::slice::from_ref(part), false, &mut writer)?;
            io::Write::flush(&mut writer).map_err(ExportError::io("write to", directory))
        });
        let reader = BufReader::with_capacity(256 << 10, reader);
        let unpacked = unpack_archive(reader, target.as_fd(), Path::new("."), &options, &Limits::default());
        // Its reader is gone by now, so the writer ends.
        let written = match writing.join() {
            Ok(written) => written,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        unpacked?;
        written
    });
    canceled_or(result, cancel)
}
