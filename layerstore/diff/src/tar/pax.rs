//! PAX extended headers (POSIX.1-2001): `length key=value\n` records.

use std::collections::BTreeMap;

use super::Time;

/// Records of one extended header, the last of each key; the pieces of a version 0.0 sparse map apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Records {
    pub(crate) values: BTreeMap<Vec<u8>, Vec<u8>>,
    /// `GNU.sparse.offset` and `.numbytes` in turn: the one case where a key comes several times.
    pub(crate) sparse_map: Vec<Vec<u8>>,
}

impl Records {
    /// Parses an extended header's content.
    pub(crate) fn parse(mut bytes: &[u8]) -> Result<Self, &'static str> {
        let mut records = Self::default();
        // Some writers pad with zeros.
        while !bytes.is_empty() && bytes.iter().any(|byte| *byte != 0) {
            let (key, value, rest) = parse_record(bytes).ok_or("malformed PAX record")?;
            bytes = rest;
            match key {
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                    let expected: &[u8] = if records.sparse_map.len().is_multiple_of(2) {
                        b"GNU.sparse.offset"
                    } else {
                        b"GNU.sparse.numbytes"
                    };
                    if key != expected {
                        return Err("malformed PAX sparse map");
                    }
                    records.sparse_map.push(value.to_vec());
                }
                _ => {
                    records.values.insert(key.to_vec(), value.to_vec());
                }
            }
        }
        Ok(records)
    }

    /// The value of a key; an empty one means "not given", as POSIX says.
    pub(crate) fn get(&self, key: &str) -> Option<&[u8]> {
        self.values.get(key.as_bytes()).map(Vec::as_slice).filter(|value| !value.is_empty())
    }
}

/// The record at the start of `bytes`, and what follows it.
fn parse_record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(parse_decimal(&bytes[..space])?).ok()?;
    if length < space + 4 || length > bytes.len() || bytes[length - 1] != b'\n' {
        return None;
    }
    let record = &bytes[space + 1..length - 1];
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    if key.is_empty() || key.contains(&0) {
        return None;
    }
    // A zero byte would end a path early for the kernel, so it would name another file than it says.
    let text = matches!(key, b"path" | b"linkpath" | b"uname" | b"gname" | b"GNU.sparse.name");
    if text && value.contains(&0) {
        return None;
    }
    Some((key, value, &bytes[length..]))
}

/// A decimal number without sign.
pub(crate) fn parse_decimal(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() || !bytes.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// A time as decimal seconds with an optional fraction.
pub(crate) fn parse_time(bytes: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-');
    let digits = whole.strip_prefix('-').unwrap_or(whole);
    if digits.is_empty() || !digits.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let mut nanos = 0;
    for place in 0..9 {
        nanos = nanos * 10 + fraction.as_bytes().get(place).map_or(0, |digit| u32::from(digit - b'0'));
    }
    if negative && nanos > 0 {
        return Some(Time { seconds: seconds.checked_sub(1)?, nanos: 1_000_000_000 - nanos });
    }
    Some(Time { seconds, nanos })
}

/// Appends one record; its length counts itself.
pub(crate) fn push_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3; // space, equals sign, newline
    let mut length = rest + decimal_digits(rest);
    if rest + decimal_digits(length) != length {
        length = rest + decimal_digits(length);
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn decimal_digits(number: usize) -> usize {
    number.checked_ilog10().unwrap_or(0) as usize + 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_before_1970_count_nanoseconds_forward() {
        assert_eq!(parse_time(b"-1.25"), Some(Time { seconds: -2, nanos: 750_000_000 }));
        assert_eq!(parse_time(b"-0.5"), Some(Time { seconds: -1, nanos: 500_000_000 }));
        assert_eq!(parse_time(b"12"), Some(Time { seconds: 12, nanos: 0 }));
        assert_eq!(parse_time(b"1.0000000019"), Some(Time { seconds: 1, nanos: 1 }));
        for bad in ["", "-", "1.x", "+1", "1e5", " 1", "99999999999999999999"] {
            assert_eq!(parse_time(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in ["6 =b\n\n", "99 a=b\n", "6 a=bX", "x a=b\n", "3 a", "0000000000000000000000006 a=b\n"] {
            assert!(Records::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(Records::parse(b"11 path=a\0\n").is_err());
    }

    proptest! {
        #[test]
        fn a_pushed_record_parses(key in "[a-zA-Z.]{1,40}", value in proptest::collection::vec(1u8.., 0..2000)) {
            let mut out = Vec::new();
            push_record(&mut out, key.as_bytes(), &value);
            let records = Records::parse(&out).unwrap();
            prop_assert_eq!(records.values.get(key.as_bytes()), Some(&value));
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Records::parse(&bytes);
            let _ = parse_time(&bytes);
        }
    }
}
