//! The sessions that are alive, by id.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use lapstrake_api_proto::health::{HealthCheckRequest, health_client::HealthClient};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
};
use tokio_util::sync::CancellationToken;

use crate::{
    CloseReason, Error, HealthCheck, SessionCaller, SessionId, SessionInfo,
    caller::Inner,
    channel::{self, SessionChannel},
};

/// How long [`Sessions::get`] waits for a session that is about to connect, as BuildKit does.
pub const CONNECT_WAIT: Duration = Duration::from_secs(5);

/// Whether to wait for a session that has not connected yet. A client sends its build and opens its session on two
/// connections at once, so either may arrive first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Only a session that is there now will do.
    Never,
    /// Wait this long at most.
    AtMost(Duration),
}

impl Default for Wait {
    fn default() -> Self {
        Self::AtMost(CONNECT_WAIT)
    }
}

/// The registry of live sessions. Clones share it.
#[derive(Clone, Default)]
pub struct Sessions {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    slots: Mutex<HashMap<SessionId, Slot>>,
    arrived: Notify,
}

enum Slot {
    /// The id is taken, the connection is still being set up.
    Reserved,
    Live(SessionCaller),
}

impl Sessions {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the id before the HTTP request is answered, so that a duplicate is still a plain HTTP error.
    ///
    /// # Errors
    /// [`Error::Duplicate`] when a session with this id is alive or being set up.
    pub fn reserve(&self, info: SessionInfo) -> Result<Reservation, Error> {
        let mut slots = self.shared.slots.lock();
        if slots.contains_key(&info.id) {
            return Err(Error::Duplicate { id: info.id });
        }
        slots.insert(info.id.clone(), Slot::Reserved);
        Ok(Reservation { place: Place { shared: Arc::downgrade(&self.shared), id: info.id.clone() }, info })
    }

    /// [`reserve`](Self::reserve) and [`serve`](Reservation::serve) in one: the session lives while the future is polled.
    ///
    /// # Errors
    /// [`Error::Duplicate`] at once; the future's own are those of [`Reservation::serve`].
    pub fn register<IO>(
        &self,
        info: SessionInfo,
        io: IO,
    ) -> Result<impl Future<Output = Result<CloseReason, Error>> + Send + 'static, Error>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        Ok(self.reserve(info)?.serve(io))
    }

    /// The live session `id` (a `name:` prefix is ignored).
    ///
    /// Cancel-safe by drop.
    ///
    /// # Errors
    /// [`Error::NoActiveSession`] when it is not there in time.
    pub async fn get(&self, id: &str, wait: Wait) -> Result<SessionCaller, Error> {
        let missing = || Error::NoActiveSession { id: id.to_owned() };
        let key = SessionId::parse(id).ok_or_else(missing)?;
        let search = async {
            loop {
                // Subscribed before looking, so that an arrival in between is not missed.
                let mut arrival = std::pin::pin!(self.shared.arrived.notified());
                arrival.as_mut().enable();
                if let Some(caller) = self.live(&key) {
                    return caller;
                }
                arrival.await;
            }
        };
        match wait {
            Wait::Never => self.live(&key).ok_or_else(missing),
            Wait::AtMost(time) => tokio::time::timeout(time, search).await.map_err(|_| missing()),
        }
    }

    /// Calls `call` with each of `ids` in turn until one succeeds: what a vertex does that several builds share, where any of
    /// their clients may answer.
    ///
    /// Cancel-safe by drop when `call` is.
    ///
    /// # Errors
    /// The last session's error, or [`Error::NoActiveSessions`] when there are no ids.
    pub async fn any<T, F, Fut>(&self, ids: &[SessionId], mut call: F) -> Result<T, Error>
    where
        F: FnMut(SessionCaller) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let mut last = Error::NoActiveSessions;
        for id in ids {
            match self.get(id.as_str(), Wait::default()).await {
                Ok(caller) => match call(caller).await {
                    Ok(value) => return Ok(value),
                    Err(error) => last = error,
                },
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The ids of all live sessions.
    pub fn ids(&self) -> Vec<SessionId> {
        let slots = self.shared.slots.lock();
        slots.iter().filter(|(_, s)| matches!(s, Slot::Live(_))).map(|(id, _)| id.clone()).collect()
    }

    /// Whether the session is there right now.
    pub fn is_live(&self, id: &SessionId) -> bool {
        self.live(id).is_some()
    }

    fn live(&self, id: &SessionId) -> Option<SessionCaller> {
        match self.shared.slots.lock().get(id) {
            Some(Slot::Live(caller)) if !caller.is_closed() => Some(caller.clone()),
            _ => None,
        }
    }
}

/// An id that is taken and waits for its connection. Dropping it frees the id.
#[must_use = "the session starts when it is served"]
pub struct Reservation {
    info: SessionInfo,
    place: Place,
}

/// Removes the id from the registry when dropped.
struct Place {
    shared: Weak<Shared>,
    id: SessionId,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.slots.lock().remove(&self.id);
        }
    }
}

