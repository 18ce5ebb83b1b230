//! Looking into a snapshot from the daemon itself.
//!
//! The mount is *detached* (`fsopen`/`fsmount`, `open_tree`): it hangs on a file descriptor, is attached to no directory, is in nobody's
//! mount table, and is gone when the descriptor closes, whether by drop or by `kill -9`.

use std::{
    ffi::CString,
    fmt::Write as _,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, OpenTreeFlags,
        UnmountFlags,
    },
};

use crate::{OverlaySyntax, SnapshotMount, StoreError};

/// Whatever the kernel was built with: an upper directory with redirects or files without their content is no difference
/// that could be read by itself.
const OFF: &[&str] = &["index", "redirect_dir", "metacopy"];

/// With marks in user attributes the kernel has the others off by itself; to some, `redirect_dir=off` means to follow redirects, which goes with no such
/// marks.
fn turned_off() -> &'static [&'static str] {
    if in_user_namespace() { &OFF[..1] } else { OFF }
}

/// With these the marks of overlays are attributes that root of a user namespace may set.
const USER_MARKS: &str = "userxattr";

/// Whether this process is root, if at all, of a user namespace other than the machine's. Overlays then keep their marks in `user.overlay.*`
/// attributes, in place of `trusted.overlay.*`.
pub fn in_user_namespace() -> bool {
    static IN: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *IN.get_or_init(|| {
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        map.split_whitespace().collect::<Vec<_>>() != ["0", "0", "4294967295"]
    })
}

/// What mount(2) reads of its options, with the NUL; more is cut off without a word.
const PAGE: usize = 4096;

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
            SnapshotMount::Bind { source, .. } => open_directory(source)
                .map_err(|errno| StoreError::io("open snapshot", source)(errno.into()))?,
            SnapshotMount::Overlay { lower, upper, syntax } => {
                let at = upper.as_ref().map(|upper| &upper.upper).or(lower.first());
                let at = at.cloned().unwrap_or_default();
                let upper = upper.as_ref().map(|upper| (upper.upper.as_path(), upper.work.as_path()));
                // Who publishes a snapshot flushes first (`Snapshotter::sync`); until then its files are as good as any others'.
                let overlay = Overlay { lower, upper, volatile: true };
                let mounted = match syntax {
                    OverlaySyntax::Appended => overlay.mount_appended(),
                    OverlaySyntax::Listed => overlay.mount_listed_elsewhere(),
                };
                mounted.map_err(|errno| StoreError::io("mount overlay of", at)(errno.into()))?
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

/// An overlay to be mounted.
#[derive(Debug, Clone, Copy)]
pub struct Overlay<'a> {
    /// Lower directories, top-most first; at least two when there is no upper one.
    pub lower: &'a [PathBuf],
    /// The upper and the work directory.
    pub upper: Option<(&'a Path, &'a Path)>,
    /// Whether overlayfs may leave flushing the upper directory to others: unless it may, it flushes that whole file system when it is unmounted,
    /// which may take seconds.
    ///
    /// It leaves a mark of that beside the upper directory, and refuses to mount that again. So a mark is removed *before* a mount: few
    /// snapshots are ever mounted twice, and removing directories is what some disks take longest for (ext4 without a
    /// journal waits for each one's discard: 3 ms).
    pub volatile: bool,
}

