//! A CDI specification file: its form, and what of it is understood.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    io::Read as _,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{ContainerEdits, DeviceNode, HostMount, MountFlags, NodeKind};

/// Versions of the specification (`specs-go/version.go`), but for those that nobody released.
const VERSIONS: [&str; 10] =
    ["0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];
/// The largest that vendors' tools write are some 100 KiB.
const MAX_FILE: u64 = 4 << 20;

/// A file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Spec {
    cdi_version: String,
    pub(super) kind: String,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) devices: Vec<NamedEdits>,
    #[serde(default)]
    pub(super) container_edits: Edits,
}

/// A device.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct NamedEdits {
    pub(super) name: String,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) container_edits: Edits,
}

/// `containerEdits`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Edits {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    net_devices: Vec<serde_json::Value>,
    hooks: Vec<Hook>,
    mounts: Vec<Mount>,
    intel_rdt: Option<serde_json::Value>,
    additional_gids: Vec<u32>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Node {
    path: String,
    host_path: Option<String>,
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    major: u32,
    #[serde(default)]
    minor: u32,
    file_mode: Option<u32>,
    #[serde(default)]
    permissions: String,
    uid: Option<u32>,
    gid: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Mount {
    host_path: String,
    container_path: String,
    #[serde(default)]
    options: Vec<String>,
    #[serde(rename = "type", default)]
    kind: String,
}

/// Only what an error needs to say: none is run.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Hook {
    hook_name: String,
    path: String,
}

/// The specifications of a directory, by name, with what they say or why that cannot be known. A directory that is not there has none.
pub(super) fn read_directory(directory: &Path) -> Vec<(PathBuf, Result<Spec, String>)> {
    let mut paths: Vec<PathBuf> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| matches!(path.extension().and_then(OsStr::to_str), Some("json" | "yaml")))
        .filter(|path| !path.is_dir())
        .collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), read(&path))).collect()
}

fn read(path: &Path) -> Result<Spec, String> {
    // A pipe would never end, and a device may do anything.
    if !fs::metadata(path).map_err(|error| error.to_string())?.is_file() {
        return Err("is no file".to_owned());
    }
    let mut text = String::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text))
        .map_err(|error| error.to_string())?;
    if text.len() as u64 > MAX_FILE {
        return Err("is larger than 4 MiB".to_owned());
    }
    parse(&text, path.extension() == Some(OsStr::new("json")))
}

pub(super) fn parse(text: &str, is_json: bool) -> Result<Spec, String> {
    if is_json {
        serde_json::from_str(text).map_err(|error| error.to_string())
    } else {
        serde_saphyr::from_str(text).map_err(|error| error.to_string())
    }
}

impl Spec {
    /// Whether it follows the rules for versions and names.
    pub(super) fn check(&self) -> Result<(), String> {
        let version = self.cdi_version.strip_prefix('v').unwrap_or(&self.cdi_version);
        if !VERSIONS.contains(&version) {
            return Err(format!("invalid version {:?}", self.cdi_version));
        }
        let kind = |part: &str| is_name(part, |c| c.is_ascii_alphabetic(), "_-.");
        if !self.kind.split_once('/').is_some_and(|(vendor, class)| kind(vendor) && kind(class)) {
            return Err(format!("kind {:?} is not vendor/class", self.kind));
        }
        if self.devices.is_empty() {
            return Err("invalid spec, no devices".to_owned());
        }
        for (number, device) in self.devices.iter().enumerate() {
            if !is_name(&device.name, |c| c.is_ascii_alphanumeric(), "_-.:") {
                return Err(format!("invalid device name {:?}", device.name));
            }
            if self.devices[..number].iter().any(|other| other.name == device.name) {
                return Err(format!("invalid spec, multiple device {:?}", device.name));
            }
            if device.container_edits == Edits::default() {
                return Err(format!("invalid device {:?}, empty device edits", device.name));
            }
        }
        Ok(())
    }
}

/// Whether `text` begins with what `first` takes, ends with a letter or digit, and has only those and `others` between.
fn is_name(text: &str, first: impl Fn(char) -> bool, others: &str) -> bool {
    text.starts_with(first)
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
}

