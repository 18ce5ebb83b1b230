//! `docker build` of docker 20.10, by both protocols.

use std::{fs, path::PathBuf};

use lapstrake_integration_cli::{Daemon, Docker, Output};

const PROTOCOLS: [bool; 2] = [true, false];

fn cli(daemon: &Daemon, buildkit: bool) -> Docker {
    if buildkit { daemon.docker().buildkit() } else { daemon.docker().classic() }
}

/// A directory with these files.
fn directory(daemon: &Daemon, name: &str, files: &[(&str, &str)]) -> PathBuf {
    let dir = daemon.scratch().join(name);
    for (path, data) in files {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, data).unwrap();
    }
    dir
}

fn build(docker: &Docker, arguments: &[&str], context: &std::path::Path) -> Output {
    docker.run(["build"].iter().chain(arguments).copied().chain([context.to_str().unwrap()]))
}

/// What a file of an image says, by way of `docker save`.
fn config(docker: &Docker, image: &str, format: &str) -> String {
    docker.run(["image", "inspect", "--format", format, image]).success().line().to_owned()
}

#[test]
fn from_a_directory() {
    let daemon = Daemon::with_base();
    for buildkit in PROTOCOLS {
        let docker = cli(&daemon, buildkit);
        let dir = directory(
            &daemon,
            "plain",
            &[
                (
                    "Dockerfile",
                    "FROM busybox\nARG WHO=nobody\nLABEL who=$WHO\nCOPY src /src\nRUN echo built for $WHO > /who\nCMD [\"cat\", \"/who\"]\n",
                ),
                ("src/a.txt", "A"),
            ],
        );
        let tag = format!("plain:{buildkit}");
        let output =
            build(&docker, &["-t", &tag, "--build-arg", "WHO=me", "--label", "extra=1"], &dir).success();
        assert_eq!(
            config(&docker, &tag, "{{.Config.Labels.who}} {{.Config.Labels.extra}} {{json .Config.Cmd}}"),
            "me 1 [\"cat\",\"/who\"]"
        );
        if !buildkit {
            assert!(output.stdout.contains("Step 1/"), "{}", output.stdout);
            assert!(output.stdout.contains(" ---> "), "{}", output.stdout);
            assert!(output.stdout.contains("Successfully built "), "{}", output.stdout);
            assert!(output.stdout.contains(&format!("Successfully tagged {tag}")), "{}", output.stdout);
        }
        let history = docker.run(["history", "--no-trunc", "--format", "{{.CreatedBy}}", &tag]).success();
        let copy = if buildkit { "COPY src /src # buildkit" } else { "#(nop) COPY dir:" };
        assert!(history.stdout.contains(copy), "{}", history.stdout);
    }
}

#[test]
fn from_standard_input() {
    let daemon = Daemon::with_base();
    for buildkit in PROTOCOLS {
        let docker = cli(&daemon, buildkit);
        // A Dockerfile alone.
        docker.run_with(["build", "-t", "alone", "-"], b"FROM busybox\nRUN echo alone > /alone\n").success();
        // A context.
        let mut archive = tar::Builder::new(Vec::new());
        for (path, data) in
            [("Dockerfile", "FROM busybox\nCOPY data /data\nRUN grep -q hello /data\n"), ("data", "hello")]
        {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, path, data.as_bytes()).unwrap();
        }
        docker.run_with(["build", "-t", "context", "-"], &archive.into_inner().unwrap()).success();
        // A Dockerfile beside a directory.
        let dir = directory(&daemon, "beside", &[("data", "hello")]);
        docker
            .run_with(
                ["build", "-t", "beside", "-f", "-", dir.to_str().unwrap()],
                b"FROM busybox\nCOPY data /\n",
            )
            .success();
    }
}

#[test]
fn another_dockerfile_a_target_and_an_image_id_file() {
    let daemon = Daemon::with_base();
    for buildkit in PROTOCOLS {
        let docker = cli(&daemon, buildkit);
        let dir = directory(
            &daemon,
            "named",
            &[(
                "build/My.Dockerfile",
                "FROM busybox AS first\nRUN echo 1 > /n\nFROM first AS second\nRUN echo 2 > /n\n",
            )],
        );
        let file = dir.join("build/My.Dockerfile");
        let id_file = daemon.scratch().join("id");
        let arguments = [
            "-f",
            file.to_str().unwrap(),
            "--target",
            "first",
            "--iidfile",
            id_file.to_str().unwrap(),
            "-t",
            "named",
        ];
        build(&docker, &arguments, &dir).success();
        let id = fs::read_to_string(&id_file).unwrap();
        assert_eq!(config(&docker, "named", "{{.Id}}"), id);
        assert_eq!(config(&docker, &id, "{{len .RootFS.Layers}}"), "2");
    }
}

#[test]
fn quiet_builds_print_the_id_alone() {
    let daemon = Daemon::with_base();
    for buildkit in PROTOCOLS {
        let docker = cli(&daemon, buildkit);
        let dir = directory(&daemon, "quiet", &[("Dockerfile", "FROM busybox\nRUN echo noise\n")]);
        let output = build(&docker, &["-q"], &dir).success();
        assert!(output.line().starts_with("sha256:") && output.line().len() == 71, "{}", output.stdout);
    }
}

