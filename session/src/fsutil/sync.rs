//! `FileSync.DiffCopy`: the client's directory, received.

use std::sync::Arc;

use futures::FutureExt as _;
use prost::Message;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::{JoinError, JoinHandle},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::{
    Destination, Received, SyncRequest,
    receive::{MAX_IN_FLIGHT, Next, Receiver},
    wire::Packet,
};
use crate::{Error, SessionCaller, TransferError, channel, metadata};

const DIFF_COPY: &str = "/moby.filesync.v1.FileSync/DiffCopy";
/// Bytes received and not yet written, and batches of packets of any size.
const BUFFERED_BYTES: u32 = 8 << 20;
const BUFFERED_BATCHES: usize = 16;
/// When a batch is full: packets that have come already go to the writer together, because waking it takes longer than most of them.
const BATCH_PACKETS: usize = 64;
const BATCH_BYTES: usize = 256 << 10;
/// How long a client gets to take note of our error, or to end its side of a finished transfer.
pub(crate) const GOODBYE: std::time::Duration = std::time::Duration::from_secs(1);

/// Packets, and their share of [`BUFFERED_BYTES`] until they are written.
type Buffered = (Vec<Packet>, OwnedSemaphorePermit);

impl SessionCaller {
    /// Brings `destination` to the state of the client's directory: what is new or changed is transferred, what is gone is removed.
    ///
    /// `progress`, if given, is set to the bytes received so far.
    ///
    /// Cancellation: by `cancel`, after which nothing more is written when this returns. Dropping the future cancels too, but the
    /// thread that writes may still finish the packet it has; the destination stays locked until then.
    ///
    /// After an error the destination holds an undefined mixture, good for another transfer (with the same `previous`) and nothing else.
    ///
    /// # Errors
    /// [`Error::Unsupported`], [`Error::Call`] when the client does not offer the directory, [`Error::Closed`], [`Error::Cancelled`], and
    /// [`Error::Transfer`] for everything about the tree itself.
    pub async fn sync_dir(
        &self,
        request: &SyncRequest,
        destination: Destination,
        progress: Option<&watch::Sender<u64>>,
        cancel: &CancellationToken,
    ) -> Result<Received, Error> {
        self.require(DIFF_COPY)?;
        // Room for every request that may be in flight, and for our last word: sending never waits.
        let (to_client, outgoing) = mpsc::channel(MAX_IN_FLIGHT + 2);
        let call = self.sync_call(request, outgoing)?;
        let mut answer = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(self.cancelled("transfer of a directory")),
            answer = self.guard(DIFF_COPY, call) => answer?,
        };
        let (to_writer, packets) = mpsc::channel(BUFFERED_BATCHES);
        let requests = to_client.clone();
        let writer = tokio::task::spawn_blocking(move || write(destination, packets, &requests));
        let outcome = self.pump(&mut answer, to_writer, writer, progress, cancel).await;
        // Enough room is left in the channel, unless the client is gone.
        match &outcome {
            Ok(_) => drop(to_client.try_send(Packet::fin())),
            Err(error) => drop(to_client.try_send(Packet::error(error.to_string()))),
        }
        drop(to_client);
        if !matches!(outcome, Err(Error::Closed { .. } | Error::Cancelled { .. })) {
            // What the client says after our last word changes nothing: all that was announced is here, or it has failed.
            let goodbye = async { while let Ok(Some(_)) = answer.message().await {} };
            let _ = tokio::time::timeout(GOODBYE, goodbye).await;
        }
        outcome
    }

    fn sync_call(
        &self,
        request: &SyncRequest,
        outgoing: mpsc::Receiver<Packet>,
    ) -> Result<impl Future<Output = Result<Streaming<Packet>, Status>> + use<>, Error> {
        let mut call = Request::new(ReceiverStream::new(outgoing));
        let raw = self.info().takes_raw_utf8();
        let lists = [
            ("include-patterns", request.include_patterns.as_slice()),
            ("exclude-patterns", request.exclude_patterns.as_slice()),
            ("followpaths", request.follow_paths.as_slice()),
            ("dir-name", std::slice::from_ref(&request.name)),
        ];
        for (key, values) in lists {
            metadata::append_list(call.metadata_mut(), key, values, raw)?;
        }
        Ok(packets_call(self, DIFF_COPY, call))
    }

    /// Moves packets from the client to the writer until the writer has all it needs, or something fails.
    async fn pump(
        &self,
        answer: &mut Streaming<Packet>,
        to_writer: mpsc::Sender<Buffered>,
        mut writer: JoinHandle<Result<Received, TransferError>>,
        progress: Option<&watch::Sender<u64>>,
        cancel: &CancellationToken,
    ) -> Result<Received, Error> {
        let budget = Arc::new(Semaphore::new(BUFFERED_BYTES as usize));
        let mut bytes: u64 = 0;
        let incoming = async {
            loop {
                let Some(packet) = answer.message().await? else { return Ok(()) };
                let mut size = packet.encoded_len();
                let mut batch = vec![packet];
                // What comes first in any case, should this be the end.
                let mut end = None;
                while end.is_none() && batch.len() < BATCH_PACKETS && size < BATCH_BYTES {
                    match answer.message().now_or_never() {
                        None => break,
                        Some(Ok(Some(packet))) => {
                            size += packet.encoded_len();
                            batch.push(packet);
                        }
                        Some(Ok(None)) => end = Some(Ok(())),
                        Some(Err(status)) => end = Some(Err(status)),
                    }
                }
                bytes = bytes.saturating_add(size as u64);
                if let Some(progress) = progress {
                    progress.send_replace(bytes);
                }
                // Packets larger than the whole budget (16 MiB at most, by the codec) wait for all of it.
                let share = u32::try_from(size).unwrap_or(u32::MAX).min(BUFFERED_BYTES);
                let permit = Arc::clone(&budget).acquire_many_owned(share).await;
                let permit = permit.expect("the semaphore is never closed");
                if to_writer.send((batch, permit)).await.is_err() {
                    // The writer has ended; its result says why.
                    std::future::pending::<()>().await;
                }
                if let Some(end) = end {
                    return end;
                }
            }
        };
        // `Ok` with the writer's result, or what cut it short.
        let cut = tokio::select! {
            biased;
            done = &mut writer => {
                let received = joined(done).map_err(|e| self.transfer_error(e))?;
                return Ok(Received { bytes_transferred: bytes, ..received });
            }
            () = cancel.cancelled() => self.cancelled("transfer of a directory"),
            () = self.closed().cancelled() => self.closed_error(),
            end = incoming => match end {
                Ok(()) => self.transfer_error(TransferError::Truncated),
                Err(status) => self.call_error(DIFF_COPY, status).await,
            },
        };
        // The writer sees the end of its packets and stops; what it found wrong before that is the better explanation of an early end.
        drop(to_writer);
        match (joined(writer.await), &cut) {
            (Ok(received), _) => Ok(Received { bytes_transferred: bytes, ..received }),
            (Err(TransferError::Truncated), _) | (Err(_), Error::Cancelled { .. } | Error::Closed { .. }) => {
                Err(cut)
            }
            (Err(error), _) => Err(self.transfer_error(error)),
        }
    }

    pub(crate) fn cancelled(&self, operation: &'static str) -> Error {
        Error::Cancelled { id: self.id().clone(), operation }
    }
}

