//! Words of instructions.

use std::collections::BTreeMap;

use lapstrake_builder_dockerfile::{
    parser::EscapeToken,
    shell::{Lexer, Quotes, Unset},
};

/// Nothing expands to more than this beyond its own length; the lexer's own limit.
const GROWTH: usize = 1 << 20;

/// First a byte that says how the lexer is set; then lines `NAME=value`, until an empty one; then the word.
pub(crate) fn word(data: &[u8]) {
    let Some((flags, text)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let (variables, word) = text.split_once("\n\n").unwrap_or(("", text));
    let variables: BTreeMap<String, String> = variables
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let escape = if flags & 1 == 0 { EscapeToken::Backslash } else { EscapeToken::Backtick };
    let lexer = Lexer {
        escape,
        quotes: [Quotes::Remove, Quotes::Keep, Quotes::Ignore][usize::from(flags >> 1) % 3],
        keep_escapes: flags & 16 != 0,
        unset: if flags & 32 == 0 { Unset::Empty } else { Unset::Keep },
    };
    let (expanded, split) = (lexer.expand(word, &variables), lexer.split(word, &variables));
    let (expansion, words) = match (expanded, split) {
        (Ok(expansion), Ok(words)) => (expansion, words),
        (Err(one), Err(other)) => {
            assert_eq!(one, other, "a word and words fail alike");
            assert!(!one.to_string().is_empty());
            return;
        }
        (one, other) => panic!("{one:?}, but as words {other:?}"),
    };
    let longest = variables.values().map(String::len).max().unwrap_or(0);
    assert!(expansion.value.len() <= word.len() + GROWTH + longest, "{} bytes", expansion.value.len());
    assert!(expansion.used.iter().all(|name| variables.contains_key(name)), "{:?}", expansion.used);
    assert!(expansion.missing.iter().all(|name| !variables.contains_key(name)), "{:?}", expansion.missing);
    // `${name-word}` costs a word its beginning, as in BuildKit.
    if !word.contains("${") {
        let squeeze = |text: &str| text.chars().filter(|ch| !ch.is_whitespace()).collect::<String>();
        assert_eq!(squeeze(&words.concat()), squeeze(&expansion.value), "{lexer:?} {word:?}");
    }
    if !word.contains(['$', '\\', '`', '\'', '"']) {
        assert_eq!(expansion.value, word, "nothing was to be done");
    }
}
