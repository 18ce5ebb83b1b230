//! Small readers and writers of text that must agree with Go's, since their results end in images and in messages.

use std::time::Duration;

/// Go's `%q`: a double-quoted string with escapes.
pub(crate) fn go_quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for ch in text.chars() {
        match ch {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            ' ' => out.push(' '),
            _ if ch.is_control() && (ch as u32) < 0x80 => out.push_str(&format!("\\x{:02x}", ch as u32)),
            _ if ch.is_control() || ch.is_whitespace() => out.push_str(&format!("\\u{:04x}", ch as u32)),
            _ => out.push(ch),
        }
    }
    out.push('"');
    out
}

/// `message`, and the suggestion in BuildKit's words.
pub(crate) fn with_suggestion(message: String, suggestion: &Option<String>) -> String {
    match suggestion {
        Some(word) => format!("{message} (did you mean {word}?)"),
        None => message,
    }
}

/// The option nearest to `word`, if it is at most two edits away and not `word` itself. Of equally near ones one of the same letters wins
/// (`RNU` is `RUN`, and not `ENV`), then one that begins alike, then the earlier.
pub(crate) fn suggestion(word: &str, options: &[&str]) -> Option<String> {
    if options.contains(&word) {
        return None;
    }
    let near = options.iter().map(|option| (edit_distance(word, option), option));
    let letters = |text: &str| {
        let mut letters: Vec<char> = text.chars().collect();
        letters.sort_unstable();
        letters
    };
    near.filter(|(distance, _)| *distance < 3)
        .min_by_key(|(distance, option)| {
            let swapped = letters(option) == letters(word);
            (*distance, !swapped, option.chars().next() != word.chars().next())
        })
        .map(|(_, option)| (*option).to_owned())
}

/// [`suggestion`] that ignores case and answers in the case of `word`; `options` are in upper case.
pub(crate) fn suggestion_any_case(word: &str, options: &[&str]) -> Option<String> {
    let found = suggestion(&word.to_uppercase(), options)?;
    if word == word.to_uppercase() { Some(found) } else { Some(found.to_lowercase()) }
}

