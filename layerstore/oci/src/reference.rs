//! Image references, with the grammar and defaults of distribution's `reference` package.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Digest, OciError};

const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DOMAIN: &str = "index.docker.io";
const OFFICIAL: &str = "library/";
const DEFAULT_TAG: &str = "latest";
const MAX_PATH: usize = 255;

/// A normalised image name: `busybox` is `docker.io/library/busybox`, with tag and digest as given (or absent).
///
/// Displays and serialises in full (`docker.io/library/busybox:1.36`); [`Reference::familiar`] is what users see.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: Arc<str>,
    path: Arc<str>,
    tag: Option<Arc<str>>,
    digest: Option<Digest>,
}

/// What a user may name an image by where ids are allowed too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnyReference {
    /// A name.
    Name(Reference),
    /// A digest: `sha256:…`, or 64 hex characters.
    Digest(Digest),
}

impl Reference {
    /// Parses a familiar or full name. Errors are in distribution's words.
    pub fn parse(s: &str) -> Result<Reference, OciError> {
        if is_identifier(s) {
            return Err(OciError::ReferenceIsId(s.to_owned()));
        }
        let (domain, remainder) = split_domain(s);
        let repository = remainder.split(':').next().unwrap_or_default();
        if repository.to_lowercase() != repository {
            return Err(OciError::ReferenceUppercase { repository: repository.to_owned() });
        }
        let format = || OciError::ReferenceFormat(s.to_owned());

        let (rest, digest) = match remainder.split_once('@') {
            None => (remainder.as_str(), None),
            Some((rest, digest)) if is_digest(digest) => (rest, Some(digest)),
            Some(_) => return Err(format()),
        };
        // A colon after the last slash begins the tag; a path has none.
        let (path, tag) = match rest.split_once(':') {
            None => (rest, None),
            Some((path, tag)) if is_tag(tag) => (path, Some(tag)),
            Some(_) => return Err(format()),
        };
        if !is_domain(domain) || !is_path(path) {
            return Err(format());
        }
        if path.len() > MAX_PATH {
            return Err(OciError::ReferenceTooLong(s.to_owned()));
        }
        Ok(Reference {
            domain: domain.into(),
            path: path.into(),
            tag: tag.map(Into::into),
            digest: digest.map(Digest::parse).transpose()?,
        })
    }

    /// Parses a name or an id, as `docker inspect` and friends accept.
    pub fn parse_any(s: &str) -> Result<AnyReference, OciError> {
        if is_identifier(s) {
            return Digest::parse(&format!("sha256:{s}")).map(AnyReference::Digest);
        }
        if let Ok(d) = Digest::parse(s) {
            return Ok(AnyReference::Digest(d));
        }
        Reference::parse(s).map(AnyReference::Name)
    }

    /// The registry: host and optional port, `docker.io` for the Hub.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry, such as `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Registry and repository, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The tag, if given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if given.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Neither tag nor digest.
    pub fn is_name_only(&self) -> bool {
        self.tag.is_none() && self.digest.is_none()
    }

    /// As users write it: without `docker.io/` and `library/`, with tag and digest as given. Reads as the same reference.
    pub fn familiar(&self) -> String {
        self.with_suffix(self.familiar_name().to_owned())
    }

    /// [`Reference::familiar`] without tag and digest.
    pub fn familiar_name(&self) -> String {
        if &*self.domain != DEFAULT_DOMAIN {
            return self.name();
        }
        let short = match self.path.strip_prefix(OFFICIAL) {
            Some(rest) if !rest.contains('/') => rest,
            _ => &*self.path,
        };
        // `docker.io/ghcr.io/x` is not `ghcr.io/x`, and a name of 64 hex characters would be an id.
        let (domain, path) = split_domain(short);
        if is_identifier(short) || domain != DEFAULT_DOMAIN || path != *self.path {
            return self.name();
        }
        short.to_owned()
    }

    /// The same with tag `latest` if it has neither tag nor digest.
    #[must_use]
    pub fn with_default_tag(mut self) -> Reference {
        if self.is_name_only() {
            self.tag = Some(DEFAULT_TAG.into());
        }
        self
    }

