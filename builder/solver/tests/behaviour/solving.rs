//! What the solver promises: right results, each op at most once, cached work not done again, nobody harmed by others.

use std::sync::{Arc, atomic::Ordering};

use crate::support::{Behaviour, Bench, Brought, Coming, Node, expected, node};
use lapstrake_builder_solver::{KeyId, MissCause, SolveError};
use proptest::prelude::*;
use tokio::sync::Semaphore;

#[tokio::test]
async fn a_second_build_executes_nothing() {
    let bench = Bench::new();
    let nodes = [node("base", &[]), node("step", &[0]), node("other", &[0]), node("join", &[1, 2])];
    assert_eq!(bench.solve(&nodes).await.unwrap(), expected(&nodes));
    assert_eq!(bench.world.executions(), 4);
    assert_eq!(bench.solve(&nodes).await.unwrap(), expected(&nodes));
    assert_eq!(bench.world.executions(), 4);
}

#[tokio::test]
async fn a_cached_target_needs_no_results_of_its_inputs() {
    let bench = Bench::new();
    let nodes = [node("base", &[]), node("step", &[0]), node("target", &[1])];
    bench.solve(&nodes).await.unwrap();
    bench.cache.retain(|value| value.starts_with("target"));
    bench.solve(&nodes).await.unwrap();
    assert_eq!(bench.world.executions(), 3, "pruned inputs are not made again for a cached target");
}

#[tokio::test]
async fn what_a_result_was_made_of_is_told_also_where_it_was_cached() {
    let bench = Bench::new();
    let nodes = [node("base", &[]), node("other", &[]), node("target", &[0, 1])];
    assert!(bench.load(&nodes).told().is_empty(), "nothing was looked at yet");
    for _ in 0..2 {
        let build = bench.load(&nodes);
        build.resolve().await.unwrap();
        assert_eq!(build.told(), ["base", "other", "target"]);
    }
    assert_eq!(bench.world.executions(), 3);
}

#[tokio::test]
async fn a_pruned_result_is_made_again() {
    let bench = Bench::new();
    let nodes = [node("base", &[]), node("target", &[0])];
    bench.solve(&nodes).await.unwrap();
    bench.cache.retain(|_| false);
    assert_eq!(bench.solve(&nodes).await.unwrap(), expected(&nodes));
    assert_eq!(bench.world.count("target"), 2);
}

#[tokio::test]
async fn equal_content_hits_although_the_definition_differs() {
    let bench = Bench::new();
    let same = Behaviour { yields: Some("same files".into()), ..Behaviour::default() };
    bench.world.set("context-1", Behaviour { ephemeral: true, ..same.clone() });
    bench.world.set("context-2", Behaviour { ephemeral: true, ..same });
    bench.world.set("copy", Behaviour { content: vec![1], ..Behaviour::default() });
    let build =
        |context: &str| [node("base", &[]), node(context, &[]), node("copy", &[0, 1]), node("run", &[2])];
    bench.solve(&build("context-1")).await.unwrap();
    bench.solve(&build("context-2")).await.unwrap();
    assert_eq!(bench.world.count("context-2"), 1, "only a look tells its content");
    assert_eq!(bench.world.count("copy"), 1);
    assert_eq!(bench.world.count("run"), 1);
}

#[tokio::test]
async fn other_content_misses_from_there_on() {
    let bench = Bench::new();
    for (name, content) in [("context-1", "old"), ("context-2", "new")] {
        let behaviour = Behaviour { yields: Some(content.into()), ephemeral: true, ..Behaviour::default() };
        bench.world.set(name, behaviour);
    }
    bench.world.set("copy", Behaviour { content: vec![1], ..Behaviour::default() });
    let build =
        |context: &str| [node("base", &[]), node(context, &[]), node("copy", &[0, 1]), node("run", &[2])];
    bench.solve(&build("context-1")).await.unwrap();
    let second = build("context-2");
    assert_eq!(bench.solve(&second).await.unwrap(), expected(&second));
    assert_eq!((bench.world.count("base"), bench.world.count("copy"), bench.world.count("run")), (1, 2, 2));
    // And the first is still there.
    bench.solve(&build("context-1")).await.unwrap();
    assert_eq!(bench.world.count("run"), 2);
}

#[tokio::test]
async fn a_rebuilt_input_with_equal_content_still_hits_downstream() {
    let bench = Bench::new();
    for name in ["compile-1", "compile-2"] {
        bench.world.set(name, Behaviour { yields: Some("binary".into()), ..Behaviour::default() });
    }
    bench.world.set("copy", Behaviour { content: vec![0], ..Behaviour::default() });
    bench.solve(&[node("compile-1", &[]), node("copy", &[0]), node("run", &[1])]).await.unwrap();
    bench.solve(&[node("compile-2", &[]), node("copy", &[0]), node("run", &[1])]).await.unwrap();
    assert_eq!((bench.world.count("copy"), bench.world.count("run")), (1, 1));
}