/// Levenshtein's distance. A difference in length alone of three or more is reported as it is: nobody asks for more, and it
/// keeps a giant word from costing more than a look.
fn edit_distance(a: &str, b: &str) -> usize {
    let longest_of_interest = b.len() + 3;
    let a: Vec<char> = a.chars().take(longest_of_interest).collect();
    let b: Vec<char> = b.chars().collect();
    if a.len().abs_diff(b.len()) >= 3 {
        return a.len().abs_diff(b.len());
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replace = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// Go's `strconv.ParseBool`: what clients of Docker may write for true and false.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Docker's memory sizes: `512`, `1.5g`, `64 KiB`; units are powers of 1024 and any case.
pub(crate) fn parse_ram_bytes(text: &str) -> Option<i64> {
    let last = text.rfind(|ch: char| ch.is_ascii_digit() || ch == '.' || ch == ' ')?;
    let (number, suffix) = match text.as_bytes()[last] {
        b' ' => (&text[..last], &text[last + 1..]),
        _ => text.split_at(last + 1),
    };
    // Rust's float parser also takes `inf`, `nan` and a leading `+`; the first two are no sizes.
    let size: f64 = number.parse().ok().filter(|size: &f64| size.is_finite() && *size >= 0.0)?;
    let unit = suffix.to_ascii_lowercase();
    let (power, rest) = match unit.as_bytes() {
        [] => (0, &b""[..]),
        [b'b'] => (0, &b""[..]),
        [letter, rest @ ..] => (b"kmgtp".iter().position(|known| known == letter)? + 1, rest),
    };
    if !matches!(rest, b"" | b"b" | b"ib") {
        return None;
    }
    let bytes = size * 1024f64.powi(i32::try_from(power).ok()?);
    // 2^63 and more do not fit; Go's conversion would give garbage there.
    (bytes < 9_223_372_036_854_775_808.0).then_some(bytes as i64)
}

/// The fields of one line of comma-separated values (RFC 4180 quoting). The error is in the words of Go's `encoding/csv`.
pub(crate) fn csv_fields(line: &str) -> Result<Vec<String>, String> {
    let fault = |at: usize, what: &str| Err(format!("parse error on line 1, column {}: {what}", at + 1));
    let trimmed = line.strip_suffix('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
    let line = trimmed.unwrap_or(line);
    if line.is_empty() {
        return Err("EOF".to_owned());
    }
    let mut fields = Vec::new();
    let mut at = 0;
    loop {
        let rest = &line[at..];
        let Some(quoted) = rest.strip_prefix('"') else {
            let end = rest.find(',').unwrap_or(rest.len());
            if let Some(quote) = rest[..end].find('"') {
                return fault(at + quote, "bare \" in non-quoted-field");
            }
            fields.push(rest[..end].to_owned());
            at += end + 1;
            if end == rest.len() {
                return Ok(fields);
            }
            continue;
        };
        at += 1;
        let mut field = String::new();
        let mut inner = quoted;
        loop {
            let Some(quote) = inner.find('"') else {
                return fault(at, "extraneous or missing \" in quoted-field");
            };
            field.push_str(&inner[..quote]);
            inner = &inner[quote + 1..];
            at += quote + 1;
            match inner.as_bytes().first() {
                Some(b'"') => {
                    field.push('"');
                    inner = &inner[1..];
                    at += 1;
                }
                Some(b',') => {
                    at += 1;
                    break;
                }
                None => {
                    fields.push(field);
                    return Ok(fields);
                }
                Some(_) => return fault(at - 1, "extraneous or missing \" in quoted-field"),
            }
        }
        fields.push(field);
    }
}

/// Go's `time.ParseDuration`, for durations that fit 63 bits of nanoseconds. `Err` holds Go's message.
///
/// The sign is kept apart since [`Duration`] has none: `(negative, magnitude)`.
pub(crate) fn parse_duration(text: &str) -> Result<(bool, Duration), String> {
    let invalid = || format!("time: invalid duration {}", go_quote(text));
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok((false, Duration::ZERO));
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let (whole, after) = split_digits(rest);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => split_digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let unit_end = after.find(|ch: char| ch == '.' || ch.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let nanos: u128 = match unit {
            "" => return Err(format!("time: missing unit in duration {}", go_quote(text))),
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => {
                return Err(format!("time: unknown unit {} in duration {}", go_quote(unit), go_quote(text)));
            }
        };
        let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
        // Digits below a nanosecond of an hour cannot change the result: 18 are more than enough.
        let fraction = &fraction[..fraction.len().min(18)];
        let scale = 10u128.pow(fraction.len() as u32);
        let fraction: u128 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| invalid())? };
        total = whole
            .checked_mul(nanos)
            .and_then(|whole| whole.checked_add(fraction * nanos / scale))
            .and_then(|part| part.checked_add(total))
            .filter(|total| *total <= i64::MAX as u128)
            .ok_or_else(invalid)?;
        rest = after;
    }
    let nanos = u64::try_from(total).map_err(|_| invalid())?;
    Ok((negative, Duration::from_nanos(nanos)))
}

/// A duration in Go's notation, such that [`parse_duration`] gives it back.
pub(crate) fn format_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    for (unit, size) in [
        ("h", 3_600_000_000_000u128),
        ("m", 60_000_000_000),
        ("s", 1_000_000_000),
        ("ms", 1_000_000),
        ("us", 1_000),
    ] {
        if nanos > 0 && nanos.is_multiple_of(size) {
            return format!("{}{unit}", nanos / size);
        }
    }
    format!("{nanos}ns")
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|ch: char| !ch.is_ascii_digit()).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_is_that_of_go() {
        assert_eq!(go_quote("a\"b\\c\n\u{1}é\u{a0}"), "\"a\\\"b\\\\c\\n\\x01é\\u00a0\"");
    }

    #[test]
    fn sizes_take_the_units_docker_takes() {
        for (text, bytes) in
            [("32", 32), ("32b", 32), ("32 kb", 32 * 1024), ("1.5G", 1610612736), ("2KiB", 2048), ("0", 0)]
        {
            assert_eq!(parse_ram_bytes(text), Some(bytes), "{text}");
        }
        for text in ["", "k", "-1", "1x", "1bb", "1kx", "inf", "1kibb", "99999999999p"] {
            assert_eq!(parse_ram_bytes(text), None, "{text}");
        }
    }

    #[test]
    fn csv_knows_quotes_and_reports_columns() {
        assert_eq!(csv_fields("a=b,\"c=d,\"\"e\"\"\",").unwrap(), ["a=b", "c=d,\"e\"", ""]);
        assert_eq!(csv_fields("").unwrap_err(), "EOF");
        assert_eq!(
            csv_fields("a,b\"c").unwrap_err(),
            "parse error on line 1, column 4: bare \" in non-quoted-field"
        );
        assert!(csv_fields("\"a").unwrap_err().contains("extraneous or missing"));
        assert!(csv_fields("\"a\"b").unwrap_err().contains("extraneous or missing"));
    }

    #[test]
    fn durations_are_read_and_written_as_go_does() {
        let ok = |text: &str| parse_duration(text).unwrap();
        assert_eq!(ok("1h30m"), (false, Duration::from_secs(5400)));
        assert_eq!(ok("1.5s"), (false, Duration::from_millis(1500)));
        assert_eq!(ok("-2us"), (true, Duration::from_micros(2)));
        assert_eq!(ok("0"), (false, Duration::ZERO));
        assert_eq!(ok(".5m"), (false, Duration::from_secs(30)));
        assert_eq!(parse_duration("5").unwrap_err(), "time: missing unit in duration \"5\"");
        assert_eq!(parse_duration("5d").unwrap_err(), "time: unknown unit \"d\" in duration \"5d\"");
        for text in ["", "-", ".s", "s", "99999999999h"] {
            assert_eq!(parse_duration(text).unwrap_err(), format!("time: invalid duration \"{text}\""));
        }
        for duration in [Duration::from_nanos(1), Duration::from_millis(90_500), Duration::from_secs(7200)] {
            assert_eq!(ok(&format_duration(duration)), (false, duration));
        }
    }

    #[test]
    fn suggestions_are_near_and_keep_the_case() {
        assert_eq!(suggestion("moutn", &["mount", "network"]).as_deref(), Some("mount"));
        assert_eq!(suggestion("mount", &["mount"]), None);
        assert_eq!(suggestion("zzzzz", &["mount"]), None);
        assert_eq!(suggestion("RNU", &["ENV", "RUN"]).as_deref(), Some("RUN"));
        assert_eq!(suggestion_any_case("frm", &["FROM", "RUN"]).as_deref(), Some("from"));
        assert_eq!(suggestion_any_case("FRM", &["FROM", "RUN"]).as_deref(), Some("FROM"));
        assert_eq!(suggestion(&"x".repeat(1 << 20), &["mount"]), None);
    }
}
