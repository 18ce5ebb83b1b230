//! Lines: from bytes to instructions that are split into keyword, flags and arguments, but not yet understood.

use std::fmt;

/// The character that escapes the next one and, at a line's end, continues the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EscapeToken {
    /// `\`
    #[default]
    Backslash,
    /// `` ` ``, chosen with `# escape=`.
    Backtick,
}

impl EscapeToken {
    /// The character itself.
    pub fn as_char(self) -> char {
        match self {
            EscapeToken::Backslash => '\\',
            EscapeToken::Backtick => '`',
        }
    }
}

impl fmt::Display for EscapeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.as_char())
    }
}

/// What is wrong with a Dockerfile's text or with one of its instructions; the texts are BuildKit's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SyntaxError {
    /// Nothing but comments and white space.
    #[error("file with no instructions")]
    NoInstructions,
}
