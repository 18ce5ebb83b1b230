//! What is known already.
//!
//! Committed snapshots never change, so what a selector gives for one stays. A file is known by its inode and times; that is
//! safe for files of committed snapshots, whose inode can only come to mean another file after the snapshot was removed, and
//! that file then has a later time of change. Later by more than the clock's granularity: files that have changed just now
//! are not remembered.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, SystemTime},
};

use lapstrake_builder_llb::cache_key::Selector;
use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_store::SnapshotName;
use parking_lot::Mutex;
use rustix::fs::Stat;

/// Selections that are remembered, at least; some 300 bytes each.
const SELECTIONS: usize = 20_000;
/// Files that are remembered, at least; some 200 bytes each.
const FILES: usize = 200_000;

/// File times come from a clock that ticks every 10 ms at worst; this is far more.
const SETTLED: Duration = Duration::from_millis(500);

#[derive(Default)]
pub(super) struct Memory {
    selections: Mutex<Generations<(SnapshotName, String)>>,
    files: Mutex<Generations<FileKey>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FileKey {
    device: u64,
    inode: u64,
    size: i64,
    modified: (i64, u64),
    changed: (i64, u64),
}

impl FileKey {
    /// The key of a file; `None` when it was changed too short ago to be known by it.
    pub(super) fn of(stat: &Stat) -> Option<Self> {
        let seconds = u64::try_from(stat.st_ctime).ok()?;
        let changed =
            SystemTime::UNIX_EPOCH + Duration::new(seconds, u32::try_from(stat.st_ctime_nsec).ok()?);
        let age = SystemTime::now().duration_since(changed).ok()?;
        (age >= SETTLED).then_some(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size,
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        })
    }
}

impl Memory {
    pub(super) fn selection(&self, snapshot: &SnapshotName, selector: &Selector) -> Option<Digest> {
        self.selections.lock().get(&(snapshot.clone(), format!("{selector:?}")), SELECTIONS)
    }

    pub(super) fn remember_selection(&self, snapshot: &SnapshotName, selector: &Selector, digest: &Digest) {
        let key = (snapshot.clone(), format!("{selector:?}"));
        self.selections.lock().put(key, digest.clone(), SELECTIONS);
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
