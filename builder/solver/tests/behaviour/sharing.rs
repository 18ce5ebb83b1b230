//! What concurrent builds share although their graphs differ, and what never harms another.

use std::sync::{Arc, atomic::Ordering};

use crate::support::{Behaviour, Bench, Client, Node, Toy, ToyError, node};
use lapstrake_builder_progress::{Event, Progress, VertexState, from_response};
use lapstrake_builder_solver::{Build, SolveError};
use tokio::sync::Semaphore;

/// A bench where `context-1` and `context-2` are clients' directories with the same files, which `copy` copies.
fn bench() -> Bench {
    let bench = Bench::new();
    for context in ["context-1", "context-2"] {
        let files = Behaviour { ephemeral: true, key: Some("files".to_owned()), ..Behaviour::default() };
        bench.world.set(context, files);
    }
    bench.world.set("copy", Behaviour { content: vec![0], ..Behaviour::default() });
    bench
}

/// A build that runs something over a copy of a client's files.
fn build(context: &str) -> [Node; 3] {
    [node(context, &[]), node("copy", &[0]), node("run", &[1])]
}

const WANTED: &str = "run(copy(files()))";

/// A build that runs, until dropped.
type Solving = std::pin::Pin<Box<dyn Future<Output = Result<String, SolveError<ToyError>>> + Send>>;

fn solving(build: Build<Toy>) -> Solving {
    Box::pin(async move { Ok(build.resolve().await?.value) })
}

/// Lets everything go on until it has to wait, however the runtime orders it.
async fn settle(solves: &mut [&mut Solving]) {
    for _ in 0..200 {
        for solve in &mut *solves {
            assert!(futures::poll!(solve.as_mut()).is_pending(), "it has to wait");
        }
        tokio::task::yield_now().await;
    }
}

/// Lets the first go on until it has to wait, and then both.
async fn settle_in_turn(first: &mut Solving, second: &mut Solving) {
    settle(&mut [first]).await;
    settle(&mut [first, second]).await;
}

fn gated(bench: &Bench, name: &str, behaviour: Behaviour) -> Arc<Semaphore> {
    let gate = Arc::new(Semaphore::new(0));
    bench.world.set(name, Behaviour { gate: Some(Arc::clone(&gate)), ..behaviour });
    gate
}

/// Builds of two clients, and the gate of what both want to run.
fn two_builds(run: Behaviour) -> (Bench, Arc<Semaphore>, Solving, Solving) {
    let bench = bench();
    let gate = gated(&bench, "run", run);
    let first = solving(bench.load(&build("context-1")));
    let second = solving(bench.load(&build("context-2")));
    (bench, gate, first, second)
}

fn progress() -> Progress {
    Progress::anonymous(Default::default()).expect("a temporary file")
}

async fn events(progress: Progress) -> Vec<Event> {
    let mut subscription = progress.subscribe();
    drop(progress);
    let mut events = Vec::new();
    while let Some(response) = subscription.next().await.expect("it is read back") {
        events.extend(from_response(response));
    }
    events
}

