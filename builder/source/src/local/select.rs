//! Which entries of a tree the patterns select.

use lapstrake_builder_dockerfile::ignore::{ParentMatch, PatternError, PatternMatcher};

/// Patterns of what to take and of what to leave out. No patterns: everything.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection {
    include: Option<PatternMatcher>,
    exclude: Option<PatternMatcher>,
}

/// What is known of a directory, for what is in it.
#[derive(Debug, Clone, Default)]
pub(super) struct Above {
    include: Option<ParentMatch>,
    exclude: Option<ParentMatch>,
}

/// What becomes of an entry.
pub(super) struct Choice {
    /// It is taken. A directory that is not is taken all the same when something in it is.
    pub(super) selected: bool,
    /// If it is a directory: something in it may be taken.
    pub(super) descend: bool,
    /// For what is in it.
    pub(super) above: Above,
}

impl Selection {
    /// Empty lists are no patterns.
    pub(super) fn new(include: &[String], exclude: &[String]) -> Result<Self, PatternError> {
        let matcher = |patterns: &[String]| match patterns {
            [] => Ok(None),
            patterns => PatternMatcher::new(patterns).map(Some),
        };
        Ok(Self { include: matcher(include)?, exclude: matcher(exclude)? })
    }

    /// Whether it takes everything, whatever there is.
    pub(super) fn is_all(&self) -> bool {
        self.include.is_none() && self.exclude.as_ref().is_none_or(PatternMatcher::is_empty)
    }

    /// Decides on an entry; `above` is what was decided on the directory that it is in.
    pub(super) fn choose(&self, path: &str, above: &Above) -> Choice {
        let mut choice = Choice { selected: true, descend: true, above: Above::default() };
        if let Some(include) = &self.include {
            let (matches, states) = include.matches_below(path, above.include.as_ref());
            choice.above.include = Some(states);
            if !matches {
                choice.selected = false;
                choice.descend &= !include.matches_nothing_below(path);
            }
        }
        if let Some(exclude) = &self.exclude {
            let (matches, states) = exclude.matches_below(path, above.exclude.as_ref());
            choice.above.exclude = Some(states);
            if matches {
                choice.selected = false;
                choice.descend &= !exclude.decides_everything_below(path);
            }
        }
        choice
    }
}
