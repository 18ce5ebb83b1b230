//! Where in the Dockerfile something stands.

use std::fmt;

/// Whole source lines, first and last included, counted from 1.
///
/// BuildKit's wire form is one range per line; [`LineRange::lines`] gives those line numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LineRange {
    /// First line.
    pub start: u32,
    /// Last line; never less than `start`.
    pub end: u32,
}

impl LineRange {
    /// The lines from `start` to `end`; an `end` before `start` means the single line `start`.
    pub fn new(start: u32, end: u32) -> LineRange {
        LineRange { start, end: end.max(start) }
    }

    /// One line.
    pub fn line(line: u32) -> LineRange {
        LineRange { start: line, end: line }
    }

    /// Every line number in the range.
    pub fn lines(self) -> impl Iterator<Item = u32> {
        self.start..=self.end
    }
}

impl fmt::Display for LineRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.start == self.end {
            write!(f, "line {}", self.start)
        } else {
            write!(f, "lines {}-{}", self.start, self.end)
        }
    }
}
