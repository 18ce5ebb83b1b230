//! Downloading one blob: shared, resumed, bounded, verified.

use lapstrake_layerstore_oci::{Descriptor, Digest, Reference};
use lapstrake_layerstore_store::StoreError;
use reqwest::{
    Method, Response, StatusCode,
    header::{ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE},
};
use url::Url;

use crate::{
    Access, PullTarget, RegistryClient, RegistryError, TransferStatus,
    client::{Request, Subject, Target, no_body},
    config::{Endpoint, SchemePolicy},
    progress::Reporter,
    sink::BlobSink,
    transport::Topic,
};

/// Progress that forgives earlier failures; less does not, or a registry could keep us for ever with one byte at a time.
const PROGRESS: u64 = 1 << 20;

/// A download's state between connections.
struct Position {
    /// Bytes written.
    offset: u64,
    failures: u32,
    /// The offset when `failures` was last reset.
    mark: u64,
}

/// Why a body ended early.
enum Ended {
    /// The connection broke: go on from where it was.
    Broken(RegistryError),
    Fatal(RegistryError),
}

impl RegistryClient {
    /// How long a blob is, as the registry says to one who may pull it. A mirror's word counts as the registry's.
    pub async fn blob_size(&self, reference: &Reference, digest: &Digest) -> Result<u64, RegistryError> {
        let subject = Subject::blob(reference, Access::Pull, digest);
        let endpoints = self.shared.config.endpoints(reference, Access::Pull);
        self.first_of(&endpoints, |endpoint| Box::pin(self.size_at(endpoint, &subject, digest))).await
    }

    async fn size_at(
        &self,
        endpoint: &Endpoint,
        subject: &Subject<'_>,
        digest: &Digest,
    ) -> Result<u64, RegistryError> {
        let response = self.head_of(endpoint, subject, digest).await?;
        if !response.status().is_success() {
            return Err(self.failure(endpoint, subject, response).await);
        }
        // The length of what a GET would give: an answer to HEAD has no body of its own.
        let length =
            response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        length.ok_or_else(|| malformed(endpoint, subject, "a blob without Content-Length"))
    }

    /// What is answered about a blob, without it.
    pub(crate) async fn head_of(
        &self,
        endpoint: &Endpoint,
        subject: &Subject<'_>,
        digest: &Digest,
    ) -> Result<Response, RegistryError> {
        let path = format!("/{}/blobs/{digest}", subject.reference.path());
        let request = Request {
            method: Method::HEAD,
            target: Target::Api(path, Vec::new()),
            headers: HeaderMap::new(),
            body: &no_body,
        };
        self.send(endpoint, subject, &request).await
    }

    /// Makes sure that a blob is in the store, held by the target's lease, downloading it if need be.
    ///
    /// Concurrent calls for one blob download it once. Dropping the future leaves nothing behind.
    pub async fn fetch_blob(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        target: &PullTarget,
    ) -> Result<(), RegistryError> {
        let silent: crate::ProgressFn = std::sync::Arc::new(|_| {});
        self.fetch_reported(reference, blob, target, &Reporter::new(&silent, crate::Item::Layer(0), blob))
            .await
    }

    pub(crate) async fn fetch_reported(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        target: &PullTarget,
        report: &Reporter,
    ) -> Result<(), RegistryError> {
        if self.has(reference, blob, target).await? {
            report.say(TransferStatus::Exists);
            return Ok(());
        }
        let flight = self.shared.flights.of(&target.content, &blob.digest);
        let _turn = match flight.try_lock() {
            Ok(turn) => turn,
            Err(_) => {
                report.say(TransferStatus::Waiting);
                let turn = flight.lock().await;
                // Whoever had it may have failed or been cancelled; then it is ours to do.
                if self.has(reference, blob, target).await? {
                    report.say(TransferStatus::Downloaded);
                    return Ok(());
                }
                turn
            }
        };
        let subject = Subject::blob(reference, Access::Pull, &blob.digest);
        let endpoints = self.shared.config.endpoints(reference, Access::Pull);
        let path = Target::Api(format!("/{}/blobs/{}", reference.path(), blob.digest), Vec::new());
        let from_registry = self
            .first_of(&endpoints, |e| Box::pin(self.download(e, &subject, &path, blob, target, report)))
            .await;
        let result = match from_registry {
            Err(e @ RegistryError::NotFound { .. }) if blob.media_type.is_nondistributable() => {
                self.download_from_urls(&subject, blob, target, report).await.unwrap_or(Err(e))
            }
            result => result,
        };
        result?;
        report.say(TransferStatus::Downloaded);
        Ok(())
    }