async fn assert_nothing_left(bench: &Bench) {
    // A task that has told its answer still has to end.
    for _ in 0..10_000 {
        if format!("{:?}", bench.solver) == "Solver { nodes: 0, runs: 0 }" {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(format!("{:?}", bench.solver), "Solver { nodes: 0, runs: 0 }");
    assert_eq!(bench.world.working.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn the_same_work_behind_different_clients_runs_once() {
    let (bench, gate, mut first, mut second) = two_builds(Behaviour::default());
    settle(&mut [&mut first, &mut second]).await;
    gate.add_permits(1);
    let (first, second) = tokio::join!(first, second);
    assert_eq!((first.unwrap().as_str(), second.unwrap().as_str()), (WANTED, WANTED));
    assert_eq!((bench.world.count("copy"), bench.world.count("run")), (1, 1));
    assert_eq!((bench.world.count("context-1"), bench.world.count("context-2")), (1, 1));
    assert_nothing_left(&bench).await;
}

#[tokio::test]
async fn one_source_by_two_names_is_fetched_once() {
    let bench = Bench::new();
    let same = Behaviour { key: Some("pinned".to_owned()), ..Behaviour::default() };
    bench.world.set("image:latest", same.clone());
    let gate = gated(&bench, "image:1", same);
    let mut first = solving(bench.load(&[node("image:1", &[])]));
    let mut second = solving(bench.load(&[node("image:latest", &[])]));
    settle_in_turn(&mut first, &mut second).await;
    gate.add_permits(1);
    let (first, second) = tokio::join!(first, second);
    assert_eq!((first.unwrap(), second.unwrap()), ("pinned()".to_owned(), "pinned()".to_owned()));
    assert_eq!(bench.world.executions(), 1);
}

#[tokio::test]
async fn a_build_that_waits_for_another_shows_its_logs_and_that_it_waits() {
    let bench = bench();
    let gate = gated(&bench, "run", Behaviour::default());
    let (shown_first, shown_second) = (progress(), progress());
    let mut first = solving(bench.load_for(&build("context-1"), Client::new(1), &shown_first));
    settle(&mut [&mut first]).await;
    let mut second = solving(bench.load_for(&build("context-2"), Client::new(2), &shown_second));
    settle(&mut [&mut first, &mut second]).await;
    gate.add_permits(1);
    tokio::join!(first, second).1.unwrap();
    let second = events(shown_second).await;
    let mut last = second.iter().filter_map(|event| match event {
        Event::Vertex(state) if state.name.contains("run") => Some(state),
        _ => None,
    });
    let last: &VertexState = last.next_back().unwrap();
    assert!(last.completed.is_some() && !last.cached && last.error.is_none(), "{last:?}");
    let logged =
        |event: &Event| matches!(event, Event::Log(log) if log.data == b"run" && log.vertex == last.digest);
    assert_eq!(second.iter().filter(|event| logged(event)).count(), 1);
    let waits = second.iter().filter_map(|event| match event {
        Event::Status(status) if status.vertex == last.digest => Some(status),
        _ => None,
    });
    let waits: Vec<_> = waits.collect();
    assert!(
        waits[0].id.starts_with("waiting for another build: ") && waits[0].id.contains("run"),
        "{waits:?}"
    );
    assert!(waits.last().unwrap().completed.is_some());
    // To the build that runs it, nothing of the other's is shown.
    let known: Vec<_> = second
        .iter()
        .filter_map(|event| match event {
            Event::Vertex(state) => Some(state.digest.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(known.iter().collect::<std::collections::BTreeSet<_>>().len(), 3, "its own three vertices");
    let first = events(shown_first).await;
    assert!(!first.iter().any(|event| matches!(event, Event::Status(_))), "{first:?}");
}

#[tokio::test]
async fn who_runs_it_may_leave_without_harm_to_who_waits() {
    let (bench, gate, mut first, mut second) = two_builds(Behaviour::default());
    settle_in_turn(&mut first, &mut second).await;
    drop(first);
    settle(&mut [&mut second]).await;
    gate.add_permits(1);
    assert_eq!(second.await.unwrap(), WANTED);
    assert_eq!(bench.world.count("run"), 1);
    assert!(bench.world.cancelled.lock().is_empty());
    assert_nothing_left(&bench).await;
}

#[tokio::test]
async fn when_all_leave_the_op_is_cancelled_and_the_next_one_runs_it() {
    let (bench, gate, mut first, mut second) = two_builds(Behaviour::default());
    settle_in_turn(&mut first, &mut second).await;
    drop((first, second));
    while bench.world.working.load(Ordering::SeqCst) > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(*bench.world.cancelled.lock(), ["run"]);
    gate.add_permits(1);
    assert_eq!(bench.solve(&build("context-2")).await.unwrap(), WANTED);
    assert_eq!((bench.world.count("copy"), bench.world.count("run")), (1, 2));
    tokio::task::yield_now().await;
    assert_nothing_left(&bench).await;
}

/// Runs two builds, the second of which begins when the op of the first runs already, and tells what came of them and how often the op ran.
async fn late(bench: &Bench, gate: &Semaphore, second: &[Node]) -> (bool, bool, usize) {
    let mut ends = solving(bench.load_for(&build("context-1"), Client::new(1), &progress()));
    settle(&mut [&mut ends]).await;
    let mut waits = solving(bench.load_for(second, Client::new(2), &progress()));
    settle(&mut [&mut ends, &mut waits]).await;
    assert_eq!(bench.world.count("run"), 1);
    gate.add_permits(10);
    let (first, second) = tokio::join!(ends, waits);
    (first.is_ok(), second.is_ok(), bench.world.count("run"))
}

#[tokio::test]
async fn a_failure_for_want_of_what_another_build_has_is_not_the_others() {
    for second in ["context-1", "context-2"] {
        let bench = bench();
        let gate = gated(&bench, "run", Behaviour { needs: Some(2), ..Behaviour::default() });
        assert_eq!(late(&bench, &gate, &build(second)).await, (false, true, 2), "{second}");
    }
}

#[tokio::test]
async fn an_op_that_looks_again_finds_who_came_later() {
    for second in ["context-1", "context-2"] {
        let bench = bench();
        let behaviour = Behaviour { needs: Some(2), looks_again: true, ..Behaviour::default() };
        let gate = gated(&bench, "run", behaviour);
        assert_eq!(late(&bench, &gate, &build(second)).await, (true, true, 1), "{second}");
    }
}

#[tokio::test]
async fn a_failure_that_has_nothing_to_do_with_builds_is_everybodys() {
    for second in ["context-1", "context-2"] {
        let bench = bench();
        let gate = gated(&bench, "run", Behaviour { fails: true, ..Behaviour::default() });
        assert_eq!(late(&bench, &gate, &build(second)).await, (false, false, 1), "{second}");
    }
}

#[tokio::test]
async fn a_failure_is_also_that_of_a_build_that_gets_there_later_and_not_of_one_that_begins_later() {
    let bench = bench();
    let gate = gated(&bench, "run", Behaviour { fails: true, ..Behaviour::default() });
    let besides = gated(&bench, "besides", Behaviour::default());
    let nodes = [node("base", &[]), node("run", &[0])];
    let busy = [&nodes[..], &[node("besides", &[]), node("join", &[1, 2])]].concat();
    let late = bench.load(&nodes);
    let mut waits = solving(bench.load(&busy));
    let mut fails = solving(bench.load(&nodes));
    settle(&mut [&mut waits, &mut fails]).await;
    gate.add_permits(10);
    assert!(fails.await.is_err());
    assert!(waits.await.is_err());
    assert!(late.resolve().await.is_err());
    assert!(late.resolve().await.is_err(), "nor is it run again for one that asks twice");
    assert_eq!(bench.world.count("run"), 1);
    // Whoever comes now tries again, and tells those that are there.
    bench.world.set("run", Behaviour::default());
    assert!(bench.solve(&nodes).await.is_ok());
    assert!(late.resolve().await.is_ok());
    assert_eq!(bench.world.count("run"), 2);
    drop((late, besides));
    assert_nothing_left(&bench).await;
}

#[tokio::test]
async fn a_failure_is_told_of_the_vertex_that_waited() {
    let (_bench, gate, mut first, mut second) = two_builds(Behaviour { fails: true, ..Behaviour::default() });
    settle(&mut [&mut first, &mut second]).await;
    gate.add_permits(1);
    let (first, second) = tokio::join!(first, second);
    let vertex = |error: &SolveError<ToyError>| match error {
        SolveError::Op { vertex, .. } => vertex.clone(),
        other => panic!("{other}"),
    };
    let (first, second) = (vertex(&first.unwrap_err()), vertex(&second.unwrap_err()));
    let target = |nodes: &[Node]| crate::support::graph(nodes).vertices().last().unwrap().digest.clone();
    assert_eq!((first, second), (target(&build("context-1")), target(&build("context-2"))));
}

#[tokio::test]
async fn a_failure_after_a_client_vanished_is_only_its_own() {
    for second in ["context-1", "context-2"] {
        let bench = bench();
        let (vanishing, staying) = (Client::new(1), Client::new(2));
        // It fails in any case, once it has seen both clients and then lost one.
        let behaviour = Behaviour { needs: Some(3), looks_again: true, ..Behaviour::default() };
        let gate = gated(&bench, "run", behaviour);
        let mut first = solving(bench.load_for(&build("context-1"), vanishing.clone(), &progress()));
        let mut other = solving(bench.load_for(&build(second), staying, &progress()));
        settle(&mut [&mut first, &mut other]).await;
        vanishing.vanish();
        bench.world.set("run", Behaviour::default());
        gate.add_permits(1);
        let (first, other) = tokio::join!(first, other);
        assert!(first.is_err(), "it is its own client that is gone");
        assert_eq!(other.unwrap(), WANTED);
        assert_eq!(bench.world.count("run"), 2);
    }
}

#[tokio::test]
async fn a_failure_for_others_does_not_stop_what_runs_besides() {
    // The second build has a branch of its own that runs while the shared one fails for want of it.
    let bench = bench();
    let shared = gated(&bench, "run", Behaviour { needs: Some(2), ..Behaviour::default() });
    let besides = gated(&bench, "besides", Behaviour::default());
    let wide = [&build("context-2")[..], &[node("besides", &[]), node("join", &[2, 3])]].concat();
    let mut first = solving(bench.load_for(&build("context-1"), Client::new(1), &progress()));
    settle(&mut [&mut first]).await;
    let mut second = solving(bench.load_for(&wide, Client::new(2), &progress()));
    settle(&mut [&mut first, &mut second]).await;
    shared.add_permits(2);
    assert!(first.await.is_err());
    settle(&mut [&mut second]).await;
    besides.add_permits(1);
    assert_eq!(second.await.unwrap(), format!("join({WANTED},besides())"));
    assert_eq!((bench.world.count("run"), bench.world.count("besides")), (2, 1));
}

#[tokio::test]
async fn a_build_without_cache_runs_its_own_beside_one_with() {
    let bench = bench();
    bench.solve(&build("context-1")).await.unwrap();
    let mut anew = build("context-2");
    for node in &mut anew {
        node.ignore_cache = true;
    }
    let gate = gated(&bench, "run", Behaviour::default());
    let mut first = solving(bench.load(&anew));
    settle(&mut [&mut first]).await;
    assert_eq!((bench.world.count("copy"), bench.world.count("run")), (2, 2));
    // The cached one does not wait for it, nor does it run anything.
    assert_eq!(bench.solve(&build("context-1")).await.unwrap(), WANTED);
    // One that has nothing cached waits for nobody who ignores the cache.
    bench.cache.retain(|_| false);
    let mut second = solving(bench.load(&build("context-1")));
    settle(&mut [&mut first, &mut second]).await;
    assert_eq!((bench.world.count("copy"), bench.world.count("run")), (3, 3));
    // Two that ignore it share what they run.
    let mut third = solving(bench.load(&anew));
    settle(&mut [&mut first, &mut second, &mut third]).await;
    gate.add_permits(2);
    let (first, second, third) = tokio::join!(first, second, third);
    assert_eq!((first.unwrap().as_str(), second.unwrap().as_str()), (WANTED, WANTED));
    assert_eq!(third.unwrap(), WANTED);
    assert_eq!((bench.world.count("copy"), bench.world.count("run")), (3, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_builds_of_two_hundred_vertices_run_each_op_once() {
    let bench = Bench::new();
    bench.world.set("n20", Behaviour { content: vec![0, 1], ..Behaviour::default() });
    // Every vertex stands on the two before it, and each tenth on a source of its own.
    let nodes: Vec<Node> = (0..200usize)
        .map(|at| {
            let inputs: Vec<usize> =
                if at % 10 == 0 { Vec::new() } else { (at.saturating_sub(2)..at).collect() };
            // Values are texts of all that went into them: keep them short.
            let inputs = if at % 10 == 9 { inputs } else { inputs.into_iter().rev().take(1).collect() };
            node(&format!("n{at}"), &inputs)
        })
        .chain([node("target", &(9..200).step_by(10).collect::<Vec<_>>())])
        .collect();
    let wanted = crate::support::expected(&nodes);
    let shown = progress();
    let builds: Vec<_> = (0..500)
        .map(|number| tokio::spawn(solving(bench.load_for(&nodes, Client::new(number), &shown))))
        .collect();
    for build in builds {
        assert_eq!(build.await.unwrap().unwrap(), wanted);
    }
    assert_eq!(bench.world.executions(), nodes.len());
    assert!(bench.world.executed.lock().values().all(|count| *count == 1));
    assert_nothing_left(&bench).await;
}