#[tokio::test]
async fn what_was_found_by_content_is_found_by_definition_from_then_on() {
    let bench = Bench::new();
    for name in ["compile-1", "compile-2"] {
        bench.world.set(name, Behaviour { yields: Some("binary".into()), ..Behaviour::default() });
    }
    bench.world.set("copy", Behaviour { content: vec![0, 1], ..Behaviour::default() });
    let build =
        |compile: &str| [node("base", &[]), node(compile, &[]), node("copy", &[0, 1]), node("run", &[2])];
    bench.solve(&build("compile-1")).await.unwrap();
    bench.solve(&build("compile-2")).await.unwrap();
    let looked = bench.world.looked.load(Ordering::SeqCst);
    assert_eq!((bench.world.count("copy"), bench.world.count("compile-2")), (1, 1));
    bench.cache.retain(|value| !value.starts_with("compile-2"));
    bench.solve(&build("compile-2")).await.unwrap();
    assert_eq!(bench.world.looked.load(Ordering::SeqCst), looked, "its definition leads there");
    assert_eq!(bench.world.count("compile-2"), 1, "and nobody needs it");
    // Links lead from what is the same, and from nothing else.
    bench.world.set("compile-3", Behaviour { yields: Some("another binary".into()), ..Behaviour::default() });
    bench.solve(&build("compile-3")).await.unwrap();
    assert_eq!((bench.world.count("copy"), bench.world.count("run")), (2, 2));
}

#[tokio::test]
async fn ignoring_the_cache_executes_again_and_what_depends_on_it_too() {
    let bench = Bench::new();
    let mut nodes = vec![node("base", &[]), node("step", &[0]), node("after", &[1])];
    bench.solve(&nodes).await.unwrap();
    nodes[1].ignore_cache = true;
    bench.solve(&nodes).await.unwrap();
    assert_eq!((bench.world.count("base"), bench.world.count("step"), bench.world.count("after")), (1, 2, 2));
    nodes[1].ignore_cache = false;
    bench.solve(&nodes).await.unwrap();
    assert_eq!(bench.world.executions(), 5, "what was made in spite of the cache is cached");
}

#[tokio::test]
async fn a_brought_cache_hits_and_is_learned() {
    let elsewhere = Bench::new();
    let nodes = [node("base", &[]), node("step", &[0]), node("more", &[1]), node("target", &[2])];
    elsewhere.solve(&nodes).await.unwrap();
    let mut bench = Bench::new();
    bench.brought.push(Arc::new(Brought(elsewhere.cache.clone())));
    assert_eq!(bench.solve(&nodes).await.unwrap(), expected(&nodes));
    assert_eq!(bench.world.executions(), 0);
    bench.brought.clear();
    assert_eq!(bench.solve(&nodes).await.unwrap(), expected(&nodes));
    assert_eq!(bench.world.executions(), 0, "what was brought once is in the own cache");
    // What goes on from it is cached too.
    let longer = [&nodes[..], &[node("after", &[3])]].concat();
    bench.solve(&longer).await.unwrap();
    bench.solve(&longer).await.unwrap();
    assert_eq!(bench.world.executions(), 1);
}

#[tokio::test]
async fn a_hit_here_does_not_wait_for_caches_on_their_way() {
    let mut bench = Bench::new();
    let source = Behaviour { ephemeral: true, yields: Some("files".to_owned()), ..Behaviour::default() };
    bench.world.set("context", source);
    for copy in ["copy", "copy-built"] {
        bench.world.set(copy, Behaviour { content: vec![0], ..Behaviour::default() });
    }
    let nodes = [
        node("base", &[]),
        node("context", &[]),
        node("copy", &[1, 0]),
        node("build", &[2]),
        node("copy-built", &[3, 0]),
    ];
    bench.solve(&nodes).await.unwrap();
    let coming = Coming(Brought(Arc::default()), Arc::new(Semaphore::new(0)));
    bench.brought.push(Arc::new(coming));
    let before = bench.world.executions();
    assert_eq!(bench.solve(&nodes).await.unwrap(), expected(&nodes));
    assert_eq!(bench.world.executions(), before + 1, "only the context is looked at again");
}

