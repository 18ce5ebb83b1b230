//! Push, pull and FROM with Debian's docker-registry, and skopeo's opinion of what was pushed.

use std::{
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, TcpListener},
};

use lapstrake_integration_cli::{
    BASE_IMAGE, Daemon, Docker, PASSWORD, Registry, USER, differences, saved_image,
};
use serde_json::Value;

use crate::common::skopeo;

fn inspect(docker: &Docker, image: &str, format: &str) -> String {
    docker.run(["image", "inspect", "--format", format, image]).success().line().to_owned()
}

/// Builds an image of a few layers, and pushes it.
fn push_app(docker: &Docker, image: &str) -> String {
    let dockerfile = b"FROM busybox\nRUN mkdir /d && echo pushed > /d/f && chmod 4711 /d/f && ln /d/f /d/h && rm /bin/vi\nRUN rm /bin/vlock || true\nENV A=1\nCMD [\"cat\", \"/d/f\"]\n";
    docker.run_with(["build", "-t", image, "-"], dockerfile).success();
    docker.run(["push", image]).success().stdout
}

/// The digest that a push ends with.
fn digest_of(pushed: &str) -> &str {
    let rest = pushed.split("digest: ").nth(1).unwrap_or_else(|| panic!("no digest: {pushed}"));
    rest.split_whitespace().next().unwrap()
}

#[test]
fn what_one_pushes_the_other_pulls() {
    let (registry, one, two) = (Registry::start(), Daemon::with_base(), Daemon::start());
    let (one, two) = (one.docker(), two.docker());
    let image = registry.image("team/app:1");
    let pushed = push_app(&one, &image);
    let digest = digest_of(&pushed).to_owned();
    let again = one.run(["push", &image]).success();
    assert!(again.stdout.contains("Layer already exists"), "{}", again.stdout);
    assert_eq!(digest_of(&again.stdout), digest, "an image has one digest");

    let pulled = two.run(["pull", &image]).success();
    assert!(pulled.stdout.contains(&format!("Digest: {digest}")), "{}", pulled.stdout);
    assert!(
        pulled.stdout.contains(&format!("Status: Downloaded newer image for {image}")),
        "{}",
        pulled.stdout
    );
    assert_eq!(inspect(&one, &image, "{{.Id}}"), inspect(&two, &image, "{{.Id}}"));
    let by_digest = format!("{}@{digest}", registry.image("team/app"));
    assert_eq!(inspect(&one, &image, "{{json .RepoDigests}}"), format!("[\"{by_digest}\"]"));
    assert_eq!(inspect(&two, &image, "{{json .RepoDigests}}"), format!("[\"{by_digest}\"]"));
    let saved = [&one, &two].map(|docker| saved_image(&docker.run(["save", &image]).success().bytes));
    assert_eq!(saved[0].config, saved[1].config);
    assert_eq!(differences(&saved[0].tree, &saved[1].tree), Vec::<String>::new());
    let again = two.run(["pull", &image]).success();
    assert!(again.stdout.contains(&format!("Status: Image is up to date for {image}")), "{}", again.stdout);

    two.run(["rmi", "-f", &image]).success();
    let pulled = two.run(["pull", &by_digest]).success();
    assert!(pulled.stdout.contains(&digest), "{}", pulled.stdout);
    // And what was pulled pushes with the digest it came with.
    two.run(["tag", &by_digest, &registry.image("copy")]).success();
    assert_eq!(digest_of(&two.run(["push", &registry.image("copy")]).success().stdout), digest);
    let missing = two.run(["pull", &registry.image("team/none")]).failure();
    assert!(
        missing.stderr.contains("not found") && missing.stderr.contains("manifest"),
        "{}",
        missing.stderr
    );
}

