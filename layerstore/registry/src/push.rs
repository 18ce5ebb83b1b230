//! Pushing: blobs first, then the manifests that name them, the root last, so that a registry never has a manifest
//! without its parts.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture, stream};
use lapstrake_layerstore_oci::{Descriptor, Digest, Index, Manifest, Reference};
use lapstrake_layerstore_store::ContentStore;
use reqwest::{
    Method, Response, StatusCode,
    header::{CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION},
};
use url::Url;

use crate::{
    Access, Item, ProgressFn, RegistryClient, RegistryError, TransferStatus, UploadMode,
    blob::malformed,
    client::{Request, Subject, Target, is_retryable},
    config::Endpoint,
    manifest::{header_digest, manifest_subject},
    progress::Reporter,
    pull::at_most,
    sink::{blocking, stream_out},
    transport::Body,
};

/// Indexes within indexes pushed.
const MAX_NESTING: usize = 4;

/// What to push.
#[derive(Clone)]
pub struct PushSource {
    /// Has all documents; and all blobs that the registry does not have.
    pub content: Arc<dyn ContentStore>,
    /// The index or manifest.
    pub root: Descriptor,
    /// Repositories that may have a blob already; those of the same registry are asked to lend it.
    pub mounts: BTreeMap<Digest, Vec<Reference>>,
}

impl std::fmt::Debug for PushSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PushSource").field("root", &self.root).finish_non_exhaustive()
    }
}

/// What was pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The name, with the tag it has at the registry, if it has one.
    pub reference: Reference,
    /// The index or manifest.
    pub descriptor: Descriptor,
}

/// Everything to send, children before parents.
#[derive(Default)]
struct Plan {
    blobs: Vec<(Item, Descriptor)>,
    manifests: Vec<(Descriptor, Bytes)>,
    seen: BTreeSet<Digest>,
}

impl RegistryClient {
    /// Pushes an index or manifest with all that it names, under the reference's tag, or else `latest`.
    ///
    /// Dropping the future leaves at most blobs that nothing names, which registries collect.
    pub async fn push(
        &self,
        reference: &Reference,
        source: &PushSource,
        progress: &ProgressFn,
    ) -> Result<Pushed, RegistryError> {
        self.push_as(reference.clone().with_default_tag(), source, progress).await
    }

    /// The same without a tag: it is found there by its digest alone.
    pub async fn push_by_digest(
        &self,
        reference: &Reference,
        source: &PushSource,
        progress: &ProgressFn,
    ) -> Result<Pushed, RegistryError> {
        self.push_as(reference.clone().trimmed(), source, progress).await
    }

    /// Pushes a blob of the content store, for a manifest that follows. One that the registry has, or can take from one of the `lenders`, is not sent.
    pub async fn push_blob(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        content: &Arc<dyn ContentStore>,
        lenders: Vec<Reference>,
    ) -> Result<(), RegistryError> {
        let endpoint = self.shared.config.registry_endpoint(reference.domain());
        let mounts = BTreeMap::from([(blob.digest.clone(), lenders)]);
        let source = PushSource { content: Arc::clone(content), root: blob.clone(), mounts };
        let silent: ProgressFn = Arc::new(|_| {});
        let report = Arc::new(Reporter::new(&silent, Item::Layer(0), blob));
        self.send_blob(&endpoint, reference, blob, &source, &report).await
    }

    async fn push_as(
        &self,
        reference: Reference,
        source: &PushSource,
        progress: &ProgressFn,
    ) -> Result<Pushed, RegistryError> {
        let endpoint = self.shared.config.registry_endpoint(reference.domain());
        let plan = self.plan(&endpoint, &reference, source).await?;
        let jobs: Vec<_> =
            plan.blobs.iter().map(|(item, d)| (d, Arc::new(Reporter::new(progress, *item, d)))).collect();
        for (_, report) in &jobs {
            report.say(TransferStatus::Waiting);
        }
        let uploads: Vec<BoxFuture<'_, _>> = jobs
            .iter()
            .map(|(d, report)| self.send_blob(&endpoint, &reference, d, source, report).boxed())
            .collect();
        at_most(self.shared.options.concurrent_uploads, uploads).await?;
        let last = plan.manifests.len().saturating_sub(1);
        for (i, (d, bytes)) in plan.manifests.iter().enumerate() {
            let report = Reporter::new(progress, Item::Manifest, d);
            // Children are named by digest only; the tag appears with the root, when all is there.
            let name = match (i == last, reference.tag()) {
                (true, Some(tag)) => tag.to_owned(),
                _ => d.digest.to_string(),
            };
            self.put_manifest(&endpoint, &reference, &name, d, bytes.clone()).await?;
            report.say(TransferStatus::Uploaded);
        }
        Ok(Pushed { reference, descriptor: source.root.clone() })
    }

