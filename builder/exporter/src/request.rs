//! What is to be left behind, and what was.

use std::path::PathBuf;

use lapstrake_layerstore_oci::{Descriptor, ImageConfig, ImageId, Platform, Reference};
use lapstrake_layerstore_store::Tree;
use lapstrake_session::SessionId;

/// What a build leaves behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Nothing but cache.
    CacheOnly,
    /// An image in the store, under these names (none: a dangling image).
    Image {
        /// Names to put on it.
        names: Vec<Reference>,
    },
    /// The tree, as a directory.
    Local(Destination),
    /// The tree, as a tar stream.
    Tar(Destination),
    /// The image as an OCI layout in a tar stream.
    Oci {
        /// Names in the layout's index.
        names: Vec<Reference>,
        /// Where it goes.
        to: Destination,
    },
    /// The image as `docker load` takes it, in a tar stream.
    Docker {
        /// Names in the archive.
        names: Vec<Reference>,
        /// Where it goes.
        to: Destination,
    },
}

/// Where a directory or a stream goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// To the client, through its session.
    Session,
    /// To a path of this machine.
    Path(PathBuf),
    /// To this process's standard output (streams only).
    Stdout,
}

/// The result for one platform.
#[derive(Debug, Clone)]
pub struct PlatformResult {
    /// Which.
    pub platform: Platform,
    /// Its files.
    pub tree: Tree,
    /// Its config, complete but for layers and times.
    pub config: ImageConfig,
    /// `SOURCE_DATE_EPOCH` in seconds since 1970: the time that the config says it was created at.
    pub epoch: Option<i64>,
}

/// One export.
#[derive(Debug)]
pub struct ExportRequest {
    /// What to leave behind.
    pub output: Output,
    /// What was built; one for each platform, at least one.
    pub results: Vec<PlatformResult>,
    /// The client's session.
    pub session: Option<SessionId>,
}

/// What an export left behind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exported {
    /// The image: its config's digest.
    pub image: Option<ImageId>,
    /// Names that were put on it, in the order asked for.
    pub names: Vec<Reference>,
    /// The manifest, when one was made.
    pub manifest: Option<Descriptor>,
}
