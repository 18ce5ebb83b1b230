//! Manifests: from a name to an image's documents.

use bytes::Bytes;
use lapstrake_layerstore_oci::{
    Algorithm, Descriptor, Digest, Digester, ImageConfig, ImageId, Index, Manifest, MediaType, Platform,
    PlatformMatcher, Reference,
};
use lapstrake_layerstore_store::StoreError;
use reqwest::{
    Method, Response,
    header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue},
};
use serde::Deserialize;

use crate::{
    Access, Item, ProgressFn, PullTarget, RegistryClient, RegistryError, TransferStatus,
    blob::malformed,
    client::{Request, Subject, Target, no_body},
    config::Endpoint,
    progress::Reporter,
    sink::blocking,
    transport::Topic,
};

/// Indexes within indexes followed.
const MAX_NESTING: usize = 4;
const CONTENT_DIGEST: &str = "docker-content-digest";

/// What a name means at a registry now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The name as it was asked for.
    pub reference: Reference,
    /// The manifest or index. The registry's word until the document is fetched, which is by this digest.
    pub descriptor: Descriptor,
}

/// An image's documents; all are in the store, verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedImage {
    /// The name as it was asked for.
    pub reference: Reference,
    /// What the name means: an index, or the manifest itself.
    pub root: Descriptor,
    /// The index, if it is one.
    pub index: Option<Index>,
    /// The manifest for the platform.
    pub manifest_descriptor: Descriptor,
    /// Its content.
    pub manifest: Manifest,
    /// The image's id: the config's digest.
    pub id: ImageId,
    /// The config.
    pub config: ImageConfig,
    /// The config's bytes.
    pub config_bytes: Bytes,
}

/// A document with its type as the registry tells.
struct Document {
    media_type: MediaType,
    digest: Digest,
    bytes: Bytes,
}

impl RegistryClient {
    /// Finds what a name means now: `HEAD`, or `GET` where `HEAD` does not tell. A digest in the name wins over its tag.
    pub async fn resolve(&self, reference: &Reference) -> Result<Resolved, RegistryError> {
        let reference = reference.clone().with_default_tag();
        let subject = manifest_subject(&reference, Access::Pull);
        let endpoints = self.shared.config.endpoints(&reference, Access::Pull);
        let descriptor = self.first_of(&endpoints, |e| Box::pin(self.head(e, &subject))).await?;
        Ok(Resolved { reference, descriptor })
    }

    /// Fetches a manifest or index by digest, verified, without storing it.
    pub async fn fetch_document(
        &self,
        reference: &Reference,
        d: &Descriptor,
    ) -> Result<Bytes, RegistryError> {
        let pinned = reference.clone().with_digest(d.digest.clone());
        let subject = manifest_subject(&pinned, Access::Pull);
        let endpoints = self.shared.config.endpoints(&pinned, Access::Pull);
        let document = self.first_of(&endpoints, |e| Box::pin(self.get(e, &subject, Some(d)))).await?;
        Ok(document.bytes)
    }

    /// Finds an image's documents for a platform, and stores them. Layers are not fetched.
    pub async fn image(
        &self,
        reference: &Reference,
        platform: &Platform,
        target: &PullTarget,
        progress: &ProgressFn,
    ) -> Result<ResolvedImage, RegistryError> {
        let resolved = self.resolve(reference).await?;
        self.resolved_image(&resolved, platform, target, progress).await
    }

