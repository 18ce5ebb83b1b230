//! Caches for the true BuildKit to try, which no test here can run.

use lapstrake_builder_engine::{CacheExportOptions, CacheForm, CacheMode, CacheTarget};

use crate::golden::{Case, golden_bench, remote_file};

/// Writes a cache of each case to the directory `GOLDEN_OUT`, tagged `<mode>-<case>`, or `old-<case>`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "by hand: give GOLDEN_OUT, and import what is written there with BuildKit"]
async fn caches_are_written_for_buildkit() {
    let directory = std::env::var_os("GOLDEN_OUT").expect("GOLDEN_OUT is a directory");
    let server = remote_file();
    for case in Case::all() {
        let target = |name: &str, mode, form| CacheTarget::Local {
            directory: directory.clone().into(),
            tag: format!("{name}-{}", case.name),
            reset: false,
            options: CacheExportOptions { mode, form, ..CacheExportOptions::default() },
        };
        let targets = vec![
            target("max", CacheMode::Max, CacheForm::ImageManifest),
            target("min", CacheMode::Min, CacheForm::ImageManifest),
            // All that BuildKit before 0.12 knows.
            target("old", CacheMode::Max, CacheForm::OciIndex),
        ];
        case.build_with(&golden_bench(), &server, |request| request.cache_to = targets).await.unwrap();
    }
}
