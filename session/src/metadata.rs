//! Request metadata: texts of any alphabet in HTTP headers.

use http::{HeaderName, HeaderValue};
use tonic::metadata::MetadataMap;

use crate::Error;

/// The largest message taken from or given to a client, as BuildKit allows.
pub(crate) const MAX_MESSAGE: usize = 16 << 20;

/// Adds `key: value` as it is; bytes above 0x7f are legal in a header (RFC 9110 obs-text).
pub(crate) fn append(map: &mut MetadataMap, key: &str, value: &str) -> Result<(), Error> {
    let bad = || Error::BadMetadata { key: key.to_owned() };
    let name = HeaderName::from_bytes(key.as_bytes()).map_err(|_| bad())?;
    let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| bad())?;
    map.as_mut().try_append(name, value).map_err(|_| bad())?;
    Ok(())
}

/// Adds `key` once per value. When one of them is not plain ASCII, all are percent-encoded and `<key>-encoded: 1` says so (BuildKit's
/// convention), unless the client is too old to know it (`raw`) and the values are legal as they are.
pub(crate) fn append_list(
    map: &mut MetadataMap,
    key: &str,
    values: &[String],
    raw: bool,
) -> Result<(), Error> {
    let plain = |v: &String| v.bytes().all(|b| (0x20..0x7f).contains(&b));
    let legal = |v: &String| HeaderValue::from_bytes(v.as_bytes()).is_ok();
    let as_they_are = values.iter().all(plain) || (raw && values.iter().all(legal));
    let encode = !as_they_are;
    for value in values {
        if encode { append(map, key, &query_escape(value))? } else { append(map, key, value)? }
    }
    if encode {
        append(map, &format!("{key}-encoded"), "1")?;
    }
    Ok(())
}

/// Go's `url.QueryEscape`: what the client decodes with `url.QueryUnescape`.
fn query_escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte.into()),
            b' ' => out.push('+'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(values: &[&str], raw: bool) -> (Vec<Vec<u8>>, bool) {
        let values: Vec<String> = values.iter().map(|v| (*v).to_owned()).collect();
        let mut map = MetadataMap::new();
        append_list(&mut map, "k", &values, raw).unwrap();
        let headers = map.into_headers();
        let encoded = headers.contains_key("k-encoded");
        (headers.get_all("k").iter().map(|v| v.as_bytes().to_vec()).collect(), encoded)
    }

    #[test]
    fn ascii_values_go_as_they_are() {
        assert_eq!(list(&["a b", "!*.go"], false), (vec![b"a b".to_vec(), b"!*.go".to_vec()], false));
    }

    #[test]
    fn one_value_outside_ascii_encodes_all() {
        assert_eq!(list(&["é", "a b/c"], false), (vec![b"%C3%A9".to_vec(), b"a+b%2Fc".to_vec()], true));
    }

    #[test]
    fn old_clients_get_utf8_as_it_is() {
        assert_eq!(list(&["é"], true), (vec!["é".as_bytes().to_vec()], false));
    }

    #[test]
    fn control_characters_are_encoded_even_for_old_clients() {
        assert_eq!(list(&["a\nb"], true), (vec![b"a%0Ab".to_vec()], true));
    }
}
