//! From nodes to bytes.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use lapstrake_layerstore_oci::{Digest, Platform};
use prost::Message as _;

use super::exec::{CacheSharing, ExecNode, MountKind};
use super::file::{FileAction, FileNode};
use super::source::SourceNode;
use super::wire::{action_to_proto, exec_caps, secrets};
use super::{Digests, GraphBuilder, Node, NodeOp, Output, State, platform_to_proto};
use crate::{Definition, Error, Limits, Metadata, caps, pb};

/// What ops get that say nothing themselves.
#[derive(Debug, Clone, PartialEq)]
pub struct Defaults {
    /// Platform.
    pub platform: Platform,
    /// Filters of workers for what runs and what works on files; sources are the same everywhere.
    pub worker_filters: Vec<String>,
}

/// A marshalled graph, and which node became which vertex.
#[derive(Debug, Clone, PartialEq)]
pub struct BuiltDefinition {
    /// The graph.
    pub definition: Definition,
    digests: Digests,
}

impl BuiltDefinition {
    /// The vertex that makes a state; `None` for the empty file system, and for states that the result does not need.
    pub fn digest(&self, state: &State) -> Option<&Digest> {
        self.digests.get(&state.output()?.node)
    }
}

/// A node's bytes and what is said of it.
struct Marshalled {
    raw: Bytes,
    digest: Digest,
    metadata: Metadata,
}

impl GraphBuilder {
    /// Writes everything that `target` needs.
    pub fn marshal(&self, target: &State, defaults: &Defaults) -> Result<BuiltDefinition, Error> {
        let mut built = BuiltDefinition { definition: Definition::default(), digests: HashMap::new() };
        let target = match target.output() {
            Some(output) => self.actual(output)?,
            None => None,
        };
        let Some(target) = target else { return Ok(built) };
        let mut source = SourceCollector::default();
        let order = self.order(target.node)?;
        let mut seen = HashSet::with_capacity(order.len());
        built.digests.reserve(order.len());
        built.definition.ops.reserve(order.len() + 1);
        // What the reading side refuses must not be written either.
        let limits = Limits::default();
        let mut bytes = 0;
        for node in order {
            let m = self.marshal_node(node, &built.digests, defaults)?;
            source.add(&m.digest, &self.nodes[node as usize]);
            let definition = &mut built.definition;
            match definition.metadata.entry(m.digest.clone()) {
                Entry::Vacant(entry) => _ = entry.insert(m.metadata),
                Entry::Occupied(mut entry) => entry.get_mut().merge(&m.metadata),
            }
            built.digests.insert(node, m.digest.clone());
            if seen.insert(m.digest) {
                bytes += m.raw.len();
                definition.ops.push(m.raw);
                if bytes > limits.bytes {
                    return Err(Error::TooLarge { limit: limits.bytes });
                }
                // One more comes: the terminal op.
                if definition.ops.len() >= limits.ops {
                    return Err(Error::TooManyOps { count: definition.ops.len() + 1, limit: limits.ops });
                }
            }
        }
        self.finish(&mut built, target, source);
        Ok(built)
    }

    fn finish(&self, built: &mut BuiltDefinition, target: Output, source: SourceCollector) {
        let definition = &mut built.definition;
        let terminal = pb::Op { inputs: vec![input_of(target, &built.digests)], ..pb::Op::default() };
        let raw = Bytes::from(terminal.encode_to_vec());
        let mut metadata = Metadata::default();
        metadata.add_cap(caps::CONSTRAINTS);
        metadata.add_cap(caps::PLATFORM);
        for of in definition.metadata.values() {
            if of.ignore_cache {
                metadata.add_cap(caps::META_IGNORE_CACHE);
            }
            if !of.description.is_empty() {
                metadata.add_cap(caps::META_DESCRIPTION);
            }
            if of.export_cache.is_some() {
                metadata.add_cap(caps::META_EXPORT_CACHE);
            }
        }
        definition.metadata.insert(Digest::sha256_of(&raw), metadata);
        definition.ops.push(raw);
        definition.source = Some(source.finish(&self.source_maps));
        // A deferred node is the vertex of what it stands for.
        for (node, n) in self.nodes.iter().enumerate() {
            if !matches!(n.op, NodeOp::Deferred(_)) {
                continue;
            }
            let node = u32::try_from(node).expect("push counted them in u32");
            if let Ok(Some(actual)) = self.actual(Output { node, index: 0 })
                && let Some(digest) = built.digests.get(&actual.node).cloned()
            {
                built.digests.insert(node, digest);
            }
        }
    }

