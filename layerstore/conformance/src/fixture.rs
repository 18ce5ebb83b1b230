//! What the content, layer and image suites are given to work on.

use std::{any::Any, sync::Arc, time::SystemTime};

use lapstrake_layerstore_oci::{ChainId, DiffId, Digest, ImageConfig, ImageId, Platform, Reference};
use lapstrake_layerstore_store::{
    ContentStore, ImageName, ImageStore, Layer, LayerStore, Leases, NewImage, SnapshotId, SnapshotKey,
    SnapshotKind, SnapshotName, SnapshotRecord, SnapshotRecords,
};

/// A fresh, empty store of the implementation under test.
pub struct Fixture {
    /// Blobs.
    pub content: Arc<dyn ContentStore>,
    /// Snapshot records that layers and images are tied to.
    pub records: Arc<dyn SnapshotRecords>,
    /// Layers.
    pub layers: Arc<dyn LayerStore>,
    /// Images.
    pub images: Arc<dyn ImageStore>,
    /// The leases that all of them ask.
    pub leases: Leases,
    /// Whatever must live as long as the store, such as its temporary directory.
    pub keep: Box<dyn Any + Send + Sync>,
}

impl Fixture {
    /// A committed snapshot over `parent`: its record only, which is all that these suites need.
    pub fn snapshot(&self, parent: Option<&SnapshotName>) -> SnapshotName {
        let (key, name) = (SnapshotKey::random(), SnapshotName::random());
        self.records
            .insert(&SnapshotRecord {
                id: SnapshotId::random(),
                kind: SnapshotKind::Active(key.clone()),
                parent: parent.cloned(),
                created: SystemTime::now(),
                usage: None,
            })
            .expect("insert");
        self.records.commit(&key, &name).expect("commit");
        name
    }

    /// An image of one layer over nothing; different texts give different images.
    pub fn image(&self, text: &str) -> NewImage {
        let diff_id = DiffId(Digest::sha256_of(text));
        let top = self.snapshot(None);
        self.layers
            .record(&[Layer {
                snapshot: top.clone(),
                diff_id: diff_id.clone(),
                chain_id: ChainId(diff_id.0.clone()),
                size: 1,
            }])
            .expect("record layer");
        NewImage { top: Some(top), ..bare(text, vec![diff_id]) }
    }

    /// Stores an image without layers, with these names.
    pub fn put(&self, text: &str, names: &[&str]) -> ImageId {
        let names = names.iter().map(|text| name(text)).collect();
        self.images.put(NewImage { names, ..bare(text, Vec::new()) }).expect("put")
    }
}

/// An image that is not tied to anything; its config differs with `text`.
pub fn bare(text: &str, diff_ids: Vec<DiffId>) -> NewImage {
    let mut config =
        ImageConfig::for_platform(&"linux/amd64".parse::<Platform>().expect("a platform specifier"));
    config.author = text.to_owned();
    config.rootfs.diff_ids = diff_ids.clone();
    NewImage {
        config: config.to_json().expect("a config is JSON"),
        top: None,
        diff_ids,
        parent: None,
        manifest: None,
        names: Vec::new(),
    }
}

/// A parsed name without target.
pub fn name(text: &str) -> ImageName {
    ImageName { reference: reference(text), target: None }
}

/// A parsed reference.
pub fn reference(text: &str) -> Reference {
    Reference::parse(text).expect("a valid reference")
}
