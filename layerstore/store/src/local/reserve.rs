//! Space put aside for the day the disk is full.
//!
//! Removing things takes a little space first: the transaction that forgets them. A file of blocks that nobody uses is given up then, and
//! made again when there is room.

use std::{
    fs::OpenOptions,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::fs::{FallocateFlags, fallocate};

/// Bytes put aside: far more than the largest removal's transaction.
const SIZE: u64 = 8 << 20;

/// The reserve of one store.
pub(super) struct Reserve {
    path: PathBuf,
    there: AtomicBool,
}

impl Reserve {
    /// Puts the space aside, if there is that much.
    pub(super) fn new(path: PathBuf) -> Self {
        let reserve = Self { path, there: AtomicBool::new(false) };
        reserve.restore();
        reserve
    }

    /// Frees the space; `false` when there was none put aside.
    pub(super) fn give_up(&self) -> bool {
        let was_there = self.there.swap(false, Ordering::Relaxed);
        if was_there {
            tracing::warn!(path = %self.path.display(), "the disk is full; giving up the reserve to be able to remove things");
        }
        was_there && std::fs::remove_file(&self.path).is_ok()
    }

    /// Puts the space aside again. A failure means that there is none, which is for others to tell.
    pub(super) fn restore(&self) {
        if self.there.load(Ordering::Relaxed) {
            return;
        }
        let make = || -> std::io::Result<()> {
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(&self.path)?;
            fallocate(&file, FallocateFlags::empty(), 0, SIZE)?;
            Ok(())
        };
        match make() {
            Ok(()) => self.there.store(true, Ordering::Relaxed),
            Err(error) => {
                tracing::debug!(%error, path = %self.path.display(), "no space to put aside");
                // Half a reserve would be the half that somebody needs.
                let _ = std::fs::remove_file(&self.path);
            }
        }
    }
}
