//! Builds that are recorded, and what is left of them.
#![allow(clippy::unwrap_used)] // helpers outside of test functions

use std::{collections::BTreeMap, io::Read as _, path::Path, sync::Arc, time::Duration};

use lapstrake_builder_history::{
    Aspect, Attachment, AttachmentKind, BuildStatus, Building, Explained, History, HistoryError, Limits,
    Mark, MissReason, News, Outcome, PackedRecipe, Place, Project, Recipe,
};
use lapstrake_builder_progress::{Plain, Progress, Stream, VertexHandle, VertexState};
use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_store::LocalStore;
use tempfile::TempDir;
use tokio::sync::broadcast::error::TryRecvError;

struct Bench {
    root: TempDir,
    store: LocalStore,
}

impl Bench {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let store = LocalStore::open(root.path()).unwrap();
        Self { root, store }
    }

    fn logs(&self) -> std::path::PathBuf {
        self.root.path().join("history")
    }

    fn open(&self) -> History {
        self.open_with(Limits::default())
    }

    fn open_with(&self, limits: Limits) -> History {
        History::open(self.store.metadata.clone(), self.logs(), limits).unwrap()
    }
}

fn building(id: &str) -> Building {
    Building { id: id.to_owned(), name: format!("build of {id}"), ..Building::default() }
}

fn progress() -> Progress {
    Progress::anonymous(Default::default()).unwrap()
}

fn vertex(progress: &Progress, name: &str) -> VertexHandle {
    VertexHandle::announce(
        Arc::new(progress.clone()),
        VertexState::pending(Digest::sha256_of(name), name, vec![]),
    )
}

/// A build of one step that says `text`.
async fn build(history: &History, id: &str, text: &str) -> String {
    let progress = progress();
    let recording = history.begin(building(id), &progress);
    let id = recording.id().to_owned();
    let step = vertex(&progress, "[1/1] RUN say");
    step.start();
    step.log(Stream::Stdout, text.as_bytes().to_vec());
    step.complete();
    recording.notes().note_reasons(&step.digest(), vec![MissReason::NoCache]);
    recording.end(Outcome::Completed {
        image: Some("sha256:1".to_owned()),
        response: BTreeMap::new(),
        results: BTreeMap::new(),
    });
    drop((step, progress));
    history.settle().await;
    id
}

async fn log(history: &History, id: &str) -> String {
    let mut log = history.log(id, true).unwrap();
    let mut plain = Plain::new();
    let mut text = String::new();
    while let Some(response) = log.next().await.unwrap() {
        text.push_str(&plain.update(response));
    }
    text
}

