//! A real engine, Debian's dockerd, takes our images and gives us its own; both build the same from the same.

use std::{
    fs,
    path::{Path, PathBuf},
};

use lapstrake_integration_cli::{
    BASE_IMAGE, Daemon, Docker, Dockerd, SavedImage, busybox_rootfs, differences, hand_over, saved_image,
    special_archive,
};

fn id(docker: &Docker, image: &str) -> String {
    docker.run(["image", "inspect", "--format", "{{.Id}}", image]).success().line().to_owned()
}

fn run(engine: &Dockerd, arguments: &[&str]) -> String {
    let fixed = ["run", "--rm", "--network=none"];
    engine.docker().run(fixed.iter().chain(arguments)).success().stdout
}

fn context(parent: &Path, name: &str, files: &[(&str, &[u8])]) -> PathBuf {
    let dir = parent.join(name);
    for (path, data) in files {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, data).unwrap();
    }
    dir
}

const EVERYTHING: &str = r#"FROM busybox
RUN mkdir -p /gone/deep /kept && echo old > /gone/deep/file && echo old > /kept/old && echo x > /deleted
ADD special.tar /
COPY --chown=app:extra --chmod=4750 tool.sh /opt/tool.sh
COPY plain /opt/plain
RUN rm /deleted && rm -r /gone && mkdir /gone && echo new > /gone/new && echo changed > /kept/old
RUN ln /opt/plain /opt/hard && ln -s /opt/plain /opt/soft && mkdir -m 1777 /sticky
ENV GREETING="hello world" PATH=/opt:$PATH
WORKDIR /work/sub
USER app
ENTRYPOINT ["/bin/sh", "-c", "echo $GREETING; pwd; id -un; id -g; echo \"$0 $@\""]
CMD ["first", "second"]
"#;

