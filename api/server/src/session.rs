//! `POST /session`: a client offers itself to builds.

use http::{HeaderValue, Response, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use lapstrake_session::{Error, SessionInfo};

use crate::{
    ApiError, AppState,
    body::{Answer, Body},
    request::DoorRequest,
};

/// Answers 101 and turns the connection round: from then on the client is the server of it.
pub(crate) fn open(state: &AppState, request: &DoorRequest, upgrade: OnUpgrade) -> Result<Answer, ApiError> {
    let wants_h2c = request
        .headers
        .get_all(header::UPGRADE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|protocol| protocol.trim().eq_ignore_ascii_case("h2c"));
    if !wants_h2c {
        return Err(ApiError::invalid("no upgrade proto in request: a session needs Upgrade: h2c"));
    }
    let info =
        SessionInfo::from_headers(&request.headers).map_err(|error| ApiError::invalid(error.to_string()))?;
    let id = info.id.clone();
    // Taken before the answer, so that a duplicate is still a plain error, and a build that comes first finds it.
    let reservation = state.sessions.reserve(info).map_err(|error| match error {
        Error::Duplicate { .. } => ApiError::conflict(error.to_string()),
        other => ApiError::invalid(other.to_string()),
    })?;
    tokio::spawn(async move {
        let io = match upgrade.await {
            Ok(io) => TokioIo::new(io),
            Err(error) => {
                tracing::debug!(session = %id, %error, "session's connection was not handed over");
                return;
            }
        };
        match reservation.serve(io).await {
            Ok(reason) => tracing::debug!(session = %id, %reason, "session ended"),
            Err(error) => {
                tracing::warn!(session = %id, error = crate::error::chain(&error), "session failed")
            }
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("h2c"));
    Ok(response)
}
