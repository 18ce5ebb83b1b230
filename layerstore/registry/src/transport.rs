//! HTTP clients, one exchange at a time: connections, schemes, stalls, sizes. Knows nothing of registries.

use std::{
    collections::{HashMap, HashSet},
    fs,
    future::Future,
    io::Read,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use reqwest::{Client, Method, Response, header::HeaderMap};
use url::Url;

use crate::{
    ClientOptions, HostConfig, RegistryConfig, RegistryError,
    config::{Endpoint, SchemePolicy, is_loopback},
    error::from_reqwest,
};

/// Longest PEM file read.
const MAX_PEM: u64 = 4 << 20;
/// Remembered hosts without TLS, before all are forgotten (it costs one more failed handshake each).
const MAX_PLAIN_HOSTS: usize = 1024;

/// Who is spoken to and about what, for errors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Topic<'a> {
    pub(crate) host: &'a str,
    pub(crate) what: &'a str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ClientKey {
    tls: Tls,
    /// This machine: never through a proxy (Go's clients do the same).
    direct: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Tls {
    /// Plain HTTP: loads no certificates.
    Plain,
    /// TLS, system's authorities.
    Verified,
    /// TLS, nothing verified.
    Unverified,
    /// TLS with a host's own settings.
    Host(String),
}

/// Connections to all hosts, pooled by their TLS settings.
pub(crate) struct Transport {
    config: Arc<RegistryConfig>,
    options: Arc<ClientOptions>,
    clients: Mutex<HashMap<ClientKey, Client>>,
    /// Hosts found to speak no TLS.
    plain: Mutex<HashSet<String>>,
}

/// A request's body; made anew for each try.
pub(crate) enum Body {
    Empty,
    Bytes(Bytes),
    /// A stream of known length that counts what the network took.
    Stream {
        body: reqwest::Body,
        length: u64,
        sent: Arc<AtomicU64>,
    },
}

impl Transport {
    pub(crate) fn new(config: Arc<RegistryConfig>, options: Arc<ClientOptions>) -> Transport {
        Transport { config, options, clients: Mutex::new(HashMap::new()), plain: Mutex::new(HashSet::new()) }
    }

    /// The scheme to use with an endpoint now.
    pub(crate) fn scheme(&self, endpoint: &Endpoint) -> &'static str {
        match endpoint.scheme {
            SchemePolicy::Https => "https",
            SchemePolicy::Http => "http",
            SchemePolicy::Fallback if self.plain.lock().contains(&endpoint.host) => "http",
            SchemePolicy::Fallback => "https",
        }
    }

    /// Whether a failure means that the endpoint should be asked over plain HTTP, from now on.
    pub(crate) fn falls_back(&self, endpoint: &Endpoint, scheme: &str, e: &RegistryError) -> bool {
        if endpoint.scheme != SchemePolicy::Fallback || scheme != "https" {
            return false;
        }
        let explicit_port = endpoint.host.rsplit(']').next().is_some_and(|h| h.contains(':'));
        let falls = match e {
            RegistryError::Tls { .. } => true,
            // Nobody listens there, so nobody will speak HTTP either.
            RegistryError::Connect { refused, .. } => !(*refused && explicit_port),
            _ => false,
        };
        if falls {
            let mut plain = self.plain.lock();
            if plain.len() >= MAX_PLAIN_HOSTS {
                plain.clear();
            }
            plain.insert(endpoint.host.clone());
        }
        falls
    }

    /// Sends one request and waits for the response's head. Redirects are not followed. `settings` is the host whose
    /// TLS settings apply.
    pub(crate) async fn round_trip(
        &self,
        topic: Topic<'_>,
        settings: &str,
        method: Method,
        url: Url,
        headers: HeaderMap,
        body: Body,
    ) -> Result<Response, RegistryError> {
        let client = self.client(&url, settings).await?;
        let mut request = client.request(method, url).headers(headers);
        let mut counter = None;
        match body {
            Body::Empty => {}
            Body::Bytes(bytes) => request = request.body(bytes),
            Body::Stream { body, length, sent } => {
                request = request.header(reqwest::header::CONTENT_LENGTH, length).body(body);
                counter = Some(sent);
            }
        }
        match self.watched(topic, counter, request.send()).await? {
            Ok(response) => Ok(response),
            Err(e) => Err(from_reqwest(topic.host, topic.what, e)),
        }
    }

    /// Runs a future until it ends or, for the stall timeout, the counter has not moved.
    async fn watched<T>(
        &self,
        topic: Topic<'_>,
        counter: Option<Arc<AtomicU64>>,
        future: impl Future<Output = T>,
    ) -> Result<T, RegistryError> {
        let mut future = std::pin::pin!(future);
        let count = || counter.as_ref().map_or(0, |c| c.load(Ordering::Relaxed));
        // A registry that has a whole layer may take its time to put it where it belongs.
        let patience = self.options.stall_timeout.saturating_mul(if counter.is_some() { 5 } else { 1 });
        let mut seen = count();
        loop {
            match tokio::time::timeout(patience, &mut future).await {
                Ok(value) => return Ok(value),
                Err(_) if count() != seen => seen = count(),
                Err(_) => return Err(self.stalled(topic)),
            }
        }
    }

    /// The next piece of a response's body, or `None` at its end.
    pub(crate) async fn chunk(
        &self,
        topic: Topic<'_>,
        response: &mut Response,
    ) -> Result<Option<Bytes>, RegistryError> {
        match tokio::time::timeout(self.options.stall_timeout, response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(e)) => Err(from_reqwest(topic.host, topic.what, e)),
            Err(_) => Err(self.stalled(topic)),
        }
    }

    /// A whole body of at most `limit` bytes. Also bounded in time: a document that drips in is a stall.
    pub(crate) async fn read_all(
        &self,
        topic: Topic<'_>,
        mut response: Response,
        limit: u64,
    ) -> Result<Bytes, RegistryError> {
        let too_large =
            || RegistryError::TooLarge { host: topic.host.to_owned(), what: topic.what.to_owned(), limit };
        if response.content_length().is_some_and(|n| n > limit) {
            return Err(too_large());
        }
        let read = async {
            let mut all = BytesMut::new();
            while let Some(chunk) = self.chunk(topic, &mut response).await? {
                if (all.len() + chunk.len()) as u64 > limit {
                    return Err(too_large());
                }
                all.extend_from_slice(&chunk);
            }
            Ok(all.freeze())
        };
        match tokio::time::timeout(self.options.stall_timeout.saturating_mul(4), read).await {
            Ok(result) => result,
            Err(_) => Err(self.stalled(topic)),
        }
    }

    /// Reads away a short body so that its connection can be used again.
    pub(crate) async fn drain(&self, topic: Topic<'_>, response: Response) {
        const SHORT: u64 = 16 << 10;
        // A body that is long, slow or broken costs its connection and nothing else.
        let _ = tokio::time::timeout(Duration::from_secs(2), self.read_all(topic, response, SHORT)).await;
    }

    fn stalled(&self, topic: Topic<'_>) -> RegistryError {
        RegistryError::Stalled {
            host: topic.host.to_owned(),
            what: topic.what.to_owned(),
            seconds: self.options.stall_timeout.as_secs(),
        }
    }

    async fn client(&self, url: &Url, settings: &str) -> Result<Client, RegistryError> {
        let own = self.config.hosts.get(settings);
        let direct = url.host_str().is_some_and(is_loopback);
        let tls = match url.scheme() {
            "http" => Tls::Plain,
            _ if own.is_some_and(has_tls_settings) => Tls::Host(settings.to_owned()),
            // Docker counts loopback among its insecure registries, unless the configuration speaks of it.
            _ if direct && own.is_none() => Tls::Unverified,
            _ => Tls::Verified,
        };
        let key = ClientKey { tls, direct };
        if let Some(client) = self.clients.lock().get(&key) {
            return Ok(client.clone());
        }
        // Reads certificate files.
        let (build_key, options, host_config) = (key.clone(), self.options.clone(), own.cloned());
        let built =
            tokio::task::spawn_blocking(move || build(&build_key, &options, host_config.as_ref())).await;
        let client =
            built.map_err(|_| RegistryError::Interrupted { what: "load certificates".to_owned() })??;
        Ok(self.clients.lock().entry(key).or_insert(client).clone())
    }
}

