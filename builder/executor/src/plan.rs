//! From what the user wrote to what is done: everything is checked and decided here, in the daemon, before the first
//! system call. The result is plain data that crosses to the helper.

use std::{
    net::Ipv4Addr,
    path::{Component, Path, PathBuf},
};

use lapstrake_layerstore_store::{OverlaySyntax, SnapshotMount};
use oci_spec::runtime::LinuxSeccomp;
use serde::{Deserialize, Serialize};

use crate::{
    DeviceNode, DnsConfig, ExecError, MountFlags, MountKind, ProcessSpec, Resources, SecurityMode,
    StubPolicy, Ulimit,
    caps::{self, CapSet},
    files,
    limits::Rlimit,
    talk::{Extra, ExtraProcess, Talk},
};

/// BuildKit's name for a container that nobody has named.
pub(crate) const DEFAULT_HOSTNAME: &str = "buildkitsandbox";
/// Docker's size of `/dev/shm`.
const DEFAULT_SHM_SIZE: u64 = 64 << 20;
/// Cgroup under which runs get theirs when the caller names no parent.
const DEFAULT_CGROUP_PARENT: &str = "lapstrake";
/// More than execve takes (a quarter of the stack limit, 2 MiB by default, but administrators raise it).
const MAX_ARGUMENT_BYTES: usize = 32 << 20;
/// Docker refuses secrets above 500 KiB; leave room for other callers.
const MAX_SECRET_BYTES: usize = 4 << 20;

/// Everything the helper needs for one run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) id: String,
    pub(crate) root: Tree,
    pub(crate) read_only_root: bool,
    pub(crate) args: Vec<String>,
    /// Without duplicates.
    pub(crate) env: Vec<String>,
    pub(crate) cwd: String,
    pub(crate) user: String,
    pub(crate) hostname: String,
    pub(crate) network: Network,
    pub(crate) security: SecurityMode,
    pub(crate) caps: CapSet,
    /// Classic BPF, one instruction per number (code, jt, jf, k from the top); empty means no filter.
    pub(crate) seccomp: Vec<u64>,
    /// Generated files, bound read-only over the image's.
    pub(crate) files: Vec<GeneratedFile>,
    pub(crate) mounts: Vec<Mount>,
    /// Device nodes besides Docker's.
    pub(crate) nodes: Vec<DeviceNode>,
    /// Supplementary groups besides those of the user.
    pub(crate) groups: Vec<u32>,
    pub(crate) masked: Vec<String>,
    pub(crate) read_only: Vec<String>,
    pub(crate) resources: Resources,
    /// Relative path in each hierarchy.
    pub(crate) cgroup: PathBuf,
    pub(crate) shm_size: u64,
    pub(crate) rlimits: Vec<Rlimit>,
    pub(crate) stubs: StubPolicy,
    pub(crate) talk: Talk,
    /// Device nodes on the container's file systems are to be dead, because no list of allowed devices can be had.
    pub(crate) no_devices: bool,
    /// `Some` when an OCI runtime is to run the container.
    pub(crate) runtime: Option<Runtime>,
}

/// An external runtime and what it needs beyond the plan.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Runtime {
    pub(crate) path: PathBuf,
    /// The profile with its conditions resolved, as `linux.seccomp` of the bundle.
    pub(crate) seccomp: Option<LinuxSeccomp>,
}

/// What network the container gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Network {
    Host,
    Empty,
    /// A namespace that is ready, and comes beside the plan.
    Sandbox {
        /// A name server that the container can reach, if the host's cannot be.
        resolver: Ipv4Addr,
    },
}

/// [`SnapshotMount`] as it crosses to the helper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Tree {
    Bind { source: PathBuf, read_only: bool },
    Overlay { lower: Vec<PathBuf>, upper: Option<(PathBuf, PathBuf)>, syntax: OverlaySyntax },
}

