//! Frontends that are images.

use std::{collections::BTreeMap, path::Path, process::Command};

use lapstrake_builder_engine::{EngineError, ErrorKind, FrontendRequest, Input, status_of};
use lapstrake_builder_llb::Definition;
use lapstrake_integration_cli::buildkit::Llb;
use lapstrake_layerstore_oci::{ImageConfig, Platform, Reference};
use lapstrake_layerstore_store::{ImageName, NewImage, Tree};
use lapstrake_layerstore_transfer::layers;
use lapstrake_tests::{Context, Workbench};

use crate::bridge::support::{frontend, request};

const IMAGE: &str = "example.com/frontend:1";

/// Puts an image into the store whose program is the frontend of these tests, with the libraries that it is linked with.
fn frontend_image(bench: &Workbench, labels: &[(&str, &str)]) {
    let program = Path::new(env!("CARGO_BIN_EXE_frontend"));
    let linked = Command::new("ldd").arg(program).output().unwrap();
    let libraries = String::from_utf8(linked.stdout).unwrap();
    let libraries = libraries.split_whitespace().filter(|word| word.starts_with('/'));
    let draft = bench.stores.begin(&Tree::empty()).unwrap();
    {
        let open = draft.open().unwrap();
        for path in libraries.map(Path::new).chain([program]) {
            let name = if path == program { Path::new("/frontend") } else { path };
            let to = open.path().join(name.strip_prefix("/").unwrap());
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(path, to).unwrap();
        }
    }
    let tree = draft.commit().unwrap();
    let layers = layers(&bench.stores, &tree).unwrap();
    let mut config = ImageConfig::for_platform(&Platform::host());
    config.rootfs.diff_ids = layers.iter().map(|layer| layer.diff_id.clone()).collect();
    config.config.entrypoint = Some(vec!["/frontend".to_owned()]);
    config.config.env = vec!["OF_IMAGE=yes".to_owned()];
    config.config.working_dir = "/work".to_owned();
    config.config.labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let reference = Reference::parse(IMAGE).unwrap();
    let image = NewImage {
        config: config.to_json().unwrap(),
        top: tree.snapshot().cloned(),
        diff_ids: config.rootfs.diff_ids,
        parent: None,
        manifest: None,
        names: vec![ImageName { reference, target: None }],
    };
    bench.stores.images.put(image).unwrap();
}

