//! The classic builder, word by word beside Moby's: the same docker CLI, with `DOCKER_BUILDKIT=0`, builds the same Dockerfiles with
//! Debian's dockerd and with ours.

mod cases;

use std::{
    collections::HashMap,
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use cases::{BAD, Case, GOOD, REWORDED, case, case_with};
use lapstrake_integration_cli::{BASE_IMAGE, Daemon, Docker, Dockerd, Output, Registry, saved_image};
use serde_json::Value;

fn context(scratch: &Path) -> std::path::PathBuf {
    let dir = scratch.join("context");
    fs::create_dir_all(dir.join("src/deep")).unwrap();
    fs::write(dir.join("a.txt"), "hi\n").unwrap();
    fs::write(dir.join("src/b"), "b\n").unwrap();
    fs::write(dir.join("src/deep/c"), "c\n").unwrap();
    fs::write(dir.join("ignored"), "never\n").unwrap();
    std::os::unix::fs::symlink("../../a.txt", dir.join("src/deep/link")).unwrap();
    std::os::unix::fs::symlink("nowhere", dir.join("src/deep/broken")).unwrap();
    let mut archive = tar::Builder::new(fs::File::create(dir.join("special.tar")).unwrap());
    let mut header = tar::Header::new_ustar();
    header.set_size(4);
    header.set_mode(0o640);
    archive.append_data(&mut header, "packed", &b"1234"[..]).unwrap();
    archive.finish().unwrap();
    fs::write(dir.join(".dockerignore"), "ignored\nDockerfile.*\n").unwrap();
    dir
}

/// Each id by when it was first seen.
#[derive(Default)]
struct Names(HashMap<String, usize>);

impl Names {
    fn replace(&mut self, text: &str) -> String {
        let mut replaced = String::new();
        for line in text.split_inclusive('\n') {
            // What the client says of its own upload.
            if line.contains("Sending build context") {
                continue;
            }
            for word in line.split_inclusive([' ', '\n']) {
                let bare = word.trim_end();
                let hex = bare.strip_prefix("sha256:").unwrap_or(bare);
                if (hex.len() == 12 || hex.len() == 64) && hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    let next = self.0.len();
                    let number = *self.0.entry(hex[..12].to_owned()).or_insert(next);
                    replaced.push_str(&word.replace(bare, &format!("<{number}>")));
                } else {
                    replaced.push_str(word);
                }
            }
        }
        replaced
    }
}

fn build(docker: &Docker, case: &Case, tag: &str, dir: &Path) -> Output {
    build_text(docker, case, case.dockerfile, tag, dir)
}

fn build_text(docker: &Docker, case: &Case, dockerfile: &str, tag: &str, dir: &Path) -> Output {
    let file = dir.join(format!("Dockerfile.{}", case.name));
    fs::write(&file, dockerfile).unwrap();
    let fixed = ["build", "--network=host", "-t", tag, "-f", file.to_str().unwrap()];
    docker.run(fixed.iter().chain(case.arguments).copied().chain([dir.to_str().unwrap()]))
}

/// What a build said and how it ended, ids replaced.
fn said(output: &Output) -> String {
    let mut names = Names::default();
    // Red is what went to standard error; where it begins and ends depends on how a process writes.
    let stdout = output.stdout.replace("\u{1b}[91m", "").replace("\u{1b}[0m", "");
    let stdout = names.replace(&stdout);
    format!("{stdout}stderr: {}exit code {}\n", names.replace(&output.stderr), output.code)
}

