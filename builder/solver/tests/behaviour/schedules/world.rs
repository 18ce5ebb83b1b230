//! Ops that stop at gates, a cache that takes its time, and what both tell of what they did.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use futures::future::BoxFuture;
use lapstrake_builder_solver::{
    CacheMap, CacheStore, CacheStoreError, Dep, KeyId, Link, MemoryCache, Op, OpContext,
};
use lapstrake_layerstore_oci::Digest;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{drawn::Kind, planned::Planned};
use crate::support::{Toy, ToyError};

/// An execution that failed.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) value: String,
    /// The clients that it looked at, if it did, and those of them that went away before it failed.
    pub(super) seen: Option<BTreeSet<u32>>,
    pub(super) gone: BTreeSet<u32>,
}

pub(super) struct Gate {
    pub(super) name: String,
    pub(super) open: oneshot::Sender<bool>,
}

#[derive(Default)]
pub(super) struct World {
    pub(super) lots: Mutex<u64>,
    pub(super) gates: Mutex<Vec<Gate>>,
    pub(super) working: AtomicUsize,
    /// Work that is being done and not cancelled, by the value that comes of it.
    pub(super) doing: Mutex<BTreeMap<String, Vec<CancellationToken>>>,
    pub(super) failed: Mutex<Vec<Failed>>,
    pub(super) gone: Mutex<BTreeSet<u32>>,
    pub(super) twice: Mutex<Vec<String>>,
    /// How many builds have begun, by the names of their vertices.
    pub(super) begun: Mutex<BTreeMap<String, usize>>,
    /// Executions, and looks at content, until now.
    pub(super) executed: AtomicUsize,
    pub(super) looked: AtomicUsize,
    /// Whether gates stand open.
    pub(super) is_open: AtomicBool,
}

impl World {
    pub(super) fn lot(&self, below: u64) -> u64 {
        let mut lots = self.lots.lock();
        *lots = lots.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*lots >> 33) % below
    }

    async fn give_way(&self) {
        for _ in 0..self.lot(3) {
            tokio::task::yield_now().await;
        }
    }
}

struct Working<'a>(&'a World);

impl<'a> Working<'a> {
    fn begin(world: &'a World) -> Self {
        world.working.fetch_add(1, Ordering::SeqCst);
        Self(world)
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.working.fetch_sub(1, Ordering::SeqCst);
    }
}

pub(super) struct ToyOp {
    pub(super) world: Arc<World>,
    pub(super) planned: Planned,
    /// How many builds had begun when it failed without having looked at any.
    pub(super) failed: Mutex<Option<usize>>,
}

impl ToyOp {
    fn done(&self, cancel: &CancellationToken) {
        if self.planned.once && !cancel.is_cancelled() {
            let mut doing = self.world.doing.lock();
            let now = doing.get_mut(&self.planned.value).expect("begun");
            now.retain(|cancel| !cancel.is_cancelled());
            now.pop();
        }
    }
}

impl Op<Toy> for ToyOp {
    fn cache_map<'a>(&'a self, _: &'a OpContext<Toy>) -> BoxFuture<'a, Result<CacheMap, ToyError>> {
        Box::pin(async {
            self.world.give_way().await;
            let dep = |input| Dep { selector: None, content: self.planned.content.contains(&input) };
            Ok(CacheMap {
                digest: Digest::sha256_of(self.planned.key.as_bytes()),
                deps: (0..self.planned.inputs.len()).map(dep).collect(),
                ephemeral: self.planned.kind == Kind::Context,
            })
        })
    }

    fn content<'a>(
        &'a self,
        _: &'a OpContext<Toy>,
        _: usize,
        value: String,
    ) -> BoxFuture<'a, Result<Digest, ToyError>> {
        Box::pin(async move {
            self.world.looked.fetch_add(1, Ordering::SeqCst);
            self.world.give_way().await;
            Ok(Digest::sha256_of(value.as_bytes()))
        })
    }

    fn exec<'a>(
        &'a self,
        cx: &'a OpContext<Toy>,
        inputs: Vec<String>,
    ) -> BoxFuture<'a, Result<Vec<String>, ToyError>> {
        Box::pin(async move {
            let _working = Working::begin(&self.world);
            self.world.executed.fetch_add(1, Ordering::SeqCst);
            let begun = || self.world.begun.lock()[&self.planned.name];
            if *self.failed.lock() == Some(begun()) {
                self.world.twice.lock().push(format!("{} after it failed", self.planned.name));
            }
            if self.planned.once {
                let mut doing = self.world.doing.lock();
                let now = doing.entry(self.planned.value.clone()).or_default();
                // One that is cancelled may not have noticed yet.
                now.retain(|cancel| !cancel.is_cancelled());
                now.push(cx.cancel.clone());
                if now.len() > 1 {
                    self.world.twice.lock().push(self.planned.name.clone());
                }
            }
            let mut present = BTreeSet::new();
            let mut look = || {
                let gone = self.world.gone.lock();
                let seen: BTreeSet<u32> = cx.scopes().iter().map(|client| client.number).collect();
                present.extend(seen.difference(&gone));
                seen
            };
            let mut seen = self.planned.looks.then(&mut look);
            let (open, opened) = oneshot::channel();
            if self.world.is_open.load(Ordering::SeqCst) {
                _ = open.send(false);
            } else {
                self.world.gates.lock().push(Gate { name: self.planned.name.clone(), open });
            }
            let fails = tokio::select! {
                biased;
                () = cx.cancel.cancelled() => {
                    self.done(&cx.cancel);
                    self.world.give_way().await;
                    return Err(ToyError("cancelled".to_owned()));
                }
                fails = opened => fails.expect("gates are opened"),
            };
            self.done(&cx.cancel);
            if let Some(seen) = &mut seen
                && self.world.lot(2) == 0
            {
                seen.extend(look());
            }
            if fails {
                let gone = self.world.gone.lock().intersection(&present).copied().collect();
                let value = self.planned.value.clone();
                if seen.is_none() {
                    *self.failed.lock() = Some(begun());
                }
                self.world.failed.lock().push(Failed { value, seen, gone });
                return Err(ToyError(self.planned.name.clone()));
            }
            let text = format!("{}({})", self.planned.yields, inputs.join(","));
            Ok(vec![Digest::sha256_of(text.as_bytes()).to_string()])
        })
    }
}

/// A cache that takes its time.
pub(super) struct Slow {
    pub(super) cache: MemoryCache<String>,
    pub(super) world: Arc<World>,
}

impl CacheStore<String> for Slow {
    fn fresh_key(&self) -> KeyId {
        self.cache.fresh_key()
    }

    fn linked(&self, from: &KeyId, link: &Link) -> Result<Vec<KeyId>, CacheStoreError> {
        self.cache.linked(from, link)
    }

    fn load<'a>(&'a self, key: &'a KeyId) -> BoxFuture<'a, Result<Option<String>, CacheStoreError>> {
        Box::pin(async {
            self.world.give_way().await;
            let found = self.cache.load(key).await;
            self.world.give_way().await;
            found
        })
    }

    fn save<'a>(
        &'a self,
        key: &'a KeyId,
        links: Vec<(KeyId, Link)>,
        value: Option<&'a String>,
    ) -> BoxFuture<'a, Result<(), CacheStoreError>> {
        Box::pin(async move {
            self.world.give_way().await;
            let saved = self.cache.save(key, links, value).await;
            self.world.give_way().await;
            saved
        })
    }
}
