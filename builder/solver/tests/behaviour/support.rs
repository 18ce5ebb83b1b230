//! A toy world for the solver: values are texts, and every execution is counted.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use futures::future::BoxFuture;
use lapstrake_builder_llb::{Definition, Graph, Limits, Metadata, Vertex, pb};
use lapstrake_builder_progress::{Progress, Stream};
use lapstrake_builder_solver::{
    Build, CacheMap, CacheStore, CacheStoreError, Dep, KeyId, Link, MemoryCache, Miss, MissCause, Op,
    OpContext, SolveError, Solver, Types,
};
use lapstrake_layerstore_oci::Digest;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::Semaphore;

/// Values are what was done, as text: `join(leaf:a,leaf:b)`.
pub(crate) struct Toy;

#[derive(Debug, thiserror::Error)]
#[error("{0} failed")]
pub(crate) struct ToyError(pub String);

/// What a build offers to ops.
#[derive(Debug, Clone, Default)]
pub(crate) struct Client {
    pub(crate) number: u32,
    gone: Arc<AtomicBool>,
}

impl Client {
    pub(crate) fn new(number: u32) -> Self {
        Self { number, gone: Arc::default() }
    }

    /// The client vanishes; its build does not know yet.
    pub(crate) fn vanish(&self) {
        self.gone.store(true, Ordering::SeqCst);
    }
}

impl Types for Toy {
    type Value = String;
    type Scope = Client;
    type Told = String;
    type Error = ToyError;

    fn alive(client: &Client) -> bool {
        !client.gone.load(Ordering::SeqCst)
    }
}

/// What an op does, by its name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Behaviour {
    /// Inputs that count by content.
    pub(crate) content: Vec<usize>,
    /// The content of its result, where that is not the value itself.
    pub(crate) yields: Option<String>,
    /// Fails when executed.
    pub(crate) fails: bool,
    /// Waits for a permit before it ends.
    pub(crate) gate: Option<Arc<Semaphore>>,
    /// Means nothing to other builds.
    pub(crate) ephemeral: bool,
    /// What it is for the cache, and in values, where that is not its name.
    pub(crate) key: Option<String>,
    /// Looks at the clients before it works, and fails if this one is not among them.
    pub(crate) needs: Option<u32>,
    /// Looks once more when its gate is open.
    pub(crate) looks_again: bool,
}

/// Everything that ops share.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) behaviours: Mutex<HashMap<String, Behaviour>>,
    pub(crate) executed: Mutex<BTreeMap<String, usize>>,
    pub(crate) cancelled: Mutex<Vec<String>>,
    /// How many ops work right now.
    pub(crate) working: AtomicUsize,
    /// Why each op was run, in order.
    pub(crate) misses: Mutex<Vec<(String, MissCause)>>,
    contents: Mutex<HashMap<String, String>>,
    /// How often content was looked at.
    pub(crate) looked: AtomicUsize,
}

impl World {
    pub(crate) fn count(&self, name: &str) -> usize {
        self.executed.lock().get(name).copied().unwrap_or(0)
    }

    pub(crate) fn executions(&self) -> usize {
        self.executed.lock().values().sum()
    }

    /// Why ops were run since the last time this was asked.
    pub(crate) fn misses(&self) -> Vec<(String, MissCause)> {
        std::mem::take(&mut *self.misses.lock())
    }

    pub(crate) fn set(&self, name: &str, behaviour: Behaviour) {
        self.behaviours.lock().insert(name.to_owned(), behaviour);
    }
}

struct Working(Arc<World>);

impl Working {
    fn begin(world: &Arc<World>) -> Self {
        world.working.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(world))
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.working.fetch_sub(1, Ordering::SeqCst);
    }
}

struct ToyOp {
    world: Arc<World>,
    name: String,
    inputs: usize,
}

impl ToyOp {
    fn behaviour(&self) -> Behaviour {
        self.world.behaviours.lock().get(&self.name).cloned().unwrap_or_default()
    }
}

impl Op<Toy> for ToyOp {
    fn cache_map<'a>(&'a self, _: &'a OpContext<Toy>) -> BoxFuture<'a, Result<CacheMap, ToyError>> {
        let behaviour = self.behaviour();
        let deps = (0..self.inputs).map(|i| Dep { selector: None, content: behaviour.content.contains(&i) });
        let map = CacheMap {
            digest: Digest::sha256_of(behaviour.key.as_ref().unwrap_or(&self.name).as_bytes()),
            deps: deps.collect(),
            ephemeral: behaviour.ephemeral,
        };
        Box::pin(async move { Ok(map) })
    }

