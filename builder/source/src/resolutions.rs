//! What builds and sessions have found out: a build sees one state of a thing however often it asks, and a client gives an upload once.

use std::{collections::VecDeque, sync::Weak};

use lapstrake_session::SessionId;
use parking_lot::Mutex;

use crate::SourceContext;

/// How much is kept at once.
const LIMIT: usize = 128;

/// What was found out for those who still run, by who asked and by key; newest last.
pub(crate) struct Resolutions<T>(Mutex<VecDeque<(Asker, String, T)>>);

impl<T> Default for Resolutions<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// For whom something was found out.
enum Asker {
    Session(SessionId),
    Build(Weak<()>),
}

impl Asker {
    fn is_among(&self, cx: &SourceContext) -> bool {
        match self {
            Self::Session(id) => cx.sessions.contains(id),
            Self::Build(watch) => cx.builds.iter().any(|build| build.is_of(watch)),
        }
    }

    fn is_live(&self, sessions: &[SessionId]) -> bool {
        match self {
            Self::Session(id) => sessions.contains(id),
            Self::Build(watch) => watch.strong_count() > 0,
        }
    }
}

impl<T: Clone> Resolutions<T> {
    /// What one of those who wait has found out.
    pub(crate) fn recall(&self, cx: &SourceContext, key: &str) -> Option<T> {
        let recent = self.0.lock();
        let found = recent.iter().find(|(asker, name, _)| name == key && asker.is_among(cx));
        found.map(|(.., found)| found.clone())
    }

    /// Keeps it for those who wait, and forgets what those who are gone had found; `sessions` are those that are there.
    pub(crate) fn keep(&self, cx: &SourceContext, key: &str, found: &T, sessions: &[SessionId]) {
        let mut recent = self.0.lock();
        recent.retain(|(asker, name, _)| asker.is_live(sessions) && !(name == key && asker.is_among(cx)));
        let builds = cx.builds.iter().map(|build| Asker::Build(build.watch()));
        for asker in builds.chain(cx.sessions.iter().cloned().map(Asker::Session)) {
            recent.push_back((asker, key.to_owned(), found.clone()));
        }
        while recent.len() > LIMIT {
            recent.pop_front();
        }
    }
}