fn has_tls_settings(c: &HostConfig) -> bool {
    c.insecure.is_some() || !c.ca.is_empty() || !c.keypair.is_empty() || !c.tlsconfigdir.is_empty()
}

fn build(key: &ClientKey, o: &ClientOptions, config: Option<&HostConfig>) -> Result<Client, RegistryError> {
    // HTTP/1: layers then come over connections of their own instead of sharing one flow-control window.
    let mut b = Client::builder()
        .user_agent(&o.user_agent)
        .redirect(reqwest::redirect::Policy::none())
        .no_gzip()
        .http1_only()
        .connect_timeout(o.connect_timeout)
        .pool_idle_timeout(Duration::from_secs(90))
        .pool_max_idle_per_host(o.concurrent_downloads.max(o.concurrent_uploads))
        .tcp_keepalive(Duration::from_secs(60));
    if key.direct {
        b = b.no_proxy();
    }
    let mut host = String::new();
    match (&key.tls, config) {
        (Tls::Plain, _) => b = b.tls_built_in_root_certs(false),
        (Tls::Unverified, _) => b = b.tls_built_in_root_certs(false).danger_accept_invalid_certs(true),
        (Tls::Host(h), Some(c)) => {
            host.clone_from(h);
            b = with_tls_settings(b, h, c)?;
        }
        (Tls::Verified | Tls::Host(_), _) => {}
    }
    b.build().map_err(|e| RegistryError::Config {
        host,
        what: "TLS settings".to_owned(),
        reason: e.to_string(),
    })
}

