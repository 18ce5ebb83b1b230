//! Where a build's files come from, as real clients and `lapstrake build` say it.

#[allow(unreachable_pub)]
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use lapstrake_integration_cli::{
    BASE_IMAGE, Daemon, Docker, Dockerd, Output, Process, git, git_daemon, lapstrake, lapstrake_command,
    require, saved_image,
};

use crate::common::{Files, archive};

fn directory(parent: &Path, name: &str, files: &[(&str, &str)]) -> PathBuf {
    let dir = parent.join(name);
    fs::create_dir_all(&dir).unwrap();
    for (path, data) in files {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, data).unwrap();
    }
    dir
}

/// The files below `/out` of an image that a docker CLI has, directories left out.
fn out(docker: &Docker, image: &str) -> Vec<String> {
    let image = saved_image(&docker.run(["save", image]).success().bytes);
    let files = image.tree.iter().filter(|(_, node)| node.kind.is_file());
    files.filter_map(|(path, _)| Some(path.strip_prefix("out/")?.to_owned())).collect()
}

/// A repository of these files, and a server of it.
fn repository(parent: &Path, files: &[(&str, &str)]) -> (Process, String) {
    let work = directory(parent, "work", files);
    git(&work, &["init", "-q"]);
    git(&work, &["add", "-A"]);
    git(&work, &["commit", "-qm", "one"]);
    git(parent, &["clone", "-q", "--bare", "work", "repo.git"]);
    let (server, url) = git_daemon(parent);
    (server, format!("{url}/repo.git"))
}

const IGNORING: &[(&str, &str)] = &[
    ("Dockerfile", "FROM busybox\nCOPY . /out/\n"),
    ("Dockerfile.dockerignore", "own\n"),
    (".dockerignore", "common\n"),
    ("own", ""),
    ("common", ""),
    ("sub/Dockerfile", "FROM busybox\nCOPY . /out/\n"),
    ("sub/.dockerignore", "hidden\nDockerfile\n"),
    ("sub/hidden", ""),
    ("sub/seen", ""),
];

