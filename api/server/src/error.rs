//! The one error type of the doors: a status and a message that a client is shown.

use std::{error::Error, fmt::Write as _};

use http::StatusCode;
use lapstrake_api_types::ApiTypeError;
use lapstrake_layerstore_store::{ErrorKind, StoreError};

/// What kind of error, and so which HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApiErrorKind {
    /// 400: the request can never be right.
    Invalid,
    /// 401: credentials are wrong or missing.
    Unauthorized,
    /// 403: refused.
    Forbidden,
    /// 404: it is not there.
    NotFound,
    /// 409: it is in use, or there already.
    Conflict,
    /// 413: more than the daemon is configured to take.
    TooLarge,
    /// 500: the daemon or the machine failed, or Moby answers so.
    Internal,
    /// 501: not here.
    NotImplemented,
    /// 503: somebody else (a registry) failed.
    Unavailable,
}

/// Why a request failed, as its client is told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Decides the status.
    pub kind: ApiErrorKind,
    /// The whole message.
    pub message: String,
    /// A build's failed process: its exit code, for `errorDetail.code`; else 0.
    pub exit_code: i64,
    /// Where in a Dockerfile a build failed, if that is known.
    pub place: Option<Box<ErrorPlace>>,
}

/// Where in a Dockerfile a build failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorPlace {
    /// Such as `Dockerfile:3`.
    pub name: String,
    /// The lines at fault and those around them, with a frame; it begins with the name.
    pub excerpt: String,
}

impl ApiError {
    /// An error of this kind.
    pub fn new(kind: ApiErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), exit_code: 0, place: None }
    }

    /// The same for those who get nothing but a message: the lines at fault are below it.
    #[must_use]
    pub(crate) fn with_excerpt(mut self) -> Self {
        if let Some(place) = self.place.take() {
            self.message = format!("{}\n{}", self.message, place.excerpt.trim_end());
        }
        self
    }

    /// The request can never be right.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ApiErrorKind::Invalid, message)
    }

    /// It is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ApiErrorKind::NotFound, message)
    }

    /// It is in use, or there already.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ApiErrorKind::Conflict, message)
    }

    /// Not here.
    pub fn not_implemented(message: impl Into<String>) -> Self {
        Self::new(ApiErrorKind::NotImplemented, message)
    }

    /// The daemon failed: the error with all its causes.
    pub fn internal(error: &(dyn Error + 'static)) -> Self {
        Self::new(ApiErrorKind::Internal, chain(error))
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        match self.kind {
            ApiErrorKind::Invalid => StatusCode::BAD_REQUEST,
            ApiErrorKind::Unauthorized => StatusCode::UNAUTHORIZED,
            ApiErrorKind::Forbidden => StatusCode::FORBIDDEN,
            ApiErrorKind::NotFound => StatusCode::NOT_FOUND,
            ApiErrorKind::Conflict => StatusCode::CONFLICT,
            ApiErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ApiErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            ApiErrorKind::NotImplemented => StatusCode::NOT_IMPLEMENTED,
            ApiErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// An error and its causes on one line; a cause that the line says already is left out.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let cause = source.to_string();
        // A cause that ends in the text is the same said with its place before it, as a failed step's.
        if !text.contains(&cause) && !cause.ends_with(&text) {
            let _ = write!(text, ": {cause}"); // a String takes everything
        }
        next = source.source();
    }
    text
}

impl From<ApiTypeError> for ApiError {
    fn from(error: ApiTypeError) -> Self {
        let kind = if error.is_internal() { ApiErrorKind::Internal } else { ApiErrorKind::Invalid };
        Self::new(kind, error.to_string())
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let kind = match error.kind() {
            ErrorKind::NotFound => ApiErrorKind::NotFound,
            ErrorKind::Conflict => ApiErrorKind::Conflict,
            ErrorKind::Invalid => ApiErrorKind::Invalid,
            ErrorKind::Corrupt | ErrorKind::Internal => ApiErrorKind::Internal,
        };
        Self::new(kind, chain(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Said {
        text: &'static str,
        source: Option<Box<Said>>,
    }

    fn chained(texts: &[&'static str]) -> String {
        let make = |source: Option<Box<Said>>, text: &&'static str| Some(Box::new(Said { text, source }));
        let error = texts.iter().rev().fold(None, make).unwrap();
        chain(error.as_ref())
    }

    #[test]
    fn every_cause_is_said_once() {
        assert_eq!(chained(&["open x", "no such file"]), "open x: no such file");
        assert_eq!(chained(&["open x: no such file", "no such file"]), "open x: no such file");
        assert_eq!(
            chained(&["exit code: 1", "[2/2] RUN false: exit code: 1", "exit code: 1"]),
            "exit code: 1"
        );
    }
}
