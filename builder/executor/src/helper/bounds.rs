//! What all containers together may take of the machine when no limit was asked for: a share of its processes, and of the
//! processors no more than the rest of the machine together gets. The helper puts *itself* under that rule, as it does for
//! devices, so that it costs a run nothing.
//!
//! Docker has no such bound: a fork bomb in a `RUN` takes every process id there is, and the daemon that should end it cannot
//! be reached any more. Limits of a run (`pids`, `cpu-shares`) hold within these.

use std::{fs, io, path::PathBuf};

use super::cgroup::{Hierarchies, Hierarchy, Owner, PARENT, make_all};

/// The cgroups by which it is held.
#[derive(Debug, Default)]
pub(super) struct Bounds {
    /// This helper's own, and where it came from.
    own: Vec<(PathBuf, PathBuf)>,
}

impl Bounds {
    /// Puts this process and all that it will make under the rule. Says what cannot be held, if anything.
    pub(super) fn set(hierarchies: &Hierarchies, owner: &Owner) -> (Self, Option<String>) {
        let mut bounds = Self::default();
        let mut missing = Vec::new();
        for controller in ["pids", "cpu"] {
            let set = match (hierarchies.v1(controller), hierarchies.v2()) {
                (Some(v1), _) => bounds.set_v1(v1, controller, owner),
                (None, Some(v2)) => set_v2(v2, controller),
                (None, None) => Err(io::ErrorKind::NotFound.into()),
            };
            if let Err(error) = set {
                missing.push(format!("{controller}: {error}"));
            }
        }
        (bounds, (!missing.is_empty()).then(|| missing.join(", ")))
    }

    fn set_v1(&mut self, hierarchy: &Hierarchy, controller: &str, owner: &Owner) -> io::Result<()> {
        let parent = hierarchy.mount.join(PARENT);
        let dir = parent.join(owner.helper_cgroup());
        make_all(&dir)?;
        if controller == "pids" {
            fs::write(parent.join("pids.max"), processes().to_string())?;
        }
        fs::write(dir.join("cgroup.procs"), "0")?;
        self.own.push((dir, hierarchy.mount.join(&hierarchy.own)));
        Ok(())
    }

    /// Takes the helper out, with all containers gone, and removes its cgroups. The parent stays with its bound.
    pub(super) fn lift(self) {
        for (dir, home) in self.own {
            if fs::write(home.join("cgroup.procs"), "0").is_ok() {
                let _ = fs::remove_dir(&dir);
            }
        }
    }
}

/// Here every run has a cgroup of its own below the parent, which is all that has to be bounded.
fn set_v2(v2: &Hierarchy, controller: &str) -> io::Result<()> {
    fs::write(v2.mount.join("cgroup.subtree_control"), format!("+{controller}"))?;
    let parent = v2.mount.join(PARENT);
    make_all(&parent)?;
    if controller == "pids" { fs::write(parent.join("pids.max"), processes().to_string()) } else { Ok(()) }
}

/// How many processes and threads all containers may have: half of the process ids, and no more than fits in memory with room
/// to spare. (`threads-max` is where their kernel stacks alone would take an eighth of it; 15 % is systemd's default for a service.)
fn processes() -> u64 {
    let read = |name: &str| -> Option<u64> {
        fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()?.trim().parse().ok()
    };
    let ids = read("pid_max").unwrap_or(32_768) / 2;
    let memory = read("threads-max").map_or(ids, |threads| threads / 100 * 15);
    ids.min(memory)
}
