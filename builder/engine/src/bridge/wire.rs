//! Calls as they travel, and what they mean. What is missing or means nothing is an error that says so.

use std::collections::{BTreeMap, HashMap};

use lapstrake_api_proto::gateway::{
    self, AttestationKind, Attestations, FileRange as WireRange, ReturnRequest, SolveRequest, SolveResponse,
    WarnRequest, result::Result as WireRefs,
};
use lapstrake_builder_llb::{Definition, SourcePolicies, pb};
use lapstrake_builder_progress::{Emit, Event, Warning};
use lapstrake_layerstore_oci::Digest;

use super::{Bridge, FrontendResult, GatewayAttestation, Ref, Refs, SolveOrder, files::FileRange};
use crate::{EngineError, FrontendRequest, Returned};

/// Most bytes of a warning with its source.
const MAX_WARNING: usize = 4 << 20;

pub(crate) fn invalid(what: impl Into<String>) -> EngineError {
    EngineError::Bridge { what: what.into() }
}

/// A graph; none where there is no op in it: that is how clients say nothing.
fn definition(wire: Option<pb::Definition>) -> Result<Option<Definition>, EngineError> {
    match wire {
        Some(wire) if !wire.def.is_empty() => Ok(Some(Definition::from_proto(wire)?)),
        _ => Ok(None),
    }
}

pub(super) fn file_range(range: Option<WireRange>) -> Result<Option<FileRange>, EngineError> {
    let Some(WireRange { offset, length }) = range else { return Ok(None) };
    let number = |what: &str, value: i64| {
        u64::try_from(value).map_err(|_| invalid(format!("invalid file range: {what} {value} is negative")))
    };
    Ok(Some(FileRange { offset: number("offset", offset)?, length: number("length", length)? }))
}

pub(super) async fn solve(bridge: &Bridge, request: SolveRequest) -> Result<SolveResponse, EngineError> {
    let SolveRequest { frontend, frontend_opt, frontend_inputs, cache_imports, evaluate, .. } = request;
    let policies = SourcePolicies::from_proto(&request.source_policies);
    let policies = policies.map_err(|error| invalid(error.to_string()))?;
    let mut inputs = BTreeMap::new();
    for (name, graph) in frontend_inputs {
        inputs.insert(name, Definition::from_proto(graph)?);
    }
    let caches = cache_imports.iter().filter_map(|entry| {
        let attrs = entry.attrs.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        bridge.engine.wanted_cache(&entry.r#type, &attrs, &bridge.build)
    });
    let order = SolveOrder {
        definition: definition(request.definition)?,
        frontend: (!frontend.is_empty()).then(|| FrontendRequest {
            frontend,
            options: frontend_opt.into_iter().collect(),
            inputs,
        }),
        caches: caches.collect(),
        policies,
        evaluate,
    };
    let result = bridge.solve(order).await?;
    let is_map = matches!(result.refs, Refs::ByKey(_));
    if is_map && !request.allow_result_return {
        return Err(invalid("solve did not return default result"));
    }
    let id_of = |reference: &Option<Ref>| -> Result<gateway::Ref, EngineError> {
        let Some(reference) = reference else { return Ok(gateway::Ref::default()) };
        let id = bridge.register(reference)?;
        Ok(gateway::Ref { id, def: Some(reference.definition().to_client()) })
    };
    let mut default_id = String::new();
    let refs = match &result.refs {
        Refs::One(one) => {
            let wire = id_of(one)?;
            default_id.clone_from(&wire.id);
            match request.allow_result_array_ref {
                true => WireRefs::Ref(wire),
                false => WireRefs::RefDeprecated(wire.id),
            }
        }
        Refs::ByKey(refs) => {
            let mut wire = HashMap::with_capacity(refs.len());
            for (key, reference) in refs {
                wire.insert(key.clone(), id_of(reference)?);
            }
            match request.allow_result_array_ref {
                true => WireRefs::Refs(gateway::RefMap { refs: wire }),
                false => WireRefs::RefsDeprecated(gateway::RefMapDeprecated {
                    refs: wire.into_iter().map(|(key, wire)| (key, wire.id)).collect(),
                }),
            }
        }
    };
    let mut attestations = HashMap::with_capacity(result.attestations.len());
    for (key, all) in &result.attestations {
        let mut wire = Attestations::default();
        for one in all {
            wire.attestation.push(gateway::Attestation {
                kind: one.kind.into(),
                metadata: one.metadata.clone().into_iter().collect(),
                r#ref: one.reference.is_some().then(|| id_of(&one.reference)).transpose()?,
                path: one.path.clone(),
                in_toto_predicate_type: one.predicate_type.clone(),
                in_toto_subjects: one.subjects.clone(),
            });
        }
        attestations.insert(key.clone(), wire);
    }
    if request.r#final {
        // How clients before BuildKit 0.5 gave their answer: with the last graph.
        let mut metadata = result.metadata.clone();
        if !request.exporter_attr.is_empty() {
            let said = exporter_attr(&request.exporter_attr)?;
            said.into_iter().for_each(|(key, value)| _ = metadata.entry(key).or_insert(value));
        }
        bridge.answer(Ok(FrontendResult {
            refs: result.refs.clone(),
            metadata,
            ..FrontendResult::default()
        }))?;
    }
    Ok(SolveResponse {
        r#ref: if request.allow_result_return { String::new() } else { default_id },
        result: Some(gateway::Result {
            metadata: result.metadata.into_iter().collect(),
            attestations,
            result: Some(refs),
        }),
    })
}

