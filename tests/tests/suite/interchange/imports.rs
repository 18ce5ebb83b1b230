//! Caches that BuildKit exported: with one of them, no step of its Dockerfile runs here.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use axum::response::Response;
use lapstrake_builder_engine::{CacheSource, LocalManifest};
use lapstrake_layerstore_conformance::registry::{Fake, blob, document, error};
use lapstrake_layerstore_oci::{Digest, MediaType, Reference};
use lapstrake_layerstore_transfer::load;
use lapstrake_tests::{Built, Workbench};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::interchange::golden::{Case, data, golden_bench, remote_file};

fn index(layout: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap()
}

/// Entries of a layout whose names begin so, by the case they are of.
fn entries(layout: &Path, kind: &str) -> Vec<(Case, Value)> {
    let index = index(layout);
    let entries: Vec<(Case, Value)> = Case::all()
        .into_iter()
        .filter_map(|case| {
            let name = format!("{kind}-{}", case.name);
            let mut entries = index["manifests"].as_array().unwrap().iter();
            let entry = entries
                .find(|entry| entry["annotations"]["org.opencontainers.image.ref.name"] == name.as_str())?;
            Some((case, entry.clone()))
        })
        .collect();
    assert!(entries.len() >= 10 || std::env::var("GOLDEN").is_ok(), "the caches in {layout:?} are there");
    entries
}

/// The files of a document and of all that it names.
fn reachable(layout: &Path, digest: &str) -> BTreeSet<String> {
    let path = format!("blobs/{}", digest.replace(':', "/"));
    let bytes = std::fs::read(layout.join(&path)).unwrap();
    let mut paths = BTreeSet::from([path]);
    if let Ok(document) = serde_json::from_slice::<Value>(&bytes)
        && !document["schemaVersion"].is_null()
    {
        let lists = ["manifests", "layers"].iter().filter_map(|list| document[list].as_array()).flatten();
        for digest in lists.chain([&document["config"]]).filter_map(|part| part["digest"].as_str()) {
            paths.extend(reachable(layout, digest));
        }
    }
    paths
}

/// Loads one image of a layout.
fn load_one(bench: &Workbench, layout: &Path, entry: &Value) {
    let mut archive = tar::Builder::new(Vec::new());
    for blob in reachable(layout, entry["digest"].as_str().unwrap()) {
        archive.append_path_with_name(layout.join(&blob), &blob).unwrap();
    }
    archive.append_path_with_name(layout.join("oci-layout"), "oci-layout").unwrap();
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
    let mut header = tar::Header::new_gnu();
    header.set_size(index.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, "index.json", index.as_bytes()).unwrap();
    let archive = archive.into_inner().unwrap();
    load(&bench.stores, &archive[..], &[], &CancellationToken::new(), &|_| {}).unwrap();
}

/// The steps that were not cached.
fn ran(built: &Built) -> Vec<String> {
    let step = |name: &String| ["RUN ", "COPY ", "ADD ", "WORKDIR "].iter().any(|word| name.contains(word));
    let mut ran: Vec<String> = built.executed().into_iter().filter(step).collect();
    ran.sort();
    ran
}

/// Cases with steps that run although the cache has them; see `MISSED` of `main.rs` for why.
const MISSED: &[(&str, &str)] = &[("v0.12.5", "copy_wildcards"), ("v0.8.3", "copy_wildcards")];

