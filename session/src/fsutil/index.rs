//! What a transfer left in its destination, kept so that the next one asks only for what changed.

use std::{collections::HashSet, path::Path};

use prost::Message;

use super::{
    stat::{FileKind, FileStat, TreeEntry},
    wire,
};
use crate::TransferError;

/// SHA-256 of what [`Destination::prefix`](super::Destination::prefix) says of a file, and its contents.
pub type ContentDigest = [u8; 32];

/// An entry of a received tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the destination.
    pub path: std::path::PathBuf,
    /// As the client announced it (less the xattrs that are not kept).
    pub stat: FileStat,
    /// For regular files and hard links to them.
    pub digest: Option<ContentDigest>,
    pub(crate) on_disk: OnDisk,
    /// When the client announced what was then transferred, by our clock: nanoseconds since 1970.
    pub(crate) seen_ns: i64,
}

/// Which file on disk the entry was when the transfer ended. Any later write, replacement or metadata change alters the inode or its
/// ctime, which no program can set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct OnDisk {
    pub(crate) inode: u64,
    pub(crate) ctime_ns: i64,
    /// Bytes of its blocks.
    pub(crate) allocated: u64,
}

impl Entry {
    /// Whether the client's file may have changed without a change of size and time: it was modified so shortly before it was announced that
    /// a write after it was read could fall in the same tick of its file system's clock (whole seconds on some; the kernel's tick,
    /// 10 ms at most, on the others).
    pub(crate) fn is_racy(&self) -> bool {
        let tick = if self.stat.mtime_ns % 1_000_000_000 == 0 { 2_000_000_000 } else { 100_000_000 };
        self.stat.mtime_ns.saturating_add(tick) >= self.seen_ns
    }
}

/// The entries of a received tree, sorted by path. An empty one makes the next transfer ask for everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Index {
    entries: Vec<Entry>,
}

const VERSION: u32 = 2;

#[derive(Clone, PartialEq, prost::Message)]
struct Stored {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(message, repeated, tag = "2")]
    entries: Vec<StoredEntry>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredEntry {
    #[prost(message, optional, tag = "1")]
    stat: Option<wire::Stat>,
    #[prost(bytes = "vec", tag = "2")]
    digest: Vec<u8>,
    #[prost(uint64, tag = "3")]
    inode: u64,
    #[prost(int64, tag = "4")]
    ctime_ns: i64,
    #[prost(int64, tag = "5")]
    seen_ns: i64,
    #[prost(uint64, tag = "6")]
    allocated: u64,
}

impl Index {
    /// `entries` must be sorted by path.
    pub(crate) fn new(entries: Vec<Entry>) -> Self {
        debug_assert!(entries.is_sorted_by(|a, b| a.path < b.path));
        Self { entries }
    }

    /// All entries, sorted by path.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry at `path`.
    pub fn get(&self, path: &Path) -> Option<&Entry> {
        self.entries.binary_search_by(|e| e.path.as_path().cmp(path)).ok().map(|i| &self.entries[i])
    }

    /// Drops the entries that `keep` refuses.
    pub(crate) fn retain(&mut self, keep: impl FnMut(&Entry) -> bool) {
        self.entries.retain(keep);
    }

    /// A stable encoding, to be kept beside the destination. It need not be durable: without it, or with an older one, the next transfer
    /// asks for more than it must, and is right all the same.
    pub fn to_bytes(&self) -> Vec<u8> {
        let entries = self.entries.iter().map(|entry| StoredEntry {
            stat: Some(TreeEntry { path: entry.path.clone(), stat: entry.stat.clone() }.to_wire()),
            digest: entry.digest.map(Vec::from).unwrap_or_default(),
            inode: entry.on_disk.inode,
            ctime_ns: entry.on_disk.ctime_ns,
            seen_ns: entry.seen_ns,
            allocated: entry.on_disk.allocated,
        });
        Stored { version: VERSION, entries: entries.collect() }.encode_to_vec()
    }

