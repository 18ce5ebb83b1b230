//! The lines of a Dockerfile around those that something is said of, as BuildKit's clients print them; and, beyond them, a mark under the words at
//! fault.
//!
//! ```text
//! Dockerfile:2
//! --------------------
//!    1 |     FROM busybox
//!    2 | >>> RUN --netwrk=none true
//!      |         ^^^^^^^^ expected --mount, --network, --security or --device
//!    3 |     RUN make
//! --------------------
//! ```

use std::fmt::Write as _;

use crate::location::LineRange;

/// Words of a Dockerfile that are at fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// As they are written; case does not matter.
    pub token: String,
    /// Whether the last of several is meant, not the first.
    pub last: bool,
    /// What should stand there: `expected …`, or nothing.
    pub note: String,
}

/// A line of an excerpt longer than this is cut: somebody has to read it.
const MAX_LINE: usize = 1000;

/// The lines of `text` around `places`, with a mark where its words are found. Empty where the places are not of this text.
pub fn excerpt(name: &str, text: &str, places: &[LineRange], mark: Option<&Mark>) -> String {
    let lines: Vec<&str> = text.split('\n').collect();
    excerpt_of(name, &lines, places, mark)
}

/// The same of a text that is divided into lines already: for many excerpts of one text.
pub(crate) fn excerpt_of(name: &str, lines: &[&str], places: &[LineRange], mark: Option<&Mark>) -> String {
    let (Some(first), Some(last)) =
        (places.iter().map(|place| place.start).min(), places.iter().map(|place| place.end).max())
    else {
        return String::new();
    };
    let (mut start, mut end) = (first as usize, (last as usize).min(lines.len()));
    if start < 1 || start > lines.len() {
        return String::new();
    }
    // The widening is BuildKit's: each round costs one more than the lines that it adds.
    let room = if start == end { 4 } else { 2 };
    let mut used = 0;
    while used < room {
        if start > 1 {
            start -= 1;
            used += 1;
        }
        if end != lines.len() {
            end += 1;
            used += 1;
        }
        used += 1;
    }
    let is_meant = |number: usize| {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        places.iter().any(|place| (place.start..=place.end).contains(&number))
    };
    let marked = mark.and_then(|mark| {
        let meant = (start..=end).filter(|number| is_meant(*number));
        let mut found = meant.filter_map(|number| Some((number, find(lines[number - 1], mark)?)));
        if mark.last { found.next_back() } else { found.next() }
    });
    let mut out = format!("{name}:{first}\n--------------------\n");
    for number in start..=end {
        let line = lines[number - 1];
        let pointer = if is_meant(number) { ">>>" } else { "   " };
        let _ = writeln!(out, " {number:3} | {pointer} {}", cut(line)); // a String takes everything
        if let (Some(mark), Some((at, column))) = (mark, marked)
            && at == number
        {
            let _ = writeln!(out, "     |     {}", underline(line, column, mark));
        }
    }
    out.push_str("--------------------\n");
    out
}

fn cut(line: &str) -> &str {
    let line = line.strip_suffix('\r').unwrap_or(line);
    match line.char_indices().nth(MAX_LINE) {
        Some((at, _)) => &line[..at],
        None => line,
    }
}

/// Where the words are in a line; as a whole word if they are one somewhere.
fn find(line: &str, mark: &Mark) -> Option<usize> {
    let token = mark.token.to_ascii_lowercase();
    if token.is_empty() || token.contains('\n') {
        return None;
    }
    let haystack = cut(line).to_ascii_lowercase();
    let is_word = |ch: Option<char>| ch.is_some_and(|ch| ch.is_alphanumeric() || ch == '_' || ch == '-');
    let (first, last) = (token.chars().next(), token.chars().next_back());
    let is_whole = |at: &usize| {
        let before = haystack[..*at].chars().next_back();
        let after = haystack[at + token.len()..].chars().next();
        let cut = is_word(before) && is_word(first) || is_word(last) && is_word(after);
        !cut
    };
    let places: Vec<usize> = haystack.match_indices(&token).map(|(at, _)| at).collect();
    let whole: Vec<usize> = places.iter().copied().filter(is_whole).collect();
    let places = if whole.is_empty() { places } else { whole };
    if mark.last { places.last().copied() } else { places.first().copied() }
}

