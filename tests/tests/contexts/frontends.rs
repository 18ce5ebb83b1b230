//! Who reads the Dockerfile.

use lapstrake_builder_engine::{ErrorKind, Frontends};
use lapstrake_tests::Workbench;

use crate::support::{build, client_of, directory};

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
async fn other_frontends_are_refused_by_name() {
    let bench = Workbench::new();
    let file = "# check=skip=all\n# syntax=example.com/mine:2\nFROM busybox\n";
    let dir = directory(&[("Dockerfile", file)]);
    let source = [("source", "other/one"), ("cmdline", "other/one x")];
    for (attrs, image, line) in [
        (&[][..], "example.com/mine:2", Some(2)),
        (&[("build-arg:BUILDKIT_SYNTAX", "other/one:3 x")][..], "other/one:3", None),
        (&source[..], "other/one:latest", None),
    ] {
        let error = build(&bench, &client_of(&dir), attrs, "app").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains(&format!("frontend {image} is not supported")), "{error}");
        assert_eq!(error.lines().map(|lines| lines.start), line, "{error}");
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
    let text = error.to_string();
    assert!(text.contains("frontend docker/dockerfile:1 is not supported"), "{text}");
    assert!(text.contains("not to serve it by the built-in one"), "{text}");
    // Files that name none are read as ever.
    let dir = directory(&[("Dockerfile", "FROM busybox\n")]);
    build(&bench, &client_of(&dir), &[], "app").await.unwrap();
}
