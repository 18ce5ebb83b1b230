//! `buildkitd.toml`, read as it is.
//!
//! What becomes of each key is in [`keys`]: it is honoured, has no effect, or is refused. Those that nobody knows are most likely misspelt, and
//! named. A value of the wrong type is an error. A flag of buildkitd's that a key says the same as is put into the file's values
//! ([`KeyFlag`]), so that both mean the same.

mod flags;
pub(crate) mod keys;

pub(crate) use flags::{BuildkitdFlags, KeyFlag, switch};

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use lapstrake_builder_cache::{CacheError, DiskSpace, EntryFilter, GcCaps, GcRule, default_rules};
use lapstrake_builder_engine::{CdiDevices, Entitlement, Frontends};
use lapstrake_builder_executor::{DefaultNetwork, Subnet};
use lapstrake_layerstore_registry::RegistryConfig;
use serde::{Deserialize, Deserializer, de::Error as _};

use crate::{
    error::ProgramError,
    logging::{LogFormat, LogLevel},
};

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
    /// Our own key: whether failed steps are kept of builds that do not say it.
    #[serde(rename = "keepFailed")]
    pub(crate) keep_failed: bool,
    /// Where the files are that say what provenance tells of this machine.
    #[serde(rename = "provenanceEnvDir")]
    pub(crate) provenance_env_dir: Option<PathBuf>,
    /// The daemon's log.
    pub(crate) log: Log,
    /// Where to listen.
    pub(crate) grpc: Grpc,
    /// How processes run and where layers are.
    pub(crate) worker: Workers,
    /// Who reads Dockerfiles.
    pub(crate) frontend: FrontendFile,
    /// How much of the build history is kept.
    pub(crate) history: HistoryFile,
    /// What clients may grant their builds.
    #[serde(rename = "insecure-entitlements", deserialize_with = "entitlements")]
    pub(crate) entitlements: Option<Vec<Entitlement>>,
    /// Devices for steps.
    pub(crate) cdi: Cdi,
    /// Name servers of steps.
    pub(crate) dns: Dns,
    /// Registries by host.
    pub(crate) registry: RegistryConfig,
    /// What the file says that is not honoured; filled in by [`ConfigFile::with_flags`].
    #[serde(skip)]
    pub(crate) doubts: Vec<String>,
}

fn entitlements<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Entitlement>>, D::Error> {
    let parse = |text: &String| text.parse().map_err(D::Error::custom);
    Vec::<String>::deserialize(deserializer)?.iter().map(parse).collect::<Result<_, _>>().map(Some)
}

/// `[cdi]`
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Cdi {
    /// Whether there are no devices.
    pub(crate) disabled: bool,
    /// Directories of specifications; the usual ones when not said.
    pub(crate) spec_dirs: Vec<PathBuf>,
    /// Devices and kinds of them that every build may use.
    auto_allowed: Vec<String>,
}

impl Cdi {
    /// Where devices are described.
    pub(crate) fn devices(self) -> CdiDevices {
        if self.disabled {
            return CdiDevices::disabled();
        }
        let mut devices = CdiDevices { auto_allowed: self.auto_allowed, ..CdiDevices::default() };
        if !self.spec_dirs.is_empty() {
            devices.directories = self.spec_dirs;
        }
        devices
    }
}

/// `[frontend]`
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct FrontendFile {
    /// `[frontend."dockerfile.v0"]`
    #[serde(rename = "dockerfile.v0")]
    pub(crate) dockerfile: DockerfileFrontend,
}

/// `[frontend."dockerfile.v0"]`
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct DockerfileFrontend {
    /// Our own key: whether `docker/dockerfile` images are served by the built-in frontend; yes when not said.
    serves_official_images: Option<bool>,
}

impl DockerfileFrontend {
    /// Which frontends are served by the built-in one.
    pub(crate) fn frontends(&self) -> Frontends {
        let default = Frontends::default();
        Frontends { official_built_in: self.serves_official_images.unwrap_or(default.official_built_in) }
    }
}

/// `[history]`
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct HistoryFile {
    max_age: Option<Age>,
    max_entries: Option<u32>,
}

impl HistoryFile {
    /// How much is kept.
    pub(crate) fn limits(&self) -> lapstrake_builder_history::Limits {
        let mut limits = lapstrake_builder_history::Limits::default();
        if let Some(Age(age)) = self.max_age {
            limits.age = age;
        }
        if let Some(entries) = self.max_entries {
            limits.entries = entries as usize;
            // BuildKit has no bound on builds that are younger than the age; here it grows with what is wanted.
            limits.most = limits.most.max(limits.entries.saturating_mul(2));
        }
        limits
    }
}

