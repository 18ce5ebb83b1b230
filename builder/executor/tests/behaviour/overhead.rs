//! What a RUN costs beyond its program. Measures and prints; run it with
//! `cargo nextest run -p lapstrake-builder-executor --run-ignored only --no-capture overhead`.
//!
//! On ext4 the time depends on what was deleted in the last five seconds, whose inodes it passes over one by one to find a free
//! one; with `TMPDIR=/dev/shm` one sees the executor's own part.

use std::time::{Duration, Instant};

use lapstrake_builder_executor::{NetworkMode, ProcessSpec};
use lapstrake_layerstore_store::{OverlaySyntax, OverlayUpper, SnapshotMount};

use crate::{
    harness::Kind,
    network::{required, with_network},
};

const ROUNDS: usize = 50;

async fn measure(kind: Kind, network: NetworkMode) -> (Duration, Duration) {
    // The default is a sandbox here.
    let (sandbox, _helper) = with_network(kind, required());
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let base = sandbox.path(&format!("round{round}"));
        for name in ["upper", "work"] {
            std::fs::create_dir_all(base.join(name)).unwrap();
        }
        let root = SnapshotMount::Overlay {
            lower: vec![sandbox.lower()],
            upper: Some(OverlayUpper { upper: base.join("upper"), work: base.join("work") }),
            syntax: OverlaySyntax::Appended,
        };
        let mut spec = ProcessSpec::new(root, ["/bin/true"]);
        spec.network = network;
        let start = Instant::now();
        assert!(sandbox.run(spec).await.status.success());
        times.push(start.elapsed());
    }
    times.sort_unstable();
    (times[ROUNDS / 2], times[ROUNDS * 9 / 10])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, not a check"]
async fn overhead_of_true() {
    for kind in [Kind::Native, Kind::Runc, Kind::Crun] {
        for network in [NetworkMode::Host, NetworkMode::None, NetworkMode::Default] {
            let (median, ninth) = measure(kind, network).await;
            println!("{kind:?} {network:?}: median {median:?}, 90th percentile {ninth:?}");
        }
    }
}
