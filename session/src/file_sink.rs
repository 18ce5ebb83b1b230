//! A file written to the client's disk: `-o type=tar|oci|docker`.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Status,
    codec::{Codec, EncodeBuf, Encoder},
};
use tonic_prost::{ProstCodec, ProstDecoder};

use crate::{Error, SessionCaller, channel, metadata};

pub(crate) const SEND: &str = "/moby.filesync.v1.FileSend/DiffCopy";
const EXPORTER_ID: &str = "buildkit-attachable-exporter-id";
const EXPORTER_METADATA: &str = "exporter-md-";
/// gRPC's default limit on a message is 4 MiB; stay well below.
const CHUNK: usize = 1 << 20;

/// Which of the client's outputs is meant: its number in the build request's list of exporters (0 when there is one).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, PartialOrd, Ord)]
pub struct ExporterId(pub u32);

/// One chunk of the file, its proper end, or the lack of one.
enum Chunk {
    Data(Bytes),
    End,
    Abort,
}

/// A file being written at the client. Only [`finish`](Self::finish) completes it: dropping the sink resets the stream, so that the
/// client reports a failure rather than keep half a file.
#[derive(Debug)]
pub struct FileSink {
    caller: SessionCaller,
    /// When it closes without an `End`, the request stream turns that into a reset, and the task ends.
    chunks: mpsc::Sender<Chunk>,
    /// Resolves when the client has closed its file, or failed.
    answer: Option<JoinHandle<Result<(), Status>>>,
}

impl SessionCaller {
    /// Opens the client's output file. `metadata` (each key is sent as `exporter-md-<key>`) tells it what it gets, such as
    /// `containerimage.digest`; keys must be lower-case header names.
    ///
    /// Cancel-safe by drop. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the client has no output, [`Error::BadMetadata`]. A client's refusal shows on the first
    /// [`write`](FileSink::write) or on [`finish`](FileSink::finish), because it answers no earlier.
    pub async fn send_file(
        &self,
        exporter: ExporterId,
        metadata: &BTreeMap<String, String>,
    ) -> Result<FileSink, Error> {
        self.require(SEND)?;
        let (chunks, receiver) = mpsc::channel(4);
        let mut request = tonic::Request::new(or_abort(receiver));
        for (key, value) in metadata {
            metadata::append(request.metadata_mut(), &format!("{EXPORTER_METADATA}{key}"), value)?;
        }
        name_exporter(request.metadata_mut(), exporter)?;
        let mut client = tonic::client::Grpc::with_origin(self.channel(), channel::origin())
            .max_decoding_message_size(metadata::MAX_MESSAGE);
        let call = async move {
            client.ready().await.map_err(|e| Status::from_error(Box::new(e)))?;
            let path = http::uri::PathAndQuery::from_static(SEND);
            let mut answer = client.streaming(request, path, ChunkCodec).await?.into_inner();
            // The client says nothing but its status.
            while answer.message().await?.is_some() {}
            Ok(())
        };
        Ok(FileSink { caller: self.clone(), chunks, answer: Some(tokio::spawn(call)) })
    }
}

impl FileSink {
    /// Writes; waits while the client is slower than we are. Not cancel-safe: a dropped write may have written a part.
    ///
    /// # Errors
    /// [`Error::TargetExists`], [`Error::Call`] with the client's reason, [`Error::Closed`].
    pub async fn write(&mut self, mut data: Bytes) -> Result<(), Error> {
        while !data.is_empty() {
            let chunk = data.split_to(data.len().min(CHUNK));
            let sent = tokio::select! {
                biased;
                () = self.caller.closed().cancelled() => return Err(self.caller.closed_error()),
                sent = self.chunks.send(Chunk::Data(chunk)) => sent,
            };
            if sent.is_err() {
                return Err(self.refused().await);
            }
        }
        Ok(())
    }

    /// The same from blocking code; must not be called on an async thread.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn blocking_write(&mut self, data: Bytes) -> Result<(), Error> {
        tokio::runtime::Handle::current().block_on(self.write(data))
    }

    /// Ends the file and waits until the client has closed it. Dropping the future leaves the file's state unknown.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn finish(mut self) -> Result<(), Error> {
        let sent = tokio::select! {
            biased;
            () = self.caller.closed().cancelled() => return Err(self.caller.closed_error()),
            sent = self.chunks.send(Chunk::End) => sent,
        };
        if sent.is_err() {
            return Err(self.refused().await);
        }
        self.answered().await
    }

    /// The client stopped reading: why?
    async fn refused(&mut self) -> Error {
        match self.answered().await {
            Err(error) => error,
            Ok(()) => Error::BadAnswer {
                id: self.caller.id().clone(),
                method: SEND,
                problem: "closed its file before the end",
            },
        }
    }

    async fn answered(&mut self) -> Result<(), Error> {
        let Some(answer) = self.answer.as_mut() else {
            return Err(Error::BadAnswer {
                id: self.caller.id().clone(),
                method: SEND,
                problem: "has failed before",
            });
        };
        let call = async { answer.await.unwrap_or_else(|e| Err(Status::internal(e.to_string()))) };
        let result = self.caller.guard(SEND, call).await;
        self.answer = None;
        result.map_err(target_error)
    }
}

/// The client's `AlreadyExists` means its output file.
pub(crate) fn target_error(error: Error) -> Error {
    match error {
        Error::Call { id, status, .. } if status.code() == Code::AlreadyExists => Error::TargetExists { id },
        other => other,
    }
}

/// Adds an exporter's number to a request.
pub(crate) fn name_exporter(
    map: &mut tonic::metadata::MetadataMap,
    exporter: ExporterId,
) -> Result<(), Error> {
    metadata::append(map, EXPORTER_ID, &exporter.0.to_string())
}

/// The channel's chunks up to `End`; an `Abort` if it closes before.
fn or_abort(receiver: mpsc::Receiver<Chunk>) -> impl Stream<Item = Chunk> + Send + 'static {
    ReceiverStream::new(receiver)
        .chain(futures::stream::once(async { Chunk::Abort }))
        .take_while(|chunk| std::future::ready(!matches!(chunk, Chunk::End)))
}

/// `BytesMessage` whose encoder fails on `Abort`: an error in the request's body is the one way to make HTTP/2 reset the stream.
#[derive(Default)]
struct ChunkCodec;

#[derive(Clone, PartialEq, prost::Message)]
struct BytesMessage {
    #[prost(bytes = "bytes", tag = "1")]
    data: Bytes,
}

struct ChunkEncoder;

impl Codec for ChunkCodec {
    type Encode = Chunk;
    type Decode = BytesMessage;
    type Encoder = ChunkEncoder;
    type Decoder = ProstDecoder<BytesMessage>;

    fn encoder(&mut self) -> ChunkEncoder {
        ChunkEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<BytesMessage, BytesMessage>::new().decoder()
    }
}

impl Encoder for ChunkEncoder {
    type Item = Chunk;
    type Error = Status;

    fn encode(&mut self, item: Chunk, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        match item {
            Chunk::Data(data) => {
                use prost::Message;
                BytesMessage { data }.encode(buffer).map_err(|e| Status::internal(e.to_string()))
            }
            Chunk::End | Chunk::Abort => Err(Status::cancelled("export given up")),
        }
    }
}
