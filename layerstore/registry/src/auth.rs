//! Authorization: answers challenges, and keeps tokens per host and scope.
//!
//! One `Authorizer` serves one source of credentials, so what one client may read another never gets by a shared token.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::Engine as _;
use bytes::Bytes;
use parking_lot::Mutex;
use reqwest::{
    Method,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue},
};
use serde::Deserialize;
use url::Url;

use crate::{
    CredentialSource, Credentials, RegistryError, Secret, ServerMessage, TokenRequest,
    challenge::{self, Challenge},
    client::{Subject, failure_message},
    config::{Endpoint, is_loopback},
    transport::{Body, Topic, Transport},
};

/// Longest answer of a token endpoint.
const MAX_TOKEN_ANSWER: u64 = 1 << 20;
/// Tokens and hosts kept before all are forgotten.
const MAX_KEPT: usize = 512;
/// What token endpoints are told that we are.
const CLIENT_ID: &str = "lapstrake";

pub(crate) struct Authorizer {
    source: Arc<dyn CredentialSource>,
    hosts: Mutex<HashMap<String, HostAuth>>,
    tokens: Mutex<HashMap<HostScopes, SharedSlot>>,
}

/// A host and the scopes asked of it.
type HostScopes = (String, Vec<String>);
type SharedSlot = Arc<tokio::sync::Mutex<Slot>>;

/// What a host wants.
#[derive(Clone)]
enum HostAuth {
    /// The same header always: Basic, or a token for the registry itself.
    Fixed(HeaderValue),
    /// A token per scope.
    Bearer { realm: Url, service: String },
}

/// The token of one host and scope. Locked while it is fetched, so that it is fetched once.
#[derive(Default)]
struct Slot {
    /// Scopes that the registry's challenge named besides ours (a mirror's own name of the repository).
    extra: Vec<String>,
    token: Option<(HeaderValue, Instant)>,
}

impl Authorizer {
    pub(crate) fn new(source: Arc<dyn CredentialSource>) -> Authorizer {
        Authorizer { source, hosts: Mutex::new(HashMap::new()), tokens: Mutex::new(HashMap::new()) }
    }

    pub(crate) fn source(&self) -> Arc<dyn CredentialSource> {
        Arc::clone(&self.source)
    }

    /// The header for a request, if the host is known to want one.
    pub(crate) async fn header(
        &self,
        transport: &Transport,
        endpoint: &Endpoint,
        subject: &Subject<'_>,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let known = self.hosts.lock().get(&endpoint.host).cloned();
        let (realm, service) = match known {
            None => return Ok(None),
            Some(HostAuth::Fixed(header)) => return Ok(Some(header)),
            Some(HostAuth::Bearer { realm, service }) => (realm, service),
        };
        let slot = self.slot(endpoint, subject);
        let mut slot = slot.lock().await;
        if let Some((header, expires)) = &slot.token
            && Instant::now() < *expires
        {
            return Ok(Some(header.clone()));
        }
        let mut scopes = subject.scopes.clone();
        scopes.extend(slot.extra.iter().filter(|s| !subject.scopes.contains(s)).cloned());
        let fresh = self.fetch(transport, endpoint, subject, realm, service, scopes).await?;
        let header = fresh.0.clone();
        slot.token = Some(fresh);
        Ok(Some(header))
    }

    /// Learns from a 401. `Ok(true)`: ask again. `sent` is the header that was refused.
    pub(crate) async fn challenged(
        &self,
        endpoint: &Endpoint,
        scheme: &str,
        subject: &Subject<'_>,
        headers: &HeaderMap,
        sent: Option<&HeaderValue>,
    ) -> Result<bool, RegistryError> {
        let challenges = challenge::parse(headers);
        let by_scheme = |s: &str| challenges.iter().find(|c| c.scheme == s);
        if let Some(c) = by_scheme("bearer").filter(|c| c.param("realm").is_some()) {
            return self.bearer(endpoint, scheme, subject, c, sent).await;
        }
        if by_scheme("basic").is_some() {
            if sent.is_some() {
                return Ok(false);
            }
            return match self.credentials(endpoint).await? {
                Some(Credentials::Password { username, password }) => {
                    self.remember(endpoint, HostAuth::Fixed(basic(&username, &password)));
                    Ok(true)
                }
                Some(Credentials::RegistryToken(token)) => {
                    self.remember(endpoint, HostAuth::Fixed(bearer_header(endpoint, &token)?));
                    Ok(true)
                }
                // An identity token has no use where there is no token endpoint.
                Some(Credentials::IdentityToken(_)) | None => Err(no_credentials(endpoint, subject)),
            };
        }
        Ok(false)
    }