    /// As [`RegistryClient::image`], for what was resolved before (and may be in the store already).
    pub async fn resolved_image(
        &self,
        resolved: &Resolved,
        platform: &Platform,
        target: &PullTarget,
        progress: &ProgressFn,
    ) -> Result<ResolvedImage, RegistryError> {
        let reference = &resolved.reference;
        let subject = manifest_subject(reference, Access::Pull);
        let registry = self.shared.config.registry_endpoint(reference.domain());
        let mut descriptor = resolved.descriptor.clone();
        let mut first_index = None;
        for _ in 0..MAX_NESTING {
            refuse_strangers(&registry, &subject, &descriptor.media_type)?;
            let bytes = self.document(reference, &descriptor, target, progress).await?;
            if descriptor.media_type.is_index() {
                let index =
                    Index::from_json(&bytes).map_err(|e| malformed(&registry, &subject, e.to_string()))?;
                descriptor = choose(&index, platform, &subject)?.clone();
                first_index.get_or_insert(index);
                continue;
            }
            let manifest =
                Manifest::from_json(&bytes).map_err(|e| malformed(&registry, &subject, e.to_string()))?;
            let (config, config_bytes) =
                self.config(&registry, &subject, &manifest, target, progress).await?;
            if config.rootfs.diff_ids.len() != manifest.layers.len() {
                let (layers, ids) = (manifest.layers.len(), config.rootfs.diff_ids.len());
                let reason = format!("the manifest has {layers} layers, its config {ids}");
                return Err(malformed(&registry, &subject, reason));
            }
            return Ok(ResolvedImage {
                reference: reference.clone(),
                root: resolved.descriptor.clone(),
                index: first_index,
                manifest_descriptor: descriptor,
                id: ImageId(manifest.config.digest.clone()),
                manifest,
                config,
                config_bytes,
            });
        }
        Err(malformed(&registry, &subject, "indexes are nested too deeply"))
    }

    /// A manifest or index by descriptor, from the store or else the registry, and then in the store.
    async fn document(
        &self,
        reference: &Reference,
        d: &Descriptor,
        target: &PullTarget,
        progress: &ProgressFn,
    ) -> Result<Bytes, RegistryError> {
        let report = Reporter::new(progress, Item::Manifest, d);
        let there = target.hold(&d.digest).await?.is_some();
        if there && let Some(bytes) = self.stored(d, target, self.shared.options.max_manifest).await? {
            report.say(TransferStatus::Exists);
            return Ok(bytes);
        }
        let bytes = self.fetch_document(reference, d).await?;
        let (content, copy, digest, size) = (target.content.clone(), bytes.clone(), d.digest.clone(), d.size);
        blocking("store manifest", move || {
            let mut writer = content.writer()?;
            std::io::Write::write_all(&mut writer, &copy).map_err(StoreError::io("write", "blob"))?;
            writer.commit(Some(&digest), Some(size))
        })
        .await?;
        report.say(TransferStatus::Downloaded);
        Ok(bytes)
    }

    async fn stored(
        &self,
        d: &Descriptor,
        target: &PullTarget,
        limit: u64,
    ) -> Result<Option<Bytes>, RegistryError> {
        let (content, digest) = (target.content.clone(), d.digest.clone());
        blocking("read blob", move || match content.info(&digest)? {
            None => Ok(None),
            Some(_) => Ok(Some(Bytes::from(content.read_small(&digest, limit)?))),
        })
        .await
    }

    async fn config(
        &self,
        registry: &Endpoint,
        subject: &Subject<'_>,
        manifest: &Manifest,
        target: &PullTarget,
        progress: &ProgressFn,
    ) -> Result<(ImageConfig, Bytes), RegistryError> {
        let d = &manifest.config;
        // Registries hold images whose config has no type, or a generic one, from the early days of schema 2.
        let generic = ["", "application/octet-stream", "application/json", "text/html"];
        if !d.media_type.is_config() && !generic.contains(&d.media_type.as_str()) {
            return Err(not_an_image(registry, subject, &d.media_type));
        }
        let limit = self.shared.options.max_config;
        if d.size > limit {
            let what = format!("config of {}", subject.reference.familiar());
            return Err(RegistryError::TooLarge { host: registry.host.clone(), what, limit });
        }
        let report = Reporter::new(progress, Item::Config, d);
        self.fetch_reported(subject.reference, d, target, &report).await?;
        let bytes = self.stored(d, target, limit).await?;
        let bytes = bytes.ok_or_else(|| malformed(registry, subject, "its config left the store"))?;
        let config =
            ImageConfig::from_json(&bytes).map_err(|e| malformed(registry, subject, e.to_string()))?;
        Ok((config, bytes))
    }

