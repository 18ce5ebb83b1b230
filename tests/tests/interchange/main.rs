//! Caches and the true BuildKit: what it exported for the Dockerfiles in `tests/data/interchange` is what is exported here, key by key.
//!
//! How the data were made is told in `tests/data/interchange/README.md`.
#![allow(clippy::unwrap_used)]

mod golden;
mod records;

use golden::{Case, golden_bench, remote_file};
use records::Shape;

/// Builds all cases with such names, and compares the records in the images with those in BuildKit's.
async fn compare(named: impl Fn(&str) -> bool) {
    let server = remote_file();
    let mut wrong = Vec::new();
    for case in Case::all().into_iter().filter(|case| named(&case.name)) {
        let bench = golden_bench();
        if let Err(error) = case.build(&bench, &server).await {
            wrong.push(format!("{}: {error}", case.name));
            continue;
        }
        let shape = |records: Option<Vec<_>>| Shape::of(&records.unwrap_or_default(), |layer| layer + 1);
        let ours = shape(records::inline(&bench.config("built")));
        let theirs = shape(case.expected("v0.32.2").inline);
        if ours != theirs {
            wrong.push(format!("{}:\n{}", case.name, records::difference(&ours, &theirs)));
        }
    }
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_run_are_buildkits() {
    compare(|name| name.starts_with("run_")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_copy_are_buildkits() {
    compare(|name| name.starts_with("copy_")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_everything_else_are_buildkits() {
    compare(|name| !name.starts_with("run_") && !name.starts_with("copy_")).await;
}
