//! What collection keeps, what it removes, and what it says that it freed.

use std::{
    collections::BTreeSet,
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use lapstrake_layerstore_conformance::fixture::{name, reference};
use lapstrake_layerstore_oci::{DiffId, Digest, Index, MediaType};
use lapstrake_layerstore_store::{
    Collected, Collector, Holder, ImageName, NewImage, Resource, SnapshotKey, SnapshotKind, SnapshotName,
    StoreError, Stores, disk_usage,
};

use crate::common::{descriptor, image, layer, layer_blob, manifest, on_disk, open};

/// Holds what the test says.
#[derive(Default)]
struct Held(Mutex<Vec<Resource>>);

impl Holder for Held {
    fn holds(&self) -> Result<Vec<Resource>, StoreError> {
        Ok(self.0.lock().expect("not poisoned").clone())
    }
}

fn names(stores: &Stores) -> BTreeSet<SnapshotName> {
    let mut names = BTreeSet::new();
    stores
        .snapshots
        .walk(&mut |snapshot| {
            if let SnapshotKind::Committed(name) = snapshot.kind {
                names.insert(name);
            }
            true
        })
        .expect("walk");
    names
}

fn blobs(stores: &Stores) -> BTreeSet<Digest> {
    let mut blobs = BTreeSet::new();
    stores
        .content
        .walk(&mut |blob| {
            blobs.insert(blob.digest);
            true
        })
        .expect("walk");
    blobs
}

#[test]
fn an_image_keeps_its_chain_until_it_is_deleted() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let (_store, stores) = open(directory.path());
    let collector = Collector::new(stores.clone(), Vec::new());
    let base = layer(&stores, None, "base").expect("layer");
    let left = layer(&stores, Some(&base), "left").expect("layer");
    let right = layer(&stores, Some(&base), "right").expect("layer");
    let stray = layer(&stores, Some(&right), "stray").expect("layer");
    let one = stores.images.put(image("one", &[&base, &left])).expect("put");
    let two = stores.images.put(image("two", &[&base, &right])).expect("put");

    assert_eq!(collector.collect().expect("collect").snapshots, [stray.snapshot]);
    assert_eq!(collector.collect().expect("collect"), Collected::default(), "nothing is left to collect");
    stores.images.delete_image(&one).expect("delete");
    assert_eq!(collector.collect().expect("collect").snapshots, [left.snapshot]);
    stores.images.delete_image(&two).expect("delete");
    let last = collector.collect().expect("collect");
    assert_eq!(last.snapshots, [right.snapshot, base.snapshot], "children first");
    assert_eq!(stores.layers.by_chain(&right.chain_id).expect("by chain"), None);
    assert_eq!(fs::read_dir(directory.path().join("plain")).expect("list").count(), 0);
}

#[test]
fn an_image_keeps_its_manifest_targets_and_all_that_they_refer_to() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let (_store, stores) = open(directory.path());
    let collector = Collector::new(stores.clone(), Vec::new());
    let base = layer(&stores, None, "base").expect("layer");
    let made = layer_blob(&stores, "made for a push, named by no manifest");
    stores.layers.record_blob(&base.diff_id, &made).expect("record blob");
    let other = layer_blob(&stores, "some other layer");
    stores.layers.record_blob(&DiffId(Digest::sha256_of("other")), &other).expect("record blob");
    let own = manifest(&stores, "config", vec![layer_blob(&stores, "layer")]);
    let foreign = manifest(&stores, "config of arm64", vec![layer_blob(&stores, "layer of arm64")]);
    let absent = descriptor(own.media_type.as_str(), &Digest::sha256_of("not pulled"), 10);
    let index_type = "application/vnd.oci.image.index.v1+json";
    let index = Index::new(MediaType::new(index_type), vec![own.clone(), foreign, absent]);
    let index = index.to_json().expect("JSON");
    let pulled = stores.content.write_small(&index).expect("write");
    let pulled = descriptor(index_type, &pulled, index.len());
    let damaged = layer_blob(&stores, "neither manifest nor index");
    let digested = reference("app").with_digest(pulled.digest.clone());
    let stray = stores.content.write_small(b"stray").expect("write");

    let kept: BTreeSet<Digest> =
        blobs(&stores).into_iter().filter(|b| *b != stray && *b != other.digest).collect();
    assert_eq!(kept.len(), 9);
    let id = stores
        .images
        .put(NewImage {
            manifest: Some(own.digest),
            names: vec![
                ImageName { reference: digested.clone(), target: Some(pulled) },
                ImageName { target: Some(damaged), ..name("odd:1") },
            ],
            ..image("one", &[&base])
        })
        .expect("put");
    let collected = collector.collect().expect("collect");
    assert_eq!(BTreeSet::from_iter(collected.blobs), BTreeSet::from([stray, other.digest]));
    assert_eq!(blobs(&stores), kept);

    // Without the name, the index and the other platform go; what the image itself is pushed as stays.
    stores.images.untag(&digested).expect("untag");
    assert_eq!(collector.collect().expect("collect").blobs.len(), 4);
    stores.images.delete_image(&id).expect("delete");
    assert_eq!(collector.collect().expect("collect").blobs.len(), 5);
    assert!(blobs(&stores).is_empty());
}