#[test]
fn all_tags_of_a_repository_are_pulled() {
    let (registry, one, two) = (Registry::start(), Daemon::with_base(), Daemon::start());
    let repository = registry.image("team/app");
    let mut digests = Vec::new();
    for tag in ["1", "2", "latest"] {
        let image = format!("{repository}:{tag}");
        let dockerfile = format!("FROM busybox\nLABEL tag={tag}\n");
        one.docker().run_with(["build", "-t", &image, "-"], dockerfile.as_bytes()).success();
        digests.push(digest_of(&one.docker().run(["push", &image]).success().stdout).to_owned());
    }
    let docker = two.docker();
    let pulled = docker.run(["pull", "-a", &repository]).success().stdout;
    for digest in &digests {
        assert!(pulled.contains(&format!("Digest: {digest}")), "{pulled}");
    }
    assert!(pulled.contains(&format!("Status: Downloaded newer image for {repository}")), "{pulled}");
    for tag in ["1", "2", "latest"] {
        assert_eq!(inspect(&docker, &format!("{repository}:{tag}"), "{{.Config.Labels.tag}}"), tag);
    }
    let again = docker.run(["pull", "-a", &repository]).success().stdout;
    assert!(again.contains("Status: Image is up to date"), "{again}");
    let missing = docker.run(["pull", "-a", &registry.image("team/none")]).failure();
    assert!(missing.stderr.contains("not found"), "{}", missing.stderr);
}

#[test]
fn skopeo_understands_what_was_pushed() {
    let (registry, daemon) = (Registry::start(), Daemon::with_base());
    let docker = daemon.docker();
    let image = registry.image("app:1");
    let pushed = push_app(&docker, &image);
    let remote = format!("docker://{image}");
    let told: Value = serde_json::from_str(&skopeo(&["inspect", "--tls-verify=false", &remote])).unwrap();
    assert_eq!(told["Digest"], digest_of(&pushed));
    assert_eq!(told["RepoTags"], serde_json::json!(["1"]));
    assert_eq!(told["Layers"].as_array().unwrap().len(), 3);
    assert!(told["Env"].as_array().unwrap().contains(&"A=1".into()), "{told}");
    let config: Value =
        serde_json::from_str(&skopeo(&["inspect", "--config", "--tls-verify=false", &remote])).unwrap();
    assert_eq!(config["config"]["Cmd"], serde_json::json!(["cat", "/d/f"]));
    // skopeo checks every digest on the way.
    let archive = daemon.scratch().join("copy.tar");
    skopeo(&[
        "copy",
        "--src-tls-verify=false",
        &remote,
        &format!("docker-archive:{}:app:1", archive.display()),
    ]);
    let copied = saved_image(&std::fs::read(&archive).unwrap());
    let saved = saved_image(&docker.run(["save", &image]).success().bytes);
    assert_eq!(differences(&copied.tree, &saved.tree), Vec::<String>::new());
    // And an OCI layout from skopeo loads.
    let layout = daemon.scratch().join("layout.tar");
    skopeo(&["copy", "--src-tls-verify=false", &remote, &format!("oci-archive:{}:app", layout.display())]);
    let other = Daemon::start();
    other.docker().run_with(["load"], &std::fs::read(&layout).unwrap()).success();
    let ids = other.docker().run(["images", "-q", "--no-trunc"]).success();
    // Made into OCI's by skopeo, the configuration is another document; its digest is the image's id.
    let manifest: Value = serde_json::from_str(&skopeo(&[
        "inspect",
        "--raw",
        &format!("oci-archive:{}:app", layout.display()),
    ]))
    .unwrap();
    assert_eq!(ids.line(), manifest["config"]["digest"]);
}

#[test]
fn a_build_pulls_its_base() {
    let (registry, maker) = (Registry::start(), Daemon::with_base());
    let image = registry.image("base:1");
    push_app(&maker.docker(), &image);
    let daemon = Daemon::start();
    for (name, docker) in [("classic", daemon.docker().classic()), ("buildkit", daemon.docker().buildkit())] {
        let dockerfile = format!("FROM {image}\nRUN test \"$A\" = 1 && cat /d/f > /seen-{name}\n");
        docker.run_with(["build", "--no-cache", "-t", name, "-"], dockerfile.as_bytes()).success();
        let saved = saved_image(&docker.run(["save", name]).success().bytes);
        assert_eq!(saved.tree[&format!("seen-{name}")].content, b"pushed\n");
        assert!(!saved.tree.contains_key("bin/vi"));
    }
    // A stage of its own, by COPY --from.
    let dockerfile = format!("FROM scratch\nCOPY --from={image} /d /d\n");
    daemon.docker().buildkit().run_with(["build", "-t", "copied", "-"], dockerfile.as_bytes()).success();
    let saved = saved_image(&daemon.docker().run(["save", "copied"]).success().bytes);
    assert_eq!(saved.tree["d/f"].names.iter().collect::<Vec<_>>(), ["d/f", "d/h"]);
    assert_eq!(saved.tree["d/f"].mode, 0o4711);
}

