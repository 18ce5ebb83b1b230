//! Where the blobs of a cache are: a registry, a directory, a client's directory, our own store.

use std::{
    io::{self, Read, Write},
    path::PathBuf,
    sync::Arc,
};

use futures::{StreamExt, TryStreamExt, future::BoxFuture, stream};
use lapstrake_builder_cache::{ImportedResult, LayerSource};
use lapstrake_builder_progress::VertexHandle;
use lapstrake_builder_solver::CacheStoreError;
use lapstrake_layerstore_oci::{Descriptor, Digest, Digester, Reference};
use lapstrake_layerstore_registry::{PullTarget, RegistryClient};
use lapstrake_layerstore_store::{Resource, StoreError, Stores, Tree};
use lapstrake_layerstore_transfer::{ImageIndex, LayerBlob, blob_diff_id, unpack, unpacked};
use lapstrake_session::{SessionCaller, SessionId, Wait};
use tokio_util::sync::CancellationToken;

use super::{CacheFault, directory, made_at, warn};
use crate::ops::Workshop;

/// How many blobs of one result are fetched at once.
const FETCHES: usize = 3;
/// Bytes of a blob that are sent to a client at once.
const CHUNK: usize = 256 << 10;
/// Longest manifest or index.
pub(super) const MAX_MANIFEST: u64 = 4 << 20;

/// Gives blobs. Nothing is fetched before it is asked for, and nothing is believed: what arrives is what its descriptor says, or an error.
pub(super) trait BlobSource: Send + Sync {
    /// Makes sure that a blob is in the content store, held by the target's lease. Dropping the future leaves nothing behind.
    fn fetch<'a>(
        &'a self,
        blob: &'a Descriptor,
        target: &'a PullTarget,
    ) -> BoxFuture<'a, Result<(), CacheFault>>;

    /// A manifest, which registries keep apart from blobs; verified.
    fn manifest<'a>(&'a self, manifest: &'a Descriptor) -> BoxFuture<'a, Result<Vec<u8>, CacheFault>>;
}

/// A repository of a registry.
pub(super) struct RegistryBlobs {
    pub(super) client: RegistryClient,
    pub(super) reference: Reference,
}

impl BlobSource for RegistryBlobs {
    fn fetch<'a>(
        &'a self,
        blob: &'a Descriptor,
        target: &'a PullTarget,
    ) -> BoxFuture<'a, Result<(), CacheFault>> {
        Box::pin(async move { Ok(self.client.fetch_blob(&self.reference, blob, target).await?) })
    }

    fn manifest<'a>(&'a self, manifest: &'a Descriptor) -> BoxFuture<'a, Result<Vec<u8>, CacheFault>> {
        Box::pin(async move { Ok(self.client.fetch_document(&self.reference, manifest).await?.to_vec()) })
    }
}

/// A directory of this machine.
pub(super) struct DirectoryBlobs {
    pub(super) directory: PathBuf,
}

impl BlobSource for DirectoryBlobs {
    fn fetch<'a>(
        &'a self,
        blob: &'a Descriptor,
        target: &'a PullTarget,
    ) -> BoxFuture<'a, Result<(), CacheFault>> {
        let (directory, blob, target) = (self.directory.clone(), blob.clone(), target.clone());
        Box::pin(CacheFault::blocking(move || {
            {
                // Held before it is looked for, so that collection does not take it in between.
                let _guard = target.lease.leases().guard();
                target.lease.hold(Resource::Blob(blob.digest.clone()));
                if target.content.info(&blob.digest)?.is_some_and(|info| info.size == blob.size) {
                    return Ok(());
                }
            }
            let path = directory::blob_path(&directory, &blob.digest);
            let (mut file, size) = directory::open(&path)?;
            if size != blob.size {
                return Err(CacheFault::unsuitable(format!(
                    "{} has {size} bytes, and should have {}",
                    path.display(),
                    blob.size
                )));
            }
            let mut writer = target.content.writer()?;
            io::copy(&mut file, &mut writer).map_err(CacheFault::io("read", &path))?;
            // The store hashes what it writes.
            writer.commit(Some(&blob.digest), Some(blob.size))?;
            Ok(())
        }))
    }

    fn manifest<'a>(&'a self, manifest: &'a Descriptor) -> BoxFuture<'a, Result<Vec<u8>, CacheFault>> {
        let (directory, digest) = (self.directory.clone(), manifest.digest.clone());
        Box::pin(CacheFault::blocking(move || directory::read_blob(&directory, &digest, MAX_MANIFEST)))
    }
}

