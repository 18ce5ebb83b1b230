//! `.dockerignore`: reading it, and matching paths against its patterns.
//!
//! The same patterns are used for `--exclude` and for what a client is asked to send. Later patterns win; `!pattern` takes back. A pattern
//! that matches a directory matches everything below it.
//!
//! A walk of a tree gives each directory's [`ParentMatch`] to its children, so that no path is matched piece by piece, and asks
//! [`PatternMatcher::decides_everything_below`] before it descends into an excluded directory:
//!
//! ```
//! use lapstrake_builder_dockerfile::ignore::{PatternMatcher, read_ignore_file};
//!
//! let patterns = read_ignore_file(b"# no modules\nnode_modules\n*.log\n!keep.log\n")?;
//! let matcher = PatternMatcher::new(&patterns)?;
//! let (excluded, modules) = matcher.matches_below("node_modules", None);
//! assert!(excluded && matcher.decides_everything_below("node_modules"));
//! assert!(matcher.matches_below("node_modules/a.js", Some(&modules)).0);
//! assert!(matcher.matches("debug.log") && !matcher.matches("keep.log"));
//! # Ok::<(), lapstrake_builder_dockerfile::ignore::PatternError>(())
//! ```

mod file;
mod glob;
mod path;

#[cfg(test)]
mod tests;

pub use file::{MAX_LINE_BYTES, read_ignore_file};

use glob::Glob;
use path::clean;

use crate::text::go_quote;

/// Why a pattern or an ignore file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PatternError {
    /// `!` alone.
    #[error("illegal exclusion pattern: \"!\"")]
    LoneExclamation,
    /// A class without end or content, or an escape of nothing.
    #[error("syntax error in pattern {}", go_quote(.0))]
    Syntax(String),
    /// A line of an ignore file that is longer than any pattern.
    #[error("line {line} of the ignore file is longer than {limit} bytes")]
    LineTooLong {
        /// The line.
        line: usize,
        /// The limit.
        limit: usize,
    },
    /// A line of an ignore file that is no text.
    #[error("line {line} of the ignore file is not valid UTF-8")]
    NotUtf8 {
        /// The line.
        line: usize,
    },
}

/// Patterns, ready to match. Paths are relative to the root that the patterns are about, with `/` between their parts, and clean: no `.`,
/// `..`, doubled or trailing `/`.
#[derive(Debug, Clone, Default)]
pub struct PatternMatcher {
    patterns: Vec<Pattern>,
    /// For each exception, where its literal path starts to hold, unless some exception may match anywhere.
    exceptions: Option<Vec<String>>,
    /// The same for the other patterns.
    inclusions: Option<Vec<String>>,
}

#[derive(Debug, Clone)]
struct Pattern {
    glob: Glob,
    text: String,
    /// Written with `!`.
    exception: bool,
}

/// Which patterns match a directory or one above it; for matching what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentMatch(Box<[bool]>);

impl PatternMatcher {
    /// Compiles patterns. Each is trimmed and cleaned; empty ones are skipped.
    pub fn new<S: AsRef<str>>(patterns: &[S]) -> Result<PatternMatcher, PatternError> {
        let mut matcher = PatternMatcher::default();
        for pattern in patterns {
            let pattern = pattern.as_ref().trim();
            if pattern.is_empty() {
                continue;
            }
            let cleaned = clean(pattern);
            let (exception, text) = match cleaned.strip_prefix('!') {
                Some("") => return Err(PatternError::LoneExclamation),
                Some(text) => (true, text.to_owned()),
                None => (false, cleaned),
            };
            let glob = Glob::new(&text).map_err(|_| PatternError::Syntax(text.clone()))?;
            matcher.patterns.push(Pattern { glob, text, exception });
        }
        matcher.exceptions = matcher.literal_paths(true);
        matcher.inclusions = matcher.literal_paths(false);
        Ok(matcher)
    }

    /// Whether there is no pattern at all.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether any pattern is an exception.
    pub fn has_exceptions(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.exception)
    }

    /// The cleaned patterns, in order, exceptions with their `!`.
    pub fn patterns(&self) -> impl Iterator<Item = String> {
        self.patterns.iter().map(|pattern| match pattern.exception {
            true => format!("!{}", pattern.text),
            false => pattern.text.clone(),
        })
    }

    /// Whether the patterns, taken in order, match the path or a directory above it.
    ///
    /// Patterns are matched as given: `.` is matched by `**`. Whoever must not lose the root has to see to it.
    pub fn matches(&self, path: &str) -> bool {
        self.evaluate(path, None, |_, _| {})
    }

    /// [`matches`](PatternMatcher::matches) during a walk: `parent` is what this gave for the directory that the path is in. Without one, all
    /// directories above are looked at.
    ///
    /// A pattern that was not asked for a directory, because it could not change that result, counts as not matching it when it comes to what
    /// is inside. With exceptions the result can therefore differ from [`matches`](PatternMatcher::matches); Moby's do too, and Docker's
    /// clients send what the walk selects.
    pub fn matches_below(&self, path: &str, parent: Option<&ParentMatch>) -> (bool, ParentMatch) {
        // One that another matcher made says nothing here.
        let parent = parent.filter(|parent| parent.0.len() == self.patterns.len());
        let mut states = vec![false; self.patterns.len()].into_boxed_slice();
        let matched = self.evaluate(path, parent, |index, state| states[index] = state);
        (matched, ParentMatch(states))
    }

    /// For a directory that matches: whether everything in it matches too, so that a walk that excludes matches need not descend.
    ///
    /// False whenever an exception might match something below. As in fsutil, an exception with wildcards, but for a last `/*` or `/**`,
    /// might match anywhere.
    pub fn decides_everything_below(&self, directory: &str) -> bool {
        self.exceptions.as_ref().is_some_and(|paths| none_below(paths, directory))
    }

    /// For a directory that does not match: whether nothing in it matches either, so that a walk that includes matches need not descend.
    pub fn matches_nothing_below(&self, directory: &str) -> bool {
        self.inclusions.as_ref().is_some_and(|paths| none_below(paths, directory))
    }

    /// A pattern is asked only where its answer can change the result: an exception once something matched, another while nothing did.
    fn evaluate(&self, path: &str, parent: Option<&ParentMatch>, mut state: impl FnMut(usize, bool)) -> bool {
        let mut matched = false;
        for (index, pattern) in self.patterns.iter().enumerate() {
            let from_parent = parent.is_some_and(|parent| parent.0[index]);
            if !from_parent && pattern.exception != matched {
                continue;
            }
            let matches = from_parent
                || match parent {
                    Some(_) => pattern.glob.matches(path),
                    None => pattern.glob.matches_or_parent(path),
                };
            state(index, matches);
            if matches {
                matched = !pattern.exception;
            }
        }
        matched
    }

    fn literal_paths(&self, exceptions: bool) -> Option<Vec<String>> {
        let chosen = self.patterns.iter().filter(|pattern| pattern.exception == exceptions);
        let literal = |pattern: &Pattern| {
            // One of the two only: `a/*/**` does match below `a/x`. fsutil takes off both, and its walk loses files there.
            let text = &pattern.text;
            let text = text.strip_suffix("/**").or_else(|| text.strip_suffix("/*")).unwrap_or(text);
            (!text.contains(['*', '[', ']', '?', '^', '\\'])).then(|| text.to_owned())
        };
        chosen.map(literal).collect()
    }
}

/// No path is the directory itself or something in it.
fn none_below(paths: &[String], directory: &str) -> bool {
    let is_below = |path: &String| {
        path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    !paths.iter().any(is_below)
}