/// A file whose content the daemon makes up.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct GeneratedFile {
    pub(crate) target: String,
    #[serde(with = "hex::serde")]
    pub(crate) data: Vec<u8>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u32,
}

impl std::fmt::Debug for GeneratedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GeneratedFile({}, {} bytes)", self.target, self.data.len())
    }
}

/// One further mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Mount {
    pub(crate) target: String,
    pub(crate) source: MountSource,
}

/// What is mounted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum MountSource {
    /// `shared`: other containers may have it mounted at the same time.
    Tree {
        tree: Tree,
        selector: String,
        read_only: bool,
        shared: bool,
    },
    Host {
        source: PathBuf,
        flags: MountFlags,
    },
    Tmpfs {
        size: Option<u64>,
    },
    File(GeneratedFile),
    Socket {
        source: PathBuf,
        uid: u32,
        gid: u32,
        mode: u32,
    },
}

/// Docker's and containerd's masked paths together.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Docker's read-only paths.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

impl Mount {
    /// What it is not good for.
    pub(crate) fn flags(&self) -> MountFlags {
        match &self.source {
            MountSource::Tree { read_only, .. } => MountFlags::default().or_read_only(*read_only),
            MountSource::Host { flags, .. } => *flags,
            MountSource::Tmpfs { .. } | MountSource::Socket { .. } => MountFlags::LOCKED,
            MountSource::File(_) => MountFlags::LOCKED.or_read_only(true),
        }
    }
}

impl Plan {
    /// Checks `spec` and decides what to do; `network` is what it gets, `dns` what goes before the host's `resolv.conf`, which is
    /// read. Seccomp is filled in by the caller.
    pub(crate) fn new(spec: &ProcessSpec, network: Network, dns: &DnsConfig) -> Result<Self, ExecError> {
        check_args(&spec.args, &spec.env)?;
        spec.resources.check()?;
        let hostname = if spec.hostname.is_empty() { DEFAULT_HOSTNAME } else { &spec.hostname };
        check_hostname(hostname)?;
        let insecure = spec.security == SecurityMode::Insecure;
        let etc = |name: &str, text: String| GeneratedFile {
            target: format!("/etc/{name}"),
            data: text.into_bytes(),
            uid: 0,
            gid: 0,
            mode: 0o644,
        };
        let files = vec![
            etc("resolv.conf", files::resolv_conf(&spec.dns.over(dns), network)?),
            etc("hosts", files::hosts(hostname, &spec.extra_hosts)?),
        ];
        Ok(Self {
            id: spec.id.as_str().to_owned(),
            root: tree("root", &spec.root)?,
            read_only_root: spec.read_only_root,
            args: spec.args.clone(),
            env: environment(spec.env.iter().chain(&spec.devices.env))?,
            cwd: clean(&absolute("cwd", if spec.cwd.is_empty() { "/" } else { &spec.cwd })?),
            user: no_nul("user", &spec.user)?,
            hostname: hostname.to_owned(),
            network,
            security: spec.security,
            caps: if insecure { CapSet::all() } else { caps::DOCKER_DEFAULT },
            seccomp: Vec::new(),
            files,
            mounts: mounts(spec)?,
            nodes: spec.devices.nodes.clone(),
            groups: spec.devices.groups.clone(),
            masked: if insecure { Vec::new() } else { masked() },
            read_only: if insecure { Vec::new() } else { READ_ONLY.map(String::from).to_vec() },
            resources: spec.resources.clone(),
            cgroup: cgroup(spec)?,
            shm_size: spec.resources.shm_size.filter(|&size| size != 0).unwrap_or(DEFAULT_SHM_SIZE),
            rlimits: spec.ulimits.iter().map(Ulimit::rlimit).collect::<Result<_, _>>()?,
            stubs: spec.stubs,
            talk: Talk::default(),
            no_devices: false,
            runtime: None,
        })
    }
}

