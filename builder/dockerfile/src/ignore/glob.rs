//! One pattern.
//!
//! `*` and `?` stop at `/`, `**` does not, `**/` is any number of directories, `[a-z]` and `[^a-z]` are classes, `\` escapes. Moby
//! turns a pattern into a regular expression, or, where that is enough, into a comparison of starts or ends. Which of the two it is shows: `**foo`
//! is any path that ends in `foo`. So the same is done here, but with an automaton of our own: it costs memory in proportion to the
//! pattern, and time in proportion to pattern times path, whatever the pattern is.

use super::path::prefixes;

/// The pattern has no meaning.
#[derive(Debug)]
pub(super) struct BadPattern;

#[derive(Debug, Clone)]
pub(super) enum Glob {
    /// That path.
    Exact(String),
    /// Whatever starts so.
    Prefix(String),
    /// Whatever ends so; with a `/` at its start, also what is after that.
    Suffix(String),
    /// Everything else: what one of these matches.
    Automaton(Vec<Box<[Step]>>),
}

/// What the path must have next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// This character.
    Char(char),
    /// Any but `/`.
    Any,
    /// One in the class, or one not in it. A negated class has `/`, in Moby.
    Class { negated: bool, ranges: Box<[(char, char)]> },
    /// Any number of any but `/`.
    Star,
    /// Any number of any, at the end of a pattern.
    DeepStar,
    /// Any number of any: where an alternative need not begin or end with the path.
    Anything,
    /// Nothing, where the path begins.
    Start,
    /// Nothing, or else what [`Step::Directories`], which always follows, has.
    MaybeDirectories,
    /// Any number of any, and a `/`.
    Directories,
}

/// What has to match.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    Path,
    PathOrParent,
}

/// How far the pattern is from needing an automaton.
#[derive(PartialEq, Eq)]
enum Shape {
    Exact,
    Prefix,
    Suffix,
    Automaton,
}

impl Glob {
    pub(super) fn new(pattern: &str) -> Result<Glob, BadPattern> {
        let mut alternatives: Vec<Vec<Step>> = Vec::new();
        let mut steps = Vec::new();
        let mut shape = Shape::Exact;
        let mut rest = pattern;
        while let Some(ch) = rest.chars().next() {
            let at_start = rest.len() == pattern.len();
            rest = &rest[ch.len_utf8()..];
            match ch {
                '*' => match rest.strip_prefix('*') {
                    Some(after) => {
                        rest = after.strip_prefix('/').unwrap_or(after);
                        if !rest.is_empty() {
                            steps.extend([Step::MaybeDirectories, Step::Directories]);
                            shape = Shape::Automaton;
                        } else if shape == Shape::Exact {
                            shape = Shape::Prefix;
                        } else {
                            steps.push(Step::DeepStar);
                            shape = Shape::Automaton;
                        }
                        if at_start {
                            shape = Shape::Suffix;
                        }
                    }
                    None => {
                        steps.push(Step::Star);
                        shape = Shape::Automaton;
                    }
                },
                '?' => {
                    steps.push(Step::Any);
                    shape = Shape::Automaton;
                }
                '[' => {
                    let (class, after) = class(rest)?;
                    steps.push(class);
                    rest = after;
                    shape = Shape::Automaton;
                }
                '\\' => {
                    let escaped = rest.chars().next().ok_or(BadPattern)?;
                    rest = &rest[escaped.len_utf8()..];
                    steps.push(Step::Char(escaped));
                    shape = Shape::Automaton;
                }
                // Moby forgets to escape these two where it makes a regular expression: `*.a|*.b` is whatever begins like `x.a` or ends
                // in `.b`.
                '|' => alternatives.push(std::mem::take(&mut steps)),
                '^' => steps.push(Step::Start),
                // Nothing but itself, but Moby makes a regular expression of it.
                ']' => {
                    steps.push(Step::Char(ch));
                    shape = Shape::Automaton;
                }
                _ => steps.push(Step::Char(ch)),
            }
        }
        Ok(match shape {
            Shape::Exact => Glob::Exact(pattern.to_owned()),
            Shape::Prefix => Glob::Prefix(pattern.trim_end_matches("**").to_owned()),
            Shape::Suffix => Glob::Suffix(pattern["**".len()..].to_owned()),
            Shape::Automaton => {
                alternatives.push(steps);
                let last = alternatives.len() - 1;
                for (at, steps) in alternatives.iter_mut().enumerate() {
                    if at > 0 {
                        steps.insert(0, Step::Anything);
                    }
                    if at < last {
                        steps.push(Step::Anything);
                    }
                }
                Glob::Automaton(alternatives.into_iter().map(Vec::into_boxed_slice).collect())
            }
        })
    }

    pub(super) fn matches(&self, path: &str) -> bool {
        match self {
            Glob::Exact(text) => path == text,
            Glob::Prefix(text) => path.starts_with(text.as_str()),
            Glob::Suffix(text) => path.ends_with(text.as_str()) || text.strip_prefix('/') == Some(path),
            Glob::Automaton(alternatives) => alternatives.iter().any(|steps| run(steps, path, Reach::Path)),
        }
    }

    /// Whether the path or a directory above it matches.
    pub(super) fn matches_or_parent(&self, path: &str) -> bool {
        match self {
            Glob::Automaton(alternatives) => {
                alternatives.iter().any(|steps| run(steps, path, Reach::PathOrParent))
            }
            Glob::Exact(_) | Glob::Prefix(_) | Glob::Suffix(_) => {
                self.matches(path) || prefixes(path).any(|directory| self.matches(directory))
            }
        }
    }
}

