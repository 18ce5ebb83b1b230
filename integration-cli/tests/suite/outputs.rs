//! What builds leave behind: pushes to docker-registry with passwords and TLS, checked by skopeo, run by Debian's dockerd and buildah.

use std::{collections::HashMap, fs, path::Path, process::Command};

use lapstrake_integration_cli::{
    BASE_IMAGE, Daemon, Dockerd, PASSWORD, Registry, USER,
    buildkit::{BuildKit, Client, Received, Tree, dockerfile_build, exporter},
    busybox_rootfs, lapstrake, require,
};
use serde_json::Value;

use crate::common::skopeo;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A context with a Dockerfile and the base image's files.
fn context(dir: &Path, dockerfile: &str) -> String {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("Dockerfile"), dockerfile).unwrap();
    fs::write(dir.join("root.tar"), busybox_rootfs()).unwrap();
    dir.to_str().unwrap().to_owned()
}

const APP: &str = "FROM scratch\nADD root.tar /\nENV PATH=/bin\nRUN echo built > /built && mkdir /d && chmod 1777 /d\nCMD [\"cat\", \"/built\"]\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_build_pushes_with_the_clients_login_and_leaves_several_things() {
    let (daemon, registry) = (Daemon::with_base(), Registry::with_users());
    let image = registry.image("team/app:1");
    let host = image.split('/').next().unwrap().to_owned();
    let tree = Tree::of(&[("Dockerfile", format!("FROM {BASE_IMAGE}\nRUN echo built > /built\n"))]);
    let buildkit = BuildKit::upgraded(&daemon.socket()).await;
    let outputs = vec![
        exporter("image", &[("name", image.as_str()), ("push", "true"), ("annotation.who", "me")]),
        exporter("local", &[]),
        exporter("oci", &[("compression", "zstd"), ("force-compression", "true"), ("name", "app:2")]),
    ];
    let session = buildkit.open(Client::with_context(tree.clone()).directory_output(1)).await;
    let mut refused = dockerfile_build(&session);
    refused.exporters = outputs.clone();
    let error = buildkit.solve(refused).await.failure();
    assert!(error.message().contains(&format!("failed to push {image}")), "{error:?}");
    // Nothing is seen of an image whose push was refused; without a login, nobody can look.
    assert!(!registry.storage().join("docker/registry/v2/repositories/team/app/_manifests").exists());

    let client = Client::with_context(tree).directory_output(1).login(&host, USER, PASSWORD);
    let session = buildkit.open(client).await;
    let mut request = dockerfile_build(&session);
    request.exporters = outputs;
    let outcome = buildkit.solve(request).await;
    let vertices: Vec<String> = outcome.vertices().into_iter().map(|(name, _)| name).collect();
    let response: HashMap<String, String> = outcome.success();
    for name in ["exporting to image", "exporting to client directory", "exporting to oci image format"] {
        assert!(vertices.iter().any(|vertex| vertex == name), "{vertices:?}");
    }
    let credentials = format!("--creds={USER}:{PASSWORD}");
    let remote = format!("docker://{image}");
    let raw = skopeo(&["inspect", "--tls-verify=false", &credentials, "--raw", &remote]);
    assert_eq!(json(&raw)["annotations"]["who"], "me");
    assert_eq!(session.tree(1).file("built"), Some(&b"built\n"[..]));
    // What the responses have in common is that of the last, as in BuildKit.
    let Some(Received::File(archive, said)) = session.received(2) else { panic!("there is an archive") };
    assert_eq!(said["containerimage.digest"], response["containerimage.digest"]);
    assert_eq!(response["image.name"], "docker.io/library/app:2");
    let path = daemon.scratch().join("o.tar");
    fs::write(&path, archive).unwrap();
    let raw = skopeo(&["inspect", "--raw", &format!("oci-archive:{}", path.display())]);
    let layers = json(&raw)["layers"].as_array().unwrap().clone();
    assert!(layers.iter().all(|layer| layer["mediaType"] == "application/vnd.oci.image.layer.v1.tar+zstd"));
}

