//! Caches that a build brings with it. They are fetched beside the build, which waits for them only where its own cache has nothing.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use base64::Engine as _;
use futures::future::BoxFuture;
use lapstrake_builder_cache::{
    CacheDocument, INLINE_FIELD, ImportedCache, ImportedLayer, LayerSource, MAX_DOCUMENT,
};
use lapstrake_builder_progress::{Progress, Stream, VertexHandle};
use lapstrake_builder_solver::{CacheStore, CacheStoreError, KeyId, Link};
use lapstrake_builder_source::SourceContext;
use lapstrake_layerstore_oci::{
    Descriptor, DiffId, Digest, ImageConfig, Index, Manifest, MediaType, Reference, Timestamp,
};
use lapstrake_layerstore_store::{StoreError, Tree};
use lapstrake_layerstore_transfer::stored_index;
use parking_lot::Mutex;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{
    CREATED_AT, CacheFault, CacheSource, UNCOMPRESSED,
    blobs::{
        BlobSource, ClientBlobs, DirectoryBlobs, ImageLayers, MAX_MANIFEST, RegistryBlobs, RemoteLayers,
        StoreBlobs, document,
    },
    directory, made_at, warn,
};
use crate::{Engine, engine::internal_vertex, ops::Workshop, scope::BuildScope};

/// Longest config of an image.
const MAX_CONFIG: u64 = 8 << 20;
/// More images than this in one index are looked at no further.
const MAX_IMAGES: usize = 64;

/// One cache that was found.
#[derive(Clone)]
pub(super) struct Brought {
    pub(super) cache: Arc<ImportedCache>,
    /// Where its blobs are; `None` for what is in the store already.
    pub(super) blobs: Option<Arc<dyn BlobSource>>,
}

/// The caches of one build, each fetched once however many of its graphs name it. Dropping them ends what is still under way.
pub(crate) struct Imports {
    coming: Mutex<Vec<(CacheSource, Arc<Coming>)>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    /// Cancels the tasks.
    unneeded: CancellationToken,
}

impl Imports {
    /// None yet, of a build that `cancel` cancels.
    pub(crate) fn new(cancel: &CancellationToken) -> Self {
        Self { coming: Mutex::default(), tasks: Mutex::default(), unneeded: cancel.child_token() }
    }

    /// What has come; what the build found something in is among it.
    pub(super) fn here(&self) -> Vec<Brought> {
        self.coming.lock().iter().flat_map(|(_, coming)| coming.found().to_vec()).collect()
    }

    /// The caches of it.
    pub(crate) fn caches(&self) -> Vec<Arc<ImportedCache>> {
        self.here().into_iter().map(|brought| brought.cache).collect()
    }

    /// Waits for all, and tells what came.
    pub(super) async fn all(&self) -> Vec<Brought> {
        let coming: Vec<_> = self.coming.lock().iter().map(|(_, coming)| Arc::clone(coming)).collect();
        let mut all = Vec::new();
        for coming in coming {
            coming.ready().await;
            all.extend_from_slice(coming.found());
        }
        all
    }

    /// The build is done: what is still under way is told to be of no use any more.
    pub(crate) async fn settle(&self) {
        self.unneeded.cancel();
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            // One that panicked has told what it knew.
            let _ = task.await;
        }
    }
}

impl Drop for Imports {
    fn drop(&mut self) {
        self.unneeded.cancel();
    }
}

/// A cache on its way.
struct Coming {
    found: Arc<OnceLock<Vec<Brought>>>,
    /// Closed when the task ends, however it does.
    ended: watch::Receiver<()>,
}

impl Coming {
    fn found(&self) -> &[Brought] {
        self.found.get().map_or(&[], Vec::as_slice)
    }
}

