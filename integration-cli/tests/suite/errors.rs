//! What people see of a Dockerfile that cannot be built, or is doubtful: by `docker build` of docker 20.10 in both protocols, by programs that speak
//! to the API, and by `lapstrake build`.

#[allow(unreachable_pub)]
use std::{fs, path::PathBuf};

use base64::Engine as _;
use lapstrake_integration_cli::{Daemon, Output, lapstrake};

use crate::common::{Answer, archive, build};

fn directory(daemon: &Daemon, name: &str, dockerfile: &str) -> PathBuf {
    let dir = daemon.scratch().join(name);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("Dockerfile"), dockerfile).unwrap();
    dir
}

/// `lapstrake build` over a store of its own.
fn here(daemon: &Daemon, arguments: &[&str], dir: &std::path::Path) -> Output {
    let root = daemon.scratch().join("root");
    let fixed = ["build", "--progress", "plain", "--root", root.to_str().unwrap()];
    lapstrake(fixed.iter().chain(arguments).copied().chain([dir.to_str().unwrap()]))
}

/// The trace messages of an answer, decoded and one after the other.
fn traces(answer: &Answer) -> Vec<u8> {
    let lines = answer.lines();
    let aux = lines.iter().filter(|line| line["id"] == "moby.buildkit.trace");
    aux.flat_map(|line| {
        base64::engine::general_purpose::STANDARD.decode(line["aux"].as_str().unwrap()).unwrap()
    })
    .collect()
}

