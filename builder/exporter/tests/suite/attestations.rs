//! What frontends attest of an image: bundles of statements, bills of materials, annotations; and who may say what.

use std::{collections::BTreeMap, fs};

use lapstrake_builder_exporter::{
    Annotations, Attestation, AttestationContent, AttestationKind, Exported, Output, PlatformResult,
};
use lapstrake_layerstore_oci::{Digest, Index, Manifest};
use lapstrake_layerstore_store::Tree;
use lapstrake_layerstore_transfer::layers;
use serde_json::{Value, json};

use crate::common::*;

fn image() -> Output {
    Output::parse("image", &BTreeMap::from([("name".to_owned(), "app:1".to_owned())])).unwrap()
}

fn read(machine: &Machine, digest: &Digest) -> Vec<u8> {
    machine.stores.content.read_small(digest, 1 << 20).unwrap()
}

/// The manifest of an image that is attested, and the statements about it.
async fn attested(machine: &Machine, result: PlatformResult) -> (Manifest, Digest, Vec<Value>) {
    let exported: Exported = machine.export(image(), vec![result]).await.unwrap();
    let index = Index::from_json(&read(machine, &exported.manifest.unwrap().digest)).unwrap();
    let manifest =
        |place: usize| Manifest::from_json(&read(machine, &index.manifests[place].digest)).unwrap();
    let statement = |digest: &Digest| serde_json::from_slice(&read(machine, digest)).unwrap();
    let statements = manifest(1).layers.iter().map(|layer| statement(&layer.digest)).collect();
    (manifest(0), index.manifests[0].digest.clone(), statements)
}

/// An attestation in a tree of files.
fn in_tree(machine: &Machine, kind: AttestationKind, path: &str, files: &[(&str, &str)]) -> Attestation {
    let tree = machine.tree(&Tree::empty(), |root| {
        for (name, text) in files {
            let file = root.join(name.trim_start_matches('/'));
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
    });
    Attestation { kind, path: path.into(), content: AttestationContent::Tree(tree), ..said("") }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_of_a_bundle_that_say_nothing_of_a_subject_are_about_the_image() {
    let machine = Machine::new();
    let mut result = machine.result();
    let text = r#"{"_type":"https://in-toto.io/Statement/v1","predicateType":"https://example.com/v1","subject":null,"predicate":{"foo":"1"}}"#;
    let bundle = in_tree(&machine, AttestationKind::Bundle, "/bundle", &[("bundle/a.json", text)]);
    result.attestations = vec![Attestation { predicate_type: String::new(), ..bundle }];
    let (_, digest, statements) = attested(&machine, result).await;
    assert_eq!(statements[0]["predicateType"], "https://example.com/v1");
    assert_eq!(statements[0]["predicate"], json!({"foo": "1"}));
    assert_eq!(statements[0]["subject"][0]["digest"]["sha256"], digest.hex());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_but_this_program_says_how_an_image_came_to_be() {
    let machine = Machine::new();
    let text = r#"{"predicateType":"https://slsa.dev/provenance/v1","predicate":{}}"#;
    let files = [("bundle/p.json", text)];
    for (kind, path) in [(AttestationKind::Bundle, "/bundle"), (AttestationKind::InToto, "/bundle/p.json")] {
        let mut result = machine.result();
        let theirs = in_tree(&machine, kind, path, &files);
        result.attestations = vec![match kind {
            AttestationKind::Bundle => Attestation { predicate_type: String::new(), ..theirs },
            AttestationKind::InToto => theirs,
        }];
        let error = machine.export(image(), vec![result]).await.unwrap_err().to_string();
        assert!(error.contains("frontend may not") && error.contains("provenance attestations"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bill_of_materials_says_which_layer_each_file_is_in() {
    let machine = Machine::new();
    let mut result = machine.result();
    let document = json!({
        "spdxVersion": "SPDX-2.3",
        "creationInfo": {"creators": ["Tool: scanner"]},
        "files": [
            {"fileName": "/etc/conf.d/a", "SPDXID": "a"},
            {"fileName": "./tool"},
            {"fileName": "/gone"},
            {"fileName": "/nowhere"},
            {"fileName": "/etc/tool", "comment": "the scanner's own"},
        ],
    });
    let text = document.to_string();
    let sbom = in_tree(&machine, AttestationKind::InToto, "/sbom.spdx.json", &[("sbom.spdx.json", &text)]);
    let core = BTreeMap::from([("sbom-core".to_owned(), b"sbom".to_vec())]);
    let sbom = Attestation { predicate_type: "https://spdx.dev/Document".to_owned(), ..sbom };
    let extra = in_tree(&machine, AttestationKind::InToto, "/extra.spdx.json", &[("extra.spdx.json", &text)]);
    let extra = Attestation { predicate_type: "https://spdx.dev/Document".to_owned(), ..extra };
    result.attestations =
        vec![Attestation { metadata: core.clone(), ..extra }, Attestation { metadata: core, ..sbom }];
    let tree = result.tree.clone();
    let (manifest, _, statements) = attested(&machine, result).await;
    assert_eq!(layers(&machine.stores, &tree).unwrap().len(), manifest.layers.len());
    let [below, above] = &manifest.layers[..] else { panic!("two layers") };
    // What is said of the result itself comes first.
    let files = &statements[0]["predicate"]["files"];
    let comments: Vec<_> = (0..5).map(|place| files[place]["comment"].as_str().unwrap_or_default()).collect();
    let layer = |blob: &Digest| format!("layerID: {blob}");
    let expected =
        [&layer(&above.digest), &layer(&above.digest), &layer(&below.digest), "", "the scanner's own"];
    assert_eq!(
        comments, expected,
        "the file is in the layer that made it last, also if one above removes it"
    );
    assert_eq!(files[0]["SPDXID"], "a");
    let creators = &statements[0]["predicate"]["creationInfo"]["creators"];
    assert_eq!(creators[0], "Tool: scanner");
    assert!(creators[1].as_str().unwrap().starts_with("Tool: lapstrake-"), "{creators}");
    // Of other trees, the image has no layers.
    assert_eq!(statements[1]["predicate"], document);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn annotations_of_a_frontend_go_into_all_documents() {
    let machine = Machine::new();
    let said = [("annotation-index.a", "frontend"), ("annotation.m", "m"), ("refs.platforms", "")];
    let said: BTreeMap<_, _> = said.map(|(key, value)| (key.to_owned(), value.as_bytes().to_vec())).into();
    let attrs = [("name", "app:1"), ("annotation-index.a", "client"), ("annotation-index.b", "client")];
    let attrs = attrs.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let mut output = Output::parse("moby", &attrs).unwrap();
    output.annotate(&Annotations::of_result(&said).unwrap());
    let exported = machine.export_several(output, vec![machine.result()]).await.unwrap();
    let index = Index::from_json(&read(&machine, &exported.manifest.unwrap().digest)).unwrap();
    assert_eq!((index.annotations["a"].as_str(), index.annotations["b"].as_str()), ("frontend", "client"));
    let manifest = Manifest::from_json(&read(&machine, &index.manifests[0].digest)).unwrap();
    assert_eq!(manifest.annotations["m"], "m");
    // An image that would wait for its manifest has one, as there is no other place for them.
    let mut lazy = Output::image(names(&["app:2"]));
    lazy.annotate(&Annotations::of_result(&said).unwrap());
    let error = machine.export(lazy, vec![machine.result()]).await.unwrap_err().to_string();
    assert_eq!(error, "index annotations not supported for single platform export");
}
