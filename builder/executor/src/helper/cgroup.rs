//! Cgroups, version 1 and 2: limits for a run, and the view of them inside the container.

use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use lapstrake_layerstore_store::in_user_namespace;
use rustix::{
    fs::{CWD, Mode, OFlags},
    io::Errno,
    mount::MountAttrFlags,
};

use super::{
    devices::{self, DeviceGate},
    mounts,
};
use crate::{
    Resources, SecurityMode,
    plan::Plan,
    wire::{Failure, Step},
};

/// One mounted cgroup hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// Where it is mounted on the host.
    pub(super) mount: PathBuf,
    /// Version 1: its controllers (`cpu`, `name=systemd`). Version 2: `None`.
    pub(super) controllers: Option<Vec<String>>,
    /// This process's cgroup in it, without a slash in front.
    pub(super) own: PathBuf,
}

impl Hierarchy {
    fn has(&self, controller: &str) -> bool {
        self.controllers.as_ref().is_some_and(|all| all.iter().any(|one| one == controller))
    }
}

/// The hierarchies of this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Hierarchies(pub(super) Vec<Hierarchy>);

impl Hierarchies {
    /// Those mounted in this mount namespace.
    pub(super) fn find() -> io::Result<Self> {
        Ok(Self::parse(
            &fs::read_to_string("/proc/self/mountinfo")?,
            &fs::read_to_string("/proc/self/cgroup")?,
        ))
    }

    /// From the texts of `/proc/self/mountinfo` and `/proc/self/cgroup` (see proc(5) and cgroups(7)).
    fn parse(mountinfo: &str, cgroup: &str) -> Self {
        let mut found: Vec<Hierarchy> = Vec::new();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let (left, right): (Vec<_>, Vec<_>) = (left.split(' ').collect(), right.split(' ').collect());
            let (Some(&root), Some(&mount), [kind, _, options, ..]) =
                (left.get(3), left.get(4), right.as_slice())
            else {
                continue;
            };
            let own = |matches: &dyn Fn(&str) -> bool| {
                cgroup.lines().find_map(|line| {
                    let mut fields = line.splitn(3, ':');
                    let controllers = fields.nth(1)?;
                    let path = fields.next()?;
                    matches(controllers).then(|| {
                        PathBuf::from(path.strip_prefix(root).unwrap_or(path).trim_start_matches('/'))
                    })
                })
            };
            let hierarchy = match *kind {
                "cgroup2" => own(&str::is_empty).map(|own| (None, own)),
                "cgroup" => {
                    // Super options are flags like rw, then the controllers: those that /proc/self/cgroup knows count.
                    let options: Vec<&str> = options.split(',').collect();
                    own(&|controllers: &str| {
                        !controllers.is_empty() && controllers.split(',').all(|one| options.contains(&one))
                    })
                    .map(|own| {
                        let known = |one: &&&str| {
                            cgroup.lines().any(|line| {
                                line.split(':').nth(1).is_some_and(|all| all.split(',').any(|c| c == **one))
                            })
                        };
                        (Some(options.iter().filter(known).map(ToString::to_string).collect()), own)
                    })
                }
                _ => None,
            };
            if let Some((controllers, own)) = hierarchy
                && !found.iter().any(|other| other.controllers == controllers)
            {
                found.push(Hierarchy { mount: PathBuf::from(mount), controllers, own });
            }
        }
        Self(found)
    }

    /// The version 2 hierarchy.
    pub(super) fn v2(&self) -> Option<&Hierarchy> {
        self.0.iter().find(|hierarchy| hierarchy.controllers.is_none())
    }

    /// The version 1 hierarchy that has `controller`.
    pub(super) fn v1(&self, controller: &str) -> Option<&Hierarchy> {
        self.0.iter().find(|hierarchy| hierarchy.has(controller))
    }

    /// Whether memory and swap together can be limited (`swapaccount`).
    pub(super) fn limit_swap(&self) -> bool {
        match self.v1("memory") {
            Some(memory) => memory.mount.join("memory.memsw.limit_in_bytes").exists(),
            None => self.v2().is_some(),
        }
    }

    /// Whether version 2 is all there is.
    pub(super) fn is_pure_v2(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(|hierarchy| hierarchy.controllers.is_none())
    }
}

