//! All kinds of source, as one value to pass along.

use std::{
    path::PathBuf,
    sync::{Arc, LazyLock},
    time::Duration,
};

use lapstrake_builder_cache::BuildCache;
use lapstrake_builder_dockerfile::{ImageFact, ImageOrigin, ImageQuery};
use lapstrake_builder_files::ContentHasher;
use lapstrake_builder_llb::pb;
use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_registry::RegistryClient;
use lapstrake_layerstore_store::{Stores, Tree};
use lapstrake_session::{Sessions, fsutil};
use reqwest::redirect::Policy;

use crate::{
    Source, SourceContext, SourceError,
    attrs::shown,
    error::chain,
    git::{Pinned, sweep},
    http::{MAX_REDIRECTS, Resolved, SuffixedDigest, client},
    image::Images,
    resolutions::Resolutions,
    turns::Turns,
};

/// What sources are made of.
pub struct SourcesOptions {
    /// Where trees and blobs go.
    pub stores: Stores,
    /// Remembers clients' directories and files from servers between builds.
    pub cache: Arc<BuildCache>,
    /// Live client sessions.
    pub sessions: Sessions,
    /// Asks registries as a stranger; each build adds its credentials.
    pub registry: RegistryClient,
    /// A directory for what git needs while it works, private to the daemon. Made when it is needed; its content goes between runs.
    pub root: PathBuf,
    /// How much, and how long.
    pub limits: SourceLimits,
}

/// How much a source may give, and how long it may take to give it.
#[derive(Debug, Clone)]
pub struct SourceLimits {
    /// Longest file from an URL, in bytes.
    pub http_bytes: u64,
    /// Longest time without a byte from a server.
    pub http_stall: Duration,
    /// Time to make a connection to a server.
    pub http_connect: Duration,
    /// Longest time that the git program may take for one command.
    pub git_command: Duration,
    /// Longest time without a byte from a git server; a busy one may think for a while before it sends a pack.
    pub git_stall: Duration,
    /// Bytes of memory that each of git's processes may have, besides files that it maps.
    pub git_memory: u64,
    /// Bytes that git leaves free on the disk.
    pub git_spare: u64,
    /// How many packs a remote's repository may have before it is made smaller: each fetch adds one.
    pub git_packs: usize,
    /// How large a client's directory may be.
    pub directory: fsutil::Limits,
    /// How many images' documents are kept between being resolved and being fetched.
    pub resolutions: usize,
}

impl Default for SourceLimits {
    fn default() -> Self {
        Self {
            http_bytes: 64 << 30,
            http_stall: Duration::from_secs(60),
            http_connect: Duration::from_secs(30),
            git_command: Duration::from_secs(60 * 60),
            git_stall: Duration::from_secs(10 * 60),
            git_memory: 4 << 30,
            git_spare: 64 << 20,
            git_packs: 40,
            directory: fsutil::Limits::default(),
            resolutions: 256,
        }
    }
}

/// The digest of a source's cache key, as BuildKit's source op makes it (`solver/llbsolver/ops/source.go`).
pub(crate) fn cache_key(key: &str) -> Digest {
    Digest::sha256_of(format!("buildkit.source.v0:{key}"))
}

/// A client for URLs, or why there is none. Made when it is first needed: it reads all the certificates that the machine trusts.
pub(crate) type LazyClient = LazyLock<
    Result<reqwest::Client, String>,
    Box<dyn FnOnce() -> Result<reqwest::Client, String> + Send + Sync>,
>;

/// What all sources share.
pub(crate) struct Shared {
    pub(crate) stores: Stores,
    pub(crate) content: Arc<ContentHasher>,
    pub(crate) cache: Arc<BuildCache>,
    pub(crate) sessions: Sessions,
    pub(crate) limits: SourceLimits,
    pub(crate) images: Images,
    /// One transfer of a directory, or of a repository, at a time.
    pub(crate) turns: Turns,
    /// Files from servers and clients.
    pub(crate) downloads: Resolutions<Resolved>,
    /// What references name.
    pub(crate) pins: Resolutions<Pinned>,
    /// The client for URLs.
    pub(crate) http: LazyClient,
    /// The same, which is told of redirects and does not follow them.
    pub(crate) http_once: LazyClient,
    pub(crate) root: PathBuf,
}

/// Opens sources. Cheap to clone.
#[derive(Clone)]
pub struct Sources {
    shared: Arc<Shared>,
}

