//! What an op says besides its identifier.

use std::{fmt::Display, str::FromStr};

use lapstrake_builder_dockerfile::parse_bool;
use lapstrake_builder_llb::pb;

use crate::SourceError;

/// An op's attributes, read one by one. What nobody knows means nothing, as in BuildKit.
pub(crate) struct Attrs<'a> {
    op: &'a pb::SourceOp,
}

impl<'a> Attrs<'a> {
    pub(crate) fn of(op: &'a pb::SourceOp) -> Self {
        Self { op }
    }

    /// The attribute's text; `None` when it is not there or empty.
    pub(crate) fn text(&self, key: &str) -> Option<&'a str> {
        self.op.attrs.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The attribute, parsed.
    pub(crate) fn parse<T: FromStr<Err: Display>>(&self, key: &str) -> Result<Option<T>, SourceError> {
        let Some(value) = self.text(key) else { return Ok(None) };
        value.parse().map(Some).map_err(|error: T::Err| self.invalid(key, value, error))
    }

    /// The attribute as a number that Go's `strconv.ParseInt` takes with any base; 0 when it is not there.
    pub(crate) fn go_number(&self, key: &str) -> Result<u32, SourceError> {
        let Some(value) = self.text(key) else { return Ok(0) };
        let lower = value.to_ascii_lowercase().replace('_', "");
        let (digits, base) = match lower.as_bytes() {
            [b'0', b'x', ..] => (&lower[2..], 16),
            [b'0', b'o', ..] => (&lower[2..], 8),
            [b'0', b'b', ..] => (&lower[2..], 2),
            [b'0', _, ..] => (&lower[1..], 8),
            _ => (lower.as_str(), 10),
        };
        match u32::from_str_radix(digits, base) {
            // The last one means "leave it" to chown.
            Ok(number) if number < u32::MAX => Ok(number),
            Ok(_) => Err(self.invalid(key, value, "too large")),
            Err(error) => Err(self.invalid(key, value, error)),
        }
    }

    /// All attributes whose key begins with `prefix`, by the rest of it.
    pub(crate) fn prefixed(&self, prefix: &str) -> Vec<(&'a str, &'a str)> {
        let attrs = self.op.attrs.iter();
        attrs.filter_map(|(key, value)| Some((key.strip_prefix(prefix)?, value.as_str()))).collect()
    }

    /// The attribute as Go's `strconv.ParseBool` has it; false when it is not there.
    pub(crate) fn flag(&self, key: &str) -> Result<bool, SourceError> {
        let Some(value) = self.text(key) else { return Ok(false) };
        parse_bool(value).ok_or_else(|| self.invalid(key, value, "neither true nor false"))
    }

    /// The attribute as a JSON list of texts; `None` when it is not there.
    pub(crate) fn list(&self, key: &str) -> Result<Option<Vec<String>>, SourceError> {
        let Some(value) = self.text(key) else { return Ok(None) };
        serde_json::from_str(value).map_err(|error| self.invalid(key, value, error))
    }

    /// The error for an attribute's value.
    pub(crate) fn invalid(&self, key: &str, value: &str, why: impl Display) -> SourceError {
        SourceError::Attribute {
            origin: shown(&self.op.identifier),
            attribute: key.to_owned(),
            value: value.to_owned(),
            why: why.to_string(),
        }
    }

    /// Refuses an attribute that BuildKit honours, and that is not honoured here: it asks for something that the client relies on.
    pub(crate) fn refuse(&self, key: &str) -> Result<(), SourceError> {
        match self.text(key) {
            None => Ok(()),
            Some(_) => Err(SourceError::Unsupported {
                origin: shown(&self.op.identifier),
                what: format!("attribute {key}"),
            }),
        }
    }
}

/// An identifier for people: without a user's name and password.
pub(crate) fn shown(identifier: &str) -> String {
    let Some((scheme, rest)) = identifier.split_once("://") else { return identifier.to_owned() };
    // A git identifier may hold a whole URL.
    if let Some((inner, _)) = rest.split_once("://")
        && !inner.contains(['/', '@'])
    {
        return format!("{scheme}://{}", shown(rest));
    }
    let authority = rest.split(['/', '#', '?']).next().unwrap_or(rest);
    match authority.rfind('@') {
        Some(at) => format!("{scheme}://xxxxx{}", &rest[at..]),
        None => identifier.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        for (identifier, expected) in [
            ("http://a:b@h/x@y", "http://xxxxx@h/x@y"),
            ("git://https://a:b@h/x#m", "git://https://xxxxx@h/x#m"),
            ("git://a:b@h/x", "git://xxxxx@h/x"),
            ("http://h/x@y", "http://h/x@y"),
            ("docker-image://h/x@sha256:1", "docker-image://h/x@sha256:1"),
            ("x", "x"),
        ] {
            assert_eq!(shown(identifier), expected);
        }
    }

    #[test]
    fn numbers_are_gos() {
        let parse = |text: &str| {
            let attrs = [("k".to_owned(), text.to_owned())].into();
            let op = pb::SourceOp { identifier: "x".to_owned(), attrs };
            Attrs::of(&op).go_number("k").ok()
        };
        for (text, expected) in [
            ("0755", Some(0o755)),
            ("0o755", Some(0o755)),
            ("0x1f", Some(31)),
            ("10", Some(10)),
            ("0", Some(0)),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
        for text in ["-1", "4294967295", "08", "x"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
