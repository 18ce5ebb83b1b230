//! Caches and the true BuildKit: what it exported for the Dockerfiles in `tests/data/interchange` is what is exported here, key by key.
//!
//! How the data were made is told in `tests/data/interchange/README.md`.

mod exports;
mod golden;
mod imports;
mod records;

use golden::{Case, golden_bench, remote_file};
use records::Shape;

/// What older versions have and is not exported here. A case that comes to agree fails, so that this stays true.
const MISSED: &[(&str, &str)] = &[
    // Before 0.26 the digest of content that wildcards choose was another, which is not made here where they choose directories.
    ("v0.12.5", "copy_wildcards"),
    ("v0.8.3", "copy_wildcards"),
    // These versions drop what is asked for: a mode by letters, a mode of ADD, limits, a hostname.
    ("v0.12.5", "copy_chmod_symbolic"),
    ("v0.8.3", "copy_chmod_symbolic"),
    ("v0.8.3", "add_http_options"),
    ("v0.8.3", "run_limits"),
    // Only a link by the content of a stage, which before 0.11 has stubs of mounts; the one by definition is there.
    ("v0.8.3", "copy_from_stage_root"),
    ("v0.8.3", "copy_owned"),
    ("v0.8.3", "run_bind_rw"),
    ("v0.8.3", "run_cache_id"),
    ("v0.8.3", "run_many_mounts"),
];

/// Builds all cases with such names, and compares the records in the images with those in BuildKit's: the same as 0.32 has, and all that older versions
/// have.
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
        for version in ["v0.32.2", "v0.12.5", "v0.8.3"] {
            let Some(theirs) = case.expected(version) else { continue };
            let theirs = shape(theirs.inline);
            let mut difference = ours.lacks(&theirs);
            if version == "v0.32.2" {
                difference += &ours.exceeds(&theirs);
            }
            let known = MISSED.contains(&(version, case.name.as_str()));
            if difference.is_empty() == known {
                wrong.push(format!("{} by {version}:\n{difference}", case.name));
            }
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
