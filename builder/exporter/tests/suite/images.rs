//! Images as documents: what registries and layouts get, checked by docker-registry and skopeo.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc, time::SystemTime};

use lapstrake_builder_exporter::{Attestation, ExportError, Exported, Output, PlatformResult};
use lapstrake_layerstore_conformance::{
    docker_registry::Registry,
    registry::{Fake, Shelf},
};
use lapstrake_layerstore_oci::{Digest, ImageConfig, Index, LayerCompression, Manifest, MediaType, Platform};
use lapstrake_layerstore_store::{Collector, Tree};
use lapstrake_layerstore_transfer::{LayerBlob, layers, unpack};

use crate::common::*;

fn parsed(kind: &str, attrs: &[(&str, &str)]) -> Output {
    let attrs: BTreeMap<String, String> =
        attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Output::parse(kind, &attrs).unwrap()
}

fn to_file(kind: &str, path: &Path, attrs: &[(&str, &str)]) -> Output {
    parsed(kind, attrs).send_to(to(path)).unwrap()
}

fn provenance(inline_only: bool) -> Attestation {
    let metadata = inline_only.then(|| ("inline-only".to_owned(), b"true".to_vec()));
    Attestation { metadata: metadata.into_iter().collect(), ..said("{\"builder\": {}}") }
}

fn document(location: &str) -> Vec<u8> {
    skopeo(&["inspect", "--tls-verify=false", "--raw", location])
}

fn read(machine: &Machine, digest: &Digest) -> Vec<u8> {
    machine.stores.content.read_small(digest, 1 << 20).unwrap()
}

