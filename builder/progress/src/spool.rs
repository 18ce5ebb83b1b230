//! The spool: a file of events that any number of readers follow at their own speed.
//!
//! Each record is a `StatusResponse` behind its length in bytes (u32, little endian). The file is the build's complete log;
//! whoever creates it decides whether it outlives the build.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

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

struct Spool {
    file: File,
    // Bytes written. The lock orders writers; readers look at the watch channel only.
    end: Mutex<Written>,
    published: watch::Sender<u64>,
    limits: Limits,
    failed: AtomicBool,
}

#[derive(Default)]
struct Written {
    end: u64,
    log_bytes: u64,
    clipped: bool,
}

/// The writing end of one build's progress. Cheap to clone; the spool ends when the last clone is dropped.
#[derive(Clone)]
pub struct Progress(Arc<Spool>);

impl Progress {
    /// Progress that is kept in `file`, which must be empty and open for reading and writing.
    pub fn create(file: File, limits: Limits) -> Self {
        Self(Arc::new(Spool {
            file,
            end: Mutex::default(),
            published: watch::Sender::new(0),
            limits,
            failed: AtomicBool::new(false),
        }))
    }

    /// Progress in a file that has no name and is gone with its last user.
    pub fn anonymous(limits: Limits) -> io::Result<Self> {
        Ok(Self::create(tempfile::tempfile()?, limits))
    }

    /// Follows the build from its first event.
    pub fn subscribe(&self) -> io::Result<Subscription> {
        Ok(Subscription { file: self.0.file.try_clone()?, at: 0, published: self.0.published.subscribe() })
    }
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Progress").field("bytes", &*self.0.published.borrow()).finish()
    }
}

impl Emit for Progress {
    fn emit(&self, event: &Event) {
        let mut written = self.0.end.lock();
        let clipped;
        let event = match event {
            Event::Log(log) => {
                if written.clipped {
                    return;
                }
                let size = log.data.len() as u64;
                if written.log_bytes + size > self.0.limits.log_bytes {
                    written.clipped = true;
                    let notice =
                        format!("\n[output clipped: limit of {} bytes reached]\n", self.0.limits.log_bytes);
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
        let length = message.encoded_len();
        let mut record = Vec::with_capacity(length + 4);
        let Ok(prefix) = u32::try_from(length) else { return };
        record.extend_from_slice(&prefix.to_le_bytes());
        message.encode(&mut record).expect("a Vec grows");
        // A full disk must not fail the build for the sake of its log: say so once and go on.
        match self.0.file.write_all_at(&record, written.end) {
            Ok(()) => {
                written.end += record.len() as u64;
                self.0.published.send_replace(written.end);
            }
            Err(error) => {
                if !self.0.failed.swap(true, Ordering::Relaxed) {
                    tracing::error!(%error, "the build's log cannot be written; its progress has gaps from here on");
                }
            }
        }
    }
}

/// The reading end. Dropping it costs the build nothing.
pub struct Subscription {
    file: File,
    at: u64,
    published: watch::Receiver<u64>,
}

/// How much of the spool is decoded at a time.
const BATCH_BYTES: u64 = 64 * 1024;

/// Bytes of a record's length.
const PREFIX: usize = 4;

impl Subscription {
    /// The same build from its first event, whatever was read of it here.
    pub fn again(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()?, at: 0, published: self.published.clone() })
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
        loop {
            let end = *self.published.borrow_and_update();
            if self.at < end {
                return self.read(end).map(Some);
            }
            if self.published.changed().await.is_err() {
                // The writers are gone; what they wrote last may still be unread.
                let end = *self.published.borrow();
                return if self.at < end { self.read(end).map(Some) } else { Ok(None) };
            }
        }
    }

    /// Decodes records from the cursor on: at least one, then those that are whole in the same batch.
    fn read(&mut self, end: u64) -> Result<StatusResponse, ProgressError> {
        let mut batch = self.bytes((end - self.at).min(BATCH_BYTES))?;
        let first = record_len(&batch);
        if first > batch.len() {
            batch = self.bytes(first as u64)?;
        }
        let mut merged = StatusResponse::default();
        let mut rest = batch.as_slice();
        loop {
            let (record, after) = rest.split_at(record_len(rest));
            merged
                .merge(&record[PREFIX..])
                .map_err(|source| ProgressError::Damaged { at: self.at, source })?;
            self.at += record.len() as u64;
            rest = after;
            if rest.len() < PREFIX || rest.len() < record_len(rest) {
                return Ok(merged);
            }
        }
    }

    fn bytes(&self, count: u64) -> Result<Vec<u8>, ProgressError> {
        let mut bytes = vec![0; usize::try_from(count).expect("a record's length is a u32")];
        self.file.read_exact_at(&mut bytes, self.at).map_err(ProgressError::Read)?;
        Ok(bytes)
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
        let early = progress.subscribe().unwrap();
        progress.emit(&log(b"hello"));
        let late = progress.subscribe().unwrap();
        drop(progress);
        let wanted = vec![vertex, log(b"hello")];
        assert_eq!(everything(early).await, wanted);
        assert_eq!(everything(late).await, wanted);
    }

    #[tokio::test]
    async fn output_over_the_limit_is_clipped_with_one_notice() {
        let progress = Progress::anonymous(Limits { log_bytes: 10 }).unwrap();
        let subscription = progress.subscribe().unwrap();
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
