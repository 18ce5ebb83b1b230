//! Why a result could not be left behind.

use std::path::PathBuf;

use lapstrake_layerstore_diff::DiffError;
use lapstrake_layerstore_oci::OciError;
use lapstrake_layerstore_registry::RegistryError;
use lapstrake_layerstore_store::StoreError;
use lapstrake_layerstore_transfer::TransferError;

/// Why a result could not be left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// A store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A layer or an archive could not be made.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// A tree could not be read, or written to a directory.
    #[error("write the files of the result")]
    Tree(#[from] DiffError),
    /// A registry failed, or refused.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The client's session failed, or refused.
    #[error(transparent)]
    Session(#[from] lapstrake_session::Error),
    /// The output goes to the client, and the build has no session.
    #[error("{output}: the output goes to the client, and this build came without a session")]
    NoSession {
        /// What was being exported.
        output: &'static str,
    },
    /// The image's config is not one that can be stored.
    #[error("invalid image config for export")]
    Config(#[from] OciError),
    /// The image's config lacks what every image says.
    #[error("invalid image config for export: missing {field}")]
    Incomplete {
        /// Which field.
        field: &'static str,
    },
    /// This output does not exist for this result.
    #[error("{output}: {why}")]
    Unsupported {
        /// What was being exported.
        output: &'static str,
        /// Why not.
        why: &'static str,
    },
    /// Docker's archives have no place for several platforms.
    #[error("docker exporter does not currently support exporting manifest lists")]
    ManifestList,
    /// Several platforms were built for an output of one.
    #[error("cannot export multiple platforms without multi-platform enabled")]
    SeveralPlatforms,
    /// Two platforms have the same file, and their directories are one.
    #[error("cannot overwrite {path} from {first} with {second} when split option is disabled")]
    Double {
        /// The file.
        path: String,
        /// The platform that has it.
        first: String,
        /// The platform that has it, too.
        second: String,
    },
    /// There is no output of this type.
    #[error("exporter {kind:?} could not be found")]
    NoSuchExporter {
        /// What was asked for.
        kind: String,
    },
    /// An attribute of the output has a value that means nothing.
    #[error("invalid {name}: {why}")]
    Option {
        /// The attribute.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// Attributes of the output mean nothing, or not together, or not for this result.
    #[error("{why}")]
    Conflict {
        /// What is wrong with them.
        why: String,
    },
    /// Annotations were given for a platform that was not built.
    #[error("invalid annotation: no platform {platform} found in source")]
    NoSuchPlatform {
        /// The platform.
        platform: String,
    },
    /// A registry did not take the image.
    #[error("failed to push {name}: {source}")]
    Push {
        /// The name that was pushed.
        name: String,
        /// Why.
        #[source]
        source: Box<ExportError>,
    },
    /// An attestation is not what it should be.
    #[error("attestation {path}: {why}")]
    Attestation {
        /// Its file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// There is nothing to export.
    #[error("nothing was built that could be exported")]
    NoResults,
    /// Writing to a path of this machine, or to standard output, failed.
    #[error("{doing} {path}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// Nobody waits for it any more.
    #[error("context canceled")]
    Canceled,
}

impl ExportError {
    /// An attribute whose value means nothing.
    pub(crate) fn option(name: &str, why: impl Into<String>) -> Self {
        Self::Option { name: name.to_owned(), why: why.into() }
    }

    /// Attributes that mean nothing, or not together.
    pub(crate) fn conflict(why: impl Into<String>) -> Self {
        Self::Conflict { why: why.into() }
    }

    /// An I/O error with what was being done, and where. Use as `.map_err(ExportError::io("create", path))`.
    pub(crate) fn io<E: Into<std::io::Error>>(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source: source.into() }
    }

    /// Runs blocking work on a thread that may block.
    pub(crate) async fn blocking<T: Send + 'static>(
        work: impl FnOnce() -> Result<T, Self> + Send + 'static,
    ) -> Result<T, Self> {
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
}