/// [`MASKED`], and each CPU's thermal history, which is a covert channel (GHSA-6fw5-f8r9-fgfm).
fn masked() -> Vec<String> {
    static PATHS: std::sync::OnceLock<Vec<String>> = std::sync::OnceLock::new();
    let find = || {
        let cpus = std::fs::read_dir("/sys/devices/system/cpu").into_iter().flatten().flatten();
        let thermal = cpus
            .map(|cpu| cpu.path().join("thermal_throttle"))
            .filter(|path| path.exists())
            .filter_map(|path| path.into_os_string().into_string().ok());
        MASKED.map(String::from).into_iter().chain(thermal).collect()
    };
    PATHS.get_or_init(find).clone()
}

fn invalid(field: &'static str, value: impl Into<String>, reason: &'static str) -> ExecError {
    ExecError::Invalid { field, value: value.into(), reason }
}

fn no_nul(field: &'static str, value: &str) -> Result<String, ExecError> {
    if value.contains('\0') {
        return Err(invalid(field, value, "contains a NUL byte"));
    }
    Ok(value.to_owned())
}

fn absolute(field: &'static str, value: &str) -> Result<String, ExecError> {
    if !value.starts_with('/') {
        return Err(invalid(field, value, "is not an absolute path"));
    }
    no_nul(field, value)
}

fn host_path(field: &'static str, path: &Path) -> Result<PathBuf, ExecError> {
    if !path.is_absolute() {
        return Err(invalid(field, path.to_string_lossy(), "is not an absolute path"));
    }
    if path.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(invalid(field, path.to_string_lossy(), "contains a NUL byte"));
    }
    Ok(path.to_owned())
}

fn check_args(args: &[String], env: &[String]) -> Result<(), ExecError> {
    if args.first().is_none_or(String::is_empty) {
        return Err(invalid("args", "", "names no program"));
    }
    let mut bytes = 0usize;
    for arg in args {
        no_nul("args", arg)?;
        bytes = bytes.saturating_add(arg.len());
    }
    bytes = env.iter().fold(bytes, |bytes, entry| bytes.saturating_add(entry.len()));
    if bytes > MAX_ARGUMENT_BYTES {
        return Err(invalid("args", format!("{bytes} bytes"), "arguments and environment are too long"));
    }
    Ok(())
}

impl Extra {
    /// Checks a further process of a container.
    pub(crate) fn new(process: &ExtraProcess, talk: Talk) -> Result<Self, ExecError> {
        check_args(&process.args, &process.env)?;
        Ok(Self {
            args: process.args.clone(),
            env: environment(&process.env)?,
            cwd: clean(&absolute("cwd", if process.cwd.is_empty() { "/" } else { &process.cwd })?),
            user: no_nul("user", &process.user)?,
            talk,
        })
    }
}

/// Checks each entry; of several with one key the last stays, in the first one's place (as runc has it).
fn environment<'a>(entries: impl IntoIterator<Item = &'a String>) -> Result<Vec<String>, ExecError> {
    let mut places = std::collections::HashMap::new();
    let mut env: Vec<String> = Vec::new();
    for entry in entries {
        let entry = no_nul("env", entry)?;
        let Some((key, _)) = entry.split_once('=').filter(|(key, _)| !key.is_empty()) else {
            return Err(invalid("env", entry, "is not KEY=value"));
        };
        match places.entry(key.to_owned()) {
            std::collections::hash_map::Entry::Occupied(place) => env[*place.get()] = entry,
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(env.len());
                env.push(entry);
            }
        }
    }
    Ok(env)
}

/// Linux takes up to 64 bytes. White space would add lines or names to `/etc/hosts`.
fn check_hostname(name: &str) -> Result<(), ExecError> {
    if name.len() > 64 {
        return Err(invalid("hostname", name, "is longer than 64 bytes"));
    }
    if name.bytes().any(|b| b.is_ascii_whitespace() || b.is_ascii_control() || b == b'#') {
        return Err(invalid("hostname", name, "contains white space or a control character"));
    }
    Ok(())
}

