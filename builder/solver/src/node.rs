//! One vertex as all builds share it: the stages from "who are you" to a result, each at most once at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures::future::{BoxFuture, join_all, try_join_all};
use lapstrake_builder_progress::{Fan, VertexHandle};
use lapstrake_layerstore_oci::Digest;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    CacheMap, CacheStore, InputKeys, KeyId, Link, Miss, MissCause, Op, OpContext, Resolved, SolveError,
    Types, flight::Flight, op::Scopes,
};

type Answer<T, X> = Result<T, SolveError<<X as Types>::Error>>;
type Shared<T, X> = Arc<Flight<T, SolveError<<X as Types>::Error>>>;

/// One answer for each output.
type ByOutput<T, X> = Mutex<BTreeMap<u32, Shared<T, X>>>;

/// One answer for each output and reach.
type BySearch<T, X> = Mutex<BTreeMap<(u32, Reach), Shared<T, X>>>;

/// What a search found, and whether there were any keys.
type Sought<X> = (Option<Resolved<<X as Types>::Value>>, bool);

/// What an op made, each output with the key it is saved under.
type Outputs<X> = Arc<Vec<(<X as Types>::Value, Option<KeyId>)>>;

/// Keys by which a result may be found, best first, and the keys of the inputs that led to them.
#[derive(Default)]
pub(crate) struct Found {
    keys: Vec<KeyId>,
    inputs: Vec<InputKeys>,
}

type Keys = Arc<Found>;

/// What an op needs before it runs, and the keys its result will be linked from.
pub(crate) struct Ready<X: Types> {
    values: Vec<X::Value>,
    keys: Vec<InputKeys>,
}

pub(crate) struct Node<X: Types> {
    pub(crate) digest: Digest,
    pub(crate) name: String,
    pub(crate) inputs: Vec<(Arc<Node<X>>, u32)>,
    pub(crate) ignore_cache: bool,
    pub(crate) op: Arc<dyn Op<X>>,
    pub(crate) caches: Caches<X::Value>,
    pub(crate) vertex: VertexHandle,
    pub(crate) fan: Fan,
    pub(crate) scopes: Arc<Scopes<X::Scope>>,
    pub(crate) stages: Stages<X>,
}

/// A cache, shared.
pub(crate) type Cache<V> = Arc<dyn CacheStore<V>>;

/// Where a node looks for results: the solver's own cache, and those that builds brought with them.
pub(crate) struct Caches<V> {
    pub(crate) own: Cache<V>,
    pub(crate) brought: Mutex<Vec<(u64, Cache<V>)>>,
}

/// Which caches a search asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reach {
    /// The own one. What a search would have to make for it, ends it: brought caches may know more.
    Own,
    /// The brought ones too, which are waited for.
    All,
}

impl<V> Caches<V> {
    /// Those within reach, the own first.
    fn within(&self, reach: Reach) -> Vec<Cache<V>> {
        match reach {
            Reach::Own => vec![Arc::clone(&self.own)],
            Reach::All => {
                let brought = self.brought.lock();
                std::iter::once(&self.own).chain(brought.iter().map(|(_, cache)| cache)).cloned().collect()
            }
        }
    }

    fn has_brought(&self) -> bool {
        !self.brought.lock().is_empty()
    }

    /// Waits until the brought ones can be asked.
    pub(crate) async fn ready(&self) {
        for cache in self.within(Reach::All) {
            cache.ready().await;
        }
    }
}

/// The stages' answers. Those that differ by output are kept by output.
pub(crate) struct Stages<X: Types> {
    cache_map: Shared<Arc<CacheMap>, X>,
    fast: BySearch<Keys, X>,
    full: BySearch<Keys, X>,
    content: Mutex<BTreeMap<usize, Shared<Digest, X>>>,
    ready: Shared<Arc<Ready<X>>, X>,
    exec: Shared<Outputs<X>, X>,
    resolved: ByOutput<Resolved<X::Value>, X>,
}

impl<X: Types> Default for Stages<X> {
    fn default() -> Self {
        Self {
            cache_map: Arc::default(),
            fast: Mutex::default(),
            full: Mutex::default(),
            content: Mutex::default(),
            ready: Arc::default(),
            exec: Arc::default(),
            resolved: Mutex::default(),
        }
    }
}

