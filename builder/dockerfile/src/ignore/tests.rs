use proptest::prelude::*;
use regex::Regex;

use super::path::prefixes;
use super::*;

fn matcher(patterns: &[&str]) -> PatternMatcher {
    PatternMatcher::new(patterns).unwrap()
}

#[track_caller]
fn table(rows: &[(&str, &str, bool)]) {
    for (pattern, path, expected) in rows {
        assert_eq!(matcher(&[pattern]).matches(path), *expected, "pattern {pattern:?}, path {path:?}");
    }
}

#[test]
fn literal_patterns_match_a_path_and_everything_below() {
    table(&[
        ("src", "src", true),
        ("src", "src/main.rs", true),
        ("src", "src/a/b/c", true),
        ("src", "srcs", false),
        ("src", "lib/src", false),
        ("src/", "src", true),
        ("./src/../src", "src/x", true),
        ("a.c", "abc", false),
        ("a(b)|c+$^", "a(b)|c+$^", true),
        ("é", "é/è", true),
    ]);
}

#[test]
fn one_star_and_question_mark_stop_at_slashes() {
    table(&[
        ("*.log", "a.log", true),
        ("*.log", ".log", true),
        ("*.log", "dir/a.log", false),
        ("*.log", "a.log/below", true),
        ("*", "anything/below", true),
        ("a/*/c", "a/b/c", true),
        ("a/*/c", "a/b/b/c", false),
        ("a?c", "abc", true),
        ("a?c", "aéc", true),
        ("a?c", "a/c", false),
        ("a?c", "ac", false),
        (".*", ".hidden", true),
        (".*", "shown", false),
        ("a*b*c", "aXbXbXc", true),
        ("a*b*c", "aXbX", false),
    ]);
}

#[test]
fn two_stars_cross_slashes() {
    table(&[
        ("**", "a", true),
        ("**/", "a/b", true),
        ("**/**", "a/b", true),
        ("dir/**", "dir", false),
        ("dir/**", "dir/x", true),
        ("dir/**", "dir/x/y", true),
        ("dir**", "dirty/x", true),
        ("**/x", "x", true),
        ("**/x", "a/b/x", true),
        ("**/x", "a/b/ax", false),
        ("**x", "a/bx", true),
        ("**x", "x", true),
        ("**/.x", "a.x", false),
        ("**/*.rs", "main.rs", true),
        ("**/*.rs", "a/b/main.rs", true),
        ("**/**/*.rs", "a/b/main.rs", true),
        ("**/*.rs", "main.rs2", false),
        ("a**/*.rs", "a/main.rs", true),
        ("a**/*.rs", "a/b/c/main.rs", true),
        ("a/**/z", "a/z", true),
        ("a/**/z", "a/b/c/z", true),
        ("a/**/z", "a/bz", false),
        ("**/dir/*", "x/dir/y", true),
        ("**/dir/**", "x/dir/y/z", true),
        ("a/*.rs**", "a/x.rs.bak", true),
        // What is before the directories may end late: the first fit is not always the one.
        ("*a**/b", "aab", true),
        ("*a**/b", "xa/y/b", true),
    ]);
}

