//! Blobs written to a content store that the client offers (`-o type=oci,tar=false`): containerd's content service, as its own clients call it.

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::{CONTENT_STORE_HEADER, Error, SessionCaller, channel, metadata};

const WRITE: &str = "/containerd.services.content.v1.Content/Write";
/// Bytes in a message; the client answers each.
const CHUNK: usize = 1 << 20;

/// `WriteAction`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
enum Action {
    Stat = 0,
    Write = 1,
    Commit = 2,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WriteRequest {
    #[prost(enumeration = "Action", tag = "1")]
    action: i32,
    #[prost(string, tag = "2")]
    reference: String,
    #[prost(int64, tag = "3")]
    total: i64,
    #[prost(string, tag = "4")]
    expected: String,
    #[prost(int64, tag = "5")]
    offset: i64,
    #[prost(bytes = "bytes", tag = "6")]
    data: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WriteResponse {
    #[prost(int64, tag = "4")]
    offset: i64,
    #[prost(string, tag = "6")]
    digest: String,
}

/// A blob being written at the client, which has it only after [`finish`](Self::finish).
#[derive(Debug)]
pub struct BlobUpload {
    caller: SessionCaller,
    requests: mpsc::Sender<WriteRequest>,
    responses: Streaming<WriteResponse>,
    digest: String,
    total: i64,
    offset: i64,
}

impl SessionCaller {
    /// Begins to write a blob to the client's store `store`; `None` when the client has it already. Cancel-safe by drop: the client then has a part that it
    /// may go on from.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the client offers no stores, [`Error::Call`], [`Error::Closed`], [`Error::BadMetadata`], [`Error::BadAnswer`].
    pub async fn send_blob(&self, store: &str, digest: &str, size: u64) -> Result<Option<BlobUpload>, Error> {
        let (sender, receiver) = mpsc::channel(1);
        let mut request = tonic::Request::new(ReceiverStream::new(receiver));
        metadata::append(request.metadata_mut(), CONTENT_STORE_HEADER, store)?;
        let total = i64::try_from(size).map_err(|_| self.bad_upload("a blob of no size"))?;
        let begin = WriteRequest {
            action: Action::Stat.into(),
            reference: format!("upload-{digest}"),
            total,
            expected: digest.to_owned(),
            ..WriteRequest::default()
        };
        // There is room for one.
        let _ = sender.try_send(begin);
        let mut client = tonic::client::Grpc::with_origin(self.channel(), channel::origin())
            .max_decoding_message_size(metadata::MAX_MESSAGE);
        let call = async {
            client.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
            let path = http::uri::PathAndQuery::from_static(WRITE);
            let codec = ProstCodec::<WriteRequest, WriteResponse>::default();
            let mut responses = client.streaming(request, path, codec).await?.into_inner();
            let first = responses.message().await?;
            Ok((responses, first))
        };
        let (responses, first) = match self.guard(WRITE, call).await {
            Ok(begun) => begun,
            Err(error) if is_there(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let offset = first.ok_or_else(|| self.bad_upload("no answer"))?.offset;
        if !(0..=total).contains(&offset) {
            return Err(self.bad_upload("an offset outside of the blob"));
        }
        let (caller, digest) = (self.clone(), digest.to_owned());
        Ok(Some(BlobUpload { caller, requests: sender, responses, digest, total, offset }))
    }

    fn bad_upload(&self, problem: &'static str) -> Error {
        Error::BadAnswer { id: self.id().clone(), method: WRITE, problem }
    }
}

/// Whether the client has the blob already.
fn is_there(error: &Error) -> bool {
    matches!(error, Error::Call { status, .. } if status.code() == Code::AlreadyExists)
}

impl BlobUpload {
    /// How many of its bytes the client has already.
    pub fn offset(&self) -> u64 {
        self.offset.unsigned_abs()
    }

    /// Writes the bytes that follow; waits until the client has them. Not cancel-safe.
    ///
    /// # Errors
    /// [`Error::Call`], [`Error::Closed`], [`Error::BadAnswer`].
    pub async fn write(&mut self, mut data: Bytes) -> Result<(), Error> {
        while !data.is_empty() {
            let chunk = data.split_to(data.len().min(CHUNK));
            let length = i64::try_from(chunk.len()).unwrap_or(i64::MAX);
            self.send(Action::Write, chunk).await?;
            self.offset += length;
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

    /// Has the client check the blob and keep it.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn finish(mut self) -> Result<(), Error> {
        match self.send(Action::Commit, Bytes::new()).await {
            Err(error) if is_there(&error) => Ok(()),
            result => result,
        }
    }

    async fn send(&mut self, action: Action, data: Bytes) -> Result<(), Error> {
        let request = WriteRequest {
            action: action.into(),
            reference: String::new(),
            total: self.total,
            expected: self.digest.clone(),
            offset: self.offset,
            data,
        };
        let caller = self.caller.clone();
        let Self { requests, responses, .. } = self;
        let call = async {
            // When the client stopped reading, its answer says why.
            let _ = requests.send(request).await;
            responses.message().await
        };
        match caller.guard(WRITE, call).await? {
            Some(_) => Ok(()),
            None => Err(caller.bad_upload("ended before the blob did")),
        }
    }
}
