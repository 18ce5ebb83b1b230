//! Dependencies point down, implementations do not know each other, and pure crates stay pure.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// Crates from the bottom up. A crate may use what is below its own line, nothing beside it.
const LAYERS: &[&[&str]] = &[
    &["api-proto", "layerstore-oci"],
    &["api-types", "builder-llb", "builder-progress", "layerstore-store", "session"],
    &[
        "builder-dockerfile",
        "builder-executor",
        "builder-history",
        "builder-solver",
        "graphdriver-adapter",
        "layerstore-conformance",
        "layerstore-diff",
        "layerstore-registry",
    ],
    &["builder-cache", "builder-files", "layerstore-transfer"],
    &["builder-exporter", "builder-source"],
    &["builder-engine"],
    &["api-server"],
    &["api-daemon"],
    &["contrib-fuzz", "integration-cli"],
    &["tests"],
];

/// Crates that turn bytes and facts into values: they must not be able to read a file, wait, or talk to anybody.
const PURE: &[&str] = &["api-types", "builder-dockerfile", "builder-llb", "layerstore-oci"];
const IMPURE_LIBRARIES: &[&str] = &[
    "axum", "hyper", "nix", "reqwest", "rusqlite", "rustix", "socket2", "tempfile", "tokio", "tonic", "tower",
];

/// Who alone may use what.
const RESERVED: &[(&str, &[&str])] = &[
    // Which backend is behind a contract is the program's choice, and nobody else's business.
    ("lapstrake-graphdriver-adapter", &["api-daemon", "tests"]),
    // The command line ends in the program.
    ("clap", &["api-daemon"]),
    // One database, whose tables are in the store, the cache and the history.
    ("rusqlite", &["builder-cache", "builder-history", "layerstore-store"]),
    // Registries, sources and archives to import are asked for in one place each.
    ("reqwest", &["api-daemon", "builder-source", "layerstore-registry"]),
    // What is there for tests alone is in nothing that is shipped.
    ("lapstrake-layerstore-conformance", &["integration-cli", "tests"]),
];

fn metadata() -> Metadata {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    MetadataCommand::new().manifest_path(manifest).no_deps().exec().expect("cargo knows the workspace")
}

/// What each crate uses when it is built (not only when it is tested), without our own prefix.
fn uses(metadata: &Metadata) -> BTreeMap<String, BTreeSet<String>> {
    let of_package = |package: &cargo_metadata::Package| {
        let normal =
            package.dependencies.iter().filter(|dependency| dependency.kind == DependencyKind::Normal);
        (short(&package.name), normal.map(|dependency| dependency.name.clone()).collect())
    };
    metadata.workspace_packages().into_iter().map(of_package).collect()
}

fn short(name: &str) -> String {
    name.strip_prefix("lapstrake-").unwrap_or(name).to_owned()
}

#[test]
fn every_crate_has_its_layer_and_is_named_after_its_folder() {
    let metadata = metadata();
    let known: BTreeSet<&str> = LAYERS.iter().flat_map(|layer| layer.iter().copied()).collect();
    let root = metadata.workspace_root.as_std_path();
    for package in metadata.workspace_packages() {
        let name = short(&package.name);
        assert!(known.contains(name.as_str()), "{name} has no layer: give it one in LAYERS");
        let folder =
            package.manifest_path.as_std_path().parent().and_then(|path| path.strip_prefix(root).ok());
        let folder = folder.expect("a member is inside the workspace").to_string_lossy().replace('/', "-");
        assert_eq!(folder, name, "a crate is named after its folder");
    }
    let members: BTreeSet<String> =
        metadata.workspace_packages().iter().map(|package| short(&package.name)).collect();
    for name in known {
        assert!(members.contains(name), "{name} has a layer and is no crate");
    }
}

#[test]
fn dependencies_point_down() {
    let layer = |name: &str| LAYERS.iter().position(|layer| layer.contains(&name));
    let mut wrong = Vec::new();
    for (name, dependencies) in uses(&metadata()) {
        for dependency in dependencies.iter().filter_map(|name| name.strip_prefix("lapstrake-")) {
            if layer(dependency) >= layer(&name) {
                wrong.push(format!("{name} uses {dependency}, which is not below it"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn pure_crates_cannot_do_io() {
    let uses = uses(&metadata());
    for name in PURE {
        for library in IMPURE_LIBRARIES {
            assert!(!uses[*name].contains(*library), "{name} is pure and uses {library}");
        }
    }
}

#[test]
fn reserved_crates_are_used_where_they_belong() {
    for (name, dependencies) in uses(&metadata()) {
        for (library, users) in RESERVED {
            let is_allowed = users.contains(&name.as_str());
            assert!(
                is_allowed || !dependencies.contains(*library),
                "{name} uses {library}: only {users:?} may"
            );
        }
    }
}