/// `[log]`
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Log {
    /// `text` or `json`.
    pub(crate) format: Option<LogFormat>,
    /// The least important that is written.
    pub(crate) level: Option<LogLevel>,
}

/// `[grpc]`
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Grpc {
    /// Where to listen.
    pub(crate) address: Vec<String>,
    /// The unix sockets' owner.
    pub(crate) uid: Option<u32>,
    /// The unix sockets' group.
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
    /// `[worker.containerd]`: only how its cache is pruned.
    containerd: OtherWorker,
}

impl Workers {
    /// How the cache is pruned: as the one worker says; as the other says, where the file is of a daemon that used containerd.
    pub(crate) fn take_gc(&mut self) -> Gc {
        let (own, other) = (std::mem::take(&mut self.oci.gc), std::mem::take(&mut self.containerd.gc));
        if own == Gc::default() { other } else { own }
    }
}

/// `[worker.containerd]`
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct OtherWorker {
    #[serde(flatten)]
    gc: Gc,
}

/// `[worker.oci]`
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Worker {
    /// Whether to be BuildKit's OCI worker, which has no store of images.
    pub(crate) enabled: bool,
    /// The OCI runtime to use in place of the native executor.
    pub(crate) binary: Option<PathBuf>,
    /// BuildKit's name of the graph driver.
    pub(crate) snapshotter: Option<Snapshotter>,
    /// Steps that may use the machine at once.
    #[serde(rename = "max-parallelism")]
    pub(crate) max_parallelism: Option<usize>,
    /// What network steps have that ask for none.
    #[serde(rename = "networkMode")]
    pub(crate) network_mode: Option<NetworkMode>,
    /// Addresses of sandboxes.
    #[serde(rename = "bridgeSubnet")]
    pub(crate) bridge_subnet: Option<BridgeSubnet>,
    /// Sandboxes' networks kept ready.
    #[serde(rename = "cniPoolSize")]
    pub(crate) pool_size: Option<usize>,
    /// How the cache is pruned.
    #[serde(flatten)]
    pub(crate) gc: Gc,
}

/// `[dns]`
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Dns {
    nameservers: Vec<IpAddr>,
    /// Resolver options.
    pub(crate) options: Vec<String>,
    /// Domains to search.
    pub(crate) search_domains: Vec<String>,
}

impl Dns {
    /// Name servers as `resolv.conf` has them.
    pub(crate) fn servers(&self) -> Vec<String> {
        self.nameservers.iter().map(ToString::to_string).collect()
    }
}

/// `worker.oci.networkMode`: BuildKit's names, without `cni`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NetworkMode {
    /// A sandbox where the machine can, else the machine's own network.
    Auto,
    /// A sandbox, or an error.
    Bridge,
    /// The machine's own network.
    Host,
    /// None.
    None,
}

impl From<NetworkMode> for DefaultNetwork {
    fn from(mode: NetworkMode) -> Self {
        match mode {
            NetworkMode::Auto => Self::Auto,
            NetworkMode::Bridge => Self::Sandbox,
            NetworkMode::Host => Self::Host,
            NetworkMode::None => Self::None,
        }
    }
}

/// `worker.oci.bridgeSubnet`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BridgeSubnet(pub(crate) Subnet);

impl<'de> Deserialize<'de> for BridgeSubnet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map(Self).map_err(D::Error::custom)
    }
}

/// What of `[worker.oci]` is about pruning the cache.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Gc {
    /// Whether it is pruned at all without being asked; yes when not said.
    pub(crate) gc: Option<bool>,
    /// The former name of `reservedSpace`, which counts more.
    #[serde(rename = "gckeepstorage")]
    keep_storage: Option<Space>,
    reserved_space: Option<Space>,
    max_used_space: Option<Space>,
    min_free_space: Option<Space>,
    /// The rules; BuildKit's when not said.
    #[serde(rename = "gcpolicy")]
    rules: Vec<Rule>,
}

/// `[[worker.oci.gcpolicy]]`
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    all: bool,
    filters: Vec<String>,
    keep_duration: Age,
    /// The former name of `reservedSpace`, which counts more.
    keep_bytes: Option<Space>,
    reserved_space: Option<Space>,
    max_used_space: Option<Space>,
    min_free_space: Option<Space>,
}

