//! A definition that has been read and found sound.

use std::collections::HashMap;

use bytes::Bytes;
use lapstrake_layerstore_oci::Digest;

use crate::definition::decode_op;
use crate::{Definition, Error, Metadata, names, pb, validate};

/// How large a graph may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most ops, the terminal one included.
    pub ops: usize,
    /// Most bytes of all ops together.
    pub bytes: usize,
}

impl Default for Limits {
    /// 100,000 ops and 64 MiB: far beyond what people build, well within memory.
    fn default() -> Limits {
        Limits { ops: 100_000, bytes: 64 << 20 }
    }
}

/// The index of a vertex in its graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VertexId(pub u32);

/// One output of a vertex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Edge {
    /// The vertex.
    pub vertex: VertexId,
    /// Which of its outputs, from 0.
    pub output: u32,
}

/// One step of a build.
#[derive(Debug, Clone, PartialEq)]
pub struct Vertex {
    /// SHA-256 of `raw`.
    pub digest: Digest,
    /// The op, read from `raw`; checked to be complete (its `op` is never `None`).
    pub op: pb::Op,
    /// The op as it was received.
    pub raw: Bytes,
    /// What it needs, in the order of `op.inputs`.
    pub inputs: Vec<Edge>,
    /// What is said of it.
    pub metadata: Metadata,
    /// What it is called: the author's name for it, or one made from the op.
    pub name: String,
}

/// The vertices that a result needs. Inputs stand before what uses them.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    vertices: Vec<Vertex>,
    target: Edge,
    source: Option<pb::Source>,
    by_digest: HashMap<Digest, VertexId>,
}

impl Graph {
    /// Reads and checks a definition. Ops that the result does not need must be readable, and are otherwise left out.
    ///
    /// An empty definition ([`Definition::is_scratch`]) has no result and is refused: the caller must know what nothing means there.
    pub fn parse(definition: &Definition, limits: Limits) -> Result<Graph, Error> {
        let ops = decode_all(definition, limits)?;
        let last = ops.last.expect("decode_all refuses an empty definition");
        let terminal = &ops.all[last];
        let target = terminal.op.inputs.first().ok_or(Error::NoTarget)?;
        let target_digest = ops.find(&target.digest)?;
        let output = u32::try_from(target.index).expect("decode_all refuses negative indexes");

        let order = ops.topological_order(target_digest)?;
        let mut graph = Graph {
            vertices: Vec::with_capacity(order.len()),
            target: Edge { vertex: VertexId(0), output },
            source: definition.source.clone(),
            by_digest: HashMap::with_capacity(order.len()),
        };
        for index in order {
            graph.push(&ops, index, definition)?;
        }
        graph.target.vertex = graph.by_digest[&ops.all[target_digest].digest];
        if let Some(source) = &graph.source {
            validate::source(source)?;
        }
        Ok(graph)
    }

    fn push(&mut self, ops: &Ops, index: usize, definition: &Definition) -> Result<(), Error> {
        let Decoded { digest, op, raw } = &ops.all[index];
        validate::op(op).map_err(|problem| Error::Vertex { vertex: digest.clone(), problem })?;
        let mut inputs = Vec::with_capacity(op.inputs.len());
        for input in &op.inputs {
            let vertex = self.by_digest[&ops.all[ops.find(&input.digest)?].digest];
            let output = u32::try_from(input.index).expect("decode_all refuses negative indexes");
            inputs.push(Edge { vertex, output });
        }
        let metadata = definition.metadata.get(digest).cloned().unwrap_or_default();
        let name = match metadata.custom_name() {
            Some(name) => name.to_owned(),
            None => names::default_name(op, &inputs, &self.vertices),
        };
        let id = VertexId(u32::try_from(self.vertices.len()).expect("the limit on ops is far below 2^32"));
        self.vertices.push(Vertex {
            digest: digest.clone(),
            op: op.clone(),
            raw: raw.clone(),
            inputs,
            metadata,
            name,
        });
        self.by_digest.insert(digest.clone(), id);
        Ok(())
    }

