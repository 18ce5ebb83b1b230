//! Mounts as descriptors: made detached, configured, then attached to a descriptor, so that no path is walked twice and
//! a rootfs full of symbolic links has no say.

use std::{
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use lapstrake_layerstore_store::{Overlay, OverlaySyntax};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags},
    io::Errno,
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags},
};

use crate::{
    MountFlags,
    plan::Tree,
    sys,
    wire::{Failure, Step},
};

/// nosuid, nodev, noexec.
pub(super) const LOCKED: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// The kernel's words for what a mount is not good for.
pub(super) fn attributes(flags: MountFlags) -> MountAttrFlags {
    let mut attributes = MountAttrFlags::empty();
    attributes.set(MountAttrFlags::MOUNT_ATTR_RDONLY, flags.read_only);
    attributes.set(MountAttrFlags::MOUNT_ATTR_NOSUID, flags.no_suid);
    attributes.set(MountAttrFlags::MOUNT_ATTR_NODEV, flags.no_dev);
    attributes.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, flags.no_exec);
    attributes
}

/// A new file system of `kind`, attached nowhere.
pub(super) fn new(
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, Failure> {
    let make = || -> rustix::io::Result<OwnedFd> {
        let fs = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        for (key, value) in options {
            if value.is_empty() {
                rustix::mount::fsconfig_set_flag(fs.as_fd(), *key)?;
            } else {
                rustix::mount::fsconfig_set_string(fs.as_fd(), *key, *value)?;
            }
        }
        rustix::mount::fsconfig_create(fs.as_fd())?;
        rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    make().step(|| format!("mount {kind}"))
}

/// Attaches the detached mount `mount` on what `target` names.
pub(super) fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> rustix::io::Result<()> {
    rustix::mount::move_mount(
        mount,
        "",
        target,
        "",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
}

/// Detaches the mount that `mount` is the root of.
pub(super) fn detach(mount: BorrowedFd<'_>) -> rustix::io::Result<()> {
    rustix::process::fchdir(mount)?;
    let result = rustix::mount::unmount(".", UnmountFlags::DETACH);
    rustix::process::chdir("/")?;
    result
}

/// A detached copy of the mount at what `source` names, with the mounts below it when `recursive`.
pub(super) fn copy(source: BorrowedFd<'_>, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(source, "", flags)
}

/// Sets attributes of a mount (and of those below it).
pub(super) fn restrict(
    mount: BorrowedFd<'_>,
    attributes: MountAttrFlags,
    recursive: bool,
) -> std::io::Result<()> {
    sys::mount_setattr(mount, u64::from(attributes.bits()), recursive)
}

/// A snapshot's tree as a detached mount.
///
/// What `volatile` means: [`Overlay::volatile`]. It is right for what is published later, by who flushes first (`Snapshotter::sync`).
pub(super) fn tree(tree: &Tree, volatile: bool) -> Result<OwnedFd, Failure> {
    match tree {
        Tree::Bind { source, read_only } => {
            let mount = host(source)?;
            if *read_only {
                restrict(mount.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY, true)
                    .step(|| format!("mount {} read-only", source.display()))?;
            }
            Ok(mount)
        }
        Tree::Overlay { lower, upper, syntax } => {
            overlay(lower, upper.as_ref(), *syntax, volatile).step(|| match upper {
                Some((upper, _)) => format!("mount overlay on {}", upper.display()),
                None => format!("mount overlay of {}", lower[0].display()),
            })
        }
    }
}

fn overlay(
    lower: &[PathBuf],
    upper: Option<&(PathBuf, PathBuf)>,
    syntax: OverlaySyntax,
    volatile: bool,
) -> rustix::io::Result<OwnedFd> {
    // Overlayfs wants two layers when none is writable.
    if let ([only], None) = (lower, upper) {
        let directory =
            rustix::fs::openat(CWD, only, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let mount = copy(directory.as_fd(), false)?;
        restrict(mount.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY, false)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        return Ok(mount);
    }
    let upper = upper.map(|(upper, work)| (upper.as_path(), work.as_path()));
    let overlay = Overlay { lower, upper, volatile };
    match syntax {
        OverlaySyntax::Appended => overlay.mount_appended(),
        // The mount namespace is the container's own.
        OverlaySyntax::Listed => overlay.mount_listed(),
    }
}

/// A host's file or directory (with what is mounted below it) as a detached mount.
pub(super) fn host(source: &Path) -> Result<OwnedFd, Failure> {
    let open = || -> rustix::io::Result<OwnedFd> {
        let fd = rustix::fs::openat(
            CWD,
            source.as_os_str().as_bytes(),
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        copy(fd.as_fd(), true)
    };
    open().step(|| format!("mount {}", source.display()))
}

/// Whether a descriptor names a directory.
pub(super) fn is_directory(fd: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) == FileType::Directory)
}
