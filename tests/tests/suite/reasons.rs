//! Why steps ran, and what the history keeps of it.

use std::collections::BTreeMap;

use lapstrake_builder_cache::PruneRequest;
use lapstrake_builder_dockerfile::options::NoCache;
use lapstrake_builder_engine::{BuildRequest, Input};
use lapstrake_builder_history::{BuildStatus, MissReason, describe};
use lapstrake_builder_progress::Event;
use lapstrake_layerstore_oci::Reference;
use lapstrake_tests::{Built, Context, Workbench};

/// What a build's progress says of misses, by vertex.
fn remarks(built: &Built) -> Vec<String> {
    let names: BTreeMap<_, _> = built
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Vertex(vertex) => Some((vertex.digest.clone(), vertex.name.clone())),
            _ => None,
        })
        .collect();
    let remark = |event: &Event| match event {
        Event::Status(status) => {
            let text = status.id.strip_prefix("cache miss: ")?;
            assert!(status.completed.is_some() && status.total == 0);
            Some(format!("{}: {text}", names[&status.vertex]))
        }
        _ => None,
    };
    let mut remarks: Vec<String> = built.events.iter().filter_map(remark).collect();
    remarks.sort();
    remarks
}

/// What the history says of the steps that ran in the latest build, as `name: reasons`.
async fn recorded(bench: &Workbench) -> Vec<String> {
    bench.history.settle().await;
    let latest = bench.history.builds().unwrap().remove(0);
    let record = bench.history.build(&latest.id).unwrap();
    let mut lines: Vec<String> = record
        .vertices
        .iter()
        .filter(|vertex| !vertex.reasons.is_empty())
        .map(|vertex| format!("{}: {}", vertex.name, describe(&vertex.reasons)))
        .collect();
    lines.sort();
    lines
}

const DOCKERFILE: &str =
    "FROM busybox\nARG VERSION=1\nCOPY src /src\nRUN echo $VERSION > /version\nRUN true\n";

