//! The local store keeps the promises of the contracts.

use lapstrake_layerstore_conformance::{Fixture, content, image, layer, run};
use lapstrake_layerstore_store::LocalStore;

fn fixture() -> Fixture {
    let directory = tempfile::tempdir().expect("temporary directory");
    let store = LocalStore::open(directory.path()).expect("open");
    Fixture {
        content: store.content,
        records: store.records,
        layers: store.layers,
        images: store.images,
        leases: store.leases,
        keep: Box::new(directory),
    }
}

#[test]
fn content_suite() {
    run(content::SUITE, fixture);
}

#[test]
fn layer_suite() {
    run(layer::SUITE, fixture);
}

#[test]
fn image_suite() {
    run(image::SUITE, fixture);
}
