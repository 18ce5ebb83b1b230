//! What sources are: images' configs and digests, files' digests, commits. A policy is asked first, as about the sources of a graph.

use bytes::Bytes;
use lapstrake_api_proto::{
    gateway::{
        AttestationChain, Blob, ChecksumRequest, ChecksumResponse, Descriptor, ResolveImageConfigRequest,
        ResolveImageConfigResponse, ResolveSourceGitResponse, ResolveSourceHttpResponse,
        ResolveSourceImageResponse, ResolveSourceMetaRequest, ResolveSourceMetaResponse,
        checksum_request::ChecksumAlgo,
    },
    google::protobuf::Timestamp,
};
use lapstrake_builder_dockerfile::{ImageFact, ImageOrigin, ImageQuery};
use lapstrake_builder_llb::{ResolveMode, SourcePolicies, pb};
use lapstrake_builder_source::{SourceError, SourceFacts, SuffixedDigest};
use lapstrake_layerstore_oci::{self as oci, Digest, Platform, Reference};
use lapstrake_session::SessionId;
use tokio_util::sync::CancellationToken;

use super::{Bridge, wire::invalid};
use crate::{Engine, EngineError, engine::internal_vertex, scope::BuildScope};

/// `ResolverType` of a request for an image in a client's layout.
const OCI_LAYOUT: i32 = 1;
const IMAGE_SCHEME: &str = "docker-image";
const LAYOUT_SCHEME: &str = "oci-layout";
const LAYOUT_STORE: &str = "oci.store";
const LAYOUT_SESSION: &str = "oci.session";
const RESOLVE_MODE: &str = "image.resolvemode";
/// Longest suffix of a file that a digest is asked for with; BuildKit's.
const MAX_SUFFIX: usize = 4096;

impl Bridge {
    /// An image's digest and config.
    pub(crate) async fn resolve_image_config(
        &self,
        request: ResolveImageConfigRequest,
    ) -> Result<ResolveImageConfigResponse, EngineError> {
        let (scope, cancel) = (&self.build.scope, &self.build.cancel);
        let first = policies(&request.source_policies)?;
        let origin = match request.resolver_type {
            0 => ImageOrigin::registry(mode(&request.resolve_mode)?),
            OCI_LAYOUT => layout(scope, request.store_id, request.session_id),
            other => return Err(invalid(format!("unknown resolver type {other}"))),
        };
        let query = ImageQuery {
            origin,
            reference: reference(&request.r#ref)?,
            platform: request.platform.as_ref().map_or_else(Platform::host, platform),
        };
        let query = self.engine.judge_image(&query, &scope.policy.after(&first), scope).await?;
        let fact = self.engine.image(&query, request.log_name, scope, cancel).await?;
        Ok(ResolveImageConfigResponse {
            digest: fact.digest.map(|digest| digest.to_string()).unwrap_or_default(),
            config: fact.config.to_vec(),
            r#ref: fact.reference.to_string(),
        })
    }

    /// What a source is. Of those that are nothing but a place, the place.
    pub(crate) async fn resolve_source_meta(
        &self,
        mut request: ResolveSourceMetaRequest,
    ) -> Result<ResolveSourceMetaResponse, EngineError> {
        let scope = &self.build.scope;
        let first = policies(&request.source_policies)?;
        let source = request.source.take().ok_or_else(|| invalid("source is required"))?;
        let op = pb::Op {
            op: Some(pb::op::Op::Source(source)),
            platform: request.platform.clone(),
            ..pb::Op::default()
        };
        let judged = self.engine.judge(&op, &scope.policy.after(&first), scope).await;
        let judged = judged.map_err(SourceError::Policy)?;
        let Some(pb::op::Op::Source(source)) = op.op else { return Err(invalid("source is required")) };
        request.source = Some(judged.unwrap_or(source));
        self.engine.source_meta(request, scope, &self.build.cancel).await
    }
}

impl Engine {
    /// What a source is, whatever policies say of it.
    pub(crate) async fn source_meta(
        &self,
        request: ResolveSourceMetaRequest,
        scope: &BuildScope,
        cancel: &CancellationToken,
    ) -> Result<ResolveSourceMetaResponse, EngineError> {
        let Some(source) = request.source else { return Err(invalid("source is required")) };
        let Some((scheme, rest)) = source.identifier.split_once("://") else {
            return Err(invalid(format!("failed to parse {} source: no scheme", source.identifier)));
        };
        let attr = |name: &str| source.attrs.get(name).cloned().unwrap_or_default();
        let origin = match scheme {
            IMAGE_SCHEME => {
                // A policy may have put it into the source; the call's own word is the first.
                let wanted = Some(request.resolve_mode).filter(|mode| !mode.is_empty());
                ImageOrigin::registry(mode(&wanted.unwrap_or_else(|| attr(RESOLVE_MODE)))?)
            }
            LAYOUT_SCHEME => layout(scope, attr(LAYOUT_STORE), attr(LAYOUT_SESSION)),
            _ => {
                let wanted = Further {
                    objects: request.git.is_some_and(|git| git.return_object),
                    checksum: request.http.and_then(|http| http.checksum_request),
                };
                return self.other_meta(source, request.platform.as_ref(), wanted, scope, cancel).await;
            }
        };
        let wanted = request.image.unwrap_or_default();
        let mut query = ImageQuery {
            origin,
            reference: reference(rest)?,
            platform: request.platform.as_ref().map_or_else(Platform::host, platform),
        };
        let fact = self.image(&query, request.log_name, scope, cancel).await?;
        let mut digest = fact.digest.map(|digest| digest.to_string()).unwrap_or_default();
        let mut chain = None;
        if wanted.attestation_chain || !wanted.resolve_attestations.is_empty() {
            if let Ok(found) = Digest::parse(&digest) {
                // Of the image that was found, also if the name means another one by now.
                query.reference = query.reference.with_digest(found);
            }
            chain = self.attestations(&query, &wanted.resolve_attestations, scope, cancel).await?;
            if let Some(chain) = &chain {
                digest.clone_from(&chain.root);
            }
        }
        let image = ResolveSourceImageResponse {
            digest,
            config: if wanted.no_config { Vec::new() } else { fact.config.to_vec() },
            attestation_chain: chain,
        };
        Ok(ResolveSourceMetaResponse { source: Some(source), image: Some(image), ..Default::default() })
    }

