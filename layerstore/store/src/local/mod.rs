//! The store on this machine's disk.
//!
//! ```text
//! <root>/lock          held (flock) by the one process that has the store open
//! <root>/metadata.db   everything the daemon remembers (Metadata; tables in schema.rs)
//! <root>/metadata.reserve  space given up when the disk is full (Reserve)
//! <root>/content/      blobs (LocalContent)
//! <root>/<driver>/     directory trees, made by a graph driver; their records are here (LocalRecords)
//! ```
//!
//! [`LocalStore::open`] makes all but the trees; the daemon gives [`LocalStore::records`] to a snapshotter and joins both with
//! [`LocalStore::stores`].

mod content;
mod flushed;
mod images;
mod layers;
mod metadata;
mod records;
mod reserve;
mod schema;
mod shared;

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

pub use self::{
    content::LocalContent, images::LocalImages, layers::LocalLayers, metadata::Metadata,
    records::LocalRecords,
};
use crate::{Leases, Snapshotter, StoreError, Stores};

/// The local store, without directory trees. Other processes are kept out while any part of it lives.
#[derive(Debug, Clone)]
pub struct LocalStore {
    /// The database; other components may keep tables of their own in it.
    pub metadata: Metadata,
    /// Blobs.
    pub content: Arc<LocalContent>,
    /// What a snapshotter remembers.
    pub records: Arc<LocalRecords>,
    /// Layers.
    pub layers: Arc<LocalLayers>,
    /// Images.
    pub images: Arc<LocalImages>,
    /// What running work holds.
    pub leases: Leases,
    root: PathBuf,
}

impl LocalStore {
    /// Opens the store at `root`, and makes an empty one where there is none.
    ///
    /// Errors: [`StoreError::Locked`] while another process has it open; [`StoreError::Damaged`] naming the file that is not
    /// what this wrote (nothing is repaired by forgetting); [`StoreError::TooNew`].
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let root = root.into();
        // Containers' mounts go through this directory, so that others may pass but not look.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(&root)
            .map_err(StoreError::io("create", &root))?;
        let lock = lock(&root)?;
        let directory = root.join("content");
        // Made only after the database has its tables: where it exists, an absent database was lost, and starting
        // with a new one would collect everything.
        let metadata = Metadata::open(&root.join("metadata.db"), !directory.exists(), lock)?;
        schema::migrate(&metadata)?;
        // Without it nothing is known of power cuts, as on systems without /proc.
        if let Ok(boot) = fs::read_to_string("/proc/sys/kernel/random/boot_id") {
            flushed::forget_after_boot(&metadata, boot.trim())?;
        }
        let leases = Leases::default();
        let content = LocalContent::open(directory, metadata.clone(), leases.clone())?;
        let layers = LocalLayers::new(metadata.clone(), content.clone());
        let images = LocalImages::new(metadata.clone(), content.clone(), leases.clone());
        Ok(Self {
            records: Arc::new(LocalRecords::new(metadata.clone())),
            content: Arc::new(content),
            layers: Arc::new(layers),
            images: Arc::new(images),
            metadata,
            leases,
            root,
        })
    }

    /// The root directory, where a graph driver makes a directory of its own.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// All stores as one value, with directory trees by `snapshots`, which was given [`Self::records`].
    pub fn stores(&self, snapshots: Arc<dyn Snapshotter>) -> Stores {
        Stores {
            content: self.content.clone(),
            snapshots,
            layers: self.layers.clone(),
            images: self.images.clone(),
            leases: self.leases.clone(),
        }
    }
}

/// Keeps other processes out while the file is open; the kernel lets go of it however this process ends.
fn lock(root: &Path) -> Result<File, StoreError> {
    use rustix::{
        fs::{FlockOperation, flock},
        io::Errno,
    };
    let path = root.join("lock");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(StoreError::io("open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(StoreError::Locked { root: root.to_owned() }),
        Err(errno) => Err(StoreError::io("lock", path)(errno.into())),
    }
}