fn tree(field: &'static str, mount: &SnapshotMount) -> Result<Tree, ExecError> {
    Ok(match mount {
        SnapshotMount::Bind { source, read_only } => {
            Tree::Bind { source: host_path(field, source)?, read_only: *read_only }
        }
        SnapshotMount::Overlay { lower, upper, syntax } => {
            if lower.is_empty() {
                return Err(invalid(field, "", "is an overlay without lower directories"));
            }
            Tree::Overlay {
                lower: lower.iter().map(|path| host_path(field, path)).collect::<Result<_, _>>()?,
                upper: match upper {
                    Some(upper) => Some((host_path(field, &upper.upper)?, host_path(field, &upper.work)?)),
                    None => None,
                },
                syntax: *syntax,
            }
        }
    })
}

/// Of several mounts on one target the last stays, in the first one's place, as BuildKit has it.
fn mounts(spec: &ProcessSpec) -> Result<Vec<Mount>, ExecError> {
    let mut mounts: Vec<Mount> = Vec::with_capacity(spec.mounts.len());
    let mut add = |mount: Mount| match mounts.iter_mut().find(|earlier| earlier.target == mount.target) {
        Some(earlier) => *earlier = mount,
        None => mounts.push(mount),
    };
    for mount in &spec.mounts {
        let target = mount_target(&mount.target)?;
        let source = match &mount.kind {
            MountKind::Snapshot { mount, selector, read_only, shared } => MountSource::Tree {
                tree: tree("mount source", mount)?,
                selector: no_nul("mount selector", selector)?,
                read_only: *read_only,
                shared: *shared,
            },
            MountKind::Bind { source, read_only } => MountSource::Host {
                source: host_path("mount source", source)?,
                flags: MountFlags::default().or_read_only(*read_only),
            },
            MountKind::Tmpfs { size } => MountSource::Tmpfs { size: *size },
            MountKind::Secret { data, uid, gid, mode } => {
                if data.len() > MAX_SECRET_BYTES {
                    return Err(invalid("secret for", &target, "is larger than 4 MiB"));
                }
                MountSource::File(GeneratedFile {
                    target: target.clone(),
                    data: data.clone(),
                    uid: *uid,
                    gid: *gid,
                    mode: mode & 0o7777,
                })
            }
            MountKind::SshAgent { socket, uid, gid, mode } => MountSource::Socket {
                source: host_path("ssh socket", socket)?,
                uid: *uid,
                gid: *gid,
                mode: mode & 0o7777,
            },
        };
        add(Mount { target, source });
    }
    for mount in &spec.devices.mounts {
        let target = mount_target(&mount.target)?;
        let source = host_path("mount source", &mount.source)?;
        add(Mount { target, source: MountSource::Host { source, flags: mount.flags } });
    }
    Ok(mounts)
}

fn mount_target(text: &str) -> Result<String, ExecError> {
    let target = clean(&absolute("mount target", text)?);
    if target == "/" {
        return Err(invalid("mount target", text, "is the root directory"));
    }
    // As runc: what programs find below /proc is the kernel's (CVE-2019-16884, CVE-2025-52881).
    if target == "/proc" || target.starts_with("/proc/") {
        return Err(invalid("mount target", text, "is inside /proc"));
    }
    Ok(target)
}