/// A directory of the client's, as its session serves it.
pub(super) struct ClientBlobs {
    pub(super) caller: SessionCaller,
    /// The session's name for it.
    pub(super) store: String,
}

impl BlobSource for ClientBlobs {
    fn fetch<'a>(
        &'a self,
        blob: &'a Descriptor,
        target: &'a PullTarget,
    ) -> BoxFuture<'a, Result<(), CacheFault>> {
        Box::pin(async move {
            let (held, wanted) = (target.clone(), blob.clone());
            let present = CacheFault::blocking(move || {
                // Held before it is looked for, so that collection does not take it in between.
                let _guard = held.lease.leases().guard();
                held.lease.hold(Resource::Blob(wanted.digest.clone()));
                Ok(held.content.info(&wanted.digest)?.is_some_and(|info| info.size == wanted.size))
            });
            if present.await? {
                return Ok(());
            }
            let content = Arc::clone(&target.content);
            let mut writer = CacheFault::blocking(move || Ok(content.writer()?)).await?;
            let mut bytes = self.caller.blob(&self.store, blob.digest.as_str()).await?;
            let mut room = blob.size;
            while let Some(chunk) = bytes.next().await {
                let chunk = chunk?;
                room = room.checked_sub(chunk.len() as u64).ok_or_else(|| {
                    CacheFault::unsuitable(format!("{} has more than {} bytes", blob.digest, blob.size))
                })?;
                let written = CacheFault::blocking(move || {
                    let wrote = writer.write_all(&chunk);
                    wrote.map_err(StoreError::io("write", "blob"))?;
                    Ok(writer)
                });
                writer = written.await?;
            }
            let (digest, size) = (blob.digest.clone(), blob.size);
            // The store hashes what it writes.
            CacheFault::blocking(move || {
                writer.commit(Some(&digest), Some(size))?;
                Ok(())
            })
            .await
        })
    }

    fn manifest<'a>(&'a self, manifest: &'a Descriptor) -> BoxFuture<'a, Result<Vec<u8>, CacheFault>> {
        Box::pin(self.small(&manifest.digest))
    }
}

impl ClientBlobs {
    /// The directory of the client whose session it is.
    pub(super) async fn open(
        workshop: &Workshop,
        session: Option<&SessionId>,
        directory: &str,
    ) -> Result<Self, CacheFault> {
        let session = session.ok_or_else(|| {
            CacheFault::unsuitable(format!("{directory} is the client's, and the build has no session"))
        })?;
        let caller = workshop.sessions.get(session.as_str(), Wait::default()).await?;
        // BuildKit's clients name the store so.
        Ok(Self { caller, store: format!("local:{directory}") })
    }

    /// Whether the client has a blob, whole.
    pub(super) async fn has(&self, blob: &Descriptor) -> Result<bool, CacheFault> {
        let size = self.caller.blob_size(&self.store, blob.digest.as_str()).await?;
        Ok(size == Some(blob.size))
    }

    /// Writes a blob of our store, which the client verifies.
    pub(super) async fn put(
        &self,
        blob: &Descriptor,
        stores: &Stores,
        cancel: &CancellationToken,
    ) -> Result<(), CacheFault> {
        let sent = self.caller.send_blob(&self.store, blob.digest.as_str(), blob.size).await?;
        let Some(mut upload) = sent else { return Ok(()) };
        let (content, digest, cancel) = (Arc::clone(&stores.content), blob.digest.clone(), cancel.clone());
        let upload = CacheFault::blocking(move || {
            let mut reader = content.reader(&digest)?;
            // What the client has of an earlier try.
            io::copy(&mut reader.by_ref().take(upload.offset()), &mut io::sink())
                .map_err(StoreError::io("read", digest.as_str()))?;
            let mut buffer = vec![0; CHUNK];
            loop {
                if cancel.is_cancelled() {
                    return Err(CacheFault::unsuitable("canceled"));
                }
                match reader.read(&mut buffer).map_err(StoreError::io("read", digest.as_str()))? {
                    0 => return Ok(upload),
                    count => upload.blocking_write(bytes::Bytes::copy_from_slice(&buffer[..count]))?,
                }
            }
        });
        Ok(upload.await?.finish().await?)
    }

