//! What planning asks for, what it says besides the graph, and what it refuses.

use std::sync::Arc;

use lapstrake_builder_dockerfile::facts::IgnoreFile;
use lapstrake_builder_dockerfile::options::{
    ContextSource, DockerfileSource, LocalContext, NamedContextSource,
};
use lapstrake_builder_dockerfile::{
    Answer, DockerfileOptions, EpochSource, Error, Facts, ImageFact, ImageOrigin, ImageQuery, Need, Plan,
    StepKind, dockerfile_definition, dockerignore_definition, plan,
};
use lapstrake_builder_llb::{Graph, Limits, dump};
use lapstrake_layerstore_oci::{Digest, ImageConfig, ImageId, Platform};
use proptest::prelude::*;

fn options() -> DockerfileOptions {
    let mut options = DockerfileOptions::new(Platform::new("linux", "amd64"));
    options.session_id = Some("s".to_owned());
    options
}

fn fact(query: &ImageQuery) -> ImageFact {
    let config = format!(
        r#"{{"architecture":"{}","os":"linux","rootfs":{{"type":"layers","diff_ids":["sha256:{}"]}}}}"#,
        query.platform.architecture,
        "1".repeat(64)
    );
    ImageFact {
        reference: query.reference.clone(),
        digest: None,
        config: config.into_bytes().into(),
        image_id: Some(ImageId(Digest::sha256_of("id"))),
    }
}

/// Plans, answering every need, and says how many rounds of questions there were.
fn plan_with(options: &DockerfileOptions, mut facts: Facts) -> Result<(Plan, Vec<Vec<Need>>), Error> {
    let mut rounds = Vec::new();
    loop {
        match plan(options, &facts)? {
            Answer::Plan(plan) => return Ok((*plan, rounds)),
            Answer::Need(needs) => {
                for need in &needs {
                    match need {
                        Need::ImageConfig { query, .. } => {
                            facts.images.insert(query.clone(), fact(query));
                        }
                        Need::ContextIgnore { name, .. } => {
                            facts.context_ignores.insert(name.clone(), None);
                        }
                        Need::HttpContextKind { .. } => facts.http_context_is_archive = Some(true),
                        Need::Epoch { value, .. } => _ = facts.epochs.insert(value.clone(), Some(7)),
                        need => panic!("{need:?}"),
                    }
                }
                rounds.push(needs);
                assert!(rounds.len() < 10);
            }
        }
    }
}

fn planned(dockerfile: &str) -> Plan {
    plan_with(&options(), Facts::new(dockerfile.as_bytes())).unwrap().0
}

fn refused(dockerfile: &str) -> Error {
    plan_with(&options(), Facts::new(dockerfile.as_bytes())).unwrap_err()
}

fn asked(rounds: &[Vec<Need>]) -> Vec<Vec<String>> {
    let name = |need: &Need| match need {
        Need::ImageConfig { query, .. } => format!("{} {}", query.reference.familiar(), query.platform),
        other => format!("{other:?}"),
    };
    rounds.iter().map(|needs| needs.iter().map(name).collect()).collect()
}

#[test]
fn only_images_of_needed_stages_are_asked_for_and_all_at_once() {
    let dockerfile = "
        FROM unused AS a
        FROM busybox AS b
        RUN --mount=from=tools,target=/t x
        FROM --platform=linux/arm64 alpine
        COPY --from=b / /
        COPY --from=extra:1 / /
        COPY --from=extra:1 /x /
    ";
    let (_, rounds) = plan_with(&options(), Facts::new(dockerfile.as_bytes())).unwrap();
    let all = vec![
        "busybox:latest linux/amd64".to_owned(),
        "alpine:latest linux/arm64".to_owned(),
        "tools:latest linux/amd64".to_owned(),
        "extra:1 linux/amd64".to_owned(),
    ];
    assert_eq!(asked(&rounds), [all]);
}

