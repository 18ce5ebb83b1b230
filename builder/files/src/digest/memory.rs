//! What is known already.
//!
//! Committed snapshots never change, so what a selector gives for one stays. A file of one is known by its inode, as long as
//! the inode lives, also where a later snapshot shares it by a hard link (which changes its `ctime`, so that cannot tell).
//! Another file may get the number once it is gone; that one has a later time of birth, by more than a tick of the clock
//! that such times are taken from, as nothing is remembered of a file that was born just now.

use std::{
    collections::{HashMap, VecDeque},
    ffi::OsStr,
    hash::Hash,
    os::fd::BorrowedFd,
    sync::Arc,
    time::{Duration, SystemTime},
};

use lapstrake_builder_llb::cache_key::Selector;
use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_store::SnapshotName;
use parking_lot::Mutex;
use rustix::fs::{AtFlags, StatxFlags};

use super::{scan::SeenRecord, select::Selected};
use crate::at::{self, Node};

/// Selections that are remembered, at least; some 300 bytes each.
const SELECTIONS: usize = 20_000;
/// Files that are remembered, at least; some 200 bytes each.
const FILES: usize = 200_000;

/// File times come from a clock that ticks every 10 ms at worst.
const SETTLED: Duration = Duration::from_millis(50);

/// Listings that are remembered, and the records in them in all; some 150 bytes each.
const LISTINGS: usize = 64;
const LISTED: usize = 100_000;

/// SHA-256 of the records of a tree's files, by path without a slash before it.
pub type FileRecords = HashMap<Vec<u8>, [u8; 32]>;

/// Trees whose files' records are known from elsewhere, and the files in them in all; some 150 bytes each. They are used when the tree is new.
const LEARNED_TREES: usize = 8;
const LEARNED: usize = 100_000;

#[derive(Default)]
pub(super) struct Memory {
    selections: Mutex<Generations<(SnapshotName, String)>>,
    files: Mutex<Generations<FileKey>>,
    listings: Mutex<Listings>,
    /// Newest last.
    learned: Mutex<VecDeque<(SnapshotName, Arc<FileRecords>)>>,
}

/// A tree, and what was selected of it.
type ListingKey = (SnapshotName, String);

/// What the latest selections consisted of, newest last.
#[derive(Default)]
struct Listings {
    listings: VecDeque<(ListingKey, Arc<Vec<SeenRecord>>)>,
    records: usize,
}

/// Which file it is, and what of its record can change without its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FileKey {
    device: (u32, u32),
    inode: u64,
    born: (i64, u32),
    modified: (i64, u32),
    size: u64,
    mode: u16,
    owner: (u32, u32),
}

impl FileKey {
    /// The key of a file; `None` for one that cannot be known by it: it was born just now or the file system does not say
    /// when, or it has extended attributes.
    pub(super) fn of(parent: BorrowedFd<'_>, name: &OsStr) -> Option<Self> {
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let stat = rustix::fs::statx(parent, name, AtFlags::SYMLINK_NOFOLLOW, wanted).ok()?;
        if !StatxFlags::from_bits_retain(stat.stx_mask).contains(wanted) {
            return None;
        }
        let seconds = u64::try_from(stat.stx_btime.tv_sec).ok()?;
        let born = SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, stat.stx_btime.tv_nsec))?;
        let age = SystemTime::now().duration_since(born).ok()?;
        if age < SETTLED || at::xattrs(Node::Entry(parent, name)).map_or(true, |xattrs| !xattrs.is_empty()) {
            return None;
        }
        Some(Self {
            device: (stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
            born: (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec),
            modified: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
            size: stat.stx_size,
            mode: stat.stx_mode,
            owner: (stat.stx_uid, stat.stx_gid),
        })
    }
}

/// Whether it is a path, of which all versions of BuildKit make the same digest.
fn is_plain(selector: &Selector) -> bool {
    !selector.wildcard && selector.include_patterns.is_empty() && selector.exclude_patterns.is_empty()
}

/// What the older digest of a selection is remembered by.
fn before_0_26(selector: &Selector) -> String {
    format!("before 0.26: {selector:?}")
}