/// Cgroup under which everything of ours is, unless a run asks for another parent.
pub(super) const PARENT: &str = "lapstrake";

/// This helper's mark on its cgroups, by which the next one knows what a killed one has left: pid namespace and pid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owner {
    namespace: u64,
    pid: u32,
}

impl Owner {
    /// This process.
    pub(super) fn current() -> Self {
        let namespace = fs::metadata("/proc/self/ns/pid").map_or(0, |namespace| namespace.ino());
        Self { namespace, pid: std::process::id() }
    }

    /// From the end of a cgroup's name.
    fn of(name: &str) -> Option<Self> {
        let (_, mark) = name.rsplit_once('@')?;
        let (namespace, pid) = mark.split_once('.')?;
        Some(Self { namespace: namespace.parse().ok()?, pid: pid.parse().ok()? })
    }

    /// Whether it is a helper that this process can see to be dead.
    fn is_dead(&self, seen_by: &Self) -> bool {
        let may_live = || may_be_helper(&fs::read(format!("/proc/{}/cmdline", self.pid)));
        self.namespace == seen_by.namespace && self.pid != seen_by.pid && !may_live()
    }

    /// Name of the helper's own cgroup.
    pub(super) fn helper_cgroup(&self) -> String {
        format!("helper@{}.{}", self.namespace, self.pid)
    }

    /// Path of a run's cgroup.
    pub(super) fn run_cgroup(&self, path: &Path) -> PathBuf {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!("@{}.{}", self.namespace, self.pid));
        path.with_file_name(name)
    }
}

/// Whether a process may be a helper, by its command line: one that cannot be read says nothing, unless there is no such process (`ESRCH`: it ended
/// while it was being read).
fn may_be_helper(command_line: &io::Result<Vec<u8>>) -> bool {
    match command_line {
        Ok(line) => line.starts_with(super::HELPER_NAME.as_bytes()),
        Err(error) => {
            error.kind() != io::ErrorKind::NotFound
                && error.raw_os_error() != Some(Errno::SRCH.raw_os_error())
        }
    }
}

/// Ends and removes what helpers that were killed have left. (Processes are left only if they had disarmed their death
/// signal.)
pub(super) fn sweep(hierarchies: &Hierarchies, owner: &Owner) {
    for hierarchy in &hierarchies.0 {
        for entry in fs::read_dir(hierarchy.mount.join(PARENT)).into_iter().flatten().flatten() {
            if entry.file_name().to_str().and_then(Owner::of).is_none_or(|left| !left.is_dead(owner)) {
                continue;
            }
            for _ in 0..50 {
                for pid in fs::read_to_string(entry.path().join("cgroup.procs")).unwrap_or_default().lines() {
                    if let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw) {
                        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                    }
                }
                remove_below(&entry.path());
                if fs::remove_dir(entry.path()).is_ok() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        }
    }
}

/// Whether a list of allowed devices is to be held for the run.
fn restricts(plan: &Plan, gate: &DeviceGate) -> bool {
    matches!((plan.security, gate), (SecurityMode::Sandbox, DeviceGate::Cgroup { .. }))
}

/// The cgroups of one run. Must be ended with [`RunCgroups::remove`].
#[derive(Debug, Default)]
pub(super) struct RunCgroups {
    /// Directories of the run's own, by hierarchy's mount point.
    dirs: Vec<(PathBuf, PathBuf)>,
    /// File that counts OOM kills.
    oom: Option<PathBuf>,
}

