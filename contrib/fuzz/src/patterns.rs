//! Patterns of ignore files, beside a slow matcher that says in a regular expression what they mean.

use lapstrake_builder_dockerfile::ignore::{PatternMatcher, read_ignore_file};
use regex::Regex;

/// What is read is clean: reading it again changes nothing.
pub(crate) fn ignore_file(data: &[u8]) {
    let Ok(patterns) = read_ignore_file(data) else { return };
    assert!(patterns.len() <= data.len() + 1);
    // What begins the file may be a byte order mark; and what is left of a path may begin or end with what means something else there: `/#x`,
    // `/!x`, `x /`.
    let is_stable = |pattern: &String| {
        let path = pattern.strip_prefix('!').unwrap_or(pattern);
        !path.starts_with(['#', '!', '/']) && path.trim() == path
    };
    let stable = !data.windows(2).any(|pair| pair == b"/!") && patterns.iter().all(is_stable);
    if stable {
        let again = read_ignore_file(format!("\n{}", patterns.join("\n")).as_bytes());
        assert_eq!(again.as_ref(), Ok(&patterns));
    }
    if let Ok(matcher) = PatternMatcher::new(&patterns) {
        matcher.matches("a/b/c.txt");
    }
}

/// Lines of patterns, an empty line, lines of paths: the matcher agrees with the slow one, and a walk with itself.
pub(crate) fn pattern(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if text.len() > 4096 {
        return;
    }
    let (patterns, paths) = text.split_once("\n\n").unwrap_or((text, "a\na/b\nab/c.x"));
    let patterns: Vec<&str> = patterns.lines().collect();
    let Ok(matcher) = PatternMatcher::new(&patterns) else { return };
    let slow: Vec<Slow> = matcher.patterns().map(|pattern| Slow::new(&pattern)).collect();
    assert_eq!(matcher.has_exceptions(), slow.iter().any(|pattern| pattern.exception));
    for path in paths.lines().filter(|path| is_clean(path)) {
        if slow.iter().all(|pattern| pattern.meaning.is_some()) {
            assert_eq!(matcher.matches(path), matches(&slow, path), "{patterns:?} {path:?}");
        }
        walk(&matcher, path);
    }
}

/// What a walk concludes of a directory holds for what is in it.
fn walk(matcher: &PatternMatcher, path: &str) {
    let (mut parent, mut decided, mut hopeless) = (None, false, false);
    for end in path.match_indices('/').map(|(at, _)| at).chain([path.len()]) {
        let (matched, state) = matcher.matches_below(&path[..end], parent.as_ref());
        if !matcher.has_exceptions() {
            assert_eq!(matched, matcher.matches(&path[..end]), "{matcher:?} {:?}", &path[..end]);
        }
        assert!(
            matched || !decided,
            "{matcher:?}: {:?} is not matched, below what was decided",
            &path[..end]
        );
        assert!(!matched || !hopeless, "{matcher:?}: {:?} is matched, where nothing is", &path[..end]);
        decided |= matched && matcher.decides_everything_below(&path[..end]);
        hopeless |= !matched && matcher.matches_nothing_below(&path[..end]);
        parent = Some(state);
    }
}

fn is_clean(path: &str) -> bool {
    !path.split('/').any(|part| part.is_empty() || part == "." || part == "..")
}

struct Slow {
    exception: bool,
    /// `None` where it is too large to be written as a regular expression.
    meaning: Option<Meaning>,
}

enum Meaning {
    Starts(String),
    Ends(String),
    Is(Regex),
}

fn matches(patterns: &[Slow], path: &str) -> bool {
    let prefixes: Vec<&str> = path.match_indices('/').map(|(at, _)| &path[..at]).chain([path]).collect();
    let last = patterns.iter().rev().find(|pattern| {
        prefixes.iter().any(|prefix| pattern.meaning.as_ref().is_some_and(|meaning| meaning.matches(prefix)))
    });
    // The last that matches decides, whatever those before it said.
    last.is_some_and(|pattern| !pattern.exception)
}

impl Meaning {
    fn matches(&self, path: &str) -> bool {
        match self {
            Meaning::Starts(text) => path.starts_with(text.as_str()),
            Meaning::Ends(text) => path.ends_with(text.as_str()) || text.strip_prefix('/') == Some(path),
            Meaning::Is(regex) => regex.is_match(path),
        }
    }
}

impl Slow {
    fn new(pattern: &str) -> Slow {
        let (exception, text) = match pattern.strip_prefix('!') {
            Some(text) => (true, text),
            None => (false, pattern),
        };
        Slow { exception, meaning: Slow::meaning(text) }
    }

    fn meaning(text: &str) -> Option<Meaning> {
        let plain = |text: &str| !text.contains(['*', '?', '[', ']', '\\']);
        if let Some(rest) = text.strip_prefix("**").filter(|rest| plain(rest)) {
            return Some(Meaning::Ends(rest.to_owned()));
        }
        if let Some(rest) = text.strip_suffix("**").filter(|rest| plain(rest)) {
            return Some(Meaning::Starts(rest.to_owned()));
        }
        let text = if plain(text) { text.chars().map(literal).collect() } else { translate(text) };
        Regex::new(&format!("^{text}$")).ok().map(Meaning::Is)
    }
}

/// Classes that have a name.
const CLASSES: &[&str] = &[
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space",
    "upper", "word", "xdigit",
];

fn translate(pattern: &str) -> String {
    let mut out = String::new();
    let mut rest = pattern.chars().peekable();
    while let Some(ch) = rest.next() {
        match ch {
            '*' if rest.next_if_eq(&'*').is_some() => {
                rest.next_if_eq(&'/');
                out.push_str(if rest.peek().is_none() { ".*" } else { "(?:.*/)?" });
            }
            '*' => out.push_str("[^/]*"),
            '?' => out.push_str("[^/]"),
            '\\' => out.extend(rest.next().map(literal)),
            // Moby does not escape them.
            '|' | '^' => out.push(ch),
            '[' => {
                out.push('[');
                if rest.next_if_eq(&'^').is_some() {
                    out.push('^');
                }
                let mut empty = true;
                while let Some(ch) = rest.next() {
                    if ch == ']' && !empty {
                        break;
                    }
                    let name: String = rest.clone().collect();
                    let name = name.strip_prefix(':').and_then(|name| name.split_once(":]"));
                    match (ch, name) {
                        ('[', Some((name, _))) if CLASSES.contains(&name) => {
                            out.push_str(&format!("[:{name}:]"));
                            rest.nth(name.len() + 2);
                        }
                        ('-', _) => out.push('-'),
                        ('\\', _) => out.extend(rest.next().map(literal)),
                        _ => out.push_str(&literal(ch)),
                    }
                    empty = false;
                }
                out.push(']');
            }
            _ => out.push_str(&literal(ch)),
        }
    }
    out
}

/// A character that is nothing but itself, in a class, too.
fn literal(ch: char) -> String {
    format!("\\x{{{:x}}}", u32::from(ch))
}
