//! `kill -9` at any moment: the store opens, what was acknowledged is there, nothing is there by half.
//!
//! The victim is this test binary itself, started again to work on a store without end. It tells on its standard output what
//! the store said is done; the test kills it after a random number of such lines and looks.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
};

use lapstrake_layerstore_conformance::fixture::name;
use lapstrake_layerstore_oci::{Digest, ImageId};
use lapstrake_layerstore_store::{
    Collector, DiffSource, ImageName, NewImage, Resource, SnapshotKind, SnapshotRecords, Stores,
};

use crate::common::{image, layer, layer_blob, manifest, open};

const VICTIM: &str = "LAPSTRAKE_TEST_VICTIM";
const ROUNDS: u64 = 20;

/// Builds and deletes images without end, and tells each thing after it is done.
fn work(root: &Path, round: u64) -> ! {
    let (store, stores) = open(root);
    let collector = Collector::new(stores.clone(), Vec::new());
    collector.collect_at_start(&store.metadata).expect("collect at start");
    let tell = |line: String| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}").and_then(|()| out.flush()).expect("the test reads");
    };
    for turn in 0u64.. {
        let text = format!("{round} {turn}");
        let lease = stores.leases.create();
        for text in [&text, &format!("config {text}")] {
            lease.hold(Resource::Blob(Digest::sha256_of(text)));
        }
        let base = layer(&stores, None, &format!("base {text}")).expect("layer");
        let top = layer(&stores, Some(&base), &format!("top {text}")).expect("layer");
        // Large enough for the kill to find it half written.
        let blob = layer_blob(&stores, &text.repeat(100_000));
        stores.layers.record_blob(&top.diff_id, &blob).expect("record blob");
        let manifest = manifest(&stores, &format!("config {text}"), vec![blob]);
        let id = stores
            .images
            .put(NewImage {
                manifest: Some(manifest.digest.clone()),
                names: vec![
                    ImageName { target: Some(manifest), ..name(&format!("app:{round}-{turn}")) },
                    name("app:latest"),
                ],
                ..image(&text, &[&base, &top])
            })
            .expect("put");
        tell(format!("put {id}"));
        drop(lease);
        match turn % 4 {
            1 => {
                stores.images.delete_image(&id).expect("delete");
                tell(format!("deleted {id}"));
            }
            3 => {
                collector.collect().expect("collect");
            }
            _ => {}
        }
    }
    unreachable!("there is always a next turn")
}

/// Everything that images refer to is there and whole; nothing else is.
fn check(root: &Path, present: &[ImageId], absent: &[ImageId]) {
    let (store, stores) = open(root);
    store.metadata.check().expect("the database is well-formed");
    let collector = Collector::new(stores.clone(), Vec::new());
    collector.collect_at_start(&store.metadata).expect("collect at start");
    let list = stores.images.list().expect("list");
    for id in present {
        assert!(list.iter().any(|image| image.id == *id), "{id} was acknowledged");
    }
    for id in absent {
        assert!(list.iter().all(|image| image.id != *id), "{id} was deleted");
    }
    let mut snapshots = 0;
    for image in &list {
        let chain = store.records.chain(image.top.as_ref().expect("has layers")).expect("chain");
        assert_eq!(chain.len(), image.diff_ids.len());
        snapshots += chain.len();
        let mut name = image.top.clone();
        for (id, diff_id) in chain.iter().zip(image.diff_ids.iter().rev()) {
            let record = store.records.by_name(name.as_ref().expect("as many as ids")).expect("record");
            assert_eq!(record.id, *id);
            name = record.parent.clone();
            let SnapshotKind::Committed(name) = &record.kind else { panic!("{record:?}") };
            let layer = stores.layers.by_snapshot(name).expect("by snapshot").expect("its layer");
            assert_eq!(layer.diff_id, *diff_id);
            let DiffSource::Trees { upper, .. } = stores.snapshots.diff_source(name).expect("diff") else {
                panic!("plain directories")
            };
            let bytes = std::fs::read(upper.join("file")).expect("read");
            assert_eq!(Digest::sha256_of(bytes), diff_id.0, "the layer is whole");
        }
        for digest in image
            .manifest
            .iter()
            .chain(stores.layers.blobs(&image.diff_ids[1]).expect("blobs").iter().map(|blob| &blob.digest))
        {
            let bytes = stores.content.read_small(digest, 1 << 30).expect("read");
            assert_eq!(Digest::sha256_of(bytes), *digest, "the blob is whole");
        }
    }
    let entries = |path: &str| std::fs::read_dir(root.join(path)).expect("list").count();
    assert_eq!(entries("plain"), snapshots, "trees of images, and no others");
    // A manifest, a config and a layer each.
    assert_eq!(entries("content/blobs/sha256"), list.len() * 3);
    assert_eq!(entries("content/ingest"), 0);
}

#[test]
fn kill_9_leaves_what_was_acknowledged_and_nothing_by_half() {
    if let Some(victim) = env::var_os(VICTIM) {
        let (round, root) =
            victim.to_str().and_then(|victim| victim.split_once(' ')).expect("round and root");
        work(Path::new(root), round.parse().expect("a number"));
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let (mut present, mut absent) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let mut victim = Command::new(env::current_exe().expect("this binary"))
            .args([
                "--exact",
                "crash::kill_9_leaves_what_was_acknowledged_and_nothing_by_half",
                "--nocapture",
            ])
            .env(VICTIM, format!("{round} {}", directory.path().display()))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start the victim");
        let mut lines = BufReader::new(victim.stdout.take().expect("piped")).lines();
        let mut note = |line: &str| {
            // The test harness's own lines may come before on the same line.
            let done = |what: &str| line.find(what).map(|at| &line[at + what.len()..]);
            if let Some(id) = done("deleted ") {
                let id: ImageId = id.parse().expect("an id");
                present.retain(|other| *other != id);
                absent.push(id);
                true
            } else if let Some(id) = done("put ") {
                present.push(id.parse().expect("an id"));
                true
            } else {
                false
            }
        };
        let mut left = rand::random_range(1..12);
        while left > 0 {
            let Some(line) = lines.next() else {
                let output = victim.wait_with_output().expect("wait");
                panic!("the victim ended by itself: {}", String::from_utf8_lossy(&output.stderr));
            };
            left -= i32::from(note(&line.expect("read")));
        }
        // Some more work of unknown length.
        let busy: u32 = rand::random_range(0..3_000_000);
        std::hint::black_box((0..busy).fold(0u32, |sum, n| sum.wrapping_mul(31).wrapping_add(n)));
        victim.kill().expect("kill");
        victim.wait().expect("wait");
        for line in lines.map_while(Result::ok) {
            note(&line);
        }
        check_round(directory.path(), &mut present, &absent);
    }
}

/// Checks, allowing for what was done and not told.
fn check_round(root: &Path, present: &mut Vec<ImageId>, absent: &[ImageId]) {
    let there = |stores: &Stores, id: &ImageId| stores.images.get(id).expect("get").is_some();
    {
        let (_store, stores) = open(root);
        // Only the very last put may have been followed by a deletion that was not told any more.
        if present.last().is_some_and(|last| !there(&stores, last)) {
            present.pop();
        }
    }
    check(root, present, absent);
}
