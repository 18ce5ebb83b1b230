use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn variables() -> BTreeMap<String, String> {
    [
        ("HOME", "/root"),
        ("EMPTY", ""),
        ("PATH_LIKE", "usr/local/lib/app"),
        ("FILE", "archive.tar.gz"),
        ("SPACED", " one  two "),
        ("STARS", "a*b*c"),
        ("ÜBER", "alles"),
        ("SHAPES", "bb.a.dd.a.ee"),
        ("SLASHES", "a/b/c"),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect()
}

fn lexer() -> Lexer {
    Lexer::new(EscapeToken::Backslash)
}

fn value(word: &str) -> String {
    match lexer().expand(word, &variables()) {
        Ok(expansion) => expansion.value,
        Err(error) => format!("! {}", error.problem),
    }
}

fn words(text: &str) -> Vec<String> {
    lexer().split(text, &variables()).unwrap()
}

#[track_caller]
fn table(rows: &[(&str, &str)]) {
    for (word, expected) in rows {
        assert_eq!(value(word), *expected, "{word}");
    }
}

#[test]
fn plain_text_and_quotes() {
    table(&[
        ("", ""),
        ("plain", "plain"),
        ("two words ", "two words "),
        ("a'b c'd", "ab cd"),
        ("a\"b c\"d", "ab cd"),
        ("'it\"s'", "it\"s"),
        ("\"it's\"", "it's"),
        ("\"''\"", "''"),
        ("'$HOME'", "$HOME"),
        ("\"$HOME\"", "/root"),
        ("\"'$HOME'\"", "'/root'"),
        ("naïve'café'", "naïvecafé"),
        ("'open", "! unexpected end of statement while looking for matching single-quote"),
        ("\"open", "! unexpected end of statement while looking for matching double-quote"),
        ("a'b\\'c", "ab\\c"),
        ("'b\\'c'", "! unexpected end of statement while looking for matching single-quote"),
    ]);
}

#[test]
fn escapes_work_outside_and_inside_double_quotes_but_not_inside_single_ones() {
    table(&[
        (r"a\tb", "atb"),
        (r"a\\b", r"a\b"),
        (r"a\", "a"),
        (r"a\\", r"a\"),
        (r"a\ b", "a b"),
        (r"\$HOME", "$HOME"),
        (r"\\$HOME", r"\/root"),
        (r"\${}x", "${}x"),
        (r#""a\tb""#, r"a\tb"),
        (r#""a\\b""#, r"a\b"),
        (r#""a\"b""#, "a\"b"),
        (r#""\$HOME""#, "$HOME"),
        (r"'a\\b'", r"a\\b"),
        (r"'\$HOME'", r"\$HOME"),
    ]);
    let backtick = Lexer::new(EscapeToken::Backtick);
    let value = |word| backtick.expand(word, &variables()).unwrap().value;
    assert_eq!(value(r"C:\Users`\$HOME"), r"C:\Users\/root");
    assert_eq!(value(r"`$HOME\"), r"$HOME\");
}

#[test]
fn variables_end_where_their_name_ends() {
    table(&[
        ("$HOME", "/root"),
        ("$HOME/x", "/root/x"),
        ("$HOMEx", ""),
        ("${HOME}x", "/rootx"),
        ("$ÜBER-x", "alles-x"),
        ("$", "$"),
        ("$.", "$."),
        ("a$ b", "a$ b"),
        ("[$1x]", "[x]"),
        ("[$12x]", "[x]"),
        ("[${12}]", "[]"),
        ("[$@][$*][$#][$?][$-][$$][$!][$0]", "[][][][][][][][]"),
        ("[${@}]", "[]"),
        ("[$NOPE]", "[]"),
        ("[${EMPTY}]", "[]"),
    ]);
}

#[test]
fn malformed_substitutions_are_named() {
    table(&[
        ("${", "! syntax error: missing '}'"),
        ("${HOME", "! syntax error: missing '}'"),
        ("${HOME:-", "! syntax error: missing '}'"),
        ("${HOME:-x", "! syntax error: missing '}'"),
        ("${HOME:-'x}", "! syntax error: missing '}'"),
        ("${HOME/x", "! syntax error: missing '/' in ${}"),
        ("${HOME/x/", "! syntax error: missing '}'"),
        ("${}", "! syntax error: bad substitution"),
        ("${{HOME}", "! syntax error: bad substitution"),
        ("${:-x}", "! syntax error: bad substitution"),
        ("${.}", "! unsupported modifier (.) in substitution"),
        ("${HOME=x}", "! unsupported modifier (=) in substitution"),
        ("${HOME:=x}", "! unsupported modifier (:=) in substitution"),
        ("${HOME:x}", "! unsupported modifier (:x) in substitution"),
        ("${HOME:#x}", "! unsupported modifier (:#) in substitution"),
        ("${HOME:%x}", "! unsupported modifier (:%) in substitution"),
    ]);
}

#[test]
fn defaults_and_alternatives() {
    table(&[
        ("${NOPE:-x}", "x"),
        ("${NOPE-x}", "x"),
        ("${EMPTY:-x}", "x"),
        ("${EMPTY-x}", ""),
        ("${HOME:-x}", "/root"),
        ("${HOME-x}", "/root"),
        ("${NOPE:+x}", ""),
        ("${NOPE+x}", ""),
        ("${EMPTY:+x}", ""),
        ("${EMPTY+x}", "x"),
        ("${HOME:+x}", "x"),
        ("${NOPE:-${ALSO:-${HOME}}}", "/root"),
        ("${NOPE:-'}'}", "}"),
        (r"${NOPE:-\}}", "}"),
        (r"${NOPE:-\$HOME:}", "$HOME:"),
        (r"${NOPE:-\${HOME}z}", "${HOMEz}"),
        ("${HOME:+${HOME}:}x", "/root:x"),
        ("\"${NOPE:-a b}\"", "a b"),
        ("${NOPE:-$1}", ""),
    ]);
}

#[test]
fn required_variables_fail_with_the_authors_words() {
    table(&[
        ("${HOME?}", "/root"),
        ("${HOME:?}", "/root"),
        ("${EMPTY?}", ""),
        ("${EMPTY:?}", "! EMPTY: is not allowed to be empty"),
        ("${EMPTY:?give me more}", "! EMPTY: give me more"),
        ("${NOPE?}", "! NOPE: is not allowed to be unset"),
        ("${NOPE:?}", "! NOPE: is not allowed to be unset"),
        ("${NOPE?set $HOME}", "! NOPE: set /root"),
        // The inner failure is told even where it stands at the end of the text.
        ("x${NOPE:-${ALSO:?}}", "! ALSO: is not allowed to be unset"),
    ]);
    let error = lexer().expand("a ${NOPE?}", &variables()).unwrap_err();
    assert_eq!(error.to_string(), "failed to process \"a ${NOPE?}\": NOPE: is not allowed to be unset");
}

#[test]
fn prefixes_and_suffixes_are_removed_shortest_or_longest() {
    table(&[
        ("${PATH_LIKE#*/}", "local/lib/app"),
        ("${PATH_LIKE##*/}", "app"),
        ("${PATH_LIKE%/*}", "usr/local/lib"),
        ("${PATH_LIKE%%/*}", "usr"),
        ("${FILE%.gz}", "archive.tar"),
        ("${FILE%.zip}", "archive.tar.gz"),
        ("${FILE%%.*}", "archive"),
        ("${FILE#???}", "hive.tar.gz"),
        ("${FILE#.}", "archive.tar.gz"),
        ("${FILE#$NOPE}", "archive.tar.gz"),
        (r"${STARS#a\*}", "b*c"),
        (r"${STARS%\*c}", "a*b"),
        (r"${STARS%%\**}", "a"),
        (r"${SLASHES##*\/}", "c"),
        ("[${NOPE#x}]", "[]"),
        ("${NOPE:-${FILE%.gz}}", "archive.tar"),
        (r"${STARS#\x}", r"! invalid pattern (\x) in substitution: invalid escape '\x'"),
        ("${ÜBER%l*}", "al"),
    ]);
}

#[test]
fn matches_are_replaced_once_or_everywhere() {
    table(&[
        ("${SHAPES/a/x}", "bb.x.dd.a.ee"),
        ("${SHAPES//a/x}", "bb.x.dd.x.ee"),
        ("${SHAPES//a/}", "bb..dd..ee"),
        ("${SHAPES/a*a/x}", "bb.x.ee"),
        ("${SHAPES//?/x}", "xxxxxxxxxxxx"),
        ("${SHAPES//./-}", "bb-a-dd-a-ee"),
        (r"${SLASHES//\//-}", "a-b-c"),
        (r"${STARS//\*/+}", "a+b+c"),
        ("${SHAPES/zzz/x}", "bb.a.dd.a.ee"),
        ("${SHAPES/a/$HOME}", "bb./root.dd.a.ee"),
        ("[${NOPE/a/b}]", "[]"),
    ]);
}

#[test]
fn splitting_happens_after_expansion_and_respects_quotes() {
    assert_eq!(words("a  b\tc"), ["a", "b", "c"]);
    assert_eq!(words(""), [""; 0]);
    assert_eq!(words("  "), [""; 0]);
    assert_eq!(words("x${SPACED}y"), ["x", "one", "two", "y"]);
    assert_eq!(words("x\"${SPACED}\"y"), ["x one  two y"]);
    assert_eq!(words(r"a\ b c"), ["a b", "c"]);
    assert_eq!(words("'a b'c d"), ["a bc", "d"]);
    assert_eq!(words("'' \"\" x"), ["x"]);
    assert_eq!(words("$NOPE x"), ["x"]);
    // A word in braces costs what stands before it, with BuildKit.
    assert_eq!(words("80${NOPE:-81}2 90"), ["812", "90"]);
    assert_eq!(words("cat << EOF <x"), ["cat", "<< EOF", "<x"]);
}

#[test]
fn used_and_missing_variables_are_told() {
    let expansion =
        lexer().expand("$HOME${NOPE:-$EMPTY}${HOME:+$GONE}'$QUOTED'\\$ESC", &variables()).unwrap();
    assert_eq!(expansion.used.into_iter().collect::<Vec<_>>(), ["EMPTY", "HOME"]);
    assert_eq!(expansion.missing.into_iter().collect::<Vec<_>>(), ["GONE", "NOPE"]);
}

#[test]
fn unset_variables_can_stay_as_written() {
    let keep = Lexer { unset: Unset::Keep, ..lexer() };
    let value = |word: &str| keep.expand(word, &variables()).unwrap().value;
    for word in ["$NOPE", "${NOPE}", "${NOPE:-x}", "${NOPE#x*}", "${NOPE/a/b}", "${NOPE?why}"] {
        assert_eq!(value(word), word);
    }
    assert_eq!(value("${NOPE:-$HOME}"), "${NOPE:-/root}");
    assert_eq!(value("$HOME"), "/root");
}

#[test]
fn quotes_and_escapes_can_stay() {
    let raw = Lexer { quotes: Quotes::Keep, keep_escapes: true, ..lexer() };
    assert_eq!(raw.expand(r#"a\ b'c' "$HOME""#, &variables()).unwrap().value, r#"a\ b'c' "/root""#);
    let heredoc = Lexer::for_heredoc();
    assert_eq!(heredoc.expand("it's \"$HOME\" \\$X\n", &variables()).unwrap().value, "it's \"/root\" $X\n");
}

#[test]
fn deep_nesting_is_an_error() {
    let word = "${A:-".repeat(100_000);
    assert!(matches!(lexer().expand(&word, &NoVariables).unwrap_err().problem, WordProblem::TooDeep(_)));
}

#[test]
fn growth_is_bounded() {
    let big = BTreeMap::from([("B".to_owned(), "x".repeat(600_000))]);
    assert!(lexer().expand("$B", &big).is_ok());
    assert!(matches!(lexer().expand("$B$B$B", &big).unwrap_err().problem, WordProblem::TooLong(_)));
    let error = lexer().expand("${B//x/yyyyyyyyyy}", &big).unwrap_err();
    assert!(matches!(error.problem, WordProblem::TooLong(_)));
}

proptest! {
    #[test]
    fn nothing_panics(word in r#"([$@{}:?+/%#*'"\\` a-cA-Z0-9<é\n-]|\$\{[A-C]){0,40}"#, backtick: bool, keep: bool) {
        let escape = if backtick { EscapeToken::Backtick } else { EscapeToken::Backslash };
        let variables = BTreeMap::from([("A".to_owned(), "a b".to_owned()), ("B".to_owned(), String::new())]);
        for quotes in [Quotes::Remove, Quotes::Keep, Quotes::Ignore] {
            for unset in [Unset::Empty, Unset::Keep] {
                let lexer = Lexer { escape, quotes, keep_escapes: keep, unset };
                let _ = lexer.expand(&word, &variables);
                let _ = lexer.split(&word, &variables);
            }
        }
    }

    #[test]
    fn words_without_special_characters_are_left_alone(word in "[a-zA-Z0-9 ./:,=_-]{0,40}") {
        prop_assert_eq!(lexer().expand(&word, &NoVariables).unwrap().value, word.clone());
        let split = lexer().split(&word, &NoVariables).unwrap();
        prop_assert_eq!(split, word.split_whitespace().collect::<Vec<_>>());
    }

    #[test]
    fn single_quotes_protect_everything(word in "[^']{0,40}") {
        prop_assert_eq!(lexer().expand(&format!("'{word}'"), &NoVariables).unwrap().value, word);
    }
}