fn context(main: &str) -> Context {
    Context::new(DOCKERFILE).file("src/main.c", main).file("src/lib.c", "lib")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_build_says_nothing_and_the_history_that_it_was_the_first() {
    let bench = Workbench::new();
    let built = bench.build(context("1"), "app").await.unwrap();
    assert_eq!(remarks(&built), [""; 0]);
    let recorded = recorded(&bench).await;
    assert!(recorded.contains(&"[2/4] COPY src /src: never built here".to_owned()), "{recorded:?}");
    assert!(
        recorded.iter().any(|line| line.starts_with("[internal] load build context: a client's directory"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_is_named_and_what_follows_names_the_step() {
    let bench = Workbench::new();
    bench.build(context("1"), "app").await.unwrap();
    let built = bench.build(context("2"), "app").await.unwrap();
    let expected = [
        "[2/4] COPY src /src: file src/main.c changed",
        "[3/4] RUN echo 1 > /version: step [2/4] COPY src /src ran again",
        "[4/4] RUN true: step [3/4] RUN echo 1 > /version ran again",
    ];
    assert_eq!(remarks(&built), expected);
    let recorded = recorded(&bench).await;
    for line in expected {
        assert!(recorded.contains(&line.to_owned()), "{recorded:?}");
    }
    // Back to what it was: all of it is in the cache.
    assert_eq!(remarks(&bench.build(context("1"), "app").await.unwrap()), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn added_and_removed_files_are_named_and_a_touched_one_is_a_hit() {
    let bench = Workbench::new();
    let base = || Context::new("FROM busybox\nCOPY . /src/\n").file("a", "1").file("b", "1");
    bench.build(base(), "app").await.unwrap();
    // The archive's times are the same in all of them; contents decide in any case.
    let again = bench.build(base(), "app").await.unwrap();
    assert!(again.cached().iter().any(|name| name.contains("COPY")));
    assert_eq!(remarks(&again), [""; 0]);
    let more = (0..5).fold(base(), |context, number| context.file(&format!("n{number}"), "1"));
    let built = bench.build(more, "app").await.unwrap();
    assert_eq!(
        remarks(&built),
        ["[2/2] COPY . /src/: file n0 was added, file n1 was added, file n2 was added, and 2 more"]
    );
    let built =
        bench.build(Context::new("FROM busybox\nCOPY . /src/\n").file("a", "1"), "app").await.unwrap();
    assert!(
        remarks(&built)[0].starts_with("[2/2] COPY . /src/: file b was removed"),
        "{:?}",
        remarks(&built)
    );
}

async fn with_options(
    bench: &Workbench,
    context: Context,
    name: &str,
    change: impl FnOnce(&mut lapstrake_builder_dockerfile::DockerfileOptions),
) -> Built {
    let mut request: BuildRequest = bench.request(context, name).await.unwrap();
    let Input::Dockerfile { options, .. } = &mut request.input else { panic!("a Dockerfile was asked for") };
    change(options);
    bench.run(request).await.1.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_build_arg_is_named() {
    let bench = Workbench::new();
    let version = |version: &str| {
        let version = version.to_owned();
        move |options: &mut lapstrake_builder_dockerfile::DockerfileOptions| {
            options.build_args.insert("VERSION".to_owned(), version);
        }
    };
    with_options(&bench, context("1"), "app", version("1.0")).await;
    let built = with_options(&bench, context("1"), "app", version("2.0")).await;
    let expected = "[3/4] RUN echo 2.0 > /version: build-arg VERSION changed";
    assert!(remarks(&built).contains(&expected.to_owned()), "{:?}", remarks(&built));
    // Also where it is part of the instruction.
    let copied = |version: &str| {
        Context::new("FROM busybox\nARG VERSION\nCOPY f-$VERSION /f\n").file(&format!("f-{version}"), version)
    };
    with_options(&bench, copied("1"), "copied", version("1")).await;
    let built = with_options(&bench, copied("2"), "copied", version("2")).await;
    let remarks = remarks(&built);
    assert!(remarks.len() == 1 && remarks[0].contains("build-arg VERSION changed"), "{remarks:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_instruction_or_user_is_named() {
    let bench = Workbench::new();
    bench.build(Context::new("FROM busybox\nRUN echo 1\n"), "app").await.unwrap();
    let built = bench.build(Context::new("FROM busybox\nRUN echo 2\n"), "app").await.unwrap();
    assert_eq!(remarks(&built), ["[2/2] RUN echo 2: the instruction changed"]);
    let built = bench.build(Context::new("FROM busybox\nUSER 1\nRUN echo 2\n"), "app").await.unwrap();
    assert_eq!(remarks(&built), ["[2/2] RUN echo 2: user changed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_base_is_named_with_its_digests() {
    let bench = Workbench::new();
    let app = || Context::new("FROM base\nRUN true\n");
    let base = |text: &str| Context::new(&format!("FROM busybox\nRUN echo {text} > /base\n"));
    bench.build(base("1"), "base").await.unwrap();
    bench.build(app(), "app").await.unwrap();
    let old = bench.stores.images.find("base").unwrap().id;
    bench.build(base("2"), "base").await.unwrap();
    let new = bench.stores.images.find("base").unwrap().id;
    let built = bench.build(app(), "app").await.unwrap();
    let short = |id: &lapstrake_layerstore_oci::ImageId| format!("sha256:{}", id.short());
    let expected = format!(
        "[2/2] RUN true: the base image changed (docker.io/library/base:latest {} → {})",
        short(&old),
        short(&new)
    );
    assert_eq!(remarks(&built), [expected]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pruned_says_so() {
    let bench = Workbench::new();
    bench.build(context("1"), "app").await.unwrap();
    bench.stores.images.untag(&Reference::parse("app").unwrap().with_default_tag()).unwrap();
    bench.engine.cache().prune(&PruneRequest { all: true, ..PruneRequest::default() }).unwrap();
    bench.history.settle().await;
    let built = bench.build(context("1"), "app").await.unwrap();
    assert!(remarks(&built).contains(&"[2/4] COPY src /src: pruned".to_owned()), "{:?}", remarks(&built));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_cache_says_so() {
    let bench = Workbench::new();
    bench.build(context("1"), "app").await.unwrap();
    let built = with_options(&bench, context("1"), "app", |options| options.no_cache = NoCache::All).await;
    let remarks = remarks(&built);
    assert!(!remarks.is_empty());
    assert!(remarks.iter().all(|line| line.ends_with(": no-cache was asked")), "{remarks:?}");
    assert!(!built.executed().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn projects_are_not_compared_with_each_other() {
    let bench = Workbench::new();
    bench.build(context("1"), "one").await.unwrap();
    let built = bench.build(context("2").file("other", "x"), "two").await.unwrap();
    // The very same Dockerfile is taken for the same project only where nothing else is known.
    let other = Context::new("FROM busybox\nCOPY src /elsewhere\n").file("src/x", "x");
    let third = bench.build(other, "three").await.unwrap();
    assert_eq!(remarks(&third), [""; 0], "{:?}", remarks(&built));
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_builds_are_recorded_and_their_steps_are_not_compared_with() {
    let bench = Workbench::new();
    bench.build(Context::new("FROM busybox\nRUN false\n"), "app").await.unwrap_err();
    bench.history.settle().await;
    let summary = bench.history.builds().unwrap().remove(0);
    assert_eq!(summary.status, BuildStatus::Error);
    let error = summary.error.unwrap();
    assert!(error.contains("exit code: 1"), "{error}");
    assert_eq!(summary.name, "app:latest");
    let record = bench.history.build(&summary.id).unwrap();
    let run = record.vertices.iter().find(|vertex| vertex.name.contains("RUN false")).unwrap();
    assert_eq!(run.reasons, [MissReason::NeverBuilt]);
    assert!(run.error.is_some());
    let built = bench.build(Context::new("FROM busybox\nRUN true\n"), "app").await.unwrap();
    assert_eq!(remarks(&built), [""; 0], "nothing ran well before");
}
