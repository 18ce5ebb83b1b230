//! Caches that builds leave and bring: what is exported is all hits for whoever has nothing else.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use lapstrake_builder_engine::{CacheSource, CacheTarget};
use lapstrake_integration_cli::Registry;
use lapstrake_layerstore_oci::{LayerCompression, Manifest, MediaType};
use lapstrake_tests::{Built, Context, Workbench};

/// Two stages; what runs in either is told apart from another run.
fn context() -> Context {
    Context::new(
        "FROM busybox AS make\nCOPY src /src\nRUN cat /src /proc/sys/kernel/random/uuid > /out\n\
         FROM busybox\nRUN cat /proc/sys/kernel/random/uuid > /stamp\nCOPY --from=make /out /out\nRUN cat /stamp /out > /both\n",
    )
    .file("src", "source")
}

async fn build(bench: &Workbench, context: Context, from: &[&str], to: &[&str]) -> Built {
    let mut request = bench.request(context, "app").await.unwrap();
    request.cache_from = from.iter().map(|text| CacheSource::parse(text).unwrap()).collect();
    request.cache_to = to.iter().map(|text| CacheTarget::parse(text).unwrap()).collect();
    bench.run(request).await.1.unwrap()
}

fn blobs(directory: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(directory.join("blobs/sha256")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// The manifest of the only cache in a directory.
fn manifest(directory: &Path) -> Manifest {
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(directory.join("index.json")).unwrap()).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    Manifest::from_json(&fs::read(directory.join("blobs/sha256").join(digest)).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_in_a_directory_has_every_step_for_an_empty_store() {
    let bench = Workbench::new();
    for (compression, media_type) in [
        ("gzip", MediaType::OCI_LAYER_GZIP),
        ("zstd", MediaType::OCI_LAYER_ZSTD),
        ("uncompressed", MediaType::OCI_LAYER),
    ] {
        for mode in ["min", "max"] {
            let dir = tempfile::tempdir().unwrap();
            let at = dir.path().display();
            let to =
                format!("type=local,dest={at},mode={mode},compression={compression},force-compression=true");
            let first = build(&bench, context(), &[], &[&to]).await;
            let both = bench.read("app", "both");
            let manifest = manifest(dir.path());
            assert_eq!(manifest.config.media_type, MediaType::BUILDKIT_CACHE_CONFIG);
            assert!(manifest.layers.iter().all(|layer| layer.media_type == media_type), "{compression}");
            // The base, and of each stage what it is made of: two layers of the first, three of the second.
            assert_eq!(manifest.layers.len(), if mode == "min" { 4 } else { 6 }, "{mode}");

            bench.forget("app");
            let again = build(&bench, context(), &[&format!("type=local,src={at}")], &[]).await;
            assert_eq!(again.ran(), Vec::<String>::new(), "{compression} {mode}");
            assert_eq!(bench.read("app", "both"), both);
            // To the byte, with the times at which it was made.
            assert_eq!(again.exported.image, first.exported.image, "{compression} {mode}");

            // What was brought once is here.
            let third = build(&bench, context(), &[], &[]).await;
            assert_eq!(third.ran(), Vec::<String>::new());
            bench.forget("app");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_in_a_registry_has_every_step_for_an_empty_store() {
    let registry = Registry::start();
    let bench = Workbench::new();
    for (tag, options) in [
        ("min", ""),
        ("max", ",mode=max"),
        ("zstd", ",mode=max,compression=zstd,compression-level=1,force-compression=true"),
        ("index", ",mode=max,image-manifest=false"),
        ("docker", ",mode=max,oci-mediatypes=false"),
    ] {
        let reference = registry.image(&format!("cache:{tag}"));
        let first =
            build(&bench, context(), &[], &[&format!("type=registry,ref={reference}{options}")]).await;
        let both = bench.read("app", "both");
        bench.forget("app");
        let again = build(&bench, context(), &[&reference], &[]).await;
        assert_eq!(again.ran(), Vec::<String>::new(), "{tag}: {}", again.warnings());
        assert_eq!(bench.read("app", "both"), both, "{tag}");
        assert_eq!(again.exported.image, first.exported.image, "{tag}");
        bench.forget("app");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_build_gives_the_same_document() {
    let bench = Workbench::new();
    let dir = tempfile::tempdir().unwrap();
    let to = |tag: &str| format!("type=local,dest={},mode=max,tag={tag}", dir.path().display());
    build(&bench, context(), &[], &[&to("a")]).await;
    let before = blobs(dir.path());
    // Another build of other files leaves traces in our own cache, and none in the document.
    build(&bench, context().file("src", "other"), &[], &[]).await;
    build(&bench, context(), &[], &[&to("b")]).await;
    assert_eq!(blobs(dir.path()), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn max_has_the_results_of_earlier_stages_and_min_does_not() {
    let bench = Workbench::new();
    let dir = tempfile::tempdir().unwrap();
    let at = |mode: &str| dir.path().join(mode).display().to_string();
    let to = |mode: &str| format!("type=local,dest={},mode={mode}", at(mode));
    build(&bench, context(), &[], &[&to("min"), &to("max")]).await;
    let changed = || {
        Context::new(
            "FROM busybox AS make\nCOPY src /src\nRUN cat /src /proc/sys/kernel/random/uuid > /out\n\
             FROM make\nRUN echo more\n",
        )
        .file("src", "source")
    };
    bench.forget("app");
    let with_max = build(&bench, changed(), &[&format!("type=local,src={}", at("max"))], &[]).await;
    assert_eq!(with_max.ran().len(), 1, "only what is new: {:?}", with_max.ran());
    bench.forget("app");
    let with_min = build(&bench, changed(), &[&format!("type=local,src={}", at("min"))], &[]).await;
    assert_eq!(with_min.ran().len(), 3, "{:?}", with_min.ran());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_the_build_needs_is_fetched() {
    let registry = Registry::start();
    let reference = registry.image("cache:max");
    let bench = Workbench::new();
    build(&bench, context(), &[], &[&format!("type=registry,ref={reference},mode=max")]).await;
    let gets = || registry.log().lines().filter(|line| line.contains("\"GET /v2/cache/blobs/")).count();

    // All is here: the document at most is fetched, and not waited for.
    let before = gets();
    build(&bench, context(), &[&reference], &[]).await;
    assert!(gets() - before <= 1);

    // The target alone: its three layers and the document. The base is here, and the other stage is not asked for.
    bench.forget("app");
    let before = gets();
    let built = build(&bench, context(), &[&reference], &[]).await;
    assert_eq!(built.ran(), Vec::<String>::new());
    assert_eq!(gets() - before, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_goes_on_whole_from_one_who_needed_a_part_of_it() {
    let registry = Registry::start();
    let bench = Workbench::new();
    let first = registry.image("cache:first");
    build(&bench, context(), &[], &[&format!("type=registry,ref={first},mode=max")]).await;
    let document = |name: &str| {
        let dir = tempfile::tempdir().unwrap();
        (dir.path().join(name), dir)
    };
    // It gets the target, and nothing of the stage before it; twice, the second time with its own cache.
    bench.forget("app");
    let (second, _keep) = document("second");
    for _ in 0..2 {
        let to = [
            format!("type=local,dest={},mode=max", second.display()),
            format!("type=registry,ref={},mode=max", registry.image("elsewhere:second")),
        ];
        build(&bench, context(), &[&first], &[&to[0], &to[1]]).await;
        assert_eq!(manifest(&second).layers.len(), 6);
    }
    for from in [format!("type=local,src={}", second.display()), registry.image("elsewhere:second")] {
        bench.forget("app");
        let changed = Context::new(
            "FROM busybox AS make\nCOPY src /src\nRUN cat /src /proc/sys/kernel/random/uuid > /out\nRUN echo more\n",
        );
        let built = build(&bench, changed.file("src", "source"), &[&from], &[]).await;
        assert_eq!(built.ran().len(), 1, "{from}: {:?}", built.ran());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_caches_are_asked_and_broken_ones_are_warned_of() {
    let bench = Workbench::new();
    let dir = tempfile::tempdir().unwrap();
    let good = dir.path().join("good");
    build(&bench, context(), &[], &[&format!("type=local,dest={}", good.display())]).await;
    bench.forget("app");
    fs::create_dir_all(dir.path().join("broken")).unwrap();
    fs::write(dir.path().join("broken/index.json"), "{\"schemaVersion\":2,\"manifests\":[").unwrap();
    let at = |name: &str| format!("type=local,src={}", dir.path().join(name).display());
    // Nobody listens on port 1.
    let from = [at("broken"), at("missing"), "localhost:1/nobody".to_owned(), at("good")];
    let from: Vec<&str> = from.iter().map(String::as_str).collect();
    let built = build(&bench, context(), &from, &[]).await;
    assert_eq!(built.ran(), Vec::<String>::new());
    let warnings = built.warnings();
    for name in ["broken", "missing"] {
        assert!(warnings.contains(name), "{name}: {warnings}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hit_whose_blob_is_missing_or_damaged_is_a_miss() {
    let bench = Workbench::new();
    for damage in ["missing", "damaged", "longer"] {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        build(&bench, context(), &[], &[&format!("type=local,dest={at}")]).await;
        let top = manifest(dir.path()).layers.iter().map(|layer| layer.digest.clone()).collect::<Vec<_>>();
        for digest in top {
            let path = dir.path().join("blobs/sha256").join(digest.hex());
            match damage {
                "missing" => fs::remove_file(path).unwrap(),
                "damaged" => {
                    let mut bytes = fs::read(&path).unwrap();
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 1;
                    fs::write(&path, bytes).unwrap();
                }
                _ => fs::write(&path, [fs::read(&path).unwrap(), vec![0]].concat()).unwrap(),
            }
        }
        bench.forget("app");
        // The blobs that were made for the export are gone with the rest, or the damage would not be seen.
        let built = build(&bench, context(), &[&format!("type=local,src={at}")], &[]).await;
        assert_eq!(built.ran().len(), 5, "{damage}: {:?}", built.ran());
        bench.forget("app");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_fails_fails_the_build_unless_it_may() {
    let bench = Workbench::new();
    let file = tempfile::NamedTempFile::new().unwrap();
    let target = format!("type=local,dest={}", file.path().display());
    let mut request = bench.request(context(), "app").await.unwrap();
    request.cache_to = vec![CacheTarget::parse(&target).unwrap()];
    let error = bench.run(request).await.1.unwrap_err().to_string();
    assert!(
        error.contains("export cache to") && error.contains(&file.path().display().to_string()),
        "{error}"
    );
    let built = build(&bench, context(), &[], &[&format!("{target},ignore-error=true")]).await;
    assert!(built.warnings().contains("failed to export cache"), "{}", built.warnings());
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_are_made_once_unless_force_says_so() {
    let bench = Workbench::new();
    let dir = tempfile::tempdir().unwrap();
    let export = |name: &str, options: &str| {
        let at = dir.path().join(name);
        (format!("type=local,dest={}{options}", at.display()), at)
    };
    let (gzip, _) = export("gzip", "");
    build(&bench, context(), &[], &[&gzip]).await;
    // They are kept, and zstd is for layers that have none.
    let (zstd, at) = export("zstd", ",compression=zstd");
    build(&bench, context(), &[], &[&zstd]).await;
    let compression = |at: &Path| {
        let of = |layer: &lapstrake_layerstore_oci::Descriptor| layer.media_type.layer_compression();
        manifest(at).layers.iter().map(of).collect::<HashSet<_>>()
    };
    assert!(compression(&at).iter().all(|c| *c == Some(LayerCompression::Gzip)));
    let (forced, at) = export("forced", ",compression=zstd,force-compression=true");
    build(&bench, context(), &[], &[&forced]).await;
    assert!(compression(&at).iter().all(|c| *c == Some(LayerCompression::Zstd)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_hangs_delays_no_local_hit() {
    let bench = Workbench::new();
    build(&bench, context(), &[], &[]).await;
    // It takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let reference = format!("localhost:{}/cache", silent.local_addr().unwrap().port());
    let patience = Duration::from_secs(50);
    let built =
        tokio::time::timeout(patience, build(&bench, context(), &[&reference], &["type=inline"])).await;
    assert_eq!(built.expect("nothing waits for it").ran(), Vec::<String>::new());
}
