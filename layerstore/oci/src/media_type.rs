//! Media types of Docker's schema 2 and of OCI.

use std::{borrow::Cow, fmt};

use serde::{Deserialize, Serialize};

/// A media type, known or not. Compare with the constants; ask with the `is_…` methods.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MediaType(Cow<'static, str>);

/// How a layer blob is compressed, as its media type tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerCompression {
    /// A plain tar.
    None,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

macro_rules! constants {
    ($($(#[$doc:meta])* $name:ident = $value:literal;)*) => {
        impl MediaType {
            $($(#[$doc])* pub const $name: MediaType = MediaType(Cow::Borrowed($value));)*
        }
    };
}

constants! {
    /// Docker schema 1 manifest, unsigned: recognised so that it can be refused.
    DOCKER_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json";
    /// Docker schema 1 manifest, signed: recognised so that it can be refused.
    DOCKER_SCHEMA1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    /// Docker schema 2 manifest.
    DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker manifest list.
    DOCKER_MANIFEST_LIST = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker image config.
    DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json";
    /// Docker plugin config: not an image.
    DOCKER_PLUGIN_CONFIG = "application/vnd.docker.plugin.v1+json";
    /// Docker layer, uncompressed.
    DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar";
    /// Docker layer, gzip.
    DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    /// Docker layer, zstd.
    DOCKER_LAYER_ZSTD = "application/vnd.docker.image.rootfs.diff.tar.zstd";
    /// Docker foreign layer, uncompressed.
    DOCKER_FOREIGN_LAYER = "application/vnd.docker.image.rootfs.foreign.diff.tar";
    /// Docker foreign layer, gzip.
    DOCKER_FOREIGN_LAYER_GZIP = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    /// OCI manifest.
    OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json";
    /// OCI index.
    OCI_INDEX = "application/vnd.oci.image.index.v1+json";
    /// OCI image config.
    OCI_CONFIG = "application/vnd.oci.image.config.v1+json";
    /// OCI layer, uncompressed.
    OCI_LAYER = "application/vnd.oci.image.layer.v1.tar";
    /// OCI layer, gzip.
    OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip";
    /// OCI layer, zstd.
    OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd";
    /// OCI non-distributable layer, uncompressed.
    OCI_NONDISTRIBUTABLE_LAYER = "application/vnd.oci.image.layer.nondistributable.v1.tar";
    /// OCI non-distributable layer, gzip.
    OCI_NONDISTRIBUTABLE_LAYER_GZIP = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
    /// OCI non-distributable layer, zstd.
    OCI_NONDISTRIBUTABLE_LAYER_ZSTD = "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd";
    /// OCI empty descriptor's content, `{}`.
    OCI_EMPTY = "application/vnd.oci.empty.v1+json";
    /// BuildKit's exported cache document.
    BUILDKIT_CACHE_CONFIG = "application/vnd.buildkit.cacheconfig.v0";
    /// An in-toto attestation, in the layers of a BuildKit attestation manifest.
    IN_TOTO = "application/vnd.in-toto+json";
}

impl MediaType {
    /// A media type as found in a document or header; parameters (`; charset=…`) are cut off.
    pub fn new(s: impl Into<String>) -> MediaType {
        let mut s: String = s.into();
        if let Some(i) = s.find(';') {
            s.truncate(i);
        }
        let trimmed = s.trim();
        if trimmed.len() != s.len() {
            s = trimmed.to_owned();
        }
        MediaType(Cow::Owned(s))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// An OCI index or a Docker manifest list.
    pub fn is_index(&self) -> bool {
        *self == MediaType::OCI_INDEX || *self == MediaType::DOCKER_MANIFEST_LIST
    }

    /// An OCI or Docker schema 2 image manifest.
    pub fn is_manifest(&self) -> bool {
        *self == MediaType::OCI_MANIFEST || *self == MediaType::DOCKER_MANIFEST
    }

    /// A schema 1 manifest, signed or not.
    pub fn is_schema1(&self) -> bool {
        *self == MediaType::DOCKER_SCHEMA1 || *self == MediaType::DOCKER_SCHEMA1_SIGNED
    }

    /// An image config, of Docker or OCI.
    pub fn is_config(&self) -> bool {
        *self == MediaType::OCI_CONFIG || *self == MediaType::DOCKER_CONFIG
    }

    /// A layer that registries need not hold (foreign, non-distributable): it is fetched from its URLs.
    pub fn is_nondistributable(&self) -> bool {
        let s = self.as_str();
        s.starts_with("application/vnd.docker.image.rootfs.foreign.")
            || s.starts_with("application/vnd.oci.image.layer.nondistributable.")
    }

    /// A layer's tar, whatever its compression.
    pub fn is_layer(&self) -> bool {
        self.layer_compression().is_some()
    }

    /// The compression of a layer, or `None` if this is not a known layer type.
    pub fn layer_compression(&self) -> Option<LayerCompression> {
        let s = self.as_str();
        let rest = [
            "application/vnd.docker.image.rootfs.foreign.diff.tar",
            "application/vnd.docker.image.rootfs.diff.tar",
            "application/vnd.oci.image.layer.nondistributable.v1.tar",
            "application/vnd.oci.image.layer.v1.tar",
        ]
        .iter()
        .find_map(|p| s.strip_prefix(p))?;
        match rest {
            "" => Some(LayerCompression::None),
            ".gzip" | "+gzip" => Some(LayerCompression::Gzip),
            ".zstd" | "+zstd" => Some(LayerCompression::Zstd),
            _ => None,
        }
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl PartialEq<str> for MediaType {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl From<String> for MediaType {
    fn from(s: String) -> Self {
        MediaType::new(s)
    }
}

impl From<&str> for MediaType {
    fn from(s: &str) -> Self {
        MediaType::new(s)
    }
}
