//! The container's view of the file system, made inside its own mount namespace.
//!
//! ```text
//!  /                      the host's root, in a private copy of the mount table
//!  └─ scratch (tmpfs)     mounted on "/", reached through its descriptor only
//!     ├─ root             the snapshot; becomes the container's "/" by pivot_root
//!     ├─ under            where a view from below of another mount hangs while paths in it are looked up
//!     └─ file0, file1 …   generated files and secrets; bound into root, alive as long as the bind
//! ```
//!
//! Everything but `root` goes away with the old root.

use std::{
    io::Write,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid},
    io::Errno,
    mount::{MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags},
};

use super::{
    cgroup::CgroupView,
    inroot::{self, Missing},
    mounts,
};
use crate::{
    MountFlags, StubPolicy,
    plan::{GeneratedFile, Mount, MountSource, Plan},
    user::Identity,
    wire::{Failure, Report, Socket, Step},
};

/// The private working area of a container being made.
pub(super) struct Scratch {
    fd: OwnedFd,
    files: usize,
}

impl Scratch {
    /// Makes it, and cuts this mount namespace off from the host's.
    pub(super) fn new() -> Result<Self, Failure> {
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .step(|| "make mounts private")?;
        let fd = mounts::new("tmpfs", &[("mode", "0711")], MountAttrFlags::MOUNT_ATTR_NODEV)?;
        let attach = || -> rustix::io::Result<()> {
            rustix::mount::move_mount(fd.as_fd(), "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
            rustix::fs::mkdirat(&fd, "root", Mode::from_raw_mode(0o755))?;
            rustix::fs::mkdirat(&fd, "under", Mode::from_raw_mode(0o755))
        };
        attach().step(|| "mount scratch file system")?;
        Ok(Self { fd, files: 0 })
    }

    /// The working area's directory.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Attaches `mount` on the directory `name` of the area.
    pub(super) fn attach(&self, name: &str, mount: BorrowedFd<'_>) -> Result<(), Failure> {
        rustix::mount::move_mount(mount, "", &self.fd, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .step(|| format!("attach {name}"))
    }

    /// Writes a file into the area. Gives its name there.
    pub(super) fn file(&mut self, file: &GeneratedFile) -> Result<String, Failure> {
        let name = format!("file{}", self.files);
        self.files += 1;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let write = || -> std::io::Result<()> {
            let fd = rustix::fs::openat(&self.fd, &name, flags, Mode::from_raw_mode(0o600))?;
            let mut to = std::fs::File::from(fd);
            to.write_all(&file.data)?;
            rustix::fs::fchown(&to, Some(Uid::from_raw(file.uid)), Some(Gid::from_raw(file.gid)))?;
            rustix::fs::fchmod(&to, Mode::from_raw_mode(file.mode))?;
            Ok(())
        };
        write().step(|| format!("write {}", file.target))?;
        Ok(name)
    }

    /// A generated file as a detached mount.
    fn file_mount(&mut self, file: &GeneratedFile) -> Result<OwnedFd, Failure> {
        let name = self.file(file)?;
        let bind = || -> std::io::Result<OwnedFd> {
            let fd = rustix::fs::openat(&self.fd, &name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            let mount = mounts::copy(fd.as_fd(), false)?;
            mounts::restrict(mount.as_fd(), mounts::LOCKED | MountAttrFlags::MOUNT_ATTR_RDONLY, false)?;
            Ok(mount)
        };
        bind().step(|| format!("mount {}", file.target))
    }

    /// A source of the plan as a detached mount; `overlay` is what it shares with other containers.
    fn source(&mut self, mount: &Mount, overlay: Option<&OwnedFd>) -> Result<OwnedFd, Failure> {
        let read_only = |fd: OwnedFd| {
            mounts::restrict(fd.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY, true)
                .step(|| format!("make {} read-only", mount.target))?;
            Ok(fd)
        };
        match &mount.source {
            MountSource::Tree { tree, selector, read_only: ro, shared: _ } => {
                let fd = match overlay {
                    Some(overlay) => rustix::io::dup(overlay).step(|| "mount overlay")?,
                    None => mounts::tree(tree, false)?,
                };
                let fd = if selector.trim_matches('/').is_empty() { fd } else { self.select(fd, selector)? };
                if *ro { read_only(fd) } else { Ok(fd) }
            }
            MountSource::Host { source, flags } => {
                let fd = mounts::host(source)?;
                mounts::restrict(fd.as_fd(), mounts::attributes(*flags), true)
                    .step(|| format!("restrict {}", mount.target))?;
                Ok(fd)
            }
            MountSource::Tmpfs { size } => {
                let size = size.map(|size| size.to_string());
                let mut options = vec![("mode", "1777")];
                options.extend(size.as_deref().map(|size| ("size", size)));
                mounts::new("tmpfs", &options, mounts::LOCKED)
            }
            MountSource::File(file) => self.file_mount(file),
            MountSource::Socket { source, uid, gid, mode } => {
                // The agent's socket is made for this build alone, so its owner may be changed in place.
                let (uid, gid) = (Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)));
                let own = || -> rustix::io::Result<()> {
                    rustix::fs::chownat(CWD, source, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
                    rustix::fs::chmodat(CWD, source, Mode::from_raw_mode(*mode), AtFlags::empty())
                };
                own().step(|| format!("give {} to the container", source.display()))?;
                let fd = mounts::host(source)?;
                mounts::restrict(fd.as_fd(), mounts::LOCKED, false).step(|| "mount ssh socket")?;
                Ok(fd)
            }
        }
    }

    /// A path in a detached mount as a detached mount of its own.
    fn select(&self, mount: OwnedFd, selector: &str) -> Result<OwnedFd, Failure> {
        // Kernels before 6.15 copy only from mounts that are attached somewhere.
        self.attach("under", mount.as_fd())?;
        let select = || -> rustix::io::Result<OwnedFd> {
            let fd = inroot::open(mount.as_fd(), selector, OFlags::empty())?;
            mounts::copy(fd.as_fd(), true)
        };
        let selected = select().step(|| format!("mount source path {selector:?}"));
        mounts::detach(mount.as_fd()).step(|| "unmount mount source")?;
        selected
    }
}

/// The root file system before anything is mounted in it: attaches it, hands it to the helper, and makes what has to be in it.
pub(super) struct BareRoot {
    pub(super) mount: OwnedFd,
}

impl BareRoot {
    pub(super) fn attach(plan: &Plan, scratch: &Scratch, report: &Socket) -> Result<Self, Failure> {
        let mount = mounts::tree(&plan.root, true)?;
        no_devices(plan, mount.as_fd())?;
        report.send(&Report::Root, &[mount.as_fd()], true).step(|| "report root")?;
        scratch.attach("root", mount.as_fd())?;
        Ok(Self { mount })
    }

    /// Makes mount targets (which are reported, to be removed) and the working directory (which stays, and belongs to the user).
    pub(super) fn populate(
        &self,
        plan: &Plan,
        sources: &[Source],
        identity: &Identity,
        report: &Socket,
    ) -> Result<(), Failure> {
        let root = self.mount.as_fd();
        let times = match plan.stubs {
            StubPolicy::RemoveAll => inroot::Times::Kept,
            StubPolicy::RemoveTargets | StubPolicy::RemoveTargetsAndParents => inroot::Times::Changed,
        };
        let mut covered: Vec<&str> = vec!["/proc", "/sys", "/dev"];
        if plan.stubs == StubPolicy::RemoveAll {
            // What mounts there later finds them.
            for target in &covered {
                let (_, made) = inroot::make_as(root, target, Missing::Directory, None, times)
                    .step(|| format!("make mount target {target}"))?;
                for made in made {
                    report.send(&Report::Stub(made.path), &[], true).step(|| "report stub")?;
                }
            }
        }
        for source in sources {
            // What is mounted inside another mount is made there, later.
            let inside = covered.iter().any(|above| is_below(&source.target, above));
            covered.push(&source.target);
            if inside {
                continue;
            }
            let (_, made) = inroot::make_as(root, &source.target, source.missing, None, times)
                .step(|| format!("make mount target {}", source.target))?;
            for made in made {
                if made.last || plan.stubs != StubPolicy::RemoveTargets {
                    report.send(&Report::Stub(made.path), &[], true).step(|| "report stub")?;
                }
            }
        }
        inroot::make(root, &plan.cwd, Missing::Directory, Some((identity.uid, identity.gid)))
            .step(|| format!("make working directory {}", plan.cwd))?;
        Ok(())
    }

    /// Reads a text file of the image; empty when there is none.
    pub(super) fn read(&self, path: &str) -> Result<String, Failure> {
        const MAX: u64 = 10 << 20;
        // Not blocked by a FIFO, not led astray by a device.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = match inroot::open(self.mount.as_fd(), path, OFlags::empty()) {
            Ok(fd)
                if FileType::from_raw_mode(rustix::fs::fstat(&fd).step(|| path)?.st_mode)
                    == FileType::RegularFile =>
            {
                inroot::open_as(self.mount.as_fd(), path, flags).step(|| format!("open {path}"))?
            }
            Ok(_) => {
                return Err(Failure::Setup {
                    step: format!("read {path}: not a regular file"),
                    errno: libc::EINVAL,
                });
            }
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
            Err(errno) => return Err(errno).step(|| format!("open {path}")),
        };
        let mut bytes = Vec::new();
        use std::io::Read;
        let length =
            std::fs::File::from(fd).take(MAX + 1).read_to_end(&mut bytes).step(|| format!("read {path}"))?;
        if length as u64 > MAX {
            return Err(Failure::Setup {
                step: format!("read {path}: larger than 10 MiB"),
                errno: libc::EFBIG,
            });
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// The root file system of a container that this process has entered.
pub(super) fn entered() -> Result<BareRoot, Failure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mount = rustix::fs::openat(CWD, "/", flags, Mode::empty()).step(|| "open /")?;
    Ok(BareRoot { mount })
}

/// A detached mount and where it belongs.
pub(super) struct Source {
    pub(super) target: String,
    pub(super) mount: OwnedFd,
    /// What to make when the target is not there.
    pub(super) missing: Missing,
    /// What it is not good for; it is so already, but runtimes undo what they are not told.
    pub(super) flags: MountFlags,
}

/// All generated files and mounts of the plan, in order; `overlays` are what its mounts share with other containers.
pub(super) fn sources(
    plan: &Plan,
    scratch: &mut Scratch,
    overlays: &[Option<OwnedFd>],
) -> Result<Vec<Source>, Failure> {
    let mut sources = Vec::with_capacity(plan.files.len() + plan.mounts.len());
    for file in &plan.files {
        // A mount on the same target comes in the generated file's place.
        if plan.mounts.iter().any(|mount| mount.target == file.target) {
            continue;
        }
        sources.push(Source {
            target: file.target.clone(),
            mount: scratch.file_mount(file)?,
            missing: Missing::File,
            flags: MountFlags::LOCKED.or_read_only(true),
        });
    }
    for (number, mount) in plan.mounts.iter().enumerate() {
        let fd = scratch.source(mount, overlays.get(number).and_then(Option::as_ref))?;
        no_devices(plan, fd.as_fd())?;
        let directory = mounts::is_directory(fd.as_fd()).step(|| &mount.target)?;
        let missing = if directory { Missing::Directory } else { Missing::File };
        sources.push(Source { target: mount.target.clone(), mount: fd, missing, flags: mount.flags() });
    }
    Ok(sources)
}

fn no_devices(plan: &Plan, mount: BorrowedFd<'_>) -> Result<(), Failure> {
    if plan.no_devices {
        mounts::restrict(mount, MountAttrFlags::MOUNT_ATTR_NODEV, true).step(|| "mount without devices")?;
    }
    Ok(())
}

fn is_below(path: &str, above: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Mounts everything and makes the result this process's root directory.
pub(super) fn enter(
    plan: &Plan,
    identity: &Identity,
    scratch: &Scratch,
    bare: &BareRoot,
    sources: Vec<Source>,
    cgroups: &CgroupView,
) -> Result<(), Failure> {
    // The helper keeps `bare.mount` to remove stubs afterwards, so what becomes read-only is a copy of it.
    let root = if plan.read_only_root {
        let copy = mounts::copy(bare.mount.as_fd(), true).step(|| "mount root file system")?;
        scratch.attach("under", copy.as_fd())?;
        copy
    } else {
        rustix::io::dup(&bare.mount).step(|| "mount root file system")?
    };
    let fixed = super::fixed::mount(plan, identity, root.as_fd(), cgroups)?;
    for source in &sources {
        let (target, _) = inroot::make(root.as_fd(), &source.target, source.missing, None)
            .step(|| format!("make mount target {}", source.target))?;
        mounts::attach(source.mount.as_fd(), target.as_fd())
            .step(|| format!("mount on {}", source.target))?;
    }
    // In a mount the working directory may be missing though it is there below.
    inroot::make(root.as_fd(), &plan.cwd, Missing::Directory, None)
        .step(|| format!("make working directory {}", plan.cwd))?;
    fixed.restrict(plan)?;
    if plan.read_only_root {
        mounts::restrict(root.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY, false)
            .step(|| "make the root file system read-only")?;
    }
    pivot(root.as_fd()).step(|| "pivot_root")
}

/// pivot_root(2), "pivot_root(".", ".")": the old root ends up on top of the new one, and the scratch file system on top of
/// that. Both are detached from there.
fn pivot(root: BorrowedFd<'_>) -> rustix::io::Result<()> {
    rustix::process::fchdir(root)?;
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")
}

/// Opens (`O_PATH`) a real directory right below the root, making it when missing. A symbolic link is refused, as runc
/// does: `/proc` must be where everyone looks for it (CVE-2019-19921).
pub(super) fn real_directory(root: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Failure> {
    let open = || {
        rustix::fs::openat2(
            root,
            name,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH,
        )
    };
    match open() {
        Err(Errno::NOENT) => {
            rustix::fs::mkdirat(root, name, Mode::from_raw_mode(0o755)).step(|| format!("make /{name}"))?;
            open()
        }
        other => other,
    }
    .step(|| format!("/{name} must be a directory"))
}
