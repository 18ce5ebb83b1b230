//! What a server's file is called, and when it says that it was changed.

use time::{
    OffsetDateTime, PrimitiveDateTime,
    format_description::{BorrowedFormatItem, parse_borrowed},
};
use url::Url;

/// The name when there is no other.
const DEFAULT: &str = "download";

/// The file's name: what the op says, else the server (`Content-Disposition`), else the URL. Never one that leads anywhere.
pub(super) fn file_name(url: &Url, wanted: Option<&str>, disposition: Option<&str>) -> String {
    if let Some(wanted) = wanted {
        return safe_name(wanted);
    }
    if let Some(name) = disposition.and_then(disposition_name)
        && !name.is_empty()
        && !name.ends_with('/')
    {
        return safe_name(&name);
    }
    let path = percent_decode(url.path());
    safe_name(path.trim_end_matches('/'))
}

/// The last name of a path, if it is one that a file can have.
pub(crate) fn safe_name(path: &str) -> String {
    let name = path.trim().trim_end_matches('/');
    let name = name.rsplit('/').next().unwrap_or_default();
    let bad = name.is_empty() || name == "." || name == ".." || name.chars().any(char::is_control);
    // 255 bytes is the longest name that file systems take.
    if bad || name.len() > 255 { DEFAULT.to_owned() } else { name.to_owned() }
}

/// The `filename` of a `Content-Disposition` (RFC 6266), whose `filename*` comes first; `None` when the header is malformed.
fn disposition_name(header: &str) -> Option<String> {
    let mut rest = header.split_once(';')?.1;
    let mut plain = None;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ';']);
        if rest.is_empty() {
            return plain;
        }
        let (key, after) = rest.split_once('=')?;
        let key = key.trim().to_ascii_lowercase();
        let (value, after) = parameter(after.trim_start())?;
        match key.as_str() {
            "filename*" => {
                let mut parts = value.splitn(3, '\'');
                let (charset, _, text) = (parts.next()?, parts.next()?, parts.next()?);
                let known = ["utf-8", "us-ascii"].iter().any(|known| charset.eq_ignore_ascii_case(known));
                return known.then(|| percent_decode(text));
            }
            "filename" => plain = Some(value),
            _ => {}
        }
        rest = after;
    }
}

/// A token or quoted string, and what follows it.
fn parameter(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(';').unwrap_or(text.len());
        return Some((text[..end].trim().to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        match (bytes[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push(u8::try_from(high * 16 + low).expect("two hexadecimal digits are a byte"));
                at += 3;
            }
            (byte, ..) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn format(text: &str) -> Vec<BorrowedFormatItem<'_>> {
    parse_borrowed::<2>(text).expect("the format is a constant")
}

const IMF: &str = "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT";
const ASCTIME: &str =
    "[weekday repr:short] [month repr:short] [day padding:space] [hour]:[minute]:[second] [year]";

/// A date of HTTP (RFC 9110 section 5.6.7), as seconds since 1970; `None` for anything else.
pub(super) fn parse_http_date(text: &str) -> Option<i64> {
    if let Some((weekday, rest)) = text.split_once(", ")
        && weekday.len() > 3
    {
        // RFC 850: two digits of a year, of which Go takes those from 69 as the last century's; and servers written in Go say the zone as they call it.
        let (head, tail) = rest.rsplit_once('-')?;
        let (year, clock) = tail.split_once(' ')?;
        let clock = clock.strip_suffix("GMT").or(clock.strip_suffix("UTC"))?;
        let short: u16 = year.parse().ok().filter(|_| year.len() == 2)?;
        let century = if short >= 69 { 1900 } else { 2000 };
        let text = format!("{}, {} {} {clock}GMT", &weekday[..3], head.replace('-', " "), century + short);
        return parse_http_date(&text);
    }
    [IMF, ASCTIME].iter().find_map(|form| {
        PrimitiveDateTime::parse(text, &format(form)).ok().map(|date| date.assume_utc().unix_timestamp())
    })
}

/// Seconds since 1970 as a date of HTTP.
pub(super) fn http_date(seconds: i64) -> String {
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|date| date.format(&format(IMF)).ok())
        .unwrap_or_default()
}

/// An entity tag for comparing: weak or not.
pub(super) fn etag(text: &str) -> &str {
    text.strip_prefix("W/").unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(url: &str, disposition: Option<&str>) -> String {
        file_name(&Url::parse(url).expect("a URL"), None, disposition)
    }

    #[test]
    fn names_come_from_the_server_and_then_from_the_url() {
        for (url, disposition, expected) in [
            ("http://h/a/b.tar.gz?x=y/z", None, "b.tar.gz"),
            ("http://h/a/", None, "a"),
            ("http://h/", None, "download"),
            ("http://h/%66oo%20bar", None, "foo bar"),
            ("http://h/x", Some("attachment; filename=\"fo\\\"o.txt\"; size=3"), "fo\"o.txt"),
            ("http://h/x", Some("attachment; filename=plain.txt"), "plain.txt"),
            ("http://h/x", Some("inline; filename=\"a\"; filename*=UTF-8''%e2%82%ac"), "€"),
            ("http://h/x", Some("attachment; filename=\"../../etc/passwd\""), "passwd"),
            ("http://h/x", Some("attachment; filename=\"dir/\""), "x"),
            ("http://h/x", Some("attachment; filename=\"..\""), "download"),
            ("http://h/x", Some("attachment; filename=\"unclosed"), "x"),
            ("http://h/x", Some("attachment"), "x"),
            ("http://h/a%0Ab", None, "download"),
            ("http://h/a%2F..%2Fb", None, "b"),
        ] {
            assert_eq!(named(url, disposition), expected, "{url} {disposition:?}");
        }
        let url = Url::parse("http://h/x").expect("a URL");
        assert_eq!(file_name(&url, Some("../wanted"), Some("a; filename=b")), "wanted");
    }

    #[test]
    fn dates_of_all_three_forms_are_read() {
        let seconds = 784_111_777;
        for text in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 UTC",
            "Sun Nov  6 08:49:37 1994",
        ] {
            assert_eq!(parse_http_date(text), Some(seconds), "{text}");
        }
        assert_eq!(http_date(seconds), "Sun, 06 Nov 1994 08:49:37 GMT");
        for bad in [
            "",
            "yesterday",
            "Sun, 06 Nov 1994 08:49:37 CET",
            "Sunday, 06-Nov-94 08:49:37 CET",
            "Sunday, 06-Nov-1994 08:49:37 GMT",
            "äöü, x",
        ] {
            assert_eq!(parse_http_date(bad), None, "{bad}");
        }
    }
}