#[test]
fn classes_and_escapes() {
    table(&[
        ("a[b-d]e", "ace", true),
        ("a[b-d]e", "aee", false),
        ("a[^b-d]e", "aee", true),
        ("a[^b-d]e", "ace", false),
        ("[a-cx]", "x", true),
        (r"[\]]", "]", true),
        (r"[\-x]", "-", true),
        ("[*]", "*", true),
        ("[*]", "a", false),
        ("[[]", "[", true),
        ("[!a]", "!", true),
        ("[é-ü]", "ö", true),
        (r"a\*b", "a*b", true),
        (r"a\*b", "axb", false),
        (r"a\\", r"a\", true),
        (r"\d", "d", true),
        (r"\d", "1", false),
        ("a]", "a]", true),
    ]);
}

#[test]
fn malformed_patterns_are_refused_by_name() {
    for pattern in ["[", "a[", "[]", "[]a]", "[^]", "[a-]", "[-a]", "[b-a]", r"[\", r"a\", "ok[x"] {
        assert_eq!(
            PatternMatcher::new(&[pattern]).unwrap_err().to_string(),
            format!("syntax error in pattern {}", go_quote(pattern))
        );
    }
    assert_eq!(PatternMatcher::new(&["!"]).unwrap_err(), PatternError::LoneExclamation);
}

#[test]
fn later_patterns_win() {
    let exclude = matcher(&["*", "!docs", "docs/private", "!docs/private/ok"]);
    for (path, excluded) in [
        ("a", true),
        ("docs", false),
        ("docs/x", false),
        ("docs/private", true),
        ("docs/private/x", true),
        ("docs/private/ok", false),
        ("docs/private/ok/x", false),
    ] {
        assert_eq!(exclude.matches(path), excluded, "{path}");
    }
    assert!(!matcher(&["!a"]).matches("a"));
    assert!(!matcher(&[]).matches("a"));
    assert!(matcher(&["a", "!a", "a"]).matches("a"));
    // An exception before what it excepts has no effect.
    assert!(matcher(&["!a", "a"]).matches("a"));
}

#[test]
fn empty_patterns_are_skipped_and_others_trimmed() {
    let exclude = matcher(&["", "  ", " a/b/ ", "! c"]);
    assert_eq!(exclude.patterns().collect::<Vec<_>>(), ["a/b", "! c"]);
    assert!(exclude.has_exceptions() && !exclude.is_empty());
}

#[test]
fn an_ignore_file_has_comments_and_absolute_patterns() {
    let file =
        b"\xef\xbb\xbf# first\r\n\n  a/../b/ \r\n/abs\n! /keep\n !\n # not a comment\n/\n.\n../up\n!./x//y";
    assert_eq!(
        read_ignore_file(file).unwrap(),
        ["b", "abs", "!keep", "!", "# not a comment", "/", ".", "../up", "!x/y"]
    );
    assert_eq!(read_ignore_file(b"").unwrap(), [""; 0]);
}

#[test]
fn an_ignore_file_that_is_no_text_is_refused() {
    assert_eq!(read_ignore_file(b"a\n\xff\n").unwrap_err(), PatternError::NotUtf8 { line: 2 });
    let long = [b"a\n".as_slice(), &vec![b'x'; MAX_LINE_BYTES + 1]].concat();
    assert_eq!(
        read_ignore_file(&long).unwrap_err(),
        PatternError::LineTooLong { line: 2, limit: MAX_LINE_BYTES }
    );
}

#[test]
fn a_walk_need_not_enter_what_no_exception_reaches() {
    let plain = matcher(&["node_modules"]);
    assert!(plain.decides_everything_below("node_modules"));
    let literal = matcher(&["a", "b", "!a/b/c", "!b/d/**", "!b/e/*"]);
    assert!(!literal.decides_everything_below("a"));
    assert!(!literal.decides_everything_below("a/b"));
    assert!(literal.decides_everything_below("a/x"));
    assert!(!literal.decides_everything_below("b/d"));
    assert!(!literal.decides_everything_below("b/e"));
    let wild = matcher(&["a", "!**/keep"]);
    assert!(!wild.decides_everything_below("a"));
}

#[test]
fn a_walk_need_not_enter_what_no_inclusion_reaches() {
    let include = matcher(&["a/b", "c/**"]);
    assert!(!include.matches_nothing_below("a"));
    assert!(!include.matches_nothing_below("c"));
    assert!(include.matches_nothing_below("ab"));
    assert!(!matcher(&["*/x"]).matches_nothing_below("q"));
}

#[test]
fn parents_results_of_another_matcher_are_not_used() {
    let (_, parent) = matcher(&["a", "b"]).matches_below("a", None);
    assert!(!matcher(&["x"]).matches_below("a/y", Some(&parent)).0);
}

#[test]
fn a_hostile_pattern_costs_no_more_than_its_size() {
    let pattern = format!("{}b", "*a".repeat(300));
    assert!(!matcher(&[&pattern]).matches(&"a".repeat(4000)));
    let pattern = format!("{}b", "**/a".repeat(300));
    assert!(!matcher(&[&pattern]).matches(&"a/".repeat(1500)));
}

#[test]
fn a_walk_differs_from_a_single_question_as_it_does_in_moby() {
    // The last pattern was not asked for `b`, which had matched already, so `b/x` does not know of it.
    let matcher = matcher(&["b*", "!b/x", "b"]);
    let (_, parent) = matcher.matches_below("b", None);
    assert!(!matcher.matches_below("b/x", Some(&parent)).0);
    assert!(matcher.matches("b/x"));
}

/// Moby's translation into a regular expression, for patterns of literals and wildcards.
fn as_regex(pattern: &str) -> Regex {
    let mut out = "^".to_owned();
    let mut rest = pattern;
    while let Some(ch) = rest.chars().next() {
        rest = &rest[ch.len_utf8()..];
        if ch == '*' && rest.starts_with('*') {
            rest = &rest[1..];
            rest = rest.strip_prefix('/').unwrap_or(rest);
            out.push_str(if rest.is_empty() { ".*" } else { "(.*/)?" });
        } else if ch == '*' {
            out.push_str("[^/]*");
        } else if ch == '?' {
            out.push_str("[^/]");
        } else {
            out.push_str(&regex::escape(&ch.to_string()));
        }
    }
    Regex::new(&format!("{out}$")).unwrap()
}

proptest! {
    #[test]
    fn the_automaton_agrees_with_the_regular_expression(pattern in "[ab*?/.]{1,12}", path in "[ab./]{0,12}") {
        let pattern = clean(&pattern);
        let glob = Glob::new(&pattern).unwrap();
        // `**x` means another thing, in Moby too.
        prop_assume!(!matches!(glob, Glob::Suffix(ref text) if !text.is_empty() && !text.starts_with('/')));
        let regex = as_regex(&pattern);
        prop_assert_eq!(glob.matches(&path), regex.is_match(&path), "{:?}", glob);
        let parents = prefixes(&path).any(|directory| regex.is_match(directory));
        prop_assert_eq!(glob.matches_or_parent(&path), regex.is_match(&path) || parents, "{:?}", glob);
    }

    #[test]
    fn a_walk_gives_what_single_questions_give(
        patterns in prop::collection::vec("!?[ab*][ab*/]{0,6}", 0..6),
        path in "[ab]{1,2}(/[ab]{1,2}){0,4}",
    ) {
        let matcher = PatternMatcher::new(&patterns).unwrap();
        let mut parent = None;
        let mut decided = false;
        let mut hopeless = false;
        for end in prefixes(&path).map(str::len).chain([path.len()]) {
            let (matched, state) = matcher.matches_below(&path[..end], parent.as_ref());
            if !matcher.has_exceptions() {
                prop_assert_eq!(matched, matcher.matches(&path[..end]));
            }
            prop_assert!(matched || !decided, "{} is not matched, below a directory decided", &path[..end]);
            prop_assert!(!matched || !hopeless, "{} is matched, below a directory without hope", &path[..end]);
            decided |= matched && matcher.decides_everything_below(&path[..end]);
            hopeless |= !matched && matcher.matches_nothing_below(&path[..end]);
            parent = Some(state);
        }
    }

    #[test]
    fn nothing_panics(pattern in r"[\PC/*?\[\]^\\!-]{0,30}", path in r"\PC{0,30}", file: Vec<u8>) {
        if let Ok(matcher) = PatternMatcher::new(&[pattern]) {
            matcher.matches(&path);
        }
        let _ = read_ignore_file(&file);
    }

    #[test]
    fn cleaning_is_idempotent(path in "[ab./]{0,12}") {
        let cleaned = clean(&path);
        prop_assert_eq!(clean(&cleaned), cleaned);
    }
}
