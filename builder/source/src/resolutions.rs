//! What builds and sessions have found out: a build sees one state of a thing however often it asks, and a client gives an upload once.
//!
//! What was found is forgotten as soon as those are gone who found it: it may hold a tree, which would be in use, and could not be pruned.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

use lapstrake_session::{SessionId, Sessions, Wait};
use parking_lot::Mutex;

use crate::{SourceContext, context::Running};

/// How much is kept at once.
const LIMIT: usize = 128;

/// What was found out for those who still run, by who asked and by key; newest last.
pub(crate) struct Resolutions<T>(Arc<Mutex<VecDeque<Resolution<T>>>>);

struct Resolution<T> {
    asker: Asker,
    key: String,
    found: T,
}

impl<T> Default for Resolutions<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// For whom something was found out.
#[derive(Clone)]
enum Asker {
    Session(SessionId),
    Build(Weak<Running>),
}

impl Asker {
    fn is_among(&self, cx: &SourceContext) -> bool {
        match self {
            Self::Session(id) => cx.sessions.contains(id),
            Self::Build(watch) => cx.builds.iter().any(|build| build.is_of(watch)),
        }
    }

    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Session(id), Self::Session(other)) => id == other,
            (Self::Build(watch), Self::Build(other)) => watch.ptr_eq(other),
            _ => false,
        }
    }
}

impl<T: Clone + Send + 'static> Resolutions<T> {
    /// What one of those who wait has found out.
    pub(crate) fn recall(&self, cx: &SourceContext, key: &str) -> Option<T> {
        let recent = self.0.lock();
        let found = recent.iter().find(|recent| recent.key == key && recent.asker.is_among(cx));
        found.map(|recent| recent.found.clone())
    }

    /// Keeps it for those who wait, until they are gone.
    pub(crate) fn keep(&self, cx: &SourceContext, key: &str, found: &T, sessions: &Sessions) {
        let mut recent = self.0.lock();
        recent.retain(|recent| !(recent.key == key && recent.asker.is_among(cx)));
        let mut push = |asker: Asker| {
            // Whoever has found something already is watched.
            let is_new = !recent.iter().any(|recent| recent.asker.is(&asker));
            recent.push_back(Resolution { asker: asker.clone(), key: key.to_owned(), found: found.clone() });
            is_new.then_some(asker)
        };
        for build in &cx.builds {
            if let Some(asker) = push(Asker::Build(build.watch())) {
                let ended = build.ended();
                self.forget_after(asker, async move { ended.cancelled().await });
            }
        }
        for id in &cx.sessions {
            if let Some(asker) = push(Asker::Session(id.clone())) {
                let (sessions, id) = (sessions.clone(), id.clone());
                self.forget_after(asker, async move {
                    if let Ok(caller) = sessions.get(id.as_str(), Wait::Never).await {
                        let closed = caller.closed().clone();
                        drop(caller);
                        closed.cancelled().await;
                    }
                });
            }
        }
        while recent.len() > LIMIT {
            recent.pop_front();
        }
    }

    /// Forgets what somebody has found once they are gone. One task for each build and session: as many as those run.
    fn forget_after(&self, asker: Asker, gone: impl Future<Output = ()> + Send + 'static) {
        let all = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            gone.await;
            if let Some(all) = all.upgrade() {
                // Let go of outside of the lock: a tree has a lease, and a lease its own.
                let mut recent = all.lock();
                let (gone, kept): (VecDeque<_>, VecDeque<_>) =
                    recent.drain(..).partition(|recent| recent.asker.is(&asker));
                *recent = kept;
                drop(recent);
                drop(gone);
            }
        });
    }
}
