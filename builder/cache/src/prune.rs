//! Pruning: forgetting entries, so that the collector can free what nobody else has.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet},
    path::Path,
    time::{Duration, SystemTime},
};

use lapstrake_layerstore_store::{Resource, SnapshotKey, SnapshotName, StoreError};

use crate::{BuildCache, CacheEntry, CacheError, EntryFilter, RecordKind};

/// So many results that are the empty tree stay, unless everything goes. They take no more than their rows.
const EMPTY_RESULTS: u32 = 1000;

/// What to forget.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PruneRequest {
    /// Also entries that an image shares, and the daemon's own (`internal`, `frontend`).
    pub all: bool,
    /// Only these.
    pub filter: EntryFilter,
    /// Only entries not used for this long.
    pub unused_for: Option<Duration>,
    /// When to stop.
    pub bound: PruneBound,
}

/// When to stop, in bytes; 0 is no bound. Without any bound, nothing that may go stays.
///
/// The cache is pruned down to `max_used`, and further where less than `min_free` of the disk is free, but never below `reserved`. Where only
/// `reserved` is given, it is pruned down to that (`docker builder prune --keep-storage`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PruneBound {
    /// What may stay whatever else is said (`reserved-space`, formerly `keep-storage`).
    pub reserved: u64,
    /// What the cache may take at most.
    pub max_used: u64,
    /// What of the disk is to be free.
    pub min_free: u64,
}

impl PruneRequest {
    /// Whether it leaves nothing that may go.
    fn is_everything(&self) -> bool {
        self.filter == EntryFilter::default()
            && self.unused_for.is_none()
            && self.bound == PruneBound::default()
    }
}

impl PruneBound {
    /// How large a cache of `total` bytes may stay on a disk with `free` bytes; `None` for no bound.
    ///
    /// As BuildKit's `calculateKeepBytes`, but that a disk with enough free space is no reason to remove anything.
    fn keep(self, total: u64, free: u64) -> Option<u64> {
        if self == Self::default() {
            return None;
        }
        let used = (self.max_used > 0).then_some(self.max_used);
        let missing = self.min_free.saturating_sub(free);
        let keep = match used {
            _ if missing > 0 => used.unwrap_or(u64::MAX).min(total.saturating_sub(missing)),
            Some(used) => used,
            None if self.min_free > 0 => total,
            None => 0,
        };
        Some(keep.max(self.reserved))
    }
}

/// The file system that a store is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Its size in bytes.
    pub total: u64,
    /// Free bytes, those that are reserved for root among them.
    pub free: u64,
}

impl Disk {
    /// Asks the file system that `path` is on.
    pub fn of(path: &Path) -> Result<Self, CacheError> {
        let disk = rustix::fs::statvfs(path)
            .map_err(|errno| StoreError::io("find the free space of", path)(errno.into()))?;
        let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
        Ok(Self { total: bytes(disk.f_blocks), free: bytes(disk.f_bfree) })
    }
}

/// What was forgotten.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// The entries, in the order they went.
    pub entries: Vec<CacheEntry>,
}

impl BuildCache {
    /// Forgets entries, least recently used first, children before parents. What is in use stays. Run the collector afterwards (best as
    /// [`collect_after`](lapstrake_layerstore_store::Collector::collect_after)): it frees the trees that no image has, and tells the bytes.
    ///
    /// Blocks. One transaction: a crash leaves all or none forgotten.
    pub fn prune(&self, request: &PruneRequest) -> Result<Pruned, CacheError> {
        self.forget(std::slice::from_ref(request))
    }

    /// The disk that the cache is on.
    pub fn disk(&self) -> Result<Disk, CacheError> {
        Disk::of(self.metadata.path())
    }

