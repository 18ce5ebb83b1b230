//! Several platforms at once, in each output.

use std::fs;

use lapstrake_builder_exporter::{Destination, ExportError, Output, PlatformResult};
use lapstrake_layerstore_oci::{Digest, ImageConfig, Index, Platform};
use lapstrake_layerstore_store::{Collector, Tree};
use lapstrake_layerstore_transfer::{HeldImages, SaveImage, load, save, stored_index, stored_manifest};
use tokio_util::sync::CancellationToken;

use crate::common::*;

fn arm() -> Platform {
    Platform::parse("linux/arm/v7").unwrap()
}

fn results(machine: &Machine) -> Vec<PlatformResult> {
    let mut other = machine.result();
    other.platform = arm();
    other.config.set_platform(&other.platform);
    other.tree = machine.tree(&other.tree, |root| fs::write(root.join("arm"), "only there").unwrap());
    vec![other, machine.result()]
}

fn image(names_of: &[&str]) -> Output {
    Output::image(names(names_of))
}

fn host_directory() -> String {
    Platform::host().to_string().replace('/', "_")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_gets_an_index_and_shows_the_image_for_this_machine() {
    let machine = Machine::new();
    let exported = machine.export_several(image(&["app:1"]), results(&machine)).await.unwrap();
    let index = exported.manifest.clone().unwrap();
    assert!(index.media_type.is_index());
    assert_eq!(exported.digest(), Some(&index.digest));
    let record = machine.stores.images.find("app:1").unwrap();
    assert_eq!(Some(&record.id), exported.image.as_ref());
    let config = ImageConfig::from_json(&record.config).unwrap();
    assert_eq!(config.platform().normalized(), Platform::host());
    assert_eq!(record.index_meant("app:1"), Some(&index));
    // By the index' digest it is found, too.
    assert_eq!(machine.stores.images.find(index.digest.as_str()).unwrap().id, record.id);

    // Everything stays as long as the name does, with nobody holding it.
    Collector::new(machine.stores.clone(), Vec::new()).collect().unwrap();
    let stored = stored_index(&machine.stores, &index).unwrap().unwrap();
    let platforms: Vec<_> =
        stored.manifests.iter().map(|one| one.descriptor.platform.clone().unwrap().to_string()).collect();
    assert_eq!(platforms, ["linux/arm/v7".to_owned(), Platform::host().to_string()]);
    let of_arm = stored_manifest(&machine.stores, &index, &arm()).unwrap().unwrap();
    assert_eq!(of_arm.manifest.layers.len(), 3);
    drop((stored, of_arm));

    // A tag that moves on leaves it with its digest; and when that goes, all goes.
    machine.export(image(&["app:1"]), vec![machine.result()]).await.unwrap();
    Collector::new(machine.stores.clone(), Vec::new()).collect().unwrap();
    assert!(stored_index(&machine.stores, &index).unwrap().is_some());
    for image in machine.stores.images.list().unwrap() {
        machine.stores.images.delete_image(&image.id).unwrap();
    }
    Collector::new(machine.stores.clone(), Vec::new()).collect().unwrap();
    machine.stores.content.walk(&mut |blob| panic!("{blob:?} is left")).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_without_a_name_stays_as_well() {
    let machine = Machine::new();
    let exported = machine.export_several(image(&[]), results(&machine)).await.unwrap();
    Collector::new(machine.stores.clone(), Vec::new()).collect().unwrap();
    let index = exported.manifest.unwrap();
    assert!(stored_index(&machine.stores, &index).unwrap().is_some());
    let record = machine.stores.images.find(index.digest.as_str()).unwrap();
    assert!(record.is_dangling() && record.names.iter().all(|name| name.is_nameless()));
    assert_eq!(record.index_meant(index.digest.as_str()), Some(&index));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_this_machines_platform_the_first_is_shown() {
    let machine = Machine::new();
    let mut results = results(&machine);
    results[1].platform = Platform::new("linux", "s390x");
    results[1].config.set_platform(&Platform::new("linux", "s390x"));
    machine.export_several(image(&["app"]), results).await.unwrap();
    let record = machine.stores.images.find("app").unwrap();
    assert_eq!(ImageConfig::from_json(&record.config).unwrap().platform(), arm());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_platform_of_several_is_an_index_too() {
    let machine = Machine::new();
    let exported = machine.export_several(image(&["app"]), vec![machine.result()]).await.unwrap();
    assert!(exported.manifest.unwrap().media_type.is_index());
    let exported = machine.export(image(&["single"]), vec![machine.result()]).await.unwrap();
    assert_eq!(exported.manifest, None);
    machine.export_several(Output::local(to(machine.path("d"))), vec![machine.result()]).await.unwrap();
    assert!(machine.path("d").join(host_directory()).join("tool").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_saved_loads_with_all_platforms() {
    let (one, two) = (Machine::new(), Machine::new());
    let exported = one.export_several(image(&["app:1", "app:2"]), results(&one)).await.unwrap();
    let index = exported.manifest.unwrap();
    let record = one.stores.images.find("app:1").unwrap();
    let images = [SaveImage { record: record.clone(), names: names(&["app:1"]) }];
    let (mut archive, cancel) = (Vec::new(), CancellationToken::new());
    save(&one.stores, &HeldImages::new(&one.stores, &images).unwrap(), &mut archive, &cancel).unwrap();

    let loaded = load(&two.stores, archive.as_slice(), &[], &cancel, &|_| ()).unwrap();
    assert_eq!((loaded.len(), &loaded[0].id), (1, &record.id));
    Collector::new(two.stores.clone(), Vec::new()).collect().unwrap();
    assert_eq!(two.stores.images.find("app:1").unwrap().index_meant("app:1"), Some(&index));
    assert!(stored_index(&two.stores, &index).unwrap().is_some());
    // Once more, from there, to the letter.
    let record = two.stores.images.find("app:1").unwrap();
    let images = [SaveImage { record, names: names(&["app:1"]) }];
    let mut again = Vec::new();
    save(&two.stores, &HeldImages::new(&two.stores, &images).unwrap(), &mut again, &cancel).unwrap();
    assert_eq!(Digest::sha256_of(&again), Digest::sha256_of(&archive));
    // Whoever chooses a platform gets that alone.
    let three = Machine::new();
    load(&three.stores, archive.as_slice(), &[Platform::host()], &cancel, &|_| ()).unwrap();
    assert_eq!(three.stores.images.find("app:1").unwrap().index_meant("app:1"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_oci_layout_holds_the_index_and_loads_with_it() {
    let machine = Machine::new();
    let output = Output::oci(names(&["multi"]), to(machine.path("o.tar")));
    let exported = machine.export_several(output, results(&machine)).await.unwrap();
    let manifest = exported.manifest.unwrap();
    assert!(manifest.media_type.is_index());
    assert_eq!(exported.image, None);
    let raw = skopeo(&["inspect", "--raw", &format!("oci-archive:{}", machine.path("o.tar").display())]);
    assert_eq!(Digest::sha256_of(&raw), manifest.digest);
    let index = Index::from_json(&raw).unwrap();
    assert_eq!(index.manifests[0].platform.as_ref().unwrap().variant, "v7");
    let other = Machine::new();
    let archive = fs::File::open(machine.path("o.tar")).unwrap();
    load(&other.stores, archive, &[], &CancellationToken::new(), &|_| ()).unwrap();
    let found = other.stores.images.find("multi").unwrap();
    assert_eq!(found.index_meant("multi").unwrap().digest, manifest.digest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_archives_have_room_for_one() {
    let machine = Machine::new();
    let output = Output::docker(names(&["app"]), to(machine.path("t")));
    let error = machine.export_several(output, results(&machine)).await.unwrap_err();
    assert_eq!(error.to_string(), "docker exporter does not currently support exporting manifest lists");
    for output in [image(&[]), Output::tar(to(machine.path("t"))), Output::local(to(machine.path("d")))] {
        let error = machine.export_several(output, Vec::new()).await.unwrap_err();
        assert!(matches!(error, ExportError::NoResults));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trees_go_into_directories_by_platform() {
    let machine = Machine::new();
    let mut with_empty = results(&machine);
    with_empty[1].tree = Tree::empty();
    machine.export_several(Output::local(to(machine.path("d"))), with_empty.clone()).await.unwrap();
    assert_eq!(fs::read(machine.path("d/linux_arm_v7/etc/conf.d/a")).unwrap(), b"a");
    assert_eq!(fs::read_dir(machine.path("d").join(host_directory())).unwrap().count(), 0);

    machine.export_several(Output::tar(to(machine.path("t"))), with_empty).await.unwrap();
    let mut expected = vec![
        format!("{}/ 755 0:0", host_directory()),
        "linux_arm_v7/ 755 0:0".to_owned(),
        "linux_arm_v7/arm 644 0:0".to_owned(),
        "linux_arm_v7/etc/ 755 0:0".to_owned(),
        "linux_arm_v7/etc/conf.d/ 755 0:0".to_owned(),
        "linux_arm_v7/etc/conf.d/a 644 7:8".to_owned(),
        "linux_arm_v7/etc/tool 755 0:0".to_owned(),
        "linux_arm_v7/link 777 0:0 -> /etc/tool".to_owned(),
        "linux_arm_v7/tool 755 0:0 -> linux_arm_v7/etc/tool".to_owned(),
    ];
    expected.sort_by_key(|line| line.starts_with("linux_arm"));
    assert_eq!(listing(&fs::read(machine.path("t")).unwrap()), expected);
    assert!(
        std::process::Command::new("tar")
            .arg("-xf")
            .arg(machine.path("t"))
            .current_dir(machine.dir.path())
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(fs::read(machine.path("linux_arm_v7/tool")).unwrap(), b"#!");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_directory_for_all_needs_files_that_differ() {
    let machine = Machine::new();
    let merged = |name: &str| local_split(to(machine.path(name)), false);
    let error = machine.export_several(merged("d"), results(&machine)).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("cannot overwrite etc/conf.d/a from linux/")
            && text.ends_with("split option is disabled"),
        "{text}"
    );
    assert!(!machine.path("d").exists());

    let mut apart = results(&machine);
    for (result, file) in apart.iter_mut().zip(["app-arm", "app-host"]) {
        result.tree = machine.tree(&Tree::empty(), |root| {
            fs::create_dir(root.join("bin")).unwrap();
            fs::write(root.join("bin").join(file), file).unwrap();
        });
    }
    machine.export_several(merged("d"), apart.clone()).await.unwrap();
    assert_eq!(fs::read_dir(machine.path("d/bin")).unwrap().count(), 2);

    let client = DirectoryClient::default();
    machine.connect(&Client::Directory(client.clone())).await;
    let output = local_split(Destination::Session, false);
    machine.export_several(output, apart).await.unwrap();
    assert_eq!(client.got.lock().keys().collect::<Vec<_>>(), ["bin", "bin/app-arm", "bin/app-host"]);

    // And one platform alone gets its directory when that is asked for.
    let output = local_split(to(machine.path("s")), true);
    machine.export(output, vec![machine.result()]).await.unwrap();
    assert!(machine.path("s").join(host_directory()).join("tool").exists());
}
