//! Times as Moby's parameters write them: durations back from now, RFC 3339 with parts left out, Unix seconds.

use time::{
    Date, Duration, Month, OffsetDateTime, PrimitiveDateTime, Time, UtcOffset,
    format_description::well_known::Rfc3339,
};

use crate::ApiTypeError;

/// A moment. Serialised answers use [`Timestamp::rfc3339`] or [`Timestamp::unix`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub OffsetDateTime);

impl Timestamp {
    /// Now.
    pub fn now() -> Timestamp {
        Timestamp(OffsetDateTime::now_utc())
    }

    /// Go's RFC3339Nano, in UTC.
    pub fn rfc3339(self) -> String {
        self.0
            .to_offset(UtcOffset::UTC)
            .format(&Rfc3339)
            .unwrap_or_else(|_| "0001-01-01T00:00:00Z".to_owned())
    }

    /// Seconds since 1970.
    pub fn unix(self) -> i64 {
        self.0.unix_timestamp()
    }

    /// Nanoseconds since 1970.
    pub fn unix_nanos(self) -> i64 {
        i64::try_from(self.0.unix_timestamp_nanos()).unwrap_or(i64::MAX)
    }
}

impl From<std::time::SystemTime> for Timestamp {
    fn from(time: std::time::SystemTime) -> Self {
        Timestamp(OffsetDateTime::from(time))
    }
}

impl serde::Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.rfc3339())
    }
}

fn wrong(reason: impl Into<String>) -> ApiTypeError {
    ApiTypeError::Time { what: "failed to parse value as time or duration".to_owned(), reason: reason.into() }
}

/// A time as filters write it: a Go duration before `now` (`24h`), RFC 3339 with the time of day or the zone left out
/// (UTC is meant), or Unix seconds with decimals.
pub fn parse_time(text: &str, now: Timestamp) -> Result<Timestamp, ApiTypeError> {
    if text.trim().is_empty() {
        return Err(wrong("value is empty"));
    }
    if text != "0"
        && let Some(duration) = parse_duration(text)
    {
        return now.0.checked_sub(duration).map(Timestamp).ok_or_else(|| wrong("out of range"));
    }
    if let Some(time) = parse_calendar(text) {
        return Ok(time);
    }
    if text.contains('-') {
        return Err(wrong(format!("cannot parse {text:?} as a date")));
    }
    parse_unix(text).map_err(wrong)
}

/// A time as `/events` writes it: `seconds` or `seconds.nanoseconds`; empty is `None`.
pub fn parse_unix_time(text: &str) -> Result<Option<Timestamp>, ApiTypeError> {
    if text.is_empty() {
        return Ok(None);
    }
    parse_unix(text)
        .map(Some)
        .map_err(|reason| ApiTypeError::Time { what: format!("invalid timestamp {text:?}"), reason })
}

fn parse_unix(text: &str) -> Result<Timestamp, String> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole: i64 = seconds.parse().map_err(|_| format!("invalid seconds {seconds:?}: invalid syntax"))?;
    if fraction.len() > 20 {
        return Err(format!("invalid nanoseconds: length {} exceeds maximum 20", fraction.len()));
    }
    if let Some(at) = fraction.find(|c: char| !c.is_ascii_digit()) {
        let found = fraction[at..].chars().next().unwrap_or_default();
        return Err(format!("invalid nanoseconds: invalid character {found:?} at position {at}"));
    }
    let nanos: i64 = format!("{fraction:0<9}")[..9].parse().unwrap_or(0);
    OffsetDateTime::from_unix_timestamp(whole)
        .ok()
        .and_then(|time| time.checked_add(Duration::nanoseconds(nanos)))
        .map(Timestamp)
        .ok_or_else(|| format!("invalid seconds {seconds:?}: out of range"))
}

/// Go's `time.ParseDuration`: `1h30m`, `-1.5h`, `300ms`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: f64 = 0.0;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..number_end].parse().ok()?;
        rest = &rest[number_end..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        total += number
            * match &rest[..unit_end] {
                "ns" => 1.0,
                "us" | "µs" | "μs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => return None,
            };
        rest = &rest[unit_end..];
    }
    // Go's durations are 64-bit nanoseconds: 290 years.
    if !total.is_finite() || total > 9.2e18 {
        return None;
    }
    let duration = Duration::seconds_f64(total / 1e9);
    Some(if negative { -duration } else { duration })
}

