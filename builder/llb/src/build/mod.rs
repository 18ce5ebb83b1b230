//! Making a graph: the same calls as BuildKit's `client/llb` give the same bytes here.
//!
//! Nodes live in the builder and are named by index, so a chain of a hundred thousand steps needs no recursion, neither to be marshalled
//! nor to be dropped. A [`State`] is a handle: an output, and what the next step inherits (environment, directory, user, …).

mod env;
mod exec;
mod file;
mod marshal;
mod source;
mod wire;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use lapstrake_layerstore_oci::{Digest, Platform};

pub use env::EnvList;
pub use exec::{
    CacheSharing, Device, ExecOptions, ExecOutputs, HostIp, Mount, MountKind, ProxyEnv, SecretMount,
    SshMount, Ulimit,
};
pub use file::{CopyAction, CopyMode, FileAction, FileOptions, Mkdir, Mkfile, Owner, OwnerId, Rm, Symlink};
pub use marshal::{BuiltDefinition, Defaults};
pub use source::{GitSource, GitSsh, HttpSource, ImageSource, LocalSource, OciLayoutSource, ResolveMode};

use crate::{Definition, Error, Metadata, caps, pb};

/// A graph in the making.
#[derive(Debug, Clone, Default)]
pub struct GraphBuilder {
    nodes: Vec<Node>,
    source_maps: Vec<SourceMap>,
}

/// One output of a node in a [`GraphBuilder`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Output {
    pub(crate) node: u32,
    pub(crate) index: u32,
}

/// A file system in the making, and what a step on top of it inherits. Cheap to clone; it never changes.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    output: Option<Output>,
    meta: Arc<StateMeta>,
}

/// What a step inherits.
#[derive(Debug, Clone, PartialEq)]
pub struct StateMeta {
    /// Environment.
    pub env: EnvList,
    /// Working directory; always absolute.
    pub dir: String,
    /// User and group, empty for the default.
    pub user: String,
    /// Host name, empty for the default.
    pub hostname: String,
    /// Platform, in normal form.
    pub platform: Option<Platform>,
    /// Network.
    pub network: pb::NetMode,
    /// Confinement.
    pub security: pb::SecurityMode,
}

/// A file that vertices come from, such as a Dockerfile.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceMap {
    /// Its name.
    pub filename: String,
    /// Its language, by GitHub Linguist's names.
    pub language: String,
    /// Its content.
    pub data: Vec<u8>,
    /// Where it was read from.
    pub definition: Option<Definition>,
}

/// A [`SourceMap`] in its builder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceMapId(u32);

/// What can be said of any vertex when it is made.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OpOptions {
    /// Platform; without one, the state's or the marshalling default.
    pub platform: Option<Platform>,
    /// Only workers that match all of these.
    pub worker_filters: Vec<String>,
    /// Name, cache rules, progress group.
    pub metadata: Metadata,
    /// Where in source files it stands.
    pub locations: Vec<(SourceMapId, Vec<pb::Range>)>,
}

impl OpOptions {
    /// Nothing but a name.
    pub fn named(name: impl Into<String>) -> OpOptions {
        let mut options = OpOptions::default();
        options.metadata.set_custom_name(name);
        options
    }