impl Edits {
    /// Puts these behind others. Errors: what is wrong, or not done here.
    pub(super) fn add_to(&self, all: &mut ContainerEdits) -> Result<(), String> {
        if let Some(hook) = self.hooks.first() {
            return Err(format!(
                "its hook {} ({}) is not run: hooks of devices are not supported",
                hook.hook_name, hook.path
            ));
        }
        if !self.net_devices.is_empty() {
            return Err("netDevices are not supported".to_owned());
        }
        if self.intel_rdt.is_some() {
            return Err("intelRdt is not supported".to_owned());
        }
        if let Some(wrong) = self.env.iter().find(|entry| entry.find('=').unwrap_or(0) == 0) {
            return Err(format!("invalid environment variable {wrong:?}"));
        }
        all.env.extend(self.env.iter().cloned());
        for node in &self.device_nodes {
            let node = node.resolve()?;
            all.nodes.retain(|other| other.path != node.path);
            all.nodes.push(node);
        }
        for mount in &self.mounts {
            let mount = mount.resolve()?;
            all.mounts.retain(|other| other.target != mount.target);
            all.mounts.push(mount);
        }
        // As CDI has it: group 0 is never added.
        all.groups.extend(self.additional_gids.iter().filter(|gid| **gid != 0));
        Ok(())
    }
}

impl Node {
    /// With what the file leaves out taken from the host's node.
    fn resolve(&self) -> Result<DeviceNode, String> {
        let fail = |why: &str| format!("device node {:?}: {why}", self.path);
        let parts = self.path.strip_prefix("/dev/").ok_or_else(|| fail("is not below /dev"))?;
        if parts.split('/').any(|part| matches!(part, "" | "." | "..")) || parts.contains('\0') {
            return Err(fail("is no plain path"));
        }
        if let Some(wrong) = self.permissions.chars().find(|c| !"rwm".contains(*c)) {
            return Err(fail(&format!("invalid permissions: {wrong:?} is none of r, w and m")));
        }
        let host_path = self.host_path.as_deref().unwrap_or(&self.path);
        let host = fs::symlink_metadata(host_path);
        let kind = match self.kind.as_str() {
            "c" | "u" => Some(NodeKind::Character),
            "b" => Some(NodeKind::Block),
            "p" => Some(NodeKind::Pipe),
            "" => None,
            other => return Err(fail(&format!("invalid type {other:?}"))),
        };
        let is_complete = kind.is_some() && (self.major != 0 || kind == Some(NodeKind::Pipe));
        let (mut major, mut minor) = (self.major, self.minor);
        let mut found = None;
        match &host {
            Err(error) if !is_complete => {
                return Err(fail(&format!("failed to stat CDI host device {host_path:?}: {error}")));
            }
            Err(_) => {}
            Ok(host) => {
                let of = host.file_type();
                found = match (of.is_char_device(), of.is_block_device(), of.is_fifo()) {
                    (true, ..) => Some(NodeKind::Character),
                    (_, true, _) => Some(NodeKind::Block),
                    (.., true) => Some(NodeKind::Pipe),
                    _ if is_complete => None,
                    _ => return Err(fail(&format!("{host_path:?} is not a device node"))),
                };
                if !is_complete && kind.is_some() && kind != found {
                    return Err(fail(&format!("its type is not that of {host_path:?}")));
                }
                if major == 0 && found != Some(NodeKind::Pipe) && !is_complete {
                    (major, minor) = (rustix::fs::major(host.rdev()), rustix::fs::minor(host.rdev()));
                }
            }
        }
        let kind = kind.or(found).ok_or_else(|| fail("has no type"))?;
        if kind == NodeKind::Pipe {
            (major, minor) = (0, 0);
        }
        let host_mode = host.ok().map(|host| host.mode());
        Ok(DeviceNode {
            path: self.path.clone(),
            kind,
            major,
            minor,
            mode: self.file_mode.or(host_mode).unwrap_or(0o666) & 0o7777,
            uid: self.uid,
            gid: self.gid,
            access: if self.permissions.is_empty() { "rwm".to_owned() } else { self.permissions.clone() },
        })
    }
}

impl Mount {
    fn resolve(&self) -> Result<HostMount, String> {
        let fail = |why: &str| format!("mount of {:?} on {:?}: {why}", self.host_path, self.container_path);
        for path in [&self.host_path, &self.container_path] {
            if !path.starts_with('/') || path.contains('\0') {
                return Err(fail(&format!("{path:?} is not an absolute path")));
            }
        }
        if !matches!(self.kind.as_str(), "" | "bind" | "none") {
            return Err(fail(&format!("type {:?} is not supported, only bind", self.kind)));
        }
        let mut flags = MountFlags::default();
        for option in &self.options {
            match option.as_str() {
                "ro" => flags.read_only = true,
                "rw" => flags.read_only = false,
                "nosuid" => flags.no_suid = true,
                "nodev" => flags.no_dev = true,
                "noexec" => flags.no_exec = true,
                // Mounts of a container are recursive and private here, whatever is said.
                "bind" | "rbind" | "private" | "rprivate" | "suid" | "dev" | "exec" => {}
                other => return Err(fail(&format!("option {other:?} is not supported"))),
            }
        }
        Ok(HostMount { source: PathBuf::from(&self.host_path), target: self.container_path.clone(), flags })
    }
}
