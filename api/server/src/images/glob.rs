//! Go's `path.Match`, by which image names are filtered: `*` and `?` stop at slashes.

/// Whether the whole of `text` matches; `None` for a malformed pattern.
pub(super) fn matches(pattern: &str, text: &str) -> Option<bool> {
    let pattern: Vec<Token> = parse(pattern)?;
    let text: Vec<char> = text.chars().collect();
    // Positions of the pattern that some beginning of the text reaches: linear in both, whatever the pattern.
    let mut reached = vec![false; pattern.len() + 1];
    reached[0] = true;
    skip_stars(&pattern, &mut reached);
    for &c in &text {
        let mut next = vec![false; pattern.len() + 1];
        for (at, token) in pattern.iter().enumerate().filter(|(at, _)| reached[*at]) {
            match token {
                Token::Star if c != '/' => next[at] = true,
                Token::Any if c != '/' => next[at + 1] = true,
                Token::Char(wanted) if *wanted == c => next[at + 1] = true,
                Token::Class { negated, ranges }
                    if c != '/'
                        && ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated =>
                {
                    next[at + 1] = true;
                }
                _ => {}
            }
        }
        reached = next;
        skip_stars(&pattern, &mut reached);
    }
    reached.last().copied()
}

fn skip_stars(pattern: &[Token], reached: &mut [bool]) {
    for (at, token) in pattern.iter().enumerate() {
        if reached[at] && matches!(token, Token::Star) {
            reached[at + 1] = true;
        }
    }
}

enum Token {
    Star,
    Any,
    Char(char),
    Class { negated: bool, ranges: Vec<(char, char)> },
}

fn parse(pattern: &str) -> Option<Vec<Token>> {
    let mut chars = pattern.chars().peekable();
    let mut tokens = Vec::new();
    while let Some(c) = chars.next() {
        tokens.push(match c {
            '*' => Token::Star,
            '?' => Token::Any,
            '\\' => Token::Char(chars.next()?),
            '[' => {
                let negated = chars.next_if_eq(&'^').is_some();
                let mut ranges = Vec::new();
                while ranges.is_empty() || chars.peek() != Some(&']') {
                    let mut bound = || match chars.next()? {
                        '\\' => chars.next(),
                        '-' | ']' => None,
                        c => Some(c),
                    };
                    let low = bound()?;
                    let high = if chars.next_if_eq(&'-').is_some() {
                        match chars.next()? {
                            '\\' => chars.next()?,
                            '-' | ']' => return None,
                            c => c,
                        }
                    } else {
                        low
                    };
                    ranges.push((low, high));
                }
                chars.next();
                Token::Class { negated, ranges }
            }
            c => Token::Char(c),
        });
    }
    Some(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stop_at_slashes() {
        for (pattern, text, expected) in [
            ("busybox", "busybox", true),
            ("busy*", "busybox", true),
            ("*", "a/b", false),
            ("*/*", "a/b", true),
            ("b?sy[a-c]ox*", "busybox:1", true),
            ("[^a]", "b", true),
            ("[^a]", "/", false),
            ("\\*", "*", true),
            ("", "", true),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "aXbY", false),
        ] {
            assert_eq!(matches(pattern, text), Some(expected), "{pattern} {text}");
        }
        for bad in ["[", "[a", "[]", "[a-]", "a\\", "[-]"] {
            assert_eq!(matches(bad, "a"), None, "{bad}");
        }
    }

    #[test]
    fn nested_stars_take_linear_time() {
        let pattern = "*a".repeat(500);
        assert_eq!(matches(&pattern, &"a".repeat(2000)), Some(true));
        assert_eq!(matches(&pattern, &"b".repeat(2000)), Some(false));
    }
}
