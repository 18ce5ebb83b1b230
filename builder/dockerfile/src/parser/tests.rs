use proptest::prelude::*;

use super::*;
use crate::error::Error;

fn lines(text: &str) -> Vec<ParsedLine> {
    parse_document(text.as_bytes()).unwrap().instructions
}

fn one(text: &str) -> ParsedLine {
    let mut lines = lines(text);
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines.remove(0)
}

#[track_caller]
fn problem(text: impl AsRef<[u8]>) -> (String, u32, u32) {
    let Err(Error::Syntax { problem, lines }) = parse_document(text.as_ref()) else {
        panic!("no syntax error")
    };
    (problem.to_string(), lines.start, lines.end)
}

fn words(line: &ParsedLine) -> Vec<&str> {
    match &line.arguments {
        Arguments::Words(words) | Arguments::Json(words) => words.iter().map(String::as_str).collect(),
        Arguments::Text(text) => vec![text],
        other => panic!("{other:?}"),
    }
}

#[test]
fn lines_are_joined_over_comments_and_trailing_white_space() {
    let line = one("\n  RUN a \\\n  # comment \\\n b && \\  \t\n\tc\n");
    assert_eq!(line.original, "RUN a  b && \tc");
    assert_eq!(line.lines, crate::LineRange::new(2, 5));
    assert_eq!(words(&line), ["a  b && \tc"]);
}

#[test]
fn an_escaped_escape_does_not_continue_a_line() {
    assert_eq!(lines("RUN a \\\\\nRUN b").len(), 2);
    assert_eq!(one("RUN a \\").original, "RUN a ");
    assert_eq!(one("RUN a\\\n\\\nb").original, "RUN ab");
}

#[test]
fn carriage_returns_and_a_byte_order_mark_are_no_text() {
    let found = lines("\u{feff}FROM a\r\nRUN b \\\r\n c\r\n");
    assert_eq!(found[0].original, "FROM a");
    assert_eq!(found[1].original, "RUN b  c");
}

#[test]
fn an_empty_continuation_line_is_remembered() {
    let document = parse_document(b"RUN a \\\n\n  \n b\nRUN c \\\n# no\n d").unwrap();
    assert_eq!(document.empty_continuations, [4]);
    assert_eq!(document.instructions[0].original, "RUN a  b");
}

#[test]
fn comments_above_an_instruction_belong_to_it() {
    let found = lines("# one\n\n#   two  \nFROM a\n# x\n#\n# y\nRUN b\nRUN c");
    assert_eq!(found[0].comments, ["one", "two"]);
    assert_eq!(found[1].comments, ["y"]);
    assert_eq!(found[2].comments, [""; 0]);
}

#[test]
fn directives_come_first_and_once() {
    let document = parse_document(b"# syntax = x\n#\tEscape=`\n# comment\nRUN a`\nb\\\nRUN c").unwrap();
    assert_eq!(document.escape, EscapeToken::Backtick);
    assert_eq!(document.instructions[0].original, "RUN ab\\");
    assert_eq!(document.instructions[0].comments, ["comment"]);
    for late in ["\n# escape=`\nRUN a", "# comment\n# escape=`\nRUN a", "# unknown=1\n# escape=`\nRUN a"] {
        assert_eq!(parse_document(late.as_bytes()).unwrap().escape, EscapeToken::Backslash, "{late}");
    }
    assert_eq!(
        problem("# escape=x\nRUN a"),
        ("invalid escape token 'x' does not match ` or \\".to_owned(), 1, 1)
    );
    assert_eq!(
        problem("# escape=`\n# escape=`\nRUN a"),
        ("only one escape parser directive can be used".to_owned(), 2, 2)
    );
}

