//! Trees as they stand in the golden files.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, lchown, symlink},
    path::Path,
};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps};
use serde::Deserialize;

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Entry {
    pub(crate) path: String,
    pub(crate) kind: String,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) content: String,
    /// Of a link its target; of a file another name that it has.
    pub(crate) link: String,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) xattrs: BTreeMap<String, String>,
    /// Seconds; -1 where it is the time of the action.
    pub(crate) mtime: i64,
}

/// Makes a tree, or a part of one.
pub(crate) fn make(root: &Path, entries: &[Entry]) {
    let place = |path: &str| if path.is_empty() { root.join(".") } else { root.join(path) };
    for entry in entries {
        let path = place(&entry.path);
        let node = |kind, device| rustix::fs::mknodat(CWD, &path, kind, Mode::RWXU, device).expect("node");
        match entry.kind.as_str() {
            "dir" if entry.path.is_empty() => {}
            "dir" => fs::create_dir(&path).expect("directory"),
            "file" => fs::write(&path, &entry.content).expect("file"),
            "symlink" => symlink(&entry.link, &path).expect("link"),
            "hardlink" => {
                fs::hard_link(root.join(&entry.link), &path).expect("hard link");
                continue;
            }
            "fifo" => node(FileType::Fifo, 0),
            "socket" => node(FileType::Socket, 0),
            "char" => node(FileType::CharacterDevice, rustix::fs::makedev(entry.major, entry.minor)),
            "block" => node(FileType::BlockDevice, rustix::fs::makedev(entry.major, entry.minor)),
            kind => panic!("{kind}"),
        }
        lchown(&path, Some(entry.uid), Some(entry.gid)).expect("owner");
        if entry.kind != "symlink" {
            let mode = Mode::from_raw_mode(entry.mode);
            rustix::fs::chmodat(CWD, &path, mode, AtFlags::empty()).expect("mode");
        }
        for (name, value) in &entry.xattrs {
            xattr::set(&path, name, value.as_bytes()).expect("attribute");
        }
    }
    for entry in entries.iter().rev().filter(|entry| entry.mtime != 0 && entry.kind != "hardlink") {
        let time = Timespec { tv_sec: entry.mtime, tv_nsec: 7 };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, place(&entry.path), &times, AtFlags::SYMLINK_NOFOLLOW).expect("times");
    }
}

/// A tree as entries by path.
pub(crate) fn read(root: &Path) -> BTreeMap<String, Entry> {
    let mut entries = BTreeMap::new();
    read_below(root, "", &mut HashMap::new(), &mut entries);
    entries
}

fn read_below(
    root: &Path,
    path: &str,
    inodes: &mut HashMap<(u64, u64), String>,
    entries: &mut BTreeMap<String, Entry>,
) {
    let place = if path.is_empty() { root.join(".") } else { root.join(path) };
    let metadata = fs::symlink_metadata(&place).expect("stat");
    let kind = metadata.file_type();
    let mut entry = Entry {
        path: path.to_owned(),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: metadata.mtime(),
        ..Entry::default()
    };
    for name in xattr::list(&place).expect("attributes") {
        let name = name.into_string().expect("text");
        if !name.starts_with("trusted.overlay.") {
            let value = xattr::get(&place, &name).expect("attribute").expect("it was listed");
            entry.xattrs.insert(name, String::from_utf8(value).expect("text"));
        }
    }
    let mut names = Vec::new();
    if kind.is_dir() {
        entry.kind = "dir".to_owned();
        for found in fs::read_dir(&place).expect("list") {
            names.push(found.expect("entry").file_name().into_string().expect("text"));
        }
    } else if kind.is_symlink() {
        entry.kind = "symlink".to_owned();
        entry.mode = 0;
        entry.link = fs::read_link(&place).expect("link").into_os_string().into_string().expect("text");
    } else if kind.is_file() {
        entry.kind = "file".to_owned();
        entry.content = fs::read_to_string(&place).expect("read");
        if metadata.nlink() > 1 {
            match inodes.get(&(metadata.dev(), metadata.ino())) {
                Some(first) => entry.link.clone_from(first),
                None => {
                    inodes.insert((metadata.dev(), metadata.ino()), path.to_owned());
                }
            }
        }
    } else if kind.is_fifo() {
        entry.kind = "fifo".to_owned();
    } else {
        entry.kind = if kind.is_char_device() { "char" } else { "block" }.to_owned();
        entry.major = rustix::fs::major(metadata.rdev());
        entry.minor = rustix::fs::minor(metadata.rdev());
    }
    entries.insert(path.to_owned(), entry);
    names.sort();
    for name in names {
        let below = if path.is_empty() { name } else { format!("{path}/{name}") };
        read_below(root, &below, inodes, entries);
    }
}