#[test]
fn pull_looks_for_a_newer_base() {
    let (registry, maker, daemon) = (Registry::start(), Daemon::with_base(), Daemon::start());
    let image = registry.image("moving");
    let publish = |text: &str| {
        let dockerfile = format!("FROM busybox\nRUN echo {text} > /version\n");
        maker.docker().run_with(["build", "-t", &image, "-"], dockerfile.as_bytes()).success();
        maker.docker().run(["push", &image]).success();
    };
    let dockerfile = format!("FROM {image}\nRUN cp /version /seen\n");
    publish("one");
    daemon.docker().run(["pull", &image]).success();
    publish("two");
    for docker in [daemon.docker().buildkit(), daemon.docker().classic()] {
        let seen = |arguments: &[&str]| {
            docker
                .run_with(
                    ["build", "-t", "seen"].iter().chain(arguments).chain(&["-"]),
                    dockerfile.as_bytes(),
                )
                .success();
            saved_image(&docker.run(["save", "seen"]).success().bytes).tree["seen"].content.clone()
        };
        daemon.docker().run(["rmi", "-f", &image]).success();
        maker.docker().run(["push", &image]).success();
        publish("one");
        daemon.docker().run(["pull", &image]).success();
        publish("two");
        assert_eq!(seen(&[]), b"one\n", "what is here is good enough");
        assert_eq!(seen(&["--pull"]), b"two\n");
    }
}

#[test]
fn users_log_in() {
    let (registry, daemon, other) = (Registry::with_users(), Daemon::with_base(), Daemon::start());
    let docker = daemon.docker();
    let image = registry.image("private:1");
    docker.run(["tag", BASE_IMAGE, &image]).success();
    let refused = docker.run(["push", &image]).failure();
    assert!(refused.stderr.contains("no basic auth credentials"), "{}", refused.stderr);
    let host = image.split('/').next().unwrap().to_owned();
    let login = |docker: &Docker, password: &str| {
        docker.run_with(["login", "-u", USER, "--password-stdin", &host], password.as_bytes())
    };
    let wrong = login(&docker, "wrong").failure();
    assert!(
        wrong.stderr.contains("unauthorized") || wrong.stderr.contains("401 Unauthorized"),
        "{}",
        wrong.stderr
    );
    let right = login(&docker, PASSWORD).success();
    assert!(right.stdout.contains("Login Succeeded"), "{}", right.stdout);
    docker.run(["push", &image]).success();

    let docker = other.docker();
    let refused = docker.run(["pull", &image]).failure();
    assert!(refused.stderr.contains("no basic auth credentials"), "{}", refused.stderr);
    let dockerfile = format!("FROM {image}\nRUN echo ok > /ok\n");
    for docker in [docker.buildkit(), docker.classic()] {
        docker.run_with(["build", "-"], dockerfile.as_bytes()).failure();
    }
    login(&docker, PASSWORD).success();
    // Each protocol has its own way to give them: the session, and a header.
    for docker in [docker.buildkit(), docker.classic()] {
        docker
            .run_with(["build", "--no-cache", "--pull", "-t", "built", "-"], dockerfile.as_bytes())
            .success();
    }
    docker.run(["pull", &image]).success();
}