    /// Reads the documents from the store and lists what they name.
    async fn plan(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        source: &PushSource,
    ) -> Result<Plan, RegistryError> {
        let subject = manifest_subject(reference, Access::Push);
        let mut plan = Plan::default();
        let mut stack = vec![(source.root.clone(), 0usize)];
        let mut manifests: Vec<(Descriptor, Bytes)> = Vec::new();
        while let Some((d, depth)) = stack.pop() {
            if depth > MAX_NESTING {
                return Err(malformed(endpoint, &subject, "indexes are nested too deeply"));
            }
            let is_document = d.media_type.is_index() || d.media_type.is_manifest();
            if depth > 0 && !is_document {
                // BuildKit's caches may be indexes of layers.
                if plan.seen.insert(d.digest.clone()) {
                    plan.blobs.push((Item::Layer(plan.blobs.len()), d));
                }
                continue;
            }
            let (content, digest, limit) =
                (source.content.clone(), d.digest.clone(), self.shared.options.max_manifest);
            let bytes =
                Bytes::from(blocking("read manifest", move || content.read_small(&digest, limit)).await?);
            let bad = |e: lapstrake_layerstore_oci::OciError| malformed(endpoint, &subject, e.to_string());
            if d.media_type.is_index() {
                let index = Index::from_json(&bytes).map_err(bad)?;
                stack.extend(index.manifests.into_iter().map(|m| (m, depth + 1)));
            } else if d.media_type.is_manifest() {
                let manifest = Manifest::from_json(&bytes).map_err(bad)?;
                let layers = manifest.layers.into_iter().enumerate().map(|(i, l)| (Item::Layer(i), l));
                for (item, blob) in layers.chain([(Item::Config, manifest.config)]) {
                    // Registries do not take foreign layers, whose bytes are to be had elsewhere.
                    let foreign = blob.media_type.is_nondistributable() && !blob.urls.is_empty();
                    if !foreign && plan.seen.insert(blob.digest.clone()) {
                        plan.blobs.push((item, blob));
                    }
                }
            } else {
                let media_type = d.media_type.to_string();
                let (host, what) = (endpoint.host.clone(), subject.what.clone());
                return Err(RegistryError::NotAnImage { host, what, media_type });
            }
            manifests.push((d, bytes));
        }
        // Parents were listed before their children.
        manifests.reverse();
        plan.manifests = manifests;
        Ok(plan)
    }

    async fn send_blob(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        blob: &Descriptor,
        source: &PushSource,
        report: &Arc<Reporter>,
    ) -> Result<(), RegistryError> {
        let mut subject = Subject::blob(reference, Access::Push, &blob.digest);
        if self.remote_has(endpoint, &subject, blob).await? {
            report.say(TransferStatus::ExistsRemotely);
            return Ok(());
        }
        let same_registry = |r: &&Reference| r.domain() == reference.domain() && r.path() != reference.path();
        let lender = source.mounts.get(&blob.digest).and_then(|m| m.iter().find(same_registry));
        if let Some(from) = lender {
            subject.scopes.push(format!("repository:{}:pull", from.path()));
            subject.scopes.sort();
            let query = vec![("mount", blob.digest.to_string()), ("from", from.path().to_owned())];
            match self.begin(endpoint, &subject, query).await {
                Ok(Begun::Mounted) => {
                    report.say(TransferStatus::Mounted { from: from.path().to_owned() });
                    return Ok(());
                }
                // Not lent: the registry has opened an upload instead, or (without access to the lender) nothing.
                Ok(Begun::Upload(_)) => {}
                Err(e @ (RegistryError::Store(_) | RegistryError::Interrupted { .. })) => return Err(e),
                Err(e) => tracing::debug!(error = %e, "not mounted"),
            }
            subject = Subject::blob(reference, Access::Push, &blob.digest);
        }
        let options = &self.shared.options;
        let mut attempt = 1;
        loop {
            match self.upload(endpoint, &subject, blob, source, report).await {
                // An upload is begun anew: how far the broken one came is not known for sure.
                Err(e) if attempt < options.max_attempts && is_worth_repeating(&e) => {
                    let after = options.backoff_before(attempt, None);
                    tracing::debug!(error = %e, ?after, "uploading again");
                    report.say(TransferStatus::Retrying { after });
                    tokio::time::sleep(after).await;
                    attempt += 1;
                }
                Err(e) => return Err(e),
                Ok(()) => {
                    report.say(TransferStatus::Uploaded);
                    return Ok(());
                }
            }
        }
    }