    fn told(&self) -> Option<String> {
        Some(self.name.clone())
    }

    fn content<'a>(
        &'a self,
        _: &'a OpContext<Toy>,
        _: usize,
        value: String,
    ) -> BoxFuture<'a, Result<Digest, ToyError>> {
        self.world.looked.fetch_add(1, Ordering::SeqCst);
        let content = self.world.contents.lock().get(&value).cloned().unwrap_or(value);
        Box::pin(async move { Ok(Digest::sha256_of(content.as_bytes())) })
    }

    fn missed<'a>(&'a self, _: &'a OpContext<Toy>, miss: Miss<'a, String>) -> BoxFuture<'a, ()> {
        assert_eq!(
            (miss.inputs.len(), miss.keys.len(), miss.map.deps.len()),
            (self.inputs, self.inputs, self.inputs)
        );
        self.world.misses.lock().push((self.name.clone(), miss.cause));
        Box::pin(async {})
    }

    fn exec<'a>(
        &'a self,
        cx: &'a OpContext<Toy>,
        inputs: Vec<String>,
    ) -> BoxFuture<'a, Result<Vec<String>, ToyError>> {
        Box::pin(async move {
            *self.world.executed.lock().entry(self.name.clone()).or_insert(0) += 1;
            let _working = Working::begin(&self.world);
            let behaviour = self.behaviour();
            cx.vertex.log(Stream::Stdout, self.name.clone().into_bytes());
            let failed = || ToyError(self.name.clone());
            let has = |number: u32| cx.scopes().iter().any(|client| client.number == number);
            let mut met = behaviour.needs.is_none_or(has);
            if let Some(gate) = &behaviour.gate {
                tokio::select! {
                    permit = gate.acquire() => permit.expect("open").forget(),
                    () = cx.cancel.cancelled() => {
                        self.world.cancelled.lock().push(self.name.clone());
                        return Err(failed());
                    }
                }
            }
            tokio::task::yield_now().await;
            met |= behaviour.needs.is_some_and(|number| behaviour.looks_again && has(number));
            if behaviour.fails || !met {
                return Err(failed());
            }
            let value = format!("{}({})", behaviour.key.as_ref().unwrap_or(&self.name), inputs.join(","));
            if let Some(content) = behaviour.yields {
                self.world.contents.lock().insert(value.clone(), content);
            }
            Ok(vec![value])
        })
    }
}

/// One vertex of a test graph.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) inputs: Vec<usize>,
    pub(crate) ignore_cache: bool,
}

pub(crate) fn node(name: &str, inputs: &[usize]) -> Node {
    Node { name: name.to_owned(), inputs: inputs.to_vec(), ignore_cache: false }
}

/// A graph of exec ops whose arguments are their names; the last node is the target.
pub(crate) fn graph(nodes: &[Node]) -> Graph {
    let mut definition = Definition::default();
    let mut digests: Vec<String> = Vec::new();
    for node in nodes {
        let inputs: Vec<_> =
            node.inputs.iter().map(|i| pb::Input { digest: digests[*i].clone(), index: 0 }).collect();
        let mounts = (0..inputs.len()).map(|i| pb::Mount {
            input: i as i64,
            dest: format!("/{i}"),
            output: -1,
            ..Default::default()
        });
        let root = pb::Mount { input: -1, dest: "/".to_owned(), ..Default::default() };
        let exec = pb::ExecOp {
            meta: Some(pb::Meta { args: vec![node.name.clone()], cwd: "/".to_owned(), ..Default::default() }),
            mounts: std::iter::once(root).chain(mounts).collect(),
            ..Default::default()
        };
        let op = pb::Op { inputs, op: Some(pb::op::Op::Exec(exec)), ..Default::default() };
        let raw = op.encode_to_vec();
        let digest = Digest::sha256_of(&raw);
        if node.ignore_cache {
            definition
                .metadata
                .insert(digest.clone(), Metadata { ignore_cache: true, ..Metadata::default() });
        }
        digests.push(digest.to_string());
        definition.ops.push(raw.into());
    }
    let target = pb::Input { digest: digests.last().expect("not empty").clone(), index: 0 };
    definition.ops.push(pb::Op { inputs: vec![target], ..Default::default() }.encode_to_vec().into());
    Graph::parse(&definition, Limits::default()).expect("the test graph is sound")
}

