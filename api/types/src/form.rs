//! Query strings, read as Go's `net/http` and Moby's `httputils` read them.

use crate::ApiTypeError;

/// The parameters of a request, in order; a name may come several times.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Form {
    pairs: Vec<(String, String)>,
}

impl Form {
    /// Reads the part of a URL behind the question mark.
    pub fn parse(query: &str) -> Result<Form, ApiTypeError> {
        let mut pairs = Vec::new();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let name = decode(name, name)?;
            let value = decode(value, &name)?;
            pairs.push((name, value));
        }
        Ok(Form { pairs })
    }

    /// The first value, or the empty text when there is none (Moby does not tell these apart).
    pub fn get(&self, name: &str) -> &str {
        self.first(name).unwrap_or_default()
    }

    /// The first value.
    pub fn first(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// All values, in order.
    pub fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether the parameter is there, be it empty.
    pub fn has(&self, name: &str) -> bool {
        self.first(name).is_some()
    }

    /// The first value as a switch; see [`bool_value`].
    pub fn flag(&self, name: &str) -> bool {
        bool_value(self.get(name))
    }

    /// The first value as a switch, or `default` when the parameter is not there.
    pub fn flag_or(&self, name: &str, default: bool) -> bool {
        self.first(name).map_or(default, bool_value)
    }

    /// The first value as a number; empty is `None`.
    pub fn number(&self, name: &'static str) -> Result<Option<i64>, ApiTypeError> {
        match self.get(name) {
            "" => Ok(None),
            text => go_int(text)
                .map(Some)
                .ok_or_else(|| ApiTypeError::Number { parameter: name, value: text.to_owned() }),
        }
    }

    /// The first value as a number of bytes; empty is 0.
    pub fn bytes(&self, name: &'static str) -> Result<i64, ApiTypeError> {
        match self.get(name) {
            "" => Ok(0),
            text => {
                go_int(text).ok_or_else(|| ApiTypeError::Bytes { parameter: name, value: text.to_owned() })
            }
        }
    }
}

/// Moby's `BoolValue`: empty, `0`, `no`, `false` and `none` in any case are off; anything else is on.
pub fn bool_value(text: &str) -> bool {
    !matches!(text.trim().to_lowercase().as_str(), "" | "0" | "no" | "false" | "none")
}

/// Go's `strconv.ParseInt(s, 10, 64)`.
fn go_int(text: &str) -> Option<i64> {
    text.parse().ok()
}

fn decode(text: &str, name: &str) -> Result<String, ApiTypeError> {
    let escape = || ApiTypeError::Escape(text.chars().take(40).collect());
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || {
                    let byte = rest.next().ok_or_else(escape)?;
                    char::from(byte).to_digit(16).ok_or_else(escape)
                };
                let (high, low) = (digit()?, digit()?);
                u8::try_from(high * 16 + low).expect("two hex digits are one byte")
            }
            other => other,
        });
    }
    String::from_utf8(bytes).map_err(|_| ApiTypeError::NotUtf8(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_follow_mobys_rule_and_pythons_spelling() {
        for off in ["", "0", "no", "false", "none", "False", " NONE ", "No"] {
            assert!(!bool_value(off), "{off:?}");
        }
        for on in ["1", "true", "True", "yes", "on", "2", "null", "f"] {
            assert!(bool_value(on), "{on:?}");
        }
    }

    #[test]
    fn names_repeat_and_escapes_are_decoded() {
        let form = Form::parse("t=a%3A1&t=b+c&q&=x&é=%C3%A9").unwrap();
        assert_eq!(form.all("t").collect::<Vec<_>>(), ["a:1", "b c"]);
        assert!(form.has("q") && !form.flag("q") && !form.has("z"));
        assert!(form.flag_or("z", true) && !form.flag_or("q", true));
        assert_eq!(form.get("é"), "é");
    }

    #[test]
    fn broken_escapes_are_refused() {
        for bad in ["a=%", "a=%4", "a=%zz", "%=1"] {
            assert!(matches!(Form::parse(bad), Err(ApiTypeError::Escape(_))), "{bad}");
        }
        assert!(matches!(Form::parse("a=%ff"), Err(ApiTypeError::NotUtf8(name)) if name == "a"));
    }

    #[test]
    fn numbers_are_whole_and_bytes_say_so() {
        let form = Form::parse("a=12&b=1.5&c=-3&d=99999999999999999999").unwrap();
        assert_eq!(form.number("a").unwrap(), Some(12));
        assert_eq!(form.number("c").unwrap(), Some(-3));
        assert_eq!(form.number("none").unwrap(), None);
        assert!(form.number("d").is_err());
        assert_eq!(form.bytes("b").unwrap_err().to_string(), "b is in bytes and expects an integer, got 1.5");
    }
}