#[test]
fn dockerd_runs_what_was_built_here() {
    let (ours, engine) = (Daemon::with_base(), Dockerd::start());
    let dir = context(
        &ours.scratch(),
        "everything",
        &[
            ("Dockerfile", EVERYTHING.as_bytes()),
            ("special.tar", &special_archive().into_inner().unwrap()),
            ("tool.sh", b"#!/bin/sh\n"),
            ("plain", b"plain\n"),
        ],
    );
    for (name, docker) in [("classic", ours.docker().classic()), ("buildkit", ours.docker().buildkit())] {
        docker.run(["build", "-t", name, dir.to_str().unwrap()]).success();
        let loaded = hand_over(&docker, &engine.docker(), name).stdout;
        assert_eq!(loaded.trim(), format!("Loaded image: {name}:latest"));
        assert_eq!(id(&docker, name), id(&engine.docker(), name), "the id is kept");
        assert_eq!(run(&engine, &[name]), "hello world\n/work/sub\napp\n1000\nfirst second\n");
        assert_eq!(run(&engine, &[name, "other"]), "hello world\n/work/sub\napp\n1000\nother \n");
        let shell = |script: &str| run(&engine, &["--user=0", "--entrypoint=/bin/sh", name, "-c", script]);
        assert_eq!(
            shell("stat -c '%a %u:%g %n' /opt/tool.sh /opt/plain /set /set/uid /sticky /work/sub /set/fifo"),
            "4750 1000:2000 /opt/tool.sh\n644 0:0 /opt/plain\n1751 1234:4321 /set\n6711 1234:4321 /set/uid\n\
             1777 0:0 /sticky\n755 0:0 /work/sub\n640 1234:4321 /set/fifo\n"
        );
        assert_eq!(
            shell("[ /opt/plain -ef /opt/hard ] && [ /set/uid -ef /set/same ] && stat -c %h /opt/hard"),
            "2\n"
        );
        assert_eq!(
            shell("readlink /opt/soft; readlink /set/dangling; cat /opt/soft"),
            "/opt/plain\n../nowhere\nplain\n"
        );
        assert_eq!(
            shell("test -p /set/fifo && ls -A /gone && cat /kept/old && ls /deleted 2>&1 || true"),
            "new\nchanged\nls: /deleted: No such file or directory\n"
        );
        assert_eq!(
            shell("echo $PATH"),
            "/opt:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
        );
        let file = engine
            .layer_directories(name)
            .into_iter()
            .map(|layer| layer.join("set/capable"))
            .find(|file| file.exists());
        let file = file.expect("a layer has the file");
        let attribute = |attribute: &str| {
            let mut value = [0; 64];
            let length = rustix::fs::getxattr(&file, attribute, &mut value).unwrap();
            value[..length].to_vec()
        };
        assert_eq!(attribute("user.note"), b"kept");
        assert_eq!(
            attribute("security.capability"),
            [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        );
        let opaque = saved_image(&engine.docker().run(["save", name]).success().bytes);
        let beneath: Vec<_> = opaque.tree.keys().filter(|path| path.starts_with("gone")).collect();
        assert_eq!(beneath, ["gone", "gone/new"]);
    }
}

#[test]
fn what_dockerd_saves_loads_here_and_is_a_base() {
    let (ours, engine) = (Daemon::start(), Dockerd::start());
    let theirs = engine.docker().classic();
    theirs
        .run_with(["import", "--change", "CMD [\"/bin/sh\"]", "-", BASE_IMAGE], &busybox_rootfs())
        .success();
    let dockerfile = b"FROM busybox\nENV A=1\nRUN mkdir /d && echo theirs > /d/f && ln /d/f /d/h\nRUN rm /d/h\nLABEL by=dockerd\nONBUILD RUN cat /d/f > /seen\n";
    theirs.run_with(["build", "--network=host", "-t", "theirs:1", "-"], dockerfile).success();
    theirs.run(["tag", "theirs:1", "theirs:2"]).success();
    let archive = theirs.run(["save", "theirs:1", "theirs:2", BASE_IMAGE]).success().bytes;
    let docker = ours.docker();
    let loaded = docker.run_with(["load"], &archive).success();
    for name in ["theirs:1", "theirs:2", BASE_IMAGE] {
        assert!(loaded.stdout.contains(&format!("Loaded image: {name}\n")), "{}", loaded.stdout);
        assert_eq!(id(&docker, name), id(&theirs, name), "{name} keeps its id");
    }
    let history = |docker: &Docker| {
        docker
            .run(["history", "--no-trunc", "--format", "{{.CreatedBy}}|{{.Size}}|{{.Comment}}", "theirs:1"])
            .success()
            .stdout
    };
    assert_eq!(history(&docker), history(&theirs));
    for docker in [docker.classic(), docker.buildkit()] {
        docker
            .run_with(["build", "-t", "ours", "-"], b"FROM theirs:1\nRUN cat /d/f /seen > /both\n")
            .success();
        hand_over(&docker, &theirs, "ours");
        assert_eq!(
            run(&engine, &["ours", "/bin/sh", "-c", "cat /both; echo $A; ls /d"]),
            "theirs\ntheirs\n1\nf\n"
        );
        let label = theirs
            .run(["image", "inspect", "--format", "{{.Config.Labels.by}} {{len .RootFS.Layers}}", "ours"])
            .success();
        assert_eq!(label.line(), "dockerd 5");
    }
    // gzip too.
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, &archive).unwrap();
    let other = Daemon::start();
    other.docker().run_with(["load"], &packed.finish().unwrap()).success();
    assert_eq!(id(&other.docker(), "theirs:2"), id(&theirs, "theirs:2"));
}

const COMMON: &str = r#"ARG GLOBAL=7
FROM busybox AS make
ARG GLOBAL
RUN mkdir -p /out/dir && echo made $GLOBAL > /out/dir/f && ln -s f /out/dir/l && ln /out/dir/f /out/dir/h && chmod 4755 /out/dir/f && chown 1000:2000 /out/dir
FROM busybox
LABEL maintainer="somebody <a@b.test>" two="two words"
ARG WHO=nobody
ENV PATH=/opt/bin:$PATH GREETING="hello $WHO"
WORKDIR /work/sub
COPY --chown=app:extra src/ ./src/
COPY src/a.txt src/b*.txt /flat/
COPY --from=make /out/ /made/
ADD special.tar /unpacked/
COPY special.tar /packed/
WORKDIR relative
RUN rm /bin/vi && rm -rf /usr/bin && mkdir /usr/bin && echo $WHO > who && chmod 600 who
RUN ["/bin/sh", "-c", "echo exec form > /exec && ln /exec /exec2"]
RUN true
EXPOSE 80 53/udp
VOLUME /data /more
USER app
STOPSIGNAL SIGINT
HEALTHCHECK --interval=5s --retries=2 CMD true
SHELL ["/bin/sh", "-ec"]
ONBUILD RUN echo later
ENTRYPOINT ["/bin/echo"]
CMD made with shell
"#;

