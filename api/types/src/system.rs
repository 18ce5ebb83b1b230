//! `GET /version`, `GET /info`, `GET /distribution/{name}/json`.

use std::collections::BTreeMap;

use lapstrake_layerstore_oci::{Descriptor, Platform};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::ApiVersion;

/// The answer to `GET /version`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct SystemVersion {
    /// The product.
    pub platform: PlatformName,
    /// The daemon's version.
    pub version: String,
    /// The newest API version served.
    pub api_version: String,
    /// The oldest.
    #[serde(rename = "MinAPIVersion")]
    pub min_api_version: String,
    /// Operating system, in Go's words.
    pub os: String,
    /// Architecture, in Go's words.
    pub arch: String,
    /// Parts and their versions.
    pub components: Vec<ComponentVersion>,
    /// Revision of the source; empty when not known.
    pub git_commit: String,
    /// Of no meaning here, but the CLI prints it.
    pub go_version: String,
    /// The kernel.
    pub kernel_version: String,
    /// When the daemon was built; empty when not known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub build_time: String,
}

/// The product's name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PlatformName {
    /// The name.
    pub name: String,
}

/// A part of the daemon.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ComponentVersion {
    /// What it is.
    pub name: String,
    /// Its version.
    pub version: String,
    /// More about it.
    pub details: BTreeMap<String, String>,
}

/// What the daemon knows of itself and its machine; laid out by [`Info::to_json`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Info {
    /// Identity of the store.
    pub id: String,
    /// How many images there are.
    pub images: usize,
    /// The graph driver.
    pub driver: String,
    /// Its properties.
    pub driver_status: Vec<(String, String)>,
    /// Which controllers the kernel lets us limit: memory, swap, CPU quota, CPU shares, CPU sets, pids.
    pub limits: Limits,
    /// Debug logging is on.
    pub debug: bool,
    /// Open files of the daemon.
    pub file_descriptors: usize,
    /// Running tasks of the daemon.
    pub tasks: usize,
    /// Now, RFC 3339.
    pub system_time: String,
    /// `cgroupfs` or `systemd`.
    pub cgroup_driver: String,
    /// `1` or `2`.
    pub cgroup_version: String,
    /// Clients that follow events.
    pub event_listeners: usize,
    /// The kernel.
    pub kernel_version: String,
    /// The distribution's pretty name.
    pub operating_system: String,
    /// The distribution's version.
    pub os_version: String,
    /// Architecture, in `uname`'s words.
    pub architecture: String,
    /// Processors.
    pub cpus: usize,
    /// Bytes of memory.
    pub memory: u64,
    /// The root directory of the store.
    pub root_dir: String,
    /// Proxies that registry traffic goes through.
    pub proxies: Proxies,
    /// The machine's name.
    pub name: String,
    /// The daemon's version.
    pub server_version: String,
    /// Registries that are reached over plain HTTP.
    pub insecure_registries: Vec<String>,
    /// Mirrors of Docker Hub.
    pub mirrors: Vec<String>,
    /// What runs processes: name and program.
    pub runtimes: BTreeMap<String, String>,
    /// Which of them.
    pub default_runtime: String,
    /// Such as `name=seccomp,profile=builtin`.
    pub security_options: Vec<String>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// Which limits the kernel offers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // one per controller, as the API has them
pub struct Limits {
    /// Memory.
    pub memory: bool,
    /// Swap.
    pub swap: bool,
    /// CPU quota and period.
    pub cpu_quota: bool,
    /// CPU shares.
    pub cpu_shares: bool,
    /// CPU sets.
    pub cpu_set: bool,
    /// Number of processes.
    pub pids: bool,
}

/// Proxies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For http.
    pub http: String,
    /// For https.
    pub https: String,
    /// Hosts reached without.
    pub none: String,
}

impl Info {
    /// The layout of a version.
    pub fn to_json(&self, api: ApiVersion) -> Value {
        let mut out = self.common();
        let mut put = |name: &str, value: Value| out.insert(name.to_owned(), value);
        if !api.at_least(42) {
            put("KernelMemory", json!(false));
        }
        if !api.at_least(52) {
            put("KernelMemoryTCP", json!(false));
        }
        if !api.at_least(50) {
            put("BridgeNfIptables", json!(false));
            put("BridgeNfIp6tables", json!(false));
        }
        put("RegistryConfig", self.registry_config(api));
        let runtimes: Map<String, Value> =
            self.runtimes.iter().map(|(name, path)| (name.clone(), json!({ "path": path }))).collect();
        put("Runtimes", Value::Object(runtimes));
        let commit = || if api.at_least(49) { json!({"ID": ""}) } else { json!({"ID": "", "Expected": ""}) };
        put("ContainerdCommit", commit());
        put("RuncCommit", commit());
        put("InitCommit", commit());
        put("SecurityOptions", json!(self.security_options));
        if api.at_least(45) {
            put("CDISpecDirs", json!([]));
        }
        put("Warnings", if self.warnings.is_empty() { Value::Null } else { json!(self.warnings) });
        Value::Object(out)
    }

