//! Builders, taggers, deleters and collectors at once: nothing that is held ever goes, and in the end nothing is left.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use lapstrake_layerstore_conformance::fixture::name;
use lapstrake_layerstore_oci::{ChainId, DiffId, Digest};
use lapstrake_layerstore_store::{
    Collector, Holder, Layer, Lease, NewImage, Resource, SnapshotKey, SnapshotMount, SnapshotName,
    StoreError, Stores,
};

use crate::common::{self, image, layer, layer_blob, manifest, open};

const BUILDERS: usize = 6;
const TURNS: usize = 25;
/// Few, so that builders meet on the same layers, blobs and names all the time.
const TEXTS: usize = 4;

/// A cache of layers by text, as the build cache is.
#[derive(Default)]
struct Cache(Mutex<Vec<Layer>>);

impl Holder for Cache {
    fn holds(&self) -> Result<Vec<Resource>, StoreError> {
        let layers = self.0.lock().expect("not poisoned");
        Ok(layers.iter().map(|layer| Resource::Snapshot(layer.snapshot.clone())).collect())
    }
}

/// A layer of `text`, found by its chain or made, and held either way.
fn hold_layer(stores: &Stores, lease: &Lease, text: &str) -> Layer {
    let diff_id = DiffId(Digest::sha256_of(text));
    let chain_id = ChainId(diff_id.0.clone());
    {
        let _guard = stores.leases.guard();
        if let Some(layer) = stores.layers.by_chain(&chain_id).expect("by chain") {
            lease.hold(Resource::Snapshot(layer.snapshot.clone()));
            return layer;
        }
    }
    let (key, name) = (SnapshotKey::random(), SnapshotName::random());
    lease.hold(Resource::Key(key.clone()));
    let SnapshotMount::Bind { source, .. } = stores.snapshots.prepare(&key, None).expect("prepare") else {
        panic!("a plain directory")
    };
    std::fs::write(source.join("file"), text).expect("write");
    lease.hold(Resource::Snapshot(name.clone()));
    stores.snapshots.commit(&key, &name).expect("commit");
    let layer = Layer { snapshot: name, diff_id, chain_id, size: text.len() as u64 };
    stores.layers.record(std::slice::from_ref(&layer)).expect("record");
    layer
}

fn assert_whole(stores: &Stores, snapshot: &SnapshotName, text: &str) {
    let SnapshotMount::Bind { source, .. } = stores.snapshots.committed_mount(snapshot).expect("is there")
    else {
        panic!("a plain directory")
    };
    assert_eq!(std::fs::read_to_string(source.join("file")).expect("its file is there"), text);
}

