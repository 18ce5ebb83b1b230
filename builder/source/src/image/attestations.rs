//! What is attested of an image, and who signed that: documents for those who decide whether an image may be used.
//!
//! ```text
//!   index ─► manifest of the platform ◄─ about ─ attestation manifest ◄─ about ─ signature manifest ─► its blobs
//!                                                     └─► statements of the kinds that were asked for
//! ```
//!
//! BuildKit's `ResolveImageMetadata`. Nothing is judged here: every document is what its digest says, and no more.

use std::sync::Arc;

use bytes::Bytes;
use lapstrake_builder_dockerfile::ImageQuery;
use lapstrake_builder_llb::ResolveMode;
use lapstrake_layerstore_oci::{Descriptor, Digest, Index, Manifest, MediaType, PlatformMatcher, Reference};
use lapstrake_layerstore_registry::{PullTarget, RegistryClient};
use lapstrake_layerstore_store::{Lease, StoreError};

use super::resolve::{Images, named};
use crate::{SourceContext, SourceError};

const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
const REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";
const ATTESTATION: &str = "attestation-manifest";
const PREDICATE_TYPE: &str = "in-toto.io/predicate-type";
/// Signatures of cosign's, those that are preferred first.
const SIGNATURES: [&str; 2] =
    ["application/vnd.dev.sigstore.bundle.v0.3+json", "application/vnd.dev.cosign.artifact.sig.v1+json"];
/// Most bytes of a chain: it goes to the client in one message, and those have 16 MiB at most.
const MOST: u64 = 15 << 20;

/// The documents that lead from an image's name to what is attested of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttestationChain {
    /// The index that the name means.
    pub root: Digest,
    /// The image's manifest; it is not among the blobs.
    pub image_manifest: Option<Digest>,
    /// What is attested of it.
    pub attestation_manifest: Option<Digest>,
    /// What signs that.
    pub signature_manifests: Vec<Digest>,
    /// Documents, each what its digest says.
    pub blobs: Vec<(Descriptor, Bytes)>,
}

impl Images {
    /// What is attested of an image; `None` for one that has no index, which is where it would be told. Statements are there of these predicate types
    /// alone, signatures where the image is a registry's.
    pub(crate) async fn attestations(
        &self,
        cx: &SourceContext,
        query: &ImageQuery,
        predicate_types: &[String],
    ) -> Result<Option<AttestationChain>, SourceError> {
        let work = self.chain(cx, query, predicate_types);
        tokio::select! {
            chain = work => chain,
            () = cx.cancel.cancelled() => Err(SourceError::Canceled),
        }
    }

    async fn chain(
        &self,
        cx: &SourceContext,
        query: &ImageQuery,
        predicate_types: &[String],
    ) -> Result<Option<AttestationChain>, SourceError> {
        let reference = &query.reference;
        let mut documents = Documents {
            images: self,
            client: self.client(cx),
            reference,
            lease: Arc::new(self.stores.leases.create()),
            left: MOST,
            blobs: Vec::new(),
        };
        let local = match query.origin.resolve_mode() {
            ResolveMode::ForcePull => None,
            _ => self.local_root(reference).await?,
        };
        let is_local = local.is_some();
        let root = match local {
            Some(root) => root,
            None => documents.client.resolve(reference).await.map_err(documents.failed())?.descriptor,
        };
        if root.media_type != MediaType::OCI_INDEX {
            return Ok(None);
        }
        let malformed = |error: &dyn std::fmt::Display| SourceError::Unsuitable {
            origin: reference.to_string(),
            why: error.to_string(),
        };
        let index = Index::from_json(&documents.take(&root).await?).map_err(|error| malformed(&error))?;
        let mut chain = AttestationChain {
            root: root.digest,
            image_manifest: None,
            attestation_manifest: None,
            signature_manifests: Vec::new(),
            blobs: Vec::new(),
        };
        let image = PlatformMatcher::only(&query.platform).choose(&index.manifests);
        chain.image_manifest = image.map(|image| image.digest.clone());
        let says = |manifest: &Descriptor, key: &str, value: &str| {
            manifest.annotations.get(key).is_some_and(|said| said == value)
        };
        let about = |manifest: &&Descriptor| {
            says(manifest, REFERENCE_TYPE, ATTESTATION)
                && image.is_some_and(|image| says(manifest, REFERENCE_DIGEST, image.digest.as_str()))
        };
        if let Some(attestation) = index.manifests.iter().find(about) {
            let manifest = Manifest::from_json(&documents.take(attestation).await?);
            let manifest = manifest.map_err(|error| malformed(&error))?;
            chain.attestation_manifest = Some(attestation.digest.clone());
            if !is_local && let Some(signature) = documents.signature(&attestation.digest).await? {
                let signed = Manifest::from_json(&documents.take(&signature).await?);
                let signed = signed.map_err(|error| malformed(&error))?;
                chain.signature_manifests.push(signature.digest);
                for layer in &signed.layers {
                    documents.take(layer).await?;
                }
            }
            for layer in &manifest.layers {
                let kind = layer.annotations.get(PREDICATE_TYPE);
                if kind.is_some_and(|kind| !kind.is_empty() && predicate_types.contains(kind)) {
                    documents.take(layer).await?;
                }
            }
        }
        chain.blobs = documents.blobs;
        Ok(Some(chain))
    }

