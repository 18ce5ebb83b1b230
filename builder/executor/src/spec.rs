//! What to run: the whole description of one container, as a value.

use std::{fmt, net::IpAddr, path::PathBuf};

use lapstrake_layerstore_store::{SnapshotMount, random_id};
use serde::{Deserialize, Serialize};

use crate::{ContainerEdits, Resources, Ulimit};

/// Names one run. Becomes the container's id and the name of its cgroup.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct RunId(String);

impl RunId {
    /// Accepts 1 to 128 characters of `[A-Za-z0-9_.-]` that do not start with a dot or a dash, else gives the text back.
    pub fn new(id: impl Into<String>) -> Result<Self, String> {
        let id = id.into();
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if id.is_empty() || id.len() > 128 || id.starts_with(['.', '-']) || !id.chars().all(good) {
            return Err(id);
        }
        Ok(Self(id))
    }

    /// A fresh id that nothing else has.
    pub fn random() -> Self {
        Self(random_id())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One process in one container: everything that [`crate::Executor::run`] needs to know.
///
/// Fields hold what the user wrote; they are checked by `run`, whose errors name the bad one.
#[derive(Debug, Clone)]
pub struct ProcessSpec {
    /// Names the run; unique among the runs of this machine.
    pub id: RunId,
    /// The root file system.
    pub root: SnapshotMount,
    /// Whether the process sees the root file system read-only. Mount targets are made in it nonetheless, and removed.
    pub read_only_root: bool,
    /// Program and arguments; never empty. A program without a slash is searched in the `PATH` of `env`.
    pub args: Vec<String>,
    /// `KEY=value` each. The last of several with one key counts. `HOME` is added from `/etc/passwd` when missing.
    pub env: Vec<String>,
    /// Working directory, absolute, made when it is missing; empty means `/`.
    pub cwd: String,
    /// `""`, `name`, `uid`, `name:group`, `uid:gid` and so on, looked up in the root file system's
    /// `/etc/passwd` and `/etc/group`. Supplementary groups are those that `/etc/group` names, unless a group is given.
    pub user: String,
    /// Host name; empty means `buildkitsandbox`, as BuildKit has it.
    pub hostname: String,
    /// Lines added to `/etc/hosts`.
    pub extra_hosts: Vec<ExtraHost>,
    /// Replaces name servers and options in `/etc/resolv.conf`, field by field: the executor's ([`crate::NetworkOptions`]) and the host's.
    pub dns: DnsConfig,
    /// What network the process sees.
    pub network: NetworkMode,
    /// How much the process may do.
    pub security: SecurityMode,
    /// Further mounts, made in this order.
    pub mounts: Vec<MountSpec>,
    /// What its devices bring.
    pub devices: ContainerEdits,
    /// Limits.
    pub resources: Resources,
    /// Cgroup under which the run's own is made, as a path from the hierarchy's root (`/a/b` or `a/b`); `None` means `/lapstrake`.
    pub cgroup_parent: Option<String>,
    /// Resource limits of the process.
    pub ulimits: Vec<Ulimit>,
    /// Which of the empty files and directories that were made only to mount on (`/etc/hosts`, mount targets) are
    /// removed afterwards from [`Self::root`]. What was made in other mounts (a shared cache) stays.
    pub stubs: StubPolicy,
}

impl ProcessSpec {
    /// A process in a sandbox with defaults: root user, no mounts, default network, no limits.
    pub fn new(root: SnapshotMount, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            id: RunId::random(),
            root,
            read_only_root: false,
            args: args.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            cwd: String::new(),
            user: String::new(),
            hostname: String::new(),
            extra_hosts: Vec::new(),
            dns: DnsConfig::default(),
            network: NetworkMode::Default,
            security: SecurityMode::Sandbox,
            mounts: Vec::new(),
            devices: ContainerEdits::default(),
            resources: Resources::default(),
            cgroup_parent: None,
            ulimits: Vec::new(),
            stubs: StubPolicy::RemoveTargets,
        }
    }
}

/// What becomes of files and directories made to mount on. Only what is still empty is ever removed, and the parent
/// directory's times are put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StubPolicy {
    /// Targets are removed, directories made on the way to them stay. BuildKit's default.
    RemoveTargets,
    /// Targets and the directories made on the way to them are removed (LLB's `removeMountStubsRecursive`).
    RemoveTargetsAndParents,
    /// Everything is removed, `/dev`, `/proc` and `/sys` as well, and directories that were there before are as old as they were: as with
    /// Moby's classic builder, whose containers have all of that in a layer of their own, which is no part of the image.
    RemoveAll,
}