    /// The name `[internal] …`, by which user interfaces know steps that are not the user's.
    pub fn internal(name: &str) -> OpOptions {
        OpOptions::named(format!("[internal] {name}"))
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Node {
    op: NodeOp,
    options: OpOptions,
}

#[derive(Debug, Clone)]
pub(crate) enum NodeOp {
    Source(source::SourceNode),
    Exec(Box<exec::ExecNode>),
    File(file::FileNode),
    Merge(Vec<Output>),
    Diff {
        lower: Option<Output>,
        upper: Option<Output>,
    },
    /// Stands for a state that is known only later.
    Deferred(Option<Option<Output>>),
    /// A vertex of somebody else's definition.
    Imported {
        raw: Bytes,
        digest: Digest,
        inputs: Vec<Output>,
    },
}

impl State {
    /// The empty file system.
    pub fn scratch() -> State {
        State::of(None, None)
    }

    fn of(output: Option<Output>, platform: Option<&Platform>) -> State {
        let meta = StateMeta {
            env: EnvList::default(),
            dir: "/".to_owned(),
            user: String::new(),
            hostname: String::new(),
            platform: platform.map(Platform::normalized),
            network: pb::NetMode::Unset,
            security: pb::SecurityMode::Sandbox,
        };
        State { output, meta: Arc::new(meta) }
    }

    /// The file system; `None` if it is empty.
    pub fn output(&self) -> Option<Output> {
        self.output
    }

    /// What a step on top inherits.
    pub fn meta(&self) -> &StateMeta {
        &self.meta
    }

    /// The same file system, with something else to inherit.
    #[must_use]
    pub fn map_meta(mut self, change: impl FnOnce(&mut StateMeta)) -> State {
        change(Arc::make_mut(&mut self.meta));
        self
    }

    /// Another file system, inheriting what this one does.
    #[must_use]
    pub fn with_output(mut self, output: Option<Output>) -> State {
        self.output = output;
        self
    }

    /// With an environment variable set.
    #[must_use]
    pub fn with_env(self, key: &str, value: &str) -> State {
        self.map_meta(|meta| meta.env.set(key, value))
    }

    /// In another working directory; a relative one is joined to the current one.
    #[must_use]
    pub fn with_dir(self, dir: &str) -> State {
        self.map_meta(|meta| {
            meta.dir =
                if dir.starts_with('/') { dir.to_owned() } else { crate::join_path(&[&meta.dir, dir]) };
        })
    }

    /// For a platform.
    #[must_use]
    pub fn with_platform(self, platform: &Platform) -> State {
        self.map_meta(|meta| meta.platform = Some(platform.normalized()))
    }
}

impl GraphBuilder {
    /// An empty graph.
    pub fn new() -> GraphBuilder {
        GraphBuilder::default()
    }

    /// An empty graph with room for so many vertices.
    pub fn with_capacity(vertices: usize) -> GraphBuilder {
        GraphBuilder { nodes: Vec::with_capacity(vertices), ..GraphBuilder::default() }
    }

    /// Registers a source file, for [`OpOptions::locations`].
    pub fn add_source_map(&mut self, map: SourceMap) -> SourceMapId {
        let id = match self.source_maps.iter().position(|known| *known == map) {
            Some(id) => id,
            None => {
                self.source_maps.push(map);
                self.source_maps.len() - 1
            }
        };
        SourceMapId(u32::try_from(id).expect("as many source files would not fit in memory"))
    }

    /// Copies of several file systems laid over each other, the first lowest. Empty ones count for nothing.
    pub fn merge(&mut self, inputs: &[State], mut options: OpOptions) -> State {
        let inputs: Vec<&State> = inputs.iter().filter(|s| s.output.is_some()).collect();
        match inputs[..] {
            [] => State::scratch(),
            [only] => only.clone(),
            [first, ..] => {
                options.metadata.add_cap(caps::MERGE_OP);
                let outputs = inputs.iter().filter_map(|s| s.output).collect();
                let output = self.push(NodeOp::Merge(outputs), options);
                first.clone().with_output(Some(output))
            }
        }
    }

    /// What `upper` changes in `lower`.
    pub fn diff(&mut self, lower: &State, upper: &State, mut options: OpOptions) -> State {
        if lower.output.is_none() {
            return if upper.output.is_none() { State::scratch() } else { upper.clone() };
        }
        options.metadata.add_cap(caps::DIFF_OP);
        let output = self.push(NodeOp::Diff { lower: lower.output, upper: upper.output }, options);
        lower.clone().with_output(Some(output))
    }

    /// A state that is known only later: give it with [`GraphBuilder::resolve`] before marshalling. Other steps can use it already.
    pub fn deferred(&mut self) -> State {
        let output = self.push(NodeOp::Deferred(None), OpOptions::default());
        State::of(Some(output), None)
    }

    /// Says what a deferred state is.
    ///
    /// # Panics
    /// If `deferred` does not come from [`GraphBuilder::deferred`].
    pub fn resolve(&mut self, deferred: &State, state: &State) {
        let output = deferred.output.expect("a deferred state has an output");
        match &mut self.nodes[output.node as usize].op {
            NodeOp::Deferred(target) => *target = Some(state.output),
            _ => unreachable!("only deferred states are resolved"),
        }
    }

    /// Takes over somebody else's graph, its bytes unchanged.
    pub fn import(&mut self, definition: &Definition) -> Result<State, Error> {
        if definition.is_scratch() {
            return Ok(State::scratch());
        }
        let graph = crate::Graph::parse(definition, crate::Limits::default())?;
        let mut outputs = Vec::with_capacity(graph.vertices().len());
        let mut platform = None;
        for vertex in graph.vertices() {
            let inputs = vertex
                .inputs
                .iter()
                .map(|edge| Output { node: outputs[edge.vertex.0 as usize], index: edge.output })
                .collect();
            let node = NodeOp::Imported { raw: vertex.raw.clone(), digest: vertex.digest.clone(), inputs };
            let options = OpOptions { metadata: vertex.metadata.clone(), ..OpOptions::default() };
            outputs.push(self.push(node, options).node);
            platform = vertex.op.platform.as_ref().map(platform_from_proto);
        }
        let target = graph.target();
        let output = Output { node: outputs[target.vertex.0 as usize], index: target.output };
        Ok(State::of(Some(output), platform.as_ref()))
    }

    pub(crate) fn push(&mut self, op: NodeOp, options: OpOptions) -> Output {
        let node = u32::try_from(self.nodes.len()).expect("as many nodes would not fit in memory");
        self.nodes.push(Node { op, options });
        Output { node, index: 0 }
    }

    /// Follows deferred states to what they stand for.
    fn actual(&self, mut output: Output) -> Result<Option<Output>, Error> {
        // A deferred state cannot stand for itself through others unless somebody resolved it so; each hop must be a new node.
        for _ in 0..=self.nodes.len() {
            match &self.nodes[output.node as usize].op {
                NodeOp::Deferred(None) => return Err(Error::Build("a deferred state was never resolved")),
                NodeOp::Deferred(Some(None)) => return Ok(None),
                NodeOp::Deferred(Some(Some(target))) => output = *target,
                _ => return Ok(Some(output)),
            }
        }
        Err(Error::Build("a deferred state was resolved to itself"))
    }

    fn actual_all(&self, outputs: impl IntoIterator<Item = Output>) -> Result<Vec<Output>, Error> {
        let mut all = Vec::new();
        for output in outputs {
            all.extend(self.actual(output)?);
        }
        Ok(all)
    }
}

fn platform_from_proto(p: &pb::Platform) -> Platform {
    Platform {
        architecture: p.architecture.clone(),
        os: p.os.clone(),
        os_version: p.os_version.clone(),
        os_features: p.os_features.clone(),
        variant: p.variant.clone(),
    }
}

fn platform_to_proto(p: &Platform) -> pb::Platform {
    pb::Platform {
        architecture: p.architecture.clone(),
        os: p.os.clone(),
        os_version: p.os_version.clone(),
        os_features: p.os_features.clone(),
        variant: p.variant.clone(),
    }
}

/// The digests of marshalled nodes, by node.
pub(crate) type Digests = HashMap<u32, Digest>;