#[test]
fn ignore_files_count_where_they_count_with_dockerd() {
    let (ours, engine) = (Daemon::with_base(), Dockerd::start());
    let (mine, theirs) = (ours.docker(), engine.docker());
    let base = mine.run(["save", BASE_IMAGE]).success().bytes;
    theirs.run_with(["load"], &base).success();
    let scratch = ours.scratch();
    let (_server, url) = repository(&scratch, IGNORING);
    let dir = directory(&scratch, "local", IGNORING);
    let tar = archive(IGNORING);
    let web = Files::serve(HashMap::from([("/context.tar".to_owned(), tar.clone())]));
    // dockerd takes `master` for every repository's branch.
    let (url, subdir) = (format!("{url}#main"), format!("{url}#main:sub"));
    let (dir, remote) = (dir.to_str().unwrap(), web.url("/context.tar"));
    let mut wrong = String::new();
    for (name, arguments, stdin) in [
        ("directory", vec![dir], &b""[..]),
        ("a directory and a Dockerfile below", vec!["-f", "local/sub/Dockerfile", dir], b""),
        ("standard input", vec!["-"], &tar),
        ("git", vec![url.as_str()], b""),
        ("a directory of git", vec![subdir.as_str()], b""),
        ("a web server", vec![remote.as_str()], b""),
    ] {
        for buildkit in [false, true] {
            // The BuildKit of dockerd 20.10 refuses them.
            if buildkit && name == "a directory of git" {
                continue;
            }
            let tree = |docker: &Docker| {
                let docker = if buildkit { docker.buildkit() } else { docker.classic() };
                let mut command =
                    docker.command(["build", "--network=host", "-q", "-t", "app"].iter().chain(&arguments));
                command.current_dir(&scratch);
                lapstrake_integration_cli::collect(&mut command, stdin).success();
                out(&docker, "app")
            };
            let (mine, theirs) = (tree(&mine), tree(&theirs));
            if mine != theirs {
                wrong.push_str(&format!(
                    "{name}, BuildKit {buildkit}\n  ours      {mine:?}\n  dockerd's {theirs:?}\n"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// A store for `lapstrake build`, with the base image, and what goes with it.
struct Shop {
    dir: tempfile::TempDir,
}

impl Shop {
    fn new() -> Self {
        let shop = Self { dir: tempfile::tempdir().unwrap() };
        let rootfs = shop.dir.path().join("base/rootfs.tar");
        fs::create_dir_all(rootfs.parent().unwrap()).unwrap();
        fs::write(&rootfs, lapstrake_integration_cli::busybox_rootfs()).unwrap();
        let dockerfile = "FROM scratch\nADD rootfs.tar /\nENV PATH=/bin\n";
        fs::write(shop.dir.path().join("base/Dockerfile"), dockerfile).unwrap();
        shop.build(&["-t", "busybox", shop.path("base").to_str().unwrap()]).success();
        shop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn context(&self, name: &str, files: &[(&str, &str)]) -> String {
        directory(self.dir.path(), name, files).to_str().unwrap().to_owned()
    }

    fn arguments<'a>(&self, arguments: &[&'a str]) -> Vec<std::borrow::Cow<'a, str>> {
        let root = self.path("root").to_str().unwrap().to_owned();
        let fixed = ["build".into(), "--root".into(), root.into(), "--progress".into(), "plain".into()];
        fixed.into_iter().chain(arguments.iter().map(|argument| (*argument).into())).collect()
    }

    fn build(&self, arguments: &[&str]) -> Output {
        lapstrake(self.arguments(arguments).iter().map(AsRef::<str>::as_ref))
    }

    fn build_with(&self, arguments: &[&str], stdin: &[u8]) -> Output {
        let mut command = lapstrake_command(self.arguments(arguments).iter().map(AsRef::<str>::as_ref));
        lapstrake_integration_cli::collect(&mut command, stdin)
    }

    /// Builds, and reads what is in the result.
    fn result(&self, arguments: &[&str], stdin: &[u8]) -> HashMap<String, String> {
        let dest = self.path("result");
        let output = format!("type=local,dest={}", dest.display());
        let arguments: Vec<&str> = ["-o", output.as_str()].iter().chain(arguments).copied().collect();
        self.build_with(&arguments, stdin).success();
        let mut found = HashMap::new();
        for entry in fs::read_dir(dest.join("out")).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            found.insert(name, fs::read_to_string(entry.path()).unwrap_or_default());
        }
        fs::remove_dir_all(dest).unwrap();
        found
    }
}

fn names(files: &HashMap<String, String>) -> Vec<&str> {
    let mut names: Vec<&str> = files.keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}

#[test]
fn lapstrake_build_takes_directories_as_further_contexts() {
    let shop = Shop::new();
    let assets = shop.context("assets", &[("a", "A"), ("b", "B"), ("c", "C"), (".dockerignore", "b\n")]);
    let dir = shop.context(
        "app",
        &[(
            "Dockerfile",
            "FROM base AS from\nFROM scratch\nCOPY --from=assets . /out/\nCOPY --from=from /bin/sh /out/\n",
        )],
    );
    let result = shop.result(
        &[
            "--build-context",
            &format!("assets={assets}"),
            "--build-context",
            "base=docker-image://busybox",
            &dir,
        ],
        b"",
    );
    assert_eq!(names(&result), [".dockerignore", "a", "c", "sh"]);
    // It was not copied by mistake from somewhere: another directory is another result.
    let other = shop.context("other", &[("z", "Z")]);
    let result = shop.result(
        &[
            "--build-context",
            &format!("assets={other}"),
            "--build-context",
            "base=docker-image://busybox",
            &dir,
        ],
        b"",
    );
    assert_eq!(names(&result), ["sh", "z"]);
    for (text, why) in [("assets=/no/such/place", "no such directory"), ("assets=target:x", "bake")] {
        let error = shop.build(&["--build-context", text, &dir]).failure().stderr;
        assert!(error.contains(why) && error.contains(text), "{error}");
    }
}

#[test]
fn lapstrake_build_takes_images_of_oci_layouts() {
    let shop = Shop::new();
    let image =
        shop.context("image", &[("Dockerfile", "FROM busybox\nENV WHICH=layout\nRUN echo made > /which\n")]);
    let archive = shop.path("image.tar");
    let output = format!("type=oci,name=app:v1,dest={}", archive.display());
    shop.build(&["-o", &output, &image]).success();
    let layout = shop.path("layout");
    tar::Archive::new(fs::File::open(&archive).unwrap()).unpack(&layout).unwrap();
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap();
    let dir = shop.context(
        "app",
        &[("Dockerfile", "FROM alpine:3 AS a\nRUN mkdir /out && echo $WHICH > /out/env && cat /which > /out/which\nFROM scratch\nCOPY --from=a /out /out\n")],
    );
    let path = layout.display();
    // Another store: it has nothing of the layout yet.
    let other = Shop::new();
    for reference in [format!("{path}"), format!("{path}:v1"), format!("{path}@{digest}")] {
        let named = format!("alpine:3=oci-layout://{reference}");
        let result = other.result(&["--build-context", &named, &dir], b"");
        assert_eq!((result["env"].as_str(), result["which"].as_str()), ("layout\n", "made\n"), "{reference}");
    }
    // A blob that is not what its name says.
    let third = Shop::new();
    let manifest =
        fs::read(layout.join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap())).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    let layer = layers[layers.len() - 1]["digest"].as_str().unwrap();
    let blob = layout.join("blobs/sha256").join(layer.strip_prefix("sha256:").unwrap());
    let mut bytes = fs::read(&blob).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&blob, bytes).unwrap();
    let named = format!("alpine:3=oci-layout://{path}");
    let error = third.build(&["--build-context", &named, &dir]).failure().stderr;
    assert!(error.contains(layer) && error.contains("does not match"), "{error}");
}

#[test]
fn lapstrake_build_reads_dockerfiles_and_archives_of_every_kind_from_standard_input() {
    let shop = Shop::new();
    let copy = "FROM scratch\nCOPY . /out/\n";
    let tar = archive(&[("Dockerfile", copy), ("data", "d")]);
    for (program, package) in
        [("cat", "coreutils"), ("gzip", "gzip"), ("bzip2", "bzip2"), ("xz", "xz-utils"), ("zstd", "zstd")]
    {
        require(program, package);
        let mut command = Command::new(program);
        if program != "cat" {
            command.arg("-c");
        }
        let packed = lapstrake_integration_cli::collect(&mut command, &tar).success().bytes;
        assert_eq!(names(&shop.result(&["-"], &packed)), ["Dockerfile", "data"], "{program}");
    }
    // A Dockerfile alone has nothing to copy, not even itself.
    let dockerfile =
        b"FROM busybox\nCOPY . /out/\nRUN ls /out | wc -l > /n && mkdir -p /out && mv /n /out/\n";
    assert_eq!(shop.result(&["-"], dockerfile)["n"], "0\n");
    // Beside a directory.
    let dir = shop.context("beside", &[("data", "d"), (".dockerignore", ".dockerignore\n")]);
    assert_eq!(names(&shop.result(&["-f", "-", &dir], copy.as_bytes())), ["data"]);
    // What cannot be told apart.
    let error = shop.build_with(&["-f", "x", "-"], copy.as_bytes()).failure().stderr;
    assert!(error.contains("ambiguous Dockerfile source"), "{error}");
    let error = shop.build_with(&["-f", "-", "-"], b"").failure().stderr;
    assert!(error.contains("both the context and the Dockerfile"), "{error}");
}

#[test]
fn lapstrake_build_reads_contexts_from_git_with_dockerfiles_from_anywhere() {
    let shop = Shop::new();
    let files = [
        ("Dockerfile", "FROM scratch\nCOPY data /out/\n"),
        ("other/My.Dockerfile", "FROM scratch\nCOPY data /out/other\n"),
        ("data", "from git"),
    ];
    let (_server, url) = repository(&shop.path("git"), &files);
    assert_eq!(names(&shop.result(&[&url], b"")), ["data"]);
    assert_eq!(names(&shop.result(&["-f", "other/My.Dockerfile", &url], b"")), ["other"]);
    let stdin = b"FROM scratch\nCOPY data /out/stdin\n";
    assert_eq!(names(&shop.result(&["-f", "-", &url], stdin)), ["stdin"]);
    let local = shop.context("local", &[("D", "FROM scratch\nCOPY data /out/local\n")]);
    assert_eq!(names(&shop.result(&["-f", &format!("{local}/D"), &url], b"")), ["local"]);
    // As a further context; with its history where that is asked for; and its time.
    let dir = shop.context(
        "named",
        &[("Dockerfile", "FROM busybox AS b\nARG SOURCE_DATE_EPOCH\nRUN echo $SOURCE_DATE_EPOCH > /epoch\nFROM scratch\nCOPY --from=repo /data /out/\nCOPY --from=b /epoch /out/\n")],
    );
    let named = format!("repo={url}");
    let epoch = ["--build-arg", "SOURCE_DATE_EPOCH=repo"];
    let result = shop.result(&["--build-context", &named, epoch[0], epoch[1], &dir], b"");
    assert_eq!((result["data"].as_str(), result["epoch"].as_str()), ("from git", "1580608922\n"));
    let stdin = b"FROM busybox AS b\nARG SOURCE_DATE_EPOCH\nCOPY . /all/\nRUN mkdir /out && ls -a /all > /out/all && echo $SOURCE_DATE_EPOCH > /out/epoch\nFROM scratch\nCOPY --from=b /out /out\n";
    for (keep, expected) in [("0", false), ("1", true)] {
        let keep = format!("BUILDKIT_CONTEXT_KEEP_GIT_DIR={keep}");
        let arguments =
            ["--build-arg", &keep, "--build-arg", "SOURCE_DATE_EPOCH=context", "-f", "-", url.as_str()];
        let result = shop.result(&arguments, stdin);
        assert_eq!(result["all"].lines().any(|name| name == ".git"), expected, "{keep}");
        assert_eq!(result["epoch"], "1580608922\n");
    }
}

#[test]
fn other_frontends_are_looked_for_by_their_name() {
    let daemon = Daemon::with_base();
    let dir =
        directory(&daemon.scratch(), "app", &[("Dockerfile", "# syntax=example.com/mine:1\nFROM busybox\n")]);
    let docker = daemon.docker();
    let error = docker.buildkit().run(["build", dir.to_str().unwrap()]).failure().all();
    assert!(error.contains("manifest for example.com/mine:1: cannot connect"), "{error}");
    let arguments = ["build", "--build-arg", "BUILDKIT_SYNTAX=example.com/other", dir.to_str().unwrap()];
    let error = docker.buildkit().run(arguments).failure().all();
    assert!(error.contains("manifest for example.com/other:latest: cannot connect"), "{error}");
    // To the classic builder it is a comment.
    docker.classic().run(["build", dir.to_str().unwrap()]).success();
}

#[test]
fn the_configuration_decides_who_reads_official_dockerfiles() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("buildkitd.toml");
    fs::write(&config, "[frontend.\"dockerfile.v0\"]\nservesOfficialImages = false\n").unwrap();
    let context =
        directory(dir.path(), "app", &[("Dockerfile", "# syntax=docker/dockerfile:1\nFROM busybox\n")]);
    let daemon = Daemon::with_base_and(&["--config", config.to_str().unwrap()]);
    let error = daemon.docker().buildkit().run(["build", context.to_str().unwrap()]).failure().all();
    assert!(error.contains("manifest for docker/dockerfile:1: cannot connect"), "{error}");
    Daemon::with_base().docker().buildkit().run(["build", context.to_str().unwrap()]).success();
}