    async fn head(&self, endpoint: &Endpoint, subject: &Subject<'_>) -> Result<Descriptor, RegistryError> {
        let request = request(Method::HEAD, subject);
        let response = self.send(endpoint, subject, &request).await?;
        if response.status().is_success()
            && let Some(descriptor) = described(&response)
            && subject.reference.digest().is_none_or(|d| *d == descriptor.digest)
        {
            if descriptor.size > self.shared.options.max_manifest {
                return Err(self.too_large(endpoint, subject));
            }
            refuse_strangers(endpoint, subject, &descriptor.media_type)?;
            return Ok(descriptor);
        }
        // Not every registry answers HEAD, or fully; and errors have words only with GET.
        let document = self.get(endpoint, subject, None).await?;
        let size = document.bytes.len() as u64;
        Ok(Descriptor::new(document.media_type, document.digest, size))
    }

    /// Gets and verifies a document. `expected` adds a size to the digest that the subject may have.
    async fn get(
        &self,
        endpoint: &Endpoint,
        subject: &Subject<'_>,
        expected: Option<&Descriptor>,
    ) -> Result<Document, RegistryError> {
        let response = self.send(endpoint, subject, &request(Method::GET, subject)).await?;
        if !response.status().is_success() {
            return Err(self.failure(endpoint, subject, response).await);
        }
        let announced = content_type(&response);
        let header = header_digest(&response);
        let topic = Topic { host: &endpoint.host, what: &subject.what };
        let bytes = self.shared.transport.read_all(topic, response, self.shared.options.max_manifest).await?;
        if let Some(d) = expected
            && d.size != bytes.len() as u64
        {
            return Err(RegistryError::SizeMismatch {
                host: endpoint.host.clone(),
                what: subject.what.clone(),
                expected: d.size,
                actual: bytes.len() as u64,
            });
        }
        let named = subject.reference.digest().cloned().or(header);
        let algorithm = named.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let mut digester = Digester::new(algorithm);
        digester.update(&bytes);
        let actual = digester.finish();
        if let Some(expected) = named.filter(|n| *n != actual) {
            let (host, what) = (endpoint.host.clone(), subject.what.clone());
            return Err(RegistryError::DigestMismatch { host, what, expected, actual });
        }
        let media_type = document_type(endpoint, subject, announced, &bytes)?;
        Ok(Document { media_type, digest: actual, bytes })
    }

    fn too_large(&self, endpoint: &Endpoint, subject: &Subject<'_>) -> RegistryError {
        RegistryError::TooLarge {
            host: endpoint.host.clone(),
            what: subject.what.clone(),
            limit: self.shared.options.max_manifest,
        }
    }
}

pub(crate) fn manifest_subject(reference: &Reference, access: Access) -> Subject<'_> {
    Subject::new(reference, access, format!("manifest for {}", reference.familiar()))
}

fn request<'a>(method: Method, subject: &Subject<'_>) -> Request<'a> {
    let name = match (subject.reference.digest(), subject.reference.tag()) {
        (Some(digest), _) => digest.as_str(),
        (None, tag) => tag.unwrap_or("latest"),
    };
    let target = Target::Api(format!("/{}/manifests/{name}", subject.reference.path()), Vec::new());
    let mut headers = HeaderMap::new();
    let accepted = [
        MediaType::OCI_INDEX,
        MediaType::DOCKER_MANIFEST_LIST,
        MediaType::OCI_MANIFEST,
        MediaType::DOCKER_MANIFEST,
    ];
    let accepted = accepted.each_ref().map(MediaType::as_str).join(", ");
    headers.insert(ACCEPT, HeaderValue::try_from(accepted).expect("media types are valid in a header"));
    Request { method, target, headers, body: &no_body }
}

fn content_type(r: &Response) -> MediaType {
    MediaType::new(r.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default())
}

