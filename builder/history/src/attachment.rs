//! Documents that are kept with a build's record: what it is known by to others.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Longest document that is kept.
pub(crate) const MOST_BYTES: usize = 16 << 20;
/// Most documents of a build that are kept.
pub(crate) const MOST: usize = 1000;

/// What a document is to its build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachmentKind {
    /// Why it failed: an encoded `google.rpc.Status`, with its details.
    Failure,
    /// What its spans were (OpenTelemetry).
    Trace,
    /// What is attested of the result of a platform; of the one result there is, if none is named.
    Attestation {
        /// Such as `linux/amd64`.
        platform: Option<String>,
    },
}

/// A document of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// What it is to the build.
    pub kind: AttachmentKind,
    /// Its media type.
    pub media_type: String,
    /// Facts about it, as a descriptor has them.
    pub annotations: BTreeMap<String, String>,
    /// Itself. Nothing in it may be secret.
    pub data: Vec<u8>,
}

/// A document of a build, without itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentRecord {
    /// What it is to the build.
    pub kind: AttachmentKind,
    /// Its media type.
    pub media_type: String,
    /// Facts about it, as a descriptor has them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Its digest, by which it is found.
    pub digest: String,
    /// Its length.
    pub bytes: u64,
}
