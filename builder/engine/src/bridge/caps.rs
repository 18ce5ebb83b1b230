//! What frontends are told that they may use.

use lapstrake_api_proto::{
    apicaps::ApiCap,
    gateway::{PongResponse, WorkerRecord},
    llb,
};
use lapstrake_builder_llb::caps;

use super::Bridge;
use crate::Engine;

/// The capabilities of the bridge itself, by BuildKit's names (0.32).
const BRIDGE: &[&str] = &[
    "solve.base",
    "solve.inlinereturn",
    "resolveimage",
    "resolveimage.resolvemode",
    "readfile",
    "return",
    "returnmap",
    "readdir",
    "statfile",
    "importcaches",
    "proto.refarray",
    "reference.output",
    "frontend.inputs",
    "gateway.solve.metadata",
    "gateway.exec",
    "gateway.exec.extrahosts",
    "gateway.exec.secretenv",
    "gateway.exec.signals",
    "gateway.exec.filesystem",
    "frontend.caps",
    "gateway.solve.evaluate",
    "gateway.evaluate",
    "gateway.warnings",
    "reference.attestations",
    "source.metaresolver",
    "source.metaresolver.image.attestations",
];

/// The name that this worker has among those that a client lists.
const WORKER: &str = "lapstrake";

/// The capabilities of graphs, as clients read them.
pub fn llb_caps() -> Vec<ApiCap> {
    let shown = |cap: &caps::Cap| ApiCap {
        id: cap.id.to_owned(),
        enabled: cap.without.is_none(),
        disabled_reason_msg: cap.without.unwrap_or_default().to_owned(),
        ..ApiCap::default()
    };
    caps::ALL.iter().map(shown).collect()
}

fn bridge_caps() -> Vec<ApiCap> {
    let shown = |id: &&str| ApiCap { id: (*id).to_owned(), enabled: true, ..ApiCap::default() };
    BRIDGE.iter().map(shown).collect()
}

impl Engine {
    /// This machine as clients see it: the one worker that there is.
    pub async fn worker(&self) -> WorkerRecord {
        let platforms = self.platforms().await.into_iter().map(|platform| llb::Platform {
            architecture: platform.architecture,
            os: platform.os,
            variant: platform.variant,
            os_version: platform.os_version,
            os_features: platform.os_features,
        });
        WorkerRecord { id: WORKER.to_owned(), platforms: platforms.collect(), ..WorkerRecord::default() }
    }
}

impl Bridge {
    /// What there is, and who works.
    pub(crate) async fn ping(&self) -> PongResponse {
        PongResponse {
            frontend_api_caps: bridge_caps(),
            llb_caps: llb_caps(),
            workers: vec![self.engine.worker().await],
        }
    }
}