    /// A blob that is no longer than a manifest, verified.
    pub(super) async fn small(&self, digest: &Digest) -> Result<Vec<u8>, CacheFault> {
        let mut chunks = self.caller.blob(&self.store, digest.as_str()).await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = chunks.next().await {
            bytes.extend_from_slice(&chunk?);
            if bytes.len() as u64 > MAX_MANIFEST {
                return Err(CacheFault::unsuitable(format!("{digest} is longer than {MAX_MANIFEST} bytes")));
            }
        }
        let mut digester = Digester::new(digest.algorithm());
        digester.update(&bytes);
        if digester.finish() != *digest {
            return Err(CacheFault::unsuitable(format!("{digest} is not what its name says")));
        }
        Ok(bytes)
    }
}

/// Our own store, which has all that an index names.
pub(super) struct StoreBlobs {
    pub(super) workshop: Arc<Workshop>,
    pub(super) _held: ImageIndex,
}

impl BlobSource for StoreBlobs {
    fn fetch<'a>(
        &'a self,
        blob: &'a Descriptor,
        target: &'a PullTarget,
    ) -> BoxFuture<'a, Result<(), CacheFault>> {
        // It is there, as `_held` holds it.
        target.lease.hold(Resource::Blob(blob.digest.clone()));
        let (content, blob) = (Arc::clone(&target.content), blob.clone());
        Box::pin(CacheFault::blocking(move || match content.info(&blob.digest)? {
            Some(info) if info.size == blob.size => Ok(()),
            _ => {
                Err(CacheFault::unsuitable(format!("the store lacks {} bytes of {}", blob.size, blob.digest)))
            }
        }))
    }

    fn manifest<'a>(&'a self, manifest: &'a Descriptor) -> BoxFuture<'a, Result<Vec<u8>, CacheFault>> {
        let (content, digest) = (Arc::clone(&self.workshop.stores.content), manifest.digest.clone());
        Box::pin(CacheFault::blocking(move || Ok(content.read_small(&digest, MAX_MANIFEST)?)))
    }
}

/// A small blob, such as a document. It stays in the store until it is collected.
pub(super) async fn document(
    workshop: &Workshop,
    blobs: &dyn BlobSource,
    blob: &Descriptor,
    limit: u64,
) -> Result<Vec<u8>, CacheFault> {
    if blob.size > limit {
        return Err(CacheFault::unsuitable(format!(
            "{} has {} bytes; the limit is {limit}",
            blob.digest, blob.size
        )));
    }
    let stores = workshop.stores.clone();
    let lease = Arc::new(stores.leases.create());
    let target = PullTarget { content: Arc::clone(&stores.content), lease };
    blobs.fetch(blob, &target).await?;
    let digest = blob.digest.clone();
    CacheFault::blocking(move || {
        let bytes = stores.content.read_small(&digest, limit)?;
        drop(target);
        Ok(bytes)
    })
    .await
}

/// Layers whose blobs are elsewhere.
pub(super) struct RemoteLayers {
    pub(super) workshop: Arc<Workshop>,
    pub(super) blobs: Arc<dyn BlobSource>,
    /// Whose cache it is, for people.
    pub(super) name: String,
    /// The import, for what is to be told of it.
    pub(super) vertex: VertexHandle,
    pub(super) cancel: CancellationToken,
}