#[test]
fn an_image_is_pushed_over_tls_and_runs_elsewhere() {
    let (daemon, registry, dockerd) = (Daemon::start(), Registry::with_tls(), Dockerd::start());
    let dir = daemon.scratch();
    let context = context(&dir.join("context"), APP);
    // What its certificate is for.
    let image = registry.image("app:1").replace("localhost", "127.0.0.1");
    let host = image.split('/').next().unwrap();
    let config = dir.join("buildkitd.toml");
    let certificate = registry.certificate();
    fs::write(&config, format!("[registry.\"{host}\"]\n  ca = [{:?}]\n", certificate.display().to_string()))
        .unwrap();
    let root = dir.join("root").display().to_string();
    let build = |arguments: &[&str]| {
        let config = config.display().to_string();
        let fixed = ["build", "--root", &root, "--progress", "plain", "--config", &config];
        lapstrake(fixed.iter().chain(arguments).chain(&[context.as_str()]))
    };
    let built = build(&["-t", &image, "--push"]).success();
    assert!(built.all().contains("pushing manifest for"), "{}", built.all());
    let certificates = dir.join("certificates");
    fs::create_dir(&certificates).unwrap();
    fs::copy(&certificate, certificates.join("ca.crt")).unwrap();
    let by = format!("--cert-dir={}", certificates.display());
    let remote = format!("docker://{image}");
    let told = json(&skopeo(&["inspect", &by, &remote]));
    assert_eq!(told["Layers"].as_array().unwrap().len(), 2, "{told}");
    // Once pushed, nothing of it is sent again.
    let sent = |log: &str| log.matches("PUT /v2/app/blobs/uploads").count();
    let before = sent(&registry.log());
    build(&["-t", &image, "-o", "type=registry"]).success();
    assert_eq!(sent(&registry.log()), before);

    // What it is by Debian's docker.
    let archive = dir.join("d.tar").display().to_string();
    build(&["-o", &format!("type=docker,name=elsewhere:1,dest={archive}")]).success();
    let docker = dockerd.docker();
    docker.run(["load", "-i", &archive]).success();
    let created = docker.run(["create", "elsewhere:1"]).success();
    let copied = docker.run(["cp", &format!("{}:/built", created.line()), "-"]).success();
    assert!(copied.stdout.contains("built\n"), "{}", copied.stdout);
    // In both, the image is the same.
    let id = docker.run(["image", "inspect", "--format", "{{.Id}}", "elsewhere:1"]).success();
    let raw = json(&skopeo(&["inspect", &by, "--raw", &remote]));
    assert_eq!(id.line(), raw["config"]["digest"]);
}

#[test]
fn every_compression_is_taken_by_registries_and_readers() {
    let (daemon, registry) = (Daemon::start(), Registry::start());
    let dir = daemon.scratch();
    let context = context(&dir.join("context"), APP);
    let root = dir.join("root").display().to_string();
    for (compression, suffix) in
        [("zstd", "zstd"), ("estargz", "gzip"), ("uncompressed", "tar"), ("gzip", "gzip")]
    {
        let image = registry.image(&format!("{compression}:1"));
        let output =
            format!("type=image,name={image},push=true,compression={compression},force-compression=true");
        lapstrake(["build", "--root", &root, "-o", &output, &context]).success();
        let remote = format!("docker://{image}");
        let raw = json(&skopeo(&["inspect", "--tls-verify=false", "--raw", &remote]));
        for layer in raw["layers"].as_array().unwrap() {
            assert!(layer["mediaType"].as_str().unwrap().ends_with(suffix), "{layer}");
            let has_table = layer["annotations"]["containerd.io/snapshot/stargz/toc.digest"].is_string();
            assert_eq!(has_table, compression == "estargz", "{layer}");
        }
        if compression == "zstd" {
            // Docker's archives have no place for it.
            skopeo(&[
                "copy",
                "--src-tls-verify=false",
                &remote,
                &format!("dir:{}", dir.join("zstd").display()),
            ]);
            continue;
        }
        // It unpacks the layers, and compares them with the config.
        let copy = format!("docker-archive:{}", dir.join(format!("{compression}.tar")).display());
        skopeo(&["copy", "--src-tls-verify=false", &remote, &copy]);
    }
}

