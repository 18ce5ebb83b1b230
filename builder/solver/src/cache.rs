//! Keys, links and results.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::future::BoxFuture;
use lapstrake_layerstore_oci::Digest;
use parking_lot::Mutex;

const FOREIGN: &str = "foreign:";

/// Identifies a cache key within one store.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(Arc<str>);

impl KeyId {
    /// The key of an op without inputs, in BuildKit's form: the digest of `<digest>@<output>`. The name is a digest, but for what other builders
    /// called so ([`Alias`](crate::Alias)).
    pub fn root(name: impl fmt::Display, output: u32) -> Self {
        Self(Digest::sha256_of(format!("{name}@{output}").as_bytes()).as_str().into())
    }

    /// The key of content, whatever made it: BuildKit's output number for it is -1.
    pub fn content(digest: &Digest) -> Self {
        Self(Digest::sha256_of(format!("{digest}@-1").as_bytes()).as_str().into())
    }

    /// A key read back from a store, or made by one.
    pub fn new(id: impl Into<Arc<str>>) -> Self {
        Self(id.into())
    }

    /// A key of a cache that a build brought with it: it means nothing to any other. `id` is unique among all such caches.
    pub fn foreign(id: impl fmt::Display) -> Self {
        Self(format!("{FOREIGN}{id}").into())
    }

    /// Whether the key is one of [`Self::foreign`].
    pub fn is_foreign(&self) -> bool {
        self.0.starts_with(FOREIGN)
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({})", self.0)
    }
}

/// How a key of an input leads to a key of an op.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Link {
    /// The input's number.
    pub input: u32,
    /// The op's output.
    pub output: u32,
    /// The digest of the op's cache map.
    pub digest: Digest,
    /// What part of the input counts.
    pub selector: Option<Digest>,
}

/// Why a cache could not answer. The solver goes on without it.
pub type CacheStoreError = Box<dyn std::error::Error + Send + Sync>;

/// Keeps links and results. Methods are called from many tasks at once; those that are not futures must be quick.
pub trait CacheStore<V>: Send + Sync {
    /// Waits until the cache can be asked. One that is still being fetched knows nothing before; it ends the wait when that fails.
    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    /// A fresh key, that nothing leads to yet.
    fn fresh_key(&self) -> KeyId;

    /// The keys that `link` leads to from `from`, newest first.
    fn linked(&self, from: &KeyId, link: &Link) -> Result<Vec<KeyId>, CacheStoreError>;

    /// The same for an op that other builders call otherwise; `name` is the key that it would have without inputs. Asked of caches that a build
    /// brings with it.
    fn linked_as(
        &self,
        from: &KeyId,
        name: &KeyId,
        input: u32,
        selector: Option<&Digest>,
    ) -> Result<Vec<KeyId>, CacheStoreError> {
        let _ = (from, name, input, selector);
        Ok(Vec::new())
    }

    /// A result of the key that can still be used, kept alive by the returned value; the newest where there are several.
    fn load<'a>(&'a self, key: &'a KeyId) -> BoxFuture<'a, Result<Option<V>, CacheStoreError>>;

    /// Saves a result, if there is one, under `key`, together with links that lead there, as one change.
    fn save<'a>(
        &'a self,
        key: &'a KeyId,
        links: Vec<(KeyId, Link)>,
        value: Option<&'a V>,
    ) -> BoxFuture<'a, Result<(), CacheStoreError>>;
}

/// A cache in memory, for tests.
pub struct MemoryCache<V> {
    next: AtomicU64,
    state: Mutex<MemoryState<V>>,
}

struct MemoryState<V> {
    links: BTreeMap<(KeyId, Link), BTreeSet<KeyId>>,
    results: BTreeMap<KeyId, V>,
}

impl<V> Default for MemoryCache<V> {
    fn default() -> Self {
        Self {
            next: AtomicU64::new(0),
            state: Mutex::new(MemoryState { links: BTreeMap::new(), results: BTreeMap::new() }),
        }
    }
}

impl<V> MemoryCache<V> {
    /// Forgets the results that `keep` does not want; links stay, as after a prune.
    pub fn retain(&self, mut keep: impl FnMut(&V) -> bool) {
        self.state.lock().results.retain(|_, value| keep(value));
    }
}

impl<V: Clone + Send + Sync> CacheStore<V> for MemoryCache<V> {
    fn fresh_key(&self) -> KeyId {
        // Later keys sort first, so that `linked` is newest first.
        KeyId::new(format!("key-{:016x}", u64::MAX - self.next.fetch_add(1, Ordering::Relaxed)))
    }

    fn linked(&self, from: &KeyId, link: &Link) -> Result<Vec<KeyId>, CacheStoreError> {
        let state = self.state.lock();
        Ok(state.links.get(&(from.clone(), link.clone())).into_iter().flatten().cloned().collect())
    }

    fn load<'a>(&'a self, key: &'a KeyId) -> BoxFuture<'a, Result<Option<V>, CacheStoreError>> {
        Box::pin(async { Ok(self.state.lock().results.get(key).cloned()) })
    }

    fn save<'a>(
        &'a self,
        key: &'a KeyId,
        links: Vec<(KeyId, Link)>,
        value: Option<&'a V>,
    ) -> BoxFuture<'a, Result<(), CacheStoreError>> {
        Box::pin(async move {
            let mut state = self.state.lock();
            for (from, link) in links {
                state.links.entry((from, link)).or_default().insert(key.clone());
            }
            if let Some(value) = value {
                state.results.insert(key.clone(), value.clone());
            }
            Ok(())
        })
    }
}
