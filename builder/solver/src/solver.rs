//! Builds, and the nodes that they share.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Weak, atomic::AtomicU32},
};

use lapstrake_builder_llb::{Graph, Vertex};
use lapstrake_builder_progress::{Fan, Progress, ProgressGroup, VertexHandle, VertexState};
use lapstrake_layerstore_oci::Digest;
use parking_lot::Mutex;

use crate::{
    CacheStore, KeyId, Op, SolveError, Types,
    keys::Caches,
    node::{Node, Stages},
    run::Runs,
    scopes::Scopes,
};

/// A result and the keys it is known by.
#[derive(Debug, Clone)]
pub struct Resolved<V> {
    /// The result.
    pub value: V,
    /// Its keys, best first.
    pub keys: Arc<Vec<KeyId>>,
}

/// Solves graphs, sharing vertices between those that run at the same time. Cheap to clone.
pub struct Solver<X: Types>(Arc<Inner<X>>);

struct Inner<X: Types> {
    cache: Arc<dyn CacheStore<X::Value>>,
    nodes: Arc<Nodes<X>>,
    runs: Arc<Runs<X>>,
}

/// The nodes that any build has, by their identity.
pub(crate) struct Nodes<X: Types>(Mutex<HashMap<Digest, Weak<Node<X>>>>);

impl<X: Types> Nodes<X> {
    /// Called by a node that is gone.
    pub(crate) fn forget(&self, identity: &Digest) {
        let mut nodes = self.0.lock();
        // A new one may have taken its place.
        if nodes.get(identity).is_some_and(|node| node.strong_count() == 0) {
            nodes.remove(identity);
        }
    }
}

impl<X: Types> Clone for Solver<X> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<X: Types> Solver<X> {
    /// A solver that finds results in `cache`, and saves them there.
    pub fn new(cache: Arc<dyn CacheStore<X::Value>>) -> Self {
        Self(Arc::new(Inner { cache, nodes: Arc::new(Nodes(Mutex::default())), runs: Arc::default() }))
    }

    /// Takes up a graph. Nothing is executed until [`Build::resolve`]; dropping the build cancels what nobody else needs.
    ///
    /// `op` makes the op of a vertex that no running build has; `scope` is what this build offers to ops; `brought` are caches to
    /// look into besides the solver's own; `progress` hears of every vertex of the graph.
    pub fn load(
        &self,
        graph: &Graph,
        op: impl Fn(&Vertex) -> Result<Arc<dyn Op<X>>, X::Error>,
        scope: X::Scope,
        brought: &[Arc<dyn CacheStore<X::Value>>],
        progress: &Progress,
    ) -> Result<Build<X>, SolveError<X::Error>> {
        let number = self.0.runs.number();
        let mut build = Build { nodes: Vec::new(), target: graph.target().output, number };
        // Identities first: they need no lock.
        let mut identities: Vec<(Digest, bool)> = Vec::with_capacity(graph.vertices().len());
        for vertex in graph.vertices() {
            identities.push(identity(vertex, &identities));
        }
        let mut shared = self.0.nodes.0.lock();
        for (vertex, (identity, _)) in graph.vertices().iter().zip(identities) {
            let node = match shared.get(&identity).and_then(Weak::upgrade) {
                Some(node) => {
                    *node.failure.lock() = None;
                    node
                }
                None => {
                    let op = op(vertex).map_err(|error| SolveError::Op {
                        vertex: vertex.digest.clone(),
                        name: vertex.name.clone(),
                        source: Arc::new(error),
                    })?;
                    let node = Arc::new(self.node(vertex, identity.clone(), op, &build.nodes));
                    shared.insert(identity, Arc::downgrade(&node));
                    node
                }
            };
            node.scopes.join(number, scope.clone());
            node.caches.brought.lock().extend(brought.iter().map(|cache| (number, Arc::clone(cache))));
            build.nodes.push(node);
        }
        drop(shared);
        // Telling takes longer, so it is done without the lock.
        for node in &build.nodes {
            node.fan.join(number, progress);
        }
        // Vertices come inputs first and the target last: `Graph` leaves out what the target does not need.
        debug_assert_eq!(graph.target().vertex.0 as usize + 1, build.nodes.len());
        Ok(build)
    }

