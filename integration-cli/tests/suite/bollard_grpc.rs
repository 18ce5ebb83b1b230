//! bollard's drivers of gRPC: Moby's (`POST /grpc` and `/session`), and buildkitd's (HTTP/2 at once, the session within it).

#[allow(unreachable_pub)]
use std::{collections::HashMap, io::Write, path::Path, process::Command};

use bollard::{
    API_DEFAULT_VERSION, Docker,
    grpc::{
        build::{ImageBuildFrontendOptions, ImageBuildLoadInput, ImageBuildPlatform, SecretSource},
        driver::{
            Build, Export, Image, ImageExporterEnum,
            buildkitd::{BuildkitDaemon, Endpoint},
            moby::Moby,
        },
        export::ImageExporterOutput,
        registry::ImageRegistryOutput,
    },
};
use lapstrake_integration_cli::{BASE_IMAGE, Daemon, Registry, collect, free_address};

use crate::common;

/// A context, as bollard uploads it.
fn upload(files: &[(&str, &str)]) -> ImageBuildLoadInput {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&common::archive(files)).unwrap();
    ImageBuildLoadInput::Upload(encoder.finish().unwrap().into())
}

#[tokio::test]
async fn mobys_driver_builds_into_the_image_store() {
    let daemon = Daemon::with_base();
    let docker =
        Docker::connect_with_unix(daemon.socket().to_str().unwrap(), 120, API_DEFAULT_VERSION).unwrap();
    let secret = daemon.scratch().join("secret");
    std::fs::write(&secret, "a word\n").unwrap();
    let options = ImageBuildFrontendOptions::builder()
        .dockerfile(Path::new("Containerfile"))
        .target("wanted")
        .buildarg("WHO", "me")
        .label("by", "bollard")
        .set_secret("word", &SecretSource::File(secret))
        .build();
    let text = "FROM busybox AS wanted\nARG WHO\nCOPY own /own\n\
        RUN --mount=type=secret,id=word,required=true test \"$WHO $(cat /run/secrets/word /own | xargs)\" = \"me a word own\"\n\
        FROM wanted\nRUN false\n";
    let input = upload(&[("Containerfile", text), ("own", "own\n")]);
    Moby::new(&docker).docker_build("mobys:1", options, input, None, None).await.unwrap();
    let image = docker.inspect_image("mobys:1").await.unwrap();
    assert_eq!(image.config.unwrap().labels.unwrap()["by"], "bollard");
}

#[tokio::test]
async fn a_failed_build_of_mobys_driver_is_told() {
    let daemon = Daemon::with_base();
    let docker =
        Docker::connect_with_unix(daemon.socket().to_str().unwrap(), 120, API_DEFAULT_VERSION).unwrap();
    let input = upload(&[("Dockerfile", "FROM busybox\nRUN exit 9\n")]);
    let options = ImageBuildFrontendOptions::builder().build();
    let error = Moby::new(&docker).docker_build("never:1", options, input, None, None).await.unwrap_err();
    let error = format!("{error:?}");
    assert!(error.contains("exit code: 9"), "{error}");
    docker.inspect_image("never:1").await.unwrap_err();
}

#[tokio::test]
async fn buildkitds_driver_exports_and_pushes_over_tcp() {
    let registry = Registry::start();
    let address = free_address();
    let host = format!("tcp://{address}");
    let daemon = Daemon::with_base_and(&["--host", &host, "--insecure-tcp"]);
    daemon.docker().run(["tag", BASE_IMAGE, &registry.image("unused")]).success();
    let driver = || BuildkitDaemon::new(Endpoint::try_from(format!("http://{address}")).unwrap());
    let text = "FROM scratch\nCOPY own /own\n";
    let files = [("Dockerfile", text), ("own", "own\n")];

    let dest = daemon.scratch().join("image.tar");
    let request = ImageExporterOutput::builder("exported:1").annotation("made.by", "bollard").dest(&dest);
    let options = ImageBuildFrontendOptions::builder().build();
    let oci = ImageExporterEnum::OCI(request);
    driver().export(oci, options, upload(&files), None, None).await.unwrap();
    let layout = format!("oci-archive:{}", dest.display());
    let raw = collect(Command::new("skopeo").args(["inspect", "--raw", &layout]), &[]).success();
    let manifest: serde_json::Value = serde_json::from_str(&raw.stdout).unwrap();
    assert_eq!(manifest["annotations"]["made.by"], "bollard", "{manifest}");

    let image = registry.image("pushed");
    let platform = |architecture: &str| ImageBuildPlatform {
        os: "linux".into(),
        architecture: architecture.into(),
        variant: None,
    };
    let options = ImageBuildFrontendOptions::builder()
        .platforms(&platform("amd64"))
        .platforms(&platform("arm64"))
        .build();
    let output = ImageRegistryOutput::builder(&image).push(true).consume();
    driver().registry(output, options, upload(&files), Some(HashMap::new()), None).await.unwrap();
    let name = format!("docker://{image}");
    let raw = collect(Command::new("skopeo").args(["inspect", "--raw", "--tls-verify=false", &name]), &[])
        .success();
    let index: serde_json::Value = serde_json::from_str(&raw.stdout).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2, "{index}");
}