fn contains(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

/// A Dockerfile, the error, and the lines under which it is shown, without the columns before them.
const FAULTS: &[(&str, &str, &str, &[&str])] = &[
    (
        "instruction",
        "FROM scratch\nCOPPY a /\n",
        "dockerfile parse error on line 2: unknown instruction: COPPY (did you mean COPY?)",
        &["2 | >>> COPPY a /", "| ^^^^^ expected an instruction, such as COPY"],
    ),
    (
        "flag",
        "FROM scratch\nRUN \\\n  --netwrk=none x\n",
        "dockerfile parse error on line 2: unknown flag: --netwrk (did you mean network?)",
        &["3 | >>>   --netwrk=none x", "| ^^^^^^^^ expected --mount, --network, --security or --device"],
    ),
    (
        "mount",
        "FROM scratch\nRUN --mount=type=cahce,target=/x y\n",
        "unsupported mount type \"cahce\" (did you mean cache?)",
        &["2 | >>> RUN --mount=type=cahce,target=/x y", "| ^^^^^ expected bind, cache, tmpfs, secret or ssh"],
    ),
    (
        "later",
        "FROM scratch AS a\nCOPY --from=b /x /\nFROM scratch AS b\nFROM a\nCOPY --from=b /x /\n",
        "cannot copy from stage \"b\", it needs to be defined before current stage \"a\"",
        &["2 | >>> COPY --from=b /x /", "| ^ expected a stage above this one"],
    ),
    (
        "signal",
        "FROM scratch\nSTOPSIGNAL SIGTREM\n",
        "invalid signal: SIGTREM",
        &["2 | >>> STOPSIGNAL SIGTREM", "| ^^^^^^^ expected a signal, such as SIGTERM or 15"],
    ),
    (
        "lint",
        "# check=error=true\nFROM scratch\nCMD a\n",
        "lint violation found for rules: JSONArgsRecommended",
        &["3 | >>> CMD a"],
    ),
];

fn assert_shown(text: &str, error: &str, excerpt: &[&str]) {
    assert!(text.contains(error), "{error}\n{text}");
    let squeezed: Vec<String> =
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for line in excerpt {
        let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(squeezed.iter().any(|shown| shown.ends_with(&line)), "{line}\n{text}");
    }
}

#[test]
fn faults_are_shown_with_the_words_at_fault() {
    let daemon = Daemon::start();
    for (name, dockerfile, error, excerpt) in FAULTS {
        let dir = directory(&daemon, name, dockerfile);
        let shown = here(&daemon, &[], &dir).failure();
        assert_shown(&shown.stderr, &format!("ERROR: failed to solve: {error}"), excerpt);
        assert!(shown.stderr.contains("Dockerfile:"), "{}", shown.stderr);
        let docker = daemon.docker().buildkit();
        assert_shown(&docker.run(["build", dir.to_str().unwrap()]).failure().all(), error, excerpt);
        // Also by those who asked for silence.
        assert_shown(&docker.run(["build", "-q", dir.to_str().unwrap()]).failure().all(), error, excerpt);
    }
}

#[test]
fn the_classic_builder_shows_what_it_cannot_read() {
    let daemon = Daemon::start();
    let docker = daemon.docker().classic();
    // What comes to light later ends the transcript at its step.
    for (name, dockerfile, error, excerpt) in &FAULTS[..2] {
        let dir = directory(&daemon, name, dockerfile);
        let shown = docker.run(["build", dir.to_str().unwrap()]).failure();
        assert_shown(&shown.stderr, &format!("Error response from daemon: {error}"), excerpt);
    }
    let dir = directory(&daemon, "signal", FAULTS[4].1);
    let shown = docker.run(["build", dir.to_str().unwrap()]).failure();
    assert!(shown.stdout.contains("Step 2/2 : STOPSIGNAL SIGTREM"), "{}", shown.stdout);
    assert!(
        shown.stderr.contains("invalid signal: SIGTREM") && !shown.stderr.contains(">>>"),
        "{}",
        shown.stderr
    );
}

#[test]
fn a_failed_step_is_shown_where_it_was_written() {
    let daemon = Daemon::with_base();
    let dir =
        directory(&daemon, "step", "FROM busybox\nRUN echo fine\nRUN echo oh && \\\n  exit 7\nRUN never\n");
    let shown = daemon.docker().buildkit().run(["build", "--network=host", dir.to_str().unwrap()]).failure();
    let excerpt: &[&str] =
        &["2 | RUN echo fine", "3 | >>> RUN echo oh && \\", "4 | >>> exit 7", "5 | RUN never"];
    assert_shown(&shown.all(), "did not complete successfully: exit code: 7", excerpt);
    let missing = directory(&daemon, "missing", "FROM busybox\nCOPY nothing /\n");
    let shown = daemon.docker().buildkit().run(["build", missing.to_str().unwrap()]).failure();
    assert_shown(&shown.all(), "\"/nothing\": not found", &["2 | >>> COPY nothing /"]);
}

#[tokio::test]
async fn programs_are_told_of_images_and_stages_that_are_not_there() {
    let daemon = Daemon::start();
    for (dockerfile, target, error) in [
        ("FROM scratch AS build\nFROM scratch\nCOPY --from=biuld /a /b\n", "", "(did you mean build?)"),
        ("FROM bsybox\nRUN x\n", "", "(did you mean busybox?)"),
        (
            "FROM scratch AS build\n",
            "&target=biuld",
            "failed to reach build target biuld in Dockerfile (did you mean build?)",
        ),
        (
            "FROM scratch AS build\n",
            "&target=biuld&progress=trace",
            "target stage \"biuld\" could not be found (did you mean build?)",
        ),
        ("FROM scratch\nARG VERSION\nCOPY ${VERSON:?} /\n", "", "VERSON: is not allowed to be unset"),
    ] {
        let answer =
            build(&daemon, &format!("version=2{target}"), archive(&[("Dockerfile", dockerfile)])).await;
        assert!(answer.error().contains(error), "{error}\n{}", answer.error());
    }
}

#[tokio::test]
async fn warnings_reach_clients_with_all_that_belongs_to_them() {
    let daemon = Daemon::start();
    let dockerfile = "FROM scratch as Base\nRUN true \\\n\n && false\nFROM Base\nCMD a $x\nLABEL a $y\n";
    let dockerfile = dockerfile.replace("FROM Base", "FROM scratch");
    let files = archive(&[("Dockerfile", &dockerfile)]);
    let answer = build(&daemon, "version=2&progress=trace", files.clone()).await;
    let traces = traces(&answer);
    for needle in [
        "StageNameCasing: Stage name 'Base' should be lowercase (line 1)",
        "https://docs.docker.com/go/dockerfile/rule/stage-name-casing/",
        "Stage names should be lowercase",
        "NoEmptyContinuation: Empty continuation line (line 4)",
        "UndefinedVar: Usage of undefined variable '$y' (line 7)",
        "JSONArgsRecommended: JSON arguments recommended for CMD",
        &dockerfile,
    ] {
        assert!(contains(&traces, needle), "{needle}");
    }
    // Those who read lines get lines.
    let transcript = build(&daemon, "version=2", files).await.transcript();
    let told = "[Warning] UndefinedVar: Usage of undefined variable '$y' (line 7)\n";
    assert!(transcript.contains(told), "{transcript}");
    // The classic builder has one doubt.
    let classic = "FROM scratch as Base\nCMD true \\\n\n && false\n";
    let answer = build(&daemon, "", archive(&[("Dockerfile", classic)])).await;
    let transcript = answer.transcript();
    let told = "[WARNING]: Empty continuation line found in:\n    CMD true  && false\n\
                [WARNING]: Empty continuation lines will become errors in a future release.\n";
    assert!(transcript.contains(told), "{transcript}");
    assert!(transcript.find(told) < transcript.find("Step 1/2"), "{transcript}");
    assert!(!transcript.contains("StageNameCasing"), "{transcript}");
    // A build says how many, a check fails for them.
    let dir = directory(&daemon, "doubtful", &dockerfile);
    let shown = here(&daemon, &[], &dir).success();
    assert!(shown.stderr.contains("warnings found (use --debug to expand):"), "{}", shown.stderr);
    assert!(
        shown.stderr.contains(" - UndefinedVar: Usage of undefined variable '$y' (line 7)\n"),
        "{}",
        shown.stderr
    );
    let root = daemon.scratch().join("root");
    let records = lapstrake(["history", "ls", "--json", "--root", root.to_str().unwrap()]).success();
    let records: serde_json::Value = serde_json::from_str(&records.stdout).unwrap();
    let record = records.as_array().or(records["builds"].as_array()).and_then(|records| records.first());
    assert!(record.is_some_and(|record| record["warnings"].as_u64() >= Some(5)), "{records}");
}

#[test]
fn dockerfiles_are_checked_and_asked_as_by_buildx() {
    let daemon = Daemon::start();
    let dir = directory(
        &daemon,
        "asked",
        "# V what version\nARG V=1\n# base the first\nFROM scratch AS base\nARG V\nFROM base\nRUN --mount=type=secret,id=tok,required=true x\nCMD a\n",
    );
    let checked = here(&daemon, &["--check"], &dir);
    assert_eq!(checked.code, 1);
    assert!(
        checked.stdout.starts_with(
            "Check complete, 1 warning has been found!\n\nWARNING: JSONArgsRecommended - https://"
        ),
        "{}",
        checked.stdout
    );
    assert!(checked.stdout.contains("   8 | >>> CMD a\n"), "{}", checked.stdout);
    assert_eq!(here(&daemon, &["--call=check,ignorestatus=true"], &dir).code, 0);
    let clean =
        here(&daemon, &["--check", "--build-arg", "BUILDKIT_DOCKERFILE_CHECK=skip=all"], &dir).success();
    assert_eq!(clean.stdout, "Check complete, no warnings found.\n");

    let targets = here(&daemon, &["--call", "targets"], &dir).success();
    assert_eq!(targets.stdout, "TARGET    DESCRIPTION\nbase      the first\n(default) \n");
    let outline = here(&daemon, &["--print=outline"], &dir).success();
    assert_eq!(
        outline.stdout,
        "BUILD ARG   VALUE   DESCRIPTION\nV           1       what version\n\nSECRET   REQUIRED\ntok      true\n\n"
    );
    let json = here(&daemon, &["--call=outline,format=json", "--target=base"], &dir).success();
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((json["name"].as_str(), json["args"][0]["value"].as_str()), (Some("base"), Some("1")));
    let unknown = here(&daemon, &["--call=nothing"], &dir).failure();
    assert!(unknown.stderr.contains("unsupported request frontend.nothing"), "{}", unknown.stderr);

    let broken = directory(&daemon, "broken", "FROM scratch\nCMD a\nCOPPY a /\n");
    let checked = here(&daemon, &["--check"], &broken).failure();
    assert_shown(
        &checked.stderr,
        "ERROR: dockerfile parse error on line 3: unknown instruction: COPPY (did you mean COPY?)",
        &["3 | >>> COPPY a /", "| ^^^^^ expected an instruction, such as COPY"],
    );
    // Nothing was built, and nothing is remembered.
    let root = daemon.scratch().join("root");
    let records = lapstrake(["history", "ls", "--root", root.to_str().unwrap()]).success();
    assert!(!records.stdout.contains("completed") && !records.stdout.contains("error"), "{}", records.stdout);
}

#[test]
fn a_dockerfile_of_doubts_alone_is_told_within_bounds() {
    let daemon = Daemon::start();
    // Large enough that all warnings, each with the whole Dockerfile, would be gigabytes.
    let mut dockerfile = "FROM scratch\n".to_owned();
    for number in 0..2000 {
        dockerfile += &format!("LABEL l{number} {}\n", "x".repeat(500));
    }
    let dir = directory(&daemon, "doubts", &dockerfile);
    let shown = here(&daemon, &["-o", "type=cacheonly"], &dir).success();
    assert!(shown.stderr.contains("1001 warnings found"), "{}", &shown.stderr[shown.stderr.len() - 1000..]);
    assert!(shown.stderr.ends_with(" - and 1000 more\n"), "{}", &shown.stderr[shown.stderr.len() - 1000..]);
    let checked = here(&daemon, &["--check"], &dir);
    assert!(checked.stdout.starts_with("Check complete, 2000 warnings have been found!\n"));
}
