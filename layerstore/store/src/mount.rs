//! Looking into a snapshot from the daemon itself.
//!
//! The mount is *detached* (`fsopen`/`fsmount`, `open_tree`): it hangs on a file descriptor, is attached to no directory, is in nobody's
//! mount table, and is gone when the descriptor closes, whether by drop or by `kill -9`.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use rustix::{
    fs::{CWD, Mode, OFlags},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags},
};

use crate::{SnapshotMount, StoreError};

/// A snapshot's tree, open in this process. Dropping it closes it.
#[derive(Debug)]
pub struct OpenSnapshot {
    root: OwnedFd,
}

impl OpenSnapshot {
    /// Opens the tree that `mount` describes. Needs `CAP_SYS_ADMIN` for overlays.
    ///
    /// A read-only [`SnapshotMount::Bind`] is opened as the directory itself: the caller must not write to it.
    pub fn open(mount: &SnapshotMount) -> Result<Self, StoreError> {
        let root = match mount {
            SnapshotMount::Bind { source, .. } => rustix::fs::openat(
                CWD,
                source,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .map_err(|errno| StoreError::io("open snapshot", source)(errno.into()))?,
            SnapshotMount::Overlay { lower, upper } => {
                let at = upper
                    .as_ref()
                    .map_or_else(|| lower.first().cloned().unwrap_or_default(), |upper| upper.upper.clone());
                let mount = || -> rustix::io::Result<OwnedFd> {
                    let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
                    // Whatever the kernel was built with: an upper directory with redirects or files without their
                    // content is no difference that could be read by itself.
                    for option in ["redirect_dir", "metacopy", "index"] {
                        rustix::mount::fsconfig_set_string(fs.as_fd(), option, "off")?;
                    }
                    // One key per directory: no limit of one page for the whole list (kernel 6.5 and later).
                    for directory in lower {
                        rustix::mount::fsconfig_set_string(fs.as_fd(), "lowerdir+", directory)?;
                    }
                    if let Some(upper) = upper {
                        rustix::mount::fsconfig_set_string(fs.as_fd(), "upperdir", &upper.upper)?;
                        rustix::mount::fsconfig_set_string(fs.as_fd(), "workdir", &upper.work)?;
                    }
                    rustix::mount::fsconfig_create(fs.as_fd())?;
                    let attributes = if upper.is_some() {
                        MountAttrFlags::empty()
                    } else {
                        MountAttrFlags::MOUNT_ATTR_RDONLY
                    };
                    rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
                };
                mount().map_err(|errno| StoreError::io("mount overlay of", at)(errno.into()))?
            }
        };
        Ok(Self { root })
    }

    /// The root directory (opened with `O_PATH`).
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// A path to the root that is valid in this process while the value lives. For walking; paths that come from
    /// users are resolved below [`Self::root`] with `openat2(RESOLVE_IN_ROOT)` instead.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.root.as_raw_fd()))
    }
}
