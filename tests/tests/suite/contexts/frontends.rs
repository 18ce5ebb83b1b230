//! Who reads the Dockerfile.

use lapstrake_builder_engine::Frontends;
use lapstrake_tests::Workbench;

use crate::contexts::support::{build, client_of, directory};

#[tokio::test(flavor = "multi_thread")]
async fn official_frontends_are_built_in_and_ask_no_registry() {
    // There is no network here: a registry could not be asked.
    let bench = Workbench::new();
    for image in ["docker/dockerfile:1", "docker/dockerfile:1.7-labs", "docker/dockerfile-upstream:master"] {
        let dir = directory(&[(
            "Dockerfile",
            &format!("# syntax={image}\nFROM busybox\nRUN <<EOF\ntouch /done\nEOF\n"),
        )]);
        let built = build(&bench, &client_of(&dir), &[], "app").await.unwrap();
        assert!(bench.has("app", "done"), "{image}");
        assert_eq!(built.warnings(), "", "{image}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn newer_official_frontends_are_built_in_with_a_warning() {
    let bench = Workbench::new();
    let dir = directory(&[("Dockerfile", "# syntax=docker/dockerfile:1.99\nFROM busybox\n")]);
    let built = build(&bench, &client_of(&dir), &[], "app").await.unwrap();
    assert!(built.warnings().contains("docker/dockerfile:1.99 is newer than"), "{}", built.warnings());
}

#[tokio::test(flavor = "multi_thread")]
async fn other_frontends_are_images_that_must_be_had() {
    // There is no network here: no registry can be asked.
    let bench = Workbench::new();
    let file = "# check=skip=all\n# syntax=127.0.0.1:9/mine:2\nFROM busybox\n";
    let dir = directory(&[("Dockerfile", file)]);
    for (attrs, image) in [
        (&[][..], "127.0.0.1:9/mine:2"),
        (&[("build-arg:BUILDKIT_SYNTAX", "127.0.0.1:9/one:3 x")][..], "127.0.0.1:9/one:3"),
        (&[("source", "127.0.0.1:9/one"), ("cmdline", "127.0.0.1:9/one x")][..], "127.0.0.1:9/one:latest"),
    ] {
        let error = build(&bench, &client_of(&dir), attrs, "app").await.unwrap_err();
        assert!(error.to_string().contains(image), "{image}: {error}");
    }
    let dir = directory(&[("Dockerfile", "# syntax=Not/An/Image\nFROM busybox\n")]);
    let error = build(&bench, &client_of(&dir), &[], "app").await.unwrap_err();
    assert!(error.to_string().contains("invalid frontend \"Not/An/Image\""), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn official_frontends_can_be_made_images_like_others() {
    let bench = Workbench::with_frontends(Frontends { official_built_in: false });
    let dir = directory(&[("Dockerfile", "# syntax=docker/dockerfile:1\nFROM busybox\n")]);
    let error = build(&bench, &client_of(&dir), &[], "app").await.unwrap_err();
    assert!(error.to_string().contains("docker/dockerfile:1"), "{error}");
    // Files that name none are read as ever.
    let dir = directory(&[("Dockerfile", "FROM busybox\n")]);
    build(&bench, &client_of(&dir), &[], "app").await.unwrap();
}