impl Sources {
    /// Sources over these stores. One per daemon: it serialises what must not happen twice at once. Blocks while it removes what a daemon that
    /// was killed left.
    pub fn new(options: SourcesOptions) -> Self {
        let SourcesOptions { stores, cache, sessions, registry, root, limits } = options;
        let images = Images::new(stores.clone(), sessions.clone(), registry, limits.resolutions);
        sweep(&root);
        let (connect, stall) = (limits.http_connect, limits.http_stall);
        // It fails where the machine has no certificates: that is no reason to build nothing.
        let client = |redirects: fn() -> Policy| -> LazyClient {
            LazyLock::new(Box::new(move || {
                client(connect, stall, redirects()).map_err(|error| chain(&error))
            }))
        };
        let (http, http_once) = (client(|| Policy::limited(MAX_REDIRECTS)), client(Policy::none));
        let content = Arc::new(ContentHasher::new(stores.clone()));
        let shared = Shared {
            stores,
            content,
            cache,
            sessions,
            limits,
            images,
            turns: Turns::default(),
            downloads: Resolutions::default(),
            pins: Resolutions::default(),
            http,
            http_once,
            root,
        };
        Self { shared: Arc::new(shared) }
    }

    /// What makes digests of trees' contents. It learns those of files from transfers of clients' directories.
    pub fn content(&self) -> &Arc<ContentHasher> {
        &self.shared.content
    }

    /// The source that an op names. Nothing is asked of anybody yet.
    ///
    /// # Errors
    /// [`SourceError::Identifier`], [`SourceError::Attribute`], [`SourceError::Unsupported`].
    pub fn open(
        &self,
        op: &pb::SourceOp,
        platform: Option<&pb::Platform>,
    ) -> Result<Arc<dyn Source>, SourceError> {
        let unsupported = |scheme: &str| SourceError::Unsupported {
            origin: shown(&op.identifier),
            what: format!("{scheme}://"),
        };
        let Some((scheme, rest)) = op.identifier.split_once("://") else {
            return Err(SourceError::Identifier {
                origin: shown(&op.identifier),
                why: "no scheme".to_owned(),
            });
        };
        match scheme {
            "docker-image" => crate::image::open(&self.shared, rest, op, platform),
            "git" => crate::git::open(&self.shared, rest, op),
            "http" | "https" => crate::http::open(&self.shared, op),
            "local" => crate::local::open(&self.shared, rest, op),
            "oci-layout" => crate::layout::open(&self.shared, rest, op, platform),
            "docker-image+blob" => crate::blob::open(&self.shared, "docker-image+blob", rest, op),
            "oci-layout+blob" => crate::blob::open(&self.shared, "oci-layout+blob", rest, op),
            scheme => Err(unsupported(scheme)),
        }
    }

    /// Finds out what an image is: in the local store, a registry or a client's layout, as the query says.
    ///
    /// Documents from a registry are kept for a while, so that fetching the image asks for nothing again. Cancelled by the context's token
    /// or by dropping the future.
    ///
    /// # Errors
    /// [`SourceError::Registry`], [`SourceError::Store`]; for a layout, [`SourceError::Session`] and what is wrong with the image.
    pub async fn resolve_image(
        &self,
        cx: &SourceContext,
        query: &ImageQuery,
    ) -> Result<ImageFact, SourceError> {
        match &query.origin {
            ImageOrigin::Registry { .. } => self.shared.images.fact(cx, query).await,
            ImageOrigin::OciLayout { .. } => crate::layout::fact(&self.shared, cx, query).await,
        }
    }

    /// What is attested of an image, with the statements of these predicate types; `None` where an image has no place for it. Clients' layouts are not looked
    /// into.
    ///
    /// # Errors
    /// [`SourceError::Registry`], [`SourceError::Store`], [`SourceError::Unsuitable`].
    pub async fn attestations(
        &self,
        cx: &SourceContext,
        query: &ImageQuery,
        predicate_types: &[String],
    ) -> Result<Option<crate::AttestationChain>, SourceError> {
        match &query.origin {
            ImageOrigin::Registry { .. } => self.shared.images.attestations(cx, query, predicate_types).await,
            ImageOrigin::OciLayout { .. } => Ok(None),
        }
    }

    /// Holds no documents any more of images that no build waits for: pruning frees them.
    pub fn forget_images(&self) {
        self.shared.images.forget();
    }

    /// The registry client with the logins of those who wait: for what is no image, such as an exported cache.
    pub fn registry(&self, cx: &SourceContext) -> RegistryClient {
        self.shared.images.client(cx)
    }

    /// The digest of a file of a tree followed by `suffix`, as clients that verify signatures ask for it.
    ///
    /// # Errors
    /// [`SourceError::Io`], [`SourceError::Store`].
    pub async fn suffixed_digest(
        &self,
        tree: &Tree,
        name: &str,
        kind: SuffixedDigest,
        suffix: &[u8],
    ) -> Result<String, SourceError> {
        crate::http::suffixed_digest(&self.shared, tree, name, kind, suffix).await
    }

    /// Whether what an URL gives is an archive of a build context; else it is a Dockerfile.
    ///
    /// # Errors
    /// As fetching it.
    pub async fn is_archive(&self, cx: &SourceContext, url: &str) -> Result<bool, SourceError> {
        crate::http::context_is_archive(&self.shared, cx, url).await
    }
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources").field("root", &self.shared.root).finish_non_exhaustive()
    }
}