fn both(buildkit: bool) -> (SavedImage, SavedImage) {
    let (ours, engine) = (Daemon::with_base(), Dockerd::start());
    let of = |docker: Docker| if buildkit { docker.buildkit() } else { docker.classic() };
    let (mine, theirs) = (of(ours.docker()), of(engine.docker()));
    hand_over(&mine, &theirs, BASE_IMAGE);
    let dir = context(
        &ours.scratch(),
        "common",
        &[
            ("Dockerfile", COMMON.as_bytes()),
            ("special.tar", &special_archive().into_inner().unwrap()),
            ("src/a.txt", b"A"),
            ("src/b1.txt", b"B1"),
            ("src/b2.txt", b"B2"),
            ("src/deep/er/c.txt", b"C"),
            ("src/ignored.log", b"never"),
            (".dockerignore", b"**/*.log\n"),
        ],
    );
    std::os::unix::fs::symlink("../a.txt", dir.join("src/deep/link")).unwrap();
    let images: Vec<_> = [&mine, &theirs]
        .iter()
        .map(|docker| {
            let arguments =
                ["build", "--network=host", "--build-arg", "WHO=me", "--label", "cli=1", "-t", "common"];
            docker.run(arguments.iter().copied().chain([dir.to_str().unwrap()])).success();
            saved_image(&docker.run(["save", "common"]).success().bytes)
        })
        .collect();
    let [mine, theirs]: [SavedImage; 2] = images.try_into().unwrap();
    (mine.without_user_attributes(), theirs)
}

/// What the history says in today's BuildKit, and said in 0.8, which is dockerd's: a flag of COPY is told, ARG tells the value that it has,
/// EXPOSE and HEALTHCHECK print another type of Go's.
const REWORDED: &[(&str, &str)] = &[
    ("ARG WHO=me|buildkit.dockerfile.v0|true", "ARG WHO=nobody|buildkit.dockerfile.v0|true"),
    (
        "COPY --chown=app:extra src/ ./src/ # buildkit|buildkit.dockerfile.v0|false",
        "COPY src/ ./src/ # buildkit|buildkit.dockerfile.v0|false",
    ),
    (
        "EXPOSE [53/udp 80/tcp]|buildkit.dockerfile.v0|true",
        "EXPOSE map[53/udp:{} 80/tcp:{}]|buildkit.dockerfile.v0|true",
    ),
    (
        "HEALTHCHECK {Test:[CMD-SHELL true] Interval:5s Timeout:0s StartPeriod:0s StartInterval:0s Retries:2}\
         |buildkit.dockerfile.v0|true",
        "HEALTHCHECK &{[\"CMD-SHELL\" \"true\"] \"5s\" \"0s\" \"0s\" '\\x02'}|buildkit.dockerfile.v0|true",
    ),
];

#[test]
fn both_buildkits_make_the_same_of_a_dockerfile() {
    let (mine, theirs) = both(true);
    let differences = differences(&mine.tree, &theirs.tree);
    assert!(differences.is_empty(), "ours | dockerd's\n{}", differences.join("\n"));
    assert_eq!(mine.comparable(), theirs.comparable());
    let mut old = mine.history();
    for (today, before) in REWORDED {
        assert_eq!(old.iter().filter(|line| line == today).count(), 1, "{today}: {old:?}");
        old.iter_mut().filter(|line| line == today).for_each(|line| *line = (*before).to_owned());
    }
    assert_eq!(old, theirs.history());
}

#[test]
fn a_classic_build_makes_the_same_as_the_classic_builder() {
    let (mine, theirs) = both(false);
    let differences = differences(&mine.tree, &theirs.tree);
    assert!(differences.is_empty(), "ours | dockerd's\n{}", differences.join("\n"));
    assert_eq!(mine.history(), theirs.history());
    let mut theirs = theirs.comparable();
    // Of containers and intermediate images that were never here (docs/decisions/0008).
    for name in ["container", "container_config", "docker_version"] {
        assert!(theirs.remove(name).is_some(), "{name}");
    }
    let image = theirs["config"].as_object_mut().unwrap().remove("Image").unwrap();
    assert!(image.as_str().unwrap().starts_with("sha256:"), "{image}");
    assert_eq!(mine.comparable(), theirs);
}
