//! The client, and how one of its requests becomes a response: scheme, authorization, redirects, retries.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use lapstrake_layerstore_oci::{Digest, Reference};
use lapstrake_layerstore_store::ContentStore;
use parking_lot::Mutex;
use reqwest::{
    Method, Response, StatusCode,
    header::{AUTHORIZATION, HeaderMap, LOCATION, RETRY_AFTER},
};
use serde::Deserialize;
use url::Url;

use crate::{
    Access, Anonymous, ClientOptions, CredentialSource, RegistryConfig, RegistryError, ServerMessage,
    auth::{Authorizer, authority},
    challenge,
    config::Endpoint,
    transport::{Body, Topic, Transport},
};

/// Longest error document read.
const MAX_ERROR_BODY: u64 = 64 << 10;
/// Longest message of a registry that is repeated.
const MAX_MESSAGE: usize = 512;
/// Redirects followed.
const MAX_REDIRECTS: usize = 10;

/// A registry client. Cheap to clone; clones share connections and downloads.
///
/// Create one per daemon, and one more per set of credentials with [`RegistryClient::with_credentials`].
#[derive(Clone)]
pub struct RegistryClient {
    pub(crate) shared: Arc<Shared>,
    pub(crate) auth: Arc<Authorizer>,
}

pub(crate) struct Shared {
    pub(crate) config: Arc<RegistryConfig>,
    pub(crate) options: Arc<ClientOptions>,
    pub(crate) transport: Transport,
    pub(crate) flights: Flights,
}

impl std::fmt::Debug for RegistryClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryClient").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

/// What a request is about: for its errors, its token's scope, and its error wording.
#[derive(Debug, Clone)]
pub(crate) struct Subject<'a> {
    pub(crate) reference: &'a Reference,
    /// `manifest for busybox:1`, `blob sha256:… of busybox`.
    pub(crate) what: String,
    pub(crate) access: Access,
    /// Sorted.
    pub(crate) scopes: Vec<String>,
}

