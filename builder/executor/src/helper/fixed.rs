//! The mounts that every container has: `/proc`, `/dev` and what is in it, `/sys` and the cgroup tree; then Docker's masks.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, makedev},
    io::Errno,
    mount::MountAttrFlags,
};

use super::{cgroup::CgroupView, mounts, rootfs::real_directory};
use crate::{
    DeviceNode, NodeKind, SecurityMode,
    plan::Plan,
    user::Identity,
    wire::{Failure, Step},
};

/// Docker's devices: name, major, minor.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// BuildKit's further devices of insecure containers.
const INSECURE_DEVICES: [(&str, u32, u32); 6] = [
    ("kmsg", 1, 11),
    ("cuse", 10, 203),
    ("fuse", 10, 229),
    ("kvm", 10, 232),
    ("net/tun", 10, 200),
    ("loop-control", 10, 237),
];

/// Links that the OCI runtime specification asks for.
const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

/// The file systems that still have to be restricted once everything is mounted.
pub(super) struct Fixed {
    proc: OwnedFd,
    sys: OwnedFd,
    dev: OwnedFd,
}

/// Mounts them all below `root`.
pub(super) fn mount(
    plan: &Plan,
    identity: &Identity,
    root: BorrowedFd<'_>,
    cgroups: &CgroupView,
) -> Result<Fixed, Failure> {
    let proc = mounts::new("proc", &[], mounts::LOCKED)?;
    mounts::attach(proc.as_fd(), real_directory(root, "proc")?.as_fd()).step(|| "mount on /proc")?;
    let (dev, lacking) = devices(plan, identity)?;
    mounts::attach(dev.as_fd(), real_directory(root, "dev")?.as_fd()).step(|| "mount on /dev")?;
    for name in lacking {
        borrow_node(dev.as_fd(), &name).step(|| format!("mount the machine's /dev/{name}"))?;
    }
    in_dev(plan, dev.as_fd())?;
    // The container's own, so that nothing of the host's /dev stays open in it.
    rustix::fs::openat(&dev, "null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(std::io::Error::from)
        .and_then(|null| Ok(nix::unistd::dup2_stdin(null)?))
        .step(|| "set standard input")?;
    let writable = plan.security == SecurityMode::Insecure;
    let read_only = if writable { MountAttrFlags::empty() } else { MountAttrFlags::MOUNT_ATTR_RDONLY };
    let sys = sysfs(read_only)?;
    mounts::attach(sys.as_fd(), real_directory(root, "sys")?.as_fd()).step(|| "mount on /sys")?;
    cgroups.mount(sys.as_fd(), read_only)?;
    Ok(Fixed { proc, sys, dev })
}

/// The kernel's objects. Root of a user namespace mounts them only with a network namespace of its own; where there is none, they are the machine's as they
/// are mounted there, with nothing of them writable.
fn sysfs(read_only: MountAttrFlags) -> Result<OwnedFd, Failure> {
    match mounts::new("sysfs", &[], mounts::LOCKED | read_only) {
        Err(Failure::Setup { errno: libc::EPERM, .. }) => {
            let sys = mounts::host(std::path::Path::new("/sys"))?;
            mounts::restrict(sys.as_fd(), mounts::LOCKED | MountAttrFlags::MOUNT_ATTR_RDONLY, true)
                .step(|| "mount /sys read-only")?;
            Ok(sys)
        }
        made => made,
    }
}

/// `/dev` itself, with device nodes and links; and names of nodes that root of a user namespace may not make.
fn devices(plan: &Plan, identity: &Identity) -> Result<(OwnedFd, Vec<String>), Failure> {
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_STRICTATIME;
    let dev = mounts::new("tmpfs", &[("mode", "0755"), ("size", "65536k")], attributes)?;
    let mut lacking = Vec::new();
    let mut fill = || -> rustix::io::Result<()> {
        let mut node = |name: &str, kind, major, minor| -> rustix::io::Result<()> {
            let mode = Mode::from_raw_mode(0o666);
            match rustix::fs::mknodat(&dev, name, kind, mode, makedev(major, minor)) {
                Err(Errno::PERM) => {
                    lacking.push(name.to_owned());
                    Ok(())
                }
                made => made,
            }
        };
        for (name, major, minor) in DEVICES {
            node(name, FileType::CharacterDevice, major, minor)?;
        }
        if plan.security == SecurityMode::Insecure {
            rustix::fs::mkdirat(&dev, "net", Mode::from_raw_mode(0o755))?;
            for (name, major, minor) in INSECURE_DEVICES {
                node(name, FileType::CharacterDevice, major, minor)?;
            }
            for minor in 0..8 {
                node(&format!("loop{minor}"), FileType::BlockDevice, 7, minor)?;
            }
        }
        // As runc: no dangling /dev/core.
        let kcore = std::path::Path::new("/proc/kcore").exists();
        for (name, target) in LINKS.into_iter().filter(|(name, _)| kcore || *name != "core") {
            rustix::fs::symlinkat(target, &dev, name)?;
        }
        for directory in ["pts", "shm", "mqueue"] {
            rustix::fs::mkdirat(&dev, directory, Mode::from_raw_mode(0o755))?;
        }
        Ok(())
    };
    fill().step(|| "make device nodes")?;
    for node in &plan.nodes {
        add_node(dev.as_fd(), node, identity).step(|| format!("make device node {}", node.path))?;
    }
    Ok((dev, lacking))
}

/// Mounts the machine's own node. What the machine does not have is left out.
fn borrow_node(dev: BorrowedFd<'_>, name: &str) -> rustix::io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let own = match rustix::fs::openat(rustix::fs::CWD, format!("/dev/{name}"), flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        own => own?,
    };
    rustix::fs::mknodat(dev, name, FileType::RegularFile, Mode::from_raw_mode(0o666), 0)?;
    mounts::attach(mounts::copy(own.as_fd(), false)?.as_fd(), at(dev, name)?.as_fd())
}