    fn node(&self, vertex: &Vertex, identity: Digest, op: Arc<dyn Op<X>>, nodes: &[Arc<Node<X>>]) -> Node<X> {
        let inputs: Vec<_> = vertex
            .inputs
            .iter()
            .map(|edge| (Arc::clone(&nodes[edge.vertex.0 as usize]), edge.output))
            .collect();
        let fan = Fan::default();
        let mut state = VertexState::pending(
            vertex.digest.clone(),
            vertex.name.clone(),
            inputs.iter().map(|(input, _)| input.digest.clone()).collect(),
        );
        state.group = vertex.metadata.progress_group.as_ref().map(|group| ProgressGroup {
            id: group.id.clone(),
            name: group.name.clone(),
            weak: group.weak,
        });
        Node {
            digest: vertex.digest.clone(),
            name: vertex.name.clone(),
            inputs,
            ignore_cache: vertex.metadata.ignore_cache,
            op,
            caches: Caches { own: Arc::clone(&self.0.cache), brought: Mutex::default() },
            vertex: VertexHandle::announce(Arc::new(fan.clone()), state),
            fan,
            scopes: Arc::new(Scopes::default()),
            stages: Stages::default(),
            aliases: std::sync::OnceLock::new(),
            runs: Arc::clone(&self.0.runs),
            let_down: AtomicU32::new(0),
            failure: Mutex::default(),
            place: (Arc::clone(&self.0.nodes), identity),
        }
    }
}

impl<X: Types> std::fmt::Debug for Solver<X> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let nodes = self.0.nodes.0.lock().len();
        f.debug_struct("Solver").field("nodes", &nodes).field("runs", &self.0.runs.len()).finish()
    }
}

/// What two builds must have in common to share a node: the vertex, and for it and everything below it, whether the cache is
/// ignored. The flag tells whether it is anywhere.
fn identity(vertex: &Vertex, before: &[(Digest, bool)]) -> (Digest, bool) {
    let inputs = vertex.inputs.iter().map(|edge| &before[edge.vertex.0 as usize]);
    let tainted = vertex.metadata.ignore_cache || inputs.clone().any(|(_, tainted)| *tainted);
    if !tainted {
        return (vertex.digest.clone(), false);
    }
    let mut text = format!("{} ignore-cache={}", vertex.digest, vertex.metadata.ignore_cache);
    for (input, _) in inputs {
        text.push_str(input.as_str());
    }
    (Digest::sha256_of(text.as_bytes()), true)
}

/// A graph that is being solved. Dropping it cancels what no other build needs.
pub struct Build<X: Types> {
    // Inputs first; the last is the target.
    nodes: Vec<Arc<Node<X>>>,
    target: u32,
    number: u64,
}

impl<X: Types> Build<X> {
    /// The graph's result. Cancel-safe: it may be asked again. Ops that run go on until the build is dropped.
    ///
    /// An op that failed for want of what another build has, or because another went away, is run again for this one.
    pub async fn resolve(&self) -> Result<Resolved<X::Value>, SolveError<X::Error>> {
        let target = self.nodes.last().expect("a graph has a target");
        let resolved = loop {
            match target.resolve(self.target).await {
                Ok(resolved) => break resolved,
                Err(failure) if failure.blame.as_ref().is_some_and(|blame| blame.spares(self.number)) => {}
                Err(failure) => return Err(failure.error),
            }
        };
        // What was not looked at was not needed, because something after it was cached: so is it, to whoever watches.
        for node in &self.nodes {
            node.vertex.cached_if_untouched();
        }
        Ok(resolved)
    }