#[test]
fn all_platforms_are_asked_for_at_once() {
    let mut options = options();
    options.platforms = vec![Platform::new("linux", "amd64"), Platform::new("linux", "arm64")];
    let dockerfile = "FROM --platform=$BUILDPLATFORM busybox\nFROM busybox\nCOPY --from=0 / /\n";
    let (plan, rounds) = plan_with(&options, Facts::new(dockerfile.as_bytes())).unwrap();
    let asked = asked(&rounds);
    assert_eq!(asked, [["busybox:latest linux/amd64", "busybox:latest linux/arm64"]]);
    let platforms: Vec<String> = plan.targets.iter().map(|t| t.platform.to_string()).collect();
    assert_eq!(platforms, ["linux/amd64", "linux/arm64"]);
    assert!(plan.multi_platform);
}

#[test]
fn triggers_may_need_more_images_than_the_dockerfile_shows() {
    let mut facts = Facts::new(&b"FROM tool\n"[..]);
    let query = ImageQuery {
        origin: ImageOrigin::registry(Default::default()),
        reference: "tool:latest".parse().unwrap(),
        platform: Platform::new("linux", "amd64"),
    };
    let mut config = ImageConfig::from_json(&fact(&query).config).unwrap();
    config.config.on_build = vec!["COPY --from=helper /x /y".to_owned(), "ENV A=b".to_owned()];
    let config: Arc<[u8]> = config.to_json().unwrap().into();
    facts.images.insert(query.clone(), ImageFact { config, ..fact(&query) });
    let (plan, rounds) = plan_with(&options(), facts).unwrap();
    assert_eq!(asked(&rounds), [["helper:latest linux/amd64"]]);
    let target = &plan.targets[0];
    assert!(target.config.config.on_build.is_empty());
    let steps: Vec<(&str, bool)> = target.steps.iter().map(|s| (s.text.as_str(), s.trigger)).collect();
    assert_eq!(steps, [("FROM tool", false), ("COPY --from=helper /x /y", true), ("ENV A=b", true)]);
    let StepKind::From { triggers, .. } = &target.steps[0].kind else { panic!("a FROM") };
    assert_eq!(*triggers, 2);
}

#[test]
fn steps_tell_what_they_made_and_change_with_what_came_before() {
    let dockerfile = "ARG v=1\nFROM busybox AS base\nENV a=b\nRUN make \\\n  all\nWORKDIR /\nFROM scratch\nCOPY --from=base /o /\n";
    let plan = planned(dockerfile);
    let steps = &plan.targets[0].steps;
    let texts: Vec<&str> = steps.iter().map(|s| s.text.as_str()).collect();
    let expected = [
        "ARG v=1",
        "FROM busybox AS base",
        "ENV a=b",
        "RUN make   all",
        "WORKDIR /",
        "FROM scratch",
        "COPY --from=base /o /",
    ];
    assert_eq!(texts, expected);
    let metadata_only: Vec<bool> = steps.iter().map(|s| s.is_metadata_only()).collect();
    assert_eq!(metadata_only, [true, true, true, false, true, true, false]);
    assert_eq!(steps[0].kind, StepKind::GlobalArg);
    let id = Some(ImageId(Digest::sha256_of("id")));
    assert_eq!(steps[1].kind, StepKind::From { image_id: id, scratch: false, triggers: 0 });
    let args = ["/bin/sh", "-c", "make   all"].map(str::to_owned).to_vec();
    assert_eq!(steps[3].kind, StepKind::Run { args });
    assert_eq!(steps[5].kind, StepKind::From { image_id: None, scratch: true, triggers: 0 });
    let stages: Vec<Option<usize>> = steps.iter().map(|s| s.stage).collect();
    assert_eq!(stages, [None, Some(0), Some(0), Some(0), Some(0), Some(1), Some(1)]);

    let changed = planned(&dockerfile.replace("a=b", "a=c"));
    let other = &changed.targets[0].steps;
    let same: Vec<bool> = steps.iter().zip(other).map(|(a, b)| a.state == b.state).collect();
    // The COPY differs as well: what it copies from does.
    assert_eq!(same, [true, true, false, false, false, true, false]);
    assert_eq!(plan, planned(dockerfile), "the same again");
}

#[test]
fn a_stage_begins_as_the_one_it_starts_from_ends() {
    let plan = planned("FROM busybox AS a\nRUN x\nFROM scratch AS other\nFROM a\nCOPY --from=other / /\n");
    let steps = &plan.targets[0].steps;
    let state = |text: &str| &steps.iter().find(|s| s.text == text).unwrap().state;
    assert_eq!(state("FROM a"), state("RUN x"));
    assert_ne!(state("FROM scratch AS other"), state("RUN x"));
}

