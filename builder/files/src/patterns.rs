//! Include and exclude patterns of an op: `.dockerignore`'s language.

use lapstrake_builder_dockerfile::ignore::PatternMatcher;

use crate::FilesError;

/// A matcher of `patterns`; `None` where there are none. `which` they are is named in errors.
pub(crate) fn matcher(
    which: &'static str,
    patterns: &[String],
) -> Result<Option<PatternMatcher>, FilesError> {
    if patterns.is_empty() {
        return Ok(None);
    }
    PatternMatcher::new(patterns).map(Some).map_err(|source| FilesError::BadPatterns {
        which,
        patterns: patterns.to_vec(),
        source,
    })
}
