//! Bridges between async transfers and the blocking store: one thread per open blob, a few chunks in flight.

use std::{io::Read, io::Write, sync::Arc};

use bytes::Bytes;
use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_store::{BlobReader, ContentStore, StoreError};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use crate::RegistryError;

/// Chunks that may wait for the writing thread.
const WRITE_AHEAD: usize = 16;
/// Chunks that may wait for the network.
const READ_AHEAD: usize = 4;
/// Bytes read from the store at once.
const READ_CHUNK: usize = 128 << 10;

/// Runs a blocking call of the store.
pub(crate) async fn blocking<T: Send + 'static>(
    what: &str,
    f: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, RegistryError> {
    match tokio::task::spawn_blocking(f).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(RegistryError::Interrupted { what: what.to_owned() }),
    }
}

enum Message {
    Data(Bytes),
    Commit { digest: Digest, size: u64, reply: oneshot::Sender<Result<Digest, StoreError>> },
}

/// A blob being received. Dropping it discards what was written: the thread sees the channel close, and drops the
/// store's writer without committing.
pub(crate) struct BlobSink {
    chunks: mpsc::Sender<Message>,
    thread: JoinHandle<Result<(), StoreError>>,
}

impl BlobSink {
    pub(crate) fn open(content: Arc<dyn ContentStore>) -> BlobSink {
        let (chunks, mut rx) = mpsc::channel(WRITE_AHEAD);
        let thread = tokio::task::spawn_blocking(move || {
            let mut writer = content.writer()?;
            while let Some(message) = rx.blocking_recv() {
                match message {
                    Message::Data(chunk) => {
                        writer.write_all(&chunk).map_err(StoreError::io("write", "blob"))?
                    }
                    Message::Commit { digest, size, reply } => {
                        // The receiver may be gone (cancelled): the blob is whole all the same.
                        let _ = reply.send(writer.commit(Some(&digest), Some(size)));
                        return Ok(());
                    }
                }
            }
            Ok(())
        });
        BlobSink { chunks, thread }
    }

    /// Writes a chunk; waits while the disk is slower than the network.
    pub(crate) async fn write(&mut self, chunk: Bytes) -> Result<(), RegistryError> {
        match self.chunks.send(Message::Data(chunk)).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.failure().await),
        }
    }

    /// Publishes the blob, if it is the one of `digest` and `size`.
    pub(crate) async fn commit(mut self, digest: &Digest, size: u64) -> Result<(), RegistryError> {
        let (reply, answer) = oneshot::channel();
        let message = Message::Commit { digest: digest.clone(), size, reply };
        if self.chunks.send(message).await.is_err() {
            return Err(self.failure().await);
        }
        match answer.await {
            Ok(result) => Ok(result.map(drop)?),
            Err(_) => Err(self.failure().await),
        }
    }

    async fn failure(&mut self) -> RegistryError {
        match (&mut self.thread).await {
            Ok(Err(e)) => RegistryError::Store(e),
            Ok(Ok(())) | Err(_) => RegistryError::Interrupted { what: "write blob".to_owned() },
        }
    }
}

/// Streams a blob out of the store. The thread ends when the receiver is dropped.
pub(crate) fn stream_out(
    mut reader: Box<dyn BlobReader>,
    limit: u64,
) -> mpsc::Receiver<std::io::Result<Bytes>> {
    let (tx, rx) = mpsc::channel(READ_AHEAD);
    tokio::task::spawn_blocking(move || {
        let mut left = limit;
        let mut buffer = vec![0; READ_CHUNK];
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(READ_CHUNK);
            let chunk = match reader.read(&mut buffer[..want]) {
                Ok(0) => return,
                Ok(n) => {
                    left -= n as u64;
                    Ok(Bytes::copy_from_slice(&buffer[..n]))
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => Err(e),
            };
            let failed = chunk.is_err();
            if tx.blocking_send(chunk).is_err() || failed {
                return;
            }
        }
    });
    rx
}