/// The digest that a registry says a manifest has.
pub(crate) fn header_digest(r: &Response) -> Option<Digest> {
    Digest::parse(r.headers().get(CONTENT_DIGEST)?.to_str().ok()?).ok()
}

/// What a HEAD's answer says, if it says all. (A HEAD has no body, so the length is read from the header.)
fn described(r: &Response) -> Option<Descriptor> {
    let media_type = content_type(r);
    if !media_type.is_manifest() && !media_type.is_index() && !media_type.is_schema1() {
        return None;
    }
    let size = r.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()?;
    Some(Descriptor::new(media_type, header_digest(r)?, size))
}

/// A document's type: its header's, unless generic; and its own, which must not contradict (CVE-2021-41190).
fn document_type(
    endpoint: &Endpoint,
    subject: &Subject<'_>,
    announced: MediaType,
    bytes: &Bytes,
) -> Result<MediaType, RegistryError> {
    #[derive(Deserialize)]
    struct Probe {
        #[serde(rename = "mediaType", default)]
        media_type: Option<MediaType>,
        #[serde(rename = "schemaVersion", default)]
        schema_version: Option<u64>,
        #[serde(default)]
        manifests: Option<serde::de::IgnoredAny>,
        #[serde(default)]
        layers: Option<serde::de::IgnoredAny>,
    }
    let probe: Probe = serde_json::from_slice(bytes)
        .map_err(|e| malformed(endpoint, subject, format!("the manifest is not valid: {e}")))?;
    if probe.schema_version == Some(1) || announced.is_schema1() {
        return Err(RegistryError::Schema1 { host: endpoint.host.clone(), what: subject.what.clone() });
    }
    let known = |t: &MediaType| t.is_manifest() || t.is_index();
    let media_type = match probe.media_type {
        Some(own) if known(&announced) && own != announced => {
            let reason = format!("the manifest says that it is {own}, the registry that it is {announced}");
            return Err(malformed(endpoint, subject, reason));
        }
        Some(own) => own,
        None if known(&announced) => announced,
        None if probe.manifests.is_some() && probe.layers.is_none() => MediaType::OCI_INDEX,
        None if probe.layers.is_some() && probe.manifests.is_none() => MediaType::OCI_MANIFEST,
        None => announced,
    };
    refuse_strangers(endpoint, subject, &media_type)?;
    Ok(media_type)
}

fn refuse_strangers(endpoint: &Endpoint, subject: &Subject<'_>, t: &MediaType) -> Result<(), RegistryError> {
    if t.is_schema1() {
        return Err(RegistryError::Schema1 { host: endpoint.host.clone(), what: subject.what.clone() });
    }
    if t.is_manifest() || t.is_index() { Ok(()) } else { Err(not_an_image(endpoint, subject, t)) }
}

fn not_an_image(endpoint: &Endpoint, subject: &Subject<'_>, t: &MediaType) -> RegistryError {
    RegistryError::NotAnImage {
        host: endpoint.host.clone(),
        what: subject.what.clone(),
        media_type: t.to_string(),
    }
}

/// The best manifest for a platform; or else the first that names no platform, as hand-made indexes have them.
fn choose<'a>(
    index: &'a Index,
    p: &Platform,
    subject: &Subject<'_>,
) -> Result<&'a Descriptor, RegistryError> {
    let nameless = || {
        index.manifests.iter().find(|d| {
            d.platform.is_none()
                && d.artifact_type.is_none()
                && (d.media_type.is_manifest() || d.media_type.is_index())
        })
    };
    PlatformMatcher::only(p).choose(&index.manifests).or_else(nameless).ok_or_else(|| {
        let named = index.manifests.iter().filter_map(|d| d.platform.as_ref()).map(Platform::to_full_string);
        RegistryError::NoMatchingPlatform {
            what: subject.reference.familiar(),
            platform: p.to_full_string(),
            available: named.filter(|p| p != "unknown/unknown").take(32).collect(),
        }
    })
}