fn with_tls_settings(
    mut b: reqwest::ClientBuilder,
    host: &str,
    c: &HostConfig,
) -> Result<reqwest::ClientBuilder, RegistryError> {
    let bad = |path: &Path, reason: String| RegistryError::Config {
        host: host.to_owned(),
        what: path.display().to_string(),
        reason,
    };
    let read = |path: &Path| -> Result<Vec<u8>, RegistryError> {
        let mut bytes = Vec::new();
        let file = fs::File::open(path).map_err(|e| bad(path, e.to_string()))?;
        file.take(MAX_PEM).read_to_end(&mut bytes).map_err(|e| bad(path, e.to_string()))?;
        Ok(bytes)
    };
    let mut authorities = c.ca.clone();
    let mut pairs: Vec<_> = c.keypair.iter().map(|p| (p.cert.clone(), p.key.clone())).collect();
    for dir in &c.tlsconfigdir {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            // As BuildKit: a directory that is not there has no certificates.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(bad(dir, e.to_string())),
        };
        let mut paths = Vec::new();
        for entry in entries {
            paths.push(entry.map_err(|e| bad(dir, e.to_string()))?.path());
        }
        paths.sort();
        for path in paths {
            match path.extension().and_then(|e| e.to_str()) {
                Some("crt") => authorities.push(path),
                Some("cert") => pairs.push((path.clone(), path.with_extension("key"))),
                _ => {}
            }
        }
    }
    for path in &authorities {
        let certs =
            reqwest::Certificate::from_pem_bundle(&read(path)?).map_err(|e| bad(path, e.to_string()))?;
        if certs.is_empty() {
            return Err(bad(path, "no certificate in it".to_owned()));
        }
        for cert in certs {
            b = b.add_root_certificate(cert);
        }
    }
    if let [(cert, key), rest @ ..] = pairs.as_slice() {
        if let Some((second, _)) = rest.first() {
            return Err(bad(second, "only one client certificate per registry is supported".to_owned()));
        }
        let mut pem = read(cert)?;
        pem.push(b'\n');
        pem.extend(read(key)?);
        b = b.identity(reqwest::Identity::from_pem(&pem).map_err(|e| bad(cert, e.to_string()))?);
    }
    Ok(if c.insecure == Some(true) { b.danger_accept_invalid_certs(true) } else { b })
}