impl Memory {
    pub(super) fn selection(&self, snapshot: &SnapshotName, selector: &Selector) -> Option<Selected> {
        let mut selections = self.selections.lock();
        let digest = selections.get(&(snapshot.clone(), format!("{selector:?}")), SELECTIONS)?;
        let older = (snapshot.clone(), before_0_26(selector));
        // Where it was forgotten alone, no cache of an older version is found by it.
        let before_0_26 = selections.get(&older, SELECTIONS);
        let before_0_26 = before_0_26.or_else(|| is_plain(selector).then(|| digest.clone()));
        Some(Selected { digest, before_0_26 })
    }

    pub(super) fn remember_selection(
        &self,
        snapshot: &SnapshotName,
        selector: &Selector,
        selected: &Selected,
    ) {
        let mut selections = self.selections.lock();
        let key = (snapshot.clone(), format!("{selector:?}"));
        selections.put(key, selected.digest.clone(), SELECTIONS);
        if let Some(older) = selected.before_0_26.as_ref().filter(|_| !is_plain(selector)) {
            selections.put((snapshot.clone(), before_0_26(selector)), older.clone(), SELECTIONS);
        }
    }

    pub(super) fn listing(
        &self,
        snapshot: &SnapshotName,
        selector: &Selector,
    ) -> Option<Arc<Vec<SeenRecord>>> {
        let key = (snapshot.clone(), format!("{selector:?}"));
        self.listings
            .lock()
            .listings
            .iter()
            .rev()
            .find(|(known, _)| *known == key)
            .map(|(_, found)| Arc::clone(found))
    }

    pub(super) fn remember_listing(
        &self,
        snapshot: &SnapshotName,
        selector: &Selector,
        listing: Arc<Vec<SeenRecord>>,
    ) {
        let mut kept = self.listings.lock();
        kept.records += listing.len();
        kept.listings.push_back(((snapshot.clone(), format!("{selector:?}")), listing));
        while kept.listings.len() > LISTINGS || kept.records > LISTED {
            let Some((_, oldest)) = kept.listings.pop_front() else { break };
            kept.records -= oldest.len();
        }
    }

    /// Keeps what somebody knows of a tree, unless that is too much.
    pub(super) fn learn(&self, snapshot: &SnapshotName, files: impl FnOnce() -> FileRecords) {
        if self.learned(snapshot).is_some() {
            return;
        }
        let files = files();
        if files.len() > LEARNED {
            return;
        }
        let mut learned = self.learned.lock();
        learned.push_back((snapshot.clone(), Arc::new(files)));
        let mut count: usize = learned.iter().map(|(_, files)| files.len()).sum();
        while learned.len() > LEARNED_TREES || count > LEARNED {
            let Some((_, oldest)) = learned.pop_front() else { break };
            count -= oldest.len();
        }
    }

    pub(super) fn learned(&self, snapshot: &SnapshotName) -> Option<Arc<FileRecords>> {
        let learned = self.learned.lock();
        learned.iter().find(|(known, _)| known == snapshot).map(|(_, files)| Arc::clone(files))
    }

    pub(super) fn file(&self, key: &FileKey) -> Option<Digest> {
        self.files.lock().get(key, FILES)
    }

    pub(super) fn remember_file(&self, key: FileKey, digest: &Digest) {
        self.files.lock().put(key, digest.clone(), FILES);
    }
}

/// A bounded map that forgets what was not asked for lately: when the young generation is full, the old one goes.
struct Generations<K> {
    young: HashMap<K, Digest>,
    old: HashMap<K, Digest>,
}

impl<K> Default for Generations<K> {
    fn default() -> Self {
        Self { young: HashMap::new(), old: HashMap::new() }
    }
}

impl<K: Hash + Eq + Clone> Generations<K> {
    fn get(&mut self, key: &K, size: usize) -> Option<Digest> {
        if let Some(digest) = self.young.get(key) {
            return Some(digest.clone());
        }
        let digest = self.old.remove(key)?;
        self.put(key.clone(), digest.clone(), size);
        Some(digest)
    }

    fn put(&mut self, key: K, digest: Digest, size: usize) {
        if self.young.len() >= size {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_keeps_what_is_asked_for() {
        let mut generations = Generations::default();
        let digest = Digest::sha256_of("x");
        for key in 0..1000 {
            generations.put(key, digest.clone(), 10);
            assert!(generations.get(&0, 10).is_some(), "asked for after each");
            assert!(generations.young.len() + generations.old.len() <= 20);
        }
        assert!(generations.get(&1, 10).is_none());
    }
}
