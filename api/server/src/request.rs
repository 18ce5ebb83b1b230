//! A request as the doors see it.

use std::{io, sync::Arc};

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, Method};
use http_body_util::{BodyExt, BodyStream as Frames, Limited};
use lapstrake_api_types::{ApiVersion, AuthConfig, Form};

use crate::{ApiError, ApiErrorKind, BodyStream, body, unread::RequestBody};

/// The parts of a request that doors look at, parsed.
pub(crate) struct DoorRequest {
    pub(crate) method: Method,
    /// The API version that the client asked for, or the newest.
    pub(crate) api: ApiVersion,
    pub(crate) form: Form,
    pub(crate) headers: Arc<HeaderMap>,
    pub(crate) body: RequestBody,
}

impl DoorRequest {
    /// A header's text; empty when it is not there or not text.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Whether the connection is to be HTTP/2 from now on.
    pub(crate) fn wants_h2c(&self) -> bool {
        let asked =
            self.headers.get_all(http::header::UPGRADE).iter().filter_map(|value| value.to_str().ok());
        asked.flat_map(|value| value.split(',')).any(|protocol| protocol.trim().eq_ignore_ascii_case("h2c"))
    }

    /// `X-Registry-Auth`. As in Moby, what cannot be read is no credentials: the registry then says what is missing.
    pub(crate) fn auth(&self) -> AuthConfig {
        AuthConfig::from_header(self.header("x-registry-auth")).unwrap_or_default()
    }

    /// The whole body, of which no more than `limit` bytes are taken.
    pub(crate) async fn small_body(self, limit: usize) -> Result<Bytes, ApiError> {
        let too_large =
            || ApiError::new(ApiErrorKind::TooLarge, format!("request body is larger than {limit} bytes"));
        match Limited::new(self.body, limit).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(too_large()),
            Err(error) => Err(ApiError::invalid(format!("cannot read request body: {error}"))),
        }
    }

    /// The body as a stream that ends with an error after `limit` bytes.
    pub(crate) fn body_stream(self, limit: u64) -> BodyStream {
        let mut taken = 0_u64;
        body::boxed(Frames::new(self.body).filter_map(move |frame| {
            let item = match frame {
                Ok(frame) => frame.into_data().ok().map(|data| {
                    taken = taken.saturating_add(data.len() as u64);
                    if taken > limit {
                        Err(io::Error::other(format!("request body is larger than {limit} bytes")))
                    } else {
                        Ok(data)
                    }
                }),
                Err(error) => Some(Err(io::Error::other(error))),
            };
            std::future::ready(item)
        }))
    }
}
