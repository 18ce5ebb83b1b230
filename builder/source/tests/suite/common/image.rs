//! Images pushed by hand.

use lapstrake_layerstore_conformance::docker_registry::{PASSWORD, Registry, USER};
use lapstrake_layerstore_oci::{Digest, Platform};

/// An image with one file per layer.
pub(crate) struct Image {
    pub layers: Vec<Vec<u8>>,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
    pub diff_ids: Vec<Digest>,
}

impl Image {
    pub(crate) fn new(platform: &Platform, files: &[(&str, &str)]) -> Image {
        let tars: Vec<Vec<u8>> = files.iter().map(|(name, text)| layer(name, text)).collect();
        let diff_ids: Vec<Digest> = tars.iter().map(Digest::sha256_of).collect();
        let layers = tars;
        let config = serde_json::to_vec(&serde_json::json!({
            "architecture": platform.architecture,
            "os": platform.os,
            "config": {"Env": ["A=b"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids.iter().map(Digest::as_str).collect::<Vec<_>>()},
        }))
        .unwrap();
        let described = |media_type: &str, bytes: &Vec<u8>| {
            serde_json::json!({
                "mediaType": media_type, "digest": Digest::sha256_of(bytes).as_str(), "size": bytes.len(),
            })
        };
        let manifest = serde_json::to_vec(&serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": described("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers.iter()
                .map(|layer| described("application/vnd.oci.image.layer.v1.tar", layer)).collect::<Vec<_>>(),
        }))
        .unwrap();
        Image { layers, config, manifest, diff_ids }
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::sha256_of(&self.manifest)
    }

    /// Pushes it as [`USER`], should that be asked for.
    pub(crate) async fn push(&self, registry: &Registry, name: &str, tag: &str) {
        let client = reqwest::Client::new();
        let base = format!("http://{}/v2/{name}", registry.host());
        for blob in self.layers.iter().chain([&self.config]) {
            let begun = client.post(format!("{base}/blobs/uploads/"));
            let begun = begun.basic_auth(USER, Some(PASSWORD)).send().await.unwrap();
            let location = begun.headers()["location"].to_str().unwrap().to_owned();
            let digest = Digest::sha256_of(blob);
            let url = format!("{location}&digest={digest}");
            let put = client.put(url).basic_auth(USER, Some(PASSWORD)).body(blob.clone());
            assert_eq!(put.send().await.unwrap().status(), 201);
        }
        let put = client
            .put(format!("{base}/manifests/{tag}"))
            .basic_auth(USER, Some(PASSWORD))
            .header("content-type", "application/vnd.oci.image.manifest.v1+json")
            .body(self.manifest.clone());
        assert_eq!(put.send().await.unwrap().status(), 201);
    }
}

fn layer(name: &str, text: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(1_600_000_000);
    tar.append_data(&mut header, name, text.as_bytes()).unwrap();
    tar.into_inner().unwrap()
}
