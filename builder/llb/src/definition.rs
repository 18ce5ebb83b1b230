//! A graph as it travels: raw ops, and what is said of them.

use std::collections::BTreeMap;

use bytes::Bytes;
use lapstrake_api_proto::newer::NewerOp;
use lapstrake_layerstore_oci::Digest;
use prost::Message as _;

use crate::{Error, Metadata, pb};

/// A marshalled graph. The last op is terminal: it does nothing, its one input names the result. No ops at all mean an empty root
/// file system (`FROM scratch` and nothing else).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Definition {
    /// Op messages, as received; inputs before what uses them.
    pub ops: Vec<Bytes>,
    /// By vertex; also of the terminal op.
    pub metadata: BTreeMap<Digest, Metadata>,
    /// Source files, and which lines each vertex comes from.
    pub source: Option<pb::Source>,
}

impl Definition {
    /// Reads the wire form.
    pub fn from_proto(proto: pb::Definition) -> Result<Definition, Error> {
        let metadata = proto
            .metadata
            .into_iter()
            .map(|(digest, meta)| {
                let digest = Digest::parse(&digest).map_err(Error::MetadataDigest)?;
                Ok((digest, Metadata::from_proto(meta)))
            })
            .collect::<Result<_, Error>>()?;
        Ok(Definition {
            ops: proto.def.into_iter().map(Bytes::from).collect(),
            metadata,
            source: proto.source,
        })
    }

    /// The wire form.
    pub fn to_proto(&self) -> pb::Definition {
        pb::Definition {
            def: self.ops.iter().map(|op| op.to_vec()).collect(),
            metadata: self.metadata.iter().map(|(d, m)| (d.to_string(), m.to_proto())).collect(),
            source: self.source.clone(),
        }
    }

    /// The same for clients, who are written in Go: without entries that they would stumble over.
    pub fn to_client(&self) -> pb::Definition {
        let mut proto = self.to_proto();
        proto.source = proto.source.map(without_empty_locations);
        proto
    }

    /// Reads a serialised `pb.Definition`.
    pub fn decode(bytes: &[u8]) -> Result<Definition, Error> {
        let proto =
            pb::Definition::decode(bytes).map_err(|source| Error::Decode { what: "definition", source })?;
        Definition::from_proto(proto)
    }

    /// Serialises as `pb.Definition`.
    pub fn encode(&self) -> Vec<u8> {
        self.to_proto().encode_to_vec()
    }

    /// Whether it is the empty root file system.
    pub fn is_scratch(&self) -> bool {
        self.ops.is_empty()
    }

    /// The vertex that is the result, and which of its outputs; `None` for the empty root file system.
    pub fn head(&self) -> Result<Option<(Digest, u32)>, Error> {
        let Some(last) = self.ops.last() else { return Ok(None) };
        let op = decode_op(last)?;
        let input = op.inputs.first().ok_or(Error::NoTarget)?;
        let digest = Digest::parse(&input.digest).map_err(|_| Error::MissingInput(input.digest.clone()))?;
        let output =
            u32::try_from(input.index).map_err(|_| Error::OutputIndex { input: 0, index: input.index })?;
        Ok(Some((digest, output)))
    }
}

/// An op without locations is left out: prost writes its entry without a value, which Go's clients read as a null pointer, and follow. The files'
/// own graphs are no deeper than prost reads messages.
fn without_empty_locations(mut source: pb::Source) -> pb::Source {
    source.locations.retain(|_, locations| !locations.locations.is_empty());
    for info in &mut source.infos {
        if let Some(definition) = &mut info.definition {
            definition.source = definition.source.take().map(without_empty_locations);
        }
    }
    source
}

/// What `pb::Op` does not know of an op.
pub(crate) fn decode_newer_op(bytes: &[u8]) -> Result<NewerOp, Error> {
    NewerOp::decode(bytes).map_err(|source| Error::Decode { what: "op", source })
}

pub(crate) fn decode_op(bytes: &[u8]) -> Result<pb::Op, Error> {
    pb::Op::decode(bytes).map_err(|source| Error::Decode { what: "op", source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_clients_find_a_value_in_every_entry_of_locations() {
        let source = |infos| {
            let some = pb::Locations { locations: vec![pb::Location::default()] };
            let locations = [("a".to_owned(), pb::Locations::default()), ("b".to_owned(), some)];
            pb::Source { locations: locations.into(), infos }
        };
        let inner = pb::Definition { source: Some(source(Vec::new())), ..Default::default() };
        let info = pb::SourceInfo { definition: Some(inner), ..Default::default() };
        let wire = pb::Definition { source: Some(source(vec![info])), ..Default::default() };
        let told = Definition::from_proto(wire).unwrap().to_client().source.unwrap();
        let inner = told.infos[0].definition.as_ref().unwrap().source.as_ref().unwrap();
        for source in [&told, inner] {
            assert_eq!(source.locations.keys().collect::<Vec<_>>(), ["b"]);
        }
    }
}
