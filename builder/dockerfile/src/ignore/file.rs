//! The file's own syntax: one pattern a line.

use super::PatternError;
use super::path::clean;

/// A longer line is an error, as in Docker.
pub const MAX_LINE_BYTES: usize = 65_535;

/// The patterns of an ignore file: without comments, empty lines and white space around them, cleaned, and without a `/` at their start.
pub fn read_ignore_file(file: &[u8]) -> Result<Vec<String>, PatternError> {
    let file = file.strip_prefix(b"\xef\xbb\xbf").unwrap_or(file);
    let mut patterns = Vec::new();
    for (index, line) in file.split(|byte| *byte == b'\n').enumerate() {
        if line.len() > MAX_LINE_BYTES {
            return Err(PatternError::LineTooLong { line: index + 1, limit: MAX_LINE_BYTES });
        }
        // Only in the first column; ` #x` is a pattern.
        if line.starts_with(b"#") {
            continue;
        }
        let line = std::str::from_utf8(line).map_err(|_| PatternError::NotUtf8 { line: index + 1 })?.trim();
        if line.is_empty() {
            continue;
        }
        let (mark, pattern) = match line.strip_prefix('!') {
            Some(pattern) => ("!", pattern.trim()),
            None => ("", line),
        };
        if pattern.is_empty() {
            patterns.push(mark.to_owned());
            continue;
        }
        let cleaned = clean(pattern);
        let relative = cleaned.strip_prefix('/').filter(|rest| !rest.is_empty()).unwrap_or(&cleaned);
        patterns.push(format!("{mark}{relative}"));
    }
    Ok(patterns)
}
