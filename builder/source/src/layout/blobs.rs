//! Blobs of a client's layout: read, compared with their digests, put into the store.

use std::{io::Write, sync::Arc};

use bytes::Bytes;
use futures::StreamExt;
use lapstrake_builder_progress::VertexHandle;
use lapstrake_layerstore_oci::{Descriptor, Digest, Digester};
use lapstrake_layerstore_store::{BlobInfo, BlobWriter, Lease, Resource, StoreError};
use lapstrake_session::{SessionCaller, Wait};
use tokio::sync::mpsc;

use crate::{SourceContext, SourceError, sources::Shared};

/// Chunks that may wait for the thread that writes them.
const WRITE_AHEAD: usize = 16;

/// A layout, with the client that offers it.
pub(crate) struct ClientLayout {
    shared: Arc<Shared>,
    caller: SessionCaller,
    layout: String,
    origin: String,
}

impl ClientLayout {
    /// Finds the client: that of the session that the op names, or any of those that wait.
    pub(crate) async fn connect(
        shared: &Arc<Shared>,
        session: Option<&str>,
        layout: &str,
        origin: String,
        cx: &SourceContext,
    ) -> Result<Self, SourceError> {
        let mut last = None;
        let ids = session.into_iter().chain(cx.sessions.iter().map(|id| id.as_str()));
        for id in ids {
            match shared.sessions.get(id, Wait::default()).await {
                Ok(caller) => {
                    let (shared, layout) = (Arc::clone(shared), layout.to_owned());
                    return Ok(Self { shared, caller, layout, origin });
                }
                Err(error) => last = Some(SourceError::session(&origin)(error)),
            }
        }
        Err(last.unwrap_or(SourceError::NoDirectory { origin }))
    }

    fn unsuitable(&self, why: String) -> SourceError {
        SourceError::Unsuitable { origin: self.origin.clone(), why }
    }

    /// The size of a blob, as the client says.
    pub(super) async fn size(&self, digest: &Digest) -> Result<u64, SourceError> {
        let size = self.caller.layout_blob_size(&self.layout, digest.as_str()).await;
        size.map_err(SourceError::session(&self.origin))?
            .ok_or_else(|| self.unsuitable(format!("content {digest} not found in the layout")))
    }

    /// A document from the client, whatever the store has: compared with its digest, and put into the store.
    pub(super) async fn document(
        &self,
        blob: &Descriptor,
        limit: u64,
        lease: &Arc<Lease>,
    ) -> Result<Vec<u8>, SourceError> {
        if blob.size > limit {
            return Err(SourceError::TooLarge { origin: format!("{} {}", self.origin, blob.digest), limit });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(blob.size).unwrap_or(0));
        let mut chunks = self.read(&blob.digest).await?;
        while let Some(chunk) = chunks.next().await {
            bytes.extend_from_slice(&chunk.map_err(SourceError::session(&self.origin))?);
            self.check_length(blob, bytes.len() as u64)?;
        }
        let mut digester = Digester::new(blob.digest.algorithm());
        digester.update(&bytes);
        self.check_digest(&blob.digest, digester.finish())?;
        let (stores, lease, copy) = (self.shared.stores.clone(), Arc::clone(lease), bytes.clone());
        let (digest, size) = (blob.digest.clone(), blob.size);
        SourceError::blocking(move || {
            lease.hold(Resource::Blob(digest.clone()));
            let mut writer = stores.content.writer()?;
            writer.write_all(&copy).map_err(StoreError::io("write", "blob"))?;
            writer.commit(Some(&digest), Some(size))
        })
        .await?;
        Ok(bytes)
    }

    /// The same from the store, where it has the blob.
    pub(super) async fn known_document(
        &self,
        blob: &Descriptor,
        limit: u64,
        lease: &Arc<Lease>,
    ) -> Result<Vec<u8>, SourceError> {
        if self.hold(blob, lease).await?.is_none() {
            return self.document(blob, limit, lease).await;
        }
        let (stores, digest) = (self.shared.stores.clone(), blob.digest.clone());
        SourceError::blocking(move || stores.content.read_small(&digest, limit)).await
    }

