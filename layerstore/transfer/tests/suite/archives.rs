//! Archives that are written here are read here, by skopeo, and as Docker writes them.

use std::{fs, io::Write as _, path::Path, process::Command};

use lapstrake_graphdriver_adapter::DriverKind;
use lapstrake_layerstore_oci::{DiffId, Digest, ImageConfig, Platform};
use lapstrake_layerstore_store::{Collector, NewImage, Tree};
use lapstrake_layerstore_transfer::{
    BlobCompression, BlobOptions, HeldImages, LayoutContents, ManifestForm, ManifestOptions, SaveImage,
    import, layers, load, make_index, make_manifest, save, write_oci_archive,
};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::common;
use crate::common::*;

#[test]
fn an_image_survives_save_and_load() {
    for (from, to) in [(DriverKind::Overlay2, DriverKind::Vfs), (DriverKind::Vfs, DriverKind::Overlay2)] {
        let one = Machine::with_driver(from);
        let image = one.image(&rich(&one), &["app:1", "localhost:5000/app"]);
        let other = Machine::with_driver(to);
        let loaded = other.load(&one.save(&[&image])).unwrap();
        assert_eq!(loaded.len(), 1);
        assert_eq!(loaded[0].id, image.id);
        let there = other.record(&image.id);
        assert_eq!(there.config, image.config);
        assert_eq!(there.diff_ids, image.diff_ids);
        assert_eq!(
            there.names.iter().map(|name| name.reference.familiar()).collect::<Vec<_>>(),
            ["app:1", "localhost:5000/app:latest"]
        );
        assert_eq!(other.files(&there), one.files(&image));
        assert!(!other.files(&there).contains_key("/etc/deleted"));
        assert!(!other.files(&there).contains_key("/etc/opaque/old"));
    }
}

#[test]
fn what_is_loaded_is_saved_with_the_same_bytes() {
    let one = Machine::new();
    let image = one.image(&rich(&one), &["app:1"]);
    let archive = one.save(&[&image]);
    assert!(archive == one.save(&[&image]), "saving twice gives the same bytes");
    let other = Machine::new();
    other.load(&archive).unwrap();
    assert!(archive == other.save(&[&other.find("app:1")]));
    // Its layers are in the trees alone.
    assert_eq!(other.stores.layers.blobs(&image.diff_ids[2]).unwrap(), []);
}

#[test]
fn the_archive_is_docker_saves() {
    let machine = Machine::new();
    let base = machine.tree(&Tree::empty(), |root| fs::write(root.join("a"), "a").unwrap());
    let top = machine.tree(&base, |root| fs::write(root.join("b"), "b").unwrap());
    let (first, second) = (machine.image(&base, &["base:1", "base:2"]), machine.image(&top, &[]));
    let archive = machine.save(&[&first, &second]);
    let names: Vec<String> = entries(&archive).into_iter().map(|entry| entry.0).collect();
    let mut once = names.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), names.len(), "each file once: {names:?}");

    let items: Value = serde_json::from_slice(&file(&archive, "manifest.json")).unwrap();
    let blob = |digest: &str| format!("blobs/sha256/{}", digest.strip_prefix("sha256:").unwrap());
    assert_eq!(items[0]["Config"], blob(first.id.as_str()));
    assert_eq!(items[0]["RepoTags"], serde_json::json!(["base:1", "base:2"]));
    assert_eq!(items[1]["RepoTags"], Value::Null);
    assert_eq!(
        items[1]["Layers"],
        serde_json::json!([blob(second.diff_ids[0].as_str()), blob(second.diff_ids[1].as_str())])
    );
    for diff_id in &second.diff_ids {
        let bytes = file(&archive, &blob(diff_id.as_str()));
        assert_eq!(DiffId(Digest::sha256_of(&bytes)), *diff_id);
        let source = &items[1]["LayerSources"][diff_id.as_str()];
        assert_eq!(source["size"], bytes.len());
        assert_eq!(source["mediaType"], "application/vnd.oci.image.layer.v1.tar");
    }
    let repositories: Value = serde_json::from_slice(&file(&archive, "repositories")).unwrap();
    assert_eq!(repositories["base"]["2"], first.diff_ids[0].hex());
    let index: Value = serde_json::from_slice(&file(&archive, "index.json")).unwrap();
    let tags: Vec<&Value> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|manifest| &manifest["annotations"]["org.opencontainers.image.ref.name"])
        .collect();
    assert_eq!(tags, [&Value::from("1"), &Value::from("2"), &Value::Null]);
    assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], "docker.io/library/base:1");
    assert_eq!(file(&archive, "oci-layout"), br#"{"imageLayoutVersion": "1.0.0"}"#);
}

