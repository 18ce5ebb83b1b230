//! Pruning: forgetting entries, so that the collector can free what nobody else has.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use lapstrake_layerstore_store::{Resource, StoreError};

use crate::{BuildCache, CacheEntry, CacheError, RecordKind};

/// What to forget.
#[derive(Debug, Clone, Default)]
pub struct PruneRequest {
    /// Also entries that an image shares, and the daemon's own (`internal`, `frontend`).
    pub all: bool,
    /// Only entries that every filter lets through.
    pub filters: Vec<PruneFilter>,
    /// Only entries not used for this long.
    pub unused_for: Option<Duration>,
    /// Stop as soon as the cache is this small.
    pub bound: PruneBound,
}

/// When to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PruneBound {
    /// Bytes that may stay whatever else is said (`reserved-space`, formerly `keep-storage`); 0 keeps nothing.
    pub reserved: u64,
    /// Bytes that the cache may take at most; `None` for no such limit.
    pub max_used: Option<u64>,
}

/// One condition on an entry, in the words of `docker builder prune --filter`.
#[derive(Debug, Clone)]
pub enum PruneFilter {
    /// `id=…`
    Id(String),
    /// `parent=…` or `parents=…`
    Parent(String),
    /// `type=…`
    Kind(String),
    /// `description=…`: a part of it.
    Description(String),
    /// `inuse`
    InUse(bool),
    /// `mutable` and `immutable`
    Mutable(bool),
    /// `shared` and `private`
    Shared(bool),
}

impl PruneFilter {
    /// Reads `key=value`. `until` is not one of these: see [`PruneRequest::unused_for`].
    pub fn parse(key: &str, value: &str) -> Result<Self, CacheError> {
        let flag = |yes: bool| match value {
            "" | "true" | "1" => Ok(yes),
            "false" | "0" => Ok(!yes),
            _ => Err(CacheError::Filter {
                filter: format!("{key}={value}"),
                why: "the value is neither true nor false".to_owned(),
            }),
        };
        Ok(match key {
            "id" => Self::Id(value.to_owned()),
            "parent" | "parents" => Self::Parent(value.to_owned()),
            "type" => Self::Kind(value.to_owned()),
            "description" => Self::Description(value.to_owned()),
            "inuse" => Self::InUse(flag(true)?),
            "mutable" => Self::Mutable(flag(true)?),
            "immutable" => Self::Mutable(flag(false)?),
            "shared" => Self::Shared(flag(true)?),
            "private" => Self::Shared(flag(false)?),
            _ => {
                return Err(CacheError::Filter {
                    filter: format!("{key}={value}"),
                    why: "no such filter; there are id, parents, type, description, inuse, mutable, immutable, shared, private \
                          and until"
                        .to_owned(),
                });
            }
        })
    }

    fn allows(&self, entry: &CacheEntry) -> bool {
        match self {
            // A prefix will do: that is what is listed.
            Self::Id(id) => entry.id.starts_with(id.as_str()),
            Self::Parent(parent) => entry.parents.iter().any(|id| id.starts_with(parent.as_str())),
            Self::Kind(kind) => entry.kind.as_str() == kind,
            Self::Description(part) => entry.description.contains(part.as_str()),
            Self::InUse(wanted) => entry.in_use == *wanted,
            Self::Mutable(wanted) => entry.mutable == *wanted,
            Self::Shared(wanted) => entry.shared == *wanted,
        }
    }
}

/// What was forgotten.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// The entries, in the order they went.
    pub entries: Vec<CacheEntry>,
}

impl BuildCache {
    /// Forgets entries, least recently used first, children before parents. What is in use stays. Run the collector afterwards: it
    /// frees the trees that no image has, and tells the bytes.
    ///
    /// Blocks. One transaction: a crash leaves all or none forgotten.
    pub fn prune(&self, request: &PruneRequest) -> Result<Pruned, CacheError> {
        let entries = self.usage()?;
        let doomed = choose(&entries, request, SystemTime::now());
        // Nothing may begin to use them between the question and the answer.
        let collecting = self.stores.leases.collecting();
        let mut pruned = Pruned::default();
        self.metadata.write(|txn| {
            let failed = "forget cache entries";
            // This may run twice, when the disk is full at first.
            pruned.entries.clear();
            for &entry in &doomed {
                let resource = if entry.mutable {
                    Resource::Key(lapstrake_layerstore_store::SnapshotKey::new(entry.id.as_str()))
                } else {
                    Resource::Snapshot(lapstrake_layerstore_store::SnapshotName::new(entry.id.as_str()))
                };
                if self.stores.leases.held(&resource) {
                    continue;
                }
                txn.prepare_cached("DELETE FROM cache_entry WHERE snapshot = ?1 OR key = ?1")
                    .and_then(|mut statement| statement.execute([entry.id.as_str()]))
                    .map_err(StoreError::metadata(failed))?;
                pruned.entries.push(entry.clone());
            }
            forget_links(txn)
        })?;
        drop(collecting);
        Ok(pruned)
    }
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

/// What may go, in order. Pure.
fn choose<'a>(entries: &'a [CacheEntry], request: &PruneRequest, now: SystemTime) -> Vec<&'a CacheEntry> {
    let may_go = |entry: &CacheEntry| {
        let internal = matches!(entry.kind, RecordKind::Internal | RecordKind::Frontend);
        let fresh = request.unused_for.is_some_and(|age| {
            let used = entry.last_used.unwrap_or(entry.created);
            now.duration_since(used).unwrap_or_default() < age
        });
        !entry.in_use
            && !fresh
            && (request.all || !(entry.shared || internal))
            && request.filters.iter().all(|filter| filter.allows(entry))
    };
    let mut children: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for entry in entries {
        for parent in &entry.parents {
            children.entry(parent).or_default().insert(&entry.id);
        }
    }
    let mut total: u64 = entries.iter().filter(|entry| !entry.shared).map(|entry| entry.size).sum();
    let limit = request.bound.max_used.unwrap_or(0).max(request.bound.reserved);
    let mut candidates: Vec<&CacheEntry> = entries.iter().filter(|entry| may_go(entry)).collect();
    candidates.sort_by_key(|entry| (entry.last_used.unwrap_or(entry.created), entry.uses));
    let mut doomed = Vec::new();
    // Each round takes what has no children left; a parent's turn comes with the last of its children.
    loop {
        let before = candidates.len();
        let mut rest = Vec::with_capacity(before);
        for entry in candidates {
            let bounded = request.bound != PruneBound::default();
            if bounded && total <= limit {
                return doomed;
            }
            if children.get(entry.id.as_str()).is_some_and(|children| !children.is_empty()) {
                rest.push(entry);
                continue;
            }
            for parent in &entry.parents {
                if let Some(siblings) = children.get_mut(parent.as_str()) {
                    siblings.remove(entry.id.as_str());
                }
            }
            if !entry.shared {
                total = total.saturating_sub(entry.size);
            }
            doomed.push(entry);
        }
        if rest.len() == before {
            return doomed;
        }
        candidates = rest;
    }
}