#[test]
fn the_syntax_is_found_in_many_kinds_of_file() {
    let found = |text: &str| detect_syntax(text.as_bytes()).map(|found| (found.command_line, found.line));
    let is = |text: &str, line| Some((text.to_owned(), line));
    assert_eq!(found("# syntax=docker/dockerfile:1\nFROM a"), is("docker/dockerfile:1", 1));
    assert_eq!(found("\u{feff}#syntax=a\r\nFROM a"), is("a", 1));
    assert_eq!(found("# check=skip=all\n# SYNTAX = a b\n"), is("a b", 2));
    assert_eq!(found("#!/usr/bin/env x\n# syntax=a\n"), is("a", 2));
    assert_eq!(found("// syntax=a\n{}"), is("a", 1));
    assert_eq!(found("#!x\n//syntax = a\n"), is("a", 2));
    assert_eq!(found("{\"syntax\": \"a\", \"x\": [1]}"), is("a", 1));
    for none in ["FROM a\n# syntax=b", "\n# syntax=a", "{\"syntax\": 1}", "{", "# x\n# syntax=a", "", "#!x"] {
        assert_eq!(found(none), None, "{none}");
    }
    assert_eq!(detect_syntax(b"# syntax=a b c").unwrap().image, "a");
    assert_eq!(
        check_directive(b"# syntax=a\n# check=skip=X;error=true\nFROM a"),
        Some(("skip=X;error=true".to_owned(), 2))
    );
}

