//! `FileSend.DiffCopy` to a client that attached a directory: `-o type=local`.

use std::{
    collections::{HashMap, VecDeque},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};

use super::{
    path::OrderCheck,
    stat::{FileKind, TreeEntry},
    sync::{GOODBYE, packets_call},
    tree::TreeReader,
    wire::{Packet, kind},
};
use crate::{
    Error, SessionCaller, TransferError,
    file_sink::{ExporterId, SEND, name_exporter, target_error},
    metadata,
};

const MULTI_PLATFORM: &str = "buildkit-exporter-multi-platform";
/// Bytes in one packet; gRPC's default limit on a message is 4 MiB.
const CHUNK: usize = 128 * 1024;
/// Packets made and not yet sent.
const BUFFERED_PACKETS: usize = 16;

/// What the client may do with what it had before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Coverage {
    /// The tree is one of several, or only part of the output: the client must delete nothing.
    #[default]
    Partial,
    /// The tree is all there is, every platform in it: a client whose user asked for it (`mode=delete`) may delete everything else.
    Whole,
}

/// A completed transfer to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Files and directories listed.
    pub entries: u64,
    /// Bytes of contents.
    pub content_bytes: u64,
}

impl SessionCaller {
    /// Sends a tree to the client's output directory.
    ///
    /// `progress`, if given, is set to the bytes of contents sent so far.
    ///
    /// Cancellation: by `cancel` or by drop; the client's directory is then incomplete, and the client told so. The threads that read
    /// `tree` end soon after.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the client has no output, [`Error::Call`] with its reason, [`Error::Closed`], [`Error::Cancelled`], and
    /// [`Error::Transfer`] for what goes wrong with the tree or the protocol.
    pub async fn send_dir(
        &self,
        exporter: ExporterId,
        tree: Arc<dyn TreeReader>,
        coverage: Coverage,
        progress: Option<&watch::Sender<u64>>,
        cancel: &CancellationToken,
    ) -> Result<Sent, Error> {
        self.require(SEND)?;
        let (to_client, outgoing) = mpsc::channel(BUFFERED_PACKETS);
        let mut request = Request::new(ReceiverStream::new(outgoing));
        name_exporter(request.metadata_mut(), exporter)?;
        if coverage == Coverage::Whole {
            metadata::append(request.metadata_mut(), MULTI_PLATFORM, "1")?;
        }
        let shared = Arc::new(Shared::default());
        // Ends the threads however this future ends.
        let _stop = StopOnDrop(Arc::clone(&shared));
        let (list, feed) = ((Arc::clone(&shared), Arc::clone(&tree)), Arc::clone(&shared));
        let (to_list, to_feed) = (to_client.clone(), to_client.clone());
        drop(tokio::task::spawn_blocking(move || list.0.run(&to_list, |out| list.0.list(&*list.1, out))));
        drop(tokio::task::spawn_blocking(move || feed.run(&to_feed, |out| feed.feed(&*tree, out))));

        // The client answers when it wants the first file, so the list must flow meanwhile.
        let call = packets_call(self, SEND, request);
        let talk = self.talk(&shared, call, to_client, progress);
        let end = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(self.cancelled("export to a directory")),
            () = self.closed().cancelled() => Err(self.closed_error()),
            end = talk => end,
            () = shared.gave_up() => Err(self.transfer_error(TransferError::Truncated)),
        };
        // Our own failure explains better than how the client took it.
        match (shared.take_failure(), end) {
            (Some(failure), Err(Error::Call { .. } | Error::Transfer { .. })) => {
                Err(self.transfer_error(failure))
            }
            (_, Err(error)) => Err(target_error(error)),
            (_, Ok(())) => Ok(Sent {
                entries: shared.entries.load(Ordering::Relaxed),
                content_bytes: shared.content_bytes.load(Ordering::Relaxed),
            }),
        }
    }

    /// Takes the client's requests until it has all it wants.
    async fn talk(
        &self,
        shared: &Shared,
        call: impl Future<Output = Result<tonic::Streaming<Packet>, Status>>,
        to_client: mpsc::Sender<Packet>,
        progress: Option<&watch::Sender<u64>>,
    ) -> Result<(), Error> {
        let protocol = |problem| Err(self.transfer_error(TransferError::Protocol { problem }));
        let mut answer = match call.await {
            Ok(answer) => answer,
            Err(status) => return Err(self.call_error(SEND, status).await),
        };
        let mut finished = false;
        let mut to_client = Some(to_client);
        loop {
            let message = tokio::select! {
                message = answer.message() => message,
                () = shared.sent.notified() => {
                    if let Some(progress) = progress {
                        progress.send_replace(shared.content_bytes.load(Ordering::Relaxed));
                    }
                    continue;
                }
            };
            let packet = match message {
                Ok(Some(packet)) => packet,
                Ok(None) if finished => return Ok(()),
                Ok(None) => return Err(self.transfer_error(TransferError::Truncated)),
                Err(status) => return Err(self.call_error(SEND, status).await),
            };
            match packet.kind {
                kind::REQ if !finished => {
                    if !shared.ask(packet.id) {
                        return protocol("request for something that is no file, or was asked for before");
                    }
                }
                kind::FIN if !finished && shared.is_idle() => {
                    finished = true;
                    // The answer to FIN is FIN, and then the end of our side: the client waits for it.
                    if let Some(to_client) = to_client.take() {
                        let _ = to_client.send(Packet::fin()).await;
                    }
                    shared.stop();
                }
                kind::FIN => return protocol("end before everything was sent"),
                kind::ERR => {
                    let shown = &packet.data[..packet.data.len().min(4096)];
                    let message = String::from_utf8_lossy(shown).into_owned();
                    return Err(self.transfer_error(TransferError::Peer { message }));
                }
                _ => return protocol("unexpected packet"),
            }
        }
    }
}