    /// Foreign layers may live elsewhere only. `None`: the descriptor names no usable place.
    async fn download_from_urls(
        &self,
        subject: &Subject<'_>,
        blob: &Descriptor,
        target: &PullTarget,
        report: &Reporter,
    ) -> Option<Result<(), RegistryError>> {
        let mut last = None;
        for url in blob.urls.iter().filter_map(|u| Url::parse(u).ok()).filter(|u| u.scheme() == "https") {
            let host = crate::auth::authority(&url);
            // A place of its own, where our credentials for the registry mean nothing.
            let place = Endpoint {
                host: host.clone(),
                config_key: host,
                scheme: SchemePolicy::Https,
                prefix: String::new(),
                namespace: None,
            };
            match self.download(&place, subject, &Target::Url(url), blob, target, report).await {
                Ok(()) => return Some(Ok(())),
                Err(e) => last = Some(Err(e)),
            }
        }
        last
    }

    async fn has(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        target: &PullTarget,
    ) -> Result<bool, RegistryError> {
        match target.hold(&blob.digest).await? {
            None => Ok(false),
            Some(info) if info.size == blob.size => Ok(true),
            // The bytes are right, so what says their size is wrong.
            Some(info) => Err(RegistryError::SizeMismatch {
                host: reference.domain().to_owned(),
                what: Subject::blob(reference, Access::Pull, &blob.digest).what,
                expected: blob.size,
                actual: info.size,
            }),
        }
    }

    async fn download(
        &self,
        endpoint: &Endpoint,
        subject: &Subject<'_>,
        path: &Target,
        blob: &Descriptor,
        target: &PullTarget,
        report: &Reporter,
    ) -> Result<(), RegistryError> {
        let options = &self.shared.options;
        let mut sink = BlobSink::open(target.content.clone());
        let mut at = Position { offset: 0, failures: 0, mark: 0 };
        while at.offset < blob.size || blob.size == 0 {
            let response = self.open(endpoint, subject, path, blob, at.offset).await?;
            match self.copy(endpoint, subject, response, blob, &mut sink, &mut at, report).await {
                Ok(()) => break,
                Err(Ended::Fatal(e)) => return Err(e),
                Err(Ended::Broken(e)) => {
                    if at.offset - at.mark >= PROGRESS {
                        (at.failures, at.mark) = (0, at.offset);
                    }
                    at.failures += 1;
                    if at.failures >= options.max_attempts {
                        return Err(e);
                    }
                    let after = options.backoff_before(at.failures, None);
                    tracing::debug!(error = %e, offset = at.offset, ?after, "resuming");
                    report.say(TransferStatus::Retrying { after });
                    tokio::time::sleep(after).await;
                }
            }
        }
        report.say(TransferStatus::Verifying);
        // The store hashes what it writes, and publishes only what has this digest and size.
        sink.commit(&blob.digest, blob.size).await.map_err(|e| name_mismatch(endpoint, subject, e))
    }

