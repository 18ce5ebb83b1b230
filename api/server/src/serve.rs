//! Listening: connections in, answers out, an orderly end.

use std::{future::Future, io, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use hyper::{service::service_fn, upgrade::OnUpgrade};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{AppState, opening::Opening, service::respond};

/// Bytes of one HTTP/2 stream that a client may send ahead of us.
const STREAM_WINDOW: u32 = 1 << 20;
/// Bytes of all streams of a connection together: the most that a client can make us buffer.
const CONNECTION_WINDOW: u32 = 8 << 20;

/// A source of connections: a listening socket, or one wrapped in TLS.
pub trait Accept: Send {
    /// One connection.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection. An error is about one connection (a failed handshake, too many open files): the caller goes on.
    /// Cancel-safe.
    fn accept(&mut self) -> impl Future<Output = io::Result<Self::Io>> + Send;
}

impl Accept for UnixListener {
    type Io = UnixStream;

    async fn accept(&mut self) -> io::Result<UnixStream> {
        Ok(UnixListener::accept(self).await?.0)
    }
}

impl Accept for TcpListener {
    type Io = TcpStream;

    async fn accept(&mut self) -> io::Result<TcpStream> {
        let (stream, _) = TcpListener::accept(self).await?;
        // Progress is many small lines, each to be seen at once.
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// What connections may take.
#[derive(Debug, Clone, Copy)]
pub struct ServeLimits {
    /// Connections at once on this listener; more wait in the kernel's queue.
    pub connections: usize,
    /// Bytes of a request's line and headers.
    pub header_bytes: usize,
    /// Header lines of a request.
    pub headers: usize,
    /// Time until a request's headers are complete, idle connections included.
    pub header_time: Duration,
    /// Time that running requests have to end after `stop`.
    pub grace: Duration,
    /// HTTP/2: requests at once on one connection. A client that bakes many targets has three for each.
    pub streams: u32,
    /// HTTP/2: a client that says nothing for this long is asked whether it is there.
    pub ping_interval: Duration,
    /// HTTP/2: time for the answer; then the connection is closed.
    pub ping_time: Duration,
}

impl Default for ServeLimits {
    /// Moby's five minutes for headers; registry configs with many logins need the header bytes.
    fn default() -> Self {
        Self {
            connections: 1024,
            header_bytes: 1 << 20,
            headers: 128,
            header_time: Duration::from_secs(300),
            grace: Duration::from_secs(10),
            streams: 1024,
            ping_interval: Duration::from_secs(60),
            ping_time: Duration::from_secs(30),
        }
    }
}

/// Serves every connection of `listener` until `stop`, then lets running requests end within the grace period.
///
/// A request whose client goes away, or that is still running after the grace period, is dropped: its work is cancelled.
pub async fn serve<A: Accept>(
    mut listener: A,
    state: Arc<AppState>,
    limits: ServeLimits,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let tracker = TaskTracker::new();
    // Ends what the grace period did not.
    let abort = CancellationToken::new();
    loop {
        let place = tokio::select! {
            () = stop.cancelled() => break,
            place = Arc::clone(&places).acquire_owned() => place.expect("the semaphore is never closed"),
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(io) => {
                let connection = Connection {
                    state: Arc::clone(&state),
                    limits,
                    stop: stop.clone(),
                    abort: abort.clone(),
                    tracker: tracker.clone(),
                    _place: Arc::new(place),
                };
                tracker.spawn(connection.serve(io, Protocol::Either));
            }
            Err(error) => {
                tracing::warn!(%error, "connection not accepted");
                // Out of file descriptors, most likely: do not spin until some are free again.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    drop(listener);
    tracker.close();
    if tokio::time::timeout(limits.grace, tracker.wait()).await.is_err() {
        abort.cancel();
        tracker.wait().await;
    }
}

/// What a connection speaks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    /// What its first bytes say.
    Either,
    /// HTTP/2, as was agreed.
    Http2,
}

/// One connection: what serves its requests, and its place among those that may be at once. Clones are the same connection; whoever takes it over
/// keeps one.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) state: Arc<AppState>,
    limits: ServeLimits,
    stop: CancellationToken,
    abort: CancellationToken,
    tracker: TaskTracker,
    // Held until nobody uses the connection any more.
    _place: Arc<OwnedSemaphorePermit>,
}

impl Connection {
    /// Speaks HTTP/2 on a connection that a request was to take over, as soon as that is answered. `what` is what asked for it.
    pub(crate) fn go_on_with_http2(&self, upgrade: OnUpgrade, what: &'static str) {
        let connection = self.clone();
        self.tracker.spawn(async move {
            match upgrade.await {
                Ok(io) => connection.serve(TokioIo::new(io), Protocol::Http2).await,
                Err(error) => tracing::debug!(%error, "connection of {what} was not handed over"),
            }
        });
    }

    // Boxed: a connection that was upgraded is served as any other is, so the type would contain itself.
    fn serve<I>(self, io: I, protocol: Protocol) -> BoxFuture<'static, ()>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        Box::pin(async move {
            let Self { limits, stop, abort, .. } = self.clone();
            let mut builder = auto::Builder::new(TokioExecutor::new());
            if protocol == Protocol::Http2 {
                builder = builder.http2_only();
            }
            configure(&mut builder, &limits);
            let service = service_fn(move |request| respond(self.clone(), request));
            let io = Opening::new(io, limits.header_time);
            let connection = builder.serve_connection_with_upgrades(TokioIo::new(io), service);
            tokio::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => Some(ended),
                () = stop.cancelled() => None,
                () = abort.cancelled() => return,
            };
            let ended = match ended {
                Some(ended) => ended,
                None => {
                    connection.as_mut().graceful_shutdown();
                    tokio::select! {
                        ended = connection => ended,
                        () = abort.cancelled() => return,
                    }
                }
            };
            if let Err(error) = ended {
                // Clients go away at all times; what mattered was told to the request's log.
                tracing::debug!(%error, "connection ended");
            }
        })
    }
}

/// Bounds of what a client may take. Streams that are opened and reset at once (CVE-2023-44487) are bounded by h2 itself.
fn configure(builder: &mut auto::Builder<TokioExecutor>, limits: &ServeLimits) {
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_time)
        .max_buf_size(limits.header_bytes)
        .max_headers(limits.headers)
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(limits.ping_interval)
        .keep_alive_timeout(limits.ping_time)
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX));
}
