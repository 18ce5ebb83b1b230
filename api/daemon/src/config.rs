//! `buildkitd.toml`, read as it is.
//!
//! Three kinds of keys: those that are honoured; those that BuildKit knows and this daemon does not (yet), which are named in a
//! warning; and those that nobody knows, which are most likely misspelt and named too. A value of the wrong type is an error.

use std::path::{Path, PathBuf};

use lapstrake_layerstore_registry::RegistryConfig;
use serde::Deserialize;

use crate::{error::ProgramError, logging::LogFormat};

/// What of the file is honoured.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct ConfigFile {
    /// Log what helps to find out why something failed.
    pub(crate) debug: bool,
    /// Log what only developers need.
    pub(crate) trace: bool,
    /// The store's directory.
    pub(crate) root: Option<PathBuf>,
    /// The daemon's log.
    pub(crate) log: Log,
    /// Where to listen.
    pub(crate) grpc: Grpc,
    /// How processes run and where layers are.
    pub(crate) worker: Workers,
    /// Registries by host.
    pub(crate) registry: RegistryConfig,
    /// What the file says that is not honoured; filled in by [`ConfigFile::parse`].
    #[serde(skip)]
    pub(crate) doubts: Vec<String>,
}

/// `[log]`
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Log {
    /// `text` or `json`.
    pub(crate) format: Option<LogFormat>,
}

/// `[grpc]`
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Grpc {
    /// Where to listen.
    pub(crate) address: Vec<String>,
    /// The unix socket's group.
    pub(crate) gid: Option<u32>,
    /// For TCP.
    pub(crate) tls: Tls,
}

/// `[grpc.tls]`
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Tls {
    /// PEM file of the server's certificate.
    pub(crate) cert: Option<PathBuf>,
    /// PEM file of its key.
    pub(crate) key: Option<PathBuf>,
    /// PEM file of the authority that clients' certificates come from.
    pub(crate) ca: Option<PathBuf>,
}

/// `[worker]`
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Workers {
    /// `[worker.oci]`, the one that this daemon is.
    pub(crate) oci: Worker,
}

/// `[worker.oci]`
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Worker {
    /// The OCI runtime to use in place of the native executor.
    pub(crate) binary: Option<PathBuf>,
    /// BuildKit's name of the graph driver.
    pub(crate) snapshotter: Option<Snapshotter>,
    /// Steps that may use the machine at once.
    #[serde(rename = "max-parallelism")]
    pub(crate) max_parallelism: Option<usize>,
}

/// BuildKit's names for what graph drivers do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Snapshotter {
    /// What works here.
    Auto,
    /// Our `overlay2`.
    Overlayfs,
    /// Our `vfs`.
    Native,
}

/// Keys that are honoured; a `*` stands for everything below.
const HONOURED: &[&str] = &[
    "debug",
    "trace",
    "root",
    "log.format",
    "grpc.address",
    "grpc.gid",
    "grpc.tls.cert",
    "grpc.tls.key",
    "grpc.tls.ca",
    "worker.oci.binary",
    "worker.oci.snapshotter",
    "worker.oci.max-parallelism",
    "registry.*",
];

/// Keys that BuildKit knows, and what this daemon does in their place.
const NOT_HONOURED: &[(&str, &str)] = &[
    ("insecure-entitlements", "no build gets an entitlement"),
    ("proxyNetwork", "steps have the network that they ask for"),
    ("log.level", "use debug = true or trace = true"),
    ("grpc.debugAddress", "there is no debug server"),
    ("grpc.uid", "the socket's owner is who runs the daemon"),
    ("grpc.securityDescriptor", "it is for Windows"),
    ("otel.*", "traces are not exported"),
    ("cdi.*", "no devices are offered to steps"),
    ("worker.oci.enabled", "this daemon has one worker, which is always on"),
    ("worker.oci.labels.*", "workers are not chosen by label"),
    ("worker.oci.platforms", "the platform is that of this machine"),
    ("worker.oci.rootless", "the daemon runs as root"),
    ("worker.oci.noProcessSandbox", "every step has a process namespace of its own"),
    ("worker.oci.userRemapUnsupported", "users are not remapped"),
    ("worker.oci.proxySnapshotterPath", "layers are in this daemon's own store"),
    ("worker.oci.defaultCgroupParent", "steps run below /lapstrake"),
    ("worker.oci.stargzSnapshotter.*", "layers are unpacked as they are pulled"),
    ("worker.oci.apparmor-profile", "no AppArmor profile is applied"),
    ("worker.oci.selinux", "no SELinux label is applied"),
    ("worker.oci.networkMode", "steps have the network that they ask for"),
    ("worker.oci.cniConfigPath", "there is no CNI"),
    ("worker.oci.cniBinaryPath", "there is no CNI"),
    ("worker.oci.cniPoolSize", "there is no CNI"),
    ("worker.oci.bridgeName", "there is no bridge"),
    ("worker.oci.bridgeSubnet", "there is no bridge"),
    ("worker.oci.gc", "the cache is pruned when it is asked for"),
    ("worker.oci.gckeepstorage", "the cache is pruned when it is asked for"),
    ("worker.oci.reservedSpace", "the cache is pruned when it is asked for"),
    ("worker.oci.maxUsedSpace", "the cache is pruned when it is asked for"),
    ("worker.oci.minFreeSpace", "the cache is pruned when it is asked for"),
    ("worker.oci.gcpolicy", "the cache is pruned when it is asked for"),
    ("worker.containerd.*", "containerd is not used"),
    ("dns.*", "steps have the machine's name servers"),
    ("history.*", "builds' records end with the build"),
    ("frontend.*", "Dockerfiles are read by the built-in frontend"),
    ("system.*", "the platform is that of this machine"),
    ("provenanceEnvDir", "no provenance is written"),
    ("cache.*", "caches are not imported"),
    ("gha.*", "caches are not imported"),
    ("platformsCacheMaxAge", "the platform is that of this machine"),
    ("maxRegistryConcurrency", "three layers are pulled at once, five pushed"),
];