fn files(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_build_is_kept_with_its_vertices_reasons_and_log() {
    let bench = Bench::new();
    let history = bench.open();
    build(&history, "one", "hello\n").await;
    // As after a restart.
    let history = bench.open();
    let record = history.build("one").unwrap();
    assert_eq!(record.summary.status, BuildStatus::Completed);
    assert_eq!(record.summary.image.as_deref(), Some("sha256:1"));
    assert_eq!((record.summary.total_steps, record.summary.completed_steps), (1, 1));
    assert!(record.summary.completed.unwrap() >= record.summary.created);
    let [vertex] = &record.vertices[..] else { panic!("{record:?}") };
    assert_eq!(vertex.name, "[1/1] RUN say");
    assert_eq!(vertex.reasons, [MissReason::NoCache]);
    let text = log(&history, "one").await;
    assert!(text.starts_with("#1 [1/1] RUN say\n") && text.contains(" hello\n"), "{text}");
    assert_eq!(history.builds().unwrap(), [record.summary]);
}

#[tokio::test]
async fn logs_are_complete_however_long() {
    let bench = Bench::new();
    let history = bench.open();
    let text: String = (0..200_000).map(|number| format!("line {number}\n")).collect();
    build(&history, "long", &text).await;
    let shown = log(&history, "long").await;
    assert_eq!(shown.matches(" line ").count(), 200_000);
    let bytes = history.build("long").unwrap().summary.log_bytes.unwrap();
    assert!(bytes < text.len() as u64 / 2, "{bytes}");
}

#[tokio::test]
async fn a_running_build_is_seen_and_followed() {
    let bench = Bench::new();
    let history = bench.open();
    let progress = progress();
    let recording = history.begin(building("now"), &progress);
    let step = vertex(&progress, "[1/1] RUN slow");
    step.start();
    let record = history.build("no").unwrap();
    assert_eq!((record.summary.status, record.vertices.len()), (BuildStatus::Running, 1));
    assert!(matches!(history.remove("now"), Err(HistoryError::Running { .. })));
    let mut so_far = history.log("now", false).unwrap();
    assert!(so_far.next().await.unwrap().is_some());
    assert!(so_far.next().await.unwrap().is_none(), "it does not wait for more");
    let follower = tokio::spawn({
        let history = history.clone();
        async move { log(&history, "now").await }
    });
    step.log(Stream::Stdout, b"the end\n".to_vec());
    step.complete();
    recording.end(Outcome::Failed { error: "no luck".to_owned(), code: 2 });
    drop((step, progress));
    assert!(follower.await.unwrap().contains("the end"));
    history.settle().await;
    let summary = history.build("now").unwrap().summary;
    assert_eq!((summary.status, summary.error.as_deref()), (BuildStatus::Error, Some("no luck")));
}

#[tokio::test]
async fn a_build_whose_future_is_dropped_is_canceled() {
    let bench = Bench::new();
    let history = bench.open();
    let progress = progress();
    drop(history.begin(building("gone"), &progress));
    drop(progress);
    history.settle().await;
    assert_eq!(history.build("gone").unwrap().summary.status, BuildStatus::Canceled);
}

#[tokio::test]
async fn a_crash_leaves_an_interrupted_build_and_no_files() {
    let bench = Bench::new();
    let history = bench.open();
    build(&history, "whole", "x").await;
    let progress = progress();
    let recording = history.begin(building("half"), &progress);
    // Its row is written by another thread.
    let metadata = &bench.store.metadata;
    let is_there = || {
        metadata
            .read(|db| {
                let count =
                    db.query_row("SELECT count(*) FROM history_build", [], |row| row.get::<_, i64>(0));
                Ok(count.unwrap() == 2)
            })
            .unwrap()
    };
    while !is_there() {
        tokio::task::yield_now().await;
    }
    for name in [".writing-x", "unknown.zst"] {
        std::fs::write(bench.logs().join(name), "").unwrap();
    }
    let after = bench.open();
    assert_eq!(after.build("half").unwrap().summary.status, BuildStatus::Interrupted);
    assert!(matches!(after.log("half", true), Err(HistoryError::NoLog { .. })));
    assert_eq!(files(&bench.logs()), ["whole.zst"]);
    std::fs::remove_file(bench.logs().join("whole.zst")).unwrap();
    let after = bench.open();
    let whole = after.build("whole").unwrap();
    assert_eq!(
        (whole.summary.log_bytes, whole.vertices.len()),
        (None, 1),
        "the log is lost, the record is not"
    );
    drop(recording);
}

#[tokio::test]
async fn ids_are_unique_and_safe_as_names_of_files() {
    let bench = Bench::new();
    let history = bench.open();
    assert_eq!(build(&history, "same", "").await, "same");
    let second = build(&history, "same", "").await;
    assert_ne!(second, "same");
    for id in ["", "../../etc/passwd", ".hidden", "a b", &"x".repeat(65)] {
        let id = build(&history, id, "").await;
        assert_eq!(id.len(), 25, "{id}");
    }
    assert_eq!(files(&bench.logs()).len(), 7);
    assert!(matches!(history.build(""), Err(HistoryError::NoSuchBuild { .. })));
    assert!(matches!(history.build("../x"), Err(HistoryError::NoSuchBuild { .. })));
}

#[tokio::test]
async fn old_builds_are_forgotten_over_the_limits() {
    let bench = Bench::new();
    let limits = Limits { entries: 2, age: Duration::ZERO, ..Limits::default() };
    let history = bench.open_with(limits);
    for id in ["a", "b", "c"] {
        build(&history, id, "").await;
    }
    let ids = |history: &History| -> Vec<String> {
        history.builds().unwrap().into_iter().map(|build| build.id).collect()
    };
    assert_eq!(ids(&history), ["c", "b"]);
    assert_eq!(files(&bench.logs()), ["b.zst", "c.zst"]);
    // Those that are young are kept beyond that, but not without end.
    let limits = Limits { entries: 1, most: 3, ..Limits::default() };
    let history = bench.open_with(limits);
    for id in ["d", "e"] {
        build(&history, id, "").await;
    }
    assert_eq!(ids(&history), ["e", "d", "c"]);
    // And their logs take no more than they may; the newest is kept.
    let history = bench.open_with(Limits { log_bytes: 1, ..Limits::default() });
    build(&history, "f", "").await;
    assert_eq!(ids(&history), ["f"]);
}

#[tokio::test]
async fn builds_are_removed_by_the_beginning_of_their_id() {
    let bench = Bench::new();
    let history = bench.open();
    for id in ["abc", "abd", "x"] {
        build(&history, id, "").await;
    }
    assert!(matches!(history.remove("ab"), Err(HistoryError::Ambiguous { .. })));
    assert_eq!(history.remove("abc").unwrap(), "abc");
    assert!(matches!(history.remove("abc"), Err(HistoryError::NoSuchBuild { .. })));
    assert_eq!(files(&bench.logs()), ["abd.zst", "x.zst"]);
    assert_eq!(history.clear().unwrap().len(), 2);
    assert!(history.builds().unwrap().is_empty() && files(&bench.logs()).is_empty());
}

#[tokio::test]
async fn steps_are_compared_with_their_last_run_across_restarts() {
    let bench = Bench::new();
    let project = || Project { image: Some(Mark::of("app")), ..Project::default() };
    let place = Place::of("[2/2] RUN make");
    let recipe =
        |user: &str| Recipe { aspects: [(Aspect::User, Mark::of(user))].into(), ..Recipe::default() };
    let mut said = Vec::new();
    for (id, user) in [("1", "app"), ("2", "app"), ("3", "root"), ("4", "root")] {
        let history = bench.open();
        let progress = progress();
        let recording = history.begin(building(id), &progress);
        recording.notes().set_project(project());
        said.push(recording.notes().explain(&place, &recipe(user)));
        recording.notes().note_recipe(&PackedRecipe::new(place.clone(), recipe(user)));
        recording.end(Outcome::Canceled);
        drop(progress);
        history.settle().await;
    }
    let user = MissReason::Setting { name: "user".to_owned() };
    assert_eq!(said, [Explained::Never, Explained::Same, Explained::Different(vec![user]), Explained::Same]);
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_are_compared_with_a_build_whose_log_still_grows() {
    let bench = Bench::new();
    let history = bench.open();
    let place = Place::of("[2/2] RUN make");
    let begin = |id: &str, progress: &Progress| {
        let recording = history.begin(building(id), progress);
        recording.notes().set_project(Project { image: Some(Mark::of("app")), ..Project::default() });
        recording
    };
    let progress = progress();
    let first = begin("1", &progress);
    first.notes().note_recipe(&PackedRecipe::new(place.clone(), Recipe::default()));
    first.end(Outcome::Completed { image: None, response: BTreeMap::new(), results: BTreeMap::new() });
    let second = begin("2", &progress);
    history.settle_recipes().await;
    assert_eq!(second.notes().explain(&place, &Recipe::default()), Explained::Same);
}

/// All of a document, or nothing.
fn document(history: &History, digest: &str) -> Option<Vec<u8>> {
    let mut found = history.document(&Digest::parse(digest).unwrap()).unwrap()?;
    let mut data = Vec::new();
    found.reader.read_to_end(&mut data).unwrap();
    assert_eq!(found.bytes, data.len() as u64);
    assert_eq!(Digest::sha256_of(&data).as_str(), digest);
    Some(data)
}

#[tokio::test]
async fn documents_and_logs_are_found_by_digest_until_their_build_goes() {
    let bench = Bench::new();
    let history = bench.open();
    let progress = progress();
    let recording = history.begin(building("one"), &progress);
    let attached = Attachment {
        kind: AttachmentKind::Attestation { platform: Some("linux/amd64".to_owned()) },
        media_type: "application/x".to_owned(),
        annotations: [("a".to_owned(), "b".to_owned())].into(),
        data: b"attested".to_vec(),
    };
    recording.attach(attached.clone());
    let too_long = Attachment { data: vec![0; (16 << 20) + 1], ..attached.clone() };
    recording.attach(too_long);
    let step = vertex(&progress, "[1/1] RUN say");
    step.start();
    step.log(Stream::Stdout, b"hello".to_vec());
    step.complete();
    recording.end(Outcome::Completed { image: None, response: BTreeMap::new(), results: BTreeMap::new() });
    drop((step, progress));
    history.settle().await;
    build(&history, "two", "hello").await;
    // As after a restart.
    drop(history);
    let history = bench.open();
    let summary = history.build("one").unwrap().summary;
    let [told] = &summary.attachments[..] else { panic!("{summary:?}") };
    assert_eq!((&told.kind, told.media_type.as_str()), (&attached.kind, "application/x"));
    assert_eq!((&told.annotations, told.bytes), (&attached.annotations, 8));
    assert_eq!(document(&history, &told.digest).as_deref(), Some(&b"attested"[..]));
    // As BuildKit keeps logs: each response behind its length.
    let log = summary.log.unwrap();
    let bytes = document(&history, &log.digest).unwrap();
    assert_eq!(bytes.len() as u64, log.bytes);
    let length = u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize;
    assert!(length <= bytes.len() - 4);
    history.remove("one").unwrap();
    assert!(document(&history, &told.digest).is_none() && document(&history, &log.digest).is_none());
}

#[tokio::test]
async fn a_pinned_build_stays_whatever_the_limits() {
    let bench = Bench::new();
    let none = Limits { entries: 0, age: Duration::ZERO, ..Limits::default() };
    let history = bench.open();
    build(&history, "kept", "x").await;
    build(&history, "gone", "x").await;
    history.pin("kept", true).unwrap();
    history.pin("kept", true).unwrap();
    drop(history);
    let history = bench.open_with(none);
    build(&history, "other", "x").await;
    let left = |history: &History| {
        let builds = history.builds().unwrap();
        builds.iter().map(|build| (build.id.clone(), build.pinned, build.generation)).collect::<Vec<_>>()
    };
    assert_eq!(left(&history), [("kept".to_owned(), true, 1)]);
    history.pin("kept", false).unwrap();
    assert_eq!(left(&history), [("kept".to_owned(), false, 2)]);
    build(&history, "other", "x").await;
    assert_eq!(left(&history), []);
    assert!(matches!(history.pin("nosuch", true), Err(HistoryError::NoSuchBuild { .. })));
}

#[tokio::test]
async fn a_trace_is_made_when_it_is_asked_for() {
    let bench = Bench::new();
    let history = bench.open();
    build(&history, "one", "x").await;
    assert_eq!(history.build("one").unwrap().summary.attachments, []);
    history.finalize("one").unwrap();
    history.finalize("one").unwrap();
    let summary = history.build("one").unwrap().summary;
    let [told] = &summary.attachments[..] else { panic!("{summary:?}") };
    assert_eq!(told.kind, AttachmentKind::Trace);
    let text = document(&history, &told.digest).unwrap();
    let spans: Vec<serde_json::Value> =
        serde_json::Deserializer::from_slice(&text).into_iter().collect::<Result<_, _>>().unwrap();
    let [root, step] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!((&root["Name"], &step["Name"]), (&"build".into(), &"[1/1] RUN say".into()));
    assert_eq!(step["Parent"], root["SpanContext"]);
    assert_eq!(root["SpanContext"]["TraceID"].as_str().map(str::len), Some(32));
    assert_eq!(root["SpanContext"]["SpanID"].as_str().map(str::len), Some(16));
    assert!(step["StartTime"].as_str().unwrap() <= step["EndTime"].as_str().unwrap());
}

#[tokio::test]
async fn who_listens_is_told_what_happens() {
    let bench = Bench::new();
    let history = bench.open();
    let mut news = history.news();
    build(&history, "one", "x").await;
    history.finalize("one").unwrap();
    history.remove("one").unwrap();
    let one = || "one".to_owned();
    for expected in [News::Begun(one()), News::Recorded(one()), News::Recorded(one()), News::Forgotten(one())]
    {
        assert_eq!(news.try_recv().unwrap(), expected);
    }
    assert_eq!(news.try_recv(), Err(TryRecvError::Empty));
    history.end_news().await;
    assert_eq!(news.try_recv(), Err(TryRecvError::Closed));
    assert_eq!(history.news().try_recv(), Err(TryRecvError::Closed));
}