/// An image's history, and what of its configuration is the image's.
fn made(docker: &Docker, tag: &str) -> (Vec<String>, Vec<String>) {
    let config = saved_image(&docker.run(["save", tag]).success().bytes).config;
    let history = config["history"].as_array().unwrap().iter().map(|entry| {
        let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        format!(
            "{}|{}|{}|{}",
            text("created_by"),
            text("author"),
            text("comment"),
            entry["empty_layer"] == true
        )
    });
    let history = history.collect();
    let mut own = config["config"].clone();
    // `Image` names an intermediate image; the rest is there or not when it is empty.
    own.as_object_mut().unwrap().retain(|name, value| {
        name != "Image"
            && !matches!(value, Value::Null | Value::Bool(false))
            && value.as_str() != Some("")
            && value.as_array().is_none_or(|items| !items.is_empty())
            && value.as_object().is_none_or(|fields| !fields.is_empty())
    });
    let mut own: Vec<String> =
        own.as_object().unwrap().iter().map(|(name, value)| format!("{name}: {value}")).collect();
    own.sort();
    (history, own)
}

fn two_engines() -> (Daemon, Dockerd, Docker, Docker) {
    let (ours, engine) = (Daemon::with_base(), Dockerd::start());
    let (mine, theirs) = (ours.docker().classic(), engine.docker().classic());
    let archive = mine.run(["save", BASE_IMAGE]).success().bytes;
    theirs.run_with(["load"], &archive).success();
    (ours, engine, mine, theirs)
}

/// What differs, case by case: all of it is told at the end.
#[derive(Default)]
struct Differences(String);

impl Differences {
    fn compare(&mut self, what: &str, ours: &str, theirs: &str) {
        if ours != theirs {
            self.0.push_str(&format!("=== {what}: ours\n{ours}\n=== {what}: dockerd's\n{theirs}\n"));
        }
    }

    #[track_caller]
    fn none(&self) {
        assert!(self.0.is_empty(), "{}", self.0);
    }
}

/// The ids of the states after the steps.
fn states(output: &Output) -> Vec<&str> {
    output.stdout.lines().filter(|line| line.starts_with(" ---> ") && line.len() == 18).collect()
}

#[test]
fn transcripts_histories_and_configs_are_those_of_moby() {
    let (ours, _engine, mine, theirs) = two_engines();
    let dir = context(&ours.scratch());
    let mut differences = Differences::default();
    for case in GOOD {
        let (first, their_first) = (build(&mine, case, "t", &dir), build(&theirs, case, "t", &dir));
        differences.compare(case.name, &said(&first), &said(&their_first));
        if first.code != 0 || their_first.code != 0 {
            continue;
        }
        let (image, their_image) = (made(&mine, "t"), made(&theirs, "t"));
        differences.compare(
            &format!("{}, history", case.name),
            &image.0.join("\n"),
            &their_image.0.join("\n"),
        );
        differences.compare(
            &format!("{}, config", case.name),
            &image.1.join("\n"),
            &their_image.1.join("\n"),
        );
        let (again, their_again) = (build(&mine, case, "t", &dir), build(&theirs, case, "t", &dir));
        differences.compare(&format!("{}, again", case.name), &said(&again), &said(&their_again));
        assert_eq!(made(&mine, "t"), image, "{}: again", case.name);
        if !case.arguments.contains(&"--no-cache") {
            assert_eq!(states(&again), states(&first), "{}: ids stay", case.name);
        }
    }
    differences.none();
}

#[test]
fn failures_are_those_of_moby() {
    let (ours, _engine, mine, theirs) = two_engines();
    let registry = Registry::start();
    let dir = context(&ours.scratch());
    let mut differences = Differences::default();
    let cases = BAD
        .iter()
        .map(|case| (case, "", ""))
        .chain(REWORDED.iter().map(|(case, old, new)| (case, *old, *new)));
    for (case, old, new) in cases {
        let here = |text: &str| text.replace("REGISTRY", &registry.host());
        let dockerfile = here(case.dockerfile);
        for time in ["first", "again"] {
            let failing = |docker| build_text(docker, case, &dockerfile, "t", &dir).failure();
            let (said_here, mut said_there) = (said(&failing(&mine)), said(&failing(&theirs)));
            if !old.is_empty() {
                assert!(said_there.contains(&here(old)), "{}: {said_there}", case.name);
                said_there = said_there.replace(&here(old), &here(new));
            }
            let said_here = without_excerpt(&said_here);
            differences.compare(&format!("{}, {time}", case.name), &said_here, &said_there);
        }
    }
    differences.none();
}

