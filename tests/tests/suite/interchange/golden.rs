//! The Dockerfiles, their context and bases, and what BuildKit made of them.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
};

use lapstrake_builder_dockerfile::DockerfileOptions;
use lapstrake_builder_engine::{BuildRequest, ContextInput, EngineError, Input};
use lapstrake_layerstore_oci::{ChainId, DiffId, Digest, Platform};
use lapstrake_layerstore_transfer::load;
use lapstrake_tests::{Built, Context, Workbench};
use serde::Deserialize;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::interchange::records::Record;

const REMOTE: &str = "remote\n";

/// Where the data are.
pub(crate) fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/interchange")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    path: String,
    mode: Option<String>,
    data: Option<String>,
    file: Option<String>,
    link: Option<String>,
}

/// What BuildKit exported.
#[derive(Deserialize)]
pub(crate) struct Expected {
    /// The records in the image's config; none where nothing of it is cached by a key.
    pub(crate) inline: Option<Vec<Record>>,
}

/// A Dockerfile.
pub(crate) struct Case {
    /// The name of its directory.
    pub(crate) name: String,
    dir: PathBuf,
}

impl Case {
    /// All of them.
    pub(crate) fn all() -> Vec<Self> {
        let mut cases: Vec<Self> = std::fs::read_dir(data().join("cases"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|dir| Self { name: dir.file_name().unwrap().to_str().unwrap().to_owned(), dir })
            .collect();
        cases.sort_by(|a, b| a.name.cmp(&b.name));
        assert!(cases.len() >= 80, "the cases are there");
        assert!(data().join("expected/v0.32.2").read_dir().unwrap().count() >= 80, "and what BuildKit made");
        if let Ok(only) = std::env::var("GOLDEN") {
            cases.retain(|case| case.name == only);
        }
        cases
    }

    /// What a version of BuildKit exported; `None` if it cannot build the case.
    pub(crate) fn expected(&self, version: &str) -> Option<Expected> {
        let path = data().join("expected").join(version).join(format!("{}.json", self.name));
        let json = std::fs::read(&path).ok()?;
        Some(serde_json::from_slice(&json).unwrap())
    }

    fn context(&self, server: &SocketAddr) -> Context {
        let dockerfile = std::fs::read_to_string(self.dir.join("Dockerfile")).unwrap();
        let sum = Digest::sha256_of(REMOTE);
        let dockerfile =
            dockerfile.replace("@HTTP@", &server.to_string()).replace("sha256:@SUM@", sum.as_str());
        let mut context = Context::new(&dockerfile);
        if let Ok(ignore) = std::fs::read_to_string(self.dir.join("dockerignore")) {
            context = context.file(".dockerignore", &ignore);
        }
        let entries: Vec<Entry> =
            serde_json::from_slice(&std::fs::read(data().join("context.json")).unwrap()).unwrap();
        for entry in entries {
            let mode = entry.mode.map_or(0, |mode| u32::from_str_radix(&mode, 8).unwrap());
            context = match entry {
                Entry { link: Some(target), .. } => context.link(&entry.path, &target),
                Entry { data: Some(data), .. } => context.mode(&entry.path, mode, &data),
                Entry { file: Some(file), .. } => {
                    context.binary(&entry.path, mode, &std::fs::read(data().join(file)).unwrap())
                }
                _ => context.directory(&entry.path, mode),
            };
        }
        context
    }

    fn attrs(&self) -> BTreeMap<String, String> {
        let mut attrs: BTreeMap<String, String> = match std::fs::read(self.dir.join("options.json")) {
            Ok(json) => serde_json::from_slice(&json).unwrap(),
            Err(_) => BTreeMap::new(),
        };
        attrs.insert("platform".to_owned(), "linux/amd64".to_owned());
        attrs
    }

    /// Builds it as `built:latest`, with records in its config.
    pub(crate) async fn build(&self, bench: &Workbench, server: &SocketAddr) -> Result<Built, EngineError> {
        self.build_with(bench, server, |request| request.inline_cache = true).await
    }

    /// Builds it as `built:latest`.
    pub(crate) async fn build_with(
        &self,
        bench: &Workbench,
        server: &SocketAddr,
        change: impl FnOnce(&mut BuildRequest),
    ) -> Result<Built, EngineError> {
        let mut request = bench.request(self.context(server), "built").await?;
        let Input::Dockerfile { options, context, .. } = &mut request.input else { panic!("a Dockerfile") };
        // Ignore files are for directories; an archive is taken as it is.
        let dir = tempfile::tempdir().unwrap();
        if self.dir.join("dockerignore").exists() {
            let bytes = self.context(server).bytes();
            let mut archive = tar::Archive::new(&bytes[..]);
            archive.set_preserve_permissions(true);
            archive.unpack(dir.path()).unwrap();
            let dir = dir.path().to_owned();
            *context = ContextInput::Directory { context: dir.clone(), dockerfile: dir };
        }
        **options =
            DockerfileOptions::from_frontend_attrs(&self.attrs(), Platform::new("linux", "amd64"), None, &[])
                .unwrap();
        change(&mut request);
        bench.run(request).await.1
    }
}

/// A workbench with the base images.
pub(crate) fn golden_bench() -> Workbench {
    let bench = Workbench::new();
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_dir_all("", data().join("base")).unwrap();
    let archive = archive.into_inner().unwrap();
    let loaded = load(&bench.stores, &archive[..], &[], &CancellationToken::new(), &|_| {}).unwrap();
    assert_eq!(loaded.len(), 3);
    bench
}

/// The keys that BuildKit gives the base images by their manifests, and those by their layers. It looks at both, and which of them its documents have
/// depends on which it needed first.
pub(crate) fn manifest_keys() -> BTreeMap<String, String> {
    let base = data().join("base");
    let read = |digest: &str| -> Value {
        serde_json::from_slice(&std::fs::read(base.join("blobs").join(digest.replace(':', "/"))).unwrap())
            .unwrap()
    };
    let key = |text: &str| {
        let digest = Digest::sha256_of(format!("buildkit.source.v0:{text}"));
        Digest::sha256_of(format!("{digest}@0")).to_string()
    };
    let index: Value = serde_json::from_slice(&std::fs::read(base.join("index.json")).unwrap()).unwrap();
    let images = index["manifests"].as_array().unwrap().iter().map(|entry| {
        let digest = entry["digest"].as_str().unwrap();
        let manifest = read(digest);
        let config = read(manifest["config"]["digest"].as_str().unwrap());
        let diff_ids: Vec<DiffId> = serde_json::from_value(config["rootfs"]["diff_ids"].clone()).unwrap();
        let by_manifest =
            Digest::sha256_of(format!(r#"{{"Digest":"{digest}","OS":"linux","Arch":"amd64"}}"#));
        (key(by_manifest.as_str()), key(ChainId::of(&diff_ids).unwrap().as_str()))
    });
    images.collect()
}

/// Serves the file of the cases with `ADD http://…`.
pub(crate) fn remote_file() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let Ok(mut connection) = connection else { continue };
            let mut request = Vec::new();
            let mut chunk = [0; 1024];
            while !request.ends_with(b"\r\n\r\n") {
                match connection.read(&mut chunk) {
                    Ok(read @ 1..) => request.extend_from_slice(&chunk[..read]),
                    _ => break,
                }
            }
            let body = if request.starts_with(b"HEAD") { "" } else { REMOTE };
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nLast-Modified: Sun, 13 Sep 2020 12:26:40 GMT\r\n\
                 ETag: \"golden\"\r\nConnection: close\r\n\r\n{body}",
                REMOTE.len()
            );
            // A client that goes away has what it wanted.
            let _ = connection.write_all(answer.as_bytes());
        }
    });
    address
}
