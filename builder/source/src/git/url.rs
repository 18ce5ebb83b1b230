//! What git is asked for: remotes, references, directories.

use std::fmt;

use lapstrake_builder_llb::clean_path;

/// How a repository is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Http,
    Https,
    Git,
    Ssh,
}

/// A repository's address, in a form that git takes for nothing else: not an option, not a helper program, not a path of this machine.
/// `Display` and `Debug` do not show a password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Remote {
    pub(super) transport: Transport,
    /// For git: without user and password where they go by a header.
    pub(super) url: String,
    /// Host, with the port.
    pub(super) host: String,
    /// User and password of an HTTP URL, decoded.
    pub(super) login: Option<(String, String)>,
    shown: String,
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Remote({})", self.shown)
    }
}

impl Remote {
    /// Host and path, however it is reached.
    pub(super) fn place(&self) -> String {
        let path = match self.url.split_once("://") {
            Some((_, rest)) => rest.split_once('/').map_or("", |(_, path)| path),
            None => self.url.split_once(':').map_or("", |(_, path)| path),
        };
        format!("{}{}", self.host, clean_path(&format!("/{path}")))
    }

    /// For those who read how something came to be: that there was a login, and none of it.
    pub(super) fn masked(&self) -> String {
        let Some((_, password)) = &self.login else { return self.url.clone() };
        let login = if password.is_empty() { "xxxxx@" } else { "xxxxx:xxxxx@" };
        self.url.replacen("://", &format!("://{login}"), 1)
    }

    /// Everything before the path, with the slash.
    pub(super) fn server(&self) -> &str {
        let after = self.url.find("://").map_or(0, |at| at + 3);
        let end = self.url[after..].find('/').map_or(self.url.len(), |at| after + at + 1);
        &self.url[..end]
    }

    /// Parses an URL, or `user@host:path`. Without either, `https://` is meant.
    pub(super) fn parse(text: &str) -> Result<Remote, &'static str> {
        if text.chars().any(|c| c.is_control() || c == ' ') {
            return Err("a URL has no spaces or control characters");
        }
        match text.split_once("://") {
            Some((scheme, rest)) => Self::from_url(&scheme.to_ascii_lowercase(), rest),
            None => match scp_style(text) {
                Some(host) => Ok(Remote {
                    transport: Transport::Ssh,
                    url: text.to_owned(),
                    host: host.to_owned(),
                    login: None,
                    shown: text.to_owned(),
                }),
                None => Self::from_url("https", text),
            },
        }
    }

    fn from_url(scheme: &str, rest: &str) -> Result<Remote, &'static str> {
        let transport = match scheme {
            "http" => Transport::Http,
            "https" => Transport::Https,
            "git" => Transport::Git,
            "ssh" => Transport::Ssh,
            _ => return Err("not a protocol that git repositories are fetched by"),
        };
        let (authority, path) = rest.split_once('/').ok_or("no path")?;
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        if host.is_empty() || host.starts_with('-') || path.starts_with('-') {
            return Err("not a host and a path");
        }
        let is_http = matches!(transport, Transport::Http | Transport::Https);
        let login = user.filter(|_| is_http).map(|user| {
            let (name, password) = user.split_once(':').unwrap_or((user, ""));
            (percent_decode(name), percent_decode(password))
        });
        let named = user.and_then(|user| user.split(':').next()).filter(|_| !is_http);
        let at = named.map(|user| format!("{user}@")).unwrap_or_default();
        if at.starts_with('-') {
            return Err("not a user");
        }
        let shown = match user {
            Some(_) if is_http => format!("{scheme}://xxxxx@{host}/{path}"),
            _ => format!("{scheme}://{at}{host}/{path}"),
        };
        let url = format!("{scheme}://{at}{host}/{path}");
        Ok(Remote { transport, url, host: host.to_owned(), login, shown })
    }
}

