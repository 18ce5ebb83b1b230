//! A graph as provenance tells it (`mode=max`): its steps by number, and which lines of which file each comes from. As BuildKit's `solver/pb` writes JSON.

use std::collections::BTreeMap;

use lapstrake_builder_llb::{Definition, Graph, Limits, pb};
use lapstrake_layerstore_oci::Digest;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    EngineError,
    op_json::{self, Object, Oneofs, base64},
};

/// The steps of a graph.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct BuildConfig {
    #[serde(rename = "llbDefinition", skip_serializing_if = "Vec::is_empty")]
    definition: Vec<BuildStep>,
    /// Which step each vertex is.
    #[serde(rename = "digestMapping", skip_serializing_if = "BTreeMap::is_empty")]
    digest_mapping: BTreeMap<Digest, String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct BuildStep {
    id: String,
    op: Value,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    inputs: Vec<String>,
}

/// Where steps come from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct SourceMap {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    locations: BTreeMap<String, Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    infos: Vec<SourceFile>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct SourceFile {
    #[serde(skip_serializing_if = "String::is_empty")]
    filename: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    language: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    data: String,
    #[serde(flatten)]
    config: BuildConfig,
}

impl BuildConfig {
    /// Which step a vertex is.
    pub(crate) fn step(&self, vertex: &Digest) -> Option<&str> {
        self.digest_mapping.get(vertex).map(String::as_str)
    }
}

/// The files that a graph comes from, and nothing of which line is which step.
pub(crate) fn files(definition: &Definition) -> Result<Option<SourceMap>, EngineError> {
    let infos = definition.source.iter().flat_map(|source| &source.infos).map(|info| {
        Ok(SourceFile {
            filename: info.filename.clone(),
            language: info.language.clone(),
            data: base64(&info.data),
            config: match &info.definition {
                Some(own) => config(&Definition::from_proto(own.clone())?)?,
                None => BuildConfig::default(),
            },
        })
    });
    let infos = infos.collect::<Result<Vec<_>, EngineError>>()?;
    Ok((!infos.is_empty()).then(|| SourceMap { locations: BTreeMap::new(), infos }))
}

/// The steps of a graph, and where they come from.
pub(crate) fn steps(definition: &Definition) -> Result<(BuildConfig, Option<SourceMap>), EngineError> {
    let config = config(definition)?;
    let Some(mut source) = files(definition)? else { return Ok((config, None)) };
    for (vertex, found) in definition.source.iter().flat_map(|source| &source.locations) {
        let step = Digest::parse(vertex).ok().and_then(|vertex| config.step(&vertex));
        if let Some(step) = step {
            source.locations.insert(step.to_owned(), locations_json(found));
        }
    }
    Ok((config, Some(source)))
}

fn config(definition: &Definition) -> Result<BuildConfig, EngineError> {
    let mut config = BuildConfig::default();
    let Some(terminal) = definition.ops.last() else { return Ok(config) };
    let graph = Graph::parse(definition, Limits::default())?;
    let input = |edge: &lapstrake_builder_llb::Edge| format!("step{}:{}", edge.vertex.0, edge.output);
    for (number, vertex) in graph.vertices().iter().enumerate() {
        let id = format!("step{number}");
        config.digest_mapping.insert(vertex.digest.clone(), id.clone());
        let inputs = vertex.inputs.iter().map(input).collect();
        config.definition.push(BuildStep { id, op: op_json::of(vertex, Oneofs::Nested), inputs });
    }
    let id = format!("step{}", graph.vertices().len());
    config.digest_mapping.insert(Digest::sha256_of(terminal), id.clone());
    config.definition.push(BuildStep { id, op: json!({"Op": {}}), inputs: vec![input(&graph.target())] });
    Ok(config)
}

fn locations_json(found: &pb::Locations) -> Value {
    let position =
        |at: &pb::Position| Object::default().with("line", at.line).with("character", at.character).done();
    let range = |range: &pb::Range| {
        let start = range.start.as_ref().map(position);
        Object::default().maybe("start", start).maybe("end", range.end.as_ref().map(position)).done()
    };
    let location = |location: &pb::Location| {
        let ranges: Value = location.ranges.iter().map(range).collect();
        Object::default().with("sourceIndex", location.source_index).with("ranges", ranges).done()
    };
    let all: Value = found.locations.iter().map(location).collect();
    Object::default().with("locations", all).done()
}