#[tokio::test]
async fn a_miss_waits_for_caches_on_their_way() {
    let elsewhere = Bench::new();
    let nodes = [node("base", &[]), node("step", &[0]), node("more", &[1]), node("target", &[2])];
    elsewhere.solve(&nodes).await.unwrap();
    let mut bench = Bench::new();
    // What is here leads half of the way.
    bench.solve(&nodes[..2]).await.unwrap();
    let arrived = Arc::new(Semaphore::new(0));
    bench.brought.push(Arc::new(Coming(Brought(elsewhere.cache.clone()), arrived.clone())));
    let build = bench.load(&nodes);
    let (resolved, ()) = tokio::join!(build.resolve(), async {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(bench.world.executions(), 2, "nothing runs while a cache may have it");
        arrived.add_permits(1);
    });
    assert_eq!(resolved.unwrap().value, expected(&nodes));
    assert_eq!(bench.world.executions(), 2);
    let keys = build.keys();
    assert_eq!(keys.len(), nodes.len());
    assert!(keys.iter().all(|keys| keys.iter().any(|key| !key.is_foreign())), "{keys:?}");
    assert!(keys[1..].iter().all(|keys| keys.iter().any(KeyId::is_foreign)), "{keys:?}");
}

#[tokio::test]
async fn concurrent_builds_share_what_runs() {
    let bench = Bench::new();
    let gate = Arc::new(Semaphore::new(0));
    bench.world.set("slow", Behaviour { gate: Some(gate.clone()), ..Behaviour::default() });
    let first = [node("slow", &[]), node("first", &[0])];
    let second = [node("slow", &[]), node("second", &[0])];
    let solves = async { tokio::join!(bench.solve(&first), bench.solve(&second)) };
    let open = async {
        while bench.world.count("slow") == 0 {
            tokio::task::yield_now().await;
        }
        gate.add_permits(1);
    };
    let ((a, b), ()) = tokio::join!(solves, open);
    assert_eq!((a.unwrap(), b.unwrap()), (expected(&first), expected(&second)));
    assert_eq!(bench.world.count("slow"), 1);
}

#[tokio::test]
async fn one_builds_cancel_does_not_harm_another() {
    let bench = Bench::new();
    let gate = Arc::new(Semaphore::new(0));
    bench.world.set("slow", Behaviour { gate: Some(gate.clone()), ..Behaviour::default() });
    let nodes = [node("slow", &[]), node("target", &[0])];
    let (leaving, staying) = (bench.load(&nodes), bench.load(&nodes));
    {
        let leave = leaving.resolve();
        let stay = staying.resolve();
        tokio::pin!(leave, stay);
        while bench.world.count("slow") == 0 {
            assert!(futures::poll!(leave.as_mut()).is_pending());
            assert!(futures::poll!(stay.as_mut()).is_pending());
            tokio::task::yield_now().await;
        }
    }
    let stay = staying.resolve();
    tokio::pin!(stay);
    assert!(futures::poll!(stay.as_mut()).is_pending());
    drop(leaving);
    gate.add_permits(2);
    assert_eq!(stay.await.unwrap().value, expected(&nodes));
}

#[tokio::test]
async fn the_last_build_to_leave_cancels_the_op() {
    let bench = Bench::new();
    let gate = Arc::new(Semaphore::new(0));
    bench.world.set("slow", Behaviour { gate: Some(gate), ..Behaviour::default() });
    let build = bench.load(&[node("slow", &[]), node("target", &[0])]);
    {
        let solve = build.resolve();
        tokio::pin!(solve);
        while bench.world.count("slow") == 0 {
            assert!(futures::poll!(solve.as_mut()).is_pending());
            tokio::task::yield_now().await;
        }
    }
    drop(build);
    while bench.world.cancelled.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(*bench.world.cancelled.lock(), ["slow"]);
}

#[tokio::test]
async fn a_failure_names_its_vertex_and_is_not_kept() {
    let bench = Bench::new();
    bench.world.set("bad", Behaviour { fails: true, ..Behaviour::default() });
    let nodes = [node("base", &[]), node("bad", &[0]), node("after", &[1])];
    let error = bench.solve(&nodes).await.unwrap_err();
    assert!(matches!(&error, SolveError::Op { name, .. } if name.contains("bad")), "{error}");
    assert_eq!(bench.world.count("after"), 0);
    bench.world.set("bad", Behaviour::default());
    assert_eq!(bench.solve(&nodes).await.unwrap(), expected(&nodes));
    assert_eq!(bench.world.count("base"), 1);
}

#[tokio::test]
async fn a_deep_chain_costs_no_stack() {
    let bench = Bench::new();
    let nodes: Vec<Node> = (0..3_000usize)
        .map(|i| node(&format!("n{i}"), &i.checked_sub(1).into_iter().collect::<Vec<_>>()))
        .collect();
    assert_eq!(bench.solve(&nodes).await.unwrap(), expected(&nodes));
    assert_eq!(bench.world.executions(), 3_000);
}

fn unknown(inputs: &[u32]) -> MissCause {
    MissCause::Unknown { inputs: inputs.to_vec() }
}

