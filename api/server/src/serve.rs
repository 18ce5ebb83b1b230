//! Listening: connections in, answers out, an orderly end.

use std::{future::Future, io, sync::Arc, time::Duration};

use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{AppState, opening::Opening, service::respond};

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
                let connection = connection(io, Arc::clone(&state), limits, stop.clone(), abort.clone());
                tracker.spawn(async move {
                    connection.await;
                    drop(place);
                });
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

async fn connection<I>(
    io: I,
    state: Arc<AppState>,
    limits: ServeLimits,
    stop: CancellationToken,
    abort: CancellationToken,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_time)
        .max_buf_size(limits.header_bytes)
        .max_headers(limits.headers)
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX));
    let service = service_fn(move |request| respond(Arc::clone(&state), request));
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
}
