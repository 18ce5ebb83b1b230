//! Running a process.

use std::net::IpAddr;

use super::{GraphBuilder, NodeOp, OpOptions, Output, State};
use crate::{Error, pb};

/// What to run, besides what the state says (environment, directory, user, network).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ExecOptions {
    /// The command line; at least one word.
    pub args: Vec<String>,
    /// Mounts besides the root file system.
    pub mounts: Vec<Mount>,
    /// Secrets, as files or variables.
    pub secrets: Vec<SecretMount>,
    /// Sockets of ssh agents.
    pub ssh: Vec<SshMount>,
    /// CDI devices.
    pub devices: Vec<Device>,
    /// Proxy settings: put into the process's environment without being part of the cache key.
    pub proxy: Option<ProxyEnv>,
    /// Entries of `/etc/hosts`.
    pub extra_hosts: Vec<HostIp>,
    /// Resource limits.
    pub ulimits: Vec<Ulimit>,
    /// The control group above the process's; empty for the default.
    pub cgroup_parent: String,
    /// Network, instead of the state's.
    pub network: Option<pb::NetMode>,
    /// Confinement, instead of the state's.
    pub security: Option<pb::SecurityMode>,
    /// Whether the root file system is mounted read-only.
    pub read_only_root: bool,
    /// Exit codes that are no failure; empty for 0 only.
    pub valid_exit_codes: Vec<i32>,
    /// Name, platform, cache rules, location.
    pub op: OpOptions,
}

/// A mount.
#[derive(Debug, Clone, PartialEq)]
pub struct Mount {
    /// Where.
    pub target: String,
    /// What; the empty file system for `tmpfs`.
    pub source: State,
    /// Which directory or file of the source; empty for the whole.
    pub selector: String,
    /// Whether it cannot be written.
    pub read_only: bool,
    /// What becomes of what is written.
    pub kind: MountKind,
}

/// What becomes of what is written to a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountKind {
    /// It is another output of the vertex.
    Bind,
    /// It is thrown away.
    BindNoOutput,
    /// It stays for later builds.
    Cache {
        /// The name by which builds share it.
        id: String,
        /// How they do.
        sharing: CacheSharing,
    },
    /// It is in memory, and thrown away.
    Tmpfs {
        /// Most bytes; 0 for no limit.
        size: i64,
    },
}

/// How builds share a cache mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheSharing {
    /// All at once.
    #[default]
    Shared,
    /// Each its own.
    Private,
    /// One after the other.
    Locked,
}

/// A secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretMount {
    /// Which.
    pub id: String,
    /// The file that it is put in.
    pub target: Option<String>,
    /// The variable that it is put in.
    pub env: Option<String>,
    /// Owner of the file.
    pub uid: u32,
    /// Group of the file.
    pub gid: u32,
    /// Permission bits of the file.
    pub mode: u32,
    /// Whether it may be absent.
    pub optional: bool,
}

/// The socket of an ssh agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshMount {
    /// Which agent; empty for the default.
    pub id: String,
    /// Where; empty for `/run/buildkit/ssh_agent.<n>`.
    pub target: String,
    /// Owner of the socket.
    pub uid: u32,
    /// Group of the socket.
    pub gid: u32,
    /// Permission bits of the socket.
    pub mode: u32,
    /// Whether it may be absent.
    pub optional: bool,
}

/// A CDI device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its qualified name.
    pub name: String,
    /// Whether it may be absent.
    pub optional: bool,
}

/// Proxy settings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProxyEnv {
    /// `HTTP_PROXY`
    pub http: String,
    /// `HTTPS_PROXY`
    pub https: String,
    /// `FTP_PROXY`
    pub ftp: String,
    /// `NO_PROXY`
    pub no: String,
    /// `ALL_PROXY`
    pub all: String,
}

/// A host and its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostIp {
    /// Name.
    pub host: String,
    /// Address.
    pub ip: IpAddr,
}