impl CacheStore<Tree> for Coming {
    fn ready(&self) -> BoxFuture<'_, ()> {
        let mut ended = self.ended.clone();
        Box::pin(async move { while ended.changed().await.is_ok() {} })
    }

    fn fresh_key(&self) -> KeyId {
        // Nothing is ever saved here, so nothing has this key.
        KeyId::foreign("none")
    }

    fn linked(&self, from: &KeyId, link: &Link) -> Result<Vec<KeyId>, CacheStoreError> {
        let name = KeyId::root(&link.digest, link.output);
        self.linked_as(from, &name, link.input, link.selector.as_ref())
    }

    fn linked_as(
        &self,
        from: &KeyId,
        name: &KeyId,
        input: u32,
        selector: Option<&Digest>,
    ) -> Result<Vec<KeyId>, CacheStoreError> {
        let mut keys = Vec::new();
        for brought in self.found() {
            keys.extend(brought.cache.linked_as(from, name, input, selector)?);
        }
        Ok(keys)
    }

    fn load<'a>(&'a self, key: &'a KeyId) -> BoxFuture<'a, Result<Option<Tree>, CacheStoreError>> {
        Box::pin(async move {
            for brought in self.found() {
                if let Some(tree) = brought.cache.load(key).await? {
                    return Ok(Some(tree));
                }
            }
            Ok(None)
        })
    }

    fn save<'a>(
        &'a self,
        _: &'a KeyId,
        _: Vec<(KeyId, Link)>,
        _: Option<&'a Tree>,
    ) -> BoxFuture<'a, Result<(), CacheStoreError>> {
        Box::pin(async { Ok(()) })
    }
}

impl CacheSource {
    fn shown(&self) -> String {
        match self {
            Self::Registry { reference, .. } => reference.familiar(),
            Self::Local { directory, .. } => directory.display().to_string(),
            Self::Client { directory, .. } => directory.clone(),
        }
    }
}

impl Engine {
    /// Begins to fetch those caches that nobody has asked for yet, and gives all of them as the solver takes them. One that cannot be had, or has
    /// nothing, is told to the client and is no failure, as with BuildKit.
    pub(crate) fn import(
        &self,
        imports: &Imports,
        sources: &[CacheSource],
        scope: &Arc<BuildScope>,
        progress: &Progress,
        cancel: &CancellationToken,
    ) -> Vec<Arc<dyn CacheStore<Tree>>> {
        let mut known = imports.coming.lock();
        let mut stores: Vec<Arc<dyn CacheStore<Tree>>> = Vec::with_capacity(sources.len());
        for source in sources {
            let found = known.iter().find(|(other, _)| other == source).map(|(_, coming)| Arc::clone(coming));
            let coming = found.unwrap_or_else(|| {
                let (coming, task) = self.fetch_cache(source, imports, scope, progress, cancel);
                imports.tasks.lock().push(task);
                known.push((source.clone(), Arc::clone(&coming)));
                coming
            });
            stores.push(coming);
        }
        stores
    }

    fn fetch_cache(
        &self,
        source: &CacheSource,
        imports: &Imports,
        scope: &Arc<BuildScope>,
        progress: &Progress,
        cancel: &CancellationToken,
    ) -> (Arc<Coming>, JoinHandle<()>) {
        let name = match source {
            CacheSource::Registry { .. } => format!("importing cache manifest from {}", source.shown()),
            // BuildKit names it by the manifest's digest, which nobody knows.
            CacheSource::Local { .. } | CacheSource::Client { .. } => {
                format!("importing cache manifest from local:{}", source.shown())
            }
        };
        let vertex = internal_vertex(progress, name);
        let cx = self.source_context(scope, vertex.clone(), cancel);
        let found = Arc::new(OnceLock::new());
        let (ends, ended) = watch::channel(());
        let (workshop, source, slot, stop) =
            (Arc::clone(self.workshop()), source.clone(), Arc::clone(&found), imports.unneeded.clone());
        let task = tokio::spawn(async move {
            let import = Import { workshop, cx, vertex: vertex.clone() };
            vertex.start();
            tokio::select! {
                result = import.run(&source) => tell(&vertex, &source, result, &slot),
                () = stop.cancelled() => {
                    vertex.log(Stream::Stderr, b"the build needs no other cache\n".to_vec());
                    vertex.complete();
                }
            }
            drop(ends);
        });
        (Arc::new(Coming { found, ended }), task)
    }
}

