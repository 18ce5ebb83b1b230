//! What is to be left behind, and what was.

use std::path::PathBuf;

use lapstrake_layerstore_oci::{Descriptor, Digest, ImageConfig, ImageId, Platform, Reference};
use lapstrake_layerstore_store::Tree;
use lapstrake_session::SessionId;

use crate::ExportError;

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
    Local {
        /// Where it goes.
        to: Destination,
        /// Whether each platform gets a directory of its own, such as `linux_arm64`; if not said, when there may be several.
        split: Option<bool>,
    },
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

impl Output {
    /// The tree as a directory, split where there may be several platforms.
    pub fn local(to: Destination) -> Self {
        Self::Local { to, split: None }
    }

    /// Whether it has room for images of several platforms, or an error that says why not.
    pub fn admits(&self, multi_platform: bool) -> Result<(), ExportError> {
        match self {
            Self::Docker { .. } if multi_platform => Err(ExportError::ManifestList),
            _ => Ok(()),
        }
    }
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
    /// Whether it is one result of several, also where there is but one: an index, or directories by platform.
    pub multi_platform: bool,
    /// The client's session.
    pub session: Option<SessionId>,
}

/// What an export left behind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exported {
    /// The image: its config's digest. Of several platforms' images in the store, the one that its names point at.
    pub image: Option<ImageId>,
    /// Names that were put on it, in the order asked for.
    pub names: Vec<Reference>,
    /// The manifest or index, when one was made.
    pub manifest: Option<Descriptor>,
}

impl Exported {
    /// What is called the image's digest where there is room for one: that of its index (BuildKit's `containerimage.digest`), or else of its config.
    pub fn digest(&self) -> Option<&Digest> {
        let index = self.manifest.as_ref().filter(|manifest| manifest.media_type.is_index());
        index.map(|index| &index.digest).or(self.image.as_ref().map(ImageId::digest))
    }
}
