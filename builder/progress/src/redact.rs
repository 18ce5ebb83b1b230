//! Credentials in URLs are not for logs.

use std::borrow::Cow;

/// What stands in their place, as in BuildKit.
const MASK: &str = "xxxxx";
/// Schemes after which an `@` means something else, or only a user's name stands before it.
const HARMLESS: [&str; 4] = ["docker-image", "oci-layout", "ssh", "git+ssh"];

/// The text with user and password of each URL in it masked: `https://xxxxx:xxxxx@host/path`.
pub fn redact(text: &str) -> Cow<'_, str> {
    if !text.contains("://") || !text.contains('@') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at);
        let after = &after["://".len()..];
        out.push_str(before);
        out.push_str("://");
        let is_scheme = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        let scheme = before.rsplit(|c| !is_scheme(c)).next().unwrap_or_default();
        // A password may have any character that its author forgot to escape but those that end an authority.
        let end = after
            .find(|c: char| c.is_whitespace() || matches!(c, '/' | '?' | '#' | '"' | '\'' | '`' | '<' | '>'))
            .unwrap_or(after.len());
        let authority = &after[..end];
        rest = after;
        if HARMLESS.contains(&scheme) {
            continue;
        }
        if let Some((user, _)) = authority.rsplit_once('@') {
            out.push_str(MASK);
            if user.contains(':') {
                out.push(':');
                out.push_str(MASK);
            }
            rest = &after[user.len()..];
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_in_urls_are_masked() {
        for (text, shown) in [
            ("ADD https://user:s3cret@host/x /", "ADD https://xxxxx:xxxxx@host/x /"),
            ("https://token@github.com/a.git#main", "https://xxxxx@github.com/a.git#main"),
            ("get \"http://u:p@a/\", http://u:p@b", "get \"http://xxxxx:xxxxx@a/\", http://xxxxx:xxxxx@b"),
            ("http://u:p@ss@host:80", "http://xxxxx:xxxxx@host:80"),
            ("http://u:@host", "http://xxxxx:xxxxx@host"),
            ("ssh://git@github.com/a.git", "ssh://git@github.com/a.git"),
            ("docker-image://alpine@sha256:00", "docker-image://alpine@sha256:00"),
            ("https://host/~a@b and c@d", "https://host/~a@b and c@d"),
            ("no url, a@b", "no url, a@b"),
            ("://@", "://xxxxx@"),
            ("", ""),
        ] {
            assert_eq!(redact(text), shown);
        }
    }
}
