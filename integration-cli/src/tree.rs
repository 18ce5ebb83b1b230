//! What is in an image, read from `docker save`: its layers put together, and its configuration.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    path::Path,
};

use serde_json::Value;

/// An image, put together.
#[derive(Debug, Clone)]
pub struct SavedImage {
    /// The configuration document.
    pub config: Value,
    /// Files by path, without a leading slash.
    pub tree: BTreeMap<String, Node>,
    /// Names that the archive gives it.
    pub names: Vec<String>,
}

/// A file. Two are equal if all but their times are: what a build makes is as old as the build.
#[derive(Clone)]
pub struct Node {
    /// Of the archive's entry; hard links have the one of their file.
    pub kind: tar::EntryType,
    /// Permissions with setuid, setgid and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// A symbolic link's target.
    pub target: Option<String>,
    /// A regular file's data.
    pub content: Vec<u8>,
    /// Extended attributes.
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// The same file's other names, and this one.
    pub names: BTreeSet<String>,
    /// When it was changed, in seconds since 1970.
    pub mtime: u64,
}

impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        let metadata = |node: &Self| (node.kind, node.mode, node.uid, node.gid);
        metadata(self) == metadata(other)
            && (&self.target, &self.content, &self.xattrs, &self.names)
                == (&other.target, &other.content, &other.xattrs, &other.names)
    }
}

impl Eq for Node {}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:o} {}:{}", self.kind, self.mode, self.uid, self.gid)?;
        if let Some(target) = &self.target {
            write!(f, " -> {target}")?;
        }
        if self.names.len() > 1 {
            write!(f, " = {:?}", self.names)?;
        }
        for (name, value) in &self.xattrs {
            write!(f, " {name}={value:?}")?;
        }
        let head = &self.content[..self.content.len().min(40)];
        write!(f, " {} bytes {:?}", self.content.len(), String::from_utf8_lossy(head))
    }
}

/// Reads the only image of what `docker save` wrote.
///
/// # Panics
/// When it is not whole, or not one image.
pub fn saved_image(archive: &[u8]) -> SavedImage {
    let mut files = BTreeMap::new();
    let mut links = Vec::new();
    for entry in tar::Archive::new(archive).entries().expect("an archive") {
        let mut entry = entry.expect("an entry");
        let path = clean(&entry.path().expect("a path"));
        match entry.header().entry_type() {
            tar::EntryType::Regular => {
                let mut data = Vec::new();
                entry.read_to_end(&mut data).expect("memory takes it");
                files.insert(path, data);
            }
            // docker 20.10 writes a layer once, and links further copies.
            tar::EntryType::Symlink => {
                let target = entry.link_name().expect("a link").expect("a target").display().to_string();
                links.push((path, target.trim_start_matches("../").to_owned()));
            }
            _ => {}
        }
    }
    for (path, target) in links {
        let data = files
            .get(&target)
            .unwrap_or_else(|| panic!("{path} links to {target}, which is not there"))
            .clone();
        files.insert(path, data);
    }
    let manifest: Value = serde_json::from_slice(&files["manifest.json"]).expect("manifest.json is JSON");
    assert_eq!(manifest.as_array().map(Vec::len), Some(1), "one image: {manifest}");
    let manifest = &manifest[0];
    let config = manifest["Config"].as_str().expect("a configuration");
    let mut tree = BTreeMap::new();
    for layer in manifest["Layers"].as_array().expect("layers") {
        apply(&mut tree, &files[layer.as_str().expect("a path")]);
    }
    let names = manifest["RepoTags"].as_array().into_iter().flatten().filter_map(Value::as_str);
    SavedImage {
        config: serde_json::from_slice(&files[config]).expect("a configuration is JSON"),
        names: names.map(str::to_owned).collect(),
        tree,
    }
}

fn clean(path: &Path) -> String {
    path.display().to_string().trim_start_matches("./").trim_matches('/').to_owned()
}

