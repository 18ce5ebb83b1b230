//! Devices by name: the Container Device Interface, <https://github.com/cncf-tags/container-device-interface>, as BuildKit has it.
//!
//! ```text
//!  /etc/cdi/*.json, *.yaml ── scan ──► DeviceList ── find(what a step asks for) ──► names ── edits ──► ContainerEdits
//! ```
//!
//! Nothing is kept between builds: whoever needs a device reads the directories then, so that a device that was just
//! registered is there, and one that was taken away is not.

mod file;

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{ExecError, user::Identity};

/// An annotation: the name by which several devices may be asked for together.
const CLASS: &str = "org.mobyproject.buildkit.device.class";
/// An annotation: no build needs to be granted the device.
const AUTO_ALLOW: &str = "org.mobyproject.buildkit.device.autoallow";

/// Where devices are described, and which need no grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CdiDevices {
    /// Directories of specifications; what a later one says of a device counts more. None means that there are no devices.
    pub directories: Vec<PathBuf>,
    /// Devices (`vendor.com/class=name`) and kinds (`vendor.com/class`) that every build may use.
    pub auto_allowed: Vec<String>,
}

impl Default for CdiDevices {
    /// `/etc/cdi`, `/var/run/cdi` and BuildKit's own directory.
    fn default() -> Self {
        let directories = ["/etc/cdi", "/var/run/cdi", "/etc/buildkit/cdi"].map(PathBuf::from).to_vec();
        Self { directories, auto_allowed: Vec::new() }
    }
}

impl CdiDevices {
    /// No devices at all.
    pub fn disabled() -> Self {
        Self { directories: Vec::new(), auto_allowed: Vec::new() }
    }

    /// Reads all specifications. Blocks. What cannot be read or understood is left out and told by [`DeviceList::problems`].
    pub fn scan(&self) -> DeviceList {
        let mut list = DeviceList::default();
        let mut doubtful = Vec::new();
        for (priority, directory) in self.directories.iter().enumerate() {
            for (path, read) in file::read_directory(directory) {
                match read {
                    Ok(spec) => list.add(spec, &path, priority, &mut doubtful),
                    Err(why) => list.problems.push(format!("CDI specification {}: {why}", path.display())),
                }
            }
        }
        // As the specification says: what two files of one directory call the same is neither.
        for name in doubtful {
            list.problems
                .push(format!("CDI device {name} is described twice, so neither description counts"));
            list.devices.remove(&name);
        }
        for (name, device) in &mut list.devices {
            let kind = name.split_once('=').map_or(name.as_str(), |(kind, _)| kind);
            let is_listed = self.auto_allowed.iter().any(|allowed| allowed == name || allowed == kind);
            device.auto_allowed |= is_listed;
        }
        list
    }
}

/// All devices of this machine, as of a moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DeviceList {
    /// By qualified name.
    devices: BTreeMap<String, Device>,
    /// What files say for all their devices.
    common: Vec<file::Edits>,
    problems: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
struct Device {
    class: Option<String>,
    auto_allowed: bool,
    priority: usize,
    edits: file::Edits,
    /// Index in [`DeviceList::common`].
    common: usize,
}

/// What a step asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceRequest<'a> {
    /// `vendor.com/class=name`; `vendor.com/class` for the first of the class, `vendor.com/class=*` for all; or what devices say is their class.
    pub name: &'a str,
    /// Whether the step is to run without.
    pub optional: bool,
}

impl DeviceList {
    /// What of the specifications could not be used, and why.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// The qualified names of all, and whether steps may use them that were not granted them.
    pub fn names(&self) -> impl Iterator<Item = (&str, bool)> {
        self.devices.iter().map(|(name, device)| (name.as_str(), device.auto_allowed))
    }

