//! `WWW-Authenticate` (RFC 9110 section 11.6.1), as registries use it.

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// One challenge: a scheme in lower case, and its parameters, names in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Challenge {
    pub(crate) scheme: String,
    params: Vec<(String, String)>,
}

impl Challenge {
    pub(crate) fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// All challenges of a response. What cannot be understood is left out.
pub(crate) fn parse(headers: &HeaderMap) -> Vec<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter();
    values.filter_map(|v| v.to_str().ok()).flat_map(parse_value).collect()
}

fn parse_value(text: &str) -> Vec<Challenge> {
    let mut out: Vec<Challenge> = Vec::new();
    let mut rest = text.trim_start_matches([' ', '\t', ',']);
    while !rest.is_empty() {
        let (word, after) = take_token(rest);
        if word.is_empty() {
            return out;
        }
        let after_space = after.trim_start();
        // `token = value` is a parameter of the last challenge; a token alone begins the next one.
        match (after_space.strip_prefix('='), out.last_mut()) {
            (Some(value), Some(challenge)) => {
                let Some((value, after)) = take_value(value.trim_start()) else { return out };
                challenge.params.push((word.to_ascii_lowercase(), value));
                rest = after;
            }
            (Some(_), None) => return out,
            (None, _) => {
                out.push(Challenge { scheme: word.to_ascii_lowercase(), params: Vec::new() });
                rest = after_space;
            }
        }
        rest = rest.trim_start_matches([' ', '\t', ',']);
    }
    out
}

fn take_token(s: &str) -> (&str, &str) {
    let end =
        s.find(|c: char| !(c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c))).unwrap_or(s.len());
    s.split_at(end)
}

/// A token or quoted string.
fn take_value(s: &str) -> Option<(String, &str)> {
    let Some(quoted) = s.strip_prefix('"') else {
        // Lenient: registries leave quotes out even where a value has characters that need them.
        let end = s.find([',', ' ', '\t']).unwrap_or(s.len());
        return Some((s[..end].to_owned(), &s[end..]));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[i + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn registries_challenges_are_understood() {
        let c = parse_value(
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push" , error="insufficient_scope""#,
        );
        assert_eq!(c.len(), 1);
        assert_eq!(c[0].scheme, "bearer");
        assert_eq!(c[0].param("realm"), Some("https://auth.docker.io/token"));
        assert_eq!(c[0].param("scope"), Some("repository:a/b:pull,push"));
        assert_eq!(c[0].param("error"), Some("insufficient_scope"));
    }

    #[test]
    fn several_challenges_in_one_header_are_told_apart() {
        let c =
            parse_value(r#"Negotiate, Basic realm="a \"b\", c=d", BEARER Realm=https://x/y?z=1,service=s"#);
        let schemes: Vec<&str> = c.iter().map(|c| c.scheme.as_str()).collect();
        assert_eq!(schemes, ["negotiate", "basic", "bearer"]);
        assert_eq!(c[1].param("realm"), Some(r#"a "b", c=d"#));
        assert_eq!(c[2].param("realm"), Some("https://x/y?z=1"));
        assert_eq!(c[2].param("service"), Some("s"));
    }

    #[test]
    fn nonsense_is_left_out() {
        assert!(parse_value("").is_empty());
        assert!(parse_value("=x").is_empty());
        assert!(parse_value("\"Bearer\"").is_empty());
        assert_eq!(parse_value("Bearer realm=\"unterminated")[0].param("realm"), None);
    }

    proptest! {
        #[test]
        fn parsing_ends_and_never_panics(s in "[ -~]{0,60}|\\PC{0,30}") {
            let _ = parse_value(&s);
        }
    }
}
