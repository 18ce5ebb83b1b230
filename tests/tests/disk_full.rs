//! A disk that a step fills: the build fails, and everything can be removed and built again.

use std::{path::Path, process::Command};

use lapstrake_tests::{Context, Workbench};
use tempfile::TempDir;

/// A small file system, unmounted when dropped.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn new(mebibytes: u32) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let size = format!("size={mebibytes}m");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir.path()));
        Self(dir)
    }

    fn path(&self) -> &Path {
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

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_fills_the_disk_fails_alone() {
    let disk = SmallDisk::new(48);
    let bench = Workbench::new_in(disk.path());
    let filling = || Context::new("FROM busybox\nRUN cat /dev/zero > /big\n");
    for _ in 0..3 {
        bench.build(filling(), "filled").await.unwrap_err();
        bench.collector.collect().unwrap();
    }
    bench.build(Context::new("FROM busybox\nRUN echo fits > /small\n"), "app").await.unwrap();
    assert_eq!(bench.read("app", "small"), "fits\n");
}
