//! A client offers itself to builds: `POST /session`, and `Control.Session` of gRPC.

use std::pin::Pin;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use lapstrake_api_proto::control::BytesMessage;
use lapstrake_session::{Error, Reservation, SessionInfo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::{
    io::{ReaderStream, StreamReader},
    sync::CancellationToken,
};
use tonic::{Status, Streaming};

use crate::{
    ApiError, AppState,
    body::{Answer, Body},
    request::DoorRequest,
    serve::Connection,
};

/// Bytes of a session in one message, as BuildKit's clients send them.
const MESSAGE: usize = 32 << 10;
/// Bytes that may wait between the messages and the session.
const WAITING: usize = 256 << 10;

/// Answers 101 and turns the connection round: from then on the client is the server of it.
pub(crate) fn open(
    connection: &Connection,
    request: &DoorRequest,
    upgrade: OnUpgrade,
) -> Result<Answer, ApiError> {
    if !request.wants_h2c() {
        return Err(ApiError::invalid("no upgrade proto in request: a session needs Upgrade: h2c"));
    }
    // Taken before the answer, so that a duplicate is still a plain error, and a build that comes first finds it.
    let reservation = reserve(&connection.state, &request.headers).map_err(|error| match error {
        Error::Duplicate { .. } => ApiError::conflict(error.to_string()),
        other => ApiError::invalid(other.to_string()),
    })?;
    let connection = connection.clone();
    tokio::spawn(async move {
        match upgrade.await {
            Ok(io) => serve(reservation, TokioIo::new(io)).await,
            Err(error) => tracing::debug!(%error, "session's connection was not handed over"),
        }
        drop(connection);
    });
    Ok(switch_to_h2c())
}

/// The answer after which a connection is HTTP/2, whichever side is the client then.
pub(crate) fn switch_to_h2c() -> Answer {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("h2c"));
    response
}

/// What a client says in a session: the connection's bytes, in messages.
pub(crate) type SessionStream = Pin<Box<dyn Stream<Item = Result<BytesMessage, Status>> + Send>>;

/// The same within a stream of gRPC. The session lives as long as what is returned.
pub(crate) fn within(
    state: &AppState,
    headers: &HeaderMap,
    messages: Streaming<BytesMessage>,
) -> Result<SessionStream, Status> {
    let reservation = reserve(state, headers).map_err(|error| match error {
        Error::Duplicate { .. } => Status::already_exists(error.to_string()),
        other => Status::invalid_argument(other.to_string()),
    })?;
    let (ours, theirs) = tokio::io::duplex(WAITING);
    let (to_client, mut from_client) = tokio::io::split(theirs);
    let gone = CancellationToken::new();
    let guard = gone.clone().drop_guard();
    tokio::spawn(async move {
        let messages = messages.map_ok(|message| Bytes::from(message.data)).map_err(std::io::Error::other);
        let mut messages = StreamReader::new(messages);
        let talk = async {
            tokio::select! {
                () = serve(reservation, ours) => {}
                copied = tokio::io::copy_buf(&mut messages, &mut from_client) => {
                    tracing::debug!(?copied, "session's messages ended");
                }
            }
        };
        tokio::select! {
            () = talk => {}
            () = gone.cancelled() => {}
        }
    });
    let said = ReaderStream::with_capacity(to_client, MESSAGE).map(move |chunk| {
        let _session_lives_on = &guard;
        let chunk = chunk.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(BytesMessage { data: chunk.into() })
    });
    Ok(Box::pin(said))
}

fn reserve(state: &AppState, headers: &HeaderMap) -> Result<Reservation, Error> {
    state.sessions.reserve(SessionInfo::from_headers(headers)?)
}

async fn serve<I>(reservation: Reservation, io: I)
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    // Why a session ended is in the log of whoever ended it.
    if let Err(error) = reservation.serve(io).await {
        tracing::warn!(error = crate::error::chain(&error), "session failed");
    }
}