#[test]
fn layers_of_a_base_are_borrowed_from_where_it_was_pulled() {
    let (maker, daemon, registry) = (Daemon::with_base(), Daemon::start(), Registry::start());
    let base = registry.image("base:1");
    maker.docker().run(["tag", BASE_IMAGE, &base]).success();
    maker.docker().run(["push", &base]).success();
    let dir = daemon.scratch();
    let context = dir.join("context");
    fs::create_dir(&context).unwrap();
    fs::write(context.join("Dockerfile"), format!("FROM {base}\nRUN echo more > /more\n")).unwrap();
    let context = context.display().to_string();
    let root = dir.join("root").display().to_string();
    let image = registry.image("other/app:1");
    lapstrake(["build", "--root", &root, "-t", &image, "--push", &context]).success();
    let log = registry.log();
    assert!(
        log.contains("POST /v2/other/app/blobs/uploads/?from=base&mount=") || log.contains("mount=sha256"),
        "{log}"
    );
    // The new layer and the config alone were sent.
    assert_eq!(log.matches("PUT /v2/other/app/blobs/uploads").count(), 2, "{log}");
}

#[test]
fn two_daemons_make_one_image() {
    let dockerfile = "FROM scratch\nADD root.tar /\nENV PATH=/bin\nRUN date +%N > /dev/null && mkdir /d && touch /d/f && ln /d/f /d/h\nRUN rm /d/h && echo x > /d/g\n";
    let mut seen = Vec::new();
    for _ in 0..2 {
        let daemon = Daemon::start();
        let dir = daemon.scratch();
        let context = context(&dir.join("context"), dockerfile);
        let root = dir.join("root").display().to_string();
        let archive = dir.join("o.tar").display().to_string();
        let tree = dir.join("t.tar").display().to_string();
        lapstrake([
            "build",
            "--root",
            &root,
            "--build-arg",
            "SOURCE_DATE_EPOCH=1700000000",
            "-o",
            &format!("type=oci,dest={archive},rewrite-timestamp=true,name=app:1"),
            "-o",
            &format!("type=tar,dest={tree}"),
            &context,
        ])
        .success();
        seen.push((fs::read(archive).unwrap(), fs::read(tree).unwrap()));
    }
    assert!(seen[0].0 == seen[1].0, "the layouts differ");
    assert!(seen[0].1 == seen[1].1, "the trees differ");
}

#[test]
fn what_is_pushed_runs_with_buildah() {
    require("buildah", "buildah");
    let (daemon, registry) = (Daemon::start(), Registry::start());
    let dir = daemon.scratch();
    let context = context(&dir.join("context"), APP);
    let root = dir.join("root").display().to_string();
    let storage = dir.join("storage").display().to_string();
    let buildah = |arguments: &[&str]| {
        let (graph, run) = (format!("{storage}/root"), format!("{storage}/run"));
        let fixed = ["--storage-driver", "vfs", "--root", &graph, "--runroot", &run];
        let output = Command::new("buildah").args(fixed).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    for compression in ["zstd", "estargz"] {
        let image = registry.image(&format!("{compression}:1"));
        let output = format!("type=registry,name={image},compression={compression},force-compression=true");
        lapstrake(["build", "--root", &root, "-o", &output, &context]).success();
        let container = buildah(&["from", "--tls-verify=false", &format!("docker://{image}")]);
        assert_eq!(buildah(&["run", "--isolation", "chroot", &container, "--", "cat", "/built"]), "built");
        buildah(&["rm", &container]);
    }
}