    /// Asks for the blob, from an offset on.
    async fn open(
        &self,
        endpoint: &Endpoint,
        subject: &Subject<'_>,
        path: &Target,
        blob: &Descriptor,
        offset: u64,
    ) -> Result<Response, RegistryError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if offset > 0 {
            let range =
                HeaderValue::try_from(format!("bytes={offset}-")).expect("digits are valid in a header");
            headers.insert(RANGE, range);
        }
        let request = Request { method: Method::GET, target: path.clone(), headers, body: &no_body };
        let response = self.send(endpoint, subject, &request).await?;
        let announced = match response.status() {
            StatusCode::OK => response.content_length(),
            StatusCode::PARTIAL_CONTENT if offset > 0 => {
                let begins = format!("bytes {offset}-");
                let range = response.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok());
                if !range.is_some_and(|r| r.starts_with(&begins)) {
                    return Err(malformed(endpoint, subject, "the range that came is not the one asked for"));
                }
                response.content_length().map(|n| n.saturating_add(offset))
            }
            _ => return Err(self.failure(endpoint, subject, response).await),
        };
        match announced {
            Some(n) if n != blob.size => Err(size_mismatch(endpoint, subject, blob, n)),
            _ => Ok(response),
        }
    }

    /// Copies a body into the sink, skipping what is there already when the registry begins anew.
    #[allow(clippy::too_many_arguments, reason = "one download's parts, used here only")]
    async fn copy(
        &self,
        endpoint: &Endpoint,
        subject: &Subject<'_>,
        mut response: Response,
        blob: &Descriptor,
        sink: &mut BlobSink,
        at: &mut Position,
        report: &Reporter,
    ) -> Result<(), Ended> {
        let topic = Topic { host: &endpoint.host, what: &subject.what };
        let mut skip = if response.status() == StatusCode::PARTIAL_CONTENT { 0 } else { at.offset };
        loop {
            let chunk = match self.shared.transport.chunk(topic, &mut response).await {
                Ok(Some(chunk)) => chunk,
                Ok(None) if at.offset == blob.size => return Ok(()),
                Ok(None) => return Err(Ended::Fatal(size_mismatch(endpoint, subject, blob, at.offset))),
                Err(e) if e.is_transient() => return Err(Ended::Broken(e)),
                Err(e) => return Err(Ended::Fatal(e)),
            };
            let skipped = skip.min(chunk.len() as u64);
            skip -= skipped;
            let chunk = chunk.slice(usize::try_from(skipped).unwrap_or(chunk.len())..);
            if chunk.is_empty() {
                continue;
            }
            let reached = at.offset + chunk.len() as u64;
            if reached > blob.size {
                return Err(Ended::Fatal(size_mismatch(endpoint, subject, blob, reached)));
            }
            sink.write(chunk).await.map_err(Ended::Fatal)?;
            at.offset = reached;
            report.bytes(reached, |current| TransferStatus::Downloading { current });
        }
    }
}

fn size_mismatch(
    endpoint: &Endpoint,
    subject: &Subject<'_>,
    blob: &Descriptor,
    actual: u64,
) -> RegistryError {
    RegistryError::SizeMismatch {
        host: endpoint.host.clone(),
        what: subject.what.clone(),
        expected: blob.size,
        actual,
    }
}

pub(crate) fn malformed(
    endpoint: &Endpoint,
    subject: &Subject<'_>,
    reason: impl Into<String>,
) -> RegistryError {
    RegistryError::Malformed {
        host: endpoint.host.clone(),
        what: subject.what.clone(),
        reason: reason.into(),
    }
}

/// The store found the bytes to be others than announced: that is the registry's fault, not the store's.
fn name_mismatch(endpoint: &Endpoint, subject: &Subject<'_>, e: RegistryError) -> RegistryError {
    let (host, what) = (endpoint.host.clone(), subject.what.clone());
    match e {
        RegistryError::Store(StoreError::DigestMismatch { expected, actual }) => {
            RegistryError::DigestMismatch { host, what, expected, actual }
        }
        RegistryError::Store(StoreError::SizeMismatch { expected, actual, .. }) => {
            RegistryError::SizeMismatch { host, what, expected, actual }
        }
        e => e,
    }
}
