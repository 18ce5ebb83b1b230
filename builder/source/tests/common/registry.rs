//! Debian's docker-registry, images pushed into it by hand, and a proxy that counts what is asked.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use lapstrake_layerstore_oci::{Digest, Platform};

pub struct Registry {
    child: Child,
    pub host: String,
    _dir: tempfile::TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Registry {
    /// Starts a registry on a port of its choice, which its log tells.
    pub fn start(auth: impl Fn(&Path) -> String) -> Registry {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: 127.0.0.1:0\n  secret: test\n{}",
            dir.path().join("data").display(),
            auth(dir.path())
        );
        std::fs::write(&config, text).unwrap();
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry is installed (Debian package docker-registry)");
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        let host = loop {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "docker-registry ended");
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.split(['"', ',']).next().unwrap().to_owned();
            }
        };
        // Its log must go on being read.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Registry { child, host, _dir: dir }
    }

    pub fn open() -> Registry {
        Registry::start(|_| String::new())
    }

    /// Of alice, whose password is s3cret.
    pub fn with_password() -> Registry {
        Registry::start(|dir| {
            let file = dir.join("htpasswd");
            std::fs::write(&file, "alice:$2y$05$abcdefghijklmnopqrstuuLK7U1u6pVRmL7L1BBM2aS35PSZnDXlK\n")
                .unwrap();
            format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", file.display())
        })
    }
}

/// An image with one file per layer.
pub struct Image {
    pub layers: Vec<Vec<u8>>,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
    pub diff_ids: Vec<Digest>,
}

impl Image {
    pub fn new(platform: &Platform, files: &[(&str, &str)]) -> Image {
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

    pub fn digest(&self) -> Digest {
        Digest::sha256_of(&self.manifest)
    }

    /// Pushes it as alice, should that be asked for.
    pub async fn push(&self, host: &str, name: &str, tag: &str) {
        let client = reqwest::Client::new();
        let base = format!("http://{host}/v2/{name}");
        for blob in self.layers.iter().chain([&self.config]) {
            let begun = client.post(format!("{base}/blobs/uploads/"));
            let begun = begun.basic_auth("alice", Some("s3cret")).send().await.unwrap();
            let location = begun.headers()["location"].to_str().unwrap().to_owned();
            let digest = Digest::sha256_of(blob);
            let url = format!("{location}&digest={digest}");
            let put = client.put(url).basic_auth("alice", Some("s3cret")).body(blob.clone());
            assert_eq!(put.send().await.unwrap().status(), 201);
        }
        let put = client
            .put(format!("{base}/manifests/{tag}"))
            .basic_auth("alice", Some("s3cret"))
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
