//! `--build-context`: what takes the place of images and stages.

use lapstrake_tests::{Client, Workbench};
use tempfile::TempDir;

use crate::contexts::support::{build, client_of, directory, failure, files, write};

/// An image with one file.
async fn image(bench: &Workbench, name: &str, content: &str) {
    let dockerfile = format!("FROM busybox\nENV WHICH={content}\nRUN echo {content} > /which\n");
    bench.build(lapstrake_tests::Context::new(&dockerfile), name).await.unwrap();
}

fn context(dockerfile: &str) -> TempDir {
    directory(&[("Dockerfile", dockerfile)])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_takes_the_place_of_a_stage_and_only_what_is_used_is_asked_for() {
    let bench = Workbench::new();
    let dir = context(
        "FROM busybox AS assets\nRUN false\nFROM busybox\nCOPY --from=assets web/*.html /out/\n\
         RUN --mount=type=bind,from=assets,source=tools,target=/t cp /t/tool /out/\n",
    );
    let assets = directory(&[
        ("web/a.html", "a"),
        ("web/b.html", "b"),
        ("web/x.css", ""),
        ("tools/tool", "t"),
        ("tools/ignored", ""),
        ("unused", ""),
        (".dockerignore", "**/b.html\ntools/ignored\n"),
    ]);
    let client = client_of(&dir).directory("local-name", assets.path());
    let attrs = [("context:assets", "local:local-name"), ("sharedkey:localdir:assets", "k")];
    build(&bench, &client, &attrs, "app").await.unwrap();
    assert_eq!(files(&bench, "app", "out"), ["a.html", "tool"]);
    let asked = client.asked();
    let named: Vec<_> = asked.iter().filter(|asked| asked.name == "local-name").collect();
    assert_eq!(named.len(), 2, "{asked:?}");
    assert_eq!(named[0].follow, [".dockerignore"]);
    assert_eq!(named[1].follow, ["tools", "web/*.html"]);
    assert_eq!(named[1].exclude, ["**/b.html", "tools/ignored"]);
    assert_eq!(named[1].listed, ["tools/", "tools/tool", "web/", "web/a.html"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_can_be_what_an_image_is_from() {
    let bench = Workbench::new();
    let dir = context("FROM base\nCOPY --from=base /a /again\n");
    let base = directory(&[("a", "a"), ("b/c", "c")]);
    let client = client_of(&dir).directory("base", base.path());
    build(&bench, &client, &[("context:base", "local:base")], "app").await.unwrap();
    assert_eq!(files(&bench, "app", ""), ["a", "again", "b/c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_takes_the_place_of_another_under_each_of_its_names() {
    let bench = Workbench::new();
    image(&bench, "mine:v1", "one").await;
    for from in ["alpine", "alpine:latest", "docker.io/library/alpine", "docker.io/library/alpine:latest"] {
        let dir = context(&format!(
            "FROM {from} AS first\nFROM busybox\nCOPY --from=first /which /a\nCOPY --from={from} /which /b\n\
             RUN --mount=from={from},target=/m cp /m/which /c\n"
        ));
        let client = client_of(&dir);
        build(&bench, &client, &[("context:alpine", "docker-image://mine:v1")], "app").await.unwrap();
        for path in ["a", "b", "c"] {
            assert_eq!(bench.read("app", path), "one\n", "{from} {path}");
        }
    }
    // Another tag is another image.
    let dir = context("FROM alpine:3\n");
    build(&bench, &client_of(&dir), &[("context:alpine:3", "docker-image://mine:v1")], "app").await.unwrap();
    assert_eq!(bench.read("app", "which"), "one\n");
    assert!(bench.config("app").config.env.contains(&"WHICH=one".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_for_one_platform_goes_before_what_is_for_all() {
    let bench = Workbench::new();
    image(&bench, "mine:all", "all").await;
    image(&bench, "mine:one", "one").await;
    let host = lapstrake_layerstore_oci::Platform::host().to_full_string();
    let key = format!("context:base::{host}");
    let dir = context("FROM base\n");
    let attrs = [
        ("context:base", "docker-image://mine:all"),
        (key.as_str(), "docker-image://mine:one"),
        ("context:base::linux/s390x", "docker-image://mine:none"),
    ];
    build(&bench, &client_of(&dir), &attrs, "app").await.unwrap();
    assert_eq!(bench.read("app", "which"), "one\n");
    let attrs = [attrs[0], attrs[2]];
    build(&bench, &client_of(&dir), &attrs, "app").await.unwrap();
    assert_eq!(bench.read("app", "which"), "all\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_can_take_the_place_of_something() {
    let bench = Workbench::new();
    let dir = context("FROM busybox\nCOPY a /out/\n");
    write(dir.path(), "a", "a");
    build(&bench, &client_of(&dir), &[("context:busybox", "docker-image://scratch")], "app").await.unwrap();
    assert_eq!(files(&bench, "app", ""), ["out/a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_that_is_not_used_is_not_asked_for() {
    let bench = Workbench::new();
    let dir = context("FROM base AS unused\nFROM busybox\n");
    let client = client_of(&dir);
    let attrs = [("context:base", "local:not-there"), ("context:other", "nothing:at all")];
    build(&bench, &client, &attrs, "app").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_context_can_be_is_refused_by_name() {
    let bench = Workbench::new();
    let dir = context("FROM base\n");
    for (specifier, why) in [
        ("target:other", "unsupported context source target for base"),
        ("input:other", "invalid input other for base"),
        ("nonsense", "invalid context specifier nonsense for base"),
        ("file:///etc", "unsupported context source file for base"),
        ("local:none", "no access allowed to dir \"none\""),
        ("oci-layout://x:latest", "has no digest"),
        ("docker-image://Not An Image", "invalid reference format"),
    ] {
        let error = failure(&bench, &client_of(&dir), &[("context:base", specifier)]).await;
        assert!(error.contains(why), "{specifier}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_of_this_machine_are_for_those_who_may_name_them() {
    // As `lapstrake build` does it.
    let bench = Workbench::new();
    let (dir, assets) =
        (context("FROM scratch\nCOPY --from=assets a /out/\n"), directory(&[("a", ""), ("b", "")]));
    let mut request = crate::contexts::support::request(
        &bench,
        &client_of(&dir),
        &[("context:assets", "local:assets")],
        "app",
    );
    let lapstrake_builder_engine::Input::Dockerfile { directories, .. } = &mut request.input else {
        panic!("a Dockerfile")
    };
    directories.insert("assets".to_owned(), assets.path().to_owned());
    bench.run(request).await.1.unwrap();
    assert_eq!(files(&bench, "app", "out"), ["a"]);
    // A client that names the same has to have it.
    let client: Client = client_of(&dir);
    let error = failure(&bench, &client, &[("context:assets", "local:assets")]).await;
    assert!(error.contains("no access allowed to dir \"assets\""), "{error}");
}
