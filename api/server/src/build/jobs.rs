//! Builds that run or are awaited, by the id that their clients gave them.

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::Stream;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{ApiError, ApiErrorKind, BodyStream, body};

/// How long a build waits for its context, and a context for its build, as in Moby: they come on two connections.
const MEET: Duration = Duration::from_secs(5);
/// Builds that may be known at once; every one has a connection, so this is far above what can be.
const MOST: usize = 100_000;

/// Builds by id. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Jobs {
    table: Arc<Mutex<HashMap<String, Entry>>>,
    patience: Duration,
}

impl Default for Jobs {
    fn default() -> Self {
        Self { table: Arc::default(), patience: MEET }
    }
}

#[derive(Default)]
struct Entry {
    /// The build, while it runs.
    cancel: Option<CancellationToken>,
    /// Where an upload goes, made by whoever comes first.
    meeting: Option<Meeting>,
    /// Uploads that wait for the build.
    waiting: usize,
}

struct Meeting {
    sender: mpsc::Sender<Upload>,
    receiver: Option<mpsc::Receiver<Upload>>,
}

impl Default for Meeting {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(1);
        Self { sender, receiver: Some(receiver) }
    }
}

/// A body on its way to a build, and who is told when it was read.
struct Upload {
    body: BodyStream,
    done: oneshot::Sender<()>,
}

impl Jobs {
    /// A build begins. Dropping the job ends its entry.
    pub(crate) fn start(&self, id: &str, cancel: CancellationToken) -> Result<Job, ApiError> {
        let mut jobs = self.table.lock();
        if jobs.len() >= MOST {
            return Err(ApiError::new(ApiErrorKind::Unavailable, "too many builds at once"));
        }
        let entry = jobs.entry(id.to_owned()).or_default();
        if entry.cancel.is_some() {
            return Err(ApiError::conflict(format!("build {id} is running already")));
        }
        entry.cancel = Some(cancel);
        Ok(Job { jobs: self.clone(), id: id.to_owned() })
    }

    /// Cancels the build, if it runs.
    pub(crate) fn cancel(&self, id: &str) {
        if let Some(cancel) = self.table.lock().get(id).and_then(|entry| entry.cancel.as_ref()) {
            cancel.cancel();
        }
    }

    /// Hands a body to the build that waits for it or is about to, and returns when the build has read it.
    pub(crate) async fn bring(&self, id: &str, body: BodyStream) -> Result<(), ApiError> {
        let nobody = || {
            let message = format!("no build waits for the context of build {id}: context deadline exceeded");
            ApiError::new(ApiErrorKind::Internal, message)
        };
        let sender = {
            let mut jobs = self.table.lock();
            if jobs.len() >= MOST {
                return Err(ApiError::new(ApiErrorKind::Unavailable, "too many builds at once"));
            }
            let entry = jobs.entry(id.to_owned()).or_default();
            entry.waiting += 1;
            entry.meeting.get_or_insert_default().sender.clone()
        };
        let _waiting = Waiting { jobs: self.clone(), id: id.to_owned() };
        let (done, mut read) = oneshot::channel();
        sender.send(Upload { body, done }).await.map_err(|_| nobody())?;
        drop(sender);
        // Until somebody takes it, the deadline runs; then the transfer may take as long as it takes.
        // The other end is dropped when the body was read, or will not be: either way there is no more to do.
        let was_read = tokio::time::timeout(self.patience, &mut read).await.is_ok();
        if !was_read && !self.was_taken(id) {
            return Err(nobody());
        }
        if !was_read {
            let _ = read.await;
        }
        Ok(())
    }

    fn was_taken(&self, id: &str) -> bool {
        let jobs = self.table.lock();
        jobs.get(id).and_then(|entry| entry.meeting.as_ref()).is_none_or(|meeting| meeting.receiver.is_none())
    }

    fn forget_if_idle(jobs: &mut HashMap<String, Entry>, id: &str) {
        if jobs.get(id).is_some_and(|entry| entry.cancel.is_none() && entry.waiting == 0) {
            jobs.remove(id);
        }
    }
}