    /// All nodes that `target` needs, inputs first, in the order in which BuildKit's client walks them.
    fn order(&self, target: u32) -> Result<Vec<u32>, Error> {
        #[derive(Clone, Copy, PartialEq)]
        enum Visit {
            None,
            Open,
            Done,
        }
        let mut order = Vec::with_capacity(self.nodes.len());
        let mut visits = vec![Visit::None; self.nodes.len()];
        visits[target as usize] = Visit::Open;
        let mut stack = vec![(target, self.inputs(target)?.into_iter())];
        while let Some((node, inputs)) = stack.last_mut() {
            let node = *node;
            match inputs.next() {
                Some(input) => match visits[input.node as usize] {
                    Visit::Done => {}
                    Visit::Open => {
                        return Err(Error::Build("a deferred state was resolved to something that needs it"));
                    }
                    Visit::None => {
                        visits[input.node as usize] = Visit::Open;
                        stack.push((input.node, self.inputs(input.node)?.into_iter()));
                    }
                },
                None => {
                    stack.pop();
                    visits[node as usize] = Visit::Done;
                    order.push(node);
                }
            }
        }
        Ok(order)
    }

    fn inputs(&self, node: u32) -> Result<Vec<Output>, Error> {
        match &self.nodes[node as usize].op {
            NodeOp::Source(_) => Ok(Vec::new()),
            NodeOp::Exec(exec) => self.actual_all(exec.mounts.iter().filter_map(|m| m.source)),
            // From the last action to the first, the base first of all.
            NodeOp::File(file) => {
                let copied = file.actions.iter().rev().filter_map(|action| match action {
                    FileAction::Copy(copy) => copy.from.output(),
                    _ => None,
                });
                self.actual_all(file.base.into_iter().chain(copied))
            }
            NodeOp::Merge(inputs) => self.actual_all(inputs.iter().copied()),
            NodeOp::Diff { lower, upper } => self.actual_all(lower.iter().chain(upper).copied()),
            NodeOp::Imported { inputs, .. } => self.actual_all(inputs.iter().copied()),
            NodeOp::Deferred(_) => unreachable!("`actual` never yields a deferred node"),
        }
    }

    fn marshal_node(&self, index: u32, digests: &Digests, defaults: &Defaults) -> Result<Marshalled, Error> {
        let node = &self.nodes[index as usize];
        let mut metadata = node.options.metadata.clone();
        let mut op = pb::Op {
            platform: Some(platform_to_proto(node.options.platform.as_ref().unwrap_or(&defaults.platform))),
            constraints: Some(pb::WorkerConstraints { filter: node.options.worker_filters.clone() }),
            ..pb::Op::default()
        };
        if node.options.worker_filters.is_empty() && matches!(node.op, NodeOp::Exec(_) | NodeOp::File(_)) {
            op.constraints = Some(pb::WorkerConstraints { filter: defaults.worker_filters.clone() });
        }
        let wire = Wire { graph: self, digests };
        let raw = match &node.op {
            NodeOp::Imported { raw, digest, .. } => {
                return Ok(Marshalled { raw: raw.clone(), digest: digest.clone(), metadata });
            }
            NodeOp::Source(source) => {
                if source.identifier.is_empty() {
                    return Err(Error::Build("source identifier can't be empty"));
                }
                if !source.is_platform_specific() {
                    op.platform = None;
                }
                source.encode(&op)
            }
            NodeOp::Exec(exec) => {
                if node.options.platform.is_none()
                    && let Some(platform) = &exec.base.meta().platform
                {
                    op.platform = Some(platform_to_proto(platform));
                }
                wire.exec(exec, &mut op, &mut metadata)?;
                encode_op(op)
            }
            NodeOp::File(file) => {
                op.platform = None;
                metadata.add_cap(caps::FILE_BASE);
                wire.file(file, &mut op)?;
                encode_op(op)
            }
            NodeOp::Merge(inputs) => {
                op.platform = None;
                // Unlike other ops, a merge names the same input twice if it is given twice.
                let inputs = self.actual_all(inputs.iter().copied())?;
                op.inputs = inputs.iter().map(|i| input_of(*i, digests)).collect();
                let inputs = (0i64..).zip(&inputs).map(|(input, _)| pb::MergeInput { input }).collect();
                op.op = Some(pb::op::Op::Merge(pb::MergeOp { inputs }));
                encode_op(op)
            }
            NodeOp::Diff { lower, upper } => {
                op.platform = None;
                let mut side = |output: &Option<Output>| -> Result<i64, Error> {
                    let actual = output.map(|o| self.actual(o)).transpose()?.flatten();
                    let Some(output) = actual else { return Ok(-1) };
                    op.inputs.push(input_of(output, digests));
                    Ok(op.inputs.len() as i64 - 1)
                };
                let lower = Some(pb::LowerDiffInput { input: side(lower)? });
                let upper = Some(pb::UpperDiffInput { input: side(upper)? });
                op.op = Some(pb::op::Op::Diff(pb::DiffOp { lower, upper }));
                encode_op(op)
            }
            NodeOp::Deferred(_) => unreachable!("`actual` never yields a deferred node"),
        };
        let digest = Digest::sha256_of(&raw);
        Ok(Marshalled { raw: Bytes::from(raw), digest, metadata })
    }
}

