//! Archives that lie, lead outside, or never end: each is an error that says what is wrong, and leaves no image.

use std::io::Read;

use lapstrake_layerstore_oci::{Descriptor, DiffId, Digest, Index, Manifest, MediaType};
use lapstrake_layerstore_transfer::load;
use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

use crate::common::*;

fn refused(archive: &[u8]) -> String {
    let machine = Machine::new();
    let error = machine.load(archive).unwrap_err();
    assert!(machine.stores.images.list().unwrap().is_empty());
    chain(&error)
}

fn diff_id(layer: &[u8]) -> DiffId {
    DiffId(Digest::sha256_of(layer))
}

/// An archive of one image with this `manifest.json`.
fn with_manifest(manifest: &str) -> Vec<u8> {
    let layer = tar(&[("f", b"x")]);
    let config = config(&[diff_id(&layer)]);
    tar(&[("c.json", &config), ("l.tar", &layer), ("manifest.json", manifest.as_bytes())])
}

#[test]
fn what_is_no_archive_is_refused() {
    assert!(refused(b"hello, this is a text, not an archive").contains("read archive: archive is cut short"));
    assert_eq!(refused(&[0; 1024]), "invalid archive: does not contain a manifest.json");
    assert_eq!(refused(b""), "invalid archive: does not contain a manifest.json");
    assert!(refused(&gzip(b"x")[..6]).contains("decompress gzip"));
}

