//! Modes in the language of `chmod(1)`: `u=rwX,go-w`. Facts: POSIX `chmod`, and the set that BuildKit's parser takes.

use rustix::fs::FileType;

use crate::FilesError;

const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;
const STICKY: u32 = 0o1000;
const READ: u32 = 0o444;
const WRITE: u32 = 0o222;
const EXECUTE: u32 = 0o111;
const USER: u32 = 0o700;
const GROUP: u32 = 0o070;
const OTHER: u32 = 0o007;
const STANDARD: u32 = SET_UID | SET_GID | USER | GROUP | OTHER;

/// A change of modes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ModeChange(Vec<Step>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Add,
    Remove,
    Assign,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Add(u32),
    Remove(u32),
    /// `X`: only where somebody may execute, and for directories.
    AddIfExecutable(u32),
    /// `g=u`: the bits of one class, shifted down, given to those of `to`.
    Copy {
        operator: Operator,
        shift: u32,
        to: u32,
    },
}

impl ModeChange {
    pub(crate) fn parse(text: &str) -> Result<Self, FilesError> {
        let bad = |why| FilesError::BadMode { mode: text.to_owned(), why };
        if text.starts_with(|first: char| first.is_ascii_digit()) {
            let bits = u32::from_str_radix(text, 8).map_err(|_| bad("invalid syntax"))?;
            if bits > STANDARD | STICKY {
                return Err(bad("value out of range"));
            }
            return Ok(Self(vec![Step::Remove(STANDARD | STICKY), Step::Add(bits)]));
        }
        let mut steps = Vec::new();
        for clause in text.split(',') {
            let end =
                clause.find(|c| !matches!(c, 'u' | 'g' | 'o' | 'a')).ok_or_else(|| bad("invalid syntax"))?;
            let who = clause[..end].chars().fold(0, |who, class| {
                who | match class {
                    'u' => SET_UID | USER,
                    'g' => SET_GID | GROUP,
                    'o' => OTHER,
                    _ => STANDARD,
                }
            });
            steps_of(who, &clause[end..], &mut steps).ok_or_else(|| bad("invalid syntax"))?;
        }
        Ok(Self(steps))
    }

    /// The mode that something of this mode gets. Only permission bits, without the type.
    pub(crate) fn apply(&self, mode: u32) -> u32 {
        let old = mode & 0o7777;
        let executable = old & EXECUTE != 0 || FileType::from_raw_mode(mode) == FileType::Directory;
        self.0.iter().fold(old, |new, step| match *step {
            Step::Add(bits) => new | bits,
            Step::Remove(bits) => new & !bits,
            Step::AddIfExecutable(bits) if executable => new | bits,
            Step::AddIfExecutable(_) => new,
            Step::Copy { operator, shift, to } => {
                let bits = (((new >> shift) & OTHER) * 0o111) & to;
                match operator {
                    Operator::Add => new | bits,
                    Operator::Remove => new & !bits,
                    Operator::Assign => (new & !to) | bits,
                }
            }
        })
    }
}

/// The actions of one clause: `=rw+X`.
fn steps_of(mut who: u32, actions: &str, steps: &mut Vec<Step>) -> Option<()> {
    let mut rest = actions;
    while !rest.is_empty() {
        let operator = match rest.as_bytes()[0] {
            b'+' => Operator::Add,
            b'-' => Operator::Remove,
            b'=' => Operator::Assign,
            _ => return None,
        };
        rest = &rest[1..];
        let end = rest.find(['+', '-', '=']).unwrap_or(rest.len());
        let (permissions, after) = rest.split_at(end);
        rest = after;
        who &= !STICKY;
        let mut bits = 0;
        let mut if_executable = 0;
        let mut assigned = false;
        // Only "other" has no set-id and sticky bits.
        let special = who == 0 || who & !OTHER != 0;
        for permission in permissions.chars() {
            match permission {
                'r' => bits |= READ,
                'w' => bits |= WRITE,
                'x' => bits |= EXECUTE,
                'X' if operator == Operator::Remove => bits |= EXECUTE,
                'X' => if_executable |= EXECUTE,
                's' if special => bits |= SET_UID | SET_GID,
                't' if special => {
                    who |= STICKY;
                    bits |= STICKY;
                }
                's' | 't' => {}
                'u' | 'g' | 'o' => {
                    flush(operator, who, std::mem::take(&mut bits), false, steps);
                    add_if_executable(who, std::mem::take(&mut if_executable), steps);
                    assigned = true;
                    let shift = match permission {
                        'u' => 6,
                        'g' => 3,
                        _ => 0,
                    };
                    let to = if who == 0 { USER | GROUP | OTHER } else { classes_of(who) };
                    steps.push(Step::Copy { operator, shift, to });
                }
                _ => return None,
            }
        }
        flush(operator, who, bits, operator == Operator::Assign && !assigned, steps);
        add_if_executable(who, if_executable, steps);
    }
    (!actions.is_empty()).then_some(())
}

