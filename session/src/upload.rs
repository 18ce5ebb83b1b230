//! Build contexts that the client reads from its standard input.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream::BoxStream};
use lapstrake_api_proto::upload::{BytesMessage, upload_client::UploadClient};
use tokio::io::AsyncRead;
use tokio_util::io::StreamReader;

use crate::{Error, SessionCaller, channel, metadata};

const PULL: &str = "/moby.upload.v1.Upload/Pull";
/// The host of the URLs that stand for uploads: `http://buildkit-session/<id>`.
pub const UPLOAD_HOST: &str = "buildkit-session";

/// The bytes of an upload, in order. It ends with an error if the session ends first; nothing is read ahead but what the HTTP/2 window
/// holds (1 MiB). Dropping it cancels the upload.
pub struct Upload {
    stream: BoxStream<'static, Result<Bytes, Error>>,
}

impl Upload {
    /// The same as a reader.
    pub fn into_reader(self) -> impl AsyncRead + Send + Unpin {
        StreamReader::new(self.stream.map(|chunk| chunk.map_err(std::io::Error::other)))
    }
}

impl Stream for Upload {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.stream.as_mut().poll_next(cx)
    }
}

impl SessionCaller {
    /// Pulls the upload `id` (the path of `http://buildkit-session/<id>`, with or without its slash). The client gives each once.
    ///
    /// Cancel-safe by drop.
    ///
    /// # Errors
    /// [`Error::Unsupported`], [`Error::Call`] when the client does not know the id, [`Error::Closed`], [`Error::BadMetadata`].
    pub async fn upload(&self, id: &str) -> Result<Upload, Error> {
        let path = format!("/{}", id.trim_start_matches('/'));
        let mut request = tonic::Request::new(futures::stream::empty::<BytesMessage>());
        metadata::append(request.metadata_mut(), "urlpath", &path)?;
        metadata::append(request.metadata_mut(), "urlhost", UPLOAD_HOST)?;
        let mut client = UploadClient::with_origin(self.channel(), channel::origin())
            .max_decoding_message_size(metadata::MAX_MESSAGE);
        let answer = self.guard(PULL, client.pull(request)).await?.into_inner();
        let caller = self.clone();
        let stream = futures::stream::try_unfold((caller, answer), |(caller, mut answer)| async move {
            let message = caller.guard(PULL, answer.message()).await?;
            Ok(message.map(|m| (Bytes::from(m.data), (caller, answer))))
        });
        Ok(Upload { stream: stream.boxed() })
    }
}