fn underline(line: &str, column: usize, mark: &Mark) -> String {
    // A tab is as wide as it is above.
    let mut out: String = line[..column].chars().map(|ch| if ch == '\t' { '\t' } else { ' ' }).collect();
    out.extend(mark.token.chars().map(|_| '^'));
    if !mark.note.is_empty() {
        out.push(' ');
        out.push_str(&mark.note);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(token: &str, last: bool, note: &str) -> Mark {
        Mark { token: token.to_owned(), last, note: note.to_owned() }
    }

    #[test]
    fn excerpts_are_buildkits() {
        let text = "FROM busybox\nRUN true\nRUN false\nRUN x\nRUN y\n";
        insta::assert_snapshot!(excerpt("Dockerfile", text, &[LineRange::line(3)], None), @r"
        Dockerfile:3
        --------------------
           1 |     FROM busybox
           2 |     RUN true
           3 | >>> RUN false
           4 |     RUN x
           5 |     RUN y
        --------------------
        ");
        insta::assert_snapshot!(excerpt("D", text, &[LineRange::new(2, 3)], None), @r"
        D:2
        --------------------
           1 |     FROM busybox
           2 | >>> RUN true
           3 | >>> RUN false
           4 |     RUN x
        --------------------
        ");
        insta::assert_snapshot!(excerpt("D", text, &[LineRange::line(4), LineRange::line(2)], None), @r"
        D:2
        --------------------
           1 |     FROM busybox
           2 | >>> RUN true
           3 |     RUN false
           4 | >>> RUN x
           5 |     RUN y
        --------------------
        ");
        assert_eq!(
            excerpt("D", "FROM", &[LineRange::line(1)], None),
            "D:1\n--------------------\n   1 | >>> FROM\n--------------------\n"
        );
        assert_eq!(excerpt("D", "FROM", &[LineRange::line(9)], None), "");
        assert_eq!(excerpt("D", "FROM", &[], None), "");
    }

    #[test]
    fn the_words_at_fault_are_marked() {
        let text = "FROM busybox\nCOPY \\\n\t--form=fo --chown=1 --chown=2 fo /x\n";
        let lines = [LineRange::new(2, 3)];
        insta::assert_snapshot!(excerpt("D", text, &lines, Some(&mark("fo", false, "no such thing"))).replace('\t', "~~~~"), @r"
        D:2
        --------------------
           1 |     FROM busybox
           2 | >>> COPY \
           3 | >>> ~~~~--form=fo --chown=1 --chown=2 fo /x
             |     ~~~~       ^^ no such thing
           4 |     
        --------------------
        ");
        let marked = excerpt("D", text, &lines, Some(&mark("--chown", true, "")));
        assert!(marked.contains("     |     \t                    ^^^^^^^\n"), "{marked}");
        let nowhere = excerpt("D", text, &lines, Some(&mark("busybox", false, "")));
        assert_eq!(nowhere, excerpt("D", text, &lines, None));
    }

    #[test]
    fn lines_of_any_length_and_script_are_shown() {
        let long = format!("RUN {}é\r\n", "ö".repeat(5000));
        let shown = excerpt("D", &long, &[LineRange::line(1)], Some(&mark("é", false, "")));
        assert!(shown.lines().all(|line| line.chars().count() < 1100), "it is cut");
        let shown = excerpt("D", "RUN ö İ x\n", &[LineRange::line(1)], Some(&mark("X", false, "")));
        assert!(shown.contains("     |             ^\n"), "{shown}");
    }
}
