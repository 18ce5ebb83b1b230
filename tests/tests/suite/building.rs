//! Dockerfiles, and what becomes of them.

use lapstrake_builder_cache::PruneRequest;
use lapstrake_builder_dockerfile::Dialect;
use lapstrake_builder_engine::{CacheSource, Input};
use lapstrake_tests::{Context, Workbench};

#[tokio::test(flavor = "multi_thread")]
async fn run_copy_and_config_end_up_in_the_image() {
    let bench = Workbench::new();
    let context = Context::new(
        "FROM busybox\n\
         ENV GREETING=hello\n\
         WORKDIR /app\n\
         COPY a.txt b/ ./\n\
         RUN echo \"$GREETING from $(pwd)\" > said && cat said\n\
         USER app\n\
         CMD [\"cat\", \"said\"]\n",
    )
    .file("a.txt", "A")
    .file("b/c.txt", "C");
    let built = bench.build(context, "app").await.unwrap();
    assert!(built.output().contains("hello from /app"), "{}", built.output());
    assert_eq!(bench.read("app", "app/said"), "hello from /app\n");
    assert_eq!(bench.read("app", "app/a.txt"), "A");
    assert_eq!(bench.read("app", "app/c.txt"), "C");
    let config = bench.config("app").config;
    assert_eq!(config.user, "app");
    assert_eq!(config.working_dir, "/app");
    assert_eq!(config.cmd.as_deref(), Some(&["cat".to_owned(), "said".to_owned()][..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_build_runs_nothing_and_gives_the_same_image() {
    let bench = Workbench::new();
    let context = || {
        Context::new("FROM busybox\nCOPY a /\nRUN cat /proc/sys/kernel/random/uuid > /stamp\n")
            .file("a", "same")
    };
    let first = bench.build(context(), "first").await.unwrap();
    let second = bench.build(context(), "second").await.unwrap();
    assert_eq!(bench.read("first", "stamp"), bench.read("second", "stamp"));
    assert!(second.cached().iter().any(|name| name.contains("random/uuid")), "{:?}", second.cached());
    assert_eq!(bench.config("first").rootfs, bench.config("second").rootfs);
    drop(first);
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_content_is_noticed() {
    let bench = Workbench::new();
    let context = |data: &str| Context::new("FROM busybox\nCOPY a /\nRUN cat /a\n").file("a", data);
    bench.build(context("old"), "app").await.unwrap();
    let second = bench.build(context("new"), "app").await.unwrap();
    assert!(second.output().contains("new"));
    assert_eq!(bench.read("app", "a"), "new");
}

#[tokio::test(flavor = "multi_thread")]
async fn stages_copy_from_each_other_and_unused_ones_are_not_built() {
    let bench = Workbench::new();
    let context = Context::new(
        "FROM busybox AS tools\nRUN echo made > /made\n\
         FROM busybox AS unused\nRUN false\n\
         FROM scratch\nCOPY --from=tools /made /final\n",
    );
    bench.build(context, "app").await.unwrap();
    assert_eq!(bench.read("app", "final"), "made\n");
    assert!(!bench.has("app", "bin"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_run_tells_its_command_and_exit_code() {
    let bench = Workbench::new();
    let error = bench.build(Context::new("FROM busybox\nRUN exit 42\n"), "app").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "process \"/bin/sh -c exit 42\" did not complete successfully: exit code: 42"
    );
    assert_eq!(error.failed_process().map(|(_, code, _)| code), Some(42));
    assert!(bench.stores.images.find("app").is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_files_are_gone_from_the_layers_above() {
    let bench = Workbench::new();
    let context = Context::new("FROM busybox\nRUN mkdir /d && touch /d/a /d/b\nRUN rm /d/a && rm -r /usr\n");
    bench.build(context, "app").await.unwrap();
    assert!(!bench.has("app", "d/a"));
    assert!(bench.has("app", "d/b"));
    assert!(!bench.has("app", "usr"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_mount_is_kept_between_builds_and_stays_out_of_the_image() {
    let bench = Workbench::new();
    let context = |n: u32| {
        Context::new(&format!(
            "FROM busybox\nRUN --mount=type=cache,target=/cache echo {n} >> /cache/log && cp /cache/log /log\n"
        ))
    };
    bench.build(context(1), "app").await.unwrap();
    bench.build(context(2), "app").await.unwrap();
    assert_eq!(bench.read("app", "log"), "1\n2\n");
    assert!(!bench.has("app", "cache/log"));
}

/// CVE-2024-9675.
#[tokio::test(flavor = "multi_thread")]
async fn a_cache_mounts_id_is_no_path() {
    let bench = Workbench::new();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("theirs"), "secret").unwrap();
    let path = outside.path().to_str().unwrap();
    for id in [path.to_owned(), format!("{}{path}", "../".repeat(16)), "../..".to_owned(), "..".to_owned()] {
        let context = Context::new(&format!(
            "FROM busybox\nRUN --mount=type=cache,id={id},target=/c ls -A /c > /listed && touch /c/ours\n"
        ));
        bench.build(context, "app").await.unwrap();
        assert_eq!(bench.read("app", "listed"), "", "{id}");
    }
    let there: Vec<_> =
        std::fs::read_dir(outside.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(there, ["theirs"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_taken_as_it_is() {
    let bench = Workbench::new();
    let context = || {
        Context::new("FROM busybox\nCOPY . /ctx/\n")
            .file(".dockerignore", "*.log\n.dockerignore\nDockerfile\n")
            .file("Dockerfile.dockerignore", "b.txt\n")
            .file("a.log", "")
            .file("b.txt", "")
    };
    // Whoever sent it left out what they wanted.
    bench.build(context(), "app").await.unwrap();
    let is_there = |path: &str| bench.has("app", &format!("ctx/{path}"));
    for path in [".dockerignore", "Dockerfile", "a.log", "b.txt"] {
        assert!(is_there(path), "{path}");
    }
    // Clients of the classic builder send two files that the builder needs, and the builder takes them out.
    let mut request = bench.request(context(), "app").await.unwrap();
    let Input::Dockerfile { options, .. } = &mut request.input else { panic!("a Dockerfile") };
    options.dialect = Dialect::Classic;
    bench.run(request).await.1.unwrap();
    assert!(is_there("a.log") && is_there("b.txt"));
    assert!(!is_there(".dockerignore") && !is_there("Dockerfile"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_image_has_is_collected_and_the_cache_stays() {
    let bench = Workbench::new();
    let context = || Context::new("FROM busybox\nRUN cat /proc/sys/kernel/random/uuid > /stamp\n");
    bench.build(context(), "app").await.unwrap();
    let stamp = bench.read("app", "stamp");
    let id = bench.stores.images.find("app").unwrap().id;
    bench.stores.images.delete_image(&id).unwrap();
    bench.collector.collect().unwrap();
    bench.build(context(), "app").await.unwrap();
    assert_eq!(bench.read("app", "stamp"), stamp);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_carries_its_cache_to_a_builder_that_has_none() {
    let bench = Workbench::new();
    let context = || {
        Context::new(
            "FROM busybox AS make\nCOPY src /src\nRUN cat /src > /out\n\
             FROM busybox\nCOPY --from=make /out /out\nRUN cat /proc/sys/kernel/random/uuid > /stamp\nENV A=1\nRUN cat /proc/sys/kernel/random/uuid > /second\n",
        )
        .file("src", "source")
    };
    let mut request = bench.request(context(), "app").await.unwrap();
    request.inline_cache = true;
    bench.run(request).await.1.unwrap();
    assert!(bench.config("app").extra.contains_key("moby.buildkit.cache.v0"));
    let stamp = bench.read("app", "second");
    bench.engine.cache().prune(&PruneRequest { all: true, ..PruneRequest::default() }).unwrap();
    bench.collector.collect().unwrap();

    let mut request = bench.request(context(), "again").await.unwrap();
    request.cache_from = vec![CacheSource::parse("app").unwrap()];
    let again = bench.run(request).await.1.unwrap();
    assert_eq!(bench.read("again", "second"), stamp, "{:?}", again.executed());

    // And what was imported is kept.
    let third = bench.build(context(), "third").await.unwrap();
    assert_eq!(bench.read("third", "second"), stamp, "{:?}", third.executed());

    // Without it, the steps run again.
    bench.engine.cache().prune(&PruneRequest { all: true, ..PruneRequest::default() }).unwrap();
    bench.build(context(), "fresh").await.unwrap();
    assert_ne!(bench.read("fresh", "second"), stamp);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_may_name_a_locked_cache_twice() {
    let bench = Workbench::new();
    let context = Context::new(
        "FROM busybox\nRUN --mount=type=cache,id=a,target=/a,sharing=locked \
         --mount=type=cache,id=a,target=/b,sharing=locked touch /a/x && ls /b > /listed\n",
    );
    bench.build(context, "app").await.unwrap();
    assert_eq!(bench.read("app", "listed"), "x\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_cache_is_used_by_one_step_at_a_time() {
    let bench = Workbench::new();
    // Whoever finds the other's mark did not have the directory alone.
    let step = |n: u32| {
        format!(
            "FROM busybox AS s{n}\nRUN --mount=type=cache,id=l,target=/c,sharing=locked \
             test ! -e /c/mark && touch /c/mark && sleep 0.2 && rm /c/mark && touch /done{n}\n"
        )
    };
    let stages: String = (0..4).map(step).collect();
    let copies: String = (0..4).map(|n| format!("COPY --from=s{n} /done{n} /\n")).collect();
    bench.build(Context::new(&format!("{stages}FROM scratch\n{copies}")), "app").await.unwrap();
}