#[test]
fn skopeo_reads_what_is_saved() {
    let machine = Machine::new();
    let image = machine.image(&rich(&machine), &["app:1"]);
    let path = machine.dir.path().join("saved.tar");
    fs::write(&path, machine.save(&[&image])).unwrap();
    for transport in ["docker-archive", "oci-archive"] {
        let inspected = skopeo(&["inspect", "--config", "--raw", &format!("{transport}:{}", path.display())]);
        assert_eq!(Digest::sha256_of(inspected), *image.id.digest(), "{transport}");
        // A copy reads and verifies all layers.
        let copy = machine.dir.path().join(transport);
        skopeo(&["copy", &format!("{transport}:{}", path.display()), &format!("dir:{}", copy.display())]);
    }
}

#[test]
fn what_skopeo_writes_is_loaded() {
    let one = Machine::new();
    let image = one.image(&rich(&one), &["app:1"]);
    let path = one.dir.path().join("saved.tar");
    fs::write(&path, one.save(&[&image])).unwrap();
    for (transport, name) in [("docker-archive", "docker.io/library/app:2"), ("oci-archive", "app:2")] {
        let written = one.dir.path().join(format!("{transport}.tar"));
        skopeo(&[
            "copy",
            // From a Docker manifest to an OCI one, skopeo would write the config anew.
            &format!("{transport}:{}", path.display()),
            &format!("{transport}:{}:{name}", written.display()),
        ]);
        let other = Machine::new();
        let (loaded, lines) = other.load_with_lines(&fs::read(&written).unwrap()).unwrap();
        assert_eq!(loaded[0].id, image.id, "{transport}");
        assert_eq!(lines, ["Loaded image: app:2"]);
        let there = other.find("app:2");
        assert_eq!(other.files(&there), one.files(&image));
        // Compressed layers stay as they came, and with them the manifest that names them.
        assert_eq!(there.manifest.is_some(), transport == "oci-archive");
    }
}

#[test]
fn an_archive_may_be_compressed() {
    let one = Machine::new();
    let image = one.image(&rich(&one), &["app:1"]);
    let archive = one.save(&[&image]);
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(&archive).unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 0);
    xz.write_all(&archive).unwrap();
    let zstd = zstd::encode_all(archive.as_slice(), 1).unwrap();
    for compressed in [gzip(&archive), bzip2.finish().unwrap(), xz.finish().unwrap(), zstd] {
        let other = Machine::new();
        assert_eq!(other.load(&compressed).unwrap()[0].id, image.id);
    }
}

#[test]
fn docker_20_10s_layout_with_links_is_loaded_in_any_order() {
    let layer = tar(&[("f", b"content")]);
    let diff_id = DiffId(Digest::sha256_of(&layer));
    // The same layer twice: Docker 20.10 writes the second as a link.
    let config = config(&[diff_id.clone(), diff_id.clone()]);
    let id = Digest::sha256_of(&config);
    let manifest = format!(
        r#"[{{"Config":"{0}.json","RepoTags":["old:1"],"Layers":["aa/layer.tar","bb/layer.tar"]}}]"#,
        id.hex()
    );
    let mut builder = tar::Builder::new(Vec::new());
    append(&mut builder, "manifest.json", tar::EntryType::Regular, "", manifest.as_bytes());
    append(&mut builder, "bb/layer.tar", tar::EntryType::Symlink, "../aa/layer.tar", b"");
    append(&mut builder, "bb/VERSION", tar::EntryType::Regular, "", b"1.0");
    append(&mut builder, "aa/layer.tar", tar::EntryType::Regular, "", &layer);
    append(&mut builder, &format!("{}.json", id.hex()), tar::EntryType::Regular, "", &config);
    let machine = Machine::new();
    let loaded = machine.load(&builder.into_inner().unwrap()).unwrap();
    assert_eq!(*loaded[0].id.digest(), id);
    let record = machine.find("old:1");
    assert_eq!(record.diff_ids, [diff_id.clone(), diff_id]);
    assert!(machine.files(&record).contains_key("/f"));
}

