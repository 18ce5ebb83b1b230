//! What sources are: images' configs and digests.

use lapstrake_api_proto::gateway::{
    ResolveImageConfigRequest, ResolveImageConfigResponse, ResolveSourceImageResponse, ResolveSourceMetaRequest,
    ResolveSourceMetaResponse,
};
use lapstrake_builder_dockerfile::{ImageFact, ImageOrigin, ImageQuery};
use lapstrake_builder_llb::{ResolveMode, pb};
use lapstrake_layerstore_oci::{Platform, Reference};
use lapstrake_session::SessionId;

use super::{Bridge, wire::invalid};
use crate::{EngineError, engine::internal_vertex};

/// `ResolverType` of a request for an image in a client's layout.
const OCI_LAYOUT: i32 = 1;
const IMAGE_SCHEME: &str = "docker-image";
const LAYOUT_SCHEME: &str = "oci-layout";
const LAYOUT_STORE: &str = "oci.store";
const LAYOUT_SESSION: &str = "oci.session";

impl Bridge {
    /// An image's digest and config.
    pub(crate) async fn resolve_image_config(
        &self,
        request: ResolveImageConfigRequest,
    ) -> Result<ResolveImageConfigResponse, EngineError> {
        if !request.source_policies.is_empty() {
            return Err(EngineError::Unsupported { what: "a source policy of one image".to_owned() });
        }
        let origin = match request.resolver_type {
            0 => ImageOrigin::registry(mode(&request.resolve_mode)?),
            OCI_LAYOUT => self.layout(request.store_id, request.session_id),
            other => return Err(invalid(format!("unknown resolver type {other}"))),
        };
        let query = ImageQuery {
            origin,
            reference: reference(&request.r#ref)?,
            platform: request.platform.as_ref().map_or_else(Platform::host, platform),
        };
        let fact = self.image(&query, request.log_name).await?;
        Ok(ResolveImageConfigResponse {
            digest: fact.digest.map(|digest| digest.to_string()).unwrap_or_default(),
            config: fact.config.to_vec(),
            r#ref: fact.reference.to_string(),
        })
    }

    /// What a source is. Of those that are nothing but a place, the place.
    pub(crate) async fn resolve_source_meta(
        &self,
        request: ResolveSourceMetaRequest,
    ) -> Result<ResolveSourceMetaResponse, EngineError> {
        let Some(source) = request.source else { return Err(invalid("source is required")) };
        if !request.source_policies.is_empty() {
            return Err(EngineError::Unsupported { what: "a source policy of one source".to_owned() });
        }
        let Some((scheme, rest)) = source.identifier.split_once("://") else {
            return Err(invalid(format!("failed to parse {} source: no scheme", source.identifier)));
        };
        let origin = match scheme {
            IMAGE_SCHEME => ImageOrigin::registry(mode(&request.resolve_mode)?),
            LAYOUT_SCHEME => {
                let attr = |name: &str| source.attrs.get(name).cloned().unwrap_or_default();
                self.layout(attr(LAYOUT_STORE), attr(LAYOUT_SESSION))
            }
            "local" => {
                return Ok(ResolveSourceMetaResponse { source: Some(source), ..Default::default() });
            }
            _ => return Err(EngineError::Unsupported { what: format!("metadata of {scheme}:// sources") }),
        };
        let wanted = request.image.unwrap_or_default();
        if wanted.attestation_chain || !wanted.resolve_attestations.is_empty() {
            return Err(EngineError::Unsupported { what: "the attestation chain of an image".to_owned() });
        }
        let query = ImageQuery {
            origin,
            reference: reference(rest)?,
            platform: request.platform.as_ref().map_or_else(Platform::host, platform),
        };
        let fact = match wanted.no_config {
            true => None,
            false => Some(self.image(&query, request.log_name).await?),
        };
        let image = fact.map(|fact| ResolveSourceImageResponse {
            digest: fact.digest.map(|digest| digest.to_string()).unwrap_or_default(),
            config: fact.config.to_vec(),
            attestation_chain: None,
        });
        Ok(ResolveSourceMetaResponse {
            source: Some(source),
            image: Some(image.unwrap_or_default()),
            ..Default::default()
        })
    }

    /// A layout of a client; of this build's own, unless another one is named.
    fn layout(&self, store_id: String, session_id: String) -> ImageOrigin {
        let own = || self.build.scope.session.as_ref().map(SessionId::to_string).unwrap_or_default();
        let session_id = if session_id.is_empty() { own() } else { session_id };
        ImageOrigin::OciLayout { store_id, session_id }
    }

    async fn image(&self, query: &ImageQuery, shown: String) -> Result<ImageFact, EngineError> {
        let name = match shown.as_str() {
            "" => format!("resolve image config for {IMAGE_SCHEME}://{}", query.reference),
            _ => shown,
        };
        let vertex = internal_vertex(&self.build.progress, name);
        let cx = self.engine.source_context(&self.build.scope, vertex.clone(), &self.build.cancel);
        let fact = vertex.track(self.engine.workshop().sources.resolve_image(&cx, query)).await?;
        if let Some(known) = &self.build.scope.known {
            let id = fact.image_id.as_ref().map(ToString::to_string);
            let digest = id.or_else(|| fact.digest.as_ref().map(ToString::to_string));
            digest.into_iter().for_each(|digest| known.learn_image(&query.reference, digest));
        }
        Ok(fact)
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
