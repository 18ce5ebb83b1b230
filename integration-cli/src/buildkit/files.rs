//! fsutil's protocol, both sides, over trees in memory.

use std::collections::{BTreeMap, HashMap};

use lapstrake_api_proto::fsutil::{Packet, Stat, packet::PacketType};
use tokio::sync::mpsc;
use tonic::{Status, Streaming, metadata::MetadataMap};

/// Go's mode bits.
const DIRECTORY: u32 = 1 << 31;
const SYMLINK: u32 = 1 << 27;

/// A file, directory or link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A directory with this mode.
    Directory(u32),
    /// A regular file with this mode.
    File(u32, Vec<u8>),
    /// A symbolic link.
    Symlink(String),
}

/// A directory's content, by path. Parents need not be said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree(pub BTreeMap<Vec<String>, Entry>);

impl Tree {
    /// Plain files.
    pub fn of<T: AsRef<[u8]>>(files: &[(&str, T)]) -> Self {
        let mut tree = Self::default();
        for (path, data) in files {
            tree.add(path, Entry::File(0o644, data.as_ref().to_vec()));
        }
        tree
    }

    /// Adds an entry, and the directories that it is in.
    pub fn add(&mut self, path: &str, entry: Entry) {
        let path: Vec<String> = path.split('/').map(str::to_owned).collect();
        for depth in 1..path.len() {
            self.0.entry(path[..depth].to_vec()).or_insert(Entry::Directory(0o755));
        }
        self.0.insert(path, entry);
    }

    /// A file's content.
    pub fn file(&self, path: &str) -> Option<&[u8]> {
        let path: Vec<String> = path.split('/').map(str::to_owned).collect();
        match self.0.get(&path)? {
            Entry::File(_, data) => Some(data),
            _ => None,
        }
    }

    /// All paths, sorted.
    pub fn paths(&self) -> Vec<String> {
        self.0.keys().map(|path| path.join("/")).collect()
    }

    /// What of it was asked for, by paths to follow or to include: those, what is in them, and what they are in.
    fn asked(&self, metadata: &MetadataMap) -> Self {
        let list = |key: &str| -> Vec<Vec<String>> {
            let values = metadata.get_all(key).iter().filter_map(|value| value.to_str().ok());
            values.map(|path| path.trim_matches('/').split('/').map(str::to_owned).collect()).collect()
        };
        let mut wanted = list("followpaths");
        wanted.extend(list("include-patterns"));
        // Real clients know patterns; whoever is sent too much takes what it needs.
        let all = wanted.is_empty()
            || wanted.iter().flatten().any(|part| part.contains(['*', '?', '[']) || part == ".");
        let is_wanted = |path: &Vec<String>| {
            all || wanted.iter().any(|wanted| path.starts_with(wanted) || wanted.starts_with(path))
        };
        Self(self.0.iter().filter(|(path, _)| is_wanted(path)).map(|(p, e)| (p.clone(), e.clone())).collect())
    }
}

fn packet(kind: PacketType) -> Packet {
    Packet { r#type: kind.into(), ..Packet::default() }
}

fn stat(path: &[String], entry: &Entry) -> Stat {
    let (mode, size, linkname) = match entry {
        Entry::Directory(mode) => (DIRECTORY | mode, 0, String::new()),
        Entry::File(mode, data) => (*mode, data.len() as i64, String::new()),
        Entry::Symlink(target) => (SYMLINK | 0o777, 0, target.clone()),
    };
    // Long ago, so that nobody takes it for just being written.
    Stat {
        path: path.join("/"),
        mode,
        size,
        linkname,
        mod_time: 1_600_000_000_000_000_000,
        ..Stat::default()
    }
}

/// Sends a tree: lists all, answers requests meanwhile, ends when told.
pub(super) async fn send(
    tree: Tree,
    metadata: MetadataMap,
    mut incoming: Streaming<Packet>,
    out: mpsc::Sender<Result<Packet, Status>>,
) {
    let tree = tree.asked(&metadata);
    let entries: Vec<(Vec<String>, Entry)> = tree.0.into_iter().collect();
    let list = entries.iter().map(|(path, entry)| Some(stat(path, entry))).chain([None]).collect::<Vec<_>>();
    let listing = out.clone();
    tokio::spawn(async move {
        for stat in list {
            if listing.send(Ok(Packet { stat, ..packet(PacketType::PacketStat) })).await.is_err() {
                return;
            }
        }
    });
    while let Ok(Some(asked)) = incoming.message().await {
        match asked.r#type() {
            PacketType::PacketReq => {
                let index = usize::try_from(asked.id).expect("a small number");
                let Some((_, Entry::File(_, data))) = entries.get(index) else {
                    let _ = out.send(Err(Status::invalid_argument(format!("no file {}", asked.id)))).await;
                    return;
                };
                for chunk in data.chunks(32 << 10).chain([&[][..]]) {
                    let data =
                        Packet { id: asked.id, data: chunk.to_vec(), ..packet(PacketType::PacketData) };
                    if out.send(Ok(data)).await.is_err() {
                        return;
                    }
                }
            }
            PacketType::PacketFin => {
                let _ = out.send(Ok(packet(PacketType::PacketFin))).await;
                return;
            }
            _ => return,
        }
    }
}

/// Receives a tree, asking for every file.
pub(super) async fn receive(
    mut incoming: Streaming<Packet>,
    out: mpsc::Sender<Result<Packet, Status>>,
) -> Option<Tree> {
    let mut tree = Tree::default();
    let mut open: HashMap<u32, Vec<String>> = HashMap::new();
    let (mut number, mut listed, mut said_goodbye) = (0, false, false);
    while let Ok(Some(came)) = incoming.message().await {
        match came.r#type() {
            PacketType::PacketStat => match came.stat {
                Some(stat) if !stat.path.is_empty() => {
                    let path: Vec<String> = stat.path.split('/').map(str::to_owned).collect();
                    let entry = if stat.mode & DIRECTORY != 0 {
                        Entry::Directory(stat.mode & 0o7777)
                    } else if stat.mode & SYMLINK != 0 {
                        Entry::Symlink(stat.linkname)
                    } else {
                        out.send(Ok(Packet { id: number, ..packet(PacketType::PacketReq) })).await.ok()?;
                        open.insert(number, path.clone());
                        Entry::File(stat.mode & 0o7777, Vec::new())
                    };
                    tree.0.insert(path, entry);
                    number += 1;
                }
                _ => listed = true,
            },
            PacketType::PacketData if came.data.is_empty() => _ = open.remove(&came.id),
            PacketType::PacketData => match tree.0.get_mut(open.get(&came.id)?)? {
                Entry::File(_, data) => data.extend(came.data),
                _ => return None,
            },
            PacketType::PacketFin => return Some(tree),
            _ => return None,
        }
        if listed && open.is_empty() && !said_goodbye {
            said_goodbye = true;
            out.send(Ok(packet(PacketType::PacketFin))).await.ok()?;
        }
    }
    None
}
