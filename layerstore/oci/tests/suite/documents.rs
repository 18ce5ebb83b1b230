//! Configs, manifests and digests: bytes as Go writes them, and nothing lost on the way through.

use std::io::{Read, Write};

use lapstrake_layerstore_oci::{
    Algorithm, ChainId, Descriptor, DiffId, Digest, DigestReader, DigestWriter, Digester, ImageConfig, Index,
    LayerCompression, Manifest, MediaType, OciError, Platform, Timestamp, gojson,
};
use proptest::prelude::*;
use serde_json::{Value, json};

#[test]
fn digests_are_validated() {
    let d = Digest::sha256_of("");
    assert_eq!(d.as_str(), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    assert_eq!((d.short(), d.algorithm()), ("e3b0c44298fc", Algorithm::Sha256));
    assert_eq!(Digest::from_sha256([0xab; 32]).hex(), "ab".repeat(32));
    let d512 = Digester::new(Algorithm::Sha512).finish();
    assert_eq!(
        (Digest::parse(d512.as_str()).unwrap().algorithm(), d512.hex().len()),
        (Algorithm::Sha512, 128)
    );
    for (bad, want) in [
        ("", "format"),
        ("sha256", "format"),
        ("sha256:", "format"),
        (":abc", "format"),
        ("sha256:abc", "length"),
        (&format!("sha256:{}", "G".repeat(64)), "format"),
        (&format!("sha256:{}", "A".repeat(64)), "format"),
        (&format!("sha384:{}", "a".repeat(96)), "unsupported"),
        (&format!("sha256:{}/../../x{}", "a".repeat(20), "a".repeat(36)), "format"),
        ("sha256:éééééééééééééééééééééééééééééééé", "format"),
    ] {
        let e = Digest::parse(bad).expect_err(bad);
        let got = match e {
            OciError::DigestFormat(_) => "format",
            OciError::DigestLength(_) => "length",
            OciError::DigestUnsupported(_) => "unsupported",
            e => panic!("{e}"),
        };
        assert_eq!(got, want, "{bad}");
    }
}

#[test]
fn adapters_hash_and_count_what_passes() {
    let mut r = DigestReader::new(&b"hello world"[..]);
    let mut buf = String::new();
    r.read_to_string(&mut buf).unwrap();
    let (_, d, n) = r.finish();
    assert_eq!((d, n), (Digest::sha256_of("hello world"), 11));
    let mut w = DigestWriter::new(Vec::new());
    w.write_all(b"hello world").unwrap();
    let (v, d, n) = w.finish();
    assert_eq!((v.as_slice(), d, n), (&b"hello world"[..], Digest::sha256_of("hello world"), 11));
}

#[test]
fn chain_ids_are_those_of_the_image_specification() {
    let d: Vec<DiffId> = ["a", "b", "c"].iter().map(|s| DiffId(Digest::sha256_of(s))).collect();
    assert_eq!(ChainId::of(&[]), None);
    assert_eq!(ChainId::of(&d[..1]).unwrap().0, d[0].0);
    let two = Digest::sha256_of(format!("{} {}", d[0], d[1]));
    assert_eq!(ChainId::of(&d[..2]).unwrap().0, two);
    assert_eq!(ChainId::of(&d).unwrap(), ChainId(two).extend(&d[2]));
    let all = ChainId::all_of(&d);
    assert_eq!(all, (1..=3).filter_map(|n| ChainId::of(&d[..n])).collect::<Vec<_>>());
}

#[test]
fn go_escapes_html_and_line_separators() {
    let v = json!({"a": "x && y > z < \u{2028}\u{2029} é \" \\ \n \u{1}"});
    let text = String::from_utf8(gojson::to_vec(&v).unwrap()).unwrap();
    assert_eq!(text, r#"{"a":"x \u0026\u0026 y \u003e z \u003c \u2028\u2029 é \" \\ \n \u0001"}"#);
    let indented = String::from_utf8(gojson::to_vec_indent(&v, "  ").unwrap()).unwrap();
    assert!(indented.starts_with("{\n  \"a\": \"x \\u0026"), "{indented}");
    assert_eq!(serde_json::from_str::<Value>(&indented).unwrap(), v);
}

const BUILDKIT: &str = r#"{"architecture":"amd64","config":{"User":"app","ExposedPorts":{"443/tcp":{},"80/tcp":{}},"Env":["PATH=/bin","B=1","A=2"],"Entrypoint":["/e"],"Cmd":["c"],"Volumes":{"/v":{}},"WorkingDir":"/w","Labels":{"a":"1","b":"2"},"StopSignal":"SIGINT","Healthcheck":{"Test":["CMD-SHELL","true \u0026\u0026 x"],"Interval":30000000000,"Retries":3},"OnBuild":["RUN x"],"Shell":["/bin/sh","-c"]},"created":"2024-05-06T07:08:09.1234Z","history":[{"created":"2024-05-06T07:08:09Z","created_by":"RUN a \u0026\u0026 b # buildkit","comment":"buildkit.dockerfile.v0"},{"created_by":"CMD","empty_layer":true}],"moby.buildkit.cache.v0":"AAAA","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]},"variant":"v2"}"#;

#[test]
fn a_buildkit_config_comes_out_byte_for_byte() {
    let c = ImageConfig::from_json(BUILDKIT.as_bytes()).unwrap();
    assert_eq!(c.platform().to_string(), "linux/amd64/v2");
    assert_eq!(c.config.healthcheck.as_ref().unwrap().retries, 3);
    assert_eq!(c.created.as_ref().unwrap().to_time().unwrap().nanosecond(), 123_400_000);
    assert_eq!(String::from_utf8(c.to_json().unwrap()).unwrap(), BUILDKIT);
}

#[test]
fn the_frontends_form_has_struct_order() {
    let mut c = ImageConfig::for_platform(&Platform::new("linux", "arm64"));
    c.config.working_dir = "/".to_owned();
    c.config.cmd = Some(vec![]);
    assert_eq!(
        String::from_utf8(c.to_frontend_json().unwrap()).unwrap(),
        r#"{"architecture":"arm64","os":"linux","rootfs":{"type":"layers","diff_ids":null},"config":{"WorkingDir":"/"}}"#
    );
}

#[test]
fn a_classic_dockerd_config_reads_with_nulls_and_keeps_its_own_fields() {
    let text = r##"{"architecture":"amd64","config":{"Hostname":"","Domainname":"","User":"","AttachStdin":false,"Tty":false,"Env":["PATH=/bin"],"Cmd":["sh"],"Image":"sha256:aa","Volumes":null,"WorkingDir":"","Entrypoint":null,"OnBuild":null,"Labels":null,"StopTimeout":7,"MacAddress":"02:42"},"container":"c0","container_config":{"Hostname":"h","Cmd":["/bin/sh","-c","#(nop) "],"Image":"","Labels":{}},"created":"2020-01-01T00:00:00Z","docker_version":"20.10.24","parent":"sha256:bb","history":[],"os":"linux","rootfs":{"type":"layers"}}"##;
    let mut c = ImageConfig::from_json(text.as_bytes()).unwrap();
    assert_eq!(c.config.entrypoint, None);
    assert_eq!(c.config.stop_timeout, Some(7));
    assert_eq!(c.config.extra["AttachStdin"], json!(false));
    assert_eq!(c.container_config.as_ref().unwrap().hostname.as_deref(), Some("h"));
    let back: Value = serde_json::from_slice(&c.to_json().unwrap()).unwrap();
    for (pointer, want) in [
        ("/config/AttachStdin", json!(false)),
        ("/config/Hostname", json!("")),
        ("/config/MacAddress", json!("02:42")),
        ("/container_config/Cmd/2", json!("#(nop) ")),
        ("/docker_version", json!("20.10.24")),
        ("/parent", json!("sha256:bb")),
        ("/container", json!("c0")),
    ] {
        assert_eq!(back.pointer(pointer), Some(&want), "{pointer}");
    }
    c.retain_buildkit_fields();
    assert_eq!(
        String::from_utf8(c.to_json().unwrap()).unwrap(),
        r#"{"architecture":"amd64","config":{"Env":["PATH=/bin"],"Cmd":["sh"]},"created":"2020-01-01T00:00:00Z","os":"linux","rootfs":{"type":"layers","diff_ids":null}}"#
    );
}

#[test]
fn an_empty_command_is_told_from_none_when_read() {
    let c = ImageConfig::from_json(br#"{"config":{"Cmd":[],"Entrypoint":null}}"#).unwrap();
    assert_eq!((c.config.cmd, c.config.entrypoint), (Some(vec![]), None));
}

#[test]
fn bad_configs_are_errors() {
    let deep = "[".repeat(100_000);
    for bad in [
        "",
        "null",
        "[]",
        "{",
        r#"{"config":{"Env":"x"}}"#,
        r#"{"rootfs":{"diff_ids":["sha256:../.."]}}"#,
        &deep,
    ] {
        assert!(ImageConfig::from_json(bad.as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn timestamps_are_written_as_go_writes_them() {
    let t = Timestamp::parse("2024-01-02T03:04:05.120000000+02:00").unwrap();
    assert_eq!(t.as_str(), "2024-01-02T03:04:05.120000000+02:00");
    assert_eq!(Timestamp::from(t.to_time().unwrap()).as_str(), "2024-01-02T01:04:05.12Z");
    assert_eq!(Timestamp::from(time::OffsetDateTime::UNIX_EPOCH).as_str(), "1970-01-01T00:00:00Z");
    assert!(Timestamp::zero().to_time().is_ok());
    assert!(Timestamp::parse("yesterday").is_err());
}

#[test]
fn manifests_have_gos_field_order_and_keep_unknown_fields() {
    let d = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{d}","size":0}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{d}","size":5,"urls":["https://x/y"],"annotations":{{"a":"b"}},"data":"aGVsbG8=","platform":{{"architecture":"amd64","os":"linux"}},"artifactType":"t","x-unknown":1}}],"annotations":{{"k":"v"}},"zz":[1]}}"#
    );
    let m = Manifest::from_json(text.as_bytes()).unwrap();
    assert_eq!(m.layers[0].data.as_deref(), Some(&b"hello"[..]));
    assert_eq!(String::from_utf8(m.to_json().unwrap()).unwrap(), text);

    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{d}","size":1,"platform":{{"architecture":"arm","os":"linux","variant":"v7"}}}}]}}"#
    );
    let i = Index::from_json(index.as_bytes()).unwrap();
    assert_eq!(String::from_utf8(i.to_json().unwrap()).unwrap(), index);
    assert!(Manifest::from_json(index.as_bytes()).is_err());
    assert!(Index::from_json(text.as_bytes()).is_err());
    let negative = text.replace("\"size\":5", "\"size\":-5");
    assert!(Manifest::from_json(negative.as_bytes()).is_err());
    let both = text.replace("\"zz\":[1]", "\"manifests\":[]");
    assert!(Manifest::from_json(both.as_bytes()).is_err());
}

