//! What the store takes, what pruning takes from it, and that neither disturbs a build.

use std::{
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use lapstrake_builder_cache::{EntryFilter, PruneBound, PruneRequest, RecordKind};
use lapstrake_builder_dockerfile::Dialect;
use lapstrake_builder_engine::{BuildRequest, ContextInput, EngineError, Input};
use lapstrake_builder_progress::{Event, Progress, from_response};
use lapstrake_builder_solver::{CacheStore as _, KeyId};
use lapstrake_layerstore_oci::Reference;
use lapstrake_layerstore_store::{StoreError, Tree, disk_usage, disk_usage_of_images};
use lapstrake_tests::{Context, Workbench};
use tokio_util::sync::CancellationToken;

fn all() -> PruneRequest {
    PruneRequest { all: true, ..PruneRequest::default() }
}

/// What `du` counts: allocated blocks, each inode once.
fn du(path: &Path) -> u64 {
    let output =
        Command::new("du").args(["--summarize", "--block-size=1"]).arg(path).output().expect("du is there");
    let text = String::from_utf8(output.stdout).expect("digits");
    text.split_whitespace().next().and_then(|bytes| bytes.parse().ok()).expect("du counts")
}

/// What the trees and blobs take, and the directories that they are in.
fn du_of_content(bench: &Workbench) -> u64 {
    du(&bench.root().join("overlay2")) + du(&bench.root().join("content"))
}

fn forget_images(bench: &Workbench, keep: &str) {
    let kept = bench.stores.images.find(keep).expect("the base image is there").id;
    for image in bench.stores.images.list().expect("images are listed") {
        if image.id != kept {
            bench.stores.images.delete_image(&image.id).expect("nobody holds it");
        }
    }
}

/// A build of everything that makes snapshots.
fn rich() -> Context {
    Context::new(
        "FROM busybox AS tools\n\
         COPY big /big\n\
         RUN --mount=type=cache,target=/c cp /big /c/kept && ln /big /linked && mkdir -p /d/e && cp /big /d/e/\n\
         RUN rm -r /d && rm /bin/vi\n\
         FROM busybox\n\
         COPY --from=tools /linked /l\n\
         RUN --mount=type=cache,target=/private,sharing=private echo x > /private/x\n",
    )
    .file("big", &"0123456789abcdef".repeat(20_000))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_counted_is_what_du_counts_and_pruning_frees_what_it_says() {
    let bench = Workbench::new();
    let before = du_of_content(&bench);
    bench.build(rich(), "one").await.unwrap();
    bench.build(Context::new("FROM one\nRUN echo more > /more\n"), "two").await.unwrap();
    // What ended builds left is no part of either.
    bench.collector.collect().unwrap();

    let entries = bench.engine.cache().usage().unwrap();
    let of_cache: u64 = entries.iter().filter(|entry| !entry.shared).map(|entry| entry.size).sum();
    let of_images = disk_usage_of_images(&bench.stores).unwrap().of_images();
    // The reserve, and the directories that everything is in.
    let own = bench.metadata.disk_bytes() + du(&bench.root().join("metadata.reserve"));
    let (told, found) = (of_cache + of_images + own, du(&bench.root()));
    assert!(
        found.abs_diff(told) <= 64 << 10,
        "told {told} (cache {of_cache}, images {of_images}, own {own}), found {found}"
    );
    for kind in [RecordKind::CacheMount, RecordKind::Regular] {
        assert!(entries.iter().any(|entry| entry.kind == kind && entry.size > 0), "{kind:?}: {entries:?}");
    }
    let everything = disk_usage(&bench.stores).unwrap();
    assert_eq!(everything.on_disk(), of_cache + of_images, "nothing is there that has no name in df");

    // Without `all`, what the images share stays; with it, they keep it all the same.
    let full = du_of_content(&bench);
    let (pruned, freed) =
        bench.collector.collect_after(|| bench.engine.cache().prune(&PruneRequest::default())).unwrap();
    // What the images have by links is counted with them from now on.
    let with_images = disk_usage_of_images(&bench.stores).unwrap().of_images();
    assert_eq!(with_images, of_images + of_cache - freed.bytes);
    assert_eq!(pruned.entries.iter().map(|entry| entry.size).sum::<u64>(), of_cache);
    assert_eq!(full - du_of_content(&bench), freed.bytes);
    let (_, freed) = bench.collector.collect_after(|| bench.engine.cache().prune(&all())).unwrap();
    assert_eq!(freed.bytes, 0);
    assert_eq!(bench.read("two", "more"), "more\n");
    assert_eq!(bench.engine.cache().usage().unwrap(), []);

    forget_images(&bench, "busybox");
    let full = du_of_content(&bench);
    let freed = bench.collector.collect().unwrap();
    assert_eq!((full - du_of_content(&bench), du_of_content(&bench)), (freed.bytes, before));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_measured_is_not_walked_again() {
    let bench = Workbench::new();
    bench.build(rich(), "app").await.unwrap();
    let cache = bench.engine.cache();
    let (first, images) = (cache.usage().unwrap(), disk_usage_of_images(&bench.stores).unwrap());
    // Nothing is left to walk.
    let trees = bench.root().join("overlay2");
    std::fs::rename(&trees, bench.root().join("elsewhere")).unwrap();
    assert_eq!(cache.usage().unwrap(), first);
    assert_eq!(disk_usage_of_images(&bench.stores).unwrap(), images);
    std::fs::rename(bench.root().join("elsewhere"), &trees).unwrap();
    // What is used again is measured again.
    let context =
        Context::new("FROM busybox\nRUN --mount=type=cache,target=/c head -c 500000 /dev/zero > /c/more\n");
    bench.build(context, "app").await.unwrap();
    let mount = |entries: &[lapstrake_builder_cache::CacheEntry]| {
        entries
            .iter()
            .find(|entry| entry.description.contains("cached mount /c "))
            .map(|entry| entry.size)
            .unwrap()
    };
    let second = cache.usage().unwrap();
    assert!(mount(&second) >= mount(&first) + 500_000, "{second:?}");
}

/// Waits until no step holds anything: a build that is cancelled ends before the processes of its steps do.
async fn at_rest(bench: &Workbench) {
    while bench.engine.cache().usage().expect("the cache is listed").iter().any(|entry| entry.in_use) {
        tokio::task::yield_now().await;
    }
}

/// Waits until the step that says `word` has said it.
async fn said(progress: &Progress, word: &str) {
    let mut subscription = progress.subscribe();
    while let Some(response) = subscription.next().await.expect("the log can be read") {
        let has = |event: &Event| match event {
            Event::Log(log) => String::from_utf8_lossy(&log.data).contains(word),
            _ => false,
        };
        if from_response(response).iter().any(has) {
            return;
        }
    }
    panic!("the build ended without saying {word}");
}

/// Starts a build, waits until it has said `word`, lets `meanwhile` do its work, and cancels the build.
async fn interrupted<T>(
    bench: &Arc<Workbench>,
    request: BuildRequest,
    word: &str,
    meanwhile: impl FnOnce() -> T,
) -> T {
    let progress = Progress::anonymous(Default::default()).expect("a temporary file");
    let cancel = CancellationToken::new();
    let build = {
        let (bench, progress, cancel) = (Arc::clone(bench), progress.clone(), cancel.clone());
        tokio::spawn(async move { bench.engine.build(request, progress, None, cancel).await.map(drop) })
    };
    said(&progress, word).await;
    let done = tokio::task::block_in_place(meanwhile);
    cancel.cancel();
    let ended = build.await.expect("it does not panic");
    assert!(matches!(ended, Err(EngineError::Canceled)) || ended.is_err(), "{ended:?}");
    done
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_running_build_holds_stays_while_the_cache_is_kept_small() {
    let bench = Arc::new(Workbench::new());
    bench.build(Context::new("FROM busybox\nRUN head -c 300000 /dev/zero > /old\n"), "old").await.unwrap();
    forget_images(&bench, "busybox");
    let context = Context::new(
        "FROM busybox\nRUN head -c 200000 /dev/zero > /step\n\
         RUN --mount=type=cache,target=/c head -c 100000 /dev/zero > /c/x; ls -l /step; echo running; sleep 1000\n",
    );
    let request = bench.request(context, "running").await.unwrap();
    interrupted(&bench, request, "running", || {
        let cache = bench.engine.cache();
        let rules = [PruneRequest {
            all: true,
            bound: PruneBound { max_used: 1, ..PruneBound::default() },
            ..PruneRequest::default()
        }];
        let before = cache.usage().unwrap();
        let (pruned, freed) = bench.collector.collect_after(|| cache.gc(&rules)).unwrap();
        let gone: Vec<&str> = pruned.entries.iter().map(|entry| entry.description.as_str()).collect();
        assert!(gone.iter().any(|description| description.contains("/old")), "{gone:?}");
        assert!(freed.bytes >= 300_000, "{freed:?}");
        let after = cache.usage().unwrap();
        assert!(after.iter().all(|entry| entry.in_use), "{after:?}");
        for part in ["/step", "cached mount /c"] {
            assert!(after.iter().any(|entry| entry.description.contains(part)), "{part}: {after:?}");
        }
        let in_use = |filter: &str| {
            let filter = EntryFilter::parse(&[filter]).unwrap();
            before.iter().filter(|entry| filter.matches(entry)).count()
        };
        assert_eq!(in_use("inuse"), after.len());
        assert_eq!(in_use("inuse") + in_use("inuse==false"), before.len());
    })
    .await;
    // What it held may go when its step has ended.
    at_rest(&bench).await;
    bench.collector.collect_after(|| bench.engine.cache().prune(&all())).unwrap();
    assert_eq!(bench.engine.cache().usage().unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_mount_is_free_after_a_cancel_and_as_its_process_left_it() {
    for sharing in ["locked", "private", "shared"] {
        let bench = Arc::new(Workbench::new());
        let writer = Context::new(&format!(
            "FROM busybox\nRUN --mount=type=cache,target=/c,sharing={sharing} echo half > /c/file; echo x > /c/log; \
             echo started; while true; do echo x >> /c/log; done\n"
        ));
        let request = bench.request(writer, "never").await.unwrap();
        interrupted(&bench, request, "started", || ()).await;
        if sharing != "locked" {
            // One more user may come while the first has not ended; a private one would get another directory.
            at_rest(&bench).await;
        }
        // Its processes are gone before anybody else has the directory: nobody writes to the log any more.
        let reader = Context::new(&format!(
            "FROM busybox\nRUN --mount=type=cache,target=/c,sharing={sharing} cp /c/file /file && \
             a=$(wc -c < /c/log) && usleep 100000 && test $a = $(wc -c < /c/log)\n"
        ));
        bench.build(reader, "after").await.unwrap_or_else(|error| panic!("{sharing}: {error}"));
        assert_eq!(bench.read("after", "file"), "half\n", "{sharing}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_mount_that_begins_as_a_stage_is_whole_after_a_cancel() {
    let bench = Arc::new(Workbench::new());
    let stages = "FROM busybox AS seed\nRUN mkdir /seed && for i in $(seq 500); do echo $i > /seed/f$i; done\nFROM busybox\n";
    let mount = "--mount=type=cache,from=seed,source=/seed,target=/c";
    let first = Context::new(&format!("{stages}RUN {mount} rm /c/f1; echo started; sleep 1000\n"));
    let request = bench.request(first, "never").await.unwrap();
    interrupted(&bench, request, "started", || ()).await;
    let second = Context::new(&format!(
        "{stages}RUN {mount} ls /c | wc -l > /count && test ! -e /c/f1 && tail -n 1 /c/f500 > /last\n"
    ));
    bench.build(second, "app").await.unwrap();
    assert_eq!(
        (bench.read("app", "count"), bench.read("app", "last")),
        ("499\n".to_owned(), "500\n".to_owned())
    );
}

/// Where no flush waits for a disk, so that pruning is quick; a temporary directory where there is no such place.
fn quick() -> &'static Path {
    let shm = Path::new("/dev/shm");
    if shm.metadata().is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == 0) {
        shm
    } else {
        Path::new("/tmp")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pruning_without_pause_breaks_no_build() {
    const BUILDERS: usize = 3;
    const PRUNES: usize = 5000;
    let bench = Arc::new(Workbench::new_in(quick()));
    let before = du_of_content(&bench);
    let (stop, prunes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let pruner = {
        let (bench, stop, prunes) = (Arc::clone(&bench), Arc::clone(&stop), Arc::clone(&prunes));
        std::thread::spawn(move || {
            let mut forgotten = 0;
            while !stop.load(Ordering::Relaxed) {
                let (pruned, _) =
                    bench.collector.collect_after(|| bench.engine.cache().prune(&all())).unwrap();
                forgotten += pruned.entries.len();
                prunes.fetch_add(1, Ordering::Relaxed);
            }
            forgotten
        })
    };
    let builders = (0..BUILDERS).map(|builder| {
        let (bench, prunes) = (Arc::clone(&bench), Arc::clone(&prunes));
        tokio::spawn(async move {
            let mut round = 0;
            while round < 5 || prunes.load(Ordering::Relaxed) < PRUNES {
                stressed_build(&bench, builder, round).await;
                round += 1;
            }
            round
        })
    });
    let mut rounds = 0;
    for builder in builders.collect::<Vec<_>>() {
        rounds += builder.await.expect("every build succeeds and gives what it should");
    }
    stop.store(true, Ordering::Relaxed);
    let forgotten = pruner.join().expect("every prune succeeds");
    println!("{} prunes of {forgotten} entries beside {rounds} builds", prunes.load(Ordering::Relaxed));
    assert!(forgotten > rounds, "{forgotten} entries went in {rounds} builds");

    forget_images(&bench, "busybox");
    bench.collector.collect_after(|| bench.engine.cache().prune(&all())).unwrap();
    assert_eq!(bench.engine.cache().usage().unwrap(), []);
    assert_eq!(du_of_content(&bench), before, "nothing is left");
}

/// One of several builds that have much in common, checked.
async fn stressed_build(bench: &Workbench, builder: usize, round: usize) {
    let sharing = ["shared", "locked", "private"][round % 3];
    let data = format!("data {}", round / 2);
    let dockerfile = format!(
        "FROM busybox AS make\n\
         COPY src /src\n\
         RUN --mount=type=cache,id={sharing},target=/c,sharing={sharing} cat /src > /out && echo {builder} {round} >> /c/log && test -s /c/log\n\
         FROM busybox AS use\n\
         COPY --from=make /out /from-make\n\
         RUN echo used >> /from-make\n\
         FROM scratch\n\
         COPY --from=make /out /a\n\
         COPY --from=use /from-make /b\n"
    );
    let name = format!("app-{builder}");
    let context = Context::new(&dockerfile).file("src", &data);
    let mut request = bench.request(context, &name).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    if round % 2 == 1 {
        std::fs::write(directory.path().join("Dockerfile"), &dockerfile).unwrap();
        std::fs::write(directory.path().join("src"), &data).unwrap();
        let Input::Dockerfile { context, .. } = &mut request.input else {
            unreachable!("it is of a Dockerfile")
        };
        *context = ContextInput::Directory {
            context: directory.path().to_owned(),
            dockerfile: directory.path().to_owned(),
        };
    }
    let (events, built) = bench.run(request).await;
    built.unwrap_or_else(|error| panic!("builder {builder}, round {round}: {error}: {events:?}"));
    assert_eq!(bench.read(&name, "a"), data);
    assert_eq!(bench.read(&name, "b"), format!("{data}used\n"));
    if round % 4 == 3 {
        // By its name: others may have built the same image.
        bench.stores.images.untag(&Reference::parse(&name).unwrap().with_default_tag()).unwrap();
    }
}

/// How many results the cache has that begin so.
fn results(bench: &Workbench, prefix: &str) -> u64 {
    let count = "SELECT count(*) FROM cache_result WHERE substr(key, 1, length(?1)) = ?1";
    let failed = StoreError::metadata("count results");
    bench
        .metadata
        .read(|db| db.query_row(count, [prefix], |row| row.get::<_, i64>(0)).map_err(failed))
        .unwrap()
        .try_into()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_remembered_of_classic_steps_goes_with_their_results() {
    let bench = Workbench::new();
    let classic = |dockerfile: &'static str, name: &'static str| {
        let bench = &bench;
        async move {
            let mut request = bench.request(Context::new(dockerfile), name).await.unwrap();
            let Input::Dockerfile { options, .. } = &mut request.input else { panic!("a Dockerfile") };
            options.dialect = Dialect::Classic;
            bench.run(request).await.1
        }
    };
    // Steps on top of files, on top of nothing, and before a failure.
    classic("FROM busybox\nENV A=1\nRUN echo one > /one\nCMD [\"a\"]\n", "one").await.unwrap();
    classic("FROM scratch\nLABEL on=nothing\nCMD [\"b\"]\n", "two").await.unwrap();
    classic("FROM busybox\nENV B=1\nRUN false\n", "three").await.unwrap_err();
    assert_eq!(results(&bench, "classic:"), 5);

    // The result of the first goes, and what was remembered with it.
    forget_images(&bench, "busybox");
    let only = EntryFilter::parse(&["description~=\"echo one\""]).unwrap();
    let request = PruneRequest { filter: only, ..PruneRequest::default() };
    let pruned = bench.engine.cache().prune(&request).unwrap();
    assert_eq!(pruned.entries.len(), 1, "{pruned:?}");
    assert_eq!(results(&bench, "classic:"), 3);

    // With everything goes the rest.
    bench.collector.collect_after(|| bench.engine.cache().prune(&all())).unwrap();
    assert_eq!(results(&bench, ""), 0);
    classic("FROM scratch\nLABEL on=nothing\nCMD [\"b\"]\n", "two").await.unwrap();
    assert_eq!(results(&bench, "classic:"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn results_without_files_are_bounded() {
    let bench = Workbench::new();
    let cache = bench.engine.cache();
    for number in 0..1010 {
        let key = KeyId::new(format!("empty:{number}"));
        cache.save(&key, Vec::new(), Some(&Tree::empty())).await.unwrap();
    }
    let some = PruneRequest { bound: PruneBound { max_used: 1 << 40, ..PruneBound::default() }, ..all() };
    cache.prune(&some).unwrap();
    assert_eq!(results(&bench, "empty:"), 1000);
    assert_eq!(results(&bench, "empty:0"), 0, "the oldest go");
}