    /// What is attested of an image.
    async fn attestations(
        &self,
        query: &ImageQuery,
        predicate_types: &[String],
        scope: &BuildScope,
        cancel: &CancellationToken,
    ) -> Result<Option<AttestationChain>, EngineError> {
        let name = format!("resolve attestations of {IMAGE_SCHEME}://{}", query.reference);
        let vertex = internal_vertex(&scope.progress, name);
        let cx = self.source_context(scope, vertex.clone(), cancel);
        let sources = &self.workshop().sources;
        let Some(found) = vertex.track(sources.attestations(&cx, query, predicate_types)).await? else {
            return Ok(None);
        };
        let text = |digest: Option<Digest>| digest.map(|digest| digest.to_string()).unwrap_or_default();
        let blob = |(document, data): (oci::Descriptor, Bytes)| {
            let digest = document.digest.to_string();
            let descriptor = Descriptor {
                media_type: document.media_type.to_string(),
                digest: digest.clone(),
                size: i64::try_from(document.size).unwrap_or(i64::MAX),
                annotations: document.annotations.into_iter().collect(),
            };
            (digest, Blob { descriptor: Some(descriptor), data: data.to_vec() })
        };
        Ok(Some(AttestationChain {
            root: found.root.to_string(),
            image_manifest: text(found.image_manifest),
            attestation_manifest: text(found.attestation_manifest),
            signature_manifests: found.signature_manifests.iter().map(Digest::to_string).collect(),
            blobs: found.blobs.into_iter().map(blob).collect(),
        }))
    }