#[test]
fn a_layer_that_stays_keeps_its_blobs_without_an_image() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let (_store, stores) = open(directory.path());
    let cache = Arc::new(Held::default());
    let collector = Collector::new(stores.clone(), vec![cache.clone()]);
    let base = layer(&stores, None, "base").expect("layer");
    let cached = layer(&stores, Some(&base), "cached").expect("layer");
    let pulled = layer_blob(&stores, "a tar that others have written");
    stores.layers.record_blob(&base.diff_id, &pulled).expect("record blob");
    cache.0.lock().expect("not poisoned").push(Resource::Snapshot(cached.snapshot.clone()));

    assert_eq!(collector.collect().expect("collect"), Collected::default());
    cache.0.lock().expect("not poisoned").clear();
    let collected = collector.collect().expect("collect");
    assert_eq!(collected.snapshots, [cached.snapshot, base.snapshot]);
    assert_eq!(collected.blobs, [pulled.digest]);
}

#[test]
fn leases_and_holders_keep_what_they_hold_and_its_parents() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let (_store, stores) = open(directory.path());
    let cache = Arc::new(Held::default());
    let collector = Collector::new(stores.clone(), vec![cache.clone()]);
    let base = layer(&stores, None, "base").expect("layer");
    let leased = layer(&stores, Some(&base), "leased").expect("layer");
    let cached = layer(&stores, Some(&base), "cached").expect("layer");
    let (held, holder) = (b"held".as_slice(), b"of holder".as_slice());
    let lease = stores.leases.create();
    lease.hold(Resource::Snapshot(leased.snapshot.clone()));
    lease.hold(Resource::Blob(stores.content.write_small(held).expect("write")));
    let of_cache = [
        Resource::Snapshot(cached.snapshot.clone()),
        Resource::Blob(stores.content.write_small(holder).expect("write")),
    ];
    cache.0.lock().expect("not poisoned").extend(of_cache);

    assert_eq!(collector.collect().expect("collect"), Collected::default());
    drop(lease);
    let collected = collector.collect().expect("collect");
    assert_eq!(
        (collected.snapshots, collected.blobs),
        (vec![leased.snapshot], vec![Digest::sha256_of(held)])
    );
    cache.0.lock().expect("not poisoned").clear();
    let collected = collector.collect().expect("collect");
    assert_eq!(collected.snapshots, [cached.snapshot, base.snapshot]);
    assert_eq!(collected.blobs, [Digest::sha256_of(holder)]);
}

