//! The crate's error.

use crate::ignore::PatternError;
use crate::instructions::MountError;
use crate::lint::CheckError;
use crate::location::LineRange;
use crate::parser::SyntaxError;
use crate::shell::WordError;

/// Why a Dockerfile, or something in it, is no good. The texts of the first two are BuildKit's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text does not divide into instructions.
    #[error("{problem}")]
    Syntax {
        /// What is wrong.
        #[source]
        problem: SyntaxError,
        /// Where.
        lines: LineRange,
    },
    /// One instruction is not valid.
    #[error("dockerfile parse error on line {}: {problem}", .lines.start)]
    Instruction {
        /// What is wrong.
        #[source]
        problem: SyntaxError,
        /// Where.
        lines: LineRange,
    },
    /// Nothing at all, not even a comment.
    #[error("the Dockerfile cannot be empty")]
    Empty,
    /// `ARG`s and nothing else.
    #[error("dockerfile contains no stages to build")]
    NoStages,
    /// The value of `# check=` or its build argument.
    #[error("failed to parse check options: {problem}")]
    CheckOptions {
        /// What is wrong.
        #[source]
        problem: CheckError,
        /// The directive's line.
        lines: LineRange,
    },
    /// A question (`requestid`) that nobody knows.
    #[error("unsupported request {0}")]
    UnknownSubrequest(String),
    /// A word cannot be expanded.
    #[error(transparent)]
    Word(#[from] WordError),
    /// A `--mount` is not valid once expanded.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// An ignore pattern is malformed.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// It parses, but cannot be planned.
    #[error("{problem}")]
    Lower {
        /// What is wrong.
        #[source]
        problem: crate::lower::LowerError,
        /// Where; empty if it is no place in the Dockerfile.
        lines: Vec<LineRange>,
    },
}

impl Error {
    /// The source lines at fault, when known.
    pub fn lines(&self) -> Option<LineRange> {
        match self {
            Error::Syntax { lines, .. }
            | Error::Instruction { lines, .. }
            | Error::CheckOptions { lines, .. } => Some(*lines),
            Error::Lower { lines, .. } => lines.first().copied(),
            _ => None,
        }
    }
}