    async fn bearer(
        &self,
        endpoint: &Endpoint,
        scheme: &str,
        subject: &Subject<'_>,
        c: &Challenge,
        sent: Option<&HeaderValue>,
    ) -> Result<bool, RegistryError> {
        if matches!(self.hosts.lock().get(&endpoint.host), Some(HostAuth::Fixed(_))) && sent.is_some() {
            return Ok(false);
        }
        if let Some(Credentials::RegistryToken(token)) = self.credentials(endpoint).await? {
            self.remember(endpoint, HostAuth::Fixed(bearer_header(endpoint, &token)?));
            return Ok(true);
        }
        let realm = realm(endpoint, scheme, c.param("realm").unwrap_or_default())?;
        let service = c.param("service").unwrap_or_default().to_owned();
        self.remember(endpoint, HostAuth::Bearer { realm, service });
        let slot = self.slot(endpoint, subject);
        let mut slot = slot.lock().await;
        slot.extra = c.param("scope").unwrap_or_default().split_whitespace().map(str::to_owned).collect();
        // Another task may have fetched a new token meanwhile; only the refused one is dropped.
        if slot.token.as_ref().is_some_and(|(header, _)| Some(header) == sent) {
            slot.token = None;
        }
        Ok(true)
    }

    fn remember(&self, endpoint: &Endpoint, auth: HostAuth) {
        let mut hosts = self.hosts.lock();
        if hosts.len() >= MAX_KEPT {
            hosts.clear();
        }
        hosts.insert(endpoint.host.clone(), auth);
    }

    fn slot(&self, endpoint: &Endpoint, subject: &Subject<'_>) -> SharedSlot {
        let mut tokens = self.tokens.lock();
        if tokens.len() >= MAX_KEPT {
            tokens.clear();
        }
        tokens.entry((endpoint.host.clone(), subject.scopes.clone())).or_default().clone()
    }

    async fn credentials(&self, endpoint: &Endpoint) -> Result<Option<Credentials>, RegistryError> {
        let found = self.source.credentials(&endpoint.host).await;
        found.map_err(|source| RegistryError::Credentials { host: endpoint.host.clone(), source })
    }

    async fn fetch(
        &self,
        transport: &Transport,
        endpoint: &Endpoint,
        subject: &Subject<'_>,
        realm: Url,
        service: String,
        scopes: Vec<String>,
    ) -> Result<(HeaderValue, Instant), RegistryError> {
        let host = &endpoint.host;
        let request = TokenRequest { host: host.clone(), realm: realm.to_string(), service, scopes };
        let from_source = self.source.token(&request).await;
        let from_source =
            from_source.map_err(|source| RegistryError::Credentials { host: host.clone(), source })?;
        if let Some(t) = from_source {
            return Ok((bearer_header(endpoint, &t.token)?, expiry(t.expires_in)));
        }
        let credentials = self.credentials(endpoint).await?;
        let (method, url, headers, body) = exchange(realm, &request, credentials.as_ref());
        let what = format!("token for {}", subject.what);
        // Errors name the registry; the token endpoint's host is in `what` only if it is another.
        let topic = Topic { host, what: &what };
        let settings = authority(&url);
        let answer = transport.round_trip(topic, &settings, method, url, headers, body).await?;
        let status = answer.status();
        let headers = answer.headers().clone();
        let bytes = transport.read_all(topic, answer, MAX_TOKEN_ANSWER).await?;
        if !status.is_success() {
            let message = failure_message(status, &headers, &bytes);
            let (host, what) = (host.clone(), subject.what.clone());
            return Err(match (status.as_u16(), credentials.is_some()) {
                (401 | 403, true) => RegistryError::Unauthorized { host, what, message },
                (401 | 403, false) => RegistryError::Denied {
                    host,
                    repository: subject.reference.familiar_name(),
                    access: subject.access,
                    message,
                },
                _ => RegistryError::Status { host, what: format!("token for {what}"), message },
            });
        }
        #[derive(Deserialize)]
        struct Answer {
            #[serde(default)]
            token: Option<String>,
            #[serde(default)]
            access_token: Option<String>,
            #[serde(default)]
            expires_in: Option<u64>,
        }
        let bad = |reason| RegistryError::Auth { host: host.clone(), reason };
        // The answer is not quoted in errors: it may hold a token.
        let answer: Answer =
            serde_json::from_slice(&bytes).map_err(|_| bad("the token is not valid JSON"))?;
        let token = answer.token.filter(|t| !t.is_empty()).or(answer.access_token).filter(|t| !t.is_empty());
        let token = token.ok_or_else(|| bad("the token endpoint gave no token"))?;
        Ok((bearer_header(endpoint, &Secret::new(token))?, expiry(answer.expires_in.unwrap_or(60))))
    }
}