/// Metadata as JSON: an object of base64 strings, as Go writes bytes.
fn exporter_attr(json: &[u8]) -> Result<BTreeMap<String, Vec<u8>>, EngineError> {
    use base64::Engine as _;
    let texts: BTreeMap<String, Option<String>> =
        serde_json::from_slice(json).map_err(|error| invalid(format!("ExporterAttr: {error}")))?;
    let mut values = BTreeMap::new();
    for (key, text) in texts {
        let value = base64::engine::general_purpose::STANDARD.decode(text.unwrap_or_default());
        values.insert(key, value.map_err(|error| invalid(format!("ExporterAttr: {error}")))?);
    }
    Ok(values)
}

/// The frontend's answer: a result, or why there is none.
pub(super) fn take_answer(bridge: &Bridge, request: ReturnRequest) -> Result<(), EngineError> {
    if let Some(error) = request.error {
        let returned = Returned { code: error.code, message: error.message, details: error.details };
        return bridge.answer(Err(EngineError::Returned(Box::new(returned))));
    }
    let Some(result) = request.result else {
        return Err(invalid("gateway return must be either result or err"));
    };
    let find = |id: &str| -> Result<Option<Ref>, EngineError> {
        match id {
            "" => Ok(None),
            id => bridge.find(id).map(Some).map_err(|_| invalid(format!("return reference {id} not found"))),
        }
    };
    let mut several = BTreeMap::new();
    let refs = match result.result {
        None => Refs::default(),
        Some(WireRefs::RefDeprecated(id)) => Refs::One(find(&id)?),
        Some(WireRefs::Ref(wire)) => Refs::One(find(&wire.id)?),
        Some(WireRefs::RefsDeprecated(wire)) => {
            for (key, id) in wire.refs {
                several.insert(key, find(&id)?);
            }
            Refs::ByKey(several)
        }
        Some(WireRefs::Refs(wire)) => {
            for (key, wire) in wire.refs {
                several.insert(key, find(&wire.id)?);
            }
            Refs::ByKey(several)
        }
    };
    let mut attestations = BTreeMap::new();
    for (key, all) in result.attestations {
        let mut read = Vec::with_capacity(all.attestation.len());
        for wire in all.attestation {
            let kind = AttestationKind::try_from(wire.kind)
                .map_err(|_| invalid(format!("unknown attestation kind {}", wire.kind)))?;
            for subject in &wire.in_toto_subjects {
                gateway::InTotoSubjectKind::try_from(subject.kind)
                    .map_err(|_| invalid(format!("unknown in-toto subject kind {}", subject.kind)))?;
                for digest in &subject.digest {
                    Digest::parse(digest).map_err(|error| invalid(format!("in-toto subject: {error}")))?;
                }
            }
            read.push(GatewayAttestation {
                kind,
                metadata: wire.metadata.into_iter().collect(),
                reference: wire.r#ref.map(|wire| find(&wire.id)).transpose()?.flatten(),
                path: wire.path,
                predicate_type: wire.in_toto_predicate_type,
                subjects: wire.in_toto_subjects,
            });
        }
        attestations.insert(key, read);
    }
    let metadata = result.metadata.into_iter().collect();
    bridge.answer(Ok(FrontendResult { refs, metadata, attestations }))
}

/// What a frontend doubts, told at a vertex.
pub(super) fn warn(bridge: &Bridge, request: WarnRequest) -> Result<(), EngineError> {
    let WarnRequest { digest, level, short, detail, url, info, ranges } = request;
    let bytes = info.as_ref().map_or(0, |info| info.data.len()) + detail.iter().map(Vec::len).sum::<usize>();
    if bytes + short.len() > MAX_WARNING {
        return Err(invalid(format!("a warning of more than {MAX_WARNING} bytes")));
    }
    let vertex = Digest::parse(&digest).map_err(|error| invalid(format!("vertex of a warning: {error}")))?;
    bridge.build.progress.emit(&Event::Warning(Warning {
        vertex,
        level: if level == 0 { 1 } else { level },
        short,
        detail,
        url,
        source: info,
        ranges,
    }));
    Ok(())
}
