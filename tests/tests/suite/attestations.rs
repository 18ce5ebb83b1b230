//! What is attested of what is built: how it came to be, and what is in it. And what is never told.

use std::path::Path;

use lapstrake_builder_engine::{BuildRequest, Destination, Input, Output};
use lapstrake_builder_history::AttachmentKind;
use lapstrake_builder_llb::Definition;
use lapstrake_integration_cli::buildkit::Llb;
use lapstrake_tests::{Built, Context, Workbench};
use serde_json::Value;

/// Says something in the words of BuildKit's clients.
fn say(request: &mut BuildRequest, key: &str, value: &str) {
    let Input::Dockerfile { options, .. } = &mut request.input else { panic!("a Dockerfile") };
    options.build_args.insert(key.to_owned(), value.to_owned());
}

/// Builds into a directory, with what is said.
async fn local(bench: &Workbench, context: Context, said: &[(&str, &str)], to: &Path) -> Built {
    let mut request = bench.request(context, "unused").await.unwrap();
    said.iter().for_each(|(key, value)| say(&mut request, key, value));
    request.outputs = vec![Output::local(Destination::Path(to.to_owned()))];
    bench.run(request).await.1.unwrap()
}

fn json(path: &Path) -> Value {
    let text = std::fs::read(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

const DOCKERFILE: &str = "FROM busybox AS base\nARG TOKEN\nRUN --network=none echo $TOKEN > /made\n\
    FROM scratch\nLABEL kept=label-value\nCOPY --from=base /made /\nCOPY a /\n";

fn context() -> Context {
    Context::new(DOCKERFILE).file("a", "from the context")
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_attested_that_nobody_asked_for() {
    let (bench, to) = (Workbench::new(), tempfile::tempdir().unwrap());
    local(&bench, context(), &[("TOKEN", "s3cret")], to.path()).await;
    assert_eq!(names(to.path()), ["a", "made"]);
    let mut request = bench.request(context(), "app").await.unwrap();
    say(&mut request, "BUILDKIT_ATTEST_PROVENANCE", "disabled=true");
    let built = bench.run(request).await.1.unwrap();
    assert_eq!(built.exported.manifest, None, "an image in the store stays as plain as it is");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_a_build_was_is_told_in_its_provenance() {
    let (bench, to) = (Workbench::new(), tempfile::tempdir().unwrap());
    let said = [
        ("TOKEN", "shown"),
        ("BUILDKIT_ATTEST_PROVENANCE", "mode=max,builder-id=https://me,reproducible=true"),
    ];
    // What was cached is told as what was made.
    for _ in 0..2 {
        local(&bench, context(), &said, to.path()).await;
        let statement = json(&to.path().join("provenance.json"));
        assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
        assert_eq!(statement["predicateType"], "https://slsa.dev/provenance/v1");
        let predicate = &statement["predicate"];
        let definition = &predicate["buildDefinition"];
        let request = &definition["externalParameters"]["request"];
        assert_eq!(request["frontend"], "dockerfile.v0");
        assert_eq!(request["args"]["build-arg:TOKEN"], "shown");
        assert_eq!(request["locals"], serde_json::json!([{"name": "context"}, {"name": "dockerfile"}]));
        assert_eq!(request["compatibilityVersion"], 30);
        assert_eq!(
            definition["externalParameters"]["configSource"],
            serde_json::json!({"path": "Dockerfile"})
        );
        let [base] = &definition["resolvedDependencies"].as_array().unwrap()[..] else {
            panic!("{definition}")
        };
        let uri = base["uri"].as_str().unwrap();
        assert!(uri.starts_with("pkg:docker/busybox@latest?platform=linux%2F"), "{uri}");
        assert_eq!(base["digest"]["sha256"].as_str().unwrap().len(), 64);
        let config = &definition["internalParameters"]["buildConfig"];
        let steps = config["llbDefinition"].as_array().unwrap();
        assert_eq!(config["digestMapping"].as_object().unwrap().len(), steps.len());
        assert_eq!(steps.last().unwrap()["op"], serde_json::json!({"Op": {}}));
        let run = steps.iter().find(|step| step["op"]["Op"]["exec"].is_object()).unwrap();
        assert_eq!(run["inputs"].as_array().unwrap().len(), 1);
        let contexts: Vec<&Value> = steps
            .iter()
            .map(|step| &step["op"]["Op"]["source"])
            .filter(|source| source["identifier"] == "local://context")
            .collect();
        assert_eq!(contexts.len(), 1);
        assert_eq!(contexts[0]["attrs"].get("local.unique"), None, "where it is here is nobody's business");
        let metadata = &predicate["runDetails"]["metadata"];
        assert_eq!(predicate["runDetails"]["builder"]["id"], "https://me");
        assert_eq!(
            metadata["buildkit_completeness"],
            serde_json::json!({"request": true, "resolvedDependencies": false})
        );
        assert_eq!(metadata["buildkit_reproducible"], true);
        assert!(metadata["startedOn"].as_str().unwrap() <= metadata["finishedOn"].as_str().unwrap());
        let source = &metadata["buildkit_metadata"]["source"];
        assert_eq!(source["infos"][0]["filename"], "Dockerfile");
        let step = run["id"].as_str().unwrap();
        assert_eq!(source["locations"][step]["locations"][0]["ranges"][0]["start"]["line"], 3, "{source}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_graph_of_a_client_is_attested_if_the_client_says_so() {
    let (bench, to) = (Workbench::new(), tempfile::tempdir().unwrap());
    let mut graph = Llb::default();
    let file = graph.file(None, "/made", b"x");
    let definition = Definition::from_proto(graph.result(&file)).unwrap();
    let mut request = bench.request(context(), "unused").await.unwrap();
    let options = [("attest:provenance".to_owned(), String::new())].into();
    request.input = Input::Definition { definition, options };
    request.outputs = vec![Output::local(Destination::Path(to.path().to_owned()))];
    bench.run(request).await.1.unwrap();
    let parameters =
        &json(&to.path().join("provenance.json"))["predicate"]["buildDefinition"]["externalParameters"];
    assert_eq!(parameters["request"], serde_json::json!({"compatibilityVersion": 30}));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_step_is_told_with_its_layers_as_far_as_there_are_blobs() {
    let bench = Workbench::new();
    let facts = serde_json::json!({"rack": {"row": 7}});
    bench.engine.describe_machine(facts.as_object().unwrap().clone());
    // A triangle: the base leads to the result on two ways.
    let text = "FROM busybox AS base\nFROM base AS a\nRUN echo a > /a\nFROM base\nCOPY --from=a /a /\nRUN echo b > /b\n";
    // What was cached is told as what was made.
    for name in ["one", "two"] {
        let mut request = bench.request(Context::new(text), name).await.unwrap();
        say(&mut request, "BUILDKIT_ATTEST_PROVENANCE", "mode=max");
        let built = bench.run(request).await.1.unwrap();
        let read = |digest: &Value| -> Value {
            let digest = lapstrake_layerstore_oci::Digest::parse(digest.as_str().unwrap()).unwrap();
            serde_json::from_slice(&bench.stores.content.read_small(&digest, 1 << 20).unwrap()).unwrap()
        };
        let index = read(&built.exported.manifest.unwrap().digest.to_string().into());
        let image = read(&index["manifests"][0]["digest"]);
        let attested = read(&index["manifests"][1]["digest"]);
        let predicate = &read(&attested["layers"][0]["digest"])["predicate"];
        let internal = &predicate["buildDefinition"]["internalParameters"];
        assert_eq!(internal["rack"]["row"], 7);
        let layers = &predicate["runDetails"]["metadata"]["buildkit_metadata"]["layers"];
        let of = |step: &Value| &layers[format!("{}:0", step["id"].as_str().unwrap())];
        let steps = internal["buildConfig"]["llbDefinition"].as_array().unwrap();
        let op = |kind: &'static str| steps.iter().filter(move |step| step["op"]["Op"][kind].is_object());
        let base = of(op("source").next().unwrap());
        assert_eq!(base.as_array().unwrap().len(), 1, "once, though two ways lead there: {layers}");
        let whole = &image["layers"];
        assert_eq!(base[0][0]["digest"], whole[0]["digest"]);
        let copied = of(op("file").next().unwrap());
        assert_eq!(copied[0].as_array().unwrap()[..], whole.as_array().unwrap()[..2]);
        let last = of(op("exec").next_back().unwrap());
        assert_eq!(last, &serde_json::json!([whole]));
        // Nobody compressed what the image does not have.
        assert_eq!(of(op("exec").next().unwrap()), &Value::Null);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_that_is_told_has_no_values_of_build_args_and_no_secrets() {
    let (bench, to) = (Workbench::new(), tempfile::tempdir().unwrap());
    let text = "FROM busybox\nARG TOKEN\nRUN --mount=type=secret,id=hush,required=false echo $TOKEN > /made\nFROM scratch\nCOPY --from=0 /made /\n";
    let context = || Context::new(text);
    let said = [("TOKEN", "s3cret"), ("BUILDKIT_ATTEST_PROVENANCE", "mode=min,version=v0.2,filename=p.json")];
    local(&bench, context(), &said, to.path()).await;
    let statement = json(&to.path().join("p.json"));
    assert_eq!(statement["predicateType"], "https://slsa.dev/provenance/v0.2");
    let predicate = &statement["predicate"];
    assert_eq!(predicate["buildType"], "https://mobyproject.org/buildkit@v1");
    assert_eq!(predicate["materials"].as_array().unwrap().len(), 1);
    let completeness = serde_json::json!({"parameters": false, "environment": true, "materials": false});
    assert_eq!(predicate["metadata"]["completeness"], completeness);
    assert_eq!(predicate.get("buildConfig"), None);
    let text = statement.to_string();
    assert!(!text.contains("s3cret") && !text.contains("TOKEN") && !text.contains("hush"), "{text}");
    // With all told, the secret's name is; its value never.
    local(&bench, context(), &[("BUILDKIT_ATTEST_PROVENANCE", "mode=max")], to.path()).await;
    let request = &json(&to.path().join("provenance.json"))["predicate"]["buildDefinition"]["externalParameters"]
        ["request"];
    assert_eq!(request["secrets"], serde_json::json!([{"id": "hush", "optional": true}]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_sense_in_an_image_only_is_with_no_directory() {
    let (bench, to) = (Workbench::new(), tempfile::tempdir().unwrap());
    let said = [("BUILDKIT_ATTEST_PROVENANCE", "mode=min,inline-only=true")];
    local(&bench, context(), &said, to.path()).await;
    assert_eq!(names(to.path()), ["a", "made"]);
    let mut request = bench.request(context(), "app").await.unwrap();
    say(&mut request, "BUILDKIT_ATTEST_PROVENANCE", "mode=min,inline-only=true");
    let built = bench.run(request).await.1.unwrap();
    let index = built.exported.manifest.expect("an image with what is attested of it is an index");
    let bytes = bench.stores.content.read_small(&index.digest, 1 << 20).unwrap();
    let index: Value = serde_json::from_slice(&bytes).unwrap();
    let [image, attestation] = &index["manifests"].as_array().unwrap()[..] else { panic!("{index}") };
    assert_eq!(attestation["platform"]["architecture"], "unknown");
    assert_eq!(attestation["annotations"]["vnd.docker.reference.digest"], image["digest"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_incomplete_list_of_materials_fails_a_build_that_wants_a_complete_one() {
    let bench = Workbench::new();
    let mut request = bench.request(context(), "app").await.unwrap();
    say(&mut request, "BUILDKIT_ATTEST_PROVENANCE", "complete-materials=true");
    let error = bench.run(request).await.1.unwrap_err().to_string();
    assert!(error.starts_with("provenance materials are incomplete\n"), "{error}");
    assert!(error.contains("Uncaptured local sources:\n  - context\n    reason: local_source"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_build_is_recorded_with_how_it_came_to_be_and_with_nobodys_secrets() {
    let bench = Workbench::new();
    let mut request = bench.request(context(), "app").await.unwrap();
    say(&mut request, "TOKEN", "s3cret");
    let id = request.id.clone();
    bench.run(request).await.1.unwrap();
    bench.history.settle().await;
    let record = bench.history.build(&id.0).unwrap().summary;
    let attested: Vec<_> = record
        .attachments
        .iter()
        .filter(|attachment| attachment.kind == AttachmentKind::Attestation { platform: None })
        .collect();
    let [provenance] = &attested[..] else { panic!("{:?}", record.attachments) };
    assert_eq!(provenance.media_type, "application/vnd.in-toto+json");
    assert_eq!(provenance.annotations["in-toto.io/predicate-type"], "https://slsa.dev/provenance/v1");
    let bytes = document(&bench, &provenance.digest);
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.contains("pkg:docker/busybox@latest") && !text.contains("s3cret"), "{text}");
    let predicate: Value = serde_json::from_str(&text).unwrap();
    let source = &predicate["runDetails"]["metadata"]["buildkit_metadata"]["source"];
    let [dockerfile] = &source["infos"].as_array().unwrap()[..] else { panic!("{source}") };
    assert_eq!(
        (&dockerfile["filename"], &dockerfile["language"]),
        (&"Dockerfile".into(), &"Dockerfile".into())
    );
    assert!(dockerfile["llbDefinition"].is_array(), "where it came from");
    assert_eq!(predicate["buildDefinition"]["internalParameters"].get("buildConfig"), None);
}

fn document(bench: &Workbench, digest: &str) -> Vec<u8> {
    let digest = lapstrake_layerstore_oci::Digest::parse(digest).unwrap();
    let mut bytes = Vec::new();
    let mut document = bench.history.document(&digest).unwrap().expect("it is kept");
    std::io::Read::read_to_end(&mut document.reader, &mut bytes).unwrap();
    bytes
}

/// A scanner of busybox's shell: for each source a statement that lists its files.
const SCANNER: &str = r#"FROM busybox
WORKDIR /work
COPY --chmod=755 scan /scan
ENTRYPOINT ["/scan"]
CMD ["from-cmd"]
"#;
const SCAN: &str = r#"#!/bin/sh -e
one() {
    files=$(cd "$1" && ls | tr '\n' ' ')
    printf '{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://spdx.dev/Document","predicate":{"name":"%s","files":"%s","arg":"%s","cwd":"%s","told":"%s"}}' \
        "${1##*/}" "$files" "$ARG" "$(pwd)" "$BUILDKIT_SCAN_WORD" > "${BUILDKIT_SCAN_DESTINATION}${1##*/}.spdx.json"
}
ARG=$1
one "$BUILDKIT_SCAN_SOURCE"
if [ -n "$BUILDKIT_SCAN_SOURCE_EXTRAS" ]; then for extra in "$BUILDKIT_SCAN_SOURCE_EXTRAS"*; do one "$extra"; done; fi
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_scanners_image_is_run_over_the_result_and_over_stages_that_ask_for_it() {
    let (bench, to) = (Workbench::new(), tempfile::tempdir().unwrap());
    bench.build(Context::new(SCANNER).mode("scan", 0o755, SCAN), "scanner").await.unwrap();
    let text = "ARG BUILDKIT_SBOM_SCAN_CONTEXT=true\nFROM busybox AS tools\nARG BUILDKIT_SBOM_SCAN_STAGE=true\nRUN mkdir /only && rm -rf /bin/vi\n\
        FROM scratch AS result\nCOPY --from=tools /only /only\nCOPY a /\n";
    let context = || Context::new(text).file("a", "x");
    let said = [("BUILDKIT_ATTEST_SBOM", "generator=scanner,WORD=hello")];
    let built = local(&bench, context(), &said, to.path()).await;
    let scans =
        |built: &Built| built.executed().iter().filter(|name| name.contains("generating sbom using")).count();
    assert_eq!(scans(&built), 1, "{:?}", built.executed());
    assert_eq!(
        names(to.path()),
        ["a", "only", "sbom-context.spdx.json", "sbom-tools.spdx.json", "sbom.spdx.json"]
    );
    let core = json(&to.path().join("sbom.spdx.json"));
    assert_eq!(core["predicateType"], "https://spdx.dev/Document");
    let expected = serde_json::json!({"name": "sbom", "files": "a only ", "arg": "from-cmd", "cwd": "/work", "told": "hello"});
    assert_eq!(core["predicate"], expected);
    let stage = json(&to.path().join("sbom-tools.spdx.json"));
    assert!(stage["predicate"]["files"].as_str().unwrap().contains("bin "), "{stage}");
    // The same again is cached.
    let again = local(&bench, context(), &said, to.path()).await;
    assert_eq!(scans(&again), 0, "{:?}", again.executed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scanner_that_is_none_or_fails_fails_the_build() {
    let bench = Workbench::new();
    bench.build(Context::new("FROM busybox\nENTRYPOINT [\"false\"]\n"), "failing").await.unwrap();
    bench.build(Context::new("FROM scratch\nCOPY Dockerfile /\n"), "silent").await.unwrap();
    for (generator, why) in [("failing", "exit code: 1"), ("silent", "does not have cmd")] {
        let mut request = bench.request(context(), "app").await.unwrap();
        say(&mut request, "BUILDKIT_ATTEST_SBOM", &format!("generator={generator}"));
        let error = bench.run(request).await.1.unwrap_err();
        let error = format!("{error} {:?}", error);
        assert!(error.contains(why), "{generator}: {error}");
    }
    let mut request = bench.request(context(), "app").await.unwrap();
    say(&mut request, "BUILDKIT_ATTEST_SEAL", "");
    let error = bench.run(request).await.1.unwrap_err().to_string();
    assert!(error.contains("unknown attestation type \"seal\""), "{error}");
}
