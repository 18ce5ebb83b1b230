//! What a source turned out to be: what provenance says that something was made of.

use lapstrake_layerstore_oci::{Digest, Platform};

/// What a source turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Material {
    /// An image.
    Image {
        /// As it was asked for, with tag or digest.
        reference: String,
        /// For which platform; of the whole index if there is none.
        platform: Option<Platform>,
        /// Of its index or manifest; of its config where nobody made a manifest of it yet.
        digest: Option<Digest>,
        /// Whether it came of a client's layout.
        is_local: bool,
    },
    /// A blob of a repository, as a file.
    Blob(BlobMaterial),
    /// A repository's tree.
    Git {
        /// Where, and `#` with what was asked for of it. May hold credentials.
        url: String,
        /// The commit, or the annotated tag, that it was.
        commit: String,
        /// Secrets that gave access.
        secrets: Vec<String>,
        /// An SSH agent that gave access.
        ssh_agent: Option<String>,
        /// The blob that took the repository's place.
        bundle: Option<BlobMaterial>,
    },
    /// A file of a server.
    Http {
        /// Where. May hold credentials.
        url: String,
        /// Of its content.
        digest: Digest,
    },
    /// A client's directory.
    Local {
        /// What the client calls it.
        name: String,
    },
}

/// A blob of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobMaterial {
    /// With its digest.
    pub reference: String,
    /// Of it.
    pub digest: Digest,
    /// Whether it came of a client's layout.
    pub is_local: bool,
}