/// Whole classes only, which is what `who` names.
fn classes_of(who: u32) -> u32 {
    [USER, GROUP, OTHER].into_iter().filter(|class| who & class == *class).sum()
}

fn masked(who: u32, bits: u32) -> u32 {
    if who == 0 { bits } else { who & bits }
}

fn flush(operator: Operator, who: u32, bits: u32, even_if_empty: bool, steps: &mut Vec<Step>) {
    if bits == 0 && !even_if_empty {
        return;
    }
    match operator {
        Operator::Add => steps.push(Step::Add(masked(who, bits))),
        Operator::Remove => steps.push(Step::Remove(masked(who, bits))),
        Operator::Assign => {
            steps.push(Step::Remove(if who == 0 { STANDARD } else { who }));
            steps.push(Step::Add(masked(who, bits)));
        }
    }
}

fn add_if_executable(who: u32, bits: u32, steps: &mut Vec<Step>) {
    if bits != 0 {
        steps.push(Step::AddIfExecutable(masked(who, bits)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: u32 = 0o100_000;
    const DIRECTORY: u32 = 0o040_000;

    #[test]
    fn changes_do_what_chmod_does() {
        for (change, from, to) in [
            ("755", FILE | 0o600, 0o755),
            ("04711", FILE | 0o600, 0o4711),
            ("0", FILE | 0o7777, 0),
            ("u+x", FILE | 0o644, 0o744),
            ("+x", FILE | 0o644, 0o755),
            ("a+X", FILE | 0o644, 0o644),
            ("a+X", FILE | 0o744, 0o755),
            ("a+X", DIRECTORY | 0o644, 0o755),
            ("u=rwX,go=rX", FILE | 0o777, 0o755),
            ("u=rwX,go=rX", FILE | 0o666, 0o644),
            ("u=rwX,go=rX", DIRECTORY | 0o600, 0o755),
            ("go-w", FILE | 0o666, 0o644),
            ("go=", FILE | 0o666, 0o600),
            ("g=u", FILE | 0o640, 0o660),
            ("o=g", FILE | 0o750, 0o755),
            ("o+u", FILE | 0o641, 0o647),
            ("g-u", FILE | 0o667, 0o607),
            ("u+s", FILE | 0o755, 0o4755),
            ("g+s", DIRECTORY | 0o755, 0o2755),
            ("+t", DIRECTORY | 0o777, 0o1777),
            ("o+t", DIRECTORY | 0o777, 0o777),
            ("a-x+r", FILE | 0o311, 0o644),
            ("u+r-w", FILE | 0o200, 0o400),
            ("a=", FILE | 0o4777, 0),
            ("a-X", FILE | 0o755, 0o644),
        ] {
            let result = ModeChange::parse(change).unwrap().apply(from);
            assert_eq!(result, to, "{change} of {from:o} gives {result:o}");
        }
    }

    #[test]
    fn texts_that_are_no_modes_are_refused() {
        for text in ["", "u", "x", "u+q", "888", "77777", "u+x,", ",u+x", "u~x", "7a", "u x", "-+é"] {
            assert!(ModeChange::parse(text).is_err(), "{text:?}");
        }
    }
}
