//! References to git repositories, as `ADD` and contexts name them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use lapstrake_builder_llb::{GitSource, GitSsh, join_path};
use regex::Regex;

use crate::text::{go_quote, parse_bool};

/// A parsed reference: `https://host/repo.git#ref:dir`, `…?ref=…&subdir=…`, `git@host:path`, `github.com/…`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct GitReference {
    /// What git is told to fetch from.
    pub(super) remote: String,
    pub(super) reference: String,
    pub(super) checksum: String,
    pub(super) subdir: String,
    /// It could as well be a path: `github.com/…` without a scheme.
    pub(super) could_be_path: bool,
    pub(super) keep_git_dir: Option<bool>,
    pub(super) submodules: Option<bool>,
    pub(super) mtime: String,
    pub(super) fetch_by_commit: bool,
}

/// The pieces of an URL, split as Go's `net/url` splits it.
struct Url {
    scheme: String,
    /// Host, without user and password.
    host: String,
    /// Percent-decoded.
    path: String,
    query: Option<String>,
    fragment: String,
    /// The URL without query and fragment.
    bare: String,
}

static SCHEME: LazyLock<Regex> = LazyLock::new(|| Regex::new("^[a-zA-Z0-9]+://").expect("it compiles"));
static SCP: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^([a-zA-Z0-9\-_]+)@([a-zA-Z0-9\-.]+):(.*?)(?:\?(.*?))?(?:#(.*))?$").expect("it compiles")
});

/// Reads a reference. `None` if it is none; an error if it is one and contradicts itself.
pub(super) fn parse(text: &str) -> Result<Option<GitReference>, String> {
    if text.starts_with("./") || text.starts_with("../") {
        return Ok(None);
    }
    let could_be_path = text.starts_with("github.com/");
    let url = if could_be_path { split_url(&format!("https://{text}")) } else { split(text) };
    let Some(url) = url else { return Ok(None) };
    // Any other page of a web server is just that.
    if !could_be_path && matches!(url.scheme.as_str(), "http" | "https") && !url.path.ends_with(".git") {
        return Ok(None);
    }
    let (reference, subdir) = split_fragment(&url.fragment);
    let mut git = GitReference {
        remote: if could_be_path { url.bare.trim_start_matches("https://").to_owned() } else { url.bare },
        reference,
        subdir,
        could_be_path,
        ..GitReference::default()
    };
    if let Some(query) = url.query {
        git.apply_query(&query)?;
    }
    Ok(Some(git))
}

fn split(text: &str) -> Option<Url> {
    if let Some(scheme) = SCHEME.find(text) {
        let scheme = scheme.as_str().trim_end_matches("://").to_lowercase();
        return matches!(scheme.as_str(), "http" | "https" | "ssh" | "git").then(|| split_url(text))?;
    }
    let parts = SCP.captures(text)?;
    let get = |i: usize| parts.get(i).map_or("", |m| m.as_str()).to_owned();
    Some(Url {
        scheme: "ssh".to_owned(),
        host: get(2),
        path: get(3),
        query: parts.get(4).map(|m| m.as_str().to_owned()),
        fragment: get(5),
        bare: format!("{}@{}:{}", get(1), get(2), get(3)),
    })
}

fn split_url(text: &str) -> Option<Url> {
    let (rest, fragment) = text.split_once('#').unwrap_or((text, ""));
    let (bare, query) = match rest.split_once('?') {
        Some((bare, query)) => (bare, Some(query.to_owned())),
        None => (rest, None),
    };
    let (scheme, rest) = bare.split_once("://")?;
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if bare.chars().any(|c| c.is_control() || c == ' ') {
        return None;
    }
    let scheme = scheme.to_lowercase();
    Some(Url {
        host: host.to_owned(),
        path: percent_decode(path)?,
        query,
        fragment: percent_decode(fragment)?,
        bare: format!("{scheme}://{rest}"),
        scheme,
    })
}

fn percent_decode(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let digit = |b: Option<u8>| char::from(b?).to_digit(16);
        let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
        out.push(u8::try_from(high * 16 + low).expect("two hex digits"));
    }
    String::from_utf8(out).ok()
}

/// The last part of an URL's path, if it has one.
pub(super) fn url_file_name(url: &str) -> Option<String> {
    let path = split_url(url)?.path;
    let name = super::path::base(&path);
    (name != "." && name != "/").then(|| name.to_owned())
}

fn split_fragment(fragment: &str) -> (String, String) {
    let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
    (reference.to_owned(), clean_subdir(subdir))
}