impl ConfigFile {
    /// Reads a file.
    pub(crate) fn read(path: &Path) -> Result<Self, ProgramError> {
        let text = std::fs::read_to_string(path).map_err(ProgramError::file("read configuration", path))?;
        Self::parse(&text).map_err(|source| ProgramError::Config { path: path.to_owned(), source })
    }

    /// Reads a file's text. Pure.
    pub(crate) fn parse(text: &str) -> Result<Self, toml::de::Error> {
        let mut file: ConfigFile = toml::from_str(text)?;
        let table: toml::Table = toml::from_str(text)?;
        let mut keys = Vec::new();
        flatten("", &table, &mut keys);
        file.doubts = keys.iter().filter_map(|key| doubt(key)).collect();
        Ok(file)
    }
}

/// Why a key has no effect, if it has none.
fn doubt(key: &str) -> Option<String> {
    if HONOURED.iter().any(|pattern| is_of(key, pattern)) {
        return None;
    }
    match NOT_HONOURED.iter().find(|(pattern, _)| is_of(key, pattern)) {
        Some((_, instead)) => Some(format!("{key} is not honoured: {instead}")),
        None => Some(format!("{key} is no key that BuildKit or Lapstrake knows")),
    }
}

fn is_of(key: &str, pattern: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => key.starts_with(prefix),
        None => key == pattern,
    }
}

/// The keys of all values, with dots between the tables that they are in. A list of tables is one value.
fn flatten(prefix: &str, table: &toml::Table, keys: &mut Vec<String>) {
    for (name, value) in table {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            toml::Value::Table(table) => flatten(&key, table, keys),
            _ => keys.push(key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buildkits_file_is_read_and_what_has_no_effect_is_named() {
        let file = ConfigFile::parse(
            r#"
            debug = true
            root = "/data"
            insecure-entitlements = ["network.host"]
            rooot = "/x"
            [log]
              format = "json"
            [grpc]
              address = ["tcp://0.0.0.0:1234"]
              [grpc.tls]
                cert = "/c.pem"
            [worker.oci]
              max-parallelism = 4
              snapshotter = "overlayfs"
              gc = true
              [[worker.oci.gcpolicy]]
                keepDuration = "48h"
            [frontend."dockerfile.v0"]
              enabled = true
            [registry."docker.io"]
              mirrors = ["mirror.local:5000"]
            "#,
        )
        .unwrap();
        assert!(file.debug && !file.trace);
        assert_eq!(file.root.as_deref(), Some(Path::new("/data")));
        assert_eq!(file.log.format, Some(LogFormat::Json));
        assert_eq!(file.grpc.address, ["tcp://0.0.0.0:1234"]);
        assert_eq!(file.grpc.tls.cert.as_deref(), Some(Path::new("/c.pem")));
        assert_eq!(file.worker.oci.max_parallelism, Some(4));
        assert_eq!(file.worker.oci.snapshotter, Some(Snapshotter::Overlayfs));
        assert_eq!(file.registry.hosts["docker.io"].mirrors, ["mirror.local:5000"]);
        let mut doubts = file.doubts;
        doubts.sort();
        assert_eq!(
            doubts,
            [
                "frontend.dockerfile.v0.enabled is not honoured: Dockerfiles are read by the built-in frontend",
                "insecure-entitlements is not honoured: no build gets an entitlement",
                "rooot is no key that BuildKit or Lapstrake knows",
                "worker.oci.gc is not honoured: the cache is pruned when it is asked for",
                "worker.oci.gcpolicy is not honoured: the cache is pruned when it is asked for",
            ]
        );
    }

    #[test]
    fn wrong_types_and_misspelt_registry_keys_are_errors_that_say_where() {
        for (text, part) in [
            ("debug = 1", "expected a boolean"),
            ("[registry.\"x\"]\nmirors = []", "mirors"),
            ("[worker.oci]\nsnapshotter = \"btrfs\"", "btrfs"),
            ("root = ", "line 1"),
        ] {
            let error = ConfigFile::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert_eq!(ConfigFile::parse("").unwrap(), ConfigFile::default());
    }

    #[test]
    fn no_key_is_both_honoured_and_not() {
        for (pattern, _) in NOT_HONOURED {
            assert!(!HONOURED.iter().any(|honoured| is_of(pattern, honoured)), "{pattern}");
        }
    }
}
