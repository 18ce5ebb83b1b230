//! The same graph with other sources: what a source policy makes of it.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

use bytes::{Buf, Bytes};
use lapstrake_layerstore_oci::Digest;
use prost::{
    Message as _,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};

use crate::{Definition, Error, definition::decode_op, pb};

/// The number of `inputs` in an op, and of `digest` in an input.
const INPUTS: u32 = 1;
const DIGEST: u32 = 1;

impl Definition {
    /// The source ops, by their vertices.
    pub fn sources(&self) -> Result<BTreeMap<Digest, pb::Op>, Error> {
        let mut sources = BTreeMap::new();
        for raw in &self.ops {
            let op = decode_op(raw)?;
            if matches!(op.op, Some(pb::op::Op::Source(_))) {
                sources.insert(Digest::sha256_of(raw), op);
            }
        }
        Ok(sources)
    }

    /// This definition with other ops in the place of some sources. A vertex is its bytes, and names its inputs in them: so those that need a changed
    /// one have other digests too. Of these nothing but the digests is touched, and what is said of a vertex is said of what it became.
    ///
    /// # Errors
    /// [`Error::MissingInput`], [`Error::Cycle`], and ops that cannot be read.
    pub fn with_sources(&self, changed: &BTreeMap<Digest, pb::Op>) -> Result<Definition, Error> {
        let digests: Vec<Digest> = self.ops.iter().map(Digest::sha256_of).collect();
        let places: HashMap<&str, usize> = digests.iter().map(Digest::as_str).zip(0..).collect();
        let mut inputs: Vec<Vec<usize>> = Vec::with_capacity(self.ops.len());
        let mut used_by: Vec<Vec<usize>> = vec![Vec::new(); self.ops.len()];
        for (op, raw) in self.ops.iter().enumerate() {
            let mut needed = Vec::new();
            for input in decode_op(raw)?.inputs {
                let input = *places.get(input.digest.as_str()).ok_or(Error::MissingInput(input.digest))?;
                used_by[input].push(op);
                needed.push(input);
            }
            inputs.push(needed);
        }
        let mut waits: Vec<usize> = inputs.iter().map(Vec::len).collect();
        let mut ready: Vec<usize> = (0..waits.len()).filter(|op| waits[*op] == 0).collect();
        let mut done: Vec<Option<(Bytes, Digest)>> = vec![None; self.ops.len()];
        while let Some(op) = ready.pop() {
            let mut raw = match changed.get(&digests[op]) {
                Some(other) => other.encode_to_vec(),
                None => self.ops[op].to_vec(),
            };
            for (place, input) in input_digests(&raw).into_iter().zip(&inputs[op]) {
                let (_, digest) = done[*input].as_ref().expect("inputs come first");
                // Both are SHA-256, so that they are equally long.
                raw[place].copy_from_slice(digest.as_str().as_bytes());
            }
            let digest = Digest::sha256_of(&raw);
            done[op] = Some((raw.into(), digest));
            for user in &used_by[op] {
                waits[*user] -= 1;
                if waits[*user] == 0 {
                    ready.push(*user);
                }
            }
        }
        let mut ops = Vec::with_capacity(done.len());
        let mut renamed = HashMap::with_capacity(done.len());
        for (old, new) in digests.iter().zip(done) {
            let (raw, digest) = new.ok_or_else(|| Error::Cycle(old.clone()))?;
            ops.push(raw);
            renamed.insert(old.as_str(), digest);
        }
        let metadata = self.metadata.iter().map(|(digest, metadata)| {
            (renamed.get(digest.as_str()).unwrap_or(digest).clone(), metadata.clone())
        });
        let source = self.source.as_ref().map(|source| {
            let locations = source.locations.iter().map(|(digest, locations)| {
                let digest = renamed.get(digest.as_str()).map_or(digest.as_str(), Digest::as_str);
                (digest.to_owned(), locations.clone())
            });
            pb::Source { locations: locations.collect(), infos: source.infos.clone() }
        });
        Ok(Definition { ops, metadata: metadata.collect(), source })
    }
}

/// Where in an op's bytes the digests of its inputs are, one for each. The op can be read: what is no message was refused.
fn input_digests(raw: &[u8]) -> Vec<Range<usize>> {
    // Of several digests of one input the last counts.
    let digest = |input| fields(raw, input, DIGEST).pop();
    fields(raw, 0..raw.len(), INPUTS).into_iter().filter_map(digest).collect()
}

/// Where in a message the texts or messages of one number are.
fn fields(raw: &[u8], message: Range<usize>, number: u32) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let end = message.end;
    let mut rest = &raw[message];
    while rest.has_remaining() {
        let Ok((tag, kind)) = decode_key(&mut rest) else { break };
        if tag != number || kind != WireType::LengthDelimited {
            if skip_field(kind, tag, &mut rest, DecodeContext::default()).is_err() {
                break;
            }
            continue;
        }
        let length = decode_varint(&mut rest).ok().and_then(|length| usize::try_from(length).ok());
        let Some(length) = length.filter(|length| *length <= rest.remaining()) else { break };
        let start = end - rest.remaining();
        found.push(start..start + length);
        rest.advance(length);
    }
    found
}
