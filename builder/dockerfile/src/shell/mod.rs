//! Words: quotes, escapes and `${…}` in the arguments of an instruction, as BuildKit's lexer has them.
//!
//! ```
//! use std::collections::BTreeMap;
//! use lapstrake_builder_dockerfile::{parser::EscapeToken, shell::Lexer};
//!
//! let variables = BTreeMap::from([("dir".to_owned(), "/srv".to_owned())]);
//! let expansion = Lexer::new(EscapeToken::Backslash).expand("$dir/${name:-web}", &variables)?;
//! assert_eq!(expansion.value, "/srv/web");
//! assert!(expansion.used.contains("dir") && expansion.missing.contains("name"));
//! # Ok::<(), lapstrake_builder_dockerfile::shell::WordError>(())
//! ```

mod lexer;
mod pattern;

use std::collections::{BTreeMap, BTreeSet};

use crate::parser::EscapeToken;

/// The variables that words may use.
pub trait Variables {
    /// The value of `name`; an empty value is set all the same.
    fn get(&self, name: &str) -> Option<&str>;
}

impl Variables for BTreeMap<String, String> {
    fn get(&self, name: &str) -> Option<&str> {
        BTreeMap::get(self, name).map(String::as_str)
    }
}

/// In order of definition: a later definition of a name hides an earlier one.
impl Variables for [(String, String)] {
    fn get(&self, name: &str) -> Option<&str> {
        self.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// No variable is set.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoVariables;

impl Variables for NoVariables {
    fn get(&self, _name: &str) -> Option<&str> {
        None
    }
}

/// What the lexer does with quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Quotes {
    /// They group, and are dropped.
    #[default]
    Remove,
    /// They group, and stay.
    Keep,
    /// They are characters like any other.
    Ignore,
}

/// What the lexer does with variables that are not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unset {
    /// They are empty.
    #[default]
    Empty,
    /// Their use stays as written.
    Keep,
}

/// Expands and splits words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lexer {
    /// The escape character.
    pub escape: EscapeToken,
    /// Quotes.
    pub quotes: Quotes,
    /// Whether escape characters stay in the result.
    pub keep_escapes: bool,
    /// Unset variables.
    pub unset: Unset,
}

/// A word's value, and what it took to find it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expansion {
    /// The value.
    pub value: String,
    /// Variables that were looked up and found.
    pub used: BTreeSet<String>,
    /// Variables that were looked up in vain, be there a default for them or not.
    pub missing: BTreeSet<String>,
}

impl Lexer {
    /// A lexer for the arguments of instructions: quotes and escapes are removed, unset variables are empty.
    pub fn new(escape: EscapeToken) -> Lexer {
        Lexer { escape, quotes: Quotes::Remove, keep_escapes: false, unset: Unset::Empty }
    }

    /// A lexer for the text of heredoc files: nothing but variables is touched, and `\` escapes whatever the Dockerfile's escape is.
    pub fn for_heredoc() -> Lexer {
        Lexer { quotes: Quotes::Ignore, ..Lexer::new(EscapeToken::Backslash) }
    }

    /// The value of one word; white space in it stays.
    pub fn expand(&self, word: &str, variables: &(impl Variables + ?Sized)) -> Result<Expansion, WordError> {
        if self.is_plain(word) {
            return Ok(Expansion { value: word.to_owned(), ..Expansion::default() });
        }
        let lookup = |name: &str| variables.get(name);
        let mut run = lexer::Run::new(*self, word, &lookup);
        let value = run.value().map_err(|problem| WordError { word: word.to_owned(), problem })?;
        Ok(Expansion { value, used: run.used, missing: run.missing })
    }

    /// The value of one word. Variables that were looked up in vain are added to `missing`, even where it fails.
    pub(crate) fn expand_noting(
        &self,
        word: &str,
        variables: &(impl Variables + ?Sized),
        missing: &mut BTreeSet<String>,
    ) -> Result<String, WordError> {
        if self.is_plain(word) {
            return Ok(word.to_owned());
        }
        let lookup = |name: &str| variables.get(name);
        let mut run = lexer::Run::new(*self, word, &lookup);
        let result = run.value().map_err(|problem| WordError { word: word.to_owned(), problem });
        missing.extend(run.missing);
        result
    }

    /// Whether a word is its own value.
    fn is_plain(&self, word: &str) -> bool {
        let escape = self.escape.as_char() as u8;
        !word.bytes().any(|byte| matches!(byte, b'$' | b'\'' | b'"') || byte == escape)
    }

    /// The words of a text, split at white space after expansion; quoted and escaped white space does not split.
    pub fn split(&self, text: &str, variables: &(impl Variables + ?Sized)) -> Result<Vec<String>, WordError> {
        let lookup = |name: &str| variables.get(name);
        let mut run = lexer::Run::new(*self, text, &lookup);
        run.words().map_err(|problem| WordError { word: text.to_owned(), problem })
    }
}

/// Why a word cannot be expanded; the texts are BuildKit's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("failed to process {}: {problem}", crate::text::go_quote(word))]
pub struct WordError {
    /// The word.
    pub word: String,
    /// What is wrong with it.
    #[source]
    pub problem: WordProblem,
}

/// What is wrong with a word.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WordProblem {
    /// `'` without its end.
    #[error("unexpected end of statement while looking for matching single-quote")]
    OpenSingleQuote,
    /// `"` without its end.
    #[error("unexpected end of statement while looking for matching double-quote")]
    OpenDoubleQuote,
    /// `${` without its end.
    #[error("syntax error: missing '}}'")]
    OpenBrace,
    /// `${v/p` without its second `/`.
    #[error("syntax error: missing '/' in ${{}}")]
    MissingSlash,
    /// `${}`, `${:…`, `${{`.
    #[error("syntax error: bad substitution")]
    BadSubstitution,
    /// Something else behind the name in `${…}`.
    #[error("unsupported modifier ({0}) in substitution")]
    UnsupportedModifier(String),
    /// `${v?message}` or `${v:?message}` failed.
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// The author's message or the default one.
        message: String,
    },
    /// A pattern with an unknown escape.
    #[error("invalid pattern ({pattern}) in substitution: {reason}")]
    BadPattern {
        /// The pattern.
        pattern: String,
        /// Why.
        reason: String,
    },
    /// `${a:-${b:-${…` beyond any use.
    #[error("substitutions are nested more than {0} deep")]
    TooDeep(usize),
    /// The result is larger than any use.
    #[error("expands to more than {0} bytes")]
    TooLong(usize),
}

#[cfg(test)]
mod tests;