fn input_of(output: Output, digests: &Digests) -> pb::Input {
    let digest = &digests[&output.node];
    pb::Input { digest: digest.to_string(), index: i64::from(output.index) }
}

impl SourceNode {
    fn is_platform_specific(&self) -> bool {
        self.identifier.starts_with("docker-image://") || self.identifier.starts_with("oci-layout://")
    }

    /// Go writes map entries whole, prost leaves empty values out of them: the map is written by hand.
    fn encode(&self, op: &pb::Op) -> Vec<u8> {
        use prost::encoding::{WireType, encode_key, encode_varint, string};
        let source = pb::SourceOp { identifier: self.identifier.clone(), attrs: BTreeMap::new() };
        let mut body = source.encode_to_vec();
        for (key, value) in &self.attrs {
            let mut entry = Vec::new();
            string::encode(1, key, &mut entry);
            string::encode(2, value, &mut entry);
            encode_key(2, WireType::LengthDelimited, &mut body);
            encode_varint(entry.len() as u64, &mut body);
            body.extend(entry);
        }
        let mut raw = op.encode_to_vec();
        encode_key(3, WireType::LengthDelimited, &mut raw);
        encode_varint(body.len() as u64, &mut raw);
        raw.extend(body);
        raw
    }
}

/// An op as Go's protobuf library writes it: the oneof comes last, whatever its field's number. prost would put it where its first field
/// belongs, and the digest would be another.
fn encode_op(mut op: pb::Op) -> Vec<u8> {
    let oneof = pb::Op { op: op.op.take(), ..pb::Op::default() };
    let mut raw = Vec::with_capacity(op.encoded_len() + oneof.encoded_len());
    for part in [op, oneof] {
        part.encode(&mut raw).expect("a vector grows");
    }
    raw
}

struct Wire<'a> {
    graph: &'a GraphBuilder,
    digests: &'a Digests,
}

