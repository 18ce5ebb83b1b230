//! `.dockerignore`: reading it, and matching paths against its patterns.

/// Why a pattern is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PatternError {
    /// `!` alone.
    #[error("illegal exclusion pattern: \"!\"")]
    LoneExclamation,
    /// A class without end, a range out of order, or a trailing `\`.
    #[error("syntax error in pattern {}", crate::text::go_quote(.0))]
    Syntax(String),
    /// Not a match, but a limit.
    #[error("pattern {} is too large", crate::text::go_quote(.0))]
    TooLarge(String),
}