fn tell(
    vertex: &VertexHandle,
    source: &CacheSource,
    result: Result<Vec<Brought>, CacheFault>,
    slot: &OnceLock<Vec<Brought>>,
) {
    let why = match result {
        Ok(found) if !found.is_empty() => {
            // Nobody else sets it.
            let _ = slot.set(found);
            vertex.complete();
            return;
        }
        Ok(_) => {
            let notice = format!("{} carries no cache records ({INLINE_FIELD})", source.shown());
            vertex.log(Stream::Stderr, format!("{notice}\n").into_bytes());
            vertex.complete();
            notice
        }
        Err(error) => {
            let why = error.told();
            vertex.fail(why.clone());
            format!("failed to import cache from {}: {why}", source.shown())
        }
    };
    warn(vertex, why);
}

/// The work of one import.
struct Import {
    workshop: Arc<Workshop>,
    cx: SourceContext,
    vertex: VertexHandle,
}

impl Import {
    async fn run(&self, source: &CacheSource) -> Result<Vec<Brought>, CacheFault> {
        match source {
            CacheSource::Registry { reference, insecure } => {
                if !*insecure {
                    let brought = self.stored(reference).await?;
                    if !brought.is_empty() {
                        return Ok(brought);
                    }
                }
                let mut client = self.workshop.sources.registry(&self.cx);
                if *insecure {
                    client = client.with_insecure(reference.domain());
                }
                let resolved = client.resolve(reference).await?;
                let bytes = client.fetch_document(&resolved.reference, &resolved.descriptor).await?;
                let reference = resolved.reference.with_digest(resolved.descriptor.digest);
                self.manifest(&bytes, Arc::new(RegistryBlobs { client, reference }), &source.shown()).await
            }
            CacheSource::Local { directory, manifest } => {
                let (at, manifest) = (directory.clone(), manifest.clone());
                let bytes = CacheFault::blocking(move || {
                    let digest = directory::manifest(&at, &manifest)?;
                    directory::read_blob(&at, &digest, MAX_MANIFEST)
                });
                let blobs = Arc::new(DirectoryBlobs { directory: directory.clone() });
                self.manifest(&bytes.await?, blobs, &source.shown()).await
            }
            CacheSource::Client { directory, digest } => {
                let session = self.cx.sessions.first();
                let blobs = Arc::new(ClientBlobs::open(&self.workshop, session, directory).await?);
                let bytes = blobs.small(digest).await?;
                self.manifest(&bytes, blobs, &source.shown()).await
            }
        }
    }

