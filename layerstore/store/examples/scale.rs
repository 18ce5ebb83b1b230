//! Times the store with 1,000 images of ten layers each: `cargo run -p lapstrake-layerstore-store --example scale`.
//!
//! Prints milliseconds; it asserts nothing, as machines differ.

use std::{
    error::Error,
    time::{Instant, SystemTime},
};

use lapstrake_layerstore_conformance::fixture::{bare, name};
use lapstrake_layerstore_oci::{ChainId, DiffId, Digest};
use lapstrake_layerstore_store::{
    ContentStore, ImageStore, Layer, LayerStore, LocalStore, NewImage, SnapshotId, SnapshotKey, SnapshotKind,
    SnapshotName, SnapshotRecord, SnapshotRecords,
};

const IMAGES: usize = 1000;
const LAYERS: usize = 10;

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let value = work();
    println!("{:>9.2} ms  {what}", start.elapsed().as_secs_f64() * 1000.0);
    value
}

fn snapshot(store: &LocalStore, parent: Option<&SnapshotName>) -> Result<SnapshotName, Box<dyn Error>> {
    let (key, name) = (SnapshotKey::random(), SnapshotName::random());
    store.records.insert(&SnapshotRecord {
        id: SnapshotId::random(),
        kind: SnapshotKind::Active(key.clone()),
        parent: parent.cloned(),
        created: SystemTime::now(),
        usage: None,
    })?;
    store.records.commit(&key, &name)?;
    Ok(name)
}

fn main() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let store = timed("open an empty store", || LocalStore::open(directory.path()))?;
    timed(
        "store 1,000 images with ten layers, nine of which ten images share",
        || -> Result<(), Box<dyn Error>> {
            let mut below: Vec<Layer> = Vec::new();
            for n in 0..IMAGES {
                below.truncate(if n % 10 == 0 { 0 } else { LAYERS - 1 });
                while below.len() < LAYERS {
                    let diff_id = DiffId(Digest::sha256_of(format!("{n} {}", below.len())));
                    let parent = below.last();
                    let layer = Layer {
                        snapshot: snapshot(&store, parent.map(|parent| &parent.snapshot))?,
                        chain_id: parent.map_or_else(
                            || ChainId(diff_id.0.clone()),
                            |parent| parent.chain_id.extend(&diff_id),
                        ),
                        diff_id,
                        size: 1,
                    };
                    store.layers.record(std::slice::from_ref(&layer))?;
                    below.push(layer);
                }
                // As long as configs are.
                let text = format!("{n} {}", "x".repeat(4000));
                store.images.put(NewImage {
                    top: below.last().map(|layer| layer.snapshot.clone()),
                    names: vec![name(&format!("team/app:{n}"))],
                    ..bare(&text, below.iter().map(|layer| layer.diff_id.clone()).collect())
                })?;
            }
            Ok(())
        },
    )?;
    timed("write 1,000 blobs", || -> Result<(), Box<dyn Error>> {
        for n in 0..1000 {
            let content: &dyn ContentStore = store.content.as_ref();
            content.write_small(format!("blob {n}").as_bytes())?;
        }
        Ok(())
    })?;
    println!("{:>9} KiB database", store.metadata.disk_bytes() / 1024);
    drop(store);

    let store = timed("open it again", || LocalStore::open(directory.path()))?;
    let list = timed("list images, first", || store.images.list())?;
    timed("list images, again", || store.images.list())?;
    timed("find one by name", || store.images.find("team/app:500"))?;
    timed("find one by its short id", || store.images.find(list[500].id.short()))?;
    timed("read all snapshot records", || store.records.all())?;
    timed("list all blobs", || store.content.walk(&mut |_| true))?;
    timed("check the database", || store.metadata.check())?;
    timed("one more snapshot: prepare and commit", || snapshot(&store, None))?;
    timed("tag one", || store.images.tag(&list[0].id, &name("one:more")))?;
    Ok(())
}
