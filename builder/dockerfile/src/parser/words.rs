//! One joined line: keyword, flags, and the arguments in the shape that the keyword asks for.

use super::{EscapeToken, SyntaxError};
use crate::instructions::{KeyValue, PairStyle};

/// White space between words; others, like the no-break space, are part of a word.
const SPACE: [char; 5] = ['\t', '\u{b}', '\u{c}', '\r', ' '];

/// Keyword, flags and the rest.
pub(super) fn split_line(line: &str, escape: EscapeToken) -> (&str, Vec<String>, &str) {
    let line = line.trim();
    let Some(at) = line.find(SPACE) else { return (line, Vec::new(), "") };
    let (flags, rest) = split_flags(line[at..].trim_start_matches(SPACE), escape);
    (&line[..at], flags, rest.trim())
}

/// The leading words that start with `--`, unquoted, up to the first that does not or to a `--` alone.
fn split_flags(line: &str, escape: EscapeToken) -> (Vec<String>, &str) {
    let escape = escape.as_char();
    let mut flags = Vec::new();
    let mut rest = line;
    loop {
        rest = rest.trim_start();
        if !rest.starts_with("--") {
            return (flags, rest);
        }
        let (word, after) = flag_word(rest, escape);
        rest = after;
        if word == "--" {
            return (flags, rest);
        }
        flags.push(word);
    }
}

/// One flag, without its quotes and escapes, and what follows it.
fn flag_word(text: &str, escape: char) -> (String, &str) {
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, ch)) = chars.next() {
        match quote {
            None if ch.is_whitespace() => return (word, &text[at..]),
            None if ch == '\'' || ch == '"' => quote = Some(ch),
            Some(open) if ch == open => quote = None,
            // An escape at the very end stands for nothing. Here it works in single quotes too.
            _ if ch == escape => word.extend(chars.next().map(|(_, escaped)| escaped)),
            _ => word.push(ch),
        }
    }
    (word, "")
}

/// Words with their quotes and escapes left on.
pub(super) fn quoted_words(text: &str, escape: EscapeToken) -> Vec<String> {
    let escape = escape.as_char();
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(ch) = chars.next() {
        match quote {
            None if ch.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            None if ch == '\'' || ch == '"' => quote = Some(ch),
            Some(open) if ch == open => quote = None,
            _ if ch == escape && quote != Some('\'') => {
                let Some(escaped) = chars.next() else { break };
                word.push(ch);
                word.push(escaped);
                continue;
            }
            _ => {}
        }
        word.push(ch);
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// Words without any quoting.
pub(super) fn plain_words(text: &str) -> Vec<String> {
    text.split(SPACE).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// `name=value …` or, if the first word has no `=`, the one pair `name value`.
pub(super) fn pairs(
    text: &str,
    instruction: &'static str,
    escape: EscapeToken,
) -> Result<Vec<KeyValue>, SyntaxError> {
    let words = quoted_words(text, escape);
    let Some(first) = words.first() else { return Ok(Vec::new()) };
    if !first.contains('=') {
        let at = text.find(SPACE).ok_or(SyntaxError::TwoArguments(instruction))?;
        let (key, value) = (text[..at].to_owned(), text[at..].trim_start_matches(SPACE).to_owned());
        return Ok(vec![KeyValue { key, value, style: PairStyle::Legacy }]);
    }
    let pair = |word: String| match word.split_once('=') {
        Some((key, value)) => {
            Ok(KeyValue { key: key.to_owned(), value: value.to_owned(), style: PairStyle::Equals })
        }
        None => Err(SyntaxError::NoEquals(word)),
    };
    words.into_iter().map(pair).collect()
}

/// An array of strings in JSON. `None` if the text is no JSON array at all, and then it is meant as plain text.
pub(super) fn json_strings(text: &str) -> Result<Option<Vec<String>>, SyntaxError> {
    let text = text.trim_start();
    if !text.starts_with('[') {
        return Ok(None);
    }
    let Ok(values) = serde_json::from_str::<Vec<serde_json::Value>>(text) else { return Ok(None) };
    let string = |value| match value {
        serde_json::Value::String(text) => Ok(text),
        _ => Err(SyntaxError::JsonNotStrings),
    };
    values.into_iter().map(string).collect::<Result<_, _>>().map(Some)
}