    pub(crate) fn forget(&self, requests: &[PruneRequest]) -> Result<Pruned, CacheError> {
        let entries = self.usage()?;
        let is_bounded = requests.iter().any(|request| request.bound.min_free > 0);
        let free = if is_bounded { self.disk()?.free } else { 0 };
        let doomed = choose(&entries, requests, free, SystemTime::now());
        let mut pruned = Pruned::default();
        let kept = if requests.iter().any(PruneRequest::is_everything) { 0 } else { EMPTY_RESULTS };
        // What a crash leaves, the next one finds, as with the links below.
        let emptied = self.metadata.write_lazily(|txn| forget_empty_results(txn, kept))?;
        if doomed.is_empty() {
            if emptied > 0 {
                let _change = self.known_links.change();
                self.metadata.write_lazily(forget_links)?;
            }
            return Ok(pruned);
        }
        // Nothing may begin to use them between the question and the answer.
        let collecting = self.stores.leases.collecting();
        self.metadata.write(|txn| {
            let failed = "forget cache entries";
            // This may run twice, when the disk is full at first.
            pruned.entries.clear();
            let mut spared: HashSet<&str> = HashSet::new();
            for &entry in &doomed {
                // Taken since they were listed. A parent of what stays is of no use gone.
                if spared.contains(entry.id.as_str()) || self.stores.leases.held(&resource(entry)) {
                    spared.extend(entry.parents.iter().map(String::as_str));
                    continue;
                }
                txn.prepare_cached("DELETE FROM cache_entry WHERE snapshot = ?1 OR key = ?1")
                    .and_then(|mut statement| statement.execute([entry.id.as_str()]))
                    .map_err(StoreError::metadata(failed))?;
                pruned.entries.push(entry.clone());
            }
            Ok(())
        })?;
        for entry in pruned.entries.iter().filter(|entry| entry.mutable) {
            self.stores.leases.abandon(SnapshotKey::new(entry.id.as_str()));
        }
        drop(collecting);
        if !pruned.entries.is_empty() {
            // On its own, because it looks at all links: nobody who looks something up waits for it. What a crash leaves, the next one finds.
            let _change = self.known_links.change();
            self.metadata.write_lazily(forget_links)?;
        }
        Ok(pruned)
    }
}

fn resource(entry: &CacheEntry) -> Resource {
    if entry.mutable {
        Resource::Key(SnapshotKey::new(entry.id.as_str()))
    } else {
        Resource::Snapshot(SnapshotName::new(entry.id.as_str()))
    }
}

/// Forgets results that are the empty tree, but for the newest `kept`; tells how many. They have no entry that they could go with.
fn forget_empty_results(txn: &rusqlite::Transaction<'_>, kept: u32) -> Result<usize, StoreError> {
    txn.execute(
        "DELETE FROM cache_result WHERE snapshot IS NULL AND seq NOT IN
             (SELECT seq FROM cache_result WHERE snapshot IS NULL ORDER BY seq DESC LIMIT ?1)",
        [kept],
    )
    .map_err(StoreError::metadata("forget cached results"))
}

/// Links go when no result can be reached through them any more.
fn forget_links(txn: &rusqlite::Transaction<'_>) -> Result<(), StoreError> {
    txn.execute_batch(
        "WITH RECURSIVE useful (key) AS (
             SELECT key FROM cache_result
             UNION
             SELECT source FROM cache_link JOIN useful ON target = useful.key
         )
         DELETE FROM cache_link WHERE target NOT IN (SELECT key FROM useful)",
    )
    .map_err(StoreError::metadata("forget cache links"))
}

/// What may go, in order, when one request after the other is done on a disk with `free` bytes. Pure.
fn choose<'a>(
    entries: &'a [CacheEntry],
    requests: &[PruneRequest],
    free: u64,
    now: SystemTime,
) -> Vec<&'a CacheEntry> {
    let mut standing = Standing::new(entries, free);
    for request in requests {
        standing.prune(request, now);
    }
    standing.doomed.into_iter().map(|index| &entries[index]).collect()
}

/// What stands while entries are chosen.
struct Standing<'a> {
    entries: &'a [CacheEntry],
    index: HashMap<&'a str, usize>,
    // How many entries have each as a parent.
    children: Vec<usize>,
    gone: Vec<bool>,
    doomed: Vec<usize>,
    // Bytes of entries that no image shares: those that go when the entry goes.
    total: u64,
    free: u64,
}

