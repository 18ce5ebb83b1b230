//! The doors: one listener, one door per protocol, nothing else.
//!
//! **For:** HTTP. A request is parsed into types once, handed to whoever does the work, and its answer rendered in the
//! layout of the client's API version.
//!
//! **Not for:** doing the work. Images are read from the stores; builds, transfers and cache are behind two narrow
//! contracts ([`Builds`], [`ImageTransfer`]) that the daemon connects.
//!
//! ```text
//!   Accept (unix, tcp, tls) ──► serve ──► one connection ──► service: version, route, common headers
//!                                  ▲          │                  │
//!                                  │      HTTP/2, gRPC           ├─ system   /_ping /version /info /events /auth /system/df
//!                                  │          ▼                  ├─ images   list, inspect, history, tag, delete, prune
//!                                  │        grpc: Control        ├─ transfer pull, push, load, save, import   → ImageTransfer
//!                                  └──────── POST /grpc ─────────┤
//!                                            101, HTTP/2         ├─ session  101, hijacked stream             → Sessions
//!                                                                ├─ build    transcript or trace              → Builds
//!                                                                ├─ history  what was built                   → History
//!                                                                └─ elsewhere: empty lists, 404, 501
//! ```
//!
//! A client that goes away drops its request's future or body, and with it the token that its work watches.
#![forbid(unsafe_code)]

mod authority;
mod backend;
mod blocking;
mod body;
mod build;
mod elsewhere;
mod engine;
mod error;
mod events;
mod grpc;
mod history;
mod images;
mod opening;
mod request;
mod route;
mod serve;
mod service;
mod session;
mod state;
mod system;
mod transfer;
mod unread;

pub use backend::{
    BodyStream, BuildCache, BuildContext, BuildOrder, Builds, Built, ImageTransfer, ImportOrder, Imported,
    LoadOrder, Loaded, PullOrder, Pulled, PushOrder, Pushed, ReceivedContext, SaveOrder, SaveSink, Saving,
    TransferNews, TransferSink,
};
pub use engine::EngineBuilds;
pub use error::{ApiError, ApiErrorKind, ErrorPlace, chain};
pub use events::EventBus;
pub use grpc::Worker;
pub use history::{build_detail, build_item};
pub use images::check_platform;
pub use serve::{Accept, ServeLimits, serve};
pub use state::{AppState, Parts, RequestLimits, SystemFacts};