#[test]
fn a_layer_that_cannot_be_written_anew_keeps_its_file() {
    // Owner names and a time with nanoseconds: nothing that a snapshot keeps.
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_path("f").unwrap();
    header.set_username("somebody").unwrap();
    header.set_size(1);
    header.set_cksum();
    builder.append(&header, b"x".as_slice()).unwrap();
    let layer = builder.into_inner().unwrap();
    for file in [layer.clone(), gzip(&layer), zstd::encode_all(layer.as_slice(), 1).unwrap()] {
        let diff_id = DiffId(Digest::sha256_of(&layer));
        let config = config(std::slice::from_ref(&diff_id));
        let archive = tar(&[
            ("config.json", &config),
            ("layer", &file),
            ("manifest.json", br#"[{"Config":"config.json","RepoTags":["x:1"],"Layers":["layer"]}]"#),
        ]);
        let machine = Machine::new();
        machine.load(&archive).unwrap();
        let blobs = machine.stores.layers.blobs(&diff_id).unwrap();
        assert_eq!(blobs[0].digest, Digest::sha256_of(&file));
        let saved = machine.save(&[&machine.find("x:1")]);
        assert!(common::file(&saved, &format!("blobs/sha256/{}", diff_id.hex())) == layer);
    }
}

#[test]
fn a_name_moves_to_the_loaded_image() {
    let machine = Machine::new();
    let old = machine
        .image(&machine.tree(&Tree::empty(), |root| fs::write(root.join("a"), "").unwrap()), &["app:1"]);
    let one = Machine::new();
    let new = one.image(&one.tree(&Tree::empty(), |root| fs::write(root.join("b"), "").unwrap()), &["app:1"]);
    let (_, lines) = machine.load_with_lines(&one.save(&[&new])).unwrap();
    assert_eq!(
        lines,
        [
            format!(
                "The image app:1 already exists, renaming the old one with ID {} to empty string",
                old.id
            ),
            "Loaded image: app:1".to_owned()
        ]
    );
    assert_eq!(machine.find("app:1").id, new.id);
    assert!(machine.record(&old.id).is_dangling());
    let (_, lines) = machine.load_with_lines(&one.save(&[&new])).unwrap();
    assert_eq!(lines, ["Loaded image: app:1"], "loading again moves nothing");
}

#[test]
fn an_image_without_a_name_is_told_by_its_id() {
    let one = Machine::new();
    let image = one.image(&one.tree(&Tree::empty(), |root| fs::write(root.join("b"), "").unwrap()), &[]);
    let (_, lines) = Machine::new().load_with_lines(&one.save(&[&image])).unwrap();
    assert_eq!(lines, [format!("Loaded image ID: {}", image.id)]);
}

#[test]
fn an_image_without_layers_is_saved_and_loaded() {
    let one = Machine::new();
    let image = one.image(&Tree::empty(), &["nothing:1"]);
    let other = Machine::new();
    assert_eq!(other.load(&one.save(&[&image])).unwrap()[0].id, image.id);
    assert_eq!(other.find("nothing:1").top, None);
}

#[test]
fn a_parent_in_the_archive_is_kept() {
    let one = Machine::new();
    let tree = one.tree(&Tree::empty(), |root| fs::write(root.join("b"), "").unwrap());
    let parent = one.image(&tree, &[]);
    let mut config = ImageConfig::from_json(&parent.config).unwrap();
    config.author = "a child".to_owned();
    let child = one
        .stores
        .images
        .put(NewImage {
            config: config.to_json().unwrap(),
            top: tree.snapshot().cloned(),
            diff_ids: parent.diff_ids.clone(),
            parent: Some(parent.id.clone()),
            manifest: None,
            names: vec![image_name("child:1")],
        })
        .unwrap();
    let other = Machine::new();
    other.load(&one.save(&[&one.record(&child), &parent])).unwrap();
    assert_eq!(other.record(&child).parent, Some(parent.id.clone()));
    let third = Machine::new();
    third.load(&one.save(&[&one.record(&child)])).unwrap();
    assert_eq!(third.record(&child).parent, None, "a parent that is not in the archive does not count");
}

#[test]
fn of_an_oci_index_the_hosts_image_is_taken_or_the_one_asked_for() {
    let machine = Machine::new();
    let tree = machine.tree(&Tree::empty(), |root| fs::write(root.join("b"), "").unwrap());
    let cancel = CancellationToken::new();
    let layers = layers(&machine.stores, &tree).unwrap();
    let mut made = Vec::new();
    let foreign = Platform::new("linux", "s390x");
    for platform in [&foreign, &Platform::host()] {
        let mut config = ImageConfig::for_platform(platform);
        config.rootfs.diff_ids = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let options = ManifestOptions::of_buildkit(
            ManifestForm::Oci,
            BlobOptions { compression: BlobCompression::Zstd, ..BlobOptions::default() },
        );
        made.push(
            make_manifest(&machine.stores, &config.to_json().unwrap(), &layers, &options, &cancel).unwrap(),
        );
    }
    let mut archive = Vec::new();
    let names = [reference("multi:1")];
    let index = make_index(&machine.stores, made, ManifestForm::Oci, Default::default()).unwrap();
    let root = index.descriptor.clone();
    assert!(root.media_type.is_index());
    let contents = LayoutContents::Index(Box::new(index));
    write_oci_archive(&machine.stores, &contents, &root, &names, false, &mut archive, &cancel).unwrap();
    let other = Machine::new();
    other.load(&archive).unwrap();
    let config = ImageConfig::from_json(&other.find("multi:1").config).unwrap();
    assert_eq!(config.platform().normalized(), Platform::host());
    load(&other.stores, archive.as_slice(), &[foreign], &cancel, &|_| ()).unwrap();
    assert_eq!(ImageConfig::from_json(&other.find("multi:1").config).unwrap().architecture, "s390x");
    let error =
        load(&other.stores, archive.as_slice(), &[Platform::new("linux", "riscv64")], &cancel, &|_| ());
    assert!(chain(&error.unwrap_err()).contains("has no manifest for linux/riscv64"));
}

#[test]
fn a_root_file_system_becomes_an_image() {
    let rootfs = tar(&[("bin/busybox", &fs::read("/bin/busybox").unwrap_or_else(|_| b"busybox".to_vec()))]);
    let machine = Machine::new();
    let config = ImageConfig::for_platform(&Platform::host());
    let names = vec![image_name("busybox:1")];
    let id = import(
        &machine.stores,
        gzip(&rootfs).as_slice(),
        config,
        "Imported from -",
        names,
        &CancellationToken::new(),
    )
    .unwrap();
    let record = machine.find("busybox:1");
    assert_eq!(record.id, id);
    assert!(machine.files(&record).contains_key("/bin/busybox"));
    let config = ImageConfig::from_json(&record.config).unwrap();
    assert_eq!(config.history.len(), 1);
    assert_eq!(config.history[0].comment, "Imported from -");
    assert_eq!(config.history[0].created, config.created);
    assert_eq!(config.comment, "Imported from -");
}

#[test]
fn a_cancelled_save_and_load_end() {
    let one = Machine::new();
    let image = one.image(&rich(&one), &["app:1"]);
    let archive = one.save(&[&image]);
    let cancel = CancellationToken::new();
    cancel.cancel();
    let other = Machine::new();
    let error = load(&other.stores, archive.as_slice(), &[], &cancel, &|_| ()).unwrap_err();
    assert_eq!(error.to_string(), "context canceled");
    assert!(other.stores.images.list().unwrap().is_empty());
    let images = [SaveImage { record: image, names: Vec::new() }];
    let images = HeldImages::new(&one.stores, &images).unwrap();
    let error = save(&one.stores, &images, std::io::sink(), &cancel).unwrap_err();
    assert_eq!(error.to_string(), "context canceled");
}

fn skopeo(arguments: &[&str]) -> Vec<u8> {
    let tmp = Path::new("/var/tmp");
    let output = Command::new("skopeo")
        .arg("--insecure-policy")
        .args(arguments)
        .current_dir(tmp)
        .output()
        .expect("skopeo is installed (Debian package skopeo)");
    assert!(output.status.success(), "skopeo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn an_image_that_is_held_for_saving_stays_and_one_that_is_gone_is_told_before_the_first_byte() {
    let one = Machine::new();
    let image = one.image(&rich(&one), &["app:1"]);
    let expected = one.save(&[&image]);
    let order = [SaveImage { record: image.clone(), names: vec![image.names[0].reference.clone()] }];
    let held = HeldImages::new(&one.stores, &order).unwrap();
    one.stores.images.delete_image(&image.id).unwrap_err();
    Collector::new(one.stores.clone(), Vec::new()).collect().unwrap();
    let mut out = Vec::new();
    save(&one.stores, &held, &mut out, &CancellationToken::new()).unwrap();
    assert!(out == expected);
    drop(held);
    one.stores.images.delete_image(&image.id).unwrap();
    HeldImages::new(&one.stores, &order).unwrap_err();
}
