//! What images, layers and blobs take, for `docker system df`.

use std::collections::HashMap;

use lapstrake_layerstore_oci::ImageId;

use crate::{SnapshotKey, SnapshotKind, SnapshotName, StoreError, Stores, error::found};

/// What one image takes, as Moby computes it: in bytes of its layers' file content ([`crate::Layer::size`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUsage {
    /// The image.
    pub id: ImageId,
    /// All its layers.
    pub size: u64,
    /// Its layers that other images have too.
    pub shared: u64,
    /// Its layers that no other image has; `size` is the sum of both.
    pub unique: u64,
}

/// What a store takes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiskUsage {
    /// Each image, newest stored first.
    pub images: Vec<ImageUsage>,
    /// Bytes of file content in the layers of images, each counted once (Moby's `LayersSize`).
    pub layers: u64,
    /// Bytes on disk of the snapshots that images have, each counted once.
    pub imaged: u64,
    /// Bytes on disk of committed snapshots, whether an image has them or not.
    pub committed: u64,
    /// Bytes on disk of active snapshots.
    pub active: u64,
    /// Bytes on disk of blobs.
    pub blobs: u64,
}

impl DiskUsage {
    /// Bytes on disk of images: their snapshots, and blobs, which are there for images.
    pub fn of_images(&self) -> u64 {
        self.imaged + self.blobs
    }

    /// Bytes on disk of everything, the metadata not counted ([`crate::Metadata::disk_bytes`]).
    pub fn on_disk(&self) -> u64 {
        self.committed + self.active + self.blobs
    }
}

/// Measures a store. What comes or goes meanwhile may be counted or not. Active snapshots are walked, which takes time.
pub fn disk_usage(stores: &Stores) -> Result<DiskUsage, StoreError> {
    let (mut usage, active) = measure(stores)?;
    for key in active {
        usage.active += found(stores.snapshots.usage_key(&key))?.map_or(0, |usage| usage.bytes);
    }
    Ok(usage)
}

/// As [`disk_usage`] of all but active snapshots, which it does not look at: nothing is walked that was measured before.
pub fn disk_usage_of_images(stores: &Stores) -> Result<DiskUsage, StoreError> {
    measure(stores).map(|(usage, _)| usage)
}

/// All but active snapshots, and which those are.
fn measure(stores: &Stores) -> Result<(DiskUsage, Vec<SnapshotKey>), StoreError> {
    let mut usage = DiskUsage::default();
    let mut active = Vec::new();
    let images = stores.images.list()?;
    let mut snapshots = Vec::new();
    stores.snapshots.walk(&mut |snapshot| {
        snapshots.push(snapshot);
        true
    })?;
    let mut layers: HashMap<SnapshotName, Layer> = HashMap::new();
    for snapshot in snapshots {
        match snapshot.kind {
            SnapshotKind::Committed(name) => {
                let Some(bytes) = found(stores.snapshots.usage(&name))?.map(|usage| usage.bytes) else {
                    continue;
                };
                usage.committed += bytes;
                let size = stores.layers.by_snapshot(&name)?.map_or(bytes, |layer| layer.size);
                layers.insert(name, Layer { parent: snapshot.parent, size, bytes, images: 0 });
            }
            SnapshotKind::Active(key) => active.push(key),
            // A view writes nothing.
            SnapshotKind::View(_) => {}
        }
    }
    stores.content.walk(&mut |blob| {
        usage.blobs += blob.allocated;
        true
    })?;

    for image in &images {
        each_below(&mut layers, image.top.clone(), |layer| layer.images += 1);
    }
    for layer in layers.values().filter(|layer| layer.images > 0) {
        usage.layers += layer.size;
        usage.imaged += layer.bytes;
    }
    for image in images {
        let (mut size, mut shared) = (0, 0);
        each_below(&mut layers, image.top, |layer| {
            size += layer.size;
            shared += if layer.images > 1 { layer.size } else { 0 };
        });
        usage.images.push(ImageUsage { id: image.id, size, shared, unique: size - shared });
    }
    Ok((usage, active))
}

struct Layer {
    parent: Option<SnapshotName>,
    // Bytes of file content; of a snapshot that is not known as a layer, bytes on disk.
    size: u64,
    // Bytes on disk.
    bytes: u64,
    // How many images have it.
    images: u64,
}

fn each_below(
    layers: &mut HashMap<SnapshotName, Layer>,
    top: Option<SnapshotName>,
    mut visit: impl FnMut(&mut Layer),
) {
    let mut next = top;
    while let Some(layer) = next.and_then(|name| layers.get_mut(&name)) {
        visit(layer);
        next = layer.parent.clone();
    }
}