fn clean_subdir(subdir: &str) -> String {
    join_path(&["/", subdir]).trim_start_matches('/').to_owned()
}

impl GitReference {
    fn apply_query(&mut self, query: &str) -> Result<(), String> {
        let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';')) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decode = |text: &str| percent_decode(&text.replace('+', " "));
            if let (Some(key), Some(value)) = (decode(key), decode(value)) {
                values.entry(key).or_default().push(value);
            }
        }
        let (mut tag, mut branch) = (None, None);
        for (key, values) in &values {
            let [value] = &values[..] else {
                return Err(format!("query {} has multiple values", go_quote(key)));
            };
            let flag = || match value.as_str() {
                "" => Ok(true),
                value => parse_bool(value).ok_or_else(|| format!("invalid {key} value: {}", go_quote(value))),
            };
            match key.as_str() {
                "keep-git-dir" => self.keep_git_dir = Some(flag()?),
                "submodules" => self.submodules = Some(flag()?),
                "fetch-by-commit" => self.fetch_by_commit = flag()?,
                key if value.is_empty() => return Err(format!("query {} has no value", go_quote(key))),
                "ref" => set_once(&mut self.reference, value, "ref")?,
                "subdir" => set_once(&mut self.subdir, value, "subdir")?,
                "tag" => tag = Some(prefixed(value, "refs/tags/")),
                "branch" => branch = Some(prefixed(value, "refs/heads/")),
                "checksum" | "commit" => self.checksum = value.clone(),
                "mtime" if matches!(value.as_str(), "checkout" | "commit") => self.mtime = value.clone(),
                "mtime" => {
                    let value = go_quote(value);
                    return Err(format!("invalid mtime value: {value} (must be \"checkout\" or \"commit\")"));
                }
                key => return Err(format!("unexpected query {}", go_quote(key))),
            }
        }
        if tag.is_some() && branch.is_some() {
            return Err("branch conflicts with tag".to_owned());
        }
        match tag.or(branch) {
            Some(reference) => set_once(&mut self.reference, &reference, "ref"),
            None => Ok(()),
        }
    }

    /// The source that fetches it.
    pub(super) fn source(&self) -> GitSource {
        let url = split(&self.remote).or_else(|| split_url(&format!("https://{}", self.remote)));
        let (remote, identity, ssh) = match &url {
            Some(url) => {
                let identity = format!("{}{}", url.host, join_path(&["/", &url.path]));
                (url.bare.clone(), identity, (url.scheme == "ssh").then(GitSsh::default))
            }
            None => (self.remote.clone(), self.remote.clone(), None),
        };
        GitSource {
            remote,
            identity,
            reference: self.reference.clone(),
            subdir: self.subdir.clone(),
            keep_git_dir: self.keep_git_dir == Some(true),
            checksum: self.checksum.clone(),
            skip_submodules: self.submodules == Some(false),
            mtime: self.mtime.clone(),
            fetch_by_commit: self.fetch_by_commit,
            ssh,
        }
    }
}

fn prefixed(value: &str, prefix: &str) -> String {
    if value.starts_with(prefix) { value.to_owned() } else { format!("{prefix}{value}") }
}

fn set_once(slot: &mut String, value: &str, what: &str) -> Result<(), String> {
    if !slot.is_empty() && slot != value {
        return Err(format!("{what} conflicts: {} vs {}", go_quote(slot), go_quote(value)));
    }
    slot.clear();
    slot.push_str(value);
    Ok(())
}

/// A source as the image's history has it. BuildKit writes down the password that is in a URL, too; but images are published.
pub(super) fn without_login(source: &str) -> Cow<'_, str> {
    let Some((scheme, rest)) = source.split_once("://") else { return source.into() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..end].rsplit_once('@') {
        Some((user, host)) if user.contains(':') => {
            format!("{scheme}://xxxxx:xxxxx@{host}{}", &rest[end..]).into()
        }
        _ => source.into(),
    }
}

/// A page or file of a web server, which is no git repository.
pub(super) fn is_http(text: &str) -> bool {
    (text.starts_with("http://") || text.starts_with("https://")) && !is_git(text)
}

/// Whether it names a repository, be it well or badly.
pub(super) fn is_git(text: &str) -> bool {
    !matches!(parse(text), Ok(None))
}