/// Marks the session closed even when the serving future is dropped half-way.
struct CloseOnDrop(Arc<Inner>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close(CloseReason::Dropped);
    }
}

impl Reservation {
    /// Serves the session over `io`, an already hijacked stream on which the *client* is the HTTP/2 server, until either side ends it.
    ///
    /// Dropping the future ends the session; calls in progress then fail with [`Error::Closed`].
    ///
    /// # Errors
    /// [`Error::Handshake`] when the other side does not speak HTTP/2. A session that was established and ended is no error:
    /// the reason is returned.
    pub async fn serve<IO>(self, io: IO) -> Result<CloseReason, Error>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let Self { info, place } = self;
        let id = info.id.clone();
        let health = info.health;
        let (channel, mut connection) =
            channel::handshake(io).await.map_err(|source| Error::Handshake { id: id.clone(), source })?;
        let inner = Inner::new(info, channel.clone());
        let close = CloseOnDrop(Arc::clone(&inner));
        if let Some(shared) = place.shared.upgrade() {
            shared.slots.lock().insert(id.clone(), Slot::Live(SessionCaller::new(Arc::clone(&inner))));
            shared.arrived.notify_waiters();
        }
        let reason = tokio::select! {
            end = &mut connection => match end {
                Err(error) if !is_disconnect(&error) => CloseReason::Broken(error_chain(&error)),
                _ => CloseReason::Disconnected,
            },
            reason = watch(channel, health) => reason,
            () = inner.closed().cancelled() => CloseReason::Dropped,
        };
        inner.close(reason.clone());
        tracing::debug!(session = %id, %reason, "session ended");
        drop((close, place));
        Ok(reason)
    }
}

/// Returns when the client no longer answers health checks.
async fn watch(channel: SessionChannel, check: HealthCheck) -> CloseReason {
    let mut client = HealthClient::with_origin(channel, channel::origin());
    let mut failures = 0;
    let mut last = Duration::ZERO;
    loop {
        tokio::time::sleep(check.interval).await;
        let started = Instant::now();
        let timeout = check.timeout.max(last + last / 2);
        let request = HealthCheckRequest { service: String::new() };
        let answer = tokio::time::timeout(timeout, client.check(request)).await;
        last = started.elapsed();
        match answer {
            Ok(Ok(_)) => failures = 0,
            failed => {
                failures += 1;
                tracing::warn!(failures, answer = ?failed.map(|r| r.map(drop)), "session health check failed");
                if failures >= check.failures {
                    return CloseReason::Unhealthy;
                }
            }
        }
    }
}

/// Whether the connection ended because the other side closed it: docker does so without HTTP/2's goodbye.
fn is_disconnect(error: &hyper::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        let io = error
            .downcast_ref::<std::io::Error>()
            .or_else(|| error.downcast_ref::<h2::Error>().and_then(h2::Error::get_io));
        if let Some(io) = io {
            return matches!(io.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof);
        }
        next = error.source();
    }
    false
}

fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

/// A token that is cancelled when the session ends.
pub(crate) type Closed = CancellationToken;
