//! A build's log: the records of its spool, packed.

use std::{
    fs::File,
    io::{self, BufReader, Read as _, Write},
};

use futures::FutureExt as _;
use lapstrake_builder_progress::{StatusResponse, Subscription};
use lapstrake_layerstore_oci::Digester;
use prost::Message as _;

use crate::{HistoryError, LogRecord};

/// As fast as zstd's lowest levels, and half the size.
const LEVEL: i32 = 3;
/// Longest record: a batch of the spool is 64 KiB, or one event.
const RECORD_BYTES: u32 = 256 << 20;
/// How much is read at a time.
const BATCH_BYTES: usize = 64 << 10;

/// Writes a log: each record behind its length (u32, little endian), in one zstd frame with a checksum.
pub(crate) struct LogWriter<W: Write> {
    encoder: zstd::stream::write::Encoder<'static, W>,
    digester: Digester,
    bytes: u64,
}

impl<W: Write> LogWriter<W> {
    pub(crate) fn new(to: W) -> io::Result<Self> {
        let mut encoder = zstd::stream::write::Encoder::new(to, LEVEL)?;
        // The level's own tables, of 768 KiB, would be cleared for each build; most logs are a few KiB.
        encoder.set_parameter(zstd::stream::raw::CParameter::HashLog(14))?;
        encoder.set_parameter(zstd::stream::raw::CParameter::ChainLog(13))?;
        encoder.include_checksum(true)?;
        Ok(Self { encoder, digester: Digester::sha256(), bytes: 0 })
    }

    pub(crate) fn write(&mut self, record: &[u8]) -> io::Result<()> {
        let length = u32::try_from(record.len()).map_err(io::Error::other)?.to_le_bytes();
        for part in [&length, record] {
            self.encoder.write_all(part)?;
            self.digester.update(part);
            self.bytes += part.len() as u64;
        }
        Ok(())
    }

    /// Writes the end; what it was written to, and what it is unpacked.
    pub(crate) fn finish(self) -> io::Result<(W, LogRecord)> {
        let log = LogRecord { digest: self.digester.finish().to_string(), bytes: self.bytes };
        Ok((self.encoder.finish()?, log))
    }
}

/// A stored log, unpacked.
pub(crate) fn unpacked(file: File) -> io::Result<impl io::Read + Send + 'static> {
    zstd::stream::read::Decoder::new(file)
}

type Decoder = zstd::stream::read::Decoder<'static, BufReader<File>>;

/// A build's log, from its beginning.
pub struct BuildLog {
    id: String,
    place: Where,
}

enum Where {
    /// On disk. `None` while a thread reads it, and after an error.
    Stored(Option<Box<Decoder>>),
    /// Of a build that runs: to its end when it is followed, else what is there.
    Live { events: Subscription, is_followed: bool },
}

impl BuildLog {
    pub(crate) fn stored(id: String, file: File) -> io::Result<Self> {
        let decoder = zstd::stream::read::Decoder::new(file)?;
        Ok(Self { id, place: Where::Stored(Some(Box::new(decoder))) })
    }

    pub(crate) fn live(id: String, events: Subscription, is_followed: bool) -> Self {
        Self { id, place: Where::Live { events, is_followed } }
    }

    /// The next events, or `None` at the end.
    pub async fn next(&mut self) -> Result<Option<StatusResponse>, HistoryError> {
        let wrong = |source| HistoryError::Progress { id: self.id.clone(), source };
        match &mut self.place {
            Where::Live { events, is_followed: true } => events.next().await.map_err(wrong),
            Where::Live { events, is_followed: false } => {
                events.next().now_or_never().unwrap_or(Ok(None)).map_err(wrong)
            }
            Where::Stored(place) => {
                let Some(mut decoder) = place.take() else { return Ok(None) };
                let read = tokio::task::spawn_blocking(move || {
                    let batch = batch(&mut decoder);
                    (decoder, batch)
                });
                let (decoder, batch) = read.await.map_err(|_| HistoryError::Lost)?;
                let batch = batch.map_err(|source| HistoryError::Damaged { id: self.id.clone(), source })?;
                *place = Some(decoder);
                Ok(batch)
            }
        }
    }
}

impl std::fmt::Debug for BuildLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BuildLog").field("id", &self.id).finish_non_exhaustive()
    }
}

/// One record, then further ones until it is enough.
fn batch(decoder: &mut Decoder) -> io::Result<Option<StatusResponse>> {
    let mut merged = StatusResponse::default();
    let mut bytes = 0;
    while bytes < BATCH_BYTES {
        let Some(record) = record(decoder)? else { break };
        bytes += record.len() + 4;
        merged.merge(record.as_slice()).map_err(io::Error::other)?;
    }
    Ok((bytes > 0).then_some(merged))
}

fn record(decoder: &mut Decoder) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    let mut read = 0;
    while read < length.len() {
        match decoder.read(&mut length[read..])? {
            0 if read == 0 => return Ok(None),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => read += count,
        }
    }
    let length = u32::from_le_bytes(length);
    if length > RECORD_BYTES {
        return Err(io::Error::other(format!("a record of {length} bytes")));
    }
    let mut record = Vec::new();
    let read = decoder.by_ref().take(length.into()).read_to_end(&mut record)?;
    if read as u64 != u64::from(length) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(record))
}