/// What we say of a Dockerfile that cannot be read, without the lines at fault: Moby does not show them.
fn without_excerpt(text: &str) -> String {
    const FRAME: &str = "--------------------";
    for line_end in ["\n", "\\n"] {
        let first = text.find(&format!("{line_end}{FRAME}{line_end}"));
        if let (Some(first), Some(last)) = (first, text.rfind(FRAME)) {
            let start = text[..first].rfind(line_end).expect("a line with the place is above the frame");
            return format!("{}{}", &text[..start], &text[last + FRAME.len()..]);
        }
    }
    text.to_owned()
}

/// Faults that a client meets only without the docker CLI, with their status.
#[test]
fn faults_before_the_first_step_have_mobys_status() {
    let (ours, engine, _mine, _theirs) = two_engines();
    let archive = |files: &[(&str, &str)]| {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, data) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, name, data.as_bytes()).unwrap();
        }
        archive.into_inner().unwrap()
    };
    let mut differences = Differences::default();
    for (name, query, files) in [
        ("missing", "", &[("a", "1")][..]),
        ("missing elsewhere", "dockerfile=sub/D", &[("a", "1")]),
        ("outside", "dockerfile=../D", &[("a", "1")]),
        ("nothing", "", &[]),
        ("empty", "", &[("Dockerfile", "")]),
        ("empty elsewhere", "dockerfile=D", &[("D", "")]),
        ("no instruction", "", &[("Dockerfile", "# nothing\n")]),
        ("no stage", "", &[("Dockerfile", "RUN true\n")]),
        ("no target", "target=x", &[("Dockerfile", "FROM busybox\n")]),
    ] {
        let answer = |socket: PathBuf| post_build(&socket, query, &archive(files));
        let here = without_excerpt(&answer(ours.socket()));
        differences.compare(name, &here, &answer(engine.socket()));
    }
    differences.none();
}

/// What no directory of a test holds: hard links, in another order than Docker's client walks; modes without the file's type, as docker-py sends
/// them; owners. And a stage's files with owners that this machine names, and hard links.
#[test]
fn hashes_of_unusual_files_are_those_of_moby() {
    let (ours, engine, mine, theirs) = two_engines();
    const DOCKERFILE: &str = "FROM busybox AS made\nRUN mkdir /m && echo a > /m/a && ln /m/a /m/b && ln -s a /m/l && chown 1000:2000 /m/a \
        && chown 65534:1 /m && chmod 6711 /m/a && mkfifo /m/p\n\
        FROM busybox\nCOPY a /1/\nCOPY h /2/\nCOPY z/ /3/\nCOPY . /4/\nCOPY z/h2 a /5/\nCOPY --from=made /m /6/\nCOPY --from=made /m/b /m/l /7/\n";
    let mut differences = Differences::default();
    for (name, kind) in [("typed", 0o100_000), ("bare", 0)] {
        let mut archive = tar::Builder::new(Vec::new());
        let header = |entry, mode, size: usize| {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(entry);
            header.set_mode(mode);
            header.set_size(size as u64);
            header.set_uid(1000);
            header.set_gid(7);
            header
        };
        let directory = if kind == 0 { 0o755 } else { 0o40_755 };
        let file = |mode, size| header(tar::EntryType::Regular, kind | mode, size);
        archive.append_data(&mut file(0o644, DOCKERFILE.len()), "Dockerfile", DOCKERFILE.as_bytes()).unwrap();
        archive.append_data(&mut file(0o4755, 2), "a", &b"a\n"[..]).unwrap();
        let link = || header(tar::EntryType::Link, kind | 0o4755, 0);
        archive.append_link(&mut link(), "h", "a").unwrap();
        archive.append_data(&mut header(tar::EntryType::Directory, directory, 0), "z/", &b""[..]).unwrap();
        archive.append_link(&mut link(), "z/h2", "a").unwrap();
        archive.append_data(&mut file(0o600, 0), "z/none", &b""[..]).unwrap();
        let body = archive.into_inner().unwrap();
        let built = |socket: PathBuf, docker: &Docker| {
            let query = format!("t={name}&networkmode=host");
            let answer = post_build(&socket, &query, &body);
            assert!(answer.contains("Successfully built"), "{answer}");
            made(docker, name).0.join("\n")
        };
        differences.compare(name, &built(ours.socket(), &mine), &built(engine.socket(), &theirs));
    }
    differences.none();
}

