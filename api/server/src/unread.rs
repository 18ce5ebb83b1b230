//! What a door left of a request's body.
//!
//! A connection that is closed on a client in the middle of its sending is reset, and the client may never see the answer: it reports a broken pipe
//! instead of what was wrong. So what is left is read, within bounds, before a refusal is sent (Go's net/http does the same).

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};

/// Bytes that are read for the sake of the answer.
const MOST_BYTES: u64 = 64 << 20;
/// Time for it.
const MOST_TIME: Duration = Duration::from_secs(5);

/// Where a body is put back that nobody read to its end.
#[derive(Clone, Default)]
pub(crate) struct Unread(Arc<Mutex<Option<Incoming>>>);

impl Unread {
    /// The body as doors read it.
    pub(crate) fn watch(&self, body: Incoming) -> RequestBody {
        RequestBody { body: Some(body), left: self.clone() }
    }

    /// Reads what is left, within bounds.
    pub(crate) async fn drain(self) {
        let left = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut body) = left else { return };
        let read = async {
            let mut taken = 0;
            while taken < MOST_BYTES
                && let Some(Ok(frame)) = body.frame().await
            {
                taken += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
        };
        // A client that is slower than that loses the answer.
        let _ = tokio::time::timeout(MOST_TIME, read).await;
    }
}

/// A request's body.
pub(crate) struct RequestBody {
    // Only `None` while it is dropped.
    body: Option<Incoming>,
    left: Unread,
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) {
            *self.left.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
        }
    }
}