/// What the two threads and the conversation share.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
    sent: Notify,
    failed: Notify,
    entries: AtomicU64,
    content_bytes: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Files listed and not yet asked for.
    offered: HashMap<u32, (PathBuf, u64)>,
    /// Files asked for. Bounded by what has been offered, since each can be asked for once.
    asked: VecDeque<(u32, PathBuf, u64)>,
    listed: bool,
    sending: bool,
    stopped: bool,
    failure: Option<TransferError>,
}

struct StopOnDrop(Arc<Shared>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Why a thread ends early.
enum Stop {
    /// The conversation is over; it knows why.
    Over,
    Failed(TransferError),
}

impl Shared {
    fn stop(&self) {
        self.state.lock().stopped = true;
        self.work.notify_all();
    }

    /// Resolves when a thread has failed and the client has had time to take note.
    async fn gave_up(&self) {
        self.failed.notified().await;
        tokio::time::sleep(GOODBYE).await;
    }

    fn take_failure(&self) -> Option<TransferError> {
        self.state.lock().failure.take()
    }

    /// Moves a file from offered to asked.
    fn ask(&self, id: u32) -> bool {
        let mut state = self.state.lock();
        let Some((path, size)) = state.offered.remove(&id) else { return false };
        state.asked.push_back((id, path, size));
        self.work.notify_all();
        true
    }

    fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.listed && state.asked.is_empty() && !state.sending
    }

    /// Runs one of the threads; tells the client if it fails.
    fn run(&self, out: &mpsc::Sender<Packet>, work: impl FnOnce(&mpsc::Sender<Packet>) -> Result<(), Stop>) {
        if let Err(Stop::Failed(error)) = work(out) {
            let message = error.to_string();
            self.state.lock().failure.get_or_insert(error);
            self.failed.notify_one();
            // Closed: the conversation is over.
            let _ = out.blocking_send(Packet::error(message));
            self.stop();
        }
    }

    fn list(&self, tree: &dyn TreeReader, out: &mpsc::Sender<Packet>) -> Result<(), Stop> {
        let mut order = OrderCheck::new();
        let mut stop = None;
        let mut next = 0_u32;
        let walked = tree.walk(&mut |entry| {
            self.offer(entry, &mut next, &mut order, out).map_err(|s| {
                stop = Some(s);
                io::Error::from(io::ErrorKind::Interrupted)
            })
        });
        match (stop, walked) {
            (Some(stop), _) => return Err(stop),
            (None, Err(source)) => {
                let path = PathBuf::from(".");
                return Err(Stop::Failed(TransferError::Io { operation: "list", path, source }));
            }
            (None, Ok(())) => {}
        }
        // Set before the client can know it.
        self.state.lock().listed = true;
        out.blocking_send(Packet::stat(None)).map_err(|_| Stop::Over)
    }

    fn offer(
        &self,
        entry: TreeEntry,
        next: &mut u32,
        order: &mut OrderCheck,
        out: &mpsc::Sender<Packet>,
    ) -> Result<(), Stop> {
        order.admit(&entry.path, entry.stat.kind == FileKind::Directory).map_err(Stop::Failed)?;
        let wire = entry.to_wire();
        if let FileKind::Regular { size } = entry.stat.kind {
            self.state.lock().offered.insert(*next, (entry.path, size));
        }
        *next = next
            .checked_add(1)
            .ok_or(Stop::Failed(TransferError::TooLarge { limit: u32::MAX.into(), unit: "entries" }))?;
        self.entries.fetch_add(1, Ordering::Relaxed);
        out.blocking_send(Packet::stat(Some(wire))).map_err(|_| Stop::Over)
    }

    /// Sends the files asked for, one after the other.
    fn feed(&self, tree: &dyn TreeReader, out: &mpsc::Sender<Packet>) -> Result<(), Stop> {
        while let Some((id, path, size)) = self.next_asked() {
            self.file(tree, id, &path, size, out)?;
        }
        Ok(())
    }

    fn next_asked(&self) -> Option<(u32, PathBuf, u64)> {
        let mut state = self.state.lock();
        state.sending = false;
        loop {
            if state.stopped {
                return None;
            }
            if let Some(file) = state.asked.pop_front() {
                state.sending = true;
                return Some(file);
            }
            self.work.wait(&mut state);
        }
    }

    fn file(
        &self,
        tree: &dyn TreeReader,
        id: u32,
        path: &Path,
        size: u64,
        out: &mpsc::Sender<Packet>,
    ) -> Result<(), Stop> {
        let failed = |operation| {
            move |source| Stop::Failed(TransferError::Io { operation, path: path.to_owned(), source })
        };
        let mut file = tree.open(path).map_err(failed("open"))?;
        let mut sent = 0_u64;
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            let got = file.by_ref().take(CHUNK as u64).read_to_end(&mut chunk).map_err(failed("read"))?;
            sent = sent.saturating_add(got as u64);
            if sent > size || (got == 0 && sent != size) {
                let path = path.to_owned();
                return Err(Stop::Failed(TransferError::SizeChanged { path, announced: size, got: sent }));
            }
            if got == 0 {
                break;
            }
            out.blocking_send(Packet::data(id, Bytes::from(chunk))).map_err(|_| Stop::Over)?;
            self.content_bytes.fetch_add(got as u64, Ordering::Relaxed);
            self.sent.notify_one();
        }
        // The client may take this as the last thing it waits for, and say FIN at once.
        self.state.lock().sending = false;
        out.blocking_send(Packet::data(id, Bytes::new())).map_err(|_| Stop::Over)
    }
}