    fn common(&self) -> Map<String, Value> {
        let status: Vec<[&str; 2]> =
            self.driver_status.iter().map(|(name, value)| [name.as_str(), value.as_str()]).collect();
        let fields = [
            ("ID", json!(self.id)),
            ("Containers", json!(0)),
            ("ContainersRunning", json!(0)),
            ("ContainersPaused", json!(0)),
            ("ContainersStopped", json!(0)),
            ("Images", json!(self.images)),
            ("Driver", json!(self.driver)),
            ("DriverStatus", json!(status)),
            ("Plugins", json!({ "Volume": [], "Network": [], "Authorization": null, "Log": [] })),
            ("MemoryLimit", json!(self.limits.memory)),
            ("SwapLimit", json!(self.limits.swap)),
            ("CpuCfsPeriod", json!(self.limits.cpu_quota)),
            ("CpuCfsQuota", json!(self.limits.cpu_quota)),
            ("CPUShares", json!(self.limits.cpu_shares)),
            ("CPUSet", json!(self.limits.cpu_set)),
            ("PidsLimit", json!(self.limits.pids)),
            ("IPv4Forwarding", json!(true)),
            ("Debug", json!(self.debug)),
            ("NFd", json!(self.file_descriptors)),
            ("OomKillDisable", json!(false)),
            ("NGoroutines", json!(self.tasks)),
            ("SystemTime", json!(self.system_time)),
            ("LoggingDriver", json!("none")),
            ("CgroupDriver", json!(self.cgroup_driver)),
            ("CgroupVersion", json!(self.cgroup_version)),
            ("NEventsListener", json!(self.event_listeners)),
            ("KernelVersion", json!(self.kernel_version)),
            ("OperatingSystem", json!(self.operating_system)),
            ("OSVersion", json!(self.os_version)),
            ("OSType", json!("linux")),
            ("Architecture", json!(self.architecture)),
            ("IndexServerAddress", json!("https://index.docker.io/v1/")),
            ("NCPU", json!(self.cpus)),
            ("MemTotal", json!(self.memory)),
            ("GenericResources", json!(null)),
            ("DockerRootDir", json!(self.root_dir)),
            ("HttpProxy", json!(self.proxies.http)),
            ("HttpsProxy", json!(self.proxies.https)),
            ("NoProxy", json!(self.proxies.none)),
            ("Name", json!(self.name)),
            ("Labels", json!([])),
            ("ExperimentalBuild", json!(false)),
            ("ServerVersion", json!(self.server_version)),
            ("DefaultRuntime", json!(self.default_runtime)),
            ("Swarm", json!(inactive_swarm())),
            ("LiveRestoreEnabled", json!(false)),
            ("Isolation", json!("")),
            ("InitBinary", json!("")),
        ];
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn registry_config(&self, api: ApiVersion) -> Value {
        let index = |name: &str, secure: bool, official: bool, mirrors: &[String]| json!({ "Name": name, "Mirrors": mirrors, "Secure": secure, "Official": official });
        let mut indexes = Map::new();
        indexes.insert("docker.io".to_owned(), index("docker.io", true, true, &self.mirrors));
        for name in &self.insecure_registries {
            indexes.insert(name.clone(), index(name, false, false, &[]));
        }
        let mut config = json!({
            "InsecureRegistryCIDRs": ["::1/128", "127.0.0.0/8"],
            "IndexConfigs": indexes,
            "Mirrors": if self.mirrors.is_empty() { Value::Null } else { json!(self.mirrors) },
        });
        if !api.at_least(47) {
            config["AllowNondistributableArtifactsCIDRs"] = Value::Null;
            config["AllowNondistributableArtifactsHostnames"] = Value::Null;
        }
        config
    }
}

fn inactive_swarm() -> Value {
    json!({
        "NodeID": "",
        "NodeAddr": "",
        "LocalNodeState": "inactive",
        "ControlAvailable": false,
        "Error": "",
        "RemoteManagers": null,
    })
}

/// The answer to `GET /distribution/{name}/json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct DistributionInspect {
    /// What the name points to in its registry.
    pub descriptor: Descriptor,
    /// What it runs on; `null` when the registry does not say.
    pub platforms: Option<Vec<Platform>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_loses_and_gains_fields_with_versions() {
        let info = Info::default();
        let has = |api: u16, name: &str| !info.to_json(ApiVersion::v1(api))[name].is_null();
        assert!(has(41, "KernelMemory") && !has(42, "KernelMemory"));
        assert!(has(51, "KernelMemoryTCP") && !has(52, "KernelMemoryTCP"));
        assert!(has(49, "BridgeNfIptables") && !has(50, "BridgeNfIptables"));
        assert!(!has(44, "CDISpecDirs") && has(45, "CDISpecDirs"));
        let commit = |api: u16| info.to_json(ApiVersion::v1(api))["RuncCommit"].to_string();
        assert_eq!(commit(48), r#"{"ID":"","Expected":""}"#);
        assert_eq!(commit(49), r#"{"ID":""}"#);
    }
}
