//! Bodies of answers, and answers.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::Stream;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use lapstrake_api_types::StreamMessage;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::DropGuard;

use crate::{ApiError, BodyStream};

/// An answer.
pub(crate) type Answer = Response<Body>;

/// Chunks that may wait for a client that reads slowly, before whoever makes them waits.
const STREAM_DEPTH: usize = 16;

/// A body: known, or made while it is sent.
pub(crate) enum Body {
    /// Sent as one chunk, once.
    Whole(Option<Bytes>),
    Stream {
        chunks: mpsc::Receiver<io::Result<Bytes>>,
        /// Cancels the work behind the stream when the client is gone.
        _cancel: Option<DropGuard>,
    },
    /// Messages and a status, as gRPC's services write them.
    Grpc(tonic::body::Body),
}

impl Body {
    pub(crate) fn empty() -> Self {
        Self::full(Bytes::new())
    }

    pub(crate) fn full(bytes: impl Into<Bytes>) -> Self {
        Self::Whole(Some(bytes.into()).filter(|bytes| !bytes.is_empty()))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream { chunks, .. } => {
                chunks.poll_recv(cx).map(|chunk| chunk.map(|chunk| chunk.map(Frame::data)))
            }
            Self::Grpc(body) => Pin::new(body).poll_frame(cx).map_err(io::Error::other),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Stream { .. } => false,
            Self::Grpc(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream { .. } => SizeHint::default(),
            Self::Grpc(body) => body.size_hint(),
        }
    }
}

/// The writing end of a streamed body.
#[derive(Clone)]
pub(crate) struct StreamWriter(mpsc::Sender<io::Result<Bytes>>);

/// The client is gone.
#[derive(Debug)]
pub(crate) struct Gone;

impl StreamWriter {
    /// Sends a chunk, waiting for a client that reads slowly.
    pub(crate) async fn send(&self, chunk: impl Into<Bytes>) -> Result<(), Gone> {
        let chunk = chunk.into();
        // An empty chunk would end nothing and say nothing.
        if chunk.is_empty() {
            return Ok(());
        }
        self.0.send(Ok(chunk)).await.map_err(|_| Gone)
    }

    pub(crate) async fn message(&self, message: &StreamMessage) -> Result<(), Gone> {
        self.send(message.to_line()).await
    }

    /// Cuts the answer off, so that the client sees that it is not whole: for bodies that are not messages.
    pub(crate) async fn cut_off(&self, why: String) {
        // A client that is gone already needs no telling.
        let _ = self.0.send(Err(io::Error::other(why))).await;
    }

    /// Returns when the client is gone.
    pub(crate) async fn closed(&self) {
        self.0.closed().await;
    }

    /// The end of a stream that began well and ended badly.
    pub(crate) async fn error(&self, error: &ApiError) -> Result<(), Gone> {
        self.message(&StreamMessage::error(error.message.clone(), error.exit_code)).await
    }
}

/// A streamed body, and what writes to it. Dropping the body drops `cancel`.
pub(crate) fn stream(cancel: Option<DropGuard>) -> (StreamWriter, Body) {
    let (sender, chunks) = mpsc::channel(STREAM_DEPTH);
    (StreamWriter(sender), Body::Stream { chunks, _cancel: cancel })
}

/// An answer with this type and body.
pub(crate) fn answer(status: StatusCode, content_type: &'static str, body: Body) -> Answer {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A JSON answer, with the line end that Moby writes.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    let mut bytes = serde_json::to_vec(value).expect("answers are plain data");
    bytes.push(b'\n');
    answer(status, "application/json", Body::full(bytes))
}

/// A JSON answer that all went well.
pub(crate) fn ok(value: &impl Serialize) -> Answer {
    json(StatusCode::OK, value)
}

/// An answer that says nothing but its status.
pub(crate) fn status(status: StatusCode) -> Answer {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// `{"message": …}`.
pub(crate) fn error(error: &ApiError) -> Answer {
    json(error.status(), &serde_json::json!({ "message": error.message }))
}

/// A stream of bytes as whoever reads a request's body takes it.
pub(crate) fn boxed(stream: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> BodyStream {
    Box::pin(stream)
}