impl<'a> Subject<'a> {
    pub(crate) fn new(reference: &'a Reference, access: Access, what: String) -> Subject<'a> {
        let actions = match access {
            Access::Pull => "pull",
            Access::Push => "pull,push",
        };
        let scopes = vec![format!("repository:{}:{actions}", reference.path())];
        Subject { reference, what, access, scopes }
    }

    pub(crate) fn blob(reference: &'a Reference, access: Access, digest: &Digest) -> Subject<'a> {
        Subject::new(reference, access, format!("blob {digest} of {}", reference.familiar_name()))
    }
}

/// Where a request goes.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// Under the endpoint's API prefix, with a query.
    Api(String, Vec<(&'static str, String)>),
    /// A whole URL that the registry gave.
    Url(Url),
}

/// A request that can be sent more than once.
pub(crate) struct Request<'a> {
    pub(crate) method: Method,
    pub(crate) target: Target,
    pub(crate) headers: HeaderMap,
    pub(crate) body: &'a (dyn Fn() -> Body + Sync),
}

pub(crate) fn no_body() -> Body {
    Body::Empty
}

impl RegistryClient {
    /// A client that asks as a stranger.
    pub fn new(config: RegistryConfig, options: ClientOptions) -> RegistryClient {
        let (config, options) = (Arc::new(config), Arc::new(options));
        let transport = Transport::new(config.clone(), options.clone());
        RegistryClient {
            shared: Arc::new(Shared { config, options, transport, flights: Flights::default() }),
            auth: Arc::new(Authorizer::new(Arc::new(Anonymous))),
        }
    }

    /// The same client for other credentials: it shares connections and downloads, but no tokens.
    pub fn with_credentials(&self, source: Arc<dyn CredentialSource>) -> RegistryClient {
        RegistryClient { shared: self.shared.clone(), auth: Arc::new(Authorizer::new(source)) }
    }

    /// The same client with one registry's TLS not verified, and plain HTTP allowed there (BuildKit's `registry.insecure`). It shares nothing
    /// but credentials.
    pub fn with_insecure(&self, domain: &str) -> RegistryClient {
        let mut config = RegistryConfig::clone(&self.shared.config);
        let host = config.hosts.entry(domain.to_owned()).or_default();
        (host.http, host.insecure) = (Some(true), Some(true));
        let (config, options) = (Arc::new(config), Arc::clone(&self.shared.options));
        let transport = Transport::new(config.clone(), options.clone());
        let shared = Shared { config, options, transport, flights: Flights::default() };
        RegistryClient { shared: Arc::new(shared), auth: Arc::new(Authorizer::new(self.auth.source())) }
    }

    /// Asks a registry (`docker.io`, `localhost:5000`) whether it accepts the credentials, as `docker login` does.
    pub async fn check_credentials(&self, domain: &str) -> Result<(), RegistryError> {
        let reference = Reference::parse(&format!("{domain}/x"))?;
        let endpoint = self.shared.config.registry_endpoint(reference.domain());
        let subject = Subject {
            reference: &reference,
            what: "login".to_owned(),
            access: Access::Pull,
            scopes: Vec::new(),
        };
        let request = Request {
            method: Method::GET,
            target: Target::Api("/".to_owned(), Vec::new()),
            headers: HeaderMap::new(),
            body: &no_body,
        };
        let response = self.send(&endpoint, &subject, &request).await?;
        if response.status().is_success() {
            Ok(())
        } else {
            Err(self.failure(&endpoint, &subject, response).await)
        }
    }

    /// Sends a request until it has an answer other than "try again". The answer may be an error status.
    pub(crate) async fn send(
        &self,
        endpoint: &Endpoint,
        subject: &Subject<'_>,
        request: &Request<'_>,
    ) -> Result<Response, RegistryError> {
        let options = &self.shared.options;
        let mut attempt = 1;
        loop {
            let result = self.exchange(endpoint, subject, request).await;
            let asked = match &result {
                Ok(r) if is_retryable(r.status().as_u16()) => retry_after(r.headers()),
                Err(e) if e.is_transient() => None,
                _ => return result,
            };
            if attempt >= options.max_attempts {
                return result;
            }
            let wait = options.backoff_before(attempt, asked);
            match result {
                Ok(r) => {
                    tracing::debug!(host = endpoint.host, what = subject.what, status = %r.status(), ?wait, "retrying")
                }
                Err(e) => tracing::debug!(error = %e, ?wait, "retrying"),
            }
            tokio::time::sleep(wait).await;
            attempt += 1;
        }
    }

    /// One answer: falls back to plain HTTP where allowed, and answers one challenge. For bodies that cannot be sent
    /// again, where [`RegistryClient::send`] would.
    pub(crate) async fn exchange(
        &self,
        endpoint: &Endpoint,
        subject: &Subject<'_>,
        request: &Request<'_>,
    ) -> Result<Response, RegistryError> {
        let transport = &self.shared.transport;
        let topic = Topic { host: &endpoint.host, what: &subject.what };
        let mut challenged = false;
        loop {
            let scheme = transport.scheme(endpoint);
            let header = self.auth.header(transport, endpoint, subject).await?;
            let base = base_url(endpoint, scheme)?;
            let mut url = match &request.target {
                Target::Api(path, query) => api_url(&base, endpoint, path, query),
                Target::Url(url) => url.clone(),
            };
            let mut redirects = 0;
            let response = loop {
                let own = url.origin() == base.origin();
                let mut headers = request.headers.clone();
                // Authorization is for the registry, never for where it sends us.
                if let Some(header) = header.as_ref().filter(|_| own) {
                    headers.insert(AUTHORIZATION, header.clone());
                }
                let settings = if own { endpoint.config_key.clone() } else { authority(&url) };
                let (method, body) = (request.method.clone(), (request.body)());
                let response =
                    transport.round_trip(topic, &settings, method.clone(), url.clone(), headers, body).await;
                let follow = matches!(&response, Ok(r) if is_redirect(r.status()))
                    && matches!(method, Method::GET | Method::HEAD);
                match response {
                    Ok(r) if follow => {
                        url = redirect_target(topic, &url, &r, redirects)?;
                        redirects += 1;
                        transport.drain(topic, r).await;
                    }
                    other => break other.map(|r| (r, own)),
                }
            };
            match response {
                Ok((r, true)) if r.status() == StatusCode::UNAUTHORIZED && !challenged => {
                    challenged = true;
                    let headers = r.headers();
                    if !self.auth.challenged(endpoint, scheme, subject, headers, header.as_ref()).await? {
                        return Ok(r);
                    }
                    transport.drain(topic, r).await;
                }
                Ok((r, _)) => return Ok(r),
                Err(e) if transport.falls_back(endpoint, scheme, &e) => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// The error that an unexpected response means.
    pub(crate) async fn failure(
        &self,
        endpoint: &Endpoint,
        subject: &Subject<'_>,
        response: Response,
    ) -> RegistryError {
        let topic = Topic { host: &endpoint.host, what: &subject.what };
        let status = response.status();
        let headers = response.headers().clone();
        // A redirect's target says nothing about who may read the repository. (It is named by host only: its URL may
        // be signed.)
        let own =
            base_url(endpoint, response.url().scheme()).is_ok_and(|b| b.origin() == response.url().origin());
        let elsewhere = (!own).then(|| authority(response.url()));
        // The words are a courtesy: without them the status must do.
        let body = self.shared.transport.read_all(topic, response, MAX_ERROR_BODY).await.unwrap_or_default();
        let message = failure_message(status, &headers, &body);
        if let Some(host) = elsewhere {
            return RegistryError::Status { host, what: subject.what.clone(), message };
        }
        let host = endpoint.host.clone();
        let repository = subject.reference.familiar_name();
        let denied = message.code == "DENIED" || status == StatusCode::FORBIDDEN;
        match status {
            _ if denied => RegistryError::Denied { host, repository, access: subject.access, message },
            StatusCode::UNAUTHORIZED => {
                RegistryError::Unauthorized { host, what: subject.what.clone(), message }
            }
            StatusCode::NOT_FOUND => {
                let what = match message.code.as_str() {
                    "NAME_UNKNOWN" => format!("repository {repository}"),
                    _ => subject.what.clone(),
                };
                RegistryError::NotFound { host, what, message }
            }
            _ => RegistryError::Status { host, what: subject.what.clone(), message },
        }
    }

    /// Tries hosts in order until one has an answer; the last one's error is the answer otherwise.
    ///
    /// Futures are boxed with one lifetime: an async closure over references would make the whole pull's future
    /// impossible to spawn.
    pub(crate) async fn first_of<'e, T>(
        &self,
        endpoints: &'e [Endpoint],
        ask: impl Fn(&'e Endpoint) -> BoxFuture<'e, Result<T, RegistryError>> + Send,
    ) -> Result<T, RegistryError> {
        let (last, mirrors) = endpoints.split_last().expect("a reference always has its registry");
        for mirror in mirrors {
            match ask(mirror).await {
                Err(e) if !e.is_ours() => {
                    tracing::warn!(mirror = mirror.host, error = %e, "mirror passed over")
                }
                result => return result,
            }
        }
        ask(last).await
    }
}

fn base_url(endpoint: &Endpoint, scheme: &str) -> Result<Url, RegistryError> {
    Url::parse(&format!("{scheme}://{}", endpoint.host)).map_err(|e| RegistryError::Config {
        host: endpoint.host.clone(),
        what: "host".to_owned(),
        reason: e.to_string(),
    })
}

fn api_url(base: &Url, endpoint: &Endpoint, path: &str, query: &[(&'static str, String)]) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}{path}", endpoint.prefix));
    let namespace = endpoint.namespace.as_ref().map(|ns| ("ns", ns.clone()));
    for (name, value) in query.iter().cloned().chain(namespace) {
        url.query_pairs_mut().append_pair(name, &value);
    }
    url
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Where a redirect leads: HTTP only, and never from TLS to the clear.
fn redirect_target(topic: Topic<'_>, from: &Url, r: &Response, done: usize) -> Result<Url, RegistryError> {
    let refuse =
        |reason| RegistryError::Redirect { host: topic.host.to_owned(), what: topic.what.to_owned(), reason };
    if done >= MAX_REDIRECTS {
        return Err(refuse("too many redirects"));
    }
    let location = r.headers().get(LOCATION).and_then(|l| l.to_str().ok());
    let location = location.ok_or_else(|| refuse("no location"))?;
    let to = from.join(location).map_err(|_| refuse("the location is not a URL"))?;
    match (from.scheme(), to.scheme()) {
        (_, "https") | ("http", "http") => Ok(to),
        (_, "http") => Err(refuse("from HTTPS to plain HTTP")),
        _ => Err(refuse("not an HTTP URL")),
    }
}

/// Whether an HTTP status means that the same request may well succeed a moment later.
pub(crate) fn is_retryable(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502..=504)
}

/// `Retry-After` in seconds or as a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let at = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc2822).ok()?;
    Duration::try_from(at - time::OffsetDateTime::now_utc()).ok()
}

/// What a failed response says: an OAuth error of its challenge, its first error, or nothing.
pub(crate) fn failure_message(status: StatusCode, headers: &HeaderMap, body: &Bytes) -> ServerMessage {
    let say = |code: &str, message: &str| ServerMessage {
        status: status.as_u16(),
        code: clean(code),
        message: clean(message),
    };
    if status == StatusCode::UNAUTHORIZED {
        for c in challenge::parse(headers).iter().filter(|c| c.scheme == "bearer") {
            let (code, default) = match c.param("error") {
                Some("insufficient_scope") => ("DENIED", "requested access to the resource is denied"),
                Some("invalid_token") => ("UNAUTHORIZED", "authentication required"),
                _ => continue,
            };
            return say(code, c.param("error_description").unwrap_or(default));
        }
    }
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    // Token endpoints and proxies have forms of their own.
    #[derive(Deserialize)]
    struct Details {
        #[serde(alias = "error_description", alias = "message")]
        details: String,
    }
    if let Ok(e) = serde_json::from_slice::<Errors>(body)
        && let Some(first) = e.errors.first()
    {
        return say(&first.code, &first.message);
    }
    if let Ok(d) = serde_json::from_slice::<Details>(body) {
        return say("", &d.details);
    }
    let is_text = headers
        .get(reqwest::header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|t| t.starts_with("text/plain"));
    let line = std::str::from_utf8(body).ok().filter(|_| is_text).and_then(|t| t.lines().next());
    match (line, status) {
        (Some(line), _) if !line.trim().is_empty() => say("", line.trim()),
        (_, StatusCode::UNAUTHORIZED) => say("UNAUTHORIZED", "authentication required"),
        (_, StatusCode::FORBIDDEN) => say("DENIED", "requested access to the resource is denied"),
        _ => say("", status.canonical_reason().unwrap_or_default()),
    }
}

/// A stranger's text, made fit for logs and terminals.
fn clean(text: &str) -> String {
    let printable = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    printable.take(MAX_MESSAGE).collect()
}

/// Blobs being downloaded: one lock per blob and store, held by whoever downloads it. Those who wait look into the
/// store afterwards, and take over if the download failed or was cancelled.
#[derive(Default)]
pub(crate) struct Flights(Mutex<HashMap<(usize, Digest), Weak<Flight>>>);

/// The right to download one blob.
type Flight = tokio::sync::Mutex<()>;

impl Flights {
    pub(crate) fn of(&self, content: &Arc<dyn ContentStore>, digest: &Digest) -> Arc<Flight> {
        let key = (Arc::as_ptr(content).cast::<()>() as usize, digest.clone());
        let mut flights = self.0.lock();
        if let Some(flight) = flights.get(&key).and_then(Weak::upgrade) {
            return flight;
        }
        flights.retain(|_, flight| flight.strong_count() > 0);
        let flight = Arc::new(Flight::new(()));
        flights.insert(key, Arc::downgrade(&flight));
        flight
    }
}
