//! Finding results by key: links are followed from the keys of inputs, and saved for those who come later.

use std::{collections::BTreeSet, sync::Arc};

use futures::future::{BoxFuture, try_join_all};
use lapstrake_layerstore_oci::Digest;
use parking_lot::Mutex;

use crate::{
    Alias, CacheMap, CacheStore, CacheStoreError, InputKeys, KeyId, Link, MissCause, Resolved, Types,
    node::{Answer, Node, by},
};

/// Keys by which a result may be found, best first, and the keys of the inputs that led to them.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) keys: Vec<KeyId>,
    inputs: Vec<InputKeys>,
}

pub(crate) type Keys = Arc<Found>;

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

    pub(crate) fn has_brought(&self) -> bool {
        !self.brought.lock().is_empty()
    }

    /// Whether the own one has a result of any of the keys.
    pub(crate) async fn has_any(&self, keys: &[KeyId]) -> bool {
        for key in keys.iter().filter(|key| !key.is_foreign()) {
            if matches!(self.own.load(key).await, Ok(Some(_))) {
                return true;
            }
        }
        false
    }

    /// Waits until the brought ones can be asked.
    pub(crate) async fn ready(&self) {
        for cache in self.within(Reach::All) {
            cache.ready().await;
        }
    }
}

impl<X: Types> Node<X> {
    /// Keys by definition alone.
    pub(crate) fn fast_keys(
        self: &Arc<Self>,
        output: u32,
        reach: Reach,
    ) -> BoxFuture<'static, Answer<Keys, X>> {
        self.stage(by(&self.stages.fast, (output, reach)), move |node, _| async move {
            let map = node.cache_map().await?;
            if map.ephemeral {
                return Ok(Keys::default());
            }
            if node.inputs.is_empty() {
                let mut keys = vec![KeyId::root(&map.digest, output)];
                let aliases = node.aliases(reach).iter();
                keys.extend(aliases.map(|alias| KeyId::root(&alias.name, output)));
                return Ok(Arc::new(Found { keys, inputs: Vec::new() }));
            }
            if node.ignore_cache {
                return Ok(Keys::default());
            }
            let inputs = node.inputs.iter().map(|(input, output)| input.fast_keys(*output, reach));
            let inputs = try_join_all(inputs).await?;
            let inputs: Vec<InputKeys> =
                inputs.iter().zip(&map.deps).map(|(found, dep)| with_selector(&found.keys, dep)).collect();
            let found = Found { keys: node.follow(&map, output, &inputs, reach), inputs };
            Ok(Arc::new(node.adopt(&map, output, found).await))
        })
    }

    /// Keys by definition and, where that finds none, by the content of inputs.
    pub(crate) fn full_keys(
        self: &Arc<Self>,
        output: u32,
        reach: Reach,
    ) -> BoxFuture<'static, Answer<Keys, X>> {
        self.stage(by(&self.stages.full, (output, reach)), move |node, _| async move {
            let fast = node.fast_keys(output, reach).await?;
            if node.inputs.is_empty() || node.ignore_cache || !fast.keys.is_empty() {
                return Ok(fast);
            }
            node.search_by_content(output, reach).await.map(Arc::new)
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
            return Ok(self.learn_from(&map, output, Found { keys, inputs }).await);
        }
        for (input, dep) in map.deps.iter().enumerate() {
            if !dep.content && self.follow_one(&map, output, input, &inputs[input], reach).is_empty() {
                return Ok(Found::default());
            }
        }
        // An input that is known already need not be looked at, nor made, if the others lead to the same result by their content.
        let (unknown, known): (Vec<usize>, Vec<usize>) = (0..self.inputs.len())
            .filter(|input| map.deps[*input].content)
            .partition(|input| self.follow_one(&map, output, *input, &inputs[*input], reach).is_empty());
        for which in [unknown, known] {
            let contents = which.into_iter().map(|input| self.content_of(input, reach));
            for found in try_join_all(contents).await? {
                let Some((input, keys, content)) = found else { return Ok(Found::default()) };
                let before: Vec<KeyId> = inputs[input].iter().map(|(key, _)| key.clone()).collect();
                let new: Vec<KeyId> = keys.iter().filter(|key| !before.contains(key)).cloned().collect();
                inputs[input].extend(with_selector(&new, &map.deps[input]));
                inputs[input].extend(self.content_keys(input, &content));
            }
            let keys = self.follow(&map, output, &inputs, reach);
            if !keys.is_empty() {
                return Ok(self.learn_from(&map, output, Found { keys, inputs }).await);
            }
        }
        Ok(Found { keys: Vec::new(), inputs })
    }

    /// The keys of an input's content.
    pub(crate) fn content_keys(&self, input: usize, content: &Digest) -> InputKeys {
        let other = self.op.other_content(input);
        std::iter::once(content).chain(&other).map(|digest| (KeyId::content(digest), None)).collect()
    }

    /// The keys of an input and the digest of its content; `None` if it would have to be made.
    async fn content_of(
        self: &Arc<Self>,
        input: usize,
        reach: Reach,
    ) -> Answer<Option<(usize, Arc<Vec<KeyId>>, Digest)>, X> {
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
    }

    /// The first result that any of the keys has. One that a brought cache gives is kept in the own one.
    pub(crate) async fn load_any(&self, keys: &[KeyId], reach: Reach) -> Option<Resolved<X::Value>> {
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

    /// The keys that links lead to from every input; none where any input leads nowhere.
    pub(crate) fn follow(
        &self,
        map: &CacheMap,
        output: u32,
        inputs: &[InputKeys],
        reach: Reach,
    ) -> Vec<KeyId> {
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
        let mut reach_on = |found: Result<Vec<KeyId>, CacheStoreError>| match found {
            Ok(keys) => reached.extend(keys.into_iter().filter(|key| seen.insert(key.clone()))),
            Err(error) => {
                tracing::warn!(%error, vertex = %self.name, "cache lookup failed; taken as a miss");
            }
        };
        let caches = self.caches.within(reach);
        for (from, selector) in keys {
            let link = link(map, output, input, selector.clone());
            for cache in &caches {
                reach_on(cache.linked(from, &link));
            }
            for alias in self.aliases(reach) {
                // A key of content has no selector by any name.
                let selector = selector.as_ref().and_then(|_| alias.selectors.get(input).cloned().flatten());
                let name = KeyId::root(&alias.name, output);
                for cache in caches.iter().filter(|cache| !Arc::ptr_eq(cache, &self.caches.own)) {
                    reach_on(cache.linked_as(from, &name, link.input, selector.as_ref()));
                }
            }
        }
        reached
    }

    /// What brought caches may know the op as.
    fn aliases(&self, reach: Reach) -> &[Alias] {
        match reach {
            Reach::All if self.caches.has_brought() => self.aliases.get_or_init(|| self.op.aliases()),
            Reach::Own | Reach::All => &[],
        }
    }

    /// Why the op has to run.
    pub(crate) fn cause(&self, map: &CacheMap, output: u32, inputs: &[InputKeys], known: bool) -> MissCause {
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
                keyed.extend(
                    content(input).into_iter().flat_map(|content| self.content_keys(input, &content)),
                );
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

    pub(crate) async fn keep(&self, key: &KeyId, links: Vec<(KeyId, Link)>, value: Option<&X::Value>) {
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

    /// Adopts what was found by more than the inputs' definitions, and lets links lead there from all their keys: the next search finds it by
    /// definition, without a look at any content.
    async fn learn_from(&self, map: &CacheMap, output: u32, found: Found) -> Found {
        self.learn(map, output, &found.keys, &found.inputs).await;
        self.adopt(map, output, found).await
    }

    /// Saves the links to `keys` that the own cache does not have yet.
    pub(crate) async fn learn(&self, map: &CacheMap, output: u32, keys: &[KeyId], inputs: &[InputKeys]) {
        for key in keys.iter().filter(|key| !key.is_foreign()) {
            let mut missing = links(map, output, inputs);
            missing.retain(|(from, link)| {
                let known = self.caches.own.linked(from, link);
                known.is_ok_and(|known| !known.contains(key))
            });
            if !missing.is_empty() {
                self.keep(key, missing, None).await;
            }
        }
    }

    /// Saves one output; the keys that it is known by, none for what is not to be found again.
    pub(crate) async fn save(
        &self,
        map: &CacheMap,
        output: u32,
        inputs: &[InputKeys],
        value: &X::Value,
    ) -> Vec<KeyId> {
        if map.ephemeral {
            return Vec::new();
        }
        // A result made in spite of the cache must not be found by what was made of an older one, so it gets a key of its own.
        let known = |reach| match self.ignore_cache || self.inputs.is_empty() {
            true => Vec::new(),
            false => self.follow(map, output, inputs, reach),
        };
        let key = own_key(&known(Reach::All)).unwrap_or_else(|| match self.inputs.is_empty() {
            true => KeyId::root(&map.digest, output),
            false => self.caches.own.fresh_key(),
        });
        self.keep(&key, links(map, output, inputs), Some(value)).await;
        // Builds without cache may have saved the same under keys of their own, and others have found it there. All of them are its keys, so
        // that what comes next is one work to all.
        let mut keys = vec![key];
        for other in known(Reach::Own) {
            if !keys.contains(&other) {
                keys.push(other);
            }
        }
        keys
    }
}

/// The first key that is the own cache's.
fn own_key(keys: &[KeyId]) -> Option<KeyId> {
    keys.iter().find(|key| !key.is_foreign()).cloned()
}

/// The links that lead to an op's output. A foreign key means nothing to the own cache.
pub(crate) fn links(map: &CacheMap, output: u32, inputs: &[InputKeys]) -> Vec<(KeyId, Link)> {
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

pub(crate) fn with_selector(keys: &[KeyId], dep: &crate::Dep) -> InputKeys {
    keys.iter().map(|key| (key.clone(), dep.selector.clone())).collect()
}
