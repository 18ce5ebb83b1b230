//! What is done with text: a Dockerfile is parsed and planned, and paths of a context are matched against its ignore file.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a benchmark fails by panicking, and criterion's macros document nothing"
)]

use std::{fmt::Write as _, hint::black_box};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lapstrake_builder_dockerfile::{
    Answer, DockerfileOptions, Facts, ignore::PatternMatcher, instructions::Dockerfile, plan,
};
use lapstrake_layerstore_oci::Platform;

/// A thousand instructions in fifty stages, with variables and continued lines.
fn dockerfile() -> String {
    let mut text = String::from("ARG version=1\n");
    for stage in 0..50 {
        writeln!(text, "FROM scratch AS stage{stage}\nARG version\nENV NAME=stage{stage} VERSION=$version")
            .unwrap();
        for step in 0..8 {
            writeln!(text, "# step {step}\nRUN echo ${{NAME}} {step} \\\n  && true").unwrap();
            writeln!(
                text,
                "COPY --from={} /out/{step} /$NAME/{step}",
                if stage == 0 { 0 } else { stage - 1 }
            )
            .unwrap();
        }
    }
    text.replace("COPY --from=0 /out", "COPY /out")
}

fn parse(criterion: &mut Criterion) {
    let text = dockerfile();
    let mut group = criterion.benchmark_group("dockerfile");
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("parse", |bencher| {
        bencher.iter(|| Dockerfile::parse(black_box(text.as_bytes())).unwrap());
    });
    let mut options = DockerfileOptions::new(Platform::new("linux", "amd64"));
    options.session_id = Some("session".to_owned());
    let facts = Facts::new(text.clone().into_bytes());
    group.bench_function("plan", |bencher| {
        bencher.iter(|| {
            let answer = plan(black_box(&options), black_box(&facts)).unwrap();
            assert!(
                matches!(answer, Answer::Plan(_)),
                "nothing is needed of a Dockerfile whose stages are all its own"
            );
            answer
        });
    });
    group.finish();
}

fn matching(criterion: &mut Criterion) {
    let patterns = [
        "**/.git",
        "**/node_modules",
        "*.log",
        "**/*.tmp",
        "target/",
        "docs/**/*.md",
        "!docs/README.md",
        "a?c/[0-9]*",
        "build/*/cache",
        "vendor/**/test*",
        "!vendor/keep/**",
        ".*",
    ];
    let paths: Vec<String> = (0..10_000)
        .map(|number| format!("src/module{}/part{}/file{number}.rs", number % 40, number % 400))
        .collect();
    let mut group = criterion.benchmark_group("ignore");
    group.throughput(Throughput::Elements(paths.len() as u64));
    group.bench_function("compile", |bencher| {
        bencher.iter(|| PatternMatcher::new(black_box(&patterns)).unwrap())
    });
    let matcher = PatternMatcher::new(&patterns).unwrap();
    group.bench_function("match 10,000 paths", |bencher| {
        bencher.iter(|| paths.iter().filter(|path| matcher.matches(black_box(path))).count());
    });
    group.finish();
}

criterion_group!(benches, parse, matching);
criterion_main!(benches);
