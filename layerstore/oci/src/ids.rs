//! Digests with a meaning: which bytes each is a digest of.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Digest, OciError};

macro_rules! digest_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Digest);

        impl $name {
            /// The digest itself.
            pub fn digest(&self) -> &Digest {
                &self.0
            }

            /// The digest's text, `algorithm:hex`.
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }

            /// The hex part.
            pub fn hex(&self) -> &str {
                self.0.hex()
            }

            /// The first 12 hex characters.
            pub fn short(&self) -> &str {
                self.0.short()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl From<Digest> for $name {
            fn from(d: Digest) -> Self {
                $name(d)
            }
        }

        impl FromStr for $name {
            type Err = OciError;
            fn from_str(s: &str) -> Result<Self, OciError> {
                Digest::parse(s).map($name)
            }
        }
    };
}

digest_id! {
    /// The digest of a layer's uncompressed tar stream.
    DiffId
}
digest_id! {
    /// The identity of a stack of layers (OCI image-spec, "Layer ChainID"): the first layer's [`DiffId`], then
    /// the SHA-256 of `"<parent chain> <diff id>"` for each layer above.
    ChainId
}
digest_id! {
    /// An image's identity: the digest of its config document.
    ImageId
}

impl ChainId {
    /// The chain of all the given layers, bottom first; `None` for no layers.
    pub fn of(diff_ids: &[DiffId]) -> Option<ChainId> {
        let (first, rest) = diff_ids.split_first()?;
        let bottom = ChainId(first.0.clone());
        Some(rest.iter().fold(bottom, |chain, d| chain.extend(d)))
    }

    /// The chain of every prefix of the given layers, bottom first: one per layer.
    pub fn all_of(diff_ids: &[DiffId]) -> Vec<ChainId> {
        let mut out: Vec<ChainId> = Vec::with_capacity(diff_ids.len());
        for d in diff_ids {
            out.push(ChainId::on(out.last(), d));
        }
        out
    }

    /// The chain id of a layer on top of `below`, or of a bottom layer.
    pub fn on(below: Option<&ChainId>, diff_id: &DiffId) -> ChainId {
        below.map_or_else(|| ChainId::from(diff_id.digest().clone()), |below| below.extend(diff_id))
    }

    /// The chain with one more layer on top.
    pub fn extend(&self, diff_id: &DiffId) -> ChainId {
        ChainId(Digest::sha256_of(format!("{} {}", self.0, diff_id.0)))
    }
}
