//! Docker's overlay2 layout:
//!
//! ```text
//! overlay2/<id>/diff    the difference, in overlayfs's form
//! overlay2/<id>/link    a short name of 26 characters
//! overlay2/<id>/lower   "l/<short>:l/<short>…" of all parents, top-most first; absent without parents
//! overlay2/<id>/work    overlayfs's work directory; absent without parents
//! overlay2/<id>/deletions  (ours) what it deletes although nothing of it is below; absent without any
//! overlay2/l/<short>    symbolic link to ../<id>/diff
//! ```
//!
//! `link`, `lower` and `l/` are there for whoever reads the folder as Docker's; this driver is told a snapshot's parents
//! and mounts their `diff` one by one, so its depth is not bounded by the length of mount options.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs, io,
    os::unix::fs::{MetadataExt as _, symlink},
    path::{Path, PathBuf},
};

use lapstrake_layerstore_store::{
    DiffSource, Leftovers, OverlaySyntax, OverlayUpper, SnapshotId, SnapshotMount, StoreError, Usage,
};
use rustix::fs::{AtFlags, CWD, Gid, Timespec, Timestamps, Uid};

use crate::{
    DriverKind, GraphDriver, files,
    probe::{self, Tidying},
};

/// `OVL_MAX_STACK` in the kernel's fs/overlayfs/params.h.
const MAX_LOWER: usize = 500;

/// The overlay2 driver.
#[derive(Debug)]
pub struct Overlay2 {
    home: PathBuf,
    syntax: OverlaySyntax,
    _tidying: Tidying,
}

impl Overlay2 {
    /// Opens `<root>/overlay2`, making it where it is not there. Finds out how the kernel wants to be told of overlays.
    ///
    /// Errors: [`StoreError::Invalid`] saying why overlayfs does not work there.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        Self::open_with(root, probe::overlay(root)?)
    }

    /// As [`Self::open`], in one way of telling the kernel only. For tests of what an older kernel gets.
    pub fn open_in(root: &Path, syntax: OverlaySyntax) -> Result<Self, StoreError> {
        Self::open_with(root, probe::overlay_in(root, syntax)?)
    }

    fn open_with(
        root: &Path,
        probed: Result<(OverlaySyntax, Tidying), &'static str>,
    ) -> Result<Self, StoreError> {
        let (syntax, tidying) = probed.map_err(|why| StoreError::Invalid {
            kind: "graph driver",
            id: format!("overlay2 on {}", root.display()),
            why,
        })?;
        let home = root.join("overlay2");
        files::make_directory(&home, 0o710)?;
        files::make_directory(&home.join("l"), 0o710)?;
        // Without links, so that nobody has to follow them for each layer of each step.
        let home = fs::canonicalize(&home).map_err(StoreError::io("follow", &home))?;
        Ok(Self { home, syntax, _tidying: tidying })
    }

    fn home_of(&self, id: &SnapshotId) -> PathBuf {
        self.home.join(id.as_str())
    }

    fn diff_directory(&self, id: &SnapshotId) -> PathBuf {
        self.home_of(id).join("diff")
    }

    fn lower(&self, parents: &[SnapshotId]) -> Vec<PathBuf> {
        parents.iter().map(|parent| self.diff_directory(parent)).collect()
    }

    fn short_name(&self, id: &SnapshotId) -> Result<Option<String>, StoreError> {
        let path = self.home_of(id).join("link");
        match fs::read_to_string(&path) {
            Ok(short) if is_short_name(&short) => Ok(Some(short)),
            // Cut short by a crash, before anything referred to it.
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("read", path)(error)),
        }
    }

    fn fill(&self, id: &SnapshotId, parents: &[SnapshotId]) -> Result<(), StoreError> {
        let directory = self.home_of(id);
        let diff = directory.join("diff");
        files::make_directory(&diff, 0o755)?;
        if let Some(parent) = parents.first() {
            copy_attributes(&self.diff_directory(parent), &diff)?;
        }
        let short = new_short_name();
        let link = self.home.join("l").join(&short);
        symlink(Path::new("..").join(id.as_str()).join("diff"), &link)
            .map_err(StoreError::io("link", &link))?;
        write(&directory.join("link"), &short)?;
        if parents.is_empty() {
            return Ok(());
        }
        files::make_directory(&directory.join("work"), 0o700)?;
        write(&directory.join("lower"), &self.lower_names(parents)?)
    }

    /// What `lower` says of a child of these: the first's short name, and what its own `lower` says of the others.
    fn lower_names(&self, parents: &[SnapshotId]) -> Result<String, StoreError> {
        let Some((parent, above)) = parents.split_first() else { return Ok(String::new()) };
        let short = self.short_name(parent)?.ok_or_else(|| StoreError::Damaged {
            path: self.home_of(parent).join("link"),
            why: "missing or not a short name".to_owned(),
        })?;
        let mut names = format!("l/{short}");
        if above.is_empty() {
            return Ok(names);
        }
        let path = self.home_of(parent).join("lower");
        let rest = match fs::read_to_string(&path) {
            Ok(rest) if rest.split(':').count() == above.len() => rest,
            // A view's own directory has none; one that was cut short by a power cut is made up for.
            Ok(_) => self.lower_names(above)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.lower_names(above)?,
            Err(error) => return Err(StoreError::io("read", path)(error)),
        };
        names.push(':');
        names.push_str(&rest);
        Ok(names)
    }
}

impl GraphDriver for Overlay2 {
    fn kind(&self) -> DriverKind {
        DriverKind::Overlay2
    }

