//! What a build says while it runs.
//!
//! ```text
//!   solver, executor, sources, exporters ──emit──► Progress ──spool file──► Subscription ──► an encoder
//!                                                                            (any number)     StatusResponse │ classic │ plain │ tty
//! ```
//!
//! Every event is appended to a spool file and read back from it, so a build never waits for a client that reads slowly
//! or not at all, memory stays flat however much a step prints, and the spool is the build's complete log.
//!
//! This crate is not for: deciding what a build does, or for the transport that carries an encoding to a client.

#![forbid(unsafe_code)]

mod board;
pub mod classic;
mod event;
mod fan;
mod plain;
mod rawjson;
mod redact;
mod spool;
mod tty;
mod vertex;

pub use event::{
    Event, Log, ProgressGroup, Status, Stream, VertexState, Warning, from_response, to_response,
};
pub use fan::Fan;
/// What an encoder is given: events of one moment, packed. See [`from_response`].
pub use lapstrake_api_proto::control::StatusResponse;
pub use plain::Plain;
pub use rawjson::rawjson;
pub use redact::redact;
pub use spool::{Limits, Progress, ProgressError, Subscription};
pub use tty::{TerminalSize, Tty};
pub use vertex::{StatusHandle, VertexHandle};

/// Anything that takes events. Emitting never blocks on a reader and never fails the work that reports.
pub trait Emit: Send + Sync {
    /// Takes one event.
    fn emit(&self, event: &Event);
}