/// The host of `user@host:path`.
fn scp_style(text: &str) -> Option<&str> {
    let (user, rest) = text.split_once('@')?;
    let (host, path) = rest.split_once(':')?;
    let word = |text: &str, more: &str| {
        !text.is_empty()
            && !text.starts_with('-')
            && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    (word(user, "-_") && word(host, "-.") && !path.starts_with('-')).then_some(host)
}

/// The remote, reference and directory of `remote#reference:directory`.
pub(super) fn split_fragment(text: &str) -> (String, String, String) {
    let (remote, fragment) = text.split_once('#').unwrap_or((text, ""));
    let remote = remote.split('?').next().unwrap_or(remote).to_owned();
    let fragment = percent_decode(fragment);
    let (reference, subdir) = fragment.split_once(':').unwrap_or((&fragment, ""));
    (remote, reference.to_owned(), clean_subdir(subdir))
}

/// A directory's path, relative; empty for the whole tree. `..` leads nowhere.
fn clean_subdir(subdir: &str) -> String {
    clean_path(&format!("/{subdir}")).trim_start_matches('/').to_owned()
}

/// Whether git can take the text for a reference, and for nothing else: not for an option (CVE-2019-13139), a pattern or a refspec.
/// These are the rules of git-check-ref-format.
pub(super) fn is_reference(text: &str) -> bool {
    let bad = |c: char| c.is_control() || " ~^:?*[\\+".contains(c);
    !text.starts_with('-')
        && !text.contains(bad)
        && !text.contains("..")
        && !text.contains("@{")
        && !text.contains("//")
        && !text.starts_with('/')
        && !text.ends_with('/')
        && !text.ends_with('.')
        && text != "@"
        && text.split('/').all(|part| !part.starts_with('.') && !part.ends_with(".lock"))
}

/// Whether it is the whole name of a commit (or of another object).
pub(super) fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn percent_decode(text: &str) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        let hex = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        rest = match (byte, after) {
            (b'%', [a, b, tail @ ..]) if let (Some(high), Some(low)) = (hex(a), hex(b)) => {
                decoded.push(high * 16 + low);
                tail
            }
            _ => {
                decoded.push(*byte);
                after
            }
        };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remotes_are_taken_apart_without_showing_passwords() {
        let remote = Remote::parse("https://me:p%40ss@example.org:8443/a/b.git").expect("a URL");
        assert_eq!(remote.url, "https://example.org:8443/a/b.git");
        assert_eq!(remote.login, Some(("me".to_owned(), "p@ss".to_owned())));
        assert_eq!(remote.host, "example.org:8443");
        assert_eq!(remote.server(), "https://example.org:8443/");
        assert!(!format!("{remote} {remote:?}").contains("p@ss") && !remote.to_string().contains("p%40ss"));
        assert_eq!(remote.masked(), "https://xxxxx:xxxxx@example.org:8443/a/b.git");
        assert_eq!(Remote::parse("https://t0ken@h/a").expect("a URL").masked(), "https://xxxxx@h/a");
        assert_eq!(Remote::parse("github.com/a/b").expect("a URL").url, "https://github.com/a/b");
        let ssh = Remote::parse("git@github.com:a/b.git").expect("a URL");
        assert_eq!((ssh.transport, ssh.host.as_str()), (Transport::Ssh, "github.com"));
        assert_eq!(Remote::parse("ssh://git@h/x").expect("a URL").url, "ssh://git@h/x");
    }

    #[test]
    fn what_is_no_repository_elsewhere_is_refused() {
        for text in [
            "file:///etc",
            "/etc",
            "ext::sh -c x",
            "ext::sh",
            "ssh://-oProxyCommand=x/y",
            "-u@h:x",
            "git@-h:x",
            "git@h:-x",
            "https://",
            "https://h",
            "https:///x",
            "ftp://h/x",
            "https://h/a b",
            "https://h/\n",
            "ssh://-x@h/p",
        ] {
            assert!(Remote::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn fragments_name_a_reference_and_a_directory_inside() {
        let split = |text: &str| split_fragment(text);
        let parts = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        assert_eq!(split("h/r#main:a/b"), parts("h/r", "main", "a/b"));
        assert_eq!(split("h/r?x=y#:../../a/./b/"), parts("h/r", "", "a/b"));
        assert_eq!(split("h/r#a%2Fb"), parts("h/r", "a/b", ""));
        assert_eq!(split("h/r"), parts("h/r", "", ""));
    }

    #[test]
    fn references_are_never_options_patterns_or_refspecs() {
        for good in ["main", "refs/heads/a-b", "v1.2", "feature/x", "0123abc", "a@b", ""] {
            assert!(is_reference(good), "{good}");
        }
        for bad in [
            "-x",
            "--upload-pack=x",
            "a..b",
            "a b",
            "a:b",
            "+a",
            "a*",
            "a?",
            "[a]",
            "a^{}",
            "a~1",
            "@{u}",
            "@",
            "a//b",
            "/a",
            "a/",
            ".a",
            "a/.b",
            "a.lock",
            "a\\b",
            "a\n",
        ] {
            assert!(!is_reference(bad), "{bad}");
        }
        assert!(is_commit(&"a".repeat(40)) && is_commit(&"0".repeat(64)));
        assert!(!is_commit(&"A".repeat(40)) && !is_commit("abc"));
    }
}
