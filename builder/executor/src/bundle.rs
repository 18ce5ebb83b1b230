//! `config.json` of an OCI bundle (runtime-spec 1.0): the plan in a runtime's words.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::{
    SecurityMode,
    plan::{Network, Plan},
    user::Identity,
};

/// A mount that is ready at a path.
pub(crate) struct BundleMount {
    pub(crate) target: String,
    pub(crate) source: PathBuf,
    /// Whether it is read-only, and whether it is nosuid, nodev and noexec.
    pub(crate) restrictions: (bool, bool),
}

/// The configuration. `root` is the mounted root file system.
pub(crate) fn config(plan: &Plan, identity: &Identity, root: &Path, mounts: &[BundleMount]) -> Value {
    let insecure = plan.security == SecurityMode::Insecure;
    let caps: Vec<_> = plan.caps.names().collect();
    let inherited = if insecure { caps.clone() } else { Vec::new() };
    let mut env = plan.env.clone();
    if !env.iter().any(|entry| entry.strip_prefix("HOME=").is_some_and(|home| !home.is_empty())) {
        env.retain(|entry| entry != "HOME=");
        env.push(format!("HOME={}", identity.home));
    }
    let mut namespaces: Vec<_> = ["pid", "ipc", "uts", "mount"].map(|kind| json!({"type": kind})).into();
    if plan.network == Network::Empty {
        namespaces.push(json!({"type": "network"}));
    }
    let rlimits: Vec<_> = plan
        .rlimits
        .iter()
        .map(|limit| {
            let name = format!("RLIMIT_{}", limit.name.to_ascii_uppercase());
            json!({"type": name, "soft": limit.soft, "hard": limit.hard})
        })
        .collect();
    let mut linux = json!({
        "namespaces": namespaces,
        "cgroupsPath": Path::new("/").join(&plan.cgroup),
        "maskedPaths": plan.masked,
        "readonlyPaths": plan.read_only,
        "resources": resources(plan),
    });
    if insecure {
        linux["devices"] = insecure_devices();
    }
    if let Some(seccomp) = plan.runtime.as_ref().and_then(|runtime| runtime.seccomp.clone()) {
        linux["seccomp"] = seccomp;
    }
    json!({
        "ociVersion": "1.0.2",
        "hostname": plan.hostname,
        "root": {"path": root, "readonly": plan.read_only_root},
        "process": {
            "terminal": false,
            "user": {"uid": identity.uid, "gid": identity.gid, "additionalGids": identity.groups, "umask": 0o022},
            "args": plan.args,
            "env": env,
            "cwd": plan.cwd,
            "noNewPrivileges": false,
            "capabilities": {
                "bounding": caps, "effective": caps, "permitted": caps,
                "inheritable": inherited, "ambient": inherited,
            },
            "rlimits": rlimits,
        },
        "mounts": all_mounts(plan, mounts, insecure),
        "linux": linux,
    })
}

fn all_mounts(plan: &Plan, mounts: &[BundleMount], insecure: bool) -> Vec<Value> {
    let read_only = if insecure { "rw" } else { "ro" };
    let mut all = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
               "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
               "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
               "options": ["nosuid", "noexec", "nodev", "mode=1777", format!("size={}", plan.shm_size)]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
               "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs",
               "options": ["nosuid", "noexec", "nodev", read_only]}),
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
               "options": ["nosuid", "noexec", "nodev", read_only]}),
    ];
    all.extend(mounts.iter().map(|mount| {
        let (read_only, locked) = mount.restrictions;
        let mut options = vec!["rbind"];
        options.extend(read_only.then_some("ro"));
        options.extend(locked.then_some(["nosuid", "nodev", "noexec"]).into_iter().flatten());
        json!({"destination": mount.target, "type": "bind", "source": mount.source, "options": options})
    }));
    all
}

/// Limits and the device list.
fn resources(plan: &Plan) -> Value {
    let resources = &plan.resources;
    let devices = if plan.security == SecurityMode::Insecure {
        json!([{"allow": true, "access": "rwm"}])
    } else {
        // Runtimes add Docker's devices to an empty list by themselves.
        json!([{"allow": false, "access": "rwm"}])
    };
    let mut value = json!({"devices": devices});
    let mut put = |section: &str, key: &str, limit: Option<Value>| {
        if let Some(limit) = limit {
            value[section][key] = limit;
        }
    };
    put("memory", "limit", resources.memory.map(Value::from));
    put("memory", "swap", resources.memory_swap.map(Value::from));
    put("cpu", "shares", resources.cpu_shares.map(Value::from));
    put("cpu", "period", resources.cpu_period.map(Value::from));
    put("cpu", "quota", resources.cpu_quota.map(Value::from));
    put("cpu", "cpus", resources.cpuset_cpus.clone().map(Value::from));
    put("cpu", "mems", resources.cpuset_mems.clone().map(Value::from));
    put("pids", "limit", resources.pids.map(Value::from));
    value
}

/// The same as the native executor's.
fn insecure_devices() -> Value {
    let character = [
        ("/dev/kmsg", 1, 11),
        ("/dev/cuse", 10, 203),
        ("/dev/fuse", 10, 229),
        ("/dev/kvm", 10, 232),
        ("/dev/net/tun", 10, 200),
        ("/dev/loop-control", 10, 237),
    ];
    let device = |kind: &str, path: String, major: i64, minor: i64| json!({"type": kind, "path": path, "major": major, "minor": minor, "fileMode": 0o666, "uid": 0, "gid": 0});
    let mut all: Vec<_> =
        character.iter().map(|&(path, major, minor)| device("c", path.to_owned(), major, minor)).collect();
    all.extend((0..8).map(|minor| device("b", format!("/dev/loop{minor}"), 7, minor)));
    Value::Array(all)
}
