//! Marks: enough of a digest to see that something changed, and too little to be it.

use lapstrake_layerstore_oci::Digest;
use serde::{Deserialize, Serialize};

/// The first 64 bits of a SHA-256. Equal values have equal marks; that different values have is as good as impossible, and would
/// hide a reason, nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Mark(pub(crate) u64);

impl Mark {
    /// The mark of a value.
    pub fn of(value: impl AsRef<[u8]>) -> Self {
        Self::of_digest(&Digest::sha256_of(value.as_ref()))
    }

    /// The mark of something known by its digest.
    pub fn of_digest(digest: &Digest) -> Self {
        // A digest is 64 hex digits; one of another algorithm has more.
        Self(u64::from_str_radix(digest.hex().get(..16).unwrap_or_default(), 16).unwrap_or_default())
    }

    /// The mark of several values together, in order.
    pub fn of_all<V: AsRef<[u8]>>(values: impl IntoIterator<Item = V>) -> Self {
        let mut bytes = Vec::new();
        for value in values {
            let value = value.as_ref();
            bytes.extend((value.len() as u64).to_le_bytes());
            bytes.extend(value);
        }
        Self::of(bytes)
    }
}
