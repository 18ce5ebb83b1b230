//! Whole builds at the same time.

use std::{future::Future, pin::pin};

use lapstrake_builder_engine::EngineError;
use lapstrake_builder_progress::{Event, Progress, Subscription, from_response};
use lapstrake_tests::{Context, Workbench};
use tokio_util::sync::CancellationToken;

/// The same files, sent by each client for itself; a step over them that takes a while, and that no two runs of do the same.
fn context() -> Context {
    Context::new(
        "FROM busybox\nCOPY a /\nRUN echo begun && sleep 1 && cat /proc/sys/kernel/random/uuid > /stamp\n",
    )
    .file("a", "same")
}

fn progress() -> (Progress, Subscription) {
    let progress = Progress::anonymous(Default::default()).expect("a temporary file");
    let subscription = progress.subscribe();
    (progress, subscription)
}

/// Reads on until an event is as wanted; whether there was one.
async fn until(subscription: &mut Subscription, wanted: impl Fn(&Event) -> bool) -> bool {
    while let Some(response) = subscription.next().await.expect("the log can be read") {
        if from_response(response).iter().any(&wanted) {
            return true;
        }
    }
    false
}

fn begun(event: &Event) -> bool {
    matches!(event, Event::Log(log) if log.data.starts_with(b"begun"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_files_from_two_clients_make_a_step_run_once() {
    let bench = Workbench::new();
    let (one, two) = tokio::join!(bench.build(context(), "one"), bench.build(context(), "two"));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(bench.read("one", "stamp"), bench.read("two", "stamp"));
    assert!(one.output().contains("begun") || two.output().contains("begun"));
    assert_eq!(bench.config("one").rootfs, bench.config("two").rootfs);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_is_cancelled_leaves_a_shared_step_to_the_other() {
    let bench = Workbench::new();
    let (shown_first, mut first_says) = progress();
    let (shown_second, mut second_says) = progress();
    let (first, second) =
        (bench.request(context(), "one").await.unwrap(), bench.request(context(), "two").await.unwrap());
    let cancel = CancellationToken::new();
    let first = bench.engine.build(first, shown_first, None, cancel.clone());
    let second = bench.engine.build(second, shown_second, None, CancellationToken::new());
    let schedule = async {
        let mut first = pin!(first);
        // The first one's process runs, then the second one waits for it, then the first one goes.
        assert!(during(first.as_mut(), until(&mut first_says, begun)).await);
        let mut second = pin!(second);
        let waits = |event: &Event| matches!(event, Event::Status(status) if status.id.starts_with("waiting for another build"));
        let both = async { tokio::join!(first.as_mut(), second.as_mut()) };
        let both = async {
            _ = both.await;
            unreachable!("the process sleeps");
        };
        assert!(tokio::select! { seen = until(&mut second_says, waits) => seen, seen = both => seen });
        cancel.cancel();
        assert!(matches!(first.await, Err(EngineError::Canceled)));
        second.await
    };
    schedule.await.unwrap();
    assert!(bench.has("two", "stamp"));
    assert!(bench.stores.images.find("one").is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_fails_is_run_once_for_all_who_wait() {
    let failing = || {
        Context::new(
            "FROM busybox\nCOPY a /\nRUN echo begun && sleep 1 && cat /proc/sys/kernel/random/uuid && exit 3\n",
        )
        .file("a", "same")
    };
    let bench = Workbench::new();
    let (shown_first, mut first_says) = progress();
    let (shown_second, mut second_says) = progress();
    let first = bench.request(failing(), "one").await.unwrap();
    let second = bench.request(failing(), "two").await.unwrap();
    let mut first = pin!(bench.engine.build(first, shown_first, None, CancellationToken::new()));
    assert!(during(first.as_mut(), until(&mut first_says, begun)).await);
    let second = bench.engine.build(second, shown_second, None, CancellationToken::new());
    let (first, second) = tokio::join!(first, second);
    for error in [first.unwrap_err(), second.unwrap_err()] {
        assert!(error.to_string().contains("exit code: 3"), "{error}");
    }
    // Both hear the same process to its end.
    let (first, second) = (said(&mut first_says).await, said(&mut second_says).await);
    assert!(!first.is_empty() && second.trim_start_matches("begun\n") == first, "{first} | {second}");
}

/// What steps say from here on.
async fn said(subscription: &mut Subscription) -> String {
    let mut said = String::new();
    while let Some(response) = subscription.next().await.expect("the log can be read") {
        for event in from_response(response) {
            if let Event::Log(log) = event {
                said.push_str(&String::from_utf8_lossy(&log.data));
            }
        }
    }
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_waits_for_the_machine_says_so() {
    // Six stages that need nothing of each other, and four slots.
    let stages =
        (0..6).map(|stage| format!("FROM busybox AS s{stage}\nRUN sleep 1 && echo {stage} > /made\n"));
    let copies = (0..6).map(|stage| format!("COPY --from=s{stage} /made /{stage}\n"));
    let dockerfile: String =
        stages.chain(std::iter::once("FROM scratch\n".to_owned())).chain(copies).collect();
    let bench = Workbench::new();
    let built = bench.build(Context::new(&dockerfile), "app").await.unwrap();
    let waits = |event: &&Event| matches!(event, Event::Status(status) if status.id.starts_with("waiting for other steps"));
    assert!(built.events.iter().any(|event| waits(&event)), "two have to wait");
    assert_eq!(bench.read("app", "5"), "5\n");
}

/// Runs `work` while waiting for something else, which comes first.
async fn during<T>(work: impl Future, other: impl Future<Output = T>) -> T {
    tokio::select! {
        _ = work => panic!("the build ended early"),
        seen = other => seen,
    }
}