/// A registry that has one manifest, and gives something else for its digest.
fn lying_registry() -> (u16, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let handle = std::thread::spawn(move || {
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{{"mediaType":"application/vnd.docker.container.image.v1+json","size":2,"digest":"sha256:{0}"}},"layers":[]}}"#,
            "0".repeat(64)
        );
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut first = [0];
            // TLS, which is tried first, begins with a byte that no request begins with.
            if !matches!(stream.peek(&mut first), Ok(1)) || !first[0].is_ascii_uppercase() {
                continue;
            }
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let request = lines.next().and_then(Result::ok).unwrap_or_default();
            if request.starts_with("GET /end") {
                return;
            }
            // The rest of the head; a client that stops in the middle of it is done.
            while lines.next().and_then(Result::ok).is_some_and(|line| !line.is_empty()) {}
            let (kind, body) = if request.contains("/blobs/") {
                ("application/octet-stream", "{}")
            } else if request.contains("/manifests/") {
                ("application/vnd.docker.distribution.manifest.v2+json", manifest.as_str())
            } else {
                ("application/json", "{}")
            };
            let length = body.len();
            let body = if request.starts_with("HEAD") { "" } else { body };
            // The client may be gone already.
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nDocker-Distribution-Api-Version: registry/2.0\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            );
        }
    });
    (port, handle)
}

#[test]
fn a_registry_that_lies_about_digests_is_not_believed() {
    let daemon = Daemon::start();
    let (port, server) = lying_registry();
    let docker = daemon.docker();
    let image = format!("localhost:{port}/lie");
    // A manifest by digest that is another; then a configuration that is not the one named.
    let by_digest = docker.run(["pull", &format!("{image}@sha256:{}", "1".repeat(64))]).failure();
    assert!(
        by_digest.stderr.contains("digest") || by_digest.stderr.contains("verification"),
        "{}",
        by_digest.stderr
    );
    let config = docker.run(["pull", &image]).failure();
    assert!(config.stderr.contains("digest") || config.stderr.contains("verification"), "{}", config.stderr);
    let built = docker.buildkit().run_with(["build", "-"], format!("FROM {image}\n").as_bytes()).failure();
    assert!(built.all().contains("digest") || built.all().contains("verification"), "{}", built.all());
    assert_eq!(docker.run(["images", "-qa"]).success().line(), "");
    docker.run(["version"]).success();
    let mut end = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    end.write_all(b"GET /end HTTP/1.1\r\n\r\n").unwrap();
    server.join().unwrap();
}

#[test]
fn a_cache_goes_with_the_image() {
    let (registry, one, two) = (Registry::start(), Daemon::with_base(), Daemon::with_base());
    let image = registry.image("cached");
    let dockerfile = b"FROM busybox\nRUN head -c 100 /dev/urandom > /random\nRUN echo second > /second\n";
    let arguments = ["build", "--build-arg", "BUILDKIT_INLINE_CACHE=1", "-t", &image, "-"];
    one.docker().buildkit().run_with(arguments, dockerfile).success();
    one.docker().run(["push", &image]).success();
    // The base is the same in both stores.
    let (base, other) = (
        inspect(&one.docker(), BASE_IMAGE, "{{.RootFS}}"),
        inspect(&two.docker(), BASE_IMAGE, "{{.RootFS}}"),
    );
    assert_eq!(base, other);
    let docker = two.docker().buildkit();
    let built = docker.run_with(["build", "--cache-from", &image, "-t", "built", "-"], dockerfile).success();
    assert!(built.all().contains("CACHED"), "{}", built.all());
    assert_eq!(
        inspect(&docker, "built", "{{json .RootFS}}"),
        inspect(&one.docker(), &image, "{{json .RootFS}}")
    );
}

#[test]
fn a_big_layer_goes_through_little_memory() {
    let (registry, one, two) = (Registry::start(), Daemon::with_base(), Daemon::start());
    let image = registry.image("team/big:1");
    let dockerfile = b"FROM busybox\nRUN dd if=/dev/urandom of=/big bs=1048576 count=200\n";
    one.docker().run_with(["build", "-q", "-t", &image, "-"], dockerfile).success();
    let bound = 100 << 20;
    let before = one.most_resident();
    assert_ne!(before, 0);
    one.docker().run(["push", &image]).success();
    let more = one.most_resident() - before;
    assert!(more < bound, "pushing took {more} bytes");
    let before = two.most_resident();
    two.docker().run(["pull", &image]).success();
    let more = two.most_resident() - before;
    assert!(more < bound, "pulling took {more} bytes");
}