    /// What a source is that is no image.
    async fn other_meta(
        &self,
        source: pb::SourceOp,
        platform: Option<&pb::Platform>,
        wanted: Further,
        scope: &BuildScope,
        cancel: &CancellationToken,
    ) -> Result<ResolveSourceMetaResponse, EngineError> {
        let opened = self.workshop().sources.open(&source, platform)?;
        let vertex = internal_vertex(&scope.progress, format!("resolve metadata for {}", source.identifier));
        let cx = self.source_context(scope, vertex.clone(), cancel);
        let mut answer = ResolveSourceMetaResponse { source: Some(source), ..Default::default() };
        match vertex.track(opened.facts(&cx)).await? {
            SourceFacts::Name => {}
            SourceFacts::File { digest, filename, modified } => {
                let checksum_response = match wanted.checksum {
                    None => None,
                    Some(ChecksumRequest { suffix, .. }) if suffix.len() > MAX_SUFFIX => {
                        let why = format!("http checksum request suffix exceeds max size {MAX_SUFFIX}");
                        return Err(invalid(why));
                    }
                    Some(ChecksumRequest { algo, suffix }) => {
                        let kind = suffixed(algo)?;
                        let tree = vertex.track(opened.fetch(&cx)).await?;
                        let sources = &self.workshop().sources;
                        let digest = sources.suffixed_digest(&tree, &filename, kind, &suffix).await?;
                        Some(ChecksumResponse { digest, suffix })
                    }
                };
                answer.http = Some(ResolveSourceHttpResponse {
                    checksum: digest.to_string(),
                    filename,
                    last_modified: modified.map(|seconds| Timestamp { seconds, nanos: 0 }),
                    checksum_response,
                });
            }
            SourceFacts::Commit { object, reference, commit } => {
                let mut git = ResolveSourceGitResponse {
                    checksum: object,
                    r#ref: reference,
                    commit_checksum: commit.unwrap_or_default(),
                    ..Default::default()
                };
                if wanted.objects
                    && let Some(objects) = vertex.track(opened.commit_objects(&cx)).await?
                {
                    // Only the object itself tells whether a name that was given is a tag's.
                    git.commit_checksum = objects.tagged.unwrap_or_default();
                    git.commit_object = objects.commit;
                    git.tag_object = objects.tag.unwrap_or_default();
                }
                answer.git = Some(git);
            }
        }
        Ok(answer)
    }

    pub(super) async fn image(
        &self,
        query: &ImageQuery,
        shown: String,
        scope: &BuildScope,
        cancel: &CancellationToken,
    ) -> Result<ImageFact, EngineError> {
        let name = match shown.as_str() {
            "" => format!("resolve image config for {IMAGE_SCHEME}://{}", query.reference),
            _ => shown,
        };
        let vertex = internal_vertex(&scope.progress, name);
        let cx = self.source_context(scope, vertex.clone(), cancel);
        let fact = vertex.track(self.workshop().sources.resolve_image(&cx, query)).await?;
        scope.trail.note_query(query, &fact);
        if let Some(known) = &scope.known {
            let id = fact.image_id.as_ref().map(ToString::to_string);
            let digest = id.or_else(|| fact.digest.as_ref().map(ToString::to_string));
            digest.into_iter().for_each(|digest| known.learn_image(&query.reference, digest));
        }
        Ok(fact)
    }
}

/// What is to be told of a source that is no image, besides what it is.
struct Further {
    /// A commit's objects.
    objects: bool,
    /// The digest of a file with a suffix.
    checksum: Option<ChecksumRequest>,
}

/// A layout of a client; of this build's own, unless another one is named.
fn layout(scope: &BuildScope, store_id: String, session_id: String) -> ImageOrigin {
    let own = || scope.session.as_ref().map(SessionId::to_string).unwrap_or_default();
    let session_id = if session_id.is_empty() { own() } else { session_id };
    ImageOrigin::OciLayout { store_id, session_id }
}

fn policies(policies: &[lapstrake_api_proto::sourcepolicy::Policy]) -> Result<SourcePolicies, EngineError> {
    SourcePolicies::from_proto(policies).map_err(|error| invalid(error.to_string()))
}

fn suffixed(algo: i32) -> Result<SuffixedDigest, EngineError> {
    match ChecksumAlgo::try_from(algo) {
        Ok(ChecksumAlgo::Sha256) => Ok(SuffixedDigest::Sha256),
        Ok(ChecksumAlgo::Sha384) => Ok(SuffixedDigest::Sha384),
        Ok(ChecksumAlgo::Sha512) => Ok(SuffixedDigest::Sha512),
        Err(_) => Err(invalid(format!("unsupported checksum algorithm {algo}"))),
    }
}

fn reference(name: &str) -> Result<Reference, EngineError> {
    let parsed = Reference::parse(name);
    let parsed = parsed.map_err(|error| invalid(format!("could not parse reference {name:?}: {error}")))?;
    Ok(parsed.with_default_tag())
}

fn mode(text: &str) -> Result<ResolveMode, EngineError> {
    match text {
        "" | "default" => Ok(ResolveMode::Default),
        "pull" => Ok(ResolveMode::ForcePull),
        "local" => Ok(ResolveMode::PreferLocal),
        _ => Err(invalid(format!("invalid image resolve mode: {text}"))),
    }
}

fn platform(wire: &pb::Platform) -> Platform {
    Platform {
        os: wire.os.clone(),
        architecture: wire.architecture.clone(),
        variant: wire.variant.clone(),
        os_version: wire.os_version.clone(),
        os_features: wire.os_features.clone(),
    }
    .normalized()
}