    /// The index that a name means here.
    async fn local_root(&self, reference: &Reference) -> Result<Option<Descriptor>, SourceError> {
        let (stores, reference) = (self.stores.clone(), reference.clone());
        let find = move || named(&stores, &reference).map(|found| found.and_then(|(_, root)| root));
        SourceError::blocking(find).await
    }
}

/// Documents on their way.
struct Documents<'a> {
    images: &'a Images,
    client: RegistryClient,
    reference: &'a Reference,
    /// Holds those that are fetched.
    lease: Arc<Lease>,
    left: u64,
    blobs: Vec<(Descriptor, Bytes)>,
}

impl Documents<'_> {
    fn failed(&self) -> impl FnOnce(lapstrake_layerstore_registry::RegistryError) -> SourceError {
        let origin = self.reference.to_string();
        move |source| SourceError::Registry { origin, source }
    }

    /// Adds a document, from the store or the registry.
    async fn take(&mut self, document: &Descriptor) -> Result<Bytes, SourceError> {
        if let Some((_, bytes)) = self.blobs.iter().find(|(known, _)| known.digest == document.digest) {
            return Ok(bytes.clone());
        }
        self.left = self.left.checked_sub(document.size).ok_or_else(|| SourceError::Unsuitable {
            origin: self.reference.to_string(),
            why: format!("what is attested of it has more than {MOST} bytes"),
        })?;
        let bytes = if document.media_type.is_manifest() || document.media_type.is_index() {
            match self.stored(document).await? {
                Some(bytes) => bytes,
                None => self.client.fetch_document(self.reference, document).await.map_err(self.failed())?,
            }
        } else {
            let content = Arc::clone(&self.images.stores.content);
            let target = PullTarget { content, lease: Arc::clone(&self.lease) };
            self.client.fetch_blob(self.reference, document, &target).await.map_err(self.failed())?;
            self.stored(document).await?.ok_or_else(|| SourceError::Unsuitable {
                origin: self.reference.to_string(),
                why: format!("{} left the store", document.digest),
            })?
        };
        self.blobs.push((document.clone(), bytes.clone()));
        Ok(bytes)
    }

    async fn stored(&self, document: &Descriptor) -> Result<Option<Bytes>, SourceError> {
        let content = Arc::clone(&self.images.stores.content);
        let (digest, size) = (document.digest.clone(), document.size);
        let read = move || -> Result<Option<Bytes>, StoreError> {
            let Some(_) = content.info(&digest)? else { return Ok(None) };
            Ok(Some(Bytes::from(content.read_small(&digest, size)?)))
        };
        SourceError::blocking(read).await
    }

    /// The signature of a manifest: one, as BuildKit takes one.
    async fn signature(&self, manifest: &Digest) -> Result<Option<Descriptor>, SourceError> {
        let found = self.client.referrers(self.reference, manifest).await.map_err(self.failed())?;
        let rank =
            |one: &Descriptor| SIGNATURES.iter().position(|kind| one.artifact_type.as_deref() == Some(*kind));
        let signatures = found.into_iter().filter(|one| one.media_type.is_manifest() && rank(one).is_some());
        Ok(signatures.min_by_key(rank))
    }
}