impl Gc {
    /// The rules on a disk of this size; none where pruning is off.
    pub(crate) fn rules(&self, disk: u64) -> Result<Vec<GcRule>, CacheError> {
        if self.gc == Some(false) {
            return Ok(Vec::new());
        }
        if self.rules.is_empty() {
            return default_rules(self.caps(), disk);
        }
        self.rules.iter().map(Rule::read).collect()
    }

    fn caps(&self) -> GcCaps {
        let caps = caps(self.reserved_space, self.max_used_space, self.min_free_space);
        // As BuildKit: the old name counts only where none of the new ones is used.
        if caps == GcCaps::default() { GcCaps { reserved: space(self.keep_storage), ..caps } } else { caps }
    }
}

impl Rule {
    fn read(&self) -> Result<GcRule, CacheError> {
        let reserved = self.reserved_space.filter(|space| space.0 != DiskSpace::default());
        Ok(GcRule {
            all: self.all,
            filter: EntryFilter::parse(&self.filters)?,
            keep_duration: self.keep_duration.0,
            caps: caps(reserved.or(self.keep_bytes), self.max_used_space, self.min_free_space),
        })
    }
}

fn caps(reserved: Option<Space>, max_used: Option<Space>, min_free: Option<Space>) -> GcCaps {
    GcCaps { reserved: space(reserved), max_used: space(max_used), min_free: space(min_free) }
}

fn space(space: Option<Space>) -> DiskSpace {
    space.map(|space| space.0).unwrap_or_default()
}

/// A number of bytes, or text with a unit or a percent sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Space(DiskSpace);

impl<'de> Deserialize<'de> for Space {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match NumberOrText::deserialize(deserializer)? {
            NumberOrText::Number(bytes) => Ok(Self(DiskSpace::Bytes(bytes))),
            NumberOrText::Text(text) => DiskSpace::parse(&text).map(Self).map_err(D::Error::custom),
        }
    }
}

/// A number of seconds, or a duration as Go writes them (`48h`, `1h30m`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Age(Duration);

impl<'de> Deserialize<'de> for Age {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wrong = |text: &str| {
            D::Error::custom(format!("invalid duration {text:?}: neither seconds nor such as \"48h\""))
        };
        let text = match NumberOrText::deserialize(deserializer)? {
            NumberOrText::Number(seconds) => return Ok(Self(Duration::from_secs(seconds))),
            NumberOrText::Text(text) => text,
        };
        if text.is_empty() {
            return Ok(Self::default());
        }
        if let Ok(seconds) = text.parse() {
            return Ok(Self(Duration::from_secs(seconds)));
        }
        let duration = lapstrake_api_types::parse_duration(&text).ok_or_else(|| wrong(&text))?;
        Duration::try_from(duration).map(Self).map_err(|_| wrong(&text))
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a number that is not negative, or text")]
enum NumberOrText {
    Number(u64),
    Text(String),
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

impl ConfigFile {
    /// Reads a file, and puts flags over it.
    pub(crate) fn read(path: &Path, flags: &[KeyFlag]) -> Result<Self, ProgramError> {
        let text = std::fs::read_to_string(path).map_err(ProgramError::file("read configuration", path))?;
        let failed = |source| ProgramError::Config { path: path.to_owned(), source };
        // As a whole first: these errors have lines and columns.
        let _: Self = toml::from_str(&text).map_err(failed)?;
        Self::with_flags(toml::from_str(&text).map_err(failed)?, flags)
    }

    /// What a file with these values says, and flags put over it. Pure.
    pub(crate) fn with_flags(mut table: toml::Table, flags: &[KeyFlag]) -> Result<Self, ProgramError> {
        for flag in flags {
            flag.put_into(&mut table)?;
            // One after the other, so that an error is about this one.
            let parsed: Result<Self, toml::de::Error> = table.clone().try_into();
            parsed.map_err(|error| ProgramError::setting(format!("--{}", flag.flag), error.message()))?;
        }
        let verdict = keys::judge(&table);
        if !verdict.refused.is_empty() {
            return Err(ProgramError::setting("configuration", verdict.refused.join("; ")));
        }
        let mut file: Self = table
            .try_into()
            .map_err(|error: toml::de::Error| ProgramError::setting("configuration", error.message()))?;
        file.doubts = verdict.doubts;
        Ok(file)
    }
}

#[cfg(test)]
mod tests;
