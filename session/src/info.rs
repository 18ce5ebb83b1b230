//! What a client says about a session when it opens one.

use std::{collections::BTreeSet, fmt, time::Duration};

use http::HeaderMap;

use crate::Error;

const HEADER_ID: &str = "x-docker-expose-session-uuid";
const HEADER_NAME: &str = "x-docker-expose-session-name";
const HEADER_SHARED_KEY: &str = "x-docker-expose-session-sharedkey";
const HEADER_METHOD: &str = "x-docker-expose-session-grpc-method";
const HEADER_HEALTH: &str = "x-buildkit-session-health-custom-timeout";

/// A session's id, chosen by the client.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(String);

impl SessionId {
    /// The id in `text`; `None` when empty. A prefix up to a colon is dropped: BuildKit's clients write `name:id` where
    /// one session serves vertices that must not be merged, and look both up as `id`.
    pub fn parse(text: &str) -> Option<Self> {
        let id = match text.split_once(':') {
            Some((_, rest)) if !rest.is_empty() => rest,
            _ => text,
        };
        if id.is_empty() { None } else { Some(Self(id.to_owned())) }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A session as its client describes it in the headers of `POST /session` (or the metadata of `Control.Session`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionInfo {
    /// The id by which builds name the session.
    pub id: SessionId,
    /// What the client calls it (older clients: the base name of the context's directory).
    pub name: Option<String>,
    /// Says which contexts are the same directory between sessions: hash of path and node.
    pub shared_key: String,
    methods: BTreeSet<String>,
    /// How the session's life is watched.
    pub health: HealthCheck,
}

impl SessionInfo {
    /// A session with an id and nothing else; methods are added by [`with_methods`](Self::with_methods).
    pub fn new(id: SessionId) -> Self {
        Self {
            id,
            name: None,
            shared_key: String::new(),
            methods: BTreeSet::new(),
            health: HealthCheck::default(),
        }
    }

    /// Adds gRPC paths (`/service/method`, case does not matter) that the client offers.
    pub fn with_methods<I: IntoIterator<Item = S>, S: AsRef<str>>(mut self, methods: I) -> Self {
        self.methods.extend(methods.into_iter().map(|m| m.as_ref().to_ascii_lowercase()));
        self
    }

    /// Reads the headers of a session request.
    ///
    /// # Errors
    /// [`Error::BadHeader`] when the id is missing or a header is not text.
    pub fn from_headers(headers: &HeaderMap) -> Result<Self, Error> {
        let id = text(headers, HEADER_ID)?
            .filter(|id| !id.is_empty())
            .map(|id| SessionId(id.to_owned()))
            .ok_or(Error::BadHeader { header: HEADER_ID })?;
        let methods: Result<Vec<&str>, Error> = headers
            .get_all(HEADER_METHOD)
            .iter()
            .map(|v| v.to_str().map_err(|_| Error::BadHeader { header: HEADER_METHOD }))
            .collect();
        let name = headers.get(HEADER_NAME).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
        Ok(Self {
            id,
            name,
            shared_key: text(headers, HEADER_SHARED_KEY)?.unwrap_or_default().to_owned(),
            methods: methods?.into_iter().map(str::to_ascii_lowercase).collect(),
            health: HealthCheck::from_header(text(headers, HEADER_HEALTH)?),
        })
    }

    /// Whether the client offers the gRPC path `/service/method`.
    pub fn supports(&self, method: &str) -> bool {
        self.methods.contains(&method.to_ascii_lowercase())
    }

    /// Whether a client of this age decodes percent-encoded metadata. BuildKit's clients do since June 2023 (0.12); those that still
    /// send a session name may be older, and take UTF-8 as it is (so do newer ones).
    pub(crate) fn takes_raw_utf8(&self) -> bool {
        self.name.is_some()
    }
}

fn text<'a>(headers: &'a HeaderMap, header: &'static str) -> Result<Option<&'a str>, Error> {
    headers.get(header).map(|v| v.to_str().map_err(|_| Error::BadHeader { header })).transpose()
}

/// How a session's life is watched: a `grpc.health.v1.Health/Check` every `interval`; the session ends after `failures`
/// checks in a row have failed or taken longer than `timeout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthCheck {
    /// Time between checks.
    pub interval: Duration,
    /// Time an answer may take (more, when the last one was slow: half as long again as it took).
    pub timeout: Duration,
    /// Failures in a row that end the session.
    pub failures: u32,
}

impl Default for HealthCheck {
    /// BuildKit's numbers: they tolerate a client whose link is saturated by its own context.
    fn default() -> Self {
        Self { interval: Duration::from_secs(5), timeout: Duration::from_secs(15), failures: 2 }
    }
}

impl HealthCheck {
    /// A client may ask for another rhythm, in milliseconds, never below a second.
    fn from_header(value: Option<&str>) -> Self {
        match value.and_then(|v| v.parse::<u32>().ok()) {
            Some(ms) if ms > 0 => {
                let period = Duration::from_millis(ms.into()).max(Duration::from_secs(1));
                Self { interval: period, timeout: period, failures: 1 }
            }
            _ => Self::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn headers_of_docker_20_10_are_read() {
        let info = SessionInfo::from_headers(&headers(&[
            ("X-Docker-Expose-Session-Uuid".to_ascii_lowercase().leak(), "abc"),
            (HEADER_NAME, "ctx"),
            (HEADER_SHARED_KEY, "key"),
            (HEADER_METHOD, "/moby.filesync.v1.FileSync/DiffCopy"),
            (HEADER_METHOD, "/grpc.health.v1.Health/Check"),
        ]))
        .unwrap();
        assert_eq!(info.id.as_str(), "abc");
        assert_eq!(info.name.as_deref(), Some("ctx"));
        assert_eq!(info.shared_key, "key");
        assert!(info.supports("/moby.filesync.v1.FileSync/diffcopy"));
        assert!(!info.supports("/moby.filesync.v1.FileSend/DiffCopy"));
    }

    #[test]
    fn missing_or_empty_id_is_refused() {
        for h in [headers(&[]), headers(&[(HEADER_ID, "")])] {
            assert!(matches!(SessionInfo::from_headers(&h), Err(Error::BadHeader { header: HEADER_ID })));
        }
    }

    #[test]
    fn id_prefix_up_to_a_colon_is_dropped() {
        assert_eq!(SessionId::parse("local:abc").unwrap().as_str(), "abc");
        assert_eq!(SessionId::parse("abc:").unwrap().as_str(), "abc:");
        assert_eq!(SessionId::parse("abc").unwrap().as_str(), "abc");
        assert_eq!(SessionId::parse(""), None);
    }

    #[test]
    fn health_rhythm_may_be_asked_for_but_not_below_a_second() {
        assert_eq!(HealthCheck::from_header(Some("10")).interval, Duration::from_secs(1));
        assert_eq!(HealthCheck::from_header(Some("2500")).timeout, Duration::from_millis(2500));
        assert_eq!(HealthCheck::from_header(Some("-1")), HealthCheck::default());
        assert_eq!(HealthCheck::from_header(Some("x")), HealthCheck::default());
    }
}