    /// Makes sure that a blob is in the store, held by `lease`.
    pub(super) async fn store_blob(
        &self,
        blob: &Descriptor,
        lease: &Arc<Lease>,
        vertex: &VertexHandle,
    ) -> Result<(), SourceError> {
        // Builds that want one blob transfer it once.
        let _turn = self.shared.turns.take(&format!(":blob:{}", blob.digest)).await;
        if self.hold(blob, lease).await?.is_some() {
            return Ok(());
        }
        let mut part = vertex.part(blob.digest.to_string(), "downloading", blob.size);
        let mut chunks = self.read(&blob.digest).await?;
        let (to_writer, incoming) = mpsc::channel(WRITE_AHEAD);
        let content = Arc::clone(&self.shared.stores.content);
        // When this future is dropped the thread sees the channel's end, and what it wrote is discarded with its writer.
        let writing = tokio::task::spawn_blocking(move || write(content.writer()?, incoming));
        let mut length = 0;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(SourceError::session(&self.origin))?;
            length += chunk.len() as u64;
            self.check_length(blob, length)?;
            if to_writer.send(chunk).await.is_err() {
                // The writer failed; its result says why.
                break;
            }
            part.update(length, blob.size);
        }
        drop(to_writer);
        let writer = match writing.await {
            Ok(writer) => writer?,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => return Err(SourceError::Canceled),
            },
        };
        let (digest, size) = (blob.digest.clone(), blob.size);
        // The store publishes only what has this digest and size.
        match SourceError::blocking(move || writer.commit(Some(&digest), Some(size))).await {
            Ok(_) => Ok(()),
            Err(SourceError::Store(StoreError::DigestMismatch { expected, actual })) => {
                self.check_digest(&expected, actual)
            }
            Err(SourceError::Store(StoreError::SizeMismatch { actual, .. })) => {
                Err(self.wrong_size(blob, actual))
            }
            Err(error) => Err(error),
        }
    }

    /// A blob's bytes, as the client sends them.
    pub(crate) async fn read(&self, digest: &Digest) -> Result<lapstrake_session::ClientBlob, SourceError> {
        let read = self.caller.layout_blob(&self.layout, digest.as_str()).await;
        read.map_err(SourceError::session(&self.origin))
    }

    /// Holds a blob, and looks whether it is there. The guard keeps collection from deciding in between.
    async fn hold(&self, blob: &Descriptor, lease: &Arc<Lease>) -> Result<Option<BlobInfo>, SourceError> {
        let (stores, lease, digest) = (self.shared.stores.clone(), Arc::clone(lease), blob.digest.clone());
        let found = SourceError::blocking(move || {
            let _guard = stores.leases.guard();
            lease.hold(Resource::Blob(digest.clone()));
            stores.content.info(&digest)
        })
        .await?;
        match found {
            Some(info) if info.size != blob.size => Err(self.wrong_size(blob, info.size)),
            found => Ok(found),
        }
    }

    fn check_length(&self, blob: &Descriptor, length: u64) -> Result<(), SourceError> {
        if length > blob.size { Err(self.wrong_size(blob, length)) } else { Ok(()) }
    }

    fn wrong_size(&self, blob: &Descriptor, length: u64) -> SourceError {
        let Descriptor { digest, size, .. } = blob;
        self.unsuitable(format!("blob {digest} is described as {size} bytes long, and has {length} or more"))
    }

    fn check_digest(&self, expected: &Digest, actual: Digest) -> Result<(), SourceError> {
        if actual == *expected {
            return Ok(());
        }
        let (origin, expected) = (self.origin.clone(), expected.clone());
        Err(SourceError::Checksum { origin, what: "blob", expected, actual })
    }
}

fn write(
    mut writer: Box<dyn BlobWriter>,
    mut chunks: mpsc::Receiver<Bytes>,
) -> Result<Box<dyn BlobWriter>, StoreError> {
    while let Some(chunk) = chunks.blocking_recv() {
        writer.write_all(&chunk).map_err(StoreError::io("write", "blob"))?;
    }
    Ok(writer)
}