fn build(stores: &Stores, cache: &Cache, builder: usize) {
    for turn in 0..TURNS {
        let text = format!("text {}", (builder * 7 + turn) % TEXTS);
        let config = format!("config of {text}");
        let lease = stores.leases.create();
        let layer = hold_layer(stores, &lease, &text);
        // Held before they are written, whether they are there already or not.
        for content in [&text, &config] {
            lease.hold(Resource::Blob(Digest::sha256_of(content)));
        }
        let blob = layer_blob(stores, &text);
        stores.layers.record_blob(&layer.diff_id, &blob).expect("its blob is there");
        let described = {
            // The manifest's digest is known only from its bytes.
            let document = manifest_bytes(&config, &blob);
            lease.hold(Resource::Blob(Digest::sha256_of(&document)));
            manifest(stores, &config, vec![blob.clone()])
        };
        assert_whole(stores, &layer.snapshot, &text);
        let id = stores
            .images
            .put(NewImage {
                manifest: Some(described.digest.clone()),
                names: vec![name(&format!("app:{}", turn % 3))],
                ..image(&text, &[&layer])
            })
            .expect("all that it refers to is there");
        if turn % 5 == 0 {
            cache.0.lock().expect("not poisoned").push(layer.clone());
        }
        // Somebody may delete the image now: what the lease holds stays nevertheless.
        thread::yield_now();
        assert_whole(stores, &layer.snapshot, &text);
        for digest in [&blob.digest, &described.digest, &Digest::sha256_of(&config)] {
            let bytes = stores.content.read_small(digest, 1 << 20).expect("held, so it is there");
            assert_eq!(Digest::sha256_of(bytes), *digest);
        }
        drop(lease);
        if turn % 4 == 3 {
            match stores.images.delete_image(&id) {
                Ok(_) | Err(StoreError::NotFound { .. } | StoreError::InUse { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
}

fn manifest_bytes(config: &str, blob: &lapstrake_layerstore_oci::Descriptor) -> Vec<u8> {
    use lapstrake_layerstore_oci::{Manifest, MediaType};
    let config = common::descriptor(
        "application/vnd.oci.image.config.v1+json",
        &Digest::sha256_of(config),
        config.len(),
    );
    let media_type = MediaType::new("application/vnd.oci.image.manifest.v1+json");
    Manifest::new(media_type, config, vec![blob.clone()]).to_json().expect("JSON")
}

#[test]
fn nothing_held_is_collected_and_nothing_else_is_left() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let (store, stores) = open(directory.path());
    let cache = Arc::new(Cache::default());
    let collector = Collector::new(stores.clone(), vec![cache.clone()]);
    let (running, collected) = (AtomicUsize::new(BUILDERS), AtomicUsize::new(0));
    thread::scope(|scope| {
        for builder in 0..BUILDERS {
            let (stores, cache, running) = (&stores, &cache, &running);
            scope.spawn(move || {
                // Also when it panics: the others end, and the scope tells.
                struct Done<'a>(&'a AtomicUsize);
                impl Drop for Done<'_> {
                    fn drop(&mut self) {
                        self.0.fetch_sub(1, Ordering::Relaxed);
                    }
                }
                let _done = Done(running);
                build(stores, cache, builder);
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                while running.load(Ordering::Relaxed) > 0 {
                    let gone = collector.collect().expect("collect");
                    collected.fetch_add(gone.snapshots.len() + gone.blobs.len(), Ordering::Relaxed);
                    // What is in the cache may be used up to now; then it forgets.
                    cache.0.lock().expect("not poisoned").clear();
                }
            });
        }
        scope.spawn(|| {
            while running.load(Ordering::Relaxed) > 0 {
                for image in stores.images.list().expect("list") {
                    // What an image in the list refers to may have gone with it since; never without it.
                    let top = image.top.expect("has a layer");
                    let gone = matches!(stores.snapshots.stat(&top), Err(StoreError::NotFound { .. }));
                    assert!(
                        !gone
                            || stores
                                .images
                                .get(&image.id)
                                .expect("get")
                                .is_none_or(|now| now.top != Some(top))
                    );
                    for name in &image.names {
                        match stores.images.tag(&image.id, name) {
                            Ok(()) | Err(StoreError::NotFound { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
            }
        });
    });
    assert!(collected.into_inner() > 0, "collection had something to do meanwhile");

    for image in stores.images.list().expect("list") {
        let top = image.top.as_ref().expect("has a layer");
        assert!(stores.layers.by_snapshot(top).expect("by snapshot").is_some());
        assert_eq!(stores.layers.blobs(&image.diff_ids[0]).expect("blobs").len(), 1, "its blob is there");
        stores.images.delete_image(&image.id).expect("delete");
    }
    collector.collect().expect("collect");
    assert!(stores.leases.all_held().is_empty());
    for path in ["plain", "content/blobs/sha256", "content/ingest"] {
        assert_eq!(std::fs::read_dir(directory.path().join(path)).expect("list").count(), 0, "{path}");
    }
    store.metadata.check().expect("well-formed");
}

#[test]
fn a_lookup_and_its_hold_are_one_step_for_collection() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let (_store, stores) = open(directory.path());
    let collector = Collector::new(stores.clone(), Vec::new());
    for round in 0..50 {
        let made = layer(&stores, None, &format!("layer {round}")).expect("layer");
        thread::scope(|scope| {
            let (stores, made, collector) = (&stores, &made, &collector);
            scope.spawn(move || {
                let lease = stores.leases.create();
                let found = {
                    let _guard = stores.leases.guard();
                    let found = stores.layers.by_chain(&made.chain_id).expect("by chain");
                    if let Some(layer) = &found {
                        lease.hold(Resource::Snapshot(layer.snapshot.clone()));
                    }
                    found
                };
                if let Some(layer) = found {
                    assert_whole(stores, &layer.snapshot, &format!("layer {round}"));
                }
            });
            scope.spawn(move || collector.collect().expect("collect"));
        });
        collector.collect().expect("collect");
        assert_eq!(stores.layers.by_chain(&made.chain_id).expect("by chain"), None);
    }
}