#[test]
fn times_that_no_config_can_hold_are_refused() {
    let mut options = options();
    options.build_args.insert("SOURCE_DATE_EPOCH".to_owned(), i64::MAX.to_string());
    let error = plan_with(&options, Facts::new(&b"FROM scratch\n"[..])).unwrap_err().to_string();
    assert_eq!(error, format!("invalid SOURCE_DATE_EPOCH: {}", i64::MAX));
}

/// Words that are at odds with one rule or another.
fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("x".to_owned()),
        Just("$A".to_owned()),
        Just("${A:-b}".to_owned()),
        Just("${".to_owned()),
        Just("\"q".to_owned()),
        Just("A=b".to_owned()),
        Just("--from=0".to_owned()),
        Just("--from=s".to_owned()),
        Just("--from=-1".to_owned()),
        Just("--link".to_owned()),
        Just("--parents".to_owned()),
        Just("--chmod=u+x".to_owned()),
        Just("--chown=:".to_owned()),
        Just("--mount=type=cache,target=/".to_owned()),
        Just("--mount=type=cache,target=,uid=1".to_owned()),
        Just("--mount=type=secret,id=/".to_owned()),
        Just("--mount=from=s,target=../..".to_owned()),
        Just("--platform=$A".to_owned()),
        Just("AS s".to_owned()),
        Just("scratch".to_owned()),
        Just("<<E".to_owned()),
        Just("https://h/%zz".to_owned()),
        Just("https://h/x.git?ref=%20#:..".to_owned()),
        Just("git@h:".to_owned()),
        Just("/./".to_owned()),
        Just("..".to_owned()),
        Just("1-70000/x".to_owned()),
        Just("[::1:80".to_owned()),
        Just("[\"a\"]".to_owned()),
        "\\PC{0,6}",
    ]
}

fn line() -> impl Strategy<Value = String> {
    let keyword = prop_oneof![
        Just("FROM"),
        Just("FROM scratch AS"),
        Just("RUN"),
        Just("COPY"),
        Just("ADD"),
        Just("ENV"),
        Just("ARG"),
        Just("WORKDIR"),
        Just("EXPOSE"),
        Just("VOLUME"),
        Just("LABEL"),
        Just("USER"),
        Just("CMD"),
        Just("ENTRYPOINT"),
        Just("HEALTHCHECK CMD"),
        Just("STOPSIGNAL"),
        Just("SHELL"),
        Just("ONBUILD COPY"),
        Just("MAINTAINER"),
    ];
    (keyword, prop::collection::vec(word(), 1..4))
        .prop_map(|(keyword, words)| format!("{keyword} {}\n", words.join(" ")))
}

proptest! {
    #[test]
    fn whatever_parses_is_planned_or_refused(lines in prop::collection::vec(line(), 0..8)) {
        let text = format!("FROM busybox AS s\n{}", lines.concat());
        if let Ok((plan, _)) = plan_with(&options(), Facts::new(text.into_bytes())) {
            for target in plan.targets.iter().filter(|t| !t.definition.is_scratch()) {
                let graph = Graph::parse(&target.definition, Limits::default());
                prop_assert!(graph.is_ok(), "{graph:?}");
            }
        }
    }

    #[test]
    fn single_instructions_are_planned_or_refused(line in line()) {
        let text = format!("FROM busybox AS s\n{line}");
        let _ = plan_with(&options(), Facts::new(text.into_bytes()));
    }
}

#[test]
fn faults_name_their_lines() {
    let lines = |dockerfile: &str| match refused(dockerfile) {
        Error::Lower { lines, .. } => lines.iter().map(|l| (l.start, l.end)).collect::<Vec<_>>(),
        other => panic!("{other}"),
    };
    assert_eq!(lines("FROM busybox\nWORKDIR \\\n  /${x:?no}\n"), [(2, 3)]);
    assert_eq!(lines("FROM a AS a\nCOPY --from=b / /\nFROM b AS b\nCOPY --from=a / /\n"), [(2, 2), (4, 4)]);
    assert_eq!(lines("FROM busybox\nRUN --mount=type=ssh,source=x y\n"), [(2, 2)]);
    assert_eq!(refused("FROM busybox\nNOPE x\n").lines().map(|l| l.start), Some(2));
}

