//! What an image's name means.

use std::{collections::VecDeque, sync::Arc};

use lapstrake_builder_dockerfile::{ImageFact, ImageQuery};
use lapstrake_builder_llb::ResolveMode;
use lapstrake_layerstore_oci::{
    Descriptor, DiffId, Digest, ImageConfig, Index, MediaType, Platform, PlatformMatcher, Reference,
};
use lapstrake_layerstore_registry::{
    ProgressFn, PullTarget, RegistryClient, RegistryError, Resolved, ResolvedImage,
};
use lapstrake_layerstore_store::{ImageRecord, Lease, Resource, StoreError, Stores, Tree};
use lapstrake_layerstore_transfer::{TransferError, stored_manifest};
use lapstrake_session::Sessions;
use parking_lot::Mutex;

use super::Logins;
use crate::{SourceContext, SourceError};

/// Longest manifest or index read from the store; the registry client stores none that is longer.
const MAX_MANIFEST: u64 = 4 << 20;

/// An image that a name means.
#[derive(Clone)]
pub(super) enum Found {
    /// It is in the local image store.
    Local { record: Arc<ImageRecord>, tree: Tree },
    /// A registry has it; its documents are here.
    Remote { image: Arc<ResolvedImage>, _lease: Arc<Lease> },
}

impl Found {
    /// Its layers, bottom first.
    pub(super) fn diff_ids(&self) -> &[DiffId] {
        match self {
            Self::Local { record, .. } => &record.diff_ids,
            Self::Remote { image, .. } => &image.config.rootfs.diff_ids,
        }
    }

    /// The manifests and indexes that it is known to be named by.
    pub(super) fn manifests(&self) -> Vec<Digest> {
        match self {
            Self::Local { record, .. } => {
                let targets = record.names.iter().filter_map(|name| name.target.as_ref());
                let mut digests: Vec<Digest> = targets.map(|target| target.digest.clone()).collect();
                digests.extend(record.manifest.clone());
                digests.sort();
                digests.dedup();
                digests
            }
            Self::Remote { image, .. } => vec![image.root.digest.clone()],
        }
    }

    /// What names it, found by `reference`: an index or a manifest; its config where nobody made a manifest of it yet.
    pub(super) fn digest(&self, reference: &Reference) -> Digest {
        match self {
            Self::Local { record, .. } => {
                let named = record.names.iter().find(|name| name.reference == *reference);
                let target = named.and_then(|name| name.target.as_ref()).map(|target| &target.digest);
                target.or(record.manifest.as_ref()).unwrap_or(record.id.digest()).clone()
            }
            Self::Remote { image, .. } => image.root.digest.clone(),
        }
    }

    /// Its config's bytes.
    pub(super) fn config(&self) -> &[u8] {
        match self {
            Self::Local { record, .. } => &record.config,
            Self::Remote { image, .. } => &image.config_bytes,
        }
    }
}

/// What the image store has.
enum Stored {
    /// Nothing for the platform.
    Nothing,
    /// An image.
    Image(Found),
    /// All that an index below the name names for the platform, held.
    InIndex { root: Box<Descriptor>, lease: Arc<Lease> },
}

/// The image that a name means, and the index that it has by that name. An index' digest means it where a tag of the same repository does: what was
/// looked up by that is asked for again by the digest.
pub(super) fn named(
    stores: &Stores,
    reference: &Reference,
) -> Result<Option<(ImageRecord, Option<Descriptor>)>, SourceError> {
    let find = |text: &str| match stores.images.find(text) {
        Ok(record) => Ok(Some(record)),
        Err(StoreError::NotFound { .. } | StoreError::Ambiguous { .. }) => Ok(None),
        Err(error) => Err(SourceError::Store(error)),
    };
    if let Some(record) = find(&reference.to_string())? {
        let root = record.index_of(reference).cloned();
        return Ok(Some((record, root)));
    }
    let Some(digest) = reference.digest() else { return Ok(None) };
    let Some(record) = find(digest.as_str())? else { return Ok(None) };
    let of_repository = record.names.iter().filter(|name| name.reference.name() == reference.name());
    let mut targets = of_repository.filter_map(|name| name.target.as_ref());
    let root = targets.find(|target| target.media_type.is_index() && target.digest == *digest).cloned();
    Ok(root.map(|root| (record, Some(root))))
}

