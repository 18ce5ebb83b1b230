//! Bytes of a process as text.

use std::mem;

/// Output as text. A character that is split between two pieces is put together; what is not UTF-8 is replaced.
#[derive(Default)]
pub(super) struct Text {
    /// The beginning of a character: at most three bytes.
    pending: Vec<u8>,
}

impl Text {
    pub(super) fn add(&mut self, data: &[u8]) -> Option<String> {
        let mut bytes = mem::take(&mut self.pending);
        bytes.extend_from_slice(data);
        if let Err(error) = std::str::from_utf8(&bytes)
            && error.error_len().is_none()
            && bytes.len() - error.valid_up_to() < 4
        {
            self.pending = bytes.split_off(error.valid_up_to());
        } else if let Some(start) = unfinished(&bytes) {
            self.pending = bytes.split_off(start);
        }
        (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned())
    }

    pub(super) fn rest(&mut self) -> Option<String> {
        let pending = mem::take(&mut self.pending);
        (!pending.is_empty()).then(|| String::from_utf8_lossy(&pending).into_owned())
    }
}

/// Where a character begins that `bytes` end within.
fn unfinished(bytes: &[u8]) -> Option<usize> {
    let from = bytes.len().saturating_sub(3);
    let start = (from..bytes.len()).rev().find(|at| bytes[*at] & 0xC0 != 0x80)?;
    let length = match bytes[start] {
        0xC2..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xF4 => 4,
        _ => 1,
    };
    (bytes.len() - start < length).then_some(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_split_between_pieces_are_put_together() {
        let mut text = Text::default();
        let bytes = "aé€😀".as_bytes();
        let mut told = String::new();
        for byte in bytes {
            told.extend(text.add(&[*byte]));
        }
        assert_eq!(told, "aé€😀");
        assert_eq!(text.add(b"\xff\xe2"), Some("\u{fffd}".to_owned()));
        assert_eq!(text.rest(), Some("\u{fffd}".to_owned()));
        assert_eq!(text.rest(), None);
    }
}
