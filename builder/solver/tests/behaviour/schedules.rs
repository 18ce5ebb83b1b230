//! Generated graphs, many builds at once, in orders that are drawn by lot: every result is right, no work is done twice at a time,
//! nobody is harmed by others, nothing hangs, nothing is left.
//!
//! Everything runs on one thread, and every op, content digest and cache access gives way to others a drawn number of times. Ops stop at a
//! gate until they are told to end well or to fail. Between any two such steps builds begin, are dropped, and results are pruned.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use crate::support::{self, Client, Toy, ToyError};
use futures::future::BoxFuture;
use lapstrake_builder_llb::{Vertex, pb};
use lapstrake_builder_progress::Progress;
use lapstrake_builder_solver::{
    Build, CacheMap, CacheStore, CacheStoreError, Dep, KeyId, Link, MemoryCache, Op, OpContext, SolveError,
    Solver,
};
use lapstrake_layerstore_oci::Digest;
use parking_lot::Mutex;
use proptest::prelude::*;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// Steps after which a schedule counts as hung. Real ones take a few hundred.
const HUNG: usize = 20_000;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// A client's directory, another one for each build, with one of few contents.
    Context,
    /// A source that has two names.
    Image,
    /// What is made anew under one of four keys, and comes to one of two contents.
    Rebuilt,
    Step,
}

/// One vertex, before a build makes it its own.
#[derive(Debug, Clone)]
struct Sketch {
    kind: Kind,
    inputs: Vec<usize>,
    /// Inputs that count by content, as bits.
    content: u8,
    /// Whether its op looks at its builds.
    looks: bool,
}

/// What is a build's own.
#[derive(Debug, Clone)]
struct Variant {
    contents: u32,
    aliases: u32,
    no_cache: u32,
    /// Its last vertex, where it does not want the whole graph.
    target: Option<prop::sample::Index>,
}

/// What happens next.
#[derive(Debug, Clone)]
enum Deed {
    /// A gate opens; the op fails or does not.
    Open { which: prop::sample::Index, fails: bool },
    /// The next build begins.
    Begin,
    /// A build is given up.
    Drop(prop::sample::Index),
    /// A client vanishes while its build goes on.
    Vanish(prop::sample::Index),
    /// Results are pruned.
    Prune(u32),
}

#[derive(Debug, Clone)]
struct Planned {
    name: String,
    key: String,
    /// What its values begin with.
    yields: String,
    kind: Kind,
    inputs: Vec<usize>,
    content: Vec<usize>,
    looks: bool,
    ignore_cache: bool,
    /// Whether its work is to be done at most once at a time, whoever wants it.
    once: bool,
    value: String,
}

fn plan(sketches: &[Sketch], variant: &Variant, number: u32) -> Vec<Planned> {
    let target = variant.target.map_or(sketches.len() - 1, |target| target.index(sketches.len()));
    let mut planned: Vec<Planned> = Vec::new();
    for (at, sketch) in sketches.iter().enumerate().take(target + 1) {
        let bit = |bits: u32| bits >> (at % 32) & 1;
        let (name, key) = match sketch.kind {
            Kind::Context => (format!("context{at}-{number}"), format!("files{}", bit(variant.contents))),
            Kind::Image => (format!("image{at}-{}", bit(variant.aliases)), format!("image{at}")),
            Kind::Rebuilt => {
                let which = bit(variant.aliases) * 2 + bit(variant.contents);
                (format!("rebuilt{at}-{which}"), format!("rebuilt{at}-{which}"))
            }
            Kind::Step => (format!("step{at}"), format!("step{at}")),
        };
        let inputs = if sketch.kind == Kind::Step { sketch.inputs.clone() } else { Vec::new() };
        let by_content = |input: &usize| {
            planned[inputs[*input]].kind == Kind::Context || sketch.content >> (input % 8) & 1 == 1
        };
        let content: Vec<usize> = (0..inputs.len()).filter(by_content).collect();
        let ignore_cache = bit(variant.no_cache) == 1 && sketch.kind == Kind::Step;
        let known = |input: usize| content.contains(&input) || planned[inputs[input]].once;
        let is_source = matches!(sketch.kind, Kind::Context | Kind::Rebuilt);
        let once = !is_source && !ignore_cache && (0..inputs.len()).all(known);
        let values: Vec<&str> = inputs.iter().map(|input| planned[*input].value.as_str()).collect();
        let yields = match sketch.kind {
            Kind::Rebuilt => format!("rebuilt{at} as {}", bit(variant.contents)),
            Kind::Context | Kind::Image | Kind::Step => key.clone(),
        };
        let value = Digest::sha256_of(format!("{yields}({})", values.join(",")).as_bytes()).to_string();
        let looks = sketch.looks;
        planned.push(Planned {
            name,
            key,
            yields,
            kind: sketch.kind,
            inputs,
            content,
            looks,
            ignore_cache,
            once,
            value,
        });
    }
    planned
}