async fn build(bench: &Workbench, input: Input) -> Result<(), EngineError> {
    let request = request(bench, input, "app").await;
    bench.run(request).await.1.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_makes_an_image() {
    let bench = Workbench::new();
    frontend_image(&bench, &[]);
    let options = [("source", IMAGE), ("build-arg:A", "1"), ("anything", "goes")];
    build(&bench, frontend("gateway.v0", &options)).await.unwrap();
    let told = bench.read("app", "copy");
    for line in [
        "build-arg:A=1",
        "anything=goes",
        "BUILDKIT_SESSION_ID=",
        "OF_IMAGE=yes",
        "cwd=/work",
        "metadata=true",
    ] {
        assert!(told.lines().any(|told| told == line), "{line}: {told}");
    }
    assert!(told.contains("BUILDKIT_WORKERS=[{\"id\":\""), "{told}");
    assert_eq!(bench.config("app").config.labels["made"], "by frontend");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dockerfile_and_who_builds_it_may_name_the_frontend() {
    let bench = Workbench::new();
    frontend_image(&bench, &[]);
    let file = format!("# syntax={IMAGE} with words\nwhatever the frontend makes of it\n");
    bench.build(Context::new(&file), "app").await.unwrap();
    let told = bench.read("app", "copy");
    assert!(told.contains(&format!("cmdline={IMAGE} with words\n")), "{told}");
    assert!(told.contains(&format!("source={IMAGE}\n")), "{told}");
    assert!(told.contains("local-sessionid:context="), "{told}");
    let mut request = bench.request(Context::new("FROM busybox\n"), "other").await.unwrap();
    let Input::Dockerfile { options, .. } = &mut request.input else { panic!("a Dockerfile") };
    options.build_args.insert("BUILDKIT_SYNTAX".to_owned(), IMAGE.to_owned());
    bench.run(request).await.1.unwrap();
    assert_eq!(bench.config("other").config.labels["made"], "by frontend");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frontend_may_ask_the_built_in_one() {
    let bench = Workbench::new();
    frontend_image(&bench, &[("moby.buildkit.frontend.caps", "moby.buildkit.frontend.inputs")]);
    let mut graph = Llb::default();
    let file = graph.file(None, "/Dockerfile", b"FROM busybox\nARG A\nRUN echo $A > /a\n");
    let definition = Definition::from_proto(graph.result(&file)).unwrap();
    let inputs: BTreeMap<_, _> =
        ["context", "dockerfile"].map(|name| (name.to_owned(), definition.clone())).into();
    let Input::Frontend(asked) =
        frontend("gateway.v0", &[("source", IMAGE), ("test", "nested"), ("build-arg:A", "nested")])
    else {
        panic!()
    };
    let asked = FrontendRequest { inputs, ..asked };
    build(&bench, Input::Frontend(asked.clone())).await.unwrap();
    assert_eq!(bench.read("app", "a"), "nested\n");
    // An image that does not say so gets no inputs.
    frontend_image(&bench, &[("moby.buildkit.frontend.caps", "moby.buildkit.frontend.subrequests")]);
    let error = build(&bench, Input::Frontend(asked)).await.unwrap_err();
    assert_eq!(error.to_string(), "unsupported frontend capability moby.buildkit.frontend.inputs");
    assert_eq!(status_of(&error).code(), tonic::Code::Unimplemented);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frontend_that_fails_fails_the_build() {
    let bench = Workbench::new();
    frontend_image(&bench, &[]);
    for (test, why) in [
        ("exit", "frontend example.com/frontend:1: exit code: 3\nsomething is wrong"),
        ("silent", "frontend example.com/frontend:1: no result for incomplete build"),
        ("fail", "the frontend does not like it"),
    ] {
        let error =
            build(&bench, frontend("gateway.v0", &[("source", IMAGE), ("test", test)])).await.unwrap_err();
        assert_eq!(error.to_string(), why);
    }
    let error = build(&bench, frontend("gateway.v0", &[])).await.unwrap_err();
    assert_eq!(error.to_string(), "no source specified for gateway");
    let error =
        build(&bench, frontend("gateway.v0", &[("gateway-devel", ""), ("source", IMAGE)])).await.unwrap_err();
    assert_eq!(error.to_string(), "development gateway is no longer supported");
}

#[tokio::test(flavor = "multi_thread")]
async fn frontends_that_ask_each_other_without_end_come_to_an_end() {
    let bench = Workbench::new();
    frontend_image(&bench, &[]);
    let error =
        build(&bench, frontend("gateway.v0", &[("source", IMAGE), ("test", "endless")])).await.unwrap_err();
    assert!(error.to_string().contains("more than 32 frontends at once"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Internal);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frontend_that_wants_no_network_has_none() {
    let bench = Workbench::new();
    let count = async |labels: &[(&str, &str)]| {
        frontend_image(&bench, labels);
        let mut request =
            request(&bench, frontend("gateway.v0", &[("source", IMAGE), ("test", "network")]), "app").await;
        request.outputs = Vec::new();
        let exported = bench.run(request).await.1.unwrap().exported;
        exported.response()["frontend.interfaces"].clone()
    };
    assert_eq!(count(&[("moby.buildkit.frontend.network.none", "true")]).await, "1");
    // The workbench's network is the machine's.
    assert_ne!(count(&[]).await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frontend_is_told_that_the_bridge_lives() {
    let bench = Workbench::new();
    frontend_image(&bench, &[]);
    let input = frontend("gateway.v0", &[("source", IMAGE), ("test", "health")]);
    let mut request = request(&bench, input, "app").await;
    request.outputs = Vec::new();
    let exported = bench.run(request).await.1.unwrap().exported;
    assert_eq!(exported.response()["frontend.health"], "SERVING");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_about_the_frontend_that_a_dockerfile_names_has_the_line_that_does() {
    let bench = Workbench::new();
    // Nobody listens there.
    let file = "# syntax=127.0.0.1:1/frontend:1\n\nFROM scratch\n";
    let error = bench.build(Context::new(file), "app").await.unwrap_err();
    let excerpt = error.fault().expect("its place is known").excerpt();
    assert!(excerpt.contains("   1 | >>> # syntax=127.0.0.1:1/frontend:1\n"), "{excerpt}");
    assert_eq!(excerpt.matches(">>>").count(), 1, "{excerpt}");
}
