//! Times in image documents.

use std::fmt;

use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::OciError;

/// A time as its document writes it, RFC 3339 with up to nine decimals.
///
/// The text is kept, because the document's digest depends on it; [`Timestamp::to_time`] reads it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(String);

impl Timestamp {
    /// Parses and keeps a text.
    pub fn parse(s: &str) -> Result<Timestamp, OciError> {
        let t = Timestamp(s.to_owned());
        t.to_time()?;
        Ok(t)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The time; an error if the document held something else.
    pub fn to_time(&self) -> Result<OffsetDateTime, OciError> {
        OffsetDateTime::parse(&self.0, &Rfc3339).map_err(|_| OciError::Timestamp(self.0.clone()))
    }

    /// Go's zero time, which Docker writes for "unknown".
    pub fn zero() -> Timestamp {
        Timestamp("0001-01-01T00:00:00Z".to_owned())
    }
}

/// Written in UTC as Go's RFC3339Nano: as many decimals as needed. Years outside 0..=9999 become the zero time.
impl From<OffsetDateTime> for Timestamp {
    fn from(t: OffsetDateTime) -> Timestamp {
        let utc = t.checked_to_offset(time::UtcOffset::UTC);
        match utc.and_then(|t| t.format(&Rfc3339).ok()) {
            Some(s) => Timestamp(s),
            None => Timestamp::zero(),
        }
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
