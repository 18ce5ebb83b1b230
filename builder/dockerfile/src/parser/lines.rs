//! Physical lines.

use super::{EscapeToken, MAX_LINE_BYTES, SyntaxError};

/// Walks a text line by line.
pub(super) struct Lines<'a> {
    rest: &'a [u8],
    /// How many lines were read so far; the number of the last one.
    pub(super) read: u32,
}

impl<'a> Lines<'a> {
    pub(super) fn new(text: &'a [u8]) -> Lines<'a> {
        Lines { rest: text, read: 0 }
    }

    /// The next line with its end, if there is one.
    pub(super) fn next(&mut self) -> Result<Option<&'a [u8]>, SyntaxError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        self.read += 1;
        let (line, rest) = match self.rest.iter().position(|byte| *byte == b'\n') {
            Some(at) => self.rest.split_at(at + 1),
            None => (self.rest, &b""[..]),
        };
        if line.strip_suffix(b"\n").unwrap_or(line).len() > MAX_LINE_BYTES {
            return Err(SyntaxError::LineTooLong { limit: MAX_LINE_BYTES });
        }
        self.rest = rest;
        Ok(Some(line))
    }
}

pub(super) fn without_bom(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)
}

/// Without any `\r` and `\n` at the end.
pub(super) fn without_line_end(mut line: &[u8]) -> &[u8] {
    while let [start @ .., b'\r' | b'\n'] = line {
        line = start;
    }
    line
}

/// Without white space, Unicode's included, at the start.
pub(super) fn without_leading_space(mut line: &[u8]) -> &[u8] {
    loop {
        match line {
            [b'\t' | b'\n' | b'\x0b' | b'\x0c' | b'\r' | b' ', rest @ ..] => line = rest,
            [first, ..] if !first.is_ascii() => {
                let valid = line.utf8_chunks().next().map_or("", |chunk| chunk.valid());
                let trimmed = valid.trim_start();
                if trimmed.len() == valid.len() {
                    return line;
                }
                line = &line[valid.len() - trimmed.len()..];
            }
            _ => return line,
        }
    }
}

pub(super) fn is_comment(line: &[u8]) -> bool {
    without_leading_space(line).first() == Some(&b'#')
}

/// If the line goes on, its text without the escape and what follows it.
///
/// An escaped escape does not continue a line. Three in a row do not either, though they should: BuildKit looks one character back only.
pub(super) fn continued(line: &[u8], escape: EscapeToken) -> Option<&[u8]> {
    let escape = escape.as_char() as u8;
    let mut text = line;
    while let [start @ .., b' ' | b'\t'] = text {
        text = start;
    }
    let start = text.strip_suffix(&[escape])?;
    (start.last() != Some(&escape)).then_some(start)
}
