//! The keys of `buildkitd.toml`: which are honoured, which have no effect here, and which may not be asked for.
//!
//! A key without effect changes nothing of what is built, or only how: it is named in a warning. A key that asks for a protection, or for
//! another place of what is built, is refused unless its value is that of a file without it.

/// What becomes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It counts.
    Honoured,
    /// It has no effect, for this reason.
    Vain(&'static str),
    /// The daemon does not start with it, for this reason.
    Refused(&'static str),
}

use Fate::{Honoured, Refused, Vain};

const ONE_WORKER: &str = "this daemon has one worker, its own";
const NO_CNI: &str = "there is no CNI: networkMode = \"bridge\" needs none";
const NO_GHA: &str = "GitHub's cache service is not used";
const NO_CONTAINERD: &str = "containerd is not used: images and layers are in this daemon's own store";

/// Every key that BuildKit 0.32 knows, and our own; a `*` at the end stands for everything below. The first that fits counts.
pub(crate) const KEYS: &[(&str, Fate)] = &[
    ("debug", Honoured),
    ("trace", Honoured),
    ("root", Honoured),
    ("keepFailed", Honoured),
    ("insecure-entitlements", Honoured),
    ("proxyNetwork", Refused("no proxy is put between steps and the network")),
    ("provenanceEnvDir", Honoured),
    ("log.format", Honoured),
    ("log.level", Honoured),
    ("dns.nameservers", Honoured),
    ("dns.options", Honoured),
    ("dns.searchDomains", Honoured),
    ("grpc.address", Honoured),
    ("grpc.debugAddress", Vain("there is no debug server")),
    ("grpc.uid", Honoured),
    ("grpc.gid", Honoured),
    ("grpc.securityDescriptor", Vain("it is for Windows")),
    ("grpc.tls.cert", Honoured),
    ("grpc.tls.key", Honoured),
    ("grpc.tls.ca", Honoured),
    ("otel.socketPath", Vain("traces are not exported")),
    ("cdi.disabled", Honoured),
    ("cdi.specDirs", Honoured),
    ("cdi.autoAllowed", Honoured),
    ("history.maxAge", Honoured),
    ("history.maxEntries", Honoured),
    ("registry.*", Honoured),
    ("frontend.dockerfile.v0.enabled", Honoured),
    ("frontend.dockerfile.v0.servesOfficialImages", Honoured),
    ("frontend.gateway.v0.enabled", Honoured),
    (
        "frontend.gateway.v0.allowedRepositories",
        Refused("which images may be frontends cannot be restricted"),
    ),
    ("system.platformsCacheMaxAge", Vain("what this machine emulates is asked every 20 s")),
    ("system.maxRegistryConcurrency", Vain("three layers are pulled at once, five pushed")),
    ("cache.gha.*", Vain(NO_GHA)),
    ("ghacache.*", Vain(NO_GHA)),
    ("worker.oci.enabled", Honoured),
    ("worker.oci.labels.*", Vain("workers are not chosen by label")),
    ("worker.oci.platforms", Vain("the platform is that of this machine")),
    ("worker.oci.snapshotter", Honoured),
    ("worker.oci.proxySnapshotterPath", Refused("layers are in this daemon's own store")),
    ("worker.oci.rootless", Vain("whoever starts the daemon is who runs it")),
    ("worker.oci.noProcessSandbox", Vain("every step has a process namespace of its own")),
    ("worker.oci.gc", Honoured),
    ("worker.oci.gckeepstorage", Honoured),
    ("worker.oci.reservedSpace", Honoured),
    ("worker.oci.maxUsedSpace", Honoured),
    ("worker.oci.minFreeSpace", Honoured),
    ("worker.oci.gcpolicy", Honoured),
    ("worker.oci.networkMode", Honoured),
    ("worker.oci.cniConfigPath", Vain(NO_CNI)),
    ("worker.oci.cniBinaryPath", Vain(NO_CNI)),
    ("worker.oci.cniPoolSize", Honoured),
    ("worker.oci.bridgeName", Vain("the bridge is in a namespace of its own")),
    ("worker.oci.bridgeSubnet", Honoured),
    ("worker.oci.userRemapUnsupported", Refused("users are not remapped")),
    ("worker.oci.binary", Honoured),
    ("worker.oci.defaultCgroupParent", Vain("steps run below /lapstrake")),
    ("worker.oci.stargzSnapshotter.*", Vain("layers are unpacked as they are pulled")),
    ("worker.oci.apparmor-profile", Refused("no AppArmor profile is applied")),
    ("worker.oci.selinux", Refused("no SELinux label is applied")),
    ("worker.oci.max-parallelism", Honoured),
    ("worker.containerd.enabled", Honoured),
    ("worker.containerd.gc", Honoured),
    ("worker.containerd.gckeepstorage", Honoured),
    ("worker.containerd.reservedSpace", Honoured),
    ("worker.containerd.maxUsedSpace", Honoured),
    ("worker.containerd.minFreeSpace", Honoured),
    ("worker.containerd.gcpolicy", Honoured),
    ("worker.containerd.*", Vain(NO_CONTAINERD)),
    ("worker.*", Vain(ONE_WORKER)),
    ("frontend.*", Vain("there is no such frontend")),
];

/// What becomes of a key; `None` where nobody knows it.
pub(crate) fn fate(key: &str) -> Option<Fate> {
    KEYS.iter().find(|(pattern, _)| is_of(key, pattern)).map(|(_, fate)| *fate)
}

/// What becomes of all that a file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// What has no effect.
    pub(crate) doubts: Vec<String>,
    /// What the daemon does not start with.
    pub(crate) refused: Vec<String>,
}