#[test]
fn an_active_snapshot_goes_with_its_last_lease_or_at_the_next_start() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let (store, stores) = open(directory.path());
    let cache = Arc::new(Held::default());
    let collector = Collector::new(stores.clone(), vec![cache.clone()]);
    let base = layer(&stores, None, "base").expect("layer");
    let [ended, cached, never_held] = [(); 3].map(|()| SnapshotKey::random());
    let lease = stores.leases.create();
    lease.hold(Resource::Key(ended.clone()));
    lease.hold(Resource::Key(cached.clone()));
    cache.0.lock().expect("not poisoned").push(Resource::Key(cached.clone()));
    stores.snapshots.prepare(&ended, Some(&base.snapshot)).expect("prepare");
    stores.snapshots.prepare(&cached, None).expect("prepare");
    stores.snapshots.view(&never_held, None).expect("view");

    assert_eq!(collector.collect().expect("collect"), Collected::default(), "its parent stays with it");
    drop(lease);
    let collected = collector.collect().expect("collect");
    assert_eq!((collected.keys, collected.snapshots), (vec![ended], vec![base.snapshot]));
    // The holder's lets go later, and it is still known that no lease keeps it.
    cache.0.lock().expect("not poisoned").clear();
    assert_eq!(collector.collect().expect("collect").keys, [cached]);
    assert_eq!(collector.collect_at_start(&store.metadata).expect("collect").keys, [never_held]);
}

#[test]
fn an_active_snapshot_that_its_holder_abandons_goes_though_no_lease_ever_held_it() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let (_local, stores) = open(directory.path());
    let held = Arc::new(Held::default());
    let collector = Collector::new(stores.clone(), vec![held.clone()]);
    let key = SnapshotKey::random();
    stores.snapshots.prepare(&key, None).expect("prepare");
    // As after a restart: the holder knows it, and no lease of this run ever did.
    held.0.lock().expect("not poisoned").push(Resource::Key(key.clone()));
    assert_eq!(collector.collect().expect("collect").keys, []);
    let forget = || {
        held.0.lock().expect("not poisoned").clear();
        stores.leases.abandon(key.clone());
        Ok::<_, StoreError>(7)
    };
    let (forgotten, collected) = collector.collect_after(forget).expect("collect");
    assert_eq!((forgotten, collected.keys), (7, vec![key]));
}

#[test]
fn at_start_what_a_killed_process_left_goes_but_not_what_a_holder_keeps() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let cache = Arc::new(Held::default());
    let (kept_key, lost_key) = (SnapshotKey::random(), SnapshotKey::random());
    let kept = {
        let (_store, stores) = open(directory.path());
        let kept = layer(&stores, None, "kept").expect("layer");
        stores.images.put(image("one", &[&kept])).expect("put");
        layer(&stores, None, "of a build that was killed").expect("layer");
        stores.snapshots.prepare(&kept_key, None).expect("prepare");
        stores.snapshots.prepare(&lost_key, None).expect("prepare");
        stores.content.write_small(b"pulled half an image").expect("write");
        kept
    };
    cache.0.lock().expect("not poisoned").push(Resource::Key(kept_key.clone()));
    let (store, stores) = open(directory.path());
    let collected =
        Collector::new(stores.clone(), vec![cache]).collect_at_start(&store.metadata).expect("collect");
    assert_eq!((collected.keys, collected.snapshots.len(), collected.blobs.len()), (vec![lost_key], 1, 1));
    assert_eq!(names(&stores), BTreeSet::from([kept.snapshot]));
    stores.snapshots.stat_key(&kept_key).expect("kept");
}

#[test]
fn a_damaged_database_is_told_before_anything_is_removed() {
    let directory = tempfile::tempdir().expect("temporary directory");
    {
        let (_store, stores) = open(directory.path());
        let base = layer(&stores, None, "base").expect("layer");
        for n in 0..200 {
            stores.images.put(image(&n.to_string(), &[&base])).expect("put");
        }
    }
    let database = directory.path().join("metadata.db");
    let mut bytes = fs::read(&database).expect("read");
    let end = bytes.len();
    bytes[end - 8192..].fill(0xff);
    fs::write(&database, bytes).expect("write");
    let (store, stores) = open(directory.path());
    let before = fs::read_dir(directory.path().join("plain")).expect("list").count();
    let error = Collector::new(stores, Vec::new()).collect_at_start(&store.metadata).expect_err("damaged");
    assert!(matches!(&error, StoreError::Damaged { path, .. } if *path == database), "{error}");
    assert_eq!(fs::read_dir(directory.path().join("plain")).expect("list").count(), before);
}