    /// Whether the registry has a blob, as one who may push it sees it.
    pub async fn has_blob(&self, reference: &Reference, blob: &Descriptor) -> Result<bool, RegistryError> {
        let endpoint = self.shared.config.registry_endpoint(reference.domain());
        let subject = Subject::blob(reference, Access::Push, &blob.digest);
        self.remote_has(&endpoint, &subject, blob).await
    }

    async fn remote_has(
        &self,
        endpoint: &Endpoint,
        subject: &Subject<'_>,
        blob: &Descriptor,
    ) -> Result<bool, RegistryError> {
        let response = self.head_of(endpoint, subject, &blob.digest).await?;
        match response.status() {
            s if s.is_success() => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.failure(endpoint, subject, response).await),
        }
    }

    /// Opens an upload, or has the blob mounted.
    async fn begin(
        &self,
        endpoint: &Endpoint,
        subject: &Subject<'_>,
        query: Vec<(&'static str, String)>,
    ) -> Result<Begun, RegistryError> {
        let path = format!("/{}/blobs/uploads/", subject.reference.path());
        let body = || Body::Bytes(Bytes::new());
        let request = Request {
            method: Method::POST,
            target: Target::Api(path, query),
            headers: HeaderMap::new(),
            body: &body,
        };
        let response = self.send(endpoint, subject, &request).await?;
        match response.status() {
            StatusCode::CREATED => Ok(Begun::Mounted),
            StatusCode::ACCEPTED => Ok(Begun::Upload(self.location(endpoint, subject, &response)?)),
            _ => Err(self.failure(endpoint, subject, response).await),
        }
    }

    /// The next URL of an upload. A registry behind a TLS proxy may call itself `http`: its own host is spoken to as
    /// before, and no upload goes from TLS to the clear.
    fn location(
        &self,
        endpoint: &Endpoint,
        subject: &Subject<'_>,
        r: &Response,
    ) -> Result<Url, RegistryError> {
        let bad = || malformed(endpoint, subject, "the registry gave no usable location to upload to");
        let text = r.headers().get(LOCATION).and_then(|l| l.to_str().ok()).ok_or_else(bad)?;
        let mut url = r.url().join(text).map_err(|_| bad())?;
        if r.url().scheme() == "https" && url.scheme() == "http" {
            if url.host_str() != r.url().host_str() {
                return Err(bad());
            }
            url.set_scheme("https").map_err(|()| bad())?;
        }
        if matches!(url.scheme(), "http" | "https") { Ok(url) } else { Err(bad()) }
    }

    async fn upload(
        &self,
        endpoint: &Endpoint,
        subject: &Subject<'_>,
        blob: &Descriptor,
        source: &PushSource,
        report: &Arc<Reporter>,
    ) -> Result<(), RegistryError> {
        let (content, digest) = (source.content.clone(), blob.digest.clone());
        let reader = blocking("open blob", move || content.reader(&digest)).await?;
        if reader.size() != blob.size {
            return Err(RegistryError::SizeMismatch {
                host: "local store".to_owned(),
                what: subject.what.clone(),
                expected: blob.size,
                actual: reader.size(),
            });
        }
        let Begun::Upload(mut url) = self.begin(endpoint, subject, Vec::new()).await? else {
            return Ok(());
        };
        let feed = Feed::new(stream_out(reader, blob.size), report.clone());
        let mut sent = 0;
        if let UploadMode::Chunked(size) = self.shared.options.upload {
            while sent < blob.size {
                let length = size.max(1).min(blob.size - sent);
                let mut headers = octets();
                let range = format!("{sent}-{}", sent + length - 1);
                headers.insert(
                    CONTENT_RANGE,
                    HeaderValue::try_from(range).expect("digits are valid in a header"),
                );
                let body = || feed.body(length);
                let request =
                    Request { method: Method::PATCH, target: Target::Url(url), headers, body: &body };
                let response = self.exchange(endpoint, subject, &request).await?;
                if response.status() != StatusCode::ACCEPTED && response.status() != StatusCode::NO_CONTENT {
                    return Err(self.failure(endpoint, subject, response).await);
                }
                url = self.location(endpoint, subject, &response)?;
                sent += length;
            }
        }
        url.query_pairs_mut().append_pair("digest", blob.digest.as_str());
        let rest = blob.size - sent;
        let body = || if rest == 0 { Body::Bytes(Bytes::new()) } else { feed.body(rest) };
        let request =
            Request { method: Method::PUT, target: Target::Url(url), headers: octets(), body: &body };
        let response = self.exchange(endpoint, subject, &request).await?;
        if !matches!(response.status(), StatusCode::CREATED | StatusCode::NO_CONTENT | StatusCode::OK) {
            return Err(self.failure(endpoint, subject, response).await);
        }
        Ok(())
    }

    async fn put_manifest(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        name: &str,
        d: &Descriptor,
        bytes: Bytes,
    ) -> Result<(), RegistryError> {
        let subject = manifest_subject(reference, Access::Push);
        let mut headers = HeaderMap::new();
        let content_type = HeaderValue::try_from(d.media_type.as_str());
        headers
            .insert(CONTENT_TYPE, content_type.map_err(|_| malformed(endpoint, &subject, "bad media type"))?);
        let body = || Body::Bytes(bytes.clone());
        let target = Target::Api(format!("/{}/manifests/{name}", reference.path()), Vec::new());
        let request = Request { method: Method::PUT, target, headers, body: &body };
        let response = self.send(endpoint, &subject, &request).await?;
        if !response.status().is_success() {
            return Err(self.failure(endpoint, &subject, response).await);
        }
        match header_digest(&response) {
            // A registry that rewrites manifests would make the image another one.
            Some(actual) if actual != d.digest => Err(RegistryError::DigestMismatch {
                host: endpoint.host.clone(),
                what: subject.what,
                expected: d.digest.clone(),
                actual,
            }),
            _ => Ok(()),
        }
    }
}

