//! Stores in a temporary directory, and trees told from what is in them.

pub(crate) mod golden;

use std::{
    collections::HashMap,
    fs,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::Path,
    sync::Arc,
};

use lapstrake_builder_llb::pb::{self, file_action::Action};
use lapstrake_graphdriver_adapter::{Adapter, DriverKind};
use lapstrake_layerstore_store::{LocalStore, Stores, Tree};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

pub(crate) struct Yard {
    pub(crate) stores: Stores,
    pub(crate) kind: DriverKind,
    _store: LocalStore,
    _directory: TempDir,
}

impl Yard {
    pub(crate) fn new(kind: DriverKind) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let store = LocalStore::open(directory.path().join("root")).expect("store");
        let driver = kind.open(store.root()).expect("driver");
        let stores = store.stores(Arc::new(Adapter::new(driver, store.records.clone())));
        Self { stores, kind, _store: store, _directory: directory }
    }

    pub(crate) fn both() -> [Self; 2] {
        [Self::new(DriverKind::Overlay2), Self::new(DriverKind::Vfs)]
    }

    /// A tree that begins as another one and is then changed through a path.
    pub(crate) fn change(&self, parent: &Tree, change: impl FnOnce(&Path)) -> Tree {
        let draft = self.stores.begin(parent).expect("begin");
        let open = draft.open().expect("open");
        change(&open.path());
        drop(open);
        draft.commit().expect("commit")
    }

    pub(crate) fn tree(&self, change: impl FnOnce(&Path)) -> Tree {
        self.change(&Tree::empty(), change)
    }

    pub(crate) fn apply(&self, actions: Vec<pb::FileAction>, inputs: &[Tree]) -> Result<Vec<Tree>, String> {
        lapstrake_builder_files::apply(
            &self.stores,
            &pb::FileOp { actions },
            inputs,
            &CancellationToken::new(),
        )
        .map_err(|error| chain(&error))
    }

    /// One action on the first input, reading from the second.
    pub(crate) fn act(&self, action: Action, inputs: &[Tree]) -> Result<Tree, String> {
        let secondary = if inputs.len() > 1 { 1 } else { -1 };
        let input = if inputs.is_empty() { -1 } else { 0 };
        let action = pb::FileAction { input, secondary_input: secondary, output: 0, action: Some(action) };
        self.apply(vec![action], inputs).map(|mut trees| trees.remove(0))
    }

    pub(crate) fn look<T>(&self, tree: &Tree, look: impl FnOnce(&Path) -> T) -> T {
        match self.stores.open(tree).expect("open") {
            Some(open) => look(&open.path()),
            None => look(tempfile::tempdir().expect("temporary directory").path()),
        }
    }

    /// Everything in a tree, without times.
    pub(crate) fn show(&self, tree: &Tree) -> Vec<String> {
        self.look(tree, |root| listing(root, false))
    }

    /// Everything in a tree, with modification times.
    pub(crate) fn show_all(&self, tree: &Tree) -> Vec<String> {
        self.look(tree, |root| listing(root, true))
    }

    /// The paths in a tree.
    pub(crate) fn paths(&self, tree: &Tree) -> Vec<String> {
        self.show(tree).iter().map(|line| line.split(' ').next().expect("path").to_owned()).collect()
    }
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}

pub(crate) fn copy(src: &str, dest: &str) -> pb::FileActionCopy {
    pb::FileActionCopy {
        src: src.into(),
        dest: dest.into(),
        mode: -1,
        timestamp: -1,
        follow_symlink: true,
        dir_copy_contents: true,
        create_dest_path: true,
        allow_wildcard: true,
        allow_empty_wildcard: true,
        ..Default::default()
    }
}

/// A line for each entry of a tree, in order.
pub(crate) fn listing(root: &Path, times: bool) -> Vec<String> {
    let mut lines = Vec::new();
    let mut inodes = HashMap::new();
    walk(root, Path::new(""), times, &mut inodes, &mut lines);
    lines
}

fn walk(
    root: &Path,
    below: &Path,
    times: bool,
    inodes: &mut HashMap<(u64, u64), String>,
    lines: &mut Vec<String>,
) {
    let path = root.join(below);
    let path = if below.as_os_str().is_empty() { root.join(".") } else { path };
    let metadata = fs::symlink_metadata(&path).expect("stat");
    let kind = metadata.file_type();
    let mut line = format!("/{}", below.display());
    let what = if kind.is_dir() {
        "dir".to_owned()
    } else if kind.is_symlink() {
        format!("link {}", fs::read_link(&path).expect("link").display())
    } else if kind.is_file() {
        let content = fs::read(&path).expect("read");
        match std::str::from_utf8(&content) {
            Ok(text) if content.len() < 40 => format!("file {text:?}"),
            _ => format!("file {} {}", content.len(), lapstrake_layerstore_oci::Digest::sha256_of(&content)),
        }
    } else if kind.is_fifo() {
        "fifo".to_owned()
    } else {
        let device = metadata.rdev();
        let kind = if kind.is_char_device() { "char" } else { "block" };
        format!("{kind} {device:#x}")
    };
    line += &format!(" {what} {:o} {}:{}", metadata.mode() & 0o7777, metadata.uid(), metadata.gid());
    if times {
        line += &format!(" {}.{:09}", metadata.mtime(), metadata.mtime_nsec());
    }
    let mut xattrs: Vec<_> = xattr::list(&path).map(Iterator::collect).unwrap_or_default();
    xattrs.sort();
    for name in xattrs.iter().filter(|name| !name.as_bytes().starts_with(b"trusted.overlay")) {
        let value = xattr::get(&path, name).expect("xattr").unwrap_or_default();
        line += &format!(" {}={}", name.display(), String::from_utf8_lossy(&value));
    }
    if !kind.is_dir() && metadata.nlink() > 1 {
        let name = below.display().to_string();
        match inodes.get(&(metadata.dev(), metadata.ino())) {
            Some(first) => line += &format!(" same as {first}"),
            None => {
                inodes.insert((metadata.dev(), metadata.ino()), name);
            }
        }
    }
    lines.push(line);
    if kind.is_dir() {
        let mut names: Vec<_> =
            fs::read_dir(&path).expect("list").map(|entry| entry.expect("entry").file_name()).collect();
        names.sort();
        for name in names {
            walk(root, &below.join(name), times, inodes, lines);
        }
    }
}