/// A call both of whose sides speak packets.
pub(crate) fn packets_call(
    caller: &SessionCaller,
    method: &'static str,
    request: Request<ReceiverStream<Packet>>,
) -> impl Future<Output = Result<Streaming<Packet>, Status>> + use<> {
    let mut client = tonic::client::Grpc::with_origin(caller.channel(), channel::origin())
        .max_decoding_message_size(metadata::MAX_MESSAGE);
    async move {
        client.ready().await.map_err(|e| Status::from_error(Box::new(e)))?;
        let path = http::uri::PathAndQuery::from_static(method);
        let codec = ProstCodec::<Packet, Packet>::default();
        client.streaming(request, path, codec).await.map(tonic::Response::into_inner)
    }
}

/// The writer's thread.
fn write(
    destination: Destination,
    mut packets: mpsc::Receiver<Buffered>,
    requests: &mpsc::Sender<Packet>,
) -> Result<Received, TransferError> {
    let mut receiver = Receiver::new(destination)?;
    // Never full: the receiver has fewer requests in flight than the channel has room. Closed: the transfer is over, and our packets
    // end too.
    let mut request = |packet| drop(requests.try_send(packet));
    while let Some((batch, _permit)) = packets.blocking_recv() {
        for packet in batch {
            if receiver.feed(packet, &mut request)? == Next::Complete {
                return receiver.complete();
            }
        }
    }
    Err(TransferError::Truncated)
}

/// A blocking task's result; a panic in it goes on here.
pub(crate) fn joined<T>(result: Result<Result<T, TransferError>, JoinError>) -> Result<T, TransferError> {
    match result {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only a runtime that is shutting down cancels a blocking task.
            Err(_) => Err(TransferError::Truncated),
        },
    }
}
