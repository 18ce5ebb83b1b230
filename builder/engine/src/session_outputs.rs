//! Outputs that the client wants once it has seen what was made (BuildKit's session exporter).

use std::sync::Arc;

use lapstrake_builder_exporter::{Exported, Output};
use lapstrake_session::{SessionCaller, SessionId, Wait};

use crate::{Bridge, Engine, EngineError, FrontendResult};

impl Engine {
    /// What the client wants to be left behind besides what it said at first. Through the bridge, if there is one, it may look at the result meanwhile.
    pub(crate) async fn wanted_outputs(
        &self,
        session: Option<&SessionId>,
        result: &FrontendResult,
        bridge: Option<&Arc<Bridge>>,
    ) -> Result<Vec<Output>, EngineError> {
        let mut names = Vec::new();
        for reference in result.refs.iter() {
            names.push(match bridge {
                Some(bridge) => bridge.register(reference)?,
                None => reference.id().to_owned(),
            });
        }
        let wanted = self.client(session).await?.find_outputs(result.metadata.clone(), names).await?;
        wanted.into_iter().map(|one| Ok(Output::parse(&one.kind, &one.attrs)?)).collect()
    }

    /// Tells a client that was asked for outputs what came of them all.
    pub(crate) async fn tell_outputs(
        &self,
        session: Option<&SessionId>,
        exported: &Exported,
    ) -> Result<(), EngineError> {
        Ok(self.client(session).await?.finish_outputs(exported.response()).await?)
    }

    async fn client(&self, session: Option<&SessionId>) -> Result<SessionCaller, EngineError> {
        let id = session.map(SessionId::as_str).unwrap_or_default();
        Ok(self.workshop().sessions.get(id, Wait::default()).await?)
    }
}