#[test]
fn faulty_names_in_unused_stages_are_still_faults() {
    assert!(refused("FROM UPPER AS a\nFROM busybox\n").to_string().contains("must be lowercase"));
}

#[test]
fn images_that_exist_only_here_are_not_pinned() {
    let plan = planned("FROM local\n");
    let graph = Graph::parse(&plan.targets[0].definition, Limits::default()).unwrap();
    assert!(dump(&graph).contains("\"docker-image://docker.io/library/local:latest\""));
}

#[test]
fn running_on_windows_is_refused() {
    let error = refused("FROM --platform=windows/amd64 busybox\nCOPY a b\nRUN x\n").to_string();
    assert_eq!(error, "RUN for Windows is not supported");
}

#[test]
fn dockerfiles_are_read_from_where_they_are() {
    let names = |options: &DockerfileOptions, facts: &Facts| {
        let definition = dockerfile_definition(options, facts).unwrap();
        dump(&Graph::parse(&definition, Limits::default()).unwrap())
    };
    let mut options = options();
    options.dockerfile_name = "sub/Dockerfile".to_owned();
    insta::assert_snapshot!("read_local", names(&options, &Facts::default()));
    let ignore = dockerignore_definition(&options).unwrap().unwrap();
    insta::assert_snapshot!("read_ignore", dump(&Graph::parse(&ignore, Limits::default()).unwrap()));

    options.context = ContextSource::Http { url: "https://example.com/x".to_owned() };
    options.dockerfile_source = DockerfileSource::MainContext;
    let archive = Facts { http_context_is_archive: Some(true), ..Facts::default() };
    insta::assert_snapshot!("read_archive", names(&options, &archive));
    assert_eq!(dockerignore_definition(&options), Ok(None));
    options.context = ContextSource::Git {
        reference: "https://example.com/x.git#v1:d".to_owned(),
        keep_git_dir: Some(true),
    };
    insta::assert_snapshot!("read_git", names(&options, &Facts::default()));
}

#[test]
fn downloaded_contexts_are_unpacked_and_scoped() {
    let mut options = options();
    options.context = ContextSource::Http { url: "https://example.com/x".to_owned() };
    options.dockerfile_source = DockerfileSource::MainContext;
    options.context_subdir = Some("sub".to_owned());
    let (plan, rounds) = plan_with(&options, Facts::new(&b"FROM scratch\nCOPY a /\n"[..])).unwrap();
    assert_eq!(rounds, [[Need::HttpContextKind { url: "https://example.com/x".to_owned() }]]);
    insta::assert_snapshot!(dump(&Graph::parse(&plan.targets[0].definition, Limits::default()).unwrap()));
}

