//! Snapshots that several containers have mounted at once.
//!
//! A directory is the same to all who mount it. An overlay is not: of two with one upper directory, each would know only of its own changes (kernel:
//! Documentation/filesystems/overlayfs.rst, "Sharing and copying layers"). So it is mounted once, in the helper's view of the file system, for as long
//! as a container has it, and each container gets a mount of that. It goes with the helper, too.

use std::{
    collections::HashMap,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
};

use rustix::fs::{CWD, Mode, OFlags};

use super::mounts;
use crate::{
    plan::{MountSource, Plan, Tree},
    wire::{Failure, Step as _},
};

/// The overlays that are mounted here, by their upper directories.
#[derive(Default)]
pub(super) struct SharedOverlays(HashMap<PathBuf, Mounted>);

struct Mounted {
    mount: OwnedFd,
    users: usize,
}

impl SharedOverlays {
    /// For each mount of a plan that is a shared overlay, a mount of it, attached nowhere. After an error none is taken.
    pub(super) fn take(&mut self, plan: &Plan) -> Result<Vec<Option<OwnedFd>>, Failure> {
        let mut taken = Vec::with_capacity(plan.mounts.len());
        for source in plan.mounts.iter().map(|mount| &mount.source) {
            let mount = shared_upper(source).map(|(tree, upper)| self.take_one(tree, upper)).transpose();
            match mount {
                Ok(mount) => taken.push(mount),
                Err(failure) => {
                    let sources = plan.mounts.iter().map(|mount| &mount.source);
                    sources.take(taken.len()).for_each(|source| self.give_back_one(source));
                    return Err(failure);
                }
            }
        }
        Ok(taken)
    }

    /// The container of a plan is gone.
    pub(super) fn give_back(&mut self, plan: &Plan) {
        plan.mounts.iter().for_each(|mount| self.give_back_one(&mount.source));
    }

    fn take_one(&mut self, tree: &Tree, upper: &PathBuf) -> Result<OwnedFd, Failure> {
        if !self.0.contains_key(upper) {
            // Kernels before 6.15 copy only from mounts that are attached somewhere. Nobody else comes by there: the upper directory is written to
            // through the overlay alone.
            let mount = mounts::tree(tree, false)?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::openat(CWD, upper, flags, Mode::empty())
                .and_then(|upper| mounts::attach(mount.as_fd(), upper.as_fd()))
                .step(|| format!("attach overlay on {}", upper.display()))?;
            self.0.insert(upper.clone(), Mounted { mount, users: 0 });
        }
        let mounted = self.0.get_mut(upper).expect("it was just put there");
        mounted.users += 1;
        let copied = mounts::copy(mounted.mount.as_fd(), false);
        copied.step(|| format!("mount overlay on {}", upper.display())).inspect_err(|_| self.release(upper))
    }

    fn give_back_one(&mut self, source: &MountSource) {
        if let Some((_, upper)) = shared_upper(source) {
            self.release(upper);
        }
    }

    fn release(&mut self, upper: &PathBuf) {
        let Some(mounted) = self.0.get_mut(upper) else { return };
        mounted.users -= 1;
        if mounted.users == 0 {
            if let Err(error) = mounts::detach(mounted.mount.as_fd()) {
                eprintln!("{}: unmount {}: {error}", super::HELPER_NAME, upper.display());
            }
            self.0.remove(upper);
        }
    }
}

fn shared_upper(source: &MountSource) -> Option<(&Tree, &PathBuf)> {
    match source {
        MountSource::Tree {
            tree: tree @ Tree::Overlay { upper: Some((upper, _)), .. },
            shared: true,
            ..
        } => Some((tree, upper)),
        _ => None,
    }
}