impl<'a> Standing<'a> {
    fn new(entries: &'a [CacheEntry], free: u64) -> Self {
        let index: HashMap<&str, usize> =
            entries.iter().enumerate().map(|(index, entry)| (entry.id.as_str(), index)).collect();
        let mut children = vec![0; entries.len()];
        for parent in entries.iter().flat_map(|entry| &entry.parents) {
            if let Some(&parent) = index.get(parent.as_str()) {
                children[parent] += 1;
            }
        }
        let total = entries.iter().filter(|entry| !entry.shared).map(|entry| entry.size).sum();
        Self { entries, index, children, gone: vec![false; entries.len()], doomed: Vec::new(), total, free }
    }

    fn prune(&mut self, request: &PruneRequest, now: SystemTime) {
        let keep = request.bound.keep(self.total, self.free);
        // A parent's turn comes with the last of its children.
        let mut turns: BinaryHeap<_> =
            (0..self.entries.len()).filter_map(|index| self.turn(index, request, now)).collect();
        while keep.is_none_or(|keep| self.total > keep)
            && let Some(Reverse((_, _, index))) = turns.pop()
        {
            let entry = &self.entries[index];
            self.gone[index] = true;
            self.doomed.push(index);
            if !entry.shared {
                self.total = self.total.saturating_sub(entry.size);
                self.free = self.free.saturating_add(entry.size);
            }
            for parent in &entry.parents {
                if let Some(&parent) = self.index.get(parent.as_str()) {
                    self.children[parent] -= 1;
                    turns.extend(self.turn(parent, request, now));
                }
            }
        }
    }

