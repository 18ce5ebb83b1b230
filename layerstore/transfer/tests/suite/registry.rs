//! Push to and pull from Debian's `docker-registry`.

use std::{
    fs,
    sync::{Arc, Mutex},
};

use lapstrake_layerstore_conformance::docker_registry::Registry;
use lapstrake_layerstore_oci::{Digest, Manifest, MediaType, Platform};
use lapstrake_layerstore_registry::{
    ClientOptions, ProgressFn, RegistryClient, RegistryConfig, TransferStatus,
};
use lapstrake_layerstore_store::Collector;
use lapstrake_layerstore_transfer::{BlobOptions, ManifestForm, ManifestOptions, image_manifest, pull, push};
use tokio_util::sync::CancellationToken;

use crate::common::*;

fn client() -> RegistryClient {
    RegistryClient::new(RegistryConfig::default(), ClientOptions::default())
}

fn quiet() -> ProgressFn {
    Arc::new(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_survives_push_and_pull() {
    let registry = Registry::start();
    let cancel = CancellationToken::new();
    let one = Machine::new();
    let image = one.image(&rich(&one), &["app:1"]);
    let name = registry.reference("team/app:1");
    let pushed = push(&one.stores, &client(), &image, &name, None, &quiet(), &cancel).await.unwrap();
    assert_eq!(pushed.descriptor.media_type, MediaType::DOCKER_MANIFEST);
    // Known by its digest from now on, also to whom only asks here.
    let by_digest = name.clone().trimmed().with_digest(pushed.descriptor.digest.clone());
    assert_eq!(one.find(&by_digest.to_string()).id, image.id);
    assert_eq!(one.record(&image.id).manifest, Some(pushed.descriptor.digest.clone()));

    let other = Machine::new();
    let pulled =
        pull(&other.stores, &client(), &name, &Platform::host(), &quiet(), Arc::new(|_, _| ()), &cancel)
            .await
            .unwrap();
    assert_eq!((&pulled.id, &pulled.digest, pulled.is_newer), (&image.id, &pushed.descriptor.digest, true));
    let there = other.find(&name.to_string());
    assert_eq!(other.files(&there), one.files(&image));
    let names: Vec<String> = there.names.iter().map(|name| name.reference.to_string()).collect();
    assert_eq!(names, [name.to_string(), by_digest.to_string()]);
    let again =
        pull(&other.stores, &client(), &name, &Platform::host(), &quiet(), Arc::new(|_, _| ()), &cancel)
            .await
            .unwrap();
    assert!(!again.is_newer);

    // What was pulled keeps its manifest, whatever form is asked for, also after a collection.
    Collector::new(other.stores.clone(), Vec::new()).collect().unwrap();
    let options = ManifestOptions::of_buildkit(ManifestForm::Oci, BlobOptions::default());
    let kept = image_manifest(&other.stores, &there, &options, &cancel).unwrap();
    assert_eq!(kept.descriptor.digest, pushed.descriptor.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_repository_borrows_layers_from_the_first() {
    let registry = Registry::start();
    let cancel = CancellationToken::new();
    let one = Machine::new();
    let image = one.image(&rich(&one), &[]);
    let first = registry.reference("first:1");
    push(&one.stores, &client(), &image, &first, None, &quiet(), &cancel).await.unwrap();
    let second = registry.reference("second:1");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let progress: ProgressFn = {
        let seen = Arc::clone(&seen);
        Arc::new(move |event| seen.lock().unwrap().push(event.status))
    };
    push(&one.stores, &client(), &one.record(&image.id), &second, None, &progress, &cancel).await.unwrap();
    let mounted = TransferStatus::Mounted { from: "first".to_owned() };
    assert_eq!(seen.lock().unwrap().iter().filter(|status| **status == mounted).count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_is_cancelled_changes_no_name() {
    let registry = Registry::start();
    let cancel = CancellationToken::new();
    let one = Machine::new();
    let image = one.image(&rich(&one), &[]);
    let name = registry.reference("app:1");
    push(&one.stores, &client(), &image, &name, None, &quiet(), &cancel).await.unwrap();
    let other = Machine::new();
    let stop = cancel.clone();
    let at_first_layer = Arc::new(move |_, _| stop.cancel());
    let error = pull(&other.stores, &client(), &name, &Platform::host(), &quiet(), at_first_layer, &cancel)
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "context canceled");
    assert!(other.stores.images.list().unwrap().is_empty());
}

#[test]
fn a_manifest_is_made_once_and_the_same_everywhere() {
    let cancel = CancellationToken::new();
    let options = ManifestOptions::default();
    let digests: Vec<Digest> = (0..2)
        .map(|_| {
            let machine = Machine::new();
            let image = machine.image(
                &machine.tree(&lapstrake_layerstore_store::Tree::empty(), |root| {
                    fs::write(root.join("f"), vec![7; 3 << 20]).unwrap();
                    let time = std::time::SystemTime::UNIX_EPOCH;
                    fs::File::open(root.join("f")).unwrap().set_modified(time).unwrap();
                }),
                &["x:1"],
            );
            let made = image_manifest(&machine.stores, &image, &options, &cancel).unwrap();
            let bytes = machine.stores.content.read_small(&made.descriptor.digest, 1 << 20).unwrap();
            assert_eq!(Manifest::from_json(&bytes).unwrap(), made.manifest);
            assert_eq!(made.manifest.layers[0].media_type, MediaType::DOCKER_LAYER_GZIP);
            let blobs = machine.blobs();
            let image = machine.record(&image.id);
            let again = image_manifest(&machine.stores, &image, &options, &cancel).unwrap();
            assert_eq!(again.descriptor, made.descriptor);
            assert_eq!(machine.blobs(), blobs, "nothing was compressed again");
            drop((made.lease, again.lease));
            Collector::new(machine.stores.clone(), Vec::new()).collect().unwrap();
            assert_eq!(machine.blobs(), blobs, "and it is kept with the image");
            made.descriptor.digest
        })
        .collect();
    assert_eq!(digests[0], digests[1]);
}