    /// Reads [`to_bytes`](Self::to_bytes).
    ///
    /// # Errors
    /// [`TransferError::BadIndex`] when it is damaged or of another version; start from an empty one then.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TransferError> {
        let stored = Stored::decode(bytes).map_err(|_| TransferError::BadIndex)?;
        if stored.version != VERSION {
            return Err(TransferError::BadIndex);
        }
        let entries: Result<Vec<Entry>, TransferError> = stored
            .entries
            .into_iter()
            .map(|entry| {
                let stat = entry.stat.ok_or(TransferError::BadIndex)?;
                let TreeEntry { path, stat } =
                    TreeEntry::from_wire(stat).map_err(|_| TransferError::BadIndex)?;
                let digest = match entry.digest.as_slice() {
                    [] => None,
                    bytes => Some(bytes.try_into().map_err(|_| TransferError::BadIndex)?),
                };
                let on_disk =
                    OnDisk { inode: entry.inode, ctime_ns: entry.ctime_ns, allocated: entry.allocated };
                Ok(Entry { path, stat, digest, on_disk, seen_ns: entry.seen_ns })
            })
            .collect();
        let entries = entries?;
        if !entries.is_sorted_by(|a, b| a.path < b.path) {
            return Err(TransferError::BadIndex);
        }
        Ok(Self { entries })
    }

    /// The inode numbers of all that is no directory.
    pub fn inodes(&self) -> HashSet<u64> {
        let entries = self.entries.iter().filter(|entry| entry.stat.kind != FileKind::Directory);
        entries.map(|entry| entry.on_disk.inode).collect()
    }

    /// Which of `inodes` a transfer that just ended left, each once, with the bytes of its blocks.
    pub fn allocated(&self, mut inodes: HashSet<u64>) -> impl Iterator<Item = u64> {
        let left = self.entries.iter().filter(move |entry| inodes.remove(&entry.on_disk.inode));
        left.map(|entry| entry.on_disk.allocated)
    }

    /// Bytes of all regular files.
    pub fn content_bytes(&self) -> u64 {
        self.entries
            .iter()
            .map(|e| match e.stat.kind {
                FileKind::Regular { size } => size,
                _ => 0,
            })
            .fold(0, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, mtime_ns: i64, seen_ns: i64) -> Entry {
        let kind = FileKind::Regular { size: 3 };
        Entry {
            path: path.into(),
            stat: FileStat { kind, mode: 0o644, uid: 0, gid: 0, mtime_ns, xattrs: Default::default() },
            digest: Some([7; 32]),
            on_disk: OnDisk { inode: 9, ctime_ns: 8, allocated: 4096 },
            seen_ns,
        }
    }

    #[test]
    fn encoding_keeps_everything() {
        let index = Index::new(vec![entry("a", 1, 2), entry("a/b", 3, 4), entry("a.b", 5, 6)]);
        assert_eq!(Index::from_bytes(&index.to_bytes()).unwrap(), index);
        assert_eq!(index.get(Path::new("a.b")).unwrap().stat.mtime_ns, 5);
        assert!(index.get(Path::new("b")).is_none());
    }

    #[test]
    fn damaged_unsorted_or_foreign_encodings_are_refused() {
        let mut bytes = Index::new(vec![entry("a", 1, 2)]).to_bytes();
        bytes.truncate(bytes.len() - 1);
        assert!(Index::from_bytes(&bytes).is_err());
        assert!(Index::from_bytes(&[]).is_err());
        let unsorted = Index { entries: vec![entry("b", 1, 2), entry("a", 1, 2)] };
        assert!(Index::from_bytes(&unsorted.to_bytes()).is_err());
    }

    #[test]
    fn files_modified_just_before_they_were_announced_are_racy() {
        let s = 1_000_000_000;
        assert!(!entry("a", s + 1, 2 * s).is_racy());
        assert!(entry("a", s + 1, s + 50_000_000).is_racy());
        assert!(entry("a", s, 2 * s + 1).is_racy(), "whole seconds: a coarse clock");
        assert!(!entry("a", s, 4 * s).is_racy());
        assert!(entry("a", i64::MAX, 4 * s).is_racy(), "from the future");
    }
}
