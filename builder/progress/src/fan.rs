//! One vertex's progress, told to every build that waits for it.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;

use crate::{Emit, Event, Progress};

/// Bytes of output that a build joining late is told of a vertex that is running already.
const REPLAY_BYTES: usize = 64 * 1024;

#[derive(Default)]
struct Shared {
    readers: Vec<(u64, Arc<dyn Emit>)>,
    replay: VecDeque<Event>,
    replay_bytes: usize,
}

/// Passes events on to several builds, and repeats recent ones to those that join late. Cheap to clone.
#[derive(Clone, Default)]
pub struct Fan(Arc<Mutex<Shared>>);

impl Fan {
    /// Adds the build with this number, telling it first what happened so far.
    pub fn join(&self, build: u64, progress: &Progress) {
        self.relay(build, Arc::new(progress.clone()));
    }

    /// Adds something else that listens, telling it first what happened so far. Its number is no build's. It must not lead back here.
    pub fn relay(&self, number: u64, reader: Arc<dyn Emit>) {
        let mut shared = self.0.lock();
        for event in &shared.replay {
            reader.emit(event);
        }
        shared.readers.push((number, reader));
    }

    /// Takes a reader out again: it hears no more.
    pub fn leave(&self, number: u64) {
        self.0.lock().readers.retain(|(other, _)| *other != number);
    }
}

impl Emit for Fan {
    fn emit(&self, event: &Event) {
        let mut shared = self.0.lock();
        for (_, reader) in &shared.readers {
            reader.emit(event);
        }
        let size = match event {
            Event::Log(log) => log.data.len(),
            // The last state and the last status of a part are all that count.
            Event::Vertex(_) => {
                shared.replay.retain(|old| !matches!(old, Event::Vertex(_)));
                0
            }
            Event::Status(new) => {
                shared.replay.retain(|old| !matches!(old, Event::Status(status) if status.id == new.id));
                0
            }
            Event::Warning(_) => 0,
        };
        shared.replay_bytes += size;
        shared.replay.push_back(event.clone());
        while shared.replay_bytes > REPLAY_BYTES {
            let Some(at) = shared.replay.iter().position(|event| matches!(event, Event::Log(_))) else {
                break;
            };
            if let Some(Event::Log(log)) = shared.replay.remove(at) {
                shared.replay_bytes -= log.data.len();
            }
        }
    }
}

impl std::fmt::Debug for Fan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fan").field("readers", &self.0.lock().readers.len()).finish()
    }
}
