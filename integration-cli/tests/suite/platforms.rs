//! Several platforms, by the docker CLI, skopeo, Debian's dockerd and docker-registry.

use std::{fs, path::Path, process::Command};

use lapstrake_integration_cli::{
    Daemon, Docker, Dockerd, Emulator, Registry, busybox_rootfs, foreign_busybox_rootfs, lapstrake,
    saved_image,
};
use serde_json::Value;

use crate::common::skopeo;

const BOTH: &str = "linux/amd64,linux/arm64";

fn inspect(docker: &Docker, image: &str, format: &str) -> String {
    docker.run(["image", "inspect", "--format", format, image]).success().line().to_owned()
}

/// A context for busybox of both processors.
fn base_context(dir: &Path) -> String {
    fs::create_dir_all(dir).unwrap();
    fs::write(
        dir.join("Dockerfile"),
        "FROM scratch\nARG TARGETARCH\nADD root-$TARGETARCH.tar /\nENV PATH=/bin\n",
    )
    .unwrap();
    fs::write(dir.join("root-amd64.tar"), busybox_rootfs()).unwrap();
    fs::write(dir.join("root-arm64.tar"), foreign_busybox_rootfs("arm64")).unwrap();
    dir.to_str().unwrap().to_owned()
}

/// Builds busybox for both processors under a name, and gives the digest that the client is told.
fn build_base(daemon: &Daemon, name: &str) -> String {
    let context = base_context(&daemon.scratch().join("base"));
    let iid = daemon.scratch().join("iid");
    let file = iid.to_str().unwrap();
    let docker = daemon.docker().buildkit();
    docker.run(["build", "--platform", BOTH, "-t", name, "--iidfile", file, &context]).success();
    fs::read_to_string(iid).unwrap()
}

/// The digest that a push ends with.
fn pushed(docker: &Docker, image: &str) -> String {
    let pushed = docker.run(["push", image]).success().stdout;
    let rest = pushed.split("digest: ").nth(1).unwrap_or_else(|| panic!("no digest: {pushed}"));
    rest.split_whitespace().next().unwrap().to_owned()
}

fn blobs(daemon: &Daemon) -> usize {
    fs::read_dir(daemon.root().join("content/blobs/sha256")).unwrap().count()
}