#[test]
fn what_usage_counts_is_what_collection_frees_and_what_the_disk_gets_back() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let (_store, stores) = open(directory.path());
    let collector = Collector::new(stores.clone(), Vec::new());
    let measured = || on_disk(&directory.path().join("plain")) + on_disk(&directory.path().join("content"));
    let empty = measured();
    let base = layer(&stores, None, &"b".repeat(100_000)).expect("layer");
    let left = layer(&stores, Some(&base), &"l".repeat(5_000)).expect("layer");
    let right = layer(&stores, Some(&base), &"r".repeat(70_000)).expect("layer");
    layer_blob(&stores, &"blob".repeat(9_999));
    let key = SnapshotKey::random();
    let lease = stores.leases.create();
    lease.hold(Resource::Key(key.clone()));
    stores.snapshots.prepare(&key, Some(&left.snapshot)).expect("prepare");
    let one = stores.images.put(image("one", &[&base, &left])).expect("put");
    let two = stores.images.put(image("two", &[&base, &right])).expect("put");

    let usage = disk_usage(&stores).expect("usage");
    let sizes: Vec<(u64, u64, u64)> = usage.images.iter().map(|i| (i.size, i.shared, i.unique)).collect();
    assert_eq!(sizes, [(170_000, 100_000, 70_000), (105_000, 100_000, 5_000)], "newest first");
    assert_eq!(usage.layers, 175_000);
    assert_eq!(usage.on_disk(), measured() - empty);

    stores.images.delete_image(&one).expect("delete");
    stores.images.delete_image(&two).expect("delete");
    drop(lease);
    let collected = collector.collect().expect("collect");
    assert_eq!(collected.bytes, usage.on_disk());
    assert_eq!(measured(), empty);
    assert_eq!(disk_usage(&stores).expect("usage"), Default::default());
}

/// Does something at the worst moment: after leases and images were asked, before anything is removed.
struct Meddler<F: Fn() + Send + Sync> {
    calls: AtomicUsize,
    meddle: F,
}

impl<F: Fn() + Send + Sync> Holder for Meddler<F> {
    fn holds(&self) -> Result<Vec<Resource>, StoreError> {
        // The first question is asked while nobody is kept out.
        if self.calls.fetch_add(1, Ordering::Relaxed) == 1 {
            (self.meddle)();
        }
        Ok(Vec::new())
    }
}

#[test]
fn a_blob_that_is_pulled_again_while_its_end_is_decided_stays() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let (_store, stores) = open(directory.path());
    let written = stores.content.write_small(b"pulled once, and nobody needs it").expect("write");
    let lease = Arc::new(stores.leases.create());
    let meddle = {
        let (stores, lease) = (stores.clone(), lease.clone());
        move || {
            drop(stores.content.write_small_held(b"pulled once, and nobody needs it", &lease).expect("write"))
        }
    };
    let meddler = Arc::new(Meddler { calls: AtomicUsize::new(0), meddle });
    let collector = Collector::new(stores.clone(), vec![meddler.clone()]);
    assert_eq!(collector.collect().expect("collect"), Collected::default());
    assert_eq!(meddler.calls.load(Ordering::Relaxed), 2);
    assert_eq!(blobs(&stores), BTreeSet::from([written.clone()]));
    drop((collector, meddler, lease));
    assert_eq!(Collector::new(stores, Vec::new()).collect().expect("collect").blobs, [written]);
}

#[test]
fn a_blob_that_gets_into_an_image_while_its_end_is_decided_stays() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let (_store, stores) = open(directory.path());
    let blob = layer_blob(&stores, "of an image that is gone");
    let meddle = {
        let (stores, blob) = (stores.clone(), blob.clone());
        move || {
            let lease = stores.leases.create();
            lease.hold(Resource::Blob(blob.digest.clone()));
            assert_eq!(layer_blob(&stores, "of an image that is gone"), blob);
            let manifest = manifest(&stores, "config", vec![blob.clone()]).digest;
            stores.images.put(NewImage { manifest: Some(manifest), ..image("one", &[]) }).expect("put");
            // From here on the image has it, and the lease ends.
        }
    };
    let meddler = Arc::new(Meddler { calls: AtomicUsize::new(0), meddle });
    let collector = Collector::new(stores.clone(), vec![meddler]);
    assert_eq!(collector.collect().expect("collect"), Collected::default());
    assert_eq!(collector.collect().expect("collect"), Collected::default());
    assert_eq!(blobs(&stores).len(), 3, "manifest, config and layer");
}
