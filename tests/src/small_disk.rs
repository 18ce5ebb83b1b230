//! A disk that is soon full.

use std::{path::Path, process::Command};

use tempfile::TempDir;

/// A small file system, unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk(TempDir);

impl SmallDisk {
    /// Of so many MiB.
    pub fn new(mebibytes: u32) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let size = format!("size={mebibytes}m");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir.path()));
        Self(dir)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run(Command::new("umount").arg("--lazy").arg(self.0.path()));
    }
}

fn run(command: &mut Command) {
    let status = command.status().expect("mount is there");
    assert!(status.success(), "{command:?}: {status}");
}