    /// All vertices, inputs first.
    pub fn vertices(&self) -> &[Vertex] {
        &self.vertices
    }

    /// One vertex.
    ///
    /// # Panics
    /// If the id is another graph's.
    pub fn vertex(&self, id: VertexId) -> &Vertex {
        &self.vertices[id.0 as usize]
    }

    /// The result.
    pub fn target(&self) -> Edge {
        self.target
    }

    /// The vertex with this digest.
    pub fn find(&self, digest: &Digest) -> Option<VertexId> {
        self.by_digest.get(digest).copied()
    }

    /// Source files, and which lines each vertex comes from.
    pub fn source(&self) -> Option<&pb::Source> {
        self.source.as_ref()
    }
}

struct Decoded {
    digest: Digest,
    op: pb::Op,
    raw: Bytes,
}

struct Ops {
    all: Vec<Decoded>,
    by_digest: HashMap<String, usize>,
    last: Option<usize>,
}

fn decode_all(definition: &Definition, limits: Limits) -> Result<Ops, Error> {
    if definition.ops.is_empty() {
        return Err(Error::Empty);
    }
    if definition.ops.len() > limits.ops {
        return Err(Error::TooManyOps { count: definition.ops.len(), limit: limits.ops });
    }
    let mut bytes = 0usize;
    let mut ops = Ops { all: Vec::new(), by_digest: HashMap::new(), last: None };
    for raw in &definition.ops {
        bytes = bytes.saturating_add(raw.len());
        if bytes > limits.bytes {
            return Err(Error::TooLarge { limit: limits.bytes });
        }
        let digest = Digest::sha256_of(raw);
        // The same op twice is one vertex.
        if let Some(&index) = ops.by_digest.get(digest.as_str()) {
            ops.last = Some(index);
            continue;
        }
        let op = decode_op(raw)?;
        for (input, i) in op.inputs.iter().enumerate() {
            if u32::try_from(i.index).is_err() {
                return Err(Error::OutputIndex { input, index: i.index });
            }
        }
        ops.last = Some(ops.all.len());
        ops.by_digest.insert(digest.to_string(), ops.all.len());
        ops.all.push(Decoded { digest, op, raw: raw.clone() });
    }
    for op in &ops.all {
        for input in &op.op.inputs {
            ops.find(&input.digest)?;
        }
    }
    if ops.all.len() < 2 {
        return Err(Error::TooFewOps(ops.all.len()));
    }
    Ok(ops)
}

impl Ops {
    fn find(&self, digest: &str) -> Result<usize, Error> {
        self.by_digest.get(digest).copied().ok_or_else(|| Error::MissingInput(digest.to_owned()))
    }

    /// Everything that `target` needs, inputs first. A definition may list its ops in any order, and its depth is the author's choice,
    /// so the walk keeps its own stack.
    fn topological_order(&self, target: usize) -> Result<Vec<usize>, Error> {
        #[derive(Clone, Copy, PartialEq)]
        enum Mark {
            New,
            Open,
            Done,
        }
        let mut marks = vec![Mark::New; self.all.len()];
        let mut order = Vec::new();
        let mut stack = vec![(target, 0usize)];
        marks[target] = Mark::Open;
        while let Some((index, next_input)) = stack.pop() {
            let Some(input) = self.all[index].op.inputs.get(next_input) else {
                marks[index] = Mark::Done;
                order.push(index);
                continue;
            };
            stack.push((index, next_input + 1));
            let input = self.find(&input.digest)?;
            match marks[input] {
                Mark::Done => {}
                // Needs a SHA-256 collision; without the check such a graph would never end.
                Mark::Open => return Err(Error::Cycle(self.all[input].digest.clone())),
                Mark::New => {
                    marks[input] = Mark::Open;
                    stack.push((input, 0));
                }
            }
        }
        Ok(order)
    }
}
