//! Heredoc words: `<<EOF`, `<<-"EOF"`, `3<<EOF`.

use super::{EscapeToken, SyntaxError};
use crate::shell::{Lexer, NoVariables, Quotes, Unset};

/// What a heredoc word says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HeredocWord {
    pub(crate) name: String,
    pub(crate) file_descriptor: u64,
    pub(crate) expand: bool,
    pub(crate) strip_tabs: bool,
}

// The heredoc's escape is `\` whatever `# escape=` says: the word is for the shell.
const LEXER: Lexer =
    Lexer { escape: EscapeToken::Backslash, quotes: Quotes::Remove, keep_escapes: false, unset: Unset::Keep };

/// Reads one word; `None` if it is no heredoc.
pub(crate) fn heredoc_word(word: &str) -> Result<Option<HeredocWord>, SyntaxError> {
    let after_digits = word.trim_start_matches(|ch: char| ch.is_ascii_digit());
    let digits = &word[..word.len() - after_digits.len()];
    let Some(rest) = after_digits.strip_prefix("<<") else { return Ok(None) };
    let (strip_tabs, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let rest = rest.trim_start_matches(['\t', '\n', '\u{c}', '\r', ' ']);
    if rest.is_empty() || rest.contains('<') {
        return Ok(None);
    }
    let mut names = LEXER.split(rest, &NoVariables)?;
    if names.len() != 1 {
        return Ok(None);
    }
    // Quotes anywhere in the name mean that the body is not expanded. They are there if keeping them makes a difference.
    let quotes = |text: &str| text.matches(['\'', '"']).count();
    let raw = Lexer { quotes: Quotes::Keep, ..LEXER }.split(rest, &NoVariables)?;
    let name = names.remove(0);
    let expand = raw.first().is_some_and(|raw| quotes(raw) == quotes(&name));
    let file_descriptor = match digits {
        "" => 0,
        _ => digits.parse().unwrap_or(u64::MAX),
    };
    Ok(Some(HeredocWord { name, file_descriptor, expand, strip_tabs }))
}

/// The heredocs that a line opens, in order. A line that the shell would not split has none.
pub(crate) fn heredocs_of_line(line: &str) -> Result<Vec<HeredocWord>, SyntaxError> {
    if !line.contains("<<") {
        return Ok(Vec::new());
    }
    let raw = Lexer { quotes: Quotes::Keep, keep_escapes: true, ..LEXER };
    let words = raw.split(line, &NoVariables).unwrap_or_default();
    words.iter().filter_map(|word| heredoc_word(word).transpose()).collect()
}

/// The text with the tabs at the start of each line gone.
pub(crate) fn strip_leading_tabs(text: &str) -> String {
    text.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
}