/// A resource limit (`setrlimit`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ulimit {
    /// `nofile`, `core`, …
    pub name: String,
    /// Soft limit; -1 for none.
    pub soft: i64,
    /// Hard limit; -1 for none.
    pub hard: i64,
}

#[derive(Debug, Clone)]
pub(crate) struct ExecNode {
    pub(super) base: State,
    pub(super) options: ExecOptions,
    /// The root file system and all mounts, sorted by target.
    pub(super) mounts: Vec<ExecMount>,
}

#[derive(Debug, Clone)]
pub(crate) struct ExecMount {
    pub(super) target: String,
    pub(super) source: Option<Output>,
    pub(super) selector: String,
    pub(super) read_only: bool,
    pub(super) kind: MountKind,
}

impl ExecMount {
    pub(super) fn has_output(&self) -> bool {
        !self.read_only && self.kind == MountKind::Bind
    }
}

/// What a process leaves behind.
#[derive(Debug, Clone)]
pub struct ExecOutputs {
    /// The root file system.
    pub root: State,
    mounts: Vec<(String, Result<State, Error>)>,
}

impl ExecOutputs {
    /// The file system of the first mount at `target`, `None` if there is none. Mounts that keep nothing are errors; what is mounted
    /// read-only is what was mounted.
    pub fn mount(&self, target: &str) -> Option<Result<State, Error>> {
        self.mounts.iter().find(|(t, _)| t == target).map(|(_, state)| state.clone())
    }
}

impl GraphBuilder {
    /// Runs a process on top of `base`.
    pub fn run(&mut self, base: &State, mut options: ExecOptions) -> ExecOutputs {
        let op_options = std::mem::take(&mut options.op);
        let declared = std::mem::take(&mut options.mounts);
        let mut mounts = vec![ExecMount {
            target: "/".to_owned(),
            source: base.output(),
            selector: String::new(),
            read_only: options.read_only_root,
            kind: MountKind::Bind,
        }];
        mounts.extend(declared.iter().map(|m| ExecMount {
            target: m.target.clone(),
            source: m.source.output(),
            selector: m.selector.clone(),
            read_only: m.read_only,
            kind: m.kind.clone(),
        }));
        // `order[i]` is where mount i stands once sorted; outputs are numbered in sorted order.
        let mut order: Vec<usize> = (0..mounts.len()).collect();
        order.sort_by(|a, b| mounts[*a].target.cmp(&mounts[*b].target));
        let mut index_of = vec![None; mounts.len()];
        let mut next = 0u32;
        for &i in &order {
            if mounts[i].has_output() {
                index_of[i] = Some(next);
                next += 1;
            }
        }
        let sorted = order.iter().map(|&i| mounts[i].clone()).collect();

        let platform = op_options.platform.clone();
        let node = ExecNode { base: base.clone(), options, mounts: sorted };
        let output = self.push(NodeOp::Exec(Box::new(node)), op_options);
        let state_of = |i: usize, m: &ExecMount, inherits: &State| -> Result<State, Error> {
            if m.read_only {
                return Ok(inherits.clone().with_output(m.source));
            }
            let Some(index) = index_of[i] else {
                let why = match m.kind {
                    MountKind::Tmpfs { .. } => "tmpfs mount",
                    MountKind::Cache { .. } => "cache mount",
                    _ => "mount marked no-output",
                };
                return Err(Error::NoOutput { why, target: m.target.clone() });
            };
            let state = inherits.clone().with_output(Some(Output { node: output.node, index }));
            Ok(match &platform {
                Some(platform) => state.with_platform(platform),
                None => state,
            })
        };
        let root = state_of(0, &mounts[0], base).expect("the root file system always has an output");
        let mounts = mounts
            .iter()
            .enumerate()
            .skip(1)
            .map(|(i, m)| (m.target.clone(), state_of(i, m, &declared[i - 1].source)))
            .collect();
        ExecOutputs { root, mounts }
    }
}
