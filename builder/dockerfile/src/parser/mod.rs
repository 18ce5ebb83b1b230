//! Lines: from bytes to instructions that are split into keyword, flags and arguments, but not yet understood.
//!
//! Three layers, each one pass over the text and without recursion:
//!
//! ```text
//! bytes ── lines ──► physical lines ── document ──► joined lines, heredoc bodies ── words ──► ParsedLine
//!            directives (first lines only): # escape=, # syntax=, # check=
//! ```
//!
//! What is not UTF-8 is refused where it has a meaning (instructions, heredocs), not in comments.

mod directives;
mod document;
mod error;
mod heredoc;
mod lines;
mod words;

#[cfg(test)]
mod tests;

use std::fmt;

pub(crate) use directives::check_in_comment;
pub use directives::{SyntaxDirective, check_directive, detect_syntax};
pub(crate) use document::{Arguments, ParsedLine, parse_document};
pub use error::SyntaxError;
pub(crate) use heredoc::{heredoc_word, heredocs_of_line, strip_leading_tabs};

/// A longer line is an error, as in BuildKit; its end is not counted.
pub const MAX_LINE_BYTES: usize = 65_535;
/// A larger Dockerfile is an error.
pub const MAX_FILE_BYTES: usize = 16 << 20;
/// More text than this outside heredocs is an error.
pub const MAX_TEXT_BYTES: usize = 4 << 20;
/// More instructions than this are an error.
pub const MAX_INSTRUCTIONS: usize = 65_536;

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
