//! A build's progress as the lines that a client asked for.

use std::time::SystemTime;

use base64::Engine as _;
use lapstrake_api_types::{ApiVersion, BuildQuery, ProgressForm, StreamMessage};
use lapstrake_builder_progress::{
    Event, Log, ProgressError, Stream, Subscription, VertexState,
    classic::{ClassicLine, ClassicScript, Removal, Transcript},
    to_response,
};
use lapstrake_layerstore_oci::Digest;
use prost::Message;
use serde_json::json;
use tokio::sync::oneshot;

use crate::{ApiError, Built, ErrorPlace};

/// Reads a build's progress and says it.
pub(super) enum Rendering {
    /// Until the steps are planned there is nothing to say; a build that fails before says nothing.
    Planning(Option<Subscription>, oneshot::Receiver<ClassicScript>, Removal),
    Classic(Box<Transcript>),
    Trace(Subscription),
}

impl Rendering {
    pub(super) fn classic(
        events: Subscription,
        script: oneshot::Receiver<ClassicScript>,
        removal: Removal,
    ) -> Self {
        Self::Planning(Some(events), script, removal)
    }

    pub(super) fn trace(events: Subscription) -> Self {
        Self::Trace(events)
    }

    /// What is to be said next; `None` when the build has said its last word.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<StreamMessage>>, ApiError> {
        loop {
            match self {
                Self::Planning(events, script, removal) => {
                    let Ok(script) = (&mut *script).await else { return Ok(None) };
                    let Some(events) = events.take() else { return Ok(None) };
                    *self = Self::Classic(Box::new(Transcript::new(script, *removal, events)));
                }
                Self::Classic(transcript) => {
                    let lines = transcript.next().await.map_err(|error| unreadable(&error))?;
                    let Some(lines) = lines else { return Ok(None) };
                    if !lines.is_empty() {
                        return Ok(Some(lines.into_iter().map(message).collect()));
                    }
                }
                Self::Trace(events) => {
                    let packed = events.next_packed().await.map_err(|error| unreadable(&error))?;
                    return Ok(packed.map(|packed| vec![trace(&packed)]));
                }
            }
        }
    }

    /// What is left to say of a build that failed, before the error itself.
    ///
    /// BuildKit's clients print the lines at fault when they get them as details of a gRPC error, which a stream of messages has not. What they do
    /// show of it is the output of vertices that failed: so one is made of the place. The classic transcript ends with the step that failed.
    pub(super) fn failure(&mut self, error: &ApiError) -> Vec<StreamMessage> {
        match (self, &error.place) {
            (Self::Trace(_), Some(place)) => {
                vec![trace(&to_response(&failed_at(place, &error.message)).encode_to_vec())]
            }
            (rendering, _) => rendering.success(&Built::default()),
        }
    }

    /// Build arguments that nobody declared.
    pub(super) fn unused_args(&self) -> &[String] {
        match self {
            Self::Classic(transcript) => transcript.unused_args(),
            _ => &[],
        }
    }

    /// What the progress leaves to say once the outcome is known.
    pub(super) fn success(&mut self, built: &Built) -> Vec<StreamMessage> {
        match self {
            Self::Classic(transcript) => {
                transcript.finish(built.image.as_ref()).into_iter().map(message).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// Events, packed, as clients of BuildKit's builds read them.
fn trace(packed: &[u8]) -> StreamMessage {
    let encoded = base64::engine::general_purpose::STANDARD.encode(packed);
    StreamMessage::aux(Some("moby.buildkit.trace"), json!(encoded))
}

/// A vertex that failed, and has the lines at fault as its output.
fn failed_at(place: &ErrorPlace, message: &str) -> [Event; 2] {
    let now = SystemTime::now();
    let vertex = Digest::sha256_of(format!("{}{message}", place.excerpt));
    let state = VertexState {
        started: Some(now),
        completed: Some(now),
        error: Some(message.to_owned()),
        ..VertexState::pending(vertex.clone(), place.name.clone(), Vec::new())
    };
    // The first line is the vertex's name.
    let excerpt = place.excerpt.split_once('\n').map_or(place.excerpt.as_str(), |(_, rest)| rest);
    let data = excerpt.as_bytes().to_vec();
    [Event::Vertex(state), Event::Log(Log { vertex, stream: Stream::Stderr, data, timestamp: now })]
}

fn unreadable(error: &ProgressError) -> ApiError {
    ApiError::internal(error)
}

fn message(line: ClassicLine) -> StreamMessage {
    match line {
        ClassicLine::Stdout(text) => StreamMessage::stream(text),
        // Moby paints it red.
        ClassicLine::Stderr(text) => StreamMessage::stream(format!("\u{1b}[91m{text}\u{1b}[0m")),
        ClassicLine::Part { id, action, current, total } => {
            StreamMessage::progress(id, action, current, total)
        }
    }
}

/// How a build's stream ends.
pub(super) struct Ending {
    form: ProgressForm,
    api: ApiVersion,
}

impl Ending {
    pub(super) fn new(query: &BuildQuery, api: ApiVersion) -> Self {
        Self { form: query.progress_form(), api }
    }

    pub(super) fn success(&self, built: &Built, unused_args: &[String]) -> Vec<StreamMessage> {
        let Some(id) = built.digest.as_ref() else { return Vec::new() };
        match self.form {
            ProgressForm::Trace => vec![StreamMessage::image_id(Some("moby.image.id"), id.as_str())],
            ProgressForm::Classic => {
                let mut ending = Vec::new();
                if self.api.at_least(30) {
                    ending.push(StreamMessage::image_id(None, id.as_str()));
                }
                if !unused_args.is_empty() {
                    let names = unused_args.join(" ");
                    let warning = format!("[Warning] One or more build-args [{names}] were not consumed\n");
                    ending.push(StreamMessage::stream(warning));
                }
                ending.push(StreamMessage::stream(format!("Successfully built {}\n", id.short())));
                for name in &built.names {
                    ending.push(StreamMessage::stream(format!("Successfully tagged {}\n", name.familiar())));
                }
                ending
            }
        }
    }

    /// `q`: the id and nothing else.
    pub(super) fn quiet_success(&self, built: &Built) -> Vec<StreamMessage> {
        let id = built.digest.as_ref().map(ToString::to_string).unwrap_or_default();
        vec![StreamMessage::stream(format!("{id}\n"))]
    }
}