    /// The qualified names of what is asked for, each once.
    ///
    /// Errors: [`ExecError::NoDevice`] for one that is not registered, unless it is optional.
    pub fn find<'a>(
        &self,
        requests: impl IntoIterator<Item = DeviceRequest<'a>>,
    ) -> Result<Vec<String>, ExecError> {
        let mut found: Vec<String> = Vec::new();
        for request in requests {
            let names = self.named(request.name);
            if names.is_empty() && !request.optional {
                return Err(ExecError::NoDevice { name: request.name.to_owned() });
            }
            for name in names {
                if !found.contains(name) {
                    found.push(name.clone());
                }
            }
        }
        Ok(found)
    }

    fn named(&self, asked: &str) -> Vec<&String> {
        let (kind, name) = asked.split_once('=').unwrap_or((asked, ""));
        let mut found = Vec::new();
        if kind.split_once('/').is_some_and(|(vendor, class)| !vendor.is_empty() && !class.is_empty()) {
            let mut of_kind = self
                .devices
                .keys()
                .filter(|device| device.strip_prefix(kind).is_some_and(|rest| rest.starts_with('=')));
            match name {
                "" => found.extend(of_kind.next()),
                "*" => found.extend(of_kind),
                _ => found.extend(of_kind.find(|device| *device == asked)),
            }
        }
        if found.is_empty() {
            let of_class = |device: &Device| device.class.as_deref() == Some(asked);
            found.extend(self.devices.iter().filter(|(_, device)| of_class(device)).map(|(name, _)| name));
        }
        found
    }

    /// Whether every build may use the device of this qualified name.
    pub fn is_auto_allowed(&self, name: &str) -> bool {
        self.devices.get(name).is_some_and(|device| device.auto_allowed)
    }

    /// What a container needs for these devices, by qualified name. Looks at device nodes of the host.
    ///
    /// Errors: [`ExecError::NoDevice`], and [`ExecError::Device`] for one that asks for what containers here cannot get.
    pub fn edits(&self, names: &[String]) -> Result<ContainerEdits, ExecError> {
        let mut edits = ContainerEdits::default();
        let mut commons = Vec::new();
        for name in names {
            let device = self.devices.get(name).ok_or_else(|| ExecError::NoDevice { name: name.clone() })?;
            let fail = |why: String| ExecError::Device { name: name.clone(), why };
            if !commons.contains(&device.common) {
                commons.push(device.common);
                self.common[device.common].add_to(&mut edits).map_err(fail)?;
            }
            device.edits.add_to(&mut edits).map_err(fail)?;
        }
        Ok(edits)
    }

    fn add(&mut self, spec: file::Spec, path: &std::path::Path, priority: usize, doubtful: &mut Vec<String>) {
        if let Err(why) = spec.check() {
            self.problems.push(format!("CDI specification {}: {why}", path.display()));
            return;
        }
        let common = self.common.len();
        self.common.push(spec.container_edits);
        for device in spec.devices {
            let name = format!("{}={}", spec.kind, device.name);
            let annotation = |key| device.annotations.get(key).or_else(|| spec.annotations.get(key));
            let made = Device {
                class: annotation(CLASS).cloned(),
                auto_allowed: annotation(AUTO_ALLOW).is_some_and(|value| is_true(value)),
                priority,
                edits: device.container_edits,
                common,
            };
            match self.devices.get(&name) {
                Some(other) if other.priority == priority => doubtful.push(name),
                _ => {
                    doubtful.retain(|doubted| *doubted != name);
                    self.devices.insert(name, made);
                }
            }
        }
    }
}

/// As Go's `strconv.ParseBool`.
fn is_true(text: &str) -> bool {
    matches!(text, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

/// What a container gets for its devices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerEdits {
    /// `KEY=value` each; they count more than the step's own.
    pub env: Vec<String>,
    /// Device nodes.
    pub nodes: Vec<DeviceNode>,
    /// Files and directories of the host.
    pub mounts: Vec<HostMount>,
    /// Supplementary groups of the process.
    pub groups: Vec<u32>,
}

/// A node below `/dev`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Its absolute path in the container.
    pub path: String,
    /// What it is.
    pub kind: NodeKind,
    /// Its number; 0 for a pipe.
    pub major: u32,
    /// Its number; 0 for a pipe.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Its owner; the process's user when not said.
    pub uid: Option<u32>,
    /// Its group; the process's when not said.
    pub gid: Option<u32>,
    /// Of `r`, `w` and `m` (mknod), what the process may do with it.
    pub access: String,
}

impl DeviceNode {
    /// Its owner and group, for a process of this identity.
    pub(crate) fn owner(&self, identity: &Identity) -> (u32, u32) {
        (self.uid.unwrap_or(identity.uid), self.gid.unwrap_or(identity.gid))
    }

    /// The rule of a version 1 device cgroup that lets it be used; none is needed for a pipe.
    pub(crate) fn cgroup_rule(&self) -> Option<String> {
        let kind = match self.kind {
            NodeKind::Character => 'c',
            NodeKind::Block => 'b',
            NodeKind::Pipe => return None,
        };
        Some(format!("{kind} {}:{} {}", self.major, self.minor, self.access))
    }
}

/// What a [`DeviceNode`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeKind {
    /// A character device.
    Character,
    /// A block device.
    Block,
    /// A named pipe.
    Pipe,
}

/// A file or directory of the host, mounted in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostMount {
    /// Its absolute path on the host.
    pub source: PathBuf,
    /// Its absolute path in the container.
    pub target: String,
    /// How.
    pub flags: MountFlags,
}

/// What a mount is not good for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountFlags {
    /// Writing.
    pub read_only: bool,
    /// Setuid programs.
    pub no_suid: bool,
    /// Devices.
    pub no_dev: bool,
    /// Programs.
    pub no_exec: bool,
}

impl MountFlags {
    /// Good for its content alone.
    pub(crate) const LOCKED: Self = Self { read_only: false, no_suid: true, no_dev: true, no_exec: true };

    /// The same, and not for writing if `read_only`.
    pub(crate) const fn or_read_only(self, read_only: bool) -> Self {
        Self { read_only: self.read_only || read_only, ..self }
    }
}

#[cfg(test)]
mod tests;
