//! Who asks: credentials, and where they come from.

use std::{collections::BTreeMap, fmt};

use futures::future::BoxFuture;

/// A secret text. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps a text secret.
    pub fn new(s: impl Into<String>) -> Secret {
        Secret(s.into())
    }

    /// The text.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What a registry may be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A user name and password (or personal access token).
    Password {
        /// The name.
        username: String,
        /// The password.
        password: Secret,
    },
    /// An OAuth refresh token ("identity token" in Docker's config): exchanged at the token endpoint.
    IdentityToken(Secret),
    /// A bearer token for the registry itself, sent as it is.
    RegistryToken(Secret),
}

impl Credentials {
    /// Credentials as BuildKit's auth service gives them: an empty name means that the secret is an identity token.
    /// `None` when both are empty.
    pub fn from_pair(username: &str, secret: &str) -> Option<Credentials> {
        match (username, secret) {
            ("", "") => None,
            ("" | "<token>", token) => Some(Credentials::IdentityToken(Secret::new(token))),
            (name, password) => {
                Some(Credentials::Password { username: name.to_owned(), password: Secret::new(password) })
            }
        }
    }
}

/// A token that a token endpoint is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRequest {
    /// The registry's host.
    pub host: String,
    /// The token endpoint.
    pub realm: String,
    /// The service that it is for.
    pub service: String,
    /// The scopes, such as `repository:library/busybox:pull`.
    pub scopes: Vec<String>,
}

/// A bearer token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The token.
    pub token: Secret,
    /// Seconds that it lasts; 60 when the endpoint does not say.
    pub expires_in: u64,
}

/// A source's failure, in its own words (which must not contain the secret).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CredentialsError(pub String);

/// Where credentials come from: a client's session, a request header, a file.
///
/// `host` is the network host that is about to be asked: `registry-1.docker.io` for Docker Hub (see
/// [`is_docker_hub`]), otherwise the reference's domain with its port, or a mirror's host.
pub trait CredentialSource: Send + Sync {
    /// The credentials for a host; `None` to ask as a stranger.
    fn credentials<'a>(
        &'a self,
        host: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credentials>, CredentialsError>>;

    /// A token, for sources that talk to the token endpoint themselves (a session whose client keeps the password to
    /// itself). `None`, the default, lets the registry client do it with [`CredentialSource::credentials`].
    fn token<'a>(
        &'a self,
        request: &'a TokenRequest,
    ) -> BoxFuture<'a, Result<Option<Token>, CredentialsError>> {
        let _ = request;
        Box::pin(async { Ok(None) })
    }
}

/// No credentials for anybody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Anonymous;

impl CredentialSource for Anonymous {
    fn credentials<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<Credentials>, CredentialsError>> {
        Box::pin(async { Ok(None) })
    }
}

/// Whether a host, or a key of Docker's config file, means Docker Hub.
pub fn is_docker_hub(host: &str) -> bool {
    matches!(bare_host(host), "docker.io" | "index.docker.io" | "registry-1.docker.io")
}

/// Credentials by host, as in Docker's config file and `X-Registry-Config`; `X-Registry-Auth` is one entry, for the
/// domain of the reference that its request is about.
///
/// Keys may be hosts or URLs (`https://index.docker.io/v1/`); all of Docker Hub's names are one. A mirror gets only
/// what is there under its own host.
#[derive(Debug, Clone, Default)]
pub struct StaticCredentials {
    by_host: BTreeMap<String, Credentials>,
}

impl StaticCredentials {
    /// None yet.
    pub fn new() -> StaticCredentials {
        StaticCredentials::default()
    }

    /// Adds credentials for a host or URL.
    #[must_use]
    pub fn with(mut self, host: &str, credentials: Credentials) -> StaticCredentials {
        self.by_host.insert(canonical(host).to_owned(), credentials);
        self
    }
}

impl CredentialSource for StaticCredentials {
    fn credentials<'a>(
        &'a self,
        host: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credentials>, CredentialsError>> {
        let found = self.by_host.get(canonical(host)).cloned();
        Box::pin(async move { Ok(found) })
    }
}

fn canonical(host: &str) -> &str {
    if is_docker_hub(host) { "docker.io" } else { bare_host(host) }
}

/// Cuts scheme and path off a key of Docker's config file.
fn bare_host(key: &str) -> &str {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    rest.split('/').next().unwrap_or(rest)
}