/// An execution that failed.
#[derive(Debug)]
struct Failed {
    value: String,
    /// The clients that it looked at, if it did, and those of them that went away before it failed.
    seen: Option<BTreeSet<u32>>,
    gone: BTreeSet<u32>,
}

struct Gate {
    name: String,
    open: oneshot::Sender<bool>,
}

#[derive(Default)]
struct World {
    lots: Mutex<u64>,
    gates: Mutex<Vec<Gate>>,
    working: AtomicUsize,
    /// Work that is being done and not cancelled, by the value that comes of it.
    doing: Mutex<BTreeMap<String, Vec<CancellationToken>>>,
    failed: Mutex<Vec<Failed>>,
    gone: Mutex<BTreeSet<u32>>,
    twice: Mutex<Vec<String>>,
    /// How many builds have begun, by the names of their vertices.
    begun: Mutex<BTreeMap<String, usize>>,
    /// Executions, and looks at content, until now.
    executed: AtomicUsize,
    looked: AtomicUsize,
    /// Whether gates stand open.
    is_open: AtomicBool,
}

impl World {
    fn lot(&self, below: u64) -> u64 {
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

struct ToyOp {
    world: Arc<World>,
    planned: Planned,
    /// How many builds had begun when it failed without having looked at any.
    failed: Mutex<Option<usize>>,
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
struct Slow {
    cache: MemoryCache<String>,
    world: Arc<World>,
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

type Solving = Pin<Box<dyn Future<Output = Result<String, SolveError<ToyError>>>>>;

/// A build that runs, and the vertices it consists of.
struct Going {
    client: Client,
    planned: Vec<Planned>,
    solving: Solving,
}

struct Yard {
    world: Arc<World>,
    cache: Arc<Slow>,
    solver: Solver<Toy>,
    progress: Progress,
    going: Vec<Going>,
    finished: usize,
}

impl Yard {
    fn new(seed: u64) -> Self {
        let world = Arc::new(World { lots: Mutex::new(seed), ..World::default() });
        let cache = Arc::new(Slow { cache: MemoryCache::default(), world: Arc::clone(&world) });
        let solver = Solver::new(cache.clone());
        let progress = Progress::anonymous(Default::default()).expect("a temporary file");
        Self { world, cache, solver, progress, going: Vec::new(), finished: 0 }
    }

    fn begin(&mut self, planned: Vec<Planned>, number: u32) {
        let node = |planned: &Planned| support::Node {
            name: planned.name.clone(),
            inputs: planned.inputs.clone(),
            ignore_cache: planned.ignore_cache,
        };
        let nodes: Vec<support::Node> = planned.iter().map(node).collect();
        let make = |vertex: &Vertex| {
            let Some(pb::op::Op::Exec(exec)) = &vertex.op.op else { unreachable!("only exec ops") };
            let name = &exec.meta.as_ref().expect("has meta").args[0];
            let planned = planned.iter().find(|planned| planned.name == *name).expect("planned").clone();
            let op: Arc<dyn Op<Toy>> =
                Arc::new(ToyOp { world: Arc::clone(&self.world), planned, failed: Mutex::default() });
            Ok(op)
        };
        for node in &planned {
            *self.world.begun.lock().entry(node.name.clone()).or_default() += 1;
        }
        let client = Client::new(number);
        let graph = support::graph(&nodes);
        let build: Build<Toy> =
            self.solver.load(&graph, make, client.clone(), &[], &self.progress).expect("ops are made");
        // Some are held up before they ask for anything.
        let held_up = if self.world.lot(3) == 0 { self.world.lot(100) } else { 0 };
        let solving = Box::pin(async move {
            for _ in 0..held_up {
                tokio::task::yield_now().await;
            }
            Ok(build.resolve().await?.value)
        });
        self.going.push(Going { client, planned, solving });
    }

    /// Gives everybody a turn, and takes leave of those that are done.
    async fn turn(&mut self) -> Result<(), TestCaseError> {
        let mut at = 0;
        while at < self.going.len() {
            match futures::poll!(self.going[at].solving.as_mut()) {
                std::task::Poll::Pending => at += 1,
                std::task::Poll::Ready(result) => {
                    let done = self.going.swap_remove(at);
                    self.finished += 1;
                    self.judge(&done, result)?;
                    self.world.gone.lock().insert(done.client.number);
                }
            }
        }
        tokio::task::yield_now().await;
        prop_assert!(
            self.world.twice.lock().is_empty(),
            "done twice at a time: {:?}",
            self.world.twice.lock()
        );
        Ok(())
    }

    fn judge(&self, done: &Going, result: Result<String, SolveError<ToyError>>) -> Result<(), TestCaseError> {
        let wanted = &done.planned.last().expect("not empty").value;
        match result {
            Ok(value) => prop_assert_eq!(&value, wanted),
            Err(error) => {
                let me = done.client.number;
                let mine = |failed: &Failed| {
                    let known = failed.seen.as_ref().is_none_or(|seen| seen.contains(&me));
                    let alone = failed.gone.is_empty() || failed.gone.contains(&me);
                    known && alone && done.planned.iter().any(|planned| planned.value == failed.value)
                };
                let failed = self.world.failed.lock();
                prop_assert!(
                    failed.iter().any(mine),
                    "{} fails build {} by others' fault: {:?}",
                    error,
                    me,
                    failed
                );
            }
        }
        Ok(())
    }

    fn open(&self, which: impl Fn(usize) -> usize, fails: bool) {
        let mut gates = self.world.gates.lock();
        gates.retain(|gate| !gate.open.is_closed());
        if !gates.is_empty() {
            let at = which(gates.len());
            let gate = gates.swap_remove(at);
            _ = gate.open.send(fails);
        }
    }
}

fn sketches() -> impl Strategy<Value = Vec<Sketch>> {
    let sketch =
        (0u8..7, prop::collection::vec(any::<prop::sample::Index>(), 1..4), any::<u8>(), any::<bool>());
    prop::collection::vec(sketch, 2..10).prop_map(|drawn| {
        let mut sketches: Vec<Sketch> = Vec::new();
        for (at, (kind, inputs, content, looks)) in drawn.into_iter().enumerate() {
            let kind = match (at, kind) {
                (0, 0..3) | (_, 0) => Kind::Context,
                (_, 6) => Kind::Rebuilt,
                (0, _) | (_, 1) => Kind::Image,
                _ => Kind::Step,
            };
            let mut inputs: Vec<usize> = inputs.iter().map(|input| input.index(at.max(1))).collect();
            // Most stand on what is before them, so that much of the graph is needed.
            inputs.push(at.saturating_sub(1));
            inputs.sort_unstable();
            inputs.dedup();
            sketches.push(Sketch { kind, inputs, content, looks });
        }
        sketches
    })
}

fn variants() -> impl Strategy<Value = Vec<Variant>> {
    let bits = || prop_oneof![Just(0), any::<u32>()];
    let no_cache = prop_oneof![6 => Just(0), 1 => any::<u32>(), 1 => Just(u32::MAX)];
    let variant = (bits(), bits(), no_cache, prop::option::of(any::<prop::sample::Index>()));
    let variant = variant.prop_map(|(contents, aliases, no_cache, target)| Variant {
        contents,
        aliases,
        no_cache,
        target,
    });
    prop::collection::vec(variant, 2..6)
}

fn deeds() -> impl Strategy<Value = Vec<(u8, Deed)>> {
    let index = any::<prop::sample::Index>;
    let deed = prop_oneof![
        10 => (index(), 0u8..8).prop_map(|(which, fails)| Deed::Open { which, fails: fails == 0 }),
        4 => Just(Deed::Begin),
        1 => index().prop_map(Deed::Drop),
        1 => index().prop_map(Deed::Vanish),
        1 => any::<u32>().prop_map(Deed::Prune),
    ];
    prop::collection::vec((0u8..12, deed), 0..60)
}

async fn play(
    sketches: &[Sketch],
    variants: &[Variant],
    deeds: Vec<(u8, Deed)>,
    seed: u64,
    give_up: bool,
) -> Result<(), TestCaseError> {
    let mut yard = Yard::new(seed);
    let mut next = variants.iter().zip(0u32..);
    let mut begin = |yard: &mut Yard| {
        if let Some((variant, number)) = next.next() {
            yard.begin(plan(sketches, variant, number), number);
        }
    };
    for (turns, deed) in deeds {
        for _ in 0..turns {
            yard.turn().await?;
        }
        match deed {
            Deed::Open { which, fails } => yard.open(|gates| which.index(gates), fails),
            Deed::Begin => begin(&mut yard),
            Deed::Drop(which) if !yard.going.is_empty() => {
                let at = which.index(yard.going.len());
                let dropped = yard.going.swap_remove(at);
                yard.world.gone.lock().insert(dropped.client.number);
            }
            Deed::Vanish(which) if !yard.going.is_empty() => {
                let client = &yard.going[which.index(yard.going.len())].client;
                client.vanish();
                yard.world.gone.lock().insert(client.number);
            }
            Deed::Prune(mut kept) => yard.cache.cache.retain(|_| {
                kept = kept.rotate_left(1);
                kept & 1 == 1
            }),
            Deed::Drop(_) | Deed::Vanish(_) => {}
        }
    }
    if give_up {
        yard.going.clear();
    } else {
        for _ in variants {
            begin(&mut yard);
        }
    }
    // From now on all goes well: everything ends.
    let mut steps = 0;
    while !yard.going.is_empty() {
        yard.turn().await?;
        steps += 1;
        if steps % 7 == 0 {
            yard.open(|_| 0, false);
        }
        let waiting: Vec<String> = yard.world.gates.lock().iter().map(|gate| gate.name.clone()).collect();
        prop_assert!(steps < HUNG, "hung; {} builds, waiting ops: {:?}", yard.going.len(), waiting);
    }
    // With no build left, no gate opens any more: whatever runs has to hear that it is cancelled.
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    prop_assert_eq!(yard.world.working.load(Ordering::SeqCst), 0, "lost cancellation");
    prop_assert_eq!(format!("{:?}", yard.solver), "Solver { nodes: 0, runs: 0 }");
    prop_assert!(yard.world.doing.lock().values().flatten().all(CancellationToken::is_cancelled));
    let planned =
        variants.iter().zip(100u32..).map(|(variant, number)| (plan(sketches, variant, number), number));
    for (planned, number) in planned {
        again(&mut yard, planned, number).await?;
    }
    Ok(())
}

/// What is built twice is found the second time, by definition where no client's directory is in it.
async fn again(yard: &mut Yard, planned: Vec<Planned>, number: u32) -> Result<(), TestCaseError> {
    yard.world.is_open.store(true, Ordering::SeqCst);
    if planned.iter().any(|node| node.kind == Kind::Context || node.ignore_cache) {
        return Ok(());
    }
    let counts = |world: &World| (world.executed.load(Ordering::SeqCst), world.looked.load(Ordering::SeqCst));
    let mut before = (0, 0);
    for _ in 0..2 {
        before = counts(&yard.world);
        yard.begin(planned.clone(), number);
        let mut steps = 0;
        while !yard.going.is_empty() {
            yard.turn().await?;
            steps += 1;
            prop_assert!(steps < HUNG, "hung when built again");
        }
    }
    prop_assert_eq!(counts(&yard.world), before, "executed, and looked at, once more");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_schedule_ends_well(
        sketches in sketches(),
        variants in variants(),
        deeds in deeds(),
        seed in any::<u64>(),
        give_up in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(play(&sketches, &variants, deeds, seed, give_up))?;
    }
}
