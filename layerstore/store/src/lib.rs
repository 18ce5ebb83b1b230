//! Contracts of the stores that hold images, and the local store that keeps them on disk.
//!
//! ```text
//!   blobs (ContentStore)      bytes by digest: pulled layers, manifests, configs
//!   snapshots (Snapshotter)   directory trees by name, each a difference over its parent
//!   layers (LayerStore)       which snapshot is which DiffID, and in which blobs its tar exists
//!   images (ImageStore)       image configs by id, and the names people gave them
//!   leases (Leases)           what running work holds, so that collection leaves it alone
//! ```
//!
//! [`LocalStore`] keeps all of them but the trees on this machine's disk; a [`Collector`] removes what nobody needs any more;
//! [`disk_usage`] says what everything takes.
//!
//! Every method blocks: call it from a blocking thread. Nothing here reads configuration, prints, or talks to a network.
//!
//! This crate is not for: tar streams (`layerstore/diff`), registries (`layerstore/registry`), graph drivers
//! (`graphdriver-adapter`), cache keys (`builder/cache`).
//!
//! # What survives a crash
//!
//! A transaction that publishes a thing runs after the thing is durable; a transaction that drops a thing runs before its
//! files go. So at any instant the metadata names only things that exist whole, and what it does not name is rubbish that
//! the next start removes. Leases live in memory only: a crash ends them.

#![forbid(unsafe_code)]

mod collect;
mod content;
mod error;
mod identity;
mod image;
mod layer;
mod lease;
mod leftovers;
mod local;
mod mount;
mod records;
mod snapshot;
mod tree;
mod usage;

pub use collect::{Collected, Collector, Holder};
pub use content::{BlobInfo, BlobReader, BlobWriter, ContentStore};
pub use error::{ErrorKind, StoreError};
pub use identity::random_id;
pub use image::{DeletedImage, ImageName, ImageRecord, ImageStore, NewImage};
pub use layer::{Layer, LayerStore};
pub use lease::{Collecting, Lease, Leases, Resource};
pub use leftovers::Leftovers;
pub use local::{LocalContent, LocalImages, LocalLayers, LocalRecords, LocalStore, Metadata};
pub use mount::{OpenSnapshot, Overlay, in_user_namespace};
pub use records::{Forgotten, SnapshotRecord, SnapshotRecords};
pub use snapshot::{
    DiffSource, OverlaySyntax, OverlayUpper, SnapshotId, SnapshotInfo, SnapshotKey, SnapshotKind,
    SnapshotMount, SnapshotName, Snapshotter, Usage,
};
pub use tree::{Draft, Tree, received_xattr};
pub use usage::{DiskUsage, ImageUsage, disk_usage, disk_usage_of_images};

/// The database's library, so that components with tables in the same file use the same version.
pub use rusqlite;

use std::sync::Arc;

/// The stores that a build works on, as one value to pass along. Each field is a contract; nothing hides behind it.
#[derive(Clone)]
pub struct Stores {
    /// Bytes by digest.
    pub content: Arc<dyn ContentStore>,
    /// Directory trees.
    pub snapshots: Arc<dyn Snapshotter>,
    /// What is known of committed snapshots as layers.
    pub layers: Arc<dyn LayerStore>,
    /// Images and their names.
    pub images: Arc<dyn ImageStore>,
    /// What running work holds.
    pub leases: Leases,
}

impl std::fmt::Debug for Stores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stores").finish_non_exhaustive()
    }
}