/// One `--add-host`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtraHost {
    /// The name.
    pub host: String,
    /// Its address. (`host-gateway` is replaced by the caller.)
    pub ip: IpAddr,
}

/// What `/etc/resolv.conf` is to say. Empty fields are taken from the host's file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsConfig {
    /// Name servers.
    pub nameservers: Vec<String>,
    /// Search domains.
    pub search: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

impl DnsConfig {
    /// These fields where they say something, else the other's.
    pub(crate) fn over(&self, other: &Self) -> Self {
        let first =
            |own: &Vec<String>, other: &Vec<String>| if own.is_empty() { other.clone() } else { own.clone() };
        Self {
            nameservers: first(&self.nameservers, &other.nameservers),
            search: first(&self.search, &other.search),
            options: first(&self.options, &other.options),
        }
    }
}

/// What network a process sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NetworkMode {
    /// An empty network namespace: a loopback interface that is up, nothing else.
    None,
    /// The daemon's own network.
    Host,
    /// What the executor is set up with ([`crate::DefaultNetwork`]): unless said otherwise a namespace of its own behind NAT where
    /// the machine can, else the host's, with one warning in the log.
    Default,
}

/// How much a process may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SecurityMode {
    /// Docker's defaults: few capabilities, seccomp, masked paths, a few devices.
    Sandbox,
    /// All capabilities, all devices, nothing masked (`RUN --security=insecure`). Whoever allows it has checked the entitlement.
    Insecure,
}

/// Something mounted in the container.
#[derive(Debug, Clone)]
pub struct MountSpec {
    /// Where: an absolute path in the container. Symbolic links on the way are followed inside the root file system, never out of it.
    pub target: String,
    /// What.
    pub kind: MountKind,
}

/// What is mounted.
#[derive(Clone)]
pub enum MountKind {
    /// A snapshot, or a path in it.
    Snapshot {
        /// The snapshot.
        mount: SnapshotMount,
        /// Path in the snapshot, followed inside it; empty or `/` means all of it. May name a file.
        selector: String,
        /// Whether writing is refused.
        read_only: bool,
        /// Whether other containers may have it mounted at the same time, and see what is written.
        shared: bool,
    },
    /// A file or directory of the host.
    Bind {
        /// Its absolute path.
        source: PathBuf,
        /// Whether writing is refused.
        read_only: bool,
    },
    /// An empty file system in memory.
    Tmpfs {
        /// Bytes that it may hold; `None` means the kernel's default (half of memory).
        size: Option<u64>,
    },
    /// A file in memory.
    Secret {
        /// Its content.
        data: Vec<u8>,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// A socket of the host, for an ssh agent.
    SshAgent {
        /// The socket's absolute path on the host.
        socket: PathBuf,
        /// Owner that the container is to see.
        uid: u32,
        /// Group that the container is to see.
        gid: u32,
        /// Permission bits that the container is to see.
        mode: u32,
    },
}

// By hand, so that a secret never reaches a log.
impl fmt::Debug for MountKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Snapshot { mount, selector, read_only, shared } => f
                .debug_struct("Snapshot")
                .field("mount", mount)
                .field("selector", selector)
                .field("read_only", read_only)
                .field("shared", shared)
                .finish(),
            Self::Bind { source, read_only } => {
                f.debug_struct("Bind").field("source", source).field("read_only", read_only).finish()
            }
            Self::Tmpfs { size } => f.debug_struct("Tmpfs").field("size", size).finish(),
            Self::Secret { data, uid, gid, mode } => f
                .debug_struct("Secret")
                .field("bytes", &data.len())
                .field("uid", uid)
                .field("gid", gid)
                .field("mode", mode)
                .finish(),
            Self::SshAgent { socket, uid, gid, mode } => f
                .debug_struct("SshAgent")
                .field("socket", socket)
                .field("uid", uid)
                .field("gid", gid)
                .field("mode", mode)
                .finish(),
        }
    }
}
