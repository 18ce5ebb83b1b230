//! A gRPC channel over the one connection that a session has: no reconnect, no load balancing, no names.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::Uri;
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::body::Body;

/// Bytes of one stream that the client may send ahead of us.
const STREAM_WINDOW: u32 = 1 << 20;
/// Bytes of all streams together: the most that a client can make one session buffer. Many streams may stall (an upload
/// that nobody reads yet) before they starve the others.
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Bytes that we buffer per stream before a writer has to wait.
const SEND_BUFFER: usize = 1 << 20;

/// A cheap handle to the session's connection. It is ready as long as the connection lives.
#[derive(Clone)]
pub(crate) struct SessionChannel {
    sender: http2::SendRequest<Body>,
}

/// The connection itself; the session lives as long as it is polled, and ends when it is dropped.
pub(crate) type Connection = Pin<Box<dyn Future<Output = Result<(), hyper::Error>> + Send + 'static>>;

/// Opens HTTP/2 with prior knowledge as the client of a stream that came to us as a server.
pub(crate) async fn handshake<IO>(io: IO) -> Result<(SessionChannel, Connection), hyper::Error>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .handshake(TokioIo::new(io))
        .await?;
    Ok((SessionChannel { sender }, Box::pin(connection)))
}

/// The authority that every request names; BuildKit's daemon dials "localhost".
pub(crate) fn origin() -> Uri {
    Uri::from_static("http://localhost")
}

impl tower::Service<http::Request<Body>> for SessionChannel {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.sender.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.sender.send_request(request))
    }
}