impl RunCgroups {
    /// Makes cgroups with the plan's limits. Without limits there are none on version 1 (joining costs milliseconds per
    /// hierarchy), and on version 2 none if they cannot be made.
    pub(super) fn create(plan: &Plan, hierarchies: &Hierarchies, gate: &DeviceGate) -> Result<Self, Failure> {
        let mut cgroups = Self::default();
        match cgroups.fill(plan, hierarchies, gate) {
            Ok(()) => Ok(cgroups),
            Err(failure) => {
                cgroups.remove();
                Err(match failure {
                    Failure::Limit { limit, reason } if in_user_namespace() => {
                        let reason = format!(
                            "{reason}; an ordinary user's daemon has no cgroups to limit, root's has"
                        );
                        Failure::Limit { limit, reason }
                    }
                    failure => failure,
                })
            }
        }
    }

    fn fill(&mut self, plan: &Plan, hierarchies: &Hierarchies, gate: &DeviceGate) -> Result<(), Failure> {
        let resources = &plan.resources;
        if hierarchies.is_pure_v2() {
            let v2 = hierarchies.v2().expect("a pure version 2 machine has version 2");
            match self.enter(v2, &plan.cgroup) {
                Ok(dir) => {
                    // The run leaves the helper's cgroup for this one, and must not leave its device list behind.
                    if restricts(plan, gate) {
                        devices::restrict_v2(&dir, &plan.nodes).step(|| "restrict devices")?;
                    }
                    return self.limit_v2(v2, &dir, &plan.cgroup, resources);
                }
                Err(_) if resources.need_no_cgroup() && plan.nodes.is_empty() => return Ok(()),
                Err(error) => {
                    return Err(Failure::Limit {
                        limit: "cgroup".to_owned(),
                        reason: format!("make {}: {error}", plan.cgroup.display()),
                    });
                }
            }
        }
        if !plan.nodes.is_empty() && restricts(plan, gate) {
            self.allow_devices(plan, hierarchies)?;
        }
        if plan.security == SecurityMode::Insecure {
            self.enter_writable(plan, hierarchies);
        }
        for limit in v1_limits(resources) {
            let fail = |reason: String| Failure::Limit { limit: limit.name.to_owned(), reason };
            let hierarchy = hierarchies
                .v1(limit.controller)
                .ok_or_else(|| fail(format!("this machine has no cgroup controller {}", limit.controller)))?;
            let dir =
                self.enter(hierarchy, &plan.cgroup).map_err(|error| fail(format!("make cgroup: {error}")))?;
            fs::write(dir.join(limit.file), &limit.value)
                .map_err(|error| fail(format!("set {} to {}: {error}", limit.file, limit.value)))?;
            if limit.controller == "memory" {
                self.oom = Some(dir.join("memory.oom_control"));
            }
        }
        Ok(())
    }

    /// Version 1 cgroups of the own of a run that may write to cgroups: those that it makes are below these, and go with them. Where there can be none, it
    /// sees the helper's, as every other run does.
    fn enter_writable(&mut self, plan: &Plan, hierarchies: &Hierarchies) {
        let of_version_1 = hierarchies.0.iter().filter(|hierarchy| hierarchy.controllers.is_some());
        for hierarchy in of_version_1.filter(|hierarchy| !hierarchy.has("devices")) {
            if self.enter(hierarchy, &plan.cgroup).is_err() {
                // Not to be joined half-made.
                self.dirs.retain(|(mount, dir)| *mount != hierarchy.mount || fs::remove_dir(dir).is_err());
            }
        }
    }

    /// A device cgroup of the run's own, as what it may use is more than what the helper may.
    fn allow_devices(&mut self, plan: &Plan, hierarchies: &Hierarchies) -> Result<(), Failure> {
        if let Some(v1) = hierarchies.v1("devices") {
            let dir = self.enter(v1, &plan.cgroup).step(|| "make device cgroup")?;
            devices::restrict_v1(&dir, &plan.nodes).step(|| "allow devices")
        } else if let Some(v2) = hierarchies.v2() {
            let dir = self.enter(v2, &plan.cgroup).step(|| "make device cgroup")?;
            devices::restrict_v2(&dir, &plan.nodes).step(|| "allow devices")
        } else {
            Ok(())
        }
    }

