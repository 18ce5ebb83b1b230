//! Words: quotes, escapes and `${…}` in the arguments of an instruction, as BuildKit's lexer has them.

mod pattern;

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
