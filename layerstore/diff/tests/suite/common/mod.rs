//! Tars made by hand and trees read back, for the tests of this crate.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::Write as _,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use lapstrake_layerstore_diff::{Applied, DiffError, Limits, WriteOptions, apply, write_layer};
use lapstrake_layerstore_store::{DiffSource, OpenSnapshot, OverlaySyntax, OverlayUpper, SnapshotMount};

/// Builds tar streams that no tar program would.
#[derive(Default)]
pub(crate) struct Tar(pub Vec<u8>);

/// One entry, with everything that a test may want to get wrong.
#[derive(Clone)]
pub(crate) struct Item<'a> {
    pub name: &'a [u8],
    pub flag: u8,
    pub link: &'a [u8],
    pub content: &'a [u8],
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: u64,
    pub device: (u32, u32),
    pub pax: Vec<(String, Vec<u8>)>,
    pub size: Option<u64>,
}

impl Default for Item<'_> {
    fn default() -> Self {
        Self {
            name: b"",
            flag: b'0',
            link: b"",
            content: b"",
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 1_700_000_000,
            device: (0, 0),
            pax: Vec::new(),
            size: None,
        }
    }
}

impl Tar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn item(mut self, item: Item<'_>) -> Self {
        if !item.pax.is_empty() {
            let mut records = Vec::new();
            for (key, value) in &item.pax {
                let rest = key.len() + value.len() + 3;
                let mut length = rest + 1;
                while length.to_string().len() + rest != length {
                    length = length.to_string().len() + rest;
                }
                write!(records, "{length} {key}=").unwrap();
                records.extend_from_slice(value);
                records.push(b'\n');
            }
            self =
                self.item(Item { name: b"PaxHeaders/x", flag: b'x', content: &records, ..Item::default() });
        }
        let mut block = [0u8; 512];
        let name = &item.name[..item.name.len().min(100)];
        block[..name.len()].copy_from_slice(name);
        let link = &item.link[..item.link.len().min(100)];
        block[157..157 + link.len()].copy_from_slice(link);
        for (at, width, number) in [
            (100, 7, u64::from(item.mode)),
            (108, 7, u64::from(item.uid)),
            (116, 7, u64::from(item.gid)),
            (124, 11, item.size.unwrap_or(item.content.len() as u64)),
            (136, 11, item.mtime),
            (329, 7, u64::from(item.device.0)),
            (337, 7, u64::from(item.device.1)),
        ] {
            block[at..at + width].copy_from_slice(format!("{number:0width$o}").as_bytes());
        }
        block[156] = item.flag;
        block[257..265].copy_from_slice(b"ustar\x0000");
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.0.extend_from_slice(&block);
        self.0.extend_from_slice(item.content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, name: &str, content: &str) -> Self {
        self.item(Item { name: name.as_bytes(), content: content.as_bytes(), ..Item::default() })
    }

    pub(crate) fn dir(self, name: &str, mode: u32) -> Self {
        self.item(Item { name: name.as_bytes(), flag: b'5', mode, ..Item::default() })
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.item(Item {
            name: name.as_bytes(),
            flag: b'2',
            link: target.as_bytes(),
            mode: 0o777,
            ..Item::default()
        })
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Self {
        self.item(Item { name: name.as_bytes(), flag: b'1', link: target.as_bytes(), ..Item::default() })
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// Everything a layer keeps of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub what: What,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, i64),
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path of the same inode, when there are several.
    pub same_as: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    File(Vec<u8>),
    Dir,
    Symlink(PathBuf),
    Char(u64),
    Block(u64),
    Fifo,
    Socket,
}

/// A tree as a value, without its root.
pub(crate) fn tree(root: &Path) -> BTreeMap<PathBuf, Node> {
    let mut nodes = BTreeMap::new();
    collect(root, Path::new(""), &mut nodes);
    let mut inodes: HashMap<(u64, u64), Vec<PathBuf>> = HashMap::new();
    for path in nodes.keys() {
        let metadata = fs::symlink_metadata(root.join(path)).unwrap();
        if metadata.nlink() > 1 && !metadata.is_dir() {
            inodes.entry((metadata.dev(), metadata.ino())).or_default().push(path.clone());
        }
    }
    for names in inodes.values().filter(|names| names.len() > 1) {
        for name in names {
            nodes.get_mut(name).unwrap().same_as = Some(names[0].clone());
        }
    }
    nodes
}

fn collect(root: &Path, below: &Path, nodes: &mut BTreeMap<PathBuf, Node>) {
    for entry in fs::read_dir(root.join(below)).unwrap() {
        let entry = entry.unwrap();
        let path = below.join(entry.file_name());
        let full = root.join(&path);
        let metadata = fs::symlink_metadata(&full).unwrap();
        let kind = metadata.file_type();
        let what = if kind.is_dir() {
            What::Dir
        } else if kind.is_file() {
            What::File(fs::read(&full).unwrap())
        } else if kind.is_symlink() {
            What::Symlink(fs::read_link(&full).unwrap())
        } else if kind.is_char_device() {
            What::Char(metadata.rdev())
        } else if kind.is_block_device() {
            What::Block(metadata.rdev())
        } else if kind.is_fifo() {
            What::Fifo
        } else {
            What::Socket
        };
        if what == What::Dir {
            collect(root, &path, nodes);
        }
        nodes.insert(
            path,
            Node {
                what,
                mode: metadata.mode() & 0o7777,
                owner: (metadata.uid(), metadata.gid()),
                mtime: (metadata.mtime(), metadata.mtime_nsec()),
                xattrs: xattrs(&full),
                same_as: None,
            },
        );
    }
}

pub(crate) fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0u8; 65536];
    let length = rustix::fs::llistxattr(path, names.as_mut_slice()).unwrap_or(0);
    names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty() && !name.starts_with(b"trusted.overlay."))
        .map(|name| {
            let mut value = vec![0u8; 65536];
            let length = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).unwrap();
            (name.to_vec(), value[..length].to_vec())
        })
        .collect()
}