/// A solver over a world.
pub(crate) struct Bench {
    pub(crate) world: Arc<World>,
    pub(crate) cache: Arc<MemoryCache<String>>,
    pub(crate) solver: Solver<Toy>,
    pub(crate) brought: Vec<Arc<dyn CacheStore<String>>>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let cache = Arc::new(MemoryCache::default());
        let store: Arc<dyn CacheStore<String>> = cache.clone();
        Self { world: Arc::default(), cache, solver: Solver::new(store), brought: Vec::new() }
    }

    pub(crate) fn load(&self, nodes: &[Node]) -> Build<Toy> {
        let progress = Progress::anonymous(Default::default()).expect("a temporary file");
        self.load_for(nodes, Client::default(), &progress)
    }

    pub(crate) fn load_for(&self, nodes: &[Node], client: Client, progress: &Progress) -> Build<Toy> {
        let make = |vertex: &Vertex| {
            let Some(pb::op::Op::Exec(exec)) = &vertex.op.op else { unreachable!("only exec ops") };
            let name = exec.meta.as_ref().expect("has meta").args[0].clone();
            let op: Arc<dyn Op<Toy>> =
                Arc::new(ToyOp { world: Arc::clone(&self.world), name, inputs: vertex.inputs.len() });
            Ok(op)
        };
        self.solver.load(&graph(nodes), make, client, &self.brought, progress).expect("ops are made")
    }

    pub(crate) async fn solve(&self, nodes: &[Node]) -> Result<String, SolveError<ToyError>> {
        Ok(self.load(nodes).resolve().await?.value)
    }
}

/// Another builder's cache: what it knows, under foreign keys where keys are not common to all.
pub(crate) struct Brought(pub(crate) Arc<MemoryCache<String>>);

impl CacheStore<String> for Brought {
    fn fresh_key(&self) -> KeyId {
        unreachable!("nothing is saved here")
    }

    fn linked(&self, from: &KeyId, link: &Link) -> Result<Vec<KeyId>, CacheStoreError> {
        let inner = from.as_str().strip_prefix("foreign:").map_or_else(|| from.clone(), KeyId::new);
        Ok(self.0.linked(&inner, link)?.into_iter().map(|key| KeyId::foreign(key.as_str())).collect())
    }

    fn load<'a>(&'a self, key: &'a KeyId) -> BoxFuture<'a, Result<Option<String>, CacheStoreError>> {
        Box::pin(async move {
            match key.as_str().strip_prefix("foreign:") {
                Some(inner) => self.0.load(&KeyId::new(inner)).await,
                None => Ok(None),
            }
        })
    }

    fn save<'a>(
        &'a self,
        _: &'a KeyId,
        _: Vec<(KeyId, Link)>,
        _: Option<&'a String>,
    ) -> BoxFuture<'a, Result<(), CacheStoreError>> {
        unreachable!("nothing is saved here")
    }
}

/// What a graph comes to without any cache.
pub(crate) fn expected(nodes: &[Node]) -> String {
    let mut values: Vec<String> = Vec::new();
    for node in nodes {
        let inputs: Vec<&str> = node.inputs.iter().map(|i| values[*i].as_str()).collect();
        values.push(format!("{}({})", node.name, inputs.join(",")));
    }
    values.pop().expect("not empty")
}

/// A brought cache that is on its way until the permit comes.
pub(crate) struct Coming(pub(crate) Brought, pub(crate) Arc<Semaphore>);

impl CacheStore<String> for Coming {
    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { self.1.acquire().await.map(drop).expect("open") })
    }

    fn fresh_key(&self) -> KeyId {
        self.0.fresh_key()
    }

    fn linked(&self, from: &KeyId, link: &Link) -> Result<Vec<KeyId>, CacheStoreError> {
        if self.1.available_permits() == 0 { Ok(Vec::new()) } else { self.0.linked(from, link) }
    }

    fn load<'a>(&'a self, key: &'a KeyId) -> BoxFuture<'a, Result<Option<String>, CacheStoreError>> {
        self.0.load(key)
    }

    fn save<'a>(
        &'a self,
        key: &'a KeyId,
        links: Vec<(KeyId, Link)>,
        value: Option<&'a String>,
    ) -> BoxFuture<'a, Result<(), CacheStoreError>> {
        self.0.save(key, links, value)
    }
}