/// Whether an image here has the name of a repository, and the digest names that image or what it is of. Who names a digest has to have access to
/// it: that something is here by another name says nothing about this one.
fn is_of_repository(stores: &Stores, reference: &Reference, digest: &Digest) -> Result<bool, StoreError> {
    for image in stores.images.list()? {
        let mut names =
            image.names.iter().filter(|name| name.reference.name() == reference.name()).peekable();
        if names.peek().is_none() {
            continue;
        }
        if image.manifest.as_ref() == Some(digest) {
            return Ok(true);
        }
        for target in names.filter_map(|name| name.target.as_ref()) {
            if target.digest == *digest || index_names(stores, target, digest)? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Whether a target is an index, here, that names the digest.
fn index_names(stores: &Stores, target: &Descriptor, digest: &Digest) -> Result<bool, StoreError> {
    if !target.media_type.is_index() || target.size > MAX_MANIFEST {
        return Ok(false);
    }
    let lease = stores.leases.create();
    let is_here = {
        let _guard = stores.leases.guard();
        lease.hold(Resource::Blob(target.digest.clone()));
        stores.content.info(&target.digest)?.is_some()
    };
    if !is_here {
        return Ok(false);
    }
    let index = Index::from_json(&stores.content.read_small(&target.digest, MAX_MANIFEST)?);
    Ok(index.is_ok_and(|index| index.manifests.iter().any(|manifest| manifest.digest == *digest)))
}

/// An error about an image's documents.
fn pulled(reference: &Reference) -> impl FnOnce(TransferError) -> SourceError {
    let origin = reference.to_string();
    move |source| SourceError::Pull { origin, source }
}

/// Documents of an image that was resolved a while ago.
struct Resolution {
    name: String,
    platform: Platform,
    image: Arc<ResolvedImage>,
    lease: Arc<Lease>,
}

/// Finds images.
pub(crate) struct Images {
    pub(super) stores: Stores,
    sessions: Sessions,
    registry: RegistryClient,
    /// Newest last.
    recent: Mutex<VecDeque<Resolution>>,
    limit: usize,
}

impl Images {
    pub(crate) fn new(stores: Stores, sessions: Sessions, registry: RegistryClient, limit: usize) -> Self {
        Self { stores, sessions, registry, recent: Mutex::default(), limit }
    }

    /// The registry client with the logins of those who wait.
    pub(crate) fn client(&self, cx: &SourceContext) -> RegistryClient {
        self.registry.with_credentials(Arc::new(Logins::new(self.sessions.clone(), cx)))
    }

    /// What the Dockerfile frontend wants to know of an image.
    pub(crate) async fn fact(
        &self,
        cx: &SourceContext,
        query: &ImageQuery,
    ) -> Result<ImageFact, SourceError> {
        let mode = query.origin.resolve_mode();
        let found = self.find(cx, &query.reference, &query.platform, mode).await?;
        let (digest, image_id) = match &found {
            Found::Local { record, .. } => (None, Some(record.id.clone())),
            Found::Remote { image, .. } => (Some(image.root.digest.clone()), None),
        };
        Ok(ImageFact { reference: query.reference.clone(), digest, config: found.config().into(), image_id })
    }

    /// The image, in the local store or a registry.
    pub(super) async fn find(
        &self,
        cx: &SourceContext,
        reference: &Reference,
        platform: &Platform,
        mode: ResolveMode,
    ) -> Result<Found, SourceError> {
        let work = async {
            if mode != ResolveMode::ForcePull
                && let Some(found) = self.local(cx, reference, platform).await?
            {
                return Ok(found);
            }
            self.remote(cx, reference, platform).await
        };
        tokio::select! {
            found = work => found,
            () = cx.cancel.cancelled() => Err(SourceError::Canceled),
        }
    }

    async fn local(
        &self,
        cx: &SourceContext,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<Option<Found>, SourceError> {
        let (root, lease) = match self.stored_image(reference, platform).await? {
            Stored::Nothing => return Ok(None),
            Stored::Image(found) => return Ok(Some(found)),
            Stored::InIndex { root, lease } => (root, lease),
        };
        // All that it asks for is here, and held: no registry is asked.
        let resolved = Resolved { reference: reference.clone(), descriptor: *root };
        let target = PullTarget { content: Arc::clone(&self.stores.content), lease: Arc::clone(&lease) };
        let silent: ProgressFn = Arc::new(|_| ());
        let image = self.client(cx).resolved_image(&resolved, platform, &target, &silent).await;
        let image =
            image.map_err(|source| SourceError::Registry { origin: reference.to_string(), source })?;
        Ok(Some(Found::Remote { image: Arc::new(image), _lease: lease }))
    }

    /// What the image store has for a name and a platform.
    async fn stored_image(&self, reference: &Reference, platform: &Platform) -> Result<Stored, SourceError> {
        let (stores, reference, platform) = (self.stores.clone(), reference.clone(), platform.clone());
        SourceError::blocking(move || -> Result<Stored, SourceError> {
            let Some((record, root)) = named(&stores, &reference)? else { return Ok(Stored::Nothing) };
            let config = ImageConfig::from_json(&record.config).map_err(|source| StoreError::Malformed {
                kind: "image",
                id: record.id.to_string(),
                source,
            })?;
            // Built or loaded for several platforms: the other ones are below the same name.
            if config.platform().normalized() != platform.normalized()
                && let Some(root) = root
                && let Some(found) = stored_manifest(&stores, &root, &platform).map_err(pulled(&reference))?
                && found.manifest.config.digest != *record.id.digest()
            {
                return Ok(Stored::InIndex { root: Box::new(root), lease: found.lease });
            }
            if !is_for(&config.platform(), &platform) {
                tracing::debug!(
                    image = %reference,
                    wanted = %platform.to_full_string(),
                    local = %config.platform().to_full_string(),
                    "the local image is for another platform, asking its registry"
                );
                return Ok(Stored::Nothing);
            }
            let tree = match &record.top {
                None => Tree::empty(),
                // Deleted and collected since it was found: then it is not there.
                Some(top) => match stores.hold(top)? {
                    Some(tree) => tree,
                    None => return Ok(Stored::Nothing),
                },
            };
            Ok(Stored::Image(Found::Local { record: Arc::new(record), tree }))
        })
        .await
    }

    async fn remote(
        &self,
        cx: &SourceContext,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<Found, SourceError> {
        if let Some(digest) = reference.digest()
            && let Some(found) = self.recalled(&reference.name(), digest, platform)
        {
            return Ok(found);
        }
        let failed = |source| SourceError::Registry { origin: reference.to_string(), source };
        let client = self.client(cx);
        let lease = Arc::new(self.stores.leases.create());
        let resolved = match reference.digest() {
            Some(digest) => self.stored(reference, digest, &lease).await?,
            None => None,
        };
        let resolved = match resolved {
            Some(resolved) => resolved,
            None => client.resolve(reference).await.map_err(failed)?,
        };
        let target = PullTarget { content: Arc::clone(&self.stores.content), lease: Arc::clone(&lease) };
        let silent: ProgressFn = Arc::new(|_| ());
        let image = match client.resolved_image(&resolved, platform, &target, &silent).await {
            Ok(image) => Arc::new(image),
            Err(RegistryError::NoMatchingPlatform { platform, available, .. }) => {
                let (origin, digest) = (reference.to_string(), resolved.descriptor.digest);
                let mut what = format!("it is not there for {platform}");
                if !available.is_empty() {
                    what.push_str(&format!(", but for {}", available.join(", ")));
                }
                return Err(SourceError::NoPlatform { origin, digest, what });
            }
            Err(source) => return Err(failed(source)),
        };
        self.remember(reference.name(), platform.clone(), Arc::clone(&image), Arc::clone(&lease));
        Ok(Found::Remote { image, _lease: lease })
    }

    /// An image that was resolved a while ago and whose documents are therefore still here. Only by digest: a tag may have moved.
    fn recalled(&self, name: &str, digest: &Digest, platform: &Platform) -> Option<Found> {
        let recent = self.recent.lock();
        let found = recent.iter().rev().find(|resolution| {
            resolution.name == name
                && resolution.image.root.digest == *digest
                && resolution.platform == *platform
        })?;
        Some(Found::Remote { image: Arc::clone(&found.image), _lease: Arc::clone(&found.lease) })
    }

    /// Holds no documents any more of images that were resolved a while ago.
    pub(crate) fn forget(&self) {
        // The leases go without the lock.
        let recent = std::mem::take(&mut *self.recent.lock());
        drop(recent);
    }

    fn remember(&self, name: String, platform: Platform, image: Arc<ResolvedImage>, lease: Arc<Lease>) {
        let mut recent = self.recent.lock();
        recent.retain(|resolution| {
            resolution.name != name
                || resolution.image.root.digest != image.root.digest
                || resolution.platform != platform
        });
        recent.push_back(Resolution { name, platform, image, lease });
        while recent.len() > self.limit.max(1) {
            recent.pop_front();
        }
    }

    /// Whether a registry said lately that a repository has a document.
    fn was_found(&self, name: &str, digest: &Digest) -> bool {
        self.recent.lock().iter().any(|resolution| {
            let ResolvedImage { root, manifest_descriptor, .. } = &*resolution.image;
            resolution.name == name && [&root.digest, &manifest_descriptor.digest].contains(&digest)
        })
    }

    /// What a digest means, from the document itself if that is in the store and known to be of the repository.
    async fn stored(
        &self,
        reference: &Reference,
        digest: &Digest,
        lease: &Arc<Lease>,
    ) -> Result<Option<Resolved>, SourceError> {
        let was_found = self.was_found(&reference.name(), digest);
        let (stores, lease, digest) = (self.stores.clone(), Arc::clone(lease), digest.clone());
        let reference = reference.clone();
        SourceError::blocking(move || {
            let info = {
                let _guard = stores.leases.guard();
                lease.hold(Resource::Blob(digest.clone()));
                stores.content.info(&digest)?
            };
            let Some(info) = info.filter(|info| info.size <= MAX_MANIFEST) else { return Ok(None) };
            if !was_found && !is_of_repository(&stores, &reference, &digest)? {
                return Ok(None);
            }
            let bytes = stores.content.read_small(&digest, MAX_MANIFEST)?;
            // Something that is no manifest is for the registry to explain.
            let Some(media_type) = document_type(&bytes) else { return Ok(None) };
            let descriptor = Descriptor::new(media_type, digest, info.size);
            Ok::<_, StoreError>(Some(Resolved { reference, descriptor }))
        })
        .await
    }
}

/// What a stored manifest or index is. Contradictory documents (CVE-2021-41190) are not taken for either.
pub(crate) fn document_type(bytes: &[u8]) -> Option<MediaType> {
    #[derive(serde::Deserialize)]
    struct Probe {
        #[serde(rename = "mediaType", default)]
        media_type: Option<MediaType>,
        #[serde(default)]
        manifests: Option<serde::de::IgnoredAny>,
        #[serde(default)]
        layers: Option<serde::de::IgnoredAny>,
    }
    let probe: Probe = serde_json::from_slice(bytes).ok()?;
    let (index, manifest) = (probe.manifests.is_some(), probe.layers.is_some());
    match probe.media_type {
        Some(own) if own.is_index() && !manifest => Some(own),
        Some(own) if own.is_manifest() && !index => Some(own),
        Some(_) => None,
        None if index && !manifest => Some(MediaType::OCI_INDEX),
        None if manifest && !index => Some(MediaType::OCI_MANIFEST),
        None => None,
    }
}

/// Whether an image for `image` is one for `wanted`, as Moby compares them: an image that names no variant is for every variant.
fn is_for(image: &Platform, wanted: &Platform) -> bool {
    if PlatformMatcher::only(wanted).matches(image) {
        return true;
    }
    let (image_n, wanted) = (image.normalized(), wanted.normalized());
    image.variant.is_empty() && image_n.os == wanted.os && image_n.architecture == wanted.architecture
}