/// Status and body of `POST /build` with a tar archive.
fn post_build(socket: &Path, query: &str, body: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    let head = format!(
        "POST /v1.41/build?{query} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/x-tar\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split_whitespace().nth(1).unwrap();
    format!("{status} {}\n", body.trim_end())
}

const IDLE: &str = "FROM busybox\nRUN true\nENV A=1\nWORKDIR /\nRUN date +%s%N > /when\nRUN true\n";

#[test]
fn steps_that_change_nothing_are_cached_by_an_image_too() {
    let (ours, _engine, mine, theirs) = two_engines();
    let dir = context(&ours.scratch());
    for (maker, docker) in [("ours", &mine), ("dockerd's", &theirs)] {
        build(docker, &case("idle", IDLE), "idle", &dir).success();
        let rootfs = |docker: &Docker, name| {
            saved_image(&docker.run(["save", name]).success().bytes).config["rootfs"].clone()
        };
        let made = rootfs(docker, "idle");
        assert_eq!(made["diff_ids"].as_array().unwrap().len(), 2, "{maker}: {made}");
        let (_other, clean) = fresh(docker, &["idle"]);
        let all = build(&clean, &case_with("idle", IDLE, &["--cache-from", "idle"]), "again", &dir).success();
        assert_eq!(hits(&all), 5, "{maker}: {}", all.stdout);
        assert_eq!(rootfs(&clean, "again"), made, "{maker}");
        // Up to where nothing was changed yet, and then on its own.
        let other: &'static str = Box::leak(IDLE.replace("date", "echo 1; date").into_boxed_str());
        let some =
            build(&clean, &case_with("idle", other, &["--cache-from", "idle"]), "other", &dir).success();
        assert_eq!(hits(&some), 3, "{maker}: {}", some.stdout);
        assert_eq!(rootfs(&clean, "other")["diff_ids"].as_array().unwrap().len(), 2, "{maker}");
    }
}

const CACHED: &str = r#"FROM busybox AS make
COPY a.txt /in
RUN cat /in > /out && date +%s%N >> /out
FROM busybox
ENV A=1
COPY src /src
RUN echo final > /final && date +%s%N >> /final
COPY --from=make /out /out
CMD ["/bin/true"]
"#;

/// How often the transcript says so.
fn hits(output: &Output) -> usize {
    output.stdout.matches(" ---> Using cache").count()
}

/// A fresh engine with images of another one, and no cache.
fn fresh(from: &Docker, images: &[&str]) -> (Daemon, Docker) {
    let other = Daemon::start();
    let docker = other.docker().classic();
    let archive = from.run(["save", BASE_IMAGE].iter().chain(images)).success().bytes;
    docker.run_with(["load"], &archive).success();
    (other, docker)
}

#[test]
fn an_ordinary_image_is_a_cache_up_to_the_first_change() {
    let (ours, _engine, mine, theirs) = two_engines();
    let dir = context(&ours.scratch());
    // Images of Moby's own making serve as well as ours.
    for (maker, docker) in [("ours", &mine), ("dockerd's", &theirs)] {
        let make = Case { name: "make", dockerfile: CACHED, arguments: &["--target", "make"] };
        build(docker, &make, "make", &dir).success();
        build(docker, &case("whole", CACHED), "whole", &dir).success();
        let (_other, clean) = fresh(docker, &["make", "whole"]);
        let from = &["--cache-from", "make", "--cache-from", "whole"];
        let all = build(&clean, &case_with("whole", CACHED, from), "again", &dir).success();
        assert_eq!(hits(&all), 7, "{maker}: {}", all.stdout);
        assert_eq!(
            saved_image(&clean.run(["save", "again"]).success().bytes).config["rootfs"],
            saved_image(&docker.run(["save", "whole"]).success().bytes).config["rootfs"],
            "{maker}"
        );
        let changed = CACHED.replace("echo final", "echo other");
        let changed: &'static str = Box::leak(changed.into_boxed_str());
        let some = build(&clean, &case_with("changed", changed, from), "changed", &dir).success();
        assert_eq!(hits(&some), 4, "{maker}: {}", some.stdout);
        // Without having been named, no image counts: it may be anybody's.
        let (_other, clean) = fresh(docker, &["make", "whole"]);
        let none = build(&clean, &case("whole", CACHED), "own", &dir).success();
        assert_eq!(hits(&none), 0, "{maker}: {}", none.stdout);
    }
}

#[test]
fn an_image_that_is_not_what_it_says_gives_no_more_than_its_layers() {
    let (ours, _engine, mine, _theirs) = two_engines();
    let dir = context(&ours.scratch());
    let file = "FROM busybox\nENV A=good\nRUN echo run > /run\n";
    build(&mine, &case("file", file), "good", &dir).success();
    // The same history with another configuration: the result has the Dockerfile's.
    let archive = mine.run(["save", "good"]).success().bytes;
    let poisoned = |change: &dyn Fn(&mut Value)| {
        let mut config = saved_image(&archive).config;
        change(&mut config);
        let (other, clean) = fresh(&mine, &[]);
        let image = repacked(&archive, &config);
        clean.run_with(["load"], &image).success();
        let output =
            build(&clean, &case_with("file", file, &["--cache-from", "good"]), "built", &dir).success();
        let config = saved_image(&clean.run(["save", "built"]).success().bytes).config;
        drop(other);
        (hits(&output), config["config"]["Env"].to_string(), config["architecture"].to_string())
    };
    let (found, env, _) = poisoned(&|config| config["config"]["Env"] = serde_json::json!(["A=evil"]));
    assert_eq!(found, 2);
    assert!(env.contains("A=good") && !env.contains("evil"), "{env}");
    // Another base, another platform, another number of layers than the history tells: nothing is taken.
    let (found, ..) = poisoned(&|config| config["history"][0]["comment"] = "another base".into());
    assert_eq!(found, 0);
    let (found, _, architecture) = poisoned(&|config| config["architecture"] = "s390x".into());
    assert_eq!((found, architecture.contains("s390x")), (0, false));
    let (found, ..) = poisoned(&|config| config["history"][1]["empty_layer"] = false.into());
    assert_eq!(found, 0);
}

/// A docker archive with another config.
fn repacked(archive: &[u8], config: &Value) -> Vec<u8> {
    use std::io::Read as _;
    let mut out = tar::Builder::new(Vec::new());
    let mut read = tar::Archive::new(archive);
    let mut add = |name: &str, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        out.append_data(&mut header, name, data).unwrap();
    };
    for entry in read.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_string_lossy().into_owned();
        let mut data = Vec::new();
        entry.read_to_end(&mut data).unwrap();
        if name == "manifest.json" {
            let mut manifest: Value = serde_json::from_slice(&data).unwrap();
            manifest[0]["Config"] = "config.json".into();
            add("manifest.json", manifest.to_string().as_bytes());
        } else if name.ends_with("layer.tar") || name.starts_with("blobs/") {
            add(&name, &data);
        }
    }
    add("config.json", config.to_string().as_bytes());
    out.into_inner().unwrap()
}