#[test]
fn flags_are_taken_off_unquoted() {
    let line = one(r#"copy --from=a  --chown="b c" --exclude=d\ "e" -- --f g"#);
    assert_eq!(line.flags, ["--from=a", "--chown=b c", "--exclude=d e"]);
    assert_eq!(words(&line), ["--f", "g"]);
    assert_eq!(one("RUN --mount=type=cache,target=/é").flags, ["--mount=type=cache,target=/é"]);
    assert_eq!(one("RUN --network=none\ta --b").flags, ["--network=none"]);
    assert_eq!(one("RUN -a").flags, [""; 0]);
}

#[test]
fn json_arrays_are_told_from_text() {
    assert_eq!(one(r#"RUN [ "a", "b\u00e9" ]"#).arguments, Arguments::Json(vec!["a".into(), "bé".into()]));
    assert_eq!(one("CMD []").arguments, Arguments::Json(vec![]));
    assert_eq!(one("RUN ['a']").arguments, Arguments::Text("['a']".into()));
    assert_eq!(one(r#"RUN ["a", ]"#).arguments, Arguments::Text(r#"["a", ]"#.into()));
    assert_eq!(
        one(r#"COPY ["a", "b" c"#).arguments,
        Arguments::Words(vec!["[\"a\",".into(), "\"b\"".into(), "c".into()])
    );
    let text = "when using JSON array syntax, arrays must be comprised of strings only".to_owned();
    assert_eq!(problem("FROM a\nRUN [\"a\", 1]"), (text.clone(), 2, 2));
    assert_eq!(problem("COPY [[\"a\"], \"b\"]"), (text, 1, 1));
    let nested = format!("RUN {}", "[".repeat(60_000));
    assert!(matches!(one(&nested).arguments, Arguments::Text(_)));
}

#[test]
fn pairs_are_new_or_legacy() {
    let pairs = |text: &str| match one(text).arguments {
        Arguments::Pairs(pairs) => pairs.into_iter().map(|pair| (pair.key, pair.value)).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let is = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect::<Vec<_>>()
    };
    assert_eq!(
        pairs(r#"ENV a=1 b="x y" c=d\ e f="#),
        is(&[("a", "1"), ("b", "\"x y\""), ("c", r"d\ e"), ("f", "")])
    );
    assert_eq!(pairs("ENV a  b c=d "), is(&[("a", "b c=d")]));
    assert_eq!(pairs("LABEL a=b=c"), is(&[("a", "b=c")]));
    assert_eq!(pairs("LABEL 'a b'='c d'"), is(&[("'a b'", "'c d'")]));
    assert_eq!(problem("FROM a\nENV b"), ("ENV must have two arguments".to_owned(), 2, 2));
    assert_eq!(
        problem("LABEL a=b \\\n c"),
        ("Syntax error - can't find = in \"c\". Must be of the form: name=value".to_owned(), 1, 2)
    );
}

#[test]
fn heredocs_are_read_in_order() {
    let line = one("RUN <<A cat 3<<-'B C' && true\na\n $x\nA\n\tb\n\tB C\n");
    let [a, b] = line.heredocs.as_slice() else { panic!("{line:?}") };
    assert_eq!((a.name.as_str(), a.content.as_str(), a.expand, a.strip_tabs), ("A", "a\n $x\n", true, false));
    assert_eq!((b.name.as_str(), b.content.as_str(), b.expand, b.strip_tabs), ("B C", "\tb\n", false, true));
    assert_eq!(b.file_descriptor, 3);
    assert_eq!(b.body(), "b\n");
    assert_eq!(line.lines, crate::LineRange::new(1, 6));
    assert_eq!(words(&line), ["<<A cat 3<<-'B C' && true"]);
}

#[test]
fn a_heredoc_name_may_be_quoted_in_many_ways() {
    for (word, name, expand) in [
        ("<<EOF", "EOF", true),
        ("<< EOF", "EOF", true),
        ("<<\"EOF\"", "EOF", false),
        ("<<'EOF'", "EOF", false),
        ("<<E'O'F", "EOF", false),
        (r"<<E\OF", "EOF", true),
        ("<<$X", "$X", true),
    ] {
        let line = one(&format!("RUN {word}\nx\n{name}\n"));
        assert_eq!((line.heredocs[0].name.as_str(), line.heredocs[0].expand), (name, expand), "{word}");
    }
}

#[test]
fn what_is_no_heredoc_takes_no_lines() {
    for text in [
        "RUN echo \"<<EOF\"",
        "RUN echo a<<EOF",
        "RUN cat <<<EOF",
        "RUN ((1<<2))",
        r#"RUN ["sh", "<<EOF"]"#,
        "CMD cat <<EOF",
        "ENTRYPOINT <<EOF",
        "RUN echo '<<EOF",
        "RUN <<",
    ] {
        assert_eq!(one(text).heredocs, [], "{text}");
    }
    assert_eq!(one("ONBUILD RUN <<A\nx\nA").heredocs.len(), 1);
    assert_eq!(one("ONBUILD CMD <<A").heredocs.len(), 0);
}

#[test]
fn a_heredoc_keeps_its_bytes_and_needs_its_end() {
    let line = one("COPY <<A /x\n# no comment\r\nFROM \\\n\n<<B\nA\r\n");
    assert_eq!(line.heredocs[0].content, "# no comment\r\nFROM \\\n\n<<B\n");
    assert_eq!(problem("FROM a\nRUN <<A\n A\n"), ("unterminated heredoc".to_owned(), 2, 3));
}

#[test]
fn what_is_no_dockerfile_is_refused() {
    let none = "file with no instructions".to_owned();
    assert_eq!(problem(""), (none.clone(), 1, 1));
    assert_eq!(problem("# only\n\n  # comments\n"), (none, 3, 3));
    assert_eq!(problem(b"FROM a\nRUN \xff\n"), ("not valid UTF-8".to_owned(), 2, 2));
    assert!(parse_document(b"# \xff\nFROM a").is_ok());
}

#[test]
fn limits_are_errors() {
    let fits = format!("RUN {}\n", "x".repeat(MAX_LINE_BYTES - 4));
    assert!(parse_document(fits.as_bytes()).is_ok());
    let long = format!("FROM a\nRUN {}\n", "x".repeat(MAX_LINE_BYTES - 3));
    assert_eq!(problem(&long), ("dockerfile line greater than max allowed size of 65535".to_owned(), 2, 2));
    assert!(problem("RUN a\n".repeat(MAX_INSTRUCTIONS + 1)).0.contains("more than 65536 instructions"));
    assert!(problem("# comment\n".repeat(MAX_TEXT_BYTES / 8)).0.contains("outside heredocs"));
    assert!(problem(vec![b'\n'; MAX_FILE_BYTES + 1]).0.contains("larger than 16777216 bytes"));
    let heredoc = format!("COPY <<A /x\n{}A\n", "some text of a file\n".repeat(MAX_TEXT_BYTES / 10));
    assert!(parse_document(heredoc.as_bytes()).is_ok());
    let chain = format!("{}RUN x", "ONBUILD ".repeat(8000));
    assert!(matches!(one(&chain).arguments, Arguments::Trigger { .. }));
}

proptest! {
    #[test]
    fn nothing_panics(file: Vec<u8>) {
        let _ = parse_document(&file);
        let _ = detect_syntax(&file);
    }

    #[test]
    fn nothing_panics_near_the_language(text in r#"((RUN|COPY|ENV|ONBUILD|# escape=`|HEALTHCHECK|<<-?['"]?A|--a=|\[|\]|"|'|\\|`|\$|é|=|A| |\t|\r)|\n){0,60}"#) {
        let _ = parse_document(text.as_bytes());
    }
}