#[test]
fn secrets_are_seen_and_not_kept() {
    let daemon = Daemon::with_base();
    let docker = daemon.docker().buildkit();
    let dir = directory(
        &daemon,
        "secret",
        &[
            (
                "Dockerfile",
                "# syntax=docker/dockerfile:1\nFROM busybox\nRUN --mount=type=secret,id=token,required=true wc -c < /run/secrets/token > /size\n",
            ),
            ("token", "s3cr3t-value"),
        ],
    );
    let secret = format!("id=token,src={}", dir.join("token").display());
    build(&docker, &["--secret", &secret, "-t", "secret"], &dir).success();
    let saved = docker.run(["save", "secret"]).success().bytes;
    assert!(!saved.windows(12).any(|window| window == b"s3cr3t-value"));
    let missing = build(&docker, &["--no-cache"], &dir).failure();
    assert!(missing.all().contains("secret token: not found"), "{}", missing.all());
}

#[test]
fn output_goes_to_a_directory_or_a_tarball() {
    let daemon = Daemon::with_base();
    let docker = daemon.docker().buildkit();
    let dir = directory(
        &daemon,
        "output",
        &[(
            "Dockerfile",
            "FROM busybox AS make\nRUN echo made > /made\nFROM scratch\nCOPY --from=make /made /dir/made\n",
        )],
    );
    let local = daemon.scratch().join("out");
    build(&docker, &["-o", &format!("type=local,dest={}", local.display())], &dir).success();
    assert_eq!(fs::read_to_string(local.join("dir/made")).unwrap(), "made\n");
    let tarball = daemon.scratch().join("out.tar");
    build(&docker, &["-o", &format!("type=tar,dest={}", tarball.display())], &dir).success();
    let mut archive = tar::Archive::new(fs::File::open(tarball).unwrap());
    let names: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    assert!(names.iter().any(|name| name == "dir/made"), "{names:?}");
}

#[test]
fn a_second_build_is_cached() {
    let daemon = Daemon::with_base();
    for buildkit in PROTOCOLS {
        let docker = cli(&daemon, buildkit);
        let dockerfile =
            format!("FROM busybox\nCOPY a /a\nRUN cat /proc/sys/kernel/random/uuid > /stamp-{buildkit}\n");
        let dir =
            directory(&daemon, &format!("cached-{buildkit}"), &[("Dockerfile", &dockerfile), ("a", "1")]);
        build(&docker, &["-t", "one"], &dir).success();
        let second = build(&docker, &["-t", "two"], &dir).success();
        let word = if buildkit { "CACHED" } else { "Using cache" };
        assert!(second.all().contains(word), "{}", second.all());
        assert_eq!(config(&docker, "one", "{{json .RootFS}}"), config(&docker, "two", "{{json .RootFS}}"));
        let third = build(&docker, &["-t", "three", "--no-cache"], &dir).success();
        assert!(!third.all().contains("Using cache"), "{}", third.all());
        assert_ne!(config(&docker, "one", "{{json .RootFS}}"), config(&docker, "three", "{{json .RootFS}}"));
    }
}

#[test]
fn new_content_is_noticed_whatever_its_size_and_time_and_a_touch_is_not() {
    let daemon = Daemon::with_base();
    for buildkit in PROTOCOLS {
        let docker = cli(&daemon, buildkit);
        let name = format!("content-{buildkit}");
        let dir = directory(&daemon, &name, &[("Dockerfile", "FROM busybox\nCOPY a /a\nRUN cat /a\n")]);
        // Larger than what is compared at a time, and different at its end.
        let write = |last: &str, time: u64| {
            let path = dir.join("a");
            fs::write(&path, "x".repeat(100_000) + last).unwrap();
            let time = std::time::UNIX_EPOCH + std::time::Duration::new(time, 123_456_789);
            fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        };
        let id = || build(&docker, &["-q"], &dir).success().stdout.trim().to_owned();
        write("1", 1_700_000_000);
        let first = id();
        write("2", 1_700_000_000);
        let second = id();
        assert_ne!(first, second, "buildkit={buildkit}");
        write("2", 1_800_000_000);
        assert_eq!(id(), second, "buildkit={buildkit}");
    }
}

#[test]
fn failures_are_told_in_the_words_that_scripts_know() {
    let daemon = Daemon::with_base();
    let cases = [
        ("FROM busybox\nRUN exit 42\n", "exit code: 42", "returned a non-zero code: 42"),
        ("FROM busybox\nFOO bar\n", "unknown instruction: FOO", "unknown instruction: FOO"),
        ("FROM busybox\nCOPY missing /\n", "missing", "missing"),
        ("FROM busybox AS a\nCOPY --from=nosuchstage:x /a /b\n", "nosuchstage", "nosuchstage"),
    ];
    for (dockerfile, with_buildkit, classic) in cases {
        for buildkit in PROTOCOLS {
            let docker = cli(&daemon, buildkit);
            let dir = directory(&daemon, "failing", &[("Dockerfile", dockerfile)]);
            let output = build(&docker, &["-t", "failing"], &dir).failure();
            let wanted = if buildkit { with_buildkit } else { classic };
            assert!(output.all().contains(wanted), "{dockerfile:?} {buildkit}: {}", output.all());
        }
    }
    let docker = daemon.docker();
    assert_eq!(docker.run(["images", "-q", "failing"]).success().line(), "");
}

#[test]
fn a_refusal_is_told_although_the_context_is_still_being_sent() {
    let daemon = Daemon::start();
    let docker = daemon.docker().classic();
    let dir =
        directory(&daemon, "refused", &[("Dockerfile", "FROM busybox\n"), ("big", &"x".repeat(4 << 20))]);
    for _ in 0..20 {
        let output = build(&docker, &["--network", "container:other"], &dir).failure();
        assert!(output.all().contains("container:other"), "{}", output.all());
    }
}