    /// When an entry's turn is, if it may go now.
    fn turn(
        &self,
        index: usize,
        request: &PruneRequest,
        now: SystemTime,
    ) -> Option<Reverse<(SystemTime, u64, usize)>> {
        let entry = &self.entries[index];
        let internal = matches!(entry.kind, RecordKind::Internal | RecordKind::Frontend);
        let used = entry.last_used.unwrap_or(entry.created);
        let is_fresh =
            request.unused_for.is_some_and(|age| now.duration_since(used).unwrap_or_default() < age);
        let may_go = !self.gone[index]
            && self.children[index] == 0
            && !entry.in_use
            && !is_fresh
            && (request.all || !(entry.shared || internal))
            && request.filter.matches(entry);
        may_go.then_some(Reverse((used, entry.uses, index)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + 1000 * DAY
    }

    /// An entry that was last used some days ago.
    fn entry(id: &str, parents: &[&str], size: u64, days: u32) -> CacheEntry {
        CacheEntry {
            id: id.to_owned(),
            parents: parents.iter().map(|parent| (*parent).to_owned()).collect(),
            kind: RecordKind::Regular,
            description: String::new(),
            in_use: false,
            shared: false,
            mutable: false,
            size,
            created: SystemTime::UNIX_EPOCH,
            last_used: Some(now() - days * DAY),
            uses: 1,
        }
    }

    fn chosen(entries: &[CacheEntry], requests: &[PruneRequest], free: u64) -> String {
        choose(entries, requests, free, now())
            .iter()
            .map(|entry| entry.id.as_str())
            .collect::<Vec<_>>()
            .join(" ")
    }

    fn bounded(reserved: u64, max_used: u64, min_free: u64) -> PruneRequest {
        PruneRequest { bound: PruneBound { reserved, max_used, min_free }, ..PruneRequest::default() }
    }

    #[test]
    fn the_least_recently_used_go_first_and_children_before_parents() {
        let entries = [
            entry("base", &[], 10, 9),
            entry("old", &["base"], 10, 5),
            entry("new", &["base"], 10, 1),
            entry("alone", &[], 10, 3),
        ];
        assert_eq!(chosen(&entries, &[PruneRequest::default()], 0), "old alone new base");
        // An old chain goes whole before anything of a new one.
        let chains = [
            entry("a", &[], 10, 9),
            entry("b", &["a"], 10, 8),
            entry("x", &[], 10, 9),
            entry("y", &["x"], 10, 1),
        ];
        assert_eq!(chosen(&chains, &[PruneRequest::default()], 0), "b a y x");
        assert_eq!(chosen(&chains, &[bounded(0, 20, 0)], 0), "b a");
    }

    #[test]
    fn what_is_in_use_stays_and_so_do_its_parents() {
        let mut entries =
            [entry("base", &[], 10, 9), entry("step", &["base"], 10, 8), entry("free", &[], 10, 1)];
        entries[1].in_use = true;
        assert_eq!(chosen(&entries, &[PruneRequest { all: true, ..PruneRequest::default() }], 0), "free");
    }

    #[test]
    fn what_an_image_shares_goes_only_with_all_and_counts_for_nothing() {
        let mut entries = [entry("a", &[], 10, 9), entry("b", &[], 10, 8), entry("c", &[], 10, 1)];
        entries[0].shared = true;
        entries[1].kind = RecordKind::Internal;
        assert_eq!(chosen(&entries, &[PruneRequest::default()], 0), "c");
        assert_eq!(chosen(&entries, &[PruneRequest { all: true, ..PruneRequest::default() }], 0), "a b c");
        let all = PruneRequest { all: true, ..bounded(0, 15, 0) };
        assert_eq!(chosen(&entries, &[all], 0), "a b", "20 bytes are the cache's own");
    }

    #[test]
    fn bounds_are_buildkits() {
        let keep = |reserved, max_used, min_free, total, free| {
            PruneBound { reserved, max_used, min_free }.keep(total, free)
        };
        assert_eq!(keep(0, 0, 0, 100, 0), None);
        assert_eq!(keep(30, 0, 0, 100, 0), Some(30), "what may be kept is what is pruned down to");
        assert_eq!(keep(0, 60, 0, 100, 0), Some(60));
        assert_eq!(keep(80, 60, 0, 100, 0), Some(80), "reserved counts more");
        assert_eq!(keep(0, 0, 50, 100, 50), Some(100), "enough is free");
        assert_eq!(keep(0, 0, 50, 100, 20), Some(70));
        assert_eq!(keep(0, 60, 50, 100, 20), Some(60));
        assert_eq!(keep(0, 90, 50, 100, 20), Some(70));
        assert_eq!(keep(20, 0, 500, 100, 0), Some(20), "never below what is reserved");
        assert_eq!(keep(0, 0, 500, 100, 0), Some(0));
    }

    #[test]
    fn a_bound_stops_as_soon_as_it_is_met() {
        let entries = [entry("a", &[], 10, 3), entry("b", &[], 10, 2), entry("c", &[], 10, 1)];
        assert_eq!(chosen(&entries, &[bounded(30, 0, 0)], 0), "");
        assert_eq!(chosen(&entries, &[bounded(29, 0, 0)], 0), "a");
        assert_eq!(chosen(&entries, &[bounded(0, 12, 0)], 0), "a b");
        assert_eq!(chosen(&entries, &[bounded(0, 0, 20)], 5), "a b", "until the disk has enough");
    }

    #[test]
    fn each_rule_sees_what_those_before_it_left() {
        let mut entries = [
            entry("ctx", &[], 10, 3),
            entry("a", &[], 10, 90),
            entry("b", &[], 10, 4),
            entry("c", &[], 10, 1),
        ];
        entries[0].kind = RecordKind::SourceLocal;
        let temporary = PruneRequest {
            filter: EntryFilter::parse(&["type==source.local", "type==exec.cachemount"]).unwrap(),
            unused_for: Some(2 * DAY),
            ..bounded(0, 5, 0)
        };
        let stale = PruneRequest { unused_for: Some(60 * DAY), ..bounded(0, 20, 0) };
        let rest = bounded(0, 20, 0);
        assert_eq!(chosen(&entries, &[temporary.clone(), stale.clone(), rest.clone()], 0), "ctx a");
        assert_eq!(chosen(&entries, &[stale, rest], 0), "a b");
        // Freed by the first, the space is there for the second.
        assert_eq!(chosen(&entries, &[temporary, bounded(0, 0, 10)], 0), "ctx");
    }

    #[test]
    fn freshness_is_by_use_or_else_by_birth() {
        let mut entries = [entry("used", &[], 10, 1), entry("never", &[], 10, 1)];
        entries[1].last_used = None;
        let request = PruneRequest { unused_for: Some(2 * DAY), ..PruneRequest::default() };
        assert_eq!(chosen(&entries, &[request], 0), "never");
    }
}