    /// The run's directory in a hierarchy, made when missing.
    fn enter(&mut self, hierarchy: &Hierarchy, relative: &Path) -> io::Result<PathBuf> {
        let dir = hierarchy.mount.join(relative);
        if self.dirs.iter().any(|(_, made)| *made == dir) {
            return Ok(dir);
        }
        let mut at = hierarchy.mount.clone();
        for part in relative.parent().into_iter().flat_map(Path::components) {
            at.push(part);
            make_dir(&at)?;
            if hierarchy.has("cpuset") {
                inherit_cpuset(&at)?;
            }
        }
        builder().create(&dir)?;
        self.dirs.push((hierarchy.mount.clone(), dir.clone()));
        if hierarchy.has("cpuset") {
            inherit_cpuset(&dir)?;
        }
        Ok(dir)
    }

    fn limit_v2(
        &mut self,
        v2: &Hierarchy,
        dir: &Path,
        relative: &Path,
        resources: &Resources,
    ) -> Result<(), Failure> {
        for limit in v2_limits(resources) {
            let fail = |reason: String| Failure::Limit { limit: limit.name.to_owned(), reason };
            // A controller reaches a cgroup when every one above hands it down.
            let mut at = v2.mount.clone();
            for part in relative.components() {
                fs::write(at.join("cgroup.subtree_control"), format!("+{}", limit.controller)).map_err(
                    |error| {
                        fail(format!(
                            "enable cgroup controller {} in {}: {error}",
                            limit.controller,
                            at.display()
                        ))
                    },
                )?;
                at.push(part);
            }
            fs::write(dir.join(limit.file), &limit.value)
                .map_err(|error| fail(format!("set {} to {}: {error}", limit.file, limit.value)))?;
        }
        self.oom = Some(dir.join("memory.events"));
        Ok(())
    }

    /// Moves the calling process into all of them.
    pub(super) fn join(&self) -> Result<(), Failure> {
        for (_, dir) in &self.dirs {
            fs::write(dir.join("cgroup.procs"), "0").step(|| format!("join cgroup {}", dir.display()))?;
        }
        Ok(())
    }

    /// The same for those that are there: a runtime decides which it makes.
    pub(super) fn join_existing(&self) -> Result<(), Failure> {
        for (_, dir) in self.dirs.iter().filter(|(_, dir)| dir.is_dir()) {
            fs::write(dir.join("cgroup.procs"), "0").step(|| format!("join cgroup {}", dir.display()))?;
        }
        Ok(())
    }

