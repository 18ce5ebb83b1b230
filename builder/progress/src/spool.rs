//! The spool: a file of events that any number of readers follow at their own speed.
//!
//! Each record is a `StatusResponse` behind its length in bytes (u32, little endian). What was written last is kept in memory until it is worth a
//! write, so most builds never write at all. The file has no name: it is gone with its last user.

use std::{fs::File, io, os::unix::fs::FileExt, sync::Arc};

use lapstrake_api_proto::control::StatusResponse;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::watch;

use crate::{Emit, Event, event};

/// Bounds on what one build may write to its spool.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of process output kept in all; what comes after is dropped, with a notice in its place.
    pub log_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { log_bytes: 1 << 30 }
    }
}

/// Why following a spool failed.
#[derive(Debug, thiserror::Error)]
pub enum ProgressError {
    /// The file could not be read.
    #[error("read the build's log")]
    Read(#[source] io::Error),
    /// The file holds something that is no record.
    #[error("the build's log is damaged at byte {at}")]
    Damaged {
        /// Offset of the record.
        at: u64,
        /// What is wrong with it.
        #[source]
        source: prost::DecodeError,
    },
}

/// How much of the spool is written, or read, at a time.
const BATCH_BYTES: usize = 64 * 1024;

/// Bytes of a record's length.
const PREFIX: usize = 4;

/// Where events are kept, for those who write and those who read.
struct Spool {
    file: File,
    written: Mutex<Written>,
}

#[derive(Default)]
struct Written {
    /// Bytes in the file.
    in_file: u64,
    /// Whole records that come after them: at most a batch and one event.
    tail: Vec<u8>,
    log_bytes: u64,
    clipped: bool,
    failed: bool,
}

impl Spool {
    /// Makes room for one more record: whether there is. A full disk must not fail the build for the sake of its log: say so once and go on.
    fn has_room(&self, written: &mut Written) -> bool {
        if written.tail.len() < BATCH_BYTES {
            return true;
        }
        match self.file.write_all_at(&written.tail, written.in_file) {
            Ok(()) => {
                written.in_file += written.tail.len() as u64;
                written.tail.clear();
                true
            }
            Err(error) => {
                if !std::mem::replace(&mut written.failed, true) {
                    tracing::error!(%error, "the build's log cannot be written; its progress has gaps from here on");
                }
                false
            }
        }
    }

    /// Up to `count` bytes at `at`, all of which are there.
    fn read(&self, at: u64, count: usize) -> io::Result<Vec<u8>> {
        let in_file = {
            let written = self.written.lock();
            if let Some(skip) = at.checked_sub(written.in_file) {
                let tail = &written.tail[usize::try_from(skip).expect("what is in memory")..];
                return Ok(tail[..count.min(tail.len())].to_vec());
            }
            written.in_file - at
        };
        // What is in the file stays as it is.
        let mut bytes = vec![0; usize::try_from(in_file).map_or(count, |in_file| count.min(in_file))];
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }
}

/// The writing end of one build's progress. Cheap to clone; the spool ends when the last clone is dropped.
#[derive(Clone)]
pub struct Progress {
    spool: Arc<Spool>,
    /// How many bytes there are. Readers wait for it, and see the end when the last sender is gone.
    published: Arc<watch::Sender<u64>>,
    limits: Limits,
}

impl Progress {
    /// Progress that nobody wrote to yet.
    pub fn anonymous(limits: Limits) -> io::Result<Self> {
        let spool = Spool { file: tempfile::tempfile()?, written: Mutex::default() };
        Ok(Self { spool: Arc::new(spool), published: Arc::new(watch::Sender::new(0)), limits })
    }

    /// Follows the build from its first event.
    pub fn subscribe(&self) -> Subscription {
        Subscription { spool: Arc::clone(&self.spool), at: 0, published: self.published.subscribe() }
    }
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Progress").field("bytes", &*self.published.borrow()).finish()
    }
}

impl Emit for Progress {
    fn emit(&self, event: &Event) {
        let mut written = self.spool.written.lock();
        let clipped;
        let event = match event {
            Event::Log(log) => {
                if written.clipped {
                    return;
                }
                let size = log.data.len() as u64;
                if written.log_bytes + size > self.limits.log_bytes {
                    written.clipped = true;
                    let notice =
                        format!("\n[output clipped: limit of {} bytes reached]\n", self.limits.log_bytes);
                    clipped = Event::Log(event::Log { data: notice.into_bytes(), ..log.clone() });
                    &clipped
                } else {
                    written.log_bytes += size;
                    event
                }
            }
            other => other,
        };
        let message = event::to_response([event]);
        let Ok(prefix) = u32::try_from(message.encoded_len()) else { return };
        if !self.spool.has_room(&mut written) {
            return;
        }
        written.tail.extend_from_slice(&prefix.to_le_bytes());
        message.encode(&mut written.tail).expect("a Vec grows");
        self.published.send_replace(written.in_file + written.tail.len() as u64);
    }
}

/// The reading end. Dropping it costs the build nothing.
pub struct Subscription {
    spool: Arc<Spool>,
    at: u64,
    published: watch::Receiver<u64>,
}

impl Subscription {
    /// The same build from its first event, whatever was read of it here.
    pub fn again(&self) -> Self {
        Self { spool: Arc::clone(&self.spool), at: 0, published: self.published.clone() }
    }

    /// Where in the spool [`Self::next`] reads next.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Reads again from `position`, which must be one that [`Self::position`] returned.
    pub fn rewind(&mut self, position: u64) {
        self.at = position;
    }

