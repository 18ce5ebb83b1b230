//! One vertex as all builds share it: the stages from "who are you" to a result, each at most once at a time.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock, atomic::AtomicU32},
};

use futures::future::{BoxFuture, try_join_all};
use lapstrake_builder_progress::{Fan, VertexHandle};
use lapstrake_layerstore_oci::Digest;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    Alias, CacheMap, InputKeys, KeyId, Op, OpContext, Resolved, SolveError, Types,
    flight::Flight,
    keys::{Caches, Keys, Reach, with_selector},
    run::{Outputs, RunEnd, Runs},
    scopes::{Blame, Scopes, Witness},
    solver::Nodes,
};

/// Why a stage has no answer, and whose fault that may be.
#[derive(Debug)]
pub(crate) struct Failure<E: std::error::Error + 'static> {
    pub(crate) error: SolveError<E>,
    /// Of an op that looked at the builds it works for.
    pub(crate) blame: Option<Arc<Blame>>,
}

impl<E: std::error::Error + 'static> Clone for Failure<E> {
    fn clone(&self) -> Self {
        Self { error: self.error.clone(), blame: self.blame.clone() }
    }
}

impl<E: std::error::Error + 'static> Failure<E> {
    /// A failure that has nothing to do with the builds.
    pub(crate) fn of(error: SolveError<E>) -> Self {
        Self { error, blame: None }
    }
}

pub(crate) type Answer<T, X> = Result<T, Failure<<X as Types>::Error>>;
type Shared<T, X> = Arc<Flight<T, Failure<<X as Types>::Error>>>;

/// One answer for each output.
type ByOutput<T, X> = Mutex<BTreeMap<u32, Shared<T, X>>>;

/// One answer for each output and reach.
type BySearch<T, X> = Mutex<BTreeMap<(u32, Reach), Shared<T, X>>>;

/// What a search found, and whether there were any keys.
type Sought<X> = (Option<Resolved<<X as Types>::Value>>, bool);

/// What an op needs before it runs, and the keys its result will be linked from.
pub(crate) struct Ready<X: Types> {
    pub(crate) values: Vec<X::Value>,
    pub(crate) keys: Vec<InputKeys>,
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
    pub(crate) scopes: Arc<Scopes<X>>,
    pub(crate) stages: Stages<X>,
    /// What brought caches may know the op as; asked when first needed.
    pub(crate) aliases: OnceLock<Vec<Alias>>,
    /// What runs now, of all nodes.
    pub(crate) runs: Arc<Runs<X>>,
    /// Runs of other nodes that this one waited for in vain.
    pub(crate) let_down: AtomicU32,
    /// Why the op failed, for the builds that had the node then: it is not run again for them. One that comes later begins afresh.
    pub(crate) failure: Mutex<Option<Failure<X::Error>>>,
    /// Where builds find the node, and by what.
    pub(crate) place: (Arc<Nodes<X>>, Digest),
}

/// The stages' answers. Those that differ by output are kept by output.
pub(crate) struct Stages<X: Types> {
    pub(crate) cache_map: Shared<Arc<CacheMap>, X>,
    pub(crate) fast: BySearch<Keys, X>,
    pub(crate) full: BySearch<Keys, X>,
    pub(crate) content: Mutex<BTreeMap<usize, Shared<Digest, X>>>,
    ready: Shared<Arc<Ready<X>>, X>,
    pub(crate) exec: Arc<Flight<Outputs<X>, RunEnd<X>>>,
    pub(crate) resolved: ByOutput<Resolved<X::Value>, X>,
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

pub(crate) fn by<K: Ord, T: Default>(map: &Mutex<BTreeMap<K, Arc<T>>>, key: K) -> Arc<T> {
    Arc::clone(map.lock().entry(key).or_default())
}

// The stages call each other through boxed futures that run in tasks of their own, so a deep graph costs no stack.
impl<X: Types> Node<X> {
    pub(crate) fn context(&self, cancel: CancellationToken) -> OpContext<X> {
        OpContext { vertex: self.vertex.clone(), cancel, witness: Witness::new(Arc::clone(&self.scopes)) }
    }

    /// The op failed, working with this context.
    pub(crate) fn failed(&self, cx: &OpContext<X>, error: X::Error) -> Failure<X::Error> {
        let blame = cx.witness.blame();
        self.vertex.fail(error.to_string());
        let (vertex, name) = (self.digest.clone(), self.name.clone());
        Failure { error: SolveError::Op { vertex, name, source: Arc::new(error) }, blame }
    }

    pub(crate) fn lost(&self) -> Failure<X::Error> {
        let error = SolveError::Lost { vertex: self.digest.clone(), name: self.name.clone() };
        self.vertex.fail(error.to_string());
        Failure::of(error)
    }