impl RemoteLayers {
    async fn unpack(&self, result: &ImportedResult) -> Result<Tree, CacheFault> {
        let ImportedResult { layers, created_at } = result;
        let created = made_at(created_at);
        let stores = self.workshop.stores.clone();
        let lease = Arc::new(stores.leases.create());
        let target = PullTarget { content: Arc::clone(&stores.content), lease };
        let mut blobs = Vec::with_capacity(layers.len());
        for layer in layers {
            let diff_id = match &layer.diff_id {
                Some(diff_id) => diff_id.clone(),
                // Nobody says what is in it: it is looked into.
                None => {
                    self.blobs.fetch(&layer.blob, &target).await?;
                    let (stores, digest, cancel) =
                        (stores.clone(), layer.blob.digest.clone(), self.cancel.clone());
                    CacheFault::blocking(move || Ok(blob_diff_id(&stores, &digest, &cancel)?)).await?
                }
            };
            blobs.push(LayerBlob { descriptor: layer.blob.clone(), diff_id, created: layer.created });
        }
        let diff_ids: Vec<_> = blobs.iter().map(|blob| blob.diff_id.clone()).collect();
        // What is unpacked now is held until it has been found again.
        let (present, held) = unpacked(&stores, &diff_ids).await?;
        let fetches: Vec<BoxFuture<'_, _>> =
            blobs[present..].iter().map(|blob| self.blobs.fetch(&blob.descriptor, &target)).collect();
        stream::iter(fetches).buffer_unordered(FETCHES).try_collect::<()>().await?;
        let (workshop, cancel) = (Arc::clone(&self.workshop), self.cancel.clone());
        let description = format!("cache of {}, layer {}", self.name, layers.len());
        CacheFault::blocking(move || {
            let tree = unpack(&stores, &blobs, &cancel, &|_, _| {})?;
            // With an entry of its own, the solver can keep it for builds that do not bring this cache.
            workshop.cache.record_brought(&tree, &description, created)?;
            drop((held, target));
            Ok(tree)
        })
        .await
    }
}

impl LayerSource for RemoteLayers {
    fn tree<'a>(&'a self, result: &'a ImportedResult) -> BoxFuture<'a, Result<Tree, CacheStoreError>> {
        Box::pin(async move {
            tokio::select! {
                // The solver takes it as a miss. Whoever pays for the step should know why.
                tree = self.unpack(result) => Ok(tree.inspect_err(|error| {
                    warn(&self.vertex, format!("a result in the cache of {} cannot be used: {}", self.name, error.told()));
                })?),
                () = self.cancel.cancelled() => Err("canceled".into()),
            }
        })
    }
}

/// Layers of an image that is in the store.
pub(super) struct ImageLayers {
    pub(super) workshop: Arc<Workshop>,
    pub(super) tree: Tree,
    /// All of its layers, bottom first.
    pub(super) diff_ids: Vec<Digest>,
    pub(super) name: String,
}

impl LayerSource for ImageLayers {
    fn tree<'a>(&'a self, result: &'a ImportedResult) -> BoxFuture<'a, Result<Tree, CacheStoreError>> {
        let ImportedResult { layers, created_at } = result;
        let created = made_at(created_at);
        let is_prefix = layers.len() <= self.diff_ids.len()
            && layers.iter().zip(&self.diff_ids).all(|(layer, diff_id)| layer.blob.digest == *diff_id);
        let above = self.diff_ids.len().saturating_sub(layers.len());
        let (workshop, top) = (Arc::clone(&self.workshop), self.tree.clone());
        let description = format!("cache of {}, layer {}", self.name, layers.len());
        Box::pin(async move {
            if !is_prefix {
                return Err("the image has these layers in another order".into());
            }
            let found = CacheFault::blocking(move || {
                let mut tree = top;
                for _ in 0..above {
                    let parent = match tree.snapshot() {
                        Some(name) => workshop.stores.snapshots.stat(name)?.parent,
                        None => None,
                    };
                    // `tree` holds its parents until the next one is held itself.
                    tree = match parent {
                        Some(parent) => workshop.stores.hold(&parent)?.ok_or_else(|| {
                            CacheFault::unsuitable(format!("the layer {parent} of the image is gone"))
                        })?,
                        None => Tree::empty(),
                    };
                }
                workshop.cache.record_brought(&tree, &description, created)?;
                Ok(tree)
            });
            Ok(found.await?)
        })
    }
}