    /// The version 2 cgroup to be cloned into, if there is one.
    pub(super) fn v2_directory(&self, hierarchies: &Hierarchies) -> Option<OwnedFd> {
        let mount = &hierarchies.v2()?.mount;
        let (_, dir) = self.dirs.iter().find(|(of, _)| of == mount)?;
        rustix::fs::openat(CWD, dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()
    }

    /// Whether the kernel has killed a process of the run for want of memory.
    pub(super) fn oom_killed(&self) -> bool {
        self.oom.as_ref().and_then(|file| fs::read_to_string(file).ok()).is_some_and(|text| {
            text.lines().any(|line| {
                line.strip_prefix("oom_kill ")
                    .is_some_and(|count| count.trim().parse::<u64>().is_ok_and(|n| n > 0))
            })
        })
    }

    /// Removes them; they are empty. What the kernel still holds (for a moment after the last process) is kept for the next call.
    /// Returns whether all are gone.
    pub(super) fn remove(&mut self) -> bool {
        self.dirs.retain(|(_, dir)| {
            remove_below(dir);
            match fs::remove_dir(dir) {
                Ok(()) => false,
                Err(error) => error.kind() != io::ErrorKind::NotFound,
            }
        });
        self.dirs.is_empty()
    }

    /// Adopts what an external runtime makes, so that it is removed.
    pub(super) fn adopt(plan: &Plan, hierarchies: &Hierarchies) -> Self {
        let mut cgroups = Self::default();
        for hierarchy in &hierarchies.0 {
            let dir = hierarchy.mount.join(&plan.cgroup);
            if hierarchy.has("memory") {
                cgroups.oom = Some(dir.join("memory.oom_control"));
            } else if hierarchies.is_pure_v2() {
                cgroups.oom = Some(dir.join("memory.events"));
            }
            cgroups.dirs.push((hierarchy.mount.clone(), dir));
        }
        cgroups
    }

    /// What the container is to see.
    pub(super) fn view(&self, hierarchies: &Hierarchies) -> CgroupView {
        CgroupView(
            hierarchies
                .0
                .iter()
                .map(|hierarchy| {
                    let own = self.dirs.iter().find(|(mount, _)| *mount == hierarchy.mount);
                    let dir =
                        own.map_or_else(|| hierarchy.mount.join(&hierarchy.own), |(_, dir)| dir.clone());
                    let source = rustix::fs::openat(
                        CWD,
                        &dir,
                        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                        Mode::empty(),
                    );
                    (hierarchy.controllers.clone(), source.ok())
                })
                .collect(),
        )
    }
}

/// Makes cgroups that only this process's user changes: the helper has no umask.
fn builder() -> fs::DirBuilder {
    let mut builder = fs::DirBuilder::new();
    builder.mode(0o755);
    builder
}

/// Makes a cgroup and those above it.
pub(super) fn make_all(dir: &Path) -> io::Result<()> {
    builder().recursive(true).create(dir)
}

fn make_dir(dir: &Path) -> io::Result<()> {
    match builder().create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Cgroups that the run itself has made inside its own, deepest first.
fn remove_below(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_below(&entry.path());
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// A new version 1 cpuset has no CPUs and takes no process until it gets some.
fn inherit_cpuset(dir: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if fs::read_to_string(dir.join(file))?.trim().is_empty()
            && let Some(parent) = dir.parent()
        {
            fs::write(dir.join(file), fs::read_to_string(parent.join(file))?.trim())?;
        }
    }
    Ok(())
}

/// One value to write.
struct Limit {
    name: &'static str,
    controller: &'static str,
    file: &'static str,
    value: String,
}

fn limit(name: &'static str, controller: &'static str, file: &'static str, value: impl ToString) -> Limit {
    Limit { name, controller, file, value: value.to_string() }
}

fn v1_limits(resources: &Resources) -> Vec<Limit> {
    let mut limits = Vec::new();
    let mut add = |limit: Option<Limit>| limits.extend(limit);
    add(resources.memory.map(|value| limit("memory", "memory", "memory.limit_in_bytes", value)));
    add(resources
        .memory_swap
        .map(|value| limit("memory-swap", "memory", "memory.memsw.limit_in_bytes", value)));
    add(resources.cpu_shares.map(|value| limit("cpu-shares", "cpu", "cpu.shares", value)));
    add(resources.cpu_period.map(|value| limit("cpu-period", "cpu", "cpu.cfs_period_us", value)));
    add(resources.cpu_quota.map(|value| limit("cpu-quota", "cpu", "cpu.cfs_quota_us", value)));
    add(resources.cpuset_cpus.as_ref().map(|value| limit("cpuset-cpus", "cpuset", "cpuset.cpus", value)));
    add(resources.cpuset_mems.as_ref().map(|value| limit("cpuset-mems", "cpuset", "cpuset.mems", value)));
    add(resources.pids.map(|value| limit("pids", "pids", "pids.max", value)));
    limits
}

fn v2_limits(resources: &Resources) -> Vec<Limit> {
    let mut limits = Vec::new();
    let mut add = |limit: Option<Limit>| limits.extend(limit);
    add(resources.memory.map(|value| limit("memory", "memory", "memory.max", value)));
    add(resources.memory_swap.map(|both| {
        let value = u64::try_from(both).map_or_else(
            |_| "max".to_owned(),
            |both| both.saturating_sub(resources.memory.unwrap_or(0)).to_string(),
        );
        limit("memory-swap", "memory", "memory.swap.max", value)
    }));
    // The conversion that systemd, runc and crun have agreed on: 2…262144 to 1…10000.
    add(resources.cpu_shares.map(|shares| {
        limit("cpu-shares", "cpu", "cpu.weight", 1 + ((shares.clamp(2, 262_144) - 2) * 9999) / 262_142)
    }));
    if resources.cpu_quota.is_some() || resources.cpu_period.is_some() {
        let quota = match resources.cpu_quota {
            Some(quota) if quota > 0 => quota.to_string(),
            _ => "max".to_owned(),
        };
        let value = format!("{quota} {}", resources.cpu_period.unwrap_or(100_000));
        add(Some(limit("cpu-quota", "cpu", "cpu.max", value)));
    }
    add(resources.cpuset_cpus.as_ref().map(|value| limit("cpuset-cpus", "cpuset", "cpuset.cpus", value)));
    add(resources.cpuset_mems.as_ref().map(|value| limit("cpuset-mems", "cpuset", "cpuset.mems", value)));
    add(resources.pids.map(|value| limit("pids", "pids", "pids.max", value)));
    limits
}

/// What is to be seen below `/sys/fs/cgroup`: controllers, and the directory that shows them.
pub(super) struct CgroupView(Vec<(Option<Vec<String>>, Option<OwnedFd>)>);

impl CgroupView {
    /// Mounts the view into a sysfs. A machine without cgroups has no such directory there.
    pub(super) fn mount(&self, sys: BorrowedFd<'_>, read_only: MountAttrFlags) -> Result<(), Failure> {
        let Ok(target) = rustix::fs::openat(
            sys,
            "fs/cgroup",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        ) else {
            return Ok(());
        };
        if let [(None, Some(v2))] = self.0.as_slice() {
            return bind(v2.as_fd(), target.as_fd(), read_only).step(|| "mount cgroup");
        }
        // As runc: a small file system with a directory per version 1 hierarchy, and links for each controller of several.
        let fs = mounts::new("tmpfs", &[("mode", "0755")], mounts::LOCKED)?;
        mounts::attach(fs.as_fd(), target.as_fd()).step(|| "mount /sys/fs/cgroup")?;
        for (controllers, source) in &self.0 {
            let (Some(controllers), Some(source)) = (controllers, source) else { continue };
            let joined = controllers.join(",");
            let name = joined.strip_prefix("name=").unwrap_or(&joined);
            let show = || -> io::Result<()> {
                rustix::fs::mkdirat(&fs, name, Mode::from_raw_mode(0o755))?;
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let target = rustix::fs::openat(&fs, name, flags, Mode::empty())?;
                bind(source.as_fd(), target.as_fd(), read_only)?;
                for one in controllers.iter().filter(|_| controllers.len() > 1) {
                    rustix::fs::symlinkat(name, &fs, one.as_str())?;
                }
                Ok(())
            };
            show().step(|| format!("mount cgroup {name}"))?;
        }
        mounts::restrict(fs.as_fd(), read_only, false).step(|| "make /sys/fs/cgroup read-only")
    }
}

fn bind(source: BorrowedFd<'_>, target: BorrowedFd<'_>, read_only: MountAttrFlags) -> io::Result<()> {
    let copy = mounts::copy(source, false)?;
    mounts::restrict(copy.as_fd(), mounts::LOCKED | read_only, false)?;
    Ok(mounts::attach(copy.as_fd(), target)?)
}

#[cfg(test)]
mod tests;
