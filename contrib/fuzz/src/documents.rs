//! Documents that come from registries, caches and clients.

use lapstrake_builder_cache::CacheDocument;
use lapstrake_builder_llb::{Definition, Graph, Limits, cache_key, dump, dump_json, pb};
use lapstrake_layerstore_oci::{Digest, ImageConfig, Index, Manifest};
use prost::Message as _;

/// What is understood is written so that it is understood the same.
pub(crate) fn cache_document(data: &[u8]) {
    if let Ok(document) = CacheDocument::parse(data) {
        let written = document.to_json();
        let again = CacheDocument::parse(&written).expect("what was written can be read");
        assert_eq!(again, document);
        assert_eq!(again.to_json(), written);
    }
    let layers: Vec<Digest> = (0..3).map(|layer| Digest::sha256_of([layer])).collect();
    if let Ok(document) = CacheDocument::parse_inline(data, &layers) {
        assert!(document.blobs().all(|blob| layers.contains(blob)));
        let _ = document.records_to_json();
    }
}

/// The same for an image's documents.
pub(crate) fn image_document(data: &[u8]) {
    if let Ok(config) = ImageConfig::from_json(data) {
        let written = config.to_json().expect("what was read can be written");
        // Empty lists are left out, as Go does.
        let again = ImageConfig::from_json(&written).expect("what was written can be read");
        assert_eq!(again.to_json().as_ref(), Ok(&written));
        let _ = config.to_frontend_json();
        let mut kept = config.clone();
        kept.retain_buildkit_fields();
        kept.set_platform(&config.platform());
    }
    if let Ok(manifest) = Manifest::from_json(data) {
        let written = manifest.to_json().expect("what was read can be written");
        assert_eq!(Manifest::from_json(&written).as_ref(), Ok(&manifest));
    }
    if let Ok(index) = Index::from_json(data) {
        let written = index.to_json().expect("what was read can be written");
        assert_eq!(Index::from_json(&written).as_ref(), Ok(&index));
    }
}

/// Graphs as they are, and with inputs that lead somewhere: a fuzzer cannot find digests.
pub(crate) fn llb(data: &[u8]) {
    let Ok(mut proto) = pb::Definition::decode(data) else { return };
    if let Ok(definition) = Definition::decode(data) {
        check(&definition);
    }
    connect(&mut proto);
    if let Ok(definition) = Definition::from_proto(proto) {
        check(&definition);
    }
}

fn check(definition: &Definition) {
    assert_eq!(Definition::decode(&definition.encode()).as_ref(), Ok(definition));
    let _ = definition.head();
    let Ok(graph) = Graph::parse(definition, Limits::default()) else { return };
    assert!(!dump(&graph).is_empty());
    let _ = dump_json(&graph);
    for vertex in graph.vertices() {
        let keys = cache_key::in_versions(&vertex.op, vertex.inputs.len());
        assert!(keys.iter().all(|key| key.selectors.len() <= vertex.inputs.len()));
    }
}

/// Each input becomes one of the ops before it, chosen by the length of what was there.
fn connect(proto: &mut pb::Definition) {
    let mut digests: Vec<String> = Vec::new();
    for bytes in &mut proto.def {
        if let Ok(mut op) = pb::Op::decode(&bytes[..]) {
            if digests.is_empty() {
                op.inputs.clear();
            }
            for input in &mut op.inputs {
                input.digest.clone_from(&digests[input.digest.len() % digests.len()]);
            }
            *bytes = op.encode_to_vec();
        }
        digests.push(Digest::sha256_of(&*bytes).to_string());
    }
    proto.metadata.clear();
}
