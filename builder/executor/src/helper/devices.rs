//! Which devices a sandboxed process may open: Docker's list, held by the kernel.
//!
//! A container may make device nodes (CAP_MKNOD is one of Docker's default capabilities) but open only harmless ones. The
//! helper puts *itself* under that rule, and every container inherits it, so that it costs a run nothing. An insecure
//! container leaves it again before it starts.

use std::{
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, Mode, OFlags};

use super::cgroup::{Hierarchies, Owner, PARENT, make_all};
use crate::{
    DeviceNode, NodeKind, sys,
    wire::{Failure, Step},
};

/// Docker's rules for cgroup version 1 (runc adds 5:2 and 136:*, the pseudo terminals).
const RULES: [&str; 11] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:1 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

/// How the rule is held.
#[derive(Debug)]
pub(super) enum DeviceGate {
    /// This process is in a cgroup of its own that has the rule.
    Cgroup {
        /// Directory of the helper's cgroup.
        dir: PathBuf,
        /// Where it came from.
        home: PathBuf,
    },
    /// Not at all: containers get no CAP_MKNOD, and no device works on their file systems but those in `/dev`.
    NoDevices {
        /// What stood against it.
        reason: String,
    },
}

impl DeviceGate {
    /// Puts this process under the rule.
    pub(super) fn close(hierarchies: &Hierarchies, owner: &Owner) -> Self {
        let (hierarchy, v1) = match (hierarchies.v1("devices"), hierarchies.v2()) {
            (Some(v1), _) => (v1, true),
            (None, Some(v2)) => (v2, false),
            (None, None) => return Self::NoDevices { reason: "there are no cgroups".to_owned() },
        };
        let dir = hierarchy.mount.join(PARENT).join(owner.helper_cgroup());
        let home = hierarchy.mount.join(&hierarchy.own);
        let close = || -> io::Result<()> {
            make_all(&dir)?;
            if v1 {
                restrict_v1(&dir, &[])?;
            } else {
                restrict_v2(&dir, &[])?;
            }
            fs::write(dir.join("cgroup.procs"), "0")
        };
        match close() {
            Ok(()) => Self::Cgroup { dir, home },
            Err(error) => {
                let _ = fs::remove_dir(&dir);
                Self::NoDevices { reason: format!("{}: {error}", dir.display()) }
            }
        }
    }

    /// Takes the calling process out of the rule.
    pub(super) fn leave(&self) -> Result<(), Failure> {
        match self {
            Self::Cgroup { home, .. } => {
                fs::write(home.join("cgroup.procs"), "0").step(|| "leave the device cgroup")
            }
            Self::NoDevices { .. } => Ok(()),
        }
    }

    /// Takes the helper out, with all containers gone, and removes the cgroup.
    pub(super) fn open(self) {
        if self.leave().is_ok()
            && let Self::Cgroup { dir, .. } = self
        {
            let _ = fs::remove_dir(&dir);
        }
    }
}

/// Puts the rule on a version 1 cgroup, with further devices that may be used.
pub(super) fn restrict_v1(dir: &Path, further: &[DeviceNode]) -> io::Result<()> {
    fs::write(dir.join("devices.deny"), "a")?;
    let further: Vec<String> = further.iter().filter_map(DeviceNode::cgroup_rule).collect();
    for rule in RULES.into_iter().chain(further.iter().map(String::as_str)) {
        fs::write(dir.join("devices.allow"), rule)?;
    }
    Ok(())
}

/// Puts the rule on a version 2 cgroup, with further devices that may be used.
pub(super) fn restrict_v2(dir: &Path, further: &[DeviceNode]) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(CWD, dir, flags, Mode::empty())?;
    sys::attach_device_program(fd.as_fd(), &device_program(further))
}

