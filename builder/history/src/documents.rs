//! What others find by digest: documents of builds, and their logs; and what is changed of a record after its end.

use std::{
    fs::File,
    io::{self, Read},
};

use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_store::StoreError;
use tokio::sync::broadcast;

use crate::{
    Attachment, AttachmentKind, AttachmentRecord, BuildSummary, History, HistoryError, News,
    attachment::MOST_BYTES, history::log_path, log, rows, trace::trace,
};

/// The media type of a trace.
const TRACE: &str = "application/vnd.buildkit.otlp.json.v0";
/// As fast as zstd's lowest levels.
const LEVEL: i32 = 3;

/// Something that is found by its digest.
pub struct Document {
    /// Its length.
    pub bytes: u64,
    /// Itself, from its beginning. Blocks.
    pub reader: Box<dyn Read + Send>,
}

impl std::fmt::Debug for Document {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Document").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl History {
    /// What happens from now on; after [`Self::end_news`] nothing. Who is some hundred events behind is told that it missed some.
    pub fn news(&self) -> broadcast::Receiver<News> {
        match &*self.0.news.lock() {
            Some(sender) => sender.subscribe(),
            None => broadcast::channel(1).1,
        }
    }

    /// Ends all that [`Self::news`] gave, once no build runs.
    pub async fn end_news(&self) {
        self.wait_while(|_| true).await;
        *self.0.news.lock() = None;
    }

    /// A build that is written down, by its whole id. `None` for what is not there, or runs. Blocks.
    pub fn recorded(&self, id: &str) -> Result<Option<BuildSummary>, HistoryError> {
        if !self.0.state.lock().known.contains(id) {
            return Ok(None);
        }
        match self.build(id) {
            Ok(record) => Ok(Some(record.summary)),
            // It went meanwhile.
            Err(HistoryError::NoSuchBuild { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether a build runs, or is being written down; by its whole id.
    pub fn is_running(&self, id: &str) -> bool {
        self.0.state.lock().live.contains_key(id)
    }

    /// A document or a log, by its digest. Blocks.
    pub fn document(&self, digest: &Digest) -> Result<Option<Document>, HistoryError> {
        if let Some(packed) = rows::attachment(&self.0.metadata, digest.as_str())? {
            let unpacked = zstd::bulk::decompress(&packed, MOST_BYTES)
                .map_err(|source| HistoryError::Damaged { id: digest.to_string(), source })?;
            let bytes = unpacked.len() as u64;
            return Ok(Some(Document { bytes, reader: Box::new(io::Cursor::new(unpacked)) }));
        }
        let Some(id) = rows::build_of_log(&self.0.metadata, digest.as_str())? else { return Ok(None) };
        let Some(log) = self.recorded(&id)?.and_then(|summary| summary.log) else { return Ok(None) };
        let path = log_path(&self.0.directory, &id);
        let open = || File::open(&path).and_then(log::unpacked);
        match open() {
            Ok(reader) => Ok(Some(Document { bytes: log.bytes, reader: Box::new(reader) })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(HistoryError::io("open", path)(source)),
        }
    }

    /// Keeps a build until somebody removes it, or no longer. Blocks.
    pub fn pin(&self, id: &str, pinned: bool) -> Result<(), HistoryError> {
        self.change(id, |_| Ok((Some(pinned), Vec::new())))
    }

    /// Makes what of a record is made only when somebody wants it: its trace. Blocks.
    pub fn finalize(&self, id: &str) -> Result<(), HistoryError> {
        self.change(id, |summary| {
            if summary.attachments.iter().any(|attachment| attachment.kind == AttachmentKind::Trace) {
                return Ok((None, Vec::new()));
            }
            let data = trace(&self.build(&summary.id)?);
            let (kind, media_type) = (AttachmentKind::Trace, TRACE.to_owned());
            Ok((None, vec![Attachment { kind, media_type, annotations: Default::default(), data }]))
        })
    }

    /// Changes a record that is written down.
    fn change(
        &self,
        id: &str,
        decide: impl FnOnce(&BuildSummary) -> Result<(Option<bool>, Vec<Attachment>), HistoryError>,
    ) -> Result<(), HistoryError> {
        let id = self.find(id)?;
        let Some(mut summary) = self.recorded(&id)? else { return Err(HistoryError::Running { id }) };
        let (pinned, attachments) = decide(&summary)?;
        if pinned.is_none_or(|pinned| pinned == summary.pinned) && attachments.is_empty() {
            return Ok(());
        }
        let documents = pack(&mut summary, attachments);
        let is_there = self.0.metadata.write_lazily(|txn| {
            let put = || {
                let is_there = rows::change_build(txn, &id, pinned, Some(&summary))?;
                if is_there {
                    documents
                        .iter()
                        .try_for_each(|(digest, data)| rows::put_attachment(txn, &id, digest, data))?;
                }
                Ok::<_, rusqlite::Error>(is_there)
            };
            put().map_err(StoreError::metadata("change a build's record"))
        })?;
        if !is_there {
            return Err(HistoryError::NoSuchBuild { id });
        }
        self.0.tell(News::Recorded(id));
        Ok(())
    }
}

/// Documents as they are stored, by digest; the summary tells of them. One that cannot be packed is left out of both.
pub(crate) fn pack(summary: &mut BuildSummary, attachments: Vec<Attachment>) -> Vec<(String, Vec<u8>)> {
    let mut documents = Vec::new();
    for Attachment { kind, media_type, annotations, data } in attachments {
        let Ok(packed) = zstd::bulk::compress(&data, LEVEL) else { continue };
        let (digest, bytes) = (Digest::sha256_of(&data).to_string(), data.len() as u64);
        documents.push((digest.clone(), packed));
        summary.attachments.push(AttachmentRecord { kind, media_type, annotations, digest, bytes });
    }
    documents
}
