//! A client that decides about each source of its build.

use lapstrake_api_proto::{
    gateway::{ResolveSourceMetaRequest, ResolveSourceMetaResponse},
    llb::Platform,
    policysession::{
        CheckPolicyRequest, DecisionResponse, check_policy_response,
        policy_verifier_client::PolicyVerifierClient,
    },
};

use crate::{Error, SessionCaller, channel};

const CHECK_POLICY: &str = "/moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier/CheckPolicy";

/// What a client says when it is asked about a source.
#[derive(Debug, Clone, PartialEq)]
pub enum PolicyAnswer {
    /// What is to become of the source.
    Decision(DecisionResponse),
    /// What it must know to decide.
    Question(Box<ResolveSourceMetaRequest>),
}

impl SessionCaller {
    /// Asks the client about a source, with what is known of it. `None` when the answer says nothing. Cancel-safe by drop.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the client decides about nothing; [`Error::Call`], [`Error::Closed`], [`Error::TimedOut`].
    pub async fn check_policy(
        &self,
        source: ResolveSourceMetaResponse,
        platform: Option<Platform>,
    ) -> Result<Option<PolicyAnswer>, Error> {
        let request = CheckPolicyRequest { platform, source: Some(source), caps: Default::default() };
        let mut client = PolicyVerifierClient::with_origin(self.channel(), channel::origin());
        let answer = self.timed(CHECK_POLICY, client.check_policy(request)).await?;
        Ok(answer.result.map(|result| match result {
            check_policy_response::Result::Decision(decision) => PolicyAnswer::Decision(decision),
            check_policy_response::Result::Request(question) => PolicyAnswer::Question(Box::new(question)),
        }))
    }
}
