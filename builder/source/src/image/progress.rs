//! A pull's progress: one part per layer downloaded, one per layer extracted, named as BuildKit names them.

use std::{collections::HashMap, sync::Arc};

use lapstrake_builder_progress::{StatusHandle, VertexHandle};
use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_registry::{Item, ProgressFn, TransferEvent, TransferStatus};
use lapstrake_layerstore_transfer::UnpackEvent;
use parking_lot::Mutex;

/// The parts of a pull that are going on; all end when this is dropped.
pub(crate) struct PullProgress {
    vertex: VertexHandle,
    layers: Vec<Digest>,
    downloads: Mutex<HashMap<usize, StatusHandle>>,
    extraction: Mutex<Option<StatusHandle>>,
}

impl PullProgress {
    pub(crate) fn new(vertex: VertexHandle, layers: Vec<Digest>) -> Arc<Self> {
        Arc::new(Self { vertex, layers, downloads: Mutex::default(), extraction: Mutex::default() })
    }

    /// What the registry client reports to.
    pub(crate) fn transfers(self: &Arc<Self>) -> ProgressFn {
        let progress = Arc::clone(self);
        Arc::new(move |event| progress.transfer(&event))
    }

    /// What the unpacking reports to.
    pub(crate) fn unpacking(self: &Arc<Self>) -> Arc<dyn Fn(usize, UnpackEvent) + Send + Sync> {
        let progress = Arc::clone(self);
        Arc::new(move |index, event| progress.unpack(index, event))
    }

    fn transfer(&self, event: &TransferEvent) {
        let Item::Layer(index) = event.item else { return };
        let mut downloads = self.downloads.lock();
        let current = match event.status {
            TransferStatus::Downloading { current } => current,
            TransferStatus::Verifying | TransferStatus::Downloaded => event.total,
            _ => return,
        };
        let part = downloads
            .entry(index)
            .or_insert_with(|| self.vertex.part(event.digest.to_string(), "downloading", event.total));
        part.update(current, event.total);
        if event.status == TransferStatus::Downloaded {
            downloads.remove(&index);
        }
    }

    fn unpack(&self, index: usize, event: UnpackEvent) {
        let mut extraction = self.extraction.lock();
        *extraction = match (event, self.layers.get(index)) {
            (UnpackEvent::Extracting, Some(digest)) => {
                Some(self.vertex.part(format!("extracting {digest}"), "extract", 0))
            }
            _ => None,
        };
    }
}
