//! What the history is told of a build, and what a build's steps may learn from it.

use std::{collections::BTreeMap, sync::Arc};

use lapstrake_builder_dockerfile::{DockerfileOptions, options::ContextSource};
use lapstrake_builder_exporter::{Exported, Output};
use lapstrake_builder_history::{
    Attachment, AttachmentKind, BuildNotes, Building, History, Mark, Outcome, Project, Recording,
    ResultRecord,
};
use lapstrake_builder_progress::redact;
use lapstrake_layerstore_oci::{Platform, Reference};
use lapstrake_session::{ExporterId, Sessions, Wait};
use parking_lot::Mutex;
use prost::Message as _;

use crate::{
    BuildRequest, ContextInput, EngineError, FrontendRequest, Input,
    bridge::rpc_status,
    recorded::{self, PROXY_ARGS},
};

/// A build as it is recorded when it begins. Nothing in it is secret: values of build-args are left out, credentials in URLs masked.
pub(crate) fn building(request: &BuildRequest) -> Building {
    let (kind, names) = outputs(&request.outputs);
    let names: Vec<String> = names.iter().map(Reference::familiar).collect();
    let mut building = Building {
        id: request.id.0.clone(),
        output: kind,
        options: recorded::options(&request.input),
        outputs: recorded::outputs(&request.outputs),
        ..Building::default()
    };
    if let Input::Frontend(FrontendRequest { options, .. }) | Input::Client { options, .. } = &request.input
        && (!options.is_empty() || matches!(request.input, Input::Frontend(_)))
    {
        let said = |key: &str| options.get(key).filter(|value| !value.is_empty()).cloned();
        building.dockerfile = said("filename").unwrap_or_else(|| "Dockerfile".to_owned());
        building.target = said("target");
        building.platforms =
            said("platform").iter().flat_map(|all| all.split(',')).map(str::to_owned).collect();
        let args = options.keys().filter_map(|key| key.strip_prefix("build-arg:"));
        building.build_args = args.map(str::to_owned).collect();
        building.context = said("context").map(|url| redact(&url).into_owned());
    }
    if let Input::Frontend(asked) = &request.input {
        building.frontend.clone_from(&asked.frontend);
    }
    if let Input::Dockerfile { options, context, .. } = &request.input {
        building.frontend = "dockerfile.v0".to_owned();
        building.dockerfile.clone_from(&options.dockerfile_name);
        building.target.clone_from(&options.target);
        building.platforms = options.platforms.iter().map(Platform::to_string).collect();
        building.build_args = options.build_args.keys().cloned().collect();
        building.context = match (context, &options.context) {
            (ContextInput::Directory { context, .. }, _) => Some(context.display().to_string()),
            (_, ContextSource::Git { reference: url, .. } | ContextSource::Http { url }) => {
                Some(redact(url).into_owned())
            }
            _ => None,
        };
    }
    building.name = match (names.first(), building.dockerfile.as_str()) {
        (Some(name), _) => name.clone(),
        (None, "") => "(graph)".to_owned(),
        (None, file) => file.to_owned(),
    };
    if let Some(target) = &building.target {
        building.name.push_str(&format!(" ({target})"));
    }
    building.names = names;
    building
}

/// The media type of an error, by BuildKit's spelling.
const FAILURE: &str = "application/vnd.googeapis.google.rpc.status+proto";

/// The media type of statements and of what they say, and the annotation that tells which kind it is.
const IN_TOTO: &str = "application/vnd.in-toto+json";
const PREDICATE_TYPE: &str = "in-toto.io/predicate-type";

/// A build ended: how, and what is kept of it.
pub(crate) fn end(recording: Recording, known: Option<&Knowledge>, result: &Result<Exported, EngineError>) {
    for provenance in known.iter().flat_map(|known| std::mem::take(&mut *known.provenance.lock())) {
        recording.attach(provenance);
    }
    let outcome = match result {
        Ok(exported) => Outcome::Completed {
            image: exported.digest().map(ToString::to_string),
            response: exported.response(),
            results: known.map(Knowledge::results).unwrap_or_default(),
        },
        Err(error) if error.is_canceled() => Outcome::Canceled,
        Err(error) => {
            let mut status = rpc_status(error);
            status.message = redact(&status.message).into_owned();
            recording.attach(Attachment {
                kind: AttachmentKind::Failure,
                media_type: FAILURE.to_owned(),
                annotations: BTreeMap::new(),
                data: status.encode_to_vec(),
            });
            Outcome::Failed { error: status.message, code: status.code }
        }
    };
    recording.end(outcome);
}

/// An error and those of its causes that it does not name itself.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let cause = source.to_string();
        if !text.contains(&cause) && !cause.ends_with(&text) {
            text = format!("{text}: {cause}");
        }
        next = source.source();
    }
    text
}

/// The types of all outputs, and the names of the first that has some.
fn outputs(outputs: &[Output]) -> (String, &[Reference]) {
    let kinds: Vec<&str> = match outputs {
        [] => vec![Output::CacheOnly.kind()],
        some => some.iter().map(Output::kind).collect(),
    };
    let names = outputs.iter().map(Output::names).find(|names| !names.is_empty());
    (kinds.join(","), names.unwrap_or_default())
}

