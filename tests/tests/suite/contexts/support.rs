//! A client's directories, and builds that are asked for as buildx asks for them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use lapstrake_builder_dockerfile::DockerfileOptions;
use lapstrake_builder_engine::{
    BuildId, BuildRequest, Compatibility, ContextInput, EngineError, Grants, Input, KeepFailed, Output,
    Resources,
};
use lapstrake_layerstore_oci::{Platform, Reference};
use lapstrake_layerstore_registry::Anonymous;
use lapstrake_layerstore_store::SnapshotKey;
use lapstrake_tests::{Built, Client, Workbench};
use tempfile::TempDir;

/// A directory of a client. Paths that end in ` -> target` are symbolic links.
pub(crate) fn directory(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, data) in files {
        write(dir.path(), path, data);
    }
    dir
}

pub(crate) fn write(root: &Path, path: &str, data: &str) {
    let (path, link) = match path.split_once(" -> ") {
        Some((path, target)) => (path, Some(target)),
        None => (path, None),
    };
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    match link {
        Some(target) => std::os::unix::fs::symlink(target, path).unwrap(),
        None => std::fs::write(path, data).unwrap(),
    }
}

/// A client with one directory, where the Dockerfile is as well.
pub(crate) fn client_of(dir: &TempDir) -> Client {
    Client::default().directory("context", dir.path()).directory("dockerfile", dir.path())
}

/// What buildx would send, with these options of the frontend.
pub(crate) fn request(
    bench: &Workbench,
    client: &Client,
    attrs: &[(&str, &str)],
    name: &str,
) -> BuildRequest {
    let session = client.connect(&bench.sessions);
    let attrs: BTreeMap<String, String> =
        attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let id = Some(session.to_string());
    let options = DockerfileOptions::from_frontend_attrs(&attrs, Platform::host(), id, &[]).unwrap();
    let is_remote = attrs.contains_key("context");
    BuildRequest {
        id: BuildId(SnapshotKey::random().to_string()),
        input: Input::Dockerfile {
            options: Box::new(options),
            context: if is_remote { ContextInput::Remote } else { ContextInput::Session },
            directories: BTreeMap::new(),
        },
        session: Some(session),
        outputs: vec![Output::image(vec![Reference::parse(name).unwrap().with_default_tag()])],
        cache_from: Vec::new(),
        cache_to: Vec::new(),
        inline_cache: false,
        keep_failed: KeepFailed::No,
        credentials: Arc::new(Anonymous),
        grants: Grants::default(),
        resources: Resources::default(),
        source_policy: Default::default(),
        compatibility: Compatibility::default(),
        is_recorded: true,
        asks_session: false,
    }
}

pub(crate) async fn build(
    bench: &Workbench,
    client: &Client,
    attrs: &[(&str, &str)],
    name: &str,
) -> Result<Built, EngineError> {
    bench.run(request(bench, client, attrs, name)).await.1
}

/// The same of a build that is to fail: all that it says.
pub(crate) async fn failure(bench: &Workbench, client: &Client, attrs: &[(&str, &str)]) -> String {
    let mut error: &dyn std::error::Error = &build(bench, client, attrs, "failed").await.unwrap_err();
    let mut text = error.to_string();
    while let Some(source) = error.source() {
        text.push_str(&format!(": {source}"));
        error = source;
    }
    text
}

/// Everything below a directory of an image, directories left out.
pub(crate) fn files(bench: &Workbench, image: &str, dir: &str) -> Vec<String> {
    let open = bench.open(image);
    let root = open.path().join(dir);
    let mut found = Vec::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(dir) = waiting.pop() {
        for entry in std::fs::read_dir(root.join(&dir)).unwrap() {
            let entry = entry.unwrap();
            let path = dir.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                waiting.push(path);
            } else {
                found.push(path.to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}