#[test]
fn lapstrake_build_takes_of_a_directory_what_docker_sends_of_it() {
    let (daemon, shop) = (Daemon::with_base(), Shop::new());
    let files = [
        ("a", ""),
        ("ab", ""),
        ("b", ""),
        ("!bang", ""),
        ("dir/lose", ""),
        ("dir/keep/file.md", ""),
        ("dir/keep/deep/file", ""),
        ("dir/other/deep/file", ""),
        ("other/deep/x.md", ""),
        ("other/README.md", ""),
    ];
    let dir = shop.context("app", &files);
    for (name, target) in
        [("link", "dir/keep"), ("absolute", "/other/README.md"), ("loop", "loop2"), ("loop2", "loop")]
    {
        std::os::unix::fs::symlink(target, Path::new(&dir).join(name)).unwrap();
    }
    let prepare = |ignore: &str, copy: &str| {
        fs::write(Path::new(&dir).join(".dockerignore"), format!("{ignore}\n")).unwrap();
        fs::write(Path::new(&dir).join("Dockerfile"), format!("FROM busybox\n{copy}\n")).unwrap();
    };
    let taken = || {
        let taken = shop.path("image.tar");
        let output = format!("type=docker,name=app,dest={}", taken.display());
        shop.build(&["-o", &output, &dir]).success();
        let image = saved_image(&fs::read(&taken).unwrap());
        let regular = image.tree.iter().filter(|(_, node)| node.kind.is_file());
        let names = regular.filter_map(|(path, _)| Some(path.strip_prefix("out/")?.to_owned()));
        names.collect::<Vec<String>>()
    };
    let all = "COPY . /out/";
    let mut wrong = String::new();
    for (ignore, copy) in [
        ("*\n!dir/keep", all),
        ("dir\n!dir/keep/deep/file", all),
        ("**/deep\n!dir/keep/deep/file", all),
        ("dir/*\n!dir/keep\ndir/keep/deep", all),
        ("*/*/deep\na?\n[b-c]", all),
        ("\\!bang\n./a\ndir/../b\ndir/./keep/", all),
        ("!a\na\n!dir/keep/**\ndir", all),
        ("a\n\n  # no comment\n!a", all),
        ("dir/keep/deep", "COPY link absolute /out/"),
        ("other/*\n!other/README.md", "COPY absolute dir/k* /out/"),
        ("", "COPY --parents dir/*/deep other/README.md /out/"),
    ] {
        prepare(ignore, copy);
        let docker = daemon.docker().buildkit();
        docker.run(["build", "-q", "-t", "app", &dir]).success();
        let (sent, taken) = (out(&docker, "app"), taken());
        if sent != taken || sent.is_empty() {
            wrong.push_str(&format!("{ignore:?} {copy}\n  docker's {sent:?}\n  ours     {taken:?}\n"));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    // The client of 20.10 does not look for exceptions with wildcards below what is left out; later ones do.
    for (ignore, expected) in [
        ("**\n!**/*.md", &["dir/keep/file.md", "other/README.md", "other/deep/x.md"][..]),
        ("**\n!dir/*/deep", &["dir/keep/deep/file", "dir/other/deep/file"]),
    ] {
        prepare(ignore, all);
        assert_eq!(taken(), expected, "{ignore:?}");
    }
}
