//! Runs one [`BuildRequest`]: plan, solve, snapshot, export.
//!
//! ```text
//!   BuildRequest ─► plan: Dockerfile + facts ─► Definition ─► solver ─► ops: source │ exec │ file │ merge │ diff ─► Tree ─► Exporter
//!                    │ place_context               │                      │                                     │
//!                    └─ ReceivedContext (a tar     └─ Graph               └─ Workshop: stores, cache, sources,  └─ Exported
//!                       that came with the request)                          sessions, executor
//! ```
//!
//! This crate is not for: protocols (`api/server`), or how any of its parts does its work.

#![forbid(unsafe_code)]

mod ask;
mod attest;
mod bridge;
mod caches;
mod classic;
mod context;
mod engine;
mod entitlements;
mod epoch;
mod error;
mod fault;
mod frontend;
mod graphs;
mod history;
mod kept;
mod left;
mod op_json;
mod ops;
mod outputs;
mod plan;
mod platforms;
mod policy;
mod reasons;
mod recorded;
mod request;
mod scope;
mod session_outputs;
mod step_error;

pub use ask::Question;
pub use bridge::{
    Bridge, BridgeService, FileError, FrontendResult, GatewayAttestation, Ref, Refs, Serving, bridge_service,
    bridges_service, health_service, llb_caps, status_of,
};
pub use caches::{
    CacheExportOptions, CacheFault, CacheForm, CacheMode, CacheSource, CacheTarget, LocalManifest,
};
pub use classic::Script;
pub use context::ReceivedContext;
pub use engine::{Engine, Parts};
pub use entitlements::{Entitlement, Grants, Refusal};
pub use error::{EngineError, FrontendRun, Returned};
pub use fault::{Fault, Place};
pub use frontend::{DOCKERFILE_VERSION, Frontends};
pub use kept::{
    FAILED_BUILD_LABEL, FAILED_CODE_LABEL, FAILED_IMAGES, FAILED_OOM_LABEL, FAILED_REPOSITORY,
    FAILED_STEP_LABEL, FailedImage, KeepFailed,
};
pub use left::{Left, ShownStep};
pub use platforms::platforms;
pub use policy::SourcePolicy;
pub use request::{BuildId, BuildRequest, ContextInput, FrontendRequest, Input};
pub use step_error::{OutOfMemory, StepError};

pub use lapstrake_builder_dockerfile::{
    Step, StepKind,
    subrequest::{Reply, Subrequest},
};
pub use lapstrake_builder_executor::{CdiDevices, Resources};
pub use lapstrake_builder_exporter::{Compatibility, Destination, Exported, Output};
pub use lapstrake_builder_source::ErrorKind;