/// A registry that has what a layout has, by the same tags.
async fn registry(layout: PathBuf) -> Fake {
    let mut tags = BTreeMap::new();
    let mut media_types = BTreeMap::new();
    let mut add = |entry: &Value| {
        let digest = entry["digest"].as_str().unwrap().to_owned();
        media_types.insert(digest.clone(), MediaType::from(entry["mediaType"].as_str().unwrap()));
        digest
    };
    for entry in index(&layout)["manifests"].as_array().unwrap() {
        let digest = add(entry);
        let inner: Value = serde_json::from_slice(&read(&layout, &digest).unwrap()).unwrap();
        inner["manifests"].as_array().into_iter().flatten().for_each(|entry| drop(add(entry)));
        let tag = entry["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap();
        tags.insert(tag.to_owned(), digest);
    }
    Fake::start(move |seen| {
        let name = seen.path.rsplit('/').next().unwrap_or_default();
        let digest = tags.get(name).map_or(name, String::as_str);
        let bytes = read(&layout, digest);
        let response = match (bytes, Digest::parse(digest), media_types.get(digest)) {
            _ if name.is_empty() => Response::default(),
            (Some(bytes), Ok(digest), Some(media_type)) if seen.path.contains("/manifests/") => {
                document(media_type, &digest, &bytes)
            }
            (Some(bytes), Ok(_), _) => blob(seen, &bytes),
            _ => error(404, "NAME_UNKNOWN", "not recorded"),
        };
        response.into()
    })
    .await
}

fn read(layout: &Path, digest: &str) -> Option<Vec<u8>> {
    std::fs::read(layout.join("blobs").join(digest.replace(':', "/"))).ok()
}

/// Builds the cases that there are such caches of. `from` tells where: in `caches`, or in a registry.
async fn import(from: &'static str, version: &'static str, kind: &'static str) {
    let server = remote_file();
    let layout = data().join(from).join(version);
    let shelf = registry(layout.clone()).await;
    let mut wrong = Vec::new();
    for (case, entry) in entries(&layout, kind) {
        let bench = golden_bench();
        let source = if from == "registry" {
            let name = format!("{}/golden/recorded:{kind}-{}", shelf.host, case.name);
            CacheSource::Registry { reference: Reference::parse(&name).unwrap(), insecure: true }
        } else if kind == "inline" {
            load_one(&bench, &layout, &entry);
            let name = format!("localhost:5993/golden/inline:{}", case.name);
            CacheSource::Registry { reference: Reference::parse(&name).unwrap(), insecure: false }
        } else {
            let manifest = LocalManifest::Tag(format!("{kind}-{}", case.name));
            CacheSource::Local { directory: layout.clone(), manifest }
        };
        let built = case.build_with(&bench, &server, |request| request.cache_from = vec![source]).await;
        let known = MISSED.contains(&(version, case.name.as_str()));
        match built.map(|built| ran(&built)) {
            Ok(ran) if ran.is_empty() != known => {}
            Ok(ran) => wrong.push(format!("{}: {ran:?}", case.name)),
            Err(error) => wrong.push(format!("{}: {error}", case.name)),
        }
    }
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
}

macro_rules! imports {
    ($($name:ident: $from:literal $version:literal $kind:literal;)*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            import($from, $version, $kind).await;
        }
    )*};
}

imports! {
    an_inline_cache_of_buildkit_0_32_has_every_step: "caches" "v0.32.2" "inline";
    an_inline_cache_of_buildkit_0_12_has_every_step: "caches" "v0.12.5" "inline";
    an_inline_cache_of_buildkit_0_8_has_every_step: "caches" "v0.8.3" "inline";
    a_local_max_cache_of_buildkit_0_32_has_every_step: "caches" "v0.32.2" "max";
    a_local_max_cache_of_buildkit_0_12_has_every_step: "caches" "v0.12.5" "max";
    a_local_max_cache_of_buildkit_0_8_has_every_step: "caches" "v0.8.3" "max";
    a_local_min_cache_of_buildkit_0_32_has_every_step: "caches" "v0.32.2" "min";
    a_local_min_cache_of_buildkit_0_12_has_every_step: "caches" "v0.12.5" "min";
    a_local_min_cache_of_buildkit_0_8_has_every_step: "caches" "v0.8.3" "min";
    a_registry_cache_of_buildkit_0_32_has_every_step: "registry" "v0.32.2" "max";
    a_registry_min_cache_of_buildkit_0_32_has_every_step: "registry" "v0.32.2" "min";
    an_inline_cache_in_a_registry_of_buildkit_0_32_has_every_step: "registry" "v0.32.2" "inline";
    a_registry_cache_of_buildkit_0_12_has_every_step: "registry" "v0.12.5" "max";
    a_registry_min_cache_of_buildkit_0_12_has_every_step: "registry" "v0.12.5" "min";
    an_inline_cache_in_a_registry_of_buildkit_0_12_has_every_step: "registry" "v0.12.5" "inline";
    a_registry_cache_of_buildkit_0_8_has_every_step: "registry" "v0.8.3" "max";
    a_registry_min_cache_of_buildkit_0_8_has_every_step: "registry" "v0.8.3" "min";
    an_inline_cache_in_a_registry_of_buildkit_0_8_has_every_step: "registry" "v0.8.3" "inline";
}