#[test]
fn media_types_tell_what_they_are() {
    assert!(MediaType::new("application/vnd.oci.image.index.v1+json; charset=utf-8").is_index());
    assert!(MediaType::DOCKER_MANIFEST_LIST.is_index() && !MediaType::DOCKER_MANIFEST_LIST.is_manifest());
    assert!(MediaType::DOCKER_SCHEMA1_SIGNED.is_schema1());
    assert!(MediaType::DOCKER_FOREIGN_LAYER_GZIP.is_nondistributable());
    for (t, c) in [
        (MediaType::OCI_LAYER, Some(LayerCompression::None)),
        (MediaType::DOCKER_LAYER_GZIP, Some(LayerCompression::Gzip)),
        (MediaType::OCI_NONDISTRIBUTABLE_LAYER_ZSTD, Some(LayerCompression::Zstd)),
        (MediaType::DOCKER_LAYER_ZSTD, Some(LayerCompression::Zstd)),
        (MediaType::OCI_CONFIG, None),
        (MediaType::new("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"), None),
    ] {
        assert_eq!(t.layer_compression(), c, "{t}");
    }
    assert_eq!(Descriptor::of(MediaType::OCI_EMPTY, b"{}").digest.short(), "44136fa355b3");
}

fn unknown_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{1,5}", inner, 0..4)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