/// The path without `.`, `..`, doubled slashes and a slash at the end. Taken as text, as BuildKit (Go's `path.Join`) takes it.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn cgroup(spec: &ProcessSpec) -> Result<PathBuf, ExecError> {
    let parent =
        spec.cgroup_parent.as_deref().filter(|parent| !parent.is_empty()).unwrap_or(DEFAULT_CGROUP_PARENT);
    let mut path = PathBuf::new();
    for component in Path::new(no_nul("cgroup-parent", parent)?.as_str()).components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => path.push(name),
            _ => return Err(invalid("cgroup-parent", parent, "has a .. in it")),
        }
    }
    path.push(spec.id.as_str());
    Ok(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::MountSpec;

    fn spec() -> ProcessSpec {
        let root = SnapshotMount::Bind { source: "/image".into(), read_only: false };
        ProcessSpec::new(root, ["/bin/true"])
    }

    fn planned(spec: &ProcessSpec) -> Result<Plan, ExecError> {
        Plan::new(spec, Network::Host, &DnsConfig::default())
    }

    /// The field that a changed specification is refused for.
    fn refused(change: impl FnOnce(&mut ProcessSpec)) -> &'static str {
        let mut spec = spec();
        change(&mut spec);
        match planned(&spec) {
            Err(ExecError::Invalid { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn bad_fields_are_refused_by_name() {
        assert_eq!(refused(|spec| spec.args.clear()), "args");
        assert_eq!(refused(|spec| spec.args = vec![String::new()]), "args");
        assert_eq!(refused(|spec| spec.args.push("a\0b".into())), "args");
        assert_eq!(refused(|spec| spec.args.push("x".repeat(MAX_ARGUMENT_BYTES))), "args");
        assert_eq!(refused(|spec| spec.env = vec!["novalue".into()]), "env");
        assert_eq!(refused(|spec| spec.env = vec!["=x".into()]), "env");
        assert_eq!(refused(|spec| spec.cwd = "relative".into()), "cwd");
        assert_eq!(refused(|spec| spec.hostname = "a b".into()), "hostname");
        assert_eq!(refused(|spec| spec.hostname = "x".repeat(65)), "hostname");
        assert_eq!(refused(|spec| spec.cgroup_parent = Some("/a/../../b".into())), "cgroup-parent");
        assert_eq!(
            refused(|spec| spec.root =
                SnapshotMount::Overlay { lower: vec![], upper: None, syntax: OverlaySyntax::Appended }),
            "root"
        );
        assert_eq!(
            refused(|spec| spec.root = SnapshotMount::Bind { source: "x".into(), read_only: false }),
            "root"
        );
        for target in ["", "x", "/", "/..", "/a/.."] {
            let mount = MountSpec { target: target.into(), kind: MountKind::Tmpfs { size: None } };
            assert_eq!(refused(|spec| spec.mounts = vec![mount]), "mount target", "{target}");
        }
    }

    #[test]
    fn the_last_of_equal_variables_counts_in_the_firsts_place() {
        let env = ["A=1", "B=2", "A=3"].map(String::from);
        assert_eq!(environment(&env).unwrap(), ["A=3", "B=2"]);
    }

    #[test]
    fn cgroups_are_below_their_parent() {
        let mut spec = spec();
        let id = spec.id.to_string();
        assert_eq!(planned(&spec).unwrap().cgroup, Path::new("lapstrake").join(&id));
        spec.cgroup_parent = Some("/a//./b/".into());
        assert_eq!(planned(&spec).unwrap().cgroup, Path::new("a/b").join(&id));
    }

    #[test]
    fn a_plan_crosses_unchanged() {
        let mut spec = spec();
        spec.mounts = vec![MountSpec {
            target: "/s".into(),
            kind: MountKind::Secret { data: vec![0, 255, 10], uid: 1, gid: 2, mode: 0o400 },
        }];
        let plan = planned(&spec).unwrap();
        let text = serde_json::to_string(&plan).unwrap();
        let back: Plan = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&back).unwrap(), text);
    }

    proptest! {
        #[test]
        fn cleaned_paths_are_absolute_and_plain(path in "/[a./]{0,20}") {
            let cleaned = clean(&path);
            prop_assert!(cleaned.starts_with('/'));
            prop_assert!(cleaned == "/" || cleaned.split('/').skip(1).all(|part| !part.is_empty() && part != "." && part != ".."));
            prop_assert_eq!(clean(&cleaned), cleaned.clone());
        }
    }
}
