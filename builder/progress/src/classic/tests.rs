//! Transcripts of builds that ran in any order.

use std::sync::Arc;

use super::*;
use crate::{Limits, Progress, Stream, VertexHandle, VertexState};

fn vertex(progress: &Progress, name: &str) -> VertexHandle {
    let state = VertexState::pending(Digest::sha256_of(name), name, vec![]);
    VertexHandle::announce(Arc::new(progress.clone()), state)
}

fn step(text: &str, kind: ClassicKind, vertex: Option<&str>) -> ClassicStep {
    let vertex = vertex.map(Digest::sha256_of);
    ClassicStep {
        text: text.to_owned(),
        kind,
        vertex,
        state: Digest::sha256_of(text),
        trigger: false,
        known: false,
    }
}

fn from(scratch: bool, triggers: usize) -> ClassicKind {
    ClassicKind::From { image: None, scratch, triggers }
}

/// The whole transcript of what `build` reports.
async fn transcript(steps: Vec<ClassicStep>, build: impl FnOnce(&Progress)) -> String {
    let script = ClassicScript { steps, ..ClassicScript::default() };
    transcript_of(script, Removal::AfterSuccess, build).await
}

async fn transcript_of(script: ClassicScript, removal: Removal, build: impl FnOnce(&Progress)) -> String {
    let progress = Progress::anonymous(Limits::default()).unwrap();
    let mut transcript = Transcript::new(script, removal, progress.subscribe());
    build(&progress);
    drop(progress);
    let mut lines = Vec::new();
    while let Some(more) = transcript.next().await.unwrap() {
        lines.extend(more);
    }
    lines.extend(transcript.finish(None));
    lines
        .into_iter()
        .map(|line| match line {
            ClassicLine::Stdout(text) => text,
            ClassicLine::Stderr(text) => format!("<{text}>"),
            ClassicLine::Part { id, action, current, total } => {
                format!("{id}: {action} {current}/{total}\n")
            }
        })
        .collect()
}