fn unknown_fields() -> impl Strategy<Value = Vec<(String, Value)>> {
    prop::collection::vec(("x-[a-zA-Z<&é]{1,6}", unknown_value()), 0..4)
}

proptest! {
    #[test]
    fn a_config_loses_nothing_on_a_round_trip(
        at_top in unknown_fields(), in_config in unknown_fields(), in_check in unknown_fields(),
        in_rootfs in unknown_fields(), in_history in unknown_fields(), in_container in unknown_fields(),
        env in prop::collection::vec("\\PC{0,12}", 1..4),
        labels in prop::collection::btree_map("\\PC{0,6}", "\\PC{0,6}", 1..4),
        ports in prop::collection::btree_map("[0-9]{1,4}/tcp", Just(json!({})), 1..4),
    ) {
        let mut doc: Value = serde_json::from_str(BUILDKIT).unwrap();
        doc["container_config"] = json!({"Hostname": "h", "Healthcheck": {"Timeout": 1}});
        doc["config"]["Env"] = json!(env);
        doc["config"]["Labels"] = json!(labels);
        doc["config"]["ExposedPorts"] = json!(ports);
        for (pointer, fields) in [
            ("", at_top), ("/config", in_config), ("/config/Healthcheck", in_check), ("/rootfs", in_rootfs),
            ("/history/0", in_history), ("/container_config/Healthcheck", in_container),
        ] {
            let place = doc.pointer_mut(pointer).unwrap().as_object_mut().unwrap();
            place.extend(fields);
        }
        let bytes = serde_json::to_vec(&doc).unwrap();
        let c = ImageConfig::from_json(&bytes).unwrap();
        let once = c.to_json().unwrap();
        prop_assert_eq!(&serde_json::from_slice::<Value>(&once).unwrap(), &doc);
        let again = ImageConfig::from_json(&once).unwrap();
        prop_assert_eq!(again.to_json().unwrap(), once);
        prop_assert_eq!(&serde_json::from_slice::<Value>(&again.to_frontend_json().unwrap()).unwrap(), &doc);
        prop_assert_eq!(again, c);
    }

    #[test]
    fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), s in "\\PC{0,80}") {
        let _ = ImageConfig::from_json(&bytes);
        let _ = Manifest::from_json(&bytes);
        let _ = Index::from_json(&bytes);
        let _ = Digest::parse(&s);
        let _ = Platform::parse(&s);
        let _ = Timestamp::parse(&s);
    }
}