fn by<K: Ord, T: Default>(map: &Mutex<BTreeMap<K, Arc<T>>>, key: K) -> Arc<T> {
    Arc::clone(map.lock().entry(key).or_default())
}

/// Ends early with "canceled" when nobody waits any more. For work that may be dropped at any point.
async fn droppable<T, X: Types>(
    cancel: CancellationToken,
    work: impl Future<Output = Answer<T, X>>,
) -> Answer<T, X> {
    tokio::select! {
        () = cancel.cancelled() => Err(SolveError::Canceled),
        answer = work => answer,
    }
}

// The stages call each other through boxed futures that run in tasks of their own, so a deep graph costs no stack.
impl<X: Types> Node<X> {
    fn context(&self, cancel: CancellationToken) -> OpContext<X> {
        OpContext { vertex: self.vertex.clone(), cancel, scopes: Arc::clone(&self.scopes) }
    }

    fn failed(&self, error: X::Error) -> SolveError<X::Error> {
        self.vertex.fail(error.to_string());
        SolveError::Op { vertex: self.digest.clone(), name: self.name.clone(), source: Arc::new(error) }
    }

    fn lost(&self) -> SolveError<X::Error> {
        let error = SolveError::Lost { vertex: self.digest.clone(), name: self.name.clone() };
        self.vertex.fail(error.to_string());
        error
    }

    async fn shared<T, F, Work>(&self, flight: &Shared<T, X>, start: F) -> Answer<T, X>
    where
        T: Clone + Send + Sync + 'static,
        F: FnOnce(CancellationToken) -> Work,
        Work: Future<Output = Answer<T, X>> + Send + 'static,
    {
        flight.get(start).await.unwrap_or_else(|| Err(self.lost()))
    }