    fn create(&self, id: &SnapshotId, parents: &[SnapshotId]) -> Result<(), StoreError> {
        let directory = self.home_of(id);
        // Not `make_directory`: one that is there is somebody else's.
        fs::create_dir(&directory).map_err(StoreError::io("make directory", &directory))?;
        files::set_mode(&directory, 0o710).and_then(|()| self.fill(id, parents)).inspect_err(|_| {
            if let Err(error) = self.remove(id).and_then(Leftovers::delete) {
                tracing::warn!(%error, %id, "directory of a failed snapshot not removed");
            }
        })
    }

    fn writable_mount(&self, id: &SnapshotId, parents: &[SnapshotId]) -> Result<SnapshotMount, StoreError> {
        if parents.is_empty() {
            return Ok(SnapshotMount::Bind { source: self.diff_directory(id), read_only: false });
        }
        check_depth(id, parents.len())?;
        Ok(SnapshotMount::Overlay {
            lower: self.lower(parents),
            upper: Some(OverlayUpper { upper: self.diff_directory(id), work: self.home_of(id).join("work") }),
            syntax: self.syntax,
        })
    }

    fn read_only_mount(&self, id: &SnapshotId, parents: &[SnapshotId]) -> Result<SnapshotMount, StoreError> {
        // Overlayfs refuses a single lower directory without an upper one.
        if parents.is_empty() {
            return Ok(SnapshotMount::Bind { source: self.diff_directory(id), read_only: true });
        }
        check_depth(id, parents.len() + 1)?;
        let lower = std::iter::once(self.diff_directory(id)).chain(self.lower(parents)).collect();
        Ok(SnapshotMount::Overlay { lower, upper: None, syntax: self.syntax })
    }

    fn diff(&self, id: &SnapshotId, parents: &[SnapshotId]) -> DiffSource {
        DiffSource::OverlayUpper {
            upper: self.diff_directory(id),
            lower: self.lower(parents),
            deletions: Some(self.home_of(id).join("deletions")),
        }
    }

    fn directory(&self, id: &SnapshotId) -> PathBuf {
        self.diff_directory(id)
    }

    fn usage(&self, id: &SnapshotId) -> Result<Usage, StoreError> {
        // With what is beside the difference: `work`, `link` and `lower` are on the disk for it alone.
        files::usage(&self.home_of(id))
    }

    fn remove(&self, id: &SnapshotId) -> Result<Leftovers, StoreError> {
        let short = self.short_name(id)?;
        let directory = self.home_of(id);
        let removing = self.home.join(format!("removing-{id}"));
        match fs::rename(&directory, &removing) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Leftovers::none()),
            renamed => renamed.map_err(StoreError::io("rename", directory))?,
        }
        if let Some(short) = short {
            files::remove_file(&self.home.join("l").join(short))?;
        }
        let mut leftovers = Leftovers::none();
        leftovers.push(move || files::remove_tree(&removing));
        Ok(leftovers)
    }

    fn remove_unknown(&self, known: &BTreeSet<SnapshotId>) -> Result<usize, StoreError> {
        let is_known = |name: &OsStr| {
            name.to_str().is_some_and(|name| name == "l" || known.contains(&SnapshotId::new(name)))
        };
        let mut removed = 0;
        let found = files::list(&self.home)?;
        for name in &found {
            if !is_known(name) {
                files::remove_tree(&self.home.join(name))?;
                removed += 1;
            }
        }
        let links = self.home.join("l");
        let names = files::list(&links)?;
        // Each directory but `l` has one link: only where there are more, some lead nowhere, and all are followed.
        if names.len() + removed + 1 > found.len() {
            for link in names.into_iter().map(|name| links.join(name)) {
                if !link.exists() {
                    files::remove_file(&link)?;
                }
            }
        }
        Ok(removed)
    }

    fn sync(&self) -> Result<(), StoreError> {
        files::sync_file_system(&self.home)
    }
}

fn check_depth(id: &SnapshotId, lower: usize) -> Result<(), StoreError> {
    if lower > MAX_LOWER {
        return Err(StoreError::Invalid {
            kind: "snapshot",
            id: id.to_string(),
            why: "more than 500 layers, which is what the kernel's overlayfs can stack",
        });
    }
    Ok(())
}

/// The root directory's owner, mode and time are no part of a difference, so that each one must have its parent's.
fn copy_attributes(from: &Path, to: &Path) -> Result<(), StoreError> {
    let from = fs::symlink_metadata(from).map_err(StoreError::io("stat", from))?;
    let copy = || -> io::Result<()> {
        let (owner, group) = (Uid::from_raw(from.uid()), Gid::from_raw(from.gid()));
        rustix::fs::chownat(CWD, to, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
        fs::set_permissions(to, from.permissions())?;
        let time = Timespec { tv_sec: from.mtime(), tv_nsec: from.mtime_nsec() };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    };
    copy().map_err(StoreError::io("set attributes of", to))
}

/// 26 characters of base 32, as Docker's.
fn new_short_name() -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    (0..26).map(|_| char::from(ALPHABET[rand::random_range(0..ALPHABET.len())])).collect()
}

fn is_short_name(text: &str) -> bool {
    text.len() == 26 && text.bytes().all(|byte| byte.is_ascii_uppercase() || (b'2'..=b'7').contains(&byte))
}

fn write(path: &Path, text: &str) -> Result<(), StoreError> {
    fs::write(path, text).map_err(StoreError::io("write", path))
}
