//! `--name=value` flags of an instruction.

use crate::parser::SyntaxError;
use crate::text::suggestion;

/// What a flag takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    /// `--name` or `--name=true|false`.
    Bool,
    /// One value.
    Value,
    /// A value each time it is given.
    Values,
}

/// The flags given to an instruction, all of them known.
pub(super) struct Flags {
    given: Vec<(&'static str, String)>,
}

impl Flags {
    pub(super) fn parse(words: &[String], known: &[(&'static str, Takes)]) -> Result<Flags, SyntaxError> {
        let mut flags = Flags { given: Vec::new() };
        for word in words {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (word.as_str(), None),
            };
            // The parser takes for flags only what starts so.
            let name = name.strip_prefix("--").unwrap_or(name);
            let Some((name, takes)) = known.iter().find(|(known, _)| *known == name) else {
                let known: Vec<&'static str> = known.iter().map(|(name, _)| *name).collect();
                return Err(SyntaxError::UnknownFlag {
                    name: name.to_owned(),
                    suggestion: suggestion(name, &known),
                    known,
                });
            };
            if *takes != Takes::Values && flags.is_given(name) {
                return Err(SyntaxError::DuplicateFlag((*name).to_owned()));
            }
            let value = match (takes, value) {
                (Takes::Bool, None) => "true".to_owned(),
                (Takes::Bool, Some(value)) => match value.to_lowercase().as_str() {
                    "" => return Err(SyntaxError::FlagWithoutValue((*name).to_owned())),
                    lower @ ("true" | "false") => lower.to_owned(),
                    _ => {
                        return Err(SyntaxError::FlagNotBoolean {
                            name: (*name).to_owned(),
                            value: value.to_owned(),
                        });
                    }
                },
                (_, None) => return Err(SyntaxError::FlagWithoutValue((*name).to_owned())),
                (_, Some(value)) => value.to_owned(),
            };
            flags.given.push((name, value));
        }
        Ok(flags)
    }

    /// None but the flags that every instruction has: none.
    pub(super) fn none_allowed(words: &[String]) -> Result<(), SyntaxError> {
        Flags::parse(words, &[]).map(|_| ())
    }

    fn is_given(&self, name: &str) -> bool {
        self.given.iter().any(|(given, _)| *given == name)
    }

    /// A flag's value. An empty one is as good as none.
    pub(super) fn value(&self, name: &str) -> Option<String> {
        self.values(name).next().filter(|value| !value.is_empty()).map(str::to_owned)
    }

    pub(super) fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.given.iter().filter(move |(given, _)| *given == name).map(|(_, value)| value.as_str())
    }

    /// A boolean flag, if given.
    pub(super) fn boolean(&self, name: &str) -> Option<bool> {
        self.values(name).next().map(|value| value == "true")
    }

    /// Names, each once, in the order of the first use.
    pub(super) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for (name, _) in &self.given {
            if !names.iter().any(|known| known == name) {
                names.push((*name).to_owned());
            }
        }
        names
    }
}
