//! What sources are: images' configs, checksums of files, commits.

use lapstrake_api_proto::gateway::{
    ResolveImageConfigRequest, ResolveImageConfigResponse, ResolveSourceMetaRequest,
    ResolveSourceMetaResponse,
};

use super::Bridge;
use crate::EngineError;

impl Bridge {
    /// An image's digest and config.
    pub(crate) async fn resolve_image_config(
        &self,
        _: ResolveImageConfigRequest,
    ) -> Result<ResolveImageConfigResponse, EngineError> {
        Err(EngineError::Unsupported { what: "ResolveImageConfig".to_owned() })
    }

    /// What a source is.
    pub(crate) async fn resolve_source_meta(
        &self,
        _: ResolveSourceMetaRequest,
    ) -> Result<ResolveSourceMetaResponse, EngineError> {
        Err(EngineError::Unsupported { what: "ResolveSourceMeta".to_owned() })
    }
}
