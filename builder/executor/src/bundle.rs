//! `config.json` of an OCI bundle (runtime-spec 1.0): the plan in a runtime's words.

use std::path::{Path, PathBuf};

use oci_spec::{
    OciSpecError,
    runtime::{
        Capabilities, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxCpuBuilder, LinuxDevice,
        LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxMemoryBuilder,
        LinuxNamespaceBuilder, LinuxNamespaceType, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder,
        Mount, MountBuilder, PosixRlimitBuilder, PosixRlimitType, Process, ProcessBuilder, RootBuilder, Spec,
        SpecBuilder, UserBuilder,
    },
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    DeviceNode, MountFlags, NodeKind, SecurityMode,
    plan::{Network, Plan},
    user::Identity,
};

/// A mount that is ready at a path.
pub(crate) struct BundleMount {
    pub(crate) target: String,
    pub(crate) source: PathBuf,
    pub(crate) flags: MountFlags,
}

/// The configuration. `root` is the mounted root file system.
pub(crate) fn config(
    plan: &Plan,
    identity: &Identity,
    root: &Path,
    mounts: &[BundleMount],
) -> Result<Spec, OciSpecError> {
    let insecure = plan.security == SecurityMode::Insecure;
    let mut namespaces = vec![
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Mount,
    ];
    namespaces.extend((plan.network == Network::Empty).then_some(LinuxNamespaceType::Network));
    let namespace = |kind| LinuxNamespaceBuilder::default().typ(kind).build();
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces.into_iter().map(namespace).collect::<Result<Vec<_>, _>>()?)
        .cgroups_path(Path::new("/").join(&plan.cgroup))
        .masked_paths(plan.masked.clone())
        .readonly_paths(plan.read_only.clone())
        .resources(resources(plan)?);
    let mut nodes = if insecure { insecure_devices()? } else { Vec::new() };
    for node in &plan.nodes {
        nodes.retain(|other| other.path() != Path::new(&node.path));
        nodes.push(device(node, identity)?);
    }
    if !nodes.is_empty() {
        linux = linux.devices(nodes);
    }
    if let Some(seccomp) = plan.runtime.as_ref().and_then(|runtime| runtime.seccomp.clone()) {
        linux = linux.seccomp(seccomp);
    }
    SpecBuilder::default()
        .version("1.0.2")
        .hostname(plan.hostname.clone())
        .root(RootBuilder::default().path(root).readonly(plan.read_only_root).build()?)
        .process(process(plan, identity)?)
        .mounts(all_mounts(plan, mounts)?)
        .linux(linux.build()?)
        .build()
}

/// A value of ours that has the same form in JSON.
pub(crate) fn in_oci<T: DeserializeOwned>(ours: &impl Serialize) -> Result<T, OciSpecError> {
    Ok(serde_json::from_value(serde_json::to_value(ours)?)?)
}

fn process(plan: &Plan, identity: &Identity) -> Result<Process, OciSpecError> {
    let mut env = plan.env.clone();
    if !env.iter().any(|entry| entry.strip_prefix("HOME=").is_some_and(|home| !home.is_empty())) {
        env.retain(|entry| entry != "HOME=");
        env.push(format!("HOME={}", identity.home));
    }
    let caps = plan.caps.names().map(|name| in_oci(&name)).collect::<Result<Capabilities, _>>()?;
    let inherited =
        if plan.security == SecurityMode::Insecure { caps.clone() } else { Capabilities::default() };
    let rlimits = plan.rlimits.iter().map(|limit| {
        let kind: PosixRlimitType = in_oci(&format!("RLIMIT_{}", limit.name.to_ascii_uppercase()))?;
        PosixRlimitBuilder::default().typ(kind).soft(limit.soft).hard(limit.hard).build()
    });
    let user = UserBuilder::default()
        .uid(identity.uid)
        .gid(identity.gid)
        .additional_gids(identity.groups.clone())
        .umask(0o022u32);
    let capabilities = LinuxCapabilitiesBuilder::default()
        .bounding(caps.clone())
        .effective(caps.clone())
        .permitted(caps)
        .inheritable(inherited.clone())
        .ambient(inherited);
    ProcessBuilder::default()
        .terminal(plan.talk.terminal.is_some())
        .user(user.build()?)
        .args(plan.args.clone())
        .env(env)
        .cwd(&plan.cwd)
        .no_new_privileges(false)
        .capabilities(capabilities.build()?)
        .rlimits(rlimits.collect::<Result<Vec<_>, OciSpecError>>()?)
        .build()
}

