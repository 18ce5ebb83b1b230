//! Sparse files: GNU's old format and its three PAX ones.

use super::pax::{Records, parse_decimal};

/// A run of bytes that are in the archive; between runs there are holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

const MALFORMED: &str = "malformed sparse map";

/// What PAX records say of a sparse file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PaxSparse {
    /// The map is in the records (versions 0.0 and 0.1).
    Map { map: Vec<Segment>, size: u64 },
    /// The map is at the beginning of the content (version 1.0).
    InContent { size: u64 },
}

/// Finds a sparse map in PAX records.
pub(crate) fn from_pax(records: &Records) -> Result<Option<PaxSparse>, &'static str> {
    let number = |key: &str| match records.get(key) {
        None => Ok(None),
        Some(value) => parse_decimal(value).map(Some).ok_or(MALFORMED),
    };
    if records.get("GNU.sparse.major") == Some(b"1") && records.get("GNU.sparse.minor") == Some(b"0") {
        let size = number("GNU.sparse.realsize")?.ok_or(MALFORMED)?;
        return Ok(Some(PaxSparse::InContent { size }));
    }
    let Some(size) = number("GNU.sparse.size")? else {
        return Ok(None);
    };
    let numbers: Vec<u64> = match records.get("GNU.sparse.map") {
        Some(map) => map.split(|byte| *byte == b',').map(parse_decimal).collect::<Option<_>>(),
        None => records.sparse_map.iter().map(|number| parse_decimal(number)).collect::<Option<_>>(),
    }
    .ok_or(MALFORMED)?;
    Ok(Some(PaxSparse::Map { map: pairs(&numbers)?, size }))
}

/// Offsets and lengths in turn.
pub(crate) fn pairs(numbers: &[u64]) -> Result<Vec<Segment>, &'static str> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(MALFORMED);
    }
    Ok(pairs.iter().map(|[offset, length]| Segment { offset: *offset, length: *length }).collect())
}

/// Segments must be in order, apart, inside of the file, and make up what the archive holds.
pub(crate) fn check(map: &[Segment], size: u64, stored: u64) -> Result<(), &'static str> {
    let mut end = 0u64;
    let mut total = 0u64;
    for segment in map {
        if segment.offset < end {
            return Err(MALFORMED);
        }
        end = segment.offset.checked_add(segment.length).ok_or(MALFORMED)?;
        // Cannot overflow: segments do not overlap, and the last end fits.
        total += segment.length;
    }
    if end > size || total != stored { Err(MALFORMED) } else { Ok(()) }
}
