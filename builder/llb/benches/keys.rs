//! Cache keys of ops, and reading a graph: what a cached rebuild does for each step.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a benchmark fails by panicking, and criterion's macros document nothing"
)]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lapstrake_builder_llb::{
    Defaults, Definition, ExecOptions, Graph, GraphBuilder, Limits, State, cache_key, pb, pb::op::Op,
};
use lapstrake_layerstore_oci::Platform;

/// A chain of so many RUN.
fn chain(count: usize) -> Definition {
    let mut graph = GraphBuilder::new();
    let mut state = State::scratch();
    for number in 0..count {
        let options = ExecOptions {
            args: vec!["/bin/sh".to_owned(), "-c".to_owned(), format!("make step-{number}")],
            ..ExecOptions::default()
        };
        state = graph.run(&state, options).root;
    }
    let defaults = Defaults { platform: Platform::new("linux", "amd64"), worker_filters: Vec::new() };
    graph.marshal(&state, &defaults).unwrap().definition
}

fn keys(criterion: &mut Criterion) {
    let definition = chain(1000);
    let graph = Graph::parse(&definition, Limits::default()).unwrap();
    let platform =
        pb::Platform { os: "linux".to_owned(), architecture: "amd64".to_owned(), ..pb::Platform::default() };
    let execs: Vec<pb::ExecOp> = graph
        .vertices()
        .iter()
        .filter_map(|vertex| match &vertex.op.op {
            Some(Op::Exec(exec)) => Some(exec.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(execs.len(), 1000, "each RUN is an op");

    let mut group = criterion.benchmark_group("1,000 ops");
    group.throughput(Throughput::Elements(1000));
    group.bench_function("parse the graph", |bencher| {
        bencher.iter(|| Graph::parse(black_box(&definition), Limits::default()).unwrap());
    });
    group.bench_function("keys of exec", |bencher| {
        bencher.iter(|| {
            execs
                .iter()
                .map(|op| cache_key::exec(black_box(op), Some(&platform), 1).unwrap())
                .collect::<Vec<_>>()
        });
    });
    group.finish();
}

criterion_group!(benches, keys);
criterion_main!(benches);