enum Begun {
    Mounted,
    Upload(Url),
}

fn octets() -> HeaderMap {
    HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))])
}

fn is_worth_repeating(e: &RegistryError) -> bool {
    match e {
        RegistryError::Status { message, .. } => is_retryable(message.status),
        // An upload that the registry forgot (restarted, or behind a balancer).
        RegistryError::NotFound { message, .. } => message.code == "BLOB_UPLOAD_UNKNOWN",
        e => e.is_transient(),
    }
}

/// A blob's bytes, handed to one request body after another. A body that is sent a second time (a token ran out) finds
/// bytes missing, breaks its request, and so has the whole upload begun anew.
struct Feed {
    chunks: Arc<tokio::sync::Mutex<Chunks>>,
    sent: Arc<AtomicU64>,
    report: Arc<Reporter>,
}

struct Chunks {
    from_store: tokio::sync::mpsc::Receiver<std::io::Result<Bytes>>,
    /// What is left of the last chunk after the end of a part.
    rest: Bytes,
}

impl Chunks {
    /// At least one and at most `limit` bytes.
    async fn take(&mut self, limit: u64) -> std::io::Result<Bytes> {
        if self.rest.is_empty() {
            let next = self.from_store.recv().await;
            self.rest = next.unwrap_or_else(|| Err(std::io::ErrorKind::UnexpectedEof.into()))?;
        }
        let n = usize::try_from(limit).unwrap_or(usize::MAX).min(self.rest.len());
        Ok(self.rest.split_to(n))
    }
}

impl Feed {
    fn new(from_store: tokio::sync::mpsc::Receiver<std::io::Result<Bytes>>, report: Arc<Reporter>) -> Feed {
        let chunks = Arc::new(tokio::sync::Mutex::new(Chunks { from_store, rest: Bytes::new() }));
        Feed { chunks, sent: Arc::default(), report }
    }

    /// A body of the next `length` bytes.
    fn body(&self, length: u64) -> Body {
        let state = (self.chunks.clone(), self.sent.clone(), self.report.clone(), length);
        let stream = stream::try_unfold(state, |(chunks, sent, report, left)| async move {
            if left == 0 {
                return Ok(None);
            }
            let chunk = chunks.lock().await.take(left).await?;
            let n = chunk.len() as u64;
            let total = sent.fetch_add(n, Ordering::Relaxed) + n;
            report.bytes(total, |current| TransferStatus::Uploading { current });
            Ok::<_, std::io::Error>(Some((chunk, (chunks, sent, report, left - n))))
        });
        Body::Stream { body: reqwest::Body::wrap_stream(stream), length, sent: self.sent.clone() }
    }
}
