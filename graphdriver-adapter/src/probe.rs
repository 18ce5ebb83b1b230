//! Whether overlayfs works on a file system, by trying.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    thread::JoinHandle,
};

use lapstrake_layerstore_store::{
    OpenSnapshot, OverlaySyntax, OverlayUpper, SnapshotMount, StoreError, in_user_namespace,
};

use crate::files;

/// Mounts a small overlay below `root`, deletes a file and replaces a directory in it, and looks at what that left.
///
/// Gives the way of telling the kernel that works, the better one first. The outer error is of `root` itself, the inner one
/// says why overlayfs does not work there.
pub(crate) fn overlay(root: &Path) -> Result<Result<(OverlaySyntax, Tidying), &'static str>, StoreError> {
    match overlay_in(root, OverlaySyntax::Appended)? {
        Err(_) => overlay_in(root, OverlaySyntax::Listed),
        works => Ok(works),
    }
}

/// As [`overlay`], in one way of telling the kernel.
pub(crate) fn overlay_in(
    root: &Path,
    syntax: OverlaySyntax,
) -> Result<Result<(OverlaySyntax, Tidying), &'static str>, StoreError> {
    let probe = Probe::new(root)?;
    let works = probe.run(syntax);
    let tidying = probe.tidy();
    Ok(works.map(|()| (syntax, tidying)))
}

/// The removal of what a probe made: removing directories is what some disks take longest for, so nobody waits for it before this is dropped.
#[derive(Debug)]
pub(crate) struct Tidying(Option<JoinHandle<()>>);

impl Drop for Tidying {
    fn drop(&mut self) {
        // It panics never, and has told what failed.
        let _ = self.0.take().map(JoinHandle::join);
    }
}

/// A directory to try things in.
struct Probe(PathBuf);

impl Probe {
    fn new(root: &Path) -> Result<Self, StoreError> {
        let path = root.join(format!("probe-overlay-{:016x}", rand::random::<u64>()));
        fs::create_dir(&path).map_err(StoreError::io("make directory", &path))?;
        Ok(Self(path))
    }

    fn tidy(self) -> Tidying {
        let remove = move || {
            if let Err(error) = files::remove_tree(&self.0) {
                tracing::warn!(%error, "probe directory not removed");
            }
        };
        Tidying(std::thread::Builder::new().name("probe".to_owned()).spawn(remove).ok())
    }

    fn run(&self, syntax: OverlaySyntax) -> Result<(), &'static str> {
        let make = |name: &str| -> io::Result<PathBuf> {
            let path = self.0.join(name);
            fs::create_dir(&path)?;
            Ok(path)
        };
        let prepare = || -> io::Result<_> {
            let (lower, lowest) = (make("lower")?, make("lowest")?);
            fs::write(lowest.join("file"), b"")?;
            fs::create_dir(lowest.join("directory"))?;
            Ok((vec![lower, lowest], make("upper")?, make("work")?))
        };
        let (lower, upper, work) = prepare().map_err(|_| "its file system cannot be written")?;
        if !has_types(&self.0) {
            return Err("its file system does not say file types in listings (d_type)");
        }
        let top = OverlayUpper { upper: upper.clone(), work };
        let mount = SnapshotMount::Overlay { lower, upper: Some(top), syntax };
        let opened = OpenSnapshot::open(&mount)
            .map_err(|_| "the kernel refuses to mount an overlay there (no privilege, or not supported)")?;
        let change = || -> io::Result<()> {
            fs::remove_file(opened.path().join("file"))?;
            fs::remove_dir(opened.path().join("directory"))?;
            fs::create_dir(opened.path().join("directory"))
        };
        change().map_err(|_| "its file system does not take overlayfs's marks")?;
        drop(opened);
        let whiteout = fs::symlink_metadata(upper.join("file"));
        if !whiteout.is_ok_and(|whiteout| whiteout.file_type().is_char_device() && whiteout.rdev() == 0) {
            return Err("overlayfs leaves no whiteouts there");
        }
        let mut value = [0; 4];
        let mark = if in_user_namespace() { "user.overlay.opaque" } else { "trusted.overlay.opaque" };
        match rustix::fs::lgetxattr(upper.join("directory"), mark, &mut value) {
            Ok(1) if value[0] == b'y' => Ok(()),
            _ => Err("overlayfs leaves no opaque marks there (extended attributes)"),
        }
    }
}

/// Whether listings tell types, which overlayfs needs to find whiteouts.
fn has_types(directory: &Path) -> bool {
    let Ok(directory) = fs::File::open(directory) else {
        return false;
    };
    let Ok(entries) = rustix::fs::Dir::read_from(&directory) else {
        return false;
    };
    entries.flatten().all(|entry| entry.file_type() != rustix::fs::FileType::Unknown)
}