fn manifest_of(machine: &Machine, exported: &Exported) -> Manifest {
    Manifest::from_json(&read(machine, &exported.manifest.as_ref().unwrap().digest)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_pushed_under_all_names_when_everything_is_made() {
    let (machine, registry) = (Machine::new(), Registry::start());
    let (one, two) = (registry.image("team/app:1"), registry.image("other/app"));
    let output = parsed("image", &[("name", &format!("{one},{two}")), ("push", "true")]);
    let vertex = machine.vertex();
    let made = machine.made(output, vec![machine.result()], false, &vertex).await.unwrap();
    let digest = made.exported.manifest.clone().unwrap().digest;
    assert!(!made.is_public());
    assert!(!registry.storage().join("docker/registry/v2/repositories/team/app/_manifests").exists());
    let exported = machine.exporter.publish(made, &vertex, &machine.cancel).await.unwrap();
    for image in [one.as_str(), two.as_str()] {
        assert_eq!(Digest::sha256_of(document(&format!("docker://{image}"))), digest);
    }
    let response = exported.response();
    assert_eq!(response["containerimage.digest"], digest.to_string());
    assert_eq!(response["containerimage.config.digest"], exported.image.as_ref().unwrap().to_string());
    assert_eq!(response["image.name"], format!("{one},{two}:latest"));
    let record = machine.stores.images.find(&one).unwrap();
    assert_eq!((Some(record.id), record.manifest), (exported.image, Some(digest.clone())));
    let parts = machine.told.parts();
    let ends: Vec<&str> = parts.iter().map(|part| part.split([' ', '@']).next().unwrap()).collect();
    assert_eq!(
        ends,
        [
            "exporting",
            "exporting",
            "exporting",
            "naming",
            "naming",
            "pushing",
            "pushing",
            "pushing",
            "pushing"
        ],
        "{parts:?}"
    );
    assert_eq!(parts[0], "exporting layers");
    assert_eq!(parts[5], "pushing layers");
    assert_eq!(parts[6], format!("pushing manifest for {one}@{digest}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_are_on_their_way_before_the_image_may_be_seen() {
    let (machine, shelf) = (Machine::new(), Arc::new(Shelf::default()));
    let (begun, begins) = tokio::sync::watch::channel(false);
    let serving = Arc::clone(&shelf);
    let registry = Fake::start(move |seen| {
        if seen.method == "POST" {
            begun.send_replace(true);
        }
        serving.serve(seen).into()
    })
    .await;
    let name = format!("{}/team/app:1", registry.host);
    let vertex = machine.vertex();
    let output = parsed("image", &[("name", &name), ("push", "true")]);
    let made = machine.made(output, vec![machine.result()], false, &vertex).await.unwrap();
    // Nobody has asked for it to be published yet.
    begins.clone().wait_for(|begun| *begun).await.unwrap();
    assert_eq!(shelf.tagged("team/app", "1"), None);
    let exported = machine.exporter.publish(made, &vertex, &machine.cancel).await.unwrap();
    let manifest = manifest_of(&machine, &exported);
    assert!(manifest.layers.iter().all(|layer| shelf.blob(&layer.digest).is_some()));
    assert!(shelf.tagged("team/app", "1").is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_goes_to_a_registry_by_its_digest_and_nowhere_else() {
    let (machine, registry) = (Machine::new(), Registry::start());
    let name = registry.image("app");
    let attrs = [("name", name.as_str()), ("push", ""), ("push-by-digest", ""), ("store", "false")];
    let exported = machine.export(parsed("image", &attrs), vec![machine.result()]).await.unwrap();
    let digest = exported.manifest.unwrap().digest;
    assert_eq!(Digest::sha256_of(document(&format!("docker://{name}@{digest}"))), digest);
    assert!(!registry.storage().join("docker/registry/v2/repositories/app/_manifests/tags").exists());
    assert!(machine.stores.images.list().unwrap().is_empty());
    let tagged = format!("{name}:1");
    let attrs = [("name", tagged.as_str()), ("push", ""), ("push-by-digest", "")];
    let error = machine.export(parsed("image", &attrs), vec![machine.result()]).await.unwrap_err();
    assert!(error.to_string().contains("by digest"), "{error}");
    // Stored, it has no tag either.
    let attrs = [("name", name.as_str()), ("push", ""), ("push-by-digest", "")];
    machine.export(parsed("image", &attrs), vec![machine.result()]).await.unwrap();
    let [record] = &machine.stores.images.list().unwrap()[..] else { panic!("one image") };
    assert!(record.names.iter().all(|name| name.reference.tag().is_none()), "{record:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_refuses_fails_the_build_by_name_and_the_image_stays() {
    let (machine, registry) = (Machine::new(), Registry::with_users());
    let name = registry.image("app:1");
    let output = parsed("image", &[("name", &name), ("push", "true")]);
    let error = machine.export(output, vec![machine.result()]).await.unwrap_err();
    assert!(matches!(error, ExportError::Push { .. }));
    assert!(error.to_string().starts_with(&format!("failed to push {name}: ")), "{error}");
    machine.stores.images.find(&name).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_by_digest_are_put_where_they_are_asked_for() {
    let machine = Machine::new();
    let attrs = [("name", "app:1"), ("name-canonical", "true"), ("dangling-name-prefix", "loose")];
    let exported = machine.export(parsed("image", &attrs), vec![machine.result()]).await.unwrap();
    let digest = exported.manifest.clone().unwrap().digest;
    let names: Vec<String> = exported.names.iter().map(ToString::to_string).collect();
    let library = |name: &str| format!("docker.io/library/{name}");
    let expected = [library("app:1"), library(&format!("app@{digest}")), library(&format!("loose@{digest}"))];
    // As BuildKit answers it.
    assert_eq!(names, [expected[0].clone(), expected[2].clone()]);
    for name in &expected {
        assert_eq!(Some(machine.stores.images.find(name).unwrap().id), exported.image);
    }
    // Everything that the manifest names stays with the names.
    Collector::new(machine.stores.clone(), Vec::new()).collect().unwrap();
    let manifest = manifest_of(&machine, &exported);
    for blob in manifest.layers.iter().chain([&manifest.config]) {
        assert!(machine.stores.content.info(&blob.digest).unwrap().is_some());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn annotations_go_to_all_four_levels_and_attestations_beside_their_images() {
    let (machine, registry) = (Machine::new(), Registry::start());
    let name = registry.image("app:1");
    let mut results = vec![machine.result(), machine.result()];
    results[1].platform = Platform::parse("linux/arm64").unwrap();
    let arm = results[1].platform.clone();
    results[1].config.set_platform(&arm);
    results[0].attestations = vec![provenance(false)];
    let output = parsed(
        "image",
        &[
            ("name", &name),
            ("push", "true"),
            ("annotation.m", "all"),
            ("annotation[linux/arm64].m", "arm"),
            ("annotation-manifest-descriptor[linux/arm64].md", "1"),
            ("annotation-index.i", "2"),
            ("annotation-index-descriptor.id", "3"),
        ],
    );
    let exported = machine.export_several(output, results).await.unwrap();
    let root = exported.manifest.clone().unwrap();
    assert_eq!(root.annotations, BTreeMap::from([("id".to_owned(), "3".to_owned())]));
    let raw = document(&format!("docker://{name}"));
    assert_eq!(Digest::sha256_of(&raw), root.digest);
    let index = Index::from_json(&raw).unwrap();
    assert_eq!(index.media_type, Some(MediaType::OCI_INDEX));
    assert_eq!(index.annotations["i"], "2");
    let [amd, arm, attested] = &index.manifests[..] else { panic!("{index:?}") };
    assert!(amd.annotations.is_empty());
    assert_eq!(arm.annotations, BTreeMap::from([("md".to_owned(), "1".to_owned())]));
    let manifest = |digest: &Digest| Manifest::from_json(&read(&machine, digest)).unwrap();
    assert_eq!(manifest(&amd.digest).annotations["m"], "all");
    assert_eq!(manifest(&arm.digest).annotations["m"], "arm");

    assert_eq!(attested.platform.as_ref().unwrap().to_string(), "unknown/unknown");
    assert_eq!(attested.annotations["vnd.docker.reference.type"], "attestation-manifest");
    assert_eq!(attested.annotations["vnd.docker.reference.digest"], amd.digest.to_string());
    let statements = manifest(&attested.digest);
    let artifact = "application/vnd.docker.attestation.manifest.v1+json";
    assert_eq!(statements.artifact_type.as_deref(), Some(artifact));
    assert_eq!(statements.subject.as_ref().map(|subject| &subject.digest), Some(&amd.digest));
    assert_eq!(statements.config.media_type, MediaType::OCI_EMPTY);
    let [layer] = &statements.layers[..] else { panic!("one statement") };
    assert_eq!(layer.media_type, MediaType::IN_TOTO);
    assert_eq!(layer.annotations["in-toto.io/predicate-type"], "https://slsa.dev/provenance/v1");
    let statement: serde_json::Value = serde_json::from_slice(&read(&machine, &layer.digest)).unwrap();
    assert_eq!(statement["subject"][0]["digest"]["sha256"], amd.digest.hex());
    assert!(statement["subject"][0]["name"].as_str().unwrap().contains("/app@1?platform=linux%2F"));
    assert_eq!(statement["predicate"], serde_json::json!({ "builder": {} }));
    // It stays with the name.
    Collector::new(machine.stores.clone(), Vec::new()).collect().unwrap();
    assert!(machine.stores.content.info(&layer.digest).unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attestations_of_one_platform_make_an_index_and_may_be_images() {
    let machine = Machine::new();
    let mut result = machine.result();
    result.attestations = vec![provenance(true)];
    let output = parsed("image", &[("oci-artifact", "false"), ("name", "app:1")]);
    let exported = machine.export(output, vec![result.clone()]).await.unwrap();
    let index = Index::from_json(&read(&machine, &exported.manifest.clone().unwrap().digest)).unwrap();
    let attested = Manifest::from_json(&read(&machine, &index.manifests[1].digest)).unwrap();
    let config = ImageConfig::from_json(&read(&machine, &attested.config.digest)).unwrap();
    assert_eq!((config.os.as_str(), config.rootfs.diff_ids.len()), ("unknown", 1));
    assert_eq!((attested.artifact_type, attested.subject), (None, None));
    // Elsewhere, what is for images alone is left out; so there is no index.
    let exported =
        machine.export(to_file("oci", &machine.path("o"), &[]), vec![result.clone()]).await.unwrap();
    assert!(exported.manifest.unwrap().media_type.is_manifest());
    let docker_types = parsed("image", &[("oci-mediatypes", "false")]);
    let error = machine.export(docker_types, vec![result]).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot export attestations with \"oci-mediatypes=false\"");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_are_compressed_as_asked_and_others_only_if_forced() {
    let machine = Machine::new();
    let form = |exported: &Exported| {
        let manifest = manifest_of(&machine, exported);
        assert_eq!(manifest.layers.len(), 2);
        manifest.layers.iter().map(|layer| layer.media_type.layer_compression().unwrap()).collect::<Vec<_>>()
    };
    let result = machine.result();
    let export = |attrs: &'static [(&'static str, &'static str)]| {
        machine.export(parsed("image", attrs), vec![result.clone()])
    };
    let zstd = export(&[("compression", "zstd"), ("compression-level", "1")]).await.unwrap();
    assert_eq!(form(&zstd), [LayerCompression::Zstd; 2]);
    // They are there: that will do.
    let again = export(&[("compression", "gzip")]).await.unwrap();
    assert_eq!(form(&again), [LayerCompression::Zstd; 2]);
    let gzip = export(&[("compression", "gzip"), ("force-compression", "true")]).await.unwrap();
    assert_eq!(form(&gzip), [LayerCompression::Gzip; 2]);
    let plain = export(&[("compression", "uncompressed"), ("force-compression", "")]).await.unwrap();
    assert_eq!(form(&plain), [LayerCompression::None; 2]);
    assert!([&zstd, &gzip, &plain].iter().all(|exported| exported.image == zstd.image), "one image");
    let docker = export(&[("oci-mediatypes", "false")]).await.unwrap();
    assert_eq!(manifest_of(&machine, &docker).media_type, Some(MediaType::DOCKER_MANIFEST));
}

/// A result whose base image has a younger file, on a machine that made it at its own time.
fn dated(machine: &Machine, younger: bool) -> PlatformResult {
    let mut result = machine.result();
    let epoch = SystemTime::UNIX_EPOCH;
    let time = |seconds| epoch + std::time::Duration::from_secs(seconds);
    let touch = |path: &Path, seconds: u64| {
        fs::File::open(path).unwrap().set_modified(time(seconds)).unwrap();
    };
    let base = machine.tree(&Tree::empty(), |root| {
        fs::write(root.join("base"), "base").unwrap();
        touch(&root.join("base"), 2_000_000_000);
        touch(root, 2_000_000_000);
    });
    let tree = machine.tree(&base, |root| {
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("d/old"), "old").unwrap();
        fs::write(root.join("d/new"), "new").unwrap();
        touch(&root.join("d/old"), 1000);
        touch(&root.join("d/new"), if younger { 1_900_000_000 } else { 1_800_000_000 });
        fs::remove_file(root.join("base")).unwrap();
    });
    let diff_ids: Vec<_> =
        layers(&machine.stores, &base).unwrap().into_iter().map(|layer| layer.diff_id).collect();
    let mut config = ImageConfig::for_platform(&result.platform);
    config.rootfs.diff_ids = diff_ids;
    config.history = vec![result.config.history[0].clone()];
    config.history[0].created = Some(lapstrake_layerstore_oci::Timestamp::from(
        time::OffsetDateTime::from_unix_timestamp(2_000_000_000).unwrap(),
    ));
    result.config.history[0] = config.history[0].clone();
    (result.base, result.tree, result.epoch) = (Some(config), tree, Some(1_700_000_000));
    result
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_builds_on_two_roots_give_one_digest() {
    for attrs in [
        &[][..],
        &[("compression", "zstd")],
        &[("compression", "uncompressed")],
        &[("compression", "estargz")],
    ] {
        let mut digests = Vec::new();
        for younger in [false, true] {
            let machine = Machine::new();
            let result = dated(&machine, younger);
            let attrs = [attrs, &[("rewrite-timestamp", "true"), ("name", "app:1")]].concat();
            let stored = machine.export(parsed("image", &attrs), vec![result.clone()]).await.unwrap();
            let oci = to_file("oci", &machine.path("o.tar"), &attrs);
            let archived = machine.export(oci, vec![result.clone()]).await.unwrap();
            assert_eq!(archived.manifest.as_ref().unwrap().digest, stored.manifest.as_ref().unwrap().digest);
            let several = machine.export_several(parsed("image", &attrs), vec![result]).await.unwrap();
            let archive = Digest::sha256_of(fs::read(machine.path("o.tar")).unwrap());
            // BuildKit's note of it, on layers that are new.
            let noted = manifest_of(&machine, &stored).layers.into_iter();
            let noted = noted.map(|layer| layer.annotations.get("buildkit/rewritten-timestamp").cloned());
            assert_eq!(noted.collect::<Vec<_>>(), [None, Some("1700000000".to_owned())]);
            digests.push((stored.response(), several.response(), archive));

            // The image in the store is the one that was written, with the base's layer as it was.
            let record = machine.stores.images.find("app:1").unwrap();
            let tree = machine.stores.hold(record.top.as_ref().unwrap()).unwrap().unwrap();
            let open = machine.stores.open(&tree).unwrap().unwrap();
            let modified = |path: &str| {
                let modified = fs::metadata(open.path().join(path)).unwrap().modified().unwrap();
                modified.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
            };
            assert_eq!((modified("d/old"), modified("d/new")), (1000, 1_700_000_000));
            let config = ImageConfig::from_json(&record.config).unwrap();
            assert_eq!(config.history[0].created.as_ref().unwrap().to_time().unwrap().year(), 2033);
            assert_eq!(config.created.unwrap().to_time().unwrap().unix_timestamp(), 1_700_000_000);
        }
        assert_eq!(digests[0], digests[1], "{attrs:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn estargz_is_gzip_with_a_table_of_contents_and_its_own_layers() {
    let machine = Machine::new();
    let result = machine.result();
    let attrs = [("compression", "estargz"), ("name", "app:1")];
    let exported = machine.export(parsed("image", &attrs), vec![result.clone()]).await.unwrap();
    let manifest = manifest_of(&machine, &exported);
    let config = ImageConfig::from_json(&read(&machine, exported.image.as_ref().unwrap().digest())).unwrap();
    let mut blobs = Vec::new();
    for (layer, diff_id) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
        assert_eq!(layer.media_type, MediaType::OCI_LAYER_GZIP);
        assert!(layer.annotations.contains_key("containerd.io/snapshot/stargz/toc.digest"));
        let size = &layer.annotations["io.containers.estargz.uncompressed-size"];
        assert!(size.parse::<u64>().unwrap() > 1024);
        assert_eq!(layer.annotations.len(), 2, "{layer:?}");
        blobs.push(LayerBlob { descriptor: layer.clone(), diff_id: diff_id.clone(), created: None });
    }
    // Whoever pulls it finds what the config says; the store did.
    let other = Machine::new();
    for layer in &manifest.layers {
        other.stores.content.write_small(&read(&machine, &layer.digest)).unwrap();
    }
    let tree = unpack(&other.stores, &blobs, &other.cancel, &|_, _| ()).unwrap();
    let open = other.stores.open(&tree).unwrap().unwrap();
    assert_eq!(fs::read(open.path().join("etc/tool")).unwrap(), b"#!");
    let record = machine.stores.images.find("app:1").unwrap();
    assert_eq!(record.diff_ids, config.rootfs.diff_ids);
    // Made once; and not taken for what it is not.
    let again = machine.export(parsed("image", &attrs), vec![result.clone()]).await.unwrap();
    assert_eq!(again.manifest, exported.manifest);
    let gzip = machine.export(parsed("image", &[("compression", "gzip")]), vec![result]).await.unwrap();
    let manifest = manifest_of(&machine, &gzip);
    assert!(manifest.layers.iter().all(|layer| layer.annotations.is_empty()));
    let plain = ImageConfig::from_json(&read(&machine, gzip.image.as_ref().unwrap().digest())).unwrap();
    assert_ne!(plain.rootfs.diff_ids, config.rootfs.diff_ids);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layout_goes_into_a_directory_beside_those_that_are_there() {
    let machine = Machine::new();
    let directory = machine.path("layout");
    let layout = |name: &str| to_file("oci", &directory, &[("tar", "false"), ("name", name)]);
    machine.export(layout("a:1"), vec![machine.result()]).await.unwrap();
    let exported = machine.export(layout("b:2"), vec![machine.result()]).await.unwrap();
    let last = machine.export(layout("b:2"), vec![machine.result()]).await.unwrap();
    let index = Index::from_json(&fs::read(directory.join("index.json")).unwrap()).unwrap();
    assert_eq!(index.manifests.len(), 2, "{index:?}");
    let raw = document(&format!("oci:{}:2", directory.display()));
    assert_eq!(Digest::sha256_of(raw), last.manifest.unwrap().digest);
    assert_eq!(exported.names, names(&["b:2"]));
    skopeo(&[
        "copy",
        &format!("oci:{}:1", directory.display()),
        &format!("oci:{}", machine.path("copy").display()),
    ]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_client_says_of_an_image_goes_before_what_the_frontend_says() {
    let machine = Machine::new();
    let config = r#"{"os":"linux","architecture":"amd64","config":{"Env":["A=1"]}}"#;
    let output = parsed("image", &[("containerimage.config", config), ("name", "app:1")]);
    machine.export(output, vec![machine.result()]).await.unwrap();
    let record = machine.stores.images.find("app:1").unwrap();
    assert_eq!(ImageConfig::from_json(&record.config).unwrap().config.env, ["A=1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directories_get_the_epoch_and_what_is_attested_and_lose_what_they_should() {
    let machine = Machine::new();
    let mut result = machine.result();
    (result.epoch, result.attestations) = (Some(1_700_000_000), vec![provenance(false)]);
    let directory = machine.path("out");
    fs::create_dir_all(directory.join("etc/gone/deep")).unwrap();
    fs::write(directory.join("stays-unless-deleted"), "").unwrap();
    std::os::unix::fs::symlink("/etc", directory.join("etc/link-away")).unwrap();
    let kept = to_file("local", &directory, &[("attestation-prefix", "att-")]);
    machine.export(kept, vec![result.clone()]).await.unwrap();
    assert!(directory.join("stays-unless-deleted").exists());
    let statement: serde_json::Value =
        serde_json::from_slice(&fs::read(directory.join("att-provenance.json")).unwrap()).unwrap();
    let names: Vec<&str> =
        statement["subject"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["etc/conf.d/a", "etc/tool", "tool"]);
    let modified = fs::metadata(directory.join("etc/tool")).unwrap().modified().unwrap();
    assert_eq!(modified.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs(), 1_700_000_000);

    machine.export(to_file("local", &directory, &[("mode", "delete")]), vec![result.clone()]).await.unwrap();
    let mut left: Vec<String> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["etc", "link", "provenance.json", "tool"]);
    assert!(!directory.join("etc/gone").exists() && Path::new("/etc/passwd").exists());
    assert!(fs::symlink_metadata(directory.join("etc/link-away")).is_err());

    let tar = to_file("tar", &machine.path("t"), &[("source-date-epoch", "5")]);
    machine.export(tar, vec![result]).await.unwrap();
    let bytes = fs::read(machine.path("t")).unwrap();
    assert!(listing(&bytes).contains(&"provenance.json 600 0:0".to_owned()));
    let mut archive = tar::Archive::new(bytes.as_slice());
    assert!(archive.entries().unwrap().all(|entry| entry.unwrap().header().mtime().unwrap() == 5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn options_that_have_no_place_are_refused_before_anything_is_made() {
    let machine = Machine::new();
    for (attrs, expected) in [
        (&[("annotation-index.a", "b")][..], "index annotations not supported for single platform export"),
        (&[("annotation[linux/s390x].a", "b")], "no platform linux/s390x found"),
        (
            &[("annotation-manifest-descriptor.a", "b"), ("oci-mediatypes", "false")],
            "cannot export annotations",
        ),
    ] {
        let error = machine.export(parsed("image", attrs), vec![machine.result()]).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    assert!(machine.stores.images.list().unwrap().is_empty());
}