    /// What the op is for the cache.
    fn cache_map(self: &Arc<Self>) -> BoxFuture<'static, Answer<Arc<CacheMap>, X>> {
        let node = Arc::clone(self);
        Box::pin(async move {
            let work = |cancel: CancellationToken| {
                let node = Arc::clone(&node);
                droppable::<_, X>(cancel.clone(), async move {
                    let answer = node.op.cache_map(&node.context(cancel)).await;
                    // An op that had to look around has reported a start; that much of it is over.
                    node.vertex.pause();
                    let mut map = answer.map_err(|error| node.failed(error))?;
                    map.deps.resize(node.inputs.len(), crate::Dep::default());
                    Ok(Arc::new(map))
                })
            };
            node.shared(&node.stages.cache_map, work).await
        })
    }

    /// The keys that links lead to from every input; none where any input leads nowhere.
    fn follow(&self, map: &CacheMap, output: u32, inputs: &[InputKeys], reach: Reach) -> Vec<KeyId> {
        let mut found: Option<Vec<KeyId>> = None;
        for (input, keys) in inputs.iter().enumerate() {
            let reached = self.follow_one(map, output, input, keys, reach);
            found = Some(match found {
                None => reached,
                Some(before) => before.into_iter().filter(|key| reached.contains(key)).collect(),
            });
            if found.as_ref().is_some_and(Vec::is_empty) {
                break;
            }
        }
        found.unwrap_or_default()
    }

    fn follow_one(
        &self,
        map: &CacheMap,
        output: u32,
        input: usize,
        keys: &InputKeys,
        reach: Reach,
    ) -> Vec<KeyId> {
        let mut seen = BTreeSet::new();
        let mut reached = Vec::new();
        let caches = self.caches.within(reach);
        for (from, selector) in keys {
            let link = link(map, output, input, selector.clone());
            for cache in &caches {
                match cache.linked(from, &link) {
                    Ok(keys) => reached.extend(keys.into_iter().filter(|key| seen.insert(key.clone()))),
                    Err(error) => {
                        tracing::warn!(%error, vertex = %self.name, "cache lookup failed; taken as a miss");
                    }
                }
            }
        }
        reached
    }

    /// Keys by definition alone.
    fn fast_keys(self: &Arc<Self>, output: u32, reach: Reach) -> BoxFuture<'static, Answer<Keys, X>> {
        let node = Arc::clone(self);
        Box::pin(async move {
            let flight = by(&node.stages.fast, (output, reach));
            let work = |cancel| {
                let node = Arc::clone(&node);
                droppable::<_, X>(cancel, async move {
                    let map = node.cache_map().await?;
                    if map.ephemeral {
                        return Ok(Keys::default());
                    }
                    if node.inputs.is_empty() {
                        let keys = vec![KeyId::root(&map.digest, output)];
                        return Ok(Arc::new(Found { keys, inputs: Vec::new() }));
                    }
                    if node.ignore_cache {
                        return Ok(Keys::default());
                    }
                    let inputs = node.inputs.iter().map(|(input, output)| input.fast_keys(*output, reach));
                    let inputs = try_join_all(inputs).await?;
                    let inputs: Vec<InputKeys> = inputs
                        .iter()
                        .zip(&map.deps)
                        .map(|(found, dep)| with_selector(&found.keys, dep))
                        .collect();
                    let found = Found { keys: node.follow(&map, output, &inputs, reach), inputs };
                    Ok(Arc::new(node.adopt(&map, output, found).await))
                })
            };
            node.shared(&flight, work).await
        })
    }

    /// Keys by definition and, where that finds none, by the content of inputs.
    fn full_keys(self: &Arc<Self>, output: u32, reach: Reach) -> BoxFuture<'static, Answer<Keys, X>> {
        let node = Arc::clone(self);
        Box::pin(async move {
            let flight = by(&node.stages.full, (output, reach));
            let work = |cancel| {
                let node = Arc::clone(&node);
                droppable::<_, X>(cancel, async move {
                    let fast = node.fast_keys(output, reach).await?;
                    if node.inputs.is_empty() || node.ignore_cache || !fast.keys.is_empty() {
                        return Ok(fast);
                    }
                    node.search_by_content(output, reach).await.map(Arc::new)
                })
            };
            node.shared(&flight, work).await
        })
    }

    async fn search_by_content(self: &Arc<Self>, output: u32, reach: Reach) -> Answer<Found, X> {
        let map = self.cache_map().await?;
        // Keys of inputs may lead on although the inputs have no results any more. Those that count by definition only must lead somewhere, or
        // nothing will: look at them before anything is resolved.
        let by_definition = self.inputs.iter().zip(&map.deps).map(|((input, output), dep)| async move {
            Ok(with_selector(&input.full_keys(*output, reach).await?.keys, dep))
        });
        let mut inputs: Vec<InputKeys> = try_join_all(by_definition).await?;
        let keys = self.follow(&map, output, &inputs, reach);
        if !keys.is_empty() {
            return Ok(self.adopt(&map, output, Found { keys, inputs }).await);
        }
        for (input, dep) in map.deps.iter().enumerate() {
            if !dep.content && self.follow_one(&map, output, input, &inputs[input], reach).is_empty() {
                return Ok(Found::default());
            }
        }
        let by_content =
            (0..self.inputs.len()).filter(|input| map.deps[*input].content).map(|input| async move {
                let (node, output) = &self.inputs[input];
                // A client's directory is looked at in any case: caches that are brought have nothing of those.
                let resolved = if reach == Reach::All || node.cache_map().await?.ephemeral {
                    node.resolve(*output).await?
                } else {
                    match node.find(*output, reach).await?.0 {
                        Some(resolved) => resolved,
                        None => return Ok(None),
                    }
                };
                let content = self.content(input, resolved.value).await?;
                Ok(Some((input, resolved.keys, content)))
            });
        for found in try_join_all(by_content).await? {
            let Some((input, known, content)) = found else { return Ok(Found::default()) };
            let before: Vec<KeyId> = inputs[input].iter().map(|(key, _)| key.clone()).collect();
            let new: Vec<KeyId> = known.iter().filter(|key| !before.contains(key)).cloned().collect();
            inputs[input].extend(with_selector(&new, &map.deps[input]));
            inputs[input].push((KeyId::content(&content), None));
        }
        let found = Found { keys: self.follow(&map, output, &inputs, reach), inputs };
        Ok(self.adopt(&map, output, found).await)
    }

    fn content(self: &Arc<Self>, input: usize, value: X::Value) -> BoxFuture<'static, Answer<Digest, X>> {
        let node = Arc::clone(self);
        Box::pin(async move {
            let flight = by(&node.stages.content, input);
            let work = |cancel: CancellationToken| {
                let node = Arc::clone(&node);
                droppable::<_, X>(cancel.clone(), async move {
                    let cx = node.context(cancel);
                    node.op.content(&cx, input, value).await.map_err(|error| node.failed(error))
                })
            };
            node.shared(&flight, work).await
        })
    }

    /// All inputs, and all keys that the result will be linked from.
    fn ready(self: &Arc<Self>) -> BoxFuture<'static, Answer<Arc<Ready<X>>, X>> {
        let node = Arc::clone(self);
        Box::pin(async move {
            let work = |cancel| {
                let node = Arc::clone(&node);
                droppable::<_, X>(cancel, async move {
                    let map = node.cache_map().await?;
                    let inputs = (0..node.inputs.len()).map(|input| {
                        let (node, map) = (&node, &map);
                        async move {
                            let (child, output) = &node.inputs[input];
                            let resolved = child.resolve(*output).await?;
                            let mut keys = with_selector(&resolved.keys, &map.deps[input]);
                            if map.deps[input].content {
                                let content = node.content(input, resolved.value.clone()).await?;
                                keys.push((KeyId::content(&content), None));
                            }
                            Ok((resolved.value, keys))
                        }
                    });
                    let mut ready = Ready { values: Vec::new(), keys: Vec::new() };
                    for input in try_join_all(inputs).await? {
                        ready.values.push(input.0);
                        ready.keys.push(input.1);
                    }
                    Ok(Arc::new(ready))
                })
            };
            node.shared(&node.stages.ready, work).await
        })
    }

    /// Runs the op and saves what it made. `known` tells whether a cache knows a key for it.
    fn exec(
        self: &Arc<Self>,
        ready: Arc<Ready<X>>,
        output: u32,
        known: bool,
    ) -> BoxFuture<'static, Answer<Outputs<X>, X>> {
        let node = Arc::clone(self);
        Box::pin(async move {
            let work = |cancel: CancellationToken| {
                let node = Arc::clone(&node);
                // Not droppable: the op ends by itself when cancelled, and leaves nothing behind.
                async move {
                    let map = node.cache_map().await?;
                    node.vertex.start();
                    let cx = node.context(cancel.clone());
                    let cause = node.cause(&map, output, &ready.keys, known);
                    let miss = Miss { cause, map: &map, inputs: &ready.values, keys: &ready.keys };
                    tokio::select! {
                        () = node.op.missed(&cx, miss) => {}
                        () = cancel.cancelled() => {}
                    }
                    let outputs = node.op.exec(&cx, ready.values.clone()).await;
                    if cancel.is_cancelled() {
                        node.vertex.fail("context canceled");
                        return Err(SolveError::Canceled);
                    }
                    let outputs = outputs.map_err(|error| node.failed(error))?;
                    let saves = outputs.into_iter().zip(0..).map(|(value, output)| {
                        let (node, map, ready) = (&node, &map, &ready);
                        async move {
                            let key = node.save(map, output, &ready.keys, &value).await;
                            (value, key)
                        }
                    });
                    let saved = join_all(saves).await;
                    node.vertex.complete();
                    Ok(Arc::new(saved))
                }
            };
            node.shared(&node.stages.exec, work).await
        })
    }

    /// Why the op has to run.
    fn cause(&self, map: &CacheMap, output: u32, inputs: &[InputKeys], known: bool) -> MissCause {
        if self.ignore_cache {
            MissCause::NoCache
        } else if map.ephemeral {
            MissCause::Ephemeral
        } else if known {
            MissCause::Pruned
        } else {
            let dead_end = |input: &u32| {
                let input = *input as usize;
                self.follow_one(map, output, input, &inputs[input], Reach::All).is_empty()
            };
            MissCause::Unknown { inputs: (0..).take(inputs.len()).filter(dead_end).collect() }
        }
    }

    /// All keys that one output is known by, as far as this node was looked at; `inputs` are those of its inputs. Makes nothing.
    pub(crate) fn all_keys(&self, output: u32, inputs: &[Vec<KeyId>]) -> Vec<KeyId> {
        let Some(map) = self.stages.cache_map.done() else { return Vec::new() };
        if map.ephemeral {
            return Vec::new();
        }
        if self.inputs.is_empty() {
            return vec![KeyId::root(&map.digest, output)];
        }
        let resolved = self.stages.resolved.lock().get(&output).and_then(|flight| flight.done());
        let mut keys = resolved.map(|resolved| resolved.keys.to_vec()).unwrap_or_default();
        if !self.ignore_cache {
            let contents = self.stages.content.lock();
            let content = |input| contents.get(&input).and_then(|flight| flight.done());
            let keyed = |(input, keys): (usize, &Vec<KeyId>)| {
                let mut keyed = with_selector(keys, &map.deps[input]);
                keyed.extend(content(input).map(|content| (KeyId::content(&content), None)));
                keyed
            };
            let inputs: Vec<InputKeys> = inputs.iter().enumerate().map(keyed).collect();
            for key in self.follow(&map, output, &inputs, Reach::All) {
                if !keys.contains(&key) {
                    keys.push(key);
                }
            }
        }
        keys
    }

    async fn keep(&self, key: &KeyId, links: Vec<(KeyId, Link)>, value: Option<&X::Value>) {
        if let Err(error) = self.caches.own.save(key, links, value).await {
            tracing::warn!(%error, vertex = %self.name, "the result is not kept in the cache");
        }
    }

    /// Gives a node that only brought caches know a key in the own one, so that what follows from it can be kept there.
    async fn adopt(&self, map: &CacheMap, output: u32, mut found: Found) -> Found {
        if !found.keys.is_empty() && own_key(&found.keys).is_none() {
            let key = self.caches.own.fresh_key();
            self.keep(&key, links(map, output, &found.inputs), None).await;
            found.keys.push(key);
        }
        found
    }

    /// Saves one output; `None` when it has no key.
    async fn save(
        &self,
        map: &CacheMap,
        output: u32,
        inputs: &[InputKeys],
        value: &X::Value,
    ) -> Option<KeyId> {
        if map.ephemeral {
            return None;
        }
        let key = if self.inputs.is_empty() {
            KeyId::root(&map.digest, output)
        } else {
            // A result made in spite of the cache must not be found by what was made of an older one, so it gets a key of its own.
            let known =
                if self.ignore_cache { None } else { own_key(&self.follow(map, output, inputs, Reach::All)) };
            known.unwrap_or_else(|| self.caches.own.fresh_key())
        };
        self.keep(&key, links(map, output, inputs), Some(value)).await;
        Some(key)
    }

    /// A result: the best cached one, or one that is made now.
    pub(crate) fn resolve(
        self: &Arc<Self>,
        output: u32,
    ) -> BoxFuture<'static, Answer<Resolved<X::Value>, X>> {
        let node = Arc::clone(self);
        Box::pin(async move {
            let flight = by(&node.stages.resolved, output);
            let work = |cancel| {
                let node = Arc::clone(&node);
                droppable::<_, X>(cancel, async move { node.find_or_make(output).await })
            };
            node.shared(&flight, work).await
        })
    }

    /// Looks for a result by all keys, and tells whether there were any. With [`Reach::Own`], nothing is made for it but sources.
    fn find(self: &Arc<Self>, output: u32, reach: Reach) -> BoxFuture<'static, Answer<Sought<X>, X>> {
        let node = Arc::clone(self);
        Box::pin(async move {
            if node.ignore_cache {
                return Ok((None, false));
            }
            let fast = node.fast_keys(output, reach).await?;
            if let Some(found) = node.load_any(&fast.keys, reach).await {
                return Ok((Some(found), true));
            }
            let full = node.full_keys(output, reach).await?;
            let rest: Vec<KeyId> = full.keys.iter().filter(|key| !fast.keys.contains(key)).cloned().collect();
            Ok((node.load_any(&rest, reach).await, !full.keys.is_empty()))
        })
    }

    async fn find_or_make(self: &Arc<Self>, output: u32) -> Answer<Resolved<X::Value>, X> {
        // Brought caches may take their time: a hit here does not wait for them. Of sources they have nothing.
        if self.caches.has_brought() && !self.ignore_cache && !self.inputs.is_empty() {
            if let (Some(found), _) = self.find(output, Reach::Own).await? {
                return Ok(found);
            }
            self.caches.ready().await;
        }
        let reach = if self.inputs.is_empty() { Reach::Own } else { Reach::All };
        let (found, known) = self.find(output, reach).await?;
        if let Some(found) = found {
            return Ok(found);
        }
        // An op without inputs has a key whether a cache ever heard of it or not.
        let mut known = known && !self.inputs.is_empty();
        let ready = self.ready().await?;
        if !self.ignore_cache && !self.inputs.is_empty() {
            // The inputs are known for certain now, which may be more than their definitions told.
            let map = self.cache_map().await?;
            let keys = self.follow(&map, output, &ready.keys, Reach::All);
            if let Some(found) = self.load_any(&keys, Reach::All).await {
                return Ok(found);
            }
            known |= !keys.is_empty();
        }
        let outputs = self.exec(ready, output, known).await?;
        let (value, key) = outputs.get(output as usize).cloned().ok_or_else(|| SolveError::NoOutput {
            vertex: self.digest.clone(),
            name: self.name.clone(),
            output,
        })?;
        Ok(Resolved { value, keys: Arc::new(key.into_iter().collect()) })
    }

    /// The first result that any of the keys has. One that a brought cache gives is kept in the own one.
    async fn load_any(&self, keys: &[KeyId], reach: Reach) -> Option<Resolved<X::Value>> {
        let caches = self.caches.within(reach);
        for key in keys {
            for cache in &caches {
                let value = match cache.load(key).await {
                    Ok(Some(value)) => value,
                    Ok(None) => continue,
                    Err(error) => {
                        tracing::warn!(%error, vertex = %self.name, "cached result cannot be loaded; taken as a miss");
                        continue;
                    }
                };
                if !Arc::ptr_eq(cache, &self.caches.own)
                    && let Some(own) = own_key(keys)
                {
                    self.keep(&own, Vec::new(), Some(&value)).await;
                }
                self.vertex.cached();
                return Some(Resolved { value, keys: Arc::new(keys.to_vec()) });
            }
        }
        None
    }
}

