//! Whole builds in one process: an engine over a store of its own, without sockets or clients.

#![forbid(unsafe_code)]

mod context;
mod workbench;

pub use context::Context;
pub use workbench::{Built, Workbench};
