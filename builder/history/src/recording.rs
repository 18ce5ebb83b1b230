//! A build that is being recorded.

use std::sync::Arc;

use tokio::runtime::Handle;

use crate::{Attachment, BuildNotes, History, Outcome, attachment};

/// A build that is being recorded. Dropping it without an end says that it was cancelled.
pub struct Recording {
    history: History,
    id: String,
    notes: Arc<BuildNotes>,
    runtime: Handle,
    outcome: Option<Outcome>,
}

impl Recording {
    pub(crate) fn new(history: History, id: String, notes: Arc<BuildNotes>, runtime: Handle) -> Self {
        Self { history, id, notes, runtime, outcome: Some(Outcome::Canceled) }
    }

    /// The build's id in the history.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What it is recorded in.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Where its steps note why they ran.
    pub fn notes(&self) -> &Arc<BuildNotes> {
        &self.notes
    }

    /// Keeps a document with the record. Of what is too long, or one too many, nothing is kept, and the log says so.
    pub fn attach(&self, attachment: Attachment) {
        let mut state = self.history.0.state.lock();
        let Some(live) = state.live.get_mut(&self.id) else { return };
        if attachment.data.len() > attachment::MOST_BYTES || live.attachments.len() >= attachment::MOST {
            let (kind, bytes) = (&attachment.kind, attachment.data.len());
            tracing::warn!(
                build = self.id,
                ?kind,
                bytes,
                "a document of a build is not kept: too long, or too many"
            );
            return;
        }
        live.attachments.push(attachment);
    }

    /// The build ended. It is written down in the background, once its progress has said its last word.
    pub fn end(mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let Some(outcome) = self.outcome.take() else { return };
        let inner = Arc::clone(&self.history.0);
        let (id, notes, runtime) =
            (std::mem::take(&mut self.id), Arc::clone(&self.notes), self.runtime.clone());
        inner.mark_ended(&id, outcome);
        self.runtime.spawn_blocking(move || inner.write_down(&id, &notes, &runtime));
    }
}

impl std::fmt::Debug for Recording {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recording").field("id", &self.id).finish_non_exhaustive()
    }
}