    /// The next events, or `None` when the build has said its last word. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<StatusResponse>, ProgressError> {
        let at = self.at;
        let Some(packed) = self.next_packed().await? else { return Ok(None) };
        match StatusResponse::decode(packed.as_slice()) {
            Ok(response) => Ok(Some(response)),
            Err(source) => Err(ProgressError::Damaged { at, source }),
        }
    }

    /// As [`Self::next`], as the bytes of one [`StatusResponse`], for those who only pass them on. Cancel-safe.
    pub async fn next_packed(&mut self) -> Result<Option<Vec<u8>>, ProgressError> {
        loop {
            let end = *self.published.borrow_and_update();
            if self.at < end {
                return self.read().map(Some).map_err(ProgressError::Read);
            }
            if self.published.changed().await.is_err() {
                // The writers are gone; what they wrote last may still be unread.
                let end = *self.published.borrow();
                return if self.at < end {
                    self.read().map(Some).map_err(ProgressError::Read)
                } else {
                    Ok(None)
                };
            }
        }
    }

    /// Takes records from the cursor on: at least one, then those that are whole in the same batch. Messages of one kind behind each other
    /// are one message, so it is enough to leave out the lengths.
    fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut batch = self.spool.read(self.at, BATCH_BYTES)?;
        let first = record_len(&batch);
        if first > batch.len() {
            batch = self.spool.read(self.at, first)?;
        }
        let mut packed = Vec::with_capacity(batch.len());
        let mut rest = batch.as_slice();
        while rest.len() >= PREFIX && rest.len() >= record_len(rest) {
            let (record, after) = rest.split_at(record_len(rest));
            packed.extend_from_slice(&record[PREFIX..]);
            self.at += record.len() as u64;
            rest = after;
        }
        Ok(packed)
    }
}

/// The bytes of the record that begins here, its prefix included.
fn record_len(bytes: &[u8]) -> usize {
    let prefix = bytes.first_chunk().expect("a record begins with its prefix");
    PREFIX + u32::from_le_bytes(*prefix) as usize
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription").field("at", &self.at).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use lapstrake_layerstore_oci::Digest;

    use super::*;
    use crate::{Log, Stream, VertexState, from_response};

    fn log(data: &[u8]) -> Event {
        Event::Log(Log {
            vertex: Digest::sha256_of(b"v"),
            stream: Stream::Stdout,
            data: data.to_vec(),
            timestamp: SystemTime::UNIX_EPOCH,
        })
    }

    async fn everything(mut subscription: Subscription) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(response) = subscription.next().await.unwrap() {
            events.extend(from_response(response));
        }
        events
    }

    #[tokio::test]
    async fn every_subscriber_sees_every_event_from_the_first_on() {
        let progress = Progress::anonymous(Limits::default()).unwrap();
        let vertex = Event::Vertex(VertexState::pending(Digest::sha256_of(b"v"), "RUN true", vec![]));
        progress.emit(&vertex);
        let early = progress.subscribe();
        progress.emit(&log(b"hello"));
        let late = progress.subscribe();
        drop(progress);
        let wanted = vec![vertex, log(b"hello")];
        assert_eq!(everything(early).await, wanted);
        assert_eq!(everything(late).await, wanted);
    }

    #[tokio::test]
    async fn what_is_longer_than_memory_keeps_is_read_from_the_file_and_from_memory_alike() {
        let progress = Progress::anonymous(Limits::default()).unwrap();
        let early = progress.subscribe();
        let sizes = [10, BATCH_BYTES - 1, 3 * BATCH_BYTES, 0, BATCH_BYTES, 7, 100];
        let events: Vec<Event> = sizes.iter().cycle().take(40).map(|size| log(&vec![b'x'; *size])).collect();
        for event in &events {
            progress.emit(event);
        }
        let mut late = progress.subscribe();
        assert!(progress.spool.written.lock().in_file > 20 * BATCH_BYTES as u64);
        drop(progress);
        assert_eq!(everything(early).await, events);
        let first = from_response(late.next().await.unwrap().unwrap());
        assert_eq!(first, events[..first.len()]);
        let position = late.position();
        assert_eq!(everything(late.again()).await, events);
        late.rewind(position);
        assert_eq!(everything(late).await, events[first.len()..]);
    }

    #[tokio::test]
    async fn a_spool_that_cannot_be_written_drops_what_is_new_and_keeps_what_it_has() {
        let file = File::open("/dev/null").unwrap();
        let spool = Arc::new(Spool { file, written: Mutex::default() });
        let published = Arc::new(watch::Sender::new(0));
        let progress = Progress { spool, published, limits: Limits::default() };
        let subscription = progress.subscribe();
        let events = [log(b"first"), log(&vec![b'x'; BATCH_BYTES]), log(b"dropped")];
        events.iter().for_each(|event| progress.emit(event));
        drop(progress);
        assert_eq!(everything(subscription).await, events[..2]);
    }

    #[tokio::test]
    async fn output_over_the_limit_is_clipped_with_one_notice() {
        let progress = Progress::anonymous(Limits { log_bytes: 10 }).unwrap();
        let subscription = progress.subscribe();
        for _ in 0..5 {
            progress.emit(&log(b"12345"));
        }
        drop(progress);
        let text: Vec<u8> = everything(subscription)
            .await
            .into_iter()
            .flat_map(|event| match event {
                Event::Log(log) => log.data,
                _ => Vec::new(),
            })
            .collect();
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "1234512345\n[output clipped: limit of 10 bytes reached]\n"
        );
    }
}
