//! Moby graph drivers (overlay2, vfs) behind the Snapshotter contract.
//!
//! ```text
//!   Snapshotter ◄── Adapter ──► SnapshotRecords   who is whose parent, by key and name (metadata.db)
//!                      └──────► GraphDriver       directories by id: overlay2 │ vfs
//! ```
//!
//! A driver knows directories only; keys, names, states and parents are records. This crate is not for: tar streams
//! (`layerstore/diff`), mounting (`layerstore/store`'s `OpenSnapshot`, and the executor), deciding what may be removed.
//!
//! # What survives a crash
//!
//! A directory is made before its record, and a record is removed before its directory, which is first renamed to
//! `removing-<id>`. So directories without a record are rubbish, and [`Adapter::collect_orphans`] removes them at start.

#![forbid(unsafe_code)]

mod adapter;
mod copy;
mod driver;
mod files;
mod overlay2;
mod probe;
mod vfs;

pub use adapter::Adapter;
pub use driver::{DriverKind, GraphDriver};
pub use overlay2::Overlay2;
pub use vfs::Vfs;