/// What layers keep of times, and of links: whole seconds.
pub(crate) fn in_seconds(mut nodes: BTreeMap<PathBuf, Node>) -> BTreeMap<PathBuf, Node> {
    for node in nodes.values_mut() {
        node.mtime.1 = 0;
    }
    nodes
}

/// A directory with layers in overlayfs's form.
pub(crate) struct Layers {
    pub base: tempfile::TempDir,
    /// Bottom first.
    pub layers: Vec<PathBuf>,
}

impl Layers {
    pub(crate) fn new() -> Self {
        Self { base: tempfile::tempdir().unwrap(), layers: Vec::new() }
    }

    /// Puts an empty layer on top.
    pub(crate) fn push(&mut self) -> DiffSource {
        let upper = self.base.path().join(format!("layer-{}", self.layers.len()));
        fs::create_dir(&upper).unwrap();
        self.layers.push(upper);
        self.top()
    }

    /// The top layer's difference.
    pub(crate) fn top(&self) -> DiffSource {
        let (upper, below) = self.layers.split_last().unwrap();
        let lower = below.iter().rev().cloned().collect();
        DiffSource::OverlayUpper { upper: upper.clone(), lower, deletions: Some(deletions(upper)) }
    }

    pub(crate) fn apply(&mut self, tar: &[u8]) -> Result<Applied, DiffError> {
        let target = self.push();
        apply(tar, &target, &Limits::default())
    }

    pub(crate) fn write(&self) -> Vec<u8> {
        let mut out = Vec::new();
        write_layer(&self.top(), &WriteOptions::default(), &mut out).unwrap();
        out
    }

    /// The merged tree as the kernel shows it.
    pub(crate) fn merged(&self) -> BTreeMap<PathBuf, Node> {
        let mount = match self.layers.as_slice() {
            [only] => SnapshotMount::Bind { source: only.clone(), read_only: true },
            layers => SnapshotMount::Overlay {
                lower: layers.iter().rev().cloned().collect(),
                upper: None,
                syntax: OverlaySyntax::Appended,
            },
        };
        let open = OpenSnapshot::open(&mount).unwrap();
        tree(&open.path())
    }

    /// Runs a change in the merged tree on a new top layer, as a build step does.
    pub(crate) fn change(&mut self, change: impl FnOnce(&Path)) {
        self.push();
        let work = tempfile::tempdir_in(self.base.path()).unwrap();
        let (upper, below) = self.layers.split_last().unwrap();
        if below.is_empty() {
            return change(upper);
        }
        let mount = SnapshotMount::Overlay {
            lower: below.iter().rev().cloned().collect(),
            upper: Some(OverlayUpper { upper: upper.clone(), work: work.path().to_path_buf() }),
            syntax: OverlaySyntax::Appended,
        };
        let open = OpenSnapshot::open(&mount).unwrap();
        change(&open.path());
    }
}

fn deletions(upper: &Path) -> PathBuf {
    upper.with_extension("deletions")
}

/// Applies layers to complete trees, each on a copy of the one before.
pub(crate) struct Trees {
    pub base: tempfile::TempDir,
    pub trees: Vec<PathBuf>,
}

impl Trees {
    pub(crate) fn new() -> Self {
        Self { base: tempfile::tempdir().unwrap(), trees: Vec::new() }
    }

    pub(crate) fn push(&mut self) -> DiffSource {
        let upper = self.base.path().join(format!("tree-{}", self.trees.len()));
        match self.trees.last() {
            None => fs::create_dir(&upper).unwrap(),
            Some(parent) => {
                let status = std::process::Command::new("cp").arg("-a").arg(parent).arg(&upper).status();
                assert!(status.unwrap().success());
            }
        }
        self.trees.push(upper);
        self.top()
    }

    pub(crate) fn top(&self) -> DiffSource {
        let (upper, below) = self.trees.split_last().unwrap();
        let lower = below.last().cloned();
        DiffSource::Trees { upper: upper.clone(), lower, deletions: Some(deletions(upper)) }
    }

    pub(crate) fn apply(&mut self, tar: &[u8]) -> Result<Applied, DiffError> {
        let target = self.push();
        apply(tar, &target, &Limits::default())
    }

    pub(crate) fn merged(&self) -> BTreeMap<PathBuf, Node> {
        tree(self.trees.last().unwrap())
    }
}

/// Applies layers both ways, checks that the trees are the same, and returns them.
pub(crate) fn both(layers: &[&[u8]]) -> BTreeMap<PathBuf, Node> {
    let (mut overlay, mut trees) = (Layers::new(), Trees::new());
    for layer in layers {
        let a = overlay.apply(layer).unwrap();
        let b = trees.apply(layer).unwrap();
        assert_eq!(a, b);
    }
    let merged = overlay.merged();
    assert_eq!(merged, trees.merged(), "overlay2 and vfs disagree");
    merged
}

pub(crate) fn names(nodes: &BTreeMap<PathBuf, Node>) -> Vec<String> {
    nodes.keys().map(|path| path.display().to_string()).collect()
}

pub(crate) fn content<'a>(nodes: &'a BTreeMap<PathBuf, Node>, path: &str) -> &'a str {
    match &nodes[Path::new(path)].what {
        What::File(bytes) => std::str::from_utf8(bytes).unwrap(),
        what => panic!("{path}: {what:?}"),
    }
}