/// A reference to a repository as its URL, `#` and what of it: one form for all that mean the same. `None` for what is no repository.
pub fn git_in_one_form(text: &str, with_subdir: bool) -> Option<String> {
    let GitReference { remote, reference, subdir, .. } = parse(text).ok().flatten()?;
    let subdir = if with_subdir { subdir } else { String::new() };
    let subdir = subdir.trim_matches('/');
    Some(match (reference.as_str(), subdir) {
        ("", "") => remote,
        (reference, "") => format!("{remote}#{reference}"),
        (reference, subdir) => format!("{remote}#{reference}:{subdir}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(text: &str) -> String {
        match parse(text) {
            Ok(None) => "no".to_owned(),
            Err(e) => e,
            Ok(Some(g)) => {
                let s = g.source();
                format!("{} {} {}#{}:{}", s.remote, s.identity, g.could_be_path, g.reference, g.subdir)
            }
        }
    }

    #[test]
    fn all_forms_of_a_reference_come_to_one() {
        for text in ["https://h/x.git#v1:a/b", "https://h/x.git?ref=v1&subdir=a/b"] {
            assert_eq!(git_in_one_form(text, true).as_deref(), Some("https://h/x.git#v1:a/b"), "{text}");
            assert_eq!(git_in_one_form(text, false).as_deref(), Some("https://h/x.git#v1"), "{text}");
        }
        assert_eq!(git_in_one_form("https://h/x.git", true).as_deref(), Some("https://h/x.git"));
        assert_eq!(git_in_one_form("https://h/x.tar", true), None);
    }

    #[test]
    fn references_are_told_from_urls_and_paths() {
        for (text, expected) in [
            ("./x", "no"),
            ("dir/file", "no"),
            ("https://example.com/x.tar.gz", "no"),
            ("ftp://example.com/x.git", "no"),
            ("https://example.com/a/b.git", "https://example.com/a/b.git example.com/a/b.git false#:"),
            (
                "https://example.com/b.git#v1:sub/../dir",
                "https://example.com/b.git example.com/b.git false#v1:dir",
            ),
            (
                "https://example.com/b.git?ref=v1&subdir=d",
                "https://example.com/b.git example.com/b.git false#v1:d",
            ),
            (
                "https://example.com/b.git?tag=v1",
                "https://example.com/b.git example.com/b.git false#refs/tags/v1:",
            ),
            ("https://u:p@example.com/b.git", "https://u:p@example.com/b.git example.com/b.git false#:"),
            ("github.com/a/b", "https://github.com/a/b github.com/a/b true#:"),
            ("git@github.com:a/b.git#main", "git@github.com:a/b.git github.com/a/b.git false#main:"),
            ("ssh://git@host:22/b", "ssh://git@host:22/b host:22/b false#:"),
            ("git://host/b", "git://host/b host/b false#:"),
            ("https://h/b.git?x=1", "unexpected query \"x\""),
            ("https://h/b.git?ref=a#b", "ref conflicts: \"b\" vs \"a\""),
            ("https://h/b.git?ref=a&ref=b", "query \"ref\" has multiple values"),
            ("https://h/b.git?ref=", "query \"ref\" has no value"),
            ("https://h/b.git?tag=a&branch=b", "branch conflicts with tag"),
        ] {
            assert_eq!(summary(text), expected, "{text}");
        }
    }

    #[test]
    fn a_reference_that_contradicts_itself_is_no_web_page() {
        for text in ["https://h/b.git?tag=a&branch=b", "https://h/b.git?nonsense=1", "git@h:b?ref="] {
            assert!(is_git(text) && !is_http(text), "{text}");
        }
        assert!(is_http("https://h/b?tag=a&branch=b") && !is_git("https://h/b?tag=a&branch=b"));
    }

    #[test]
    fn logins_are_not_written_down() {
        for (source, shown) in [
            ("https://u:p@h/a.git#main", "https://xxxxx:xxxxx@h/a.git#main"),
            ("https://user@h/a@b:c", "https://user@h/a@b:c"),
            ("git://u:p@h/a", "git://xxxxx:xxxxx@h/a"),
            ("ssh://git@h/a", "ssh://git@h/a"),
            ("ssh://u:p@h/a", "ssh://xxxxx:xxxxx@h/a"),
            ("https://h/a@b", "https://h/a@b"),
            ("git@h:a.git", "git@h:a.git"),
            ("a@b", "a@b"),
        ] {
            assert_eq!(without_login(source), shown);
        }
    }

    #[test]
    fn file_names_come_from_the_path_alone() {
        assert_eq!(url_file_name("https://h/a/b%20c.tar?x=/y").as_deref(), Some("b c.tar"));
        assert_eq!(url_file_name("https://h/"), None);
        assert_eq!(url_file_name("https://h"), None);
    }
}