/// The same rules as an eBPF program for cgroup version 2 (`BPF_PROG_TYPE_CGROUP_DEVICE`), one instruction per number.
fn device_program(further: &[DeviceNode]) -> Vec<u64> {
    const LOAD_32: u8 = 0x61;
    const MOVE: u8 = 0xb7;
    const MOVE_32_REG: u8 = 0xbc;
    const AND_32: u8 = 0x54;
    const SHIFT_RIGHT_32: u8 = 0x74;
    const JUMP_IF_EQUAL: u8 = 0x15;
    const JUMP_IF_NOT_EQUAL: u8 = 0x55;
    const JUMP_IF_ANY_SET: u8 = 0x45;
    const EXIT: u8 = 0x95;
    const ACCESS_MKNOD: i32 = 1;
    const BLOCK: i32 = 1;
    const CHARACTER: i32 = 2;
    let insn = |code: u8, dst: u8, src: u8, offset: i16, immediate: i32| {
        u64::from(code)
            | u64::from(dst) << 8
            | u64::from(src) << 12
            | u64::from(offset as u16) << 16
            | u64::from(immediate as u32) << 32
    };
    // struct bpf_cgroup_dev_ctx { access << 16 | type, major, minor } is where r1 points.
    let mut program = vec![
        insn(LOAD_32, 2, 1, 0, 0),
        insn(MOVE_32_REG, 3, 2, 0, 0),
        insn(SHIFT_RIGHT_32, 3, 0, 0, 16),
        insn(AND_32, 2, 0, 0, 0xffff),
        insn(LOAD_32, 4, 1, 4, 0),
        insn(LOAD_32, 5, 1, 8, 0),
    ];
    let allow = |program: &mut Vec<u64>| {
        program.extend([insn(MOVE, 0, 0, 0, 1), insn(EXIT, 0, 0, 0, 0)]);
    };
    // Any node may be made.
    program.push(insn(JUMP_IF_NOT_EQUAL, 3, 0, 2, ACCESS_MKNOD));
    allow(&mut program);
    // Each of these on its own: a mismatch jumps to the next.
    for node in further {
        const ACCESSES: [(char, i32); 3] = [('m', 1), ('r', 2), ('w', 4)];
        let kind = match node.kind {
            NodeKind::Block => BLOCK,
            NodeKind::Character => CHARACTER,
            NodeKind::Pipe => continue,
        };
        let refused: i32 =
            ACCESSES.iter().filter(|(letter, _)| !node.access.contains(*letter)).map(|(_, bit)| bit).sum();
        program.push(insn(JUMP_IF_NOT_EQUAL, 2, 0, 5, kind));
        // Device numbers of Linux fit: 12 bits and 20.
        program.push(insn(JUMP_IF_NOT_EQUAL, 4, 0, 4, node.major as i32));
        program.push(insn(JUMP_IF_NOT_EQUAL, 5, 0, 3, node.minor as i32));
        program.push(insn(JUMP_IF_ANY_SET, 3, 0, 2, refused));
        allow(&mut program);
    }
    // Block devices are refused.
    program.push(insn(JUMP_IF_EQUAL, 2, 0, 2, CHARACTER));
    program.extend([insn(MOVE, 0, 0, 0, 0), insn(EXIT, 0, 0, 0, 0)]);
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)] {
        program.push(insn(JUMP_IF_NOT_EQUAL, 4, 0, 3, major));
        program.push(insn(JUMP_IF_NOT_EQUAL, 5, 0, 2, minor));
        allow(&mut program);
    }
    program.push(insn(JUMP_IF_NOT_EQUAL, 4, 0, 2, 136));
    allow(&mut program);
    program.extend([insn(MOVE, 0, 0, 0, 0), insn(EXIT, 0, 0, 0, 0)]);
    program
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// What a shell in a version 2 cgroup with the rule can do with a few nodes.
    fn tried(further: &[DeviceNode]) -> Option<String> {
        let hierarchies = Hierarchies::find().unwrap();
        let v2 = hierarchies.v2()?;
        let dir = v2.mount.join(format!("lapstrake-test-{}-{}", std::process::id(), further.len()));
        fs::create_dir(&dir).unwrap();
        let nodes = tempfile::tempdir().unwrap();
        restrict_v2(&dir, further).unwrap();
        let script = "echo $$ > \"$0/cgroup.procs\" || exit 9; cd \"$1\"; head -c1 /dev/zero > /dev/null && echo zero; \
            mknod mem c 1 1 && echo made; head -c1 mem > /dev/null && echo opened; \
            mknod loop b 7 0 && echo made; head -c1 loop > /dev/null && echo opened; (: >> loop) && echo writable";
        let output = Command::new("sh").args(["-c", script]).arg(&dir).arg(nodes.path()).output().unwrap();
        fs::remove_dir(&dir).unwrap();
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    #[test]
    fn the_version_2_program_lets_only_dockers_devices_through() {
        let Some(tried) = tried(&[]) else { return };
        assert_eq!(tried, "zero\nmade\nmade\n");
    }

    #[test]
    fn the_version_2_program_lets_further_devices_through_as_far_as_they_may_be_used() {
        let node = |kind, major, minor, access: &str| DeviceNode {
            path: "/dev/x".to_owned(),
            kind,
            major,
            minor,
            mode: 0o600,
            uid: None,
            gid: None,
            access: access.to_owned(),
        };
        // The second is the first's number with another type.
        let further = [node(NodeKind::Block, 7, 0, "r"), node(NodeKind::Block, 1, 1, "rwm")];
        let Some(tried) = tried(&further) else { return };
        assert_eq!(tried, "zero\nmade\nmade\nopened\n");
    }

    #[test]
    fn version_1_rules_are_dockers_and_those_of_further_devices() {
        let dir = tempfile::tempdir().unwrap();
        let node = DeviceNode {
            path: "/dev/x".to_owned(),
            kind: NodeKind::Block,
            major: 7,
            minor: 2,
            mode: 0o600,
            uid: None,
            gid: None,
            access: "r".to_owned(),
        };
        restrict_v1(dir.path(), &[node]).unwrap();
        // The last that was written.
        assert_eq!(fs::read_to_string(dir.path().join("devices.allow")).unwrap(), "b 7:2 r");
        assert_eq!(fs::read_to_string(dir.path().join("devices.deny")).unwrap(), "a");
    }
}