    /// The same with this tag.
    pub fn with_tag(mut self, tag: &str) -> Result<Reference, OciError> {
        if !is_tag(tag) {
            return Err(OciError::TagFormat(tag.to_owned()));
        }
        self.tag = Some(tag.into());
        Ok(self)
    }

    /// The same with this digest.
    #[must_use]
    pub fn with_digest(mut self, digest: Digest) -> Reference {
        self.digest = Some(digest);
        self
    }

    /// The same without tag and digest.
    #[must_use]
    pub fn trimmed(mut self) -> Reference {
        self.tag = None;
        self.digest = None;
        self
    }

    fn with_suffix(&self, mut s: String) -> String {
        if let Some(tag) = &self.tag {
            s.push(':');
            s.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            s.push('@');
            s.push_str(digest.as_str());
        }
        s
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_suffix(self.name()))
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Reference {
    type Err = OciError;
    fn from_str(s: &str) -> Result<Reference, OciError> {
        Reference::parse(s)
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Reference, D::Error> {
        let s = String::deserialize(d)?;
        Reference::parse(&s).map_err(serde::de::Error::custom)
    }
}

/// The first component is a registry if it could not be a repository's: it has a dot, a port or an upper-case
/// letter, or is `localhost`.
fn split_domain(s: &str) -> (&str, String) {
    let (domain, remainder) = match s.split_once('/') {
        None => (DEFAULT_DOMAIN, s),
        Some((LEGACY_DOMAIN, rest)) => (DEFAULT_DOMAIN, rest),
        Some((first, rest))
            if first == "localhost" || first.contains(['.', ':']) || first.to_lowercase() != first =>
        {
            (first, rest)
        }
        Some(_) => (DEFAULT_DOMAIN, s),
    };
    if domain == DEFAULT_DOMAIN && !remainder.contains('/') {
        return (domain, format!("{OFFICIAL}{remainder}"));
    }
    (domain, remainder.to_owned())
}

fn is_identifier(s: &str) -> bool {
    s.len() == 64 && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_tag(s: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = s.as_bytes();
    matches!(bytes.len(), 1..=128)
        && word(bytes[0])
        && bytes.iter().all(|&b| word(b) || matches!(b, b'.' | b'-'))
}

/// The reference grammar's digest: wider than [`Digest`], whose own error then says what is wrong.
fn is_digest(s: &str) -> bool {
    let Some((alg, hex)) = s.split_once(':') else { return false };
    alg.split(['-', '_', '+', '.']).all(|c| {
        c.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
            && c.bytes().all(|b| b.is_ascii_alphanumeric())
    }) && hex.len() >= 32
        && hex.bytes().all(|b| b.is_ascii_hexdigit())
}

fn is_domain(s: &str) -> bool {
    let (host, port) = if let Some(rest) = s.strip_prefix('[') {
        let Some((v6, after)) = rest.split_once(']') else { return false };
        if v6.is_empty() || !v6.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') {
            return false;
        }
        match after.strip_prefix(':') {
            _ if after.is_empty() => return true,
            Some(port) => return is_port(port),
            None => return false,
        }
    } else {
        match s.split_once(':') {
            None => (s, None),
            Some((host, port)) => (host, Some(port)),
        }
    };
    port.is_none_or(is_port)
        && host.split('.').all(|c| {
            !c.is_empty()
                && !c.starts_with('-')
                && !c.ends_with('-')
                && c.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
}

fn is_port(s: &str) -> bool {
    !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit())
}

fn is_path(s: &str) -> bool {
    s.split('/').all(is_path_component)
}

/// Lower-case alphanumerics, separated by one `.`, one or two `_`, or any number of `-`.
fn is_path_component(s: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let (Some(first), Some(last)) = (s.bytes().next(), s.bytes().last()) else { return false };
    if !alnum(first) || !alnum(last) {
        return false;
    }
    s.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|sep| matches!(sep, "" | "." | "_" | "__") || sep.bytes().all(|b| b == b'-'))
}
