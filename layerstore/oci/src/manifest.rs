//! Image manifests and indexes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Descriptor, MediaType, OciError, descriptor::null_default, gojson};

/// An image manifest, OCI or Docker schema 2: a config and layers, bottom first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always 2.
    #[serde(rename = "schemaVersion")]
    pub schema_version: u32,
    /// The document's own type, when it says.
    #[serde(rename = "mediaType", default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<MediaType>,
    /// The artifact's type, when it is one.
    #[serde(rename = "artifactType", default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The image config.
    pub config: Descriptor,
    /// The layers, bottom first.
    #[serde(default, deserialize_with = "null_default")]
    pub layers: Vec<Descriptor>,
    /// The manifest this one is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Arbitrary facts.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Fields this crate does not know.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

/// An OCI index or Docker manifest list: one manifest per platform (and attestations).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// Always 2.
    #[serde(rename = "schemaVersion")]
    pub schema_version: u32,
    /// The document's own type, when it says.
    #[serde(rename = "mediaType", default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<MediaType>,
    /// The artifact's type, when it is one.
    #[serde(rename = "artifactType", default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The manifests.
    #[serde(default, deserialize_with = "null_default")]
    pub manifests: Vec<Descriptor>,
    /// The manifest this one is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Arbitrary facts.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Fields this crate does not know.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

impl Manifest {
    /// A manifest of the given type (OCI or Docker) without annotations.
    pub fn new(media_type: MediaType, config: Descriptor, layers: Vec<Descriptor>) -> Manifest {
        Manifest {
            schema_version: 2,
            media_type: Some(media_type),
            artifact_type: None,
            config,
            layers,
            subject: None,
            annotations: BTreeMap::new(),
            extra: BTreeMap::new(),
        }
    }

    /// Reads a manifest; a document that is also an index is refused (CVE-2021-41190: one document, two meanings).
    pub fn from_json(bytes: &[u8]) -> Result<Manifest, OciError> {
        let m: Manifest = serde_json::from_slice(bytes).map_err(|e| OciError::json("image manifest", &e))?;
        if m.schema_version != 2 || m.extra.contains_key("manifests") || m.extra.contains_key("fsLayers") {
            return Err(OciError::Json {
                what: "image manifest",
                reason: "neither an OCI nor a Docker schema 2 image manifest".to_owned(),
            });
        }
        Ok(m)
    }

    /// The compact form.
    pub fn to_json(&self) -> Result<Vec<u8>, OciError> {
        gojson::to_vec(self)
    }
}

impl Index {
    /// An index of the given type (OCI or Docker) without annotations.
    pub fn new(media_type: MediaType, manifests: Vec<Descriptor>) -> Index {
        Index {
            schema_version: 2,
            media_type: Some(media_type),
            artifact_type: None,
            manifests,
            subject: None,
            annotations: BTreeMap::new(),
            extra: BTreeMap::new(),
        }
    }

    /// Reads an index; a document that is also a manifest is refused (CVE-2021-41190: one document, two meanings).
    pub fn from_json(bytes: &[u8]) -> Result<Index, OciError> {
        let i: Index = serde_json::from_slice(bytes).map_err(|e| OciError::json("image index", &e))?;
        let ambiguous = ["layers", "config", "fsLayers"].iter().any(|k| i.extra.contains_key(*k));
        if i.schema_version != 2 || ambiguous {
            return Err(OciError::Json {
                what: "image index",
                reason: "neither an OCI index nor a Docker manifest list".to_owned(),
            });
        }
        Ok(i)
    }

    /// The compact form.
    pub fn to_json(&self) -> Result<Vec<u8>, OciError> {
        gojson::to_vec(self)
    }
}