    /// The result of one of the graph's vertices; `None` for one that is not of the graph. What this or another running build made is not made
    /// again, and what is cached is found.
    pub async fn resolve_vertex(
        &self,
        vertex: &Digest,
        output: u32,
    ) -> Result<Option<Resolved<X::Value>>, SolveError<X::Error>> {
        let Some(node) = self.nodes.iter().find(|node| node.digest == *vertex) else { return Ok(None) };
        loop {
            match node.resolve(output).await {
                Ok(resolved) => return Ok(Some(resolved)),
                Err(failure) if failure.blame.as_ref().is_some_and(|blame| blame.spares(self.number)) => {}
                Err(failure) => return Err(failure.error),
            }
        }
    }

    /// Keys of ops without inputs, each with another that caches of others may have for it ([`Op::aliases`]). Makes nothing.
    pub fn other_keys(&self) -> Vec<(KeyId, KeyId)> {
        let sources = self.nodes.iter().filter(|node| node.inputs.is_empty());
        let of_node = |node: &Arc<Node<X>>| {
            let map = node.stages.cache_map.done()?;
            let aliases = node.op.aliases().into_iter();
            let pair = move |alias: crate::Alias| (KeyId::root(&map.digest, 0), KeyId::root(&alias.name, 0));
            Some(aliases.map(pair).collect::<Vec<_>>())
        };
        sources.filter_map(of_node).flatten().collect()
    }

    /// What is known of the ops that were looked at ([`Op::told`]), inputs first. Makes nothing.
    pub fn told(&self) -> Vec<X::Told> {
        let asked = self.nodes.iter().filter(|node| node.stages.cache_map.done().is_some());
        asked.filter_map(|node| node.op.told()).collect()
    }

    /// The keys that the build's results are known by, one set for each output that the graph uses, inputs first: what a cache export is
    /// about. Asked after [`Build::resolve`]; nothing is run or waited for, and what was not looked at has no keys.
    pub fn keys(&self) -> Vec<Vec<KeyId>> {
        self.keys_by_output().into_iter().map(|(_, _, keys)| keys).collect()
    }

    /// The same, each with its vertex and the number of its output.
    pub fn keys_by_output(&self) -> Vec<(Digest, u32, Vec<KeyId>)> {
        let Some(target) = self.nodes.last() else { return Vec::new() };
        let places: HashMap<*const Node<X>, usize> =
            self.nodes.iter().enumerate().map(|(place, node)| (Arc::as_ptr(node), place)).collect();
        let place = |node: &Arc<Node<X>>| places[&Arc::as_ptr(node)];
        let mut used = vec![BTreeSet::new(); self.nodes.len()];
        used[place(target)].insert(self.target);
        for (node, output) in self.nodes.iter().flat_map(|node| &node.inputs) {
            used[place(node)].insert(*output);
        }
        let mut known: HashMap<(usize, u32), usize> = HashMap::new();
        let mut all: Vec<(Digest, u32, Vec<KeyId>)> = Vec::new();
        for (node, outputs) in self.nodes.iter().zip(used) {
            // Inputs come before what they are inputs of.
            let of = |(input, output): &(Arc<Node<X>>, u32)| all[known[&(place(input), *output)]].2.clone();
            let inputs: Vec<Vec<KeyId>> = node.inputs.iter().map(of).collect();
            for output in outputs {
                known.insert((place(node), output), all.len());
                all.push((node.digest.clone(), output, node.all_keys(output, &inputs)));
            }
        }
        all
    }
}

impl<X: Types> Drop for Build<X> {
    fn drop(&mut self) {
        // Targets first, so that a node's inputs outlive it (see `Node::drop`).
        while let Some(node) = self.nodes.pop() {
            node.scopes.leave(self.number);
            node.caches.brought.lock().retain(|(number, _)| *number != self.number);
            node.fan.leave(self.number);
        }
    }
}

impl<X: Types> std::fmt::Debug for Build<X> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Build").field("number", &self.number).field("vertices", &self.nodes.len()).finish()
    }
}
