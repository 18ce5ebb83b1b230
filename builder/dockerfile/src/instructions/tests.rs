use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::lint::{Config, Rule};
use crate::shell::{Lexer, NoVariables};

fn parse(text: &str) -> Dockerfile {
    Dockerfile::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn one(line: &str) -> Instruction {
    let mut stage = parse(&format!("FROM scratch\n{line}")).stages.remove(0);
    assert_eq!(stage.commands.len(), 1);
    stage.commands.remove(0).instruction
}

fn error(text: &str) -> String {
    Dockerfile::parse(text.as_bytes()).expect_err(text).to_string()
}

/// The error of one instruction, without where it is.
#[track_caller]
fn refusal(line: &str) -> String {
    let text = error(&format!("FROM scratch\n{line}"));
    text.strip_prefix("dockerfile parse error on line 2: ").unwrap_or_else(|| panic!("{text}")).to_owned()
}

#[test]
fn stages_have_names_platforms_and_descriptions() {
    let file = parse(
        "ARG V=1\n# build makes it\nfrom --platform=$X golang:$V as Build\nRUN a\nFROM build\nFROM scratch AS last\n",
    );
    assert_eq!(file.meta_args[0].arg.declarations[0].value.as_deref(), Some("1"));
    let [build, middle, last] = file.stages.as_slice() else { panic!() };
    assert_eq!((build.name.as_deref(), build.base.as_str()), (Some("build"), "golang:$V"));
    assert_eq!(build.platform.as_deref(), Some("$X"));
    assert_eq!(build.doc_comment.as_deref(), Some("makes it"));
    assert_eq!(build.source.code, "from --platform=$X golang:$V as Build");
    assert_eq!(build.commands.len(), 1);
    assert_eq!(build.commands[0].source.lines, LineRange::line(4));
    assert_eq!((middle.name.as_deref(), last.name.as_deref()), (None, Some("last")));
}

#[test]
fn files_without_stages_are_refused() {
    assert_eq!(error(""), "the Dockerfile cannot be empty");
    assert_eq!(error("# x"), "file with no instructions");
    assert_eq!(error("ARG a"), "dockerfile contains no stages to build");
    assert_eq!(error("RUN a\nFROM b"), "no build stage in current context");
}

#[test]
fn unknown_instructions_are_named_with_their_line_and_a_suggestion() {
    assert_eq!(error("FROM a\n\nXYZZY b"), "dockerfile parse error on line 3: unknown instruction: XYZZY");
    assert_eq!(refusal("RUM x"), "unknown instruction: RUM (did you mean RUN?)");
    assert_eq!(refusal("entrypiont x"), "unknown instruction: entrypiont (did you mean entrypoint?)");
    let error = Dockerfile::parse(b"FROM a\nFOO \\\nb").unwrap_err();
    assert_eq!(error.lines(), Some(LineRange::new(2, 3)));
}

#[test]
fn an_error_of_the_text_wins_over_an_earlier_one_of_an_instruction() {
    assert_eq!(error("FROM a b\nENV x"), "ENV must have two arguments");
}

#[test]
fn wrong_arguments_are_refused_in_buildkits_words() {
    for (line, text) in [
        ("FROM", "FROM requires either one or three arguments"),
        ("FROM a b", "FROM requires either one or three arguments"),
        ("FROM a is b", "FROM requires either one or three arguments"),
        (
            "FROM a AS 1b",
            "invalid name for build stage: \"1b\", name can't start with a number or contain symbols",
        ),
        ("FROM --foo=a b", "unknown flag: --foo"),
        ("ENV", "ENV requires at least one argument"),
        ("ENV =a", "ENV names can not be blank"),
        ("LABEL --x=y a=b", "unknown flag: --x"),
        ("ARG", "ARG requires at least one argument"),
        ("ARG =x", "ARG names can not be blank"),
        (
            "COPY a",
            "COPY requires at least two arguments, but only one was provided. Destination could not be determined",
        ),
        (
            "ADD []",
            "ADD requires at least two arguments, but only one was provided. Destination could not be determined",
        ),
        ("COPY --form=x a b", "unknown flag: --form (did you mean from?)"),
        ("COPY --from a b", "missing a value on flag: --from"),
        ("COPY --link= a b", "missing a value on flag: --link"),
        ("COPY --link=yes a b", "expecting boolean value for flag --link, not: yes"),
        ("COPY --from=a --from=b a b", "duplicate flag specified: --from"),
        ("ADD --from=a b c", "unknown flag: --from"),
        ("USER", "USER requires exactly one argument"),
        ("WORKDIR", "WORKDIR requires exactly one argument"),
        ("STOPSIGNAL", "STOPSIGNAL requires exactly one argument"),
        ("MAINTAINER", "MAINTAINER requires exactly one argument"),
        ("EXPOSE", "EXPOSE requires at least one argument"),
        ("VOLUME", "VOLUME requires at least one argument"),
        ("VOLUME [\"\"]", "VOLUME specified can not be an empty string"),
        ("SHELL", "SHELL requires at least one argument"),
        ("SHELL []", "SHELL requires at least one argument"),
        ("SHELL sh -c", "SHELL requires the arguments to be in JSON form"),
        ("RUN --network=foo x", "invalid network mode \"foo\""),
        ("RUN --security=foo x", "security \"foo\" is not valid"),
        ("RUN --mount=from=$a x", "'from' doesn't support variable expansion, define alias stage instead"),
        (
            "RUN --mount=a\\\"b x",
            "failed to parse csv mounts: parse error on line 1, column 2: bare \" in non-quoted-field",
        ),
        ("RUN --device=name=a,name=b x", "device name already set to a"),
        ("CMD --a b", "unknown flag: --a"),
        ("HEALTHCHECK", "HEALTHCHECK requires at least one argument"),
        ("HEALTHCHECK NONE x", "HEALTHCHECK NONE takes no arguments"),
        ("HEALTHCHECK foo x", "Unknown type \"FOO\" in HEALTHCHECK (try CMD)"),
        ("HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD"),
        ("HEALTHCHECK --interval=5 CMD x", "time: missing unit in duration \"5\""),
        ("HEALTHCHECK --interval=1us CMD x", "Interval \"interval\" cannot be less than 1ms"),
        ("HEALTHCHECK --timeout=-1s CMD x", "Interval \"timeout\" cannot be less than 1ms"),
        ("HEALTHCHECK --retries=-1 CMD x", "--retries cannot be negative (-1)"),
        ("HEALTHCHECK --retries=a CMD x", "strconv.ParseInt: parsing \"a\": invalid syntax"),
        (
            "HEALTHCHECK --retries=9999999999 CMD x",
            "strconv.ParseInt: parsing \"9999999999\": value out of range",
        ),
        ("ONBUILD", "ONBUILD requires at least one argument"),
        ("ONBUILD ONBUILD RUN x", "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
        ("onbuild from x", "FROM isn't allowed as an ONBUILD trigger"),
        ("ONBUILD MAINTAINER x", "MAINTAINER isn't allowed as an ONBUILD trigger"),
        ("ONBUILD --x=y RUN x", "unknown flag: --x"),
        ("COPY a <<EOF\nEOF", "COPY cannot accept a heredoc as a destination"),
    ] {
        assert_eq!(refusal(line), text, "{line}");
    }
}

#[test]
fn run_takes_flags_heredocs_and_both_forms() {
    let Instruction::Run(run) = one(
        "RUN --mount=type=cache,target=/c --network=host --security=insecure --mount=from=b,target=/b --device=v.com/d=x,required <<EOF sh\nhi\nEOF",
    ) else {
        panic!()
    };
    assert_eq!(run.command, CommandLine::Shell("<<EOF sh".to_owned()));
    assert_eq!(run.heredocs[0].content, "hi\n");
    assert_eq!((run.network, run.security), (Network::Host, Security::Insecure));
    assert_eq!(run.flags_used, ["mount", "network", "security", "device"]);
    assert_eq!(run.mounts[0].raw(), "type=cache,target=/c");
    assert_eq!((run.mounts[0].from(), run.mounts[1].from()), (None, Some("b")));
    assert_eq!(run.devices, [Device { name: "v.com/d=x".to_owned(), required: true }]);
    let Instruction::Run(run) = one("RUN [\"a\", \"b c\"]") else { panic!() };
    assert_eq!(run.command, CommandLine::Exec(vec!["a".to_owned(), "b c".to_owned()]));
}

#[test]
fn transfers_take_flags_and_inline_files() {
    let Instruction::Copy(copy) = one(
        "COPY --from=0 --chown=a:b --chmod=u+x --link --parents --exclude=*.o --exclude=b a <<-'F' c /d\n\t$x\n\tF",
    ) else {
        panic!()
    };
    assert_eq!(copy.transfer.sources, ["a", "c"]);
    assert_eq!(copy.transfer.destination, "/d");
    assert_eq!(
        copy.transfer.inline_files,
        [InlineFile { name: "F".to_owned(), data: "$x\n".to_owned(), expand: false }]
    );
    assert_eq!(
        (copy.from.as_deref(), copy.chown.as_deref(), copy.chmod.as_deref()),
        (Some("0"), Some("a:b"), Some("u+x"))
    );
    assert!(copy.link && copy.parents);
    assert_eq!(copy.excludes, ["*.o", "b"]);
    let Instruction::Add(add) =
        one("ADD --checksum=sha256:x --keep-git-dir=true --unpack=FALSE [\"a b\", \"/c\"]")
    else {
        panic!()
    };
    assert_eq!((add.keep_git_dir, add.unpack, add.link), (Some(true), Some(false), false));
    assert_eq!(add.transfer.sources, ["a b"]);
    assert_eq!(add.checksum.as_deref(), Some("sha256:x"));
}

#[test]
fn healthchecks_have_timings() {
    assert_eq!(one("HEALTHCHECK none"), Instruction::Healthcheck(Healthcheck::None));
    let expected = HealthOptions {
        interval: Some(Duration::from_secs(90)),
        timeout: None,
        start_period: Some(Duration::from_millis(1)),
        start_interval: Some(Duration::from_secs(1)),
        retries: Some(3),
    };
    let Instruction::Healthcheck(Healthcheck::Check { command, options }) = one(
        "HEALTHCHECK --interval=1m30s --timeout=0 --start-period=1ms --start-interval=1s --retries=3 CMD [\"a\"]",
    ) else {
        panic!()
    };
    assert_eq!((command, options), (CommandLine::Exec(vec!["a".to_owned()]), expected));
}

#[test]
fn ports_are_sorted_and_volumes_trimmed() {
    assert_eq!(
        one("EXPOSE 90/tcp $P 80"),
        Instruction::Expose(Expose { ports: vec!["$P".into(), "80".into(), "90/tcp".into()] })
    );
    assert_eq!(one("VOLUME [\" /a \"]"), Instruction::Volume(Volume { paths: vec!["/a".into()] }));
}

#[test]
fn triggers_keep_their_text_and_parse_later() {
    let Instruction::Onbuild(onbuild) = one("onbuild  run <<A\n x\nA") else { panic!() };
    assert_eq!(onbuild.expression, "run <<A\n x\nA");
    let command = Command::parse_trigger(&onbuild.expression).unwrap();
    let Instruction::Run(run) = command.instruction else { panic!() };
    assert_eq!(run.heredocs[0].content, " x\n");
    let text = |expression| Command::parse_trigger(expression).unwrap_err().to_string();
    assert_eq!(text("RUN a\nRUN b"), "onbuild trigger should be a single expression");
    assert_eq!(text("FROM a"), "FROM isn't allowed as an ONBUILD trigger");
    assert_eq!(text("XYZZY"), "unknown instruction: XYZZY");
}

fn mount(raw: &str) -> Result<Mount, String> {
    let lexer = Lexer::new(EscapeToken::Backslash);
    let variables = BTreeMap::from([("ID".to_owned(), "x".to_owned()), ("T".to_owned(), "cache".to_owned())]);
    let spec = MountSpec::new(raw).map_err(|error| error.to_string())?;
    spec.resolve(&mut |word| Ok(lexer.expand(word, &variables)?.value)).map_err(|error| error.to_string())
}

#[test]
fn mounts_are_understood_once_expanded() {
    let cache = mount("type=$T,id=$ID,dst=/c,sharing=locked,mode=0755,uid=1,gid=2,from=base,src=/s").unwrap();
    assert_eq!((cache.kind, cache.id.as_str(), cache.target.as_str()), (MountType::Cache, "x", "/c"));
    assert_eq!((cache.mode, cache.uid, cache.gid), (Some(0o755), Some(1), Some(2)));
    assert_eq!((cache.sharing, cache.read_only), (Some(CacheSharing::Locked), false));
    assert_eq!((cache.from.as_str(), cache.source.as_str()), ("base", "/s"));
    assert!(mount("target=/a").unwrap().read_only);
    assert!(!mount("target=/a,rw").unwrap().read_only);
    assert!(mount("type=cache,target=/a,readwrite=false").unwrap().read_only);
    assert!(!mount("target=/a,RO=0").unwrap().read_only);
    let secret = mount("type=secret,id=a,required,env=TOKEN,mode=0400").unwrap();
    assert!(secret.required && secret.env.as_deref() == Some("TOKEN"));
    assert_eq!(mount("type=tmpfs,target=/t,size=1.5m").unwrap().size_limit, 1_572_864);
    assert!(mount("type=ssh,required=true").unwrap().required);
    assert_eq!(mount("\"target=/a,b\"").unwrap().target, "/a,b");
}

#[test]
fn wrong_mounts_are_refused_in_buildkits_words() {
    for (raw, text) in [
        ("type=cahce", "unsupported mount type \"cahce\" (did you mean cache?)"),
        ("type=cache,sharing=x", "unsupported sharing value \"x\""),
        ("foo", "invalid field 'foo' must be a key=value pair"),
        ("traget=/a", "unexpected key 'traget' in 'traget=/a' (did you mean target?)"),
        ("required", "unexpected key 'required' for mount type 'bind'"),
        ("size=1,type=tmpfs", "unexpected key 'size' for mount type 'bind'"),
        ("type=tmpfs,size=x", "invalid value for size: x"),
        ("ro=maybe", "invalid value for ro: maybe"),
        ("type=cache,mode=9", "invalid value 9 for mode"),
        ("type=cache,uid=+1", "invalid value +1 for uid"),
        ("type=bind,gid=1", "gid not allowed for \"bind\" type mounts"),
        ("type=secret", "invalid secret mount. one of source, target required"),
        ("type=secret,id=a,from=b", "secret mount should not have a from"),
        ("type=secret,id=a,sharing=shared", "secret mount should not define sharing"),
        ("type=secret,id=a,src=b", "both source and id can't be set"),
        ("sharing=shared", "invalid cache sharing set for bind mount"),
        ("", "failed to parse csv mounts: EOF"),
        ("id=${X:?no}", "failed to process \"${X:?no}\": X: no"),
    ] {
        assert_eq!(mount(raw).unwrap_err(), text, "{raw}");
    }
}

#[test]
fn expansion_reaches_what_it_should_and_no_more() {
    let variables = BTreeMap::from([("V".to_owned(), "v w".to_owned())]);
    let expand = |line: &str| {
        let lexer = Lexer::new(EscapeToken::Backslash);
        let mut word = |text: &str| Ok(lexer.expand(text, &variables)?.value);
        let mut heredoc = |text: &str| Ok(Lexer::for_heredoc().expand(text, &variables)?.value);
        one(line).expand(&mut Expanders { word: &mut word, heredoc: &mut heredoc }).unwrap().into_owned()
    };
    assert_eq!(expand("ENV $V='$V'").to_text(EscapeToken::Backslash), "ENV v w=$V\n");
    assert_eq!(expand("WORKDIR /\"$V\""), Instruction::Workdir(Workdir { path: "/v w".into() }));
    assert_eq!(expand("USER $NOPE"), Instruction::User(User { user: String::new() }));
    let Instruction::Copy(copy) =
        expand("COPY --from=$V --exclude=$V --chown=$V --chmod=$NOPE $V <<A <<'B' /$V\n\"$V\"\nA\n$V\nB")
    else {
        panic!()
    };
    assert_eq!((copy.from.as_deref(), copy.excludes[0].as_str()), (Some("$V"), "$V"));
    assert_eq!((copy.chown.as_deref(), copy.chmod), (Some("v w"), None));
    assert_eq!((copy.transfer.sources[0].as_str(), copy.transfer.destination.as_str()), ("v w", "/v w"));
    assert_eq!(copy.transfer.inline_files[0].data, "\"v w\"\n");
    assert_eq!(copy.transfer.inline_files[1].data, "$V\n");
    for line in ["RUN $V", "CMD $V", "EXPOSE $V", "SHELL [\"$V\"]", "ONBUILD RUN $V", "HEALTHCHECK CMD $V"] {
        assert_eq!(expand(line), one(line), "{line}");
    }
    let mut failing = |text: &str| Ok(Lexer::new(EscapeToken::Backslash).expand(text, &NoVariables)?.value);
    let mut heredoc = |text: &str| Ok(text.to_owned());
    let mut expanders = Expanders { word: &mut failing, heredoc: &mut heredoc };
    assert!(one("ENV a=${b?}").expand(&mut expanders).is_err());
}

fn warnings(text: &str) -> Vec<(Rule, u32, String)> {
    let warnings = parse(text).warnings.into_iter();
    warnings.map(|warning| (warning.rule, warning.lines.start, warning.message)).collect()
}

#[test]
fn doubtful_things_are_warned_of() {
    let is = |rule, line, text: &str| vec![(rule, line, text.to_owned())];
    assert_eq!(
        warnings("FROM a\nRUN b \\\n\n c"),
        is(Rule::NoEmptyContinuation, 4, "Empty continuation line")
    );
    assert_eq!(
        warnings("FROM a\nMAINTAINER x"),
        is(Rule::MaintainerDeprecated, 2, "Maintainer instruction is deprecated in favor of using label")
    );
    assert_eq!(warnings("FROM a AS Bc"), is(Rule::StageNameCasing, 1, "Stage name 'Bc' should be lowercase"));
    assert_eq!(
        warnings("FROM a as b"),
        is(Rule::FromAsCasing, 1, "'as' and 'FROM' keywords' casing do not match")
    );
    assert_eq!(
        warnings("FROM a\nrun b\nCOPY c d"),
        is(
            Rule::ConsistentInstructionCasing,
            2,
            "Command 'run' should match the case of the command majority (uppercase)"
        )
    );
    assert_eq!(
        warnings("FROM a AS b\nFROM c AS b"),
        is(Rule::DuplicateStageName, 2, "Duplicate stage name \"b\", stage names should be unique")
    );
    assert_eq!(
        warnings("FROM a AS scratch"),
        is(
            Rule::ReservedStageName,
            1,
            "Stage name should not use the same name as reserved stage \"scratch\""
        )
    );
    assert_eq!(
        warnings("# check=experimental=all\n# what\nFROM a AS b\n#x y\nARG x"),
        is(
            Rule::InvalidDefinitionDescription,
            3,
            "Comment for FROM should follow the format: `# b <description>`"
        )
    );
    assert_eq!(warnings("FROM a\n# what\nARG x"), []);
}

#[test]
fn check_options_hide_rules_for_the_file_or_one_instruction() {
    assert_eq!(warnings("# check=skip=all\nFROM a AS B\nMAINTAINER x"), []);
    assert_eq!(warnings("# check=skip=StageNameCasing,MaintainerDeprecated\nFROM a AS B\nMAINTAINER x"), []);
    let found = warnings("FROM a\n# check=skip=MaintainerDeprecated\nMAINTAINER x\nMAINTAINER y");
    assert_eq!(found.iter().map(|found| found.1).collect::<Vec<_>>(), [4]);
    assert!(parse("# check=error=true\nFROM a").lint.fail);
    assert!(!Config::default().reports(Rule::InvalidDefinitionDescription));
    assert_eq!(error("# check=foo\nFROM a"), "failed to parse check options: invalid check option \"foo\"");
    assert!(error("# check=error=x\nFROM a").contains("invalid syntax"));
    let quiet = Config::parse("skip=all").unwrap();
    assert!(Dockerfile::parse_with_lint(b"FROM a AS B", quiet).unwrap().warnings.is_empty());
}

/// The tree without what says where and in what case things were written.
fn meaning(mut file: Dockerfile) -> Dockerfile {
    let forget = |source: &mut SourceText| {
        source.keyword.clear();
        source.code.clear();
        source.lines = LineRange::line(1);
    };
    file.meta_args.iter_mut().for_each(|meta| forget(&mut meta.source));
    for stage in &mut file.stages {
        forget(&mut stage.source);
        stage.commands.iter_mut().for_each(|command| forget(&mut command.source));
        for command in &mut stage.commands {
            // Only by a continued line gets `\r` to the end of an expression, and nothing can be printed behind that.
            if let Instruction::Onbuild(onbuild) = &mut command.instruction {
                onbuild.expression.truncate(onbuild.expression.trim_end_matches('\r').len());
            }
        }
    }
    file.warnings.clear();
    file.lint = Config::default();
    file
}

/// Whether an instruction has two heredocs of one name: both files are the second's text, with its tabs or without, and that has no form.
fn has_namesakes(file: &Dockerfile) -> bool {
    let files = |instruction: &Instruction| match instruction {
        Instruction::Add(add) => add.transfer.inline_files.clone(),
        Instruction::Copy(copy) => copy.transfer.inline_files.clone(),
        _ => Vec::new(),
    };
    file.stages.iter().flat_map(|stage| &stage.commands).any(|command| {
        let mut names: Vec<String> = files(&command.instruction).into_iter().map(|file| file.name).collect();
        names.sort();
        names.windows(2).any(|pair| pair[0] == pair[1])
    })
}

#[track_caller]
fn round_trip(text: &str) {
    let Ok(file) = Dockerfile::parse(text.as_bytes()) else { return };
    if has_namesakes(&file) {
        return;
    }
    let printed = file.to_string();
    let again = Dockerfile::parse(printed.as_bytes())
        .unwrap_or_else(|error| panic!("{error}\nfrom {text:?}\nto {printed:?}"));
    assert_eq!(meaning(again), meaning(file), "from {text:?}\nto {printed:?}");
}

#[test]
fn printing_keeps_the_meaning() {
    for line in [
        "COPY --from='a b' --exclude=\\\"x a <<A <<'B' /d\nx\nA\ny\nB",
        "COPY << EOF /d\nx\nEOF",
        "COPY [\"<<A\", \"b c\", \"/d\"]",
        "COPY -- --a b",
        "COPY <<\\A\\$\\'x <<\"$y\\\\\" /d\n1\nA$'x\n2\n$y\\\n",
        "RUN <<-A cat\n\tx\n\tA",
        "RUN -- --help",
        "RUN a \\\u{b}",
        "RUN --mount=type=bind --device='\"name=a,b\",required' --mount=x",
        "RUN",
        "CMD []",
        "ENV a='x\\\u{b}",
        "ENV a b c",
        "ARG a b= c='d e'",
        "ONBUILD COPY <<\"A\" /d\nx\nA",
        "HEALTHCHECK --interval=1m30s CMD a b",
        "HEALTHCHECK NONE",
        "VOLUME /a /b",
        "# escape=`\nRUN x",
        "  # indented\nRUN x",
        "SHELL [\"a\"]\nUSER $a\nWORKDIR -- --x\nSTOPSIGNAL 9\nMAINTAINER me <x>\nEXPOSE 2 1",
    ] {
        let text = format!("FROM scratch\n{line}");
        assert!(Dockerfile::parse(text.as_bytes()).is_ok(), "{text}");
        round_trip(&text);
        round_trip(&format!("# escape=`\n{text}"));
    }
}

proptest! {
    #[test]
    fn parse_print_parse_is_parse(
        lines in prop::collection::vec((
            prop::sample::select(vec![
                "RUN", "copy", "ADD --unpack", "ENV", "Label", "ARG", "CMD", "ENTRYPOINT", "EXPOSE", "VOLUME", "USER",
                "ONBUILD RUN", "HEALTHCHECK CMD", "SHELL", "WORKDIR", "# note", "FROM", "COPY --chown=a\\ b", "RUN --mount='a b'",
                "COPY --from=x --link --parents --exclude='q r' --chmod=u=rwX", "ADD --checksum=a --keep-git-dir=false",
                "RUN --mount=type=cache,target=$a,sharing=locked --network=none --security=insecure", "RUN --device=a.b/c,required",
                "HEALTHCHECK --interval=1m --start-interval=2s --retries=3 CMD", "HEALTHCHECK NONE", "FROM --platform=$a",
                "ONBUILD COPY --link", "ONBUILD ONBUILD", "STOPSIGNAL", "MAINTAINER", "# escape=x", " \t# note",
            ]),
            r#"( |\t|[a-c]|=|"|'|\\|\$|\[|\]|,|"a"|\["a", "b"\]| <<A| <<'B'| <<-A|--|é|\#|`|\{|\}|:|%|/| AS | \\\n| \\\n\# c\n|\r){0,10}"#,
        ), 0..6),
        backtick: bool,
    ) {
        let mut text = if backtick { "# escape=`\nFROM scratch\n".to_owned() } else { "FROM scratch\n".to_owned() };
        for (keyword, rest) in lines {
            text.push_str(&format!("{keyword} {rest}\n"));
            for name in ["A", "B"] {
                text.push_str(&format!("# body\n{name}\n").repeat(usize::from(rest.contains(&format!("<<{name}")) || rest.contains(&format!("<<-{name}")) || rest.contains(&format!("<<'{name}")))));
            }
        }
        round_trip(&text);
    }
}