#[tokio::test]
async fn steps_are_told_in_order_however_they_ran() {
    let steps = vec![
        step("FROM scratch", from(true, 0), None),
        step("RUN first", ClassicKind::Run, Some("1")),
        step("RUN second", ClassicKind::Run, Some("2")),
    ];
    let text = transcript(steps, |progress| {
        let (one, two) = (vertex(progress, "1"), vertex(progress, "2"));
        two.start();
        two.log(Stream::Stdout, b"from two\n".to_vec());
        two.complete();
        one.start();
        one.log(Stream::Stdout, b"from one\n".to_vec());
        one.complete();
    })
    .await;
    insta::assert_snapshot!(text.replace(" \n", "·\n"), @"
    Step 1/3 : FROM scratch
     --->·
    Step 2/3 : RUN first
     ---> Running in 868bcc3441ea
    from one
    Removing intermediate container 868bcc3441ea
     ---> 9e29b3cba513
    Step 3/3 : RUN second
     ---> Running in 26c8394e1e98
    from two
    Removing intermediate container 26c8394e1e98
     ---> 6967399598a8
    ");
}

#[tokio::test]
async fn output_of_a_parallel_step_is_not_lost_however_much_it_is() {
    let steps =
        vec![step("RUN first", ClassicKind::Run, Some("1")), step("RUN second", ClassicKind::Run, Some("2"))];
    let text = transcript(steps, |progress| {
        let (one, two) = (vertex(progress, "1"), vertex(progress, "2"));
        one.start();
        two.start();
        for n in 0..5000 {
            one.log(Stream::Stdout, format!("one {n}\n").into_bytes());
            two.log(Stream::Stdout, format!("two {n}\n").into_bytes());
        }
        two.complete();
        one.complete();
    })
    .await;
    let numbers = |name: &str| {
        let lines = text.lines().filter_map(|line| line.strip_prefix(name)?.trim().parse::<usize>().ok());
        lines.collect::<Vec<_>>()
    };
    assert_eq!(numbers("one"), (0..5000).collect::<Vec<_>>());
    assert_eq!(numbers("two"), (0..5000).collect::<Vec<_>>());
    assert!(text.find("one 4999").unwrap() < text.find("two 0").unwrap());
}

#[tokio::test]
async fn a_failed_step_is_told_although_an_earlier_one_was_cancelled() {
    let steps = vec![
        step("RUN first", ClassicKind::Run, Some("1")),
        step("RUN second", ClassicKind::Run, Some("2")),
        step("RUN third", ClassicKind::Run, Some("3")),
    ];
    let text = transcript(steps, |progress| {
        let (one, two) = (vertex(progress, "1"), vertex(progress, "2"));
        one.start();
        two.start();
        two.log(Stream::Stderr, b"broken\n".to_vec());
        two.fail("exit code: 1");
        one.fail("context canceled");
    })
    .await;
    insta::assert_snapshot!(text, @"
    Step 1/3 : RUN first
     ---> Running in 868bcc3441ea
    Step 2/3 : RUN second
     ---> Running in 26c8394e1e98
    <broken
    >
    ");
}

#[tokio::test]
async fn cached_steps_triggers_and_parts_are_told() {
    let mut trigger = step("RUN trigger", ClassicKind::Run, Some("t"));
    trigger.trigger = true;
    let steps = vec![
        step("ARG A", ClassicKind::GlobalArg, None),
        step("FROM base", from(false, 1), Some("b")),
        trigger,
        step("COPY a b", ClassicKind::Files, Some("c")),
        step("CMD x", ClassicKind::Other, None),
    ];
    let text = transcript(steps, |progress| {
        let base = vertex(progress, "b");
        base.start();
        let mut part = base.part("sha256:1", "downloading", 10);
        part.rename("extracting");
        part.done();
        base.complete();
        vertex(progress, "t").cached();
        vertex(progress, "c").cached();
    })
    .await;
    insta::assert_snapshot!(text, @"
    Step 1/4 : ARG A
    Step 2/4 : FROM base
    sha256:1: downloading 0/10
    sha256:1: extracting 0/10
    # Executing 1 build trigger
     ---> Using cache
     ---> 5822defce290
    Step 3/4 : COPY a b
     ---> Using cache
     ---> 6ef55daaa0eb
    Step 4/4 : CMD x
     ---> Running in acd4a6c48aab
    Removing intermediate container acd4a6c48aab
     ---> c6db340c8ad7
    ");
}

#[tokio::test]
async fn steps_of_the_config_run_in_containers_unless_they_are_known() {
    let mut known = step("ENV A=1", ClassicKind::Other, None);
    known.known = true;
    let again = ClassicStep { text: "LABEL b=2".to_owned(), state: Digest::sha256_of("b"), ..known.clone() };
    let steps = vec![
        step("FROM base", from(false, 0), None),
        known,
        step("RUN first", ClassicKind::Run, Some("1")),
        again,
    ];
    let script = ClassicScript { steps, total: Some(7), ..ClassicScript::default() };
    let text = transcript_of(script, Removal::Never, |progress| {
        let one = vertex(progress, "1");
        one.start();
        one.complete();
    })
    .await;
    insta::assert_snapshot!(text, @"
    Step 1/7 : FROM base
     ---> 9fb7b1ad6ac3
    Step 2/7 : ENV A=1
     ---> Using cache
     ---> aa5983035baf
    Step 3/7 : RUN first
     ---> Running in 868bcc3441ea
     ---> 9e29b3cba513
    Step 4/7 : LABEL b=2
     ---> Running in 5b8c0604eb26
     ---> 3e23e8160039
    ");
}

#[tokio::test]
async fn what_a_failed_step_has_found_is_told_before_it() {
    let steps = vec![
        step("RUN found", ClassicKind::Run, Some("1")),
        step("COPY missing /", ClassicKind::Files, Some("2")),
    ];
    let text = transcript(steps, |progress| {
        let (_one, two) = (vertex(progress, "1"), vertex(progress, "2"));
        two.start();
        two.fail("not found");
    })
    .await;
    insta::assert_snapshot!(text, @"
    Step 1/2 : RUN found
     ---> Using cache
     ---> ee0d9d1037bb
    Step 2/2 : COPY missing /
    ");
}

#[tokio::test]
async fn doubts_come_before_the_first_step() {
    let script =
        ClassicScript { warnings: vec!["one".to_owned(), "two".to_owned()], ..ClassicScript::default() };
    let progress = crate::Progress::anonymous(crate::Limits::default()).unwrap();
    let mut transcript = Transcript::new(script, Removal::Never, progress.subscribe());
    drop(progress);
    assert_eq!(transcript.next().await.unwrap(), Some(vec![ClassicLine::Stderr("one\ntwo\n".to_owned())]));
    assert!(transcript.next().await.unwrap().is_none_or(|lines| lines.is_empty()));
}