/// A class, behind its `[`, and what follows it. The rules are those of Go's `filepath.Match`, and `[:alpha:]` and its kin are known, as they
/// are to Moby's regular expressions.
fn class(pattern: &str) -> Result<(Step, &str), BadPattern> {
    let (negated, mut rest) = match pattern.strip_prefix('^') {
        Some(rest) => (true, rest),
        None => (false, pattern),
    };
    let mut ranges = Vec::new();
    loop {
        if !ranges.is_empty()
            && let Some(after) = rest.strip_prefix(']')
        {
            return Ok((Step::Class { negated, ranges: ranges.into() }, after));
        }
        if let Some((named, after)) = named_class(rest) {
            ranges.extend_from_slice(named);
            rest = after;
            continue;
        }
        let (low, after) = class_char(rest)?;
        let (high, after) = match after.strip_prefix('-') {
            Some(after) => class_char(after)?,
            None => (low, after),
        };
        rest = after;
        if low > high {
            return Err(BadPattern);
        }
        ranges.push((low, high));
    }
}

/// `[:name:]`, and what follows it. ASCII only, as in Go.
fn named_class(pattern: &str) -> Option<(&'static [(char, char)], &str)> {
    let (name, after) = pattern.strip_prefix("[:")?.split_once(":]")?;
    let ranges: &[(char, char)] = match name {
        "alnum" => &[('0', '9'), ('A', 'Z'), ('a', 'z')],
        "alpha" => &[('A', 'Z'), ('a', 'z')],
        "ascii" => &[('\0', '\x7f')],
        "blank" => &[('\t', '\t'), (' ', ' ')],
        "cntrl" => &[('\0', '\x1f'), ('\x7f', '\x7f')],
        "digit" => &[('0', '9')],
        "graph" => &[('!', '~')],
        "lower" => &[('a', 'z')],
        "print" => &[(' ', '~')],
        "punct" => &[('!', '/'), (':', '@'), ('[', '`'), ('{', '~')],
        "space" => &[('\t', '\r'), (' ', ' ')],
        "upper" => &[('A', 'Z')],
        "word" => &[('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')],
        "xdigit" => &[('0', '9'), ('A', 'F'), ('a', 'f')],
        _ => return None,
    };
    Some((ranges, after))
}

fn class_char(pattern: &str) -> Result<(char, &str), BadPattern> {
    let mut chars = pattern.chars();
    let ch = match chars.next() {
        None | Some('-' | ']') => return Err(BadPattern),
        Some('\\') => chars.next().ok_or(BadPattern)?,
        Some(ch) => ch,
    };
    Ok((ch, chars.as_str()))
}

/// Runs all ways through the pattern at once: bit n stands for "the next step is n".
fn run(steps: &[Step], path: &str, reach: Reach) -> bool {
    // Most paths end here: a look at the first character is much cheaper than the machinery.
    if let (Some(Step::Char(wanted)), Some(ch)) = (steps.first(), path.chars().next())
        && *wanted != ch
    {
        return false;
    }
    let words = (steps.len() + 1).div_ceil(64);
    match words {
        1 => run_with(steps, path, reach, &mut [0; 1], &mut [0; 1]),
        2 => run_with(steps, path, reach, &mut [0; 2], &mut [0; 2]),
        _ => run_with(steps, path, reach, &mut vec![0; words], &mut vec![0; words]),
    }
}

fn run_with(steps: &[Step], path: &str, reach: Reach, current: &mut [u64], next: &mut [u64]) -> bool {
    let (mut current, mut next) = (current, next);
    let end = steps.len();
    let at_end = |states: &[u64]| states[end / 64] & (1 << (end % 64)) != 0;
    activate(steps, current, 0, true);
    for (position, ch) in path.char_indices() {
        if reach == Reach::PathOrParent && ch == '/' && position > 0 && at_end(current) {
            return true;
        }
        next.fill(0);
        let mut alive = false;
        for (word, bits) in current.iter().enumerate() {
            let mut bits = *bits;
            while bits != 0 {
                let at = word * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let Some(step) = steps.get(at) else { continue };
                let (stay, go) = step.consume(ch);
                if stay {
                    activate(steps, next, at, false);
                }
                if go {
                    activate(steps, next, at + 1, false);
                }
                alive |= stay || go;
            }
        }
        if !alive {
            return false;
        }
        std::mem::swap(&mut current, &mut next);
    }
    at_end(current)
}

/// Marks a step as next, and with it those that may be next instead because it may be nothing.
fn activate(steps: &[Step], states: &mut [u64], mut at: usize, at_start: bool) {
    loop {
        let (word, bit) = (at / 64, 1u64 << (at % 64));
        if states[word] & bit != 0 {
            return;
        }
        states[word] |= bit;
        match steps.get(at) {
            Some(Step::Star | Step::DeepStar | Step::Anything) => at += 1,
            Some(Step::Start) if at_start => at += 1,
            Some(Step::MaybeDirectories) => {
                let inside = at + 1;
                states[inside / 64] |= 1 << (inside % 64);
                at += 2;
            }
            _ => return,
        }
    }
}

impl Step {
    /// Whether the character leaves the pattern at this step, and whether it takes it to the next.
    fn consume(&self, ch: char) -> (bool, bool) {
        match self {
            Step::Char(wanted) => (false, ch == *wanted),
            Step::Any => (false, ch != '/'),
            Step::Class { negated, ranges } => {
                let within = ranges.iter().any(|(low, high)| (*low..=*high).contains(&ch));
                (false, within != *negated)
            }
            Step::Star => (ch != '/', false),
            // A line feed is not matched, as in Moby's regular expression.
            Step::DeepStar => (ch != '\n', false),
            Step::Directories => (ch != '\n', ch == '/'),
            Step::Anything => (true, false),
            Step::Start | Step::MaybeDirectories => (false, false),
        }
    }
}
