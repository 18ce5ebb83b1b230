//! Docker's vfs layout: `vfs/dir/<id>` is a snapshot's complete tree, copied from its parent's. `vfs/deletions/<id>` is ours: what a snapshot deletes
//! although nothing of it is in its parent.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

use lapstrake_layerstore_store::{DiffSource, Leftovers, SnapshotId, SnapshotMount, StoreError, Usage};

use crate::{DriverKind, GraphDriver, copy, files};

/// The vfs driver.
#[derive(Debug)]
pub struct Vfs {
    home: PathBuf,
    deletions: PathBuf,
}

impl Vfs {
    /// Opens `<root>/vfs`, making it where it is not there.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let home = root.join("vfs").join("dir");
        files::make_directory(&root.join("vfs"), 0o710)?;
        let deletions = root.join("vfs").join("deletions");
        files::make_directory(&home, 0o710)?;
        files::make_directory(&deletions, 0o710)?;
        Ok(Self { home, deletions })
    }
}

impl GraphDriver for Vfs {
    fn kind(&self) -> DriverKind {
        DriverKind::Vfs
    }

    fn create(&self, id: &SnapshotId, parents: &[SnapshotId]) -> Result<(), StoreError> {
        let directory = self.directory(id);
        fs::create_dir(&directory).map_err(StoreError::io("make directory", &directory))?;
        let filled = match parents.first() {
            None => files::set_mode(&directory, 0o755),
            Some(parent) => copy::tree(&self.directory(parent), &directory),
        };
        filled.inspect_err(|_| {
            if let Err(error) = self.remove(id).and_then(Leftovers::delete) {
                tracing::warn!(%error, %id, "directory of a failed snapshot not removed");
            }
        })
    }

    fn writable_mount(&self, id: &SnapshotId, _parents: &[SnapshotId]) -> Result<SnapshotMount, StoreError> {
        Ok(SnapshotMount::Bind { source: self.directory(id), read_only: false })
    }

    fn read_only_mount(&self, id: &SnapshotId, _parents: &[SnapshotId]) -> Result<SnapshotMount, StoreError> {
        Ok(SnapshotMount::Bind { source: self.directory(id), read_only: true })
    }

    fn diff(&self, id: &SnapshotId, parents: &[SnapshotId]) -> DiffSource {
        DiffSource::Trees {
            lower: parents.first().map(|parent| self.directory(parent)),
            upper: self.directory(id),
            deletions: Some(self.deletions.join(id.as_str())),
        }
    }

    fn directory(&self, id: &SnapshotId) -> PathBuf {
        self.home.join(id.as_str())
    }

    fn usage(&self, id: &SnapshotId) -> Result<Usage, StoreError> {
        files::usage(&self.directory(id))
    }

    fn remove(&self, id: &SnapshotId) -> Result<Leftovers, StoreError> {
        let directory = self.directory(id);
        let removing = self.home.join(format!("removing-{id}"));
        files::remove_file(&self.deletions.join(id.as_str()))?;
        match fs::rename(&directory, &removing) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Leftovers::none()),
            renamed => renamed.map_err(StoreError::io("rename", directory))?,
        }
        let mut leftovers = Leftovers::none();
        leftovers.push(move || files::remove_tree(&removing));
        Ok(leftovers)
    }

    fn remove_unknown(&self, known: &BTreeSet<SnapshotId>) -> Result<usize, StoreError> {
        let is_known =
            |name: &OsStr| name.to_str().is_some_and(|name| known.contains(&SnapshotId::new(name)));
        let mut removed = 0;
        for name in files::list(&self.home)? {
            if !is_known(&name) {
                files::remove_tree(&self.home.join(name))?;
                removed += 1;
            }
        }
        for name in files::list(&self.deletions)? {
            if !is_known(&name) {
                files::remove_file(&self.deletions.join(name))?;
            }
        }
        Ok(removed)
    }

    fn sync(&self) -> Result<(), StoreError> {
        files::sync_file_system(&self.home)
    }
}