/// What a build knows that its steps need to say why they ran.
pub(crate) struct Knowledge {
    pub(crate) history: History,
    pub(crate) notes: Arc<BuildNotes>,
    /// Marks of the build-args' values.
    pub(crate) build_args: BTreeMap<String, Mark>,
    /// The repository of the image's first name.
    image: Option<String>,
    /// Where the context is, when that is known beforehand.
    context: Option<String>,
    dockerfile: String,
    /// Digests of images, by reference.
    images: Mutex<BTreeMap<String, String>>,
    /// What outputs left, by number.
    left: Mutex<BTreeMap<u32, Exported>>,
    /// How results came to be.
    provenance: Mutex<Vec<Attachment>>,
}

impl Knowledge {
    pub(crate) fn new(request: &BuildRequest, recording: &Recording) -> Self {
        let (_, names) = outputs(&request.outputs);
        let image = names.first().map(|name| format!("{}/{}", name.domain(), name.path()));
        let mut known = Self {
            history: recording.history().clone(),
            notes: Arc::clone(recording.notes()),
            build_args: BTreeMap::new(),
            image,
            context: None,
            dockerfile: String::new(),
            images: Mutex::default(),
            left: Mutex::default(),
            provenance: Mutex::default(),
        };
        if let Input::Frontend(FrontendRequest { options, .. }) | Input::Client { options, .. } =
            &request.input
        {
            let said = |key: &str| options.get(key).filter(|value| !value.is_empty());
            known.dockerfile = said("filename").map_or_else(|| "Dockerfile".to_owned(), String::clone);
            known.context = said("context").filter(|context| context.contains("://")).cloned();
            let args =
                options.iter().filter_map(|(key, value)| Some((key.strip_prefix("build-arg:")?, value)));
            known.build_args = marks(args);
        }
        if let Input::Dockerfile { options, context, .. } = &request.input {
            known.dockerfile.clone_from(&options.dockerfile_name);
            known.context = place(options, context);
            known.build_args = marks(options.build_args.iter().map(|(name, value)| (name.as_str(), value)));
        }
        known
    }

    /// An output left something.
    pub(crate) fn note_output(&self, number: ExporterId, exported: &Exported) {
        self.left.lock().insert(number.0, exported.clone());
    }

    /// How a result came to be; that of a platform, if there are several.
    pub(crate) fn note_provenance(&self, platform: Option<String>, predicate_type: &str, data: Vec<u8>) {
        self.provenance.lock().push(Attachment {
            kind: AttachmentKind::Attestation { platform },
            media_type: IN_TOTO.to_owned(),
            annotations: [(PREDICATE_TYPE.to_owned(), predicate_type.to_owned())].into(),
            data,
        });
    }

    fn results(&self) -> BTreeMap<u32, ResultRecord> {
        let left = self.left.lock();
        left.iter().filter_map(|(number, left)| Some((*number, recorded::result(left)?))).collect()
    }

    /// The Dockerfile was read, if there is one: now it is known which project this is.
    pub(crate) async fn identify(
        &self,
        dockerfile: Option<&[u8]>,
        sessions: &Sessions,
        session: Option<&str>,
    ) {
        let mut context = self.context.clone();
        if context.is_none()
            && let Some(session) = session
            && let Ok(caller) = sessions.get(session, Wait::Never).await
            && !caller.shared_key().is_empty()
        {
            context = Some(caller.shared_key().to_owned());
        }
        // The same directory may have several Dockerfiles.
        let with_file = |text: String| Mark::of_all([text.as_str(), &self.dockerfile]);
        self.notes.set_project(Project {
            image: self.image.clone().map(with_file),
            context: context.map(with_file),
            dockerfile: dockerfile.map(Mark::of),
        });
    }

    /// An image was found.
    pub(crate) fn learn_image(&self, reference: &Reference, digest: String) {
        self.images.lock().insert(reference.to_string(), digest);
    }

    /// The digest that an image was found with.
    pub(crate) fn image(&self, reference: &str) -> Option<String> {
        self.images.lock().get(reference).cloned()
    }
}

/// Marks of build-args that are part of what is built.
fn marks<'a>(args: impl Iterator<Item = (&'a str, &'a String)>) -> BTreeMap<String, Mark> {
    let args = args.filter(|(name, _)| !PROXY_ARGS.contains(&name.to_lowercase().as_str()));
    args.map(|(name, value)| (name.to_owned(), Mark::of(value))).collect()
}

/// What tells one context from another, where the request itself says it.
fn place(options: &DockerfileOptions, context: &ContextInput) -> Option<String> {
    match (context, &options.context) {
        (ContextInput::Directory { context, .. }, _) => Some(context.display().to_string()),
        (ContextInput::Remote, ContextSource::Git { reference: url, .. } | ContextSource::Http { url }) => {
            Some(url.clone())
        }
        _ => None,
    }
}