/// Judges every value of a file.
pub(crate) fn judge(table: &toml::Table) -> Verdict {
    let mut verdict = Verdict::default();
    for (key, value) in flatten(table) {
        match fate(&key) {
            Some(Honoured) => {}
            Some(Refused(why)) if asks(value) => verdict.refused.push(format!("{key} is refused: {why}")),
            Some(Refused(_)) => {}
            Some(Vain(why)) => verdict.doubts.push(format!("{key} is not honoured: {why}")),
            None => verdict.doubts.push(format!("{key} is no key that BuildKit or Lapstrake knows")),
        }
    }
    let switch = |kind: &str, name: &str| table.get(kind)?.get(name)?.get("enabled")?.as_bool();
    for name in ["dockerfile.v0", "gateway.v0"] {
        if switch("frontend", name) == Some(false) {
            let why = "frontends cannot be turned off";
            verdict.refused.push(format!("frontend.{name}.enabled = false is refused: {why}"));
        }
    }
    match (switch("worker", "oci"), switch("worker", "containerd")) {
        (Some(false), _) => {
            verdict.refused.push(format!("worker.oci.enabled = false is refused: {ONE_WORKER}"))
        }
        // With both, BuildKit uses the OCI worker.
        (None, Some(true)) => {
            verdict.refused.push(format!("worker.containerd.enabled = true is refused: {NO_CONTAINERD}"));
        }
        _ => {}
    }
    verdict
}

/// Whether a value asks for anything: the documented file has keys with empty values.
fn asks(value: &toml::Value) -> bool {
    match value {
        toml::Value::Boolean(on) => *on,
        toml::Value::String(text) => !text.is_empty(),
        toml::Value::Array(list) => !list.is_empty(),
        _ => true,
    }
}

fn is_of(key: &str, pattern: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => key.starts_with(prefix),
        None => key == pattern,
    }
}

/// The keys of all values, with dots between the tables that they are in. A list of tables is one value.
fn flatten(table: &toml::Table) -> Vec<(String, &toml::Value)> {
    fn walk<'a>(prefix: &str, table: &'a toml::Table, found: &mut Vec<(String, &'a toml::Value)>) {
        for (name, value) in table {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            match value {
                toml::Value::Table(table) => walk(&key, table, found),
                _ => found.push((key, value)),
            }
        }
    }
    let mut found = Vec::new();
    walk("", table, &mut found);
    found
}
