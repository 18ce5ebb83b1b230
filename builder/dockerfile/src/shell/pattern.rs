//! Patterns in `${v#p}`, `${v%p}` and `${v/p/r}`: `*` and `?`, no brackets.

use regex::Regex;

use super::WordProblem;

/// `value` without the shortest (or, greedy, the longest) start that matches.
pub(super) fn remove_prefix(value: &str, pattern: &str, greedy: bool) -> Result<String, WordProblem> {
    if let Some(rest) = without_simple_prefix(value, pattern, greedy) {
        return Ok(rest.to_owned());
    }
    let regex = compile(pattern, greedy, true)?;
    Ok(regex.find(value).map_or(value, |found| &value[found.end()..]).to_owned())
}

/// The same for what most patterns are: text with one `*` before or behind it, or none. `None` for others.
fn without_simple_prefix<'a>(value: &'a str, pattern: &str, greedy: bool) -> Option<&'a str> {
    let (before, text, behind) = match pattern.strip_prefix('*') {
        Some(text) => (true, text, false),
        None => (false, pattern.strip_suffix('*').unwrap_or(pattern), pattern.ends_with('*')),
    };
    // No `*` matches a line's end.
    if text.contains(['*', '?', '\\']) || ((before || behind) && value.contains('\n')) {
        return None;
    }
    let matched = match (before, greedy) {
        (true, true) if text.is_empty() => Some(value.len()),
        (true, true) => value.rfind(text).map(|at| at + text.len()),
        (true, false) => value.find(text).map(|at| at + text.len()),
        (false, _) if !value.starts_with(text) => None,
        (false, true) if behind => Some(value.len()),
        (false, _) => Some(text.len()),
    };
    Some(matched.map_or(value, |end| &value[end..]))
}

/// `value` without the shortest (or, greedy, the longest) end that matches.
///
/// A regular expression finds the leftmost match, so both pattern and value are turned round.
pub(super) fn remove_suffix(value: &str, pattern: &str, greedy: bool) -> Result<String, WordProblem> {
    let reversed: String = value.chars().rev().collect();
    let rest = remove_prefix(&reversed, &reverse_pattern(pattern), greedy)?;
    Ok(rest.chars().rev().collect())
}

/// `value` with the first match, or all of them, replaced. When all are replaced, `$0`, `$1`, `$name` in the replacement are references to
/// groups of the match, as in BuildKit.
pub(super) fn replace(
    value: &str,
    pattern: &str,
    replacement: &str,
    all: bool,
    limit: usize,
) -> Result<String, WordProblem> {
    let regex = compile(pattern, true, false)?;
    if !all {
        return Ok(match regex.find(value) {
            Some(found) => {
                format!("{}{replacement}{}", &value[..found.start()], &value[found.end()..])
            }
            None => value.to_owned(),
        });
    }
    let mut out = String::new();
    let mut copied = 0;
    for found in regex.find_iter(value) {
        out.push_str(&value[copied..found.start()]);
        expand_template(replacement, found.as_str(), &mut out);
        copied = found.end();
        if out.len() > limit {
            return Err(WordProblem::TooLong(limit));
        }
    }
    out.push_str(&value[copied..]);
    Ok(out)
}

/// Go's `Regexp.Expand` for a match without groups: `$0` and `${0}` are the match, other references are empty, `$$` is `$`, and what is no
/// reference stays.
fn expand_template(template: &str, found: &str, out: &mut String) {
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        rest = after;
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let (braced, inner) = match rest.strip_prefix('{') {
            Some(inner) => (true, inner),
            None => (false, rest),
        };
        let end = inner
            .find(|ch: char| ch != '_' && !super::lexer::is_letter(ch) && !super::lexer::is_digit(ch))
            .unwrap_or(inner.len());
        let (name, after) = inner.split_at(end);
        let after = if braced { after.strip_prefix('}') } else { Some(after) };
        match after {
            Some(after) if !name.is_empty() => {
                // `$00` is a name, not a number, and so no group has it.
                if name == "0" {
                    out.push_str(found);
                }
                rest = after;
            }
            _ => out.push('$'),
        }
    }
    out.push_str(rest);
}

fn compile(pattern: &str, greedy: bool, anchored: bool) -> Result<Regex, WordProblem> {
    let bad = |reason: String| WordProblem::BadPattern { pattern: pattern.to_owned(), reason };
    let mut out = String::with_capacity(pattern.len() + 4);
    if anchored {
        out.push('^');
    }
    let mut rest = pattern.chars().peekable();
    while let Some(ch) = rest.next() {
        match ch {
            '*' => out.push_str(if greedy { ".*" } else { ".*?" }),
            '?' => out.push('.'),
            // `}` and `/` need an escape inside `${…}`, but it is no part of the pattern.
            '\\' if matches!(rest.peek(), Some('}' | '/')) => {}
            '\\' => match rest.next() {
                Some(escaped @ ('*' | '?' | '\\')) => {
                    out.push_str(&regex::escape(escaped.encode_utf8(&mut [0; 4])))
                }
                Some(other) => return Err(bad(format!("invalid escape '\\{other}'"))),
                None => return Err(bad("invalid escape at the end".to_owned())),
            },
            _ => out.push_str(&regex::escape(ch.encode_utf8(&mut [0; 4]))),
        }
    }
    Regex::new(&out).map_err(|_| bad("it is too large".to_owned()))
}

/// Turned round, but with each escape still before its character.
fn reverse_pattern(pattern: &str) -> String {
    let mut atoms = Vec::new();
    let mut rest = pattern.chars();
    while let Some(ch) = rest.next() {
        match rest.clone().next() {
            Some(escaped) if ch == '\\' => {
                rest.next();
                atoms.push((Some(ch), escaped));
            }
            _ => atoms.push((None, ch)),
        }
    }
    atoms.into_iter().rev().flat_map(|(escape, ch)| escape.into_iter().chain(Some(ch))).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn simple_patterns_are_found_as_all_are(value in "[ab./\n]{0,8}", pattern in r"[*]?[ab./]{0,2}[*]?", greedy: bool) {
            if let Some(rest) = without_simple_prefix(&value, &pattern, greedy) {
                let found = compile(&pattern, greedy, true).unwrap();
                prop_assert_eq!(rest, found.find(&value).map_or(&value[..], |found| &value[found.end()..]));
            }
        }
    }
}
