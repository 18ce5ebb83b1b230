//! One live session, as those who use it see it.

use std::{future::Future, sync::Arc, time::Duration};

use lapstrake_api_proto::health::{HealthCheckRequest, health_client::HealthClient};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::{
    CloseReason, Error, SessionId, SessionInfo, TransferError,
    channel::{self, SessionChannel},
    registry::Closed,
};

/// How long to wait for the connection's end to be noticed when a call's stream has broken, so that a vanished session is reported
/// as such and not as whatever its stream said.
const NOTICE: Duration = Duration::from_millis(250);
/// How long a client may take for an answer that is one message. It may ask its user first (a credential helper, an agent); BuildKit gives it a
/// minute.
const ANSWER_TIME: Duration = Duration::from_secs(60);

/// Calls to one client, typed. Clones are cheap and share the session; holding one does not keep it alive.
#[derive(Clone)]
pub struct SessionCaller {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    info: SessionInfo,
    channel: SessionChannel,
    closed: Closed,
    reason: Mutex<Option<CloseReason>>,
}

impl Inner {
    pub(crate) fn new(info: SessionInfo, channel: SessionChannel) -> Arc<Self> {
        Arc::new(Self { info, channel, closed: Closed::new(), reason: Mutex::new(None) })
    }

    pub(crate) fn closed(&self) -> &Closed {
        &self.closed
    }

    /// The first reason given is the one that is told.
    pub(crate) fn close(&self, reason: CloseReason) {
        self.reason.lock().get_or_insert(reason);
        self.closed.cancel();
    }
}

impl SessionCaller {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    /// The session's id.
    pub fn id(&self) -> &SessionId {
        &self.inner.info.id
    }

    /// What the client said about itself.
    pub fn info(&self) -> &SessionInfo {
        &self.inner.info
    }

    /// Which contexts are the same directory between sessions.
    pub fn shared_key(&self) -> &str {
        &self.inner.info.shared_key
    }

    /// Whether the client offers the gRPC path `/service/method` (case does not matter).
    pub fn supports(&self, method: &str) -> bool {
        self.inner.info.supports(method)
    }

    /// Whether the session has ended.
    pub fn is_closed(&self) -> bool {
        self.inner.closed.is_cancelled()
    }

    /// Cancelled when the session ends, for whatever reason. Cancelling it ends the session.
    pub fn closed(&self) -> &CancellationToken {
        &self.inner.closed
    }

    /// Asks whether the client answers at all; true means that it serves the session.
    ///
    /// Cancel-safe by drop.
    pub async fn answers(&self) -> bool {
        let mut client = HealthClient::with_origin(self.channel(), channel::origin());
        client.check(HealthCheckRequest { service: String::new() }).await.is_ok()
    }

    pub(crate) fn channel(&self) -> SessionChannel {
        self.inner.channel.clone()
    }

    pub(crate) fn require(&self, method: &'static str) -> Result<(), Error> {
        if self.supports(method) { Ok(()) } else { Err(Error::Unsupported { id: self.id().clone(), method }) }
    }

    /// Runs a call; a session that ends fails it at once.
    pub(crate) async fn guard<T>(
        &self,
        method: &'static str,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Error> {
        tokio::select! {
            biased;
            () = self.inner.closed.cancelled() => Err(self.closed_error()),
            result = call => match result {
                Ok(value) => Ok(value),
                Err(status) => Err(self.call_error(method, status).await),
            },
        }
    }

    /// A unary call that must be answered within [`ANSWER_TIME`].
    pub(crate) async fn timed<T>(
        &self,
        method: &'static str,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(ANSWER_TIME, self.guard(method, call)).await {
            Ok(result) => result.map(tonic::Response::into_inner),
            Err(_) => Err(Error::TimedOut { id: self.id().clone(), method, seconds: ANSWER_TIME.as_secs() }),
        }
    }

    /// What a failed call means: the session's end, a missing method, or the client's own error.
    pub(crate) async fn call_error(&self, method: &'static str, status: Status) -> Error {
        // A status that did not come from the client's answer but from the transport.
        let broken = std::error::Error::source(&status).is_some();
        if broken {
            // Elapsed: the stream broke, the connection lives.
            let _ = tokio::time::timeout(NOTICE, self.inner.closed.cancelled()).await;
        }
        if self.is_closed() {
            return self.closed_error();
        }
        let id = self.id().clone();
        match status.code() {
            Code::Unimplemented => Error::Unsupported { id, method },
            _ => Error::Call { id, method, status: Box::new(status) },
        }
    }

    pub(crate) fn closed_error(&self) -> Error {
        let reason = self.inner.reason.lock().clone().unwrap_or(CloseReason::Dropped);
        Error::Closed { id: self.id().clone(), reason }
    }

    pub(crate) fn transfer_error(&self, transfer: TransferError) -> Error {
        Error::Transfer { id: self.id().clone(), transfer: Box::new(transfer) }
    }
}

impl std::fmt::Debug for SessionCaller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionCaller").field("id", self.id()).field("closed", &self.is_closed()).finish()
    }
}
