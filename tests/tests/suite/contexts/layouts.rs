//! Images of OCI layouts that the client offers.

use std::path::Path;

use lapstrake_layerstore_oci::{Digest, Platform};
use lapstrake_tests::{Client, Workbench};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::contexts::support::{build, client_of, directory, failure, files};

/// A layout in the making.
struct Layout(TempDir);

/// An image that is in it.
struct Image {
    manifest: Value,
    digest: String,
    layer: String,
    config: String,
}

impl Layout {
    fn new() -> Self {
        Self(directory(&[("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)]))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn blob(&self, bytes: &[u8]) -> (String, usize) {
        let digest = Digest::sha256_of(bytes);
        let dir = self.path().join("blobs/sha256");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(digest.hex()), bytes).unwrap();
        (digest.to_string(), bytes.len())
    }

    fn document(&self, kind: &str, value: &Value) -> (String, Value) {
        let (digest, size) = self.blob(&serde_json::to_vec(value).unwrap());
        let media_type = format!("application/vnd.oci.image.{kind}.v1+json");
        (digest.clone(), json!({ "mediaType": media_type, "digest": digest, "size": size }))
    }

    /// An image for a platform with one file, `/which`.
    fn image(&self, platform: &Platform, content: &str) -> Image {
        let layer = lapstrake_tests::Context::new("x").file("which", content).bytes();
        let (layer, size) = self.blob(&layer);
        let (architecture, os) = (&platform.architecture, &platform.os);
        let (config, descriptor) = self.document(
            "config",
            &json!({ "architecture": architecture, "os": os, "config": { "Env": [format!("WHICH={content}")], "WorkingDir": "/w" },
                "rootfs": { "type": "layers", "diff_ids": [layer] } }),
        );
        let layers =
            json!([{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": size }]);
        let manifest = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor, "layers": layers });
        let (digest, mut manifest) = self.document("manifest", &manifest);
        manifest["platform"] = json!({ "architecture": architecture, "os": os });
        Image { manifest, digest, layer, config }
    }

    fn index(&self, images: &[&Image]) -> String {
        let manifests: Vec<&Value> = images.iter().map(|image| &image.manifest).collect();
        let index = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": manifests });
        self.document("index", &index).0
    }
}

fn other() -> Platform {
    Platform::new("linux", if Platform::host().architecture == "s390x" { "amd64" } else { "s390x" })
}

fn client(dir: &TempDir, layout: &Layout) -> Client {
    client_of(dir).layout("store", layout.path())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_a_layout_is_a_base_and_a_source_and_only_what_is_missing_is_read() {
    let (bench, layout) = (Workbench::new(), Layout::new());
    let (mine, theirs) = (layout.image(&Platform::host(), "mine"), layout.image(&other(), "theirs"));
    let index = layout.index(&[&theirs, &mine]);
    let dir = directory(&[(
        "Dockerfile",
        "FROM busybox AS run\nRUN --mount=from=base,target=/m cp /m/which /from-mount\n\
         FROM base\nCOPY --from=base /which from-copy\nCOPY --from=run /from-mount .\nLABEL which=$WHICH\n",
    )]);
    let client = client(&dir, &layout);
    let specifier = format!("oci-layout://store:latest@{index}");
    build(&bench, &client, &[("context:base", &specifier)], "app").await.unwrap();
    assert_eq!(files(&bench, "app", ""), ["Dockerfile", "w/from-copy", "w/from-mount", "which"]);
    assert_eq!(bench.read("app", "w/from-copy"), "mine");
    assert_eq!(bench.read("app", "w/from-mount"), "mine");
    assert_eq!(bench.config("app").config.labels["which"], "mine");
    let read = client.read();
    for (digest, expected) in [(&mine.digest, 1), (&mine.config, 1), (&mine.layer, 1), (&theirs.digest, 0)] {
        assert_eq!(read.iter().filter(|read| *read == digest).count(), expected, "{digest}: {read:?}");
    }
    assert!(read.contains(&index));

    // What is here already is not read again, but the client has to have what it names.
    build(&bench, &client, &[("context:base", &specifier)], "app").await.unwrap();
    let read = client.read();
    assert!(read.iter().all(|digest| *digest == index) && !read.is_empty(), "{read:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_may_be_named_itself() {
    let (bench, layout) = (Workbench::new(), Layout::new());
    let image = layout.image(&Platform::host(), "mine");
    let dir = directory(&[("Dockerfile", "FROM base\n")]);
    let specifier = format!("oci-layout://store@{}", image.digest);
    build(&bench, &client(&dir, &layout), &[("context:base", &specifier)], "app").await.unwrap();
    assert_eq!(bench.read("app", "which"), "mine");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_its_digest_is_refused() {
    for part in ["index", "manifest", "config", "layer"] {
        let (bench, layout) = (Workbench::new(), Layout::new());
        let image = layout.image(&Platform::host(), "mine");
        let index = layout.index(&[&image]);
        let dir = directory(&[("Dockerfile", "FROM base\nCOPY Dockerfile /\n")]);
        let client = client(&dir, &layout);
        let digest = match part {
            "index" => &index,
            "manifest" => &image.digest,
            "config" => &image.config,
            _ => &image.layer,
        };
        client.damage(digest);
        let specifier = format!("oci-layout://store@{index}");
        let error = failure(&bench, &client, &[("context:base", &specifier)]).await;
        assert!(
            error.contains(digest.as_str()) && error.contains("does not match expected"),
            "{part}: {error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_named() {
    let (bench, layout) = (Workbench::new(), Layout::new());
    let theirs = layout.image(&other(), "theirs");
    let index = layout.index(&[&theirs]);
    let text = layout.blob(b"no manifest at all").0;
    let missing = Digest::sha256_of("missing").to_string();
    let dir = directory(&[("Dockerfile", "FROM base\n")]);
    for (store, digest, why) in [
        ("store", &index, "no match for platform"),
        ("store", &text, "contains neither an index nor a manifest"),
        ("store", &missing, "not found in the layout"),
        ("elsewhere", &index, "not found in the layout"),
    ] {
        let specifier = format!("oci-layout://{store}@{digest}");
        let error = failure(&bench, &client(&dir, &layout), &[("context:base", &specifier)]).await;
        assert!(error.contains(why), "{store}@{digest}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layout_of_the_daemons_machine_is_for_no_client_to_name() {
    let (bench, layout) = (Workbench::new(), Layout::new());
    let index = layout.index(&[&layout.image(&Platform::host(), "mine")]);
    let dir = directory(&[("Dockerfile", "FROM base\n")]);
    let specifier = format!("oci-layout://{}@{index}", layout.path().display());
    let error = failure(&bench, &client_of(&dir), &[("context:base", &specifier)]).await;
    assert!(error.contains("not found in the layout"), "{error}");

    // Nor for a request without a session.
    let mut request = bench.request(lapstrake_tests::Context::new("FROM base\n"), "app").await.unwrap();
    let lapstrake_builder_engine::Input::Dockerfile { options, .. } = &mut request.input else {
        panic!("a Dockerfile")
    };
    let (shared_key, input_metadata) = (String::new(), None);
    let source =
        lapstrake_builder_dockerfile::options::NamedContextSource { specifier, shared_key, input_metadata };
    options.named_contexts.insert("base".to_owned(), source);
    let error = bench.run(request).await.1.unwrap_err().to_string();
    assert!(error.contains("without session"), "{error}");
}