/// Puts a layer on top.
fn apply(tree: &mut BTreeMap<String, Node>, layer: &[u8]) {
    let plain = if layer.starts_with(&[0x1f, 0x8b]) {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(layer).read_to_end(&mut plain).expect("gzip");
        plain
    } else {
        layer.to_vec()
    };
    let mut added: BTreeSet<String> = BTreeSet::new();
    for entry in tar::Archive::new(&plain[..]).entries().expect("a layer is an archive") {
        let mut entry = entry.expect("an entry");
        let path = clean(&entry.path().expect("a path"));
        if path.is_empty() {
            continue;
        }
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", &path));
        if name == ".wh..wh..opq" {
            let prefix = format!("{dir}/");
            let gone: Vec<_> = tree
                .keys()
                .filter(|path| path.starts_with(&prefix) && !added.contains(*path))
                .cloned()
                .collect();
            gone.iter().for_each(|path| remove(tree, path));
            continue;
        }
        if let Some(name) = name.strip_prefix(".wh.") {
            let gone = if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") };
            assert!(tree.contains_key(&gone), "the whiteout of {gone}, which is not beneath");
            remove_with_children(tree, &gone);
            continue;
        }
        let mut node = node(&mut entry);
        if entry.header().entry_type() == tar::EntryType::Link {
            let target = clean(&entry.link_name().expect("a link").expect("a target"));
            node = tree
                .get(&target)
                .unwrap_or_else(|| panic!("{path} is a link to {target}, not there"))
                .clone();
            // What had the name before is another file.
            remove_with_children(tree, &path);
            let mut names = node.names.clone();
            names.insert(path.clone());
            for name in &node.names {
                tree.get_mut(name).expect("names are kept").names = names.clone();
            }
            node.names = names;
        } else {
            if node.kind == tar::EntryType::Directory {
                remove(tree, &path);
            } else {
                remove_with_children(tree, &path);
            }
            node.names.insert(path.clone());
        }
        added.insert(path.clone());
        tree.insert(path, node);
    }
}

fn node<R: Read>(entry: &mut tar::Entry<'_, R>) -> Node {
    let mut xattrs = BTreeMap::new();
    if let Some(extensions) = entry.pax_extensions().expect("extensions can be read") {
        for extension in extensions {
            let extension = extension.expect("an extension");
            if let Some(name) = extension.key().expect("a key").strip_prefix("SCHILY.xattr.") {
                xattrs.insert(name.to_owned(), extension.value_bytes().to_vec());
            }
        }
    }
    let header = entry.header();
    let kind = header.entry_type();
    let mut node = Node {
        kind,
        mode: header.mode().expect("a mode") & 0o7777,
        uid: header.uid().expect("an owner"),
        gid: header.gid().expect("a group"),
        target: None,
        content: Vec::new(),
        xattrs,
        names: BTreeSet::new(),
        mtime: header.mtime().expect("a time"),
    };
    if kind == tar::EntryType::Symlink {
        node.target = entry.link_name().expect("a link").map(|target| target.display().to_string());
    }
    if kind == tar::EntryType::Regular {
        entry.read_to_end(&mut node.content).expect("memory takes it");
    }
    node
}

fn remove(tree: &mut BTreeMap<String, Node>, path: &str) {
    if let Some(node) = tree.remove(path) {
        for name in node.names {
            if let Some(other) = tree.get_mut(&name) {
                other.names.remove(path);
            }
        }
    }
}

fn remove_with_children(tree: &mut BTreeMap<String, Node>, path: &str) {
    let prefix = format!("{path}/");
    let gone: Vec<_> = tree.keys().filter(|path| path.starts_with(&prefix)).cloned().collect();
    gone.iter().for_each(|path| remove(tree, path));
    remove(tree, path);
}

/// What differs between two trees, for an assertion's message; empty when nothing does.
pub fn differences(left: &BTreeMap<String, Node>, right: &BTreeMap<String, Node>) -> Vec<String> {
    let paths: BTreeSet<_> = left.keys().chain(right.keys()).collect();
    let differing = paths.into_iter().filter(|path| left.get(*path) != right.get(*path));
    differing.map(|path| format!("{path}: {:?} | {:?}", left.get(path), right.get(path))).collect()
}