#[test]
fn the_contexts_time_can_be_the_epoch() {
    let mut options = options();
    options.context =
        ContextSource::Git { reference: "https://example.com/x.git".to_owned(), keep_git_dir: None };
    options.dockerfile_source = DockerfileSource::MainContext;
    options.build_args.insert("SOURCE_DATE_EPOCH".to_owned(), "context".to_owned());
    let dockerfile = &b"FROM scratch\nARG SOURCE_DATE_EPOCH\nLABEL t=$SOURCE_DATE_EPOCH\n"[..];
    let (plan, rounds) = plan_with(&options, Facts::new(dockerfile)).unwrap();
    let [need] = &rounds[0][..] else { panic!("{rounds:?}") };
    let Need::Epoch { value, definition, source: EpochSource::Commit } = need else { panic!("{need:?}") };
    let text = dump(&Graph::parse(&definition.definition(), Limits::default()).unwrap());
    assert!(value == "context" && text.contains(r#""git.mtime":"commit""#), "{text}");
    assert_eq!(plan.targets[0].epoch, Some(7));
    assert_eq!(plan.targets[0].config.config.labels["t"], "7");
    let created = plan.targets[0].config.history[0].created.as_ref().unwrap();
    assert_eq!(created.as_str(), "1970-01-01T00:00:07Z");
}

#[test]
fn a_named_context_or_a_stage_can_be_the_epoch() {
    let with = |value: &str, dockerfile: &str| {
        let mut options = options();
        options.build_args.insert("SOURCE_DATE_EPOCH".to_owned(), value.to_owned());
        for (name, specifier) in [
            ("repo", "https://example.com/x.git"),
            ("page", "https://example.com/x.tar"),
            ("image", "docker-image://alpine"),
            ("bare", "nothing"),
        ] {
            let source = NamedContextSource {
                specifier: specifier.to_owned(),
                shared_key: String::new(),
                input_metadata: None,
            };
            options.named_contexts.insert(name.to_owned(), source);
        }
        plan_with(&options, Facts::new(dockerfile.as_bytes()))
            .map(|(plan, rounds)| (plan.targets[0].epoch, rounds))
            .map_err(|error| error.to_string())
    };
    let source = |rounds: &[Vec<Need>]| match &rounds[0][0] {
        Need::Epoch { source, .. } => source.clone(),
        need => panic!("{need:?}"),
    };
    let (epoch, rounds) = with("repo", "FROM scratch\n").unwrap();
    assert_eq!((epoch, source(&rounds)), (Some(7), EpochSource::Commit));
    let (epoch, rounds) = with("page", "FROM scratch\n").unwrap();
    assert_eq!((epoch, source(&rounds)), (Some(7), EpochSource::Download { file: "context".to_owned() }));
    let (epoch, rounds) = with("image", "FROM scratch\n").unwrap();
    assert_eq!((epoch, rounds.len()), (None, 0));
    let stage = "ARG V=1\nFROM scratch AS src\nARG V\nADD https://example.com/a-$V.tar /\nFROM scratch\n";
    let (epoch, rounds) = with("src", stage).unwrap();
    assert_eq!((epoch, source(&rounds)), (Some(7), EpochSource::Download { file: "a-1.tar".to_owned() }));
    for (value, dockerfile, problem) in [
        ("soon", "FROM scratch\n", "invalid SOURCE_DATE_EPOCH: soon"),
        ("Not A Name", "FROM scratch\n", "invalid context name Not A Name"),
        ("bare", "FROM scratch\n", "invalid context specifier nothing for bare"),
        ("s", "FROM alpine AS s\n", "must use FROM scratch"),
        ("s", "FROM scratch AS s\n", "exactly one remote ADD"),
        ("s", "FROM scratch AS s\nADD https://h/a /\nADD https://h/b /\n", "exactly one remote ADD"),
        ("s", "FROM scratch AS s\nADD https://h/a https://h/b /\n", "exactly one remote ADD source"),
        ("s", "FROM scratch AS s\nADD a /\n", "must be a single HTTP(S) or Git ADD"),
        ("s", "FROM scratch AS s\nADD https://h/a /\nENV A=1\n", "unsupported ENV instruction"),
    ] {
        let error = with(value, dockerfile).unwrap_err();
        assert!(error.contains(problem), "{value} {dockerfile}: {error}");
    }
}

#[test]
fn contexts_without_a_session_are_told_apart_by_what_the_caller_says() {
    let mut options = options();
    options.session_id = None;
    let unique_id = Some("build-7".to_owned());
    options.context = ContextSource::Local(LocalContext { unique_id, ..LocalContext::named("context") });
    let (plan, _) = plan_with(&options, Facts::new(&b"FROM scratch\nCOPY a /\n"[..])).unwrap();
    let text = dump(&Graph::parse(&plan.targets[0].definition, Limits::default()).unwrap());
    assert!(text.contains(r#""local.unique":"build-7""#), "{text}");
}

#[test]
fn inputs_take_the_place_of_images() {
    let mut theirs = planned("FROM busybox\nRUN theirs\n");
    let definition = theirs.targets.remove(0).definition;
    let mut options = options();
    let source = NamedContextSource {
        specifier: "input:x".to_owned(),
        shared_key: String::new(),
        // {"config":{"Env":["A=b"],"WorkingDir":"/w"},"os":"linux","architecture":"amd64"}
        input_metadata: Some(
            r#"{"containerimage.config":"eyJjb25maWciOnsiRW52IjpbIkE9YiJdLCJXb3JraW5nRGlyIjoiL3cifSwib3MiOiJsaW51eCIsImFyY2hpdGVjdHVyZSI6ImFtZDY0In0="}"#
                .to_owned(),
        ),
    };
    options.named_contexts.insert("base".to_owned(), source);
    let mut facts = Facts::new(&b"FROM base\nRUN ours\n"[..]);
    facts.inputs.insert("x".to_owned(), definition.clone());
    let (plan, rounds) = plan_with(&options, facts).unwrap();
    assert!(rounds.is_empty());
    assert_eq!(plan.targets[0].definition.ops[..2], definition.ops[..2]);
    assert_eq!(plan.targets[0].config.config.working_dir, "/w");

    let missing = plan_with(&options, Facts::new(&b"FROM base\n"[..])).unwrap_err().to_string();
    assert_eq!(missing, "invalid input x for base");
}

#[test]
fn a_stage_replaced_by_a_directory_still_has_a_platform() {
    let mut options = options();
    let specifier = "local:files".to_owned();
    let source = NamedContextSource { specifier, shared_key: String::new(), input_metadata: None };
    options.named_contexts.insert("files".to_owned(), source);
    let facts = Facts::new(&b"FROM busybox AS files\nRUN never\n"[..]);
    let (plan, rounds) = plan_with(&options, facts).unwrap();
    assert!(matches!(&rounds[0][..], [Need::ContextIgnore { name, .. }] if name == "files"));
    let config = &plan.targets[0].config;
    assert_eq!((config.architecture.as_str(), config.os.as_str()), ("amd64", "linux"));
    assert!(plan.targets[0].steps.is_empty(), "its instructions are not run");
}

#[test]
fn malformed_ignore_files_are_named() {
    let mut facts = Facts::new(&b"FROM scratch\nCOPY a /\n"[..]);
    facts.dockerignore =
        Some(IgnoreFile { name: "Dockerfile.dockerignore".to_owned(), data: b"[".to_vec().into() });
    let error = plan_with(&options(), facts).unwrap_err().to_string();
    assert!(error.starts_with("failed parsing Dockerfile.dockerignore: "), "{error}");
}

#[test]
fn a_config_that_is_none_is_refused_by_name() {
    let mut facts = Facts::new(&b"FROM busybox\n"[..]);
    let Answer::Need(needs) = plan(&options(), &facts).unwrap() else { panic!("an image is needed") };
    let Need::ImageConfig { query, .. } = &needs[0] else { panic!("an image is needed") };
    facts.images.insert(query.clone(), ImageFact { config: b"[]".to_vec().into(), ..fact(query) });
    let error = plan(&options(), &facts).unwrap_err().to_string();
    assert!(error.starts_with("busybox: failed to parse image config: "), "{error}");
}

#[test]
fn long_dockerfiles_cost_neither_stack_nor_quadratic_memory() {
    let chain: String = (1..8_000).map(|i| format!("FROM s{} AS s{i}\nLABEL l{i}=x\n", i - 1)).collect();
    let error = plan_with(&options(), Facts::new(format!("FROM busybox AS s0\n{chain}").into_bytes()));
    assert!(error.unwrap_err().to_string().contains("describes more than"));

    let chain: String = (1..8_000).map(|i| format!("FROM s{} AS s{i}\nUSER u{i}\n", i - 1)).collect();
    let (plan, _) =
        plan_with(&options(), Facts::new(format!("FROM busybox AS s0\n{chain}").into_bytes())).unwrap();
    assert_eq!(plan.targets[0].config.history.len(), 7_999);

    let copies: String =
        (1..4_000).map(|i| format!("FROM scratch AS c{i}\nCOPY --from=c{} / /\n", i - 1)).collect();
    planned(&format!("FROM busybox AS c0\n{copies}"));

    let variables: String = (0..12_000).map(|i| format!("ENV v{i}=x\nRUN y\n")).collect();
    let error = refused(&format!("FROM busybox\n{variables}")).to_string();
    assert!(error.contains("describes more than") || error.contains("larger than"), "{error}");

    let doubled: String = "ENV a=$a$a\n".repeat(60);
    let error = refused(&format!("FROM busybox\nENV a=0123456789\n{doubled}")).to_string();
    assert!(error.contains("expands to more than"), "{error}");
}
