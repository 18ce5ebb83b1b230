//! Caches for the true BuildKit to try, which no test here can run.

use std::path::PathBuf;

use lapstrake_builder_engine::{CacheExportOptions, CacheForm, CacheMode, CacheTarget};
use lapstrake_builder_exporter::{Destination, Output};
use lapstrake_layerstore_oci::Reference;

use crate::interchange::golden::{Case, golden_bench, remote_file};

const TARGETS: [(&str, CacheMode, CacheForm); 4] = [
    ("max", CacheMode::Max, CacheForm::ImageManifest),
    ("min", CacheMode::Min, CacheForm::ImageManifest),
    // All that BuildKit before 0.12 knows.
    ("max-index", CacheMode::Max, CacheForm::OciIndex),
    ("min-index", CacheMode::Min, CacheForm::OciIndex),
];

/// Writes caches of each case to the directory `GOLDEN_OUT`, tagged `<mode>-<case>` and `<mode>-index-<case>`, with an image beside them that carries
/// its own, `inline-<case>.tar`. If there is a `GOLDEN_REGISTRY`, the caches go there too, as `ours/cache:<tag>`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "by hand: give GOLDEN_OUT, and import what is written there with BuildKit"]
async fn caches_are_written_for_buildkit() {
    let directory = PathBuf::from(std::env::var_os("GOLDEN_OUT").expect("GOLDEN_OUT is a directory"));
    let registry = std::env::var("GOLDEN_REGISTRY").ok();
    let server = remote_file();
    for case in Case::all() {
        let mut targets = Vec::new();
        for (name, mode, form) in TARGETS {
            let tag = format!("{name}-{}", case.name);
            let options = CacheExportOptions { mode, form, ..CacheExportOptions::default() };
            if let Some(registry) = &registry {
                let reference = Reference::parse(&format!("{registry}/ours/cache:{tag}")).unwrap();
                targets.push(CacheTarget::Registry { reference, insecure: true, options: options.clone() });
            }
            targets.push(CacheTarget::Local { directory: directory.clone(), tag, reset: false, options });
        }
        let to = Destination::Path(directory.join(format!("inline-{}.tar", case.name)));
        let change = |request: &mut lapstrake_builder_engine::BuildRequest| {
            request.cache_to = targets;
            request.inline_cache = true;
            request.outputs = vec![Output::oci(Vec::new(), to)];
        };
        case.build_with(&golden_bench(), &server, change).await.unwrap();
    }
}
