//! Blobs of content stores that a client offers: OCI layouts (`--build-context name=oci-layout://…`) and caches in directories
//! (`--cache-from type=local`). containerd's content service.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream::BoxStream};
use lapstrake_api_proto::content::{InfoRequest, ReadContentRequest, content_client::ContentClient};
use tokio::io::AsyncRead;
use tokio_util::io::StreamReader;
use tonic::{Code, Request};

use crate::{
    Error, SessionCaller,
    channel::{self, SessionChannel},
    metadata,
};

const INFO: &str = "/containerd.services.content.v1.Content/Info";
const READ: &str = "/containerd.services.content.v1.Content/Read";
/// Says which of a client's stores is meant.
pub const CONTENT_STORE_HEADER: &str = "buildkit-attachable-store-id";

/// The bytes of a blob, in order and as the client sends them: nobody has compared them with the digest. It ends with an error if the session ends
/// first; nothing is read ahead but what the HTTP/2 window holds (1 MiB). Dropping it ends the transfer.
pub struct ClientBlob {
    stream: BoxStream<'static, Result<Bytes, Error>>,
}

impl ClientBlob {
    /// The same as a reader.
    pub fn into_reader(self) -> impl AsyncRead + Send + Unpin {
        StreamReader::new(self.stream.map(|chunk| chunk.map_err(std::io::Error::other)))
    }
}

impl Stream for ClientBlob {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.stream.as_mut().poll_next(cx)
    }
}

impl SessionCaller {
    /// The size of a blob of the client's OCI layout `layout`; `None` when the client does not have it. Cancel-safe by drop.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the client offers no layouts, [`Error::Call`], [`Error::Closed`], [`Error::TimedOut`], [`Error::BadMetadata`],
    /// [`Error::BadAnswer`].
    pub async fn layout_blob_size(&self, layout: &str, digest: &str) -> Result<Option<u64>, Error> {
        self.blob_size(&layout_store(layout), digest).await
    }

    /// The same of the client's store `store`.
    ///
    /// # Errors
    /// As [`layout_blob_size`](Self::layout_blob_size).
    pub async fn blob_size(&self, store: &str, digest: &str) -> Result<Option<u64>, Error> {
        let request = of_store(store, InfoRequest { digest: digest.to_owned() })?;
        let mut client = self.content();
        let answer = match self.timed(INFO, client.info(request)).await {
            Ok(answer) => answer,
            Err(Error::Call { status, .. }) if status.code() == Code::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let size = answer.info.and_then(|info| u64::try_from(info.size).ok());
        size.map(Some).ok_or_else(|| self.bad_answer(INFO, "a blob without a size"))
    }

    /// Reads a blob of the client's OCI layout `layout`. Cancel-safe by drop.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the client offers no layouts, [`Error::Call`] when it does not have the blob, [`Error::Closed`],
    /// [`Error::BadMetadata`].
    pub async fn layout_blob(&self, layout: &str, digest: &str) -> Result<ClientBlob, Error> {
        self.blob(&layout_store(layout), digest).await
    }

    /// The same of the client's store `store`.
    ///
    /// # Errors
    /// As [`layout_blob`](Self::layout_blob).
    pub async fn blob(&self, store: &str, digest: &str) -> Result<ClientBlob, Error> {
        let request = ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
        let request = of_store(store, request)?;
        let mut client = self.content();
        let answer = self.guard(READ, client.read(request)).await?.into_inner();
        let start = (self.clone(), answer, 0_i64);
        let stream = futures::stream::try_unfold(start, |(caller, mut answer, at)| async move {
            let Some(message) = caller.guard(READ, answer.message()).await? else { return Ok(None) };
            if message.offset != at {
                return Err(caller.bad_answer(READ, "bytes out of order"));
            }
            let length = i64::try_from(message.data.len()).unwrap_or(i64::MAX);
            Ok(Some((Bytes::from(message.data), (caller, answer, at.saturating_add(length)))))
        });
        Ok(ClientBlob { stream: stream.boxed() })
    }

    fn content(&self) -> ContentClient<SessionChannel> {
        ContentClient::with_origin(self.channel(), channel::origin())
            .max_decoding_message_size(metadata::MAX_MESSAGE)
    }

    fn bad_answer(&self, method: &'static str, problem: &'static str) -> Error {
        Error::BadAnswer { id: self.id().clone(), method, problem }
    }
}

/// The store that a layout is: BuildKit's clients keep them apart from their local caches by this prefix.
fn layout_store(layout: &str) -> String {
    format!("oci:{layout}")
}

/// A request about a store.
fn of_store<T>(store: &str, message: T) -> Result<Request<T>, Error> {
    let mut request = Request::new(message);
    metadata::append(request.metadata_mut(), CONTENT_STORE_HEADER, store)?;
    Ok(request)
}
