//! What a client that asks for attestations gets in a registry: skopeo shows the documents as they are there.

use lapstrake_integration_cli::{
    BASE_IMAGE, Daemon, Registry,
    buildkit::{BuildKit, Client, Tree, attrs, dockerfile_build, exporter},
};
use serde_json::Value;

use crate::common::skopeo;

fn raw(image: &str) -> Value {
    let text = skopeo(&["inspect", "--tls-verify=false", "--raw", &format!("docker://{image}")]);
    serde_json::from_str(&text).unwrap()
}

/// Builds and pushes.
async fn push(
    daemon: &Daemon,
    image: &str,
    more: &[(&str, &str)],
    said: &[(&str, &str)],
) -> Result<(), String> {
    let tree =
        Tree::of(&[("Dockerfile", format!("FROM {BASE_IMAGE}\nARG TOKEN\nRUN echo \"$TOKEN\" > /built\n"))]);
    let buildkit = BuildKit::upgraded(&daemon.socket()).await;
    let session = buildkit.open(Client::with_context(tree)).await;
    let mut request = dockerfile_build(&session);
    request.frontend_attrs = attrs(said);
    let pushed = [("name", image), ("push", "true"), ("registry.insecure", "true")];
    request.exporters = vec![exporter("image", &[&pushed, more].concat())];
    let outcome = buildkit.solve(request).await;
    outcome.result.map(|_| ()).map_err(|status| status.message().to_owned())
}

/// The attestation of the image that an index names first.
fn attestation(repository: &str, index: &Value) -> (Value, Value) {
    let [image, attestation] = &index["manifests"].as_array().unwrap()[..] else { panic!("{index}") };
    assert_eq!(attestation["platform"], serde_json::json!({"architecture": "unknown", "os": "unknown"}));
    let annotations = serde_json::json!({
        "vnd.docker.reference.type": "attestation-manifest",
        "vnd.docker.reference.digest": image["digest"],
    });
    assert_eq!(attestation["annotations"], annotations);
    let digest = attestation["digest"].as_str().unwrap();
    (image.clone(), raw(&format!("{repository}@{digest}")))
}

/// What a statement in a manifest says.
fn statement(registry: &Registry, layer: &Value) -> Value {
    let digest = layer["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let path = format!("docker/registry/v2/blobs/sha256/{}/{digest}/data", &digest[..2]);
    serde_json::from_slice(&std::fs::read(registry.storage().join(path)).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn provenance_is_beside_the_image_in_a_registry() {
    let (daemon, registry) = (Daemon::with_base(), Registry::start());
    let image = registry.image("team/app:1");
    let said = [("attest:provenance", "mode=min,inline-only=true"), ("build-arg:TOKEN", "s3cret")];
    push(&daemon, &image, &[], &said).await.unwrap();
    let repository = registry.image("team/app");
    let (pushed, manifest) = attestation(&repository, &raw(&image));
    let [layer] = &manifest["layers"].as_array().unwrap()[..] else { panic!("{manifest}") };
    assert_eq!(layer["mediaType"], "application/vnd.in-toto+json");
    assert_eq!(layer["annotations"]["in-toto.io/predicate-type"], "https://slsa.dev/provenance/v1");
    let said = statement(&registry, layer);
    let subject = &said["subject"][0];
    assert_eq!(format!("sha256:{}", subject["digest"]["sha256"].as_str().unwrap()), pushed["digest"]);
    let host = repository.split('/').next().unwrap().replace(':', "%3A");
    let name = subject["name"].as_str().unwrap();
    assert!(name.starts_with(&format!("pkg:docker/{host}/team/app@1?platform=linux%2F")), "{name}");
    let request = &said["predicate"]["buildDefinition"]["externalParameters"]["request"];
    assert_eq!(request["frontend"], "dockerfile.v0");
    assert!(!said.to_string().contains("s3cret"), "{said}");
    // Who asks for nothing gets a plain manifest.
    let plain = registry.image("team/plain:1");
    push(&daemon, &plain, &[], &[]).await.unwrap();
    assert_eq!(raw(&plain).get("manifests"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bill_of_materials_is_beside_the_image_of_each_platform() {
    let (daemon, registry) = (Daemon::with_base(), Registry::start());
    let scanner = format!(
        r#"FROM {BASE_IMAGE}
COPY <<"END" /scan
echo "{{\"predicateType\":\"https://spdx.dev/Document\",\"predicate\":{{\"at\":\"$BUILDKIT_SCAN_SOURCE\"}}}}" > $BUILDKIT_SCAN_DESTINATION/sbom.spdx.json
END
CMD ["sh", "/scan"]
"#
    );
    daemon.docker().run_with(["build", "-t", "scanner", "-"], scanner.as_bytes()).success();
    let image = registry.image("team/app:2");
    let said = [("attest:sbom", "generator=scanner"), ("attest:provenance", "mode=max,version=v0.2")];
    push(&daemon, &image, &[("oci-artifact", "true")], &said).await.unwrap();
    let (pushed, manifest) = attestation(&registry.image("team/app"), &raw(&image));
    assert_eq!(manifest["artifactType"], "application/vnd.docker.attestation.manifest.v1+json");
    assert_eq!(manifest["subject"]["digest"], pushed["digest"]);
    let layers = manifest["layers"].as_array().unwrap();
    let kinds: Vec<&Value> =
        layers.iter().map(|layer| &layer["annotations"]["in-toto.io/predicate-type"]).collect();
    assert_eq!(kinds, ["https://spdx.dev/Document", "https://slsa.dev/provenance/v0.2"]);
    assert_eq!(statement(&registry, &layers[0])["predicate"]["at"], "/run/src/core/sbom");
    let provenance = statement(&registry, &layers[1]);
    let materials = provenance["predicate"]["materials"].to_string();
    assert!(materials.contains("pkg:docker/scanner@latest"), "{materials}");
}

#[tokio::test(flavor = "multi_thread")]
async fn attestations_that_cannot_be_are_refused_in_buildkits_words() {
    let (daemon, registry) = (Daemon::with_base(), Registry::start());
    let image = registry.image("app:1");
    for (more, said, why) in [
        (&[][..], ("attest:seal", ""), "unknown attestation type \"seal\""),
        (&[], ("attest:provenance", "mode=most"), "invalid mode \"most\""),
        (&[], ("attest:sbom", "generator="), "sbom generator cannot be empty"),
        (
            &[("oci-mediatypes", "false")][..],
            ("attest:provenance", ""),
            "cannot export attestations with \"oci-mediatypes=false\"",
        ),
    ] {
        let error = push(&daemon, &image, more, &[said]).await.unwrap_err();
        assert!(error.contains(why), "{said:?}: {error}");
    }
}