impl Overlay<'_> {
    /// Removes the mark of an earlier volatile mount. Right as long as the machine has not crashed since (its files are then all in the page
    /// cache, like anyone's): a snapshot that is still being written when it does is dropped by the next start.
    fn forget_volatile(&self) {
        let Some((_, work)) = self.upper else { return };
        let mark = work.join("work/incompat/volatile");
        // There is none, as a rule.
        if std::fs::remove_file(mark.join("dirty")).is_ok() {
            let _ = std::fs::remove_dir(&mark);
        }
    }

    /// Mounts it, attached nowhere, telling the kernel each lower directory by itself: any number, in paths of up to 255 bytes.
    pub fn mount_appended(&self) -> rustix::io::Result<OwnedFd> {
        self.forget_volatile();
        let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for option in turned_off() {
            rustix::mount::fsconfig_set_string(fs.as_fd(), *option, "off")?;
        }
        if in_user_namespace() {
            rustix::mount::fsconfig_set_flag(fs.as_fd(), USER_MARKS)?;
        }
        for directory in self.lower {
            rustix::mount::fsconfig_set_string(fs.as_fd(), "lowerdir+", directory)?;
        }
        let mut attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
        if let Some((upper, work)) = self.upper {
            rustix::mount::fsconfig_set_string(fs.as_fd(), "upperdir", upper)?;
            rustix::mount::fsconfig_set_string(fs.as_fd(), "workdir", work)?;
            if self.volatile {
                rustix::mount::fsconfig_set_flag(fs.as_fd(), "volatile")?;
            }
            attributes = MountAttrFlags::empty();
        }
        rustix::mount::fsconfig_create(fs.as_fd())?;
        rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    }

    /// Mounts it, attached nowhere, for kernels that know only `lowerdir=` with a list of all. For a process or thread that
    /// has a mount namespace and a working directory of its own: the mount passes through the one, and the other becomes `/`.
    ///
    /// A list of paths would soon be longer than the one page that mount(2) takes, and could contain neither colon nor
    /// comma. So the directories are opened and named by their descriptors, relative to `/proc/self/fd`: that holds the
    /// kernel's own limit of 500 directories. (Docker's short links of 29 bytes each end at about 140.) Where
    /// it does not fit all the same, the error is `E2BIG`.
    pub fn mount_listed(&self) -> rustix::io::Result<OwnedFd> {
        self.forget_volatile();
        let lower = self.lower.iter().map(|path| open_directory(path)).collect::<Result<Vec<_>, _>>()?;
        let upper = match self.upper {
            Some((upper, work)) => Some((open_directory(upper)?, open_directory(work)?)),
            None => None,
        };
        let mut options: String = turned_off().iter().map(|option| format!("{option}=off,")).collect();
        if in_user_namespace() {
            options.push_str(USER_MARKS);
            options.push(',');
        }
        options.push_str("lowerdir=");
        for (at, directory) in lower.iter().enumerate() {
            let colon = if at == 0 { "" } else { ":" };
            write!(options, "{colon}{}", directory.as_raw_fd()).expect("a string takes everything");
        }
        let mut flags = MountFlags::RDONLY;
        if let Some((upper, work)) = &upper {
            flags = MountFlags::empty();
            write!(options, ",upperdir={},workdir={}", upper.as_raw_fd(), work.as_raw_fd())
                .expect("a string takes everything");
            if self.volatile {
                options.push_str(",volatile");
            }
        }
        if options.len() >= PAGE {
            return Err(Errno::TOOBIG);
        }
        let options = CString::new(options).expect("made of names and numbers");
        // Any directory will do to mount on; this one exists for sure.
        let on = self.upper.map(|(upper, _)| upper).or(self.lower.first().map(PathBuf::as_path));
        let on = on.ok_or(Errno::INVAL)?;
        rustix::process::chdir("/proc/self/fd")?;
        let mounted = rustix::mount::mount("overlay", on, "overlay", flags, options.as_c_str());
        rustix::process::chdir("/")?;
        mounted?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let detached = rustix::mount::open_tree(CWD, on, flags);
        rustix::mount::unmount(on, UnmountFlags::DETACH)?;
        detached
    }

    /// As [`Self::mount_listed`], from a process that has many threads: by one more, which has a mount namespace and a
    /// working directory of its own, so that nobody else ever sees the mount.
    fn mount_listed_elsewhere(&self) -> rustix::io::Result<OwnedFd> {
        let mount = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
                .map_err(|errno| Errno::from_raw_os_error(errno as i32))?;
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            rustix::mount::mount_change("/", private)?;
            self.mount_listed()
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("mount".to_owned()).spawn_scoped(scope, mount);
            let thread = thread.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))?;
            thread.join().unwrap_or(Err(Errno::IO))
        })
    }
}

fn open_directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}