impl Wire<'_> {
    /// The index of an input, added if it is not there yet; -1 for the empty file system.
    fn add_input(&self, inputs: &mut Vec<pb::Input>, output: Option<Output>) -> Result<i64, Error> {
        let actual = output.map(|o| self.graph.actual(o)).transpose()?.flatten();
        let Some(output) = actual else { return Ok(-1) };
        let input = input_of(output, self.digests);
        let index = inputs.iter().position(|known| *known == input).unwrap_or_else(|| {
            inputs.push(input);
            inputs.len() - 1
        });
        Ok(index as i64)
    }

    fn exec(&self, exec: &ExecNode, op: &mut pb::Op, metadata: &mut Metadata) -> Result<(), Error> {
        let (options, state) = (&exec.options, exec.base.meta());
        if options.args.is_empty() {
            return Err(Error::Build("arguments are required"));
        }
        let ssh_targets: Vec<String> = (0..)
            .zip(&options.ssh)
            .map(|(i, ssh): (usize, _)| match ssh.target.as_str() {
                "" => format!("/run/buildkit/ssh_agent.{i}"),
                target => target.to_owned(),
            })
            .collect();
        let mut env = state.env.clone();
        if let Some(first) = ssh_targets.first()
            && env.get("SSH_AUTH_SOCK").is_none()
        {
            env.set("SSH_AUTH_SOCK", first);
        }
        let network = options.network.unwrap_or(state.network);
        let security = options.security.unwrap_or(state.security);
        let mut message = pb::ExecOp {
            meta: Some(pb::Meta {
                args: options.args.clone(),
                env: env.to_vec(),
                cwd: state.dir.clone(),
                user: state.user.clone(),
                proxy_env: options.proxy.as_ref().map(|p| pb::ProxyEnv {
                    http_proxy: p.http.clone(),
                    https_proxy: p.https.clone(),
                    ftp_proxy: p.ftp.clone(),
                    no_proxy: p.no.clone(),
                    all_proxy: p.all.clone(),
                }),
                extra_hosts: options
                    .extra_hosts
                    .iter()
                    .map(|h| pb::HostIp { host: h.host.clone(), ip: h.ip.to_string() })
                    .collect(),
                hostname: state.hostname.clone(),
                ulimit: options
                    .ulimits
                    .iter()
                    .map(|u| pb::Ulimit { name: u.name.clone(), soft: u.soft, hard: u.hard })
                    .collect(),
                cgroup_parent: options.cgroup_parent.clone(),
                remove_mount_stubs_recursive: true,
                valid_exit_codes: options.valid_exit_codes.clone(),
            }),
            network: network.into(),
            security: security.into(),
            cdi_devices: options
                .devices
                .iter()
                .map(|d| pb::CdiDevice { name: d.name.clone(), optional: d.optional })
                .collect(),
            ..pb::ExecOp::default()
        };
        self.mounts(exec, op, &mut message)?;
        secrets(exec, &ssh_targets, &mut message);
        exec_caps(exec, network, security, metadata);
        op.op = Some(pb::op::Op::Exec(message));
        Ok(())
    }

    fn mounts(&self, exec: &ExecNode, op: &mut pb::Op, message: &mut pb::ExecOp) -> Result<(), Error> {
        let mut next_output = 0;
        for mount in &exec.mounts {
            if mount.source.is_some() && matches!(mount.kind, MountKind::Tmpfs { .. }) {
                return Err(Error::Build("tmpfs mounts must use scratch"));
            }
            let mut m = pb::Mount {
                input: self.add_input(&mut op.inputs, mount.source)?,
                selector: mount.selector.clone(),
                dest: mount.target.clone(),
                output: -1,
                readonly: mount.read_only,
                ..pb::Mount::default()
            };
            if mount.has_output() {
                m.output = next_output;
                next_output += 1;
            }
            match &mount.kind {
                MountKind::Bind | MountKind::BindNoOutput => {}
                MountKind::Cache { id, sharing } => {
                    m.mount_type = pb::MountType::Cache.into();
                    let sharing = match sharing {
                        CacheSharing::Shared => pb::CacheSharingOpt::Shared,
                        CacheSharing::Private => pb::CacheSharingOpt::Private,
                        CacheSharing::Locked => pb::CacheSharingOpt::Locked,
                    };
                    m.cache_opt = Some(pb::CacheOpt { id: id.clone(), sharing: sharing.into() });
                }
                MountKind::Tmpfs { size } => {
                    m.mount_type = pb::MountType::Tmpfs.into();
                    m.tmpfs_opt = Some(pb::TmpfsOpt { size: *size });
                }
            }
            message.mounts.push(m);
        }
        Ok(())
    }

    fn file(&self, file: &FileNode, op: &mut pb::Op) -> Result<(), Error> {
        if file.actions.is_empty() {
            return Err(Error::Build("action is required"));
        }
        let base = self.add_input(&mut op.inputs, file.base)?;
        let mut copied = Vec::with_capacity(file.actions.len());
        for action in &file.actions {
            copied.push(match action {
                FileAction::Copy(copy) => self.add_input(&mut op.inputs, copy.from.output())?,
                _ => -1,
            });
        }
        let inputs = op.inputs.len();
        let mut message = pb::FileOp::default();
        for (i, action) in file.actions.iter().enumerate() {
            message.actions.push(pb::FileAction {
                // Each action builds on the one before, whose result is numbered after all inputs.
                input: if i == 0 { base } else { (inputs + i - 1) as i64 },
                secondary_input: copied[i],
                output: if i + 1 == file.actions.len() { 0 } else { -1 },
                action: Some(action_to_proto(action, &file.dir, base)),
            });
        }
        op.op = Some(pb::op::Op::File(message));
        Ok(())
    }
}

/// Gathers which source files are used, in the order of their first use, and where each vertex stands in them.
#[derive(Default)]
struct SourceCollector {
    used: Vec<u32>,
    locations: BTreeMap<String, pb::Locations>,
}

impl SourceCollector {
    fn add(&mut self, digest: &Digest, node: &Node) {
        let locations = self.locations.entry(digest.to_string()).or_default();
        for (map, ranges) in &node.options.locations {
            let index = self.used.iter().position(|used| *used == map.0).unwrap_or_else(|| {
                self.used.push(map.0);
                self.used.len() - 1
            });
            let source_index = i32::try_from(index).expect("as many source files would not fit in memory");
            locations.locations.push(pb::Location { source_index, ranges: ranges.clone() });
        }
    }

    fn finish(self, maps: &[super::SourceMap]) -> pb::Source {
        let infos = self.used.iter().map(|&used| {
            let map = &maps[used as usize];
            pb::SourceInfo {
                filename: map.filename.clone(),
                data: map.data.clone(),
                definition: map.definition.as_ref().map(Definition::to_proto),
                language: map.language.clone(),
            }
        });
        pb::Source { infos: infos.collect(), locations: self.locations }
    }
}
