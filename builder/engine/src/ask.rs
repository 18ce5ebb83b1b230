//! Questions about a Dockerfile (`requestid`), which are answered without building it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use lapstrake_builder_dockerfile::{
    DockerfileOptions,
    subrequest::{Reply, Subrequest, SubrequestAnswer, answer},
};
use lapstrake_builder_llb::Definition;
use lapstrake_builder_progress::Progress;
use lapstrake_builder_source::BuildMark;
use lapstrake_layerstore_registry::CredentialSource;
use lapstrake_session::SessionId;
use tokio_util::sync::CancellationToken;

use crate::{
    BuildId, ContextInput, Engine, EngineError, Resources,
    attest::Trail,
    bridge::BuildParts,
    plan::{Answered, Planned, place_context},
    scope::BuildScope,
};

/// A question about a Dockerfile.
#[derive(Clone)]
pub struct Question {
    /// By which the client may cancel it; as of builds.
    pub id: BuildId,
    /// What is asked.
    pub request: Subrequest,
    /// Everything that the client said about the Dockerfile.
    pub options: Box<DockerfileOptions>,
    /// Where its files are. Of them, the Dockerfile and ignore files are read.
    pub context: ContextInput,
    /// Further directories, as of builds.
    pub directories: BTreeMap<String, std::path::PathBuf>,
    /// The client's session.
    pub session: Option<SessionId>,
    /// Registry credentials that came with the request.
    pub credentials: Arc<dyn CredentialSource>,
}

impl Engine {
    /// Answers a question. Base images are looked up as they are for a build; nothing is run, stored or recorded.
    ///
    /// Fails where a build would fail before its first step, but for [`Subrequest::Lint`]: there, what is wrong with the Dockerfile is part of the answer.
    pub async fn ask(
        &self,
        question: Question,
        progress: Progress,
        cancel: CancellationToken,
    ) -> Result<Reply, EngineError> {
        let running = self.register(&question.id, &cancel)?;
        tokio::select! {
            reply = self.reply(question, &progress, &running.cancel) => reply,
            () = running.cancel.cancelled() => Err(EngineError::Canceled),
        }
    }

    async fn reply(
        &self,
        question: Question,
        progress: &Progress,
        cancel: &CancellationToken,
    ) -> Result<Reply, EngineError> {
        let Question { request, mut options, context, directories, session, credentials, .. } = question;
        let mut scope = BuildScope {
            mark: BuildMark::default(),
            session,
            live: self.workshop().sessions.clone(),
            credentials,
            locals: HashMap::new(),
            received: false,
            bare_modes: false,
            grants: crate::Grants::default(),
            resources: Resources::default(),
            policy: crate::SourcePolicy::default(),
            progress: progress.clone(),
            renewed: Arc::default(),
            inside: Vec::new(),
            trail: Trail::nowhere(),
            shows_failed: false,
            failed: None,
            known: None,
        };
        place_context(&mut options, context, directories, &mut scope)?;
        options.subrequest = Some(request.id().to_owned());
        let build = BuildParts::new(Arc::new(scope), progress, cancel, Vec::new());
        self.answer(&options, &BTreeMap::new(), &build).await
    }

    /// Answers what the options ask (`requestid`).
    pub(crate) async fn answer(
        &self,
        options: &DockerfileOptions,
        inputs: &BTreeMap<String, Definition>,
        build: &Arc<BuildParts>,
    ) -> Result<Reply, EngineError> {
        let loaded = match self.load(options, inputs, build).await? {
            Answered::BuiltIn(loaded) => loaded,
            Answered::Elsewhere(result) => {
                return Ok(Reply { metadata: result.metadata, ..Reply::default() });
            }
        };
        // Only who answers knows what may be asked.
        let request = Subrequest::parse(options.subrequest.as_deref().unwrap_or_default())?;
        let planned = self.rounds(options, loaded, build, |facts, warnings| {
            Ok(match answer(request, options, facts, warnings)? {
                SubrequestAnswer::Need(needs) => Planned::Need(needs),
                SubrequestAnswer::Reply(reply) => Planned::Done(reply),
            })
        });
        Ok(planned.await?.0)
    }
}