/// The first key that is the own cache's.
fn own_key(keys: &[KeyId]) -> Option<KeyId> {
    keys.iter().find(|key| !key.is_foreign()).cloned()
}

/// The links that lead to an op's output. A foreign key means nothing to the own cache.
fn links(map: &CacheMap, output: u32, inputs: &[InputKeys]) -> Vec<(KeyId, Link)> {
    let of_input = |(input, keys): (usize, &InputKeys)| -> Vec<(KeyId, Link)> {
        let own = keys.iter().filter(|(from, _)| !from.is_foreign());
        own.map(|(from, selector)| (from.clone(), link(map, output, input, selector.clone()))).collect()
    };
    inputs.iter().enumerate().flat_map(of_input).collect()
}

fn link(map: &CacheMap, output: u32, input: usize, selector: Option<Digest>) -> Link {
    let input = u32::try_from(input).expect("a graph has fewer than 2^32 inputs");
    Link { input, output, digest: map.digest.clone(), selector }
}

fn with_selector(keys: &[KeyId], dep: &crate::Dep) -> InputKeys {
    keys.iter().map(|key| (key.clone(), dep.selector.clone())).collect()
}

impl<X: Types> Drop for Node<X> {
    /// Drops a chain of inputs one by one: a deep graph would overflow the stack.
    fn drop(&mut self) {
        let mut inputs = std::mem::take(&mut self.inputs);
        while let Some((input, _)) = inputs.pop() {
            if let Some(mut node) = Arc::into_inner(input) {
                inputs.append(&mut node.inputs);
            }
        }
    }
}
