//! Each output, over real stores.

use std::{fs, os::unix::fs::MetadataExt as _};

use lapstrake_builder_exporter::{Destination, ExportError, Output, PlatformResult};
use lapstrake_layerstore_oci::{Digest, ImageConfig, ImageId, Platform};
use lapstrake_layerstore_store::Tree;
use lapstrake_layerstore_transfer::load;
use tokio_util::sync::CancellationToken;

use crate::common::*;

fn image(names_of: &[&str]) -> Output {
    Output::image(names(names_of))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_stored_with_its_names_and_told_as_docker_tells_it() {
    let machine = Machine::new();
    let exported = machine.export(image(&["app", "app:2"]), vec![machine.result()]).await.unwrap();
    let id = exported.image.unwrap();
    assert_eq!(exported.names, names(&["app", "app:2"]));
    assert_eq!(
        machine.told.parts(),
        [
            "exporting layers".to_owned(),
            format!("writing image {id}"),
            "naming to docker.io/library/app:latest".to_owned(),
            "naming to docker.io/library/app:2".to_owned(),
        ]
    );
    let record = machine.stores.images.find("app:2").unwrap();
    assert_eq!(record.id, id);
    assert_eq!(record.parent, None);
    let config = ImageConfig::from_json(&record.config).unwrap();
    assert_eq!(config.rootfs.diff_ids.len(), 2);
    assert_eq!(config.history.iter().filter(|step| !step.empty_layer).count(), 2);
    assert!(config.history.iter().all(|step| step.created.is_some()));
    assert_eq!(config.created, config.history[2].created);
    // Nothing was compressed or copied.
    machine.stores.content.walk(&mut |blob| panic!("{blob:?}")).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_result_is_the_same_image() {
    let machine = Machine::new();
    let result = machine.result();
    let first = machine.export(image(&["app:1"]), vec![result.clone()]).await.unwrap();
    let second = machine.export(image(&["app:2"]), vec![result]).await.unwrap();
    assert_eq!(first.image, second.image);
    assert_eq!(machine.stores.images.get(&first.image.unwrap()).unwrap().unwrap().names.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_of_nothing_is_an_image_too() {
    let machine = Machine::new();
    let config = ImageConfig::for_platform(&Platform::host());
    let result = PlatformResult { tree: Tree::empty(), config, epoch: Some(0), ..machine.result() };
    let exported = machine.export(image(&[]), vec![result.clone()]).await.unwrap();
    assert!(machine.stores.images.get(&exported.image.unwrap()).unwrap().unwrap().is_dangling());
    machine.export(Output::tar(to(machine.path("t"))), vec![result.clone()]).await.unwrap();
    assert!(listing(&fs::read(machine.path("t")).unwrap()).is_empty());
    machine.export(Output::local(to(machine.path("d"))), vec![result]).await.unwrap();
    assert_eq!(fs::read_dir(machine.path("d")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn archives_hold_the_image() {
    let machine = Machine::new();
    let result = machine.result();
    let stored = machine.export(image(&["app:1"]), vec![result.clone()]).await.unwrap().image;
    for (transport, name, output) in [
        ("docker-archive", "docker.tar", Output::docker(names(&["app:1"]), to(machine.path("docker.tar")))),
        ("oci-archive", "oci.tar", Output::oci(names(&["app:1"]), to(machine.path("oci.tar")))),
    ] {
        let exported = machine.export(output, vec![result.clone()]).await.unwrap();
        assert_eq!(exported.image, stored);
        let location = format!("{transport}:{}", machine.path(name).display());
        let config = skopeo(&["inspect", "--config", "--raw", &location]);
        assert_eq!(Some(ImageId(Digest::sha256_of(config))), stored);
        let manifest = exported.manifest.unwrap();
        // Of the other, skopeo shows a manifest of its own.
        if transport == "oci-archive" {
            let raw = skopeo(&["inspect", "--raw", &location]);
            assert_eq!(Digest::sha256_of(raw), manifest.digest);
        }
        let other = Machine::new();
        let archive = fs::File::open(machine.path(name)).unwrap();
        let loaded = load(&other.stores, archive, &[], &CancellationToken::new(), &|_| ()).unwrap();
        assert_eq!(loaded[0].names, names(&["app:1"]));
        assert_eq!(Some(loaded[0].id.clone()), stored);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_goes_into_a_tar_file() {
    let machine = Machine::new();
    machine.export(Output::tar(to(machine.path("t"))), vec![machine.result()]).await.unwrap();
    assert_eq!(
        listing(&fs::read(machine.path("t")).unwrap()),
        [
            "etc/ 755 0:0",
            "etc/conf.d/ 755 0:0",
            "etc/conf.d/a 644 7:8",
            "etc/tool 755 0:0",
            "link 777 0:0 -> /etc/tool",
            "tool 755 0:0 -> etc/tool",
        ]
    );
    assert_eq!(fs::metadata(machine.path("t")).unwrap().mode() & 0o777, 0o644);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_appears_only_when_it_is_whole() {
    let mut machine = Machine::new();
    fs::create_dir(machine.path("out")).unwrap();
    let target = machine.path("out/t");
    fs::write(&target, "before").unwrap();
    machine.cancel.cancel();
    let error = machine.export(Output::tar(to(&target)), vec![machine.result()]).await.unwrap_err();
    assert!(matches!(error, ExportError::Canceled));

    // A tree that no archive can hold: the export fails half-way.
    machine.cancel = CancellationToken::new();
    let mut result = machine.result();
    result.tree = machine.tree(&result.tree, |root| fs::write(root.join(".wh.x"), "").unwrap());
    machine.export(Output::docker(Vec::new(), to(&target)), vec![result]).await.unwrap_err();
    assert_eq!(fs::read(&target).unwrap(), b"before");
    assert_eq!(fs::read_dir(machine.path("out")).unwrap().count(), 1);

    let nowhere = machine.path("nowhere/t");
    let error = machine.export(Output::tar(to(nowhere)), vec![machine.result()]).await.unwrap_err();
    assert!(error.to_string().contains("nowhere/t"), "{error}");
    machine.export(Output::tar(to(machine.path("out"))), vec![machine.result()]).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_goes_into_a_directory_over_what_is_there_and_nowhere_else() {
    let machine = Machine::new();
    let (out, outside) = (machine.path("d"), machine.path("outside"));
    fs::create_dir_all(&out).unwrap();
    fs::create_dir_all(outside.join("conf.d")).unwrap();
    fs::write(out.join("mine"), "stays").unwrap();
    fs::write(out.join("tool"), "old").unwrap();
    // Somebody's links must not carry the result away.
    std::os::unix::fs::symlink(&outside, out.join("etc")).unwrap();
    std::os::unix::fs::symlink(outside.join("link"), out.join("link")).unwrap();
    machine.export(Output::local(to(&out)), vec![machine.result()]).await.unwrap();
    assert_eq!(fs::read(out.join("mine")).unwrap(), b"stays");
    assert_eq!(fs::read(out.join("tool")).unwrap(), b"#!");
    assert_eq!(fs::read_link(out.join("link")).unwrap().to_str(), Some("/etc/tool"));
    assert_eq!(fs::read_dir(outside.join("conf.d")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    // As whoever runs this, as with docker's client.
    assert_eq!(fs::symlink_metadata(out.join("tool")).unwrap().uid(), rustix::process::geteuid().as_raw());
    let error = machine.export(Output::local(Destination::Stdout), vec![machine.result()]).await.unwrap_err();
    assert!(matches!(error, ExportError::Unsupported { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_gets_its_file() {
    let machine = Machine::new();
    let client = FileClient::default();
    machine.connect(&Client::File(client.clone())).await;
    machine.export(Output::tar(Destination::Session), vec![machine.result()]).await.unwrap();
    assert_eq!(*client.complete.borrow(), Some(true));
    assert_eq!(listing(&client.file.lock()).len(), 6);

    client.file.lock().clear();
    let result = machine.result();
    machine.export(Output::docker(names(&["app"]), Destination::Session), vec![result]).await.unwrap();
    assert!(listing(&client.file.lock()).iter().any(|entry| entry.starts_with("manifest.json")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_told_when_its_file_is_not_whole() {
    let mut machine = Machine::new();
    let client = FileClient { begun: machine.cancel.clone(), ..FileClient::default() };
    machine.connect(&Client::File(client.clone())).await;
    let mut result = machine.result();
    // More than fits on the way, so that it is cancelled half-way.
    let large = vec![1; 64 << 20];
    result.tree = machine.tree(&result.tree, |root| fs::write(root.join("large"), &large).unwrap());
    let error = machine.export(Output::tar(Destination::Session), vec![result]).await.unwrap_err();
    assert!(matches!(error, ExportError::Canceled));
    client.complete.subscribe().wait_for(|whole| *whole == Some(false)).await.unwrap();
    // The session lives on: the next export completes.
    machine.cancel = CancellationToken::new();
    machine.export(Output::tar(Destination::Session), vec![machine.result()]).await.unwrap();
    assert_eq!(*client.complete.borrow(), Some(true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_refuses_is_the_error() {
    let machine = Machine::new();
    machine.connect(&Client::File(FileClient { refuses: true, ..FileClient::default() })).await;
    let error = machine.export(Output::tar(Destination::Session), vec![machine.result()]).await.unwrap_err();
    assert!(error.to_string().contains("export target already exists"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_session_there_is_no_client_to_send_to() {
    let machine = Machine::new();
    for output in [Output::tar(Destination::Session), Output::local(Destination::Session)] {
        let error = machine.export(output, vec![machine.result()]).await.unwrap_err();
        assert!(matches!(error, ExportError::NoSession { .. }), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_gets_its_directory() {
    let machine = Machine::new();
    let client = DirectoryClient::default();
    machine.connect(&Client::Directory(client.clone())).await;
    machine.export(Output::local(Destination::Session), vec![machine.result()]).await.unwrap();
    {
        let got = client.got.lock();
        assert_eq!(
            got.keys().collect::<Vec<_>>(),
            ["etc", "etc/conf.d", "etc/conf.d/a", "etc/tool", "link", "tool"]
        );
        assert_eq!(got["etc/tool"].2, b"#!");
        assert_eq!(got["tool"].1, "etc/tool");
        assert_eq!(got["link"].1, "/etc/tool");
    }
    client.got.lock().clear();
    let mut other = machine.result();
    other.platform = Platform::parse("linux/arm/v7").unwrap();
    let results = vec![other, machine.result()];
    machine.export_several(Output::local(Destination::Session), results).await.unwrap();
    let got = client.got.lock();
    assert_eq!(got["linux_arm_v7/etc/tool"].2, b"#!");
    assert_eq!(got["linux_arm_v7/tool"].1, "linux_arm_v7/etc/tool");
    assert_eq!(got.len(), 14);
}

#[test]
fn displays_call_exports_as_buildkit_does() {
    let to = || Destination::Session;
    assert_eq!(Output::CacheOnly.progress_name(), None);
    assert_eq!(image(&[]).progress_name().as_deref(), Some("exporting to image"));
    assert_eq!(Output::local(to()).progress_name().as_deref(), Some("exporting to client directory"));
    assert_eq!(Output::tar(to()).progress_name().as_deref(), Some("exporting to client tarball"));
    let oci = Output::oci(Vec::new(), to());
    assert_eq!(oci.progress_name().as_deref(), Some("exporting to oci image format"));
    let docker = Output::docker(Vec::new(), to());
    assert_eq!(docker.progress_name().as_deref(), Some("exporting to docker image format"));
}
