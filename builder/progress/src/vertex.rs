//! Handles that turn work into events, so that what starts always ends.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use lapstrake_layerstore_oci::Digest;
use parking_lot::Mutex;

use crate::{Emit, Event, Log, Status, Stream, VertexState, redact};

/// The name of statuses that are remarks: nothing moves there.
pub(crate) const REMARK: &str = "remark";

/// Reports on one vertex. Cheap to clone.
#[derive(Clone)]
pub struct VertexHandle {
    sink: Arc<dyn Emit>,
    state: Arc<Mutex<VertexState>>,
}

impl VertexHandle {
    /// Announces a vertex on which no work has begun.
    pub fn announce(sink: Arc<dyn Emit>, state: VertexState) -> Self {
        sink.emit(&Event::Vertex(state.clone()));
        Self { sink, state: Arc::new(Mutex::new(state)) }
    }

    /// Which vertex this is.
    pub fn digest(&self) -> Digest {
        self.state.lock().digest.clone()
    }

    /// What it is called.
    pub fn name(&self) -> String {
        self.state.lock().name.clone()
    }

    /// Work begins, or begins again after an end.
    pub fn start(&self) {
        let mut state = self.state.lock();
        if state.started.is_none() || state.completed.is_some() {
            state.started = Some(SystemTime::now());
            state.completed = None;
            state.error = None;
            state.cached = false;
            self.sink.emit(&Event::Vertex(state.clone()));
        }
    }

    /// Work that began ends for now: a later [`Self::start`] goes on. Nothing happens when none began.
    pub fn pause(&self) {
        let running = {
            let state = self.state.lock();
            state.started.is_some() && state.completed.is_none()
        };
        if running {
            self.complete();
        }
    }

    /// The result came from the cache, if nothing was said of this vertex yet.
    pub fn cached_if_untouched(&self) {
        if self.state.lock().started.is_none() {
            self.cached();
        }
    }

    /// The result came from the cache. Told at once: nobody sees it begin.
    pub fn cached(&self) {
        let mut state = self.state.lock();
        if state.completed.take().is_some() {
            state.started = None;
            state.error = None;
        }
        self.finish(&mut state, |state| state.cached = true);
    }

    /// Work ended well.
    pub fn complete(&self) {
        self.end(|_| ());
    }

    /// Reports a piece of work from its start to its end, well or not.
    pub async fn track<T, E: std::fmt::Display>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        self.start();
        let result = work.await;
        match &result {
            Ok(_) => self.complete(),
            Err(error) => self.fail(error.to_string()),
        }
        result
    }

    /// Work failed.
    pub fn fail(&self, error: impl Into<String>) {
        let error = redact(&error.into()).into_owned();
        self.end(|state| state.error = Some(error));
    }

    fn end(&self, change: impl FnOnce(&mut VertexState)) {
        let mut state = self.state.lock();
        if state.completed.is_none() {
            self.finish(&mut state, change);
        }
    }

    fn finish(&self, state: &mut VertexState, change: impl FnOnce(&mut VertexState)) {
        let now = SystemTime::now();
        state.started.get_or_insert(now);
        state.completed = Some(now);
        change(state);
        self.sink.emit(&Event::Vertex(state.clone()));
    }

    /// A process of this vertex wrote something.
    pub fn log(&self, stream: Stream, data: Vec<u8>) {
        let vertex = self.digest();
        self.sink.emit(&Event::Log(Log { vertex, stream, data, timestamp: SystemTime::now() }));
    }

    /// Passes an event on as it is (warnings).
    pub fn emit(&self, event: &Event) {
        self.sink.emit(event);
    }

    /// Says something about the vertex itself, in a line that every client's display shows: a part of the work that is done.
    pub fn remark(&self, text: impl Into<String>) {
        let now = SystemTime::now();
        self.sink.emit(&Event::Status(Status {
            id: text.into(),
            vertex: self.digest(),
            name: REMARK.to_owned(),
            current: 0,
            total: 0,
            timestamp: now,
            started: Some(now),
            completed: Some(now),
        }));
    }

    /// Begins reporting on a part of the work; it ends when the handle is dropped or [`StatusHandle::done`].
    pub fn part(&self, id: impl Into<String>, name: impl Into<String>, total: u64) -> StatusHandle {
        let now = SystemTime::now();
        let status = Status {
            id: id.into(),
            vertex: self.digest(),
            name: name.into(),
            current: 0,
            total,
            timestamp: now,
            started: Some(now),
            completed: None,
        };
        self.sink.emit(&Event::Status(status.clone()));
        StatusHandle { sink: Arc::clone(&self.sink), status, told: Instant::now() }
    }
}

impl std::fmt::Debug for VertexHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("VertexHandle").field(&*self.state.lock()).finish()
    }
}

/// How often a part that moves on is reported.
const STATUS_INTERVAL: Duration = Duration::from_millis(100);

/// Reports on a part of a vertex's work.
pub struct StatusHandle {
    sink: Arc<dyn Emit>,
    status: Status,
    told: Instant,
}

impl StatusHandle {
    /// The part is at `current` units of `total` (0: not known). Reported at most ten times a second.
    pub fn update(&mut self, current: u64, total: u64) {
        self.status.current = current;
        self.status.total = total;
        if self.told.elapsed() >= STATUS_INTERVAL {
            self.tell();
        }
    }

    /// The part is about something else now, such as `extracting`.
    pub fn rename(&mut self, name: impl Into<String>) {
        self.status.name = name.into();
        self.tell();
    }

    /// The part ended.
    pub fn done(self) {}

    fn tell(&mut self) {
        self.told = Instant::now();
        self.status.timestamp = SystemTime::now();
        self.sink.emit(&Event::Status(self.status.clone()));
    }
}

impl Drop for StatusHandle {
    fn drop(&mut self) {
        self.status.completed = Some(SystemTime::now());
        self.tell();
    }
}

impl std::fmt::Debug for StatusHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("StatusHandle").field(&self.status).finish()
    }
}