    /// The answer of one stage, found by `work` in a task of its own unless it is there. For work that may be dropped at any point.
    pub(crate) fn stage<T, Work>(
        self: &Arc<Self>,
        flight: Shared<T, X>,
        work: impl FnOnce(Arc<Self>, CancellationToken) -> Work + Send + 'static,
    ) -> BoxFuture<'static, Answer<T, X>>
    where
        T: Clone + Send + Sync + 'static,
        Work: Future<Output = Answer<T, X>> + Send + 'static,
    {
        let node = Arc::clone(self);
        Box::pin(async move {
            let droppable = |cancel: CancellationToken| {
                let work = work(Arc::clone(&node), cancel.clone());
                async move {
                    tokio::select! {
                        () = cancel.cancelled() => Err(Failure::of(SolveError::Canceled)),
                        answer = work => answer,
                    }
                }
            };
            flight.get(droppable).await.unwrap_or_else(|| Err(node.lost()))
        })
    }

    /// What the op is for the cache.
    pub(crate) fn cache_map(self: &Arc<Self>) -> BoxFuture<'static, Answer<Arc<CacheMap>, X>> {
        self.stage(Arc::clone(&self.stages.cache_map), |node, cancel| async move {
            let cx = node.context(cancel);
            let answer = node.op.cache_map(&cx).await;
            // An op that had to look around has reported a start; that much of it is over.
            node.vertex.pause();
            let mut map = answer.map_err(|error| node.failed(&cx, error))?;
            map.deps.resize(node.inputs.len(), crate::Dep::default());
            Ok(Arc::new(map))
        })
    }

    pub(crate) fn content(
        self: &Arc<Self>,
        input: usize,
        value: X::Value,
    ) -> BoxFuture<'static, Answer<Digest, X>> {
        self.stage(by(&self.stages.content, input), move |node, cancel| async move {
            let cx = node.context(cancel);
            node.op.content(&cx, input, value).await.map_err(|error| node.failed(&cx, error))
        })
    }

    /// All inputs, and all keys that the result will be linked from.
    fn ready(self: &Arc<Self>) -> BoxFuture<'static, Answer<Arc<Ready<X>>, X>> {
        self.stage(Arc::clone(&self.stages.ready), |node, _| async move {
            let map = node.cache_map().await?;
            let inputs = (0..node.inputs.len()).map(|input| {
                let (node, map) = (&node, &map);
                async move {
                    let (child, output) = &node.inputs[input];
                    let resolved = child.resolve(*output).await?;
                    let mut keys = with_selector(&resolved.keys, &map.deps[input]);
                    if map.deps[input].content {
                        let content = node.content(input, resolved.value.clone()).await?;
                        keys.extend(node.content_keys(input, &content));
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
    }

    /// A result: the best cached one, or one that is made now.
    pub(crate) fn resolve(
        self: &Arc<Self>,
        output: u32,
    ) -> BoxFuture<'static, Answer<Resolved<X::Value>, X>> {
        self.stage(by(&self.stages.resolved, output), move |node, _| async move {
            node.find_or_make(output).await
        })
    }

    /// Looks for a result by all keys, and tells whether there were any. With [`Reach::Own`], nothing is made for it but sources.
    pub(crate) fn find(
        self: &Arc<Self>,
        output: u32,
        reach: Reach,
    ) -> BoxFuture<'static, Answer<Sought<X>, X>> {
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
        let map = self.cache_map().await?;
        let mut asked = self.inputs.is_empty();
        loop {
            if !asked {
                // The inputs are known for certain now, which may be more than their definitions told.
                let keys = self.keys_when_ready(&map, output, &ready);
                if let Some(found) = self.load_any(&keys, Reach::All).await {
                    self.learn(&map, output, &keys, &ready.keys).await;
                    return Ok(found);
                }
                known |= !keys.is_empty() && !self.inputs.is_empty();
            }
            asked = false;
            match self.exec(&ready, output, known).await {
                Ok(outputs) => return self.pick(&outputs, output).map_err(Failure::of),
                Err(RunEnd::Failed(failure)) => return Err(failure),
                // Somebody else was quicker.
                Err(RunEnd::Cached) => {}
            }
        }
    }

    /// The keys of a result of which all inputs are there.
    pub(crate) fn keys_when_ready(&self, map: &CacheMap, output: u32, ready: &Ready<X>) -> Vec<KeyId> {
        if self.ignore_cache || map.ephemeral {
            Vec::new()
        } else if self.inputs.is_empty() {
            vec![KeyId::root(&map.digest, output)]
        } else {
            self.follow(map, output, &ready.keys, Reach::All)
        }
    }

    fn pick(&self, outputs: &Outputs<X>, output: u32) -> Result<Resolved<X::Value>, SolveError<X::Error>> {
        let (value, keys) = outputs.get(output as usize).cloned().ok_or_else(|| SolveError::NoOutput {
            vertex: self.digest.clone(),
            name: self.name.clone(),
            output,
        })?;
        Ok(Resolved { value, keys })
    }
}

impl<X: Types> Drop for Node<X> {
    /// Drops a chain of inputs one by one: a deep graph would overflow the stack.
    fn drop(&mut self) {
        let (nodes, identity) = &self.place;
        nodes.forget(identity);
        let mut inputs = std::mem::take(&mut self.inputs);
        while let Some((input, _)) = inputs.pop() {
            if let Some(mut node) = Arc::into_inner(input) {
                inputs.append(&mut node.inputs);
            }
        }
    }
}