/// A node that a device brings, in the place of one of Docker's of that name.
fn add_node(dev: BorrowedFd<'_>, node: &DeviceNode, identity: &Identity) -> rustix::io::Result<()> {
    let path = node.path.strip_prefix("/dev/").ok_or(Errno::INVAL)?;
    let (parents, name) = path.rsplit_once('/').unwrap_or(("", path));
    let mut directory = at(dev, ".")?;
    for parent in parents.split('/').filter(|parent| !parent.is_empty()) {
        match rustix::fs::mkdirat(&directory, parent, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        directory = at(directory.as_fd(), parent)?;
    }
    let (kind, number) = match node.kind {
        NodeKind::Character => (FileType::CharacterDevice, makedev(node.major, node.minor)),
        NodeKind::Block => (FileType::BlockDevice, makedev(node.major, node.minor)),
        NodeKind::Pipe => (FileType::Fifo, 0),
    };
    match rustix::fs::unlinkat(&directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    rustix::fs::mknodat(&directory, name, kind, Mode::from_raw_mode(node.mode), number)?;
    let (uid, gid) = node.owner(identity);
    rustix::fs::chownat(
        &directory,
        name,
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )
}

/// The file systems inside `/dev`.
fn in_dev(plan: &Plan, dev: BorrowedFd<'_>) -> Result<(), Failure> {
    let no_exec = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let size = plan.shm_size.to_string();
    let pts = [("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")];
    let all = [
        ("pts", mounts::new("devpts", &pts, no_exec)?),
        (
            "shm",
            mounts::new("tmpfs", &[("source", "shm"), ("mode", "1777"), ("size", &size)], mounts::LOCKED)?,
        ),
        ("mqueue", mounts::new("mqueue", &[], mounts::LOCKED)?),
    ];
    for (name, mount) in all {
        at(dev, name)
            .and_then(|target| mounts::attach(mount.as_fd(), target.as_fd()))
            .step(|| format!("mount on /dev/{name}"))?;
    }
    Ok(())
}

/// Opens (`O_PATH`) a path in a file system of the kernel's or our own making: no links, no way out.
fn at(base: BorrowedFd<'_>, path: &str) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    rustix::fs::openat2(base, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
}

impl Fixed {
    /// Masks and write-protects the plan's paths. Works on the file systems that were mounted here, not on names in the
    /// container's tree, and with the null device made here: whatever the image holds cannot redirect a mask (CVE-2025-31133).
    pub(super) fn restrict(&self, plan: &Plan) -> Result<(), Failure> {
        let null = at(self.dev.as_fd(), "null").step(|| "open /dev/null")?;
        for path in &plan.read_only {
            self.cover(path, |target| {
                let copy = mounts::copy(target, true)?;
                mounts::restrict(copy.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY, true)?;
                Ok(copy)
            })
            .step(|| format!("make {path} read-only"))?;
        }
        // One empty file system serves for all masked directories.
        let mut empty: Option<OwnedFd> = None;
        for path in &plan.masked {
            self.cover(path, |target| {
                if !mounts::is_directory(target)? {
                    return Ok(mounts::copy(null.as_fd(), false)?);
                }
                if let Some(empty) = &empty {
                    return Ok(mounts::copy(empty.as_fd(), false)?);
                }
                let fs = new_empty()?;
                let kept = rustix::io::dup(&fs)?;
                empty = Some(kept);
                Ok(fs)
            })
            .step(|| format!("mask {path}"))?;
        }
        Ok(())
    }

    /// Mounts what `make` makes over `path`, if there is such a path.
    fn cover(
        &self,
        path: &str,
        make: impl FnOnce(BorrowedFd<'_>) -> std::io::Result<OwnedFd>,
    ) -> std::io::Result<()> {
        let (base, relative) = match (path.strip_prefix("/proc/"), path.strip_prefix("/sys/")) {
            (Some(relative), _) => (&self.proc, relative),
            (_, Some(relative)) => (&self.sys, relative),
            _ => return Err(Errno::INVAL.into()),
        };
        let target = match at(base.as_fd(), relative) {
            Ok(target) => target,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let mount = make(target.as_fd())?;
        mounts::attach(mount.as_fd(), target.as_fd())?;
        Ok(())
    }
}

fn new_empty() -> std::io::Result<OwnedFd> {
    mounts::new(
        "tmpfs",
        &[("nr_inodes", "1"), ("mode", "0755")],
        mounts::LOCKED | MountAttrFlags::MOUNT_ATTR_RDONLY,
    )
    .map_err(|failure| match failure {
        Failure::Setup { errno, .. } => std::io::Error::from_raw_os_error(errno),
        _ => Errno::IO.into(),
    })
}

/// Gives an inode to the user, so that `/dev/stdout` can be opened again.
pub(super) fn give(fd: BorrowedFd<'_>, uid: u32) -> rustix::io::Result<()> {
    rustix::fs::chownat(fd, "", Some(Uid::from_raw(uid)), None::<Gid>, AtFlags::EMPTY_PATH)
}