#[test]
fn a_manifest_that_is_none_is_refused() {
    for (manifest, why) in [
        ("null", "manifest cannot be null (but can be [])"),
        ("{}", "failed to decode manifest.json"),
        (r#"[{"Config":"nowhere","Layers":["l.tar"]}]"#, "it names nowhere and does not contain it"),
        (r#"[{"Config":"c.json","Layers":["nowhere"]}]"#, "it names nowhere and does not contain it"),
        (r#"[{"Config":"c.json","Layers":[]}]"#, "layers length mismatch: expected 0, got 1"),
        (r#"[{"Config":"c.json"}]"#, "layers length mismatch"),
        (r#"[{"Config":"c.json","Layers":["l.tar"],"RepoTags":["UPPER:1"]}]"#, "must be lowercase"),
        (r#"[{"Config":"c.json","Layers":["l.tar"],"RepoTags":["untagged"]}]"#, "invalid tag \"untagged\""),
        (r#"[{"Config":"l.tar","Layers":["l.tar"]}]"#, "config of image"),
        (r#"[{"Config":"c.json","Layers":["c.json"]}]"#, "archive is cut short"),
    ] {
        let error = refused(&with_manifest(manifest));
        assert!(error.contains(why), "{manifest}: {error}");
    }
    assert!(Machine::new().load(&with_manifest("[]")).unwrap().is_empty());
}

#[test]
fn names_and_links_lead_nowhere_outside() {
    let outside = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(outside.path(), config(&[])).unwrap();
    let outside = outside.path().to_str().unwrap();
    for (kind, link) in [
        (tar::EntryType::Symlink, outside.to_owned()),
        (tar::EntryType::Symlink, format!("../../../../../..{outside}")),
        (tar::EntryType::Link, outside.to_owned()),
        (tar::EntryType::Symlink, "c".to_owned()),
        (tar::EntryType::Symlink, "d".to_owned()),
    ] {
        let mut builder = tar::Builder::new(Vec::new());
        append(&mut builder, "c", kind, &link, b"");
        append(&mut builder, "d", tar::EntryType::Symlink, "c", b"");
        append(
            &mut builder,
            "manifest.json",
            tar::EntryType::Regular,
            "",
            br#"[{"Config":"c","Layers":[]}]"#,
        );
        assert_eq!(
            refused(&builder.into_inner().unwrap()),
            "invalid archive: it names c and does not contain it",
            "{link}"
        );
    }
    let direct = format!(r#"[{{"Config":"{outside}","Layers":[]}}]"#);
    assert!(refused(&with_manifest(&direct)).contains("does not contain it"));
}

#[test]
fn names_with_dots_are_taken_from_the_archives_root() {
    let config = config(&[]);
    let mut builder = tar::Builder::new(Vec::new());
    append(&mut builder, "../../dir/../c", tar::EntryType::Regular, "", &config);
    append(&mut builder, "up", tar::EntryType::Symlink, "/../..", b"");
    append(
        &mut builder,
        "manifest.json",
        tar::EntryType::Regular,
        "",
        br#"[{"Config":"up/./c","Layers":[]}]"#,
    );
    let machine = Machine::new();
    let loaded = machine.load(&builder.into_inner().unwrap()).unwrap();
    assert_eq!(*loaded[0].id.digest(), Digest::sha256_of(&config));
}

#[test]
fn a_config_or_layer_with_other_content_is_refused() {
    let layer = tar(&[("f", b"x")]);
    let other = tar(&[("f", b"y")]);
    let config = config(&[diff_id(&layer)]);
    let hex = Digest::sha256_of("something else").hex().to_owned();
    let manifest = format!(r#"[{{"Config":"{hex}.json","Layers":["l"]}}]"#);
    let lies =
        tar(&[(&format!("{hex}.json"), &config), ("l", &layer), ("manifest.json", manifest.as_bytes())]);
    assert!(refused(&lies).contains("has the digest sha256:"));
    let lies =
        tar(&[("c", &config), ("l", &other), ("manifest.json", br#"[{"Config":"c","Layers":["l"]}]"#)]);
    let error = refused(&lies);
    assert!(error.contains(&format!("its content has the diff id {}", diff_id(&other))), "{error}");
}

#[test]
fn a_layer_that_leads_outside_is_refused() {
    let layer = tar(&[("../escape", b"x")]);
    let config = config(&[diff_id(&layer)]);
    let archive =
        tar(&[("c", &config), ("l", &layer), ("manifest.json", br#"[{"Config":"c","Layers":["l"]}]"#)]);
    assert!(refused(&archive).contains("breakout"));
}

#[test]
fn nothing_is_stored_when_a_later_image_is_wrong() {
    let config = config(&[]);
    let archive = tar(&[
        ("c", &config),
        (
            "manifest.json",
            br#"[{"Config":"c","Layers":[],"RepoTags":["good:1"]},{"Config":"gone","Layers":[]}]"#,
        ),
    ]);
    assert!(refused(&archive).contains("gone"));
}

#[test]
fn images_that_are_each_others_parents_are_refused() {
    let (a, b) = (config(&[]), [config(&[]), b" ".to_vec()].concat());
    let (id_a, id_b) = (Digest::sha256_of(&a), Digest::sha256_of(&b));
    let manifest = format!(
        r#"[{{"Config":"a","Layers":[],"Parent":"{id_b}"}},{{"Config":"b","Layers":[],"Parent":"{id_a}"}}]"#
    );
    let archive = tar(&[("a", &a), ("b", &b), ("manifest.json", manifest.as_bytes())]);
    assert!(refused(&archive).contains("each other's parents"));
}

#[test]
fn an_oversized_document_is_refused() {
    let large = vec![b' '; 9 << 20];
    assert!(
        refused(&tar(&[("manifest.json", &large)])).contains("manifest.json is larger than 8388608 bytes")
    );
    assert!(refused(&tar(&[("index.json", &large)])).contains("index.json is larger"));
}

#[test]
fn a_cut_archive_is_refused_wherever_it_is_cut() {
    let whole = with_manifest(r#"[{"Config":"c.json","Layers":["l.tar"]}]"#);
    for at in [1, 300, 512, 700, 1024, 2600, whole.len() - 1500] {
        refused(&whole[..at]);
    }
}

#[test]
fn layouts_that_lie_are_refused() {
    let layer = tar(&[("f", b"x")]);
    let config = config(&[diff_id(&layer)]);
    let path = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    let manifest = Manifest::new(
        MediaType::OCI_MANIFEST,
        Descriptor::of(MediaType::OCI_CONFIG, &config),
        vec![Descriptor::of(MediaType::OCI_LAYER, &layer)],
    );
    let archive = |manifest: &Manifest, layer: &[u8], layout: &[u8]| {
        let bytes = manifest.to_json().unwrap();
        let root = Descriptor::of(MediaType::OCI_MANIFEST, &bytes);
        let index = Index::new(MediaType::OCI_INDEX, vec![root.clone()]).to_json().unwrap();
        tar(&[
            ("oci-layout", layout),
            ("index.json", &index),
            (&path(&root.digest), &bytes),
            (&path(&manifest.config.digest), &config),
            (&path(&manifest.layers[0].digest), layer),
        ])
    };
    let version = br#"{"imageLayoutVersion":"1.0.0"}"#.as_slice();
    assert_eq!(Machine::new().load(&archive(&manifest, &layer, version)).unwrap().len(), 1);
    assert!(
        refused(&archive(&manifest, &layer, br#"{"imageLayoutVersion":"9"}"#)).contains("unknown version 9")
    );
    let mut other = layer.clone();
    other[520] ^= 1;
    assert!(refused(&archive(&manifest, &other, version)).contains("has another digest"));
    assert!(refused(&archive(&manifest, b"short", version)).contains("has 5 bytes, and should have"));
    let mut artifact = manifest.clone();
    artifact.config.media_type = MediaType::new("application/vnd.example");
    assert!(
        refused(&archive(&artifact, &layer, version))
            .contains("is not an image's but of application/vnd.example")
    );
    let mut extra = manifest.clone();
    extra.layers.push(manifest.layers[0].clone());
    assert!(refused(&archive(&extra, &layer, version)).contains("layers length mismatch"));
}

#[test]
fn an_index_that_holds_itself_many_times_over_ends() {
    // An index cannot name itself; but a chain of them can be long.
    let mut blobs: Vec<(String, Vec<u8>)> = Vec::new();
    let mut next = Descriptor::of(MediaType::OCI_MANIFEST, b"{}");
    for _ in 0..10 {
        let bytes = Index::new(MediaType::OCI_INDEX, vec![next]).to_json().unwrap();
        next = Descriptor::of(MediaType::OCI_INDEX, &bytes);
        blobs.push((format!("blobs/sha256/{}", next.digest.hex()), bytes));
    }
    let index = Index::new(MediaType::OCI_INDEX, vec![next]).to_json().unwrap();
    blobs.push(("index.json".to_owned(), index));
    let files: Vec<(&str, &[u8])> =
        blobs.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    assert!(refused(&tar(&files)).contains("nested too deeply"));
}

#[test]
fn an_endless_stream_of_headers_ends() {
    // Names of 64 MiB at most; an endless body of them is cut off long before memory is.
    struct Endless {
        entry: Vec<u8>,
        at: usize,
    }
    impl Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let count = buffer.len().min(self.entry.len() - self.at);
            buffer[..count].copy_from_slice(&self.entry[self.at..self.at + count]);
            self.at = (self.at + count) % self.entry.len();
            Ok(count)
        }
    }
    let mut builder = tar::Builder::new(Vec::new());
    append(&mut builder, "x", tar::EntryType::Regular, "", b"");
    let entry = builder.into_inner().unwrap()[..512].to_vec();
    let machine = Machine::new();
    let error = load(&machine.stores, Endless { entry, at: 0 }, &[], &CancellationToken::new(), &|_| ());
    assert!(chain(&error.unwrap_err()).contains("entries over the limit of 200000"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_archive_is_refused_or_holds_the_same_image(at in 0_usize..6000, flip in 1_u8..) {
        let mut archive = with_manifest(r#"[{"Config":"c.json","Layers":["l.tar"],"RepoTags":["x:1"]}]"#);
        let at = at % archive.len();
        archive[at] ^= flip;
        let machine = Machine::new();
        if let Ok(loaded) = machine.load(&archive) {
            for image in loaded {
                // Whatever came through is what its config says.
                let record = machine.record(&image.id);
                prop_assert_eq!(Digest::sha256_of(&record.config), image.id.0.clone());
                machine.save(&[&record]);
            }
        }
    }
}