#[tokio::test]
async fn an_op_that_runs_is_told_why() {
    let bench = Bench::new();
    let mut nodes = [node("base", &[]), node("step", &[0]), node("target", &[1])];
    let told = |causes: &[(&str, MissCause)]| -> Vec<(String, MissCause)> {
        causes.iter().map(|(name, cause)| ((*name).to_owned(), cause.clone())).collect()
    };
    bench.solve(&nodes).await.unwrap();
    // Nothing leads on from inputs of which nothing is known.
    let first = [("base", unknown(&[])), ("step", unknown(&[0])), ("target", unknown(&[0]))];
    assert_eq!(bench.world.misses(), told(&first));
    bench.solve(&nodes).await.unwrap();
    assert_eq!(bench.world.misses(), [], "what is found is not run");
    bench.cache.retain(|value| !value.starts_with("target"));
    bench.solve(&nodes).await.unwrap();
    assert_eq!(bench.world.misses(), told(&[("target", MissCause::Pruned)]));
    nodes[1].ignore_cache = true;
    bench.solve(&nodes).await.unwrap();
    assert_eq!(bench.world.misses(), told(&[("step", MissCause::NoCache), ("target", unknown(&[0]))]));
}

#[tokio::test]
async fn an_op_is_told_which_input_leads_nowhere() {
    let bench = Bench::new();
    for (name, content) in [("context-1", "old"), ("context-2", "new"), ("context-3", "newer")] {
        let behaviour = Behaviour { yields: Some(content.into()), ephemeral: true, ..Behaviour::default() };
        bench.world.set(name, behaviour);
    }
    bench.world.set("copy", Behaviour { content: vec![1], ..Behaviour::default() });
    let build = |base: &str, context: &str| [node(base, &[]), node(context, &[]), node("copy", &[0, 1])];
    bench.solve(&build("base-1", "context-1")).await.unwrap();
    bench.world.misses();
    bench.solve(&build("base-1", "context-2")).await.unwrap();
    let causes: Vec<_> = bench.world.misses().into_iter().map(|(_, cause)| cause).collect();
    assert_eq!(causes, [MissCause::Ephemeral, unknown(&[1])]);
    bench.solve(&build("base-2", "context-3")).await.unwrap();
    let last = bench.world.misses().pop().unwrap();
    assert_eq!(last, ("copy".to_owned(), unknown(&[0, 1])));
    // Base 2 is known with context 3, and context 1 with base 1, but not the two together.
    bench.solve(&build("base-2", "context-1")).await.unwrap();
    let last = bench.world.misses().pop().unwrap();
    assert_eq!(last, ("copy".to_owned(), unknown(&[])));
}

/// Graphs of up to 24 vertices, each with up to three earlier ones as inputs; some count inputs by content.
fn graphs() -> impl Strategy<Value = Vec<(Node, Vec<usize>)>> {
    prop::collection::vec((prop::collection::vec(any::<prop::sample::Index>(), 0..4), any::<u8>()), 1..24)
        .prop_map(|specs| {
            let mut nodes: Vec<(Node, Vec<usize>)> = Vec::new();
            for (i, (inputs, content)) in specs.into_iter().enumerate() {
                // The target stands on the one before, so that most of the graph is needed.
                let mut inputs: Vec<usize> =
                    if i == 0 { Vec::new() } else { inputs.iter().map(|input| input.index(i)).collect() };
                inputs.extend(i.checked_sub(1));
                inputs.dedup();
                let by_content = (0..inputs.len()).filter(|bit| content >> bit & 1 == 1).collect();
                nodes.push((node(&format!("n{i}"), &inputs), by_content));
            }
            nodes
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_graph_is_right_runs_each_op_once_and_is_cached_whole(
        specs in graphs(),
        pruned in any::<u32>(),
        builds in 1usize..6,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        runtime.block_on(async {
            let bench = Bench::new();
            for (node, content) in &specs {
                bench.world.set(&node.name, Behaviour { content: content.clone(), ..Behaviour::default() });
            }
            let nodes: Vec<Node> = specs.iter().map(|(node, _)| node.clone()).collect();
            let wanted = expected(&nodes);
            let loaded: Vec<_> = (0..builds).map(|_| bench.load(&nodes)).collect();
            let solved = futures::future::join_all(loaded.iter().map(|build| build.resolve())).await;
            for result in solved {
                assert_eq!(result.unwrap().value, wanted);
            }
            assert!(bench.world.executed.lock().values().all(|count| *count == 1));
            drop(loaded);
            let before = bench.world.executions();
            assert_eq!(bench.solve(&nodes).await.unwrap(), wanted);
            assert_eq!(bench.world.executions(), before);
            // Whatever is pruned, the result stays right.
            let mut kept = pruned;
            bench.cache.retain(|_| { kept = kept.rotate_left(1); kept & 1 == 1 });
            assert_eq!(bench.solve(&nodes).await.unwrap(), wanted);
        });
    }
}
