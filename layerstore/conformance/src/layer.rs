//! The suite of [`LayerStore`](lapstrake_layerstore_store::LayerStore).

use lapstrake_layerstore_oci::{ChainId, Descriptor, DiffId, Digest, MediaType};
use lapstrake_layerstore_store::{Layer, SnapshotName, StoreError};

use crate::{Check, Fixture};

/// Each check is given a store of its own.
pub const SUITE: &[(&str, Check)] = &[
    ("a layer is found by its snapshot and by its chain", finds),
    ("a chain of snapshots is listed from its top, with the layers that are known", below),
    ("recording the same layer again is success, another is refused", record_again),
    ("a layer needs a committed snapshot", needs_snapshot),
    ("layers are recorded all or none", all_or_none),
    ("two snapshots may have one chain", one_chain_twice),
    ("a layer goes with its snapshot", goes_with_snapshot),
    ("blobs of a layer come oldest first, with their descriptors whole", blobs),
    ("a blob must be in the content store, with the size that is recorded", absent_blob),
    ("a removed blob is no layer's blob any more", removed_blob),
];

fn layer(f: &Fixture, text: &str) -> Layer {
    let diff_id = DiffId(Digest::sha256_of(text));
    Layer { snapshot: f.snapshot(None), chain_id: ChainId(diff_id.0.clone()), diff_id, size: 42 }
}

fn blob(f: &Fixture, text: &str) -> Descriptor {
    let digest = f.content.write_small(text.as_bytes()).expect("write");
    let document = format!(
        r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{digest}","size":{},"annotations":{{"a":"b"}}}}"#,
        text.len()
    );
    serde_json::from_str(&document).expect("a descriptor")
}

fn finds(f: &Fixture) {
    let layer = layer(f, "one");
    assert_eq!(f.layers.by_snapshot(&layer.snapshot).expect("by snapshot"), None);
    assert_eq!(f.layers.by_chain(&layer.chain_id).expect("by chain"), None);
    f.layers.record(std::slice::from_ref(&layer)).expect("record");
    assert_eq!(f.layers.by_snapshot(&layer.snapshot).expect("by snapshot"), Some(layer.clone()));
    assert_eq!(f.layers.by_chain(&layer.chain_id).expect("by chain"), Some(layer));
}

fn below(f: &Fixture) {
    let bottom = layer(f, "bottom");
    let middle = f.snapshot(Some(&bottom.snapshot));
    let top = Layer { snapshot: f.snapshot(Some(&middle)), ..layer(f, "top") };
    f.layers.record(&[bottom.clone(), top.clone()]).expect("record");
    let expected = [
        (top.snapshot.clone(), Some(top.clone())),
        (middle, None),
        (bottom.snapshot.clone(), Some(bottom.clone())),
    ];
    assert_eq!(f.layers.below(&top.snapshot).expect("below"), expected);
    assert_eq!(f.layers.below(&bottom.snapshot).expect("below"), expected[2..]);
    let nobody = f.layers.below(&SnapshotName::new("nobody's")).expect_err("refused");
    assert!(matches!(nobody, StoreError::NotFound { kind: "snapshot", .. }), "{nobody}");
}

fn record_again(f: &Fixture) {
    let layer = layer(f, "one");
    f.layers.record(std::slice::from_ref(&layer)).expect("record");
    f.layers.record(std::slice::from_ref(&layer)).expect("record again");
    let other = Layer { diff_id: DiffId(Digest::sha256_of("other")), ..layer.clone() };
    assert!(matches!(f.layers.record(std::slice::from_ref(&other)), Err(StoreError::AlreadyExists { .. })));
    assert_eq!(f.layers.by_snapshot(&layer.snapshot).expect("by snapshot"), Some(layer));
}

fn needs_snapshot(f: &Fixture) {
    let layer = layer(f, "one");
    f.records.remove(&layer.snapshot).expect("remove");
    let error = f.layers.record(std::slice::from_ref(&layer)).expect_err("refused");
    assert!(
        matches!(&error, StoreError::NotFound { kind: "snapshot", id } if id == layer.snapshot.as_str()),
        "{error}"
    );
}

fn all_or_none(f: &Fixture) {
    let (known, mut unknown) = (layer(f, "known"), layer(f, "unknown"));
    unknown.snapshot = SnapshotName::new("nobody's");
    f.layers.record(&[known.clone(), unknown]).expect_err("refused");
    assert_eq!(f.layers.by_snapshot(&known.snapshot).expect("by snapshot"), None);
    f.layers.record(&[]).expect("nothing");
}

fn one_chain_twice(f: &Fixture) {
    let (first, second) = (layer(f, "same"), layer(f, "same"));
    f.layers.record(&[first.clone(), second.clone()]).expect("record");
    f.records.remove(&first.snapshot).expect("remove");
    assert_eq!(f.layers.by_chain(&first.chain_id).expect("by chain"), Some(second));
}

fn goes_with_snapshot(f: &Fixture) {
    let layer = layer(f, "one");
    f.layers.record(std::slice::from_ref(&layer)).expect("record");
    f.records.remove(&layer.snapshot).expect("remove");
    assert_eq!(f.layers.by_snapshot(&layer.snapshot).expect("by snapshot"), None);
    assert_eq!(f.layers.by_chain(&layer.chain_id).expect("by chain"), None);
}

fn blobs(f: &Fixture) {
    let diff_id = DiffId(Digest::sha256_of("tar"));
    assert!(f.layers.blobs(&diff_id).expect("blobs").is_empty());
    // Enough that neither order of digests nor chance could give the order of recording.
    let recorded: Vec<Descriptor> = (0..8).map(|n| blob(f, &format!("blob {n}"))).collect();
    for blob in recorded.iter().chain(&recorded) {
        f.layers.record_blob(&diff_id, blob).expect("record blob");
    }
    assert_eq!(f.layers.blobs(&diff_id).expect("blobs"), recorded);
    assert_eq!(recorded[0].media_type, MediaType::new("application/vnd.oci.image.layer.v1.tar+gzip"));
    assert_eq!(f.layers.blob_layers(&recorded[3].digest).expect("layers"), [diff_id]);
    assert!(f.layers.blob_layers(&Digest::sha256_of("none")).expect("layers").is_empty());
}

fn absent_blob(f: &Fixture) {
    let diff_id = DiffId(Digest::sha256_of("tar"));
    let mut blob = blob(f, "blob");
    blob.size += 1;
    assert!(matches!(f.layers.record_blob(&diff_id, &blob), Err(StoreError::SizeMismatch { .. })));
    blob.digest = Digest::sha256_of("absent");
    assert!(matches!(f.layers.record_blob(&diff_id, &blob), Err(StoreError::NotFound { kind: "blob", .. })));
    assert!(f.layers.blobs(&diff_id).expect("blobs").is_empty());
}

fn removed_blob(f: &Fixture) {
    let diff_id = DiffId(Digest::sha256_of("tar"));
    let (gone, stays) = (blob(f, "gone"), blob(f, "stays"));
    f.layers.record_blob(&diff_id, &gone).expect("record blob");
    f.layers.record_blob(&diff_id, &stays).expect("record blob");
    f.content.remove(&gone.digest).expect("remove");
    assert_eq!(f.layers.blobs(&diff_id).expect("blobs"), [stays]);
    // Coming back as content, it is not known as this layer's until somebody says so again.
    blob(f, "gone");
    assert!(f.layers.blob_layers(&gone.digest).expect("layers").is_empty());
}
