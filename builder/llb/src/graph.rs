//! A definition that has been read and found sound.

use std::collections::HashMap;

use bytes::Bytes;
use lapstrake_layerstore_oci::Digest;

use crate::definition::{decode_newer_op, decode_op};
use crate::{Definition, Error, Metadata, Passthrough, names, pb, validate};

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
    /// The op, read from `raw`; checked to be complete. Its `op` is `None` only where `passthrough` says what it is.
    pub op: pb::Op,
    /// The one kind of op that `pb::Op` does not know.
    pub passthrough: Option<Passthrough>,
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
        let (mut ops, terminal) = decode_all(definition, limits)?;
        let target = *ops[terminal].inputs.first().ok_or(Error::NoTarget)?;
        let order = topological_order(&ops, target.op)?;
        let mut graph = Graph {
            vertices: Vec::with_capacity(order.len()),
            target: Edge { vertex: VertexId(0), output: target.output },
            source: definition.source.clone(),
            by_digest: HashMap::with_capacity(order.len()),
        };
        for index in order {
            graph.push(&mut ops, index, definition)?;
        }
        graph.target.vertex = ops[target.op].place.expect("the order ends with the target");
        if let Some(source) = &graph.source {
            validate::source(source)?;
        }
        Ok(graph)
    }

    /// Moves an op, whose inputs are there, into the graph.
    fn push(&mut self, ops: &mut [Decoded], index: usize, definition: &Definition) -> Result<(), Error> {
        let digest = ops[index].digest.clone();
        let op = std::mem::take(&mut ops[index].op);
        let passthrough = ops[index].passthrough.take();
        validate::op(&op, passthrough.as_ref())
            .map_err(|problem| Error::Vertex { vertex: digest.clone(), problem })?;
        let edge = |input: &Input| Edge {
            vertex: ops[input.op].place.expect("inputs come first"),
            output: input.output,
        };
        let inputs: Vec<Edge> = ops[index].inputs.iter().map(edge).collect();
        let metadata = definition.metadata.get(&digest).cloned().unwrap_or_default();
        let name = match metadata.custom_name() {
            Some(name) => name.to_owned(),
            None => match &passthrough {
                Some(passthrough) => format!("passthrough {}", passthrough.id),
                None => names::default_name(&op, &inputs, &self.vertices),
            },
        };
        let id = VertexId(u32::try_from(self.vertices.len()).expect("the limit on ops is far below 2^32"));
        ops[index].place = Some(id);
        let raw = std::mem::take(&mut ops[index].raw);
        self.by_digest.insert(digest.clone(), id);
        self.vertices.push(Vertex { digest, op, passthrough, raw, inputs, metadata, name });
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

/// An op on its way into a graph.
struct Decoded {
    digest: Digest,
    op: pb::Op,
    passthrough: Option<Passthrough>,
    raw: Bytes,
    inputs: Vec<Input>,
    /// Where it is in the graph, once it is.
    place: Option<VertexId>,
}

/// What an op needs: an output of another op of the definition.
#[derive(Clone, Copy)]
struct Input {
    op: usize,
    output: u32,
}

/// The ops of a definition, each once, and which of them is the terminal one.
fn decode_all(definition: &Definition, limits: Limits) -> Result<(Vec<Decoded>, usize), Error> {
    if definition.ops.is_empty() {
        return Err(Error::Empty);
    }
    if definition.ops.len() > limits.ops {
        return Err(Error::TooManyOps { count: definition.ops.len(), limit: limits.ops });
    }
    let mut bytes = 0usize;
    let mut ops: Vec<Decoded> = Vec::with_capacity(definition.ops.len());
    let mut by_digest: HashMap<Digest, usize> = HashMap::with_capacity(definition.ops.len());
    let mut last = 0;
    for raw in &definition.ops {
        bytes = bytes.saturating_add(raw.len());
        if bytes > limits.bytes {
            return Err(Error::TooLarge { limit: limits.bytes });
        }
        let digest = Digest::sha256_of(raw);
        // The same op twice is one vertex.
        if let Some(&index) = by_digest.get(&digest) {
            last = index;
            continue;
        }
        let op = decode_op(raw)?;
        let passthrough = if op.op.is_none() { decode_newer_op(raw)?.passthrough } else { None };
        for (input, i) in op.inputs.iter().enumerate() {
            if u32::try_from(i.index).is_err() {
                return Err(Error::OutputIndex { input, index: i.index });
            }
        }
        last = ops.len();
        by_digest.insert(digest.clone(), last);
        ops.push(Decoded { digest, op, passthrough, raw: raw.clone(), inputs: Vec::new(), place: None });
    }
    for decoded in &mut ops {
        let find = |input: &pb::Input| {
            let op = by_digest.get(input.digest.as_str()).copied();
            let op = op.ok_or_else(|| Error::MissingInput(input.digest.clone()))?;
            Ok(Input { op, output: u32::try_from(input.index).expect("it was checked above") })
        };
        decoded.inputs = decoded.op.inputs.iter().map(find).collect::<Result<_, Error>>()?;
    }
    if ops.len() < 2 {
        return Err(Error::TooFewOps(ops.len()));
    }
    Ok((ops, last))
}

/// Everything that `target` needs, inputs first. A definition may list its ops in any order, and its depth is the author's choice,
/// so the walk keeps its own stack.
fn topological_order(ops: &[Decoded], target: usize) -> Result<Vec<usize>, Error> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Done,
    }
    let mut marks = vec![Mark::New; ops.len()];
    let mut order = Vec::with_capacity(ops.len());
    let mut stack = vec![(target, 0usize)];
    marks[target] = Mark::Open;
    while let Some((index, next_input)) = stack.pop() {
        let Some(input) = ops[index].inputs.get(next_input) else {
            marks[index] = Mark::Done;
            order.push(index);
            continue;
        };
        stack.push((index, next_input + 1));
        match marks[input.op] {
            Mark::Done => {}
            // Needs a SHA-256 collision; without the check such a graph would never end.
            Mark::Open => return Err(Error::Cycle(ops[input.op].digest.clone())),
            Mark::New => {
                marks[input.op] = Mark::Open;
                stack.push((input.op, 0));
            }
        }
    }
    Ok(order)
}
