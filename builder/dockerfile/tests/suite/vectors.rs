//! Matcher and words against answers recorded from the Go packages that everybody else uses (`vectors/README.md`).

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use lapstrake_builder_dockerfile::{
    ignore::{PatternMatcher, read_ignore_file},
    parser::EscapeToken,
    shell::{Lexer, Quotes, Unset},
};
use serde::Deserialize;

fn lines(name: &str) -> Vec<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name);
    std::fs::read_to_string(file).unwrap().lines().map(str::to_owned).collect()
}

/// All that differs is shown at once.
#[track_caller]
fn none(differences: Vec<String>) {
    assert!(differences.is_empty(), "{} differences\n{}", differences.len(), differences.join("\n"));
}

#[derive(Deserialize)]
struct PatternLine {
    patterns: Vec<String>,
    #[serde(default)]
    error: String,
    #[serde(default)]
    cleaned: Vec<String>,
    #[serde(default)]
    exceptions: bool,
    #[serde(default)]
    paths: Vec<(String, u8, String)>,
}

#[test]
fn patterns_match_what_they_match_in_moby() {
    let mut differences = Vec::new();
    let (mut pairs, mut known) = (0, 0);
    for line in lines("patterns.jsonl") {
        let PatternLine { patterns, error, cleaned, exceptions, paths } =
            serde_json::from_str(&line).unwrap();
        let matcher = match (PatternMatcher::new(&patterns), error.is_empty()) {
            (Ok(matcher), true) => matcher,
            (Err(ours), false) if error != "match: syntax error in pattern" => {
                assert!(ours.to_string().starts_with(&error), "{patterns:?}: {error}, here {ours}");
                continue;
            }
            (Err(_), false) => continue,
            // Moby reads a pattern to its end when it is first asked for an answer, we at once.
            (Err(_), true) if patterns.iter().any(|pattern| REFUSED_EARLIER.contains(&pattern.as_str())) => {
                continue;
            }
            (Ok(_), false) if patterns == ["\\é"] => continue,
            (ours, _) => {
                differences.push(format!("{patterns:?}: {error:?}, here {:?}", ours.err()));
                continue;
            }
        };
        if matcher.patterns().collect::<Vec<_>>() != cleaned || matcher.has_exceptions() != exceptions {
            differences.push(format!("{patterns:?}: {cleaned:?}, here {matcher:?}"));
        }
        for (path, matches, walk) in paths {
            pairs += 1;
            let ours = (matcher.matches(&path), walked(&matcher, &path));
            if ours == (matches == 1, walk.clone()) {
                continue;
            }
            if patterns.iter().any(|pattern| is_read_as_regular_expression(pattern)) {
                known += 1;
            } else {
                differences.push(format!("{patterns:?} {path:?}: {matches} {walk}, here {ours:?}"));
            }
        }
    }
    none(differences);
    assert!(pairs > 10_000 && known < pairs / 40, "{known} of {pairs}");
}

/// Malformed behind a part that the recorded paths did not get past.
const REFUSED_EARLIER: &[&str] = &["!b[ab]*.b[", "!*.b*.b[", "!b*["];

/// Moby hands an escaped letter (`\w`, `\b`), and `*` and `?` within a class, through to Go's regular expressions, where they mean what no
/// documentation of ignore files says. Here they are themselves, as `filepath.Match` has it.
fn is_read_as_regular_expression(pattern: &str) -> bool {
    let escapes = pattern
        .match_indices('\\')
        .any(|(at, _)| pattern[at + 1..].starts_with(|escaped: char| escaped.is_ascii_alphanumeric()));
    escapes || ["[*]", "[?]"].iter().any(|part| pattern.contains(part))
}

/// What a walk says of each directory on the way to a path.
fn walked(matcher: &PatternMatcher, path: &str) -> String {
    let mut parent = None;
    let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
    let mut said = String::new();
    for end in ends {
        let (matched, state) = matcher.matches_below(&path[..end], parent.as_ref());
        said.push(if matched { '1' } else { '0' });
        parent = Some(state);
    }
    said
}

#[derive(Deserialize)]
struct IgnoreLine {
    file: String,
    patterns: Vec<String>,
}

#[test]
fn ignore_files_say_what_they_say_in_moby() {
    let mut differences = Vec::new();
    for line in lines("ignore_files.jsonl") {
        let IgnoreLine { file, patterns } = serde_json::from_str(&line).unwrap();
        let ours = read_ignore_file(file.as_bytes());
        if ours.as_ref() != Ok(&patterns) {
            differences.push(format!("{file:?}: {patterns:?}, here {ours:?}"));
        }
    }
    none(differences);
}

#[derive(Deserialize)]
struct WordLine {
    word: String,
    #[serde(default)]
    escape: String,
    #[serde(default)]
    mode: String,
    value: String,
    words: Vec<String>,
    #[serde(default)]
    used: BTreeSet<String>,
    #[serde(default)]
    missing: BTreeSet<String>,
    #[serde(default)]
    error: String,
}

fn lexer(escape: &str, mode: &str) -> Lexer {
    let escape = if escape == "`" { EscapeToken::Backtick } else { EscapeToken::Backslash };
    let plain = Lexer::new(escape);
    let raw = Lexer { quotes: Quotes::Keep, keep_escapes: true, ..plain };
    match mode {
        "" => plain,
        "heredoc" => Lexer { quotes: Quotes::Ignore, ..plain },
        "raw_quotes" => Lexer { quotes: Quotes::Keep, ..plain },
        "raw" => raw,
        "keep_unset" => Lexer { unset: Unset::Keep, ..plain },
        "raw_keep_unset" => Lexer { unset: Unset::Keep, ..raw },
        _ => panic!("{mode}"),
    }
}

#[test]
fn words_expand_to_what_they_are_in_buildkit() {
    let mut lines = lines("words.jsonl").into_iter();
    let variables: BTreeMap<String, Vec<String>> = serde_json::from_str(&lines.next().unwrap()).unwrap();
    let variables: BTreeMap<String, String> = variables["env"]
        .iter()
        .map(|variable| variable.split_once('=').unwrap())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let mut differences = Vec::new();
    let mut count = 0;
    for line in lines {
        count += 1;
        let WordLine { word, escape, mode, value, words, used, missing, error } =
            serde_json::from_str(&line).unwrap();
        let lexer = lexer(&escape, &mode);
        let (expanded, split) = (lexer.expand(&word, &variables), lexer.split(&word, &variables));
        let same = match (&expanded, &split) {
            (Ok(expansion), Ok(list)) => {
                error.is_empty()
                    && (&expansion.value, &expansion.used, &expansion.missing) == (&value, &used, &missing)
                    && *list == words
            }
            (Err(first), Err(second)) => {
                let expected =
                    REWORDED.iter().fold(error.clone(), |text, (theirs, ours)| text.replace(theirs, ours));
                first.to_string() == expected && second.to_string() == expected
            }
            _ => false,
        };
        if !same {
            differences.push(format!("{line}\n  here {expanded:?} {split:?}"));
        }
    }
    none(differences);
    assert!(count > 2_000, "{count}");
}

/// Where BuildKit prints the character that it did not find.
const REWORDED: &[(&str, &str)] = &[
    ("unsupported modifier (\u{fffd}) in substitution", "syntax error: missing '}'"),
    ("invalid escape '\\\u{fffd}'", "invalid escape at the end"),
];