fn all_mounts(plan: &Plan, mounts: &[BundleMount]) -> Result<Vec<Mount>, OciSpecError> {
    let read_only = if plan.security == SecurityMode::Insecure { "rw" } else { "ro" };
    let shm_size = format!("size={}", plan.shm_size);
    let mount = |target: &str, kind: &str, source: &Path, options: &[&str]| {
        let options: Vec<_> = options.iter().map(|&option| option.to_owned()).collect();
        MountBuilder::default().destination(target).typ(kind).source(source).options(options).build()
    };
    let own = |target, kind, source: &str, options: &[&str]| mount(target, kind, Path::new(source), options);
    let mut all = vec![
        own("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])?,
        own("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"])?,
        own(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        )?,
        own("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &shm_size])?,
        own("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"])?,
        own("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", read_only])?,
        own("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", read_only])?,
    ];
    for BundleMount { target, source, flags } in mounts {
        let mut options = vec!["rbind"];
        options.extend(flags.read_only.then_some("ro"));
        options.extend(flags.no_suid.then_some("nosuid"));
        options.extend(flags.no_dev.then_some("nodev"));
        options.extend(flags.no_exec.then_some("noexec"));
        all.push(mount(target, "bind", source, &options)?);
    }
    Ok(all)
}

/// Limits and the device list.
fn resources(plan: &Plan) -> Result<LinuxResources, OciSpecError> {
    let limits = &plan.resources;
    // Runtimes add Docker's devices to an empty list by themselves.
    let all_devices =
        LinuxDeviceCgroupBuilder::default().allow(plan.security == SecurityMode::Insecure).access("rwm");
    let mut devices = vec![all_devices.build()?];
    for node in &plan.nodes {
        devices.extend(device_rule(node)?);
    }
    let signed = |limit: u64| i64::try_from(limit).unwrap_or(i64::MAX);
    let mut memory = LinuxMemoryBuilder::default();
    if let Some(limit) = limits.memory {
        memory = memory.limit(signed(limit));
    }
    if let Some(limit) = limits.memory_swap {
        memory = memory.swap(limit);
    }
    let mut cpu = LinuxCpuBuilder::default();
    if let Some(shares) = limits.cpu_shares {
        cpu = cpu.shares(shares);
    }
    if let Some(period) = limits.cpu_period {
        cpu = cpu.period(period);
    }
    if let Some(quota) = limits.cpu_quota {
        cpu = cpu.quota(quota);
    }
    if let Some(cpus) = &limits.cpuset_cpus {
        cpu = cpu.cpus(cpus);
    }
    if let Some(mems) = &limits.cpuset_mems {
        cpu = cpu.mems(mems);
    }
    let mut all = LinuxResourcesBuilder::default().devices(devices).memory(memory.build()?).cpu(cpu.build()?);
    if let Some(limit) = limits.pids {
        all = all.pids(LinuxPidsBuilder::default().limit(signed(limit)).build()?);
    }
    all.build()
}

fn device(node: &DeviceNode, identity: &Identity) -> Result<LinuxDevice, OciSpecError> {
    let (uid, gid) = node.owner(identity);
    LinuxDeviceBuilder::default()
        .typ(device_type(node.kind))
        .path(&node.path)
        .major(node.major)
        .minor(node.minor)
        .file_mode(node.mode)
        .uid(uid)
        .gid(gid)
        .build()
}

fn device_type(kind: NodeKind) -> LinuxDeviceType {
    match kind {
        NodeKind::Character => LinuxDeviceType::C,
        NodeKind::Block => LinuxDeviceType::B,
        NodeKind::Pipe => LinuxDeviceType::P,
    }
}

/// That the device may be used; a pipe may be anyway.
fn device_rule(node: &DeviceNode) -> Result<Option<LinuxDeviceCgroup>, OciSpecError> {
    if node.kind == NodeKind::Pipe {
        return Ok(None);
    }
    LinuxDeviceCgroupBuilder::default()
        .allow(true)
        .typ(device_type(node.kind))
        .major(node.major)
        .minor(node.minor)
        .access(&node.access)
        .build()
        .map(Some)
}

/// The same as the native executor's.
fn insecure_devices() -> Result<Vec<LinuxDevice>, OciSpecError> {
    let device = |kind, path: &str, major: i64, minor: i64| {
        LinuxDeviceBuilder::default()
            .typ(kind)
            .path(path)
            .major(major)
            .minor(minor)
            .file_mode(0o666u32)
            .uid(0u32)
            .gid(0u32)
            .build()
    };
    let character = [
        ("/dev/kmsg", 1, 11),
        ("/dev/cuse", 10, 203),
        ("/dev/fuse", 10, 229),
        ("/dev/kvm", 10, 232),
        ("/dev/net/tun", 10, 200),
        ("/dev/loop-control", 10, 237),
    ];
    let loops = (0..8).map(|minor| device(LinuxDeviceType::B, &format!("/dev/loop{minor}"), 7, minor));
    character
        .iter()
        .map(|&(path, major, minor)| device(LinuxDeviceType::C, path, major, minor))
        .chain(loops)
        .collect()
}