#[test]
fn an_index_is_built_shown_pushed_and_pulled_by_platform() {
    let _emulator = Emulator::register("aarch64");
    let (registry, daemon) = (Registry::start(), Daemon::start());
    let docker = daemon.docker().buildkit();
    let base = registry.image("base:1");
    let digest = build_base(&daemon, &base);
    let image = registry.image("app:1");
    let dockerfile = format!("FROM {base}\nRUN uname -m > /machine\nCMD [\"cat\", \"/machine\"]\n");
    let iid = daemon.scratch().join("app-iid");
    let built = docker
        .run_with(
            ["build", "--platform", BOTH, "-t", &image, "--iidfile", iid.to_str().unwrap(), "-"],
            dockerfile.as_bytes(),
        )
        .success();
    assert!(built.stderr.contains("[linux/arm64 2/2] RUN uname -m"), "{}", built.stderr);
    assert!(built.stderr.contains("exporting manifest list sha256:"), "{}", built.stderr);
    let app = fs::read_to_string(iid).unwrap();

    // What is shown is this machine's image; by the index' digest, too.
    assert_eq!(inspect(&docker, &image, "{{.Architecture}}"), "amd64");
    assert_eq!(inspect(&docker, &app, "{{.Id}}"), inspect(&docker, &image, "{{.Id}}"));
    let by_digest = format!("{}@{app}", registry.image("app"));
    assert_eq!(inspect(&docker, &image, "{{json .RepoDigests}}"), format!("[\"{by_digest}\"]"));
    assert_eq!(docker.run(["images", "-q", &image]).success().stdout.lines().count(), 1);
    assert!(docker.run(["history", &image]).success().stdout.contains("uname -m"));
    assert_eq!(saved_machine(&docker, &image), "x86_64\n");

    // Under another name it is the same.
    let other = registry.image("other/name:2");
    docker.run(["tag", &image, &other]).success();
    assert_eq!(pushed(&docker, &image), app);
    assert_eq!(pushed(&docker, &other), app);
    assert_eq!(pushed(&docker, &base), digest);
    for name in [&image, &other] {
        let raw = skopeo(&["inspect", "--raw", "--tls-verify=false", &format!("docker://{name}")]);
        let index: Value = serde_json::from_str(&raw).unwrap();
        assert_eq!(index["mediaType"], "application/vnd.oci.image.index.v1+json");
        let platforms: Vec<_> = index["manifests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| &one["platform"]["architecture"])
            .collect();
        assert_eq!(platforms, ["amd64", "arm64"]);
    }
    // skopeo checks every digest on the way.
    let layout = format!("oci-archive:{}", daemon.scratch().join("all.tar").display());
    skopeo(&["copy", "--all", "--src-tls-verify=false", &format!("docker://{image}"), &layout]);

    // Debian's dockerd takes of it what is asked for.
    let theirs = Dockerd::start();
    for (platform, architecture, machine) in
        [("linux/arm64", "arm64", "aarch64\n"), ("linux/amd64", "amd64", "x86_64\n")]
    {
        theirs.docker().run(["pull", "--platform", platform, &image]).success();
        assert_eq!(inspect(&theirs.docker(), &image, "{{.Architecture}}"), architecture);
        assert_eq!(saved_machine(&theirs.docker(), &image), machine);
        // And another one of ours.
        let pulled = Daemon::start();
        pulled.docker().run(["pull", "--platform", platform, &image]).success();
        assert_eq!(
            inspect(&pulled.docker(), &image, "{{.Id}}"),
            inspect(&theirs.docker(), &image, "{{.Id}}")
        );
    }

    // A platform that it is not for.
    let dockerfile = format!("FROM {image}\nRUN true\n");
    let stranger = Daemon::start();
    let failed = stranger
        .docker()
        .buildkit()
        .run_with(["build", "--platform", "linux/s390x", "-"], dockerfile.as_bytes())
        .failure();
    assert!(failed.stderr.contains("no match for platform in manifest"), "{}", failed.stderr);
    assert!(
        failed.stderr.contains("linux/s390x") && failed.stderr.contains("linux/arm64"),
        "{}",
        failed.stderr
    );
}

fn saved_machine(docker: &Docker, image: &str) -> String {
    let saved = saved_image(&docker.run(["save", image]).success().bytes);
    String::from_utf8(saved.tree["machine"].content.clone()).unwrap()
}

#[test]
fn nothing_of_an_index_is_lost_or_left() {
    let (registry, mut daemon) = (Registry::start(), Daemon::start());
    let image = registry.image("base:1");
    let digest = build_base(&daemon, &image);
    let docker = daemon.docker().buildkit();
    // Neither pruning nor a power button takes what the name has.
    docker.run(["builder", "prune", "-af"]).success();
    docker.run(["image", "prune", "-f"]).success();
    daemon.kill_and_restart();
    let archive = docker.run(["save", &image]).success().bytes;
    let kept = blobs(&daemon);
    assert_eq!(kept, 7, "two layers, configs and manifests, and the index");

    // It is all in the archive, and loads and pushes as what it was.
    let loaded = Daemon::start();
    let said = loaded.docker().run_with(["load"], &archive).success().stdout;
    assert!(said.contains(&format!("Loaded image: {image}")), "{said}");
    loaded.docker().run(["image", "prune", "-f"]).success();
    assert_eq!(pushed(&loaded.docker(), &image), digest);
    // Debian's dockerd, whose images have one platform, takes its own.
    let theirs = Dockerd::start();
    theirs.docker().run_with(["load"], &archive).success();
    assert_eq!(inspect(&theirs.docker(), &image, "{{.Id}}"), inspect(&docker, &image, "{{.Id}}"));

    // Whatever is built from it for the other platform needs no registry.
    let dockerfile = format!("FROM {image}\nCOPY --from={image} /bin/busybox /copy\n");
    let out = daemon.scratch().join("out");
    docker
        .run_with(
            ["build", "--platform", "linux/arm64", "-o", out.to_str().unwrap(), "-"],
            dockerfile.as_bytes(),
        )
        .success();
    assert_eq!(fs::read(out.join("copy")).unwrap()[18], 183, "arm64's busybox");

    // A tag that moves on leaves the index with its digest; with the last name, all of it goes, and is told.
    docker.run_with(["build", "-t", &image, "-"], b"FROM scratch\nCMD [\"/nothing\"]\n").success();
    assert_eq!(
        inspect(&docker, &format!("{}@{digest}", registry.image("base")), "{{.Architecture}}"),
        "amd64"
    );
    docker.run(["builder", "prune", "-af"]).success();
    let removed = docker.run(["rmi", "-f", &digest]).success().stdout;
    assert!(removed.contains("Untagged:") && removed.contains("Deleted: sha256:"), "{removed}");
    docker.run(["rmi", &image]).success();
    docker.run(["builder", "prune", "-af"]).success();
    assert_eq!(blobs(&daemon), 0);
    let usage = docker.run(["system", "df", "--format", "{{.Type}} {{.Size}}"]).success().stdout;
    assert!(usage.contains("Images 0B"), "{usage}");
}

#[test]
fn an_index_without_a_name_is_found_by_its_digest() {
    let daemon = Daemon::start();
    let context = base_context(&daemon.scratch().join("base"));
    let docker = daemon.docker().buildkit();
    let digest = docker.run(["build", "-q", "--platform", BOTH, &context]).success().line().to_owned();
    docker.run(["builder", "prune", "-af"]).success();
    let listed =
        docker.run(["images", "--no-trunc", "--format", "{{.Repository}} {{.Tag}} {{.ID}}"]).success();
    let id = inspect(&docker, &digest, "{{.Id}}");
    assert_eq!(listed.line(), format!("<none> <none> {id}"));
    docker.run(["tag", &digest, "named:1"]).success();
    let out = daemon.scratch().join("out");
    docker
        .run_with(["build", "--platform", "linux/arm64", "-o", out.to_str().unwrap(), "-"], b"FROM named:1\n")
        .success();
    assert_eq!(fs::read(out.join("bin/busybox")).unwrap()[18], 183);
    docker.run(["rmi", "named:1"]).success();
    docker.run_with(["build", "-q", "--platform", BOTH, &context], b"").success();
    let pruned = docker.run(["image", "prune", "-f"]).success().stdout;
    assert!(pruned.contains("deleted: sha256:"), "{pruned}");
    docker.run(["builder", "prune", "-af"]).success();
    assert_eq!(blobs(&daemon), 0);
}

#[test]
fn one_foreign_platform_is_built_as_by_dockerd() {
    let _emulator = Emulator::register("aarch64");
    let (registry, ours, theirs) = (Registry::start(), Daemon::start(), Dockerd::start());
    let base = registry.image("base:1");
    build_base(&ours, &base);
    ours.docker().run(["push", &base]).success();
    let dockerfile = format!(
        "FROM --platform=$BUILDPLATFORM {base} AS native\nARG TARGETPLATFORM TARGETARCH TARGETVARIANT BUILDPLATFORM\n\
         RUN echo $TARGETPLATFORM $TARGETARCH $TARGETVARIANT $BUILDPLATFORM $(uname -m) > /args\n\
         FROM {base}\nCOPY --from=native /args /args\nRUN uname -m > /machine && echo '#!/bin/sh' > /script && chmod 755 /script && /script\n"
    );
    let mut saved = Vec::new();
    for docker in [ours.docker().buildkit(), theirs.docker().buildkit()] {
        // Debian's dockerd is started without a bridge.
        let arguments = ["build", "--network=host", "--platform", "linux/arm64", "-t", "app", "-"];
        docker.run_with(arguments, dockerfile.as_bytes()).success();
        assert_eq!(inspect(&docker, "app", "{{.Os}}/{{.Architecture}}"), "linux/arm64");
        let image = saved_image(&docker.run(["save", "app"]).success().bytes);
        let content = |file: &str| String::from_utf8(image.tree[file].content.clone()).unwrap();
        saved.push(["args", "machine", "script"].map(content));
    }
    assert_eq!(saved[0][0], "linux/arm64 arm64 linux/amd64 x86_64\n");
    assert_eq!(saved[0][1], "aarch64\n");
    assert_eq!(saved[0], saved[1]);
    // The classic builder knows one platform, and no lists.
    let classic = ours.docker().classic();
    let dockerfile = format!("FROM {base}\nRUN uname -m > /machine\n");
    let arguments = ["build", "--platform", "linux/arm64", "-t", "classic", "-"];
    classic.run_with(arguments, dockerfile.as_bytes()).success();
    assert_eq!(saved_machine(&classic, "classic"), "aarch64\n");
    let error =
        ours.docker().classic().run_with(["build", "--platform", BOTH, "-"], b"FROM scratch\n").failure();
    assert!(error.stderr.contains(BOTH), "{}", error.stderr);
}

#[test]
fn the_platforms_that_run_here_are_listed() {
    let before = lapstrake(["platforms"]).success().stdout;
    assert!(before.starts_with("linux/amd64\n"), "{before}");
    let _emulator = Emulator::register("riscv64");
    let after = lapstrake(["platforms"]).success().stdout;
    assert!(after.lines().any(|line| line == "linux/riscv64"), "{after}");
}

#[test]
fn outputs_of_several_platforms() {
    let daemon = Daemon::start();
    let dir = daemon.scratch();
    let root = dir.join("root");
    let context = base_context(&dir.join("base"));
    let path = |name: &str| dir.join(name).display().to_string();
    let build = |arguments: &[&str]| {
        let root = root.display().to_string();
        let fixed = ["build", "--root", &root, "--progress", "plain"];
        lapstrake(fixed.iter().chain(arguments).chain(&[context.as_str()]))
    };
    let iid = path("iid");
    build(&[
        "--platform",
        BOTH,
        "-o",
        &format!("type=oci,dest={},name=multi:1", path("oci.tar")),
        "--iidfile",
        &iid,
    ])
    .success();
    let archive = format!("oci-archive:{}", path("oci.tar"));
    let raw = skopeo(&["inspect", "--raw", &archive]);
    let index: Value = serde_json::from_str(&raw).unwrap();
    assert_eq!(index["mediaType"], "application/vnd.oci.image.index.v1+json");
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2);
    let digest = skopeo(&["manifest-digest", &write(&dir, "index", &raw)]);
    assert_eq!(fs::read_to_string(&iid).unwrap(), digest.trim());
    for architecture in ["amd64", "arm64"] {
        let config = skopeo(&["inspect", "--config", "--override-arch", architecture, &archive]);
        let config: Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["architecture"], architecture);
    }
    // It loads with all of it.
    daemon.docker().run_with(["load"], &fs::read(path("oci.tar")).unwrap()).success();
    assert_eq!(inspect(&daemon.docker(), "multi:1", "{{.Architecture}}"), "amd64");
    assert_eq!(blobs(&daemon), 7);

    build(&["--platform", "linux/amd64", "--platform", "linux/arm64", "-o", &path("split")]).success();
    assert!(Path::new(&path("split/linux_amd64/bin/busybox")).exists());
    assert!(Path::new(&path("split/linux_arm64/bin/busybox")).exists());
    let error = build(&[
        "--platform",
        BOTH,
        "-o",
        &format!("type=local,dest={},platform-split=false", path("merged")),
    ])
    .failure();
    assert!(error.stderr.contains("when split option is disabled"), "{}", error.stderr);
    build(&["--platform", BOTH, "-o", &format!("type=tar,dest={}", path("tree.tar"))]).success();
    let listed = Command::new("tar").args(["-tf", &path("tree.tar")]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(
        listed.contains("linux_arm64/bin/busybox\n") && listed.contains("linux_amd64/bin/busybox\n"),
        "{listed}"
    );
    let error = build(&["--platform", BOTH, "-o", &format!("type=docker,dest={}", path("d.tar"))]).failure();
    assert!(
        error.stderr.contains("docker exporter does not currently support exporting manifest lists"),
        "{}",
        error.stderr
    );
    // One platform is one image, unless it is to be one of several.
    build(&["--platform", "linux/arm64", "-o", &format!("type=oci,dest={}", path("one.tar"))]).success();
    assert!(
        !skopeo(&["inspect", "--raw", &format!("oci-archive:{}", path("one.tar"))]).contains("manifests")
    );
    let multi = "BUILDKIT_MULTI_PLATFORM=1";
    build(&[
        "--build-arg",
        multi,
        "--platform",
        "linux/arm64",
        "-o",
        &format!("type=oci,dest={}", path("one.tar")),
    ])
    .success();
    assert!(skopeo(&["inspect", "--raw", &format!("oci-archive:{}", path("one.tar"))]).contains("manifests"));
    // The client's directory and file, through its session.
    let docker = daemon.docker().buildkit();
    docker.run(["build", "--platform", BOTH, "-o", &path("client"), &context]).success();
    assert!(Path::new(&path("client/linux_arm64/bin/busybox")).exists());
    docker
        .run(["build", "--platform", BOTH, "-o", &format!("type=tar,dest={}", path("client.tar")), &context])
        .success();
    let listed = Command::new("tar").args(["-tf", &path("client.tar")]).output().unwrap();
    assert!(String::from_utf8(listed.stdout).unwrap().contains("linux_arm64/bin/busybox\n"));
}

fn write(dir: &Path, name: &str, text: &str) -> String {
    fs::write(dir.join(name), text).unwrap();
    dir.join(name).display().to_string()
}

#[test]
fn a_platform_without_an_emulator_is_told_what_to_install() {
    let daemon = Daemon::start();
    let dir = daemon.scratch().join("strange");
    fs::create_dir_all(dir.join("bin")).unwrap();
    let mut program = b"\x7fELF\x02\x01\x01".to_vec();
    program.resize(16, 0);
    program.extend([2, 0, 0x12, 0x7a]);
    program.resize(64, 0);
    fs::write(dir.join("bin/sh"), program).unwrap();
    fs::set_permissions(dir.join("bin/sh"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fs::write(dir.join("Dockerfile"), "FROM scratch\nCOPY bin /bin\nRUN make\n").unwrap();
    for docker in [daemon.docker().buildkit(), daemon.docker().classic()] {
        let failed =
            docker.run(["build", "--platform", "linux/imaginary", dir.to_str().unwrap()]).failure().all();
        for part in
            ["exec format error", "apt-get install qemu-user-static binfmt-support", "tonistiigi/binfmt"]
        {
            assert!(failed.contains(part), "{part}: {failed}");
        }
    }
}