    /// What an image of the store carries, as Moby looks for it first; and where all platforms' images are below its name, what each of them does.
    async fn stored(&self, reference: &Reference) -> Result<Vec<Brought>, CacheFault> {
        let (workshop, wanted) = (Arc::clone(&self.workshop), reference.clone());
        let index = CacheFault::blocking(move || {
            let record = match workshop.stores.images.find(&wanted.to_string()) {
                Ok(record) => record,
                Err(StoreError::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            match record.index_of(&wanted) {
                Some(index) => Ok(stored_index(&workshop.stores, index)?),
                None => Ok(None),
            }
        });
        if let Some(index) = index.await? {
            let document = Index::new(
                index.descriptor.media_type.clone(),
                index.manifests.iter().map(|manifest| manifest.descriptor.clone()).collect(),
            );
            let blobs = Arc::new(StoreBlobs { workshop: Arc::clone(&self.workshop), _held: index });
            let brought = self.images(&document, blobs, &reference.familiar()).await?;
            if !brought.is_empty() {
                return Ok(brought);
            }
        }
        Ok(self.image(reference).await?.into_iter().collect())
    }

    /// The records that an image of the store carries.
    async fn image(&self, reference: &Reference) -> Result<Option<Brought>, CacheFault> {
        let (workshop, reference) = (Arc::clone(&self.workshop), reference.clone());
        CacheFault::blocking(move || {
            let record = match workshop.stores.images.find(&reference.to_string()) {
                Ok(record) => record,
                Err(StoreError::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let config = ImageConfig::from_json(&record.config)?;
            let Some(records) = inline_records(&config)? else { return Ok(None) };
            let tree = match &record.top {
                Some(top) => workshop.stores.hold(top)?,
                None => None,
            };
            let Some(tree) = tree else { return Ok(None) };
            let diff_ids: Vec<Digest> =
                config.rootfs.diff_ids.iter().map(|diff_id| diff_id.digest().clone()).collect();
            let document = CacheDocument::parse_inline(&records, &diff_ids)?;
            let layers = diff_ids.iter().map(|digest| {
                let blob = Descriptor::new(MediaType::OCI_LAYER, digest.clone(), 0);
                let diff_id = Some(DiffId::from(digest.clone()));
                // It is unpacked, and has its time.
                (digest.clone(), ImportedLayer { blob, diff_id, created: None })
            });
            let layers = layers.collect();
            let source = ImageLayers { workshop, tree, diff_ids, name: reference.familiar() };
            let cache = Arc::new(ImportedCache::new(&document, &layers, Arc::new(source))?);
            Ok(Some(Brought { cache, blobs: None }))
        })
        .await
    }

    /// A cache by its manifest, or what the images of an index carry.
    async fn manifest(
        &self,
        bytes: &[u8],
        blobs: Arc<dyn BlobSource>,
        name: &str,
    ) -> Result<Vec<Brought>, CacheFault> {
        let bytes = bytes.to_vec();
        match CacheFault::blocking(move || Document::parse(&bytes)).await? {
            Document::Cache { config, layers } => Ok(vec![self.cache(&config, layers, blobs, name).await?]),
            Document::Images(index) => self.images(&index, blobs, name).await,
            Document::Image(manifest) => {
                Ok(self.carried(&manifest, blobs, name).await?.into_iter().collect())
            }
        }
    }

    async fn cache(
        &self,
        config: &Descriptor,
        layers: Vec<Descriptor>,
        blobs: Arc<dyn BlobSource>,
        name: &str,
    ) -> Result<Brought, CacheFault> {
        let json = document(&self.workshop, &*blobs, config, MAX_DOCUMENT).await?;
        let read = move || {
            let mut known = HashMap::new();
            for blob in layers.into_iter().filter(|blob| blob.media_type.is_layer()) {
                let diff_id = blob.annotations.get(UNCOMPRESSED);
                let diff_id = diff_id.map(|text| Digest::parse(text)).transpose()?.map(DiffId::from);
                let created = blob.annotations.get(CREATED_AT);
                let created = created.and_then(|text| made_at(&Timestamp::parse(text).ok()?));
                known.insert(blob.digest.clone(), ImportedLayer { blob, diff_id, created });
            }
            Ok((CacheDocument::parse(&json)?, known))
        };
        self.brought(read, blobs, name).await
    }

    /// Documents may be long: they are read on a thread that may take its time, and nobody waits for who is not needed any more.
    async fn brought(
        &self,
        read: impl FnOnce() -> Result<(CacheDocument, HashMap<Digest, ImportedLayer>), CacheFault>
        + Send
        + 'static,
        blobs: Arc<dyn BlobSource>,
        name: &str,
    ) -> Result<Brought, CacheFault> {
        let source: Arc<dyn LayerSource> = Arc::new(RemoteLayers {
            workshop: Arc::clone(&self.workshop),
            blobs: Arc::clone(&blobs),
            name: name.to_owned(),
            vertex: self.vertex.clone(),
            cancel: self.cx.cancel.clone(),
        });
        let cache = CacheFault::blocking(move || {
            let (document, layers) = read()?;
            Ok(ImportedCache::new(&document, &layers, source)?)
        });
        Ok(Brought { cache: Arc::new(cache.await?), blobs: Some(blobs) })
    }

    /// What the images of an index carry.
    async fn images(
        &self,
        index: &Index,
        blobs: Arc<dyn BlobSource>,
        name: &str,
    ) -> Result<Vec<Brought>, CacheFault> {
        let manifests = index.manifests.iter().filter(|d| d.media_type.is_manifest()).take(MAX_IMAGES);
        let carried = manifests.map(|descriptor| {
            let blobs = Arc::clone(&blobs);
            async move {
                let json = blobs.manifest(descriptor).await?;
                self.carried(&Manifest::from_json(&json)?, blobs, name).await
            }
        });
        Ok(futures::future::try_join_all(carried).await?.into_iter().flatten().collect())
    }

    /// The records that an image carries in its config.
    async fn carried(
        &self,
        manifest: &Manifest,
        blobs: Arc<dyn BlobSource>,
        name: &str,
    ) -> Result<Option<Brought>, CacheFault> {
        if !manifest.config.media_type.is_config() {
            return Ok(None);
        }
        let json = document(&self.workshop, &*blobs, &manifest.config, MAX_CONFIG).await?;
        let config = ImageConfig::from_json(&json)?;
        let Some(records) = inline_records(&config)? else { return Ok(None) };
        let diff_ids = &config.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            let (layers, ids) = (manifest.layers.len(), diff_ids.len());
            return Err(CacheFault::unsuitable(format!(
                "the manifest has {layers} layers, its config {ids}"
            )));
        }
        // The history says when layers were made, if it has as many.
        let steps = config.history.iter().filter(|step| !step.empty_layer);
        let mut made: Vec<_> = steps.map(|step| made_at(step.created.as_ref()?)).collect();
        if made.len() != diff_ids.len() {
            made = vec![None; diff_ids.len()];
        }
        let blobs_of_layers = manifest.layers.iter().cloned().zip(diff_ids.iter().cloned()).zip(made);
        let layers: Vec<ImportedLayer> = blobs_of_layers
            .map(|((blob, diff_id), made)| ImportedLayer { blob, diff_id: Some(diff_id), created: made })
            .collect();
        let read = move || {
            let digests: Vec<Digest> = layers.iter().map(|layer| layer.blob.digest.clone()).collect();
            let document = CacheDocument::parse_inline(&records, &digests)?;
            let layers = layers.into_iter().map(|layer| (layer.blob.digest.clone(), layer));
            Ok((document, layers.collect()))
        };
        self.brought(read, blobs, name).await.map(Some)
    }
}

/// What a name or tag leads to.
enum Document {
    Cache { config: Box<Descriptor>, layers: Vec<Descriptor> },
    Images(Box<Index>),
    Image(Box<Manifest>),
}

impl Document {
    fn parse(bytes: &[u8]) -> Result<Self, CacheFault> {
        // A document cannot be read as both.
        if let Ok(index) = Index::from_json(bytes)
            && !index.manifests.is_empty()
        {
            let is_config = |d: &Descriptor| d.media_type == MediaType::BUILDKIT_CACHE_CONFIG;
            let Some(config) = index.manifests.iter().find(|d| is_config(d)).cloned() else {
                return Ok(Self::Images(Box::new(index)));
            };
            let layers = index.manifests.into_iter().filter(|d| !is_config(d)).collect();
            return Ok(Self::Cache { config: Box::new(config), layers });
        }
        let manifest = Manifest::from_json(bytes)?;
        if manifest.config.media_type == MediaType::BUILDKIT_CACHE_CONFIG {
            return Ok(Self::Cache { config: Box::new(manifest.config), layers: manifest.layers });
        }
        Ok(Self::Image(Box::new(manifest)))
    }
}

/// The records in a config. BuildKit has them as a Go byte slice, which is base64 in JSON.
fn inline_records(config: &ImageConfig) -> Result<Option<Vec<u8>>, CacheFault> {
    let Some(records) = config.extra.get(INLINE_FIELD).filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let text =
        records.as_str().ok_or_else(|| CacheFault::unsuitable(format!("{INLINE_FIELD} is not a string")))?;
    let json = base64::engine::general_purpose::STANDARD.decode(text);
    json.map(Some).map_err(|error| CacheFault::unsuitable(format!("{INLINE_FIELD}: {error}")))
}
