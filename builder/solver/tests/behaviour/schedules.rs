//! Generated graphs, many builds at once, in orders that are drawn by lot: every result is right, no work is done twice at a time,
//! nobody is harmed by others, nothing hangs, nothing is left.
//!
//! Everything runs on one thread, and every op, content digest and cache access gives way to others a drawn number of times. Ops stop at a
//! gate until they are told to end well or to fail. Between any two such steps builds begin, are dropped, and results are pruned.

mod drawn;
mod planned;
mod world;

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
};

use crate::support::{self, Client, Toy, ToyError};
use drawn::{Deed, Kind, Sketch, Variant, deeds, sketches, variants};
use lapstrake_builder_llb::{Vertex, pb};
use lapstrake_builder_progress::Progress;
use lapstrake_builder_solver::{Build, MemoryCache, Op, SolveError, Solver};
use parking_lot::Mutex;
use planned::{Planned, plan};
use proptest::prelude::*;
use tokio_util::sync::CancellationToken;
use world::{Failed, Slow, ToyOp, World};

/// Steps after which a schedule counts as hung. Real ones take a few hundred.
const HUNG: usize = 20_000;

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
