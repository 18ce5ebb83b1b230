//! Whole builds in one process: an engine over a store of its own, without sockets or clients.

#![forbid(unsafe_code)]

mod client;
mod context;
mod small_disk;
mod workbench;

pub use client::{Asked, Client};
pub use context::Context;
pub use small_disk::SmallDisk;
pub use workbench::{Built, Workbench};
