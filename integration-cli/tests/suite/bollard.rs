//! bollard, a client of both protocols that shares no code with Docker's.

#[allow(unreachable_pub)]
use std::collections::HashMap;

use bollard::{
    API_DEFAULT_VERSION, Docker,
    models::{BuildInfo, BuildInfoAux},
    query_parameters::{
        BuildImageOptionsBuilder, BuilderVersion, CreateImageOptionsBuilder, ListImagesOptionsBuilder,
    },
};
use bytes::Bytes;
use futures::TryStreamExt;
use http_body_util::{Either, Full};
use lapstrake_integration_cli::{BASE_IMAGE, Daemon, Registry};

use crate::common;

fn client(daemon: &Daemon) -> Docker {
    Docker::connect_with_unix(daemon.socket().to_str().unwrap(), 120, API_DEFAULT_VERSION).unwrap()
}

fn archive(files: &[(&str, &str)]) -> Bytes {
    common::archive(files).into()
}

async fn build(
    docker: &Docker,
    options: BuildImageOptionsBuilder,
    archive: Bytes,
) -> Result<Vec<BuildInfo>, bollard::errors::Error> {
    docker.build_image(options.build(), None, Some(Either::Left(Full::new(archive)))).try_collect().await
}

#[tokio::test]
async fn classic_builds() {
    let daemon = Daemon::with_base();
    let docker = client(&daemon);
    let files = [
        ("Dockerfile", "FROM busybox\nARG WHO\nCOPY a /a\nRUN echo \"hello $WHO\" && cat /a\n"),
        ("a", "from a\n"),
    ];
    let arguments = HashMap::from([("WHO", "me")]);
    let labels = HashMap::from([("by", "bollard")]);
    let options = BuildImageOptionsBuilder::default()
        .dockerfile("Dockerfile")
        .t("classic:1")
        .rm(true)
        .buildargs(&arguments)
        .labels(&labels);
    let told = build(&docker, options, archive(&files)).await.unwrap();
    let text: String = told.iter().filter_map(|info| info.stream.clone()).collect();
    assert!(text.contains("Step 1/5 : FROM busybox") && text.contains("hello me\nfrom a\n"), "{text}");
    let image = docker.inspect_image("classic:1").await.unwrap();
    let id = told.iter().find_map(|info| match &info.aux {
        Some(BuildInfoAux::Default(id)) => id.id.clone(),
        _ => None,
    });
    assert_eq!(id, image.id);
    assert_eq!(image.config.unwrap().labels.unwrap()["by"], "bollard");
}

#[tokio::test]
async fn a_failed_classic_build_is_an_error() {
    let daemon = Daemon::with_base();
    let files = [("Dockerfile", "FROM busybox\nRUN exit 3\n")];
    let error =
        build(&client(&daemon), BuildImageOptionsBuilder::default(), archive(&files)).await.unwrap_err();
    assert!(error.to_string().contains("returned a non-zero code: 3"), "{error}");
}

#[tokio::test]
async fn buildkit_builds_with_a_session_of_bollards() {
    let daemon = Daemon::with_base();
    let docker = client(&daemon);
    let dockerfile = "FROM busybox AS make\nRUN echo made > /made\nFROM busybox\n\
                      RUN --mount=type=bind,from=make,target=/mnt cat /mnt/made > /copy && echo seen in the log\n";
    let options = BuildImageOptionsBuilder::default()
        .t("buildkit:1")
        .version(BuilderVersion::BuilderBuildKit)
        .session("a-session-of-bollard");
    let told = build(&docker, options, archive(&[("Dockerfile", dockerfile)])).await.unwrap();
    let (mut vertexes, mut statuses, mut logs) = (Vec::new(), Vec::new(), Vec::new());
    for info in &told {
        if let Some(BuildInfoAux::BuildKit(status)) = &info.aux {
            vertexes.extend(status.vertexes.clone());
            statuses.extend(status.statuses.clone());
            logs.extend(status.logs.iter().flat_map(|log| log.msg.clone()));
        }
    }
    assert!(
        vertexes.iter().any(|vertex| vertex.name.contains("RUN echo made") && vertex.completed.is_some()),
        "{vertexes:?}"
    );
    assert!(vertexes.iter().all(|vertex| vertex.error.is_empty()), "{vertexes:?}");
    assert!(String::from_utf8_lossy(&logs).contains("seen in the log"), "{logs:?}");
    assert!(
        statuses.iter().any(|status| status.id == "naming to docker.io/library/buildkit:1"),
        "{statuses:?}"
    );
    docker.inspect_image("buildkit:1").await.unwrap();
}

#[tokio::test]
async fn a_failed_buildkit_build_names_its_vertex() {
    let daemon = Daemon::with_base();
    let options = BuildImageOptionsBuilder::default()
        .version(BuilderVersion::BuilderBuildKit)
        .session("another-session");
    let files = [("Dockerfile", "FROM busybox\nRUN echo words && exit 9\n")];
    let error = build(&client(&daemon), options, archive(&files)).await.unwrap_err();
    assert!(error.to_string().contains("exit code: 9"), "{error}");
}

#[tokio::test]
async fn images_come_from_a_registry() {
    let (registry, maker, daemon) = (Registry::start(), Daemon::with_base(), Daemon::start());
    let image = registry.image("base");
    maker.docker().run(["tag", BASE_IMAGE, &image]).success();
    maker.docker().run(["push", &image]).success();
    let docker = client(&daemon);
    let options = CreateImageOptionsBuilder::default().from_image(&image).tag("latest").build();
    let told: Vec<_> = docker.create_image(Some(options), None, None).try_collect().await.unwrap();
    let last = told.last().unwrap().status.clone().unwrap();
    assert_eq!(last, format!("Status: Downloaded newer image for {image}:latest"));
    let images =
        docker.list_images(Some(ListImagesOptionsBuilder::default().all(true).build())).await.unwrap();
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].repo_tags, [format!("{image}:latest")]);
}