/// An upload's place in the table.
struct Waiting {
    jobs: Jobs,
    id: String,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut jobs = self.jobs.table.lock();
        if let Some(entry) = jobs.get_mut(&self.id) {
            entry.waiting -= 1;
        }
        Jobs::forget_if_idle(&mut jobs, &self.id);
    }
}

/// A build's place in the table.
pub(crate) struct Job {
    jobs: Jobs,
    id: String,
}

impl Job {
    /// The body that another request brings.
    pub(crate) async fn wait_for_upload(&self) -> Result<BodyStream, ApiError> {
        let receiver = {
            let mut jobs = self.jobs.table.lock();
            let entry = jobs.entry(self.id.clone()).or_default();
            entry.meeting.get_or_insert_default().receiver.take()
        };
        let mut receiver =
            receiver.ok_or_else(|| ApiError::conflict("the build's context was taken already"))?;
        match tokio::time::timeout(self.jobs.patience, receiver.recv()).await {
            Ok(Some(Upload { body, done })) => Ok(body::boxed(Taken { body, _done: done })),
            _ => Err(ApiError::new(
                ApiErrorKind::Internal,
                format!("no context was uploaded for build {}: context deadline exceeded", self.id),
            )),
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let mut jobs = self.jobs.table.lock();
        if let Some(entry) = jobs.get_mut(&self.id) {
            entry.cancel = None;
            // What waits now waits for a build that has ended.
            entry.meeting = None;
        }
        Jobs::forget_if_idle(&mut jobs, &self.id);
    }
}

/// A body that tells its bringer when it was read, or will not be: by dropping the sender.
struct Taken {
    body: BodyStream,
    _done: oneshot::Sender<()>,
}

impl Stream for Taken {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.body.as_mut().poll_next(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt, stream};

    use super::*;

    fn body(text: &'static str) -> BodyStream {
        body::boxed(stream::iter([Ok(Bytes::from_static(text.as_bytes()))]))
    }

    #[tokio::test]
    async fn an_upload_meets_its_build_whoever_comes_first() {
        for upload_first in [true, false] {
            let jobs = Jobs::default();
            let bring = {
                let jobs = jobs.clone();
                async move { jobs.bring("a", body("tar")).await }
            };
            let build = {
                let jobs = jobs.clone();
                async move {
                    let job = jobs.start("a", CancellationToken::new()).unwrap();
                    let mut upload = job.wait_for_upload().await.unwrap();
                    let text = upload.next().await.unwrap().unwrap();
                    drop(upload);
                    text
                }
            };
            let (brought, text) = if upload_first {
                tokio::join!(biased; bring, build)
            } else {
                let (text, brought) = tokio::join!(biased; build, bring);
                (brought, text)
            };
            assert_eq!((brought.unwrap(), &text[..]), ((), &b"tar"[..]));
            assert!(jobs.table.lock().is_empty());
        }
    }

    #[tokio::test]
    async fn neither_waits_for_ever() {
        let jobs = Jobs { patience: Duration::from_millis(1), ..Jobs::default() };
        let error = jobs.bring("a", body("tar")).await.unwrap_err();
        assert!(error.message.contains("no build waits"), "{error}");
        let job = jobs.start("b", CancellationToken::new()).unwrap();
        assert!(job.wait_for_upload().await.is_err());
        drop(job);
        assert!(jobs.table.lock().is_empty());
    }

    #[test]
    fn an_id_is_of_one_build_at_a_time_and_cancels_it() {
        let jobs = Jobs::default();
        let cancel = CancellationToken::new();
        let job = jobs.start("a", cancel.clone()).unwrap();
        assert!(jobs.start("a", CancellationToken::new()).is_err());
        jobs.cancel("b");
        jobs.cancel("a");
        assert!(cancel.is_cancelled());
        drop(job);
        assert!(jobs.start("a", CancellationToken::new()).is_ok());
    }
}