/// The token specification's two ways: `GET` with Basic, and OAuth's `POST` for refresh tokens.
fn exchange(mut realm: Url, r: &TokenRequest, c: Option<&Credentials>) -> (Method, Url, HeaderMap, Body) {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    if let Some(Credentials::IdentityToken(token)) = c {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "refresh_token").append_pair("refresh_token", token.expose());
        form.append_pair("service", &r.service).append_pair("client_id", CLIENT_ID);
        form.append_pair("scope", &r.scopes.join(" "));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        return (Method::POST, realm, headers, Body::Bytes(Bytes::from(form.finish())));
    }
    {
        let mut query = realm.query_pairs_mut();
        if !r.service.is_empty() {
            query.append_pair("service", &r.service);
        }
        for scope in &r.scopes {
            query.append_pair("scope", scope);
        }
        if let Some(Credentials::Password { username, password }) = c {
            query.append_pair("account", username).append_pair("client_id", CLIENT_ID);
            headers.insert(AUTHORIZATION, basic(username, password));
        }
    }
    (Method::GET, realm, headers, Body::Empty)
}

/// Credentials go where the registry says, but never in the clear unless the registry itself is spoken to so, or the
/// endpoint is this machine.
fn realm(endpoint: &Endpoint, scheme: &str, realm: &str) -> Result<Url, RegistryError> {
    let bad = |reason| RegistryError::Auth { host: endpoint.host.clone(), reason };
    let url = Url::parse(realm).map_err(|_| bad("the realm of its challenge is not a URL"))?;
    match url.scheme() {
        "https" => {}
        "http" if scheme == "http" || url.host_str().is_some_and(is_loopback) => {}
        "http" => return Err(bad("its token endpoint is plain HTTP")),
        _ => return Err(bad("the realm of its challenge is not an HTTP URL")),
    }
    if url.host_str().is_none() || !url.username().is_empty() || url.password().is_some() {
        return Err(bad("the realm of its challenge is not a plain HTTP URL"));
    }
    Ok(url)
}

fn no_credentials(endpoint: &Endpoint, subject: &Subject<'_>) -> RegistryError {
    RegistryError::Unauthorized {
        host: endpoint.host.clone(),
        what: subject.what.clone(),
        message: ServerMessage {
            status: 401,
            code: String::new(),
            message: "no basic auth credentials".to_owned(),
        },
    }
}

fn basic(username: &str, password: &Secret) -> HeaderValue {
    let pair = format!("{username}:{}", password.expose());
    let text = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair));
    let mut value = HeaderValue::try_from(text).expect("base64 is valid in a header");
    value.set_sensitive(true);
    value
}

fn bearer_header(endpoint: &Endpoint, token: &Secret) -> Result<HeaderValue, RegistryError> {
    let mut value =
        HeaderValue::try_from(format!("Bearer {}", token.expose())).map_err(|_| RegistryError::Auth {
            host: endpoint.host.clone(),
            reason: "the token has characters that no token has",
        })?;
    value.set_sensitive(true);
    Ok(value)
}

/// A little before the token ends; at most a day, whatever the endpoint says.
fn expiry(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds.clamp(20, 86_400) - 10)
}

/// A URL's host and port, as a registry's settings are keyed.
pub(crate) fn authority(url: &Url) -> String {
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (Some(host), None) => host.to_owned(),
        (None, _) => String::new(),
    }
}