/// `2006-01-02[T15[:04[:05[.999]]]][Z|±07:00]`.
fn parse_calendar(text: &str) -> Option<Timestamp> {
    let (date, rest) = match text.split_at_checked(10)? {
        (date, "") => (date, ""),
        (date, rest) => (date, rest.strip_prefix('T').or_else(|| zone(rest).map(|_| rest))?),
    };
    let mut numbers = date.split('-');
    let mut next = |width: usize| numbers.next().filter(|part| part.len() == width)?.parse::<u16>().ok();
    let (year, month, day) = (next(4)?, next(2)?, next(2)?);
    let month = Month::try_from(u8::try_from(month).ok()?).ok()?;
    let date = Date::from_calendar_date(year.into(), month, u8::try_from(day).ok()?).ok()?;
    let zone_at = rest.find(['Z', 'z', '+', '-']).unwrap_or(rest.len());
    let offset = if zone_at == rest.len() { UtcOffset::UTC } else { zone(&rest[zone_at..])? };
    let clock = &rest[..zone_at];
    let time = if clock.is_empty() {
        Time::MIDNIGHT
    } else {
        let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
        let parts: Vec<u8> = clock
            .split(':')
            .map(|part| part.parse().ok().filter(|_| part.len() == 2))
            .collect::<Option<_>>()?;
        if parts.len() > 3 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let part = |at: usize| parts.get(at).copied().unwrap_or(0);
        let nanos: u32 = format!("{fraction:0<9}")[..9].parse().ok()?;
        Time::from_hms_nano(part(0), part(1), part(2), nanos).ok()?
    };
    Some(Timestamp(PrimitiveDateTime::new(date, time).assume_offset(offset)))
}

fn zone(text: &str) -> Option<UtcOffset> {
    if matches!(text, "Z" | "z") {
        return Some(UtcOffset::UTC);
    }
    let sign = match text.get(..1)? {
        "+" => 1,
        "-" => -1,
        _ => return None,
    };
    let (hours, minutes) = text.get(1..)?.split_once(':')?;
    UtcOffset::from_hms(sign * hours.parse::<i8>().ok()?, sign * minutes.parse::<i8>().ok()?, 0).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        parse_unix_time("1700000000").unwrap().unwrap()
    }

    fn parsed(text: &str) -> String {
        parse_time(text, now()).unwrap().rfc3339()
    }

    #[test]
    fn durations_count_back_from_now() {
        assert_eq!(parsed("24h"), "2023-11-13T22:13:20Z");
        assert_eq!(parsed("1h30m"), "2023-11-14T20:43:20Z");
        assert_eq!(parsed("-1.5h"), "2023-11-14T23:43:20Z");
        assert_eq!(parse_duration("300ms"), Some(Duration::milliseconds(300)));
        for bad in ["", "h", "1", "1x", "1h2", "1..2s", "999999999999h"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn dates_may_leave_out_the_clock_and_the_zone() {
        assert_eq!(parsed("2023-01-02"), "2023-01-02T00:00:00Z");
        assert_eq!(parsed("2023-01-02+02:00"), "2023-01-01T22:00:00Z");
        assert_eq!(parsed("2023-01-02T03"), "2023-01-02T03:00:00Z");
        assert_eq!(parsed("2023-01-02T03:04Z"), "2023-01-02T03:04:00Z");
        assert_eq!(parsed("2023-01-02T03:04:05.5-01:00"), "2023-01-02T04:04:05.5Z");
    }

    #[test]
    fn unix_seconds_have_decimals() {
        assert_eq!(parsed("1136073600"), "2006-01-01T00:00:00Z");
        assert_eq!(parsed("0"), "1970-01-01T00:00:00Z");
        assert_eq!(parse_unix_time("1.000000001").unwrap().unwrap().unix_nanos(), 1_000_000_001);
        assert_eq!(parse_unix_time("").unwrap(), None);
        for bad in ["x", "1.x", "1.123456789012345678901", "99999999999999"] {
            assert!(parse_unix_time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in
            ["", " ", "2023-13-01", "2023-01-02T25", "yesterday", "2023-01-02T03:04:05:06", "2023-01-02éé"]
        {
            assert!(parse_time(bad, now()).is_err(), "{bad}");
        }
    }
}
